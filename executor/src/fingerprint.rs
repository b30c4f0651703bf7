//! Running digests of what a set released and of what it was given.
//!
//! Two runs with equal input digests must have equal output digests (design §5): that is how a divergence
//! between runs, layouts or versions is found without keeping either.

use quorate_devices::{BlockStatus, Entry, Waiting};
use quorate_voter::Channel;

/// Digest of all releases so far: a chain with a link per release, in the order of release (R3). Its state is 32 bytes, so it can be
/// kept with a checkpoint and go on from there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReleaseDigest([u8; 32]);

impl ReleaseDigest {
    /// Goes on from where [`ReleaseDigest::current`] said this.
    #[must_use]
    pub fn from_state(state: [u8; 32]) -> Self {
        ReleaseDigest(state)
    }

    /// Takes in one release.
    pub fn absorb(&mut self, boundary: u64, channel: Channel, bytes: &[u8]) {
        // The length of what follows is fixed, so bytes cannot move into it or out of it.
        let mut head = [0; 10];
        head[..8].copy_from_slice(&boundary.to_le_bytes());
        head[8..].copy_from_slice(&channel.0.to_le_bytes());
        let mut link = blake3::Hasher::new_keyed(&self.0);
        link.update(&head);
        link.update(bytes);
        self.0 = *link.finalize().as_bytes();
    }

    /// The digest of everything taken in so far.
    pub fn current(&self) -> blake3::Hash {
        blake3::Hash::from_bytes(self.0)
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
    use crate::channel;

    #[test]
    fn whatever_is_released_counts_and_its_order() {
        let digest = |releases: &[(u64, Channel, &[u8])]| {
            let mut digest = ReleaseDigest::default();
            for (boundary, channel, bytes) in releases {
                digest.absorb(*boundary, *channel, bytes);
            }
            digest.current()
        };
        let one = digest(&[(1, channel::NET, b"a"), (1, channel::CONSOLE, b"b")]);
        for other in [
            &[
                (1, channel::CONSOLE, b"b".as_slice()),
                (1, channel::NET, b"a"),
            ][..],
            &[(1, channel::NET, b"a"), (2, channel::CONSOLE, b"b")],
            &[(1, channel::NET, b"a"), (1, channel::NET, b"b")],
            &[(1, channel::NET, b"a"), (1, channel::CONSOLE, b"c")],
            &[(1, channel::NET, b"a")],
        ] {
            assert_ne!(digest(other), one);
        }
    }

    #[test]
    fn it_goes_on_from_its_state() {
        let mut whole = ReleaseDigest::default();
        whole.absorb(1, channel::NET, b"a");
        let mut half = ReleaseDigest::from_state(*whole.current().as_bytes());
        whole.absorb(2, channel::NET, b"b");
        half.absorb(2, channel::NET, b"b");
        assert_eq!(whole, half);
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
