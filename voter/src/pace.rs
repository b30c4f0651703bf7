//! Who is late. Time is what the caller says it is.
//!
//! A replica's time for a boundary counts from when it was able to run towards it: its entry was there and the
//! window let it on. So a replica that merely waits is never late, and a thread that hangs before it fetches
//! its entry is.

use crate::config::{Config, STALL_FACTOR};
use crate::ids::{MAX_REPLICAS, ReplicaId, ReplicaSet};
use crate::lockstep::Lockstep;
use crate::verdict::{NoMajorityCause, StopReason};

/// When a replica cast, and how long it had needed.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    replica: u8,
    at_ns: u64,
    need_ns: u64,
}

/// The casts of one boundary, in order of time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    marks: [Mark; MAX_REPLICAS],
    len: usize,
}

/// When a set of replicas had reached a boundary, and the longest that one of them needed. The longest, since
/// a quorum has at least one honest member, and a faulty one must not make others look late by
/// needing no time at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) at_ns: u64,
    pub(crate) need_ns: u64,
}

impl Marks {
    pub(crate) fn add(&mut self, r: ReplicaId, at_ns: u64, need_ns: u64) {
        // A decided boundary may have its mark from before it was stopped; that one counts. So there is always room.
        if self.marks[..self.len]
            .iter()
            .any(|mark| mark.replica == r.0)
        {
            return;
        }
        if let Some(mark) = self.marks.get_mut(self.len) {
            *mark = Mark {
                replica: r.0,
                at_ns,
                need_ns,
            };
            self.len += 1;
        }
    }

    /// Takes back what `r` cast.
    pub(crate) fn remove(&mut self, r: ReplicaId) {
        let is = |mark: &Mark| mark.replica == r.0;
        if let Some(at) = self.marks[..self.len].iter().position(is) {
            self.marks.copy_within(at + 1..self.len, at);
            self.len -= 1;
        }
    }

    /// When the first `count` replicas among `of` had cast; `None` while there are fewer.
    pub(crate) fn reached(&self, count: u8, of: ReplicaSet) -> Option<Reached> {
        let mut found = 0;
        let mut need_ns = 0;
        for mark in self.marks.iter().take(self.len) {
            if of.contains(ReplicaId(mark.replica)) {
                need_ns = need_ns.max(mark.need_ns);
                found += 1;
                if found == count {
                    return Some(Reached {
                        at_ns: mark.at_ns,
                        need_ns,
                    });
                }
            }
        }
        None
    }

    /// As [`Self::reached`] for every replica among `of` that has cast: time of the first, longest need of all.
    pub(crate) fn begun(&self, of: ReplicaSet) -> Option<Reached> {
        let mut casts = self.marks[..self.len]
            .iter()
            .filter(|mark| of.contains(ReplicaId(mark.replica)));
        let first = casts.next()?;
        let need_ns = casts.map(|mark| mark.need_ns).max().unwrap_or(0);
        Some(Reached {
            at_ns: first.at_ns,
            need_ns: need_ns.max(first.need_ns),
        })
    }
}

impl Config {
    /// How much longer a replica may need when a quorum needed `need_ns`.
    pub(crate) fn factored(&self, need_ns: u64) -> u64 {
        need_ns.saturating_mul(u64::from(self.lag_factor))
    }

    /// How long after a quorum a replica may reach a boundary.
    pub(crate) fn lag_allowance(&self, need_ns: u64) -> u64 {
        self.lag_timeout_ns.saturating_add(self.factored(need_ns))
    }

    /// How long after the first ballot a quorum may be missing when `came` replicas have cast.
    ///
    /// More than the set tolerates: one of them is honest, and the time it needed is a measure. Otherwise they may
    /// all be faulty, such as a replica that diverged and skips what the others still compute. That is weak
    /// evidence and takes [`STALL_FACTOR`] timeouts. Known limit: a guest that computes for longer
    /// than that between two boundaries can lose its set to a single replica that does not.
    pub(crate) fn stall_allowance(&self, came: u8, need_ns: u64) -> u64 {
        if came > self.tolerated() {
            return self.lag_allowance(need_ns);
        }
        self.lag_timeout_ns
            .saturating_mul(STALL_FACTOR)
            .saturating_add(self.factored(need_ns))
    }
}

/// For how long a replica has held others up, drained over time: one that is up to `lag_factor` times as slow as
/// the others stays near zero, one that feeds its ballots drop by drop fills up and is stopped. Without
/// this a compromised replica could slow the set to one boundary per timeout for ever (R9).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Debt {
    owed_ns: u64,
    as_of_ns: u64,
}

