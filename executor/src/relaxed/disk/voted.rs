//! One disk, as replicas and I/O threads see it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, TryLockError};
use std::thread::JoinHandle;
use std::time::Instant;

use quorate_devices::{
    BlockOp, BlockRequest, BlockStatus, Completion, MAX_IO_BYTES, SECTOR, Waiting,
};
use quorate_voter::ReplicaId;
use quorate_voter::relaxed::{BlockLimits, BlockMatcher, Digest, Digester, Voters};

use super::spec::{Mode, RelaxedNotice, RelaxedSpec, RelaxedStats};
use super::state::{Content, Out, Read, Replica, State};
use super::threads;
use super::view::{BLOCK, Bytes, Pool, View, blocks};
use crate::store::{Base, Spill, StoreError};
use crate::sync::lock;

/// So much of a range of zeroes goes to the base file at a time.
const ZERO_PIECE: u64 = 1 << 20;

/// What is called when something happens that somebody may wait for.
pub type NotifyRelaxed = Arc<dyn Fn(RelaxedNotice) + Send + Sync>;

/// What replicas and threads share.
pub(super) struct Core {
    pub number: u8,
    pub spec: RelaxedSpec,
    pub base: Base,
    pub pool: Arc<Pool>,
    pub digester: Option<Digester>,
    pub zero: Digest,
    /// Readers of the base file share it while they put a view together; who writes to it has it alone. Taken before `state`.
    pub io: RwLock<()>,
    pub state: Mutex<State>,
    /// Something to write, to sync or to tell.
    pub work: Condvar,
    /// Something to read.
    pub reads: Condvar,
    /// Something has become quiet.
    pub quiet: Condvar,
    pub due: Arc<[AtomicBool]>,
    pub notify: NotifyRelaxed,
    pub started: Instant,
}

/// One disk of a relaxed set. See the module above.
pub struct RelaxedDisk {
    pub(super) core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl RelaxedDisk {
    /// Opens the base file of disk `number` and starts its threads. A private disk's file is only read.
    ///
    /// # Errors
    /// When the file is not there, of another size, or in use; or there is no thread.
    pub fn open(
        number: u8,
        spec: RelaxedSpec,
        voters: &Voters,
        notify: NotifyRelaxed,
    ) -> Result<Arc<Self>, StoreError> {
        let reads_only = spec.read_only || spec.mode == Mode::Private;
        let base = Base::open(&spec.path, spec.bytes, reads_only, None)?;
        Self::open_on(number, spec, voters, notify, base)
    }

    pub(super) fn open_on(
        number: u8,
        spec: RelaxedSpec,
        voters: &Voters,
        notify: NotifyRelaxed,
        base: Base,
    ) -> Result<Arc<Self>, StoreError> {
        let count = voters.len();
        let matcher = match spec.mode {
            Mode::Private => None,
            Mode::Vote(unconfirmed) => Some(BlockMatcher::new(
                voters,
                BlockLimits {
                    unconfirmed,
                    patience_ns: u64::try_from(spec.patience.as_nanos()).unwrap_or(u64::MAX),
                    ahead: spec.bounds.ahead_sectors,
                    ..BlockLimits::default()
                },
            )),
        };
        // One replica alone has nobody to be compared with.
        let digester = matcher.as_ref().filter(|_| count > 1);
        let digester = digester.map(BlockMatcher::digester);
        let zero = digester
            .as_ref()
            .map_or(Digest::NONE, |d| d.of(&[0; SECTOR as usize]));
        let bounds = &spec.bounds;
        let pool = Pool::new(Spill::beside(&base), bounds.view_bytes, bounds.spill_bytes);
        let due: Arc<[AtomicBool]> = (0..count).map(|_| AtomicBool::new(false)).collect();
        let replica = || Replica {
            live: true,
            why: String::new(),
            next: 0,
            view: View::new(&pool),
            reads: BTreeMap::new(),
            flushes: BTreeMap::new(),
        };
        let state = State {
            number,
            waits: match spec.sync {
                true => "write or flush",
                false => "flush",
            },
            name: spec.name.clone(),
            on_error: spec.on_error,
            matcher,
            replicas: std::iter::repeat_with(replica).take(count).collect(),
            snapshots: BTreeMap::new(),
            next_id: 0,
            redo: VecDeque::new(),
            redo_bytes: 0,
            unwritten: HashMap::new(),
            released: 0,
            written: 0,
            synced: 0,
            syncs: VecDeque::new(),
            begin: VecDeque::new(),
            failure: None,
            stop: false,
            stats: RelaxedStats::default(),
            out: Out::default(),
            due: due.clone(),
            told_ns: None,
            starved: 0,
        };
        let core = Arc::new(Core {
            number,
            spec,
            base,
            pool,
            digester,
            zero,
            io: RwLock::new(()),
            state: Mutex::new(state),
            work: Condvar::new(),
            reads: Condvar::new(),
            quiet: Condvar::new(),
            due,
            notify,
            started: Instant::now(),
        });
        let disk = Arc::new(Self {
            core: core.clone(),
            threads: Mutex::default(),
        });
        let threads = threads::start(&core).map_err(|source| StoreError::File {
            path: core.base.path().to_owned(),
            action: "its I/O cannot be started",
            source,
        })?;
        *lock(&disk.threads) = threads;
        Ok(disk)
    }

    /// The disk's number.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.core.number
    }

