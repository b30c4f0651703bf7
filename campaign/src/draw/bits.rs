//! Which bits of a word.

use super::stream::Stream;
use crate::file::Bits;
use crate::model::BitChange;

/// A mask of `bits.count` of the bits of `available`: any of them, or neighbours among them; each possible mask is alike. None if
/// there are not so many.
pub fn mask(bits: &Bits, available: u64, stream: &mut Stream) -> u64 {
    let have = u8::try_from(available.count_ones()).unwrap_or(64);
    if bits.count > have {
        return 0;
    }
    let chosen = if bits.burst {
        let start = stream.below(u64::from(have - bits.count) + 1);
        let run = u64::MAX >> (64 - u32::from(bits.count.max(1)));
        run << start
    } else {
        stream.subset(bits.count, have)
    };
    spread(chosen, available)
}

/// Bit n of `chosen` goes to the n-th bit that is set in `available`.
fn spread(chosen: u64, available: u64) -> u64 {
    let mut left = available;
    let mut mask = 0;
    let mut number = 0;
    while left != 0 {
        let lowest = left & left.wrapping_neg();
        if chosen >> number & 1 == 1 {
            mask |= lowest;
        }
        left ^= lowest;
        number += 1;
    }
    mask
}

pub fn change(bits: &Bits, stream: &mut Stream) -> BitChange {
    stream.one(&bits.change).copied().unwrap_or(BitChange::Flip)
}
