//! Size, reserved space and holes.

use super::*;
use crate::fs::disk::volume::{Extent, number};

impl DiskFile {
    /// Changes the size. Call with [`Self::lock_writes`] held.
    pub fn truncate(&self, this: &Rc<Inode>, size: u64) -> Result<()> {
        if size > MAX_SIZE {
            return Err(EFBIG);
        }
        let ino = node::copy_up(this)?;
        let volume = this.sup.volume()?;
        let guard = volume.lock();
        let kept = size.div_ceil(PAGE);
        if size < self.size() {
            // Shorter in memory first, so that nobody fills pages in again while the volume works.
            self.drop_pages(kept, u64::MAX);
            let mut state = self.state.borrow_mut();
            state.size = size;
            drop(state);
            mm::forget_file_pages(self.map_key(), kept, u64::MAX);
        }
        self.clear_tail();
        guard.change(|fs| fs.truncate_inode(number(ino)?, size))?;
        let info = guard.ask(|fs| fs.inode(number(ino)?))?;
        let mut state = self.state.borrow_mut();
        state.size = size;
        state.blocks = info.blocks;
        // The volume knows the last page as of the last write-back; the cache knows better.
        let last = size / PAGE;
        if !size.is_multiple_of(PAGE) && state.pages.contains_key(&last) {
            mark_dirty(this, &mut state, last);
        }
        Ok(())
    }

    fn drop_pages(&self, first: u64, end: u64) {
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        let gone: Vec<u64> = state.pages.range(first..end).map(|(i, _)| *i).collect();
        let mut clean = 0;
        for index in &gone {
            state.pages.remove(index);
            state.shared.remove(index);
            clean += u64::from(state.dirty.remove(index));
        }
        // The cache may look at this very file.
        drop(borrowed);
        cache::cleaned(clean);
        cache::left(gone.len() as u64);
    }

    /// Takes blocks for `[offset, offset + len)`. Call with [`Self::lock_writes`] held.
    pub fn allocate(&self, this: &Rc<Inode>, offset: u64, len: u64, keep: bool) -> Result<()> {
        use rsext4::{PreallocationOptions, RangeOperation};
        let end = offset.checked_add(len).ok_or(EFBIG)?;
        if end > MAX_SIZE {
            return Err(EFBIG);
        }
        let ino = node::copy_up(this)?;
        let volume = this.sup.volume()?;
        let guard = volume.lock();
        let how = if keep {
            PreallocationOptions::KEEP_SIZE
        } else {
            self.clear_tail();
            PreallocationOptions::EXTEND_SIZE
        };
        let operation = RangeOperation::Allocate(how);
        guard.change(|fs| fs.operate_inode_range(number(ino)?, offset, len, operation))?;
        let info = guard.ask(|fs| fs.inode(number(ino)?))?;
        let mut state = self.state.borrow_mut();
        state.blocks = info.blocks;
        if !keep {
            state.size = state.size.max(end);
        }
        Ok(())
    }

    /// Makes `[offset, offset + len)` read as zero, and frees whole blocks of it. Call with [`Self::lock_writes`] held.
    pub fn punch(&self, this: &Rc<Inode>, offset: u64, len: u64) -> Result<()> {
        let ino = node::copy_up(this)?;
        let end = offset.saturating_add(len).min(self.size());
        if offset >= end {
            return Ok(());
        }
        let (first, last) = (offset.div_ceil(PAGE), end / PAGE);
        // The parts of pages at both ends are simply written.
        let zeroes = [0; PAGE_BYTES];
        let head = (first * PAGE).min(end) - offset;
        self.write_at(this, offset, &zeroes[..head as usize])?;
        if last >= first {
            self.write_at(this, last * PAGE, &zeroes[..(end - last * PAGE) as usize])?;
        }
        // A last page that ends with the file goes as a whole.
        let last = if end == self.size() {
            end.div_ceil(PAGE)
        } else {
            last
        };
        if first >= last {
            return Ok(());
        }
        let volume = this.sup.volume()?;
        let guard = volume.lock();
        // The volume has to know the file's size before it cuts holes into it.
        self.write_back_locked(this, &guard)?;
        self.drop_pages(first, last);
        mm::forget_file_pages(self.map_key(), first, last);
        let (at, len) = (first * PAGE, (last - first) * PAGE);
        guard.punch(ino, at, len)?;
        let info = guard.ask(|fs| fs.inode(number(ino)?))?;
        self.state.borrow_mut().blocks = info.blocks;
        Ok(())
    }

    /// The first offset at or behind `from` that holds data (or, with `hole`, that does not); the end of the file is a hole.
    pub fn seek_data(&self, this: &Rc<Inode>, from: u64, hole: bool) -> Result<u64> {
        let size = self.size();
        if from >= size {
            return Err(ENXIO);
        }
        let Some(ino) = this.disk.as_ref().and_then(|d| d.upper()) else {
            // The image's file is all data.
            return Ok(if hole { size } else { from });
        };
        let volume = this.sup.volume()?;
        let guard = volume.lock();
        self.write_back_locked(this, &guard)?;
        let mut at = from;
        while at < size {
            let extents = guard.extents(ino, at, size - at)?;
            let data = |at: u64| {
                let inside = |e: &&Extent| e.start <= at && at < e.start + e.len;
                extents.iter().find(inside).filter(|e| e.place.is_some())
            };
            if data(at).is_none() == hole {
                return Ok(at);
            }
            let next = if hole {
                data(at).map(|e| e.start + e.len)
            } else {
                let behind = |e: &&Extent| e.start > at && e.place.is_some();
                extents.iter().find(behind).map(|e| e.start)
            };
            let all = extents.last().map_or(size, |e| e.start + e.len);
            at = next.unwrap_or(if hole { size } else { all.max(at + PAGE) });
        }
        if hole { Ok(size) } else { Err(ENXIO) }
    }
}
