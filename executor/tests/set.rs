//! The replica set with scripted machines: who leads, who is blamed, how a set ends. No KVM.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fake;

use std::time::Duration;

use fake::{Behaviour, Fake, Script};
use quorate_abi::sync::FLAG_TERMINATE;
use quorate_executor::control::client::Client;
use quorate_executor::control::paths;
use quorate_executor::control::protocol::{Command, Reply};
use quorate_executor::control::server::Server;
use quorate_executor::events::{End, Event, NoQuorum};
use quorate_executor::exit::ExitCode;
use quorate_executor::inject::Fault;

#[test]
fn three_replicas_answer_as_one() {
    let fake = Fake::start(3, Script::default());
    for number in 0..50u8 {
        fake.send(&[number; 10]);
        assert_eq!(fake.receive(), [number; 10]);
    }
    let status = fake.set.status();
    assert_eq!(status.state, "running");
    assert_eq!((status.running, status.quorum), (3, 2));
    assert_eq!((status.frames_in, status.frames_out), (50, 50));
    fake.send(b"exit 0");
    let ended = fake.end();
    assert_eq!(
        ended.end,
        End::Exited {
            wait_status: 0,
            requested: false
        }
    );
    assert!(ended.nothing_more());
}

#[test]
fn one_replica_is_a_set_too() {
    let fake = Fake::start(1, Script::default());
    fake.send(b"hello");
    assert_eq!(fake.receive(), b"hello");
    fake.send(b"exit 768");
    assert_eq!(fake.end().end.exit_code(), ExitCode::GuestFailed);
}

#[test]
fn sizes_out_of_range_are_refused() {
    for replicas in [0, 10] {
        let refused = Fake::try_start(replicas, Script::default(), |_| {})
            .err()
            .unwrap();
        assert_eq!(refused.code, ExitCode::Usage);
        assert!(refused.message.contains("1 to 9"), "{}", refused.message);
    }
}

#[test]
fn leadership_moves_when_the_leader_crashes() {
    for victim in 0..3 {
        let fake = Fake::start(3, Script::one(victim, Behaviour::CrashAt(5)));
        for number in 0..20u8 {
            fake.send(&[number]);
            assert_eq!(fake.receive(), [number]);
        }
        fake.wait_for("the crash", |event| {
            matches!(event, Event::ReplicaStopped { replica, reason, .. } if *replica == victim && reason.contains("scripted crash"))
        });
        fake.wait_for("degraded", |event| {
            matches!(
                event,
                Event::Degraded {
                    running: 2,
                    of: 3,
                    masks_another: false
                }
            )
        });
        assert_eq!(fake.set.status().state, "degraded");
        fake.send(b"exit 0");
        assert_eq!(fake.end().end.exit_code(), ExitCode::Success);
    }
}

#[test]
fn a_spinning_guest_is_found_and_its_machine_freed() {
    let fake = Fake::start(3, Script::one(1, Behaviour::SpinAt(3)));
    for number in 0..10u8 {
        fake.send(&[number]);
        assert_eq!(fake.receive(), [number]);
    }
    fake.wait_for("the hang", |event| {
        matches!(event, Event::ReplicaStopped { replica: 1, .. })
    });
    fake.wait_until_dropped(1);
    fake.send(b"exit 0");
    assert_eq!(fake.end().end.exit_code(), ExitCode::Success);
}

#[test]
fn a_frozen_thread_holds_up_nobody() {
    for victim in 0..3 {
        let fake = Fake::start(3, Script::default());
        fake.send(b"a");
        assert_eq!(fake.receive(), b"a");
        fake.set.inject(victim, Fault::Freeze).unwrap();
        for number in 0..10u8 {
            fake.send(&[number]);
            assert_eq!(fake.receive(), [number]);
        }
        fake.wait_for(
            "the freeze",
            |event| matches!(event, Event::ReplicaStopped { replica, .. } if *replica == victim),
        );
        fake.wait_until_dropped(victim);
        fake.send(b"exit 0");
        assert_eq!(fake.end().end.exit_code(), ExitCode::Success);
    }
}

#[test]
fn a_wrong_output_stops_the_replica_that_gave_it_and_is_never_seen() {
    for victim in 0..3 {
        let fake = Fake::start(3, Script::default());
        fake.set.inject(victim, Fault::WrongOutput).unwrap();
        for number in 0..10u8 {
            fake.send(&[number; 100]);
            assert_eq!(fake.receive(), [number; 100]);
        }
        fake.wait_for("the verdict", |event| {
            matches!(event, Event::Outvoted { replica, channel: "network", .. } if *replica == victim)
        });
        let status = fake.set.status();
        assert_eq!(status.replicas[victim].state, "stopped");
        assert_eq!(
            status.replicas[victim].injected[0].effect,
            "replica stopped"
        );
        fake.send(b"exit 0");
        assert_eq!(fake.end().end.exit_code(), ExitCode::Success);
    }
}

