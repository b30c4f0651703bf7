//! Files on a disk behave as on Linux, in three replicas of random layouts; what they leave is there after the next start, and
//! `e2fsck` finds nothing after each.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use quorate_tests::process::{Ended, run};
use quorate_tests::set::quorate;
use quorate_tests::{one_at_a_time, programs};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(240);

/// Runs a program with a disk, or with its root on one, in `state`.
fn in_guest(words: &[&str], state: &Path, root_on_disk: bool) -> Ended {
    let bin = state.join("root/bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::create_dir_all(state.join("root/tmp")).unwrap();
    std::fs::copy(programs::path(words[0]).unwrap(), bin.join(words[0])).unwrap();
    let path = format!("/bin/{}", words[0]);
    let command: Vec<&str> = std::iter::once(path.as_str())
        .chain(words[1..].iter().copied())
        .collect();
    let (root, mount) = if root_on_disk {
        ("root = \"disk:data\"", "")
    } else {
        ("", "mount = \"/data\"")
    };
    let text = format!(
        "version = 1\nname = \"disk-files\"\n[image]\ndirectory = \"root\"\n[program]\ncommand = {command:?}\n\
         [machine]\nmemory = \"192M\"\nreplicas = 3\nlayout = \"random\"\n{root}\n\
         [[disk]]\nname = \"data\"\nsize = \"64M\"\npath = \"data.img\"\n{mount}\n"
    );
    let appliance = state.join("appliance.toml");
    std::fs::write(&appliance, text).unwrap();
    let mut command = Command::new(quorate().unwrap());
    command.arg("run").arg(&appliance);
    command.arg("--control").arg(state.join("control.sock"));
    let ended = run(command, LONG).unwrap();
    let fsck = Command::new("e2fsck")
        .arg("-fn")
        .arg(state.join("data.img"))
        .output()
        .unwrap();
    assert!(
        fsck.status.success(),
        "{}",
        String::from_utf8_lossy(&fsck.stdout)
    );
    ended
}

fn passes(words: &[&str], state: &Path, root_on_disk: bool) {
    let ended = in_guest(words, state, root_on_disk);
    let text = String::from_utf8_lossy(&ended.stdout);
    assert!(
        ended.code == 0 && text.contains("done") && !text.contains("FAIL"),
        "{words:?}: {text}\n{}",
        ended.stderr
    );
}

#[test]
fn files_and_mappings_on_a_disk() {
    let _alone = one_at_a_time("files and mappings on a disk");
    let state = tempfile::tempdir().unwrap();
    passes(&["files", "/data"], state.path(), false);
    passes(&["mapped", "/data"], state.path(), false);
    passes(&["mapped", "/data", "check"], state.path(), false);
}

#[test]
fn files_and_mappings_with_the_root_on_a_disk() {
    let _alone = one_at_a_time("files and mappings with the root on a disk");
    let state = tempfile::tempdir().unwrap();
    passes(&["files"], state.path(), true);
    passes(&["mapped", "/tmp"], state.path(), true);
    passes(&["mapped", "/tmp", "check"], state.path(), true);
}
