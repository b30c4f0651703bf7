//! System calls on signals.

use super::frame::on_altstack;
use super::*;
use crate::arch::TrapFrame;
use crate::errno::*;
use crate::user;

/// `rt_sigaction`.
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn sigaction(signal: u64, new: u64, old: u64, set_size: u64) -> SysResult {
    if set_size != 8 || signal == 0 || signal as usize >= COUNT {
        return Err(EINVAL);
    }
    let index = signal as usize;
    let before = process::current().signals.borrow().actions[index];
    if new != 0 {
        if bit(signal as u32) & UNBLOCKABLE != 0 {
            return Err(EINVAL);
        }
        let action: Action = user::read(new)?;
        process::current().signals.borrow_mut().actions[index] = action;
        let me = process::current();
        if ignored(me, signal as u32) {
            me.signals.borrow_mut().pending.discard(signal as u32);
            for tid in me.thread_ids() {
                sched::with_thread(tid, |t| t.signals.pending.discard(signal as u32));
            }
        }
    }
    user::write_opt(old, before)?;
    Ok(0)
}

/// `rt_sigprocmask`.
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn sigprocmask(how: u64, set: u64, old: u64, set_size: u64) -> SysResult {
    if set_size != 8 {
        return Err(EINVAL);
    }
    let before = sched::with_current(|t| t.signals.mask);
    if set != 0 {
        let set: u64 = user::read(set)?;
        let mask = match how {
            0 => before | set,
            1 => before & !set,
            2 => set,
            _ => return Err(EINVAL),
        };
        sched::with_current(|t| t.signals.mask = mask & !UNBLOCKABLE);
    }
    user::write_opt(old, before)?;
    Ok(0)
}

/// `rt_sigpending`.
///
/// # Errors
/// `EFAULT`.
pub fn sigpending(set: u64) -> SysResult {
    let process = process::current().signals.borrow().pending.set;
    let pending = sched::with_current(|t| (t.signals.pending.set | process) & t.signals.mask);
    user::write(set, pending)?;
    Ok(0)
}

/// `rt_sigsuspend`; ends with `EINTR` always.
///
/// # Errors
/// `EINTR`, `EFAULT`, `EINVAL`.
pub fn sigsuspend(set: u64, set_size: u64) -> SysResult {
    if set_size != 8 {
        return Err(EINVAL);
    }
    let mask: u64 = user::read(set)?;
    set_temporary_mask(mask);
    while !deliverable() {
        sched::block(None);
    }
    Err(EINTR)
}

/// `rt_sigtimedwait`.
///
/// # Errors
/// `EAGAIN` at the timeout, `EINTR`, `EFAULT`, `EINVAL`.
pub fn sigtimedwait(set: u64, info_at: u64, timeout: u64, set_size: u64) -> SysResult {
    if set_size != 8 {
        return Err(EINVAL);
    }
    let set: u64 = user::read(set)?;
    let deadline = if timeout == 0 {
        None
    } else {
        let timeout: crate::time::Timespec = user::read(timeout)?;
        Some(crate::time::now_ns().saturating_add(timeout.to_ns()?))
    };
    loop {
        let process = process::current().signals.borrow().pending.set;
        let own = sched::with_current(|t| t.signals.pending.set);
        let hit = (own | process) & set;
        if hit != 0 {
            let signal = hit.trailing_zeros() + 1;
            let info = take(signal, own & bit(signal) != 0);
            user::write_opt(info_at, info.image(signal))?;
            return Ok(u64::from(signal));
        }
        if deliverable() {
            return Err(EINTR);
        }
        sched::with_current(|t| t.signals.waited = set);
        let wake = sched::block(deadline);
        sched::with_current(|t| t.signals.waited = 0);
        if wake == crate::wait::Wake::Timeout {
            return Err(EAGAIN);
        }
    }
}

/// `sigaltstack`.
///
/// # Errors
/// `EPERM`, `EINVAL`, `ENOMEM`, `EFAULT`.
pub fn sigaltstack(frame: &TrapFrame, new: u64, old: u64) -> SysResult {
    let current = sched::with_current(|t| t.signals.altstack);
    let on = on_altstack(frame.rsp, &current);
    if new != 0 {
        if on {
            return Err(EPERM);
        }
        let stack: AltStack = user::read(new)?;
        if stack.flags & !(SS_DISABLE | SS_ONSTACK) != 0 {
            return Err(EINVAL);
        }
        if stack.flags & SS_DISABLE == 0 && stack.size < MINSIGSTKSZ {
            return Err(ENOMEM);
        }
        sched::with_current(|t| {
            t.signals.altstack = AltStack {
                flags: stack.flags & SS_DISABLE,
                ..stack
            }
        });
    }
    let flags = if current.flags & SS_DISABLE != 0 {
        SS_DISABLE
    } else {
        i32::from(on)
    };
    user::write_opt(old, AltStack { flags, ..current })?;
    Ok(0)
}

