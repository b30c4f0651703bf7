//! Real machines: a small static program on the embedded kernel, as a set and as a replay.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate_devices::Entry;
use quorate_executor::console::Console;
use quorate_executor::egress::Item;
use quorate_executor::events::{End, Event};
use quorate_executor::exit::ExitCode;
use quorate_executor::inject::Fault;
use quorate_executor::launch::{Hooks, Options, Plan, Running};
use quorate_executor::record::{self, Header, Limits, ReadLog, Recording};
use quorate_executor::replay::{ReplayOptions, Replayer, replay};
use quorate_executor::scratch::Scratch;
use quorate_images::Appliance;
use quorate_vmm::open_kvm;

/// Shows what differs between replicas if anything does: time, randomness, addresses in use.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "fail")) {
        puts("about to fail");
        return 3;
    }
    int endless = argc > 1 && !strcmp(argv[1], "endless");
    for (int i = 0; i < 20 || endless; i++) {
        struct timespec now, nap = { 0, 2000000 };
        unsigned random = 0;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (getrandom(&random, sizeof random, 0) != sizeof random) return 9;
        char *heap = malloc(1000 + random % 100000);
        memset(heap, i, 1000);
        printf("%d: %ld.%09ld %08x %d\n", i, (long)now.tv_sec, now.tv_nsec, random, heap[999]);
        fflush(stdout);
        free(heap);
        nanosleep(&nap, 0);
    }
    return 0;
}
"#;

struct Lab {
    directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Lab {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("guest.c");
        std::fs::write(&source, PROGRAM).unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let compiled = Command::new("cc")
            .args(["-static", "-O1", "-o"])
            .arg(root.join("guest"))
            .arg(&source)
            .status()
            .unwrap();
        assert!(compiled.success());
        Lab { directory }
    }

    fn plan(&self, argument: &str, change: impl FnOnce(&mut Options)) -> Plan {
        let text = format!(
            "version = 1\nname = \"lab\"\n[image]\ndirectory = \"root\"\n\
             [program]\ncommand = [\"/guest\", \"{argument}\"]\n[machine]\nmemory = \"32M\"\n\
             [policy]\nlag_timeout_ms = 500\n"
        );
        let appliance = Appliance::parse(&text, &self.path("lab.toml")).unwrap();
        let mut options = Options {
            seed: Some("lab".into()),
            recovery: Some(false),
            cache_dir: Some(self.path("cache")),
            ..Options::default()
        };
        change(&mut options);
        Plan::new(&appliance, &options, &|_| {}).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::join(self.directory.path(), name)
    }
}

struct Recorder {
    console: Arc<Mutex<Vec<u8>>>,
    entries: Arc<Mutex<Vec<Arc<Entry>>>>,
    events: Arc<Mutex<Vec<Event>>>,
}

/// Longest time that a test waits for what must happen. Only reached when a test fails.
const PATIENCE: Duration = Duration::from_secs(30);

impl Recorder {
    fn wait_for(&self, what: &str, matches: impl Fn(&Event) -> bool) {
        self.wait_until(what, || self.events.lock().unwrap().iter().any(&matches));
    }

    fn wait_until(&self, what: &str, happened: impl Fn() -> bool) {
        let deadline = Instant::now() + quorate_executor::patience::patient(PATIENCE);
        while !happened() {
            assert!(
                Instant::now() < deadline,
                "{what:?} did not happen: {:#?}",
                self.events
            );
            std::thread::yield_now();
        }
    }
}

