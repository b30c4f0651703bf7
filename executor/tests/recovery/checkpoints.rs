//! When checkpoints are taken, and how much of the journal they hold.

use super::*;

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
