//! Virtio devices over MMIO version 2 (virtio 1.3, 4.2). All queues are polled, and only after a boundary has returned
//! (R1): the notify register is never written, since the VMM drains every queue at each boundary, and interrupts
//! are switched off in every ring.

pub mod block;
pub mod console;
pub mod entropy;
pub mod mmio;
pub mod net;
#[cfg(test)]
mod tests;
pub mod virtqueue;

use crate::mm;
use mmio::Mmio;
use quorate_abi::map::{
    MAX_DISKS, MMIO_SLOTS, MMIO_STRIDE, SLOT_BLOCK, SLOT_CONSOLE, SLOT_ENTROPY, SLOT_NET,
};

/// Where queue memory comes from: [`mm::alloc_dma`], or something like it in tests.
pub type AllocDma = fn(usize) -> crate::errno::Result<(*mut u8, u64)>;

/// Why a device cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InitError {
    /// No device at its slot.
    Missing,
    /// The window does not hold a virtio-mmio device of version 2.
    NotVirtio,
    /// Another kind of device than expected.
    WrongDevice(u32),
    /// The device does not offer what the driver needs.
    Features(u64),
    /// The device refused the features that the driver chose.
    FeaturesRefused,
    /// A queue is missing or already in use.
    Queue(u32),
    /// No memory for the queues.
    Memory,
}

impl core::fmt::Display for InitError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Missing => write!(f, "no device at its slot"),
            Self::NotVirtio => write!(f, "not a virtio-mmio device of version 2"),
            Self::WrongDevice(id) => write!(f, "unexpected device id {id}"),
            Self::Features(offered) => {
                write!(f, "offers features {offered:#x}, which is not enough")
            }
            Self::FeaturesRefused => write!(f, "refused the driver's features"),
            Self::Queue(index) => write!(f, "queue {index} is missing or in use"),
            Self::Memory => write!(f, "no memory for queues"),
        }
    }
}

/// A device that did not start, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceError {
    /// Which one.
    pub device: &'static str,
    /// Why.
    pub why: InitError,
}

impl core::fmt::Display for DeviceError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}: {}", self.device, self.why)
    }
}

/// Starts the devices: console first (so that later failures can be printed), then entropy, network and disks. `base` is the
/// virtual address of the first window, bit `i` of `present` says that slot `i` holds a device.
/// No boundary happens in here: the random generator is seeded at the first boundary after it.
///
/// # Panics
/// If the VMM did not provide a device, or a broken one: nothing can run then.
pub fn init(base: u64, present: u64) {
    if let Err(error) = start(base, present) {
        panic!("{error}");
    }
}

/// [`init`], with the error.
///
/// # Errors
/// The first device that cannot be used; the ones before it stay usable.
pub fn start(base: u64, present: u64) -> Result<(), DeviceError> {
    let window = |slot: u64| {
        if slot < MMIO_SLOTS && present >> slot & 1 == 1 {
            Ok(Mmio::new(base + slot * MMIO_STRIDE))
        } else {
            Err(InitError::Missing)
        }
    };
    let named = |device| move |why| DeviceError { device, why };
    window(SLOT_CONSOLE)
        .and_then(|w| console::init(&w, mm::alloc_dma))
        .map_err(named("console"))?;
    window(SLOT_ENTROPY)
        .and_then(|w| entropy::init(&w, mm::alloc_dma))
        .map_err(named("entropy"))?;
    window(SLOT_NET)
        .and_then(|w| net::init(&w, mm::alloc_dma))
        .map_err(named("network"))?;
    for number in 0..MAX_DISKS {
        // Disks are the only devices that may be missing.
        if let Ok(w) = window(SLOT_BLOCK + number) {
            block::init(number as usize, &w, mm::alloc_dma).map_err(named("disk"))?;
        }
    }
    Ok(())
}

/// Fills `bytes` with random bytes from the set's input seed; see [`entropy::fill`].
pub fn fill_random(bytes: &mut [u8]) {
    entropy::fill(bytes);
}

/// Writes to the console; see [`console::write`].
pub fn console_write(bytes: &[u8]) {
    console::write(bytes);
}

/// Makes everything that was queued visible to the VMM. Call right before the boundary's `out`.
pub fn before_boundary() {
    console::publish();
    entropy::publish();
    net::publish();
    block::publish();
}

/// Takes back what the VMM used, and hands received frames to the network stack. Call after the time of the entry has
/// been set.
pub fn after_boundary() {
    console::reclaim();
    entropy::reclaim();
    net::reclaim();
    block::reclaim();
    net::poll_receive(crate::net::receive);
}
