//! System calls: dispatch, and what follows each one.

pub mod clock;
pub mod clone;
pub mod ident;
pub mod process;

use crate::arch::TrapFrame;
use crate::arch::entry::KIND_TRAP;
use crate::cell::Global;
use crate::errno::*;
use crate::process::wait;
use crate::{
    boundary, exec, fingerprint, flight, fs, futex, klog, mm, net, rewrite, sched, signal, user,
};
use alloc::collections::BTreeSet;
use quorate_abi::calls as names;

mod nr {
    #![allow(missing_docs)]
    pub const MMAP: u64 = 9;
    pub const MPROTECT: u64 = 10;
    pub const MUNMAP: u64 = 11;
    pub const BRK: u64 = 12;
    pub const RT_SIGRETURN: u64 = 15;
    pub const MREMAP: u64 = 25;
    pub const CLONE: u64 = 56;
    pub const FORK: u64 = 57;
    pub const VFORK: u64 = 58;
    pub const EXECVE: u64 = 59;
    pub const EXIT: u64 = 60;
    pub const EXIT_GROUP: u64 = 231;
    pub const EXECVEAT: u64 = 322;
    pub const CLONE3: u64 = 435;
}

/// Calls after which another runnable thread gets its turn, even if the caller never waits.
const CALLS_PER_TURN: u32 = 64;

struct Unknown {
    counts: [u32; names::COUNT],
    others: BTreeSet<u64>,
    calls: u32,
}

/// Numbers outside the table that are remembered, so that each is named once; later ones are not named.
const OTHERS_MAX: usize = 64;

static UNKNOWN: Global<Unknown> = Global::new(Unknown {
    counts: [0; names::COUNT],
    others: BTreeSet::new(),
    calls: 0,
});

/// Entry from assembly. Returns 1 when all registers must be restored, 0 when SYSCALL's contract is enough.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn handle_syscall(frame: &mut TrapFrame) -> u8 {
    let number = frame.rax;
    let caller = frame.rip;
    let mut full = frame.kind == KIND_TRAP && rewrite::patch_site(frame);
    if number == nr::RT_SIGRETURN {
        signal::sigreturn(frame);
        fingerprint::call(number, 0);
        flight::call(number, [0; 6], 0, frame.rip, frame.rsp);
        signal::deliver_pending(frame, false);
        return 1;
    }
    let args = arguments(frame);
    let injected = flight::wanted_failure(number);
    let result = match injected {
        None => dispatch(number, frame, args, caller),
        Some(error) => Err(error),
    };
    // A new program starts with all registers set.
    full |= matches!(number, nr::EXECVE | nr::EXECVEAT) && result.is_ok();
    let value = match result {
        Ok(value) => value,
        Err(error) => (-i64::from(error.0)) as u64,
    };
    frame.rax = value;
    let digested = match number {
        // Addresses must not reach an output (R8).
        nr::MMAP | nr::BRK | nr::MREMAP if result.is_ok() => 0,
        _ => value,
    };
    fingerprint::call(number, digested);
    flight::call(number, args, value, frame.rip, frame.rsp);
    if cfg!(feature = "trace") {
        trace(number, frame, digested);
    }
    boundary::after_call();
    turn();
    // A fault injector's EINTR is for the program to see.
    let interrupted = result == Err(EINTR) && signal::restartable(number) && injected.is_none();
    if signal::deliverable() || interrupted {
        full |= signal::deliver_pending(frame, interrupted);
    } else {
        signal::restore_mask();
    }
    u8::from(full)
}

/// For finding out why replicas differ: every call with its digest, on the console. Shows no addresses.
fn trace(number: u64, frame: &TrapFrame, result: u64) {
    let ([digest, _], calls) = fingerprint::current();
    let (from, to) = crate::boot::trace_window();
    if calls < from || calls > to {
        return;
    }
    let small = |value: u64| if value < 1 << 20 { value as i64 } else { -1 };
    klog!(
        "#{calls} {} {}({}, {}, {}) = {} digest {digest:016x} size {:?} from {}",
        sched::current(),
        names::name(number),
        small(frame.rdi),
        small(frame.rsi),
        small(frame.rdx),
        result as i64,
        mm::size_of(mm::current_space()),
        crate::boot::describe_address(rewrite::origin(frame.rip))
    );
}

/// Lets other threads run now and then.
fn turn() {
    let mut unknown = UNKNOWN.borrow_mut();
    unknown.calls += 1;
    if unknown.calls >= CALLS_PER_TURN {
        unknown.calls = 0;
        drop(unknown);
        sched::yield_now();
    }
}

/// A new thread's first steps, before its registers are loaded.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn handle_thread_start(frame: &mut TrapFrame) {
    sched::started();
    let set_tid = sched::with_current(|t| core::mem::take(&mut t.set_tid));
    if set_tid != 0 {
        // Where that cannot be written the program finds out, as on Linux.
        let _ = user::write(set_tid, sched::current());
    }
    if signal::deliverable() {
        signal::deliver_pending(frame, false);
    }
}

fn arguments(frame: &TrapFrame) -> [u64; 6] {
    [
        frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9,
    ]
}

