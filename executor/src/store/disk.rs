//! One disk, as replicas, voter and I/O threads see it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

use quorate_devices::{
    BlockOp, BlockRequest, Completion, DiskPosition, MAX_IO_BYTES, SECTOR, Waiting,
};

use super::core::{Core, Notify};
use super::error::StoreError;
use super::file::{Base, Faults};
use super::flow::Released;
use super::job::{Content, Engine, Spill, Write};
use super::log::Logged;
use super::spec::{Backend, DiskSpec, DiskStats};
use super::state::{State, Take};
use super::threads::Threads;
use super::uring::Uring;
use crate::sync::lock;

/// Threads of the portable backend, per disk: one may be in an `fdatasync`, others write and read meanwhile.
const WORKERS: usize = 4;
/// Most replicas, from the start and joined later.
pub const MAX_REPLICAS: usize = quorate_voter::MAX_REPLICAS;

/// One disk.
pub struct Disk {
    pub(super) core: Arc<Core>,
}

impl Disk {
    /// The disk's number.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.core.number
    }

    /// Opens the base file of disk `number` and starts its I/O threads.
    ///
    /// # Errors
    /// When the file is not there, of another size, or in use; or the backend cannot be had.
    pub fn open(
        number: u8,
        spec: DiskSpec,
        backend: Backend,
        notify: Notify,
    ) -> Result<Arc<Self>, StoreError> {
        Self::open_with(number, &spec, notify, None, |core| {
            engine(core, backend).map_err(|source| StoreError::File {
                path: spec.path.clone(),
                action: "its I/O cannot be started",
                source,
            })
        })
    }

    pub(super) fn open_with(
        number: u8,
        spec: &DiskSpec,
        notify: Notify,
        faults: Option<Arc<dyn Faults>>,
        engine: impl FnOnce(&Arc<Core>) -> Result<Box<dyn Engine>, StoreError>,
    ) -> Result<Arc<Self>, StoreError> {
        let base = Base::open(&spec.path, spec.bytes, spec.read_only, faults)?;
        let due: Arc<[AtomicBool]> = (0..MAX_REPLICAS).map(|_| AtomicBool::new(false)).collect();
        let path = spec.path.display().to_string();
        let state = State::new(number, spec.bytes, path, spec, due.clone());
        let core = Arc::new(Core {
            number,
            name: spec.name.clone(),
            spill: Spill::beside(&base),
            base,
            state: Mutex::new(state),
            changed: Condvar::new(),
            due,
            notify,
            engine: OnceLock::new(),
        });
        let engine = engine(&core)?;
        // Nobody else has it yet.
        let _ = core.engine.set(engine);
        Ok(Arc::new(Self { core }))
    }

    /// A replica asks for something, in the order of the numbers, before it casts its ballot. Does no I/O that could wait:
    /// a read whose data are in the host's cache is complete at once, any other is begun. May wait at
    /// [`super::Bounds::unwritten_bytes`].
    ///
    /// # Errors
    /// When the request is not the replica's next, is none that the device lets through, is one too many, or the replica is stopped.
    pub fn submit(&self, replica: usize, request: &BlockRequest) -> Result<(), StoreError> {
        let seq = request.seq;
        self.check(request)?;
        match &request.op {
            BlockOp::Read { sector, bytes } => {
                self.submit_read(replica, seq, read_range(*sector, *bytes))
            }
            BlockOp::Flush => self.core.act(|state| {
                state.number(replica, seq, true)?;
                state.flush(replica, seq);
                Ok(())
            }),
            BlockOp::Write { .. } | BlockOp::Discard { .. } | BlockOp::WriteZeroes { .. } => {
                let write = match self.wait_for_room(replica, seq) {
                    Room::Past => None,
                    Room::Shared(write) if is_same(&write, &request.op) => Some(write),
                    Room::Shared(_) | Room::Free => write_of(request.clone()),
                };
                self.core.act(|state| {
                    state.number(replica, seq, false)?;
                    match write {
                        Some(write) => state.own(replica, write),
                        // Nothing to keep, but a step ahead.
                        None => state.moved(),
                    }
                    Ok(())
                })
            }
        }
    }

    /// The device has refused what is checked here, so this is about the executor itself (and about R9, in depth).
    fn check(&self, request: &BlockRequest) -> Result<(), StoreError> {
        let (sector, bytes, writes) = match &request.op {
            BlockOp::Read { sector, bytes } => (*sector, u64::from(*bytes), false),
            BlockOp::Write { sector, data } => (*sector, data.len() as u64, true),
            BlockOp::Flush => return Ok(()),
            BlockOp::Discard { sector, sectors }
            | BlockOp::WriteZeroes {
                sector, sectors, ..
            } => (*sector, u64::from(*sectors) * SECTOR, true),
        };
        let moves = matches!(request.op, BlockOp::Read { .. } | BlockOp::Write { .. });
        let end = sector
            .checked_mul(SECTOR)
            .and_then(|s| s.checked_add(bytes));
        let why = if end.is_none_or(|end| end > self.core.base.bytes()) {
            "goes beyond the end of the disk"
        } else if !bytes.is_multiple_of(SECTOR) || (moves && bytes > u64::from(MAX_IO_BYTES)) {
            "is of a length that is not possible"
        } else if writes && self.core.read_only() {
            "writes to a disk that is read-only"
        } else {
            return Ok(());
        };
        Err(StoreError::Request {
            disk: self.core.number,
            seq: request.seq,
            why,
        })
    }

    fn submit_read(&self, replica: usize, seq: u64, range: Range<u64>) -> Result<(), StoreError> {
        let len = (range.end - range.start) as usize;
        let begun = self.core.act(|state| {
            state.number(replica, seq, true)?;
            let begins = state.read(replica, seq, range.clone());
            Ok(begins.then(|| state.begin(replica, seq)).flatten())
        })?;
        let Some(view) = begun else {
            return Ok(());
        };
        let mut buffer = vec![0; len];
        // What memory covers alone needs no file.
        let covers = |w: &Arc<Write>| w.range.start <= range.start && w.range.end >= range.end;
        if len == 0
            || view.over.iter().any(covers)
            || self.core.base.read_now(&mut buffer, range.start)
        {
            let jobs = self.core.assemble(view, buffer, true);
            self.core.start(jobs);
        } else {
            self.core.act(|state| state.read_base(view));
        }
        Ok(())
    }

    /// The bound on memory: whoever is ahead of the vote waits until the base file has caught up. A replica that is behind adds nothing,
    /// and must get on, since it may be what the others wait for.
    fn wait_for_room(&self, replica: usize, seq: u64) -> Room {
        let mut state = lock(&self.core.state);
        let full = |state: &State| {
            seq >= state.released
                && state.redo_bytes >= state.bounds.unwritten_bytes
                && state.failure.is_none()
                && !state.closing
                && state.replicas.get(replica).is_some_and(|r| r.live)
        };
        if full(&state) {
            state.stats.waits += 1;
        }
        while full(&state) {
            state = self
                .core
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if seq < state.released {
            return Room::Past;
        }
        let another = state.replicas.iter().find_map(|r| r.own.get(&seq).cloned());
        another.map_or(Room::Free, Room::Shared)
    }

    /// Whether something is complete for the replica that no entry has told it yet.
    #[must_use]
    pub fn has_due(&self, replica: usize) -> bool {
        let flag = self.core.due.get(replica);
        flag.is_some_and(|flag| flag.load(Ordering::Acquire))
    }

    /// Whether the replica has asked for something that it has not been told of.
    #[must_use]
    pub fn waits(&self, replica: usize) -> bool {
        lock(&self.core.state).waits(replica)
    }

    /// Whether nothing is under way for the replica: of what it was not told of, everything is complete, or waits until earlier reads
    /// are taken.
    #[must_use]
    pub fn settled(&self, replica: usize) -> bool {
        lock(&self.core.state).settled(replica)
    }

    /// What is complete for the replica and not delivered yet: its reads that are done, and its flushes that are durable; ascending.
    #[must_use]
    pub fn due(&self, replica: usize) -> Vec<Completion> {
        lock(&self.core.state).complete(replica)
    }

    /// The replica was given these completions (those of other disks are passed over), and has taken what it wanted.
    pub fn delivered(&self, replica: usize, completions: &[Completion]) {
        let disk = self.core.number;
        if !completions.iter().any(|c| c.disk == disk) {
            return;
        }
        self.core.act(|state| {
            for completion in completions.iter().filter(|c| c.disk == disk) {
                state.delivered(replica, completion.seq, completion.kind);
            }
            state.mark(replica);
            state.moved();
        });
    }

    /// The data of a read that an entry calls complete. Waits for them, if the replica that led was faster.
    ///
    /// # Errors
    /// Why there are none.
    pub fn take(&self, replica: usize, seq: u64) -> Result<Vec<u8>, String> {
        loop {
            match self.core.act(|state| state.take(replica, seq)) {
                Take::Data(data) => return Ok(data),
                Take::Never(why) => return Err(why),
                Take::Wait => {}
            }
            let mut state = lock(&self.core.state);
            while state.must_wait(replica, seq) {
                state = self
                    .core
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// The voter released a request. Called in the order of the numbers, by one thread at a time. Does not wait.
    pub fn release(&self, request: BlockRequest) {
        let seq = request.seq;
        let flush = request.op == BlockOp::Flush;
        let what = match self.check(&request) {
            Ok(()) if flush => Released::Flush,
            Ok(()) => {
                let read = match request.op {
                    BlockOp::Read { sector, bytes } => Some(read_range(sector, bytes)),
                    _ => None,
                };
                let other = read.map_or(Released::Nothing, Released::Read);
                write_of(request).map_or(other, Released::Write)
            }
            // `submit` lets nothing like this through to the vote.
            Err(error) => {
                let cause = format!("{error}, and was released; this is a defect of the executor");
                return self.core.act(|state| state.fail(cause, true));
            }
        };
        self.core.act(|state| {
            if !state.closing {
                state.release(seq, what);
            }
        });
    }

    /// The replica was stopped: what it has going is forgotten, and who waits for it gets an error.
    pub fn retire(&self, replica: usize) {
        self.core.act(|state| state.retire(replica));
    }

    /// A replica that was retired, or a new one, is live from this position on. It is *recovering*: what it asks for that was released
    /// already is numbered and otherwise nothing, its reads get what the others got ([`Disk::take`] waits for it), and
    /// [`Disk::due`] offers nothing. What it asks for that the vote has not decided is its own, as always.
    /// A new replica's position is [`Disk::start`].
    ///
    /// # Errors
    /// When it is not retired, reads that it would need are forgotten, the position is none of this disk, or recovery is off.
    pub fn rejoin(&self, replica: usize, position: &DiskPosition) -> Result<(), StoreError> {
        let (reads, flushes) = self.outstanding(position)?;
        self.core
            .act(|state| state.rejoin(replica, position, reads, flushes))
    }

    /// What a position says is outstanding, checked.
    fn outstanding(&self, position: &DiskPosition) -> Result<Waiters, StoreError> {
        let mut reads = Vec::new();
        let mut flushes = BTreeSet::new();
        for outstanding in &position.outstanding {
            let (seq, bytes) = (outstanding.seq, outstanding.bytes);
            let sector = outstanding.sector;
            let end = sector.checked_mul(SECTOR);
            let end = end.and_then(|start| start.checked_add(bytes.into()));
            let wrong = |why| StoreError::Position {
                disk: self.core.number,
                seq,
                why,
            };
            if seq >= position.next {
                return Err(wrong("is not before its next one"));
            }
            match outstanding.kind {
                Waiting::Read if end.is_none_or(|end| end > self.core.base.bytes()) => {
                    return Err(wrong("goes beyond the end of the disk"));
                }
                Waiting::Read => reads.push((seq, read_range(sector, bytes))),
                Waiting::Flush => {
                    flushes.insert(seq);
                }
                // No disk of a lockstep set has such.
                Waiting::Write => return Err(wrong("is a write, which nobody waits for")),
            }
        }
        Ok((reads, flushes))
    }

    /// The set goes on from where it was saved: all replicas stand here, everything before it is released and on stable storage.
    /// To be called before anything else.
    ///
    /// # Errors
    /// When the position is none of this disk.
    pub fn begin_at(&self, position: &DiskPosition) -> Result<(), StoreError> {
        let (reads, flushes) = self.outstanding(position)?;
        self.core
            .act(|state| state.begin_at(position, reads, flushes));
        Ok(())
    }

    /// Where the set began.
    #[must_use]
    pub fn start(&self) -> DiskPosition {
        lock(&self.core.state).start.clone()
    }

    /// Brings the base file to all that was released, on stable storage, and leaves it as it is until [`Disk::thaw`]: it can be
    /// copied. What is released meanwhile waits in memory, bounded as always, and flushes wait for it.
    ///
    /// # Errors
    /// When something could not be written, now or earlier.
    pub fn freeze(&self) -> Result<(), StoreError> {
        self.core.freeze()
    }

    /// The base file is written again.
    pub fn thaw(&self) {
        self.core.thaw();
    }

    /// The replica has caught up: what is not released yet it reads itself from now on, the past is kept for it as for everybody, and
    /// it may lead.
    pub fn promote(&self, replica: usize) {
        self.core.act(|state| state.promote(replica));
    }

    /// The data of a read, if they are kept and the vote has passed everything that they rest on.
    #[must_use]
    pub fn logged(&self, seq: u64) -> Option<Arc<[u8]>> {
        match lock(&self.core.state).log.get(seq) {
            Some((_, Logged::Here(data))) => Some(data.clone()),
            _ => None,
        }
    }

    /// Forgets the data of reads below `below`: no checkpoint goes back that far ([`DiskPosition::first`]). Those that
    /// a replica still waits for or comes to stay: its next checkpoint may be there.
    pub fn forget_reads(&self, below: u64) {
        self.core.act(|state| state.forget_reads(below));
    }

    /// Bytes of reads that are kept. The bound is [`super::Bounds::log_bytes`].
    #[must_use]
    pub fn logged_bytes(&self) -> u64 {
        lock(&self.core.state).log.bytes()
    }

    /// The first request whose read is kept: positions whose [`DiskPosition::first`] is before it are of no use any more.
    #[must_use]
    pub fn logged_from(&self) -> u64 {
        lock(&self.core.state).log.from()
    }

    /// Writes everything that was released, puts it on stable storage, and lets go of the file. The replicas are done with it.
    /// What the voter releases from now on is not written.
    ///
    /// # Errors
    /// When something could not be written, now or earlier.
    pub fn close(&self) -> Result<(), StoreError> {
        self.core.close()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> DiskStats {
        let state = lock(&self.core.state);
        let mut stats = state.stats.clone();
        stats.name = self.core.name.clone();
        stats.backend = self.core.engine.get().map_or("", |e| e.name());
        stats.unwritten_bytes = state.redo_bytes;
        stats.version_bytes = state.versions.memory();
        stats.spilled_bytes = state.versions.spilled();
        stats.logged_bytes = state.log.bytes();
        stats.logged_from = state.log.from();
        stats
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Without a `close` this is as if the process had been killed, except that the threads end.
        if let Some(engine) = self.core.engine.get() {
            engine.stop();
        }
    }
}

/// What is outstanding: reads with their numbers and places, and flushes.
type Waiters = (Vec<(u64, Range<u64>)>, BTreeSet<u64>);

/// What a replica's write finds.
enum Room {
    /// It was released already: it is in everybody's past, and need not be kept.
    Past,
    /// Another replica has one of this number. If it says the same, one copy is enough for both.
    Shared(Arc<Write>),
    /// It is the first.
    Free,
}

fn is_same(write: &Write, op: &BlockOp) -> bool {
    match (&write.content, op) {
        (Content::Data(ours), BlockOp::Write { sector, data }) => {
            write.range.start == sector * SECTOR && ours == data
        }
        _ => false,
    }
}

/// The bytes of the disk that a read is of, which lies within it.
fn read_range(sector: u64, bytes: u32) -> Range<u64> {
    let start = sector * SECTOR;
    start..start + u64::from(bytes)
}

/// The request as a write, if it is one and not empty.
fn write_of(request: BlockRequest) -> Option<Arc<Write>> {
    let (sector, len, content) = match request.op {
        BlockOp::Read { .. } | BlockOp::Flush => return None,
        BlockOp::Write { sector, data } => (sector, data.len() as u64, Content::Data(data)),
        BlockOp::Discard { sector, sectors } => (
            sector,
            u64::from(sectors) * SECTOR,
            Content::Zero { unmap: true },
        ),
        BlockOp::WriteZeroes {
            sector,
            sectors,
            unmap,
        } => (sector, u64::from(sectors) * SECTOR, Content::Zero { unmap }),
    };
    let start = sector * SECTOR;
    (len > 0).then(|| {
        Arc::new(Write {
            seq: request.seq,
            range: start..start + len,
            content,
        })
    })
}

pub(super) fn engine(core: &Arc<Core>, backend: Backend) -> std::io::Result<Box<dyn Engine>> {
    match backend {
        Backend::Threads => Ok(Box::new(Threads::start(core, WORKERS)?)),
        Backend::Uring => Ok(Box::new(Uring::start(core)?)),
        // Containers often forbid it, and old kernels lack it.
        Backend::Auto => match Uring::start(core) {
            Ok(uring) => Ok(Box::new(uring)),
            Err(_) => engine(core, Backend::Threads),
        },
    }
}
