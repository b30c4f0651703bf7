//! A set saved to a directory, and one that goes on from there: nothing that a client was told is lost, whatever happens meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use quorate_tests::process::run;
use quorate_tests::random::Random;
use quorate_tests::resp::{Client, command};
use quorate_tests::set::{Options, START_TIMEOUT, Set};
use quorate_tests::writes::{Book, Writers};
use quorate_tests::{disk, one_at_a_time};
use rustix::process::Signal;

/// Redis with an append-only file on a disk, and a place to save it to.
struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Bench {
            directory: disk::directory().unwrap(),
        }
    }

    fn disk(&self) -> PathBuf {
        self.directory.path().join("data.img")
    }

    fn saved(&self) -> PathBuf {
        self.directory.path().join("saved")
    }

    fn start(&self) -> Set {
        let path = self.disk().display().to_string();
        let text = disk::appliance("redis-aof", &[("path", path.into())]).unwrap();
        let options = Options::text(&text).unwrap().publish(6379).replicas(3);
        options.start().unwrap()
    }

    fn resume(&self, more: &[&str]) -> Set {
        let options = Options::saved(&self.saved()).publish(6379);
        options.arguments(more).start().unwrap()
    }

    /// How `run --from` refuses.
    fn refused(&self, more: &[&str]) -> String {
        let set = Options::saved(&self.saved())
            .arguments(more)
            .spawn()
            .unwrap();
        let ended = set.process().wait(START_TIMEOUT).unwrap();
        assert_ne!(ended.code, 0, "{}", ended.stderr);
        ended.stderr
    }

    fn save(&self, set: &Set, more: &[&str]) {
        let path = self.saved().display().to_string();
        let words: Vec<&str> = ["checkpoint", &path].iter().chain(more).copied().collect();
        let ended = set.must(&words).unwrap();
        println!("  {}", ended.stderr.trim());
    }
}

fn voting(set: &Set) -> usize {
    let status = set.status().unwrap();
    let replicas = status["replicas"].as_array().unwrap();
    let is_up = |r: &&serde_json::Value| r["state"] == "running" || r["state"] == "idle";
    replicas.iter().filter(is_up).count()
}

fn text(set: &Set, words: &[&str]) -> String {
    let mut client = Client::connect(set.address()).unwrap();
    String::from_utf8(client.call(&command(words)).unwrap()).unwrap()
}

