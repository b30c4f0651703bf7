//! The two queues between gateway thread and vCPU threads, and the wake-ups that go with them.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_abi::net::MAX_FRAME;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Frames that may wait for the guest (R10). At the bound the gateway stops pulling from host sockets.
pub const INGRESS_MAX_FRAMES: usize = 8192;
/// Bytes that may wait for the guest (R10), same behaviour.
pub const INGRESS_MAX_BYTES: usize = 16 << 20;
/// Frames of the guest that may wait for the gateway thread (R10). At the bound [`Mailbox::put`] drops and counts:
/// TCP's retransmission recovers. Windows bound a well-behaved guest far below.
pub const MAILBOX_MAX_FRAMES: usize = 65_536;
/// Bytes of guest frames that may wait for the gateway thread (R10), same behaviour.
pub const MAILBOX_MAX_BYTES: usize = 64 << 20;

const RUNNING: u8 = 0;
const SLEEPING: u8 = 1;
const NOTIFIED: u8 = 2;

/// Wakes the gateway thread, with a system call only if it sleeps.
pub(crate) struct Waker {
    state: AtomicU8,
    event: EventFd,
}

impl Waker {
    pub(crate) fn new() -> std::io::Result<Waker> {
        Ok(Waker {
            state: AtomicU8::new(RUNNING),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Call after the work has been made visible.
    pub(crate) fn wake(&self) {
        if self.state.swap(NOTIFIED, Ordering::AcqRel) == SLEEPING {
            // Registered edge-triggered and never read. An error would mean that the counter is at its maximum,
            // and then the descriptor is readable anyway.
            let _ = self.event.write(1);
        }
    }

    /// The gateway thread is about to wait. False: work has arrived since [`Waker::awake`], do not wait.
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.state
            .compare_exchange(RUNNING, SLEEPING, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// The gateway thread looks at its queues after this call.
    pub(crate) fn awake(&self) {
        self.state.swap(RUNNING, Ordering::AcqRel);
    }
}

impl AsRawFd for Waker {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

/// What still fits into the ingress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Frames.
    pub frames: usize,
    /// Bytes of these.
    pub bytes: usize,
}

#[derive(Default)]
struct Waiting {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The gateway holds back frames and wants to be woken when there is room.
    throttled: bool,
}

/// Where frames for the guest wait until a leader takes them into a journal entry. Bounded by
/// [`INGRESS_MAX_FRAMES`] and [`INGRESS_MAX_BYTES`] (R10).
pub struct Ingress {
    waiting: Mutex<Waiting>,
    /// Copy of the number of frames, so that [`Ingress::is_empty`] needs no lock.
    len: AtomicUsize,
    waker: Arc<Waker>,
}

impl Ingress {
    pub(super) fn new(waker: Arc<Waker>) -> Ingress {
        Ingress {
            waiting: Mutex::default(),
            len: AtomicUsize::new(0),
            waker,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No code that could panic runs under this lock, so a poisoned one is intact.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes frames from the front, at most `max_frames` and `max_bytes`. If `max_frames` is not 0, the first frame
    /// is returned even when it alone is larger than `max_bytes`: it would otherwise wait for ever.
    pub fn take(&self, max_frames: usize, max_bytes: usize) -> Vec<Vec<u8>> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut waiting = self.lock();
        let mut count = 0;
        let mut bytes = 0;
        for frame in waiting.frames.iter().take(max_frames) {
            if count > 0 && bytes + frame.len() > max_bytes {
                break;
            }
            count += 1;
            bytes += frame.len();
        }
        let taken: Vec<Vec<u8>> = waiting.frames.drain(..count).collect();
        waiting.bytes -= bytes;
        self.len.store(waiting.frames.len(), Ordering::Release);
        // Half empty before the gateway resumes: it then fills in batches, not frame by frame.
        let resume = waiting.throttled && has_slack(&waiting);
        if resume {
            waiting.throttled = false;
        }
        drop(waiting);
        if resume {
            self.waker.wake();
        }
        taken
    }

    /// True if no frame waits. One atomic load.
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }

    /// Number of frames that wait.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    pub(super) fn room(&self) -> Room {
        let waiting = self.lock();
        Room {
            frames: INGRESS_MAX_FRAMES.saturating_sub(waiting.frames.len()),
            bytes: INGRESS_MAX_BYTES.saturating_sub(waiting.bytes),
        }
    }

    /// Appends a batch that fits into [`Ingress::room`]; true if nothing was waiting before.
    pub(super) fn push(&self, batch: &mut Vec<Vec<u8>>, bytes: usize) -> bool {
        let mut waiting = self.lock();
        let was_empty = waiting.frames.is_empty();
        waiting.frames.extend(batch.drain(..));
        waiting.bytes += bytes;
        debug_assert!(
            waiting.frames.len() <= INGRESS_MAX_FRAMES && waiting.bytes <= INGRESS_MAX_BYTES
        );
        self.len.store(waiting.frames.len(), Ordering::Release);
        was_empty
    }

    /// The gateway holds frames back. True: [`Ingress::take`] will wake it. False: there is room already.
    pub(super) fn throttle(&self) -> bool {
        let mut waiting = self.lock();
        waiting.throttled = !has_slack(&waiting);
        waiting.throttled
    }
}

fn has_slack(waiting: &Waiting) -> bool {
    waiting.frames.len() <= INGRESS_MAX_FRAMES / 2 && waiting.bytes <= INGRESS_MAX_BYTES / 2
}

const _: () = assert!(
    INGRESS_MAX_BYTES / 2 > MAX_FRAME,
    "a throttled gateway must be able to resume"
);

#[derive(Default)]
struct Delivered {
    frames: Vec<Vec<u8>>,
    bytes: usize,
    dropped: u64,
}

/// Agreed frames on their way from the voter to the gateway thread.
pub(super) struct Mailbox {
    delivered: Mutex<Delivered>,
    waker: Arc<Waker>,
}

impl Mailbox {
    pub(super) fn new(waker: Arc<Waker>) -> Mailbox {
        Mailbox {
            delivered: Mutex::default(),
            waker,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Delivered> {
        // As in Ingress: nothing under this lock can panic half-way.
        self.delivered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends frames in order. Those beyond the bound are dropped and counted.
    pub(super) fn put(&self, frames: Vec<Vec<u8>>) {
        if frames.is_empty() {
            return;
        }
        let mut delivered = self.lock();
        for frame in frames {
            if delivered.frames.len() >= MAILBOX_MAX_FRAMES
                || delivered.bytes + frame.len() > MAILBOX_MAX_BYTES
            {
                delivered.dropped += 1;
                continue;
            }
            delivered.bytes += frame.len();
            delivered.frames.push(frame);
        }
        drop(delivered);
        self.waker.wake();
    }

    /// Swaps everything that waits with the empty `into`, so that both allocations are used again.
    pub(super) fn swap(&self, into: &mut Vec<Vec<u8>>) {
        debug_assert!(into.is_empty());
        let mut delivered = self.lock();
        std::mem::swap(&mut delivered.frames, into);
        delivered.bytes = 0;
    }

    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn pair() -> (Arc<Waker>, Ingress) {
        let waker = Arc::new(Waker::new().unwrap());
        (waker.clone(), Ingress::new(waker))
    }

    #[test]
    fn takes_in_order_within_both_limits() {
        let (_, ingress) = pair();
        assert!(ingress.is_empty() && ingress.take(9, 9).is_empty());
        assert!(ingress.push(&mut vec![vec![1; 10], vec![2; 10]], 20));
        assert!(!ingress.push(&mut vec![vec![3; 10]], 10));
        assert_eq!(ingress.len(), 3);
        assert!(ingress.take(0, 100).is_empty());
        assert_eq!(ingress.take(2, 15), [vec![1; 10]]);
        assert_eq!(ingress.take(1, 100), [vec![2; 10]]);
        assert_eq!(
            ingress.take(5, 1),
            [vec![3; 10]],
            "a frame larger than the limit still goes"
        );
        assert!(ingress.is_empty());
        assert_eq!(
            ingress.room(),
            Room {
                frames: INGRESS_MAX_FRAMES,
                bytes: INGRESS_MAX_BYTES
            }
        );
    }

    #[test]
    fn a_throttled_gateway_is_woken_at_half() {
        let (waker, ingress) = pair();
        ingress.push(&mut vec![vec![0]; INGRESS_MAX_FRAMES], INGRESS_MAX_FRAMES);
        assert_eq!(ingress.room().frames, 0);
        assert!(ingress.throttle());
        assert!(waker.prepare_sleep());
        ingress.take(INGRESS_MAX_FRAMES / 2 - 1, usize::MAX);
        assert!(waker.event.read().is_err(), "not yet");
        ingress.take(1, usize::MAX);
        assert_eq!(waker.event.read().unwrap(), 1);
        assert!(!ingress.throttle());
    }

    #[test]
    fn waking_costs_a_system_call_only_for_a_sleeper() {
        let waker = Waker::new().unwrap();
        waker.wake();
        assert!(waker.event.read().is_err());
        assert!(!waker.prepare_sleep(), "work came: must look again");
        waker.awake();
        assert!(waker.prepare_sleep());
        waker.wake();
        waker.wake();
        assert_eq!(waker.event.read().unwrap(), 1);
    }

    #[test]
    fn the_mailbox_drops_at_its_bound_and_counts() {
        let mailbox = Mailbox::new(Arc::new(Waker::new().unwrap()));
        mailbox.put(vec![Vec::new(); MAILBOX_MAX_FRAMES + 3]);
        assert_eq!(mailbox.dropped(), 3);
        let mut out = Vec::new();
        mailbox.swap(&mut out);
        assert_eq!(out.len(), MAILBOX_MAX_FRAMES);
        mailbox.put(vec![vec![0; MAILBOX_MAX_BYTES], vec![1]]);
        assert_eq!(mailbox.dropped(), 4);
        out.clear();
        mailbox.swap(&mut out);
        assert_eq!(out.len(), 1);
    }
}
