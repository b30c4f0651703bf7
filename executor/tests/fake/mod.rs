//! A scripted machine: an echo server without a virtual machine around it, that can be told to go wrong.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use quorate_abi::sync::{FLAG_TERMINATE, WAIT_FOREVER, WAIT_NONE};
use quorate_devices::{DiskReads, Entry, Output};
use quorate_executor::control::protocol::Status;
use quorate_executor::egress::{Egress, Item};
use quorate_executor::events::{End, Event, Logged, NoQuorum};
use quorate_executor::exit::{ExitCode, Failure};
use quorate_executor::inject::Fault;
use quorate_executor::journal::Ingress;
use quorate_executor::replica::{Kick, Turn, Vcpu};
use quorate_executor::seeds::RunSeed;
use quorate_executor::set::{Outside, ReplicaSet, SetConfig, World};
use quorate_voter::Config;

/// Longest time that a test waits for what must happen. Only reached when a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a replica does besides echoing frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    #[default]
    Good,
    /// Crashes instead of reaching this boundary.
    CrashAt(u64),
    /// Never reaches this boundary.
    SpinAt(u64),
    /// Breaks a device's rule instead of reaching this boundary.
    MisbehaveAt(u64),
    /// Does not end when asked to.
    IgnoreTerminate,
    CannotBeBuilt,
    /// All replicas run through this many boundaries without waiting; this one stands still until the gate opens.
    GatedUntil(u64),
}

/// Behaviour of each replica.
#[derive(Clone, Debug, Default)]
pub struct Script(Vec<Behaviour>);

impl Script {
    pub fn one(replica: usize, behaviour: Behaviour) -> Script {
        let mut all = vec![Behaviour::Good; 9];
        all[replica] = behaviour;
        Script(all)
    }

    pub fn all(behaviour: Behaviour) -> Script {
        Script(vec![behaviour; 9])
    }
}

#[derive(Default)]
struct Bell {
    state: Mutex<bool>,
    rung: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.state.lock().unwrap() = true;
        self.rung.notify_all();
    }

    /// Waits for the bell and silences it.
    fn wait(&self) {
        let mut state = self
            .rung
            .wait_while(self.state.lock().unwrap(), |rung| !*rung)
            .unwrap();
        *state = false;
    }
}

struct Echo {
    behaviour: Behaviour,
    /// Boundaries to run through without waiting.
    free_run: u64,
    gate: Option<Arc<Gate>>,
    boundary: u64,
    frames: Vec<Vec<u8>>,
    exit: Option<u64>,
    kicked: Arc<Bell>,
    dropped: Arc<AtomicUsize>,
    me: usize,
    hang: bool,
    crash: bool,
}

