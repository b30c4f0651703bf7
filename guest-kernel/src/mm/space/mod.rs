//! An address space: what is mapped where, with which protection, backed by what.
//!
//! `touch` makes pages present, `change` has what changes mappings, `fork` copies a space.

mod change;
mod fork;
mod touch;

use super::{Access, Page, budget, frames, paging};
use crate::errno::*;
use crate::file::{File, MapPage};
use crate::rewrite::Code;
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

/// Name of the mappings that hold trampolines, which fill slowly.
pub const TRAMPOLINES: &str = "[trampolines]";

/// Name of mappings larger than all of memory (MAP_NORESERVE), which are charged page by page when they are touched.
pub const SPARSE: &str = "[sparse]";

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
    /// It is charged to the budget, until it is unmapped.
    charged: bool,
    /// Pages of a shared file that this mapping holds, by address.
    held: BTreeMap<u64, Rc<Page>>,
    sequential: (u64, u64),
}

impl Vma {
    /// Whether its pages can be executed as soon as they are present.
    fn is_code(&self) -> bool {
        self.prot & (EXEC | WRITE_PROT) == EXEC && self.name != TRAMPOLINES
    }

    /// Pages that it is charged.
    fn charge(&self, start: u64) -> u64 {
        let len = self.end - start;
        let charge = match self.charged {
            false => 0,
            true if self.name.contains("stack") => len.min(budget::STACK_CHARGE),
            true => len,
        };
        charge / PAGE_SIZE
    }

    /// Whether it has to be charged once it has this protection.
    fn wants_charge(&self, prot: u8) -> bool {
        match &self.backing {
            Backing::Anonymous => prot != 0 && !matches!(self.name, TRAMPOLINES | SPARSE),
            Backing::File { shared: false, .. } => prot & WRITE_PROT != 0,
            Backing::File { .. } => false,
        }
    }

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
            && self.charged == next.charged
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
    /// The page has to be read from a disk first: [`super::load_wanted`], then again.
    NotLoaded,
}

/// Notes that the page at `va` is code to be searched.
fn note_code(fresh: &mut Vec<(u64, u64)>, va: u64) {
    match fresh.last_mut() {
        Some((_, end)) if *end == va => *end += PAGE_SIZE,
        _ => fresh.push((va, va + PAGE_SIZE)),
    }
}

