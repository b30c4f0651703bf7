//! How a stopped replica comes back, as far as that is bookkeeping under the lock: what its thread is to try next, when it votes
//! again, and when a set without a majority is beyond help (R5).

use super::*;
use crate::recovery::ladder::{Attempt, Choice, Facts, Standing};
use crate::recovery::{Lineage, Step as Rung};

/// How long a clone waits for its donor's checkpoint.
const DONOR_PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks whether what the donor has taken is agreed.
const DONOR_POLL: Duration = Duration::from_millis(5);

/// What a replica's thread does when it has nothing to drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Come back by this, with a machine of this lineage (a clone's is its donor's and comes with the checkpoint).
    Try(Attempt, Lineage),
    /// Free what it has: it may be away for long. Then ask again.
    Rest,
    /// End: the set has, or the replica is no part of it any more.
    Leave,
}

/// What a donor has given.
#[derive(Clone, Debug)]
pub struct Donation {
    /// In the donor's vault.
    pub id: u64,
    /// Where.
    pub boundary: u64,
    /// Of the donor's machine.
    pub lineage: Lineage,
    /// Until when the guest wanted to sleep there.
    pub wait_until_ns: u64,
}

/// What a replica that is about to run again has.
pub struct Arrival {
    /// From where.
    pub how: Rejoin,
    /// Until when the guest wanted to sleep there.
    pub wait_until_ns: u64,
    /// Of its machine.
    pub kick: Kick,
    /// Of its machine.
    pub layout: Vec<(&'static str, u64)>,
    /// Of its machine.
    pub lineage: Lineage,
    /// Where it stands on its disks.
    pub positions: Vec<DiskPosition>,
}

/// How often which step has helped, and what it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recoveries {
    /// By step, in the order of [`Rung::ALL`].
    pub by_step: [u64; 4],
    /// Attempts that failed.
    pub failed_steps: u64,
    /// From the last replica's fault to its vote.
    pub last: Option<Duration>,
}

impl Shared {
    /// A replica was stopped: notes what that means for how it comes back.
    pub(super) fn fallen(&self, inner: &mut Inner, number: usize, reason: &StopReason) {
        if !self.config.enabled || inner.slots[number].recovery.standing == Standing::Removed {
            return;
        }
        let now = Instant::now();
        let frontier = inner.vote.frontier();
        let slot = &mut inner.slots[number];
        slot.behind = false;
        slot.pin = None;
        slot.asked = false;
        let boundary = slot.boundary;
        let failed = slot
            .recovery
            .fell(reason, boundary, frontier, now, &self.config);
        if !slot.recovery.joining {
            inner.weak_since.get_or_insert(now);
        }
        if let Some(step) = failed {
            inner.recoveries.failed_steps += 1;
            let reason = reason.to_string();
            self.event(
                inner,
                Event::StepFailed {
                    replica: number,
                    step,
                    reason,
                },
            );
        }
    }

