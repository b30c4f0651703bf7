//! What a boundary costs beyond the bare exit from KVM. Not a check: it prints for `docs/numbers.md`, and needs a quiet
//! host. `cargo test --release -p quorate-vmm boundary_cost -- --ignored --nocapture`

use super::guest::Does;
use super::machine::{boundary, machine};
use crate::Entry;
use kvm_ioctls::VcpuExit;
use std::sync::Arc;
use std::time::{Duration, Instant};

const BOUNDARIES: usize = 5_000;

/// The median: other load on the host shall not count.
fn median(mut step: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..BOUNDARIES)
        .map(|_| {
            let before = Instant::now();
            step();
            before.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[BOUNDARIES / 2]
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
    let bare = median(|| match machine.vcpu.run() {
        Ok(VcpuExit::IoOut(..)) => {}
        other => panic!("{other:?}"),
    });
    let entry = Arc::new(Entry::default());
    machine.resume(&entry).unwrap();
    let whole = median(|| {
        boundary(machine.run());
        machine.resume(&entry).unwrap();
    });
    println!(
        "bare exit {:.2} us, boundary {:.2} us, of which the VMM {:.2} us",
        bare.as_secs_f64() * 1e6,
        whole.as_secs_f64() * 1e6,
        (whole.saturating_sub(bare)).as_secs_f64() * 1e6
    );
}
