//! Threads and the scheduler: cooperative, first come first served over all processes, the same in every replica.

use crate::arch::{self, FxArea, TrapFrame};
use crate::cell::Global;
use crate::errno::*;
use crate::mm::kheap;
use crate::process::{self, ProcessRef};
use crate::signal::ThreadSignals;
use crate::wait::Wake;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

/// Most threads of all processes together.
pub const MAX_THREADS: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Runnable,
    Blocked { interruptible: bool },
    Dead,
}

/// A thread.
pub struct Thread {
    /// Linux tid.
    pub tid: u32,
    /// Whose thread it is.
    pub process: ProcessRef,
    state: State,
    wake: Wake,
    deadline_ns: Option<u64>,
    stack_top: u64,
    stack_pointer: u64,
    fx: FxArea,
    fs_base: u64,
    gs_base: u64,
    /// Signals of this thread.
    pub signals: ThreadSignals,
    /// Address to clear and wake when the thread ends (CLONE_CHILD_CLEARTID).
    pub clear_tid: u64,
    /// Address at which a new process's first thread leaves its id (CLONE_CHILD_SETTID); 0 if nowhere.
    pub set_tid: u64,
    /// Head of the robust futex list, and its length as registered.
    pub robust_list: (u64, u64),
    /// Address and signature of the thread's `struct rseq`; address 0 if none.
    pub rseq: (u64, u32),
    /// PR_SET_NAME.
    pub name: [u8; 16],
    /// PR_SET_TIMERSLACK.
    pub timer_slack_ns: u64,
}

struct Scheduler {
    threads: BTreeMap<u32, Box<Thread>>,
    runnable: VecDeque<u32>,
    sleepers: BTreeSet<(u64, u32)>,
    current: u32,
    free_stacks: Vec<u64>,
    dead: Vec<u32>,
    /// Busy time at the last change of process.
    charged_ns: u64,
}

static SCHEDULER: Global<Scheduler> = Global::new(Scheduler {
    threads: BTreeMap::new(),
    runnable: VecDeque::new(),
    sleepers: BTreeSet::new(),
    current: process::FIRST,
    free_stacks: Vec::new(),
    dead: Vec::new(),
    charged_ns: 0,
});

/// Id of the calling thread (Linux tid).
pub fn current() -> u32 {
    SCHEDULER.borrow().current
}

/// Address of the variable that holds the running thread's id, for the flight recorder.
pub fn current_at() -> u64 {
    &raw const SCHEDULER.borrow().current as u64
}

/// Id of the running process.
pub fn pid() -> u32 {
    process::current().pid.get()
}

/// User and group id of the running process (real = effective = saved).
pub fn credentials() -> (u32, u32) {
    let ids = process::current().ids.borrow();
    (ids.uid, ids.gid)
}

/// Sets user and group id.
pub fn set_credentials(uid: u32, gid: u32) {
    let mut ids = process::current().ids.borrow_mut();
    ids.uid = uid;
    ids.gid = gid;
}

/// Supplementary groups.
pub fn groups() -> Vec<u32> {
    process::current().ids.borrow().groups.clone()
}

/// Sets the supplementary groups.
pub fn set_groups(groups: Vec<u32>) {
    process::current().ids.borrow_mut().groups = groups;
}

/// Number of threads of all processes.
pub fn thread_count() -> usize {
    SCHEDULER.borrow().threads.len().max(1)
}

/// Whose thread it is; None if there is no such thread.
pub fn process_of(tid: u32) -> Option<ProcessRef> {
    with_thread(tid, |t| t.process)
}

/// Whether a thread runs or could.
pub fn is_runnable(tid: u32) -> bool {
    with_thread(tid, |t| t.state == State::Runnable) == Some(true)
}

/// Processor time of the running process. Deterministic: journal time in which the machine was not idle.
pub fn cpu_ns() -> u64 {
    let before = SCHEDULER.borrow().charged_ns;
    process::current().cpu_ns.get() + busy_ns().saturating_sub(before)
}

fn busy_ns() -> u64 {
    crate::time::now_ns().saturating_sub(crate::boundary::idle_ns())
}

