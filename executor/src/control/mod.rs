//! The control socket: how `quorate status`, `stop`, `kill` and `inject` reach a running set.

pub mod client;
pub mod paths;
pub mod protocol;
pub mod server;

use std::path::PathBuf;

/// Why a control socket could not be served or reached.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The directory for sockets is not the user's alone.
    #[error("{}: {problem}; it must be a directory of this user with mode 0700", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Another set answers at this socket.
    #[error("{}: another replica set is using this control socket; name another with --control", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket lies at the path.
    #[error("{}: there is a file here that is no socket; it is left alone", .0.display())]
    NotASocket(PathBuf),
    /// A system call failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The socket or directory.
        path: PathBuf,
        /// The error.
        source: std::io::Error,
    },
    /// No set is running.
    #[error("no replica set is running (looked in {})", .0.display())]
    NoneRunning(PathBuf),
    /// Several sets run.
    #[error("several replica sets are running; name one with --control: {}", .0.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    Several(Vec<PathBuf>),
    /// The other side does not speak the protocol.
    #[error("{}: unexpected answer: {problem}", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What was unexpected.
        problem: String,
    },
    /// The set refused the command.
    #[error("refused: {0}")]
    Refused(String),
}

impl ControlError {
    fn io(path: &std::path::Path, source: impl Into<std::io::Error>) -> Self {
        ControlError::Io {
            path: path.to_owned(),
            source: source.into(),
        }
    }
}
