//! From an appliance to a running set: what `quorate run` does, without its command line.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kvm_ioctls::Kvm;
use quorate_images::{Appliance, BuildOptions, BuiltImage, LayoutPolicy, PreparedDisk, Progress};
use quorate_vmm::{
    Checkpoint, DiskConfig, LayoutKind, Machine, MachineConfig, Mount, ProgramSpec, StartTime,
    open_kvm,
};
use quorate_voter::{Config as VoterConfig, MAX_REPLICAS};

use crate::console::Console;
use crate::disks::Disks;
use crate::egress::{Egress, Tap};
use crate::events::{End, EventSink, NoQuorum};
use crate::exit::{ExitCode, Failure};
use crate::gateway::{Gateway, GatewayConfig, GatewayError, Ingress, Publish};
use crate::journal::{self, realtime_ns};
use crate::kernel;
use crate::machine::{KvmVcpu, failure};
use crate::record::{Observing, Recorder};
use crate::recovery::{Lineage, Observer, RecoveryConfig, Unobserved};
use crate::save::{Context, Original, Resume, SavedSet};
use crate::scratch::{self, Scratch};
use crate::seeds::{RunSeed, Seed};
use crate::set::{Outside, ReplicaSet, SetConfig, SetHandle, Summary, World};
use crate::store::{Backend, Bounds, Disk, DiskSpec, Notice, OnError};

/// How many times as slow as a quorum a replica may be for a while; with fewer cores than replicas they take turns.
const LAG_FACTOR: u32 = 10;
/// Most faults that are counted for the crash limit.
const MAX_CRASH_LIMIT: u64 = 10_000;
/// Default of [`Options::stop_grace`].
pub const STOP_GRACE: Duration = Duration::from_secs(10);

/// What a disk calls when it has something to say.
pub(crate) type NotifyDisk = Arc<dyn Fn(Notice) + Send + Sync>;

/// What the command line changes of what the appliance says.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Number of replicas.
    pub replicas: Option<u8>,
    /// Layout of the replicas.
    pub layout: Option<LayoutKind>,
    /// Text of the run seed; random if absent.
    pub seed: Option<String>,
    /// Published ports instead of the appliance's, if there are any.
    pub publish: Vec<Publish>,
    /// Guest memory in bytes.
    pub memory: Option<u64>,
    /// What to do without a majority.
    pub no_quorum: Option<NoQuorum>,
    /// Whether a replica that was stopped comes back.
    pub recovery: Option<bool>,
    /// How often each replica takes a checkpoint; zero: never.
    pub checkpoint_interval: Option<Duration>,
    /// How long the guest program may take to end when it is asked to; [`STOP_GRACE`] if absent.
    pub stop_grace: Option<Duration>,
    /// Where images are kept; the default place if absent.
    pub cache_dir: Option<PathBuf>,
    /// Where disks lie that the appliance gives no path; the default place if absent.
    pub state_dir: Option<PathBuf>,
    /// Files of disks, by name, instead of those that the appliance says.
    pub disks: Vec<(String, PathBuf)>,
    /// Linux guests are tried on a host that is not fit for them.
    pub force: bool,
}

/// Everything that is needed to start a set, checked as far as that is possible beforehand.
#[derive(Clone)]
pub struct Plan {
    /// For [`ReplicaSet`].
    pub set: SetConfig,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// What all replicas have in common; the layout seed is each one's own.
    pub machine: MachineConfig,
    /// The image.
    pub image: BuiltImage,
    /// The files of the disks, in the order of their numbers.
    pub disks: Vec<PreparedDisk>,
    /// What the disks may use of memory and space.
    pub disk_bounds: Bounds,
    /// The appliance file, and what is in it.
    pub appliance: (PathBuf, String),
    /// Where the set goes on, if it was saved.
    pub resume: Option<Resume>,
}

/// What sees a set at work.
pub struct Hooks {
    /// Shows events.
    pub events: EventSink,
    /// Takes the guest's console.
    pub console: Arc<Console>,
    /// Sees everything; for tests.
    pub tap: Option<Tap>,
    /// Records everything.
    pub recorder: Option<Arc<Recorder>>,
}

