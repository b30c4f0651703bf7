//! The runner with planted outcomes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use super::results::{FILE, Reader, Writer};
use super::synthetic::{Planted, drawn};
use super::*;
use crate::bench::Trials;
use crate::model::{Outcome, TrialRecord};
use crate::stats::{Confidence, OutcomeTable};

struct Ran {
    result: Result<Ended, RunError>,
    records: Vec<TrialRecord>,
}

fn run(
    directory: &std::path::Path,
    goal: &Goal,
    jobs: usize,
    shard: Option<Shard>,
    make: &(dyn Fn(usize) -> Result<Box<dyn Trials>, BenchError> + Sync),
    watch: &mut dyn FnMut(&Event<'_>, &AtomicBool),
) -> Ran {
    let path = directory.join(FILE);
    let mut done = BTreeMap::new();
    let (mut writer, _) = Writer::open(&path, |record| {
        done.insert((record.drawn.draw, record.replicas), record.outcome);
    })
    .unwrap();
    let stop = AtomicBool::new(false);
    let engine = Engine {
        replicas: &[1, 3],
        shard,
        goal,
        jobs,
        draw: &drawn,
        make,
        stop: &stop,
    };
    let result = engine.run(&mut writer, &mut done, &mut |event| watch(&event, &stop));
    let records: Vec<_> = Reader::open(&path).unwrap().map(Result::unwrap).collect();
    assert_eq!(done.len(), records.len());
    Ran { result, records }
}

fn planted(_: usize) -> Result<Box<dyn Trials>, BenchError> {
    Ok(Box::new(Planted::usual()))
}

fn complete(draws: u64) -> Ended {
    Ended::Complete { draws, found: None }
}

#[test]
fn all_trials_once_in_any_number_of_jobs() {
    let mut tables = BTreeSet::new();
    for jobs in [1, 2, 8] {
        let directory = tempfile::tempdir().unwrap();
        let ran = run(
            directory.path(),
            &Goal::Draws(100),
            jobs,
            None,
            &planted,
            &mut |_, _| (),
        );
        assert_eq!(ran.result.unwrap(), complete(100));
        assert_eq!(ran.records.len(), 200);
        tables.insert(OutcomeTable::of(&ran.records).json());
    }
    assert_eq!(tables.len(), 1);
}

/// Stopped after each number of trials, and gone on with: what is there in the end is what one run gives.
#[test]
fn stopped_and_resumed() {
    let whole = tempfile::tempdir().unwrap();
    let whole = run(
        whole.path(),
        &Goal::Draws(12),
        1,
        None,
        &planted,
        &mut |_, _| (),
    );
    let table = OutcomeTable::of(&whole.records).json();
    for after in 1..24 {
        let directory = tempfile::tempdir().unwrap();
        let mut seen = 0;
        let ran = run(
            directory.path(),
            &Goal::Draws(12),
            2,
            None,
            &planted,
            &mut |event, stop| {
                seen += u64::from(matches!(event, Event::Trial(_)));
                stop.store(seen >= after, Ordering::Relaxed);
            },
        );
        assert!(ran.records.len() as u64 >= after);
        let before = ran.records.len();
        let mut again = 0;
        let ran = run(
            directory.path(),
            &Goal::Draws(12),
            2,
            None,
            &planted,
            &mut |event, _| {
                again += usize::from(matches!(event, Event::Trial(_)));
            },
        );
        assert_eq!(ran.result.unwrap(), complete(12));
        assert_eq!(
            (before + again, ran.records.len()),
            (24, 24),
            "nothing is done twice"
        );
        assert_eq!(OutcomeTable::of(&ran.records).json(), table);
    }
}

#[test]
fn a_shard_has_its_draws_only() {
    let directory = tempfile::tempdir().unwrap();
    let shard = Some(Shard { index: 2, of: 3 });
    let ran = run(
        directory.path(),
        &Goal::Draws(20),
        2,
        shard,
        &planted,
        &mut |_, _| (),
    );
    let draws: BTreeSet<_> = ran.records.iter().map(|record| record.drawn.draw).collect();
    assert_eq!(
        draws.into_iter().collect::<Vec<_>>(),
        [1, 4, 7, 10, 13, 16, 19]
    );
    assert_eq!(ran.records.len(), 14);
}

/// At each look exactly the draws before it are done, whatever the threads; and it ends at the first that is enough.
#[test]
fn looks_are_at_their_draws() {
    let schedule = crate::stats::sequential::Schedule::new(&crate::stats::sequential::Wish {
        watch: vec![Outcome::SilentCorruption],
        ..crate::stats::sequential::Wish::new(0.05, Confidence::P95)
    })
    .unwrap();
    assert!(schedule.looks.len() > 3);
    let goal = Goal::Looks(schedule);
    let mut stops = BTreeSet::new();
    for jobs in [1, 5] {
        let directory = tempfile::tempdir().unwrap();
        let mut trials = 0;
        let ran = run(
            directory.path(),
            &goal,
            jobs,
            None,
            &planted,
            &mut |event, _| match event {
                Event::Trial(_) => trials += 1,
                Event::Look(draws, _) => assert_eq!(trials, 2 * draws),
                _ => {}
            },
        );
        let Ok(Ended::Complete {
            draws,
            found: Some(found),
        }) = ran.result
        else {
            panic!("{:?}", ran.result);
        };
        assert!(found.enough && draws < goal.most());
        stops.insert((draws, OutcomeTable::of(&ran.records).json()));
    }
    assert_eq!(stops.len(), 1);
}

#[test]
fn a_bench_that_fails_ends_it_and_keeps_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let make = |_: usize| -> Result<Box<dyn Trials>, BenchError> {
        Ok(Box::new(Planted {
            fails_at: Some(5),
            ..Planted::usual()
        }))
    };
    let ran = run(
        directory.path(),
        &Goal::Draws(10),
        3,
        None,
        &make,
        &mut |_, _| (),
    );
    let error = ran.result.unwrap_err().to_string();
    assert!(
        error.contains("draw 5 with") && error.contains("--resume goes on"),
        "{error}"
    );
    assert!(ran.records.len() >= 8);
    let ran = run(
        directory.path(),
        &Goal::Draws(10),
        3,
        None,
        &planted,
        &mut |_, _| (),
    );
    assert_eq!((ran.result.unwrap(), ran.records.len()), (complete(10), 20));

    let make = |_: usize| Err(BenchError::Broken("no machine".to_owned()));
    let directory = tempfile::tempdir().unwrap();
    let ran = run(
        directory.path(),
        &Goal::Draws(10),
        3,
        None,
        &make,
        &mut |_, _| (),
    );
    assert!(matches!(ran.result, Err(RunError::Make(_))));
}

/// A bench that panics must not leave the others waiting for ever.
#[test]
fn a_panic_is_an_error() {
    struct Panics;
    impl Trials for Panics {
        fn trial(
            &mut self,
            drawn: &crate::model::Drawn,
            replicas: u8,
        ) -> Result<TrialRecord, BenchError> {
            assert!(drawn.draw != 3, "planted");
            Planted::usual().trial(drawn, replicas)
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let make = |_: usize| -> Result<Box<dyn Trials>, BenchError> { Ok(Box::new(Panics)) };
    let ran = run(
        directory.path(),
        &Goal::Draws(10),
        2,
        None,
        &make,
        &mut |_, _| (),
    );
    assert!(matches!(ran.result, Err(RunError::Panicked)));
}
