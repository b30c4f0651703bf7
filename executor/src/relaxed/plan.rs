//! From an appliance to a running relaxed set.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::Kvm;
use quorate_images::appliance::{
    ConsoleLines, DiskVote, GuestPort, MaskRule as ApplianceRule, MaskSpec, OnDifference,
    Role as ApplianceRole, SyncChannel, Unconfirmed, VersionPolicy,
};
use quorate_images::{Appliance, BuiltImage, LinuxRoot, Progress};
use quorate_vmm::linux::{LinuxConfig, LinuxConsole, LinuxMachine};
use quorate_vmm::{DiskConfig, LayoutKind, Machine, MachineConfig, StartTime, open_kvm};
use quorate_voter::relaxed::{
    Mask, MaskRule, MaskSet, Policy, Role, StreamLimits, UnconfirmedPolicy, Voters,
};
use quorate_voter::{MAX_REPLICAS, ReplicaId};

use super::disk::{Mode, RelaxedBounds, RelaxedDisk, RelaxedDisks, RelaxedSpec};
use super::front::Front;
use super::guest::{EmbeddedGuest, Guest};
use super::hub::{Hub, LOG_BYTES, Settings};
use super::linux::LinuxGuest;
use super::set::{Config, RelaxedSet};
use crate::console::Console;
use crate::events::{EventLog, EventSink, NoQuorum};
use crate::exit::{ExitCode, Failure};
use crate::gateway::Publish;
use crate::journal::realtime_ns;
use crate::kernel;
use crate::launch::{self, Options, STOP_GRACE};
use crate::machine::{KvmVcpu, failure};
use crate::patience::patient;
use crate::seeds::{self, RunSeed};
use crate::store::OnError;

/// What kind of machine a replica is, and what it is made from.
pub enum Kind {
    /// One with the embedded kernel.
    Embedded(Box<MachineConfig>),
    /// One that boots Linux.
    Linux(Box<LinuxConfig>),
}

/// What one replica runs.
pub struct ReplicaPlan {
    /// Its name, for messages; empty if the appliance gives it none.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Its machine; the layout seed is drawn later.
    pub machine: Kind,
    /// Its image.
    pub image: BuiltImage,
}

/// Everything that is needed to start a relaxed set.
pub struct RelaxedPlan {
    /// Name of the appliance.
    pub name: String,
    /// The run seed.
    pub seed: RunSeed,
    /// How layouts are drawn.
    pub layout: LayoutKind,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// The replicas, in order.
    pub replicas: Vec<ReplicaPlan>,
    /// The disks, in the order of their numbers: one for all replicas, or one for each.
    pub disks: Vec<Vec<RelaxedSpec>>,
    /// What a wall clock shows at the start, ns since 1970.
    pub realtime_ns: u64,
    /// Whose word counts.
    pub policy: Policy,
    /// A voter that differs is stopped.
    pub stop_who_differs: bool,
    /// How long an answer waits for the agreement of the new version.
    pub patience: Duration,
    /// Guest's TCP ports that are `sync`.
    pub sync: Vec<u16>,
    /// What may differ, by TCP port.
    pub masks: HashMap<u16, MaskSet>,
    /// What may differ, by UDP port.
    pub udp_masks: HashMap<u16, MaskSet>,
    /// Lines of single replicas are shown.
    pub console_all: bool,
    /// What may differ on the console.
    pub console_mask: Option<MaskSet>,
    /// TCP ports on which guests that boot by themselves will listen.
    pub listens: Vec<u16>,
    /// How long that may take.
    pub boot_timeout: Duration,
    /// When a laggard is stopped.
    pub lag_timeout: Duration,
    /// Bytes of input that may wait.
    pub log_bytes: usize,
    /// How stopped replicas come back.
    pub recovery: crate::recovery::RecoveryConfig,
    /// Why the guests are not expected to run here, if they are tried all the same.
    pub doubt: Option<String>,
    /// Without a majority.
    pub no_quorum: NoQuorum,
    /// How long programs may take to end.
    pub stop_grace: Duration,
    /// Where differences are written.
    pub differences: Option<PathBuf>,
}

