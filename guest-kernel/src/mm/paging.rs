//! Page tables. The VMM builds the first ones, which map the kernel; each address space has its own root, whose program part the
//! kernel edits at CPL 3 through the direct map, and whose kernel part consists of the first ones' tables.

use super::frames;
use crate::arch::monitor::{self, MONITOR_ROOT};
use crate::cell::Global;
use crate::errno::{EAGAIN, Result};
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
/// What an entry above the lowest level holds besides the address.
const TABLE: u64 = PRESENT | WRITE | USER | ACCESSED_DIRTY;

/// The VMM's tables: kernel only.
static KERNEL: AtomicU64 = AtomicU64::new(0);
/// Most roots: as many as there can be processes. `EAGAIN` beyond.
pub const MAX_ROOTS: usize = crate::process::MAX_PROCESSES + 2;

/// All other roots, in the order in which they were made. No vector: the heap may have to grow, which reads this.
struct Roots {
    all: [u64; MAX_ROOTS],
    count: usize,
}

static ROOTS: Global<Roots> = Global::new(Roots {
    all: [0; MAX_ROOTS],
    count: 0,
});

/// Remembers the VMM's top-level table.
pub fn init(root: u64) {
    KERNEL.store(root, Ordering::Relaxed);
    MONITOR_ROOT.store(root, Ordering::Relaxed);
}

/// Addresses of the other roots and of their number, for the flight recorder. The number is a `u64`.
pub fn roots_at() -> (u64, u64) {
    let roots = ROOTS.borrow();
    (roots.all.as_ptr() as u64, &raw const roots.count as u64)
}

/// The root in use.
pub fn current() -> u64 {
    MONITOR_ROOT.load(Ordering::Relaxed)
}

/// Uses another root from now on.
pub fn switch_to(root: u64) {
    if current() != root {
        MONITOR_ROOT.store(root, Ordering::Relaxed);
        monitor::load_root();
    }
}

#[inline]
fn table(physical: u64) -> *mut u64 {
    frames::to_direct(physical & ADDRESS) as *mut u64
}

/// The entry that maps the 4 KiB page at `va`; None if a table on the way is missing (or a large page maps it).
pub fn entry(root: u64, va: u64) -> Option<&'static mut u64> {
    let mut at = table(root);
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

/// As [`entry`], making the tables on the way. Also tells whether there were any to make.
fn walk(root: u64, va: u64) -> Result<(&'static mut u64, bool)> {
    let mut at = table(root);
    let mut made = false;
    for level in [39, 30, 21] {
        // SAFETY: as in `entry`.
        let e = unsafe { &mut *at.add((va >> level) as usize & 511) };
        if *e & PRESENT == 0 {
            *e = frames::alloc_table()? | TABLE;
            made = true;
        }
        assert!(
            *e & LARGE == 0,
            "a program's page inside the kernel's large pages"
        );
        at = table(*e);
    }
    // SAFETY: as in `entry`.
    Ok((unsafe { &mut *at.add((va >> 12) as usize & 511) }, made))
}

/// As [`entry`], making the tables on the way.
///
/// # Errors
/// `ENOMEM`.
pub fn entry_or_create(root: u64, va: u64) -> Result<&'static mut u64> {
    Ok(walk(root, va)?.0)
}

/// Calls `visit` for each non-zero entry in the range, skipping missing tables quickly.
pub fn for_each(root: u64, start: u64, end: u64, mut visit: impl FnMut(u64, &mut u64)) {
    let mut va = start;
    while va < end {
        match entry(root, va) {
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

/// Maps a page of the kernel's own, writable, never executable, in all address spaces.
///
/// # Errors
/// `ENOMEM`.
pub fn map_kernel(va: u64, physical: u64) -> Result<()> {
    let kernel = KERNEL.load(Ordering::Relaxed);
    let (e, made) = walk(kernel, va)?;
    *e = physical | PRESENT | WRITE | USER | ACCESSED_DIRTY | NO_EXECUTE;
    if made {
        let roots = ROOTS.borrow();
        for root in &roots.all[..roots.count] {
            share(kernel, *root, va);
        }
    }
    Ok(())
}

/// Lets `root` have the first table on the way to `va` that only the kernel's root has.
fn share(kernel: u64, root: u64, va: u64) {
    let (mut from, mut to) = (table(kernel), table(root));
    for level in [39, 30, 21] {
        let index = (va >> level) as usize & 511;
        // SAFETY: both are page tables, and the index is below 512.
        unsafe {
            let theirs = *from.add(index);
            if *to.add(index) & PRESENT == 0 {
                *to.add(index) = theirs;
                return;
            }
            (from, to) = (table(theirs), table(*to.add(index)));
        }
        if from == to {
            return;
        }
    }
}

/// How a range of addresses lies to the ranges that are a program's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Share {
    Kernel,
    Program,
    Both,
}

fn share_of(start: u64, end: u64, program: &[(u64, u64)]) -> Share {
    if program.iter().any(|(a, b)| *a <= start && end <= *b) {
        Share::Program
    } else if program.iter().any(|(a, b)| *a < end && start < *b) {
        Share::Both
    } else {
        Share::Kernel
    }
}

/// A root that maps the kernel and nothing else. Tables in which both kernel and programs have entries (by `program`: address
/// ranges that are a program's) are its own.
///
/// # Errors
/// `ENOMEM`; `EAGAIN` at [`MAX_ROOTS`].
pub fn new_root(program: &[(u64, u64)]) -> Result<u64> {
    if ROOTS.borrow().count == MAX_ROOTS {
        return Err(EAGAIN);
    }
    let root = copy_table(KERNEL.load(Ordering::Relaxed), 39, 0, program)?;
    let mut roots = ROOTS.borrow_mut();
    let count = roots.count;
    roots.all[count] = root;
    roots.count += 1;
    Ok(root)
}

fn copy_table(from: u64, shift: u32, base: u64, program: &[(u64, u64)]) -> Result<u64> {
    let copy = frames::alloc_table()?;
    for i in 0..512 {
        // SAFETY: a page table, and an index below 512.
        let e = unsafe { *table(from).add(i) };
        if e & PRESENT == 0 {
            continue;
        }
        let start = base + ((i as u64) << shift);
        let e = match share_of(start, start + (1 << shift), program) {
            Share::Program => continue,
            Share::Both if shift > 12 && e & LARGE == 0 => {
                copy_table(e & ADDRESS, shift - 9, start, program)? | (e & !ADDRESS)
            }
            _ => e,
        };
        // SAFETY: the new table, and an index below 512.
        unsafe { *table(copy).add(i) = e };
    }
    Ok(copy)
}

/// Flushes the TLB if `root` is in use; another one's old translations go when it is loaded.
pub fn flush(root: u64) {
    if current() == root {
        monitor::load_root();
    }
}
