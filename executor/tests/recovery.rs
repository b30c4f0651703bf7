//! Replicas that come back: each step of the ladder by itself and after another has failed, sets without a majority, limits,
//! membership, and the order of checkpoints. With scripted machines, no KVM.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fake;

use std::sync::atomic::Ordering;
use std::time::Duration;

use fake::{Behaviour, Fake, Script};
use quorate_executor::events::{End, Event, NoQuorum};
use quorate_executor::exit::ExitCode;
use quorate_executor::inject::Fault;
use quorate_executor::recovery::{RecoveryConfig, Step};
use quorate_executor::set::SetConfig;

/// So many bytes of journal are some ten boundaries.
const TEN_BOUNDARIES: u64 = 800;

/// Checkpoints by the growth of the journal only, so that a test knows where they are.
fn by_journal() -> RecoveryConfig {
    RecoveryConfig {
        checkpoint_interval: Some(Duration::from_secs(3600)),
        checkpoint_journal: TEN_BOUNDARIES,
        // Faults come thick and fast here.
        crash_limit: 100,
        ..RecoveryConfig::default()
    }
}

fn start(replicas: u8, script: Script, recovery: RecoveryConfig) -> Fake {
    start_with(replicas, script, recovery, |_| {})
}

fn start_with(
    replicas: u8,
    script: Script,
    recovery: RecoveryConfig,
    change: impl FnOnce(&mut SetConfig),
) -> Fake {
    Fake::try_start(replicas, script, |config| {
        config.recovery = recovery;
        change(config);
    })
    .unwrap()
}

/// Talks until every replica has taken so many checkpoints.
fn take_checkpoints(fake: &Fake, count: u64) {
    fake.talk_until("checkpoints", |status| {
        let mut all = status.replicas.iter();
        all.all(|replica| replica.checkpoints.taken >= count)
    });
    // The last one's boundary is decided then.
    fake.talk(3);
}

fn wait_recovered(fake: &Fake, who: usize, by: Step) {
    fake.wait_for(
        &format!("the recovery of replica {who} by {by}"),
        |event| matches!(event, Event::Recovered { replica, step, .. } if *replica == who && *step == by),
    );
}

/// Waits until so many replicas vote, then ends the set and looks whether all was well.
fn end_well(fake: Fake, running: usize) {
    fake.wait_for_status("full strength", |status| {
        status.running == running && status.state == "running"
    });
    fake.talk(5);
    fake.send(b"exit 0");
    let two_at_once = fake.hand.two_at_once.load(Ordering::SeqCst);
    let ended = fake.end();
    assert_eq!(ended.end.exit_code(), ExitCode::Success, "{}", ended.end);
    assert!(ended.nothing_more());
    assert!(!two_at_once, "two replicas took a checkpoint at once");
}

fn failed_steps(fake: &Fake, who: usize) -> Vec<Step> {
    let status = fake.set.status();
    let of = |event: &serde_json::Value| {
        let is = event["event"] == "step-failed" && event["replica"] == who;
        is.then(|| serde_json::from_value(event["step"].clone()).unwrap())
    };
    status.events.iter().filter_map(of).collect()
}

#[test]
fn whatever_stops_a_replica_it_comes_back_by_its_last_checkpoint() {
    let faults = [
        Fault::Crash,
        Fault::Hang,
        Fault::Freeze,
        Fault::WrongOutput,
        Fault::FlipMemory {
            address: Some(0),
            place: None,
            bit: None,
        },
    ];
    let fake = start(3, Script::default(), by_journal());
    take_checkpoints(&fake, 1);
    let mut restarts = [0; 3];
    for (number, fault) in faults.into_iter().enumerate() {
        let victim = number % 3;
        fake.set.inject(victim, fault.clone()).unwrap();
        restarts[victim] += 1;
        // A replica that does nothing wrong yet is not stopped.
        fake.talk_until("the replica's return", |status| {
            status.replicas[victim].restarts == restarts[victim]
        });
        fake.wait_for_status("full strength", |status| status.running == 3);
        fake.wait_for_status(&format!("full strength after {fault}"), |_| {
            fake.count(|event| matches!(event, Event::FullStrength { .. })) == number + 1
        });
    }
    fake.set.kill(2).unwrap();
    fake.wait_for_status("the killed replica's return", |status| {
        status.replicas[2].restarts == restarts[2] + 1
    });
    let status = fake.set.status();
    assert_eq!(status.recovery.recoveries.checkpoint, 6);
    assert_eq!(status.recovery.failed_steps, 0);
    assert!(status.recovery.last_recovery_ms.is_some());
    fake.wait_for_status("the sixth full strength", |_| {
        fake.count(|event| matches!(event, Event::FullStrength { .. })) == 6
    });
    assert_eq!(
        fake.count(|event| matches!(event, Event::Recovered { layout: "kept", .. })),
        6
    );
    assert_eq!(
        fake.hand.builds.load(Ordering::SeqCst),
        3,
        "their machines are used again"
    );
    end_well(fake, 3);
}

