//! What a Linux guest's initial user space and the VMM must agree on.

/// I/O port that says how the program of a Linux appliance ended, right before the guest powers off: one 32-bit write, made by
/// [`exit_value`].
pub const EXIT_PORT: u16 = 0xf4;

/// What is written to [`EXIT_PORT`] for a wait status, as `wait4` gives it: bits 0 to 7 the exit code, bits 8 to 15 the signal that
/// ended it.
#[must_use]
pub const fn exit_value(wait_status: u32) -> u32 {
    let (code, signal) = (wait_status >> 8 & 0xff, wait_status & 0x7f);
    signal << 8 | code
}

/// The wait status that a value written to [`EXIT_PORT`] stands for. The guest may write anything (R9): other bits are ignored.
#[must_use]
pub const fn wait_status(exit_value: u32) -> u32 {
    let (code, signal) = (exit_value & 0xff, exit_value >> 8 & 0x7f);
    code << 8 | signal
}

#[cfg(test)]
mod tests {
    use super::{exit_value, wait_status};

    #[test]
    fn statuses_survive() {
        for status in [0, 1 << 8, 255 << 8, 9, 15, 137 << 8] {
            assert_eq!(wait_status(exit_value(status)), status);
        }
        assert_eq!(exit_value(3 << 8), 3);
        assert_eq!(wait_status(u32::MAX), 0xff7f);
    }
}
