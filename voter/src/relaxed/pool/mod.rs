//! Outputs that may come in any order: datagrams, console lines, block writes.
//!
//! An output is a *tag*, which the caller gives a meaning, and bytes. An *entry* is one such output; it was said so
//! and so many times by each replica, and its k-th *copy* is confirmed when a quorum has said it k times: an
//! output that is said twice is two outputs. Copies stand in one order, that in which they were first said. Each replica has
//! a pointer into that order, to what it will probably say next: whoever follows in order is compared there, in place,
//! and only who leads or departs from the order needs the index.

mod confirm;
pub mod index;
mod slots;

use std::collections::VecDeque;
use std::sync::Arc;

use thiserror::Error;

use crate::ids::{MAX_REPLICAS, ReplicaId, ReplicaSet};
use crate::relaxed::difference::{Difference, Reports};
use crate::relaxed::voters::Voters;

use index::{ContentMap, content_hash};
use slots::{Entry, Slots};

/// Steps that the search for a replica's expected next output takes before the index is asked.
const STEPS: usize = 8;

/// Bounds of one channel (R10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimits {
    /// Outputs of one replica that are not confirmed. At the bound its oldest one that can no longer be confirmed is given up
    /// as spurious; if none is, the replica must wait ([`PoolFull`]).
    pub outputs: usize,
    /// Bytes of the same, charged with [`ENTRY_OVERHEAD`] each. As many confirmed ones are kept to be compared as
    /// bytes with those of replicas that are behind; of older ones only the keyed hash is kept.
    pub bytes: usize,
    /// What is not confirmed after this time, in nanoseconds, is spurious, and what a replica has not said so long after
    /// the others is missing.
    pub age_ns: u64,
    /// How long, in nanoseconds, the word of [`crate::relaxed::Policy::Primary`]'s replica waits for the others.
    pub patience_ns: u64,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self {
            outputs: 16 << 10,
            bytes: 16 << 20,
            age_ns: 5_000_000_000,
            patience_ns: 1_000_000_000,
        }
    }
}

/// What each output is charged beyond its bytes.
pub const ENTRY_OVERHEAD: usize = 128;

/// The replica has said more than [`PoolLimits`] allow it to be ahead, or the caller has not fetched what was confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the replica is as far ahead as it may be on this channel")]
pub struct PoolFull;

/// What became of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Its number: the same for every replica that says this copy of it.
    pub number: u64,
    /// It had been confirmed before this replica said it.
    pub was_confirmed: bool,
    /// There is something new to fetch.
    pub news: bool,
}

/// A confirmed output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// As given.
    pub tag: [u64; 2],
    /// The bytes that a quorum said; of a masked channel the speaker's version of them.
    pub bytes: Arc<[u8]>,
    /// Its number; as in [`Pushed`].
    pub number: u64,
    /// Who had said it by then.
    pub by: Vec<ReplicaId>,
}

/// Numbers of one channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Outputs confirmed.
    pub confirmed: u64,
    /// Copies that were never confirmed, and given up.
    pub spurious: u64,
    /// Times that a replica did not say a confirmed output in time.
    pub missing: u64,
    /// Outputs found where the replica was expected to go on, without the index.
    pub fast: u64,
    /// Outputs that the index was asked for and that were known.
    pub searched: u64,
    /// Outputs that nobody had said before.
    pub new: u64,
    /// Outputs of replicas that are stopped, or that said them again after they came back.
    pub ignored: u64,
    /// Copies that wait: for a quorum, or for the replicas behind.
    pub waiting: usize,
    /// Bytes held for them.
    pub held: usize,
    /// Differences that were not kept because too many waited.
    pub differences_dropped: u64,
}

/// One replica's place in the order.
#[derive(Clone, Copy, Debug)]
struct Place {
    live: bool,
    given_up: bool,
    /// Number of the copy it will probably say next.
    next: u64,
    /// One beyond the furthest copy it has said.
    furthest: u64,
    /// Its last output stood elsewhere than expected.
    missed: bool,
    /// Outputs and bytes of it that are not confirmed.
    waiting: usize,
    bytes: usize,
    /// Outputs it has said.
    total: u64,
    /// So many outputs it will say again.
    again: u64,
}

/// Agrees on outputs that may come in any order.
#[derive(Clone, Debug)]
pub struct Pool {
    voters: Voters,
    limits: PoolLimits,
    channel: u64,
    places: [Place; MAX_REPLICAS],
    slots: Slots,
    index: ContentMap<u32>,
    /// Confirmed, until fetched, and how many bytes these are.
    out: VecDeque<Confirmed>,
    out_bytes: usize,
    /// Entries with all copies confirmed that still hold their bytes, oldest first.
    late: VecDeque<(u32, u64)>,
    /// Entries of which only the hash is kept, for those who have not said them in time; as many as outputs may wait (R10). Who
    /// is later than that is heard anew.
    debts: VecDeque<(u32, u64)>,
    /// Bytes of unconfirmed contents, and of confirmed ones.
    held: usize,
    held_late: usize,
    /// Copies before this one are not waited for any more, under `Policy::Primary`.
    patient_from: u64,
    reports: Reports,
    stats: PoolStats,
}