#[test]
fn a_guest_that_breaks_the_rules_comes_back_too() {
    let fake = start(3, Script::one(0, Behaviour::MisbehaveAt(40)), by_journal());
    fake.talk(60);
    // It does so again whenever it comes there, whatever its layout: only a copy passes that point.
    wait_recovered(&fake, 0, Step::Clone);
    end_well(fake, 3);
}

#[test]
fn each_step_can_be_asked_for() {
    let fake = start(3, Script::default(), by_journal());
    take_checkpoints(&fake, 2);
    assert!(fake.set.recover(1, None).unwrap_err().contains("runs"));
    assert!(
        fake.set
            .recover(5, None)
            .unwrap_err()
            .contains("no replica 5")
    );
    for (step, layout, kernel, boot) in [
        (Step::Checkpoint, "kept", "0x1000", "0x1"),
        (Step::Older, "kept", "0x1000", "0x1"),
        (Step::Replay, "new", "0x11000", "0x1"),
        (Step::Clone, "copied", "0x1000", "0x2"),
        // And back to one of its own.
        (Step::Replay, "new", "0x21000", "0x1"),
    ] {
        let before = fake.count(|event| matches!(event, Event::FullStrength { .. }));
        take_checkpoints(&fake, fake.set.status().replicas[1].checkpoints.taken + 2);
        fake.set.recover(1, Some(step)).unwrap();
        fake.talk(5);
        fake.wait_for_status("full strength", |status| {
            status.running == 3
                && fake.count(|event| matches!(event, Event::FullStrength { .. })) > before
        });
        let found = |event: &Event| match event {
            Event::Recovered {
                replica: 1,
                step: by,
                layout: what,
                ..
            } => *by == step && *what == layout,
            _ => false,
        };
        fake.wait_for(step.name(), found);
        let replica = &fake.set.status().replicas[1];
        assert_eq!(replica.layout["kernel"], kernel, "{step}");
        assert_eq!(replica.layout["boot"], boot, "{step}");
    }
    fake.wait_for("the warning", |event| {
        matches!(
            event,
            Event::DiversityReduced {
                replica: 1,
                donor: 2
            }
        )
    });
    assert_eq!(fake.set.status().replicas[1].generation, 2);
    end_well(fake, 3);
}

#[test]
fn where_a_step_fails_the_next_one_is_taken() {
    // Each attempt at a checkpoint tries the old machine and a fresh one.
    for (failures, by, failed) in [
        (1, Step::Checkpoint, vec![]),
        (2, Step::Older, vec![Step::Checkpoint]),
        (4, Step::Replay, vec![Step::Checkpoint, Step::Older]),
    ] {
        let fake = start(3, Script::default(), by_journal());
        take_checkpoints(&fake, 2);
        fake.hand.fail_restores.store(failures, Ordering::SeqCst);
        fake.set.inject(1, Fault::Crash).unwrap();
        fake.talk(10);
        wait_recovered(&fake, 1, by);
        assert_eq!(failed_steps(&fake, 1), failed);
        assert_eq!(fake.set.status().recovery.failed_steps, failed.len() as u64);
        end_well(fake, 3);
    }
}

