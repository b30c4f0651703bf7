//! Acting on votes (R5): who is stopped, what is released, and when the set has a majority.

use crate::ballot::Output;
use crate::ids::ReplicaId;
use crate::lockstep::{Lockstep, release_cost};
use crate::replica::{Event, Life, Phase};
use crate::verdict::{NoMajority, NoMajorityCause, StopReason, Verdict};
use crate::voter::Decision;

impl<E: Clone> Lockstep<E> {
    /// Stops a replica. The caller settles afterwards.
    pub(crate) fn stop(&mut self, r: ReplicaId, reason: StopReason) {
        let Some(replica) = self.replicas.get_mut(usize::from(r.0)) else {
            return;
        };
        if matches!(replica.life, Life::Absent | Life::Stopped { .. }) {
            return;
        }
        replica.life = Life::Stopped {
            reason: reason.clone(),
            at_ns: self.now_ns.unwrap_or(0),
        };
        let voted = self.running.contains(r);
        self.running = self.running.without(r);
        self.recovering = self.recovering.without(r);
        self.promoted = self.promoted.without(r);
        // If others waited for this one, they do no longer; if for another, they will say so again.
        self.held_since_ns = None;
        self.voter.forget(r);
        self.events.push_back(Event::Stopped { replica: r, reason });
        if !voted || self.outcome.is_some() {
            return;
        }
        let (healthy, quorum) = (self.running.len(), self.config.quorum());
        if healthy < quorum {
            self.no_majority(NoMajorityCause::TooFew);
        } else if healthy < self.members.len() {
            self.events.push_back(Event::Degraded { healthy, quorum });
        }
    }

    fn outvote(&mut self, verdict: Verdict) {
        self.events.push_back(Event::Verdict(verdict.clone()));
        self.stop(verdict.replica, StopReason::Outvoted(verdict));
    }

    /// A ballot that came after its boundary was decided, and is not what was released.
    pub(crate) fn outvote_late(&mut self, verdict: Verdict) {
        self.outvote(verdict);
        self.settle(None);
    }

    /// R5: from here on nothing is released, until a quorum runs again. What is stored stays, for the vote of a
    /// replica that comes back.
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

    /// A quorum runs and can decide: if there was none, the set goes on.
    fn majority(&mut self) {
        if self.outcome.take().is_none() {
            return;
        }
        self.held_since_ns = None;
        // Who had to wait can run from now on.
        let now_ns = self.now_ns.unwrap_or(0);
        for replica in &mut self.replicas {
            if replica.phase != Phase::Computing {
                replica.since_ns = now_ns;
            }
        }
        self.events.push_back(Event::Majority {
            boundary: self.voter.frontier(),
        });
    }

    /// Decides boundaries as long as that is possible, then drops what nobody needs any more.
    pub(crate) fn settle(&mut self, mut spare: Option<Vec<Output>>) {
        while !self.over() && self.running.len() >= self.config.quorum() {
            match self.voter.decide(self.running, self.paced(), spare.take()) {
                Decision::Open => {
                    self.majority();
                    break;
                }
                Decision::Split {
                    cause,
                    within_reach,
                } => {
                    if self.contested(cause, within_reach) {
                        break;
                    }
                }
                Decision::Agreed {
                    boundary,
                    need_ns,
                    release,
                    outvoted,
                } => {
                    self.majority();
                    if let Some(history) = &mut self.history {
                        history.push(history.digest_of(boundary, &release), need_ns);
                    }
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

    /// R5: of those who run, no quorum can agree at the frontier. Whoever recovers, or may be about to, still has a
    /// vote there: if that can decide, the set waits for it. Otherwise nobody can ever say who is wrong, and all who
    /// voted begin again, from a time before they differed. Says whether that is all for now.
    fn contested(&mut self, cause: NoMajorityCause, within_reach: u8) -> bool {
        let same = |before: &NoMajority| {
            std::mem::discriminant(&before.cause) == std::mem::discriminant(&cause)
        };
        if !self.outcome.as_ref().is_some_and(same) {
            self.no_majority(cause);
        }
        if self.history.is_none() || within_reach + self.may_come_back() >= self.config.quorum() {
            return true;
        }
        self.dispute();
        false
    }

    /// Who has cast the frontier must begin again.
    pub(crate) fn dispute(&mut self) {
        let boundary = self.voter.frontier();
        let cast = self.voter.slot(boundary).map(|slot| slot.cast());
        for r in cast.unwrap_or_default().and(self.running).iter() {
            self.stop(r, StopReason::Disputed { boundary });
        }
    }

    pub(crate) fn trim(&mut self) {
        let mut needed = 0;
        if let Some(slowest) = self.slowest() {
            self.voter.trim(slowest);
            // The entry that took a replica to where it computes now can still be asked for; and what is not
            // decided may have to be voted again by those who come back.
            needed = slowest.min(self.voter.frontier()).saturating_sub(1);
        }
        let keep = self.keep(needed);
        self.journal.trim(needed, keep);
        if let Some(history) = &mut self.history {
            history.trim(self.journal.base());
        }
    }
}
