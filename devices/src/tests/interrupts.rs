//! Machines that take interrupts: what is offered to them, when a device has an interrupt, and when it asks for notifications.

use super::driver::{BUFFERS, Buffer, MEMORY, NEXT, Queue, WRITE};
use crate::transport::register;
use crate::{Entry, NoDisks, Output, VirtioConfig, VirtioSet, VirtioSetState};
use proptest::prelude::*;
use quorate_abi::map::{MMIO_BASE, MMIO_STRIDE, SLOT_CONSOLE, SLOT_NET};
use std::sync::Arc;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
const RX: u32 = 0;
const TX: u32 = 1;

struct Machine {
    mem: GuestMemoryMmap<()>,
    set: VirtioSet,
}

fn set(interrupts: bool) -> VirtioSet {
    VirtioSet::new(&VirtioConfig {
        input_seed: [0; 32],
        disks: Vec::new(),
        interrupts,
    })
    .unwrap()
}

impl Machine {
    fn new() -> Self {
        Self {
            mem: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap(),
            set: set(true),
        }
    }

    fn write(&mut self, slot: u64, at: u64, value: u32) {
        let addr = MMIO_BASE + slot * MMIO_STRIDE + at;
        self.set
            .mmio_write(&self.mem, addr, &value.to_le_bytes())
            .unwrap();
    }

    fn read(&self, slot: u64, at: u64) -> u32 {
        let mut data = [0; 4];
        self.set
            .mmio_read(MMIO_BASE + slot * MMIO_STRIDE + at, &mut data);
        u32::from_le_bytes(data)
    }

    /// A driver that accepts these features, with two queues of this size.
    fn start(&mut self, slot: u64, features: u64, size: u16) -> [Queue; 2] {
        for status in [0, 1, 3] {
            self.write(slot, register::STATUS, status);
        }
        let features = features | 1 << VIRTIO_F_VERSION_1;
        for word in 0..2 {
            self.write(slot, register::DRIVER_FEATURES_SEL, word);
            self.write(
                slot,
                register::DRIVER_FEATURES,
                (features >> (32 * word)) as u32,
            );
        }
        self.write(slot, register::STATUS, 0xb);
        assert_eq!(self.read(slot, register::STATUS), 0xb, "features refused");
        let queues = [RX, TX].map(|index| {
            let queue = Queue::at(0x1_0000 + (slot * 2 + u64::from(index)) * 0x8000, size);
            self.write(slot, register::QUEUE_SEL, index);
            self.write(slot, register::QUEUE_NUM, size.into());
            self.write(slot, register::QUEUE_DESC_LOW, queue.base as u32);
            self.write(slot, register::QUEUE_DRIVER_LOW, queue.available() as u32);
            self.write(slot, register::QUEUE_DEVICE_LOW, queue.used() as u32);
            self.write(slot, register::QUEUE_READY, 1);
            queue
        });
        self.write(slot, register::STATUS, 0xf);
        queues
    }

    fn post(&self, queue: &mut Queue, buffer: Buffer) {
        let (addr, len, write) = buffer;
        let at = queue.next_head();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&(if write { WRITE } else { 0 }).to_le_bytes());
        let to = GuestAddress(queue.base + u64::from(at) * 16);
        self.mem.write_slice(&bytes, to).unwrap();
        queue.offer_in(&self.mem, at);
    }

    /// The driver's wish: with EVENT_IDX the used index after which it wants an interrupt, without it the flags.
    fn put_u16(&self, at: u64, value: u16) {
        self.mem.write_obj(value.to_le(), GuestAddress(at)).unwrap();
    }

    fn get_u16(&self, at: u64) -> u16 {
        u16::from_le(self.mem.read_obj(GuestAddress(at)).unwrap())
    }

    fn collect(&mut self) -> Vec<Output> {
        let mut outputs = Vec::new();
        self.set.collect(&self.mem, &mut outputs).unwrap();
        outputs
    }

    fn interrupts(&mut self) -> u64 {
        self.set.interrupts(&self.mem).unwrap()
    }

    fn listen(&mut self) -> bool {
        self.set.listen(&self.mem).unwrap()
    }

    fn deliver(&mut self, entry: Entry) {
        self.set
            .deliver(&self.mem, &Arc::new(entry), &mut NoDisks)
            .unwrap();
    }
}

