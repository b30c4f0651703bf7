//! The way of released writes and flushes to the base file.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::file::shrunk;
use super::job::{Content, Job, Outcome, Write};
use super::spec::OnError;
use super::state::State;
use super::task::{Flush, Redo, Task};
use super::versions::{BLOCK, Image, blocks, round};

/// Most writes under way at a time.
const MAX_WRITING: usize = 64;
/// So much of a range of zeroes at a time, where old versions have to be read first.
const ZERO_PIECE: u64 = 1 << 20;

/// What the voter let out.
pub enum Released {
    /// A read of these bytes.
    Read(Range<u64>),
    /// A write of nothing.
    Nothing,
    /// A write, a discard or zeroes.
    Write(Arc<Write>),
    /// A flush.
    Flush,
}

impl State {
    /// The voter released request `seq` (R2); they come in order (R3).
    pub fn release(&mut self, seq: u64, what: Released) {
        if seq != self.released {
            let cause = format!(
                "disk {}: request {seq} was released, but {} is next; this is a defect of the executor",
                self.number, self.released
            );
            return self.fail(cause, true);
        }
        self.released += 1;
        self.log_released(seq, &what);
        if self.redo_bytes >= self.bounds.unwritten_bytes {
            // Who waits for room and has been overtaken by the vote just now adds nothing any more and must get on: a host that
            // writes slowly is not that replica's fault (R5).
            self.out.wake = true;
        }
        for r in &mut self.replicas {
            if let Some(write) = r.own.remove(&seq) {
                r.own_index.remove(seq, &write.range);
            }
        }
        match what {
            Released::Read(_) => self.want(seq),
            Released::Nothing => {}
            Released::Write(write) => self.redo(write),
            Released::Flush => {
                self.stats.flushes += 1;
                self.epoch += 1;
                self.forced = self.forced.max(seq);
                self.flushes.push_back(Flush {
                    seq,
                    since: Instant::now(),
                });
                if self.failure.is_some() {
                    self.give_up_flushes();
                }
            }
        }
        self.moved();
    }

    fn redo(&mut self, write: Arc<Write>) {
        match &write.content {
            Content::Data(data) => {
                self.stats.writes += 1;
                self.stats.write_bytes += data.len() as u64;
            }
            Content::Zero { .. } => self.stats.zeroes += 1,
        }
        if self.failure.is_some() && self.on_error == OnError::Stop {
            // The set is being stopped.
            return;
        }
        let seq = write.seq;
        self.redo_bytes += write.cost();
        self.stats.unwritten_peak = self.stats.unwritten_peak.max(self.redo_bytes);
        self.redo_index.insert(seq, write.range.clone());
        self.waiting.push_back(seq);
        let redo = Redo {
            write,
            epoch: self.epoch,
            busy: 0..0,
        };
        self.redo.insert(seq, redo);
        if self.redo_bytes > self.bounds.unwritten_bytes / 2 {
            self.forced = self.released;
        }
        if self.failure.is_some() && self.redo_bytes > self.bounds.unwritten_bytes {
            let cause = format!(
                "{}; what the guest has written since is more than {} bytes and cannot be kept in memory",
                self.failure.clone().unwrap_or_default(),
                self.bounds.unwritten_bytes
            );
            self.fail(cause, true);
        }
    }

    /// Starts whatever may start.
    pub fn pump(&mut self) {
        if self.failure.is_some() || self.frozen {
            return;
        }
        self.stalled = false;
        while let Some(&(seq, cursor)) = self.paused.front() {
            if self.needs(seq) && !self.room(&self.piece(seq, cursor)) {
                break;
            }
            self.paused.pop_front();
            self.write_piece(seq, cursor);
        }
        while let Some(&seq) = self.waiting.front()
            && self.writing < MAX_WRITING
        {
            let Some((first, redo)) = self.redo.first_key_value().zip(self.redo.get(&seq)) else {
                break;
            };
            // What is behind a flush waits for what is in front of it: after a kill the file holds all up to a flush, or
            // nothing of what is behind.
            if redo.epoch != first.1.epoch {
                break;
            }
            let range = redo.write.range.clone();
            let needed = self.needs(seq);
            if needed && seq >= self.forced && !self.closing {
                break;
            }
            let busy = round(&range, self.bytes);
            if self.busy.touches(&busy) {
                break;
            }
            if needed && (self.stalled || !self.room(&self.piece(seq, range.start))) {
                break;
            }
            self.waiting.pop_front();
            self.busy.insert(seq, busy.clone());
            if let Some(redo) = self.redo.get_mut(&seq) {
                redo.busy = busy;
            }
            self.writing += 1;
            self.write_piece(seq, range.start);
        }
        self.start_sync();
        self.spill();
    }

