//! Data through the devices of a correct guest.

use super::driver::{BUFFERS, Guest, Queue, SYNC_PAGE};
use crate::transport::register::{INTERRUPT_ACK, INTERRUPT_STATUS, STATUS};
use crate::*;
use proptest::prelude::*;
use quorate_abi::map::{SLOT_CONSOLE, SLOT_ENTROPY, SLOT_NET};
use quorate_abi::net::MAX_FRAME;
use quorate_abi::sync::{MESSAGE_LEN, offset, op};
use vm_memory::{Bytes, GuestAddress};

const MRG_RXBUF: u64 = 1 << 15;

fn frame(len: usize, fill: u8) -> Vec<u8> {
    (0..len)
        .map(|index| fill.wrapping_add(index as u8))
        .collect()
}

fn entry(frames: &[Vec<u8>]) -> Entry {
    Entry {
        frames: frames.to_vec(),
        ..Entry::default()
    }
}

fn frames(outputs: Vec<Output>) -> Vec<Vec<u8>> {
    let frames = outputs.into_iter().filter_map(|output| match output {
        Output::Frame(frame) => Some(frame),
        _ => None,
    });
    frames.collect()
}

#[test]
fn a_fingerprint_is_there_at_every_boundary() {
    let mut guest = Guest::new();
    guest.set_sync(offset::FINGERPRINT, 3);
    guest.set_sync(offset::FINGERPRINT + 8, 4);
    guest.set_sync(offset::SYSCALLS, 5);
    guest.set_sync(offset::WAIT_UNTIL, 6);
    let collected = guest.devices.collect(&guest.mem).unwrap();
    assert_eq!(collected.request.wait_until_ns, 6);
    let fingerprint = Output::Fingerprint {
        digest: [3, 4],
        syscalls: 5,
    };
    assert_eq!(collected.outputs, std::slice::from_ref(&fingerprint));
    guest.set_sync(offset::ARG0, 256);
    guest.request(op::EXIT);
    assert_eq!(
        guest.collect().unwrap(),
        [fingerprint, Output::Exit { status: 256 }]
    );
}

#[test]
fn the_reply_is_written_and_time_is_monotonic() {
    let mut guest = Guest::new();
    for (index, (given, seen)) in (0..).zip([(5, 5), (3, 5), (9, 9)]) {
        guest
            .deliver(Entry {
                monotonic_ns: given,
                realtime_ns: 77,
                flags: 1,
                ..Entry::default()
            })
            .unwrap();
        assert_eq!(guest.sync(offset::BOUNDARY), index);
        assert_eq!(guest.sync(offset::MONOTONIC), seen);
        assert_eq!(guest.sync(offset::REALTIME), 77);
        assert_eq!(guest.sync(offset::FLAGS), 1);
    }
    assert_eq!(guest.devices.boundary(), 3);
}

#[test]
fn frames_go_out_in_order_and_their_buffers_come_back() {
    let mut guest = Guest::new();
    let mut queues = guest.start(SLOT_NET, 0, &[16, 16]);
    let tx = &mut queues[1];
    let sent = [frame(60, 1), frame(1514, 2), frame(MAX_FRAME, 3)];
    let mut at = BUFFERS;
    for frame in &sent {
        // Header and frame in three buffers that are cut in odd places.
        guest.put(at, &[0; 12]);
        guest.put(at + 12, frame);
        let len = frame.len() as u32 + 12;
        guest.post(
            tx,
            &[
                (at, 5, false),
                (at + 5, 20, false),
                (at + 25, len - 25, false),
            ],
        );
        at += 0x1_0000;
    }
    assert_eq!(frames(guest.collect().unwrap()), sent);
    assert_eq!(guest.read(SLOT_NET, INTERRUPT_STATUS), 1);
    guest.write(SLOT_NET, INTERRUPT_ACK, 1).unwrap();
    assert_eq!(guest.read(SLOT_NET, INTERRUPT_STATUS), 0);
    let tx = &mut queues[1];
    let used: Vec<_> = std::iter::from_fn(|| guest.reap(tx)).collect();
    assert_eq!(used, [(0, 0), (3, 0), (6, 0)]);
    assert!(frames(guest.collect().unwrap()).is_empty());
    assert_eq!(guest.devices.net_counters().sent, 3);
}