/// A set that runs, with its gateway.
pub struct Running {
    /// The set.
    pub set: ReplicaSet,
    gateway: Arc<Gateway>,
    console: Arc<Console>,
    disks: Arc<Disks>,
    recorder: Option<Arc<Recorder>>,
}

impl Plan {
    /// Works out what to start. Builds the image if it is not there yet, which `progress` follows.
    ///
    /// # Errors
    /// Whatever is wrong with appliance, image or options.
    pub fn new(
        appliance: &Appliance,
        options: &Options,
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<Plan, Failure> {
        let replicas = options.replicas.unwrap_or(appliance.machine.replicas);
        if replicas == 0 || usize::from(replicas) > MAX_REPLICAS {
            let text = format!("{replicas} replicas: a set has 1 to {MAX_REPLICAS}");
            return Err(Failure::new(ExitCode::Usage, text));
        }
        let publish = if options.publish.is_empty() {
            published(appliance)?
        } else {
            options.publish.clone()
        };
        let layout = options.layout.unwrap_or(match appliance.machine.layout {
            LayoutPolicy::Same => LayoutKind::Same,
            LayoutPolicy::Random => LayoutKind::Random,
        });
        let no_quorum = options
            .no_quorum
            .unwrap_or(match appliance.policy.no_quorum {
                quorate_images::NoQuorum::Stop => NoQuorum::Stop,
                quorate_images::NoQuorum::Hold => NoQuorum::Hold,
            });
        let seed = match &options.seed {
            Some(text) => RunSeed::from_text(text),
            None => RunSeed::random().map_err(|error| Failure::new(ExitCode::Host, error))?,
        };
        let memory_bytes = memory(options.memory, appliance)?;
        // Only to save it with the set; a set without can still be started again from its appliance file.
        let text = std::fs::read_to_string(&appliance.path).unwrap_or_default();
        let image = image(appliance, options, progress)?;
        // Only with the image at hand is it known who a user by name is, and what an OCI image runs.
        let appliance = &Appliance {
            program: image.program.clone(),
            ..appliance.clone()
        };
        let disks = disks(appliance, options)?;
        let file = File::open(&image.path).map_err(|error| {
            Failure::new(
                ExitCode::Image,
                format!("{}: cannot open the image: {error}", image.path.display()),
            )
        })?;
        let policy = &appliance.policy;
        let bound = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Ok(Plan {
            set: SetConfig {
                name: appliance.name.clone(),
                voter: VoterConfig {
                    replicas,
                    window_boundaries: policy.window_boundaries,
                    window_bytes: bound(policy.window_bytes),
                    lag_timeout_ns: policy
                        .lag_timeout_ms
                        .saturating_mul(1_000_000)
                        .saturating_mul(u64::from(crate::patience::slowness())),
                    lag_factor: LAG_FACTOR,
                },
                no_quorum,
                stop_grace: options
                    .stop_grace
                    .unwrap_or_else(|| crate::patience::patient(STOP_GRACE)),
                seed,
                layout_mode: match layout {
                    LayoutKind::Same => "same",
                    LayoutKind::Random => "random",
                },
                recovery: recovery(appliance, options),
                start_ns: 0,
            },
            publish,
            machine: MachineConfig {
                kernel: kernel::load()?,
                image: Some(Arc::new(file)),
                memory_bytes,
                layout,
                layout_seed: seed.layout(0, 0),
                input_seed: seed.input(),
                program: program(appliance),
                disks: disks
                    .iter()
                    .map(|disk| DiskConfig {
                        bytes: disk.bytes,
                        read_only: disk.read_only,
                        id: disk.name.clone(),
                        sync: false,
                    })
                    .collect(),
                start: StartTime {
                    monotonic_ns: 0,
                    realtime_ns: realtime_ns(),
                },
            },
            image,
            disks,
            disk_bounds: Bounds::default(),
            appliance: (appliance.path.clone(), text),
            resume: None,
        })
    }

    /// The layout seed of a replica at its start.
    pub fn layout_seed(&self, replica: usize) -> Seed {
        self.layout_seed_of(Lineage::first(replica))
    }

    /// The layout seed of a lineage. With one layout for all, nothing of it may differ (R8).
    pub fn layout_seed_of(&self, lineage: Lineage) -> Seed {
        match self.machine.layout {
            LayoutKind::Same => self.set.seed.layout(0, 0),
            LayoutKind::Random => self.set.seed.layout(lineage.replica, lineage.generation),
        }
    }

    /// Makes the machine of a replica.
    ///
    /// # Errors
    /// See [`failure`].
    pub fn build(&self, kvm: &Kvm, replica: usize, layout_seed: Seed) -> Result<KvmVcpu, Failure> {
        let config = MachineConfig {
            layout_seed,
            ..self.machine.clone()
        };
        let machine = Machine::new(kvm, &config).map_err(|error| failure(&error))?;
        Ok(KvmVcpu::new(machine, replica))
    }

    /// Makes the machine of a replica, and puts it to where the set was saved: in the layout that replica `of` had there.
    fn build_at(
        &self,
        kvm: &Kvm,
        replica: usize,
        from: &Resume,
        of: usize,
    ) -> Result<KvmVcpu, Failure> {
        let checkpoint = from.checkpoint(of).ok_or_else(|| {
            Failure::new(
                ExitCode::Internal,
                "nothing was saved of any replica".to_owned(),
            )
        })?;
        let mut vcpu = self.build(kvm, replica, checkpoint.layout_seed())?;
        vcpu.begin_at(checkpoint, from.wait_until_ns)
            .map_err(|error| failure(&error))?;
        Ok(vcpu)
    }

    pub(crate) fn saving(
        &self,
        disks: &Arc<Disks>,
        gateway_port: Box<dyn Fn() -> u16 + Send + Sync>,
    ) -> Context {
        let recovery = &self.set.recovery;
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Context {
            set: SavedSet {
                appliance_path: self.appliance.0.clone(),
                appliance: self.appliance.1.clone(),
                image: blake3::Hash::from_bytes(self.image.digest)
                    .to_hex()
                    .to_string(),
                kernel: blake3::hash(&self.machine.kernel).to_hex().to_string(),
                seed: self.set.seed.to_string(),
                replicas: self.set.voter.replicas,
                layout: self.machine.layout,
                memory_bytes: self.machine.memory_bytes,
                publish: self.publish.clone(),
                recovery: recovery.enabled,
                checkpoint_interval_ms: recovery.checkpoint_interval.map_or(0, ms),
                stop_grace_ms: ms(self.set.stop_grace),
                hold: self.set.no_quorum == NoQuorum::Hold,
            },
            disks: self
                .disks
                .iter()
                .map(|disk| Original {
                    name: disk.name.clone(),
                    path: disk.path.clone(),
                    bytes: disk.bytes,
                    read_only: disk.read_only,
                })
                .collect(),
            gateway_port,
            at_work: Arc::clone(disks),
        }
    }

    pub(crate) fn open_disks(&self, notify: &NotifyDisk, recorded: bool) -> Result<Disks, Failure> {
        let open = |(number, disk): (usize, &PreparedDisk)| {
            let spec = DiskSpec {
                name: disk.name.clone(),
                path: disk.path.clone(),
                bytes: disk.bytes,
                read_only: disk.read_only,
                on_error: match disk.on_error {
                    quorate_images::appliance::OnError::Stop => OnError::Stop,
                    quorate_images::appliance::OnError::Report => OnError::Report,
                },
                replicas: self.set.voter.replicas.into(),
                // A recording needs the data of reads, as a replica does that begins again.
                recoverable: recorded || self.set.recovery.enabled,
                bounds: self.disk_bounds.clone(),
            };
            // An appliance has at most `MAX_DISKS`.
            Disk::open(number as u8, spec, Backend::Auto, Arc::clone(notify))
                .map_err(|error| Failure::new(ExitCode::Disk, error))
        };
        let disks: Result<Vec<_>, _> = self.disks.iter().enumerate().map(open).collect();
        let disks = Disks::new(disks?);
        if let Some(from) = &self.resume {
            disks
                .begin_at(&from.positions)
                .map_err(|error| Failure::new(ExitCode::Disk, error))?;
        }
        Ok(disks)
    }

    /// Copies of the disks as they are now, for a machine that runs alone ([`crate::replay`]). Costs space for what is on
    /// them; holes stay holes.
    ///
    /// # Errors
    /// When a disk cannot be read or there is no space for the copy.
    pub fn scratch(&self) -> Result<Scratch, Failure> {
        let copy = |disk: &PreparedDisk| {
            scratch::copy(&disk.path).map(Arc::new).map_err(|error| {
                let text = format!("{}: cannot be copied: {error}", disk.path.display());
                Failure::new(ExitCode::Disk, text)
            })
        };
        let copies: Result<Vec<_>, _> = self.disks.iter().map(copy).collect();
        Ok(Scratch::new(copies?))
    }

    /// Binds the published ports and starts the set.
    ///
    /// # Errors
    /// When the host has no KVM, a port is taken, or the set cannot be started. A machine that cannot be built is
    /// reported by [`Running::wait`].
    pub fn start(self, hooks: Hooks) -> Result<Running, Failure> {
        let kvm = open_kvm().map_err(|error| failure(&error))?;
        let handle: Arc<OnceLock<SetHandle>> = Arc::default();
        let notify = {
            let handle = Arc::clone(&handle);
            Arc::new(move || {
                if let Some(set) = handle.get() {
                    set.input_arrived();
                }
            })
        };
        let disks = {
            let handle = Arc::clone(&handle);
            let notify: NotifyDisk = Arc::new(move |notice| {
                if let Some(set) = handle.get() {
                    set.disk_notice(notice);
                }
            });
            Arc::new(self.open_disks(&notify, hooks.recorder.is_some())?)
        };
        let gateway = GatewayConfig {
            publish: self.publish.clone(),
            first_port: self.resume.as_ref().map_or(0, |from| from.gateway_port),
            ..GatewayConfig::default()
        };
        let gateway = Arc::new(Gateway::start(gateway, notify).map_err(gateway_failure)?);
        let console = Arc::clone(&hooks.console);
        let world = World {
            ingress: Arc::new(FromGateway(gateway.ingress())),
            egress: Box::new(ToWorld {
                gateway: Arc::clone(&gateway),
                console: Arc::clone(&console),
            }),
            disks: Arc::clone(&disks),
            events: hooks.events,
            tap: both(
                hooks.tap,
                hooks
                    .recorder
                    .as_ref()
                    .map(|to| to.tap(Arc::clone(&disks) as _)),
            ),
            outside: {
                let (gateway, console) = (Arc::clone(&gateway), Arc::clone(&console));
                Box::new(move || outside(&gateway, &console))
            },
        };
        let config = self.set.clone();
        let context = {
            // Nothing may hold on to the gateway: its owner ends it.
            let gateway = Arc::downgrade(&gateway);
            let port = move || {
                let gateway = gateway.upgrade();
                gateway.map_or(0, |gateway| gateway.stats().next_port)
            };
            self.saving(&disks, Box::new(port))
        };
        let copies = self
            .resume
            .as_ref()
            .map(|from| from.copies(self.set.voter.replicas.into()));
        let observer: Arc<dyn Observer<Checkpoint>> = match &hooks.recorder {
            Some(recorder) => Arc::new(Observing(Arc::clone(recorder))),
            None => Arc::new(Unobserved),
        };
        let build = move |me, lineage: Lineage| match &self.resume {
            None => self.build(&kvm, me, self.layout_seed_of(lineage)),
            Some(from) => self.build_at(&kvm, me, from, lineage.replica),
        };
        let set = ReplicaSet::start_observed(config, world, build, observer)?;
        set.can_be_saved(context);
        for (replica, of) in copies.unwrap_or_default() {
            set.note(format!(
                "replica {replica} begins with the state of replica {of}: it did not vote when the set was saved"
            ));
        }
        // Frames that came before this are seen when the first replica looks for input.
        let _ = handle.set(set.handle());
        set.input_arrived();
        if let Some(recorder) = &hooks.recorder {
            let told = set.handle();
            recorder.on_failure(Box::new(move |text| told.note(text)));
        }
        Ok(Running {
            set,
            gateway,
            console,
            disks,
            recorder: hooks.recorder,
        })
    }
}

/// One tap that is both.
pub(crate) fn both(first: Option<Tap>, second: Option<Tap>) -> Option<Tap> {
    match (first, second) {
        (Some(mut first), Some(mut second)) => Some(Box::new(move |item| {
            first(item);
            second(item);
        })),
        (first, second) => first.or(second),
    }
}

impl Running {
    /// Published ports with the addresses that they are really at.
    pub fn addresses(&self) -> Vec<(Publish, std::net::SocketAddr)> {
        self.gateway.addresses()
    }

