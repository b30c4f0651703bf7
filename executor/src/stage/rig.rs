//! N machines of one saved set, on which trials are performed one after the other.

use std::sync::Arc;

use super::{Interposer, Limits, Reset, Spun, Stage};
use crate::egress::{Egress, Tap};
use crate::events::EventSink;
use crate::exit::{ExitCode, Failure};
use crate::launch::Plan;
use crate::record::Recorder;
use crate::set::Summary;

/// See the module.
pub struct Rig {
    _plan: Plan,
}

/// One trial.
pub struct Play {
    /// Replicas of the set: the first ones of the rig's.
    pub replicas: u8,
    /// Gives the entries.
    pub stage: Arc<dyn Stage>,
    /// Takes what is released.
    pub egress: Box<dyn Egress>,
    /// Sees everything.
    pub tap: Option<Tap>,
    /// Sees events.
    pub events: EventSink,
    /// One per replica; those that are missing do nothing.
    pub interposers: Vec<Box<dyn Interposer>>,
    /// Records the trial.
    pub recorder: Option<Arc<Recorder>>,
    /// Whether a replica that was stopped comes back. Of one alone nobody could say that it is healthy then: its trial shows what the
    /// appliance does without Quorate only if it does not.
    pub recovery: bool,
    /// What ends a replica or the trial.
    pub limits: Limits,
}

impl Play {
    /// Of one trial that nobody looks at: with the default limits, and recovery from two replicas on.
    #[must_use]
    pub fn new(replicas: u8, stage: Arc<dyn Stage>, egress: Box<dyn Egress>) -> Play {
        Play {
            replicas,
            stage,
            egress,
            tap: None,
            events: Box::new(|_| {}),
            interposers: Vec::new(),
            recorder: None,
            recovery: replicas > 1,
            limits: Limits::default(),
        }
    }
}

/// What became of a trial.
#[derive(Clone, Debug)]
pub struct Performed {
    /// Of the set: how it ended, its status with the last events, how long it ran. A stage that is over ends it as
    /// [`crate::events::End::Stopped`].
    pub summary: Summary,
    /// What putting the machines back cost before.
    pub reset: Reset,
    /// No replica reached this boundary within [`Limits::spin`] or [`Limits::stall`]: the set was ended.
    pub spun: Option<Spun>,
    /// The stage was over: the trial came to its end.
    pub over: bool,
    /// What the trial left on the disks.
    pub disks: Vec<DiskContent>,
}

/// What a trial left on a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskContent {
    /// The extents that were written, ascending and apart: byte offset, and what is there now.
    pub written: Vec<(u64, Vec<u8>)>,
}

impl Rig {
    /// Makes the machines of the first `replicas` replicas of a saved set. Its disks are copied into memory: the files stay as they
    /// are.
    ///
    /// # Errors
    /// When the plan does not go on from a saved set, or the host cannot do it.
    pub fn new(plan: Plan, replicas: u8) -> Result<Rig, Failure> {
        let _ = replicas;
        Ok(Rig { _plan: plan })
    }

    /// Performs one trial.
    ///
    /// # Errors
    /// When the host fails. What a guest does is no error.
    pub fn perform(&mut self, play: Play) -> Result<Performed, Failure> {
        let _ = play;
        Err(Failure::new(
            ExitCode::Internal,
            "trials are not there yet".to_owned(),
        ))
    }
}
