//! Memory: physical pages, page tables, the kernel's heap, the programs' address spaces.
pub mod budget;
pub mod frames;
pub mod kheap;
pub mod page;
pub mod paging;
pub mod space;
pub mod sys;
pub use page::Page;

use crate::cell::Global;
use crate::errno::Result;
use crate::file::File;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use quorate_abi::boot::{BootInfo, Layout};
use space::{Fault, Space};

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

/// An address space; they live for ever, and are used again.
pub type SpaceRef = &'static Global<Space>;

/// All address spaces.
struct Spaces {
    /// In use, in the order in which they were begun.
    live: Vec<SpaceRef>,
    /// Empty ones with their page tables.
    free: Vec<SpaceRef>,
    current: Option<SpaceRef>,
    next_id: u64,
}

static SPACES: Global<Spaces> = Global::new(Spaces {
    live: Vec::new(),
    free: Vec::new(),
    current: None,
    next_id: 1,
});
static LAYOUT: Global<Option<Layout>> = Global::new(None);
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
    budget::init(frames::counts().0 * quorate_abi::PAGE_SIZE);
    paging::init(boot.page_table_root);
    kheap::init(boot.layout.kernel_dynamic);
    IMAGE_VIRTUAL.store(boot.layout.image, Ordering::Relaxed);
    *LAYOUT.borrow_mut() = Some(boot.layout);
}

/// An empty address space with one user.
///
/// # Errors
/// `ENOMEM`; `EAGAIN` if there are too many.
pub fn new_space() -> Result<SpaceRef> {
    let free = SPACES.borrow_mut().free.pop();
    let space = match free {
        Some(space) => space,
        None => {
            let layout = (*LAYOUT.borrow()).ok_or(crate::errno::ENOMEM)?;
            budget::take(budget::SPACE_CHARGE)?;
            &*Box::leak(Box::new(Global::new(Space::new(layout))))
        }
    };
    let id = {
        let mut spaces = SPACES.borrow_mut();
        spaces.next_id += 1;
        spaces.next_id
    };
    let begun = space.borrow_mut().begin(id);
    let mut spaces = SPACES.borrow_mut();
    match begun {
        Ok(()) => spaces.live.push(space),
        Err(error) => {
            spaces.free.push(space);
            return Err(error);
        }
    }
    Ok(space)
}

/// A copy of an address space, for `fork`.
///
/// # Errors
/// As [`new_space`].
pub fn fork_space(of: SpaceRef) -> Result<SpaceRef> {
    let child = new_space()?;
    let copied = of.borrow().copy_to(&mut child.borrow_mut());
    match copied {
        Ok(()) => Ok(child),
        Err(error) => {
            release_space(child);
            Err(error)
        }
    }
}

/// Another process uses the space, too (`vfork`).
pub fn share_space(space: SpaceRef) -> SpaceRef {
    space.borrow_mut().users += 1;
    space
}

/// A user of the space is gone; with the last one goes what is mapped. It is not the space in use then.
pub fn release_space(space: SpaceRef) {
    {
        let mut space = space.borrow_mut();
        space.users -= 1;
        if space.users > 0 {
            return;
        }
        space.end();
    }
    let mut spaces = SPACES.borrow_mut();
    spaces.live.retain(|s| !core::ptr::eq(*s, space));
    spaces.free.push(space);
}

/// Makes a space the one in use. One that is in use already costs nothing.
pub fn switch_space(to: SpaceRef) {
    let mut spaces = SPACES.borrow_mut();
    if !spaces.current.is_some_and(|s| core::ptr::eq(s, to)) {
        spaces.current = Some(to);
        paging::switch_to(to.borrow().root);
    }
}

/// The space in use.
#[track_caller]
pub fn current_space() -> SpaceRef {
    match SPACES.borrow().current {
        Some(space) => space,
        None => panic!("no address space yet"),
    }
}

/// The running program's address space. Never hold it while touching the program's memory.
#[track_caller]
pub fn space() -> core::cell::RefMut<'static, Space> {
    current_space().borrow_mut()
}

/// Checks that the program could access all of `[addr, addr+len)`, and populates it.
///
/// # Errors
/// `EFAULT`.
pub fn check_user(addr: u64, len: usize, access: Access) -> Result<()> {
    if cfg!(test) {
        return Ok(());
    }
    loop {
        let result = space().check(addr, len as u64, access);
        match result {
            Err(Fault::NotLoaded) => load_wanted().map_err(|_| crate::errno::EFAULT)?,
            result => {
                search_fresh_code();
                return result.map_err(|_| crate::errno::EFAULT);
            }
        }
    }
}

/// Searches code that has become present for leaking instructions, before anything of it runs.
pub fn search_fresh_code() {
    loop {
        let fresh = space().take_fresh_code();
        match fresh {
            Some((start, end)) => crate::rewrite::scan(start, end),
            None => break,
        }
        space().finish();
    }
}

/// The page of a file that somebody was last refused for.
static WANTED: Global<Option<(Rc<dyn File>, u64)>> = Global::new(None);

/// Notes which page is missing.
fn want(file: &Rc<dyn File>, index: u64) {
    let before = WANTED.borrow_mut().replace((file.clone(), index));
    drop(before);
}

/// Loads the page that [`Fault::NotLoaded`] was about; waits for the disk.
///
/// # Errors
/// `EIO`.
pub fn load_wanted() -> Result<()> {
    let wanted = WANTED.borrow_mut().take();
    match wanted {
        Some((file, index)) => file.load_pages(index, 1),
        None => Ok(()),
    }
}

/// Pages `[first, end)` of a file are gone: mappings of it lose them, and an access there faults again (and is SIGBUS beyond the end).
pub fn forget_file_pages(map_key: usize, first: u64, end: u64) {
    // No vector of them is kept: mappings come and go, and truncating a mapped file is rare.
    let count = SPACES.borrow().live.len();
    for i in 0..count {
        let space = SPACES.borrow().live[i];
        space.borrow_mut().forget_file_pages(map_key, first, end);
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
    let (limit, used) = budget::counts();
    let page = quorate_abi::PAGE_SIZE;
    (total * page, limit.saturating_sub(used) * page)
}

/// Bytes that are really free. Depends on the layout: for the kernel's own decisions only.
pub fn free_bytes() -> u64 {
    frames::counts().1 * quorate_abi::PAGE_SIZE
}

/// Text of /proc/PID/maps.
pub fn maps_text(space: SpaceRef) -> String {
    use core::fmt::Write;
    let mut text = String::new();
    let space = space.borrow();
    let mut mappings: Vec<_> = space.iter().collect();
    // Region by region: where the regions lie differs between replicas, and must not change how many reads it takes to find
    // something (R8).
    mappings.sort_by_key(|(start, _)| space.region(*start));
    for (start, vma) in mappings {
        let bit = |b: u8, c: char| if vma.prot & b != 0 { c } else { '-' };
        let (offset, shared, path) = match &vma.backing {
            space::Backing::Anonymous => (0, false, Vec::new()),
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
pub fn size_of(space: SpaceRef) -> (u64, u64) {
    let space = space.borrow();
    (space.size, space.committed())
}