    /// Waits until the set has ended, what it released has been passed on, and everything is closed.
    pub fn wait(self) -> Summary {
        let mut summary = self.set.wait();
        summary.recorded = self.recorder.as_ref().map(|recorder| recorder.finish());
        // The guest's last flush is long done; this is for what it wrote after that.
        if let Err(error) = self.disks.close()
            && summary.end.exit_code() == ExitCode::Success
        {
            summary.end = End::Failed {
                code: ExitCode::Disk,
                detail: error.to_string(),
            };
        }
        // The set's own references are gone with its threads. If one was left behind, the process's end closes the rest.
        if let Some(gateway) = Arc::into_inner(self.gateway) {
            gateway.stop();
        }
        self.console.finish();
        summary
    }
}

/// How often a replica takes a checkpoint, unless something else is asked for.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(250);
/// The same of a Linux machine: a whole system writes to many more pages in any second.
const LINUX_CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5);

pub(crate) fn recovery(appliance: &Appliance, options: &Options) -> RecoveryConfig {
    let given = &appliance.recovery;
    let usual = match appliance.linux {
        Some(_) => LINUX_CHECKPOINT_INTERVAL,
        None => CHECKPOINT_INTERVAL,
    };
    let named = given.checkpoint_interval_ms.map(Duration::from_millis);
    let interval = options.checkpoint_interval.or(named).unwrap_or(usual);
    let count = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    RecoveryConfig {
        enabled: options.recovery.unwrap_or(given.enabled),
        checkpoint_interval: Some(interval).filter(|interval| !interval.is_zero()),
        checkpoint_journal: given.checkpoint_journal.max(1),
        history: given.history,
        keep: count(given.keep),
        // Its times are kept one by one (R10).
        crash_limit: count(given.crash_limit.min(MAX_CRASH_LIMIT)),
        crash_window: Duration::from_secs(given.crash_window_s),
    }
}

