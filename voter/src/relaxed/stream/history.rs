//! What was released and is no longer retained: a keyed digest for each piece of it, so that comparison goes on (R7)
//! for replicas that are far behind.

use std::collections::{BTreeSet, VecDeque};

use super::bytes::Bytes;

/// Digests kept for each connection (R10). What is older cannot be compared any more, and is counted.
pub const DIGESTS_KEPT: usize = 4096;
/// Longest piece under one digest, in bytes.
pub const DIGEST_STEP: u64 = 64 << 10;
/// Places at which checkpoints were taken, kept for each connection: pieces end there too.
pub(super) const MARKS_KEPT: usize = 16;

/// Digests of the pieces of a stream, from `first` on without gaps.
#[derive(Clone, Debug)]
pub(super) struct History {
    key: [u8; 32],
    step: u64,
    first: u64,
    pieces: VecDeque<(u64, blake3::Hash)>,
    marks: BTreeSet<u64>,
}

/// How a replica that is behind the retained bytes is compared.
#[derive(Clone, Debug)]
pub(super) struct Digesting {
    from: u64,
    to: u64,
    /// What the piece's digest must be; `None` for a piece of which the replica does not say the beginning.
    expected: Option<blake3::Hash>,
    hasher: Box<blake3::Hasher>,
}

impl Digesting {
    /// Where the piece begins that is being compared.
    pub(super) fn from(&self) -> u64 {
        self.from
    }
}

/// What came of some bytes of a replica.
pub(super) enum Digested {
    /// So many were taken; more may follow.
    Took(usize),
    /// The piece `from..to` is not what was released.
    Differs { from: u64, to: u64 },
}

impl History {
    /// For a stream of which about `retained` bytes are kept: pieces are no longer than that, so that the digests
    /// of a short memory are fine enough.
    pub(super) fn new(key: [u8; 32], retained: usize) -> Self {
        Self {
            key,
            step: (retained as u64).clamp(1024, DIGEST_STEP),
            first: 0,
            pieces: VecDeque::new(),
            marks: BTreeSet::new(),
        }
    }

    /// Bytes after which a piece is worth digesting.
    pub(super) fn step(&self) -> u64 {
        self.step
    }

    /// A checkpoint was taken at `at`: a replica may come back there, so a piece shall begin there. Of too many the
    /// oldest are forgotten.
    pub(super) fn mark(&mut self, at: u64) {
        self.marks.insert(at);
        if self.marks.len() > MARKS_KEPT {
            self.marks.pop_first();
        }
    }

    /// Digests what stands in `bytes` from its start to `to`. Pieces end at multiples of the step, at marks, and at
    /// `places`, where replicas are that were compared up to there.
    pub(super) fn digest(&mut self, bytes: &Bytes, to: u64, places: &[u64]) {
        let mut at = bytes.start();
        while at < to {
            let fixed = (at / self.step + 1) * self.step;
            let marked = self.marks.range(at + 1..).next().copied();
            let place = places.iter().copied().filter(|p| *p > at).min();
            let end = [Some(to), marked, place]
                .into_iter()
                .flatten()
                .fold(fixed, u64::min);
            let mut hasher = blake3::Hasher::new_keyed(&self.key);
            for slice in bytes.slices(at, (end - at) as usize) {
                hasher.update(slice);
            }
            if self.pieces.len() == DIGESTS_KEPT
                && let Some((end, _)) = self.pieces.pop_front()
            {
                self.first = end;
            }
            self.pieces.push_back((end, hasher.finalize()));
            at = end;
        }
        self.marks = self.marks.split_off(&to);
    }

    /// Begins the comparison of a replica that is at `at`, before `retained`, where the bytes themselves begin.
    fn begin(&self, at: u64, retained: u64) -> Digesting {
        let piece = self.pieces.partition_point(|(end, _)| *end <= at);
        let from = match piece.checked_sub(1).and_then(|p| self.pieces.get(p)) {
            Some((end, _)) => *end,
            None => self.first,
        };
        let hasher = Box::new(blake3::Hasher::new_keyed(&self.key));
        let (to, expected) = match self.pieces.get(piece) {
            _ if at < from => (from, None),
            Some((end, hash)) => (*end, (at == from).then_some(*hash)),
            None => (retained, None),
        };
        Digesting {
            from: at,
            to,
            expected,
            hasher,
        }
    }

    /// Compares bytes of a replica that is at `at`, before `retained`. Bytes that cannot be compared are added
    /// to `unchecked`.
    pub(super) fn compare(
        &self,
        state: &mut Option<Digesting>,
        at: u64,
        retained: u64,
        bytes: &[u8],
        unchecked: &mut u64,
    ) -> Digested {
        let now = state.get_or_insert_with(|| self.begin(at, retained));
        let took = bytes.len().min((now.to - at) as usize);
        match now.expected {
            Some(_) => drop(now.hasher.update(&bytes[..took])),
            None => *unchecked += took as u64,
        }
        if at + (took as u64) < now.to {
            return Digested::Took(took);
        }
        let Digesting {
            from,
            to,
            expected,
            hasher,
        } = now;
        let (from, to) = (*from, *to);
        let good = expected.is_none_or(|hash| hasher.finalize() == hash);
        *state = None;
        match good {
            true => Digested::Took(took),
            false => Digested::Differs { from, to },
        }
    }
}