#[test]
fn a_copy_is_the_last_step() {
    let fake = start(3, Script::default(), by_journal());
    take_checkpoints(&fake, 2);
    // The fresh machine of each of the first two steps, and that of the third, cannot be had.
    fake.hand.fail_restores.store(1, Ordering::SeqCst);
    fake.hand.fail_builds.store(3, Ordering::SeqCst);
    fake.set.inject(1, Fault::Crash).unwrap();
    fake.talk(10);
    wait_recovered(&fake, 1, Step::Clone);
    assert_eq!(
        failed_steps(&fake, 1),
        [Step::Checkpoint, Step::Older, Step::Replay]
    );
    // Its donor's checkpoint is its own first one: the next fault needs no donor.
    fake.set.inject(1, Fault::Crash).unwrap();
    fake.talk(10);
    wait_recovered(&fake, 1, Step::Checkpoint);
    end_well(fake, 3);
}

#[test]
fn without_its_beginning_the_journal_allows_no_replay() {
    let fake = start(
        3,
        Script::default(),
        RecoveryConfig {
            history: 0,
            ..by_journal()
        },
    );
    take_checkpoints(&fake, 2);
    fake.talk_until("the beginning to be dropped", |status| {
        status.recovery.history_from > 0
    });
    fake.hand.fail_restores.store(4, Ordering::SeqCst);
    fake.set.inject(1, Fault::Crash).unwrap();
    fake.talk(10);
    wait_recovered(&fake, 1, Step::Clone);
    // How many checkpoints there are depends on the bound of the journal.
    let failed = failed_steps(&fake, 1);
    assert!(failed.contains(&Step::Checkpoint) && !failed.contains(&Step::Replay));
    end_well(fake, 3);
}

#[test]
fn a_checkpoint_taken_after_the_corruption_is_found_out() {
    for (keep, by) in [(100, Step::Older), (1, Step::Replay)] {
        let recovery = RecoveryConfig {
            keep,
            ..by_journal()
        };
        let fake = start(3, Script::default(), recovery);
        take_checkpoints(&fake, 3);
        // Several checkpoints later it shows.
        let fault = Fault::FlipMemory {
            address: Some(300),
            place: None,
            bit: None,
        };
        fake.set.inject(1, fault).unwrap();
        fake.talk_until("the corruption to show", |_| {
            fake.count(|event| matches!(event, Event::Outvoted { replica: 1, .. })) > 0
        });
        fake.talk(10);
        wait_recovered(&fake, 1, by);
        fake.wait_for("the relapse (R7)", |event| {
            matches!(event, Event::StepFailed { replica: 1, step: Step::Checkpoint, reason } if reason.contains("relapsed"))
        });
        end_well(fake, 3);
    }
}

#[test]
fn two_of_three_at_once_hold_the_set_until_one_is_back() {
    let fake = start(3, Script::default(), by_journal());
    take_checkpoints(&fake, 1);
    fake.hand.restoring.close();
    fake.set.inject(0, Fault::Crash).unwrap();
    fake.set.inject(2, Fault::Crash).unwrap();
    fake.send(b"while two are away");
    fake.wait_for_status("both to be restored", |_| {
        fake.hand.restoring.waiting() == 2
    });
    fake.wait_for("the loss", |event| {
        matches!(
            event,
            Event::NoMajority {
                recovering: true,
                ..
            }
        )
    });
    let status = fake.set.status();
    assert_eq!(status.state, "holding");
    assert!(status.no_quorum.is_some());
    assert_eq!(status.replicas[0].state, "recovering");
    assert!(
        fake.is_silent(),
        "nothing may be released without a majority (R5)"
    );
    fake.hand.restoring.open();
    assert_eq!(fake.receive(), b"while two are away");
    fake.wait_for("a majority", |event| {
        matches!(event, Event::Majority { .. })
    });
    fake.wait_for("full strength", |event| {
        matches!(event, Event::FullStrength { .. })
    });
    assert_eq!(fake.set.status().no_quorum, None);
    end_well(fake, 3);
}

