//! The program's address space: what is mapped where, with which protection, backed by what.

use super::{Access, Page, frames, paging};
use crate::errno::*;
use crate::file::{File, MapPage};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use paging::{ACCESSED_DIRTY, NO_EXECUTE, OWNED, PRESENT, RETAINED, USER, WRITE};
use quorate_abi::PAGE_SIZE;
use quorate_abi::boot::Layout;

/// PROT_READ.
pub const READ: u8 = 1;
/// PROT_WRITE.
pub const WRITE_PROT: u8 = 2;
/// PROT_EXEC.
pub const EXEC: u8 = 4;

/// Anonymous mappings up to this many bytes are populated at once: a fault costs more than a few pages.
const EAGER_ANONYMOUS: u64 = 256 << 10;
/// Writable private file mappings up to this many bytes are copied at once.
const EAGER_COPY: u64 = 4 << 20;
/// Pages populated by a fault at first; doubles while faults are sequential.
const AROUND_MIN: u64 = 16;
/// Most pages populated by one fault.
const AROUND_MAX: u64 = 512;
/// Most mappings of a process (as Linux's vm.max_map_count).
pub const MAX_MAPPINGS: usize = 65_530;
/// Lowest address that can be mapped: page 0 and its neighbours never are.
pub const LOWEST: u64 = 0x1_0000;
/// End of the lower half.
pub const HIGHEST: u64 = 0x7fff_ffff_f000;
/// Bytes of the arena for anonymous mappings.
const MMAP_ARENA: u64 = 512 << 30;
/// Bytes of the arena for libraries.
const LIBRARY_ARENA: u64 = 64 << 30;
/// Bytes of the brk area.
const HEAP_ARENA: u64 = 64 << 30;
/// Bytes reserved above a program's start.
const PROGRAM_ARENA: u64 = 16 << 30;
/// Bytes of the arena for threads.
const THREAD_ARENA: u64 = 64 << 30;
/// Bytes reserved below the stack's top.
const STACK_ARENA: u64 = 1 << 30;

/// Where a mapping goes whose address the program left open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arena {
    /// File mappings.
    Libraries,
    /// Anonymous memory: heaps.
    Memory,
    /// Thread stacks, and what the dynamic linker allocates (control blocks, TLS): see `Layout::threads`.
    Threads,
}

/// What stands behind a mapping.
#[derive(Clone)]
pub enum Backing {
    /// Zeroed memory.
    Anonymous,
    /// A file, from an offset that belongs to the mapping's start.
    File {
        /// The file.
        file: Rc<dyn File>,
        /// Offset of the mapping's first byte.
        offset: u64,
        /// MAP_SHARED.
        shared: bool,
    },
}

/// One mapping.
#[derive(Clone)]
pub struct Vma {
    /// First address after it.
    pub end: u64,
    /// Bits [`READ`], [`WRITE_PROT`], [`EXEC`].
    pub prot: u8,
    /// What stands behind it.
    pub backing: Backing,
    /// Shown in /proc/self/maps where there is no file.
    pub name: &'static str,
    /// `mprotect` may make it writable.
    may_write: bool,
    /// Pages of a shared file that this mapping holds, by address.
    held: BTreeMap<u64, Rc<Page>>,
    sequential: (u64, u64),
}

impl Vma {
    fn permissions(&self) -> u64 {
        permissions(self.prot)
    }

    /// The part from `at` on becomes a mapping of its own.
    fn split_off(&mut self, start: u64, at: u64) -> Self {
        let mut tail = self.clone();
        if let Backing::File { offset, .. } = &mut tail.backing {
            *offset += at - start;
        }
        tail.held = self.held.split_off(&at);
        tail.sequential = (0, 0);
        self.end = at;
        tail
    }

    fn continues(&self, start: u64, next_start: u64, next: &Self) -> bool {
        self.end == next_start
            && self.prot == next.prot
            && self.name == next.name
            && self.may_write == next.may_write
            && match (&self.backing, &next.backing) {
                (Backing::Anonymous, Backing::Anonymous) => true,
                (
                    Backing::File {
                        file: a,
                        offset: x,
                        shared: s,
                    },
                    Backing::File {
                        file: b,
                        offset: y,
                        shared: t,
                    },
                ) => Rc::ptr_eq(a, b) && s == t && x + (next_start - start) == *y,
                _ => false,
            }
    }
}

