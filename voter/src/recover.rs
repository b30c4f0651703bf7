//! How a stopped replica comes back (design §9).
//!
//! It begins again at a boundary that was decided, or at the beginning, and is *recovering*: the journal's entries are
//! delivered to it as they were to the others, what it casts is compared with what was released (R7), and it
//! has no vote. Nobody waits for it until it is within half a window of the frontier. Then it is *promoted*: it
//! counts for the window, so that the others cannot run away from it. It votes again when it has
//! reached the frontier, or has kept pace for half a window: then it is as good as any replica that is slower.
//!
//! A replay is usually faster than what it repeats, since it waits for nothing. Where it is not, it would never
//! arrive. So it runs in laps, each to where the frontier was when the lap began; a lap that has not halved the
//! distance puts the others on a *leash*: from there on they make one step for two of its steps, until it is promoted
//! or stopped.
//!
//! When all were stopped, the same happens with nobody ahead: what was decided is replayed and compared, and
//! the first boundary that was not is voted by those who come back. Entries beyond it stand (R1).

use crate::ballot::Output;
use crate::config::{Config, STALL_FACTOR};
use crate::errors::{RejoinError, ResumeError};
use crate::history::{HISTORY_OVERHEAD, History, HistoryStats};
use crate::ids::ReplicaId;
use crate::journal::Journal;
use crate::lockstep::Lockstep;
use crate::pace::Debt;
use crate::replica::{Chase, Event, Leash, Life, Phase};
use crate::verdict::{NoMajority, NoMajorityCause, StopReason};
use crate::voter::Voter;

/// Where a replica begins again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejoin {
    /// Fresh: it computes towards boundary 0.
    Start,
    /// From a checkpoint: it stands at this boundary, whose ballot it need not cast; its next step gives that entry.
    At(u64),
}

/// What a set that was saved goes on from.
#[derive(Clone, Debug)]
pub struct Past<E> {
    /// First boundary whose entry is here: no later than the oldest checkpoint that somebody begins at.
    pub from: u64,
    /// Entries from there on, and what each costs. They may go beyond what was decided, and those then stand too.
    pub entries: Vec<(E, usize)>,
    /// Digests of what was released, from there on, made with the same key. They end where the set stood.
    pub digests: Vec<[u8; 32]>,
}

impl Config {
    /// How near the frontier a recovering replica is when the others begin to wait for it.
    fn promotion(&self) -> u64 {
        (self.window_boundaries / 2).max(1)
    }
}

impl<E: Clone> Lockstep<E> {
    /// As [`Self::recoverable`], for a set that was saved: it goes on where that one stood. All members are stopped
    /// ([`StopReason::Joining`]) and the set is without a majority until enough of them have
    /// [rejoined](Self::rejoin) and caught up; [`Event::Majority`] says when.
    ///
    /// # Errors
    /// When a field of `config` is out of bounds, or `past` has a gap.
    pub fn resume(config: Config, key: [u8; 32], past: Past<E>) -> Result<Self, ResumeError> {
        let frontier = past.from.saturating_add(past.digests.len() as u64);
        // The last decided boundary need not have an entry yet.
        if past.digests.len() > past.entries.len() + 1 {
            return Err(ResumeError::EntryMissing(
                past.from.saturating_add(past.entries.len() as u64),
            ));
        }
        if past.digests.is_empty() && past.from > 0 {
            return Err(ResumeError::NoDigest(past.from));
        }
        let mut history = History::new(key, past.from);
        // How long they took is not known any more.
        let need_ns = config.lag_timeout_ns.saturating_mul(STALL_FACTOR);
        for digest in past.digests {
            history.push(digest, need_ns);
        }
        let mut set = Self::made(config, Some(history))?;
        set.journal = Journal::new(past.from);
        for (entry, bytes) in past.entries {
            set.journal.append(entry, bytes);
        }
        set.journal.trim(frontier.saturating_sub(1), past.from);
        set.voter = Voter::new(config.quorum(), frontier);
        for r in std::mem::take(&mut set.running).iter() {
            set.replicas[usize::from(r.0)].life = Life::Stopped {
                reason: StopReason::Joining,
                at_ns: 0,
            };
        }
        set.outcome = Some(NoMajority {
            boundary: frontier,
            healthy: 0,
            quorum: config.quorum(),
            cause: NoMajorityCause::TooFew,
        });
        Ok(set)
    }

