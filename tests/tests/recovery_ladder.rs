//! The ladder of recovery, step by step and as fall-through, and replicas that are added, removed and brought back by the operator; a
//! set serves meanwhile, and no client sees anything.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use quorate_executor::exit::ExitCode;
use quorate_tests::faults::wait_checkpoints;
use quorate_tests::load::Load;
use quorate_tests::one_at_a_time;
use quorate_tests::resp::{Client, command, shown, words};
use quorate_tests::set::{Options, Set};
use quorate_tests::watch::{Watch, shown as shown_state, state, wait_whole};
use serde_json::Value;

/// Upper bound for things whose time is not what is tested.
const LONG: Duration = Duration::from_secs(60);
/// Clients that check every reply meanwhile.
const CLIENTS: usize = 4;

fn recoveries(state: &Value, step: &str) -> u64 {
    state["recovery"]["recoveries"][step].as_u64().unwrap()
}

fn layout(state: &Value, replica: usize) -> Value {
    state["replicas"][replica]["layout"].clone()
}

fn unharmed(load: Load) {
    let went_on = load.wait_for_progress(500, LONG);
    let seen = load.finish();
    println!(
        "  {} replies checked, the longest took {:.0?}",
        seen.checked, seen.longest
    );
    assert!(
        went_on && seen.wrong.is_empty() && seen.ended.is_empty(),
        "{seen:?}"
    );
}

#[test]
fn every_step_can_be_asked_for_while_clients_work() {
    let _turn = one_at_a_time("quorate recover R --step S, each step, under load");
    let lines = "crash_limit = 100\ncheckpoint_interval_ms = 200\nhistory = \"1G\"";
    let options = Options::redis_recovering(lines).unwrap().replicas(3);
    let set = options.start().unwrap();
    let load = Load::start(set.address(), CLIENTS, 51);
    wait_checkpoints(&set, &load, 3).unwrap();
    let mut before = wait_whole(&set, LONG).unwrap();
    for (number, (step, becomes)) in [
        ("checkpoint", "kept"),
        ("older", "kept"),
        ("replay", "new"),
        ("clone", "copied"),
        ("checkpoint", "kept"),
    ]
    .into_iter()
    .enumerate()
    {
        let victim = number % 3;
        let mut watch = Watch::new(&set).unwrap();
        set.must(&["recover", &victim.to_string(), "--step", step])
            .unwrap();
        let mut events = watch.next_of("recovered", victim, LONG).unwrap();
        let recovered = events.last().unwrap().clone();
        let after = wait_whole(&set, LONG).unwrap();
        events.extend(watch.rest().unwrap());
        assert_eq!(recovered["step"], step, "{events:#?}");
        assert_eq!(recovered["layout"], becomes, "{events:#?}");
        println!("  {step}: {recovered}");
        assert_eq!(recoveries(&after, step), recoveries(&before, step) + 1);
        let layouts: Vec<Value> = (0..3).map(|replica| layout(&after, replica)).collect();
        match becomes {
            "kept" => assert_eq!(layouts[victim], layout(&before, victim)),
            "new" => assert!((0..3).all(|other| layouts[victim] != layout(&before, other))),
            _ => {
                assert_ne!(layouts[victim], layout(&before, victim));
                let mut others = (0..3).filter(|other| *other != victim);
                assert!(others.any(|other| layouts[other] == layouts[victim]));
                assert!(
                    events
                        .iter()
                        .any(|event| event["event"] == "diversity-reduced"
                            && event["replica"] == victim),
                    "{events:#?}"
                );
            }
        }
        assert!(load.wait_for_progress(200, LONG), "{:?}", load.so_far());
        before = after;
    }
    unharmed(load);
    let wrong = set.command(&["recover", "0", "--step", "prayer"]).unwrap();
    assert_ne!(wrong.code, 0);
    let wrong = set.command(&["recover", "7"]).unwrap();
    assert_eq!(wrong.code, ExitCode::Control as i32, "{}", wrong.stderr);
    assert_eq!(set.stop().unwrap().code, 0);
}

/// Values that fill about half of a small guest, so that a random flip hits one soon.
struct Values {
    client: Client,
    value: Vec<u8>,
}

impl Values {
    const COUNT: usize = 12;
    const LEN: usize = 8 << 20;
    const MEMORY: &str = "256M";

    fn write(set: &Set) -> Values {
        let mut client = Client::connect(set.address()).unwrap();
        client.set_timeout(LONG);
        let value = vec![b'v'; Self::LEN];
        for key in 0..Self::COUNT {
            let request = command(&[b"SET", format!("big:{key}").as_bytes(), &value]);
            assert_eq!(client.call(&request).unwrap(), b"+OK\r\n");
        }
        Values { client, value }
    }

