//! Disks: every type of request, its limits, and what hostile or restarted drivers do.

use super::driver::{BUFFERS, Buffer, Guest, MEMORY, Queue};
use crate::transport::register::{CONFIG, DEVICE_FEATURES, QUEUE_READY, STATUS};
use crate::*;
use proptest::prelude::*;
use quorate_abi::map::{MMIO_BASE, MMIO_STRIDE, SLOT_BLOCK};
use quorate_abi::sync::{WAIT_FOREVER, WAIT_NONE, offset};
use std::collections::BTreeMap;
use vm_memory::{Bytes, GuestAddress};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// In a status byte that nobody has written yet.
const UNTOUCHED: u8 = 0xaa;

const F_FLUSH: u64 = 1 << 9;
const SECTORS: u64 = 64;

/// Headers and statuses lie here, buffers behind.
const HEADERS: u64 = BUFFERS;
const DATA: u64 = BUFFERS + 0x1_0000;

fn config(read_only: bool) -> DiskConfig {
    DiskConfig {
        bytes: SECTORS * SECTOR,
        read_only,
        id: "serial".into(),
    }
}

/// A guest with one disk and its driver.
struct Machine {
    guest: Guest,
    queue: Queue,
}

fn machine() -> Machine {
    with(&config(false))
}

fn with(config: &DiskConfig) -> Machine {
    let mut guest = Guest::with_disks(std::slice::from_ref(config));
    let queue = guest.start(SLOT_BLOCK, F_FLUSH, &[64]).remove(0);
    Machine { guest, queue }
}

/// Where the data of completed reads come from.
#[derive(Default)]
struct Data(BTreeMap<(u8, u64), Vec<u8>>);

impl DiskReads for Data {
    fn take(&mut self, disk: u8, seq: u64) -> Result<Vec<u8>, String> {
        self.0
            .remove(&(disk, seq))
            .ok_or_else(|| "not there".into())
    }
}

impl Machine {
    /// Puts a request with this header into the queue, `data` between header and status. Returns where its status will be.
    fn ask(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u64 {
        let at = HEADERS + u64::from(self.queue.next_head()) * 32;
        self.guest.put(at, &header(kind, sector));
        self.guest.put(at + 16, &[UNTOUCHED]);
        let chain = [&[(at, 16, false)], data, &[(at + 16, 1, true)]].concat();
        self.guest.post(&mut self.queue, &chain);
        at + 16
    }

    fn segment(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u64 {
        let mut segment = sector.to_le_bytes().to_vec();
        segment.extend(sectors.to_le_bytes());
        segment.extend(flags.to_le_bytes());
        let at = DATA + u64::from(self.queue.next_head()) * 32;
        self.guest.put(at, &segment);
        self.ask(kind, 0, &[(at, 16, false)])
    }

    fn status(&self, at: u64) -> u8 {
        self.guest.get(at, 1)[0]
    }

    fn reap(&mut self) -> Option<(u32, u32)> {
        self.guest.reap(&mut self.queue)
    }

    /// What the disk asks for at this boundary.
    fn collect(&mut self) -> Vec<BlockRequest> {
        blocks(self.guest.collect().unwrap())
    }

    fn complete(
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
    fn refused(mut self, ask: impl FnOnce(&mut Self) -> u64) -> u8 {
        let status = ask(&mut self);
        assert_eq!(self.collect(), [], "no output");
        assert!(self.reap().is_some());
        self.status(status)
    }

    fn fault(mut self, ask: impl FnOnce(&mut Self)) -> QueueFault {
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

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

fn blocks(outputs: Vec<Output>) -> Vec<BlockRequest> {
    let blocks = outputs.into_iter().filter_map(|output| match output {
        Output::Block(request) => Some(request),
        _ => None,
    });
    blocks.collect()
}

fn request(seq: u64, op: BlockOp) -> BlockRequest {
    BlockRequest { disk: 0, seq, op }
}

fn pattern(len: usize, fill: u8) -> Vec<u8> {
    (0..len)
        .map(|index| fill.wrapping_add(index as u8) ^ (index >> 8) as u8)
        .collect()
}

#[test]
fn a_write_is_an_output_and_answered_at_once() {
    let mut disk = machine();
    let data = pattern(1024, 3);
    disk.guest.put(DATA, &data);
    let status = disk.ask(OUT, 5, &[(DATA, 100, false), (DATA + 100, 924, false)]);
    let op = BlockOp::Write { sector: 5, data };
    assert_eq!(disk.collect(), [request(0, op)]);
    assert_eq!(disk.status(status), OK);
    assert_eq!(disk.reap(), Some((0, 1)));
    assert_eq!(disk.collect(), []);
}

#[test]
fn a_read_waits_for_its_completion() {
    let mut disk = machine();
    let status = disk.ask(IN, 7, &[(DATA, 1000, true), (DATA + 0x1000, 24, true)]);
    let op = BlockOp::Read {
        sector: 7,
        bytes: 1024,
    };
    assert_eq!(disk.collect(), [request(0, op)]);
    disk.guest.deliver(Entry::default()).unwrap();
    assert_eq!(disk.reap(), None);
    assert_eq!(disk.status(status), UNTOUCHED);
    let bytes = pattern(1024, 9);
    let mut data = Data([((0, 0), bytes.clone())].into());
    disk.complete(0, Waiting::Read, BlockStatus::Ok, &mut data)
        .unwrap();
    assert!(data.0.is_empty());
    assert_eq!(disk.reap(), Some((0, 1025)));
    assert_eq!(disk.status(status), OK);
    let got = [
        disk.guest.get(DATA, 1000),
        disk.guest.get(DATA + 0x1000, 24),
    ]
    .concat();
    assert_eq!(got, bytes);
    // Once and not again.
    disk.complete(0, Waiting::Read, BlockStatus::Ok, &mut data)
        .unwrap();
    assert_eq!(disk.reap(), None);
}

#[test]
fn r4_a_flush_waits_for_its_completion() {
    let mut disk = machine();
    let first = disk.ask(FLUSH, 0, &[]);
    let second = disk.ask(FLUSH, 0, &[]);
    let flushes = [request(0, BlockOp::Flush), request(1, BlockOp::Flush)];
    assert_eq!(disk.collect(), flushes);
    assert_eq!((disk.status(first), disk.reap()), (UNTOUCHED, None));
    let data = &mut Data::default();
    // Not in the order in which they were made, and one fails.
    disk.complete(1, Waiting::Flush, BlockStatus::IoError, data)
        .unwrap();
    assert_eq!(disk.reap(), Some((2, 1)));
    assert_eq!(disk.status(second), IOERR);
    assert_eq!(disk.status(first), UNTOUCHED);
    disk.complete(0, Waiting::Flush, BlockStatus::Ok, data)
        .unwrap();
    assert_eq!(disk.reap(), Some((0, 1)));
    assert_eq!(disk.status(first), OK);
}
