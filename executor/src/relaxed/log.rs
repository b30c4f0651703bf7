//! The inputs of a set in their one order: a log that all replicas read, each at its own place.
//!
//! **Batches.** What has come since the last batch is sealed as the next one by the first replica that wants it, and all others
//! get the same batches. A replica takes a batch only when its guest is idle and has been given everything before. So what is in one
//! batch is known to all replicas at the same state of the guest: a server with one thread serves the requests of all connections in
//! the same order everywhere, however fast a replica is. Without batches a slow replica would find a client's second request beside
//! its first, and another client's between them served too late.
//!
//! **Time.** A batch carries the time at which it was sealed, and a replica's clock shows that time when it gets it, however much
//! later that is. A guest's own timers fire at the time that it asked for. Both are decided under one lock by [`InputLog::due`], so that
//! a replica that takes a batch later than others still has the clock that they had.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::link::ToGuest;

/// Events of one batch (R10): what a guest's receive queue has room for. The rest goes into the next one.
pub const BATCH_EVENTS: usize = 128;
/// Bytes of one batch (R10), but at least one event; as above.
pub const BATCH_BYTES: usize = 128 << 10;
/// What an event costs beside its bytes.
pub const EVENT_COST: usize = 64;

/// One input, with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Number over all inputs of the set, from 0.
    pub number: u64,
    /// How many bytes had been released to the client on this connection when it sent this. On a `sync` channel a replica gets it only
    /// when it has said as much itself.
    pub after: u64,
    /// All that the client had asked for on this connection before was answered by then: `after` is where an answer ends, and the
    /// one to this begins. False: that is not known.
    pub answered: bool,
    /// The input.
    pub what: ToGuest,
}

/// Inputs that belong together: an idle guest gets all of them at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its number, from 0.
    pub number: u64,
    /// The guests' monotonic time of it, ns.
    pub at_ns: u64,
    /// Its events; at least one.
    pub events: Arc<[Event]>,
}

/// What an idle replica is to be given; see [`InputLog::due`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// This batch, at its time.
    Batch(Batch),
    /// Nothing but the time that the guest wanted to sleep until.
    Timer,
    /// It sleeps on.
    Nothing,
}

#[derive(Clone, Debug)]
struct Reader {
    /// The batch that it gets next.
    next: u64,
    /// Whether the log waits for it; false while it is stopped.
    live: bool,
    /// Batches from here on are kept for its checkpoints.
    keep: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct InputLog {
    batches: VecDeque<Batch>,
    /// For each of these what all events before it have cost since the beginning.
    before: VecDeque<u64>,
    /// What all events have cost since the beginning.
    pushed: u64,
    /// Number of the first in `batches`.
    first: u64,
    open: VecDeque<Event>,
    /// What is in `open`, and in all that is kept.
    open_cost: usize,
    cost: usize,
    /// Numbers given so far.
    events: u64,
    /// Time of the last batch.
    sealed_ns: u64,
    readers: Vec<Reader>,
}

fn length(what: &ToGuest) -> usize {
    what.payload()
}

fn cost(event: &Event) -> usize {
    EVENT_COST + length(&event.what)
}

impl InputLog {
    /// An empty log with so many readers.
    #[must_use]
    pub fn new(replicas: usize) -> InputLog {
        let reader = Reader {
            next: 0,
            live: true,
            keep: None,
        };
        InputLog {
            batches: VecDeque::new(),
            before: VecDeque::new(),
            pushed: 0,
            first: 0,
            open: VecDeque::new(),
            open_cost: 0,
            cost: 0,
            events: 0,
            sealed_ns: 0,
            readers: vec![reader; replicas],
        }
    }

    /// Adds an input; `after` as in [`Event`]. Its number.
    pub fn push(&mut self, what: ToGuest, after: u64) -> u64 {
        self.push_answered(what, after, false)
    }

    /// The same, and whether all before it was answered.
    pub fn push_answered(&mut self, what: ToGuest, after: u64, answered: bool) -> u64 {
        let event = Event {
            number: self.events,
            after,
            answered,
            what,
        };
        self.events += 1;
        self.open_cost += cost(&event);
        self.cost += cost(&event);
        self.pushed += cost(&event) as u64;
        let number = event.number;
        self.open.push_back(event);
        number
    }

    /// Events that this replica has been given with whole batches.
    #[must_use]
    pub fn given(&self, me: usize) -> u64 {
        self.events - self.behind(me).0
    }