pub(crate) fn published(appliance: &Appliance) -> Result<Vec<Publish>, Failure> {
    let parse = |text: &String| {
        text.parse().map_err(|error| {
            let path = appliance.path.display();
            Failure::new(
                ExitCode::Appliance,
                format!("{path}: key `publish` in [network]: {error}"),
            )
        })
    };
    appliance.network.publish.iter().map(parse).collect()
}

pub(crate) fn memory(given: Option<u64>, appliance: &Appliance) -> Result<u64, Failure> {
    use quorate_abi::map::{MAX_RAM, MIN_RAM};
    const UNIT: u64 = 2 << 20;
    let (bytes, code, origin) = match given {
        Some(bytes) => (bytes, ExitCode::Usage, "--memory".to_owned()),
        None => {
            let origin = format!("{}: key `memory` in [machine]", appliance.path.display());
            (appliance.machine.memory, ExitCode::Appliance, origin)
        }
    };
    let size = quorate_images::size::format;
    let problem = if bytes < MIN_RAM {
        format!(
            "too little memory, the guest needs at least {}",
            size(MIN_RAM)
        )
    } else if bytes > MAX_RAM {
        format!("too much memory, at most {} are possible", size(MAX_RAM))
    } else if !bytes.is_multiple_of(UNIT) {
        "memory must be a multiple of 2M".to_owned()
    } else {
        return Ok(bytes);
    };
    Err(Failure::new(
        code,
        format!("{origin}: {}: {problem}", size(bytes)),
    ))
}

