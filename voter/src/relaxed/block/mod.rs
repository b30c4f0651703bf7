//! The vote on writes to a disk by guests that are not deterministic.
//!
//! The unit is a sector. Each replica writes *versions* of it, one after the other; a version is released when a quorum of the voters
//! has written the same content there (R2), and whoever took part has that one, and all that it wrote there before, behind it. The order
//! between sectors is nobody's business until a replica flushes: the flush is settled when the last thing that the replica wrote before it
//! to each sector has been released or overtaken by a release, or is given up under the disk's policy. So barriers are
//! each replica's own: replicas need not flush equally often.
//!
//! What was released stays known until every running replica has come to it. A laggard's write is looked for there first, so it never
//! counts a second time, and what a laggard writes late never comes after what the others wrote since (R3).
//!
//! All of it is a state machine: no thread, no clock (time is told), no I/O. Contents come as [`Digest`]s, keyed with the run's secret.
//! A write costs the same however far replicas are apart: a leader's writes wait in order, and a follower finds its own at the front.

mod digest;
mod report;
mod sector;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::voters::{Role, Voters};
use crate::ids::ReplicaId;
use digest::SectorHash;
pub use digest::{Digest, Digester};
pub use report::{BlockFinding, Unconfirmed, UnconfirmedBy};
use sector::{Node, Past, Sector, Settled};

/// What becomes of a flush whose writes no quorum confirms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnconfirmedPolicy {
    /// It waits; after [`BlockLimits::patience_ns`] somebody is to be stopped ([`BlockFinding`]).
    #[default]
    Hold,
    /// It completes; what was not confirmed stays with the replica, is not released, and is reported.
    Report,
}

/// Bounds and patience (R10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLimits {
    /// See [`UnconfirmedPolicy`].
    pub unconfirmed: UnconfirmedPolicy,
    /// How long a flush waits for the others.
    pub patience_ns: u64,
    /// With [`UnconfirmedPolicy::Report`]: when all voters wait in flushes and nobody has written for so long, nothing will come.
    pub settle_ns: u64,
    /// Writes of sectors of one replica that wait for the others. From here on [`BlockMatcher::has_room`] is false, and at twice as
    /// many the replica's next write is an error.
    pub ahead: usize,
    /// Versions of one sector that are known, per replica and of the past; beyond, the oldest are forgotten: whoever comes to them finds
    /// nobody to agree with.
    pub versions: usize,
    /// Sectors that replicas differ in. At this many the replica that is behind in most of them is to be stopped.
    pub sectors: usize,
}

impl Default for BlockLimits {
    fn default() -> Self {
        Self {
            unconfirmed: UnconfirmedPolicy::Hold,
            patience_ns: 1_000_000_000,
            settle_ns: 20_000_000,
            ahead: 1 << 18,
            versions: 1 << 14,
            sectors: 1 << 20,
        }
    }
}

/// What became of a write to one sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// It completed a quorum: this content is to be put on the disk, after everything that was released before.
    Released,
    /// It is what was released last here.
    Agrees,
    /// It was released, and something else since.
    Past,
    /// It waits for others.
    Waits,
}

/// The replica has written more than anybody can follow: it is to be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{replica} has written {sectors} sectors that the others have not: the bound; it ran away from them, or they are too slow"
)]
pub struct TooFarAhead {
    /// Who.
    pub replica: ReplicaId,
    /// How many sectors.
    pub sectors: usize,
}

/// See [`BlockMatcher::standing`].
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Its writes that wait for others, by sector.
    pub waiting: BTreeMap<u64, u32>,
    /// Releases that it has not come to, by sector.
    pub behind: BTreeMap<u64, u32>,
}

/// A flush that waits.
#[derive(Clone, Copy, Debug)]
struct Flush {
    id: u64,
    /// Everything up to this epoch has to be settled.
    epoch: u64,
    since_ns: u64,
    /// Whether somebody was told that it waits for long.
    told: bool,
}

#[derive(Debug, Default)]
struct Member {
    runs: bool,
    /// Flushes with writes before them.
    epoch: u64,
    /// Whether there were writes since the last.
    wrote: bool,
    /// How many sectors' last writes are not settled, by epoch from `oldest` on.
    unsettled: VecDeque<u32>,
    oldest: u64,
    flushes: VecDeque<Flush>,
    /// Writes that wait, all sectors together.
    live: usize,
}

