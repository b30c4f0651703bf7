//! What a replica's own thread does with the shared state: enter, cast, wait, lead, leave.

use super::*;
use crate::recovery::ladder::Standing;

/// Boundaries that a recovering replica is to come on for each one that the set adds: on a host whose processors are all busy it
/// would else never catch up with those that take its share of them.
const CATCH_UP: u64 = 3;
/// How long the set's next entry waits for that at most. Clients wait as much longer while a replica recovers.
const COURTESY: Duration = Duration::from_millis(2);

/// What becomes of a replica that could write the next entry.
pub(super) enum Lead {
    /// It has: this one.
    Entry(Arc<Entry>),
    /// Something else happened: it is to look again.
    Again,
    /// It is to wait there, at most for so long.
    Sleep(Place, Option<Duration>),
}

impl Shared {
    /// A machine has been built: registers it and waits until all have been. False: the set has ended meanwhile.
    pub fn enter(&self, me: usize, kick: Kick, layout: Vec<(&'static str, u64)>) -> bool {
        let mut inner = self.inner();
        self.watch(me);
        inner.slots[me].kick = Some(kick);
        inner.slots[me].layout = layout;
        inner.slots[me].place = Place::Running;
        inner.slots[me].next_checkpoint = Instant::now() + self.stagger(me);
        inner.slots[me].journal_mark = 0;
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

    /// Casts a ballot, then as [`Shared::await_entry`]. `now` is when the guest came to the boundary, `ran` the time that
    /// it has spent in the guest since the last.
    pub fn cast(&self, me: usize, ballot: Ballot, now: Instant, ran: Duration) -> Next {
        let mut todo = Todo::default();
        let mut inner = self.inner();
        if inner.end.is_some() {
            return Next::Leave;
        }
        let slot = &mut inner.slots[me];
        slot.boundary = ballot.boundary + 1;
        slot.ran += ran;
        slot.outputs += ballot.outputs.len() as u64;
        slot.output_bytes += ballot.bytes as u64;
        slot.wait_until_ns = ballot.wait_until_ns;
        slot.exited = ballot.exits;
        // Who waits for a disk is not ready yet: it is mounting, or reading what it begins with.
        let waits = ballot.wait_until_ns != WAIT_NONE && !slot.has_waited;
        if waits && !self.disks().waits(me) {
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
        self.caught_up(&mut inner, &mut todo, me);
        self.wake_those_ahead(&mut inner, &mut todo);
        self.wake_courteous(&mut inner, &mut todo, now);
        self.next(me, inner, todo)
    }

    /// Waits for the entry of the boundary at which the replica stands, and writes it if nobody else has.
    pub fn await_entry(&self, me: usize) -> Next {
        self.next(me, self.inner(), Todo::default())
    }

    pub(super) fn next<'a>(
        &'a self,
        me: usize,
        mut inner: MutexGuard<'a, Inner>,
        mut todo: Todo,
    ) -> Next {
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
            let now = Instant::now();
            let save = self.save_order(&mut inner, &mut todo, me);
            if let Some(order) = save.or_else(|| self.order(&mut inner, me, now)) {
                // It may have been the one that an input woke: another leads meanwhile.
                self.wake_for_input(&mut inner, &mut todo);
                self.finish(inner, todo);
                return Next::Checkpoint(order);
            }
            let fair_now = inner.fair.at(now);
            let step = inner.vote.step(id(me), fair_now);
            // At the end of the journal a recovering replica votes again, which may decide something.
            self.drain(&mut inner, &mut todo);
            let (place, until) = match step {
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
                // All are to come to this boundary, and stay.
                Step::Lead if inner.hold.is_some() => (Place::Held, None),
                Step::Lead => {
                    let lead = match &self.pace {
                        Pace::Live => self.live_lead(me, &mut inner, &mut todo, now, fair_now),
                        // First what was decided goes out.
                        Pace::Staged(_) if !todo.is_empty() || inner.has_deliverable() => {
                            self.finish(inner, std::mem::take(&mut todo));
                            inner = self.inner();
                            continue;
                        }
                        Pace::Staged(staging) => {
                            self.staged_lead(staging, me, &mut inner, &mut todo, fair_now)
                        }
                    };
                    match lead {
                        Lead::Entry(entry) => {
                            self.finish(inner, todo);
                            return Next::Resume(entry);
                        }
                        Lead::Again => continue,
                        Lead::Sleep(place, until) => (place, until),
                    }
                }
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

    /// Writes the entry of a live set, if it is time for it.
    fn live_lead(
        &self,
        me: usize,
        inner: &mut Inner,
        todo: &mut Todo,
        now: Instant,
        fair_now: u64,
    ) -> Lead {
        match (self.patience(inner, me), courtesy(inner, now)) {
            (None, None) => self
                .lead(me, inner, todo, fair_now)
                .map_or(Lead::Again, Lead::Entry),
            (None, courtesy) => Lead::Sleep(Place::Courteous, courtesy),
            (Some(wait), _) => Lead::Sleep(Place::Idle, wait),
        }
    }

    /// None: the replica may lead now. Otherwise how long it may sleep at most.
    pub(super) fn patience(&self, inner: &Inner, me: usize) -> Option<Option<Duration>> {
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
        (self.ingress.is_empty() && !self.disks.has_due(me)).then_some(left)
    }

    /// Lets those lead that waited for a replica to catch up, if it has come on enough.
    fn wake_courteous(&self, inner: &mut Inner, todo: &mut Todo, now: Instant) {
        let waits = |slot: &Slot| slot.place == Place::Courteous;
        if !inner.slots.iter().any(waits) || courtesy(inner, now).is_some() {
            return;
        }
        for (number, slot) in inner.slots.iter_mut().enumerate() {
            if waits(slot) {
                self.mark(number, slot, todo);
            }
        }
    }

    /// Writes the entry for the frontier.
    fn lead(
        &self,
        me: usize,
        inner: &mut Inner,
        todo: &mut Todo,
        fair_now: u64,
    ) -> Option<Arc<Entry>> {
        // A guest that has never waited is still starting: a client that connects now is kept waiting instead of
        // being refused. A guest that never waits gets its input nevertheless.
        let booting = !inner.slots.iter().any(|slot| slot.has_waited)
            && self.started.elapsed() < crate::patience::patient(BOOT_PATIENCE);
        let (entry, bytes) =
            inner
                .writer
                .write(&self.clock, &*self.ingress, self.disks.due(me), booting);
        self.put_entry(me, inner, todo, (entry, bytes), fair_now)
    }

    /// Puts an entry into the journal (R1: this is the only place where the world gets in).
    pub(super) fn put_entry(
        &self,
        me: usize,
        inner: &mut Inner,
        todo: &mut Todo,
        (entry, bytes): (Entry, usize),
        fair_now: u64,
    ) -> Option<Arc<Entry>> {
        let boundary = inner.slots[me].boundary - 1;
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
        inner.led.0 = Instant::now();
        for (mark, slot) in inner.led.1.iter_mut().zip(&inner.slots) {
            *mark = slot.boundary;
        }
        inner.journal_bytes += (bytes + HISTORY_OVERHEAD) as u64;
        inner.leader = me;
        self.drop_history(inner, false);
        inner.pending.push(Item::Entry {
            boundary,
            entry: Arc::clone(&entry),
        });
        for (number, slot) in inner.slots.iter_mut().enumerate() {
            if matches!(slot.place, Place::Idle | Place::Courteous) && number != me {
                self.mark(number, slot, todo);
            }
        }
        Some(entry)
    }

    pub(super) fn sleep<'a>(
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

    pub(super) fn awake(&self, slot: &mut Slot) {
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

    /// Where and why the replica was stopped, if it was and the set goes on.
    pub fn stopped(&self, me: usize) -> Option<(u64, String)> {
        let inner = self.inner();
        let slot = inner.slots.get(me).filter(|_| inner.end.is_none())?;
        Some((slot.boundary, slot.stopped.clone()?))
    }

    /// A fault that waits for the replica, and may be applied in the middle of a run.
    pub fn mail(&self, me: usize) -> Option<Mail> {
        let mut inner = self.inner();
        let mail = &mut inner.slots[me].mail;
        let first = mail.iter().position(|mail| !mail.at_boundary)?;
        Some(mail.remove(first))
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
            let restarts = slot.recovery.restarts;
            slot.injected.push((mail.fault, applied.clone(), restarts));
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

    /// Records a fault that was injected by who stands between set and machine ([`crate::stage::Interposer`]).
    pub fn interposed(&self, me: usize, detail: String) {
        let mut inner = self.inner();
        let boundary = inner.slots[me].boundary;
        let event = Event::Injected {
            replica: me,
            boundary,
            detail,
        };
        self.event(&mut inner, event);
        self.finish(inner, Todo::default());
    }

    /// Stalls the thread for a while, or until the replica is stopped or the set ends.
    pub fn pause(&self, me: usize, wait: Duration) {
        let until = Instant::now() + wait;
        let mut inner = self.inner();
        while inner.end.is_none() && inner.slots[me].stopped.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            inner.slots[me].place = Place::Frozen;
            inner = self.turns[me]
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        inner.slots[me].place = Place::Running;
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
}

/// None: nobody catches up, or who does comes on well enough. Otherwise how long the next entry waits for it at most.
fn courtesy(inner: &Inner, now: Instant) -> Option<Duration> {
    let (at, marks) = &inner.led;
    let left = (*at + COURTESY).saturating_duration_since(now);
    if left.is_zero() || inner.writer.is_urgent() {
        return None;
    }
    let slow = |(slot, mark): (&Slot, &u64)| {
        matches!(slot.recovery.standing, Standing::Trying(_))
            && slot.stopped.is_none()
            && slot.boundary < mark + CATCH_UP
    };
    inner.slots.iter().zip(marks).any(slow).then_some(left)
}
