//! `campaign.json`: what the trials beside it are trials of.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Goal, RunError, Shard};
use crate::file::Campaign;
use crate::model::GoldenFacts;
use crate::stats::Confidence;

/// Name of the file in a campaign's directory.
pub const FILE: &str = "campaign.json";

/// Version of the file, and of `trials.jsonl`.
pub const FORMAT: u32 = 1;

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of quorate that wrote it.
    pub quorate: String,
    /// The campaign's file as it was named.
    pub file: PathBuf,
    /// The campaign, as parsed.
    pub campaign: Campaign,
    /// [`Campaign::digest`]: two campaigns with the same one (and the same golden digest) have the same trials.
    pub digest: String,
    /// The trial without a fault.
    pub golden: GoldenFacts,
    /// The strata by name, with their weights.
    pub strata: Vec<(String, f64)>,
    /// When it is complete.
    pub goal: Goal,
    /// The part of it that was done here, if not all.
    pub shard: Option<Shard>,
    /// Trials at a time, at last.
    pub jobs: u64,
    /// Real seconds of all runs that ended by themselves.
    pub wall_seconds: f64,
    /// After so many draws it was found complete; `None`: it is not.
    pub complete: Option<u64>,
}

impl Manifest {
    /// Reads it from a campaign's directory. `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read, is of another version, or damaged.
    pub fn read(directory: &Path) -> Result<Option<Self>, RunError> {
        let path = directory.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RunError::Io { path, source }),
        };
        let bad = |what: String| RunError::Manifest {
            path: path.clone(),
            what,
        };
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let format = value.get("format").and_then(serde_json::Value::as_u64);
        if format != Some(u64::from(FORMAT)) {
            return Err(bad(format!(
                "it is of format {}, and this version of quorate knows {FORMAT} only",
                format.map_or("none".to_owned(), |format| format.to_string())
            )));
        }
        let manifest: Manifest =
            serde_json::from_value(value).map_err(|error| bad(error.to_string()))?;
        if manifest.campaign.digest() != manifest.digest {
            return Err(bad(
                "the campaign in it is not the one that its digest is of".to_owned(),
            ));
        }
        Ok(Some(manifest))
    }

    /// Reads it from a directory that must have one.
    ///
    /// # Errors
    /// As [`Manifest::read`], and if there is none.
    pub fn must(directory: &Path) -> Result<Self, RunError> {
        Manifest::read(directory)?.ok_or_else(|| RunError::NoCampaign(directory.to_owned()))
    }

    /// Writes it, as a whole or not at all.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn write(&self, directory: &Path) -> Result<(), RunError> {
        let path = directory.join(FILE);
        let fail = |source| RunError::Io {
            path: path.clone(),
            source,
        };
        let new = directory.join(format!("{FILE}.new"));
        let text = serde_json::to_string_pretty(self).map_err(|error| fail(error.into()))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(fail)?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.write_all(b"\n"))
            .and_then(|()| file.sync_data())
            .map_err(fail)?;
        fs::rename(&new, &path).map_err(fail)
    }

    /// Confidence of the intervals of what was found: where repeated looks share the chance to miss, that of the look at which it was
    /// stopped.
    #[must_use]
    pub fn confidence(&self) -> Confidence {
        let looked = match &self.goal {
            Goal::Looks(schedule) => schedule
                .looks
                .iter()
                .find(|look| Some(look.draws) == self.complete)
                .map(|look| look.confidence),
            Goal::Draws(_) => None,
        };
        // The file's was checked when it was parsed.
        looked
            .unwrap_or_else(|| Confidence::new(self.campaign.trials.confidence).unwrap_or_default())
    }

    /// That trials of this campaign may be put to those in `directory`, of which `self` is the manifest.
    ///
    /// # Errors
    /// What is not the same.
    pub fn same_trials(&self, other: &Manifest, directory: &Path) -> Result<(), RunError> {
        let different = |what: &str| RunError::OtherCampaign {
            directory: directory.to_owned(),
            what: what.to_owned(),
        };
        if self.digest != other.digest {
            return Err(different(
                "the campaign is another: seed, faults, oracle, workload or limits",
            ));
        }
        if self.golden.digest != other.golden.digest {
            return Err(different(
                "the golden run is another: image, kernel or conversation have changed",
            ));
        }
        let (mine, theirs) = (&self.golden, &other.golden);
        // Instructions are counted only where a campaign needs them.
        let counted = match (mine.instructions, theirs.instructions) {
            (Some(mine), Some(theirs)) => mine == theirs,
            _ => true,
        };
        let all = |facts: &GoldenFacts| (facts.boundaries, facts.calls, facts.virtual_ns);
        if all(mine) != all(theirs) || !counted {
            return Err(different(
                "the golden run went otherwise, with the same image, kernel and conversation",
            ));
        }
        Ok(())
    }
}

/// Makes the directory of a campaign, readable by its owner only: what is in it holds guest memory and seeds.
///
/// # Errors
/// If the host refuses.
pub fn make_directory(path: &Path) -> Result<(), RunError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| RunError::Io {
            path: path.to_owned(),
            source,
        })
}
