use super::*;

#[test]
fn one_replica_alone_writes_through() {
    let rig = rig(1, HOLD, |_| ());
    rig.write(0, 3, 10, 0xaa);
    assert_eq!(rig.read(0, 2, 12), [&[2][..], &[0xaa; 10], &[13]].concat());
    let flush = rig.flush(0);
    assert_eq!(rig.wait(0, flush), BlockStatus::Ok);
    assert_eq!(rig.base(2, 12), [&[2][..], &[0xaa; 10], &[13]].concat());
    assert_eq!(rig.disk.report(true).unconfirmed_sectors, 0);
    assert_eq!(
        rig.disk.report(true).held_bytes,
        0,
        "what is written is kept no more"
    );
    rig.disk.close().unwrap();
}

#[test]
fn a_private_disk_is_each_replicas_own_and_never_written() {
    let rig = rig(2, Mode::Private, |_| ());
    rig.write(0, 0, 8, 1);
    rig.write(1, 4, 8, 2);
    let flush = rig.flush(0);
    assert_eq!(rig.wait(0, flush), BlockStatus::Ok);
    assert_eq!(rig.read(0, 0, 12), [&[1; 8][..], &[8, 9, 10, 11]].concat());
    assert_eq!(rig.read(1, 0, 12), [&[0, 1, 2, 3][..], &[2; 8]].concat());
    let last = SECTORS - 1;
    assert_eq!(rig.read(1, last, 1), [last as u8]);
    rig.write(1, last, 1, 9);
    assert_eq!(rig.read(1, last, 1), [9]);
    assert_eq!(
        rig.base(0, SECTORS),
        (0..SECTORS).map(|i| i as u8).collect::<Vec<_>>()
    );
    rig.disk.close().unwrap();
}

#[test]
fn two_of_three_put_it_on_the_disk_and_the_third_keeps_the_past() {
    let rig = rig(3, HOLD, |_| ());
    rig.write(0, 8, 3, 0xa0);
    let first = rig.flush(0);
    assert_eq!(
        rig.done(0, first),
        None,
        "one alone has stored nothing (R2, R4)"
    );
    assert_eq!(rig.read(0, 8, 1), [0xa0], "but sees it");
    assert_eq!(rig.read(1, 8, 1), [8]);
    rig.write(1, 10, 1, 0xa0);
    rig.write(1, 8, 2, 0xa0);
    assert_eq!(rig.wait(0, first), BlockStatus::Ok);
    assert_eq!(rig.base(7, 5), [7, 0xa0, 0xa0, 0xa0, 11]);
    let second = rig.flush(1);
    assert_eq!(rig.wait(1, second), BlockStatus::Ok);
    assert_eq!(rig.read(2, 7, 5), [7, 8, 9, 10, 11], "the past (R6)");
    rig.write(2, 8, 2, 0xa0);
    assert_eq!(rig.read(2, 7, 5), [7, 0xa0, 0xa0, 10, 11]);
    rig.write(2, 10, 1, 0xa0);
    let third = rig.flush(2);
    assert_eq!(rig.wait(2, third), BlockStatus::Ok);
    let report = rig.disk.report(true);
    assert_eq!((report.unconfirmed_sectors, report.held_bytes), (0, 0));
    assert_eq!(report.released_bytes, 3 * SECTOR);
    rig.disk.close().unwrap();
}

#[test]
fn who_writes_something_else_is_outvoted_at_its_flush() {
    let rig = rig(3, HOLD, |_| ());
    for (replica, byte) in [(0, 1), (1, 2), (2, 1)] {
        rig.write(replica, 20, 1, byte);
    }
    let flushes: Vec<_> = (0..3).map(|r| rig.flush(r)).collect();
    assert_eq!(rig.wait(0, flushes[0]), BlockStatus::Ok);
    assert_eq!(rig.wait(2, flushes[2]), BlockStatus::Ok);
    let (replica, outvoted, cause) = rig.stopped();
    assert!((replica, outvoted) == (1, true), "{cause}");
    assert!(cause.contains("sector 20: replica 1 "), "{cause}");
    assert_eq!(rig.base(20, 1), [1]);
    assert!(rig.ask(1, BlockOp::Flush).is_err());
    rig.disk.close().unwrap();
}

