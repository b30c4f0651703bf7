//! Disks under faults: a replica that writes something else is outvoted and nothing of it gets to the disk (R2, R5), one that is slow reads
//! what was there at its own time (R6).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use quorate_executor::events::Event;
use quorate_executor::exit::ExitCode;
use quorate_executor::inject::Fault;
use quorate_executor::launch::{Options, Plan};
use quorate_executor::scratch::Scratch;
use quorate_tests::inside::{Recorded, plan, record};
use quorate_tests::load::Load;
use quorate_tests::resp::{Client, shown, words};
use quorate_tests::set::Options as SetOptions;
use quorate_tests::{disk, one_at_a_time, programs};

/// Upper bound for things whose time is not what is tested.
const LONG: Duration = Duration::from_secs(120);

/// A disk with a file system, and the table that says so.
const EXT4: &str = "size = \"64M\"\nmount = \"/data\"\n";
/// A disk that the program has for itself.
const RAW: &str = "size = \"1M\"\nfilesystem = \"none\"\n";

/// A set that runs `disk WORDS…` with one disk, whose file is `data.img` in `directory`.
fn disk_plan(words: &[&str], kind: &str, directory: &Path, replicas: u8) -> Plan {
    let words: Vec<&str> = std::iter::once("disk")
        .chain(words.iter().copied())
        .collect();
    let more = format!(
        "[[disk]]\nname = \"data\"\npath = {:?}\n{kind}",
        directory.join("data.img").display().to_string()
    );
    let text = programs::appliance(&words, "128M", &directory.join("root"), &more).unwrap();
    let options = Options {
        replicas: Some(replicas),
        seed: Some("disks".to_owned()),
        recovery: Some(false),
        ..Options::default()
    };
    plan(&text, directory, &options).unwrap()
}

/// Sectors in which the disk is not what `scratch` says.
fn sectors_that_differ(file: &Path, scratch: &Scratch) -> Vec<u64> {
    const CHUNK: usize = 1 << 20;
    let file = File::open(file).unwrap();
    let len = file.metadata().unwrap().len();
    let (mut there, mut wanted) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut differ = Vec::new();
    for at in (0..len).step_by(CHUNK) {
        let part = (len - at).min(CHUNK as u64) as usize;
        file.read_exact_at(&mut there[..part], at).unwrap();
        scratch.read_at(0, at, &mut wanted[..part]).unwrap();
        let sectors = there[..part].chunks(512).zip(wanted[..part].chunks(512));
        let numbers = sectors
            .enumerate()
            .filter(|(_, (left, right))| left != right);
        differ.extend(numbers.map(|(number, _)| at / 512 + number as u64));
    }
    differ
}

/// What healthy machines make of the same input is what is on the disk, sector by sector, and the same fingerprint.
fn as_without_a_fault(recorded: Recorded, number: usize, file: &Path) {
    let fingerprint = recorded.summary.status.fingerprint.clone();
    let (replayed, scratch) = recorded.replay(number).unwrap();
    let replayed = replayed.unwrap();
    assert!(replayed.exited);
    assert_eq!(replayed.fingerprint.to_hex().as_str(), fingerprint);
    assert_eq!(sectors_that_differ(file, &scratch), [0; 0]);
}

#[test]
fn a_replica_that_writes_something_else_is_outvoted_and_the_disk_holds_what_the_majority_wrote() {
    let _turn =
        one_at_a_time("inject R wrong-write: outvoted, and the disk is as without the fault");
    for victim in 0..3 {
        let directory = disk::directory().unwrap();
        let file = directory.path().join("data.img");
        let plan = disk_plan(&["tree", "/data", "400", "5"], EXT4, directory.path(), 3);
        let recorded = record(&plan, |running, said| {
            assert!(said.wait_for("round 63", LONG), "{}", said.text());
            running.set.inject(victim, Fault::WrongWrite).unwrap();
        })
        .unwrap();
        let said = recorded.said.text();
        let summary = &recorded.summary;
        assert_eq!(
            summary.end.exit_code(),
            ExitCode::Success,
            "{}\n{said}",
            summary.end
        );
        assert!(said.ends_with("are right\ndone\n"), "{said}");
        assert_eq!(summary.status.running, 2);
        assert_eq!(recorded.stopped(), [victim]);
        let outvoted: Vec<_> = recorded
            .events
            .iter()
            .filter_map(|event| match event {
                Event::Outvoted { replica, channel, boundary, detail } => {
                    println!("  replica {replica} was outvoted on {channel} at boundary {boundary}: {detail}");
                    Some((*replica, *channel))
                }
                _ => None,
            })
            .collect();
        assert_eq!(outvoted.len(), 1);
        assert_eq!(outvoted[0].0, victim);
        assert!(outvoted[0].1.contains("disk"), "{outvoted:?}");
        disk::check_clean(&file).unwrap();
        // In the victim's own layout, and another's: what counts is that nobody tampers.
        as_without_a_fault(recorded, victim, &file);
    }
}

