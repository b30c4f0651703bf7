//! The guest's first page tables (Intel SDM volume 3, 4.5: four-level paging). Every entry is a user one: kernel and programs
//! alike run at CPL 3. Accessed and dirty bits are preset, so that the processor never has to write them.

use crate::error::MachineError;
use crate::memory::{LARGE_PAGE, Ram};
use quorate_abi::PAGE_SIZE;
use vm_memory::{Bytes, GuestAddress};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What may be done with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    /// Read.
    Read,
    /// Read and write.
    Write,
    /// Read and execute.
    Execute,
}

impl Rights {
    fn bits(self) -> u64 {
        match self {
            Self::Read => NO_EXECUTE,
            Self::Write => WRITE | NO_EXECUTE,
            Self::Execute => 0,
        }
    }
}

/// One range to be mapped; addresses and length are multiples of the page size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area {
    pub virt: u64,
    pub phys: u64,
    pub len: u64,
    pub rights: Rights,
    /// [`PAGE_SIZE`] or [`LARGE_PAGE`].
    pub page: u64,
}

impl Area {
    pub(crate) fn small(virt: u64, phys: u64, len: u64, rights: Rights) -> Self {
        Self {
            virt,
            phys,
            len,
            rights,
            page: PAGE_SIZE,
        }
    }

    pub(crate) fn large(virt: u64, phys: u64, len: u64, rights: Rights) -> Self {
        Self {
            page: LARGE_PAGE,
            ..Self::small(virt, phys, len, rights)
        }
    }

    /// Upper bound of the tables below the top level that this area needs.
    fn tables(&self) -> u64 {
        let per_level = |shift: u32| (self.len >> shift) + 2;
        let lowest = if self.page == PAGE_SIZE {
            per_level(21)
        } else {
            0
        };
        lowest + per_level(30) + per_level(39)
    }
}

/// Upper bound of the bytes that tables for these areas take.
pub(crate) fn table_bytes(areas: &[Area]) -> u64 {
    (1 + areas.iter().map(Area::tables).sum::<u64>()) * PAGE_SIZE
}

/// Builds tables in guest memory, taking pages one after the other from a pool.
pub(crate) struct PageTables<'a> {
    ram: &'a Ram,
    root: u64,
    next: u64,
    end: u64,
}

impl<'a> PageTables<'a> {
    /// The pool is zeroed RAM at `[start, end)`, page aligned.
    pub(crate) fn new(ram: &'a Ram, start: u64, end: u64) -> Self {
        Self {
            ram,
            root: start,
            next: start + PAGE_SIZE,
            end,
        }
    }

    /// Physical address of the top-level table.
    pub(crate) fn root(&self) -> u64 {
        self.root
    }

    /// End of the pages used so far.
    pub(crate) fn used_end(&self) -> u64 {
        self.next
    }

    pub(crate) fn map(&mut self, area: &Area) -> Result<(), MachineError> {
        for offset in (0..area.len).step_by(area.page as usize) {
            let virt = area.virt + offset;
            let mut table = self.root;
            let last = if area.page == LARGE_PAGE { 21 } else { 12 };
            for shift in [39, 30, 21, 12] {
                let entry = entry_address(table, virt, shift);
                if shift == last {
                    let large = if area.page == LARGE_PAGE { LARGE } else { 0 };
                    let bits = PRESENT | USER | ACCESSED | DIRTY | large | area.rights.bits();
                    write(self.ram, entry, (area.phys + offset) | bits)?;
                    break;
                }
                table = self.descend(entry)?;
            }
        }
        Ok(())
    }

    /// The table below `entry`, made if it is not there yet.
    fn descend(&mut self, entry: u64) -> Result<u64, MachineError> {
        let value = read(self.ram, entry)?;
        if value & PRESENT != 0 {
            return Ok(value & ADDRESS);
        }
        let table = self.next;
        if table >= self.end {
            return Err(MachineError::Access(table)); // `table_bytes` is an upper bound.
        }
        self.next += PAGE_SIZE;
        write(self.ram, entry, table | PRESENT | WRITE | USER | ACCESSED)?;
        Ok(table)
    }
}

