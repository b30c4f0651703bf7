//! What an executor does so that replicas come back: checkpoints, restarts, members; and what goes wrong with them.

use quorate_voter::{
    MAX_REPLICAS, MemberError, Rejoin, RejoinError, ReplicaId, ReplicaState, StopReason,
};

use crate::oracle::Check;
use crate::plan::{Fault, Plan, Recovery, TARGET};
use crate::world::{Thread, World};

/// Checkpoints that are kept of each replica.
const KEPT: usize = 3;
/// Boundaries after which a fault that did not stop its replica is over.
const LASTS: u64 = 10;

impl World {
    /// The faults are over, and all members vote and go on.
    pub fn full_strength(&self) -> bool {
        let over = self
            .left
            .is_some_and(|left| left.strikes == 0 && left.churn == 0);
        over && !self.oracle.ended
            && (0..MAX_REPLICAS).all(|r| {
                let guest = &self.guests[r];
                let fine = self.oracle.running[r]
                    && guest.next >= TARGET
                    && guest.thread != Thread::Hung
                    && guest.fault.is_none_or(|(at, _)| at == u64::MAX);
                fine || (!self.oracle.members[r] && guest.thread == Thread::Gone)
            })
    }

    /// How many members cannot be relied on.
    fn faulty(&self) -> usize {
        let good = |r: &usize| self.oracle.running[*r] && self.oracle.honest[*r];
        (0..MAX_REPLICAS)
            .filter(|r| self.oracle.members[*r] && !good(r))
            .count()
    }

    fn members(&self) -> usize {
        self.oracle.members.iter().filter(|m| **m).count()
    }

    /// Something happens that is not a replica's own step.
    pub fn disturb(&mut self) -> Check {
        let Some(left) = self.left else {
            return Ok(());
        };
        if left.strikes > 0 && self.rng.one_in(left.rate) {
            self.left = self.left.map(|l| Recovery {
                strikes: l.strikes - 1,
                ..l
            });
            let count = match left.masked || self.rng.one_in(2) {
                true => 1,
                false => self.rng.between(1, self.members() as u64),
            };
            let together = self.rng.one_in(2);
            for _ in 0..count {
                self.strike(together);
            }
        }
        if left.churn > 0 && self.rng.one_in(left.rate) {
            self.left = self.left.map(|l| Recovery {
                churn: l.churn - 1,
                ..l
            });
            self.churn()?;
            self.check()?;
        }
        if left.forget && self.rng.one_in(20) {
            let active = (0..MAX_REPLICAS).filter(|r| self.guests[*r].thread != Thread::Gone);
            let oldest = active
                .map(|r| self.guests[r].vault.first().map_or(0, |c| c.0))
                .min();
            // Sometimes more than that: then there is nothing for it but another's state.
            let keep = match self.rng.one_in(8) {
                true => u64::MAX,
                false => oldest.unwrap_or(0),
            };
            self.lockstep.keep_from(keep);
        }
        Ok(())
    }

    /// A fault of one replica, from about now on.
    fn strike(&mut self, together: bool) {
        let masked = self.oracle.masked;
        let spare = self.members() - self.oracle.quorum > self.faulty();
        let able: Vec<usize> = (0..MAX_REPLICAS)
            .filter(|r| self.oracle.is_active(*r) && self.guests[*r].fault.is_none())
            .filter(|r| self.guests[*r].thread != Thread::Hung)
            .filter(|r| {
                let counted =
                    self.oracle.members[*r] && !(self.oracle.running[*r] && self.oracle.honest[*r]);
                !masked || counted || (spare && self.oracle.members[*r])
            })
            .collect();
        if able.is_empty() {
            return;
        }
        let r = self.rng.pick(&able);
        let others = (0..MAX_REPLICAS).filter(|o| {
            let hangs = matches!(self.guests[*o].fault, Some((_, Fault::Hang(_))));
            *o != r && self.oracle.members[*o] && self.guests[*o].thread != Thread::Hung && !hangs
        });
        let alone = others.count() == 0;
        let fault = Plan::transient(&mut self.rng, masked, alone);
        let within = if together { 1 } else { 4 };
        let at = self.guests[r].next + self.rng.below(within);
        self.say(|| format!("replica {r} is struck: {fault:?} at {at}"));
        self.oracle.honest[r] = false;
        self.guests[r].fault = Some((at, fault));
    }

