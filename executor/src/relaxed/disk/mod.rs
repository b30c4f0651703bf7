//! The disks of a relaxed set: docs/relaxed-disks.md says what they promise.
//!
//! Each replica has a *view*: the base file, with what is its own over it. What it writes is its own at once; what a quorum has written
//! to a sector is released (R2) and goes to the base file, and is then nobody's own who wrote the same. Whoever has not
//! written it keeps what was there before (R6). The vote is [`quorate_voter::relaxed::BlockMatcher`]; a flush completes when that says
//! that nothing of its replica is open and an `fdatasync` has succeeded since (R4).
//!
//! | where | what it holds |
//! | --- | --- |
//! | base file | what a quorum wrote, up to `redo` |
//! | `redo` | released, not in the base file yet; written in the order of release |
//! | `view` | per replica and per checkpoint: contents that differ from the base file |
//!
//! **R10**: [`RelaxedBounds`] has all bounds and what happens at each.

mod back;
mod ext4;
mod report;
mod spec;
mod state;
#[cfg(test)]
mod tests;
mod threads;
mod tree;
mod view;
mod voted;

use std::sync::Arc;

use quorate_devices::{Completion, DiskPosition, DiskReads, Entry, Output};

pub use back::ViewSnapshot;
pub use report::MAX_RANGES;
pub use spec::{
    Held, Mode, RelaxedBounds, RelaxedNotice, RelaxedReport, RelaxedSpec, RelaxedStats,
    UnconfirmedRange,
};
pub use voted::{NotifyRelaxed, RelaxedDisk};

use crate::store::StoreError;

/// All disks of a set, in the order of their numbers; as [`crate::disks::Disks`] is for lockstep. Under one number there is one disk for
/// all replicas, or one for each: replicas with images of their own have roots of their own.
#[derive(Default)]
pub struct RelaxedDisks(Vec<Vec<Arc<RelaxedDisk>>>);

impl RelaxedDisks {
    /// The disks in the order of their numbers; under each number one for all replicas, or one for each in their order, of which some
    /// may be the same.
    #[must_use]
    pub fn new(disks: Vec<Vec<Arc<RelaxedDisk>>>) -> Self {
        Self(disks)
    }

    /// The disk that a replica has under a number.
    fn of(&self, number: usize, replica: usize) -> Option<&Arc<RelaxedDisk>> {
        let disks = self.0.get(number)?;
        match disks.as_slice() {
            [all] => Some(all),
            each => each.get(replica),
        }
    }

    /// All disks of a replica, in the order of their numbers.
    fn all_of(&self, replica: usize) -> impl Iterator<Item = &Arc<RelaxedDisk>> {
        (0..self.0.len()).filter_map(move |number| self.of(number, replica))
    }

    /// Each disk once.
    fn all(&self) -> Vec<&Arc<RelaxedDisk>> {
        let mut all: Vec<&Arc<RelaxedDisk>> = Vec::new();
        for disk in self.0.iter().flatten() {
            if !all.iter().any(|known| Arc::ptr_eq(known, disk)) {
                all.push(disk);
            }
        }
        all
    }