    /// The piece of a write that comes next, if old versions have to be kept of it.
    fn piece(&self, seq: u64, cursor: u64) -> Range<u64> {
        let Some(redo) = self.redo.get(&seq) else {
            return 0..0;
        };
        let end = match redo.write.content {
            Content::Data(_) => redo.write.range.end,
            // Pieces end on blocks: a version is of a whole block, made once.
            Content::Zero { .. } => (cursor / ZERO_PIECE + 1) * ZERO_PIECE,
        };
        cursor..end.min(redo.write.range.end)
    }

    /// Whether old versions of the range may be read in; else makes room.
    fn room(&mut self, range: &Range<u64>) -> bool {
        let bytes = blocks(range).count() as u64 * BLOCK;
        let memory = self.versions.memory() + self.imaging_bytes;
        if memory == 0 || memory + bytes <= self.bounds.version_bytes {
            return true;
        }
        self.stalled = true;
        self.spill();
        // What is under way ends, and then this is looked at again.
        if !self.versions.is_spilling() && self.imaging_bytes == 0 {
            // Reads that wait for room hold positions: they are begun, room or not.
            for replica in 0..self.replicas.len() {
                self.begin_queued(replica, true);
            }
        }
        false
    }

    /// Writes the next piece of a write, its old versions first.
    fn write_piece(&mut self, seq: u64, cursor: u64) {
        let Some(redo) = self.redo.get(&seq) else {
            return;
        };
        let write = redo.write.clone();
        let mut keep = 0..0;
        let mut piece = cursor..write.range.end;
        if self.needs(seq) {
            piece = self.piece(seq, cursor);
            keep = blocks(&piece);
        }
        if keep.is_empty() {
            self.overwrite(&write, piece);
        } else {
            let range = round(&piece, self.bytes);
            self.imaging_bytes += range.end - range.start;
            let token = self.task(Task::Image { seq, piece });
            self.out.jobs.push(Job::Read {
                token,
                offset: range.start,
                len: (range.end - range.start) as usize,
            });
        }
    }

    fn overwrite(&mut self, write: &Arc<Write>, piece: Range<u64>) {
        let token = self.task(Task::Write {
            seq: write.seq,
            end: piece.end,
        });
        self.out.jobs.push(match write.content {
            Content::Data(_) => Job::Write {
                token,
                write: write.clone(),
            },
            Content::Zero { unmap } => Job::Zero {
                token,
                offset: piece.start,
                len: piece.end - piece.start,
                unmap,
            },
        });
    }

    /// What is about to be overwritten was read.
    fn imaged(&mut self, seq: u64, piece: Range<u64>, result: io::Result<Vec<u8>>) {
        let range = round(&piece, self.bytes);
        self.imaging_bytes -= range.end - range.start;
        // Whoever needed it may have moved on meanwhile.
        if self.needs(seq) {
            for (i, block) in blocks(&piece).enumerate() {
                let from = i * BLOCK as usize;
                let bytes = result.as_ref().ok().and_then(|data| {
                    let to = data.len().min(from + BLOCK as usize);
                    data.get(from..to)
                });
                let image = match bytes {
                    // Whoever reads it finds what it would have found in the file.
                    None => Image::Unreadable,
                    Some(data) if data.iter().all(|b| *b == 0) => Image::Zero,
                    Some(data) => Image::Data(data.into()),
                };
                self.versions.keep(block, seq, image);
                self.stats.versions += 1;
            }
        }
        let memory = self.versions.memory();
        self.stats.version_peak = self.stats.version_peak.max(memory);
        // A failure in between: nothing more may reach the file.
        if self.failure.is_none()
            && let Some(redo) = self.redo.get(&seq)
        {
            let write = redo.write.clone();
            self.overwrite(&write, piece);
        } else {
            self.writing -= 1;
            self.out.wake = true;
        }
    }

    /// A piece of a write is in the base file, or not.
    fn written(&mut self, seq: u64, end: u64, result: io::Result<()>) {
        let Some(redo) = self.redo.get_mut(&seq) else {
            return;
        };
        if let Err(error) = result {
            self.writing -= 1;
            let (range, what) = (redo.write.range.clone(), &redo.write.content);
            let operation = match what {
                Content::Data(_) => "a write",
                Content::Zero { .. } => "zeroing",
            };
            let what = format!(
                "{operation} of {} bytes at offset {} (request {seq})",
                range.end - range.start,
                range.start
            );
            let cause = self.cause(&what, &error);
            return self.fail(cause, self.on_error == OnError::Stop);
        }
        self.dirty = true;
        self.out.wake = true;
        if end < redo.write.range.end && self.failure.is_none() {
            self.paused.push_back((seq, end));
            return self.pump();
        }
        self.writing -= 1;
        if end < redo.write.range.end {
            return;
        }
        if let Some(redo) = self.redo.remove(&seq) {
            self.redo_bytes -= redo.write.cost();
            self.redo_index.remove(seq, &redo.write.range);
            self.busy.remove(seq, &redo.busy);
        }
        self.pump();
    }

