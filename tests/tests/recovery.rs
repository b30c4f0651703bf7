//! Faults of all kinds, one after another, in random replicas at random times, while clients work: no client sees anything, every
//! acknowledged write is kept, and after each fault the set is at full strength again, in its own layouts.
//!
//! `QUORATE_TEST_FAULTS=100` (`make faults`) injects that many; without it, a short run. `QUORATE_SEED` is the seed.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use quorate_tests::faults::{KINDS, KINDS_WITH_DISK, Kind, Plan, Report, run};
use quorate_tests::load::Load;
use quorate_tests::random::Random;
use quorate_tests::set::Options;
use quorate_tests::writes::{Book, Writers};
use quorate_tests::{disk, one_at_a_time};

/// A replica is meant to fail again and again here.
const NO_LIMIT: &str = "crash_limit = 100000";
/// Clients that check every reply meanwhile.
const CLIENTS: usize = 6;
/// Faults of a short run, and how long it may take.
const FEW: usize = 14;
const SHORT: Duration = Duration::from_secs(60);
/// A short run on a slow machine injects at least so many.
const LEAST: usize = 6;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect(name))
}

fn plan(kinds: &[Kind], seed: u64) -> Plan {
    let asked = number("QUORATE_TEST_FAULTS").map(|faults| faults as usize);
    Plan {
        faults: asked.unwrap_or(FEW),
        kinds: kinds.to_vec(),
        seed: number("QUORATE_SEED").unwrap_or(seed),
        within: asked.map_or(SHORT, |_| Duration::MAX),
    }
}

fn as_promised(plan: &Plan, report: &Report) {
    println!("{report}");
    let least = if plan.within == SHORT {
        LEAST
    } else {
        plan.faults
    };
    assert!(report.outcomes.len() >= least);
    for outcome in &report.outcomes {
        assert!(
            outcome.found_ms.is_some() || !outcome.kind.is_certain(),
            "{outcome:?}"
        );
    }
    // Whoever is stopped comes back; one that was stopped again on its way has been stopped twice for that.
    assert!(report.recovered() <= report.stopped);
    assert!(report.stopped - report.recovered() <= report.failed_steps.len());
    assert!(report.keeps_layouts());
}

#[test]
fn redis_comes_back_to_full_strength_after_every_fault() {
    let _turn = one_at_a_time("faults in Redis, one after another, under checked load");
    let plan = plan(&KINDS, 41);
    let options = Options::redis_recovering(NO_LIMIT).unwrap().replicas(3);
    let set = options.start().unwrap();
    let load = Load::start(set.address(), CLIENTS, plan.seed);
    let report = run(&set, &load, &plan).unwrap_or_else(|error| panic!("{error}"));
    let seen = load.finish();
    println!(
        "  {} replies checked, the longest took {:.0?}",
        seen.checked, seen.longest
    );
    assert!(seen.wrong.is_empty() && seen.ended.is_empty(), "{seen:?}");
    as_promised(&plan, &report);
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn redis_with_an_append_only_file_loses_no_write_to_any_fault() {
    let _turn =
        one_at_a_time("faults in Redis with an append-only file, one after another, under writes");
    let plan = plan(&KINDS_WITH_DISK, 42);
    let directory = disk::directory().unwrap();
    let path = directory.path().join("data.img");
    let text =
        disk::appliance("redis-aof", &[("path", path.display().to_string().into())]).unwrap();
    let text = format!("{text}\n[recovery]\n{NO_LIMIT}\n");
    let options = Options::text(&text).unwrap().publish(6379).replicas(3);
    let set = options.start().unwrap();
    let writers = Writers::start(set.address(), &mut Random::new(plan.seed));
    let report = run(&set, &writers, &plan).unwrap_or_else(|error| panic!("{error}"));
    // No connection has ended, no answer was wrong.
    let written = writers.stop().unwrap();
    let longest = written.longest;
    let mut book = Book::default();
    book.learn(written);
    book.compare(set.address()).unwrap();
    assert_eq!(set.stop().unwrap().code, 0);
    disk::check_clean(&path).unwrap();
    // And what is on the disk is what a start without any fault finds.
    let again = options.start().unwrap();
    book.compare(again.address()).unwrap();
    assert_eq!(again.stop().unwrap().code, 0);
    println!("  {:?}, the longest wait {longest:.0?}", book.counts());
    assert_eq!(book.counts().unanswered, 0);
    as_promised(&plan, &report);
}
