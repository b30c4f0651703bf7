//! Waking one replica's thread.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::sync::lock;

/// Rung when there may be something for a replica; what it is, its thread looks up. Rings do not add up, and none is lost.
#[derive(Default)]
pub struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
    also: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
}

impl std::fmt::Debug for Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bell").finish_non_exhaustive()
    }
}

impl Bell {
    /// Wakes the thread, or lets its next wait end at once.
    pub fn ring(&self) {
        let was = std::mem::replace(&mut *lock(&self.rung), true);
        if !was {
            self.changed.notify_all();
        }
        if let Some(also) = &*lock(&self.also) {
            also();
        }
    }

    /// Also called at each ring, on the ringing thread; must not block.
    pub fn also(&self, call: Box<dyn Fn() + Send + Sync>) {
        *lock(&self.also) = Some(call);
    }

    /// Waits for a ring since the last wait, at most so long if that is given.
    pub fn wait(&self, most: Option<Duration>) {
        let rung = lock(&self.rung);
        let mut rung = match most {
            _ if *rung => rung,
            Some(most) => {
                self.changed
                    .wait_timeout_while(rung, most, |rung| !*rung)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
            None => self
                .changed
                .wait_while(rung, |rung| !*rung)
                .unwrap_or_else(PoisonError::into_inner),
        };
        *rung = false;
    }

    /// Forgets a ring: whatever it was for is looked at now.
    pub fn hush(&self) {
        *lock(&self.rung) = false;
    }
}
