//! What becomes of a block request on the disk path of one replica's host: what it asks is changed before it is cast, what it is told
//! before it is delivered. The request's number stays, since the device counts without gaps.

use std::ops::Range;
use std::sync::Arc;

use quorate_devices::{BlockOp, BlockRequest, BlockStatus, Entry, Output, SECTOR, Waiting};

use crate::model::BlockFault;

use super::bits::{Hit, flip};
use super::metadata::Metadata;

/// Sectors of a block of the file systems that are mounted: misdirected writes go to the beginning of another.
const BLOCK_SECTORS: u64 = 8;

/// What is known of a disk before the trial.
#[derive(Clone, Debug)]
pub struct DiskFacts {
    /// Its size.
    pub bytes: u64,
    /// Where its file system's own blocks lie; none if it holds none that is understood.
    pub metadata: Option<Metadata>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Blocks {
    how: BlockFault,
    metadata: bool,
    pick: u64,
    disks: Arc<[DiskFacts]>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No request of the sort has come.
    Waiting,
    /// This read was asked for; its end is hit.
    Reading {
        disk: u8,
        seq: u64,
        start: u64,
    },
    Done,
}

impl Blocks {
    /// # Errors
    /// When no request can be of the sort that is meant.
    pub(super) fn new(
        how: BlockFault,
        metadata: bool,
        pick: u64,
        disks: Arc<[DiskFacts]>,
    ) -> Result<Self, String> {
        if disks.is_empty() {
            return Err("the appliance has no disk".to_owned());
        }
        if metadata && disks.iter().all(|disk| disk.metadata.is_none()) {
            return Err("no disk of the appliance holds an ext4 file system".to_owned());
        }
        Ok(Blocks {
            how,
            metadata,
            pick,
            disks,
            state: State::Waiting,
        })
    }

    pub(super) fn over(&self) -> bool {
        self.state == State::Done
    }

    /// Whether bytes of a disk are of the sort that is meant: the file system's own, or all others.
    fn meant(&self, disk: u8, bytes: &Range<u64>) -> bool {
        let facts = self.disks.get(usize::from(disk));
        let own = facts
            .and_then(|facts| facts.metadata.as_ref())
            .is_some_and(|metadata| metadata.touches(bytes));
        own == self.metadata
    }

    /// What the replica asks at a boundary. Answers when a write is hit.
    pub(super) fn outputs(&mut self, outputs: &mut [Output]) -> Option<Hit> {
        if self.state != State::Waiting {
            return None;
        }
        for output in outputs {
            let Output::Block(request) = output else {
                continue;
            };
            let (start, bytes, reads) = match &request.op {
                BlockOp::Read { sector, bytes } => (sector * SECTOR, u64::from(*bytes), true),
                BlockOp::Write { sector, data } => (sector * SECTOR, data.len() as u64, false),
                _ => continue,
            };
            let of_reads = matches!(self.how, BlockFault::ReadError | BlockFault::ReadCorrupt);
            if reads != of_reads || !self.meant(request.disk, &(start..start + bytes)) {
                continue;
            }
            if reads {
                self.state = State::Reading {
                    disk: request.disk,
                    seq: request.seq,
                    start,
                };
                return None;
            }
            self.state = State::Done;
            return Some(self.spoil(request));
        }
        None
    }

    /// The request is a write.
    fn spoil(&self, request: &mut BlockRequest) -> Hit {
        let BlockRequest { disk, seq, op } = request;
        let BlockOp::Write { sector, data } = op else {
            return self.hit(*disk, *seq, 0, "is no write".to_owned());
        };
        let start = *sector * SECTOR;
        let mut offset = start;
        let what = match self.how {
            BlockFault::Corrupt => match flip(data, self.pick) {
                Some((at, text)) => {
                    offset += at;
                    text
                }
                None => "has no byte that could be changed".to_owned(),
            },
            BlockFault::Torn => {
                // Whole sectors: a disk writes one or does not. Of one sector nothing is left.
                let keep = data.len() as u64 / SECTOR / 2 * SECTOR;
                let all = data.len();
                data.truncate(keep as usize);
                offset += keep;
                format!("is torn: {keep} of {all} bytes are written")
            }
            BlockFault::Misdirected => {
                let sectors = data.len() as u64 / SECTOR;
                let disk_sectors = self
                    .disks
                    .get(usize::from(*disk))
                    .map_or(0, |facts| facts.bytes / SECTOR);
                let places = (disk_sectors.saturating_sub(sectors) / BLOCK_SECTORS).max(1);
                let mut to = self.pick % places * BLOCK_SECTORS;
                if to == *sector {
                    to = (self.pick + 1) % places * BLOCK_SECTORS;
                }
                *sector = to;
                format!("goes to sector {to}")
            }
            _ => {
                data.clear();
                "is lost".to_owned()
            }
        };
        let what = format!("of sector {} {what}", start / SECTOR);
        self.hit(*disk, *seq, offset, what)
    }

    fn hit(&self, disk: u8, seq: u64, offset: u64, what: String) -> Hit {
        let sort = if self.metadata { "metadata" } else { "data" };
        let op = match self.how {
            BlockFault::ReadError | BlockFault::ReadCorrupt => "read",
            _ => "write",
        };
        Hit {
            text: format!("{op} {seq} of disk {disk} ({sort}) {what}"),
            offset,
        }
    }

