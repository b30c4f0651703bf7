//! Guest memory as a checkpoint has it, and how it gets there and back.
//!
//! RAM is zeroes but for the pages that are kept; the root image is what its file says but for the pages that the guest changed
//! (the kernel maps it read-only, but a guest owns its page tables).

use super::pages::{Page, PageMap};
use crate::error::MachineError;
use crate::memory::{GuestMemory, Mapping};
use quorate_abi::PAGE_SIZE;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::Arc;

/// Page numbers as bits, 64 in a word, as KVM's dirty log has them.
pub(crate) type Bits = Vec<u64>;

/// The numbers of the bits that are set.
pub(crate) fn ones(bits: &[u64]) -> impl Iterator<Item = usize> {
    bits.iter().enumerate().flat_map(|(word, &bits)| {
        let mut left = bits;
        std::iter::from_fn(move || {
            let at = (left != 0).then(|| left.trailing_zeros())?;
            left &= left - 1;
            Some(word * 64 + at as usize)
        })
    })
}

/// Sets in `to` what is set in `from`.
pub(crate) fn merge(to: &mut Bits, from: &[u64]) {
    if to.len() < from.len() {
        to.resize(from.len(), 0);
    }
    for (to, from) in to.iter_mut().zip(from) {
        *to |= from;
    }
}

/// What a page is that a map does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// RAM.
    Zeroes,
    /// The root image.
    File,
}

/// What was done with how many pages.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Looked at.
    pub compared: u64,
    /// Of those, not what they were to be.
    pub changed: u64,
    /// Of those, copied into a checkpoint; the rest are zeroes now.
    pub copied: u64,
}

/// One range of guest-physical memory.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    /// First address.
    pub start: u64,
    pub backing: Backing,
    pub map: PageMap,
}

/// All guest memory: one range for each KVM slot, in their order.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub ranges: Vec<Range>,
}

impl Memory {
    /// Memory as it is before anybody wrote to it.
    pub(crate) fn pristine(memory: &GuestMemory) -> Self {
        let slots = memory.slots.iter().enumerate();
        let ranges = slots.map(|(at, slot)| Range {
            start: slot.guest,
            backing: match at < memory.ranges.len() {
                true => Backing::Zeroes,
                false => Backing::File,
            },
            map: PageMap::new(slot.mapping.pages()),
        });
        Self {
            ranges: ranges.collect(),
        }
    }

    /// How many pages are kept.
    pub(crate) fn kept(&self) -> u64 {
        let counts = self.ranges.iter().map(|range| range.map.kept());
        counts.sum::<usize>() as u64
    }

    /// Whether both have the same ranges.
    pub(crate) fn same_shape(&self, other: &Self) -> bool {
        self.ranges.len() == other.ranges.len()
            && self.ranges.iter().zip(&other.ranges).all(|(one, two)| {
                (one.start, one.backing, one.map.len()) == (two.start, two.backing, two.map.len())
            })
    }

    /// Takes the pages that `suspects` names out of guest memory, as far as they are not what is here already. `each` is told
    /// of every one: range, page, and whether it had changed.
    pub(crate) fn update(
        &mut self,
        memory: &[Arc<Mapping>],
        suspects: &[Bits],
        each: &mut dyn FnMut(usize, usize, bool),
    ) -> Seen {
        let mut seen = Seen::default();
        let ranges = self.ranges.iter_mut().zip(memory).zip(suspects);
        for (number, ((range, mapping), suspects)) in ranges.enumerate() {
            for at in ones(suspects) {
                let Some(page) = mapping.page(at) else {
                    break; // The log's last word may have more bits than the range has pages.
                };
                let zeroes = range.backing == Backing::Zeroes;
                let changed = match range.map.get(at) {
                    Some(kept) => !equals(page, kept),
                    None => !zeroes || !is_zero(page),
                };
                seen.compared += 1;
                if changed {
                    seen.changed += 1;
                    let page = if zeroes && is_zero(page) {
                        None
                    } else {
                        seen.copied += 1;
                        Some(copy(page))
                    };
                    range.map.set(at, page);
                }
                each(number, at, changed);
            }
        }
        seen
    }

