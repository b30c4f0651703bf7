//! Replicas that begin again, one case at a time; [`super::model`] has all of them at random.

use std::sync::atomic::Ordering;

use quorate_devices::{DiskPosition, Outstanding};

use super::model::{Cache, Manual};
use super::*;

/// A disk whose I/O is done by hand, and whose file is not in the host's cache.
fn by_hand(bench: &Bench, replicas: usize) -> (Arc<Disk>, Arc<Manual>, Arc<Cache>) {
    let (engine, cache) = (Arc::new(Manual::default()), Arc::new(Cache::default()));
    let mine = engine.clone();
    let spec = bench.spec(replicas);
    let disk = Disk::open_with(0, &spec, bench.notify(), Some(cache.clone()), |_| {
        Ok(Box::new(mine))
    });
    (disk.unwrap(), engine, cache)
}

/// Does the oldest job, and not what follows from it. False: there is none.
fn work(disk: &Disk, engine: &Arc<Manual>) -> bool {
    let mut jobs = engine.jobs.lock().unwrap();
    if jobs.is_empty() {
        return false;
    }
    let (job, _) = jobs.remove(0);
    drop(jobs);
    let follow = disk.core.perform(job);
    engine
        .jobs
        .lock()
        .unwrap()
        .extend(follow.into_iter().map(|job| (job, None)));
    true
}

fn at(next: u64, reads: &[(u64, u64)]) -> DiskPosition {
    let outstanding = reads.iter().map(|(seq, sector)| Outstanding {
        seq: *seq,
        sector: *sector,
        bytes: 512,
        kind: Waiting::Read,
    });
    DiskPosition {
        disk: 0,
        next,
        outstanding: outstanding.collect(),
    }
}

#[test]
fn a_view_of_a_former_life_completes_nothing() {
    let bench = Bench::new(1 << 16);
    let (disk, engine, _) = by_hand(&bench, 3);
    // It wrote something that the vote never passed, and a read of it is under way when it is stopped.
    disk.submit(0, &write(0, 8, 1, 1)).unwrap();
    disk.submit(0, &read(1, 0, 16)).unwrap();
    disk.retire(0);
    disk.rejoin(0, &DiskPosition::default()).unwrap();
    disk.promote(0);
    disk.submit(0, &write(0, 8, 2, 1)).unwrap();
    disk.submit(0, &read(1, 0, 16)).unwrap();
    // The old one ends now.
    assert!(work(&disk, &engine));
    assert!(!disk.has_due(0), "that was the former life's");
    assert!(work(&disk, &engine));
    let data = fetch(&disk, 0, 1);
    assert_eq!((data[7 * 512], data[8 * 512]), (0, 2));
}

#[test]
fn data_that_rest_on_what_the_vote_did_not_pass_are_dropped() {
    let bench = Bench::new(1 << 16);
    let (disk, engine, cache) = by_hand(&bench, 3);
    cache.0.store(true, Ordering::Relaxed);
    // Replica 0 has gone astray: it wrote something else, and reads it. It is the first to have the data of both reads.
    for (replica, byte) in [(0, 9), (1, 1)] {
        disk.submit(replica, &write(0, 8, byte, 1)).unwrap();
        disk.submit(replica, &read(1, 8, 1)).unwrap();
        disk.submit(replica, &read(2, 8 + 7 * (1 - replica as u64), 1))
            .unwrap();
        // Where the file system cannot tell what is in memory.
        while work(&disk, &engine) {}
        assert_eq!(fetch(&disk, replica, 1)[0], byte);
        fetch(&disk, replica, 2);
    }
    assert!(disk.logged(1).is_none() && disk.logged(2).is_none());
    disk.release(write(0, 8, 1, 1));
    assert!(
        disk.logged(1).is_none(),
        "the read itself is not passed yet"
    );
    disk.release(read(1, 8, 1));
    disk.release(read(2, 8, 1));
    assert_eq!(disk.logged(1).unwrap()[0], 1);
    assert_eq!(disk.logged(2).unwrap()[0], 1);
    // Only the astray one had these when the vote passed them: they are nobody's.
    disk.submit(0, &read(3, 8, 1)).unwrap();
    disk.submit(0, &write(4, 16, 9, 1)).unwrap();
    disk.submit(0, &read(5, 16, 1)).unwrap();
    while work(&disk, &engine) {}
    fetch(&disk, 0, 5);
    disk.release(read(3, 8, 1));
    disk.release(write(4, 16, 2, 1));
    disk.release(read(5, 16, 1));
    assert_eq!(disk.logged(3).unwrap()[0], 1);
    assert!(disk.logged(5).is_none());
    disk.retire(0);
    // One that begins again gets what is right.
    disk.retire(2);
    disk.rejoin(2, &DiskPosition::default()).unwrap();
    for request in [
        write(0, 8, 1, 1),
        read(1, 8, 1),
        read(2, 8, 1),
        read(3, 8, 1),
    ] {
        disk.submit(2, &request).unwrap();
    }
    disk.submit(2, &write(4, 16, 2, 1)).unwrap();
    disk.submit(2, &read(5, 16, 1)).unwrap();
    while work(&disk, &engine) {}
    assert!(!disk.has_due(2), "it leads nobody");
    for (seq, byte) in [(1, 1), (2, 1), (3, 1), (5, 2)] {
        assert_eq!(fetch(&disk, 2, seq)[0], byte, "read {seq}");
    }
}

