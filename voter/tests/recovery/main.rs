//! Replicas that come back, case by case.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod disputes;
mod history;
mod pace;
mod rejoining;

use common::{MS, NET, S, Set, config, id, net};
use quorate_voter::{
    Config, Event, HISTORY_OVERHEAD, LeadError, Lockstep, NoMajorityCause, Past, Rejoin,
    RejoinError, ReplicaState, ResumeError, Step, StopReason, ballot_digest,
};

/// What an honest replica casts at a boundary.
fn word(s: u64) -> Vec<(quorate_voter::Channel, Vec<u8>)> {
    net(format!("word {s}").as_bytes())
}

/// Casts the right word and goes on.
fn right(set: &mut Set, r: u8) {
    let s = set.at(r);
    set.run(r, word(s));
}

/// Runs replicas, one boundary each in turn, until all are to cast `boundary`.
fn up_to(set: &mut Set, replicas: &[u8], boundary: u64) {
    for _ in 0..boundary {
        for r in replicas {
            if set.at(*r) < boundary {
                right(set, *r);
            }
        }
    }
}

fn words(boundaries: std::ops::Range<u64>) -> Vec<(u64, quorate_voter::Channel, Vec<u8>)> {
    boundaries.map(|s| (s, NET, word(s)[0].1.clone())).collect()
}

fn recovered(events: &[Event]) -> Vec<(u8, u64)> {
    let one = |event: &Event| match event {
        Event::Recovered { replica, boundary } => Some((replica.0, *boundary)),
        _ => None,
    };
    events.iter().filter_map(one).collect()
}
