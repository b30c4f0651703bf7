//! What a guest asks of a disk, and what it is told: the vocabulary of the block device, which [`crate::Output`] and
//! [`crate::Entry`] carry.
//!
//! The requests of one disk are numbered by the device in the order in which the guest put them into its queue, over all boundaries.
//! This number, `seq`, is what the disk's versions are counted in: a read sees exactly the writes with lower numbers (R6).

use serde::{Deserialize, Serialize};

/// Bytes of a sector, the unit of all positions (virtio 1.3, 5.2).
pub const SECTOR: u64 = 512;
/// Largest number of bytes that one read or write may move (R10); a longer one is an error of the guest.
pub const MAX_IO_BYTES: u32 = 1 << 20;
/// Largest number of sectors that one discard or write-zeroes may cover, offered to the guest as the limit: 1 GiB.
pub const MAX_ZERO_SECTORS: u32 = 1 << 21;
/// Largest disk, bytes: 1 TiB.
pub const MAX_DISK_BYTES: u64 = 1 << 40;

/// What a machine is told of one of its disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Size in bytes: whole sectors, at most [`MAX_DISK_BYTES`].
    pub bytes: u64,
    /// Whether only reads are allowed.
    pub read_only: bool,
    /// What the guest gets as the disk's serial; what is over 20 bytes is cut off.
    pub id: String,
    /// Writes wait for a [`Completion`] too; else they are complete when they are taken. Never in lockstep.
    #[serde(default)]
    pub sync: bool,
}

/// One request for a disk: an output, compared byte for byte with those of the other replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRequest {
    /// Number of the disk, from 0.
    pub disk: u8,
    /// Number of the request on this disk, from 0 without gaps.
    pub seq: u64,
    /// What is asked.
    pub op: BlockOp,
}

/// What is asked of a disk. Ranges lie within the disk, and only reads and flushes reach a disk that is read-only: the device has
/// refused everything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockOp {
    /// Bytes from `sector` on, as of this request (R6). Completes by [`Completion`].
    Read {
        /// First sector.
        sector: u64,
        /// How many bytes: whole sectors, at most [`MAX_IO_BYTES`].
        bytes: u32,
    },
    /// These bytes to `sector` and on. The guest is told at the same boundary that it is done: the disk has a volatile
    /// cache, as real ones do, and only a flush promises more (R4).
    Write {
        /// First sector.
        sector: u64,
        /// Whole sectors, at most [`MAX_IO_BYTES`].
        data: Vec<u8>,
    },
    /// All requests with lower numbers to stable storage. Completes by [`Completion`] (R4).
    Flush,
    /// The guest no longer needs the range. It reads as zeroes afterwards, in all replicas alike. Done at once, as a write.
    Discard {
        /// First sector.
        sector: u64,
        /// How many sectors.
        sectors: u32,
    },
    /// Zeroes over the range. Done at once, as a write.
    WriteZeroes {
        /// First sector.
        sector: u64,
        /// How many sectors.
        sectors: u32,
        /// Whether the space may be given back to the host.
        unmap: bool,
    },
}

impl BlockOp {
    /// The [`Completion`] that the guest waits for, if any, on a disk that is not [`DiskConfig::sync`]. All others have been completed
    /// by the device already.
    #[must_use]
    pub fn waits(&self) -> Option<Waiting> {
        match self {
            Self::Read { .. } => Some(Waiting::Read),
            Self::Flush => Some(Waiting::Flush),
            Self::Write { .. } | Self::Discard { .. } | Self::WriteZeroes { .. } => None,
        }
    }
}

/// A request that is complete: an input, in the entry of the boundary at which the guest is told.
///
/// The entry is written by whichever replica leads, which may be one that has gone astray and will be outvoted. So a completion
/// means something only to a replica that has a request of this number **and kind** outstanding; device and store both ignore it
/// otherwise. A leader that calls its own read number 5 complete can then never complete the others' flush number 5 (R4, R9):
/// a flush is called complete only after a majority has asked for it, and each replica takes its own data for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completion {
    /// Number of the disk.
    pub disk: u8,
    /// Number of the request.
    pub seq: u64,
    /// What kind of request it was.
    pub kind: Waiting,
    /// How it ended.
    pub status: BlockStatus,
}

/// The kinds of requests that a guest waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Waiting {
    /// [`BlockOp::Read`]
    Read,
    /// [`BlockOp::Flush`]
    Flush,
    /// [`BlockOp::Write`] or [`BlockOp::WriteZeroes`], on a disk whose writes wait ([`DiskConfig::sync`]).
    Write,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockStatus {
    /// Done.
    Ok,
    /// Failed; a read gives no data, a flush promises nothing.
    IoError,
}

/// Where a replica stands on one of its disks: what its checkpoint says of it, and where it begins again there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPosition {
    /// Number of the disk.
    pub disk: u8,
    /// Number of the request that comes next.
    pub next: u64,
    /// Requests before it that the guest waits for, ascending.
    pub outstanding: Vec<Outstanding>,
}

impl DiskPosition {
    /// The first request whose read data may still be needed from here on.
    #[must_use]
    pub fn first(&self) -> u64 {
        let reads = self.outstanding.iter();
        let reads = reads.filter(|o| o.kind == Waiting::Read).map(|o| o.seq);
        reads.chain([self.next]).min().unwrap_or(self.next)
    }
}