fn permissions(prot: u8) -> u64 {
    if prot == 0 {
        return RETAINED;
    }
    let mut bits = PRESENT | USER | ACCESSED_DIRTY;
    if prot & WRITE_PROT != 0 {
        bits |= WRITE;
    }
    // What may be both written and executed is one at a time: see `Space::switch`.
    if prot & EXEC == 0 || prot & WRITE_PROT != 0 {
        bits |= NO_EXECUTE;
    }
    bits
}

/// Why an access cannot be made good; the signal follows from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing is mapped there: SIGSEGV, SEGV_MAPERR.
    Unmapped,
    /// The protection forbids it: SIGSEGV, SEGV_ACCERR.
    Protected,
    /// Beyond the end of the file: SIGBUS, BUS_ADRERR.
    Bus,
    /// No memory left: the program is killed.
    NoMemory,
}

/// The address space of the process.
pub struct Space {
    vmas: BTreeMap<u64, Vma>,
    layout: Layout,
    brk: u64,
    /// Pages that belong to the program. Which pages a program touches can depend on addresses (an allocator's radix tree does),
    /// so this must not reach an output (R8); see [`Self::committed`].
    pub resident: u64,
    /// Bytes mapped.
    pub size: u64,
    /// RLIMIT_DATA and the like are not enforced; memory itself is the bound.
    flush: bool,
}

impl Space {
    /// An empty space.
    pub const fn new(layout: Layout) -> Self {
        Self {
            vmas: BTreeMap::new(),
            layout,
            brk: 0,
            resident: 0,
            size: 0,
            flush: false,
        }
    }

    /// Ends an operation: one TLB flush for all entries that were narrowed.
    pub fn finish(&mut self) {
        if core::mem::take(&mut self.flush) {
            paging::flush();
        }
    }

    fn find(&self, va: u64) -> Option<(u64, &Vma)> {
        let (start, vma) = self.vmas.range(..=va).next_back()?;
        (va < vma.end).then_some((*start, vma))
    }

    /// The mapping that contains `va`: (start, end, protection).
    pub fn mapping_at(&self, va: u64) -> Option<(u64, u64, u8)> {
        self.find(va).map(|(start, vma)| (start, vma.end, vma.prot))
    }

    /// Whether nothing is mapped in the range.
    pub fn is_free(&self, start: u64, end: u64) -> bool {
        self.vmas
            .range(..end)
            .next_back()
            .is_none_or(|(_, vma)| vma.end <= start)
    }

    /// Which region an address belongs to, in an order that is the same in every layout: Linux's usual one.
    pub fn region(&self, at: u64) -> usize {
        let l = &self.layout;
        let regions = [
            (0, 1 << 32),
            (l.program, PROGRAM_ARENA),
            (l.heap, HEAP_ARENA),
            (l.mmap, MMAP_ARENA),
            (l.libraries, LIBRARY_ARENA),
            (l.threads, THREAD_ARENA),
            (l.stack_top - STACK_ARENA, STACK_ARENA),
        ];
        let within = |(base, len): &(u64, u64)| (*base..base + len).contains(&at);
        regions.iter().position(within).unwrap_or(regions.len())
    }

    /// Lowest free range of `len` bytes in the arena.
    fn find_gap(&self, base: u64, arena: u64, len: u64) -> Result<u64> {
        let mut at = base;
        if let Some((_, vma)) = self.vmas.range(..=base).next_back() {
            at = at.max(vma.end);
        }
        for (start, vma) in self.vmas.range(base..base + arena) {
            if *start >= at && *start - at >= len {
                return Ok(at);
            }
            at = at.max(vma.end);
        }
        if at + len <= base + arena {
            Ok(at)
        } else {
            Err(ENOMEM)
        }
    }

