//! redis-benchmark's default commands against a set: no divergence, no error, and every replica is still there.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use quorate_tests::native;
use quorate_tests::process::run;
use quorate_tests::set::Options;
use quorate_tests::{one_at_a_time, shortened};

/// Commands in the default list of redis-benchmark 7.0, LPUSH for the LRANGE ones included.
const COMMANDS: usize = 20;

fn benchmark(replicas: usize, requests: usize, within: Duration) {
    let _turn = one_at_a_time(&format!(
        "{replicas} replicas, random layouts, at least {requests} requests of redis-benchmark's default list"
    ));
    let set = Options::redis()
        .replicas(replicas)
        .arguments(&["--layout", "random"])
        .start()
        .unwrap();
    let each = requests.div_ceil(COMMANDS);
    let mut command = native::command("redis-benchmark").unwrap();
    command
        .args(["-h", "127.0.0.1", "-p", &set.address().port().to_string()])
        .args(["-n", &each.to_string(), "-c", "50", "--csv"]);
    let ended = run(command, within).unwrap();
    let output = String::from_utf8_lossy(&ended.stdout).into_owned();
    // It ends at the first error reply or closed connection.
    assert_eq!(ended.code, 0, "{output}{}", ended.stderr);
    assert_eq!(ended.stderr, "");
    assert!(!output.contains("rror"), "{output}");
    // A header, then one line for each command, each of which had `each` requests answered.
    let rows: Vec<&str> = output.lines().skip(1).collect();
    assert!(rows.len() >= COMMANDS, "{output}");
    let sent = rows.len() * each;
    assert!(sent >= requests, "{output}");

    let status = set.status().unwrap();
    assert_eq!(status["state"], "running", "{status:#}");
    assert_eq!(status["running"], replicas, "{status:#}");
    let said = set.lines_with("verdict");
    assert!(said.is_empty(), "{said:?}");
    println!(
        "  {sent} requests; {} boundaries, {} ballots, {} bytes voted, {} outputs with {} bytes released",
        status["boundaries"],
        status["ballots"],
        status["bytes_voted"],
        status["releases"],
        status["bytes_released"]
    );
    // Every replica voted on every boundary, up to what is on its way at this moment.
    let ballots = status["ballots"].as_u64().unwrap();
    let boundaries = status["boundaries"].as_u64().unwrap();
    assert!(ballots + 4096 >= boundaries * replicas as u64, "{status:#}");
    assert_eq!(set.stop().unwrap().code, 0);
}

#[test]
fn three_replicas_one_million_requests() {
    benchmark(3, shortened(1_000_000, 2000), Duration::from_secs(900));
}

#[test]
fn five_replicas_a_hundred_thousand_requests() {
    benchmark(5, shortened(100_000, 2000), Duration::from_secs(300));
}
