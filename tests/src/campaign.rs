//! Campaigns as a user runs them: `quorate campaign`, and what it leaves in its directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::process::{Ended, Process, run};
use crate::set::quorate;
use crate::{Error, native, repository};

/// How long a campaign of these tests may take; it takes a minute, but other things may run on the host.
pub const CAMPAIGN_TIMEOUT: Duration = Duration::from_secs(900);

/// A ready campaign of the repository.
#[must_use]
pub fn ready(name: &str) -> PathBuf {
    repository().join(format!("campaigns/{name}.toml"))
}

/// The ready campaigns.
///
/// # Errors
/// When their directory cannot be read.
pub fn all_ready() -> Result<Vec<PathBuf>, Error> {
    let directory = repository().join("campaigns");
    let listed = std::fs::read_dir(&directory).and_then(|entries| {
        entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<_>, _>>()
    });
    let mut files = listed.map_err(|source| Error::Io {
        what: directory.display().to_string(),
        source,
    })?;
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "toml")
    });
    files.sort();
    Ok(files)
}

/// The command `quorate campaign WORD…`, with all that ready campaigns need: the compute kernel is built, and Redis' own client is in
/// PATH.
///
/// # Errors
/// When one of these cannot be had.
pub fn command(words: &[&str]) -> Result<Command, Error> {
    let kernel = repository().join("campaigns/compute/build");
    let built = run(Command::new(kernel), Duration::from_secs(120))?;
    if built.code != 0 {
        return Err(Error::Unexpected(format!(
            "the compute kernel cannot be built: {}",
            built.stderr
        )));
    }
    let clients = repository().join("target/native/clients");
    native::script("redis-cli", &clients)?;
    let old = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(clients).chain(std::env::split_paths(&old)));
    let mut command = Command::new(quorate()?);
    command
        .arg("campaign")
        .args(words)
        .env("PATH", path.unwrap_or(old));
    Ok(command)
}

/// Runs `quorate campaign WORD…` to its end.
///
/// # Errors
/// When it cannot be started or does not end in time.
pub fn campaign(words: &[&str]) -> Result<Ended, Error> {
    run(command(words)?, CAMPAIGN_TIMEOUT)
}

/// Starts `quorate campaign FILE WORD… --out OUT`.
///
/// # Errors
/// When it cannot be started.
pub fn start(file: &Path, out: &Path, words: &[&str]) -> Result<Process, Error> {
    let (file, out) = (file.display().to_string(), out.display().to_string());
    let mut all = vec![file.as_str()];
    all.extend(words);
    all.extend(["--out", &out]);
    Process::start(command(&all)?)
}

/// Runs `quorate campaign FILE WORD… --out OUT`, which must succeed, and reads its trials.
///
/// # Errors
/// When it does not.
pub fn trials_of(file: &Path, out: &Path, words: &[&str]) -> Result<Vec<Trial>, Error> {
    let ended = start(file, out, words)?.wait(CAMPAIGN_TIMEOUT)?;
    if ended.code != 0 {
        return Err(Error::Unexpected(format!(
            "quorate campaign {} ended with {}: {}",
            file.display(),
            ended.code,
            ended.stderr
        )));
    }
    trials(out)
}

/// One trial, as it stands in `trials.jsonl`.
#[derive(Clone, Debug)]
pub struct Trial(pub Value);

impl Trial {
    /// Number of its draw.
    #[must_use]
    pub fn draw(&self) -> u64 {
        self.0["draw"].as_u64().unwrap_or(u64::MAX)
    }

    /// Replicas of its set.
    #[must_use]
    pub fn replicas(&self) -> u64 {
        self.0["replicas"].as_u64().unwrap_or(0)
    }

    /// In how many replicas the fault was.
    #[must_use]
    pub fn copies(&self) -> u64 {
        self.0["copies"].as_u64().unwrap_or(0)
    }

    /// A text of the record: `outcome`, `stratum`, `place`, `evidence`.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_default()
    }

    /// What became of it.
    #[must_use]
    pub fn outcome(&self) -> &str {
        self.text("outcome")
    }

    /// All replicas voted at the end.
    #[must_use]
    pub fn full_strength(&self) -> bool {
        self.0["full_strength"] == Value::Bool(true)
    }

    /// The record without what is never the same in two runs: real times, and the checksum, which covers them.
    #[must_use]
    pub fn reproducible(&self) -> Value {
        let mut value = self.0.clone();
        if let Value::Object(map) = &mut value {
            map.remove("timing");
            map.remove("sum");
            for key in ["detected", "recovered"] {
                if let Some(Value::Object(part)) = map.get_mut(key) {
                    part.remove("micros");
                }
            }
        }
        value
    }
}

/// The trials in a campaign's directory.
///
/// # Errors
/// When they cannot be read.
pub fn trials(out: &Path) -> Result<Vec<Trial>, Error> {
    let path = out.join("trials.jsonl");
    let text = std::fs::read_to_string(&path).map_err(|source| Error::Io {
        what: path.display().to_string(),
        source,
    })?;
    text.lines()
        .map(|line| {
            serde_json::from_str(line).map(Trial).map_err(|error| {
                Error::Unexpected(format!("{}: {error} in {line}", path.display()))
            })
        })
        .collect()
}

/// The trials by draw and number of replicas, without what is never the same in two runs.
///
/// # Errors
/// When one is there twice.
pub fn table(trials: &[Trial]) -> Result<BTreeMap<(u64, u64), Value>, Error> {
    let mut table = BTreeMap::new();
    for trial in trials {
        let key = (trial.draw(), trial.replicas());
        if table.insert(key, trial.reproducible()).is_some() {
            return Err(Error::Unexpected(format!(
                "the trial of draw {} with {} replicas is there twice",
                key.0, key.1
            )));
        }
    }
    Ok(table)
}

/// How many trials had which outcome.
#[must_use]
pub fn outcomes<'t>(trials: impl Iterator<Item = &'t Trial>) -> BTreeMap<String, usize> {
    let mut outcomes = BTreeMap::new();
    for trial in trials {
        *outcomes.entry(trial.outcome().to_owned()).or_default() += 1;
    }
    outcomes
}

/// A number from the environment, to make a test longer.
#[must_use]
pub fn length(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}
