//! Signals: between processes and threads, with real frames on the program's stack (`frame`); the system calls are in `calls`.

use crate::arch::TrapFrame;
use crate::arch::entry::{KIND_FAST, KIND_FAULT};
use crate::process::{self, Process, ProcessRef};
use crate::user::Plain;
use crate::{rewrite, sched};

pub mod calls;
mod frame;
mod pending;

pub use calls::*;
use frame::push_frame;
pub use frame::sigreturn;

use pending::Pending;

#[allow(missing_docs)]
pub mod number {
    pub const HUP: u32 = 1;
    pub const INT: u32 = 2;
    pub const ILL: u32 = 4;
    pub const TRAP: u32 = 5;
    pub const ABRT: u32 = 6;
    pub const BUS: u32 = 7;
    pub const FPE: u32 = 8;
    pub const KILL: u32 = 9;
    pub const SEGV: u32 = 11;
    pub const PIPE: u32 = 13;
    pub const ALRM: u32 = 14;
    pub const TERM: u32 = 15;
    pub const CHLD: u32 = 17;
    pub const CONT: u32 = 18;
    pub const STOP: u32 = 19;
    pub const TSTP: u32 = 20;
    pub const TTIN: u32 = 21;
    pub const TTOU: u32 = 22;
    pub const URG: u32 = 23;
    pub const WINCH: u32 = 28;
}

/// Signals are numbered 1 to 64.
const COUNT: usize = 65;

/// si_code of what `kill` sends.
const SI_USER: i32 = 0;
/// si_code of what `tkill` and `tgkill` send.
const SI_TKILL: i32 = -6;
/// si_code of what the kernel sends.
pub const SI_KERNEL: i32 = 0x80;

const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;
const SA_NOCLDWAIT: u64 = 2;
const SA_ONSTACK: u64 = 0x0800_0000;
const SA_RESTART: u64 = 0x1000_0000;
const SA_NODEFER: u64 = 0x4000_0000;
const SA_RESETHAND: u64 = 0x8000_0000;
const SA_RESTORER: u64 = 0x0400_0000;

const SS_ONSTACK: i32 = 1;
const SS_DISABLE: i32 = 2;
const MINSIGSTKSZ: u64 = 2048;

/// Signals that exceptions raise.
const SYNCHRONOUS: u64 = 1 << (number::SEGV - 1)
    | 1 << (number::BUS - 1)
    | 1 << (number::ILL - 1)
    | 1 << (number::TRAP - 1)
    | 1 << (number::FPE - 1);

/// SIGKILL and SIGSTOP cannot be blocked.
const UNBLOCKABLE: u64 = 1 << (number::KILL - 1) | 1 << (number::STOP - 1);

/// `struct kernel_sigaction`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Action {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}
// SAFETY: repr(C), integers only.
unsafe impl Plain for Action {}

/// `stack_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AltStack {
    sp: u64,
    flags: i32,
    pad: i32,
    size: u64,
}
// SAFETY: repr(C), integers only.
unsafe impl Plain for AltStack {}

impl Default for AltStack {
    fn default() -> Self {
        Self {
            sp: 0,
            flags: SS_DISABLE,
            pad: 0,
            size: 0,
        }
    }
}

/// What a signal carries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Info {
    /// si_code.
    pub code: i32,
    /// si_addr of faults, else si_pid and si_uid.
    pub first: u64,
    /// si_value of rt_sigqueueinfo.
    pub value: u64,
}

impl Info {
    /// As the process itself sends it.
    fn of_sender(code: i32) -> Self {
        let (uid, _) = sched::credentials();
        Self {
            code,
            first: u64::from(sched::pid()) | u64::from(uid) << 32,
            value: 0,
        }
    }

    fn image(self, signal: u32) -> SigInfo {
        let mut fields = [0; 14];
        fields[0] = self.first;
        fields[1] = self.value;
        SigInfo {
            signo: signal as i32,
            errno: 0,
            code: self.code,
            pad: 0,
            fields,
        }
    }
}

/// An exception of the program: what `fault` delivers.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    /// Signal number.
    pub signal: u32,
    /// si_code.
    pub code: i32,
    /// si_addr.
    pub address: u64,
    /// The processor's vector.
    pub vector: u64,
    /// The processor's error code.
    pub error: u64,
}

/// `siginfo_t`, 128 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct SigInfo {
    signo: i32,
    errno: i32,
    code: i32,
    pad: i32,
    fields: [u64; 14],
}
// SAFETY: repr(C), integers only.
unsafe impl Plain for SigInfo {}

