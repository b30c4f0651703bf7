//! Locks. A panic while a lock is held is a defect that has been reported already; the data behind our locks is
//! whole between statements, so going on beats a second panic in every other thread.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a panic elsewhere.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
