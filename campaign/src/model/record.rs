//! What became of a trial.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Drawn;

/// Outcome classes. Exactly one holds for a trial; where several could, the first in this order of testing does: injector failure,
/// silent corruption, crash, hang, client error, stopped, corrected, masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nobody noticed anything: all outputs are those of the golden run, no replica was stopped.
    Masked,
    /// A replica was stopped and came back; all outputs are those of the golden run.
    Corrected,
    /// The set found the fault and stopped itself (or holds its outputs) rather than release anything wrong.
    Stopped,
    /// The client was told of an error, or lost its connection.
    ClientError,
    /// The client was not answered any more.
    Hang,
    /// The only replica, or all, crashed.
    Crash,
    /// Something wrong was released and nobody said so.
    SilentCorruption,
    /// The fault could not be injected as drawn; the trial says nothing.
    InjectorFailure,
}

impl Outcome {
    /// All of them, best first.
    pub const ALL: [Outcome; 8] = [
        Outcome::Masked,
        Outcome::Corrected,
        Outcome::Stopped,
        Outcome::ClientError,
        Outcome::Hang,
        Outcome::Crash,
        Outcome::SilentCorruption,
        Outcome::InjectorFailure,
    ];

    /// Its name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Masked => "masked",
            Outcome::Corrected => "corrected",
            Outcome::Stopped => "stopped",
            Outcome::ClientError => "client-error",
            Outcome::Hang => "hang",
            Outcome::Crash => "crash",
            Outcome::SilentCorruption => "silent-corruption",
            Outcome::InjectorFailure => "injector-failure",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One trial: a draw in a set of so many replicas. All but [`TrialRecord::timing`] and the real times is the same in every run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialRecord {
    /// The draw.
    #[serde(flatten)]
    pub drawn: Drawn,
    /// Replicas of the set.
    pub replicas: u8,
    /// What became of it.
    pub outcome: Outcome,
    /// Exact place and change in the first victim, as the injector saw it; or why it could not.
    pub place: String,
    /// Region or class of what was hit, and the offset in the region as far as there is one: for maps.
    pub location: Option<(String, u64)>,
    /// How the fault was found.
    pub detected: Option<Detection>,
    /// How the first replica that was stopped came back.
    pub recovered: Option<Recovered>,
    /// All replicas voted again at the end.
    pub full_strength: bool,
    /// What shows the outcome, in one line: the first byte that differs, the crash, the error.
    pub evidence: String,
    /// Where the time went.
    pub timing: Timing,
}

/// How a fault was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// `outvoted`, `crashed`, `misbehaved`, `lagging`, `no-majority` and so on: the reason's first word.
    pub how: String,
    /// Boundaries from the injection to the stop.
    pub boundaries: u64,
    /// Virtual nanoseconds between the two.
    pub virtual_ns: u64,
    /// Real microseconds between the two; not the same in two runs.
    pub micros: u64,
}

/// How a replica came back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recovered {
    /// Step of the ladder.
    pub step: String,
    /// Real microseconds from stop to vote; not the same in two runs.
    pub micros: u64,
}

/// Where the time of a trial went, microseconds; never the same in two runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Putting machines (and disks) back.
    pub reset: u64,
    /// Pages that had to be put back, over all machines.
    pub pages: u64,
    /// Running, from the first entry to the end of the conversation.
    pub run: u64,
    /// Of that: reaching the trigger and injecting.
    pub inject: u64,
    /// From there to full strength.
    pub settle: u64,
    /// Judging.
    pub judge: u64,
    /// All of it.
    pub total: u64,
}
