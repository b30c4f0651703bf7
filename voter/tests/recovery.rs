//! Replicas that come back, case by case.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{MS, NET, S, Set, config, id, net};
use quorate_voter::{
    Config, Event, HISTORY_OVERHEAD, LeadError, Lockstep, NoMajorityCause, Past, Rejoin,
    RejoinError, ReplicaState, ResumeError, Step, StopReason, ballot_digest,
};

/// What an honest replica casts at a boundary.
fn word(s: u64) -> Vec<(quorate_voter::Channel, Vec<u8>)> {
    net(format!("word {s}").as_bytes())
}

/// Casts the right word and goes on.
fn right(set: &mut Set, r: u8) {
    let s = set.at(r);
    set.run(r, word(s));
}

/// Runs replicas, one boundary each in turn, until all are to cast `boundary`.
fn up_to(set: &mut Set, replicas: &[u8], boundary: u64) {
    for _ in 0..boundary {
        for r in replicas {
            if set.at(*r) < boundary {
                right(set, *r);
            }
        }
    }
}

fn words(boundaries: std::ops::Range<u64>) -> Vec<(u64, quorate_voter::Channel, Vec<u8>)> {
    boundaries.map(|s| (s, NET, word(s)[0].1.clone())).collect()
}

fn recovered(events: &[Event]) -> Vec<(u8, u64)> {
    let one = |event: &Event| match event {
        Event::Recovered { replica, boundary } => Some((replica.0, *boundary)),
        _ => None,
    };
    events.iter().filter_map(one).collect()
}

#[test]
fn a_replica_replays_catches_up_and_votes_again() {
    let mut set = Set::recoverable(config(3));
    up_to(&mut set, &[0, 1, 2], 10);
    set.kill(2);
    up_to(&mut set, &[0, 1], 200);
    set.events();
    set.rejoin(2, Rejoin::At(4));
    assert_eq!(set.step(2), Step::Deliver(4));
    assert!(set.recovering(2));
    assert_eq!(set.inner.stats().healthy, 2);
    // The others do not wait for it, and release nothing twice.
    up_to(&mut set, &[0, 1], 300);
    assert_eq!(set.released(), words(200..300));
    set.cast(2, word(5));
    set.go(2);
    up_to(&mut set, &[2], 299);
    assert!(set.recovering(2));
    assert_eq!(set.released(), []);
    right(&mut set, 2);
    assert_eq!(recovered(&set.events()), [(2, 300)]);
    assert_eq!(
        set.inner.state(id(2)),
        ReplicaState::Running { boundary: 300 }
    );
    // It can decide now.
    set.kill(0);
    set.events();
    set.cast(2, word(300));
    set.cast(1, word(300));
    assert_eq!(set.released(), words(300..301));
}

#[test]
fn a_replica_may_begin_afresh_as_long_as_the_history_goes_back() {
    let mut set = Set::recoverable(config(3));
    up_to(&mut set, &[0, 1, 2], 10);
    set.kill(1);
    set.rejoin(1, Rejoin::Start);
    assert_eq!(set.step(1), Step::Held, "it has to cast first");
    up_to(&mut set, &[1], 10);
    assert_eq!(recovered(&set.events()), [(1, 10)]);
    set.kill(1);
    set.inner.keep_from(6);
    let gone = |wanted| Err(RejoinError::Gone { wanted, from: 6 });
    let rejoin = |set: &mut Set, how| set.inner.rejoin(id(1), how, 0);
    assert_eq!(rejoin(&mut set, Rejoin::Start), gone(0));
    assert_eq!(rejoin(&mut set, Rejoin::At(5)), gone(5));
    assert_eq!(
        rejoin(&mut set, Rejoin::At(10)),
        Err(RejoinError::NotDecided {
            wanted: 10,
            frontier: 10
        })
    );
    assert_eq!(
        set.inner.rejoin(id(0), Rejoin::At(6), 0),
        Err(RejoinError::NotStopped(id(0)))
    );
    assert_eq!(
        set.inner.rejoin(id(3), Rejoin::At(6), 0),
        Err(RejoinError::UnknownReplica(id(3)))
    );
    assert_eq!(rejoin(&mut set, Rejoin::At(6)), Ok(()));
    assert_eq!(
        Set::new(config(3)).inner.rejoin(id(0), Rejoin::Start, 0),
        Err(RejoinError::NotRecoverable)
    );
}

