//! Advisory locks on a file: `flock`, POSIX record locks and open-file-description locks.

use crate::errno::*;
use crate::wait::WaitQueue;
use alloc::vec::Vec;
use core::cell::RefCell;

/// Most record locks on one file (R10); `ENOLCK` beyond.
pub const MAX_RANGES: usize = 4096;

/// `F_RDLCK`.
pub const F_RDLCK: i16 = 0;
/// `F_WRLCK`.
pub const F_WRLCK: i16 = 1;
/// `F_UNLCK`.
pub const F_UNLCK: i16 = 2;

/// Who holds a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The process with this id (POSIX).
    Process(u32),
    /// An open file description.
    Description(u64),
}

/// A record lock on `[start, end)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// Holder.
    pub owner: Owner,
    /// Exclusive.
    pub write: bool,
    /// First byte.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
}

#[derive(Default)]
struct State {
    whole: Vec<(u64, bool)>,
    ranges: Vec<Range>,
}

/// All locks on one inode.
#[derive(Default)]
pub struct Locks {
    state: RefCell<State>,
    /// Woken when a lock is released.
    pub queue: WaitQueue,
}

impl Locks {
    /// `flock` for a description.
    ///
    /// # Errors
    /// `EAGAIN` while another description holds a conflicting lock.
    pub fn flock(&self, description: u64, exclusive: bool) -> Result<()> {
        let mut state = self.state.borrow_mut();
        let conflict =
            |(holder, write): &(u64, bool)| *holder != description && (exclusive || *write);
        if state.whole.iter().any(conflict) {
            return Err(EAGAIN);
        }
        let before = state.whole.len();
        state.whole.retain(|(holder, _)| *holder != description);
        let converted = state.whole.len() != before;
        state.whole.push((description, exclusive));
        drop(state);
        if converted && !exclusive {
            self.queue.wake_all();
        }
        Ok(())
    }

    /// Releases a description's `flock`.
    pub fn funlock(&self, description: u64) {
        let mut state = self.state.borrow_mut();
        let before = state.whole.len();
        state.whole.retain(|(holder, _)| *holder != description);
        let changed = state.whole.len() != before;
        drop(state);
        if changed {
            self.queue.wake_all();
        }
    }

    /// The first lock that is in the way of `wanted`.
    pub fn conflict(&self, wanted: &Range) -> Option<Range> {
        let state = self.state.borrow();
        let hit = |r: &&Range| {
            r.owner != wanted.owner
                && (r.write || wanted.write)
                && r.start < wanted.end
                && wanted.start < r.end
        };
        state.ranges.iter().find(hit).copied()
    }

    /// Takes a record lock, replacing what the owner held in its range.
    ///
    /// # Errors
    /// `EAGAIN` on a conflict, `ENOLCK` at the bound.
    pub fn lock(&self, wanted: Range) -> Result<()> {
        if self.conflict(&wanted).is_some() {
            return Err(EAGAIN);
        }
        // Cutting a hole into a range adds one more.
        if self.state.borrow().ranges.len() + 2 > MAX_RANGES {
            return Err(ENOLCK);
        }
        self.unlock(wanted.owner, wanted.start, wanted.end);
        self.state.borrow_mut().ranges.push(wanted);
        Ok(())
    }

    /// Releases what `owner` holds in `[start, end)`.
    pub fn unlock(&self, owner: Owner, start: u64, end: u64) {
        let mut state = self.state.borrow_mut();
        let mut kept = Vec::with_capacity(state.ranges.len());
        let mut changed = false;
        for range in &state.ranges {
            if range.owner != owner || range.end <= start || end <= range.start {
                kept.push(*range);
                continue;
            }
            changed = true;
            if range.start < start {
                kept.push(Range {
                    end: start,
                    ..*range
                });
            }
            if end < range.end {
                kept.push(Range {
                    start: end,
                    ..*range
                });
            }
        }
        if changed {
            state.ranges = kept;
        }
        drop(state);
        if changed {
            self.queue.wake_all();
        }
    }

    /// Whether the process holds record locks here (they go when it closes any descriptor of the file).
    pub fn release(&self, owner: Owner) {
        let held = self.state.borrow().ranges.iter().any(|r| r.owner == owner);
        if held {
            self.unlock(owner, 0, u64::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn range(owner: Owner, write: bool, start: u64, end: u64) -> Range {
        Range {
            owner,
            write,
            start,
            end,
        }
    }

    #[test]
    fn descriptions_conflict_and_the_process_does_not_conflict_with_itself() {
        let locks = Locks::default();
        let (a, b) = (Owner::Description(1), Owner::Description(2));
        locks.lock(range(a, true, 0, 100)).unwrap();
        assert_eq!(locks.lock(range(b, false, 50, 60)), Err(EAGAIN));
        assert_eq!(
            locks.lock(range(Owner::Process(1), true, 99, 200)),
            Err(EAGAIN)
        );
        // A hole in the middle lets the other in, and only there.
        locks.unlock(a, 40, 60);
        locks.lock(range(b, true, 40, 60)).unwrap();
        assert_eq!(locks.lock(range(b, true, 39, 60)), Err(EAGAIN));
        assert_eq!(
            locks.conflict(&range(b, true, 60, 61)).unwrap(),
            range(a, true, 60, 100)
        );
        locks.release(a);
        locks.lock(range(b, true, 0, u64::MAX)).unwrap();
        let process = range(Owner::Process(1), true, 0, 1);
        assert_eq!(locks.lock(process), Err(EAGAIN));
        locks.release(b);
        locks.lock(process).unwrap();
        locks.lock(process).unwrap();
    }

    #[test]
    fn flock_is_shared_or_exclusive_per_description() {
        let locks = Locks::default();
        locks.flock(1, false).unwrap();
        locks.flock(2, false).unwrap();
        assert_eq!(locks.flock(1, true), Err(EAGAIN));
        locks.funlock(2);
        locks.flock(1, true).unwrap();
        assert_eq!(locks.flock(2, false), Err(EAGAIN));
        locks.flock(1, false).unwrap();
        locks.flock(2, false).unwrap();
    }
}
