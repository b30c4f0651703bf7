//! What the end-to-end tests, the demonstration and the benchmarks have in common: Debian's own Redis on the host
//! ([`native`], [`server`]), a replica set driven through the real command ([`set`]), and clients that read every byte
//! ([`resp`], [`load`]). The other appliances are compared in the same way ([`app`]), web servers by the real curl ([`curl`]).

pub mod app;
pub mod campaign;
pub mod curl;
pub mod disk;
pub mod documents;
pub mod faults;
pub mod inside;
pub mod kills;
pub mod linux;
pub mod load;
pub mod native;
pub mod process;
pub mod programs;
pub mod random;
pub mod resp;
pub mod server;
pub mod set;
pub mod watch;
pub mod web;
pub mod wire;
pub mod writes;

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Why a step of a test cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something of the host failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Something did not come before its deadline, or can no longer come.
    #[error("{process} did not give {what:?} in time; it said:\n{said}")]
    Late {
        /// What was waited for.
        what: String,
        /// The process.
        process: String,
        /// Its standard error.
        said: String,
    },
    /// No native Redis.
    #[error(transparent)]
    Native(#[from] native::NativeError),
    /// An answer that is not one.
    #[error("{0}")]
    Unexpected(String),
}

/// How often a test that counts does what it counts: `full` times, or a [`SHORT`]th of that, but at least `least` times.
///
/// In the SVM lane nothing is left out for being long; it is done less often. `scripts/lane/suites` names each.
#[must_use]
pub fn shortened(full: usize, least: usize) -> usize {
    let divisor = std::env::var(SHORT)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    (full / std::cmp::Ord::max(divisor, 1)).max(least.min(full))
}

/// The environment variable: by what [`shortened`] divides.
pub const SHORT: &str = "QUORATE_TEST_SHORT";

/// Held by a test while it runs: sets share the host's cores, and times are measured. It also prints what the test does.
pub fn one_at_a_time(what: &str) -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    println!("{what}");
    turn
}
