//! Laggards and stalls, at exact times.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{MS, S, Set, config, id, net};
use quorate_voter::{Config, NoMajorityCause, STALL_FACTOR, Step, StopReason};

/// All cast boundary 0 at time 0 and take its entry.
fn started(config: Config) -> Set {
    let mut set = Set::new(config);
    for r in 0..config.replicas {
        set.cast(r, vec![]);
    }
    for r in 0..config.replicas {
        set.go(r);
    }
    set
}

fn lagging(set: &Set, r: u8) -> bool {
    matches!(set.stopped(r), Some(StopReason::Lagging { .. }))
}

#[test]
fn a_hung_replica_is_named_after_timeout_plus_factor_and_not_before() {
    let mut set = started(config(3));
    set.now = 10 * MS;
    set.run(0, net(b"x"));
    set.now = 50 * MS;
    set.run(1, net(b"x"));
    // The quorum was there at 50 ms and needed 50 ms: 2 s and four times that are allowed.
    set.tick(2 * S + 250 * MS);
    assert!(set.all_run());
    set.tick(2 * S + 250 * MS + 1);
    assert_eq!(
        set.stopped(2),
        Some(StopReason::Lagging {
            boundary: 1,
            late_ns: 2 * S + 200 * MS + 1,
            allowed_ns: 2 * S + 200 * MS,
            repeatedly: false
        })
    );
    assert!(set.inner.outcome().is_none());
}

#[test]
fn a_thread_that_hangs_before_it_takes_its_entry_is_late_too() {
    let mut set = Set::new(config(3));
    for r in 0..3 {
        set.cast(r, vec![]);
    }
    set.go(0);
    set.go(1);
    set.ticks(3 * S);
    assert!(set.all_run(), "nobody is further yet");
    set.cast(0, vec![]);
    set.cast(1, vec![]);
    // It could have run for 3 s, as the others did: 2 s and 12 s.
    set.ticks(17 * S);
    assert!(set.all_run());
    set.ticks(17 * S + 100 * MS);
    assert!(lagging(&set, 2));
}

#[test]
fn waiting_for_an_entry_is_not_lagging() {
    let mut set = started(config(3));
    for r in 0..3 {
        set.cast(r, vec![]);
        assert_eq!(set.step(r), Step::Lead);
    }
    set.ticks(3600 * S);
    assert!(set.all_run(), "an idle guest may sleep for an hour");
    // Nor does the hour count for whoever wakes up a little later than the others.
    set.go(0);
    set.go(1);
    set.cast(0, vec![]);
    set.cast(1, vec![]);
    set.ticks(set.now + 2 * S);
    assert!(set.all_run());
    set.ticks(set.now + 100 * MS);
    assert!(lagging(&set, 2));
}

#[test]
fn waiting_in_a_full_window_is_not_lagging() {
    let mut set = started(Config {
        window_bytes: 1024,
        ..config(5)
    });
    // Three fill the window; replica 3 is let on once, replica 4 hangs and keeps it full.
    for _ in 0..3 {
        for r in 0..3 {
            if set.step(r) != Step::WindowFull {
                set.cast(r, net(&[0; 384]));
                let _ = set.step(r).eq(&Step::Lead) && set.inner.lead(id(r), 1, 0, 0).is_ok();
            }
        }
        set.events();
    }
    set.cast(3, net(&[0; 384]));
    assert_eq!(set.step(3), Step::WindowFull);
    set.ticks(2 * S + 200 * MS);
    assert!(lagging(&set, 4));
    for r in 0..4 {
        assert_eq!(set.stopped(r), None, "{r} only waited");
    }
    // Now it can go on, and its time starts.
    set.ticks(set.now + 1900 * MS);
    assert_eq!(set.stopped(3), None);
    set.ticks(set.now + 300 * MS);
    assert!(lagging(&set, 3));
}