#[test]
fn a_relapse_is_found_by_bytes_and_by_digest() {
    for (slow, window) in [(true, 64), (false, 64), (false, 2)] {
        let mut set = Set::recoverable(Config {
            window_boundaries: window,
            ..config(5)
        });
        up_to(&mut set, &[0, 1, 2, 3, 4], 5);
        set.kill(4);
        // With a slow replica the ballots themselves are still there.
        up_to(&mut set, if slow { &[0, 1, 2] } else { &[0, 1, 2, 3] }, 20);
        set.rejoin(4, Rejoin::At(2));
        set.go(4);
        up_to(&mut set, &[4], 10);
        set.events();
        set.cast(4, net(b"word 1O"));
        let stopped = Event::Stopped {
            replica: id(4),
            reason: StopReason::Relapsed { boundary: 10 },
        };
        assert_eq!(set.events(), [stopped], "R7");
        assert_eq!(set.inner.stats().replayed, 7);
        // Again, from an older checkpoint.
        set.rejoin(4, Rejoin::At(0));
        set.go(4);
        up_to(&mut set, &[4], 20);
        assert_eq!(recovered(&set.events()), [(4, 20)]);
    }
}

#[test]
fn a_former_vote_does_not_count_when_its_replica_is_back() {
    let mut set = Set::recoverable(config(3));
    up_to(&mut set, &[0, 1, 2], 3);
    // Replica 2 votes at 3 and dies; its vote must not decide with that of replica 0.
    right(&mut set, 2);
    set.kill(2);
    set.events();
    set.cast(0, word(3));
    assert_eq!(set.released(), [], "R2");
    set.rejoin(2, Rejoin::At(1));
    set.go(2);
    set.run(2, word(2));
    assert_eq!(recovered(&set.events()), [(2, 3)]);
    // Back, it has one vote.
    set.cast(2, word(3));
    assert_eq!(set.released(), words(3..4));
}

#[test]
fn the_last_one_of_three_waits_for_those_who_come_back() {
    let mut set = Set::recoverable(config(3));
    up_to(&mut set, &[0, 1, 2], 8);
    set.kill(1);
    set.kill(2);
    assert_eq!(set.outcome().cause, NoMajorityCause::TooFew);
    set.cast(0, word(8));
    assert_eq!(set.step(0), Step::Held);
    set.released();
    for s in [1, 2] {
        assert_eq!(set.inner.outcome().is_some(), s == 1);
        set.rejoin(s, Rejoin::At(3));
        set.go(s);
        up_to(&mut set, &[s], 8);
    }
    // Replica 1 brought the quorum back.
    let events = set.events();
    assert_eq!(recovered(&events), [(1, 8), (2, 8)]);
    assert_eq!(events[1], Event::Majority { boundary: 8 });
    assert_eq!(events.len(), 3);
    // The ballot of replica 0 is still there.
    set.cast(1, word(8));
    assert_eq!(set.released(), words(8..9));
    set.go(0);
    set.go(1);
    right(&mut set, 2);
    up_to(&mut set, &[0, 1, 2], 12);
    assert_eq!(set.released(), words(9..12));
}

#[test]
fn a_single_replica_goes_on_where_it_crashed() {
    let mut set = Set::recoverable(config(1));
    up_to(&mut set, &[0], 6);
    assert_eq!(set.released(), words(0..6));
    set.kill(0);
    assert_eq!(
        set.inner.state(id(0)),
        ReplicaState::Stopped {
            boundary: 6,
            reason: StopReason::Killed
        }
    );
    set.rejoin(0, Rejoin::At(2));
    set.go(0);
    up_to(&mut set, &[0], 9);
    assert_eq!(set.released(), words(6..9), "R3: at the frontier, once");
    // Before the entry of its checkpoint is written.
    set.cast(0, word(9));
    set.kill(0);
    set.events();
    set.rejoin(0, Rejoin::At(9));
    assert_eq!(set.step(0), Step::Lead);
    assert_eq!(
        set.events(),
        [
            Event::Recovered {
                replica: id(0),
                boundary: 10
            },
            Event::Majority { boundary: 10 }
        ]
    );
    set.go(0);
    up_to(&mut set, &[0], 12);
    assert_eq!(set.released(), words(10..12));
}

