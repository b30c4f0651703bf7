//! The channels that outputs go to. The voter compares per channel (R2) and keeps each one's order (R3).

use quorate_abi::map::MAX_DISKS;
use quorate_voter::Channel;

/// Network frames.
pub const NET: Channel = Channel(0);
/// Console bytes.
pub const CONSOLE: Channel = Channel(1);
/// The guest kernel's running digest of its system calls.
pub const FINGERPRINT: Channel = Channel(2);
/// The end of the guest program, with its wait status.
pub const CONTROL: Channel = Channel(3);
/// Channel of disk 0; each disk has one (R3).
const FIRST_DISK: u16 = 4;
/// Number of channels.
pub const COUNT: usize = FIRST_DISK as usize + MAX_DISKS as usize;

/// The channel of a disk.
pub const fn disk(number: u8) -> Channel {
    Channel(FIRST_DISK + number as u16)
}

/// The number of the disk whose channel it is.
pub fn disk_of(channel: Channel) -> Option<u8> {
    let number = channel.0.checked_sub(FIRST_DISK)?;
    u8::try_from(number)
        .ok()
        .filter(|n| u64::from(*n) < MAX_DISKS)
}

/// The channel's name for people.
pub fn name(channel: Channel) -> &'static str {
    match channel {
        NET => "network",
        CONSOLE => "console",
        FINGERPRINT => "system-call fingerprint",
        CONTROL => "control",
        _ if disk_of(channel).is_some() => "disk",
        _ => "unknown",
    }
}