#[test]
fn all_can_be_away_at_once() {
    for replicas in [1, 2, 3, 5] {
        let fake = start(replicas, Script::default(), by_journal());
        take_checkpoints(&fake, 1);
        fake.hand.restoring.close();
        for replica in 0..replicas {
            fake.set.inject(replica.into(), Fault::Crash).unwrap();
        }
        fake.send(b"while all are away");
        fake.wait_for_status("all to be restored", |_| {
            fake.hand.restoring.waiting() == usize::from(replicas)
        });
        assert!(fake.is_silent());
        fake.hand.restoring.open();
        assert_eq!(fake.receive(), b"while all are away");
        end_well(fake, replicas.into());
    }
}

#[test]
fn two_replicas_that_differ_begin_again_and_agree() {
    let fake = start(2, Script::default(), by_journal());
    take_checkpoints(&fake, 2);
    fake.set.inject(0, Fault::WrongOutput).unwrap();
    fake.talk(5);
    fake.wait_for("the dispute", |event| {
        matches!(event, Event::ReplicaStopped { reason, .. } if reason.contains("begin again"))
    });
    end_well(fake, 2);
}

#[test]
fn killed_where_it_sleeps_it_comes_back_without_input() {
    for replicas in [1, 3] {
        let fake = start(replicas, Script::default(), by_journal());
        take_checkpoints(&fake, 1);
        fake.set.kill(0).unwrap();
        fake.wait_for("full strength", |event| {
            matches!(event, Event::FullStrength { .. })
        });
        end_well(fake, replicas.into());
    }
}

#[test]
fn who_fails_too_often_is_left_out_until_asked_back() {
    let fake = start(
        3,
        Script::default(),
        RecoveryConfig {
            crash_limit: 3,
            crash_window: Duration::from_secs(3600),
            ..by_journal()
        },
    );
    take_checkpoints(&fake, 1);
    for restarts in 0..3 {
        fake.wait_for_status("full strength", |status| {
            status.running == 3 && status.replicas[1].restarts == restarts
        });
        fake.set.inject(1, Fault::Crash).unwrap();
        fake.talk(5);
    }
    fake.wait_for("the limit", |event| {
        matches!(event, Event::LeftOut { replica: 1, reason } if reason.contains("3 times within 3600 s") && reason.contains("injected crash"))
    });
    let status = fake.set.status();
    assert_eq!(status.replicas[1].state, "left-out");
    assert!(
        status.replicas[1]
            .stopped
            .as_ref()
            .unwrap()
            .contains("3 times")
    );
    assert_eq!((status.running, status.state.as_str()), (2, "degraded"));
    assert!(
        fake.set
            .inject(1, Fault::Crash)
            .unwrap_err()
            .contains("stopped")
    );
    fake.talk(5);
    fake.set.recover(1, None).unwrap();
    end_well(fake, 3);
}

#[test]
fn who_cannot_be_brought_back_is_left_out_with_the_reason() {
    let fake = start(3, Script::default(), by_journal());
    take_checkpoints(&fake, 1);
    fake.hand.fail_restores.store(usize::MAX, Ordering::SeqCst);
    fake.hand.fail_builds.store(usize::MAX, Ordering::SeqCst);
    fake.set.inject(2, Fault::Crash).unwrap();
    fake.talk(5);
    fake.wait_for("the end of the ladder", |event| {
        matches!(event, Event::LeftOut { replica: 2, reason } if reason.contains("no machine for you"))
    });
    fake.hand.fail_restores.store(0, Ordering::SeqCst);
    fake.hand.fail_builds.store(0, Ordering::SeqCst);
    fake.set.recover(2, None).unwrap();
    end_well(fake, 3);
}

