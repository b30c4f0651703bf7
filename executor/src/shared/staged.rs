//! How a staged set is paced ([`crate::stage`]): when its next entry may be written, and what it is.

use super::turn::Lead;
use super::*;
use crate::exit::ExitCode;
use crate::journal::{ENTRY_MAX_BYTES, ENTRY_MAX_FRAMES};
use crate::recovery::ladder::Standing;
use crate::stage::{At, Cue, Limits, Spun, Stage, Staged, Strength};
use crate::stage::{ThreadClock, Used};

/// What comes when the stage is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finale {
    /// The set ends.
    End,
    /// It stays where it is, to be saved.
    Rest,
}

/// What a staged set is told at its start.
pub struct Scene {
    /// Gives the entries.
    pub stage: Arc<dyn Stage>,
    /// What ends replicas and the set in real time.
    pub limits: Limits,
    /// What comes at the end.
    pub finale: Finale,
}

/// Where entries come from.
pub enum Pace {
    /// The world, when there is something.
    Live,
    /// A stage, strictly.
    Staged(Box<Staging>),
}

/// A staged set's part of the shared state. Its own lock is only taken with the set's.
pub struct Staging {
    scene: Scene,
    state: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// A replica may not lead because another delivers: it is to be woken then.
    refused: bool,
    over: bool,
    spun: Option<Spun>,
    /// By replica: the clock of its thread, and what it showed when it was first seen on its way to a boundary.
    watched: Vec<Option<Watched>>,
}

struct Watched {
    clock: ThreadClock,
    /// Boundaries reached, and how often it had come back; when it was first seen so.
    since: Option<((u64, u64), Used)>,
}

impl Pace {
    pub fn staged(scene: Scene) -> Pace {
        Pace::Staged(Box::new(Staging {
            scene,
            state: Mutex::default(),
        }))
    }

    /// Time between two ticks.
    pub fn tick(&self, live: Duration) -> Duration {
        match self {
            Pace::Live => live,
            Pace::Staged(staging) => {
                let limit = staging.scene.limits.spin / 4;
                limit.clamp(Duration::from_millis(10), live)
            }
        }
    }
}

/// What a staged set came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Came {
    /// The stage was over.
    pub over: bool,
    /// It did not get on.
    pub spun: Option<Spun>,
}

impl Shared {
    /// What the staged set came to so far.
    pub fn came(&self) -> Came {
        match &self.pace {
            Pace::Live => Came::default(),
            Pace::Staged(staging) => {
                let _inner = self.inner();
                let state = lock(&staging.state);
                Came {
                    over: state.over,
                    spun: state.spun,
                }
            }
        }
    }

    /// Waits until the stage is over or the set has ended. Whether it is over.
    pub fn await_finale(&self) -> bool {
        loop {
            let inner = self.inner();
            if inner.end.is_some() {
                break;
            }
            if let Pace::Staged(staging) = &self.pace
                && lock(&staging.state).over
            {
                break;
            }
            drop(self.wait_changed(inner, Duration::from_secs(1)));
        }
        self.came().over
    }

    /// Notes whose thread this is, so that it can be seen whether it spins.
    pub(super) fn watch(&self, me: usize) {
        if let Pace::Staged(staging) = &self.pace {
            let mut state = lock(&staging.state);
            if state.watched.len() <= me {
                state.watched.resize_with(me + 1, || None);
            }
            state.watched[me] =
                ThreadClock::of_this_thread().map(|clock| Watched { clock, since: None });
        }
    }

    /// All that was to be handed on has been: whoever waits for that may lead.
    pub(super) fn delivered(&self, inner: &mut Inner, todo: &mut Todo) {
        if let Pace::Staged(staging) = &self.pace
            && std::mem::take(&mut lock(&staging.state).refused)
        {
            self.wake_one_idle(inner, todo);
        }
    }

    /// Something changed that the next entry may have waited for.
    pub(super) fn poke(&self, inner: &mut Inner, todo: &mut Todo) {
        if matches!(self.pace, Pace::Staged(_)) {
            self.wake_one_idle(inner, todo);
        }
    }

    /// As `lead` of a live set. What is outstanding in `todo` has been done.
    pub(super) fn staged_lead(
        &self,
        staging: &Staging,
        me: usize,
        inner: &mut Inner,
        todo: &mut Todo,
        fair_now: u64,
    ) -> Lead {
        let boundary = inner.slots[me].boundary - 1;
        if inner.delivering {
            lock(&staging.state).refused = true;
            return Lead::Sleep(Place::Idle, None);
        }
        let decided = inner.vote.frontier() > boundary;
        if !decided || lock(&staging.state).over || !self.is_settled(inner, boundary) {
            return Lead::Sleep(Place::Idle, None);
        }
        let completions = self.completions(inner);
        let at = At {
            boundary,
            // Who is to be told of a disk does not wait, whatever it waits for besides.
            wait_until_ns: match completions.is_empty() {
                true => inner.agreed_wait(),
                false => quorate_abi::sync::WAIT_NONE,
            },
            now_ns: inner.writer.last_ns(),
            strength: inner.strength(self.config.enabled),
        };
        match staging.scene.stage.cue(&at) {
            Cue::Wait => Lead::Sleep(Place::Idle, None),
            Cue::Over => {
                lock(&staging.state).over = true;
                todo.changed = true;
                match staging.scene.finale {
                    Finale::End => self.over(inner, todo, End::Stopped),
                    Finale::Rest => {}
                }
                Lead::Again
            }
            Cue::Entry(staged) => {
                if let Err(detail) = fits(&staged) {
                    let code = ExitCode::Internal;
                    self.over(inner, todo, End::Failed { code, detail });
                    return Lead::Again;
                }
                let (entry, bytes) = inner.writer.stage(staged, completions);
                self.put_entry(me, inner, todo, (entry, bytes), fair_now)
                    .map_or(Lead::Again, Lead::Entry)
            }
        }
    }

