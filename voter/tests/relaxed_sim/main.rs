//! The seeded simulator of the relaxed discipline: free-running replicas that say what they say in any fragments and any
//! order between connections, lag, crash and come back, say wrong bytes, too few or too many, end early or in other ways, mix
//! connections up between their workers, make outputs up, repeat and reorder them; as majorities, with canaries, and
//! under a primary that fails. After every call an oracle, which keeps what each replica was heard to say and
//! nothing else, checks that nothing is released that lacks a quorum, the order, the bounds and the blame; at the end, that all of
//! what the healthy majority says is released.
//!
//! A failure prints its seed. Rerun one, with every step printed, with
//!
//! ```text
//! QUORATE_SIM_SEED=1234 cargo test -p quorate-voter --test relaxed_sim streams -- --nocapture
//! ```
//!
//! and many with `QUORATE_SIM_SEEDS=100000`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod outputs;
#[path = "../sim/rng.rs"]
mod rng;
mod streams;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use quorate_voter::ReplicaId;
use quorate_voter::relaxed::{Policy, Role, Voters};
use rng::Rng;

/// How often things happened, over all seeds: a simulator that never gets to a case does not test it.
pub type Coverage = BTreeMap<&'static str, u64>;

/// Who takes part in a run.
pub struct Cast {
    /// Those that are no canaries; they come first.
    pub voting: usize,
    pub roles: Vec<Role>,
    /// The first one is the primary.
    pub primary: bool,
    pub voters: Voters,
}

/// Draws who takes part; under a primary once in so many runs.
pub fn cast(rng: &mut Rng, primary_one_in: u64) -> Cast {
    let voting = rng.pick(&[1, 2, 3, 3, 3, 5]);
    let canaries = usize::from(rng.one_in(4));
    let mut roles = vec![Role::Voter; voting];
    roles.extend(vec![Role::Canary; canaries]);
    let primary = rng.one_in(primary_one_in);
    let policy = match primary {
        true => Policy::Primary {
            replica: ReplicaId(0),
        },
        false => Policy::Majority,
    };
    let voters = Voters::new(&roles, policy, [1; 32]).unwrap();
    Cast {
        voting,
        roles,
        primary,
        voters,
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let wrong = |_| panic!("{name}={text} is not a number");
    Some(text.parse().unwrap_or_else(wrong))
}

/// Runs many seeds, and says what was seen in all of them; or the one that is asked for.
fn seeds(
    usual: u64,
    run: impl Fn(u64, bool, &mut Coverage) -> Result<(), String>,
) -> Option<Coverage> {
    let mut coverage = Coverage::new();
    if let Some(seed) = number("QUORATE_SIM_SEED") {
        run(seed, true, &mut coverage).unwrap();
        println!("{coverage:#?}");
        return None;
    }
    for seed in 0..number("QUORATE_SIM_SEEDS").unwrap_or(usual) {
        let result = catch_unwind(AssertUnwindSafe(|| run(seed, false, &mut coverage)));
        let result = result.unwrap_or_else(|_| Err("panicked".into()));
        if let Err(what) = result {
            panic!("seed {seed}: {what}; rerun with QUORATE_SIM_SEED={seed}");
        }
    }
    println!("{coverage:#?}");
    Some(coverage)
}

fn all_seen(coverage: Option<Coverage>, expected: &[&str]) {
    if let Some(coverage) = coverage
        && number("QUORATE_SIM_SEEDS").is_none()
    {
        for what in expected {
            let seen = coverage.get(what).copied().unwrap_or(0);
            assert!(seen > 2, "{what} was seen {seen} times: {coverage:#?}");
        }
    }
}

#[test]
fn streams_are_released_as_a_quorum_says_them() {
    let coverage = seeds(3000, streams::run);
    all_seen(
        coverage,
        &[
            "released",
            "wrong",
            "short",
            "long",
            "other end",
            "silent",
            "mixed up",
            "crash",
            "back",
            "full",
            "undecided",
            "primary",
            "primary left",
            "reset",
            "canary",
            "gave up",
            "far behind",
            "masked",
            "copy",
        ],
    );
}

#[test]
fn outputs_are_confirmed_as_a_quorum_says_them() {
    let coverage = seeds(4000, outputs::run);
    all_seen(
        coverage,
        &[
            "confirmed",
            "spurious",
            "missing",
            "repeated",
            "full",
            "crash",
            "back",
            "primary",
            "canary",
        ],
    );
}
