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
    /// The account that this one is part of.
    whole: Option<Rc<Space>>,
}

impl Space {
    /// An account with the given bounds.
    pub fn new(max_pages: u64, max_objects: u64) -> Rc<Self> {
        Rc::new(Self {
            max_pages,
            pages: Cell::new(0),
            max_objects,
            objects: Cell::new(0),
            whole: None,
        })
    }

    /// A part of this account with a bound on pages of its own.
    pub fn part(self: &Rc<Self>, max_pages: u64) -> Rc<Self> {
        Rc::new(Self {
            max_pages: max_pages.min(self.max_pages),
            pages: Cell::new(0),
            max_objects: self.max_objects,
            objects: Cell::new(0),
            whole: Some(self.clone()),
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
        let page = match &self.whole {
            Some(whole) => whole.take_page()?,
            None => Rc::new(Page::new_zeroed().map_err(|_| ENOSPC)?),
        };
        self.pages.set(self.pages.get() + 1);
        Ok(page)
    }

    /// Whether so many pages can be taken.
    pub fn check_pages(&self, count: u64) -> Result<()> {
        if count > self.max_pages.saturating_sub(self.pages.get()) {
            return Err(ENOSPC);
        }
        match &self.whole {
            Some(whole) => whole.check_pages(count),
            None => Ok(()),
        }
    }

    /// Returns pages to the account.
    pub fn give_pages(&self, count: u64) {
        self.pages.set(self.pages.get().saturating_sub(count));
        if let Some(whole) = &self.whole {
            whole.give_pages(count);
        }
    }

    /// Charges one inode or directory entry.
    pub fn take_object(&self) -> Result<()> {
        if self.objects.get() >= self.max_objects {
            return Err(ENOSPC);
        }
        if let Some(whole) = &self.whole {
            whole.take_object()?;
        }
        self.objects.set(self.objects.get() + 1);
        Ok(())
    }

    /// Returns objects to the account.
    pub fn give_objects(&self, count: u64) {
        self.objects.set(self.objects.get().saturating_sub(count));
        if let Some(whole) = &self.whole {
            whole.give_objects(count);
        }
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