#[test]
fn two_replicas_stop_at_the_first_difference() {
    let fake = Fake::start(2, Script::default());
    fake.send(b"good");
    assert_eq!(fake.receive(), b"good");
    fake.set.inject(0, Fault::WrongOutput).unwrap();
    fake.send(b"differs");
    let ended = fake.end();
    assert_eq!(ended.end.exit_code(), ExitCode::NoQuorum);
    assert!(ended.nothing_more(), "nothing that differs may be released");
}

#[test]
fn without_a_majority_a_set_can_hold() {
    let fake = Fake::try_start(3, Script::default(), |config| {
        config.no_quorum = NoQuorum::Hold
    })
    .unwrap();
    fake.send(b"good");
    assert_eq!(fake.receive(), b"good");
    fake.set.kill(0).unwrap();
    assert!(fake.set.kill(0).unwrap_err().contains("already"));
    assert!(fake.set.kill(3).unwrap_err().contains("no replica 3"));
    fake.set.kill(2).unwrap();
    fake.wait_for("the loss", |event| {
        matches!(
            event,
            Event::NoMajority {
                policy: NoQuorum::Hold,
                ..
            }
        )
    });
    fake.send(b"lost");
    let status = fake.set.status();
    assert_eq!(status.state, "holding");
    assert!(status.no_quorum.is_some());
    fake.set.stop(false);
    let ended = fake.end();
    assert_eq!(ended.end.exit_code(), ExitCode::NoQuorum);
    assert!(ended.nothing_more());
}

#[test]
fn a_stop_asks_the_guest_first() {
    let fake = Fake::start(3, Script::default());
    fake.send(b"a");
    assert_eq!(fake.receive(), b"a");
    fake.set.stop(false);
    let ended = fake.end();
    assert_eq!(
        ended.end,
        End::Exited {
            wait_status: 15,
            requested: true
        }
    );
    assert_eq!(ended.end.exit_code(), ExitCode::Success);
    let flags: Vec<u64> = ended
        .entries()
        .iter()
        .map(|entry| entry.flags)
        .filter(|flags| *flags != 0)
        .collect();
    assert_eq!(flags, [FLAG_TERMINATE]);
}

#[test]
fn a_guest_that_does_not_end_is_ended() {
    let fake = Fake::try_start(1, Script::all(Behaviour::IgnoreTerminate), |config| {
        config.stop_grace = Duration::from_millis(300);
    })
    .unwrap();
    fake.set.stop(false);
    fake.wait_for(
        "patience",
        |event| matches!(event, Event::Note { text } if text.contains("did not end")),
    );
    assert_eq!(fake.end().end, End::Stopped);
}

#[test]
fn a_stop_at_once_needs_no_guest() {
    let fake = Fake::start(3, Script::all(Behaviour::SpinAt(0)));
    fake.set.stop(true);
    assert_eq!(fake.end().end, End::Stopped);
}

#[test]
fn a_full_window_makes_the_fast_wait_and_no_longer() {
    let fake = Fake::try_start(3, Script::one(2, Behaviour::GatedUntil(200)), |config| {
        config.voter.window_boundaries = 8;
        config.voter.lag_timeout_ns = 60_000_000_000;
    })
    .unwrap();
    // Nobody waits for input in this phase: all run through 200 boundaries.
    fake.wait_for_status("both ahead by the window", |status| {
        status.replicas[0].state == "ahead" && status.replicas[1].state == "ahead"
    });
    let status = fake.set.status();
    assert_eq!(status.replicas[0].boundary - status.replicas[2].boundary, 8);
    fake.open_gate();
    fake.send(b"through");
    assert_eq!(fake.receive(), b"through");
    assert_eq!(fake.set.status().running, 3);
    fake.send(b"exit 0");
    assert_eq!(fake.end().end.exit_code(), ExitCode::Success);
}

#[test]
fn a_machine_that_cannot_be_built_ends_the_set_with_its_code() {
    let fake = Fake::start(3, Script::one(1, Behaviour::CannotBeBuilt));
    let ended = fake.end();
    assert_eq!(ended.end.exit_code(), ExitCode::Host);
    assert!(
        ended.end.to_string().contains("replica 1: no KVM for you"),
        "{}",
        ended.end
    );
}

