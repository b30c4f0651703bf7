//! What a boundary costs beyond the bare exit from KVM. Not a check: it prints for `docs/numbers.md`, and needs a quiet
//! host. `cargo test --release -p quorate-vmm boundary_cost -- --ignored --nocapture`

use super::checkpoint::order;
use super::guest::{Command, Does};
use super::machine::{boundary, config, kvm, machine};
use crate::{Entry, Machine, NoDisks, Restore};
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

/// Processor time of this thread, the guest's included: other load on the host does not count.
fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: It writes the time there.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What a checkpoint costs, by pages that the guest writes between two of them, in processor time: what its writes cost (without a
/// log; with the log as it is used; with pages that are protected again each time, which is what bare logging costs), the pause (of that, everything
/// but memory; then the very first), and what it takes to put one back.
/// `cargo test --release -p quorate-vmm checkpoint_cost -- --ignored --nocapture`
#[test]
#[ignore = "measures, see above"]
fn checkpoint_cost() {
    const ROUNDS: usize = 9;
    let start = 64 << 20;
    let mut config = config(Does::Work);
    config.memory_bytes = 512 << 20;
    let write = |machine: &mut Machine, pages: u64| {
        let before = thread_time();
        machine
            .resume(&order(Command::Touch, pages, start), &mut NoDisks)
            .unwrap();
        boundary(machine.run());
        thread_time() - before
    };
    println!(
        "pages  us/page written: no log, log, protected again;  pause us: all, state, first;  back us: by log, verified"
    );
    for pages in [0, 100, 1_000, 5_000, 20_000] {
        let [mut plain, mut logged, mut bare] =
            std::array::from_fn(|_| Machine::new(&kvm(), &config).unwrap());
        logged.track_dirty().unwrap();
        bare.track_dirty_with(false).unwrap();
        for machine in [&mut plain, &mut logged, &mut bare] {
            boundary(machine.run());
            write(machine, pages);
        }
        let before = thread_time();
        let (mut base, _) = logged.checkpoint(None).unwrap();
        let first = thread_time() - before;
        let (mut bare_base, _) = bare.checkpoint(None).unwrap();
        let [
            mut off,
            mut on,
            mut again,
            mut pause,
            mut state,
            mut dirty,
            mut verified,
        ] = [const { Vec::new() }; 7];
        for _ in 0..ROUNDS {
            off.push(write(&mut plain, pages));
            on.push(write(&mut logged, pages));
            again.push(write(&mut bare, pages));
            bare_base = bare.checkpoint(Some(&bare_base)).unwrap().0;
            let before = thread_time();
            let (next, cost) = logged.checkpoint(Some(&base)).unwrap();
            pause.push(thread_time() - before);
            base = next;
            state.push(Duration::from_micros(cost.state_micros));
        }
        for _ in 0..ROUNDS {
            for (how, times) in [
                (Restore::Dirty, &mut dirty),
                (Restore::Verified, &mut verified),
            ] {
                write(&mut logged, pages);
                let before = thread_time();
                logged.restore(&base, how).unwrap();
                times.push(thread_time() - before);
            }
        }
        let per_page = |times| median(times) / pages.max(1) as f64;
        println!(
            "{pages:6}  {:.2} {:.2} {:.2}  {:.0} {:.0} {:.0}  {:.0} {:.0}",
            per_page(off),
            per_page(on),
            per_page(again),
            median(pause),
            median(state),
            first.as_secs_f64() * 1e6,
            median(dirty),
            median(verified),
        );
    }
}
