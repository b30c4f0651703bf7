//! What one disk's replicas, voter and I/O threads share: the state under its lock, and the way of a view from the base file to
//! the replica.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

use super::error::StoreError;
use super::file::Base;
use super::job::{Engine, Job, Outcome, Spill, Tell, run};
use super::spec::Notice;
use super::state::State;
use super::task::{Task, View};
use super::versions::{BLOCK, Image};
use crate::sync::lock;

/// What is called when something happens that somebody may wait for.
pub type Notify = Arc<dyn Fn(Notice) + Send + Sync>;

/// What replicas, voter and I/O threads share.
pub struct Core {
    pub(super) number: u8,
    pub(super) name: String,
    pub(super) base: Base,
    pub(super) spill: Spill,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    pub(super) due: Arc<[AtomicBool]>,
    pub(super) notify: Notify,
    pub(super) engine: OnceLock<Box<dyn Engine>>,
}

impl Core {
    /// The disk's number.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The base file.
    pub fn base(&self) -> &Base {
        &self.base
    }

    pub(super) fn read_only(&self) -> bool {
        self.base.read_only()
    }

    /// Changes the state and starts what follows.
    pub(super) fn act<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        let out = std::mem::take(&mut state.out);
        drop(state);
        if out.wake {
            self.changed.notify_all();
        }
        let mut jobs = out.jobs;
        if !out.tell.is_empty() {
            jobs.push(Job::Tell(out.tell));
        }
        self.start(jobs);
        result
    }

    /// Hands jobs to the engine.
    pub fn start(&self, jobs: Vec<Job>) {
        if let Some(engine) = self.engine.get()
            && !jobs.is_empty()
        {
            engine.start(jobs);
        }
    }

    /// Does a job on the calling thread, which is one of the engine's; what follows from it.
    pub fn perform(&self, job: Job) -> Vec<Job> {
        match run(&self.base, &self.spill, &job) {
            Some((token, outcome)) => self.ended(token, outcome),
            None => {
                if let Job::Tell(tell) = job {
                    self.tell(tell);
                }
                Vec::new()
            }
        }
    }

    /// A job has ended; what follows from it. Called by the engine.
    pub fn ended(&self, token: u64, outcome: Outcome) -> Vec<Job> {
        let mut state = lock(&self.state);
        let Some(task) = state.tasks.remove(&token) else {
            return Vec::new();
        };
        let (view, result) = match (task, outcome) {
            (Task::View(view), Outcome::Read(Ok(buffer))) => {
                drop(state);
                return self.assemble(view, buffer, false);
            }
            (
                Task::Fetch {
                    view,
                    buffer,
                    mut images,
                },
                Outcome::Fetched(Ok(fetched)),
            ) => {
                drop(state);
                let mut fetched = fetched.into_iter();
                for (_, image) in &mut images {
                    if matches!(image, Image::Spilled(_))
                        && let Some(data) = fetched.next()
                    {
                        *image = Image::Data(data.into());
                    }
                }
                return self.compose(&view, buffer, &images, false);
            }
            (Task::View(view), Outcome::Read(Err(error)))
            | (Task::Fetch { view, .. }, Outcome::Fetched(Err(error))) => (view, error),
            (task, outcome) => {
                state.ended(task, outcome);
                drop(state);
                return self.answer(|_| ());
            }
        };
        drop(state);
        let why = self.read_error(view.seq, &result);
        self.answer(|state| state.read_done(&view, Err(why), false))
    }

    fn read_error(&self, seq: u64, error: &std::io::Error) -> String {
        format!(
            "disk {}: read {seq} failed in {}: {error}",
            self.number,
            self.base.path().display()
        )
    }

    /// Changes the state on an engine's thread: notices are given here, jobs are the engine's.
    fn answer(&self, change: impl FnOnce(&mut State)) -> Vec<Job> {
        let mut state = lock(&self.state);
        change(&mut state);
        let out = std::mem::take(&mut state.out);
        drop(state);
        if out.wake {
            self.changed.notify_all();
        }
        self.tell(out.tell);
        out.jobs
    }

    fn tell(&self, tell: Tell) {
        if tell.due != 0 {
            (self.notify)(Notice::Due(tell.due));
        }
        if let Some((cause, stop)) = tell.failed {
            (self.notify)(Notice::Failed {
                disk: self.number,
                cause,
                stop,
            });
        }
    }

    /// The base file has been read for a view; `here` says whether on the replica's own thread. Only now the old versions are looked
    /// at: a write that has changed the file meanwhile has left one before.
    pub(super) fn assemble(&self, view: View, buffer: Vec<u8>, here: bool) -> Vec<Job> {
        let mut state = lock(&self.state);
        if !state.is_wanted(&view) {
            // The replica was stopped, or told already that it failed elsewhere.
            return Vec::new();
        }
        let images = state.versions.visible(&view.range, view.at);
        let slots: Vec<u64> = images
            .iter()
            .filter_map(|(_, image)| match image {
                Image::Spilled(slot) => Some(*slot),
                _ => None,
            })
            .collect();
        if slots.is_empty() {
            drop(state);
            return self.compose(&view, buffer, &images, here);
        }
        let token = state.task(Task::Fetch {
            view,
            buffer,
            images,
        });
        vec![Job::Fetch { token, slots }]
    }

    /// Puts a view together, and hands it over.
    fn compose(
        &self,
        view: &View,
        mut buffer: Vec<u8>,
        images: &[(u64, Image)],
        here: bool,
    ) -> Vec<Job> {
        let start = view.range.start;
        let mut unreadable = false;
        for (block, image) in images {
            match image {
                Image::Data(data) | Image::Spilling(data) => {
                    put(&mut buffer, start, block * BLOCK, data);
                }
                Image::Zero => put(&mut buffer, start, block * BLOCK, &[0; BLOCK as usize]),
                Image::Unreadable | Image::Spilled(_) => unreadable = true,
            }
        }
        // In the order of their numbers: released ones, then the replica's own.
        for write in &view.over {
            write.patch(start, &mut buffer);
        }
        let result = match unreadable {
            true => Err(format!(
                "disk {}: read {}: the device could not read this before it was overwritten",
                self.number, view.seq
            )),
            false => Ok(buffer),
        };
        if here {
            self.act(|state| state.read_done(view, result, true));
            Vec::new()
        } else {
            self.answer(|state| state.read_done(view, result, false))
        }
    }

    /// Brings the file up to all that was released, on stable storage, and leaves it like that.
    pub(super) fn freeze(&self) -> Result<(), StoreError> {
        self.act(|state| {
            state.forced = state.released;
            state.pump();
        });
        let mut state = lock(&self.state);
        let busy = |state: &State| {
            (!state.redo.is_empty() || state.sync.is_some()) && state.failure.is_none()
        };
        while busy(&state) {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(cause) = &state.failure {
            return Err(StoreError::Failed(cause.clone()));
        }
        state.frozen = true;
        drop(state);
        if self.read_only() {
            return Ok(());
        }
        self.base.sync().map_err(|source| {
            self.thaw();
            StoreError::File {
                path: self.base.path().to_owned(),
                action: "what was written cannot be put on stable storage",
                source,
            }
        })
    }

    pub(super) fn thaw(&self) {
        self.act(|state| {
            if std::mem::take(&mut state.frozen) {
                state.pump();
            }
        });
    }

    pub(super) fn close(&self) -> Result<(), StoreError> {
        self.act(|state| {
            state.closing = true;
            state.frozen = false;
            for replica in 0..state.replicas.len() {
                state.retire(replica);
            }
            state.pump();
        });
        let mut state = lock(&self.state);
        let busy = |state: &State| match state.failure {
            None => !state.redo.is_empty() || state.sync.is_some(),
            Some(_) => state.writing > 0 || state.sync.is_some(),
        };
        while busy(&state) {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let failure = state.failure.clone();
        let dirty = state.dirty;
        state.dirty = false;
        drop(state);
        let mut result = match failure {
            Some(cause) => Err(StoreError::Failed(cause)),
            None if dirty => self.base.sync().map_err(|source| StoreError::File {
                path: self.base.path().to_owned(),
                action: "what was written cannot be put on stable storage",
                source,
            }),
            None => Ok(()),
        };
        if let Some(engine) = self.engine.get() {
            engine.stop();
        }
        if let Err(source) = super::lock::release(self.base.file())
            && result.is_ok()
        {
            result = Err(StoreError::File {
                path: self.base.path().to_owned(),
                action: "cannot be unlocked",
                source,
            });
        }
        result
    }
}

/// Puts `block`, which lies at `at` on the disk, over the part of it that a piece from `start` on has.
fn put(piece: &mut [u8], start: u64, at: u64, block: &[u8]) {
    let (from, to) = (
        at.max(start),
        (at + block.len() as u64).min(start + piece.len() as u64),
    );
    if from < to {
        piece[(from - start) as usize..(to - start) as usize]
            .copy_from_slice(&block[(from - at) as usize..(to - at) as usize]);
    }
}
