//! A mock driver of a disk, for the tests of the block device.

use super::driver::{BUFFERS, Buffer, Guest, Queue};
use crate::*;
use quorate_abi::map::SLOT_BLOCK;
use std::collections::BTreeMap;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;
/// In a status byte that nobody has written yet.
pub const UNTOUCHED: u8 = 0xaa;

pub const F_FLUSH: u64 = 1 << 9;
pub const SECTORS: u64 = 64;

/// Headers and statuses lie here, buffers behind.
pub const HEADERS: u64 = BUFFERS;
pub const DATA: u64 = BUFFERS + 0x1_0000;

pub fn config(read_only: bool) -> DiskConfig {
    DiskConfig {
        bytes: SECTORS * SECTOR,
        read_only,
        id: "serial".into(),
        sync: false,
    }
}

/// A guest with one disk and its driver.
pub struct Machine {
    pub guest: Guest,
    pub queue: Queue,
}

pub fn machine() -> Machine {
    with(&config(false))
}

pub fn with(config: &DiskConfig) -> Machine {
    let mut guest = Guest::with_disks(std::slice::from_ref(config));
    let queue = guest.start(SLOT_BLOCK, F_FLUSH, &[64]).remove(0);
    Machine { guest, queue }
}

/// Where the data of completed reads come from.
#[derive(Default)]
pub struct Data(pub BTreeMap<(u8, u64), Vec<u8>>);

impl DiskReads for Data {
    fn take(&mut self, disk: u8, seq: u64) -> Result<Vec<u8>, String> {
        self.0
            .remove(&(disk, seq))
            .ok_or_else(|| "not there".into())
    }
}

impl Machine {
    /// Puts a request with this header into the queue, `data` between header and status. Returns where its status will be.
    pub fn ask(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u64 {
        let at = HEADERS + u64::from(self.queue.next_head()) * 32;
        self.guest.put(at, &header(kind, sector));
        self.guest.put(at + 16, &[UNTOUCHED]);
        let chain = [&[(at, 16, false)], data, &[(at + 16, 1, true)]].concat();
        self.guest.post(&mut self.queue, &chain);
        at + 16
    }

    pub fn segment(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u64 {
        let mut segment = sector.to_le_bytes().to_vec();
        segment.extend(sectors.to_le_bytes());
        segment.extend(flags.to_le_bytes());
        let at = DATA + u64::from(self.queue.next_head()) * 32;
        self.guest.put(at, &segment);
        self.ask(kind, 0, &[(at, 16, false)])
    }

    pub fn status(&self, at: u64) -> u8 {
        self.guest.get(at, 1)[0]
    }

    pub fn reap(&mut self) -> Option<(u32, u32)> {
        self.guest.reap(&mut self.queue)
    }

    /// What the disk asks for at this boundary.
    pub fn collect(&mut self) -> Vec<BlockRequest> {
        blocks(self.guest.collect().unwrap())
    }

    pub fn complete(
        &mut self,
        seq: u64,
        kind: Waiting,
        status: BlockStatus,
        data: &mut Data,
    ) -> Result<(), DeviceError> {
        let completions = vec![Completion {
            disk: 0,
            seq,
            kind,
            status,
        }];
        let entry = Entry {
            completions,
            ..Entry::default()
        };
        self.guest.deliver_with(entry, data)
    }

    /// What the disk says of one request that must not give an output.
    pub fn refused(mut self, ask: impl FnOnce(&mut Self) -> u64) -> u8 {
        let status = ask(&mut self);
        assert_eq!(self.collect(), [], "no output");
        assert!(self.reap().is_some());
        self.status(status)
    }

    pub fn fault(mut self, ask: impl FnOnce(&mut Self)) -> QueueFault {
        ask(&mut self);
        match self.guest.collect() {
            Err(DeviceError::Queue {
                device: "block",
                fault,
                ..
            }) => fault,
            other => panic!("{other:?}"),
        }
    }
}

pub fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

pub fn blocks(outputs: Vec<Output>) -> Vec<BlockRequest> {
    let blocks = outputs.into_iter().filter_map(|output| match output {
        Output::Block(request) => Some(request),
        _ => None,
    });
    blocks.collect()
}

pub fn request(seq: u64, op: BlockOp) -> BlockRequest {
    BlockRequest { disk: 0, seq, op }
}

pub fn pattern(len: usize, fill: u8) -> Vec<u8> {
    (0..len)
        .map(|index| fill.wrapping_add(index as u8) ^ (index >> 8) as u8)
        .collect()
}
