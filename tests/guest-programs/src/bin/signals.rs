//! Handlers, masks, waits, faults, timers, and the registers that a handler must not disturb. With an argument the program ends by what
//! it names.

use guest_programs::plain::{
    alarm, close, default_action, epoll_create1, getpid, gettid, getuid, ignore, kill, pause,
    pipe_ends, raise, read_bytes, write_bytes,
};
use guest_programs::probe::*;
use guest_programs::*;
use libc::*;
use std::mem::zeroed;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

/// What handlers saw: signal, code, value, sender, thread.
static LOG: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
static LOGGED: AtomicUsize = AtomicUsize::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static PID: AtomicI32 = AtomicI32::new(0);
static UID: AtomicI32 = AtomicI32::new(0);
static VALUE: AtomicU64 = AtomicU64::new(0);
static TID: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static MASK: AtomicU64 = AtomicU64::new(0);
static PIPE: AtomicI32 = AtomicI32::new(-1);

fn log(entry: u64) {
    LOG[LOGGED.fetch_add(1, SeqCst) % LOG.len()].store(entry, SeqCst);
}

fn logged() -> Vec<u64> {
    let n = LOGGED.swap(0, SeqCst);
    LOG[..n.min(LOG.len())]
        .iter()
        .map(|entry| entry.load(SeqCst))
        .collect()
}

fn mask_now() -> u64 {
    let mut set = 0u64;
    // SAFETY: `set` has the eight bytes that the call is told of.
    unsafe { syscall(SYS_rt_sigprocmask, SIG_BLOCK, 0, &mut set, 8) };
    set
}

fn bits(signals: &[i32]) -> u64 {
    signals.iter().map(|s| 1u64 << (s - 1)).sum()
}

fn set_mask(set: u64) {
    // SAFETY: `set` has the eight bytes that the call is told of.
    unsafe { syscall(SYS_rt_sigprocmask, SIG_SETMASK, &set, 0, 8) };
}

extern "C" fn note(signal: i32, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel hands a handler a complete `siginfo_t`.
    unsafe {
        CODE.store((*info).si_code, SeqCst);
        PID.store((*info).si_pid(), SeqCst);
        UID.store((*info).si_uid() as i32, SeqCst);
        VALUE.store((*info).si_value().sival_ptr as u64, SeqCst);
    }
    TID.store(gettid(), SeqCst);
    let local = 0u8;
    ADDRESS.store(&raw const local as u64, SeqCst);
    MASK.store(mask_now(), SeqCst);
    log(signal as u64);
}

extern "C" fn note_value(signal: i32, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel hands a handler a complete `siginfo_t`.
    log(signal as u64 * 1000 + unsafe { (*info).si_value().sival_ptr as u64 });
}

extern "C" fn nested(signal: i32, _info: *mut siginfo_t, _context: *mut c_void) {
    log(signal as u64);
    if signal == SIGUSR1 {
        raise(SIGUSR2);
    }
    log(signal as u64 + 100);
}

extern "C" fn write_to_pipe(signal: i32, _info: *mut siginfo_t, _context: *mut c_void) {
    log(signal as u64);
    write_bytes(PIPE.load(SeqCst), b"h");
}

type Handler = extern "C" fn(i32, *mut siginfo_t, *mut c_void);

fn handle(signal: i32, handler: Handler, flags: i32, mask: &[i32]) {
    // SAFETY: handlers touch atomics and make calls that may be made in one; `action` is a local.
    unsafe {
        let mut action: sigaction = zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags | SA_SIGINFO;
        for signal in mask {
            sigaddset(&mut action.sa_mask, *signal);
        }
        sigaction(signal, &action, null_mut());
    }
}

fn after_ms(first: i64, interval: i64) {
    let time = |ms: i64| timeval {
        tv_sec: ms / 1000,
        tv_usec: ms % 1000 * 1000,
    };
    let timer = itimerval {
        it_interval: time(interval),
        it_value: time(first),
    };
    // SAFETY: the timer outlives the call.
    unsafe { syscall(SYS_setitimer, ITIMER_REAL, &timer, 0) };
}

