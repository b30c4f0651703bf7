//! Random replicas, requests and interleavings against a model that keeps the whole history: what a disk held before each
//! request. Every I/O is done by hand, one half at a time, so that reads and writes of the base file overlap in every way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use quorate_devices::{DiskPosition, Outstanding};

use super::*;
use crate::store::core::Core;
use crate::store::file::{Fault, Faults, Io};
use crate::store::job::{Content, Engine, Job, Outcome};

/// Sectors of the disk; its last block is not whole.
const SECTORS: usize = 8 * 8 + 3;

/// Jobs wait here until the test does them.
#[derive(Default)]
pub struct Manual {
    pub jobs: Mutex<Vec<(Job, Option<Vec<u8>>)>>,
}

impl Engine for Arc<Manual> {
    fn start(&self, jobs: Vec<Job>) {
        let jobs = jobs.into_iter().map(|job| (job, None));
        self.jobs.lock().unwrap().extend(jobs);
    }
    fn stop(&self) {}
    fn name(&self) -> &'static str {
        "manual"
    }
}

/// Whether the host's cache has what is read.
#[derive(Default)]
pub struct Cache(pub AtomicBool);

impl Faults for Cache {
    fn before(&self, io: Io, _: u64, _: u64) -> Option<Fault> {
        let cold = io == Io::ReadNow && !self.0.load(Ordering::Relaxed);
        cold.then_some(Fault::Error(libc::EAGAIN))
    }
}

#[derive(Clone, Debug)]
enum Op {
    Read(usize, usize),
    Write(usize, usize),
    Zero(usize, usize, bool),
    Flush,
}

fn range() -> impl Strategy<Value = (usize, usize)> {
    (
        0..SECTORS,
        prop_oneof![3 => 1..4usize, 1 => 1..40usize, 3 => Just(8)],
    )
        .prop_map(|(from, len)| {
            // Half of them whole blocks, as a file system writes.
            let from = if len == 8 { from / 8 * 8 } else { from };
            (from, len.min(SECTORS - from))
        })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => range().prop_map(|(a, n)| Op::Read(a, n)),
        6 => range().prop_map(|(a, n)| Op::Write(a, n)),
        1 => (range(), any::<bool>()).prop_map(|((a, n), unmap)| Op::Zero(a, n, unmap)),
        2 => Just(Op::Flush),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Submit(usize),
    Release,
    /// Half of a job.
    Work(usize),
    Deliver(usize),
    Cache(bool),
    /// Somebody copies the file, or has copied it.
    Freeze(bool),
    Retire(usize),
    /// All fail at once.
    RetireAll,
    /// A checkpoint of a replica.
    Mark(usize),
    /// Checkpoints before this one are dropped.
    Forget(usize),
    /// A stopped replica begins again from one of them, or from the start.
    Rejoin(usize, usize),
    Promote(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0..5usize).prop_map(Step::Submit),
        12 => Just(Step::Release),
        20 => (0..16usize).prop_map(Step::Work),
        8 => (0..5usize).prop_map(Step::Deliver),
        2 => any::<bool>().prop_map(Step::Cache),
        1 => any::<bool>().prop_map(Step::Freeze),
        2 => (0..5usize).prop_map(Step::Retire),
        1 => Just(Step::RetireAll),
        2 => (0..5usize).prop_map(Step::Mark),
        1 => (0..6usize).prop_map(Step::Forget),
        4 => (0..5usize, 0..6usize).prop_map(|(r, at)| Step::Rejoin(r, at)),
        2 => (0..5usize).prop_map(Step::Promote),
    ]
}

#[derive(Clone, Debug)]
struct Plan {
    replicas: usize,
    faulty: Option<usize>,
    version_blocks: u64,
    spill_blocks: u64,
    unwritten: u64,
    log: u64,
    ops: Vec<Op>,
    steps: Vec<Step>,
}

