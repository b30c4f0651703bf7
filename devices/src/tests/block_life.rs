//! Disks: drivers that restart, are restored, or are told what they did not ask; and hostile ones (R9).

use super::disk_driver::*;
use super::driver::{BUFFERS, Buffer, Guest, INDIRECT, MEMORY, SYNC_PAGE};
use crate::transport::register::{QUEUE_READY, STATUS};
use crate::*;
use proptest::prelude::*;
use quorate_abi::map::SLOT_BLOCK;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn a_completion_of_something_else_is_ignored() {
    let mut disk = machine();
    disk.ask(IN, 0, &[(DATA, 512, true)]);
    disk.ask(FLUSH, 0, &[]);
    disk.ask(OUT, 0, &[(DATA, 512, false)]);
    disk.collect();
    disk.reap().unwrap();
    let before = disk.guest.devices.save().blocks;
    let data = &mut Data::default();
    for (seq, kind) in [
        (0, Waiting::Flush),
        (1, Waiting::Read),
        (2, Waiting::Read),
        (2, Waiting::Flush),
        (3, Waiting::Flush),
        (u64::MAX, Waiting::Read),
    ] {
        disk.complete(seq, kind, BlockStatus::Ok, data).unwrap();
    }
    let completions = vec![Completion {
        disk: 1,
        seq: 1,
        kind: Waiting::Flush,
        status: BlockStatus::Ok,
    }];
    let entry = Entry {
        completions,
        ..Entry::default()
    };
    disk.guest.deliver(entry).unwrap();
    assert_eq!(disk.reap(), None);
    assert_eq!(disk.guest.devices.save().blocks, before);
}

#[test]
fn data_of_a_read_that_cannot_be_had_stop_the_replica() {
    let read = |data: &mut Data, status| {
        let mut disk = machine();
        disk.ask(IN, 0, &[(DATA, 512, true)]);
        disk.collect();
        disk.complete(0, Waiting::Read, status, data)
    };
    let disk = |fault| Err(DeviceError::Disk { disk: 0, fault });
    let missing = DiskFault::Data {
        seq: 0,
        why: "not there".into(),
    };
    assert_eq!(read(&mut Data::default(), BlockStatus::Ok), disk(missing));
    assert_eq!(read(&mut Data::default(), BlockStatus::IoError), Ok(()));
    let short = DiskFault::DataLength {
        seq: 0,
        bytes: 511,
        asked: 512,
    };
    let mut data = Data([((0, 0), vec![0; 511])].into());
    assert_eq!(read(&mut data, BlockStatus::Ok), disk(short));
}

/// The ways in which a driver can lose what it has in flight.
#[test]
fn a_driver_that_starts_again_gets_no_answer_to_old_requests() {
    for at in [STATUS, QUEUE_READY] {
        let mut disk = machine();
        disk.ask(IN, 0, &[(DATA, 512, true)]);
        disk.ask(FLUSH, 0, &[]);
        disk.collect();
        disk.guest.write(SLOT_BLOCK, at, 0).unwrap();
        if at == STATUS {
            // Nothing is lost, either, if one completes while there is no driver.
            let mut data = Data([((0, 0), vec![1; 512])].into());
            disk.complete(0, Waiting::Read, BlockStatus::Ok, &mut data)
                .unwrap();
            assert!(data.0.is_empty(), "taken, so that nobody keeps it");
            assert_eq!(disk.guest.get(DATA, 512), [0; 512]);
        }
        disk.guest.put(disk.queue.base, &[0; 0x8000]);
        disk.queue = if at == STATUS {
            disk.guest.start(SLOT_BLOCK, F_FLUSH, &[64]).remove(0)
        } else {
            disk.guest.start_queue(SLOT_BLOCK, 0, 64)
        };
        // The same descriptors and places of the status, but other numbers.
        let new = [disk.ask(FLUSH, 0, &[]), disk.ask(FLUSH, 0, &[])];
        assert_eq!(
            disk.collect(),
            [request(2, BlockOp::Flush), request(3, BlockOp::Flush)]
        );
        let data = &mut Data::default();
        disk.complete(1, Waiting::Flush, BlockStatus::Ok, data)
            .unwrap();
        assert_eq!(disk.reap(), None);
        disk.complete(2, Waiting::Flush, BlockStatus::Ok, data)
            .unwrap();
        assert_eq!(new.map(|at| disk.status(at)), [OK, UNTOUCHED]);
        assert_eq!(disk.reap(), Some((0, 1)));
    }
}

