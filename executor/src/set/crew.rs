//! The threads that a set runs on.

use std::sync::Mutex;
use std::thread::JoinHandle;

use crate::exit::{ExitCode, Failure};
use crate::sync::lock;

/// What runs on a thread.
pub type Body = Box<dyn FnOnce() + Send>;

/// Gives a set its threads.
pub trait Crew: Send + Sync {
    /// Runs this on a thread of its own: a replica's, or the ticker's.
    ///
    /// # Errors
    /// When there is no thread for it.
    fn run(&self, replica: Option<usize>, body: Body) -> Result<(), Failure>;
    /// Waits until everything that was to run has.
    fn join(&self);
}

/// Threads that are made as they are needed, and end.
#[derive(Default)]
pub struct Spawned(Mutex<Vec<JoinHandle<()>>>);

impl Crew for Spawned {
    fn run(&self, replica: Option<usize>, body: Body) -> Result<(), Failure> {
        let name = replica.map_or("ticker".to_owned(), |me| format!("replica-{me}"));
        let thread = std::thread::Builder::new().name(name).spawn(body);
        let thread = thread.map_err(|error| {
            Failure::new(ExitCode::Host, format!("no thread for a replica: {error}"))
        })?;
        let mut threads = lock(&self.0);
        // Those of replicas that were removed.
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    fn join(&self) {
        for thread in std::mem::take(&mut *lock(&self.0)) {
            // A panicked thread has been reported by `live` already.
            let _ = thread.join();
        }
    }
}
