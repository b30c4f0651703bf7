//! Bits of byte strings.

/// A fault has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hit {
    /// What became of what.
    pub(super) text: String,
    /// The byte of the object that was hit.
    pub(super) offset: u64,
}

/// Flips the bit that `pick` chooses. Answers with the byte and with words; nothing if there is no byte.
pub(super) fn flip(bytes: &mut [u8], pick: u64) -> Option<(u64, String)> {
    let at = (pick / 8).checked_rem(bytes.len() as u64)?;
    let bit = pick % 8;
    let byte = bytes.get_mut(at as usize)?;
    let before = *byte;
    *byte ^= 1 << bit;
    Some((
        at,
        format!(
            "has bit {bit} of byte {at} flipped: {before:#04x} became {:#04x}",
            *byte
        ),
    ))
}