    /// Moves the bound of the history: entries from `boundary` on stay, and with them the possibility to rejoin there.
    /// At 0 to begin with. What is below is gone, except what running and recovering replicas still need.
    pub fn keep_from(&mut self, boundary: u64) {
        if let Some(history) = &mut self.history {
            history.keep = boundary;
            self.trim();
        }
    }

    /// What is kept. Its bound is the caller's business: [`Self::keep_from`] (R10).
    #[must_use]
    pub fn history(&self) -> HistoryStats {
        let (from, next) = (self.journal.base(), self.journal.next());
        let records = self.history.as_ref().map_or(0, |history| history.len());
        HistoryStats {
            from,
            entries: next - from,
            bytes: self.journal.bytes() + records * HISTORY_OVERHEAD,
        }
    }

    /// Entries of decided boundaries from `from` on that are kept, each with the digest of the ballot that was
    /// released there: [`crate::ballot_digest`] with the key of this set.
    pub fn history_entries(&self, from: u64) -> impl Iterator<Item = (u64, &E, [u8; 32])> {
        (from.max(self.journal.base())..self.voter.frontier()).map_while(|boundary| {
            let digest = self.history.as_ref()?.digest(boundary)?;
            Some((boundary, self.journal.get(boundary)?, digest))
        })
    }

    /// A stopped replica begins again: it is recovering until [`Event::Recovered`], or until it is stopped again.
    /// Its former ballots have no part in any vote any more.
    ///
    /// # Errors
    /// When it cannot begin there; nothing has changed then.
    pub fn rejoin(&mut self, r: ReplicaId, how: Rejoin, now_ns: u64) -> Result<(), RejoinError> {
        let now_ns = self.told(now_ns);
        if self.history.is_none() {
            return Err(RejoinError::NotRecoverable);
        }
        if !self.members.or(self.joining).contains(r) {
            return Err(RejoinError::UnknownReplica(r));
        }
        let wanted = match how {
            Rejoin::Start => 0,
            Rejoin::At(boundary) => boundary,
        };
        let frontier = self.voter.frontier();
        if how != Rejoin::Start && wanted >= frontier {
            return Err(RejoinError::NotDecided { wanted, frontier });
        }
        let from = self.journal.base();
        if wanted < from {
            return Err(RejoinError::Gone { wanted, from });
        }
        let Some(replica) = self.replicas.get_mut(usize::from(r.0)) else {
            return Err(RejoinError::UnknownReplica(r));
        };
        if replica.stopped().is_none() {
            return Err(RejoinError::NotStopped(r));
        }
        match how {
            Rejoin::Start => {
                replica.next = 0;
                replica.phase = Phase::Computing;
                replica.since_ns = now_ns;
            }
            Rejoin::At(boundary) => replica.stands(boundary + 1, now_ns),
        }
        replica.life = Life::Recovering(Chase {
            goal: frontier,
            distance: frontier - replica.next,
            ..Chase::default()
        });
        self.recovering = self.recovering.with(r);
        self.promote_if_near(r);
        Ok(())
    }

    fn promote_if_near(&mut self, r: ReplicaId) {
        let next = self.replicas[usize::from(r.0)].next;
        let distance = self.voter.frontier().saturating_sub(next);
        if distance <= self.config.promotion() {
            self.promoted = self.promoted.with(r);
            // Whoever waits for the slowest may wait for this one from now on.
            self.held_since_ns = None;
            return;
        }
        let fastest = self.fastest();
        let goal = self.voter.frontier();
        if let Life::Recovering(chase) = &mut self.replicas[usize::from(r.0)].life
            && chase.leash.is_none()
            && next >= chase.goal
        {
            if distance > chase.distance / 2 {
                chase.leash = fastest.map(|fastest| Leash { fastest, next });
            }
            chase.goal = goal;
            chase.distance = distance;
        }
    }

