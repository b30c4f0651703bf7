//! Redis with an append-only file on a voted disk, and the executor killed under it: what a client was told is kept (R4).
//!
//! Clients write and remember what was acknowledged ([`crate::writes`]). The executor is killed (SIGKILL) at a moment that the seed decides: while they write,
//! or while it starts. The disk, as it lies there, must then be a sound file system; and the next start must have every
//! acknowledged write.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::random::Random;
use crate::set::{Options, Set};
use crate::writes::{Book, Counts, Writers};
use crate::{Error, disk};

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
    /// Kills that left a journal to replay.
    pub replayed: usize,
    /// What was written, and compared after a start.
    pub writes: Counts,
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
        report: Report::default(),
    };
    let result = torture.all();
    if result.is_err() {
        println!("  so far: {:?}", torture.report());
        println!("  the disk is kept in {}", directory.keep().display());
    }
    result.map(|()| torture.report())
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
    report: Report,
}

impl Torture {
    fn report(&self) -> Report {
        Report {
            writes: self.book.counts(),
            ..self.report
        }
    }

    fn all(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        let mut round = 0;
        while self.report.killed + self.report.killed_at_start < self.plan.kills
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
                println!("  after {:.0?}: {:?}", started.elapsed(), self.report());
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
        let load = Writers::start(set.address(), &mut self.random);
        let wanted = 1 + self.random.below(600);
        let moment = Duration::from_micros(self.random.word() % 20_000);
        let under_load = load.wait_for(wanted);
        if under_load.is_ok() && round.is_multiple_of(10) {
            let stopped = self.stop(&set);
            drop(set);
            self.book.learn(load.finish());
            return stopped;
        }
        if under_load.is_ok() {
            // Not to wait for anything: this is the random moment.
            thread::sleep(moment);
        }
        set.process().signal(Signal::KILL);
        let ended = set.process().wait(LONG);
        self.book.learn(load.finish());
        under_load?;
        if ended?.code != 128 + 9 {
            return Err(Error::Unexpected(format!(
                "the set ended before it was killed: {:?}",
                set.process().wait(LONG)
            )));
        }
        self.report.killed += 1;
        self.after_a_kill()
    }

    fn killed_at_start(&mut self) -> Result<(), Error> {
        let set = self.options.spawn()?;
        thread::sleep(Duration::from_micros(self.random.word() % 500_000));
        set.process().signal(Signal::KILL);
        set.process().wait(LONG)?;
        self.report.killed_at_start += 1;
        Ok(())
    }

    fn after_a_kill(&mut self) -> Result<(), Error> {
        self.report.replayed += usize::from(disk::check_after_crash(&self.path)?);
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
        self.report.stopped += 1;
        disk::check_clean(&self.path)
    }
}