    /// A replica asks for something, in the order of the numbers. Does not wait for the vote: a write is the replica's own from here on,
    /// a read whose data are in memory is complete at once, any other is begun.
    ///
    /// # Errors
    /// When the request is none that the device lets through, is one too many, or the replica is stopped: it has to be stopped then.
    pub fn submit(&self, replica: usize, request: &BlockRequest) -> Result<(), StoreError> {
        let (seq, core) = (request.seq, &*self.core);
        self.check(request)?;
        match &request.op {
            BlockOp::Read { sector, bytes } => {
                let start = sector * SECTOR;
                self.read(replica, seq, start..start + u64::from(*bytes))
            }
            BlockOp::Flush => {
                let now_ns = core.now_ns();
                let mut state = self.number_of(replica, seq, true)?;
                state.begin_wait(replica, seq, Waiting::Flush, now_ns);
                core.work.notify_one();
                Ok(())
            }
            BlockOp::Write { sector, data } => {
                // A copy: the request goes to others, too.
                let content = Content::Data(data.clone());
                let start = sector * SECTOR;
                self.write(replica, seq, start..start + data.len() as u64, &content)
            }
            BlockOp::WriteZeroes {
                sector,
                sectors,
                unmap,
            } => {
                let start = sector * SECTOR;
                let end = start + u64::from(*sectors) * SECTOR;
                self.write(replica, seq, start..end, &Content::Zero { unmap: *unmap })
            }
            BlockOp::Discard { .. } => {
                // A hint. To take it would be a write that replicas have to agree on, of what nobody needs.
                let mut state = self.number_of(replica, seq, false)?;
                state.stats.discards += 1;
                Ok(())
            }
        }
    }