    /// Takes every page out of guest memory, whatever any log says. A page that is what `known` has is shared with it.
    pub(crate) fn scan(
        memory: &GuestMemory,
        known: Option<&Self>,
    ) -> Result<(Self, Seen), MachineError> {
        let mut all = Self::pristine(memory);
        let mut seen = Seen::default();
        for (at, (range, slot)) in all.ranges.iter_mut().zip(&memory.slots).enumerate() {
            let known = known.and_then(|known| known.ranges.get(at));
            for index in ones(&slot.mapping.own_pages()?) {
                let Some(page) = slot.mapping.page(index) else {
                    break;
                };
                seen.compared += 1;
                if range.backing == Backing::Zeroes && is_zero(page) {
                    continue;
                }
                let shared = known
                    .and_then(|known| known.map.get(index))
                    .filter(|known| equals(page, known));
                let page = shared.cloned().unwrap_or_else(|| {
                    seen.changed += 1;
                    seen.copied += 1;
                    copy(page)
                });
                range.map.set(index, Some(page));
            }
        }
        Ok((all, seen))
    }

    /// Makes guest memory what is kept here: every page. It writes past the log: whoever calls it resets that.
    pub(crate) fn put(&self, memory: &GuestMemory) -> Result<Seen, MachineError> {
        let mut seen = Seen::default();
        for (range, slot) in self.ranges.iter().zip(&memory.slots) {
            let own = slot.mapping.own_pages()?;
            let mut wanted = own.clone();
            for (index, _) in range.map.iter() {
                set(&mut wanted, index);
            }
            for index in ones(&wanted) {
                let Some(page) = slot.mapping.page(index) else {
                    break;
                };
                seen.compared += 1;
                match (range.map.get(index), range.backing) {
                    (Some(kept), _) => {
                        if !equals(page, kept) {
                            seen.changed += 1;
                            write(page, kept);
                        }
                    }
                    // What the host has no page for reads as zeroes, or as the file.
                    (None, _) if !is_set(&own, index) => {}
                    (None, Backing::Zeroes) => {
                        if !is_zero(page) {
                            seen.changed += 1;
                            write(page, &[0; PAGE_SIZE as usize]);
                        }
                    }
                    (None, Backing::File) => {
                        seen.changed += 1;
                        slot.mapping.forget(index).map_err(MachineError::Forget)?;
                    }
                }
            }
        }
        Ok(seen)
    }

    /// As [`Memory::put`], only the pages in `which`; `each` is told of every one: range, page, and whether it had changed. What the
    /// host has for a page is not asked, which would cost a look at all of memory.
    pub(crate) fn put_some(
        &self,
        memory: &GuestMemory,
        which: &[Bits],
        each: &mut dyn FnMut(usize, usize, bool),
    ) -> Result<Seen, MachineError> {
        let mut seen = Seen::default();
        let ranges = self.ranges.iter().zip(&memory.slots).zip(which);
        for (number, ((range, slot), pages)) in ranges.enumerate() {
            for index in ones(pages) {
                let Some(page) = slot.mapping.page(index) else {
                    break;
                };
                let changed = match (range.map.get(index), range.backing) {
                    (Some(kept), _) => {
                        let changed = !equals(page, kept);
                        if changed {
                            write(page, kept);
                        }
                        changed
                    }
                    (None, Backing::Zeroes) => {
                        let changed = !is_zero(page);
                        if changed {
                            write(page, &[0; PAGE_SIZE as usize]);
                        }
                        changed
                    }
                    (None, Backing::File) => {
                        slot.mapping.forget(index).map_err(MachineError::Forget)?;
                        true
                    }
                };
                seen.compared += 1;
                seen.changed += u64::from(changed);
                each(number, index, changed);
            }
        }
        Ok(seen)
    }