#[test]
fn all_begin_again_at_once_with_a_read_that_nobody_was_told_of() {
    let bench = Bench::new(1 << 16);
    let (disk, engine, _) = by_hand(&bench, 3);
    pass(&disk, 3, &write(0, 8, 1, 1));
    while work(&disk, &engine) {}
    pass(&disk, 3, &read(1, 8, 1));
    for replica in 0..3 {
        disk.retire(replica);
    }
    // The vote had passed this already.
    disk.release(write(2, 8, 2, 1));
    for replica in 0..3 {
        disk.rejoin(replica, &at(2, &[(1, 8)])).unwrap();
        disk.submit(replica, &write(2, 8, 2, 1)).unwrap();
    }
    while work(&disk, &engine) {}
    assert_eq!(disk.stats().log_reads, 1, "one read for all");
    for replica in 0..3 {
        assert!(!disk.has_due(replica));
        disk.promote(replica);
        assert_eq!(disk.due(replica), [done(1, Waiting::Read, BlockStatus::Ok)]);
    }
    let data: Vec<u8> = (0..3).map(|replica| fetch(&disk, replica, 1)[0]).collect();
    assert_eq!(data, [2; 3]);
    // From here on each reads for itself, as of its own position.
    disk.submit(0, &read(3, 8, 1)).unwrap();
    disk.submit(0, &write(4, 8, 3, 1)).unwrap();
    disk.submit(1, &read(3, 8, 1)).unwrap();
    disk.submit(1, &write(4, 8, 3, 1)).unwrap();
    disk.release(read(3, 8, 1));
    disk.release(write(4, 8, 3, 1));
    disk.submit(2, &read(3, 8, 1)).unwrap();
    while work(&disk, &engine) {}
    assert_eq!(fetch(&disk, 2, 3)[0], 2, "R6");
}

#[test]
fn one_that_waits_in_take_gets_what_another_reads() {
    for backend in backends() {
        let bench = Bench::new(1 << 16);
        let disk = bench.open(bench.spec(3), backend);
        pass(&disk, 3, &write(0, 8, 1, 1));
        disk.retire(2);
        disk.rejoin(2, &at(1, &[])).unwrap();
        disk.submit(2, &read(1, 8, 1)).unwrap();
        let waiting = {
            let disk = disk.clone();
            std::thread::spawn(move || disk.take(2, 1).map(|data| data[0]))
        };
        for replica in 0..2 {
            disk.submit(replica, &read(1, 8, 1)).unwrap();
        }
        disk.release(read(1, 8, 1));
        assert_eq!(waiting.join().unwrap(), Ok(1));
        // Stopped while it waits for what the vote has not passed and it did not see.
        disk.retire(2);
        disk.rejoin(2, &at(5, &[(4, 8)])).unwrap();
        let waiting = {
            let disk = disk.clone();
            std::thread::spawn(move || disk.take(2, 4))
        };
        disk.retire(2);
        assert!(waiting.join().unwrap().is_err());
        disk.close().unwrap();
    }
}

