//! Contents of a regular file: pages in memory over, possibly, an extent of the root image. A write copies up the
//! one page that it touches, so inode, descriptors and mappings of a file stay the same whether it was written or not.
//!
//! One difference to a disk file system remains: a mapping that took a page straight from the image does not see what
//! is written to the file afterwards. (For private mappings POSIX leaves that open; a shared, writable one never gets image pages.)

use super::space::Space;
use crate::errno::*;
use crate::file::MapPage;
use crate::mm::Page;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// Bytes of a page.
pub const PAGE: u64 = quorate_abi::PAGE_SIZE;
const PAGE_BYTES: usize = PAGE as usize;
/// Largest file size.
pub const MAX_SIZE: u64 = i64::MAX as u64 & !(PAGE - 1);

/// Seals of a memfd (`F_ADD_SEALS`).
pub mod seal {
    #![allow(missing_docs)]
    pub const SEAL: u32 = 1;
    pub const SHRINK: u32 = 2;
    pub const GROW: u32 = 4;
    pub const WRITE: u32 = 8;
    pub const FUTURE_WRITE: u32 = 16;
}

/// The part of the root image that holds a file.
#[derive(Clone, Copy)]
pub struct Extent {
    /// The file's bytes.
    pub data: &'static [u8],
    /// Physical address of the first; page aligned, and the last page is zero padded.
    pub physical: u64,
}

struct State {
    size: u64,
    /// Pages below this index that are not in `pages` are the image's.
    image_pages: u64,
    pages: BTreeMap<u64, Rc<Page>>,
    /// A mapping may have written behind the end of the file.
    mapped: bool,
}

/// Contents of a regular file.
pub struct Contents {
    space: Rc<Space>,
    image: Option<Extent>,
    state: RefCell<State>,
    /// Seals; 0 for all but memfds.
    pub seals: Cell<u32>,
}

impl Drop for Contents {
    fn drop(&mut self) {
        self.space
            .give_pages(self.state.get_mut().pages.len() as u64);
    }
}

impl Contents {
    /// Contents over an extent of the image, or empty.
    pub fn new(space: Rc<Space>, image: Option<Extent>) -> Self {
        let size = image.map_or(0, |e| e.data.len() as u64);
        Self {
            space,
            image,
            state: RefCell::new(State {
                size,
                image_pages: size.div_ceil(PAGE),
                pages: BTreeMap::new(),
                mapped: false,
            }),
            seals: Cell::new(0),
        }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.state.borrow().size
    }

    /// Pages that it occupies, the image's included.
    pub fn occupied_pages(&self) -> u64 {
        let state = self.state.borrow();
        let over_image = state.pages.range(..state.image_pages).count() as u64;
        state.pages.len() as u64 + state.image_pages - over_image
    }

    /// Whether all of it still is what the root image says, hence the same in every replica from the start.
    pub fn is_image(&self) -> bool {
        let state = self.state.borrow();
        state.pages.is_empty() && state.size <= state.image_pages * PAGE && self.image.is_some()
    }

