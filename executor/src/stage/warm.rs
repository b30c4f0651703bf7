//! From a cold start to where trials begin.

use std::path::Path;
use std::sync::Arc;

use super::Stage;
use crate::egress::Egress;
use crate::exit::{ExitCode, Failure};
use crate::launch::Plan;
use crate::save::Saved;

/// Starts the set of `plan` cold, on a stage, until that is over; saves it where it stands then. What is saved depends on plan and
/// stage alone: the wall-clock time of the start is [`super::EPOCH_NS`].
///
/// The disks of the plan are written to: give it copies. Recovery is off.
///
/// # Errors
/// When the set ends before the stage is over, or cannot be saved.
pub fn warm(
    plan: Plan,
    stage: Arc<dyn Stage>,
    egress: Box<dyn Egress>,
    directory: &Path,
) -> Result<Saved, Failure> {
    let _ = (plan, stage, egress, directory);
    Err(Failure::new(
        ExitCode::Internal,
        "warming up is not there yet".to_owned(),
    ))
}