/// An address space. Processes share one between `vfork` and `execve`.
pub struct Space {
    /// Names the space; never used again for another.
    pub id: u64,
    /// Processes that use it.
    pub users: u32,
    /// Physical address of its top-level page table, 0 before it has one.
    pub(super) root: u64,
    /// What has been rewritten in it.
    pub code: Code,
    /// Where the dynamic linker's code lies.
    pub interpreter: (u64, u64),
    vmas: BTreeMap<u64, Vma>,
    /// Executable pages that have become present and were not searched for leaking instructions yet.
    fresh_code: Vec<(u64, u64)>,
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
    /// An empty space without page tables.
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            id: 0,
            users: 0,
            root: 0,
            code: Code::default(),
            interpreter: (0, 0),
            vmas: BTreeMap::new(),
            fresh_code: Vec::new(),
            layout,
            brk: 0,
            resident: 0,
            size: 0,
            flush: false,
        }
    }

    /// Makes a space that nobody uses ready for a new user, with page tables of its own (those of the one before are kept, since most
    /// programs need the same).
    ///
    /// # Errors
    /// `ENOMEM`, `EAGAIN`.
    pub(super) fn begin(&mut self, id: u64) -> Result<()> {
        if self.root == 0 {
            self.root = paging::new_root(&self.arenas())?;
        }
        budget::take(budget::PROCESS_CHARGE)?;
        self.id = id;
        self.users = 1;
        Ok(())
    }

    /// Unmaps everything.
    pub(super) fn end(&mut self) {
        self.unmap(0, HIGHEST);
        self.finish();
        budget::give(budget::PROCESS_CHARGE);
        self.code = Code::default();
        self.fresh_code.clear();
        self.interpreter = (0, 0);
        self.brk = 0;
    }

    /// Takes out a range of executable pages that have to be searched.
    pub fn take_fresh_code(&mut self) -> Option<(u64, u64)> {
        self.fresh_code.pop()
    }

    /// The range has been searched.
    pub fn searched(&mut self, start: u64, end: u64) {
        self.fresh_code.retain(|(a, b)| *a < start || *b > end);
    }

    /// Whether code at this address is the dynamic linker's own.
    pub fn is_interpreter(&self, rip: u64) -> bool {
        let (start, end) = self.interpreter;
        (start..end).contains(&rip)
    }

    /// The regions of the layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The address ranges in which a program can have mappings, in an order that is the same in every layout: Linux's usual one.
    fn arenas(&self) -> [(u64, u64); 7] {
        let l = &self.layout;
        [
            (0, 1 << 32),
            (l.program, l.program + PROGRAM_ARENA),
            (l.heap, l.heap + HEAP_ARENA),
            (l.mmap, l.mmap + MMAP_ARENA),
            (l.libraries, l.libraries + LIBRARY_ARENA),
            (l.threads, l.threads + THREAD_ARENA),
            (l.stack_top - STACK_ARENA, l.stack_top),
        ]
    }

    /// Ends an operation: one TLB flush for all entries that were narrowed.
    pub fn finish(&mut self) {
        if core::mem::take(&mut self.flush) {
            paging::flush(self.root);
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

    /// Physical address of a word in a shared mapping, which is what processes that share it have in common. None elsewhere, and where
    /// the page is not present.
    pub fn shared_word(&self, va: u64) -> Option<u64> {
        let (_, vma) = self.find(va)?;
        if !matches!(vma.backing, Backing::File { shared: true, .. }) {
            return None;
        }
        let e = paging::entry(self.root, va)?;
        (*e & PRESENT != 0).then_some(*e & paging::ADDRESS | va & (PAGE_SIZE - 1))
    }

    /// Whether nothing is mapped in the range.
    pub fn is_free(&self, start: u64, end: u64) -> bool {
        self.vmas
            .range(..end)
            .next_back()
            .is_none_or(|(_, vma)| vma.end <= start)
    }

    /// Which region an address belongs to, see [`Self::arenas`].
    pub fn region(&self, at: u64) -> usize {
        let arenas = self.arenas();
        arenas
            .iter()
            .position(|(start, end)| (*start..*end).contains(&at))
            .unwrap_or(arenas.len())
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
        start >= LOWEST
            && self
                .arenas()
                .iter()
                .any(|(from, to)| *from <= start && end <= *to)
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
                Backing::Anonymous => len <= EAGER_ANONYMOUS && name != TRAMPOLINES,
                Backing::File { shared: true, .. } => false,
                Backing::File { .. } => prot & WRITE_PROT == 0 || len <= EAGER_COPY,
            };
        let mut vma = Vma {
            end,
            prot,
            backing,
            name,
            may_write: true,
            charged: false,
            held: BTreeMap::new(),
            sequential: (0, 0),
        };
        vma.charged = vma.wants_charge(prot);
        budget::take(vma.charge(start))?;
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
            let before = head.charge(first) + tail.charge(second);
            head.end = tail.end;
            budget::change(before, head.charge(first));
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
            let before = vma.charge(start);
            let tail = vma.split_off(start, at);
            budget::change(before, vma.charge(start) + tail.charge(at));
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
                budget::give(vma.charge(s));
                self.size -= vma.end - s;
                self.clear(s, vma.end, vma.name);
                self.code.forget(s, vma.end);
            }
        }
    }

    /// Removes the pages of a range of a mapping called `name`, freeing those that belong to it.
    fn clear(&mut self, start: u64, end: u64, name: &str) {
        let mut freed: Vec<u64> = Vec::new();
        let (mut present, mut resident) = (false, 0);
        paging::for_each(self.root, start, end, |_, e| {
            present |= *e & PRESENT != 0;
            if *e & OWNED != 0 {
                freed.push(*e & paging::ADDRESS);
                resident += 1;
            }
            *e = 0;
        });
        self.resident -= resident;
        if name == SPARSE {
            budget::give(resident);
        }
        if present {
            // Before the pages can be used for anything else.
            paging::flush(self.root);
        }
        for frame in freed {
            frames::free(frame);
        }
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

    /// Pages that it is charged.
    pub(super) fn charge(&self) -> u64 {
        self.vmas
            .iter()
            .map(|(start, vma)| vma.charge(*start))
            .sum()
    }

    /// All mappings, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Vma)> {
        self.vmas.iter().map(|(start, vma)| (*start, vma))
    }
}