/// Signals of one thread.
#[derive(Default)]
pub struct ThreadSignals {
    /// Blocked signals.
    pub mask: u64,
    pending: Pending,
    /// What the thread waits for in sigwait.
    waited: u64,
    altstack: AltStack,
    /// Mask to restore when the system call returns.
    saved_mask: Option<u64>,
}

impl ThreadSignals {
    /// The alternate stack.
    pub fn altstack(&self) -> AltStack {
        self.altstack
    }

    /// Gives it an alternate stack.
    pub fn set_altstack(&mut self, altstack: AltStack) {
        self.altstack = altstack;
    }
}

/// Signals of one process.
pub struct ProcessSignals {
    actions: [Action; COUNT],
    pending: Pending,
}

impl ProcessSignals {
    /// Nothing handled, nothing pending.
    pub const fn new() -> Self {
        Self {
            actions: [Action {
                handler: 0,
                flags: 0,
                restorer: 0,
                mask: 0,
            }; COUNT],
            pending: Pending::new(),
        }
    }

    /// What a child starts with: the same handlers, nothing pending.
    pub fn inherited(&self) -> Self {
        Self {
            actions: self.actions,
            pending: Pending::new(),
        }
    }

    /// For a new program: handlers go, what is ignored stays ignored.
    pub fn reset_handlers(&mut self) {
        for action in &mut self.actions {
            if action.handler != SIG_IGN {
                *action = Action::default();
            }
        }
    }

    /// Whether children need not be waited for.
    pub fn leaves_no_zombies(&self) -> bool {
        let action = &self.actions[number::CHLD as usize];
        action.handler == SIG_IGN || action.flags & SA_NOCLDWAIT != 0
    }
}

impl Default for ProcessSignals {
    fn default() -> Self {
        Self::new()
    }
}

fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

fn ignored_by_default(signal: u32) -> bool {
    use number::*;
    // There is no terminal to stop a process from: job-control stops are ignored, as for a process in an orphaned group.
    matches!(
        signal,
        CHLD | URG | WINCH | CONT | TSTP | TTIN | TTOU | STOP
    )
}

fn ignored(process: &Process, signal: u32) -> bool {
    match process.signals.borrow().actions[signal as usize].handler {
        SIG_IGN => true,
        SIG_DFL => ignored_by_default(signal),
        _ => false,
    }
}

/// Whether the calling thread has to end, or an unblocked signal is pending for it.
pub fn deliverable() -> bool {
    must_end() || next_deliverable().is_some()
}

fn must_end() -> bool {
    process::current().ends_thread(sched::current())
}

fn next_deliverable() -> Option<(u32, bool)> {
    let process = process::current().signals.borrow().pending.set;
    sched::with_current(|t| {
        let own = t.signals.pending.set & !t.signals.mask;
        let shared = process & !t.signals.mask;
        if own | shared == 0 {
            return None;
        }
        // Faults that somebody sent come first, then the lowest number, as on Linux.
        let urgent = (own | shared) & SYNCHRONOUS;
        let signal = if urgent != 0 { urgent } else { own | shared }.trailing_zeros() + 1;
        Some((signal, own & bit(signal) != 0))
    })
}

/// Sends a signal to a process from the kernel; an idle thread that does not block it is interrupted.
pub fn send_from_kernel(process: ProcessRef, signal: u32) {
    let info = Info {
        code: SI_KERNEL,
        ..Info::default()
    };
    send_to_process_with(process, signal, info);
}

/// Asks the set to stop: SIGTERM for the first process.
pub fn terminate() {
    if let Some(first) = process::find(process::FIRST) {
        send_from_kernel(first, number::TERM);
    }
}

/// [`send_from_kernel`] with what it carries; false if too many of it wait already.
pub fn send_to_process_with(process: ProcessRef, signal: u32, info: Info) -> bool {
    if cfg!(test) || !process.is_alive() {
        return true;
    }
    let threads = process.thread_ids();
    let takes =
        |tid: &u32| sched::with_thread(*tid, |t| t.signals.mask & bit(signal) == 0) == Some(true);
    let taker = threads.iter().find(|tid| takes(tid));
    // What is ignored is dropped, but not where it is blocked: somebody may wait for it with sigwait.
    if ignored(process, signal) && taker.is_some() {
        return true;
    }
    if !process.signals.borrow_mut().pending.add(signal, info) {
        return false;
    }
    match taker {
        Some(tid) => sched::interrupt(*tid),
        // Blocked everywhere: one may wait for it in sigwait.
        None => threads
            .into_iter()
            .filter(|tid| waits_for(*tid, signal))
            .take(1)
            .for_each(sched::interrupt),
    }
    true
}

