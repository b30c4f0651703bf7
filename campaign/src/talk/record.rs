//! Runs a client once, through a proxy, and notes what it says.
//!
//! The proxy lets client and guest talk in turns. It takes all that the client does until that waits (nothing comes for a moment,
//! and none of its processes has anything to do), hands it to the guest, takes all that the guest answers, and hands that to the
//! client. So what a client does before it has an answer, and what because of it, does not depend on who was faster.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quorate_executor::patience::patient;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};

use super::conversation::{Act, Log, MAX_CONNECTIONS, MAX_RECEIVED_BYTES, MAX_SENT_BYTES};
use super::file::Recorded;

/// Bytes of the client's standard output, and of its standard error, that are kept (R10). The rest is read and dropped.
pub const MAX_PRINTED_BYTES: usize = 1 << 20;
/// How long a client that is at work is waited for after it has said something, before the guest gets that.
const MAX_BUSY: Duration = Duration::from_secs(2);
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

/// The command, and threads that read what it prints.
struct Client {
    child: Child,
    group: Pid,
    status: Option<ExitStatus>,
    killed: bool,
    readers: Vec<JoinHandle<Vec<u8>>>,
}

impl Client {
    fn start(
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

    fn has_ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status.is_some()
    }

    /// Ends what is left of it, and says what it printed.
    fn printed(&mut self) -> (Vec<u8>, Vec<u8>) {
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
    fn is_busy(&self) -> bool {
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

/// A connection through the proxy.
struct Line {
    client: TcpStream,
    guest: TcpStream,
    /// What the client has ended: nothing more comes from it.
    client_done: bool,
    /// Its socket is gone: nothing can be handed to it.
    client_gone: bool,
    guest_done: bool,
    to_guest: Vec<u8>,
    shut_guest: bool,
    reset_guest: bool,
    to_client: Vec<u8>,
    guest_ended: bool,
}

struct Proxy {
    listeners: Vec<Published>,
    client: Client,
    lines: Vec<Line>,
    log: Log,
    sent: usize,
    received: usize,
    settings: RecordSettings,
    deadline: Instant,
}

impl Proxy {
    fn run(&mut self) -> Result<ExitStatus, RecordError> {
        loop {
            let over = self.clients_turn()?;
            self.give_guest()?;
            if over && let Some(status) = self.client.status {
                return Ok(status);
            }
            self.guests_turn()?;
            self.give_client()?;
        }
    }

    /// Takes what the client does until it waits. True: it has ended, and so have its connections.
    fn clients_turn(&mut self) -> Result<bool, RecordError> {
        let began = Instant::now();
        loop {
            let ended = self.client.has_ended();
            if self.take_client()? {
                continue;
            }
            if ended {
                return Ok(true);
            }
            if self.wait(true, false, patient(self.settings.client_quiet))? {
                continue;
            }
            // A process that runs, or would if there were a processor for it, may have more to say.
            if self.client.is_busy() && began.elapsed() < patient(MAX_BUSY) {
                continue;
            }
            // What it said while that was looked at.
            if !self.wait(true, false, Duration::ZERO)? && !self.client.has_ended() {
                return Ok(false);
            }
        }
    }

    /// Takes what the guest answers until it is silent; comes back when the client does something meanwhile.
    fn guests_turn(&mut self) -> Result<(), RecordError> {
        let mut answered = false;
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.timeout());
            }
            if self.take_guest()? {
                answered = true;
                continue;
            }
            if answered {
                if !self.wait(false, true, patient(self.settings.guest_quiet))? {
                    return Ok(());
                }
                continue;
            }
            // Nobody tells when the command ends: so that is looked at now and then.
            let woken = self.wait(true, true, left.min(Duration::from_millis(5)))?;
            if self.client.has_ended() || (woken && self.client_has_something()?) {
                return Ok(());
            }
        }
    }

