//! The state of a set, as the control protocol tells it.

use crate::control::protocol::{DiskStatus, InjectedStatus, ReplicaStatus, Status};
use crate::inject::Fault;
use crate::set::Core;
use crate::shared::{Inner, Place, Slot};
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
            size: inner.slots.len(),
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
            disks: disks.into_iter().map(disk).collect(),
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
    } else if inner.slots.iter().any(|slot| slot.stopped.is_some()) {
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
        _ if slot.stopped.is_some() => "stopped",
        Place::Starting => "starting",
        Place::Running => "running",
        Place::Idle => "idle",
        Place::Ahead => "ahead",
        Place::Held => "held",
        Place::Exited => "exited",
        Place::Frozen => "frozen",
        Place::Gone => "stopped",
    };
    ReplicaStatus {
        replica: number,
        state: state.to_owned(),
        stopped: slot.stopped.clone(),
        boundary: slot.boundary,
        lag: foremost - slot.boundary,
        restarts: 0,
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
            .map(|(fault, applied)| InjectedStatus {
                kind: fault.to_string(),
                boundary: applied.boundary,
                detail: applied.detail.clone(),
                effect: effect(fault, slot).to_owned(),
            })
            .collect(),
    }
}

fn effect(fault: &Fault, slot: &Slot) -> &'static str {
    if slot.stopped.is_some() {
        "replica stopped"
    } else if fault.can_be_masked() {
        "masked so far"
    } else {
        "in effect"
    }
}