impl Pool {
    /// A channel on which nobody has said anything.
    #[must_use]
    pub fn new(voters: &Voters, limits: PoolLimits) -> Self {
        let place = Place {
            live: true,
            given_up: false,
            next: 0,
            furthest: 0,
            missed: false,
            waiting: 0,
            bytes: 0,
            total: 0,
            again: 0,
        };
        Self {
            voters: *voters,
            limits,
            channel: 0,
            places: [place; MAX_REPLICAS],
            slots: Slots::default(),
            index: ContentMap::default(),
            out: VecDeque::new(),
            out_bytes: 0,
            late: VecDeque::new(),
            debts: VecDeque::new(),
            held: 0,
            held_late: 0,
            patient_from: 0,
            reports: Reports::default(),
            stats: PoolStats::default(),
        }
    }

    /// The same, with the caller's number for the channel, which differences carry as their connection.
    #[must_use]
    pub fn for_channel(mut self, channel: u64) -> Self {
        self.channel = channel;
        self
    }

    /// A replica says an output, at `now_ns`.
    ///
    /// # Errors
    /// [`PoolFull`] if it must wait; nothing has changed then.
    pub fn push(
        &mut self,
        replica: ReplicaId,
        tag: [u64; 2],
        bytes: &[u8],
        now_ns: u64,
    ) -> Result<Pushed, PoolFull> {
        self.push_as(replica, tag, bytes, None, now_ns)
    }

    /// The same for a masked channel: `bytes` is what is compared, `own` what this replica really said.
    pub(crate) fn push_as(
        &mut self,
        replica: ReplicaId,
        tag: [u64; 2],
        bytes: &[u8],
        own: Option<&[u8]>,
        now_ns: u64,
    ) -> Result<Pushed, PoolFull> {
        let r = usize::from(replica.0);
        if r >= self.voters.len() || !self.places[r].live {
            return Ok(self.ignore());
        }
        if self.out.len() >= self.limits.outputs || self.out_bytes >= self.limits.bytes {
            return Err(PoolFull);
        }
        if self.places[r].again > 0 {
            return self.push_again(r, tag, bytes, own);
        }
        if let Some((number, id)) = self.expected(r, tag, bytes) {
            self.stats.fast += 1;
            self.places[r].missed = false;
            self.places[r].next = number + 1;
            return self.say(r, id, own);
        }
        let hash = content_hash(self.voters.key(), tag, bytes);
        let known = self.index.get(&hash).copied();
        if known.is_some_and(|id| !self.is(id, tag, bytes)) {
            return Ok(self.ignore());
        }
        if let Some((number, id)) = self.unsaid(r, known) {
            self.stats.searched += 1;
            let place = &mut self.places[r];
            // Behind what was expected it is a straggler, unless that happens again and again.
            if number != u64::MAX && (number >= place.next || place.missed) {
                place.next = number + 1;
            }
            place.missed = true;
            return self.say(r, id, own);
        }
        self.make_room(r, bytes.len())?;
        let id = match self.index.get(&hash).copied() {
            Some(id) => id,
            None => {
                let id = self.slots.insert(Entry::new(hash, tag, bytes.len()));
                self.index.insert(hash, id);
                id
            }
        };
        let number = self.add(id, bytes, now_ns);
        self.stats.new += 1;
        // Whoever leads goes on leading; whoever is behind has said something of its own, and goes on where it was.
        let place = &mut self.places[r];
        if place.next >= number {
            place.next = number + 1;
        }
        self.say(r, id, own)
    }

    fn ignore(&mut self) -> Pushed {
        self.stats.ignored += 1;
        Pushed {
            number: u64::MAX,
            was_confirmed: false,
            news: false,
        }
    }

    /// Compares as bytes what the hash has found (R2), unless only the hash is left.
    fn is(&self, id: u32, tag: [u64; 2], bytes: &[u8]) -> bool {
        let same = |content: &Arc<[u8]>| **content == *bytes;
        let entry = self.slots.entry(id);
        entry.is_none_or(|e| e.tag == tag && e.content.as_ref().is_none_or(same))
    }

    /// The first copy of a known entry that this replica has not said.
    fn unsaid(&self, r: usize, known: Option<u32>) -> Option<(u64, u32)> {
        let id = known?;
        let entry = self.slots.entry(id)?;
        let next = entry.said[r] + 1;
        (next <= entry.copies).then(|| (entry.number(next), id))
    }