#[test]
fn without_hope_for_a_majority_the_policy_applies() {
    for policy in [NoQuorum::Stop, NoQuorum::Hold] {
        let fake = start_with(3, Script::default(), by_journal(), |config| {
            config.no_quorum = policy;
        });
        take_checkpoints(&fake, 1);
        fake.hand.fail_restores.store(usize::MAX, Ordering::SeqCst);
        fake.hand.fail_builds.store(usize::MAX, Ordering::SeqCst);
        fake.set.inject(0, Fault::Crash).unwrap();
        fake.set.inject(2, Fault::Crash).unwrap();
        fake.send(b"lost");
        fake.wait_for("the verdict", |event| {
            matches!(event, Event::NoMajority { recovering: false, detail, .. } if detail.contains("too few replicas can come back"))
        });
        if policy == NoQuorum::Stop {
            let ended = fake.end();
            assert_eq!(ended.end.exit_code(), ExitCode::NoQuorum);
            assert!(ended.nothing_more());
            continue;
        }
        assert_eq!(fake.set.status().state, "holding");
        fake.wait_for_status("both to be left out", |status| {
            status.replicas[0].state == "left-out" && status.replicas[2].state == "left-out"
        });
        assert!(fake.is_silent());
        // What was wrong with the host is put right.
        fake.hand.fail_restores.store(0, Ordering::SeqCst);
        fake.hand.fail_builds.store(0, Ordering::SeqCst);
        fake.set.recover(0, None).unwrap();
        assert_eq!(fake.receive(), b"lost");
        fake.set.recover(2, None).unwrap();
        end_well(fake, 3);
    }
}

#[test]
fn a_crash_that_all_repeat_is_the_appliances_own() {
    let fake = start(3, Script::default(), by_journal());
    take_checkpoints(&fake, 2);
    let at = fake.set.status().boundaries + 5;
    fake.hand.crash_at.store(at, Ordering::SeqCst);
    fake.talk(4);
    fake.send(b"the one that does it");
    let ended = fake.end();
    assert_eq!(ended.end.exit_code(), ExitCode::NoQuorum);
    let End::NoQuorum { detail } = &ended.end else {
        panic!("{}", ended.end);
    };
    assert!(
        detail.contains("the fault lies in the appliance"),
        "{detail}"
    );
    assert!(detail.contains(&format!("at boundary {at}")), "{detail}");
    assert!(ended.nothing_more());
}

#[test]
fn a_crash_that_comes_with_the_layout_is_left_behind_with_it() {
    let fake = start(3, Script::default(), by_journal());
    take_checkpoints(&fake, 2);
    let fault = Fault::FlipRegister {
        register: None,
        bit: Some(5),
    };
    fake.set.inject(1, fault).unwrap();
    fake.talk(10);
    wait_recovered(&fake, 1, Step::Replay);
    assert_eq!(failed_steps(&fake, 1), [Step::Checkpoint, Step::Older]);
    end_well(fake, 3);
}

#[test]
fn replicas_join_and_leave_while_the_set_serves() {
    let fake = start(3, Script::default(), by_journal());
    take_checkpoints(&fake, 1);
    assert_eq!(fake.set.add(), Ok(3));
    fake.talk(5);
    fake.wait_for("the new one", |event| {
        matches!(event, Event::Added { replica: 3 })
    });
    let status = fake.set.status();
    assert_eq!((status.size, status.running, status.quorum), (4, 4, 3));
    assert_eq!(status.replicas[3].restarts, 0);
    assert_eq!(status.replicas[3].layout["boot"], "0x3");
    fake.talk(5);
    fake.set.inject(3, Fault::Crash).unwrap();
    fake.talk(5);
    fake.wait_for_status("full strength", |status| status.running == 4);

    for (gone, left) in [(0, 3), (2, 2), (3, 1)] {
        fake.set.remove(gone).unwrap();
        fake.talk(5);
        let status = fake.set.status();
        assert_eq!((status.size, status.state.as_str()), (left, "running"));
        assert_eq!(status.replicas[gone].state, "removed");
        fake.wait_until_dropped(gone);
    }
    assert!(fake.set.remove(0).unwrap_err().contains("removed already"));
    assert!(fake.set.remove(1).unwrap_err().contains("last replica"));
    assert!(fake.set.recover(0, None).unwrap_err().contains("add it"));
    // A number that is free is given again.
    fake.wait_for_status("its thread to end", |_| fake.set.add() == Ok(0));
    fake.talk(5);
    end_well(fake, 2);
}

#[test]
fn whoever_is_needed_cannot_be_removed() {
    let fake = start(3, Script::default(), by_journal());
    take_checkpoints(&fake, 1);
    fake.hand.restoring.close();
    fake.set.inject(0, Fault::Crash).unwrap();
    fake.talk(3);
    fake.wait_for_status("the restore", |_| fake.hand.restoring.waiting() == 1);
    let refused = fake.set.remove(1).unwrap_err();
    assert!(refused.contains("majority"), "{refused}");
    // Who is away can be.
    fake.set.remove(0).unwrap();
    fake.hand.restoring.open();
    end_well(fake, 2);
}

