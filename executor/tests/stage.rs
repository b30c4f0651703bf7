//! Staged sets on real machines: redis, warmed up and left to itself.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use quorate_abi::sync::{WAIT_FOREVER, WAIT_NONE};
use quorate_devices::Output;
use quorate_executor::egress::{Egress, Item};
use quorate_executor::events::End;
use quorate_executor::launch::{Options, Plan};
use quorate_executor::record::{Limits as RecordLimits, Recorder, Recording};
use quorate_executor::replay::{ReplayOptions, Replayer};
use quorate_executor::save::Saved;
use quorate_executor::stage::{
    At, Cue, DiskContent, EPOCH_NS, Interposer, Limits, Performed, Play, Reset, Rig, Stage, Staged,
    warm,
};
use quorate_images::Appliance;
use quorate_vmm::{Checkpoint, Machine, Outcome};

/// Lets time pass: a little at each boundary, and up to when the guest wants to wake up if it sleeps.
struct Idle {
    /// Over after so many naps of the guest.
    naps: Mutex<u32>,
    /// Over at this boundary at the latest.
    last: u64,
    /// Whether it waits for the set to be whole at the end.
    seen: Mutex<Vec<At>>,
}

impl Idle {
    fn new(naps: u32, last: u64) -> Arc<Idle> {
        Arc::new(Idle {
            naps: Mutex::new(naps),
            last,
            seen: Mutex::default(),
        })
    }
}

impl Stage for Idle {
    fn cue(&self, at: &At) -> Cue {
        let mut naps = self.naps.lock().unwrap();
        let sleeps = at.wait_until_ns != WAIT_NONE && at.wait_until_ns > at.now_ns;
        if at.boundary >= self.last || (sleeps && *naps == 0) {
            return match at.strength.recovering {
                0 => Cue::Over,
                _ => Cue::Wait,
            };
        }
        self.seen.lock().unwrap().push(*at);
        let mut monotonic_ns = at.now_ns + 20_000;
        if sleeps {
            *naps -= 1;
            if at.wait_until_ns != WAIT_FOREVER {
                monotonic_ns = at.wait_until_ns;
            }
        }
        Cue::Entry(Staged {
            frames: Vec::new(),
            monotonic_ns,
            realtime_ns: EPOCH_NS + monotonic_ns,
            terminate: false,
        })
    }
}

struct Nowhere;

impl Egress for Nowhere {
    fn frames(&mut self, _: Vec<Vec<u8>>) {}
    fn console(&mut self, _: &[u8]) {}
}

fn plan(appliance: &str, replicas: u8) -> Plan {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../images/appliances")
        .join(appliance);
    let appliance = Appliance::load(&path).unwrap();
    let options = Options {
        replicas: Some(replicas),
        seed: Some("stage".into()),
        memory: Some(128 << 20),
        ..Options::default()
    };
    Plan::new(&appliance, &options, &|_| {}).unwrap()
}

/// The first warm-up, which most tests use.
fn saved() -> &'static Path {
    static DIRECTORY: OnceLock<tempfile::TempDir> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        warm_to(&directory.path().join("warm"));
        directory
    });
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| directory.path().join("warm"))
}

fn warm_to(path: &Path) {
    let stage = Idle::new(5, u64::MAX);
    warm(plan("redis.toml", 3), stage, Box::new(Nowhere), path).unwrap();
}

fn rig(replicas: u8) -> Rig {
    let saved = Saved::open(saved()).unwrap();
    let plan = saved.plan_of_copies(|_| {}, &|_| {}).unwrap();
    Rig::new(plan, replicas).unwrap()
}

/// What was released, and the entries.
type Seen = Arc<Mutex<Vec<(u64, u16, Vec<u8>)>>>;

fn play(replicas: u8, naps: u32) -> (Play, Seen) {
    let mut play = Play::new(replicas, Idle::new(naps, u64::MAX), Box::new(Nowhere));
    let seen = Seen::default();
    let tap = Arc::clone(&seen);
    play.tap = Some(Box::new(move |item| match item {
        Item::Release {
            boundary,
            channel,
            bytes,
        } => tap
            .lock()
            .unwrap()
            .push((*boundary, channel.0, bytes.clone())),
        Item::Entry { boundary, entry } => {
            let text = format!("{entry:?}");
            tap.lock()
                .unwrap()
                .push((*boundary, 999, text.into_bytes()));
        }
        Item::Event(..) => {}
    }));
    (play, seen)
}

fn perform(rig: &mut Rig, replicas: u8, naps: u32) -> (Performed, Vec<(u64, u16, Vec<u8>)>) {
    let (play, seen) = play(replicas, naps);
    let performed = rig.perform(play).unwrap();
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    (performed, seen)
}

