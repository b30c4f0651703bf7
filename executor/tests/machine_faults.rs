//! Faults of one machine with the real guest kernel: that they hit, that places mean the same in every layout, that every instruction
//! can be reached, and that [`Restore::Dirty`] takes all of it back. With `-- --ignored --nocapture` what it costs.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use quorate_devices::{Entry, Output};
use quorate_images::{Appliance, BuildOptions, build};
use quorate_vmm::fault::{
    Change, FaultError, FaultRegister, Group, MemoryClass, Place, Reached, Reacher, Trace, Tracer,
    Whose,
};
use quorate_vmm::{
    Boundary, Checkpoint, LayoutKind, Machine, MachineConfig, NoDisks, Outcome, ProgramSpec,
    Restore, StartTime, open_kvm,
};

const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile unsigned long counter;
static unsigned long table[4096] = { 1 };

__attribute__((noinline)) unsigned long tick(unsigned long x) {
    counter++;
    for (int i = 0; i < 16; i++) x = x * 6364136223846793005ul + table[(x >> 20) & 4095];
    return x;
}

int main(void) {
    unsigned long x = 1;
    volatile double d = 1.0;
    for (int i = 0; i < 4096; i++) table[i] = i * 2654435761ul;
    for (int i = 0;; i++) {
        struct timespec nap = { 0, 1000000 };
        char *memory = malloc(20000), *large = malloc(300000);
        memset(memory, i, 20000);
        large[150000] = i;
        for (int k = 0; k < 10; k++) { x = tick(x); d = d * 1.0000001 + (double)(x & 15); }
        printf("%d %lx %.6f %d %lu\n", i, x, d, memory[19999], counter);
        fflush(stdout);
        if (i % 8 != 7) free(memory);
        free(large);
        nanosleep(&nap, 0);
    }
}
"#;

/// The image, and the address of `tick`.
fn image() -> &'static (PathBuf, u64) {
    static IMAGE: OnceLock<(PathBuf, u64)> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap().keep();
        let source = directory.join("guest.c");
        std::fs::write(&source, PROGRAM).unwrap();
        let root = directory.join("root");
        std::fs::create_dir(&root).unwrap();
        let program = root.join("guest");
        let flags = ["-static", "-no-pie", "-O1", "-o"];
        let compiled = Command::new("cc")
            .args(flags)
            .arg(&program)
            .arg(&source)
            .status();
        assert!(compiled.unwrap().success());
        let names = Command::new("nm").arg(&program).output().unwrap().stdout;
        let names = String::from_utf8(names).unwrap();
        let tick = names
            .lines()
            .find_map(|line| line.strip_suffix(" T tick"))
            .unwrap();
        let tick = u64::from_str_radix(tick, 16).unwrap();
        let text = "version = 1\nname = \"mfaults\"\n[image]\ndirectory = \"root\"\n\
             [program]\ncommand = [\"/guest\"]\n[machine]\nmemory = \"32M\"\n";
        let appliance = Appliance::parse(text, &directory.join("lab.toml")).unwrap();
        let built = build(&appliance, &BuildOptions::new(directory.join("cache"))).unwrap();
        (built.path, tick)
    })
}

fn machine(seed: u8) -> Machine {
    let config = MachineConfig {
        kernel: quorate_executor::kernel::load().unwrap(),
        image: Some(Arc::new(File::open(&image().0).unwrap())),
        memory_bytes: 32 << 20,
        layout: LayoutKind::Random,
        layout_seed: [seed; 32],
        input_seed: [2; 32],
        program: ProgramSpec {
            argv: vec!["/guest".into()],
            envp: vec!["PATH=/bin".into()],
            cwd: "/".into(),
            hostname: "faults".into(),
            ..ProgramSpec::default()
        },
        disks: Vec::new(),
        start: StartTime::default(),
    };
    Machine::new(&open_kvm().unwrap(), &config).unwrap()
}

fn boundary(outcome: Outcome) -> Boundary {
    match outcome {
        Outcome::Boundary(boundary) => boundary,
        Outcome::Crash(report) => panic!("{report}"),
        other => panic!("{other:?}"),
    }
}

/// Delivers the entry of the boundary that the machine is at.
fn resume(machine: &mut Machine) {
    let at = (machine.save_devices().sync.boundary + 1) * 10_000_000;
    let entry = Entry {
        monotonic_ns: at,
        realtime_ns: at,
        ..Entry::default()
    };
    machine.resume(&Arc::new(entry), &mut NoDisks).unwrap();
}

