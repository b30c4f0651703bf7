//! A small shared memory of results.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks; a panic of another thread leaves nothing half done in what this module's locks guard.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Results by key, so many at most (R10): when it is full, nothing new is kept.
pub(super) struct Shelf<K, V> {
    most: usize,
    kept: Mutex<HashMap<K, V>>,
}

impl<K: Hash + Eq, V: Clone> Shelf<K, V> {
    pub(super) fn new(most: usize) -> Self {
        Shelf {
            most,
            kept: Mutex::default(),
        }
    }

    pub(super) fn get_or_make(&self, key: K, make: impl FnOnce() -> V) -> V {
        if let Some(value) = lock(&self.kept).get(&key) {
            return value.clone();
        }
        let value = make();
        let mut kept = lock(&self.kept);
        if kept.len() < self.most {
            kept.insert(key, value.clone());
        }
        value
    }
}
