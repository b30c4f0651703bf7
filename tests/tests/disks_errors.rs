//! Disks as a user meets them when something is wrong: two sets on one disk, a host without space, a disk that must not be written;
//! and stops of every kind, after which the file system is sound.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use quorate_executor::exit::ExitCode;
use quorate_tests::process::{Ended, run};
use quorate_tests::resp::{Client, words};
use quorate_tests::set::Options;
use quorate_tests::{disk, one_at_a_time, programs};

/// Upper bound for things whose time is not what is tested.
const LONG: Duration = Duration::from_secs(120);

/// A set that runs `disk WORDS…` with an ext4 disk of 64 MiB at `/data`; `more` goes into its `[[disk]]`.
fn options(command: &[&str], root: &Path, file: &Path, more: &str) -> Options {
    let command: Vec<&str> = std::iter::once("disk")
        .chain(command.iter().copied())
        .collect();
    let tables = format!(
        "replicas = 3\n[[disk]]\nname = \"data\"\nsize = \"64M\"\nmount = \"/data\"\npath = {:?}\n{more}",
        file.display().to_string()
    );
    let text = programs::appliance(&command, "128M", &root.join("root"), &tables).unwrap();
    Options::text(&text).unwrap()
}

fn to_the_end(options: &Options) -> Ended {
    let set = options.spawn().unwrap();
    set.process().wait(LONG).unwrap()
}