#[test]
fn two_that_disagree_both_begin_again() {
    let mut set = Set::recoverable(config(2));
    up_to(&mut set, &[0, 1], 5);
    set.released();
    right(&mut set, 0);
    set.cast(1, net(b"wird 5"));
    let events = set.events();
    assert!(matches!(&events[0], Event::NoMajority(end)
        if matches!(end.cause, NoMajorityCause::Split { .. })));
    for r in 0..2 {
        assert_eq!(set.stopped(r), Some(StopReason::Disputed { boundary: 5 }));
        assert!(matches!(events[1 + usize::from(r)], Event::Stopped { .. }));
    }
    assert_eq!(events.len(), 3);
    assert!(set.inner.outcome().is_some());
    for r in 0..2 {
        set.rejoin(r, Rejoin::At(3));
        set.go(r);
        set.run(r, word(4));
    }
    assert!(set.inner.outcome().is_none());
    // The entry that replica 0 wrote beyond the frontier stands.
    set.run(0, word(5));
    set.run(1, word(5));
    up_to(&mut set, &[0, 1], 9);
    assert_eq!(set.released(), words(5..9));
}

#[test]
fn a_dispute_waits_for_the_vote_of_who_recovers() {
    let mut set = Set::recoverable(config(3));
    up_to(&mut set, &[0, 1, 2], 5);
    set.kill(2);
    set.cast(0, word(5));
    set.cast(1, net(b"wird 5"));
    assert!(matches!(set.outcome().cause, NoMajorityCause::Split { .. }));
    assert_eq!(set.step(0), Step::Held);
    assert_eq!((set.stopped(0), set.stopped(1)), (None, None));
    set.rejoin(2, Rejoin::At(3));
    set.go(2);
    set.ticks(S);
    set.run(2, word(4));
    set.events();
    set.cast(2, word(5));
    assert!(matches!(set.stopped(1), Some(StopReason::Outvoted(_))));
    assert_eq!(set.stopped(0), None);
    assert_eq!(set.released(), words(5..6));
}

#[test]
fn a_dispute_without_a_third_vote_ends_in_time() {
    let mut set = Set::recoverable(config(3));
    up_to(&mut set, &[0, 1, 2], 5);
    set.kill(2);
    set.cast(0, word(5));
    set.cast(1, net(b"wird 5"));
    set.ticks(2 * S);
    assert_eq!(set.stopped(0), None, "replica 2 may be on its way");
    set.ticks(2 * S + 100 * MS);
    for r in 0..2 {
        assert_eq!(set.stopped(r), Some(StopReason::Disputed { boundary: 5 }));
    }
    // If it recovers and hangs, likewise.
    let mut set = Set::recoverable(config(3));
    up_to(&mut set, &[0, 1, 2], 5);
    set.kill(2);
    set.rejoin(2, Rejoin::At(3));
    set.cast(0, word(5));
    set.cast(1, net(b"wird 5"));
    set.ticks(2 * S + 100 * MS);
    assert!(matches!(set.stopped(2), Some(StopReason::Lagging { .. })));
    set.ticks(10 * S);
    assert!(matches!(set.stopped(0), Some(StopReason::Disputed { .. })));
}

#[test]
fn three_that_disagree_all_begin_again_and_nothing_is_lost() {
    let mut set = Set::recoverable(config(3));
    up_to(&mut set, &[0, 1, 2], 5);
    set.released();
    for (r, wrong) in [(0, b"a"), (1, b"b"), (2, b"c")] {
        set.cast(r, net(wrong));
    }
    for r in 0..3 {
        assert_eq!(set.stopped(r), Some(StopReason::Disputed { boundary: 5 }));
    }
    for r in 0..3 {
        set.rejoin(r, Rejoin::Start);
        up_to(&mut set, &[r], 5);
    }
    assert_eq!(set.inner.stats().healthy, 3);
    up_to(&mut set, &[0, 1, 2], 9);
    assert_eq!(set.released(), words(5..9));
}

