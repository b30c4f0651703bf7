//! virtio-blk (virtio 1.3, 5.2): one queue per disk. A request is a chain of header, data and status in memory that belongs to the
//! driver. The device works in the order of the queue: a read sees the writes before it, a flush covers them. So writes are queued
//! and forgotten (what goes wrong with one fails the next flush), and threads wait for reads and flushes only.

use super::mmio::{self, Window, register};
use super::virtqueue::Virtqueue;
use super::{AllocDma, InitError};
use crate::boundary;
use crate::cell::Global;
use crate::fs::disk::device::{BlockDevice, Failed, SECTOR};
use crate::wait::WaitQueue;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::sync::atomic::{AtomicBool, Ordering};

const DEVICE_ID: u32 = 2;
const F_RO: u64 = 1 << 5;
const F_FLUSH: u64 = 1 << 9;
const QUEUE_SIZE: u16 = 256;
const PAGE: usize = quorate_abi::PAGE_SIZE as usize;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
/// Bytes of a request's header.
const HEADER: usize = 16;
/// Status before the device has written it.
const PENDING: u8 = 0xff;
const OK: u8 = 0;

/// Requests with few bytes of data, and how many that are. Together with the large ones the bound on what is in flight (R10):
/// when all are, the next request takes boundaries until one has come back.
const SMALL: Class = Class {
    slots: 48,
    bytes: 16 << 10,
};
/// Requests of any size.
const LARGE: Class = Class {
    slots: 4,
    bytes: crate::fs::disk::device::MAX_REQUEST,
};
/// Large requests when the guest has little memory.
const LARGE_SLOTS_SMALL_GUEST: u16 = 2;
/// Guests with less memory than this (bytes) have fewer large requests.
const SMALL_GUEST: u64 = 96 << 20;

/// Descriptors of a request: header, data, status.
const PER_SLOT: u16 = 3;
const _: () = assert!((SMALL.slots + LARGE.slots) * PER_SLOT <= QUEUE_SIZE);
// All headers fit in the first half of a page, all status bytes in the second.
const _: () = assert!((SMALL.slots + LARGE.slots) as usize * HEADER <= PAGE / 2);

struct Class {
    slots: u16,
    bytes: usize,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ok,
    Failed,
}

struct State {
    queue: Virtqueue,
    alloc: AllocDma,
    /// Page of headers and status bytes.
    control: (*mut u8, u64),
    /// Data buffers by slot, with their physical addresses; allocated when first needed.
    buffers: Vec<Option<(*mut u8, u64)>>,
    large_slots: u16,
    free_small: Vec<u16>,
    free_large: Vec<u16>,
    /// Requests that somebody waits for, by slot: done or not.
    waited: BTreeMap<u16, Option<Outcome>>,
}

/// A disk.
pub struct Disk {
    number: usize,
    bytes: u64,
    read_only: bool,
    state: RefCell<State>,
    /// Woken when a read or a flush is done.
    done: WaitQueue,
    /// A write has failed: flushes fail from then on.
    failed: Cell<bool>,
}

static DISKS: Global<BTreeMap<usize, Rc<Disk>>> = Global::new(BTreeMap::new());
/// The calling thread is the only one that may run: at the end.
static ALONE: AtomicBool = AtomicBool::new(false);

/// The disk with a number.
pub fn disk(number: usize) -> Option<Rc<Disk>> {
    DISKS.borrow().get(&number).cloned()
}

/// From now on waiting for a disk does not let other threads run.
pub fn run_alone() {
    ALONE.store(true, Ordering::Relaxed);
}