#[test]
fn what_cannot_begin_again_is_told_why() {
    let bench = Bench::new(1 << 16);
    let mut spec = bench.spec(3);
    spec.bounds.log_bytes = 8192;
    let disk = bench.open(spec.clone(), Backend::Threads);
    let why = |position: &DiskPosition, replica: usize| {
        disk.rejoin(replica, position).unwrap_err().to_string()
    };
    assert!(why(&at(0, &[]), 1).contains("is not stopped"));
    assert!(why(&at(0, &[]), MAX_REPLICAS).contains("is stopped"));
    disk.retire(1);
    assert!(why(&at(4, &[(5, 0)]), 1).contains("not before"));
    assert!(why(&at(4, &[(3, 128)]), 1).contains("beyond the end"));
    assert!(why(&at(4, &[(3, u64::MAX)]), 1).contains("beyond the end"));
    // One that joins later comes from the start.
    disk.rejoin(7, &DiskPosition::default()).unwrap();
    let step = |seq: u64| {
        for replica in [0, 2] {
            disk.submit(replica, &read(seq, 0, 1)).unwrap();
            wait_for("read", || disk.has_due(replica));
            fetch(&disk, replica, seq);
        }
        disk.release(read(seq, 0, 1));
    };
    (0..4).for_each(step);
    disk.submit(7, &read(0, 0, 1)).unwrap();
    assert_eq!(fetch(&disk, 7, 0), [0; 512]);
    // What it needs is not forgotten while it is on its way.
    disk.forget_reads(3);
    assert_eq!(disk.logged_from(), 1);
    disk.retire(7);
    disk.forget_reads(3);
    assert_eq!(disk.logged_from(), 3);
    assert!(why(&at(3, &[(2, 0)]), 1).contains("only those from 3 on"));
    disk.rejoin(1, &at(3, &[])).unwrap();
    // The bound: it is not let in later, and not led astray.
    (4..40).for_each(step);
    let stats = disk.stats();
    assert!(
        stats.logged_bytes <= 8192 && stats.log_overflows > 0,
        "{stats:?}"
    );
    assert!(disk.logged(39).is_some() && disk.logged(10).is_none());
    disk.submit(1, &read(3, 0, 1)).unwrap();
    assert!(disk.take(1, 3).unwrap_err().contains("are kept"));
    disk.retire(1);
    assert!(why(&at(3, &[]), 1).contains("are kept"));
    disk.close().unwrap();
    drop(disk);
    // Without recovery nothing is kept at all.
    spec.recoverable = false;
    let disk = bench.open(spec, Backend::Threads);
    disk.submit(0, &read(0, 0, 1)).unwrap();
    wait_for("read", || disk.has_due(0));
    fetch(&disk, 0, 0);
    disk.release(read(0, 0, 1));
    assert_eq!(disk.logged_bytes(), 0);
    disk.retire(1);
    let error = disk.rejoin(1, &at(0, &[])).unwrap_err().to_string();
    assert!(error.contains("recovery is off"), "{error}");
    disk.close().unwrap();
}

#[test]
fn a_disk_goes_on_where_the_set_was_saved() {
    for backend in backends() {
        let bench = Bench::new(1 << 16);
        {
            let disk = bench.open(bench.spec(3), backend);
            for seq in 0..3 {
                pass(&disk, 3, &write(seq, 8, seq as u8 + 1, 1));
            }
            disk.freeze().unwrap();
            assert_eq!(bench.bytes()[8 * 512], 3);
            // It is read and asked for things meanwhile, and stays as it is.
            pass(&disk, 3, &write(3, 8, 9, 1));
            pass(&disk, 3, &flush(4));
            disk.submit(0, &read(5, 8, 1)).unwrap();
            assert_eq!(fetch(&disk, 0, 5)[0], 9);
            assert_eq!(bench.bytes()[8 * 512], 3);
            assert!(!disk.has_due(0), "not durable (R4)");
            disk.thaw();
            wait_for("flush", || disk.has_due(0));
            assert_eq!(bench.bytes()[8 * 512], 9);
            disk.freeze().unwrap();
            disk.close().unwrap();
        }
        // Saved with a read and a flush outstanding.
        let disk = bench.open(bench.spec(3), backend);
        let mut position = at(7, &[(5, 8)]);
        position.outstanding.push(Outstanding {
            seq: 6,
            sector: 0,
            bytes: 0,
            kind: Waiting::Flush,
        });
        disk.begin_at(&position).unwrap();
        pass(&disk, 2, &write(7, 8, 10, 1));
        pass(&disk, 2, &flush(8));
        disk.submit(2, &write(7, 8, 10, 1)).unwrap();
        disk.submit(2, &flush(8)).unwrap();
        let all = [
            done(5, Waiting::Read, BlockStatus::Ok),
            done(6, Waiting::Flush, BlockStatus::Ok),
            done(8, Waiting::Flush, BlockStatus::Ok),
        ];
        for replica in 0..3 {
            wait_for("all", || disk.due(replica) == all);
            assert_eq!(fetch(&disk, replica, 5)[0], 9, "as of its number (R6)");
        }
        // One that begins from the start of this run.
        disk.retire(1);
        disk.rejoin(1, &disk.start()).unwrap();
        assert_eq!(fetch(&disk, 1, 5)[0], 9);
        disk.submit(1, &write(7, 8, 10, 1)).unwrap();
        disk.close().unwrap();
    }
}

