//! What is known of one disk, under its lock.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quorate_devices::{BlockStatus, SECTOR, Waiting};
use quorate_voter::ReplicaId;
use quorate_voter::relaxed::{BlockFinding, BlockMatcher, Digest, Standing, Unconfirmed, Wrote};

use super::spec::{RelaxedNotice, RelaxedStats};
use super::view::{BLOCK, Bytes, View, blocks};
use crate::store::{Base, OnError};

/// Sectors that may change after a checkpoint until its view is given up: what a replica would have to write again (R10).
const TOUCHED: usize = 1 << 19;
/// Sectors named in a message.
const NAMED: usize = 4;
/// Time between two messages about sectors that were given up, ns.
const TELL_AGAIN_NS: u64 = 10_000_000_000;

/// What goes to a place on the disk.
#[derive(Clone, Debug)]
pub enum Content {
    /// These bytes.
    Data(Vec<u8>),
    /// Zeroes; the space may be given back.
    Zero { unmap: bool },
}

/// A released write on its way to the base file.
pub struct Redo {
    pub range: Range<u64>,
    pub content: Content,
}

/// A flush that its replica has not been told of, or a write of a disk that is `sync`.
pub struct Flush {
    pub kind: Waiting,
    pub since_ns: u64,
    /// How it ended, if it has.
    pub done: Option<BlockStatus>,
}

/// A read that its replica has not been told of.
pub struct Read {
    pub done: Option<Result<Vec<u8>, String>>,
    /// Tells it from an earlier one of the same number, before the replica came back.
    pub id: u64,
}

pub struct Replica {
    pub live: bool,
    pub why: String,
    /// Number of the next request.
    pub next: u64,
    pub view: View,
    pub reads: BTreeMap<u64, Read>,
    pub flushes: BTreeMap<u64, Flush>,
}

/// A checkpoint's view; `None` when it was given up.
pub struct Snapshot {
    pub view: Option<View>,
    /// How often something was released in sectors since.
    pub touched: BTreeMap<u64, u32>,
    /// Where the replica stood.
    pub standing: Standing,
}

/// Work for the threads, and what the owner is to be told.
#[derive(Default)]
pub struct Out {
    pub due: u32,
    pub notices: Vec<RelaxedNotice>,
}

pub struct State {
    pub number: u8,
    /// What its replicas wait in.
    pub waits: &'static str,
    pub name: String,
    pub on_error: OnError,
    pub matcher: Option<BlockMatcher>,
    pub replicas: Vec<Replica>,
    pub snapshots: BTreeMap<u64, Snapshot>,
    pub next_id: u64,
    /// In the order of release.
    pub redo: VecDeque<Redo>,
    pub redo_bytes: u64,
    /// Writes in `redo` that touch a block.
    pub unwritten: HashMap<u64, u32>,
    /// Released, written and synced writes so far.
    pub released: u64,
    pub written: u64,
    pub synced: u64,
    /// Flushes that wait for stable storage: up to which write, whose, which.
    pub syncs: VecDeque<(u64, usize, u64)>,
    pub begin: VecDeque<(usize, u64, u64, Range<u64>)>,
    pub failure: Option<String>,
    pub stop: bool,
    pub stats: RelaxedStats,
    pub out: Out,
    pub due: Arc<[AtomicBool]>,
    pub told_ns: Option<u64>,
    /// Whether somebody found no room.
    pub starved: u32,
}

impl State {
    pub fn mark(&mut self, replica: usize) {
        let Some(r) = self.replicas.get(replica) else {
            return;
        };
        let due = r.reads.values().any(|read| read.done.is_some())
            || r.flushes.values().any(|flush| flush.done.is_some());
        if let Some(flag) = self.due.get(replica) {
            flag.store(due, Ordering::Release);
        }
    }

    pub fn tell(&mut self, replica: usize) {
        self.mark(replica);
        self.out.due |= 1 << replica;
    }

