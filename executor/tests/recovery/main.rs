//! Replicas that come back: each step of the ladder by itself and after another has failed, sets without a majority, limits,
//! membership, and the order of checkpoints. With scripted machines, no KVM.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod checkpoints;
#[path = "../fake/mod.rs"]
mod fake;
mod ladder;
mod majority;
mod members;

use std::sync::atomic::Ordering;
use std::time::Duration;

use fake::{Behaviour, Fake, Script};
use quorate_executor::events::{End, Event, NoQuorum};
use quorate_executor::exit::ExitCode;
use quorate_executor::inject::Fault;
use quorate_executor::recovery::{RecoveryConfig, Step};
use quorate_executor::set::SetConfig;

/// So many bytes of journal are some ten boundaries.
const TEN_BOUNDARIES: u64 = 800;

/// Checkpoints by the growth of the journal only, so that a test knows where they are.
fn by_journal() -> RecoveryConfig {
    RecoveryConfig {
        checkpoint_interval: Some(Duration::from_secs(3600)),
        checkpoint_journal: TEN_BOUNDARIES,
        // Faults come thick and fast here.
        crash_limit: 100,
        ..RecoveryConfig::default()
    }
}

fn start(replicas: u8, script: Script, recovery: RecoveryConfig) -> Fake {
    start_with(replicas, script, recovery, |_| {})
}

fn start_with(
    replicas: u8,
    script: Script,
    recovery: RecoveryConfig,
    change: impl FnOnce(&mut SetConfig),
) -> Fake {
    Fake::try_start(replicas, script, |config| {
        config.recovery = recovery;
        change(config);
    })
    .unwrap()
}

/// Talks until every replica has taken so many checkpoints.
fn take_checkpoints(fake: &Fake, count: u64) {
    fake.talk_until("checkpoints", |status| {
        let mut all = status.replicas.iter();
        all.all(|replica| replica.checkpoints.taken >= count)
    });
    // The last one's boundary is decided then.
    fake.talk(3);
}

fn wait_recovered(fake: &Fake, who: usize, by: Step) {
    fake.wait_for(
        &format!("the recovery of replica {who} by {by}"),
        |event| matches!(event, Event::Recovered { replica, step, .. } if *replica == who && *step == by),
    );
}

/// Waits until so many replicas vote, then ends the set and looks whether all was well.
fn end_well(fake: Fake, running: usize) {
    fake.wait_for_status("full strength", |status| {
        status.running == running && status.state == "running"
    });
    fake.talk(5);
    fake.send(b"exit 0");
    let two_at_once = fake.hand.two_at_once.load(Ordering::SeqCst);
    let ended = fake.end();
    assert_eq!(ended.end.exit_code(), ExitCode::Success, "{}", ended.end);
    assert!(ended.nothing_more());
    assert!(!two_at_once, "two replicas took a checkpoint at once");
}

fn failed_steps(fake: &Fake, who: usize) -> Vec<Step> {
    let status = fake.set.status();
    let of = |event: &serde_json::Value| {
        let is = event["event"] == "step-failed" && event["replica"] == who;
        is.then(|| serde_json::from_value(event["step"].clone()).unwrap())
    };
    status.events.iter().filter_map(of).collect()
}
