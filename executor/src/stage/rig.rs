//! N machines of one saved set, on which trials are performed one after the other.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use quorate_vmm::{Checkpoint, open_kvm};

use super::berth::{Berth, Origin, Pooled};
use super::pool::Pool;
use super::scratch::Copies;
use super::{Interposer, Limits, Reset, Spun, Stage, Untouched};
use crate::egress::{Egress, Tap};
use crate::events::{EventSink, NoQuorum};
use crate::exit::{ExitCode, Failure};
use crate::gateway::{Gateway, GatewayConfig, Ingress as GatewayIngress, Publish};
use crate::journal::Ingress;
use crate::launch::{NotifyDisk, Plan, both};
use crate::machine::failure;
use crate::record::{Header, Observing, Recorder};
use crate::recovery::{Lineage, Observer, RecoveryConfig, Unobserved};
use crate::set::crew::Crew;
use crate::set::{Outside, ReplicaSet, SetHandle, Summary, World};
use crate::shared::{Finale, Pace, Scene};
use crate::sync::lock;

/// See the module.
pub struct Rig {
    plan: Plan,
    makers: Arc<Makers>,
    copies: Copies,
    berths: Vec<Arc<Berth>>,
    pool: Arc<Pool>,
}

/// What machines are made of.
struct Makers {
    plan: Plan,
    kvm: Kvm,
    origins: Vec<Origin>,
}

/// One trial.
pub struct Play {
    /// Replicas of the set: the first ones of the rig's.
    pub replicas: u8,
    /// Gives the entries.
    pub stage: Arc<dyn Stage>,
    /// Takes what is released.
    pub egress: Box<dyn Egress>,
    /// Sees everything.
    pub tap: Option<Tap>,
    /// Sees events.
    pub events: EventSink,
    /// One per replica; those that are missing do nothing.
    pub interposers: Vec<Box<dyn Interposer>>,
    /// Records the trial.
    pub recorder: Option<Arc<Recorder>>,
    /// Whether a replica that was stopped comes back. Of one alone nobody could say that it is healthy then: its trial shows what the
    /// appliance does without Quorate only if it does not.
    pub recovery: bool,
    /// What ends a replica or the trial.
    pub limits: Limits,
}

impl Play {
    /// Of one trial that nobody looks at: with the default limits, and recovery from two replicas on.
    #[must_use]
    pub fn new(replicas: u8, stage: Arc<dyn Stage>, egress: Box<dyn Egress>) -> Play {
        Play {
            replicas,
            stage,
            egress,
            tap: None,
            events: Box::new(|_| {}),
            interposers: Vec::new(),
            recorder: None,
            recovery: replicas > 1,
            limits: Limits::default(),
        }
    }
}

/// Who takes part in a trial: as in [`Play`].
pub struct Cast {
    /// Replicas of the set: the first ones of the rig's.
    pub replicas: u8,
    /// Sees everything.
    pub tap: Option<Tap>,
    /// Sees events.
    pub events: EventSink,
    /// One per replica; those that are missing do nothing.
    pub interposers: Vec<Box<dyn Interposer>>,
    /// Records the trial.
    pub recorder: Option<Arc<Recorder>>,
    /// Whether a replica that was stopped comes back.
    pub recovery: bool,
}

/// What a client does in a trial in real time: it is given the addresses of the published ports, and the set.
pub type LiveClient<'c> = dyn FnMut(&[(Publish, SocketAddr)], &ReplicaSet) + 'c;

/// What became of a trial.
#[derive(Clone, Debug)]
pub struct Performed {
    /// Of the set: how it ended, its status with the last events, how long it ran. A stage that is over ends it as
    /// [`crate::events::End::Stopped`].
    pub summary: Summary,
    /// What putting the machines back cost before.
    pub reset: Reset,
    /// No replica reached this boundary within [`Limits::spin`] or [`Limits::stall`]: the set was ended.
    pub spun: Option<Spun>,
    /// The stage was over: the trial came to its end.
    pub over: bool,
    /// What the trial left on the disks.
    pub disks: Vec<DiskContent>,
    /// How long it took in all, with putting the machines back.
    pub took: Duration,
}