    /// What an idle replica is given at `now_ns` when its guest sleeps until `wait_until_ns`. A batch is not taken by this: see
    /// [`InputLog::taken`]. What was there first comes first, so that all replicas see timers and batches in the same order.
    pub fn due(&mut self, me: usize, now_ns: u64, wait_until_ns: u64) -> Due {
        let Some(next) = self.readers.get(me).map(|reader| reader.next) else {
            return Due::Nothing;
        };
        if let Some(batch) = self.batch(next) {
            return match wait_until_ns < batch.at_ns {
                true => Due::Timer,
                false => Due::Batch(batch.clone()),
            };
        }
        let now_ns = now_ns.max(self.sealed_ns);
        if wait_until_ns <= now_ns {
            // Whoever seals the next batch does it later than this, under the same lock and clock.
            return Due::Timer;
        }
        if self.open.is_empty() {
            return Due::Nothing;
        }
        Due::Batch(self.seal(now_ns))
    }

    /// The batch that a replica gets next, for one that cannot be idle: its time bounds the replica's clock.
    #[must_use]
    pub fn peek(&self, me: usize) -> Option<&Batch> {
        self.batch(self.readers.get(me)?.next)
    }

    /// The next batch at once, whatever timers say: for a guest that is never idle or has a clock of its own.
    pub fn next(&mut self, me: usize, now_ns: u64) -> Option<Batch> {
        let next = self.readers.get(me)?.next;
        if let Some(batch) = self.batch(next) {
            return Some(batch.clone());
        }
        if self.open.is_empty() {
            return None;
        }
        let now_ns = now_ns.max(self.sealed_ns);
        Some(self.seal(now_ns))
    }

    /// The replica has been given its next batch.
    pub fn taken(&mut self, me: usize) {
        if let Some(reader) = self.readers.get_mut(me) {
            reader.next += 1;
        }
        self.trim();
    }

    fn batch(&self, number: u64) -> Option<&Batch> {
        let index = number.checked_sub(self.first)?;
        self.batches.get(usize::try_from(index).ok()?)
    }

    fn seal(&mut self, at_ns: u64) -> Batch {
        self.before.push_back(self.pushed - self.open_cost as u64);
        let mut bytes = 0;
        let mut events = Vec::new();
        while let Some(event) = self.open.front() {
            bytes += length(&event.what);
            if !events.is_empty() && (bytes > BATCH_BYTES || events.len() == BATCH_EVENTS) {
                break;
            }
            self.open_cost -= cost(event);
            events.extend(self.open.pop_front());
        }
        let batch = Batch {
            number: self.first + self.batches.len() as u64,
            at_ns,
            events: events.into(),
        };
        self.sealed_ns = at_ns;
        self.batches.push_back(batch.clone());
        batch
    }

    /// Forgets what nobody can ask for any more.
    fn trim(&mut self) {
        let wanted = self.readers.iter().flat_map(|reader| {
            let live = reader.live.then_some(reader.next);
            live.into_iter().chain(reader.keep)
        });
        let floor = wanted.min().unwrap_or(u64::MAX);
        while self.first < floor
            && let Some(batch) = self.batches.pop_front()
        {
            self.cost -= batch.events.iter().map(cost).sum::<usize>();
            self.before.pop_front();
            self.first += 1;
        }
    }

    /// The log does not wait for this replica any more.
    pub fn leave(&mut self, me: usize) {
        if let Some(reader) = self.readers.get_mut(me) {
            reader.live = false;
        }
        self.trim();
    }

    /// A replica begins again with this batch. False: that is no longer there.
    #[must_use]
    pub fn enter(&mut self, me: usize, next: u64) -> bool {
        let there = (self.first..=self.end()).contains(&next);
        if let Some(reader) = self.readers.get_mut(me).filter(|_| there) {
            reader.next = next;
            reader.live = true;
        }
        there
    }

    /// Batches from this one on are kept for a replica that may begin again there; `None`: none.
    pub fn keep(&mut self, me: usize, from: Option<u64>) {
        if let Some(reader) = self.readers.get_mut(me) {
            reader.keep = from;
        }
        self.trim();
    }

    /// The batch that a replica gets next.
    #[must_use]
    pub fn position(&self, me: usize) -> u64 {
        self.readers.get(me).map_or(0, |reader| reader.next)
    }

    /// The first batch that is still there.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Batches sealed so far.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + self.batches.len() as u64
    }

    /// Events so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Whether there is something that this replica has not been given.
    #[must_use]
    pub fn waits_for(&self, me: usize) -> bool {
        !self.open.is_empty() || self.position(me) < self.end()
    }

    /// Events and bytes, costs of events included, that this replica has not been given.
    #[must_use]
    pub fn behind(&self, me: usize) -> (u64, usize) {
        let next = self.position(me);
        let events = match self.batch(next) {
            Some(batch) => batch.events.first().map_or(0, |event| event.number),
            None => self.events - self.open.len() as u64,
        };
        (self.events - events, self.unread_from(next))
    }

    /// What lies from this batch on costs, bytes.
    fn unread_from(&self, next: u64) -> usize {
        let index = next.saturating_sub(self.first);
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let before = self.before.get(index).copied();
        let before = before.unwrap_or(self.pushed - self.open_cost as u64);
        usize::try_from(self.pushed - before).unwrap_or(usize::MAX)
    }

