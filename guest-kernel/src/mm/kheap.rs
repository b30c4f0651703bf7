//! The kernel's own dynamic memory, in the layout's `kernel_dynamic` region: its heap in the lower half, thread stacks
//! in the upper.

use super::{frames, paging};
use crate::errno::{ENOMEM, Result};
use core::sync::atomic::{AtomicU64, Ordering};
use quorate_abi::PAGE_SIZE;

/// Bytes of each half of the region.
const HALF: u64 = 32 << 30;
/// Least growth of the heap in bytes.
const HEAP_STEP: u64 = 256 << 10;
/// Bytes of a thread's kernel stack.
pub const STACK_SIZE: u64 = 64 << 10;

static BASE: AtomicU64 = AtomicU64::new(0);
static HEAP_END: AtomicU64 = AtomicU64::new(0);
static STACKS_END: AtomicU64 = AtomicU64::new(0);

/// Sets the region's start.
pub fn init(base: u64) {
    BASE.store(base, Ordering::Relaxed);
    HEAP_END.store(base, Ordering::Relaxed);
    STACKS_END.store(base + HALF, Ordering::Relaxed);
}

fn map(start: u64, len: u64) -> Result<()> {
    for page in 0..len / PAGE_SIZE {
        paging::map_kernel(start + page * PAGE_SIZE, frames::alloc()?)?;
    }
    Ok(())
}

/// Maps at least `len` more bytes at the heap's end; returns (old end, new end).
///
/// # Errors
/// `ENOMEM`.
pub fn grow_heap(len: u64) -> Result<(u64, u64)> {
    let len = len.max(HEAP_STEP).next_multiple_of(PAGE_SIZE);
    let start = HEAP_END.load(Ordering::Relaxed);
    if start + len > BASE.load(Ordering::Relaxed) + HALF {
        return Err(ENOMEM);
    }
    // Check first: a half-mapped growth would be lost.
    if frames::counts().1 * PAGE_SIZE < len + (64 << 10) {
        return Err(ENOMEM);
    }
    map(start, len)?;
    HEAP_END.store(start + len, Ordering::Relaxed);
    Ok((start, start + len))
}

/// A new kernel stack after an unmapped guard page; returns its top.
///
/// # Errors
/// `ENOMEM`.
pub fn new_stack() -> Result<u64> {
    let start = STACKS_END.load(Ordering::Relaxed) + PAGE_SIZE;
    let top = start + STACK_SIZE;
    if top > BASE.load(Ordering::Relaxed) + 2 * HALF {
        return Err(ENOMEM);
    }
    super::budget::take(STACK_SIZE / PAGE_SIZE)?;
    map(start, STACK_SIZE)?;
    STACKS_END.store(top, Ordering::Relaxed);
    Ok(top)
}
