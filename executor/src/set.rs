//! The replica set: a thread per replica around the shared state, a ticker, and the handle by which it is controlled.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use quorate_voter::{Config as VoterConfig, ConfigError, Lockstep, StopReason};

use crate::control::protocol::{Command, Reply, Status};
use crate::control::server::Controlled;
use crate::disks::Disks;
use crate::egress::{Deliverer, Egress, Tap};
use crate::events::{End, Event, EventLog, EventSink, NoQuorum};
use crate::exit::{ExitCode, Failure};
use crate::inject::{Applied, Fault};
use crate::journal::{Clock, Ingress};
use crate::recovery::life::{World as LifeWorld, live};
use crate::recovery::vault::Vaults;
use crate::recovery::{Lineage, Observer, RecoveryConfig, Step, Unobserved};
use crate::replica::Vcpu;
use crate::save;
use crate::seeds::{self, RunSeed};
use crate::shared::{Came, Mail, Pace, Place, Shared};
use crate::store::Notice;
use crew::{Crew, Spawned};

pub(crate) mod crew;

/// Time between two ticks.
const TICK: Duration = Duration::from_millis(100);
/// How long `inject` waits for a replica to come to a place where the fault can be applied. After it, the answer is
/// that it waits.
const INJECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the end of a set waits for its threads. One that does not come is left to the end of the process.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Smallest [`VoterConfig::window_bytes`]: an entry must hold at least a few frames.
pub const MIN_WINDOW_BYTES: usize = 1 << 20;

/// What a set is told at its start.
#[derive(Clone, Debug)]
pub struct SetConfig {
    /// Its name, for status.
    pub name: String,
    /// Replicas, window and lag bounds.
    pub voter: VoterConfig,
    /// What to do without a majority.
    pub no_quorum: NoQuorum,
    /// How long the guest program may take to end when it is asked to.
    pub stop_grace: Duration,
    /// The run seed.
    pub seed: RunSeed,
    /// `same` or `random`, for status.
    pub layout_mode: &'static str,
    /// How replicas come back.
    pub recovery: RecoveryConfig,
    /// What the guest's clock shows at the start, ns: not 0 when the set goes on from where it was saved.
    pub start_ns: u64,
}

/// The world around a set.
pub struct World {
    /// Where frames come from. Call [`ReplicaSet::input_arrived`] when it is no longer empty.
    pub ingress: Arc<dyn Ingress>,
    /// Where releases go.
    pub egress: Box<dyn Egress>,
    /// The disks. Call [`SetHandle::disk_notice`] for what they have to say.
    pub disks: Arc<Disks>,
    /// Where events are shown.
    pub events: EventSink,
    /// Sees all releases, entries and events; for tests and recordings.
    pub tap: Option<Tap>,
    /// Numbers of the gateway and the console for status.
    pub outside: Box<dyn Fn() -> Outside + Send + Sync>,
}

/// What status says of the world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// Connections open.
    pub connections: u64,
    /// Published ports.
    pub published: Vec<String>,
    /// Console bytes dropped.
    pub console_dropped: u64,
}

/// What a set did, once it has ended.
#[derive(Clone, Debug)]
pub struct Summary {
    /// How it ended.
    pub end: End,
    /// Its state at the end.
    pub status: Status,
    /// How long it ran.
    pub ran: Duration,
    /// What was recorded of it.
    pub recorded: Option<crate::record::Summary>,
}

/// A running replica set.
pub struct ReplicaSet {
    core: Arc<Core>,
}

/// A handle that keeps nothing alive: for the gateway's thread and for signal handlers.
#[derive(Clone)]
pub struct SetHandle(Weak<Core>);

type Spawn = dyn Fn(&Arc<Core>, usize, bool) -> Result<(), Failure> + Send + Sync;

pub(crate) struct Core {
    pub(crate) shared: Shared,
    pub(crate) config: SetConfig,
    pub(crate) log: Arc<EventLog>,
    pub(crate) outside: Box<dyn Fn() -> Outside + Send + Sync>,
    pub(crate) started: Instant,
    crew: Arc<dyn Crew>,
    /// What is needed to save the set.
    save: OnceLock<save::Context>,
    /// Starts the thread of a replica; true for one that joins a running set.
    spawn: OnceLock<Box<Spawn>>,
}

