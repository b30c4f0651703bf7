//! The way from the set to the thread that writes: a bounded queue, so that neither a vCPU nor the deliverer does the work of
//! compressing, hashing and writing.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use quorate_devices::{BlockStatus, Entry, Waiting};
use quorate_voter::Channel;

use super::codec::{BlobMeta, ReadData};
use super::format::Kind;
use super::header::Header;
use super::segment::Segments;
use super::writer::write_out;
use crate::egress::{Item, Tap};
use crate::events::Event;
use crate::exit::{ExitCode, Failure};
use crate::sync::lock;

/// Bytes that may wait to be written (R10). At it the deliverer waits, and with it the replicas, at their window.
pub const QUEUE_BYTES: usize = 32 << 20;
/// Checkpoints and dumps that may wait to be written (R10). One more is refused.
pub const BLOBS_WAITING: usize = 4;
/// Part of [`Limits::keep`] that dumps may take (R10): one in so many. Beyond it no more are taken until old ones are deleted.
pub const DUMPS_SHARE: u64 = 4;
/// The writer is woken at once when so much waits; otherwise it lets a little come together.
const WAKE_BYTES: usize = 256 << 10;
/// What a message costs beside its bytes.
const MESSAGE_COST: usize = 64;

/// Bounds of a recording on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A segment is full with so many bytes of journal; checkpoints and dumps come on top.
    pub segment: u64,
    /// Bytes of all segments; the oldest are deleted beyond it. The newest always stays.
    pub keep: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            segment: 64 << 20,
            keep: 1 << 30,
        }
    }
}

/// Where the data of reads are that a replica was given.
pub trait ReadLog: Send + Sync {
    /// The data of a read.
    fn logged(&self, disk: u8, seq: u64) -> Option<Arc<[u8]>>;
}

/// Writes a checkpoint or a dump.
pub type BlobSource = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// One thing for the writer.
pub enum Message {
    /// An output was released; its bytes are the next of [`Batch::bytes`].
    Release {
        boundary: u64,
        channel: Channel,
        len: usize,
    },
    /// An entry was written.
    Entry(u64, Arc<Entry>),
    /// Data of a read that the entry of this boundary completes.
    Read(u64, ReadData),
    /// Something happened.
    Event(Duration, Event),
    /// A checkpoint or a dump.
    Blob(Kind, BlobMeta, BlobSource),
    /// A checkpoint with which the recording begins.
    Base(BlobMeta, BlobSource),
}

/// What the writer takes at once.
#[derive(Default)]
pub struct Batch {
    /// In order.
    pub messages: Vec<Message>,
    /// Bytes of the releases, one after the other.
    pub bytes: Vec<u8>,
    cost: usize,
}

impl Batch {
    pub fn clear(&mut self) {
        self.messages.clear();
        self.bytes.clear();
        self.cost = 0;
    }
}

#[derive(Default)]
struct State {
    batch: Batch,
    blobs: usize,
    closed: bool,
    /// The writer has ended: nothing more is taken, nobody waits.
    dead: bool,
    /// How often the deliverer had to wait.
    waits: u64,
}

/// What both sides share.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    /// For the writer.
    work: Condvar,
    /// For the deliverer.
    room: Condvar,
    /// The first boundary of the newest segment if it wants a checkpoint, else `u64::MAX`.
    pub wants: AtomicU64,
    /// There is no room for more dumps.
    pub no_dumps: AtomicBool,
    /// Told when the recording ends before the set does.
    pub failed: OnceLock<Box<dyn Fn(String) + Send + Sync>>,
}

