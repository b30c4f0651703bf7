//! Why no trial can be played.

use quorate_executor::exit::Failure;

/// The host or the golden run fails the bench.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The machines cannot be made, put back or run.
    #[error("{0}")]
    Machine(#[from] Failure),
    /// More replicas than the bench was made for.
    #[error(
        "a trial with {wanted} replicas on a bench for {most}: name {wanted} in the campaign's list of replicas"
    )]
    Replicas {
        /// Of the trial.
        wanted: u8,
        /// Of the bench.
        most: u8,
    },
    /// Something that is wrong before any fault is injected.
    #[error("{0}")]
    Broken(String),
    /// A file.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        error: std::io::Error,
    },
}
