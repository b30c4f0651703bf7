//! Disks: every type of request, its limits, and what the disk says of itself.

use super::disk_driver::*;
use super::driver::{BUFFERS, Guest};
use crate::transport::register::{
    CONFIG, DEVICE_FEATURES, DRIVER_FEATURES, DRIVER_FEATURES_SEL, STATUS,
};
use crate::*;
use proptest::prelude::*;
use quorate_abi::map::{MMIO_BASE, MMIO_STRIDE, SLOT_BLOCK, SLOT_CONSOLE, SLOT_NET};
use quorate_abi::sync::{WAIT_FOREVER, WAIT_NONE, offset, op};
use std::collections::BTreeMap;

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

#[test]
fn the_disk_says_its_serial() {
    for (id, expected) in [
        ("serial", *b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        (
            "a serial of more than twenty bytes",
            *b"a serial of more tha",
        ),
    ] {
        let mut disk = with(&DiskConfig {
            id: id.into(),
            ..config(true)
        });
        let status = disk.ask(GET_ID, 0, &[(DATA, 20, true)]);
        assert_eq!(disk.collect(), []);
        assert_eq!(disk.status(status), OK);
        assert_eq!(disk.reap(), Some((0, 21)));
        assert_eq!(disk.guest.get(DATA, 20), expected);
    }
}

#[test]
fn discards_and_zeroes_are_outputs_and_answered_at_once() {
    let mut disk = machine();
    let answers = [
        disk.segment(DISCARD, 1, 2, 0),
        disk.segment(WRITE_ZEROES, 3, 61, 0),
        disk.segment(WRITE_ZEROES, 0, 64, 1),
    ];
    let (sector, sectors) = (1, 2);
    let zeroes = |sector, sectors, unmap| BlockOp::WriteZeroes {
        sector,
        sectors,
        unmap,
    };
    assert_eq!(
        disk.collect(),
        [
            request(0, BlockOp::Discard { sector, sectors }),
            request(1, zeroes(3, 61, false)),
            request(2, zeroes(0, 64, true)),
        ]
    );
    assert_eq!(answers.map(|at| disk.status(at)), [OK; 3]);
    let used: Vec<_> = std::iter::from_fn(|| disk.reap()).collect();
    assert_eq!(used, [(0, 1), (3, 1), (6, 1)]);
}

#[test]
fn header_and_status_may_share_buffers_with_the_data() {
    let mut disk = machine();
    let data = pattern(512, 1);
    disk.guest
        .put(HEADERS, &[&header(OUT, 2)[..], &data].concat());
    let chain = [
        (HEADERS, 7, false),
        (HEADERS + 7, 521, false),
        (DATA, 1, true),
    ];
    disk.guest.post(&mut disk.queue, &chain);
    disk.guest.put(HEADERS + 0x1000, &header(IN, 2));
    let chain = [
        (HEADERS + 0x1000, 16, false),
        (DATA + 8, 513, true),
        (0, 0, true),
    ];
    disk.guest.post(&mut disk.queue, &chain);
    let read = BlockOp::Read {
        sector: 2,
        bytes: 512,
    };
    let write = BlockOp::Write {
        sector: 2,
        data: data.clone(),
    };
    assert_eq!(disk.collect(), [request(0, write), request(1, read)]);
    let mut reads = Data([((0, 1), data.clone())].into());
    disk.complete(1, Waiting::Read, BlockStatus::Ok, &mut reads)
        .unwrap();
    assert_eq!(disk.guest.get(DATA + 8, 513), [&data[..], &[OK]].concat());
    let used: Vec<_> = std::iter::from_fn(|| disk.reap()).collect();
    assert_eq!(used, [(0, 1), (3, 513)]);
}

#[test]
fn what_the_disk_cannot_do_is_an_error_of_the_request() {
    let read_only = || with(&config(true));
    let read = |sector: u64, bytes: u32| {
        machine().refused(|disk| disk.ask(IN, sector, &[(DATA, bytes, true)]))
    };
    let write = |machine: Machine, sector: u64, bytes: u32| {
        machine.refused(|disk| disk.ask(OUT, sector, &[(DATA, bytes, false)]))
    };
    for (sector, bytes) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX >> 9, 512),
        (0, 511),
        (0, 513),
        (0, 0),
    ] {
        assert_eq!(read(sector, bytes), IOERR, "read {bytes} at {sector}");
        assert_eq!(
            write(machine(), sector, bytes),
            IOERR,
            "write {bytes} at {sector}"
        );
    }
    assert_eq!(write(read_only(), 0, 512), IOERR);
    assert_eq!(
        read_only().refused(|disk| disk.segment(DISCARD, 0, 1, 0)),
        UNSUPP
    );
    assert_eq!(
        read_only().refused(|disk| disk.segment(WRITE_ZEROES, 0, 1, 0)),
        UNSUPP
    );
    for kind in [2, 3, 7, 14, 15, u32::MAX] {
        assert_eq!(machine().refused(|disk| disk.ask(kind, 0, &[])), UNSUPP);
        assert_eq!(
            machine().refused(|disk| disk.ask(kind, 0, &[(DATA, 99, true)])),
            UNSUPP
        );
    }
    let large = || {
        with(&DiskConfig {
            bytes: MAX_DISK_BYTES,
            ..config(false)
        })
    };
    for kind in [DISCARD, WRITE_ZEROES] {
        let zero = |machine: Machine, sector: u64, sectors: u32, flags: u32| {
            machine.refused(|disk| disk.segment(kind, sector, sectors, flags))
        };
        assert_eq!(zero(machine(), 0, 0, 0), IOERR);
        assert_eq!(zero(machine(), 0, SECTORS as u32 + 1, 0), IOERR);
        assert_eq!(zero(machine(), u64::MAX, 1, 0), IOERR);
        assert_eq!(zero(large(), 0, MAX_ZERO_SECTORS + 1, 0), IOERR);
        assert_eq!(zero(machine(), 0, 1, 2), UNSUPP);
        let mut most = large();
        most.segment(
            kind,
            (MAX_DISK_BYTES >> 9) - u64::from(MAX_ZERO_SECTORS),
            MAX_ZERO_SECTORS,
            0,
        );
        assert_eq!(most.collect().len(), 1);
    }
    // Discard has no unmap flag (5.2.6.2).
    assert_eq!(
        machine().refused(|disk| disk.segment(DISCARD, 0, 1, 1)),
        UNSUPP
    );
}

