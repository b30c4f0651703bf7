//! The entries of a pool, and the order of their copies.

use std::collections::VecDeque;
use std::sync::Arc;

use super::ENTRY_OVERHEAD;
use super::index::ContentHash;
use crate::ids::{MAX_REPLICAS, ReplicaId, ReplicaSet};

/// One output, however often it was said.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) hash: ContentHash,
    pub(super) tag: [u64; 2],
    /// `None` once all copies are confirmed and too many bytes are kept for those behind: its hash says what it was.
    pub(super) content: Option<Arc<[u8]>>,
    pub(super) len: usize,
    /// How often each replica has said it.
    pub(super) said: [u32; MAX_REPLICAS],
    /// Copies that some replica has said, that are confirmed or given up, and that are out of the order again.
    pub(super) copies: u32,
    pub(super) released: u32,
    done: u32,
    /// Numbers of the copies after `done`: the first one, and more.
    first: u64,
    more: VecDeque<u64>,
    /// Changes when a copy is added, so that what was noted of the entry before can be told.
    pub(super) generation: u64,
}

impl Entry {
    pub(super) fn new(hash: ContentHash, tag: [u64; 2], len: usize) -> Self {
        Self {
            hash,
            tag,
            content: None,
            len,
            said: [0; MAX_REPLICAS],
            copies: 0,
            released: 0,
            done: 0,
            first: 0,
            more: VecDeque::new(),
            generation: 0,
        }
    }

    pub(super) fn charge(&self) -> usize {
        self.len + ENTRY_OVERHEAD
    }

    /// All its copies are out of the order; it is kept for those who have not said them yet.
    pub(super) fn is_over(&self) -> bool {
        self.done == self.copies
    }

    /// All its copies are confirmed.
    pub(super) fn is_late(&self) -> bool {
        self.released == self.copies
    }

    /// Number of a copy, counted from 1; `u64::MAX` of one that is out of the order.
    pub(super) fn number(&self, copy: u32) -> u64 {
        if copy <= self.done {
            return u64::MAX;
        }
        match (copy - self.done).checked_sub(2) {
            None => self.first,
            Some(i) => self.more.get(i as usize).copied().unwrap_or(self.first),
        }
    }

    pub(super) fn sayers(&self, copy: u32) -> ReplicaSet {
        let who = self.said.iter().enumerate().filter(|(_, n)| **n >= copy);
        who.fold(ReplicaSet::default(), |set, (r, _)| {
            set.with(ReplicaId(r as u8))
        })
    }
}

/// One copy in the order.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) entry: u32,
    pub(super) copy: u32,
    pub(super) since_ns: u64,
    /// On a masked channel, what the speaker among those who said it really said.
    pub(super) own: Option<(u8, Arc<[u8]>)>,
}

/// All entries, and the order in which their copies were first said.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots {
    order: VecDeque<Option<Slot>>,
    first: u64,
    live: usize,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
}

impl Slots {
    /// Number of the oldest copy, and one beyond the newest.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn end(&self) -> u64 {
        self.first + self.order.len() as u64
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Copies in the order that are not done.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    fn at(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }

    /// `None` outside of the order, `Some(None)` for a copy that is done.
    pub(super) fn slot(&self, number: u64) -> Option<Option<&Slot>> {
        self.order.get(self.at(number)?).map(Option::as_ref)
    }

    pub(super) fn slot_mut(&mut self, number: u64) -> Option<&mut Slot> {
        let at = self.at(number)?;
        self.order.get_mut(at)?.as_mut()
    }

    pub(super) fn entry(&self, id: u32) -> Option<&Entry> {
        self.entries.get(id as usize)?.as_ref()
    }

    pub(super) fn entry_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(id as usize)?.as_mut()
    }

    pub(super) fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().flatten()
    }

    pub(super) fn ids(&self) -> Vec<u32> {
        let used = self.entries.iter().enumerate().filter(|(_, e)| e.is_some());
        used.map(|(id, _)| id as u32).collect()
    }

    pub(super) fn insert(&mut self, entry: Entry) -> u32 {
        match self.free.pop() {
            Some(id) => {
                self.entries[id as usize] = Some(entry);
                id
            }
            None => {
                self.entries.push(Some(entry));
                (self.entries.len() - 1) as u32
            }
        }
    }

    /// One copy more of an entry, at the end of the order.
    pub(super) fn copy(&mut self, id: u32, since_ns: u64) -> u64 {
        let number = self.end();
        let Some(entry) = self.entry_mut(id) else {
            return number;
        };
        match entry.copies == entry.done {
            true => entry.first = number,
            false => entry.more.push_back(number),
        }
        entry.copies += 1;
        entry.generation = number;
        let copy = entry.copies;
        self.order.push_back(Some(Slot {
            entry: id,
            copy,
            since_ns,
            own: None,
        }));
        self.live += 1;
        number
    }

    /// Takes an entry out, with all its copies.
    pub(super) fn remove(&mut self, id: u32) -> Option<Entry> {
        let entry = self.entries.get_mut(id as usize)?.take()?;
        self.free.push(id);
        for copy in entry.done + 1..=entry.copies {
            if let Some(at) = self.at(entry.number(copy))
                && let Some(slot) = self.order.get_mut(at)
            {
                *slot = None;
                self.live -= 1;
            }
        }
        self.trim();
        Some(entry)
    }

    /// Drops copies that are done from the front.
    pub(super) fn trim(&mut self) {
        while let Some(None) = self.order.front() {
            self.order.pop_front();
            self.first += 1;
        }
    }

    /// The oldest copy that is not done.
    pub(super) fn front(&mut self) -> Option<(u64, &Slot)> {
        self.trim();
        let first = self.first;
        self.order.front()?.as_ref().map(|slot| (first, slot))
    }

    /// Takes the oldest copy out of the order; its entry stays.
    pub(super) fn pop_front(&mut self) {
        self.trim();
        let Some(Some(slot)) = self.order.pop_front() else {
            return;
        };
        self.first += 1;
        self.live -= 1;
        if let Some(entry) = self.entry_mut(slot.entry) {
            entry.done += 1;
            entry.first = entry.more.pop_front().unwrap_or(entry.first);
        }
        self.trim();
    }

    /// Nothing that is confirmed is expected of this replica any more.
    pub(super) fn forgive(&mut self, r: usize) {
        for entry in self.entries_mut() {
            entry.said[r] = entry.said[r].max(entry.released);
        }
    }
}