/// `used_event`, behind the available ring (2.7.6).
fn used_event(queue: &Queue) -> u64 {
    queue.available() + 4 + 2 * u64::from(queue.size)
}

/// `avail_event`, behind the used ring (2.7.8).
fn avail_event(queue: &Queue) -> u64 {
    queue.used() + 4 + 8 * u64::from(queue.size)
}

const TEXT: Buffer = (BUFFERS, 1, false);

#[test]
fn only_machines_that_take_interrupts_are_offered_the_features_of_them() {
    for (interrupts, offered) in [(false, 0), (true, EVENT_IDX | INDIRECT)] {
        let mut set = set(interrupts);
        let mem: GuestMemoryMmap<()> =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        for window in set.windows() {
            let select = window.base + register::DEVICE_FEATURES_SEL;
            set.mmio_write(&mem, select, &[0; 4]).unwrap();
            let mut low = [0; 4];
            set.mmio_read(window.base + register::DEVICE_FEATURES, &mut low);
            let low = u64::from(u32::from_le_bytes(low));
            assert_eq!(
                low & (EVENT_IDX | INDIRECT),
                offered,
                "slot {}",
                window.slot
            );
        }
    }
}

#[test]
fn without_event_idx_the_flags_decide() {
    let mut machine = Machine::new();
    let [_, mut tx] = machine.start(SLOT_CONSOLE, 0, 16);
    assert_eq!(machine.interrupts(), 0, "nothing was used yet");
    for (flags, due) in [(0, true), (1, false), (0, true)] {
        machine.put_u16(tx.available(), flags);
        machine.post(&mut tx, TEXT);
        machine.collect();
        assert_eq!(machine.interrupts(), u64::from(due) << SLOT_CONSOLE);
        assert_eq!(
            machine.read(SLOT_CONSOLE, register::INTERRUPT_STATUS),
            u32::from(due)
        );
        assert_eq!(machine.interrupts(), 0, "once for each use");
        machine.write(SLOT_CONSOLE, register::INTERRUPT_ACK, 1);
        assert_eq!(machine.read(SLOT_CONSOLE, register::INTERRUPT_STATUS), 0);
    }
}

/// Whether the index that the driver named was passed, by counting (2.7.7.2).
fn passed(old: u16, count: u16, event: u16) -> bool {
    (0..count).any(|step| old.wrapping_add(step) == event)
}

proptest! {
    /// The truth table of EVENT_IDX against the definition, across the wrap of the index: any place, any wish.
    #[test]
    fn with_event_idx_an_interrupt_is_due_exactly_if_the_named_index_was_passed(
        old in any::<u16>(), count in 0..16_u16, event in prop_oneof![any::<u16>(), 0..20_u16],
    ) {
        let mut machine = Machine::new();
        let [_, mut tx] = machine.start(SLOT_CONSOLE, EVENT_IDX, 16);
        // As if the queue had been in use for long.
        let mut state: VirtioSetState = machine.set.save();
        state.console.transport.rings[TX as usize].next_used = old;
        state.console.transport.rings[TX as usize].next_avail = old;
        machine.set.restore(&machine.mem, &state).unwrap();
        tx.go_on_at(old);
        machine.put_u16(tx.available() + 2, old);
        machine.put_u16(tx.used() + 2, old);
        // Near the old index as often as far from it.
        let event = if event < 20 { old.wrapping_add(event).wrapping_sub(4) } else { event };
        machine.put_u16(used_event(&tx), event);
        // The flags mean nothing with EVENT_IDX (2.7.7.2).
        machine.put_u16(tx.available(), 1);
        for _ in 0..count {
            machine.post(&mut tx, TEXT);
        }
        machine.collect();
        let due = u64::from(passed(old, count, event)) << SLOT_CONSOLE;
        prop_assert_eq!(machine.interrupts(), due);
        prop_assert_eq!(machine.interrupts(), 0);
    }
}

