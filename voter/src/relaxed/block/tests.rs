#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use super::*;
use crate::relaxed::Policy;
use proptest::prelude::*;

const KEY: [u8; 32] = [3; 32];

fn limits(unconfirmed: UnconfirmedPolicy) -> BlockLimits {
    BlockLimits {
        unconfirmed,
        patience_ns: 1000,
        settle_ns: 10,
        ..BlockLimits::default()
    }
}

struct Rig {
    matcher: BlockMatcher,
    digester: Digester,
    /// What the quorum made of each sector, version by version.
    released: Vec<(u64, u8)>,
    now: u64,
}

impl Rig {
    fn with(voters: &Voters, limits: BlockLimits) -> Self {
        let matcher = BlockMatcher::new(voters, limits);
        Self {
            digester: matcher.digester(),
            matcher,
            released: Vec::new(),
            now: 0,
        }
    }

    fn of(replicas: usize) -> Self {
        let voters = Voters::majority(replicas, KEY).unwrap();
        Self::with(&voters, limits(UnconfirmedPolicy::Hold))
    }

    fn w(&mut self, replica: u8, sector: u64, content: u8) -> Wrote {
        let digest = self.digester.of(&[content]);
        let wrote = self
            .matcher
            .write(ReplicaId(replica), sector, digest, self.now)
            .unwrap();
        if wrote == Wrote::Released {
            self.released.push((sector, content));
        }
        wrote
    }

    fn f(&mut self, replica: u8, id: u64) -> Vec<(u8, u64)> {
        self.matcher.flush(ReplicaId(replica), id, self.now);
        self.settled()
    }

    fn settled(&mut self) -> Vec<(u8, u64)> {
        let settled = self.matcher.take_settled();
        settled.into_iter().map(|(r, id)| (r.0, id)).collect()
    }
}

#[test]
fn a_quorum_releases_once_and_laggards_find_it_in_the_past() {
    let mut rig = Rig::of(3);
    assert_eq!(rig.w(0, 5, 1), Wrote::Waits);
    assert_eq!(rig.w(0, 5, 2), Wrote::Waits);
    assert_eq!(rig.w(1, 5, 1), Wrote::Released);
    assert_eq!(rig.w(1, 5, 2), Wrote::Released);
    assert_eq!(rig.w(2, 5, 1), Wrote::Past, "never on the disk again");
    assert_eq!(rig.w(2, 5, 2), Wrote::Agrees);
    assert_eq!(rig.released, [(5, 1), (5, 2)]);
    assert_eq!(rig.matcher.open_sectors(), 0);
}

#[test]
fn one_replica_cannot_turn_the_disk_back() {
    let mut rig = Rig::of(3);
    for content in [1, 2] {
        rig.w(0, 5, content);
        rig.w(1, 5, content);
    }
    // Replica 1 writes the old content again, while replica 2 is still to come to it.
    assert_eq!(rig.w(1, 5, 1), Wrote::Waits);
    assert_eq!(rig.w(2, 5, 1), Wrote::Past);
    assert_eq!(rig.released, [(5, 1), (5, 2)]);
}

#[test]
fn a_flush_waits_for_the_last_write_of_each_sector() {
    let mut rig = Rig::of(3);
    rig.w(0, 1, 1);
    rig.w(0, 1, 2);
    rig.w(0, 2, 7);
    assert_eq!(rig.f(0, 10), []);
    rig.w(0, 3, 9); // Behind the flush.
    rig.w(1, 2, 7);
    assert_eq!(rig.settled(), []);
    // Replica 1 never writes what came before.
    rig.w(1, 1, 2);
    assert_eq!(rig.settled(), [(0, 10)]);
    assert_eq!(rig.f(0, 11), []);
    rig.w(1, 3, 9);
    assert_eq!(rig.settled(), [(0, 11)]);
    assert_eq!(rig.f(0, 12), [(0, 12)], "an empty flush waits for nothing");
}

#[test]
fn flushes_need_not_lie_in_the_same_places() {
    let mut rig = Rig::of(2);
    rig.w(0, 1, 1);
    rig.f(0, 1);
    rig.w(0, 2, 1);
    rig.f(0, 2);
    rig.w(1, 2, 1);
    rig.w(1, 1, 1);
    assert_eq!(rig.settled(), [(0, 1), (0, 2)]);
    assert_eq!(rig.f(1, 1), [(1, 1)]);
}

