//! Flipped bits as events tell of them, beside what was found.

use quorate_vmm::Register;
use quorate_vmm::fault::FaultRegister;

use crate::explain::find::Divergence;
use crate::explain::report::Cause;

/// What a register is called that the program will have when its kernel goes back to it.
pub(super) fn of_program(register: FaultRegister) -> String {
    format!("{} of the program", register.name())
}

/// A flipped bit, as an event tells it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Flipped {
    Memory { at: u64, bit: u8 },
    Register { register: Register, bit: u8 },
    Program { register: FaultRegister, bit: u8 },
}

/// Reads what [`crate::machine`] or a campaign says of a flip that it made: `physical address 0x1234 bit 5: …`, `rbx bit 7: …` or
/// `the program's rbx bit 7: …`.
pub(super) fn flipped(detail: &str) -> Option<Flipped> {
    let words: Vec<&str> = detail.split_whitespace().collect();
    let place = words.windows(3).position(|three| three[1] == "bit")?;
    let bit = words[place + 2].trim_end_matches(':').parse().ok()?;
    let what = words[place].trim_end_matches(',');
    match what.strip_prefix("0x") {
        Some(address) => Some(Flipped::Memory {
            at: u64::from_str_radix(address, 16).ok()?,
            bit,
        }),
        None if place > 0 && words[place - 1] == "program's" => Some(Flipped::Program {
            register: what.parse().ok()?,
            bit,
        }),
        None => Some(Flipped::Register {
            register: what.parse().ok()?,
            bit,
        }),
    }
}

/// Whether what was found is what was injected; none if nothing was, or what was is no flipped bit.
pub(super) fn agrees(cause: &Cause, divergence: &Divergence) -> Option<bool> {
    let mut flips = divergence
        .injected
        .iter()
        .filter_map(|injected| flipped(&injected.detail))
        .peekable();
    flips.peek()?;
    Some(flips.any(|flip| match (cause, flip) {
        (
            Cause::Memory {
                place, bit: found, ..
            },
            Flipped::Memory { at, bit },
        ) => (place.physical, *found) == (at, bit),
        (
            Cause::Register {
                register,
                bit: found,
                ..
            },
            Flipped::Register {
                register: other,
                bit,
            },
        ) => *register == other.name() && *found == bit,
        (
            Cause::Register {
                register,
                bit: found,
                ..
            },
            Flipped::Program {
                register: other,
                bit,
            },
        ) => *register == of_program(other) && *found == bit,
        _ => false,
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn what_an_event_says_of_a_flip_is_understood() {
        let memory = flipped("physical address 0x5c123 bit 5: 0x41 became 0x61").unwrap();
        assert!(matches!(
            memory,
            Flipped::Memory {
                at: 0x5c123,
                bit: 5
            }
        ));
        let register = flipped("rbx bit 42: 0x1 became 0x2").unwrap();
        assert!(
            matches!(register, Flipped::Register { register, bit: 42 } if register.name() == "rbx")
        );
        let program = flipped("flip: the program's fs_base bit 63: 0x1 became 0x2").unwrap();
        assert!(
            matches!(program, Flipped::Program { register, bit: 63 } if register.name() == "fs_base")
        );
        assert!(flipped("its next frame or console output is changed").is_none());
        assert!(flipped("a triple fault").is_none());
    }
}