struct Sink(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn start(plan: Plan) -> (Running, Recorder) {
    let console: Arc<Mutex<Vec<u8>>> = Arc::default();
    let entries: Arc<Mutex<Vec<Arc<Entry>>>> = Arc::default();
    let events: Arc<Mutex<Vec<Event>>> = Arc::default();
    let (of_tap, of_events) = (Arc::clone(&entries), Arc::clone(&events));
    let hooks = Hooks {
        events: Box::new(move |logged| of_events.lock().unwrap().push(logged.event.clone())),
        console: Arc::new(Console::start(Sink(Arc::clone(&console))).unwrap()),
        recorder: None,
        tap: Some(Box::new(move |item| {
            if let Item::Entry { entry, .. } = item {
                of_tap.lock().unwrap().push(Arc::clone(entry));
            }
        })),
    };
    (
        plan.start(hooks).unwrap(),
        Recorder {
            console,
            entries,
            events,
        },
    )
}

#[test]
fn recorded_input_gives_the_same_fingerprint_in_every_layout() {
    let lab = Lab::new();
    let plan = lab.plan("run", |_| {});
    let (running, recorder) = start(plan.clone());
    let summary = running.wait();
    assert_eq!(
        summary.end,
        End::Exited {
            wait_status: 0,
            requested: false
        },
        "{:#?}",
        recorder.events
    );
    let console = String::from_utf8(recorder.console.lock().unwrap().clone()).unwrap();
    assert_eq!(console.lines().count(), 20, "{console}");
    let layouts: Vec<_> = summary
        .status
        .replicas
        .iter()
        .map(|replica| &replica.layout)
        .collect();
    assert_ne!(layouts[0], layouts[1]);
    assert_ne!(layouts[1], layouts[2]);

    let kvm = open_kvm().unwrap();
    let entries = recorder.entries.lock().unwrap().clone();
    for generation in 10..13 {
        let mut machine = plan
            .build(&kvm, 0, plan.set.seed.layout(0, generation))
            .unwrap();
        let replayed = replay(&mut machine, &entries, &mut Scratch::default()).unwrap();
        assert!(replayed.exited);
        assert_eq!(
            replayed.fingerprint.to_hex().to_string(),
            summary.status.fingerprint
        );
    }
    // The test can fail: another input gives another fingerprint.
    let mut other = entries.clone();
    let last = other.len() - 1;
    other[last] = Arc::new(Entry {
        monotonic_ns: entries[last].monotonic_ns + 1_000_000_000,
        ..(*entries[last]).clone()
    });
    other[last / 2] = Arc::new(Entry {
        monotonic_ns: entries[last / 2].monotonic_ns + 1,
        ..(*entries[last / 2]).clone()
    });
    let mut machine = plan.build(&kvm, 0, plan.set.seed.layout(0, 99)).unwrap();
    let differs = replay(&mut machine, &other, &mut Scratch::default())
        .map(|replayed| replayed.fingerprint.to_hex().to_string());
    assert_ne!(
        differs.as_deref().ok(),
        Some(summary.status.fingerprint.as_str())
    );
}

#[test]
fn a_guest_program_that_fails_is_told_from_one_that_does_not() {
    let lab = Lab::new();
    let (running, recorder) = start(lab.plan("fail", |_| {}));
    let summary = running.wait();
    assert_eq!(
        summary.end,
        End::Exited {
            wait_status: 3 << 8,
            requested: false
        }
    );
    assert_eq!(summary.end.exit_code(), ExitCode::GuestFailed);
    assert_eq!(
        recorder.console.lock().unwrap().as_slice(),
        b"about to fail\n"
    );
}

#[test]
fn every_fault_is_masked_and_the_right_replica_named() {
    let lab = Lab::new();
    let faults = [
        (0, Fault::Crash, "crashed: triple fault"),
        (1, Fault::Hang, "did not keep up"),
        (2, Fault::Freeze, "did not keep up"),
        (0, Fault::WrongOutput, "outvoted on the console channel"),
        // A wild program counter: whatever comes of it, the replica does not get away with it.
        (
            1,
            Fault::FlipRegister {
                register: Some("rip".into()),
                bit: Some(40),
            },
            "",
        ),
    ];
    for (victim, fault, word) in faults {
        let (running, recorder) = start(lab.plan("endless", |_| {}));
        recorder.wait_for("ready", |event| matches!(event, Event::Ready { .. }));
        running.set.inject(victim, fault.clone()).unwrap();
        recorder.wait_for(word, |event| {
            matches!(event, Event::ReplicaStopped { replica, reason, .. } if *replica == victim && reason.contains(word))
        });
        let status = running.set.status();
        assert_eq!(
            (status.running, status.state.as_str()),
            (2, "degraded"),
            "{fault}"
        );
        assert_eq!(
            status.replicas[victim].injected[0].effect,
            "replica stopped"
        );
        // The others serve on: their console goes on, and they end when they are asked to.
        let written = recorder.console.lock().unwrap().len();
        recorder.wait_until("the console to go on", || {
            recorder.console.lock().unwrap().len() > written
        });
        running.set.stop(false);
        let end = running.wait().end;
        assert_eq!(
            end,
            End::Exited {
                wait_status: 15,
                requested: true
            },
            "{fault}"
        );
        let console = String::from_utf8(recorder.console.lock().unwrap().clone()).unwrap();
        for (number, line) in console.lines().enumerate() {
            assert!(
                line.starts_with(&format!("{number}: ")),
                "{fault}: nothing lost, nothing twice: {line}"
            );
        }
    }
}

/// No disks.
struct NoReads;

impl ReadLog for NoReads {
    fn logged(&self, _: u8, _: u64) -> Option<Arc<[u8]>> {
        None
    }
}

#[test]
fn a_replay_goes_forwards_and_back_and_says_where_outputs_differ() {
    const CHANGED: u64 = 10;
    let lab = Lab::new();
    let plan = lab.plan("run", |_| {});
    let header = Header::of(&plan, &lab.path("lab.toml"));
    let create = |name: &str| {
        let recorder =
            record::Recorder::create(&lab.path(name), Limits::default(), &header).unwrap();
        Arc::new(recorder)
    };
    // The same run once more, but for one entry.
    let (right, wrong) = (create("right.rec"), create("wrong.rec"));
    let mut changing = wrong.tap(Arc::new(NoReads));
    let hooks = Hooks {
        events: Box::new(|_| {}),
        console: Arc::new(Console::start(std::io::sink()).unwrap()),
        tap: Some(Box::new(move |item| match item {
            Item::Entry { boundary, entry } if *boundary == CHANGED => {
                let mut entry = (**entry).clone();
                entry.monotonic_ns += 1;
                changing(&Item::Entry {
                    boundary: CHANGED,
                    entry: Arc::new(entry),
                });
            }
            other => changing(other),
        })),
        recorder: Some(right),
    };
    let summary = plan.clone().start(hooks).unwrap().wait();
    let recorded = summary.recorded.unwrap();
    assert_eq!(recorded.failure, None);
    wrong.finish();

    let recording = Recording::open(&lab.path("right.rec")).unwrap();
    assert_eq!(recording.boundaries(), 0..recorded.boundaries);
    let last = recorded.boundaries - 1;
    for layout_seed in [None, Some([9; 32])] {
        let options = ReplayOptions {
            layout_seed,
            remember_every: Some(4),
            ..ReplayOptions::default()
        };
        let mut replayer = Replayer::open(&recording, &options).unwrap();
        assert!(replayer.run_to(last).unwrap());
        let fingerprint = replayer.fingerprint();
        assert_eq!(fingerprint.to_hex().as_str(), summary.status.fingerprint);
        assert!(replayer.step().unwrap().is_none(), "the end");
        assert!(replayer.remembered().count() > 3);
        // Back to places of which there is a checkpoint in memory, and to others, and on from there.
        for boundary in [last - 3, 8, 9, 0, 5, last / 2] {
            assert!(replayer.seek(boundary).unwrap());
            assert_eq!(replayer.at(), Some(boundary));
            let digest = recording.step(boundary).unwrap().digest.unwrap();
            assert_eq!(replayer.fingerprint().as_bytes(), &digest);
            assert!(replayer.step().unwrap().unwrap().agrees.unwrap());
        }
        assert!(replayer.seek(last).unwrap());
        assert_eq!(replayer.fingerprint(), fingerprint);
        assert_eq!(replayer.differs(), None);
    }

    let recording = Recording::open(&lab.path("wrong.rec")).unwrap();
    let mut replayer = Replayer::open(&recording, &ReplayOptions::default()).unwrap();
    assert!(!replayer.run_to(last).unwrap());
    let differs = replayer.differs().unwrap();
    assert!(
        (CHANGED + 1..CHANGED + 4).contains(&differs),
        "{differs}: the entry of boundary {CHANGED} shows at one of the next"
    );
}
