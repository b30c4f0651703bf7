//! Voter and journal as one state machine: what the executor wraps in a mutex.

use std::collections::VecDeque;

use crate::ballot::{Output, ballot_cost, payload};
use crate::config::Config;
use crate::errors::{CastError, ConfigError, LeadError};
use crate::history::History;
use crate::ids::{MAX_REPLICAS, ReplicaId, ReplicaSet};
use crate::journal::Journal;
use crate::replica::{Event, Life, Phase, Replica, ReplicaState, Step};
use crate::stats::{ReplicaStats, Stats};
use crate::verdict::{NoMajority, StopReason};
use crate::voter::{Taken, Voter};

#[derive(Debug, Default)]
pub(crate) struct Counters {
    ballots: u64,
    bytes_voted: u64,
    pub(crate) replayed: u64,
    pub(crate) recoveries: u64,
    pub(crate) releases: u64,
    pub(crate) bytes_released: u64,
    entries: u64,
    entry_bytes: u64,
    window_full: u64,
    peak: usize,
}

/// Voter and journal of one replica set. `E` is an entry, cheap to clone (an `Arc`).
///
/// The caller's loop for one replica: run to the boundary, [`cast`](Self::cast), then [`step`](Self::step) until it
/// says [`Step::Deliver`], or [`Step::Lead`] and [`lead`](Self::lead) succeeds (then deliver what was written).
/// After each call, [`poll_event`](Self::poll_event) until it is empty and wake those who wait.
///
/// No call panics, whatever the arguments; a replica that is not in the set is answered as a stopped one.
#[derive(Debug)]
pub struct Lockstep<E> {
    /// With the number of replicas that the set has now.
    pub(crate) config: Config,
    /// A slot for every number that a replica can have.
    pub(crate) replicas: Vec<Replica>,
    /// Whose majority counts, whether they run or not.
    pub(crate) members: ReplicaSet,
    /// Added, and members from when they have recovered.
    pub(crate) joining: ReplicaSet,
    /// Members who are not stopped and vote.
    pub(crate) running: ReplicaSet,
    /// Who catches up.
    pub(crate) recovering: ReplicaSet,
    /// Those of them that the others wait for when the window is full.
    pub(crate) promoted: ReplicaSet,
    pub(crate) voter: Voter,
    pub(crate) journal: Journal<E>,
    /// Kept if the set is recoverable.
    pub(crate) history: Option<History>,
    pub(crate) events: VecDeque<Event>,
    /// Cost of the releases in `events`.
    pub(crate) undrained: usize,
    /// Set while there is no majority.
    pub(crate) outcome: Option<NoMajority>,
    /// Since when a replica has been waiting for the slowest, if one has.
    pub(crate) held_since_ns: Option<u64>,
    /// The undecided boundary to which replicas came too late before, if any did.
    pub(crate) stalled_at: Option<u64>,
    /// Latest time that was told.
    pub(crate) now_ns: Option<u64>,
    pub(crate) counters: Counters,
}

