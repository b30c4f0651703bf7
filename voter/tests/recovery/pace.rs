//! Who waits for whom, and when somebody is too late.

use super::*;

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
