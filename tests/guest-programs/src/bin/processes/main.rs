//! Processes: fork, wait, exec, pipes, signals, groups, and what parent and child have in common. `processes first …` is for the first
//! process of a set.

mod exec;
mod kin;
mod share;

use guest_programs::plain::{
    _exit, alarm, close, default_action, dup2, epoll_create1, eventfd, fcntl_number, ftruncate,
    getpgid, getpgrp, getpid, getppid, getpriority, getsid, getuid, ignore, kill, pause, pipe_ends,
    read_bytes, sched_yield, setpgid, setpriority, setsid, umask, usleep, write_bytes,
};
use guest_programs::*;
use libc::*;
use std::ptr::null_mut;

/// Runs `body` in a child, whose status it gives.
pub fn child(body: impl FnOnce() -> i32) -> Result<pid_t, String> {
    // SAFETY: the program has one thread here, or the child uses nothing that another thread may
    // hold.
    match must(unsafe { fork() })? {
        0 => {
            let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            _exit(status.unwrap_or(99))
        }
        pid => Ok(pid as pid_t),
    }
}

/// Runs `body` in a child; its outcome is the check's: status 0 is fine.
pub fn in_child(body: impl FnOnce() -> Outcome) -> Outcome {
    let (read_end, write_end) = pipe_pair()?;
    let pid = child(|| match body() {
        Ok(()) => 0,
        Err(why) => {
            write_bytes(write_end, why.as_bytes());
            1
        }
    })?;
    close(write_end);
    let said = read_all(read_end)?;
    match status_of(pid)? {
        0 => Ok(()),
        status => Err(format!(
            "in the child, status {status:#x}: {}",
            String::from_utf8_lossy(&said)
        )),
    }
}

/// Waits for one child.
pub fn status_of(pid: pid_t) -> Result<i32, String> {
    let mut status = -1;
    // SAFETY: `status` takes the result.
    let got = must(unsafe { waitpid(pid, &mut status, 0) })?;
    same!(got as pid_t, pid);
    Ok(status)
}

/// Waits until a child has ended, and leaves it.
pub fn until_dead(pid: pid_t) -> Result<siginfo_t, String> {
    // SAFETY: `info` is of numbers, and takes the result.
    unsafe {
        let mut info: siginfo_t = std::mem::zeroed();
        must(waitid(P_PID, pid as u32, &mut info, WEXITED | WNOWAIT))?;
        Ok(info)
    }
}

/// (end for reading, end for writing)
pub fn pipe_pair() -> Result<(i32, i32), String> {
    pipe_ends().map(|[read_end, write_end]| (read_end, write_end))
}

/// Everything up to the end of file; closes the descriptor.
pub fn read_all(fd: i32) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        let n = must(read_bytes(fd, &mut buffer))?;
        if n == 0 {
            close(fd);
            return Ok(all);
        }
        all.extend_from_slice(&buffer[..n as usize]);
    }
}

/// Waits for one byte.
pub fn await_byte(fd: i32) -> Outcome {
    same!(must(read_bytes(fd, &mut [0u8]))?, 1);
    Ok(())
}

/// Writes one byte.
pub fn give_byte(fd: i32) {
    write_bytes(fd, b"x");
}

/// Memory that children share.
pub fn shared_words() -> Result<&'static [std::sync::atomic::AtomicU32; 1024], String> {
    // SAFETY: the kernel chooses where; the page is never unmapped, and atomics may be shared.
    unsafe {
        let at = mmap(
            null_mut(),
            4096,
            PROT_READ | PROT_WRITE,
            MAP_SHARED | MAP_ANONYMOUS,
            -1,
            0,
        );
        if at == MAP_FAILED {
            return Err("no shared memory".into());
        }
        Ok(&*at.cast())
    }
}