    /// Every one is read, and is right.
    fn read(&mut self) {
        for key in 0..Self::COUNT {
            let reply = self.client.call(&words(&format!("GET big:{key}"))).unwrap();
            let head = format!("${}\r\n", Self::LEN).len();
            assert!(
                reply.len() == head + Self::LEN + 2,
                "{} bytes: {}",
                reply.len(),
                shown(&reply)
            );
            assert!(
                reply[head..head + Self::LEN] == self.value,
                "a client saw a flipped bit"
            );
        }
    }

    /// Keeps the set busy, so that it comes to boundaries.
    fn work(&mut self) {
        for _ in 0..20 {
            assert_eq!(self.client.call(&words("PING")).unwrap(), b"+PONG\r\n");
        }
    }
}

/// Bits are flipped in `victim`, and only when it has taken `checkpoints` more checkpoints is what they hit read. The steps that failed,
/// and the one by which it recovered in the end; again, if nothing was hit.
fn corrupted_checkpoints(
    set: &Set,
    values: &mut Values,
    victim: usize,
    checkpoints: u64,
) -> (Vec<Value>, Value) {
    const ROUNDS: usize = 20;
    const FLIPS: usize = 8;
    let taken = |state: &Value| {
        state["replicas"][victim]["checkpoints"]["taken"]
            .as_u64()
            .unwrap()
    };
    for round in 0..ROUNDS {
        // Right after a checkpoint, so that there is time until the next one.
        let begin = taken(&state(set).unwrap());
        while taken(&state(set).unwrap()) == begin {
            values.work();
        }
        let mut watch = Watch::new(set).unwrap();
        for _ in 0..FLIPS {
            // It is refused when the flip before has stopped the replica.
            let _ = set.inject(victim, &["flip-memory", "random"]);
        }
        let flipped = state(set).unwrap();
        let goal = taken(&flipped) + checkpoints;
        while taken(&state(set).unwrap()) < goal {
            values.work();
        }
        values.read();
        let after = wait_whole(set, LONG).unwrap();
        let events = watch.rest().unwrap();
        let failed: Vec<Value> = events
            .iter()
            .filter(|event| event["event"] == "step-failed")
            .cloned()
            .collect();
        println!(
            "  round {round}: {} events, {} steps failed; {}",
            events.len(),
            failed.len(),
            after["recovery"]["recoveries"]
        );
        let recovered = events.iter().rfind(|event| event["event"] == "recovered");
        if let (Some(recovered), false) = (recovered, failed.is_empty()) {
            return (failed, recovered.clone());
        }
    }
    panic!(
        "no checkpoint with a flipped bit was restored: {}",
        shown_state(&state(set).unwrap())
    );
}

#[test]
fn a_checkpoint_taken_after_the_corruption_is_found_out_and_the_older_one_taken() {
    let _turn = one_at_a_time(
        "flipped bits get into a checkpoint: replay finds it out (R7), the older one is taken",
    );
    let lines = "crash_limit = 100\ncheckpoint_interval_ms = 2500\nhistory = \"1G\"";
    let options = Options::redis_recovering(lines).unwrap().replicas(3);
    let set = options
        .arguments(&["--memory", Values::MEMORY, "--seed", "older"])
        .start()
        .unwrap();
    let mut values = Values::write(&set);
    let before = state(&set).unwrap();
    let (failed, recovered) = corrupted_checkpoints(&set, &mut values, 1, 1);
    println!("  {failed:?}\n  {recovered}");
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0]["step"], "checkpoint");
    assert_eq!(failed[0]["replica"], 1);
    assert_eq!(recovered["step"], "older");
    assert_eq!(recovered["layout"], "kept");
    assert_eq!(layout(&state(&set).unwrap(), 1), layout(&before, 1));
    values.read();
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn when_all_its_checkpoints_are_corrupted_a_replica_starts_afresh() {
    let _turn = one_at_a_time(
        "flipped bits get into both checkpoints: the replica is replayed from the start in a new layout",
    );
    for (history, step, becomes) in [("1G", "replay", "new"), ("1M", "clone", "copied")] {
        let lines =
            format!("crash_limit = 100\ncheckpoint_interval_ms = 300\nhistory = \"{history}\"");
        let options = Options::redis_recovering(&lines).unwrap().replicas(3);
        let set = options
            .arguments(&["--memory", Values::MEMORY, "--seed", step])
            .start()
            .unwrap();
        let mut values = Values::write(&set);
        let before = state(&set).unwrap();
        let (failed, recovered) = corrupted_checkpoints(&set, &mut values, 2, 3);
        println!("  {failed:?}\n  {recovered}");
        assert_eq!(failed[0]["step"], "checkpoint");
        assert_eq!(failed[1]["step"], "older");
        assert_eq!(recovered["step"], step);
        assert_eq!(recovered["layout"], becomes);
        assert_ne!(layout(&state(&set).unwrap(), 2), layout(&before, 2));
        values.read();
        assert_eq!(set.stop().unwrap().code, 0);
    }
}

