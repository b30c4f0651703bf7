//! Guest memory: RAM as private anonymous memory, and the root image as a private mapping of its file, so that all replicas
//! share the page cache.

use crate::error::{MAX_IMAGE, MachineError};
use quorate_abi::PAGE_SIZE;
use quorate_abi::boot::Range;
use quorate_abi::map::{HIGH_RAM_START, LOW_RAM_END, MAX_RAM, MIN_RAM};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::Arc;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// Guest RAM as the VMM and the devices access it. Every write through it is noted in the region's bitmap: KVM's dirty log
/// names only what the guest writes.
pub(crate) type Ram = GuestMemoryMmap<AtomicBitmap>;

/// Size of a large page in bytes: the direct map uses them on the guest's side, transparent huge pages on the host's.
pub(crate) const LARGE_PAGE: u64 = 2 << 20;

/// Where the spare page is, for moments: in the hole between low and high RAM, behind KVM's own pages (`machine.rs`).
const SPARE: u64 = 0xfffc_1000;

/// A piece of this process's address space, 2 MiB aligned, that goes back to the host when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    addr: *mut u8,
    len: usize,
}

// SAFETY: The pointer is only an address range that this value owns. Accesses go through vm-memory, which
// is made for memory that other parties (the guest) change at any time.
unsafe impl Send for Mapping {}
// SAFETY: As above: through a shared reference nothing is handed out but the address and copies of bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves and maps `len` bytes (a multiple of the page size) of zeroes.
    fn anonymous(len: u64, what: &'static str) -> Result<Self, MachineError> {
        let failed = |source| MachineError::Map {
            bytes: len,
            what,
            source,
        };
        let too_large = || failed(io::Error::from_raw_os_error(libc::ENOMEM));
        let size = usize::try_from(len).map_err(|_| too_large())?;
        let slack = LARGE_PAGE as usize;
        let padded = size.checked_add(slack).ok_or_else(too_large)?;
        // SAFETY: A new private mapping at an address of the kernel's choice affects nothing that exists.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                padded,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        let base = base.cast::<u8>();
        let before = base.align_offset(slack);
        // SAFETY: `before` is below `slack`, so the result lies within the mapping.
        let addr = unsafe { base.add(before) };
        // SAFETY: `size` bytes from `addr` on, and the slack behind them, lie within the mapping.
        let end = unsafe { addr.add(size) };
        unmap(base, before);
        unmap(end, slack - before);
        Ok(Self { addr, len: size })
    }

    pub(crate) fn addr(&self) -> u64 {
        self.addr as u64
    }

    pub(crate) fn pages(&self) -> usize {
        self.len / PAGE_SIZE as usize
    }

    /// Where a page is; `None` beyond the mapping. The pointer is valid for a page as long as `self` lives.
    pub(crate) fn page(&self, index: usize) -> Option<*mut u8> {
        // SAFETY: The page lies within the mapping, by the check before.
        (index < self.pages()).then(|| unsafe { self.addr.add(index * PAGE_SIZE as usize) })
    }

    /// The pages that the host has for this mapping alone, as bits: zeroes that were read count, what is still the file's does not.
    pub(crate) fn own_pages(&self) -> Result<Vec<u64>, MachineError> {
        // Linux, Documentation/admin-guide/mm/pagemap.rst: 8 bytes for each page.
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const FILE: u64 = 1 << 61;
        const AT_ONCE: usize = 8192;
        let pagemap = File::open("/proc/self/pagemap").map_err(MachineError::Pagemap)?;
        let mut bits = vec![0_u64; self.pages().div_ceil(64)];
        let mut buffer = vec![0_u8; AT_ONCE * 8];
        let first = self.addr() / PAGE_SIZE;
        let mut index = 0;
        while index < self.pages() {
            let count = AT_ONCE.min(self.pages() - index);
            let entries = &mut buffer[..count * 8];
            pagemap
                .read_exact_at(entries, (first + index as u64) * 8)
                .map_err(MachineError::Pagemap)?;
            for entry in entries.as_chunks::<8>().0 {
                let entry = u64::from_le_bytes(*entry);
                if entry & (PRESENT | SWAPPED) != 0 && entry & FILE == 0 {
                    bits[index / 64] |= 1 << (index % 64);
                }
                index += 1;
            }
        }
        Ok(bits)
    }

    /// Makes a page what it was when nobody had written to it: zeroes, or what is in the file that is mapped there.
    pub(crate) fn forget(&self, index: usize) -> io::Result<()> {
        let page = self.page(index).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: The page is the mapping's own, which is private: only its copy goes away.
        let done = unsafe { libc::madvise(page.cast(), PAGE_SIZE as usize, libc::MADV_DONTNEED) };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Bytes of this mapping that the host has backed with pages of its own.
    pub(crate) fn resident(&self) -> u64 {
        let mut pages = vec![0_u8; self.len.div_ceil(PAGE_SIZE as usize)];
        // SAFETY: The range is mapped as long as `self` lives, and `pages` has a byte for each of its pages.
        let done = unsafe { libc::mincore(self.addr.cast(), self.len, pages.as_mut_ptr()) };
        if done != 0 {
            return 0;
        }
        pages.iter().filter(|&&page| page & 1 != 0).count() as u64 * PAGE_SIZE
    }
}

