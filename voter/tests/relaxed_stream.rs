//! One connection's stream under the relaxed discipline: what is released when, and who is said to differ.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use quorate_voter::ReplicaId;
use quorate_voter::relaxed::{
    Departure, Difference, EndOfStream, Full, Policy, Role, StreamLimits, StreamMatcher, Voters,
};

const KEY: [u8; 32] = [7; 32];
const LIMITS: StreamLimits = StreamLimits {
    unconfirmed: 64 << 10,
    retained: 4 << 10,
};

struct Set(StreamMatcher);

impl Set {
    fn majority(replicas: usize) -> Self {
        Self::new(&Voters::majority(replicas, KEY).unwrap())
    }

    /// Replica 0's word counts.
    fn primary(roles: &[Role]) -> Self {
        let replica = ReplicaId(0);
        Self::new(&Voters::new(roles, Policy::Primary { replica }, KEY).unwrap())
    }

    fn new(voters: &Voters) -> Self {
        Self(StreamMatcher::new(voters, LIMITS, None).for_connection(5))
    }

    fn say(&mut self, replica: u8, what: &str) {
        let taken = self.0.push(ReplicaId(replica), what.as_bytes()).unwrap();
        assert_eq!(taken.bytes, what.len());
    }

    fn end(&mut self, replica: u8, how: EndOfStream) {
        self.0.end(ReplicaId(replica), how);
    }

    fn released(&mut self) -> String {
        let mut bytes = Vec::new();
        assert_eq!(self.0.take_released(&mut bytes), None);
        String::from_utf8(bytes).unwrap()
    }

    fn released_end(&mut self) -> (String, Option<EndOfStream>) {
        let mut bytes = Vec::new();
        let end = self.0.take_released(&mut bytes);
        (String::from_utf8(bytes).unwrap(), end)
    }

    fn difference(&mut self) -> Difference {
        let mut all = self.0.differences();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    fn nobody_differs(&mut self) {
        assert_eq!(self.0.differences(), []);
        assert_eq!(self.0.undecided(), None);
    }
}

#[test]
fn a_quorum_releases_its_common_prefix() {
    let mut set = Set::majority(3);
    set.say(0, "hello");
    assert_eq!(set.released(), "");
    assert!(set.0.waits_for(ReplicaId(1)) && set.0.waits_for(ReplicaId(2)));
    assert!(!set.0.waits_for(ReplicaId(0)));
    set.say(2, "hel");
    assert_eq!(set.released(), "hel");
    set.say(1, "hello wor");
    assert_eq!(set.released(), "lo");
    set.say(2, "lo world");
    assert_eq!(set.released(), " wor");
    set.say(0, " world");
    assert_eq!(set.released(), "ld");
    assert_eq!(set.0.behind(ReplicaId(1)), 2);
    set.say(1, "ld");
    set.nobody_differs();
    assert_eq!((set.0.released(), set.0.position(ReplicaId(2))), (11, 11));
}

#[test]
fn one_replica_passes_through() {
    let mut set = Set::majority(1);
    set.say(0, "x");
    set.end(0, EndOfStream::Shut);
    assert_eq!(set.released_end(), ("x".into(), Some(EndOfStream::Shut)));
    assert_eq!(set.released_end(), (String::new(), None));
}

#[test]
fn two_replicas_can_only_detect() {
    let mut set = Set::majority(2);
    set.say(0, "same, then a");
    set.say(1, "same, then b");
    assert_eq!(set.released(), "same, then ");
    let end = set.0.undecided().unwrap();
    assert_eq!((end.position, end.quorum, end.possible), (11, 2, 1));
    let said: Vec<_> = end.sides.iter().map(|s| s.said.as_slice()).collect();
    assert_eq!(said, [b"a", b"b"]);
    // Nobody is blamed (R5).
    assert_eq!(set.0.differences(), []);
    assert!(end.to_string().contains("replica 1 said \"b\""), "{end}");
}

#[test]
fn a_minority_is_named_with_the_byte_and_the_request() {
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        let mut set = Set::majority(3);
        set.0.note_input(0, b"first");
        for r in 0..3 {
            set.say(r, "answer 1;");
        }
        assert_eq!(set.released(), "answer 1;");
        set.0.note_input(5, b"sec");
        set.0.note_input(8, b"ond");
        for r in order {
            set.say(r, if r == 1 { "answer !;" } else { "answer 2;" });
        }
        assert_eq!(set.released(), "answer 2;");
        let d = set.difference();
        assert_eq!((d.replica, d.connection), (ReplicaId(1), 5));
        assert_eq!((d.kind, d.position, d.within), (Departure::Bytes, 16, 0));
        let request = d.request.clone().unwrap();
        assert_eq!((request.input_from, request.input_to), (5, 11));
        assert_eq!(request.excerpt, b"second");
        assert!(d.said.ends_with(b"answer !;"), "{d}");
        assert!(
            d.released.ends_with(b"2;") || d.released.ends_with(b"2"),
            "{d}"
        );
        // It is left out from there on, and said once.
        assert!(!set.0.takes_part(ReplicaId(1)));
        set.say(1, "whatever");
        assert_eq!(set.0.differences(), []);
        set.say(0, "on");
        set.say(2, "on");
        assert_eq!(set.released(), "on");
    }
}