impl ReplicaSet {
    /// Starts a set. `build` makes the machine of a replica with the layout of a lineage; it is called on the replica's own
    /// thread. Guests run once all machines are there; if one cannot be built, the set ends with that failure.
    ///
    /// # Errors
    /// When the configuration is out of bounds or no thread can be made.
    pub fn start<V, B>(config: SetConfig, world: World, build: B) -> Result<ReplicaSet, Failure>
    where
        V: Vcpu + 'static,
        B: Fn(usize, Lineage) -> Result<V, Failure> + Send + Sync + 'static,
    {
        Self::start_observed(config, world, build, Arc::new(Unobserved))
    }

    /// As [`ReplicaSet::start`]; `observer` sees replicas fall and checkpoints being taken.
    ///
    /// # Errors
    /// As there.
    pub fn start_observed<V, B>(
        config: SetConfig,
        world: World,
        build: B,
        observer: Arc<dyn Observer<V::Checkpoint>>,
    ) -> Result<ReplicaSet, Failure>
    where
        V: Vcpu + 'static,
        B: Fn(usize, Lineage) -> Result<V, Failure> + Send + Sync + 'static,
    {
        let crew = Arc::new(Spawned::default());
        Self::start_paced(config, world, build, observer, Pace::Live, crew)
    }

    /// As [`ReplicaSet::start_observed`], with entries from elsewhere, on these threads.
    pub(crate) fn start_paced<V, B>(
        config: SetConfig,
        world: World,
        build: B,
        observer: Arc<dyn Observer<V::Checkpoint>>,
        pace: Pace,
        crew: Arc<dyn Crew>,
    ) -> Result<ReplicaSet, Failure>
    where
        V: Vcpu + 'static,
        B: Fn(usize, Lineage) -> Result<V, Failure> + Send + Sync + 'static,
    {
        if config.voter.window_bytes < MIN_WINDOW_BYTES {
            let text = format!(
                "a window of {} bytes: at least {MIN_WINDOW_BYTES} are needed",
                config.voter.window_bytes
            );
            return Err(Failure::new(ExitCode::Appliance, text));
        }
        let vote = if config.recovery.enabled {
            let key = seeds::secret().map_err(|error| Failure::new(ExitCode::Host, error))?;
            Lockstep::recoverable(config.voter, key)
        } else {
            Lockstep::new(config.voter)
        };
        let vote = vote.map_err(|error| {
            let code = if matches!(error, ConfigError::Replicas(_)) {
                ExitCode::Usage
            } else {
                ExitCode::Appliance
            };
            Failure::new(code, error)
        })?;
        let replicas = usize::from(config.voter.replicas);
        let log = Arc::new(EventLog::new(world.events));
        let deliverer = Deliverer::new(
            world.egress,
            Arc::clone(&world.disks),
            world.tap,
            Arc::clone(&log),
        );
        let shared = Shared::new(
            vote,
            config.no_quorum,
            world.ingress,
            world.disks,
            deliverer,
            (Clock::start_at(config.start_ns), pace),
            (config.recovery.clone(), config.layout_mode != "same"),
        );
        shared.inner().writer.begin_at(config.start_ns);
        let core = Arc::new(Core {
            shared,
            config,
            log,
            outside: world.outside,
            started: Instant::now(),
            crew,
            save: OnceLock::new(),
            spawn: OnceLock::new(),
        });

        let lives = Arc::new(LifeWorld::<V> {
            vaults: Vaults::default(),
            build: Box::new(build),
            observer,
        });
        let spawn = move |core: &Arc<Core>, me: usize, joining: bool| {
            let (of_thread, lives) = (Arc::clone(core), Arc::clone(&lives));
            let body = move || live(&of_thread.shared, &*lives, me, joining);
            core.crew.run(Some(me), Box::new(body))
        };
        // Nobody else has it yet.
        let _ = core.spawn.set(Box::new(spawn));
        let set = ReplicaSet {
            core: Arc::clone(&core),
        };
        for me in 0..replicas {
            core.start_replica(me, false)?;
        }
        let ticking = Arc::clone(&core);
        core.crew.run(None, Box::new(move || tick(&ticking)))?;
        Ok(set)
    }

    /// A handle for other threads.
    pub fn handle(&self) -> SetHandle {
        SetHandle(Arc::downgrade(&self.core))
    }

    /// A frame has been put into the ingress.
    pub fn input_arrived(&self) {
        self.core.shared.input_arrived();
    }

    /// Asks the guest program to end (SIGTERM), or ends the set at once.
    pub fn stop(&self, now: bool) {
        self.core.shared.stop(now, self.core.config.stop_grace);
    }