#[test]
fn r1_frames_wait_for_buffers_in_order() {
    let mut guest = Guest::new();
    guest.deliver(entry(&[frame(60, 1), frame(61, 2)])).unwrap(); // Before the driver is there.
    let mut queues = guest.start(SLOT_NET, 0, &[16, 16]);
    let rx = &mut queues[0];
    guest.post(rx, &[(BUFFERS, 12, true), (BUFFERS + 12, 100, true)]);
    assert_eq!(guest.reap(rx), None, "frames come only with an entry");
    guest.deliver(entry(&[frame(62, 3)])).unwrap();
    assert_eq!(guest.reap(rx), Some((0, 72)));
    assert_eq!(
        guest.get(BUFFERS, 72)[..12],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    );
    assert_eq!(guest.get(BUFFERS + 12, 60), frame(60, 1));
    assert_eq!(guest.reap(rx), None);
    for _ in 0..3 {
        guest.post(rx, &[(BUFFERS, 112, true)]);
    }
    guest.deliver(Entry::default()).unwrap();
    assert_eq!(guest.reap(rx), Some((2, 73)));
    assert_eq!(guest.reap(rx), Some((3, 74)));
    assert_eq!(guest.get(BUFFERS + 12, 62), frame(62, 3));
    assert_eq!(guest.reap(rx), None);
    assert_eq!(guest.devices.net_counters().received, 3);
}

#[test]
fn r10_frames_beyond_the_waiting_queue_are_dropped_and_counted() {
    let mut guest = Guest::new();
    let many: Vec<_> = (0..NET_RX_WAITING_FRAMES + 2)
        .map(|_| frame(60, 0))
        .collect();
    guest.deliver(entry(&many)).unwrap();
    assert_eq!(guest.devices.net_counters().dropped, 2);
    assert_eq!(
        guest.devices.save().net.waiting.len(),
        NET_RX_WAITING_FRAMES
    );

    let mut guest = Guest::new();
    let fit = NET_RX_WAITING_BYTES / MAX_FRAME;
    let large: Vec<_> = (0..fit + 3).map(|_| frame(MAX_FRAME, 0)).collect();
    guest.deliver(entry(&large)).unwrap();
    assert_eq!(guest.devices.net_counters().dropped, 3);
    assert_eq!(guest.devices.waiting_bytes(), fit * MAX_FRAME);
}

#[test]
fn a_large_frame_is_spread_over_mergeable_buffers() {
    let mut guest = Guest::new();
    let mut queues = guest.start(SLOT_NET, MRG_RXBUF, &[16, 16]);
    let rx = &mut queues[0];
    for index in 0..2 {
        guest.post(rx, &[(BUFFERS + index * 0x1000, 0x1000, true)]);
    }
    let sent = frame(9000, 5);
    guest.deliver(entry(std::slice::from_ref(&sent))).unwrap();
    assert_eq!(
        guest.reap(rx),
        None,
        "two buffers are too few, and both stay with the guest"
    );
    guest.post(rx, &[(BUFFERS + 0x2000, 0x1000, true)]);
    guest.deliver(Entry::default()).unwrap();
    let used: Vec<_> = std::iter::from_fn(|| guest.reap(rx)).collect();
    assert_eq!(used, [(0, 4096), (1, 4096), (2, 9012 - 8192)]);
    let got = guest.get(BUFFERS, 9012);
    assert_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
    assert_eq!(got[12..], sent);
}

#[test]
fn the_console_works_both_ways() {
    let mut guest = Guest::new();
    let mut queues = guest.start(SLOT_CONSOLE, 0, &[8, 8]);
    let [rx, tx] = &mut queues[..] else {
        unreachable!()
    };
    guest.put(BUFFERS, b"hello world");
    guest.post(tx, &[(BUFFERS, 6, false), (BUFFERS + 6, 5, false)]);
    guest.post(tx, &[(BUFFERS + 4, 1, false)]);
    let outputs = guest.collect().unwrap();
    assert_eq!(outputs[0], Output::Console(b"hello worldo".to_vec()));
    assert_eq!(guest.reap(tx), Some((0, 0)));

    guest
        .deliver(Entry {
            console: b"abcdef".to_vec(),
            ..Entry::default()
        })
        .unwrap();
    guest.post(rx, &[(BUFFERS, 4, true)]);
    guest
        .deliver(Entry {
            console: b"gh".to_vec(),
            ..Entry::default()
        })
        .unwrap();
    assert_eq!(guest.reap(rx), Some((0, 4)));
    assert_eq!(guest.get(BUFFERS, 4), b"abcd");
    guest.post(rx, &[(BUFFERS, 10, true)]);
    guest.deliver(Entry::default()).unwrap();
    assert_eq!(guest.reap(rx), Some((1, 4)));
    assert_eq!(guest.get(BUFFERS, 4), b"efgh");

    let flood = vec![0; CONSOLE_RX_WAITING_BYTES + 7];
    guest
        .deliver(Entry {
            console: flood,
            ..Entry::default()
        })
        .unwrap();
    assert_eq!(guest.devices.save().console.dropped, 7);
}

