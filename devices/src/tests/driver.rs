//! A mock driver over guest memory: what a guest does with registers and rings, correct or not.

use crate::transport::register;
use crate::{DeviceConfig, DeviceError, DeviceSet, DiskConfig, DiskReads, Entry, Output};
use quorate_abi::map::{MMIO_BASE, MMIO_STRIDE};
use quorate_abi::sync::{offset, op};
use std::sync::Arc;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of the mock guest's memory.
pub const MEMORY: usize = 4 << 20;
pub const SYNC_PAGE: u64 = 0x1000;
/// Queues lie here, one behind the other.
const QUEUES: u64 = 0x1_0000;
const QUEUE_BYTES: u64 = 0x8000;
/// Buffers lie here.
pub const BUFFERS: u64 = 0x10_0000;

pub struct Guest {
    pub mem: GuestMemoryMmap<()>,
    pub devices: DeviceSet,
}

/// One queue as its driver sees it.
#[derive(Clone, Debug)]
pub struct Queue {
    pub base: u64,
    pub size: u16,
    next_avail: u16,
    next_used: u16,
    next_descriptor: u16,
}

/// One buffer of a chain: address, length, device-writable.
pub type Buffer = (u64, u32, bool);

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

impl Guest {
    pub fn new() -> Self {
        Self::with_disks(&[])
    }

    pub fn with_disks(disks: &[DiskConfig]) -> Self {
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let config = DeviceConfig {
            input_seed: [9; 32],
            sync_page: GuestAddress(SYNC_PAGE),
            disks: disks.to_vec(),
        };
        let devices = DeviceSet::new(&config, &mem).unwrap();
        let mut guest = Self { mem, devices };
        guest.request(op::SYNC);
        guest
    }

    pub fn request(&mut self, operation: u32) {
        self.set_sync(offset::OP, u64::from(operation));
    }

    pub fn set_sync(&mut self, at: u64, value: u64) {
        self.mem
            .write_obj(value.to_le(), GuestAddress(SYNC_PAGE + at))
            .unwrap();
    }

    pub fn sync(&self, at: u64) -> u64 {
        self.mem.read_obj(GuestAddress(SYNC_PAGE + at)).unwrap()
    }