#[test]
fn laggards_of_a_stalled_set_are_stopped_and_come_back() {
    let mut set = Set::recoverable(config(2));
    up_to(&mut set, &[0, 1], 5);
    set.events();
    set.cast(0, word(5));
    set.ticks(2 * S + 100 * MS);
    let events = set.events();
    assert!(
        matches!(&events[0], Event::Release { .. }) || matches!(&events[0], Event::NoMajority(_))
    );
    assert!(matches!(set.stopped(1), Some(StopReason::Lagging { .. })));
    assert_eq!(set.stopped(0), None);
    set.rejoin(1, Rejoin::At(3));
    set.go(1);
    right(&mut set, 1);
    right(&mut set, 1);
    assert_eq!(set.released(), words(5..6));
}

#[test]
fn a_recovering_replica_that_hangs_is_stopped() {
    let mut set = Set::recoverable(config(3));
    for s in 0..20 {
        set.now += 50 * MS;
        for r in 0..3 {
            set.cast(r, word(s));
        }
        for r in 0..3 {
            set.go(r);
        }
    }
    set.kill(0);
    set.rejoin(0, Rejoin::At(10));
    set.go(0);
    // The quorum had needed 50 ms: 2 s and four times that are allowed.
    set.tick(set.now + 2 * S + 200 * MS);
    assert!(set.recovering(0));
    set.tick(set.now + 1);
    assert!(matches!(
        set.stopped(0),
        Some(StopReason::Lagging { boundary: 11, .. })
    ));
    // Also before it takes its entry.
    set.rejoin(0, Rejoin::At(10));
    set.tick(set.now + 3 * S);
    assert!(set.stopped(0).is_some());
    assert_eq!(set.inner.stats().healthy, 2);
}

#[test]
fn one_that_hangs_on_its_way_back_to_the_frontier_is_stopped() {
    let mut set = Set::recoverable(config(2));
    up_to(&mut set, &[0, 1], 5);
    right(&mut set, 0);
    set.kill(1);
    set.rejoin(1, Rejoin::At(4));
    set.go(1);
    set.ticks(30 * S);
    assert!(matches!(
        set.stopped(1),
        Some(StopReason::Lagging { boundary: 5, .. })
    ));
}

#[test]
fn the_others_wait_for_who_has_nearly_caught_up_and_not_before() {
    let mut set = Set::recoverable(Config {
        window_boundaries: 8,
        ..config(3)
    });
    up_to(&mut set, &[0, 1, 2], 2);
    set.kill(2);
    up_to(&mut set, &[0, 1], 50);
    set.rejoin(2, Rejoin::At(0));
    set.go(2);
    up_to(&mut set, &[2], 45);
    assert!(matches!(
        set.inner.state(id(2)),
        ReplicaState::Recovering {
            promoted: false,
            ..
        }
    ));
    up_to(&mut set, &[2], 46);
    assert!(matches!(
        set.inner.state(id(2)),
        ReplicaState::Recovering { promoted: true, .. }
    ));
    up_to(&mut set, &[0, 1], 53);
    set.cast(0, word(53));
    set.cast(1, word(53));
    assert_eq!(set.step(0), Step::WindowFull);
    // As fast as the others, and never at the frontier: after half a window it counts as one of them.
    for s in 46..50 {
        assert!(set.recovering(2), "{s}");
        right(&mut set, 2);
        set.go(0);
        set.go(1);
        set.cast(0, word(s + 8));
        set.cast(1, word(s + 8));
        assert_eq!(set.step(0), Step::WindowFull);
    }
    assert!(!set.recovering(2));
    assert_eq!(set.stopped(2), None);
    // Stopped again, it is in nobody's way.
    set.kill(2);
    set.go(0);
    set.go(1);
    up_to(&mut set, &[0, 1], 90);
    assert_eq!(set.released(), words(0..90));
}