    /// Whether everybody who may still have a say at this boundary has had it, and all that was asked of the disks is complete.
    fn is_settled(&self, inner: &Inner, boundary: u64) -> bool {
        inner.slots.iter().enumerate().all(|(number, slot)| {
            if !slot.is_member() {
                true
            } else if slot.is_voting() {
                slot.boundary == boundary + 1 && self.disks.settled(number)
            } else {
                !self.config.enabled || matches!(slot.recovery.standing, Standing::LeftOut(_))
            }
        })
    }

    /// What all who vote wait for on the disks and is complete, in the order of disks and numbers. It is the same for all of them, but
    /// one that has only just come back may not have been told of everything.
    fn completions(&self, inner: &Inner) -> Vec<quorate_devices::Completion> {
        let voting = (0..inner.slots.len()).filter(|r| inner.slots[*r].is_voting());
        let mut all: Vec<_> = voting.flat_map(|r| self.disks.due(r)).collect();
        all.sort_by_key(|completion| (completion.disk, completion.seq));
        all.dedup_by_key(|completion| (completion.disk, completion.seq));
        all
    }

    /// What [`Shared::tick`] does in a staged set: finds replicas that will never come, and repairs wake-ups.
    pub(super) fn staged_tick(&self, staging: &Staging, inner: &mut Inner, todo: &mut Todo) {
        self.find_spinning(staging, inner, todo);
        self.untangle(inner, todo);
        if inner.end.is_none() && self.started.elapsed() > staging.scene.limits.wall {
            let detail = format!(
                "the trial took more than {} s",
                staging.scene.limits.wall.as_secs()
            );
            let code = ExitCode::Internal;
            self.over(inner, todo, End::Failed { code, detail });
        }
        if inner.hold.is_none() {
            self.poke(inner, todo);
        }
    }

    fn find_spinning(&self, staging: &Staging, inner: &mut Inner, todo: &mut Todo) {
        let mut state = lock(&staging.state);
        let mut spinning = Vec::new();
        for (number, watched) in state.watched.iter_mut().enumerate() {
            let (Some(watched), Some(slot)) = (watched, inner.slots.get(number)) else {
                continue;
            };
            if slot.place != Place::Running || slot.stopped.is_some() {
                watched.since = None;
                continue;
            }
            let Some(used) = watched.clock.used() else {
                continue;
            };
            let now = (slot.boundary, slot.recovery.restarts);
            match watched.since {
                Some((seen, before)) if seen == now => {
                    if used.since(before) > staging.scene.limits.spin {
                        spinning.push(number);
                    }
                }
                _ => watched.since = Some((now, used)),
            }
        }
        drop(state);
        for number in spinning {
            self.late(staging, inner, todo, number, false);
        }
    }

