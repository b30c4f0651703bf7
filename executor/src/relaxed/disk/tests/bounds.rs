//! What happens at the bounds (R10), and on errors of the host.

use super::*;

#[test]
fn who_keeps_too_much_is_stopped_after_checkpoints_were_given_up() {
    let rig = rig(2, Mode::Private, |spec| {
        spec.bounds.view_bytes = 4 * 4096;
        spec.bounds.spill_bytes = 8 * 4096;
    });
    let checkpoint = rig.disk.snapshot(0);
    for block in 0..6 {
        rig.write(0, block * 8, 8, 1);
    }
    let position = rig.position(0);
    let later = rig.disk.snapshot(0);
    for block in 0..6 {
        // The checkpoint keeps the old ones.
        rig.write(0, block * 8, 8, 2);
    }
    assert_eq!(
        rig.read(0, 0, 48),
        [2; 48],
        "half of it from the spill file"
    );
    for block in 6..12 {
        rig.write(0, block * 8, 8, 3);
    }
    assert_eq!(rig.disk.stats().views_lost, 2);
    let data = vec![4; 4096];
    let error = rig
        .ask(0, BlockOp::Write { sector: 400, data })
        .unwrap_err();
    assert!(
        error.to_string().contains("too far from the others"),
        "{error}"
    );
    rig.write(1, 0, 8, 9);
    assert_eq!(rig.read(1, 0, 8), [9; 8], "the other goes on");
    let error = rig.disk.enter(0, Some(&later), &position).unwrap_err();
    assert!(error.to_string().contains("later checkpoint"), "{error}");
    drop(checkpoint);
    rig.disk.enter(0, None, &DiskPosition::default()).unwrap();
    rig.rewind(0, 0);
    assert_eq!(rig.read(0, 0, 1), [0]);
    rig.disk.close().unwrap();
}

#[test]
fn who_is_far_ahead_has_no_room_until_others_have_come() {
    let rig = rig(3, HOLD, |spec| spec.bounds.ahead_sectors = 10);
    rig.write(0, 0, 10, 1);
    assert!(!rig.disk.has_room(0));
    assert!(rig.disk.has_room(1));
    rig.write(1, 0, 10, 1);
    rig.ear
        .until(|heard| heard.contains(&RelaxedNotice::Due(1)).then_some(()));
    assert!(rig.disk.has_room(0));
    for at in 0..2 {
        rig.write(0, 100 + at * 10, 10, 1);
    }
    let data = vec![1; 512];
    let error = rig
        .ask(0, BlockOp::Write { sector: 200, data })
        .unwrap_err();
    assert!(error.to_string().contains("the others have not"), "{error}");
    rig.disk.close().unwrap();
}

#[test]
fn requests_that_no_device_lets_through_are_refused() {
    let rig = rig(1, HOLD, |spec| spec.bounds.outstanding = 2);
    let refused = |op| rig.ask(0, op).is_err();
    assert!(refused(BlockOp::Read {
        sector: SECTORS,
        bytes: 512
    }));
    rig.rewind(0, 0);
    assert!(refused(BlockOp::Write {
        sector: 0,
        data: vec![0; 100]
    }));
    rig.rewind(0, 5);
    assert!(refused(BlockOp::Flush), "out of order");
    rig.rewind(0, 0);
    rig.flush(0);
    rig.flush(0);
    assert!(refused(BlockOp::Flush), "one too many");
    rig.disk.close().unwrap();
}

#[test]
fn a_file_has_one_writer() {
    let rig = rig(3, HOLD, |_| ());
    let open = |mode| {
        let voters = Voters::majority(3, [7; 32]).unwrap();
        let notify: NotifyRelaxed = Arc::new(|_| ());
        RelaxedDisk::open(0, spec(rig.file.path(), mode), &voters, notify).map(|_| ())
    };
    let error = open(Mode::Private).unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    rig.disk.close().unwrap();
    open(Mode::Private).unwrap();
}