pub(crate) fn image(
    appliance: &Appliance,
    options: &Options,
    progress: &dyn Fn(Progress<'_>),
) -> Result<BuiltImage, Failure> {
    let cache_dir = options
        .cache_dir
        .clone()
        .unwrap_or_else(quorate_images::default_cache_dir);
    let build = BuildOptions {
        cache_dir,
        update: false,
        progress,
    };
    quorate_images::build(appliance, &build).map_err(|error| Failure::new(ExitCode::Image, error))
}

pub(crate) fn disks(
    appliance: &Appliance,
    options: &Options,
) -> Result<Vec<PreparedDisk>, Failure> {
    let failed = |error| Failure::new(ExitCode::Disk, error);
    if appliance.disks.is_empty() && options.disks.is_empty() {
        return Ok(Vec::new());
    }
    let mut appliance = appliance.clone();
    for (name, path) in &options.disks {
        match appliance.disks.iter_mut().find(|disk| disk.name == *name) {
            Some(disk) => {
                disk.path = Some(std::path::absolute(path).unwrap_or_else(|_| path.clone()))
            }
            None => {
                let names: Vec<_> = appliance.disks.iter().map(|d| d.name.as_str()).collect();
                let text = format!("--disk {name}: the appliance has no such disk, only {names:?}");
                return Err(Failure::new(ExitCode::Usage, text));
            }
        }
    }
    let all_have_paths = appliance.disks.iter().all(|disk| disk.path.is_some());
    let state_dir = match &options.state_dir {
        Some(path) => path.clone(),
        None if all_have_paths => PathBuf::new(),
        None => quorate_images::disks::default_state_dir().map_err(failed)?,
    };
    quorate_images::disks::prepare(&appliance, &state_dir).map_err(failed)
}

pub(crate) fn program(appliance: &Appliance) -> ProgramSpec {
    let program = &appliance.program;
    ProgramSpec {
        argv: program.command.clone(),
        envp: program
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        cwd: program.cwd.clone(),
        hostname: appliance.hostname().to_owned(),
        uid: program.uid,
        gid: program.gid,
        groups: program.gids.clone(),
        mounts: appliance
            .mounts()
            .into_iter()
            .map(|mount| Mount {
                target: mount.target,
                kind: mount.kind.to_owned(),
                source: mount.source,
                options: mount.options,
            })
            .collect(),
    }
}

pub(crate) fn gateway_failure(error: GatewayError) -> Failure {
    let code = match error {
        GatewayError::InUse { .. }
        | GatewayError::NoPermission { .. }
        | GatewayError::NoSuchAddress { .. }
        | GatewayError::Bind { .. } => ExitCode::Port,
        GatewayError::TooManyPublished(_) | GatewayError::MaxConnections(_) => ExitCode::Usage,
        _ => ExitCode::Host,
    };
    Failure::new(code, error)
}

fn outside(gateway: &Gateway, console: &Console) -> Outside {
    Outside {
        connections: gateway.stats().connections,
        published: gateway
            .addresses()
            .iter()
            .map(|(publish, at)| describe(publish, at))
            .collect(),
        console_dropped: console.dropped(),
    }
}

/// One published port for people.
pub fn describe(publish: &Publish, at: &std::net::SocketAddr) -> String {
    format!("{at} -> {}/{}", publish.guest_port, publish.protocol)
}

struct FromGateway(Arc<Ingress>);

impl journal::Ingress for FromGateway {
    fn take(&self, max_frames: usize, max_bytes: usize) -> Vec<Vec<u8>> {
        self.0.take(max_frames, max_bytes)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

struct ToWorld {
    gateway: Arc<Gateway>,
    console: Arc<Console>,
}

impl Egress for ToWorld {
    fn frames(&mut self, frames: Vec<Vec<u8>>) {
        self.gateway.deliver(frames);
    }

    fn console(&mut self, bytes: &[u8]) {
        self.console.put(bytes);
    }
}
