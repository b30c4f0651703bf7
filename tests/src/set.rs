//! A replica set as a user starts it: the `quorate` command, its lines, its control socket.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_images::{Appliance, BuildOptions, default_cache_dir};

use crate::process::{Ended, Line, Process, run};
use crate::{Error, repository};

/// How long a set may take until it is ready; it takes about a second, but other things may run on the host.
pub const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a command to a running set may take.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// The `quorate` command: `$QUORATE_BIN`, else the one beside the running test (`target/release/quorate`), else it is built.
///
/// # Errors
/// When it cannot be built.
pub fn quorate() -> Result<PathBuf, Error> {
    if let Some(path) = std::env::var_os("QUORATE_BIN").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let me = std::env::current_exe().map_err(|source| Error::Io {
        what: "the running test's own path".to_owned(),
        source,
    })?;
    // A test is at target/PROFILE/deps/NAME, the demonstration and the benchmark at target/PROFILE/NAME.
    let beside = me
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("quorate"));
    if let Some(found) = beside.into_iter().find(|path| path.exists()) {
        return Ok(found);
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--release", "--locked", "-p", "quorate-executor"])
        .current_dir(repository());
    let ended = run(cargo, Duration::from_secs(1200))?;
    let built = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| repository().join("target"), PathBuf::from)
        .join("release/quorate");
    if ended.code == 0 && built.exists() {
        Ok(built)
    } else {
        Err(Error::Unexpected(format!(
            "the quorate command cannot be built: {}",
            ended.stderr
        )))
    }
}

/// Runs `quorate` with `arguments` to its end.
///
/// # Errors
/// When it cannot be started or does not end in time.
pub fn quorate_run(arguments: &[&str]) -> Result<Ended, Error> {
    let mut command = Command::new(quorate()?);
    command.args(arguments);
    run(command, START_TIMEOUT)
}

fn redis_appliance() -> PathBuf {
    repository().join("images/appliances/redis.toml")
}

fn redis_text() -> Result<String, Error> {
    let path = redis_appliance();
    std::fs::read_to_string(&path).map_err(|source| Error::Io {
        what: path.display().to_string(),
        source,
    })
}

/// How to start a set.
#[derive(Clone, Debug)]
pub struct Options {
    appliance: PathBuf,
    arguments: Vec<String>,
    guest_port: Option<u16>,
    /// Something will be typed at its console.
    typed: bool,
    /// Where the appliance is, if it was written for this.
    directory: Option<Arc<tempfile::TempDir>>,
}

impl Options {
    /// The appliance at `path`, with nothing published.
    #[must_use]
    pub fn new(path: &Path) -> Options {
        Options {
            appliance: path.to_owned(),
            arguments: Vec::new(),
            guest_port: None,
            typed: false,
            directory: None,
        }
    }

    /// What `quorate checkpoint` saved in `directory`; a published port is given again.
    #[must_use]
    pub fn saved(directory: &Path) -> Options {
        // Stands where the appliance's file would.
        Options::new(Path::new(&format!("--from={}", directory.display())))
    }