fn handlers() {
    // SAFETY: the values are numbers in the shape of pointers, which nobody follows.
    check("siginfo of raise, kill and sigqueue", || unsafe {
        handle(SIGUSR1, note, 0, &[]);
        raise(SIGUSR1);
        same!(
            (
                logged().len(),
                CODE.load(SeqCst),
                PID.load(SeqCst),
                UID.load(SeqCst)
            ),
            (1, -6, getpid(), getuid() as i32)
        );
        kill(getpid(), SIGUSR1);
        same!(
            (logged().len(), CODE.load(SeqCst), PID.load(SeqCst)),
            (1, 0, getpid())
        );
        let value = sigval {
            sival_ptr: 0x1234_5678 as *mut c_void,
        };
        same!(sys(sigqueue(getpid(), SIGUSR1, value)), Ok(0));
        same!(
            (
                logged().len(),
                CODE.load(SeqCst),
                PID.load(SeqCst),
                VALUE.load(SeqCst)
            ),
            (1, -1, getpid(), 0x1234_5678)
        );
        same!(sys(kill(getpid(), 0)), Ok(0));
        same!(sys(kill(getpid(), 65)), Err(EINVAL));
        same!(
            sys(syscall(SYS_tgkill, getpid(), 4_000_000, SIGUSR1)),
            Err(ESRCH)
        );
        same!(logged().len(), 0);
        Ok(())
    });
    check("the handler's mask", || {
        handle(SIGUSR1, note, 0, &[SIGUSR2, SIGTERM]);
        let before = mask_now();
        raise(SIGUSR1);
        same!(
            MASK.load(SeqCst),
            before | bits(&[SIGUSR1, SIGUSR2, SIGTERM])
        );
        same!(mask_now(), before);
        handle(SIGUSR1, note, SA_NODEFER, &[]);
        raise(SIGUSR1);
        same!(MASK.load(SeqCst), before);
        logged();
        Ok(())
    });
    check("nested handlers", || {
        handle(SIGUSR1, nested, 0, &[]);
        handle(SIGUSR2, nested, 0, &[]);
        raise(SIGUSR1);
        same!(logged(), [10, 12, 112, 110]);
        handle(SIGUSR1, nested, 0, &[SIGUSR2]);
        raise(SIGUSR1);
        same!(logged(), [10, 110, 12, 112]);
        Ok(())
    });
    check("blocked signals wait", || {
        handle(SIGUSR1, note, 0, &[]);
        handle(SIGUSR2, note, 0, &[]);
        set_mask(bits(&[SIGUSR1, SIGUSR2]));
        // SAFETY: every pointer is to a local that outlives the call.
        unsafe {
            raise(SIGUSR2);
            raise(SIGUSR1);
            raise(SIGUSR1);
            kill(getpid(), SIGUSR2);
            let mut pending: sigset_t = zeroed();
            sigpending(&mut pending);
            same!(
                (
                    sigismember(&pending, SIGUSR1),
                    sigismember(&pending, SIGUSR2),
                    sigismember(&pending, SIGTERM)
                ),
                (1, 1, 0)
            );
        }
        same!(logged(), []);
        set_mask(bits(&[SIGUSR2]));
        same!(logged(), [SIGUSR1 as u64]);
        set_mask(0);
        // One for the thread, one for the process.
        same!(logged(), [SIGUSR2 as u64, SIGUSR2 as u64]);
        set_mask(u64::MAX);
        same!(mask_now() & bits(&[SIGKILL, SIGSTOP]), 0);
        set_mask(0);
        Ok(())
    });
    // SAFETY: the values are numbers in the shape of pointers, which nobody follows.
    check("real-time signals queue", || unsafe {
        let rt = SIGRTMIN();
        handle(rt, note_value, 0, &[]);
        handle(rt + 1, note_value, 0, &[rt]);
        set_mask(bits(&[rt, rt + 1]));
        for i in 1..=3 {
            sigqueue(
                getpid(),
                rt + 1,
                sigval {
                    sival_ptr: (10 + i) as *mut c_void,
                },
            );
            sigqueue(
                getpid(),
                rt,
                sigval {
                    sival_ptr: i as *mut c_void,
                },
            );
        }
        let base = rt as u64 * 1000;
        set_mask(bits(&[rt + 1]));
        // Frames are stacked, each with its own signal blocked: they run in order.
        same!(logged(), [base + 1, base + 2, base + 3]);
        set_mask(0);
        same!(logged(), [base + 1011, base + 1012, base + 1013]);
        Ok(())
    });
    // SAFETY: every pointer is to a local, or null, that is, not asked for.
    check("SA_RESETHAND, SIG_IGN", || unsafe {
        handle(SIGUSR1, note, SA_RESETHAND, &[]);
        raise(SIGUSR1);
        same!(logged().len(), 1);
        let mut old: sigaction = zeroed();
        sigaction(SIGUSR1, null(), &mut old);
        same!(old.sa_sigaction, SIG_DFL);
        ignore(SIGUSR1);
        raise(SIGUSR1);
        set_mask(bits(&[SIGUSR1]));
        raise(SIGUSR1);
        handle(SIGUSR1, note, 0, &[]);
        set_mask(0);
        logged();
        for signal in [SIGCHLD, SIGURG, SIGWINCH, SIGCONT] {
            default_action(signal);
            raise(signal);
        }
        same!(
            sys(syscall(SYS_rt_sigaction, SIGKILL, &old, 0, 8)),
            Err(EINVAL)
        );
        same!(sys(syscall(SYS_rt_sigaction, 0, 0, 0, 8)), Err(EINVAL));
        Ok(())
    });
    // SAFETY: the memory of the alternative stack outlives its use: the old one is set again at the
    // end.
    check("sigaltstack", || unsafe {
        let mut memory = vec![0u8; 65536];
        let range = memory.as_ptr() as u64..memory.as_ptr() as u64 + 65536;
        let stack = stack_t {
            ss_sp: memory.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: 65536,
        };
        let mut old: stack_t = zeroed();
        same!(sys(sigaltstack(&stack, &mut old)), Ok(0));
        let mut now: stack_t = zeroed();
        sigaltstack(null(), &mut now);
        same!(
            (now.ss_sp, now.ss_size, now.ss_flags),
            (stack.ss_sp, 65536, 0)
        );
        handle(SIGUSR1, note, 0, &[]);
        raise(SIGUSR1);
        holds!(!range.contains(&ADDRESS.load(SeqCst)));
        handle(SIGUSR1, note, SA_ONSTACK, &[]);
        raise(SIGUSR1);
        holds!(range.contains(&ADDRESS.load(SeqCst)));
        logged();
        let small = stack_t {
            ss_sp: memory.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: 100,
        };
        same!(sys(sigaltstack(&small, null_mut())), Err(ENOMEM));
        same!(sys(sigaltstack(&old, null_mut())), Ok(0));
        Ok(())
    });
}

