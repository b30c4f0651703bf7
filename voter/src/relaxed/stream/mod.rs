//! One connection's stream from the guests to its client.

mod bytes;
mod core;
mod differ;
mod history;
mod judge;

use crate::ids::ReplicaId;
use crate::relaxed::difference::{Difference, Undecided};
use crate::relaxed::mask::MaskSet;
use crate::relaxed::voters::Voters;

pub(crate) use core::Core;
pub use history::{DIGEST_STEP, DIGESTS_KEPT};

use thiserror::Error;

/// Bounds of one connection (R10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamLimits {
    /// Bytes that a replica may be ahead of what the client's side has taken. At the bound [`StreamMatcher::push`]
    /// takes no more of it.
    pub unconfirmed: usize,
    /// Released bytes kept for replicas that are behind. What is older is kept as digests, up to [`DIGESTS_KEPT`]
    /// of them; replicas that are further behind than that are not compared there, and the bytes are counted.
    pub retained: usize,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            unconfirmed: 1 << 20,
            retained: 256 << 10,
        }
    }
}

/// How a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOfStream {
    /// The guest has nothing more to send.
    Shut,
    /// The guest broke the connection.
    Reset,
    /// The guest did not accept the connection.
    Refused,
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Bytes taken, from the first on. The rest must be pushed again when something was taken from the matcher.
    pub bytes: usize,
    /// There is something new to fetch: released bytes, an end, or differences.
    pub news: bool,
}

/// The replica is [`StreamLimits::unconfirmed`] bytes ahead: it must wait until the others have come so far, and the
/// client has taken it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the replica is as far ahead as it may be on this connection")]
pub struct Full;

/// Numbers of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamStats {
    /// Bytes released.
    pub released: u64,
    /// Bytes of replicas behind the retained ones that could not be compared, since digests of that place are gone.
    pub unchecked: u64,
    /// Bytes and ends of replicas that are left out of this connection or had ended it.
    pub ignored: u64,
    /// Differences that were not kept because too many waited.
    pub differences_dropped: u64,
    /// Bytes held at present.
    pub held: usize,
}

/// Agrees on one connection's stream, position by position.
///
/// One copy of the bytes is kept, which the replica that is ahead extends and the others are compared with in place
/// (R2); only replicas that differ get copies of their own. What a quorum has said is released in order (R3).
#[derive(Clone, Debug)]
pub struct StreamMatcher {
    core: Core,
}

impl StreamMatcher {
    /// A new connection on which no replica has said anything.
    #[must_use]
    pub fn new(voters: &Voters, limits: StreamLimits, _mask: Option<&MaskSet>) -> Self {
        Self {
            core: Core::new(voters, limits),
        }
    }

    /// The same, with the caller's number for the connection, which differences carry.
    #[must_use]
    pub fn for_connection(mut self, connection: u64) -> Self {
        self.core.connection = connection;
        self
    }

    /// A replica goes on with `bytes`. What a replica says that is left out of this connection is taken and forgotten.
    ///
    /// # Errors
    /// [`Full`] if not one byte could be taken.
    pub fn push(&mut self, replica: ReplicaId, bytes: &[u8]) -> Result<Taken, Full> {
        self.core.push(replica, bytes)
    }

    /// A replica's stream ends where it is. A second end of the same stream is forgotten. True if there is something
    /// new to fetch.
    pub fn end(&mut self, replica: ReplicaId, how: EndOfStream) -> bool {
        self.core.end(replica, how)
    }

    /// Appends what was released since the last call; then tells the agreed end, once.
    pub fn take_released(&mut self, into: &mut Vec<u8>) -> Option<EndOfStream> {
        self.core.take_released(into)
    }

    /// A replica was stopped. What it has said still counts where it said it; the quorum does not shrink (R2).
    /// True if there is something new to fetch.
    pub fn leave(&mut self, replica: ReplicaId) -> bool {
        self.core.leave(replica, false)
    }

    /// The same, by a crash, which is reported as a [`Difference`] with the request it was about to answer.
    pub fn crashed(&mut self, replica: ReplicaId) -> bool {
        self.core.leave(replica, true)
    }

    /// A replica is back, with `position` bytes of output said; what it says from there on is compared with what was
    /// released (R7), and counts beyond that. What it said beyond `position` before it left is forgotten. A replica
    /// that comes back beyond what was released, at a place where it never was, is left out of this connection.
    pub fn enter(&mut self, replica: ReplicaId, position: u64) {
        self.core.enter(replica, position);
    }

    /// A replica is back as a copy of `source`: it has said what that one has, but counts only from there on.
    pub fn enter_like(&mut self, replica: ReplicaId, source: ReplicaId) {
        self.core.enter_like(replica, source);
    }

    /// A checkpoint of this replica was taken just now: digests will begin at its position too, so that nothing is left
    /// uncompared if it comes back there late.
    pub fn mark(&mut self, replica: ReplicaId) {
        self.core.mark(replica);
    }

    /// Bytes that a replica has said.
    #[must_use]
    pub fn position(&self, replica: ReplicaId) -> u64 {
        self.core.position(replica)
    }

    /// Bytes released so far.
    #[must_use]
    pub fn released(&self) -> u64 {
        self.core.released()
    }

    /// Bytes that were released and that a replica has not said yet.
    #[must_use]
    pub fn behind(&self, replica: ReplicaId) -> u64 {
        self.released().saturating_sub(self.position(replica))
    }

    /// Others have said more than what is released, and the release may depend on this replica, which has not.
    #[must_use]
    pub fn waits_for(&self, replica: ReplicaId) -> bool {
        self.core.waits_for(replica)
    }

    /// The replica takes part in this connection: it is running and has not differed.
    #[must_use]
    pub fn takes_part(&self, replica: ReplicaId) -> bool {
        self.core.takes_part(replica)
    }

    /// Patience with a replica is over on this connection: under [`crate::relaxed::Policy::Primary`] the primary's word is no longer
    /// held back for it. What it says later is still compared. Reported as a [`Difference`] if it owes an answer.
    /// True if there is something new to fetch.
    pub fn give_up_on(&mut self, replica: ReplicaId) -> bool {
        self.core.give_up_on(replica)
    }

    /// The client sent `bytes`, which begin at byte `position` of its stream: for reports.
    pub fn note_input(&mut self, position: u64, bytes: &[u8]) {
        self.core.note_input(position, bytes);
    }

    /// Replicas that departed from what was released, each once.
    pub fn differences(&mut self) -> Vec<Difference> {
        self.core.reports.take()
    }

    /// Whether nothing more can be released as things are, and who said what.
    #[must_use]
    pub fn undecided(&self) -> Option<Undecided> {
        self.core.undecided()
    }

    /// Numbers.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        self.core.stats()
    }
}