    /// What the replica's thread is to do, which has nothing to drive. Waits where nothing can be done now.
    pub fn next_task(&self, me: usize) -> Task {
        let mut inner = self.inner();
        inner.slots[me].place = Place::Stopped;
        inner.slots[me].kick = None;
        // Whoever waits for an answer hears that there is none.
        inner.slots[me].mail.clear();
        if inner.token == Some(me) {
            inner.token = None;
        }
        let mut todo = Todo::default();
        // It may have been the one that an input woke.
        self.wake_for_input(&mut inner, &mut todo);
        self.finish(inner, todo);
        let mut inner = self.inner();
        loop {
            if inner.end.is_some() || !self.config.enabled {
                return Task::Leave;
            }
            let slot = &mut inner.slots[me];
            // Only when the disks have forgotten its former life may it begin another.
            let wait = slot.retiring
                || match slot.recovery.standing {
                    Standing::Removed => return Task::Leave,
                    Standing::LeftOut(_) => true,
                    // It neither runs nor was stopped: a defect, but not one to hang on.
                    Standing::Voting => {
                        drop(inner);
                        let text = "its thread ended for no reason; this is a defect of quorate";
                        self.fail(me, StopReason::Failed(text.to_owned()));
                        inner = self.inner();
                        continue;
                    }
                    Standing::Fallen | Standing::Waiting | Standing::Trying(_) => false,
                };
            if !wait {
                let mut todo = Todo::default();
                let task = self.choose(&mut inner, &mut todo, me);
                self.finish(inner, todo);
                if let Some(task) = task {
                    return task;
                }
                inner = self.inner();
                if matches!(inner.slots[me].recovery.standing, Standing::LeftOut(_)) {
                    return Task::Rest;
                }
                // A change between the two would have set something that is looked at here.
                if inner.end.is_some() || inner.slots[me].recovery.standing == Standing::Fallen {
                    continue;
                }
            }
            inner = self.turns[me]
                .wait_timeout(inner, RECONSIDER)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Takes the next step of the ladder for a replica that is fallen or waits. None: it waits, or is left out.
    fn choose(&self, inner: &mut Inner, todo: &mut Todo, me: usize) -> Option<Task> {
        let now = Instant::now();
        let facts = self.facts(inner, me);
        let slot = &mut inner.slots[me];
        match slot.recovery.choose(&facts, now, &self.config) {
            Choice::Wait => {
                slot.recovery.standing = Standing::Waiting;
                None
            }
            Choice::GiveUp(reason) => {
                slot.recovery.standing = Standing::LeftOut(reason.clone());
                slot.recovery.kept.clear();
                self.event(
                    inner,
                    Event::LeftOut {
                        replica: me,
                        reason,
                    },
                );
                self.despair(inner, todo);
                self.rouse_waiting(inner, todo);
                self.poke(inner, todo);
                None
            }
            Choice::Try(attempt) => {
                let lineage = slot.recovery.lineage_for(attempt.step, me);
                if attempt.step >= Rung::Replay {
                    // They are of another layout than the machine that comes.
                    slot.recovery.kept.clear();
                }
                slot.recovery.standing = Standing::Trying(attempt.clone());
                slot.pin = Some(attempt.boundary);
                let used = slot.recovery.kept.last().map(|kept| kept.positions.clone());
                slot.positions = used.unwrap_or_default();
                self.event(
                    inner,
                    Event::Recovering {
                        replica: me,
                        step: attempt.step,
                        boundary: attempt.boundary,
                    },
                );
                Some(Task::Try(attempt, lineage))
            }
        }
    }

    fn facts(&self, inner: &Inner, me: usize) -> Facts {
        let quorum = usize::from(inner.vote.stats().quorum);
        let held = inner.no_quorum.is_some();
        let healthy = |slot: &Slot| {
            slot.recovery.standing == Standing::Voting
                && slot.stopped.is_none()
                && slot.place != Place::Starting
        };
        let donor = (0..inner.slots.len())
            // Not always the same one, so that not all become copies of one.
            .map(|offset| (me + 1 + offset) % inner.slots.len())
            .find(|number| !held && *number != me && healthy(&inner.slots[*number]));
        let others = inner.slots.iter().enumerate();
        let others = others.filter(|(number, slot)| {
            *number != me && !slot.recovery.joining && slot.recovery.may_come_back()
        });
        Facts {
            // What is on its way out is as good as gone.
            history_from: inner.vote.history().from.max(inner.floor),
            frontier: inner.vote.frontier(),
            donor,
            majority_possible: others.count() >= quorum,
        }
    }

    /// Asks a donor for a checkpoint and waits until one is there that was agreed on.
    ///
    /// # Errors
    /// Why there is none: the replica is to ask again.
    pub fn ask_donor(&self, me: usize, donor: usize) -> Result<Donation, String> {
        let patience = Instant::now() + crate::patience::patient(DONOR_PATIENCE);
        let mut inner = self.inner();
        let from = inner.slots[me].pin.unwrap_or(0);
        loop {
            if inner.end.is_some() || inner.slots[me].recovery.standing == Standing::Removed {
                return Err("the set has no more use for it".to_owned());
            }
            let frontier = inner.vote.frontier();
            let slot = &mut inner.slots[donor];
            if slot.stopped.is_some() || slot.recovery.standing != Standing::Voting {
                return Err(format!("replica {donor}, the donor, was stopped itself"));
            }
            let mut kept = slot.recovery.kept.iter();
            let fresh = kept.find(|kept| kept.boundary >= from && kept.boundary < frontier);
            if let Some(kept) = fresh {
                return Ok(Donation {
                    id: kept.id,
                    boundary: kept.boundary,
                    lineage: slot.recovery.lineage,
                    wait_until_ns: kept.wait_until_ns,
                });
            }
            if Instant::now() >= patience {
                return Err(format!("replica {donor}, the donor, took no checkpoint"));
            }
            slot.asked = !slot.recovery.kept.iter().any(|kept| kept.boundary >= from);
            if slot.asked {
                let mut todo = Todo::default();
                self.nudge(donor, slot, &mut todo);
                self.finish(inner, todo);
                inner = self.inner();
            }
            inner = self.turns[me]
                .wait_timeout(inner, DONOR_POLL)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// A replica's machine is ready to go on; the disks know already. False: it is not to.
    ///
    /// # Errors
    /// When the voter does not take it.
    pub fn rejoin(&self, me: usize, arrival: Arrival) -> Result<bool, String> {
        let mut todo = Todo::default();
        let mut inner = self.inner();
        if inner.end.is_some() || !matches!(inner.slots[me].recovery.standing, Standing::Trying(_))
        {
            return Ok(false);
        }
        let fair_now = inner.fair.at(Instant::now());
        inner
            .vote
            .rejoin(id(me), arrival.how, fair_now)
            .map_err(|error| error.to_string())?;
        let slot = &mut inner.slots[me];
        slot.stopped = None;
        slot.exited = false;
        slot.boundary = match arrival.how {
            Rejoin::Start => 0,
            Rejoin::At(boundary) => boundary + 1,
        };
        slot.wait_until_ns = arrival.wait_until_ns;
        slot.kick = Some(arrival.kick);
        slot.layout = arrival.layout;
        slot.recovery.lineage = arrival.lineage;
        slot.positions = arrival.positions;
        slot.behind = true;
        slot.place = Place::Running;
        self.watch(me);
        self.drain(&mut inner, &mut todo);
        self.caught_up(&mut inner, &mut todo, me);
        self.finish(inner, todo);
        Ok(true)
    }

    /// Something kept a replica's thread from running a machine at all.
    pub fn step_failed(&self, me: usize, reason: String) {
        let mut inner = self.inner();
        let slot = &mut inner.slots[me];
        slot.pin = None;
        let Standing::Trying(attempt) = &slot.recovery.standing else {
            return;
        };
        let step = attempt.step;
        slot.recovery.could_not(reason.clone());
        inner.recoveries.failed_steps += 1;
        self.event(
            &mut inner,
            Event::StepFailed {
                replica: me,
                step,
                reason,
            },
        );
        self.finish(inner, Todo::default());
    }

    /// Notes how near a recovering replica has come, after each of its ballots.
    pub(super) fn caught_up(&self, inner: &mut Inner, todo: &mut Todo, me: usize) {
        if !inner.slots[me].behind {
            return;
        }
        if let ReplicaState::Recovering {
            promoted: false, ..
        } = inner.vote.state(id(me))
        {
            return;
        }
        inner.slots[me].behind = false;
        todo.promoted |= 1 << me;
    }

    /// A replica votes again.
    pub(super) fn recovered(&self, inner: &mut Inner, todo: &mut Todo, me: usize, boundary: u64) {
        let now = Instant::now();
        let slot = &mut inner.slots[me];
        let joined = slot.recovery.joining;
        let before = slot.lineage;
        let Some((attempt, after)) = slot.recovery.recovered(now) else {
            return;
        };
        slot.lineage = slot.recovery.lineage;
        slot.pin = None;
        slot.next_checkpoint = now + self.stagger(me);
        slot.journal_mark = inner.journal_bytes;
        inner.recoveries.by_step[attempt.step as usize] += 1;
        inner.recoveries.last = Some(after);
        let layout = match slot.recovery.lineage {
            _ if !self.diverse && !joined => "kept",
            lineage if lineage.replica != me => "copied",
            lineage if lineage == before && !joined => "kept",
            _ => "new",
        };
        if joined {
            self.event(inner, Event::Added { replica: me });
        }
        self.event(
            inner,
            Event::Recovered {
                replica: me,
                step: attempt.step,
                boundary,
                after_ms: after.as_millis() as u64,
                layout,
            },
        );
        if let Some(donor) = attempt.donor {
            self.event(inner, Event::DiversityReduced { replica: me, donor });
        }
        self.note_strength(inner);
        self.caught_up(inner, todo, me);
        self.rouse_waiting(inner, todo);
        self.poke(inner, todo);
    }

    /// Says when all members vote again.
    fn note_strength(&self, inner: &mut Inner) {
        if inner.members().all(|slot| slot.is_voting())
            && let Some(since) = inner.weak_since.take()
        {
            let after_ms = since.elapsed().as_millis() as u64;
            self.event(inner, Event::FullStrength { after_ms });
        }
    }

    /// The set has a majority again.
    pub(super) fn majority(&self, inner: &mut Inner, todo: &mut Todo, boundary: u64) {
        inner.no_quorum = None;
        inner.despaired = false;
        self.event(inner, Event::Majority { boundary });
        for (number, slot) in inner.slots.iter_mut().enumerate() {
            if slot.place == Place::Held {
                self.mark(number, slot, todo);
            }
        }
        self.rouse_waiting(inner, todo);
    }

    /// Gets those to choose again that wait for someone whom they can copy.
    pub(super) fn rouse_waiting(&self, inner: &mut Inner, todo: &mut Todo) {
        for (number, slot) in inner.slots.iter_mut().enumerate() {
            if slot.recovery.standing == Standing::Waiting {
                slot.recovery.standing = Standing::Fallen;
                todo.wake |= 1 << number;
            }
        }
    }

    /// Without a majority: is there still hope for one? If not, the policy applies (R5).
    pub(super) fn despair(&self, inner: &mut Inner, todo: &mut Todo) {
        let Some(lost) = inner.no_quorum.clone() else {
            return;
        };
        if inner.end.is_some() || inner.despaired {
            return;
        }
        let stats = inner.vote.stats();
        let hopeful = inner.members();
        let hopeful = hopeful.filter(|slot| slot.recovery.may_come_back()).count();
        let incurable: Vec<u64> = inner
            .members()
            .filter_map(|slot| slot.recovery.is_incurable())
            .collect();
        let members = inner.members().count();
        let detail = if incurable.len() > members / 2 {
            format!(
                "{} failed in the same way at boundary {} before and after two steps of recovery: the fault lies in the appliance, not in a replica ({lost})",
                crate::events::count(incurable.len()),
                incurable[0]
            )
        } else if hopeful < usize::from(stats.quorum) {
            format!(
                "{lost}; and too few replicas can come back for the majority of {}",
                stats.quorum
            )
        } else {
            return;
        };
        inner.despaired = true;
        inner.no_quorum = Some(detail.clone());
        self.event(
            inner,
            Event::NoMajority {
                boundary: stats.boundaries,
                policy: self.policy,
                recovering: false,
                detail: detail.clone(),
            },
        );
        if self.policy == NoQuorum::Stop {
            self.over(inner, todo, End::NoQuorum { detail });
        }
    }

    /// An operator wants a replica back, by this step or from the top of the ladder.
    ///
    /// # Errors
    /// When there is no such replica, or it is not away.
    pub fn recover(&self, replica: usize, step: Option<Rung>) -> Result<(), String> {
        self.manage(replica)?;
        let mut todo = Todo::default();
        let mut inner = self.inner();
        let slot = &mut inner.slots[replica];
        match slot.recovery.standing {
            Standing::Removed => return Err(format!("replica {replica} was removed: add it")),
            Standing::Trying(_) | Standing::Fallen => {
                return Err(format!("replica {replica} is recovering already"));
            }
            Standing::Voting if step.is_none() => {
                return Err(format!(
                    "replica {replica} runs; name a step to have it begin again by that"
                ));
            }
            Standing::Voting if slot.place == Place::Starting => {
                return Err(format!("replica {replica} is still starting"));
            }
            Standing::Voting => {
                let fair_now = inner.fair.at(Instant::now());
                inner.vote.fail(id(replica), StopReason::Killed, fair_now);
                self.drain(&mut inner, &mut todo);
                self.wake_those_ahead(&mut inner, &mut todo);
            }
            Standing::LeftOut(_) | Standing::Waiting => {}
        }
        let now = Instant::now();
        inner.despaired = false;
        inner.slots[replica].recovery.ask_back(step, now);
        todo.wake |= 1 << replica;
        self.finish(inner, todo);
        Ok(())
    }

    /// Takes a new member in. Its thread is to be started then.
    ///
    /// # Errors
    /// When there is no place for one.
    pub fn add(&self) -> Result<usize, String> {
        self.manageable()?;
        let mut inner = self.inner();
        if inner.end.is_some() {
            return Err("the set has ended".to_owned());
        }
        let free =
            |slot: &Slot| slot.recovery.standing == Standing::Removed && slot.place == Place::Gone;
        let replica = inner.slots.iter().position(free);
        let replica = replica.unwrap_or(inner.slots.len());
        if replica >= MAX_REPLICAS {
            return Err(format!("a set has at most {MAX_REPLICAS} replicas"));
        }
        let fair_now = inner.fair.at(Instant::now());
        inner
            .vote
            .add(id(replica), fair_now)
            .map_err(|error| error.to_string())?;
        let mut slot = Slot::new(Recovery::joining(replica, Instant::now()));
        slot.place = Place::Stopped;
        slot.stopped = Some(StopReason::Joining.to_string());
        if replica == inner.slots.len() {
            inner.slots.push(slot);
        } else {
            inner.slots[replica] = slot;
        }
        self.finish(inner, Todo::default());
        Ok(replica)
    }

    /// Takes a member out.
    ///
    /// # Errors
    /// When it cannot be spared.
    pub fn remove(&self, replica: usize) -> Result<(), String> {
        self.manage(replica)?;
        let mut todo = Todo::default();
        let mut inner = self.inner();
        if inner.slots[replica].recovery.standing == Standing::Removed {
            return Err(format!("replica {replica} was removed already"));
        }
        if inner.slots[replica].place == Place::Starting {
            return Err(format!("replica {replica} is still starting"));
        }
        let fair_now = inner.fair.at(Instant::now());
        inner
            .vote
            .remove(id(replica), fair_now)
            .map_err(|error| error.to_string())?;
        let slot = &mut inner.slots[replica];
        slot.recovery.standing = Standing::Removed;
        slot.recovery.kept.clear();
        slot.pin = None;
        slot.stopped = Some(StopReason::Removed.to_string());
        todo.wake |= 1 << replica;
        self.event(&mut inner, Event::Removed { replica });
        self.drain(&mut inner, &mut todo);
        self.wake_those_ahead(&mut inner, &mut todo);
        self.note_strength(&mut inner);
        self.despair(&mut inner, &mut todo);
        self.finish(inner, todo);
        Ok(())
    }

    fn manageable(&self) -> Result<(), String> {
        if self.config.enabled {
            Ok(())
        } else {
            Err("this set runs without recovery".to_owned())
        }
    }

    fn manage(&self, replica: usize) -> Result<(), String> {
        self.manageable()?;
        let inner = self.inner();
        if inner.end.is_some() {
            return Err("the set has ended".to_owned());
        }
        match inner.slots.get(replica) {
            Some(_) => Ok(()),
            None => Err(format!("there is no replica {replica}")),
        }
    }
}