/// Starts a disk.
///
/// # Errors
/// See [`InitError`].
pub fn init(number: usize, window: &impl Window, alloc: AllocDma) -> Result<(), InitError> {
    let features = mmio::negotiate(window, DEVICE_ID, F_RO | F_FLUSH)?;
    let read_only = features & F_RO != 0;
    if !read_only && features & F_FLUSH == 0 {
        // What is never flushed is never safe.
        return Err(InitError::Features(features));
    }
    let queue = mmio::queue(window, 0, QUEUE_SIZE, alloc)?;
    if queue.size() < (SMALL.slots + LARGE.slots) * PER_SLOT {
        return Err(InitError::Queue(0));
    }
    let sectors = u64::from(window.read(register::CONFIG))
        | u64::from(window.read(register::CONFIG + 4)) << 32;
    let control = alloc(1).map_err(|_| InitError::Memory)?;
    let large_slots = if crate::mm::memory_info().0 < SMALL_GUEST {
        LARGE_SLOTS_SMALL_GUEST
    } else {
        LARGE.slots
    };
    let slots = SMALL.slots + large_slots;
    let bytes = usize::from(SMALL.slots) * SMALL.bytes + usize::from(large_slots) * LARGE.bytes;
    crate::mm::budget::take((bytes / PAGE) as u64).map_err(|_| InitError::Memory)?;
    mmio::start(window);
    let state = State {
        queue,
        alloc,
        control,
        buffers: (0..slots).map(|_| None).collect(),
        large_slots,
        free_small: (0..SMALL.slots).rev().collect(),
        free_large: (SMALL.slots..slots).rev().collect(),
        waited: BTreeMap::new(),
    };
    let disk = Disk {
        number,
        bytes: sectors.saturating_mul(SECTOR),
        read_only,
        state: RefCell::new(state),
        done: WaitQueue::new(),
        failed: Cell::new(false),
    };
    DISKS.borrow_mut().insert(number, Rc::new(disk));
    Ok(())
}

impl State {
    /// A free slot whose buffer holds `len` bytes.
    fn take(&mut self, len: usize) -> Option<u16> {
        let slot = if len <= SMALL.bytes && !self.free_small.is_empty() {
            self.free_small.pop()?
        } else {
            self.free_large.pop()?
        };
        if len > 0 && self.buffers[usize::from(slot)].is_none() {
            let bytes = if slot < SMALL.slots {
                SMALL.bytes
            } else {
                LARGE.bytes
            };
            match (self.alloc)(bytes / PAGE) {
                Ok(buffer) => self.buffers[usize::from(slot)] = Some(buffer),
                Err(_) => {
                    self.give_back(slot);
                    return None;
                }
            }
        }
        Some(slot)
    }

    fn give_back(&mut self, slot: u16) {
        if slot < SMALL.slots {
            self.free_small.push(slot);
        } else if slot < SMALL.slots + self.large_slots {
            self.free_large.push(slot);
        }
    }

    fn status(&self, slot: u16) -> *mut u8 {
        // SAFETY: within the control page, see the assertions above.
        unsafe { self.control.0.add(PAGE / 2 + usize::from(slot)) }
    }

    /// Queues the request in `slot`, whose data (if it writes) are in its buffer.
    fn push(&mut self, slot: u16, kind: u32, sector: u64, len: usize) {
        let first = slot * PER_SLOT;
        let (control, physical) = self.control;
        let header = usize::from(slot) * HEADER;
        // SAFETY: header and status of a slot that is not in flight: nobody else uses them.
        unsafe {
            let at = control.add(header);
            at.cast::<u32>().write(kind);
            at.add(4).cast::<u32>().write(0);
            at.add(8).cast::<u64>().write(sector);
            self.status(slot).write_volatile(PENDING);
        }
        let (data, status) = (first + 1, first + 2);
        let header_at = physical + header as u64;
        self.queue.describe(first, header_at, HEADER as u32, false);
        let status_at = physical + (PAGE / 2 + usize::from(slot)) as u64;
        self.queue.describe(status, status_at, 1, true);
        if let Some((_, buffer)) = self.buffers[usize::from(slot)].filter(|_| len > 0) {
            self.queue.describe(data, buffer, len as u32, kind == T_IN);
            self.queue.link(first, Some(data));
            self.queue.link(data, Some(status));
        } else {
            self.queue.link(first, Some(status));
        }
        self.queue.push(first);
    }
}

/// One boundary, at which the device works. (In unit tests the device is a function.)
fn turn() {
    #[cfg(test)]
    if let Some(device) = *TEST_DEVICE.borrow() {
        return device();
    }
    boundary::sync_now();
}

/// The device of unit tests.
#[cfg(test)]
pub static TEST_DEVICE: Global<Option<fn()>> = Global::new(None);

impl Disk {
    fn slot(&self, len: usize) -> Result<u16, Failed> {
        // Only writes can fill the queue (those who wait are as many as there are volumes), and each boundary ends writes.
        loop {
            let taken = self.state.borrow_mut().take(len);
            match taken {
                Some(slot) => return Ok(slot),
                None if self.in_flight() => turn(),
                None => {
                    crate::klog!("disk{}: no memory for requests", self.number);
                    return Err(Failed);
                }
            }
        }
    }

