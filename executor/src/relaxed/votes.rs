//! Who is in, whose votes are there, and what becomes of the set when they are too few (R5).

use std::time::Instant;

use quorate_voter::relaxed::{Policy, Role, Undecided};

use super::hub::{Hub, Inner, Place, id};
use super::link::ConnId;
use crate::events::{End, Event, NoQuorum};

impl Hub {
    /// Stops a replica: from here on nothing that it says counts (R5), and nobody waits for it.
    pub(super) fn stop_replica(&self, inner: &mut Inner, me: usize, reason: String, crashed: bool) {
        let Some(member) = inner.members.get_mut(me).filter(|member| member.alive) else {
            return;
        };
        member.alive = false;
        member.stopped = Some(reason.clone());
        member.place = Place::Stopped;
        member.lags_since = None;
        member.mail.clear();
        member.recovery.returns = self.settings.recovery.enabled && member.recovery.able;
        member.recovery.crashed = crashed;
        if member.recovery.returning.take().is_none() {
            member.recovery.stopped_at = Some(Instant::now());
        }
        if inner.checkpointing == Some(me) {
            inner.checkpointing = None;
        }
        let boundary = member.exchanges;
        let said = std::mem::take(&mut member.console);
        if let Some(kick) = &member.kick {
            kick();
        }
        if let Some(bell) = self.bells.get(me) {
            bell.ring();
        }
        self.tell(Event::ReplicaStopped {
            replica: me,
            boundary,
            reason,
        });
        if !said.is_empty() && inner.members.len() > 1 {
            // What nobody else says is shown nowhere, and it may say why.
            let said = String::from_utf8_lossy(&said);
            self.note(format!("replica {me}: its console ended with {said:?}"));
        }
        inner.log.leave(me);
        self.keep_log(inner, me);
        inner.lines.leave(id(me));
        if let Some(disks) = self.disks() {
            disks.leave(me);
        }
        for matcher in inner.datagrams.values_mut() {
            matcher.leave(id(me));
        }
        let conns: Vec<ConnId> = inner.channels.keys().copied().collect();
        for conn in conns {
            if let Some(channel) = inner.channels.get_mut(&conn) {
                if let Some(owed) = channel.owed.get_mut(me) {
                    *owed = 0;
                }
                let news = match crashed {
                    true => channel.matcher.crashed(id(me)),
                    false => channel.matcher.leave(id(me)),
                };
                if news || channel.throttled {
                    channel.throttled = false;
                    self.news(inner, conn);
                }
                self.forget_if_done(inner, conn);
            }
        }
        self.count_votes(inner);
        self.wake_front();
    }

    /// Voters that run.
    pub(super) fn votes(&self, inner: &Inner) -> usize {
        let members = inner.members.iter().enumerate();
        members
            .filter(|(me, member)| {
                member.alive && self.settings.voters.role(id(*me)) != Some(Role::Canary)
            })
            .count()
    }

    /// Votes without which nothing can be released.
    pub(super) fn votes_needed(&self, inner: &Inner) -> usize {
        match self.settings.voters.policy() {
            Policy::Primary { replica }
                if inner
                    .members
                    .get(usize::from(replica.0))
                    .is_some_and(|primary| primary.alive) =>
            {
                1
            }
            _ => self.settings.voters.quorum(),
        }
    }

    pub(super) fn count_votes(&self, inner: &mut Inner) {
        let (votes, needed) = (self.votes(inner), self.votes_needed(inner));
        let of = inner.members.len();
        let running = inner.members.iter().filter(|member| member.alive).count();
        if votes >= needed {
            self.tell(Event::Degraded {
                running,
                of,
                masks_another: votes > needed,
            });
            return;
        }
        self.no_majority(
            inner,
            format!("{votes} of {needed} replicas that are needed still run"),
        );
    }

    /// Nothing more can be released on a connection.
    pub(super) fn undecided(&self, inner: &mut Inner, undecided: &Undecided) {
        self.no_majority(inner, undecided.to_string());
    }

    fn no_majority(&self, inner: &mut Inner, detail: String) {
        if inner.no_quorum.is_some() || inner.end.is_some() || self.was_in_vain(inner, &detail) {
            return;
        }
        inner.no_quorum = Some(detail.clone());
        inner.held_for_recovery = self.somebody_returns(inner);
        self.tell(Event::NoMajority {
            boundary: 0,
            policy: self.settings.no_quorum,
            recovering: inner.held_for_recovery,
            detail: detail.clone(),
        });
        if self.settings.no_quorum == NoQuorum::Stop && !inner.held_for_recovery {
            self.end(inner, End::NoQuorum { detail });
        }
    }

    /// A guest's program has ended: as soon as those whose word counts say the same, the set ends.
    pub(super) fn exited(&self, inner: &mut Inner, me: usize, status: u64) {
        if let Some(member) = inner.members.get_mut(me) {
            member.exited = Some(status);
        }
        let voters = &self.settings.voters;
        let said = |who: usize| inner.members.get(who).and_then(|member| member.exited);
        let agreed = match voters.policy() {
            Policy::Primary { replica }
                if inner
                    .members
                    .get(usize::from(replica.0))
                    .is_some_and(|member| member.alive) =>
            {
                said(usize::from(replica.0)) == Some(status)
            }
            _ => {
                let same = (0..voters.len())
                    .filter(|who| voters.role(id(*who)) != Some(Role::Canary))
                    .filter(|who| said(*who) == Some(status));
                same.count() >= voters.quorum()
            }
        };
        if agreed {
            let requested = inner.stop_deadline.is_some();
            let wait_status = status as u32;
            self.end(
                inner,
                End::Exited {
                    wait_status,
                    requested,
                },
            );
        }
    }
}
