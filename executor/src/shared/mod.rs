//! The set's shared state: voter, journal and replicas under one lock, and the rules of who waits for what and who
//! wakes whom.
//!
//! The lock is held for bookkeeping only. Guests run, outputs are copied, entries are delivered and releases are handed
//! to the world without it, so a replica whose thread stalls blocks nobody.
//!
//! Waking is aimed, because there may be fewer cores than threads: an input wakes one replica, which then leads; the entry
//! that it writes wakes those that stand at the same boundary; a replica that is a window ahead is woken when the slowest
//! has caught up by half a window. Any replica that stands at the frontier may lead, so leadership moves by itself.

mod hold;
mod judge;
mod recover;
mod schedule;
mod staged;
mod turn;
mod wake;

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quorate_abi::sync::{WAIT_FOREVER, WAIT_NONE};
use quorate_devices::{DiskPosition, Entry};
use quorate_voter::{
    HISTORY_OVERHEAD, Lockstep, MAX_REPLICAS, Rejoin, ReplicaId, ReplicaState, Step, StopReason,
};

use crate::channel;
use crate::disks::Disks;
use crate::egress::{Deliverer, Item};
use crate::events::{End, Event, NoQuorum};
use crate::inject::{Applied, FAULTS_KEPT, FAULTS_WAITING, Fault};
use crate::journal::{Clock, ENTRY_MAX_BYTES, EntryWriter, FairClock, Ingress};
use crate::recovery::ladder::{Recovery, Standing};
use crate::recovery::{Lineage, RecoveryConfig};
use crate::replica::Kick;
use crate::sync::lock;
use wake::Todo;

pub use hold::{Held, Part};
pub use recover::{Arrival, Recoveries, Task};
pub use schedule::{Checkpoints, Order, Taken};
pub use staged::{Came, Finale, Pace, Scene};

/// How long frames are held back for a guest that has not yet waited for any.
const BOOT_PATIENCE: Duration = Duration::from_secs(2);
/// How often a stopped replica looks whether it can come back, beyond being woken for it.
const RECONSIDER: Duration = Duration::from_millis(500);

/// A replica's outputs at one boundary, ready for the voter.
pub struct Ballot {
    /// The boundary.
    pub boundary: u64,
    /// Channel and content of each output, in order.
    pub outputs: Vec<quorate_voter::Output>,
    /// Bytes of all outputs.
    pub bytes: usize,
    /// How long the guest wants to sleep afterwards, see `SyncPage::wait_until_ns`.
    pub wait_until_ns: u64,
    /// The program has ended: this is the replica's last ballot.
    pub exits: bool,
}

/// What a replica's thread does next.
pub enum Next {
    /// Deliver this entry and run on.
    Resume(Arc<Entry>),
    /// Apply this fault, then ask again.
    Mail(Mail),
    /// Take this checkpoint, say what became of it, then ask again.
    Checkpoint(Order),
    /// End.
    Leave,
}

/// A fault on its way to a replica.
pub struct Mail {
    /// What to do.
    pub fault: Fault,
    /// Chooses what the fault leaves open.
    pub random: u64,
    /// Not in the middle of a run: at the replica's next boundary.
    pub at_boundary: bool,
    /// Who asked.
    pub reply: SyncSender<Result<Applied, String>>,
}

/// Where a replica's thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its machine is being built.
    Starting,
    /// Running the guest, or about to.
    Running,
    /// At the frontier, waiting for an input or a deadline.
    Idle,
    /// A whole window ahead of the slowest healthy replica.
    Ahead,
    /// At the frontier, waiting a little for a replica that catches up.
    Courteous,
    /// There is no majority; it is held.
    Held,
    /// Its guest's program has ended.
    Exited,
    /// Stalled by an injected fault.
    Frozen,
    /// It drives no machine: it makes or restores one, or waits until it can.
    Stopped,
    /// Its thread has ended and its machine is gone.
    Gone,
}