    /// A replica's interposer stalls it for so long before its ballot. Whether that ends it.
    pub fn stalled(&self, me: usize, wait: Duration) -> bool {
        let Pace::Staged(staging) = &self.pace else {
            // In real time it is waited for.
            match wait {
                Duration::MAX => self.freeze(me),
                wait => self.pause(me, wait),
            }
            return wait == Duration::MAX;
        };
        if wait < staging.scene.limits.stall {
            return false;
        }
        let mut todo = Todo::default();
        let mut inner = self.inner();
        // The others come to the boundary, if they can, before it is said that nobody does.
        inner.slots[me].place = Place::Frozen;
        self.late(staging, &mut inner, &mut todo, me, true);
        loop {
            self.finish(inner, std::mem::take(&mut todo));
            inner = self.inner();
            if inner.end.is_some() || inner.slots[me].stopped.is_some() {
                inner.slots[me].place = Place::Running;
                break;
            }
            self.late(staging, &mut inner, &mut todo, me, true);
            if todo.is_empty() {
                inner.slots[me].place = Place::Frozen;
                inner = self.turns[me]
                    .wait_timeout(inner, STALL_POLL)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
        self.finish(inner, todo);
        true
    }

    /// A replica does not get on: it is a laggard if somebody else has come to where it goes. If nobody has and nobody will, nobody
    /// can say that it is wrong, and the set ends.
    fn late(
        &self,
        staging: &Staging,
        inner: &mut Inner,
        todo: &mut Todo,
        me: usize,
        stalled: bool,
    ) {
        if inner.end.is_some() || inner.slots[me].stopped.is_some() {
            return;
        }
        let boundary = inner.slots[me].boundary;
        let others = || inner.slots.iter().enumerate().filter(|(r, _)| *r != me);
        let ahead = boundary < inner.vote.frontier()
            || others().any(|(_, slot)| slot.is_voting() && slot.boundary > boundary);
        let fair_now = inner.fair.at(Instant::now());
        if ahead {
            let limits = &staging.scene.limits;
            let limit = if stalled { limits.stall } else { limits.spin };
            let ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
            let reason = StopReason::Lagging {
                boundary,
                late_ns: ns,
                allowed_ns: ns,
                repeatedly: false,
            };
            inner.vote.fail(id(me), reason, fair_now);
            self.drain(inner, todo);
            self.poke(inner, todo);
            return;
        }
        // Somebody may still come: a healthy one that is not there yet, or one that is on its way back.
        let stuck = |number: usize, slot: &Slot| {
            slot.place == Place::Frozen
                || lock(&staging.state)
                    .watched
                    .get(number)
                    .and_then(Option::as_ref)
                    .is_some_and(|watched| watched.is_over(staging.scene.limits.spin))
        };
        let hope = others().any(|(number, slot)| {
            slot.is_member()
                && slot.recovery.may_come_back()
                && slot.stopped.is_none()
                && !stuck(number, slot)
                || slot.is_member()
                    && self.config.enabled
                    && matches!(
                        slot.recovery.standing,
                        Standing::Fallen | Standing::Trying(_) | Standing::Waiting
                    )
                    && slot.stopped.is_some()
        });
        if hope {
            return;
        }
        let mut state = lock(&staging.state);
        state.spun.get_or_insert(Spun {
            boundary,
            replica: me,
            stalled,
        });
        drop(state);
        self.over(inner, todo, End::Stopped);
    }

    /// The voter's clock stands still in a staged set. Where it waits for nothing but time to pass, because nobody moves who could
    /// change anything, it is told that time has passed.
    fn untangle(&self, inner: &mut Inner, todo: &mut Todo) {
        if inner.end.is_some() || inner.no_quorum.is_none() || inner.despaired {
            return;
        }
        let rests = |slot: &Slot| {
            !slot.is_member()
                || match slot.recovery.standing {
                    Standing::Voting => {
                        slot.stopped.is_none()
                            && matches!(slot.place, Place::Idle | Place::Held | Place::Exited)
                    }
                    Standing::LeftOut(_) | Standing::Removed | Standing::Waiting => true,
                    Standing::Fallen | Standing::Trying(_) => false,
                }
        };
        if !inner.slots.iter().all(rests) {
            return;
        }
        let step = inner.vote.config().lag_timeout_ns.saturating_add(1);
        let fair_now = inner.fair.advance(step);
        inner.vote.tick(fair_now);
        self.drain(inner, todo);
    }
}

/// How often a stalled replica looks whether the others have come.
const STALL_POLL: Duration = Duration::from_millis(2);

impl Watched {
    fn is_over(&self, limit: Duration) -> bool {
        match (self.since, self.clock.used()) {
            (Some((_, before)), Some(used)) => used.since(before) > limit,
            _ => false,
        }
    }
}

fn fits(staged: &Staged) -> Result<(), String> {
    let bytes: usize = staged.frames.iter().map(Vec::len).sum();
    let frames = staged.frames.len();
    if frames > ENTRY_MAX_FRAMES || bytes > ENTRY_MAX_BYTES {
        return Err(format!(
            "the stage gave {frames} frames with {bytes} bytes for one entry, allowed are {ENTRY_MAX_FRAMES} with {ENTRY_MAX_BYTES}"
        ));
    }
    Ok(())
}

impl Inner {
    /// Up to when most of those who vote want to sleep; of several that are said equally often the least. One of them may be wrong, and
    /// it is not voted on.
    fn agreed_wait(&self) -> u64 {
        let mut waits: Vec<u64> = self
            .slots
            .iter()
            .filter(|slot| slot.is_voting())
            .map(|slot| slot.wait_until_ns)
            .collect();
        waits.sort_unstable();
        let count = |wait: u64| waits.iter().filter(|other| **other == wait).count();
        let mut best = (0, WAIT_NONE);
        for wait in &waits {
            let found = count(*wait);
            if found > best.0 {
                best = (found, *wait);
            }
        }
        best.1
    }

    fn strength(&self, recovering: bool) -> Strength {
        let mut strength = Strength::default();
        for slot in self.slots.iter().filter(|slot| slot.is_member()) {
            strength.members += 1;
            if slot.is_voting() {
                strength.voting += 1;
            } else if recovering && !matches!(slot.recovery.standing, Standing::LeftOut(_)) {
                strength.recovering += 1;
            } else {
                strength.left_out += 1;
            }
        }
        strength
    }
}
