//! Replicas that join and leave.

use super::*;

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