#[test]
fn who_kept_pace_and_votes_is_still_compared_with_what_was_decided_before() {
    let mut set = Set::recoverable(Config {
        window_boundaries: 8,
        ..config(3)
    });
    up_to(&mut set, &[0, 1, 2], 2);
    set.kill(2);
    up_to(&mut set, &[0, 1], 50);
    set.rejoin(2, Rejoin::At(45));
    up_to(&mut set, &[0, 1], 53);
    set.go(2);
    up_to(&mut set, &[2], 50);
    assert_eq!(
        set.inner.state(id(2)),
        ReplicaState::Running { boundary: 50 }
    );
    right(&mut set, 2);
    set.cast(2, net(b"wird 51"));
    let Some(StopReason::Outvoted(verdict)) = set.stopped(2) else {
        panic!("R5");
    };
    assert_eq!((verdict.boundary, verdict.offset), (51, 1));
}

#[test]
fn what_a_removal_decides_is_kept_for_who_has_nearly_caught_up() {
    let mut set = Set::recoverable(Config {
        window_boundaries: 8,
        ..config(4)
    });
    set.kill(3);
    up_to(&mut set, &[0, 1, 2], 50);
    set.rejoin(3, Rejoin::At(47));
    set.go(3);
    // Two of four wait for replica 2. Without it they are two of three, and three boundaries are decided at once.
    up_to(&mut set, &[0, 1], 53);
    set.released();
    set.inner.remove(id(2), 0).unwrap();
    assert_eq!(set.released(), words(50..53));
    up_to(&mut set, &[3], 52);
    assert!(!set.recovering(3), "it has kept pace for half a window");
    set.cast(3, net(b"wird 52"));
    assert!(matches!(set.stopped(3), Some(StopReason::Outvoted(_))));
}

#[test]
fn nobody_is_charged_for_catching_up() {
    let mut set = Set::recoverable(Config {
        window_boundaries: 8,
        ..config(5)
    });
    up_to(&mut set, &[0, 1, 2, 3, 4], 5);
    set.kill(4);
    up_to(&mut set, &[0, 1, 2, 3], 9);
    set.rejoin(4, Rejoin::At(4));
    set.go(4);
    up_to(&mut set, &[0, 1, 2, 3], 12);
    for r in 0..4 {
        set.cast(r, word(12));
        assert_eq!(set.step(r), Step::WindowFull);
    }
    // The others wait for it, again and again, longer than for one of them. Then it votes.
    for s in 5..9 {
        assert!(set.recovering(4));
        set.ticks(set.now + 1900 * MS);
        set.cast(4, word(s));
        for r in 0..4 {
            set.go(r);
            set.cast(r, word(s + 8));
            assert_eq!(set.step(r), Step::WindowFull);
        }
        set.go(4);
    }
    assert!(!set.recovering(4));
    set.ticks(set.now + 1900 * MS);
    assert_eq!(set.stopped(4), None);
}

#[test]
fn history_is_kept_as_far_as_the_owner_says() {
    let mut set = Set::recoverable(config(3));
    for s in 0..20u64 {
        for r in 0..3 {
            set.cast(r, word(s));
            match set.step(r) {
                Step::Lead => set.inner.lead(id(r), s, 100, 0).unwrap(),
                step => assert_eq!(step, Step::Deliver(s)),
            }
        }
    }
    let cost = 100 + HISTORY_OVERHEAD;
    let stats = set.inner.history();
    assert_eq!((stats.from, stats.entries, stats.bytes), (0, 20, 20 * cost));
    let digest = |s: &u64| (*s, *s, ballot_digest(&[7; 32], *s, &word(*s)));
    let kept: Vec<_> = set
        .inner
        .history_entries(0)
        .map(|(s, e, d)| (s, *e, d))
        .collect();
    assert_eq!(kept, (0..20).map(|s| digest(&s)).collect::<Vec<_>>());
    assert_eq!(set.inner.history_entries(17).count(), 3);
    set.inner.keep_from(15);
    let stats = set.inner.history();
    assert_eq!((stats.from, stats.entries, stats.bytes), (15, 5, 5 * cost));
    assert_eq!(set.inner.history_entries(0).count(), 5);
    // Not what a recovering replica still needs.
    set.kill(2);
    set.rejoin(2, Rejoin::At(15));
    set.go(2);
    set.inner.keep_from(u64::MAX);
    assert_eq!(set.inner.history().from, 15);
    set.cast(2, word(16));
    assert_eq!(set.inner.history().from, 16);
    set.kill(2);
    set.inner.keep_from(u64::MAX);
    assert_eq!(
        set.inner.history().from,
        19,
        "the entry that all have taken last"
    );
    // The window is not charged for history.
    assert_eq!(set.inner.stats().window_bytes_used, 100);
}

