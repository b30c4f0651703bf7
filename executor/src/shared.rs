//! The set's shared state: voter, journal and replicas under one lock, and the rules of who waits for what and who
//! wakes whom.
//!
//! The lock is held for bookkeeping only. Guests run, outputs are copied, entries are delivered and releases are handed
//! to the world without it, so a replica whose thread stalls blocks nobody.
//!
//! Waking is aimed, because there may be fewer cores than threads: an input wakes one replica, which then leads; the entry
//! that it writes wakes those that stand at the same boundary; a replica that is a window ahead is woken when the slowest
//! has caught up by half a window. Any replica that stands at the frontier may lead, so leadership moves by itself.

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quorate_abi::sync::{WAIT_FOREVER, WAIT_NONE};
use quorate_devices::Entry;
use quorate_voter::{Lockstep, ReplicaId, Step, StopReason};

use crate::channel;
use crate::egress::{Deliverer, Item};
use crate::events::{End, Event, NoQuorum};
use crate::inject::{Applied, FAULTS_KEPT, FAULTS_WAITING, Fault};
use crate::journal::{Clock, ENTRY_MAX_BYTES, EntryWriter, FairClock, Ingress};
use crate::replica::Kick;
use crate::sync::lock;

/// How long frames are held back for a guest that has not yet waited for any.
const BOOT_PATIENCE: Duration = Duration::from_secs(2);

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
    /// End.
    Leave,
}