fn go(machine: &mut Machine) -> Boundary {
    resume(machine);
    boundary(machine.run())
}

/// As [`go`], for a machine that may do anything. `None`: it did not come to a boundary.
fn go_anyhow(machine: &mut Machine) -> Option<Boundary> {
    resume(machine);
    run_anyhow(machine)
}

fn run_anyhow(machine: &mut Machine) -> Option<Boundary> {
    let kicker = machine.kicker();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(move || {
            if wait.recv_timeout(Duration::from_secs(5)) == Err(RecvTimeoutError::Timeout) {
                kicker.kick();
            }
        });
        let outcome = machine.run();
        drop(done);
        outcome
    });
    match outcome {
        Outcome::Boundary(boundary) => Some(boundary),
        _ => None,
    }
}

const WARM: u64 = 24;
const GOLDEN: usize = 4;

/// A machine that has run for a while, its state, and what it does next.
fn warm(seed: u8) -> (Machine, Checkpoint, Vec<Boundary>) {
    let mut machine = machine(seed);
    machine.track_dirty().unwrap();
    boundary(machine.run());
    for _ in 0..WARM {
        go(&mut machine);
    }
    let (base, _) = machine.checkpoint(None).unwrap();
    let golden = (0..GOLDEN).map(|_| go(&mut machine)).collect();
    machine.restore(&base, Restore::Verified).unwrap();
    (machine, base, golden)
}

fn bytes(checkpoint: &Checkpoint) -> Vec<u8> {
    let mut bytes = Vec::new();
    checkpoint.write_to(&mut bytes).unwrap();
    bytes
}

/// The machine is in the state of the checkpoint, and goes on as it did.
fn assert_back(machine: &mut Machine, base: &Checkpoint, golden: &[Boundary], what: &str) {
    let done = machine.restore(base, Restore::Dirty).unwrap();
    let now = machine.dump().unwrap();
    assert!(bytes(&now) == bytes(base), "{what}: the state differs");
    for expected in golden {
        assert!(
            go(machine) == *expected,
            "{what}: it goes on otherwise ({done:?})"
        );
    }
    machine.restore(base, Restore::Dirty).unwrap();
}

#[test]
fn places_mean_the_same_in_every_layout() {
    let (one, ..) = warm(1);
    let (two, ..) = warm(3);
    assert_ne!(one.layout(), two.layout());
    let (here, there) = (one.memory_map().unwrap(), two.memory_map().unwrap());
    for class in MemoryClass::all() {
        let (pages, others) = (here.pages(class), there.pages(class));
        assert_eq!(pages.len(), others.len(), "{class}");
        assert_eq!(here.bytes(class), there.bytes(class), "{class}");
        let mut equal = 0;
        for (page, other) in pages.iter().zip(&others) {
            let about = |p: &quorate_vmm::fault::PageAt| (p.offset, p.len, p.region, p.piece);
            assert_eq!(about(page), about(other), "{class}");
            let word = |machine: &Machine, at: u64| machine.memory_word(at).unwrap();
            let same = (0..page.len)
                .step_by(8)
                .all(|at| word(&one, page.physical + at) == word(&two, other.physical + at));
            equal += usize::from(same);
        }
        let all = pages.len();
        match class {
            // No addresses in them, but for the call sites that the kernel has rewritten.
            MemoryClass::Text => assert!(all > 50 && equal + 2 >= all, "{equal} of {all}"),
            MemoryClass::KernelText => assert!(all > 100 && equal == all, "{equal} of {all}"),
            MemoryClass::Data | MemoryClass::Heap => {
                assert!(
                    all > 10 && equal * 10 >= all * 8,
                    "{class}: {equal} of {all}"
                );
            }
            MemoryClass::Stack | MemoryClass::KernelHeap | MemoryClass::KernelStacks => {
                assert!(all > 3, "{class}: {all}");
            }
            MemoryClass::PageTables => assert!(all > 100, "{all}"),
            MemoryClass::Queues => assert!(all > 5, "{all}"),
            _ => {}
        }
        // The same random number is the same place.
        for pick in [0, 12_345_678_901, u64::MAX - 5] {
            let (place, other) = (here.pick(class, pick), there.pick(class, pick));
            assert_eq!(place.is_some(), all > 0);
            if let (Some(place), Some(other)) = (place, other) {
                assert_eq!(place.offset % 8, 0);
                assert_eq!((place.offset, place.region), (other.offset, other.region));
                assert_eq!(here.at(class, place.offset).unwrap(), place);
            }
        }
        assert_eq!(here.at(class, here.bytes(class)), None);
    }
}

