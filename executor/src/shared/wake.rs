//! Who is woken when, and how the lock is left.

use super::*;

/// Who is to be woken or kicked once the lock is free.
#[derive(Default)]
pub(super) struct Todo {
    pub(super) wake: u32,
    pub(super) kicks: Vec<Kick>,
    pub(super) changed: bool,
    /// Replicas that were stopped: the disks keep nothing more for them.
    pub(super) retired: u32,
    /// Replicas that have caught up far enough for views of the disks of their own.
    pub(super) promoted: u32,
    /// Where on each disk what was read before is not wanted any more.
    pub(super) forget: Vec<DiskPosition>,
}

impl Todo {
    pub(super) fn is_empty(&self) -> bool {
        self.wake == 0
            && self.kicks.is_empty()
            && !self.changed
            && self.retired == 0
            && self.promoted == 0
            && self.forget.is_empty()
    }
}

impl Shared {
    /// Gets a replica's thread to look at its state, wherever it is.
    pub(super) fn rouse(&self, number: usize, slot: &mut Slot, todo: &mut Todo) {
        match slot.place {
            Place::Running => todo.kicks.extend(slot.kick.clone()),
            Place::Starting | Place::Gone => {}
            // Its own loop says what it is.
            Place::Stopped => todo.wake |= 1 << number,
            Place::Idle
            | Place::Ahead
            | Place::Courteous
            | Place::Held
            | Place::Exited
            | Place::Frozen => self.mark(number, slot, todo),
        }
    }

    /// Wakes a replica that sleeps. From here on it counts as running, so that nobody wakes it twice.
    pub(super) fn mark(&self, number: usize, slot: &mut Slot, todo: &mut Todo) {
        self.awake(slot);
        todo.wake |= 1 << number;
    }

    pub(super) fn wake_for_input(&self, inner: &mut Inner, todo: &mut Todo) {
        if !self.ingress.is_empty() || inner.writer.is_urgent() {
            self.wake_one_idle(inner, todo);
        } else {
            let due = (0..inner.slots.len())
                .filter(|number| self.disks.has_due(*number))
                .fold(0, |mask, number| mask | 1 << number);
            self.wake_one_due(inner, due, todo);
        }
    }

    /// Wakes one idle replica of this bit mask to lead.
    pub(super) fn wake_one_due(&self, inner: &mut Inner, due: u32, todo: &mut Todo) {
        let waits =
            |slot: &Slot, number: usize| due >> number & 1 == 1 && slot.place == Place::Idle;
        let leader = inner.leader;
        let number = if waits(&inner.slots[leader], leader) {
            Some(leader)
        } else {
            (0..inner.slots.len()).find(|number| waits(&inner.slots[*number], *number))
        };
        if let Some(number) = number {
            self.mark(number, &mut inner.slots[number], todo);
        }
    }

    /// Wakes one replica to lead: the last leader if it is idle, since its caches are warm.
    pub(super) fn wake_one_idle(&self, inner: &mut Inner, todo: &mut Todo) {
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
    pub(super) fn wake_those_ahead(&self, inner: &mut Inner, todo: &mut Todo) {
        if inner.slots.iter().all(|slot| slot.place != Place::Ahead) {
            return;
        }
        let slowest = inner
            .slots
            .iter()
            .filter(|slot| slot.stopped.is_none() && !slot.behind)
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

    /// Frees the lock, wakes and kicks who must be, and hands on what is there.
    ///
    /// Items go out in their order: one thread at a time delivers, and looks again before it ends. What piles up
    /// meanwhile is bounded by the window, beyond which the other replicas do not get while the deliverer's own stands
    /// still (R10).
    pub(super) fn finish<'a>(&'a self, mut inner: MutexGuard<'a, Inner>, todo: Todo) {
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
                let mut todo = Todo::default();
                self.delivered(&mut inner, &mut todo);
                drop(inner);
                self.act(todo);
                return;
            }
            items = inner.take_deliverable();
            drop(inner);
        }
    }

    pub(super) fn act(&self, todo: Todo) {
        let mut wake = todo.wake;
        while wake != 0 {
            self.turns[wake.trailing_zeros() as usize].notify_one();
            wake &= wake - 1;
        }
        for kick in todo.kicks {
            kick();
        }
        let mut promoted = todo.promoted;
        while promoted != 0 {
            self.disks.promote(promoted.trailing_zeros() as usize);
            promoted &= promoted - 1;
        }
        if todo.retired != 0 {
            self.retire(todo.retired);
        }
        self.disks.forget_reads(&todo.forget);
        if todo.changed {
            self.changed.notify_all();
        }
    }
}

impl Shared {
    /// The disks forget stopped replicas. Only then may one of them begin another life there.
    fn retire(&self, replicas: u32) {
        let mine = |number: &usize| replicas >> number & 1 == 1;
        for number in (0..MAX_REPLICAS).filter(mine) {
            self.disks.retire(number);
        }
        let mut inner = self.inner();
        for (number, slot) in inner.slots.iter_mut().enumerate() {
            if mine(&number) {
                slot.retiring = false;
                self.turns[number].notify_one();
            }
        }
    }
}

impl Inner {
    pub(super) fn has_deliverable(&self) -> bool {
        !self.delivering && !self.pending.is_empty()
    }

    /// What the caller must deliver now. If it is anything, nobody else delivers until the caller says that it is done.
    pub(super) fn take_deliverable(&mut self) -> Vec<Item> {
        if !self.has_deliverable() {
            return Vec::new();
        }
        self.delivering = true;
        std::mem::take(&mut self.pending)
    }
}
