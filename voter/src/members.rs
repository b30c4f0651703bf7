//! Who is in the set. The quorum is always that of the present members (R2), and changes between two decisions.
//!
//! A boundary cannot be decided twice by that, since only the frontier can be decided and it never goes back; nor
//! never, since whoever joins votes from the frontier on, and after a removal the votes that are there are counted
//! anew.

use crate::errors::MemberError;
use crate::ids::{MAX_REPLICAS, ReplicaId, ReplicaSet};
use crate::lockstep::Lockstep;
use crate::replica::{Event, Life, Replica};
use crate::verdict::StopReason;

impl<E: Clone> Lockstep<E> {
    /// Announces a new member. It is stopped ([`StopReason::Joining`]) until it [`rejoin`](Self::rejoin)s, recovers like
    /// any other, and counts, for the quorum too, from [`Event::Recovered`] on. Until then it can be stopped
    /// and rejoin again, or be removed.
    ///
    /// # Errors
    /// When it cannot be added; nothing has changed then.
    pub fn add(&mut self, r: ReplicaId, now_ns: u64) -> Result<(), MemberError> {
        let now_ns = self.told(now_ns);
        if self.history.is_none() {
            return Err(MemberError::NotRecoverable);
        }
        if usize::from(r.0) >= MAX_REPLICAS {
            return Err(MemberError::UnknownReplica(r));
        }
        if self.members.or(self.joining).contains(r) {
            return Err(MemberError::AlreadyMember(r));
        }
        self.replicas[usize::from(r.0)] = Replica::new(Life::Stopped {
            reason: StopReason::Joining,
            at_ns: now_ns,
        });
        self.joining = self.joining.with(r);
        Ok(())
    }

    /// Takes a member, or one that is joining, out of the set: the quorum is that of the rest, and what has one now is
    /// released.
    ///
    /// # Errors
    /// When it cannot be spared; nothing has changed then.
    pub fn remove(&mut self, r: ReplicaId, now_ns: u64) -> Result<(), MemberError> {
        let now_ns = self.told(now_ns);
        if !self.members.or(self.joining).contains(r) {
            return Err(MemberError::NotMember(r));
        }
        let (members, running) = (self.members.without(r), self.running.without(r).len());
        if members.is_empty() {
            return Err(MemberError::Last(r));
        }
        let quorum = members.len() / 2 + 1;
        if self.members.contains(r) && running < quorum {
            return Err(MemberError::NoQuorum {
                replica: r,
                running,
                quorum,
            });
        }
        self.joining = self.joining.without(r);
        if members != self.members {
            self.set_members(members);
        }
        self.stop(r, StopReason::Removed);
        // Of one that was stopped before, only the reason is new.
        if let Some(replica) = self.replicas.get_mut(usize::from(r.0)) {
            replica.life = Life::Stopped {
                reason: StopReason::Removed,
                at_ns: now_ns,
            };
        }
        self.settle(None);
        Ok(())
    }

    pub(crate) fn set_members(&mut self, members: ReplicaSet) {
        self.members = members;
        self.config.replicas = members.len();
        self.voter.set_quorum(self.config.quorum());
        self.events.push_back(Event::Membership {
            replicas: self.config.replicas,
            quorum: self.config.quorum(),
        });
    }
}
