//! `eventfd`.

use super::anon::{self, Anonymous};
use crate::errno::*;
use crate::file::{File, OpenFile, Stat, flags, ready};
use crate::wait::WaitQueue;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::Cell;

const EFD_SEMAPHORE: u32 = 1;
/// Largest value of the counter; a writer waits beyond (R10).
const MAX: u64 = u64::MAX - 1;

/// An eventfd.
pub struct EventFd {
    count: Cell<u64>,
    semaphore: bool,
    queue: WaitQueue,
    identity: Anonymous,
}

impl File for EventFd {
    fn read(&self, buf: &mut [u8]) -> Result<usize> {
        let target = buf.first_chunk_mut::<8>().ok_or(EINVAL)?;
        let count = self.count.get();
        if count == 0 {
            return Err(EAGAIN);
        }
        let taken = if self.semaphore { 1 } else { count };
        self.count.set(count - taken);
        *target = taken.to_le_bytes();
        self.queue.wake_all();
        Ok(8)
    }

    fn write(&self, buf: &[u8]) -> Result<usize> {
        let value = u64::from_le_bytes(*buf.first_chunk::<8>().ok_or(EINVAL)?);
        if value == u64::MAX {
            return Err(EINVAL);
        }
        let count = self.count.get();
        if value > MAX - count {
            return Err(EAGAIN);
        }
        self.count.set(count + value);
        self.queue.wake_all();
        Ok(8)
    }

    fn poll(&self) -> u32 {
        let mut events = 0;
        if self.count.get() > 0 {
            events |= ready::IN | ready::RDNORM;
        }
        if self.count.get() < MAX {
            events |= ready::OUT | ready::WRNORM;
        }
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn stat(&self) -> Result<Stat> {
        Ok(self.identity.stat())
    }

    fn digested(&self) -> bool {
        false
    }

    fn path(&self) -> Vec<u8> {
        b"anon_inode:[eventfd]".to_vec()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `eventfd2(2)`.
pub fn eventfd2(initial: u32, how: u32) -> SysResult {
    if how & !(EFD_SEMAPHORE | flags::O_NONBLOCK | flags::O_CLOEXEC) != 0 {
        return Err(EINVAL);
    }
    let file = Rc::new(EventFd {
        count: Cell::new(u64::from(initial)),
        semaphore: how & EFD_SEMAPHORE != 0,
        queue: WaitQueue::new(),
        identity: Anonymous::new(),
    });
    let status = flags::O_RDWR | how & flags::O_NONBLOCK;
    anon::install(OpenFile::new(file, status), how & flags::O_CLOEXEC != 0)
}