/// Sends signals until the thread has ended: one that came before it waited would not end the wait.
fn until_ended<T>(worker: &std::thread::JoinHandle<T>, send: impl Fn()) {
    while !worker.is_finished() {
        send();
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn waits() {
    check(
        "a read is interrupted, or made again with SA_RESTART",
        // SAFETY: every pointer is to a local that outlives the call.
        || unsafe {
            let ends = pipe_ends()?;
            PIPE.store(ends[1], SeqCst);
            let mut byte = [0u8; 1];
            // The timer goes on: a signal that comes before the wait has begun does no harm.
            handle(SIGALRM, note, 0, &[]);
            after_ms(20, 20);
            same!(sys(read_bytes(ends[0], &mut byte)), Err(EINTR));
            after_ms(0, 0);
            handle(SIGALRM, write_to_pipe, SA_RESTART, &[]);
            after_ms(20, 0);
            same!(sys(read_bytes(ends[0], &mut byte)), Ok(1));
            same!(byte, *b"h");
            logged();
            // These are never made again.
            for flags in [0, SA_RESTART] {
                handle(SIGALRM, note, flags, &[]);
                after_ms(20, 20);
                let mut poll_for = pollfd {
                    fd: ends[0],
                    events: POLLIN,
                    revents: 0,
                };
                same!(sys(poll(&mut poll_for, 1, 5000)), Err(EINTR));
                let (request, mut left) = (
                    timespec {
                        tv_sec: 5,
                        tv_nsec: 0,
                    },
                    zeroed::<timespec>(),
                );
                same!(sys(nanosleep(&request, &mut left)), Err(EINTR));
                holds!(left.tv_sec == 4, "{} s left", left.tv_sec);
                let epoll = epoll_create1(0);
                let mut event: epoll_event = zeroed();
                same!(sys(epoll_wait(epoll, &mut event, 1, 5000)), Err(EINTR));
                close(epoll);
                same!(sys(pause()), Err(EINTR));
                after_ms(0, 0);
            }
            logged();
            close(ends[0]);
            close(ends[1]);
            Ok(())
        },
    );
    // SAFETY: the request outlives the call.
    check("an ignored signal does not end a wait", || unsafe {
        ignore(SIGALRM);
        after_ms(10, 0);
        let request = timespec {
            tv_sec: 0,
            tv_nsec: 50_000_000,
        };
        same!(sys(nanosleep(&request, null_mut())), Ok(0));
        Ok(())
    });
    // SAFETY: `now` takes a result.
    check("setitimer, getitimer, alarm", || unsafe {
        handle(SIGALRM, note, SA_RESTART, &[]);
        after_ms(10, 10);
        while LOGGED.load(SeqCst) < 5 {
            pause();
        }
        let mut now: itimerval = zeroed();
        syscall(SYS_getitimer, ITIMER_REAL, &mut now);
        same!(now.it_interval.tv_usec, 10_000);
        holds!(now.it_value.tv_usec <= 10_000 && now.it_value.tv_sec == 0);
        after_ms(0, 0);
        logged();
        same!(alarm(100), 0);
        holds!((99..=100).contains(&alarm(1)));
        pause();
        same!(logged(), [SIGALRM as u64]);
        same!(alarm(0), 0);
        Ok(())
    });
    // SAFETY: the set outlives the calls.
    check("sigsuspend and ppoll swap the mask", || unsafe {
        handle(SIGUSR1, note, 0, &[]);
        set_mask(bits(&[SIGUSR1]));
        raise(SIGUSR1);
        same!(logged().len(), 0);
        let empty: sigset_t = zeroed();
        same!(sys(sigsuspend(&empty)), Err(EINTR));
        same!(logged().len(), 1);
        same!(mask_now(), bits(&[SIGUSR1]));
        raise(SIGUSR1);
        same!(sys(ppoll(null_mut(), 0, null(), &empty)), Err(EINTR));
        same!((logged().len(), mask_now()), (1, bits(&[SIGUSR1])));
        set_mask(0);
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives the call.
    check("sigwait and sigtimedwait", || unsafe {
        let mut set: sigset_t = zeroed();
        sigaddset(&mut set, SIGUSR1);
        sigaddset(&mut set, SIGALRM);
        sigprocmask(SIG_BLOCK, &set, null_mut());
        sigqueue(
            getpid(),
            SIGUSR1,
            sigval {
                sival_ptr: 99 as *mut c_void,
            },
        );
        let mut info: siginfo_t = zeroed();
        let brief = timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        same!(
            sys(sigtimedwait(&set, &mut info, &brief)),
            Ok(SIGUSR1 as i64)
        );
        same!(
            (
                info.si_signo,
                info.si_code,
                info.si_pid(),
                info.si_value().sival_ptr as u64
            ),
            (SIGUSR1, -1, getpid(), 99)
        );
        same!(sys(sigtimedwait(&set, &mut info, &brief)), Err(EAGAIN));
        kill(getpid(), SIGUSR1);
        same!(sys(sigwaitinfo(&set, &mut info)), Ok(SIGUSR1 as i64));
        same!((info.si_code, info.si_pid()), (0, getpid()));
        after_ms(10, 0);
        let mut signal = 0;
        same!(sigwait(&set, &mut signal), 0);
        same!(signal, SIGALRM);
        sigprocmask(SIG_UNBLOCK, &set, null_mut());
        same!(logged(), []);
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives the call.
    check("signalfd", || unsafe {
        let mut set: sigset_t = zeroed();
        sigaddset(&mut set, SIGUSR2);
        sigprocmask(SIG_BLOCK, &set, null_mut());
        let fd = signalfd(-1, &set, SFD_NONBLOCK);
        if fd < 0 && errno() == ENOSYS {
            // Not one of the calls that the guest promises; it must say so, and does.
            sigprocmask(SIG_UNBLOCK, &set, null_mut());
            return Ok(());
        }
        let mut info: signalfd_siginfo = zeroed();
        same!(sys(read(fd, (&raw mut info).cast(), 128)), Err(EAGAIN));
        raise(SIGUSR2);
        same!(sys(read(fd, (&raw mut info).cast(), 128)), Ok(128));
        same!(info.ssi_signo, SIGUSR2 as u32);
        close(fd);
        sigprocmask(SIG_UNBLOCK, &set, null_mut());
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives the call.
    check("SIGPIPE", || unsafe {
        handle(SIGPIPE, note, 0, &[]);
        let ends = pipe_ends()?;
        close(ends[0]);
        same!(sys(write_bytes(ends[1], b"x")), Err(EPIPE));
        same!(logged(), [SIGPIPE as u64]);
        close(ends[1]);
        let mut ends = ends;
        must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.as_mut_ptr()))?;
        close(ends[0]);
        same!(
            sys(send(ends[1], b"x".as_ptr().cast(), 1, MSG_NOSIGNAL)),
            Err(EPIPE)
        );
        same!(logged(), []);
        same!(sys(send(ends[1], b"x".as_ptr().cast(), 1, 0)), Err(EPIPE));
        same!(logged(), [SIGPIPE as u64]);
        close(ends[1]);
        ignore(SIGPIPE);
        Ok(())
    });
    check("a signal for one thread", || {
        handle(SIGUSR1, note, 0, &[]);
        let (send, receive) = std::sync::mpsc::channel();
        // SAFETY: the request outlives the call.
        let worker = std::thread::spawn(move || unsafe {
            let _ = send.send((pthread_self() as u64, gettid()));
            let request = timespec {
                tv_sec: 20,
                tv_nsec: 0,
            };
            sys(nanosleep(&request, null_mut()))
        });
        let (thread, tid) = receive.recv().map_err(|e| e.to_string())?;
        // SAFETY: the thread has not ended: its handle is not joined yet.
        until_ended(&worker, || unsafe {
            pthread_kill(thread as pthread_t, SIGUSR1);
        });
        same!(worker.join().map_err(|_| "panicked")?, Err(EINTR));
        same!((logged().is_empty(), TID.load(SeqCst)), (false, tid));
        Ok(())
    });
    check(
        "a signal for the process goes to a thread that takes it",
        || {
            handle(SIGUSR1, note, 0, &[]);
            let (send, receive) = std::sync::mpsc::channel();
            // SAFETY: the request outlives the call.
            let worker = std::thread::spawn(move || unsafe {
                let _ = send.send(gettid());
                let request = timespec {
                    tv_sec: 20,
                    tv_nsec: 0,
                };
                sys(nanosleep(&request, null_mut()))
            });
            let tid = receive.recv().map_err(|e| e.to_string())?;
            set_mask(bits(&[SIGUSR1]));
            until_ended(&worker, || {
                kill(getpid(), SIGUSR1);
            });
            same!(worker.join().map_err(|_| "panicked")?, Err(EINTR));
            same!((logged().is_empty(), TID.load(SeqCst)), (false, tid));
            // One may have come too late for it.
            ignore(SIGUSR1);
            set_mask(0);
            Ok(())
        },
    );
}

fn faults() {
    check("division by zero", || {
        let fault = probe(op_divide, 0, 0).err().ok_or("no fault")?;
        same!((fault.signal, fault.code, fault.trapno), (SIGFPE, 1, 0));
        same!(fault.addr, fault.rip);
        Ok(())
    });
    check("undefined instruction", || {
        let fault = probe(op_ud2, 0, 0).err().ok_or("no fault")?;
        same!((fault.signal, fault.code, fault.trapno), (SIGILL, 2, 6));
        same!(
            (fault.addr, fault.rip),
            (fault.rip, op_ud2 as *const () as u64)
        );
        Ok(())
    });
    check("breakpoint", || {
        let fault = probe(op_int3, 0, 0).err().ok_or("no fault")?;
        same!((fault.signal, fault.code, fault.trapno), (SIGTRAP, 0x80, 3));
        same!(fault.rip, op_int3 as *const () as u64 + 1);
        Ok(())
    });
    check("privileged instruction", || {
        let fault = probe(op_hlt, 0, 0).err().ok_or("no fault")?;
        same!(
            (fault.signal, fault.code, fault.addr, fault.trapno),
            (SIGSEGV, 0x80, 0, 13)
        );
        Ok(())
    });
    check("floating-point exceptions", || {
        let fault = probe(op_sse_divide, 0, 0).err().ok_or("no fault")?;
        same!((fault.signal, fault.code, fault.trapno), (SIGFPE, 3, 19));
        same!(fault.addr, fault.rip);
        let fault = probe(op_x87_divide, 0, 0).err().ok_or("no fault")?;
        same!((fault.signal, fault.code, fault.trapno), (SIGFPE, 3, 16));
        // SAFETY: puts the floating-point state back to what programs start with.
        unsafe { std::arch::asm!("fninit", "ldmxcsr [{}]", in(reg) &0x1f80u32) };
        Ok(())
    });
}

/// Spoils everything that a handler may spoil.
extern "C" fn spoil(signal: i32, _info: *mut siginfo_t, _context: *mut c_void) {
    log(signal as u64);
    // SAFETY: handlers may spoil these registers: that the kernel restores them is the check.
    unsafe {
        std::arch::asm!(
            "pcmpeqd xmm0, xmm0", "movaps xmm1, xmm0", "movaps xmm2, xmm0", "movaps xmm3, xmm0", "movaps xmm4, xmm0",
            "movaps xmm5, xmm0", "movaps xmm6, xmm0", "movaps xmm7, xmm0", "movaps xmm8, xmm0", "movaps xmm9, xmm0",
            "movaps xmm10, xmm0", "movaps xmm11, xmm0", "movaps xmm12, xmm0", "movaps xmm13, xmm0", "movaps xmm14, xmm0",
            "movaps xmm15, xmm0", "fninit", "fldz", "fldz", "ldmxcsr [{0}]",
            in(reg) &0x7f80u32,
        );
    }
}

extern "C" fn change_registers(_signal: i32, _info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a handler the registers of what it interrupted, to be changed at
    // will.
    unsafe {
        let registers = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
        registers[REG_RBX as usize] = 0x1111;
        registers[REG_R15 as usize] = 0x2222;
        registers[REG_EFL as usize] |= 1;
        // The undefined instruction is skipped.
        registers[REG_RIP as usize] += 2;
    }
}

fn registers() {
    check("registers survive a handler", || {
        handle(SIGUSR1, spoil, 0, &[]);
        let pid = getpid();
        // Results at 0 (XMM), 40 (x87), 48 (MXCSR); the MXCSR values to load at 56 and 60.
        let mut block = [0u64; 8];
        block[7] = 0x3f80 | 0x1f80 << 32;
        let mut general = [0u64; 5];
        // SAFETY: the block has room for what is written at its offsets; every register that is
        // changed is named.
        unsafe {
            std::arch::asm!(
                "ldmxcsr [{block} + 56]",
                "fld1",
                "mov rax, 0x0123456789abcdef",
                "movq xmm0, rax", "movq xmm3, rax", "movq xmm7, rax", "movq xmm8, rax", "movq xmm15, rax",
                "mov r8, 88", "mov r9, 99", "mov r10, 1010", "mov r12, 1212", "mov r15, 1515",
                "mov eax, 62", // kill
                "syscall",
                "movq [{block}], xmm0", "movq [{block} + 8], xmm3", "movq [{block} + 16], xmm7", "movq [{block} + 24], xmm8",
                "movq [{block} + 32], xmm15",
                "fstp qword ptr [{block} + 40]",
                "stmxcsr [{block} + 48]",
                "ldmxcsr [{block} + 60]",
                block = in(reg) &mut block,
                in("rdi") pid, in("rsi") SIGUSR1,
                out("rax") _, out("rcx") _, out("r11") _,
                out("r8") general[0], out("r9") general[1], out("r10") general[2], out("r12") general[3], out("r15") general[4],
                out("xmm0") _, out("xmm3") _, out("xmm7") _, out("xmm8") _, out("xmm15") _,
            );
        }
        let (xmm, st, mxcsr) = (&block[..5], f64::from_bits(block[5]), block[6] as u32);
        same!(logged(), [SIGUSR1 as u64]);
        same!(xmm, [0x0123_4567_89ab_cdef; 5]);
        same!((st, mxcsr & 0xffc0), (1.0, 0x3f80));
        same!(general, [88, 99, 1010, 1212, 1515]);
        Ok(())
    });
    check("a handler can change the registers", || {
        handle(SIGILL, change_registers, 0, &[]);
        let (mut rbx, mut r15, mut carry) = (7u64, 0u64, 0u8);
        // SAFETY: the handler skips the undefined instruction; every register that is changed is
        // named.
        unsafe {
            std::arch::asm!(
                "xchg rbx, rsi", "clc", "ud2", "setc cl", "xchg rbx, rsi",
                inout("rsi") rbx, out("cl") carry, out("r15") r15,
            );
        }
        default_action(SIGILL);
        same!((rbx, r15, carry), (0x1111, 0x2222, 1));
        Ok(())
    });
    check("floating-point state is each thread's own", || {
        let workers: Vec<_> = (0..8u32)
            .map(|i| {
                std::thread::spawn(move || {
                    let rounding = 0x1f80 | (i % 4) << 13;
                    let (mut bad, mut value) = (0, 0u64);
                    // SAFETY: only the rounding mode is changed, and set back below.
                    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &rounding) };
                    for round in 0..200u64 {
                        let mark = u64::from(i) << 32 | round;
                        let mut mxcsr = 0u32;
                        // SAFETY: `mxcsr` takes a result; every register that is changed is named.
                        unsafe {
                            std::arch::asm!(
                                "movq xmm6, {mark}", "movq xmm12, {mark}", "mov eax, 24", "syscall", // sched_yield
                                "movq {a}, xmm6", "movq {b}, xmm12", "stmxcsr [{mxcsr}]",
                                mark = in(reg) mark, a = out(reg) value, b = lateout(reg) _, mxcsr = in(reg) &mut mxcsr,
                                out("rax") _, out("rcx") _, out("r11") _, out("xmm6") _, out("xmm12") _,
                            );
                        }
                        bad += u32::from(value != mark || mxcsr & 0xffc0 != rounding);
                    }
                    // SAFETY: sets the rounding mode back.
                    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &0x1f80u32) };
                    bad
                })
            })
            .collect();
        for worker in workers {
            same!(worker.join().map_err(|_| "panicked")?, 0);
        }
        Ok(())
    });
}

fn main() {
    // SAFETY: wild stores are to end the program: that is what these words ask for; other pointers
    // are to locals.
    unsafe {
        match std::env::args().nth(1).as_deref() {
            Some("abort") => libc::abort(),
            Some("term") => {
                default_action(SIGTERM);
                kill(getpid(), SIGTERM);
            }
            Some("segv") => {
                default_action(SIGSEGV);
                op_store(0x10, 1);
            }
            Some("blocked-segv") => {
                handle(SIGSEGV, note, 0, &[]);
                set_mask(bits(&[SIGSEGV]));
                op_store(0x10, 1);
            }
            Some("pipe") => {
                default_action(SIGPIPE);
                let mut ends = [0i32; 2];
                pipe(ends.as_mut_ptr());
                close(ends[0]);
                write_bytes(ends[1], b"x");
            }
            Some("alarm") => {
                alarm(1);
                loop {
                    pause();
                }
            }
            Some("status") => std::process::exit(300 + 7),
            Some(other) => {
                println!("unknown: {other}");
                std::process::exit(99);
            }
            None => {}
        }
    }
    handlers();
    waits();
    faults();
    registers();
    finish();
}
