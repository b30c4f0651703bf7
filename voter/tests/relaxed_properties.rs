//! The relaxed discipline's matchers under any calls in any order: no panic, and the bounds hold (R9, R10).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use proptest::prelude::*;
use quorate_voter::ReplicaId;
use quorate_voter::relaxed::{
    EndOfStream, Mask, MaskRule, MaskSet, Policy, Pool, PoolLimits, Role, StreamLimits,
    StreamMatcher, Voters,
};

#[derive(Clone, Debug)]
enum Call {
    Say(u8, Vec<u8>),
    End(u8, EndOfStream),
    Take,
    Leave(u8, bool),
    Enter(u8, u64),
    Like(u8, u8),
    Rejoin(u8, u64),
    Apart(u8, u64),
    Mark(u8),
    GiveUp(u8),
    Flush(u8),
    Note(u64, Vec<u8>),
    Later(u64),
}

fn call() -> impl Strategy<Value = Call> {
    let r = || 0..6u8;
    let bytes = prop_oneof![
        4 => "[ab\n]{0,9}",
        1 => "t=[0-9]{0,3};",
        1 => Just("ab".repeat(700)),
        1 => Just("HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 3\r\n\r\nabc".to_owned()),
    ];
    let how = prop_oneof![
        Just(EndOfStream::Shut),
        Just(EndOfStream::Reset),
        Just(EndOfStream::Refused),
    ];
    let at = prop_oneof![4 => 0..40u64, 2 => 0..4000u64, 1 => any::<u64>()];
    prop_oneof![
        20 => (r(), bytes.clone()).prop_map(|(r, b)| Call::Say(r, b.into_bytes())),
        1 => (r(), how).prop_map(|(r, how)| Call::End(r, how)),
        6 => Just(Call::Take),
        1 => (r(), any::<bool>()).prop_map(|(r, crashed)| Call::Leave(r, crashed)),
        2 => (r(), at.clone()).prop_map(|(r, at)| Call::Enter(r, at)),
        1 => (r(), r()).prop_map(|(r, s)| Call::Like(r, s)),
        2 => (r(), at.clone()).prop_map(|(r, at)| Call::Rejoin(r, at)),
        1 => (r(), at.clone()).prop_map(|(r, at)| Call::Apart(r, at)),
        1 => r().prop_map(Call::Mark),
        1 => r().prop_map(Call::GiveUp),
        2 => r().prop_map(Call::Flush),
        1 => (at.clone(), bytes).prop_map(|(at, b)| Call::Note(at, b.into_bytes())),
        2 => at.prop_map(Call::Later),
    ]
}

fn voters() -> impl Strategy<Value = Voters> {
    let role = prop_oneof![4 => Just(Role::Voter), 1 => Just(Role::Canary)];
    let roles = prop::collection::vec(role, 0..5);
    (roles, any::<bool>()).prop_map(|(mut roles, primary)| {
        roles.insert(0, Role::Voter);
        let replica = ReplicaId(0);
        let policy = match primary {
            true => Policy::Primary { replica },
            false => Policy::Majority,
        };
        Voters::new(&roles, policy, [5; 32]).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn streams_survive_any_calls(
        voters in voters(),
        masked in any::<bool>(),
        unconfirmed in 1..3000usize,
        retained in 0..3000usize,
        calls in prop::collection::vec(call(), 0..150),
    ) {
        let mask = |rule| Mask { name: "m".into(), rule, translate: true };
        let set = MaskSet::new(&[
            mask(MaskRule::HttpHeader("Date".into())),
            mask(MaskRule::Pattern("t=([0-9]*);".into())),
        ]).unwrap();
        let limits = StreamLimits { unconfirmed, retained };
        let mut m = StreamMatcher::new(&voters, limits, Some(&set).filter(|_| masked));
        let mut out = Vec::new();
        let mut ends = 0;
        for call in calls {
            let released = m.released();
            match call {
                Call::Say(r, bytes) => drop(m.push(ReplicaId(r), &bytes)),
                Call::End(r, how) => drop(m.end(ReplicaId(r), how)),
                Call::Take | Call::Later(_) => {
                    ends += usize::from(m.take_released(&mut out).is_some());
                }
                Call::Leave(r, true) => drop(m.crashed(ReplicaId(r))),
                Call::Leave(r, false) => drop(m.leave(ReplicaId(r))),
                Call::Enter(r, at) => m.enter(ReplicaId(r), at),
                Call::Like(r, s) => m.enter_like(ReplicaId(r), ReplicaId(s)),
                Call::Rejoin(r, at) => drop(m.rejoin(ReplicaId(r), at)),
                Call::Apart(r, at) => m.enter_apart(ReplicaId(r), at),
                Call::Mark(r) => m.mark(ReplicaId(r)),
                Call::GiveUp(r) => drop(m.give_up_on(ReplicaId(r))),
                Call::Flush(r) => drop(m.flush(ReplicaId(r))),
                Call::Note(at, bytes) => m.note_input(at, &bytes),
            }
            prop_assert!(m.released() >= released);
            prop_assert!(ends <= 1);
            for r in (0..7).map(ReplicaId) {
                let _ = (m.waits_for(r), m.behind(r), m.held_back(r), m.own_position(r));
            }
            let _ = m.undecided().map(|u| u.to_string());
            for d in m.differences() {
                prop_assert!(d.said.len() <= 200 && !d.to_string().is_empty());
            }
            let most = voters.len() * unconfirmed + retained + 3000;
            prop_assert!(masked || m.stats().held <= most);
        }
        let released = m.released();
        m.take_released(&mut out);
        prop_assert!(masked || out.len() as u64 == released);
    }

    #[test]
    fn unordered_outputs_survive_any_calls(
        voters in voters(),
        outputs in 0..20usize,
        bytes in 0..3000usize,
        calls in prop::collection::vec(call(), 0..200),
    ) {
        let limits = PoolLimits { outputs, bytes, age_ns: 50, patience_ns: 20 };
        let mut pool = Pool::new(&voters, limits);
        let mut now = 0u64;
        for call in calls {
            match call {
                Call::Say(r, bytes) => drop(pool.push(ReplicaId(r), [u64::from(r == 9), 0], &bytes, now)),
                Call::Take => while pool.take_confirmed().is_some() {},
                Call::Leave(r, _) => pool.leave(ReplicaId(r)),
                Call::Enter(r, at) => pool.enter(ReplicaId(r), at),
                Call::GiveUp(r) => pool.give_up_on(ReplicaId(r)),
                Call::Later(by) => {
                    now = now.saturating_add(by.min(1 << 40));
                    pool.tick(now);
                }
                _ => drop(pool.differences()),
            }
            let stats = pool.stats();
            prop_assert!(stats.waiting <= outputs.max(1) * (voters.len() + 1));
            prop_assert!(stats.held <= (voters.len() + 1) * (bytes + 1600));
            prop_assert_eq!(pool.unconfirmed().count() <= stats.waiting, true);
        }
    }
}
