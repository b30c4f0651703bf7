//! What the debugger needs of a replay.

use quorate_vmm::{Boundary, Machine};

/// A recording on which one machine goes forward by itself and can be put back.
///
/// It has *stretches*: stretch `s` is what the guest does on its way to boundary `s`, from the delivery of the entry before.
pub trait Course {
    /// The machine, on its way in a stretch.
    fn machine(&mut self) -> &mut Machine;
    /// The stretch in which it is.
    fn stretch(&self) -> u64;
    /// The first stretch to which one can go back.
    fn first(&self) -> u64;
    /// The guest has reached the end of its stretch: compares what it shows there, and delivers the entry, so that the next stretch
    /// begins. False: there is none, the recording ends here.
    ///
    /// # Errors
    /// When the replay cannot go on; a report.
    fn cross(&mut self, boundary: Boundary) -> Result<bool, String>;
    /// Puts the machine at the beginning of this stretch, or of an earlier one that is cheaper to reach: the caller runs it on.
    ///
    /// # Errors
    /// When the replay cannot be put back; a report.
    fn rewind(&mut self, stretch: u64) -> Result<(), String>;
    /// The debugger has changed registers or memory: what follows is not what was recorded, until the next [`Course::rewind`].
    fn altered(&mut self);
}
