//! Memory by what it is used for.
//!
//! A place is a class and an offset in it. The pages of a class are those that are mapped, by their offset in the layout's region,
//! address space by address space in the order in which the kernel made them; a page that several have counts once. So an offset
//! means the same in every layout. Everything is found in the guest's page tables and its devices' registers, and may be wrong in
//! a guest that is (R9): what is looked at is bounded.

use super::{FaultError, regions};
use crate::checkpoint::Checkpoint;
use crate::machine::Machine;
use quorate_abi::PAGE_SIZE;
use quorate_abi::boot::{Layout, Range};
use quorate_devices::{DeviceSetState, RingState};
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Most tables that are looked at in one address space (R10); a guest's tables may lead anywhere (R9).
const MAX_TABLES: usize = 1 << 14;
/// Where kernel stacks begin in `Layout::kernel_dynamic`; below is the heap.
const KERNEL_STACKS: u64 = 32 << 30;

/// What memory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MemoryClass {
    /// The program's code: executable pages of the region `program`, then those that a program has at addresses of its own.
    Text,
    /// Its other pages there: constants and static variables.
    Data,
    /// The `brk` area.
    Heap,
    /// The main thread's stack.
    Stack,
    /// Shared libraries and other files that are mapped: code and data.
    Libraries,
    /// Anonymous mappings: what malloc has for large or many objects.
    Mmap,
    /// Stacks and control blocks of threads, and what `ld.so` has allocated.
    Threads,
    /// The guest kernel's code.
    KernelText,
    /// Its constants and variables; the flight recorder's records are among them.
    KernelData,
    /// Its heap: sockets, files, processes.
    KernelHeap,
    /// Its stacks, one for each thread.
    KernelStacks,
    /// Entries of page tables, eight bytes each: for every address space and region those that map its pages, then for each piece of
    /// 2 MiB, 1 GiB and 512 GiB in which something is mapped the one on the way to the first such page. What several
    /// address spaces have in common counts for each.
    PageTables,
    /// The devices' queues: descriptor table, available ring, used ring of each, in the order of the devices.
    Queues,
    /// The boot block: descriptor tables, boot information, sync page, the monitor's stacks.
    Boot,
    /// All RAM by physical address: **not** the same in two layouts.
    Ram,
}

const CLASSES: [(MemoryClass, &str); 15] = [
    (MemoryClass::Text, "text"),
    (MemoryClass::Data, "data"),
    (MemoryClass::Heap, "heap"),
    (MemoryClass::Stack, "stack"),
    (MemoryClass::Libraries, "libraries"),
    (MemoryClass::Mmap, "mmap"),
    (MemoryClass::Threads, "threads"),
    (MemoryClass::KernelText, "kernel-text"),
    (MemoryClass::KernelData, "kernel-data"),
    (MemoryClass::KernelHeap, "kernel-heap"),
    (MemoryClass::KernelStacks, "kernel-stacks"),
    (MemoryClass::PageTables, "page-tables"),
    (MemoryClass::Queues, "queues"),
    (MemoryClass::Boot, "boot"),
    (MemoryClass::Ram, "ram"),
];

impl MemoryClass {
    /// All classes.
    pub fn all() -> impl Iterator<Item = Self> {
        CLASSES.into_iter().map(|(class, _)| class)
    }

    /// Their names, in the same order.
    pub fn names() -> impl Iterator<Item = &'static str> {
        CLASSES.into_iter().map(|(_, name)| name)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = CLASSES.iter().find(|(class, _)| *class == self);
        found.map_or("ram", |(_, name)| name)
    }
}

impl fmt::Display for MemoryClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for MemoryClass {
    type Err = FaultError;

    fn from_str(name: &str) -> Result<Self, FaultError> {
        let found = CLASSES.iter().find(|(_, known)| *known == name);
        let found = found.map(|(class, _)| *class);
        found.ok_or_else(|| FaultError::NoClass { name: name.into() })
    }
}

