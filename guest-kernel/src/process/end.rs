//! How threads and processes end.

use super::{FIRST, Life, Process, ProcessRef, all, current, find, remove};
use crate::signal::{self, Info, number};
use crate::{boundary, fs, futex, mm, sched};
use alloc::vec::Vec;

/// si_code of SIGCHLD: ended by itself.
const CLD_EXITED: i32 = 1;
/// si_code of SIGCHLD: ended by a signal.
const CLD_KILLED: i32 = 2;

/// (si_code, si_status) of a wait status.
pub fn cause(status: u32) -> (i32, u32) {
    match status & 0x7f {
        0 => (CLD_EXITED, status >> 8 & 0xff),
        signal => (CLD_KILLED, signal),
    }
}

/// Ends the calling process. `status`: what `wait4` reports.
pub fn process(status: u32) -> ! {
    let me = current();
    if me.is_first() {
        everything(status);
    }
    if me.is_alive() {
        me.life.set(Life::Ending);
        me.status.set(status);
        end_others(me);
    }
    thread()
}

/// The set ends with its first process: all others' descriptors are closed with its own.
fn everything(status: u32) -> ! {
    for other in all() {
        if !other.is_first() {
            let files = other.files.borrow_mut().take_all();
            drop(files);
        }
    }
    boundary::exit_program(u64::from(status))
}

/// Makes all threads but the calling one end when they next return to the program.
pub fn end_others(process: &Process) {
    let me = sched::current();
    for tid in process.thread_ids() {
        if tid != me {
            sched::interrupt(tid);
        }
    }
}

/// Ends the calling thread, and the process with its last one.
pub fn thread() -> ! {
    let (tid, robust, clear) = sched::with_current(|t| (t.tid, t.robust_list.0, t.clear_tid));
    futex::thread_ends(tid, robust, clear);
    let me = current();
    me.threads.borrow_mut().remove(&tid);
    me.thread_ended.wake_all();
    if me.threads.borrow().is_empty() {
        if me.is_first() {
            everything(me.status.get());
        }
        finish(me);
    }
    sched::exit_thread()
}

/// `exit`: ends the calling thread. The last one's status is the process's.
pub fn thread_with(status: u32) -> ! {
    let me = current();
    if me.is_alive() {
        me.status.set(status);
    }
    thread()
}

/// All threads have ended: what the process has goes, its children find a new parent, its parent learns of it. Its address space goes
/// when another thread runs ([`after_last_thread`]).
fn finish(me: ProcessRef) {
    me.life.set(Life::Ending);
    let files = me.files.borrow_mut().take_all();
    for open in files {
        fs::closed(open);
    }
    me.alarm.borrow_mut().disarm();
    *me.place.borrow_mut() = None;
    me.leave_space();
    let (children, death_signals) = hand_over_children(me);
    for child in death_signals {
        signal::send_from_kernel(child, child.death_signal.get());
    }
    me.life.set(Life::Zombie);
    if let Some(parent) = find(me.parent.get()) {
        tell(parent, me);
    }
    // Adopted children that have ended already are news to whoever adopted them.
    for child in children {
        if child.life.get() == Life::Zombie
            && let Some(parent) = find(child.parent.get())
        {
            tell(parent, child);
            if child.unwaited.get() {
                remove(child);
            }
        }
    }
}

/// Tells `parent` that its child has ended.
fn tell(parent: ProcessRef, child: ProcessRef) {
    let signal = child.exit_signal.get();
    if signal == number::CHLD && parent.signals.borrow().leaves_no_zombies() {
        child.unwaited.set(true);
    }
    if signal != 0 {
        let (code, status) = cause(child.status.get());
        let info = Info {
            code,
            first: u64::from(child.pid.get()) | u64::from(child.ids.borrow().uid) << 32,
            value: u64::from(status),
        };
        signal::send_to_process_with(parent, signal, info);
    }
    parent.child_ended.wake_all();
}

/// Gives the children to the nearest ancestor that adopts, at last the first process. Returns them, and those that want a signal.
fn hand_over_children(me: ProcessRef) -> (Vec<ProcessRef>, Vec<ProcessRef>) {
    let children: Vec<ProcessRef> = me.children.take().into_iter().filter_map(find).collect();
    if children.is_empty() {
        return (children, Vec::new());
    }
    let mut reaper = find(me.parent.get());
    while let Some(process) = reaper
        && !process.is_first()
        && !(process.reaper.get() && process.is_alive())
    {
        reaper = find(process.parent.get());
    }
    let Some(reaper) = reaper.or_else(|| find(FIRST)) else {
        return (children, Vec::new());
    };
    for child in &children {
        child.parent.set(reaper.pid.get());
        child.orphaned.set(true);
        child.exit_signal.set(number::CHLD);
        reaper.children.borrow_mut().push(child.pid.get());
    }
    let death_signals = children.iter().copied();
    let death_signals = death_signals
        .filter(|c| c.death_signal.get() != 0 && c.is_alive())
        .collect();
    (children, death_signals)
}

/// Called on another thread's stack once a thread has ended for good: frees the address space of a process that has no more threads.
pub fn after_last_thread(process: ProcessRef) {
    if process.life.get() != Life::Zombie {
        return;
    }
    if let Some(space) = process.set_space(None) {
        mm::release_space(space);
    }
    if process.unwaited.get() {
        remove(process);
    }
}

/// There is no room for another process: drops the oldest one that has ended and that the first process has adopted without waiting for
/// it since. False if there is none.
pub fn forget_an_orphan() -> bool {
    let Some(first) = find(FIRST) else {
        return false;
    };
    let children = first.children.borrow().clone();
    let dead = children
        .into_iter()
        .filter_map(find)
        .find(|c| c.life.get() == Life::Zombie && c.orphaned.get() && c.space().is_none());
    dead.map(remove).is_some()
}
