//! What the debugger needs of a replay.

use quorate_vmm::{Boundary, Machine};

use crate::record::StartPoint;
use crate::replay::{ReplayFailed, Replayer};

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
}

/// The replay of a recording as a [`Course`].
pub struct OnRecording<'a, 'r> {
    replayer: &'a mut Replayer<'r>,
    first: u64,
}

impl<'a, 'r> OnRecording<'a, 'r> {
    /// From where the replay stands: it goes on its way if it is at a boundary.
    ///
    /// # Errors
    /// When it cannot.
    pub fn new(replayer: &'a mut Replayer<'r>) -> Result<Self, ReplayFailed> {
        let began = replayer.began().map(|index| {
            let checkpoints = replayer.recording().checkpoints();
            checkpoints
                .get(index)
                .map_or(0, |info| info.meta.boundary + 1)
        });
        let recording = replayer.recording();
        let first = match recording.starts().contains(&StartPoint::Beginning) {
            true => 0,
            false => began.unwrap_or(recording.boundaries().start),
        };
        replayer.deliver()?;
        Ok(OnRecording { replayer, first })
    }
}

impl Course for OnRecording<'_, '_> {
    fn machine(&mut self) -> &mut Machine {
        self.replayer.machine_mut()
    }

    fn stretch(&self) -> u64 {
        self.replayer.boundary()
    }

    fn first(&self) -> u64 {
        self.first
    }

    fn cross(&mut self, boundary: Boundary) -> Result<bool, String> {
        let gone = self.replayer.arrive(boundary);
        gone.and_then(|_| self.replayer.deliver())
            .map_err(|error| error.to_string())
    }

    fn rewind(&mut self, stretch: u64) -> Result<(), String> {
        let done = match stretch.checked_sub(1) {
            None => self.replayer.restart(),
            Some(boundary) => self
                .replayer
                .seek(boundary)
                .and_then(|_| self.replayer.deliver())
                .map(|_| ()),
        };
        done.map_err(|error| error.to_string())
    }
}