fn plan() -> impl Strategy<Value = Plan> {
    (
        1..5usize,
        proptest::option::of(0..5usize),
        prop_oneof![Just(0u64), 1..6u64, Just(1000)],
        prop_oneof![Just(0u64), 1..6u64, Just(1000)],
        prop_oneof![Just(8192u64), Just(1 << 20)],
        prop_oneof![3 => Just(1u64 << 20), 1 => Just(16 << 10)],
        proptest::collection::vec(op(), 1..60),
        proptest::collection::vec(step(), 0..500),
    )
        .prop_map(
            |(replicas, faulty, version_blocks, spill_blocks, unwritten, log, ops, steps)| Plan {
                replicas,
                // A replica that writes something else is possible only among three.
                faulty: faulty.filter(|f| *f < replicas && replicas >= 3),
                version_blocks,
                spill_blocks,
                unwritten,
                log,
                ops,
                steps,
            },
        )
}

struct World {
    plan: Plan,
    bench: Bench,
    disk: Arc<Disk>,
    engine: Arc<Manual>,
    cache: Arc<Cache>,
    file: File,
    /// What each sector was filled with before each request.
    history: Vec<Vec<u8>>,
    next: Vec<usize>,
    live: Vec<bool>,
    /// Whether it begins again and has not caught up.
    recovering: Vec<bool>,
    /// What each waits for.
    outstanding: Vec<BTreeMap<usize, Waiting>>,
    /// What an entry called complete.
    completed: BTreeSet<usize>,
    /// What the first healthy replica got for each read.
    golden: BTreeMap<usize, Vec<u8>>,
    /// Checkpoints.
    marks: Vec<DiskPosition>,
    /// Rejoins that went well.
    rejoined: usize,
    released: usize,
    /// What the file held when it was frozen.
    frozen: Option<Vec<u8>>,
    /// What is safe from a loss of power.
    stable: Vec<u8>,
    /// Sectors written since.
    unsafe_writes: Vec<(usize, u8)>,
    /// The highest flush that a replica was told of.
    promised: usize,
    reads: usize,
}

impl World {
    fn new(plan: Plan) -> Self {
        let bench = Bench::new(SECTORS as u64 * 512);
        let mut spec = bench.spec(plan.replicas);
        spec.bounds = Bounds {
            unwritten_bytes: plan.unwritten,
            version_bytes: plan.version_blocks * 4096,
            spill_bytes: plan.spill_blocks * 4096,
            read_bytes: 16 << 10,
            log_bytes: plan.log,
            ..Bounds::default()
        };
        let (engine, cache) = (Arc::new(Manual::default()), Arc::new(Cache::default()));
        let mine = engine.clone();
        let disk = Disk::open_with(0, &spec, bench.notify(), Some(cache.clone()), |_| {
            Ok(Box::new(mine))
        })
        .unwrap();
        let mut history = vec![vec![0; SECTORS]];
        for (seq, op) in plan.ops.iter().enumerate() {
            let mut next = history[seq].clone();
            match op {
                Op::Write(a, n) => next[*a..a + n].fill(seq as u8 + 1),
                Op::Zero(a, n, _) => next[*a..a + n].fill(0),
                Op::Read(..) | Op::Flush => {}
            }
            history.push(next);
        }
        Self {
            file: File::options()
                .read(true)
                .write(true)
                .open(bench.path())
                .unwrap(),
            history,
            next: vec![0; plan.replicas],
            live: vec![true; plan.replicas],
            recovering: vec![false; plan.replicas],
            outstanding: vec![BTreeMap::new(); plan.replicas],
            completed: BTreeSet::new(),
            golden: BTreeMap::new(),
            marks: vec![DiskPosition::default()],
            rejoined: 0,
            released: 0,
            frozen: None,
            stable: vec![0; SECTORS],
            unsafe_writes: Vec::new(),
            promised: 0,
            reads: 0,
            plan,
            bench,
            disk,
            engine,
            cache,
        }
    }

    fn core(&self) -> &Arc<Core> {
        &self.disk.core
    }