impl RelaxedPlan {
    /// Works out what to start. Builds the images that are not there yet, which `progress` follows.
    ///
    /// # Errors
    /// Whatever is wrong with appliance, images or options.
    pub fn new(
        appliance: &Appliance,
        options: &Options,
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<RelaxedPlan, Failure> {
        let replicas = options.replicas.unwrap_or(appliance.machine.replicas);
        if replicas == 0 || usize::from(replicas) > MAX_REPLICAS {
            let text = format!("{replicas} replicas: a set has 1 to {MAX_REPLICAS}");
            return Err(Failure::new(ExitCode::Usage, text));
        }
        let listed = appliance.replicas.len();
        if listed != 0 && usize::from(replicas) != listed {
            let text = format!(
                "--replicas {replicas}: the appliance lists {listed} with what each of them runs; leave the option out"
            );
            return Err(Failure::new(ExitCode::Usage, text));
        }
        let mut doubt = None;
        if appliance.linux.is_some() {
            let kvm = open_kvm().map_err(|error| failure(&error))?;
            let report = quorate_vmm::probe(&kvm).map_err(|error| failure(&error))?;
            doubt = quorate_vmm::linux::refusal(&report);
        }
        if let Some(refusal) = &doubt
            && !options.force
        {
            let text = format!("{refusal}; --force tries all the same");
            return Err(Failure::new(ExitCode::Host, text));
        }
        let relaxed = appliance.relaxed();
        let seed = match &options.seed {
            Some(text) => RunSeed::from_text(text),
            None => RunSeed::random().map_err(|error| Failure::new(ExitCode::Host, error))?,
        };
        let layout = options.layout.unwrap_or(match appliance.machine.layout {
            quorate_images::LayoutPolicy::Same => LayoutKind::Same,
            quorate_images::LayoutPolicy::Random => LayoutKind::Random,
        });
        let start = StartTime {
            monotonic_ns: 0,
            realtime_ns: realtime_ns(),
        };
        let mut plans: Vec<ReplicaPlan> = Vec::new();
        let mut shared = Vec::new();
        let mut roots = Vec::new();
        for me in 0..usize::from(replicas) {
            let own = appliance.replica(me);
            let image = launch::image(&own, options, progress)?;
            let own = image.settle(&own);
            let layout_seed = match layout {
                LayoutKind::Same => seed.layout(0, 0),
                LayoutKind::Random => seed.layout(me, 0),
            };
            let memory_bytes = launch::memory(options.memory, &own)?;
            if me == 0 {
                shared = disk_specs(appliance, &image, options)?;
            }
            let first = plans.first().map_or(&image, |first| &first.image);
            let root = own_root(appliance, me, &image, first)?;
            let devices = root.iter().chain(&shared).map(|disk| DiskConfig {
                bytes: disk.bytes,
                read_only: disk.read_only,
                id: disk.name.clone(),
                sync: disk.sync,
            });
            let mut devices: Vec<DiskConfig> = devices.collect();
            if let (Some(_), Some(first)) = (&root, devices.first_mut()) {
                // Whatever it is called in reports.
                first.id = "root".to_owned();
            }
            roots.extend(root);
            let machine = match &image.linux {
                None => Kind::Embedded(Box::new(MachineConfig {
                    kernel: kernel::load()?,
                    image: Some(Arc::new(open(&image.path)?)),
                    memory_bytes,
                    layout,
                    layout_seed,
                    input_seed: seed.input(),
                    program: launch::program(&own),
                    disks: devices,
                    start,
                })),
                Some(boot) => Kind::Linux(Box::new(LinuxConfig {
                    kernel: read(&boot.kernel)?,
                    initramfs: boot.initramfs.as_deref().map(read).transpose()?,
                    cmdline: boot.cmdline.clone(),
                    memory_bytes,
                    cpus: boot.cpus,
                    console: match boot.console {
                        quorate_images::appliance::Console::TtyS0 => LinuxConsole::Serial,
                        quorate_images::appliance::Console::Hvc0 => LinuxConsole::Virtio,
                    },
                    layout_seed,
                    input_seed: seed.input(),
                    disks: devices,
                })),
            };
            let named = appliance.replicas.get(me).and_then(|own| own.name.clone());
            plans.push(ReplicaPlan {
                name: named.unwrap_or_default(),
                role: match appliance.role(me) {
                    ApplianceRole::Voter => Role::Voter,
                    ApplianceRole::Primary => Role::Primary,
                    ApplianceRole::Canary => Role::Canary,
                },
                machine,
                image,
            });
        }
        let mut disks: Vec<Vec<RelaxedSpec>> = shared.into_iter().map(|disk| vec![disk]).collect();
        if !roots.is_empty() {
            disks.insert(0, roots);
        }
        let primary = plans.iter().position(|plan| plan.role == Role::Primary);
        let policy = match (relaxed.policy, primary) {
            (VersionPolicy::PrimaryWithFallback, Some(primary)) => Policy::Primary {
                replica: ReplicaId(primary as u8),
            },
            (VersionPolicy::PrimaryWithFallback, None) => {
                let text =
                    "policy primary-with-fallback needs a [[replica]] with role = \"primary\"";
                return Err(Failure::new(ExitCode::Appliance, text));
            }
            (VersionPolicy::Majority | VersionPolicy::Canary, _) => Policy::Majority,
        };
        let publish = match options.publish.is_empty() {
            true => launch::published(appliance)?,
            false => options.publish.clone(),
        };
        let sync = relaxed.sync.iter().filter_map(|channel| match channel {
            SyncChannel::Port(port) if !port.udp => Some(port.number),
            SyncChannel::Port(_) | SyncChannel::Disk(_) => None,
        });
        let ports = |udp: bool| {
            let ports = publish
                .iter()
                .filter(move |publish| (publish.protocol == crate::gateway::Protocol::Udp) == udp);
            let mut sets = HashMap::new();
            for publish in ports {
                let port = GuestPort {
                    number: publish.guest_port,
                    udp,
                };
                if let Some(set) = masks(appliance, |mask| mask.covers(port))? {
                    sets.insert(port.number, set);
                }
            }
            Ok::<_, Failure>(sets)
        };
        let (tcp_masks, udp_masks) = (ports(false)?, ports(true)?);
        let listens = publish
            .iter()
            .filter(|publish| publish.protocol == crate::gateway::Protocol::Tcp)
            .map(|publish| publish.guest_port)
            .collect::<std::collections::BTreeSet<u16>>();
        let (listens, boot_timeout_ms) = match &appliance.linux {
            Some(linux) => (listens.into_iter().collect(), linux.boot_timeout_ms),
            None => (Vec::new(), 0),
        };
        let window = usize::try_from(appliance.policy.window_bytes).unwrap_or(LOG_BYTES);
        Ok(RelaxedPlan {
            name: appliance.name.clone(),
            seed,
            layout,
            publish,
            replicas: plans,
            disks,
            realtime_ns: start.realtime_ns,
            policy,
            stop_who_differs: relaxed.difference == OnDifference::Stop,
            patience: Duration::from_millis(relaxed.patience_ms),
            sync: sync.collect(),
            masks: tcp_masks,
            udp_masks,
            console_all: relaxed.console == ConsoleLines::All,
            console_mask: masks(appliance, |mask| mask.console)?,
            listens,
            boot_timeout: patient(Duration::from_millis(boot_timeout_ms)),
            lag_timeout: patient(Duration::from_millis(appliance.policy.lag_timeout_ms)),
            log_bytes: window,
            recovery: launch::recovery(appliance, options),
            doubt,
            no_quorum: options
                .no_quorum
                .unwrap_or(match appliance.policy.no_quorum {
                    quorate_images::NoQuorum::Stop => NoQuorum::Stop,
                    quorate_images::NoQuorum::Hold => NoQuorum::Hold,
                }),
            stop_grace: options.stop_grace.unwrap_or(STOP_GRACE),
            differences: None,
        })
    }

    /// `same` or `random`.
    #[must_use]
    pub fn layout_mode(&self) -> &'static str {
        match self.layout {
            LayoutKind::Same => "same",
            LayoutKind::Random => "random",
        }
    }

