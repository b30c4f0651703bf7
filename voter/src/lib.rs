//! The pure logic of lockstep: ballots go in, verdicts, releases and journal entries come out.
//!
//! [`Lockstep`] is one state machine for voter and journal together. The executor wraps it in a mutex and puts
//! threads, files and clocks around it; in here there is no thread, no clock (time is told, in nanoseconds on any
//! monotonic scale), no I/O and no randomness, so the simulator in `tests/sim` can drive it through
//! any history from a seed.
//!
//! Where the design's rules are enforced:
//!
//! | rule | where |
//! | --- | --- |
//! | R1 input | [`Lockstep::step`] and [`Lockstep::lead`]: one entry per boundary, the first one written |
//! | R2 quorum | `voter::Voter::decide`: bytes are compared, whole ballots, of running members only; `members`: whose |
//! | R3 order | `voter::Voter::decide`: only the oldest undecided boundary can be decided |
//! | R5 blame | `settle`: who is stopped, and when the set has a majority |
//! | R7 replay | `recover`: what a recovering replica casts is compared with what was released |
//! | R9 trust | what a replica casts can stop that replica: outvoted, misbehaved, lagging |
//! | R10 memory | `Lockstep::blocked` with the bounds in [`Config`]; the history's bound is the caller's: [`Lockstep::keep_from`] |
#![forbid(unsafe_code)]

mod ballot;
mod config;
mod errors;
mod history;
mod ids;
mod journal;
mod lockstep;
mod members;
mod pace;
mod recover;
pub mod relaxed;
mod replica;
mod settle;
mod stats;
mod verdict;
mod voter;

pub use ballot::{BALLOT_OVERHEAD, OUTPUT_OVERHEAD, Output, ballot_cost};
pub use config::{Config, MAX_WINDOW_BOUNDARIES, MIN_WINDOW_BYTES, STALL_FACTOR};
pub use errors::{CastError, ConfigError, LeadError, MemberError, RejoinError, ResumeError};
pub use history::{HISTORY_OVERHEAD, HistoryStats, ballot_digest};
pub use ids::{Channel, MAX_REPLICAS, ReplicaId};
pub use lockstep::Lockstep;
pub use recover::{Past, Rejoin};
pub use replica::{Event, ReplicaState, Step};
pub use stats::{ReplicaStats, Stats};
pub use verdict::{
    DifferenceKind, EXCERPT_BYTES, NoMajority, NoMajorityCause, Party, Said, StopReason, Verdict,
};
