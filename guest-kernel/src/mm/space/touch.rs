//! Making pages present: populating, a program's faults, checks before the kernel itself makes an access.

use super::*;

impl Space {
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
                let e = paging::entry_or_create(self.root, va).map_err(|_| Fault::NoMemory)?;
                if *e & PRESENT == 0 {
                    let (owned, changed) = populate_page(vma_start, vma, va, e)?;
                    self.resident += u64::from(owned);
                    self.flush |= changed;
                    if vma.is_code() {
                        note_code(&mut self.fresh_code, va);
                    }
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
        let e = paging::entry_or_create(self.root, page).map_err(|_| Fault::NoMemory)?;
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
        if vma.is_code() {
            note_code(&mut self.fresh_code, page);
        }
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
            && let Some(e) = paging::entry(self.root, page)
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
            && let Some(e) = paging::entry(self.root, va)
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
            match paging::entry(self.root, va) {
                Some(e) if *e & PRESENT != 0 && (access != Access::Write || *e & WRITE != 0) => {}
                _ => self.access(va, access)?,
            }
            va += PAGE_SIZE;
        }
        Ok(())
    }

    /// A writable copy of the page at `va` (mapped, executable): for rewriting code. Returns its direct-map address.
    ///
    /// # Errors
    /// `ENOMEM`, `EFAULT`.
    pub fn private_code_page(&mut self, va: u64) -> Result<u64> {
        let e = paging::entry(self.root, va).ok_or(EFAULT)?;
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

pub(super) fn copy_of(frame: u64) -> Result<u64> {
    let copy = frames::alloc()?;
    let from = crate::mm::readable(frame);
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
            if vma.name == SPARSE {
                budget::take(1).map_err(|_| Fault::NoMemory)?;
            }
            let frame = frames::alloc().inspect_err(|_| {
                if vma.name == SPARSE {
                    budget::give(1);
                }
            });
            *e = frame.map_err(|_| Fault::NoMemory)? | OWNED | bits;
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
                EAGAIN => {
                    crate::mm::want(file, index);
                    Fault::NotLoaded
                }
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
