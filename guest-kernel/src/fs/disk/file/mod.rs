//! A regular file on a volume: its pages in the cache, read ahead, written back.
//!
//! Reading and writing may wait for the disk, so callers hand over memory of the kernel, never of a program: another thread could
//! unmap that meanwhile. Mapping a page never waits: a page that is not there is `EAGAIN`, and the caller loads it and tries again.

mod range;
mod write_back;

use super::cache;
use super::device::MAX_REQUEST;
use super::node;
use super::volume::{Guard, Held, SleepLock};
use crate::errno::*;
use crate::file::MapPage;
use crate::fs::contents::{Extent, PAGE};
use crate::fs::inode::{Inode, Kind};
use crate::mm::{self, Page};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

const PAGE_BYTES: usize = PAGE as usize;
/// Largest file: what 32-bit block numbers reach.
pub const MAX_SIZE: u64 = (u32::MAX as u64) * PAGE;
/// Pages of one request to the disk.
const RUN: u64 = (MAX_REQUEST / PAGE_BYTES) as u64;
/// Pages read at once where access is not sequential.
const LEAST_AHEAD: u64 = 4;

struct Cached {
    page: Rc<Page>,
    stamp: u64,
    used: bool,
}

struct State {
    size: u64,
    pages: BTreeMap<u64, Cached>,
    dirty: BTreeSet<u64>,
    /// Pages that a shared mapping may write, with the digest of what was written back last.
    shared: BTreeMap<u64, u64>,
    /// The first error of writing back that no `fsync` has told yet.
    error: Option<Errno>,
    /// Where a sequential reader would go on, and how much it gets ahead.
    ahead: (u64, u64),
    /// Blocks of 512 bytes on the disk.
    blocks: u64,
    /// On the list of files with dirty pages.
    listed: bool,
}

/// A regular file.
pub struct DiskFile {
    /// The image's file that is below it, until it is copied up.
    lower: Cell<Option<Extent>>,
    state: RefCell<State>,
    writers: SleepLock,
}

/// The file behind an inode.
pub fn of(inode: &Inode) -> Option<&DiskFile> {
    match &inode.kind {
        Kind::DiskFile(file) => Some(file),
        _ => None,
    }
}

/// Whether a page is in the cache under this stamp.
pub fn has_page(inode: &Inode, index: u64, stamp: u64) -> bool {
    of(inode).is_some_and(|file| {
        let state = file.state.borrow();
        state.pages.get(&index).is_some_and(|p| p.stamp == stamp)
    })
}

/// Takes a page out of the cache if that can be done; false: try again later. May wait.
pub fn evict(inode: &Rc<Inode>, index: u64, stamp: u64) -> bool {
    let Some(file) = of(inode) else {
        return true;
    };
    let mut state = file.state.borrow_mut();
    let Some(cached) = state.pages.get_mut(&index).filter(|p| p.stamp == stamp) else {
        return true;
    };
    if core::mem::take(&mut cached.used) || Rc::strong_count(&cached.page) > 1 {
        return false;
    }
    if state.dirty.contains(&index) || state.shared.contains_key(&index) {
        drop(state);
        // The error is kept for `fsync`; the pages are clean then.
        let _ = file.write_back(inode);
        return false;
    }
    state.pages.remove(&index);
    drop(state);
    cache::left(1);
    true
}

/// Takes a page out of the cache if nothing but memory is lost by it, for a caller that needs memory and cannot wait.
pub fn give_up(inode: &Inode, index: u64, stamp: u64) -> bool {
    let Some(file) = of(inode) else {
        return true;
    };
    // The caller may be in the middle of this very file.
    let Ok(mut state) = file.state.try_borrow_mut() else {
        return false;
    };
    let Some(cached) = state.pages.get(&index).filter(|p| p.stamp == stamp) else {
        return true;
    };
    let used = Rc::strong_count(&cached.page) > 1;
    if used || state.dirty.contains(&index) || state.shared.contains_key(&index) {
        return false;
    }
    state.pages.remove(&index);
    cache::counted_out();
    true
}