#[test]
fn r1_entropy_is_the_same_for_the_same_seed_and_bounded() {
    let run = |cuts: &[u32]| {
        let mut guest = Guest::new();
        let mut queue = guest.start(SLOT_ENTROPY, 0, &[16]).remove(0);
        let mut bytes = Vec::new();
        for &len in cuts {
            guest.post(&mut queue, &[(BUFFERS, len, true)]);
            guest.collect().unwrap();
            let (_, written) = guest.reap(&mut queue).unwrap();
            assert_eq!(written, len);
            bytes.extend(guest.get(BUFFERS, len as usize));
        }
        bytes
    };
    let whole = run(&[10_000]);
    assert_eq!(run(&[1, 99, 4096, 5804]), whole);
    assert!(whole.iter().any(|&byte| byte != whole[0]));

    let mut guest = Guest::new();
    let mut queue = guest.start(SLOT_ENTROPY, 0, &[16]).remove(0);
    guest.post(&mut queue, &[(BUFFERS, 1 << 20, true)]);
    guest.post(&mut queue, &[(BUFFERS, 5, true)]);
    guest.collect().unwrap();
    assert_eq!(
        guest.reap(&mut queue),
        Some((0, ENTROPY_BYTES_PER_BOUNDARY as u32))
    );
    assert_eq!(guest.reap(&mut queue), None);
    guest.collect().unwrap();
    assert_eq!(guest.reap(&mut queue), Some((1, 5)));
}

#[test]
fn a_panic_message_is_read_as_far_as_it_is_said_to_go() {
    let mut guest = Guest::new();
    guest.put(SYNC_PAGE + offset::MESSAGE, &[b'x'; MESSAGE_LEN]);
    guest.put(SYNC_PAGE + offset::MESSAGE, b"a\n\xffb");
    for (len, message) in [(4, "a \u{fffd}b"), (0, "")] {
        guest.set_sync(offset::OP, u64::from(op::PANIC) | len << 32);
        let request = guest.devices.collect(&guest.mem).unwrap().request.request;
        assert_eq!(
            request,
            Request::Panic {
                message: message.into()
            }
        );
    }
}

/// A guest with everything in motion: queues half used, inputs waiting.
fn busy() -> (Guest, Vec<Queue>) {
    let mut guest = Guest::new();
    let mut queues = guest.start(SLOT_NET, MRG_RXBUF, &[16, 16]);
    queues.extend(guest.start(SLOT_ENTROPY, 0, &[16]));
    guest.post(&mut queues[0], &[(BUFFERS, 0x1000, true)]);
    guest.post(&mut queues[2], &[(BUFFERS, 100, true)]);
    guest.collect().unwrap();
    let mut input = entry(&[frame(70, 1), frame(71, 2), frame(72, 3)]);
    input.console = b"typed".to_vec();
    input.monotonic_ns = 50;
    guest.deliver(input).unwrap();
    (guest, queues)
}