    fn in_flight(&self) -> bool {
        let state = self.state.borrow();
        let free = state.free_small.len() + state.free_large.len();
        free < usize::from(SMALL.slots + state.large_slots)
    }

    fn wait_once(&self) {
        #[cfg(test)]
        return turn();
        #[cfg(not(test))]
        if ALONE.load(Ordering::Relaxed) {
            boundary::idle();
        } else {
            crate::wait::wait_uninterruptible(&self.done);
        }
    }

    /// Queues a request and waits until it is done.
    fn finish(&self, slot: u16, kind: u32, sector: u64, len: usize) -> Result<(), Failed> {
        {
            let mut state = self.state.borrow_mut();
            state.waited.insert(slot, None);
            state.push(slot, kind, sector, len);
        }
        loop {
            let outcome = self.state.borrow().waited.get(&slot).copied().flatten();
            match outcome {
                Some(Outcome::Ok) => return Ok(()),
                Some(Outcome::Failed) => {
                    let what = if kind == T_FLUSH { "flush" } else { "read" };
                    crate::klog!("disk{}: {what} at sector {sector} failed", self.number);
                    return Err(Failed);
                }
                None => self.wait_once(),
            }
        }
    }

    /// The waiter is done with a slot.
    fn release(&self, slot: u16) {
        let mut state = self.state.borrow_mut();
        state.waited.remove(&slot);
        state.give_back(slot);
    }

    fn reclaim(&self) {
        let mut state = self.state.borrow_mut();
        let mut woken = false;
        while let Some((id, _)) = state.queue.pop_used() {
            let slot = id / PER_SLOT;
            if usize::from(slot) >= state.buffers.len() {
                continue;
            }
            // SAFETY: a status byte of the driver's.
            let status = unsafe { state.status(slot).read_volatile() };
            let outcome = if status == OK {
                Outcome::Ok
            } else {
                Outcome::Failed
            };
            if let Some(waited) = state.waited.get_mut(&slot) {
                *waited = Some(outcome);
                woken = true;
                continue;
            }
            if outcome == Outcome::Failed {
                self.failed.set(true);
            }
            state.give_back(slot);
        }
        drop(state);
        if woken {
            self.done.wake_all();
        }
    }
}

impl BlockDevice for Disk {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, sector: u64, to: &mut [u8]) -> Result<(), Failed> {
        let slot = self.slot(to.len())?;
        let result = self.finish(slot, T_IN, sector, to.len());
        if result.is_ok()
            && let Some((buffer, _)) = self.state.borrow().buffers[usize::from(slot)]
        {
            // SAFETY: the buffer holds as many bytes as `slot` was asked for; the device has done with it.
            unsafe { core::ptr::copy_nonoverlapping(buffer, to.as_mut_ptr(), to.len()) };
        }
        self.release(slot);
        result
    }

    fn write(&self, sector: u64, from: &[u8]) -> Result<(), Failed> {
        if self.failed.get() || self.read_only {
            return Err(Failed);
        }
        let slot = self.slot(from.len())?;
        let mut state = self.state.borrow_mut();
        let Some((buffer, _)) = state.buffers[usize::from(slot)] else {
            return Err(Failed);
        };
        // SAFETY: the buffer holds as many bytes as `slot` was asked for, and is not in flight.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), buffer, from.len()) };
        state.push(slot, T_OUT, sector, from.len());
        Ok(())
    }

    fn flush(&self) -> Result<(), Failed> {
        if self.read_only {
            return Ok(());
        }
        let slot = self.slot(0)?;
        let result = self.finish(slot, T_FLUSH, 0, 0);
        self.release(slot);
        if self.failed.get() {
            crate::klog!("disk{}: a write failed", self.number);
            return Err(Failed);
        }
        result
    }
}

/// Lets the devices see what was queued.
pub fn publish() {
    for disk in DISKS.borrow().values() {
        disk.state.borrow_mut().queue.publish();
    }
}

/// Takes back what the devices have done, and wakes who waits for it.
pub fn reclaim() {
    for disk in DISKS.borrow().values() {
        disk.reclaim();
    }
}

/// Unit tests: no disks any more.
#[cfg(test)]
pub fn forget_all() {
    DISKS.borrow_mut().clear();
}