#[test]
fn r10_data_beyond_the_bound_wait_for_the_next_boundary_which_comes_soon() {
    let mut disk = with(&DiskConfig {
        bytes: 64 << 20,
        ..config(false)
    });
    disk.guest.set_sync(offset::WAIT_UNTIL, WAIT_FOREVER);
    let most = BLOCK_BYTES_PER_BOUNDARY / u64::from(MAX_IO_BYTES);
    for number in 0..most + 1 {
        disk.ask(OUT, number * 2048, &[(DATA, MAX_IO_BYTES, false)]);
    }
    disk.ask(FLUSH, 0, &[]);
    let collected = disk.guest.devices.collect(&disk.guest.mem).unwrap();
    assert_eq!(blocks(collected.outputs).len() as u64, most);
    assert_eq!(collected.request.wait_until_ns, WAIT_NONE);
    assert_eq!(std::iter::from_fn(|| disk.reap()).count() as u64, most);

    let collected = disk.guest.devices.collect(&disk.guest.mem).unwrap();
    let sectors: Vec<_> = blocks(collected.outputs)
        .into_iter()
        .map(|request| (request.seq, request.op.waits().is_some()))
        .collect();
    assert_eq!(sectors, [(most, false), (most + 1, true)], "in order");
    assert_eq!(collected.request.wait_until_ns, WAIT_FOREVER);
}

#[test]
fn r10_reads_beyond_the_bound_wait_for_those_in_flight() {
    let mut disk = with(&DiskConfig {
        bytes: 64 << 20,
        ..config(false)
    });
    disk.guest.set_sync(offset::WAIT_UNTIL, WAIT_FOREVER);
    let most = BLOCK_READ_BYTES_IN_FLIGHT / u64::from(MAX_IO_BYTES);
    for number in 0..most {
        disk.ask(IN, number, &[(DATA, MAX_IO_BYTES, true)]);
    }
    let small = |disk: &mut Machine| disk.ask(IN, 3, &[(DATA, 512, true)]);
    assert_eq!(disk.collect().len() as u64, most);
    small(&mut disk);
    disk.ask(FLUSH, 0, &[]);
    let collected = disk.guest.devices.collect(&disk.guest.mem).unwrap();
    assert_eq!(blocks(collected.outputs), []);
    assert_eq!(
        collected.request.wait_until_ns, WAIT_FOREVER,
        "a completion will end the wait"
    );
    let data = &mut Data::default();
    disk.complete(2, Waiting::Read, BlockStatus::IoError, data)
        .unwrap();
    let seqs: Vec<_> = disk.collect().iter().map(|request| request.seq).collect();
    assert_eq!(seqs, [most, most + 1]);
}