#[test]
fn three_versions_have_no_majority_until_two_are_one() {
    let mut set = Set::majority(5);
    for (r, what) in ["abc", "abd", "aXe", "abd-"].into_iter().enumerate() {
        set.say(r as u8, what);
    }
    assert_eq!(set.released(), "ab");
    // The last one can still make three of two.
    assert_eq!(set.0.undecided(), None);
    assert_eq!(set.0.differences().len(), 1, "the X is decided");
    set.say(4, "abd-");
    assert_eq!(set.released(), "d");
    assert_eq!(set.difference().replica, ReplicaId(0));

    let mut set = Set::majority(3);
    for (r, what) in ["1", "2", "3"].into_iter().enumerate() {
        set.say(r as u8, what);
    }
    assert_eq!(set.0.undecided().unwrap().sides.len(), 3);
    assert_eq!(set.released(), "");
}

#[test]
fn ends_need_a_quorum_at_a_position() {
    let mut set = Set::majority(3);
    set.say(0, "bye");
    set.end(0, EndOfStream::Shut);
    set.say(1, "bye");
    assert_eq!(set.released_end(), ("bye".into(), None));
    // Goodbye or break: the same end, by most voters.
    set.end(1, EndOfStream::Reset);
    assert_eq!(
        set.released_end(),
        (String::new(), Some(EndOfStream::Reset))
    );
    set.say(2, "by");
    set.end(2, EndOfStream::Shut);
    let d = set.difference();
    assert_eq!((d.kind, d.position), (Departure::EndedEarly, 2));

    let mut set = Set::majority(3);
    for r in [0, 1] {
        set.say(r, "bye");
        set.end(r, EndOfStream::Shut);
    }
    set.say(2, "bye, and more");
    let d = set.difference();
    assert_eq!((d.kind, d.position), (Departure::GoesOn, 3));

    let mut set = Set::majority(3);
    for r in [0, 1] {
        set.end(r, EndOfStream::Refused);
    }
    assert_eq!(set.released_end().1, Some(EndOfStream::Refused));
    set.end(2, EndOfStream::Reset);
    assert_eq!(set.difference().kind, Departure::OtherEnd);
}

#[test]
fn nobody_runs_further_ahead_than_the_bound() {
    let mut set = Set::majority(3);
    let much = vec![b'x'; 100 << 10];
    let taken = set.0.push(ReplicaId(0), &much).unwrap();
    assert_eq!(taken.bytes, LIMITS.unconfirmed);
    assert_eq!(set.0.push(ReplicaId(0), &much), Err(Full));
    assert_eq!(
        set.0.push(ReplicaId(1), &much).unwrap().bytes,
        LIMITS.unconfirmed
    );
    // The client has not taken it.
    assert_eq!(set.0.push(ReplicaId(0), &much), Err(Full));
    assert_eq!(set.released().len(), LIMITS.unconfirmed);
    assert_eq!(
        set.0.push(ReplicaId(0), &much).unwrap().bytes,
        LIMITS.unconfirmed
    );
}