/// FAILED, which a driver sets when it gives up, ends all work on the queue (2.1).
#[test]
fn a_driver_that_gave_up_gets_no_answer() {
    let mut disk = machine();
    let status = disk.ask(FLUSH, 0, &[]);
    assert_eq!(disk.collect().len(), 1);
    disk.guest.write(SLOT_BLOCK, STATUS, 0x8f).unwrap();
    let data = &mut Data::default();
    disk.complete(0, Waiting::Flush, BlockStatus::Ok, data)
        .unwrap();
    assert_eq!((disk.status(status), disk.reap()), (UNTOUCHED, None));
    assert_eq!(disk.guest.devices.save().blocks[0].in_flight, []);
}

#[test]
fn r10_what_a_driver_left_behind_counts() {
    let mut disk = machine();
    for round in 0..5 {
        for _ in 0..20 {
            disk.ask(FLUSH, 0, &[]);
        }
        let in_flight = disk.guest.devices.save().blocks[0].in_flight.len();
        let room = 64 - in_flight;
        assert_eq!(disk.collect().len(), room.min(20), "round {round}");
        disk.guest.write(SLOT_BLOCK, STATUS, 0).unwrap();
        disk.guest.put(disk.queue.base, &[0; 0x8000]);
        disk.queue = disk.guest.start(SLOT_BLOCK, F_FLUSH, &[64]).remove(0);
    }
    // They go as they complete, and the driver of now gets its turn.
    let status = disk.ask(FLUSH, 0, &[]);
    assert_eq!(disk.collect(), []);
    let data = &mut Data::default();
    disk.complete(63, Waiting::Flush, BlockStatus::IoError, data)
        .unwrap();
    assert_eq!(disk.collect(), [request(64, BlockOp::Flush)]);
    disk.complete(64, Waiting::Flush, BlockStatus::Ok, data)
        .unwrap();
    assert_eq!(disk.status(status), OK);
}

/// A disk with requests in flight: answered, waiting, and left behind.
fn busy() -> Machine {
    let mut disk = machine();
    disk.ask(FLUSH, 0, &[]);
    disk.collect();
    disk.guest.write(SLOT_BLOCK, QUEUE_READY, 0).unwrap();
    disk.guest.put(disk.queue.base, &[0; 0x8000]);
    disk.queue = disk.guest.start(SLOT_BLOCK, F_FLUSH, &[64]).remove(0);
    disk.ask(IN, 4, &[(DATA, 512, true), (DATA + 512, 512, true)]);
    disk.ask(OUT, 4, &[(DATA, 512, false)]);
    disk.ask(FLUSH, 0, &[]);
    assert_eq!(disk.collect().len(), 3);
    disk
}

#[test]
fn a_saved_disk_goes_on_where_it_was() {
    let mut disk = busy();
    let state = disk.guest.devices.save();
    assert_eq!(state.blocks[0].in_flight.len(), 3);
    let json = serde_json::to_string(&state).unwrap();
    let read: DeviceSetState = serde_json::from_str(&json).unwrap();
    assert_eq!(read, state);
    let unknown = json.replace("\"next_seq\"", "\"later\":1,\"next_seq\"");
    assert!(serde_json::from_str::<DeviceSetState>(&unknown).is_err());

    let mut copy = Guest::with_disks(&[config(false)]);
    copy.put(0, &disk.guest.get(0, MEMORY));
    copy.devices.restore(&copy.mem, &read).unwrap();
    assert_eq!(copy.devices.save(), state);
    let mut copy = Machine {
        guest: copy,
        queue: disk.queue.clone(),
    };
    let after = [&mut disk, &mut copy].map(|disk| {
        let mut data = Data([((0, 1), pattern(1024, 8))].into());
        for (seq, kind) in [(3, Waiting::Flush), (0, Waiting::Flush), (1, Waiting::Read)] {
            disk.complete(seq, kind, BlockStatus::Ok, &mut data)
                .unwrap();
        }
        disk.ask(OUT, 9, &[(DATA, 512, false)]);
        let used: Vec<_> = std::iter::from_fn(|| disk.reap()).collect();
        // The flush of the driver before has no answer; the write was answered before the state was saved.
        assert_eq!(used, [(4, 1), (7, 1), (0, 1025)]);
        (
            disk.collect(),
            used,
            disk.guest.devices.save(),
            disk.guest.get(0, MEMORY),
        )
    });
    assert!(after[0] == after[1]);
    assert_eq!(after[0].0[0].seq, 4);
}

