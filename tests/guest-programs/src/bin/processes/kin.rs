//! How processes are related, and what they send each other.

use crate::*;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

static CAUGHT: AtomicI32 = AtomicI32::new(0);
static SENDER: AtomicI32 = AtomicI32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static STATUS: AtomicI32 = AtomicI32::new(0);

extern "C" fn caught(signal: i32, info: *mut siginfo_t, _: *mut c_void) {
    CAUGHT.store(signal, SeqCst);
    // SAFETY: the kernel hands a handler a complete `siginfo_t`; the fields read are those of these
    // signals.
    unsafe {
        SENDER.store((*info).si_pid(), SeqCst);
        CODE.store((*info).si_code, SeqCst);
        if signal == SIGCHLD {
            STATUS.store((*info).si_status(), SeqCst);
        }
    }
}

fn handle(signal: i32, flags: i32) -> Result<sigaction, String> {
    // SAFETY: the handler touches atomics only, and `action` and `before` are locals.
    unsafe {
        let mut action: sigaction = std::mem::zeroed();
        action.sa_sigaction = caught as *const () as usize;
        action.sa_flags = SA_SIGINFO | flags;
        let mut before: sigaction = std::mem::zeroed();
        must(libc::sigaction(signal, &action, &mut before))?;
        CAUGHT.store(0, SeqCst);
        Ok(before)
    }
}

fn restore(signal: i32, before: &sigaction) {
    // SAFETY: `before` is what the same call gave.
    unsafe { libc::sigaction(signal, before, null_mut()) };
}

