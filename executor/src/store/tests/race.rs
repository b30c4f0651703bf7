//! Threads as in a set that runs: one per replica, a voter between them, everything at full speed; each read is checked against
//! the history that there should be. Over each backend.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

const REPLICAS: usize = 3;
const SECTORS: u64 = 256;
const WINDOW: usize = 40;

/// Numbers that look random, the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % most
    }
}

fn script(seed: u64, len: u64) -> Vec<BlockRequest> {
    let mut dice = Dice(seed);
    (0..len)
        .map(|seq| {
            let sectors = [1, 8, 8, 8, 24][dice.below(5) as usize];
            let at = dice.below(SECTORS - sectors) / 8 * 8;
            match dice.below(16) {
                0..6 => read(seq, at, sectors as u32),
                6..13 => write(seq, at, (seq % 255) as u8 + 1, sectors as usize),
                13 => {
                    let (sector, sectors) = (at, sectors as u32);
                    request(seq, BlockOp::Discard { sector, sectors })
                }
                _ => flush(seq),
            }
        })
        .collect()
}

/// What each sector was filled with before each request.
fn history(script: &[BlockRequest]) -> Vec<Vec<u8>> {
    let mut now = vec![0; SECTORS as usize];
    let mut all = vec![now.clone()];
    for request in script {
        match &request.op {
            BlockOp::Write { sector, data } => {
                now[*sector as usize..][..data.len() / 512].fill(data[0]);
            }
            BlockOp::Discard { sector, sectors } => {
                now[*sector as usize..][..*sectors as usize].fill(0);
            }
            _ => {}
        }
        all.push(now.clone());
    }
    all
}

struct Vote {
    released: Mutex<usize>,
    at: Vec<AtomicUsize>,
    /// One has failed: the others need not wait for it.
    over: AtomicBool,
}

/// Says so when a replica's thread panics.
struct Guard<'a>(&'a Vote);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.over.store(true, Ordering::SeqCst);
        }
    }
}

impl Vote {
    fn pause(&self) {
        assert!(!self.over.load(Ordering::SeqCst), "another has failed");
        std::thread::yield_now();
    }

    /// Releases what two have asked for.
    fn cast(&self, disk: &Disk, script: &[BlockRequest]) {
        let mut released = self.released.lock().unwrap();
        loop {
            let votes = self.at.iter();
            let votes = votes.filter(|at| at.load(Ordering::SeqCst) > *released);
            if votes.count() < 2 {
                return;
            }
            disk.release(script[*released].clone());
            *released += 1;
        }
    }
}

fn replica(me: usize, disk: &Disk, vote: &Vote, script: &[BlockRequest], history: &[Vec<u8>]) {
    let mut dice = Dice(me as u64 + 77);
    let _guard = Guard(vote);
    let mut outstanding: Vec<u64> = Vec::new();
    for request in script {
        let seq = request.seq as usize;
        // Not more than a window ahead of the slowest.
        while vote
            .at
            .iter()
            .any(|at| at.load(Ordering::SeqCst) + WINDOW < seq)
        {
            vote.pause();
        }
        disk.submit(me, request).unwrap();
        vote.at[me].store(seq + 1, Ordering::SeqCst);
        if request.op.waits().is_some() {
            outstanding.push(request.seq);
        }
        if dice.below(3) == 0 {
            vote.cast(disk, script);
        }
        if me == 2 && dice.below(50) == 0 {
            // The slow one.
            vote.pause();
        }
        while !outstanding.is_empty() && (disk.has_due(me) || outstanding.len() > 20) {
            vote.cast(disk, script);
            let due = disk.due(me);
            for completion in &due {
                assert_eq!(completion.status, BlockStatus::Ok);
                check(me, disk, &script[completion.seq as usize], history);
                outstanding.retain(|seq| *seq != completion.seq);
            }
            disk.delivered(me, &due);
            if due.is_empty() {
                vote.pause();
                if vote.at.iter().any(|at| at.load(Ordering::SeqCst) < seq) {
                    // Others have to come for it.
                    break;
                }
            }
        }
    }
    vote.cast(disk, script);
}

fn check(me: usize, disk: &Disk, request: &BlockRequest, history: &[Vec<u8>]) {
    let BlockOp::Read { sector, bytes } = request.op else {
        return;
    };
    let data = disk.take(me, request.seq).unwrap();
    assert_eq!(data.len(), bytes as usize);
    let expected = &history[request.seq as usize][sector as usize..];
    for (found, byte) in data.chunks(512).zip(expected) {
        assert!(
            found.iter().all(|b| b == byte),
            "read {} of replica {me}: {} instead of {byte} (R6)",
            request.seq,
            found[0]
        );
    }
}

#[test]
fn replicas_at_full_speed_see_their_own_history() {
    for (seed, backend) in backends().into_iter().flat_map(|b| [(1, b), (2, b)]) {
        let bench = Bench::new(SECTORS * 512);
        let mut spec = bench.spec(REPLICAS);
        if seed == 2 {
            spec.bounds.version_bytes = 16 << 10;
            spec.bounds.unwritten_bytes = 64 << 10;
        }
        let disk = bench.open(spec, backend);
        let script = script(seed, 6000);
        let history = history(&script);
        let vote = Vote {
            released: Mutex::new(0),
            at: (0..REPLICAS).map(|_| AtomicUsize::new(0)).collect(),
            over: AtomicBool::new(false),
        };
        std::thread::scope(|scope| {
            for me in 0..REPLICAS {
                let (disk, vote, script, history) = (&disk, &vote, &script, &history);
                scope.spawn(move || replica(me, disk, vote, script, history));
            }
        });
        vote.cast(&disk, &script);
        disk.close().unwrap();
        let last: Vec<u8> = bench.bytes().chunks(512).map(|s| s[0]).collect();
        assert_eq!(&last, history.last().unwrap());
        let stats = disk.stats();
        assert!(stats.versions > 0, "{stats:?}");
    }
}
