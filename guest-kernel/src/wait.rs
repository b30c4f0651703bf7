//! Waiting and waking. A thread blocks only here.
//!
//! The pattern everywhere: try without blocking; on `EAGAIN`, [`wait_on`] the queue of the thing and try again.
//! Nothing can be lost in between, since threads switch only inside [`wait_on`].

use crate::sched;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

/// Something that wants to be told when a [`WaitQueue`] is woken, without being a thread (an epoll item).
pub trait Watcher {
    /// The readiness of the thing watched may have changed. Must not block.
    fn notify(&self);
}

/// Why a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// A queue was woken; the caller tries again.
    Ready,
    /// The deadline passed.
    Timeout,
    /// A signal is pending for the thread: return `EINTR` (or restart), see `signal`.
    Signal,
}

/// Identifies a subscription on one queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SubscriptionId(u64);

#[derive(Default)]
struct Inner {
    threads: Vec<u32>,
    watchers: Vec<(u64, Rc<dyn Watcher>)>,
    next: u64,
}

/// Threads and watchers that wait for one thing to change.
#[derive(Default)]
pub struct WaitQueue(RefCell<Inner>);

impl WaitQueue {
    /// An empty queue.
    pub const fn new() -> Self {
        Self(RefCell::new(Inner {
            threads: Vec::new(),
            watchers: Vec::new(),
            next: 0,
        }))
    }

    /// Wakes all threads and tells all watchers.
    pub fn wake_all(&self) {
        self.wake(usize::MAX);
    }

    /// Tells all watchers, and wakes the thread that has waited longest. Returns whether a thread was woken.
    pub fn wake_one(&self) -> bool {
        self.wake(1) > 0
    }

    /// Wakes up to `most` threads in the order in which they came; tells all watchers.
    pub fn wake(&self, most: usize) -> usize {
        // Watchers are called without the borrow: they may subscribe or unsubscribe.
        let count = self.0.borrow().watchers.len();
        for i in 0..count {
            let watcher = self.0.borrow().watchers.get(i).map(|(_, w)| w.clone());
            if let Some(watcher) = watcher {
                watcher.notify();
            }
        }
        let mut woken = 0;
        while woken < most {
            let mut inner = self.0.borrow_mut();
            if inner.threads.is_empty() {
                break;
            }
            let thread = inner.threads.remove(0);
            drop(inner);
            if sched::make_runnable(thread, Wake::Ready) {
                woken += 1;
            }
        }
        woken
    }

    /// Registers a watcher until [`Self::unsubscribe`].
    pub fn subscribe(&self, watcher: Rc<dyn Watcher>) -> SubscriptionId {
        let mut inner = self.0.borrow_mut();
        let id = inner.next;
        inner.next += 1;
        inner.watchers.push((id, watcher));
        SubscriptionId(id)
    }

    /// Ends a subscription; unknown ids are ignored.
    pub fn unsubscribe(&self, id: SubscriptionId) {
        self.0.borrow_mut().watchers.retain(|(i, _)| *i != id.0);
    }

    fn add_thread(&self, thread: u32) {
        self.0.borrow_mut().threads.push(thread);
    }

    fn remove_thread(&self, thread: u32) {
        self.0.borrow_mut().threads.retain(|t| *t != thread);
    }

    /// Number of threads that wait here.
    pub fn threads(&self) -> usize {
        self.0.borrow().threads.len()
    }
}

/// Blocks the calling thread until one of `queues` is woken, the monotonic `deadline_ns` passes, or a signal
/// is pending. Spurious [`Wake::Ready`] can happen: callers loop.
pub fn wait_on(queues: &[&WaitQueue], deadline_ns: Option<u64>) -> Wake {
    let me = sched::current();
    if sched::signal_pending() {
        return Wake::Signal;
    }
    for queue in queues {
        queue.add_thread(me);
    }
    let wake = sched::block(deadline_ns);
    for queue in queues {
        queue.remove_thread(me);
    }
    wake
}

/// [`wait_on`] that signals do not end (for waits inside the kernel that must finish).
pub fn wait_uninterruptible(queue: &WaitQueue) {
    let me = sched::current();
    queue.add_thread(me);
    sched::block_uninterruptible();
    queue.remove_thread(me);
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    struct Count(Cell<u32>);
    impl Watcher for Count {
        fn notify(&self) {
            self.0.set(self.0.get() + 1);
        }
    }

    #[test]
    fn watchers_are_told_until_they_unsubscribe() {
        let queue = WaitQueue::new();
        let count = Rc::new(Count(Cell::new(0)));
        let id = queue.subscribe(count.clone());
        queue.wake_all();
        assert!(!queue.wake_one());
        assert_eq!(count.0.get(), 2);
        queue.unsubscribe(id);
        queue.wake_all();
        assert_eq!(count.0.get(), 2);
    }
}
