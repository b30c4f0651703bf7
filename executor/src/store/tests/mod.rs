//! Tests of the store as a whole.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod basics;
mod bounds;
mod faults;
mod model;
mod opening;
mod race;
mod rejoin;

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use quorate_devices::{BlockOp, BlockRequest, BlockStatus, Completion, Waiting};

use super::*;

/// A directory with a disk file, and what the disk told.
pub struct Bench {
    pub directory: tempfile::TempDir,
    pub notices: Arc<Notices>,
}

#[derive(Default)]
pub struct Notices {
    list: Mutex<Vec<Notice>>,
    more: Condvar,
}

impl Notices {
    /// Waits for a notice that passes.
    pub fn wait(&self, what: &str, pass: impl Fn(&Notice) -> bool) -> Notice {
        let mut list = self.list.lock().unwrap();
        loop {
            if let Some(at) = list.iter().position(&pass) {
                return list.remove(at);
            }
            let (next, timeout) = self
                .more
                .wait_timeout(list, std::time::Duration::from_secs(60))
                .unwrap();
            assert!(!timeout.timed_out(), "no notice: {what}");
            list = next;
        }
    }

    pub fn all(&self) -> Vec<Notice> {
        self.list.lock().unwrap().clone()
    }
}

impl Bench {
    pub fn new(bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        create(&directory.path().join("disk"), bytes).unwrap();
        Self {
            directory,
            notices: Arc::default(),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    pub fn spec(&self, replicas: usize) -> DiskSpec {
        DiskSpec {
            name: "data".to_owned(),
            path: self.path(),
            bytes: std::fs::metadata(self.path()).unwrap().len(),
            read_only: false,
            on_error: OnError::Stop,
            replicas,
            recoverable: true,
            bounds: Bounds::default(),
        }
    }

    pub fn notify(&self) -> Arc<dyn Fn(Notice) + Send + Sync> {
        let notices = self.notices.clone();
        Arc::new(move |notice| {
            notices.list.lock().unwrap().push(notice);
            notices.more.notify_all();
        })
    }

    pub fn open(&self, spec: DiskSpec, backend: Backend) -> Arc<Disk> {
        Disk::open(0, spec, backend, self.notify()).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }
}

pub fn request(seq: u64, op: BlockOp) -> BlockRequest {
    BlockRequest { disk: 0, seq, op }
}

pub fn write(seq: u64, sector: u64, byte: u8, sectors: usize) -> BlockRequest {
    let data = vec![byte; sectors * 512];
    request(seq, BlockOp::Write { sector, data })
}

pub fn read(seq: u64, sector: u64, sectors: u32) -> BlockRequest {
    let bytes = sectors * 512;
    request(seq, BlockOp::Read { sector, bytes })
}

pub fn flush(seq: u64) -> BlockRequest {
    request(seq, BlockOp::Flush)
}

pub fn done(seq: u64, kind: Waiting, status: BlockStatus) -> Completion {
    Completion {
        disk: 0,
        seq,
        kind,
        status,
    }
}

/// Waits until something is due for the replica, and gives it.
pub fn due(disk: &Disk, replica: usize, notices: &Notices) -> Vec<Completion> {
    while !disk.has_due(replica) {
        notices.wait(
            "due",
            |n| matches!(n, Notice::Due(mask) if mask & (1 << replica) != 0),
        );
    }
    disk.due(replica)
}

/// All replicas ask for it, then it is released.
pub fn pass(disk: &Disk, replicas: usize, request: &BlockRequest) {
    for replica in 0..replicas {
        disk.submit(replica, request).unwrap();
    }
    disk.release(request.clone());
}

/// Waits until it is so.
pub fn wait_for(what: &str, is: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !is() {
        assert!(
            start.elapsed() < std::time::Duration::from_secs(60),
            "{what}"
        );
        std::thread::yield_now();
    }
}

/// Takes and forgets a read.
pub fn fetch(disk: &Disk, replica: usize, seq: u64) -> Vec<u8> {
    let data = disk.take(replica, seq).unwrap();
    disk.delivered(replica, &[done(seq, Waiting::Read, BlockStatus::Ok)]);
    data
}

/// The backends of this machine.
pub fn backends() -> Vec<Backend> {
    // io_uring may be forbidden here; then there is one backend less to test.
    let mut all = vec![Backend::Threads];
    let bench = Bench::new(4096);
    let quiet: Arc<dyn Fn(Notice) + Send + Sync> = Arc::new(|_| ());
    match Disk::open(0, bench.spec(1), Backend::Uring, quiet) {
        Ok(_) => all.push(Backend::Uring),
        Err(error) => eprintln!("without io_uring: {error}"),
    }
    all
}