#[test]
fn a_long_computation_on_a_crowded_host_is_not_misjudged() {
    for replicas in [2, 3, 4] {
        let mut set = started(config(replicas));
        set.ticks(10 * S);
        set.cast(0, net(b"x"));
        set.ticks(14 * S);
        for r in 1..replicas {
            set.cast(r, net(b"x"));
            set.ticks(set.now + 4 * S);
        }
        assert!(set.all_run());
        assert!(set.inner.outcome().is_none());
        assert_eq!(set.released().len(), 1);
    }
}

#[test]
fn a_faulty_replica_cannot_make_an_honest_one_late_by_needing_no_time() {
    let mut set = Set::new(config(3));
    set.run(1, vec![]);
    set.run(2, vec![]);
    // Replica 0 comes late to boundary 0, so that it needs no time at all for boundary 1.
    set.ticks(S);
    set.cast(1, net(b"x"));
    set.run(0, vec![]);
    set.cast(0, net(b"y"));
    set.ticks(5 * S);
    assert!(
        set.stopped(2).is_none(),
        "replica 1 needed 1 s: 2 s and four times that are allowed"
    );
    set.cast(2, net(b"x"));
    assert!(matches!(set.stopped(0), Some(StopReason::Outvoted(_))));
}

#[test]
fn a_diverged_replica_that_skips_a_computation_does_not_end_the_set() {
    let mut set = started(config(3));
    set.cast(0, net(b"wrong"));
    set.ticks(2 * S * (STALL_FACTOR - 1));
    assert!(set.all_run());
    assert!(set.inner.outcome().is_none());
    set.cast(1, net(b"x"));
    set.cast(2, net(b"x"));
    assert!(matches!(set.stopped(0), Some(StopReason::Outvoted(_))));
}

/// Feeds `rounds` boundaries; replica 2 needs `slow` for each, the others `fast`. The window is one boundary.
fn paced(set: &mut Set, rounds: u64, fast: u64, slow: u64) {
    for _ in 0..rounds {
        set.ticks(set.now + fast);
        for r in [0, 1] {
            set.cast(r, vec![]);
            assert_eq!(set.step(r), Step::WindowFull);
        }
        set.ticks(set.now + slow - fast);
        if set.stopped(2).is_some() {
            return;
        }
        set.cast(2, vec![]);
        for r in [2, 0, 1] {
            set.go(r);
        }
    }
}

#[test]
fn a_replica_that_drips_is_stopped_though_it_meets_every_deadline() {
    let mut set = started(Config {
        window_boundaries: 1,
        ..config(3)
    });
    paced(&mut set, 1000, MS, 500 * MS);
    let Some(StopReason::Lagging { repeatedly, .. }) = set.stopped(2) else {
        panic!("R9: it must not slow the set for ever");
    };
    assert!(repeatedly);
    assert!(set.now < 12 * S, "{}", set.now);
}

#[test]
fn a_replica_that_is_merely_slower_stays() {
    // Four times as slow as the others, for an hour, with no slack in the window.
    let mut set = started(Config {
        window_boundaries: 1,
        ..config(3)
    });
    paced(&mut set, 3600, 250 * MS, 1000 * MS);
    assert!(set.all_run());
}

#[test]
fn a_dripping_replica_that_the_quorum_needs_stays() {
    let mut set = started(Config {
        window_boundaries: 1,
        ..config(3)
    });
    set.inner.fail(id(1), StopReason::Killed, 0);
    for _ in 0..100 {
        set.cast(0, vec![]);
        assert_eq!(set.step(0), Step::WindowFull);
        set.ticks(set.now + 500 * MS);
        set.cast(2, vec![]);
        set.go(2);
        set.go(0);
    }
    assert!(set.inner.outcome().is_none());
    assert_eq!(set.stopped(2), None);
}

fn stalled(set: &Set) -> (Vec<u8>, Vec<u8>) {
    let end = set.outcome();
    let NoMajorityCause::Stalled { cast, laggards, .. } = end.cause else {
        panic!("{end}");
    };
    let numbers = |of: Vec<quorate_voter::ReplicaId>| of.into_iter().map(|r| r.0).collect();
    (numbers(cast), numbers(laggards))
}

