//! One connection's stream from the guests to its client.

mod bytes;
mod core;
mod differ;
mod history;
mod judge;
mod masked;

use crate::ids::ReplicaId;
use crate::relaxed::difference::{Difference, Undecided};
use crate::relaxed::mask::{MaskSet, Translation};
use crate::relaxed::voters::Voters;

pub use history::{DIGEST_STEP, DIGESTS_KEPT};
pub use masked::MARKS_OF_MASKS;

use thiserror::Error;

use self::core::Core;
use masked::Masked;

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
///
/// With masks, what they hide may differ; then positions are those of the rewritten stream (see `docs/relaxed.md`), the same for
/// all who agree, and what was held back of a line or a value is not counted: compare them with each other only. A place to
/// come back to is given in bytes of the replica's own stream ([`StreamMatcher::own_position`]), masks or not.
#[derive(Clone, Debug)]
pub struct StreamMatcher {
    inner: Inner,
}

#[derive(Clone, Debug)]
enum Inner {
    Plain(Box<Core>),
    Masked(Box<Masked>),
}

impl StreamMatcher {
    /// A new connection on which no replica has said anything.
    #[must_use]
    pub fn new(voters: &Voters, limits: StreamLimits, mask: Option<&MaskSet>) -> Self {
        let inner = match mask.filter(|mask| !mask.is_empty()) {
            Some(mask) => Inner::Masked(Box::new(Masked::new(voters, limits, mask))),
            None => Inner::Plain(Box::new(Core::new(voters, limits))),
        };
        Self { inner }
    }

    fn core(&self) -> &Core {
        match &self.inner {
            Inner::Plain(core) => core,
            Inner::Masked(masked) => &masked.core,
        }
    }

    /// Does something with the state, and says whether there is something new to fetch.
    fn with(&mut self, what: impl FnOnce(&mut Core) -> bool) -> bool {
        match &mut self.inner {
            Inner::Plain(core) => what(core),
            Inner::Masked(masked) => {
                let news = what(&mut masked.core);
                masked.settled(news)
            }
        }
    }

    /// The same, with the caller's number for the connection, which differences carry.
    #[must_use]
    pub fn for_connection(mut self, connection: u64) -> Self {
        match &mut self.inner {
            Inner::Plain(core) => core.connection = connection,
            Inner::Masked(masked) => masked.core.connection = connection,
        }
        self
    }

    /// A replica goes on with `bytes`. What a replica says that is left out of this connection is taken and forgotten.
    ///
    /// # Errors
    /// [`Full`] if not one byte could be taken.
    pub fn push(&mut self, replica: ReplicaId, bytes: &[u8]) -> Result<Taken, Full> {
        match &mut self.inner {
            Inner::Plain(core) => core.push(replica, bytes),
            Inner::Masked(masked) => masked.push(replica, bytes),
        }
    }

    /// A replica's stream ends where it is. A second end of the same stream is forgotten. True if there is something
    /// new to fetch.
    pub fn end(&mut self, replica: ReplicaId, how: EndOfStream) -> bool {
        match &mut self.inner {
            Inner::Plain(core) => core.end(replica, how),
            Inner::Masked(masked) => masked.end(replica, how),
        }
    }

    /// Masks hold back what may be the beginning of something hidden: a line without an end, for patterns, or a header's
    /// value. This lets it pass as it is, for a replica that has been quiet for a while: a prompt, say. Nothing is hidden in the
    /// rest of that line then. True if there is something new to fetch.
    pub fn flush(&mut self, replica: ReplicaId) -> bool {
        match &mut self.inner {
            Inner::Plain(_) => false,
            Inner::Masked(masked) => masked.flush(replica),
        }
    }

    /// Bytes of a replica that masks hold back.
    #[must_use]
    pub fn held_back(&self, replica: ReplicaId) -> usize {
        match &self.inner {
            Inner::Plain(_) => 0,
            Inner::Masked(masked) => masked.held(replica),
        }
    }

    /// Appends what was released since the last call; then tells the agreed end, once.
    pub fn take_released(&mut self, into: &mut Vec<u8>) -> Option<EndOfStream> {
        match &mut self.inner {
            Inner::Plain(core) => core.take_released(into),
            Inner::Masked(masked) => masked.take_released(into),
        }
    }

    /// What replicas call the tokens that were released, for [`crate::relaxed::Translator::learn`]; each once.
    pub fn translations(&mut self) -> Vec<Translation> {
        match &mut self.inner {
            Inner::Plain(_) => Vec::new(),
            Inner::Masked(masked) => masked.translations(),
        }
    }

    /// A replica was stopped. What it has said still counts where it said it; the quorum does not shrink (R2).
    /// True if there is something new to fetch.
    pub fn leave(&mut self, replica: ReplicaId) -> bool {
        self.with(|core| core.leave(replica, false))
    }

    /// The same, by a crash, which is reported as a [`Difference`] with the request it was about to answer.
    pub fn crashed(&mut self, replica: ReplicaId) -> bool {
        self.with(|core| core.leave(replica, true))
    }

