//! A running relaxed set: a thread per replica, a ticker, and the handle by which it is controlled.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::front::Front;
use super::guest::Guest;
use super::hub::Hub;
use super::link::LinkConfig;
use super::members::{TICK, no_thread, tick};
use super::port::Port;
use super::recovery;
use crate::console::Console;
use crate::control::protocol::{Command, Reply, Status};
use crate::control::server::Controlled;
use crate::events::{End, Event};
use crate::exit::{ExitCode, Failure};
use crate::gateway::Publish;
use crate::inject::{Applied, Fault};
use crate::seeds::RunSeed;
use crate::shared::Mail;
use crate::sync::lock;

/// How long `inject` waits for a replica to come to a place where the fault can be applied.
const INJECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the end of a set waits for its threads.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a set is told at its start beside the hub's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name, for status.
    pub name: String,
    /// The run seed.
    pub seed: RunSeed,
    /// `same` or `random`, for status.
    pub layout_mode: &'static str,
    /// How long the guest programs may take to end when they are asked to.
    pub stop_grace: Duration,
    /// What a wall clock shows when the guests' monotonic clock shows 0, ns since 1970.
    pub realtime_ns: u64,
}

pub(super) struct Core {
    pub(super) hub: Arc<Hub>,
    pub(super) config: Config,
    pub(super) started: Instant,
    pub(super) front: Front,
    pub(super) console: Arc<Console>,
    threads: Mutex<Vec<JoinHandle<()>>>,
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
    /// One line for each disk on which something was not confirmed, and for each replica that answered differently.
    pub differences: Vec<String>,
}

/// A running set.
pub struct RelaxedSet {
    core: Arc<Core>,
}

/// A handle that keeps nothing alive.
#[derive(Clone)]
pub struct RelaxedHandle(Weak<Core>);

impl RelaxedSet {
    /// Starts a set on a hub. `build` makes the guest of a replica, on the replica's own thread; guests run once all are there.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn start<B>(
        hub: Arc<Hub>,
        config: Config,
        front: Front,
        build: B,
    ) -> Result<RelaxedSet, Failure>
    where
        B: Fn(usize) -> Result<Box<dyn Guest>, Failure> + Send + Sync + 'static,
    {
        let console = Arc::clone(&hub.console);
        let replicas = hub.settings.voters.len();
        let core = Arc::new(Core {
            hub,
            config,
            started: Instant::now(),
            front,
            console,
            threads: Mutex::default(),
        });
        let set = RelaxedSet {
            core: Arc::clone(&core),
        };
        let build = Arc::new(build);
        for me in 0..replicas {
            let (of_thread, build) = (Arc::clone(&core), Arc::clone(&build));
            core.spawn(format!("replica-{me}"), move || {
                live(&of_thread, me, &*build);
            })?;
        }
        let hub = Arc::clone(&core.hub);
        core.spawn("ticker".to_owned(), move || tick(&hub))?;
        Ok(set)
    }

    /// A handle for other threads.
    #[must_use]
    pub fn handle(&self) -> RelaxedHandle {
        RelaxedHandle(Arc::downgrade(&self.core))
    }

    /// What a control server is to be given.
    #[must_use]
    pub fn controlled(&self) -> Arc<dyn Controlled> {
        Arc::new(self.handle())
    }

    /// Published ports with the addresses that they are really at.
    #[must_use]
    pub fn addresses(&self) -> Vec<(Publish, std::net::SocketAddr)> {
        self.core.front.addresses()
    }

    /// The state of the set.
    #[must_use]
    pub fn status(&self) -> Status {
        self.core.status()
    }

    /// What all replicas share.
    #[must_use]
    pub fn hub(&self) -> &Arc<Hub> {
        &self.core.hub
    }

    /// Waits until the set has ended, and its threads with it.
    #[must_use]
    pub fn wait(self) -> Summary {
        let core = self.core;
        let end = loop {
            core.hub.over.wait(None);
            // The ticker waits at the same bell.
            if let Some(end) = core.hub.lock().end.clone() {
                core.hub.over.ring();
                break end;
            }
        };
        let until = Instant::now() + LEAVE_TIMEOUT;
        for thread in std::mem::take(&mut *lock(&core.threads)) {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
        let mut end = end;
        if let Some(disks) = core.hub.disks()
            && let Err(error) = disks.close()
            && end.exit_code() == ExitCode::Success
        {
            end = End::Failed {
                code: ExitCode::Disk,
                detail: error.to_string(),
            };
        }
        core.hub.console_over();
        let status = core.status();
        let mut differences = Vec::new();
        let disks = core.hub.disks().map(|disks| disks.report(true));
        for line in disks.iter().flatten().filter_map(|report| report.line()) {
            core.hub.note(line.clone());
            differences.push(line);
        }
        {
            let hub = &core.hub;
            let mut inner = hub.lock();
            for (me, name) in hub.settings.names.iter().enumerate() {
                differences.extend(inner.report.of(me).summary(me, name));
            }
            if let Some(problem) = inner.report.finish() {
                hub.note(format!(
                    "the report of differences is not complete: {problem}"
                ));
            }
        }
        core.hub.tell(Event::Stopped {
            reason: end.to_string(),
            exit_code: end.exit_code() as u8,
            fingerprint: status.fingerprint.clone(),
        });
        let ran = core.started.elapsed();
        drop(core);
        Summary {
            end,
            status,
            ran,
            differences,
        }
    }
}

