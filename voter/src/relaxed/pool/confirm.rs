//! When an output is confirmed, and when it is given up.

use super::slots::Entry;
use super::{Confirmed, ENTRY_OVERHEAD, Pool, PoolFull, Pushed};
use crate::ids::ReplicaSet;
use crate::relaxed::difference::{DIFFERENCE_EXCERPT_BYTES, Departure, Difference};

impl Pool {
    /// A replica has said one copy more of an entry.
    pub(super) fn say(
        &mut self,
        r: usize,
        id: u32,
        own: Option<&[u8]>,
    ) -> Result<Pushed, PoolFull> {
        let Some(entry) = self.slots.entry_mut(id) else {
            return Err(PoolFull);
        };
        entry.said[r] += 1;
        let copy = entry.said[r];
        let (number, charge) = (entry.number(copy), entry.charge());
        let was_confirmed = copy <= entry.released;
        let place = &mut self.places[r];
        place.total += 1;
        if number != u64::MAX {
            place.furthest = place.furthest.max(number + 1);
        }
        if !was_confirmed {
            place.waiting += 1;
            place.bytes += charge;
            let counts = |r: usize| self.voters.counts(r) || self.voters.primary() == Some(r);
            if let Some(own) = own
                && let Some(slot) = self.slots.slot_mut(number)
            {
                // The lowest who counts speaks; under `Policy::Primary`, the primary.
                let rank = |r: usize| (!counts(r), self.voters.primary() != Some(r), r);
                let now = slot.own.as_ref().map(|(r, _)| rank(usize::from(*r)));
                if now.is_none_or(|now| rank(r) < now) {
                    slot.own = Some((r as u8, own.into()));
                }
            }
        }
        let before = self.stats.confirmed;
        self.confirm(id);
        self.finish(id);
        let news = self.stats.confirmed != before || !self.reports.is_empty();
        Ok(Pushed {
            number,
            was_confirmed,
            news,
        })
    }

    /// The copy can be released (R2).
    fn is_confirmed(&self, entry: &Entry, copy: u32) -> bool {
        let said = |r: usize| entry.said[r] >= copy;
        if let Some(p) = self.voters.primary()
            && self.places[p].live
        {
            let patient = entry.number(copy) >= self.patient_from;
            let waits = |r: &usize| {
                self.voters.counts(*r) && self.places[*r].live && !self.places[*r].given_up
            };
            let mut others = (0..self.voters.len()).filter(waits);
            return said(p) && (!patient || others.all(said));
        }
        let votes = (0..self.voters.len()).filter(|r| self.voters.counts(*r) && said(*r));
        votes.count() >= self.voters.quorum()
    }

    /// Releases copies of an entry that can be.
    fn confirm(&mut self, id: u32) {
        while let Some(entry) = self.slots.entry(id)
            && entry.released < entry.copies
            && self.is_confirmed(entry, entry.released + 1)
        {
            let (copy, charge) = (entry.released + 1, entry.charge());
            let (number, sayers) = (entry.number(copy), entry.sayers(copy));
            let (tag, content) = (entry.tag, entry.content.clone());
            let own = self.slots.slot_mut(number).and_then(|slot| slot.own.take());
            if let Some(bytes) = own.map(|(_, own)| own).or(content) {
                self.out_bytes += bytes.len() + ENTRY_OVERHEAD;
                self.out.push_back(Confirmed {
                    tag,
                    bytes,
                    number,
                    by: sayers.to_vec(),
                });
            }
            self.stats.confirmed += 1;
            self.settled(id, sayers, charge);
        }
    }

    /// One copy more of an entry is confirmed or given up.
    fn settled(&mut self, id: u32, sayers: ReplicaSet, charge: usize) {
        for r in sayers.iter() {
            let place = &mut self.places[usize::from(r.0)];
            place.waiting -= 1;
            place.bytes -= charge;
        }
        let Some(entry) = self.slots.entry_mut(id) else {
            return;
        };
        entry.released += 1;
        if !entry.is_late() {
            return;
        }
        self.held -= charge;
        self.held_late += charge;
        self.late.push_back((id, entry.generation));
        // R10: for those behind, bytes are kept within the bound, and hashes of the rest.
        while self.held_late > self.limits.bytes || self.late.len() > self.limits.outputs {
            let Some((id, generation)) = self.late.pop_front() else {
                break;
            };
            if let Some(entry) = self.slots.entry_mut(id)
                && entry.generation == generation
                && entry.is_late()
                && entry.content.take().is_some()
            {
                self.held_late -= entry.charge();
            }
        }
    }

    /// Adds a copy, which nobody has said yet, to an entry.
    pub(super) fn add(&mut self, id: u32, bytes: &[u8], now_ns: u64) -> u64 {
        if let Some(entry) = self.slots.entry_mut(id)
            && entry.is_late()
        {
            let charge = entry.charge();
            match &entry.content {
                Some(_) => self.held_late -= charge,
                None => entry.content = Some(bytes.into()),
            }
            self.held += charge;
        }
        self.slots.copy(id, now_ns)
    }

    /// Drops an entry that nobody is waited for any more.
    fn finish(&mut self, id: u32) {
        let live = self.live();
        if let Some(entry) = self.slots.entry(id)
            && entry.is_late()
            && live.minus(entry.sayers(entry.copies)).is_empty()
        {
            self.remove(id);
        }
        self.advance(live);
    }