#[test]
fn an_invalid_saved_disk_is_an_error() {
    let good = busy().guest.devices.save();
    let refuse = |what: &str, change: &dyn Fn(&mut BlockState)| {
        let mut state = good.clone();
        change(&mut state.blocks[0]);
        let mut fresh = Guest::with_disks(&[config(false)]);
        assert!(fresh.devices.restore(&fresh.mem, &state).is_err(), "{what}");
    };
    refuse("descending", &|state| state.in_flight.reverse());
    refuse("twice", &|state| state.in_flight[1].seq = 0);
    refuse("of the future", &|state| state.next_seq = 3);
    refuse("a flush with bytes", &|state| {
        state.in_flight[0].bytes = 512
    });
    refuse("half a sector", &|state| state.in_flight[1].bytes = 1000);
    refuse("nothing", &|state| state.in_flight[1].bytes = 0);
    refuse("other buffers", &|state| {
        let reply = state.in_flight[1].reply.as_mut().unwrap();
        reply.buffers.pop();
    });
    refuse("too many", &|state| {
        let one = state.in_flight[0].clone();
        let many = 0..u64::from(BLOCK_QUEUE_SIZE) + 1;
        state.in_flight = many
            .map(|seq| InFlightState { seq, ..one.clone() })
            .collect();
        state.next_seq = 1000;
    });
    refuse("too much", &|state| {
        let mut one = state.in_flight[1].clone();
        one.bytes = MAX_IO_BYTES;
        one.reply = None;
        state.in_flight = (0..17)
            .map(|seq| InFlightState { seq, ..one.clone() })
            .collect();
        state.next_seq = 1000;
    });
    refuse("no FLUSH accepted", &|state| {
        state.transport.driver_features &= !F_FLUSH
    });
    let mut fresh = Guest::new();
    assert_eq!(
        fresh.devices.restore(&fresh.mem, &good),
        Err(RestoreError::Disks { saved: 1, here: 0 })
    );
}

