//! Where things are in a Linux machine: guest-physical addresses, I/O ports and interrupt lines. RAM and the windows of the virtio devices
//! are where `quorate_abi::map` has them for all machines.

use quorate_abi::map;

/// Segment descriptors of the first processor's first moments.
pub(crate) const GDT: u64 = 0x1000;
/// Page tables for those: one table each of the two upper levels, then [`PAGE_DIRECTORIES`] of the third.
pub(crate) const PAGE_TABLES: u64 = 0x2000;
/// 1 GiB each, identity-mapped with pages of 2 MiB.
pub(crate) const PAGE_DIRECTORIES: u64 = 4;
/// `struct boot_params`.
pub(crate) const ZERO_PAGE: u64 = 0x9000;
/// `struct hvm_start_info` with what belongs to it, for PVH.
pub(crate) const START_INFO: u64 = 0xa000;
/// `struct setup_data` with the seed.
pub(crate) const SETUP_DATA: u64 = 0xb000;
/// Top of the first stack.
pub(crate) const STACK: u64 = 0xf000;
/// The command line, at most [`COMMAND_LINE_ROOM`] bytes with its NUL.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// See [`COMMAND_LINE`].
pub(crate) const COMMAND_LINE_ROOM: usize = 0x1_0000;
/// End of RAM that is usual below 640 KiB.
pub(crate) const LOW_END: u64 = 0x9_fc00;
/// ACPI tables, up to [`HIGH`]: where a BIOS has its data.
pub(crate) const ACPI: u64 = 0xe_0000;
/// RAM goes on here.
pub(crate) const HIGH: u64 = 0x10_0000;

/// The local interrupt controllers.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// The I/O interrupt controller, 24 lines.
pub(crate) const IO_APIC: u32 = 0xfec0_0000;

/// The first serial port, 8 ports.
pub(crate) const SERIAL: u16 = 0x3f8;
/// Its interrupt line.
pub(crate) const SERIAL_GSI: u32 = 4;
/// The keyboard controller's command port: only its reset line exists.
pub(crate) const KEYBOARD: u16 = 0x64;
/// The command that pulls the reset line.
pub(crate) const KEYBOARD_RESET: u8 = 0xfe;
/// ACPI's reset register and sleep control register.
pub(crate) const POWER: u16 = 0x600;
/// ACPI's sleep status register.
pub(crate) const POWER_STATUS: u16 = 0x601;
/// Written to [`POWER`]: reset.
pub(crate) const POWER_RESET: u8 = 1;
/// The sleep type that means off, as the DSDT has it in `_S5_`.
pub(crate) const SLEEP_OFF: u8 = 5;
/// Written to [`POWER`]: off. ACPI 6.5, 4.8.3.7: the type in bits 2 to 4, and the enable bit.
pub(crate) const POWER_OFF: u8 = SLEEP_OFF << 2 | 1 << 5;
/// Interrupt line of the generic event device, which stands for the power button.
pub(crate) const POWER_BUTTON_GSI: u32 = 9;

/// Interrupt line of a virtio device; `None` for a window that never has one.
pub(crate) fn gsi(slot: u64) -> Option<u32> {
    const DISKS: u64 = map::SLOT_BLOCK;
    const LAST_DISK: u64 = map::SLOT_BLOCK + map::MAX_DISKS - 1;
    match slot {
        map::SLOT_ENTROPY => Some(5),
        map::SLOT_CONSOLE => Some(6),
        map::SLOT_NET => Some(7),
        DISKS..=LAST_DISK => Some(16 + (slot - DISKS) as u32),
        _ => None,
    }
}
