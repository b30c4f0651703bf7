//! Running digests of what a set released and of what it was given.
//!
//! Two runs with equal input digests must have equal output digests (design §5): that is how a divergence
//! between runs, layouts or versions is found without keeping either.

use crate::channel;
use quorate_devices::{BlockStatus, Entry, Waiting};
use quorate_voter::Channel;

/// Digest of all releases so far. One hash per channel, because only the order within a channel is fixed (R3):
/// which of two channels is released first depends on which replica's ballot came last.
#[derive(Clone)]
pub struct ReleaseDigest {
    channels: Vec<blake3::Hasher>,
}

impl Default for ReleaseDigest {
    fn default() -> Self {
        ReleaseDigest {
            channels: (0..channel::COUNT).map(|_| blake3::Hasher::new()).collect(),
        }
    }
}

impl ReleaseDigest {
    /// Takes in one release.
    pub fn absorb(&mut self, boundary: u64, channel: Channel, bytes: &[u8]) {
        if let Some(hasher) = self.channels.get_mut(usize::from(channel.0)) {
            let mut head = [0; 16];
            head[..8].copy_from_slice(&boundary.to_le_bytes());
            head[8..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
            hasher.update(&head);
            hasher.update(bytes);
        }
    }

    /// The digest of everything taken in so far.
    pub fn current(&self) -> blake3::Hash {
        let mut all = blake3::Hasher::new();
        for hasher in &self.channels {
            all.update(hasher.finalize().as_bytes());
        }
        all.finalize()
    }
}

/// Digest of all entries so far.
#[derive(Clone, Default)]
pub struct EntryDigest {
    hasher: blake3::Hasher,
}

impl EntryDigest {
    /// Takes in the entry of the next boundary.
    pub fn absorb(&mut self, boundary: u64, entry: &Entry) {
        let mut head = [0; 56];
        let fields = [
            boundary,
            entry.monotonic_ns,
            entry.realtime_ns,
            entry.flags,
            entry.frames.len() as u64,
            entry.console.len() as u64,
            entry.completions.len() as u64,
        ];
        for (place, field) in head.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        self.hasher.update(&head);
        for frame in &entry.frames {
            self.hasher.update(&(frame.len() as u64).to_le_bytes());
            self.hasher.update(frame);
        }
        self.hasher.update(&entry.console);
        for completion in &entry.completions {
            let failed = completion.status != BlockStatus::Ok;
            let flush = completion.kind == Waiting::Flush;
            self.hasher
                .update(&[completion.disk, flush.into(), failed.into()]);
            self.hasher.update(&completion.seq.to_le_bytes());
        }
    }

    /// The digest of everything taken in so far.
    pub fn current(&self) -> blake3::Hash {
        self.hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_order_of_channels_does_not_matter_the_order_within_one_does() {
        let mut one = ReleaseDigest::default();
        one.absorb(1, channel::NET, b"a");
        one.absorb(1, channel::CONSOLE, b"b");
        one.absorb(2, channel::NET, b"c");
        let mut other = ReleaseDigest::default();
        other.absorb(1, channel::CONSOLE, b"b");
        other.absorb(1, channel::NET, b"a");
        other.absorb(2, channel::NET, b"c");
        assert_eq!(one.current(), other.current());

        let mut swapped = ReleaseDigest::default();
        swapped.absorb(2, channel::NET, b"c");
        swapped.absorb(1, channel::NET, b"a");
        swapped.absorb(1, channel::CONSOLE, b"b");
        assert_ne!(one.current(), swapped.current());
    }

    #[test]
    fn bytes_cannot_move_between_neighbours_unnoticed() {
        let mut one = ReleaseDigest::default();
        one.absorb(1, channel::NET, b"ab");
        one.absorb(1, channel::NET, b"c");
        let mut other = ReleaseDigest::default();
        other.absorb(1, channel::NET, b"a");
        other.absorb(1, channel::NET, b"bc");
        assert_ne!(one.current(), other.current());
    }
}