#[test]
fn what_was_passed_over_counts_for_laggards_but_is_not_written_again() {
    let mut rig = Rig::of(3);
    rig.w(0, 1, 1);
    rig.w(0, 1, 2);
    assert_eq!(rig.w(1, 1, 2), Wrote::Released);
    assert_eq!(rig.w(2, 1, 1), Wrote::Past, "replicas 0 and 2 wrote it");
    assert_eq!(rig.f(2, 1), [(2, 1)]);
    assert_eq!(rig.w(2, 1, 2), Wrote::Agrees);
    assert_eq!(rig.released, [(1, 2)]);
}

#[test]
fn the_quorum_counts_those_who_are_gone() {
    let mut rig = Rig::of(3);
    rig.w(0, 1, 1);
    rig.matcher.leave(ReplicaId(0));
    assert_eq!(rig.w(1, 1, 1), Wrote::Waits, "a stopped replica's word");
    rig.matcher.leave(ReplicaId(2));
    assert_eq!(rig.w(1, 2, 1), Wrote::Waits, "one of three");
    rig.matcher.enter(ReplicaId(2), []);
    assert_eq!(rig.w(2, 2, 1), Wrote::Released);
}

#[test]
fn canaries_never_count_and_primaries_decide_while_they_run() {
    let (v, c) = (Role::Voter, Role::Canary);
    let voters = Voters::new(&[v, v, c], Policy::Majority, KEY).unwrap();
    let mut rig = Rig::with(&voters, limits(UnconfirmedPolicy::Hold));
    rig.w(2, 1, 1);
    assert_eq!(rig.w(0, 1, 1), Wrote::Waits);
    assert_eq!(rig.w(1, 1, 1), Wrote::Released);
    assert_eq!(rig.matcher.open_sectors(), 0, "the canary has it, too");

    let replica = ReplicaId(0);
    let voters = Voters::new(&[Role::Primary, v, v], Policy::Primary { replica }, KEY).unwrap();
    let mut rig = Rig::with(&voters, limits(UnconfirmedPolicy::Hold));
    rig.w(1, 1, 1);
    assert_eq!(rig.w(2, 1, 1), Wrote::Waits);
    assert_eq!(rig.w(0, 1, 1), Wrote::Released);
    rig.matcher.leave(replica);
    assert_eq!(rig.w(1, 2, 1), Wrote::Waits);
    assert_eq!(rig.w(2, 2, 1), Wrote::Released);
}

#[test]
fn hold_blames_the_minority_and_reports_when_there_is_none() {
    let mut rig = Rig::of(3);
    rig.w(0, 1, 1);
    rig.w(1, 1, 1);
    rig.w(2, 1, 9);
    rig.f(2, 5);
    rig.now = 999;
    assert_eq!(rig.matcher.judge(rig.now), []);
    rig.now = 1000;
    let [BlockFinding::Outvoted { replica, sectors }] = &rig.matcher.judge(rig.now)[..] else {
        panic!("nobody blamed");
    };
    assert_eq!(
        (replica.0, sectors[0].sector, sectors[0].decided),
        (2, 1, true)
    );

    rig.matcher.leave(ReplicaId(2));
    rig.w(0, 2, 1);
    rig.f(0, 6);
    rig.now = 2000;
    let [BlockFinding::Slow { others, .. }] = &rig.matcher.judge(rig.now)[..] else {
        panic!("replica 1 may still come to it");
    };
    assert_eq!(others, &[ReplicaId(1)]);
    assert_eq!(rig.matcher.judge(rig.now), [], "told once");
    rig.w(1, 2, 2);
    rig.f(1, 7);
    assert!(matches!(
        rig.matcher.judge(rig.now)[..],
        [BlockFinding::NoMajority { .. }]
    ));
    assert_eq!(rig.matcher.fail_flush(ReplicaId(0)), Some(6));
}