/// What the set knows of one replica.
pub struct Slot {
    /// Where its thread is.
    pub place: Place,
    /// Boundaries it has reached.
    pub boundary: u64,
    /// Outputs it has cast.
    pub outputs: u64,
    /// Bytes of these.
    pub output_bytes: u64,
    /// Time spent in its guest.
    pub ran: Duration,
    /// Why it was stopped.
    pub stopped: Option<String>,
    /// Start addresses of its regions.
    pub layout: Vec<(&'static str, u64)>,
    /// Faults injected so far, the last [`FAULTS_KEPT`], each with how often the replica had come back until then.
    pub injected: Vec<(Fault, Applied, u64)>,
    /// Faults asked for so far.
    pub faults: u64,
    /// How it comes back.
    pub recovery: Recovery,
    /// Its checkpoints so far.
    pub checkpoints: Checkpoints,
    /// The layout that it last voted with.
    lineage: Lineage,
    /// Its disks have not forgotten its former life yet.
    retiring: bool,
    /// It catches up, and is so far behind that nobody waits for it.
    behind: bool,
    /// Somebody wants a checkpoint of it.
    asked: bool,
    /// It is about to come back from this boundary on.
    pin: Option<u64>,
    /// Where it came back on its disks.
    positions: Vec<DiskPosition>,
    next_checkpoint: Instant,
    /// Since when its checkpoint is due, if it was seen to be.
    due_since: Option<Instant>,
    /// Bytes of the journal at its last checkpoint.
    journal_mark: u64,
    kick: Option<Kick>,
    mail: Vec<Mail>,
    wait_until_ns: u64,
    exited: bool,
    has_waited: bool,
}

impl Slot {
    fn new(recovery: Recovery) -> Self {
        Slot {
            place: Place::Starting,
            boundary: 0,
            outputs: 0,
            output_bytes: 0,
            ran: Duration::ZERO,
            stopped: None,
            layout: Vec::new(),
            injected: Vec::new(),
            faults: 0,
            lineage: recovery.lineage,
            recovery,
            checkpoints: Checkpoints::default(),
            retiring: false,
            behind: false,
            asked: false,
            pin: None,
            positions: Vec::new(),
            next_checkpoint: Instant::now(),
            due_since: None,
            journal_mark: 0,
            kick: None,
            mail: Vec::new(),
            wait_until_ns: WAIT_NONE,
            exited: false,
            has_waited: false,
        }
    }

    /// Whether it belongs to the set.
    pub fn is_member(&self) -> bool {
        !self.recovery.joining && self.recovery.standing != Standing::Removed
    }

