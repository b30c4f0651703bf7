//! Threads that play trials, and the one that collects what they found.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::results::Writer;
use super::{Goal, RunError, Shard};
use crate::bench::{BenchError, Trials};
use crate::model::{Drawn, Outcome, TrialRecord};
use crate::stats::Counts;
use crate::stats::sequential::Found;

/// How often the collector looks up when no trial ends.
const TICK: Duration = Duration::from_millis(200);

/// Finished trials that wait to be written, per job (R10); a job waits when there are more.
const WAITING_PER_JOB: usize = 4;

/// All that a run of trials needs.
pub struct Engine<'a> {
    /// Every draw is tried with each of these.
    pub replicas: &'a [u8],
    /// Only this part of the draws.
    pub shard: Option<Shard>,
    /// When it is enough.
    pub goal: &'a Goal,
    /// Threads; at least one is started.
    pub jobs: usize,
    /// The draws.
    pub draw: &'a (dyn Fn(u64) -> Drawn + Sync),
    /// Makes what plays the trials of a thread, in that thread.
    pub make: &'a (dyn Fn(usize) -> Result<Box<dyn Trials>, BenchError> + Sync),
    /// Set from outside: trials that are being played are played to their end, and that is it.
    pub stop: &'a AtomicBool,
}

/// What is going on.
pub enum Event<'a> {
    /// So many trials will be done, of which so many are; said at the beginning and when another look follows.
    Planned {
        /// Trials that there are to do until the next decision.
        trials: u64,
        /// Of these, done.
        done: u64,
        /// At most so many draws.
        most: u64,
    },
    /// A trial is complete and written.
    Trial(&'a TrialRecord),
    /// A look at the intervals, after so many draws.
    Look(u64, Found),
    /// Time has passed.
    Tick,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ended {
    /// All of the first so many draws are done, and that is enough.
    Complete {
        /// So many.
        draws: u64,
        /// The last look, if intervals were what it was about.
        found: Option<Found>,
    },
    /// It was stopped.
    Stopped,
}

/// What may be handed out.
struct Feed {
    /// The next trial.
    next: (u64, usize),
    /// No draw from here on, for now.
    limit: u64,
    /// No trial any more.
    over: bool,
}

/// What a thread reports.
enum Message {
    Done(Box<TrialRecord>),
    Failed(RunError),
}

/// Reports a thread that panics: its trial would be waited for, otherwise.
struct Alarm<'a>(&'a SyncSender<Message>);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.send(Message::Failed(RunError::Panicked));
        }
    }
}

struct Shared<'a> {
    engine: &'a Engine<'a>,
    /// Trials that need not be done.
    before: &'a HashSet<(u64, u8)>,
    feed: Mutex<Feed>,
    more: Condvar,
}