#[test]
fn r9_chains_that_no_driver_makes_stop_the_replica() {
    const HEADER: Buffer = (HEADERS, 16, false);
    const STATUS: Buffer = (HEADERS + 16, 1, true);
    let fault = |kind: u32, chain: &[Buffer]| {
        machine().fault(|disk| {
            disk.guest.put(HEADERS, &header(kind, 0));
            disk.guest.post(&mut disk.queue, chain);
        })
    };
    let too_long = MAX_IO_BYTES + 1;
    let lengths: &[(&str, u32, &[Buffer])] = &[
        ("no header", IN, &[(HEADERS, 15, false), STATUS]),
        ("no readable buffer", IN, &[STATUS]),
        ("no status", OUT, &[HEADER]),
        ("an empty status", OUT, &[HEADER, (DATA, 0, true)]),
        (
            "data to read and to write",
            IN,
            &[HEADER, (DATA, 512, false), STATUS],
        ),
        (
            "data to write and to read",
            OUT,
            &[HEADER, (DATA, 512, false), (DATA, 2, true)],
        ),
        ("a long read", IN, &[HEADER, (DATA, too_long, true), STATUS]),
        (
            "a long write",
            OUT,
            &[HEADER, (DATA, too_long, false), STATUS],
        ),
        (
            "a huge write",
            OUT,
            &[HEADER, (DATA, u32::MAX - 99, false), STATUS],
        ),
        ("a huge unknown", 99, &[HEADER, (DATA, u32::MAX - 99, true)]),
        (
            "a flush with data",
            FLUSH,
            &[HEADER, (DATA, 1, false), STATUS],
        ),
        (
            "a flush with room",
            FLUSH,
            &[HEADER, (DATA, 1, true), STATUS],
        ),
        (
            "a short serial",
            GET_ID,
            &[HEADER, (DATA, 19, true), STATUS],
        ),
        ("a long serial", GET_ID, &[HEADER, (DATA, 21, true), STATUS]),
        ("a discard of nothing", DISCARD, &[HEADER, STATUS]),
        (
            "a discard of two ranges",
            DISCARD,
            &[HEADER, (DATA, 32, false), STATUS],
        ),
        (
            "half a range",
            WRITE_ZEROES,
            &[HEADER, (DATA, 8, false), STATUS],
        ),
    ];
    for &(name, kind, chain) in lengths {
        let fault = fault(kind, chain);
        assert!(
            matches!(fault, QueueFault::Length { .. }),
            "{name}: {fault}"
        );
    }
    let outside = MEMORY as u64 - 100;
    let addresses: &[(&str, u32, &[Buffer])] = &[
        ("header", IN, &[(outside + 90, 16, false), STATUS]),
        ("write", OUT, &[HEADER, (outside, 512, false), STATUS]),
        (
            "status",
            OUT,
            &[HEADER, (DATA, 512, false), (u64::MAX, 1, true)],
        ),
        (
            "serial",
            GET_ID,
            &[HEADER, (outside + 90, 20, true), STATUS],
        ),
        (
            "range",
            DISCARD,
            &[HEADER, (outside + 90, 16, false), STATUS],
        ),
    ];
    for &(name, kind, chain) in addresses {
        assert_eq!(fault(kind, chain), QueueFault::Address, "{name}");
    }
    let chain = [(DATA, 1, true), (HEADERS, 16, false)];
    assert_eq!(fault(FLUSH, &chain), QueueFault::Direction);

    // Where a read goes is looked at when it is complete.
    let mut disk = machine();
    disk.ask(IN, 0, &[(outside, 512, true)]);
    assert_eq!(disk.collect().len(), 1);
    let mut data = Data([((0, 0), vec![0; 512])].into());
    let done = disk.complete(0, Waiting::Read, BlockStatus::Ok, &mut data);
    let (device, queue, fault) = ("block", 0, QueueFault::Address);
    assert_eq!(
        done,
        Err(DeviceError::Queue {
            device,
            queue,
            fault
        })
    );
}

/// The same chain again and again, which the ring's own check of what is on offer does not see.
#[test]
fn r10_more_requests_than_the_queue_has_room_for_are_an_error() {
    let mut disk = machine();
    disk.ask(FLUSH, 0, &[]);
    for _ in 0..63 {
        disk.guest.offer(&mut disk.queue, 0);
    }
    assert_eq!(disk.collect().len(), 64);
    let fault = disk.fault(|disk| disk.guest.offer(&mut disk.queue, 0));
    assert_eq!(fault, QueueFault::Unanswered);
}