#[test]
fn one_of_two_that_hangs_is_named_but_not_stopped() {
    let mut set = started(config(2));
    set.cast(0, net(b"x"));
    set.ticks(2 * S);
    assert!(set.inner.outcome().is_none());
    set.ticks(2 * S + 100 * MS);
    assert_eq!(stalled(&set), (vec![0], vec![1]));
    assert!(set.all_run(), "R5: nobody can say which one is wrong");
    // It comes back: too late, nothing is released.
    set.cast(1, net(b"x"));
    assert_eq!(set.released(), []);
}

#[test]
fn two_of_three_that_hang_end_the_set() {
    let mut set = started(config(3));
    set.cast(1, net(b"x"));
    set.ticks(2 * S * STALL_FACTOR);
    assert!(set.inner.outcome().is_none());
    set.ticks(set.now + 100 * MS);
    assert_eq!(stalled(&set), (vec![1], vec![0, 2]));
}

#[test]
fn one_of_four_that_hangs_is_waited_for_while_the_others_compute() {
    let mut set = started(config(4));
    set.cast(0, net(b"x"));
    set.cast(1, net(b"x"));
    // Two of four have come; as soon as the third does, the fourth is the laggard.
    set.ticks(S);
    set.cast(2, net(b"x"));
    set.ticks(8 * S);
    assert!(lagging(&set, 3));
    assert!(set.inner.outcome().is_none());
    assert_eq!(set.released().len(), 1);
}

#[test]
fn all_that_hang_before_anybody_came_are_not_judged() {
    let mut set = started(config(3));
    set.ticks(1000 * S);
    assert!(set.all_run());
    assert!(set.inner.outcome().is_none());
}

#[test]
fn time_that_goes_back_or_jumps_does_no_harm() {
    let mut set = started(config(3));
    set.now = 100 * S;
    set.cast(0, net(b"x"));
    set.now = 50 * S;
    set.cast(1, net(b"x"));
    set.tick(0);
    set.cast(2, net(b"x"));
    assert!(set.all_run());
    set.tick(u64::MAX);
    set.tick(u64::MAX);
    assert!(set.all_run(), "all wait for an entry");
}

#[test]
fn a_time_that_went_back_makes_nobody_look_late() {
    let mut set = started(config(3));
    set.tick(100 * S);
    for r in 0..3 {
        set.cast(r, vec![]);
    }
    // The entry is written in the past: replica 2 could run from now on, not from then on.
    set.now = 0;
    for r in 0..3 {
        set.go(r);
    }
    set.cast(0, vec![]);
    set.cast(1, vec![]);
    set.tick(102 * S);
    assert!(set.all_run());
    set.tick(102 * S + 1);
    assert!(lagging(&set, 2));
}

#[test]
fn an_idle_time_is_not_counted_as_time_that_a_quorum_needed() {
    let mut set = started(config(3));
    for r in 0..3 {
        set.cast(r, vec![]);
    }
    // No tick in between.
    set.now = 100 * S;
    set.go(0);
    set.go(1);
    set.cast(0, vec![]);
    set.cast(1, vec![]);
    set.tick(102 * S + 1);
    assert!(lagging(&set, 2), "2 s, and four times nothing");
}

#[test]
fn nobody_is_charged_for_the_time_that_a_stopped_replica_held_others_up() {
    let mut set = started(Config {
        window_boundaries: 2,
        ..config(5)
    });
    // Replica 4 holds the others up at boundary 1; replica 3 takes its time at boundary 2, in nobody's way.
    for r in 0..4 {
        set.run(r, vec![]);
    }
    for r in 0..3 {
        set.cast(r, vec![]);
        assert_eq!(set.step(r), Step::WindowFull);
    }
    set.ticks(1900 * MS);
    set.inner.fail(id(4), StopReason::Killed, set.now);
    // From now on replica 3 is in the way, but never for long.
    for _ in 0..4 {
        for r in 0..3 {
            if set.step(r) != Step::WindowFull {
                set.go(r);
                set.cast(r, vec![]);
            }
            assert_eq!(set.step(r), Step::WindowFull);
        }
        set.ticks(set.now + 100 * MS);
        assert_eq!(set.stopped(3), None);
        set.run(3, vec![]);
    }
}
