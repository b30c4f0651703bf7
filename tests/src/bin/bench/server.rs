//! The servers that are compared: Debian's redis-server on the host, and the same one in N replicas.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use quorate_tests::server::NativeServer;
use quorate_tests::set::{Options, START_TIMEOUT, Set};
use serde_json::Value;

use crate::load::Voted;
use crate::usage::Cpu;

/// Pause between two attempts to connect, a thousandth of the shortest start that matters.
const RETRY: Duration = Duration::from_micros(500);

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// On the host.
    Native,
    /// In this many replicas, in lockstep.
    Replicas(u8),
    /// In this many replicas under the relaxed discipline.
    Relaxed(u8),
}

impl Kind {
    /// For tables.
    pub fn name(self) -> String {
        match self {
            Kind::Native => "native".to_owned(),
            Kind::Replicas(replicas) => format!("N={replicas}"),
            Kind::Relaxed(replicas) => format!("relaxed N={replicas}"),
        }
    }
}

/// A server that answers.
pub struct Server {
    kind: Kind,
    address: SocketAddr,
    process: Process,
    /// From starting the process to the first PONG.
    pub first_pong: Duration,
}

enum Process {
    Native(NativeServer),
    Set(Box<Set>),
}

impl Server {
    /// Starts one and waits for its first PONG.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(kind: Kind) -> Result<Server, String> {
        Server::start_with(kind, &[])
    }

    /// The same with more arguments for `quorate run`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_with(kind: Kind, arguments: &[&str]) -> Result<Server, String> {
        let text = |error: quorate_tests::Error| format!("{}: {error}", kind.name());
        let (process, address, begun) = match kind {
            Kind::Native => {
                let begun = Instant::now();
                let server = NativeServer::start(&[]).map_err(text)?;
                let address = server.address();
                (Process::Native(server), address, begun)
            }
            Kind::Replicas(replicas) | Kind::Relaxed(replicas) => {
                let options = match kind {
                    Kind::Relaxed(_) => Options::redis_relaxed("").map_err(text)?,
                    _ => Options::redis(),
                };
                let set = options
                    .replicas(replicas.into())
                    .arguments(&["--layout", "random"])
                    .arguments(arguments)
                    .spawn()
                    .map_err(text)?;
                // Not the line that says it is ready: what a client sees is measured.
                let line = set
                    .wait_for("its address", START_TIMEOUT, |line| {
                        published(line).is_some()
                    })
                    .map_err(text)?;
                let address = published(&line.text).ok_or("no address")?;
                let begun = set.started();
                (Process::Set(Box::new(set)), address, begun)
            }
        };
        let mut server = Server {
            kind,
            address,
            process,
            first_pong: Duration::ZERO,
        };
        while !ping(address) {
            if begun.elapsed() > START_TIMEOUT || !server.is_running() {
                return Err(format!("{}: no PONG\n{}", kind.name(), server.said()));
            }
            thread::sleep(RETRY);
        }
        server.first_pong = begun.elapsed();
        Ok(server)
    }

    /// For messages.
    pub fn name(&self) -> String {
        self.kind.name()
    }

    /// Where it listens, at 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        match &self.process {
            Process::Native(server) => server.pid(),
            Process::Set(set) => set.process().pid(),
        }
    }

    fn is_running(&self) -> bool {
        match &self.process {
            Process::Native(_) => true,
            Process::Set(set) => set.process().is_running(),
        }
    }

    /// Standard error of a set so far.
    fn said(&self) -> String {
        match &self.process {
            Process::Native(_) => String::new(),
            Process::Set(set) => {
                let lines = set.process().lines();
                let lines: Vec<String> = lines.into_iter().map(|line| line.text).collect();
                lines.join("\n")
            }
        }
    }

    /// Processor time so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu(&self) -> Result<Cpu, String> {
        Cpu::of(self.pid())
            .map_err(|error| format!("{} has ended: {error}\n{}", self.name(), self.said()))
    }

    fn status(set: &Set) -> Result<Value, String> {
        set.status().map_err(|error| error.to_string())
    }

    /// Voted so far.
    ///
    /// # Errors
    /// When the set does not answer.
    pub fn voted(&self) -> Result<Voted, String> {
        // Boundaries and ballots are lockstep's.
        let (Process::Set(set), Kind::Replicas(_)) = (&self.process, self.kind) else {
            return Ok(Voted::default());
        };
        let status = Self::status(set).map_err(|error| format!("{error}\n{}", self.said()))?;
        let figure = |key: &str| {
            let figure = status[key].as_f64();
            figure.ok_or_else(|| format!("the status has no {key}"))
        };
        Ok(Voted {
            boundaries: figure("boundaries")?,
            ballots: figure("ballots")?,
            bytes: figure("bytes_voted")?,
        })
    }

    /// Looks whether all replicas still run and agree.
    ///
    /// # Errors
    /// When they do not; then no figure counts.
    pub fn check(&self) -> Result<(), String> {
        let Process::Set(set) = &self.process else {
            return Ok(());
        };
        let status = Self::status(set)?;
        // A quorum may answer while the slowest replica is still starting.
        let whole = status["running"] == status["size"];
        if whole && (status["state"] == "running" || status["state"] == "starting") {
            return Ok(());
        }
        Err(format!(
            "{}: the set is {}:\n{}",
            self.name(),
            status["state"],
            self.said()
        ))
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end as it should.
    pub fn stop(self) -> Result<(), String> {
        match self.process {
            Process::Native(_) => Ok(()),
            Process::Set(set) => match set.stop() {
                Ok(ended) if ended.code == 0 => Ok(()),
                Ok(ended) => Err(format!("ended with {}: {}", ended.code, ended.stderr)),
                Err(error) => Err(error.to_string()),
            },
        }
    }
}

/// The address of a line like `quorate: published 127.0.0.1:40001 -> 6379/tcp`.
fn published(line: &str) -> Option<SocketAddr> {
    line.split_once(": published ")?
        .1
        .split_once(" ->")?
        .0
        .parse()
        .ok()
}

/// One attempt to get a PONG.
fn ping(address: SocketAddr) -> bool {
    let attempt = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(START_TIMEOUT))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer)?;
        Ok(&answer == b"+PONG\r\n")
    };
    attempt().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_its_line() {
        let line = "quorate: published 127.0.0.1:40001 -> 6379/tcp";
        assert_eq!(published(line), Some(([127, 0, 0, 1], 40001).into()));
        assert_eq!(published("quorate: ready after 0.4 s"), None);
    }
}
