//! Redis with an append-only file on a voted disk, and the executor killed under it: what a client was told is kept (R4).
//!
//! Clients write and remember what was acknowledged. The executor is killed (SIGKILL) at a moment that the seed decides: while they write,
//! or while it starts. The disk, as it lies there, must then be a sound file system; and the next start must have every
//! acknowledged write. A write without an answer may be there or not, but only as it was sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::random::Random;
use crate::resp::{Client, bulk, command, elements, shown};
use crate::set::{Options, Set};
use crate::{Error, disk};

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

/// How often to kill, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Replicas of the set.
    pub replicas: usize,
    /// Kills.
    pub kills: usize,
    /// No further kill after this time.
    pub within: Duration,
    /// Seed of moments and values.
    pub seed: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Kills under load.
    pub killed: usize,
    /// Kills while the set was starting.
    pub killed_at_start: usize,
    /// Clean stops under load.
    pub stopped: usize,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Writes that had no answer when their connection ended.
    pub unanswered: usize,
    /// Of those, the ones that were there after the next start.
    pub kept: usize,
    /// Values that were compared after a start.
    pub compared: usize,
    /// Kills that left a journal to replay.
    pub replayed: usize,
}

/// What a key may hold.
#[derive(Clone, Debug, Default)]
struct Allowed {
    /// The last value that was acknowledged, or read.
    acknowledged: Option<Vec<u8>>,
    /// Values sent later, without an answer.
    unanswered: Vec<Vec<u8>>,
}

/// Kills as often as the plan says, on one disk.
///
/// # Errors
/// When a write is lost or the file system is not sound; says the round, and what.
pub fn run(plan: &Plan) -> Result<Report, Error> {
    let directory = disk::directory()?;
    let path = directory.path().join("data.img");
    let mut torture = Torture {
        options: appliance(&path)?.replicas(plan.replicas),
        path,
        plan: plan.clone(),
        random: Random::new(plan.seed),
        book: Book::default(),
    };
    let result = torture.all();
    if result.is_err() {
        println!("  so far: {:?}", torture.book.report);
        println!("  the disk is kept in {}", directory.keep().display());
    }
    result.map(|()| torture.book.report)
}

/// The appliance redis-aof, with its disk in `path`.
fn appliance(path: &Path) -> Result<Options, Error> {
    let text = disk::appliance("redis-aof", &[("path", path.display().to_string().into())])?;
    Ok(Options::text(&text)?.publish(6379))
}

struct Torture {
    options: Options,
    path: PathBuf,
    plan: Plan,
    random: Random,
    book: Book,
}

impl Torture {
    fn all(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        let mut round = 0;
        while self.book.report.killed + self.book.report.killed_at_start < self.plan.kills
            && started.elapsed() < self.plan.within
        {
            round += 1;
            self.round(round).map_err(|error| {
                let (replicas, seed) = (self.plan.replicas, self.plan.seed);
                Error::Unexpected(format!(
                    "round {round}, {replicas} replicas, seed {seed}: {error}"
                ))
            })?;
            if round.is_multiple_of(25) {
                println!("  after {:.0?}: {:?}", started.elapsed(), self.book.report);
            }
        }
        // What the last kill left.
        let set = self.options.start()?;
        self.book.compare(set.address())?;
        self.stop(&set)
    }

    fn round(&mut self, round: usize) -> Result<(), Error> {
        // The first start makes the disk.
        if round > 1 && self.random.below(8) == 0 {
            self.killed_at_start()?;
            return self.after_a_kill();
        }
        let set = self.options.start()?;
        self.book.compare(set.address())?;
        let load = Load::start(set.address(), &mut self.random);
        let wanted = 1 + self.random.below(600);
        let moment = Duration::from_micros(self.random.word() % 20_000);
        let under_load = load.wait_for(wanted);
        if under_load.is_ok() && round.is_multiple_of(10) {
            let stopped = self.stop(&set);
            drop(set);
            self.book.learn(load);
            return stopped;
        }
        if under_load.is_ok() {
            // Not to wait for anything: this is the random moment.
            thread::sleep(moment);
        }
        set.process().signal(Signal::KILL);
        let ended = set.process().wait(LONG);
        self.book.learn(load);
        under_load?;
        if ended?.code != 128 + 9 {
            return Err(Error::Unexpected(format!(
                "the set ended before it was killed: {:?}",
                set.process().wait(LONG)
            )));
        }
        self.book.report.killed += 1;
        self.after_a_kill()
    }

    fn killed_at_start(&mut self) -> Result<(), Error> {
        let set = self.options.spawn()?;
        thread::sleep(Duration::from_micros(self.random.word() % 500_000));
        set.process().signal(Signal::KILL);
        set.process().wait(LONG)?;
        self.book.report.killed_at_start += 1;
        Ok(())
    }

