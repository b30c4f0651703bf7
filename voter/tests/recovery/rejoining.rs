//! The way back: replay, catching up, voting again; and who does something else on it.

use super::*;

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
