//! The client's processes: how they are started, whether they wait, and what they print.

use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process_group};

use super::{CHUNK, MAX_PRINTED_BYTES, Published, RecordError, RecordSettings, proxy};

/// The command, and threads that read what it prints.
pub(super) struct Client {
    child: Child,
    group: Pid,
    pub(super) status: Option<ExitStatus>,
    killed: bool,
    readers: Vec<JoinHandle<Vec<u8>>>,
}

impl Client {
    pub(super) fn start(
        command: &[String],
        listeners: &[Published],
        settings: &RecordSettings,
    ) -> Result<Client, RecordError> {
        let (program, arguments) = command.split_first().ok_or(RecordError::Empty)?;
        let mut run = Command::new(program);
        run.args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // All that it starts can be found, and ended, by the group.
            .process_group(0)
            .env("QUORATE_HOST", "127.0.0.1");
        if let Some(directory) = &settings.directory {
            run.current_dir(directory);
        }
        for (index, published) in listeners.iter().enumerate() {
            if index == 0 {
                run.env("QUORATE_PORT", published.at.to_string());
            }
            run.env(
                format!("QUORATE_PORT_{}", published.port),
                published.at.to_string(),
            );
        }
        let mut child = run.spawn().map_err(|source| RecordError::Spawn {
            command: program.clone(),
            source,
        })?;
        let group = Pid::from_child(&child);
        let mut readers = Vec::new();
        let outputs: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|of| Box::new(of) as _),
            child.stderr.take().map(|of| Box::new(of) as _),
        ];
        for output in outputs.into_iter().flatten() {
            let thread = std::thread::Builder::new().name("client-output".to_owned());
            readers.push(
                thread
                    .spawn(move || keep(output))
                    .map_err(proxy("a thread"))?,
            );
        }
        Ok(Client {
            child,
            group,
            status: None,
            killed: false,
            readers,
        })
    }

    pub(super) fn has_ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status.is_some()
    }

    /// Ends what is left of it, and says what it printed.
    pub(super) fn printed(&mut self) -> (Vec<u8>, Vec<u8>) {
        // Once only: later the number may be somebody else's.
        if !std::mem::replace(&mut self.killed, true) {
            // Whoever is left would keep the pipes open. An error says that nobody is.
            let _ = kill_process_group(self.group, Signal::KILL);
        }
        if self.status.is_none() {
            self.status = self.child.wait().ok();
        }
        let mut printed = self
            .readers
            .drain(..)
            .map(|reader| reader.join().unwrap_or_default());
        (
            printed.next().unwrap_or_default(),
            printed.next().unwrap_or_default(),
        )
    }

    /// Whether any of its processes has something to do, as far as `/proc` tells.
    pub(super) fn is_busy(&self) -> bool {
        let Ok(processes) = std::fs::read_dir("/proc") else {
            return false;
        };
        processes.flatten().any(|process| {
            let name = process.file_name();
            let is_number = name
                .as_encoded_bytes()
                .first()
                .is_some_and(u8::is_ascii_digit);
            is_number && in_group(&process.path(), self.group) && any_thread_runs(&process.path())
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.printed();
    }
}

/// State and process group of a `stat` file of `/proc` (proc_pid_stat(5)): fields 3 and 5, behind the name in brackets.
fn stat(path: &Path) -> Option<(char, i32)> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(1)?.parse().ok()?))
}

fn in_group(process: &Path, group: Pid) -> bool {
    stat(&process.join("stat")).is_some_and(|(_, of)| of == group.as_raw_nonzero().get())
}

fn any_thread_runs(process: &Path) -> bool {
    let Ok(threads) = std::fs::read_dir(process.join("task")) else {
        return false;
    };
    threads.flatten().any(|thread| {
        stat(&thread.path().join("stat")).is_some_and(|(state, _)| matches!(state, 'R' | 'D'))
    })
}

fn keep(mut from: Box<dyn Read + Send>) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return kept,
            Ok(n) => {
                let room = MAX_PRINTED_BYTES - kept.len();
                kept.extend_from_slice(&buffer[..n.min(room)]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return kept,
        }
    }
}