impl<E: Clone> Lockstep<E> {
    /// A set in which every replica runs and none has cast. The time of the first call after this one
    /// counts as the start of all replicas.
    ///
    /// # Errors
    /// When a field of `config` is out of bounds.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        Self::made(config, None)
    }

    /// As [`Self::new`], and who was stopped can come back: [`Self::rejoin`]. `key` is a secret of the run (R2).
    ///
    /// # Errors
    /// When a field of `config` is out of bounds.
    pub fn recoverable(config: Config, key: [u8; 32]) -> Result<Self, ConfigError> {
        Self::made(config, Some(History::new(key, 0)))
    }

    pub(crate) fn made(config: Config, history: Option<History>) -> Result<Self, ConfigError> {
        config.check()?;
        let members = ReplicaSet::first(config.replicas);
        let life = |r| match members.contains(r) {
            true => Life::Running,
            false => Life::Absent,
        };
        Ok(Self {
            config,
            replicas: (0..MAX_REPLICAS as u8)
                .map(|r| Replica::new(life(ReplicaId(r))))
                .collect(),
            members,
            joining: ReplicaSet::default(),
            running: members,
            recovering: ReplicaSet::default(),
            promoted: ReplicaSet::default(),
            voter: Voter::new(config.quorum(), 0),
            journal: Journal::new(0),
            history,
            events: VecDeque::new(),
            undrained: 0,
            outcome: None,
            held_since_ns: None,
            stalled_at: None,
            now_ns: None,
            counters: Counters::default(),
        })
    }

    /// A replica arrives at its next boundary with its outputs, in order. The bytes are moved, not copied.
    ///
    /// A ballot above [`Config::max_ballot_bytes`] stops its replica. Ballots of stopped replicas, and all
    /// ballots of a set that lost its majority for good, are accepted and ignored: `step` tells why.
    ///
    /// # Errors
    /// When the caller has lost count; nothing has changed then.
    pub fn cast(
        &mut self,
        r: ReplicaId,
        boundary: u64,
        outputs: Vec<Output>,
        now_ns: u64,
    ) -> Result<(), CastError> {
        let now_ns = self.told(now_ns);
        let slowest = self.slowest();
        let limit = self.config.max_ballot_bytes();
        let Some(replica) = self.known(r) else {
            return Err(CastError::UnknownReplica(r));
        };
        if replica.stopped().is_some() || self.over() {
            return Ok(());
        }
        if boundary != replica.next {
            return Err(CastError::WrongBoundary {
                replica: r,
                expected: replica.next,
                got: boundary,
            });
        }
        if replica.phase != Phase::Computing {
            return Err(CastError::EntryNotTaken {
                replica: r,
                boundary,
            });
        }
        let cost = ballot_cost(&outputs);
        if cost > limit {
            let what =
                format!("a ballot of {cost} bytes at boundary {boundary}, allowed are {limit}");
            self.fail(r, StopReason::Misbehaved(what), now_ns);
            return Ok(());
        }
        if self.recovering.contains(r) {
            if boundary < self.voter.frontier() {
                self.replay(r, boundary, &outputs, now_ns);
                return Ok(());
            }
            self.recovered(r);
        }

        self.charge_for_holding_up(r, slowest, now_ns);
        let replica = &mut self.replicas[usize::from(r.0)];
        let need_ns = now_ns.saturating_sub(replica.since_ns);
        replica.stands(boundary + 1, now_ns);
        self.counters.ballots += 1;
        self.counters.bytes_voted += payload(&outputs);

        let taken = self.voter.cast(r, boundary, outputs, now_ns, need_ns);
        self.note_peak();
        match taken {
            Taken::Agrees => self.trim(),
            Taken::Differs(verdict) => self.outvote_late(verdict),
            Taken::Open(spare) => self.settle(spare),
        }
        Ok(())
    }

    /// What the replica that has cast its ballot may do now. Never blocks and may be asked at any time.
    pub fn step(&mut self, r: ReplicaId, now_ns: u64) -> Step<E> {
        let now_ns = self.told(now_ns);
        let Some(replica) = self.known(r) else {
            return Step::Stopped(unknown(r));
        };
        if let Some(reason) = replica.stopped() {
            return Step::Stopped(reason.clone());
        }
        let (false, Some(at)) = (self.over(), replica.next.checked_sub(1)) else {
            return Step::Held;
        };
        if replica.phase == Phase::Computing {
            // Kept until this replica casts again, so this cannot miss.
            return self.entry(at).map_or(Step::Held, Step::Deliver);
        }
        let blocked = self.blocked(r);
        if self.holds_at(at) {
            return Step::Held;
        }
        if let Some(why) = blocked {
            self.replicas[usize::from(r.0)].since_ns = now_ns;
            self.counters.window_full += 1;
            if why == Blocked::Window {
                self.held_since_ns.get_or_insert(now_ns);
            }
            return Step::WindowFull;
        }
        // R1: the entry of the boundary at which the replica stands, and no other.
        if let Some(entry) = self.entry(at) {
            self.replicas[usize::from(r.0)].phase = Phase::Computing;
            return Step::Deliver(entry);
        }
        if self.recovering.contains(r) {
            // At the end of the journal there is nothing left to catch up with.
            self.recovered(r);
            self.settle(None);
        }
        self.replicas[usize::from(r.0)].phase = Phase::Standing { asked: true };
        Step::Lead
    }

    /// Writes the entry for the boundary where `r` stands, after [`Self::step`] said [`Step::Lead`] to it. On success
    /// the replica has taken the entry: deliver it and run on (asking `step` again also returns it).
    ///
    /// # Errors
    /// [`LeadError::AlreadyWritten`] if someone was faster: call `step` to take that entry. The others say why
    /// nothing was written.
    pub fn lead(
        &mut self,
        r: ReplicaId,
        entry: E,
        entry_bytes: usize,
        now_ns: u64,
    ) -> Result<(), LeadError> {
        let now_ns = self.told(now_ns);
        let Some(replica) = self.known(r) else {
            return Err(LeadError::UnknownReplica(r));
        };
        if replica.stopped().is_some() {
            return Err(LeadError::Stopped(r));
        }
        if self.over() {
            return Err(LeadError::Held);
        }
        let (Phase::Standing { asked: true }, Some(at)) =
            (replica.phase, replica.next.checked_sub(1))
        else {
            return Err(LeadError::NotAsked(r));
        };
        if self.holds_at(at) {
            return Err(LeadError::Held);
        }
        // R1: the first entry stands. A replica stands at most one boundary beyond the journal.
        if self.journal.next() != at {
            return Err(LeadError::AlreadyWritten(at));
        }
        let limit = self.config.max_entry_bytes();
        if entry_bytes > limit {
            return Err(LeadError::TooLarge {
                bytes: entry_bytes,
                limit,
            });
        }
        let replica = &mut self.replicas[usize::from(r.0)];
        replica.phase = Phase::Computing;
        replica.led += 1;
        self.journal.append(entry, entry_bytes);
        // Whoever waited for this entry can run from now on.
        for other in &mut self.replicas {
            if other.next == at + 1 {
                other.since_ns = now_ns;
            }
        }
        self.counters.entries += 1;
        self.counters.entry_bytes += entry_bytes as u64;
        self.note_peak();
        Ok(())
    }

    /// A replica crashed, was killed, its thread died, or its machine failed. Once stopped, the first reason stays.
    pub fn fail(&mut self, r: ReplicaId, reason: StopReason, now_ns: u64) {
        self.told(now_ns);
        self.stop(r, reason);
        self.settle(None);
    }

    /// Fetches what happened, oldest first. While releases of more than [`Config::window_bytes`] are
    /// waiting to be fetched, no replica is let on (R10).
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::Release { bytes, .. } = &event {
            self.undrained -= release_cost(bytes);
        }
        Some(event)
    }

    /// Whether a replica runs, and at which boundary.
    #[must_use]
    pub fn state(&self, r: ReplicaId) -> ReplicaState {
        let Some(replica) = self.known(r) else {
            return ReplicaState::Stopped {
                boundary: 0,
                reason: unknown(r),
            };
        };
        let boundary = replica.next;
        match &replica.life {
            Life::Stopped { reason, .. } => ReplicaState::Stopped {
                boundary,
                reason: reason.clone(),
            },
            Life::Recovering(_) => ReplicaState::Recovering {
                boundary,
                target: self.voter.frontier(),
                promoted: self.promoted.contains(r),
            },
            _ => ReplicaState::Running { boundary },
        }
    }

    /// Set while the set is without a majority: for good, if it is not recoverable (R5).
    #[must_use]
    pub fn outcome(&self) -> Option<NoMajority> {
        self.outcome.clone()
    }

    /// First boundary that is not decided.
    #[must_use]
    pub fn frontier(&self) -> u64 {
        self.voter.frontier()
    }

    /// The configuration it was made with, and the number of replicas that it has now.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Numbers so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let used = self.fastest().zip(self.slowest());
        Stats {
            replicas: self.config.replicas,
            healthy: self.running.len(),
            recovering: self.recovering.len(),
            quorum: self.config.quorum(),
            boundaries: self.voter.frontier(),
            ballots: self.counters.ballots,
            bytes_voted: self.counters.bytes_voted,
            replayed: self.counters.replayed,
            recoveries: self.counters.recoveries,
            releases: self.counters.releases,
            bytes_released: self.counters.bytes_released,
            entries: self.counters.entries,
            entry_bytes: self.counters.entry_bytes,
            window_boundaries_used: used.map_or(0, |(fastest, slowest)| fastest - slowest),
            window_bytes_used: self.stored(),
            window_bytes_peak: self.counters.peak,
            window_full: self.counters.window_full,
            undrained_bytes: self.undrained,
            per_replica: (0..)
                .map(ReplicaId)
                .zip(&self.replicas)
                .filter(|(_, replica)| replica.life != Life::Absent)
                .map(|(r, replica)| ReplicaStats {
                    replica: r,
                    member: self.members.contains(r),
                    state: self.state(r),
                    next_boundary: replica.next,
                    entries_led: replica.led,
                })
                .collect(),
        }
    }

    /// Takes note of the time. It never goes back, whatever the caller says.
    pub(crate) fn told(&mut self, now_ns: u64) -> u64 {
        let now_ns = match self.now_ns {
            Some(latest) => latest.max(now_ns),
            None => {
                for replica in &mut self.replicas {
                    replica.since_ns = now_ns;
                }
                now_ns
            }
        };
        self.now_ns = Some(now_ns);
        now_ns
    }

    /// A replica that is, was or is to be in the set.
    pub(crate) fn known(&self, r: ReplicaId) -> Option<&Replica> {
        let replica = self.replicas.get(usize::from(r.0))?;
        (replica.life != Life::Absent).then_some(replica)
    }

    /// Who counts for the window: who votes, and who has nearly caught up.
    pub(crate) fn paced(&self) -> ReplicaSet {
        self.running.or(self.promoted)
    }

    fn next(&self, r: ReplicaId) -> u64 {
        self.replicas.get(usize::from(r.0)).map_or(0, |r| r.next)
    }

    /// The next boundary of the slowest of those who count for the window; `None` if nobody does.
    pub(crate) fn slowest(&self) -> Option<u64> {
        self.paced().iter().map(|r| self.next(r)).min()
    }

    /// The next boundary of the fastest of them.
    pub(crate) fn fastest(&self) -> Option<u64> {
        self.paced().iter().map(|r| self.next(r)).max()
    }

    fn entry(&self, boundary: u64) -> Option<E> {
        self.journal.get(boundary).cloned()
    }

    /// R5: without a majority, and nobody can come back.
    pub(crate) fn over(&self) -> bool {
        self.outcome.is_some() && self.history.is_none()
    }

    /// R5: whether a replica that stands here must wait for a majority. Below the frontier all is decided.
    fn holds_at(&self, at: u64) -> bool {
        self.outcome.is_some() && at >= self.voter.frontier()
    }

    /// Bytes of ballots and entries kept.
    fn stored(&self) -> usize {
        self.voter.bytes() + self.journal.window_bytes()
    }

    fn note_peak(&mut self) {
        self.counters.peak = self.counters.peak.max(self.stored());
    }

    /// R10: whether a replica must wait before it takes or writes an entry. The slowest never waits for
    /// another replica, so there is always one that can go on: no deadlock.
    pub(crate) fn blocked(&self, r: ReplicaId) -> Option<Blocked> {
        if self.undrained > self.config.window_bytes {
            return Some(Blocked::Undrained);
        }
        let ahead = self.next(r).saturating_sub(self.slowest()?);
        let full =
            ahead >= self.config.window_boundaries || self.stored() > self.config.window_bytes;
        if ahead > 0 && full {
            return Some(Blocked::Window);
        }
        self.leashed(self.next(r)).then_some(Blocked::Leash)
    }

    /// Whether a replica waits for something that is not its own doing: then it is not late.
    pub(crate) fn waits(&self, r: ReplicaId) -> bool {
        self.known(r).is_some_and(|replica| {
            replica.phase != Phase::Computing
                && (self.journal.next() < replica.next
                    || self.blocked(r).is_some()
                    || replica
                        .next
                        .checked_sub(1)
                        .is_some_and(|at| self.holds_at(at)))
        })
    }
}

/// Why a replica must wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// The window is full, and another replica is slower.
    Window,
    /// A replica that recovers would never arrive otherwise.
    Leash,
    /// Releases are not fetched.
    Undrained,
}

pub(crate) fn release_cost(bytes: &[u8]) -> usize {
    bytes.len().saturating_add(crate::ballot::OUTPUT_OVERHEAD)
}

fn unknown(r: ReplicaId) -> StopReason {
    StopReason::Failed(format!("{r} is not in the set"))
}
