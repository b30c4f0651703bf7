//! `kill -9` of the executor under load, again and again on the same disk: what was acknowledged is kept, the file system is sound
//! (R4), and a clean stop leaves nothing to repair.
//!
//! `QUORATE_TEST_KILLS=300` kills that often, each with three replicas and with one; without it, a short run.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use quorate_tests::kills::{Plan, run};
use quorate_tests::one_at_a_time;

fn kill(replicas: usize, few: usize, seed: u64) {
    let given = std::env::var("QUORATE_TEST_KILLS").ok();
    let asked: Option<usize> = given.map(|text| text.parse().expect("QUORATE_TEST_KILLS"));
    let kills = asked.unwrap_or(few);
    let _turn = one_at_a_time(&format!(
        "Redis with an append-only file, {replicas} replicas: the executor is killed {kills} times"
    ));
    let plan = Plan {
        replicas,
        kills,
        within: match asked {
            Some(_) => Duration::MAX,
            None => Duration::from_secs(75),
        },
        seed: std::env::var("QUORATE_SEED")
            .map_or(seed, |text| text.parse().expect("QUORATE_SEED")),
    };
    let report = run(&plan).unwrap_or_else(|error| panic!("{error}"));
    println!("  {report:?}");
    let killed = report.killed + report.killed_at_start;
    // Where the machine is slow, the time ends the short run; but it is no run without some kills.
    assert!(killed == kills || asked.is_none() && killed >= 3);
    assert!(report.writes.acknowledged > killed && report.writes.compared > 0);
}

#[test]
fn three_replicas() {
    kill(3, 15, 3);
}

#[test]
fn one_replica() {
    kill(1, 10, 1);
}
