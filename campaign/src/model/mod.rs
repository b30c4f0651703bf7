//! The words that all modules of a campaign share.

mod fault;
mod golden;
mod record;
mod trigger;

pub use fault::{
    BitChange, BlockFault, ClockFault, Direction, Drawn, EntryFault, Fault, FrameFault,
    MemoryPlace, PageFault,
};
pub use golden::GoldenFacts;
pub use record::{Detection, Outcome, Recovered, Timing, TrialRecord};
pub use trigger::Trigger;
