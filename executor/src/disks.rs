//! The disks of a set, as replicas and deliverer see them: requests go in before the vote, completions come out for the entries,
//! released writes go on to the base files. What a disk is, is in [`crate::store`].

use std::sync::Arc;

use quorate_devices::{Completion, DiskPosition, DiskReads, Entry, Output};
use quorate_voter::Channel;

use crate::channel;
use crate::record::ReadLog;
use crate::store::{Disk, DiskStats, StoreError};

/// See the module.
#[derive(Default)]
pub struct Disks(Vec<Arc<Disk>>);

impl Disks {
    /// The disks in the order of their numbers.
    pub fn new(disks: Vec<Arc<Disk>>) -> Self {
        Disks(disks)
    }

    /// Takes in what a replica asks of its disks at a boundary, before it casts its ballot. Called by the replica's own thread
    /// without any lock: it may have to wait until the disk has caught up.
    ///
    /// # Errors
    /// When the replica may not go on; says why.
    pub fn submit(&self, replica: usize, outputs: &[Output]) -> Result<(), String> {
        for output in outputs {
            if let Output::Block(request) = output {
                let disk = self.0.get(usize::from(request.disk)).ok_or_else(|| {
                    format!("a request for disk {}, which there is not", request.disk)
                })?;
                disk.submit(replica, request)
                    .map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// Whether something that the replica waits for is complete, so that it need not sleep.
    pub fn has_due(&self, replica: usize) -> bool {
        self.0.iter().any(|disk| disk.has_due(replica))
    }

    /// Whether the replica waits for one of its disks.
    pub fn waits(&self, replica: usize) -> bool {
        self.0.iter().any(|disk| disk.waits(replica))
    }

    /// Whether nothing is under way for the replica: whatever it waits for is complete, or has not been begun for lack of room.
    pub fn settled(&self, replica: usize) -> bool {
        self.0.iter().all(|disk| disk.settled(replica))
    }

    /// What the replica that leads puts into its entry.
    pub fn due(&self, replica: usize) -> Vec<Completion> {
        if !self.has_due(replica) {
            return Vec::new();
        }
        self.0.iter().flat_map(|disk| disk.due(replica)).collect()
    }

    /// The replica has been given an entry.
    pub fn delivered(&self, replica: usize, entry: &Entry) {
        if !entry.completions.is_empty() {
            for disk in &self.0 {
                disk.delivered(replica, &entry.completions);
            }
        }
    }

    /// The replica's own view, for the data of reads (R6).
    pub fn reads(&self, replica: usize) -> ReplicaReads<'_> {
        ReplicaReads {
            disks: self,
            replica,
        }
    }

    /// The voter released a request (R2). Called in the order of release (R3).
    pub fn release(&self, channel: Channel, bytes: Vec<u8>) {
        let disk = channel::disk_of(channel).and_then(|number| self.0.get(usize::from(number)));
        // Both hold for whatever `submit` let through, and nothing else is cast.
        if let Some(disk) = disk
            && let Ok(request) = quorate_devices::BlockRequest::from_bytes(bytes)
        {
            disk.release(request);
        }
    }

    /// The replica was stopped: nothing is kept for it any more.
    pub fn retire(&self, replica: usize) {
        for disk in &self.0 {
            disk.retire(replica);
        }
    }

    /// A replica that was stopped, or a new one, begins again at these positions; at the start of a disk that is not among them.
    /// See [`Disk::rejoin`].
    ///
    /// # Errors
    /// The first disk that cannot do that; the replica is then stopped on all of them.
    pub fn rejoin(&self, replica: usize, positions: &[DiskPosition]) -> Result<(), StoreError> {
        for (at, disk) in self.0.iter().enumerate() {
            let position = positions.iter().find(|p| p.disk == disk.number());
            let start = disk.start();
            if let Err(error) = disk.rejoin(replica, position.unwrap_or(&start)) {
                for disk in &self.0[..at] {
                    disk.retire(replica);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// A replica that began again has caught up. See [`Disk::promote`].
    pub fn promote(&self, replica: usize) {
        for disk in &self.0 {
            disk.promote(replica);
        }
    }

    /// The data of a read that the vote has passed, if they are kept.
    pub fn logged(&self, disk: u8, seq: u64) -> Option<Arc<[u8]>> {
        self.0.get(usize::from(disk))?.logged(seq)
    }

    /// No checkpoint goes back beyond these positions: the data of earlier reads are forgotten.
    pub fn forget_reads(&self, positions: &[DiskPosition]) {
        for position in positions {
            if let Some(disk) = self.0.get(usize::from(position.disk)) {
                disk.forget_reads(position.first());
            }
        }
    }

    /// Bytes of reads that are kept, of all disks together.
    pub fn logged_bytes(&self) -> u64 {
        self.0.iter().map(|disk| disk.logged_bytes()).sum()
    }

    /// Whether a replica can still begin again at these positions: all reads that it would need are kept.
    pub fn can_rejoin(&self, positions: &[DiskPosition]) -> bool {
        self.0.iter().all(|disk| {
            let start = disk.start();
            let position = positions.iter().find(|p| p.disk == disk.number());
            position.unwrap_or(&start).first() >= disk.logged_from()
        })
    }

    /// Waits until all that was released is on stable storage (R4), and lets go of the files.
    ///
    /// # Errors
    /// The first disk on which that failed; the others are closed nevertheless.
    pub fn close(&self) -> Result<(), StoreError> {
        let mut result = Ok(());
        for disk in &self.0 {
            result = result.and(disk.close());
        }
        result
    }

    /// The set goes on from where it was saved ([`Disk::begin_at`]).
    ///
    /// # Errors
    /// When a position is none of its disk.
    pub fn begin_at(&self, positions: &[DiskPosition]) -> Result<(), StoreError> {
        for position in positions {
            if let Some(disk) = self.0.get(usize::from(position.disk)) {
                disk.begin_at(position)?;
            }
        }
        Ok(())
    }

    /// Leaves all files as they are, with everything that was released, until [`Disks::thaw`].
    ///
    /// # Errors
    /// The first disk that cannot do that; the others may be frozen.
    pub fn freeze(&self) -> Result<(), StoreError> {
        self.0.iter().try_for_each(|disk| disk.freeze())
    }

    /// The files are written again.
    pub fn thaw(&self) {
        for disk in &self.0 {
            disk.thaw();
        }
    }

    /// Counters of each disk.
    pub fn stats(&self) -> Vec<DiskStats> {
        self.0.iter().map(|disk| disk.stats()).collect()
    }
}

impl ReadLog for Disks {
    fn logged(&self, disk: u8, seq: u64) -> Option<Arc<[u8]>> {
        Disks::logged(self, disk, seq)
    }
}

/// A replica's own view of the disks.
pub struct ReplicaReads<'d> {
    disks: &'d Disks,
    replica: usize,
}

impl DiskReads for ReplicaReads<'_> {
    fn take(&mut self, disk: u8, seq: u64) -> Result<Vec<u8>, String> {
        match self.disks.0.get(usize::from(disk)) {
            Some(disk) => disk.take(self.replica, seq),
            None => Err(format!("read {seq} of disk {disk}: there is no such disk")),
        }
    }
}