    fn remove(&mut self, id: u32) {
        if let Some(entry) = self.slots.remove(id) {
            self.index.remove(&entry.hash);
            if entry.content.is_some() {
                self.held_late -= entry.charge();
            }
        }
        let gone = |(id, generation): &(u32, u64)| {
            let entry = self.slots.entry(*id);
            entry.is_none_or(|e| e.generation != *generation)
        };
        while self.late.front().is_some_and(gone) {
            self.late.pop_front();
        }
    }

    /// Takes copies out of the order that all have said.
    fn advance(&mut self, live: ReplicaSet) {
        while let Some((_, slot)) = self.slots.front() {
            let (id, copy) = (slot.entry, slot.copy);
            let done = self.slots.entry(id).is_none_or(|entry| {
                copy <= entry.released && live.minus(entry.sayers(copy)).is_empty()
            });
            if !done {
                return;
            }
            self.slots.pop_front();
        }
    }

    /// Makes room for one output more of a replica.
    pub(super) fn make_room(&mut self, r: usize, len: usize) -> Result<(), PoolFull> {
        let most = self.limits.outputs.max(1);
        loop {
            let place = &self.places[r];
            let over = place.bytes + len + ENTRY_OVERHEAD > self.limits.bytes;
            let full = place.waiting >= most || (over && place.waiting > 0);
            let long = self.slots.len() >= most * (self.voters.len() + 1);
            if !full && !long {
                return Ok(());
            }
            let Some((number, slot)) = self.slots.front() else {
                return Ok(());
            };
            let (id, copy) = (slot.entry, slot.copy);
            let keep = self.slots.entry(id).is_some_and(|entry| {
                copy > entry.released && !self.is_hopeless(entry, copy, number)
            });
            if keep && !long {
                return Err(PoolFull);
            }
            self.give_up();
        }
    }

    /// So many have gone on beyond this copy without saying it that it will have no quorum, if they go on in order.
    fn is_hopeless(&self, entry: &Entry, copy: u32, number: u64) -> bool {
        let may = |r: &usize| {
            let place = &self.places[*r];
            entry.said[*r] >= copy || (place.live && place.furthest <= number)
        };
        if let Some(p) = self.voters.primary()
            && self.places[p].live
        {
            return !may(&p);
        }
        let voters = (0..self.voters.len()).filter(|r| self.voters.counts(*r));
        voters.filter(may).count() < self.voters.quorum()
    }

    /// Gives the oldest copy up: as spurious, or as missing of those who have not said it.
    fn give_up(&mut self) {
        let Some((number, slot)) = self.slots.front() else {
            return;
        };
        let (id, copy) = (slot.entry, slot.copy);
        let Some(entry) = self.slots.entry(id) else {
            return self.slots.pop_front();
        };
        let (sayers, charge, live) = (entry.sayers(copy), entry.charge(), self.live());
        let excerpt = entry.content.as_ref().map_or_else(Vec::new, |content| {
            content[..content.len().min(DIFFERENCE_EXCERPT_BYTES)].to_vec()
        });
        let spurious = copy > entry.released;
        let (who, kind) = match spurious {
            true => (sayers.and(live), Departure::Spurious),
            false => (live.minus(sayers), Departure::Missing),
        };
        for replica in who.iter() {
            let (said, released) = match spurious {
                true => (excerpt.clone(), Vec::new()),
                false => (Vec::new(), excerpt.clone()),
            };
            self.reports.push(Difference {
                replica,
                connection: self.channel,
                kind,
                position: number,
                within: 0,
                request: None,
                excerpt_at: 0,
                released,
                said,
            });
        }
        match spurious {
            true => {
                self.stats.spurious += 1;
                self.settled(id, sayers, charge);
            }
            false => self.stats.missing += u64::from(who.len()),
        }
        self.slots.pop_front();
        let Some(entry) = self.slots.entry_mut(id) else {
            return;
        };
        if spurious {
            // Nothing went out: who says it later says it anew.
            for said in &mut entry.said {
                *said = copy.max(*said);
            }
        } else if entry.is_over() {
            // It went out: who says it later must not be heard as saying it a second time.
            if entry.content.take().is_some() {
                self.held_late -= charge;
            }
            self.debts.push_back((id, entry.generation));
        }
        self.finish(id);
        while self.debts.len() > self.limits.outputs {
            if let Some((id, generation)) = self.debts.pop_front()
                && let Some(entry) = self.slots.entry(id)
                && entry.generation == generation
                && entry.is_over()
            {
                self.remove(id);
            }
        }
    }

    /// Time passes: what is too old is given up. True if there is something new to fetch.
    pub fn tick(&mut self, now_ns: u64) -> bool {
        let before = self.stats.confirmed;
        let old = |since: u64, age: u64| since.saturating_add(age) <= now_ns;
        if self.voters.primary().is_some() {
            while let Some(slot) = self.slots.slot(self.patient_from.max(self.slots.first()))
                && slot.is_none_or(|slot| old(slot.since_ns, self.limits.patience_ns))
            {
                let id = slot.map(|slot| slot.entry);
                self.patient_from = self.patient_from.max(self.slots.first()) + 1;
                if let Some(id) = id {
                    self.confirm(id);
                    self.finish(id);
                }
            }
        }
        while let Some((_, slot)) = self.slots.front()
            && old(slot.since_ns, self.limits.age_ns)
        {
            self.give_up();
        }
        self.stats.confirmed != before || !self.reports.is_empty()
    }

    /// Looks at everything again, after somebody came or went.
    pub(super) fn reconsider(&mut self) {
        for id in self.slots.ids() {
            self.confirm(id);
            self.finish(id);
        }
    }
}