#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Vcpu for Echo {
    fn run(&mut self) -> Turn {
        if self.crash {
            return Turn::Crash("injected crash".into());
        }
        match self.behaviour {
            Behaviour::CrashAt(at) if at == self.boundary => {
                return Turn::Crash("scripted crash".into());
            }
            Behaviour::MisbehaveAt(at) if at == self.boundary => {
                return Turn::Misbehaved("garbage in queue 1".into());
            }
            Behaviour::SpinAt(at) if at == self.boundary => self.hang = true,
            _ => {}
        }
        if self.hang {
            self.kicked.wait();
            return Turn::Kicked;
        }
        if let Some(gate) = &self.gate {
            drop(
                gate.opened
                    .wait_while(gate.open.lock().unwrap(), |open| !*open)
                    .unwrap(),
            );
        }
        let mut outputs = vec![Output::Fingerprint {
            digest: [self.boundary, 7],
            syscalls: self.boundary,
        }];
        outputs.extend(self.frames.drain(..).map(Output::Frame));
        if let Some(status) = self.exit {
            outputs.push(Output::Exit { status });
        }
        let wait_until_ns = if self.boundary < self.free_run {
            WAIT_NONE
        } else {
            WAIT_FOREVER
        };
        self.boundary += 1;
        Turn::Boundary {
            outputs,
            wait_until_ns,
        }
    }

    fn resume(&mut self, entry: &Arc<Entry>, _: &mut dyn DiskReads) -> Result<(), String> {
        for frame in &entry.frames {
            match frame.strip_prefix(b"exit ") {
                Some(status) => self.exit = Some(String::from_utf8_lossy(status).parse().unwrap()),
                None => self.frames.push(frame.clone()),
            }
        }
        if entry.flags & FLAG_TERMINATE != 0 && self.behaviour != Behaviour::IgnoreTerminate {
            self.exit = Some(15);
        }
        Ok(())
    }

    fn inject(&mut self, fault: &Fault, _random: u64) -> Result<String, String> {
        match fault {
            Fault::Hang => self.hang = true,
            Fault::Crash => self.crash = true,
            _ => {}
        }
        Ok(format!("{fault:?}"))
    }

    fn kicker(&self) -> Kick {
        let bell = Arc::clone(&self.kicked);
        Arc::new(move || bell.ring())
    }

    fn layout(&self) -> Vec<(&'static str, u64)> {
        vec![("kernel", 0x1000)]
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.dropped.fetch_or(1 << self.me, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Queue(Mutex<VecDeque<Vec<u8>>>);

impl Ingress for Queue {
    fn take(&self, max_frames: usize, _max_bytes: usize) -> Vec<Vec<u8>> {
        let mut queue = self.0.lock().unwrap();
        let count = queue.len().min(max_frames);
        queue.drain(..count).collect()
    }

    fn is_empty(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }
}

/// What came out of the set.
#[derive(Default)]
struct Outcome {
    frames: VecDeque<Vec<u8>>,
    events: Vec<Event>,
    entries: Vec<Arc<Entry>>,
}

#[derive(Default)]
struct Seen {
    outcome: Mutex<Outcome>,
    changed: Condvar,
}

impl Seen {
    fn wait<T>(&self, what: &str, mut look: impl FnMut(&mut Outcome) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut outcome = self.outcome.lock().unwrap();
        loop {
            if let Some(found) = look(&mut outcome) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{what} did not happen; events: {:#?}",
                outcome.events
            );
            outcome = self.changed.wait_timeout(outcome, left).unwrap().0;
        }
    }
}

struct ToSeen(Arc<Seen>);

impl Egress for ToSeen {
    fn frames(&mut self, frames: Vec<Vec<u8>>) {
        self.0.outcome.lock().unwrap().frames.extend(frames);
        self.0.changed.notify_all();
    }

    fn console(&mut self, _bytes: &[u8]) {}
}

/// A set of echo servers and the world around it.
pub struct Fake {
    pub set: ReplicaSet,
    queue: Arc<Queue>,
    seen: Arc<Seen>,
    gate: Arc<Gate>,
    dropped: Arc<AtomicUsize>,
}

/// What is left of a set that has ended.
pub struct Ended {
    pub end: End,
    pub status: Status,
    seen: Arc<Seen>,
}

impl Ended {
    /// True if nothing was released that has not been received.
    pub fn nothing_more(&self) -> bool {
        self.seen.outcome.lock().unwrap().frames.is_empty()
    }

    /// The journal.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        self.seen.outcome.lock().unwrap().entries.clone()
    }
}

impl Fake {
    pub fn start(replicas: u8, script: Script) -> Fake {
        Fake::try_start(replicas, script, |_| {}).unwrap()
    }

    pub fn try_start(
        replicas: u8,
        script: Script,
        change: impl FnOnce(&mut SetConfig),
    ) -> Result<Fake, Failure> {
        let (queue, seen, gate) = (
            Arc::new(Queue::default()),
            Arc::new(Seen::default()),
            Arc::new(Gate::default()),
        );
        let dropped = Arc::new(AtomicUsize::new(0));
        let mut config = SetConfig {
            name: "fake".into(),
            voter: Config {
                replicas,
                window_boundaries: 1024,
                window_bytes: 16 << 20,
                lag_timeout_ns: 500_000_000,
                lag_factor: 10,
            },
            no_quorum: NoQuorum::Stop,
            stop_grace: Duration::from_secs(10),
            seed: RunSeed::from_text("fake"),
            layout_mode: "random",
        };
        change(&mut config);
        let (of_tap, of_events) = (Arc::clone(&seen), Arc::clone(&seen));
        let world = World {
            ingress: queue.clone(),
            egress: Box::new(ToSeen(Arc::clone(&seen))),
            disks: Arc::default(),
            events: Box::new(move |logged: &Logged| {
                of_events
                    .outcome
                    .lock()
                    .unwrap()
                    .events
                    .push(logged.event.clone());
                of_events.changed.notify_all();
            }),
            tap: Some(Box::new(move |item| {
                if let Item::Entry { entry, .. } = item {
                    of_tap
                        .outcome
                        .lock()
                        .unwrap()
                        .entries
                        .push(Arc::clone(entry));
                }
            })),
            outside: Box::new(Outside::default),
        };
        let build = {
            let (gate, dropped) = (Arc::clone(&gate), Arc::clone(&dropped));
            let free_run = script
                .0
                .iter()
                .find_map(|behaviour| {
                    if let Behaviour::GatedUntil(count) = behaviour {
                        Some(*count)
                    } else {
                        None
                    }
                })
                .unwrap_or(0);
            move |me: usize| {
                let behaviour = script.0.get(me).copied().unwrap_or_default();
                if behaviour == Behaviour::CannotBeBuilt {
                    return Err(Failure::new(ExitCode::Host, "no KVM for you"));
                }
                let gated = matches!(behaviour, Behaviour::GatedUntil(_));
                Ok(Echo {
                    behaviour,
                    free_run,
                    gate: gated.then(|| Arc::clone(&gate)),
                    boundary: 0,
                    frames: Vec::new(),
                    exit: None,
                    kicked: Arc::default(),
                    dropped: Arc::clone(&dropped),
                    me,
                    hang: false,
                    crash: false,
                })
            }
        };
        let set = ReplicaSet::start(config, world, build)?;
        Ok(Fake {
            set,
            queue,
            seen,
            gate,
            dropped,
        })
    }

    pub fn send(&self, frame: &[u8]) {
        self.queue.0.lock().unwrap().push_back(frame.to_vec());
        self.set.input_arrived();
    }

    pub fn receive(&self) -> Vec<u8> {
        self.seen
            .wait("a frame", |outcome| outcome.frames.pop_front())
    }

    pub fn wait_for(&self, what: &str, matches: impl Fn(&Event) -> bool) {
        self.seen.wait(what, |outcome| {
            outcome.events.iter().any(&matches).then_some(())
        });
    }

    pub fn wait_for_status(&self, what: &str, matches: impl Fn(&Status) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !matches(&self.set.status()) {
            assert!(
                Instant::now() < deadline,
                "{what} did not happen: {:#?}",
                self.set.status()
            );
            std::thread::yield_now();
        }
    }

    pub fn wait_until_dropped(&self, replica: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.dropped.load(Ordering::SeqCst) & (1 << replica) == 0 {
            assert!(
                Instant::now() < deadline,
                "the machine of replica {replica} was not dropped"
            );
            std::thread::yield_now();
        }
    }

    pub fn open_gate(&self) {
        *self.gate.open.lock().unwrap() = true;
        self.gate.opened.notify_all();
    }

    /// Waits for the end of the set.
    pub fn end(self) -> Ended {
        let summary = self.set.wait();
        Ended {
            end: summary.end,
            status: summary.status,
            seen: self.seen,
        }
    }
}