/// What a trial left on a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskContent {
    /// The extents that were written, ascending and apart: byte offset, and what is there now.
    pub written: Vec<(u64, Vec<u8>)>,
}

/// First local port of the gateway in a trial in real time.
const LIVE_FIRST_PORT: u16 = 40_000;
/// Entries of a trial that are kept for replicas that come back (R10): with more, the checkpoint at boundary 0 is given up.
const HISTORY_BYTES: u64 = 1 << 30;
/// Faults of one replica in a trial after which it is left out.
const CRASH_LIMIT: usize = 4;

impl Rig {
    /// Makes the machines of the first `replicas` replicas of a saved set. Its disks are copied into memory: the files stay as they
    /// are.
    ///
    /// # Errors
    /// When the plan does not go on from a saved set, or the host cannot do it.
    pub fn new(mut plan: Plan, replicas: u8) -> Result<Rig, Failure> {
        let resume = plan.resume.as_ref().ok_or_else(|| {
            Failure::new(
                ExitCode::Internal,
                "a rig needs a saved set to begin with".to_owned(),
            )
        })?;
        let origin = |replica| {
            resume.checkpoint(replica).map(|checkpoint| Origin {
                checkpoint: checkpoint.clone(),
                wait_until_ns: resume.wait_until_ns,
            })
        };
        let count = usize::from(replicas);
        let origins: Option<Vec<Origin>> = (0..count).map(origin).collect();
        let origins = origins
            .filter(|all| !all.is_empty())
            .ok_or_else(|| Failure::new(ExitCode::Internal, "a rig of no replicas".to_owned()))?;
        let start_ns = resume.monotonic_ns;
        let disks: Vec<_> = plan
            .disks
            .iter()
            .map(|disk| (disk.path.clone(), disk.bytes, disk.read_only))
            .collect();
        let copies = Copies::new(&disks)?;
        for (disk, path) in plan.disks.iter_mut().zip(copies.paths()) {
            disk.path = path.to_owned();
        }
        let limit = plan.set.recovery.crash_limit.min(CRASH_LIMIT);
        plan.set.recovery = RecoveryConfig {
            // Only the one that it begins with is kept: whether another is due depends on real time.
            checkpoint_interval: None,
            checkpoint_journal: u64::MAX,
            history: HISTORY_BYTES,
            crash_limit: limit,
            crash_window: Duration::from_secs(3600),
            ..plan.set.recovery.clone()
        };
        plan.set.no_quorum = NoQuorum::Stop;
        plan.set.start_ns = start_ns;
        let kvm = open_kvm().map_err(|error| failure(&error))?;
        let rig = Rig {
            makers: Arc::new(Makers {
                plan: plan.clone(),
                kvm,
                origins,
            }),
            plan,
            copies,
            berths: berths(count),
            pool: Arc::new(Pool::new(count)?),
        };
        rig.build_all()?;
        Ok(rig)
    }

    /// Replicas that there are machines for.
    #[must_use]
    pub fn replicas(&self) -> u8 {
        // As many as `new` was asked for.
        self.berths.len() as u8
    }

    /// The header of a recording of a trial with so many replicas: for [`Play::recorder`].
    #[must_use]
    pub fn header(&self, replicas: u8) -> Header {
        let mut plan = self.makers.plan.clone();
        plan.set.voter.replicas = replicas;
        Header::of(&plan, &plan.appliance.0)
    }

    /// Builds all machines, each on its own thread, so that the first trial does not have to.
    fn build_all(&self) -> Result<(), Failure> {
        let failed = Arc::<Mutex<Option<Failure>>>::default();
        for (me, berth) in self.berths.iter().enumerate() {
            let (makers, berth) = (Arc::clone(&self.makers), Arc::clone(berth));
            let failed = Arc::clone(&failed);
            let body = move || {
                // It goes to its berth at once.
                if let Err(failure) = makers.machine(&berth, me, Lineage::first(me)) {
                    lock(&failed).get_or_insert(failure);
                }
            };
            self.pool.run(Some(me), Box::new(body))?;
        }
        self.pool.join();
        let failure = lock(&failed).take();
        failure.map_or(Ok(()), Err)
    }

