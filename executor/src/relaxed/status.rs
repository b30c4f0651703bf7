//! The state of a relaxed set, as the control protocol tells it.

use quorate_voter::relaxed::{Policy, Role};

use super::hub::{Inner, Place, id};
use super::set::Core;
use crate::control::protocol::{
    CheckpointStatus, InjectedStatus, RelaxedReplica, RelaxedStatus, ReplicaStatus, Status,
};
use crate::launch::describe;

impl Core {
    /// Takes the state.
    pub(super) fn status(&self) -> Status {
        let events = self.hub.events.recent();
        let events = events.iter();
        let events = events.filter_map(|event| serde_json::to_value(event).ok());
        let events = events.collect();
        let disks = self.hub.disks().map(|disks| disks.report(false));
        let inner = self.hub.lock();
        let members = inner.members.len();
        let replicas = (0..members).map(|me| self.replica(&inner, me)).collect();
        let published = self.front.addresses();
        let published = published.iter().map(|(publish, at)| describe(publish, at));
        Status {
            name: self.config.name.clone(),
            pid: std::process::id(),
            state: self.state(&inner).to_owned(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            ready_after_ms: inner.ready.map(|after| after.as_millis() as u64),
            size: members,
            running: inner.members.iter().filter(|member| member.alive).count(),
            quorum: self.hub.settings.voters.quorum(),
            no_quorum: inner.no_quorum.clone(),
            seed: self.config.seed.to_string(),
            layout_mode: self.config.layout_mode.to_owned(),
            releases: inner.releases,
            bytes_released: inner.released_bytes,
            connections: self.front.connections(),
            published: published.collect(),
            console_dropped: self.console.dropped(),
            discipline: "relaxed".to_owned(),
            relaxed: Some(RelaxedStatus {
                policy: match self.hub.settings.voters.policy() {
                    Policy::Majority => "majority".to_owned(),
                    Policy::Primary { .. } => "primary-with-fallback".to_owned(),
                },
                inputs: inner.log.events(),
                batches: inner.log.end(),
                log_bytes: inner.log.cost() as u64,
                channels: inner.channels.len() as u64,
                differences_unwritten: inner.report.unwritten,
                disks: disks.unwrap_or_default(),
            }),
            replicas,
            events,
            ..Status::default()
        }
    }

    fn state(&self, inner: &Inner) -> &'static str {
        if inner.end.is_some() {
            "stopped"
        } else if inner.no_quorum.is_some() {
            "holding"
        } else if inner.stop_deadline.is_some() {
            "stopping"
        } else if inner.ready.is_none() {
            "starting"
        } else if inner.members.iter().any(|member| !member.votes()) {
            "degraded"
        } else {
            "running"
        }
    }

    fn replica(&self, inner: &Inner, me: usize) -> ReplicaStatus {
        let settings = &self.hub.settings;
        let (behind_inputs, _) = inner.log.behind(me);
        let mut unconfirmed = 0;
        let mut behind = 0;
        for channel in inner.channels.values() {
            let (said, released) = (channel.matcher.position(id(me)), channel.matcher.released());
            unconfirmed += said.saturating_sub(released);
            behind += released.saturating_sub(said);
        }
        let relaxed = RelaxedReplica {
            version: settings.names.get(me).cloned().unwrap_or_default(),
            role: match settings.voters.role(id(me)) {
                Some(Role::Primary) => "primary",
                Some(Role::Canary) => "canary",
                _ => "voter",
            }
            .to_owned(),
            behind_inputs,
            behind_bytes: behind,
            unconfirmed_bytes: unconfirmed,
            differences: inner.report.of(me).count,
            own_console_lines: inner.members.get(me).map_or(0, |member| member.own_lines),
            does_not_listen: inner
                .members
                .get(me)
                .map_or_else(Vec::new, |member| self.hub.missing(member).collect()),
        };
        let Some(member) = inner.members.get(me) else {
            return ReplicaStatus::default();
        };
        ReplicaStatus {
            replica: me,
            state: match member.place {
                _ if member.recovery.rests => "left-out",
                _ if member.recovery.returning.is_some() || member.recovery.returns => "recovering",
                _ if !member.alive => "stopped",
                Place::Starting => "starting",
                _ if self.hub.boots(member) => "booting",
                Place::Running => "running",
                Place::Idle => "idle",
                Place::Stopped => "stopped",
            }
            .to_owned(),
            stopped: member.stopped.clone(),
            boundary: member.exchanges,
            lag: behind_inputs,
            restarts: member.restarts,
            generation: 0,
            checkpoints: CheckpointStatus {
                age_ms: member
                    .recovery
                    .taken_at
                    .map(|at| at.elapsed().as_millis() as u64),
                ..member.recovery.cost.clone()
            },
            outputs: member.exchanges,
            output_bytes: member.output_bytes,
            guest_ms: member.ran.as_millis() as u64,
            layout: member
                .layout
                .iter()
                .map(|(region, start)| ((*region).to_owned(), format!("{start:#x}")))
                .collect(),
            injected: member
                .injected
                .iter()
                .map(|(fault, applied, restarts)| InjectedStatus {
                    kind: fault.to_string(),
                    boundary: applied.boundary,
                    detail: applied.detail.clone(),
                    effect: if !member.alive {
                        "replica stopped"
                    } else if member.restarts > *restarts {
                        "replica came back"
                    } else if fault.can_be_masked() {
                        "masked so far"
                    } else {
                        "in effect"
                    }
                    .to_owned(),
                })
                .collect(),
            relaxed: Some(relaxed),
        }
    }
}
