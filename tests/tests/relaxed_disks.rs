//! Disks of a relaxed set with a real guest: Debian's sqlite3 on ext4, three replicas with a clock each. What no quorum wrote alike
//! (the journal's times, inodes) is named with its sectors and the policy, and is not on the disk.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use quorate_tests::process::{Ended, run};
use quorate_tests::set::quorate;
use quorate_tests::{disk, one_at_a_time};

const LONG: Duration = Duration::from_secs(240);
const SECTOR: usize = 512;

fn sqlite(directory: &Path, relaxed: &str) -> Ended {
    let text = format!(
        r#"version = 1
name = "relaxed-disks"
[image]
packages = ["sqlite3"]
files = [{{ path = "/etc/run.sql", content = '''
CREATE TABLE numbers (n INTEGER NOT NULL, square INTEGER NOT NULL);
INSERT INTO numbers WITH RECURSIVE up (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < 1000) SELECT n, n * n FROM up;
SELECT 'rows ' || count(*) FROM numbers;
PRAGMA integrity_check;
''' }}]
[program]
command = ["/usr/bin/sqlite3", "-batch", "-bail", "/data/app.db", ".read /etc/run.sql"]
cwd = "/data"
[machine]
memory = "128M"
replicas = 3
layout = "random"
[[disk]]
name = "data"
size = "64M"
mount = "/data"
path = "data.img"
{relaxed}
[relaxed]
"#
    );
    let appliance = directory.join("appliance.toml");
    std::fs::write(&appliance, text).unwrap();
    let mut command = Command::new(quorate().unwrap());
    command.arg("run").arg(&appliance);
    command.arg("--control").arg(directory.join("control.sock"));
    run(command, LONG).unwrap()
}

/// `disk data: 49 sectors (25 KiB) never confirmed (POLICY): 88 journal, 125-126 journal, …`: the ranges, with what lies there.
fn unconfirmed(said: &str, policy: &str) -> Vec<(usize, usize, String)> {
    let intro = format!("never confirmed ({policy}): ");
    let (_, list) = said.split_once(&intro).expect("a line with the sectors");
    let (list, _) = list.split_once(": kept by the replicas").unwrap();
    let ranges = list.split(", ").filter(|range| !range.starts_with('…'));
    ranges
        .map(|range| {
            let (numbers, what) = range.split_once(' ').unwrap();
            let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
            (
                first.parse().unwrap(),
                last.parse().unwrap(),
                what.to_owned(),
            )
        })
        .collect()
}

#[test]
fn what_no_quorum_wrote_is_named_and_not_on_the_disk() {
    let _turn = one_at_a_time("sqlite3 on ext4 in a relaxed set: private, report, hold");
    let directory = disk::directory().unwrap();
    let path = directory.path();
    let image = || std::fs::read(path.join("data.img")).unwrap();
    let works = |ended: &Ended| {
        let text = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert!(
            ended.code == 0 && text.contains("rows 1000\nok\n"),
            "{text}\n{}",
            ended.stderr
        );
    };

    let ended = sqlite(path, "relaxed = \"private\"");
    works(&ended);
    assert!(
        !ended.stderr.contains("never confirmed"),
        "{}",
        ended.stderr
    );
    let fresh = image();
    works(&sqlite(path, "relaxed = \"private\""));
    assert!(image() == fresh, "a private disk's file was written");

    let ended = sqlite(path, "unconfirmed = \"report\"");
    works(&ended);
    let ranges = unconfirmed(&ended.stderr, "vote, unconfirmed = report");
    assert!(
        ranges.iter().any(|(.., what)| what == "journal"),
        "{ranges:?}"
    );
    assert!(ended.stderr.contains("went on without"), "{}", ended.stderr);
    let after = image();
    assert!(after != fresh, "what a quorum wrote is on the disk");
    for (first, last, what) in &ranges {
        let place = first * SECTOR..(last + 1) * SECTOR;
        assert!(
            after[place.clone()] == fresh[place],
            "{what} at sector {first} was released without a quorum"
        );
    }

    // The strict policy says so and ends; the file system is as it was before the flush.
    std::fs::write(path.join("data.img"), &fresh).unwrap();
    let ended = sqlite(path, "# the default");
    assert_eq!(ended.code, 10, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("no quorum wrote what replica"),
        "{}",
        ended.stderr
    );
    let ranges = unconfirmed(&ended.stderr, "vote, unconfirmed = hold");
    assert!(!ranges.is_empty());
    let fsck = Command::new("e2fsck")
        .arg("-fn")
        .arg(path.join("data.img"))
        .output()
        .unwrap();
    assert!(
        fsck.status.success(),
        "{}",
        String::from_utf8_lossy(&fsck.stdout)
    );
}
