//! Copying a space for `fork`. Pages are copied at once: a fault that copies a page costs here as much as copying a hundred
//! (docs/numbers.md), and which pages a program writes would be up to its layout (R8). What cannot change is shared.

use super::touch::copy_of;
use super::*;

impl Space {
    /// Fills `child`, which is empty, with all that this one has: private pages are copied, pages of shared mappings and of the root
    /// image are the same ones.
    ///
    /// # Errors
    /// `ENOMEM`; then the child has a part of it.
    pub(in crate::mm) fn copy_to(&self, child: &mut Self) -> Result<()> {
        budget::take(self.charge())?;
        child.vmas = self.vmas.clone();
        child.code = self.code.clone();
        child.interpreter = self.interpreter;
        child.brk = self.brk;
        child.size = self.size;
        let mut result = Ok(());
        for (start, vma) in &self.vmas {
            paging::for_each(self.root, *start, vma.end, |va, e| {
                if result.is_ok() {
                    result = child.copy_page(va, *e, vma.name == SPARSE);
                }
            });
        }
        result
    }

    fn copy_page(&mut self, va: u64, from: u64, sparse: bool) -> Result<()> {
        let to = paging::entry_or_create(self.root, va)?;
        if from & OWNED == 0 {
            *to = from;
            return Ok(());
        }
        let charge = u64::from(sparse);
        budget::take(charge)?;
        let copy = copy_of(from & paging::ADDRESS).inspect_err(|_| budget::give(charge))?;
        *to = from & !paging::ADDRESS | copy;
        self.resident += 1;
        Ok(())
    }
}