#[test]
fn registers_change_and_come_back() {
    let (mut machine, base, golden) = warm(1);
    let (mut hit, mut lost) = (0, 0);
    for group in Group::ALL {
        for register in FaultRegister::of(group) {
            for whose in [Whose::Vcpu, Whose::Program] {
                let lane = register.lanes() - 1;
                let bit = 1 << [40, 6, 40, 11, 40][group as usize];
                let (before, after) = machine
                    .fault_register(register, whose, lane, bit, Change::Flip)
                    .unwrap();
                assert_eq!(before ^ after, bit, "{register}");
                assert_eq!(machine.register(register, whose, lane).unwrap(), after);
                let seen = go_anyhow(&mut machine);
                hit += usize::from(seen.as_ref() != golden.first());
                lost += usize::from(seen.is_none());
                let what = format!("{register} {whose:?}");
                assert_back(&mut machine, &base, &golden[..1], &what);
            }
        }
    }
    assert!(hit >= 5 && lost >= 1, "{hit} hit, {lost} of them lost");
    let rflags: FaultRegister = "rflags".parse().unwrap();
    let no_bits = machine.fault_register(rflags, Whose::Vcpu, 0, 1 << 63, Change::Flip);
    assert!(matches!(no_bits, Err(FaultError::NoBits { bits, .. }) if bits == 1 << 63));
    let rax: FaultRegister = "rax".parse().unwrap();
    let no_lane = machine.fault_register(rax, Whose::Vcpu, 1, 1, Change::Flip);
    assert!(matches!(no_lane, Err(FaultError::NoLane { .. })));
    assert!("eax".parse::<FaultRegister>().is_err());
    // Stuck bits.
    let set = machine
        .fault_register(rax, Whose::Program, 0, 0xf0, Change::Set)
        .unwrap();
    assert_eq!(set.1 & 0xf0, 0xf0);
    let clear = machine
        .fault_register(rax, Whose::Program, 0, 0xff, Change::Clear)
        .unwrap();
    assert_eq!(clear, (set.1, set.1 & !0xff));
}

#[test]
fn memory_changes_and_comes_back() {
    let (mut machine, base, golden) = warm(1);
    for class in MemoryClass::all() {
        let (mut hit, mut tried) = (0, 0);
        for pick in (0..12_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let Some(place) = machine.memory_map().unwrap().pick(class, pick) else {
                continue;
            };
            let mask = 1 << (pick >> 40 & 63);
            let (before, after) = machine
                .fault_memory(place.physical, mask, Change::Flip)
                .unwrap();
            assert_eq!(before ^ after, mask);
            assert_eq!(machine.memory_word(place.physical), Some(after));
            tried += 1;
            hit += usize::from(go_anyhow(&mut machine).as_ref() != golden.first());
            assert_back(
                &mut machine,
                &base,
                &golden[..1],
                &format!("{class} {place}"),
            );
        }
        println!("{class}: {hit} of {tried} show at the next boundary");
    }
    // What the program reads next: the sum goes another way.
    let table = machine.memory_map().unwrap();
    let mut seen = 0;
    for page in table
        .pages(MemoryClass::Data)
        .iter()
        .filter(|p| p.physical % 4096 == 0)
    {
        machine
            .fault_memory(page.physical + 8, 1, Change::Flip)
            .unwrap();
        seen += usize::from(go_anyhow(&mut machine).as_ref() != golden.first());
        machine.restore(&base, Restore::Dirty).unwrap();
    }
    assert!(seen > 0, "no change of a variable shows");
    assert_back(&mut machine, &base, &golden, "data");
}

#[test]
fn pages_vanish_and_come_back() {
    let (mut machine, base, golden) = warm(1);
    let here = machine.physical(image().1).unwrap();
    assert!(machine.zero_page(here).unwrap() > 100);
    assert_ne!(
        go_anyhow(&mut machine).as_ref(),
        golden.first(),
        "the program's code is gone"
    );
    assert_back(&mut machine, &base, &golden, "zeroed code");
    let map = machine.memory_map().unwrap();
    let stack = map.pages(MemoryClass::Stack).pop().unwrap();
    assert_eq!(machine.drop_page(stack.physical).unwrap(), 1);
    assert_eq!(machine.physical(stack.virt.unwrap()), None);
    assert_ne!(
        go_anyhow(&mut machine).as_ref(),
        golden.first(),
        "its stack is gone"
    );
    assert_back(&mut machine, &base, &golden, "dropped stack");
    let free = map
        .pages(MemoryClass::Ram)
        .into_iter()
        .map(|page| page.physical);
    let unmapped =
        free.filter(|&at| matches!(machine.drop_page(at), Err(FaultError::NotMapped(_))));
    assert!(unmapped.take(3).count() == 3);
    assert_back(&mut machine, &base, &golden, "dropped pages");
}