#[test]
fn a_set_stops_under_load_and_goes_on() {
    let _turn = one_at_a_time("a saved set: stopped under load, and going on");
    let bench = Bench::new();
    let (mut book, mut random) = (Book::default(), Random::new(4));
    let mut set = bench.start();
    for round in 0..2 {
        book.compare(set.address()).unwrap();
        let load = Writers::start(set.address(), &mut random);
        load.wait_for(400).unwrap();
        let uptime = text(&set, &["INFO", "server"]);
        let started = uptime
            .lines()
            .find(|l| l.starts_with("run_id"))
            .unwrap()
            .to_owned();
        bench.save(&set, &["--stop"]);
        let ended = set.wait().unwrap();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        book.learn(load.finish());
        for file in fs::read_dir(bench.saved()).unwrap() {
            let mode = file.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let mode = fs::metadata(bench.saved()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        set = bench.resume(&[]);
        // The very same server, not one that has read its files.
        assert!(
            text(&set, &["INFO", "server"]).contains(&started),
            "round {round}"
        );
        book.compare(set.address()).unwrap();
        assert_eq!(voting(&set), 3);
    }
    // And it is a whole set: a replica that fails comes back.
    let load = Writers::start(set.address(), &mut random);
    load.wait_for(50).unwrap();
    set.kill(1).unwrap();
    set.wait_for("recovered", START_TIMEOUT, |line| {
        line.contains("full strength")
    })
    .unwrap();
    load.wait_for(50).unwrap();
    book.learn(load.stop().unwrap());
    book.compare(set.address()).unwrap();
    set.stop().unwrap();
    disk::check_clean(&bench.disk()).unwrap();
    println!("  {:?}", book.counts());
}

#[test]
fn a_set_is_saved_while_it_runs_and_its_disks_are_put_back() {
    let _turn = one_at_a_time("a saved set: saved while it runs");
    let bench = Bench::new();
    let (mut book, mut random) = (Book::default(), Random::new(5));
    let set = bench.start();
    let load = Writers::start(set.address(), &mut random);
    load.wait_for(300).unwrap();
    book.learn(load.stop().unwrap());
    // Readers do not notice.
    bench.save(&set, &[]);
    book.compare(set.address()).unwrap();
    let load = Writers::start(set.address(), &mut random);
    load.wait_for(300).unwrap();
    // Under load, elsewhere, and it goes on.
    let other = bench.directory.path().join("other").display().to_string();
    set.must(&["checkpoint", &other]).unwrap();
    load.wait_for(300).unwrap();
    drop(load.stop().unwrap());
    set.process().signal(Signal::KILL);
    set.process().wait(START_TIMEOUT).unwrap();
    drop(set);
    let why = bench.refused(&[]);
    assert!(
        why.contains("data.img") && why.contains("--restore-disks"),
        "{why}"
    );
    // What was there at that time, and nothing that came later.
    let set = bench.resume(&["--restore-disks"]);
    book.compare(set.address()).unwrap();
    let load = Writers::start(set.address(), &mut random);
    load.wait_for(100).unwrap();
    book.learn(load.stop().unwrap());
    book.compare(set.address()).unwrap();
    set.stop().unwrap();
    disk::check_clean(&bench.disk()).unwrap();
    // The one under load is as good.
    let set = Options::saved(Path::new(&other))
        .publish(6379)
        .arguments(&["--restore-disks"])
        .start()
        .unwrap();
    assert_eq!(text(&set, &["SET", "key", "value"]), "+OK\r\n");
    set.stop().unwrap();
    disk::check_clean(&bench.disk()).unwrap();
}

#[test]
fn what_was_saved_before_survives_a_kill_and_a_full_disk_and_damage_is_named() {
    let _turn = one_at_a_time("a saved set: kill, full disk, damage");
    let bench = Bench::new();
    let (mut book, mut random) = (Book::default(), Random::new(6));
    let set = bench.start();
    let load = Writers::start(set.address(), &mut random);
    load.wait_for(200).unwrap();
    book.learn(load.stop().unwrap());
    bench.save(&set, &[]);
    // No space: an error and an event, and the set goes on.
    let small = bench.directory.path().join("small");
    fs::create_dir(&small).unwrap();
    let mut mount = Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
        .arg(&small);
    if run(mount, Duration::from_secs(30)).unwrap().code == 0 {
        let there = small.join("saved").display().to_string();
        for stop in [&[][..], &["--stop"]] {
            let words: Vec<&str> = ["checkpoint", &there].iter().chain(stop).copied().collect();
            let ended = set.command(&words).unwrap();
            assert_ne!(ended.code, 0);
            assert!(ended.stderr.contains("No space left"), "{}", ended.stderr);
            book.compare(set.address()).unwrap();
        }
        assert_eq!(
            fs::read_dir(&small).unwrap().count(),
            0,
            "nothing is left there"
        );
        assert_eq!(set.lines_with("checkpoint failed").len(), 2);
        let mut unmount = Command::new("umount");
        unmount.arg(&small);
        run(unmount, Duration::from_secs(30)).unwrap();
    } else {
        println!("  without a tmpfs: this user cannot mount one");
    }
    // A directory of somebody else is left alone.
    let occupied = bench.directory.path().display().to_string();
    let ended = set.command(&["checkpoint", &occupied]).unwrap();
    assert!(ended.stderr.contains("no saved set"), "{}", ended.stderr);
    // Killed while it saves again.
    let path = bench.saved().display().to_string();
    let mut again = Command::new(quorate_tests::set::quorate().unwrap());
    again
        .args(["checkpoint", &path, "--control"])
        .arg(set.control());
    let again = quorate_tests::process::Process::start(again).unwrap();
    let unfinished = bench.directory.path().join("saved.tmp");
    while !unfinished.join("disk-0").exists() && again.is_running() {
        std::thread::yield_now();
    }
    set.process().signal(Signal::KILL);
    set.process().wait(START_TIMEOUT).unwrap();
    assert_ne!(
        again.wait(START_TIMEOUT).unwrap().code,
        0,
        "it was killed in the middle"
    );
    drop(set);
    // Damage.
    for file in fs::read_dir(bench.saved()).unwrap() {
        let path = file.unwrap().path();
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let at = file.metadata().unwrap().len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        let why = bench.refused(&["--restore-disks"]);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(
            why.contains(name) && why.contains("damaged"),
            "{name}: {why}"
        );
        file.write_all_at(&byte, at).unwrap();
    }
    let set = bench.resume(&["--restore-disks"]);
    book.compare(set.address()).unwrap();
    set.stop().unwrap();
    disk::check_clean(&bench.disk()).unwrap();
}
