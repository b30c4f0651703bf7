//! How much processor time a thread has had.

use std::time::Duration;

/// The processor-time clock of a thread. It can be read from any thread; when its own has ended, it gives nothing.
#[derive(Clone, Copy, Debug)]
pub struct ThreadClock(libc::clockid_t);

/// A reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used(Duration);

impl Used {
    /// What was used from then to this one.
    #[must_use]
    pub fn since(self, before: Used) -> Duration {
        self.0.saturating_sub(before.0)
    }
}

impl ThreadClock {
    /// The clock of the thread that asks.
    #[must_use]
    pub fn of_this_thread() -> Option<ThreadClock> {
        let mut clock: libc::clockid_t = 0;
        // SAFETY: It has no requirements.
        let this = unsafe { libc::pthread_self() };
        // SAFETY: `this` is a live thread's, and the place for the answer is valid.
        let result = unsafe { libc::pthread_getcpuclockid(this, &raw mut clock) };
        (result == 0).then_some(ThreadClock(clock))
    }

    /// What it shows; nothing if the thread is gone.
    #[must_use]
    pub fn used(self) -> Option<Used> {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: The place for the answer is valid; an id of a thread that is gone is refused by the kernel.
        let result = unsafe { libc::clock_gettime(self.0, &raw mut time) };
        if result != 0 {
            return None;
        }
        let seconds = u64::try_from(time.tv_sec).ok()?;
        let nanos = u32::try_from(time.tv_nsec).ok()?;
        Some(Used(Duration::new(seconds, nanos)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn it_counts_work_and_not_sleep_and_ends_with_its_thread() {
        let (to, from) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            to.send(ThreadClock::of_this_thread().unwrap()).unwrap();
            // Until the other end is dropped.
            let _ = wait.recv();
        });
        let clock = from.recv().unwrap();
        let own = ThreadClock::of_this_thread().unwrap();
        let (theirs, mine) = (clock.used().unwrap(), own.used().unwrap());
        while own.used().unwrap().since(mine) < Duration::from_millis(20) {}
        assert!(clock.used().unwrap().since(theirs) < Duration::from_millis(10));
        drop(go);
        thread.join().unwrap();
        assert_eq!(clock.used(), None);
    }
}
