//! Golden runs of the ready campaigns on KVM: `cargo test --release -p quorate-campaign --test golden`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Instant;

use quorate_campaign::file::Campaign;
use quorate_campaign::model::Outcome;
use quorate_campaign::talk::{Course, Golden, Judge, Trial};
use quorate_executor::stage::{Play, Rig};

fn campaign(name: &str) -> Campaign {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../campaigns")
        .join(name);
    let mut campaign = Campaign::load(path).unwrap();
    campaign.replicas = vec![1, 3];
    campaign
}

fn prepare(campaign: &Campaign, dir: &Path) -> Golden {
    let begun = Instant::now();
    let progress = |text: &str| println!("{:6.2} s {text}", begun.elapsed().as_secs_f64());
    let golden = Golden::prepare(campaign, dir, &progress).unwrap();
    println!(
        "{:6.2} s ready: {:?}",
        begun.elapsed().as_secs_f64(),
        golden.facts
    );
    golden
}

/// Twice from scratch, once from what is there: always the same. And a trial without a fault is masked.
fn twice(name: &str) -> Golden {
    let campaign = campaign(name);
    let (first_dir, second_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = prepare(&campaign, first_dir.path());
    let second = prepare(&campaign, second_dir.path());
    assert_eq!(first.facts, second.facts);
    assert_eq!(first.conversation, second.conversation);
    assert_eq!(first.heard, second.heard);
    assert_eq!(first.disks, second.disks);
    drop(second);
    let before = std::fs::metadata(first_dir.path().join("warm"))
        .unwrap()
        .modified()
        .unwrap();
    let again = prepare(&campaign, first_dir.path());
    assert_eq!(first.facts, again.facts);
    let after = std::fs::metadata(first_dir.path().join("warm"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(before, after, "it was not warmed up again");
    assert_eq!(again.heard.course, Course::Complete);
    assert!(again.facts.boundaries > 0 && again.facts.calls > 0 && again.facts.virtual_ns > 0);

    let judge = Judge::new(&campaign, &again).unwrap();
    let mut rig = Rig::new(again.plan.clone(), 3).unwrap();
    for replicas in [1, 3] {
        let player = again.player();
        let begun = Instant::now();
        let performed = rig
            .perform(Play::new(replicas, player.stage(), player.egress()))
            .unwrap();
        println!(
            "{replicas} replicas: {:?}, reset {:?}",
            begun.elapsed(),
            performed.reset
        );
        let judgement = judge.judge(&Trial {
            replicas,
            not_injected: None,
            heard: &player.heard(),
            disks: &performed.disks,
            end: &performed.summary.end,
            over: performed.over,
            spun: performed.spun,
            events: &[],
        });
        assert_eq!(judgement.outcome, Outcome::Masked, "{}", judgement.evidence);
    }
    again
}

#[test]
fn redis() {
    let golden = twice("redis.toml");
    assert_eq!(golden.conversation.connections, [6379, 6379]);
    let text = String::from_utf8_lossy(&golden.heard.connections[0].bytes).into_owned();
    assert!(text.contains("value OF key 250"), "{text}");
}

#[test]
fn lighttpd() {
    let golden = twice("lighttpd.toml");
    assert_eq!(golden.conversation.connections, [80, 80]);
}

#[test]
fn sqlite_on_a_disk() {
    let golden = twice("sqlite.toml");
    assert!(!golden.disks[0].written.is_empty());
}

#[test]
fn compute() {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../campaigns/compute/root");
    if !built.exists() {
        println!("not built: campaigns/compute/build makes it");
        return;
    }
    twice("compute.toml");
}
