//! Running a campaign's trials: jobs, results that survive a kill, resuming, shards and merging.
//!
//! The runner knows nothing of machines: it is given draws, and something that makes [`Trials`](crate::bench::Trials). What it
//! promises holds for whatever plays them:
//!
//! - Trials are handed out in the order of their draws, and which draws are run does not depend on threads or time.
//! - A trial is in the file when it is complete, once. After `kill -9` at any moment, resuming does what is missing and nothing else.
//! - The same seed gives the same [`OutcomeTable`](crate::stats::OutcomeTable), byte by byte, in one run, in resumed ones and in merged
//!   shards.

pub mod compare;
mod engine;
mod goal;
pub mod manifest;
pub mod merge;
pub mod progress;
pub mod results;
pub mod summary;
pub mod synthetic;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use engine::{Ended, Engine, Event};
pub use goal::{DEFAULT_DRAWS, Goal, Shard, method};
pub use manifest::Manifest;
pub use results::ResultsError;

use crate::bench::BenchError;

/// Why a campaign cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The host.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file of trials.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// `campaign.json` is not what was written.
    #[error("{}: {what}", path.display())]
    Manifest {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A directory without results.
    #[error("{} holds no results of a campaign (no campaign.json)", .0.display())]
    NoCampaign(PathBuf),
    /// There are results, and nobody said that they are to be gone on with.
    #[error("{} holds {trials} trials already: go on with --resume, or choose another directory with --out", directory.display())]
    Exists {
        /// Where.
        directory: PathBuf,
        /// How many.
        trials: usize,
    },
    /// Results of something else.
    #[error("{}: these are results of something else: {what}", directory.display())]
    OtherCampaign {
        /// Where.
        directory: PathBuf,
        /// What is not the same.
        what: String,
    },
    /// Two records of one trial that differ.
    #[error("draw {draw} with {replicas} replicas is {first} in {} and {second} in {}: a trial must be the same everywhere", first_in.display(), second_in.display())]
    Disagree {
        /// The draw.
        draw: u64,
        /// N.
        replicas: u8,
        /// Outcome.
        first: String,
        /// Where.
        first_in: PathBuf,
        /// Outcome.
        second: String,
        /// Where.
        second_in: PathBuf,
    },
    /// A bench that cannot play trials.
    #[error(
        "draw {draw} with {replicas} replicas could not be played: {source}; what was done before is kept, and --resume goes on from there"
    )]
    Bench {
        /// The draw.
        draw: u64,
        /// N.
        replicas: u8,
        /// Why.
        source: BenchError,
    },
    /// A bench could not be made.
    #[error("the machines for the trials could not be made: {0}")]
    Make(BenchError),
    /// A thread that plays trials ended by a panic.
    #[error(
        "a thread that plays trials panicked, which is a defect of quorate; what was done before is kept"
    )]
    Panicked,
}
