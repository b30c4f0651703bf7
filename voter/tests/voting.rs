//! Ballots, verdicts, releases, entries and windows, case by case.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{CONSOLE, NET, Set, config, id, net};
use quorate_voter::{
    CastError, Config, ConfigError, DifferenceKind, Event, LeadError, Lockstep, NoMajorityCause,
    ReplicaState, Step, StopReason, ballot_cost,
};

#[test]
fn a_bad_configuration_is_refused() {
    for replicas in [0, 10] {
        let made = Lockstep::<u64>::new(Config {
            replicas,
            ..config(3)
        });
        assert_eq!(made.err(), Some(ConfigError::Replicas(replicas)));
    }
}

#[test]
fn one_replica_passes_through() {
    let mut set = Set::new(config(1));
    for s in 0..100u64 {
        set.run(0, net(&s.to_le_bytes()));
        assert_eq!(set.released(), [(s, NET, s.to_le_bytes().to_vec())]);
    }
    let stats = set.inner.stats();
    assert_eq!((stats.boundaries, stats.ballots), (100, 100));
    assert_eq!((stats.releases, stats.bytes_released), (100, 800));
    assert_eq!((stats.entries, stats.bytes_voted), (100, 800));
    assert_eq!((stats.window_bytes_used, stats.undrained_bytes), (0, 0));
}

#[test]
fn two_replicas_detect_and_release_nothing_that_differs() {
    let mut set = Set::new(config(2));
    set.run(0, net(b"same"));
    assert_eq!(set.released(), [], "R2: one of two is no quorum");
    set.run(1, net(b"same"));
    assert_eq!(set.released().len(), 1);
    set.run(0, net(b"mine"));
    set.cast(1, net(b"mime"));
    let events = set.events();
    assert_eq!(events.len(), 1, "R5: nobody is to blame, nothing comes out");
    assert!(matches!(events[0], Event::NoMajority(_)));
    let end = set.outcome();
    assert_eq!((end.boundary, end.healthy, end.quorum), (1, 2, 2));
    let NoMajorityCause::Split {
        channel,
        kind,
        offset,
        parties,
        missing,
        ..
    } = end.cause
    else {
        panic!("{end}");
    };
    assert_eq!((channel, kind, offset), (NET, DifferenceKind::Content, 2));
    assert_eq!(parties[0].replicas, [id(0)]);
    assert_eq!(parties[0].said.excerpt, b"mine");
    assert_eq!(parties[1].said.excerpt, b"mime");
    assert_eq!(missing, []);
    assert_eq!(set.step(0), Step::Held);
    assert_eq!(set.step(1), Step::Held);
}

#[test]
fn three_replicas_mask_one_and_name_it() {
    let mut set = Set::new(config(3));
    set.run(2, net(b"value 17"));
    set.run(0, net(b"value 16"));
    assert_eq!(set.events(), []);
    set.run(1, net(b"value 16"));
    let events = set.events();
    let [
        Event::Release { bytes, .. },
        Event::Verdict(verdict),
        Event::Stopped { replica, reason },
        Event::Degraded { healthy, quorum },
    ] = events.as_slice()
    else {
        panic!("{events:?}");
    };
    assert_eq!(bytes, b"value 16");
    assert_eq!((verdict.replica, verdict.boundary), (id(2), 0));
    assert_eq!((verdict.channel, verdict.offset), (NET, 7));
    assert_eq!(verdict.majority.excerpt, b"value 16");
    assert_eq!(verdict.minority.excerpt, b"value 17");
    assert_eq!(verdict.agreed, [id(0), id(1)]);
    assert_eq!(*replica, id(2));
    assert_eq!(*reason, StopReason::Outvoted(verdict.clone()));
    assert_eq!((*healthy, *quorum), (2, 2));
    assert!(matches!(
        set.step(2),
        Step::Stopped(StopReason::Outvoted(_))
    ));
    // The two go on, and the stopped one's ballots are ignored.
    set.cast(2, net(b"x"));
    set.run(0, net(b"x"));
    assert_eq!(set.released(), []);
    set.run(1, net(b"x"));
    assert_eq!(set.released().len(), 1);
    // The quorum does not shrink with the set.
    set.inner
        .fail(id(0), StopReason::Crashed("triple fault".into()), set.now);
    assert_eq!(set.outcome().cause, NoMajorityCause::TooFew);
    set.cast(1, net(b"y"));
    assert_eq!(set.released(), []);
}

