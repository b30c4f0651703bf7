//! Kicking a vCPU out of the guest from another thread, without a race: a kick that comes before KVM_RUN, in it or
//! behind it is never lost.

use crate::error::MachineError;
use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler, unblock_signal};

/// Makes [`crate::Machine::run`] return [`crate::Outcome::Kicked`]: at once if it is running, else when it is called
/// next. Kicks do not add up.
#[derive(Clone, Debug)]
pub struct Kicker {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    requested: AtomicBool,
    /// The thread that is in `run`, if one is.
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    thread: libc::pthread_t,
    /// `kvm_run.immediate_exit`: while it is not 0, KVM_RUN returns at once with EINTR.
    immediate_exit: *const AtomicU8,
}

// SAFETY: The pointer is used only under the lock, and whoever put it there takes it away, under the lock, before it
// becomes invalid (`Entered`). The thread handle is valid for the same time.
unsafe impl Send for Running {}

// SAFETY: The handle is that of a live thread, see above.
unsafe impl Killable for Running {
    fn pthread_handle(&self) -> libc::pthread_t {
        self.thread
    }
}

/// The signal's only purpose is to end KVM_RUN with EINTR.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Lets the signal through to this thread, which may have inherited a mask that blocks it. One call for each thread.
fn accept_signal() {
    thread_local! {
        static DONE: Cell<bool> = const { Cell::new(false) };
    }
    if !DONE.replace(true) {
        // It fails for numbers that are no signals only.
        let _ = unblock_signal(SIGRTMIN());
    }
}

/// While this lives, kicks reach the thread that made it.
#[derive(Debug)]
pub(crate) struct Entered {
    shared: Arc<Shared>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        *self.shared.lock() = None;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        // A panic cannot leave the value half changed.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kicker {
    pub(crate) fn new() -> Result<Self, MachineError> {
        static HANDLER: OnceLock<Result<(), i32>> = OnceLock::new();
        let set = HANDLER.get_or_init(|| {
            register_signal_handler(SIGRTMIN(), on_kick).map_err(|error| error.errno())
        });
        set.map_err(|errno| MachineError::Signal(io::Error::from_raw_os_error(errno)))?;
        Ok(Self {
            shared: Arc::default(),
        })
    }

    /// See [`Kicker`].
    pub fn kick(&self) {
        // The order matters, see `take`.
        self.shared.requested.store(true, Ordering::SeqCst);
        let running = self.shared.lock();
        if let Some(running) = &*running {
            // SAFETY: `Running` is there, and the lock is held: the pointer is valid.
            unsafe { &*running.immediate_exit }.store(1, Ordering::SeqCst);
            // It can only fail if the thread is gone, and then nothing is left to be kicked.
            let _ = running.kill(SIGRTMIN());
        }
    }

    /// This thread is about to run the vCPU whose `kvm_run.immediate_exit` is here.
    ///
    /// # Safety
    ///
    /// `immediate_exit` must stay valid until the result is dropped, on this thread.
    pub(crate) unsafe fn enter(&self, immediate_exit: *const AtomicU8) -> Entered {
        accept_signal();
        // SAFETY: It has no requirements.
        let thread = unsafe { libc::pthread_self() };
        *self.shared.lock() = Some(Running {
            thread,
            immediate_exit,
        });
        Entered {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Whether a kick was asked for. To be called after [`Kicker::enter`] and before each KVM_RUN.
    ///
    /// No kick is lost: `immediate_exit` is cleared first, then the request is looked at. A kick sets them in
    /// the other order, so either it is seen here, or `immediate_exit` is set again before KVM_RUN, or the signal interrupts
    /// KVM_RUN.
    pub(crate) fn take(&self, immediate_exit: &AtomicU8) -> bool {
        immediate_exit.store(0, Ordering::SeqCst);
        self.shared.requested.swap(false, Ordering::SeqCst)
    }
}