#[test]
fn report_gives_up_when_all_wait_and_keeps_the_last_word() {
    let voters = Voters::majority(3, KEY).unwrap();
    let mut rig = Rig::with(&voters, limits(UnconfirmedPolicy::Report));
    for r in 0..3 {
        rig.w(r, 1, 100);
        rig.w(r, 1, r);
        assert_eq!(rig.f(r, 1), []);
    }
    rig.now = 9;
    assert_eq!(rig.matcher.judge(rig.now), []);
    rig.now = 10;
    assert_eq!(rig.matcher.judge(rig.now).len(), 3);
    assert_eq!(rig.settled(), [(0, 1), (1, 1), (2, 1)]);
    let found = rig.matcher.unconfirmed(false);
    assert_eq!((found.len(), found[0].said.len()), (1, 3));
    // 100 was released; nobody has it any more. Replica 2 comes to what replica 0 has.
    assert_eq!(rig.released, [(1, 100)]);
    assert_eq!(rig.w(2, 1, 0), Wrote::Released);
}

#[test]
fn who_runs_away_is_slowed_and_then_stopped() {
    let voters = Voters::majority(3, KEY).unwrap();
    let bounded = BlockLimits {
        ahead: 10,
        sectors: 12,
        ..limits(UnconfirmedPolicy::Hold)
    };
    let mut rig = Rig::with(&voters, bounded);
    for s in 0..10 {
        rig.w(0, s, 1);
    }
    assert!(!rig.matcher.has_room(ReplicaId(0)));
    for s in 10..20 {
        rig.w(0, s, 1);
    }
    let digest = rig.digester.of(&[1]);
    assert!(rig.matcher.write(ReplicaId(0), 20, digest, 0).is_err());
    // Replica 2 is behind in what the others agree on.
    for s in 0..20 {
        rig.w(1, s, 1);
    }
    assert!(rig.matcher.has_room(ReplicaId(0)));
    let behind = BlockFinding::Behind {
        replica: ReplicaId(2),
        sectors: 20,
    };
    assert_eq!(rig.matcher.judge(0), [behind]);
}

/// A replica's steps: writes and flushes.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u64, u8),
    Flush,
}

fn program() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..6u64, 0..4u8).prop_map(|(s, c)| Step::Write(s, c)),
        1 => Just(Step::Flush),
    ];
    proptest::collection::vec(step, 1..60)
}