fn said(ended: &Ended) -> String {
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

#[test]
fn two_sets_cannot_have_one_disk() {
    let _turn = one_at_a_time("a second executor on a disk in use");
    let directory = disk::directory().unwrap();
    let path = directory.path().join("data.img");
    let text =
        disk::appliance("redis-aof", &[("path", path.display().to_string().into())]).unwrap();
    let options = Options::text(&text).unwrap().publish(6379);
    let first = options.start().unwrap();
    let mut client = Client::connect(first.address()).unwrap();
    assert_eq!(client.call(&words("SET a 1")).unwrap(), b"+OK\r\n");
    let second = to_the_end(&options);
    assert_eq!(second.code, ExitCode::Disk as i32, "{}", second.stderr);
    let pid = first.process().pid().to_string();
    for wanted in [path.to_str().unwrap(), "in use by", &pid] {
        assert!(
            second.stderr.contains(wanted),
            "{wanted}: {}",
            second.stderr
        );
    }
    assert_eq!(client.call(&words("SET b 2")).unwrap(), b"+OK\r\n");
    assert_eq!(first.stop().unwrap().code, 0);
    disk::check_clean(&path).unwrap();
    // The lock went with the first.
    let third = options.start().unwrap();
    let mut client = Client::connect(third.address()).unwrap();
    assert_eq!(
        client.call(&words("MGET a b")).unwrap(),
        b"*2\r\n$1\r\n1\r\n$1\r\n2\r\n"
    );
    assert_eq!(third.stop().unwrap().code, 0);
}

#[test]
fn a_read_only_disk_is_read_and_never_written() {
    let _turn = one_at_a_time("a read-only disk with files from a directory, in two sets at once");
    let directory = disk::directory().unwrap();
    let path = directory.path().join("data.img");
    let seed = directory.path().join("seed");
    std::fs::create_dir(&seed).unwrap();
    std::fs::write(seed.join("seeded.txt"), "from the host\n").unwrap();
    let more = format!(
        "read_only = true\nseed = {:?}\n",
        seed.display().to_string()
    );
    let options = options(&["refuses", "/data"], directory.path(), &path, &more);
    let first = options.spawn().unwrap();
    let second = options.spawn().unwrap();
    let mut contents = None;
    for set in [first, second] {
        let ended = set.process().wait(LONG).unwrap();
        assert_eq!(ended.code, 0, "{}{}", said(&ended), ended.stderr);
        assert_eq!(
            said(&ended),
            "read: from the host\ncreate: EROFS\nopen: EROFS\nremove: EROFS\nrename: EROFS\nmkdir: EROFS\ndone\n"
        );
        let now = blake3::hash(&std::fs::read(&path).unwrap());
        assert_eq!(*contents.get_or_insert(now), now);
    }
    disk::check_clean(&path).unwrap();
}

#[test]
fn a_stop_of_any_kind_leaves_a_sound_file_system() {
    let _turn = one_at_a_time("stop, and stop --now, while a program writes");
    for now in [false, true] {
        let directory = disk::directory().unwrap();
        let path = directory.path().join("data.img");
        let options = options(
            &["churn", "/data/blocks", "64", "1000000", "3"],
            directory.path(),
            &path,
            "",
        );
        let set = options.spawn().unwrap();
        set.process().wait_for_output("round 0", LONG).unwrap();
        let ended = if now {
            assert_eq!(set.command(&["stop", "--now"]).unwrap().code, 0);
            set.wait().unwrap()
        } else {
            set.stop().unwrap()
        };
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        if now {
            disk::check_after_crash(&path).unwrap();
        } else {
            disk::check_clean(&path).unwrap();
        }
    }
}

/// A file system in memory of a few MiB; unmounted when this is dropped.
struct Small(PathBuf);

impl Small {
    /// None without the right to mount.
    fn mount(path: PathBuf, options: &str) -> Option<Small> {
        std::fs::create_dir(&path).unwrap();
        let mounted = mount(&["-t", "tmpfs", "-o", options, "tmpfs"], &path);
        if mounted.is_none() {
            println!("  left out: file systems cannot be mounted here (that takes root)");
        }
        mounted.map(|()| Small(path))
    }

    fn grow(&self, options: &str) {
        mount(&["-o", options], &self.0).unwrap();
    }
}

fn mount(arguments: &[&str], path: &Path) -> Option<()> {
    let mut command = Command::new("mount");
    command.args(arguments).arg(path);
    let ended = run(command, LONG).unwrap();
    (ended.code == 0).then_some(())
}

impl Drop for Small {
    fn drop(&mut self) {
        let mut command = Command::new("umount");
        command.arg("-l").arg(&self.0);
        let ended = run(command, LONG);
        assert!(ended.is_ok_and(|ended| ended.code == 0) || std::thread::panicking());
    }
}

#[test]
fn a_full_host_stops_the_set_with_the_cause_and_later_it_goes_on() {
    let _turn = one_at_a_time("the host's disk is full, on_error = \"stop\"");
    let directory = disk::directory().unwrap();
    let Some(small) = Small::mount(directory.path().join("small"), "size=24M") else {
        return;
    };
    let path = small.0.join("data.img");
    let full = options(
        &["fill", "/data", "50"],
        directory.path(),
        &path,
        "on_error = \"stop\"\n",
    );
    let ended = to_the_end(&full);
    println!(
        "  {}",
        ended
            .stderr
            .lines()
            .find(|line| line.contains("space"))
            .unwrap_or("")
    );
    assert_eq!(
        ended.code,
        ExitCode::Disk as i32,
        "{}{}",
        said(&ended),
        ended.stderr
    );
    for wanted in [path.to_str().unwrap(), "No space left"] {
        assert!(ended.stderr.contains(wanted), "{wanted}: {}", ended.stderr);
    }
    // The guest was told nothing that is not so: it was stopped before a flush could fail.
    assert!(!said(&ended).contains("done"), "{}", said(&ended));
    disk::check_after_crash(&path).unwrap();
    small.grow("remount,size=128M");
    let more = to_the_end(&full);
    assert_eq!(more.code, 0, "{}{}", said(&more), more.stderr);
    disk::check_clean(&path).unwrap();
}

#[test]
fn a_full_host_is_told_to_all_replicas_alike_if_the_appliance_wants_that() {
    let _turn = one_at_a_time("the host's disk is full, on_error = \"report\"");
    let directory = disk::directory().unwrap();
    let Some(small) = Small::mount(directory.path().join("small"), "size=24M") else {
        return;
    };
    let path = small.0.join("data.img");
    let full = options(
        &["fill", "/data", "50"],
        directory.path(),
        &path,
        "on_error = \"report\"\n",
    );
    let ended = to_the_end(&full);
    let text = said(&ended);
    println!("  {}", text.replace('\n', "; "));
    assert!(
        text.contains("fsync failed: EIO\n"),
        "{text}{}",
        ended.stderr
    );
    // Nothing pretends to be durable after that.
    assert!(
        text.contains("then: E") && text.ends_with("done\n"),
        "{text}"
    );
    assert!(!ended.stderr.contains("outvoted"), "{}", ended.stderr);
    assert!(ended.stderr.contains("No space left"), "{}", ended.stderr);
    disk::check_after_crash(&path).unwrap();
}

#[test]
fn a_full_file_system_in_the_guest_is_its_own_matter() {
    let _turn = one_at_a_time("the guest's file system is full");
    let directory = disk::directory().unwrap();
    let path = directory.path().join("data.img");
    let ended = to_the_end(&options(
        &["fill", "/data", "100"],
        directory.path(),
        &path,
        "",
    ));
    let text = said(&ended);
    assert_eq!(ended.code, 0, "{text}{}", ended.stderr);
    assert!(text.contains("failed: ENOSPC\nthen: ENOSPC\n"), "{text}");
    disk::check_clean(&path).unwrap();
}