#[test]
fn a_late_ballot_is_compared_with_what_was_released() {
    let mut set = Set::new(config(3));
    for s in 0..5u8 {
        set.run(0, net(&[s; 100]));
        set.run(1, net(&[s; 100]));
    }
    assert_eq!(set.released().len(), 5);
    set.run(2, net(&[0; 100]));
    set.run(2, net(&[1; 100]));
    let mut wrong = [2; 100];
    wrong[99] = 3;
    set.cast(2, net(&wrong));
    let Some(StopReason::Outvoted(verdict)) = set.stopped(2) else {
        panic!("R5: byte 99 differs");
    };
    assert_eq!((verdict.boundary, verdict.offset), (2, 99));
    assert_eq!(verdict.majority.excerpt_offset, 91);
    assert_eq!(verdict.majority.excerpt, [2; 9]);
}

#[test]
fn a_boundary_comes_out_whole_and_in_the_ballots_order() {
    let ballot = vec![
        (CONSOLE, b"a".to_vec()),
        (NET, b"b".to_vec()),
        (CONSOLE, b"c".to_vec()),
        (NET, vec![]),
    ];
    let mut set = Set::new(config(3));
    set.run(0, ballot.clone());
    // Right on the console, wrong on the network: counts as nothing, on no channel.
    let mut half = ballot.clone();
    half[1].1 = b"B".to_vec();
    set.run(1, half);
    assert_eq!(set.released(), []);
    set.run(2, ballot.clone());
    let released: Vec<_> = set.released().into_iter().map(|(_, c, b)| (c, b)).collect();
    assert_eq!(released, ballot);
    assert!(set.stopped(1).is_some());
}

#[test]
fn pieces_with_different_majorities_are_no_agreement() {
    // Every channel has two of three votes; together they would stop two replicas. R5: nobody is outvoted.
    let mut set = Set::new(config(3));
    let say = |n: &[u8], c: &[u8]| vec![(NET, n.to_vec()), (CONSOLE, c.to_vec())];
    set.run(0, say(b"x", b"1"));
    set.run(1, say(b"x", b"2"));
    set.cast(2, say(b"y", b"1"));
    assert_eq!(set.released(), []);
    assert!(set.all_run());
    assert!(matches!(set.outcome().cause, NoMajorityCause::Split { .. }));
}

#[test]
fn the_order_between_channels_is_voted_too() {
    let mut set = Set::new(config(3));
    let ab = vec![(NET, vec![1]), (CONSOLE, vec![2])];
    let ba = vec![(CONSOLE, vec![2]), (NET, vec![1])];
    set.run(2, ba);
    set.run(0, ab.clone());
    set.run(1, ab.clone());
    let released: Vec<_> = set.released().into_iter().map(|(_, c, b)| (c, b)).collect();
    assert_eq!(released, ab);
    let Some(StopReason::Outvoted(verdict)) = set.stopped(2) else {
        panic!("the minority must not choose the order");
    };
    assert_eq!(verdict.kind, DifferenceKind::Order);
}

#[test]
fn who_is_outvoted_has_no_vote_at_later_boundaries() {
    let mut set = Set::new(config(5));
    for r in [0, 1] {
        set.run(r, net(b"good"));
    }
    set.run(2, net(b"bad"));
    // Three agree at boundary 1, but one of them is about to be outvoted at boundary 0.
    for r in 0..3 {
        set.run(r, net(b"next"));
    }
    assert_eq!(set.released(), [], "R3: boundary 0 is not decided");
    set.cast(3, net(b"good"));
    assert_eq!(set.released(), [(0, NET, b"good".to_vec())]);
    assert!(set.stopped(2).is_some());
    set.cast(4, net(b"good"));
    set.go(3);
    set.cast(3, net(b"next"));
    assert_eq!(set.released(), [(1, NET, b"next".to_vec())]);
}

#[test]
fn a_majority_that_disagrees_with_itself_is_not_outvoted() {
    let mut set = Set::new(config(5));
    for (r, word) in [(0, "a"), (1, "b"), (2, "a"), (3, "b")] {
        set.run(r, net(word.as_bytes()));
        assert!(set.inner.outcome().is_none(), "still possible");
    }
    set.cast(4, net(b"c"));
    assert!(set.all_run());
    let NoMajorityCause::Split { parties, .. } = set.outcome().cause else {
        panic!();
    };
    let sizes: Vec<usize> = parties.iter().map(|p| p.replicas.len()).collect();
    assert_eq!(sizes, [2, 2, 1]);
}

