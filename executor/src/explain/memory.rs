//! Guest memory as it lies in a checkpoint or a dump: reading it by page tables, and finding out what is mapped where. Whatever is
//! in there may be anything (R9): a replica that went astray is what this is for.

use std::collections::BTreeMap;

use quorate_abi::PAGE_SIZE;
use quorate_vmm::Checkpoint;

/// A page of guest memory.
pub type Page = [u8; PAGE_SIZE as usize];

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Mappings that are listed of one address space (R10); what is beyond has no name.
const MAX_MAPPINGS: usize = 1 << 20;

/// An image of guest-physical memory.
pub trait Memory {
    /// Copies memory at a guest-physical address; false if there is none.
    fn read(&self, addr: u64, to: &mut [u8]) -> bool;
    /// Addresses of the pages that may differ from what a machine starts with, ascending.
    fn pages(&self) -> Vec<u64>;
    /// Physical address of the page tables in use.
    fn root(&self) -> u64;
}

impl Memory for Checkpoint {
    fn read(&self, addr: u64, to: &mut [u8]) -> bool {
        self.read_phys(addr, to).is_ok()
    }

    fn pages(&self) -> Vec<u64> {
        let mut pages: Vec<u64> = Checkpoint::pages(self).map(|(at, _)| at).collect();
        pages.sort_unstable();
        pages
    }

    fn root(&self) -> u64 {
        self.registers().cr3 & ADDRESS
    }
}

/// A page at a guest-physical address.
pub fn page(memory: &dyn Memory, addr: u64) -> Option<Page> {
    let mut page = [0; PAGE_SIZE as usize];
    memory.read(addr, &mut page).then_some(page)
}

/// A number at a guest-physical address.
pub fn word(memory: &dyn Memory, addr: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    memory
        .read(addr, &mut bytes)
        .then(|| u64::from_le_bytes(bytes))
}

/// Where a virtual address leads under `root`.
pub fn translate(memory: &dyn Memory, root: u64, virt: u64) -> Option<u64> {
    let mut table = root & ADDRESS;
    for shift in [39, 30, 21, 12] {
        let entry = word(memory, table + (virt >> shift & 511) * 8)?;
        if entry & PRESENT == 0 {
            return None;
        }
        let within = (1_u64 << shift) - 1;
        if shift == 12 || (shift <= 30 && entry & LARGE != 0) {
            return Some(entry & ADDRESS & !within | virt & within);
        }
        table = entry & ADDRESS;
    }
    None
}

/// Copies memory at a virtual address; returns how many bytes are there.
pub fn read_virt(memory: &dyn Memory, root: u64, addr: u64, to: &mut [u8]) -> usize {
    let mut done = 0;
    while done < to.len() {
        let Some(at) = addr.checked_add(done as u64) else {
            break;
        };
        let len = (to.len() - done).min((PAGE_SIZE - at % PAGE_SIZE) as usize);
        let there = translate(memory, root, at)
            .is_some_and(|phys| memory.read(phys, &mut to[done..done + len]));
        if !there {
            break;
        }
        done += len;
    }
    done
}

/// A number at a virtual address.
pub fn virt_word(memory: &dyn Memory, root: u64, addr: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    (read_virt(memory, root, addr, &mut bytes) == 8).then(|| u64::from_le_bytes(bytes))
}

/// A page (or a large page) that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Virtual address.
    pub virt: u64,
    /// Physical address.
    pub phys: u64,
    /// Bytes.
    pub len: u64,
    /// It may be written.
    pub write: bool,
    /// It may be executed.
    pub execute: bool,
}

/// A page that is a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// 4 for the top level, down to 1.
    pub level: u8,
    /// First virtual address that it is for.
    pub virt: u64,
}

impl Table {
    /// Bytes of address space that one entry is for.
    #[must_use]
    pub fn reach(&self) -> u64 {
        1 << (12 + 9 * u32::from(self.level - 1))
    }
}

/// An address space: what one root maps.
#[derive(Debug, Default)]
pub struct Space {
    /// By virtual address.
    pub mappings: BTreeMap<u64, Mapping>,
    /// Page tables by physical address.
    pub tables: BTreeMap<u64, Table>,
}

impl Space {
    /// Walks all that `root` maps.
    pub fn walk(memory: &dyn Memory, root: u64) -> Space {
        let mut space = Space::default();
        space.descend(memory, root & ADDRESS, 4, 0, (true, true));
        space
    }