    /// The state, if this is the replica's next request.
    fn number_of(
        &self,
        replica: usize,
        seq: u64,
        waits: bool,
    ) -> Result<std::sync::MutexGuard<'_, State>, StoreError> {
        let disk = self.core.number;
        let mut state = lock(&self.core.state);
        let most = self.core.spec.bounds.outstanding;
        let Some(r) = state.replicas.get_mut(replica) else {
            return Err(StoreError::Stopped { disk, replica });
        };
        if !r.live {
            return match r.why.is_empty() {
                true => Err(StoreError::Stopped { disk, replica }),
                false => Err(StoreError::Failed(r.why.clone())),
            };
        }
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
                why: "is one more than the guest may wait for",
            });
        }
        r.next += 1;
        Ok(state)
    }

    /// The device has refused what is checked here (R9, in depth).
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
        } else if writes && self.core.spec.read_only {
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

    fn write(
        &self,
        replica: usize,
        seq: u64,
        range: Range<u64>,
        content: &Content,
    ) -> Result<(), StoreError> {
        let core = &*self.core;
        // Before the lock: this is where the time goes.
        let digests: Vec<Digest> = match (&core.digester, content) {
            (Some(digester), Content::Data(data)) => data
                .chunks_exact(SECTOR as usize)
                .map(|sector| digester.of(sector))
                .collect(),
            _ => vec![core.zero],
        };
        let mut state = self.number_of(replica, seq, core.spec.sync)?;
        state.stats.written_bytes += range.end - range.start;
        for (block, mask) in blocks(&range) {
            let bytes = block_of(block, &range, content);
            let mut put = state.replicas[replica].view.put(block, mask, &bytes);
            if put.is_err() && state.give_up_snapshots() {
                put = state.replicas[replica].view.put(block, mask, &bytes);
            }
            if let Err(error) = put {
                let cause = state.no_room(replica, &error);
                state.retire(replica, cause.clone());
                core.work.notify_one();
                return Err(StoreError::Failed(cause));
            }
        }
        let now_ns = core.now_ns();
        let pieces: Vec<Range<u64>> = match content {
            Content::Data(_) => vec![range],
            Content::Zero { .. } => (range.start..range.end)
                .step_by(ZERO_PIECE as usize)
                .map(|at| at..(at + ZERO_PIECE).min(range.end))
                .collect(),
        };
        for piece in pieces {
            if let Err(cause) = state.vote(replica, &piece, content, &digests, now_ns) {
                let cause = format!("disk {}: {cause}", state.name);
                state.retire(replica, cause.clone());
                core.work.notify_one();
                return Err(StoreError::Failed(cause));
            }
        }
        if core.spec.sync {
            state.begin_wait(replica, seq, Waiting::Write, now_ns);
            // It may be judged before any other is.
            core.work.notify_one();
        } else if !state.redo.is_empty() || !state.syncs.is_empty() || state.out.due != 0 {
            core.work.notify_one();
        }
        Ok(())
    }

    fn read(&self, replica: usize, seq: u64, range: Range<u64>) -> Result<(), StoreError> {
        let core = &*self.core;
        let mut state = self.number_of(replica, seq, true)?;
        state.stats.reads += 1;
        let mut buffer = vec![0; (range.end - range.start) as usize];
        let covers = state.replicas[replica].view.covers(&range);
        drop(state);
        // Nobody writes the base file while it is read and the view put over it.
        let io = match core.io.try_read() {
            Ok(io) => Some(io),
            Err(TryLockError::Poisoned(io)) => Some(io.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let now = covers || io.is_some() && core.base.read_now(&mut buffer, range.start);
        let mut state = lock(&core.state);
        let id = state.next_id;
        state.next_id += 1;
        let r = &mut state.replicas[replica];
        // What a view covers it still covers, unless it has become the base file's content since.
        let now = now && (io.is_some() || r.view.covers(&range));
        let done = match now {
            true => match r.view.patch(range.start, &mut buffer) {
                Ok(()) => Some(Ok(buffer)),
                Err(error) => Some(Err(error.to_string())),
            },
            false => None,
        };
        if !r.live {
            return Ok(());
        }
        let begins = done.is_none();
        let read = Read { done, id };
        r.reads.insert(seq, read);
        if begins {
            state.begin.push_back((replica, seq, id, range));
            core.reads.notify_one();
        } else {
            state.stats.reads_at_once += 1;
            state.mark(replica);
        }
        Ok(())
    }

    /// What the appliance calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core.spec.name
    }

    /// Whether something was released to it since it was opened. Never true of a private disk.
    #[must_use]
    pub fn is_written(&self) -> bool {
        lock(&self.core.state).released > 0
    }

    /// Whether something is complete for the replica that it has not been told.
    #[must_use]
    pub fn has_due(&self, replica: usize) -> bool {
        let flag = self.core.due.get(replica);
        flag.is_some_and(|flag| flag.load(Ordering::Acquire))
    }

    /// Whether the replica has asked for something that it has not been told of.
    #[must_use]
    pub fn waits(&self, replica: usize) -> bool {
        let state = lock(&self.core.state);
        let r = state.replicas.get(replica);
        r.is_some_and(|r| !r.reads.is_empty() || !r.flushes.is_empty())
    }

    /// Whether nothing is under way for the replica: whatever it was not told of is complete.
    #[must_use]
    pub fn settled(&self, replica: usize) -> bool {
        let state = lock(&self.core.state);
        state.replicas.get(replica).is_none_or(|r| {
            r.reads.values().all(|read| read.done.is_some())
                && r.flushes.values().all(|flush| flush.done.is_some())
        })
    }

    /// Whether the replica should write more: it is not too far ahead of the others, nor all of them of the base file. When there is
    /// room again after this has said no, there is a [`RelaxedNotice::Due`].
    #[must_use]
    pub fn has_room(&self, replica: usize) -> bool {
        let mut state = lock(&self.core.state);
        let room = state.redo_bytes < self.core.spec.bounds.unwritten_bytes
            && state
                .matcher
                .as_ref()
                .is_none_or(|m| m.has_room(ReplicaId(replica as u8)));
        if !room {
            state.starved |= 1 << replica;
        }
        room
    }

    /// What is complete for the replica and not delivered yet; ascending.
    #[must_use]
    pub fn due(&self, replica: usize) -> Vec<Completion> {
        if !self.has_due(replica) {
            return Vec::new();
        }
        let state = lock(&self.core.state);
        let Some(r) = state.replicas.get(replica) else {
            return Vec::new();
        };
        let reads = r.reads.iter().filter_map(|(seq, read)| {
            let status = match read.done.as_ref()? {
                Ok(_) => BlockStatus::Ok,
                Err(_) => BlockStatus::IoError,
            };
            Some((*seq, Waiting::Read, status))
        });
        let flushes = r
            .flushes
            .iter()
            .filter_map(|(seq, flush)| Some((*seq, flush.kind, flush.done?)));
        let mut all: Vec<Completion> = reads
            .chain(flushes)
            .map(|(seq, kind, status)| Completion {
                disk: self.core.number,
                seq,
                kind,
                status,
            })
            .collect();
        all.sort_unstable_by_key(|c| c.seq);
        all
    }

    /// The replica was given these completions (those of other disks are passed over), and has taken what it wanted.
    pub fn delivered(&self, replica: usize, completions: &[Completion]) {
        let mut state = lock(&self.core.state);
        let Some(r) = state.replicas.get_mut(replica) else {
            return;
        };
        for completion in completions.iter().filter(|c| c.disk == self.core.number) {
            match completion.kind {
                Waiting::Read => drop(r.reads.remove(&completion.seq)),
                Waiting::Flush | Waiting::Write => drop(r.flushes.remove(&completion.seq)),
            }
        }
        state.mark(replica);
    }

    /// The data of a read that is complete.
    ///
    /// # Errors
    /// Why there are none.
    pub fn take(&self, replica: usize, seq: u64) -> Result<Vec<u8>, String> {
        let mut state = lock(&self.core.state);
        let r = state.replicas.get_mut(replica);
        let found = r.and_then(|r| match r.reads.get(&seq)?.done {
            Some(_) => r.reads.remove(&seq)?.done,
            None => None,
        });
        state.mark(replica);
        let disk = self.core.number;
        found.unwrap_or_else(|| Err(format!("read {seq} of disk {disk} is not complete")))
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> RelaxedStats {
        lock(&self.core.state).stats.clone()
    }

    /// Writes everything that was released, puts it on stable storage, and lets go of the file. The replicas are done with it.
    ///
    /// # Errors
    /// When something could not be written, now or earlier.
    pub fn close(&self) -> Result<(), StoreError> {
        let core = &*self.core;
        let mut state = lock(&core.state);
        state.stop = true;
        core.work.notify_all();
        core.reads.notify_all();
        while !state.redo.is_empty() && state.failure.is_none() {
            state = core
                .quiet
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let failure = state.failure.clone();
        let dirty = std::mem::replace(&mut state.synced, u64::MAX) != state.written;
        drop(state);
        self.join();
        let mut result = match failure {
            Some(cause) => Err(StoreError::Failed(cause)),
            None if dirty && !core.base.read_only() => {
                core.base.sync().map_err(|source| StoreError::File {
                    path: core.base.path().to_owned(),
                    action: "what was written cannot be put on stable storage",
                    source,
                })
            }
            None => Ok(()),
        };
        if let Err(source) = crate::store::lock::release(core.base.file())
            && result.is_ok()
        {
            result = Err(StoreError::File {
                path: core.base.path().to_owned(),
                action: "cannot be unlocked",
                source,
            });
        }
        result
    }

    fn join(&self) {
        let me = std::thread::current().id();
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            // Whoever owns the disk may let go of it in a notice, on one of these threads.
            if thread.thread().id() != me {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for RelaxedDisk {
    fn drop(&mut self) {
        // Without a `close` this is as if the process had been killed, except that the threads end.
        let mut state = lock(&self.core.state);
        state.stop = true;
        state.redo.clear();
        drop(state);
        self.core.work.notify_all();
        self.core.reads.notify_all();
        self.join();
    }
}

impl Core {
    /// Time since the disk was opened.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The part of a write that lies in a block, in its place there.
fn block_of(block: u64, range: &Range<u64>, content: &Content) -> Bytes {
    let mut bytes = [0; BLOCK as usize];
    if let Content::Data(data) = content {
        let start = block * BLOCK;
        let (from, to) = (range.start.max(start), range.end.min(start + BLOCK));
        bytes[(from - start) as usize..(to - start) as usize]
            .copy_from_slice(&data[(from - range.start) as usize..(to - range.start) as usize]);
    }
    bytes
}
