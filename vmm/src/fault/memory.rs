//! Faults of memory: bits, and whole pages.

use super::FaultError;
use super::class::{table_levels, walk};
use crate::error::MachineError;
use crate::machine::Machine;
use quorate_abi::PAGE_SIZE;

/// What becomes of the bits in a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// They are inverted.
    Flip,
    /// They become 0.
    Clear,
    /// They become 1.
    Set,
}

impl Change {
    /// What a value becomes.
    #[must_use]
    pub fn apply(self, value: u64, mask: u64) -> u64 {
        match self {
            Self::Flip => value ^ mask,
            Self::Clear => value & !mask,
            Self::Set => value | mask,
        }
    }
}

impl Machine {
    /// Changes bits of the eight bytes (low byte first) at a guest-physical address, in RAM or in the root image. Returns them before
    /// and after. The guest sees it at once, also where it is a page table; [`crate::Restore::Dirty`] takes it back.
    ///
    /// # Errors
    ///
    /// If there is no memory, or KVM fails.
    pub fn fault_memory(
        &mut self,
        physical: u64,
        mask: u64,
        change: Change,
    ) -> Result<(u64, u64), FaultError> {
        let mut bytes = [0; 8];
        if !self.read_physical(physical, &mut bytes) {
            return Err(MachineError::Access(physical).into());
        }
        let before = u64::from_le_bytes(bytes);
        let after = change.apply(before, mask);
        self.write_memory(physical, &after.to_le_bytes())?;
        Ok((before, after))
    }

    /// The eight bytes at a guest-physical address, in RAM or in the root image.
    #[must_use]
    pub fn memory_word(&self, physical: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read_physical(physical, &mut bytes)
            .then(|| u64::from_le_bytes(bytes))
    }

    /// Fills the page at a guest-physical address with zeroes. Returns how many bytes were not.
    ///
    /// # Errors
    ///
    /// As [`Machine::fault_memory`].
    pub fn zero_page(&mut self, physical: u64) -> Result<u64, FaultError> {
        let page = physical / PAGE_SIZE * PAGE_SIZE;
        let mut bytes = [0; PAGE_SIZE as usize];
        if !self.read_physical(page, &mut bytes) {
            return Err(MachineError::Access(physical).into());
        }
        let changed = bytes.iter().filter(|byte| **byte != 0).count() as u64;
        self.write_memory(page, &[0; PAGE_SIZE as usize])?;
        Ok(changed)
    }

    /// Makes the page at a guest-physical address one that is not there any more: in all address spaces every entry of a page table
    /// that leads to it and to nothing else becomes 0. The kernel's map of all memory stays. Returns how many entries those were.
    ///
    /// # Errors
    ///
    /// If there are none, or KVM fails.
    pub fn drop_page(&mut self, physical: u64) -> Result<u64, FaultError> {
        let page = physical / PAGE_SIZE * PAGE_SIZE;
        let roots = self.roots()?;
        let mut entries = Vec::new();
        let read = |at: u64, to: &mut [u8]| self.read_physical(at, to);
        for root in roots {
            walk(&read, root, &mut |leaf| {
                if leaf.physical == page && leaf.shift == 12 {
                    entries.push(leaf.entries[3]);
                }
            });
        }
        entries.sort_unstable();
        entries.dedup();
        if entries.is_empty() {
            return Err(FaultError::NotMapped(page));
        }
        for entry in &entries {
            self.write_physical(*entry, &[0; 8])?;
        }
        self.forget_translations()?;
        Ok(entries.len() as u64)
    }

    /// Writes memory as a fault does.
    fn write_memory(&mut self, at: u64, bytes: &[u8]) -> Result<(), FaultError> {
        let last = at.saturating_add(bytes.len().max(1) as u64 - 1);
        let tables = self.tables_in_use()?;
        let is_table = |addr: u64| {
            tables
                .binary_search(&(addr / PAGE_SIZE * PAGE_SIZE))
                .is_ok()
        };
        self.write_physical(at, bytes)?;
        // KVM sees the guest's writes to page tables, not these.
        if is_table(at) || is_table(last) {
            self.forget_translations()?;
        }
        Ok(())
    }

    /// The pages that are page tables of any address space, ascending.
    pub(crate) fn tables_in_use(&self) -> Result<Vec<u64>, FaultError> {
        let read = |at: u64, to: &mut [u8]| self.read_physical(at, to);
        let mut tables = Vec::new();
        for root in self.roots()? {
            table_levels(&read, root, &mut |table, _| tables.push(table));
        }
        tables.sort_unstable();
        tables.dedup();
        Ok(tables)
    }
}
