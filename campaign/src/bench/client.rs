//! A client that is run for real: its standard output, how it ended, and that it ends.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::BenchError;

/// Bytes of standard output that are kept (R10); what is beyond is read and counts as a difference by its number.
const KEPT: usize = 4 << 20;

/// Program, arguments.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<String>,
}

/// What a client did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ran {
    /// Its standard output, up to [`KEPT`].
    pub(super) output: Vec<u8>,
    /// All bytes of it.
    pub(super) bytes: u64,
    /// How it ended; none if it was ended because it took too long.
    pub(super) status: Option<ExitStatus>,
}

impl Program {
    /// Runs it to its end, or for so long.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub(super) fn run(
        &self,
        environment: &[(OsString, OsString)],
        patience: Duration,
    ) -> Result<Ran, BenchError> {
        let failed = |error: std::io::Error| BenchError::File {
            path: self.path.clone(),
            error,
        };
        let mut child = Command::new(&self.path)
            .args(&self.arguments)
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // All that it starts can be ended with it.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let group = Pid::from_child(&child);
        let reader = child
            .stdout
            .take()
            .map(|output| std::thread::spawn(move || keep(output)));
        let (ended, when) = channel();
        let waiter = std::thread::spawn(move || {
            let status = child.wait();
            // Nobody listens any more after too long.
            let _ = ended.send(());
            status
        });
        let in_time = when.recv_timeout(patience).is_ok();
        // What it has started and left behind holds on to its output.
        let _ = kill_process_group(group, Signal::KILL);
        let gone = || BenchError::Broken("a thread that watches the client panicked".to_owned());
        let status = waiter.join().map_err(|_| gone())?.map_err(failed)?;
        let (output, bytes) = match reader {
            Some(reader) => reader.join().map_err(|_| gone())?,
            None => (Vec::new(), 0),
        };
        Ok(Ran {
            output,
            bytes,
            status: in_time.then_some(status),
        })
    }
}

fn keep(mut from: ChildStdout) -> (Vec<u8>, u64) {
    let mut kept = Vec::new();
    let mut bytes = 0;
    let mut chunk = [0; 1 << 14];
    while let Ok(len @ 1..) = from.read(&mut chunk) {
        bytes += len as u64;
        let room = KEPT - kept.len();
        kept.extend_from_slice(&chunk[..len.min(room)]);
    }
    (kept, bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn sh(script: &str, patience: Duration) -> Ran {
        let program = Program {
            path: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
        };
        let environment = [("QUORATE_PORT".into(), "7".into())];
        program.run(&environment, patience).unwrap()
    }

    #[test]
    fn output_and_status_are_taken_and_nobody_is_waited_for_for_ever() {
        let long = Duration::from_secs(60);
        let ran = sh("echo port $QUORATE_PORT; exit 3", long);
        assert_eq!(ran.output, b"port 7\n");
        assert_eq!(ran.status.unwrap().code(), Some(3));
        // A child of it that lives on does not hold the trial up.
        let ran = sh("sleep 1000 & echo x", long);
        assert_eq!((ran.output.as_slice(), ran.bytes), (&b"x\n"[..], 2));
        let ran = sh("echo begun; sleep 1000", Duration::from_millis(300));
        assert_eq!(ran.status, None);
        assert_eq!(ran.output, b"begun\n");
    }
}