    /// A replica has written, and its view has it. What the vote makes of it.
    pub fn vote(
        &mut self,
        replica: usize,
        range: &Range<u64>,
        content: &Content,
        digests: &[Digest],
        now_ns: u64,
    ) -> Result<(), String> {
        let Some(matcher) = &mut self.matcher else {
            return Ok(());
        };
        let id = ReplicaId(replica as u8);
        let first = range.start / SECTOR;
        let mut run: Option<Range<u64>> = None;
        let mut runs = Vec::new();
        let mut agrees = Vec::new();
        for sector in first..range.end / SECTOR {
            let digest = digests
                .get((sector - first) as usize % digests.len().max(1))
                .copied()
                .unwrap_or(Digest::NONE);
            let wrote = matcher
                .write(id, sector, digest, now_ns)
                .map_err(|error| error.to_string())?;
            match (wrote, &mut run) {
                (Wrote::Released, Some(run)) if run.end == sector => run.end += 1,
                (Wrote::Released, run) => runs.extend(run.replace(sector..sector + 1)),
                (Wrote::Agrees, _) => agrees.push(sector),
                (Wrote::Past | Wrote::Waits, _) => {}
            }
        }
        runs.extend(run);
        for run in runs {
            self.release(run.start * SECTOR..run.end * SECTOR, range.start, content);
        }
        // What is in the base file already need not be kept by the replica.
        for sector in agrees {
            let (block, mask) = (sector / 8, 1 << (sector % 8));
            if !self.unwritten.contains_key(&block) {
                self.replicas[replica].view.clear(block, mask);
            }
        }
        self.settle(now_ns);
        Ok(())
    }

    /// Part of a write that starts at `start` was released (R2).
    fn release(&mut self, range: Range<u64>, start: u64, content: &Content) {
        if self.failure.is_some() && self.on_error == OnError::Stop {
            return;
        }
        let content = match content {
            Content::Zero { unmap } => Content::Zero { unmap: *unmap },
            Content::Data(data) => {
                let from = (range.start - start) as usize;
                let to = (range.end - start) as usize;
                Content::Data(data[from..to].to_vec())
            }
        };
        for (block, _) in blocks(&range) {
            *self.unwritten.entry(block).or_default() += 1;
        }
        for snapshot in self.snapshots.values_mut().filter(|s| s.view.is_some()) {
            for sector in range.start / SECTOR..range.end / SECTOR {
                *snapshot.touched.entry(sector).or_default() += 1;
            }
            if snapshot.touched.len() > TOUCHED {
                snapshot.view = None;
                snapshot.touched.clear();
                self.stats.views_lost += 1;
            }
        }
        self.stats.released_bytes += range.end - range.start;
        self.redo_bytes += range.end - range.start;
        self.released += 1;
        self.redo.push_back(Redo { range, content });
    }

    /// Flushes that wait for nobody any more go on to stable storage (R4).
    pub fn settle(&mut self, now_ns: u64) {
        let Some(matcher) = &mut self.matcher else {
            return;
        };
        for (replica, seq) in matcher.take_settled() {
            let replica = usize::from(replica.0);
            let flush = self.replicas.get(replica);
            let flush = flush.and_then(|r| r.flushes.get(&seq));
            // What a write waits for is the vote: where it is then is the business of the next flush.
            let decided = flush.is_some_and(|flush| flush.kind == Waiting::Write);
            if self.failure.is_some() {
                self.flushed(replica, seq, BlockStatus::IoError, now_ns);
            } else if decided || self.synced == self.released {
                self.flushed(replica, seq, BlockStatus::Ok, now_ns);
            } else {
                self.syncs.push_back((self.released, replica, seq));
            }
        }
    }

