//! What a boundary costs beyond the bare exit from KVM. Not a check: it prints for `docs/numbers.md`, and needs a quiet
//! host. `cargo test --release -p quorate-vmm boundary_cost -- --ignored --nocapture`

use super::checkpoint::order;
use super::guest::{Command, Does, stub};
use super::machine::{boundary, config, kvm, machine};
use crate::{Entry, LayoutKind, Machine, NoDisks, Restore};
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

/// What a checkpoint costs, by pages that the guest wrote since the one before: the pause; what the guest's next write to each
/// page costs with the log on and off; and what it takes to put it back.
/// `cargo test --release -p quorate-vmm checkpoint_cost -- --ignored --nocapture`
#[test]
#[ignore = "measures, see above"]
fn checkpoint_cost() {
    const ROUNDS: usize = 7;
    let start = 64 << 20;
    let mut config = config(Does::Work);
    config.memory_bytes = 512 << 20;
    config.kernel = stub(Does::Work).elf().into();
    config.layout = LayoutKind::Random;
    let write = |machine: &mut Machine, pages: u64| {
        let before = thread_time();
        machine
            .resume(&order(Command::Touch, pages, start), &mut NoDisks)
            .unwrap();
        boundary(machine.run());
        thread_time() - before
    };
    println!(
        "pages  write/page us (log off, log on, on after a checkpoint)  pause us (state)  back us (by log, verified)"
    );
    for pages in [0, 100, 1_000, 5_000] {
        let mut plain = Machine::new(&kvm(), &config).unwrap();
        let mut logged = Machine::new(&kvm(), &config).unwrap();
        logged.track_dirty().unwrap();
        for machine in [&mut plain, &mut logged] {
            boundary(machine.run());
            write(machine, pages);
        }
        let (mut base, first) = logged.checkpoint(None).unwrap();
        let [
            mut off,
            mut on,
            mut after,
            mut pause,
            mut state,
            mut dirty,
            mut verified,
        ] = [const { Vec::new() }; 7];
        for _ in 0..ROUNDS {
            off.push(write(&mut plain, pages));
            after.push(write(&mut logged, pages));
            on.push(write(&mut logged, pages));
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
            "{pages:6}  {:.2} {:.2} {:.2}  {:.0} ({:.0}), first {}  {:.0} {:.0}",
            per_page(off),
            per_page(on),
            per_page(after),
            median(pause),
            median(state),
            first.micros,
            median(dirty),
            median(verified),
        );
    }
}
