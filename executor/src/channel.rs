//! The channels that outputs go to. The voter compares per channel (R2) and keeps each one's order (R3).

use quorate_voter::Channel;

/// Network frames.
pub const NET: Channel = Channel(0);
/// Console bytes.
pub const CONSOLE: Channel = Channel(1);
/// The guest kernel's running digest of its system calls.
pub const FINGERPRINT: Channel = Channel(2);
/// The end of the guest program, with its wait status.
pub const CONTROL: Channel = Channel(3);
/// Number of channels.
pub const COUNT: usize = 4;

/// The channel's name for people.
pub fn name(channel: Channel) -> &'static str {
    match channel {
        NET => "network",
        CONSOLE => "console",
        FINGERPRINT => "system-call fingerprint",
        CONTROL => "control",
        _ => "unknown",
    }
}