/// Exchanges neighbours that write to different sectors without a flush between: what a guest is free to do.
fn shuffled(steps: &[Step], swaps: &[usize]) -> Vec<Step> {
    let mut steps = steps.to_vec();
    for at in swaps {
        let at = at % steps.len();
        if let (Some(Step::Write(a, _)), Some(Step::Write(b, _))) =
            (steps.get(at).copied(), steps.get(at + 1).copied())
            && a != b
        {
            steps.swap(at, at + 1);
        }
    }
    steps
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// The same writes in different orders are all confirmed, every flush is settled, no disagreement stays, and at every moment the disk
    /// is what a crash of each replica that completed its flushes could have left.
    #[test]
    fn deterministic_contents_are_fully_confirmed(
        steps in program(),
        swaps in proptest::collection::vec(proptest::collection::vec(any::<usize>(), 0..80), 3),
        schedule in proptest::collection::vec(0..3usize, 0..400),
    ) {
        let programs: Vec<Vec<Step>> = swaps.iter().map(|s| shuffled(&steps, s)).collect();
        let mut rig = Rig::of(3);
        let (mut at, mut waits, mut flushed) = ([0usize; 3], [false; 3], [0usize; 3]);
        // Per replica: what its completed flushes promise, and what it wrote since.
        let mut safe: [BTreeMap<u64, u8>; 3] = Default::default();
        let mut since: [BTreeMap<u64, Vec<u8>>; 3] = Default::default();
        let mut disk: BTreeMap<u64, u8> = BTreeMap::new();
        let mut seen = 0;
        let order = schedule.into_iter().chain((0..60).flat_map(|_| 0..3)).chain((0..180).map(|i| i / 60));
        let mut idle = 0;
        for me in order.chain((0..400).map(|i| i % 3)) {
            if waits[me] || at[me] == steps.len() {
                idle += 1;
                if idle > 2000 { break; }
                continue;
            }
            match programs[me][at[me]] {
                Step::Write(sector, content) => {
                    rig.w(me as u8, sector, content);
                    since[me].entry(sector).or_default().push(content);
                }
                Step::Flush => {
                    rig.matcher.flush(ReplicaId(me as u8), at[me] as u64, 0);
                    waits[me] = true;
                }
            }
            at[me] += 1;
            for (sector, content) in &rig.released[seen..] {
                disk.insert(*sector, *content);
            }
            seen = rig.released.len();
            for (r, _) in rig.settled() {
                let r = usize::from(r);
                waits[r] = false;
                flushed[r] += 1;
                for (sector, contents) in std::mem::take(&mut since[r]) {
                    safe[r].insert(sector, *contents.last().unwrap());
                }
            }
            // What is on the disk is what a crash of a quorum's machines could leave: each sector holds what their last completed
            // flush left there, or something that they write before the next one completes.
            let allows = |r: usize| (0..6).all(|sector| {
                let now = disk.get(&sector).copied();
                let window = steps.split(|s| matches!(s, Step::Flush)).nth(flushed[r]);
                now == safe[r].get(&sector).copied()
                    || window.is_some_and(|steps| steps.iter().any(|s| {
                        matches!(s, Step::Write(at, c) if *at == sector && Some(*c) == now)
                    }))
            });
            let allowed = (0..3).filter(|r| allows(*r)).count();
            prop_assert!(allowed >= 2, "disk {disk:?}, safe {safe:?}, since {since:?}");
        }
        prop_assert_eq!(at, [steps.len(); 3], "nobody is stuck: {:?}", waits);
        prop_assert_eq!(rig.matcher.open_sectors(), 0);
        let mut last = BTreeMap::new();
        for step in &steps {
            if let Step::Write(sector, content) = step {
                last.insert(*sector, *content);
            }
        }
        prop_assert_eq!(disk, last);
    }

    /// Whatever replicas write: what is released was written there by a quorum, each version no more often than the second-most frequent
    /// writer of it wrote it; and nothing panics.
    #[test]
    fn nothing_is_released_without_a_quorum(
        programs in proptest::collection::vec(program(), 3),
        schedule in proptest::collection::vec((0..3usize, 0..40u8), 1..300),
    ) {
        let voters = Voters::majority(3, KEY).unwrap();
        let bounds = BlockLimits { versions: 5, ..limits(UnconfirmedPolicy::Report) };
        let mut rig = Rig::with(&voters, bounds);
        let mut at = [0usize; 3];
        let mut wrote: BTreeMap<(u64, u8), [usize; 3]> = BTreeMap::new();
        let mut id = 0;
        for (me, what) in schedule {
            rig.now += 3;
            let replica = ReplicaId(me as u8);
            match what {
                0 => rig.matcher.leave(replica),
                1 => {
                    let differs: Vec<_> = (0..3).map(|s| (s, rig.digester.of(&[s as u8]), s as u32)).collect();
                    rig.matcher.enter(replica, differs);
                }
                2 => drop(rig.matcher.judge(rig.now)),
                3 => drop(rig.matcher.fail_flush(replica)),
                _ => {
                    let step = programs[me][at[me] % programs[me].len()];
                    at[me] += 1;
                    if !rig.matcher.runs(replica) {
                        continue;
                    }
                    match step {
                        Step::Flush => {
                            id += 1;
                            rig.matcher.flush(replica, id, rig.now);
                        }
                        Step::Write(sector, content) => {
                            wrote.entry((sector, content)).or_default()[me] += 1;
                            rig.w(me as u8, sector, content);
                        }
                    }
                }
            }
            rig.settled();
        }
        let mut released: BTreeMap<(u64, u8), usize> = BTreeMap::new();
        for key in &rig.released {
            *released.entry(*key).or_default() += 1;
        }
        for (key, times) in released {
            let mut counts = wrote[&key];
            counts.sort_unstable();
            // Each release takes a write of two replicas.
            prop_assert!(times <= counts[1] + counts[0], "{key:?}: {times} of {counts:?}");
            prop_assert!(counts[1] > 0, "{key:?} by one replica alone: {counts:?}");
        }
    }
}