    /// Binds the published ports and starts the set.
    ///
    /// # Errors
    /// When the host has no KVM, a port is taken, or the set cannot be started.
    pub fn start(self, events: EventSink, console: Arc<Console>) -> Result<RelaxedSet, Failure> {
        let kvm = open_kvm().map_err(|error| failure(&error))?;
        let key = seeds::secret().map_err(|error| Failure::new(ExitCode::Host, error))?;
        let roles: Vec<Role> = self.replicas.iter().map(|plan| plan.role).collect();
        let voters = Voters::new(&roles, self.policy, key)
            .map_err(|error| Failure::new(ExitCode::Appliance, error))?;
        let settings = Settings {
            voters,
            names: self.replicas.iter().map(|plan| plan.name.clone()).collect(),
            limits: StreamLimits::default(),
            masks: self.masks.clone(),
            udp_masks: self.udp_masks.clone(),
            console_all: self.console_all,
            console_mask: self.console_mask.clone(),
            sync: self.sync.clone(),
            stop_who_differs: self.stop_who_differs,
            patience: self.patience,
            listens: self.listens.clone(),
            boot_timeout: self.boot_timeout,
            lag_timeout: self.lag_timeout,
            log_bytes: self.log_bytes,
            no_quorum: self.no_quorum,
            recovery: self.recovery.clone(),
            doubt: self.doubt.clone(),
        };
        let hub = Hub::new(settings, Arc::new(EventLog::new(events)), console);
        if let Some(path) = &self.differences {
            hub.write_differences(path).map_err(|error| {
                let text = format!("--differences {}: {error}", path.display());
                Failure::new(ExitCode::Usage, text)
            })?;
        }
        if !self.disks.is_empty() {
            let disks = self.open_disks(&hub)?;
            hub.attach(Arc::new(disks));
        }
        let front = Front::start(&hub, &self.publish).map_err(launch::gateway_failure)?;
        let config = Config {
            name: self.name.clone(),
            seed: self.seed,
            layout_mode: self.layout_mode(),
            stop_grace: self.stop_grace,
            realtime_ns: self.realtime_ns,
        };
        RelaxedSet::start(hub, config, front, move |me| self.build(&kvm, me))
    }