fn waits_for(tid: u32, signal: u32) -> bool {
    sched::with_thread(tid, |t| t.signals.waited & bit(signal) != 0) == Some(true)
}

/// Sends a signal to one thread; `None` if there is no such thread, false if too many of it wait already.
pub fn send_to_thread(tid: u32, signal: u32, info: Info) -> Option<bool> {
    let ignored = ignored(sched::process_of(tid)?, signal);
    let (wake, sent) = sched::with_thread(tid, |t| {
        let blocked = t.signals.mask & bit(signal) != 0;
        if ignored && !blocked {
            return (false, true);
        }
        let sent = t.signals.pending.add(signal, info);
        (!blocked || t.signals.waited & bit(signal) != 0, sent)
    })?;
    if wake {
        sched::interrupt(tid);
    }
    Some(sent)
}

/// See [`sched::set_temporary_mask`].
pub fn set_temporary_mask(mask: u64) {
    sched::with_current(|t| {
        t.signals.saved_mask.get_or_insert(t.signals.mask);
        t.signals.mask = mask & !UNBLOCKABLE;
    });
}

/// Delivers pending signals before the return to the program. `restartable`: the system call ended with `EINTR` and may be made
/// again. Returns whether the frame was changed.
pub fn deliver_pending(frame: &mut TrapFrame, restartable: bool) -> bool {
    if must_end() {
        process::end::thread();
    }
    let mut changed = false;
    let mut restartable = restartable;
    while let Some((signal, own)) = next_deliverable() {
        let info = take(signal, own);
        let action = action_of(signal);
        match action.handler {
            SIG_IGN => {}
            SIG_DFL if ignored_by_default(signal) => {}
            SIG_DFL => process::end::process(signal),
            _ => {
                if restartable && action.flags & SA_RESTART != 0 {
                    restart(frame);
                }
                restartable = false;
                push_frame(frame, signal, info, &action, None);
                changed = true;
            }
        }
    }
    if restartable {
        // Interrupted, but by nothing that the program handles.
        restart(frame);
        changed = true;
    }
    restore_mask();
    changed
}

/// Restores the mask that a temporary one replaced, where no signal was delivered.
pub fn restore_mask() {
    sched::with_current(|t| {
        if let Some(mask) = t.signals.saved_mask.take() {
            t.signals.mask = mask;
        }
    });
}

fn restart(frame: &mut TrapFrame) {
    frame.rax = frame.orig_rax;
    frame.rip = rewrite::restart_address(frame.rip, frame.kind);
}

fn action_of(signal: u32) -> Action {
    process::current().signals.borrow().actions[signal as usize]
}

fn take(signal: u32, own: bool) -> Info {
    if own {
        sched::with_current(|t| t.signals.pending.take(signal))
    } else {
        process::current().signals.borrow_mut().pending.take(signal)
    }
}

/// A fault in the program: delivers the signal that Linux would, at once. A fault signal that is blocked or ignored kills.
pub fn fault(frame: &mut TrapFrame, exception: Exception) {
    let Exception {
        signal,
        code,
        address,
        ..
    } = exception;
    let action = action_of(signal);
    let blocked = sched::with_current(|t| t.signals.mask & bit(signal) != 0);
    if blocked || matches!(action.handler, SIG_DFL | SIG_IGN) {
        crate::klog!(
            "program killed by signal {signal} (code {code}), rip offset {}",
            crate::boot::describe_address(frame.rip)
        );
        process::end::process(signal);
    }
    frame.kind = KIND_FAULT;
    let info = Info {
        code,
        first: address,
        value: 0,
    };
    push_frame(frame, signal, info, &action, Some(exception));
}

/// Whether a system call that ended with `EINTR` is made again after a handler with SA_RESTART.
pub fn restartable(number: u64) -> bool {
    // read write readv writev pread pwrite ioctl accept sendto recvfrom sendmsg recvmsg connect flock futex accept4 getrandom
    // pwritev preadv recvmmsg sendmmsg waitid wait4
    matches!(
        number,
        0 | 1 | 16..=20 | 42..=47 | 61 | 72 | 73 | 202 | 247 | 288 | 295 | 296 | 299 | 307 | 318
    )
}

const _: () = assert!(KIND_FAST != KIND_FAULT);