fn checkpoint(directory: &Path, replica: usize) -> Checkpoint {
    let file = std::fs::File::open(directory.join(format!("replica-{replica}"))).unwrap();
    Checkpoint::read_from(&mut std::io::BufReader::new(file)).unwrap()
}

fn same_state(one: &Checkpoint, other: &Checkpoint) {
    assert_eq!(one.boundary(), other.boundary());
    assert_eq!(one.registers(), other.registers());
    let pages = |of: &Checkpoint| {
        of.pages()
            .map(|(at, page)| (at, blake3::hash(&page[..])))
            .collect::<Vec<_>>()
    };
    let (one, other) = (pages(one), pages(other));
    let differ: Vec<_> = one
        .iter()
        .filter(|page| !other.contains(page))
        .map(|(at, _)| format!("{at:#x}"))
        .collect();
    assert_eq!((one.len(), differ), (other.len(), Vec::new()));
}

#[test]
fn two_warm_ups_are_the_same() {
    let again = tempfile::tempdir().unwrap();
    let again = again.path().join("again");
    warm_to(&again);
    let (one, two) = (Saved::open(saved()).unwrap(), Saved::open(&again).unwrap());
    let (one, two) = (one.manifest(), two.manifest());
    assert_eq!(one.boundary, two.boundary);
    assert_eq!(one.monotonic_ns, two.monotonic_ns);
    assert_eq!(one.wait_until_ns, two.wait_until_ns);
    for replica in 0..3 {
        same_state(&checkpoint(saved(), replica), &checkpoint(&again, replica));
    }
    let digests = |of: &quorate_executor::save::Manifest| {
        of.replicas
            .iter()
            .map(|r| r.digest.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(digests(one), digests(two), "files");
}

#[test]
fn trials_are_the_same_for_one_and_three_and_again() {
    let mut rig = rig(3);
    let (first, one) = perform(&mut rig, 1, 10);
    assert!(first.over, "{:?}", first.summary.end);
    assert_eq!(first.summary.end, End::Stopped);
    assert!(one.len() >= 20, "{}", one.len());
    let (again, two) = perform(&mut rig, 1, 10);
    assert_eq!(one, two);
    assert_eq!(again.reset.built, 0);
    let (of_three, three) = perform(&mut rig, 3, 10);
    assert_eq!(of_three.summary.status.running, 3);
    assert_eq!(one, three);
    let (_, four) = perform(&mut rig, 3, 10);
    assert_eq!(one, four);
    // What it costs, for whoever looks.
    for replicas in [1, 3] {
        for naps in [0, 10] {
            let mut took = Vec::new();
            let mut reset = Reset::default();
            for _ in 0..50 {
                let (performed, _) = perform(&mut rig, replicas, naps);
                let guest: u64 = performed
                    .summary
                    .status
                    .replicas
                    .iter()
                    .map(|r| r.guest_ms)
                    .sum();
                took.push((
                    performed.took.as_micros(),
                    performed.reset.micros,
                    performed.summary.ran.as_micros(),
                    guest,
                ));
                reset = performed.reset;
            }
            took.sort_unstable();
            println!(
                "{replicas} replicas, {naps} naps: median {:?}, least {:?} (µs: all, reset, set; guest ms), last {reset:?}",
                took[took.len() / 2],
                took[0]
            );
        }
    }
}

/// Crashes when it is to go to a boundary, once.
struct Crash {
    at: u64,
    done: bool,
    restored: Arc<Mutex<Vec<u64>>>,
}

impl Interposer for Crash {
    fn run(&mut self, machine: &mut Machine, next: u64) -> Outcome {
        if next == self.at && !self.done {
            self.done = true;
            machine.crash().unwrap();
        }
        machine.run()
    }

    fn restored(&mut self, boundary: u64) {
        self.restored.lock().unwrap().push(boundary);
    }
}

/// Spins when it is to go to a boundary.
struct Spin(u64);

impl Interposer for Spin {
    fn run(&mut self, machine: &mut Machine, next: u64) -> Outcome {
        if next == self.0 {
            self.0 = 0;
            machine.set_rip_spin().unwrap();
        }
        machine.run()
    }
}

/// Says something else at a boundary.
struct Lie(u64);

impl Interposer for Lie {
    fn outputs(&mut self, boundary: u64, outputs: &mut Vec<Output>) {
        if boundary == self.0 {
            self.0 = 0;
            outputs.push(Output::Console(b"lie".to_vec()));
        }
    }
}

/// Stalls before a boundary.
struct Stall(u64, Duration);

impl Interposer for Stall {
    fn stall(&mut self, boundary: u64) -> Option<Duration> {
        (boundary == self.0).then(|| {
            self.0 = 0;
            self.1
        })
    }
}

fn with(replica: usize, interposer: impl Interposer + 'static) -> Vec<Box<dyn Interposer>> {
    let mut all: Vec<Box<dyn Interposer>> = Vec::new();
    for _ in 0..replica {
        all.push(Box::new(quorate_executor::stage::Untouched));
    }
    all.push(Box::new(interposer));
    all
}

#[test]
fn a_replica_that_fails_comes_back_and_nothing_else_changes() {
    let mut rig = rig(3);
    let (_, golden) = perform(&mut rig, 3, 10);
    for round in 0..2 {
        for what in ["crash", "spin", "lie", "stall"] {
            let (mut play, seen) = play(3, 10);
            let restored = Arc::new(Mutex::default());
            play.interposers = match what {
                "crash" => with(
                    1,
                    Crash {
                        at: 7,
                        done: false,
                        restored: Arc::clone(&restored),
                    },
                ),
                "spin" => with(1, Spin(7)),
                "lie" => with(0, Lie(7)),
                _ => with(2, Stall(7, Duration::MAX)),
            };
            let performed = rig.perform(play).unwrap();
            let status = &performed.summary.status;
            let context = format!(
                "{what} {round}: {} {:#?}",
                performed.summary.end, status.events
            );
            assert!(performed.over && performed.spun.is_none(), "{context}");
            assert_eq!(status.running, 3, "{context}");
            assert_eq!(status.recovery.recoveries.checkpoint, 1, "{context}");
            assert_eq!(*seen.lock().unwrap(), golden, "{context}");
            if what == "crash" {
                assert_eq!(*restored.lock().unwrap(), [0]);
            }
        }
    }
    // Two of two that disagree begin again and agree.
    let (mut play, seen) = play(2, 10);
    play.interposers = with(0, Lie(7));
    let performed = rig.perform(play).unwrap();
    assert_eq!(performed.summary.status.running, 2);
    assert_eq!(*seen.lock().unwrap(), golden);
}

#[test]
fn one_alone_that_fails_ends_its_trial_and_no_other() {
    let mut rig = rig(1);
    let (_, golden) = perform(&mut rig, 1, 10);
    let (mut spins, _) = play(1, 10);
    spins.interposers = with(0, Spin(7));
    spins.limits = Limits {
        spin: quorate_executor::patience::patient(Duration::from_millis(100)),
        ..Limits::default()
    };
    let performed = rig.perform(spins).unwrap();
    let spun = performed.spun.unwrap();
    assert_eq!((spun.boundary, spun.replica, spun.stalled), (7, 0, false));
    assert!(!performed.over);
    let (mut stalls, _) = play(1, 10);
    stalls.interposers = with(0, Stall(5, Duration::from_secs(10)));
    let spun = rig.perform(stalls).unwrap().spun.unwrap();
    assert_eq!((spun.boundary, spun.stalled), (5, true));
    let (mut short, seen) = play(1, 10);
    short.interposers = with(0, Stall(5, Duration::from_millis(10)));
    assert!(rig.perform(short).unwrap().over);
    assert_eq!(*seen.lock().unwrap(), golden);
    let (mut crashes, _) = play(1, 10);
    crashes.interposers = with(
        0,
        Crash {
            at: 7,
            done: false,
            restored: Arc::default(),
        },
    );
    let performed = rig.perform(crashes).unwrap();
    assert!(
        matches!(performed.summary.end, End::NoQuorum { .. }),
        "{}",
        performed.summary.end
    );
    let (performed, seen) = perform(&mut rig, 1, 10);
    assert_eq!(performed.reset.built, 0);
    assert_eq!(seen, golden);
}

/// Looks at the machine at a boundary.
struct Look(u64, Arc<Mutex<Option<Checkpoint>>>);

impl Interposer for Look {
    fn at_boundary(&mut self, machine: &mut Machine, boundary: u64) -> Result<(), String> {
        if boundary == self.0 {
            let dump = machine.dump().map_err(|error| error.to_string())?;
            *self.1.lock().unwrap() = Some(dump);
        }
        Ok(())
    }
}

#[test]
fn putting_a_machine_back_leaves_nothing_of_the_trial() {
    let mut rig = rig(1);
    let mut base = checkpoint(saved(), 0);
    assert!(base.renumber(0));
    for naps in [10, 3, 10] {
        let (mut play, _) = play(1, naps);
        let seen = Arc::new(Mutex::default());
        play.interposers = with(0, Look(0, Arc::clone(&seen)));
        let performed = rig.perform(play).unwrap();
        assert!(performed.over);
        let seen = seen.lock().unwrap().take().unwrap();
        same_state(&base, &seen);
    }
}

#[test]
fn a_trial_can_be_recorded_and_replayed() {
    let mut rig = rig(3);
    let (_, golden) = perform(&mut rig, 3, 10);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trial.rec");
    let recorder = Recorder::create(&path, RecordLimits::default(), &rig.header(3)).unwrap();
    let (mut play, seen) = play(3, 10);
    play.interposers = with(
        1,
        Crash {
            at: 7,
            done: false,
            restored: Arc::default(),
        },
    );
    play.recorder = Some(Arc::new(recorder));
    let performed = rig.perform(play).unwrap();
    assert!(performed.over);
    assert_eq!(*seen.lock().unwrap(), golden);
    let recorded = performed.summary.recorded.unwrap();
    assert_eq!(
        (recorded.checkpoints, recorded.dumps),
        (3, 1),
        "{recorded:?}"
    );
    let recording = Recording::open(&path).unwrap();
    assert!(recording.header().resumed);
    let last = recording.boundaries().end - 1;
    assert!(last >= 10, "{last}");
    for info in recording.checkpoints() {
        assert_eq!(info.meta.boundary, 0);
        let options = ReplayOptions {
            layout_seed: Some(info.meta.layout_seed),
            ..ReplayOptions::default()
        };
        let mut replayer = Replayer::open(&recording, &options).unwrap();
        assert!(replayer.seek(last).unwrap());
        assert_eq!(replayer.differs(), None);
    }
}

const WRITER: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(void) {
    char block[4096], back[4096];
    int fd = open("/data/log", O_RDWR | O_CREAT, 0600);
    if (fd < 0) return 1;
    for (int i = 0;; i++) {
        struct timespec now, nap = { 0, 2000000 };
        clock_gettime(CLOCK_REALTIME, &now);
        memset(block, 0, sizeof block);
        snprintf(block, sizeof block, "%d %ld.%09ld", i, (long)now.tv_sec, now.tv_nsec);
        if (pwrite(fd, block, sizeof block, (i % 8) * 4096L) != sizeof block) return 2;
        if (fsync(fd)) return 3;
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        if (pread(fd, back, sizeof back, (i % 8) * 4096L) != sizeof back) return 4;
        puts(back);
        fflush(stdout);
        nanosleep(&nap, 0);
    }
}
"#;

/// What a trial did: released, and left on the disk.
type Done = (Vec<(u64, u16, Vec<u8>)>, Vec<DiskContent>);

#[test]
fn what_a_trial_writes_to_a_disk_is_told_and_put_back() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("writer.c"), WRITER).unwrap();
    std::fs::create_dir(at("root")).unwrap();
    let compiled = std::process::Command::new("cc")
        .args(["-static", "-O1", "-o"])
        .arg(at("root/writer"))
        .arg(at("writer.c"))
        .status()
        .unwrap();
    assert!(compiled.success());
    let text = "version = 1\nname = \"writer\"\n[image]\ndirectory = \"root\"\n\
        [program]\ncommand = [\"/writer\"]\n[machine]\nmemory = \"64M\"\n\
        [[disk]]\nname = \"data\"\nsize = \"16M\"\nmount = \"/data\"\n";
    std::fs::write(at("writer.toml"), text).unwrap();
    let appliance = Appliance::load(at("writer.toml")).unwrap();
    let options = Options {
        replicas: Some(3),
        seed: Some("stage".into()),
        cache_dir: Some(at("cache")),
        state_dir: Some(at("state")),
        ..Options::default()
    };
    let plan = Plan::new(&appliance, &options, &|_| {}).unwrap();
    let stage = Idle::new(3, u64::MAX);
    let saved = warm(plan, stage, Box::new(Nowhere), &at("warm")).unwrap();
    let original = std::fs::read(at("warm/disk-0")).unwrap();
    let plan = saved.plan_of_copies(|_| {}, &|_| {}).unwrap();
    let mut rig = Rig::new(plan, 3).unwrap();
    let mut perform = |replicas, interposers| -> Done {
        let (mut play, seen) = play(replicas, 6);
        play.interposers = interposers;
        let performed = rig.perform(play).unwrap();
        assert!(performed.over, "{}", performed.summary.end);
        assert_eq!(performed.summary.status.running, usize::from(replicas));
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        (seen, performed.disks)
    };
    let golden = perform(1, Vec::new());
    let written: usize = golden.1[0].written.iter().map(|(_, data)| data.len()).sum();
    assert!(written >= 3 * 4096, "{written}");
    let log = |(_, data): &&(u64, Vec<u8>)| data.windows(11).any(|w| w == b" 1767225600");
    assert!(golden.1[0].written.iter().find(log).is_some(), "the log");
    assert_eq!(perform(1, Vec::new()), golden);
    assert_eq!(perform(3, Vec::new()), golden);
    let crash = Crash {
        at: 9,
        done: false,
        restored: Arc::default(),
    };
    assert_eq!(perform(3, with(1, crash)), golden);
    assert_eq!(perform(3, Vec::new()), golden);
    assert_eq!(std::fs::read(at("warm/disk-0")).unwrap(), original);
}