fn endings() {
    check("exit statuses", || {
        for status in [0, 1, 7, 255, 256, -1] {
            let pid = child(|| status)?;
            same!(status_of(pid)?, (status & 0xff) << 8);
        }
        Ok(())
    });
    check("ended by signals", || {
        for signal in [SIGKILL, SIGTERM, SIGHUP, SIGUSR1, SIGALRM, 40] {
            let pid = child(|| {
                kill(getpid(), signal);
                3
            })?;
            same!(status_of(pid)? & 0xff, signal);
        }
        let pid = child(|| {
            loop {
                pause();
            }
        })?;
        must(kill(pid, SIGKILL))?;
        same!(status_of(pid)?, SIGKILL);
        Ok(())
    });
    check("ended by faults", || {
        // SAFETY: reads page 0, which is not mapped: that it faults is the check, in a child of its
        // own.
        let pid = child(|| unsafe { *std::hint::black_box(8 as *const i32) })?;
        same!(status_of(pid)? & 0x7f, SIGSEGV);
        // SAFETY: faults, which is the check, in a child of its own.
        let pid = child(|| unsafe {
            std::arch::asm!("ud2");
            0
        })?;
        same!(status_of(pid)? & 0x7f, SIGILL);
        let pid = child(|| {
            // SAFETY: ends the child.
            unsafe { abort() };
        })?;
        same!(status_of(pid)? & 0x7f, SIGABRT);
        Ok(())
    });
    check("waiting: none, not yet, later, again", || {
        let mut status = 0;
        // SAFETY: `status` takes each result.
        unsafe {
            same!(sys(waitpid(-1, &mut status, 0)), Err(ECHILD));
            same!(sys(waitpid(1 << 22, &mut status, 0)), Err(ECHILD));
            let (read_end, write_end) = pipe_pair()?;
            let pid = child(|| {
                let _ = await_byte(read_end);
                4
            })?;
            same!(must(waitpid(-1, &mut status, WNOHANG))?, 0);
            same!(sys(waitpid(pid + 1000, &mut status, WNOHANG)), Err(ECHILD));
            same!(sys(waitpid(pid, &mut status, 0x100)), Err(EINVAL));
            give_byte(write_end);
            same!(
                must(waitpid(pid, &mut status, WUNTRACED | WCONTINUED))?,
                i64::from(pid)
            );
            same!(status, 4 << 8);
            same!(sys(waitpid(pid, &mut status, 0)), Err(ECHILD));
            close(read_end);
            close(write_end);
        }
        Ok(())
    });
    check("waiting for any takes the oldest", || {
        let pids: Vec<pid_t> = (0..5).map(|i| child(move || i)).collect::<Result<_, _>>()?;
        for pid in pids.iter().rev() {
            until_dead(*pid)?;
        }
        for (i, pid) in pids.iter().enumerate() {
            let mut status = 0;
            // SAFETY: `status` takes the result.
            same!(unsafe { wait(&mut status) }, *pid);
            same!(status, (i as i32) << 8);
        }
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives the call.
    check("waitid says who and how", || unsafe {
        let pid = child(|| 9)?;
        let info = until_dead(pid)?;
        same!((info.si_signo, info.si_code), (SIGCHLD, CLD_EXITED));
        same!((info.si_pid(), info.si_status()), (pid, 9));
        same!(info.si_uid(), getuid());
        same!(status_of(pid)?, 9 << 8);
        let pid = child(|| {
            kill(getpid(), SIGTERM);
            0
        })?;
        let mut info: siginfo_t = std::mem::zeroed();
        must(waitid(P_ALL, 0, &mut info, WEXITED))?;
        same!((info.si_code, info.si_status()), (CLD_KILLED, SIGTERM));
        same!(info.si_pid(), pid);
        same!(sys(waitid(P_ALL, 0, &mut info, WEXITED)), Err(ECHILD));
        same!(sys(waitid(P_ALL, 0, &mut info, WNOHANG)), Err(EINVAL));
        let (read_end, write_end) = pipe_pair()?;
        let pid = child(|| {
            let _ = await_byte(read_end);
            0
        })?;
        info.si_signo = 5;
        must(waitid(P_PID, pid as u32, &mut info, WEXITED | WNOHANG))?;
        same!((info.si_signo, info.si_pid()), (0, 0));
        give_byte(write_end);
        same!(status_of(pid)?, 0);
        close(read_end);
        close(write_end);
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives the call.
    check("children that nobody waits for", || unsafe {
        for flags in [0, SA_NOCLDWAIT] {
            let mut action: sigaction = std::mem::zeroed();
            action.sa_sigaction = if flags == 0 { SIG_IGN } else { SIG_DFL };
            action.sa_flags = flags;
            let mut before: sigaction = std::mem::zeroed();
            must(sigaction(SIGCHLD, &action, &mut before))?;
            for _ in 0..3 {
                child(|| 0)?;
            }
            same!(sys(wait(null_mut())), Err(ECHILD));
            must(sigaction(SIGCHLD, &before, null_mut()))?;
        }
        Ok(())
    });
    check("a child of many threads", || {
        let pid = child(|| {
            for i in 0..4 {
                std::thread::spawn(move || {
                    loop {
                        if i % 2 == 0 {
                            std::thread::sleep(std::time::Duration::from_secs(100));
                        } else {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
            6
        })?;
        same!(status_of(pid)?, 6 << 8);
        // The first thread ends before the others; the last one's status is the process's.
        let pid = child(|| {
            std::thread::spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                // SAFETY: ends the thread; nothing on its stack is needed any more.
                unsafe { syscall(SYS_exit, 11) };
            });
            // SAFETY: ends the thread; nothing on its stack is needed any more.
            unsafe { syscall(SYS_exit, 12) };
            0
        })?;
        same!(status_of(pid)?, 11 << 8);
        Ok(())
    });
    check("many, one after the other and at once", || {
        for i in 0..100 {
            let pid = child(|| i)?;
            same!(status_of(pid)?, i << 8);
        }
        let pids: Vec<pid_t> = (0..50)
            .map(|i| child(move || i))
            .collect::<Result<_, _>>()?;
        for (i, pid) in pids.into_iter().enumerate() {
            same!(status_of(pid)?, (i as i32) << 8);
        }
        Ok(())
    });
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.len() > 1 {
        exec::as_child(&arguments);
    }
    // Under `nohup` the native run would inherit that it is ignored.
    // SAFETY: sets the default action.
    default_action(SIGHUP);
    endings();
    share::memory();
    share::descriptors();
    share::locks();
    exec::programs();
    kin::relations();
    kin::signals();
    kin::proc_files();
    finish();
}