/// Charges the running process for the time since the last change.
fn charge() {
    let busy = busy_ns();
    let mut scheduler = SCHEDULER.borrow_mut();
    let used = busy.saturating_sub(scheduler.charged_ns);
    scheduler.charged_ns = busy;
    drop(scheduler);
    let process = process::current();
    process.cpu_ns.set(process.cpu_ns.get() + used);
}

/// Runs `f` on a thread; None if there is no such thread. `f` must not call the scheduler.
pub fn with_thread<T>(tid: u32, f: impl FnOnce(&mut Thread) -> T) -> Option<T> {
    SCHEDULER.borrow_mut().threads.get_mut(&tid).map(|t| f(t))
}

/// Runs `f` on the calling thread. `f` must not call the scheduler.
#[track_caller]
pub fn with_current<T>(f: impl FnOnce(&mut Thread) -> T) -> T {
    let mut scheduler = SCHEDULER.borrow_mut();
    let current = scheduler.current;
    match scheduler.threads.get_mut(&current) {
        Some(thread) => f(thread),
        None => panic!("the running thread {current} is not known"),
    }
}

/// Whether an unblocked signal is pending for the calling thread.
pub fn signal_pending() -> bool {
    if cfg!(test) {
        return false;
    }
    crate::signal::deliverable()
}

/// Sends a signal to the calling thread, as the kernel does for what the thread itself did (SIGPIPE).
pub fn send_signal_to_self(signal: u32) {
    if !cfg!(test) {
        crate::signal::send_to_thread(current(), signal, crate::signal::Info::default());
    }
}

/// Temporarily replaces the calling thread's signal mask (ppoll, pselect, epoll_pwait).
/// The old mask is restored when the system call returns, after a pending signal was delivered.
pub fn set_temporary_mask(mask: u64) {
    crate::signal::set_temporary_mask(mask);
}

/// Makes a blocked thread runnable; false if it was not blocked.
pub fn make_runnable(tid: u32, why: Wake) -> bool {
    let mut scheduler = SCHEDULER.borrow_mut();
    scheduler.wake(tid, why)
}

/// Ends the interruptible wait of a thread because a signal is there for it.
pub fn interrupt(tid: u32) {
    let mut scheduler = SCHEDULER.borrow_mut();
    if let Some(thread) = scheduler.threads.get(&tid)
        && thread.state
            == (State::Blocked {
                interruptible: true,
            })
    {
        scheduler.wake(tid, Wake::Signal);
    }
}

impl Scheduler {
    fn wake(&mut self, tid: u32, why: Wake) -> bool {
        let Some(thread) = self.threads.get_mut(&tid) else {
            return false;
        };
        if !matches!(thread.state, State::Blocked { .. }) {
            return false;
        }
        thread.state = State::Runnable;
        thread.wake = why;
        if let Some(deadline) = thread.deadline_ns.take() {
            self.sleepers.remove(&(deadline, tid));
        }
        self.runnable.push_back(tid);
        true
    }
}

/// Wakes the threads whose deadlines have passed.
pub fn wake_sleepers(now_ns: u64) {
    let mut scheduler = SCHEDULER.borrow_mut();
    while let Some((deadline, tid)) = scheduler.sleepers.first().copied() {
        if deadline > now_ns {
            break;
        }
        scheduler.sleepers.pop_first();
        if let Some(thread) = scheduler.threads.get_mut(&tid) {
            thread.deadline_ns = None;
        }
        scheduler.wake(tid, Wake::Timeout);
    }
}

/// First deadline of a sleeping thread.
pub fn next_deadline_ns() -> Option<u64> {
    SCHEDULER
        .borrow()
        .sleepers
        .first()
        .map(|(deadline, _)| *deadline)
}

/// Whether another thread could run.
pub fn others_runnable() -> bool {
    !SCHEDULER.borrow().runnable.is_empty()
}

/// Blocks the calling thread until it is woken or the deadline passes; see [`crate::wait::wait_on`].
pub fn block(deadline_ns: Option<u64>) -> Wake {
    block_as(deadline_ns, true)
}

/// Blocks the calling thread; signals do not end it.
pub fn block_uninterruptible() {
    block_as(None, false);
}

