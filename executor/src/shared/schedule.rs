//! Who takes a checkpoint when, and how much history is kept for whom (R10).
//!
//! At most one replica of the set takes one at a time, so that the others' quorum keeps serving; they are also spread over the
//! interval. What is kept of the journal reaches back to the oldest checkpoint that anybody may want, and to the very
//! beginning while that costs no more than its bound. It is dropped bit by bit, since the set stands still meanwhile.

use super::*;
use crate::recovery::ladder::{Kept, Standing};

/// Entries dropped at most with each one that is written: more than one, so that what is to go does go.
const DROPPED_PER_ENTRY: u64 = 16;
/// Entries dropped at most with each tick, when nothing is written.
const DROPPED_PER_TICK: u64 = 2048;

/// Checkpoints of one replica whose boundaries are not decided yet, at most: it runs ahead, and waits with the next one (R10).
const UNDECIDED: usize = 2;

/// How long a replica whose checkpoint is due lets one go first that has waited for longer.
const COURTESY: Duration = Duration::from_millis(50);

/// A checkpoint that a replica is to take now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Its name.
    pub id: u64,
    /// Where the replica stands.
    pub boundary: u64,
    /// Until when its guest wants to sleep there.
    pub wait_until_ns: u64,
    /// Somebody else wants it.
    pub loan: bool,
    /// The whole set is being saved ([`Shared::hold`]).
    pub save: bool,
}

/// What a checkpoint has cost.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// Where the replica stands on its disks.
    pub positions: Vec<DiskPosition>,
    /// Pages that were copied.
    pub dirty_pages: u64,
    /// Pages that it has in all.
    pub pages: u64,
    /// How long the replica stood still for it.
    pub pause: Duration,
}

/// Counters of a replica's checkpoints.
#[derive(Clone, Debug, Default)]
pub struct Checkpoints {
    /// Taken so far.
    pub taken: u64,
    /// Boundary of the last, and when it was taken.
    pub last: Option<(u64, Instant)>,
    /// Of the last.
    pub pages: u64,
    /// Of the last.
    pub dirty_pages: u64,
    /// Of the last.
    pub pause: Duration,
    /// The longest.
    pub pause_max: Duration,
    /// The last one failed; said once.
    failing: bool,
}

/// The first of all these positions on each disk.
fn first_reads(positions: impl Iterator<Item = DiskPosition>) -> Vec<DiskPosition> {
    let mut first: Vec<DiskPosition> = Vec::new();
    for position in positions {
        let (disk, next) = (position.disk, position.first());
        match first.iter_mut().find(|p| p.disk == disk) {
            Some(position) => position.next = position.next.min(next),
            None => first.push(DiskPosition {
                disk,
                next,
                outstanding: Vec::new(),
            }),
        }
    }
    first
}

impl Shared {
    /// The interval's share of a replica, so that they do not come in a bunch.
    pub(super) fn stagger(&self, me: usize) -> Duration {
        let interval = self.config.checkpoint_interval.unwrap_or_default();
        interval + interval * (me % MAX_REPLICAS) as u32 / MAX_REPLICAS as u32
    }

    fn is_due(&self, inner: &Inner, me: usize, now: Instant) -> bool {
        let slot = &inner.slots[me];
        if self.config.checkpoint_interval.is_none() {
            return slot.asked;
        }
        let grown = inner.journal_bytes.saturating_sub(slot.journal_mark);
        slot.asked
            || grown >= self.config.checkpoint_journal
            || (now >= slot.next_checkpoint && now >= inner.not_before)
    }

    /// Whether another replica, whose last checkpoint is older, is to have the token first. Otherwise the fastest would
    /// always be there first, and the slowest never.
    fn gives_way(&self, inner: &mut Inner, me: usize, now: Instant) -> bool {
        let since = *inner.slots[me].due_since.get_or_insert(now);
        if inner.slots[me].asked || now.saturating_duration_since(since) > COURTESY {
            return false;
        }
        let last = |number: usize| inner.slots[number].checkpoints.last.map(|(_, at)| at);
        (0..inner.slots.len()).any(|number| {
            number != me
                && inner.slots[number].is_voting()
                && last(number) < last(me)
                && self.is_due(inner, number, now)
        })
    }

