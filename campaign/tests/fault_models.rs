//! Every fault model once, for real: redis (and SQLite on a voted disk) alone and with three replicas.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use quorate_campaign::bench::{Bench, LiveBench, Trials};
use quorate_campaign::file::Campaign;
use quorate_campaign::model::{
    BitChange, BlockFault, ClockFault, Direction, Drawn, EntryFault, Fault, FrameFault,
    MemoryPlace, Outcome, PageFault, Timing, TrialRecord, Trigger,
};
use quorate_campaign::talk::Golden;

fn golden(name: &str) -> (Campaign, Arc<Golden>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../campaigns")
        .join(format!("{name}.toml"));
    let mut campaign = Campaign::load(path).unwrap();
    campaign.replicas = vec![1, 2, 3];
    // Kept from run to run: it belongs to its inputs, and is made anew when they change. Another processor sees the same directory, in
    // the SVM lane, and refuses a checkpoint of this one.
    let directory = format!("golden-{name}-{:016x}", processor());
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(directory);
    let golden = Golden::prepare(&campaign, &directory, &|step| println!("{step}")).unwrap();
    println!("{name}: {:?}", golden.facts);
    (campaign, Arc::new(golden))
}

/// A number that is another one on another sort of processor.
fn processor() -> u64 {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let named = |line: &&str| line.starts_with("model name") || line.starts_with("flags");
    let mut hasher = DefaultHasher::new();
    text.lines()
        .filter(named)
        .take(2)
        .for_each(|line| line.hash(&mut hasher));
    hasher.finish()
}

struct Ready {
    golden: Arc<Golden>,
    bench: Bench,
}

/// One bench for all tests of this file: there are two processors.
fn redis() -> MutexGuard<'static, Ready> {
    static READY: OnceLock<Mutex<Ready>> = OnceLock::new();
    let ready = READY.get_or_init(|| {
        let (campaign, golden) = golden("redis");
        let bench = Bench::new(&campaign, Arc::clone(&golden)).unwrap();
        Mutex::new(Ready { golden, bench })
    });
    ready.lock().unwrap_or_else(PoisonError::into_inner)
}

fn drawn(fault: Fault, trigger: Trigger) -> Drawn {
    Drawn {
        draw: 0,
        stratum: "test".to_owned(),
        fault,
        trigger,
        copies: 1,
        victim: 1,
    }
}

/// All but what is measured in real time.
fn lasting(record: &TrialRecord) -> TrialRecord {
    let mut record = record.clone();
    record.timing = Timing::default();
    if let Some(detected) = &mut record.detected {
        detected.micros = 0;
    }
    if let Some(recovered) = &mut record.recovered {
        recovered.micros = 0;
    }
    record
}

fn show(name: &str, record: &TrialRecord) {
    println!(
        "{name} N={}: {} | {} | {:?} | {:?} | {} | {:?}",
        record.replicas,
        record.outcome,
        record.place,
        record.location,
        record.detected.as_ref().map(|of| (&of.how, of.boundaries)),
        record.evidence,
        record.timing,
    );
}

fn class(name: &str, pick: u64) -> MemoryPlace {
    MemoryPlace::Class {
        class: name.to_owned(),
        pick,
    }
}

fn register(name: &str, bit: u32, change: BitChange) -> Fault {
    Fault::Register {
        register: name.to_owned(),
        mask: 1 << bit,
        lane: 0,
        change,
    }
}

#[test]
fn nothing_injected_is_the_golden_run() {
    let mut ready = redis();
    for replicas in [1, 2, 3, 1, 3] {
        let timing = ready.bench.check(replicas).unwrap();
        println!("N={replicas}: {timing:?}");
    }
}

