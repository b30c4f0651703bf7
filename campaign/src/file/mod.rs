//! The campaign file. `docs/campaigns.md` describes every key; this is the shortest useful one:
//!
//! ```toml
//! name = "redis-registers"
//! appliance = "../images/appliances/redis.toml"
//!
//! [workload]
//! command = ["./redis-client.sh"]
//!
//! [[fault]]
//! model = "register"
//! ```
//!
//! Every message about a file names file, line, key and table and says what is possible. Unknown keys are refused.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::draw::DRAWING;
use crate::model::Outcome;

mod fault;
mod names;
mod parse;
mod parse_fault;
mod parse_when;
mod reader;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_docs;

pub use fault::{
    Bits, ClockKind, Distribution, FaultModel, FaultSpec, FrameKind, Place, Point, Span, When,
};
pub use names::{class_words, errno_name, register_words};

/// Largest campaign file, bytes (R10).
pub const MAX_FILE: u64 = 1 << 20;
/// Most `[[fault]]` sections (R10).
pub const MAX_FAULTS: usize = 256;
/// Most replicas of a set.
pub const MAX_REPLICAS: u8 = 9;
/// Most draws of a campaign.
pub const MAX_DRAWS: u64 = 100_000_000;
/// Greatest weight of a `[[fault]]`.
pub const MAX_WEIGHT: u32 = 1000;

/// A campaign as its file says it, with all defaults filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Campaign {
    /// Its name: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// What it is for, for people; may be empty.
    pub description: String,
    /// The appliance file, as written: relative to the campaign file.
    pub appliance: PathBuf,
    /// What all that is random is drawn from.
    pub seed: String,
    /// The sizes of the sets that each draw is tried in.
    pub replicas: Vec<u8>,
    /// Whether replicas differ in their addresses; as the appliance says if absent.
    pub layout: Option<Layout>,
    /// What the guest has to do.
    pub workload: Workload,
    /// What is compared with the golden run.
    pub oracle: Oracle,
    /// How many draws.
    pub trials: Trials,
    /// When a trial is given up.
    pub limits: Limits,
    /// What is injected: each is one stratum or several.
    pub faults: Vec<FaultSpec>,
    /// The file that it was read from; empty when it was parsed from text alone.
    #[serde(skip)]
    pub path: PathBuf,
}

/// `layout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// All replicas have the same addresses.
    Same,
    /// Each replica has its own.
    Random,
}

/// `[workload]`. Without `command` and `conversation` nobody talks to the guest: a trial lasts until its program ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Program and arguments that make the appliance ready, before the checkpoint that all trials begin with.
    pub warmup: Option<Vec<String>>,
    /// Program and arguments of the client.
    pub command: Option<Vec<String>>,
    /// A kept conversation, instead of running the commands; relative to the campaign file.
    pub conversation: Option<PathBuf>,
    /// How long the commands may take when they are run, seconds.
    pub timeout_s: u64,
    /// How trials run.
    pub mode: Mode,
}

/// `mode` of `[workload]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The client's conversation is played in virtual time: the same on every machine.
    #[default]
    Staged,
    /// The client is run for each trial, in real time: for what cannot be played. No two trials are the same.
    Live,
}

/// `[oracle]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Oracle {
    /// What is compared.
    pub compare: Vec<Channel>,
    /// What may differ.
    pub masks: Vec<Mask>,
    /// Regular expressions (of bytes) for what in a reply tells the client of an error.
    pub errors: Vec<String>,
    /// Sectors that may differ.
    pub ignore_sectors: Vec<Sectors>,
}

/// What of a guest can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// The bytes that each of the client's connections received.
    Client,
    /// The contents of the disks at the end.
    Disk,
    /// The console.
    Console,
}

/// One `[[oracle.mask]]`: both sides are changed so before they are compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mask {
    /// Of what.
    #[serde(rename = "where")]
    pub channel: Channel,
    /// Regular expression of bytes (`regex::bytes`).
    pub pattern: String,
    /// What takes the place of each match; `$1` is the first group.
    pub replace: String,
}

/// A range of sectors of 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sectors {
    /// Name of the disk; all disks if absent.
    pub disk: Option<String>,
    /// The first.
    pub first: u64,
    /// The last, included.
    pub last: u64,
}

/// `[trials]`: how many draws, each of which is tried with every number of replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trials {
    /// So many draws; absent if `half_width` decides.
    pub count: Option<u64>,
    /// As many draws as it takes for the intervals of all [`Trials::watch`]ed outcomes to be this narrow.
    pub half_width: Option<f64>,
    /// Of the intervals, above 0.5 and below 1.
    pub confidence: f64,
    /// At most so many draws if `half_width` decides.
    pub max: u64,
    /// Which interval.
    pub interval: Interval,
    /// Draws between two looks at the intervals.
    pub batch: u64,
    /// The outcomes whose intervals `half_width` is about; empty: all.
    pub watch: Vec<Outcome>,
}