/// A page of a class, or the part of it that belongs to the class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageAt {
    /// Virtual address, if it has one but in the kernel's map of all memory.
    pub virt: Option<u64>,
    /// Guest-physical address.
    pub physical: u64,
    /// Bytes from there on: at most up to the page's end, a multiple of 8.
    pub len: u64,
    /// Offset in the class of the first of them.
    pub offset: u64,
    /// Region of the layout and offset in it; of an entry of a page table, the place that it leads to.
    pub region: Option<(&'static str, u64)>,
    /// What it is.
    pub piece: Piece,
}

/// What a [`PageAt`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A page.
    Page,
    /// An entry of a page table: 1 is the lowest level.
    Entry(u8),
    /// Part of a queue.
    Queue {
        /// The device.
        device: &'static str,
        /// Which of that kind.
        number: u8,
        /// Which of its queues.
        queue: u8,
        /// `descriptors`, `available` or `used`.
        part: &'static str,
    },
}

impl PageAt {
    /// The same for a byte in it, `within` bytes further.
    #[must_use]
    pub fn byte(&self, within: u64) -> Self {
        // The bytes of an entry all mean the same place.
        let further = match self.piece {
            Piece::Entry(_) => 0,
            _ => within,
        };
        Self {
            virt: self.virt.map(|virt| virt + further),
            physical: self.physical + within,
            len: self.len.saturating_sub(within),
            offset: self.offset + within,
            region: self.region.map(|(name, at)| (name, at + further)),
            piece: self.piece,
        }
    }
}

impl fmt::Display for PageAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |f: &mut fmt::Formatter<'_>| match (self.region, self.virt) {
            (Some((region, offset)), _) => write!(f, "{region}+{offset:#x}"),
            (None, Some(virt)) => write!(f, "address {virt:#x}"),
            (None, None) => write!(f, "physical address {:#x}", self.physical),
        };
        match self.piece {
            Piece::Page => place(f),
            Piece::Entry(level) => {
                write!(f, "page table entry of level {level} for ")?;
                place(f)
            }
            Piece::Queue {
                device,
                number,
                queue,
                part,
            } => write!(
                f,
                "{device} {number}, queue {queue}, {part}+{:#x}",
                self.offset
            ),
        }
    }
}

/// Where everything is at one moment: to be made anew when the guest has run.
#[derive(Clone, Debug)]
pub struct MemoryMap {
    spaces: Vec<Vec<Leaf>>,
    layout: Layout,
    devices: DeviceSetState,
    ram: Vec<Range>,
}

/// A page that is mapped, with the entries that lead to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaf {
    pub virt: u64,
    pub physical: u64,
    /// 12, or 21 or 30 for large pages.
    pub shift: u32,
    pub execute: bool,
    /// Guest-physical addresses of the entries, top level first; 0 where there is none.
    pub entries: [u64; 4],
}

/// Reads guest-physical memory; false if there is none.
pub(crate) type Read<'a> = &'a dyn Fn(u64, &mut [u8]) -> bool;

/// Visits the pages that are mapped by the tables at `root`, by ascending virtual address.
pub(crate) fn walk(read: Read, root: u64, visit: &mut dyn FnMut(&Leaf)) {
    let mut left = MAX_TABLES;
    let leaf = Leaf {
        virt: 0,
        physical: 0,
        shift: 39,
        execute: true,
        entries: [0; 4],
    };
    below(read, root & ADDRESS, leaf, &mut left, &mut |_, _| {}, visit);
}

/// Visits the pages that are tables at `root`, each with the way to it: `shift` tells the level, 12 is the lowest.
pub(crate) fn table_levels(read: Read, root: u64, visit: &mut dyn FnMut(u64, &Leaf)) {
    let mut left = MAX_TABLES;
    let leaf = Leaf {
        virt: 0,
        physical: 0,
        shift: 39,
        execute: true,
        entries: [0; 4],
    };
    below(read, root & ADDRESS, leaf, &mut left, visit, &mut |_| {});
}