#[test]
fn what_the_log_reads_is_as_of_the_read_while_a_healthy_replica_may_read_it_too() {
    let bench = Bench::new(1 << 16);
    let (disk, engine, _) = by_hand(&bench, 3);
    pass(&disk, 3, &write(0, 8, 1, 1));
    while work(&disk, &engine) {}
    // Replicas 0 and 1 asked for it, and nothing is there yet; then the vote passes a write to the same place.
    for replica in 0..2 {
        disk.submit(replica, &read(1, 8, 1)).unwrap();
        disk.submit(replica, &write(2, 8, 2, 1)).unwrap();
    }
    disk.release(read(1, 8, 1));
    disk.release(write(2, 8, 2, 1));
    disk.retire(2);
    disk.rejoin(2, &at(2, &[(1, 8)])).unwrap();
    // Its own ends first.
    let job = engine.jobs.lock().unwrap().pop().unwrap();
    engine.jobs.lock().unwrap().insert(0, job);
    while work(&disk, &engine) {}
    let data: Vec<u8> = (0..3).map(|replica| fetch(&disk, replica, 1)[0]).collect();
    assert_eq!(data, [1; 3], "R6, R7");
}

#[test]
fn what_the_log_reads_is_not_overtaken_by_a_later_write() {
    let bench = Bench::new(1 << 16);
    let (disk, engine, _) = by_hand(&bench, 2);
    pass(&disk, 2, &write(0, 8, 1, 2));
    while work(&disk, &engine) {}
    pass(&disk, 2, &read(1, 8, 2));
    disk.retire(0);
    disk.retire(1);
    let mut position = at(2, &[(1, 8)]);
    position.outstanding[0].bytes = 1024;
    for replica in 0..2 {
        disk.rejoin(replica, &position).unwrap();
        disk.submit(replica, &write(2, 8, 2, 2)).unwrap();
        disk.submit(replica, &flush(3)).unwrap();
    }
    disk.release(write(2, 8, 2, 2));
    disk.release(flush(3));
    // All that can be done before the read itself.
    let read = engine.jobs.lock().unwrap().remove(0);
    while work(&disk, &engine) {}
    assert_eq!(bench.bytes()[8 * 512], 2);
    engine.jobs.lock().unwrap().push(read);
    while work(&disk, &engine) {}
    assert_eq!(fetch(&disk, 0, 1), vec![1; 1024]);
    assert_eq!(fetch(&disk, 1, 1), vec![1; 1024]);
}

#[test]
fn one_that_begins_ahead_of_what_is_released_does_not_read_without_it() {
    let bench = Bench::new(1 << 16);
    let (disk, engine, _) = by_hand(&bench, 3);
    for replica in 0..2 {
        disk.submit(replica, &write(0, 8, 1, 1)).unwrap();
    }
    // The vote has passed the write, and it is on its way here. This replica's checkpoint is behind it.
    disk.retire(2);
    disk.rejoin(2, &at(1, &[])).unwrap();
    disk.submit(2, &read(1, 8, 1)).unwrap();
    while work(&disk, &engine) {}
    disk.promote(2);
    assert!(!disk.has_due(2));
    disk.release(write(0, 8, 1, 1));
    disk.release(read(1, 8, 1));
    while work(&disk, &engine) {}
    assert_eq!(fetch(&disk, 2, 1)[0], 1);
}

#[test]
fn one_that_is_promoted_behind_what_is_released_reads_what_the_others_read() {
    let bench = Bench::new(1 << 16);
    let (disk, engine, cache) = by_hand(&bench, 3);
    cache.0.store(true, Ordering::Relaxed);
    disk.retire(2);
    pass(&disk, 2, &write(0, 8, 1, 1));
    pass(&disk, 2, &read(1, 8, 1));
    pass(&disk, 2, &write(2, 8, 2, 1));
    pass(&disk, 2, &flush(3));
    while work(&disk, &engine) {}
    for replica in 0..2 {
        fetch(&disk, replica, 1);
    }
    while work(&disk, &engine) {}
    assert_eq!(bench.bytes()[8 * 512], 2, "nobody keeps the past");
    disk.rejoin(2, &at(1, &[])).unwrap();
    disk.promote(2);
    disk.submit(2, &read(1, 8, 1)).unwrap();
    while work(&disk, &engine) {}
    assert_eq!(fetch(&disk, 2, 1)[0], 1, "R7");
}