    fn after_a_kill(&mut self) -> Result<(), Error> {
        self.book.report.replayed += usize::from(disk::check_after_crash(&self.path)?);
        Ok(())
    }

    fn stop(&mut self, set: &Set) -> Result<(), Error> {
        let ended = set.stop()?;
        if ended.code != 0 {
            return Err(Error::Unexpected(format!(
                "a clean stop ended with {}: {}",
                ended.code, ended.stderr
            )));
        }
        self.book.report.stopped += 1;
        disk::check_clean(&self.path)
    }
}

/// What clients were told, and whether it is so.
#[derive(Default)]
struct Book {
    expected: BTreeMap<String, Allowed>,
    report: Report,
}

impl Book {
    /// Takes over what the clients of a load know.
    fn learn(&mut self, load: Load) {
        for (key, seen) in load.finish() {
            self.report.unanswered += seen.unanswered.len();
            self.report.acknowledged += seen.count;
            let allowed = self.expected.entry(key).or_default();
            if seen.acknowledged.is_some() {
                allowed.acknowledged = seen.acknowledged;
            }
            allowed.unanswered = seen.unanswered;
        }
    }

    /// Every key holds what it may hold.
    fn compare(&mut self, address: SocketAddr) -> Result<(), Error> {
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
                self.report.compared += 1;
                self.report.kept += usize::from(kept);
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

#[derive(Default)]
struct Progress {
    acknowledged: usize,
    /// Connections that have ended.
    ended: usize,
    /// Something that no server may answer.
    wrong: Option<String>,
}

#[derive(Default)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clients that write until their connection ends.
struct Load {
    shared: Arc<Shared>,
    clients: Vec<thread::JoinHandle<BTreeMap<String, Seen>>>,
}

impl Load {
    fn start(address: SocketAddr, random: &mut Random) -> Load {
        let shared = Arc::<Shared>::default();
        let mut client = |number| {
            let (shared, random) = (Arc::clone(&shared), Random::new(random.word()));
            thread::spawn(move || {
                let mut seen = BTreeMap::new();
                let result = work(address, number, random, &shared, &mut seen);
                let mut progress = shared.progress();
                progress.ended += 1;
                if let Err(error @ Error::Unexpected(_)) = result {
                    progress.wrong = Some(error.to_string());
                }
                drop(progress);
                shared.changed.notify_all();
                seen
            })
        };
        Load {
            clients: (0..CONNECTIONS).map(&mut client).collect(),
            shared,
        }
    }

    /// Waits until so many writes have been acknowledged.
    fn wait_for(&self, acknowledged: usize) -> Result<(), Error> {
        let deadline = Instant::now() + LONG;
        let mut progress = self.shared.progress();
        loop {
            if let Some(wrong) = &progress.wrong {
                return Err(Error::Unexpected(wrong.clone()));
            }
            if progress.acknowledged >= acknowledged {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if progress.ended > 0 || left.is_zero() {
                return Err(Error::Unexpected(format!(
                    "{} of {acknowledged} writes were acknowledged when {} connections had ended by themselves",
                    progress.acknowledged, progress.ended
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
    fn finish(self) -> BTreeMap<String, Seen> {
        let all = self.clients.into_iter();
        // A client does not panic; if one did, the writes that it knows of would not be compared, so it must not pass.
        all.flat_map(|client| {
            client
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .collect()
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
    loop {
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
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::server::NativeServer;

    /// Writes to a native server that is killed under it, then looks at one that has its files, or none.
    fn killed(keeps: bool) -> Result<Report, Error> {
        let directory = disk::directory().unwrap();
        let path = directory.path().display().to_string();
        let durable = format!("--appendonly yes --appendfsync always --dir {path}");
        let durable: Vec<&str> = durable.split(' ').collect();
        let mut book = Book::default();
        let mut random = Random::new(1);
        for _ in 0..2 {
            let server = NativeServer::start(&durable).unwrap();
            book.compare(server.address())?;
            let load = Load::start(server.address(), &mut random);
            load.wait_for(300).unwrap();
            drop(server);
            book.learn(load);
        }
        let server = NativeServer::start(if keeps { &durable } else { &[] }).unwrap();
        book.compare(server.address())?;
        Ok(book.report)
    }

    #[test]
    fn a_server_that_keeps_its_word_passes_and_one_that_forgets_does_not() {
        let report = killed(true).unwrap();
        assert!(
            report.acknowledged >= 600 && report.compared >= 100,
            "{report:?}"
        );
        let lost = killed(false).unwrap_err().to_string();
        assert!(lost.contains(" holds nothing; "), "{lost}");
    }
}
