//! Physical pages. Fresh ones are known to be zero (the VMM hands out zeroed memory) and need no touching; freed ones
//! are kept on a list inside themselves and cleared when they are handed out again.
//!
//! The order in which fresh chunks are used follows the layout seed (diversity); nothing of it can reach an output.

use crate::cell::Global;
use crate::errno::{ENOMEM, Result};
use core::sync::atomic::{AtomicU64, Ordering};
use quorate_abi::PAGE_SIZE;
use quorate_abi::boot::Range;

/// Bytes of a chunk: contiguous allocations are at most this long.
pub const CHUNK: u64 = 2 << 20;
/// Chunks of the largest memory.
const MAX_CHUNKS: usize = (quorate_abi::map::MAX_RAM / CHUNK) as usize;

static DIRECT_BASE: AtomicU64 = AtomicU64::new(0);

struct Frames {
    /// Numbers of chunks not begun yet, in the order of use, from the end.
    chunks: [u32; MAX_CHUNKS],
    chunks_left: usize,
    next: u64,
    end: u64,
    free_list: u64,
    free_list_len: u64,
    total: u64,
    used: u64,
    reserved: Range,
}

static FRAMES: Global<Frames> = Global::new(Frames {
    chunks: [0; MAX_CHUNKS],
    chunks_left: 0,
    next: 0,
    end: 0,
    free_list: 0,
    free_list_len: 0,
    total: 0,
    used: 0,
    reserved: Range { start: 0, len: 0 },
});

/// Direct-map address of a physical address.
#[inline]
pub fn to_direct(physical: u64) -> u64 {
    DIRECT_BASE.load(Ordering::Relaxed) + physical
}

/// Physical address of a direct-map address.
#[inline]
pub fn to_physical(direct: u64) -> u64 {
    direct - DIRECT_BASE.load(Ordering::Relaxed)
}

/// Takes over all RAM but `reserved` (and the first chunk's page 0).
pub fn init(ram: &[Range], reserved: Range, direct_base: u64, seed: &[u8; 32]) {
    DIRECT_BASE.store(direct_base, Ordering::Relaxed);
    let mut frames = FRAMES.borrow_mut();
    frames.reserved = reserved;
    let mut count = 0;
    for range in ram {
        let mut at = range.start;
        while at + CHUNK <= range.start + range.len && count < MAX_CHUNKS {
            frames.chunks[count] = (at / CHUNK) as u32;
            count += 1;
            at += CHUNK;
        }
        frames.total += range.len / PAGE_SIZE;
    }
    frames.chunks_left = count;
    let mut word = [0u8; 8];
    word.copy_from_slice(&seed[..8]);
    let mut state = u64::from_le_bytes(word);
    if state != 0 {
        // Fisher and Yates, with splitmix64.
        for i in (1..count).rev() {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            frames.chunks.swap(i, (z % (i as u64 + 1)) as usize);
        }
    }
    frames.used = reserved.len.div_ceil(PAGE_SIZE) + 1;
}

impl Frames {
    /// Moves to the next stretch of fresh memory; false if there is none.
    fn next_stretch(&mut self) -> bool {
        if self.end != 0 {
            // Was the rest of this chunk cut off by the reserved range?
            let chunk_end = (self.end - 1) / CHUNK * CHUNK + CHUNK;
            let reserved_end =
                (self.reserved.start + self.reserved.len).next_multiple_of(PAGE_SIZE);
            if self.end < chunk_end && self.end == self.reserved.start && reserved_end < chunk_end {
                self.next = reserved_end;
                self.end = chunk_end;
                return true;
            }
        }
        while self.chunks_left > 0 {
            self.chunks_left -= 1;
            let start = u64::from(self.chunks[self.chunks_left]) * CHUNK;
            let end = start + CHUNK;
            let (r0, r1) = (
                self.reserved.start,
                (self.reserved.start + self.reserved.len).next_multiple_of(PAGE_SIZE),
            );
            let mut next = if start == 0 { PAGE_SIZE } else { start };
            let mut stop = end;
            if next < r1 && r0 < end {
                if r0 > next {
                    stop = r0;
                } else if r1 < end {
                    next = r1;
                } else {
                    continue;
                }
            }
            self.next = next;
            self.end = stop;
            return true;
        }
        false
    }
}

/// One zeroed page.
///
/// # Errors
/// `ENOMEM`.
pub fn alloc() -> Result<u64> {
    let mut frames = FRAMES.borrow_mut();
    if frames.free_list != 0 {
        let frame = frames.free_list;
        let pointer = to_direct(frame) as *mut u64;
        // SAFETY: a free page of RAM, reachable by the direct map and used by nobody else.
        unsafe {
            frames.free_list = pointer.read();
            core::ptr::write_bytes(pointer.cast::<u8>(), 0, PAGE_SIZE as usize);
        }
        frames.free_list_len -= 1;
        frames.used += 1;
        return Ok(frame);
    }
    while frames.next == frames.end {
        if !frames.next_stretch() {
            return Err(ENOMEM);
        }
    }
    let frame = frames.next;
    frames.next += PAGE_SIZE;
    frames.used += 1;
    Ok(frame)
}

/// One zeroed page for a page table.
///
/// # Errors
/// `ENOMEM`.
pub fn alloc_table() -> Result<u64> {
    crate::flight::table_made();
    alloc()
}

/// `pages` physically contiguous zeroed pages, at most a chunk. They are never freed.
///
/// # Errors
/// `ENOMEM`.
pub fn alloc_contiguous(pages: u64) -> Result<u64> {
    let len = pages * PAGE_SIZE;
    if len == 0 || len > CHUNK {
        return Err(ENOMEM);
    }
    loop {
        {
            let mut frames = FRAMES.borrow_mut();
            if frames.end - frames.next >= len {
                let start = frames.next;
                frames.next += len;
                frames.used += pages;
                return Ok(start);
            }
        }
        // What is left of the stretch goes to the free list.
        loop {
            let mut frames = FRAMES.borrow_mut();
            if frames.next == frames.end {
                if !frames.next_stretch() {
                    return Err(ENOMEM);
                }
                break;
            }
            let frame = frames.next;
            frames.next += PAGE_SIZE;
            frames.used += 1;
            drop(frames);
            free(frame);
        }
    }
}

/// Address of the variable that holds the first free page, for the flight recorder.
pub fn free_list_at() -> u64 {
    &raw const FRAMES.borrow().free_list as u64
}

/// Gives a page back.
pub fn free(frame: u64) {
    debug_assert!(frame.is_multiple_of(PAGE_SIZE) && frame != 0);
    let mut frames = FRAMES.borrow_mut();
    // SAFETY: the page is RAM and its owner has given it up.
    unsafe { (to_direct(frame) as *mut u64).write(frames.free_list) };
    frames.free_list = frame;
    frames.free_list_len += 1;
    frames.used -= 1;
}

/// (all, free) pages.
pub fn counts() -> (u64, u64) {
    let frames = FRAMES.borrow();
    (frames.total, frames.total.saturating_sub(frames.used))
}
