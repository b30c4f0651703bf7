//! Replicas that are added and removed, case by case.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{NET, Set, config, id, net};
use quorate_voter::{Event, MemberError, NoMajorityCause, Rejoin, ReplicaState, Step, StopReason};

fn run_all(set: &mut Set, replicas: &[u8], boundaries: u64) {
    for _ in 0..boundaries {
        for r in replicas {
            set.run(*r, net(b"x"));
        }
    }
}

#[test]
fn a_new_one_counts_when_it_has_caught_up() {
    let mut set = Set::recoverable(config(3));
    run_all(&mut set, &[0, 1, 2], 5);
    set.events();
    assert_eq!(set.inner.add(id(3), 0), Ok(()));
    assert_eq!(
        set.inner.add(id(3), 0),
        Err(MemberError::AlreadyMember(id(3)))
    );
    assert_eq!(set.stopped(3), Some(StopReason::Joining));
    assert_eq!(set.inner.stats().replicas, 3);
    set.rejoin(3, Rejoin::Start);
    run_all(&mut set, &[3], 4);
    assert_eq!(set.inner.config().quorum(), 2);
    assert_eq!(set.released(), []);
    // Two votes at 5 would be a quorum of three: one is there already.
    set.run(0, net(b"x"));
    set.run(3, net(b"x"));
    assert_eq!(
        set.events(),
        [
            Event::Membership {
                replicas: 4,
                quorum: 3
            },
            Event::Recovered {
                replica: id(3),
                boundary: 5
            }
        ]
    );
    set.run(3, net(b"x"));
    assert_eq!(set.released(), [], "R2: three of four now");
    set.run(1, net(b"x"));
    assert_eq!(set.released().len(), 1);
    assert_eq!(set.inner.stats().per_replica.len(), 4);
    assert_eq!(set.inner.stats().healthy, 4);
}

#[test]
fn who_joins_and_fails_was_never_there() {
    let mut set = Set::recoverable(config(2));
    run_all(&mut set, &[0, 1], 5);
    set.events();
    set.inner.add(id(8), 0).unwrap();
    set.rejoin(8, Rejoin::At(2));
    set.go(8);
    set.cast(8, net(b"y"));
    assert_eq!(
        set.events(),
        [Event::Stopped {
            replica: id(8),
            reason: StopReason::Relapsed { boundary: 3 }
        }]
    );
    assert!(set.inner.outcome().is_none());
    assert_eq!(set.inner.stats().replicas, 2);
    // It may try again, or be given up.
    set.rejoin(8, Rejoin::Start);
    assert_eq!(set.inner.remove(id(8), 0), Ok(()));
    assert_eq!(set.stopped(8), Some(StopReason::Removed));
    assert_eq!(
        set.inner.remove(id(8), 0),
        Err(MemberError::NotMember(id(8)))
    );
    assert_eq!(set.inner.add(id(8), 0), Ok(()));
    assert_eq!(
        set.inner.add(id(9), 0),
        Err(MemberError::UnknownReplica(id(9)))
    );
    assert_eq!(
        Set::new(config(2)).inner.add(id(8), 0),
        Err(MemberError::NotRecoverable)
    );
}

#[test]
fn a_smaller_quorum_releases_what_was_waiting() {
    let mut set = Set::recoverable(config(4));
    set.run(0, net(b"a"));
    set.run(1, net(b"a"));
    set.run(0, net(b"b"));
    set.run(1, net(b"b"));
    assert_eq!(set.released(), []);
    set.inner.remove(id(3), 0).unwrap();
    assert_eq!(
        set.events(),
        [
            Event::Membership {
                replicas: 3,
                quorum: 2
            },
            Event::Stopped {
                replica: id(3),
                reason: StopReason::Removed
            },
            Event::Release {
                boundary: 0,
                channel: NET,
                bytes: b"a".to_vec()
            },
            Event::Release {
                boundary: 1,
                channel: NET,
                bytes: b"b".to_vec()
            },
        ]
    );
    assert_eq!(set.step(3), Step::Stopped(StopReason::Removed));
    // Down to one, which passes through.
    set.inner.remove(id(2), 0).unwrap();
    set.cast(0, net(b"c"));
    set.inner.remove(id(1), 0).unwrap();
    assert_eq!(set.released().len(), 1);
    assert_eq!(set.inner.remove(id(0), 0), Err(MemberError::Last(id(0))));
}

#[test]
fn nobody_is_removed_whom_the_majority_needs() {
    let mut set = Set::recoverable(config(3));
    set.kill(2);
    assert_eq!(
        set.inner.remove(id(0), 0),
        Err(MemberError::NoQuorum {
            replica: id(0),
            running: 1,
            quorum: 2
        })
    );
    assert_eq!(set.inner.remove(id(2), 0), Ok(()));
    assert_eq!(
        set.inner.state(id(2)),
        ReplicaState::Stopped {
            boundary: 0,
            reason: StopReason::Removed
        }
    );
    assert_eq!(set.inner.config().replicas, 2);
    assert_eq!(set.inner.remove(id(0), 0), Ok(()));
    // Without a majority, nobody at all.
    let mut set = Set::recoverable(config(3));
    set.kill(0);
    set.kill(1);
    assert!(matches!(
        set.inner.remove(id(0), 0),
        Err(MemberError::NoQuorum { .. })
    ));
}

#[test]
fn a_removal_can_settle_a_dispute_and_can_make_one() {
    let mut set = Set::recoverable(config(3));
    set.kill(2);
    set.cast(0, net(b"a"));
    set.cast(1, net(b"b"));
    assert!(matches!(set.outcome().cause, NoMajorityCause::Split { .. }));
    // Replica 2 will not say who is right.
    set.inner.remove(id(2), 0).unwrap();
    for r in 0..2 {
        assert_eq!(set.stopped(r), Some(StopReason::Disputed { boundary: 0 }));
    }
    let mut set = Set::recoverable(config(4));
    for (r, word) in [(0, b"a"), (1, b"a"), (2, b"b")] {
        set.cast(r, net(word));
    }
    set.inner.remove(id(3), 0).unwrap();
    assert_eq!(set.released().len(), 1);
    assert!(matches!(set.stopped(2), Some(StopReason::Outvoted(_))));
}