    /// Stops a replica.
    ///
    /// # Errors
    /// When there is no such replica or it is stopped already.
    pub fn kill(&self, replica: usize) -> Result<(), String> {
        self.core.kill(replica)
    }

    /// Injects a fault and says where it was applied.
    ///
    /// # Errors
    /// When it cannot be applied, or the replica did not come to a place for it in time (then it waits for that).
    pub fn inject(&self, replica: usize, fault: Fault) -> Result<Applied, String> {
        self.core.inject(replica, fault, false)
    }

    /// Brings back a replica that was left out; by this step if one is given, which also makes one begin again that runs.
    ///
    /// # Errors
    /// When there is nothing to bring back.
    pub fn recover(&self, replica: usize, step: Option<Step>) -> Result<(), String> {
        self.core.shared.recover(replica, step)
    }

    /// Adds a replica to the set; it becomes a member when it has caught up. Answers with its number.
    ///
    /// # Errors
    /// When there is no place for one.
    pub fn add(&self) -> Result<usize, String> {
        self.core.add()
    }

    /// Takes a replica out of the set.
    ///
    /// # Errors
    /// When it cannot be spared.
    pub fn remove(&self, replica: usize) -> Result<(), String> {
        self.core.shared.remove(replica)
    }

    /// Says what is needed to save the set; only the first time counts.
    pub fn can_be_saved(&self, context: save::Context) {
        let _ = self.core.save.set(context);
    }

    /// Records a note in the log of events.
    pub fn note(&self, text: String) {
        self.core.shared.tell(Event::Note { text });
    }

    /// The state of the set.
    pub fn status(&self) -> Status {
        self.core.status()
    }

    /// What a control server is to be given.
    pub fn controlled(&self) -> Arc<dyn Controlled> {
        Arc::new(self.handle())
    }

    /// Saves the set where a stage that is over left it, and ends it.
    pub(crate) fn save_finale(&self, directory: &Path) -> Result<(), String> {
        if !self.core.shared.await_finale() {
            return Err("the set ended before the stage was over".to_owned());
        }
        self.core.save(directory, true).map(drop)
    }

    /// Waits until the set has ended, and its threads with it.
    pub fn wait(self) -> Summary {
        self.wait_staged().0
    }

    /// As [`ReplicaSet::wait`], and what a staged set came to; last whether all threads ended.
    pub(crate) fn wait_staged(self) -> (Summary, Came, bool) {
        let shared = &self.core.shared;
        let mut inner = shared.inner();
        while inner.end.is_none() {
            inner = shared.wait_changed(inner, Duration::from_secs(3600));
        }
        let patience = Instant::now() + crate::patience::patient(LEAVE_TIMEOUT);
        while inner.slots.iter().any(|slot| slot.place != Place::Gone) {
            let left = patience.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            inner = shared.wait_changed(inner, left);
        }
        let all_gone = inner.slots.iter().all(|slot| slot.place == Place::Gone);
        let end = inner.end.clone().unwrap_or(End::Stopped);
        drop(inner);
        if all_gone {
            self.core.crew.join();
        } else {
            shared.tell(Event::Note {
                text: "a replica's thread did not end and is left behind".to_owned(),
            });
        }
        let status = self.core.status();
        let exit_code = end.exit_code() as u8;
        shared.tell(Event::Stopped {
            reason: end.to_string(),
            exit_code,
            fingerprint: status.fingerprint.clone(),
        });
        let summary = Summary {
            end,
            status,
            ran: self.core.started.elapsed(),
            recorded: None,
        };
        (summary, shared.came(), all_gone)
    }
}

impl Drop for ReplicaSet {
    fn drop(&mut self) {
        // Only has an effect if nobody has waited for the end: then threads must not outlive the handle's owner unasked.
        self.core.shared.end(End::Stopped);
    }
}

fn tick(core: &Core) {
    let shared = &core.shared;
    let every = shared.pace().tick(TICK);
    loop {
        let inner = shared.inner();
        if inner.end.is_some() {
            return;
        }
        drop(shared.wait_changed(inner, every));
        shared.tick();
    }
}