    /// An output of a replica that is back and has not come as far as the others were then: most of this was said
    /// before. Only what still waits for a vote is looked for.
    fn push_again(
        &mut self,
        r: usize,
        tag: [u64; 2],
        bytes: &[u8],
        own: Option<&[u8]>,
    ) -> Result<Pushed, PoolFull> {
        self.places[r].again -= 1;
        let hash = content_hash(self.voters.key(), tag, bytes);
        let known = self.index.get(&hash).copied();
        match self.unsaid(r, known.filter(|id| self.is(*id, tag, bytes))) {
            Some((number, id)) => {
                if number != u64::MAX {
                    self.places[r].next = number + 1;
                }
                self.say(r, id, own)
            }
            None => {
                self.places[r].total += 1;
                Ok(self.ignore())
            }
        }
    }

    /// What this replica says next if it goes on in order, if that is what it says.
    fn expected(&mut self, r: usize, tag: [u64; 2], bytes: &[u8]) -> Option<(u64, u32)> {
        let place = &mut self.places[r];
        place.next = place.next.max(self.slots.first());
        for number in place.next..place.next + STEPS as u64 {
            let (id, copy) = match self.slots.slot(number) {
                None => return None,
                Some(None) => continue,
                Some(Some(slot)) => (slot.entry, slot.copy),
            };
            let entry = self.slots.entry(id)?;
            if entry.said[r] >= copy {
                continue;
            }
            let same = entry.tag == tag && entry.content.as_deref() == Some(bytes);
            return same.then_some((number, id));
        }
        // Too many that were said out of order: from the index on anew.
        place.next += STEPS as u64;
        None
    }

    /// Fetches the next confirmed output, in the order of confirmation.
    pub fn take_confirmed(&mut self) -> Option<Confirmed> {
        let next = self.out.pop_front()?;
        self.out_bytes -= next.bytes.len() + ENTRY_OVERHEAD;
        Some(next)
    }

    /// A replica was stopped: what it has said still counts, but it is not waited for. The quorum does not shrink (R2).
    pub fn leave(&mut self, replica: ReplicaId) {
        let r = usize::from(replica.0);
        if r < self.voters.len() && self.places[r].live {
            self.places[r].live = false;
            self.reconsider();
        }
    }

    /// A replica is back, at a place where it had said `position` outputs. What it says until it has said as many as a
    /// quorum has by now was said before, by itself or while it was away, and counts only for what still waits.
    pub fn enter(&mut self, replica: ReplicaId, position: u64) {
        let r = usize::from(replica.0);
        if r >= self.voters.len() {
            return;
        }
        let mut totals = self.places.map(|place| place.total);
        totals.sort_unstable_by(|a, b| b.cmp(a));
        let usual = totals.get(self.voters.quorum() - 1).copied();
        let end = self.slots.end();
        let place = &mut self.places[r];
        place.live = true;
        place.given_up = false;
        place.next = end;
        place.furthest = self.slots.first();
        place.missed = true;
        place.total = position;
        place.again = usual.unwrap_or(0).saturating_sub(position);
        self.slots.forgive(r);
        self.reconsider();
    }

    /// Under [`crate::relaxed::Policy::Primary`] the primary's word is no longer held back for this replica.
    pub fn give_up_on(&mut self, replica: ReplicaId) {
        let r = usize::from(replica.0);
        if r < self.voters.len() && !self.places[r].given_up {
            self.places[r].given_up = true;
            self.reconsider();
        }
    }

    /// Outputs that a replica has said.
    #[must_use]
    pub fn position(&self, replica: ReplicaId) -> u64 {
        let place = self.places.get(usize::from(replica.0));
        place.map_or(0, |place| place.total)
    }

    /// Who has said this copy of an output; `None` if nobody is waited for any more.
    #[must_use]
    pub fn said_by(&self, number: u64) -> Option<Vec<ReplicaId>> {
        let slot = self.slots.slot(number)??;
        let entry = self.slots.entry(slot.entry)?;
        Some(entry.sayers(slot.copy).to_vec())
    }

    /// Copies that are not confirmed, oldest first: number, tag, bytes, and who said them.
    pub fn unconfirmed(&self) -> impl Iterator<Item = (u64, [u64; 2], &Arc<[u8]>, Vec<ReplicaId>)> {
        (self.slots.first()..self.slots.end()).filter_map(|number| {
            let slot = self.slots.slot(number)??;
            let entry = self.slots.entry(slot.entry)?;
            let content = entry.content.as_ref()?;
            let waits = slot.copy > entry.released;
            waits.then(|| (number, entry.tag, content, entry.sayers(slot.copy).to_vec()))
        })
    }

    /// Replicas that departed from what was confirmed. `position` is the output's number.
    pub fn differences(&mut self) -> Vec<Difference> {
        self.reports.take()
    }

    /// Numbers.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        PoolStats {
            waiting: self.slots.live(),
            held: self.held + self.held_late,
            differences_dropped: self.reports.dropped,
            ..self.stats
        }
    }

    fn live(&self) -> ReplicaSet {
        (0..self.voters.len())
            .filter(|r| self.places[*r].live)
            .fold(ReplicaSet::default(), |set, r| set.with(ReplicaId(r as u8)))
    }
}
