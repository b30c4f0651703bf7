//! One result from the shards of a campaign.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::manifest::{Manifest, make_directory};
use super::results::{self, Reader, Writer, timeless};
use super::{Goal, RunError};
use crate::model::TrialRecord;

/// What became of a merge.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// Trials in the result.
    pub trials: u64,
    /// Trials that were in several directories, the same each time.
    pub repeated: u64,
    /// Draws below the goal that are missing with some N.
    pub missing: u64,
    /// The first of them.
    pub first_missing: Option<u64>,
}

/// Puts the trials of several directories into `out`, in the order of their draws: the same as one run would have given, but for real
/// times. A trial that is in several of them must be the same there.
///
/// # Errors
/// If they are of different campaigns or golden runs, records of one trial differ, something is damaged, or `out` has results.
pub fn merge(directories: &[PathBuf], out: &Path) -> Result<Merged, RunError> {
    let mut merged: Option<Manifest> = None;
    let mut records: BTreeMap<(u64, u8), (TrialRecord, usize)> = BTreeMap::new();
    let mut replicas = BTreeSet::new();
    let mut repeated = 0;
    for (index, directory) in directories.iter().enumerate() {
        let manifest = Manifest::must(directory)?;
        replicas.extend(manifest.campaign.replicas.iter().copied());
        merged = Some(match merged {
            None => manifest,
            Some(mut first) => {
                first.same_trials(&manifest, directory)?;
                first.wall_seconds = first.wall_seconds.max(manifest.wall_seconds);
                first.jobs += manifest.jobs;
                if manifest.goal.most() > first.goal.most() {
                    first.goal = manifest.goal;
                }
                first
            }
        });
        for record in Reader::open(&directory.join(results::FILE))? {
            let record = record?;
            let key = (record.drawn.draw, record.replicas);
            match records.get(&key) {
                None => {
                    records.insert(key, (record, index));
                }
                Some((first, other)) => {
                    let (first, second) = (timeless(first.clone()), timeless(record));
                    if first != second {
                        return Err(RunError::Disagree {
                            draw: key.0,
                            replicas: key.1,
                            first: tell(&first),
                            first_in: directories[*other].clone(),
                            second: tell(&second),
                            second_in: directory.clone(),
                        });
                    }
                    repeated += 1;
                }
            }
        }
    }
    let Some(mut manifest) = merged else {
        return Err(RunError::NoCampaign(out.to_owned()));
    };
    make_directory(out)?;
    let (mut writer, present) = Writer::open(&out.join(results::FILE), |_| ())?;
    if !present.is_empty() {
        return Err(RunError::Exists {
            directory: out.to_owned(),
            trials: present.len(),
        });
    }
    manifest.campaign.replicas = replicas.into_iter().collect();
    manifest.shard = None;
    let end = match &manifest.goal {
        Goal::Draws(draws) => *draws,
        Goal::Looks(_) => manifest.complete.unwrap_or(manifest.goal.most()),
    };
    let (mut missing, mut first_missing) = (0, None);
    for draw in 0..end {
        if manifest
            .campaign
            .replicas
            .iter()
            .any(|&n| !records.contains_key(&(draw, n)))
        {
            missing += 1;
            first_missing = first_missing.or(Some(draw));
        }
    }
    manifest.complete = (missing == 0).then_some(end);
    manifest.write(out)?;
    for (record, _) in records.values() {
        writer.append(record)?;
    }
    writer.sync()?;
    Ok(Merged {
        trials: records.len() as u64,
        repeated,
        missing,
        first_missing,
    })
}

/// A record in one line.
fn tell(record: &TrialRecord) -> String {
    format!(
        "\"{}: {}; {}\"",
        record.outcome, record.place, record.evidence
    )
}
