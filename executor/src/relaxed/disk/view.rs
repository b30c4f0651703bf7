//! One replica's view of a disk, as far as it is not the base file's content.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use quorate_devices::SECTOR;

use super::tree::Tree;
use crate::store::Spill;
use crate::sync::lock;

/// Bytes of a block, the unit of the map.
pub const BLOCK: u64 = 4096;
/// Sectors of a block: one bit each in a mask.
const PER_BLOCK: u64 = BLOCK / SECTOR;

/// Bytes of one block.
pub type Bytes = [u8; BLOCK as usize];

/// Where contents are kept, for all views of a disk: in memory up to a bound, then in a file without a name up to another (R10).
pub struct Pool {
    spill: Spill,
    memory_bytes: u64,
    spill_slots: u64,
    memory: AtomicU64,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    free: Vec<u64>,
    next: u64,
}

impl Pool {
    /// An empty one.
    pub fn new(spill: Spill, memory_bytes: u64, spill_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            spill,
            memory_bytes,
            spill_slots: spill_bytes / BLOCK,
            memory: AtomicU64::new(0),
            slots: Mutex::default(),
        })
    }

    /// Bytes in memory.
    pub fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    /// Bytes in the file.
    pub fn spilled(&self) -> u64 {
        let slots = lock(&self.slots);
        (slots.next - slots.free.len() as u64) * BLOCK
    }

    fn keep(self: &Arc<Self>, bytes: &Bytes) -> io::Result<Arc<Data>> {
        let place = if bytes.iter().all(|b| *b == 0) {
            Place::Zero
        } else if self.memory() < self.memory_bytes {
            self.memory.fetch_add(BLOCK, Ordering::Relaxed);
            Place::Memory(Box::new(*bytes))
        } else {
            let mut slots = lock(&self.slots);
            let slot = match slots.free.pop() {
                Some(slot) => slot,
                None if slots.next < self.spill_slots => {
                    slots.next += 1;
                    slots.next - 1
                }
                None => return Err(io::ErrorKind::StorageFull.into()),
            };
            drop(slots);
            let written = self
                .spill
                .file()
                .and_then(|file| file.write_all_at(bytes, slot * BLOCK));
            if let Err(error) = written {
                lock(&self.slots).free.push(slot);
                return Err(error);
            }
            Place::File(slot)
        };
        Ok(Arc::new(Data {
            place,
            pool: self.clone(),
        }))
    }
}

enum Place {
    Zero,
    Memory(Box<Bytes>),
    File(u64),
}

/// A block's content; whoever needs the same shares it.
struct Data {
    place: Place,
    pool: Arc<Pool>,
}

impl Data {
    fn read(&self) -> io::Result<Bytes> {
        match &self.place {
            Place::Zero => Ok([0; BLOCK as usize]),
            Place::Memory(bytes) => Ok(**bytes),
            Place::File(slot) => {
                let mut bytes = [0; BLOCK as usize];
                let file = self.pool.spill.file()?;
                file.read_exact_at(&mut bytes, slot * BLOCK)?;
                Ok(bytes)
            }
        }
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        match self.place {
            Place::Zero => {}
            Place::Memory(_) => {
                self.pool.memory.fetch_sub(BLOCK, Ordering::Relaxed);
            }
            Place::File(slot) => lock(&self.pool.slots).free.push(slot),
        }
    }
}

#[derive(Clone)]
struct Cell {
    /// Which sectors of the block are kept here.
    mask: u8,
    data: Arc<Data>,
}

/// A replica's own contents. A copy costs nothing, and keeps what it has.
#[derive(Clone)]
pub struct View {
    blocks: Tree<Cell>,
    pool: Arc<Pool>,
}

/// Blocks that a range of bytes touches, with the sectors of each.
pub fn blocks(range: &Range<u64>) -> impl Iterator<Item = (u64, u8)> + use<> {
    let (start, end) = (range.start / SECTOR, range.end / SECTOR);
    (start / PER_BLOCK..end.div_ceil(PER_BLOCK)).map(move |block| {
        let first = block * PER_BLOCK;
        let from = start.max(first) - first;
        let to = end.min(first + PER_BLOCK) - first;
        let mask = ((1u16 << to) - (1u16 << from)) as u8;
        (block, mask)
    })
}

