//! Disks in a set, without virtual machines: scripted guests that write, read and flush, and what the set makes of it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use quorate_abi::sync::{WAIT_FOREVER, WAIT_NONE};
use quorate_devices::{
    BlockOp, BlockRequest, BlockStatus, DiskPosition, DiskReads, Entry, Output, Waiting,
};
use quorate_executor::disks::Disks;
use quorate_executor::egress::Egress;
use quorate_executor::events::{Event, NoQuorum};
use quorate_executor::exit::ExitCode;
use quorate_executor::inject::Fault;
use quorate_executor::journal::Ingress;
use quorate_executor::recovery::RecoveryConfig;
use quorate_executor::replica::{Kick, Pause, Turn, Vcpu};
use quorate_executor::seeds::RunSeed;
use quorate_executor::set::{Outside, ReplicaSet, SetConfig, SetHandle, Summary, World};
use quorate_executor::store::{Backend, Bounds, Disk, DiskSpec, OnError};
use quorate_voter::Config;

const DISK_BYTES: u64 = 1 << 20;
const BLOCK: usize = 4096;
/// Boundaries that one replica may be ahead of another.
const WINDOW: u64 = 16;

/// One thing that a guest does.
#[derive(Clone)]
enum Step {
    /// Block `.0` gets this byte everywhere.
    Write(u64, u8),
    /// Block `.0` must have this byte everywhere.
    Read(u64, u8),
    Flush,
    /// A boundary at which nothing is asked.
    Idle,
}

/// A guest that takes one step per boundary and goes on when it is complete.
struct Guest {
    steps: VecDeque<Step>,
    seq: u64,
    waits_for: BTreeMap<u64, (Waiting, u8)>,
    boundary: u64,
    started: bool,
}

impl Vcpu for Guest {
    type Checkpoint = ();