    /// Takes in what a replica asks of its disks. Does not wait for the vote.
    ///
    /// # Errors
    /// When the replica may not go on; says why.
    pub fn submit(&self, replica: usize, outputs: &[Output]) -> Result<(), String> {
        for output in outputs {
            if let Output::Block(request) = output {
                let disk = self.of(usize::from(request.disk), replica).ok_or_else(|| {
                    format!("a request for disk {}, which there is not", request.disk)
                })?;
                disk.submit(replica, request)
                    .map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// See [`RelaxedDisk::has_due`].
    #[must_use]
    pub fn has_due(&self, replica: usize) -> bool {
        self.all_of(replica).any(|disk| disk.has_due(replica))
    }

    /// See [`RelaxedDisk::waits`].
    #[must_use]
    pub fn waits(&self, replica: usize) -> bool {
        self.all_of(replica).any(|disk| disk.waits(replica))
    }

    /// See [`RelaxedDisk::settled`].
    #[must_use]
    pub fn settled(&self, replica: usize) -> bool {
        self.all_of(replica).all(|disk| disk.settled(replica))
    }

    /// See [`RelaxedDisk::has_room`].
    #[must_use]
    pub fn has_room(&self, replica: usize) -> bool {
        self.all_of(replica).all(|disk| disk.has_room(replica))
    }

    /// What is complete for the replica.
    #[must_use]
    pub fn due(&self, replica: usize) -> Vec<Completion> {
        self.all_of(replica)
            .flat_map(|disk| disk.due(replica))
            .collect()
    }

    /// The replica has been given an entry.
    pub fn delivered(&self, replica: usize, entry: &Entry) {
        if !entry.completions.is_empty() {
            for disk in self.all_of(replica) {
                disk.delivered(replica, &entry.completions);
            }
        }
    }

    /// The replica's own view, for the data of reads (R6).
    #[must_use]
    pub fn reads(&self, replica: usize) -> RelaxedReads<'_> {
        RelaxedReads {
            disks: self,
            replica,
        }
    }

    /// The replica was stopped.
    pub fn leave(&self, replica: usize) {
        for disk in self.all_of(replica) {
            disk.leave(replica);
        }
    }

    /// A replica's views of all disks, for a checkpoint.
    #[must_use]
    pub fn snapshot(&self, replica: usize) -> Vec<ViewSnapshot> {
        self.all_of(replica)
            .map(|disk| disk.snapshot(replica))
            .collect()
    }

    /// See [`RelaxedDisk::enter`]. A disk that has no position among these begins at its first request; an empty list of snapshots means
    /// the disks as they are now.
    ///
    /// # Errors
    /// The first disk that cannot do that; the replica has then left all of them.
    pub fn enter(
        &self,
        replica: usize,
        snapshots: &[ViewSnapshot],
        positions: &[DiskPosition],
    ) -> Result<(), StoreError> {
        for (at, disk) in self.all_of(replica).enumerate() {
            let start = DiskPosition {
                disk: disk.number(),
                ..DiskPosition::default()
            };
            let position = positions.iter().find(|p| p.disk == disk.number());
            let entered = disk.enter(replica, snapshots.get(at), position.unwrap_or(&start));
            if let Err(error) = entered {
                for disk in self.all_of(replica).take(at) {
                    disk.leave(replica);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// The name of a disk whose content is not that of the beginning.
    #[must_use]
    pub fn written(&self) -> Option<&str> {
        let mut disks = self.0.iter().flatten();
        disks.find(|disk| disk.is_written()).map(|disk| disk.name())
    }

    /// See [`RelaxedDisk::report`].
    #[must_use]
    pub fn report(&self, ended: bool) -> Vec<RelaxedReport> {
        self.all().iter().map(|disk| disk.report(ended)).collect()
    }

    /// Waits until all that was released is on stable storage (R4), and lets go of the files.
    ///
    /// # Errors
    /// The first disk on which that failed; the others are closed nevertheless.
    pub fn close(&self) -> Result<(), StoreError> {
        let mut result = Ok(());
        for disk in self.all() {
            result = result.and(disk.close());
        }
        result
    }
}

/// A replica's own view of the disks.
pub struct RelaxedReads<'d> {
    disks: &'d RelaxedDisks,
    replica: usize,
}

impl DiskReads for RelaxedReads<'_> {
    fn take(&mut self, disk: u8, seq: u64) -> Result<Vec<u8>, String> {
        match self.disks.of(usize::from(disk), self.replica) {
            Some(disk) => disk.take(self.replica, seq),
            None => Err(format!("read {seq} of disk {disk}: there is no such disk")),
        }
    }
}
