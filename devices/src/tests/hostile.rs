//! R9: whatever a guest writes, a device answers with an error at most, and does bounded work.

use super::driver::{BUFFERS, Guest, INDIRECT, MEMORY, NEXT, Queue, SYNC_PAGE};
use crate::*;
use proptest::prelude::*;
use quorate_abi::map::{MMIO_BASE, SLOT_BLOCK, SLOT_CONSOLE, SLOT_ENTROPY, SLOT_NET};
use quorate_abi::net::MAX_FRAME;
use quorate_abi::sync::{offset, op};
use vm_memory::{Bytes, GuestAddress};

fn queue_fault(result: Result<Vec<Output>, DeviceError>) -> QueueFault {
    match result {
        Err(DeviceError::Queue { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

/// A network guest, and what the device says of its transmit queue after `change`.
fn transmit(change: impl FnOnce(&mut Guest, &mut Queue)) -> QueueFault {
    let mut guest = Guest::new();
    let mut tx = guest.start(SLOT_NET, 0, &[16, 16]).remove(1);
    change(&mut guest, &mut tx);
    queue_fault(guest.collect())
}

#[test]
fn chains_that_loop_or_leave_their_table() {
    /// Address, length, flags, next.
    type Descriptor = (u64, u32, u16, u16);
    let cases: [(&str, &[Descriptor]); 5] = [
        ("points to itself", &[(BUFFERS, 30, NEXT, 0)]),
        (
            "a loop of two",
            &[(BUFFERS, 30, NEXT, 1), (BUFFERS, 30, NEXT, 0)],
        ),
        ("next is no descriptor", &[(BUFFERS, 30, NEXT, 16)]),
        (
            "an indirect table that is nowhere",
            &[(1 << 40, 32, INDIRECT, 0)],
        ),
        (
            "an indirect table of an odd size",
            &[(BUFFERS, 31, INDIRECT, 0)],
        ),
    ];
    for (name, descriptors) in cases {
        let fault = transmit(|guest, tx| {
            for (index, &(addr, len, flags, next)) in (0..).zip(descriptors) {
                guest.descriptor(tx, index, addr, len, flags, next);
            }
            guest.offer(tx, 0);
        });
        assert_eq!(fault, QueueFault::Chain, "{name}");
    }
    assert_eq!(
        transmit(|guest, tx| guest.offer(tx, 16)),
        QueueFault::Chain,
        "no such head"
    );
}

#[test]
fn an_indirect_table_without_end_is_cut_off() {
    let fault = transmit(|guest, tx| {
        for index in 0..1000_u64 {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&BUFFERS.to_le_bytes());
            bytes[8..12].copy_from_slice(&0_u32.to_le_bytes());
            bytes[12..14].copy_from_slice(&NEXT.to_le_bytes());
            bytes[14..].copy_from_slice(&(index as u16 + 1).to_le_bytes());
            guest.put(BUFFERS + index * 16, &bytes);
        }
        guest.descriptor(tx, 0, BUFFERS, 16_000, INDIRECT, 0);
        guest.offer(tx, 0);
    });
    assert_eq!(fault, QueueFault::Chain);
}

#[test]
fn buffers_that_are_nowhere_too_long_too_short_or_of_the_wrong_kind() {
    let post = |buffers: &[super::driver::Buffer]| {
        transmit(|guest, tx| {
            guest.post(tx, buffers);
        })
    };
    assert_eq!(
        post(&[(MEMORY as u64 - 10, 30, false)]),
        QueueFault::Address
    );
    assert_eq!(post(&[(u64::MAX - 10, 30, false)]), QueueFault::Address);
    assert_eq!(post(&[(BUFFERS, 30, true)]), QueueFault::Direction);
    assert_eq!(
        post(&[(BUFFERS, 30, true), (BUFFERS, 30, false)]),
        QueueFault::Direction
    );
    assert!(matches!(
        post(&[(BUFFERS, 25, false)]),
        QueueFault::Length { bytes: 25, .. }
    ));
    let long = (MAX_FRAME + 13) as u32;
    assert!(matches!(
        post(&[(BUFFERS, long, false)]),
        QueueFault::Length { .. }
    ));
    assert!(matches!(
        post(&[(BUFFERS, u32::MAX, false)]),
        QueueFault::Length { .. }
    ));
    let offload = transmit(|guest, tx| {
        guest.put(BUFFERS, &[1]);
        guest.post(tx, &[(BUFFERS, 30, false)]);
    });
    assert_eq!(offload, QueueFault::Offload);
}

#[test]
fn more_on_offer_than_the_ring_has_places() {
    let fault = transmit(|guest, tx| {
        guest
            .mem
            .write_obj(17_u16, GuestAddress(tx.available() + 2))
            .unwrap();
    });
    assert_eq!(fault, QueueFault::AvailableRing);
}

#[test]
fn receive_buffers_are_checked_when_a_frame_comes() {
    let cases: [(&[super::driver::Buffer], QueueFault); 3] = [
        (&[(BUFFERS, 30, false)], QueueFault::Direction),
        (&[(1 << 40, 3000, true)], QueueFault::Address),
        (
            &[(BUFFERS, 71, true)],
            QueueFault::Length {
                bytes: 71,
                least: 72,
                most: u32::MAX.into(),
            },
        ),
    ];
    for (buffers, expected) in cases {
        let mut guest = Guest::new();
        let mut rx = guest.start(SLOT_NET, 0, &[16, 16]).remove(0);
        guest.post(&mut rx, buffers);
        let entry = Entry {
            frames: vec![vec![0; 60]],
            ..Entry::default()
        };
        assert_eq!(
            queue_fault(guest.deliver(entry).map(|()| Vec::new())),
            expected
        );
    }
}

#[test]
fn the_sync_page_is_checked() {
    let refuse = |at: u64, value: u64| {
        let mut guest = Guest::new();
        guest.set_sync(at, value);
        match guest.collect() {
            Err(DeviceError::Sync(fault)) => fault,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refuse(offset::MAGIC, 1), SyncFault::Magic(1));
    assert_eq!(refuse(offset::OP, 0), SyncFault::Op(0));
    assert_eq!(refuse(offset::OP, 4), SyncFault::Op(4));
    assert_eq!(refuse(offset::BOUNDARY - 8, 1), SyncFault::Reserved);
    assert_eq!(
        refuse(offset::OP, u64::from(op::PANIC) | 513 << 32),
        SyncFault::MessageLen(513)
    );
    assert_eq!(
        refuse(offset::OP, u64::from(op::PANIC) | u64::MAX << 32),
        SyncFault::MessageLen(u32::MAX)
    );
}

/// A guest with all devices running.
fn running() -> Guest {
    let mut guest = Guest::with_disks(&[super::disk_driver::config(false)]);
    guest.start(SLOT_BLOCK, super::disk_driver::F_FLUSH, &[16]);
    guest.start(SLOT_NET, 1 << 15, &[16, 16]);
    guest.start(SLOT_CONSOLE, 0, &[16, 16]);
    guest.start(SLOT_ENTROPY, 0, &[16]);
    guest
}

proptest! {
    #![proptest_config(super::cases())]

    /// Random bytes all over the rings, biased to small numbers that are nearly valid.
    #[test]
    fn garbage_in_the_rings_never_panics(
        writes in prop::collection::vec((0x1_0000_u64..0x5_0000, prop_oneof![0_u16..20, any::<u16>()]), 0..200),
        indices in prop::collection::vec(0_u16..18, 6),
        disk in prop::collection::vec((0x9_0000_u64..0x9_8000, 0_u16..20), 0..50),
    ) {
        let mut guest = running();
        for (at, value) in writes.into_iter().chain(disk) {
            guest.mem.write_obj(value, GuestAddress(at & !1)).unwrap();
        }
        // Make sure that something is on offer.
        for (slot, index) in [0_u64, 2, 3, 4, 5, 16].into_iter().zip(indices) {
            let available = 0x1_0000 + slot * 0x8000 + 0x4000;
            guest.mem.write_obj(index, GuestAddress(available + 2)).unwrap();
        }
        let entry = Entry { frames: vec![vec![1; 60], vec![2; 9000]], console: vec![3; 50], ..Entry::default() };
        if guest.collect().is_ok() {
            let _ = guest.deliver(entry);
        }
        guest.devices.last_words(&guest.mem);
    }

    #[test]
    fn garbage_in_the_sync_page_never_panics(bytes in prop::collection::vec(any::<u8>(), 1..700), keep_magic: bool) {
        let mut guest = running();
        let at = if keep_magic { 8 } else { 0 };
        guest.put(SYNC_PAGE + at, &bytes);
        let _ = guest.collect();
    }

    /// Any sequence of register accesses: after an error the machine would be stopped, here it goes on.
    #[test]
    fn garbage_in_the_registers_never_panics(
        accesses in prop::collection::vec(
            (prop_oneof![0_u64..4, 8_u64..10], prop_oneof![0_u64..0x110, any::<u64>()], prop_oneof![0_u32..20, any::<u32>()], any::<bool>()),
            0..100,
        ),
    ) {
        let mut guest = running();
        for (slot, at, value, aligned) in accesses {
            let at = if aligned { at & 0xffc } else { at & 0xfff };
            let addr = MMIO_BASE + slot * 0x1000 + at;
            let bytes = value.to_le_bytes();
            let _ = guest.devices.mmio_write(&guest.mem, addr, &bytes[..1 + value as usize % 4]);
            let _ = guest.devices.mmio_write(&guest.mem, addr, &bytes);
            let mut data = [0; 8];
            guest.devices.mmio_read(addr, &mut data[..4]);
            guest.devices.mmio_read(addr, &mut data);
        }
        if guest.collect().is_ok() {
            let _ = guest.deliver(Entry { frames: vec![vec![1; 60]], ..Entry::default() });
        }
    }
}