#[test]
fn checkpoints_are_taken_one_at_a_time_and_spread() {
    let recovery = RecoveryConfig {
        checkpoint_interval: Some(Duration::from_millis(10)),
        ..RecoveryConfig::default()
    };
    let fake = start(5, Script::default(), recovery);
    take_checkpoints(&fake, 5);
    let status = fake.set.status();
    for replica in &status.replicas {
        assert!(replica.checkpoints.boundary.is_some());
        assert_eq!(replica.checkpoints.pages, 7);
    }
    assert_eq!(fake.hand.tracked.load(Ordering::SeqCst), 5);
    end_well(fake, 5);
}

#[test]
fn an_idle_replica_gets_its_checkpoint_and_the_journal_does_not_move() {
    let recovery = RecoveryConfig {
        checkpoint_interval: Some(Duration::from_millis(10)),
        ..RecoveryConfig::default()
    };
    let fake = start(3, Script::default(), recovery);
    fake.wait_for_status("all to be idle", |status| {
        status
            .replicas
            .iter()
            .all(|r| r.state == "idle" && r.boundary == 1)
    });
    fake.wait_for_status("their checkpoints", |status| {
        status.replicas.iter().all(|r| r.checkpoints.taken > 0)
    });
    assert_eq!(fake.set.status().boundaries, 0);
    // Where nobody has moved there is nothing new to take.
    let taken = fake.hand.checkpoints.load(Ordering::SeqCst);
    assert_eq!(taken, 3);
    end_well(fake, 3);
}

#[test]
fn without_checkpoints_replay_and_copy_still_help() {
    let recovery = RecoveryConfig {
        checkpoint_interval: None,
        ..by_journal()
    };
    let fake = start(3, Script::default(), recovery.clone());
    fake.talk(50);
    fake.set.inject(0, Fault::Crash).unwrap();
    fake.talk(5);
    wait_recovered(&fake, 0, Step::Replay);
    assert_eq!(fake.hand.tracked.load(Ordering::SeqCst), 0);
    assert_eq!(fake.hand.checkpoints.load(Ordering::SeqCst), 0);
    end_well(fake, 3);

    let fake = start(
        3,
        Script::default(),
        RecoveryConfig {
            history: 0,
            ..recovery
        },
    );
    fake.talk_until("the beginning to be dropped", |status| {
        status.recovery.history_from > 0
    });
    for _ in 0..3 {
        let before = fake.count(|event| matches!(event, Event::FullStrength { .. }));
        fake.set.inject(0, Fault::Crash).unwrap();
        fake.talk(5);
        fake.wait_for_status("full strength", |_| {
            fake.count(|event| matches!(event, Event::FullStrength { .. })) > before
        });
        fake.talk(50);
    }
    assert_eq!(fake.hand.tracked.load(Ordering::SeqCst), 0);
    assert_eq!(
        fake.hand.checkpoints.load(Ordering::SeqCst),
        3,
        "one for each copy"
    );
    assert_eq!(fake.set.status().recovery.recoveries.clone, 3);
    end_well(fake, 3);
}

#[test]
fn a_checkpoint_that_cannot_be_taken_is_an_event_and_no_more() {
    let fake = start(3, Script::default(), by_journal());
    take_checkpoints(&fake, 1);
    fake.hand.fail_checkpoints.store(1, Ordering::SeqCst);
    fake.talk_until("the failure", |_| {
        fake.count(|event| matches!(event, Event::CheckpointFailed { reason, .. } if reason.contains("no memory"))) == 1
    });
    // The one before still helps.
    for replica in 0..3 {
        fake.set.inject(replica, Fault::Crash).unwrap();
        fake.talk(5);
        wait_recovered(&fake, replica, Step::Checkpoint);
        fake.wait_for_status("full strength", |status| status.running == 3);
    }
    assert_eq!(fake.set.status().recovery.failed_steps, 0);
    end_well(fake, 3);
}

