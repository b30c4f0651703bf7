#![allow(clippy::unwrap_used, clippy::expect_used)]

mod basics;
mod bounds;
mod free;

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use quorate_devices::{BlockOp, BlockRequest, BlockStatus, DiskPosition, SECTOR, Waiting};
use quorate_voter::relaxed::{UnconfirmedPolicy, Voters};

use super::*;
use crate::store::OnError;
use crate::sync::lock;

/// Size of the disks here, sectors: not a whole number of blocks.
pub const SECTORS: u64 = 64 * 8 + 3;

/// What a disk says, and a way to wait for it.
#[derive(Default)]
pub struct Ear {
    notices: Mutex<Vec<RelaxedNotice>>,
    more: Condvar,
}

impl Ear {
    /// Waits until `look` finds what it wants; every notice is a reason to look again.
    pub fn until<T>(&self, mut look: impl FnMut(&[RelaxedNotice]) -> Option<T>) -> T {
        let mut notices = lock(&self.notices);
        loop {
            if let Some(found) = look(&notices) {
                return found;
            }
            let (more, timeout) = self
                .more
                .wait_timeout(notices, Duration::from_secs(20))
                .unwrap();
            notices = more;
            assert!(!timeout.timed_out(), "nothing came: {notices:?}");
        }
    }

    /// Lets whoever waits look again.
    pub fn poke(&self) {
        // Under the lock, or somebody may have looked and not begun to wait.
        let _notices = lock(&self.notices);
        self.more.notify_all();
    }

    pub fn heard(&self) -> Vec<RelaxedNotice> {
        lock(&self.notices).clone()
    }
}

pub struct Rig {
    pub disk: Arc<RelaxedDisk>,
    pub ear: Arc<Ear>,
    pub file: tempfile::NamedTempFile,
    next: Vec<Mutex<u64>>,
}

pub fn spec(path: &Path, mode: Mode) -> RelaxedSpec {
    RelaxedSpec {
        name: "data".to_owned(),
        path: path.to_owned(),
        bytes: SECTORS * SECTOR,
        read_only: false,
        on_error: OnError::Stop,
        mode,
        sync: false,
        patience: Duration::from_millis(200),
        bounds: RelaxedBounds::default(),
    }
}

pub const HOLD: Mode = Mode::Vote(UnconfirmedPolicy::Hold);
pub const REPORT: Mode = Mode::Vote(UnconfirmedPolicy::Report);

/// A disk whose sector i holds i everywhere.
pub fn rig(replicas: usize, mode: Mode, change: impl FnOnce(&mut RelaxedSpec)) -> Rig {
    let file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..SECTORS)
        .flat_map(|i| [i as u8; SECTOR as usize])
        .collect();
    std::fs::write(file.path(), content).unwrap();
    let mut spec = spec(file.path(), mode);
    change(&mut spec);
    open(replicas, spec, file)
}

pub fn open(replicas: usize, spec: RelaxedSpec, file: tempfile::NamedTempFile) -> Rig {
    let voters = Voters::majority(replicas, [7; 32]).unwrap();
    let ear = Arc::new(Ear::default());
    let theirs = ear.clone();
    let notify: NotifyRelaxed = Arc::new(move |notice| {
        lock(&theirs.notices).push(notice);
        theirs.more.notify_all();
    });
    let disk = RelaxedDisk::open(0, spec, &voters, notify).unwrap();
    Rig {
        disk,
        ear,
        file,
        next: (0..replicas).map(|_| Mutex::new(0)).collect(),
    }
}

impl Rig {
    pub fn ask(&self, replica: usize, op: BlockOp) -> Result<u64, crate::store::StoreError> {
        let mut next = lock(&self.next[replica]);
        let seq = *next;
        *next += 1;
        let request = BlockRequest { disk: 0, seq, op };
        self.disk.submit(replica, &request).map(|()| seq)
    }

    pub fn next(&self, replica: usize) -> u64 {
        *lock(&self.next[replica])
    }

    pub fn rewind(&self, replica: usize, next: u64) {
        *lock(&self.next[replica]) = next;
    }

    /// Fills sectors with a byte.
    pub fn write(&self, replica: usize, sector: u64, count: u64, byte: u8) {
        let data = vec![byte; (count * SECTOR) as usize];
        self.ask(replica, BlockOp::Write { sector, data }).unwrap();
    }

    /// The first byte of each sector as the replica sees it.
    pub fn read(&self, replica: usize, sector: u64, count: u64) -> Vec<u8> {
        let bytes = (count * SECTOR) as u32;
        let seq = self.ask(replica, BlockOp::Read { sector, bytes }).unwrap();
        let status = self.wait(replica, seq);
        assert_eq!(status, BlockStatus::Ok);
        let data = self.disk.take(replica, seq).unwrap();
        for sector in data.chunks(SECTOR as usize) {
            assert!(sector.iter().all(|b| *b == sector[0]), "a torn sector");
        }
        data.chunks(SECTOR as usize).map(|s| s[0]).collect()
    }

    pub fn flush(&self, replica: usize) -> u64 {
        self.ask(replica, BlockOp::Flush).unwrap()
    }

    pub fn done(&self, replica: usize, seq: u64) -> Option<BlockStatus> {
        let due = self.disk.due(replica);
        due.iter().find(|c| c.seq == seq).map(|c| c.status)
    }

    /// Waits for a completion; that of a flush is delivered.
    pub fn wait(&self, replica: usize, seq: u64) -> BlockStatus {
        let status = self.ear.until(|_| self.done(replica, seq));
        let flush: Vec<_> = self.disk.due(replica);
        let flush: Vec<_> = flush
            .into_iter()
            .filter(|c| c.seq == seq && c.kind != Waiting::Read)
            .collect();
        self.disk.delivered(replica, &flush);
        status
    }

    /// The first byte of each sector in the base file.
    pub fn base(&self, sector: u64, count: u64) -> Vec<u8> {
        let all = std::fs::read(self.file.path()).unwrap();
        (sector..sector + count)
            .map(|s| all[(s * SECTOR) as usize])
            .collect()
    }

    /// Waits until a replica is stopped.
    pub fn stopped(&self) -> (usize, bool, String) {
        self.ear.until(|heard| {
            heard.iter().find_map(|notice| match notice {
                RelaxedNotice::Stopped {
                    replica,
                    outvoted,
                    cause,
                    ..
                } => Some((*replica, *outvoted, cause.clone())),
                _ => None,
            })
        })
    }

    pub fn position(&self, replica: usize) -> DiskPosition {
        DiskPosition {
            disk: 0,
            next: self.next(replica),
            outstanding: Vec::new(),
        }
    }
}