proptest! {
    #![proptest_config(super::cases())]

    /// Chains of a hostile driver: any header, any buffers, nearly right ones more often than not, also after errors, after
    /// which a real machine would be stopped.
    #[test]
    fn garbage_never_panics(
        headers in prop::collection::vec(
            (prop_oneof![Just(0_u32), 0_u32..16, any::<u32>()], prop_oneof![0_u64..70, any::<u64>()]),
            4,
        ),
        descriptors in prop::collection::vec(
            (
                prop_oneof![3 => 0_u64..4, 1 => Just(MEMORY as u64 - 16), 1 => any::<u64>()],
                prop_oneof![3 => Just(16_u32), 2 => Just(1), 2 => (1_u32..5).prop_map(|n| n * 512), 1 => any::<u32>()],
                0_u16..INDIRECT * 2,
                0_u16..17,
            ),
            16,
        ),
        rounds in prop::collection::vec((prop::collection::vec(0_u16..17, 0..6), 0_u64..12, any::<bool>()), 1..6),
        read_only: bool,
    ) {
        let mut disk = with(&config(read_only));
        disk.guest.start(SLOT_BLOCK, F_FLUSH, &[16]);
        disk.queue.size = 16;
        for (at, &(kind, sector)) in (0..).zip(&headers) {
            disk.guest.put(BUFFERS + at * 16, &header(kind, sector));
        }
        for (index, &(at, len, flags, next)) in (0..).zip(&descriptors) {
            let at = if at < 4 { BUFFERS + at * 16 } else { at };
            disk.guest.descriptor(&disk.queue, index, at, len, flags, next);
        }
        for (heads, seq, reset) in rounds {
            for head in heads {
                disk.guest.offer(&mut disk.queue, head);
            }
            let outputs = disk.guest.collect().map(blocks).unwrap_or_default();
            for request in &outputs {
                prop_assert!(!read_only || request.op.waits().is_some());
            }
            let completions = outputs
                .iter()
                .map(|request| request.seq)
                .chain([seq])
                .flat_map(|seq| [Waiting::Read, Waiting::Flush].map(|kind| Completion {
                    disk: 0,
                    seq,
                    kind,
                    status: if seq % 3 == 0 { BlockStatus::IoError } else { BlockStatus::Ok },
                }));
            let entry = Entry { completions: completions.collect(), ..Entry::default() };
            let mut data = Zeroes(outputs);
            let _ = disk.guest.deliver_with(entry, &mut data);
            let state = disk.guest.devices.save();
            prop_assert!(state.blocks[0].in_flight.len() <= 16);
            // What was saved can be restored, whatever the driver did.
            let same = DeviceConfig {
                input_seed: [0; 32],
                sync_page: GuestAddress(SYNC_PAGE),
                disks: vec![config(read_only)],
            };
            let mut copy = DeviceSet::new(&same, &disk.guest.mem).unwrap();
            prop_assert_eq!(copy.restore(&disk.guest.mem, &state), Ok(()));
            if reset {
                disk.guest.write(SLOT_BLOCK, STATUS, 0).unwrap();
                disk.guest.mem.write_obj(0_u16, GuestAddress(disk.queue.available() + 2)).unwrap();
                disk.queue = disk.guest.start(SLOT_BLOCK, F_FLUSH, &[16]).remove(0);
            }
        }
    }
}

/// Data for these reads: zeroes.
struct Zeroes(Vec<BlockRequest>);

impl DiskReads for Zeroes {
    fn take(&mut self, _: u8, seq: u64) -> Result<Vec<u8>, String> {
        let found = self.0.iter().find(|request| request.seq == seq);
        match found.map(|request| &request.op) {
            Some(BlockOp::Read { bytes, .. }) => Ok(vec![0; *bytes as usize]),
            other => Err(format!("{other:?}")),
        }
    }
}

/// A disk that is `sync`: writes stay in flight until they are called complete, whatever else is.
#[test]
fn writes_of_a_sync_disk_wait() {
    let mut disk = with(&DiskConfig {
        sync: true,
        ..config(false)
    });
    let data = &mut Data::default();
    let write = disk.ask(OUT, 3, &[(DATA, 512, false)]);
    let zero = disk.segment(WRITE_ZEROES, 8, 4, 0);
    let refused = disk.ask(OUT, SECTORS, &[(DATA, 512, false)]);
    let asked = disk.collect();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!(
        [write, zero, refused].map(|at| disk.status(at)),
        [UNTOUCHED, UNTOUCHED, IOERR]
    );
    // A flush of that number is none of its requests (R4, R9).
    disk.complete(0, Waiting::Flush, BlockStatus::Ok, data)
        .unwrap();
    assert_eq!(disk.status(write), UNTOUCHED);
    disk.complete(1, Waiting::Write, BlockStatus::IoError, data)
        .unwrap();
    disk.complete(0, Waiting::Write, BlockStatus::Ok, data)
        .unwrap();
    assert_eq!([write, zero].map(|at| disk.status(at)), [OK, IOERR]);
    disk.complete(0, Waiting::Write, BlockStatus::Ok, data)
        .unwrap();

    // On any other disk they are complete when they are taken.
    let mut disk = machine();
    let write = disk.ask(OUT, 3, &[(DATA, 512, false)]);
    disk.collect();
    assert_eq!(disk.status(write), OK);
}