    fn request(&self, seq: usize, wrong: bool) -> BlockRequest {
        let byte = if wrong { 0xee } else { seq as u8 + 1 };
        match self.plan.ops[seq] {
            // Some read elsewhere.
            Op::Read(_, n) if wrong && seq.is_multiple_of(3) => read(seq as u64, 0, n as u32),
            Op::Read(a, n) => read(seq as u64, a as u64, n as u32),
            Op::Write(a, n) => write(seq as u64, a as u64, byte, n),
            Op::Zero(a, n, true) => {
                let (sector, sectors) = (a as u64, n as u32);
                request(seq as u64, BlockOp::Discard { sector, sectors })
            }
            Op::Zero(a, n, unmap) => {
                let (sector, sectors) = (a as u64, n as u32);
                request(
                    seq as u64,
                    BlockOp::WriteZeroes {
                        sector,
                        sectors,
                        unmap,
                    },
                )
            }
            Op::Flush => flush(seq as u64),
        }
    }

    fn submit(&mut self, replica: usize) -> bool {
        let Some(&seq) = self.next.get(replica) else {
            return false;
        };
        // Here it would wait for jobs that nobody does.
        let full = self.disk.stats().unwritten_bytes >= self.plan.unwritten;
        let writes = matches!(self.plan.ops.get(seq), Some(Op::Write(..) | Op::Zero(..)));
        if !self.live[replica]
            || seq == self.plan.ops.len()
            || (full && writes && seq >= self.released)
        {
            return false;
        }
        let wrong = self.plan.faulty == Some(replica);
        self.disk
            .submit(replica, &self.request(seq, wrong))
            .unwrap();
        match self.plan.ops[seq] {
            Op::Read(..) => self.outstanding[replica].insert(seq, Waiting::Read),
            Op::Flush => self.outstanding[replica].insert(seq, Waiting::Flush),
            Op::Write(..) | Op::Zero(..) => None,
        };
        self.next[replica] += 1;
        true
    }

    fn release(&mut self) -> bool {
        let votes = self.live.iter().zip(&self.next).enumerate();
        let votes = votes.filter(|(r, (live, next))| {
            **live && **next > self.released && self.plan.faulty != Some(*r)
        });
        if votes.count() * 2 <= self.plan.replicas && !self.live_is_few() {
            return false;
        }
        if self.released == self.plan.ops.len()
            || !self.next.iter().any(|next| *next > self.released)
        {
            return false;
        }
        self.disk.release(self.request(self.released, false));
        self.released += 1;
        true
    }

    /// Fewer replicas than a quorum: the model lets the rest go on, the store does not count.
    fn live_is_few(&self) -> bool {
        let live = self.live.iter().enumerate();
        let live = live.filter(|(r, live)| **live && self.plan.faulty != Some(*r));
        live.count() * 2 <= self.plan.replicas
    }

    fn sectors(&self) -> Vec<u8> {
        let bytes = self.bench.bytes();
        assert!(bytes.chunks(512).all(|s| s.iter().all(|b| *b == s[0])));
        bytes.chunks(512).map(|s| s[0]).collect()
    }

    /// Does half of a job: what a device, or another processor, sees in the middle of it.
    fn work(&mut self, at: usize) -> bool {
        let (job, half) = {
            let mut jobs = self.engine.jobs.lock().unwrap();
            if jobs.is_empty() {
                return false;
            }
            let at = at % jobs.len();
            jobs.remove(at)
        };
        let (first, again) = match (&job, half) {
            (Job::Read { offset, len, .. }, None) => {
                let mut part = vec![0; len / 2 / 512 * 512];
                self.file.read_exact_at(&mut part, *offset).unwrap();
                (Some(part), true)
            }
            (Job::Read { token, offset, len }, Some(mut part)) => {
                let had = part.len();
                part.resize(*len, 0);
                let rest = &mut part[had..];
                self.file.read_exact_at(rest, offset + had as u64).unwrap();
                let follow = self.core().ended(*token, Outcome::Read(Ok(part)));
                self.engine.start(follow);
                (None, false)
            }
            (Job::Write { write, .. }, None) => {
                let Content::Data(data) = &write.content else {
                    panic!("zeroes as a write");
                };
                let part = &data[..data.len() / 2 / 512 * 512];
                self.file.write_all_at(part, write.range.start).unwrap();
                (Some(Vec::new()), true)
            }
            (Job::Sync { .. }, None) => {
                // What is in the file when it begins is what it promises.
                self.stable = self.sectors();
                self.unsafe_writes.clear();
                (Some(Vec::new()), true)
            }
            _ => (None, false),
        };
        match (&job, again) {
            (_, true) => self.engine.jobs.lock().unwrap().push((job, first)),
            (Job::Read { .. }, false) => {}
            (_, false) => {
                self.note(&job);
                let follow = self.core().perform(job);
                self.engine.start(follow);
            }
        }
        true
    }

