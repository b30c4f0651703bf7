//! The proxy between client and guest, which lets them talk in turns.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use quorate_executor::patience::patient;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::client::Client;
use super::{CHUNK, Published, RecordError, RecordSettings, last_lines, proxy};
use crate::talk::conversation::{Act, Log, MAX_CONNECTIONS, MAX_RECEIVED_BYTES, MAX_SENT_BYTES};

/// How long a client that is at work is waited for after it has said something, before the guest gets that.
const MAX_BUSY: Duration = Duration::from_secs(2);

/// A connection through the proxy.
pub(super) struct Line {
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

pub(super) struct Proxy {
    pub(super) listeners: Vec<Published>,
    pub(super) client: Client,
    pub(super) lines: Vec<Line>,
    pub(super) log: Log,
    pub(super) sent: usize,
    pub(super) received: usize,
    pub(super) settings: RecordSettings,
    pub(super) deadline: Instant,
}

impl Proxy {
    pub(super) fn run(&mut self) -> Result<ExitStatus, RecordError> {
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
