//! What the file systems in memory may use (R10): a bound on pages and one on objects; beyond either a call gets `ENOSPC`.

use crate::errno::{ENOSPC, Result};
use crate::mm::{self, Page};
use alloc::rc::Rc;
use core::cell::Cell;

/// The part of memory that file contents may fill: total divided by this.
pub const SHARE_OF_MEMORY: u64 = 2;
/// One object (inode or directory entry) is allowed for every so many bytes of memory.
pub const BYTES_PER_OBJECT: u64 = 8192;

/// The account of all in-memory file systems together.
pub struct Space {
    max_pages: u64,
    pages: Cell<u64>,
    max_objects: u64,
    objects: Cell<u64>,
}

impl Space {
    /// An account with the given bounds.
    pub fn new(max_pages: u64, max_objects: u64) -> Rc<Self> {
        Rc::new(Self {
            max_pages,
            pages: Cell::new(0),
            max_objects,
            objects: Cell::new(0),
        })
    }

    /// An account with the bounds that follow from the size of memory.
    pub fn of_memory() -> Rc<Self> {
        // On the host there is no memory to ask about.
        let total = if cfg!(test) {
            256 << 20
        } else {
            mm::memory_info().0
        };
        Self::new(
            total / SHARE_OF_MEMORY / quorate_abi::PAGE_SIZE,
            total / BYTES_PER_OBJECT,
        )
    }

    /// A zeroed page on this account. Give it back with [`Self::give_pages`] when the file drops it.
    pub fn take_page(&self) -> Result<Rc<Page>> {
        if self.pages.get() >= self.max_pages {
            return Err(ENOSPC);
        }
        // To a file system, memory that has run out is space that has run out.
        let page = Page::new_zeroed().map_err(|_| ENOSPC)?;
        self.pages.set(self.pages.get() + 1);
        Ok(Rc::new(page))
    }

    /// Whether so many pages can be taken.
    pub fn check_pages(&self, count: u64) -> Result<()> {
        if count > self.max_pages.saturating_sub(self.pages.get()) {
            return Err(ENOSPC);
        }
        Ok(())
    }

    /// Returns pages to the account.
    pub fn give_pages(&self, count: u64) {
        self.pages.set(self.pages.get().saturating_sub(count));
    }

    /// Charges one inode or directory entry.
    pub fn take_object(&self) -> Result<()> {
        if self.objects.get() >= self.max_objects {
            return Err(ENOSPC);
        }
        self.objects.set(self.objects.get() + 1);
        Ok(())
    }

    /// Returns objects to the account.
    pub fn give_objects(&self, count: u64) {
        self.objects.set(self.objects.get().saturating_sub(count));
    }

    /// (most, used) pages.
    pub fn page_counts(&self) -> (u64, u64) {
        (self.max_pages, self.pages.get())
    }

    /// (most, used) objects.
    pub fn object_counts(&self) -> (u64, u64) {
        (self.max_objects, self.objects.get())
    }
}