#[test]
fn outputs_come_in_the_order_of_the_devices() {
    let mut guest = Guest::with_disks(&[config(false), config(true), config(false)]);
    let mut queues = Vec::new();
    for slot in [SLOT_BLOCK + 2, SLOT_BLOCK, SLOT_BLOCK + 1] {
        queues.push(guest.start(slot, F_FLUSH, &[8]).remove(0));
    }
    queues.push(guest.start(SLOT_CONSOLE, 0, &[8, 8]).remove(1));
    queues.push(guest.start(SLOT_NET, 0, &[8, 8]).remove(1));
    for queue in &mut queues[..3] {
        guest.put(BUFFERS, &header(FLUSH, 0));
        guest.post(queue, &[(BUFFERS, 16, false), (BUFFERS + 16, 1, true)]);
    }
    guest.post(&mut queues[3], &[(BUFFERS, 1, false)]);
    guest.post(&mut queues[4], &[(DATA, 12 + 60, false)]);
    guest.request(op::EXIT);
    let order: Vec<_> = guest
        .collect()
        .unwrap()
        .into_iter()
        .map(|output| match output {
            Output::Frame(_) => 100,
            Output::Console(_) => 101,
            Output::Block(request) => request.disk,
            Output::Fingerprint { .. } => 102,
            Output::Exit { .. } => 103,
        })
        .collect();
    assert_eq!(order, [100, 101, 0, 1, 2, 102, 103]);
}

#[test]
fn disks_have_a_configuration() {
    let size = MAX_DISK_BYTES;
    let guest = Guest::with_disks(&[
        DiskConfig {
            bytes: size,
            ..config(false)
        },
        config(true),
    ]);
    let field = |slot: u64, at: u64, len: usize| {
        let mut data = [0; 8];
        let addr = MMIO_BASE + slot * MMIO_STRIDE + CONFIG + at;
        guest.devices.mmio_read(addr, &mut data[..len]);
        u64::from_le_bytes(data)
    };
    // RO is bit 5, discard and write-zeroes are 13 and 14.
    let common = 1 << 1 | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 10;
    for (slot, bytes, features, ranges) in [
        (SLOT_BLOCK, size, common | 1 << 13 | 1 << 14, 1),
        (SLOT_BLOCK + 1, config(true).bytes, common | 1 << 5, 0),
    ] {
        assert_eq!(guest.read(slot, 8), 2, "device type");
        assert_eq!(guest.read(slot, DEVICE_FEATURES), features);
        let zero_sectors = ranges * u64::from(MAX_ZERO_SECTORS);
        let fields = [
            (0, 8, bytes / 512),
            (8, 4, BLOCK_SIZE_MAX.into()),
            (12, 4, 254),
            (20, 4, 512),
            (24, 1, 3), // 4096 bytes in a physical block.
            (25, 1, 0),
            (26, 2, 8),
            (28, 4, 0),
            (34, 2, 1),
            (36, 4, zero_sectors),
            (40, 4, ranges),
            (44, 4, ranges * 8),
            (48, 4, zero_sectors),
            (52, 4, ranges),
            (56, 1, ranges),
            (60, 8, 0),
        ];
        for (at, len, expected) in fields {
            assert_eq!(field(slot, at, len), expected, "field at {at}");
        }
    }
    assert_eq!(guest.read(SLOT_BLOCK + 2, 0), 0, "no such disk");
}

#[test]
fn r4_a_driver_that_knows_no_flush_is_refused() {
    for (read_only, status) in [(false, 0x3), (true, 0xb)] {
        let mut guest = Guest::with_disks(&[config(read_only)]);
        for value in [0, 1, 3] {
            guest.write(SLOT_BLOCK, STATUS, value).unwrap();
        }
        guest.write(SLOT_BLOCK, DRIVER_FEATURES_SEL, 1).unwrap();
        guest.write(SLOT_BLOCK, DRIVER_FEATURES, 1).unwrap();
        guest.write(SLOT_BLOCK, STATUS, 0xb).unwrap();
        assert_eq!(guest.read(SLOT_BLOCK, STATUS), status);
    }
}

#[test]
fn disks_of_impossible_sizes_or_numbers_are_refused() {
    let guest = Guest::new();
    let new = |disks: Vec<DiskConfig>| {
        let config = DeviceConfig {
            input_seed: [0; 32],
            sync_page: vm_memory::GuestAddress(0x1000),
            disks,
        };
        DeviceSet::new(&config, &guest.mem).map(|_| ())
    };
    for bytes in [0, 511, 513, MAX_DISK_BYTES + 512, u64::MAX] {
        let refused = new(vec![
            config(false),
            DiskConfig {
                bytes,
                ..config(true)
            },
        ]);
        let fault = DiskFault::Size { bytes };
        assert_eq!(refused, Err(DeviceError::Disk { disk: 1, fault }));
    }
    assert_eq!(new(vec![config(false); 8]), Ok(()));
    let fault = DiskFault::TooMany(8);
    let refused = new(vec![config(false); 9]);
    assert_eq!(refused, Err(DeviceError::Disk { disk: 8, fault }));
}

