//! One error type per operation. A replica's misconduct is never an error here, it is an event; errors are
//! mistakes of the caller.

use thiserror::Error;

use crate::config::{MAX_WINDOW_BOUNDARIES, MIN_WINDOW_BYTES};
use crate::ids::{MAX_REPLICAS, ReplicaId};

/// Why a [`crate::Config`] is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// `replicas`
    #[error("{0} replicas: a set has 1 to {MAX_REPLICAS}")]
    Replicas(u8),
    /// `window_boundaries`
    #[error("a window of {0} boundaries: it must be 1 to {MAX_WINDOW_BOUNDARIES}")]
    WindowBoundaries(u64),
    /// `window_bytes`
    #[error("a window of {0} bytes: it must be at least {MIN_WINDOW_BYTES}")]
    WindowBytes(usize),
    /// `lag_timeout_ns`
    #[error("the lag timeout must not be 0")]
    LagTimeout,
    /// `lag_factor`
    #[error("the lag factor must not be 0")]
    LagFactor,
}

/// Why a ballot was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CastError {
    /// There is no such replica.
    #[error("{0} is not in the set")]
    UnknownReplica(ReplicaId),
    /// Boundaries are cast in order, each once.
    #[error("{replica} cast boundary {got}, its next one is {expected}")]
    WrongBoundary {
        /// Who cast.
        replica: ReplicaId,
        /// Its next boundary.
        expected: u64,
        /// What it cast.
        got: u64,
    },
    /// A replica that has not taken the entry of its last boundary cannot have reached the next (R1).
    #[error("{replica} cast boundary {boundary} before it took the entry of the one before")]
    EntryNotTaken {
        /// Who cast.
        replica: ReplicaId,
        /// What it cast.
        boundary: u64,
    },
}

/// Why an entry was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LeadError {
    /// There is no such replica.
    #[error("{0} is not in the set")]
    UnknownReplica(ReplicaId),
    /// [`crate::Lockstep::step`] has not said [`crate::Step::Lead`] for this boundary.
    #[error("{0} was not asked to lead: call step first")]
    NotAsked(ReplicaId),
    /// Another replica was first: call [`crate::Lockstep::step`] again to take its entry. Not a mistake.
    #[error("the entry of boundary {0} is already written")]
    AlreadyWritten(u64),
    /// The entry is larger than [`crate::Config::max_entry_bytes`].
    #[error("an entry of {bytes} bytes: the limit is {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// The replica was stopped in the meantime. Not a mistake.
    #[error("{0} is stopped")]
    Stopped(ReplicaId),
    /// The set is without a majority. Not a mistake.
    #[error("the set is without a majority")]
    Held,
}

/// Why a replica cannot begin again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RejoinError {
    /// The set keeps no history.
    #[error("this set was made without recovery")]
    NotRecoverable,
    /// There is no such replica.
    #[error("{0} is not in the set")]
    UnknownReplica(ReplicaId),
    /// It runs, or recovers already.
    #[error("{0} is not stopped")]
    NotStopped(ReplicaId),
    /// The state is ahead of what was decided, so that nothing says whether it is right.
    #[error("boundary {wanted} is not decided: the set stands at {frontier}")]
    NotDecided {
        /// The boundary asked for.
        wanted: u64,
        /// First boundary that is not decided.
        frontier: u64,
    },
    /// The entries that it needs are no longer kept (R10): a later checkpoint is needed.
    #[error("the entry of boundary {wanted} is gone: there is history from boundary {from} on")]
    Gone {
        /// First entry that it needs.
        wanted: u64,
        /// First entry that is there.
        from: u64,
    },
}

/// Why a saved set cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ResumeError {
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A decided boundary is without its entry.
    #[error("the entry of boundary {0} is missing")]
    EntryMissing(u64),
    /// Nothing says what was decided.
    #[error("no digest of a decided boundary from {0} on: there is nothing to go on from")]
    NoDigest(u64),
}

/// Why the membership stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MemberError {
    /// The set keeps no history.
    #[error("this set was made without recovery")]
    NotRecoverable,
    /// A set has replicas 0 to 8.
    #[error("{0}: a set has at most {MAX_REPLICAS} replicas, counted from 0")]
    UnknownReplica(ReplicaId),
    /// To be added, but it is in the set or joining.
    #[error("{0} is in the set already")]
    AlreadyMember(ReplicaId),
    /// To be removed, but it is not in the set.
    #[error("{0} is not in the set")]
    NotMember(ReplicaId),
    /// The last one cannot be removed.
    #[error("{0} is the last replica of the set")]
    Last(ReplicaId),
    /// Of those left, too few would run for a majority (R5).
    #[error(
        "without {replica} a majority needs {quorum} running replicas, and {running} would run"
    )]
    NoQuorum {
        /// Who was to be removed.
        replica: ReplicaId,
        /// Who would run.
        running: u8,
        /// Votes that a release would need.
        quorum: u8,
    },
}