    /// A free range for a mapping whose address the program left open.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn place(&self, hint: u64, len: u64, arena: Arena) -> Result<u64> {
        let hint = hint & !(PAGE_SIZE - 1);
        if hint >= LOWEST && self.allowed(hint, len) && self.is_free(hint, hint + len) {
            return Ok(hint);
        }
        match arena {
            Arena::Libraries => self.find_gap(self.layout.libraries, LIBRARY_ARENA, len),
            Arena::Memory => self.find_gap(self.layout.mmap, MMAP_ARENA, len),
            Arena::Threads => self.find_gap(self.layout.threads, THREAD_ARENA, len),
        }
    }

    /// Whether a program may map here: its own arenas, and the low 4 GiB where position-dependent programs lie.
    pub fn allowed(&self, start: u64, len: u64) -> bool {
        let Some(end) = start.checked_add(len) else {
            return false;
        };
        let within = |base: u64, arena: u64| start >= base && end <= base + arena;
        (start >= LOWEST && end <= 1 << 32)
            || within(self.layout.mmap, MMAP_ARENA)
            || within(self.layout.libraries, LIBRARY_ARENA)
            || within(self.layout.threads, THREAD_ARENA)
            || within(self.layout.heap, HEAP_ARENA)
            || within(self.layout.program, PROGRAM_ARENA)
            || within(self.layout.stack_top - STACK_ARENA, STACK_ARENA)
    }

    /// Maps `[start, start + len)`, replacing what was there.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn map(
        &mut self,
        start: u64,
        len: u64,
        prot: u8,
        backing: Backing,
        name: &'static str,
        populate: bool,
    ) -> Result<()> {
        let end = start + len;
        if self.vmas.len() >= MAX_MAPPINGS {
            return Err(ENOMEM);
        }
        self.unmap(start, end);
        let eager = prot != 0
            && match &backing {
                Backing::Anonymous => len <= EAGER_ANONYMOUS,
                Backing::File { shared: true, .. } => false,
                Backing::File { .. } => prot & WRITE_PROT == 0 || len <= EAGER_COPY,
            };
        let vma = Vma {
            end,
            prot,
            backing,
            name,
            may_write: true,
            held: BTreeMap::new(),
            sequential: (0, 0),
        };
        self.size += len;
        self.vmas.insert(start, vma);
        if eager || (populate && prot != 0) {
            // Best effort: what cannot be had now faults later, with the right signal.
            let _ = self.populate(start, end);
        }
        self.merge(start);
        Ok(())
    }

    /// Merges the mapping at `start` with its neighbours where they continue each other.
    fn merge(&mut self, start: u64) {
        let mut start = start;
        if let Some((previous, vma)) = self.vmas.range(..start).next_back() {
            let previous = *previous;
            if let Some(this) = self.vmas.get(&start)
                && vma.continues(previous, start, this)
            {
                self.join(previous, start);
                start = previous;
            }
        }
        if let Some(this) = self.vmas.get(&start) {
            let next = this.end;
            if let Some(following) = self.vmas.get(&next)
                && this.continues(start, next, following)
            {
                self.join(start, next);
            }
        }
    }

    fn join(&mut self, first: u64, second: u64) {
        if let Some(mut tail) = self.vmas.remove(&second)
            && let Some(head) = self.vmas.get_mut(&first)
        {
            head.end = tail.end;
            head.held.append(&mut tail.held);
            head.sequential = tail.sequential;
        }
    }

    /// Makes `at` a border between mappings.
    fn split(&mut self, at: u64) {
        if let Some((start, vma)) = self.vmas.range_mut(..at).next_back()
            && vma.end > at
        {
            let start = *start;
            let tail = vma.split_off(start, at);
            self.vmas.insert(at, tail);
        }
    }

    /// Unmaps a range.
    pub fn unmap(&mut self, start: u64, end: u64) {
        if self.is_free(start, end) {
            return;
        }
        self.split(start);
        self.split(end);
        let gone: Vec<u64> = self.vmas.range(start..end).map(|(s, _)| *s).collect();
        for s in gone {
            if let Some(vma) = self.vmas.remove(&s) {
                self.size -= vma.end - s;
                self.clear(s, vma.end);
                crate::rewrite::forget(s, vma.end);
            }
        }
    }

    /// Removes the pages of a range, freeing those that belong to it.
    fn clear(&mut self, start: u64, end: u64) {
        let mut freed: Vec<u64> = Vec::new();
        let (mut present, mut resident) = (false, 0);
        paging::for_each(start, end, |_, e| {
            present |= *e & PRESENT != 0;
            if *e & OWNED != 0 {
                freed.push(*e & paging::ADDRESS);
                resident += 1;
            }
            *e = 0;
        });
        self.resident -= resident;
        if present {
            // Before the pages can be used for anything else.
            paging::flush();
        }
        for frame in freed {
            frames::free(frame);
        }
    }

    /// Makes all pages of a range present; stops at the first that cannot be.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn populate(&mut self, start: u64, end: u64) -> core::result::Result<(), Fault> {
        let mut va = start & !(PAGE_SIZE - 1);
        while va < end {
            let (vma_start, vma) = match self.vmas.range_mut(..=va).next_back() {
                Some((s, vma)) if va < vma.end => (*s, vma),
                _ => return Err(Fault::Unmapped),
            };
            let stop = end.min(vma.end);
            while va < stop {
                let e = paging::entry_or_create(va).map_err(|_| Fault::NoMemory)?;
                if *e & PRESENT == 0 {
                    let (owned, changed) = populate_page(vma_start, vma, va, e)?;
                    self.resident += u64::from(owned);
                    self.flush |= changed;
                }
                va += PAGE_SIZE;
            }
        }
        Ok(())
    }

    /// A program's access faulted, or the kernel is about to make one for it.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn access(&mut self, va: u64, access: Access) -> core::result::Result<(), Fault> {
        let page = va & !(PAGE_SIZE - 1);
        let Some((start, vma)) = self.vmas.range_mut(..=va).next_back() else {
            return Err(Fault::Unmapped);
        };
        let start = *start;
        if va >= vma.end {
            return Err(Fault::Unmapped);
        }
        let needed = match access {
            Access::Read => vma.prot != 0,
            Access::Write => vma.prot & WRITE_PROT != 0,
            Access::Execute => vma.prot & EXEC != 0,
        };
        if !needed {
            return Err(Fault::Protected);
        }
        let e = paging::entry_or_create(page).map_err(|_| Fault::NoMemory)?;
        if *e & PRESENT != 0 {
            let both = vma.prot & (WRITE_PROT | EXEC) == WRITE_PROT | EXEC;
            if both && access != Access::Read {
                self.flush |= switch(e, access);
            }
            // Otherwise a stale translation (widened without a flush): the next try walks the tables.
            return Ok(());
        }
        let (owned, _) = populate_page(start, vma, page, e)?;
        self.resident += u64::from(owned);
        // Around it: more while the program walks upwards.
        let (expected, mut around) = vma.sequential;
        around = if expected == page {
            (around * 2).min(AROUND_MAX)
        } else {
            AROUND_MIN
        };
        let end = vma.end;
        let (from, to) = if vma.name == "[stack]" {
            let from = page.saturating_sub((AROUND_MIN - 1) * PAGE_SIZE).max(start);
            (from, page)
        } else {
            (page, page.saturating_add(around * PAGE_SIZE).min(end))
        };
        vma.sequential = (to, around);
        // Best effort: only the page itself had to succeed.
        let _ = self.populate(from, to);
        if access == Access::Execute
            && let Some(e) = paging::entry(page)
            && *e & NO_EXECUTE != 0
        {
            self.flush |= switch(e, access);
        }
        Ok(())
    }

    /// Lets a page be written and executed at the same time, because code on it writes to it. Only where the program may do both.
    pub fn allow_both(&mut self, va: u64) {
        let both = WRITE_PROT | EXEC;
        if self
            .find(va)
            .is_some_and(|(_, vma)| vma.prot & both == both)
            && let Some(e) = paging::entry(va)
            && *e & PRESENT != 0
        {
            *e = (*e | WRITE) & !NO_EXECUTE;
        }
    }

    /// Checks that all of a range is mapped with the right protection, and populates it.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn check(
        &mut self,
        addr: u64,
        len: u64,
        access: Access,
    ) -> core::result::Result<(), Fault> {
        let end = addr.checked_add(len).ok_or(Fault::Unmapped)?;
        let mut va = addr & !(PAGE_SIZE - 1);
        let mut border = 0;
        while va < end {
            if va >= border {
                let (_, vma) = self.find(va).ok_or(Fault::Unmapped)?;
                let fine = match access {
                    Access::Read => vma.prot != 0,
                    Access::Write => vma.prot & WRITE_PROT != 0,
                    Access::Execute => vma.prot & EXEC != 0,
                };
                if !fine {
                    return Err(Fault::Protected);
                }
                border = vma.end;
            }
            match paging::entry(va) {
                Some(e) if *e & PRESENT != 0 && (access != Access::Write || *e & WRITE != 0) => {}
                _ => self.access(va, access)?,
            }
            va += PAGE_SIZE;
        }
        Ok(())
    }

    /// Changes the protection of a range.
    ///
    /// # Errors
    /// `ENOMEM` if part of it is not mapped; `EACCES` for writing a shared file opened for reading.
    pub fn protect(&mut self, start: u64, end: u64, prot: u8) -> Result<()> {
        let mut va = start;
        while va < end {
            va = self.find(va).ok_or(ENOMEM)?.1.end;
        }
        if prot & WRITE_PROT != 0 && !self.may_write(start, end) {
            return Err(EACCES);
        }
        self.split(start);
        self.split(end);
        let parts: Vec<u64> = self.vmas.range(start..end).map(|(s, _)| *s).collect();
        for s in &parts {
            let Some(vma) = self.vmas.get_mut(s) else {
                continue;
            };
            let old = vma.prot;
            vma.prot = prot;
            let bits = vma.permissions();
            let private_file = matches!(vma.backing, Backing::File { shared: false, .. });
            let mut flush = false;
            let mut resident = 0;
            let mut out_of_memory = false;
            paging::for_each(*s, vma.end, |_, e| {
                let mut frame = *e & paging::ADDRESS;
                let mut owned = *e & OWNED;
                if private_file && prot & WRITE_PROT != 0 && owned == 0 {
                    match copy_of(frame) {
                        Ok(copy) => {
                            frame = copy;
                            owned = OWNED;
                            flush = true;
                            resident += 1;
                        }
                        Err(_) => {
                            out_of_memory = true;
                            return;
                        }
                    }
                }
                *e = frame | owned | bits;
            });
            if old & !prot != 0 || old == 0 || (prot & WRITE_PROT != 0 && old & EXEC != 0) {
                flush = true;
            }
            self.resident += resident;
            self.flush |= flush;
            if out_of_memory {
                return Err(ENOMEM);
            }
        }
        for s in parts {
            self.merge(s);
        }
        Ok(())
    }

    /// MADV_DONTNEED: the next access sees zeroes (or the file's content).
    ///
    /// # Errors
    /// `ENOMEM` if part of the range is not mapped.
    pub fn discard(&mut self, start: u64, end: u64) -> Result<()> {
        let mut va = start;
        while va < end {
            let (_, vma) = self.find(va).ok_or(ENOMEM)?;
            let stop = vma.end.min(end);
            match vma.backing {
                Backing::Anonymous if stop - va <= EAGER_ANONYMOUS => {
                    // Cheaper than a flush and new faults: clear in place.
                    paging::for_each(va, stop, |_, e| {
                        let page = frames::to_direct(*e & paging::ADDRESS) as *mut u8;
                        // SAFETY: the entry maps a page that belongs to this mapping.
                        unsafe { core::ptr::write_bytes(page, 0, PAGE_SIZE as usize) };
                    });
                }
                Backing::File { shared: true, .. } => {}
                _ => self.clear(va, stop),
            }
            va = stop;
        }
        Ok(())
    }

    /// See [`super::forget_file_pages`].
    pub fn forget_file_pages(&mut self, map_key: usize, first: u64, end: u64) {
        let mut gone: Vec<(u64, u64)> = Vec::new();
        let mut dropped: Vec<Rc<Page>> = Vec::new();
        for (start, vma) in &mut self.vmas {
            let Backing::File { file, offset, .. } = &vma.backing else {
                continue;
            };
            let base = offset / PAGE_SIZE;
            let last = base + (vma.end - start) / PAGE_SIZE;
            let (from, to) = (first.max(base), end.min(last));
            if from >= to || file.map_key() != map_key {
                continue;
            }
            let (from, to) = (
                start + (from - base) * PAGE_SIZE,
                start + (to - base) * PAGE_SIZE,
            );
            let mut tail = vma.held.split_off(&from);
            vma.held.append(&mut tail.split_off(&to));
            dropped.extend(tail.into_values());
            gone.push((from, to));
        }
        // The translations go before the pages can be used for anything else.
        for (from, to) in gone {
            self.clear(from, to);
        }
    }

    /// Whether a range may become writable: not where a file is shared that was opened for reading.
    fn may_write(&self, start: u64, end: u64) -> bool {
        self.vmas
            .range(..end)
            .rev()
            .take_while(|(_, vma)| vma.end > start)
            .all(|(_, vma)| vma.may_write)
    }

    /// The mapping at `start` must never become writable.
    pub fn forbid_writing(&mut self, start: u64) {
        if let Some(vma) = self.vmas.get_mut(&start) {
            vma.may_write = false;
        }
    }

    /// `mremap`.
    ///
    /// # Errors
    /// `EFAULT`, `EINVAL`, `ENOMEM` as Linux.
    pub fn remap(
        &mut self,
        old: u64,
        old_len: u64,
        new_len: u64,
        may_move: bool,
        fixed: Option<u64>,
    ) -> Result<u64> {
        let (start, vma) = self.find(old).ok_or(EFAULT)?;
        if old + old_len > vma.end {
            return Err(EFAULT);
        }
        let arena = match vma.backing {
            Backing::File { .. } => Arena::Libraries,
            Backing::Anonymous => Arena::Memory,
        };
        if fixed.is_none() {
            if new_len <= old_len {
                self.unmap(old + new_len, old + old_len);
                return Ok(old);
            }
            let (from, to) = (old + old_len, old + new_len);
            if vma.end == from && self.allowed(old, new_len) && self.is_free(from, to) {
                let mut tail = vma.clone();
                if let Backing::File { offset, .. } = &mut tail.backing {
                    *offset += from - start;
                }
                let (prot, name) = (tail.prot, tail.name);
                self.map(from, to - from, prot, tail.backing, name, false)?;
                return Ok(old);
            }
            if !may_move {
                return Err(ENOMEM);
            }
        }
        let to = match fixed {
            Some(to) => to,
            None => self.place(0, new_len, arena)?,
        };
        if fixed.is_some() {
            self.unmap(to, to + new_len);
            if new_len < old_len {
                self.unmap(old + new_len, old + old_len);
            }
        }
        let keep = old_len.min(new_len);
        self.split(old);
        self.split(old + keep);
        let Some(mut vma) = self.vmas.remove(&old) else {
            return Err(EFAULT);
        };
        vma.end = to + keep;
        vma.sequential = (0, 0);
        vma.held = core::mem::take(&mut vma.held)
            .into_iter()
            .map(|(va, page)| (va - old + to, page))
            .collect();
        let tail = (new_len > keep).then(|| vma.clone());
        self.vmas.insert(to, vma);
        let mut moved: Vec<(u64, u64)> = Vec::new();
        paging::for_each(old, old + keep, |va, e| {
            moved.push((va - old + to, *e));
            *e = 0;
        });
        if !moved.is_empty() {
            paging::flush();
        }
        for (va, e) in moved {
            *paging::entry_or_create(va)? = e;
        }
        if let Some(mut tail) = tail {
            if let Backing::File { offset, .. } = &mut tail.backing {
                *offset += keep;
            }
            self.map(
                to + keep,
                new_len - keep,
                tail.prot,
                tail.backing,
                tail.name,
                false,
            )?;
        }
        Ok(to)
    }

    /// `brk`: returns the break, which is unchanged if the request cannot be met.
    pub fn set_brk(&mut self, to: u64) -> u64 {
        let base = self.layout.heap;
        if self.brk == 0 {
            self.brk = base;
        }
        if to < base || to > base + HEAP_ARENA {
            return self.brk;
        }
        let (old, new) = (
            self.brk.next_multiple_of(PAGE_SIZE),
            to.next_multiple_of(PAGE_SIZE),
        );
        if new > old {
            let prot = READ | WRITE_PROT;
            if !self.is_free(old, new)
                || self
                    .map(old, new - old, prot, Backing::Anonymous, "[heap]", false)
                    .is_err()
            {
                return self.brk;
            }
        } else {
            self.unmap(new, old);
        }
        self.brk = to;
        to
    }

    /// Bytes of writable private memory but stacks: what stands for the resident size towards the program, since it is the same in
    /// every layout.
    pub fn committed(&self) -> u64 {
        self.vmas
            .iter()
            .filter(|(_, vma)| vma.prot & WRITE_PROT != 0 && !vma.name.contains("stack"))
            .filter(|(_, vma)| !matches!(vma.backing, Backing::File { shared: true, .. }))
            .map(|(start, vma)| vma.end - start)
            .sum()
    }

    /// All mappings, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Vma)> {
        self.vmas.iter().map(|(start, vma)| (*start, vma))
    }

    /// A writable copy of the page at `va` (mapped, executable): for rewriting code. Returns its direct-map address.
    ///
    /// # Errors
    /// `ENOMEM`, `EFAULT`.
    pub fn private_code_page(&mut self, va: u64) -> Result<u64> {
        let e = paging::entry(va).ok_or(EFAULT)?;
        if *e & PRESENT == 0 {
            return Err(EFAULT);
        }
        if *e & OWNED == 0 {
            let copy = copy_of(*e & paging::ADDRESS)?;
            *e = (*e & !paging::ADDRESS) | copy | OWNED;
            self.resident += 1;
            self.flush = true;
        }
        Ok(frames::to_direct(*e & paging::ADDRESS))
    }
}

