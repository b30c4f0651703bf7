//! The state of one disk, and what follows from what. No I/O happens here, and nothing waits: methods change the state and
//! leave what is to be done in [`State::out`].
//!
//! A released write is in `redo` until it is in the base file. It may stay there while a replica could still read the disk as of
//! before it, so that usually no old version is needed at all. A flush, or the bound on memory, forces it out; then what it is
//! going to overwrite is read first and kept ([`super::versions`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quorate_devices::{BlockStatus, Completion, DiskPosition, Waiting};

use super::error::StoreError;
use super::extents::Extents;
use super::job::{Job, Write};
use super::log::{Basis, ReadLog};
use super::spec::{Bounds, DiskStats, OnError};
use super::task::{Flush, Out, Reader, Redo, Task, View};
use super::versions::Versions;

/// What one replica has going.
#[derive(Debug, Default)]
pub struct Replica {
    /// Not stopped.
    pub live: bool,
    /// Number of its next request.
    pub next: u64,
    /// From here on it reads the disk itself, and the past is kept for it. Before, its reads are the others' ([`super::log`]): it has
    /// begun again. `u64::MAX` while it has not caught up.
    pub own_from: u64,
    /// Where it began again. What others wrote up to here may not be released yet.
    pub joined: u64,
    /// Its writes that are not released yet.
    pub own: BTreeMap<u64, Arc<Write>>,
    /// Where they are.
    pub own_index: Extents,
    /// Its reads that it has not been told of.
    pub reads: BTreeMap<u64, Read>,
    /// Those of them that wait for room.
    pub queued: BTreeSet<u64>,
    /// Those of them whose data are not complete: they still need the past.
    pub unfinished: BTreeSet<u64>,
    /// Its flushes that it has not been told of.
    pub flushes: BTreeSet<u64>,
    /// Bytes of its reads that are under way or not taken yet.
    pub read_bytes: u64,
}

/// A read of one replica.
#[derive(Debug)]
pub struct Read {
    /// Tells it from one of the same number in a former life of the replica.
    pub id: u64,
    /// Bytes of the disk.
    pub range: Range<u64>,
    /// What its data rest on.
    pub basis: Basis,
    /// How far it is.
    pub state: ReadState,
}

/// How far a read is.
#[derive(Debug)]
pub enum ReadState {
    /// Its data are those that others got.
    Logged,
    /// Waits until earlier ones are taken.
    Queued,
    /// The base file is being read.
    Running,
    /// Complete.
    Done(Vec<u8>),
    /// It cannot be had; why.
    Failed(String),
    /// The replica has its data.
    Taken,
}

/// See the module.
pub struct State {
    pub number: u8,
    pub bytes: u64,
    pub bounds: Bounds,
    pub on_error: OnError,
    /// The base file's path, for messages.
    pub path: String,
    /// Where it all began: not at 0 if the set was saved and goes on.
    pub start: DiskPosition,
    /// Number of the next request to be released.
    pub released: u64,
    pub replicas: Vec<Replica>,
    /// What [`super::Disk::has_due`] looks at.
    pub due: Arc<[AtomicBool]>,
    pub redo: BTreeMap<u64, Redo>,
    pub redo_index: Extents,
    pub redo_bytes: u64,
    /// Released writes that have not been started, in order.
    pub waiting: VecDeque<u64>,
    /// Ranges that are being written. Overlapping writes go one after the other.
    pub busy: Extents,
    pub writing: usize,
    /// Of those, zeroes that wait for room for old versions before their next piece: request, and how far it is.
    pub paused: VecDeque<(u64, u64)>,
    /// Bytes of old versions that are being read.
    pub imaging_bytes: u64,
    pub tasks: BTreeMap<u64, Task>,
    next_token: u64,
    /// Number of the next read, of whomever.
    pub next_read: u64,
    pub epoch: u64,
    /// Flushes that are not durable yet, ascending.
    pub flushes: VecDeque<Flush>,
    /// Released flushes below this are durable.
    pub flushed_to: u64,
    /// The last flush that the `fdatasync` under way is for.
    pub sync: Option<u64>,
    /// The base file was written to since the last `fdatasync` began.
    pub dirty: bool,
    /// Writes below this may not wait for slow replicas.
    pub forced: u64,
    pub failure: Option<String>,
    pub closing: bool,
    /// Nothing is written to the base file: somebody copies it.
    pub frozen: bool,
    pub versions: Versions,
    /// The data of reads, for replicas that begin again.
    pub log: ReadLog,
    /// Reads of the log's own that are under way: number and position.
    pub log_reads: BTreeMap<u64, u64>,
    /// The oldest write waits for room for old versions.
    pub stalled: bool,
    pub stats: DiskStats,
    pub out: Out,
}

