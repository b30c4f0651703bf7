//! The running digest of what the program does: every system call's number, result and content, no
//! addresses (R8). It goes out with every boundary, so that a divergence is caught at the call that caused it.
//! It need not resist an attacker: it is compared as bytes, and all other outputs are compared in full beside it.

use crate::cell::Global;
use quorate_abi::flight::CONTENT_LEN;

struct State {
    a: u64,
    b: u64,
    calls: u64,
    /// For the flight recorder: bytes of content since the last call that was recorded, and the first of them.
    content_len: u32,
    content: [u8; CONTENT_LEN],
}

static STATE: Global<State> = Global::new(State {
    a: 0x9e37_79b9_7f4a_7c15,
    b: 0xc2b2_ae3d_27d4_eb4f,
    calls: 0,
    content_len: 0,
    content: [0; CONTENT_LEN],
});

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a ^ 0xa076_1d64_78bd_642f) * u128::from(b ^ 0xe703_7ed1_a0b4_28db);
    (wide as u64) ^ ((wide >> 64) as u64)
}

impl State {
    #[inline]
    fn word(&mut self, value: u64) {
        self.a = fold(self.a ^ value, self.b);
        self.b = self.b.rotate_left(23) ^ self.a;
    }
}

/// Counts a system call and mixes in its number and one value (its result, unless that is an address).
#[inline]
pub fn call(number: u64, value: u64) {
    let mut state = STATE.borrow_mut();
    state.calls += 1;
    state.word(number << 48 ^ value);
}

/// Mixes in one number that a system call carried (a descriptor, a length, flags; never an address).
#[inline]
pub fn number(value: u64) {
    STATE.borrow_mut().word(value);
}

/// Mixes in content that leaves or enters the program (bytes written, bytes read).
pub fn content(bytes: &[u8]) {
    let mut state = STATE.borrow_mut();
    if state.content_len == 0 {
        let len = bytes.len().min(CONTENT_LEN);
        state.content[..len].copy_from_slice(&bytes[..len]);
    }
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    state.content_len = state.content_len.saturating_add(len);
    state.word(bytes.len() as u64);
    let (mut a, mut b) = (state.a, state.b);
    let mut chunks = bytes.chunks_exact(16);
    for chunk in &mut chunks {
        let (x, y) = chunk.split_at(8);
        let x = u64::from_le_bytes(x.try_into().unwrap_or_default());
        let y = u64::from_le_bytes(y.try_into().unwrap_or_default());
        a = fold(a ^ x, b ^ y);
        b = b.rotate_left(23) ^ a;
    }
    let mut tail = [0u8; 16];
    tail[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    let (x, y) = tail.split_at(8);
    state.a = a;
    state.b = b;
    state.word(u64::from_le_bytes(x.try_into().unwrap_or_default()));
    state.word(u64::from_le_bytes(y.try_into().unwrap_or_default()));
}

/// The digest and the number of calls so far.
pub fn current() -> ([u64; 2], u64) {
    let state = STATE.borrow();
    ([state.a, state.b], state.calls)
}

/// What the flight recorder keeps of a call.
pub struct Noted {
    /// First word of the digest.
    pub digest: u64,
    /// Calls so far.
    pub calls: u64,
    /// Bytes of content since the last call that was noted.
    pub content_len: u32,
    /// The first of them.
    pub content: [u8; CONTENT_LEN],
}

/// Takes what was noted since the last time.
#[inline]
pub fn take_noted() -> Noted {
    let mut state = STATE.borrow_mut();
    let noted = Noted {
        digest: state.a,
        calls: state.calls,
        content_len: state.content_len,
        content: state.content,
    };
    if noted.content_len != 0 {
        state.content_len = 0;
        state.content = [0; CONTENT_LEN];
    }
    noted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_content_counts() {
        let _guard = crate::cell::test_lock();
        let digest = |bytes: &[u8]| {
            *STATE.borrow_mut() = State {
                a: 1,
                b: 2,
                calls: 0,
                content_len: 0,
                content: [0; CONTENT_LEN],
            };
            content(bytes);
            current().0
        };
        let base = [7u8; 37];
        let reference = digest(&base);
        for bit in 0..37 * 8 {
            let mut changed = base;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(digest(&changed), reference, "bit {bit}");
        }
        assert_ne!(digest(&base[..36]), reference);
    }
}
