//! virtio-console (virtio 1.3, 5.3), output only: bytes gather in buffers that become visible at a boundary.

use super::mmio::{self, Window};
use super::virtqueue::Virtqueue;
use super::{AllocDma, InitError};
use crate::cell::Global;
use alloc::vec::Vec;

const DEVICE_ID: u32 = 3;
/// Transmit queue of port 0.
const TX: u32 = 1;
/// Buffers, of a page each. When all are full, writing takes a boundary (R10).
const BUFFERS: u16 = 16;
const PAGE: usize = quorate_abi::PAGE_SIZE as usize;

struct Console {
    queue: Virtqueue,
    buffers: Vec<*mut u8>,
    free: Vec<u16>,
    /// Buffer that is being filled, and bytes in it.
    open: Option<(u16, usize)>,
}

static CONSOLE: Global<Option<Console>> = Global::new(None);

/// Starts the device.
///
/// # Errors
/// See [`InitError`].
pub fn init(window: &impl Window, alloc: AllocDma) -> Result<(), InitError> {
    mmio::negotiate(window, DEVICE_ID, 0)?;
    let mut queue = mmio::queue(window, TX, BUFFERS, alloc)?;
    let mut buffers = Vec::new();
    let mut free = Vec::new();
    for id in 0..queue.size() {
        let (buffer, physical) = alloc(1).map_err(|_| InitError::Memory)?;
        queue.describe(id, physical, 0, false);
        buffers.push(buffer);
        free.push(queue.size() - 1 - id);
    }
    mmio::start(window);
    *CONSOLE.borrow_mut() = Some(Console {
        queue,
        buffers,
        free,
        open: None,
    });
    Ok(())
}

impl Console {
    /// Copies what fits into buffers; returns how much that is.
    fn put(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let (id, used) = match self
                .open
                .take()
                .or_else(|| self.free.pop().map(|id| (id, 0)))
            {
                Some(open) => open,
                None => break,
            };
            let take = (PAGE - used).min(bytes.len() - done);
            // SAFETY: within the buffer's page, which is the driver's own while it is not queued.
            unsafe {
                core::ptr::copy_nonoverlapping(
                    bytes[done..].as_ptr(),
                    self.buffers[usize::from(id)].add(used),
                    take,
                );
            }
            done += take;
            if used + take == PAGE {
                self.close(id, PAGE);
            } else {
                self.open = Some((id, used + take));
            }
        }
        done
    }

    fn close(&mut self, id: u16, len: usize) {
        self.queue.set_len(id, len as u32);
        self.queue.push(id);
    }
}

/// Writes bytes. Takes a boundary when all buffers are full. Before [`init`], bytes are lost.
pub fn write(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let done = match CONSOLE.borrow_mut().as_mut() {
            Some(console) => console.put(bytes),
            None => return,
        };
        bytes = &bytes[done..];
        if !bytes.is_empty() {
            crate::boundary::sync_now();
        }
    }
}

/// Lets the device see what was written.
pub fn publish() {
    if let Some(console) = CONSOLE.borrow_mut().as_mut() {
        if let Some((id, len)) = console.open.take() {
            console.close(id, len);
        }
        console.queue.publish();
    }
}

/// Takes back buffers that were printed.
pub fn reclaim() {
    if let Some(console) = CONSOLE.borrow_mut().as_mut() {
        while let Some((id, _)) = console.queue.pop_used() {
            console.free.push(id);
        }
    }
}