    fn track_dirty(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn checkpoint(&mut self, _: Option<&()>) -> Result<((), Pause), String> {
        Err("this guest has no checkpoints".into())
    }

    fn restore(&mut self, _: &()) -> Result<(), String> {
        Err("this guest has no checkpoints".into())
    }

    fn positions(_: &()) -> Vec<DiskPosition> {
        Vec::new()
    }

    fn pages(_: &()) -> u64 {
        0
    }

    fn dump(&mut self) -> Result<(), String> {
        Err("this guest has no checkpoints".into())
    }

    fn run(&mut self) -> Turn {
        let mut outputs = Vec::new();
        let mut exit = false;
        if self.started && self.waits_for.is_empty() {
            let sector = |block: u64| block * BLOCK as u64 / 512;
            let op = match self.steps.pop_front() {
                Some(Step::Write(block, byte)) => Some(BlockOp::Write {
                    sector: sector(block),
                    data: vec![byte; BLOCK],
                }),
                Some(Step::Read(block, byte)) => {
                    self.waits_for.insert(self.seq, (Waiting::Read, byte));
                    Some(BlockOp::Read {
                        sector: sector(block),
                        bytes: BLOCK as u32,
                    })
                }
                Some(Step::Flush) => {
                    self.waits_for.insert(self.seq, (Waiting::Flush, 0));
                    Some(BlockOp::Flush)
                }
                Some(Step::Idle) => None,
                None => {
                    exit = true;
                    None
                }
            };
            if let Some(op) = op {
                outputs.push(Output::Block(BlockRequest {
                    disk: 0,
                    seq: self.seq,
                    op,
                }));
                self.seq += 1;
            }
        }
        outputs.push(Output::Fingerprint {
            digest: [self.boundary, 0],
            syscalls: self.boundary,
        });
        if exit {
            outputs.push(Output::Exit { status: 0 });
        }
        self.boundary += 1;
        let wait_until_ns = if self.started && self.waits_for.is_empty() {
            WAIT_NONE
        } else {
            WAIT_FOREVER
        };
        Turn::Boundary {
            outputs,
            wait_until_ns,
        }
    }

    fn resume(&mut self, entry: &Arc<Entry>, reads: &mut dyn DiskReads) -> Result<(), String> {
        self.started |= !entry.frames.is_empty();
        for completion in &entry.completions {
            let Some(&(kind, byte)) = self.waits_for.get(&completion.seq) else {
                continue;
            };
            if kind != completion.kind {
                continue;
            }
            self.waits_for.remove(&completion.seq);
            if completion.status != BlockStatus::Ok {
                return Err(format!("request {} failed", completion.seq));
            }
            if kind == Waiting::Read {
                let data = reads.take(0, completion.seq)?;
                if data != vec![byte; BLOCK] {
                    let got = data[0];
                    return Err(format!(
                        "read {} gave {got}, it is {byte} at this boundary",
                        completion.seq
                    ));
                }
            }
        }
        Ok(())
    }

    fn inject(&mut self, fault: &Fault, _: u64) -> Result<String, String> {
        Err(format!("{fault} is not for this guest"))
    }

    fn kicker(&self) -> Kick {
        Arc::new(|| {})
    }

    fn layout(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// One frame, for which all guests wait before their first step: faults are in place then.
#[derive(Default)]
struct Start(Mutex<bool>);

impl Ingress for Start {
    fn take(&self, _: usize, _: usize) -> Vec<Vec<u8>> {
        let there = std::mem::take(&mut *self.0.lock().unwrap());
        if there { vec![Vec::new()] } else { Vec::new() }
    }
    fn is_empty(&self) -> bool {
        !*self.0.lock().unwrap()
    }
}

struct Nothing;

impl Egress for Nothing {
    fn frames(&mut self, _: Vec<Vec<u8>>) {}
    fn console(&mut self, _: &[u8]) {}
}

struct Ran {
    summary: Summary,
    events: Vec<Event>,
    disks: Arc<Disks>,
    file: Vec<u8>,
}

/// Runs a set whose replicas take these steps; `with` sees it at its start.
fn run(
    directory: &Path,
    scripts: Vec<Vec<Step>>,
    versions: bool,
    with: impl FnOnce(&ReplicaSet),
) -> Ran {
    let path = directory.join("disk.img");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(DISK_BYTES).unwrap();
    let replicas = scripts.len();
    let handle = Arc::<OnceLock<SetHandle>>::default();
    let of_disk = Arc::clone(&handle);
    let spec = DiskSpec {
        name: "data".into(),
        path: path.clone(),
        bytes: DISK_BYTES,
        read_only: false,
        on_error: OnError::Stop,
        replicas,
        recoverable: false,
        bounds: Bounds {
            versions,
            ..Bounds::default()
        },
    };
    let notify = Arc::new(move |notice| {
        if let Some(set) = of_disk.get() {
            set.disk_notice(notice);
        }
    });
    let disk = Disk::open(0, spec, Backend::Auto, notify).unwrap();
    let disks = Arc::new(Disks::new(vec![disk]));
    let events = Arc::<Mutex<Vec<Event>>>::default();
    let of_events = Arc::clone(&events);
    let config = SetConfig {
        start_ns: 0,
        name: "disks".into(),
        voter: Config {
            replicas: replicas as u8,
            window_boundaries: WINDOW,
            window_bytes: 16 << 20,
            lag_timeout_ns: 5_000_000_000,
            lag_factor: 10,
        },
        no_quorum: NoQuorum::Stop,
        stop_grace: Duration::from_secs(10),
        seed: RunSeed::from_text("disks"),
        layout_mode: "same",
        recovery: RecoveryConfig::off(),
    };
    let start = Arc::new(Start::default());
    let world = World {
        ingress: start.clone(),
        egress: Box::new(Nothing),
        disks: Arc::clone(&disks),
        events: Box::new(move |logged| of_events.lock().unwrap().push(logged.event.clone())),
        tap: None,
        outside: Box::new(Outside::default),
    };
    let set = ReplicaSet::start(config, world, move |me, _| {
        Ok(Guest {
            steps: scripts[me].clone().into(),
            started: false,
            seq: 0,
            waits_for: BTreeMap::new(),
            boundary: 0,
        })
    })
    .unwrap();
    let _ = handle.set(set.handle());
    with(&set);
    *start.0.lock().unwrap() = true;
    set.input_arrived();
    let summary = set.wait();
    disks.close().unwrap();
    let file = std::fs::read(&path).unwrap();
    let events = events.lock().unwrap().clone();
    Ran {
        summary,
        events,
        disks,
        file,
    }
}

/// Writes, reads back, overwrites.
fn work(rounds: u8) -> Vec<Step> {
    (1..=rounds)
        .flat_map(|round| {
            [
                Step::Write(3, round),
                Step::Read(3, round),
                Step::Write(u64::from(round), round),
                // A flush forces writes out to the file that slow replicas are not past yet.
                if round % 10 == 0 {
                    Step::Flush
                } else {
                    Step::Idle
                },
            ]
        })
        .chain([Step::Flush, Step::Read(3, rounds)])
        // Whoever comes to the end first ends the set; nobody does before the slowest is through with its work.
        .chain(vec![Step::Idle; 2 * WINDOW as usize])
        .collect()
}

#[test]
fn three_replicas_share_a_disk_that_holds_what_they_agreed_on() {
    let directory = tempfile::tempdir().unwrap();
    for replicas in [1, 3] {
        let ran = run(directory.path(), vec![work(50); replicas], true, |_| {});
        assert_eq!(
            ran.summary.end.exit_code(),
            ExitCode::Success,
            "{}",
            ran.summary.end
        );
        assert_eq!(ran.summary.status.running, replicas);
        assert!(
            ran.file[3 * BLOCK..4 * BLOCK]
                .iter()
                .all(|byte| *byte == 50)
        );
        assert!(
            ran.file[50 * BLOCK..51 * BLOCK]
                .iter()
                .all(|byte| *byte == 50)
        );
        let stats = &ran.disks.stats()[0];
        // Each write once, however many replicas there are (R2).
        assert_eq!((stats.writes, stats.flushes), (100, 6));
        assert!(stats.syncs >= 1);
    }
}

#[test]
fn a_replica_that_lags_reads_what_was_there_at_its_own_boundary() {
    let directory = tempfile::tempdir().unwrap();
    let slow = |set: &ReplicaSet| {
        let fault = Fault::Slow {
            millis: 2,
            boundaries: 100,
        };
        set.inject(2, fault).unwrap();
    };
    let ran = run(directory.path(), vec![work(60); 3], true, slow);
    assert_eq!(
        ran.summary.end.exit_code(),
        ExitCode::Success,
        "{}",
        ran.summary.end
    );
    assert_eq!(ran.summary.status.running, 3, "{:#?}", ran.events);
    assert!(ran.disks.stats()[0].versions > 0, "nobody lagged");

    // R6 switched off, the same replica reads what the others have written since.
    let ran = run(directory.path(), vec![work(60); 3], false, slow);
    let misled = |event: &Event| matches!(event, Event::ReplicaStopped { replica: 2, reason, .. } if reason.contains("at this boundary"));
    assert!(ran.events.iter().any(misled), "{:#?}", ran.events);
}

#[test]
fn a_wrong_write_is_outvoted_and_never_reaches_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    // It would read its own wrong write back and notice; here nobody reads.
    let mut writes = work(20);
    writes.retain(|step| !matches!(step, Step::Read(..)));
    let right = run(directory.path(), vec![writes.clone(); 3], true, |_| {}).file;
    for victim in 0..3 {
        let ran = run(directory.path(), vec![writes.clone(); 3], true, |set| {
            set.inject(victim, Fault::WrongWrite).unwrap();
        });
        assert_eq!(
            ran.summary.end.exit_code(),
            ExitCode::Success,
            "{}",
            ran.summary.end
        );
        let outvoted = |event: &Event| matches!(event, Event::Outvoted { replica, channel: "disk", .. } if *replica == victim);
        assert!(ran.events.iter().any(outvoted), "{:#?}", ran.events);
        assert!(
            ran.file == right,
            "the disk differs from that of a run without the fault"
        );
    }
}

#[test]
fn a_leader_gone_astray_cannot_complete_the_others_flush() {
    let directory = tempfile::tempdir().unwrap();
    let honest = vec![Step::Write(1, 7), Step::Flush, Step::Read(1, 7)];
    // Its request number 1 is a read, which is complete at once; that of the others is a flush.
    let astray = vec![Step::Write(1, 7), Step::Read(1, 7), Step::Idle];
    let ran = run(
        directory.path(),
        vec![astray, honest.clone(), honest],
        true,
        |_| {},
    );
    assert_eq!(
        ran.summary.end.exit_code(),
        ExitCode::Success,
        "{}",
        ran.summary.end
    );
    assert_eq!(ran.summary.status.running, 2);
    let file = std::fs::File::open(directory.path().join("disk.img")).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, BLOCK as u64).unwrap();
    assert_eq!(byte, [7]);
    let stats = &ran.disks.stats()[0];
    assert!(stats.flushes == 1 && stats.syncs >= 1, "{stats:?}");
}