/// Whether the caller may send a signal to a process.
fn may_signal(target: &Process) -> bool {
    let (uid, _) = sched::credentials();
    uid == 0 || target.ids.borrow().uid == uid
}

/// `kill`.
///
/// # Errors
/// `EINVAL`, `ESRCH`, `EPERM`.
pub fn kill(pid: i32, signal: u64) -> SysResult {
    let signal = check(signal)?;
    let me = process::current();
    let group = match pid {
        i32::MIN => return Err(ESRCH),
        1.. => {
            let target = by_id(pid)?;
            return send_by(target, signal).map(|()| 0);
        }
        -1 => None,
        0 => Some(me.group.get()),
        _ => Some(pid.unsigned_abs()),
    };
    let hit = |p: &ProcessRef| match group {
        Some(group) => p.group.get() == group,
        // All but the first and the caller, as on Linux.
        None => !p.is_first() && !core::ptr::eq(*p, me),
    };
    let mut result = Err(ESRCH);
    for target in process::all().into_iter().filter(hit) {
        match send_by(target, signal) {
            Ok(()) => result = Ok(0),
            Err(error) if result.is_err() => result = Err(error),
            Err(_) => {}
        }
    }
    result
}

/// The process with an id, or with a thread of that id.
fn by_id(id: i32) -> Result<ProcessRef> {
    let id = u32::try_from(id).map_err(|_| ESRCH)?;
    process::find(id)
        .or_else(|| sched::process_of(id))
        .ok_or(ESRCH)
}

fn send_by(target: ProcessRef, signal: u32) -> Result<()> {
    if !may_signal(target) {
        return Err(EPERM);
    }
    if signal != 0 {
        // A real-time signal that finds the queue full is lost for kill, as on Linux.
        send_to_process_with(target, signal, Info::of_sender(SI_USER));
    }
    Ok(())
}

/// `tkill`, and with `group` `tgkill`.
///
/// # Errors
/// `EINVAL`, `ESRCH`, `EPERM`.
pub fn tgkill(group: Option<i32>, tid: i32, signal: u64) -> SysResult {
    let signal = check(signal)?;
    if tid <= 0 || group.is_some_and(|g| g <= 0) {
        return Err(EINVAL);
    }
    thread_of(group, tid)?;
    queue_to_thread(tid as u32, signal, Info::of_sender(SI_TKILL))
}

/// Checks that there is a thread `tid` (of process `group`, if that is given), and that it may be sent a signal.
fn thread_of(group: Option<i32>, tid: i32) -> Result<()> {
    let target = sched::process_of(tid as u32).ok_or(ESRCH)?;
    if group.is_some_and(|g| g as u32 != target.pid.get()) {
        return Err(ESRCH);
    }
    if may_signal(target) {
        Ok(())
    } else {
        Err(EPERM)
    }
}

fn queue_to_thread(tid: u32, signal: u32, info: Info) -> SysResult {
    let sent = if signal == 0 {
        sched::with_thread(tid, |_| true)
    } else {
        send_to_thread(tid, signal, info)
    };
    match sent {
        Some(true) => Ok(0),
        Some(false) => Err(EAGAIN),
        None => Err(ESRCH),
    }
}

/// `rt_sigqueueinfo`, `rt_tgsigqueueinfo` (with `tid`).
///
/// # Errors
/// `EINVAL`, `ESRCH`, `EFAULT`; `EAGAIN` when [`QUEUED_MAX`] signals wait.
pub fn sigqueueinfo(group: i32, tid: Option<i32>, signal: u64, info_at: u64) -> SysResult {
    let signal = check(signal)?;
    let image: SigInfo = user::read(info_at)?;
    let target = by_id(group)?;
    // Only the kernel, or a process to itself, may claim to be `kill` or the kernel.
    if (image.code >= 0 || image.code == SI_TKILL) && !core::ptr::eq(target, process::current()) {
        return Err(EPERM);
    }
    if !may_signal(target) {
        return Err(EPERM);
    }
    let info = Info {
        code: image.code,
        first: image.fields[0],
        value: image.fields[1],
    };
    match tid {
        Some(tid) if tid <= 0 => Err(EINVAL),
        Some(tid) => {
            thread_of(Some(group), tid)?;
            queue_to_thread(tid as u32, signal, info)
        }
        None if signal == 0 || send_to_process_with(target, signal, info) => Ok(0),
        None => Err(EAGAIN),
    }
}

fn check(signal: u64) -> Result<u32> {
    if (signal as usize) < COUNT {
        Ok(signal as u32)
    } else {
        Err(EINVAL)
    }
}