#[test]
fn without_a_majority_the_set_stops_or_the_flush_fails() {
    for on_error in [OnError::Stop, OnError::Report] {
        let rig = rig(3, HOLD, |spec| spec.on_error = on_error);
        for replica in 0..3 {
            rig.write(replica, 30, 1, 0xb0 + replica as u8);
        }
        let flushes: Vec<_> = (0..3).map(|r| rig.flush(r)).collect();
        for (replica, flush) in flushes.into_iter().enumerate() {
            assert_eq!(rig.wait(replica, flush), BlockStatus::IoError);
        }
        let stops = rig.ear.heard().into_iter().any(|notice| match notice {
            RelaxedNotice::Failed { stop, cause, .. } => stop && cause.contains("sector 30"),
            _ => false,
        });
        assert_eq!(stops, on_error == OnError::Stop);
        assert_eq!(rig.base(30, 1), [30]);
        let _ = rig.disk.close();
    }
}

#[test]
fn with_report_the_flush_goes_on_and_the_sectors_are_named() {
    let rig = rig(3, REPORT, |_| ());
    for replica in 0..3 {
        rig.write(replica, 30, 2, 0xb0 + replica as u8);
        rig.write(replica, 40, 1, 0xcc);
    }
    let flushes: Vec<_> = (0..3).map(|r| rig.flush(r)).collect();
    for (replica, flush) in flushes.into_iter().enumerate() {
        assert_eq!(rig.wait(replica, flush), BlockStatus::Ok);
        assert_eq!(rig.read(replica, 30, 2), [0xb0 + replica as u8; 2]);
    }
    assert_eq!(
        rig.base(30, 11),
        [30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 0xcc]
    );
    let report = rig.disk.report(false);
    assert_eq!(report.unconfirmed_sectors, 2);
    let range = &report.unconfirmed[0];
    assert_eq!((range.first, range.last, range.said.len()), (30, 31, 3));
    let line = report.line().unwrap();
    assert!(
        line.starts_with(
            "disk data: 2 sectors (1 KiB) never confirmed (vote, unconfirmed = report): 30-31"
        ),
        "{line}"
    );
    // When they agree after all it is on the disk, and reported no more.
    for replica in 0..3 {
        rig.write(replica, 30, 2, 0xdd);
    }
    let flush = rig.flush(1);
    assert_eq!(rig.wait(1, flush), BlockStatus::Ok);
    assert_eq!(rig.base(30, 2), [0xdd; 2]);
    assert_eq!(rig.disk.report(true).line(), None);
    rig.disk.close().unwrap();
}

#[test]
fn who_comes_back_sees_its_checkpoint_and_writes_its_past_again() {
    let rig = rig(3, HOLD, |_| ());
    let all = |sector, byte| (0..3).for_each(|r| rig.write(r, sector, 1, byte));
    all(5, 1);
    rig.write(2, 6, 1, 2); // Its own at the checkpoint.
    let checkpoint = rig.disk.snapshot(2);
    let position = rig.position(2);
    all(5, 3);
    rig.write(0, 6, 1, 2);
    rig.write(0, 7, 1, 4);
    rig.write(1, 7, 1, 4);
    rig.disk.leave(2);
    rig.write(0, 5, 1, 5);
    rig.write(1, 5, 1, 5);
    let flush = rig.flush(0);
    assert_eq!(rig.wait(0, flush), BlockStatus::Ok);
    assert_eq!(rig.base(5, 3), [5, 2, 4]);
    rig.disk.enter(2, Some(&checkpoint), &position).unwrap();
    rig.rewind(2, position.next);
    assert_eq!(rig.read(2, 5, 3), [1, 2, 7], "as of its checkpoint (R6)");
    rig.write(2, 5, 1, 3);
    let flush = rig.flush(2);
    assert_eq!(
        rig.wait(2, flush),
        BlockStatus::Ok,
        "its past delays nobody"
    );
    rig.write(2, 7, 1, 4);
    rig.write(2, 5, 1, 5);
    assert_eq!(rig.read(2, 5, 3), [5, 2, 4]);
    // From here on its word counts again.
    rig.write(2, 5, 1, 6);
    rig.write(0, 5, 1, 6);
    let flush = rig.flush(0);
    assert_eq!(rig.wait(0, flush), BlockStatus::Ok);
    assert_eq!(rig.base(5, 1), [6]);
    drop(checkpoint);
    rig.disk.close().unwrap();
}

