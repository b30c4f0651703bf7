//! Bad disks: what is told, to whom, and what still reaches the file. Over each backend.

use std::collections::BTreeMap;

use super::*;
use crate::store::disk::engine;
use crate::store::file::{Fault, Faults, Io};

/// Faults by operation: the first so many go well, what comes after does not. A gate holds an operation until it is opened.
#[derive(Default)]
pub struct Weather {
    after: Mutex<BTreeMap<u8, (u64, Fault)>>,
    gate: Mutex<Option<Io>>,
    open: Condvar,
    log: Mutex<Vec<(Io, u64)>>,
}

impl Weather {
    pub fn set(&self, io: Io, after: u64, fault: Fault) {
        self.after.lock().unwrap().insert(io as u8, (after, fault));
    }

    pub fn clear(&self) {
        self.after.lock().unwrap().clear();
    }

    pub fn hold(&self, io: Option<Io>) {
        *self.gate.lock().unwrap() = io;
        self.open.notify_all();
    }

    pub fn log(&self, io: Io) -> Vec<u64> {
        let log = self.log.lock().unwrap();
        log.iter()
            .filter(|(i, _)| *i == io)
            .map(|(_, at)| *at)
            .collect()
    }
}

impl Faults for Weather {
    fn before(&self, io: Io, offset: u64, _: u64) -> Option<Fault> {
        self.log.lock().unwrap().push((io, offset));
        let mut gate = self.gate.lock().unwrap();
        while *gate == Some(io) {
            gate = self.open.wait(gate).unwrap();
        }
        drop(gate);
        let mut after = self.after.lock().unwrap();
        let (left, fault) = after.get_mut(&(io as u8))?;
        if *left > 0 {
            *left -= 1;
            return None;
        }
        Some(*fault)
    }
}

pub fn open(bench: &Bench, spec: &DiskSpec, backend: Backend, weather: &Arc<Weather>) -> Arc<Disk> {
    Disk::open_with(0, spec, bench.notify(), Some(weather.clone()), |core| {
        Ok(engine(core, backend).unwrap())
    })
    .unwrap()
}

fn each(test: impl Fn(&Bench, DiskSpec, Backend, Arc<Weather>)) {
    for backend in backends() {
        let bench = Bench::new(1 << 20);
        test(&bench, bench.spec(3), backend, Arc::default());
    }
}

fn failed(bench: &Bench) -> (String, bool) {
    match bench
        .notices
        .wait("failure", |n| matches!(n, Notice::Failed { .. }))
    {
        Notice::Failed { cause, stop, .. } => (cause, stop),
        Notice::Due(_) => unreachable!(),
    }
}

#[test]
fn a_flush_waits_for_the_writes_before_it_and_for_a_sync_that_began_after_them() {
    each(|bench, spec, backend, weather| {
        let disk = open(bench, &spec, backend, &weather);
        weather.hold(Some(Io::Write));
        pass(&disk, 3, &write(0, 0, 1, 8));
        pass(&disk, 3, &flush(1));
        // A second write to the same block, so that the order in the file matters.
        pass(&disk, 3, &write(2, 0, 2, 8));
        assert!(!disk.has_due(0));
        assert!(weather.log(Io::Sync).is_empty());
        weather.hold(Some(Io::Sync));
        wait_for("a sync", || !weather.log(Io::Sync).is_empty());
        // Written, but not stable yet.
        assert_ne!(bench.bytes()[0], 0);
        assert!(!disk.has_due(0), "R4");
        weather.hold(None);
        for replica in 0..3 {
            let all = due(&disk, replica, &bench.notices);
            assert_eq!(all, [done(1, Waiting::Flush, BlockStatus::Ok)]);
        }
        disk.close().unwrap();
        assert_eq!(bench.bytes()[..4096], [2; 4096]);
    });
}

#[test]
fn whom_the_vote_has_overtaken_does_not_wait_for_a_slow_host() {
    each(|bench, mut spec, backend, weather| {
        spec.bounds.unwritten_bytes = 8192;
        let disk = open(bench, &spec, backend, &weather);
        weather.hold(Some(Io::Write));
        let requests: Vec<_> = (0..3).map(|seq| write(seq, seq * 8, 1, 8)).collect();
        for request in &requests {
            disk.submit(0, request).unwrap();
            disk.submit(1, request).unwrap();
        }
        disk.submit(2, &requests[0]).unwrap();
        disk.submit(2, &requests[1]).unwrap();
        disk.release(requests[0].clone());
        disk.release(requests[1].clone());
        // Now there is no room, and the host writes nothing.
        let (slow, last) = (disk.clone(), requests[2].clone());
        let slow = std::thread::spawn(move || slow.submit(2, &last));
        wait_for("it waits", || disk.stats().waits > 0);
        disk.release(requests[2].clone());
        wait_for("it goes on", || slow.is_finished());
        slow.join().unwrap().unwrap();
        weather.hold(None);
        disk.close().unwrap();
    });
}