    /// R10: whether a replica that is to cast `next` would run away from one that recovers. That one does not wait for
    /// anybody, and is stopped when it is late: no deadlock.
    pub(crate) fn leashed(&self, next: u64) -> bool {
        let recovering = self.recovering.minus(self.promoted);
        recovering.iter().any(|r| {
            let replica = &self.replicas[usize::from(r.0)];
            matches!(replica.life, Life::Recovering(Chase { leash: Some(leash), .. })
                if next > leash.fastest + (replica.next - leash.next) / 2)
        })
    }

    /// A recovering replica casts a boundary that is decided (R7).
    pub(crate) fn replay(&mut self, r: ReplicaId, boundary: u64, outputs: &[Output], now_ns: u64) {
        // Bytes where they are still there, or else the digest.
        let same = self.voter.agrees(boundary, outputs).unwrap_or_else(|| {
            let history = self.history.as_ref();
            history.is_some_and(|history| history.confirms(boundary, outputs))
        });
        if !same {
            self.stop(r, StopReason::Relapsed { boundary });
            self.settle(None);
            return;
        }
        let slowest = self.slowest();
        self.charge_for_holding_up(r, slowest, now_ns);
        self.counters.replayed += 1;
        let half = self.config.promotion();
        let near = self.promoted.contains(r);
        let replica = &mut self.replicas[usize::from(r.0)];
        replica.stands(boundary + 1, now_ns);
        let mut paced = 0;
        if let Life::Recovering(chase) = &mut replica.life
            && near
        {
            chase.kept_pace += 1;
            paced = chase.kept_pace;
        }
        if boundary + 1 >= self.voter.frontier() || paced >= half {
            self.recovered(r);
            self.settle(None);
        } else {
            if !near {
                self.promote_if_near(r);
            }
            self.trim();
        }
    }

    /// It votes from here on. The caller settles afterwards.
    pub(crate) fn recovered(&mut self, r: ReplicaId) {
        let replica = &mut self.replicas[usize::from(r.0)];
        replica.life = Life::Running;
        replica.debt = Debt::default();
        self.recovering = self.recovering.without(r);
        self.promoted = self.promoted.without(r);
        self.running = self.running.with(r);
        self.held_since_ns = None;
        self.counters.recoveries += 1;
        if self.joining.contains(r) {
            self.joining = self.joining.without(r);
            self.set_members(self.members.with(r));
        }
        self.events.push_back(Event::Recovered {
            replica: r,
            boundary: self.voter.frontier(),
        });
    }

    /// Entries below this are nobody's any more. `needed` is what running replicas may want.
    pub(crate) fn keep(&self, needed: u64) -> u64 {
        let Some(history) = &self.history else {
            return u64::MAX;
        };
        let recovering = self.recovering.iter();
        let next = recovering.map(|r| self.replicas[usize::from(r.0)].next.saturating_sub(1));
        // A replica that has just recovered may be behind the window's entries.
        next.fold(history.keep.min(needed), u64::min)
    }

    /// Members that do not vote but may do so soon: who recovers, and who was stopped only just now and may be
    /// about to. If that is not so, [`Self::tick`] finds out.
    pub(crate) fn may_come_back(&self) -> u8 {
        let now_ns = self.now_ns.unwrap_or(0);
        let may = |r: &ReplicaId| match &self.replicas[usize::from(r.0)].life {
            Life::Recovering(_) => true,
            Life::Stopped { at_ns, .. } => {
                now_ns.saturating_sub(*at_ns) <= self.config.lag_timeout_ns
            }
            _ => false,
        };
        self.members.minus(self.running).iter().filter(may).count() as u8
    }

    /// A recovering replica that takes too long for a boundary that was decided long ago: measured by what the
    /// quorum had needed there.
    pub(crate) fn behind_history(&self, r: ReplicaId, now_ns: u64) -> Option<StopReason> {
        let replica = self.replicas.get(usize::from(r.0))?;
        let need_ns = self.history.as_ref()?.need_ns(replica.next)?;
        let late_ns = now_ns.saturating_sub(replica.since_ns);
        let allowed_ns = self.config.lag_allowance(need_ns);
        (late_ns > allowed_ns).then_some(StopReason::Lagging {
            boundary: replica.next,
            late_ns,
            allowed_ns,
            repeatedly: false,
        })
    }
}