    /// What the replica is told at a boundary. Answers with what it is told instead when a read is to fail.
    pub(super) fn entry(&mut self, entry: &Arc<Entry>) -> Option<(Arc<Entry>, Hit)> {
        let State::Reading { disk, seq, start } = self.state else {
            return None;
        };
        if self.how != BlockFault::ReadError {
            return None;
        }
        let at = entry
            .completions
            .iter()
            .position(|c| c.disk == disk && c.seq == seq && c.kind == Waiting::Read)?;
        let mut other = Entry::clone(entry);
        other.completions[at].status = BlockStatus::IoError;
        self.state = State::Done;
        let what = format!("of sector {} fails", start / SECTOR);
        Some((Arc::new(other), self.hit(disk, seq, start, what)))
    }

    /// The data of a read that the replica is given.
    pub(super) fn data(&mut self, disk: u8, seq: u64, data: &mut [u8]) -> Option<Hit> {
        let State::Reading {
            disk: of,
            seq: number,
            start,
        } = self.state
        else {
            return None;
        };
        if self.how != BlockFault::ReadCorrupt || (of, number) != (disk, seq) {
            return None;
        }
        self.state = State::Done;
        let (at, text) = flip(data, self.pick)?;
        let what = format!("of sector {} {text}", start / SECTOR);
        Some(self.hit(disk, seq, start + at, what))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use quorate_devices::Completion;

    fn disks() -> Arc<[DiskFacts]> {
        Arc::new([DiskFacts {
            bytes: 1 << 20,
            metadata: Some(Metadata::for_test(&[0..8192, 65536..69632])),
        }])
    }

    fn write(seq: u64, sector: u64, bytes: usize) -> Output {
        Output::Block(BlockRequest {
            disk: 0,
            seq,
            op: BlockOp::Write {
                sector,
                data: vec![7; bytes],
            },
        })
    }

    fn read(seq: u64, sector: u64) -> Output {
        Output::Block(BlockRequest {
            disk: 0,
            seq,
            op: BlockOp::Read {
                sector,
                bytes: 4096,
            },
        })
    }

    fn parts(output: &Output) -> (u64, u64, Vec<u8>) {
        match output {
            Output::Block(BlockRequest {
                seq,
                op: BlockOp::Write { sector, data },
                ..
            }) => (*seq, *sector, data.clone()),
            _ => panic!("no write"),
        }
    }

    #[test]
    fn one_write_of_the_sort_is_hit_and_keeps_its_number() {
        for how in [
            BlockFault::Corrupt,
            BlockFault::Torn,
            BlockFault::Lost,
            BlockFault::Misdirected,
        ] {
            for (metadata, victim) in [(true, 2), (false, 1)] {
                let mut blocks = Blocks::new(how, metadata, 12345, disks()).unwrap();
                let mut quiet = [read(0, 512), Output::Console(vec![1])];
                assert_eq!(blocks.outputs(&mut quiet), None);
                let before = [
                    read(0, 0),
                    write(1, 512, 4096),
                    write(2, 128, 4096),
                    write(3, 512, 512),
                ];
                let mut outputs = before.clone();
                let hit = blocks.outputs(&mut outputs).unwrap();
                assert!(blocks.over(), "{hit:?}");
                for (index, (one, other)) in before.iter().zip(&outputs).enumerate() {
                    assert_eq!(one == other, index != victim, "{how:?} {index}");
                }
                let (seq, sector, data) = parts(&outputs[victim]);
                let wrong = data.iter().filter(|byte| **byte != 7).count();
                let expected = match how {
                    BlockFault::Corrupt => (4096, 1, true),
                    BlockFault::Torn => (2048, 0, true),
                    BlockFault::Lost => (0, 0, true),
                    _ => (4096, 0, false),
                };
                let same = sector == parts(&before[victim]).1;
                assert_eq!((data.len(), wrong, same), expected);
                assert_eq!(seq, victim as u64);
                assert!(sector * SECTOR + data.len() as u64 <= 1 << 20);
                assert_eq!(blocks.outputs(&mut outputs), None, "only once");
            }
        }
    }

    #[test]
    fn a_read_is_hit_when_it_completes() {
        let completion = |seq, kind| Completion {
            disk: 0,
            seq,
            kind,
            status: BlockStatus::Ok,
        };
        let entry = Arc::new(Entry {
            completions: vec![
                completion(4, Waiting::Flush),
                completion(3, Waiting::Read),
                completion(5, Waiting::Read),
            ],
            ..Entry::default()
        });
        let mut fails = Blocks::new(BlockFault::ReadError, false, 1, disks()).unwrap();
        assert!(fails.entry(&entry).is_none(), "nothing was asked yet");
        assert!(fails.outputs(&mut [read(3, 512), read(5, 600)]).is_none());
        let (told, _) = fails.entry(&entry).unwrap();
        let status: Vec<_> = told.completions.iter().map(|c| c.status).collect();
        assert_eq!(
            status,
            [BlockStatus::Ok, BlockStatus::IoError, BlockStatus::Ok]
        );
        assert!(fails.over());

        let mut wrong = Blocks::new(BlockFault::ReadCorrupt, true, 77, disks()).unwrap();
        assert!(wrong.outputs(&mut [read(3, 512), read(5, 0)]).is_none());
        let mut data = vec![0; 4096];
        assert!(wrong.data(0, 3, &mut data).is_none());
        assert!(wrong.data(0, 5, &mut data).is_some());
        assert_eq!(data.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    }

    #[test]
    fn what_cannot_come_is_an_error_at_once() {
        let none: Arc<[DiskFacts]> = Arc::new([]);
        assert!(Blocks::new(BlockFault::Lost, false, 0, none).is_err());
        let raw: Arc<[DiskFacts]> = Arc::new([DiskFacts {
            bytes: 4096,
            metadata: None,
        }]);
        assert!(Blocks::new(BlockFault::Lost, true, 0, raw.clone()).is_err());
        assert!(Blocks::new(BlockFault::Lost, false, 0, raw).is_ok());
    }
}
