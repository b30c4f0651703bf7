//! Injected faults under load: with a quorum left no client sees anything and the right replica is named; without one
//! nothing wrong is released, and the exit code says it (R2, R5). The voter alone is tested here: nobody comes back (that is in
//! `recovery*.rs`).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::{Duration, Instant};

use quorate_executor::exit::ExitCode;
use quorate_executor::patience::patient;
use quorate_tests::load::Load;
use quorate_tests::one_at_a_time;
use quorate_tests::resp::{Client, shown, words};
use quorate_tests::set::{Options, Set};

/// A crash is told within this time, measured from the injection's reply.
const CRASH: Duration = Duration::from_secs(1);
/// A hang, a stalled thread, or a wrong byte that waits for the next output.
const HANG: Duration = Duration::from_secs(3);
/// Upper bound for things whose time is not what is tested.
const LONG: Duration = Duration::from_secs(30);
/// Clients that check every reply meanwhile.
const CLIENTS: usize = 6;

fn start(replicas: usize, arguments: &[&str]) -> Set {
    Options::redis()
        .without_recovery()
        .replicas(replicas)
        .arguments(arguments)
        .start()
        .unwrap()
}

/// Replicas that the set's lines name as stopped.
fn stopped(set: &Set) -> Vec<usize> {
    set.lines_with(" stopped at boundary ")
        .iter()
        .map(|line| {
            let (_, rest) = line.text.split_once("replica ").unwrap();
            rest.split(' ').next().unwrap().parse().unwrap()
        })
        .collect()
}

/// The line that says that `replica` was stopped, and how long after `since` it came.
fn wait_stopped(set: &Set, replica: usize, since: Instant) -> (String, Duration) {
    let wanted = format!("replica {replica} stopped at boundary ");
    let line = set
        .wait_for(&wanted, LONG, |line| line.contains(&wanted))
        .unwrap();
    (line.text, line.at.saturating_duration_since(since))
}

fn effects(status: &serde_json::Value, replica: usize) -> Vec<String> {
    let injected = status["replicas"][replica]["injected"].as_array().unwrap();
    injected
        .iter()
        .map(|fault| fault["effect"].as_str().unwrap().to_owned())
        .collect()
}