    /// The page at a guest-physical address: number of the range, and of the page in it.
    pub(crate) fn page_at(&self, addr: u64) -> Option<(usize, usize)> {
        self.ranges.iter().enumerate().find_map(|(number, range)| {
            let index = usize::try_from(addr.checked_sub(range.start)? / PAGE_SIZE).ok()?;
            (index < range.map.len()).then_some((number, index))
        })
    }

    /// Copies memory at a guest-physical address. `image` is the root image's file.
    pub(crate) fn read(&self, addr: u64, to: &mut [u8], image: Option<&File>) -> Option<()> {
        let mut addr = addr;
        let mut to = to;
        while !to.is_empty() {
            let within = (addr % PAGE_SIZE) as usize;
            let take = to.len().min(PAGE_SIZE as usize - within);
            let (now, rest) = to.split_at_mut(take);
            let (range, index) = self.find(addr)?;
            match (range.map.get(index), range.backing) {
                (Some(page), _) => now.copy_from_slice(&page[within..within + take]),
                (None, Backing::Zeroes) => now.fill(0),
                (None, Backing::File) => read_padded(image?, addr - range.start, now)?,
            }
            to = rest;
            addr = addr.checked_add(take as u64)?;
        }
        Some(())
    }

    /// The range that has this address, and the number of the page there.
    fn find(&self, addr: u64) -> Option<(&Range, usize)> {
        self.ranges.iter().find_map(|range| {
            let index = usize::try_from(addr.checked_sub(range.start)? / PAGE_SIZE).ok()?;
            (index < range.map.len()).then_some((range, index))
        })
    }
}

/// Reads the image's file, with zeroes behind its end, as the guest sees it.
fn read_padded(file: &File, at: u64, mut to: &mut [u8]) -> Option<()> {
    let mut at = at;
    while !to.is_empty() {
        match file.read_at(to, at) {
            Ok(0) => {
                to.fill(0);
                break;
            }
            Ok(done) => {
                to = to.get_mut(done..)?;
                at += done as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(())
}

pub(crate) fn set(bits: &mut Bits, at: usize) {
    if bits.len() <= at / 64 {
        bits.resize(at / 64 + 1, 0);
    }
    bits[at / 64] |= 1 << (at % 64);
}

pub(crate) fn is_set(bits: &[u64], at: usize) -> bool {
    bits.get(at / 64)
        .is_some_and(|word| word >> (at % 64) & 1 != 0)
}

// In the four functions below `page` comes from `Mapping::page`, so it is a page of a mapping that the caller holds. The
// guest does not run meanwhile, with one exception: `Precopy` reads while it does. What that copies is torn at worst, and then
// the log names the page. As for all guest memory, no reference to it is ever made but for this length of time.

fn is_zero(page: *const u8) -> bool {
    let words = page.cast::<[u64; 8]>();
    (0..PAGE_SIZE as usize / 64).all(|at| {
        // SAFETY: Within the page, see above; a page is aligned.
        let line = unsafe { ptr::read_volatile(words.add(at)) };
        line.iter().fold(0, |all, word| all | word) == 0
    })
}

fn equals(page: *const u8, kept: &Page) -> bool {
    // SAFETY: Readable for a page's length, see above. The guest stands still wherever this is called.
    let page = unsafe { &*page.cast::<Page>() };
    page == kept
}

fn copy(page: *const u8) -> Arc<Page> {
    let mut to = Arc::<Page>::new_uninit();
    if let Some(space) = Arc::get_mut(&mut to) {
        // SAFETY: Both are a page long, see above for the source.
        unsafe { ptr::copy_nonoverlapping(page.cast::<Page>(), space.as_mut_ptr(), 1) };
    }
    // SAFETY: It was filled: nobody else had the new `Arc`.
    unsafe { to.assume_init() }
}

fn write(page: *mut u8, kept: &Page) {
    // SAFETY: Writable for a page's length, see above; the guest stands still.
    unsafe { ptr::copy_nonoverlapping(kept, page.cast::<Page>(), 1) };
}