#[test]
fn calls_are_stopped_at_and_made_to_fail() {
    let (mut machine, base, golden) = warm(1);
    let before = machine.calls_made().unwrap();
    assert!(before > 20);
    machine.stop_at_call(3).unwrap();
    resume(&mut machine);
    // The calls of several boundaries.
    let mut outcome = machine.run();
    while let Outcome::Boundary(_) = outcome {
        resume(&mut machine);
        outcome = machine.run();
    }
    assert_eq!(outcome, Outcome::Stopped);
    assert_eq!(machine.calls_made().unwrap(), before + 3);
    let rip: FaultRegister = "rip".parse().unwrap();
    let program = machine.register(rip, Whose::Program, 0).unwrap();
    assert!(program < 1 << 32, "the program's own: {program:#x}");
    assert_back(&mut machine, &base, &golden, "stopped");

    // One of the next calls is the write of a line.
    let lines = |boundary: &Boundary| {
        let console = boundary
            .outputs
            .iter()
            .filter(|o| matches!(o, Output::Console(_)));
        console.count()
    };
    let mut missing = 0;
    for number in 1..=8 {
        machine.fail_call(number, 5).unwrap();
        assert_eq!(machine.call_failed().unwrap(), None);
        let mut seen = Vec::new();
        for _ in &golden {
            let Some(boundary) = go_anyhow(&mut machine) else {
                break;
            };
            seen.push(boundary);
        }
        // The call that sleeps at the base has begun already.
        let failed = machine.call_failed().unwrap().unwrap();
        assert!(
            (before + number.max(2)..before + number + 3).contains(&failed),
            "{number}"
        );
        assert_ne!(seen, golden, "call {number}");
        let all = |boundaries: &[Boundary]| boundaries.iter().map(lines).sum::<usize>();
        missing += usize::from(all(&seen) < all(&golden));
        assert_back(&mut machine, &base, &golden, "failed call");
    }
    assert!(missing >= 1, "no line is missing");
    for (number, errno) in [(0, 5), (1, 0), (1, 5000)] {
        assert!(matches!(
            machine.fail_call(number, errno),
            Err(FaultError::Call(_))
        ));
    }
}

/// Traces what a machine does from its base.
fn trace(machine: &mut Machine, base: &Checkpoint, golden: &[Boundary]) -> (Trace, Duration) {
    machine.restore(base, Restore::Dirty).unwrap();
    let mut tracer = Tracer::new(1 << 24);
    let before = Instant::now();
    for expected in golden {
        resume(machine);
        assert_eq!(
            boundary(tracer.run(machine)),
            *expected,
            "being traced is not seen"
        );
    }
    let took = before.elapsed();
    let (trace, whole) = tracer.finish().unwrap();
    assert!(whole);
    (trace, took)
}

