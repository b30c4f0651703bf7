//! A child process whose output can be waited for: every wait has a deadline, none of them sleeps.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Error;

/// Bytes of standard output and lines of standard error that are kept (R10); what comes later is read and forgotten.
const KEPT: usize = 64 << 20;

/// A line of a stream, with the time at which it was read.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it was read.
    pub at: Instant,
    /// The line without its end.
    pub text: String,
}

#[derive(Default)]
struct State {
    stdout: Vec<u8>,
    stderr: Vec<Line>,
    open: usize,
    status: Option<ExitStatus>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }
}

/// A running or ended child. It is killed when this is dropped.
pub struct Process {
    shared: Arc<Shared>,
    pid: u32,
    what: String,
    stdin: Mutex<Option<ChildStdin>>,
}

/// What a process that has ended left.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Exit code; 128 and the signal's number if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Process {
    /// Starts `command` with nothing on standard input.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Result<Process, Error> {
        command.stdin(Stdio::null());
        Process::start_as_it_is(command)
    }

    /// Starts `command` with a pipe on standard input: see [`Process::type_in`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_with_input(mut command: Command) -> Result<Process, Error> {
        command.stdin(Stdio::piped());
        Process::start_as_it_is(command)
    }

    /// Gives it this on standard input.
    ///
    /// # Errors
    /// When it does not take it, or was started without.
    pub fn type_in(&self, text: &str) -> Result<(), Error> {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        let written = match stdin.as_mut() {
            Some(stdin) => stdin.write_all(text.as_bytes()),
            None => Err(std::io::ErrorKind::NotConnected.into()),
        };
        written.map_err(|source| Error::Io {
            what: format!("nothing can be typed to {}", self.what),
            source,
        })
    }

    fn start_as_it_is(mut command: Command) -> Result<Process, Error> {
        let what = format!("{command:?}");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| Error::Io {
            what: format!("cannot start {what}"),
            source,
        })?;
        let shared = Arc::<Shared>::default();
        let pid = child.id();
        if let Some(stdout) = child.stdout.take() {
            shared.change(|state| state.open += 1);
            let shared = Arc::clone(&shared);
            thread::spawn(move || read_bytes(stdout, &shared));
        }
        if let Some(stderr) = child.stderr.take() {
            shared.change(|state| state.open += 1);
            let shared = Arc::clone(&shared);
            thread::spawn(move || read_lines(stderr, &shared));
        }
        let stdin = Mutex::new(child.stdin.take());
        let of_waiter = Arc::clone(&shared);
        thread::spawn(move || wait(child, &of_waiter));
        Ok(Process {
            shared,
            pid,
            what,
            stdin,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The lines of standard error so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.shared.state().stderr.clone()
    }

    /// Standard output so far.
    #[must_use]
    pub fn stdout(&self) -> Vec<u8> {
        self.shared.state().stdout.clone()
    }

    /// Waits for the first line of standard error, from line `from` on, that `wanted` accepts.
    ///
    /// # Errors
    /// [`Error::Late`] at the deadline, or as soon as the process has ended without such a line.
    pub fn wait_for_line(
        &self,
        what: &str,
        from: usize,
        within: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Line, Error> {
        let mut next = from;
        self.wait_until(what, within, |state| {
            let found = state
                .stderr
                .iter()
                .skip(next)
                .find(|line| wanted(&line.text));
            next = state.stderr.len().max(from);
            match found {
                Some(line) => Some(Some(line.clone())),
                None if state.open == 0 => Some(None),
                None => None,
            }
        })?
        .ok_or_else(|| self.late(what))
    }

    /// Waits until standard output has `wanted`.
    ///
    /// # Errors
    /// [`Error::Late`] at the deadline, or as soon as the process has ended without it.
    pub fn wait_for_output(&self, wanted: &str, within: Duration) -> Result<(), Error> {
        let has = |state: &mut State| {
            state
                .stdout
                .windows(wanted.len())
                .any(|window| window == wanted.as_bytes())
        };
        let found = self.wait_until(wanted, within, |state| match has(state) {
            true => Some(true),
            false if state.open == 0 => Some(false),
            false => None,
        })?;
        if found {
            Ok(())
        } else {
            Err(self.late(wanted))
        }
    }

    /// Waits until the process has ended and its output has been read to the end.
    ///
    /// # Errors
    /// [`Error::Late`] at the deadline; the process runs on.
    pub fn wait(&self, within: Duration) -> Result<Ended, Error> {
        use std::os::unix::process::ExitStatusExt;
        self.wait_until("its end", within, |state| {
            let status = state.status.filter(|_| state.open == 0)?;
            let signal = status.signal().map(|signal| 128 + signal);
            Some(Ended {
                code: status.code().or(signal).unwrap_or(-1),
                stdout: state.stdout.clone(),
                stderr: text(&state.stderr),
            })
        })
    }

    /// Whether it has not ended yet.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.shared.state().status.is_none()
    }

    /// Sends it a signal, if it has not ended.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let state = self.shared.state();
        let pid = rustix::process::Pid::from_raw(self.pid.cast_signed());
        if let (None, Some(pid)) = (state.status, pid) {
            // It may end at this moment; then there is nothing to do.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    fn wait_until<T>(
        &self,
        what: &str,
        within: Duration,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + quorate_executor::patience::patient(within);
        let mut state = self.shared.state();
        loop {
            if let Some(result) = ready(&mut state) {
                return Ok(result);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                return Err(self.late(what));
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn late(&self, what: &str) -> Error {
        let state = self.shared.state();
        Error::Late {
            what: what.to_owned(),
            process: self.what.clone(),
            said: text(&state.stderr),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "--- standard error of {}:\n{}",
                self.what,
                text(&self.shared.state().stderr)
            );
        }
        self.signal(rustix::process::Signal::KILL);
        // So that no port or file of it is still in use when the next one starts.
        let _ = self.wait(Duration::from_secs(20));
    }
}

/// Runs `command` to its end.
///
/// # Errors
/// When it cannot be started, or has not ended within `within`; it is killed then.
pub fn run(command: Command, within: Duration) -> Result<Ended, Error> {
    Process::start(command)?.wait(within)
}

fn text(lines: &[Line]) -> String {
    lines
        .iter()
        .map(|line| format!("{}\n", line.text))
        .collect()
}

fn read_bytes(mut stream: impl Read, shared: &Shared) {
    let mut chunk = vec![0; 64 << 10];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        shared.change(|state| {
            let room = KEPT.saturating_sub(state.stdout.len());
            state.stdout.extend_from_slice(&chunk[..count.min(room)]);
        });
    }
    shared.change(|state| state.open -= 1);
}

fn read_lines(stream: impl Read, shared: &Shared) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while let Ok(1..) = stream.read_until(b'\n', &mut line) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        shared.change(|state| {
            if state.stderr.len() < KEPT / 1024 {
                state.stderr.push(Line {
                    at: Instant::now(),
                    text,
                });
            }
        });
    }
    shared.change(|state| state.open -= 1);
}

