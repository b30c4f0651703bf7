//! Each step of the ladder by itself, and after another has failed.

use super::*;

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
    // It does so again whenever it comes there, whatever its layout: only a copy passes that point, and only one of somebody who has. A
    // ladder that is quicker than the client finds nobody yet, and leaves the replica out.
    fake.wait_for("a copy, or the end of the ladder", |event| {
        matches!(
            event,
            Event::Recovered {
                replica: 0,
                step: Step::Clone,
                ..
            } | Event::LeftOut { replica: 0, .. }
        )
    });
    if fake.count(|event| matches!(event, Event::LeftOut { .. })) > 0 {
        fake.set.recover(0, Some(Step::Clone)).unwrap();
        fake.talk(5);
    }
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