impl Queue {
    fn put(&self, message: Message, bytes: &[u8]) {
        let cost = MESSAGE_COST
            + match &message {
                Message::Release { len, .. } => *len,
                Message::Entry(_, entry) => entry
                    .frames
                    .iter()
                    .map(|f| f.len() + MESSAGE_COST)
                    .sum::<usize>(),
                Message::Read(_, read) => read.data.len(),
                Message::Event(..) => 512,
                // Counted by `BLOBS_WAITING`, or one for each replica.
                Message::Blob(..) | Message::Base(..) => WAKE_BYTES,
            };
        let mut state = lock(&self.state);
        if state.batch.cost > QUEUE_BYTES && !state.dead {
            state.waits += 1;
            while state.batch.cost > QUEUE_BYTES && !state.dead {
                state = self
                    .room
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
        if state.dead || state.closed {
            return;
        }
        let before = state.batch.cost;
        state.batch.cost += cost;
        state.batch.bytes.extend_from_slice(bytes);
        state.batch.messages.push(message);
        let after = state.batch.cost;
        drop(state);
        if before == 0 || (before < WAKE_BYTES && after >= WAKE_BYTES) {
            self.work.notify_one();
        }
    }

    fn put_blob(&self, kind: Kind, meta: BlobMeta, source: BlobSource) -> bool {
        let mut state = lock(&self.state);
        if state.dead || state.closed || state.blobs >= BLOBS_WAITING {
            return false;
        }
        state.blobs += 1;
        drop(state);
        self.put(Message::Blob(kind, meta, source), &[]);
        true
    }

    /// Waits for something to write and swaps it for `batch`, which is to be empty. A little is let come together for
    /// `linger`, and after `until` it comes back empty-handed. False: nothing more will come.
    pub fn take(&self, batch: &mut Batch, linger: Duration, until: Option<Duration>) -> bool {
        let mut state = lock(&self.state);
        while state.batch.messages.is_empty() && !state.closed {
            let Some(until) = until else {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (back, timeout) = self
                .work
                .wait_timeout(state, until)
                .unwrap_or_else(PoisonError::into_inner);
            state = back;
            if timeout.timed_out() {
                break;
            }
        }
        if !state.batch.messages.is_empty() && state.batch.cost < WAKE_BYTES && !state.closed {
            state = self
                .work
                .wait_timeout(state, linger)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        std::mem::swap(&mut state.batch, batch);
        let more = !(state.closed && batch.messages.is_empty());
        drop(state);
        self.room.notify_all();
        more
    }

    /// A checkpoint or dump has been written.
    pub fn blob_done(&self) {
        lock(&self.state).blobs -= 1;
    }

    /// The writer ends.
    pub fn die(&self) {
        let mut state = lock(&self.state);
        state.dead = true;
        state.batch = Batch::default();
        drop(state);
        self.wants.store(u64::MAX, Ordering::Release);
        self.room.notify_all();
    }
}

/// What was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Boundaries.
    pub boundaries: u64,
    /// Segments that are there.
    pub segments: usize,
    /// Bytes of these.
    pub bytes: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
    /// Dumps written.
    pub dumps: u64,
    /// How often the set had to wait for the disk.
    pub waits: u64,
    /// Why the recording ended before the set did.
    pub failure: Option<String>,
}

/// A recording under way.
pub struct Recorder {
    path: PathBuf,
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<Summary>>>,
    done: OnceLock<Summary>,
}

impl Recorder {
    /// Makes the file and starts the thread that writes.
    ///
    /// # Errors
    /// When the file cannot be made, or there is a recording of this name already.
    pub fn create(path: &Path, limits: Limits, header: &Header) -> Result<Recorder, Failure> {
        let failed = |error: io::Error| {
            let text = match error.kind() {
                io::ErrorKind::AlreadyExists => format!(
                    "{}: there is a recording of this name (with its numbered segments): remove it, or choose another name",
                    path.display()
                ),
                _ => format!("{}: cannot record: {error}", path.display()),
            };
            Failure::new(ExitCode::Recording, text)
        };
        let header =
            serde_json::to_vec(header).map_err(|error| Failure::new(ExitCode::Internal, error))?;
        let segments = Segments::create(path, limits, header).map_err(failed)?;
        Recorder::over(segments).map_err(failed)
    }

    pub(super) fn over(segments: Segments) -> io::Result<Recorder> {
        let path = segments.path().to_owned();
        let queue = Arc::new(Queue::default());
        queue.wants.store(u64::MAX, Ordering::Release);
        let of_thread = Arc::clone(&queue);
        let thread = std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || write_out(&of_thread, segments))?;
        Ok(Recorder {
            path,
            queue,
            thread: Mutex::new(Some(thread)),
            done: OnceLock::new(),
        })
    }

    /// What sees the set. `reads` has the data of reads: they are asked for when the entry that completes them has been delivered.
    pub fn tap(&self, reads: Arc<dyn ReadLog>) -> Tap {
        let queue = Arc::clone(&self.queue);
        let mut wanted = Wanted::default();
        Box::new(move |item| match item {
            Item::Release {
                boundary,
                channel,
                bytes,
            } => {
                wanted.until(*boundary, &*reads, &queue);
                let message = Message::Release {
                    boundary: *boundary,
                    channel: *channel,
                    len: bytes.len(),
                };
                queue.put(message, bytes);
            }
            Item::Entry { boundary, entry } => {
                wanted.note(*boundary, entry);
                queue.put(Message::Entry(*boundary, Arc::clone(entry)), &[]);
            }
            Item::Event(at, event) => {
                if matches!(event, Event::Stopped { .. }) {
                    // The last thing: what is here now is all that will be.
                    wanted.until(u64::MAX, &*reads, &queue);
                }
                queue.put(Message::Event(*at, event.clone()), &[]);
            }
        })
    }

    /// Whom to tell if the recording ends before the set does (a full disk); called at most once, from the writer's thread.
    pub fn on_failure(&self, tell: Box<dyn Fn(String) + Send + Sync>) {
        let _ = self.queue.failed.set(tell);
    }

    /// The newest segment has no checkpoint yet: [`Recorder::checkpoint`] takes one whose boundary is not below this.
    pub fn wants_checkpoint(&self) -> Option<u64> {
        Some(self.queue.wants.load(Ordering::Acquire)).filter(|first| *first != u64::MAX)
    }

    /// Takes a checkpoint of a running replica, if it is wanted. Never waits for the disk. False: it is not.
    pub fn checkpoint(&self, meta: BlobMeta, source: BlobSource) -> bool {
        let wanted = self
            .wants_checkpoint()
            .is_some_and(|first| meta.boundary >= first);
        wanted && self.queue.put_blob(Kind::Checkpoint, meta, source)
    }

    /// Takes the checkpoint with which a replica of a resumed set begins: before anything else, once for each replica. Its boundary is
    /// that of the checkpoint, and [`Header::resumed`] is set.
    pub fn base(&self, meta: BlobMeta, source: BlobSource) {
        self.queue.put(Message::Base(meta, source), &[]);
    }

    /// Whether a dump would be taken now: not too many wait, and those that are there leave room ([`DUMPS_SHARE`]).
    #[must_use]
    pub fn takes_dumps(&self) -> bool {
        let state = lock(&self.queue.state);
        let room = !self.queue.no_dumps.load(Ordering::Acquire);
        room && !state.dead && !state.closed && state.blobs < BLOBS_WAITING
    }

    /// Takes a dump of a stopped replica's machine. Never waits for the disk. False: too many wait already, or nothing is recorded any more.
    pub fn dump(&self, meta: BlobMeta, source: BlobSource) -> bool {
        self.queue.put_blob(Kind::Dump, meta, source)
    }

    /// How often the deliverer had to wait so far.
    #[must_use]
    pub fn waits(&self) -> u64 {
        lock(&self.queue.state).waits
    }

    /// The set has not come to be: removes the file, in which there is nothing, so that its name is free for the next try.
    pub fn discard(&self) {
        if self.finish().boundaries == 0 {
            // Nothing depends on it.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// The set has ended: writes what is left and closes the file.
    pub fn finish(&self) -> Summary {
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let mut state = lock(&self.queue.state);
            state.closed = true;
            let waits = state.waits;
            drop(state);
            self.queue.work.notify_one();
            let mut summary = thread.join().unwrap_or_else(|_| Summary {
                failure: Some("the writer panicked; this is a defect of quorate".to_owned()),
                ..Summary::default()
            });
            summary.waits = waits;
            let _ = self.done.set(summary);
        }
        self.done.get().cloned().unwrap_or_default()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Reads that entries complete and whose data are still to be fetched. Bounded by the window and what a disk lets be outstanding (R10).
#[derive(Default)]
struct Wanted(VecDeque<(u64, u8, u64)>);

impl Wanted {
    fn note(&mut self, boundary: u64, entry: &Entry) {
        for completion in &entry.completions {
            if completion.kind == Waiting::Read && completion.status == BlockStatus::Ok {
                self.0
                    .push_back((boundary, completion.disk, completion.seq));
            }
        }
    }

    /// Fetches what was completed before this boundary. A read that has no data was no replica's: a leader that has gone astray
    /// may call complete what nobody has asked for.
    fn until(&mut self, boundary: u64, reads: &dyn ReadLog, queue: &Queue) {
        while let Some((of, disk, seq)) = self.0.front().copied() {
            if of >= boundary {
                return;
            }
            self.0.pop_front();
            if let Some(data) = reads.logged(disk, seq) {
                queue.put(Message::Read(of, ReadData { disk, seq, data }), &[]);
            }
        }
    }
}