/// One request of the model's guest: what, where, how many sectors, and how many boundaries later it completes.
type Step = (u8, u64, u64, usize);

proptest! {
    /// R6, with a disk that keeps everything in order: a guest reads what it wrote before, whenever reads complete, and
    /// never what it wrote after.
    #[test]
    fn r6_reads_see_the_writes_before_them(
        steps in prop::collection::vec((0_u8..5, 0..SECTORS, 1_u64..9, 0_usize..4), 1..60),
        per_boundary in 1_usize..5,
    ) {
        let mut disk = machine();
        let mut expected = vec![0; (SECTORS * SECTOR) as usize];
        let mut store = expected.clone();
        let mut data = Data::default();
        // What the guest waits for, by descriptor: place of the status, of the data, and what it should read.
        let mut waiting: BTreeMap<u32, (u64, u64, Vec<u8>)> = BTreeMap::new();
        let mut due: BTreeMap<usize, Vec<Completion>> = BTreeMap::new();
        let mut delays: std::collections::VecDeque<usize> = Default::default();
        let mut boundary = 0;
        let mut rest: &[Step] = &steps;
        while !rest.is_empty() || !waiting.is_empty() {
            let (now, later) = rest.split_at(per_boundary.min(rest.len()).min((16 - waiting.len().min(16)) / 2));
            rest = later;
            for &(kind, sector, sectors, delay) in now {
                let sectors = sectors.min(SECTORS - sector);
                let range = (sector * SECTOR) as usize..((sector + sectors) * SECTOR) as usize;
                let bytes = range.len() as u32;
                let at = DATA + 0x1000 + u64::from(disk.queue.next_head()) * 0x1000;
                let head = u32::from(disk.queue.next_head());
                let (status, reads) = match kind {
                    0 | 1 => {
                        let fill = pattern(bytes as usize, boundary as u8 ^ sector as u8);
                        disk.guest.put(at, &fill);
                        expected[range].copy_from_slice(&fill);
                        (disk.ask(OUT, sector, &[(at, bytes, false)]), Vec::new())
                    }
                    2 => {
                        expected[range].fill(0);
                        (disk.segment(WRITE_ZEROES, sector, sectors as u32, 1), Vec::new())
                    }
                    3 => {
                        delays.push_back(delay);
                        (disk.ask(IN, sector, &[(at, bytes, true)]), expected[range].to_vec())
                    }
                    _ => {
                        delays.push_back(delay);
                        (disk.ask(FLUSH, 0, &[]), Vec::new())
                    }
                };
                waiting.insert(head, (status, at, reads));
            }
            for request in disk.collect() {
                let at = |sector: u64| (sector * SECTOR) as usize;
                let kind = match request.op {
                    BlockOp::Write { sector, data } => {
                        store[at(sector)..][..data.len()].copy_from_slice(&data);
                        continue;
                    }
                    BlockOp::WriteZeroes { sector, sectors, .. } => {
                        store[at(sector)..][..at(sectors.into())].fill(0);
                        continue;
                    }
                    BlockOp::Read { sector, bytes } => {
                        let bytes = store[at(sector)..][..bytes as usize].to_vec();
                        data.0.insert((0, request.seq), bytes);
                        Waiting::Read
                    }
                    BlockOp::Flush => Waiting::Flush,
                    BlockOp::Discard { .. } => unreachable!(),
                };
                let delay = delays.pop_front().unwrap();
                due.entry(boundary + delay).or_default().push(Completion {
                    disk: 0,
                    seq: request.seq,
                    kind,
                    status: BlockStatus::Ok,
                });
            }
            let completions = due.remove(&boundary).unwrap_or_default();
            let entry = Entry { completions, ..Entry::default() };
            disk.guest.deliver_with(entry, &mut data).unwrap();
            while let Some((head, _)) = disk.reap() {
                let (status, at, reads) = waiting.remove(&head).unwrap();
                prop_assert_eq!(disk.status(status), OK);
                prop_assert!(disk.guest.get(at, reads.len()) == reads, "read at descriptor {}", head);
            }
            boundary += 1;
            prop_assert!(boundary < 1000, "nothing comes back any more");
        }
        prop_assert!(store == expected);
        prop_assert!(data.0.is_empty());
    }
}