fn sectors(mask: u8) -> impl Iterator<Item = Range<usize>> {
    let size = SECTOR as usize;
    (0..PER_BLOCK as usize)
        .filter(move |i| mask & (1 << i) != 0)
        .map(move |i| i * size..(i + 1) * size)
}

impl View {
    /// The base file's content.
    pub fn new(pool: &Arc<Pool>) -> Self {
        Self {
            blocks: Tree::default(),
            pool: pool.clone(),
        }
    }

    /// Where its contents are.
    pub fn pool(&self) -> Arc<Pool> {
        self.pool.clone()
    }

    /// Blocks of which it keeps something.
    pub fn len(&self) -> u64 {
        self.blocks.len()
    }

    /// The sectors of a block that it keeps.
    pub fn mask(&self, block: u64) -> u8 {
        self.blocks.get(block).map_or(0, |cell| cell.mask)
    }

    /// Keeps these sectors of a block.
    ///
    /// # Errors
    /// When there is no room for them, or the spill file fails; nothing is changed then.
    pub fn put(&mut self, block: u64, mask: u8, bytes: &Bytes) -> io::Result<()> {
        if mask == 0 {
            return Ok(());
        }
        let cell = match self.blocks.get(block) {
            Some(cell) if mask != u8::MAX => {
                let mut whole = cell.data.read()?;
                for place in sectors(mask) {
                    whole[place.clone()].copy_from_slice(&bytes[place]);
                }
                Cell {
                    mask: cell.mask | mask,
                    data: self.pool.keep(&whole)?,
                }
            }
            _ => Cell {
                mask,
                data: self.pool.keep(bytes)?,
            },
        };
        self.blocks.put(block, Some(cell));
        Ok(())
    }

    /// The base file has these sectors as this view does.
    pub fn clear(&mut self, block: u64, mask: u8) {
        let Some(cell) = self.blocks.get(block) else {
            return;
        };
        let left = cell.mask & !mask;
        if left == cell.mask {
            return;
        }
        let cell = (left != 0).then(|| Cell {
            mask: left,
            data: cell.data.clone(),
        });
        self.blocks.put(block, cell);
    }

    /// Forgets the sectors of a block that are as the base file has them.
    ///
    /// # Errors
    /// When the spill file cannot be read.
    pub fn clear_equal(&mut self, block: u64, base: &Bytes) -> io::Result<()> {
        let Some(cell) = self.blocks.get(block) else {
            return Ok(());
        };
        let own = cell.data.read()?;
        let mut equal = 0;
        for place in sectors(cell.mask) {
            if own[place.clone()] == base[place.clone()] {
                equal |= 1 << (place.start / SECTOR as usize);
            }
        }
        self.clear(block, equal);
        Ok(())
    }

    /// Puts what it keeps over a piece of the base file that starts at byte `start`.
    ///
    /// # Errors
    /// When the spill file cannot be read.
    pub fn patch(&self, start: u64, piece: &mut [u8]) -> io::Result<()> {
        if self.blocks.len() == 0 {
            return Ok(());
        }
        let range = start..start + piece.len() as u64;
        for (block, wanted) in blocks(&range) {
            let Some(cell) = self.blocks.get(block) else {
                continue;
            };
            let mask = wanted & cell.mask;
            if mask == 0 {
                continue;
            }
            let own = cell.data.read()?;
            for place in sectors(mask) {
                let to = (block * BLOCK + place.start as u64 - start) as usize;
                piece[to..to + place.len()].copy_from_slice(&own[place]);
            }
        }
        Ok(())
    }

    /// Whether it covers a range of bytes, so that the base file need not be read.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        blocks(range).all(|(block, wanted)| self.mask(block) & wanted == wanted)
    }

    /// The numbers of all sectors that it keeps, ascending.
    pub fn sectors(&self) -> Vec<u64> {
        let mut all = Vec::new();
        self.blocks.for_each(|block, cell| {
            let kept = (0..PER_BLOCK).filter(|i| cell.mask & (1 << i) != 0);
            all.extend(kept.map(|i| block * PER_BLOCK + i));
        });
        all
    }
}