    /// Performs one trial.
    ///
    /// # Errors
    /// When the host fails. What a guest does is no error.
    pub fn perform(&mut self, play: Play) -> Result<Performed, Failure> {
        let Play {
            replicas,
            stage,
            egress,
            tap,
            events,
            interposers,
            recorder,
            recovery,
            limits,
        } = play;
        let pace = Pace::staged(Scene {
            stage,
            limits,
            finale: Finale::End,
        });
        let cast = Cast {
            replicas,
            tap,
            events,
            interposers,
            recorder,
            recovery,
        };
        self.run(
            cast,
            Arc::default(),
            (Arc::new(Nothing), egress),
            pace,
            |_| {},
        )
    }

    /// Performs one trial in real time, with the ordinary gateway: `client` is given the addresses of the published ports and the set,
    /// does what it has to do, and when it comes back the set is ended. Not the same twice.
    ///
    /// # Errors
    /// When the host fails, or a port cannot be bound.
    pub fn perform_live(
        &mut self,
        cast: Cast,
        publish: Vec<Publish>,
        console: Box<dyn Egress>,
        client: &mut LiveClient<'_>,
    ) -> Result<Performed, Failure> {
        let handle: Arc<OnceLock<SetHandle>> = Arc::default();
        let notify = {
            let handle = Arc::clone(&handle);
            Arc::new(move || {
                if let Some(set) = handle.get() {
                    set.input_arrived();
                }
            })
        };
        let config = GatewayConfig {
            publish,
            // The guest may still know the connections of the warm-up.
            first_port: LIVE_FIRST_PORT,
            ..GatewayConfig::default()
        };
        let gateway =
            Gateway::start(config, notify).map_err(|error| Failure::new(ExitCode::Port, error))?;
        let gateway = Arc::new(gateway);
        let addresses = gateway.addresses();
        let world: (Arc<dyn Ingress>, Box<dyn Egress>) = (
            Arc::new(FromGateway(gateway.ingress())),
            Box::new(ToGateway {
                gateway: Arc::clone(&gateway),
                console,
            }),
        );
        let done = self.run(cast, handle, world, Pace::Live, |set| {
            client(&addresses, set);
            set.stop(true);
        });
        if let Some(gateway) = Arc::into_inner(gateway) {
            gateway.stop();
        }
        done
    }