#[test]
fn one_wrong_byte_on_the_disk_would_be_seen() {
    let _turn = one_at_a_time("the comparison of disks notices one byte");
    let directory = disk::directory().unwrap();
    let file = directory.path().join("data.img");
    let plan = disk_plan(&["tree", "/data", "40", "6"], EXT4, directory.path(), 1);
    let recorded = record(&plan, |_, _| {}).unwrap();
    assert_eq!(recorded.summary.end.exit_code(), ExitCode::Success);
    let (replayed, scratch) = recorded.replay(0).unwrap();
    replayed.unwrap();
    assert_eq!(sectors_that_differ(&file, &scratch), [0; 0]);
    let disk = File::options().read(true).write(true).open(&file).unwrap();
    let mut byte = [0];
    disk.read_exact_at(&mut byte, 5_000_000).unwrap();
    disk.write_all_at(&[byte[0] ^ 1], 5_000_000).unwrap();
    assert_eq!(sectors_that_differ(&file, &scratch), [5_000_000 / 512]);
}

/// Three replicas overwrite and read the same blocks, past the guest's cache; one of them is slowed while they do.
fn with_a_slow_replica(file: &str, kind: &str, versions: bool, victim: usize) -> Recorded {
    let directory = disk::directory().unwrap();
    let mut plan = disk_plan(&["churn", file, "48", "48", "9"], kind, directory.path(), 3);
    plan.disk_bounds.versions = versions;
    let recorded = record(&plan, |running, said| {
        assert!(said.wait_for("written once", LONG), "{}", said.text());
        let slow = Fault::Slow {
            millis: 2,
            boundaries: 400,
        };
        let injected = running.set.inject(victim, slow);
        // Without versions it may be gone already.
        assert!(injected.is_ok() || !versions, "{injected:?}");
    })
    .unwrap();
    println!(
        "  {}; {:?}",
        recorded.summary.end, recorded.summary.status.disks
    );
    for event in &recorded.events {
        if let Event::Outvoted { detail, .. } | Event::NoMajority { detail, .. } = event {
            println!("  {detail}");
        }
    }
    if versions && kind == EXT4 {
        disk::check_clean(&directory.path().join("data.img")).unwrap();
    }
    recorded
}

#[test]
fn a_slow_replica_reads_the_disk_as_of_its_own_time() {
    let _turn = one_at_a_time("inject R slow: the others go on writing what it has yet to read");
    for (file, kind, victim) in [
        ("/dev/disk0", RAW, 2),
        ("/dev/disk0", RAW, 0),
        ("/data/blocks", EXT4, 1),
    ] {
        let recorded = with_a_slow_replica(file, kind, true, victim);
        let summary = &recorded.summary;
        let said = recorded.said.text();
        assert_eq!(
            summary.end.exit_code(),
            ExitCode::Success,
            "{}\n{said}",
            summary.end
        );
        assert!(said.ends_with("done\n"), "{said}");
        assert_eq!(recorded.stopped(), [0; 0]);
        assert_eq!(summary.status.running, 3);
        let disk = &summary.status.disks[0];
        println!(
            "  it is {} boundaries behind at the end",
            summary.status.replicas[victim].lag
        );
        // It did read what others had overwritten, else this showed nothing.
        assert!(disk.versions > 0 && disk.reads > 2 * 48 * 49, "{disk:?}");
    }
}