impl Member {
    fn wait_for(&mut self, epoch: u64) {
        let at = (epoch - self.oldest) as usize;
        if self.unsettled.len() <= at {
            self.unsettled.resize(at + 1, 0);
        }
        self.unsettled[at] += 1;
    }

    fn settle(&mut self, settled: &Settled) {
        self.live = self.live.saturating_sub(settled.nodes);
        for epoch in &settled.epochs {
            let at = epoch.checked_sub(self.oldest);
            if let Some(count) = at.and_then(|at| self.unsettled.get_mut(at as usize)) {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// Whether everything up to this epoch is settled.
    fn is_settled(&mut self, epoch: u64) -> bool {
        while self.oldest < self.epoch && self.unsettled.front().is_none_or(|n| *n == 0) {
            self.unsettled.pop_front();
            self.oldest += 1;
        }
        let upto = (epoch + 1).saturating_sub(self.oldest) as usize;
        self.unsettled.iter().take(upto).all(|n| *n == 0)
    }
}

/// See the module.
#[derive(Debug)]
pub struct BlockMatcher {
    voters: Voters,
    limits: BlockLimits,
    digester: Digester,
    /// One bit for each that runs.
    running: u16,
    members: Vec<Member>,
    sectors: HashMap<u64, Sector, SectorHash>,
    /// When somebody wrote or flushed last.
    moved_ns: u64,
    released: u64,
    given_up: u64,
}

impl BlockMatcher {
    /// A disk on which nobody has written yet; all replicas run.
    #[must_use]
    pub fn new(voters: &Voters, limits: BlockLimits) -> Self {
        let count = voters.len();
        let member = || Member {
            runs: true,
            ..Member::default()
        };
        Self {
            voters: *voters,
            limits,
            digester: Digester::new(voters.key()),
            running: (1u16 << count) - 1,
            members: std::iter::repeat_with(member).take(count).collect(),
            sectors: HashMap::with_hasher(SectorHash::new(voters.key())),
            moved_ns: 0,
            released: 0,
            given_up: 0,
        }
    }

    /// What makes digests for this matcher.
    #[must_use]
    pub fn digester(&self) -> Digester {
        self.digester.clone()
    }

    /// A running replica has written this to a sector.
    ///
    /// # Errors
    /// When it has written too much that the others have not, or does not run.
    pub fn write(
        &mut self,
        replica: ReplicaId,
        number: u64,
        digest: Digest,
        now_ns: u64,
    ) -> Result<Wrote, TooFarAhead> {
        let me = usize::from(replica.0);
        let bound = self.limits.ahead.saturating_mul(2);
        let Some(member) = self.members.get_mut(me) else {
            return Err(TooFarAhead {
                replica,
                sectors: 0,
            });
        };
        if !member.runs || member.live >= bound {
            return Err(TooFarAhead {
                replica,
                sectors: member.live,
            });
        }
        self.moved_ns = self.moved_ns.max(now_ns);
        member.wrote = true;
        let count = self.members.len();
        let sector = self
            .sectors
            .entry(number)
            .or_insert_with(|| Sector::new(count));
        let at = sector.own.get(me).map_or(0, |own| own.at);
        let returns = sector.own[me].returns > 0;
        sector.own[me].returns = sector.own[me].returns.saturating_sub(1);
        // The past first: whoever comes late to what was released says nothing new.
        let mut past = sector.released_after(at, digest);
        let who = if past.is_none() {
            Self::who_says(sector, &self.voters, self.running, me, digest)
        } else {
            0
        };
        if past.is_none() && !enough(&self.voters, self.running, who) {
            // Those who wrote it and went on: together with them it is a quorum's, but something newer has been released since.
            let (passed, place) = sector.passed_after(at, digest);
            if passed != 0 && enough(&self.voters, self.running, who | passed) {
                past = Some(place);
            }
        }
        if let Some(place) = past {
            // All of its writes here are from before it came to this.
            let settled = sector.consume(me, None, None);
            self.members[me].settle(&settled);
            // While it returns it may come to the same content more than once.
            let again = sector.own[me].returns > 0;
            sector.own[me].at = place + u64::from(!again);
            let behind = sector.is_behind(me);
            if !behind && !again {
                sector.own[me].at = sector.end();
            }
            if sector.prune(self.running, self.limits.versions) {
                self.sectors.remove(&number);
            }
            return Ok(match behind {
                true => Wrote::Past,
                false => Wrote::Agrees,
            });
        }
        if returns {
            // Its past, of which only the last is known: it was counted when it was written first, and is no vote for anything now.
            return Ok(Wrote::Past);
        }
        if enough(&self.voters, self.running, who) {
            self.release(number, digest, me, who);
            return Ok(Wrote::Released);
        }
        self.wait(number, digest, me);
        Ok(Wrote::Waits)
    }

    /// Who has this content here, beyond what was released to them, as bits; the writer `me` with them.
    fn who_says(sector: &Sector, voters: &Voters, running: u16, me: usize, digest: Digest) -> u16 {
        let mut who = 1 << me;
        for (r, own) in sector.own.iter().enumerate() {
            if r != me
                && running & (1 << r) != 0
                && voters.role(ReplicaId(r as u8)) != Some(Role::Canary)
                && own.live.iter().any(|node| node.digest == digest)
            {
                who |= 1 << r;
            }
        }
        who
    }

    fn release(&mut self, number: u64, digest: Digest, me: usize, who: u16) {
        self.released += 1;
        let Some(sector) = self.sectors.get_mut(&number) else {
            return;
        };
        // A canary that had it already has it behind it, too.
        let has = |own: &sector::Own| own.live.iter().any(|node| node.digest == digest);
        let mut who = who;
        for (r, own) in sector.own.iter().enumerate() {
            if self.running & (1 << r) != 0 && has(own) {
                who |= 1 << r;
            }
        }
        let keep = self.running & !who != 0;
        let (mut passed, mut ghosts) = (Vec::new(), Vec::new());
        for (r, member) in self.members.iter_mut().enumerate() {
            if who & (1 << r) == 0 {
                continue;
            }
            // What the writer says now is not among its writes yet: all of those are passed over.
            let upto = (r != me).then_some(digest);
            let settled = sector.consume(r, upto, keep.then_some(&mut passed));
            member.settle(&settled);
            ghosts.extend(passed.drain(..).map(|digest| (r as u8, digest)));
        }
        let past = ghosts.into_iter().map(|(r, digest)| Past {
            digest,
            passed_by: Some(r),
        });
        sector.past.extend(past);
        sector.past.push_back(Past {
            digest,
            passed_by: None,
        });
        let end = sector.end();
        for (r, own) in sector.own.iter_mut().enumerate() {
            if who & (1 << r) != 0 {
                own.at = end;
            }
        }
        if sector.prune(self.running, self.limits.versions) {
            self.sectors.remove(&number);
        }
    }

    fn wait(&mut self, number: u64, digest: Digest, me: usize) {
        let Some(sector) = self.sectors.get_mut(&number) else {
            return;
        };
        let (own, member) = (&mut sector.own[me], &mut self.members[me]);
        let epoch = member.epoch;
        if let Some(before) = own.live.back_mut()
            && before.epoch == epoch
            && before.counts
        {
            // Within an epoch the last counts.
            before.counts = false;
            member.settle(&Settled {
                epochs: vec![epoch],
                nodes: 0,
            });
        }
        if own.live.len() >= self.limits.versions
            && let Some(old) = own.live.pop_front()
        {
            let epochs = Vec::from_iter(old.counts.then_some(old.epoch));
            member.settle(&Settled { epochs, nodes: 1 });
        }
        own.live.push_back(Node {
            digest,
            epoch,
            counts: true,
        });
        member.live += 1;
        member.wait_for(epoch);
    }

    /// A running replica flushes; `id` is what [`BlockMatcher::take_settled`] will call it.
    pub fn flush(&mut self, replica: ReplicaId, id: u64, now_ns: u64) {
        let Some(member) = self.members.get_mut(usize::from(replica.0)) else {
            return;
        };
        if !member.runs {
            return;
        }
        self.moved_ns = self.moved_ns.max(now_ns);
        let epoch = member.epoch;
        if std::mem::take(&mut member.wrote) {
            member.epoch += 1;
        }
        member.flushes.push_back(Flush {
            id,
            epoch,
            since_ns: now_ns,
            told: false,
        });
    }

    /// Flushes that wait for nobody any more: they complete when everything released so far is on stable storage (R4).
    pub fn take_settled(&mut self) -> Vec<(ReplicaId, u64)> {
        let mut settled = Vec::new();
        for (r, member) in self.members.iter_mut().enumerate() {
            while let Some(flush) = member.flushes.front().copied()
                && member.is_settled(flush.epoch)
            {
                member.flushes.pop_front();
                settled.push((ReplicaId(r as u8), flush.id));
            }
        }
        settled
    }

    /// Whether the replica should be let write on.
    #[must_use]
    pub fn has_room(&self, replica: ReplicaId) -> bool {
        let member = self.members.get(usize::from(replica.0));
        member.is_none_or(|m| m.live < self.limits.ahead)
    }

    /// Writes of the replica that wait for others, sectors.
    #[must_use]
    pub fn waiting(&self, replica: ReplicaId) -> usize {
        let member = self.members.get(usize::from(replica.0));
        member.map_or(0, |m| m.live)
    }

    /// Writes released so far, sectors.
    #[must_use]
    pub fn released(&self) -> u64 {
        self.released
    }

    /// Sectors that some running replica sees differently.
    #[must_use]
    pub fn open_sectors(&self) -> usize {
        self.sectors.len()
    }

    /// The replica was stopped: what it wrote alone counts no more, and nobody waits for it. The quorum stays as large as it was (R2).
    pub fn leave(&mut self, replica: ReplicaId) {
        let me = usize::from(replica.0);
        let Some(member) = self.members.get_mut(me) else {
            return;
        };
        *member = Member {
            epoch: member.epoch,
            oldest: member.epoch,
            ..Member::default()
        };
        self.running &= !(1 << me);
        let (running, keep) = (self.running, self.limits.versions);
        self.sectors.retain(|_, sector| {
            sector.own[me] = sector::Own::default();
            !sector.prune(running, keep)
        });
    }

    /// Where the replica stands, for a checkpoint.
    #[must_use]
    pub fn standing(&self, replica: ReplicaId) -> Standing {
        let me = usize::from(replica.0);
        let mut standing = Standing::default();
        for (number, sector) in &self.sectors {
            let Some(own) = sector.own.get(me) else {
                continue;
            };
            let behind = sector.behind(me).saturating_add(own.returns);
            if behind > 0 {
                standing.behind.insert(*number, behind);
            }
            if !own.live.is_empty() {
                standing.waiting.insert(*number, own.live.len() as u32);
            }
        }
        standing
    }

    /// A replica that had left is back. `differs` are the sectors that were released beyond its view, with what was last, and how often:
    /// so many writes there are its past again. They are compared with what was last (R7), and its flushes do not wait for them.
    pub fn enter(
        &mut self,
        replica: ReplicaId,
        differs: impl IntoIterator<Item = (u64, Digest, u32)>,
    ) {
        let me = usize::from(replica.0);
        let count = self.members.len();
        let Some(member) = self.members.get_mut(me).filter(|m| !m.runs) else {
            return;
        };
        member.runs = true;
        self.running |= 1 << me;
        for sector in self.sectors.values_mut() {
            let end = sector.end();
            sector.own[me].at = end;
        }
        for (number, digest, writes) in differs {
            let sector = self
                .sectors
                .entry(number)
                .or_insert_with(|| Sector::new(count));
            if sector.past.is_empty() {
                sector.past.push_back(Past {
                    digest,
                    passed_by: None,
                });
                let end = sector.end();
                for own in &mut sector.own {
                    own.at = end;
                }
            }
            sector.own[me].at = sector.first;
            sector.own[me].returns = writes;
        }
    }

    /// Whether the replica runs.
    #[must_use]
    pub fn runs(&self, replica: ReplicaId) -> bool {
        self.running & 1u16.checked_shl(replica.0.into()).unwrap_or(0) != 0
    }
}

/// Whether these are enough for a release: the primary while it runs, else a quorum of those who count.
fn enough(voters: &Voters, running: u16, who: u16) -> bool {
    if let Some(primary) = voters.primary()
        && running & (1 << primary) != 0
    {
        return who & (1 << primary) != 0;
    }
    let counted = (0..voters.len()).filter(|r| who & (1 << r) != 0 && voters.counts(*r));
    counted.count() >= voters.quorum()
}