#[test]
fn what_waited_at_the_checkpoint_still_counts() {
    let rig = rig(3, HOLD, |_| ());
    rig.disk.leave(1);
    rig.write(2, 6, 1, 2);
    let (checkpoint, position) = (rig.disk.snapshot(2), rig.position(2));
    rig.disk.leave(2);
    rig.write(0, 6, 1, 2);
    rig.disk.enter(2, Some(&checkpoint), &position).unwrap();
    let flush = rig.flush(0);
    assert_eq!(rig.wait(0, flush), BlockStatus::Ok);
    assert_eq!(rig.base(6, 1), [2]);
    let flush = rig.flush(2);
    assert_eq!(rig.wait(2, flush), BlockStatus::Ok);
    rig.disk.close().unwrap();
}

#[test]
fn writes_of_a_sync_disk_wait_for_their_release() {
    let rig = rig(3, HOLD, |spec| spec.sync = true);
    let ask = |replica, sector, byte| {
        let data = vec![byte; 2 * SECTOR as usize];
        rig.ask(replica, BlockOp::Write { sector, data }).unwrap()
    };
    let first = ask(0, 8, 1);
    let zeroes = BlockOp::WriteZeroes {
        sector: 20,
        sectors: 4,
        unmap: false,
    };
    let second = rig.ask(0, zeroes.clone()).unwrap();
    assert_eq!(
        [first, second].map(|seq| rig.done(0, seq)),
        [None, None],
        "one alone has released nothing (R2)"
    );
    assert!(rig.disk.waits(0));
    assert_eq!(rig.read(0, 8, 2), [1, 1], "but sees it");
    let theirs = ask(1, 8, 1);
    assert_eq!(rig.wait(0, first), BlockStatus::Ok);
    assert_eq!(rig.wait(1, theirs), BlockStatus::Ok);
    assert_eq!(rig.done(0, second), None);
    rig.ask(2, zeroes).unwrap();
    assert_eq!(rig.wait(0, second), BlockStatus::Ok);
    // No flush was asked for, and none is needed for somebody to be outvoted.
    ask(0, 30, 3);
    ask(1, 30, 4);
    ask(2, 30, 3);
    let (replica, outvoted, cause) = rig.stopped();
    assert!((replica, outvoted) == (1, true), "{cause}");
    assert!(cause.contains("sector 30"), "{cause}");
    let stats = rig.disk.stats();
    assert_eq!((stats.flushes, stats.waited_writes), (0, 7), "{stats:?}");
    rig.disk.close().unwrap();
}

#[test]
fn a_write_that_waited_at_the_checkpoint_waits_again() {
    let rig = rig(3, HOLD, |spec| spec.sync = true);
    rig.write(2, 6, 1, 2);
    let (checkpoint, mut position) = (rig.disk.snapshot(2), rig.position(2));
    position.outstanding.push(quorate_devices::Outstanding {
        seq: 0,
        sector: 0,
        bytes: 0,
        kind: Waiting::Write,
    });
    rig.disk.leave(2);
    rig.disk.enter(2, Some(&checkpoint), &position).unwrap();
    assert_eq!(rig.done(2, 0), None, "nobody else has written it");
    rig.write(0, 6, 1, 2);
    assert_eq!(rig.wait(2, 0), BlockStatus::Ok);
    rig.disk.close().unwrap();
}

#[test]
fn without_a_majority_a_write_that_waits_fails_or_goes_on() {
    for (mode, on_error) in [(HOLD, OnError::Report), (REPORT, OnError::Stop)] {
        let rig = rig(3, mode, |spec| {
            spec.sync = true;
            spec.on_error = on_error;
        });
        for replica in 0..3 {
            rig.write(replica, 30, 1, 0xb0 + replica as u8);
        }
        let wanted = match mode == HOLD {
            true => BlockStatus::IoError,
            false => BlockStatus::Ok,
        };
        for replica in 0..3 {
            assert_eq!(rig.wait(replica, 0), wanted);
        }
        assert_eq!(rig.base(30, 1), [30], "never released");
        assert_eq!(rig.disk.report(true).unconfirmed_sectors, 1);
        // It goes on after that.
        for replica in 0..3 {
            rig.write(replica, 31, 1, 7);
        }
        for replica in 0..3 {
            assert_eq!(rig.wait(replica, 1), BlockStatus::Ok);
        }
        rig.disk.close().unwrap();
    }
}
