//! `quorate explain`

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use quorate_vmm::Checkpoint;
use serde::Serialize;

use super::progress::{answer, line};
use crate::exit::{ExitCode, Failure};
use crate::explain::find::{Divergence, divergences};
use crate::explain::investigate::{Case, explain as investigate};
use crate::explain::lab::LabError;
use crate::explain::plant::{PlantError, plant};
use crate::explain::report::Explanation;
use crate::inject::Fault;
use crate::kernel;
use crate::record::Recording;
use crate::seeds::Seed;

/// `quorate explain`
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The recording, as it was named with `quorate run --record`
    file: PathBuf,
    /// Only this divergence of those in the recording, from 0 [default: all]
    #[arg(long, value_name = "N")]
    divergence: Option<usize>,
    /// Only list the divergences
    #[arg(long, conflicts_with = "divergence")]
    list: bool,
    /// Do not compare with a machine of another layout, which takes a second replay
    #[arg(long)]
    one_layout: bool,
    /// Do not use what the recording says about injected faults to find what was hit
    #[arg(long)]
    blind: bool,
    /// The image, if it is not where it was
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Make up a divergence: spoil the replay at this boundary with --fault, and explain what comes of it
    #[arg(long, value_name = "BOUNDARY", requires = "fault", conflicts_with_all = ["divergence", "list"])]
    at: Option<u64>,
    /// The fault for --at, as for `quorate inject`: "flip-memory PLACE BIT" or "flip-register REGISTER BIT"
    #[arg(long, value_name = "FAULT", requires = "at")]
    fault: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    file: PathBuf,
    divergences: Vec<Divergence>,
    explanations: Vec<Explanation>,
}

impl From<LabError> for Failure {
    fn from(error: LabError) -> Failure {
        match error {
            LabError::Record(error) => error.into(),
            LabError::Replay(error) => error.into(),
            LabError::Machine(error) => crate::machine::failure(&error),
            LabError::Fault(_) => Failure::new(ExitCode::Host, error),
            LabError::NotHealthy(_) => Failure::new(ExitCode::Differs, error),
            LabError::Log { .. } | LabError::TooShort(_) => {
                Failure::new(ExitCode::Recording, error)
            }
        }
    }
}

impl From<PlantError> for Failure {
    fn from(error: PlantError) -> Failure {
        match error {
            PlantError::Lab(error) => error.into(),
            PlantError::Fault(_) | PlantError::Masked(_) => Failure::new(ExitCode::Usage, error),
        }
    }
}

pub fn explain(args: &ExplainArgs) -> Result<ExitCode, Failure> {
    let recording = Recording::open(&args.file)?;
    if let (Some(at), Some(fault)) = (args.at, &args.fault) {
        return made_up(&recording, args, at, fault);
    }
    let found = divergences(&recording)?;
    if found.is_empty() {
        let text = format!(
            "{}: no replica was stopped in this recording, there is nothing to explain",
            args.file.display()
        );
        return Err(Failure::new(ExitCode::Recording, text));
    }
    if let Some(number) = args.divergence.filter(|number| *number >= found.len()) {
        let text = format!(
            "--divergence {number}: the recording has divergences 0 to {}",
            found.len() - 1
        );
        return Err(Failure::new(ExitCode::Usage, text));
    }
    let mut explanations = Vec::new();
    let wanted = |divergence: &&Divergence| {
        !args.list
            && args
                .divergence
                .is_none_or(|number| number == divergence.number)
    };
    for divergence in found.iter().filter(wanted) {
        let explanation = one(&recording, args, divergence)?;
        if !args.json {
            answer(&format!("{explanation}"));
        }
        explanations.push(explanation);
    }
    if args.json {
        let report = Report {
            file: args.file.clone(),
            divergences: found,
            explanations,
        };
        let text = serde_json::to_string_pretty(&report)
            .map_err(|error| Failure::new(ExitCode::Internal, error))?;
        answer(&text);
    } else if args.list {
        for divergence in &found {
            let Divergence {
                number,
                replica,
                boundary,
                reason,
                ..
            } = divergence;
            answer(&format!(
                "{number}: replica {replica} at boundary {boundary}: {reason}"
            ));
        }
    }
    Ok(ExitCode::Success)
}

fn made_up(
    recording: &Recording,
    args: &ExplainArgs,
    at: u64,
    fault: &str,
) -> Result<ExitCode, Failure> {
    let mut words = fault.split(' ').map(str::to_owned);
    let kind = words.next().unwrap_or_default();
    let fault = Fault::from_words(&kind, &words.collect::<Vec<_>>())
        .map_err(|error| Failure::new(ExitCode::Usage, error))?;
    let seed = recording.header().layout_seed(0, 0);
    let (divergence, dump) = plant(recording, args.image.as_deref(), seed, at, &fault)?;
    let explanation = investigated(recording, args, &divergence, seed, dump)?;
    if args.json {
        let report = Report {
            file: args.file.clone(),
            divergences: vec![divergence],
            explanations: vec![explanation],
        };
        let text = serde_json::to_string_pretty(&report)
            .map_err(|error| Failure::new(ExitCode::Internal, error))?;
        answer(&text);
    } else {
        answer(&format!("{explanation}"));
    }
    Ok(ExitCode::Success)
}

fn one(
    recording: &Recording,
    args: &ExplainArgs,
    divergence: &Divergence,
) -> Result<Explanation, Failure> {
    let info = &recording.dumps()[divergence.number];
    let dump = Checkpoint::read_from(&mut recording.blob(info)).map_err(|error| {
        let text = format!(
            "the dump of replica {} cannot be read: {error}",
            divergence.replica
        );
        Failure::new(ExitCode::Recording, text)
    })?;
    // Pages of the image that nobody changed are not in the dump.
    let path = args
        .image
        .as_ref()
        .unwrap_or(&recording.header().image.path);
    let image = std::fs::File::open(path).map_err(|error| {
        Failure::new(
            ExitCode::Image,
            format!("{}: cannot read the image: {error}", path.display()),
        )
    })?;
    let dump = dump
        .with_image(Arc::new(image))
        .map_err(|error| crate::machine::failure(&error))?;
    investigated(recording, args, divergence, info.meta.layout_seed, dump)
}

fn investigated(
    recording: &Recording,
    args: &ExplainArgs,
    divergence: &Divergence,
    layout_seed: Seed,
    dump: Checkpoint,
) -> Result<Explanation, Failure> {
    let seeds = &recording.header().layout_seeds;
    let other = seeds.iter().find(|seed| seed.seed != layout_seed);
    let progress = |text: &str| {
        if !args.json {
            line(text);
        }
    };
    let case = Case {
        recording,
        image: args.image.as_deref(),
        kernel: &kernel::load()?,
        divergence: divergence.clone(),
        layout_seed,
        dump,
        other_seed: other.filter(|_| !args.one_layout).map(|seed| seed.seed),
        blind: args.blind,
        progress: &progress,
    };
    Ok(investigate(&case)?)
}
