//! Free-running replicas on a real file: the same contents in different orders, at different paces, with kills and returns.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

/// A generator that is the same on every run.
#[derive(Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Write { sector: u64, count: u64, byte: u8 },
    Zero { sector: u64, count: u64 },
    Flush,
}

fn touches(a: Op, b: Op) -> bool {
    let range = |op| match op {
        Op::Write { sector, count, .. } | Op::Zero { sector, count } => sector..sector + count,
        Op::Flush => 0..u64::MAX,
    };
    let (a, b) = (range(a), range(b));
    a.start < b.end && b.start < a.end
}

/// What all replicas do; the epochs are between flushes.
fn program(dice: &mut Dice, length: usize) -> Vec<Op> {
    let mut ops: Vec<Op> = (0..length)
        .map(|_| {
            let sector = dice.below(SECTORS - 20);
            let count = 1 + dice.below(20);
            match dice.below(10) {
                0 | 1 => Op::Flush,
                2 => Op::Zero { sector, count },
                _ => Op::Write {
                    sector,
                    count,
                    byte: 1 + dice.below(255) as u8,
                },
            }
        })
        .collect();
    ops.push(Op::Flush);
    ops
}

/// The same in another order that a guest might choose.
fn shuffled(ops: &[Op], dice: &mut Dice) -> Vec<Op> {
    let mut ops = ops.to_vec();
    for _ in 0..4 * ops.len() {
        let at = dice.below(ops.len() as u64 - 1) as usize;
        if !touches(ops[at], ops[at + 1]) {
            ops.swap(at, at + 1);
        }
    }
    ops
}

fn apply(op: Op, to: &mut BTreeMap<u64, u8>) {
    let (range, byte) = match op {
        Op::Write {
            sector,
            count,
            byte,
        } => (sector..sector + count, byte),
        Op::Zero { sector, count } => (sector..sector + count, 0),
        Op::Flush => return,
    };
    to.extend(range.map(|s| (s, byte)));
}

fn see(sector: u64, own: &BTreeMap<u64, u8>) -> u8 {
    own.get(&sector).copied().unwrap_or(sector as u8)
}

/// One replica. How many of its flushes completed.
fn play(
    rig: &Rig,
    me: usize,
    ops: &[Op],
    own: &mut BTreeMap<u64, u8>,
    dice: &mut Dice,
    stop: &AtomicBool,
    flushed: &AtomicUsize,
) {
    for op in ops {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        match *op {
            Op::Write {
                sector,
                count,
                byte,
            } => rig.write(me, sector, count, byte),
            Op::Zero { sector, count } => {
                let zero = BlockOp::WriteZeroes {
                    sector,
                    sectors: count as u32,
                    unmap: count % 2 == 0,
                };
                rig.ask(me, zero).unwrap();
            }
            Op::Flush => {
                let flush = rig.flush(me);
                let status = rig.ear.until(|_| {
                    rig.done(me, flush)
                        .or(stop.load(Ordering::Relaxed).then_some(BlockStatus::IoError))
                });
                if status != BlockStatus::Ok {
                    return;
                }
                rig.wait(me, flush);
                flushed.fetch_add(1, Ordering::Relaxed);
            }
        }
        apply(*op, own);
        if dice.below(3) == 0 {
            let (sector, count) = (dice.below(SECTORS - 20), 1 + dice.below(20));
            let expected: Vec<u8> = (sector..sector + count).map(|s| see(s, own)).collect();
            assert_eq!(
                rig.read(me, sector, count),
                expected,
                "replica {me} sees its own past and nothing else (R6)"
            );
        }
        if dice.below(8) == 0 {
            std::thread::yield_now();
        }
    }
}

fn tight(spec: &mut RelaxedSpec) {
    spec.patience = Duration::from_secs(60);
    // Nearly everything goes to the spill file.
    spec.bounds.view_bytes = 16 << 10;
}

#[test]
fn the_same_contents_in_any_order_are_all_on_the_disk() {
    for seed in 0..12 {
        let mut dice = Dice(seed);
        let ops = program(&mut dice, 150);
        let rig = rig(3, HOLD, tight);
        std::thread::scope(|scope| {
            for me in 0..3 {
                let mut dice = Dice(seed * 10 + me as u64);
                let (ops, rig) = (shuffled(&ops, &mut dice), &rig);
                scope.spawn(move || {
                    let never = AtomicBool::new(false);
                    let mut own = BTreeMap::new();
                    play(
                        rig,
                        me,
                        &ops,
                        &mut own,
                        &mut dice,
                        &never,
                        &AtomicUsize::new(0),
                    );
                });
            }
        });
        let mut all = BTreeMap::new();
        ops.iter().for_each(|op| apply(*op, &mut all));
        let expected: Vec<u8> = (0..SECTORS).map(|s| see(s, &all)).collect();
        assert_eq!(rig.base(0, SECTORS), expected, "seed {seed}");
        let report = rig.disk.report(true);
        assert_eq!(report.line(), None);
        assert_eq!(
            report.held_bytes, 0,
            "seed {seed}: everything is the base file's"
        );
        rig.disk.close().unwrap();
    }
}

