//! The thread that writes a recording.

use std::io::{self, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::codec::{BlobMeta, EndRecord, JournalBlock, RecordedEvent, Step, put_event, put_read};
use super::format::Kind;
use super::merge::Merge;
use super::queue::{Batch, BlobSource, Message, Queue, Summary};
use super::segment::Segments;
use crate::events::Event;

/// Bytes of records at which a block is closed.
const BLOCK_BYTES: usize = 1 << 20;
/// A block that is not full is written after this time, so that a kill costs no more.
const BLOCK_AGE: Duration = Duration::from_millis(250);
/// How long the writer lets things come together.
const LINGER: Duration = Duration::from_millis(20);
/// Reads of one boundary with more bytes than this have blocks of their own.
const READS_BYTES: usize = 1 << 20;
/// Bytes of a checkpoint or dump in one block.
const PIECE_BYTES: usize = 1 << 20;

struct Writer<'q> {
    queue: &'q Queue,
    segments: Segments,
    merge: Merge,
    journal: JournalBlock,
    events: Vec<u8>,
    /// A checkpoint whose boundary is not decided yet: only then it is known to be a healthy replica's.
    pending: Option<(BlobMeta, BlobSource)>,
    /// When the oldest record came that is not in a block yet.
    since: Option<Instant>,
    reason: String,
    summary: Summary,
}

/// Writes until the queue is closed or something fails.
pub fn write_out(queue: &Queue, segments: Segments) -> Summary {
    // Whatever happens here, nobody may wait for this thread afterwards.
    struct Dies<'q>(&'q Queue);
    impl Drop for Dies<'_> {
        fn drop(&mut self) {
            self.0.die();
        }
    }
    let dies = Dies(queue);
    let mut writer = Writer {
        queue,
        segments,
        merge: Merge::default(),
        journal: JournalBlock::default(),
        events: Vec::new(),
        pending: None,
        since: None,
        reason: "the set was dropped".to_owned(),
        summary: Summary::default(),
    };
    let result = writer.run();
    // Before anybody is told: whoever tells may come back here through the deliverer.
    drop(dies);
    (writer.summary.segments, writer.summary.bytes) = writer.segments.size();
    if let Err(error) = result {
        let text = format!(
            "the recording ends at boundary {}: {error}; the set goes on",
            writer.summary.boundaries
        );
        if let Some(tell) = queue.failed.get() {
            tell(text);
        }
        writer.summary.failure = Some(error.to_string());
    }
    writer.summary
}