    pub fn read(&self, slot: u64, at: u64) -> u32 {
        let mut data = [0; 4];
        self.devices
            .mmio_read(MMIO_BASE + slot * MMIO_STRIDE + at, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&mut self, slot: u64, at: u64, value: u32) -> Result<(), DeviceError> {
        let addr = MMIO_BASE + slot * MMIO_STRIDE + at;
        self.devices
            .mmio_write(&self.mem, addr, &value.to_le_bytes())
    }

    /// Initialises a device as virtio 1.3, 3.1.1 says, accepting these features, with queues of this size.
    pub fn start(&mut self, slot: u64, features: u64, sizes: &[u16]) -> Vec<Queue> {
        for status in [0, 1, 3] {
            self.write(slot, register::STATUS, status).unwrap();
        }
        let features = features | 1 << VIRTIO_F_VERSION_1;
        for word in 0..2 {
            self.write(slot, register::DRIVER_FEATURES_SEL, word)
                .unwrap();
            let bits = (features >> (32 * word)) as u32;
            self.write(slot, register::DRIVER_FEATURES, bits).unwrap();
        }
        self.write(slot, register::STATUS, 0xb).unwrap();
        assert_eq!(self.read(slot, register::STATUS), 0xb, "features refused");
        let queues = (0..)
            .zip(sizes)
            .map(|(index, &size)| self.start_queue(slot, index, size))
            .collect();
        self.write(slot, register::STATUS, 0xf).unwrap();
        queues
    }

    pub fn start_queue(&mut self, slot: u64, index: u32, size: u16) -> Queue {
        let base = QUEUES + (slot * 2 + u64::from(index)) * QUEUE_BYTES;
        let queue = Queue::at(base, size);
        self.write(slot, register::QUEUE_SEL, index).unwrap();
        assert!(u32::from(size) <= self.read(slot, register::QUEUE_NUM_MAX));
        self.write(slot, register::QUEUE_NUM, size.into()).unwrap();
        let rings = [
            (register::QUEUE_DESC_LOW, base),
            (register::QUEUE_DRIVER_LOW, queue.available()),
            (register::QUEUE_DEVICE_LOW, queue.used()),
        ];
        for (at, addr) in rings {
            self.write(slot, at, addr as u32).unwrap();
            self.write(slot, at + 4, (addr >> 32) as u32).unwrap();
        }
        self.write(slot, register::QUEUE_READY, 1).unwrap();
        assert_eq!(self.read(slot, register::QUEUE_READY), 1);
        queue
    }

    /// Makes a chain of these buffers available.
    pub fn post(&mut self, queue: &mut Queue, buffers: &[Buffer]) -> u16 {
        let head = queue.next_descriptor;
        for (index, &(addr, len, write)) in buffers.iter().enumerate() {
            let at = queue.next_descriptor;
            queue.next_descriptor = (at + 1) % queue.size;
            let next = if index + 1 < buffers.len() { NEXT } else { 0 };
            let flags = next | if write { WRITE } else { 0 };
            self.descriptor(queue, at, addr, len, flags, queue.next_descriptor);
        }
        self.offer(queue, head);
        head
    }

    pub fn descriptor(&self, queue: &Queue, at: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let to = queue.base + u64::from(at) * 16;
        self.mem.write_slice(&bytes, GuestAddress(to)).unwrap();
    }

    /// Puts a head into the available ring.
    pub fn offer(&self, queue: &mut Queue, head: u16) {
        let next = queue.next_descriptor;
        queue.offer_in(&self.mem, head);
        queue.next_descriptor = next;
    }

    /// Takes the next used chain: its head and the bytes written.
    pub fn reap(&self, queue: &mut Queue) -> Option<(u32, u32)> {
        queue.reap_in(&self.mem)
    }

    pub fn put(&self, addr: u64, bytes: &[u8]) {
        self.mem.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    pub fn collect(&mut self) -> Result<Vec<Output>, DeviceError> {
        Ok(self.devices.collect(&self.mem)?.outputs)
    }

    pub fn deliver(&mut self, entry: Entry) -> Result<(), DeviceError> {
        self.deliver_with(entry, &mut crate::NoDisks)
    }

    pub fn deliver_with(
        &mut self,
        entry: Entry,
        reads: &mut dyn DiskReads,
    ) -> Result<(), DeviceError> {
        self.devices.deliver(&self.mem, &Arc::new(entry), reads)
    }
}

impl Queue {
    /// A queue whose rings lie from `base` on.
    pub fn at(base: u64, size: u16) -> Self {
        Self {
            base,
            size,
            next_avail: 0,
            next_used: 0,
            next_descriptor: 0,
        }
    }

    /// As if so many chains had been offered and given back.
    pub fn go_on_at(&mut self, index: u16) {
        (self.next_avail, self.next_used) = (index, index);
    }

    /// Puts a head into the available ring, and goes on with the descriptor behind it.
    pub fn offer_in(&mut self, mem: &GuestMemoryMmap<()>, head: u16) {
        let place = self.available() + 4 + u64::from(self.next_avail % self.size) * 2;
        mem.write_obj(head, GuestAddress(place)).unwrap();
        self.next_avail = self.next_avail.wrapping_add(1);
        self.next_descriptor = (head + 1) % self.size;
        mem.write_obj(self.next_avail, GuestAddress(self.available() + 2))
            .unwrap();
    }

    /// Takes the next used chain: its head and the bytes written.
    pub fn reap_in(&mut self, mem: &GuestMemoryMmap<()>) -> Option<(u32, u32)> {
        let index: u16 = mem.read_obj(GuestAddress(self.used() + 2)).unwrap();
        if index == self.next_used {
            return None;
        }
        let place = self.used() + 4 + u64::from(self.next_used % self.size) * 8;
        self.next_used = self.next_used.wrapping_add(1);
        let head = mem.read_obj(GuestAddress(place)).unwrap();
        let len = mem.read_obj(GuestAddress(place + 4)).unwrap();
        Some((head, len))
    }

    /// The descriptor that the next chain starts with.
    pub fn next_head(&self) -> u16 {
        self.next_descriptor
    }

    pub fn available(&self) -> u64 {
        self.base + 0x4000
    }

    pub fn used(&self) -> u64 {
        self.base + 0x6000
    }
}
