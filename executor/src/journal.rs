//! What goes into the journal: the world's frames and the time, read from one clock, as an [`Entry`] per boundary (R1).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quorate_abi::sync::FLAG_TERMINATE;
use quorate_devices::{Completion, Entry};

use crate::stage::Staged;

/// Frames that one entry may hold (R10); what is over waits for the next boundary.
pub const ENTRY_MAX_FRAMES: usize = 256;
/// Bytes of frames that one entry may hold (R10); what is over waits for the next boundary.
pub const ENTRY_MAX_BYTES: usize = 1 << 20;

/// Where frames from the world wait.
pub trait Ingress: Send + Sync {
    /// Takes frames from the front, within both bounds.
    fn take(&self, max_frames: usize, max_bytes: usize) -> Vec<Vec<u8>>;
    /// True if none waits.
    fn is_empty(&self) -> bool;
}

/// The set's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    base_ns: u64,
}

impl Clock {
    /// A clock that shows 0 now.
    pub fn start() -> Self {
        Clock::start_at(0)
    }

    /// A clock that shows this now: that of a set that was saved goes on.
    pub fn start_at(base_ns: u64) -> Self {
        Clock {
            start: Instant::now(),
            base_ns,
        }
    }

    /// Nanoseconds since the start.
    pub fn monotonic_ns(&self) -> u64 {
        self.base_ns + self.start.elapsed().as_nanos() as u64
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// The wall clock in nanoseconds since 1970; 0 if it stands before that.
pub fn realtime_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

/// How far the voter's clock moves at most between two ticks.
const MAX_GAP: Duration = Duration::from_millis(250);

/// The clock by which the voter judges laggards. It stands still while the host does: a suspended laptop or an
/// overloaded machine, on which nobody ran, is not a replica's fault.
#[derive(Debug)]
pub struct FairClock {
    base_ns: u64,
    ticked: Instant,
    max_gap: Duration,
}

impl FairClock {
    /// A clock that shows 0 now.
    pub fn start() -> Self {
        FairClock {
            base_ns: 0,
            ticked: Instant::now(),
            max_gap: MAX_GAP,
        }
    }

    /// One that stands still but for [`FairClock::advance`].
    pub fn standing() -> Self {
        FairClock {
            max_gap: Duration::ZERO,
            ..Self::start()
        }
    }

    /// So many nanoseconds have passed. The time then.
    pub fn advance(&mut self, ns: u64) -> u64 {
        self.base_ns = self.base_ns.saturating_add(ns);
        self.base_ns
    }

    /// The time at `now`, nanoseconds.
    pub fn at(&self, now: Instant) -> u64 {
        self.base_ns
            + now
                .saturating_duration_since(self.ticked)
                .min(self.max_gap)
                .as_nanos() as u64
    }

    /// To be called several times per [`MAX_GAP`]; the time that passed since the last tick counts up to that bound.
    pub fn tick(&mut self, now: Instant) -> u64 {
        self.base_ns = self.at(now);
        self.ticked = self.ticked.max(now);
        self.base_ns
    }
}

/// Writes entries. There is one per set, under the set's lock, so that time never runs backwards from one entry
/// to the next and no frame is in two of them, whichever replica leads.
#[derive(Debug)]
pub struct EntryWriter {
    max_bytes: usize,
    last_ns: u64,
    terminate: bool,
    /// Frames delivered so far.
    pub frames: u64,
}

impl EntryWriter {
    /// A writer whose entries hold at most `max_bytes` of frames, or one frame.
    pub fn new(max_bytes: usize) -> Self {
        EntryWriter {
            max_bytes,
            last_ns: 0,
            terminate: false,
            frames: 0,
        }
    }

    /// Time of the last entry.
    pub fn last_ns(&self) -> u64 {
        self.last_ns
    }

    /// The next entry will ask the guest to stop.
    pub fn ask_to_terminate(&mut self) {
        self.terminate = true;
    }

    /// True if the next entry must not wait.
    pub fn is_urgent(&self) -> bool {
        self.terminate
    }

    /// Time of the entry before the first.
    pub fn begin_at(&mut self, ns: u64) {
        self.last_ns = ns;
    }

    /// Makes a stage's entry for the next boundary, and says how many bytes it holds.
    pub fn stage(&mut self, staged: Staged, completions: Vec<Completion>) -> (Entry, usize) {
        let Staged {
            frames,
            monotonic_ns,
            realtime_ns,
            terminate,
        } = staged;
        self.last_ns = self.last_ns.max(monotonic_ns);
        self.frames += frames.len() as u64;
        let bytes = cost(&frames, &completions);
        let entry = Entry {
            monotonic_ns: self.last_ns,
            realtime_ns,
            flags: flags(std::mem::take(&mut self.terminate) || terminate),
            frames,
            console: Vec::new(),
            completions,
        };
        (entry, bytes)
    }

    /// Builds the entry for the next boundary, and says how many bytes it holds. Frames stay where they are while
    /// `booting`. `completions` are the disk requests that the leader knows to be complete.
    pub fn write(
        &mut self,
        clock: &Clock,
        ingress: &dyn Ingress,
        completions: Vec<Completion>,
        booting: bool,
    ) -> (Entry, usize) {
        let frames = if booting {
            Vec::new()
        } else {
            ingress.take(ENTRY_MAX_FRAMES, self.max_bytes)
        };
        self.last_ns = self.last_ns.max(clock.monotonic_ns());
        self.frames += frames.len() as u64;
        let bytes = cost(&frames, &completions);
        let entry = Entry {
            monotonic_ns: self.last_ns,
            realtime_ns: realtime_ns(),
            flags: flags(std::mem::take(&mut self.terminate)),
            frames,
            console: Vec::new(),
            completions,
        };
        (entry, bytes)
    }
}

fn cost(frames: &[Vec<u8>], completions: &[Completion]) -> usize {
    frames.iter().map(Vec::len).sum::<usize>() + size_of_val(completions)
}

fn flags(terminate: bool) -> u64 {
    if terminate { FLAG_TERMINATE } else { 0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    struct Nothing;
    impl Ingress for Nothing {
        fn take(&self, _: usize, _: usize) -> Vec<Vec<u8>> {
            Vec::new()
        }
        fn is_empty(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_stalled_host_costs_a_replica_a_quarter_second_at_most() {
        let mut clock = FairClock::start();
        let start = clock.ticked;
        assert_eq!(clock.tick(start + Duration::from_millis(100)), 100_000_000);
        assert_eq!(clock.at(start + Duration::from_secs(3600)), 350_000_000);
        assert_eq!(clock.tick(start + Duration::from_secs(3600)), 350_000_000);
        assert_eq!(
            clock.at(start + Duration::from_secs(3600) + Duration::from_millis(1)),
            351_000_000
        );
        // A time from before the last tick must not take the clock back.
        assert_eq!(clock.at(start), 350_000_000);
    }

    #[test]
    fn the_request_to_terminate_goes_into_one_entry() {
        let clock = Clock::start();
        let mut writer = EntryWriter::new(ENTRY_MAX_BYTES);
        writer.ask_to_terminate();
        assert!(writer.is_urgent());
        let (first, _) = writer.write(&clock, &Nothing, Vec::new(), false);
        let (second, _) = writer.write(&clock, &Nothing, Vec::new(), false);
        assert_eq!((first.flags, second.flags), (FLAG_TERMINATE, 0));
        assert!(!writer.is_urgent());
        assert!(second.monotonic_ns >= first.monotonic_ns);
    }
}
