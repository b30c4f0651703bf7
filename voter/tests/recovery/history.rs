//! What was decided is kept for as long as somebody has to be compared with it.

use super::*;

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
