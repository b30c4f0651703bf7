//! Page tables. The VMM builds the first ones; the kernel edits them at CPL 3 through the direct map.

use super::frames;
use crate::arch::monitor;
use crate::errno::Result;
use core::sync::atomic::{AtomicU64, Ordering};

/// Present.
pub const PRESENT: u64 = 1;
/// Writable.
pub const WRITE: u64 = 2;
/// Reachable at CPL 3: everything is.
pub const USER: u64 = 4;
/// Accessed and dirty, preset so that the CPU need not.
pub const ACCESSED_DIRTY: u64 = 0x60;
/// Software: the page belongs to this mapping and is freed with it.
pub const OWNED: u64 = 1 << 9;
/// Software: not present only because the protection is PROT_NONE.
pub const RETAINED: u64 = 1 << 10;
/// No execution.
pub const NO_EXECUTE: u64 = 1 << 63;
/// Bits of a physical address.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const LARGE: u64 = 0x80;

static ROOT: AtomicU64 = AtomicU64::new(0);

/// Remembers the top-level table.
pub fn init(root: u64) {
    ROOT.store(root, Ordering::Relaxed);
}

#[inline]
fn table(physical: u64) -> *mut u64 {
    frames::to_direct(physical & ADDRESS) as *mut u64
}

/// The entry that maps the 4 KiB page at `va`; None if a table on the way is missing (or a large page maps it).
pub fn entry(va: u64) -> Option<&'static mut u64> {
    let mut at = table(ROOT.load(Ordering::Relaxed));
    for level in [39, 30, 21] {
        // SAFETY: `at` is a page table, and the index is below 512.
        let e = unsafe { *at.add((va >> level) as usize & 511) };
        if e & PRESENT == 0 || e & LARGE != 0 {
            return None;
        }
        at = table(e);
    }
    // SAFETY: as above; no other reference to this entry is alive (one vCPU, and callers use it at once).
    Some(unsafe { &mut *at.add((va >> 12) as usize & 511) })
}

/// As [`entry`], making the tables on the way.
///
/// # Errors
/// `ENOMEM`.
pub fn entry_or_create(va: u64) -> Result<&'static mut u64> {
    let mut at = table(ROOT.load(Ordering::Relaxed));
    for level in [39, 30, 21] {
        // SAFETY: as in `entry`.
        let e = unsafe { &mut *at.add((va >> level) as usize & 511) };
        if *e & PRESENT == 0 {
            *e = frames::alloc()? | PRESENT | WRITE | USER | ACCESSED_DIRTY;
        }
        assert!(
            *e & LARGE == 0,
            "a program's page inside the kernel's large pages"
        );
        at = table(*e);
    }
    // SAFETY: as in `entry`.
    Ok(unsafe { &mut *at.add((va >> 12) as usize & 511) })
}

/// Calls `visit` for each non-zero entry in the range, skipping missing tables quickly.
pub fn for_each(start: u64, end: u64, mut visit: impl FnMut(u64, &mut u64)) {
    let mut va = start;
    while va < end {
        match entry(va) {
            None => {
                // No table: skip to the next 2 MiB.
                va = (va | 0x1f_ffff) + 1;
            }
            Some(first) => {
                let first: *mut u64 = first;
                let count = (512 - ((va >> 12) & 511)).min((end - va) >> 12);
                for i in 0..count {
                    // SAFETY: `first + i` stays inside the same page table.
                    let e = unsafe { &mut *first.add(i as usize) };
                    if *e != 0 {
                        visit(va + (i << 12), e);
                    }
                }
                va += count << 12;
            }
        }
    }
}

/// Maps a page of the kernel's own, writable, never executable.
///
/// # Errors
/// `ENOMEM`.
pub fn map_kernel(va: u64, physical: u64) -> Result<()> {
    *entry_or_create(va)? = physical | PRESENT | WRITE | USER | ACCESSED_DIRTY | NO_EXECUTE;
    Ok(())
}

/// Flushes the TLB; see [`monitor::flush_tlb`].
pub fn flush() {
    monitor::flush_tlb();
}
