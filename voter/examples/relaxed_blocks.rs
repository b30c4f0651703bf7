//! What the vote on block writes costs as one replica runs ahead of the others: `cargo run --release -p quorate-voter --example
//! relaxed_blocks`. Three replicas write 4 KiB at a time; replica 0 is so many writes ahead all the time.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use quorate_voter::ReplicaId;
use quorate_voter::relaxed::{BlockLimits, BlockMatcher, Digest, Digester, Voters};

const SECTORS_PER_WRITE: u64 = 8;
const WRITES: u64 = 30_000;

/// What write `n` puts into sector `i` of it: made of the number, so that it costs nothing.
fn digests(digester: &Digester) -> Vec<Digest> {
    (0..4096u32)
        .map(|n| digester.of(&n.to_le_bytes()))
        .collect()
}

fn main() {
    let voters = Voters::majority(3, [1; 32]).unwrap();
    let limits = BlockLimits {
        ahead: 1 << 22,
        ..BlockLimits::default()
    };
    let digester = BlockMatcher::new(&voters, limits).digester();
    let contents = digests(&digester);
    let block = vec![7u8; 4096];
    let started = Instant::now();
    for _ in 0..20_000 {
        for sector in block.chunks_exact(512) {
            black_box(digester.of(black_box(sector)));
        }
    }
    let bytes = 20_000.0 * 4096.0;
    println!(
        "digests of 512 bytes: {:.2} GB/s on one core",
        bytes / started.elapsed().as_secs_f64() / 1e9
    );
    println!(
        "writes ahead | all to other places: ns per sector and replica | all to the same 8 sectors"
    );
    for ahead in [0u64, 100, 1_000, 10_000, 100_000] {
        let mut costs = Vec::new();
        for same in [false, true] {
            // The same sectors know no more versions than the bound.
            if same && ahead >= BlockLimits::default().versions as u64 {
                continue;
            }
            let mut matcher = BlockMatcher::new(&voters, limits);
            let mut write = |replica: u8, n: u64| {
                let at = if same { 0 } else { n * SECTORS_PER_WRITE };
                for i in 0..SECTORS_PER_WRITE {
                    let digest = contents[((n * SECTORS_PER_WRITE + i) % 4096) as usize];
                    let digest = if same {
                        contents[(n % 4096) as usize]
                    } else {
                        digest
                    };
                    black_box(
                        matcher
                            .write(ReplicaId(replica), at + i, digest, n)
                            .unwrap(),
                    );
                }
            };
            (0..ahead).for_each(|n| write(0, n));
            let started = Instant::now();
            for n in 0..WRITES {
                write(0, ahead + n);
                write(1, n);
                write(2, n);
            }
            let sectors = WRITES * SECTORS_PER_WRITE * 3;
            costs.push(started.elapsed().as_nanos() as f64 / sectors as f64);
        }
        let costs: Vec<String> = costs.iter().map(|ns| format!("{ns:7.0}")).collect();
        println!("{ahead:12} | {}", costs.join(" | "));
    }
}