/// Digest of a page's bytes: tells whether a mapping has changed it.
fn digest(page: &Page) -> u64 {
    let mut bytes = [0; PAGE_BYTES];
    page.read(0, &mut bytes);
    let (mut a, mut b) = (0x9e37_79b9_7f4a_7c15u64, 0xbf58_476d_1ce4_e5b9u64);
    for chunk in bytes.chunks_exact(8) {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        a = (a ^ u64::from_le_bytes(word)).wrapping_mul(0x94d0_49bb_1331_11eb);
        b = (b ^ a).rotate_left(29);
    }
    a ^ b
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        cache::cleaned(state.dirty.len() as u64);
        let count = state.pages.len() as u64;
        state.pages.clear();
        if count > 0 {
            cache::left(count);
        }
    }
}

impl DiskFile {
    /// A file of `size` bytes that occupies `blocks`, or the image's file `lower`.
    pub fn new(size: u64, blocks: u64, lower: Option<Extent>) -> Self {
        let (size, blocks) = match lower {
            Some(extent) => {
                let size = extent.data.len() as u64;
                (size, size.div_ceil(PAGE) * 8)
            }
            None => (size, blocks),
        };
        Self {
            lower: Cell::new(lower),
            state: RefCell::new(State {
                size,
                pages: BTreeMap::new(),
                dirty: BTreeSet::new(),
                shared: BTreeMap::new(),
                error: None,
                ahead: (0, LEAST_AHEAD),
                blocks,
                listed: false,
            }),
            writers: SleepLock::default(),
        }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.state.borrow().size
    }

    /// Occupied blocks of 512 bytes; what is not written yet counts.
    pub fn blocks(&self) -> u64 {
        let state = self.state.borrow();
        state.blocks.max(state.dirty.len() as u64 * 8)
    }

    /// The image's file, if it is still that.
    pub fn lower(&self) -> Option<Extent> {
        self.lower.get()
    }

    /// It has been copied to the volume.
    pub fn copied_up(&self) {
        self.lower.set(None);
    }