impl Debt {
    /// What is owed at `now_ns`: of a stretch of time, `factor / (factor + 1)` may be spent holding others up.
    pub(crate) fn at(&self, now_ns: u64, factor: u32) -> u64 {
        let elapsed = u128::from(now_ns.saturating_sub(self.as_of_ns));
        let factor = u128::from(factor);
        let drained = elapsed * factor / (factor + 1);
        u64::try_from(u128::from(self.owed_ns).saturating_sub(drained)).unwrap_or(0)
    }

    /// Charges `held_ns` that has just passed.
    pub(crate) fn charge(&mut self, held_ns: u64, now_ns: u64, factor: u32) {
        self.owed_ns = self.at(now_ns, factor).saturating_add(held_ns);
        self.as_of_ns = now_ns;
    }
}

impl<E: Clone> Lockstep<E> {
    /// Finds laggards; call it regularly (about every 100 ms). A replica is stopped when it is late behind a quorum, or,
    /// while it recovers, behind what a quorum had needed. Where there is no quorum to be behind, and the set
    /// cannot get one without those that are late, the set is without a majority, since nobody can
    /// tell who is wrong; in a recoverable set the late ones must recover then.
    ///
    /// The voter believes the time it is told: a caller whose process was suspended must not let `now_ns` jump.
    pub fn tick(&mut self, now_ns: u64) {
        let now_ns = self.told(now_ns);
        for r in self.running.or(self.recovering).iter() {
            if self.over() {
                return;
            }
            if self.waits(r) {
                self.replicas[usize::from(r.0)].since_ns = now_ns;
                continue;
            }
            let late = if self.recovering.contains(r) {
                self.behind_history(r, now_ns)
            } else if self.running.contains(r) {
                self.behind_quorum(r, now_ns)
                    .or_else(|| self.holds_up(r, now_ns))
            } else {
                None
            };
            if let Some(reason) = late {
                self.stop(r, reason);
                self.settle(None);
            }
        }
        if self.over() {
            return;
        }
        self.give_up_if_stalled(now_ns);
        if self.outcome.is_some() {
            // A vote that could have decided may not come any more.
            self.settle(None);
        }
    }

    /// When a quorum without `r` had reached the boundary that `r` casts next. `None` if none has: then `r` is not to
    /// blame for anything, and stopping it could cost the set its majority.
    fn quorum_ahead(&self, r: ReplicaId) -> Option<Reached> {
        let next = self.replicas.get(usize::from(r.0))?.next;
        let slot = self.voter.slot(next)?;
        let reached = slot.marks.reached(self.config.quorum(), self.running);
        // Of those who decided some may be stopped since, and the quorum may have been another one.
        reached.or(slot.decided)
    }

    /// Late at one boundary.
    fn behind_quorum(&self, r: ReplicaId, now_ns: u64) -> Option<StopReason> {
        let replica = self.replicas.get(usize::from(r.0))?;
        let reached = self.quorum_ahead(r)?;
        let late_ns = now_ns.saturating_sub(reached.at_ns.max(replica.since_ns));
        let allowed_ns = self.config.lag_allowance(reached.need_ns);
        (late_ns > allowed_ns).then_some(StopReason::Lagging {
            boundary: replica.next,
            late_ns,
            allowed_ns,
            repeatedly: false,
        })
    }

    /// How long `r` has now been holding others up at its next boundary, beyond what it may need for it.
    fn held_up_ns(&self, r: ReplicaId, slowest: Option<u64>, now_ns: u64) -> u64 {
        let held = || {
            let replica = self.replicas.get(usize::from(r.0))?;
            let since_ns = self
                .held_since_ns
                .filter(|_| slowest == Some(replica.next))?;
            let reached = self.quorum_ahead(r)?;
            let start_ns = since_ns.max(reached.at_ns).max(replica.since_ns);
            let held_ns = now_ns.saturating_sub(start_ns);
            Some(held_ns.saturating_sub(self.config.factored(reached.need_ns)))
        };
        held().unwrap_or(0)
    }

    /// Called when `r` casts, before it is counted: charges it, and ends the hold if it was the last to come.
    pub(crate) fn charge_for_holding_up(
        &mut self,
        r: ReplicaId,
        slowest: Option<u64>,
        now_ns: u64,
    ) {
        if self.held_since_ns.is_none() {
            return;
        }
        // Nobody owes what it needed to catch up.
        let held_ns = match self.running.contains(r) {
            true => self.held_up_ns(r, slowest, now_ns),
            false => 0,
        };
        let factor = self.config.lag_factor;
        let mut at_slowest = 0;
        for replica in self.paced().iter() {
            if let Some(replica) = self.replicas.get(usize::from(replica.0)) {
                at_slowest += u8::from(slowest == Some(replica.next));
            }
        }
        let Some(replica) = self.replicas.get_mut(usize::from(r.0)) else {
            return;
        };
        if held_ns > 0 {
            replica.debt.charge(held_ns, now_ns, factor);
        }
        if slowest == Some(replica.next) && at_slowest == 1 {
            self.held_since_ns = None;
        }
    }

