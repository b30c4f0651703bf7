//! Threads that outlive the sets that run on them. A vCPU that is run by another thread than before costs a
//! `synchronize_rcu` in the host's kernel, and a thread of its own for each trial costs more than a short trial does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::exit::{ExitCode, Failure};
use crate::set::crew::{Body, Crew};
use crate::sync::lock;

/// One thread per replica, and one for the ticker.
pub struct Pool {
    workers: Vec<Worker>,
    ticker: Worker,
    busy: Arc<Busy>,
}

struct Worker {
    jobs: Mutex<Option<Sender<Body>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Jobs that are not done.
#[derive(Default)]
struct Busy {
    count: Mutex<usize>,
    less: Condvar,
}

impl Busy {
    fn done(&self) {
        *lock(&self.count) -= 1;
        self.less.notify_all();
    }
}

impl Pool {
    /// Threads for so many replicas.
    ///
    /// # Errors
    /// When the host gives none.
    pub fn new(replicas: usize) -> Result<Pool, Failure> {
        let busy = Arc::<Busy>::default();
        let workers: Result<Vec<Worker>, Failure> = (0..replicas)
            .map(|me| Worker::start(format!("replica-{me}"), &busy))
            .collect();
        Ok(Pool {
            workers: workers?,
            ticker: Worker::start("ticker".to_owned(), &busy)?,
            busy,
        })
    }

    /// The threads are not waited for: one of them does not come back.
    pub fn abandon(&self) {
        for worker in self.workers.iter().chain([&self.ticker]) {
            lock(&worker.jobs).take();
            lock(&worker.thread).take();
        }
    }
}

impl Worker {
    fn start(name: String, busy: &Arc<Busy>) -> Result<Worker, Failure> {
        let (jobs, inbox) = channel::<Body>();
        let busy = Arc::clone(busy);
        let body = move || {
            for job in inbox {
                // A panic of a replica's thread is caught and told by its own loop; the thread is to stay.
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a thread of a rig panicked; this is a defect of quorate");
                }
                busy.done();
            }
        };
        let thread = std::thread::Builder::new().name(name).spawn(body);
        let thread = thread.map_err(|error| {
            Failure::new(ExitCode::Host, format!("no thread for a replica: {error}"))
        })?;
        Ok(Worker {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
        })
    }
}

impl Crew for Pool {
    fn run(&self, replica: Option<usize>, body: Body) -> Result<(), Failure> {
        let worker = replica.map_or(Some(&self.ticker), |me| self.workers.get(me));
        let gone = || Failure::new(ExitCode::Internal, "a rig has no such thread".to_owned());
        let worker = worker.ok_or_else(gone)?;
        *lock(&self.busy.count) += 1;
        let sent = lock(&worker.jobs)
            .as_ref()
            .is_some_and(|jobs| jobs.send(body).is_ok());
        if !sent {
            self.busy.done();
            return Err(gone());
        }
        Ok(())
    }

    fn join(&self) {
        let mut count = lock(&self.busy.count);
        while *count > 0 {
            count = self
                .busy
                .less
                .wait(count)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for worker in self.workers.iter().chain([&self.ticker]) {
            lock(&worker.jobs).take();
        }
        for worker in self.workers.iter().chain([&self.ticker]) {
            let thread = lock(&worker.thread).take();
            // The last to let go of the pool may be one of its own threads.
            if let Some(thread) = thread
                && thread.thread().id() != std::thread::current().id()
            {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_replica_keeps_its_thread_even_after_a_panic() {
        let pool = Pool::new(2).unwrap();
        let seen = Arc::<Mutex<Vec<(usize, std::thread::ThreadId)>>>::default();
        for round in 0..3 {
            for me in 0..2 {
                let seen = Arc::clone(&seen);
                let body = Box::new(move || {
                    lock(&seen).push((me, std::thread::current().id()));
                    assert!(round != 1, "on purpose");
                });
                pool.run(Some(me), body).unwrap();
            }
            pool.join();
            assert_eq!(lock(&seen).len(), 2 * (round + 1));
        }
        assert!(pool.run(Some(2), Box::new(|| {})).is_err());
        let seen = lock(&seen);
        for me in 0..2 {
            let mut of = seen.iter().filter(|(r, _)| *r == me).map(|(_, id)| *id);
            let first = of.next().unwrap();
            assert!(of.all(|id| id == first));
        }
    }
}