/// A page of a mapping that is both writable and executable is either one or the other, so that what was written is searched for
/// leaking instructions before it runs. Returns whether the old translation must go.
fn switch(e: &mut u64, access: Access) -> bool {
    let new = match access {
        Access::Execute => *e & !(WRITE | NO_EXECUTE),
        Access::Write => *e | WRITE | NO_EXECUTE,
        Access::Read => *e,
    };
    let changed = new != *e;
    *e = new;
    changed
}

fn copy_of(frame: u64) -> Result<u64> {
    let copy = frames::alloc()?;
    let from = super::readable(frame);
    // SAFETY: both are whole pages that the kernel can reach; `copy` is ours alone.
    unsafe {
        core::ptr::copy_nonoverlapping(
            from as *const u8,
            frames::to_direct(copy) as *mut u8,
            PAGE_SIZE as usize,
        );
    }
    Ok(copy)
}

/// Fills in one entry that is not present. Returns (a page was taken, an old page was replaced).
fn populate_page(
    start: u64,
    vma: &mut Vma,
    va: u64,
    e: &mut u64,
) -> core::result::Result<(bool, bool), Fault> {
    let bits = vma.permissions();
    if *e & RETAINED != 0 {
        *e = (*e & (paging::ADDRESS | OWNED)) | bits;
        return Ok((false, false));
    }
    match &vma.backing {
        Backing::Anonymous => {
            *e = frames::alloc().map_err(|_| Fault::NoMemory)? | OWNED | bits;
            Ok((true, false))
        }
        Backing::File {
            file,
            offset,
            shared,
        } => {
            let index = (offset + (va - start)) / PAGE_SIZE;
            let writable = vma.prot & WRITE_PROT != 0;
            let mut page = file.map_page(index, *shared && writable);
            if *shared && matches!(page, Ok(MapPage::Image(_))) {
                // What is written to the file later must show. A file sealed against that may stay as it is.
                page = match file.map_page(index, true) {
                    Err(EPERM) => page,
                    of_its_own => of_its_own,
                };
            }
            let page = page.map_err(|error| match error {
                ENOMEM | ENOSPC => Fault::NoMemory,
                _ => Fault::Bus,
            })?;
            match page {
                MapPage::Image(physical) if !writable => *e = physical | bits,
                MapPage::Image(physical) => {
                    *e = copy_of(physical).map_err(|_| Fault::NoMemory)? | OWNED | bits;
                    return Ok((true, false));
                }
                MapPage::Shared(page) if *shared => {
                    *e = page.physical() | bits;
                    vma.held.insert(va, page);
                }
                MapPage::Shared(page) => {
                    *e = copy_of(page.physical()).map_err(|_| Fault::NoMemory)? | OWNED | bits;
                    return Ok((true, false));
                }
            }
            Ok((false, false))
        }
    }
}