fn below(
    read: Read,
    table: u64,
    above: Leaf,
    left: &mut usize,
    tables: &mut dyn FnMut(u64, &Leaf),
    visit: &mut dyn FnMut(&Leaf),
) {
    let mut bytes = [0; PAGE_SIZE as usize];
    if *left == 0 || !read(table, &mut bytes) {
        return;
    }
    *left -= 1;
    tables(table, &above);
    let level = ((39 - above.shift) / 9) as usize;
    let (entries, _) = bytes.as_chunks();
    for (index, entry) in (0..).zip(entries) {
        let value = u64::from_le_bytes(*entry);
        if value & PRESENT == 0 {
            continue;
        }
        let mut leaf = above;
        leaf.virt |= index << above.shift;
        leaf.execute &= value & NO_EXECUTE == 0;
        leaf.entries[level] = table + 8 * index;
        if above.shift == 12 || (above.shift <= 30 && value & LARGE != 0) {
            leaf.physical = value & ADDRESS & !((1 << above.shift) - 1);
            visit(&leaf);
        } else {
            leaf.shift -= 9;
            below(read, value & ADDRESS, leaf, left, tables, visit);
        }
    }
}

impl Machine {
    /// Where everything is now.
    ///
    /// # Errors
    ///
    /// If KVM does not say where the page tables are.
    pub fn memory_map(&self) -> Result<MemoryMap, FaultError> {
        let read = |at: u64, to: &mut [u8]| self.read_physical(at, to);
        let spaces = self.roots()?.into_iter().map(|root| space(&read, root));
        Ok(MemoryMap {
            spaces: spaces.collect(),
            layout: *self.layout(),
            devices: self.save_devices(),
            ram: self.memory.ranges.clone(),
        })
    }

    /// The pages of a class, by their offset in it.
    ///
    /// # Errors
    ///
    /// As [`Machine::memory_map`], which is cheaper for several classes.
    pub fn pages_of(&self, class: MemoryClass) -> Result<Vec<PageAt>, FaultError> {
        Ok(self.memory_map()?.pages(class))
    }
}

impl Checkpoint {
    /// As [`Machine::memory_map`], for the machine that this was taken of, by its layout. The address space in use is the only one that is
    /// looked at: a checkpoint does not know where its kernel's variables are.
    #[must_use]
    pub fn memory_map(&self, layout: &Layout) -> MemoryMap {
        let read = |at: u64, to: &mut [u8]| self.read_phys(at, to).is_ok();
        MemoryMap {
            spaces: vec![space(&read, self.registers().cr3)],
            layout: *layout,
            devices: self.devices().clone(),
            ram: Vec::new(),
        }
    }
}

fn space(read: Read, root: u64) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    walk(read, root, &mut |leaf| leaves.push(*leaf));
    leaves
}

impl MemoryMap {
    /// How many bytes a class has; a multiple of 8.
    #[must_use]
    pub fn bytes(&self, class: MemoryClass) -> u64 {
        if class == MemoryClass::Ram {
            return self.ram.iter().map(|range| range.len).sum();
        }
        self.pages(class).iter().map(|page| page.len).sum()
    }

    /// The place at an offset in a class; `None` beyond its end.
    #[must_use]
    pub fn at(&self, class: MemoryClass, offset: u64) -> Option<PageAt> {
        if class == MemoryClass::Ram {
            let mut left = offset;
            for range in &self.ram {
                if left < range.len {
                    return Some(PageAt {
                        virt: None,
                        physical: range.start + left,
                        len: PAGE_SIZE - left % PAGE_SIZE,
                        offset,
                        region: None,
                        piece: Piece::Page,
                    });
                }
                left -= range.len;
            }
            return None;
        }
        let pages = self.pages(class);
        let index = pages.partition_point(|page| page.offset <= offset);
        let page = pages.get(index.checked_sub(1)?)?;
        (offset - page.offset < page.len).then(|| page.byte(offset - page.offset))
    }

