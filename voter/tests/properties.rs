//! Properties over arbitrary ballots, orders and calls.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{Set, config, id};
use proptest::prelude::*;
use quorate_voter::{
    Channel, Config, Event, Lockstep, NoMajorityCause, Output, Rejoin, ReplicaState, Step,
    StopReason,
};

/// Few different ballots, so that agreement is common.
fn ballot() -> impl Strategy<Value = Vec<Output>> {
    let output = (0..2u16, prop::collection::vec(0..2u8, 0..2));
    prop::collection::vec(output.prop_map(|(c, b)| (Channel(c), b)), 0..3)
}

/// A ballot for each of 1 to 9 replicas, mostly the same, and an order of arrival.
fn one_boundary() -> impl Strategy<Value = (Vec<Vec<Output>>, Vec<usize>)> {
    (1..=9usize).prop_flat_map(|n| {
        let ballots = (
            ballot(),
            prop::collection::vec(prop::option::weighted(0.3, ballot()), n),
        )
            .prop_map(|(usual, own)| {
                own.into_iter()
                    .map(|own| own.unwrap_or_else(|| usual.clone()))
                    .collect()
            });
        (ballots, Just((0..n).collect::<Vec<_>>()).prop_shuffle())
    })
}

#[derive(Clone, Debug)]
enum Call {
    Cast(u8, u64, Vec<Output>),
    Next(u8, Vec<Output>),
    Step(u8),
    Lead(u8, usize),
    Fail(u8),
    Tick,
    Poll,
    Later(u64),
    Time(u64),
    Rejoin(u8, Option<u64>),
    Add(u8),
    Remove(u8),
    Keep(u64),
}

fn call() -> impl Strategy<Value = Call> {
    let r = 0..6u8;
    prop_oneof![
        1 => (r.clone(), 0..5u64, ballot()).prop_map(|(r, s, b)| Call::Cast(r, s, b)),
        8 => (r.clone(), ballot()).prop_map(|(r, b)| Call::Next(r, b)),
        8 => r.clone().prop_map(Call::Step),
        6 => (r.clone(), 0..700usize).prop_map(|(r, n)| Call::Lead(r, n)),
        1 => r.prop_map(Call::Fail),
        2 => Just(Call::Tick),
        4 => Just(Call::Poll),
        2 => (0..2000u64).prop_map(Call::Later),
        1 => any::<u64>().prop_map(Call::Time),
    ]
}

/// The calls of a set whose replicas come back.
fn any_call() -> impl Strategy<Value = Call> {
    let r = 0..7u8;
    let how = prop_oneof![
        3 => Just(None),
        5 => (0..6u64).prop_map(Some),
        1 => any::<u64>().prop_map(Some),
    ];
    prop_oneof![
        30 => call(),
        4 => (r.clone(), how).prop_map(|(r, how)| Call::Rejoin(r, how)),
        1 => r.clone().prop_map(Call::Add),
        1 => r.prop_map(Call::Remove),
        1 => prop_oneof![0..20u64, Just(u64::MAX)].prop_map(Call::Keep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Released is what a majority of the configured cast, and nothing else; outvoted is who cast something else;
    /// the order of arrival changes nothing about either (R2, R5).
    #[test]
    fn a_boundary_is_decided_by_counting((ballots, order) in one_boundary()) {
        let n = ballots.len();
        let mut set = Set::new(config(n as u8));
        for r in &order {
            set.cast(*r as u8, ballots[*r].clone());
        }
        let winner = ballots.iter().find(|b| {
            ballots.iter().filter(|other| other == b).count() > n / 2
        });
        let released: Vec<Output> = set.released().into_iter().map(|(_, c, b)| (c, b)).collect();
        match winner {
            Some(winner) => {
                prop_assert_eq!(&released, winner);
                prop_assert!(set.inner.outcome().is_none());
                for (r, cast) in ballots.iter().enumerate() {
                    let outvoted = matches!(set.stopped(r as u8), Some(StopReason::Outvoted(_)));
                    prop_assert_eq!(outvoted, cast != winner);
                }
                prop_assert_eq!(set.inner.stats().window_bytes_used, 0);
            }
            None => {
                prop_assert!(released.is_empty());
                prop_assert!(set.all_run());
                let split = matches!(set.outcome().cause, NoMajorityCause::Split { .. });
                prop_assert!(split);
            }
        }
    }

    /// Any calls in any order with any arguments: no panic, the bounds hold (R10), entries are unique (R1),
    /// releases are in order (R3), and after the end there are none (R5).
    #[test]
    fn any_calls_are_survived(
        replicas in 1..=5u8,
        window in 1..4u64,
        recoverable in any::<bool>(),
        calls in prop::collection::vec(any_call(), 0..300),
    ) {
        let config = Config {
            replicas,
            window_boundaries: window,
            window_bytes: 1024,
            lag_timeout_ns: 1000,
            lag_factor: 2,
        };
        let mut set = match recoverable {
            true => Lockstep::recoverable(config, [7; 32]).unwrap(),
            false => Lockstep::new(config).unwrap(),
        };
        let mut most = config;
        let mut now = 0u64;
        let mut written = Vec::new();
        let mut last = 0;
        let mut ended = false;
        for (i, call) in calls.into_iter().enumerate() {
            let next = |set: &Lockstep<usize>, r| match set.state(id(r)) {
                ReplicaState::Running { boundary }
                | ReplicaState::Recovering { boundary, .. } => boundary,
                ReplicaState::Stopped { .. } => 0,
            };
            match call {
                Call::Cast(r, s, b) => drop(set.cast(id(r), s, b, now)),
                Call::Next(r, b) => drop(set.cast(id(r), next(&set, r), b, now)),
                Call::Step(r) => {
                    if let Step::Deliver(entry) = set.step(id(r), now) {
                        let at = next(&set, r) as usize - 1;
                        prop_assert_eq!(Some(&entry), written.get(at));
                    }
                }
                Call::Lead(r, bytes) => {
                    let at = next(&set, r) as usize;
                    if set.lead(id(r), i, bytes, now).is_ok() {
                        written.push(i);
                        prop_assert_eq!(written.len(), at);
                    }
                }
                Call::Fail(r) => set.fail(id(r), StopReason::Killed, now),
                Call::Tick => set.tick(now),
                Call::Poll => match set.poll_event() {
                    Some(Event::Release { boundary, .. }) => {
                        prop_assert!(boundary >= last && !ended);
                        last = boundary;
                    }
                    Some(Event::NoMajority(_)) => ended = true,
                    Some(Event::Majority { .. }) => {
                        prop_assert!(recoverable && ended);
                        ended = false;
                    }
                    _ => {}
                },
                Call::Later(by) => now = now.saturating_add(by),
                Call::Time(to) => now = to,
                Call::Rejoin(r, how) => {
                    let _ = set.rejoin(id(r), how.map_or(Rejoin::Start, Rejoin::At), now);
                }
                Call::Add(r) => drop(set.add(id(r), now)),
                Call::Remove(r) => drop(set.remove(id(r), now)),
                Call::Keep(from) => set.keep_from(from),
            }
            let stats = set.stats();
            most.replicas = most.replicas.max(stats.replicas);
            prop_assert!(stats.window_bytes_peak <= most.max_stored_bytes());
            // Whoever has nearly caught up may be behind the slowest.
            prop_assert!(stats.window_boundaries_used <= window + u64::from(recoverable) * (window + 1));
            prop_assert!(set.history().from <= stats.boundaries);
            prop_assert!(stats.healthy >= stats.quorum || set.outcome().is_some());
        }
    }
}
