//! Numbers about a run.

use serde::{Deserialize, Serialize};

use crate::ids::ReplicaId;
use crate::replica::ReplicaState;

/// Snapshot of a [`crate::Lockstep`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Replicas that the set has.
    pub replicas: u8,
    /// Of these, who runs and votes.
    pub healthy: u8,
    /// Who catches up, joining ones included.
    pub recovering: u8,
    /// Votes that a release needs.
    pub quorum: u8,
    /// Boundaries decided and released: all below this number are.
    pub boundaries: u64,
    /// Ballots cast and taken.
    pub ballots: u64,
    /// Payload bytes in these ballots.
    pub bytes_voted: u64,
    /// Ballots of recovering replicas that were compared with history, and agreed (R7).
    pub replayed: u64,
    /// Times that a replica has recovered, or joined.
    pub recoveries: u64,
    /// Outputs released.
    pub releases: u64,
    /// Payload bytes released.
    pub bytes_released: u64,
    /// Journal entries written.
    pub entries: u64,
    /// Bytes of these entries, as the leader stated them.
    pub entry_bytes: u64,
    /// Boundaries between the slowest and the fastest running replica.
    pub window_boundaries_used: u64,
    /// Bytes of ballots and entries that are stored now, overheads included.
    pub window_bytes_used: usize,
    /// Highest `window_bytes_used` so far.
    pub window_bytes_peak: usize,
    /// Times that a replica was told to wait because of a full window.
    pub window_full: u64,
    /// Bytes of releases that nobody has fetched with [`crate::Lockstep::poll_event`] yet.
    pub undrained_bytes: usize,
    /// Each replica that is, was or is to be in the set, in order of their numbers.
    pub per_replica: Vec<ReplicaStats>,
}

/// One replica's part of [`Stats`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStats {
    /// Who.
    pub replica: ReplicaId,
    /// Whether it counts for the quorum. One that is joining, or was removed, does not.
    pub member: bool,
    /// Running, recovering, or stopped and why.
    pub state: ReplicaState,
    /// Boundary that it casts next, or was to cast next when it was stopped.
    pub next_boundary: u64,
    /// Journal entries that it wrote.
    pub entries_led: u64,
}
