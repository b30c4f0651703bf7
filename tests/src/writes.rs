//! Clients of Redis that write and remember what was acknowledged, and the book in which that is kept: whatever happens to the server,
//! every acknowledged write must be there (R4). A write without an answer may be there or not, but only as it was sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Error;
use crate::random::Random;
use crate::resp::{Client, bulk, command, elements, shown};

/// Connections that write at the same time.
const CONNECTIONS: usize = 6;
/// Keys that one connection writes.
const KEYS: usize = 40;
/// Requests that a connection sends before it waits for the replies.
const PIPELINE: usize = 4;
/// Largest value.
const MAX_VALUE: usize = 2000;
/// Keys read with one command.
const BATCH: usize = 32;
/// Upper bound for what takes a second.
const LONG: Duration = Duration::from_secs(60);

/// What a key may hold.
#[derive(Clone, Debug, Default)]
struct Allowed {
    /// The last value that was acknowledged, or read.
    acknowledged: Option<Vec<u8>>,
    /// Values sent later, without an answer.
    unanswered: Vec<Vec<u8>>,
}

/// How much a book has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Writes that had no answer when their connection ended.
    pub unanswered: usize,
    /// Of those, the ones that were there later.
    pub kept: usize,
    /// Values that were compared.
    pub compared: usize,
}

/// What clients were told, and whether it is so.
#[derive(Default)]
pub struct Book {
    expected: BTreeMap<String, Allowed>,
    counts: Counts,
}

impl Book {
    /// How much it has seen.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes over what the clients of a load know.
    pub fn learn(&mut self, written: Written) {
        for (key, seen) in written.seen {
            self.counts.unanswered += seen.unanswered.len();
            self.counts.acknowledged += seen.count;
            let allowed = self.expected.entry(key).or_default();
            if seen.acknowledged.is_some() {
                allowed.acknowledged = seen.acknowledged;
            }
            allowed.unanswered = seen.unanswered;
        }
    }

    /// Every key of the server holds what it may hold, and there is no other key.
    ///
    /// # Errors
    /// When it does not; the first one is named.
    pub fn compare(&mut self, address: SocketAddr) -> Result<(), Error> {
        let mut client = Client::connect(address)?;
        let keys: Vec<String> = self.expected.keys().cloned().collect();
        for batch in keys.chunks(BATCH) {
            let words = std::iter::once("MGET").chain(batch.iter().map(String::as_str));
            let reply = client.call(&command(&words.collect::<Vec<_>>()))?;
            let values = elements(&reply);
            if values.len() != batch.len() {
                let shown = shown(&reply);
                return Err(Error::Unexpected(format!("MGET gave {shown}")));
            }
            for (key, value) in batch.iter().zip(values) {
                let value = bulk(value).map(<[u8]>::to_vec);
                let allowed = self.expected.entry(key.clone()).or_default();
                let kept = value
                    .as_ref()
                    .is_some_and(|value| allowed.unanswered.contains(value));
                if !kept && value != allowed.acknowledged {
                    return Err(lost(key, value.as_deref(), allowed));
                }
                self.counts.compared += 1;
                self.counts.kept += usize::from(kept);
                *allowed = Allowed {
                    acknowledged: value,
                    unanswered: Vec::new(),
                };
            }
        }
        // And nothing else.
        let reply = client.call(&command(&["DBSIZE"]))?;
        let there = self
            .expected
            .values()
            .filter(|allowed| allowed.acknowledged.is_some());
        let wanted = format!(":{}\r\n", there.count());
        if reply == wanted.as_bytes() {
            Ok(())
        } else {
            let reply = shown(&reply);
            Err(Error::Unexpected(format!(
                "DBSIZE gave {reply:?}, not {wanted:?}"
            )))
        }
    }
}

fn lost(key: &str, value: Option<&[u8]>, allowed: &Allowed) -> Error {
    let text = |value: &[u8]| shown(&value[..value.len().min(40)]);
    let value = value.map_or("nothing".to_owned(), text);
    let acknowledged = allowed.acknowledged.as_deref();
    Error::Unexpected(format!(
        "{key} holds {value}; {} was acknowledged, and without answer were sent {:?}",
        acknowledged.map_or("nothing".to_owned(), text),
        allowed
            .unanswered
            .iter()
            .map(|v| text(v))
            .collect::<Vec<_>>()
    ))
}

/// What a connection knows of a key.
#[derive(Default)]
struct Seen {
    acknowledged: Option<Vec<u8>>,
    unanswered: Vec<Vec<u8>>,
    count: usize,
}

/// What the clients of a load know when it has ended.
pub struct Written {
    seen: BTreeMap<String, Seen>,
    /// The longest time that a client waited for the answers to what it had sent at once.
    pub longest: Duration,
}

#[derive(Default)]
struct Progress {
    acknowledged: usize,
    longest: Duration,
    /// Connections that have ended by themselves, and how.
    ended: Vec<String>,
    /// Something that no server may answer.
    wrong: Option<String>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clients that write until their connection ends, or until they are told to stop.
pub struct Writers {
    shared: Arc<Shared>,
    clients: Vec<thread::JoinHandle<BTreeMap<String, Seen>>>,
}

impl Writers {
    /// Starts them; `random` decides what they write.
    #[must_use]
    pub fn start(address: SocketAddr, random: &mut Random) -> Writers {
        let shared = Arc::<Shared>::default();
        let mut client = |number| {
            let (shared, random) = (Arc::clone(&shared), Random::new(random.word()));
            thread::spawn(move || {
                let mut seen = BTreeMap::new();
                let result = work(address, number, random, &shared, &mut seen);
                let mut progress = shared.progress();
                if let Err(error) = result {
                    progress.ended.push(format!("client {number}: {error}"));
                    if let Error::Unexpected(error) = error {
                        progress.wrong = Some(error);
                    }
                }
                drop(progress);
                shared.changed.notify_all();
                seen
            })
        };
        Writers {
            clients: (0..CONNECTIONS).map(&mut client).collect(),
            shared,
        }
    }

