//! The virtio-mmio transport, version 2 (virtio 1.3, 4.2.2), and the initialisation sequence (3.1.1).

use super::virtqueue::Virtqueue;
use super::{AllocDma, InitError};

/// Registers, as byte offsets.
pub mod register {
    #![allow(missing_docs)]
    pub const MAGIC: u32 = 0x000;
    pub const VERSION: u32 = 0x004;
    pub const DEVICE_ID: u32 = 0x008;
    pub const DEVICE_FEATURES: u32 = 0x010;
    pub const DEVICE_FEATURES_SEL: u32 = 0x014;
    pub const DRIVER_FEATURES: u32 = 0x020;
    pub const DRIVER_FEATURES_SEL: u32 = 0x024;
    pub const QUEUE_SEL: u32 = 0x030;
    pub const QUEUE_SIZE_MAX: u32 = 0x034;
    pub const QUEUE_SIZE: u32 = 0x038;
    pub const QUEUE_READY: u32 = 0x044;
    pub const STATUS: u32 = 0x070;
    pub const QUEUE_DESC_LOW: u32 = 0x080;
    pub const QUEUE_DESC_HIGH: u32 = 0x084;
    pub const QUEUE_DRIVER_LOW: u32 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u32 = 0x094;
    pub const QUEUE_DEVICE_LOW: u32 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u32 = 0x0a4;
    pub const CONFIG: u32 = 0x100;
}

/// Bits of the status register.
pub mod status {
    #![allow(missing_docs)]
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const FAILED: u32 = 128;
}

/// "virt", little-endian.
pub const MAGIC: u32 = 0x7472_6976;
/// The only version driven here.
pub const VERSION: u32 = 2;
/// VIRTIO_F_VERSION_1.
pub const F_VERSION_1: u64 = 1 << 32;

/// Access to a device's registers.
pub trait Window {
    /// Reads a 32-bit register.
    fn read(&self, register: u32) -> u32;
    /// Writes a 32-bit register.
    fn write(&self, register: u32, value: u32);
}

/// A window of real registers.
pub struct Mmio {
    base: u64,
}

impl Mmio {
    /// The window at virtual address `base`.
    pub fn new(base: u64) -> Self {
        Self { base }
    }
}

impl Window for Mmio {
    fn read(&self, register: u32) -> u32 {
        // SAFETY: `base` is the address of a register window that the VMM maps (boot information), and all
        // registers used are aligned and below its size.
        unsafe { ((self.base + u64::from(register)) as *const u32).read_volatile() }
    }

    fn write(&self, register: u32, value: u32) {
        // SAFETY: as in `read`.
        unsafe { ((self.base + u64::from(register)) as *mut u32).write_volatile(value) }
    }
}

/// Resets the device and negotiates features: `VERSION_1` and what of `wanted` it offers. Returns the features in effect.
///
/// # Errors
/// If it is not a virtio 1 device of kind `device_id`, or refuses.
pub fn negotiate(window: &impl Window, device_id: u32, wanted: u64) -> Result<u64, InitError> {
    if window.read(register::MAGIC) != MAGIC || window.read(register::VERSION) != VERSION {
        return Err(InitError::NotVirtio);
    }
    let id = window.read(register::DEVICE_ID);
    if id != device_id {
        return Err(InitError::WrongDevice(id));
    }
    window.write(register::STATUS, 0);
    window.write(register::STATUS, status::ACKNOWLEDGE);
    let driver = status::ACKNOWLEDGE | status::DRIVER;
    window.write(register::STATUS, driver);
    let mut offered = 0;
    for half in 0..2 {
        window.write(register::DEVICE_FEATURES_SEL, half);
        offered |= u64::from(window.read(register::DEVICE_FEATURES)) << (32 * half);
    }
    if offered & F_VERSION_1 == 0 {
        window.write(register::STATUS, driver | status::FAILED);
        return Err(InitError::Features(offered));
    }
    let accepted = offered & (wanted | F_VERSION_1);
    for half in 0..2 {
        window.write(register::DRIVER_FEATURES_SEL, half);
        window.write(register::DRIVER_FEATURES, (accepted >> (32 * half)) as u32);
    }
    window.write(register::STATUS, driver | status::FEATURES_OK);
    if window.read(register::STATUS) & status::FEATURES_OK == 0 {
        window.write(register::STATUS, driver | status::FAILED);
        return Err(InitError::FeaturesRefused);
    }
    Ok(accepted)
}

/// Sets up queue `index` with at most `largest` entries.
///
/// # Errors
/// If the device has no such queue, or there is no memory.
pub fn queue(
    window: &impl Window,
    index: u32,
    largest: u16,
    alloc: AllocDma,
) -> Result<Virtqueue, InitError> {
    window.write(register::QUEUE_SEL, index);
    let most = window.read(register::QUEUE_SIZE_MAX);
    if most == 0 || window.read(register::QUEUE_READY) != 0 {
        return Err(InitError::Queue(index));
    }
    // Sizes of split queues are powers of two (2.7).
    let most = u16::try_from(most).unwrap_or(1 << 15).min(largest);
    let size = 1 << most.ilog2();
    let queue = Virtqueue::new(size, alloc).map_err(|_| InitError::Memory)?;
    let at = queue.addresses();
    window.write(register::QUEUE_SIZE, u32::from(size));
    for (low, high, address) in [
        (
            register::QUEUE_DESC_LOW,
            register::QUEUE_DESC_HIGH,
            at.descriptors,
        ),
        (
            register::QUEUE_DRIVER_LOW,
            register::QUEUE_DRIVER_HIGH,
            at.available,
        ),
        (
            register::QUEUE_DEVICE_LOW,
            register::QUEUE_DEVICE_HIGH,
            at.used,
        ),
    ] {
        window.write(low, address as u32);
        window.write(high, (address >> 32) as u32);
    }
    window.write(register::QUEUE_READY, 1);
    Ok(queue)
}

/// Tells the device that the driver is ready.
pub fn start(window: &impl Window) {
    window.write(
        register::STATUS,
        status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK,
    );
}