impl State {
    /// A disk that nobody has used yet.
    pub fn new(
        number: u8,
        bytes: u64,
        path: String,
        spec: &super::spec::DiskSpec,
        due: Arc<[AtomicBool]>,
    ) -> Self {
        let replicas = (0..due.len()).map(|me| Replica {
            live: me < spec.replicas,
            ..Replica::default()
        });
        let log = ReadLog::new(spec.recoverable.then_some(spec.bounds.log_bytes));
        Self {
            number,
            bytes,
            bounds: spec.bounds.clone(),
            on_error: spec.on_error,
            path,
            start: DiskPosition {
                disk: number,
                ..DiskPosition::default()
            },
            released: 0,
            replicas: replicas.collect(),
            due: due.clone(),
            redo: BTreeMap::new(),
            redo_index: Extents::default(),
            redo_bytes: 0,
            waiting: VecDeque::new(),
            busy: Extents::default(),
            writing: 0,
            paused: VecDeque::new(),
            imaging_bytes: 0,
            tasks: BTreeMap::new(),
            next_token: 0,
            next_read: 0,
            epoch: 0,
            flushes: VecDeque::new(),
            flushed_to: 0,
            sync: None,
            // What an executor that was killed left in the host's cache is read, and must not be lost afterwards.
            dirty: !spec.read_only,
            forced: 0,
            failure: None,
            closing: false,
            frozen: false,
            versions: Versions::new(spec.bounds.spill_bytes),
            log,
            log_reads: BTreeMap::new(),
            stalled: false,
            stats: DiskStats::default(),
            out: Out::default(),
        }
    }

