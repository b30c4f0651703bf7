//! System calls on memory.

use super::budget;
use super::space::{Arena, Backing, EXEC, Fault, LOWEST, SPARSE, WRITE_PROT};
use crate::errno::*;
use crate::{file, fs, rewrite};
use quorate_abi::PAGE_SIZE;

const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
const MAP_SHARED_VALIDATE: u64 = 3;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_GROWSDOWN: u64 = 0x100;
const MAP_NORESERVE: u64 = 0x4000;
const MAP_POPULATE: u64 = 0x8000;
const MAP_STACK: u64 = 0x2_0000;
const MAP_HUGETLB: u64 = 0x4_0000;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;

/// Shared anonymous mappings up to this many bytes are populated at once.
const EAGER_SHARED: u64 = 64 << 10;

/// Pages of a file on a disk that are read when it is mapped.
const EAGER_LOAD: u64 = 1024;

const MREMAP_MAYMOVE: u64 = 1;
const MREMAP_FIXED: u64 = 2;

fn page_up(len: u64) -> Result<u64> {
    len.checked_next_multiple_of(PAGE_SIZE).ok_or(ENOMEM)
}

fn aligned(addr: u64) -> bool {
    addr.is_multiple_of(PAGE_SIZE)
}

/// `mmap`. `caller`: the program's instruction pointer.
///
/// # Errors
/// As Linux.
pub fn mmap(
    addr: u64,
    len: u64,
    prot: u64,
    flags: u64,
    fd: i32,
    offset: u64,
    caller: u64,
) -> SysResult {
    let len = page_up(len)?;
    if len == 0 || prot & !7 != 0 || !aligned(offset) {
        return Err(EINVAL);
    }
    if flags & (MAP_HUGETLB | MAP_GROWSDOWN) != 0 {
        return Err(EINVAL);
    }
    let shared = match flags & 0xf {
        MAP_SHARED | MAP_SHARED_VALIDATE => true,
        MAP_PRIVATE => false,
        _ => return Err(EINVAL),
    };
    let prot = prot as u8;
    let backing = if flags & MAP_ANONYMOUS != 0 && shared {
        Backing::File {
            file: fs::shared_memory(len)?,
            offset: 0,
            shared: true,
        }
    } else if flags & MAP_ANONYMOUS != 0 {
        Backing::Anonymous
    } else {
        let open = file::get(fd)?;
        if !open.readable() || (shared && prot & WRITE_PROT != 0 && !open.writable()) {
            return Err(EACCES);
        }
        // Learn now whether it can be mapped at all.
        match open.file.map_page(offset / PAGE_SIZE, false) {
            Ok(_) | Err(ENXIO) => {}
            // What is small is read at once, the rest when it is touched.
            Err(EAGAIN) => load(&*open.file, offset / PAGE_SIZE, len / PAGE_SIZE)?,
            Err(error) => return Err(error),
        }
        Backing::File {
            file: open.file.clone(),
            offset,
            shared,
        }
    };
    let read_only = shared && flags & MAP_ANONYMOUS == 0 && !file::get(fd)?.writable();
    let mut space = super::space();
    let at = if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 {
        if !aligned(addr) {
            return Err(EINVAL);
        }
        if addr < LOWEST {
            return Err(EPERM);
        }
        if !space.allowed(addr, len) {
            return Err(ENOMEM);
        }
        if flags & MAP_FIXED == 0 && !space.is_free(addr, addr + len) {
            return Err(EEXIST);
        }
        addr
    } else {
        let arena = match backing {
            Backing::File { .. } if flags & MAP_ANONYMOUS == 0 => Arena::Libraries,
            Backing::Anonymous if flags & MAP_STACK != 0 || space.is_interpreter(caller) => {
                Arena::Threads
            }
            _ => Arena::Memory,
        };
        space.place(addr, len, arena)?
    };
    let private = matches!(backing, Backing::Anonymous);
    let name = if flags & MAP_STACK != 0 {
        "[thread stack]"
    } else if private && flags & MAP_NORESERVE != 0 && len / PAGE_SIZE > budget::counts().0 {
        SPARSE
    } else {
        ""
    };
    // Small shared memory is made for something that is used at once, too.
    let eager = flags & MAP_ANONYMOUS != 0 && shared && len <= EAGER_SHARED;
    let populate = eager || flags & MAP_POPULATE != 0;
    let result = space.map(at, len, prot, backing, name, populate);
    if read_only {
        space.forbid_writing(at);
    }
    space.finish();
    drop(space);
    result?;
    if prot & EXEC != 0 {
        rewrite::scan(at, at + len);
        super::space().finish();
    }
    Ok(at)
}

/// Loads the first pages of a mapping.
fn load(file: &dyn file::File, first: u64, count: u64) -> Result<()> {
    let mut done = 0;
    while done < count.min(EAGER_LOAD) {
        file.load_pages(first + done, count - done)?;
        done += EAGER_LOAD / 4;
    }
    Ok(())
}

