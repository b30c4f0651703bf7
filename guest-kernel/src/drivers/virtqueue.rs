//! A split virtqueue (virtio 1.3, 2.7), driver's side. Every descriptor belongs to one fixed buffer and, where it is not a chain
//! of its own, to one fixed chain, so there is no descriptor allocation: the owner hands out numbers.

use super::AllocDma;
use crate::errno::{ENOMEM, Result};
use core::sync::atomic::{Ordering, fence};

const DESCRIPTOR: usize = 16;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
/// `avail.flags`: no interrupts, there are none to take.
const NO_INTERRUPT: u16 = 1;
const PAGE: usize = quorate_abi::PAGE_SIZE as usize;

/// Physical addresses of the three parts of a queue.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring (driver area).
    pub available: u64,
    /// Used ring (device area).
    pub used: u64,
}

/// One queue.
pub struct Virtqueue {
    size: u16,
    memory: *mut u8,
    physical: u64,
    available_at: usize,
    used_at: usize,
    next_available: u16,
    next_used: u16,
}

impl Virtqueue {
    /// A queue of `size` entries (a power of two) in memory of its own.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new(size: u16, alloc: AllocDma) -> Result<Self> {
        let entries = usize::from(size);
        let available_at = entries * DESCRIPTOR;
        // Used rings are 4-aligned; 2 bytes at the end of each ring belong to a feature that is not negotiated.
        let used_at = (available_at + 6 + 2 * entries).next_multiple_of(4);
        let bytes = used_at + 6 + 8 * entries;
        let (memory, physical) = alloc(bytes.div_ceil(PAGE))?;
        if memory.is_null() {
            return Err(ENOMEM);
        }
        let queue = Self {
            size,
            memory,
            physical,
            available_at,
            used_at,
            next_available: 0,
            next_used: 0,
        };
        queue.write(available_at, NO_INTERRUPT);
        Ok(queue)
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where it lies.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            descriptors: self.physical,
            available: self.physical + self.available_at as u64,
            used: self.physical + self.used_at as u64,
        }
    }

    fn write<T: Copy>(&self, offset: usize, value: T) {
        // SAFETY: callers pass offsets within the queue's memory, aligned for `T`; the device never writes there at
        // the same time, since it runs only at boundaries.
        unsafe { self.memory.add(offset).cast::<T>().write_volatile(value) }
    }

    fn read<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: as in `write`; only integers are read.
        unsafe { self.memory.add(offset).cast::<T>().read_volatile() }
    }

    /// Describes the buffer that belongs to descriptor `id`.
    pub fn describe(&mut self, id: u16, physical: u64, len: u32, device_writes: bool) {
        debug_assert!(id < self.size);
        let at = usize::from(id % self.size) * DESCRIPTOR;
        self.write(at, physical);
        self.write(at + 8, len);
        self.write(at + 12, if device_writes { F_WRITE } else { 0 });
        self.write(at + 14, 0u16);
    }

    /// Makes descriptor `id` go on with `next`, or end its chain. After [`Self::describe`].
    pub fn link(&mut self, id: u16, next: Option<u16>) {
        let at = usize::from(id % self.size) * DESCRIPTOR;
        let flags: u16 = self.read::<u16>(at + 12) & !F_NEXT;
        self.write(
            at + 12,
            if next.is_some() {
                flags | F_NEXT
            } else {
                flags
            },
        );
        self.write(at + 14, next.unwrap_or(0));
    }

    /// Changes the length of descriptor `id`'s buffer.
    pub fn set_len(&mut self, id: u16, len: u32) {
        self.write(usize::from(id % self.size) * DESCRIPTOR + 8, len);
    }

    /// Queues descriptor `id`. The device sees it after [`Self::publish`]. Each descriptor is queued at most once at a
    /// time, so the ring cannot overflow.
    pub fn push(&mut self, id: u16) {
        let slot = usize::from(self.next_available % self.size);
        self.write(self.available_at + 4 + 2 * slot, id);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Lets the device see all that was queued.
    pub fn publish(&mut self) {
        fence(Ordering::Release);
        self.write(self.available_at + 2, self.next_available);
    }

    /// Takes the next buffer that the device has used: its descriptor and the number of bytes written.
    pub fn pop_used(&mut self) -> Option<(u16, u32)> {
        let published: u16 = self.read(self.used_at + 2);
        if published == self.next_used {
            return None;
        }
        fence(Ordering::Acquire);
        let at = self.used_at + 4 + 8 * usize::from(self.next_used % self.size);
        let (id, len): (u32, u32) = (self.read(at), self.read(at + 4));
        self.next_used = self.next_used.wrapping_add(1);
        // A device that names a descriptor that does not exist is broken; there is no one to tell.
        Some(((id % u32::from(self.size)) as u16, len))
    }
}