    /// Notes work under way, and gives it a name.
    pub fn task(&mut self, task: Task) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.tasks.insert(token, task);
        token
    }

    /// The replica, if it was not stopped.
    ///
    /// # Errors
    /// If it was, or there is none of this number.
    pub fn live(&mut self, replica: usize) -> Result<&mut Replica, StoreError> {
        let disk = self.number;
        self.replicas
            .get_mut(replica)
            .filter(|r| r.live)
            .ok_or(StoreError::Stopped { disk, replica })
    }

    /// Checks that this is the replica's next request, and counts it.
    ///
    /// # Errors
    /// If it is not, or the replica has more outstanding than it may.
    pub fn number(&mut self, replica: usize, seq: u64, waits: bool) -> Result<(), StoreError> {
        let (disk, most) = (self.number, self.bounds.outstanding);
        let r = self.live(replica)?;
        if seq != r.next {
            return Err(StoreError::Order {
                disk,
                who: "was asked for",
                got: seq,
                want: r.next,
            });
        }
        if waits && r.reads.len() + r.flushes.len() >= most {
            return Err(StoreError::Request {
                disk,
                seq,
                why: "is one more than may be outstanding",
            });
        }
        r.next += 1;
        Ok(())
    }

    /// A write of a replica, before the vote. One that was released already is in everybody's past.
    pub fn own(&mut self, replica: usize, write: Arc<Write>) {
        if write.seq >= self.released
            && let Some(r) = self.replicas.get_mut(replica)
        {
            r.own_index.insert(write.seq, write.range.clone());
            r.own.insert(write.seq, write);
        }
        self.moved();
    }

    /// A flush of a replica.
    pub fn flush(&mut self, replica: usize, seq: u64) {
        if let Some(r) = self.replicas.get_mut(replica) {
            r.flushes.insert(seq);
        }
        self.mark(replica);
        self.moved();
    }

    /// A read of a replica; whether it may begin.
    pub fn read(&mut self, replica: usize, seq: u64, range: Range<u64>) -> bool {
        let most = self.bounds.read_bytes;
        let Some(r) = self.replicas.get_mut(replica) else {
            return false;
        };
        let id = self.next_read;
        self.next_read += 1;
        let len = range.end - range.start;
        // Beyond what is released a replica that begins again knows all that there is, unless it began there.
        let own = seq >= r.own_from.min(self.released) && self.released >= r.joined;
        let read = Read {
            id,
            range,
            basis: Basis::default(),
            state: match own {
                true => ReadState::Queued,
                false => ReadState::Logged,
            },
        };
        r.reads.insert(seq, read);
        if !own {
            self.want(seq);
            self.mark(replica);
            self.moved();
            return false;
        }
        r.unfinished.insert(seq);
        let begins = r.queued.is_empty() && (r.read_bytes == 0 || r.read_bytes + len <= most);
        if !begins {
            r.queued.insert(seq);
        }
        self.stats.reads += 1;
        self.stats.read_bytes += len;
        self.moved();
        begins
    }

    /// Begins a read: what of memory goes over the base file for it. From here on the versions keep its past.
    pub fn begin(&mut self, replica: usize, seq: u64) -> Option<View> {
        let r = self.replicas.get_mut(replica)?;
        let read = r.reads.get_mut(&seq)?;
        if !matches!(read.state, ReadState::Queued) {
            return None;
        }
        read.state = ReadState::Running;
        let (id, range) = (read.id, read.range.clone());
        r.read_bytes += range.end - range.start;
        r.queued.remove(&seq);
        // R6: what was released, up to this request; beyond that what the replica itself has asked for.
        let mut over: Vec<Arc<Write>> = Vec::new();
        for at in self.redo_index.touching(&range) {
            if (at < seq || !self.bounds.versions)
                && let Some(redo) = self.redo.get(&at)
            {
                over.push(redo.write.clone());
            }
        }
        let released = over.len();
        for at in r.own_index.touching(&range) {
            if at < seq
                && let Some(write) = r.own.get(&at)
            {
                over.push(write.clone());
            }
        }
        if self.log.is_on()
            && let Some(read) = r.reads.get_mut(&seq)
        {
            read.basis = Basis::new(over[released..].to_vec());
        }
        Some(View {
            reader: Reader::Replica(replica),
            seq,
            id,
            at: seq,
            range,
            over,
        })
    }

    /// Begins the reads that there is room for now.
    pub fn begin_queued(&mut self, replica: usize, regardless: bool) {
        while let Some(r) = self.replicas.get(replica)
            && let Some(&seq) = r.queued.first()
            && let Some(read) = r.reads.get(&seq)
        {
            let len = read.range.end - read.range.start;
            let room = r.read_bytes == 0 || r.read_bytes + len <= self.bounds.read_bytes;
            if !room && !regardless {
                return;
            }
            self.start_read(replica, seq);
        }
    }

    /// Has the base file read for a read.
    pub fn start_read(&mut self, replica: usize, seq: u64) {
        if let Some(view) = self.begin(replica, seq) {
            self.read_base(view);
        }
    }

    /// Has the base file read for a view.
    pub fn read_base(&mut self, view: View) {
        let (offset, len) = (view.range.start, view.range.end - view.range.start);
        let token = self.task(Task::View(view));
        self.out.jobs.push(Job::Read {
            token,
            offset,
            len: len as usize,
        });
    }

    /// Whether the view is still wanted. One of a replica's former life is not.
    pub fn is_wanted(&self, view: &View) -> bool {
        match view.reader {
            Reader::Log => self.log_reads.contains_key(&view.id),
            Reader::Replica(replica) => {
                let read = self.replicas.get(replica);
                let read = read.and_then(|r| r.reads.get(&view.seq));
                read.is_some_and(|read| {
                    read.id == view.id && matches!(read.state, ReadState::Running)
                })
            }
        }
    }

    /// A read is complete; `here` says whether on the replica's own thread, which needs no notice.
    pub fn read_done(&mut self, view: &View, result: Result<Vec<u8>, String>, here: bool) {
        let seq = view.seq;
        let Reader::Replica(replica) = view.reader else {
            return self.logged(view, result);
        };
        if !self.is_wanted(view) {
            return;
        }
        let Some(r) = self.replicas.get_mut(replica) else {
            return;
        };
        let Some(read) = r.reads.get_mut(&seq) else {
            return;
        };
        read.state = match result {
            Ok(data) => {
                self.stats.reads_at_once += u64::from(here);
                let (range, basis) = (&read.range, &read.basis);
                self.log.offer(self.released, seq, range, &data, basis);
                ReadState::Done(data)
            }
            Err(why) => {
                self.stats.read_errors += 1;
                ReadState::Failed(why)
            }
        };
        r.unfinished.remove(&seq);
        self.out.wake = true;
        self.mark(replica);
        if !here {
            self.out.tell.due |= 1 << replica;
        }
        self.bound_log();
        self.mark_logged(seq);
        self.moved();
    }

    /// How a flush ended, if it did.
    fn flush_status(&self, seq: u64) -> Option<BlockStatus> {
        if seq < self.flushed_to {
            return Some(BlockStatus::Ok);
        }
        let failed = self.failure.is_some() && self.on_error == OnError::Report;
        let under_way = self.sync.is_some_and(|covers| seq <= covers);
        (failed && seq < self.released && !under_way).then_some(BlockStatus::IoError)
    }

    /// What is complete for the replica, and what it has not been told of.
    pub fn complete(&self, replica: usize) -> Vec<Completion> {
        let Some(r) = self.replicas.get(replica) else {
            return Vec::new();
        };
        let completion = |seq, kind, status| Completion {
            disk: self.number,
            seq,
            kind,
            status,
        };
        if r.own_from == u64::MAX {
            // It leads nobody.
            return Vec::new();
        }
        let reads = r.reads.iter().filter_map(|(seq, read)| {
            let status = self.read_status(*seq, read)?;
            Some(completion(*seq, Waiting::Read, status))
        });
        let flushes = r.flushes.iter();
        let flushes = flushes.filter_map(|seq| {
            let status = self.flush_status(*seq)?;
            Some(completion(*seq, Waiting::Flush, status))
        });
        let mut all: Vec<Completion> = reads.chain(flushes).collect();
        all.sort_unstable_by_key(|c| c.seq);
        all
    }

    /// How a read ended, if it did.
    fn read_status(&self, seq: u64, read: &Read) -> Option<BlockStatus> {
        match read.state {
            ReadState::Done(_) => Some(BlockStatus::Ok),
            ReadState::Failed(_) => Some(BlockStatus::IoError),
            ReadState::Logged => self.logged_status(seq),
            ReadState::Queued | ReadState::Running | ReadState::Taken => None,
        }
    }

    /// Whether the replica has asked for something that it has not been told of.
    pub fn waits(&self, replica: usize) -> bool {
        let replica = self.replicas.get(replica);
        replica.is_some_and(|r| !r.reads.is_empty() || !r.flushes.is_empty())
    }

    /// Whether nothing is under way for the replica.
    pub fn settled(&self, replica: usize) -> bool {
        let Some(r) = self.replicas.get(replica) else {
            return true;
        };
        let ended = |(seq, read): (&u64, &Read)| {
            matches!(read.state, ReadState::Queued | ReadState::Taken)
                || self.read_status(*seq, read).is_some()
        };
        r.reads.iter().all(ended) && r.flushes.iter().all(|f| self.flush_status(*f).is_some())
    }

    /// Sets the replica's flag; whether something is complete for it.
    pub fn mark(&mut self, replica: usize) -> bool {
        let Some(r) = self.replicas.get(replica) else {
            return false;
        };
        let mut reads = r.reads.iter();
        let due = r.own_from != u64::MAX
            && (reads.any(|(seq, read)| self.read_status(*seq, read).is_some())
                || r.flushes.iter().any(|f| self.flush_status(*f).is_some()));
        if let Some(flag) = self.due.get(replica) {
            flag.store(due, Ordering::Release);
        }
        due
    }

    /// Flushes have ended: all who wait for one are told.
    pub fn mark_flushes(&mut self) {
        for replica in 0..self.replicas.len() {
            if self.mark(replica) {
                self.out.tell.due |= 1 << replica;
            }
        }
    }

    /// The oldest position from which a replica may still read: its own, or that of a read under way. Of one that begins again,
    /// what is before `own_from` is in the log.
    pub fn oldest(&self) -> u64 {
        let live = self.replicas.iter().filter(|r| r.live);
        let oldest = |r: &Replica| {
            let next = r.next.max(r.own_from);
            r.unfinished.first().map_or(next, |at| next.min(*at))
        };
        let logged = self.log_reads.values().copied();
        live.map(oldest).chain(logged).min().unwrap_or(u64::MAX)
    }

    /// Whether somebody may read the disk as of before this write.
    pub fn needs(&self, seq: u64) -> bool {
        self.bounds.versions && self.oldest() <= seq
    }

    /// Somebody's position has changed: old versions may go, writes that waited may start.
    pub fn moved(&mut self) {
        if !self.versions.is_empty() {
            self.versions.forget(self.oldest());
        }
        self.pump();
    }

    /// Stops a replica: it needs nothing any more.
    pub fn retire(&mut self, replica: usize) {
        if let Some(r) = self.replicas.get_mut(replica) {
            *r = Replica {
                next: r.next,
                ..Replica::default()
            };
        }
        self.out.wake = true;
        self.mark(replica);
        self.moved();
    }

    /// The replica was told of a request: it is forgotten, if there is one of this number and kind (R4, R9; see [`Completion`]).
    pub fn delivered(&mut self, replica: usize, seq: u64, kind: Waiting) {
        let Some(r) = self.replicas.get_mut(replica) else {
            return;
        };
        if kind == Waiting::Flush {
            r.flushes.remove(&seq);
        } else if kind == Waiting::Read
            && let Some(read) = r.reads.remove(&seq)
        {
            self.log.told(seq);
            if matches!(
                read.state,
                ReadState::Running | ReadState::Done(_) | ReadState::Failed(_)
            ) {
                r.read_bytes -= read.range.end - read.range.start;
            }
            r.queued.remove(&seq);
            r.unfinished.remove(&seq);
            self.begin_queued(replica, false);
        }
    }

    /// Hands over the data of a read.
    pub fn take(&mut self, replica: usize, seq: u64) -> Take {
        let disk = self.number;
        let Some(r) = self.replicas.get_mut(replica).filter(|r| r.live) else {
            return Take::Never(format!("disk {disk}: replica {replica} is stopped"));
        };
        let Some(read) = r.reads.get_mut(&seq) else {
            return Take::Never(format!(
                "disk {disk}: replica {replica} did not ask for read {seq}"
            ));
        };
        match std::mem::replace(&mut read.state, ReadState::Taken) {
            ReadState::Logged => {
                read.state = ReadState::Logged;
                let range = read.range.clone();
                self.take_logged(replica, seq, &range)
            }
            ReadState::Done(data) => {
                r.read_bytes -= data.len() as u64;
                self.begin_queued(replica, false);
                self.mark(replica);
                Take::Data(data)
            }
            ReadState::Failed(why) => {
                let again = why.clone();
                read.state = ReadState::Failed(why);
                Take::Never(again)
            }
            ReadState::Taken => Take::Never(format!("disk {disk}: read {seq} was taken already")),
            ReadState::Running => {
                read.state = ReadState::Running;
                Take::Wait
            }
            // Whoever led was told of it already, so it cannot wait for those before it.
            ReadState::Queued => {
                read.state = ReadState::Queued;
                self.start_read(replica, seq);
                Take::Wait
            }
        }
    }
}

/// What [`State::take`] says.
pub enum Take {
    /// The data.
    Data(Vec<u8>),
    /// There are none, and there will be none; why.
    Never(String),
    /// Not yet.
    Wait,
}
