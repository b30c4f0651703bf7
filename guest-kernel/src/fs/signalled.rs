//! Signal-driven input (`O_ASYNC`, `FIOASYNC`, `F_SETOWN`): a process is sent SIGIO when a socket, pipe or terminal becomes readable.

use crate::errno::*;
use crate::file::flags::O_ASYNC;
use crate::file::{OpenFile, ready};
use crate::process;
use crate::signal;
use crate::wait::{SubscriptionId, Watcher};
use alloc::rc::{Rc, Weak};
use core::cell::{Cell, RefCell};

const SIGIO: u32 = 29;

/// Who is told, of one open file. Ends with the file, or when `O_ASYNC` is taken away.
#[derive(Default)]
pub struct Signalled {
    /// A process, the negative of a process group, or 0 for nobody.
    owner: Cell<i32>,
    subscription: RefCell<Option<SubscriptionId>>,
}

struct Teller(Weak<OpenFile>);

impl Watcher for Teller {
    fn notify(&self) {
        let Some(open) = self.0.upgrade() else {
            return;
        };
        let owner = open.signalled.owner.get();
        if owner == 0 || open.file.poll() & (ready::IN | ready::HUP) == 0 {
            return;
        }
        let told = |process: &process::ProcessRef| match owner {
            1.. => process.pid.get() == owner.unsigned_abs(),
            _ => process.group.get() == owner.unsigned_abs(),
        };
        for process in process::all().into_iter().filter(told) {
            signal::send_from_kernel(process, SIGIO);
        }
    }
}

/// `F_GETOWN`.
pub fn owner(open: &OpenFile) -> i32 {
    open.signalled.owner.get()
}

/// `F_SETOWN`.
///
/// # Errors
/// `EINVAL` for what cannot be an id, `ESRCH` when there is no such process or group.
pub fn set_owner(open: &OpenFile, owner: i32) -> Result<()> {
    let id = owner.checked_abs().ok_or(EINVAL)?.unsigned_abs();
    let exists = match owner {
        0 => true,
        1.. => process::find(id).is_some(),
        _ => process::all().iter().any(|p| p.group.get() == id),
    };
    if !exists {
        return Err(ESRCH);
    }
    open.signalled.owner.set(owner);
    Ok(())
}

/// Switches `O_ASYNC`. Files that are always ready take it and never signal, as on Linux.
pub fn switch(open: &Rc<OpenFile>, on: bool) {
    let flags = open.flags.get();
    if on == (flags & O_ASYNC != 0) {
        return;
    }
    open.flags.set(flags ^ O_ASYNC);
    let Some(queue) = open.file.wait_queue() else {
        return;
    };
    let mut subscription = open.signalled.subscription.borrow_mut();
    match subscription.take() {
        Some(id) => queue.unsubscribe(id),
        None => *subscription = Some(queue.subscribe(Rc::new(Teller(Rc::downgrade(open))))),
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // The queue may outlive this: the other end of a pipe has it, too.
        if let (Some(id), Some(queue)) = (
            self.signalled.subscription.get_mut().take(),
            self.file.wait_queue(),
        ) {
            queue.unsubscribe(id);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::errno::*;
    use crate::file::{self, flags::*};
    use crate::fs::testing::*;

    #[test]
    fn a_watcher_comes_with_the_flag_and_goes_with_it() {
        const FIOASYNC: u64 = 0x5452;
        const F_GETFL: u64 = 3;
        const F_SETFL: u64 = 4;
        const F_SETOWN: u64 = 8;
        const F_GETOWN: u64 = 9;
        let _guard = setup();
        let mut fds = [0i32; 2];
        sys(293, &[fds.as_mut_ptr() as u64, u64::from(O_NONBLOCK)]).unwrap();
        let (read, write) = (fds[0] as u64, fds[1] as u64);
        let watched = || {
            let open = file::get(read as i32).unwrap();
            open.signalled.subscription.borrow().is_some()
        };
        assert_eq!(sys(72, &[read, F_SETOWN, 0x8000_0000]), Err(EINVAL));
        assert_eq!(sys(72, &[read, F_SETOWN, 4_000_000]), Err(ESRCH));
        assert_eq!(sys(72, &[read, F_SETOWN, 0]), Ok(0));
        assert_eq!(sys(72, &[read, F_GETOWN, 0]), Ok(0));
        let (on, off) = (1i32, 0i32);
        for _ in 0..2 {
            sys(16, &[read, FIOASYNC, &raw const on as u64]).unwrap();
            assert!(watched());
        }
        let flags = sys(72, &[read, F_GETFL, 0]).unwrap();
        assert_ne!(flags & u64::from(O_ASYNC), 0);
        // Nobody is told, and nothing breaks.
        sys(1, &[write, c"x".as_ptr() as u64, 1]).unwrap();
        sys(16, &[read, FIOASYNC, &raw const off as u64]).unwrap();
        assert!(!watched());
        sys(72, &[read, F_SETFL, flags]).unwrap();
        assert!(watched());
        // The end that goes takes its watcher with it.
        let other = file::get(write as i32).unwrap();
        sys(3, &[read]).unwrap();
        assert_eq!(other.file.write(b"x"), Err(EPIPE));
    }
}