#[test]
fn a_flush_that_was_not_released_is_never_due() {
    each(|bench, mut spec, backend, weather| {
        spec.replicas = 2;
        let disk = open(bench, &spec, backend, &weather);
        // Replica 0 asks for a flush, where the others write: it may be the one that has gone astray.
        disk.submit(0, &flush(0)).unwrap();
        disk.submit(1, &write(0, 0, 1, 1)).unwrap();
        assert!(!disk.has_due(0));
        disk.release(write(0, 0, 1, 1));
        assert!(!disk.has_due(0));
        disk.retire(0);
        disk.submit(1, &flush(1)).unwrap();
        disk.release(flush(1));
        let all = due(&disk, 1, &bench.notices);
        // A leader that has gone astray calls request 1 a read; that completes nothing.
        disk.delivered(1, &[done(1, Waiting::Read, BlockStatus::Ok)]);
        assert_eq!(disk.due(1), all);
        disk.close().unwrap();
    });
}

#[test]
fn flushes_that_come_together_share_a_sync() {
    each(|bench, spec, backend, weather| {
        let disk = open(bench, &spec, backend, &weather);
        weather.hold(Some(Io::Sync));
        pass(&disk, 3, &flush(0));
        wait_for("a sync", || !weather.log(Io::Sync).is_empty());
        pass(&disk, 3, &write(1, 0, 1, 1));
        for seq in 2..10 {
            pass(&disk, 3, &flush(seq));
        }
        weather.hold(None);
        while disk.due(0).len() < 9 {
            bench.notices.wait("flush", |n| matches!(n, Notice::Due(_)));
        }
        assert_eq!(weather.log(Io::Sync).len(), 2);
        assert_eq!((disk.stats().flushes, disk.stats().syncs), (9, 2));
        disk.close().unwrap();
    });
}

#[test]
fn a_full_disk_stops_the_set_with_the_cause() {
    each(|bench, spec, backend, weather| {
        let disk = open(bench, &spec, backend, &weather);
        weather.set(Io::Write, 1, Fault::Error(libc::ENOSPC));
        pass(&disk, 3, &write(0, 0, 1, 8));
        pass(&disk, 3, &flush(1));
        let _ = due(&disk, 0, &bench.notices);
        pass(&disk, 3, &write(2, 8, 2, 8));
        let (cause, stop) = failed(bench);
        assert!(stop);
        let path = bench.path().display().to_string();
        for part in [
            &*path,
            "4096 bytes at offset 4096",
            "No space",
            "free space",
            "disk 0",
        ] {
            assert!(cause.contains(part), "{cause}");
        }
        weather.clear();
        // Nothing behind the failed write reaches the file, and no flush is promised.
        pass(&disk, 3, &write(3, 16, 3, 8));
        pass(&disk, 3, &flush(4));
        pass(&disk, 3, &write(5, 24, 3, 8));
        pass(&disk, 3, &flush(6));
        assert_eq!(disk.due(1), [done(1, Waiting::Flush, BlockStatus::Ok)]);
        assert!(disk.stats().failure.is_some());
        let error = disk.close().unwrap_err().to_string();
        assert!(error.contains("No space"), "{error}");
        assert_eq!(bench.bytes()[..4096], [1; 4096]);
        assert!(bench.bytes()[4096..].iter().all(|b| *b == 0));
        assert!(
            !bench
                .notices
                .all()
                .iter()
                .any(|n| matches!(n, Notice::Failed { .. }))
        );
    });
}

#[test]
fn an_error_that_the_guest_is_told_is_the_same_for_all() {
    each(|bench, mut spec, backend, weather| {
        spec.on_error = OnError::Report;
        spec.bounds.unwritten_bytes = 64 << 10;
        let disk = open(bench, &spec, backend, &weather);
        weather.set(Io::Sync, 1, Fault::Error(libc::EIO));
        pass(&disk, 3, &write(0, 0, 1, 8));
        pass(&disk, 3, &flush(1));
        let _ = due(&disk, 0, &bench.notices);
        pass(&disk, 3, &write(2, 8, 2, 8));
        // Replica 2 is behind.
        for replica in 0..2 {
            disk.submit(replica, &flush(3)).unwrap();
        }
        disk.release(flush(3));
        let (cause, stop) = failed(bench);
        assert!(!stop && cause.contains("fdatasync"), "{cause}");
        weather.clear();
        disk.submit(2, &flush(3)).unwrap();
        let both = [
            done(1, Waiting::Flush, BlockStatus::Ok),
            done(3, Waiting::Flush, BlockStatus::IoError),
        ];
        for replica in 0..3 {
            assert_eq!(disk.due(replica), both);
        }
        // Later ones, too; the file stays as it is, and what was written is read all the same.
        pass(&disk, 3, &write(4, 16, 3, 8));
        pass(&disk, 3, &flush(5));
        pass(&disk, 3, &read(6, 0, 24));
        for replica in 0..3 {
            let last = disk.due(replica);
            assert!(last.contains(&done(5, Waiting::Flush, BlockStatus::IoError)));
            let data = fetch(&disk, replica, 6);
            assert_eq!(data, [[1; 4096], [2; 4096], [3; 4096]].concat());
        }
        assert_eq!(bench.bytes()[8192..12288], [0; 4096]);
        // Until memory is not enough: then the set stops after all.
        for seq in 7..23 {
            pass(&disk, 3, &write(seq, 16, 3, 8));
        }
        let (cause, stop) = failed(bench);
        assert!(stop && cause.contains("kept in memory"), "{cause}");
        assert!(disk.close().is_err());
    });
}

