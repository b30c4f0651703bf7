//! Waiting with a timeout in system calls.

use crate::boundary;
use crate::cell::Global;
use crate::errno::*;
use crate::time::{self, Timespec};
use crate::wait::{self, WaitQueue, Wake};
use crate::{sched, user};

/// A program that asks for readiness without waiting, this often in a row and in vain, gets a boundary: input comes only
/// there, and a program that polls would never see any (R1).
pub const VAIN_POLLS_PER_BOUNDARY: u32 = 8;

static VAIN_POLLS: Global<u32> = Global::new(0);

/// When a wait ends.
#[derive(Clone, Copy)]
enum Until {
    /// Not at all: the call only looks.
    Now,
    /// At this monotonic time.
    At(u64),
    /// Never.
    Forever,
}

/// The deadline of a system call.
pub struct Deadline {
    until: Until,
    passed: bool,
}

impl Deadline {
    fn new(until: Until) -> Self {
        Self {
            until,
            passed: false,
        }
    }

    /// No deadline.
    pub fn never() -> Self {
        Self::new(Until::Forever)
    }

    /// So many nanoseconds from now; 0 means not to wait.
    pub fn after_ns(ns: u64) -> Self {
        Self::new(match ns {
            0 => Until::Now,
            _ => Until::At(time::now_ns().saturating_add(ns)),
        })
    }

    /// From a timeout in milliseconds, below 0 for ever.
    pub fn from_ms(ms: i32) -> Self {
        match u64::try_from(ms) {
            Ok(ms) => Self::after_ns(ms * 1_000_000),
            Err(_) => Self::never(),
        }
    }

    /// From a `struct timespec` of the program, null for ever.
    ///
    /// # Errors
    /// `EFAULT`, `EINVAL`.
    pub fn from_timespec(address: u64) -> Result<Self> {
        if address == 0 {
            return Ok(Self::never());
        }
        Ok(Self::after_ns(user::read::<Timespec>(address)?.to_ns()?))
    }

    /// Nanoseconds left, for calls that tell the program.
    pub fn left_ns(&self) -> u64 {
        match self.until {
            Until::At(deadline) => deadline.saturating_sub(time::now_ns()),
            _ => 0,
        }
    }

    /// Waits until one of `queues` is woken. False: the time is up (the caller has looked once more before that).
    ///
    /// # Errors
    /// `EINTR`.
    pub fn wait(&mut self, queues: &[&WaitQueue]) -> Result<bool> {
        if self.passed {
            return Ok(false);
        }
        let deadline = match self.until {
            Until::Now => {
                poll_in_vain();
                self.passed = true;
                return Ok(true);
            }
            Until::At(deadline) => Some(deadline),
            Until::Forever => None,
        };
        match wait::wait_on(queues, deadline) {
            Wake::Ready => Ok(true),
            Wake::Timeout => {
                self.passed = true;
                Ok(true)
            }
            Wake::Signal => Err(EINTR),
        }
    }
}

/// Lets others run, and now and then input arrive, when a program looks for something and does not wait.
pub fn poll_in_vain() {
    let due = {
        let mut polls = VAIN_POLLS.borrow_mut();
        *polls = (*polls + 1) % VAIN_POLLS_PER_BOUNDARY;
        *polls == 0
    };
    if due {
        boundary::sync_now();
    }
    sched::yield_now();
}
