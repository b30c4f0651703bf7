//! A stream of bytes from a seed: ChaCha20 (RFC 8439) with the seed as key and a label as nonce.

use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};

/// Bytes in one stream: RFC 8439 counts 64-byte blocks in 32 bits. The last block is left out, so that no
/// arithmetic at the end can wrap.
const STREAM_BYTES: u64 = (1 << 38) - 64;

/// Deterministic random bytes. Two streams with different labels are independent, also for the same seed.
#[derive(Clone, Debug)]
pub struct SeedStream {
    seed: [u8; 32],
    label: [u8; 12],
    position: u64,
}

impl SeedStream {
    /// The stream of `seed` that is named `label`.
    #[must_use]
    pub const fn new(seed: [u8; 32], label: [u8; 12]) -> Self {
        Self {
            seed,
            label,
            position: 0,
        }
    }

    /// Bytes taken so far.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Continues at `position`, as when a saved device is restored.
    pub const fn seek(&mut self, position: u64) {
        self.position = position;
    }

    /// Fills `buffer` with the next bytes. False, and `buffer` all zero, if the stream is used up (256 GiB).
    #[must_use]
    pub fn fill(&mut self, buffer: &mut [u8]) -> bool {
        buffer.fill(0);
        let Some(end) = self.position.checked_add(buffer.len() as u64) else {
            return false;
        };
        if end > STREAM_BYTES {
            return false;
        }
        let mut cipher = ChaCha20::new(&self.seed.into(), &self.label.into());
        if cipher.try_seek(self.position).is_err() || cipher.try_apply_keystream(buffer).is_err() {
            buffer.fill(0);
            return false;
        }
        self.position = end;
        true
    }

    /// The next eight bytes as a little-endian number; `None` if the stream is used up.
    #[must_use]
    pub fn next_u64(&mut self) -> Option<u64> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes).then(|| u64::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// RFC 8439, appendix A.1, test vector 1: key and nonce zero, counter 0.
    #[test]
    fn is_chacha20() {
        let mut bytes = [0; 8];
        assert!(SeedStream::new([0; 32], [0; 12]).fill(&mut bytes));
        assert_eq!(bytes, [0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90]);
    }

    #[test]
    fn is_the_same_however_it_is_cut() {
        let mut whole = [0; 300];
        assert!(SeedStream::new([7; 32], *b"a label     ").fill(&mut whole));
        let mut stream = SeedStream::new([7; 32], *b"a label     ");
        let mut parts = Vec::new();
        for len in [1, 63, 64, 65, 107] {
            let mut part = vec![0; len];
            assert!(stream.fill(&mut part));
            parts.extend(part);
        }
        assert_eq!(parts, whole);
        stream.seek(64);
        let mut again = [0; 10];
        assert!(stream.fill(&mut again));
        assert_eq!(again, whole[64..74]);
    }

    #[test]
    fn labels_and_seeds_separate_streams() {
        let first = SeedStream::new([7; 32], *b"a label     ").next_u64();
        assert_ne!(first, SeedStream::new([7; 32], *b"b label     ").next_u64());
        assert_ne!(first, SeedStream::new([8; 32], *b"a label     ").next_u64());
    }

    #[test]
    fn ends_without_wrapping() {
        let mut stream = SeedStream::new([7; 32], [0; 12]);
        stream.seek(STREAM_BYTES - 4);
        let mut bytes = [1; 5];
        assert!(!stream.fill(&mut bytes));
        assert_eq!(bytes, [0; 5]);
        assert!(stream.fill(&mut bytes[..4]));
        stream.seek(u64::MAX);
        assert!(!stream.fill(&mut bytes));
    }
}