pub fn relations() {
    check("parents, groups and sessions", || {
        let (me, group, session) = (getpid(), getpgrp(), getsid(0));
        in_child(|| {
            same!(getppid(), me);
            same!((getpgrp(), getsid(0)), (group, session));
            holds!(getpid() != me);
            must(setpgid(0, 0))?;
            same!(getpgid(0), getpid());
            same!(getpgid(me), group);
            same!(sys(setsid()), Err(EPERM));
            in_child(|| {
                same!(must(setsid())? as i32, getpid());
                same!((getpgrp(), getsid(0)), (getpid(), getpid()));
                same!(sys(setsid()), Err(EPERM));
                same!(sys(setpgid(0, 0)), Err(EPERM));
                Ok(())
            })
        })?;
        same!(sys(getpgid(1 << 22)), Err(ESRCH));
        same!(sys(setpgid(0, -1)), Err(EINVAL));
        same!(sys(setpgid(1 << 22, 0)), Err(ESRCH));
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives its call; the children leave through
    // `_exit`, and share nothing that they change.
    check("a shell's job: a group of children", || unsafe {
        let (read_end, write_end) = pipe_pair()?;
        let idle = || {
            let _ = await_byte(read_end);
            0
        };
        let first = child(idle)?;
        must(setpgid(first, first))?;
        let second = child(idle)?;
        must(setpgid(second, first))?;
        let stranger = child(idle)?;
        same!((getpgid(first), getpgid(second)), (first, first));
        same!(sys(setpgid(stranger, 1 << 22)), Err(EPERM));
        must(kill(-first, 0))?;
        must(kill(-first, SIGTERM))?;
        let mut status = 0;
        until_dead(first)?;
        until_dead(second)?;
        same!(waitpid(-first, &mut status, 0), first);
        same!(status, SIGTERM);
        same!(waitpid(-first, &mut status, 0), second);
        same!(sys(waitpid(-first, &mut status, 0)), Err(ECHILD));
        same!(sys(kill(-first, 0)), Err(ESRCH));
        same!(waitpid(0, &mut status, WNOHANG), 0);
        give_byte(write_end);
        same!(waitpid(0, &mut status, 0), stranger);
        close(read_end);
        close(write_end);
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives its call; the children leave through
    // `_exit`, and share nothing that they change.
    check("orphans are adopted", || unsafe {
        must(prctl(PR_SET_CHILD_SUBREAPER, 1))?;
        let words = shared_words()?;
        let (read_end, write_end) = pipe_pair()?;
        let pid = child(|| {
            let orphan = child(|| {
                let _ = await_byte(read_end);
                words[1].store(getppid() as u32, SeqCst);
                31
            });
            words[0].store(orphan.unwrap_or(0) as u32, SeqCst);
            30
        })?;
        same!(status_of(pid)?, 30 << 8);
        give_byte(write_end);
        let orphan = words[0].load(SeqCst) as pid_t;
        let mut status = 0;
        same!(wait(&mut status), orphan);
        same!(status, 31 << 8);
        same!(words[1].load(SeqCst) as pid_t, getpid());
        // One that had ended before it was orphaned.
        let pid = child(|| {
            if let Ok(orphan) = child(|| 41) {
                words[0].store(orphan as u32, SeqCst);
                let _ = until_dead(orphan);
            }
            40
        })?;
        same!(status_of(pid)?, 40 << 8);
        same!(wait(&mut status), words[0].load(SeqCst) as pid_t);
        same!(status, 41 << 8);
        must(prctl(PR_SET_CHILD_SUBREAPER, 0))?;
        close(read_end);
        close(write_end);
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives its call; the children leave through
    // `_exit`, and share nothing that they change.
    check("a signal when the parent dies", || unsafe {
        must(prctl(PR_SET_CHILD_SUBREAPER, 1))?;
        let (read_end, write_end) = pipe_pair()?;
        let words = shared_words()?;
        let pid = child(|| {
            let orphan = child(|| {
                prctl(PR_SET_PDEATHSIG, SIGUSR1);
                give_byte(write_end);
                loop {
                    pause();
                }
            });
            words[0].store(orphan.unwrap_or(0) as u32, SeqCst);
            i32::from(await_byte(read_end).is_err())
        })?;
        same!(status_of(pid)?, 0);
        same!(status_of(words[0].load(SeqCst) as pid_t)?, SIGUSR1);
        must(prctl(PR_SET_CHILD_SUBREAPER, 0))?;
        let mut kept = -1;
        must(prctl(PR_GET_PDEATHSIG, &mut kept))?;
        same!(kept, 0);
        close(read_end);
        close(write_end);
        Ok(())
    });
    // SAFETY: paths are literals, structures are locals, and the kernel is asked for numbers only.
    check("directory, umask, limits, nice value, name", || unsafe {
        must(chdir(c"/tmp".as_ptr()))?;
        umask(0o027);
        in_child(|| {
            same!(
                std::env::current_dir()
                    .map_err(|e| e.to_string())?
                    .to_string_lossy(),
                "/tmp"
            );
            same!(umask(0o077), 0o027);
            must(chdir(c"/".as_ptr()))?;
            let limit = rlimit {
                rlim_cur: 100,
                rlim_max: 500,
            };
            must(setrlimit(RLIMIT_NOFILE, &limit))?;
            in_child(|| {
                let mut limit: rlimit = std::mem::zeroed();
                must(getrlimit(RLIMIT_NOFILE, &mut limit))?;
                same!((limit.rlim_cur, limit.rlim_max), (100, 500));
                same!(sys(fcntl_number(0, F_DUPFD, 100)), Err(EINVAL));
                Ok(())
            })?;
            must(setpriority(PRIO_PROCESS, 0, 7))?;
            in_child(|| {
                same!(getpriority(PRIO_PROCESS, 0), 7);
                Ok(())
            })
        })?;
        same!(
            std::env::current_dir()
                .map_err(|e| e.to_string())?
                .to_string_lossy(),
            "/tmp"
        );
        same!(umask(0o022), 0o027);
        same!(getpriority(PRIO_PROCESS, 0), 0);
        must(chdir(c"/".as_ptr()))?;
        Ok(())
    });
    // SAFETY: every pointer is to a local that takes a result.
    check("times of children", || unsafe {
        let mut usage: rusage = std::mem::zeroed();
        let mut status = 0;
        let pid = child(|| 0)?;
        same!(
            must(wait4(pid, &mut status, 0, &mut usage))?,
            i64::from(pid)
        );
        holds!(usage.ru_utime.tv_sec == 0);
        must(getrusage(RUSAGE_CHILDREN, &mut usage))?;
        holds!(usage.ru_utime.tv_sec < 100);
        let mut times: tms = std::mem::zeroed();
        must(libc::times(&mut times))?;
        holds!(times.tms_cutime >= 0);
        Ok(())
    });
    // SAFETY: every pointer is to a local; the children leave through `_exit` at once, with nothing
    // changed.
    check("clone: ids where they are asked for", || unsafe {
        let mut ids = [0u32; 2];
        let flags = (CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | SIGCHLD) as u64;
        let pid = must(syscall(
            SYS_clone,
            flags,
            0,
            &raw mut ids[0],
            &raw mut ids[1],
            0,
        ))?;
        if pid == 0 {
            _exit(i32::from(
                (&raw const ids[1]).read_volatile() != getpid() as u32,
            ));
        }
        same!(
            (
                (&raw const ids[0]).read_volatile(),
                (&raw const ids[1]).read_volatile()
            ),
            (pid as u32, 0)
        );
        same!(status_of(pid as pid_t)?, 0);
        let arguments = [0u64, 0, 0, 0, SIGCHLD as u64, 0, 0, 0];
        let pid = must(syscall(SYS_clone3, &arguments, 64))?;
        if pid == 0 {
            _exit(23);
        }
        same!(status_of(pid as pid_t)?, 23 << 8);
        // A child that ends without a signal is waited for with __WCLONE or __WALL.
        let pid = must(syscall(SYS_clone, 0, 0, 0, 0, 0))? as pid_t;
        if pid == 0 {
            _exit(24);
        }
        let mut status = 0;
        same!(sys(waitpid(pid, &mut status, 0)), Err(ECHILD));
        same!(waitpid(pid, &mut status, __WALL), pid);
        same!(status, 24 << 8);
        Ok(())
    });
}

pub fn signals() {
    check("SIGCHLD says who and how", || {
        let before = handle(SIGCHLD, 0)?;
        let pid = child(|| 13)?;
        until_dead(pid)?;
        same!((CAUGHT.load(SeqCst), SENDER.load(SeqCst)), (SIGCHLD, pid));
        same!((CODE.load(SeqCst), STATUS.load(SeqCst)), (CLD_EXITED, 13));
        same!(status_of(pid)?, 13 << 8);
        let pid = child(|| {
            loop {
                pause();
            }
        })?;
        must(kill(pid, SIGKILL))?;
        until_dead(pid)?;
        same!(
            (CODE.load(SeqCst), STATUS.load(SeqCst)),
            (CLD_KILLED, SIGKILL)
        );
        same!(status_of(pid)?, SIGKILL);
        restore(SIGCHLD, &before);
        Ok(())
    });
    check("kill tells the sender", || {
        let before = handle(SIGUSR1, SA_RESTART)?;
        let me = getpid();
        let pid = child(|| kill(me, SIGUSR1))?;
        same!(status_of(pid)?, 0);
        same!((CAUGHT.load(SeqCst), SENDER.load(SeqCst)), (SIGUSR1, pid));
        same!(CODE.load(SeqCst), SI_USER);
        restore(SIGUSR1, &before);
        same!(sys(kill(1 << 22, SIGTERM)), Err(ESRCH));
        same!(sys(kill(me, 65)), Err(EINVAL));
        // A process that has ended and was not waited for can still be sent one.
        let pid = child(|| 0)?;
        until_dead(pid)?;
        must(kill(pid, SIGTERM))?;
        same!(status_of(pid)?, 0);
        same!(sys(kill(pid, 0)), Err(ESRCH));
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives its call; the children leave through
    // `_exit`, and share nothing that they change.
    check("a wait that a signal ends, or not", || unsafe {
        for flags in [0, SA_RESTART] {
            let before = handle(SIGUSR1, flags)?;
            let me = getpid();
            let (read_end, write_end) = pipe_pair()?;
            let pid = child(|| {
                usleep(10_000);
                kill(me, SIGUSR1);
                let _ = await_byte(read_end);
                0
            })?;
            let helper = child(|| {
                usleep(30_000);
                give_byte(write_end);
                0
            })?;
            let mut status = 0;
            let result = sys(waitpid(pid, &mut status, 0));
            match flags {
                0 => {
                    same!(result, Err(EINTR));
                    same!(status_of(pid)?, 0);
                }
                _ => same!(result, Ok(i64::from(pid))),
            }
            same!(CAUGHT.load(SeqCst), SIGUSR1);
            same!(status_of(helper)?, 0);
            restore(SIGUSR1, &before);
            close(read_end);
            close(write_end);
        }
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives its call; the children leave through
    // `_exit`, and share nothing that they change.
    check("sigsuspend and sigwait for a child", || unsafe {
        let mut set: sigset_t = std::mem::zeroed();
        sigaddset(&mut set, SIGCHLD);
        let mut before: sigset_t = std::mem::zeroed();
        must(sigprocmask(SIG_BLOCK, &set, &mut before))?;
        let action = handle(SIGCHLD, 0)?;
        let pid = child(|| 1)?;
        while CAUGHT.load(SeqCst) == 0 {
            sigsuspend(&before);
        }
        same!(status_of(pid)?, 1 << 8);
        let pid = child(|| 2)?;
        let mut info: siginfo_t = std::mem::zeroed();
        same!(must(sigwaitinfo(&set, &mut info))? as i32, SIGCHLD);
        same!((info.si_pid(), info.si_status()), (pid, 2));
        same!(status_of(pid)?, 2 << 8);
        restore(SIGCHLD, &action);
        must(sigprocmask(SIG_SETMASK, &before, null_mut()))?;
        Ok(())
    });
    check(
        "what is pending is not inherited, what is blocked is",
        // SAFETY: every pointer is to a local that outlives its call; the children leave through
        // `_exit`, and share nothing that they change.
        || unsafe {
            let mut set: sigset_t = std::mem::zeroed();
            sigaddset(&mut set, SIGUSR2);
            let mut before: sigset_t = std::mem::zeroed();
            must(sigprocmask(SIG_BLOCK, &set, &mut before))?;
            must(kill(getpid(), SIGUSR2))?;
            in_child(|| {
                let mut pending: sigset_t = std::mem::zeroed();
                must(sigpending(&mut pending))?;
                same!(sigismember(&pending, SIGUSR2), 0);
                let mut mask: sigset_t = std::mem::zeroed();
                must(sigprocmask(SIG_BLOCK, std::ptr::null(), &mut mask))?;
                same!(sigismember(&mask, SIGUSR2), 1);
                Ok(())
            })?;
            let zero = timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            same!(must(sigtimedwait(&set, null_mut(), &zero))? as i32, SIGUSR2);
            must(sigprocmask(SIG_SETMASK, &before, null_mut()))?;
            Ok(())
        },
    );
    // SAFETY: every pointer is to a local that outlives its call; the children leave through
    // `_exit`, and share nothing that they change.
    check("queued signals between processes", || unsafe {
        let mut set: sigset_t = std::mem::zeroed();
        sigaddset(&mut set, 40);
        let mut before: sigset_t = std::mem::zeroed();
        must(sigprocmask(SIG_BLOCK, &set, &mut before))?;
        let me = getpid();
        let pid = child(|| {
            for i in 0..5usize {
                sigqueue(
                    me,
                    40,
                    sigval {
                        sival_ptr: (i * 11) as *mut c_void,
                    },
                );
            }
            0
        })?;
        same!(status_of(pid)?, 0);
        for i in 0..5usize {
            let mut info: siginfo_t = std::mem::zeroed();
            must(sigwaitinfo(&set, &mut info))?;
            same!(
                (
                    info.si_value().sival_ptr as usize,
                    info.si_pid(),
                    info.si_code
                ),
                (i * 11, pid, SI_QUEUE)
            );
        }
        must(sigprocmask(SIG_SETMASK, &before, null_mut()))?;
        Ok(())
    });
    // SAFETY: the calls take numbers.
    check("threads of others, by their ids", || unsafe {
        let (read_end, write_end) = pipe_pair()?;
        let pid = child(|| {
            loop {
                give_byte(write_end);
                pause();
            }
        })?;
        await_byte(read_end)?;
        same!(sys(syscall(SYS_tgkill, getpid(), pid, SIGTERM)), Err(ESRCH));
        same!(sys(syscall(SYS_tgkill, 0, pid, SIGTERM)), Err(EINVAL));
        must(syscall(SYS_tgkill, pid, pid, SIGTERM))?;
        same!(status_of(pid)?, SIGTERM);
        same!(sys(syscall(SYS_tkill, pid, 0)), Err(ESRCH));
        close(read_end);
        close(write_end);
        Ok(())
    });
    // SAFETY: every pointer is to a local that outlives its call; the children leave through
    // `_exit`, and share nothing that they change.
    check("intervals in two processes", || unsafe {
        in_child(|| {
            let before = handle(SIGALRM, 0)?;
            let timer = itimerval {
                it_interval: timeval {
                    tv_sec: 0,
                    tv_usec: 0,
                },
                it_value: timeval {
                    tv_sec: 0,
                    tv_usec: 5000,
                },
            };
            must(syscall(SYS_setitimer, 0, &timer, 0))?;
            in_child(|| {
                let mut left: itimerval = std::mem::zeroed();
                must(syscall(SYS_getitimer, 0, &mut left))?;
                same!((left.it_value.tv_sec, left.it_value.tv_usec), (0, 0));
                Ok(())
            })?;
            while CAUGHT.load(SeqCst) == 0 {
                usleep(1000);
            }
            restore(SIGALRM, &before);
            Ok(())
        })
    });
}

/// Field `index` (from 1, as in the manual) of a process's `stat`.
fn stat_field(pid: pid_t, index: usize) -> Result<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|e| e.to_string())?;
    let (_, rest) = text.rsplit_once(") ").ok_or("no name")?;
    Ok(rest.split(' ').nth(index - 3).unwrap_or("").to_owned())
}

pub fn proc_files() {
    // SAFETY: literals end with a zero byte.
    check("/proc of another process", || unsafe {
        let (read_end, write_end) = pipe_pair()?;
        let (answer_end, ready_end) = pipe_pair()?;
        let pid = child(|| {
            chdir(c"/tmp".as_ptr());
            prctl(PR_SET_NAME, c"another".as_ptr());
            give_byte(ready_end);
            let _ = await_byte(read_end);
            0
        })?;
        await_byte(answer_end)?;
        let at = |name: &str| format!("/proc/{pid}/{name}");
        let text = |name: &str| std::fs::read_to_string(at(name)).map_err(|e| e.to_string());
        let link = |name: &str| std::fs::read_link(at(name)).map_err(|e| e.to_string());
        same!(text("comm")?, "another\n");
        same!(link("cwd")?.to_string_lossy(), "/tmp");
        same!(
            link("exe")?,
            std::fs::read_link("/proc/self/exe").map_err(|e| e.to_string())?
        );
        same!(stat_field(pid, 4)?, getpid().to_string());
        same!(stat_field(pid, 5)?, getpgrp().to_string());
        let status = text("status")?;
        let line = |label: &str| {
            status
                .lines()
                .find(|l| l.starts_with(label))
                .unwrap_or("")
                .to_owned()
        };
        same!(line("PPid:"), format!("PPid:\t{}", getpid()));
        same!(line("Tgid:"), format!("Tgid:\t{pid}"));
        same!(line("Threads:"), "Threads:\t1");
        let fd = at(&format!("fd/{read_end}"));
        same!(
            std::fs::read_link(fd).map_err(|e| e.to_string())?,
            std::fs::read_link(format!("/proc/self/fd/{read_end}")).map_err(|e| e.to_string())?
        );
        holds!(text("maps")?.contains("[stack]"));
        let listed = std::fs::read_dir("/proc")
            .map_err(|e| e.to_string())?
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<pid_t>().ok())
            .filter(|p| *p == pid || *p == getpid())
            .count();
        same!(listed, 2);
        give_byte(write_end);
        until_dead(pid)?;
        same!(stat_field(pid, 3)?, "Z");
        same!(text("cmdline")?, "");
        same!(status_of(pid)?, 0);
        holds!(std::fs::metadata(at("stat")).is_err());
        for fd in [read_end, write_end, answer_end, ready_end] {
            close(fd);
        }
        Ok(())
    });
    check("/proc/self is whoever looks", || {
        let own = || std::fs::read_link("/proc/self").map(|p| p.to_string_lossy().into_owned());
        same!(own().map_err(|e| e.to_string())?, getpid().to_string());
        in_child(|| {
            same!(own().map_err(|e| e.to_string())?, getpid().to_string());
            same!(stat_field(getpid(), 4)?, getppid().to_string());
            Ok(())
        })
    });
}
