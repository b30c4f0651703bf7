//! Faults for real: what does to one replica what a [`crate::model::Drawn`] says.
//!
//! | module | what it does |
//! | --- | --- |
//! | `injector` | waits for the trigger, applies the fault, says what it did |
//! | `machine` | registers, memory, pages |
//! | `frames` | the next frame, out or in |
//! | `entries` | the entry of a boundary |
//! | `clock` | the times that a replica is shown |
//! | `blocks` | a block request; [`metadata`] knows which ones are the file system's own |
//! | `symbols` | functions by name |

mod bits;
mod blocks;
mod clock;
mod entries;
mod frames;
mod injector;
mod machine;
pub mod metadata;
mod report;
mod symbols;
mod sync;

pub use blocks::DiskFacts;
pub use injector::{Injector, Surroundings};
pub use report::{Hit, Injected, Report};
pub use symbols::Symbols;
