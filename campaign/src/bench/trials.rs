//! What the runner of a campaign needs of a bench.

use crate::model::{Drawn, TrialRecord};

use super::BenchError;

/// Plays trials, one after the other. A campaign has one per job, each in a thread of its own.
pub trait Trials: Send {
    /// Plays the fault of `drawn` in a set of `replicas`, from the warm checkpoint to full strength (or to where that is out of
    /// reach), and judges it. All but times in the record depends on draw, golden facts and number of replicas alone.
    ///
    /// # Errors
    /// When the host fails the bench: no trial after it means anything. What goes wrong *in* a trial is an outcome, not an error.
    fn trial(&mut self, drawn: &Drawn, replicas: u8) -> Result<TrialRecord, BenchError>;
}
