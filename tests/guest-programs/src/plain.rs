//! System calls that take numbers and slices, as safe functions: none of them can touch memory that it was not given. Those that take
//! pointers stay unsafe, each with its reason.

use crate::must;

/// Safe functions for calls whose arguments and results are numbers.
macro_rules! of_numbers {
    ($($name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)?;)*) => {
        $(
            /// The C library's function of this name.
            pub fn $name($($argument: $kind),*) $(-> $result)? {
                // SAFETY: the call takes numbers only, and reads and writes no memory of this process.
                unsafe { libc::$name($($argument),*) }
            }
        )*
    };
}

of_numbers! {
    _exit(status: i32) -> !;
    alarm(seconds: u32) -> u32;
    close(fd: i32) -> i32;
    dup2(from: i32, to: i32) -> i32;
    epoll_create1(flags: i32) -> i32;
    eventfd(value: u32, flags: i32) -> i32;
    fallocate(fd: i32, mode: i32, offset: i64, len: i64) -> i32;
    ftruncate(fd: i32, len: i64) -> i32;
    getpgid(pid: i32) -> i32;
    getpgrp() -> i32;
    getpid() -> i32;
    getppid() -> i32;
    getpriority(which: u32, who: u32) -> i32;
    getsid(pid: i32) -> i32;
    gettid() -> i32;
    getuid() -> u32;
    isatty(fd: i32) -> i32;
    kill(pid: i32, signal: i32) -> i32;
    listen(fd: i32, backlog: i32) -> i32;
    pause() -> i32;
    raise(signal: i32) -> i32;
    sched_yield() -> i32;
    setpgid(pid: i32, group: i32) -> i32;
    setpriority(which: u32, who: u32, value: i32) -> i32;
    setsid() -> i32;
    socket(family: i32, kind: i32, protocol: i32) -> i32;
    timerfd_create(clock: i32, flags: i32) -> i32;
    umask(mask: u32) -> u32;
    usleep(us: u32) -> i32;
}

/// A pipe: end for reading, end for writing.
pub fn pipe_ends() -> Result<[i32; 2], String> {
    let mut ends = [0i32; 2];
    // SAFETY: the array has room for both.
    must(unsafe { libc::pipe(ends.as_mut_ptr()) })?;
    Ok(ends)
}

/// `write`: bytes written, or -1.
pub fn write_bytes(fd: i32, bytes: &[u8]) -> isize {
    // SAFETY: the call reads no more than the slice.
    unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) }
}

/// `read`: bytes read, or -1.
pub fn read_bytes(fd: i32, bytes: &mut [u8]) -> isize {
    // SAFETY: the call writes no more than the slice.
    unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) }
}

/// `fcntl` with an argument that is a number.
pub fn fcntl_number(fd: i32, operation: i32, argument: i32) -> i32 {
    // SAFETY: the programs use this for operations without a pointer only.
    unsafe { libc::fcntl(fd, operation, argument) }
}

/// Gives a signal its default action.
pub fn default_action(signal: i32) {
    // SAFETY: no code of ours is to run for it.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Ignores a signal.
pub fn ignore(signal: i32) {
    // SAFETY: no code of ours is to run for it.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}
