//! Changing mappings: protection, discarding, moving, the break.

use super::touch::copy_of;
use super::*;

impl Space {
    /// Changes the protection of a range.
    ///
    /// # Errors
    /// `ENOMEM` if part of it is not mapped; `EACCES` for writing a shared file opened for reading.
    pub fn protect(&mut self, start: u64, end: u64, prot: u8) -> Result<()> {
        let mut va = start;
        while va < end {
            va = self.find(va).ok_or(ENOMEM)?.1.end;
        }
        if prot & WRITE_PROT != 0 && !self.may_write(start, end) {
            return Err(EACCES);
        }
        self.split(start);
        self.split(end);
        let parts: Vec<u64> = self.vmas.range(start..end).map(|(s, _)| *s).collect();
        self.charge_for(&parts, prot)?;
        for s in &parts {
            let Some(vma) = self.vmas.get_mut(s) else {
                continue;
            };
            let old = vma.prot;
            vma.prot = prot;
            let bits = vma.permissions();
            let private_file = matches!(vma.backing, Backing::File { shared: false, .. });
            let mut flush = false;
            let mut resident = 0;
            let mut out_of_memory = false;
            paging::for_each(self.root, *s, vma.end, |_, e| {
                let mut frame = *e & paging::ADDRESS;
                let mut owned = *e & OWNED;
                if private_file && prot & WRITE_PROT != 0 && owned == 0 {
                    match copy_of(frame) {
                        Ok(copy) => {
                            frame = copy;
                            owned = OWNED;
                            flush = true;
                            resident += 1;
                        }
                        Err(_) => {
                            out_of_memory = true;
                            return;
                        }
                    }
                }
                *e = frame | owned | bits;
            });
            if old & !prot != 0 || old == 0 || (prot & WRITE_PROT != 0 && old & EXEC != 0) {
                flush = true;
            }
            self.resident += resident;
            self.flush |= flush;
            if out_of_memory {
                return Err(ENOMEM);
            }
        }
        for s in parts {
            self.merge(s);
        }
        Ok(())
    }

    /// Charges the mappings at `parts` that have to be once they have protection `prot`: all or none.
    fn charge_for(&mut self, parts: &[u64], prot: u8) -> Result<()> {
        let newly = |start: &u64, vma: &Vma| -> u64 {
            let charged = Vma {
                charged: true,
                ..vma.clone()
            };
            match !vma.charged && vma.wants_charge(prot) {
                true => charged.charge(*start),
                false => 0,
            }
        };
        let found = parts.iter().filter_map(|s| Some((s, self.vmas.get(s)?)));
        let more: u64 = found.map(|(start, vma)| newly(start, vma)).sum();
        budget::take(more)?;
        for start in parts {
            if let Some(vma) = self.vmas.get_mut(start) {
                vma.charged |= vma.wants_charge(prot);
            }
        }
        Ok(())
    }

    /// MADV_DONTNEED: the next access sees zeroes (or the file's content).
    ///
    /// # Errors
    /// `ENOMEM` if part of the range is not mapped.
    pub fn discard(&mut self, start: u64, end: u64) -> Result<()> {
        let mut va = start;
        while va < end {
            let (_, vma) = self.find(va).ok_or(ENOMEM)?;
            let stop = vma.end.min(end);
            let name = vma.name;
            match vma.backing {
                Backing::Anonymous if stop - va <= EAGER_ANONYMOUS => {
                    // Cheaper than a flush and new faults: clear in place.
                    paging::for_each(self.root, va, stop, |_, e| {
                        let page = frames::to_direct(*e & paging::ADDRESS) as *mut u8;
                        // SAFETY: the entry maps a page that belongs to this mapping.
                        unsafe { core::ptr::write_bytes(page, 0, PAGE_SIZE as usize) };
                    });
                }
                Backing::File { shared: true, .. } => {}
                _ => self.clear(va, stop, name),
            }
            va = stop;
        }
        Ok(())
    }

    /// See [`super::forget_file_pages`].
    pub fn forget_file_pages(&mut self, map_key: usize, first: u64, end: u64) {
        let mut gone: Vec<(u64, u64)> = Vec::new();
        let mut dropped: Vec<Rc<Page>> = Vec::new();
        for (start, vma) in &mut self.vmas {
            let Backing::File { file, offset, .. } = &vma.backing else {
                continue;
            };
            let base = offset / PAGE_SIZE;
            let last = base + (vma.end - start) / PAGE_SIZE;
            let (from, to) = (first.max(base), end.min(last));
            if from >= to || file.map_key() != map_key {
                continue;
            }
            let (from, to) = (
                start + (from - base) * PAGE_SIZE,
                start + (to - base) * PAGE_SIZE,
            );
            let mut tail = vma.held.split_off(&from);
            vma.held.append(&mut tail.split_off(&to));
            dropped.extend(tail.into_values());
            gone.push((from, to));
        }
        // The translations go before the pages can be used for anything else.
        for (from, to) in gone {
            self.clear(from, to, "");
        }
    }