    /// A fault that has not stopped its replica does not last.
    pub fn expire(&mut self, r: usize) {
        let guest = &mut self.guests[r];
        if self.plan.recovery.is_some()
            && guest
                .fault
                .is_some_and(|(at, _)| at != u64::MAX && guest.next > at + LASTS)
        {
            guest.fault = None;
        }
    }

    /// A replica that stands saves its state now and then.
    pub fn checkpoint(&mut self, r: usize) {
        let Some(left) = self.left else {
            return;
        };
        let guest = &mut self.guests[r];
        let at = guest.next - 1;
        if self.rng.one_in(left.checkpoints) && guest.vault.last().is_none_or(|last| last.0 < at) {
            guest.vault.push((at, guest.state));
            if guest.vault.len() > KEPT {
                guest.vault.remove(0);
            }
        }
    }

    /// The thread of a stopped replica has heard of it.
    pub fn down(&mut self, r: usize) {
        let removed = matches!(
            self.lockstep.state(ReplicaId(r as u8)),
            ReplicaState::Stopped {
                reason: StopReason::Removed,
                ..
            }
        );
        let guest = &mut self.guests[r];
        guest.thread = Thread::Gone;
        if let Some(left) = self.left
            && !removed
        {
            guest.thread = Thread::Down;
            guest.ready_ns = self.now_ns + self.rng.below(left.delay_ns);
        }
    }

    /// Who hangs is brought down when its replica is stopped.
    pub fn find_stopped(&mut self) {
        for r in 0..self.guests.len() {
            let state = self.lockstep.state(ReplicaId(r as u8));
            if self.left.is_some()
                && self.guests[r].thread == Thread::Hung
                && matches!(state, ReplicaState::Stopped { .. })
            {
                self.down(r);
            }
            // Once it has caught up with the right state it is as good as new; before, it is not blamed either.
            if self.left.is_some()
                && matches!(state, ReplicaState::Running { .. })
                && self.guests[r].fault.is_none()
            {
                self.guests[r].attempts = 0;
            }
        }
    }

