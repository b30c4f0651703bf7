//! A native redis-server of the appliance's own package and command line, for comparison.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use crate::process::Process;
use crate::{Error, native};

/// Ports that are tried before giving up: another process may take one between its choice and its use.
const TRIES: usize = 5;
/// How long it may take to get ready.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A native redis-server. It is killed when this is dropped.
pub struct NativeServer {
    process: Process,
    address: SocketAddr,
}

impl NativeServer {
    /// Starts one with the appliance's arguments and `more`, and waits until it accepts connections.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(more: &[&str]) -> Result<NativeServer, Error> {
        let mut last = None;
        for _ in 0..TRIES {
            let address = free_address()?;
            let mut command = native::command("redis-server")?;
            command
                .args(["--bind", "127.0.0.1", "--port", &address.port().to_string()])
                .args([
                    "--protected-mode",
                    "no",
                    "--daemonize",
                    "no",
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                ])
                .args(more)
                .current_dir("/")
                .env_clear();
            let process = Process::start(command)?;
            match process.wait_for_output("Ready to accept connections", START_TIMEOUT) {
                Ok(()) => return Ok(NativeServer { process, address }),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::Unexpected("no free port".to_owned())))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// An address of this host that nobody listened on a moment ago.
///
/// # Errors
/// When the host gives none.
pub fn free_address() -> Result<SocketAddr, Error> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(|source| Error::Io {
            what: "a free port".to_owned(),
            source,
        })
}
