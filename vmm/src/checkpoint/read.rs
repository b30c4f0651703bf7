//! Reading the guest memory of a checkpoint.

use super::Checkpoint;
use super::identity::{Image, hex};
use super::pages::Page;
use crate::error::MachineError;
use crate::paging::walk;
use quorate_abi::PAGE_SIZE;
use std::fs::File;
use std::sync::Arc;

impl Checkpoint {
    /// The same checkpoint with the root image at hand, which a file does not contain: for reading what is in it.
    ///
    /// # Errors
    ///
    /// If this is another image, or it cannot be read.
    pub fn with_image(&self, image: Arc<File>) -> Result<Self, MachineError> {
        let image = Image::new(image).map_err(MachineError::Image)?;
        let digest = image.digest().map_err(MachineError::Image)?;
        let saved = match (self.inner.image_digest, &self.image) {
            (Some(digest), _) => Some(digest),
            (None, Some(image)) => Some(image.digest().map_err(MachineError::Image)?),
            (None, None) => None,
        };
        if saved != Some(digest) {
            return Err(MachineError::Identity {
                what: "root image",
                saved: saved.map_or("none".into(), |digest| hex(&digest)),
                here: hex(&digest),
            });
        }
        Ok(Self {
            inner: Arc::clone(&self.inner),
            image: Some(Arc::new(image)),
        })
    }

    /// Copies memory at a guest-physical address.
    ///
    /// # Errors
    ///
    /// If there is no memory, or it is in the root image and that is not at hand (see [`Checkpoint::with_image`]).
    pub fn read_phys(&self, addr: u64, to: &mut [u8]) -> Result<(), MachineError> {
        let image = self.image.as_ref().map(|image| &*image.file);
        self.inner
            .memory
            .read(addr, to, image)
            .ok_or(MachineError::Access(addr))
    }

    /// Copies memory at a virtual address, by the page tables that were in use. They may be anything in a guest that went
    /// astray (R9).
    ///
    /// # Errors
    ///
    /// If something there is not mapped, or not to memory.
    pub fn read_virt(&self, addr: u64, to: &mut [u8]) -> Result<(), MachineError> {
        let (mut addr, mut to) = (addr, to);
        while !to.is_empty() {
            let left = PAGE_SIZE - addr % PAGE_SIZE;
            let (now, rest) = to.split_at_mut(to.len().min(left as usize));
            let phys = self.translate(addr).ok_or(MachineError::Access(addr))?;
            self.read_phys(phys, now)?;
            addr = addr.wrapping_add(left);
            to = rest;
        }
        Ok(())
    }

    /// The guest-physical address that a virtual one leads to.
    #[must_use]
    pub fn translate(&self, addr: u64) -> Option<u64> {
        walk(self.inner.vcpu.sregs.cr3, addr, &mut |entry| {
            let mut word = [0; 8];
            self.read_phys(entry, &mut word).ok()?;
            Some(u64::from_le_bytes(word))
        })
    }

    /// The pages that are kept, with their guest-physical addresses, ascending in each range. What is not among them is zero, or
    /// what the root image's file says.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &Page)> {
        self.inner.memory.ranges.iter().flat_map(|range| {
            let pages = range.map.iter();
            pages.map(|(at, page)| (range.start + at as u64 * PAGE_SIZE, &**page))
        })
    }
}
