//! The guest kernel's file: an ELF static PIE that starts with a [`KernelHeader`]. It is checked here, loaded by
//! linux-loader, and relocates itself when it starts.

use crate::error::{KernelFault, MachineError};
use crate::memory::Ram;
use crate::paging::{Area, Rights};
use linux_loader::loader::{Elf, KernelLoader};
use quorate_abi::boot::{KERNEL_MAGIC, KernelHeader};
use quorate_abi::{ABI_VERSION, PAGE_SIZE};
use std::io::Cursor;
use vm_memory::GuestAddress;

/// Exception vectors with a handler in the kernel.
pub(crate) const VECTORS: u64 = 32;
/// Largest kernel in memory, in bytes.
const MAX_KERNEL: u64 = 256 << 20;

const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PF_X: u32 = 1;
const PF_W: u32 = 2;

/// A loadable segment, in whole pages.
#[derive(Clone, Copy, Debug)]
struct Segment {
    start: u64,
    end: u64,
    rights: Rights,
    /// Bytes that come from the file.
    file_len: u64,
    offset: u64,
}

/// A kernel file that has been checked.
#[derive(Debug)]
pub(crate) struct Kernel<'a> {
    file: &'a [u8],
    pub header: KernelHeader,
    segments: Vec<Segment>,
    /// Bytes of memory that it takes, from its first byte on; whole pages.
    pub len: u64,
}

impl<'a> Kernel<'a> {
    pub(crate) fn parse(file: &'a [u8]) -> Result<Self, KernelFault> {
        let header = file
            .get(..ELF_HEADER)
            .ok_or(KernelFault::Elf("too short"))?;
        // e_ident: magic, 64-bit, little-endian.
        if header[..6] != *b"\x7fELF\x02\x01" {
            return Err(KernelFault::Elf("wrong magic number"));
        }
        if u16_at(header, 16) != Some(ET_DYN) || u16_at(header, 18) != Some(EM_X86_64) {
            return Err(KernelFault::Elf("wrong type or machine"));
        }
        let short = KernelFault::Elf("truncated");
        let first = u64_at(header, 32).ok_or(short.clone())?;
        let count = u16_at(header, 56).ok_or(short.clone())?;
        let mut segments = Vec::new();
        for index in 0..u64::from(count) {
            let at = first
                .checked_add(index * PROGRAM_HEADER as u64)
                .and_then(|at| usize::try_from(at).ok())
                .ok_or(short.clone())?;
            let entry = at
                .checked_add(PROGRAM_HEADER)
                .and_then(|end| file.get(at..end))
                .ok_or(short.clone())?;
            if let Some(segment) = segment(entry, file.len() as u64, segments.len())? {
                segments.push(segment);
            }
        }
        segments.sort_by_key(|segment| segment.start);
        if let Some(index) = segments
            .windows(2)
            .position(|two| two[0].end > two[1].start)
        {
            return Err(KernelFault::Rights(index + 1));
        }
        let len = segments.last().map_or(0, |segment| segment.end);
        let header = kernel_header(file, segments.first())?;
        let kernel = Self {
            file,
            header,
            segments,
            len,
        };
        kernel.check_offsets()?;
        Ok(kernel)
    }

    fn check_offsets(&self) -> Result<(), KernelFault> {
        let header = &self.header;
        let vectors = u64::from(header.vector_stride) * VECTORS;
        let fields = [
            ("vectors", header.vectors, vectors),
            ("syscall_entry", header.syscall_entry, 1),
            ("entry", header.entry, 1),
            ("spin", header.spin, 2),
        ];
        for (name, offset, len) in fields {
            let inside = self.segments.iter().any(|segment| {
                segment.rights == Rights::Execute
                    && offset >= segment.start
                    && len != 0
                    && offset
                        .checked_add(len)
                        .is_some_and(|end| end <= segment.start + segment.file_len)
            });
            if !inside {
                return Err(KernelFault::Offset(name));
            }
        }
        Ok(())
    }

    /// What is to be mapped when the kernel lies at `phys` and shall appear at `virt`.
    pub(crate) fn areas(&self, virt: u64, phys: u64) -> impl Iterator<Item = Area> {
        self.segments.iter().map(move |segment| {
            let len = segment.end - segment.start;
            Area::small(
                virt + segment.start,
                phys + segment.start,
                len,
                segment.rights,
            )
        })
    }

    /// Copies the kernel to `phys` in guest memory, which is still all zero.
    pub(crate) fn load(&self, ram: &Ram, phys: u64) -> Result<(), MachineError> {
        Elf::load(
            ram,
            Some(GuestAddress(phys)),
            &mut Cursor::new(self.file),
            None,
        )
        .map_err(|error| KernelFault::Load(error.to_string()))?;
        Ok(())
    }
}

/// Checks one program header; `None` if it is not loadable.
fn segment(entry: &[u8], file_len: u64, index: usize) -> Result<Option<Segment>, KernelFault> {
    let invalid = KernelFault::Elf("invalid segment");
    let word = |at| u64_at(entry, at).ok_or(invalid.clone());
    let [kind, flags] = [word(0)? as u32, (word(0)? >> 32) as u32];
    let [offset, virt, phys, in_file, in_memory] =
        [word(8)?, word(16)?, word(24)?, word(32)?, word(40)?];
    if kind != PT_LOAD || in_memory == 0 {
        return Ok(None);
    }
    let end = virt.checked_add(in_memory).ok_or(invalid.clone())?;
    if end > MAX_KERNEL {
        return Err(KernelFault::TooLarge(end));
    }
    let inside = offset
        .checked_add(in_file)
        .is_some_and(|end| end <= file_len);
    // linux-loader goes by the physical address, which static linkers set to the virtual one.
    if phys != virt || in_file > in_memory || !inside {
        return Err(invalid);
    }
    let rights = match (flags & PF_W != 0, flags & PF_X != 0) {
        (true, true) => return Err(KernelFault::Rights(index)),
        (true, false) => Rights::Write,
        (false, true) => Rights::Execute,
        (false, false) => Rights::Read,
    };
    let start = virt / PAGE_SIZE * PAGE_SIZE;
    Ok(Some(Segment {
        start,
        end: end.next_multiple_of(PAGE_SIZE),
        rights,
        file_len: virt - start + in_file,
        offset,
    }))
}

/// The header at link address 0.
fn kernel_header(file: &[u8], first: Option<&Segment>) -> Result<KernelHeader, KernelFault> {
    let bytes = first
        .filter(|segment| segment.start == 0)
        .and_then(|segment| file.get(usize::try_from(segment.offset).ok()?..))
        .ok_or(KernelFault::Magic)?;
    let word = |at| u64_at(bytes, at).ok_or(KernelFault::Magic);
    if word(0)? != KERNEL_MAGIC {
        return Err(KernelFault::Magic);
    }
    let versions = word(8)?;
    let header = KernelHeader {
        magic: KERNEL_MAGIC,
        abi_version: versions as u32,
        vector_stride: (versions >> 32) as u32,
        vectors: word(16)?,
        syscall_entry: word(24)?,
        entry: word(32)?,
        spin: word(40)?,
    };
    if header.abi_version != ABI_VERSION {
        return Err(KernelFault::Version(header.abi_version));
    }
    Ok(header)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
