//! From an appliance to a running relaxed set.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::Kvm;
use quorate_images::appliance::{
    GuestPort, MaskRule as ApplianceRule, MaskSpec, OnDifference, Role as ApplianceRole, SyncChannel, VersionPolicy,
};
use quorate_images::{Appliance, BuiltImage, Progress};
use quorate_vmm::{LayoutKind, Machine, MachineConfig, StartTime, open_kvm};
use quorate_voter::relaxed::{
    Mask, MaskRule, MaskSet, Policy, Role, StreamLimits, Voters,
};
use quorate_voter::{MAX_REPLICAS, ReplicaId};

use super::front::Front;
use super::guest::{EmbeddedGuest, Guest};
use super::hub::{Hub, LOG_BYTES, Settings};
use super::set::{Config, RelaxedSet};
use crate::console::Console;
use crate::events::{EventLog, EventSink, NoQuorum};
use crate::exit::{ExitCode, Failure};
use crate::gateway::Publish;
use crate::journal::realtime_ns;
use crate::kernel;
use crate::launch::{self, Options, STOP_GRACE};
use crate::machine::{KvmVcpu, failure};
use crate::seeds::{self, RunSeed};

/// What one replica runs.
pub struct ReplicaPlan {
    /// Its name, for messages; empty if the appliance gives it none.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Its machine; the layout seed is drawn later.
    pub machine: MachineConfig,
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
    /// What may differ on the console.
    pub console_mask: Option<MaskSet>,
    /// When a laggard is stopped.
    pub lag_timeout: Duration,
    /// Bytes of input that may wait.
    pub log_bytes: usize,
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
        if appliance.linux.is_some() {
            return Err(Failure::new(
                ExitCode::Appliance,
                "Linux appliances are not supported yet",
            ));
        }
        if !appliance.disks.is_empty() {
            return Err(Failure::new(
                ExitCode::Appliance,
                "disks of relaxed sets are not supported yet",
            ));
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
        let kernel = kernel::load()?;
        let start = StartTime {
            monotonic_ns: 0,
            realtime_ns: realtime_ns(),
        };
        let mut plans = Vec::new();
        for me in 0..usize::from(replicas) {
            let own = appliance.replica(me);
            let image = launch::image(&own, options, progress)?;
            let own = Appliance {
                program: image.program.clone(),
                ..own
            };
            let file = File::open(&image.path).map_err(|error| {
                let path = image.path.display();
                let text = format!("{path}: cannot open the image: {error}");
                Failure::new(ExitCode::Image, text)
            })?;
            let machine = MachineConfig {
                kernel: Arc::clone(&kernel),
                image: Some(Arc::new(file)),
                memory_bytes: launch::memory(options.memory, &own)?,
                layout,
                layout_seed: seed.layout(0, 0),
                input_seed: seed.input(),
                program: launch::program(&own),
                disks: Vec::new(),
                start,
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
        let primary = plans.iter().position(|plan| plan.role == Role::Primary);
        let policy = match (relaxed.policy, primary) {
            (VersionPolicy::PrimaryWithFallback, Some(primary)) => Policy::Primary {
                replica: ReplicaId(primary as u8),
            },
            (VersionPolicy::PrimaryWithFallback, None) => {
                let text = "policy primary-with-fallback needs a [[replica]] with role = \"primary\"";
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
            let ports = publish.iter().filter(move |publish| {
                (publish.protocol == crate::gateway::Protocol::Udp) == udp
            });
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
        let window = usize::try_from(appliance.policy.window_bytes).unwrap_or(LOG_BYTES);
        Ok(RelaxedPlan {
            name: appliance.name.clone(),
            seed,
            layout,
            publish,
            replicas: plans,
            policy,
            stop_who_differs: relaxed.difference == OnDifference::Stop,
            patience: Duration::from_millis(relaxed.patience_ms),
            sync: sync.collect(),
            masks: tcp_masks,
            udp_masks,
            console_mask: masks(appliance, |mask| mask.console)?,
            lag_timeout: Duration::from_millis(appliance.policy.lag_timeout_ms),
            log_bytes: window,
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
            console_mask: self.console_mask.clone(),
            sync: self.sync.clone(),
            stop_who_differs: self.stop_who_differs,
            patience: self.patience,
            lag_timeout: self.lag_timeout,
            log_bytes: self.log_bytes,
            no_quorum: self.no_quorum,
        };
        let hub = Hub::new(settings, Arc::new(EventLog::new(events)), console);
        if let Some(path) = &self.differences {
            hub.write_differences(path).map_err(|error| {
                let text = format!("--differences {}: {error}", path.display());
                Failure::new(ExitCode::Usage, text)
            })?;
        }
        let front = Front::start(&hub, &self.publish).map_err(launch::gateway_failure)?;
        let realtime = self.replicas.first().map(|plan| plan.machine.start.realtime_ns);
        let config = Config {
            name: self.name.clone(),
            seed: self.seed,
            layout_mode: self.layout_mode(),
            stop_grace: self.stop_grace,
            realtime_ns: realtime.unwrap_or_default(),
        };
        RelaxedSet::start(hub, config, front, move |me| self.build(&kvm, me))
    }

    /// Makes the guest of a replica.
    fn build(&self, kvm: &Kvm, me: usize) -> Result<Box<dyn Guest>, Failure> {
        let Some(plan) = self.replicas.get(me) else {
            let text = format!("there is no plan for replica {me}");
            return Err(Failure::new(ExitCode::Internal, text));
        };
        let layout_seed = match self.layout {
            LayoutKind::Same => self.seed.layout(0, 0),
            LayoutKind::Random => self.seed.layout(me, 0),
        };
        let config = MachineConfig {
            layout_seed,
            ..plan.machine.clone()
        };
        let machine = Machine::new(kvm, &config).map_err(|error| failure(&error))?;
        Ok(Box::new(EmbeddedGuest(KvmVcpu::new(machine, me))))
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