#[test]
fn a_recovering_replica_keeps_the_history_that_it_needs() {
    let mut set = Set::recoverable(Config {
        window_boundaries: 8,
        ..config(3)
    });
    up_to(&mut set, &[0, 1, 2], 2);
    set.kill(2);
    up_to(&mut set, &[0, 1], 50);
    set.rejoin(2, Rejoin::At(10));
    set.inner.keep_from(u64::MAX);
    assert_eq!(set.inner.history().from, 10);
    set.go(2);
    up_to(&mut set, &[2], 50);
    assert!(set.all_run());
    set.kill(2);
    set.inner.keep_from(40);
    assert_eq!(set.inner.history().from, 49, "what is gone is gone");
}

#[test]
fn without_a_majority_nobody_leads_beyond_the_frontier() {
    let mut set = Set::recoverable(config(3));
    up_to(&mut set, &[0, 1, 2], 5);
    set.released();
    set.cast(0, word(5));
    assert_eq!(set.step(0), Step::Lead);
    set.kill(1);
    set.kill(2);
    assert_eq!(
        set.inner.lead(id(0), 5, 0, 0),
        Err(LeadError::Held),
        "it was asked before"
    );
    assert_eq!(set.step(0), Step::Held);
    // An hour later: it has only waited.
    set.ticks(3600 * S);
    for r in 1..3 {
        set.rejoin(r, Rejoin::At(2));
        set.go(r);
        up_to(&mut set, &[r], 5);
    }
    assert!(set.all_run());
    set.tick(set.now + S);
    set.cast(1, word(5));
    assert_eq!(set.released(), words(5..6));
    set.go(0);
    assert!(set.all_run());
}

#[test]
fn a_replay_that_is_no_faster_than_the_others_arrives_nevertheless() {
    let mut set = Set::recoverable(Config {
        window_boundaries: 8,
        ..config(3)
    });
    up_to(&mut set, &[0, 1, 2], 2);
    set.kill(2);
    up_to(&mut set, &[0, 1], 100);
    set.rejoin(2, Rejoin::At(0));
    set.go(2);
    // Each makes a step in turn, if it is let.
    let mut steps = 0;
    let mut waited = 0;
    while set.recovering(2) {
        steps += 1;
        right(&mut set, 2);
        for r in 0..2 {
            let s = set.at(r);
            set.cast(r, word(s));
        }
        while set.recovering(2) && set.step(0) == Step::WindowFull {
            waited += 1;
            right(&mut set, 2);
        }
        set.go(0);
        set.go(1);
    }
    // 98 to where they were, then as many at half their pace.
    assert!((98..=98 * 2 + 8).contains(&steps), "{steps}");
    assert!((90..=98).contains(&waited), "{waited}");
    // It lets go when it is stopped.
    set.kill(2);
    set.rejoin(2, Rejoin::At(0));
    set.go(2);
    for _ in 0..400 {
        if set.at(2) < set.at(0) {
            right(&mut set, 2);
        }
        for r in 0..2 {
            if set.step(r) != Step::WindowFull {
                set.go(r);
                let s = set.at(r);
                set.cast(r, word(s));
            }
        }
        if set.step(0) == Step::WindowFull && set.step(1) == Step::WindowFull {
            break;
        }
    }
    assert_eq!(set.step(0), Step::WindowFull);
    set.kill(2);
    set.go(0);
    set.go(1);
    up_to(&mut set, &[0, 1], 600);
}

