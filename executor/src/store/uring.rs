//! I/O through io_uring: one thread per disk hands jobs to the kernel and takes what has ended. What the ring is no use for
//! (the spill file, zeroes with their ways around file systems that know none) goes to a thread beside it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};
use rustix::event::{EventfdFlags, eventfd};

use super::core::Core;
use super::file::{Io, shrunk};
use super::job::{Content, Engine, Job, Outcome};
use super::threads::Threads;
use crate::sync::lock;

/// Entries of the submission queue.
const ENTRIES: u32 = 256;
/// Most operations in the kernel's hands; what is more waits. Less than there are entries: the wake-up needs one, too.
const MAX_ACTIVE: usize = 128;
/// The name of the operation that wakes the thread.
const WAKE: u64 = u64::MAX;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    stop: bool,
    /// The thread waits for the kernel, and has to be woken.
    waiting: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: OwnedFd,
}

impl Shared {
    fn add(&self, change: impl FnOnce(&mut Queue)) {
        let mut queue = lock(&self.queue);
        change(&mut queue);
        let waiting = std::mem::take(&mut queue.waiting);
        drop(queue);
        if waiting {
            // Fails only if the counter is full, and then the thread is awake.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// See the module.
pub struct Uring {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    beside: Arc<Threads>,
}

impl Uring {
    /// Sets up the ring of a disk and starts its thread.
    ///
    /// # Errors
    /// When the kernel has no io_uring, does not let us, or has one that is too old.
    pub fn start(core: &Arc<Core>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC)?,
        });
        let beside = Arc::new(Threads::beside(core)?);
        let (tell, ready) = sync_channel(1);
        let (theirs, odd, core) = (shared.clone(), beside.clone(), core.clone());
        // The ring is made by the thread that uses it: the kernel saves work if that is the only one.
        let thread = std::thread::Builder::new()
            .name(format!("disk-{}", core.number()))
            .spawn(move || match ring() {
                Ok(ring) => {
                    let _ = tell.send(Ok(()));
                    Thread::new(ring, &core, &theirs, &odd).run();
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            })?;
        let made = ready
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the thread ended before it had begun")));
        match made {
            Ok(()) => Ok(Self {
                shared,
                thread: Mutex::new(Some(thread)),
                beside,
            }),
            Err(error) => {
                beside.stop();
                let _ = thread.join();
                Err(error)
            }
        }
    }
}

impl Engine for Uring {
    fn start(&self, jobs: Vec<Job>) {
        self.shared.add(|queue| queue.jobs.extend(jobs));
    }