    /// A replica is back, with `position` bytes of its own output said; what it says from there on is compared with what was
    /// released (R7), and counts beyond that. What it said beyond `position` before it left is forgotten. A replica
    /// that comes back beyond what was released, at a place where it never was, is left out of this connection; so is one that
    /// comes back in the middle of a masked stream where [`StreamMatcher::mark`] was not called.
    pub fn enter(&mut self, replica: ReplicaId, position: u64) {
        match &mut self.inner {
            Inner::Plain(core) => core.enter(replica, position),
            Inner::Masked(masked) => masked.enter(replica, position),
        }
    }

    /// A replica that has departed on this connection is about to be given a request, and has said all that it had to say before; others
    /// had released `position` bytes when they had. What it says from here on is compared with what was released from there on, and
    /// counts again. Differences name the place in what was released. False if it has not departed; if the stream has ended; or, with
    /// masks, if more has been released since: then the next request is the next chance.
    pub fn rejoin(&mut self, replica: ReplicaId, position: u64) -> bool {
        match &mut self.inner {
            Inner::Plain(core) => core.rejoin(replica, position),
            Inner::Masked(masked) => masked.rejoin(replica, position),
        }
    }

    /// A replica is back at a place at which it took no part in this connection; `position` as in [`StreamMatcher::enter`]. It takes
    /// none until [`StreamMatcher::rejoin`].
    pub fn enter_apart(&mut self, replica: ReplicaId, position: u64) {
        match &mut self.inner {
            Inner::Plain(core) => {
                core.enter(replica, position);
                core.leave_out(usize::from(replica.0));
            }
            Inner::Masked(masked) => masked.enter_apart(replica, position),
        }
    }

    /// A replica is back as a copy of `source`: it has said what that one has, but counts only from there on.
    pub fn enter_like(&mut self, replica: ReplicaId, source: ReplicaId) {
        match &mut self.inner {
            Inner::Plain(core) => core.enter_like(replica, source),
            Inner::Masked(masked) => masked.enter_like(replica, source),
        }
    }

    /// A checkpoint of this replica was taken just now: digests will begin at its position too, so that nothing is left
    /// uncompared if it comes back there late, and the state of its masks is remembered, for the last [`MARKS_OF_MASKS`] of them.
    pub fn mark(&mut self, replica: ReplicaId) {
        match &mut self.inner {
            Inner::Plain(core) => core.mark(replica),
            Inner::Masked(masked) => masked.mark(replica),
        }
    }

    /// Bytes that a replica has said.
    #[must_use]
    pub fn position(&self, replica: ReplicaId) -> u64 {
        self.core().position(replica)
    }

    /// Bytes of its own output that a replica has said, what masks hold back included: what a checkpoint remembers for
    /// [`StreamMatcher::enter`]. Without masks the same as [`StreamMatcher::position`].
    #[must_use]
    pub fn own_position(&self, replica: ReplicaId) -> u64 {
        match &self.inner {
            Inner::Plain(core) => core.position(replica),
            Inner::Masked(masked) => masked.own_position(replica),
        }
    }

    /// Bytes released so far.
    #[must_use]
    pub fn released(&self) -> u64 {
        self.core().released()
    }

    /// Bytes that were released and that a replica has not said yet.
    #[must_use]
    pub fn behind(&self, replica: ReplicaId) -> u64 {
        self.released().saturating_sub(self.position(replica))
    }

    /// Others have said more than what is released, and the release may depend on this replica, which has not.
    #[must_use]
    pub fn waits_for(&self, replica: ReplicaId) -> bool {
        self.core().waits_for(replica)
    }

    /// The replica takes part in this connection: it is running and has not differed, and somebody can serve it.
    #[must_use]
    pub fn takes_part(&self, replica: ReplicaId) -> bool {
        self.core().takes_part(replica)
    }

    /// Patience with a replica is over on this connection: under [`crate::relaxed::Policy::Primary`] the primary's word is no
    /// longer held back for it. What it says later is still compared. (The primary itself can only
    /// be stopped.) Reported as a [`Difference`] if it owes an answer.
    /// True if there is something new to fetch.
    pub fn give_up_on(&mut self, replica: ReplicaId) -> bool {
        self.with(|core| core.give_up_on(replica))
    }

    /// The client sent `bytes`, which begin at byte `position` of its stream: for reports.
    pub fn note_input(&mut self, position: u64, bytes: &[u8]) {
        self.with(|core| {
            core.note_input(position, bytes);
            false
        });
    }

    /// Replicas that departed from what was released, each once.
    pub fn differences(&mut self) -> Vec<Difference> {
        match &mut self.inner {
            Inner::Plain(core) => core.reports.take(),
            Inner::Masked(masked) => masked.reports.take(),
        }
    }

    /// Whether nothing more can be released as things are, and who said what.
    #[must_use]
    pub fn undecided(&self) -> Option<Undecided> {
        match &self.inner {
            Inner::Plain(core) => core.undecided(),
            Inner::Masked(masked) => masked.undecided(),
        }
    }

    /// Numbers.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        self.core().stats()
    }
}