fn block_as(deadline_ns: Option<u64>, interruptible: bool) -> Wake {
    if cfg!(test) {
        return Wake::Timeout;
    }
    if deadline_ns.is_some_and(|d| d <= crate::time::now_ns()) {
        return Wake::Timeout;
    }
    {
        let mut scheduler = SCHEDULER.borrow_mut();
        let tid = scheduler.current;
        if let Some(deadline) = deadline_ns {
            scheduler.sleepers.insert((deadline, tid));
        }
        if let Some(thread) = scheduler.threads.get_mut(&tid) {
            thread.state = State::Blocked { interruptible };
            thread.deadline_ns = deadline_ns;
        }
    }
    schedule();
    with_current(|thread| thread.wake)
}

/// Lets other runnable threads run.
pub fn yield_now() {
    {
        let mut scheduler = SCHEDULER.borrow_mut();
        if scheduler.runnable.is_empty() {
            return;
        }
        let tid = scheduler.current;
        scheduler.runnable.push_back(tid);
    }
    schedule();
}

/// Switches to the thread that has waited longest; if there is none, to the world, until there is one.
fn schedule() {
    loop {
        let next = SCHEDULER.borrow_mut().runnable.pop_front();
        match next {
            Some(tid) => {
                switch_to(tid);
                return;
            }
            None => crate::boundary::idle(),
        }
    }
}

#[cfg(test)]
fn switch_to(_tid: u32) {}

#[cfg(not(test))]
fn switch_to(tid: u32) {
    let (from, to): (*mut Thread, *mut Thread) = {
        let mut scheduler = SCHEDULER.borrow_mut();
        let current = scheduler.current;
        if current == tid {
            return;
        }
        scheduler.current = tid;
        let from: *mut Thread = match scheduler.threads.get_mut(&current) {
            Some(thread) => &mut **thread,
            None => panic!("thread {current} vanished"),
        };
        let to: *mut Thread = match scheduler.threads.get_mut(&tid) {
            Some(thread) => &mut **thread,
            None => panic!("runnable thread {tid} vanished"),
        };
        (from, to)
    };
    // SAFETY: threads are boxed and not removed while they run or before they have been switched away from (the dead are
    // buried by the next thread); one vCPU, so nothing else touches them meanwhile.
    unsafe {
        (*from).fx.save();
        (*from).fs_base = arch::fs_base();
        (*from).gs_base = arch::gs_base();
        arch::set_fs_base((*to).fs_base);
        arch::set_gs_base((*to).gs_base);
        arch::entry::ENTRY_KERNEL_STACK
            .store((*to).stack_top, core::sync::atomic::Ordering::Relaxed);
        (*to).fx.load();
        if !core::ptr::eq((*from).process, (*to).process) {
            charge();
            process::switch_to((*to).process);
        }
        arch::entry::switch(&mut (*from).stack_pointer, (*to).stack_pointer);
    }
    bury();
}

/// Frees what dead threads leave; called on another thread's stack.
fn bury() {
    loop {
        let dead = {
            let mut scheduler = SCHEDULER.borrow_mut();
            match scheduler.dead.pop() {
                Some(tid) => {
                    let thread = scheduler.threads.remove(&tid);
                    if let Some(thread) = &thread {
                        scheduler.free_stacks.push(thread.stack_top);
                    }
                    thread
                }
                None => return,
            }
        };
        if let Some(thread) = dead {
            process::end::after_last_thread(thread.process);
        }
    }
}

/// Called by a new thread before it enters the program.
pub fn started() {
    bury();
}

fn new_thread(tid: u32, process: ProcessRef, stack_top: u64) -> Box<Thread> {
    process.threads.borrow_mut().insert(tid);
    Box::new(Thread {
        tid,
        process,
        state: State::Runnable,
        wake: Wake::Ready,
        deadline_ns: None,
        stack_top,
        stack_pointer: 0,
        fx: FxArea::initial(),
        fs_base: 0,
        gs_base: 0,
        signals: ThreadSignals::default(),
        clear_tid: 0,
        set_tid: 0,
        robust_list: (0, 0),
        rseq: (0, 0),
        name: [0; 16],
        timer_slack_ns: crate::sys::process::TIMER_SLACK_NS,
    })
}

