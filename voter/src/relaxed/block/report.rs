//! What does not agree, and what to do about it.

use super::sector::Sector;
use super::{BlockMatcher, Digest, Settled, UnconfirmedPolicy};
use crate::ids::ReplicaId;
use crate::relaxed::voters::Role;

/// Sectors listed in a finding or report; more are counted.
const LISTED: usize = 4096;

/// One replica's word on an unconfirmed sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnconfirmedBy {
    /// Who.
    pub replica: ReplicaId,
    /// What it wrote last.
    pub digest: Digest,
    /// Its flushes before that.
    pub epoch: u64,
    /// Whether its flush went on without it.
    pub given_up: bool,
}

/// A sector that holds, for somebody, what no quorum wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unconfirmed {
    /// Its number.
    pub sector: u64,
    /// Whether a quorum agreed on something here that these replicas do not have.
    pub decided: bool,
    /// Who wrote what.
    pub said: Vec<UnconfirmedBy>,
}

/// Something that the owner of the set has to decide on or should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockFinding {
    /// A flush waits for long, and others have not written at all since: they may be slow.
    Slow {
        /// Whose flush.
        replica: ReplicaId,
        /// For whom it waits.
        others: Vec<ReplicaId>,
        /// Sectors that it waits for.
        sectors: Vec<Unconfirmed>,
    },
    /// A quorum agreed on something else than this replica wrote before its flush: it is a minority (R5).
    Outvoted {
        /// Who.
        replica: ReplicaId,
        /// Where.
        sectors: Vec<Unconfirmed>,
    },
    /// There is no quorum for what this replica wrote before its flush, and none for anything else.
    NoMajority {
        /// Whose flush.
        replica: ReplicaId,
        /// Where.
        sectors: Vec<Unconfirmed>,
    },
    /// A flush went on without these sectors being on the disk ([`UnconfirmedPolicy::Report`]).
    GivenUp {
        /// Whose flush.
        replica: ReplicaId,
        /// Where.
        sectors: Vec<Unconfirmed>,
    },
    /// Replicas differ in more sectors than can be remembered; this one is behind in most of them, and is to be stopped.
    Behind {
        /// Who.
        replica: ReplicaId,
        /// In how many.
        sectors: usize,
    },
}

impl BlockMatcher {
    /// To be called now and then, with the time: what waits for too long. Flushes that were given up on are settled afterwards.
    pub fn judge(&mut self, now_ns: u64) -> Vec<BlockFinding> {
        let mut findings = Vec::new();
        let quiet = now_ns.saturating_sub(self.moved_ns) >= self.limits.settle_ns;
        let (voters, running) = (self.voters, self.running);
        // Who could still say something.
        let is_voter = |r: usize| {
            running & (1 << r) != 0 && voters.role(ReplicaId(r as u8)) != Some(Role::Canary)
        };
        let flushing: Vec<bool> = self.members.iter().map(|m| !m.flushes.is_empty()).collect();
        for me in 0..self.members.len() {
            let replica = ReplicaId(me as u8);
            let member = &mut self.members[me];
            let Some(flush) = member.flushes.front().copied() else {
                continue;
            };
            if member.is_settled(flush.epoch) {
                continue;
            }
            let waited = now_ns.saturating_sub(flush.since_ns);
            let patient = waited < self.limits.patience_ns;
            let all_flush = (0..flushing.len()).all(|r| r == me || !is_voter(r) || flushing[r]);
            let canary = voters.role(replica) == Some(Role::Canary);
            // A canary never delays, and is never waited for: its differences are only told.
            if canary || self.limits.unconfirmed == UnconfirmedPolicy::Report {
                if patient && !(quiet && all_flush) {
                    continue;
                }
                let sectors = self.unsettled(me, flush.epoch);
                self.give_up(me, flush.epoch);
                findings.push(BlockFinding::GivenUp { replica, sectors });
                continue;
            }
            if patient {
                continue;
            }
            let silent: Vec<ReplicaId> = (0..flushing.len())
                .filter(|r| *r != me && is_voter(*r) && !flushing[*r])
                .map(|r| ReplicaId(r as u8))
                .collect();
            let sectors = self.unsettled(me, flush.epoch);
            let decided = sectors.iter().any(|s| s.decided);
            let told = std::mem::replace(&mut self.members[me].flushes[0].told, true);
            if decided {
                findings.push(BlockFinding::Outvoted { replica, sectors });
            } else if !silent.is_empty() && waited < 2 * self.limits.patience_ns {
                // Told once; whoever is slow may be stopped, or come to it.
                if !told {
                    findings.push(BlockFinding::Slow {
                        replica,
                        others: silent,
                        sectors,
                    });
                }
            } else {
                findings.push(BlockFinding::NoMajority { replica, sectors });
            }
        }
        if self.sectors.len() >= self.limits.sectors {
            findings.extend(self.furthest_behind());
        }
        findings
    }

