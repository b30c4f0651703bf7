//! `execve` and `execveat`: another program in the place of the calling one.

use super::stack::MAX_STRINGS;
use super::{Program, load_program};
use crate::arch::{self, FxArea, TrapFrame};
use crate::errno::*;
use crate::process::{self, ProcessRef, end};
use crate::signal::AltStack;
use crate::{fs, futex, mm, sched, user, wait};
use alloc::format;
use alloc::vec::Vec;

/// Most bytes of one argument, NUL included (as Linux's MAX_ARG_STRLEN).
const MAX_STRING: usize = 128 << 10;

const AT_EMPTY_PATH: u64 = 0x1000;

/// `execve`. With success `frame` is the new program's.
///
/// # Errors
/// As Linux.
pub fn execve(frame: &mut TrapFrame, path: u64, argv: u64, envp: u64) -> SysResult {
    let path = user::path(path)?;
    if path.is_empty() {
        return Err(ENOENT);
    }
    replace(frame, &path, argv, envp)
}

/// `execveat`: paths that are relative to a descriptor go by `/proc/self/fd`.
///
/// # Errors
/// As Linux; `EINVAL` for AT_SYMLINK_NOFOLLOW.
pub fn execveat(
    frame: &mut TrapFrame,
    dirfd: i32,
    path: u64,
    argv: u64,
    envp: u64,
    flags: u64,
) -> SysResult {
    if flags & !AT_EMPTY_PATH != 0 {
        return Err(EINVAL);
    }
    let path = user::path(path)?;
    let path = if path.is_empty() {
        if flags & AT_EMPTY_PATH == 0 {
            return Err(ENOENT);
        }
        crate::file::get(dirfd)?;
        format!("/proc/self/fd/{dirfd}").into_bytes()
    } else if path[0] == b'/' || dirfd == fs::AT_FDCWD {
        path
    } else {
        crate::file::get(dirfd)?;
        let mut whole = format!("/proc/self/fd/{dirfd}/").into_bytes();
        whole.extend_from_slice(&path);
        whole
    };
    replace(frame, &path, argv, envp)
}

/// The strings that a null-terminated array of pointers names.
fn strings(at: u64, total: &mut usize) -> Result<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    let mut slot = at;
    while slot != 0 {
        let pointer: u64 = user::read(slot)?;
        if pointer == 0 {
            break;
        }
        let string = user::cstr(pointer, MAX_STRING, E2BIG)?;
        *total += string.len() + 9;
        if *total > MAX_STRINGS {
            return Err(E2BIG);
        }
        all.push(string);
        slot = slot.checked_add(8).ok_or(EFAULT)?;
    }
    Ok(all)
}

fn replace(frame: &mut TrapFrame, path: &[u8], argv: u64, envp: u64) -> SysResult {
    let mut total = 0;
    let mut argv = strings(argv, &mut total)?;
    let envp = strings(envp, &mut total)?;
    if argv.is_empty() {
        // As Linux does since 5.18: programs count on a name.
        argv.push(Vec::new());
    }
    let program = Program::find(path, argv)?;
    let me = process::current();
    be_alone(me);
    let old = mm::current_space();
    let new = mm::new_space()?;
    enter(me, new);
    match load_program(&program, &envp) {
        Ok(start) => *frame = start,
        Err(error) => {
            enter(me, old);
            mm::release_space(new);
            return Err(error);
        }
    }
    if old.borrow().users > 1 {
        // Somebody may still look at the words that this thread promised to change.
        let (tid, robust, clear) = sched::with_current(|t| (t.tid, t.robust_list.0, t.clear_tid));
        enter(me, old);
        futex::thread_ends(tid, robust, clear);
        enter(me, new);
    }
    mm::release_space(old);
    me.leave_space();
    forget_old_program(me);
    Ok(0)
}

fn enter(me: ProcessRef, space: mm::SpaceRef) {
    me.set_space(Some(space));
    mm::switch_space(space);
}

/// Ends all other threads; the one that is left gets the process's id.
fn be_alone(me: ProcessRef) {
    if me.threads.borrow().len() > 1 {
        me.sole.set(sched::current());
        end::end_others(me);
        while me.threads.borrow().len() > 1 {
            wait::wait_uninterruptible(&me.thread_ended);
        }
        if me.ends_thread(sched::current()) {
            end::thread();
        }
        me.sole.set(0);
    }
    if sched::current() != me.pid.get() {
        sched::take_process_id();
    }
}

/// What does not outlive the program: close-on-exec descriptors, handlers, what the thread has registered, registers.
fn forget_old_program(me: ProcessRef) {
    let closing = me.files.borrow_mut().take_cloexec();
    for open in closing {
        fs::closed(open);
    }
    me.signals.borrow_mut().reset_handlers();
    me.executed.set(true);
    me.undumpable.set(false);
    sched::with_current(|t| {
        t.clear_tid = 0;
        t.set_tid = 0;
        t.robust_list = (0, 0);
        t.rseq = (0, 0);
        t.signals.set_altstack(AltStack::default());
    });
    arch::set_fs_base(0);
    arch::set_gs_base(0);
    FxArea::initial().load();
}
