//! What a campaign found, as one self-contained `report.html`, as `report.json` and as `trials.csv`.
//!
//! The records are read once, as a stream, and memory does not grow with their number: [`tally`] counts, [`data`] makes the report
//! out of the counts, [`page`] shows it. Everything that comes from a guest or a file is hostile text: `maud` escapes it for HTML,
//! [`text`] makes it harmless to look at, [`csv`] to open in a spreadsheet. The page loads nothing and runs one script whose digest
//! its Content-Security-Policy names.

pub mod csv;
pub mod data;
mod directory;
pub mod estimate;
mod fill;
pub mod label;
mod page;
pub mod plot;
pub mod sketch;
pub mod strip;
pub mod synthetic;
pub mod tally;
pub mod text;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::{GoldenFacts, TrialRecord};
use crate::run::RunError;
use crate::stats::Confidence;
use data::Report;
pub use directory::of_directory;
use tally::Tally;

/// Records, one after another, each with what went wrong in reading it.
pub type Records<'a> = Box<dyn Iterator<Item = io::Result<TrialRecord>> + 'a>;

/// A line of text with a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The name.
    pub name: String,
    /// The text.
    pub text: String,
}

/// A stratum.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stratum {
    /// Its name.
    pub name: String,
    /// The share of the faults that it stands for.
    pub weight: f64,
}

/// What the trials ran on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Version of quorate.
    pub quorate: String,
    /// Model of the processor.
    pub cpu: String,
    /// Processors that were there.
    pub cores: u64,
    /// What runs the guests: KVM's back end (`Intel VT-x`, `AMD-V` …) as far as it is known.
    pub kvm: String,
    /// The host's kernel.
    pub kernel: String,
    /// When the report was made, as it is to be shown.
    pub date: String,
}

/// What the report is made from.
pub struct ReportInput<'a> {
    /// Name of the campaign.
    pub name: String,
    /// What it is for; may be empty.
    pub description: String,
    /// Its file, as it was given on the command line: for the commands that the report prints.
    pub file: String,
    /// Its canonical form.
    pub canonical: String,
    /// The appliance.
    pub appliance: String,
    /// Trials ran in virtual time, and are the same in every run; else a client was run for each.
    pub staged: bool,
    /// The campaign's seed.
    pub seed: String,
    /// The trial without a fault.
    pub golden: GoldenFacts,
    /// What it ran on.
    pub machine: Machine,
    /// Confidence that intervals are made at: of the look that a campaign was stopped at, if it was.
    pub confidence: Confidence,
    /// Confidence that they then have, whatever made the campaign stop.
    pub stated: Confidence,
    /// If this is not all of the campaign: sentences that say so.
    pub unfinished: Vec<String>,
    /// What was done about statistics, by name: method, planning, stopping.
    pub notes: Vec<Named>,
    /// The strata.
    pub strata: Vec<Stratum>,
    /// Real seconds that the trials took.
    pub wall_seconds: Option<f64>,
    /// Trials at a time.
    pub jobs: Option<u64>,
    /// The command that does all of it again, if it is known.
    pub command: Option<String>,
    /// The records: each trial once, in any order.
    pub records: &'a dyn Fn() -> Records<'a>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The page.
    pub html: PathBuf,
    /// The data.
    pub json: PathBuf,
    /// The table of trials.
    pub csv: PathBuf,
    /// Trials in it.
    pub trials: u64,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The records could not be read.
    #[error("cannot read the trials: {0}")]
    Read(io::Error),
    /// There are no results of a campaign, or not of this version.
    #[error(transparent)]
    Campaign(#[from] RunError),
}

/// Writes `report.html`, `report.json` and `trials.csv` into `dir`, which must exist. Each file is replaced as a whole when it is
/// complete. They may hold guest memory: mode 0600.
///
/// # Errors
/// When records cannot be read or files not be written.
pub fn write(dir: &Path, input: &ReportInput<'_>) -> Result<Written, ReportError> {
    let mut tally = Tally::default();
    let csv = replace(dir, "trials.csv", |out| {
        csv::header(out).map_err(Failed::Write)?;
        for record in (input.records)() {
            let record = record.map_err(Failed::Read)?;
            csv::line(out, &record).map_err(Failed::Write)?;
            tally.add(&record);
        }
        Ok(())
    })?;
    let report = Report::new(input, &tally);
    let json = replace(dir, "report.json", |out| {
        serde_json::to_writer_pretty(&mut *out, &report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
            .map_err(Failed::Write)
    })?;
    let html = replace(dir, "report.html", |out| {
        let page = page::page(&report).into_string();
        out.write_all(page.as_bytes()).map_err(Failed::Write)
    })?;
    Ok(Written {
        html,
        json,
        csv,
        trials: report.campaign.trials,
    })
}

enum Failed {
    Read(io::Error),
    Write(io::Error),
}

/// Writes a file beside its place and moves it there.
fn replace(
    dir: &Path,
    name: &str,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), Failed>,
) -> Result<PathBuf, ReportError> {
    let path = dir.join(name);
    let beside = dir.join(format!(".{name}.{}", std::process::id()));
    let written = create(&beside).map_err(Failed::Write).and_then(|file| {
        let mut out = BufWriter::new(file);
        fill(&mut out)?;
        out.flush().map_err(Failed::Write)?;
        fs::rename(&beside, &path).map_err(Failed::Write)
    });
    match written {
        Ok(()) => Ok(path),
        Err(failed) => {
            // What is left of it is of no use; that it cannot be removed would only hide the first error.
            let _ = fs::remove_file(&beside);
            Err(match failed {
                Failed::Read(source) => ReportError::Read(source),
                Failed::Write(source) => ReportError::Write { path, source },
            })
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)
}
