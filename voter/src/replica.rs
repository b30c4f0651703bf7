//! What is known about each replica, and what is told about it.

use serde::{Deserialize, Serialize};

use crate::ids::ReplicaId;
use crate::pace::Debt;
use crate::verdict::{NoMajority, StopReason, Verdict};

use crate::ids::Channel;

/// What a replica that has cast a ballot may do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<E> {
    /// Deliver this entry and run on to the next boundary. Asking again before the next ballot gives it again.
    Deliver(E),
    /// Nobody has written the entry yet. When the replica's wait condition is met, write it with
    /// [`crate::Lockstep::lead`]; until then ask again whenever something changed, since another replica may be first.
    Lead,
    /// Wait: the replica is a window ahead of the slowest, or too many bytes are stored (R10). Ask again
    /// whenever something changed.
    WindowFull,
    /// The replica is stopped. Its thread can go, or bring it back with [`crate::Lockstep::rejoin`].
    Stopped(StopReason),
    /// The set is without a majority: wait, and ask again whenever something changed. In a set that is not
    /// recoverable nothing more happens. (Also the answer before the first ballot.)
    Held,
}

/// What happened, in order. Bounded: the releases by back-pressure (see [`crate::Lockstep::poll_event`]), all else by
/// the number of replicas and of the times that they come back (R10).
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
    /// A replica does not run any more, or has failed while it recovered.
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
    /// The set is without a majority: nothing is released from here on (R5). In a recoverable set that lasts until
    /// [`Event::Majority`]; it may be said again when the cause changes.
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
    /// It does not. Where replicas crash at the same boundary again and again, the fault lies in the program.
    Stopped {
        /// The boundary that it was to cast next.
        boundary: u64,
        /// Why.
        reason: StopReason,
    },
}

/// Where a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// On its way to the next boundary.
    Computing,
    /// At a boundary, its ballot cast, the entry not taken.
    Standing {
        /// It was asked to lead: so it may add one entry, even if the window has filled up since.
        asked: bool,
    },
}

/// Whether a replica takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// No replica has this number.
    Absent,
    /// It votes.
    Running,
    /// It catches up.
    Recovering(Chase),
    Stopped {
        reason: StopReason,
        at_ns: u64,
    },
}

/// How a recovering replica comes nearer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chase {
    /// Boundaries that it has cast since it was promoted.
    pub(crate) kept_pace: u64,
    /// Where the frontier was when this lap began.
    pub(crate) goal: u64,
    /// How far it was away then.
    pub(crate) distance: u64,
    pub(crate) leash: Option<Leash>,
}

/// Keeps those who vote from running away from a recovering replica that is not faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leash {
    /// Where the fastest was when it was put on.
    pub(crate) fastest: u64,
    /// Where the recovering replica was.
    pub(crate) next: u64,
}

#[derive(Debug)]
pub(crate) struct Replica {
    /// The boundary that it casts next.
    pub(crate) next: u64,
    pub(crate) phase: Phase,
    /// Since when it has been able to run towards `next`. Means nothing while it waits.
    pub(crate) since_ns: u64,
    pub(crate) debt: Debt,
    pub(crate) life: Life,
    pub(crate) led: u64,
}

impl Replica {
    pub(crate) fn new(life: Life) -> Self {
        Self {
            next: 0,
            phase: Phase::Computing,
            since_ns: 0,
            debt: Debt::default(),
            life,
            led: 0,
        }
    }

    pub(crate) fn stopped(&self) -> Option<&StopReason> {
        match &self.life {
            Life::Stopped { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// Begins to stand at a boundary.
    pub(crate) fn stands(&mut self, next: u64, now_ns: u64) {
        self.next = next;
        self.phase = Phase::Standing { asked: false };
        self.since_ns = now_ns;
    }
}