#[test]
fn a_split_is_found_before_all_have_cast() {
    let mut set = Set::new(config(4));
    set.run(0, net(b"a"));
    set.run(1, net(b"b"));
    assert!(set.inner.outcome().is_none());
    set.cast(2, net(b"c"));
    let NoMajorityCause::Split { missing, .. } = set.outcome().cause else {
        panic!();
    };
    assert_eq!(missing, [id(3)]);
}

#[test]
fn everybody_gets_the_entry_that_was_written_first() {
    let mut set = Set::new(config(3));
    for r in 0..3 {
        set.cast(r, vec![]);
    }
    assert_eq!(
        set.inner.lead(id(0), 7, 8, 0),
        Err(LeadError::NotAsked(id(0)))
    );
    assert_eq!((set.step(0), set.step(1)), (Step::Lead, Step::Lead));
    assert_eq!(set.inner.lead(id(1), 11, 8, 0), Ok(()));
    let late = set.inner.lead(id(0), 10, 8, 0);
    assert_eq!(late, Err(LeadError::AlreadyWritten(0)));
    for r in [0, 1, 2, 0] {
        assert_eq!(set.step(r), Step::Deliver(11), "R1");
    }
    let twice = set.inner.lead(id(1), 12, 8, 0);
    assert_eq!(twice, Err(LeadError::NotAsked(id(1))));
    assert_eq!(set.inner.stats().per_replica[1].entries_led, 1);
    assert_eq!(set.inner.stats().entry_bytes, 8);
}

#[test]
fn leadership_passes_on_when_the_leader_dies_half_way() {
    let mut set = Set::new(config(3));
    set.cast(0, vec![]);
    assert_eq!(set.step(0), Step::Lead);
    set.inner.fail(id(0), StopReason::Killed, 0);
    assert_eq!(
        set.inner.lead(id(0), 1, 0, 0),
        Err(LeadError::Stopped(id(0)))
    );
    set.cast(1, vec![]);
    set.cast(2, vec![]);
    assert_eq!(set.step(2), Step::Lead);
    assert_eq!(set.inner.lead(id(2), 2, 0, 0), Ok(()));
    assert_eq!(set.step(1), Step::Deliver(2));
}

#[test]
fn a_callers_mistakes_are_errors_and_change_nothing() {
    let mut set = Set::new(config(3));
    let nobody = id(3);
    let unknown = set.inner.cast(nobody, 0, vec![], 0);
    assert_eq!(unknown, Err(CastError::UnknownReplica(nobody)));
    assert_eq!(
        set.inner.lead(nobody, 0, 0, 0),
        Err(LeadError::UnknownReplica(nobody))
    );
    assert!(matches!(set.step(3), Step::Stopped(StopReason::Failed(_))));
    assert!(matches!(
        set.inner.state(id(255)),
        ReplicaState::Stopped { .. }
    ));
    set.inner.fail(nobody, StopReason::Killed, 0);
    assert_eq!(set.step(0), Step::Held, "nothing cast yet");
    let skipped = set.inner.cast(id(0), 1, vec![], 0);
    assert_eq!(
        skipped,
        Err(CastError::WrongBoundary {
            replica: id(0),
            expected: 0,
            got: 1
        })
    );
    set.cast(0, vec![]);
    let early = set.inner.cast(id(0), 1, vec![], 0);
    assert_eq!(
        early,
        Err(CastError::EntryNotTaken {
            replica: id(0),
            boundary: 1
        })
    );
    assert_eq!(set.step(0), Step::Lead);
    let limit = set.inner.config().max_entry_bytes();
    let large = set.inner.lead(id(0), 0, limit + 1, 0);
    assert_eq!(
        large,
        Err(LeadError::TooLarge {
            bytes: limit + 1,
            limit
        })
    );
    assert_eq!(set.inner.lead(id(0), 0, limit, 0), Ok(()));
    assert_eq!(set.events(), []);
}

