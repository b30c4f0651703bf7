//! The state of a set, as the control protocol tells it.

use std::time::Instant;

use quorate_voter::HistoryStats;

use crate::control::protocol::{
    CheckpointStatus, DiskStatus, InjectedStatus, RecoveryCounts, RecoveryStatus, ReplicaStatus,
    Status,
};
use crate::inject::Fault;
use crate::recovery::RecoveryConfig;
use crate::recovery::ladder::Standing;
use crate::set::Core;
use crate::shared::{Checkpoints, Inner, Place, Slot};
use crate::store::DiskStats;

impl Core {
    /// Takes the state. The set's lock is held for copying only.
    pub(crate) fn status(&self) -> Status {
        let outside = (self.outside)();
        let (releases, entries, counters) = self.shared.deliverer().state();
        let events = self
            .log
            .recent()
            .iter()
            .filter_map(|event| serde_json::to_value(event).ok())
            .collect();
        let disks = self.shared.disks().stats();
        let inner = self.shared.inner();
        let stats = inner.vote.stats();
        let foremost = inner
            .slots
            .iter()
            .map(|slot| slot.boundary)
            .max()
            .unwrap_or(0);
        Status {
            name: self.config.name.clone(),
            pid: std::process::id(),
            state: state(&inner).to_owned(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            ready_after_ms: inner.ready.map(|after| after.as_millis() as u64),
            size: inner.members().count(),
            running: stats.healthy.into(),
            quorum: stats.quorum.into(),
            no_quorum: inner.no_quorum.clone(),
            seed: self.config.seed.to_string(),
            layout_mode: self.config.layout_mode.to_owned(),
            boundaries: inner.boundaries,
            ballots: stats.ballots,
            bytes_voted: stats.bytes_voted,
            releases: counters.releases,
            bytes_released: counters.bytes,
            fingerprint: releases.to_hex().to_string(),
            input_fingerprint: entries.to_hex().to_string(),
            frames_in: inner.writer.frames,
            frames_out: counters.frames,
            connections: outside.connections,
            published: outside.published,
            console_dropped: outside.console_dropped,
            recovery: recovery(&inner, self.shared.config(), inner.vote.history()),
            disks: disks.into_iter().map(disk).collect(),
            discipline: "lockstep".to_owned(),
            relaxed: None,
            replicas: inner
                .slots
                .iter()
                .enumerate()
                .map(|(number, slot)| replica(number, slot, foremost))
                .collect(),
            events,
        }
    }
}

fn state(inner: &Inner) -> &'static str {
    if inner.end.is_some() {
        "stopped"
    } else if inner.no_quorum.is_some() {
        "holding"
    } else if inner.stop_deadline.is_some() {
        "stopping"
    } else if inner.ready.is_none() {
        "starting"
    } else if inner.members().any(|slot| !slot.is_voting()) {
        "degraded"
    } else {
        "running"
    }
}

fn disk(stats: DiskStats) -> DiskStatus {
    DiskStatus {
        disk: stats.name,
        backend: stats.backend.to_owned(),
        reads: stats.reads,
        bytes_read: stats.read_bytes,
        writes: stats.writes,
        bytes_written: stats.write_bytes,
        flushes: stats.flushes,
        flush_mean_us: stats.flush_total_ns / stats.flushes.max(1) / 1000,
        flush_max_us: stats.flush_max_ns / 1000,
        unwritten_bytes: stats.unwritten_bytes,
        versions: stats.versions,
        version_bytes: stats.version_bytes,
        spilled_bytes: stats.spilled_bytes,
        failure: stats.failure,
    }
}

fn replica(number: usize, slot: &Slot, foremost: u64) -> ReplicaStatus {
    let state = match slot.place {
        _ if slot.recovery.standing == Standing::Removed => "removed",
        _ if matches!(slot.recovery.standing, Standing::LeftOut(_)) => "left-out",
        _ if is_recovering(slot) => "recovering",
        _ if slot.stopped.is_some() => "stopped",
        Place::Starting => "starting",
        Place::Running => "running",
        Place::Idle => "idle",
        Place::Ahead | Place::Courteous => "ahead",
        Place::Held => "held",
        Place::Exited => "exited",
        Place::Frozen => "frozen",
        Place::Stopped | Place::Gone => "stopped",
    };
    ReplicaStatus {
        replica: number,
        state: state.to_owned(),
        stopped: match &slot.recovery.standing {
            Standing::LeftOut(reason) => Some(reason.clone()),
            _ => slot.stopped.clone(),
        },
        boundary: slot.boundary,
        lag: foremost - slot.boundary,
        restarts: slot.recovery.restarts,
        generation: slot.recovery.generation(),
        checkpoints: checkpoints(&slot.checkpoints),
        outputs: slot.outputs,
        output_bytes: slot.output_bytes,
        guest_ms: slot.ran.as_millis() as u64,
        layout: slot
            .layout
            .iter()
            .map(|(region, start)| ((*region).to_owned(), format!("{start:#x}")))
            .collect(),
        injected: slot
            .injected
            .iter()
            .map(|(fault, applied, restarts)| InjectedStatus {
                kind: fault.to_string(),
                boundary: applied.boundary,
                detail: applied.detail.clone(),
                effect: effect(fault, *restarts, slot).to_owned(),
            })
            .collect(),
        relaxed: None,
    }
}

fn is_recovering(slot: &Slot) -> bool {
    matches!(
        slot.recovery.standing,
        Standing::Fallen | Standing::Trying(_) | Standing::Waiting
    )
}

fn recovery(inner: &Inner, config: &RecoveryConfig, history: HistoryStats) -> RecoveryStatus {
    let recoveries = &inner.recoveries;
    let [checkpoint, older, replay, clone] = recoveries.by_step;
    let millis = |time: std::time::Duration| time.as_millis() as u64;
    RecoveryStatus {
        enabled: config.enabled,
        checkpoint_interval_ms: config.checkpoint_interval.map_or(0, millis),
        history_from: history.from,
        history_bytes: history.bytes as u64,
        recoveries: RecoveryCounts {
            checkpoint,
            older,
            replay,
            clone,
        },
        failed_steps: recoveries.failed_steps,
        last_recovery_ms: recoveries.last.map(millis),
    }
}

fn checkpoints(of: &Checkpoints) -> CheckpointStatus {
    let now = Instant::now();
    let age = |(_, at): (u64, Instant)| now.saturating_duration_since(at).as_millis() as u64;
    CheckpointStatus {
        taken: of.taken,
        boundary: of.last.map(|(boundary, _)| boundary),
        age_ms: of.last.map(age),
        pages: of.pages,
        dirty_pages: of.dirty_pages,
        pause_us: of.pause.as_micros() as u64,
        pause_max_us: of.pause_max.as_micros() as u64,
    }
}

fn effect(fault: &Fault, restarts: u64, slot: &Slot) -> &'static str {
    if slot.stopped.is_some() {
        "replica stopped"
    } else if slot.recovery.restarts > restarts {
        "replica came back"
    } else if fault.can_be_masked() {
        "masked so far"
    } else {
        "in effect"
    }
}
