//! Who may have how much of memory (R10), by numbers that are the same in every layout (R8): what was asked for, never what was touched
//! or what page tables cost. So memory runs out at the same call in all replicas.
//!
//! | what | charge |
//! | --- | --- |
//! | private memory that can be written (or could once) | all of it, when it is mapped |
//! | mappings larger than memory, MAP_NORESERVE | their pages, when they are touched |
//! | stacks of threads | [`STACK_CHARGE`] at most |
//! | pages of files in memory and in the page cache, shared memory | when they are made |
//! | connections | their buffers |
//! | a process, a thread | [`SPACE_CHARGE`], [`PROCESS_CHARGE`]; the kernel stack |
//! | disks | buffers for requests and metadata, when they are started and mounted |
//! | page tables, the kernel and its heap, rewritten code | nothing: they live on the reserve |
//!
//! The reserve is [`RESERVE_LEAST`] and [`RESERVE_SHARE`] of memory. What asks for more than the rest has gets `ENOMEM` (a file: `ENOSPC`),
//! as on a Linux that does not overcommit. MAP_NORESERVE helps a mapping that is larger than all the rest: its pages are charged when they
//! are touched, and the program is killed when there are none left.

use crate::errno::{ENOMEM, Result};
use crate::fs::disk::cache;
use core::sync::atomic::{AtomicU64, Ordering};
use quorate_abi::PAGE_SIZE;

/// Bytes of the reserve in the smallest guest.
pub const RESERVE_LEAST: u64 = 6 << 20;
/// Memory divided by this is added to the reserve.
pub const RESERVE_SHARE: u64 = 8;
/// Bytes that a stack is charged at most: few threads use more, and those that do live on the reserve.
pub const STACK_CHARGE: u64 = 128 << 10;
/// Pages for the page tables of an address space, which are kept when it ends.
pub const SPACE_CHARGE: u64 = 32;
/// Pages for the rewritten code of an address space.
pub const PROCESS_CHARGE: u64 = 16;

static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);
static USED: AtomicU64 = AtomicU64::new(0);

/// Sets the limit that goes with `total` bytes of memory.
pub fn init(total: u64) {
    let reserve = RESERVE_LEAST + total / RESERVE_SHARE;
    let limit = total.saturating_sub(reserve) / PAGE_SIZE;
    LIMIT.store(limit, Ordering::Relaxed);
}

/// (limit, used) pages.
pub fn counts() -> (u64, u64) {
    (LIMIT.load(Ordering::Relaxed), USED.load(Ordering::Relaxed))
}

/// Whether so many pages could be taken.
///
/// # Errors
/// `ENOMEM`.
pub fn check(pages: u64) -> Result<()> {
    let missing = || {
        let (limit, used) = counts();
        used.saturating_add(pages).saturating_sub(limit)
    };
    // What the page cache has is only lent.
    if missing() == 0 || (cache::give_back(missing()) > 0 && missing() == 0) {
        Ok(())
    } else {
        Err(ENOMEM)
    }
}

/// Takes pages.
///
/// # Errors
/// `ENOMEM`.
pub fn take(pages: u64) -> Result<()> {
    check(pages)?;
    USED.fetch_add(pages, Ordering::Relaxed);
    Ok(())
}

/// Gives pages back.
pub fn give(pages: u64) {
    USED.fetch_sub(pages, Ordering::Relaxed);
}

/// Replaces a charge of `old` pages by one of `new`, which was checked or is no larger (but for stacks that are split).
pub fn change(old: u64, new: u64) {
    if new >= old {
        USED.fetch_add(new - old, Ordering::Relaxed);
    } else {
        give(old - new);
    }
}