#[test]
fn who_is_far_behind_is_compared_by_digest() {
    let whole: Vec<u8> = (0..200_000u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect();
    for wrong in [None, Some(100), Some(150_001), Some(199_999)] {
        let mut set = Set::majority(3);
        set.0.push(ReplicaId(2), &whole[..777]).unwrap();
        let mut out = Vec::new();
        for piece in whole.chunks(1000) {
            for r in [0, 1] {
                set.0.push(ReplicaId(r), piece).unwrap();
            }
            set.0.take_released(&mut out);
            assert!(set.0.stats().held <= LIMITS.retained * 3);
        }
        assert_eq!(out, whole);
        let mut late = whole.clone();
        if let Some(at) = wrong {
            late[at] ^= 1;
        }
        if wrong == Some(100) {
            // What it says before where it is, is of no interest.
            late[100] ^= 1;
        }
        for piece in late[777..].chunks(333) {
            set.0.push(ReplicaId(2), piece).unwrap();
        }
        assert_eq!(set.0.stats().unchecked, 0);
        match wrong {
            None | Some(100) => set.nobody_differs(),
            Some(at) => {
                let d = set.difference();
                let at = at as u64;
                assert!(d.position <= at && at <= d.position + d.within, "{d:?}");
                assert_eq!(d.within == 0, at == 199_999, "the end is still retained");
            }
        }
    }
}

#[test]
fn who_comes_back_is_compared_and_then_counts() {
    let mut set = Set::majority(3);
    for r in 0..3 {
        set.say(r, "0123456789");
    }
    assert_eq!(set.released(), "0123456789");
    set.0.leave(ReplicaId(2));
    set.say(0, "abc");
    set.say(2, "not heard");
    assert_eq!(set.released(), "");
    set.0.leave(ReplicaId(1));
    assert_eq!(set.0.undecided().unwrap().possible, 1);
    set.0.enter(ReplicaId(2), 4);
    assert_eq!(set.0.undecided(), None);
    set.say(2, "456789ab");
    assert_eq!(set.released(), "ab");
    // One that says something else than was released relapses (R7).
    set.0.enter(ReplicaId(1), 4);
    set.say(1, "45x");
    let d = set.difference();
    assert_eq!((d.replica, d.position), (ReplicaId(1), 6));
}

#[test]
fn words_that_are_taken_back_do_not_count() {
    let mut set = Set::majority(3);
    set.say(0, "0123456789");
    set.0.leave(ReplicaId(0));
    set.0.enter(ReplicaId(0), 3);
    set.say(1, "0123456789");
    assert_eq!(set.released(), "012");
    set.say(0, "34x");
    assert_eq!(set.released(), "34");
    set.say(2, "0123456789");
    assert_eq!(set.released(), "56789");
    assert_eq!(set.difference().position, 5);
}

#[test]
fn a_copy_of_another_counts_only_from_where_it_was_made() {
    let mut set = Set::majority(3);
    set.say(0, "abc");
    set.0.leave(ReplicaId(1));
    set.0.enter_like(ReplicaId(1), ReplicaId(0));
    // Two would be a quorum, but it is one replica's word.
    assert_eq!(set.released(), "");
    set.say(2, "abcd");
    assert_eq!(set.released(), "abc");
    set.say(1, "d");
    assert_eq!(set.released(), "d");
    set.nobody_differs();
}

#[test]
fn a_canary_neither_counts_nor_delays() {
    let voters = [Role::Voter, Role::Voter, Role::Voter, Role::Canary];
    let mut set = Set::new(&Voters::new(&voters, Policy::Majority, KEY).unwrap());
    set.say(3, "canary");
    set.say(0, "canary");
    assert_eq!(set.released(), "");
    assert!(!set.0.waits_for(ReplicaId(3)));
    set.say(1, "canary sings");
    set.say(0, " sings");
    assert_eq!(set.released(), "canary sings");
    set.say(3, " sighs");
    let d = set.difference();
    assert_eq!((d.replica, d.position), (ReplicaId(3), 9));
    assert_eq!(set.0.undecided(), None);
}

#[test]
fn the_primarys_word_waits_for_the_others() {
    let roles = [Role::Primary, Role::Voter, Role::Voter];
    let mut set = Set::primary(&roles);
    set.say(1, "new");
    set.say(2, "new");
    assert_eq!(set.released(), "", "only the primary's word counts");
    set.say(0, "old");
    // Both differ, so it waits for none.
    assert_eq!(set.released(), "old");
    assert_eq!(set.0.differences().len(), 2);

    let mut set = Set::primary(&roles);
    set.say(0, "one");
    set.say(1, "one");
    assert_eq!(set.released(), "");
    assert!(set.0.waits_for(ReplicaId(2)));
    assert!(set.0.give_up_on(ReplicaId(2)));
    assert_eq!(set.released(), "one");
    assert_eq!(set.difference().kind, Departure::Missing);
    // Compared all the same.
    set.say(2, "ont");
    assert_eq!(set.difference().position, 2);

    let mut set = Set::primary(&roles);
    set.say(0, "one");
    set.say(1, "one");
    set.0.note_input(0, b"HMGET");
    assert!(set.0.crashed(ReplicaId(2)));
    assert_eq!(set.released(), "one");
    let d = set.difference();
    assert_eq!(d.kind, Departure::Crashed);
    assert_eq!(d.request.unwrap().excerpt, b"HMGET");
}

#[test]
fn when_the_primary_leaves_the_others_go_on_where_it_was() {
    let roles = [Role::Primary, Role::Voter, Role::Voter, Role::Canary];
    let mut set = Set::primary(&roles);
    for r in 0..3 {
        set.say(r, "same");
    }
    set.say(0, " old");
    set.say(1, " new");
    assert_eq!(set.released(), "same");
    set.0.leave(ReplicaId(0));
    set.say(2, " new");
    assert_eq!(set.released(), " new");
    set.end(1, EndOfStream::Shut);
    set.end(2, EndOfStream::Shut);
    assert_eq!(set.released_end().1, Some(EndOfStream::Shut));
}

#[test]
fn others_that_had_differed_cannot_serve_when_the_primary_leaves() {
    let roles = [Role::Primary, Role::Voter];
    let mut set = Set::primary(&roles);
    set.say(0, "old");
    set.say(1, "new");
    assert_eq!(set.released(), "old");
    assert_eq!(set.0.undecided(), None);
    set.0.leave(ReplicaId(0));
    assert_eq!(
        set.released_end(),
        (String::new(), Some(EndOfStream::Reset))
    );
    assert_eq!(set.0.undecided().unwrap().possible, 0);
    // When it comes back, that is not held against it.
    set.0.differences();
    set.0.enter(ReplicaId(0), 0);
    set.say(0, "old and more");
    assert_eq!(set.0.differences(), []);
}

#[test]
fn who_differed_is_compared_again_from_the_next_request_on() {
    let voters = Voters::new(&[Role::Voter, Role::Canary], Policy::Majority, KEY).unwrap();
    let mut set = Set::new(&voters);
    let canary = ReplicaId(1);
    assert!(!set.0.rejoin(canary, 0), "it has not differed");
    let mut input = 0;
    // What is asked, what is released, and what the canary says to it.
    let mut differing = Vec::new();
    for (request, old, new) in [
        ("GET a\n", "1\n", "1\n"),
        ("INFO\n", "version 7\n", "version 8, with more to say\n"),
        ("GET b\n", "2\n", "2\n"),
        ("GET c\n", "3\n", "3\n"),
        ("HELLO\n", "seven\n", "8\n"),
        ("COUNT\n", "240\n", "391\n"),
        ("GET d\n", "4\n", "4\n"),
    ] {
        let answered = set.0.released();
        set.0.note_input(input, request.as_bytes());
        input += request.len() as u64;
        set.0.rejoin(canary, answered);
        set.say(0, old);
        set.say(1, new);
        assert_eq!(set.released(), old);
        for difference in set.0.differences() {
            assert_eq!(difference.replica, canary);
            let asked = difference.request.unwrap().excerpt;
            assert_eq!(asked, request.as_bytes());
            let (said, released) = (difference.said, difference.released);
            assert!(said.ends_with(new.as_bytes()), "{}", said.escape_ascii());
            assert!(released.ends_with(old.as_bytes()));
            differing.push(request);
        }
    }
    assert_eq!(differing, ["INFO\n", "HELLO\n", "COUNT\n"]);
    assert_eq!(set.0.behind(canary), 0, "it stands with the others again");
    // Not where nothing was released, and not behind an end.
    set.say(0, "no\n");
    set.say(1, "yes");
    assert_eq!(set.difference().position, set.0.released() - 3);
    assert!(!set.0.rejoin(canary, set.0.released() + 1));
    set.end(0, EndOfStream::Shut);
    assert!(!set.0.rejoin(canary, set.0.released()));
    assert!(!set.0.takes_part(canary));
}

#[test]
fn a_voter_that_differed_counts_again_only_from_there() {
    let mut set = Set::majority(3);
    for (replica, said) in [(0, "a\n"), (1, "other\n"), (2, "a\n")] {
        set.say(replica, said);
    }
    assert_eq!(set.difference().replica, ReplicaId(1));
    assert!(set.0.rejoin(ReplicaId(1), 2));
    set.0.leave(ReplicaId(2));
    assert_eq!(set.released(), "a\n");
    set.say(0, "b\n");
    assert_eq!(set.released(), "");
    set.say(1, "b\n");
    assert_eq!(set.released(), "b\n");
    // Who comes back to a place where it was apart is that until the next request.
    set.0.leave(ReplicaId(1));
    set.0.enter_apart(ReplicaId(1), 6);
    set.say(1, "anything");
    assert_eq!(set.0.differences(), []);
    assert!(set.0.rejoin(ReplicaId(1), 4));
    set.say(0, "c\n");
    set.say(1, "c\n");
    assert_eq!(set.released(), "c\n");
}