#[test]
fn a_laggard_is_late_where_a_smaller_quorum_had_decided() {
    let mut set = Set::recoverable(config(3));
    for r in 0..3 {
        right(&mut set, r);
    }
    // Two of three decide boundary 1 and 2; replica 2 hangs. Then two join.
    up_to(&mut set, &[0, 1], 3);
    for r in 3..5 {
        set.inner.add(id(r), set.now).unwrap();
        set.rejoin(r, Rejoin::Start);
        up_to(&mut set, &[r], 3);
    }
    assert_eq!(set.inner.config().quorum(), 3);
    set.ticks(3 * S);
    assert!(matches!(
        set.stopped(2),
        Some(StopReason::Lagging { boundary: 1, .. })
    ));
}

#[test]
fn of_two_the_one_that_came_must_repeat_it_too_when_the_other_is_late_again() {
    let mut set = Set::recoverable(config(2));
    up_to(&mut set, &[0, 1], 5);
    // Replica 0 skips what replica 1 computes for a long time.
    set.cast(0, net(b"wird 5"));
    for round in 0..2 {
        assert_eq!(set.stopped(0), None);
        set.ticks(set.now + 2 * S + 100 * MS);
        assert!(matches!(set.stopped(1), Some(StopReason::Lagging { .. })));
        set.rejoin(1, Rejoin::At(3));
        set.go(1);
        right(&mut set, 1);
        assert_eq!(set.stopped(0).is_some(), round == 1, "{round}");
    }
    assert_eq!(set.stopped(0), Some(StopReason::Disputed { boundary: 5 }));
    set.released();
    set.rejoin(0, Rejoin::At(3));
    set.go(0);
    right(&mut set, 0);
    set.ticks(set.now + 10 * S);
    assert!(set.all_run(), "nobody came, so nobody is late");
    set.cast(1, word(5));
    set.cast(0, word(5));
    assert_eq!(set.released(), words(5..6));
}

#[test]
fn a_saved_set_goes_on_where_it_stood() {
    let mut set = Set::recoverable(config(3));
    up_to(&mut set, &[0, 1, 2], 20);
    // Replica 0 is ahead: its entry is not decided, and stands.
    right(&mut set, 0);
    set.inner.keep_from(8);
    let past = |set: &Set, entries: u64| Past {
        from: 8,
        entries: (8..entries).map(|s| (s, 10)).collect(),
        digests: set.inner.history_entries(8).map(|(_, _, d)| d).collect(),
    };
    let mut next = Set::of(Lockstep::resume(config(3), [7; 32], past(&set, 21)).unwrap());
    assert_eq!(next.events(), []);
    assert_eq!(next.stopped(1), Some(StopReason::Joining));
    assert_eq!(next.inner.history().from, 8);
    assert_eq!(next.inner.stats().window_bytes_used, 20);
    assert_eq!(next.outcome().cause, NoMajorityCause::TooFew);
    // One of them was saved wrongly.
    next.rejoin(0, Rejoin::At(8));
    next.go(0);
    next.cast(0, word(8));
    assert_eq!(next.stopped(0), Some(StopReason::Relapsed { boundary: 9 }));
    for (r, at) in [(1, 15), (2, 9), (0, 18)] {
        next.rejoin(r, Rejoin::At(at));
        next.go(r);
        up_to(&mut next, &[r], 20);
    }
    up_to(&mut next, &[0, 1, 2], 25);
    assert_eq!(next.released(), words(20..25), "R3: from where it stood");
    // The last entry need not have been written.
    let mut last = Set::of(Lockstep::resume(config(3), [7; 32], past(&set, 19)).unwrap());
    for r in 0..3 {
        last.rejoin(r, Rejoin::At(19));
        assert_eq!(last.step(r), Step::Lead);
    }
    assert!(last.inner.outcome().is_none());
    let gap = Lockstep::resume(config(3), [7; 32], past(&set, 18));
    assert_eq!(gap.err(), Some(ResumeError::EntryMissing(18)));
    let none = Past {
        digests: vec![],
        ..past(&set, 18)
    };
    let none = Lockstep::resume(config(3), [7; 32], none);
    assert_eq!(none.err(), Some(ResumeError::NoDigest(8)));
}
