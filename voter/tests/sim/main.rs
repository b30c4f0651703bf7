//! The seeded simulator: voter, journal and leadership under arbitrary interleavings, crashes, hangs, slow and dripping
//! replicas, wrong outputs, equivocation between channels, wrong wait conditions and leaders that fail half-way.
//! R1, R2, R3, R5, R10 and liveness are checked after every call, from what went in and came out.
//!
//! A failure prints its seed. Rerun one with
//!
//! ```text
//! QUORATE_SIM_SEED=1234 cargo test -p quorate-voter --test sim -- --nocapture
//! ```
//!
//! which prints every step; `QUORATE_SIM_SEEDS=100000` runs that many.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod oracle;
mod plan;
mod rng;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use oracle::Coverage;
use world::World;

/// Seeds in a normal run.
const SEEDS: u64 = 6000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

fn run(seed: u64, trace: bool) -> Result<Coverage, String> {
    catch_unwind(AssertUnwindSafe(|| World::new(seed, trace)?.run()))
        .unwrap_or_else(|_| Err("panicked".into()))
}

#[test]
fn seeds() {
    if let Some(seed) = number("QUORATE_SIM_SEED") {
        let coverage = run(seed, true).unwrap();
        println!("{coverage:#?}");
        return;
    }
    let seeds = number("QUORATE_SIM_SEEDS").unwrap_or(SEEDS);
    let workers = 2;
    let work = |worker| {
        let mut coverage = Coverage::default();
        let mut failures = Vec::new();
        for seed in (worker..seeds).step_by(workers) {
            match run(seed, false) {
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
        println!("  QUORATE_SIM_SEED={seed} cargo test -p quorate-voter --test sim -- --nocapture");
    }
    assert!(
        failed.is_empty(),
        "{} seeds failed, see above",
        failed.len()
    );
    println!("{seeds} seeds: {coverage:?}");
    if seeds >= SEEDS {
        // A simulator that no longer meets the difficult cases proves nothing.
        let Coverage {
            releases,
            outvoted,
            lagging,
            repeatedly,
            crashed,
            misbehaved,
            degraded,
            too_few,
            split,
            stalled,
            window_full,
            lost_races,
            late_outvoted,
        } = coverage;
        for (name, count) in [
            ("releases", releases),
            ("outvoted", outvoted),
            ("lagging", lagging),
            ("repeatedly", repeatedly),
            ("crashed", crashed),
            ("misbehaved", misbehaved),
            ("degraded", degraded),
            ("too few", too_few),
            ("split", split),
            ("stalled", stalled),
            ("window full", window_full),
            ("lost races", lost_races),
            ("outvoted late", late_outvoted),
        ] {
            assert!(count >= 20, "only {count} times: {name}");
        }
    }
}

#[test]
fn a_seed_is_a_history() {
    for seed in 0..20 {
        let (a, b) = (run(seed, false), run(seed, false));
        assert_eq!(format!("{a:?}"), format!("{b:?}"));
    }
}