impl Writer<'_> {
    fn run(&mut self) -> io::Result<()> {
        let mut batch = Batch::default();
        loop {
            let left = self
                .since
                .map(|since| BLOCK_AGE.saturating_sub(since.elapsed()));
            let more = self.queue.take(&mut batch, LINGER, left);
            let Batch {
                messages, bytes, ..
            } = &mut batch;
            let mut bytes = bytes.as_slice();
            for message in messages.drain(..) {
                self.message(message, &mut bytes)?;
            }
            batch.clear();
            if !more {
                return self.end();
            }
            if self.since.is_some_and(|since| since.elapsed() >= BLOCK_AGE) {
                self.flush()?;
                self.turn()?;
            }
        }
    }

    fn message(&mut self, message: Message, bytes: &mut &[u8]) -> io::Result<()> {
        match message {
            Message::Release {
                boundary,
                channel,
                len,
            } => {
                let (mine, rest) = bytes.split_at(len);
                *bytes = rest;
                let complete = self
                    .merge
                    .release(boundary, channel, mine)
                    .map_err(io::Error::other)?;
                if let Some(step) = complete {
                    self.step(step)?;
                    self.record()?;
                    self.checkpoint()?;
                }
            }
            Message::Entry(boundary, entry) => self
                .merge
                .entry(boundary, entry)
                .map_err(io::Error::other)?,
            Message::Read(boundary, read) => self.merge.read(boundary, read),
            Message::Event(at, event) => {
                match &event {
                    Event::Stopped { reason, .. } => self.reason.clone_from(reason),
                    Event::ReplicaStopped { replica, .. } => {
                        self.pending.take_if(|(meta, _)| meta.replica == *replica);
                    }
                    _ => {}
                }
                let event = RecordedEvent {
                    at_ms: at.as_millis() as u64,
                    boundary: self.merge.next(),
                    json: serde_json::to_string(&event).map_err(io::Error::other)?,
                    text: event.to_string(),
                };
                put_event(&mut self.events, &event);
                self.record()?;
            }
            Message::Blob(Kind::Checkpoint, meta, source) => {
                self.queue.blob_done();
                if self.pending.is_none() {
                    self.pending = Some((meta, source));
                    self.checkpoint()?;
                }
            }
            Message::Base(meta, source) => self.blob(Kind::Checkpoint, &meta, source)?,
            Message::Blob(kind, meta, source) => {
                let written = self.blob(kind, &meta, source);
                self.queue.blob_done();
                written?;
            }
        }
        Ok(())
    }

    fn step(&mut self, mut step: Step) -> io::Result<()> {
        let bytes: usize = step.reads.iter().map(|read| read.data.len()).sum();
        if bytes > READS_BYTES {
            self.flush()?;
            let mut block = Vec::new();
            for (number, read) in step.reads.iter().enumerate() {
                put_read(&mut block, read);
                if block.len() >= READS_BYTES || number + 1 == step.reads.len() {
                    self.segments.write(Kind::Reads, step.boundary, 0, &block)?;
                    block.clear();
                }
            }
            step.reads.clear();
        }
        self.journal.push(&step);
        Ok(())
    }

    /// Something was added to a block.
    fn record(&mut self) -> io::Result<()> {
        self.since.get_or_insert_with(Instant::now);
        if self.journal.bytes.len() >= BLOCK_BYTES || self.events.len() >= BLOCK_BYTES {
            self.flush()?;
        }
        self.turn()
    }

    /// Begins a new segment if this one is full.
    fn turn(&mut self) -> io::Result<()> {
        if self.segments.is_full() {
            self.flush()?;
            let first = self.merge.next();
            self.segments.turn(first)?;
            self.queue.wants.store(first, Ordering::Release);
            self.room_for_dumps();
        }
        Ok(())
    }

    fn room_for_dumps(&self) {
        let none = !self.segments.has_room_for_dumps();
        self.queue.no_dumps.store(none, Ordering::Release);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.since = None;
        if self.journal.boundaries > 0 {
            let journal = &self.journal;
            self.segments.write(
                Kind::Journal,
                journal.first,
                journal.boundaries,
                &journal.bytes,
            )?;
            self.summary.boundaries = journal.first + u64::from(journal.boundaries);
            self.journal.clear();
        }
        if !self.events.is_empty() {
            self.segments
                .write(Kind::Events, self.merge.next(), 0, &self.events)?;
            self.events.clear();
        }
        Ok(())
    }

    /// Writes the checkpoint that waits, if its boundary is recorded by now.
    fn checkpoint(&mut self) -> io::Result<()> {
        let next = self.merge.next();
        let Some((meta, source)) = self.pending.take_if(|(meta, _)| meta.boundary < next) else {
            return Ok(());
        };
        // It may be one from before the newest segment, which wants a later one.
        if self.queue.wants.load(Ordering::Acquire) > meta.boundary {
            return Ok(());
        }
        self.blob(Kind::Checkpoint, &meta, source)
    }

    /// Writes a checkpoint or a dump. One that cannot be made is left without its end, and the reader passes it over.
    fn blob(&mut self, kind: Kind, meta: &BlobMeta, source: BlobSource) -> io::Result<()> {
        self.flush()?;
        let before = self.segments.len();
        let head = serde_json::to_vec(meta).map_err(io::Error::other)?;
        self.segments.write(kind, meta.boundary, 0, &head)?;
        let mut pieces = Pieces {
            segments: &mut self.segments,
            boundary: meta.boundary,
            bytes: Vec::with_capacity(PIECE_BYTES),
            failed: None,
        };
        let made = source(&mut pieces).and_then(|()| pieces.end());
        if let Some(error) = pieces.failed {
            return Err(error);
        }
        if let Err(error) = made {
            tracing::warn!("a checkpoint or dump was not recorded: {error}");
            return Ok(());
        }
        self.segments.write(Kind::Whole, meta.boundary, 0, &[])?;
        if kind == Kind::Checkpoint {
            self.queue.wants.store(u64::MAX, Ordering::Release);
            self.summary.checkpoints += 1;
            self.segments.started()?;
        } else {
            self.summary.dumps += 1;
            self.segments.dumped(self.segments.len() - before);
            self.room_for_dumps();
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        let end = EndRecord {
            fingerprint: self.merge.fingerprint(),
            decided: self.merge.decided(),
            reason: std::mem::take(&mut self.reason),
        };
        for step in self.merge.finish() {
            self.step(step)?;
            if self.journal.bytes.len() >= BLOCK_BYTES {
                self.flush()?;
            }
        }
        self.flush()?;
        let json = serde_json::to_vec(&end).map_err(io::Error::other)?;
        self.segments.write(Kind::End, end.decided, 0, &json)?;
        self.segments.sync()
    }
}

/// Cuts a stream into blocks.
struct Pieces<'a> {
    segments: &'a mut Segments,
    boundary: u64,
    bytes: Vec<u8>,
    /// The recording itself failed.
    failed: Option<io::Error>,
}

impl Pieces<'_> {
    fn end(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let written = self
            .segments
            .write(Kind::Piece, self.boundary, 0, &self.bytes);
        self.bytes.clear();
        written.map_err(|error| {
            let told = io::Error::new(error.kind(), error.to_string());
            self.failed = Some(error);
            told
        })
    }
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE_BYTES - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        if self.bytes.len() == PIECE_BYTES {
            self.end()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
