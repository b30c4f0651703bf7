//! What the set costs per boundary, without any virtual machine: `cargo run --release --example overhead`.
//! The difference to a bare KVM exit is this plus the devices.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_devices::{DiskPosition, DiskReads, Entry, Output};
use quorate_executor::egress::Egress;
use quorate_executor::events::NoQuorum;
use quorate_executor::exit::Failure;
use quorate_executor::inject::Fault;
use quorate_executor::journal::Ingress;
use quorate_executor::recovery::RecoveryConfig;
use quorate_executor::replica::{Kick, Pause, Turn, Vcpu};
use quorate_executor::seeds::RunSeed;
use quorate_executor::set::{Outside, ReplicaSet, SetConfig, World};
use quorate_voter::Config;

const BOUNDARIES: u64 = 200_000;

struct Runner {
    boundary: u64,
    frame: usize,
}

impl Vcpu for Runner {
    type Checkpoint = ();

    fn track_dirty(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn checkpoint(&mut self, _: Option<&()>) -> Result<((), Pause), String> {
        Ok(((), Pause::default()))
    }

    fn restore(&mut self, _: &()) -> Result<(), String> {
        Err("nothing is restored here".to_owned())
    }

    fn positions(_: &()) -> Vec<DiskPosition> {
        Vec::new()
    }

    fn pages(_: &()) -> u64 {
        0
    }

    fn dump(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn run(&mut self) -> Turn {
        self.boundary += 1;
        let mut outputs = vec![Output::Fingerprint {
            digest: [self.boundary; 2],
            syscalls: self.boundary,
        }];
        if self.frame > 0 {
            outputs.push(Output::Frame(vec![self.boundary as u8; self.frame]));
        }
        if self.boundary == BOUNDARIES {
            outputs.push(Output::Exit { status: 0 });
        }
        Turn::Boundary {
            outputs,
            wait_until_ns: 0,
        }
    }

    fn resume(&mut self, _: &Arc<Entry>, _: &mut dyn DiskReads) -> Result<(), String> {
        Ok(())
    }

    fn inject(&mut self, _: &Fault, _: u64) -> Result<String, String> {
        Err("nothing to break".to_owned())
    }

    fn kicker(&self) -> Kick {
        Arc::new(|| {})
    }

    fn layout(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

struct Nothing;

impl Ingress for Nothing {
    fn take(&self, _: usize, _: usize) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn is_empty(&self) -> bool {
        true
    }
}

impl Egress for Nothing {
    fn frames(&mut self, _: Vec<Vec<u8>>) {}
    fn console(&mut self, _: &[u8]) {}
}

fn main() -> Result<(), Failure> {
    for (replicas, frame) in [(1, 0), (1, 100), (1, 32_000), (3, 0), (3, 100), (5, 100)] {
        let config = SetConfig {
            start_ns: 0,
            name: "overhead".into(),
            voter: Config {
                replicas,
                window_boundaries: 4096,
                window_bytes: 64 << 20,
                lag_timeout_ns: 10_000_000_000,
                lag_factor: 10,
            },
            no_quorum: NoQuorum::Stop,
            stop_grace: Duration::from_secs(1),
            seed: RunSeed::from_text("overhead"),
            layout_mode: "same",
            recovery: RecoveryConfig {
                checkpoint_interval: None,
                ..RecoveryConfig::default()
            },
        };
        let world = World {
            ingress: Arc::new(Nothing),
            egress: Box::new(Nothing),
            disks: Arc::default(),
            events: Box::new(|_| {}),
            tap: None,
            outside: Box::new(Outside::default),
        };
        let start = Instant::now();
        let set = ReplicaSet::start(config, world, move |_, _| Ok(Runner { boundary: 0, frame }))?;
        let summary = set.wait();
        let each = start.elapsed().as_nanos() as f64 / BOUNDARIES as f64;
        println!(
            "{replicas} replicas, frames of {frame} bytes: {each:.0} ns per boundary ({})",
            summary.end
        );
    }
    Ok(())
}