    /// A replica waits from here on until all that it has written is released, or given up; a flush then for stable storage, too.
    pub fn begin_wait(&mut self, replica: usize, seq: u64, kind: Waiting, now_ns: u64) {
        let done = match (&self.failure, self.matcher.is_some()) {
            (Some(_), _) => Some(BlockStatus::IoError),
            // What a private disk holds lives as long as its replica: there is no stable storage.
            (None, false) => Some(BlockStatus::Ok),
            (None, true) => None,
        };
        if kind == Waiting::Flush {
            self.stats.flushes += 1;
            self.stats.flushed += u64::from(done == Some(BlockStatus::Ok));
        } else {
            self.stats.waited_writes += 1;
        }
        let flush = Flush {
            kind,
            since_ns: now_ns,
            done,
        };
        if let Some(r) = self.replicas.get_mut(replica) {
            r.flushes.insert(seq, flush);
        }
        if done.is_none() {
            if let Some(matcher) = &mut self.matcher {
                matcher.flush(ReplicaId(replica as u8), seq, now_ns);
            }
            self.settle(now_ns);
        }
        self.mark(replica);
    }

    pub fn flushed(&mut self, replica: usize, seq: u64, status: BlockStatus, now_ns: u64) {
        let flush = self
            .replicas
            .get_mut(replica)
            .and_then(|r| r.flushes.get_mut(&seq));
        if let Some(flush) = flush
            && flush.done.is_none()
        {
            flush.done = Some(status);
            let took = now_ns.saturating_sub(flush.since_ns);
            if flush.kind == Waiting::Flush {
                self.stats.flushed += u64::from(status == BlockStatus::Ok);
                self.stats.flush_max_ns = self.stats.flush_max_ns.max(took);
            } else {
                self.stats.waited_max_ns = self.stats.waited_max_ns.max(took);
            }
            self.tell(replica);
        }
    }

