//! Voter and journal as one state machine: what the executor wraps in a mutex.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::ballot::{Output, ballot_cost, payload};
use crate::config::Config;
use crate::errors::{CastError, ConfigError, LeadError, MemberError, RejoinError};
use crate::ids::{Channel, ReplicaId, ReplicaSet};
use crate::journal::Journal;
use crate::pace::Debt;
use crate::stats::{ReplicaStats, Stats};
use crate::verdict::{NoMajority, NoMajorityCause, StopReason, Verdict};
use crate::voter::{Decision, Taken, Voter};

/// What a replica that has cast a ballot may do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<E> {
    /// Deliver this entry and run on to the next boundary. Asking again before the next ballot gives it again.
    Deliver(E),
    /// Nobody has written the entry yet. When the replica's wait condition is met, write it with
    /// [`Lockstep::lead`]; until then ask again whenever something changed, since another replica may be first.
    Lead,
    /// Wait: the replica is a window ahead of the slowest, or too many bytes are stored (R10). Ask again
    /// whenever something changed.
    WindowFull,
    /// The replica is stopped: its thread can go.
    Stopped(StopReason),
    /// Nothing more happens: the set is without a majority. (Also the answer before the first ballot.)
    Held,
}

/// What happened, in order. Bounded: the releases by back-pressure (see [`Lockstep::poll_event`]), all
/// else by the number of replicas (R10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An agreed output, for the world. In the order of the boundaries, and within one in the ballot's order (R3).
    Release {
        /// Where the replicas stood.
        boundary: u64,
        /// Where it goes.
        channel: Channel,
        /// The output.
        bytes: Vec<u8>,
    },
    /// A replica was outvoted. [`Event::Stopped`] follows.
    Verdict(Verdict),
    /// A replica does not run any more.
    Stopped {
        /// Who.
        replica: ReplicaId,
        /// Why.
        reason: StopReason,
    },
    /// The set goes on with fewer replicas.
    Degraded {
        /// Running replicas.
        healthy: u8,
        /// Votes that a release needs, as ever.
        quorum: u8,
    },
    /// The set is without a majority: nothing is released from here on (R5). Final, unless the set is recoverable.
    NoMajority(NoMajority),
    /// A replica that recovered, or joined, votes again.
    Recovered {
        /// Who.
        replica: ReplicaId,
        /// First boundary that its vote can decide.
        boundary: u64,
    },
    /// A quorum runs again, after [`Event::NoMajority`]: the set goes on.
    Majority {
        /// First boundary that is not released.
        boundary: u64,
    },
    /// The set has another number of members from here on.
    Membership {
        /// Members.
        replicas: u8,
        /// Votes that a release needs.
        quorum: u8,
    },
}

/// Where a replica begins again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejoin {
    /// Fresh: it computes towards boundary 0.
    Start,
    /// From a checkpoint: it stands at this boundary, whose ballot it need not cast; its next step gives that entry.
    At(u64),
}

/// What is kept for replicas that come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryStats {
    /// First boundary whose entry is kept.
    pub from: u64,
    /// Entries kept.
    pub entries: u64,
    /// What they cost, as their leaders stated it, with overheads.
    pub bytes: usize,
}

/// Whether a replica runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaState {
    /// It does.
    Running {
        /// The boundary that it casts next.
        boundary: u64,
    },
    /// It catches up, checked against history, and has no vote yet (R7).
    Recovering {
        /// The boundary that it casts next.
        boundary: u64,
        /// First boundary that is not decided: where it votes.
        target: u64,
        /// Near enough that the others do not run away from it any more.
        promoted: bool,
    },
    /// It does not. Where several replicas stop at the same boundary again and again, the fault lies in the program.
    Stopped {
        /// The boundary that it was to cast next.
        boundary: u64,
        /// Why.
        reason: StopReason,
    },
}

/// Where a running replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// On its way to the next boundary.
    Computing,
    /// At a boundary, its ballot cast, the entry not taken.
    Standing {
        /// It was asked to lead: so it may add one entry, even if the window has filled up since.
        asked: bool,
    },
}

#[derive(Debug)]
pub(crate) struct Replica {
    /// The boundary that it casts next.
    pub(crate) next: u64,
    phase: Phase,
    /// Since when it has been able to run towards `next`. Means nothing while it waits.
    pub(crate) since_ns: u64,
    pub(crate) debt: Debt,
    stopped: Option<StopReason>,
    led: u64,
}

