//! Making threads and processes: `clone`, `clone3`, `fork`, `vfork`.

use crate::arch::{self, TrapFrame};
use crate::errno::*;
use crate::mm::space::HIGHEST;
use crate::process::{self, ProcessRef};
use crate::signal::number;
use crate::{fingerprint, mm, sched, user, wait};

const CSIGNAL: u64 = 0xff;
const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_FILES: u64 = 0x400;
const CLONE_SIGHAND: u64 = 0x800;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_NEWNS: u64 = 0x2_0000;
const CLONE_SETTLS: u64 = 0x8_0000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
const CLONE_CHILD_SETTID: u64 = 0x100_0000;
/// New name spaces: cgroup, uts, ipc, user, pid, net, and that of mounts.
const NAMESPACES: u64 = 0x7e00_0000 | CLONE_NEWNS;
/// Only `clone3` has it.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// What makes a thread of the same process.
const THREAD: u64 = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD;

/// What is asked for.
struct Wish {
    flags: u64,
    exit_signal: u32,
    stack: u64,
    parent_tid: u64,
    child_tid: u64,
    tls: u64,
}

/// `fork`.
///
/// # Errors
/// `EAGAIN`, `ENOMEM`.
pub fn fork(frame: &TrapFrame) -> SysResult {
    clone(frame, [u64::from(number::CHLD), 0, 0, 0, 0, 0])
}

/// `vfork`.
///
/// # Errors
/// `EAGAIN`, `ENOMEM`.
pub fn vfork(frame: &TrapFrame) -> SysResult {
    let flags = CLONE_VM | CLONE_VFORK | u64::from(number::CHLD);
    clone(frame, [flags, 0, 0, 0, 0, 0])
}

/// `clone`.
///
/// # Errors
/// `EINVAL`, `EPERM`, `EAGAIN`, `ENOMEM`, `EFAULT`.
pub fn clone(frame: &TrapFrame, a: [u64; 6]) -> SysResult {
    let wish = Wish {
        flags: a[0] & 0xffff_ffff & !CSIGNAL,
        exit_signal: (a[0] & CSIGNAL) as u32,
        stack: a[1],
        parent_tid: a[2],
        child_tid: a[3],
        tls: a[4],
    };
    make(frame, &wish)
}

/// `clone3`.
///
/// # Errors
/// As [`clone`]; `E2BIG`.
pub fn clone3(frame: &TrapFrame, args: u64, size: u64) -> SysResult {
    if size < 64 {
        return Err(EINVAL);
    }
    if size > 4096 {
        return Err(E2BIG);
    }
    let a: [u64; 8] = user::read(args)?;
    let [
        flags,
        _pidfd,
        child_tid,
        parent_tid,
        exit_signal,
        stack,
        stack_size,
        tls,
    ] = a;
    if flags & CSIGNAL != 0 || exit_signal > CSIGNAL || (stack == 0) != (stack_size == 0) {
        return Err(EINVAL);
    }
    let wish = Wish {
        flags,
        exit_signal: exit_signal as u32,
        stack: stack.checked_add(stack_size).ok_or(EINVAL)?,
        parent_tid,
        child_tid,
        tls,
    };
    make(frame, &wish)
}

fn make(frame: &TrapFrame, wish: &Wish) -> SysResult {
    let flags = wish.flags;
    fingerprint::number(flags | u64::from(wish.exit_signal));
    if flags & NAMESPACES != 0 {
        return Err(EPERM);
    }
    if flags & CLONE_SETTLS != 0 && wish.tls >= HIGHEST {
        return Err(EPERM);
    }
    if wish.exit_signal > 64 {
        return Err(EINVAL);
    }
    if flags & CLONE_THREAD == 0 {
        return process(frame, wish);
    }
    // There are no descriptors of processes, and only a whole thread can be made.
    if flags & THREAD != THREAD || flags & (CLONE_PIDFD | CLONE_VFORK | CLONE_CLEAR_SIGHAND) != 0 {
        return Err(EINVAL);
    }
    let tid = spawn(process::current(), frame, wish)?;
    tell(tid, wish)?;
    Ok(u64::from(tid))
}

/// A new process.
fn process(frame: &TrapFrame, wish: &Wish) -> SysResult {
    let flags = wish.flags;
    // Handlers, descriptors and directories are each process's own; sharing them without being a thread is not offered.
    if flags & (CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_PIDFD) != 0 {
        return Err(EINVAL);
    }
    let me = process::current();
    let parent = match flags & CLONE_PARENT {
        0 => me,
        _ => process::find(me.parent.get()).ok_or(EINVAL)?,
    };
    let space = match flags & CLONE_VM {
        0 => mm::fork_space(mm::current_space())?,
        _ => mm::share_space(mm::current_space()),
    };
    let child = process::new(me, parent, space).inspect_err(|_| mm::release_space(space))?;
    let exit_signal = match flags & CLONE_PARENT {
        0 => wish.exit_signal,
        _ => me.exit_signal.get(),
    };
    child.exit_signal.set(exit_signal);
    if flags & CLONE_CLEAR_SIGHAND != 0 {
        child.signals.borrow_mut().reset_handlers();
    }
    let tid = spawn(child, frame, wish).inspect_err(|_| process::undo(child))?;
    let (altstack, rseq) = sched::with_current(|t| (t.signals.altstack(), t.rseq));
    sched::with_thread(tid, |t| {
        if flags & CLONE_VM == 0 {
            t.rseq = rseq;
        }
        if flags & (CLONE_VM | CLONE_VFORK) != CLONE_VM {
            t.signals.set_altstack(altstack);
        }
    });
    tell(tid, wish).inspect_err(|_| process::undo(child))?;
    if flags & CLONE_VFORK != 0 {
        child.borrows_space.set(true);
        // The child cannot be waited for, and its id used again, before this thread goes on: nobody else is its parent.
        while child.pid.get() == tid && child.borrows_space.get() {
            wait::wait_uninterruptible(&child.space_left);
        }
    }
    Ok(u64::from(tid))
}

/// The new thread itself.
fn spawn(of: ProcessRef, frame: &TrapFrame, wish: &Wish) -> Result<u32> {
    let mut child = *frame;
    child.rax = 0;
    if wish.stack != 0 {
        child.rsp = wish.stack;
    }
    let fs_base = match wish.flags & CLONE_SETTLS {
        0 => arch::fs_base(),
        _ => wish.tls,
    };
    #[cfg(not(test))]
    let tid = sched::spawn(of, &child, fs_base)?;
    #[cfg(test)]
    let tid = {
        let _ = (of, child, fs_base);
        0
    };
    sched::with_thread(tid, |t| {
        if wish.flags & CLONE_CHILD_CLEARTID != 0 {
            t.clear_tid = wish.child_tid;
        }
        if wish.flags & CLONE_CHILD_SETTID != 0 {
            t.set_tid = wish.child_tid;
        }
    });
    Ok(tid)
}

/// Tells the parent the new thread's id.
fn tell(tid: u32, wish: &Wish) -> Result<()> {
    if wish.flags & CLONE_PARENT_SETTID != 0 {
        user::write(wish.parent_tid, tid).inspect_err(|_| sched::unspawn(tid))?;
    }
    Ok(())
}