impl Core {
    fn spawn(&self, name: String, body: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
        let thread = std::thread::Builder::new().name(name).spawn(body);
        let thread = thread.map_err(|error| no_thread(&error))?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    fn inject(&self, replica: usize, fault: Fault, at_boundary: bool) -> Result<Applied, String> {
        let number = match self.hub.lock().members.get(replica) {
            Some(member) => member.faults,
            None => return Err(format!("there is no replica {replica}")),
        };
        let random = self.config.seed.fault(replica, number);
        let (reply, answer) = sync_channel(1);
        let waits = format!(
            "{fault} waits for replica {replica} to come to a place where it can be applied"
        );
        self.hub.post(
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

/// The thread of one replica.
fn live<B>(core: &Core, me: usize, build: &B)
where
    B: Fn(usize) -> Result<Box<dyn Guest>, Failure>,
{
    let hub = &core.hub;
    let guest = match build(me) {
        Ok(guest) => guest,
        Err(failure) => return hub.failed(failure),
    };
    hub.built(me, guest.kicker(), guest.layout());
    hub.comes_back(me);
    if !hub.all_built(me) {
        return;
    }
    let link = LinkConfig {
        // Equal guests get equal frames.
        seed: 0,
        listens: hub.settings.listens.clone(),
        boot_ns: hub.settings.boot_timeout.as_nanos() as u64,
        ..LinkConfig::default()
    };
    let Some(port) = Port::new(hub, me, core.config.realtime_ns, link) else {
        let text = format!("there is no place for replica {me}");
        return hub.failed(Failure::new(ExitCode::Internal, text));
    };
    let port = Arc::new(port);
    recovery::life::live(hub, &port, guest, &|| build(me));
}

impl RelaxedHandle {
    /// Gives all replicas what somebody types at their consoles, in its place among all inputs. Waits while the log is full (R10). False:
    /// the set has ended.
    #[must_use]
    pub fn type_in(&self, bytes: &[u8]) -> bool {
        loop {
            let Some(core) = self.0.upgrade() else {
                return false;
            };
            if core.hub.lock().end.is_some() {
                return false;
            }
            if core.hub.type_in(bytes) {
                return true;
            }
            drop(core);
            std::thread::park_timeout(TICK);
        }
    }

    /// Asks the guest programs to end, or ends the set at once.
    pub fn stop(&self, now: bool) {
        if let Some(core) = self.0.upgrade() {
            core.hub.stop(now, core.config.stop_grace);
        }
    }
}

impl Controlled for RelaxedHandle {
    fn handle(&self, command: Command) -> Reply {
        let Some(core) = self.0.upgrade() else {
            return Reply::Error {
                message: "the set has ended".to_owned(),
            };
        };
        let not_here = |why: &str| Err(format!("not for a relaxed set: {why}"));
        let result = match command {
            Command::Status => Ok(Reply::Status(Box::new(core.status()))),
            Command::Stop { now } => {
                core.hub.stop(now, core.config.stop_grace);
                Ok(Reply::Done)
            }
            Command::Kill { replica } => core.hub.kill(replica).map(|()| Reply::Done),
            Command::Inject {
                replica,
                fault,
                at_boundary,
            } => core.inject(replica, fault, at_boundary).map(Reply::Applied),
            Command::Recover { replica, step } => {
                core.hub.recover(replica, step).map(|()| Reply::Done)
            }
            Command::Add => not_here(
                "how many voters there are is settled when it starts; stop it and start it with another --replicas",
            ),
            Command::Remove { .. } => not_here(
                "how many voters there are is settled when it starts; `quorate kill` stops a replica, and one that was left out stays stopped",
            ),
            Command::Checkpoint { .. } => not_here(
                "its replicas run on their own, and there is no boundary that all of them share and at which it could be saved; each keeps a checkpoint of its own in memory, to recover from",
            ),
        };
        result.unwrap_or_else(|message| Reply::Error { message })
    }
}
