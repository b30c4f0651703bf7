//! virtio-net (virtio 1.3, 5.1): one queue pair, no offloads. Frames are built in place in transmit buffers, and read in
//! place in receive buffers.

use super::mmio::{self, Window};
use super::virtqueue::Virtqueue;
use super::{AllocDma, InitError};
use crate::cell::Global;
use alloc::vec::Vec;
use quorate_abi::net::MAX_FRAME;

const DEVICE_ID: u32 = 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const RX: u32 = 0;
const TX: u32 = 1;
/// Bytes of `struct virtio_net_hdr_v1`. It stays zero: there are no offloads.
const HEADER: usize = 12;
const PAGE: usize = quorate_abi::PAGE_SIZE as usize;
/// Most frames that can be sent between two boundaries (R10); the device may allow fewer.
pub const TRANSMIT_QUEUE: u16 = 1024;
/// Receive buffers (R10). They hold any frame each, so they cost 9 MiB; what they do not hold waits in the device.
pub const RECEIVE_QUEUE: u16 = 256;
/// Receive buffers when the guest has little memory.
const RECEIVE_QUEUE_SMALL: u16 = 64;
/// Guests with less memory than this (bytes) post fewer receive buffers.
const SMALL_GUEST: u64 = 96 << 20;
/// Bytes of a small transmit buffer, header included; two share a page.
const SMALL: usize = PAGE / 2;
/// Pages of a buffer that holds any frame.
const LARGE_PAGES: usize = (HEADER + MAX_FRAME).div_ceil(PAGE);

/// Transmit buffers of one size. The last one freed is used first, and memory is only allocated when no buffer is
/// free, so the working set is as small as the largest batch so far.
struct Class {
    free: Vec<u16>,
    /// Descriptors that have no memory yet.
    unused: core::ops::Range<u16>,
}

struct Transmit {
    queue: Virtqueue,
    alloc: AllocDma,
    /// Frame buffers (behind the header) by descriptor.
    buffers: Vec<*mut u8>,
    small: Class,
    large: Class,
    /// Descriptor and frame length of the frame that is being built.
    reserved: Option<(u16, usize)>,
}

struct Receive {
    queue: Virtqueue,
    buffers: Vec<*mut u8>,
}

static TRANSMIT: Global<Option<Transmit>> = Global::new(None);
static RECEIVE: Global<Option<Receive>> = Global::new(None);

/// Starts the device.
///
/// # Errors
/// See [`InitError`].
pub fn init(window: &impl Window, alloc: AllocDma) -> Result<(), InitError> {
    mmio::negotiate(window, DEVICE_ID, F_MAC | F_MTU)?;
    let receivers = if crate::mm::memory_info().0 < SMALL_GUEST {
        RECEIVE_QUEUE_SMALL
    } else {
        RECEIVE_QUEUE
    };
    let receive = Receive::new(mmio::queue(window, RX, receivers, alloc)?, alloc)?;
    let transmit = Transmit::new(mmio::queue(window, TX, TRANSMIT_QUEUE, alloc)?, alloc);
    mmio::start(window);
    *RECEIVE.borrow_mut() = Some(receive);
    *TRANSMIT.borrow_mut() = Some(transmit);
    Ok(())
}

impl Receive {
    fn new(mut queue: Virtqueue, alloc: AllocDma) -> Result<Self, InitError> {
        let mut buffers = Vec::with_capacity(queue.size().into());
        for id in 0..queue.size() {
            let (buffer, physical) = alloc(LARGE_PAGES).map_err(|_| InitError::Memory)?;
            queue.describe(id, physical, (HEADER + MAX_FRAME) as u32, true);
            queue.push(id);
            buffers.push(buffer);
        }
        Ok(Self { queue, buffers })
    }
}

impl Transmit {
    fn new(queue: Virtqueue, alloc: AllocDma) -> Self {
        let size = queue.size();
        let smalls = size - size / 4;
        Self {
            queue,
            alloc,
            buffers: (0..size).map(|_| core::ptr::null_mut()).collect(),
            small: Class {
                free: Vec::new(),
                unused: 0..smalls,
            },
            large: Class {
                free: Vec::new(),
                unused: smalls..size,
            },
            reserved: None,
        }
    }