    /// What somebody who runs has not been given yet costs, bytes.
    #[must_use]
    pub fn unread_cost(&self) -> usize {
        let live = self.readers.iter().filter(|reader| reader.live);
        let Some(next) = live.map(|reader| reader.next).min() else {
            return self.open_cost;
        };
        self.unread_from(next)
    }

    /// What all that is kept costs, bytes.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.cost
    }

    /// The replica for whose checkpoints most is kept, with what is kept only for checkpoints.
    #[must_use]
    pub fn oldest_kept(&self) -> Option<usize> {
        let kept = self.readers.iter().enumerate();
        kept.filter_map(|(me, reader)| Some((reader.keep?, me)))
            .min()
            .map(|(_, me)| me)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn open(conn: u64) -> ToGuest {
        ToGuest::Open {
            conn,
            guest_port: 80,
        }
    }

    fn numbers(batch: &Batch) -> Vec<u64> {
        batch.events.iter().map(|event| event.number).collect()
    }

    fn take(log: &mut InputLog, me: usize, now: u64, wait: u64) -> Batch {
        match log.due(me, now, wait) {
            Due::Batch(batch) => {
                log.taken(me);
                batch
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_to_ask_fixes_the_batch_and_its_time_for_all() {
        let mut log = InputLog::new(2);
        log.push(open(0), 0);
        let first = take(&mut log, 0, 10, u64::MAX);
        log.push(open(1), 0);
        log.push(open(2), 0);
        let second = take(&mut log, 0, 20, u64::MAX);
        assert_eq!(
            (numbers(&first), numbers(&second)),
            (vec![0], vec![1, 2]),
            "what came is in one batch"
        );
        // The other one comes late, and gets the same.
        assert_eq!(take(&mut log, 1, 500, u64::MAX), first);
        assert_eq!(take(&mut log, 1, 500, u64::MAX), second);
        assert_eq!(log.due(1, 500, u64::MAX), Due::Nothing);
        assert_eq!(log.cost(), 0, "all have it");
    }

    #[test]
    fn timers_and_batches_come_in_one_order() {
        let mut log = InputLog::new(2);
        log.push(open(0), 0);
        let batch = take(&mut log, 0, 100, 150);
        assert_eq!(batch.at_ns, 100);
        // Replica 0 has had its timer of 150 after the batch; the late one as well, though both are long over.
        assert_eq!(log.due(1, 900, 150), Due::Batch(batch));
        log.taken(1);
        assert_eq!(log.due(1, 900, 150), Due::Timer);
        // A timer before the batch comes before it.
        log.push(open(1), 0);
        assert_eq!(log.due(0, 899, 150), Due::Timer);
        assert_eq!(take(&mut log, 0, 900, 1000).at_ns, 900);
        assert_eq!(log.due(1, 5000, 899), Due::Timer);
        assert_eq!(take(&mut log, 1, 5000, 900).at_ns, 900);
        // The clock that seals never goes back.
        log.push(open(2), 0);
        assert_eq!(take(&mut log, 0, 1, 5000).at_ns, 900);
    }

    #[test]
    fn batches_are_bounded_and_a_large_event_is_a_batch() {
        let mut log = InputLog::new(1);
        for conn in 0..=BATCH_EVENTS as u64 {
            log.push(open(conn), 0);
        }
        let bytes: Arc<[u8]> = vec![0; BATCH_BYTES + 1].into();
        log.push(ToGuest::Data { conn: 0, bytes }, 0);
        log.push(open(999), 0);
        let lengths: Vec<usize> = std::iter::from_fn(|| match log.due(0, 0, u64::MAX) {
            Due::Batch(batch) => {
                log.taken(0);
                Some(batch.events.len())
            }
            _ => None,
        })
        .collect();
        assert_eq!(lengths, [BATCH_EVENTS, 1, 1, 1]);
    }

    #[test]
    fn what_is_kept_is_what_somebody_may_ask_for() {
        let mut log = InputLog::new(3);
        for conn in 0..4 {
            log.push(open(conn), 0);
            take(&mut log, 0, conn, u64::MAX);
        }
        assert_eq!(log.behind(1), (4, 4 * EVENT_COST));
        log.keep(1, Some(2));
        for _ in 0..4 {
            take(&mut log, 1, 9, u64::MAX);
        }
        // Replica 2 has taken none.
        assert_eq!(log.cost(), 4 * EVENT_COST);
        log.leave(2);
        assert_eq!(log.cost(), 2 * EVENT_COST, "for the checkpoint");
        assert!(!log.enter(2, 1), "that is gone");
        assert!(log.enter(2, 3));
        log.keep(1, None);
        assert_eq!(take(&mut log, 2, 9, u64::MAX).number, 3);
        assert_eq!((log.cost(), log.end()), (0, 4));
        assert!(log.enter(2, 4), "where nothing is yet");
    }
}
