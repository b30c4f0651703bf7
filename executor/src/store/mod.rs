//! The disks' host side: one base file per disk, versioned by request, written only with what the voter released.
//!
//! The device numbers the requests of a disk, and versions are counted in these numbers. The view of replica `r` for its read `q` is
//! everything with a lower number: what was released, as the majority wrote it, and beyond that what `r` itself has
//! written and the vote has not decided yet. So a replica that lags behind reads what the disk held at its own position (**R6**), and one
//! that is ahead reads what it wrote.
//!
//! | where | what it holds |
//! | --- | --- |
//! | base file | released writes, up to some point of each block |
//! | `redo` | released writes that are not in the base file yet |
//! | `versions` | what blocks of the base file held before released writes that somebody is not past yet |
//! | `own` | per replica: writes that are not released yet |
//! | `log` | data of released reads, for replicas that begin again |
//!
//! **R4**: a flush is complete when all released before it is written and an `fdatasync` that began after that has succeeded.
//! Writes behind a flush are not started before those in front of it are written, so that a kill leaves in the file everything up to
//! some flush, and parts of what is between that one and the next. **R10**: [`Bounds`] has all bounds and what happens at each.
//!
//! Nothing of this depends on an address (R8): what a replica reads is a function of requests and releases, and *when*
//! it is told is decided by the journal.

mod core;
mod disk;
mod error;
mod extents;
mod file;
mod flow;
mod job;
pub(crate) mod lock;
mod log;
mod rejoin;
mod spec;
mod state;
mod task;
#[cfg(test)]
mod tests;
mod threads;
mod uring;
mod versions;

pub use disk::{Disk, MAX_REPLICAS};
pub use error::StoreError;
pub(crate) use file::Base;
pub use file::create;
pub(crate) use job::Spill;
pub use spec::{Backend, Bounds, DiskSpec, DiskStats, Notice, OnError};