    /// The next moment at which [`BlockMatcher::judge`] could find something, if nothing happens until then.
    #[must_use]
    pub fn next_judgement_ns(&self) -> Option<u64> {
        let limits = &self.limits;
        let waits = self.members.iter().filter_map(|m| m.flushes.front());
        let next = waits
            .map(|flush| match limits.unconfirmed {
                UnconfirmedPolicy::Report => flush.since_ns.max(self.moved_ns) + limits.settle_ns,
                UnconfirmedPolicy::Hold => flush.since_ns + limits.patience_ns,
            })
            .min();
        next.or_else(|| (self.sectors.len() >= limits.sectors).then_some(self.moved_ns))
    }

    /// The replica's writes up to this epoch that a flush waits for.
    fn unsettled(&self, me: usize, epoch: u64) -> Vec<Unconfirmed> {
        let mut found = Vec::new();
        for (number, sector) in &self.sectors {
            let own = &sector.own[me];
            if own.live.iter().any(|n| n.counts && n.epoch <= epoch) {
                found.push(self.describe(*number, sector, me));
            }
        }
        found.sort_unstable_by_key(|u| u.sector);
        found.truncate(LISTED);
        found
    }

    fn describe(&self, number: u64, sector: &Sector, me: usize) -> Unconfirmed {
        let members = sector.own.iter().enumerate();
        let said = members
            .filter(|(r, _)| self.running & (1 << r) != 0)
            .filter_map(|(r, own)| {
                let last = own.live.back()?;
                Some(UnconfirmedBy {
                    replica: ReplicaId(r as u8),
                    digest: last.digest,
                    epoch: last.epoch,
                    given_up: !last.counts,
                })
            });
        Unconfirmed {
            sector: number,
            decided: sector.is_behind(me),
            said: said.collect(),
        }
    }

    /// What the replica wrote up to this epoch is waited for no more. Its last word in each sector still counts when somebody else
    /// comes to it; what was before is forgotten, because the replica went on from its flush: a later release of that would take back what
    /// its guest takes for stored.
    fn give_up(&mut self, me: usize, epoch: u64) {
        for sector in self.sectors.values_mut() {
            let Some(own) = sector.own.get_mut(me) else {
                continue;
            };
            let upto = own.live.iter().take_while(|n| n.epoch <= epoch).count();
            if upto == 0 {
                continue;
            }
            let mut settled = Settled::default();
            for node in own.live.drain(..upto - 1) {
                settled.nodes += 1;
                settled.epochs.extend(node.counts.then_some(node.epoch));
            }
            if let Some(last) = own.live.front_mut()
                && std::mem::take(&mut last.counts)
            {
                settled.epochs.push(last.epoch);
                self.given_up += 1;
            }
            self.members[me].settle(&settled);
        }
    }

    /// The replica's oldest flush is to fail: it and what it waited for are given up. Its name.
    pub fn fail_flush(&mut self, replica: ReplicaId) -> Option<u64> {
        let me = usize::from(replica.0);
        let flush = self.members.get_mut(me)?.flushes.pop_front()?;
        self.give_up(me, flush.epoch);
        Some(flush.id)
    }

    /// Sectors given up on so far.
    #[must_use]
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    fn furthest_behind(&self) -> Option<BlockFinding> {
        let mut behind = vec![0usize; self.members.len()];
        for sector in self.sectors.values() {
            for (r, count) in behind.iter_mut().enumerate() {
                let runs = self.running & (1 << r) != 0;
                *count += usize::from(runs && sector.is_behind(r));
            }
        }
        // Those who are ahead are bounded by themselves.
        let (r, sectors) = behind.into_iter().enumerate().max_by_key(|(_, n)| *n)?;
        (sectors > 0).then_some(BlockFinding::Behind {
            replica: ReplicaId(r as u8),
            sectors,
        })
    }

    /// Everything that is not confirmed now, by sector: what replicas wrote that no quorum did. `all`: also what may only not be confirmed
    /// yet; else what was given up on.
    #[must_use]
    pub fn unconfirmed(&self, all: bool) -> Vec<Unconfirmed> {
        let mut found = Vec::new();
        for (number, sector) in &self.sectors {
            let by = |r: usize, own: &super::sector::Own| {
                self.running & (1 << r) != 0
                    && own.live.back().is_some_and(|last| all || !last.counts)
            };
            let mut who = sector.own.iter().enumerate();
            if let Some((me, _)) = who.find(|(r, own)| by(*r, own)) {
                found.push(self.describe(*number, sector, me));
            }
        }
        found.sort_unstable_by_key(|u| u.sector);
        found
    }
}