#[test]
fn a_replica_that_fails_again_and_again_is_left_out_until_it_is_asked_back() {
    let _turn = one_at_a_time("the crash limit, and quorate recover R");
    let lines = "crash_limit = 2\ncrash_window_s = 600";
    let options = Options::redis_recovering(lines).unwrap().replicas(3);
    let set = options.start().unwrap();
    let load = Load::start(set.address(), CLIENTS, 52);
    let mut watch = Watch::new(&set).unwrap();
    let victim = 2;
    let mut crashes = 0;
    loop {
        assert!(load.wait_for_progress(200, LONG), "{:?}", load.so_far());
        set.inject(victim, &["crash"]).unwrap();
        crashes += 1;
        let events = watch
            .next("recovered or left out", LONG, |event| {
                event["replica"] == victim
                    && (event["event"] == "recovered" || event["event"] == "left-out")
            })
            .unwrap();
        if events.last().unwrap()["event"] == "left-out" {
            println!("  after {crashes} crashes: {}", events.last().unwrap());
            break;
        }
        wait_whole(&set, LONG).unwrap();
    }
    assert!((2..=3).contains(&crashes), "{crashes}");
    assert!(load.wait_for_progress(200, LONG), "{:?}", load.so_far());
    let left = state(&set).unwrap();
    assert_eq!(left["replicas"][victim]["state"], "left-out", "{left:#}");
    assert_eq!(left["state"], "degraded");
    assert_eq!(left["running"], 2);
    // The operator has looked into it.
    set.must(&["recover", &victim.to_string()]).unwrap();
    watch.next_of("recovered", victim, LONG).unwrap();
    wait_whole(&set, LONG).unwrap();
    unharmed(load);
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn replicas_are_added_and_removed_while_the_set_serves() {
    let _turn = one_at_a_time("quorate add, quorate remove R, under load");
    let options = Options::redis_recovering("crash_limit = 100\nhistory = \"1G\"").unwrap();
    let set = options.replicas(3).start().unwrap();
    let load = Load::start(set.address(), CLIENTS, 53);
    assert!(load.wait_for_progress(300, LONG), "{:?}", load.so_far());
    let mut watch = Watch::new(&set).unwrap();
    for (number, quorum) in [(3, 3), (4, 3)] {
        set.must(&["add"]).unwrap();
        let events = watch.next_of("added", number, LONG).unwrap();
        println!("  {}", events.last().unwrap());
        let state = wait_whole(&set, LONG).unwrap();
        assert_eq!(state["running"], number + 1, "{}", shown_state(&state));
        assert_eq!(state["quorum"], quorum);
        let layouts: Vec<Value> = (0..=number)
            .map(|replica| layout(&state, replica))
            .collect();
        assert!(
            layouts[..number]
                .iter()
                .all(|other| *other != layouts[number]),
            "the new one has another's layout"
        );
        assert!(load.wait_for_progress(300, LONG), "{:?}", load.so_far());
    }
    // Five mask two.
    set.inject(4, &["wrong-output"]).unwrap();
    set.inject(0, &["crash"]).unwrap();
    for victim in [4, 0] {
        if set
            .lines_with(&format!("replica {victim} stopped at"))
            .is_empty()
        {
            watch.next_of("replica-stopped", victim, LONG).unwrap();
        }
    }
    let state_now = wait_whole(&set, LONG).unwrap();
    assert_eq!(state_now["running"], 5);
    for victim in [1, 4] {
        set.must(&["remove", &victim.to_string()]).unwrap();
        watch.next_of("removed", victim, LONG).unwrap();
        assert!(load.wait_for_progress(300, LONG), "{:?}", load.so_far());
        let state = state(&set).unwrap();
        assert_eq!(
            state["replicas"][victim]["state"],
            "removed",
            "{}",
            shown_state(&state)
        );
    }
    let state = wait_whole(&set, LONG).unwrap();
    assert_eq!(state["running"], 3);
    assert_eq!(state["quorum"], 2);
    // What is removed is not asked back by a fault elsewhere.
    set.inject(2, &["crash"]).unwrap();
    watch.next_of("recovered", 2, LONG).unwrap();
    let state = wait_whole(&set, LONG).unwrap();
    assert_eq!(state["running"], 3);
    unharmed(load);
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn the_last_replica_cannot_be_removed() {
    let _turn = one_at_a_time("quorate remove of one that is needed is refused");
    let set = Options::redis().replicas(1).start().unwrap();
    let refused = set.command(&["remove", "0"]).unwrap();
    assert_eq!(refused.code, ExitCode::Control as i32, "{}", refused.stderr);
    println!("  {}", refused.stderr.trim());
    assert!(set.process().is_running());
    assert_eq!(set.stop().unwrap().code, 0);
}
