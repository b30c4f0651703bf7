//! Threads and the scheduler. (Interface; the lead is filling it in.)
use crate::wait::Wake;

/// Id of the calling thread (Linux tid).
pub fn current() -> u32 {
    1
}
/// Id of the process.
pub fn pid() -> u32 {
    1
}
/// Whether an unblocked signal is pending for the calling thread.
pub fn signal_pending() -> bool {
    false
}
/// Makes a blocked thread runnable; false if it was not blocked.
pub fn make_runnable(_thread: u32, _why: Wake) -> bool {
    false
}
/// Blocks the calling thread.
pub fn block(_deadline_ns: Option<u64>) -> Wake {
    Wake::Timeout
}
/// Blocks the calling thread; signals do not end it.
pub fn block_uninterruptible() {}
/// Lets other runnable threads run.
pub fn yield_now() {}
/// Number of threads of the process.
pub fn thread_count() -> usize {
    1
}
/// User and group id of the process (real = effective = saved).
pub fn credentials() -> (u32, u32) {
    (0, 0)
}
/// Sends a signal to the process (`kill(getpid(), signal)`), e.g. SIGPIPE, SIGALRM.
pub fn send_signal_to_self(_signal: u32) {}
/// Temporarily replaces the calling thread's signal mask (ppoll, pselect, epoll_pwait); returns the old one.
/// The old mask is restored when the system call returns, after a pending signal was delivered.
pub fn set_temporary_mask(_mask: u64) {}