    /// Makes the guest of a replica.
    fn build(&self, kvm: &Kvm, me: usize) -> Result<Box<dyn Guest>, Failure> {
        let Some(plan) = self.replicas.get(me) else {
            let text = format!("there is no plan for replica {me}");
            return Err(Failure::new(ExitCode::Internal, text));
        };
        match &plan.machine {
            Kind::Embedded(config) => {
                let machine = Machine::new(kvm, config).map_err(|error| failure(&error))?;
                Ok(Box::new(EmbeddedGuest::new(KvmVcpu::new(machine, me))))
            }
            Kind::Linux(config) => {
                let machine = LinuxMachine::new(kvm, config).map_err(|error| failure(&error))?;
                let config = config.clone();
                let another = move || {
                    let kvm = open_kvm().map_err(|error| error.to_string())?;
                    LinuxMachine::new(&kvm, &config).map_err(|error| error.to_string())
                };
                Ok(Box::new(LinuxGuest::new(machine, Box::new(another))))
            }
        }
    }

    fn open_disks(&self, hub: &Arc<Hub>) -> Result<RelaxedDisks, Failure> {
        let open = |number: usize, spec: &RelaxedSpec| {
            let told = Arc::downgrade(hub);
            let notify = Arc::new(move |notice| {
                if let Some(hub) = told.upgrade() {
                    hub.disk_notice(notice);
                }
            });
            // An appliance has at most `MAX_DISKS`.
            RelaxedDisk::open(number as u8, spec.clone(), &hub.settings.voters, notify)
                .map_err(|error| Failure::new(ExitCode::Disk, error))
        };
        let mut all = Vec::new();
        for (number, specs) in self.disks.iter().enumerate() {
            let mut opened: Vec<(&Path, Arc<RelaxedDisk>)> = Vec::new();
            let mut disks = Vec::new();
            for spec in specs {
                // Equal images are one file.
                let known = opened.iter().find(|(path, _)| *path == spec.path);
                let disk = match known {
                    Some((_, disk)) => Arc::clone(disk),
                    None => open(number, spec)?,
                };
                opened.push((&spec.path, Arc::clone(&disk)));
                disks.push(disk);
            }
            all.push(disks);
        }
        Ok(RelaxedDisks::new(all))
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|error| {
        let text = format!("{}: cannot open the image: {error}", path.display());
        Failure::new(ExitCode::Image, text)
    })
}

fn read(path: &Path) -> Result<Arc<[u8]>, Failure> {
    let bytes = std::fs::read(path).map_err(|error| {
        let text = format!(
            "{}: cannot read what Linux boots from: {error}",
            path.display()
        );
        Failure::new(ExitCode::Image, text)
    })?;
    Ok(bytes.into())
}