    /// Has held others up again and again. Only said while a quorum is left without it.
    fn holds_up(&self, r: ReplicaId, now_ns: u64) -> Option<StopReason> {
        let replica = self.replicas.get(usize::from(r.0))?;
        if self.running.len() <= self.config.quorum() {
            return None;
        }
        let owed_ns = replica.debt.at(now_ns, self.config.lag_factor);
        let late_ns = owed_ns.saturating_add(self.held_up_ns(r, self.slowest(), now_ns));
        let allowed_ns = self.config.lag_timeout_ns;
        (owed_ns > 0 && late_ns > allowed_ns).then_some(StopReason::Lagging {
            boundary: replica.next,
            late_ns,
            allowed_ns,
            repeatedly: true,
        })
    }

    /// Ends the majority when some have cast the oldest undecided boundary, not enough, and without those who are late
    /// no quorum is left. In a recoverable set the late ones are stopped then, and those who are late on their
    /// way back to that boundary in any case; and when that has happened there before, those who came too.
    fn give_up_if_stalled(&mut self, now_ns: u64) {
        let frontier = self.voter.frontier();
        let quorum = self.config.quorum();
        let Some(slot) = self.voter.slot(frontier) else {
            return;
        };
        let cast = slot.cast().and(self.running);
        let Some(begun) = slot.marks.begun(cast) else {
            return;
        };
        let allowed_ns = self.config.stall_allowance(cast.len(), begun.need_ns);
        let late_ns = |r: ReplicaId| {
            let replica = &self.replicas[usize::from(r.0)];
            let since_ns = begun.at_ns.max(replica.since_ns);
            let late_ns = now_ns.saturating_sub(since_ns);
            let late = replica.next == frontier && !self.waits(r) && late_ns > allowed_ns;
            late.then_some((r, late_ns))
        };
        let mut late: Vec<(ReplicaId, u64)> = self.recovering.iter().filter_map(late_ns).collect();
        let laggards: Vec<(ReplicaId, u64)> = self
            .running
            .minus(cast)
            .iter()
            .filter_map(late_ns)
            .collect();
        let left = usize::from(self.running.len()) - laggards.len();
        if cast.len() < quorum && left < usize::from(quorum) {
            if self.outcome.is_none() {
                self.no_majority(NoMajorityCause::Stalled {
                    cast: cast.to_vec(),
                    laggards: laggards.iter().map(|(r, _)| *r).collect(),
                    waited_ns: now_ns.saturating_sub(begun.at_ns),
                });
            }
            late.extend(laggards);
        }
        if self.history.is_none() || late.is_empty() {
            return;
        }
        for (r, late_ns) in late {
            self.stop(
                r,
                StopReason::Lagging {
                    boundary: frontier,
                    late_ns,
                    allowed_ns,
                    repeatedly: false,
                },
            );
        }
        // Again, at the same boundary: then those who came may be the ones who are wrong, and skip what the others
        // compute. They have to repeat it too.
        if self.stalled_at.replace(frontier) == Some(frontier) {
            self.stalled_at = None;
            self.dispute();
        }
        self.settle(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: [ReplicaId; 3] = [ReplicaId(0), ReplicaId(1), ReplicaId(2)];

    #[test]
    fn a_boundary_is_reached_when_enough_of_the_running_have_cast() {
        let mut marks = Marks::default();
        marks.add(R[2], 10, 9);
        marks.add(R[0], 20, 3);
        marks.add(R[1], 30, 50);
        let all = ReplicaSet::first(3);
        let at = |at_ns, need_ns| Some(Reached { at_ns, need_ns });
        assert_eq!(marks.reached(2, all), at(20, 9));
        assert_eq!(marks.reached(2, all.without(R[0])), at(30, 50));
        assert_eq!(marks.reached(3, all.without(R[0])), None);
        assert_eq!(marks.begun(all), at(10, 50));
        assert_eq!(marks.begun(all.without(R[2])), at(20, 50));
        assert_eq!(marks.begun(ReplicaSet::default()), None);
    }

    #[test]
    fn debt_of_an_honest_slow_replica_stays_low_and_of_a_dripping_one_grows() {
        // Factor 3: three quarters of the time may be held up.
        let (mut slow, mut drip) = (Debt::default(), Debt::default());
        for i in 1..=1000 {
            slow.charge(70, i * 100, 3);
            drip.charge(100, i * 100, 3);
        }
        assert_eq!(slow.at(100_000, 3), 70);
        assert!(drip.at(100_000, 3) > 20_000);
        assert_eq!(drip.at(u64::MAX, 3), 0);
    }
}
