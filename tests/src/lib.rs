//! What the end-to-end tests, the demonstration and the benchmarks have in common: Debian's own Redis on the host
//! ([`native`]).

pub mod native;

use std::path::PathBuf;

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