/// Makes the first thread, which is running already, known. Returns the top of its kernel stack.
///
/// # Errors
/// `ENOMEM`.
pub fn init() -> Result<u64> {
    let top = kheap::new_stack()?;
    let first = process::current();
    let space = crate::mm::new_space()?;
    first.set_space(Some(space));
    process::switch_to(first);
    let tid = first.pid.get();
    let thread = new_thread(tid, first, top);
    let mut scheduler = SCHEDULER.borrow_mut();
    scheduler.threads.insert(tid, thread);
    arch::entry::ENTRY_KERNEL_STACK.store(top, core::sync::atomic::Ordering::Relaxed);
    Ok(top)
}

/// Makes a new thread that will enter the program with `frame`, and makes it runnable. Inherits the caller's name, signal
/// mask and floating-point state. `of`: whose it is; a new process's first thread has the process's id.
///
/// # Errors
/// `EAGAIN` at [`MAX_THREADS`], `ENOMEM`.
#[cfg(not(test))]
pub fn spawn(of: ProcessRef, frame: &TrapFrame, fs_base: u64) -> Result<u32> {
    let tid = match of.threads.borrow().is_empty() {
        true => of.pid.get(),
        false => process::next_id(),
    };
    let mut scheduler = SCHEDULER.borrow_mut();
    if scheduler.threads.len() >= MAX_THREADS {
        return Err(EAGAIN);
    }
    let top = match scheduler.free_stacks.pop() {
        Some(top) => top,
        None => kheap::new_stack()?,
    };
    let mut thread = new_thread(tid, of, top);
    thread.fx.save();
    thread.fs_base = fs_base;
    thread.gs_base = arch::gs_base();
    // SAFETY: a kernel stack that nobody uses.
    thread.stack_pointer = unsafe { arch::entry::prepare_stack(top, frame) };
    let current = scheduler.current;
    if let Some(parent) = scheduler.threads.get(&current) {
        thread.name = parent.name;
        thread.signals.mask = parent.signals.mask;
    }
    scheduler.threads.insert(tid, thread);
    scheduler.runnable.push_back(tid);
    Ok(tid)
}

/// Makes a thread of the kernel's own, which never enters a program, and makes it runnable. Its `tid` is below those of programs, and no
/// process lists it.
///
/// # Errors
/// `ENOMEM`.
#[cfg(not(test))]
pub fn spawn_kernel(tid: u32, body: extern "C" fn() -> !) -> Result<()> {
    let top = kheap::new_stack()?;
    let process = process::current();
    let mut thread = new_thread(tid, process, top);
    process.threads.borrow_mut().remove(&tid);
    // SAFETY: a kernel stack that nobody uses.
    thread.stack_pointer = unsafe { arch::entry::prepare_kernel_stack(top, body) };
    let mut scheduler = SCHEDULER.borrow_mut();
    scheduler.threads.insert(tid, thread);
    scheduler.runnable.push_back(tid);
    Ok(())
}

/// Undoes a [`spawn`] whose thread has not run yet.
pub fn unspawn(tid: u32) {
    let mut scheduler = SCHEDULER.borrow_mut();
    scheduler.runnable.retain(|t| *t != tid);
    if let Some(thread) = scheduler.threads.remove(&tid) {
        thread.process.threads.borrow_mut().remove(&tid);
        scheduler.free_stacks.push(thread.stack_top);
    }
}

/// The calling thread, the only one of its process, takes over the process's id (`execve`).
pub fn take_process_id() {
    let mut scheduler = SCHEDULER.borrow_mut();
    let old = scheduler.current;
    let Some(mut thread) = scheduler.threads.remove(&old) else {
        return;
    };
    let tid = thread.process.pid.get();
    thread.tid = tid;
    let mut threads = thread.process.threads.borrow_mut();
    threads.remove(&old);
    threads.insert(tid);
    drop(threads);
    scheduler.threads.insert(tid, thread);
    scheduler.current = tid;
}

/// Ends the calling thread. The caller has done what the thread owes to others (clear_tid, robust futexes).
pub fn exit_thread() -> ! {
    {
        let mut scheduler = SCHEDULER.borrow_mut();
        let tid = scheduler.current;
        if let Some(thread) = scheduler.threads.get_mut(&tid) {
            thread.state = State::Dead;
        }
        scheduler.dead.push(tid);
    }
    schedule();
    panic!("a dead thread runs")
}
