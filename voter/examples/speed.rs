//! How long the state machine takes for a boundary: `cargo run --release -p quorate-voter --example speed`.
//! With and without recovery: the difference is one keyed hash and the history. The best of three, alternating.
//! All N casts, steps, one lead and the releases of a boundary count; making the frames does not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_voter::{Channel, Config, Lockstep, ReplicaId, Step};

const BOUNDARIES: u64 = 50_000;

fn measure(
    replicas: u8,
    frame: usize,
    recoverable: bool,
) -> Result<Duration, Box<dyn std::error::Error>> {
    let config = Config {
        replicas,
        window_boundaries: 1024,
        window_bytes: 64 << 20,
        lag_timeout_ns: 2_000_000_000,
        lag_factor: 8,
    };
    let mut set: Lockstep<Arc<Vec<u8>>> = match recoverable {
        true => Lockstep::recoverable(config, [7; 32])?,
        false => Lockstep::new(config)?,
    };
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
        // As after a checkpoint of every replica.
        if s % 4096 == 0 {
            set.keep_from(s.saturating_sub(4096));
        }
        spent += start.elapsed();
    }
    Ok(spent)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for replicas in [1, 3, 5] {
        for frame in [64, 1500, 32 << 10] {
            let mut best = [u128::MAX; 2];
            for _ in 0..3 {
                for (best, recoverable) in best.iter_mut().zip([false, true]) {
                    let spent = measure(replicas, frame, recoverable)?;
                    *best = (*best).min(spent.as_nanos() / u128::from(BOUNDARIES));
                }
            }
            let [without, with] = best;
            println!(
                "N={replicas} frame {frame:>5} bytes: {without:>6} ns per boundary, {with:>6} ns with recovery"
            );
        }
    }
    Ok(())
}
