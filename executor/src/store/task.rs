//! What is under way on a disk.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::job::{Job, Tell, Write};
use super::versions::Image;

/// A released write on its way to the base file.
#[derive(Debug)]
pub struct Redo {
    /// What.
    pub write: Arc<Write>,
    /// Flushes released before it. One behind a flush does not start before all those in front of it are written.
    pub epoch: u64,
    /// The range that is reserved while it is under way.
    pub busy: Range<u64>,
}

/// A read that has begun.
#[derive(Debug)]
pub struct View {
    /// Whose.
    pub reader: Reader,
    /// Its number.
    pub seq: u64,
    /// Tells it from another read of the same number.
    pub id: u64,
    /// The position: what is released before it is seen, and nothing else.
    pub at: u64,
    /// Bytes of the disk.
    pub range: Range<u64>,
    /// What of memory goes over what is found in the file, in order.
    pub over: Vec<Arc<Write>>,
}

/// For whom something is read.
#[derive(Clone, Copy, Debug)]
pub enum Reader {
    /// A replica.
    Replica(usize),
    /// All that begin again.
    Log,
}

/// Work under way.
#[derive(Debug)]
pub enum Task {
    /// The base file is read for a view.
    View(View),
    /// Old versions are fetched for a view.
    Fetch {
        /// Whose.
        view: View,
        /// What the base file had.
        buffer: Vec<u8>,
        /// The versions that go between.
        images: Vec<(u64, Image)>,
    },
    /// What is about to be overwritten is read.
    Image {
        /// The write.
        seq: u64,
        /// The range that is read, and overwritten then.
        piece: Range<u64>,
    },
    /// A write, or a piece of one up to `end`.
    Write {
        /// The write.
        seq: u64,
        /// Where the piece ends.
        end: u64,
    },
    /// An `fdatasync` for all flushes up to this one.
    Sync(u64),
    /// Old versions go to the spill file.
    Spill,
}

/// A flush that was released and is not durable.
#[derive(Debug)]
pub struct Flush {
    /// Its number.
    pub seq: u64,
    /// When it was released.
    pub since: Instant,
}

/// What is to be done when the lock is free again.
#[derive(Debug, Default)]
pub struct Out {
    /// For the engine.
    pub jobs: Vec<Job>,
    /// For the owner.
    pub tell: Tell,
    /// Threads that wait for a change are to look.
    pub wake: bool,
}