    fn run(
        &mut self,
        cast: Cast,
        handle: Arc<OnceLock<SetHandle>>,
        (ingress, egress): (Arc<dyn Ingress>, Box<dyn Egress>),
        pace: Pace,
        during: impl FnOnce(&ReplicaSet),
    ) -> Result<Performed, Failure> {
        let Cast {
            replicas,
            tap,
            events,
            interposers,
            recorder,
            recovery,
        } = cast;
        let begun = Instant::now();
        let count = usize::from(replicas);
        if count == 0 || count > self.berths.len() {
            let text = format!(
                "a trial with {replicas} replicas on a rig of {}",
                self.berths.len()
            );
            return Err(Failure::new(ExitCode::Internal, text));
        }
        let mut interposers = interposers.into_iter();
        for berth in &self.berths[..count] {
            berth.begin(interposers.next().unwrap_or_else(|| Box::new(Untouched)));
        }
        self.plan.set.voter.replicas = replicas;
        self.plan.set.recovery.enabled = recovery;
        let notify: NotifyDisk = {
            let handle = Arc::clone(&handle);
            Arc::new(move |notice| {
                if let Some(set) = handle.get() {
                    set.disk_notice(notice);
                }
            })
        };
        let disks = Arc::new(self.plan.open_disks(&notify, recorder.is_some())?);
        let recording = recorder
            .as_ref()
            .map(|to| to.tap(Arc::clone(&disks) as Arc<_>));
        let world = World {
            ingress,
            egress,
            disks: Arc::clone(&disks),
            events,
            tap: both(both(tap, recording), self.copies.tap()),
            outside: Box::new(Outside::default),
        };
        let observer: Arc<dyn Observer<Checkpoint>> = match &recorder {
            Some(recorder) => Arc::new(Observing(Arc::clone(recorder))),
            None => Arc::new(Unobserved),
        };
        let build = {
            let (makers, berths) = (Arc::clone(&self.makers), self.berths.clone());
            move |me: usize, lineage: Lineage| {
                let berth = berths.get(me).ok_or_else(|| {
                    Failure::new(ExitCode::Internal, "no place for this replica".to_owned())
                })?;
                makers.machine(berth, me, lineage)
            }
        };
        let crew = Arc::clone(&self.pool) as Arc<_>;
        let config = self.plan.set.clone();
        let set = ReplicaSet::start_paced(config, world, build, observer, pace, crew)?;
        let _ = handle.set(set.handle());
        // What a disk said before there was a handle is looked at now.
        set.input_arrived();
        during(&set);
        let (mut summary, came, whole) = set.wait_staged();
        summary.recorded = recorder.as_ref().map(|recorder| recorder.finish());
        let reset = self.reset(count);
        let closed = disks.close();
        if !whole {
            // A thread hangs with its machine. They are left behind.
            self.pool.abandon();
            self.berths = berths(self.berths.len());
            self.pool = Arc::new(Pool::new(self.berths.len())?);
            self.copies.renew().map_err(of_disks)?;
        }
        let disks = match closed {
            Ok(()) => self.copies.put_back().map_err(of_disks)?,
            Err(error) => {
                self.copies.renew().map_err(of_disks)?;
                return Err(Failure::new(ExitCode::Disk, error));
            }
        };
        Ok(Performed {
            summary,
            reset,
            spun: came.spun,
            over: came.over,
            disks,
            took: begun.elapsed(),
        })
    }

    fn reset(&self, count: usize) -> Reset {
        let mut all = Reset::default();
        for reset in self.berths[..count].iter().map(|berth| berth.reset()) {
            all.micros = all.micros.max(reset.micros);
            all.compared_pages += reset.compared_pages;
            all.pages += reset.pages;
            all.forgot += reset.forgot;
            all.built += reset.built;
        }
        all
    }
}

impl Makers {
    /// The machine of a replica, where the trial begins; in another's layout for one that is to be a copy of it.
    fn machine(&self, berth: &Arc<Berth>, me: usize, lineage: Lineage) -> Result<Pooled, Failure> {
        let origin = self.origins.get(lineage.replica).ok_or_else(|| {
            Failure::new(ExitCode::Internal, "no such replica was saved".to_owned())
        })?;
        let build = || {
            let seed = origin.checkpoint.layout_seed();
            self.plan.build(&self.kvm, me, seed)
        };
        if lineage.replica == me {
            berth.take(origin, build)
        } else {
            berth.borrow(origin, build)
        }
    }
}

fn berths(count: usize) -> Vec<Arc<Berth>> {
    (0..count).map(|_| Arc::default()).collect()
}

fn of_disks(error: std::io::Error) -> Failure {
    Failure::new(
        ExitCode::Disk,
        format!("the copies of the disks cannot be put back: {error}"),
    )
}

/// The frames of the clients.
struct FromGateway(Arc<GatewayIngress>);

impl Ingress for FromGateway {
    fn take(&self, max_frames: usize, max_bytes: usize) -> Vec<Vec<u8>> {
        self.0.take(max_frames, max_bytes)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

struct ToGateway {
    gateway: Arc<Gateway>,
    console: Box<dyn Egress>,
}

impl Egress for ToGateway {
    fn frames(&mut self, frames: Vec<Vec<u8>>) {
        self.gateway.deliver(frames);
    }

    fn console(&mut self, bytes: &[u8]) {
        self.console.console(bytes);
    }
}

/// No frames but the stage's.
pub(super) struct Nothing;

impl Ingress for Nothing {
    fn take(&self, _: usize, _: usize) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn is_empty(&self) -> bool {
        true
    }
}
