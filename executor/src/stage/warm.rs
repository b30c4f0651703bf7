//! From a cold start to where trials begin.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use quorate_vmm::{StartTime, open_kvm};

use super::rig::Nothing;
use super::{EPOCH_NS, Limits, Stage};
use crate::egress::Egress;
use crate::events::NoQuorum;
use crate::exit::{ExitCode, Failure};
use crate::launch::{NotifyDisk, Plan};
use crate::machine::failure;
use crate::recovery::{Lineage, RecoveryConfig, Unobserved};
use crate::save::Saved;
use crate::set::crew::Spawned;
use crate::set::{Outside, ReplicaSet, SetHandle, World};
use crate::shared::{Finale, Pace, Scene};

/// What ends a warm-up in real time: it boots a guest, on a host that may be busy.
const LIMITS: Limits = Limits {
    spin: std::time::Duration::from_secs(30),
    stall: std::time::Duration::from_secs(30),
    wall: std::time::Duration::from_secs(600),
};

/// Starts the set of `plan` cold, on a stage, until that is over; saves it where it stands then. What is saved depends on plan and
/// stage alone: the wall-clock time of the start is [`super::EPOCH_NS`].
///
/// The disks of the plan are written to: give it copies. Recovery is off meanwhile; the saved set has it as the plan says.
///
/// # Errors
/// When the set ends before the stage is over, or cannot be saved.
pub fn warm(
    mut plan: Plan,
    stage: Arc<dyn Stage>,
    egress: Box<dyn Egress>,
    directory: &Path,
) -> Result<Saved, Failure> {
    plan.machine.start = StartTime {
        monotonic_ns: 0,
        realtime_ns: EPOCH_NS,
    };
    let kvm = open_kvm().map_err(|error| failure(&error))?;
    let handle: Arc<OnceLock<SetHandle>> = Arc::default();
    let notify: NotifyDisk = {
        let handle = Arc::clone(&handle);
        Arc::new(move |notice| {
            if let Some(set) = handle.get() {
                set.disk_notice(notice);
            }
        })
    };
    let disks = Arc::new(plan.open_disks(&notify, false)?);
    // No connection of a gateway is open in it.
    let context = plan.saving(&disks, Box::new(|| 0));
    let mut config = plan.set.clone();
    config.recovery = RecoveryConfig::off();
    config.no_quorum = NoQuorum::Stop;
    let world = World {
        ingress: Arc::new(Nothing),
        egress,
        disks: Arc::clone(&disks),
        events: Box::new(|_| {}),
        tap: None,
        outside: Box::new(Outside::default),
    };
    let build = move |me, lineage: Lineage| plan.build(&kvm, me, plan.layout_seed_of(lineage));
    let pace = Pace::staged(Scene {
        stage,
        limits: LIMITS,
        finale: Finale::Rest,
    });
    let (observer, crew) = (Arc::new(Unobserved), Arc::new(Spawned::default()));
    let set = ReplicaSet::start_paced(config, world, build, observer, pace, crew)?;
    set.can_be_saved(context);
    let _ = handle.set(set.handle());
    set.input_arrived();
    let saved = set.save_finale(directory);
    // Without effect where it has been saved.
    set.stop(true);
    let summary = set.wait();
    let closed = disks.close();
    if let Err(why) = saved {
        let code = match summary.end.exit_code() {
            ExitCode::Success => ExitCode::Internal,
            code => code,
        };
        let text = format!("warming up failed: {why} ({})", summary.end);
        return Err(Failure::new(code, text));
    }
    closed.map_err(|error| Failure::new(ExitCode::Disk, error))?;
    Saved::open(directory).map_err(|error| Failure::new(ExitCode::Disk, error))
}
