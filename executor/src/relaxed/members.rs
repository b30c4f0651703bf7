//! What replicas' threads and the operator ask of the hub, and what is looked at by the clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_voter::relaxed::Policy;

use super::hub::{Hub, Inner, Place, id};
use super::link::ConnId;
use crate::events::{End, Event};
use crate::exit::{ExitCode, Failure};
use crate::inject::{Applied, FAULTS_KEPT, FAULTS_WAITING};
use crate::patience::patient;
use crate::replica::Kick;
use crate::shared::Mail;

/// How often [`Hub::tick`] is to be called.
pub const TICK: Duration = Duration::from_millis(100);
/// How long guests that are not expected to run on this host (`--force`) are tried until one of them says anything. A processor whose
/// ring 0 is interpreted would need the better part of an hour.
pub const DOUBT_PATIENCE: Duration = Duration::from_secs(60);
/// How long the host's clock may have to be fair to all: a connection on which nothing can be decided is looked at again before it is
/// said that there is no majority.
const UNDECIDED_FOR: u64 = 500_000_000;

impl Hub {
    /// A replica's machine is there.
    pub fn built(&self, me: usize, kick: Kick, layout: Vec<(&'static str, u64)>) {
        let mut inner = self.lock();
        if let Some(member) = inner.members.get_mut(me) {
            member.kick = Some(kick);
            member.layout = layout;
            member.place = Place::Running;
        }
        self.ring_all();
    }

    /// A replica's machine stands at its checkpoint; it may be another one.
    pub(super) fn restored(&self, me: usize, kick: Kick, layout: Vec<(&'static str, u64)>) {
        if let Some(member) = self.lock().members.get_mut(me) {
            member.kick = Some(kick);
            member.layout = layout;
        }
    }

    /// A replica has a fresh machine.
    pub(super) fn remade(&self, me: usize, kick: Kick, layout: Vec<(&'static str, u64)>) {
        let mut inner = self.lock();
        if let Some(member) = inner.members.get_mut(me) {
            member.kick = Some(kick);
            member.layout = layout;
        }
        self.boots_again(&mut inner, me);
    }

    /// A replica's thread came back without a fault of its machine. If its program has ended by a signal that nobody sent, that is a
    /// crash; if it has ended by itself, the others are waited for as long as for a laggard.
    pub(super) fn left(&self, me: usize) {
        let status = {
            let inner = self.lock();
            let Some(member) = inner.members.get(me) else {
                return;
            };
            match member.exited {
                Some(status) if member.alive && inner.end.is_none() => status,
                _ => return,
            }
        };
        let signal = status & 0x7f;
        if signal == 0 || self.lock().terminate {
            self.pause(me, self.settings.lag_timeout);
            return self.fell(
                me,
                "its program ended, and the others' did not".to_owned(),
                false,
            );
        }
        self.fell(
            me,
            format!("its program was ended by signal {signal}"),
            true,
        );
    }

    /// Waits until every machine is there; false: the set has ended instead.
    pub fn all_built(&self, me: usize) -> bool {
        loop {
            if let Some(bell) = self.bells.get(me) {
                bell.hush();
            }
            {
                let inner = self.lock();
                if inner.end.is_some() {
                    return false;
                }
                let missing =
                    |member: &super::hub::Member| member.alive && member.place == Place::Starting;
                if !inner.members.iter().any(missing) {
                    return true;
                }
            }
            match self.bells.get(me) {
                Some(bell) => bell.wait(None),
                None => return false,
            }
        }
    }

    /// A machine cannot be made.
    pub fn failed(&self, failure: Failure) {
        let mut inner = self.lock();
        self.end(
            &mut inner,
            End::Failed {
                code: failure.code,
                detail: failure.message,
            },
        );
    }

    /// A replica's run has ended by itself.
    pub fn fell(&self, me: usize, reason: String, crashed: bool) {
        let mut inner = self.lock();
        self.stop_replica(&mut inner, me, reason, crashed);
    }

    /// Its thread has run the guest for so long.
    pub(super) fn ran(&self, me: usize, time: Duration) {
        if let Some(member) = self.lock().members.get_mut(me) {
            member.ran += time;
        }
    }

    /// Whether a replica's thread is to come back.
    pub(super) fn must_leave(&self, me: usize) -> bool {
        let inner = self.lock();
        inner.end.is_some() || inner.members.get(me).is_none_or(|member| !member.alive)
    }

    /// The next fault that waits for a replica.
    pub(super) fn mail(&self, me: usize) -> Option<Mail> {
        self.lock().members.get_mut(me)?.mail.pop_front()
    }

    /// Records what became of a fault, and tells who asked.
    pub(super) fn injected(&self, me: usize, mail: Mail, result: Result<String, String>) {
        let mut inner = self.lock();
        let Some(member) = inner.members.get_mut(me) else {
            return;
        };
        let boundary = member.exchanges;
        let result = result.map(|detail| Applied {
            replica: me,
            boundary,
            detail: format!("{}: {detail}", mail.fault),
        });
        if let Ok(applied) = &result {
            if member.injected.len() == FAULTS_KEPT {
                member.injected.remove(0);
            }
            let restarts = member.restarts;
            member
                .injected
                .push((mail.fault, applied.clone(), restarts));
            self.tell(Event::Injected {
                replica: me,
                boundary,
                detail: applied.detail.clone(),
            });
        }
        drop(inner);
        // Nobody may be waiting any more.
        let _ = mail.reply.try_send(result);
    }

    /// Posts a fault.
    ///
    /// # Errors
    /// When there is no such replica, it is stopped, or too many faults wait for it.
    pub(super) fn post(&self, me: usize, mail: Mail) -> Result<(), String> {
        let mut inner = self.lock();
        let Some(member) = inner.members.get_mut(me) else {
            return Err(format!("there is no replica {me}"));
        };
        if !member.alive {
            return Err(format!("replica {me} is stopped"));
        }
        if member.mail.len() >= FAULTS_WAITING {
            return Err(format!(
                "{FAULTS_WAITING} faults already wait for replica {me}"
            ));
        }
        member.faults += 1;
        member.mail.push_back(mail);
        if let Some(kick) = &member.kick {
            kick();
        }
        if let Some(bell) = self.bells.get(me) {
            bell.ring();
        }
        Ok(())
    }

    /// Lets the thread wait, at most so long and while the replica is in.
    pub(super) fn pause(&self, me: usize, wait: Duration) {
        let until = Instant::now() + wait;
        while !self.must_leave(me) {
            let left = until.saturating_duration_since(Instant::now());
            match self.bells.get(me) {
                Some(bell) if !left.is_zero() => bell.wait(Some(left)),
                _ => return,
            }
        }
    }

    /// Stalls the thread until the replica is stopped or the set ends.
    pub(super) fn freeze(&self, me: usize) {
        while !self.must_leave(me) {
            match self.bells.get(me) {
                Some(bell) => bell.wait(None),
                None => return,
            }
        }
    }

    /// The operator stops a replica.
    ///
    /// # Errors
    /// When there is none, or it is stopped.
    pub(super) fn kill(&self, me: usize) -> Result<(), String> {
        let mut inner = self.lock();
        match inner.members.get(me) {
            None => Err(format!(
                "there is no replica {me}; they are 0 to {}",
                inner.members.len().saturating_sub(1)
            )),
            Some(member) if !member.alive => Err(format!("replica {me} is stopped already")),
            Some(_) => {
                self.stop_replica(&mut inner, me, "killed by the operator".to_owned(), false);
                Ok(())
            }
        }
    }

    /// The operator ends the set: the guests' programs are asked to end, or at once.
    pub fn stop(&self, now: bool, grace: Duration) {
        let mut inner = self.lock();
        if inner.end.is_some() {
            return;
        }
        self.tell(Event::StopRequested { now });
        if now || inner.no_quorum.is_some() {
            return self.end(&mut inner, End::Stopped);
        }
        inner.terminate = true;
        inner.stop_deadline.get_or_insert(Instant::now() + grace);
        self.ring_all();
    }

    pub(super) fn ready_if_all_were_idle(&self, inner: &mut Inner) {
        if inner.ready.is_some() {
            return;
        }
        let waiting = |member: &super::hub::Member| member.alive && !member.was_idle;
        if inner.members.iter().any(waiting) || !self.is_served(inner) {
            return;
        }
        let after = self.clock.elapsed();
        inner.ready = Some(after);
        let running = inner.members.iter().filter(|member| member.alive).count();
        self.tell(Event::Ready {
            after_ms: after.as_millis() as u64,
            replicas: running,
        });
    }

    /// Looks at what only time can tell: laggards, answers that wait too long, ends that were asked for. A host that stands still
    /// blames nobody: the clock that is asked goes on by a quarter of a second between two ticks at most.
    pub fn tick(&self) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.end.is_some() {
            return;
        }
        let now = inner.fair.tick(Instant::now());
        let limit = patient(DOUBT_PATIENCE);
        if self.settings.doubt.is_some() && self.clock.elapsed() > limit {
            let late = format!("nothing was heard of them within {} s", limit.as_secs());
            if self.was_in_vain(inner, &late) {
                return;
            }
        }
        if inner.stop_deadline.is_some_and(|at| at <= Instant::now()) {
            return self.end(inner, End::Stopped);
        }
        if inner.lines.tick(now) {
            self.console_news(inner);
        }
        for me in 0..inner.members.len() {
            // A prompt has no end of line. Without room it stays, for the next tick.
            let _ = inner.lines.flush(id(me), now);
        }
        self.console_news(inner);
        let ports: Vec<u16> = inner.datagrams.keys().copied().collect();
        for port in ports {
            let matcher = inner.datagrams.get_mut(&port);
            if matcher.is_some_and(|matcher| matcher.tick(now)) {
                self.datagram_news(inner, port);
            }
        }
        for me in 0..inner.members.len() {
            // A free-running guest is never seen to be idle; a tick without a word is as good.
            if inner
                .members
                .get(me)
                .is_some_and(|member| member.ticked == member.exchanges)
                && self.flush_held(inner, me)
                && let Some(bell) = self.bells.get(me)
            {
                // It may have been what it had yet to say before it may have what waits (`sync`).
                bell.ring();
            }
            if let Some(member) = inner.members.get_mut(me) {
                member.ticked = member.exchanges;
            }
        }
        self.look_at_channels(inner, now);
        self.look_at_boots(inner, now);
        self.look_at_laggards(inner, now);
        self.bound_log(inner);
    }

    /// Guests that were not expected to run here have not begun to: ends the set. False if one of them has.
    pub(super) fn was_in_vain(&self, inner: &mut Inner, what: &str) -> bool {
        let Some(doubt) = &self.settings.doubt else {
            return false;
        };
        if inner.members.iter().any(|member| member.spoke) {
            return false;
        }
        let last = inner
            .members
            .iter()
            .find_map(|member| member.stopped.as_ref());
        let last = last.map_or_else(String::new, |last| format!(" ({last})"));
        let detail = format!("the guests did not get through their start: {what}{last}; {doubt}");
        self.end(
            inner,
            End::Failed {
                code: ExitCode::Host,
                detail,
            },
        );
        true
    }

    fn look_at_channels(&self, inner: &mut Inner, now: u64) {
        let patience = self.settings.patience.as_nanos() as u64;
        let primary = match self.settings.voters.policy() {
            Policy::Primary { replica } => Some(usize::from(replica.0)),
            Policy::Majority => None,
        };
        let members = inner.members.len();
        let mut lost: Vec<ConnId> = Vec::new();
        let mut given_up: Vec<ConnId> = Vec::new();
        for (conn, channel) in &mut inner.channels {
            let released = channel.matcher.released();
            let ahead = (0..members).any(|me| channel.matcher.position(id(me)) > released);
            if !ahead {
                channel.waits_since = None;
                continue;
            }
            let since = *channel.waits_since.get_or_insert(now);
            if primary.is_some() && now - since >= patience {
                given_up.push(*conn);
                channel.waits_since = Some(now);
            }
            if now - since >= UNDECIDED_FOR && !channel.undecided {
                lost.push(*conn);
            }
        }
        for conn in given_up {
            let Some(channel) = inner.channels.get_mut(&conn) else {
                continue;
            };
            let mut news = false;
            for me in (0..members).filter(|me| Some(*me) != primary) {
                if channel.matcher.waits_for(id(me)) {
                    news |= channel.matcher.give_up_on(id(me));
                }
            }
            if news {
                self.news(inner, conn);
            }
        }
        for conn in lost {
            let Some(channel) = inner.channels.get_mut(&conn) else {
                continue;
            };
            if let Some(undecided) = channel.matcher.undecided() {
                channel.undecided = true;
                self.undecided(inner, &undecided);
            }
        }
    }

    /// Who has input to take and reaches no boundary, or has taken all there was and owes an answer that others have given, is
    /// stopped after the lag timeout (R5); also who is last when the log has been full for so long (R10). A slow replica that comes on is
    /// no fault.
    fn look_at_laggards(&self, inner: &mut Inner, now: u64) {
        let timeout = self.settings.lag_timeout.as_nanos() as u64;
        const HUNG: &str = "it did not take input that the others had taken";
        let mut late: Vec<(usize, &str)> = Vec::new();
        let end = inner.log.end();
        for me in 0..inner.members.len() {
            let position = inner.log.position(me);
            let boots = inner
                .members
                .get(me)
                .is_some_and(|member| self.boots(member));
            let Some(member) = inner.members.get_mut(me).filter(|member| member.alive) else {
                continue;
            };
            if boots {
                member.lags_since = None;
            }
            if member.place == Place::Starting {
                continue;
            }
            let returning = member.recovery.returning.is_some();
            // Who comes back owes much, and must only go on.
            if !boots && (position < end || returning) {
                let since = match member.lags_since {
                    Some((since, then)) if then == member.exchanges => since,
                    _ => now,
                };
                member.lags_since = Some((since, member.exchanges));
                if now - since >= timeout {
                    late.push((me, HUNG));
                }
                continue;
            }
            member.lags_since = None;
            let missing: Vec<u16> = inner
                .members
                .get(me)
                .map_or_else(Vec::new, |member| self.missing(member).collect());
            for channel in inner.channels.values_mut() {
                if missing.contains(&channel.guest_port) {
                    continue;
                }
                let matcher = &channel.matcher;
                let said = matcher.position(id(me));
                let owes = matcher.takes_part(id(me)) && matcher.behind(id(me)) > 0
                    || matcher.waits_for(id(me));
                let Some(owed_since) = channel.owed_since.get_mut(me) else {
                    continue;
                };
                let since = match *owed_since {
                    Some((since, then)) if then == said => since,
                    _ => now,
                };
                *owed_since = owes.then_some((since, said));
                if owes && now - since >= timeout {
                    late.push((me, "it gave no answer that the others had given"));
                    break;
                }
            }
        }
        let since = match self.log_has_room(inner) {
            true => None,
            false => Some(inner.full_since.unwrap_or(now)),
        };
        inner.full_since = since;
        if since.is_some_and(|since| now - since >= timeout) {
            let alive = inner.members.iter().enumerate().filter(|(_, m)| m.alive);
            let last = alive.min_by_key(|(me, _)| inner.log.position(*me));
            if let Some((me, _)) = last
                && inner.log.position(me) < end
                && !late.iter().any(|(known, _)| *known == me)
            {
                late.push((me, "it is further behind the others than inputs are kept"));
            }
        }
        let alive = inner.members.iter().filter(|member| member.alive).count();
        if late.len() == alive {
            // Nobody can say who is right: the host is slow, or all of them hang.
            return;
        }
        for (me, what) in late {
            let reason = format!("{what}, for {} ms", timeout / 1_000_000);
            self.stop_replica(inner, me, reason, false);
            if what == HUNG
                && let Some(member) = inner.members.get_mut(me)
            {
                // It reached no boundary: an input may be what it spins over, so that one is looked for if it hangs again.
                member.recovery.crashed = true;
            }
        }
    }
}

/// Ticks until the set has ended.
pub(super) fn tick(hub: &Arc<Hub>) {
    loop {
        hub.over.wait(Some(TICK));
        if hub.lock().end.is_some() {
            hub.over.ring();
            return;
        }
        hub.tick();
    }
}

/// How the command ends when a thread cannot be made.
pub(super) fn no_thread(error: &std::io::Error) -> Failure {
    Failure::new(ExitCode::Host, format!("no thread for a replica: {error}"))
}