    fn note(&mut self, job: &Job) {
        let (from, to, byte) = match job {
            Job::Write { write, .. } => {
                let Content::Data(data) = &write.content else {
                    return;
                };
                (write.range.start, write.range.end, data[0])
            }
            Job::Zero { offset, len, .. } => (*offset, offset + len, 0),
            _ => return,
        };
        let sectors = (from / 512) as usize..(to / 512) as usize;
        self.unsafe_writes.extend(sectors.map(|s| (s, byte)));
    }

    /// The replica is told of everything that is due, and checks what it gets.
    fn deliver(&mut self, replica: usize) -> bool {
        if replica >= self.plan.replicas || !self.live[replica] {
            return false;
        }
        let mut due = self.disk.due(replica);
        assert_eq!(self.disk.has_due(replica), !due.is_empty());
        if self.recovering[replica] {
            assert!(due.is_empty(), "it leads nobody");
            // Its entries are those of old.
            let mine = self.outstanding[replica].iter();
            let mine = mine.filter(|(seq, _)| self.completed.contains(seq));
            let waits = |seq: u64| {
                self.disk.core.act(|state| {
                    // One for which there was no room begins when it is taken.
                    state.start_read(replica, seq);
                    state.must_wait(replica, seq)
                })
            };
            due = mine
                .filter(|(seq, _)| !waits(**seq as u64))
                .map(|(seq, kind)| done(*seq as u64, *kind, BlockStatus::Ok))
                .collect();
        }
        for completion in &due {
            self.completed.insert(completion.seq as usize);
            self.outstanding[replica].remove(&(completion.seq as usize));
            assert_eq!(completion.status, BlockStatus::Ok);
            let seq = completion.seq as usize;
            match completion.kind {
                Waiting::Read => {
                    let data = match self.disk.take(replica, completion.seq) {
                        Ok(data) => data,
                        Err(why) => {
                            // It needs what there was no room for.
                            assert!(self.disk.stats().log_overflows > 0, "{why}");
                            assert!(why.contains("are kept"), "{why}");
                            self.retire(replica);
                            return true;
                        }
                    };
                    let Op::Read(from, len) = self.plan.ops[seq] else {
                        panic!("{seq} is no read");
                    };
                    assert_eq!(data.len(), len * 512);
                    let found: Vec<u8> = data.chunks(512).map(|s| s[0]).collect();
                    if self.plan.faulty != Some(replica) {
                        assert!(data.chunks(512).all(|s| s.iter().all(|b| *b == s[0])));
                        let expected = &self.history[seq][from..from + len];
                        match self.golden.get(&seq) {
                            Some(golden) => {
                                assert_eq!(&found, golden, "read {seq} of replica {replica} (R7)");
                            }
                            // All had failed before anybody was told of it.
                            None if self.recovered(replica, seq) => {
                                let mut later = self.history[seq..=self.released.max(seq)].iter();
                                let same = later.any(|h| h[from..from + len] == found);
                                assert!(same, "read {seq} is of no one moment: {found:?}");
                            }
                            None => assert_eq!(found, expected, "read {seq} of {replica} (R6)"),
                        }
                        self.golden.insert(seq, found);
                        self.reads += 1;
                    }
                }
                Waiting::Flush => {
                    assert!(matches!(self.plan.ops[seq], Op::Flush));
                    assert!(seq < self.released, "flush {seq} was not released (R2)");
                    self.promised = self.promised.max(seq);
                }
                Waiting::Write => panic!("nobody waits for write {seq}"),
            }
        }
        self.disk.delivered(replica, &due);
        !due.is_empty()
    }

