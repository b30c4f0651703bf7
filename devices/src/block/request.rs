//! From a descriptor chain to what it asks of the disk: the only place that believes a request's header (R9).

use crate::chain::{Chain, within};
use crate::disk::{MAX_IO_BYTES, MAX_ZERO_SECTORS, SECTOR};
use crate::error::QueueFault;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestMemory;

/// Bytes of a request's header: type, reserved, sector (5.2.6).
pub(super) const HEADER: usize = 16;
/// Bytes of the answer to GET_ID.
pub(super) const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;
/// Bytes of `struct virtio_blk_discard_write_zeroes`: sector, count, flags.
const SEGMENT: usize = 16;

/// What a disk allows.
#[derive(Debug)]
pub(super) struct Limits {
    pub sectors: u64,
    pub read_only: bool,
    /// Writes wait until they are called complete.
    pub sync: bool,
}

/// What a chain asks for, checked against the disk's [`Limits`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Nothing that can be done: this status is the answer.
    Refused(u32),
    Id,
    Read {
        sector: u64,
        bytes: u32,
    },
    /// The data follow the header.
    Write {
        sector: u64,
        bytes: u32,
    },
    Flush,
    Discard {
        sector: u64,
        sectors: u32,
    },
    WriteZeroes {
        sector: u64,
        sectors: u32,
        unmap: bool,
    },
}

/// Parses one chain. Buffers may be cut anywhere (2.7.4): the first 16 readable bytes are the header, the last writable one is
/// the status.
///
/// # Errors
///
/// If header or status have no place, or there are other buffers than this type of request has. What a correct driver may
/// ask by mistake of its user (a range outside the disk, a write to a read-only one) is [`Asked::Refused`] instead.
pub(super) fn parse<M: GuestMemory>(
    chain: &Chain,
    mem: &M,
    limits: &Limits,
) -> Result<Asked, QueueFault> {
    const REFUSED: Asked = Asked::Refused(VIRTIO_BLK_S_IOERR);
    const HEADER_ONLY: u64 = HEADER as u64;
    const WITH_SEGMENT: u64 = (HEADER + SEGMENT) as u64;
    const WITH_ID: u64 = ID_BYTES as u64 + 1;
    let (readable, writable) = chain.lengths();
    within(readable, HEADER_ONLY, HEADER_ONLY + u64::from(MAX_IO_BYTES))?;
    within(writable, 1, u64::from(MAX_IO_BYTES) + 1)?;
    let mut reader = chain.reader(mem);
    let mut header = [0; HEADER];
    reader.read(&mut header)?;
    let kind = word(&header, 0);
    let sector = double_word(&header, 8);
    // Both fit: checked above.
    let (data_out, data_in) = ((readable - HEADER_ONLY) as u32, (writable - 1) as u32);
    Ok(match kind {
        VIRTIO_BLK_T_IN => {
            within(readable, HEADER_ONLY, HEADER_ONLY)?;
            if limits.holds(sector, data_in) {
                let bytes = data_in;
                Asked::Read { sector, bytes }
            } else {
                REFUSED
            }
        }
        VIRTIO_BLK_T_OUT => {
            within(writable, 1, 1)?;
            if limits.holds(sector, data_out) && !limits.read_only {
                let bytes = data_out;
                Asked::Write { sector, bytes }
            } else {
                REFUSED
            }
        }
        VIRTIO_BLK_T_FLUSH => {
            within(readable, HEADER_ONLY, HEADER_ONLY)?;
            within(writable, 1, 1)?;
            Asked::Flush
        }
        VIRTIO_BLK_T_GET_ID => {
            within(readable, HEADER_ONLY, HEADER_ONLY)?;
            within(writable, WITH_ID, WITH_ID)?;
            Asked::Id
        }
        // Not offered for a read-only disk.
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if !limits.read_only => {
            within(readable, WITH_SEGMENT, WITH_SEGMENT)?;
            within(writable, 1, 1)?;
            let mut segment = [0; SEGMENT];
            reader.read(&mut segment)?;
            limits.range(kind, &segment)
        }
        _ => Asked::Refused(VIRTIO_BLK_S_UNSUPP),
    })
}

impl Limits {
    /// Whether whole sectors, and at least one, lie within the disk.
    fn holds(&self, sector: u64, bytes: u32) -> bool {
        let sectors = u64::from(bytes) / SECTOR;
        u64::from(bytes).is_multiple_of(SECTOR)
            && sectors > 0
            && sector
                .checked_add(sectors)
                .is_some_and(|end| end <= self.sectors)
    }

    /// A discard or write-zeroes of one segment.
    fn range(&self, kind: u32, segment: &[u8; SEGMENT]) -> Asked {
        let sector = double_word(segment, 0);
        let sectors = word(segment, 8);
        let flags = word(segment, 12);
        let known = if kind == VIRTIO_BLK_T_DISCARD {
            0 // "Unmap" is for write-zeroes only (5.2.6.2).
        } else {
            VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
        };
        let inside = sector
            .checked_add(sectors.into())
            .is_some_and(|end| end <= self.sectors);
        if flags & !known != 0 {
            Asked::Refused(VIRTIO_BLK_S_UNSUPP)
        } else if !inside || sectors == 0 || sectors > MAX_ZERO_SECTORS {
            Asked::Refused(VIRTIO_BLK_S_IOERR)
        } else if kind == VIRTIO_BLK_T_DISCARD {
            Asked::Discard { sector, sectors }
        } else {
            Asked::WriteZeroes {
                sector,
                sectors,
                unmap: flags != 0,
            }
        }
    }
}

/// A little-endian field; `at` is a constant that lies within.
fn word(bytes: &[u8; 16], at: usize) -> u32 {
    double_word(bytes, at & !7)
        .checked_shr(8 * (at as u32 & 4))
        .unwrap_or(0) as u32
}

/// As [`word`], 64 bits.
fn double_word(bytes: &[u8; 16], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}