#[test]
fn a_panic_in_a_replicas_thread_costs_a_step_and_no_more() {
    let fake = start(3, Script::default(), by_journal());
    take_checkpoints(&fake, 2);
    fake.hand.panics.store(1, Ordering::SeqCst);
    fake.set.inject(1, Fault::Crash).unwrap();
    fake.talk(5);
    wait_recovered(&fake, 1, Step::Older);
    fake.wait_for(
        "what happened",
        |event| matches!(event, Event::StepFailed { reason, .. } if reason.contains("panicked")),
    );
    end_well(fake, 3);
}

#[test]
fn a_set_can_be_stopped_while_a_replica_recovers() {
    for now in [true, false] {
        let fake = start(3, Script::default(), by_journal());
        take_checkpoints(&fake, 1);
        fake.hand.restoring.close();
        fake.set.inject(1, Fault::Crash).unwrap();
        fake.talk(3);
        fake.wait_for_status("the restore", |_| fake.hand.restoring.waiting() == 1);
        fake.set.stop(now);
        if !now {
            fake.wait_for("the end of the guest", |event| {
                matches!(event, Event::StopRequested { now: false })
            });
        }
        fake.hand.restoring.open();
        let ended = fake.end();
        assert_eq!(ended.end.exit_code(), ExitCode::Success, "{}", ended.end);
        let behind = |event: &serde_json::Value| event["text"].to_string().contains("left behind");
        assert!(!ended.status.events.iter().any(behind));
    }
}

#[test]
fn a_held_set_can_be_stopped() {
    let fake = start(1, Script::default(), by_journal());
    take_checkpoints(&fake, 1);
    fake.hand.restoring.close();
    fake.set.kill(0).unwrap();
    fake.wait_for_status("the restore", |_| fake.hand.restoring.waiting() == 1);
    // It may still come back and be asked.
    fake.set.stop(false);
    fake.hand.restoring.open();
    let ended = fake.end();
    assert_eq!(
        ended.end,
        End::Exited {
            wait_status: 15,
            requested: true
        }
    );

    let fake = start(1, Script::default(), by_journal());
    take_checkpoints(&fake, 1);
    fake.hand.restoring.close();
    fake.set.kill(0).unwrap();
    fake.wait_for_status("the restore", |_| fake.hand.restoring.waiting() == 1);
    fake.set.stop(true);
    fake.hand.restoring.open();
    assert_eq!(fake.end().end.exit_code(), ExitCode::NoQuorum);
}

#[test]
fn a_replica_killed_while_it_recovers_comes_back_nevertheless() {
    let fake = start(3, Script::default(), by_journal());
    take_checkpoints(&fake, 2);
    fake.hand.replaying.close();
    fake.set.inject(1, Fault::Crash).unwrap();
    fake.talk(20);
    fake.wait_for_status("the replay", |_| fake.hand.replaying.waiting() == 1);
    fake.set.kill(1).unwrap();
    fake.hand.replaying.open();
    wait_recovered(&fake, 1, Step::Checkpoint);
    // It was no step that failed.
    assert_eq!(failed_steps(&fake, 1), []);
    end_well(fake, 3);
}

#[test]
fn checkpoints_hold_on_to_a_bounded_journal() {
    // A replica that is away for long keeps its checkpoint until that costs too much (R10).
    let recovery = RecoveryConfig {
        history: 0,
        ..by_journal()
    };
    let fake = start(3, Script::default(), recovery);
    take_checkpoints(&fake, 1);
    fake.hand.restoring.close();
    fake.set.inject(1, Fault::Crash).unwrap();
    fake.talk(3);
    fake.wait_for_status("the restore", |_| fake.hand.restoring.waiting() == 1);
    fake.talk(200);
    // What a replica is about to come back from stays, however long that takes.
    fake.hand.restoring.open();
    wait_recovered(&fake, 1, Step::Checkpoint);
    take_checkpoints(&fake, fake.set.status().replicas[1].checkpoints.taken + 3);
    fake.talk(100);
    let bytes = fake.set.status().recovery.history_bytes;
    assert!(bytes < 12 * TEN_BOUNDARIES, "{bytes} bytes of history");
    end_well(fake, 3);
}
