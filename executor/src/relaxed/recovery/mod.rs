//! How a replica that was stopped comes back: checkpoints at quiet moments, the inputs since then again, and its outputs compared
//! with what was released meanwhile (R7). The lockstep sets' `crate::recovery` has a journal of entries instead; here every replica
//! has a clock of its own, and what it shares with the others is the order of inputs.
//!
//! A checkpoint is the machine's (kept by the guest, on the replica's own thread) and a [`Point`] beside it: the endpoint, the place
//! in the log, and how far the replica had come on every channel.

pub mod ladder;
pub(super) mod life;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_voter::relaxed::Role;

use quorate_devices::DiskPosition;

use super::disk::ViewSnapshot;
use super::hub::{Hub, Inner, Place, id};
use super::link::ConnId;
use super::port::PortState;
use crate::control::protocol::CheckpointStatus;
use crate::events::Event;
use crate::recovery::Step;
use crate::replica::Pause;

/// Where a replica was when its machine's checkpoint was taken.
#[derive(Clone)]
pub(super) struct Point {
    /// Its port.
    pub(super) port: PortState,
    /// Bytes that it had said on each connection.
    streams: HashMap<ConnId, u64>,
    /// Connections on which it was not compared, because it had differed.
    apart: HashSet<ConnId>,
    /// Datagrams by the guest's port.
    datagrams: HashMap<u16, u64>,
    /// Whole lines of its console, and what it had begun of the next.
    lines: (u64, Vec<u8>),
    /// Its views of the disks, and how far it had come on them.
    views: Arc<Vec<ViewSnapshot>>,
    positions: Vec<DiskPosition>,
}

/// A machine's part of a checkpoint, as far as the set hears of it.
pub struct Taken {
    /// Where the guest stands on its disks.
    pub positions: Vec<DiskPosition>,
    /// Pages that are kept.
    pub pages: u64,
    /// What it cost.
    pub pause: Pause,
}

/// A replica that is on its way back.
#[derive(Clone, Debug)]
pub(super) struct Return {
    /// By what.
    step: Step,
    /// When it was stopped.
    since: Instant,
    /// What had been released on each connection when it had been given all inputs for the first time: under load the others are always
    /// a little ahead. Bounded by the connections.
    goal: Option<HashMap<ConnId, u64>>,
}

/// What the operator wants of a replica.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// The step to begin with; `None`: the first that there is.
    pub(super) step: Option<Step>,
    /// There is a checkpoint.
    pub(super) has_checkpoint: bool,
}

/// What is known of a replica's checkpoints and failures.
#[derive(Default)]
pub(super) struct Recovery {
    /// Its last checkpoint.
    pub(super) point: Option<Point>,
    /// What the checkpoints so far have cost, and when the last was taken.
    pub(super) cost: CheckpointStatus,
    pub(super) taken_at: Option<Instant>,
    /// Not before this the next one is taken.
    next_at: Option<Instant>,
    /// When it was stopped.
    pub(super) stopped_at: Option<Instant>,
    /// It is stopped, and its thread will bring it back.
    pub(super) returns: bool,
    /// It was left out: its thread waits until the operator wants it back.
    pub(super) rests: bool,
    /// The operator wants it back, by this step or by the first that there is.
    asked: Option<Option<Step>>,
    /// It has a thread that brings it back.
    pub(super) able: bool,
    /// It runs, and has not caught up.
    pub(super) returning: Option<Return>,
    /// An input may have been what stopped it: it crashed, hung, or differed.
    pub(super) crashed: bool,
    /// Since it was brought back last it has caught up.
    pub(super) caught_up: bool,
}

impl Hub {
    /// Whether replicas come back.
    pub(super) fn recovers(&self) -> bool {
        self.settings.recovery.enabled
    }

    fn interval(&self) -> Option<Duration> {
        self.settings
            .recovery
            .checkpoint_interval
            .filter(|_| self.recovers())
    }

    /// Whether pages that change are to be tracked.
    pub(super) fn takes_checkpoints(&self) -> bool {
        self.interval().is_some()
    }

    /// Whether a replica whose guest is quiet takes a checkpoint now. If so the turn is its until [`Hub::checkpointed`]: one replica
    /// pauses at a time.
    pub(super) fn checkpoint_due(&self, inner: &mut Inner, me: usize) -> bool {
        let Some(interval) = self.interval() else {
            return false;
        };
        let members = inner.members.len();
        let next = inner.log.position(me);
        let booted = inner
            .members
            .get(me)
            .is_some_and(|member| !self.boots(member));
        let Some(member) = inner.members.get_mut(me).filter(|_| booted) else {
            return false;
        };
        let own = &mut member.recovery;
        if !member.alive
            || !member.was_idle
            || own.returning.is_some()
            || inner.checkpointing.is_some()
        {
            return false;
        }
        if own
            .point
            .as_ref()
            .is_some_and(|point| point.port.next == next)
        {
            return false;
        }
        let now = Instant::now();
        // Staggered from the beginning.
        let first =
            interval * u32::try_from(me + 1).unwrap_or(1) / u32::try_from(members).unwrap_or(1);
        if now < *own.next_at.get_or_insert(now + first) {
            return false;
        }
        own.next_at = Some(now + interval);
        inner.checkpointing = Some(me);
        true
    }

