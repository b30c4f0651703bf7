//! Sets without a majority, replicas that are left out, and sets that end while one is away.

use super::*;

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
