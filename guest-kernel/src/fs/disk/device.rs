//! What a volume stands on, as the ext4 library sees it: sectors behind a small cache of metadata blocks, with neighbouring
//! writes put together into one request.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use rsext4::{
    BlockIo, DeviceCapabilities, DeviceGeometry, Ext4Error, Ext4Result, SectorId, WriteFlags,
};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Bytes of a file system block; the only size that is mounted.
pub const BLOCK: usize = 4096;
/// Most bytes of one request to the device.
pub const MAX_REQUEST: usize = 1 << 20;
/// Blocks that the cache of metadata holds (R10): 2 MiB. Beyond that the ones that have not been used for longest go.
pub const CACHED_BLOCKS: usize = 512;
/// Reads up to this many bytes are metadata and go through the cache; longer ones are not kept.
const CACHED_READ: usize = 4 * BLOCK;

/// Writes from this many bytes on are requests of their own.
const GATHER: usize = 16 * BLOCK;

const SECTORS_PER_BLOCK: u64 = BLOCK as u64 / SECTOR;

/// The device failed; it has said so on the console.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failed;

/// A disk. Requests take effect in the order in which they were made: a read sees the writes before it, and a flush covers them.
pub trait BlockDevice {
    /// Size in bytes, whole blocks.
    fn bytes(&self) -> u64;
    /// Whether it cannot be written.
    fn read_only(&self) -> bool;
    /// Reads; the calling thread waits.
    fn read(&self, sector: u64, to: &mut [u8]) -> Result<(), Failed>;
    /// Writes at most [`MAX_REQUEST`] bytes. Does not wait: what fails later fails the next flush.
    fn write(&self, sector: u64, from: &[u8]) -> Result<(), Failed>;
    /// Waits until everything written before is on stable storage.
    fn flush(&self) -> Result<(), Failed>;
}

struct Cached {
    data: Box<[u8]>,
    used: bool,
}

/// A device with its cache; one per volume, only used under the volume's lock.
pub struct Adapter {
    device: Rc<dyn BlockDevice>,
    cache: BTreeMap<u64, Cached>,
    order: VecDeque<u64>,
    /// Writes that continue each other, not yet given to the device: first sector and bytes.
    gathered: Vec<u8>,
    gathered_at: u64,
    /// Set by the first error; everything fails from then on.
    failed: bool,
}

impl Adapter {
    /// A device with an empty cache.
    pub fn new(device: Rc<dyn BlockDevice>) -> Self {
        Self {
            device,
            cache: BTreeMap::new(),
            order: VecDeque::new(),
            gathered: Vec::new(),
            gathered_at: 0,
            failed: false,
        }
    }

    /// Whether the device cannot be written.
    pub fn read_only(&self) -> bool {
        self.device.read_only()
    }

    fn checked<T>(&mut self, result: Result<T, Failed>) -> Ext4Result<T> {
        result.map_err(|Failed| {
            self.failed = true;
            Ext4Error::io()
        })
    }

    fn alive(&self) -> Ext4Result<()> {
        if self.failed {
            Err(Ext4Error::io())
        } else {
            Ok(())
        }
    }

