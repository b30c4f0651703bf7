//! Global state without locks: the kernel has one vCPU and no interrupts, and a thread gives up the processor only
//! inside [`crate::wait`]. Borrows are checked at run time, so a borrow held across a wait is found at once.

use core::cell::{Ref, RefCell, RefMut};

/// A global variable of the kernel.
pub struct Global<T>(RefCell<T>);

// SAFETY: one vCPU, cooperative threads, no interrupts: there is no concurrent access. (Host unit tests use
// globals from one test thread at a time: each test that touches one takes `crate::cell::test_lock`.)
unsafe impl<T> Sync for Global<T> {}

impl<T> Global<T> {
    /// A global with its first value.
    pub const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    /// Shared access. Must not be held across a wait.
    #[track_caller]
    pub fn borrow(&self) -> Ref<'_, T> {
        self.0.borrow()
    }

    /// Exclusive access, if nobody has any.
    ///
    /// # Errors
    /// If somebody has.
    pub fn try_borrow_mut(&self) -> Result<RefMut<'_, T>, core::cell::BorrowMutError> {
        self.0.try_borrow_mut()
    }

    /// Exclusive access. Must not be held across a wait.
    #[track_caller]
    pub fn borrow_mut(&self) -> RefMut<'_, T> {
        self.0.borrow_mut()
    }
}

/// Serialises host unit tests that touch globals.
#[cfg(test)]
pub fn test_lock() -> std::sync::MutexGuard<'static, ()> {
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    LOCK.lock().unwrap_or_else(|e| e.into_inner())
}