    /// Keeps other writers out.
    pub fn lock_writes(&self) -> Held<'_> {
        self.writers.lock()
    }

    /// Takes clean pages of a range out of the cache, so that they are read anew.
    pub fn forget_clean(&self, offset: u64, len: u64) {
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        let (first, end) = (offset / PAGE, offset.saturating_add(len).div_ceil(PAGE));
        let clean = |(index, cached): (&u64, &Cached)| {
            let kept = Rc::strong_count(&cached.page) > 1
                || state.dirty.contains(index)
                || state.shared.contains_key(index);
            (!kept).then_some(*index)
        };
        let gone: Vec<u64> = state
            .pages
            .range(first..end.max(first))
            .filter_map(clean)
            .collect();
        for index in &gone {
            state.pages.remove(index);
        }
        // The cache may look at this very file.
        drop(borrowed);
        cache::left(gone.len() as u64);
    }

    /// Whether it has no pages in the cache and nothing to write.
    pub fn is_idle(&self) -> bool {
        let state = self.state.borrow();
        !state.listed && state.pages.is_empty()
    }

    /// Reads into memory of the kernel; fewer bytes than asked for only at the end of the file.
    pub fn read_at(&self, this: &Rc<Inode>, offset: u64, buf: &mut [u8]) -> Result<usize> {
        if let Some(extent) = self.lower.get() {
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            let source = extent.data.get(from..).unwrap_or_default();
            let len = source.len().min(buf.len());
            buf[..len].copy_from_slice(&source[..len]);
            return Ok(len);
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (index, inside) = (at / PAGE, (at % PAGE) as usize);
            let mut state = self.state.borrow_mut();
            if at >= state.size {
                break;
            }
            let left = (state.size - at) as usize;
            let part = (PAGE_BYTES - inside).min(buf.len() - done).min(left);
            if let Some(cached) = state.pages.get_mut(&index) {
                cached.used = true;
                cached.page.read(inside, &mut buf[done..done + part]);
                done += part;
                continue;
            }
            drop(state);
            let wanted = (buf.len() - done + inside).div_ceil(PAGE_BYTES) as u64;
            match self.fill(this, index, wanted) {
                Ok(()) => {}
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Brings pages into the cache, and some more for a sequential reader.
    pub fn fill(&self, this: &Rc<Inode>, first: u64, count: u64) -> Result<()> {
        let end = {
            let mut state = self.state.borrow_mut();
            let (expected, window) = state.ahead;
            let window = if first == expected {
                (window * 2).min(RUN)
            } else {
                LEAST_AHEAD
            };
            let pages = count.min(RUN).max(window);
            let end = (first + pages).min(state.size.div_ceil(PAGE));
            state.ahead = (end, window.max(count).min(RUN));
            end
        };
        if first >= end {
            return Ok(());
        }
        cache::reserve(end - first)?;
        let disk = this.disk.as_ref().ok_or(EIO)?;
        let volume = this.sup.volume()?;
        let guard = volume.lock();
        let mut at = first;
        while at < end {
            // Whether a page is missing is asked under the lock: it may have come meanwhile.
            let missing = |index: &u64| !self.state.borrow().pages.contains_key(index);
            let Some(from) = (at..end).find(missing) else {
                break;
            };
            let until = (from..end).find(|i| !missing(i)).unwrap_or(end);
            let ino = disk.upper().ok_or(EIO)?;
            let bytes = read_run(&guard, ino, from * PAGE, (until - from) * PAGE)?;
            let mut state = self.state.borrow_mut();
            for (index, bytes) in (from..).zip(bytes.chunks_exact(PAGE_BYTES)) {
                // A writer may have made the page, or the file shorter, while the disk was read.
                if index >= state.size.div_ceil(PAGE) || state.pages.contains_key(&index) {
                    continue;
                }
                let page = Page::new_zeroed()?;
                page.write(0, bytes);
                insert(this, &mut state, index, page);
            }
            at = until;
        }
        Ok(())
    }

    /// Writes from memory of the kernel. Call with [`Self::lock_writes`] held.
    ///
    /// # Errors
    /// `EFBIG`, `ENOSPC`, `EROFS`, `EIO`.
    pub fn write_at(&self, this: &Rc<Inode>, offset: u64, buf: &[u8]) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if offset >= MAX_SIZE {
            return Err(EFBIG);
        }
        node::copy_up(this)?;
        let len = (buf.len() as u64).min(MAX_SIZE - offset) as usize;
        if offset + len as u64 > self.size() {
            self.clear_tail();
        }
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (index, inside) = (at / PAGE, (at % PAGE) as usize);
            let part = (PAGE_BYTES - inside).min(len - done);
            match self.page_for_write(this, index, part == PAGE_BYTES) {
                Ok(page) => page.write(inside, &buf[done..done + part]),
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
            done += part;
            let mut state = self.state.borrow_mut();
            state.size = state.size.max(at + part as u64);
            mark_dirty(this, &mut state, index);
        }
        if cache::too_dirty() {
            // What goes wrong is told by `fsync`.
            let _ = self.write_back(this);
            if cache::too_dirty() {
                super::write_back_all();
            }
        }
        Ok(done)
    }

    /// The page to write to; `whole`: all of it will be written.
    fn page_for_write(&self, this: &Rc<Inode>, index: u64, whole: bool) -> Result<Rc<Page>> {
        loop {
            let mut state = self.state.borrow_mut();
            let beyond = index * PAGE >= state.size;
            if let Some(cached) = state.pages.get_mut(&index) {
                cached.used = true;
                let page = cached.page.clone();
                let clean = !state.dirty.contains(&index);
                drop(state);
                if clean {
                    self.check_space(this, index)?;
                }
                return Ok(page);
            }
            drop(state);
            if !whole && !beyond {
                self.fill(this, index, 1)?;
                continue;
            }
            self.check_space(this, index)?;
            cache::reserve(1)?;
            let mut state = self.state.borrow_mut();
            if !state.pages.contains_key(&index) {
                insert(this, &mut state, index, Page::new_zeroed()?);
            }
        }
    }

    /// Blocks are taken when pages are written back; this sees to it that there will be some.
    fn check_space(&self, this: &Rc<Inode>, index: u64) -> Result<()> {
        /// Blocks that stay free for metadata.
        const SPARE: u64 = 64;
        let volume = this.sup.volume()?;
        let enough = |waiting: u64| volume.free_blocks() > waiting + waiting / 64 + SPARE;
        if enough(cache::dirty_pages()) {
            return Ok(());
        }
        super::write_back_all();
        if enough(cache::dirty_pages()) {
            return Ok(());
        }
        // Nearly full. What has its blocks already may be written all the same.
        let ino = this.disk.as_ref().and_then(|d| d.upper()).ok_or(EIO)?;
        let extents = volume.lock().extents(ino, index * PAGE, PAGE)?;
        if extents.is_empty() {
            Err(ENOSPC)
        } else {
            Ok(())
        }
    }

    /// Zeroes what a mapping may have written behind the end of the file, before the file grows over it.
    fn clear_tail(&self) {
        let state = self.state.borrow();
        let inside = (state.size % PAGE) as usize;
        if inside != 0
            && let Some(cached) = state.pages.get(&(state.size / PAGE))
        {
            cached.page.write(inside, &[0; PAGE_BYTES][inside..]);
        }
    }

    /// See [`crate::file::File::map_key`].
    pub fn map_key(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// The page for a mapping; never waits.
    ///
    /// # Errors
    /// `EAGAIN` if it has to be loaded first; `ENXIO` beyond the end; `EPERM` for a writable shared page of a file that is the image's.
    pub fn map_page(&self, index: u64, shared_write: bool, this: &Rc<Inode>) -> Result<MapPage> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if index >= state.size.div_ceil(PAGE) {
            return Err(ENXIO);
        }
        if let Some(extent) = self.lower.get() {
            return if shared_write {
                Err(EPERM)
            } else {
                Ok(MapPage::Image(extent.physical + index * PAGE))
            };
        }
        let cached = state.pages.get_mut(&index).ok_or(EAGAIN)?;
        cached.used = true;
        if shared_write {
            let page = &cached.page;
            state.shared.entry(index).or_insert_with(|| digest(page));
            if !core::mem::replace(&mut state.listed, true) {
                cache::list_dirty(this);
            }
        }
        Ok(MapPage::Shared(cached.page.clone()))
    }
}

fn insert(this: &Rc<Inode>, state: &mut State, index: u64, page: Page) {
    let cached = Cached {
        page: Rc::new(page),
        stamp: cache::entered(this, index),
        used: false,
    };
    state.pages.insert(index, cached);
}

fn mark_dirty(this: &Rc<Inode>, state: &mut State, index: u64) {
    if state.dirty.insert(index) {
        cache::dirtied(this, !core::mem::replace(&mut state.listed, true));
    }
}

/// Bytes of a file as they are on the volume: whole blocks, at most [`MAX_REQUEST`].
fn read_run(guard: &Guard<'_>, ino: u32, start: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = alloc::vec![0; len as usize];
    let end = start + len;
    let mut at = start;
    while at < end {
        let extents = guard.extents(ino, at, end - at)?;
        let Some(last) = extents.last() else {
            break;
        };
        let behind = last.start + last.len;
        for extent in &extents {
            let from = extent.start.max(at);
            let until = (extent.start + extent.len).next_multiple_of(PAGE).min(end);
            if let Some(place) = extent.place
                && from < until
            {
                let part = &mut bytes[(from - start) as usize..(until - start) as usize];
                guard.read_device(place + (from - extent.start), part)?;
            }
        }
        at = behind.next_multiple_of(PAGE).max(at + PAGE);
    }
    Ok(bytes)
}
