//! From a campaign to what plays its trials.

use std::path::Path;
use std::sync::Arc;

use quorate_executor::exit::{ExitCode as Code, Failure};

use crate::bench::{Bench, BenchError, LiveBench, Trials};
use crate::file::{Campaign, Mode};
use crate::model::{Drawn, GoldenFacts, TrialRecord};
use crate::run::synthetic::Planted;
use crate::talk::{Golden, GoldenError};

/// Every so many trials of a job one without a fault is played: what a fault has left in a machine, so that putting it back did not
/// undo it, would be in all results that follow.
const CONTROL_EVERY: u64 = 64;

/// A bench that is looked after, see [`CONTROL_EVERY`].
struct Controlled {
    bench: Bench,
    played: u64,
}

impl Trials for Controlled {
    fn trial(&mut self, drawn: &Drawn, replicas: u8) -> Result<TrialRecord, BenchError> {
        self.played += 1;
        if self.played.is_multiple_of(CONTROL_EVERY) {
            self.bench.check(replicas).map_err(|error| {
                BenchError::Broken(format!(
                    "{error}; this was found before draw {}, so that the {CONTROL_EVERY} trials of its job before it are not to be trusted: \
                     please report this, with the campaign file",
                    drawn.draw
                ))
            })?;
        }
        self.bench.trial(drawn, replicas)
    }
}

/// The golden run, and what can be made of it.
pub enum Wired {
    /// Machines.
    Golden(Arc<Golden>),
    /// Planted outcomes.
    Synthetic,
}

impl Wired {
    /// Makes the golden run in the campaign's directory, or finds it made.
    pub fn prepare(
        campaign: &Campaign,
        directory: &Path,
        synthetic: bool,
        say: &dyn Fn(&str),
    ) -> Result<Self, Failure> {
        if synthetic {
            return Ok(Wired::Synthetic);
        }
        match Golden::prepare(campaign, &directory.join("golden"), say) {
            Ok(golden) => Ok(Wired::Golden(Arc::new(golden))),
            Err(GoldenError::Failure(failure)) => Err(failure),
            Err(error @ GoldenError::Io { .. }) => Err(Failure::new(Code::Results, error)),
            Err(error) => Err(Failure::new(Code::Host, error)),
        }
    }

    /// What draws are made from.
    pub fn facts(&self) -> GoldenFacts {
        match self {
            Wired::Golden(golden) => golden.facts.clone(),
            Wired::Synthetic => GoldenFacts {
                boundaries: 10_000,
                calls: 10_000,
                virtual_ns: 1_000_000_000,
                instructions: Some(10_000_000),
                digest: "synthetic".to_owned(),
            },
        }
    }

    /// Something that plays trials, for one thread, to be made in it; recording the first one in `record`, if that is given. With
    /// `check` a trial without a fault is played first for every N, and must be the golden run: whatever a trial shows comes
    /// from its fault then.
    pub fn bench(
        &self,
        campaign: &Campaign,
        record: Option<&Path>,
        check: bool,
    ) -> Result<Box<dyn Trials>, BenchError> {
        match self {
            Wired::Golden(golden) if campaign.workload.mode == Mode::Live => {
                if record.is_some() {
                    let text = "a trial in real time (mode = \"live\") is not recorded: it cannot be had again";
                    return Err(BenchError::Broken(text.to_owned()));
                }
                Ok(Box::new(LiveBench::new(campaign, Arc::clone(golden))?))
            }
            Wired::Golden(golden) => {
                let mut bench = Bench::new(campaign, Arc::clone(golden))?;
                if check {
                    for &replicas in &campaign.replicas {
                        bench.check(replicas)?;
                    }
                }
                if let Some(file) = record {
                    bench.record(file);
                    return Ok(Box::new(bench));
                }
                Ok(Box::new(Controlled { bench, played: 0 }))
            }
            Wired::Synthetic => Ok(Box::new(Planted {
                pause: std::time::Duration::from_millis(1),
                ..Planted::usual()
            })),
        }
    }
}