#[test]
fn without_versions_a_replica_that_lags_reads_what_others_wrote_later() {
    let _turn = one_at_a_time("the same with the versions of the store switched off: it must fail");
    let recorded = with_a_slow_replica("/dev/disk0", RAW, false, 2);
    // Whoever lags at a wrong moment: replica 2, another one already at the start, or two of them.
    let summary = &recorded.summary;
    let no_quorum = summary.end.exit_code() == ExitCode::NoQuorum;
    assert!(no_quorum || summary.status.running < 3, "{summary:?}");
}

#[test]
fn a_disk_is_the_same_with_and_without_a_wrong_write() {
    let _turn =
        one_at_a_time("two runs of one program, one of them with a wrong write: the same sectors");
    let directories = [disk::directory().unwrap(), disk::directory().unwrap()];
    let mut files = Vec::new();
    for (directory, fault) in directories.iter().zip([false, true]) {
        let words = ["churn", "/dev/disk0", "64", "16", "4"];
        let plan = disk_plan(&words, RAW, directory.path(), 3);
        let recorded = record(&plan, |running, said| {
            assert!(said.wait_for("round 0", LONG), "{}", said.text());
            if fault {
                running.set.inject(1, Fault::WrongWrite).unwrap();
            }
        })
        .unwrap();
        assert_eq!(recorded.summary.end.exit_code(), ExitCode::Success);
        assert_eq!(recorded.stopped().len(), usize::from(fault));
        files.push(directory.path().join("data.img"));
    }
    let differ = disk::differing_sectors(&files[0], &files[1], 10).unwrap();
    assert_eq!(differ, [0; 0]);
}

/// Redis with its append-only file in three replicas of the real command, under load; something is injected meanwhile, and
/// after the stop everything is in the file.
fn under_load(victim: usize, fault: &[&str], expect_stopped: bool) {
    let directory = disk::directory().unwrap();
    let path = directory.path().join("data.img");
    let text =
        disk::appliance("redis-aof", &[("path", path.display().to_string().into())]).unwrap();
    let options = SetOptions::text(&text).unwrap().publish(6379).replicas(3);
    let options = options.without_recovery();
    let set = options.start().unwrap();
    let load = Load::start(set.address(), 6, 21);
    assert!(load.wait_for_progress(200, LONG), "{:?}", load.finish());
    set.inject(victim, fault).unwrap();
    if expect_stopped {
        let line = set
            .wait_for("outvoted", LONG, |line| {
                line.contains("outvoted on the disk")
            })
            .unwrap();
        println!("  {}", line.text);
        let wanted = format!("replica {victim} stopped at boundary ");
        set.wait_for(&wanted, LONG, |line| line.contains(&wanted))
            .unwrap();
    }
    let went_on = load.wait_for_progress(1000, LONG);
    let seen = load.finish();
    assert!(
        went_on && seen.wrong.is_empty() && seen.ended.is_empty(),
        "{seen:?}"
    );
    let status = set.status().unwrap();
    let (state, running) = if expect_stopped {
        ("degraded", 2)
    } else {
        ("running", 3)
    };
    assert_eq!(status["state"], state, "{status:#}");
    assert_eq!(status["running"], running, "{status:#}");
    println!("  {}", status["disks"][0]);
    let mut client = Client::connect(set.address()).unwrap();
    let digest = client.call(&words("DEBUG DIGEST")).unwrap();
    drop(client);
    assert_eq!(set.stop().unwrap().code, 0);
    disk::check_clean(&path).unwrap();
    let again = options.start().unwrap();
    let mut client = Client::connect(again.address()).unwrap();
    assert_eq!(
        shown(&client.call(&words("DEBUG DIGEST")).unwrap()),
        shown(&digest)
    );
    assert_eq!(again.stop().unwrap().code, 0);
}

#[test]
fn a_wrong_write_under_load_is_seen_by_no_client_and_gets_to_no_disk() {
    let _turn =
        one_at_a_time("quorate inject R wrong-write, Redis with an append-only file under load");
    for victim in 0..3 {
        under_load(victim, &["wrong-write"], true);
    }
}

#[test]
fn a_slow_replica_under_load_is_no_fault() {
    let _turn = one_at_a_time("quorate inject R slow, Redis with an append-only file under load");
    under_load(1, &["slow", "3", "150"], false);
}
