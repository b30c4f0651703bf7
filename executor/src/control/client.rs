//! The asking side of the control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::{Command, MAX_REPLY, Reply, Request, Response, VERSION};
use super::{ControlError, paths};

/// How long a set may take for its answer. Longer than any command's own bound.
const REPLY_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection to a running set.
pub struct Client {
    path: PathBuf,
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the set at `path`.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn connect(path: &Path) -> Result<Client, ControlError> {
        let io = |error| ControlError::io(path, error);
        let stream = UnixStream::connect(path).map_err(io)?;
        stream
            .set_read_timeout(Some(crate::patience::patient(REPLY_TIMEOUT)))
            .map_err(io)?;
        stream
            .set_write_timeout(Some(crate::patience::patient(REPLY_TIMEOUT)))
            .map_err(io)?;
        let reader = BufReader::new(stream.try_clone().map_err(io)?);
        Ok(Client {
            path: path.to_owned(),
            stream,
            reader,
        })
    }

    /// Connects to the named set, or to the only one that runs.
    ///
    /// # Errors
    /// When none runs, or several and none is named.
    pub fn find(named: Option<&Path>) -> Result<Client, ControlError> {
        if let Some(path) = named {
            return Client::connect(path);
        }
        let directory = paths::default_directory();
        let mut live = paths::live_sockets(&directory);
        match (live.pop(), live.is_empty()) {
            (None, _) => Err(ControlError::NoneRunning(directory)),
            (Some(only), true) => Client::connect(&only),
            (Some(last), false) => {
                live.push(last);
                Err(ControlError::Several(live))
            }
        }
    }

    /// Waits longer for answers: for a command that writes much.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn be_patient(&self, patience: Duration) -> Result<(), ControlError> {
        let set = self.stream.set_read_timeout(Some(patience));
        set.map_err(|error| ControlError::io(&self.path, error))
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// When the set refuses, does not answer in time, or answers something else than the protocol has.
    pub fn call(&mut self, command: Command) -> Result<Reply, ControlError> {
        let mut line = serde_json::to_vec(&Request {
            version: VERSION,
            command,
        })
        .map_err(|error| ControlError::io(&self.path, error))?;
        line.push(b'\n');
        // A set that turns clients away answers before it reads: take its answer, not our write error.
        let written = self.stream.write_all(&line);
        let mut answer = Vec::new();
        let read = self
            .reader
            .by_ref()
            .take(MAX_REPLY as u64)
            .read_until(b'\n', &mut answer);
        if answer.last() != Some(&b'\n') {
            written.map_err(|error| ControlError::io(&self.path, error))?;
            read.map_err(|error| ControlError::io(&self.path, error))?;
            return Err(self.unexpected("the answer is cut short"));
        }
        let response: Response =
            serde_json::from_slice(&answer).map_err(|error| self.unexpected(error))?;
        if response.version != VERSION {
            return Err(self.unexpected(format!("version {}", response.version)));
        }
        match response.reply {
            Reply::Error { message } => Err(ControlError::Refused(message)),
            reply => Ok(reply),
        }
    }

    /// Waits until the set has closed the connection, which it does when it has ended.
    ///
    /// # Errors
    /// When it has not ended within `REPLY_TIMEOUT`.
    pub fn wait_for_end(mut self) -> Result<(), ControlError> {
        match self.reader.read(&mut [0; 1]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.unexpected("data after the answer")),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(ControlError::io(&self.path, error)),
        }
    }

    fn unexpected(&self, problem: impl std::fmt::Display) -> ControlError {
        ControlError::Protocol {
            path: self.path.clone(),
            problem: problem.to_string(),
        }
    }
}
