//! Guest-physical address map. Guest RAM is `[0, min(size, LOW_RAM_END))` and, beyond that,
//! `[HIGH_RAM_START, …)`.

/// End of the low RAM region: 3 GiB. What lies above it up to 4 GiB is for devices and KVM's own pages.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Start of RAM that did not fit below [`LOW_RAM_END`].
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;
/// Largest guest memory, in bytes (64 GiB).
pub const MAX_RAM: u64 = 64 << 30;
/// Smallest guest memory that the embedded kernel starts with, in bytes (32 MiB).
pub const MIN_RAM: u64 = 32 << 20;

/// First virtio-mmio register window; device `i` is at `MMIO_BASE + i * MMIO_STRIDE`.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// Bytes from one virtio-mmio window to the next.
pub const MMIO_STRIDE: u64 = 0x1000;
/// Upper bound of virtio-mmio windows in one machine.
pub const MMIO_SLOTS: u64 = 32;

/// The root image is mapped here, 2 MiB aligned, in a memory slot of its own.
pub const IMAGE_BASE: u64 = 0x40_0000_0000;

/// Slot of the entropy device among the virtio-mmio windows.
pub const SLOT_ENTROPY: u64 = 0;
/// Slot of the console device.
pub const SLOT_CONSOLE: u64 = 1;
/// Slot of the network device.
pub const SLOT_NET: u64 = 2;
/// Slot of the first block device; disk `i` is at `SLOT_BLOCK + i`.
pub const SLOT_BLOCK: u64 = 8;
/// Largest number of disks of one machine.
pub const MAX_DISKS: u64 = 8;
