//! What a restore has to tell KVM of page tables.
//!
//! KVM follows the guest's writes to page tables, not the VMM's. To make it forget everything that it has derived from them is sure, but
//! dear: it waits for other threads of the kernel, and every page that the guest uses is then a fault of its own (together 2.6 ms for
//! a small guest). After an ordinary run only a few entries of the lowest level are others, those of pages that were mapped
//! for the first time. What KVM has derived from such an entry, it drops when the page that the entry leads to goes away on the
//! host's side: the page is given back to the host, and put back from the checkpoint. Everything is forgotten as before when
//!
//! - a page became a table since (by the kernel's count, `Recorder::tables`): KVM may still have something for it that it would use again,
//! - a table above the lowest level was written to,
//! - the address space in use is none of the checkpoint's,
//! - more than [`MOST_ZAPPED`] entries are others,
//! - or the guest crashed or broke a device's rules: nothing that it says is believed then (R9).

use super::memory::{Bits, Memory, is_set, set};
use crate::fault::{Leaf, Read, table_levels};
use quorate_abi::PAGE_SIZE;
use std::collections::BTreeSet;

const PRESENT: u64 = 1;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Entries of the lowest level for which it is worthwhile, at about 3 us each.
const MOST_ZAPPED: usize = 256;

/// The page tables of a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    /// The checkpoint's number.
    pub number: u64,
    /// Top-level tables.
    roots: Vec<u64>,
    /// Guest-physical addresses of the tables of the lowest level.
    lowest: Vec<u64>,
    /// Those of all others, as bits of pages.
    upper: Vec<Bits>,
    /// The kernel's count of tables.
    made: u64,
}

/// What is to be done about translations.
pub(crate) enum Stale {
    /// Everything is to be forgotten.
    All,
    /// These pages (range and page) are to be given back to the host.
    Pages(Vec<(usize, usize)>),
}

impl Tables {
    /// Those of a checkpoint with this memory.
    pub(crate) fn of(number: u64, memory: &Memory, roots: Vec<u64>, made: u64) -> Self {
        let read = |at: u64, to: &mut [u8]| memory.read(at, to, None).is_some();
        let read: Read = &read;
        let mut lowest = BTreeSet::new();
        let mut upper: Vec<Bits> = memory.ranges.iter().map(|_| Bits::new()).collect();
        for &root in &roots {
            table_levels(read, root, &mut |table: u64, leaf: &Leaf| {
                if leaf.shift == 12 {
                    lowest.insert(table);
                } else if let Some((range, page)) = memory.page_at(table) {
                    set(&mut upper[range], page);
                }
            });
        }
        Self {
            number,
            roots,
            lowest: lowest.into_iter().collect(),
            upper,
            made,
        }
    }

    /// The tables above the lowest level.
    pub(crate) fn upper(&self) -> &[Bits] {
        &self.upper
    }

    /// What KVM may have derived from tables that are not what they were, before they are put back. `now` reads the machine's memory,
    /// `suspects` are the pages that may have changed, `made` is the kernel's count now, `root` the address space in use.
    pub(crate) fn stale(
        &self,
        memory: &Memory,
        now: Read,
        suspects: &[Bits],
        made: Option<u64>,
        root: u64,
    ) -> Stale {
        if made != Some(self.made) || !self.roots.contains(&(root & ADDRESS)) {
            return Stale::All;
        }
        let written = |(suspects, upper): (&Bits, &Bits)| {
            suspects.iter().zip(upper).any(|(one, two)| one & two != 0)
        };
        if suspects.iter().zip(&self.upper).any(written) {
            return Stale::All;
        }
        let mut pages = Vec::new();
        for &table in &self.lowest {
            let suspect = memory
                .page_at(table)
                .is_none_or(|(range, page)| suspects.get(range).is_none_or(|s| is_set(s, page)));
            if !suspect {
                continue;
            }
            let (mut before, mut after) = ([0; PAGE_SIZE as usize], [0; PAGE_SIZE as usize]);
            if memory.read(table, &mut before, None).is_none() || !now(table, &mut after) {
                return Stale::All;
            }
            for (before, after) in before
                .as_chunks::<8>()
                .0
                .iter()
                .zip(after.as_chunks::<8>().0)
            {
                let entry = u64::from_le_bytes(*after);
                if before == after || entry & PRESENT == 0 {
                    continue;
                }
                match memory.page_at(entry & ADDRESS) {
                    Some(page) => pages.push(page),
                    // To where no memory is: KVM remembers that, too.
                    None => return Stale::All,
                }
            }
            if pages.len() > MOST_ZAPPED {
                return Stale::All;
            }
        }
        Stale::Pages(pages)
    }
}
