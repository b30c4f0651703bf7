//! Replicas that boot: until all published TCP ports of one are listened on, and for [`Settings::boot_timeout`] at most, it may be
//! later than the others, and who waits for it is told "not yet" instead of "never". The set is ready when a quorum listens.
//!
//! Only for guests that boot by themselves ([`Settings::listens`] is empty for the others). What is found out comes from each replica's
//! endpoint, which probes the ports: see [`super::link`].

use std::collections::BTreeSet;

use quorate_voter::relaxed::{Policy, Role};

use super::hub::{Hub, Inner, Member, id};
use crate::events::Event;

/// What is known of a replica's boot.
#[derive(Clone, Debug, Default)]
pub(super) struct Boot {
    /// Since when its machine runs, by the fair clock.
    since: Option<u64>,
    /// Ports on which it listens.
    listens: BTreeSet<u16>,
    /// It took too long.
    over: bool,
}

impl Hub {
    /// A replica's guest listens on a port.
    pub(super) fn listens(&self, inner: &mut Inner, me: usize, port: u16) {
        if let Some(member) = inner.members.get_mut(me) {
            member.boot.listens.insert(port);
        }
        self.ready_if_all_were_idle(inner);
    }

    /// A replica has a machine that has not run yet.
    pub(super) fn boots_again(&self, inner: &mut Inner, me: usize) {
        if let Some(member) = inner.members.get_mut(me) {
            member.boot = Boot::default();
        }
    }

    /// Ports on which a replica does not listen, and is still waited for.
    pub(super) fn missing<'a>(&'a self, member: &'a Member) -> impl Iterator<Item = u16> + 'a {
        let wanted = self.settings.listens.iter().copied();
        wanted.filter(|port| !member.boot.over && !member.boot.listens.contains(port))
    }

    /// Whether a replica may be late because it boots.
    pub(super) fn boots(&self, member: &Member) -> bool {
        member.alive && self.missing(member).next().is_some()
    }

    /// Whether it need not have answered on this port yet.
    pub(super) fn may_be_late(&self, member: &Member, port: u16) -> bool {
        self.missing(member).any(|missing| missing == port)
    }

    /// Looks whether somebody's time is over.
    pub(super) fn look_at_boots(&self, inner: &mut Inner, now: u64) {
        if self.settings.listens.is_empty() {
            return;
        }
        let timeout = self.settings.boot_timeout.as_nanos() as u64;
        let mut over = false;
        for me in 0..inner.members.len() {
            let Some(member) = inner.members.get_mut(me).filter(|member| member.alive) else {
                continue;
            };
            let boot = &mut member.boot;
            if boot.over || member.place == super::hub::Place::Starting {
                continue;
            }
            if now - *boot.since.get_or_insert(now) < timeout {
                continue;
            }
            let Some(member) = inner.members.get(me) else {
                continue;
            };
            let ports: Vec<u16> = self.missing(member).collect();
            if let Some(member) = inner.members.get_mut(me) {
                member.boot.over = true;
            }
            if !ports.is_empty() {
                over = true;
                self.tell(Event::NobodyListens {
                    replica: me,
                    ports,
                    after_ms: self.settings.boot_timeout.as_millis() as u64,
                });
            }
        }
        if over {
            self.ready_if_all_were_idle(inner);
        }
    }

    /// Whether clients are served: on every port those listen whose word is needed, or nobody can be waited for any more.
    pub(super) fn is_served(&self, inner: &Inner) -> bool {
        let voters = &self.settings.voters;
        let votes = || {
            let members = inner.members.iter().enumerate();
            members.filter(|(me, member)| {
                member.alive && !matches!(voters.role(id(*me)), None | Some(Role::Canary))
            })
        };
        self.settings.listens.iter().all(|port| {
            let on = |member: &Member| member.boot.listens.contains(port);
            let primary = match voters.policy() {
                Policy::Primary { replica } => inner.members.get(usize::from(replica.0)),
                Policy::Majority => None,
            };
            let served = match primary.filter(|primary| primary.alive) {
                Some(primary) => on(primary),
                None => votes().filter(|(_, member)| on(member)).count() >= voters.quorum(),
            };
            let waits = votes().any(|(_, member)| self.may_be_late(member, *port));
            served || !waits
        })
    }
}