    /// Whether the replica that stands at a boundary is to take a checkpoint there first.
    pub(super) fn order(&self, inner: &mut Inner, me: usize, now: Instant) -> Option<Order> {
        if !self.config.enabled
            || inner.token.is_some()
            || inner.no_quorum.is_some()
            || !self.is_due(inner, me, now)
            || self.gives_way(inner, me, now)
        {
            return None;
        }
        let interval = self.config.checkpoint_interval;
        let frontier = inner.vote.frontier();
        let slot = &mut inner.slots[me];
        let boundary = slot.boundary.checked_sub(1)?;
        if slot.recovery.standing != Standing::Voting || slot.stopped.is_some() || slot.exited {
            return None;
        }
        slot.recovery.confirm(frontier, self.config.keep);
        let open = slot.recovery.kept.iter().filter(|kept| !kept.confirmed);
        if open.count() >= UNDECIDED {
            return None;
        }
        slot.asked = false;
        slot.due_since = None;
        if let Some(interval) = interval {
            slot.next_checkpoint = now + interval;
        }
        let last = slot.recovery.kept.last();
        if last.is_some_and(|kept| kept.boundary == boundary) {
            // It has not moved since its last.
            return None;
        }
        inner.token = Some(me);
        inner.last_id += 1;
        Some(Order {
            id: inner.last_id,
            boundary,
            wait_until_ns: inner.slots[me].wait_until_ns,
            loan: interval.is_none(),
            save: false,
        })
    }

    /// A checkpoint has been taken and lies in its vault, or could not be taken. Returns the names of those that the vault is to keep.
    pub fn checkpointed(&self, me: usize, order: Order, result: Result<Taken, String>) -> Vec<u64> {
        let now = Instant::now();
        let mut todo = Todo::default();
        let mut inner = self.inner();
        if inner.token == Some(me) {
            inner.token = None;
        }
        let members = inner.members().count().max(1) as u32;
        // Half of what an even spread would be: enough that they do not bunch, and no one starves.
        inner.not_before =
            now + self.config.checkpoint_interval.unwrap_or_default() / (2 * members);
        inner.slots[me].journal_mark = inner.journal_bytes;
        let frontier = inner.vote.frontier();
        let slot = &mut inner.slots[me];
        let mut failed = None;
        match result {
            // A replica that was stopped meanwhile has cast what nobody may rely on.
            Ok(_) if slot.stopped.is_some() => {}
            Ok(taken) => {
                // One on loan at a time: whoever wanted the last has it by now, or does not want it any more.
                slot.recovery.kept.retain(|kept| !(order.loan && kept.loan));
                slot.recovery.kept.push(Kept {
                    id: order.id,
                    boundary: order.boundary,
                    wait_until_ns: order.wait_until_ns,
                    at: now,
                    confirmed: false,
                    loan: order.loan,
                    positions: taken.positions,
                });
                slot.recovery.confirm(frontier, self.config.keep);
                let counters = &mut slot.checkpoints;
                counters.taken += 1;
                counters.last = Some((order.boundary, now));
                counters.pages = taken.pages;
                counters.dirty_pages = taken.dirty_pages;
                counters.pause = taken.pause;
                counters.pause_max = counters.pause_max.max(taken.pause);
                counters.failing = false;
            }
            Err(reason) => {
                failed = (!slot.checkpoints.failing).then_some(reason);
                slot.checkpoints.failing = true;
            }
        }
        let ids = slot.recovery.ids();
        if let Some(reason) = failed {
            self.event(
                &mut inner,
                Event::CheckpointFailed {
                    replica: Some(me),
                    reason,
                },
            );
        }
        // Who waits for this one to copy it looks by itself.
        self.aim(&mut inner, &mut todo);
        self.finish(inner, todo);
        ids
    }

    /// Takes a checkpoint off the list that was only taken for another replica. False if it is the owner's.
    pub fn give_back(&self, donor: usize, id: u64) -> bool {
        let mut inner = self.inner();
        let Some(slot) = inner.slots.get_mut(donor) else {
            return false;
        };
        let before = slot.recovery.kept.len();
        slot.recovery
            .kept
            .retain(|kept| !(kept.loan && kept.id == id));
        slot.recovery.kept.len() < before
    }

    /// A replica begins with a checkpoint at boundary 0, which goes onto its list. Its name in the vault.
    pub fn begins_at(&self, me: usize, wait_until_ns: u64, positions: Vec<DiskPosition>) -> u64 {
        let mut inner = self.inner();
        inner.last_id += 1;
        let id = inner.last_id;
        inner.slots[me].recovery.kept.push(Kept {
            id,
            boundary: 0,
            wait_until_ns,
            at: Instant::now(),
            confirmed: true,
            loan: false,
            positions,
        });
        id
    }

    /// Puts a checkpoint that a replica was made from on its list, so that it is its first own one.
    pub fn adopt(&self, me: usize, kept: Kept) {
        let mut inner = self.inner();
        inner.slots[me].recovery.kept.push(kept);
    }

    /// What the list says of a checkpoint.
    pub fn kept(&self, replica: usize, id: u64) -> Option<Kept> {
        let inner = self.inner();
        let mut kept = inner.slots.get(replica)?.recovery.kept.iter();
        kept.find(|kept| kept.id == id).cloned()
    }

