//! Signals: to the own process and its threads, with real frames on the program's stack.

use crate::arch::entry::{KIND_FAST, KIND_FAULT};
use crate::arch::frame::USER_RFLAGS;
use crate::arch::{FxArea, TrapFrame};
use crate::cell::Global;
use crate::errno::*;
use crate::mm::Access;
use crate::user::{self, Plain};
use crate::{mm, rewrite, sched};

mod pending;

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
struct AltStack {
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
            first: u64::from(sched::PID) | u64::from(uid) << 32,
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

struct ProcessSignals {
    actions: [Action; COUNT],
    pending: Pending,
}

static PROCESS: Global<ProcessSignals> = Global::new(ProcessSignals {
    actions: [Action {
        handler: 0,
        flags: 0,
        restorer: 0,
        mask: 0,
    }; COUNT],
    pending: Pending::new(),
});

fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

fn ignored_by_default(signal: u32) -> bool {
    use number::*;
    // Stopping makes no sense for an appliance's only process: job-control stops are ignored, as for a process in an
    // orphaned group.
    matches!(
        signal,
        CHLD | URG | WINCH | CONT | TSTP | TTIN | TTOU | STOP
    )
}

fn ignored(signal: u32) -> bool {
    match PROCESS.borrow().actions[signal as usize].handler {
        SIG_IGN => true,
        SIG_DFL => ignored_by_default(signal),
        _ => false,
    }
}

/// Whether an unblocked signal is pending for the calling thread.
pub fn deliverable() -> bool {
    next_deliverable().is_some()
}

fn next_deliverable() -> Option<(u32, bool)> {
    let process = PROCESS.borrow().pending.set;
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

/// Sends a signal to the process from the kernel; an idle thread that does not block it is interrupted.
pub fn send_to_process(signal: u32) {
    send_to_process_with(
        signal,
        Info {
            code: SI_KERNEL,
            ..Info::default()
        },
    );
}

/// [`send_to_process`] with what it carries; false if too many of it wait already.
pub fn send_to_process_with(signal: u32, info: Info) -> bool {
    if cfg!(test) {
        return true;
    }
    let threads = sched::thread_ids();
    let takes =
        |tid: &u32| sched::with_thread(*tid, |t| t.signals.mask & bit(signal) == 0) == Some(true);
    let taker = threads.iter().find(|tid| takes(tid));
    // What is ignored is dropped, but not where it is blocked: somebody may wait for it with sigwait.
    if ignored(signal) && taker.is_some() {
        return true;
    }
    if !PROCESS.borrow_mut().pending.add(signal, info) {
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
    let ignored = ignored(signal);
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
    let mut changed = false;
    let mut restartable = restartable;
    while let Some((signal, own)) = next_deliverable() {
        let info = take(signal, own);
        let action = PROCESS.borrow().actions[signal as usize];
        match action.handler {
            SIG_IGN => {}
            SIG_DFL if ignored_by_default(signal) => {}
            SIG_DFL => crate::boundary::exit_program(u64::from(signal)),
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

fn take(signal: u32, own: bool) -> Info {
    if own {
        sched::with_current(|t| t.signals.pending.take(signal))
    } else {
        PROCESS.borrow_mut().pending.take(signal)
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
    let action = PROCESS.borrow().actions[signal as usize];
    let blocked = sched::with_current(|t| t.signals.mask & bit(signal) != 0);
    if blocked || matches!(action.handler, SIG_DFL | SIG_IGN) {
        crate::klog!(
            "program killed by signal {signal} (code {code}), rip offset {}",
            crate::boot::describe_address(frame.rip)
        );
        crate::boundary::exit_program(u64::from(signal) | 0x80);
    }
    frame.kind = KIND_FAULT;
    let info = Info {
        code,
        first: address,
        value: 0,
    };
    push_frame(frame, signal, info, &action, Some(exception));
}

/// `ucontext` plus what precedes it on the stack: Linux's `struct rt_sigframe` of x86-64.
#[repr(C)]
#[derive(Clone, Copy)]
struct RtFrame {
    restorer: u64,
    uc_flags: u64,
    uc_link: u64,
    stack: AltStack,
    /// r8 r9 r10 r11 r12 r13 r14 r15 rdi rsi rbp rbx rdx rax rcx rsp rip eflags
    registers: [u64; 18],
    /// cs, gs, fs, ss as 16-bit values
    segments: u64,
    err: u64,
    trapno: u64,
    oldmask: u64,
    cr2: u64,
    fpstate: u64,
    reserved: [u64; 8],
    sigmask: u64,
    info: SigInfo,
}
// SAFETY: repr(C), integers only.
unsafe impl Plain for RtFrame {}

const SEGMENTS: u64 = 0x33 | 0x2b << 48;

fn push_frame(
    frame: &mut TrapFrame,
    signal: u32,
    info: Info,
    action: &Action,
    exception: Option<Exception>,
) {
    if crate::sys::process::rseq_abort(frame).is_err() {
        crate::boundary::exit_program(u64::from(number::SEGV) | 0x80);
    }
    let (mask, alt) = sched::with_current(|t| {
        let mask = t.signals.saved_mask.take().unwrap_or(t.signals.mask);
        t.signals.mask |= action.mask & !UNBLOCKABLE;
        if action.flags & SA_NODEFER == 0 {
            t.signals.mask |= bit(signal);
        }
        (mask, t.signals.altstack)
    });
    if action.flags & SA_RESETHAND != 0 {
        PROCESS.borrow_mut().actions[signal as usize].handler = SIG_DFL;
    }
    let on_alt = on_altstack(frame.rsp, &alt);
    let mut sp = frame.rsp - 128;
    if action.flags & SA_ONSTACK != 0 && alt.flags & SS_DISABLE == 0 && !on_alt {
        sp = alt.sp + alt.size;
    }
    let fp_at = (sp - 512) & !63;
    // rsp + 8 is 16-byte aligned at the handler's first instruction.
    let at = ((fp_at - size_of::<RtFrame>() as u64) & !15) - 8;
    let total = (sp - at) as usize;
    if action.flags & SA_RESTORER == 0 || mm::check_user(at, total, Access::Write).is_err() {
        crate::klog!("no room for the frame of signal {signal}: program killed");
        crate::boundary::exit_program(u64::from(number::SEGV) | 0x80);
    }
    let mut fx = FxArea::initial();
    fx.save();
    for (i, value) in frame.xmm.iter().enumerate() {
        fx.0[160 + 16 * i..176 + 16 * i].copy_from_slice(&value.to_le_bytes());
    }
    // The kernel that a program knows marks the absence of extended state by zeroes here.
    fx.0[464..512].fill(0);
    let image = RtFrame {
        restorer: action.restorer,
        uc_flags: 4, // UC_SIGCONTEXT_SS
        uc_link: 0,
        stack: AltStack {
            flags: if alt.flags & SS_DISABLE != 0 {
                SS_DISABLE
            } else {
                i32::from(on_alt)
            },
            ..alt
        },
        registers: [
            frame.r8,
            frame.r9,
            frame.r10,
            frame.r11,
            frame.r12,
            frame.r13,
            frame.r14,
            frame.r15,
            frame.rdi,
            frame.rsi,
            frame.rbp,
            frame.rbx,
            frame.rdx,
            frame.rax,
            frame.rcx,
            frame.rsp,
            frame.rip,
            frame.rflags,
        ],
        segments: SEGMENTS,
        err: exception.map_or(0, |e| e.error),
        trapno: exception.map_or(0, |e| e.vector),
        oldmask: mask,
        cr2: exception
            .filter(|e| e.vector == 14)
            .map_or(0, |e| e.address),
        fpstate: fp_at,
        reserved: [0; 8],
        sigmask: mask,
        info: info.image(signal),
    };
    let written = user::copy_out(fp_at, &fx.0).and_then(|()| user::write(at, image));
    if written.is_err() {
        crate::boundary::exit_program(u64::from(number::SEGV) | 0x80);
    }
    frame.rdi = u64::from(signal);
    frame.rsi = at + core::mem::offset_of!(RtFrame, info) as u64;
    frame.rdx = at + core::mem::offset_of!(RtFrame, uc_flags) as u64;
    frame.rax = 0;
    frame.rsp = at;
    frame.rip = action.handler;
    frame.rflags &= !0x500; // TF, DF
}

fn on_altstack(sp: u64, alt: &AltStack) -> bool {
    alt.flags & SS_DISABLE == 0 && sp > alt.sp && sp - alt.sp <= alt.size
}

/// `rt_sigreturn`: takes the frame off the stack again. What it contains is the program's own business, within what a
/// program can do to its registers anyway.
pub fn sigreturn(frame: &mut TrapFrame) {
    let image: RtFrame = match user::read(frame.rsp - 8) {
        Ok(image) => image,
        Err(_) => crate::boundary::exit_program(u64::from(number::SEGV) | 0x80),
    };
    let r = &image.registers;
    frame.r8 = r[0];
    frame.r9 = r[1];
    frame.r10 = r[2];
    frame.r11 = r[3];
    frame.r12 = r[4];
    frame.r13 = r[5];
    frame.r14 = r[6];
    frame.r15 = r[7];
    frame.rdi = r[8];
    frame.rsi = r[9];
    frame.rbp = r[10];
    frame.rbx = r[11];
    frame.rdx = r[12];
    frame.rax = r[13];
    frame.rcx = r[14];
    frame.rsp = r[15];
    frame.rip = r[16];
    frame.rflags = r[17] & USER_RFLAGS | 0x3202;
    frame.kind = KIND_FAULT;
    if image.fpstate != 0
        && let Ok(bytes) = user::bytes(image.fpstate, 512)
    {
        let mut fx = FxArea::initial();
        fx.0.copy_from_slice(bytes);
        // Reserved MXCSR bits would fault.
        fx.0[26] = 0;
        fx.0[27] = 0;
        for i in 0..16 {
            let mut value = [0u8; 16];
            value.copy_from_slice(&fx.0[160 + 16 * i..176 + 16 * i]);
            frame.xmm[i] = u128::from_le_bytes(value);
        }
        fx.load();
    }
    sched::with_current(|t| {
        t.signals.mask = image.sigmask & !UNBLOCKABLE;
        if image.stack.flags & !(SS_ONSTACK | SS_DISABLE) == 0
            && !on_altstack(frame.rsp, &t.signals.altstack)
        {
            t.signals.altstack = AltStack {
                flags: image.stack.flags & SS_DISABLE,
                ..image.stack
            };
        }
    });
}

/// `rt_sigaction`.
///
/// # Errors
/// `EINVAL`, `EFAULT`.
pub fn sigaction(signal: u64, new: u64, old: u64, set_size: u64) -> SysResult {
    if set_size != 8 || signal == 0 || signal as usize >= COUNT {
        return Err(EINVAL);
    }
    let index = signal as usize;
    let before = PROCESS.borrow().actions[index];
    if new != 0 {
        if bit(signal as u32) & UNBLOCKABLE != 0 {
            return Err(EINVAL);
        }
        let action: Action = user::read(new)?;
        PROCESS.borrow_mut().actions[index] = action;
        if ignored(signal as u32) {
            PROCESS.borrow_mut().pending.discard(signal as u32);
            for tid in sched::thread_ids() {
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
    let process = PROCESS.borrow().pending.set;
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
        let process = PROCESS.borrow().pending.set;
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

/// `kill`, `tkill`, `tgkill`: to the own process or one of its threads.
///
/// # Errors
/// `EINVAL`, `ESRCH`.
pub fn kill(pid: i32, signal: u64) -> SysResult {
    let signal = check(signal)?;
    // 0 and -1 and the own group all mean this one process.
    if !(pid == 0 || pid == -1 || pid.unsigned_abs() == sched::PID) {
        return Err(ESRCH);
    }
    if signal != 0 {
        // A real-time signal that finds the queue full is lost for kill, as on Linux.
        send_to_process_with(signal, Info::of_sender(SI_USER));
    }
    Ok(0)
}

/// See [`kill`].
///
/// # Errors
/// `EINVAL`, `ESRCH`.
pub fn tgkill(group: Option<i32>, tid: i32, signal: u64) -> SysResult {
    let signal = check(signal)?;
    if tid <= 0 || group.is_some_and(|g| g != sched::PID as i32) {
        return Err(if tid <= 0 { EINVAL } else { ESRCH });
    }
    queue_to_thread(tid as u32, signal, Info::of_sender(SI_TKILL))
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
    if group != sched::PID as i32 {
        return Err(ESRCH);
    }
    let info = Info {
        code: image.code,
        first: image.fields[0],
        value: image.fields[1],
    };
    match tid {
        Some(tid) if tid <= 0 => Err(EINVAL),
        Some(tid) => queue_to_thread(tid as u32, signal, info),
        None if signal == 0 || send_to_process_with(signal, info) => Ok(0),
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

/// Resets handlers for a new program (`execve`).
pub fn reset() {
    let mut process = PROCESS.borrow_mut();
    for action in &mut process.actions {
        if action.handler != SIG_IGN {
            *action = Action::default();
        }
    }
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