    /// A free descriptor with memory for a small or any frame.
    fn take(&mut self, small: bool) -> Option<u16> {
        let class = if small {
            &mut self.small
        } else {
            &mut self.large
        };
        if let Some(id) = class.free.pop() {
            return Some(id);
        }
        let id = class.unused.start;
        if class.unused.is_empty() {
            return None;
        }
        let pages = if small { 1 } else { LARGE_PAGES };
        let (memory, physical) = (self.alloc)(pages).ok()?;
        class.unused.start += 1;
        self.adopt(id, memory, physical);
        if small && !self.small.unused.is_empty() {
            // The page's other half.
            let twin = self.small.unused.start;
            self.small.unused.start += 1;
            // SAFETY: half a page further is within the page just allocated.
            self.adopt(twin, unsafe { memory.add(SMALL) }, physical + SMALL as u64);
            self.small.free.push(twin);
        }
        Some(id)
    }

    fn adopt(&mut self, id: u16, memory: *mut u8, physical: u64) {
        // SAFETY: the buffer is larger than its header.
        self.buffers[usize::from(id)] = unsafe { memory.add(HEADER) };
        self.queue.describe(id, physical, 0, false);
    }

    fn reclaim(&mut self) {
        while let Some((id, _)) = self.queue.pop_used() {
            self.give_back(id);
        }
    }

    fn give_back(&mut self, id: u16) {
        let small = id < self.queue.size() - self.queue.size() / 4;
        let class = if small {
            &mut self.small
        } else {
            &mut self.large
        };
        class.free.push(id);
    }
}

/// Whether a frame of any size can be queued. If not, a boundary makes room.
pub fn room() -> bool {
    TRANSMIT
        .borrow()
        .as_ref()
        .is_some_and(|t| !t.large.free.is_empty() || !t.large.unused.is_empty())
}

/// A buffer for a frame of `len` bytes; [`commit`] queues it. None if there is no room, or the frame is too long.
pub fn reserve(len: usize) -> Option<&'static mut [u8]> {
    let mut guard = TRANSMIT.borrow_mut();
    let transmit = guard.as_mut()?;
    if len > MAX_FRAME {
        return None;
    }
    if let Some((unused, _)) = transmit.reserved.take() {
        transmit.give_back(unused);
    }
    let small = len <= SMALL - HEADER;
    let id = (if small { transmit.take(true) } else { None }).or_else(|| transmit.take(false))?;
    transmit.reserved = Some((id, len));
    let buffer = transmit.buffers[usize::from(id)];
    // SAFETY: the buffer has room for `len` bytes by its class, lives for ever, and is the driver's own until `commit`;
    // the caller is done with it by then, since it must not keep it beyond (documented).
    Some(unsafe { core::slice::from_raw_parts_mut(buffer, len) })
}

/// Queues the frame that was built in the buffer of the last [`reserve`]; the slice must not be used any more.
pub fn commit() {
    let mut guard = TRANSMIT.borrow_mut();
    if let Some(transmit) = guard.as_mut()
        && let Some((id, len)) = transmit.reserved.take()
    {
        transmit.queue.set_len(id, (HEADER + len) as u32);
        transmit.queue.push(id);
    }
}

/// Lets the device see queued frames and posted buffers.
pub fn publish() {
    if let Some(transmit) = TRANSMIT.borrow_mut().as_mut() {
        transmit.queue.publish();
    }
    if let Some(receive) = RECEIVE.borrow_mut().as_mut() {
        receive.queue.publish();
    }
}

/// Takes back buffers of frames that were sent.
pub fn reclaim() {
    if let Some(transmit) = TRANSMIT.borrow_mut().as_mut() {
        transmit.reclaim();
    }
}

/// Calls `handle` for each frame that was received, and posts its buffer again.
pub fn poll_receive(mut handle: impl FnMut(&[u8])) {
    loop {
        // The borrow ends before the frame is handled.
        let next = RECEIVE.borrow_mut().as_mut().and_then(|receive| {
            let (id, len) = receive.queue.pop_used()?;
            Some((id, len, *receive.buffers.get(usize::from(id))?))
        });
        let Some((id, len, buffer)) = next else {
            return;
        };
        let len = (len as usize).min(HEADER + MAX_FRAME);
        if len > HEADER {
            // SAFETY: the buffer has HEADER + MAX_FRAME bytes, and the device does not write it until it is posted again.
            handle(unsafe { core::slice::from_raw_parts(buffer.add(HEADER), len - HEADER) });
        }
        if let Some(receive) = RECEIVE.borrow_mut().as_mut() {
            receive.queue.push(id);
        }
    }
}