fn unmap(addr: *mut u8, len: usize) {
    if len != 0 {
        // SAFETY: The callers own the range and do not use it afterwards. It can fail only for lack of kernel
        // memory when it splits a mapping; the range then stays reserved, which harms nothing.
        unsafe { libc::munmap(addr.cast(), len) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.addr, self.len);
    }
}

/// One KVM memory slot.
#[derive(Debug)]
pub(crate) struct Slot {
    pub guest: u64,
    /// Shared with whoever copies pages in the background, so that it stays mapped as long as that takes.
    pub mapping: Arc<Mapping>,
    pub len: u64,
}

/// All memory of one machine. Must outlive the VM that has it as memory slots.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    // Declared before `slots`, so it goes first: it refers to the mappings there without owning them.
    pub ram: Ram,
    /// RAM, then the image.
    pub slots: Vec<Slot>,
    /// RAM, ascending.
    pub ranges: Vec<Range>,
    /// Length 0 if there is none.
    pub image: Range,
    /// A page that the guest never sees; see `Machine::forget_translations`.
    pub spare: Slot,
}

impl GuestMemory {
    pub(crate) fn new(bytes: u64, image: Option<&File>) -> Result<Self, MachineError> {
        let ranges = ram_ranges(bytes)?;
        let mut slots = Vec::new();
        let mut regions = Vec::new();
        for range in &ranges {
            let mapping = Mapping::anonymous(range.len, "guest memory")?;
            // SAFETY: The range is the mapping's own. Advice never changes what memory contains.
            unsafe { libc::madvise(mapping.addr.cast(), mapping.len, libc::MADV_HUGEPAGE) };
            let access = || MachineError::Access(range.start);
            // SAFETY: The mapping stays as long as `slots`, which lives as long as `ram` (see the order of the fields).
            let region = unsafe {
                MmapRegion::build_raw(
                    mapping.addr,
                    mapping.len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                )
            }
            .map_err(|_| access())?;
            regions
                .push(GuestRegionMmap::new(region, GuestAddress(range.start)).ok_or_else(access)?);
            slots.push(Slot {
                guest: range.start,
                mapping: Arc::new(mapping),
                len: range.len,
            });
        }
        let ram = Ram::from_regions(regions).map_err(|_| MachineError::Access(0))?;
        let image = match image {
            None => Range::default(),
            Some(file) => {
                let (slot, len) = map_image(file)?;
                let start = slot.guest;
                slots.push(slot);
                Range { start, len }
            }
        };
        let spare = Slot {
            guest: SPARE,
            mapping: Arc::new(Mapping::anonymous(PAGE_SIZE, "a spare page")?),
            len: PAGE_SIZE,
        };
        Ok(Self {
            ram,
            slots,
            ranges,
            image,
            spare,
        })
    }

    /// End of the part of RAM that is below the hole for devices.
    pub(crate) fn low_end(&self) -> u64 {
        self.ranges.first().map_or(0, |range| range.len)
    }

    /// Bytes of RAM that the host has backed with pages.
    pub(crate) fn resident_ram(&self) -> u64 {
        let ram = self.slots.iter().take(self.ranges.len());
        ram.map(|slot| slot.mapping.resident()).sum()
    }
}

