//! Replicas that disagree without a majority.

use super::*;

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
