//! `wait4` and `waitid`.

use super::{Life, Process, ProcessRef, current, end, find, remove};
use crate::errno::*;
use crate::signal::number;
use crate::sys::clock;
use crate::user;
use crate::wait::{Wake, wait_on};

const WNOHANG: u32 = 1;
const WSTOPPED: u32 = 2;
const WEXITED: u32 = 4;
const WCONTINUED: u32 = 8;
const WNOWAIT: u32 = 0x100_0000;
const WNOTHREAD: u32 = 0x2000_0000;
const WALL: u32 = 0x4000_0000;
const WCLONE: u32 = 0x8000_0000;

/// Which children.
#[derive(Clone, Copy)]
enum Which {
    All,
    One(u32),
    Group(u32),
}

impl Which {
    fn matches(self, child: &Process, options: u32) -> bool {
        let kind = options & WALL != 0
            || (child.exit_signal.get() != number::CHLD) == (options & WCLONE != 0);
        kind && match self {
            Self::All => true,
            Self::One(pid) => child.pid.get() == pid,
            Self::Group(group) => child.group.get() == group,
        }
    }
}

/// Waits until a child has ended; None if none has and the caller does not want to wait.
fn wait(which: Which, options: u32) -> Result<Option<ProcessRef>> {
    let me = current();
    let mut interrupted = false;
    loop {
        let children = me.children.borrow().clone();
        let mut any = false;
        for child in children.into_iter().filter_map(find) {
            if !which.matches(child, options) {
                continue;
            }
            any = true;
            let ended = child.life.get() == Life::Zombie && !child.unwaited.get();
            if ended && options & WEXITED != 0 {
                return Ok(Some(child));
            }
        }
        if !any {
            return Err(ECHILD);
        }
        if options & WNOHANG != 0 {
            return Ok(None);
        }
        // A child that has ended comes before the signal that says so.
        if interrupted {
            return Err(EINTR);
        }
        interrupted = wait_on(&[&me.child_ended], None) == Wake::Signal;
    }
}

/// The child has been waited for: its times are its parent's now.
fn reap(child: ProcessRef) {
    let me = current();
    let used = child.cpu_ns.get() + child.children_cpu_ns.get();
    me.children_cpu_ns.set(me.children_cpu_ns.get() + used);
    remove(child);
}

/// `wait4`. Nothing ever stops here, so that WUNTRACED and WCONTINUED find nothing.
///
/// # Errors
/// `ECHILD`, `EINTR`, `EINVAL`, `EFAULT`.
pub fn wait4(pid: i32, status_at: u64, options: u32, usage_at: u64) -> SysResult {
    if options & !(WNOHANG | WSTOPPED | WCONTINUED | WNOTHREAD | WALL | WCLONE) != 0 {
        return Err(EINVAL);
    }
    let which = match pid {
        i32::MIN => return Err(ESRCH),
        -1 => Which::All,
        0 => Which::Group(current().group.get()),
        1.. => Which::One(pid as u32),
        _ => Which::Group(pid.unsigned_abs()),
    };
    let Some(child) = wait(which, options | WEXITED)? else {
        return Ok(0);
    };
    let pid = child.pid.get();
    let status = child.status.get();
    let used = child.cpu_ns.get() + child.children_cpu_ns.get();
    reap(child);
    user::write_opt(status_at, status)?;
    if usage_at != 0 {
        clock::write_usage(usage_at, used, 0)?;
    }
    Ok(u64::from(pid))
}

/// `waitid`.
///
/// # Errors
/// As [`wait4`].
pub fn waitid(kind: u32, id: u32, info_at: u64, options: u32, usage_at: u64) -> SysResult {
    let known = WNOHANG | WSTOPPED | WEXITED | WCONTINUED | WNOWAIT | WNOTHREAD | WALL | WCLONE;
    if options & !known != 0 || options & (WEXITED | WSTOPPED | WCONTINUED) == 0 {
        return Err(EINVAL);
    }
    let which = match kind {
        0 => Which::All,
        1 if id as i32 > 0 => Which::One(id),
        2 if id == 0 => Which::Group(current().group.get()),
        2 if id as i32 > 0 => Which::Group(id),
        // P_PIDFD: there are none
        _ => return Err(EINVAL),
    };
    let mut info = [0u32; 8];
    let mut used = 0;
    if let Some(child) = wait(which, options)? {
        let (code, status) = end::cause(child.status.get());
        // signo, errno, code, pad, pid, uid, status
        info = [
            number::CHLD,
            0,
            code as u32,
            0,
            child.pid.get(),
            child.ids.borrow().uid,
            status,
            0,
        ];
        used = child.cpu_ns.get() + child.children_cpu_ns.get();
        if options & WNOWAIT == 0 {
            reap(child);
        }
    }
    if info_at != 0 {
        user::write(info_at, info)?;
    }
    if usage_at != 0 {
        clock::write_usage(usage_at, used, 0)?;
    }
    Ok(0)
}