    /// Whether a range may become writable: not where a file is shared that was opened for reading.
    fn may_write(&self, start: u64, end: u64) -> bool {
        self.vmas
            .range(..end)
            .rev()
            .take_while(|(_, vma)| vma.end > start)
            .all(|(_, vma)| vma.may_write)
    }

    /// The mapping at `start` must never become writable.
    pub fn forbid_writing(&mut self, start: u64) {
        if let Some(vma) = self.vmas.get_mut(&start) {
            vma.may_write = false;
        }
    }

    /// `mremap`.
    ///
    /// # Errors
    /// `EFAULT`, `EINVAL`, `ENOMEM` as Linux.
    pub fn remap(
        &mut self,
        old: u64,
        old_len: u64,
        new_len: u64,
        may_move: bool,
        fixed: Option<u64>,
    ) -> Result<u64> {
        let (start, vma) = self.find(old).ok_or(EFAULT)?;
        if old + old_len > vma.end {
            return Err(EFAULT);
        }
        let arena = match vma.backing {
            Backing::File { .. } => Arena::Libraries,
            Backing::Anonymous => Arena::Memory,
        };
        if fixed.is_none() {
            if new_len <= old_len {
                self.unmap(old + new_len, old + old_len);
                return Ok(old);
            }
            let (from, to) = (old + old_len, old + new_len);
            if vma.end == from && self.allowed(old, new_len) && self.is_free(from, to) {
                let mut tail = vma.clone();
                if let Backing::File { offset, .. } = &mut tail.backing {
                    *offset += from - start;
                }
                let (prot, name) = (tail.prot, tail.name);
                self.map(from, to - from, prot, tail.backing, name, false)?;
                return Ok(old);
            }
            if !may_move {
                return Err(ENOMEM);
            }
        }
        let to = match fixed {
            Some(to) => to,
            None => self.place(0, new_len, arena)?,
        };
        if vma.charged {
            budget::check(new_len.saturating_sub(old_len) / PAGE_SIZE)?;
        }
        if fixed.is_some() {
            self.unmap(to, to + new_len);
            if new_len < old_len {
                self.unmap(old + new_len, old + old_len);
            }
        }
        let keep = old_len.min(new_len);
        self.split(old);
        self.split(old + keep);
        let Some(mut vma) = self.vmas.remove(&old) else {
            return Err(EFAULT);
        };
        vma.end = to + keep;
        vma.sequential = (0, 0);
        vma.held = core::mem::take(&mut vma.held)
            .into_iter()
            .map(|(va, page)| (va - old + to, page))
            .collect();
        let tail = (new_len > keep).then(|| vma.clone());
        self.vmas.insert(to, vma);
        let mut moved: Vec<(u64, u64)> = Vec::new();
        paging::for_each(self.root, old, old + keep, |va, e| {
            moved.push((va - old + to, *e));
            *e = 0;
        });
        if !moved.is_empty() {
            paging::flush(self.root);
        }
        for (va, e) in moved {
            *paging::entry_or_create(self.root, va)? = e;
        }
        if let Some(mut tail) = tail {
            if let Backing::File { offset, .. } = &mut tail.backing {
                *offset += keep;
            }
            self.map(
                to + keep,
                new_len - keep,
                tail.prot,
                tail.backing,
                tail.name,
                false,
            )?;
        }
        Ok(to)
    }

    /// `brk`: returns the break, which is unchanged if the request cannot be met.
    pub fn set_brk(&mut self, to: u64) -> u64 {
        let base = self.layout.heap;
        if self.brk == 0 {
            self.brk = base;
        }
        if to < base || to > base + HEAP_ARENA {
            return self.brk;
        }
        let (old, new) = (
            self.brk.next_multiple_of(PAGE_SIZE),
            to.next_multiple_of(PAGE_SIZE),
        );
        if new > old {
            let prot = READ | WRITE_PROT;
            if !self.is_free(old, new)
                || self
                    .map(old, new - old, prot, Backing::Anonymous, "[heap]", false)
                    .is_err()
            {
                return self.brk;
            }
        } else {
            self.unmap(new, old);
        }
        self.brk = to;
        to
    }
}
