//! A scripted machine: an echo server without a virtual machine around it, that can be told to go wrong.
// Each test binary uses its part of this.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use quorate_abi::sync::{FLAG_TERMINATE, WAIT_FOREVER, WAIT_NONE};
use quorate_devices::{DiskPosition, DiskReads, Entry, Output};
use quorate_executor::control::protocol::Status;
use quorate_executor::egress::{Egress, Item};
use quorate_executor::events::{End, Event, Logged, NoQuorum};
use quorate_executor::exit::{ExitCode, Failure};
use quorate_executor::inject::Fault;
use quorate_executor::journal::Ingress;
use quorate_executor::recovery::{Lineage, RecoveryConfig};
use quorate_executor::replica::{Kick, Pause, Turn, Vcpu};
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

/// What a guest is, apart from its machine: all that is in a checkpoint.
#[derive(Clone, Debug, Default)]
struct Guest {
    boundary: u64,
    frames: Vec<Vec<u8>>,
    exit: Option<u64>,
    /// Of all input so far, so that a replay that is not exact is found out.
    digest: u64,
    /// A bit has flipped, and it shows from this boundary on.
    wrong_from: Option<u64>,
}

/// A checkpoint of an [`Echo`].
#[derive(Clone)]
pub struct Snapshot(Arc<(Guest, Lineage)>);

/// What tests do to the machines, and see of them, beyond what goes through the set.
#[derive(Default)]
pub struct Hand {
    /// Machines in `checkpoint` now; and whether there were ever two.
    taking: AtomicUsize,
    pub two_at_once: AtomicBool,
    pub checkpoints: AtomicU64,
    pub tracked: AtomicU64,
    /// How many times more this fails, of whatever replica.
    pub fail_checkpoints: AtomicUsize,
    pub fail_restores: AtomicUsize,
    pub fail_builds: AtomicUsize,
    pub panics: AtomicUsize,
    /// Every machine crashes instead of reaching this boundary, if it is not 0.
    pub crash_at: AtomicU64,
    pub builds: AtomicUsize,
    pub restores: AtomicUsize,
    /// While it is closed, restoring waits.
    pub restoring: Gate,
    /// While it is closed, what a restored machine does first waits.
    pub replaying: Gate,
}

impl Hand {
    /// Whether it is this one's turn to fail.
    fn fails(&self, what: &AtomicUsize) -> bool {
        let less = |count: usize| count.checked_sub(1);
        what.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
            .is_ok()
    }
}

struct Echo {
    behaviour: Behaviour,
    /// Boundaries to run through without waiting.
    free_run: u64,
    gate: Option<Arc<Gate>>,
    guest: Guest,
    kicked: Arc<Bell>,
    dropped: Arc<AtomicUsize>,
    me: usize,
    lineage: Lineage,
    hand: Arc<Hand>,
    hang: bool,
    crash: bool,
    restored: bool,
    /// This machine crashes instead of reaching this boundary, if it is not 0.
    crash_at: u64,
}

pub struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicUsize,
}

impl Default for Gate {
    fn default() -> Self {
        Gate {
            closed: Mutex::new(false),
            opened: Condvar::new(),
            waiting: AtomicUsize::new(0),
        }
    }
}

