//! The serving side of the control socket. Few clients, small requests, one thread each; every number is bounded (R10).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::protocol::{Command, MAX_REQUEST, Reply, Response, parse_request};
use crate::sync::lock;

/// Clients at once; the next one is told so and disconnected (R10).
pub const MAX_CLIENTS: usize = 16;
/// A client that does not take its reply within this time is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the socket controls.
pub trait Controlled: Send + Sync + 'static {
    /// Carries out a command. May block for as long as the command's own bound says.
    fn handle(&self, command: Command) -> Reply;
}

/// A served control socket. Dropping it disconnects the clients and removes the socket.
pub struct Server {
    path: PathBuf,
    /// Closing this end wakes the accepting thread.
    wake: Option<UnixStream>,
    accepting: Option<JoinHandle<()>>,
    clients: Arc<Clients>,
}

#[derive(Default)]
struct Clients {
    open: Mutex<Vec<(u64, UnixStream)>>,
}

impl Server {
    /// Serves `target` at a bound socket.
    ///
    /// # Errors
    /// When no thread or socket pair can be made.
    pub fn start(
        listener: UnixListener,
        path: PathBuf,
        target: Arc<dyn Controlled>,
    ) -> std::io::Result<Server> {
        let (wake, woken) = UnixStream::pair()?;
        let clients = Arc::new(Clients::default());
        let accepting = {
            let clients = Arc::clone(&clients);
            std::thread::Builder::new()
                .name("control".to_owned())
                .spawn(move || accept_clients(&listener, &woken, &clients, &target))?
        };
        Ok(Server {
            path,
            wake: Some(wake),
            accepting: Some(accepting),
            clients,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // First the name, so that nobody finds a socket that no longer answers.
        let _ = std::fs::remove_file(&self.path);
        drop(self.wake.take());
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
        for (_, stream) in lock(&self.clients.open).drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn accept_clients(
    listener: &UnixListener,
    woken: &UnixStream,
    clients: &Arc<Clients>,
    target: &Arc<dyn Controlled>,
) {
    let mut number = 0;
    loop {
        let mut ready = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::from_borrowed_fd(woken.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "the control socket is no longer served");
                return;
            }
        }
        if !ready[1].revents().is_empty() {
            return;
        }
        if ready[0].revents().is_empty() {
            continue;
        }
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, or the client has gone already: neither is a reason to stop serving.
                tracing::warn!(%error, "accepting a control client failed");
                std::thread::yield_now();
                continue;
            }
        };
        number += 1;
        if let Err(error) = admit(stream, number, clients, target) {
            tracing::warn!(%error, "a control client was turned away");
        }
    }
}

fn admit(
    mut stream: UnixStream,
    number: u64,
    clients: &Arc<Clients>,
    target: &Arc<dyn Controlled>,
) -> std::io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let kept = stream.try_clone()?;
    {
        let mut open = lock(&clients.open);
        if open.len() >= MAX_CLIENTS {
            drop(open);
            return send(
                &mut stream,
                &Response::error(format!(
                    "more than {MAX_CLIENTS} control clients; try again"
                )),
            );
        }
        open.push((number, kept));
    }
    let (clients_of_thread, target) = (Arc::clone(clients), Arc::clone(target));
    let spawned = std::thread::Builder::new()
        .name("control-client".to_owned())
        .spawn(move || {
            if let Err(error) = serve(stream, &*target) {
                tracing::debug!(%error, "control client");
            }
            lock(&clients_of_thread.open).retain(|(id, _)| *id != number);
        });
    if spawned.is_err() {
        lock(&clients.open).retain(|(id, _)| *id != number);
    }
    spawned.map(drop)
}

fn serve(mut stream: UnixStream, target: &dyn Controlled) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader
            .by_ref()
            .take(MAX_REQUEST as u64 + 1)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        if line.len() > MAX_REQUEST {
            // What follows is the rest of the same line: there is no place from which to go on.
            return send(
                &mut stream,
                &Response::error(format!("a request has at most {MAX_REQUEST} bytes")),
            );
        }
        let response = match parse_request(&line) {
            Ok(command) => Response::new(target.handle(command)),
            Err(message) => Response::error(message),
        };
        send(&mut stream, &response)?;
    }
}

fn send(stream: &mut UnixStream, response: &Response) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::client::Client;
    use super::super::{ControlError, paths};
    use super::*;

    struct Echo;
    impl Controlled for Echo {
        fn handle(&self, command: Command) -> Reply {
            match command {
                Command::Kill { replica: 0 } => Reply::Done,
                other => Reply::Error {
                    message: format!("no: {other:?}"),
                },
            }
        }
    }

    fn start() -> (tempfile::TempDir, PathBuf, Server) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let server =
            Server::start(paths::bind(&path).unwrap(), path.clone(), Arc::new(Echo)).unwrap();
        (directory, path, server)
    }

    #[test]
    fn answers_and_refusals_reach_the_client() {
        let (_directory, path, _server) = start();
        let mut client = Client::connect(&path).unwrap();
        assert!(matches!(
            client.call(Command::Kill { replica: 0 }),
            Ok(Reply::Done)
        ));
        let refused = client.call(Command::Kill { replica: 1 }).unwrap_err();
        assert!(matches!(refused, ControlError::Refused(_)), "{refused}");
        // The connection survives a refusal.
        assert!(client.call(Command::Kill { replica: 0 }).is_ok());
    }

    #[test]
    fn garbage_gets_an_error_and_harms_nobody() {
        let (_directory, path, _server) = start();
        let mut raw = UnixStream::connect(&path).unwrap();
        raw.write_all(b"\xff\xfe{]\n").unwrap();
        let mut line = String::new();
        BufReader::new(raw.try_clone().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("\"reply\":\"error\""), "{line}");

        let mut endless = UnixStream::connect(&path).unwrap();
        endless.write_all(&vec![b'x'; MAX_REQUEST + 1]).unwrap();
        let mut answer = String::new();
        endless.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("at most"), "{answer}");

        assert!(
            Client::connect(&path)
                .unwrap()
                .call(Command::Kill { replica: 0 })
                .is_ok()
        );
    }

    #[test]
    fn clients_beyond_the_bound_are_told() {
        let (_directory, path, _server) = start();
        let mut clients: Vec<_> = (0..MAX_CLIENTS)
            .map(|_| Client::connect(&path).unwrap())
            .collect();
        for client in &mut clients {
            client.call(Command::Kill { replica: 0 }).unwrap();
        }
        let refused = Client::connect(&path)
            .unwrap()
            .call(Command::Kill { replica: 0 })
            .unwrap_err();
        assert!(
            refused.to_string().contains("16 control clients"),
            "{refused}"
        );
    }

    #[test]
    fn dropping_the_server_disconnects_and_removes_the_socket() {
        let (_directory, path, server) = start();
        let mut client = Client::connect(&path).unwrap();
        client.call(Command::Kill { replica: 0 }).unwrap();
        drop(server);
        assert!(!path.exists());
        client.wait_for_end().unwrap();
    }
}