    /// The machine's checkpoint was taken, or not.
    pub(super) fn checkpointed(
        &self,
        inner: &mut Inner,
        me: usize,
        taken: Result<(PortState, Taken), String>,
    ) {
        inner.checkpointing = None;
        let (port, taken) = match taken {
            Ok(taken) => taken,
            Err(reason) => {
                return self.tell(Event::CheckpointFailed {
                    replica: Some(me),
                    reason,
                });
            }
        };
        let replica = id(me);
        let (mut streams, mut apart) = (HashMap::new(), HashSet::new());
        for (conn, channel) in &mut inner.channels {
            channel.matcher.mark(replica);
            // In the replica's own bytes: with masks they are not those that were compared.
            streams.insert(*conn, channel.matcher.own_position(replica));
            if !channel.matcher.takes_part(replica) {
                apart.insert(*conn);
            }
        }
        let datagrams = inner.datagrams.iter();
        let point = Point {
            port,
            streams,
            apart,
            datagrams: datagrams
                .map(|(&port, matcher)| (port, matcher.position(replica)))
                .collect(),
            lines: (
                inner.lines.lines(replica),
                inner.lines.begun(replica).to_vec(),
            ),
            views: self
                .disks()
                .map(|disks| disks.snapshot(me))
                .unwrap_or_default()
                .into(),
            positions: taken.positions,
        };
        if let Some(member) = inner.members.get_mut(me) {
            let own = &mut member.recovery;
            let pause_us = taken.pause.pause.as_micros() as u64;
            own.cost = CheckpointStatus {
                taken: own.cost.taken + 1,
                boundary: Some(member.exchanges),
                age_ms: None,
                pages: taken.pages,
                dirty_pages: taken.pause.dirty_pages,
                pause_us,
                pause_max_us: own.cost.pause_max_us.max(pause_us),
            };
            own.taken_at = Some(Instant::now());
            own.point = Some(point);
        }
        self.keep_log(inner, me);
    }

    /// Tells the log what it has to keep for a replica: everything while that is little, so that it can start afresh, else what its
    /// checkpoint needs (R10).
    pub(super) fn keep_log(&self, inner: &mut Inner, me: usize) {
        let Some(member) = inner.members.get(me) else {
            return;
        };
        let own = &member.recovery;
        let lives = own.able && (member.alive || own.returns || own.rests);
        let history =
            inner.log.first() == 0 && inner.log.cost() as u64 <= self.settings.recovery.history;
        let from = match &own.point {
            _ if !self.recovers() || !lives => None,
            _ if history => Some(0),
            Some(point) => Some(point.port.next),
            None => None,
        };
        inner.log.keep(me, from);
    }

    /// R10: what the log keeps for checkpoints is bounded. At the bound the history is given up first, then the checkpoint for which most
    /// is kept.
    pub(super) fn bound_log(&self, inner: &mut Inner) {
        if !self.recovers() {
            return;
        }
        let members = inner.members.len();
        (0..members).for_each(|me| self.keep_log(inner, me));
        let limit = self.settings.recovery.history_limit();
        while inner.log.cost() as u64 > limit
            && let Some(me) = inner.log.oldest_kept()
        {
            if let Some(member) = inner.members.get_mut(me) {
                member.recovery.point = None;
            }
            inner.log.keep(me, None);
        }
    }

    /// A replica has a thread that brings it back.
    pub(super) fn comes_back(&self, me: usize) {
        if let Some(member) = self.lock().members.get_mut(me) {
            member.recovery.able = true;
        }
    }

    /// Whether a replica can begin afresh: the log has all inputs, and the disks are as they were then. On a disk that has been written
    /// a program would find the traces of what it is only about to be asked: it would count twice what it had counted, and answer
    /// otherwise than was released. Nor can it begin with the disk as it is and without those inputs, as after a power cut: the others'
    /// memory and the clients' connections are not on the disk.
    ///
    /// # Errors
    /// Why it cannot.
    pub(super) fn begins_afresh(&self, inner: &Inner) -> Result<(), String> {
        if inner.log.first() > 0 {
            return Err("the inputs since the beginning are no longer all there".to_owned());
        }
        match self.disks().and_then(|disks| disks.written()) {
            Some(name) => Err(format!("disk {name} has been written since the beginning")),
            None => Ok(()),
        }
    }

