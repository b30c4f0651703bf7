//! Owned pages: for files in memory and mappings.
use crate::errno::Result;

/// One owned, zeroed 4 KiB page of RAM, charged to the [budget](super::budget); freed when dropped.
pub struct Page {
    #[cfg(test)]
    bytes: core::cell::UnsafeCell<alloc::boxed::Box<[u8; 4096]>>,
    #[cfg(not(test))]
    physical: u64,
}

impl Page {
    /// A zeroed page.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new_zeroed() -> Result<Self> {
        super::budget::take(1)?;
        #[cfg(test)]
        return Ok(Self {
            bytes: core::cell::UnsafeCell::new(alloc::boxed::Box::new([0; 4096])),
        });
        #[cfg(not(test))]
        Ok(Self {
            physical: super::frames::alloc().inspect_err(|_| super::budget::give(1))?,
        })
    }

    /// Physical address.
    pub fn physical(&self) -> u64 {
        #[cfg(test)]
        return self.bytes.get() as u64;
        #[cfg(not(test))]
        self.physical
    }

    fn pointer(&self) -> *mut u8 {
        #[cfg(test)]
        // SAFETY: the box is not replaced while the page lives.
        return unsafe { (*self.bytes.get()).as_mut_ptr() };
        #[cfg(not(test))]
        (super::frames::to_direct(self.physical) as *mut u8)
    }

    /// Copies out of the page. Pages may be shared with a program's mapping, hence copies instead of references.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        assert!(offset + to.len() <= 4096);
        // SAFETY: within the page, which this object owns.
        unsafe { core::ptr::copy(self.pointer().add(offset), to.as_mut_ptr(), to.len()) };
    }

    /// Copies into the page.
    pub fn write(&self, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= 4096);
        // SAFETY: within the page, which this object owns.
        unsafe { core::ptr::copy(from.as_ptr(), self.pointer().add(offset), from.len()) };
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        super::budget::give(1);
        #[cfg(not(test))]
        super::frames::free(self.physical);
    }
}