    /// The oldest released write goes to the base file. Nobody reads that meanwhile. Whoever has not written this himself keeps what was
    /// there (R6).
    pub fn write_next(&mut self, base: &Base) {
        let Some(redo) = self.redo.pop_front() else {
            return;
        };
        let range = redo.range.clone();
        let mut result = self.keep_old(base, &range, &redo.content);
        if result.is_ok() && self.failure.is_none() {
            result = match &redo.content {
                Content::Data(data) => base.write(data, range.start),
                Content::Zero { unmap } => base.zero(range.start, range.end - range.start, *unmap),
            };
        }
        for (block, _) in blocks(&range) {
            let Some(count) = self.unwritten.get_mut(&block) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                self.unwritten.remove(&block);
                if result.is_ok() && self.failure.is_none() {
                    self.forget_equal(base, block);
                }
            }
        }
        self.written += 1;
        self.redo_bytes -= range.end - range.start;
        if let Err(error) = result {
            let what = format!(
                "writing {} bytes at offset {}",
                range.end - range.start,
                range.start
            );
            self.io_failed(base, &what, &error);
        }
    }

    fn keep_old(&mut self, base: &Base, range: &Range<u64>, new: &Content) -> io::Result<()> {
        for (block, wanted) in blocks(range) {
            let lacks = |view: &View| wanted & !view.mask(block) != 0;
            let needed = self.replicas.iter().any(|r| r.live && lacks(&r.view))
                || self
                    .snapshots
                    .values()
                    .any(|s| s.view.as_ref().is_some_and(lacks));
            if !needed {
                continue;
            }
            let old = read_block(base, block)?;
            let differ = differing(block, wanted, &old, range.start, new);
            if differ == 0 {
                continue;
            }
            self.stats.kept_blocks += 1;
            for snapshot in self.snapshots.values_mut() {
                if let Some(view) = &mut snapshot.view {
                    let missing = differ & !view.mask(block);
                    if view.put(block, missing, &old).is_err() {
                        snapshot.view = None;
                        self.stats.views_lost += 1;
                    }
                }
            }
            for replica in 0..self.replicas.len() {
                let r = &mut self.replicas[replica];
                if !r.live {
                    continue;
                }
                let missing = differ & !r.view.mask(block);
                if let Err(error) = r.view.put(block, missing, &old) {
                    let cause = self.no_room(replica, &error);
                    self.stop_replica(replica, false, cause);
                }
            }
        }
        Ok(())
    }

    /// Why a replica cannot keep more of its own.
    pub fn no_room(&self, replica: usize, error: &io::Error) -> String {
        match error.kind() {
            io::ErrorKind::StorageFull => format!(
                "disk {}: replica {replica} differs from the disk in more than can be kept ({} blocks of 4 KiB of its own): it is too far from the others",
                self.name,
                self.replicas.get(replica).map_or(0, |r| r.view.len())
            ),
            _ => format!(
                "disk {}: what replica {replica} keeps of its own cannot be written to a temporary file: {error}",
                self.name
            ),
        }
    }

    /// Makes room for what replicas write now, at the cost of checkpoints.
    pub fn give_up_snapshots(&mut self) -> bool {
        let mut lost = 0;
        for snapshot in self.snapshots.values_mut() {
            lost += u64::from(snapshot.view.take().is_some());
        }
        self.stats.views_lost += lost;
        lost > 0
    }

    fn forget_equal(&mut self, base: &Base, block: u64) {
        let kept = |view: &View| view.mask(block) != 0;
        let needed = self.replicas.iter().any(|r| kept(&r.view))
            || self
                .snapshots
                .values()
                .any(|s| s.view.as_ref().is_some_and(kept));
        if !needed {
            return;
        }
        // Whoever keeps it although it need not only needs more room.
        let Ok(now) = read_block(base, block) else {
            return;
        };
        let views = self.replicas.iter_mut().map(|r| &mut r.view);
        let kept = self.snapshots.values_mut().filter_map(|s| s.view.as_mut());
        for view in views.chain(kept) {
            let _ = view.clear_equal(block, &now);
        }
    }

    pub fn io_failed(&mut self, base: &Base, what: &str, error: &io::Error) {
        let stop = self.on_error == OnError::Stop;
        let then = match stop {
            true => "the set stops",
            false => "guests are told at every flush from now on",
        };
        let cause = format!(
            "disk {}: {what} in {} failed: {error}; {then}; check the file system, and the last flush that completed is what is safe",
            self.name,
            base.path().display()
        );
        self.fail(cause, stop);
    }

    pub fn fail(&mut self, cause: String, stop: bool) {
        if self.failure.is_some() {
            return;
        }
        self.failure = Some(cause.clone());
        self.out.notices.push(RelaxedNotice::Failed {
            disk: self.number,
            cause,
            stop,
        });
        // Whoever waits for a vote or for stable storage is told now: neither will come.
        self.syncs.clear();
        let members = self.replicas.iter().enumerate();
        let waiting: Vec<(usize, u64)> = members
            .flat_map(|(r, replica)| replica.flushes.keys().map(move |seq| (r, *seq)))
            .collect();
        for (replica, seq) in waiting {
            self.flushed(replica, seq, BlockStatus::IoError, 0);
        }
    }

    /// The replica is done with the disk until it comes back.
    pub fn retire(&mut self, replica: usize, why: String) {
        let Some(r) = self.replicas.get_mut(replica).filter(|r| r.live) else {
            return;
        };
        r.live = false;
        r.why = why;
        r.reads.clear();
        r.flushes.clear();
        let pool = r.view.pool();
        r.view = View::new(&pool);
        self.syncs.retain(|(_, who, _)| *who != replica);
        if let Some(matcher) = &mut self.matcher {
            matcher.leave(ReplicaId(replica as u8));
        }
        self.mark(replica);
    }

    pub fn stop_replica(&mut self, replica: usize, outvoted: bool, cause: String) {
        if !self.replicas.get(replica).is_some_and(|r| r.live) {
            return;
        }
        self.retire(replica, cause.clone());
        self.out.notices.push(RelaxedNotice::Stopped {
            disk: self.number,
            replica,
            outvoted,
            cause,
        });
        self.out.due |= 1 << replica;
    }

    /// What waits for too long.
    pub fn judge(&mut self, now_ns: u64) {
        let Some(matcher) = &mut self.matcher else {
            return;
        };
        for finding in matcher.judge(now_ns) {
            self.find(finding, now_ns);
        }
        self.settle(now_ns);
    }

    fn find(&mut self, finding: BlockFinding, now_ns: u64) {
        let name = self.name.clone();
        match finding {
            BlockFinding::Slow {
                replica,
                others,
                sectors,
            } => {
                let others: Vec<String> = others.iter().map(ToString::to_string).collect();
                let text = format!(
                    "disk {name}: a {} of {replica} waits for {}, which wrote nothing since: {}",
                    self.waits,
                    others.join(", "),
                    places(&sectors)
                );
                self.told(replica, text);
            }
            BlockFinding::Outvoted { replica, sectors } => {
                let cause = format!(
                    "disk {name}: {replica} wrote before its {} what no quorum did, and a quorum agreed on something else: {}",
                    self.waits,
                    places(&sectors)
                );
                self.stop_replica(usize::from(replica.0), true, cause);
            }
            BlockFinding::NoMajority { replica, sectors } => {
                let cause = format!(
                    "disk {name}: no quorum wrote what {replica} did before its {}: {}; the disk's policy is to hold (docs/relaxed-disks.md says what a guest should do, and what `unconfirmed = \"report\"` and `relaxed = \"private\"` mean)",
                    self.waits,
                    places(&sectors)
                );
                if self.on_error == OnError::Stop {
                    return self.fail(cause, true);
                }
                let seq = self.matcher.as_mut().and_then(|m| m.fail_flush(replica));
                if let Some(seq) = seq {
                    self.flushed(usize::from(replica.0), seq, BlockStatus::IoError, now_ns);
                }
                self.told(replica, cause);
            }
            BlockFinding::GivenUp { replica, sectors } => {
                if self
                    .told_ns
                    .is_some_and(|told| now_ns < told + TELL_AGAIN_NS)
                {
                    return;
                }
                self.told_ns = Some(now_ns);
                let text = format!(
                    "disk {name}: a {} of {replica} went on without {} {} that no quorum wrote: {}; kept by the replica, not on the disk",
                    self.waits,
                    sectors.len(),
                    if sectors.len() == 1 {
                        "sector"
                    } else {
                        "sectors"
                    },
                    places(&sectors)
                );
                self.told(replica, text);
            }
            BlockFinding::Behind { replica, sectors } => {
                let cause = format!(
                    "disk {name}: {replica} is behind in {sectors} sectors, more than can be remembered"
                );
                self.stop_replica(usize::from(replica.0), false, cause);
            }
        }
    }

    fn told(&mut self, replica: ReplicaId, text: String) {
        self.out.notices.push(RelaxedNotice::Told {
            disk: self.number,
            replica: usize::from(replica.0),
            text,
        });
    }
}

