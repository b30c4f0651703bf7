//! Memory: physical pages, page tables, the kernel's heap, the program's address space.
pub mod frames;
pub mod kheap;
pub mod page;
pub mod paging;
pub mod space;
pub mod sys;
pub use page::Page;

use crate::cell::Global;
use crate::errno::Result;
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};
use quorate_abi::boot::{BootInfo, Layout};
use space::Space;

/// Kind of access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Instruction fetch.
    Execute,
}

static SPACE: Global<Space> = Global::new(Space::new(Layout {
    kernel: 0,
    boot: 0,
    direct: 0,
    image: 0,
    devices: 0,
    kernel_dynamic: 0,
    program: 0,
    libraries: 0,
    mmap: 0,
    threads: 0,
    heap: 0,
    stack_top: 0,
}));
static IMAGE_VIRTUAL: AtomicU64 = AtomicU64::new(0);

/// Takes over memory from the VMM. The heap works afterwards.
pub fn init(boot: &BootInfo) {
    let ranges = (boot.ram_ranges as usize).min(boot.ram.len());
    frames::init(
        &boot.ram[..ranges],
        boot.reserved,
        boot.layout.direct,
        &boot.layout_seed,
    );
    paging::init(boot.page_table_root);
    kheap::init(boot.layout.kernel_dynamic);
    IMAGE_VIRTUAL.store(boot.layout.image, Ordering::Relaxed);
    *SPACE.borrow_mut() = Space::new(boot.layout);
}

/// The program's address space. Never hold it while touching the program's memory.
#[track_caller]
pub fn space() -> core::cell::RefMut<'static, Space> {
    SPACE.borrow_mut()
}

/// Checks that the program could access all of `[addr, addr+len)`, and populates it.
///
/// # Errors
/// `EFAULT`.
pub fn check_user(addr: u64, len: usize, access: Access) -> Result<()> {
    if cfg!(test) {
        return Ok(());
    }
    SPACE
        .borrow_mut()
        .check(addr, len as u64, access)
        .map_err(|_| crate::errno::EFAULT)
}

/// Pages `[first, end)` of a file are gone: mappings of it lose them, and an access there faults again (and is SIGBUS beyond the end).
pub fn forget_file_pages(map_key: usize, first: u64, end: u64) {
    if !cfg!(test) {
        SPACE.borrow_mut().forget_file_pages(map_key, first, end);
    }
}

/// Kernel address at which a physical page of RAM or of the root image can be read.
pub fn readable(physical: u64) -> u64 {
    if physical >= quorate_abi::map::IMAGE_BASE {
        IMAGE_VIRTUAL.load(Ordering::Relaxed) + (physical - quorate_abi::map::IMAGE_BASE)
    } else {
        frames::to_direct(physical)
    }
}

/// Physical address of a kernel (direct-map) address, for virtio descriptors.
pub fn direct_to_physical(addr: u64) -> u64 {
    frames::to_physical(addr)
}

/// Direct-map address of a physical address.
pub fn physical_to_direct(addr: u64) -> u64 {
    frames::to_direct(addr)
}

/// Physically contiguous zeroed memory for device queues, never freed; returns (direct-map pointer, physical address).
///
/// # Errors
/// `ENOMEM`.
pub fn alloc_dma(pages: usize) -> Result<(*mut u8, u64)> {
    let physical = frames::alloc_contiguous(pages as u64)?;
    Ok((frames::to_direct(physical) as *mut u8, physical))
}

/// (total, free) bytes of memory, for sysinfo and /proc/meminfo: counts what the program asked for, not what the
/// layout costs in pages touched and page tables (R8).
pub fn memory_info() -> (u64, u64) {
    if cfg!(test) {
        // Host unit tests have no physical memory.
        return (256 << 20, 128 << 20);
    }
    let (total, _) = frames::counts();
    let used = SPACE.borrow().committed() + crate::fs::memory_in_use();
    let total = total * quorate_abi::PAGE_SIZE;
    (total, total.saturating_sub(used))
}

/// Bytes that are really free. Depends on the layout: for the kernel's own decisions only.
pub fn free_bytes() -> u64 {
    frames::counts().1 * quorate_abi::PAGE_SIZE
}

/// Text of /proc/self/maps.
pub fn maps_text() -> String {
    use core::fmt::Write;
    let mut text = String::new();
    let space = SPACE.borrow();
    let mut mappings: alloc::vec::Vec<_> = space.iter().collect();
    // Region by region: where the regions lie differs between replicas, and must not change how many reads it takes to find
    // something (R8).
    mappings.sort_by_key(|(start, _)| space.region(*start));
    for (start, vma) in mappings {
        let bit = |b: u8, c: char| if vma.prot & b != 0 { c } else { '-' };
        let (offset, shared, path) = match &vma.backing {
            space::Backing::Anonymous => (0, false, alloc::vec::Vec::new()),
            space::Backing::File {
                file,
                offset,
                shared,
            } => (*offset, *shared, file.path()),
        };
        let name = if path.is_empty() {
            String::from(vma.name)
        } else {
            String::from_utf8_lossy(&path).into_owned()
        };
        let _ = writeln!(
            text,
            "{start:012x}-{:012x} {}{}{}{} {offset:08x} 00:00 0 {name}",
            vma.end,
            bit(space::READ, 'r'),
            bit(space::WRITE_PROT, 'w'),
            bit(space::EXEC, 'x'),
            if shared { 's' } else { 'p' },
        );
    }
    text
}

/// (virtual size, memory in use) in bytes; see [`Space::committed`].
pub fn process_size() -> (u64, u64) {
    let space = SPACE.borrow();
    (space.size, space.committed())
}