/// A fault on its way to a replica.
pub struct Mail {
    /// What to do.
    pub fault: Fault,
    /// Chooses what the fault leaves open.
    pub random: u64,
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
    /// There is no majority; it is held.
    Held,
    /// Its guest's program has ended.
    Exited,
    /// Stalled by an injected fault.
    Frozen,
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
    /// Why it was stopped.
    pub stopped: Option<String>,
    /// Start addresses of its regions.
    pub layout: Vec<(&'static str, u64)>,
    /// Faults injected so far, the last [`FAULTS_KEPT`].
    pub injected: Vec<(Fault, Applied)>,
    /// Faults asked for so far.
    pub faults: u64,
    kick: Option<Kick>,
    mail: Vec<Mail>,
    wait_until_ns: u64,
    exited: bool,
    has_waited: bool,
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
    fair: FairClock,
    pending: Vec<Item>,
    delivering: bool,
    leader: usize,
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
    clock: Clock,
    window: u64,
    policy: NoQuorum,
    started: Instant,
}

/// Who is to be woken or kicked once the lock is free.
#[derive(Default)]
struct Todo {
    wake: u32,
    kicks: Vec<Kick>,
    changed: bool,
}

impl Shared {
    /// A set that starts now.
    pub fn new(
        vote: Lockstep<Arc<Entry>>,
        policy: NoQuorum,
        ingress: Arc<dyn Ingress>,
        deliverer: Deliverer,
        clock: Clock,
    ) -> Self {
        let replicas = usize::from(vote.config().replicas);
        let window = vote.config().window_boundaries;
        let entry_bytes = vote.config().max_entry_bytes().min(2 * ENTRY_MAX_BYTES) / 2;
        let slot = || Slot {
            place: Place::Starting,
            boundary: 0,
            outputs: 0,
            output_bytes: 0,
            stopped: None,
            layout: Vec::new(),
            injected: Vec::new(),
            faults: 0,
            kick: None,
            mail: Vec::new(),
            wait_until_ns: WAIT_NONE,
            exited: false,
            has_waited: false,
        };
        Shared {
            inner: Mutex::new(Inner {
                vote,
                slots: (0..replicas).map(|_| slot()).collect(),
                writer: EntryWriter::new(entry_bytes),
                boundaries: 0,
                ready: None,
                no_quorum: None,
                end: None,
                stop_deadline: None,
                fair: FairClock::start(),
                pending: Vec::new(),
                delivering: false,
                leader: 0,
            }),
            deliverer: Mutex::new(deliverer),
            turns: (0..replicas).map(|_| Condvar::new()).collect(),
            changed: Condvar::new(),
            idle: AtomicUsize::new(0),
            ingress,
            clock,
            window,
            policy,
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

    /// What is done without a majority.
    pub fn policy(&self) -> NoQuorum {
        self.policy
    }

    // --- the replica's thread ---

    /// A machine has been built: registers it and waits until all have been. False: the set has ended meanwhile.
    pub fn enter(&self, me: usize, kick: Kick, layout: Vec<(&'static str, u64)>) -> bool {
        let mut inner = self.inner();
        inner.slots[me].kick = Some(kick);
        inner.slots[me].layout = layout;
        inner.slots[me].place = Place::Running;
        self.changed.notify_all();
        // Nobody votes before all can: otherwise a slow build would count as a lag.
        while inner.end.is_none() && inner.slots.iter().any(|slot| slot.place == Place::Starting) {
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        inner.end.is_none()
    }

    /// A replica's thread has dropped its machine and ends.
    pub fn leave(&self, me: usize) {
        let mut inner = self.inner();
        let mut todo = Todo::default();
        inner.slots[me].place = Place::Gone;
        inner.slots[me].kick = None;
        inner.slots[me].mail.clear();
        // It may have been the one that an input woke.
        self.wake_for_input(&mut inner, &mut todo);
        todo.changed = true;
        self.finish(inner, todo);
    }

    /// Casts a ballot, then as [`Shared::await_entry`].
    pub fn cast(&self, me: usize, ballot: Ballot) -> Next {
        let now = Instant::now();
        let mut todo = Todo::default();
        let mut inner = self.inner();
        if inner.end.is_some() {
            return Next::Leave;
        }
        let slot = &mut inner.slots[me];
        slot.boundary = ballot.boundary + 1;
        slot.outputs += ballot.outputs.len() as u64;
        slot.output_bytes += ballot.bytes as u64;
        slot.wait_until_ns = ballot.wait_until_ns;
        slot.exited = ballot.exits;
        if ballot.wait_until_ns != WAIT_NONE && !slot.has_waited {
            slot.has_waited = true;
            self.note_ready(&mut inner);
        }
        let fair_now = inner.fair.at(now);
        if let Err(error) = inner
            .vote
            .cast(id(me), ballot.boundary, ballot.outputs, fair_now)
        {
            inner
                .vote
                .fail(id(me), StopReason::Failed(error.to_string()), fair_now);
        }
        self.drain(&mut inner, &mut todo);
        self.wake_those_ahead(&mut inner, &mut todo);
        self.next(me, inner, todo)
    }

    /// Waits for the entry of the boundary at which the replica stands, and writes it if nobody else has.
    pub fn await_entry(&self, me: usize) -> Next {
        self.next(me, self.inner(), Todo::default())
    }

    fn next<'a>(&'a self, me: usize, mut inner: MutexGuard<'a, Inner>, mut todo: Todo) -> Next {
        loop {
            if inner.end.is_some() {
                self.finish(inner, todo);
                return Next::Leave;
            }
            if !inner.slots[me].mail.is_empty() {
                let mail = inner.slots[me].mail.remove(0);
                self.finish(inner, todo);
                return Next::Mail(mail);
            }
            let fair_now = inner.fair.at(Instant::now());
            let (place, until) = match inner.vote.step(id(me), fair_now) {
                Step::Stopped(_) => {
                    self.finish(inner, todo);
                    return Next::Leave;
                }
                // The end of the program is its last word; the set ends when a majority has said it.
                _ if inner.slots[me].exited => (Place::Exited, None),
                Step::Deliver(entry) => {
                    self.finish(inner, todo);
                    return Next::Resume(entry);
                }
                Step::Lead => match self.patience(&inner, me) {
                    None => match self.lead(me, &mut inner, &mut todo, fair_now) {
                        Some(entry) => {
                            self.finish(inner, todo);
                            return Next::Resume(entry);
                        }
                        None => continue,
                    },
                    Some(wait) => (Place::Idle, wait),
                },
                Step::WindowFull => (Place::Ahead, None),
                Step::Held => (Place::Held, None),
            };
            // Before sleeping, whatever others wait for goes out; that frees the lock, so look again afterwards.
            if !todo.is_empty() || inner.has_deliverable() {
                self.finish(inner, std::mem::take(&mut todo));
                inner = self.inner();
                continue;
            }
            inner = self.sleep(me, inner, place, until);
        }
    }

    /// None: the replica may lead now. Otherwise how long it may sleep at most.
    fn patience(&self, inner: &Inner, me: usize) -> Option<Option<Duration>> {
        let until = inner.slots[me].wait_until_ns;
        if until == WAIT_NONE || inner.writer.is_urgent() {
            return None;
        }
        let left = match until {
            WAIT_FOREVER => None,
            _ => match until.saturating_sub(self.clock.monotonic_ns()) {
                0 => return None,
                left => Some(Duration::from_nanos(left)),
            },
        };
        self.ingress.is_empty().then_some(left)
    }

    /// Writes the entry for the frontier (R1: this is the only place where the world gets in).
    fn lead(
        &self,
        me: usize,
        inner: &mut Inner,
        todo: &mut Todo,
        fair_now: u64,
    ) -> Option<Arc<Entry>> {
        let boundary = inner.slots[me].boundary - 1;
        // A guest that has never waited is still starting: a client that connects now is kept waiting instead of
        // being refused. A guest that never waits gets its input nevertheless.
        let booting = !inner.slots.iter().any(|slot| slot.has_waited)
            && self.started.elapsed() < BOOT_PATIENCE;
        let (entry, bytes) = inner.writer.write(&self.clock, &*self.ingress, booting);
        let entry = Arc::new(entry);
        if let Err(error) = inner.vote.lead(id(me), Arc::clone(&entry), bytes, fair_now) {
            // Nobody else can have written it: the lock has been held since the voter asked for it.
            inner
                .vote
                .fail(id(me), StopReason::Failed(error.to_string()), fair_now);
            self.drain(inner, todo);
            return None;
        }
        inner.boundaries = boundary + 1;
        inner.leader = me;
        inner.pending.push(Item::Entry {
            boundary,
            entry: Arc::clone(&entry),
        });
        for (number, slot) in inner.slots.iter_mut().enumerate() {
            if slot.place == Place::Idle && number != me {
                self.mark(number, slot, todo);
            }
        }
        Some(entry)
    }

    fn sleep<'a>(
        &'a self,
        me: usize,
        mut inner: MutexGuard<'a, Inner>,
        place: Place,
        until: Option<Duration>,
    ) -> MutexGuard<'a, Inner> {
        inner.slots[me].place = place;
        if place == Place::Idle {
            self.idle.fetch_add(1, Ordering::SeqCst);
            // Pairs with the fence in `input_arrived`: either we see its frame, or it sees us waiting.
            fence(Ordering::SeqCst);
            if !self.ingress.is_empty() {
                self.awake(&mut inner.slots[me]);
                return inner;
            }
        }
        let mut inner = match until {
            None => self.turns[me]
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                self.turns[me]
                    .wait_timeout(inner, until)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        self.awake(&mut inner.slots[me]);
        inner
    }

    fn awake(&self, slot: &mut Slot) {
        if slot.place == Place::Idle {
            self.idle.fetch_sub(1, Ordering::SeqCst);
        }
        slot.place = Place::Running;
    }

    /// The vCPU crashed.
    pub fn crashed(&self, me: usize, report: String) {
        self.fail(me, StopReason::Crashed(report));
    }

    /// The guest broke a device's rules, or said that it is broken (R9: it stops its own replica).
    pub fn misbehaved(&self, me: usize, report: String) {
        self.fail(me, StopReason::Misbehaved(report));
    }

    /// Stops a replica for a reason that the voter cannot see.
    pub fn fail(&self, replica: usize, reason: StopReason) {
        let mut todo = Todo::default();
        let mut inner = self.inner();
        if inner.end.is_none() {
            let fair_now = inner.fair.at(Instant::now());
            inner.vote.fail(id(replica), reason, fair_now);
            self.drain(&mut inner, &mut todo);
            self.wake_those_ahead(&mut inner, &mut todo);
        }
        self.finish(inner, todo);
    }

    /// A kick brought the replica's thread here: is it to end?
    pub fn must_leave(&self, me: usize) -> bool {
        let inner = self.inner();
        inner.end.is_some() || inner.slots[me].stopped.is_some()
    }

    /// A fault that waits for the replica.
    pub fn mail(&self, me: usize) -> Option<Mail> {
        let mut inner = self.inner();
        let mail = &mut inner.slots[me].mail;
        if mail.is_empty() {
            None
        } else {
            Some(mail.remove(0))
        }
    }

    /// Records what became of a fault, and tells who asked.
    pub fn injected(&self, me: usize, mail: Mail, result: Result<String, String>) {
        let mut inner = self.inner();
        let boundary = inner.slots[me].boundary;
        let result = result.map(|detail| Applied {
            replica: me,
            boundary,
            detail: format!("{}: {detail}", mail.fault),
        });
        if let Ok(applied) = &result {
            let slot = &mut inner.slots[me];
            if slot.injected.len() == FAULTS_KEPT {
                slot.injected.remove(0);
            }
            slot.injected.push((mail.fault, applied.clone()));
            self.event(
                &mut inner,
                Event::Injected {
                    replica: me,
                    boundary,
                    detail: applied.detail.clone(),
                },
            );
        }
        self.finish(inner, Todo::default());
        // Nobody may be waiting any more.
        let _ = mail.reply.try_send(result);
    }

    /// Stalls the thread until the replica is stopped or the set ends.
    pub fn freeze(&self, me: usize) {
        let mut inner = self.inner();
        while inner.end.is_none() && inner.slots[me].stopped.is_none() {
            inner.slots[me].place = Place::Frozen;
            inner = self.turns[me]
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    // --- everybody else ---

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
        if slot.stopped.is_some() || slot.place == Place::Gone {
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
        if let Some(detail) = inner.no_quorum.clone() {
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
            self.wake_those_ahead(&mut inner, &mut todo);
            self.wake_for_input(&mut inner, &mut todo);
            if inner.stop_deadline.is_some_and(|deadline| now >= deadline) {
                self.event(
                    &mut inner,
                    Event::Note {
                        text: "the guest program did not end in time".to_owned(),
                    },
                );
                self.over(&mut inner, &mut todo, End::Stopped);
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

    // --- under the lock ---

    /// Acts on what the voter has to say.
    fn drain(&self, inner: &mut Inner, todo: &mut Todo) {
        while let Some(event) = inner.vote.poll_event() {
            match event {
                quorate_voter::Event::Release {
                    boundary,
                    channel,
                    bytes,
                } => {
                    if channel == channel::CONTROL && inner.end.is_none() {
                        let mut status = [0; 8];
                        let len = bytes.len().min(8);
                        status[..len].copy_from_slice(&bytes[..len]);
                        let wait_status = u64::from_le_bytes(status) as u32;
                        let requested = inner.stop_deadline.is_some();
                        inner.pending.push(Item::Release {
                            boundary,
                            channel,
                            bytes,
                        });
                        self.over(
                            inner,
                            todo,
                            End::Exited {
                                wait_status,
                                requested,
                            },
                        );
                    } else {
                        inner.pending.push(Item::Release {
                            boundary,
                            channel,
                            bytes,
                        });
                    }
                }
                other => self.judge(inner, todo, other),
            }
        }
    }

    fn judge(&self, inner: &mut Inner, todo: &mut Todo, event: quorate_voter::Event) {
        let named = |channel| channel::name(channel).to_owned();
        match event {
            quorate_voter::Event::Release { .. } => {}
            quorate_voter::Event::Verdict(verdict) => {
                let event = Event::Outvoted {
                    replica: verdict.replica.0.into(),
                    boundary: verdict.boundary,
                    channel: channel::name(verdict.channel),
                    detail: verdict.describe(named),
                };
                self.event(inner, event);
            }
            quorate_voter::Event::Stopped { replica, reason } => {
                let reason = match reason {
                    // The verdict's own line has just said the rest.
                    StopReason::Outvoted(verdict) => {
                        format!("outvoted on the {} channel", channel::name(verdict.channel))
                    }
                    other => other.to_string(),
                };
                let number = usize::from(replica.0);
                let slot = &mut inner.slots[number];
                slot.stopped = Some(reason.clone());
                let boundary = slot.boundary;
                self.rouse(number, slot, todo);
                self.event(
                    inner,
                    Event::ReplicaStopped {
                        replica: number,
                        boundary,
                        reason,
                    },
                );
                self.note_ready(inner);
                self.wake_those_ahead(inner, todo);
            }
            quorate_voter::Event::Degraded { healthy, quorum } => {
                let event = Event::Degraded {
                    running: healthy.into(),
                    of: inner.slots.len(),
                    masks_another: healthy > quorum,
                };
                self.event(inner, event);
            }
            quorate_voter::Event::NoMajority(lost) => {
                let detail = lost.describe(named);
                let event = Event::NoMajority {
                    boundary: lost.boundary,
                    policy: self.policy,
                    detail: detail.clone(),
                };
                self.event(inner, event);
                inner.no_quorum = Some(detail.clone());
                if self.policy == NoQuorum::Stop {
                    self.over(inner, todo, End::NoQuorum { detail });
                }
            }
        }
    }

    /// Notes the first moment at which all running replicas have waited for input.
    fn note_ready(&self, inner: &mut Inner) {
        let all = inner
            .slots
            .iter()
            .all(|slot| slot.has_waited || slot.stopped.is_some());
        if all && inner.ready.is_none() && inner.end.is_none() {
            let after = self.started.elapsed();
            inner.ready = Some(after);
            let replicas = inner
                .slots
                .iter()
                .filter(|slot| slot.stopped.is_none())
                .count();
            self.event(
                inner,
                Event::Ready {
                    after_ms: after.as_millis() as u64,
                    replicas,
                },
            );
        }
    }

    fn event(&self, inner: &mut Inner, event: Event) {
        inner
            .pending
            .push(Item::Event(self.started.elapsed(), event));
    }

    fn over(&self, inner: &mut Inner, todo: &mut Todo, end: End) {
        if inner.end.is_some() {
            return;
        }
        inner.end = Some(end);
        todo.changed = true;
        for (number, slot) in inner.slots.iter_mut().enumerate() {
            self.rouse(number, slot, todo);
        }
    }

    /// Gets a replica's thread to look at its state, wherever it is.
    fn rouse(&self, number: usize, slot: &mut Slot, todo: &mut Todo) {
        match slot.place {
            Place::Running => todo.kicks.extend(slot.kick.clone()),
            Place::Starting | Place::Gone => {}
            Place::Idle | Place::Ahead | Place::Held | Place::Exited | Place::Frozen => {
                self.mark(number, slot, todo)
            }
        }
    }

    /// Wakes a replica that sleeps. From here on it counts as running, so that nobody wakes it twice.
    fn mark(&self, number: usize, slot: &mut Slot, todo: &mut Todo) {
        self.awake(slot);
        todo.wake |= 1 << number;
    }

    fn wake_for_input(&self, inner: &mut Inner, todo: &mut Todo) {
        if !self.ingress.is_empty() || inner.writer.is_urgent() {
            self.wake_one_idle(inner, todo);
        }
    }

    /// Wakes one replica to lead: the last leader if it is idle, since its caches are warm.
    fn wake_one_idle(&self, inner: &mut Inner, todo: &mut Todo) {
        let idle = |slot: &Slot| slot.place == Place::Idle;
        let number = if idle(&inner.slots[inner.leader]) {
            Some(inner.leader)
        } else {
            inner.slots.iter().position(idle)
        };
        if let Some(number) = number {
            self.mark(number, &mut inner.slots[number], todo);
        }
    }

    /// Wakes those that were a window ahead once the slowest has caught up by half a window, not at its every step.
    fn wake_those_ahead(&self, inner: &mut Inner, todo: &mut Todo) {
        if inner.slots.iter().all(|slot| slot.place != Place::Ahead) {
            return;
        }
        let slowest = inner
            .slots
            .iter()
            .filter(|slot| slot.stopped.is_none())
            .map(|slot| slot.boundary)
            .min();
        let Some(slowest) = slowest else { return };
        for (number, slot) in inner.slots.iter_mut().enumerate() {
            if slot.place == Place::Ahead
                && slot.boundary.saturating_sub(slowest) <= self.window / 2
            {
                self.mark(number, slot, todo);
            }
        }
    }

    // --- leaving the lock ---

    /// Frees the lock, wakes and kicks who must be, and hands on what is there.
    ///
    /// Items go out in their order: one thread at a time delivers, and looks again before it ends. What piles up
    /// meanwhile is bounded by the window, beyond which the other replicas do not get while the deliverer's own stands
    /// still (R10).
    fn finish<'a>(&'a self, mut inner: MutexGuard<'a, Inner>, todo: Todo) {
        let mut items = inner.take_deliverable();
        drop(inner);
        // Others first: what they do now overlaps with the delivery.
        self.act(todo);
        while !items.is_empty() {
            lock(&self.deliverer).deliver(&mut items);
            inner = self.inner();
            inner.delivering = false;
            if inner.pending.is_empty() {
                // Keeps the allocation.
                inner.pending = items;
                return;
            }
            items = inner.take_deliverable();
            drop(inner);
        }
    }

    fn act(&self, todo: Todo) {
        let mut wake = todo.wake;
        while wake != 0 {
            self.turns[wake.trailing_zeros() as usize].notify_one();
            wake &= wake - 1;
        }
        for kick in todo.kicks {
            kick();
        }
        if todo.changed {
            self.changed.notify_all();
        }
    }
}

fn id(replica: usize) -> ReplicaId {
    // A set has at most nine; an unknown number is answered by the voter as a stopped replica.
    ReplicaId(u8::try_from(replica).unwrap_or(u8::MAX))
}

impl Inner {
    fn has_deliverable(&self) -> bool {
        !self.delivering && !self.pending.is_empty()
    }

    /// What the caller must deliver now. If it is anything, nobody else delivers until the caller says that it is done.
    fn take_deliverable(&mut self) -> Vec<Item> {
        if !self.has_deliverable() {
            return Vec::new();
        }
        self.delivering = true;
        std::mem::take(&mut self.pending)
    }
}

impl Todo {
    fn is_empty(&self) -> bool {
        self.wake == 0 && self.kicks.is_empty() && !self.changed
    }
}