/// The sectors of a block that a new content changes.
fn differing(block: u64, wanted: u8, old: &Bytes, start: u64, new: &Content) -> u8 {
    let size = SECTOR as usize;
    (0..8u64)
        .filter(|i| wanted & (1 << i) != 0)
        .filter(|i| {
            let old = &old[*i as usize * size..][..size];
            match new {
                Content::Zero { .. } => old.iter().any(|b| *b != 0),
                Content::Data(data) => {
                    let from = (block * BLOCK + i * SECTOR - start) as usize;
                    data.get(from..from + size) != Some(old)
                }
            }
        })
        .fold(0, |mask, i| mask | 1 << i)
}

/// A block of the base file; what is behind the end of the disk is zero.
pub fn read_block(base: &Base, block: u64) -> io::Result<Bytes> {
    let mut bytes = [0; BLOCK as usize];
    let start = block * BLOCK;
    let there = base.bytes().saturating_sub(start).min(BLOCK) as usize;
    base.read(&mut bytes[..there], start)?;
    Ok(bytes)
}

fn places(sectors: &[Unconfirmed]) -> String {
    let mut text = Vec::new();
    for unconfirmed in sectors.iter().take(NAMED) {
        let said: Vec<String> = unconfirmed
            .said
            .iter()
            .map(|s| format!("{} {} (epoch {})", s.replica, s.digest, s.epoch))
            .collect();
        let said = match said.is_empty() {
            true => "nobody else wrote it".to_owned(),
            false => said.join(", "),
        };
        text.push(format!("sector {}: {said}", unconfirmed.sector));
    }
    if sectors.len() > NAMED {
        text.push(format!("and {} more", sectors.len() - NAMED));
    }
    text.join("; ")
}
