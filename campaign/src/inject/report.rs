//! What an injector says of itself, while it works in another thread and after.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::sync::lock;

/// Where a fault is, and what was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Exact place and change.
    pub place: String,
    /// Class or region, and offset in it, for maps.
    pub location: Option<(String, u64)>,
    /// The last boundary that the replica had completed, or the one whose outputs or entry were changed.
    pub boundary: u64,
    /// The guest's clock then, ns since the beginning of the trial.
    pub virtual_ns: u64,
    /// When that was.
    pub at: Instant,
}

/// What became of the injection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Report {
    /// The trigger has not come.
    #[default]
    Waiting,
    /// The trigger has come; the fault waits for an occasion, such as the next frame.
    Armed,
    /// It is done.
    Hit(Hit),
    /// It cannot be done, and why.
    Failed(String),
}

impl Report {
    /// The hit, if there is one, and in words what was done or why nothing was.
    #[must_use]
    pub fn placed(&self) -> (Option<&Hit>, String) {
        match self {
            Report::Hit(hit) => (Some(hit), hit.place.clone()),
            Report::Failed(why) => (None, why.clone()),
            Report::Armed => (
                None,
                "the trigger came, but no occasion for the fault after it".to_owned(),
            ),
            Report::Waiting => (None, "the trigger did not come".to_owned()),
        }
    }
}

/// A report that is shared between an injector and its bench.
#[derive(Clone, Debug, Default)]
pub struct Injected(Arc<Mutex<Report>>);

impl Injected {
    /// What it says now.
    #[must_use]
    pub fn report(&self) -> Report {
        lock(&self.0).clone()
    }

    pub(super) fn set(&self, report: Report) {
        *lock(&self.0) = report;
    }
}