#[test]
fn every_fault_model_hits_alone_and_is_masked_or_corrected_by_three() {
    let mut ready = redis();
    let middle = ready.golden.facts.boundaries / 2;
    let at = Trigger::Boundary { boundary: middle };
    let call = Trigger::Syscall {
        call: ready.golden.facts.calls / 2,
    };
    let time = Trigger::Time {
        ns: ready.golden.facts.virtual_ns / 2,
    };
    let frame = |how, direction| Fault::Frame {
        how,
        direction,
        pick: 8 * 60 + 3,
    };
    let entry = |how| Fault::Entry { how, pick: 8 * 60 };
    let clock = |how| Fault::Clock { how };
    let place = |text: &str| MemoryPlace::Named {
        place: text.to_owned(),
    };
    let memory = |place, bit: u32, change| Fault::Memory {
        place,
        mask: 1 << bit,
        change,
    };
    use BitChange::{Flip, StuckAt0, StuckAt1};
    use Direction::{Input, Output};
    let any: &[Outcome] = &[];
    let cases: Vec<(&str, Fault, Trigger, &[Outcome])> = vec![
        ("rax", register("rax", 40, Flip), at.clone(), any),
        (
            "rip",
            register("rip", 40, Flip),
            call.clone(),
            &[Outcome::Crash],
        ),
        (
            "rsp",
            register("rsp", 41, Flip),
            at.clone(),
            &[Outcome::Crash],
        ),
        ("rflags", register("rflags", 0, Flip), at.clone(), any),
        ("fs_base", register("fs_base", 33, Flip), at.clone(), any),
        ("gs_base", register("gs_base", 33, Flip), at.clone(), any),
        ("mxcsr", register("mxcsr", 7, Flip), at.clone(), any),
        ("xmm3", register("xmm3", 60, Flip), at.clone(), any),
        ("rbx stuck", register("rbx", 3, StuckAt1), at.clone(), any),
        // A value that the client asks for later.
        (
            "mmap value",
            memory(place("mmap:value of key 250"), 1, Flip),
            Trigger::Boundary { boundary: 1 },
            any,
        ),
        (
            "text",
            memory(class("text", 123_456), 5, Flip),
            at.clone(),
            any,
        ),
        (
            "data stuck",
            memory(class("data", 99_999), 5, StuckAt0),
            at.clone(),
            any,
        ),
        (
            "stack",
            memory(class("stack", 4096 * 31), 5, Flip),
            at.clone(),
            any,
        ),
        (
            "kernel-data",
            memory(class("kernel-data", 77_777), 5, Flip),
            time.clone(),
            any,
        ),
        (
            "page-tables",
            memory(class("page-tables", 808), 13, Flip),
            at.clone(),
            any,
        ),
        (
            "queues",
            memory(class("queues", 64), 2, Flip),
            at.clone(),
            any,
        ),
        (
            "ram",
            memory(MemoryPlace::Ram { pick: 0x123_4567 }, 2, Flip),
            at.clone(),
            any,
        ),
        (
            "page zero",
            Fault::Page {
                place: class("mmap", 8192),
                how: PageFault::Zero,
            },
            at.clone(),
            any,
        ),
        (
            "page drop",
            Fault::Page {
                place: class("text", 40_960),
                how: PageFault::Drop,
            },
            at.clone(),
            any,
        ),
        (
            "frame out drop",
            frame(FrameFault::Drop, Output),
            at.clone(),
            any,
        ),
        (
            "frame out corrupt",
            frame(FrameFault::Corrupt, Output),
            at.clone(),
            any,
        ),
        (
            "frame out twice",
            frame(FrameFault::Duplicate, Output),
            at.clone(),
            any,
        ),
        (
            "frame out reorder",
            frame(FrameFault::Reorder, Output),
            at.clone(),
            any,
        ),
        (
            "frame out delay",
            frame(FrameFault::Delay { boundaries: 3 }, Output),
            at.clone(),
            any,
        ),
        (
            "frame in drop",
            frame(FrameFault::Drop, Input),
            at.clone(),
            any,
        ),
        (
            "frame in corrupt",
            frame(FrameFault::Corrupt, Input),
            at.clone(),
            any,
        ),
        (
            "frame in twice",
            frame(FrameFault::Duplicate, Input),
            at.clone(),
            any,
        ),
        (
            "frame in delay",
            frame(FrameFault::Delay { boundaries: 3 }, Input),
            at.clone(),
            any,
        ),
        (
            "clock step",
            clock(ClockFault::Step { ns: 5_000_000_000 }),
            at.clone(),
            any,
        ),
        (
            "clock skew",
            clock(ClockFault::Skew { ppm: 100_000 }),
            at.clone(),
            any,
        ),
        ("clock stop", clock(ClockFault::Stop), at.clone(), any),
        ("entry lost", entry(EntryFault::Lost), at.clone(), any),
        ("entry altered", entry(EntryFault::Altered), at.clone(), any),
        (
            "stall",
            Fault::Stall { millis: 0 },
            at.clone(),
            &[Outcome::Hang],
        ),
        (
            "stall a little",
            Fault::Stall { millis: 1 },
            at.clone(),
            &[Outcome::Masked],
        ),
        (
            "slow",
            Fault::Slow {
                millis: 2,
                boundaries: 5,
            },
            at.clone(),
            &[Outcome::Masked],
        ),
        ("hang", Fault::Hang, at.clone(), &[Outcome::Hang]),
        ("crash", Fault::Crash, at.clone(), &[Outcome::Crash]),
        (
            "crash at a call",
            Fault::Crash,
            call.clone(),
            &[Outcome::Crash],
        ),
        ("call fails", Fault::Syscall { errno: 5 }, at.clone(), any),
        (
            "this call fails",
            Fault::Syscall { errno: 5 },
            call.clone(),
            any,
        ),
        (
            "symbol",
            register("rdi", 45, Flip),
            Trigger::Symbol {
                symbol: "write".to_owned(),
                hit: 3,
            },
            any,
        ),
    ];
    let mut failures = Vec::new();
    for (name, fault, trigger, alone) in cases {
        let drawn = drawn(fault, trigger);
        for replicas in [1, 3] {
            let one = ready.bench.trial(&drawn, replicas).unwrap();
            show(name, &one);
            let two = ready.bench.trial(&drawn, replicas).unwrap();
            if lasting(&one) != lasting(&two) {
                failures.push(format!(
                    "{name} N={replicas}: two trials differ: {one:?} {two:?}"
                ));
            }
            if one.outcome == Outcome::InjectorFailure {
                failures.push(format!("{name} N={replicas}: {}", one.place));
            }
            if replicas == 1 && !alone.is_empty() && !alone.contains(&one.outcome) {
                failures.push(format!("{name} alone: {}", one.outcome));
            }
            let good = [Outcome::Masked, Outcome::Corrected].contains(&one.outcome);
            // What is stuck stays so.
            let whole = one.full_strength || name.contains("stuck");
            if replicas == 3 && !(good && whole) {
                failures.push(format!("{name} by three: {one:?}"));
            }
        }
    }
    for replicas in [1, 3] {
        ready.bench.check(replicas).unwrap();
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn two_who_disagree_stop_and_what_is_stuck_in_a_majority_is_not_seen() {
    let mut ready = redis();
    let middle = ready.golden.facts.boundaries / 2;
    let at = Trigger::Boundary { boundary: middle };
    let wrong = Fault::Frame {
        how: FrameFault::Drop,
        direction: Direction::Output,
        pick: 0,
    };
    let drawn = drawn(wrong, at);
    let pair = ready.bench.trial(&drawn, 2).unwrap();
    show("pair", &pair);
    assert_eq!(pair.outcome, Outcome::Stopped);
    assert_eq!(pair.detected.as_ref().unwrap().how, "no-majority");
    assert!(!pair.full_strength);
    // The same in two of three is a majority: the third is outvoted, and the client's frame is lost.
    let twice = Drawn { copies: 2, ..drawn };
    let three = ready.bench.trial(&twice, 3).unwrap();
    show("two of three", &three);
    assert_eq!(three.detected.as_ref().unwrap().how, "outvoted");
    ready.bench.check(3).unwrap();
}

#[test]
fn a_reply_that_is_changed_in_memory_reaches_the_client_alone_and_not_past_three() {
    let mut ready = redis();
    // What the client asks for later, wherever Redis keeps it.
    let mut seen = Vec::new();
    for region in ["mmap"] {
        for nth in 0..3 {
            let fault = Fault::Memory {
                place: MemoryPlace::Named {
                    place: format!("{region}:value of key 300#{nth}"),
                },
                mask: 1,
                change: BitChange::Flip,
            };
            let drawn = drawn(fault, Trigger::Boundary { boundary: 1 });
            let alone = ready.bench.trial(&drawn, 1).unwrap();
            show("value", &alone);
            if alone.outcome == Outcome::SilentCorruption {
                let three = ready.bench.trial(&drawn, 3).unwrap();
                show("value", &three);
                assert_eq!(three.outcome, Outcome::Corrected);
                assert!(three.full_strength);
                assert_eq!(three.recovered.as_ref().unwrap().step, "checkpoint");
            }
            seen.push(alone.outcome);
        }
    }
    assert!(seen.contains(&Outcome::SilentCorruption), "{seen:?}");
}

#[test]
fn a_disk_path_that_goes_wrong_is_found() {
    let (campaign, golden) = golden("sqlite");
    let mut bench = Bench::new(&campaign, Arc::clone(&golden)).unwrap();
    for replicas in [1, 3] {
        bench.check(replicas).unwrap();
    }
    let mut failures = Vec::new();
    for metadata in [false, true] {
        for how in [
            BlockFault::Corrupt,
            BlockFault::Torn,
            BlockFault::Lost,
            BlockFault::Misdirected,
            BlockFault::ReadError,
            BlockFault::ReadCorrupt,
        ] {
            let reads = matches!(how, BlockFault::ReadError | BlockFault::ReadCorrupt);
            if reads && metadata {
                // The warm-up has read them all.
                continue;
            }
            let fault = Fault::Block {
                how,
                metadata,
                pick: 8 * 1111 + 4,
            };
            let drawn = drawn(fault, Trigger::Boundary { boundary: 1 });
            for replicas in [1, 3] {
                let one = bench.trial(&drawn, replicas).unwrap();
                show(&format!("{how:?}"), &one);
                let two = bench.trial(&drawn, replicas).unwrap();
                if lasting(&one) != lasting(&two) {
                    failures.push(format!("{how:?}: {one:?} {two:?}"));
                }
                let good = [Outcome::Masked, Outcome::Corrected].contains(&one.outcome);
                if replicas == 3 && !(good && one.full_strength) {
                    failures.push(format!("{how:?} by three: {one:?}"));
                }
            }
        }
    }
    for replicas in [1, 3] {
        bench.check(replicas).unwrap();
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_live_trial_runs_the_client_itself() {
    let (campaign, golden) = golden("redis");
    let mut bench = LiveBench::new(&campaign, golden).unwrap();
    let at = Trigger::Boundary { boundary: 20 };
    let crash = drawn(Fault::Crash, at);
    let alone = bench.trial(&crash, 1).unwrap();
    show("live crash", &alone);
    assert_eq!(alone.outcome, Outcome::Crash);
    let three = bench.trial(&crash, 3).unwrap();
    show("live crash", &three);
    assert_eq!(three.outcome, Outcome::Corrected);
    assert!(three.full_strength);
}
