//! Time. It comes from the journal at each boundary (R1); between boundaries each read advances it by a fixed step, so
//! that it never stands still and is the same in every replica.

use crate::cell::Global;
use crate::wait::Watcher;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;

/// Nanoseconds that each read of a clock adds.
pub const READ_STEP_NS: u64 = 50;
/// Reads between two boundaries after which the kernel asks the journal for the time again, so that a program that
/// waits for a time by polling a clock sees it pass.
pub const READS_PER_BOUNDARY: u32 = 4096;

struct Clock {
    monotonic_ns: u64,
    /// realtime minus monotonic
    offset_ns: u64,
    reads: u32,
}

static CLOCK: Global<Clock> = Global::new(Clock {
    monotonic_ns: 0,
    offset_ns: 0,
    reads: 0,
});

/// Takes over the time of an entry. Never goes back, even if reads had run ahead of it.
pub fn set(monotonic_ns: u64, realtime_ns: u64) {
    let mut clock = CLOCK.borrow_mut();
    clock.offset_ns = realtime_ns.saturating_sub(monotonic_ns);
    clock.monotonic_ns = clock.monotonic_ns.max(monotonic_ns);
    clock.reads = 0;
}

/// The time now, without advancing it (for deadlines inside the kernel).
pub fn now_ns() -> u64 {
    CLOCK.borrow().monotonic_ns
}

/// A program's read of the monotonic clock: advances it by one step.
pub fn read_monotonic_ns() -> u64 {
    let mut clock = CLOCK.borrow_mut();
    clock.reads += 1;
    clock.monotonic_ns += READ_STEP_NS;
    clock.monotonic_ns
}

/// A program's read of the wall clock.
pub fn read_realtime_ns() -> u64 {
    read_monotonic_ns().wrapping_add(CLOCK.borrow().offset_ns)
}

/// Wall-clock time without advancing it.
pub fn realtime_ns() -> u64 {
    let clock = CLOCK.borrow();
    clock.monotonic_ns.wrapping_add(clock.offset_ns)
}

/// Converts a wall-clock deadline to a monotonic one.
pub fn realtime_to_monotonic_ns(realtime_ns: u64) -> u64 {
    realtime_ns.saturating_sub(CLOCK.borrow().offset_ns)
}

/// True when a program has read the clock so often since the last boundary that a new time is due.
pub fn stale() -> bool {
    CLOCK.borrow().reads >= READS_PER_BOUNDARY
}

/// Names an armed timer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TimerId {
    deadline_ns: u64,
    serial: u64,
}

struct Timers {
    armed: BTreeMap<TimerId, Rc<dyn Watcher>>,
    next: u64,
}

static TIMERS: Global<Timers> = Global::new(Timers {
    armed: BTreeMap::new(),
    next: 0,
});

/// Calls `watcher.notify()` once, at the first boundary at which the monotonic time has reached `deadline_ns`.
pub fn arm(deadline_ns: u64, watcher: Rc<dyn Watcher>) -> TimerId {
    let mut timers = TIMERS.borrow_mut();
    let id = TimerId {
        deadline_ns,
        serial: timers.next,
    };
    timers.next += 1;
    timers.armed.insert(id, watcher);
    id
}

/// Disarms a timer; one that has fired already is ignored.
pub fn cancel(id: TimerId) {
    TIMERS.borrow_mut().armed.remove(&id);
}

/// Deadline of the timer that fires first.
pub fn next_deadline_ns() -> Option<u64> {
    TIMERS.borrow().armed.keys().next().map(|id| id.deadline_ns)
}

/// Fires all timers that are due.
pub fn fire_due() {
    loop {
        let now = now_ns();
        let mut timers = TIMERS.borrow_mut();
        match timers.armed.first_key_value() {
            Some((id, _)) if id.deadline_ns <= now => {}
            _ => return,
        }
        let due = timers.armed.pop_first();
        drop(timers);
        if let Some((_, watcher)) = due {
            watcher.notify();
        }
    }
}

/// `struct timespec`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Timespec {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nsec: i64,
}

impl Timespec {
    /// From nanoseconds.
    pub fn from_ns(ns: u64) -> Self {
        Self {
            sec: (ns / 1_000_000_000) as i64,
            nsec: (ns % 1_000_000_000) as i64,
        }
    }

    /// To nanoseconds; `EINVAL` if out of range, saturating above 584 years.
    pub fn to_ns(self) -> crate::errno::Result<u64> {
        if self.sec < 0 || !(0..1_000_000_000).contains(&self.nsec) {
            return Err(crate::errno::EINVAL);
        }
        Ok((self.sec as u64)
            .saturating_mul(1_000_000_000)
            .saturating_add(self.nsec as u64))
    }
}