    /// Waits until so many more writes have been acknowledged.
    ///
    /// # Errors
    /// When something wrong was answered, a connection has ended, or it takes too long.
    pub fn wait_for(&self, more: usize) -> Result<(), Error> {
        let deadline = Instant::now() + quorate_executor::patience::patient(LONG);
        let mut progress = self.shared.progress();
        let wanted = progress.acknowledged + more;
        loop {
            if let Some(wrong) = &progress.wrong {
                return Err(Error::Unexpected(wrong.clone()));
            }
            if progress.acknowledged >= wanted {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !progress.ended.is_empty() || left.is_zero() {
                return Err(Error::Unexpected(format!(
                    "{} of {wanted} writes were acknowledged when {} connections had ended by themselves: {:?}",
                    progress.acknowledged,
                    progress.ended.len(),
                    progress.ended
                )));
            }
            progress = self
                .shared
                .changed
                .wait_timeout(progress, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for the end of all connections; what they know.
    #[must_use]
    pub fn finish(self) -> Written {
        let all = self.clients.into_iter();
        // A client does not panic; if one did, the writes that it knows of would not be compared, so it must not pass.
        let seen = all
            .flat_map(|client| {
                client
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect();
        let longest = self.shared.progress().longest;
        Written { seen, longest }
    }

    /// Lets every client finish what it has sent; what they know.
    ///
    /// # Errors
    /// When a connection has ended by itself.
    pub fn stop(self) -> Result<Written, Error> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let shared = Arc::clone(&self.shared);
        let written = self.finish();
        let ended = &shared.progress().ended;
        if ended.is_empty() {
            Ok(written)
        } else {
            Err(Error::Unexpected(format!(
                "connections ended by themselves: {ended:?}"
            )))
        }
    }
}

fn work(
    address: SocketAddr,
    number: usize,
    mut random: Random,
    shared: &Shared,
    seen: &mut BTreeMap<String, Seen>,
) -> Result<(), Error> {
    let mut client = Client::connect(address)?;
    client.set_timeout(LONG);
    while !shared.stop.load(Ordering::SeqCst) {
        let mut sent = Vec::new();
        let mut requests = Vec::new();
        for _ in 0..1 + random.below(PIPELINE) {
            let key = format!("key:{number}:{}", random.below(KEYS));
            let len = 8 + random.below(MAX_VALUE);
            let value = random.bytes(len);
            requests.extend(command(&[b"SET", key.as_bytes(), &value]));
            seen.entry(key.clone())
                .or_default()
                .unanswered
                .push(value.clone());
            sent.push((key, value));
        }
        let asked = Instant::now();
        client.send(&requests)?;
        for (key, value) in sent {
            let reply = client.reply()?;
            if reply != b"+OK\r\n" {
                let reply = shown(&reply);
                return Err(Error::Unexpected(format!("SET gave {reply}")));
            }
            let seen = seen.entry(key).or_default();
            // Whatever was sent before it has been answered, too.
            let this = seen.unanswered.iter().position(|sent| *sent == value);
            seen.unanswered.drain(..=this.unwrap_or(0));
            seen.acknowledged = Some(value);
            seen.count += 1;
            shared.progress().acknowledged += 1;
        }
        let mut progress = shared.progress();
        progress.longest = progress.longest.max(asked.elapsed());
        drop(progress);
        shared.changed.notify_all();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::disk;
    use crate::server::NativeServer;

    /// Writes to a native server that is killed under it, then looks at one that has its files, or none.
    fn killed(keeps: bool) -> Result<Counts, Error> {
        let directory = disk::directory().unwrap();
        let path = directory.path().display().to_string();
        let durable = format!("--appendonly yes --appendfsync always --dir {path}");
        let durable: Vec<&str> = durable.split(' ').collect();
        let mut book = Book::default();
        let mut random = Random::new(1);
        for _ in 0..2 {
            let server = NativeServer::start(&durable).unwrap();
            book.compare(server.address())?;
            let writers = Writers::start(server.address(), &mut random);
            writers.wait_for(300).unwrap();
            drop(server);
            book.learn(writers.finish());
        }
        let server = NativeServer::start(if keeps { &durable } else { &[] }).unwrap();
        book.compare(server.address())?;
        Ok(book.counts())
    }

    #[test]
    fn a_server_that_keeps_its_word_passes_and_one_that_forgets_does_not() {
        let counts = killed(true).unwrap();
        assert!(
            counts.acknowledged >= 600 && counts.compared >= 100,
            "{counts:?}"
        );
        let lost = killed(false).unwrap_err().to_string();
        assert!(lost.contains(" holds nothing; "), "{lost}");
    }

    #[test]
    fn writers_that_are_stopped_have_all_their_answers_and_those_that_are_cut_off_say_so() {
        let server = NativeServer::start(&[]).unwrap();
        let mut random = Random::new(2);
        let writers = Writers::start(server.address(), &mut random);
        writers.wait_for(100).unwrap();
        let mut book = Book::default();
        book.learn(writers.stop().unwrap());
        assert_eq!(book.counts().unanswered, 0);
        book.compare(server.address()).unwrap();
        let writers = Writers::start(server.address(), &mut random);
        writers.wait_for(100).unwrap();
        drop(server);
        assert!(writers.wait_for(usize::MAX / 2).is_err());
        assert!(writers.stop().is_err());
    }
}
