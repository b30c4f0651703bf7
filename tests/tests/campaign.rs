//! Campaigns through the real command: what voting does to faults, what it cannot do, and that a campaign can be had again.
//! `make campaign-full` runs the first with 10,000 draws.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;
use std::time::Duration;

use quorate_tests::campaign::{
    CAMPAIGN_TIMEOUT, campaign, length, outcomes, ready, start, table, trials, trials_of,
};
use quorate_tests::one_at_a_time;
use rustix::process::Signal;

/// Draws of the comparison of one replica with three.
const DRAWS: u64 = 300;
/// Draws of the campaigns that are run again and again.
const FEW: u64 = 24;

fn words(count: &str) -> [&str; 4] {
    ["--trials", count, "--jobs", "2"]
}

#[test]
fn three_replicas_mask_what_one_does_not() {
    let _turn = one_at_a_time("single-bit faults on Redis, alone and with three replicas");
    let draws = length("QUORATE_TEST_DRAWS", DRAWS);
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("redis");
    let found = trials_of(&ready("redis"), &out, &words(&draws.to_string())).unwrap();
    let of = |replicas| {
        found
            .iter()
            .filter(move |trial| trial.replicas() == replicas)
    };
    let (one, three) = (outcomes(of(1)), outcomes(of(3)));
    println!("N=1: {one:?}\nN=3: {three:?}");
    assert_eq!((of(1).count() as u64, of(3).count() as u64), (draws, draws));
    let failures = "injector-failure";
    for trial in of(3) {
        let fine = ["masked", "corrected", failures].contains(&trial.outcome());
        assert!(fine, "voting did not mask this: {:#}", trial.0);
        assert!(trial.full_strength(), "not at full strength: {:#}", trial.0);
    }
    // Or it would prove nothing.
    for outcomes in [&one, &three] {
        let failed = outcomes.get(failures).copied().unwrap_or(0);
        assert!(failed as u64 * 50 <= draws, "the injector failed too often");
    }
    assert!(three.get("corrected").copied().unwrap_or(0) > 0);
    let crashed = one.get("crash").copied().unwrap_or(0);
    let corrupted = one.get("silent-corruption").copied().unwrap_or(0);
    assert!(crashed > 0, "the same faults crash nothing alone");
    // One in some hundred: a short run may have none.
    assert!(
        corrupted > 0 || draws < 1000,
        "the same faults corrupt nothing alone"
    );
    // The faults are the same for both.
    for trial in of(1) {
        let other = of(3).find(|other| other.draw() == trial.draw()).unwrap();
        for key in ["fault", "trigger", "stratum", "victim"] {
            assert_eq!(trial.0[key], other.0[key], "draw {}", trial.draw());
        }
    }
}

#[test]
fn what_two_of_three_agree_on_is_released_and_what_they_do_not_agree_on_is_not() {
    let _turn = one_at_a_time("the same fault in one, two and three of three replicas");
    let out = tempfile::tempdir().unwrap();
    let draws = length("QUORATE_TEST_CORRELATED", 135);
    let out = out.path().join("correlated");
    let found = trials_of(&ready("redis-correlated"), &out, &words(&draws.to_string())).unwrap();
    let of = |copies| outcomes(found.iter().filter(move |trial| trial.copies() == copies));
    let (one, two, three) = (of(1), of(2), of(3));
    println!("in one: {one:?}\nin two: {two:?}\nin three: {three:?}");
    for outcome in one.keys() {
        let fine = ["masked", "corrected", "injector-failure"].contains(&outcome.as_str());
        assert!(fine, "in one replica: {outcome}");
    }
    let count = |of: &std::collections::BTreeMap<String, usize>, outcome: &str| {
        of.get(outcome).copied().unwrap_or(0)
    };
    assert!(
        count(&two, "silent-corruption") > 0,
        "two agree on nothing wrong"
    );
    assert!(count(&three, "silent-corruption") > 0);
    // Those who disagree release nothing: they begin again from their checkpoints, or the set stops.
    let no_majority = |text: &str| text.contains("no majority");
    let mut disagreeing = found
        .iter()
        .filter(|trial| trial.copies() > 1 && no_majority(trial.text("evidence")))
        .peekable();
    assert!(disagreeing.peek().is_some(), "nobody disagrees");
    for trial in disagreeing {
        let fine = ["corrected", "stopped"].contains(&trial.outcome());
        assert!(fine, "released without a majority: {:#}", trial.0);
    }
}

