//! Writing pages back, and what `fsync` has to tell.

use super::*;
use crate::fs::disk::volume::number;

impl DiskFile {
    /// Writes dirty pages to the volume (not yet to stable storage).
    ///
    /// # Errors
    /// What the volume meets; the pages are clean then, and `fsync` tells.
    pub fn write_back(&self, this: &Rc<Inode>) -> Result<()> {
        let volume = this.sup.volume()?;
        let guard = volume.lock();
        self.write_back_locked(this, &guard)
    }

    /// [`Self::write_back`] with the volume's lock held.
    pub fn write_back_locked(&self, this: &Rc<Inode>, guard: &Guard<'_>) -> Result<()> {
        self.look_at_mappings(this);
        let Some(ino) = this.disk.as_ref().and_then(|d| d.upper()) else {
            return Ok(());
        };
        let mut from = 0;
        let mut result = Ok(());
        // Pages that become dirty behind `from` meanwhile are left to the next time.
        while let Some((first, bytes)) = self.gather(from) {
            from = first + (bytes.len() as u64).div_ceil(PAGE);
            let mtime = this.meta.get().mtime;
            let written = guard.change_at(mtime, |fs| {
                fs.write_inode(number(ino)?, first * PAGE, &bytes)
            });
            if written.is_err() {
                result = written;
                break;
            }
        }
        if result.is_ok() && from > 0 {
            let info = guard.ask(|fs| fs.inode(number(ino)?))?;
            self.state.borrow_mut().blocks = info.blocks;
        }
        let mut state = self.state.borrow_mut();
        if let Err(error) = result {
            state.error.get_or_insert(error);
            let lost = core::mem::take(&mut state.dirty);
            cache::cleaned(lost.len() as u64);
        }
        result
    }

    /// A run of dirty pages from `from` on, as bytes; they count as clean from now on.
    fn gather(&self, from: u64) -> Option<(u64, Vec<u8>)> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let first = *state.dirty.range(from..).next()?;
        let mut bytes = Vec::new();
        let mut index = first;
        while index - first < RUN && state.dirty.remove(&index) {
            cache::cleaned(1);
            let start = bytes.len();
            bytes.resize(start + PAGE_BYTES, 0);
            if let Some(cached) = state.pages.get(&index) {
                cached.page.read(0, &mut bytes[start..]);
                if let Some(before) = state.shared.get_mut(&index) {
                    *before = digest(&cached.page);
                }
            }
            index += 1;
        }
        // Not beyond the end: writing makes a file as long as what is written.
        let size = state.size.saturating_sub(first * PAGE);
        bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        Some((first, bytes))
    }

    /// Finds the pages that shared mappings have changed. Those that no mapping holds any more are looked at once more.
    fn look_at_mappings(&self, this: &Rc<Inode>) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let mut changed = Vec::new();
        let pages = &state.pages;
        state.shared.retain(|index, before| {
            let Some(cached) = pages.get(index) else {
                return false;
            };
            if digest(&cached.page) != *before {
                changed.push(*index);
            }
            Rc::strong_count(&cached.page) > 1
        });
        for index in changed {
            if index < state.size.div_ceil(PAGE) {
                mark_dirty(this, state, index);
            }
        }
    }

    /// Whether shared mappings may have changed it.
    pub fn has_shared_pages(&self) -> bool {
        !self.state.borrow().shared.is_empty()
    }

    /// It is not on the list of files with dirty pages any more; returns whether it belongs there.
    pub fn unlisted(&self) -> bool {
        let mut state = self.state.borrow_mut();
        state.listed = false;
        !state.dirty.is_empty() || !state.shared.is_empty()
    }

    /// Puts it on the list of files with dirty pages.
    pub fn list(&self, this: &Rc<Inode>) {
        let mut state = self.state.borrow_mut();
        if !core::mem::replace(&mut state.listed, true) {
            cache::list_dirty(this);
        }
    }

    /// The error that `fsync` has to tell.
    pub fn take_error(&self) -> Result<()> {
        self.state.borrow_mut().error.take().map_or(Ok(()), Err)
    }
}
