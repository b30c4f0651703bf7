//! What was released, for replicas that come back: a digest of every decided ballot (R7), and how long it took.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::ballot::Output;

/// Bytes that a boundary of the history is charged beyond its entry (R10).
pub const HISTORY_OVERHEAD: usize = 64;

/// What is kept for replicas that come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryStats {
    /// First boundary whose entry is kept.
    pub from: u64,
    /// Entries kept, those that are not decided yet included.
    pub entries: u64,
    /// What they cost: bytes as their leaders stated them, and [`HISTORY_OVERHEAD`] each.
    pub bytes: usize,
}

/// Digest of a ballot, keyed with a secret of the run: who casts cannot aim at a collision, since the key is never
/// shown (R2). Boundary, channels, lengths and order are all in it.
#[must_use]
pub fn ballot_digest(key: &[u8; 32], boundary: u64, outputs: &[Output]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    let mut head = [0; 16];
    head[..8].copy_from_slice(&boundary.to_le_bytes());
    head[8..].copy_from_slice(&(outputs.len() as u64).to_le_bytes());
    hasher.update(&head);
    for (channel, bytes) in outputs {
        let mut head = [0; 10];
        head[..2].copy_from_slice(&channel.0.to_le_bytes());
        head[2..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        hasher.update(&head);
        hasher.update(bytes);
    }
    *hasher.finalize().as_bytes()
}

#[derive(Clone, Copy, Debug)]
struct Record {
    digest: [u8; 32],
    /// The longest that one of the quorum needed.
    need_ns: u64,
}

/// One record for each decided boundary that is still kept.
#[derive(Debug)]
pub(crate) struct History {
    key: [u8; 32],
    /// Boundary of the oldest record.
    base: u64,
    records: VecDeque<Record>,
    /// What the owner wants kept: from this boundary on.
    pub(crate) keep: u64,
}

impl History {
    pub(crate) fn new(key: [u8; 32], base: u64) -> Self {
        Self {
            key,
            base,
            records: VecDeque::new(),
            keep: base,
        }
    }

    /// Digest of a ballot of this set.
    pub(crate) fn digest_of(&self, boundary: u64, outputs: &[Output]) -> [u8; 32] {
        ballot_digest(&self.key, boundary, outputs)
    }

    /// Takes down the next decided boundary.
    pub(crate) fn push(&mut self, digest: [u8; 32], need_ns: u64) {
        self.records.push_back(Record { digest, need_ns });
    }

    fn get(&self, boundary: u64) -> Option<&Record> {
        let index = usize::try_from(boundary.checked_sub(self.base)?).ok()?;
        self.records.get(index)
    }

    /// Digest of what was released at `boundary`, if that is kept.
    pub(crate) fn digest(&self, boundary: u64) -> Option<[u8; 32]> {
        self.get(boundary).map(|record| record.digest)
    }

    /// The longest that one of the quorum needed for `boundary`.
    pub(crate) fn need_ns(&self, boundary: u64) -> Option<u64> {
        self.get(boundary).map(|record| record.need_ns)
    }

    /// R7: whether this was released at `boundary`. What is not known any more is not confirmed.
    pub(crate) fn confirms(&self, boundary: u64, outputs: &[Output]) -> bool {
        self.get(boundary)
            .is_some_and(|record| record.digest == self.digest_of(boundary, outputs))
    }

    /// Drops the records below `boundary`.
    pub(crate) fn trim(&mut self, boundary: u64) {
        while self.base < boundary && self.records.pop_front().is_some() {
            self.base += 1;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Channel;

    #[test]
    fn a_digest_depends_on_everything() {
        let out = |c: u16, bytes: &[u8]| (Channel(c), bytes.to_vec());
        let ballots = [
            vec![],
            vec![out(1, b"")],
            vec![out(2, b"")],
            vec![out(1, b"ab")],
            vec![out(1, b"a"), out(1, b"b")],
            vec![out(1, b"b"), out(1, b"a")],
            vec![out(1, b"a"), out(2, b"b")],
        ];
        let mut seen = Vec::new();
        for key in [[0; 32], [1; 32]] {
            for boundary in [0, 1] {
                for ballot in &ballots {
                    let digest = ballot_digest(&key, boundary, ballot);
                    assert!(!seen.contains(&digest), "{boundary} {ballot:?}");
                    seen.push(digest);
                }
            }
        }
    }

    #[test]
    fn only_what_was_released_is_confirmed() {
        let mut history = History::new([7; 32], 0);
        let ballot = |s: u64| vec![(Channel(1), vec![s as u8])];
        for s in 0..5 {
            history.push(history.digest_of(s, &ballot(s)), s);
        }
        assert!(history.confirms(3, &ballot(3)));
        assert!(!history.confirms(3, &ballot(4)));
        history.trim(3);
        assert!(history.confirms(3, &ballot(3)));
        assert!(!history.confirms(2, &ballot(2)), "gone");
        assert!(!history.confirms(5, &ballot(5)), "not there yet");
        assert_eq!((history.need_ns(4), history.need_ns(0)), (Some(4), None));
        history.trim(99);
        history.push([0; 32], 9);
        assert_eq!(history.need_ns(5), Some(9), "numbers go on where they were");
    }
}