    /// The appliance whose text is `text`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn text(text: &str) -> Result<Options, Error> {
        let written = tempfile::tempdir().and_then(|directory| {
            std::fs::write(directory.path().join("appliance.toml"), text)?;
            Ok(directory)
        });
        let directory = written.map_err(|source| Error::Io {
            what: "an appliance for this test".to_owned(),
            source,
        })?;
        Ok(Options {
            directory: Some(Arc::new(directory)),
            ..Options::new(&PathBuf::new())
        })
    }

    /// The Redis appliance of the repository.
    #[must_use]
    pub fn redis() -> Options {
        Options::new(&redis_appliance()).publish(6379)
    }

    /// The Redis appliance of the repository with more arguments for the server.
    ///
    /// # Errors
    /// When the appliance cannot be read, or its command does not end as it is expected to.
    pub fn redis_with(more: &[&str]) -> Result<Options, Error> {
        const LAST: &str = "\"--appendonly\", \"no\",";
        let text = redis_text()?;
        let (before, after) = text
            .split_once(LAST)
            .ok_or_else(|| Error::Unexpected(format!("redis.toml: no {LAST} in its command")))?;
        let more: String = more.iter().map(|word| format!(" {word:?},")).collect();
        Ok(Options::text(&format!("{before}{LAST}{more}{after}"))?.publish(6379))
    }

    /// The Redis appliance of the repository with `[recovery]` and these lines.
    ///
    /// # Errors
    /// When the appliance cannot be read.
    pub fn redis_recovering(lines: &str) -> Result<Options, Error> {
        let text = redis_text()?;
        Ok(Options::text(&format!("{text}\n[recovery]\n{lines}\n"))?.publish(6379))
    }

    /// The Redis appliance of the repository under the relaxed discipline, with these lines in `[relaxed]`.
    ///
    /// # Errors
    /// When the appliance cannot be read.
    pub fn redis_relaxed(lines: &str) -> Result<Options, Error> {
        let text = redis_text()?;
        Ok(Options::text(&format!("{text}\n[relaxed]\n{lines}\n"))?.publish(6379))
    }

    fn path(&self) -> PathBuf {
        match &self.directory {
            Some(directory) => directory.path().join("appliance.toml"),
            None => self.appliance.clone(),
        }
    }

    /// Publishes a port of the guest at a free port of the host.
    #[must_use]
    pub fn publish(mut self, guest_port: u16) -> Options {
        self.guest_port = Some(guest_port);
        self
    }

    /// The number of replicas.
    #[must_use]
    pub fn replicas(self, replicas: usize) -> Options {
        self.arguments(&["--replicas", &replicas.to_string()])
    }

    /// What [`Process::type_in`] is given goes to the guests' consoles.
    #[must_use]
    pub fn console(mut self) -> Options {
        self.typed = true;
        self.arguments(&["--console"])
    }

    /// More arguments for `quorate run`.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Options {
        self.arguments
            .extend(arguments.iter().map(|&word| word.to_owned()));
        self
    }

    /// A replica that was stopped stays stopped: for tests of how it is found.
    #[must_use]
    pub fn without_recovery(self) -> Options {
        self.arguments(&["--recovery", "off"])
    }

    /// Starts the set and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready in time, or ends before.
    pub fn start(&self) -> Result<Set, Error> {
        let set = self.spawn()?;
        let ready = set.wait_for("ready", START_TIMEOUT, |line| line.contains("ready after"))?;
        let address = set
            .process
            .lines()
            .iter()
            .find_map(|line| published(&line.text));
        if self.guest_port.is_some() && address.is_none() {
            return Err(Error::Unexpected(format!(
                "no published address before {:?}",
                ready.text
            )));
        }
        Ok(Set { address, ..set })
    }

    /// Starts the set and does not wait.
    ///
    /// # Errors
    /// When the image cannot be built or the command not be started.
    pub fn spawn(&self) -> Result<Set, Error> {
        // Beforehand, so that a download does not count as the time to get ready.
        if let Ok(appliance) = Appliance::load(self.path()) {
            let options = BuildOptions::new(default_cache_dir());
            for number in 0..appliance.replicas.len().max(1) {
                quorate_images::build(&appliance.replica(number), &options)
                    .map_err(crate::native::NativeError::from)?;
            }
        }
        let directory = tempfile::tempdir().map_err(|source| Error::Io {
            what: "a temporary directory".to_owned(),
            source,
        })?;
        let control = directory.path().join("control.sock");
        let mut command = Command::new(quorate()?);
        command
            .arg("run")
            .arg(self.path())
            .arg("--control")
            .arg(&control);
        if let Some(port) = self.guest_port {
            command.arg("--publish").arg(format!("127.0.0.1:0:{port}"));
        }
        command.args(&self.arguments);
        let started = Instant::now();
        Ok(Set {
            process: match self.typed {
                true => Process::start_with_input(command)?,
                false => Process::start(command)?,
            },
            control,
            started,
            address: None,
            _directory: directory,
            _appliance: self.directory.clone(),
        })
    }
}