    /// Whether its vote counts.
    pub fn is_voting(&self) -> bool {
        self.stopped.is_none() && self.recovery.standing == Standing::Voting
    }
}

/// What is under the lock.
pub struct Inner {
    /// The voter.
    pub vote: Lockstep<Arc<Entry>>,
    /// The replicas.
    pub slots: Vec<Slot>,
    /// Writes entries.
    pub writer: EntryWriter,
    /// Entries written.
    pub boundaries: u64,
    /// Time from the start until ready.
    pub ready: Option<Duration>,
    /// Set when there is no majority: why.
    pub no_quorum: Option<String>,
    /// Set when the set has ended.
    pub end: Option<End>,
    /// The operator has asked the guest program to end; at this time patience ends.
    pub stop_deadline: Option<Instant>,
    /// What recovery has done so far.
    pub recoveries: Recoveries,
    /// Since when not all members vote.
    weak_since: Option<Instant>,
    /// Without a majority, and without hope for one.
    despaired: bool,
    /// The whole set is to be held, to save it.
    hold: Option<hold::Hold>,
    /// Who takes a checkpoint just now.
    token: Option<usize>,
    /// Nobody takes one before this time.
    not_before: Instant,
    /// Name of the last checkpoint.
    last_id: u64,
    /// Bytes of all entries so far.
    journal_bytes: u64,
    /// History is kept from the very beginning.
    from_start: bool,
    /// History below this boundary is wanted by nobody.
    floor: u64,
    fair: FairClock,
    pending: Vec<Item>,
    delivering: bool,
    leader: usize,
    /// When the last entry was written, and where the replicas stood then.
    led: (Instant, [u64; MAX_REPLICAS]),
}

/// See the module.
pub struct Shared {
    inner: Mutex<Inner>,
    deliverer: Mutex<Deliverer>,
    /// One per replica, so that a wake-up reaches the one that is meant.
    turns: Vec<Condvar>,
    /// For the few who wait for the set as a whole.
    changed: Condvar,
    /// Replicas that wait for an input; read without the lock by [`Shared::input_arrived`].
    idle: AtomicUsize,
    ingress: Arc<dyn Ingress>,
    disks: Arc<Disks>,
    clock: Clock,
    pace: Pace,
    window: u64,
    policy: NoQuorum,
    config: RecoveryConfig,
    /// Whether another seed gives another layout.
    diverse: bool,
    started: Instant,
}

impl Shared {
    /// A set that starts now: by this clock and pace; it recovers like this, and another seed gives another layout or not.
    pub fn new(
        vote: Lockstep<Arc<Entry>>,
        policy: NoQuorum,
        ingress: Arc<dyn Ingress>,
        disks: Arc<Disks>,
        deliverer: Deliverer,
        (clock, pace): (Clock, Pace),
        (config, diverse): (RecoveryConfig, bool),
    ) -> Self {
        let replicas = usize::from(vote.config().replicas);
        let window = vote.config().window_boundaries;
        let fair = match pace {
            Pace::Live => FairClock::start(),
            Pace::Staged(_) => FairClock::standing(),
        };
        let entry_bytes = vote.config().max_entry_bytes().min(2 * ENTRY_MAX_BYTES) / 2;
        Shared {
            inner: Mutex::new(Inner {
                vote,
                slots: (0..replicas)
                    .map(|me| Slot::new(Recovery::new(me)))
                    .collect(),
                writer: EntryWriter::new(entry_bytes),
                boundaries: 0,
                ready: None,
                no_quorum: None,
                end: None,
                stop_deadline: None,
                recoveries: Recoveries::default(),
                weak_since: None,
                despaired: false,
                hold: None,
                token: None,
                not_before: Instant::now(),
                last_id: 0,
                journal_bytes: 0,
                from_start: true,
                floor: 0,
                fair,
                pending: Vec::new(),
                delivering: false,
                leader: 0,
                led: (Instant::now(), [0; MAX_REPLICAS]),
            }),
            deliverer: Mutex::new(deliverer),
            turns: (0..MAX_REPLICAS).map(|_| Condvar::new()).collect(),
            changed: Condvar::new(),
            idle: AtomicUsize::new(0),
            ingress,
            disks,
            clock,
            pace,
            window,
            policy,
            config,
            diverse,
            started: Instant::now(),
        }
    }

    /// The state, for a look at it.
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// The deliverer, for its digests. Never taken while the state is locked.
    pub fn deliverer(&self) -> MutexGuard<'_, Deliverer> {
        lock(&self.deliverer)
    }

    /// Where its entries come from.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// How it recovers.
    pub fn config(&self) -> &RecoveryConfig {
        &self.config
    }

    /// What is done without a majority.
    pub fn policy(&self) -> NoQuorum {
        self.policy
    }

    /// A frame has been put into the ingress. Costs an atomic load unless a replica waits for it.
    pub fn input_arrived(&self) {
        fence(Ordering::SeqCst);
        if self.idle.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut todo = Todo::default();
        let mut inner = self.inner();
        self.wake_for_input(&mut inner, &mut todo);
        self.finish(inner, todo);
    }

    /// The disks.
    pub fn disks(&self) -> &Disks {
        &self.disks
    }

    /// Something that the replicas of this bit mask wait for is complete on a disk. One of them is woken to lead, if it
    /// stands at the frontier; whoever comes there later looks for itself. The lock is taken in any case: a replica that
    /// is just going to sleep has either seen the completion or is found asleep here.
    pub fn disk_due(&self, replicas: u32) {
        let mut todo = Todo::default();
        let mut inner = self.inner();
        self.wake_one_due(&mut inner, replicas, &mut todo);
        self.finish(inner, todo);
    }