/// Where a virtual address leads, by the tables at `root`: for reports on a guest, whose tables may be anything (R9).
pub(crate) fn translate(ram: &Ram, root: u64, virt: u64) -> Option<u64> {
    walk(root, virt, &mut |entry| read(ram, entry).ok())
}

/// As [`translate`], with `read` giving the table entry at a physical address.
pub(crate) fn walk(root: u64, virt: u64, read: &mut dyn FnMut(u64) -> Option<u64>) -> Option<u64> {
    let mut table = root & ADDRESS;
    for shift in [39, 30, 21, 12] {
        let value = read(entry_address(table, virt, shift))?;
        if value & PRESENT == 0 {
            return None;
        }
        let within = (1_u64 << shift) - 1;
        if shift == 12 || (shift <= 30 && value & LARGE != 0) {
            return Some(value & ADDRESS & !within | virt & within);
        }
        table = value & ADDRESS;
    }
    None
}

/// Most tables that [`executable`] looks at (R10); a guest's tables may lead anywhere (R9).
const MAX_TABLES: usize = 1 << 16;

/// The executable pages of 4 KiB in the tables at `root`: virtual and physical address of each, ascending, as far as `MAX_TABLES` tables
/// tell.
pub(crate) fn executable(ram: &Ram, root: u64, visit: &mut dyn FnMut(u64, u64)) {
    let mut left = MAX_TABLES;
    visit_below(ram, root & ADDRESS, 39, 0, &mut left, visit);
}

fn visit_below(
    ram: &Ram,
    table: u64,
    shift: u32,
    virt: u64,
    left: &mut usize,
    visit: &mut dyn FnMut(u64, u64),
) {
    if *left == 0 {
        return;
    }
    *left -= 1;
    let mut entries = [0; PAGE_SIZE as usize];
    if ram.read_slice(&mut entries, GuestAddress(table)).is_err() {
        return;
    }
    let (entries, _) = entries.as_chunks();
    for (index, entry) in (0..).zip(entries) {
        let value = u64::from_le_bytes(*entry);
        let virt = virt | index << shift;
        if value & PRESENT == 0 || value & NO_EXECUTE != 0 {
            continue;
        }
        match shift {
            12 => visit(virt, value & ADDRESS),
            _ if value & LARGE != 0 && shift <= 30 => {}
            _ => visit_below(ram, value & ADDRESS, shift - 9, virt, left, visit),
        }
    }
}

fn entry_address(table: u64, virt: u64, shift: u32) -> u64 {
    table + (virt >> shift & 511) * 8
}

fn read(ram: &Ram, addr: u64) -> Result<u64, MachineError> {
    ram.read_obj::<u64>(GuestAddress(addr))
        .map_err(|_| MachineError::Access(addr))
}

fn write(ram: &Ram, addr: u64, value: u64) -> Result<(), MachineError> {
    ram.write_obj(value, GuestAddress(addr))
        .map_err(|_| MachineError::Access(addr))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn maps_and_translates_across_table_borders() {
        let ram = Ram::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        let areas = [
            // Crosses a 512 GiB border.
            Area::small(0x7f_ffff_f000, 0x5000, 0x2000, Rights::Execute),
            Area::large(0x5555_4000_0000, 0x20_0000, 4 << 20, Rights::Write),
        ];
        let mut tables = PageTables::new(&ram, 0x10_0000, 0x10_0000 + table_bytes(&areas));
        for area in &areas {
            tables.map(area).unwrap();
        }
        let find = |virt| translate(&ram, tables.root(), virt);
        assert_eq!(find(0x7f_ffff_f123), Some(0x5123));
        assert_eq!(find(0x80_0000_0fff), Some(0x6fff));
        assert_eq!(find(0x80_0000_1000), None);
        assert_eq!(find(0x5555_4030_0001), Some(0x50_0001));
        assert_eq!(find(0), None);
    }

    #[test]
    fn runs_out_of_tables_with_an_error() {
        let ram = Ram::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mut tables = PageTables::new(&ram, 0x1000, 0x3000);
        let area = Area::small(0, 0, 0x1000, Rights::Read);
        assert!(tables.map(&area).is_err());
    }
}