#[test]
fn a_campaign_that_is_killed_split_or_run_again_finds_the_same() {
    let _turn = one_at_a_time("kill -9 and --resume, shards and merge, the same seed twice");
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let file = ready("compute");
    let few = FEW.to_string();
    let whole = trials_of(&file, &at("whole"), &words(&few)).unwrap();
    let expected = table(&whole).unwrap();
    assert_eq!(expected.len() as u64, 2 * FEW);
    println!("{:?}", outcomes(whole.iter()));

    // Killed when some are done, then again, then let go on.
    let killed = at("killed");
    let mut before = String::new();
    for at_least in [5, 15] {
        let more: &[&str] = if before.is_empty() {
            &[]
        } else {
            &["--resume"]
        };
        let all: Vec<&str> = words(&few)
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        let process = start(&file, &killed, &all).unwrap();
        wait_for_lines(&process, &killed, at_least);
        process.signal(Signal::KILL);
        let ended = process.wait(CAMPAIGN_TIMEOUT).unwrap();
        assert_eq!(ended.code, 128 + 9, "{}", ended.stderr);
        let kept = std::fs::read_to_string(killed.join("trials.jsonl")).unwrap();
        let whole_lines = &kept[..kept.rfind('\n').map_or(0, |end| end + 1)];
        assert!(
            whole_lines.starts_with(&before),
            "trials were lost or done again"
        );
        before = whole_lines.to_owned();
    }
    assert!(
        before.lines().count() < 2 * FEW as usize,
        "it was killed too late"
    );
    // Without --resume it does not touch them.
    let refused = start(&file, &killed, &words(&few))
        .unwrap()
        .wait(CAMPAIGN_TIMEOUT)
        .unwrap();
    assert_ne!(refused.code, 0, "{}", refused.stderr);
    assert!(refused.stderr.contains("--resume"), "{}", refused.stderr);
    let all: Vec<&str> = words(&few).into_iter().chain(["--resume"]).collect();
    let resumed = trials_of(&file, &killed, &all).unwrap();
    let after = std::fs::read_to_string(killed.join("trials.jsonl")).unwrap();
    assert!(after.starts_with(&before), "trials were lost or done again");
    assert_eq!(table(&resumed).unwrap(), expected);

    // In three parts.
    let mut merge = vec!["merge".to_owned()];
    for shard in 1..=3 {
        let part = at(&format!("shard-{shard}"));
        let number = format!("{shard}/3");
        let all: Vec<&str> = words(&few)
            .into_iter()
            .chain(["--shard", &number])
            .collect();
        let trials = trials_of(&file, &part, &all).unwrap();
        assert!(trials.iter().all(|trial| trial.draw() % 3 == shard - 1));
        merge.push(part.display().to_string());
    }
    let merged = at("merged");
    merge.extend(["--out".to_owned(), merged.display().to_string()]);
    let arguments: Vec<&str> = merge.iter().map(String::as_str).collect();
    let ended = campaign(&arguments).unwrap();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(table(&trials(&merged).unwrap()).unwrap(), expected);
    for name in ["report.html", "report.json", "trials.csv", "campaign.json"] {
        assert!(merged.join(name).is_file(), "{name}");
        assert!(killed.join(name).is_file(), "{name}");
    }
}

/// Waits until a campaign's file of trials has so many lines.
fn wait_for_lines(process: &quorate_tests::process::Process, out: &Path, at_least: usize) {
    // Nothing tells when a line has been written but the file itself; waiting for the end of the process is how the time passes.
    const BETWEEN: Duration = Duration::from_millis(5);
    let lines = || {
        let text = std::fs::read_to_string(out.join("trials.jsonl")).unwrap_or_default();
        text.matches('\n').count()
    };
    let begun = std::time::Instant::now();
    while lines() < at_least {
        assert!(begun.elapsed() < CAMPAIGN_TIMEOUT, "no trials come");
        if let Ok(ended) = process.wait(BETWEEN) {
            panic!("it ended too early: {ended:?}");
        }
    }
}