#[test]
fn notifications_are_asked_for_where_the_device_waits_for_something() {
    let mut machine = Machine::new();
    let [mut rx, mut tx] = machine.start(SLOT_NET, EVENT_IDX, 16);
    machine.put_u16(avail_event(&rx), 77);
    machine.put_u16(avail_event(&tx), 77);
    assert!(!machine.listen());
    assert_eq!(machine.get_u16(avail_event(&tx)), 0, "frames to be sent");
    assert_eq!(
        machine.get_u16(avail_event(&rx)),
        77,
        "no frame waits for a buffer"
    );
    // What came before the driver saw the wish is found by looking: no notification comes for it.
    machine.post(&mut tx, (BUFFERS, 64, false));
    assert!(machine.listen());
    assert_eq!(machine.collect(), [Output::Frame(vec![0; 52])]);
    assert!(!machine.listen());
    assert_eq!(machine.get_u16(avail_event(&tx)), 1);
    // A frame without a buffer: now buffers matter.
    machine.deliver(Entry {
        frames: vec![vec![1; 60]],
        ..Entry::default()
    });
    assert!(!machine.listen());
    assert_eq!(machine.get_u16(avail_event(&rx)), 0);
    machine.post(&mut rx, (BUFFERS, 2048, true));
    assert!(machine.listen());
    machine.interrupts();
    machine.put_u16(used_event(&rx), 0);
    machine.deliver(Entry::default());
    assert_eq!(machine.interrupts(), 1 << SLOT_NET);
    assert_eq!(rx.reap_in(&machine.mem), Some((0, 72)));
}

#[test]
fn without_event_idx_notifications_are_turned_off_by_the_used_rings_flags() {
    let mut machine = Machine::new();
    let [rx, tx] = machine.start(SLOT_NET, 0, 16);
    machine.put_u16(tx.used(), 1);
    assert!(!machine.listen());
    assert_eq!(
        (machine.get_u16(rx.used()), machine.get_u16(tx.used())),
        (1, 0)
    );
}

#[test]
fn after_a_restore_every_device_in_use_interrupts() {
    let mut machine = Machine::new();
    machine.start(SLOT_NET, EVENT_IDX, 16);
    let state = machine.set.save();
    machine.set = set(true);
    assert_eq!(machine.set.interrupt_all(), 0, "no driver");
    machine.set.restore(&machine.mem, &state).unwrap();
    assert_eq!(machine.set.interrupt_all(), 1 << SLOT_NET);
    assert_eq!(machine.read(SLOT_NET, register::INTERRUPT_STATUS), 1);
    // EVENT_IDX is still on: the notification index is written.
    machine.listen();
    // It does not fit a machine whose devices offer less.
    assert!(set(false).restore(&machine.mem, &state).is_err());
}

#[test]
fn polled_devices_have_no_interrupts() {
    let mut polled = set(false);
    assert_eq!(polled.interrupt_all(), 0);
}

#[test]
fn an_indirect_table_is_followed() {
    let mut machine = Machine::new();
    let [_, mut tx] = machine.start(SLOT_CONSOLE, INDIRECT, 16);
    machine
        .mem
        .write_slice(b"indirect", GuestAddress(BUFFERS))
        .unwrap();
    let table = BUFFERS + 0x1000;
    for (at, (from, len, flags)) in [(0, 2, NEXT), (2, 6, 0)].into_iter().enumerate() {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(BUFFERS + from).to_le_bytes());
        bytes[8..12].copy_from_slice(&u32::to_le_bytes(len));
        bytes[12..14].copy_from_slice(&u16::to_le_bytes(flags));
        bytes[14..].copy_from_slice(&1_u16.to_le_bytes());
        let to = GuestAddress(table + 16 * at as u64);
        machine.mem.write_slice(&bytes, to).unwrap();
    }
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&table.to_le_bytes());
    bytes[8..12].copy_from_slice(&32_u32.to_le_bytes());
    bytes[12..14].copy_from_slice(&super::driver::INDIRECT.to_le_bytes());
    machine
        .mem
        .write_slice(&bytes, GuestAddress(tx.base))
        .unwrap();
    tx.offer_in(&machine.mem, 0);
    assert_eq!(machine.collect(), [Output::Console(b"indirect".to_vec())]);
}
