//! The ready campaigns are campaigns.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::path::PathBuf;

use quorate_campaign::file::Campaign;

fn files() -> Vec<PathBuf> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../campaigns");
    let entries = std::fs::read_dir(directory).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "toml")
    });
    files.sort();
    files
}

#[test]
fn each_is_read_and_says_what_it_is_for() {
    let mut models = BTreeSet::new();
    for file in files() {
        let campaign = Campaign::load(&file).unwrap_or_else(|error| panic!("{error}"));
        assert!(!campaign.description.is_empty(), "{}", file.display());
        assert!(campaign.workload.command.is_some(), "{}", file.display());
        let stem = file.file_stem().unwrap().to_str().unwrap();
        assert_eq!(campaign.name, stem);
        if stem == "everything" {
            models.extend(campaign.faults.iter().map(|fault| fault.fault.name()));
        }
    }
    let all = [
        "register", "memory", "page", "block", "frame", "clock", "stall", "slow", "hang", "crash",
        "syscall", "entry",
    ];
    assert_eq!(
        models,
        BTreeSet::from(all),
        "everything.toml has every model"
    );
}