    fn descend(
        &mut self,
        memory: &dyn Memory,
        table: u64,
        level: u8,
        virt: u64,
        rights: (bool, bool),
    ) {
        let Some(entries) = page(memory, table) else {
            return;
        };
        // A table that is met again says nothing new; one that points to itself would never end.
        if self.tables.contains_key(&table) || self.mappings.len() >= MAX_MAPPINGS {
            return;
        }
        self.tables.insert(table, Table { level, virt });
        let reach = 1_u64 << (12 + 9 * u32::from(level - 1));
        // All regions lie in the lower half.
        let used = if level == 4 { 256 } else { 512 };
        for (index, entry) in entries.chunks_exact(8).take(used).enumerate() {
            let entry = entry.try_into().map_or(0, u64::from_le_bytes);
            if entry & PRESENT == 0 {
                continue;
            }
            let at = virt + index as u64 * reach;
            let rights = (
                rights.0 && entry & WRITE != 0,
                rights.1 && entry & NO_EXECUTE == 0,
            );
            if level == 1 || (level <= 3 && entry & LARGE != 0) {
                let mapping = Mapping {
                    virt: at,
                    phys: entry & ADDRESS & !(reach - 1),
                    len: reach,
                    write: rights.0,
                    execute: rights.1,
                };
                self.mappings.insert(at, mapping);
            } else {
                self.descend(memory, entry & ADDRESS, level - 1, at, rights);
            }
        }
    }

    /// The mapping at a virtual address.
    #[must_use]
    pub fn at(&self, virt: u64) -> Option<&Mapping> {
        let (_, mapping) = self.mappings.range(..=virt).next_back()?;
        (virt - mapping.virt < mapping.len).then_some(mapping)
    }
}

#[cfg(test)]
pub(crate) mod fake {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// Memory made by hand.
    #[derive(Clone, Default)]
    pub struct Fake {
        pub pages: BTreeMap<u64, Page>,
        pub root: u64,
        next_table: u64,
    }

    impl Fake {
        /// Empty, with tables from 1 MiB on.
        pub fn new() -> Fake {
            let mut fake = Fake {
                root: 0x10_0000,
                next_table: 0x10_1000,
                ..Fake::default()
            };
            fake.pages.insert(0x10_0000, [0; 4096]);
            fake
        }

        pub fn write(&mut self, addr: u64, bytes: &[u8]) {
            for (at, byte) in (addr..).zip(bytes) {
                let page = self.pages.entry(at & !0xfff).or_insert([0; 4096]);
                page[(at & 0xfff) as usize] = *byte;
            }
        }

        pub fn map(&mut self, virt: u64, phys: u64) {
            let mut table = self.root;
            for shift in [39, 30, 21] {
                let entry = table + (virt >> shift & 511) * 8;
                let mut value = word(self, entry).unwrap();
                if value == 0 {
                    value = self.next_table | 3;
                    self.pages.insert(self.next_table, [0; 4096]);
                    self.next_table += 0x1000;
                    self.write(entry, &value.to_le_bytes());
                }
                table = value & ADDRESS;
            }
            self.write(table + (virt >> 12 & 511) * 8, &(phys | 3).to_le_bytes());
        }

        pub fn write_virt(&mut self, virt: u64, bytes: &[u8]) {
            for (at, byte) in (virt..).zip(bytes) {
                let phys = translate(self, self.root, at).unwrap();
                self.write(phys, &[*byte]);
            }
        }
    }

    impl Memory for Fake {
        fn read(&self, addr: u64, to: &mut [u8]) -> bool {
            for (at, byte) in (addr..).zip(to) {
                if at >= 1 << 30 {
                    return false;
                }
                *byte = self
                    .pages
                    .get(&(at & !0xfff))
                    .map_or(0, |page| page[(at & 0xfff) as usize]);
            }
            true
        }

        fn pages(&self) -> Vec<u64> {
            self.pages.keys().copied().collect()
        }

        fn root(&self) -> u64 {
            self.root
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::fake::Fake;
    use super::*;

    #[test]
    fn what_is_mapped_is_found_and_read_across_pages() {
        let mut memory = Fake::new();
        memory.map(0x7000_0000_0000, 0x5000);
        memory.map(0x7000_0000_1000, 0x3000);
        memory.write_virt(0x7000_0000_0ffc, b"abcdefgh");
        let mut bytes = [0; 8];
        assert_eq!(
            read_virt(&memory, memory.root, 0x7000_0000_0ffc, &mut bytes),
            8
        );
        assert_eq!(&bytes, b"abcdefgh");
        let mut long = [0; 0x2000];
        assert_eq!(
            read_virt(&memory, memory.root, 0x7000_0000_1000, &mut long),
            0x1000,
            "then nothing is mapped"
        );
        let space = Space::walk(&memory, memory.root);
        assert_eq!(space.mappings.len(), 2);
        assert_eq!(space.at(0x7000_0000_1fff).unwrap().phys, 0x3000);
        assert!(space.at(0x7000_0000_2000).is_none());
        assert_eq!(space.tables.len(), 4);
        assert_eq!(space.tables[&memory.root].level, 4);
    }

    #[test]
    fn tables_that_point_to_themselves_end() {
        let mut memory = Fake::new();
        let root = memory.root;
        for index in 0..256 {
            memory.write(root + index * 8, &(root | 3).to_le_bytes());
        }
        assert!(Space::walk(&memory, root).mappings.len() <= 256 * 512);
    }
}
