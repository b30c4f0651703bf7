//! Outputs in any order under the relaxed discipline: what is confirmed, what is given up, and at what cost.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use quorate_voter::ReplicaId;
use quorate_voter::relaxed::{Departure, Policy, Pool, PoolFull, PoolLimits, Pushed, Role, Voters};

const KEY: [u8; 32] = [9; 32];
const LIMITS: PoolLimits = PoolLimits {
    outputs: 100,
    bytes: 1 << 20,
    age_ns: 1000,
    patience_ns: 100,
};

struct Set {
    pool: Pool,
    now: u64,
}

impl Set {
    fn new(voters: &Voters, limits: PoolLimits) -> Self {
        Self {
            pool: Pool::new(voters, limits).for_channel(4),
            now: 0,
        }
    }

    fn majority(replicas: usize) -> Self {
        Self::new(&Voters::majority(replicas, KEY).unwrap(), LIMITS)
    }

    fn say(&mut self, r: u8, what: &str) -> Pushed {
        self.try_say(r, what).unwrap()
    }

    fn try_say(&mut self, r: u8, what: &str) -> Result<Pushed, PoolFull> {
        let tag = [1, 2];
        self.pool.push(ReplicaId(r), tag, what.as_bytes(), self.now)
    }

    fn confirmed(&mut self) -> Vec<String> {
        let next = || self.pool.take_confirmed();
        std::iter::from_fn(next)
            .map(|c| String::from_utf8(c.bytes.to_vec()).unwrap())
            .collect()
    }
}

#[test]
fn outputs_are_confirmed_in_any_order() {
    let mut set = Set::majority(3);
    for what in ["a", "b", "c"] {
        set.say(0, what);
    }
    assert!(set.confirmed().is_empty());
    assert_eq!(set.pool.unconfirmed().count(), 3);
    for what in ["c", "a", "b"] {
        set.say(1, what);
    }
    assert_eq!(set.confirmed(), ["c", "a", "b"]);
    for what in ["b", "c", "a"] {
        let pushed = set.say(2, what);
        assert!(pushed.was_confirmed);
    }
    let stats = set.pool.stats();
    assert_eq!((stats.waiting, stats.held), (0, 0));
    assert_eq!(set.pool.differences(), []);
}

#[test]
fn what_is_said_twice_is_two_outputs() {
    let mut set = Set::majority(3);
    set.say(0, "x");
    set.say(0, "x");
    set.say(1, "x");
    assert_eq!(set.confirmed(), ["x"]);
    set.say(2, "x");
    assert_eq!(set.confirmed(), [""; 0]);
    set.say(2, "x");
    assert_eq!(set.confirmed(), ["x"]);
    set.say(1, "x");
    assert_eq!(set.pool.stats().waiting, 0);
    // And once more from the beginning.
    set.say(1, "x");
    set.say(0, "x");
    assert_eq!(set.confirmed(), ["x"]);
}

#[test]
fn tags_are_part_of_an_output() {
    let mut set = Set::majority(2);
    for (r, tag) in [(0, [0, 1]), (1, [1, 0])] {
        set.pool.push(ReplicaId(r), tag, b"x", 0).unwrap();
    }
    assert!(set.confirmed().is_empty());
    set.pool.push(ReplicaId(1), [0, 1], b"x", 0).unwrap();
    let c = set.pool.take_confirmed().unwrap();
    assert_eq!((c.tag, c.by.len(), c.number), ([0, 1], 2, 0));
}

#[test]
fn spurious_outputs_age_out_and_are_reported_once() {
    let mut set = Set::majority(3);
    set.say(2, "spurious");
    for r in 0..3 {
        set.say(r, "good");
    }
    assert_eq!(set.confirmed(), ["good"]);
    set.now = 999;
    assert!(!set.pool.tick(999));
    assert!(set.pool.tick(1000));
    let all = set.pool.differences();
    assert_eq!(all.len(), 1);
    let d = &all[0];
    assert_eq!((d.replica, d.kind), (ReplicaId(2), Departure::Spurious));
    assert_eq!((d.connection, d.said.as_slice()), (4, &b"spurious"[..]));
    assert_eq!(set.pool.stats().spurious, 1);
    assert_eq!(set.pool.stats().held, 0);
    // Said again, it is another output.
    set.say(0, "spurious");
    assert!(set.confirmed().is_empty());
}

#[test]
fn a_laggard_is_compared_until_its_time_is_over() {
    let mut set = Set::majority(3);
    for what in ["a", "b"] {
        set.say(0, what);
        set.say(1, what);
    }
    assert!(set.say(2, "b").was_confirmed);
    set.pool.tick(1000);
    let d = set.pool.differences();
    assert_eq!((d.len(), d[0].kind), (1, Departure::Missing));
    assert_eq!(d[0].released, b"a");
    assert_eq!(set.pool.stats().missing, 1);
    assert_eq!(set.pool.stats().waiting, 0);
}