    fn stop(&self) {
        self.beside.stop();
        self.shared.add(|queue| queue.stop = true);
        if let Some(thread) = lock(&self.thread).take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }
}

fn ring() -> io::Result<IoUring> {
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(ENTRIES)
        // Before Linux 6.1.
        .or_else(|_| IoUring::new(ENTRIES))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let wanted = [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE];
    if wanted.iter().all(|code| probe.is_supported(*code)) {
        Ok(ring)
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// An operation in the kernel's hands. It stays where it is until the kernel has given it back.
struct Active {
    job: Job,
    /// What a read fills.
    buffer: Vec<u8>,
    /// Bytes moved so far.
    done: usize,
}

struct Thread<'a> {
    ring: IoUring,
    core: &'a Core,
    shared: &'a Shared,
    beside: &'a Threads,
    /// By the name of the job.
    active: BTreeMap<u64, Active>,
    todo: VecDeque<Job>,
    /// What the wake-up reads.
    counter: Box<[u8; 8]>,
    armed: bool,
    /// The ring is of no use any more: all goes to the thread beside it.
    broken: bool,
}

impl<'a> Thread<'a> {
    fn new(ring: IoUring, core: &'a Core, shared: &'a Shared, beside: &'a Threads) -> Self {
        Self {
            ring,
            core,
            shared,
            beside,
            active: BTreeMap::new(),
            todo: VecDeque::new(),
            counter: Box::new([0; 8]),
            armed: false,
            broken: false,
        }
    }

    fn run(mut self) {
        loop {
            let stop = {
                let mut queue = lock(&self.shared.queue);
                self.todo.append(&mut queue.jobs);
                queue.stop
            };
            while self.active.len() < MAX_ACTIVE
                && let Some(job) = self.todo.pop_front()
            {
                self.begin(job);
            }
            if stop && self.active.is_empty() && self.todo.is_empty() {
                // Only the wake-up may be left, and it must be given back, too.
                let _ = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes());
                while self.armed && self.wait().is_ok() {}
                if self.armed {
                    std::mem::forget(std::mem::replace(&mut self.counter, Box::new([0; 8])));
                }
                return;
            }
            if !self.armed && !self.broken {
                self.arm();
            }
            {
                let mut queue = lock(&self.shared.queue);
                if !queue.jobs.is_empty() || queue.stop != stop {
                    continue;
                }
                queue.waiting = true;
            }
            if let Err(error) = self.wait() {
                self.give_up(&error);
            }
            lock(&self.shared.queue).waiting = false;
        }
    }

    /// Waits until the kernel has given something back, and goes on from there.
    fn wait(&mut self) -> io::Result<()> {
        if self.broken {
            // Nothing comes from the ring; the counter is what is left.
            let mut counter = [0; 8];
            let _ = rustix::io::read(&self.shared.wake, &mut counter)?;
            return Ok(());
        }
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                // Interrupted, or too much has ended for more to begin.
                Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => return Err(error),
            },
        }
        let ended: Vec<(u64, i32)> = self
            .ring
            .completion()
            .map(|entry| (entry.user_data(), entry.result()))
            .collect();
        for (name, result) in ended {
            if name == WAKE {
                self.armed = false;
            } else {
                self.ended(name, result);
            }
        }
        Ok(())
    }

    fn arm(&mut self) {
        let fd = Fd(self.shared.wake.as_raw_fd());
        let buffer = self.counter.as_mut_ptr();
        let entry = opcode::Read::new(fd, buffer, 8).build().user_data(WAKE);
        self.armed = self.push(&entry);
    }

    /// Whether the kernel will get it.
    fn push(&mut self, entry: &squeue::Entry) -> bool {
        for _ in 0..2 {
            // SAFETY: what the entry points to is `counter` or lies in `active`, on the heap; both are kept until the kernel has given
            // the operation back, also when this thread ends or gives the ring up. The descriptors are open as long as
            // `core` and `shared` live, which outlive this thread's loop.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return true;
            }
            // No entry free: the kernel takes those that are there.
            if self.ring.submit().is_err() {
                return false;
            }
        }
        false
    }

    fn begin(&mut self, job: Job) {
        let (token, buffer) = match &job {
            Job::Read { token, len, .. } => (*token, vec![0; *len]),
            Job::Write { token, write } if matches!(write.content, Content::Data(_)) => {
                (*token, Vec::new())
            }
            Job::Sync { token } => (*token, Vec::new()),
            Job::Tell(_) => {
                let follow = self.core.perform(job);
                return self.todo.extend(follow);
            }
            Job::Write { .. } | Job::Zero { .. } | Job::Spill { .. } | Job::Fetch { .. } => {
                return self.beside.start(vec![job]);
            }
        };
        if self.broken {
            return self.beside.start(vec![job]);
        }
        let active = Active {
            job,
            buffer,
            done: 0,
        };
        self.active.insert(token, active);
        self.submit(token);
    }

    /// Gives the kernel what is left of an operation.
    fn submit(&mut self, token: u64) {
        let Some(active) = self.active.get_mut(&token) else {
            return;
        };
        let base = self.core.base();
        let fd = Fd(base.file().as_raw_fd());
        let done = active.done;
        let entry = match &active.job {
            Job::Read { offset, .. } => {
                let at = offset + done as u64;
                let rest = &mut active.buffer[done..];
                base.fault(Io::Read, at, rest.len()).map(|most| {
                    // At most MAX_IO_BYTES, rounded out to blocks.
                    opcode::Read::new(fd, rest.as_mut_ptr(), most as u32)
                        .offset(at)
                        .build()
                })
            }
            Job::Write { write, .. } => match &write.content {
                Content::Data(data) => {
                    let at = write.range.start + done as u64;
                    let rest = &data[done..];
                    base.fault(Io::Write, at, rest.len()).map(|most| {
                        opcode::Write::new(fd, rest.as_ptr(), most as u32)
                            .offset(at)
                            .build()
                    })
                }
                Content::Zero { .. } => Err(io::ErrorKind::Unsupported.into()),
            },
            Job::Sync { .. } => base
                .fault(Io::Sync, 0, 0)
                .map(|_| opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build()),
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        match entry {
            Ok(entry) => {
                if !self.push(&entry.user_data(token)) {
                    // It was not handed over: it can be done elsewhere, from its beginning.
                    if let Some(active) = self.active.remove(&token) {
                        self.beside.start(vec![active.job]);
                    }
                }
            }
            Err(error) => self.finish(token, Err(error)),
        }
    }

    fn ended(&mut self, token: u64, result: i32) {
        let Some(active) = self.active.get_mut(&token) else {
            return;
        };
        let whole = match &active.job {
            Job::Read { len, .. } => *len,
            Job::Write { write, .. } => (write.range.end - write.range.start) as usize,
            _ => 0,
        };
        match result {
            r if -r == libc::EINTR || -r == libc::EAGAIN => self.submit(token),
            r if r < 0 => self.finish(token, Err(io::Error::from_raw_os_error(-r))),
            0 if active.done < whole => self.finish(token, Err(shrunk())),
            moved => {
                active.done += moved as usize;
                if active.done < whole {
                    self.submit(token);
                } else {
                    self.finish(token, Ok(()));
                }
            }
        }
    }

    fn finish(&mut self, token: u64, result: io::Result<()>) {
        let Some(active) = self.active.remove(&token) else {
            return;
        };
        let outcome = match active.job {
            Job::Read { .. } => Outcome::Read(result.map(|()| active.buffer)),
            _ => Outcome::Done(result),
        };
        self.todo.extend(self.core.ended(token, outcome));
    }

    /// The ring fails as a whole. What the kernel has is lost to us: it may still write to those buffers, so they are never freed.
    fn give_up(&mut self, error: &io::Error) {
        self.broken = true;
        std::mem::forget(std::mem::replace(&mut self.counter, Box::new([0; 8])));
        self.armed = false;
        let code = error.raw_os_error().unwrap_or(libc::EIO);
        for (token, active) in std::mem::take(&mut self.active) {
            let outcome = match active.job {
                Job::Read { .. } => Outcome::Read(Err(io::Error::from_raw_os_error(code))),
                _ => Outcome::Done(Err(io::Error::from_raw_os_error(code))),
            };
            std::mem::forget(active);
            self.todo.extend(self.core.ended(token, outcome));
        }
    }
}