    /// The place that `pick` (a random number) stands for: modulo the bytes of the class, rounded down to 8. `None` if the class is empty.
    #[must_use]
    pub fn pick(&self, class: MemoryClass, pick: u64) -> Option<PageAt> {
        if class == MemoryClass::Ram {
            return self.at(class, pick.checked_rem(self.bytes(class))? & !7);
        }
        let pages = self.pages(class);
        let bytes = pages.last().map_or(0, |page| page.offset + page.len);
        let offset = pick.checked_rem(bytes)? & !7;
        let index = pages.partition_point(|page| page.offset <= offset);
        let page = pages.get(index.checked_sub(1)?)?;
        Some(page.byte(offset - page.offset))
    }

    /// The pages of a class, by their offset in it.
    #[must_use]
    pub fn pages(&self, class: MemoryClass) -> Vec<PageAt> {
        use MemoryClass as C;
        let kernel = |text| {
            let pages = self.mapped("kernel", move |leaf, _| leaf.execute == text);
            numbered(pages)
        };
        match class {
            C::Text | C::Data => {
                let text = class == C::Text;
                let mut pages = self.mapped("program", |leaf, _| leaf.execute == text);
                pages.extend(self.elsewhere(text));
                numbered(pages)
            }
            C::Heap => numbered(self.mapped("heap", |_, _| true)),
            C::Stack => numbered(self.mapped("stack", |_, _| true)),
            C::Libraries => numbered(self.mapped("libraries", |_, _| true)),
            C::Mmap => numbered(self.mapped("mmap", |_, _| true)),
            C::Threads => numbered(self.mapped("threads", |_, _| true)),
            C::KernelText => kernel(true),
            C::KernelData => kernel(false),
            C::KernelHeap => numbered(self.mapped("kernel_dynamic", |_, at| at < KERNEL_STACKS)),
            C::KernelStacks => numbered(self.mapped("kernel_dynamic", |_, at| at >= KERNEL_STACKS)),
            C::Boot => numbered(self.mapped("boot", |_, _| true)),
            C::PageTables => numbered(self.entries()),
            C::Queues => numbered(self.queues()),
            C::Ram => {
                let ranges = self.ram.iter().flat_map(|range| {
                    let pages = (range.start..range.start + range.len).step_by(PAGE_SIZE as usize);
                    pages.map(|at| plain(None, at, None))
                });
                numbered(ranges.collect())
            }
        }
    }

    /// The small pages of a region that are wanted, by their offset in it, those of all address spaces.
    fn mapped(&self, name: &'static str, wanted: impl Fn(&Leaf, u64) -> bool) -> Vec<PageAt> {
        let Some((_, start, len)) = regions(&self.layout).into_iter().find(|it| it.0 == name)
        else {
            return Vec::new();
        };
        let mut seen = HashSet::new();
        let mut pages = Vec::new();
        for leaves in &self.spaces {
            for leaf in part(leaves, start, len) {
                let offset = leaf.virt - start;
                if leaf.shift == 12 && wanted(leaf, offset) && seen.insert(leaf.physical) {
                    pages.push(plain(Some(leaf.virt), leaf.physical, Some((name, offset))));
                }
            }
        }
        pages
    }

    /// Small pages of programs outside of all regions, by their address.
    fn elsewhere(&self, text: bool) -> Vec<PageAt> {
        let regions = regions(&self.layout);
        let mut seen = HashSet::new();
        let mut pages = Vec::new();
        for leaves in &self.spaces {
            let mut at = 0;
            while let Some(leaf) = leaves.get(at) {
                let inside = |r: &&(&str, u64, u64)| leaf.virt >= r.1 && leaf.virt - r.1 < r.2;
                if let Some((_, start, len)) = regions.iter().find(inside) {
                    at += part(&leaves[at..], *start, *len).len().max(1);
                    continue;
                }
                at += 1;
                if leaf.shift == 12 && leaf.execute == text && seen.insert(leaf.physical) {
                    pages.push(plain(Some(leaf.virt), leaf.physical, None));
                }
            }
        }
        pages
    }

