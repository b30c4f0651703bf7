//! The page cache as a whole: how many pages files on disks may keep, which go when there are too many, and which files have
//! pages to write.
//!
//! All of it goes by order of events and numbers that are the same in every replica, never by addresses or by how much memory is
//! really free (R8): what is evicted or written when decides what the disk is asked.

use super::file;
use crate::cell::Global;
use crate::errno::{ENOMEM, Result};
use crate::fs::inode::Inode;
use crate::mm;
use alloc::collections::VecDeque;
use alloc::rc::{Rc, Weak};
use core::sync::atomic::{AtomicU64, Ordering};
use quorate_abi::PAGE_SIZE;

/// The cache may fill what is free of memory (itself included) divided by this (R10). When it is full, the pages that have not been
/// used for longest go; those that are mapped stay. A program that needs memory gets that of clean pages, see [`give_back`].
const SHARE_OF_FREE: u64 = 2;
/// Least bound, pages.
const LEAST_PAGES: u64 = 256;
/// The bound is worked out anew after so many pages.
const PAGES_PER_LOOK: u64 = 1024;
/// Of the bound so much may wait to be written; who writes more writes it out first. At most [`MOST_DIRTY`].
const DIRTY_SHARE: u64 = 4;
/// Most pages that wait to be written.
const MOST_DIRTY: u64 = 8192;

struct Entry {
    file: Weak<Inode>,
    index: u64,
    stamp: u64,
}

struct Cache {
    pages: u64,
    dirty: u64,
    limit: u64,
    until_look: u64,
    next_stamp: u64,
    /// Oldest first. An entry whose stamp is not the page's is stale.
    order: VecDeque<Entry>,
    /// Files with pages to write, in the order in which they got the first one.
    dirty_files: VecDeque<Rc<Inode>>,
}

static CACHE: Global<Cache> = Global::new(Cache {
    pages: 0,
    dirty: 0,
    limit: LEAST_PAGES,
    until_look: 0,
    next_stamp: 0,
    order: VecDeque::new(),
    dirty_files: VecDeque::new(),
});

/// Pages in the cache.
pub fn pages() -> u64 {
    CACHE.borrow().pages
}

/// Pages that wait to be written.
pub fn dirty_pages() -> u64 {
    CACHE.borrow().dirty
}

/// Bound for tests; 0: the usual one.
#[cfg(test)]
pub static TEST_LIMIT: AtomicU64 = AtomicU64::new(0);

fn limit() -> u64 {
    #[cfg(test)]
    {
        let limit = TEST_LIMIT.load(Ordering::Relaxed);
        if limit != 0 {
            return limit;
        }
    }
    if CACHE.borrow().until_look == 0 {
        let free = mm::memory_info().1 / PAGE_SIZE;
        let mut cache = CACHE.borrow_mut();
        cache.limit = ((free + cache.pages) / SHARE_OF_FREE).max(LEAST_PAGES);
        cache.until_look = PAGES_PER_LOOK;
    }
    CACHE.borrow().limit
}

/// Whether so much waits to be written that a writer has to see to it.
pub fn too_dirty() -> bool {
    let most = (limit() / DIRTY_SHARE).min(MOST_DIRTY);
    dirty_pages() > most
}

/// A page came into the cache; returns its stamp.
pub fn entered(file: &Rc<Inode>, index: u64) -> u64 {
    let mut cache = CACHE.borrow_mut();
    cache.pages += 1;
    cache.until_look = cache.until_look.saturating_sub(1);
    let stamp = cache.next_stamp;
    cache.next_stamp += 1;
    cache.order.push_back(Entry {
        file: Rc::downgrade(file),
        index,
        stamp,
    });
    stamp
}

/// Pages have left the cache.
pub fn left(count: u64) {
    let mut cache = CACHE.borrow_mut();
    cache.pages = cache.pages.saturating_sub(count);
    let stale = cache.order.len() as u64 > 4 * cache.pages + 1024;
    if stale {
        let mut order = core::mem::take(&mut cache.order);
        drop(cache);
        order.retain(|entry| {
            let file = entry.file.upgrade();
            file.is_some_and(|file| file::has_page(&file, entry.index, entry.stamp))
        });
        CACHE.borrow_mut().order = order;
    }
}

/// A clean page has become dirty; `first`: its file had none so far.
pub fn dirtied(file: &Rc<Inode>, first: bool) {
    let mut cache = CACHE.borrow_mut();
    cache.dirty += 1;
    if first {
        cache.dirty_files.push_back(file.clone());
    }
    drop(cache);
    super::wake_background();
}

/// Dirty pages have become clean, or have gone.
pub fn cleaned(count: u64) {
    let mut cache = CACHE.borrow_mut();
    cache.dirty = cache.dirty.saturating_sub(count);
}

/// A file with pages to write; it is not listed any more.
pub fn next_dirty() -> Option<Rc<Inode>> {
    CACHE.borrow_mut().dirty_files.pop_front()
}

/// How many files are listed.
pub fn dirty_files() -> usize {
    CACHE.borrow().dirty_files.len()
}

/// Puts a file (back) on the list of those with pages to write.
pub fn list_dirty(file: &Rc<Inode>) {
    CACHE.borrow_mut().dirty_files.push_back(file.clone());
}

/// A page has left the cache inside of [`give_back`].
pub fn counted_out() {
    GIVEN.fetch_add(1, Ordering::Relaxed);
}

static GIVEN: AtomicU64 = AtomicU64::new(0);

/// Memory is short: lets go of up to `count` clean pages, oldest first, without waiting. Returns how many.
pub fn give_back(count: u64) -> u64 {
    // The caller may be in the middle of the cache's own work; then there is nothing to be had.
    let Ok(mut cache) = CACHE.try_borrow_mut() else {
        return 0;
    };
    GIVEN.store(0, Ordering::Relaxed);
    let mut order = core::mem::take(&mut cache.order);
    drop(cache);
    let mut kept = VecDeque::new();
    while GIVEN.load(Ordering::Relaxed) < count
        && let Some(entry) = order.pop_front()
    {
        let gone = match entry.file.upgrade() {
            Some(file) => file::give_up(&file, entry.index, entry.stamp),
            None => true,
        };
        if !gone {
            kept.push_back(entry);
        }
    }
    kept.append(&mut order);
    let given = GIVEN.load(Ordering::Relaxed);
    let mut cache = CACHE.borrow_mut();
    // What came in meanwhile is younger.
    kept.append(&mut cache.order);
    cache.order = kept;
    cache.pages = cache.pages.saturating_sub(given);
    given
}

/// Makes room for so many pages. Waits where dirty ones have to be written first. Not to be called with a volume's lock held.
///
/// # Errors
/// `ENOMEM` if all that could go is mapped.
pub fn reserve(count: u64) -> Result<()> {
    let limit = limit();
    // Each page may be looked at twice: once for having been used.
    let mut turns = 2 * CACHE.borrow().order.len() + 2;
    while CACHE.borrow().pages + count > limit {
        let next = CACHE.borrow_mut().order.pop_front();
        let Some(entry) = next else {
            break;
        };
        turns = turns.saturating_sub(1);
        let Some(file) = entry.file.upgrade() else {
            continue;
        };
        if file::evict(&file, entry.index, entry.stamp) {
            continue;
        }
        CACHE.borrow_mut().order.push_back(entry);
        if turns == 0 {
            // More than the bound is in use right now. A little over it does no harm.
            return if count <= LEAST_PAGES {
                Ok(())
            } else {
                Err(ENOMEM)
            };
        }
    }
    Ok(())
}