    /// Names of a replica's checkpoints.
    pub fn ids(&self, me: usize) -> Vec<u64> {
        self.inner().slots[me].recovery.ids()
    }

    /// Wakes one replica that sleeps and whose checkpoint is due. It stands at a boundary, so that the journal is not touched.
    pub(super) fn wake_for_checkpoint(&self, inner: &mut Inner, todo: &mut Todo, now: Instant) {
        if !self.config.enabled || inner.token.is_some() || inner.no_quorum.is_some() {
            return;
        }
        let asleep = |slot: &Slot| {
            let moved = slot
                .recovery
                .kept
                .last()
                .is_none_or(|kept| kept.boundary + 1 < slot.boundary);
            matches!(slot.place, Place::Idle | Place::Ahead) && moved
        };
        let due = (0..inner.slots.len())
            .filter(|number| asleep(&inner.slots[*number]) && self.is_due(inner, *number, now))
            .min_by_key(|number| inner.slots[*number].checkpoints.last.map(|(_, at)| at));
        if let Some(number) = due {
            self.mark(number, &mut inner.slots[number], todo);
        }
    }

    /// Gets a replica that sleeps at a boundary to look; one that runs comes to one by itself.
    pub(super) fn nudge(&self, number: usize, slot: &mut Slot, todo: &mut Todo) {
        if matches!(slot.place, Place::Idle | Place::Ahead) {
            self.mark(number, slot, todo);
        }
    }

    /// Works out from where on history is wanted.
    pub(super) fn aim(&self, inner: &mut Inner, todo: &mut Todo) {
        if !self.config.enabled {
            return;
        }
        let frontier = inner.vote.frontier();
        for slot in &mut inner.slots {
            if slot.stopped.is_none() && slot.recovery.standing == Standing::Voting {
                slot.recovery.confirm(frontier, self.config.keep);
            }
        }
        let held = inner.vote.history().bytes as u64 + self.disks.logged_bytes();
        if inner.from_start && held > self.config.history {
            inner.from_start = false;
        }
        let above = held > self.config.history_limit();
        // A copy may begin where the set stands now.
        let mut floor = frontier.saturating_sub(1);
        let mut oldest: Option<(usize, u64)> = None;
        if inner.from_start {
            floor = 0;
        }
        for (number, slot) in inner.slots.iter().enumerate() {
            if let Some(pin) = slot.pin {
                floor = floor.min(pin);
            }
            if matches!(slot.recovery.standing, Standing::Trying(_)) && slot.stopped.is_none() {
                floor = floor.min(slot.boundary.saturating_sub(1));
            }
            if matches!(
                slot.recovery.standing,
                Standing::LeftOut(_) | Standing::Removed
            ) {
                continue;
            }
            // What is on loan is pinned by who wants it.
            let mut own = slot.recovery.kept.iter().filter(|kept| !kept.loan);
            let first = own.next().map(|kept| kept.boundary);
            let wanted = first.or_else(|| {
                // It has none yet; its first is on its way.
                let soon = self.config.checkpoint_interval.is_some() && !above;
                soon.then_some(0)
            });
            if let Some(wanted) = wanted {
                floor = floor.min(wanted);
                if first.is_some() && oldest.is_none_or(|(_, boundary)| wanted < boundary) {
                    oldest = Some((number, wanted));
                }
            }
        }
        if above
            && let Some((number, boundary)) = oldest
            && boundary <= floor
        {
            // R10: whosever it is, it costs too much.
            inner.slots[number].recovery.kept.remove(0);
        }
        inner.floor = inner.floor.max(floor);
        if inner.vote.history().from > 0 {
            // Who is on its way from a checkpoint still counts with what that said; from where a copy will come nobody knows yet.
            let unknown = |slot: &Slot| slot.pin.is_some() && slot.positions.is_empty();
            if !inner.slots.iter().any(unknown) {
                let of = |slot: &Slot| {
                    let kept = slot.recovery.kept.iter().map(|kept| kept.positions.clone());
                    let coming = slot.pin.map(|_| slot.positions.clone());
                    kept.chain(coming).flatten().collect::<Vec<_>>()
                };
                todo.forget = first_reads(inner.slots.iter().flat_map(of));
            }
        }
    }

    /// Drops a part of what is not wanted any more.
    pub(super) fn drop_history(&self, inner: &mut Inner, tick: bool) {
        if !self.config.enabled {
            return;
        }
        let from = inner.vote.history().from;
        if from < inner.floor {
            let part = if tick {
                DROPPED_PER_TICK
            } else {
                DROPPED_PER_ENTRY
            };
            inner.vote.keep_from(inner.floor.min(from + part));
        }
    }
}
