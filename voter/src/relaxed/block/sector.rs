//! One sector that replicas do not all agree on, or not yet.

use std::collections::VecDeque;

use super::digest::Digest;

/// A write of one replica that was not matched yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub digest: Digest,
    /// Flushes of this replica before it.
    pub epoch: u64,
    /// Whether a flush of the replica waits for it: it is its epoch's last here, and was not given up.
    pub counts: bool,
}

/// What happened here, as far as somebody still has it before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Past {
    pub digest: Digest,
    /// `None`: it was released. Else this replica wrote it, and went on to something that was released then.
    pub passed_by: Option<u8>,
}

/// One replica's part.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    /// So much of the past (an absolute number) it has behind it.
    pub at: u64,
    /// Its writes beyond, oldest first.
    pub live: VecDeque<Node>,
    /// It came back, and so many of its writes here are of its past: they are not waited for.
    pub returns: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Sector {
    pub past: VecDeque<Past>,
    /// Number of the first in `past`.
    pub first: u64,
    pub own: Vec<Own>,
}

/// What consuming writes settled: (epoch, how many) and how many nodes are gone.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub epochs: Vec<u64>,
    pub nodes: usize,
}

impl Sector {
    pub fn new(replicas: usize) -> Self {
        Self {
            past: VecDeque::new(),
            first: 0,
            own: vec![Own::default(); replicas],
        }
    }

    /// The number behind the last of the past.
    pub fn end(&self) -> u64 {
        self.first + self.past.len() as u64
    }

    fn beyond(&self, at: u64) -> impl Iterator<Item = (u64, &Past)> {
        let skip = at.saturating_sub(self.first) as usize;
        let from = self.first + skip as u64;
        (from..).zip(self.past.iter().skip(skip))
    }

    /// The place of this content among what was released beyond `at`.
    pub fn released_after(&self, at: u64, digest: Digest) -> Option<u64> {
        self.beyond(at)
            .find(|(_, past)| past.passed_by.is_none() && past.digest == digest)
            .map(|(place, _)| place)
    }

    /// Whether something was released here that the replica does not have.
    pub fn is_behind(&self, replica: usize) -> bool {
        self.behind(replica) > 0
    }

    /// How much was released here that the replica does not have.
    pub fn behind(&self, replica: usize) -> u32 {
        let at = self.own.get(replica).map_or(u64::MAX, |own| own.at);
        let released = self.beyond(at).filter(|(_, past)| past.passed_by.is_none());
        released.count() as u32
    }

    /// Who wrote this beyond `at` and went on, as bits, and the last such place.
    pub fn passed_after(&self, at: u64, digest: Digest) -> (u16, u64) {
        let found = self.beyond(at).filter_map(|(place, past)| {
            let by = past.passed_by.filter(|_| past.digest == digest)?;
            Some((1u16 << by, place))
        });
        found.fold((0, 0), |(who, _), (bit, place)| (who | bit, place))
    }

    /// Takes the replica's writes up to and including the first of content `upto`, or all of them; those before it go to
    /// `passed`.
    pub fn consume(
        &mut self,
        replica: usize,
        upto: Option<Digest>,
        mut passed: Option<&mut Vec<Digest>>,
    ) -> Settled {
        let mut settled = Settled::default();
        let Some(own) = self.own.get_mut(replica) else {
            return settled;
        };
        while let Some(node) = own.live.pop_front() {
            settled.nodes += 1;
            if node.counts {
                settled.epochs.push(node.epoch);
            }
            if upto == Some(node.digest) {
                break;
            }
            if let Some(passed) = passed.as_deref_mut() {
                passed.push(node.digest);
            }
        }
        settled
    }

    /// Forgets the past that everybody who runs has behind; and if nothing is left, whether the sector can be forgotten.
    pub fn prune(&mut self, running: u16, keep: usize) -> bool {
        let end = self.end();
        let runs = |replica: usize| running & (1 << replica) != 0;
        let members = self.own.iter().enumerate().filter(|(r, _)| runs(*r));
        let (mut oldest, mut live) = (end, false);
        for (_, own) in members {
            oldest = oldest.min(own.at);
            live |= !own.live.is_empty() || own.returns > 0;
        }
        let most = end.saturating_sub(keep as u64);
        while self.first < oldest.max(most) && self.past.pop_front().is_some() {
            self.first += 1;
        }
        self.past.is_empty() && !live
    }
}
