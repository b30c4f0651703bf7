//! How long the state machine takes for a boundary: `cargo run --release -p quorate-voter --example speed`.
//! All N casts, steps, one lead and the releases of a boundary count; making the frames does not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_voter::{Channel, Config, Lockstep, ReplicaId, Step};

const BOUNDARIES: u64 = 50_000;

fn measure(replicas: u8, frame: usize) -> Result<Duration, Box<dyn std::error::Error>> {
    let mut set: Lockstep<Arc<Vec<u8>>> = Lockstep::new(Config {
        replicas,
        window_boundaries: 1024,
        window_bytes: 64 << 20,
        lag_timeout_ns: 2_000_000_000,
        lag_factor: 8,
    })?;
    let mut spent = Duration::ZERO;
    for s in 0..BOUNDARIES {
        let ballots: Vec<_> = (0..replicas)
            .map(|r| (ReplicaId(r), vec![(Channel(0), vec![s as u8; frame])]))
            .collect();
        let start = Instant::now();
        for (r, ballot) in ballots {
            set.cast(r, s, ballot, s)?;
            while set.poll_event().is_some() {}
            if let Step::Lead = set.step(r, s) {
                set.lead(r, Arc::default(), 100, s)?;
            }
        }
        spent += start.elapsed();
    }
    Ok(spent)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for replicas in [1, 3, 5] {
        for frame in [64, 1500, 32 << 10] {
            let ns = measure(replicas, frame)?.as_nanos() / u128::from(BOUNDARIES);
            println!("N={replicas} frame {frame:>5} bytes: {ns:>6} ns per boundary");
        }
    }
    Ok(())
}
