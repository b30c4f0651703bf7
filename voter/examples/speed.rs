//! How long the state machine takes for a boundary: `cargo run --release -p quorate-voter --example speed`.
//! With and without recovery: the difference is one keyed hash and the history. All N casts, steps, one lead and the
//! releases of a boundary count; making the frames does not. The best of many short batches, alternating, so
//! that other load on the machine matters little.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_voter::{Channel, Config, Lockstep, ReplicaId, Step};

const BATCHES: u64 = 100;
const BATCH: u64 = 100;

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
    let mut best = Duration::MAX;
    for batch in 0..BATCHES {
        let boundaries = batch * BATCH..(batch + 1) * BATCH;
        let ballot = |s: u64| vec![(Channel(0), vec![s as u8; frame])];
        let batch: Vec<Vec<_>> = boundaries
            .clone()
            .map(|s| (0..replicas).map(|_| ballot(s)).collect())
            .collect();
        let start = Instant::now();
        for (s, ballots) in boundaries.clone().zip(batch) {
            for (r, ballot) in (0..).map(ReplicaId).zip(ballots) {
                set.cast(r, s, ballot, s)?;
                while set.poll_event().is_some() {}
                if let Step::Lead = set.step(r, s) {
                    set.lead(r, Arc::default(), 100, s)?;
                }
            }
        }
        // As after a checkpoint of every replica.
        set.keep_from(boundaries.start);
        best = best.min(start.elapsed());
    }
    Ok(best)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for replicas in [1, 3, 5] {
        for frame in [64, 1500, 32 << 10] {
            let mut best = [Duration::MAX; 2];
            for _ in 0..3 {
                for (best, recoverable) in best.iter_mut().zip([false, true]) {
                    *best = (*best).min(measure(replicas, frame, recoverable)?);
                }
            }
            let [without, with] = best.map(|best| best.as_nanos() / u128::from(BATCH));
            println!(
                "N={replicas} frame {frame:>5} bytes: {without:>6} ns per boundary, {with:>6} ns with recovery"
            );
        }
    }
    Ok(())
}