    fn image_page(&self, index: u64) -> &'static [u8] {
        let data = self.image.map_or(&[][..], |e| e.data);
        let start = usize::try_from(index * PAGE).unwrap_or(usize::MAX);
        let start = start.min(data.len());
        &data[start..data.len().min(start + PAGE_BYTES)]
    }

    /// Reads; fewer bytes than asked for only at the end of the file.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> usize {
        let state = self.state.borrow();
        if offset >= state.size {
            return 0;
        }
        let len = (buf.len() as u64).min(state.size - offset) as usize;
        let buf = &mut buf[..len];
        if state.pages.is_empty() && offset + len as u64 <= state.image_pages * PAGE {
            // Nothing written so far: the whole range is in the image.
            if let Some(extent) = self.image {
                let from = offset as usize;
                if let Some(source) = extent.data.get(from..from + len) {
                    buf.copy_from_slice(source);
                    return len;
                }
            }
        }
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (index, inside) = (at / PAGE, (at % PAGE) as usize);
            let part = (PAGE_BYTES - inside).min(len - done);
            let target = &mut buf[done..done + part];
            if let Some(page) = state.pages.get(&index) {
                page.read(inside, target);
            } else {
                target.fill(0);
                if index < state.image_pages {
                    let source = self.image_page(index);
                    if let Some(source) = source.get(inside..) {
                        let n = source.len().min(part);
                        target[..n].copy_from_slice(&source[..n]);
                    }
                }
            }
            done += part;
        }
        len
    }

    fn page_for_write<'s>(&self, state: &'s mut State, index: u64) -> Result<&'s Rc<Page>> {
        use alloc::collections::btree_map::Entry;
        match state.pages.entry(index) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let page = self.space.take_page()?;
                if index < state.image_pages {
                    page.write(0, self.image_page(index));
                }
                Ok(entry.insert(page))
            }
        }
    }

    /// Writes. Stops short where space runs out; `ENOSPC` if nothing could be written.
    pub fn write_at(&self, offset: u64, buf: &[u8]) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if offset >= MAX_SIZE {
            return Err(EFBIG);
        }
        if self.seals.get() & (seal::WRITE | seal::FUTURE_WRITE) != 0 {
            return Err(EPERM);
        }
        let len = (buf.len() as u64).min(MAX_SIZE - offset) as usize;
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if offset + len as u64 > state.size {
            if self.seals.get() & seal::GROW != 0 {
                return Err(EPERM);
            }
            self.clear_tail(state);
        }
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let inside = (at % PAGE) as usize;
            let part = (PAGE_BYTES - inside).min(len - done);
            match self.page_for_write(state, at / PAGE) {
                Ok(page) => page.write(inside, &buf[done..done + part]),
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
            done += part;
        }
        state.size = state.size.max(offset + done as u64);
        Ok(done)
    }

    /// Zeroes what a mapping may have written behind the end of the file, before the file grows over it.
    fn clear_tail(&self, state: &State) {
        let inside = (state.size % PAGE) as usize;
        if state.mapped
            && inside != 0
            && let Some(page) = state.pages.get(&(state.size / PAGE))
        {
            page.write(inside, &[0; PAGE_BYTES][inside..]);
        }
    }

    /// Changes the size; what is cut off is gone, what is added reads as zero and takes no space.
    pub fn truncate(&self, size: u64) -> Result<()> {
        if size > MAX_SIZE {
            return Err(EFBIG);
        }
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let seals = self.seals.get();
        if size < state.size && seals & seal::SHRINK != 0
            || size > state.size && seals & seal::GROW != 0
        {
            return Err(EPERM);
        }
        if size < state.size {
            let (whole, inside) = (size / PAGE, (size % PAGE) as usize);
            if inside != 0 && (whole < state.image_pages || state.pages.contains_key(&whole)) {
                let page = self.page_for_write(state, whole)?;
                page.write(inside, &[0; PAGE_BYTES][inside..]);
            }
            let cut = state.pages.split_off(&size.div_ceil(PAGE));
            self.space.give_pages(cut.len() as u64);
            state.image_pages = state.image_pages.min(size.div_ceil(PAGE));
            crate::mm::forget_file_pages(self.map_key(), size.div_ceil(PAGE), u64::MAX);
        } else {
            self.clear_tail(state);
        }
        state.size = size;
        Ok(())
    }

    /// Makes `[offset, offset + len)` occupy memory, so that later writes there do not fail for space.
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let end = offset.checked_add(len).ok_or(EFBIG)?;
        if end > MAX_SIZE {
            return Err(EFBIG);
        }
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if end > state.size && !keep_size && self.seals.get() & seal::GROW != 0 {
            return Err(EPERM);
        }
        let range = offset / PAGE..end.div_ceil(PAGE);
        let present = state.pages.range(range.clone()).count() as u64;
        // All or nothing.
        self.space.check_pages(range.end - range.start - present)?;
        self.clear_tail(state);
        for index in range {
            self.page_for_write(state, index)?;
        }
        if !keep_size {
            state.size = state.size.max(end);
        }
        Ok(())
    }

    /// Makes `[offset, offset + len)` read as zero, and frees whole pages of it. The size stays.
    pub fn punch(&self, offset: u64, len: u64) -> Result<()> {
        if self.seals.get() & (seal::WRITE | seal::FUTURE_WRITE) != 0 {
            return Err(EPERM);
        }
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let end = offset
            .saturating_add(len)
            .min(state.size.next_multiple_of(PAGE));
        if offset >= end {
            return Ok(());
        }
        let (first, behind) = (offset / PAGE, end.div_ceil(PAGE));
        // Of a wide hole only the pages that there are.
        let in_image = first..behind.min(state.image_pages).max(first);
        let in_memory = state.pages.range(in_image.end..behind);
        let indices: Vec<u64> = in_image.chain(in_memory.map(|(index, _)| *index)).collect();
        for index in indices {
            let from = offset.saturating_sub(index * PAGE).min(PAGE) as usize;
            let to = (end - index * PAGE).min(PAGE) as usize;
            if index >= state.image_pages && to - from == PAGE_BYTES {
                state.pages.remove(&index);
                self.space.give_pages(1);
                crate::mm::forget_file_pages(self.map_key(), index, index + 1);
            } else {
                let page = self.page_for_write(state, index)?;
                page.write(from, &[0; PAGE_BYTES][..to - from]);
            }
        }
        Ok(())
    }

    /// The first offset at or behind `from` that holds data (or, with `hole`, that does not); the end of the file is a hole.
    pub fn seek_data(&self, from: u64, hole: bool) -> Result<u64> {
        let state = self.state.borrow();
        if from >= state.size {
            return Err(ENXIO);
        }
        let present = |index| index < state.image_pages || state.pages.contains_key(&index);
        let mut index = from / PAGE;
        let last = (state.size - 1) / PAGE;
        while index <= last {
            if present(index) != hole {
                return Ok(from.max(index * PAGE));
            }
            index = if hole || index < state.image_pages {
                index + 1
            } else {
                // Holes can be wide: jump to the next page there is.
                match state.pages.range(index..).next() {
                    Some((next, _)) => *next,
                    None => break,
                }
            };
        }
        if hole { Ok(state.size) } else { Err(ENXIO) }
    }

    /// See [`crate::file::File::map_key`].
    pub fn map_key(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// The page for a mapping, see [`crate::file::File::map_page`].
    pub fn map_page(&self, index: u64, shared_write: bool) -> Result<MapPage> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if index >= state.size.div_ceil(PAGE) {
            return Err(ENXIO);
        }
        if !shared_write
            && index < state.image_pages
            && !state.pages.contains_key(&index)
            && let Some(extent) = self.image
        {
            return Ok(MapPage::Image(extent.physical + index * PAGE));
        }
        state.mapped = true;
        Ok(MapPage::Shared(self.page_for_write(state, index)?.clone()))
    }

    /// Whether a mapping holds any page of it (a write seal is refused then).
    pub fn is_mapped(&self) -> bool {
        self.state
            .borrow()
            .pages
            .values()
            .any(|page| Rc::strong_count(page) > 1)
    }
}