#[test]
fn who_is_too_late_is_not_heard_as_saying_it_twice() {
    let mut set = Set::majority(3);
    set.say(0, "x");
    set.say(1, "x");
    set.pool.tick(1000);
    assert_eq!(set.pool.stats().missing, 1);
    assert_eq!(set.confirmed(), ["x"]);
    assert!(set.say(2, "x").was_confirmed);
    // A second one from a faulty replica does not get a vote from that.
    set.say(0, "x");
    assert!(set.confirmed().is_empty());
    set.say(2, "x");
    assert_eq!(set.confirmed(), ["x"]);
}

#[test]
fn who_floods_the_channel_blocks_itself_only() {
    let mut set = Set::majority(3);
    let mut said = 0;
    while set.try_say(2, &format!("flood {said}")).is_ok() {
        said += 1;
    }
    assert_eq!(said, LIMITS.outputs);
    for i in 0..1000 {
        for r in 0..2 {
            set.say(r, &format!("good {i}"));
        }
        assert_eq!(set.confirmed().len(), 1);
        assert!(set.pool.stats().waiting <= 4 * LIMITS.outputs);
    }
    // The others have gone on: what it said has no hope.
    set.say(2, "flood on");
    assert!(set.pool.stats().spurious > 0);
}

#[test]
fn who_leads_waits_for_those_who_have_not_come_so_far() {
    let mut set = Set::majority(3);
    for i in 0..LIMITS.outputs {
        set.say(0, &format!("{i}"));
    }
    assert_eq!(set.try_say(0, "more"), Err(PoolFull));
    for i in 0..LIMITS.outputs {
        set.say(1, &format!("{i}"));
    }
    assert_eq!(set.confirmed().len(), LIMITS.outputs);
    assert_eq!(set.pool.stats().fast, LIMITS.outputs as u64);
    set.say(0, "more");
}

#[test]
fn what_is_not_fetched_holds_all_up() {
    let mut set = Set::majority(1);
    for i in 0..LIMITS.outputs {
        set.say(0, &format!("{i}"));
    }
    assert_eq!(set.try_say(0, "more"), Err(PoolFull));
    set.confirmed();
    set.say(0, "more");
}

#[test]
fn bytes_are_bounded_and_hashes_go_on() {
    let limits = PoolLimits {
        bytes: 10_000,
        ..LIMITS
    };
    let mut set = Set::new(&Voters::majority(3, KEY).unwrap(), limits);
    let text = |i: usize| format!("{i}{}", "-".repeat(500));
    for i in 0..90 {
        set.say(0, &text(i));
        set.say(1, &text(i));
        set.confirmed();
        assert!(set.pool.stats().held <= 2 * limits.bytes);
    }
    for i in 0..90 {
        assert!(set.say(2, &text(i)).was_confirmed, "{i}");
    }
    assert_eq!(set.pool.stats().waiting, 0);
    assert_eq!(set.pool.stats().held, 0);
}

#[test]
fn who_comes_back_says_again_what_was_said() {
    let mut set = Set::majority(3);
    for what in ["a", "b"] {
        for r in 0..3 {
            set.say(r, what);
        }
    }
    set.pool.leave(ReplicaId(2));
    for what in ["c", "d"] {
        set.say(0, what);
        set.say(1, what);
    }
    set.say(0, "e");
    set.pool.leave(ReplicaId(1));
    set.confirmed();
    set.pool.enter(ReplicaId(2), 1);
    for what in ["b", "c", "d", "e", "f"] {
        set.say(2, what);
    }
    assert_eq!(set.confirmed(), ["e"]);
    set.say(0, "f");
    assert_eq!(set.confirmed(), ["f"]);
    assert_eq!(set.pool.stats().spurious, 0);
}

#[test]
fn the_primarys_word_waits_for_the_others_but_not_for_ever() {
    let replica = ReplicaId(0);
    let roles = [Role::Primary, Role::Voter, Role::Canary];
    let voters = Voters::new(&roles, Policy::Primary { replica }, KEY).unwrap();
    let mut set = Set::new(&voters, LIMITS);
    set.say(1, "x");
    assert!(set.confirmed().is_empty());
    set.say(0, "x");
    assert_eq!(set.confirmed(), ["x"]);
    set.say(0, "y");
    set.pool.tick(99);
    assert!(set.confirmed().is_empty());
    assert!(set.pool.tick(100));
    assert_eq!(set.confirmed(), ["y"]);
    // Without the primary the others decide.
    set.pool.leave(replica);
    set.say(1, "y");
    set.say(1, "z");
    assert_eq!(set.confirmed(), ["z"]);
}
