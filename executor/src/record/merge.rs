//! From what the set does, in the order in which it does it, to one [`Step`] per boundary.

use std::collections::VecDeque;
use std::sync::Arc;

use quorate_devices::Entry;
use quorate_voter::Channel;

use super::codec::{ReadData, Step};
use super::format::Hash;
use crate::fingerprint::ReleaseDigest;

/// See the module.
///
/// A boundary is complete when the first release of the next one comes: ballots are decided in order and each has at least one
/// release (the system-call fingerprint); the entry was written before any replica could run on to the next boundary; and a quorum has
/// cast the next ballot, so it has been given the data of the reads that the entry completes.
#[derive(Default)]
pub struct Merge {
    digest: ReleaseDigest,
    /// The boundary whose releases are coming in.
    open: Option<u64>,
    /// The boundary of the first of `entries`, and of the next step.
    next: u64,
    entries: VecDeque<Arc<Entry>>,
    reads: Vec<(u64, ReadData)>,
}

/// The items do not follow each other as they must; this is a defect of quorate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} of boundary {boundary} came out of turn; this is a defect of quorate")]
pub struct OutOfTurn {
    /// What came.
    pub what: &'static str,
    /// Of which boundary.
    pub boundary: u64,
}

impl Merge {
    /// The next boundary that will be complete.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Boundaries that are decided.
    pub fn decided(&self) -> u64 {
        self.open.map_or(self.next, |open| open + 1)
    }

    /// Fingerprint of all releases so far.
    pub fn fingerprint(&self) -> Hash {
        *self.digest.current().as_bytes()
    }

    /// Takes in an entry.
    pub fn entry(&mut self, boundary: u64, entry: Arc<Entry>) -> Result<(), OutOfTurn> {
        if boundary != self.next + self.entries.len() as u64 {
            let what = "an entry";
            return Err(OutOfTurn { what, boundary });
        }
        self.entries.push_back(entry);
        Ok(())
    }

    /// Takes in the data of a read that the entry of `boundary` completes.
    pub fn read(&mut self, boundary: u64, read: ReadData) {
        self.reads.push((boundary, read));
    }

    /// Takes in a release. Gives the boundary that it shows to be complete.
    pub fn release(
        &mut self,
        boundary: u64,
        channel: Channel,
        bytes: &[u8],
    ) -> Result<Option<Step>, OutOfTurn> {
        let what = "a release";
        let mut complete = None;
        if self.open != Some(boundary) {
            if let Some(open) = self.open {
                if boundary != open + 1 || self.entries.is_empty() {
                    return Err(OutOfTurn { what, boundary });
                }
                complete = Some(self.step(Some(self.fingerprint())));
            } else if boundary == 1 && self.next == 0 && !self.entries.is_empty() {
                // A set that goes on from a saved one stands at boundary 0, whose outputs were released before: nothing is there.
                complete = Some(self.step(Some(self.fingerprint())));
            } else if boundary != self.next {
                return Err(OutOfTurn { what, boundary });
            }
            self.open = Some(boundary);
        }
        self.digest.absorb(boundary, channel, bytes);
        Ok(complete)
    }

    /// The set has ended: what is left. The last boundary that was decided may have no entry, entries that were written ahead
    /// have no digest.
    pub fn finish(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.open.take().is_some() {
            steps.push(self.step(Some(self.fingerprint())));
        }
        while !self.entries.is_empty() {
            steps.push(self.step(None));
        }
        steps
    }

    fn step(&mut self, digest: Option<Hash>) -> Step {
        let boundary = self.next;
        self.next += 1;
        let mut reads = Vec::new();
        if !self.reads.is_empty() {
            let (mine, later) = std::mem::take(&mut self.reads)
                .into_iter()
                .partition(|(of, _)| *of <= boundary);
            self.reads = later;
            let mine: Vec<(u64, ReadData)> = mine;
            reads = mine.into_iter().map(|(_, read)| read).collect();
        }
        Step {
            boundary,
            digest,
            entry: self.entries.pop_front(),
            reads,
        }
    }
}