#[test]
fn every_instruction_can_be_reached() {
    let (mut machine, base, golden) = warm(1);
    let (trace, _) = trace(&mut machine, &base, &golden);
    assert_eq!(trace.stretches(), GOLDEN as u64);
    assert!(trace.instructions() > 5_000, "{}", trace.instructions());
    assert_eq!(Trace::decode(&trace.encode()).unwrap(), trace);
    assert!(Trace::decode(&trace.encode()[..100]).is_err());
    assert_back(&mut machine, &base, &golden, "traced");
    let again = self::trace(&mut machine, &base, &golden).0;
    assert!(again == trace, "a second trace differs");
    let layout = *machine.layout();
    let tick = Place::of(&layout, image().1);
    let ticks = |stretch| {
        let all = (0..trace.stretch_len(stretch))
            .map(|index| quorate_vmm::fault::Position { stretch, index });
        all.filter(|&at| trace.place(at) == Some(tick)).count()
    };
    assert_eq!(
        (0..GOLDEN as u64).map(ticks).sum::<usize>() % 10,
        0,
        "ten ticks a line"
    );
    assert!(trace.reach(trace.instructions()).is_none());

    // In this layout all of them; in another nearly all, and who goes another way says so.
    let (mut other, other_base, other_golden) = warm(3);
    let count = 30;
    let mut elsewhere = 0;
    for number in (0..count).map(|n| trace.instructions() * n / count + n % 7) {
        let reach = trace.reach(number).unwrap();
        for (machine, base, golden) in [
            (&mut machine, &base, &golden),
            (&mut other, &other_base, &other_golden),
        ] {
            machine.restore(base, Restore::Dirty).unwrap();
            for _ in 0..reach.position.stretch {
                go(machine);
            }
            resume(machine);
            let own = *machine.layout() == layout;
            match Reacher::new(reach, None).run(machine) {
                Reached::Here => {}
                other => {
                    assert!(!own, "{reach:?}: {other:?}");
                    elsewhere += 1;
                    continue;
                }
            }
            let rip = machine.registers().unwrap().rip;
            assert_eq!(Place::of(machine.layout(), rip), reach.target);
            let next = boundary(machine.run());
            assert_eq!(next, golden[reach.position.stretch as usize], "{reach:?}");
        }
    }
    assert!(
        elsewhere * 4 <= count,
        "{elsewhere} of {count} not reached in another layout"
    );
    // A fault there is taken back, too.
    let reach = trace.reach(trace.instructions() / 2).unwrap();
    machine.restore(&base, Restore::Dirty).unwrap();
    for _ in 0..reach.position.stretch {
        go(&mut machine);
    }
    resume(&mut machine);
    assert!(matches!(
        Reacher::new(reach, None).run(&mut machine),
        Reached::Here
    ));
    let rip: FaultRegister = "rip".parse().unwrap();
    machine
        .fault_register(rip, Whose::Vcpu, 0, 1 << 40, Change::Flip)
        .unwrap();
    let seen = run_anyhow(&mut machine);
    assert_ne!(seen.as_ref(), golden.get(reach.position.stretch as usize));
    assert_back(&mut machine, &base, &golden, "fault at an instruction");
}

#[test]
fn a_function_is_reached_at_its_nth_call() {
    let (mut machine, base, golden) = warm(1);
    for hit in [1, 2, 10, 11, 17] {
        let mut reacher = Reacher::at(image().1, hit, None);
        let mut passed = 0;
        loop {
            resume(&mut machine);
            match reacher.run(&mut machine) {
                Reached::Here => break,
                Reached::Other(outcome) => {
                    assert_eq!(boundary(outcome), golden[passed]);
                    passed += 1;
                }
                Reached::Missed(why) => panic!("{why}"),
            }
        }
        assert_eq!(machine.registers().unwrap().rip, image().1);
        assert_eq!(boundary(machine.run()), golden[passed]);
        assert_back(&mut machine, &base, &golden, "function");
    }
}

/// `cargo test --release -p quorate-executor --test machine_faults -- --ignored --nocapture`
#[test]
#[ignore = "measures, see above"]
fn what_it_costs() {
    let (mut machine, base, golden) = warm(1);
    let (trace, took) = trace(&mut machine, &base, &golden);
    let each = took.as_secs_f64() * 1e6 / trace.instructions() as f64;
    println!(
        "{} instructions traced, {each:.1} us each",
        trace.instructions()
    );
    let mut micros = Vec::new();
    for number in (0..40).map(|n| trace.instructions() * n / 40) {
        let reach = trace.reach(number).unwrap();
        machine.restore(&base, Restore::Dirty).unwrap();
        for _ in 0..reach.position.stretch {
            go(&mut machine);
        }
        resume(&mut machine);
        let before = Instant::now();
        assert!(matches!(
            Reacher::new(reach, None).run(&mut machine),
            Reached::Here
        ));
        micros.push(before.elapsed().as_micros());
        boundary(machine.run());
    }
    micros.sort_unstable();
    println!(
        "an instruction is reached in {} us (median), {} at most",
        micros[20], micros[39]
    );
    for run in [1, 4] {
        let mut all = [const { Vec::new() }; 3];
        let mut last = None;
        for _ in 0..200 {
            let before = Instant::now();
            last = Some(machine.restore(&base, Restore::Dirty).unwrap());
            all[0].push(before.elapsed().as_micros());
            for times in all.iter_mut().skip(1).take(run) {
                let before = Instant::now();
                go(&mut machine);
                times.push(before.elapsed().as_micros());
            }
        }
        let median = |times: &mut Vec<u128>| {
            times.sort_unstable();
            times.get(times.len() / 2).copied().unwrap_or(0)
        };
        let [restore, first, second] = &mut all;
        println!(
            "{run} boundaries: back in {} us, first boundary {} us, second {} us; {last:?}",
            median(restore),
            median(first),
            median(second)
        );
    }
}