    /// R4: whatever is lost now, what a flush promised is there: each sector has what it had at the flush, or something newer.
    fn check_promise(&self, subset: u64) {
        let holds = |content: &[u8], what: &str| {
            for (sector, byte) in content.iter().enumerate() {
                let newer = &self.history[self.promised..];
                assert!(
                    newer.iter().any(|h| h[sector] == *byte),
                    "flush {} and {what}: sector {sector} has {byte} (R4)",
                    self.promised
                );
            }
        };
        // The power fails: of what was written since the last fdatasync, any part may be there.
        let mut lost = self.stable.clone();
        for (i, (sector, byte)) in self.unsafe_writes.iter().enumerate() {
            if subset >> (i % 64) & 1 == 1 {
                lost[*sector] = *byte;
            }
        }
        holds(&lost, "a loss of power");
        // The executor is killed: the file is as it is. There is one flush before which everything is there, and behind
        // whose next one nothing is.
        let file = self.sectors();
        holds(&file, "a kill");
        let flushes = self.plan.ops.iter().enumerate();
        let flushes = flushes
            .filter(|(_, op)| matches!(op, Op::Flush))
            .map(|(f, _)| f);
        let mut from = vec![0];
        from.extend(flushes.clone());
        let mut to: Vec<usize> = flushes.collect();
        to.push(self.plan.ops.len());
        let whole = from.iter().zip(&to).any(|(from, to)| {
            let between = &self.history[*from..=*to];
            let mut sectors = file.iter().enumerate();
            sectors.all(|(sector, byte)| between.iter().any(|h| h[sector] == *byte))
        });
        assert!(whole, "the file mixes what three flushes keep apart");
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Submit(r) => {
                self.submit(r);
            }
            Step::Release => {
                self.release();
            }
            Step::Work(at) => {
                self.work(at);
            }
            Step::Deliver(r) => {
                self.deliver(r);
            }
            Step::Cache(hot) => self.cache.0.store(hot, Ordering::Relaxed),
            Step::Freeze(freeze) => self.freeze(freeze),
            Step::Retire(r) => {
                let live = self.live.iter().filter(|l| **l).count();
                // The last one that votes stays.
                let good = self.plan.faulty == Some(r) || live > 2;
                if r < self.plan.replicas && self.live[r] && live > 1 && good {
                    self.retire(r);
                }
            }
            Step::RetireAll => {
                for r in 0..self.plan.replicas {
                    self.retire(r);
                }
            }
            Step::Mark(r) => {
                if r < self.plan.replicas && self.live[r] && self.plan.faulty != Some(r) {
                    let position = self.position(r);
                    self.marks.push(position);
                }
            }
            Step::Forget(at) => {
                if at < self.marks.len() {
                    self.marks.drain(..at);
                    let first = self.marks.iter().map(DiskPosition::first).min();
                    self.disk.forget_reads(first.unwrap());
                }
            }
            Step::Promote(r) => {
                if r < self.plan.replicas {
                    self.disk.promote(r);
                    self.recovering[r] = false;
                }
            }
            Step::Rejoin(r, at) => {
                if at < self.marks.len() {
                    self.rejoin(r, at);
                }
            }
        }
    }

    fn freeze(&mut self, freeze: bool) {
        match (&self.frozen, freeze) {
            // It would wait for jobs that nobody does.
            (None, true) if self.disk.stats().unwritten_bytes == 0 && self.no_sync() => {
                self.disk.freeze().unwrap();
                let sectors = self.sectors();
                assert_eq!(
                    sectors, self.history[self.released],
                    "all that was released"
                );
                self.stable.clone_from(&sectors);
                self.unsafe_writes.clear();
                self.frozen = Some(sectors);
            }
            (Some(frozen), false) => {
                assert_eq!(frozen, &self.sectors(), "it was written to");
                self.frozen = None;
                self.disk.thaw();
            }
            _ => {}
        }
    }

    fn no_sync(&self) -> bool {
        crate::sync::lock(&self.disk.core.state).sync.is_none()
    }

    fn retire(&mut self, r: usize) {
        self.live[r] = false;
        self.recovering[r] = false;
        self.disk.retire(r);
    }

    fn position(&self, r: usize) -> DiskPosition {
        let outstanding = self.outstanding[r].iter().map(|(seq, kind)| {
            let (sector, bytes) = match self.plan.ops[*seq] {
                Op::Read(a, n) => (a as u64, n as u32 * 512),
                _ => (0, 0),
            };
            Outstanding {
                seq: *seq as u64,
                sector,
                bytes,
                kind: *kind,
            }
        });
        DiskPosition {
            disk: 0,
            next: self.next[r] as u64,
            outstanding: outstanding.collect(),
        }
    }

    /// Whether the data of the replica's read may be from the log.
    fn recovered(&self, replica: usize, seq: usize) -> bool {
        let state = crate::sync::lock(&self.disk.core.state);
        let r = &state.replicas[replica];
        (seq as u64) < r.own_from || (seq as u64) < r.joined
    }

    /// Whether it works.
    fn rejoin(&mut self, r: usize, at: usize) -> bool {
        if r >= self.plan.replicas || self.live[r] || self.plan.faulty == Some(r) {
            return false;
        }
        let position = self.marks[at].clone();
        let kept = self.disk.logged_from() <= position.first();
        let result = self.disk.rejoin(r, &position);
        assert_eq!(result.is_ok(), kept, "{result:?}");
        let lost = self.disk.stats().log_overflows > 0;
        assert!(kept || lost, "the marks that are left can be used");
        if kept {
            self.live[r] = true;
            self.recovering[r] = true;
            self.next[r] = position.next as usize;
            let waits = position.outstanding.iter();
            self.outstanding[r] = waits.map(|o| (o.seq as usize, o.kind)).collect();
            self.rejoined += 1;
        }
        kept
    }

    fn finish(&mut self) {
        self.freeze(false);
        for r in 0..self.plan.replicas {
            let found = (0..self.marks.len()).rev().any(|at| self.rejoin(r, at));
            let _ = found;
        }
        let healthy = |w: &Self, r: usize| w.live[r] && w.plan.faulty != Some(r);
        loop {
            let mut moved = false;
            for r in 0..self.plan.replicas {
                moved |= self.submit(r);
                moved |= self.deliver(r);
            }
            moved |= self.release();
            moved |= self.work(0);
            if !moved {
                // Those that have come as far as they can.
                for r in 0..self.plan.replicas {
                    if std::mem::take(&mut self.recovering[r]) {
                        self.disk.promote(r);
                        moved = true;
                    }
                }
            }
            if !moved {
                break;
            }
        }
        if !(0..self.plan.replicas).any(|r| healthy(self, r)) {
            assert!(self.disk.stats().log_overflows > 0);
            return;
        }
        let all = self.plan.ops.len();
        assert_eq!(self.released, all);
        for r in (0..self.plan.replicas).filter(|r| self.live[*r]) {
            assert_eq!(self.next[r], all, "replica {r} is stuck");
            assert!(self.outstanding[r].is_empty(), "replica {r} waits");
        }
        assert_eq!(&self.sectors(), &self.history[all]);
        let stats = self.disk.stats();
        assert_eq!(stats.unwritten_bytes, 0);
        assert_eq!((stats.version_bytes, stats.spilled_bytes), (0, 0));
        assert!(stats.failure.is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, max_shrink_iters: 3000, ..ProptestConfig::default() })]

    #[test]
    fn every_view_is_the_models(plan in plan(), subset in any::<u64>()) {
        let mut world = World::new(plan);
        for (i, step) in world.plan.steps.clone().iter().enumerate() {
            world.step(step);
            if i % 4 == 0 {
                world.check_promise(subset.rotate_left(i as u32));
            }
        }
        world.finish();
        world.check_promise(subset);
    }
}
