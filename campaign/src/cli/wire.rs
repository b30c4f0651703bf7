//! From a campaign to what plays its trials.

use std::path::Path;

use quorate_executor::exit::{ExitCode as Code, Failure};

use crate::bench::{BenchError, Trials};
use crate::file::Campaign;
use crate::model::GoldenFacts;
use crate::run::synthetic::Planted;

/// The golden run, and what can be made of it.
pub enum Wired {
    /// Machines.
    None,
    /// Planted outcomes.
    Synthetic,
}

impl Wired {
    /// Makes the golden run, or finds it made.
    pub fn prepare(
        campaign: &Campaign,
        directory: &Path,
        synthetic: bool,
        say: &dyn Fn(&str),
    ) -> Result<Self, Failure> {
        if synthetic {
            return Ok(Wired::Synthetic);
        }
        let _ = (campaign, directory, say);
        Err(Failure::new(Code::Internal, "golden runs are not there yet"))
    }

    /// What draws are made from.
    pub fn facts(&self) -> GoldenFacts {
        match self {
            Wired::None => GoldenFacts::default(),
            Wired::Synthetic => GoldenFacts {
                boundaries: 10_000,
                calls: 10_000,
                virtual_ns: 1_000_000_000,
                instructions: Some(10_000_000),
                digest: "synthetic".to_owned(),
            },
        }
    }

    /// Something that plays trials, for one thread; recording each in `record`, if that is given.
    pub fn bench(&self, _record: Option<&Path>) -> Result<Box<dyn Trials>, BenchError> {
        match self {
            Wired::None => Err(BenchError::Broken("not there yet".to_owned())),
            Wired::Synthetic => Ok(Box::new(Planted {
                pause: std::time::Duration::from_millis(1),
                ..Planted::usual()
            })),
        }
    }
}