    /// Hands a fault to a replica.
    ///
    /// # Errors
    /// When there is no such replica, it does not run, or has too many waiting already.
    pub fn post(&self, replica: usize, mail: Mail) -> Result<(), String> {
        let mut todo = Todo::default();
        let mut inner = self.inner();
        let Some(slot) = inner.slots.get_mut(replica) else {
            return Err(format!("there is no replica {replica}"));
        };
        if slot.stopped.is_some() || matches!(slot.place, Place::Gone | Place::Stopped) {
            return Err(format!("replica {replica} is stopped"));
        }
        if slot.mail.len() >= FAULTS_WAITING {
            return Err(format!(
                "{FAULTS_WAITING} faults already wait for replica {replica}"
            ));
        }
        slot.faults += 1;
        slot.mail.push(mail);
        self.rouse(replica, slot, &mut todo);
        self.finish(inner, todo);
        Ok(())
    }

    /// The operator wants the set to end: the guest program is asked to, or at once.
    pub fn stop(&self, now: bool, patience: Duration) {
        let mut todo = Todo::default();
        let mut inner = self.inner();
        if inner.end.is_some() {
            return self.finish(inner, todo);
        }
        let hopeful = self.config.enabled && !inner.despaired && !now;
        if let Some(detail) = inner.no_quorum.clone().filter(|_| !hopeful) {
            // A held set cannot be asked; that the operator ends it does not make it a success.
            self.over(&mut inner, &mut todo, End::NoQuorum { detail });
        } else if now {
            self.event(&mut inner, Event::StopRequested { now });
            self.over(&mut inner, &mut todo, End::Stopped);
        } else if inner.stop_deadline.is_none() {
            self.event(&mut inner, Event::StopRequested { now });
            inner.stop_deadline = Some(Instant::now() + patience);
            inner.writer.ask_to_terminate();
            self.wake_one_idle(&mut inner, &mut todo);
        }
        self.finish(inner, todo);
    }

    /// Ends the set.
    pub fn end(&self, end: End) {
        let mut todo = Todo::default();
        let mut inner = self.inner();
        self.over(&mut inner, &mut todo, end);
        self.finish(inner, todo);
    }

    /// Records an event that did not come from the voter.
    pub fn tell(&self, event: Event) {
        let mut inner = self.inner();
        self.event(&mut inner, event);
        self.finish(inner, Todo::default());
    }

    /// To be called about every 100 ms: judges laggards, and repairs wake-ups that went to a replica which then stalled.
    pub fn tick(&self) {
        let mut todo = Todo::default();
        let mut inner = self.inner();
        let now = Instant::now();
        let fair_now = inner.fair.tick(now);
        if inner.end.is_none() && !inner.slots.iter().any(|slot| slot.place == Place::Starting) {
            inner.vote.tick(fair_now);
            self.drain(&mut inner, &mut todo);
            if let Pace::Staged(staging) = &self.pace {
                self.staged_tick(staging, &mut inner, &mut todo);
            }
            self.wake_those_ahead(&mut inner, &mut todo);
            self.wake_for_input(&mut inner, &mut todo);
            self.wake_for_checkpoint(&mut inner, &mut todo, now);
            self.aim(&mut inner, &mut todo);
            self.drop_history(&mut inner, true);
            if inner.stop_deadline.is_some_and(|deadline| now >= deadline) {
                self.event(
                    &mut inner,
                    Event::Note {
                        text: "the guest program did not end in time".to_owned(),
                    },
                );
                let end = match inner.no_quorum.clone() {
                    Some(detail) => End::NoQuorum { detail },
                    None => End::Stopped,
                };
                self.over(&mut inner, &mut todo, end);
            }
        }
        self.finish(inner, todo);
    }

    /// Waits for a change of the set as a whole (built, ended, a thread gone), at most for `timeout`.
    pub fn wait_changed<'a>(
        &self,
        inner: MutexGuard<'a, Inner>,
        timeout: Duration,
    ) -> MutexGuard<'a, Inner> {
        self.changed
            .wait_timeout(inner, timeout)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

impl Inner {
    /// The replicas that belong to the set.
    pub fn members(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.is_member())
    }
}

fn id(replica: usize) -> ReplicaId {
    // A set has at most nine; an unknown number is answered by the voter as a stopped replica.
    ReplicaId(u8::try_from(replica).unwrap_or(u8::MAX))
}