fn dispatch(number: u64, frame: &mut TrapFrame, a: [u64; 6], caller: u64) -> SysResult {
    // The calls of a server's inner loop first.
    if let Some(result) = fs::dispatch(number, a) {
        return result;
    }
    if let Some(result) = net::dispatch(number, a) {
        return result;
    }
    match number {
        nr::MMAP => mm::sys::mmap(
            a[0],
            a[1],
            a[2],
            a[3],
            a[4] as i32,
            a[5],
            rewrite::origin(caller),
        ),
        nr::MPROTECT => mm::sys::mprotect(a[0], a[1], a[2]),
        nr::MUNMAP => mm::sys::munmap(a[0], a[1]),
        nr::BRK => {
            let mut space = mm::space();
            let result = space.set_brk(a[0]);
            space.finish();
            Ok(result)
        }
        13 => signal::sigaction(a[0], a[1], a[2], a[3]),
        14 => signal::sigprocmask(a[0], a[1], a[2], a[3]),
        24 => {
            sched::yield_now();
            Ok(0)
        }
        nr::MREMAP => mm::sys::mremap(a[0], a[1], a[2], a[3], a[4]),
        26 => mm::sys::msync(a[0], a[1], a[2]),
        28 => mm::sys::madvise(a[0], a[1], a[2]),
        149 | 325 => mm::sys::mlock(a[0], a[1]),
        // munlock, mlockall, munlockall: memory is never paged out.
        150..=152 => Ok(0),
        34 => pause(),
        35 => clock::nanosleep(a[0], a[1]),
        36 => clock::getitimer(a[0], a[1]),
        37 => clock::alarm(a[0]),
        38 => clock::setitimer(a[0], a[1], a[2]),
        96 => clock::gettimeofday(a[0], a[1]),
        98 => clock::getrusage(a[0] as i32, a[1]),
        100 => clock::times(a[0]),
        201 => clock::time(a[0]),
        228 => clock::clock_gettime(a[0] as i32, a[1]),
        229 => clock::clock_getres(a[0] as i32, a[1]),
        230 => clock::clock_nanosleep(a[0] as i32, a[1], a[2], a[3]),
        127 => signal::sigpending(a[0]),
        128 => signal::sigtimedwait(a[0], a[1], a[2], a[3]),
        129 => signal::sigqueueinfo(a[0] as i32, None, a[1], a[2]),
        297 => signal::sigqueueinfo(a[0] as i32, Some(a[1] as i32), a[2], a[3]),
        130 => signal::sigsuspend(a[0], a[1]),
        131 => signal::sigaltstack(frame, a[0], a[1]),
        62 => signal::kill(a[0] as i32, a[1]),
        200 => signal::tgkill(None, a[0] as i32, a[1]),
        234 => signal::tgkill(Some(a[0] as i32), a[1] as i32, a[2]),
        202 => futex::futex(a[0], a[1], a[2] as u32, a[3], a[4], a[5] as u32),
        nr::CLONE => clone::clone(frame, a),
        nr::CLONE3 => clone::clone3(frame, a[0], a[1]),
        nr::FORK => clone::fork(frame),
        nr::VFORK => clone::vfork(frame),
        nr::EXECVE => exec::call::execve(frame, a[0], a[1], a[2]),
        nr::EXECVEAT => exec::call::execveat(frame, a[0] as i32, a[1], a[2], a[3], a[4]),
        nr::EXIT => process::exit(a[0]),
        nr::EXIT_GROUP => process::exit_group(a[0]),
        61 => wait::wait4(a[0] as i32, a[1], a[2] as u32, a[3]),
        247 => wait::waitid(a[0] as u32, a[1] as u32, a[2], a[3] as u32, a[4]),
        158 => process::arch_prctl(a[0], a[1]),
        157 => process::prctl(a),
        218 => process::set_tid_address(a[0]),
        273 => process::set_robust_list(a[0], a[1]),
        274 => process::get_robust_list(a[0], a[1], a[2]),
        324 => process::membarrier(a[0]),
        334 => process::rseq(a[0], a[1], a[2], a[3] as u32),
        _ => match ident::dispatch(number, a) {
            Some(result) => result,
            None => unknown(number),
        },
    }
}

/// A call that is not implemented: counted, and named on the console the first time.
fn unknown(number: u64) -> SysResult {
    let mut state = UNKNOWN.borrow_mut();
    let first = match usize::try_from(number)
        .ok()
        .and_then(|n| state.counts.get_mut(n))
    {
        Some(count) => {
            *count = count.saturating_add(1);
            *count == 1
        }
        // A number that was never assigned.
        None => state.others.len() < OTHERS_MAX && state.others.insert(number),
    };
    drop(state);
    if first {
        klog!(
            "system call {} ({number}) is not implemented: ENOSYS",
            names::name(number)
        );
    }
    Err(ENOSYS)
}

/// How often calls that are not implemented were made: (number, count), ascending.
pub fn unknown_counts() -> alloc::vec::Vec<(u64, u32)> {
    let state = UNKNOWN.borrow();
    let counts = state.counts.iter().enumerate();
    counts
        .filter(|(_, c)| **c > 0)
        .map(|(n, c)| (n as u64, *c))
        .collect()
}

fn pause() -> SysResult {
    while !signal::deliverable() {
        sched::block(None);
    }
    Err(EINTR)
}