    /// Gives gathered writes to the device.
    pub fn submit(&mut self) -> Ext4Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        self.alive()?;
        let bytes = core::mem::take(&mut self.gathered);
        let result = self.device.write(self.gathered_at, &bytes);
        self.checked(result)?;
        // Keeps the memory for the next ones.
        self.gathered = bytes;
        self.gathered.clear();
        Ok(())
    }

    /// Reads without keeping anything: file contents.
    pub fn read_direct(&mut self, sector: u64, to: &mut [u8]) -> Ext4Result<()> {
        self.submit()?;
        self.alive()?;
        let mut sector = sector;
        for part in to.chunks_mut(MAX_REQUEST) {
            let result = self.device.read(sector, part);
            self.checked(result)?;
            sector += part.len() as u64 / SECTOR;
        }
        Ok(())
    }

    fn keep(&mut self, block: u64, data: &[u8]) {
        while self.cache.len() >= CACHED_BLOCKS {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            match self.cache.get_mut(&oldest) {
                Some(cached) if cached.used => {
                    cached.used = false;
                    self.order.push_back(oldest);
                }
                _ => {
                    self.cache.remove(&oldest);
                }
            }
        }
        let cached = Cached {
            data: data.into(),
            used: false,
        };
        self.cache.insert(block, cached);
        self.order.push_back(block);
    }

    fn read(&mut self, to: &mut [u8], sector: u64) -> Ext4Result<()> {
        let first = sector / SECTORS_PER_BLOCK;
        let last = (sector + to.len() as u64 / SECTOR).div_ceil(SECTORS_PER_BLOCK);
        if to.len() > CACHED_READ || last * BLOCK as u64 > self.device.bytes() {
            return self.read_direct(sector, to);
        }
        for block in first..last {
            if !self.cache.contains_key(&block) {
                let mut data = alloc::vec![0; BLOCK];
                self.read_direct(block * SECTORS_PER_BLOCK, &mut data)?;
                self.keep(block, &data);
            }
            let Some(cached) = self.cache.get_mut(&block) else {
                return Err(Ext4Error::io());
            };
            cached.used = true;
            let (start, end) = (sector * SECTOR, sector * SECTOR + to.len() as u64);
            let (from, until) = overlap(start, end, block);
            let source = &cached.data[(from - block * BLOCK as u64) as usize..];
            let part = &mut to[(from - start) as usize..(until - start) as usize];
            part.copy_from_slice(&source[..part.len()]);
        }
        Ok(())
    }

    fn write(&mut self, from: &[u8], sector: u64) -> Ext4Result<()> {
        self.alive()?;
        let (start, end) = (sector * SECTOR, sector * SECTOR + from.len() as u64);
        let blocks = sector / SECTORS_PER_BLOCK..end.div_ceil(BLOCK as u64);
        for block in blocks {
            if let Some(cached) = self.cache.get_mut(&block) {
                let (at, until) = overlap(start, end, block);
                let inside = (at - block * BLOCK as u64) as usize;
                let part = &from[(at - start) as usize..(until - start) as usize];
                cached.data[inside..inside + part.len()].copy_from_slice(part);
            }
        }
        if from.len() >= GATHER {
            self.submit()?;
            let mut at = sector;
            for part in from.chunks(MAX_REQUEST) {
                let result = self.device.write(at, part);
                self.checked(result)?;
                at += part.len() as u64 / SECTOR;
            }
            return Ok(());
        }
        let next = self.gathered_at + self.gathered.len() as u64 / SECTOR;
        if sector != next || self.gathered.len() + from.len() > MAX_REQUEST {
            self.submit()?;
        }
        if self.gathered.is_empty() {
            self.gathered_at = sector;
        }
        self.gathered.extend_from_slice(from);
        Ok(())
    }

    fn flush(&mut self) -> Ext4Result<()> {
        self.submit()?;
        self.alive()?;
        let result = self.device.flush();
        self.checked(result)
    }
}

/// The part of `[start, end)` that lies in a block.
fn overlap(start: u64, end: u64, block: u64) -> (u64, u64) {
    let at = block * BLOCK as u64;
    (start.max(at), end.min(at + BLOCK as u64))
}

/// An adapter that the library and the volume share. Both are only used by who holds the volume's lock.
#[derive(Clone)]
pub struct Handle(pub Rc<RefCell<Adapter>>);

impl BlockIo for Handle {
    fn write(&mut self, buffer: &[u8], sector: SectorId, count: u32) -> Ext4Result<()> {
        let len = count as usize * SECTOR as usize;
        let bytes = buffer.get(..len).ok_or_else(Ext4Error::overflow)?;
        self.0.borrow_mut().write(bytes, sector.raw())
    }

    fn read(&mut self, buffer: &mut [u8], sector: SectorId, count: u32) -> Ext4Result<()> {
        let len = count as usize * SECTOR as usize;
        let bytes = buffer.get_mut(..len).ok_or_else(Ext4Error::overflow)?;
        self.0.borrow_mut().read(bytes, sector.raw())
    }

    fn write_with_flags(
        &mut self,
        buffer: &[u8],
        sector: SectorId,
        count: u32,
        flags: WriteFlags,
    ) -> Ext4Result<()> {
        if flags.contains(WriteFlags::FUA) {
            // Not offered: the library emulates it with a flush.
            return Err(Ext4Error::unsupported());
        }
        BlockIo::write(self, buffer, sector, count)
    }

    fn geometry(&self) -> DeviceGeometry {
        let sectors = self.0.borrow().device.bytes() / SECTOR;
        DeviceGeometry::new(SECTOR as u32, sectors).with_physical_block_size(BLOCK as u32)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        DeviceCapabilities {
            read_only: self.0.borrow().device.read_only(),
            flush: true,
            ..DeviceCapabilities::default()
        }
    }

    fn flush(&mut self) -> Ext4Result<()> {
        self.0.borrow_mut().flush()
    }
}
