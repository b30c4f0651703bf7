//! What a boundary costs beyond the bare exit from KVM. Not a check: it prints for `docs/numbers.md`, and needs a quiet
//! host. `cargo test --release -p quorate-vmm boundary_cost -- --ignored --nocapture`

use super::guest::Does;
use super::machine::{boundary, machine};
use crate::{Entry, NoDisks};
use kvm_ioctls::VcpuExit;
use std::sync::Arc;
use std::time::{Duration, Instant};

const BOUNDARIES: usize = 5_000;

/// The median in microseconds: other load on the host shall not count.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

#[test]
#[ignore = "measures, see above"]
fn boundary_cost() {
    let before = Instant::now();
    let mut machine = machine(Does::Echo);
    let made = before.elapsed();
    boundary(machine.run());
    println!(
        "machine made in {made:.2?}, first boundary after {:.2?}",
        before.elapsed()
    );
    let entry = Arc::new(Entry::default());
    machine.resume(&entry, &mut NoDisks).unwrap();
    let (mut bare, mut whole) = (Vec::new(), Vec::new());
    // In turns, so that both meet the same load. The guest does the same in both.
    for _ in 0..BOUNDARIES {
        let before = Instant::now();
        match machine.vcpu.run() {
            Ok(VcpuExit::IoOut(..)) => bare.push(before.elapsed()),
            other => panic!("{other:?}"),
        }
        let before = Instant::now();
        boundary(machine.run());
        machine.resume(&entry, &mut NoDisks).unwrap();
        whole.push(before.elapsed());
    }
    let (bare, whole) = (median(bare), median(whole));
    println!(
        "bare exit {bare:.2} us, boundary {whole:.2} us, of which the VMM {:.2} us",
        whole - bare
    );
}