/// `munmap`.
///
/// # Errors
/// `EINVAL`.
pub fn munmap(addr: u64, len: u64) -> SysResult {
    let len = page_up(len)?;
    if !aligned(addr) || len == 0 {
        return Err(EINVAL);
    }
    let end = addr.checked_add(len).ok_or(EINVAL)?;
    let mut space = super::space();
    space.unmap(addr, end);
    space.finish();
    Ok(0)
}

/// `mprotect`.
///
/// # Errors
/// `EINVAL`, `ENOMEM`, `EACCES`.
pub fn mprotect(addr: u64, len: u64, prot: u64) -> SysResult {
    let len = page_up(len)?;
    if !aligned(addr) || prot & !7 != 0 {
        return Err(EINVAL);
    }
    let end = addr.checked_add(len).ok_or(ENOMEM)?;
    let mut space = super::space();
    let result = space.protect(addr, end, prot as u8);
    space.finish();
    drop(space);
    result?;
    if prot as u8 & EXEC != 0 {
        rewrite::scan(addr, end);
        super::space().finish();
    }
    Ok(0)
}

/// `madvise`.
///
/// # Errors
/// `EINVAL`, `ENOMEM`.
pub fn madvise(addr: u64, len: u64, advice: u64) -> SysResult {
    let len = page_up(len)?;
    if !aligned(addr) {
        return Err(EINVAL);
    }
    let end = addr.checked_add(len).ok_or(ENOMEM)?;
    match advice {
        // DONTNEED, FREE (which may be done at once)
        4 | 8 => {
            let mut space = super::space();
            let result = space.discard(addr, end);
            space.finish();
            result?;
            Ok(0)
        }
        // NORMAL, RANDOM, SEQUENTIAL, HUGEPAGE, NOHUGEPAGE, DONTDUMP, DODUMP, COLD, PAGEOUT: hints that change nothing
        0..=2 | 14..=17 | 20 | 21 => Ok(0),
        // WILLNEED, POPULATE_READ, POPULATE_WRITE
        3 | 22 | 23 => {
            let done = populate(addr, end);
            if advice == 3 || done.is_ok() {
                Ok(0)
            } else {
                Err(ENOMEM)
            }
        }
        _ => Err(EINVAL),
    }
}

/// `mremap`.
///
/// # Errors
/// As Linux.
pub fn mremap(old: u64, old_len: u64, new_len: u64, flags: u64, to: u64) -> SysResult {
    let (old_len, new_len) = (page_up(old_len)?, page_up(new_len)?);
    if !aligned(old) || new_len == 0 || old_len == 0 || flags & !3 != 0 {
        return Err(EINVAL);
    }
    let may_move = flags & MREMAP_MAYMOVE != 0;
    let mut space = super::space();
    let fixed = if flags & MREMAP_FIXED != 0 {
        let overlaps = to < old + old_len && old < to.saturating_add(new_len);
        if !may_move || !aligned(to) || to < LOWEST || overlaps || !space.allowed(to, new_len) {
            return Err(EINVAL);
        }
        Some(to)
    } else {
        None
    };
    let result = space.remap(old, old_len, new_len, may_move, fixed);
    space.finish();
    result
}

/// `msync`: shared mappings are the file's own pages, so there is nothing to copy; with `MS_SYNC` the files go to stable storage.
///
/// # Errors
/// `EINVAL`, `ENOMEM`, `EIO`.
pub fn msync(addr: u64, len: u64, flags: u64) -> SysResult {
    if !aligned(addr) || flags & !7 != 0 || flags & 5 == 5 {
        return Err(EINVAL);
    }
    let end = addr.checked_add(page_up(len)?).ok_or(ENOMEM)?;
    const MS_SYNC: u64 = 4;
    let space = super::space();
    let mut va = addr;
    while va < end {
        va = space.mapping_at(va).ok_or(ENOMEM)?.1;
    }
    if flags & MS_SYNC == 0 {
        return Ok(0);
    }
    let mut files = alloc::vec::Vec::new();
    for (start, vma) in space.iter() {
        if let Backing::File { file, shared, .. } = &vma.backing
            && *shared
            && start < end
            && vma.end > addr
        {
            files.push(file.clone());
        }
    }
    drop(space);
    for file in files {
        fs::sync_file(&*file)?;
    }
    Ok(0)
}

/// Makes a range present; waits for disks.
fn populate(start: u64, end: u64) -> core::result::Result<(), Fault> {
    loop {
        let mut space = super::space();
        let done = space.populate(start, end);
        space.finish();
        drop(space);
        match done {
            Err(Fault::NotLoaded) => super::load_wanted().map_err(|_| Fault::Bus)?,
            done => return done,
        }
    }
}

/// `mlock` and friends: nothing is ever paged out; what is locked is populated.
///
/// # Errors
/// `ENOMEM`.
pub fn mlock(addr: u64, len: u64) -> SysResult {
    let start = addr & !(PAGE_SIZE - 1);
    let end = page_up(addr.checked_add(len).ok_or(EINVAL)?)?;
    let done = populate(start, end);
    done.map(|()| 0).map_err(|_| ENOMEM)
}