/// Where RAM lies in guest-physical memory.
pub(crate) fn ram_ranges(bytes: u64) -> Result<Vec<Range>, MachineError> {
    if bytes < MIN_RAM {
        return Err(MachineError::MemoryTooSmall {
            given: bytes,
            needed: MIN_RAM,
        });
    }
    if bytes > MAX_RAM {
        return Err(MachineError::MemoryTooLarge(bytes));
    }
    if !bytes.is_multiple_of(LARGE_PAGE) {
        return Err(MachineError::MemoryUneven(bytes));
    }
    let low = bytes.min(LOW_RAM_END);
    let mut ranges = vec![Range { start: 0, len: low }];
    if bytes > low {
        ranges.push(Range {
            start: HIGH_RAM_START,
            len: bytes - low,
        });
    }
    Ok(ranges)
}

/// Maps the image's file privately over zeroes up to the next 2 MiB, since the guest maps it with large pages. Returns
/// the slot and the image's length, rounded up to a page.
fn map_image(file: &File) -> Result<(Slot, u64), MachineError> {
    let bytes = file.metadata().map_err(MachineError::Image)?.len();
    if bytes == 0 {
        return Err(MachineError::ImageEmpty);
    }
    if bytes > MAX_IMAGE {
        return Err(MachineError::ImageTooLarge(bytes));
    }
    let len = bytes.next_multiple_of(PAGE_SIZE);
    let slot_len = bytes.next_multiple_of(LARGE_PAGE);
    let mapping = Mapping::anonymous(slot_len, "the root image")?;
    // SAFETY: This replaces pages of a mapping that is ours and that nobody uses yet. Both lengths fit: they are at
    // most the mapping's.
    let over = unsafe {
        libc::mmap(
            mapping.addr.cast(),
            len as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            0,
        )
    };
    if over == libc::MAP_FAILED {
        return Err(MachineError::Image(io::Error::last_os_error()));
    }
    Ok((
        Slot {
            guest: quorate_abi::map::IMAGE_BASE,
            mapping: Arc::new(mapping),
            len: slot_len,
        },
        len,
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::io::Write;
    use vm_memory::{Bytes, GuestMemory as _, Permissions};

    #[test]
    fn memory_sizes_are_checked() {
        assert!(matches!(
            ram_ranges(MIN_RAM - LARGE_PAGE),
            Err(MachineError::MemoryTooSmall { .. })
        ));
        assert!(matches!(
            ram_ranges(MAX_RAM + LARGE_PAGE),
            Err(MachineError::MemoryTooLarge(_))
        ));
        assert!(matches!(
            ram_ranges(MIN_RAM + 4096),
            Err(MachineError::MemoryUneven(_))
        ));
        let ranges = ram_ranges(8 << 30).unwrap();
        assert_eq!(ranges.iter().map(|range| range.len).sum::<u64>(), 8 << 30);
        assert_eq!(
            (ranges[0].len, ranges[1].start),
            (LOW_RAM_END, HIGH_RAM_START)
        );
        assert_eq!(ram_ranges(LOW_RAM_END).unwrap().len(), 1);
    }

    #[test]
    fn ram_is_zero_and_not_backed_before_it_is_used() {
        let memory = GuestMemory::new(MIN_RAM, None).unwrap();
        assert_eq!(memory.resident_ram(), 0);
        memory.ram.write_obj(1_u8, GuestAddress(0x1000)).unwrap();
        assert!(memory.resident_ram() > 0);
        assert_eq!(memory.ram.read_obj::<u8>(GuestAddress(0x1001)).unwrap(), 0);
        assert!(
            !memory
                .ram
                .check_range(GuestAddress(MIN_RAM - 1), 2, Permissions::Read)
        );
    }

    #[test]
    fn the_image_is_private_padded_and_not_reachable_for_devices() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        let memory = GuestMemory::new(MIN_RAM, Some(&file)).unwrap();
        assert_eq!(memory.image.len, 8192);
        let slot = &memory.slots[1];
        assert_eq!(slot.len, LARGE_PAGE);
        // SAFETY: The slot is mapped, and this test is the only one who uses it.
        let bytes = unsafe { std::slice::from_raw_parts(slot.mapping.addr, LARGE_PAGE as usize) };
        assert!(bytes[..5000].iter().all(|&byte| byte == 7));
        assert!(bytes[5000..].iter().all(|&byte| byte == 0));
        let at = GuestAddress(memory.image.start);
        assert!(!memory.ram.check_range(at, 1, Permissions::Read));
    }

    #[test]
    fn an_empty_image_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let error = GuestMemory::new(MIN_RAM, Some(&file)).unwrap_err();
        assert!(matches!(error, MachineError::ImageEmpty));
    }
}
