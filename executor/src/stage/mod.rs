//! Staged sets: sets whose entries do not come from the world but from a [`Stage`], so that what they do can be had again.
//!
//! A staged set is the real one, with its threads, voter, recovery and disks. Only how entries come about is different. They are
//! written *strictly*: that of boundary s only when ballot s is decided, every member has cast it or is left out, what it
//! released has been handed to egress and disks, and all that was asked of the disks is complete. Frames and time then come from
//! the stage, which knows nothing but what was released so far. So it makes no difference which replica leads, how threads
//! interleave, and how busy the host is. Time is virtual: it is what the stage says.
//!
//! What is measured in real time, and only to find replicas that will never come: [`Limits`].

mod berth;
mod clock;
mod interpose;
mod pool;
mod rig;
mod scratch;
mod warm;

use std::time::Duration;

pub(crate) use clock::{ThreadClock, Used};
pub use interpose::{Interposer, Untouched};
pub use rig::{Cast, DiskContent, Performed, Play, Rig};
pub use warm::warm;

/// Wall-clock time at which staged sets start, nanoseconds since 1970: 2026-01-01, 00:00 UTC.
pub const EPOCH_NS: u64 = 1_767_225_600 * 1_000_000_000;

/// How many replicas do what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strength {
    /// Members of the set.
    pub members: usize,
    /// Of these: those that vote.
    pub voting: usize,
    /// Of these: those that were stopped and may come back.
    pub recovering: usize,
    /// Of these: those that do not come back.
    pub left_out: usize,
}

impl Strength {
    /// Whether all members vote.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.voting == self.members
    }
}

/// Where a staged set is when its next entry is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The boundary whose entry is asked for: its ballot is decided, and released. In a set that goes on from where another was
    /// saved, boundary 0 is where that was.
    pub boundary: u64,
    /// Up to when the guest wants to sleep, on its monotonic clock: what most of the voting replicas say. As
    /// `quorate_abi::sync::SyncPage::wait_until_ns`, with its `WAIT_NONE` and `WAIT_FOREVER`. `WAIT_NONE` too where the entry will
    /// complete a request of a disk.
    pub wait_until_ns: u64,
    /// The guest's monotonic time in the last entry, or at the start.
    pub now_ns: u64,
    /// How many replicas are there.
    pub strength: Strength,
}

/// What goes into an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Staged {
    /// Frames for the guest, in order. At most [`crate::journal::ENTRY_MAX_FRAMES`] with at most
    /// [`crate::journal::ENTRY_MAX_BYTES`] together; a set whose stage gives more ends with a failure.
    pub frames: Vec<Vec<u8>>,
    /// The guest's monotonic time; never less than in the entry before (what is less counts as the same).
    pub monotonic_ns: u64,
    /// Wall-clock time, nanoseconds since 1970.
    pub realtime_ns: u64,
    /// The guest program is asked to end.
    pub terminate: bool,
}

/// What a stage says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cue {
    /// This is the entry.
    Entry(Staged),
    /// Not yet: ask again when something has changed, such as a replica that came back.
    Wait,
    /// The set ends here.
    Over,
}

/// Gives a staged set its entries. Whatever was released before was handed to the set's egress before this is asked.
pub trait Stage: Send + Sync {
    /// The entry of the boundary. Asked by whichever replica leads, while all others stand still. Must not call into the set.
    fn cue(&self, at: &At) -> Cue;
}

/// What ends a replica, or a trial, in real time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Processor time of its thread that a replica may need from one boundary to the next. Who needs more is a laggard if another replica
    /// has come to that boundary; if none has, the set ends, and [`Performed::spun`] says where.
    pub spin: Duration,
    /// A replica whose interposer stalls it for so long ([`Interposer::stall`]) is a laggard, or the set ends, as above. Nobody waits
    /// for real.
    pub stall: Duration,
    /// The whole trial: the set ends with a failure then. It says nothing about the guest: it is there so that a defect costs a trial,
    /// not a campaign.
    pub wall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            spin: crate::patience::patient(Duration::from_millis(400)),
            stall: crate::patience::patient(Duration::from_millis(500)),
            wall: crate::patience::patient(Duration::from_secs(60)),
        }
    }
}

/// Where a replica, or the whole set, was found not to get on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spun {
    /// The boundary that was not reached.
    pub boundary: u64,
    /// The replica that was found first.
    pub replica: usize,
    /// It was stalled by its interposer; else it used processor time.
    pub stalled: bool,
}

/// What putting the machines back has cost before a trial: of the slowest replica, and of all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reset {
    /// The slowest replica, microseconds.
    pub micros: u64,
    /// Pages of all replicas that were compared.
    pub compared_pages: u64,
    /// Pages of these that had changed.
    pub pages: u64,
    /// Machines whose translations had to be forgotten, so that their guests faulted everything in again.
    pub forgot: u64,
    /// Machines that were built anew.
    pub built: u64,
}