#[test]
fn a_kill_leaves_what_a_quorums_crashes_could_have_left() {
    for seed in 100..140 {
        let mut dice = Dice(seed);
        let ops = program(&mut dice, 120);
        let rig = rig(3, HOLD, tight);
        let stop = AtomicBool::new(false);
        let flushed: [AtomicUsize; 3] = Default::default();
        let kill_at = dice.below(110) as usize;
        std::thread::scope(|scope| {
            for me in 0..3 {
                let mut dice = Dice(seed * 10 + me as u64);
                let mut ops = shuffled(&ops, &mut dice);
                if me == (seed % 3) as usize {
                    ops.truncate(kill_at);
                }
                let (rig, stop, flushed) = (&rig, &stop, &flushed[me]);
                scope.spawn(move || {
                    let mut own = BTreeMap::new();
                    play(rig, me, &ops, &mut own, &mut dice, stop, flushed);
                    // The first that comes to its end ends all.
                    stop.store(true, Ordering::Relaxed);
                    rig.ear.poke();
                });
            }
        });
        let Rig { disk, file, .. } = rig;
        // No close: what was under way is lost, as by a kill.
        drop(disk);
        let base = std::fs::read(file.path()).unwrap();
        let base: Vec<u8> = base.chunks(SECTOR as usize).map(|s| s[0]).collect();
        let epochs: Vec<&[Op]> = ops.split(|op| matches!(op, Op::Flush)).collect();
        let allows = |me: &usize| {
            let done = flushed[*me].load(Ordering::Relaxed);
            let mut safe = BTreeMap::new();
            epochs[..done]
                .iter()
                .flat_map(|e| e.iter())
                .for_each(|op| apply(*op, &mut safe));
            (0..SECTORS).all(|s| {
                let now = base[s as usize];
                now == see(s, &safe)
                    || epochs.get(done).is_some_and(|epoch| {
                        epoch.iter().any(|op| {
                            let mut one = BTreeMap::new();
                            apply(*op, &mut one);
                            one.get(&s) == Some(&now)
                        })
                    })
            })
        };
        let allowed = (0..3).filter(allows).count();
        assert!(
            allowed >= 2,
            "seed {seed}: {allowed} of 3 could have left this"
        );
    }
}

#[test]
fn who_goes_back_to_a_checkpoint_catches_up() {
    for seed in 200..212 {
        let mut dice = Dice(seed);
        let ops = program(&mut dice, 120);
        let rig = rig(3, HOLD, tight);
        let checkpoint_at = dice.below(60) as usize;
        let crash_at = checkpoint_at + dice.below(60) as usize;
        std::thread::scope(|scope| {
            for me in 0..3 {
                let mut dice = Dice(seed * 10 + me as u64);
                let (ops, rig) = (shuffled(&ops, &mut dice), &rig);
                scope.spawn(move || {
                    let never = AtomicBool::new(false);
                    let none = AtomicUsize::new(0);
                    let mut own = BTreeMap::new();
                    let mut run = |ops: &[Op], own: &mut BTreeMap<u64, u8>| {
                        play(rig, me, ops, own, &mut dice, &never, &none);
                    };
                    if me != 2 {
                        return run(&ops, &mut own);
                    }
                    run(&ops[..checkpoint_at], &mut own);
                    let (checkpoint, position) = (rig.disk.snapshot(me), rig.position(me));
                    let mut lost = own.clone();
                    run(&ops[checkpoint_at..crash_at], &mut lost);
                    rig.disk.leave(me);
                    rig.disk.enter(me, Some(&checkpoint), &position).unwrap();
                    rig.rewind(me, position.next);
                    run(&ops[checkpoint_at..], &mut own);
                });
            }
        });
        let mut all = BTreeMap::new();
        ops.iter().for_each(|op| apply(*op, &mut all));
        let expected: Vec<u8> = (0..SECTORS).map(|s| see(s, &all)).collect();
        assert_eq!(rig.base(0, SECTORS), expected, "seed {seed}");
        assert_eq!(rig.disk.report(true).line(), None, "seed {seed}");
        rig.disk.close().unwrap();
    }
}
