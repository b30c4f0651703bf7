//! The seeded simulator: voter, journal and leadership under arbitrary interleavings, crashes, hangs, slow and dripping
//! replicas, wrong outputs, equivocation between channels, wrong wait conditions and leaders that fail half-way.
//! In half of the runs stopped replicas come back, from checkpoints that may be wrong, and members come and go.
//! R1, R2, R3, R5, R7, R10 and liveness are checked after every call, from what went in and came out.
//!
//! A failure prints its seed. Rerun one with
//!
//! ```text
//! QUORATE_SIM_SEED=1234 cargo test -p quorate-voter --test sim who_is_stopped_comes_back -- --nocapture
//! ```
//!
//! which prints every step; `QUORATE_SIM_SEEDS=100000` runs that many.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod coverage;
mod events;
mod oracle;
mod plan;
mod revive;
mod rng;
mod truth;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use coverage::Coverage;
use world::World;

/// Seeds in a normal run.
const SEEDS: u64 = 6000;
/// And where replicas come back, which makes longer histories.
const RECOVERY_SEEDS: u64 = 1000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

fn run(seed: u64, recovery: bool, trace: bool) -> Result<Coverage, String> {
    catch_unwind(AssertUnwindSafe(|| {
        World::new(seed, recovery, trace)?.run()
    }))
    .unwrap_or_else(|_| Err("panicked".into()))
}

/// Runs many seeds, and says what was seen in all of them.
fn seeds(name: &str, recovery: bool) -> Option<Coverage> {
    if let Some(seed) = number("QUORATE_SIM_SEED") {
        let coverage = run(seed, recovery, true).unwrap();
        println!("{coverage:#?}");
        return None;
    }
    let usual = if recovery { RECOVERY_SEEDS } else { SEEDS };
    let seeds = number("QUORATE_SIM_SEEDS").unwrap_or(usual);
    let workers = 2;
    let work = |worker| {
        let mut coverage = Coverage::default();
        let mut failures = Vec::new();
        for seed in (worker..seeds).step_by(workers) {
            match run(seed, recovery, false) {
                Ok(seen) => coverage.add(&seen),
                Err(what) => failures.push((seed, what)),
            }
            if failures.len() >= 5 {
                break;
            }
        }
        (coverage, failures)
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers as u64)
            .map(|worker| scope.spawn(move || work(worker)))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let mut coverage = Coverage::default();
    let mut failed = Vec::new();
    for (seen, failures) in results {
        coverage.add(&seen);
        failed.extend(failures);
    }
    failed.sort();
    for (seed, what) in &failed {
        println!("seed {seed}: {what}");
        println!(
            "  QUORATE_SIM_SEED={seed} cargo test -p quorate-voter --test sim {name} -- --nocapture"
        );
    }
    assert!(
        failed.is_empty(),
        "{} seeds failed, see above",
        failed.len()
    );
    println!("{seeds} seeds: {coverage:?}");
    (seeds >= usual).then_some(coverage)
}

fn seen(coverage: Option<Coverage>, names: &[&str]) {
    for (name, count) in coverage.iter().flat_map(Coverage::counts) {
        let wanted = names.contains(&name);
        assert!(!wanted || count >= 20, "only {count} times: {name}");
    }
}

#[test]
fn who_is_stopped_stays_stopped() {
    let coverage = seeds("who_is_stopped_stays_stopped", false);
    seen(
        coverage,
        &[
            "releases",
            "outvoted",
            "lagging",
            "repeatedly",
            "crashed",
            "misbehaved",
            "degraded",
            "too_few",
            "split",
            "stalled",
            "window_full",
            "lost_races",
            "late_outvoted",
        ],
    );
}

#[test]
fn who_is_stopped_comes_back() {
    let coverage = seeds("who_is_stopped_comes_back", true);
    seen(
        coverage,
        &[
            "releases",
            "outvoted",
            "lagging",
            "crashed",
            "degraded",
            "too_few",
            "split",
            "stalled",
            "window_full",
            "late_outvoted",
            "recovered",
            "replayed",
            "relapsed",
            "disputed",
            "majority",
            "removed",
            "membership",
            "fresh",
            "gone",
        ],
    );
}

#[test]
fn a_seed_is_a_history() {
    for seed in 0..20 {
        for recovery in [false, true] {
            let (a, b) = (run(seed, recovery, false), run(seed, recovery, false));
            assert_eq!(format!("{a:?}"), format!("{b:?}"));
        }
    }
}
