//! What each call does, over each backend.

use super::model::Manual;
use super::*;
use crate::store::job::{Engine, Job};

#[test]
fn writes_are_read_back_and_reach_the_file() {
    for backend in backends() {
        let bench = Bench::new(1 << 20);
        let disk = bench.open(bench.spec(3), backend);
        pass(&disk, 3, &write(0, 1, 7, 2));
        pass(&disk, 3, &flush(1));
        for replica in 0..3 {
            assert_eq!(
                due(&disk, replica, &bench.notices),
                [done(1, Waiting::Flush, BlockStatus::Ok)]
            );
            disk.delivered(replica, &[done(1, Waiting::Flush, BlockStatus::Ok)]);
            assert!(!disk.has_due(replica));
        }
        assert_eq!(bench.bytes()[512..1536], [7; 1024]);
        for replica in 0..3 {
            disk.submit(replica, &read(2, 0, 4)).unwrap();
            let expected = [vec![0; 512], vec![7; 1024], vec![0; 512]].concat();
            assert_eq!(fetch(&disk, replica, 2), expected);
        }
        disk.close().unwrap();
    }
}

/// R4, one job at a time.
#[test]
fn a_flush_comes_after_its_sync_and_that_after_the_writes() {
    let bench = Bench::new(1 << 20);
    let engine = Arc::new(Manual::default());
    let mine = engine.clone();
    let open = |_: &_| Ok(Box::new(mine) as Box<dyn Engine>);
    let disk = Disk::open_with(0, &bench.spec(1), bench.notify(), None, open).unwrap();
    let jobs = || std::mem::take(&mut *engine.jobs.lock().unwrap());
    let perform = |job| engine.start(disk.core.perform(job));
    pass(&disk, 1, &write(0, 0, 1, 8));
    pass(&disk, 1, &write(1, 8, 1, 8));
    pass(&disk, 1, &flush(2));
    pass(&disk, 1, &write(3, 16, 1, 8));
    let mut now = jobs();
    assert!(matches!(
        now[..],
        [(Job::Write { .. }, None), (Job::Write { .. }, None)]
    ));
    perform(now.pop().unwrap().0);
    assert!(jobs().is_empty() && !disk.has_due(0));
    perform(now.pop().unwrap().0);
    // Now what is behind the flush may be written, too.
    let mut now = jobs();
    assert!(matches!(
        now[..],
        [(Job::Write { .. }, None), (Job::Sync { .. }, None)]
    ));
    assert!(!disk.has_due(0));
    perform(now.pop().unwrap().0);
    assert_eq!(disk.due(0), [done(2, Waiting::Flush, BlockStatus::Ok)]);
    // The write behind it ended after that sync began: the next flush needs one of its own.
    perform(now.pop().unwrap().0);
    pass(&disk, 1, &flush(4));
    let mut now = jobs();
    assert!(matches!(now[..], [(Job::Sync { .. }, None)]));
    assert_eq!(disk.due(0).len(), 1);
    perform(now.pop().unwrap().0);
    assert_eq!(disk.due(0).len(), 2);
    // Nothing was written since: this one costs nothing.
    pass(&disk, 1, &flush(5));
    assert!(matches!(jobs()[..], [(Job::Tell(_), None)]));
    assert_eq!(disk.due(0).len(), 3);
}

/// R6: a replica that lags reads what the disk held at its own position, also when the file has moved on.
fn old_data(versions: bool, backend: Backend) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let bench = Bench::new(1 << 20);
    let mut spec = bench.spec(3);
    spec.bounds.versions = versions;
    let disk = bench.open(spec, backend);
    pass(&disk, 3, &write(0, 0, 1, 8));
    // Replicas 0 and 1 go on and decide; replica 2 is still at request 1.
    for replica in 0..2 {
        disk.submit(replica, &read(1, 0, 8)).unwrap();
        disk.submit(replica, &write(2, 0, 2, 8)).unwrap();
        disk.submit(replica, &flush(3)).unwrap();
    }
    for request in [read(1, 0, 8), write(2, 0, 2, 8), flush(3)] {
        disk.release(request);
    }
    while !disk
        .due(0)
        .contains(&done(3, Waiting::Flush, BlockStatus::Ok))
    {
        bench.notices.wait("flush", |n| matches!(n, Notice::Due(_)));
    }
    assert_eq!(bench.bytes()[..512], [2; 512]);
    disk.submit(2, &read(1, 0, 8)).unwrap();
    let fast = fetch(&disk, 0, 1);
    let slow = fetch(&disk, 2, 1);
    disk.submit(2, &write(2, 0, 2, 8)).unwrap();
    disk.submit(2, &flush(3)).unwrap();
    disk.submit(2, &read(4, 0, 8)).unwrap();
    let later = fetch(&disk, 2, 4);
    // Everybody is past: nothing old is kept.
    disk.retire(1);
    assert!(disk.take(0, 1).is_err());
    disk.submit(0, &read(4, 0, 8)).unwrap();
    assert_eq!(disk.stats().version_bytes, 0);
    disk.close().unwrap();
    (fast, slow, later)
}

#[test]
fn a_slow_replica_reads_the_past() {
    for backend in backends() {
        let (fast, slow, later) = old_data(true, backend);
        assert!(fast == [1; 4096] && slow == [1; 4096] && later == [2; 4096]);
        // The same without versions: this is what they are for.
        assert_eq!(old_data(false, backend).1, [2; 4096]);
    }
}