/// The disks that all replicas share. A Linux machine's first one is its root, if that is one of them.
fn disk_specs(
    appliance: &Appliance,
    image: &BuiltImage,
    options: &Options,
) -> Result<Vec<RelaxedSpec>, Failure> {
    let patience = patient(Duration::from_millis(appliance.policy.lag_timeout_ms));
    // A root disk that is new is made from the image.
    let prepared = launch::disks(&image.settle(appliance), options)?;
    let mut specs: Vec<RelaxedSpec> = Vec::new();
    for disk in prepared {
        let given = appliance.disks.iter().find(|given| given.name == disk.name);
        let mode = match given.map(|given| (given.vote(), given.on_unconfirmed())) {
            Some((DiskVote::Private, _)) => Mode::Private,
            Some((DiskVote::Vote, Unconfirmed::Report)) => Mode::Vote(UnconfirmedPolicy::Report),
            Some((DiskVote::Vote, Unconfirmed::Hold)) | None => Mode::Vote(UnconfirmedPolicy::Hold),
        };
        let name_of = disk.name.clone();
        specs.push(RelaxedSpec {
            name: disk.name,
            path: disk.path,
            bytes: disk.bytes,
            read_only: disk.read_only,
            on_error: match disk.on_error {
                quorate_images::appliance::OnError::Stop => OnError::Stop,
                quorate_images::appliance::OnError::Report => OnError::Report,
            },
            sync: mode != Mode::Private
                && !disk.read_only
                && appliance
                    .relaxed()
                    .sync
                    .iter()
                    .any(|channel| matches!(channel, SyncChannel::Disk(name) if *name == name_of)),
            mode,
            patience,
            bounds: RelaxedBounds::default(),
        });
    }
    if let Some(LinuxRoot::Disk(name)) = image.linux.as_ref().map(|boot| &boot.root) {
        let at = specs.iter().position(|disk| disk.name == *name);
        let root = at.map(|at| specs.remove(at)).ok_or_else(|| {
            let text = format!("the root is on disk {name}, which the appliance does not have");
            Failure::new(ExitCode::Appliance, text)
        })?;
        specs.insert(0, root);
    }
    Ok(specs)
}

/// The first disk of a Linux machine whose root is its image: its own, whatever others have. A root that is on a disk of the appliance is
/// one for all, so that all must have the `first` one's image.
fn own_root(
    appliance: &Appliance,
    me: usize,
    image: &BuiltImage,
    first: &BuiltImage,
) -> Result<Option<RelaxedSpec>, Failure> {
    match image.linux.as_ref().map(|boot| &boot.root) {
        None => Ok(None),
        Some(LinuxRoot::Disk(name)) if image.path != first.path => {
            let text = format!(
                "{}: {} has an image of its own, and the root is disk {name}, which is made from one image and is one for all: with `root = \"memory\"` or \"read-only\" in [machine] each has its own",
                appliance.path.display(),
                appliance.replica_name(me)
            );
            Err(Failure::new(ExitCode::Appliance, text))
        }
        Some(LinuxRoot::Disk(_)) => Ok(None),
        Some(LinuxRoot::Image) => {
            let bytes = std::fs::metadata(&image.path).map(|file| file.len());
            let bytes = bytes.map_err(|error| {
                let text = format!("{}: {error}", image.path.display());
                Failure::new(ExitCode::Image, text)
            })?;
            let name = match image.path == first.path {
                true => "root".to_owned(),
                false => format!("root of {}", appliance.replica_name(me)),
            };
            Ok(Some(RelaxedSpec {
                name,
                path: image.path.clone(),
                bytes,
                read_only: true,
                on_error: OnError::Stop,
                mode: Mode::Private,
                sync: false,
                patience: patient(Duration::from_millis(appliance.policy.lag_timeout_ms)),
                bounds: RelaxedBounds::default(),
            }))
        }
    }
}

/// The rules of the appliance that are about one channel; `None` if there are none.
fn masks(
    appliance: &Appliance,
    about: impl Fn(&MaskSpec) -> bool,
) -> Result<Option<MaskSet>, Failure> {
    let masks = appliance.masks.iter().filter(|mask| about(mask));
    let masks: Vec<Mask> = masks
        .map(|mask| Mask {
            name: mask.name.clone().unwrap_or_else(|| match &mask.rule {
                ApplianceRule::HttpHeader(name) => name.clone(),
                ApplianceRule::Pattern(pattern) => pattern.clone(),
            }),
            rule: match &mask.rule {
                ApplianceRule::HttpHeader(name) => MaskRule::HttpHeader(name.clone()),
                ApplianceRule::Pattern(pattern) => MaskRule::Pattern(pattern.clone()),
            },
            translate: mask.translate,
        })
        .collect();
    if masks.is_empty() {
        return Ok(None);
    }
    let set = MaskSet::new(&masks).map_err(|error| Failure::new(ExitCode::Appliance, error))?;
    Ok(Some(set))
}