/// Which interval of a proportion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interval {
    /// The exact one.
    #[default]
    ClopperPearson,
    /// Wilson's.
    Wilson,
}

/// `[limits]`: when a trial is given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// So much virtual time, ms, without anything new for the client is a hang.
    pub hang_ms: u64,
    /// So much CPU time, ms, from one boundary to the next is a hang: the guest spins.
    pub cpu_ms: u64,
    /// A replica that stalls for so long, ms, is a laggard, and is stopped.
    pub lag_ms: u64,
    /// A trial of so many boundaries is a hang.
    pub boundaries: u64,
}

/// Why a campaign file is refused. Reads `campaign.toml:12: key `registers` in [[fault]] "regs": …`.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("{}: cannot read the campaign: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file says something that it may not.
    #[error("{}:{line}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong, with key and table, and what is possible.
        message: String,
    },
}

impl Campaign {
    /// Reads the campaign file at `path`, and looks whether the files that it names are there.
    ///
    /// # Errors
    /// [`FileError`], which names file, line and key.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref();
        let text = read_text(path).map_err(|source| FileError::Read {
            path: path.to_owned(),
            source,
        })?;
        let fail = |(line, message)| FileError::Parse {
            path: path.to_owned(),
            line,
            message,
        };
        let campaign = Self::parse(&text, path)?;
        parse::check_files(&campaign, &text).map_err(fail)?;
        Ok(campaign)
    }

    /// Reads `text` as the campaign file that is called `path`; no other file is looked at.
    ///
    /// # Errors
    /// [`FileError::Parse`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, FileError> {
        parse::campaign(text, path).map_err(|(line, message)| FileError::Parse {
            path: path.to_owned(),
            line,
            message,
        })
    }

    /// `path` of the campaign file as a path of the host: relative ones count from the file's directory.
    #[must_use]
    pub fn resolve(&self, path: &Path) -> PathBuf {
        match self.path.parent() {
            Some(directory) => directory.join(path),
            None => path.to_owned(),
        }
    }

    /// The appliance file as a path of the host.
    #[must_use]
    pub fn appliance_path(&self) -> PathBuf {
        self.resolve(&self.appliance)
    }

    /// The program that a command's first word means: one with a `/` counts from the campaign file's directory; one without is
    /// looked for in that directory, then it is left to `PATH`.
    #[must_use]
    pub fn program(&self, word: &str) -> PathBuf {
        let beside = self.resolve(Path::new(word));
        if word.contains('/') || beside.is_file() {
            // A bare file name would be looked for in PATH.
            if beside.components().count() == 1 {
                return Path::new(".").join(beside);
            }
            return beside;
        }
        PathBuf::from(word)
    }

    /// 32 bytes that depend on the seed and on what they are for, for whatever else needs a seed (the layouts, the guest's random
    /// numbers).
    #[must_use]
    pub fn derived_seed(&self, purpose: &str) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("quorate campaign seed 1");
        hasher.update(&(purpose.len() as u64).to_le_bytes());
        hasher.update(purpose.as_bytes());
        hasher.update(self.seed.as_bytes());
        hasher.finalize().into()
    }

    /// Hexadecimal digest of all that a trial depends on as far as this file says it: two campaigns with the same digest (and the
    /// same [`crate::model::GoldenFacts::digest`], which covers the contents of the files named here) have the same trials. Name,
    /// description, the number of trials and the list of set sizes are not in it: a campaign that is only longer keeps its trials.
    #[must_use]
    pub fn digest(&self) -> String {
        let trials = serde_json::json!({
            "drawing": DRAWING,
            "seed": self.seed,
            "layout": self.layout,
            "workload": self.workload,
            "oracle": self.oracle,
            "limits": self.limits,
            "faults": self.faults,
        });
        let mut hasher = blake3::Hasher::new_derive_key("quorate campaign file 1");
        hasher.update(trials.to_string().as_bytes());
        hasher.finalize().to_hex().to_string()
    }

    /// Whether some fault comes at an instruction's number, so that the golden run must count instructions.
    #[must_use]
    pub fn counts_instructions(&self) -> bool {
        self.faults
            .iter()
            .any(|fault| matches!(fault.when, When::Instruction { .. }))
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("longer than {MAX_FILE} bytes"),
        ));
    }
    Ok(text)
}