impl Gate {
    pub fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    pub fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }

    /// How many stand before it.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let closed = self.closed.lock().unwrap();
        drop(self.opened.wait_while(closed, |closed| *closed).unwrap());
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Vcpu for Echo {
    type Checkpoint = Snapshot;

    fn track_dirty(&mut self) -> Result<(), String> {
        self.hand.tracked.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn checkpoint(&mut self, _: Option<&Snapshot>) -> Result<(Snapshot, Pause), String> {
        let hand = &self.hand;
        if hand.taking.fetch_add(1, Ordering::SeqCst) > 0 {
            hand.two_at_once.store(true, Ordering::SeqCst);
        }
        // So long that two would meet, and not so long that the others run away meanwhile.
        for _ in 0..5000 {
            std::hint::spin_loop();
        }
        hand.taking.fetch_sub(1, Ordering::SeqCst);
        if hand.fails(&hand.fail_checkpoints) {
            return Err("no memory for a checkpoint".into());
        }
        hand.checkpoints.fetch_add(1, Ordering::SeqCst);
        Ok((
            Snapshot(Arc::new((self.guest.clone(), self.lineage))),
            Pause::default(),
        ))
    }

    fn restore(&mut self, from: &Snapshot) -> Result<(), String> {
        self.hand.restoring.pass();
        if self.hand.fails(&self.hand.panics) {
            panic!("a panic on request");
        }
        if self.hand.fails(&self.hand.fail_restores) {
            return Err("restoring fails on request".into());
        }
        assert_eq!(from.0.1, self.lineage, "a checkpoint of another layout");
        self.hand.restores.fetch_add(1, Ordering::SeqCst);
        self.guest = from.0.0.clone();
        (self.hang, self.crash) = (false, false);
        self.restored = true;
        Ok(())
    }

    fn positions(_: &Snapshot) -> Vec<DiskPosition> {
        Vec::new()
    }

    fn pages(_: &Snapshot) -> u64 {
        7
    }

    fn dump(&mut self) -> Result<Snapshot, String> {
        Err("there is nothing to see".into())
    }

    fn run(&mut self) -> Turn {
        if std::mem::take(&mut self.restored) {
            self.hand.replaying.pass();
        }
        if self.crash {
            return Turn::Crash("injected crash".into());
        }
        let bad = [self.crash_at, self.hand.crash_at.load(Ordering::SeqCst)];
        if bad.contains(&self.guest.boundary) && self.guest.boundary > 0 {
            return Turn::Crash("a crash that comes again".into());
        }
        match self.behaviour {
            Behaviour::CrashAt(at) if at == self.guest.boundary => {
                return Turn::Crash("scripted crash".into());
            }
            Behaviour::MisbehaveAt(at) if at == self.guest.boundary => {
                return Turn::Misbehaved("garbage in queue 1".into());
            }
            Behaviour::SpinAt(at) if at == self.guest.boundary => self.hang = true,
            _ => {}
        }
        if self.hang {
            self.kicked.wait();
            return Turn::Kicked;
        }
        if let Some(gate) = &self.gate {
            gate.pass();
        }
        let guest = &mut self.guest;
        let wrong = guest.wrong_from.is_some_and(|from| from <= guest.boundary);
        let mut outputs = vec![Output::Fingerprint {
            // Each replica is wrong in its own way: two that are wrong alike no vote can find.
            digest: [guest.digest, 7 + u64::from(wrong) * (1 + self.me as u64)],
            syscalls: guest.boundary,
        }];
        outputs.extend(guest.frames.drain(..).map(Output::Frame));
        if let Some(status) = guest.exit {
            outputs.push(Output::Exit { status });
        }
        let wait_until_ns = if guest.boundary < self.free_run {
            WAIT_NONE
        } else {
            WAIT_FOREVER
        };
        guest.boundary += 1;
        Turn::Boundary {
            outputs,
            wait_until_ns,
        }
    }

    fn resume(&mut self, entry: &Arc<Entry>, _: &mut dyn DiskReads) -> Result<(), String> {
        let guest = &mut self.guest;
        for frame in &entry.frames {
            for byte in frame {
                guest.digest = (guest.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3) + 1;
            }
            match frame.strip_prefix(b"exit ") {
                Some(status) => guest.exit = Some(String::from_utf8_lossy(status).parse().unwrap()),
                None => guest.frames.push(frame.clone()),
            }
        }
        if entry.flags & FLAG_TERMINATE != 0 && self.behaviour != Behaviour::IgnoreTerminate {
            guest.exit = Some(15);
        }
        Ok(())
    }

    fn inject(&mut self, fault: &Fault, _random: u64) -> Result<String, String> {
        match fault {
            Fault::Hang => self.hang = true,
            Fault::Crash => self.crash = true,
            // The bit says after how many boundaries this very machine crashes, whatever is restored into it.
            Fault::FlipRegister { bit: Some(bit), .. } => {
                self.crash_at = self.guest.boundary + u64::from(*bit);
            }
            // The address says after how many boundaries it shows.
            Fault::FlipMemory { address, .. } => {
                self.guest.wrong_from = Some(self.guest.boundary + address.unwrap_or(0));
            }
            _ => {}
        }
        Ok(format!("{fault:?}"))
    }

    fn kicker(&self) -> Kick {
        let bell = Arc::clone(&self.kicked);
        Arc::new(move || bell.ring())
    }

    fn layout(&self) -> Vec<(&'static str, u64)> {
        let Lineage {
            replica,
            generation,
        } = self.lineage;
        vec![
            ("kernel", 0x1000 + generation * 0x10000),
            ("boot", replica as u64),
        ]
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
        let deadline = Instant::now() + quorate_executor::patience::patient(PATIENCE);
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
    pub hand: Arc<Hand>,
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
        let hand = Arc::<Hand>::default();
        gate.close();
        let mut config = SetConfig {
            start_ns: 0,
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
            // Most tests want to see a replica that was stopped stay so.
            recovery: RecoveryConfig::off(),
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
            let hand = Arc::clone(&hand);
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
            move |me: usize, lineage: Lineage| {
                let behaviour = script.0.get(me).copied().unwrap_or_default();
                hand.builds.fetch_add(1, Ordering::SeqCst);
                if hand.fails(&hand.fail_builds) {
                    return Err(Failure::new(ExitCode::Host, "no machine for you"));
                }
                if behaviour == Behaviour::CannotBeBuilt {
                    return Err(Failure::new(ExitCode::Host, "no KVM for you"));
                }
                let gated = matches!(behaviour, Behaviour::GatedUntil(_));
                Ok(Echo {
                    behaviour,
                    free_run,
                    gate: gated.then(|| Arc::clone(&gate)),
                    guest: Guest::default(),
                    kicked: Arc::default(),
                    dropped: Arc::clone(&dropped),
                    me,
                    lineage,
                    hand: Arc::clone(&hand),
                    hang: false,
                    crash: false,
                    restored: false,
                    crash_at: 0,
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
            hand,
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

    /// Sends frames and waits for each answer.
    pub fn talk(&self, times: u64) {
        for number in 0..times {
            let frame = number.to_le_bytes();
            self.send(&frame);
            assert_eq!(self.receive(), frame);
        }
    }

    /// Sends frames and waits for each answer until the state of the set is as wished.
    pub fn talk_until(&self, what: &str, matches: impl Fn(&Status) -> bool) {
        let deadline = Instant::now() + quorate_executor::patience::patient(PATIENCE);
        while !matches(&self.set.status()) {
            assert!(
                Instant::now() < deadline,
                "{what} did not happen: {:#?}",
                self.set.status()
            );
            self.talk(1);
        }
    }

    /// How many events there were of this kind.
    pub fn count(&self, matches: impl Fn(&Event) -> bool) -> usize {
        let outcome = self.seen.outcome.lock().unwrap();
        outcome.events.iter().filter(|event| matches(event)).count()
    }

    /// True if nothing was released that has not been received.
    pub fn is_silent(&self) -> bool {
        self.seen.outcome.lock().unwrap().frames.is_empty()
    }

    pub fn wait_for(&self, what: &str, matches: impl Fn(&Event) -> bool) {
        self.seen.wait(what, |outcome| {
            outcome.events.iter().any(&matches).then_some(())
        });
    }

    pub fn wait_for_status(&self, what: &str, matches: impl Fn(&Status) -> bool) {
        let deadline = Instant::now() + quorate_executor::patience::patient(PATIENCE);
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
        let deadline = Instant::now() + quorate_executor::patience::patient(PATIENCE);
        while self.dropped.load(Ordering::SeqCst) & (1 << replica) == 0 {
            assert!(
                Instant::now() < deadline,
                "the machine of replica {replica} was not dropped"
            );
            std::thread::yield_now();
        }
    }

    pub fn open_gate(&self) {
        self.gate.open();
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