impl Shared<'_> {
    fn feed(&self) -> MutexGuard<'_, Feed> {
        // Nothing that is done with the lock held leaves it half done.
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.feed().over = true;
        self.more.notify_all();
    }

    /// The next trial; waits for the limit to be raised.
    fn next(&self) -> Option<(u64, u8)> {
        let mut feed = self.feed();
        loop {
            if feed.over {
                return None;
            }
            if let Some(trial) = self.step(&mut feed) {
                return Some(trial);
            }
            feed = self.more.wait(feed).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn step(&self, feed: &mut Feed) -> Option<(u64, u8)> {
        while feed.next.0 < feed.limit {
            let (draw, index) = feed.next;
            let Some(&replicas) = self.engine.replicas.get(index) else {
                feed.next = (draw + 1, 0);
                continue;
            };
            if !self.engine.has(draw) {
                feed.next = (draw + 1, 0);
                continue;
            }
            feed.next.1 += 1;
            if !self.before.contains(&(draw, replicas)) {
                return Some((draw, replicas));
            }
        }
        None
    }

    fn work(&self, job: usize, out: &SyncSender<Message>) {
        let _alarm = Alarm(out);
        let mut bench = match (self.engine.make)(job) {
            Ok(bench) => bench,
            Err(error) => {
                let _ = out.send(Message::Failed(RunError::Make(error)));
                return;
            }
        };
        while let Some((draw, replicas)) = self.next() {
            let result = bench.trial(&(self.engine.draw)(draw), replicas);
            let (message, failed) = match result {
                Ok(record) => (Message::Done(Box::new(record)), false),
                Err(source) => {
                    let error = RunError::Bench {
                        draw,
                        replicas,
                        source,
                    };
                    (Message::Failed(error), true)
                }
            };
            if out.send(message).is_err() || failed {
                return;
            }
        }
    }
}

impl Engine<'_> {
    fn has(&self, draw: u64) -> bool {
        self.shard.is_none_or(|shard| shard.has(draw))
    }

    /// Trials below a draw that there are, and that are done.
    fn count(&self, below: u64, done: &BTreeMap<(u64, u8), Outcome>) -> (u64, u64) {
        let draws = match self.shard {
            None => below,
            Some(shard) => (below + shard.of - shard.index) / shard.of,
        };
        let is_done = |&(draw, n): &(u64, u8)| self.has(draw) && self.replicas.contains(&n);
        let done = done
            .range(..(below, 0))
            .filter(|(key, _)| is_done(key))
            .count();
        (draws * self.replicas.len() as u64, done as u64)
    }

    /// The outcomes below a draw, for each N.
    fn counts(&self, below: u64, done: &BTreeMap<(u64, u8), Outcome>) -> Vec<Counts> {
        let mut counts = vec![Counts::default(); self.replicas.len()];
        for (&(_, replicas), &outcome) in done.range(..(below, 0)) {
            if let Some(index) = self.replicas.iter().position(|&n| n == replicas) {
                counts[index].add(outcome);
            }
        }
        counts
    }

    /// Plays what is missing. `done` is what the file has already, and has all of it in the end. Returns when the goal is reached, when
    /// it is stopped, or with the first error; in each case all trials that were complete are written.
    ///
    /// # Errors
    /// When trials cannot be played or written.
    pub fn run(
        &self,
        writer: &mut Writer,
        done: &mut BTreeMap<(u64, u8), Outcome>,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Ended, RunError> {
        let before: HashSet<_> = done.keys().copied().collect();
        let shared = Shared {
            engine: self,
            before: &before,
            feed: Mutex::new(Feed {
                next: (0, 0),
                limit: 0,
                over: false,
            }),
            more: Condvar::new(),
        };
        let jobs = self.jobs.max(1);
        let (out, found) = mpsc::sync_channel(jobs * WAITING_PER_JOB);
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for job in 0..jobs {
                let (shared, out) = (&shared, out.clone());
                threads.push(scope.spawn(move || shared.work(job, &out)));
            }
            drop(out);
            let mut receive = |wait: Duration| found.recv_timeout(wait);
            let mut result = self.collect(&shared, &mut receive, writer, done, watch);
            shared.end();
            // What is being played is played to its end, and kept.
            for message in found.iter() {
                let kept = match message {
                    Message::Done(record) => keep(writer, done, &record, watch),
                    Message::Failed(error) => Err(error),
                };
                result = result.and_then(|ended| kept.map(|()| ended));
            }
            for thread in threads {
                if thread.join().is_err() {
                    result = result.and(Err(RunError::Panicked));
                }
            }
            let synced = writer.sync().map_err(RunError::from);
            result.and_then(|ended| synced.map(|()| ended))
        })
    }

    fn collect(
        &self,
        shared: &Shared<'_>,
        receive: &mut dyn FnMut(Duration) -> Result<Message, RecvTimeoutError>,
        writer: &mut Writer,
        done: &mut BTreeMap<(u64, u8), Outcome>,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Ended, RunError> {
        let most = self.goal.most();
        let mut ended = Ended::Stopped;
        for (look, end) in self.goal.ends().into_iter().enumerate() {
            let (trials, mut complete) = self.count(end, done);
            watch(Event::Planned {
                trials,
                done: complete,
                most,
            });
            shared.feed().limit = end;
            shared.more.notify_all();
            while complete < trials {
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(Ended::Stopped);
                }
                match receive(TICK) {
                    Ok(Message::Done(record)) => {
                        keep(writer, done, &record, watch)?;
                        complete += 1;
                    }
                    Ok(Message::Failed(error)) => return Err(error),
                    Err(RecvTimeoutError::Timeout) => {}
                    // All threads are gone though there is work: joining them says why.
                    Err(RecvTimeoutError::Disconnected) => return Err(RunError::Panicked),
                }
                watch(Event::Tick);
            }
            let mut found = None;
            if let Goal::Looks(schedule) = self.goal {
                let seen = schedule.look(look, &self.counts(end, done));
                watch(Event::Look(end, seen));
                found = Some(seen);
            }
            ended = Ended::Complete { draws: end, found };
            if found.is_some_and(|found| found.enough) {
                break;
            }
        }
        Ok(ended)
    }
}

fn keep(
    writer: &mut Writer,
    done: &mut BTreeMap<(u64, u8), Outcome>,
    record: &TrialRecord,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<(), RunError> {
    writer.append(record)?;
    done.insert((record.drawn.draw, record.replicas), record.outcome);
    watch(Event::Trial(record));
    Ok(())
}
