//! A checked view of one descriptor chain, and reading and writing its buffers.

use crate::error::QueueFault;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Largest number of descriptors in one chain, for any queue: no queue here is longer.
pub const MAX_DESCRIPTORS: usize = 256;

/// The buffers of one chain, device-readable ones first. Reused from chain to chain, to keep its allocation.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    pub head: u16,
    readable: Vec<(u64, u32)>,
    writable: Vec<(u64, u32)>,
}

impl Chain {
    /// Validates the descriptors that virtio-queue yields. Its iterator ends silently on whatever is invalid, which
    /// shows here as a last descriptor that promises another.
    pub(crate) fn fill(
        &mut self,
        head: u16,
        descriptors: impl Iterator<Item = Descriptor>,
    ) -> Result<(), QueueFault> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        let mut complete = false;
        for descriptor in descriptors {
            if self.readable.len() + self.writable.len() == MAX_DESCRIPTORS {
                return Err(QueueFault::Chain);
            }
            let buffer = (descriptor.addr().0, descriptor.len());
            if descriptor.is_write_only() {
                self.writable.push(buffer);
            } else if self.writable.is_empty() {
                self.readable.push(buffer);
            } else {
                return Err(QueueFault::Direction);
            }
            complete = !descriptor.has_next();
        }
        if complete {
            Ok(())
        } else {
            Err(QueueFault::Chain)
        }
    }

    /// Requires that the device may only read, and at least `least` and at most `most` bytes.
    pub(crate) fn only_readable(&self, least: u64, most: u64) -> Result<u64, QueueFault> {
        if !self.writable.is_empty() {
            return Err(QueueFault::Direction);
        }
        checked_length(&self.readable, least, most)
    }

    /// Requires that the device may only write, and at least `least` bytes.
    pub(crate) fn only_writable(&self, least: u64) -> Result<u64, QueueFault> {
        if !self.readable.is_empty() {
            return Err(QueueFault::Direction);
        }
        checked_length(&self.writable, least, u64::from(u32::MAX))
    }

    /// Bytes that the device may read, and that it may write.
    pub(crate) fn lengths(&self) -> (u64, u64) {
        (total(&self.readable), total(&self.writable))
    }

    /// The buffers that the device may write, for a chain that is answered later.
    pub(crate) fn writable(&self) -> &[(u64, u32)] {
        &self.writable
    }

    pub(crate) fn reader<'a, M: GuestMemory>(&'a self, mem: &'a M) -> Cursor<'a, M> {
        Cursor::new(mem, &self.readable)
    }

    pub(crate) fn writer<'a, M: GuestMemory>(&'a self, mem: &'a M) -> Cursor<'a, M> {
        Cursor::new(mem, &self.writable)
    }
}

fn checked_length(buffers: &[(u64, u32)], least: u64, most: u64) -> Result<u64, QueueFault> {
    within(total(buffers), least, most)
}

/// No overflow: at most [`MAX_DESCRIPTORS`] terms below 2^32.
pub(crate) fn total(buffers: &[(u64, u32)]) -> u64 {
    buffers.iter().map(|&(_, len)| u64::from(len)).sum()
}

/// Requires a number of bytes from `least` to `most`.
pub(crate) fn within(bytes: u64, least: u64, most: u64) -> Result<u64, QueueFault> {
    if (least..=most).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(QueueFault::Length { bytes, least, most })
    }
}

/// Reads or writes the buffers of a chain one after the other.
pub(crate) struct Cursor<'a, M> {
    mem: &'a M,
    buffers: &'a [(u64, u32)],
    offset: u32,
}

impl<'a, M: GuestMemory> Cursor<'a, M> {
    pub(crate) fn new(mem: &'a M, buffers: &'a [(u64, u32)]) -> Self {
        Self {
            mem,
            buffers,
            offset: 0,
        }
    }

    /// Where the next bytes are, at most `want` of them; `None` at the end.
    fn piece(&mut self, want: usize) -> Result<Option<(GuestAddress, usize)>, QueueFault> {
        while let Some(&(addr, len)) = self.buffers.first() {
            let left = len - self.offset;
            if left == 0 {
                self.buffers = &self.buffers[1..];
                self.offset = 0;
                continue;
            }
            let addr = addr
                .checked_add(u64::from(self.offset))
                .ok_or(QueueFault::Address)?;
            let take = want.min(left as usize);
            // Fits: `take` is at most `left`, which is a u32.
            self.offset += take as u32;
            return Ok(Some((GuestAddress(addr), take)));
        }
        Ok(None)
    }

    /// Fills `data`. The caller has checked the length before.
    pub(crate) fn read(&mut self, mut data: &mut [u8]) -> Result<(), QueueFault> {
        while !data.is_empty() {
            let (addr, take) = self.piece(data.len())?.ok_or(QueueFault::Chain)?;
            let (now, rest) = data.split_at_mut(take);
            self.mem
                .read_slice(now, addr)
                .map_err(|_| QueueFault::Address)?;
            data = rest;
        }
        Ok(())
    }

    /// Writes as much of `data` as fits and returns how much that is.
    pub(crate) fn write(&mut self, data: &[u8]) -> Result<usize, QueueFault> {
        let mut done = 0;
        while done < data.len() {
            let Some((addr, take)) = self.piece(data.len() - done)? else {
                break;
            };
            self.mem
                .write_slice(&data[done..done + take], addr)
                .map_err(|_| QueueFault::Address)?;
            done += take;
        }
        Ok(done)
    }
}
