//! `timerfd`.

use super::anon::{self, Anonymous};
use crate::errno::*;
use crate::file::{self, File, OpenFile, Stat, flags, ready};
use crate::time::{self, TimerId, Timespec};
use crate::user::{self, Plain};
use crate::wait::{WaitQueue, Watcher};
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::cell::{Cell, RefCell};

const TFD_TIMER_ABSTIME: u32 = 1;
/// The realtime clock is never set here, so a timer with this flag is never cancelled.
const TFD_TIMER_CANCEL_ON_SET: u32 = 2;

/// `struct itimerspec`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ItimerSpec {
    /// Period; zero: once.
    pub interval: Timespec,
    /// First expiration; zero: disarmed.
    pub value: Timespec,
}
// SAFETY: repr(C), integers only.
unsafe impl Plain for ItimerSpec {}

/// What the file and the armed timer share.
struct Core {
    realtime: bool,
    /// Monotonic time of the next expiration.
    next_ns: Cell<Option<u64>>,
    interval_ns: Cell<u64>,
    expirations: Cell<u64>,
    armed: Cell<Option<TimerId>>,
    queue: WaitQueue,
    me: RefCell<Weak<Core>>,
}

impl Core {
    /// Counts the expirations up to now, and arms the timer for the next.
    fn advance(&self) {
        let now = time::now_ns();
        let Some(next) = self.next_ns.get().filter(|next| *next <= now) else {
            return;
        };
        let interval = self.interval_ns.get();
        let passed = match interval {
            0 => 1,
            _ => 1 + (now - next) / interval,
        };
        self.expirations
            .set(self.expirations.get().saturating_add(passed));
        let following = match interval {
            0 => None,
            _ => next.checked_add(passed.saturating_mul(interval)),
        };
        self.arm(following);
    }

    fn arm(&self, deadline_ns: Option<u64>) {
        if let Some(id) = self.armed.take() {
            time::cancel(id);
        }
        self.next_ns.set(deadline_ns);
        let me = self.me.borrow().upgrade();
        if let (Some(deadline), Some(me)) = (deadline_ns, me) {
            self.armed.set(Some(time::arm(deadline, me)));
        }
    }

    fn setting(&self) -> ItimerSpec {
        let left = match self.next_ns.get() {
            // A running timer never shows zero, which would mean disarmed.
            Some(next) => next.saturating_sub(time::now_ns()).max(1),
            None => 0,
        };
        ItimerSpec {
            interval: Timespec::from_ns(self.interval_ns.get()),
            value: Timespec::from_ns(left),
        }
    }
}

impl Watcher for Core {
    fn notify(&self) {
        self.armed.set(None);
        self.advance();
        self.queue.wake_all();
    }
}

/// A timerfd.
pub struct TimerFd {
    core: Rc<Core>,
    identity: Anonymous,
}

impl Drop for TimerFd {
    fn drop(&mut self) {
        self.core.arm(None);
    }
}

impl File for TimerFd {
    fn read(&self, buf: &mut [u8]) -> Result<usize> {
        let target = buf.first_chunk_mut::<8>().ok_or(EINVAL)?;
        self.core.advance();
        match self.core.expirations.take() {
            0 => Err(EAGAIN),
            count => {
                *target = count.to_le_bytes();
                Ok(8)
            }
        }
    }

    fn poll(&self) -> u32 {
        self.core.advance();
        if self.core.expirations.get() > 0 {
            ready::IN | ready::RDNORM
        } else {
            0
        }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.core.queue)
    }

    fn stat(&self) -> Result<Stat> {
        Ok(self.identity.stat())
    }

    fn path(&self) -> Vec<u8> {
        b"anon_inode:[timerfd]".to_vec()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `timerfd_create(2)`.
pub fn timerfd_create(clock: u32, how: u32) -> SysResult {
    const REALTIME: u32 = 0;
    const MONOTONIC: u32 = 1;
    const BOOTTIME: u32 = 7;
    const REALTIME_ALARM: u32 = 8;
    const BOOTTIME_ALARM: u32 = 9;
    let realtime = match clock {
        REALTIME | REALTIME_ALARM => true,
        // There is no suspend: boot time is monotonic time.
        MONOTONIC | BOOTTIME | BOOTTIME_ALARM => false,
        _ => return Err(EINVAL),
    };
    if how & !(flags::O_NONBLOCK | flags::O_CLOEXEC) != 0 {
        return Err(EINVAL);
    }
    let core = Rc::new_cyclic(|me| Core {
        realtime,
        next_ns: Cell::new(None),
        interval_ns: Cell::new(0),
        expirations: Cell::new(0),
        armed: Cell::new(None),
        queue: WaitQueue::new(),
        me: RefCell::new(me.clone()),
    });
    let identity = Anonymous::new();
    let open = OpenFile::new(
        Rc::new(TimerFd { core, identity }),
        flags::O_RDWR | how & flags::O_NONBLOCK,
    );
    anon::install(open, how & flags::O_CLOEXEC != 0)
}

fn with<T>(fd: i32, act: impl FnOnce(&Core) -> Result<T>) -> Result<T> {
    let open = file::get(fd)?;
    match open.file.as_any().downcast_ref::<TimerFd>() {
        Some(timer) => act(&timer.core),
        None => Err(EINVAL),
    }
}

/// `timerfd_settime(2)`.
pub fn timerfd_settime(fd: i32, how: u32, new: u64, old: u64) -> SysResult {
    if how & !(TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET) != 0 {
        return Err(EINVAL);
    }
    let new: ItimerSpec = user::read(new)?;
    let (value, interval) = (new.value.to_ns()?, new.interval.to_ns()?);
    with(fd, |core| {
        core.advance();
        let before = core.setting();
        let deadline = match value {
            0 => None,
            _ if how & TFD_TIMER_ABSTIME == 0 => Some(time::now_ns().saturating_add(value)),
            _ if core.realtime => Some(time::realtime_to_monotonic_ns(value)),
            _ => Some(value),
        };
        core.interval_ns.set(if value == 0 { 0 } else { interval });
        core.expirations.set(0);
        core.arm(deadline);
        // A time that has passed already expires at once.
        core.advance();
        if core.expirations.get() > 0 {
            core.queue.wake_all();
        }
        user::write_opt(old, before)?;
        Ok(0)
    })
}

/// `timerfd_gettime(2)`.
pub fn timerfd_gettime(fd: i32, current: u64) -> SysResult {
    with(fd, |core| {
        core.advance();
        user::write(current, core.setting())?;
        Ok(0)
    })
}
