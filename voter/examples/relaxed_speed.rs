//! What the relaxed discipline's matchers cost: `cargo run --release -p quorate-voter --example relaxed_speed`.
//!
//! Streams: payload bytes per second that one core matches and releases for N replicas which say the same. Unordered
//! outputs: time per confirmed output, as the distance between the replica that leads and those that follow grows.
//! The best of several runs, alternating, so that other load on the machine matters little.

use std::hint::black_box;
use std::time::{Duration, Instant};

use quorate_voter::ReplicaId;
use quorate_voter::relaxed::{
    Mask, MaskRule, MaskSet, PATTERN_BOUND, Pool, PoolLimits, StreamLimits, StreamMatcher, Voters,
};

type Failure = Box<dyn std::error::Error>;

const KEY: [u8; 32] = [7; 32];
const BATCHES: usize = 100;

/// Bytes that do not repeat soon.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// The time that a tenth of these took at most: what it takes when nothing else runs.
fn usual(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times
        .get(times.len() / 10)
        .copied()
        .unwrap_or(Duration::MAX)
}

/// Matches bytes pushed in pieces of `piece`, one replica after the other; GB/s.
fn stream(replicas: usize, piece: usize, masks: &[Mask]) -> Result<f64, Failure> {
    const BATCH: usize = 1 << 20;
    let voters = Voters::majority(replicas, KEY)?;
    let set = MaskSet::new(masks)?;
    let mut matcher = StreamMatcher::new(&voters, StreamLimits::default(), Some(&set));
    let payload = noise(BATCH);
    let mut out = Vec::with_capacity(2 * BATCH);
    let mut times = Vec::new();
    for _ in 0..BATCHES {
        let start = Instant::now();
        for piece in payload.chunks(piece) {
            for r in 0..replicas {
                matcher.push(ReplicaId(r as u8), piece)?;
            }
            out.clear();
            matcher.take_released(&mut out);
            black_box(&out);
        }
        times.push(start.elapsed());
    }
    // Masks may hold a line back.
    if matcher.released() < (BATCH * BATCHES - PATTERN_BOUND) as u64 {
        return Err(format!("{} bytes were released", matcher.released()).into());
    }
    Ok(BATCH as f64 / usual(times).as_secs_f64() / 1e9)
}

struct Cost {
    each: Duration,
    fast: f64,
}

/// One replica leads by `distance` outputs, two follow; `disorder`: every other pair of outputs is swapped by one of them.
fn outputs(size: usize, distance: usize, disorder: bool) -> Result<Cost, Failure> {
    const BATCH: usize = 500;
    let voters = Voters::majority(3, KEY)?;
    let limits = PoolLimits {
        outputs: 64 << 10,
        bytes: 1 << 30,
        ..PoolLimits::default()
    };
    let mut pool = Pool::new(&voters, limits);
    let mut contents: Vec<Vec<u8>> = vec![noise(size); 256];
    for (i, content) in contents.iter_mut().enumerate() {
        content[0] = i as u8;
    }
    // The tag is another one each time, as the sector of a block write is.
    let say = |pool: &mut Pool, r: u8, i: usize| {
        pool.push(ReplicaId(r), [0, i as u64], &contents[i % 256], 0)
    };
    let swapped = |i: usize| match i % 4 {
        0 if disorder => i + 1,
        1 if disorder => i - 1,
        _ => i,
    };
    for i in 0..distance {
        say(&mut pool, 0, i)?;
    }
    let mut times = Vec::new();
    let mut confirmed = 0;
    for batch in 0..BATCHES {
        let start = Instant::now();
        for i in batch * BATCH..(batch + 1) * BATCH {
            say(&mut pool, 0, i + distance)?;
            say(&mut pool, 1, i)?;
            say(&mut pool, 2, swapped(i))?;
            while let Some(output) = pool.take_confirmed() {
                confirmed += 1;
                black_box(&output);
            }
        }
        times.push(start.elapsed());
    }
    if confirmed < BATCH * BATCHES {
        return Err(format!("{confirmed} outputs were confirmed").into());
    }
    let each = usual(times) / BATCH as u32;
    let stats = pool.stats();
    let fast = stats.fast as f64 / (stats.fast + stats.searched) as f64;
    Ok(Cost { each, fast })
}

fn main() -> Result<(), Failure> {
    println!("streams, GB/s of payload per core (N replicas say it, it is released once)");
    for replicas in [1, 3, 5] {
        print!("N={replicas}:");
        for piece in [1, 4, 16, 64] {
            let rate = stream(replicas, piece << 10, &[])?;
            print!("  {piece:>2} KiB {rate:>5.2}");
        }
        println!();
    }
    let mask = |rule| Mask {
        name: "mask".into(),
        rule,
        translate: false,
    };
    let header = mask(MaskRule::HttpHeader("Date".into()));
    let pattern = mask(MaskRule::Pattern("sid=([0-9a-f]{32})".into()));
    for (name, masks) in [("a header", [header]), ("a pattern", [pattern])] {
        let rate = stream(3, 16 << 10, &masks)?;
        println!("N=3, {name} masked: 16 KiB {rate:>5.2}");
    }
    println!(
        "unordered outputs, N=3: time per confirmed output by distance, and how often no search was needed"
    );
    for (name, size, disorder) in [
        ("64-byte datagrams", 64, false),
        ("1400-byte datagrams", 1400, false),
        ("1400-byte datagrams, every other pair swapped", 1400, true),
        ("4 KiB blocks", 4096, false),
    ] {
        println!("{name}:");
        let mut first = None;
        for distance in [1, 10, 100, 1_000, 10_000] {
            let cost = outputs(size, distance, disorder)?;
            let ns = cost.each.as_nanos() as f64;
            let first = *first.get_or_insert(ns);
            println!(
                "  {distance:>6}: {ns:>6} ns, {:.2} times that at distance 1, {:>5.1} % fast",
                ns / first,
                cost.fast * 100.0
            );
        }
    }
    Ok(())
}