#[test]
fn an_oversized_ballot_stops_its_replica_and_nobody_else() {
    let mut set = Set::new(config(3));
    let limit = set.inner.config().max_ballot_bytes();
    let fits = net(&vec![0; limit - ballot_cost(&net(b""))]);
    assert_eq!(ballot_cost(&fits), limit);
    set.cast(0, fits.clone());
    set.cast(1, net(&vec![0; limit]));
    assert!(matches!(set.stopped(1), Some(StopReason::Misbehaved(_))));
    set.cast(2, fits);
    assert_eq!(set.released().len(), 1);
    // Empty outputs are not free.
    set.go(0);
    set.cast(0, vec![(NET, vec![]); limit / 64]);
    assert!(matches!(set.stopped(0), Some(StopReason::Misbehaved(_))));
}

#[test]
fn the_first_reason_of_a_stop_stays() {
    let mut set = Set::new(config(3));
    set.inner.fail(id(1), StopReason::Killed, 0);
    set.inner
        .fail(id(1), StopReason::Crashed("later".into()), 0);
    assert_eq!(set.stopped(1), Some(StopReason::Killed));
    assert_eq!(set.events().len(), 2, "stopped, degraded");
}

#[test]
fn the_window_of_boundaries_holds_the_fast_and_lets_the_slowest_on() {
    let mut set = Set::new(Config {
        window_boundaries: 3,
        ..config(3)
    });
    for s in 0..2 {
        set.run(0, net(&[s]));
        set.run(1, net(&[s]));
    }
    set.cast(0, net(&[2]));
    set.cast(1, net(&[2]));
    assert_eq!(set.step(0), Step::WindowFull, "R10");
    assert_eq!(set.step(1), Step::WindowFull);
    assert_eq!(set.inner.stats().window_boundaries_used, 3);
    set.cast(2, net(&[0]));
    assert_eq!(set.step(0), Step::Lead, "one boundary of room");
    set.go(1);
    set.cast(1, net(&[3]));
    assert_eq!(set.step(1), Step::WindowFull);
    // A stopped replica holds nobody up.
    set.inner.fail(id(2), StopReason::Killed, 0);
    assert_eq!(set.step(1), Step::Lead);
}

#[test]
fn the_window_of_bytes_holds_the_fast_and_lets_the_slowest_on() {
    let mut set = Set::new(Config {
        window_bytes: 1024,
        ..config(3)
    });
    let frame = net(&[0; 300]);
    for _ in 0..2 {
        set.run(0, frame.clone());
        set.run(1, frame.clone());
        set.events();
    }
    set.cast(0, frame.clone());
    assert!(
        set.inner.stats().window_bytes_used > 1024,
        "three boundaries are kept for replica 2"
    );
    assert_eq!(set.step(0), Step::WindowFull, "R10");
    // The slowest is let on however full it is, and what it leaves behind is freed.
    for _ in 0..2 {
        set.run(2, frame.clone());
    }
    assert!(set.inner.stats().window_bytes_used < 1024);
    assert_eq!(set.step(0), Step::Lead);
    // Entries count as well.
    assert_eq!(set.inner.lead(id(0), 2, 512, 0), Ok(()));
    set.cast(0, net(&[0; 350]));
    assert_eq!(set.step(0), Step::WindowFull);
}

#[test]
fn releases_that_nobody_fetches_hold_everybody() {
    let mut set = Set::new(Config {
        window_bytes: 1024,
        ..config(1)
    });
    for _ in 0..2 {
        set.run(0, net(&[0; 384]));
    }
    set.cast(0, net(&[0; 384]));
    assert_eq!(
        set.step(0),
        Step::WindowFull,
        "R10: {:?}",
        set.inner.stats()
    );
    assert!(set.inner.poll_event().is_some());
    assert_eq!(set.step(0), Step::Lead);
    assert_eq!(set.released().len(), 2);
    assert_eq!(set.inner.stats().undrained_bytes, 0);
}

#[test]
fn after_the_end_nothing_comes_out_but_stops_are_still_told() {
    let mut set = Set::new(config(3));
    for r in 0..3 {
        set.cast(r, net(&[r]));
    }
    assert_eq!(set.events().len(), 1);
    assert_eq!(set.inner.lead(id(0), 0, 0, 0), Err(LeadError::Held));
    assert_eq!(set.inner.cast(id(0), 1, net(b"z"), 0), Ok(()));
    set.inner.fail(id(2), StopReason::Killed, 0);
    let events = set.events();
    assert!(
        matches!(events.as_slice(), [Event::Stopped { .. }]),
        "{events:?}"
    );
    assert!(matches!(set.step(2), Step::Stopped(_)));
    set.tick(u64::MAX);
    assert_eq!(set.events(), []);
    assert_eq!(set.inner.stats().boundaries, 0);
}
