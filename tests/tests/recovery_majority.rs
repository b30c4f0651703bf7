//! Faults that leave no majority: nothing wrong is released, and the set goes on when enough replicas have come back by replay (R5,
//! R7). Where the fault comes back with them, the policy applies.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::sync::Barrier;
use std::time::{Duration, Instant};

use quorate_executor::exit::ExitCode;
use quorate_tests::faults::wait_checkpoints;
use quorate_tests::load::Load;
use quorate_tests::resp::{Client, shown, words};
use quorate_tests::set::{Options, Set};
use quorate_tests::watch::{Watch, wait_whole};
use quorate_tests::{one_at_a_time, programs};

/// Upper bound for things whose time is not what is tested.
const LONG: Duration = Duration::from_secs(60);
/// Clients that check every reply meanwhile.
const CLIENTS: usize = 6;
/// The policy applies within this time when no majority can come back.
const POLICY: Duration = Duration::from_secs(20);

/// Injects all faults at the same time.
fn inject_at_once(set: &Set, faults: &[(usize, &str)]) {
    let together = Barrier::new(faults.len());
    std::thread::scope(|scope| {
        for (victim, kind) in faults {
            let together = &together;
            scope.spawn(move || {
                together.wait();
                // A fault that takes the majority away may stop a replica before the next one comes to it.
                if let Err(error) = set.inject(*victim, &[kind]) {
                    println!("  {kind} in replica {victim}: {error}");
                }
            });
        }
    });
}

/// Under load, faults at the same time: no client sees anything, and the set comes back to full strength.
fn survives(replicas: usize, faults: &[(usize, &str)]) {
    let options = Options::redis_recovering("crash_limit = 100").unwrap();
    let set = options.replicas(replicas).start().unwrap();
    let load = Load::start(set.address(), CLIENTS, 31);
    wait_checkpoints(&set, &load, 1).unwrap();
    let mut watch = Watch::new(&set).unwrap();
    let begun = Instant::now();
    inject_at_once(&set, faults);
    for (victim, _) in faults {
        let victim = *victim;
        // In whatever order they are found.
        if set
            .lines_with(&format!("replica {victim} stopped at"))
            .is_empty()
        {
            watch.next_of("replica-stopped", victim, LONG).unwrap();
        }
    }
    let state = wait_whole(&set, LONG).unwrap();
    let took = begun.elapsed();
    let went_on = load.wait_for_progress(500, LONG);
    let seen = load.finish();
    println!(
        "  {replicas} replicas, {faults:?}: full strength after {took:.0?}, majority lost: {}; {} replies checked, the longest took {:.0?}; {}",
        !set.lines_with("no majority").is_empty(),
        seen.checked,
        seen.longest,
        state["recovery"]["recoveries"]
    );
    assert!(
        went_on && seen.wrong.is_empty() && seen.ended.is_empty(),
        "{seen:?}"
    );
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn two_faulty_of_three_at_once_come_back() {
    let _turn = one_at_a_time("two faulty of three within one checkpoint interval, under load");
    for faults in [
        [(0, "crash"), (2, "crash")],
        [(1, "crash"), (0, "wrong-output")],
        [(0, "wrong-output"), (2, "wrong-output")],
        [(0, "freeze"), (1, "hang")],
        [(2, "hang"), (1, "wrong-output")],
    ] {
        survives(3, &faults);
    }
}

#[test]
fn three_faulty_of_three_at_once_come_back() {
    let _turn = one_at_a_time("all three of three, under load");
    survives(3, &[(0, "crash"), (1, "crash"), (2, "crash")]);
    survives(
        3,
        &[
            (0, "wrong-output"),
            (1, "wrong-output"),
            (2, "wrong-output"),
        ],
    );
    survives(3, &[(0, "hang"), (1, "crash"), (2, "wrong-output")]);
}

#[test]
fn one_of_two_and_the_only_one_come_back() {
    let _turn = one_at_a_time("one faulty of two, and of one, under load");
    for kind in ["wrong-output", "crash", "hang"] {
        survives(2, &[(1, kind)]);
    }
    // That the only one hangs is nothing that anybody could tell from a long computation.
    survives(1, &[(0, "crash")]);
}

#[test]
fn what_two_of_three_say_wrong_at_the_same_place_is_never_seen_and_the_right_answer_comes() {
    let _turn =
        one_at_a_time("the very same output is wrong in two of three: the answer is right anyway");
    for (replicas, liars) in [(3, 2), (3, 3), (2, 1)] {
        let set = Options::redis().replicas(replicas).start().unwrap();
        let mut client = Client::connect(set.address()).unwrap();
        assert_eq!(client.call(&words("SET key right")).unwrap(), b"+OK\r\n");
        // Nothing is on its way now, so the next frame of all of them is the same one.
        for liar in 0..liars {
            set.inject(liar, &["wrong-output"]).unwrap();
        }
        client.set_timeout(LONG);
        let reply = client.call(&words("GET key")).unwrap();
        assert_eq!(shown(&reply), shown(b"$5\r\nright\r\n"));
        set.wait_for("no majority", LONG, |line| line.contains("no majority"))
            .unwrap();
        let state = wait_whole(&set, LONG).unwrap();
        let events = state["events"].as_array().unwrap();
        assert!(
            events.iter().any(|event| event["event"] == "majority"),
            "{events:#?}"
        );
        println!(
            "  {liars} of {replicas} lied: {}",
            state["recovery"]["recoveries"]
        );
        assert_eq!(client.call(&words("INCR count")).unwrap(), b":1\r\n");
        assert_eq!(set.stop().unwrap().code, 0);
    }
}

#[test]
fn a_fault_that_comes_back_with_every_replica_ends_the_set() {
    let _turn = one_at_a_time("a guest whose machine fails at the same place every time");
    for replicas in [1, 3] {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        let text = programs::appliance(&["doomed"], "32M", &root, "").unwrap();
        let set = Options::text(&text)
            .unwrap()
            .replicas(replicas)
            .spawn()
            .unwrap();
        set.process().wait_for_output("doom is near", LONG).unwrap();
        let begun = Instant::now();
        let ended = set.wait().unwrap();
        let took = begun.elapsed();
        println!(
            "  {replicas} replicas: ended with {} after {took:.1?}",
            ended.code
        );
        for line in ended.stderr.lines() {
            println!("    {line}");
        }
        assert_eq!(ended.code, ExitCode::NoQuorum as i32, "{}", ended.stderr);
        assert!(took < POLICY, "{took:?}");
        assert_eq!(ended.stdout, b"doom is near\n");
    }
}