#[test]
fn a_guest_that_breaks_the_rules_stops_itself_only() {
    let fake = Fake::start(3, Script::one(0, Behaviour::MisbehaveAt(2)));
    for number in 0..5u8 {
        fake.send(&[number]);
        assert_eq!(fake.receive(), [number]);
    }
    fake.wait_for("the stop", |event| {
        matches!(event, Event::ReplicaStopped { replica: 0, reason, .. } if reason.contains("garbage in queue"))
    });
    fake.send(b"exit 0");
    assert_eq!(fake.end().end.exit_code(), ExitCode::Success);
}

#[test]
fn flips_are_reported_as_masked_until_they_are_not() {
    let fake = Fake::start(3, Script::default());
    let applied = fake
        .set
        .inject(
            1,
            Fault::FlipRegister {
                register: Some("rax".into()),
                bit: Some(1),
            },
        )
        .unwrap();
    assert!(applied.detail.contains("rax"), "{}", applied.detail);
    let effect = |fake: &Fake| fake.set.status().replicas[1].injected[0].effect.clone();
    assert_eq!(effect(&fake), "masked so far");
    fake.set.kill(1).unwrap();
    assert_eq!(effect(&fake), "replica stopped");
    assert!(
        fake.set
            .inject(1, Fault::Crash)
            .unwrap_err()
            .contains("stopped")
    );
    assert!(
        fake.set
            .inject(7, Fault::Crash)
            .unwrap_err()
            .contains("no replica 7")
    );
    fake.send(b"exit 0");
    assert_eq!(fake.end().end.exit_code(), ExitCode::Success);
}

#[test]
fn ready_is_said_once_when_all_wait_for_input() {
    let fake = Fake::start(3, Script::default());
    fake.wait_for("ready", |event| {
        matches!(event, Event::Ready { replicas: 3, .. })
    });
    fake.send(b"a");
    assert_eq!(fake.receive(), b"a");
    fake.send(b"exit 0");
    let ended = fake.end();
    let ready = ended
        .status
        .events
        .iter()
        .filter(|event| event["event"] == "ready")
        .count();
    assert_eq!(ready, 1);
    assert!(ended.status.ready_after_ms.is_some());
}

#[test]
fn equal_inputs_give_equal_fingerprints_and_all_replicas_read_one_journal() {
    let run = || {
        let fake = Fake::start(3, Script::default());
        for number in 0..5u8 {
            fake.send(&[number]);
            fake.receive();
        }
        fake.send(b"exit 0");
        let ended = fake.end();
        let entries = ended.entries();
        (ended.status, entries)
    };
    let (first, entries) = run();
    let (second, _) = run();
    assert_eq!(first.fingerprint, second.fingerprint);
    // Times differ, so the inputs do.
    assert_ne!(first.input_fingerprint, second.input_fingerprint);
    assert_eq!(first.boundaries, entries.len() as u64);
    assert!(
        entries
            .windows(2)
            .all(|pair| pair[0].monotonic_ns <= pair[1].monotonic_ns)
    );
}

#[test]
fn a_set_is_controlled_through_its_socket() {
    let fake = Fake::start(3, Script::default());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("set.sock");
    let server = Server::start(
        paths::bind(&path).unwrap(),
        path.clone(),
        fake.set.controlled(),
    )
    .unwrap();
    let mut client = Client::connect(&path).unwrap();

    let Reply::Status(status) = client.call(Command::Status).unwrap() else {
        panic!("no status");
    };
    assert_eq!((status.size, status.quorum), (3, 2));
    assert_eq!(status.replicas[2].layout["kernel"], "0x1000");

    let fault = Fault::Hang;
    let Reply::Applied(applied) = client
        .call(Command::Inject {
            replica: 1,
            fault,
            at_boundary: false,
        })
        .unwrap()
    else {
        panic!("not applied");
    };
    assert_eq!(applied.replica, 1);
    fake.send(b"after the fault");
    assert_eq!(fake.receive(), b"after the fault");
    fake.wait_for("the hang", |event| {
        matches!(event, Event::ReplicaStopped { replica: 1, .. })
    });

    let refused = client.call(Command::Kill { replica: 1 }).unwrap_err();
    assert!(refused.to_string().contains("stopped already"), "{refused}");
    client.call(Command::Stop { now: false }).unwrap();
    assert_eq!(fake.end().end.exit_code(), ExitCode::Success);
    let gone = client.call(Command::Status).unwrap_err();
    assert!(gone.to_string().contains("has ended"), "{gone}");
    drop(server);
    client.wait_for_end().unwrap();
}
