//! Runs a client once, through a proxy, and notes what it says.
//!
//! The proxy lets client and guest talk in turns. It takes all that the client does until that waits (nothing comes for a moment,
//! and none of its processes has anything to do), hands it to the guest, takes all that the guest answers, and hands that to the
//! client. So what a client does before it has an answer, and what because of it, does not depend on who was faster.

mod client;
mod proxy;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use quorate_executor::patience::patient;

use super::conversation::Log;
use super::file::Recorded;
use client::Client;
use proxy::Proxy;

/// Bytes of the client's standard output, and of its standard error, that are kept (R10). The rest is read and dropped.
pub const MAX_PRINTED_BYTES: usize = 1 << 20;
/// Ports of the proxy, below those that the kernel hands out, and how many there are.
const FIRST_PROXY_PORT: u16 = 21_000;
const PROXY_PORTS: u16 = 10_000;
/// How long another recording that has the port is waited for.
const PORT_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes read at once.
const CHUNK: usize = 64 * 1024;
/// Lines of what the client said of errors that an error shows.
const LAST_LINES: usize = 12;

/// How a client is recorded. All times are those of a processor at its own speed ([`quorate_executor::patience`]): an answer of which one
/// half came later than that would be recorded as two, and another golden run be played.
#[derive(Clone, Debug)]
pub struct RecordSettings {
    /// How long the command may take.
    pub timeout: Duration,
    /// How long nothing must come of the client for it to be waiting.
    pub client_quiet: Duration,
    /// How long nothing must come of the guest for its answer to be complete.
    pub guest_quiet: Duration,
    /// Where the command runs.
    pub directory: Option<PathBuf>,
}

impl Default for RecordSettings {
    fn default() -> Self {
        RecordSettings {
            timeout: Duration::from_secs(60),
            client_quiet: Duration::from_millis(1),
            guest_quiet: Duration::from_millis(20),
            directory: None,
        }
    }
}

/// Why there is no conversation.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The command cannot be run.
    #[error("the client {command:?} cannot be run: {source}")]
    Spawn {
        /// The program.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// It failed, without any fault in the guest.
    #[error(
        "the client failed in the golden run ({status}), so it says nothing about faults; it printed:\n{printed}"
    )]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        printed: String,
    },
    /// It does not end.
    #[error("the client did not end within {} s (timeout_s in [workload]); {waits}; it printed:\n{printed}", timeout.as_secs())]
    Timeout {
        /// What it had.
        timeout: Duration,
        /// Who waits for whom.
        waits: String,
        /// The end of what it printed.
        printed: String,
    },
    /// A bound was reached.
    #[error("the client {what}: at most {most} are possible in a conversation")]
    TooMuch {
        /// What it did.
        what: &'static str,
        /// The bound.
        most: usize,
    },
    /// No command.
    #[error("the client's command is empty")]
    Empty,
    /// The proxy itself.
    #[error("the recording proxy: {action}: {source}")]
    Proxy {
        /// What it tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn proxy(action: &'static str) -> impl FnOnce(io::Error) -> RecordError {
    move |source| RecordError::Proxy { action, source }
}

/// Runs `command` against the published ports and notes what it says. `ports`: the guest's port, and where it is published.
///
/// The command finds the proxy by `QUORATE_HOST`, `QUORATE_PORT` (the first port) and `QUORATE_PORT_<guest port>`.
///
/// # Errors
/// When the command cannot be run, fails, or does not end; the error shows what it printed.
pub fn record(
    command: &[String],
    ports: &[(u16, SocketAddr)],
    settings: &RecordSettings,
) -> Result<Recorded, RecordError> {
    let mut listeners = Vec::new();
    for (port, to) in ports {
        let listener = listen(*port)?;
        listener
            .set_nonblocking(true)
            .map_err(proxy("a listener"))?;
        let at = listener.local_addr().map_err(proxy("a listener"))?;
        listeners.push(Published {
            port: *port,
            to: *to,
            at: at.port(),
            listener,
        });
    }
    let client = Client::start(command, &listeners, settings)?;
    let mut proxy = Proxy {
        listeners,
        client,
        lines: Vec::new(),
        log: Log::default(),
        sent: 0,
        received: 0,
        settings: settings.clone(),
        deadline: Instant::now() + patient(settings.timeout),
    };
    let status = proxy.run()?;
    let (stdout, stderr) = proxy.client.printed();
    if !status.success() {
        return Err(RecordError::Failed {
            status,
            printed: last_lines(&stdout, &stderr),
        });
    }
    Ok(Recorded {
        conversation: proxy.log.canonical(),
        status: status.code().unwrap_or(-1),
        stdout,
        stderr,
    })
}

/// A port of the proxy for one of the guest. A client may say which port it talks to (HTTP's `Host`), so it is the same one each
/// time if that is to be had: another recording is waited for, and then any other is taken.
fn listen(port: u16) -> Result<TcpListener, RecordError> {
    let wanted = FIRST_PROXY_PORT + port % PROXY_PORTS;
    let deadline = Instant::now() + PORT_PATIENCE;
    loop {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(_) => break,
        }
    }
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(proxy("no port"))
}

struct Published {
    port: u16,
    to: SocketAddr,
    at: u16,
    listener: TcpListener,
}

fn last_lines(stdout: &[u8], stderr: &[u8]) -> String {
    let of = if stderr.iter().any(|byte| !byte.is_ascii_whitespace()) {
        stderr
    } else {
        stdout
    };
    let text = String::from_utf8_lossy(of);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    match last.is_empty() {
        true => "  (nothing)".to_owned(),
        false => last
            .iter()
            .map(|line| format!("  | {line}"))
            .collect::<Vec<_>>()
            .join("\n"),
    }
}