impl Core {
    fn save(&self, directory: &Path, stop: bool) -> Result<Reply, String> {
        let context = self.save.get().ok_or("this set cannot be saved")?;
        save::save(&self.shared, context, directory, stop)
            .map(|done| Reply::Saved {
                boundary: done.boundary,
                replicas: done.replicas,
                bytes: done.bytes,
                held_ms: u64::try_from(done.held.as_millis()).unwrap_or(u64::MAX),
            })
            .map_err(|error| error.to_string())
    }

    fn start_replica(self: &Arc<Self>, me: usize, joining: bool) -> Result<(), Failure> {
        match self.spawn.get() {
            Some(spawn) => spawn(self, me, joining),
            None => Ok(()),
        }
    }

    fn add(self: &Arc<Self>) -> Result<usize, String> {
        let replica = self.shared.add()?;
        if let Err(failure) = self.start_replica(replica, true) {
            // It has no thread that could leave by itself.
            let _ = self.shared.remove(replica);
            self.shared.leave(replica);
            return Err(failure.message);
        }
        Ok(replica)
    }

    fn kill(&self, replica: usize) -> Result<(), String> {
        let stopped = self
            .shared
            .inner()
            .slots
            .get(replica)
            .map(|slot| slot.stopped.is_some());
        match stopped {
            None => Err(format!(
                "there is no replica {replica}; they are 0 to {}",
                self.config.voter.replicas - 1
            )),
            Some(true) => Err(format!("replica {replica} is stopped already")),
            Some(false) => {
                self.shared.fail(replica, StopReason::Killed);
                Ok(())
            }
        }
    }

    fn inject(&self, replica: usize, fault: Fault, at_boundary: bool) -> Result<Applied, String> {
        let number = self
            .shared
            .inner()
            .slots
            .get(replica)
            .map_or(0, |slot| slot.faults);
        let random = self.config.seed.fault(replica, number);
        let (reply, answer) = sync_channel(1);
        let waits = format!(
            "{fault} waits for replica {replica} to come to a place where it can be applied"
        );
        self.shared.post(
            replica,
            Mail {
                fault,
                random,
                at_boundary,
                reply,
            },
        )?;
        match answer.recv_timeout(crate::patience::patient(INJECT_TIMEOUT)) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(waits),
            Err(RecvTimeoutError::Disconnected) => Err(format!(
                "replica {replica} stopped before the fault was applied"
            )),
        }
    }
}

impl SetHandle {
    /// As [`ReplicaSet::input_arrived`].
    pub fn input_arrived(&self) {
        if let Some(core) = self.0.upgrade() {
            core.shared.input_arrived();
        }
    }

    /// A disk has something to say.
    pub fn disk_notice(&self, notice: Notice) {
        let Some(core) = self.0.upgrade() else { return };
        match notice {
            Notice::Due(replicas) => core.shared.disk_due(replicas),
            Notice::Failed {
                cause, stop: true, ..
            } => core.shared.end(End::Failed {
                code: ExitCode::Disk,
                detail: cause,
            }),
            Notice::Failed { cause, .. } => core.shared.tell(Event::Note { text: cause }),
        }
    }

    /// As [`ReplicaSet::note`].
    pub fn note(&self, text: String) {
        if let Some(core) = self.0.upgrade() {
            core.shared.tell(Event::Note { text });
        }
    }

    /// As [`ReplicaSet::stop`].
    pub fn stop(&self, now: bool) {
        if let Some(core) = self.0.upgrade() {
            core.shared.stop(now, core.config.stop_grace);
        }
    }
}

impl Controlled for SetHandle {
    fn handle(&self, command: Command) -> Reply {
        let Some(core) = self.0.upgrade() else {
            return Reply::Error {
                message: "the set has ended".to_owned(),
            };
        };
        let result = match command {
            Command::Status => Ok(Reply::Status(Box::new(core.status()))),
            Command::Stop { now } => {
                core.shared.stop(now, core.config.stop_grace);
                Ok(Reply::Done)
            }
            Command::Kill { replica } => core.kill(replica).map(|()| Reply::Done),
            Command::Inject {
                replica,
                fault,
                at_boundary,
            } => core.inject(replica, fault, at_boundary).map(Reply::Applied),
            Command::Recover { replica, step } => {
                core.shared.recover(replica, step).map(|()| Reply::Done)
            }
            Command::Add => core.add().map(|replica| Reply::Added { replica }),
            Command::Remove { replica } => core.shared.remove(replica).map(|()| Reply::Done),
            Command::Checkpoint { directory, stop } => core.save(&directory, stop),
        };
        result.unwrap_or_else(|message| Reply::Error { message })
    }
}