#[test]
fn short_reads_and_writes_go_on() {
    each(|bench, spec, backend, weather| {
        let disk = open(bench, &spec, backend, &weather);
        weather.set(Io::ReadNow, 0, Fault::Error(libc::EAGAIN));
        weather.set(Io::Read, 0, Fault::Short(700));
        weather.set(Io::Write, 0, Fault::Short(1000));
        let data: Vec<u8> = (0..16384u32).map(|i| (i % 251) as u8).collect();
        let op = BlockOp::Write {
            sector: 3,
            data: data.clone(),
        };
        pass(&disk, 3, &request(0, op));
        pass(&disk, 3, &flush(1));
        let _ = due(&disk, 0, &bench.notices);
        assert_eq!(bench.bytes()[3 * 512..3 * 512 + 16384], data);
        pass(&disk, 3, &read(2, 3, 32));
        assert!(fetch(&disk, 2, 2) == data);
        disk.close().unwrap();
    });
}

#[test]
fn a_read_error_is_a_completion_and_the_disk_goes_on() {
    each(|bench, spec, backend, weather| {
        let disk = open(bench, &spec, backend, &weather);
        weather.set(Io::ReadNow, 0, Fault::Error(libc::EAGAIN));
        weather.set(Io::Read, 0, Fault::Error(libc::EIO));
        disk.submit(0, &read(0, 0, 8)).unwrap();
        let bad = done(0, Waiting::Read, BlockStatus::IoError);
        assert_eq!(due(&disk, 0, &bench.notices), [bad]);
        weather.clear();
        // Another one was luckier, but does as the entry says.
        for replica in 1..3 {
            disk.submit(replica, &read(0, 0, 8)).unwrap();
        }
        disk.release(read(0, 0, 8));
        for replica in 0..3 {
            disk.delivered(replica, &[bad]);
            assert!(!disk.has_due(replica));
        }
        pass(&disk, 3, &read(1, 0, 8));
        assert_eq!(fetch(&disk, 0, 1), [0; 4096]);
        assert!(disk.stats().failure.is_none());
        disk.close().unwrap();
    });
}

#[test]
fn what_could_not_be_read_before_it_was_overwritten_is_an_error_for_who_is_behind() {
    each(|bench, spec, backend, weather| {
        let disk = open(bench, &spec, backend, &weather);
        weather.set(Io::Read, 0, Fault::Error(libc::EIO));
        for replica in 0..2 {
            disk.submit(replica, &read(0, 8, 8)).unwrap();
            disk.submit(replica, &write(1, 8, 1, 8)).unwrap();
            disk.submit(replica, &flush(2)).unwrap();
        }
        for request in [read(0, 8, 8), write(1, 8, 1, 8), flush(2)] {
            disk.release(request);
        }
        while !disk
            .due(0)
            .contains(&done(2, Waiting::Flush, BlockStatus::Ok))
        {
            bench.notices.wait("flush", |n| matches!(n, Notice::Due(_)));
        }
        weather.clear();
        disk.submit(2, &read(0, 8, 8)).unwrap();
        let why = disk.take(2, 0).unwrap_err();
        assert!(why.contains("could not read"), "{why}");
        // The write has made it readable for those who are past it.
        pass(&disk, 2, &read(3, 8, 8));
        assert_eq!(fetch(&disk, 0, 3), [1; 4096]);
        disk.close().unwrap();
    });
}

/// A real file system that is full, where we may mount one.
#[test]
fn a_small_tmpfs_is_full() {
    let bench = Bench::new(512);
    let mount = bench.directory.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "none"])
        .arg(&mount)
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("no tmpfs here: not tested");
        return;
    }
    for backend in backends() {
        let path = mount.join("disk");
        create(&path, 8 << 20).unwrap();
        let mut spec = bench.spec(1);
        (spec.path, spec.bytes) = (path.clone(), 8 << 20);
        let disk = bench.open(spec, backend);
        for seq in 0..32 {
            pass(&disk, 1, &write(seq, seq * 64, 1, 64));
        }
        pass(&disk, 1, &flush(32));
        let (cause, stop) = failed(&bench);
        assert!(stop && cause.contains("No space"), "{cause}");
        assert!(disk.due(0).is_empty());
        assert!(disk.close().is_err());
        drop(disk);
        std::fs::remove_file(&path).unwrap();
    }
    let unmounted = std::process::Command::new("umount").arg(&mount).status();
    assert!(unmounted.unwrap().success());
}
