//! Clients that check every reply against what they know must come: what a user of the set would notice, they notice.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Error;
use crate::random::Random;
use crate::resp::{Client, command, shown};

/// Keys that one client uses.
const KEYS: usize = 16;
/// Largest value that a client writes.
const MAX_VALUE: usize = 4096;

#[derive(Default)]
struct Failures {
    wrong: Vec<String>,
    ended: Vec<String>,
}

impl Failures {
    fn is_empty(&self) -> bool {
        self.wrong.is_empty() && self.ended.is_empty()
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    checked: AtomicU64,
    longest_us: AtomicU64,
    failures: Mutex<Failures>,
    progress: Condvar,
}

/// Clients at work, one thread and one connection each.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

/// What the clients saw.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Replies that were checked.
    pub checked: u64,
    /// The longest time that a client waited for one.
    pub longest: Duration,
    /// Replies that were not what they had to be; one for each client that got one.
    pub wrong: Vec<String>,
    /// Connections that were refused, ended or silent; one text for each client.
    pub ended: Vec<String>,
}

impl Load {
    /// Starts `clients` clients of the Redis at `address`. They work until [`Load::finish`], or until something is wrong.
    #[must_use]
    pub fn start(address: SocketAddr, clients: usize, seed: u64) -> Load {
        let shared = Arc::<Shared>::default();
        let clients = (0..clients)
            .map(|number| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    if let Err(error) = work(address, number, seed, &shared) {
                        let text = format!("client {number}: {error}");
                        let mut failures = failures(&shared);
                        match error {
                            Error::Io { .. } => failures.ended.push(text),
                            _ => failures.wrong.push(text),
                        }
                    }
                    shared.progress.notify_all();
                })
            })
            .collect();
        Load { shared, clients }
    }

    /// Waits until `more` further replies have been checked. False: something went wrong, or it took too long.
    #[must_use]
    pub fn wait_for_progress(&self, more: u64, within: Duration) -> bool {
        let wanted = self.shared.checked.load(Ordering::SeqCst) + more;
        let deadline = Instant::now() + quorate_executor::patience::patient(within);
        let mut failures = failures(&self.shared);
        while self.shared.checked.load(Ordering::SeqCst) < wanted {
            let left = deadline.saturating_duration_since(Instant::now());
            if !failures.is_empty() || left.is_zero() {
                return false;
            }
            failures = self
                .shared
                .progress
                .wait_timeout(failures, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// Waits until every client has come to an end by itself, because something went wrong for it.
    #[must_use]
    pub fn wait_for_failure_of_all(&self, within: Duration) -> bool {
        let deadline = Instant::now() + quorate_executor::patience::patient(within);
        let mut failures = failures(&self.shared);
        while failures.wrong.len() + failures.ended.len() < self.clients.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            failures = self
                .shared
                .progress
                .wait_timeout(failures, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// Lets every client finish its request and says what they saw.
    #[must_use]
    pub fn finish(mut self) -> Seen {
        self.end()
    }

    fn end(&mut self) -> Seen {
        self.shared.stop.store(true, Ordering::SeqCst);
        for client in self.clients.drain(..) {
            if client.join().is_err() {
                failures(&self.shared)
                    .wrong
                    .push("a client panicked".to_owned());
            }
        }
        self.so_far()
    }

    /// What they have seen by now.
    #[must_use]
    pub fn so_far(&self) -> Seen {
        let failures = failures(&self.shared);
        Seen {
            checked: self.shared.checked.load(Ordering::SeqCst),
            longest: Duration::from_micros(self.shared.longest_us.load(Ordering::SeqCst)),
            wrong: failures.wrong.clone(),
            ended: failures.ended.clone(),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn failures(shared: &Shared) -> std::sync::MutexGuard<'_, Failures> {
    shared
        .failures
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

fn bulk(value: Option<&Vec<u8>>) -> Vec<u8> {
    match value {
        None => b"$-1\r\n".to_vec(),
        Some(value) => [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat(),
    }
}

fn work(address: SocketAddr, number: usize, seed: u64, shared: &Shared) -> Result<(), Error> {
    let mut random = Random::new(seed ^ (number as u64) << 32);
    let mut client = Client::connect(address)?;
    client.set_timeout(Duration::from_secs(20));
    let mut values: Vec<Option<Vec<u8>>> = vec![None; KEYS];
    let mut counter = 0i64;
    // What an earlier load left behind under the same names would not be what this one expects.
    client.call(&command(&["DEL", &format!("load:{number}:counter")]))?;
    for key in 0..KEYS {
        client.call(&command(&["DEL", &format!("load:{number}:{key}")]))?;
    }
    while !shared.stop.load(Ordering::SeqCst) {
        let slot = random.below(KEYS);
        let key = format!("load:{number}:{slot}").into_bytes();
        let value = &mut values[slot];
        let (request, expected) = match random.below(8) {
            0..=1 => {
                let len = random.below(MAX_VALUE);
                let new = random.bytes(len);
                let request = command(&[b"SET", &key[..], &new]);
                *value = Some(new);
                (request, b"+OK\r\n".to_vec())
            }
            2..=4 => (command(&[b"GET", &key[..]]), bulk(value.as_ref())),
            5 if value
                .as_ref()
                .is_none_or(|value| value.len() < MAX_VALUE * 4) =>
            {
                let more = random.bytes(20);
                let all = value.get_or_insert_default();
                all.extend_from_slice(&more);
                (
                    command(&[b"APPEND", &key[..], &more]),
                    format!(":{}\r\n", all.len()).into_bytes(),
                )
            }
            6 => {
                let existed = u8::from(value.take().is_some());
                (
                    command(&[b"DEL", &key[..]]),
                    format!(":{existed}\r\n").into_bytes(),
                )
            }
            _ => {
                let by = random.between(-1000, 1000);
                counter += by;
                let name = format!("load:{number}:counter");
                (
                    command(&["INCRBY", &name, &by.to_string()]),
                    format!(":{counter}\r\n").into_bytes(),
                )
            }
        };
        let asked = Instant::now();
        let reply = client.call(&request)?;
        shared
            .longest_us
            .fetch_max(asked.elapsed().as_micros() as u64, Ordering::SeqCst);
        if reply != expected {
            let text = format!(
                "{} gave {}, not {}",
                shown(&request),
                shown(&reply),
                shown(&expected)
            );
            return Err(Error::Unexpected(text));
        }
        if shared
            .checked
            .fetch_add(1, Ordering::SeqCst)
            .is_multiple_of(16)
        {
            // The lock orders this with a waiter that has just looked at the count.
            drop(failures(shared));
            shared.progress.notify_all();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::server::NativeServer;

    #[test]
    fn a_right_server_passes_and_a_meddler_is_noticed() {
        let server = NativeServer::start(&[]).unwrap();
        let load = Load::start(server.address(), 3, 1);
        assert!(load.wait_for_progress(500, Duration::from_secs(20)));
        let seen = load.finish();
        assert!(seen.wrong.is_empty() && seen.checked >= 500, "{seen:?}");

        let load = Load::start(server.address(), 3, 1);
        assert!(load.wait_for_progress(100, Duration::from_secs(20)));
        let mut meddler = Client::connect(server.address()).unwrap();
        meddler.call(&command(&["INCR", "load:1:counter"])).unwrap();
        while load.wait_for_progress(100, Duration::from_secs(20)) {}
        let seen = load.finish();
        assert!(seen.wrong[0].starts_with("client 1: "), "{seen:?}");
    }
}