/// One fault in one replica of three, under load: masked, named, and told in time.
fn masked(kind: &[&str], victim: usize, within: Duration, reason: &str) {
    let set = start(3, &[]);
    let load = Load::start(set.address(), CLIENTS, 7);
    assert!(load.wait_for_progress(200, LONG), "{:?}", load.finish());
    let (replied, _) = set.inject(victim, kind).unwrap();
    let (line, after) = wait_stopped(&set, victim, replied);
    let went_on = load.wait_for_progress(500, LONG);
    let seen = load.finish();
    println!(
        "  {} in replica {victim}: told after {after:.0?}; {} replies checked, the longest took {:.0?}: {line}",
        kind.join(" "),
        seen.checked,
        seen.longest
    );
    assert!(
        went_on && seen.wrong.is_empty() && seen.ended.is_empty(),
        "{seen:?}"
    );
    assert!(line.contains(reason), "{line}");
    let within = patient(within);
    assert!(
        after <= within,
        "told after {after:?}, not within {within:?}"
    );
    assert_eq!(stopped(&set), [victim]);
    let status = set.status().unwrap();
    assert_eq!(status["state"], "degraded", "{status:#}");
    assert_eq!(status["running"], 2);
    assert_eq!(status["replicas"][victim]["state"], "stopped");
    assert_eq!(effects(&status, victim), ["replica stopped"]);
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn a_crash_is_masked_and_named_within_a_second() {
    let _turn = one_at_a_time("a crash in each of three replicas, under load");
    for victim in 0..3 {
        masked(&["crash"], victim, CRASH, "crashed");
    }
}

#[test]
fn a_hang_is_masked_and_named_within_three_seconds() {
    let _turn = one_at_a_time("a spinning guest in each of three replicas, under load");
    for victim in 0..3 {
        masked(&["hang"], victim, HANG, "");
    }
}

#[test]
fn a_stalled_thread_is_masked_and_named_within_three_seconds() {
    let _turn = one_at_a_time(
        "a stalled vCPU thread (as kill -STOP) in each of three replicas, under load",
    );
    for victim in 0..3 {
        masked(&["freeze"], victim, HANG, "");
    }
}

#[test]
fn a_wrong_byte_is_masked_and_named() {
    let _turn = one_at_a_time("a wrong byte in the output of each of three replicas, under load");
    for victim in 0..3 {
        masked(&["wrong-output"], victim, HANG, "outvoted");
    }
}

#[test]
fn a_flipped_instruction_pointer_is_masked_and_named() {
    let _turn = one_at_a_time("a flipped bit of RIP in each of three replicas, under load");
    for victim in 0..3 {
        masked(&["flip-register", "rip", "40"], victim, CRASH, "");
    }
}

#[test]
fn a_killed_replica_is_not_missed() {
    let _turn = one_at_a_time("quorate kill, under load");
    let set = start(3, &[]);
    let load = Load::start(set.address(), CLIENTS, 8);
    assert!(load.wait_for_progress(200, LONG));
    assert_eq!(set.command(&["kill", "1"]).unwrap().code, 0);
    let went_on = load.wait_for_progress(500, LONG);
    let seen = load.finish();
    assert!(
        went_on && seen.wrong.is_empty() && seen.ended.is_empty(),
        "{seen:?}"
    );
    assert_eq!(stopped(&set), [1]);
    let again = set.command(&["kill", "1"]).unwrap();
    assert_eq!(again.code, ExitCode::Control as i32, "{}", again.stderr);
    assert_eq!(set.stop().unwrap().code, 0);
}

/// Injects flips into `victim` under load until it is stopped, and tells how many there were.
fn flip_until_stopped(set: &Set, load: &Load, kind: &str, victim: usize, most: usize) -> usize {
    for flips in 1..=most {
        // It is refused when the flip before has just stopped the replica.
        let refused = set.inject(victim, &[kind, "random"]).is_err();
        assert!(load.wait_for_progress(200, LONG));
        let status = set.status().unwrap();
        let effects = effects(&status, victim);
        if status["replicas"][victim]["state"] == "stopped" {
            assert!(
                effects.iter().all(|effect| effect == "replica stopped"),
                "{status:#}"
            );
            return flips;
        }
        assert!(!refused, "refused although it runs: {status:#}");
        assert_eq!(effects.len(), flips.min(16));
        assert!(
            effects.iter().all(|effect| effect == "masked so far"),
            "{status:#}"
        );
        assert_eq!(status["state"], "running");
    }
    most
}

#[test]
fn flipped_registers_are_masked_whatever_they_do() {
    let _turn = one_at_a_time("random register flips under load until the replica is stopped");
    for victim in 0..3 {
        let set = start(3, &["--seed", &format!("flip-register {victim}")]);
        let load = Load::start(set.address(), CLIENTS, 9);
        assert!(load.wait_for_progress(200, LONG));
        let flips = flip_until_stopped(&set, &load, "flip-register", victim, 100);
        let seen = load.finish();
        println!(
            "  replica {victim}: {flips} flips, {:?}",
            set.lines_with("stopped at")
        );
        assert!(seen.wrong.is_empty() && seen.ended.is_empty(), "{seen:?}");
        assert_eq!(stopped(&set), [victim], "{flips} flips without an effect?");
        assert_eq!(set.stop().unwrap().code, 0);
    }
}

#[test]
fn flipped_memory_is_masked_and_found_when_it_is_used() {
    let _turn =
        one_at_a_time("random memory flips: masked so far, then found by reading what they hit");
    const VALUES: usize = 4;
    const LEN: usize = 40 << 20;
    let victim = 1;
    let set = start(3, &["--seed", "flip-memory"]);
    let mut client = Client::connect(set.address()).unwrap();
    let value = vec![b'v'; LEN];
    for key in 0..VALUES {
        let name = format!("big:{key}");
        let request = quorate_tests::resp::command(&[b"SET", name.as_bytes(), &value]);
        assert_eq!(client.call(&request).unwrap(), b"+OK\r\n");
    }
    let mut flips = 0;
    let mut masked = 0;
    // About a third of the guest's memory is those values; each round reads them all.
    for _round in 0..20 {
        for _ in 0..4 {
            flips += usize::from(set.inject(victim, &["flip-memory", "random"]).is_ok());
        }
        let status = set.status().unwrap();
        let running = status["replicas"][victim]["state"] != "stopped";
        let wanted = if running {
            "masked so far"
        } else {
            "replica stopped"
        };
        assert!(
            effects(&status, victim)
                .iter()
                .all(|effect| effect == wanted),
            "{status:#}"
        );
        masked += usize::from(running);
        for key in 0..VALUES {
            let reply = client.call(&words(&format!("GET big:{key}"))).unwrap();
            assert!(
                reply.ends_with(b"\r\n") && reply.len() == LEN + format!("${LEN}\r\n\r\n").len()
            );
            assert!(
                reply[reply.len() - 2 - LEN..reply.len() - 2] == value,
                "a client saw a flipped bit"
            );
        }
        if !stopped(&set).is_empty() {
            break;
        }
    }
    println!(
        "  {flips} flips, {masked} rounds masked, then: {:?}",
        set.lines_with("stopped at")
    );
    assert_eq!(stopped(&set), [victim]);
    assert!(masked > 0, "no round in which the flips were masked");
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn five_replicas_mask_two_faults() {
    let _turn =
        one_at_a_time("five replicas: a wrong byte in one and a crash of another, under load");
    let set = start(5, &[]);
    let load = Load::start(set.address(), CLIENTS, 10);
    assert!(load.wait_for_progress(200, LONG));
    set.inject(1, &["wrong-output"]).unwrap();
    set.inject(3, &["crash"]).unwrap();
    for victim in [1, 3] {
        wait_stopped(&set, victim, Instant::now());
    }
    let went_on = load.wait_for_progress(500, LONG);
    let seen = load.finish();
    assert!(
        went_on && seen.wrong.is_empty() && seen.ended.is_empty(),
        "{seen:?}"
    );
    let mut named = stopped(&set);
    named.sort_unstable();
    assert_eq!(named, [1, 3]);
    assert_eq!(set.stop().unwrap().code, 0);
}

/// Faults that leave no majority, under load: no client gets a wrong reply, the set ends by itself with the exit code.
fn no_quorum(replicas: usize, faults: &[(usize, &str)]) {
    let set = start(replicas, &[]);
    let load = Load::start(set.address(), CLIENTS, 11);
    assert!(load.wait_for_progress(200, LONG));
    for (number, (victim, kind)) in faults.iter().enumerate() {
        let injected = set.inject(*victim, &[kind]);
        // Only the first is certain to find a set that runs: a fault may end it before the next one comes.
        assert!(injected.is_ok() || number > 0, "{injected:?}");
    }
    let ended = set.wait().unwrap();
    assert!(load.wait_for_failure_of_all(LONG));
    let seen = load.finish();
    println!(
        "  {replicas} replicas, {faults:?}: {}",
        ended
            .stderr
            .lines()
            .find(|line| line.contains("stopped: "))
            .unwrap_or("")
    );
    assert!(seen.wrong.is_empty(), "{seen:?}");
    assert_eq!(seen.ended.len(), CLIENTS);
    assert_eq!(ended.code, ExitCode::NoQuorum as i32, "{}", ended.stderr);
    assert!(ended.stderr.contains("no majority"), "{}", ended.stderr);
}

#[test]
fn two_faulty_of_three_stop_the_set() {
    let _turn = one_at_a_time("two faulty of three, under load, policy stop");
    for faults in [
        [(0, "crash"), (2, "crash")],
        [(1, "crash"), (0, "wrong-output")],
        [(0, "wrong-output"), (2, "wrong-output")],
        [(0, "freeze"), (1, "hang")],
        [(2, "hang"), (1, "wrong-output")],
    ] {
        no_quorum(3, &faults);
    }
}

#[test]
fn two_replicas_stop_at_the_first_difference() {
    let _turn = one_at_a_time("one faulty of two, under load");
    for kind in ["wrong-output", "crash", "hang"] {
        no_quorum(2, &[(1, kind)]);
    }
}

#[test]
fn nothing_of_two_replicas_that_lie_at_the_same_place_is_released() {
    let _turn =
        one_at_a_time("the very same output is wrong in two of three: no byte of it is seen");
    for hold in [false, true] {
        let arguments: &[&str] = if hold { &["--no-quorum", "hold"] } else { &[] };
        let set = start(3, arguments);
        let mut client = Client::connect(set.address()).unwrap();
        assert_eq!(client.call(&words("SET key right")).unwrap(), b"+OK\r\n");
        // Nothing is on its way now, so the next frame of both is the same one.
        set.inject(0, &["wrong-output"]).unwrap();
        set.inject(1, &["wrong-output"]).unwrap();
        client.set_timeout(Duration::from_secs(2));
        client.send(&words("GET key")).unwrap();
        set.wait_for("no majority", LONG, |line| line.contains("no majority"))
            .unwrap();
        match client.rest() {
            Ok(rest) => assert!(
                rest.is_empty(),
                "released without a majority: {}",
                shown(&rest)
            ),
            // Silence, as the set holds.
            Err(error) => assert!(hold, "{error}"),
        }
        if hold {
            let status = set.status().unwrap();
            assert_eq!(status["state"], "holding", "{status:#}");
            assert!(
                status["no_quorum"]
                    .as_str()
                    .unwrap()
                    .contains("no majority"),
                "{status:#}"
            );
            assert!(set.process().is_running());
            assert_eq!(set.command(&["stop", "--now"]).unwrap().code, 0);
        }
        let ended = set.wait().unwrap();
        assert_eq!(ended.code, ExitCode::NoQuorum as i32, "{}", ended.stderr);
    }
}