#[test]
fn saved_devices_go_on_where_they_were() {
    let (mut guest, mut queues) = busy();
    let state = guest.devices.save();
    let json = serde_json::to_string(&state).unwrap();
    let read: DeviceSetState = serde_json::from_str(&json).unwrap();
    assert_eq!(read, state);

    let mut copy = Guest::new();
    copy.put(0, &guest.get(0, super::driver::MEMORY));
    copy.devices.restore(&copy.mem, &read).unwrap();
    assert_eq!(copy.devices.save(), state);
    let mut copy_queues = queues.clone();
    for (guest, queues) in [(&mut guest, &mut queues), (&mut copy, &mut copy_queues)] {
        guest.post(&mut queues[0], &[(BUFFERS + 0x1000, 0x1000, true)]);
        guest.post(&mut queues[2], &[(BUFFERS + 0x2000, 100, true)]);
        guest.collect().unwrap();
        guest.deliver(Entry::default()).unwrap();
    }
    assert_eq!(copy.devices.save(), guest.devices.save());
    let all = super::driver::MEMORY;
    assert!(copy.get(0, all) == guest.get(0, all), "memories differ");
    assert_eq!(copy.sync(offset::MONOTONIC), 50);
}

#[test]
fn an_invalid_saved_state_is_an_error() {
    let (guest, _) = busy();
    let good = guest.devices.save();
    let refuse = |change: &dyn Fn(&mut DeviceSetState)| {
        let mut state = good.clone();
        change(&mut state);
        let mut fresh = Guest::new();
        assert!(fresh.devices.restore(&fresh.mem, &state).is_err());
    };
    refuse(&|state| state.net.transport.rings[0].used = 1 << 50);
    refuse(&|state| state.net.transport.rings[0].size = 3);
    refuse(&|state| state.net.transport.rings.truncate(1));
    refuse(&|state| state.net.transport.driver_features = u64::MAX);
    refuse(&|state| state.console.waiting = vec![0; CONSOLE_RX_WAITING_BYTES + 1]);
    refuse(&|state| state.net.waiting = vec![Vec::new(); NET_RX_WAITING_FRAMES + 1]);
}

#[test]
fn a_reset_device_forgets_its_queues_but_not_its_inputs() {
    let (mut guest, _) = busy();
    guest.write(SLOT_NET, STATUS, 0).unwrap();
    assert_eq!(guest.devices.save().net.waiting.len(), 2);
    let mut queues = guest.start(SLOT_NET, 0, &[16, 16]);
    guest
        .mem
        .write_obj(0_u32, GuestAddress(queues[0].used()))
        .unwrap();
    guest
        .mem
        .write_obj(0_u32, GuestAddress(queues[0].available()))
        .unwrap();
    guest.post(&mut queues[0], &[(BUFFERS, 0x1000, true)]);
    guest.deliver(Entry::default()).unwrap();
    assert_eq!(guest.reap(&mut queues[0]), Some((0, 83)));
}

proptest! {
    /// Whatever goes in comes out once, in order, whenever the guest posts buffers of whatever sizes.
    #[test]
    fn frames_in_are_frames_out(
        sizes in prop::collection::vec(14_usize..3000, 1..40),
        per_boundary in prop::collection::vec((0_usize..4, 0_usize..6), 60),
        mergeable: bool,
    ) {
        let mut guest = Guest::new();
        let features = if mergeable { MRG_RXBUF } else { 0 };
        let mut rx = guest.start(SLOT_NET, features, &[64, 64]).remove(0);
        let sent: Vec<_> = sizes.iter().enumerate().map(|(index, &len)| frame(len, index as u8)).collect();
        let mut unsent = sent.iter();
        let mut got: Vec<Vec<u8>> = Vec::new();
        let mut posted = 0_u64;
        let mut missing = 0;
        for (new_frames, new_buffers) in per_boundary.into_iter().chain(std::iter::repeat_n((4, 6), 60)) {
            for _ in 0..new_buffers {
                if posted < 64 {
                    let len = if mergeable { 1024 } else { 4096 };
                    let at = BUFFERS + u64::from(rx.next_head()) * 4096;
                    guest.post(&mut rx, &[(at, len, true)]);
                    posted += 1;
                }
            }
            let frames: Vec<_> = unsent.by_ref().take(new_frames).cloned().collect();
            guest.deliver(entry(&frames)).unwrap();
            while let Some((head, len)) = guest.reap(&mut rx) {
                posted -= 1;
                let bytes = guest.get(BUFFERS + u64::from(head) * 4096, len as usize);
                if missing == 0 {
                    missing = u16::from_le_bytes([bytes[10], bytes[11]]) - 1;
                    got.push(bytes[12..].to_vec());
                } else {
                    missing -= 1;
                    got.last_mut().unwrap().extend(bytes);
                }
            }
        }
        prop_assert_eq!(got, sent);
    }
}