/// A request that a guest waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outstanding {
    /// Its number.
    pub seq: u64,
    /// First sector of a read; 0 for a flush or a write.
    pub sector: u64,
    /// Bytes of a read; 0 for a flush or a write.
    pub bytes: u32,
    /// What it is.
    pub kind: Waiting,
}

/// Where the data of completed reads come from: each replica's own view of the disk as of its request (R6).
pub trait DiskReads {
    /// The data of a read that an entry calls complete with [`BlockStatus::Ok`]; exactly as long as was asked. May wait.
    ///
    /// # Errors
    ///
    /// If this replica's data cannot be had; says why. The replica is then to be stopped.
    fn take(&mut self, disk: u8, seq: u64) -> Result<Vec<u8>, String>;
}

/// No disks: for machines without any.
#[derive(Clone, Copy, Debug)]
pub struct NoDisks;

impl DiskReads for NoDisks {
    fn take(&mut self, disk: u8, seq: u64) -> Result<Vec<u8>, String> {
        Err(format!("read {seq} of disk {disk}: there is no disk"))
    }
}

/// Why bytes are no [`BlockRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the encoding of a block request")]
pub struct NotARequest;

/// Bytes that follow the data of a write (and are all there is of the others): operation, disk, sector, count, number.
pub(crate) const TRAILER: usize = 2 + 8 + 4 + 8;

impl BlockRequest {
    /// The request as bytes, for the vote. A write's data stay where they are, the rest goes behind them: nothing is copied.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        let (code, sector, count, mut bytes) = match self.op {
            BlockOp::Read { sector, bytes } => (0u8, sector, bytes, Vec::with_capacity(TRAILER)),
            // Fits: at most MAX_IO_BYTES.
            BlockOp::Write { sector, data } => (1, sector, data.len() as u32, data),
            BlockOp::Flush => (2, 0, 0, Vec::with_capacity(TRAILER)),
            BlockOp::Discard { sector, sectors } => {
                (3, sector, sectors, Vec::with_capacity(TRAILER))
            }
            BlockOp::WriteZeroes {
                sector,
                sectors,
                unmap,
            } => (
                if unmap { 5 } else { 4 },
                sector,
                sectors,
                Vec::with_capacity(TRAILER),
            ),
        };
        bytes.extend_from_slice(&[code, self.disk]);
        bytes.extend_from_slice(&sector.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&self.seq.to_le_bytes());
        bytes
    }

    /// The request that [`BlockRequest::into_bytes`] made these bytes of.
    ///
    /// # Errors
    ///
    /// If they are none.
    pub fn from_bytes(mut bytes: Vec<u8>) -> Result<Self, NotARequest> {
        let at = bytes.len().checked_sub(TRAILER).ok_or(NotARequest)?;
        let trailer: [u8; TRAILER] = bytes[at..].try_into().map_err(|_| NotARequest)?;
        bytes.truncate(at);
        let number = |from: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&trailer[from..from + 8]);
            u64::from_le_bytes(word)
        };
        let (sector, seq) = (number(2), number(14));
        let count = u32::from_le_bytes([trailer[10], trailer[11], trailer[12], trailer[13]]);
        let op = match trailer[0] {
            0 => BlockOp::Read {
                sector,
                bytes: count,
            },
            1 if bytes.len() == count as usize => BlockOp::Write {
                sector,
                data: std::mem::take(&mut bytes),
            },
            2 if sector == 0 && count == 0 => BlockOp::Flush,
            3 => BlockOp::Discard {
                sector,
                sectors: count,
            },
            code @ (4 | 5) => BlockOp::WriteZeroes {
                sector,
                sectors: count,
                unmap: code == 5,
            },
            _ => return Err(NotARequest),
        };
        if bytes.is_empty() {
            Ok(Self {
                disk: trailer[1],
                seq,
                op,
            })
        } else {
            Err(NotARequest)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn requests_survive_the_way_through_bytes() {
        let ops = [
            BlockOp::Read {
                sector: 7,
                bytes: 4096,
            },
            BlockOp::Write {
                sector: u64::MAX >> 9,
                data: vec![9; 1024],
            },
            BlockOp::Flush,
            BlockOp::Discard {
                sector: 1,
                sectors: 2,
            },
            BlockOp::WriteZeroes {
                sector: 3,
                sectors: 4,
                unmap: false,
            },
            BlockOp::WriteZeroes {
                sector: 3,
                sectors: 4,
                unmap: true,
            },
        ];
        for (seq, op) in (0..).zip(ops) {
            let request = BlockRequest { disk: 5, seq, op };
            let bytes = request.clone().into_bytes();
            assert_eq!(BlockRequest::from_bytes(bytes.clone()), Ok(request));
            assert_eq!(
                BlockRequest::from_bytes([&[0], &bytes[..]].concat()),
                Err(NotARequest)
            );
            assert_eq!(
                BlockRequest::from_bytes(bytes[1..].to_vec()),
                Err(NotARequest)
            );
        }
        assert_eq!(BlockRequest::from_bytes(Vec::new()), Err(NotARequest));
    }
}
