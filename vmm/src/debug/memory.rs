//! Guest memory by virtual address, as a debugger sees it.

use crate::error::MachineError;
use crate::machine::Machine;
use crate::paging::{executable, translate};
use quorate_abi::PAGE_SIZE;
use std::ptr;
use vm_memory::{Bytes, GuestAddress};

impl Machine {
    /// Reads memory of the address space that the guest is in now, from `address` on, up to the first page that is not
    /// there. Returns how many bytes were read.
    pub fn read_virtual(&self, address: u64, data: &mut [u8]) -> usize {
        let root = self.registers().map_or(0, |registers| registers.cr3);
        self.read_in(root, address, data)
    }

    /// Writes memory of the address space that the guest is in now, whatever rights the guest has there.
    ///
    /// # Errors
    ///
    /// If a page is not there, or is one of the root image, which never changes; then nothing is written.
    pub fn write_virtual(&mut self, address: u64, data: &[u8]) -> Result<(), MachineError> {
        let last = data.len().saturating_sub(1) as u64;
        let mut page = address / PAGE_SIZE * PAGE_SIZE;
        while page <= address.saturating_add(last) {
            let phys = self.physical(page).ok_or(MachineError::Access(page))?;
            if self.image_bytes(phys, 1).is_some() {
                return Err(MachineError::Access(page));
            }
            page = page
                .checked_add(PAGE_SIZE)
                .ok_or(MachineError::Access(page))?;
        }
        self.write_code(address, data)
    }

    /// As [`Machine::write_virtual`], but a page of the root image is written, too: for faults.
    ///
    /// # Errors
    ///
    /// If part of it is not mapped; what comes before that has been written then.
    pub fn spoil_virtual(&mut self, address: u64, data: &[u8]) -> Result<(), MachineError> {
        self.write_code(address, data)
    }

    /// Guest-physical address of a virtual one, in the address space that the guest is in now.
    #[must_use]
    pub fn physical(&self, address: u64) -> Option<u64> {
        let root = self.registers().ok()?.cr3;
        translate(&self.memory.ram, root, address)
    }

    /// The pages of the root image that the guest can execute in the address space that it is in now: virtual address of each, and
    /// its offset in the image.
    ///
    /// # Errors
    ///
    /// If KVM does not say which address space that is.
    pub fn executable_image(&self) -> Result<Vec<(u64, u64)>, MachineError> {
        let image = &self.memory.image;
        let mut pages = Vec::new();
        executable(
            &self.memory.ram,
            self.registers()?.cr3,
            &mut |virt, phys| {
                if let Some(offset) = phys.checked_sub(image.start).filter(|&o| o < image.len) {
                    pages.push((virt, offset));
                }
            },
        );
        Ok(pages)
    }

    pub(super) fn read_in(&self, root: u64, address: u64, data: &mut [u8]) -> usize {
        let mut done = 0;
        while done < data.len() {
            let Some(at) = address.checked_add(done as u64) else {
                break;
            };
            let len = piece(at, data.len() - done);
            let there = translate(&self.memory.ram, root, at)
                .is_some_and(|phys| self.read_physical(phys, &mut data[done..done + len]));
            if !there {
                break;
            }
            done += len;
        }
        done
    }

    pub(super) fn write_code(&mut self, address: u64, data: &[u8]) -> Result<(), MachineError> {
        let root = self.registers()?.cr3;
        let mut done = 0;
        while done < data.len() {
            let at = address.wrapping_add(done as u64);
            let len = piece(at, data.len() - done);
            let phys = translate(&self.memory.ram, root, at).ok_or(MachineError::Access(at))?;
            self.write_physical(phys, &data[done..done + len])?;
            done += len;
        }
        Ok(())
    }

    /// Reads RAM or the root image; false if there is neither.
    pub(crate) fn read_physical(&self, at: u64, data: &mut [u8]) -> bool {
        match self.image_bytes(at, data.len()) {
            Some(from) => {
                // SAFETY: `image_bytes` has checked that these bytes are mapped; the vCPU does not run meanwhile (this thread runs it), and
                // `data` is memory of this process that the guest does not have.
                unsafe { ptr::copy_nonoverlapping(from, data.as_mut_ptr(), data.len()) };
                true
            }
            None => self.memory.ram.read_slice(data, GuestAddress(at)).is_ok(),
        }
    }

    pub(crate) fn write_physical(&mut self, at: u64, data: &[u8]) -> Result<(), MachineError> {
        match self.image_bytes(at, data.len()) {
            Some(to) => {
                // SAFETY: As in `read_physical`; the mapping is private and writable.
                unsafe { ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
                self.note_image(at, data.len());
                Ok(())
            }
            None => self
                .memory
                .ram
                .write_slice(data, GuestAddress(at))
                .map_err(|_| MachineError::Access(at)),
        }
    }

    /// No log names what is written to the root image from here: it is noted, so that a restore puts it back.
    fn note_image(&mut self, at: u64, len: usize) {
        let image = self.memory.image.start;
        let slot = self.memory.slots.iter().position(|s| s.guest == image);
        if let (Some(slot), Some(tracking)) = (slot, &mut self.tracking) {
            let last = at + len.max(1) as u64 - 1;
            for page in (at - image) / PAGE_SIZE..=(last - image) / PAGE_SIZE {
                tracking.note(slot, page as usize);
            }
        }
    }

    /// Where the root image's bytes are in this process.
    fn image_bytes(&self, at: u64, len: usize) -> Option<*mut u8> {
        let image = &self.memory.image;
        let offset = at.checked_sub(image.start)?;
        let end = offset.checked_add(len as u64)?;
        let slot = self.memory.slots.iter().find(|s| s.guest == image.start)?;
        (image.len != 0 && end <= slot.len)
            .then(|| (slot.mapping.addr() as *mut u8).wrapping_add(offset as usize))
    }
}

/// Bytes from `at` on that lie in one page, at most `wanted`.
fn piece(at: u64, wanted: usize) -> usize {
    wanted.min((PAGE_SIZE - at % PAGE_SIZE) as usize)
}