/// `quorate: published 127.0.0.1:7001 -> 6379/tcp`
fn published(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("published ")?;
    rest.split_once(" -> ")?.0.parse().ok()
}

/// A set that was started. It is killed when this is dropped.
pub struct Set {
    process: Process,
    control: PathBuf,
    started: Instant,
    address: Option<SocketAddr>,
    _directory: tempfile::TempDir,
    /// It is read after the process has been started.
    _appliance: Option<Arc<tempfile::TempDir>>,
}

impl Set {
    /// Where the published port is.
    ///
    /// # Panics
    /// When nothing is published.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        match self.address {
            Some(address) => address,
            None => panic!("this set publishes no port"),
        }
    }

    /// When the command was started.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The control socket.
    #[must_use]
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// The process of `quorate run`.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Waits for a line that `wanted` accepts, among those said already too.
    ///
    /// # Errors
    /// [`Error::Late`].
    pub fn wait_for(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Line, Error> {
        self.process.wait_for_line(what, 0, within, wanted)
    }

    /// Lines that `wanted` accepts, so far.
    #[must_use]
    pub fn lines_with(&self, wanted: &str) -> Vec<Line> {
        let mut lines = self.process.lines();
        lines.retain(|line| line.text.contains(wanted));
        lines
    }

    /// Runs `quorate WORD… --control SOCKET`.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn command(&self, words: &[&str]) -> Result<Ended, Error> {
        let mut command = Command::new(quorate()?);
        command.args(words).arg("--control").arg(&self.control);
        run(command, COMMAND_TIMEOUT)
    }

    /// The same, which must succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn must(&self, words: &[&str]) -> Result<Ended, Error> {
        let ended = self.command(words)?;
        if ended.code == 0 {
            Ok(ended)
        } else {
            Err(Error::Unexpected(format!(
                "quorate {} ended with {}: {}",
                words.join(" "),
                ended.code,
                ended.stderr
            )))
        }
    }

    /// `quorate status --json`.
    ///
    /// # Errors
    /// When the set does not answer.
    pub fn status(&self) -> Result<serde_json::Value, Error> {
        let ended = self.must(&["status", "--json"])?;
        serde_json::from_slice(&ended.stdout)
            .map_err(|error| Error::Unexpected(format!("the status is no JSON: {error}")))
    }

    /// `quorate inject REPLICA WORD…`; the time at which it answered, and what it said.
    ///
    /// # Errors
    /// When it is refused.
    pub fn inject(&self, replica: usize, words: &[&str]) -> Result<(Instant, String), Error> {
        let replica = replica.to_string();
        let words: Vec<&str> = ["inject", &replica].iter().chain(words).copied().collect();
        let ended = self.must(&words)?;
        Ok((Instant::now(), ended.stderr))
    }

    /// `quorate kill REPLICA`.
    ///
    /// # Errors
    /// When it is refused.
    pub fn kill(&self, replica: usize) -> Result<(), Error> {
        self.must(&["kill", &replica.to_string()]).map(|_| ())
    }

    /// `quorate stop`, then the exit code of `quorate run`.
    ///
    /// # Errors
    /// When it does not stop in time.
    pub fn stop(&self) -> Result<Ended, Error> {
        self.must(&["stop"])?;
        self.wait()
    }

    /// Waits for the end of `quorate run`.
    ///
    /// # Errors
    /// [`Error::Late`].
    pub fn wait(&self) -> Result<Ended, Error> {
        self.process.wait(COMMAND_TIMEOUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_address_is_read_from_its_line() {
        let line = "quorate: published 127.0.0.1:7001 -> 6379/tcp";
        assert_eq!(published(line), Some(([127, 0, 0, 1], 7001).into()));
        assert_eq!(published("quorate: ready after 1 s"), None);
    }
}