    /// See [`MemoryClass::PageTables`].
    fn entries(&self) -> Vec<PageAt> {
        let mut pages = Vec::new();
        for leaves in &self.spaces {
            for (name, start, len) in regions(&self.layout) {
                let part = part(leaves, start, len);
                for (level, shift) in [(1, 12), (2, 21), (3, 30), (4, 39)] {
                    let mut last = None;
                    for leaf in part {
                        let chunk = (leaf.virt - start) >> shift;
                        let at = leaf.entries[4 - level];
                        if at == 0 || last.replace(chunk) == Some(chunk) {
                            continue;
                        }
                        pages.push(PageAt {
                            virt: Some(leaf.virt),
                            physical: at,
                            len: 8,
                            offset: 0,
                            region: Some((name, leaf.virt - start)),
                            piece: Piece::Entry(level as u8),
                        });
                    }
                }
            }
        }
        pages
    }

    /// The queues in use.
    fn queues(&self) -> Vec<PageAt> {
        let DeviceSetState {
            entropy,
            console,
            net,
            blocks,
            ..
        } = &self.devices;
        let mut all = vec![
            ("entropy", 0, &entropy.transport),
            ("console", 0, &console.transport),
            ("net", 0, &net.transport),
        ];
        all.extend(
            (0..)
                .zip(blocks)
                .map(|(number, block)| ("disk", number, &block.transport)),
        );
        let mut pages = Vec::new();
        for (device, number, transport) in all {
            let queues = (0..).zip(&transport.rings);
            for (queue, ring) in queues.filter(|(_, ring)| ring.ready) {
                for (part, start, len) in parts(ring) {
                    let piece = Piece::Queue {
                        device,
                        number,
                        queue,
                        part,
                    };
                    pages.extend(pieces(start, len, piece));
                }
            }
        }
        pages
    }
}

/// The parts of a queue (virtio 1.3, 2.7): name, first address, bytes.
fn parts(ring: &RingState) -> [(&'static str, u64, u64); 3] {
    let size = u64::from(ring.size);
    [
        ("descriptors", ring.descriptors, 16 * size),
        ("available", ring.available, 6 + 2 * size),
        ("used", ring.used, 6 + 8 * size),
    ]
}

/// The pages of a range of physical memory, which is widened to multiples of 8.
fn pieces(start: u64, len: u64, piece: Piece) -> impl Iterator<Item = PageAt> {
    let end = start.saturating_add(len).next_multiple_of(8);
    let mut at = start & !7;
    std::iter::from_fn(move || {
        let len = (end.checked_sub(at)?).min(PAGE_SIZE - at % PAGE_SIZE);
        let page = PageAt {
            physical: at,
            len,
            piece,
            ..plain(None, at, None)
        };
        at += len;
        (len != 0).then_some(page)
    })
}

/// The leaves in a region.
fn part(leaves: &[Leaf], start: u64, len: u64) -> &[Leaf] {
    let from = leaves.partition_point(|leaf| leaf.virt < start);
    let to = leaves.partition_point(|leaf| leaf.virt < start.saturating_add(len));
    leaves.get(from..to).unwrap_or_default()
}

fn plain(virt: Option<u64>, physical: u64, region: Option<(&'static str, u64)>) -> PageAt {
    PageAt {
        virt,
        physical,
        len: PAGE_SIZE,
        offset: 0,
        region,
        piece: Piece::Page,
    }
}

/// Gives every page its offset.
fn numbered(mut pages: Vec<PageAt>) -> Vec<PageAt> {
    let mut offset = 0;
    for page in &mut pages {
        page.offset = offset;
        offset += page.len;
    }
    pages
}