    /// R4: an `fdatasync` begins when all that was released before a flush is written, and only then the flush is complete.
    fn start_sync(&mut self) {
        if self.sync.is_some() {
            return;
        }
        let unwritten = self
            .redo
            .first_key_value()
            .map_or(u64::MAX, |(seq, _)| *seq);
        let ready = self.flushes.iter().take_while(|f| f.seq < unwritten);
        let Some(covers) = ready.last().map(|f| f.seq) else {
            return;
        };
        if self.dirty {
            self.dirty = false;
            self.sync = Some(covers);
            self.stats.syncs += 1;
            let token = self.task(Task::Sync(covers));
            self.out.jobs.push(Job::Sync { token });
        } else {
            self.durable(covers);
        }
    }

    fn durable(&mut self, covers: u64) {
        self.flushed_to = covers + 1;
        while let Some(flush) = self.flushes.front()
            && flush.seq <= covers
        {
            let ns = u64::try_from(flush.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.stats.flush_total_ns = self.stats.flush_total_ns.saturating_add(ns);
            self.stats.flush_max_ns = self.stats.flush_max_ns.max(ns);
            self.flushes.pop_front();
        }
        self.mark_flushes();
    }

    fn synced(&mut self, covers: u64, result: io::Result<()>) {
        self.sync = None;
        self.out.wake = true;
        match result {
            Ok(()) => self.durable(covers),
            Err(error) => {
                // Not tried again: the kernel may have dropped what it could not write, and would then say yes.
                let cause = self.cause("fdatasync", &error);
                self.fail(cause, self.on_error == OnError::Stop);
            }
        }
        if self.failure.is_some() {
            self.give_up_flushes();
        }
        self.pump();
    }

    fn give_up_flushes(&mut self) {
        if self.on_error == OnError::Report {
            let under_way = self.sync;
            self.flushes
                .retain(|flush| under_way.is_some_and(|covers| flush.seq <= covers));
            self.mark_flushes();
        }
    }

    /// Sends old versions to the spill file: beyond three quarters of the bound, or all when a write waits for room.
    fn spill(&mut self) {
        let target = match self.stalled {
            true => 0,
            false => self.bounds.version_bytes / 4 * 3,
        };
        if self.versions.memory() <= target {
            return;
        }
        let batch = self.versions.spill(target);
        if !batch.is_empty() {
            let token = self.task(Task::Spill);
            self.out.jobs.push(Job::Spill { token, batch });
            self.stats.spilled_peak = self.stats.spilled_peak.max(self.versions.spilled());
        }
    }

    /// The disk cannot be written any more.
    pub fn fail(&mut self, cause: String, stop: bool) {
        // The first failure is the one to tell of, unless the set has to stop only now.
        let already = self.stats.failure.is_some() && !stop;
        self.out.wake = true;
        self.writing -= self.paused.len();
        self.paused.clear();
        if self.failure.is_none() {
            self.failure = Some(cause.clone());
        }
        if stop {
            if self.on_error == OnError::Stop && self.stats.failure.is_some() {
                return;
            }
            self.on_error = OnError::Stop;
        }
        if !already {
            self.stats.failure = Some(cause.clone());
            self.out.tell.failed = Some((cause, stop));
        }
        self.give_up_flushes();
    }

    fn cause(&self, what: &str, error: &io::Error) -> String {
        let advice = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => "free space on its file system and start again",
            Some(libc::EFBIG) => "its file system takes no file of that size; move it to another",
            _ => "check the device below it (dmesg) before starting again",
        };
        format!(
            "disk {}: {what} failed in {}: {error}; {advice}: everything that was flushed before is on it",
            self.number, self.path
        )
    }

    /// Work has ended that is not a view's.
    pub fn ended(&mut self, task: Task, outcome: Outcome) {
        match (task, outcome) {
            (Task::Image { seq, piece }, Outcome::Read(result)) => self.imaged(seq, piece, result),
            (Task::Write { seq, end }, Outcome::Done(result)) => self.written(seq, end, result),
            (Task::Sync(covers), Outcome::Done(result)) => self.synced(covers, result),
            (Task::Spill, Outcome::Done(result)) => {
                self.versions.spill_ended(result.is_ok());
                self.out.wake = true;
                self.pump();
            }
            // The engine answers what it was asked.
            (Task::View(view) | Task::Fetch { view, .. }, _) => {
                let why = format!("disk {}: {}", self.number, shrunk());
                self.read_done(&view, Err(why), false);
            }
            (_, _) => {}
        }
    }
}
