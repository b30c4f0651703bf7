//! `execve` and its relatives. The program calls itself, with words that say what to do ([`as_child`]).

use crate::*;
use std::ffi::CString;
use std::os::fd::FromRawFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

fn me() -> String {
    std::fs::read_link("/proc/self/exe")
        .map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn c(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

/// `execve` with these words and variables; returns only if it fails.
fn exec(path: &str, words: &[&str], variables: &[&str]) -> i32 {
    let words: Vec<CString> = words.iter().map(|w| c(w)).collect();
    let variables: Vec<CString> = variables.iter().map(|w| c(w)).collect();
    let pointers = |all: &[CString]| {
        all.iter()
            .map(|w| w.as_ptr())
            .chain([std::ptr::null()])
            .collect::<Vec<_>>()
    };
    // SAFETY: both arrays end with a null pointer, and they and their strings outlive the call.
    unsafe {
        execve(
            c(path).as_ptr(),
            pointers(&words).as_ptr(),
            pointers(&variables).as_ptr(),
        )
    };
    errno()
}

/// What the program does when it is called with words.
pub fn as_child(words: &[String]) -> ! {
    let status = match words[1].as_str() {
        "say" => {
            let words: Vec<&str> = words[2..].iter().map(String::as_str).collect();
            println!("{}", words.join("|"));
            for (name, value) in std::env::vars() {
                println!("{name}={value}");
            }
            0
        }
        "status" => words[2].parse().unwrap_or(98),
        "open" => {
            let open = |fd: &String| fcntl_number(fd.parse().unwrap_or(-1), F_GETFD, 0) >= 0;
            let all: Vec<&str> = words[2..]
                .iter()
                .map(|fd| if open(fd) { "open" } else { "closed" })
                .collect();
            println!("{}", all.join(" "));
            0
        }
        // SAFETY: no action is given, only asked for; every pointer is to a local.
        "signals" => unsafe {
            let state = |signal| {
                let mut action: sigaction = std::mem::zeroed();
                sigaction(signal, std::ptr::null(), &mut action);
                match action.sa_sigaction {
                    SIG_IGN => "ignored",
                    SIG_DFL => "default",
                    _ => "handled",
                }
            };
            let mut mask: sigset_t = std::mem::zeroed();
            sigprocmask(SIG_BLOCK, std::ptr::null(), &mut mask);
            let mut pending: sigset_t = std::mem::zeroed();
            sigpending(&mut pending);
            let mut stack: stack_t = std::mem::zeroed();
            sigaltstack(std::ptr::null(), &mut stack);
            println!(
                "{} {} blocked {} pending {} {}",
                state(SIGUSR1),
                state(SIGUSR2),
                sigismember(&mask, SIGHUP),
                sigismember(&pending, SIGHUP),
                // Rust's runtime has set one of its own.
                stack.ss_flags & SS_ONSTACK
            );
            0
        },
        // SAFETY: takes nothing, gives a number.
        "identity" => unsafe {
            println!("{} {} {}", getpid(), getppid(), syscall(SYS_gettid));
            0
        },
        "name" => {
            let name = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
            let line = std::fs::read("/proc/self/cmdline").unwrap_or_default();
            println!(
                "{} {}",
                name.trim(),
                line.iter().filter(|b| **b == 0).count()
            );
            0
        }
        "alarm" => {
            pause();
            0
        }
        "cat" => {
            let copied = std::io::copy(&mut std::io::stdin(), &mut std::io::stdout());
            i32::from(copied.is_err())
        }
        // The name of a script comes first.
        script if script.contains("script") => {
            println!("script {}", words[1..].join("|"));
            0
        }
        "argument" => {
            println!("with argument {}", words[3..].join("|"));
            0
        }
        _ => 97,
    };
    std::process::exit(status)
}

/// What a child says that is made by `body`, which should exec; its status must be 0.
fn said(body: impl FnOnce() -> i32) -> Result<String, String> {
    let (read_end, write_end) = pipe_pair()?;
    let pid = child(|| {
        dup2(write_end, 1);
        close(write_end);
        close(read_end);
        body()
    })?;
    close(write_end);
    let text = String::from_utf8_lossy(&read_all(read_end)?).into_owned();
    same!(status_of(pid)?, 0);
    Ok(text)
}

fn write_script(name: &str, text: &str, mode: u32) -> Result<String, String> {
    let path = format!("/tmp/{name}-{}", std::process::id());
    std::fs::write(&path, text).map_err(|e| e.to_string())?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
        .map_err(|e| e.to_string())?;
    Ok(path)
}

pub fn programs() {
    check("arguments and environment", || {
        let text = said(|| exec(&me(), &["x", "say", "a b", "", "c"], &["A=1", "B=two"]))?;
        same!(text, "a b||c\nA=1\nB=two\n");
        let many: Vec<String> = (0..5000).map(|i| format!("argument number {i}")).collect();
        let mut words = vec!["x", "say"];
        words.extend(many.iter().map(String::as_str));
        let text = said(|| exec(&me(), &words, &[]))?;
        same!(text.trim_end(), many.join("|"));
        Ok(())
    });
    check("what cannot be executed", || {
        in_child(|| {
            same!(exec("/nowhere/at/all", &["x"], &[]), ENOENT);
            same!(exec("", &["x"], &[]), ENOENT);
            same!(exec("/tmp", &["x"], &[]), EACCES);
            let text = write_script("text", "no program\n", 0o755)?;
            same!(exec(&text, &["x"], &[]), ENOEXEC);
            let closed = write_script("closed", "#!/bin/sh\n", 0o644)?;
            same!(exec(&closed, &["x"], &[]), EACCES);
            let lost = write_script("lost", "#!/no/such/interpreter\n", 0o755)?;
            same!(exec(&lost, &["x"], &[]), ENOENT);
            let huge = "x".repeat(200 << 10);
            same!(exec(&me(), &["x", &huge], &[]), E2BIG);
            // SAFETY: the kernel must refuse the pointers; the array ends with a null pointer.
            unsafe {
                same!(
                    sys(execve(
                        8 as *const c_char,
                        std::ptr::null(),
                        std::ptr::null()
                    )),
                    Err(EFAULT)
                );
                let words = [16 as *const c_char, std::ptr::null()];
                same!(
                    sys(execve(c(&me()).as_ptr(), words.as_ptr(), std::ptr::null())),
                    Err(EFAULT)
                );
            }
            for path in [text, closed, lost] {
                let _ = std::fs::remove_file(path);
            }
            Ok(())
        })
    });
    check("scripts", || {
        let script = write_script("script", &format!("#! {}\nrest\n", me()), 0o755)?;
        let text = said(|| exec(&script, &["ignored", "one", "two"], &[]))?;
        same!(text, format!("script {script}|one|two\n"));
        let with = write_script("argued", &format!("#!{}  argument  \n", me()), 0o755)?;
        let text = said(|| exec(&with, &["ignored", "one"], &[]))?;
        same!(text, "with argument one\n");
        // A script whose interpreter is a script.
        let outer = write_script("outer", &format!("#!{script}\n"), 0o755)?;
        let text = said(|| exec(&outer, &["x", "y"], &[]))?;
        same!(text, format!("script {script}|{outer}|y\n"));
        for path in [script, with, outer] {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    });
    // SAFETY: the arrays end with a null pointer, and they and their strings outlive the calls.
    check("execveat and fexecve", || unsafe {
        let path = me();
        let fd = must(open(c(&path).as_ptr(), O_RDONLY))? as i32;
        let words = [c("x"), c("say"), c("hi")];
        let pointers = [
            words[0].as_ptr(),
            words[1].as_ptr(),
            words[2].as_ptr(),
            std::ptr::null(),
        ];
        let none = [std::ptr::null::<c_char>()];
        let text = said(|| {
            syscall(
                SYS_execveat,
                fd,
                c("").as_ptr(),
                pointers.as_ptr(),
                none.as_ptr(),
                AT_EMPTY_PATH,
            );
            1
        })?;
        same!(text, "hi\n");
        let (directory, name) = path.rsplit_once('/').ok_or("no directory")?;
        let at = must(open(c(directory).as_ptr(), O_RDONLY | O_DIRECTORY))? as i32;
        let text = said(|| {
            syscall(
                SYS_execveat,
                at,
                c(name).as_ptr(),
                pointers.as_ptr(),
                none.as_ptr(),
                0,
            );
            1
        })?;
        same!(text, "hi\n");
        close(fd);
        close(at);
        Ok(())
    });
    check("close-on-exec", || {
        let (kept, closed) = pipe_pair()?;
        must(fcntl_number(closed, F_SETFD, FD_CLOEXEC))?;
        let text = said(|| {
            exec(
                &me(),
                &["x", "open", &kept.to_string(), &closed.to_string(), "99"],
                &[],
            )
        })?;
        same!(text, "open closed closed\n");
        // A failed call closes nothing.
        in_child(|| {
            same!(exec("/nowhere", &["x"], &[]), ENOENT);
            must(fcntl_number(closed, F_GETFD, 0))?;
            Ok(())
        })?;
        close(kept);
        close(closed);
        Ok(())
    });
    check("signals over exec", || {
        extern "C" fn nothing(_: i32) {}
        // SAFETY: the handler does nothing, and may run at any time; the set is a local.
        let text = said(|| unsafe {
            libc::signal(SIGUSR1, nothing as *const () as usize);
            ignore(SIGUSR2);
            let mut mask: sigset_t = std::mem::zeroed();
            sigaddset(&mut mask, SIGHUP);
            sigprocmask(SIG_BLOCK, &mask, null_mut());
            kill(getpid(), SIGHUP);
            exec(&me(), &["x", "signals"], &[])
        })?;
        same!(text, "default ignored blocked 1 pending 1 0\n");
        Ok(())
    });
    check("the same process, whichever thread calls", || {
        let parent = getpid();
        let (read_end, write_end) = pipe_pair()?;
        for from_thread in [false, true] {
            let pid = child(|| {
                dup2(write_end, 1);
                let call = || exec(&me(), &["x", "identity"], &[]);
                if from_thread {
                    for _ in 0..3 {
                        std::thread::spawn(|| {
                            loop {
                                std::thread::sleep(std::time::Duration::from_secs(50));
                            }
                        });
                    }
                    let thread = std::thread::spawn(call);
                    loop {
                        if thread.is_finished() {
                            return 5;
                        }
                        std::thread::yield_now();
                    }
                }
                call()
            })?;
            let mut line = [0u8; 64];
            let n = must(read_bytes(read_end, &mut line))? as usize;
            same!(
                String::from_utf8_lossy(&line[..n]),
                format!("{pid} {parent} {pid}\n")
            );
            same!(status_of(pid)?, 0);
        }
        close(read_end);
        close(write_end);
        Ok(())
    });
    check("names", || {
        let short = said(|| exec(&me(), &["other", "name", "3"], &[]))?;
        same!(short, "processes 3\n");
        Ok(())
    });
    // SAFETY: the structures outlive the calls.
    check("an alarm outlives the program", || unsafe {
        let pid = child(|| {
            let timer = itimerval {
                it_interval: timeval {
                    tv_sec: 0,
                    tv_usec: 0,
                },
                it_value: timeval {
                    tv_sec: 0,
                    tv_usec: 20_000,
                },
            };
            // Not in libc for this target.
            syscall(SYS_setitimer, 0, &timer, 0);
            exec(&me(), &["x", "alarm"], &[])
        })?;
        same!(status_of(pid)?, SIGALRM);
        // But a child does not inherit one.
        let timer = itimerval {
            it_interval: timeval {
                tv_sec: 0,
                tv_usec: 0,
            },
            it_value: timeval {
                tv_sec: 50,
                tv_usec: 0,
            },
        };
        syscall(SYS_setitimer, 0, &timer, 0);
        let pid = child(|| alarm(0) as i32)?;
        same!(status_of(pid)?, 0);
        holds!(alarm(0) > 40);
        Ok(())
    });
    // SAFETY: the arrays end with a null pointer, and they and their strings outlive the calls.
    check("spawning through the library", || unsafe {
        for i in 0..5 {
            let status = Command::new(me()).args(["status", &i.to_string()]).status();
            same!(
                status.map(|s| s.code()).map_err(|e| e.to_string())?,
                Some(i)
            );
        }
        let missing = Command::new("/nowhere/to/be/found").status();
        same!(
            missing.map_err(|e| e.raw_os_error()).map(|_| ()),
            Err(Some(ENOENT))
        );
        // posix_spawn: a child in the same address space until it executes.
        let words = [c("x"), c("status"), c("17")];
        let pointers = [
            words[0].as_ptr(),
            words[1].as_ptr(),
            words[2].as_ptr(),
            std::ptr::null(),
        ];
        let none = [std::ptr::null_mut::<c_char>()];
        let mut pid = 0;
        let spawned = posix_spawn(
            &mut pid,
            c(&me()).as_ptr(),
            std::ptr::null(),
            std::ptr::null(),
            pointers.as_ptr().cast(),
            none.as_ptr(),
        );
        same!(spawned, 0);
        same!(status_of(pid)?, 17 << 8);
        let spawned = posix_spawn(
            &mut pid,
            c("/nowhere").as_ptr(),
            std::ptr::null(),
            std::ptr::null(),
            pointers.as_ptr().cast(),
            none.as_ptr(),
        );
        same!(spawned, ENOENT);
        same!(sys(wait(null_mut())), Err(ECHILD));
        Ok(())
    });
    // SAFETY: the child runs on a stack of its own, on which `body` has room, and the caller waits
    // until it has ended.
    check("vfork shares the memory until exec or exit", || unsafe {
        let words = shared_words()?;
        let value = &words[0];
        let mut private = 1u32;
        let at = &raw mut private;
        // What vfork does, in a shape that Rust's stack survives: a child with a stack of its own.
        let mut stack = vec![0u8; 64 << 10];
        extern "C" fn body(at: *mut c_void) -> i32 {
            // SAFETY: `at` is the parent's local, which outlives the child.
            unsafe { at.cast::<u32>().write_volatile(2) };
            21
        }
        let top = stack.as_mut_ptr().add(stack.len() & !15).cast();
        let pid = must(clone(
            body,
            top,
            CLONE_VM | CLONE_VFORK | SIGCHLD,
            at.cast(),
        ))? as pid_t;
        same!(at.read_volatile(), 2);
        same!(status_of(pid)?, 21 << 8);
        same!(value.load(std::sync::atomic::Ordering::SeqCst), 0);
        Ok(())
    });
    check("a pipeline of three", || {
        let start = |input: Stdio| {
            Command::new(me())
                .arg("cat")
                .stdin(input)
                .stdout(Stdio::piped())
                .spawn()
        };
        let (read_end, write_end) = pipe_pair()?;
        fcntl_number(write_end, F_SETFD, FD_CLOEXEC);
        // SAFETY: the descriptor is given away: nobody else closes it.
        let mut input = unsafe { Stdio::from_raw_fd(read_end) };
        let mut running = Vec::new();
        for _ in 0..3 {
            let mut next = start(input).map_err(|e| e.to_string())?;
            input = Stdio::from(next.stdout.take().ok_or("no output")?);
            running.push(next);
        }
        let mut last = Command::new(me())
            .arg("cat")
            .stdin(input)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let data = vec![b'q'; 30_000];
        same!(must(write_bytes(write_end, &data))?, 30_000);
        close(write_end);
        let mut out = Vec::new();
        if let Some(mut stdout) = last.stdout.take() {
            std::io::Read::read_to_end(&mut stdout, &mut out).map_err(|e| e.to_string())?;
        }
        same!(out.len(), 30_000);
        running.push(last);
        for mut each in running {
            holds!(each.wait().map_err(|e| e.to_string())?.success());
        }
        Ok(())
    });
}