fn wait(mut child: Child, shared: &Shared) {
    let pid = rustix::process::Pid::from_child(&child);
    // First without reaping, so that the process id is still its own while a signal may be sent under the lock.
    let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
    while let Err(rustix::io::Errno::INTR) =
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), options)
    {}
    shared.change(|state| state.status = child.wait().ok());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn output_and_exit_code_are_told() {
        let ended = run(shell("echo out; echo err >&2; exit 7"), LONG).unwrap();
        assert_eq!((ended.code, ended.stdout.as_slice()), (7, &b"out\n"[..]));
        assert_eq!(ended.stderr, "err\n");
        assert_eq!(run(shell("kill -9 $$"), LONG).unwrap().code, 137);
    }

    #[test]
    fn waiting_ends_at_the_line_the_end_or_the_deadline() {
        let process =
            Process::start(shell("echo first >&2; echo second >&2; exec sleep 1000")).unwrap();
        assert_eq!(
            process
                .wait_for_line("second", 0, LONG, |line| line == "second")
                .unwrap()
                .text,
            "second"
        );
        let short = Duration::from_millis(50);
        let late = process.wait_for_line("second again", 2, short, |line| line == "second");
        assert!(
            matches!(late, Err(Error::Late { said, .. }) if said.starts_with("first\nsecond\n"))
        );
        let ended = Process::start(shell("echo only >&2")).unwrap();
        let started = Instant::now();
        assert!(
            ended
                .wait_for_line("another", 0, LONG, |line| line == "another")
                .is_err()
        );
        assert!(started.elapsed() < LONG);
    }
}
