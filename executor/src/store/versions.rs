//! Old versions (R6): what a block held before a released write changed it in the base file, kept while somebody may still read
//! the disk as of before that write.
//!
//! A version is known by its block and by the number of the write that it was made for. The view at position `q`
//! of a block is the block's first version whose write is not below `q`; without one, it is what the base file holds.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a block, the unit of versions.
pub const BLOCK: u64 = 4096;
/// What a version without data of its own is counted as, for its place in the tables.
const ENTRY_BYTES: u64 = 64;
/// Most versions that are on their way to the spill file at a time.
const SPILL_BATCH: usize = 256;

/// What a block held.
#[derive(Clone, Debug)]
pub enum Image {
    /// These bytes.
    Data(Arc<[u8]>),
    /// These bytes, which are being written to the spill file.
    Spilling(Arc<[u8]>),
    /// What lies in this slot of the spill file.
    Spilled(u64),
    /// Zeroes.
    Zero,
    /// Nobody knows: the device could not read it.
    Unreadable,
}

/// The blocks that a range touches.
pub fn blocks(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK..range.end.div_ceil(BLOCK)
}

/// The range, rounded out to whole blocks.
pub fn round(range: &Range<u64>, disk_bytes: u64) -> Range<u64> {
    let blocks = blocks(range);
    blocks.start * BLOCK..(blocks.end * BLOCK).min(disk_bytes)
}

/// A batch for the spill file: slots and what goes there.
pub type SpillBatch = Vec<(u64, Arc<[u8]>)>;

/// All old versions of one disk.
#[derive(Debug, Default)]
pub struct Versions {
    images: BTreeMap<(u64, u64), Image>,
    /// The same by write and block: oldest first.
    order: BTreeSet<(u64, u64)>,
    /// Those that hold data in memory, by write and block.
    resident: BTreeSet<(u64, u64)>,
    /// What is on its way to the spill file: (block, write), slot.
    spilling: Vec<((u64, u64), u64)>,
    free_slots: Vec<u64>,
    next_slot: u64,
    max_slots: u64,
    memory: u64,
}

impl Versions {
    /// None yet; the spill file may hold so many bytes.
    pub fn new(spill_bytes: u64) -> Self {
        Self {
            max_slots: spill_bytes / BLOCK,
            ..Self::default()
        }
    }

    /// Bytes held in memory.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Bytes held in the spill file.
    pub fn spilled(&self) -> u64 {
        (self.next_slot - self.free_slots.len() as u64) * BLOCK
    }

    /// Whether there are none at all.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Keeps what the block held before write `seq`.
    pub fn keep(&mut self, block: u64, seq: u64, image: Image) {
        self.memory += cost(&image);
        if matches!(image, Image::Data(_)) {
            self.resident.insert((seq, block));
        }
        self.order.insert((seq, block));
        self.images.insert((block, seq), image);
    }

    /// The versions that position `at` sees in the range, with their blocks.
    pub fn visible(&self, range: &Range<u64>, at: u64) -> Vec<(u64, Image)> {
        if self.images.is_empty() {
            return Vec::new();
        }
        blocks(range)
            .filter_map(|block| {
                let mut later = self.images.range((block, at)..=(block, u64::MAX));
                later.next().map(|(_, image)| (block, image.clone()))
            })
            .collect()
    }

    /// Forgets what nobody sees who is at `oldest` or later.
    pub fn forget(&mut self, oldest: u64) {
        while let Some(&(seq, block)) = self.order.first()
            && seq < oldest
        {
            self.remove(block, seq);
        }
    }

    fn remove(&mut self, block: u64, seq: u64) {
        self.order.remove(&(seq, block));
        let Some(image) = self.images.remove(&(block, seq)) else {
            return;
        };
        self.memory -= cost(&image);
        match image {
            Image::Data(_) => {
                self.resident.remove(&(seq, block));
            }
            Image::Spilled(slot) => self.free_slots.push(slot),
            // The slot becomes free when its write has ended.
            Image::Spilling(_) | Image::Zero | Image::Unreadable => {}
        }
    }

    /// Whether a spill is under way.
    pub fn is_spilling(&self) -> bool {
        !self.spilling.is_empty()
    }