    /// A stopped replica begins again: from its last checkpoint, then from older ones, then from the beginning, and
    /// where that is gone from another's state.
    pub fn revive(&mut self, r: usize) -> Check {
        let id = ReplicaId(r as u8);
        let (from, frontier) = (
            self.lockstep.history().from,
            self.oracle.decided.len() as u64,
        );
        let usable = |c: &&(u64, u64)| c.0 < frontier;
        let guest = &self.guests[r];
        let own: Vec<(u64, u64)> = guest.vault.iter().filter(usable).rev().copied().collect();
        let pick = guest.attempts + usize::from(self.rng.one_in(4));
        let mut how = match own.get(pick) {
            Some((at, state)) => (Rejoin::At(*at), *state),
            None => (Rejoin::Start, self.oracle.truth.state(0).unwrap_or(0)),
        };
        let impossible = match self.rng.below(12) {
            0 => Some(Rejoin::At(frontier + self.rng.below(3))),
            1 if from > 0 => Some(Rejoin::At(self.rng.below(from))),
            _ => None,
        };
        if let Some(impossible) = impossible {
            let refused = self.lockstep.rejoin(id, impossible, self.now_ns);
            if !matches!(
                refused,
                Err(RejoinError::NotDecided { .. } | RejoinError::Gone { .. })
            ) {
                return Err(format!("R7: {id} rejoins: {impossible:?}: {refused:?}"));
            }
        }
        let mut rejoined = self.lockstep.rejoin(id, how.0, self.now_ns);
        if rejoined
            == Err(RejoinError::Gone {
                wanted: rejoin_at(how.0),
                from,
            })
        {
            self.oracle.coverage.gone += 1;
            // There is always a state to clone where there is history.
            let at = from + self.rng.below(frontier - from);
            let state = self.oracle.truth.state(at).ok_or("no state to clone")?;
            how = (Rejoin::At(at), state);
            rejoined = self.lockstep.rejoin(id, how.0, self.now_ns);
        }
        self.say(|| {
            format!(
                "{id} rejoins {:?} of {from}..{frontier}: {rejoined:?}",
                how.0
            )
        });
        rejoined.map_err(|e| format!("liveness: {id} cannot rejoin: {e}"))?;
        self.oracle.rejoined(r);
        let mut state = how.1;
        let mut spare = self.left.map_or(0, |left| left.corrupt);
        // One who joins does not count as faulty yet.
        if spare > 0 && self.rng.one_in(3) && self.oracle.members[r] {
            spare -= 1;
            state ^= 1 + self.rng.below(1000);
        }
        self.left = self.left.map(|left| Recovery {
            corrupt: spare,
            ..left
        });
        let guest = &mut self.guests[r];
        guest.attempts += 1;
        guest.fault = None;
        guest.state = state;
        guest
            .vault
            .retain(|c| how.0 != Rejoin::Start && c.0 <= rejoin_at(how.0));
        match how.0 {
            Rejoin::Start => {
                self.oracle.coverage.fresh += 1;
                guest.next = 0;
                guest.thread = Thread::Computing;
            }
            Rejoin::At(at) => {
                guest.next = at + 1;
                guest.thread = Thread::Standing;
            }
        }
        self.oracle.honest[r] = self.oracle.truth.state(rejoin_at(how.0)) == Some(state);
        self.again(r, 100);
        Ok(())
    }

    /// Somebody is added, or removed.
    fn churn(&mut self) -> Check {
        let r = self.rng.below(MAX_REPLICAS as u64) as usize;
        let id = ReplicaId(r as u8);
        let known = self.oracle.members[r] || self.guests[r].thread != Thread::Gone;
        if self.rng.one_in(2) {
            let added = self.lockstep.add(id, self.now_ns);
            self.say(|| format!("{id} is added: {added:?}"));
            match added {
                Ok(()) if !self.oracle.members[r] && self.guests[r].thread == Thread::Gone => {
                    self.guests[r].vault.clear();
                    self.guests[r].attempts = 0;
                    self.down(r);
                }
                Ok(()) if !self.oracle.members[r] => {
                    // Its thread has not heard yet that it was removed: it will begin again.
                    self.guests[r].vault.clear();
                }
                Err(MemberError::AlreadyMember(_)) if known => {}
                other => return Err(format!("add: {other:?}")),
            }
            return Ok(());
        }
        let members = self.members();
        let counted = self.oracle.members[r] && !(self.oracle.running[r] && self.oracle.honest[r]);
        let faulty = self.faulty() - usize::from(counted);
        let smaller = members - usize::from(self.oracle.members[r]);
        // What is left must still mask the others' faults, and be able to tell.
        let masks = smaller >= smaller / 2 + 1 + faulty;
        if smaller < 2 || (self.oracle.masked && !masks) {
            return Ok(());
        }
        let removed = self.lockstep.remove(id, self.now_ns);
        self.say(|| format!("{id} is removed: {removed:?}"));
        match removed {
            Ok(()) if known => {
                self.oracle.taken_out(r);
                if matches!(self.guests[r].thread, Thread::Hung | Thread::Down) {
                    self.guests[r].thread = Thread::Gone;
                }
            }
            Err(MemberError::NotMember(_)) => {}
            Err(MemberError::NoQuorum { .. }) if !self.oracle.masked => {}
            other => return Err(format!("remove: {other:?}")),
        }
        Ok(())
    }
}

fn rejoin_at(how: Rejoin) -> u64 {
    match how {
        Rejoin::Start => 0,
        Rejoin::At(at) => at,
    }
}