    fn timeout(&mut self) -> RecordError {
        let unanswered = self
            .lines
            .iter()
            .filter(|line| !line.client_done && !line.guest_ended)
            .count();
        let waits = match (self.log.connections(), unanswered) {
            (0, _) => "it has not connected to any port (they are in $QUORATE_PORT_<guest port>)"
                .to_owned(),
            (_, 0) => "it has no connection open".to_owned(),
            (all, open) => format!("{open} of its {all} connections are open"),
        };
        let (stdout, stderr) = self.client.printed();
        RecordError::Timeout {
            timeout: patient(self.settings.timeout),
            waits,
            printed: last_lines(&stdout, &stderr),
        }
    }

    /// Waits for client or guest to do something. False: nothing in that time.
    fn wait(&self, client: bool, guest: bool, time: Duration) -> Result<bool, RecordError> {
        let listeners = self
            .listeners
            .iter()
            .filter(|_| client)
            .map(|of| of.listener.as_fd());
        let clients = self
            .lines
            .iter()
            .filter(|line| client && !line.client_done)
            .map(|line| line.client.as_fd());
        let guests = self
            .lines
            .iter()
            .filter(|line| guest && !line.guest_done)
            .map(|line| line.guest.as_fd());
        let all: Vec<BorrowedFd<'_>> = listeners.chain(clients).chain(guests).collect();
        let mut fds: Vec<PollFd<'_>> = all
            .iter()
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        match poll(&mut fds, Some(&timespec(time))) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(RecordError::Proxy {
                action: "poll",
                source: error.into(),
            }),
        }
    }

    fn client_has_something(&self) -> Result<bool, RecordError> {
        self.wait(true, false, Duration::ZERO)
    }

    /// Reads what there is of the client. True: there was something.
    fn take_client(&mut self) -> Result<bool, RecordError> {
        if Instant::now() >= self.deadline {
            return Err(self.timeout());
        }
        let mut some = false;
        for published in &self.listeners {
            loop {
                let client = match published.listener.accept() {
                    Ok((client, _)) => client,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(proxy("accept")(error)),
                };
                some = true;
                if self.lines.len() >= MAX_CONNECTIONS {
                    return Err(RecordError::TooMuch {
                        what: "opens more connections",
                        most: MAX_CONNECTIONS,
                    });
                }
                let guest = TcpStream::connect(published.to)
                    .map_err(proxy("the appliance's port cannot be reached"))?;
                for stream in [&client, &guest] {
                    stream
                        .set_nonblocking(true)
                        .map_err(proxy("a connection"))?;
                    stream.set_nodelay(true).map_err(proxy("a connection"))?;
                }
                self.log.open(published.port);
                self.lines.push(Line {
                    client,
                    guest,
                    client_done: false,
                    client_gone: false,
                    guest_done: false,
                    to_guest: Vec::new(),
                    shut_guest: false,
                    reset_guest: false,
                    to_client: Vec::new(),
                    guest_ended: false,
                });
            }
        }
        let mut buffer = vec![0; CHUNK];
        for (number, line) in self.lines.iter_mut().enumerate() {
            while !line.client_done {
                match line.client.read(&mut buffer) {
                    Ok(0) => {
                        line.client_done = true;
                        line.shut_guest = true;
                        self.log.act(number, Act::Shut);
                    }
                    Ok(n) => {
                        self.sent += n;
                        if self.sent > MAX_SENT_BYTES {
                            return Err(RecordError::TooMuch {
                                what: "sends more bytes",
                                most: MAX_SENT_BYTES,
                            });
                        }
                        line.to_guest.extend_from_slice(&buffer[..n]);
                        self.log.act(number, Act::Send(buffer[..n].to_vec()));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => {
                        line.client_done = true;
                        line.client_gone = true;
                        line.reset_guest = true;
                        self.log.act(number, Act::Reset);
                    }
                }
                some = true;
            }
        }
        Ok(some)
    }

    /// Reads what there is of the guest. True: there was something.
    fn take_guest(&mut self) -> Result<bool, RecordError> {
        let mut some = false;
        let mut buffer = vec![0; CHUNK];
        for line in &mut self.lines {
            while !line.guest_done {
                match line.guest.read(&mut buffer) {
                    Ok(0) => {
                        line.guest_done = true;
                        line.guest_ended = true;
                    }
                    Ok(n) => {
                        self.received += n;
                        if self.received > MAX_RECEIVED_BYTES {
                            return Err(RecordError::TooMuch {
                                what: "is sent more bytes",
                                most: MAX_RECEIVED_BYTES,
                            });
                        }
                        line.to_client.extend_from_slice(&buffer[..n]);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => {
                        line.guest_done = true;
                        line.guest_ended = true;
                    }
                }
                some = true;
            }
        }
        Ok(some)
    }

    /// Hands the guest what the client said, and takes what it sends meanwhile: it may have to before it can read on.
    fn give_guest(&mut self) -> Result<(), RecordError> {
        loop {
            let mut left = false;
            for line in &mut self.lines {
                if !line.guest_done || !line.to_guest.is_empty() {
                    match push(&mut line.guest, &mut line.to_guest) {
                        Ok(()) => {}
                        // The guest's end shows when it is read from.
                        Err(_) => line.to_guest.clear(),
                    }
                }
                left |= !line.to_guest.is_empty();
                if line.to_guest.is_empty() && std::mem::take(&mut line.shut_guest) {
                    // It may be gone already.
                    let _ = line.guest.shutdown(Shutdown::Write);
                }
                if std::mem::take(&mut line.reset_guest) {
                    let _ =
                        rustix::net::sockopt::set_socket_linger(&line.guest, Some(Duration::ZERO));
                    let _ = line.guest.shutdown(Shutdown::Both);
                    line.guest_done = true;
                }
            }
            if !left {
                return Ok(());
            }
            self.take_guest()?;
            if Instant::now() >= self.deadline {
                return Err(self.timeout());
            }
            self.wait_writable(|line| (!line.to_guest.is_empty()).then_some(&line.guest))?;
        }
    }

    /// Hands the client what the guest answered.
    fn give_client(&mut self) -> Result<(), RecordError> {
        loop {
            let mut left = false;
            for (number, line) in self.lines.iter_mut().enumerate() {
                if line.client_gone {
                    line.to_client.clear();
                    line.guest_ended = false;
                    continue;
                }
                let waiting = line.to_client.len();
                if push(&mut line.client, &mut line.to_client).is_err() {
                    // It shows when it is read from; if it was ended by the client before, nobody hears any more.
                    line.client_gone = true;
                    continue;
                }
                let given = waiting - line.to_client.len();
                let ends = line.to_client.is_empty() && std::mem::take(&mut line.guest_ended);
                if ends {
                    let _ = line.client.shutdown(Shutdown::Write);
                }
                self.log.received(number, given as u64, ends);
                left |= !line.to_client.is_empty();
            }
            if !left || self.client.has_ended() {
                return Ok(());
            }
            if Instant::now() >= self.deadline {
                return Err(self.timeout());
            }
            // Who does not read may have to be heard first.
            if self.client_has_something()? {
                self.take_client()?;
            }
            self.wait_writable(|line| {
                (!line.to_client.is_empty() && !line.client_gone).then_some(&line.client)
            })?;
        }
    }

    fn wait_writable<'a>(
        &'a self,
        of: impl Fn(&'a Line) -> Option<&'a TcpStream>,
    ) -> Result<(), RecordError> {
        let streams = self.lines.iter().filter_map(of);
        let mut fds: Vec<PollFd<'_>> = streams
            .map(|stream| PollFd::new(stream, PollFlags::OUT))
            .collect();
        match poll(&mut fds, Some(&timespec(Duration::from_millis(5)))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(RecordError::Proxy {
                action: "poll",
                source: error.into(),
            }),
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

/// Writes as much as the socket takes.
fn push(to: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut done = 0;
    let result = loop {
        if done == bytes.len() {
            break Ok(());
        }
        match to.write(&bytes[done..]) {
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    bytes.drain(..done);
    result
}