    /// The oldest versions beyond `target` bytes, for the spill file; empty if there is nothing to be done or no room there.
    pub fn spill(&mut self, target: u64) -> SpillBatch {
        let mut batch = Vec::new();
        if self.is_spilling() {
            return batch;
        }
        let mut stays = self.memory;
        while stays > target && batch.len() < SPILL_BATCH {
            let Some(&(seq, block)) = self.resident.first() else {
                break;
            };
            let Some(slot) = self.free_slots.pop().or_else(|| {
                let fresh = self.next_slot < self.max_slots;
                fresh.then(|| {
                    self.next_slot += 1;
                    self.next_slot - 1
                })
            }) else {
                break;
            };
            self.resident.pop_first();
            if let Some(image) = self.images.get_mut(&(block, seq))
                && let Image::Data(data) = image
            {
                stays = stays.saturating_sub(BLOCK);
                batch.push((slot, data.clone()));
                *image = Image::Spilling(data.clone());
            }
            self.spilling.push(((block, seq), slot));
        }
        batch
    }

    /// The spill under way has ended. If it failed, everything stays in memory, and nothing is spilled any more.
    pub fn spill_ended(&mut self, ok: bool) {
        if !ok {
            self.max_slots = 0;
        }
        for (key, slot) in std::mem::take(&mut self.spilling) {
            let image = self.images.get_mut(&key);
            let mut used = false;
            if let Some(image) = image
                && let Image::Spilling(data) = image
            {
                if ok {
                    used = true;
                    *image = Image::Spilled(slot);
                    self.memory -= BLOCK;
                } else {
                    *image = Image::Data(data.clone());
                    self.resident.insert((key.1, key.0));
                }
            }
            if !used {
                self.free_slots.push(slot);
            }
        }
    }
}

/// What is in the spill file is bounded there and costs nothing here.
fn cost(image: &Image) -> u64 {
    match image {
        Image::Data(_) | Image::Spilling(_) => BLOCK,
        Image::Spilled(_) => 0,
        Image::Zero | Image::Unreadable => ENTRY_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(byte: u8) -> Image {
        Image::Data(vec![byte; BLOCK as usize].into())
    }

    fn byte(versions: &Versions, block: u64, at: u64) -> Option<u8> {
        let range = block * BLOCK..block * BLOCK + 1;
        match versions.visible(&range, at).pop()? {
            (_, Image::Data(data) | Image::Spilling(data)) => Some(data[0]),
            _ => None,
        }
    }

    #[test]
    fn a_position_sees_the_first_version_that_is_not_before_it() {
        let mut versions = Versions::new(0);
        versions.keep(7, 10, data(1));
        versions.keep(7, 20, data(2));
        assert_eq!(byte(&versions, 7, 0), Some(1));
        assert_eq!(byte(&versions, 7, 10), Some(1));
        assert_eq!(byte(&versions, 7, 11), Some(2));
        assert_eq!(byte(&versions, 7, 21), None);
        assert_eq!(byte(&versions, 8, 0), None);
    }

    #[test]
    fn what_nobody_sees_is_forgotten() {
        let mut versions = Versions::new(0);
        for seq in 0..3000 {
            versions.keep(0, seq, data(1));
        }
        versions.forget(2990);
        assert_eq!(versions.images.len(), 10);
        assert_eq!(versions.memory(), 10 * BLOCK);
        assert_eq!(byte(&versions, 0, 2990), Some(1));
        versions.forget(3000);
        assert!(versions.is_empty());
        assert_eq!(versions.memory(), 0);
    }

    #[test]
    fn a_slot_is_free_only_when_its_write_has_ended() {
        let mut versions = Versions::new(2 * BLOCK);
        for seq in 0..3 {
            versions.keep(seq, seq, data(seq as u8));
        }
        let batch = versions.spill(0);
        assert_eq!(batch.len(), 2);
        assert_eq!(byte(&versions, 0, 0), Some(0));
        versions.forget(1);
        assert!(versions.spill(0).is_empty());
        versions.spill_ended(true);
        assert_eq!(versions.spilled(), BLOCK);
        assert_eq!(versions.memory(), BLOCK);
        let batch = versions.spill(0);
        assert_eq!(batch[0].0, 0);
        versions.spill_ended(false);
        assert_eq!(byte(&versions, 2, 0), Some(2));
        assert_eq!(versions.memory(), BLOCK);
        versions.forget(9);
        assert_eq!((versions.memory(), versions.spilled()), (0, 0));
    }
}
