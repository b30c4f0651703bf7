//! I/O by a few threads with ordinary system calls: works everywhere.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::core::Core;
use super::job::{Engine, Job};
use crate::sync::lock;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    stop: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
}

/// See the module.
pub struct Threads {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    /// Starts `workers` threads for a disk.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(core: &Arc<Core>, workers: usize) -> io::Result<Self> {
        Self::spawn(core, workers, false)
    }

    /// One thread beside another engine of the disk, which gets what follows from its jobs.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn beside(core: &Arc<Core>) -> io::Result<Self> {
        Self::spawn(core, 1, true)
    }

    fn spawn(core: &Arc<Core>, workers: usize, beside: bool) -> io::Result<Self> {
        let engine = Self {
            shared: Arc::new(Shared {
                queue: Mutex::default(),
                more: Condvar::new(),
            }),
            workers: Mutex::default(),
        };
        for _ in 0..workers {
            let (core, shared) = (core.clone(), engine.shared.clone());
            let worker = std::thread::Builder::new()
                .name(format!("disk-{}", core.number()))
                .spawn(move || work(&core, &shared, beside));
            match worker {
                Ok(worker) => lock(&engine.workers).push(worker),
                Err(error) => {
                    engine.stop();
                    return Err(error);
                }
            }
        }
        Ok(engine)
    }
}

impl Engine for Threads {
    fn start(&self, jobs: Vec<Job>) {
        let several = jobs.len() > 1;
        lock(&self.shared.queue).jobs.extend(jobs);
        if several {
            self.shared.more.notify_all();
        } else {
            self.shared.more.notify_one();
        }
    }

    fn stop(&self) {
        lock(&self.shared.queue).stop = true;
        self.shared.more.notify_all();
        let me = std::thread::current().id();
        for worker in std::mem::take(&mut *lock(&self.workers)) {
            // Whoever owns the disk may let go of it in a notice, on one of these threads.
            if worker.thread().id() != me {
                let _ = worker.join();
            }
        }
    }

    fn name(&self) -> &'static str {
        "threads"
    }
}

fn work(core: &Core, shared: &Shared, beside: bool) {
    loop {
        let mut queue = lock(&shared.queue);
        let job = loop {
            if let Some(job) = queue.jobs.pop_front() {
                break job;
            }
            if queue.stop {
                return;
            }
            queue = shared
                .more
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        };
        drop(queue);
        if beside {
            core.start(core.perform(job));
            continue;
        }
        let mut next = Some(job);
        while let Some(job) = next {
            // What follows from a job is done here, as far as it is one job: the data are in this core's cache.
            let mut follow = core.perform(job).into_iter();
            next = follow.next();
            let rest: Vec<Job> = follow.collect();
            if !rest.is_empty() {
                lock(&shared.queue).jobs.extend(rest);
                shared.more.notify_all();
            }
        }
    }
}