#[derive(Debug, Default)]
struct Counters {
    ballots: u64,
    bytes_voted: u64,
    releases: u64,
    bytes_released: u64,
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
    pub(crate) config: Config,
    pub(crate) replicas: Vec<Replica>,
    /// Who is not stopped.
    pub(crate) running: ReplicaSet,
    pub(crate) voter: Voter,
    pub(crate) journal: Journal<E>,
    events: VecDeque<Event>,
    /// Cost of the releases in `events`.
    undrained: usize,
    pub(crate) outcome: Option<NoMajority>,
    /// Since when a replica has been waiting for the slowest, if one has.
    pub(crate) held_since_ns: Option<u64>,
    /// Latest time that was told.
    now_ns: Option<u64>,
    counters: Counters,
}

impl<E: Clone> Lockstep<E> {
    /// A set in which every replica runs and none has cast. The time of the first call after this one
    /// counts as the start of all replicas.
    ///
    /// # Errors
    /// When a field of `config` is out of bounds.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        config.check()?;
        let replica = |_| Replica {
            next: 0,
            phase: Phase::Computing,
            since_ns: 0,
            debt: Debt::default(),
            stopped: None,
            led: 0,
        };
        Ok(Self {
            config,
            replicas: (0..config.replicas).map(replica).collect(),
            running: ReplicaSet::first(config.replicas),
            voter: Voter::new(config.quorum()),
            journal: Journal::new(),
            events: VecDeque::new(),
            undrained: 0,
            outcome: None,
            held_since_ns: None,
            now_ns: None,
            counters: Counters::default(),
        })
    }

    /// As [`Self::new`], and who was stopped can come back: [`Self::rejoin`]. `key` is a secret of the run (R2).
    ///
    /// # Errors
    /// When a field of `config` is out of bounds.
    pub fn recoverable(config: Config, key: [u8; 32]) -> Result<Self, ConfigError> {
        let _ = key;
        Self::new(config)
    }

    /// Moves the bound of the history: entries from `boundary` on stay. At 0 to begin with. What is dropped is gone.
    pub fn keep_from(&mut self, boundary: u64) {
        let _ = boundary;
    }

    /// What is kept.
    #[must_use]
    pub fn history(&self) -> HistoryStats {
        HistoryStats::default()
    }

    /// Entries of decided boundaries from `from` on that are kept, each with the keyed digest of the ballot released.
    pub fn history_entries(&self, from: u64) -> impl Iterator<Item = (u64, &E, [u8; 32])> {
        let _ = from;
        std::iter::empty()
    }

    /// A stopped replica begins again; it is recovering until [`Event::Recovered`], or stopped again.
    ///
    /// # Errors
    /// When it cannot begin there; nothing has changed then.
    pub fn rejoin(&mut self, r: ReplicaId, how: Rejoin, now_ns: u64) -> Result<(), RejoinError> {
        let _ = (r, how, now_ns);
        Err(RejoinError::NotRecoverable)
    }

    /// Announces a new member: from here on it can [`rejoin`](Self::rejoin), and counts once it has recovered.
    ///
    /// # Errors
    /// When it cannot be added; nothing has changed then.
    pub fn add(&mut self, r: ReplicaId, now_ns: u64) -> Result<(), MemberError> {
        let _ = (r, now_ns);
        Err(MemberError::NotRecoverable)
    }

    /// Takes a member out of the set for good: the quorum is that of the rest.
    ///
    /// # Errors
    /// When it cannot be spared; nothing has changed then.
    pub fn remove(&mut self, r: ReplicaId, now_ns: u64) -> Result<(), MemberError> {
        let _ = (r, now_ns);
        Err(MemberError::NotRecoverable)
    }

    /// A replica arrives at its next boundary with its outputs, in order. The bytes are moved, not copied.
    ///
    /// A ballot above [`Config::max_ballot_bytes`] stops its replica. Ballots of stopped replicas, and all
    /// ballots of a set without a majority, are accepted and ignored: `step` tells why.
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
        let Some(replica) = self.replicas.get(usize::from(r.0)) else {
            return Err(CastError::UnknownReplica(r));
        };
        if replica.stopped.is_some() || self.outcome.is_some() {
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

        self.charge_for_holding_up(r, slowest, now_ns);
        let replica = &mut self.replicas[usize::from(r.0)];
        let need_ns = now_ns.saturating_sub(replica.since_ns);
        replica.next += 1;
        replica.phase = Phase::Standing { asked: false };
        replica.since_ns = now_ns;
        self.counters.ballots += 1;
        self.counters.bytes_voted += payload(&outputs);

        let taken = self.voter.cast(r, boundary, outputs, now_ns, need_ns);
        self.note_peak();
        match taken {
            Taken::Agrees => self.trim(),
            Taken::Differs(verdict) => {
                self.outvote(verdict);
                self.settle(None);
            }
            Taken::Open(spare) => self.settle(spare),
        }
        Ok(())
    }

    /// What the replica that has cast its ballot may do now. Never blocks and may be asked at any time.
    pub fn step(&mut self, r: ReplicaId, now_ns: u64) -> Step<E> {
        let now_ns = self.told(now_ns);
        let blocked = self.blocked(r);
        let Some(replica) = self.replicas.get_mut(usize::from(r.0)) else {
            return Step::Stopped(unknown(r));
        };
        if let Some(reason) = &replica.stopped {
            return Step::Stopped(reason.clone());
        }
        let (None, Some(at)) = (&self.outcome, replica.next.checked_sub(1)) else {
            return Step::Held;
        };
        let entry = self.journal.get(at);
        let Phase::Standing { asked } = &mut replica.phase else {
            // Kept until this replica casts again, so this cannot miss.
            return entry.map_or(Step::Held, |entry| Step::Deliver(entry.clone()));
        };
        if let Some(why) = blocked {
            replica.since_ns = now_ns;
            self.counters.window_full += 1;
            if why == Blocked::ByTheSlowest {
                self.held_since_ns.get_or_insert(now_ns);
            }
            return Step::WindowFull;
        }
        match entry {
            // R1: the entry of the boundary at which the replica stands, and no other.
            Some(entry) => {
                let entry = entry.clone();
                replica.phase = Phase::Computing;
                Step::Deliver(entry)
            }
            None => {
                *asked = true;
                Step::Lead
            }
        }
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
        let Some(replica) = self.replicas.get_mut(usize::from(r.0)) else {
            return Err(LeadError::UnknownReplica(r));
        };
        if replica.stopped.is_some() {
            return Err(LeadError::Stopped(r));
        }
        if self.outcome.is_some() {
            return Err(LeadError::Held);
        }
        let (Phase::Standing { asked: true }, Some(at)) =
            (replica.phase, replica.next.checked_sub(1))
        else {
            return Err(LeadError::NotAsked(r));
        };
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
        match self.replicas.get(usize::from(r.0)) {
            None => ReplicaState::Stopped {
                boundary: 0,
                reason: unknown(r),
            },
            Some(replica) => match &replica.stopped {
                Some(reason) => ReplicaState::Stopped {
                    boundary: replica.next,
                    reason: reason.clone(),
                },
                None => ReplicaState::Running {
                    boundary: replica.next,
                },
            },
        }
    }

    /// Set once the set is without a quorum; stays (R5).
    #[must_use]
    pub fn outcome(&self) -> Option<NoMajority> {
        self.outcome.clone()
    }

    /// The configuration it was made with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Numbers so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let fastest = self.running_replicas().map(|r| r.next).max().unwrap_or(0);
        Stats {
            replicas: self.config.replicas,
            healthy: self.running.len(),
            quorum: self.config.quorum(),
            boundaries: self.voter.frontier(),
            ballots: self.counters.ballots,
            bytes_voted: self.counters.bytes_voted,
            releases: self.counters.releases,
            bytes_released: self.counters.bytes_released,
            entries: self.counters.entries,
            entry_bytes: self.counters.entry_bytes,
            window_boundaries_used: fastest - self.slowest().unwrap_or(fastest),
            window_bytes_used: self.stored(),
            window_bytes_peak: self.counters.peak,
            window_full: self.counters.window_full,
            undrained_bytes: self.undrained,
            per_replica: (0..self.config.replicas)
                .map(ReplicaId)
                .zip(&self.replicas)
                .map(|(r, replica)| ReplicaStats {
                    replica: r,
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

    fn running_replicas(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.iter().filter(|r| r.stopped.is_none())
    }

    /// The next boundary of the slowest running replica; `None` if none runs.
    pub(crate) fn slowest(&self) -> Option<u64> {
        self.running_replicas().map(|r| r.next).min()
    }

    /// Bytes of ballots and entries kept.
    fn stored(&self) -> usize {
        self.voter.bytes() + self.journal.bytes()
    }

    fn note_peak(&mut self) {
        self.counters.peak = self.counters.peak.max(self.stored());
    }

    /// R10: whether a replica must wait before it takes or writes an entry. The slowest never waits for
    /// another replica, so there is always one that can go on: no deadlock.
    pub(crate) fn blocked(&self, r: ReplicaId) -> Option<Blocked> {
        if self.undrained > self.config.window_bytes {
            return Some(Blocked::ByTheCaller);
        }
        let next = self.replicas.get(usize::from(r.0))?.next;
        let ahead = next.saturating_sub(self.slowest()?);
        let full =
            ahead >= self.config.window_boundaries || self.stored() > self.config.window_bytes;
        (ahead > 0 && full).then_some(Blocked::ByTheSlowest)
    }

    /// Whether a replica waits for something that is not its own doing: then it is not late.
    pub(crate) fn waits(&self, r: ReplicaId) -> bool {
        self.replicas.get(usize::from(r.0)).is_some_and(|replica| {
            replica.phase != Phase::Computing
                && (self.journal.next() < replica.next || self.blocked(r).is_some())
        })
    }

    /// Stops a replica. The caller settles afterwards.
    pub(crate) fn stop(&mut self, r: ReplicaId, reason: StopReason) {
        let Some(replica) = self.replicas.get_mut(usize::from(r.0)) else {
            return;
        };
        if replica.stopped.is_some() {
            return;
        }
        replica.stopped = Some(reason.clone());
        self.running = self.running.without(r);
        // If others waited for this one, they do no longer; if for another, they will say so again.
        self.held_since_ns = None;
        self.voter.forget_stopped(self.running);
        self.events.push_back(Event::Stopped { replica: r, reason });
        if self.outcome.is_some() {
            return;
        }
        let (healthy, quorum) = (self.running.len(), self.config.quorum());
        if healthy < quorum {
            self.no_majority(NoMajorityCause::TooFew);
        } else {
            self.events.push_back(Event::Degraded { healthy, quorum });
        }
    }

    fn outvote(&mut self, verdict: Verdict) {
        self.events.push_back(Event::Verdict(verdict.clone()));
        self.stop(verdict.replica, StopReason::Outvoted(verdict));
    }

    /// R5: from here on nothing is released. What is stored stays, for a recovering replica's vote.
    pub(crate) fn no_majority(&mut self, cause: NoMajorityCause) {
        let outcome = NoMajority {
            boundary: self.voter.frontier(),
            healthy: self.running.len(),
            quorum: self.config.quorum(),
            cause,
        };
        self.outcome = Some(outcome.clone());
        self.events.push_back(Event::NoMajority(outcome));
    }

    /// Decides boundaries as long as that is possible, then drops what nobody needs any more.
    pub(crate) fn settle(&mut self, mut spare: Option<Vec<Output>>) {
        while self.outcome.is_none() {
            match self.voter.decide(self.running, spare.take()) {
                Decision::Open => break,
                Decision::Split(cause) => self.no_majority(cause),
                Decision::Agreed {
                    boundary,
                    release,
                    outvoted,
                } => {
                    for (channel, bytes) in release {
                        self.counters.releases += 1;
                        self.counters.bytes_released += bytes.len() as u64;
                        self.undrained += release_cost(&bytes);
                        self.events.push_back(Event::Release {
                            boundary,
                            channel,
                            bytes,
                        });
                    }
                    for verdict in outvoted {
                        self.outvote(verdict);
                    }
                }
            }
        }
        self.trim();
    }

    fn trim(&mut self) {
        if let Some(slowest) = self.slowest() {
            self.voter.trim(slowest);
            // The entry that took a replica to where it computes now can still be asked for.
            self.journal.trim(slowest.saturating_sub(1));
        }
    }
}

/// Why a replica must wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// The window is full, and another replica is slower.
    ByTheSlowest,
    /// Releases are not fetched.
    ByTheCaller,
}

fn release_cost(bytes: &[u8]) -> usize {
    bytes.len().saturating_add(crate::ballot::OUTPUT_OVERHEAD)
}

fn unknown(r: ReplicaId) -> StopReason {
    StopReason::Failed(format!("{r} is not in the set"))
}