    /// Brings a replica back whose machine and port stand at its last checkpoint, or at the beginning. Its outputs are compared with what
    /// was released from there on (R7), and count when it has caught up.
    ///
    /// # Errors
    /// When the log does not go back that far. `Ok(false)`: the set has ended.
    pub(super) fn readmit(&self, me: usize, step: Step) -> Result<bool, String> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.end.is_some() {
            return Ok(false);
        }
        let replica = id(me);
        let point = match (step, inner.members.get(me)) {
            (_, None) => return Ok(false),
            (Step::Checkpoint, Some(member)) => member.recovery.point.clone(),
            _ => None,
        };
        let next = point.as_ref().map_or(0, |point| point.port.next);
        if let Some(disks) = self.disks() {
            let entered = match &point {
                Some(point) => disks.enter(me, &point.views, &point.positions),
                None => {
                    self.begins_afresh(inner)?;
                    disks.enter(me, &[], &[])
                }
            };
            entered.map_err(|error| error.to_string())?;
        }
        if !inner.log.enter(me, next) {
            if let Some(disks) = self.disks() {
                disks.leave(me);
            }
            return Err("the inputs since then are no longer there".to_owned());
        }
        let Some(member) = inner.members.get_mut(me) else {
            return Ok(false);
        };
        let since = member.recovery.stopped_at.unwrap_or_else(Instant::now);
        member.recovery.returning = Some(Return {
            step,
            since,
            goal: None,
        });
        member.recovery.caught_up = false;
        member.recovery.crashed = false;
        member.alive = true;
        member.stopped = None;
        member.place = Place::Running;
        member.lags_since = None;
        member.retry.clear();
        member.restarts += 1;
        member.answered = 0;
        for (conn, channel) in &mut inner.channels {
            let at = point.as_ref().and_then(|point| point.streams.get(conn));
            // A request was left out there, and the next one has not come: see `Port`.
            let waits = point
                .as_ref()
                .is_some_and(|point| point.port.jumps.contains(conn));
            let apart = point
                .as_ref()
                .is_some_and(|point| point.apart.contains(conn));
            match (waits, apart) {
                (true, _) => {}
                (_, true) => channel
                    .matcher
                    .enter_apart(replica, at.copied().unwrap_or(0)),
                (_, false) => channel.matcher.enter(replica, at.copied().unwrap_or(0)),
            }
        }
        for (port, matcher) in &mut inner.datagrams {
            let at = point.as_ref().and_then(|point| point.datagrams.get(port));
            matcher.enter(replica, at.copied().unwrap_or(0));
        }
        match &point {
            Some(point) => inner.lines.enter(replica, point.lines.0, &point.lines.1),
            None => inner.lines.enter(replica, 0, &[]),
        }
        // Whose word is waited for, and what may go out, has changed on all of them.
        let conns: Vec<_> = inner.channels.keys().copied().collect();
        for conn in conns {
            self.news(inner, conn);
        }
        drop(guard);
        self.ring_all();
        Ok(true)
    }

    /// A replica's guest is idle. True if it was on its way back and has caught up just now: it has been given all that the others have,
    /// and has said all that was released.
    pub(super) fn has_caught_up(&self, inner: &mut Inner, me: usize) -> bool {
        let replica = id(me);
        // Under load the others may always be a batch ahead.
        let given = inner.log.position(me) + 1 >= inner.log.end();
        let channels = &inner.channels;
        let Some(member) = inner.members.get_mut(me).filter(|member| member.alive) else {
            return false;
        };
        let boundary = member.exchanges;
        let Some(returning) = member.recovery.returning.as_mut().filter(|_| given) else {
            return false;
        };
        let released = || {
            let each = channels.iter();
            each.map(|(conn, channel)| (*conn, channel.matcher.released()))
                .collect()
        };
        let goal = returning.goal.get_or_insert_with(released);
        let owes = goal.iter().any(|(conn, released)| {
            channels.get(conn).is_some_and(|channel| {
                let matcher = &channel.matcher;
                matcher.takes_part(replica) && matcher.position(replica) < *released
            })
        });
        if owes {
            return false;
        }
        let (step, since) = (returning.step, returning.since);
        if let Some(member) = inner.members.get_mut(me) {
            member.recovery.returning = None;
            member.recovery.returns = false;
            member.recovery.caught_up = true;
            member.exited = None;
        }
        let after_ms = since.elapsed().as_millis() as u64;
        self.tell(Event::Recovered {
            replica: me,
            step,
            boundary,
            after_ms,
            layout: "kept",
        });
        if self.votes(inner) >= self.votes_needed(inner) && inner.held_for_recovery {
            inner.held_for_recovery = false;
            inner.no_quorum = None;
            self.tell(Event::Majority { boundary });
        }
        if inner.members.iter().all(super::hub::Member::votes) {
            self.tell(Event::FullStrength { after_ms });
        }
        true
    }

    /// A replica does not come back by itself. Its checkpoint stays for [`Hub::recover`], until the log has no room for the inputs
    /// since then (R10, [`Hub::bound_log`]).
    pub(super) fn leave_out(&self, me: usize, reason: String) {
        let mut inner = self.lock();
        if inner.end.is_some() {
            return;
        }
        if let Some(member) = inner.members.get_mut(me) {
            member.recovery.returns = false;
            member.recovery.rests = true;
        }
        self.keep_log(&mut inner, me);
        self.tell(Event::LeftOut {
            replica: me,
            reason,
        });
        let held = std::mem::take(&mut inner.held_for_recovery);
        if held {
            inner.no_quorum = None;
            self.count_votes(&mut inner);
        }
    }

    /// What the operator asked of a replica that is stopped, once.
    pub(super) fn take_asked(&self, me: usize) -> Option<Asked> {
        let mut inner = self.lock();
        let own = &mut inner.members.get_mut(me)?.recovery;
        let step = own.asked.take()?;
        Some(Asked {
            step,
            has_checkpoint: own.point.is_some(),
        })
    }

    /// Waits, on the thread of a replica that was left out, until the operator wants it back. `None`: the set has ended.
    pub(super) fn asked_back(&self, me: usize) -> Option<Asked> {
        let bell = self.bells.get(me)?;
        loop {
            bell.hush();
            if let Some(asked) = self.take_asked(me) {
                return Some(asked);
            }
            if self.lock().end.is_some() {
                return None;
            }
            bell.wait(None);
        }
    }

    /// The operator wants a replica back that was left out, or, with a step, one that runs to begin again.
    ///
    /// # Errors
    /// When there is no such replica, it is not away, or there is nothing to bring it back from.
    pub(super) fn recover(&self, me: usize, step: Option<Step>) -> Result<(), String> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let members = inner.members.len();
        let history = self.begins_afresh(inner);
        let Some(member) = inner.members.get(me) else {
            return Err(format!(
                "there is no replica {me}; they are 0 to {}",
                members.saturating_sub(1)
            ));
        };
        let own = &member.recovery;
        if inner.end.is_some() || inner.terminate {
            return Err("the set is ending".to_owned());
        }
        if !self.recovers() {
            return Err(
                "the set was started with --recovery off: it keeps nothing that a replica could come back from".to_owned(),
            );
        }
        if own.returning.is_some() || !member.alive && !own.rests {
            return Err(format!("replica {me} is recovering already"));
        }
        if member.alive && step.is_none() {
            return Err(format!(
                "replica {me} runs; name a step to have it begin again by that"
            ));
        }
        if member.place == Place::Starting || !own.able {
            return Err(format!("replica {me} is still starting"));
        }
        let no_checkpoint = format!("there is no checkpoint of replica {me}");
        match step {
            Some(Step::Older | Step::Clone) => {
                return Err("the replicas of a relaxed set have one checkpoint each and are never copied: the steps are checkpoint and replay".to_owned());
            }
            Some(Step::Checkpoint) if own.point.is_none() => return Err(no_checkpoint),
            Some(Step::Replay) => history?,
            None if own.point.is_none() => {
                history.map_err(|why| format!("{no_checkpoint}, and {why}"))?;
            }
            _ => {}
        }
        if member.alive {
            let reason = "the operator has it begin again".to_owned();
            // Before it is stopped: it is on its way back then, and the set waits for it if there is no majority without it.
            self.ask(inner, me, step);
            self.stop_replica(inner, me, reason, false);
            return Ok(());
        }
        self.ask(inner, me, step);
        // It may be the one whose vote is missing.
        inner.held_for_recovery |= inner.no_quorum.is_some();
        drop(guard);
        if let Some(bell) = self.bells.get(me) {
            bell.ring();
        }
        Ok(())
    }

    fn ask(&self, inner: &mut Inner, me: usize, step: Option<Step>) {
        if let Some(member) = inner.members.get_mut(me) {
            let own = &mut member.recovery;
            own.asked = Some(step);
            own.rests = false;
            own.returns = !member.alive;
        }
    }

    /// Somebody whose word counts is on its way back, or will be.
    pub(super) fn somebody_returns(&self, inner: &Inner) -> bool {
        inner.members.iter().enumerate().any(|(me, member)| {
            (member.recovery.returns && !member.alive || member.recovery.returning.is_some())
                && self.settings.voters.role(id(me)) != Some(Role::Canary)
        })
    }
}
