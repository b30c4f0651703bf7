//! The smallest kernel files: a few instructions behind a `KernelHeader`, wrapped into ELF. The probe measures with one,
//! and the tests stand in for the real kernel with others. Their code is assembled into this program as data.

use quorate_abi::boot::KERNEL_MAGIC;
use quorate_abi::{ABI_VERSION, PAGE_SIZE};

/// Bytes between two vectors of a stub.
pub(crate) const VECTOR_STRIDE: u32 = 16;

/// A stub: position-independent code, and where in it things are.
#[derive(Clone, Debug)]
pub(crate) struct Stub {
    /// The code, with 64 unused bytes in front for the header.
    pub code: Vec<u8>,
    /// 32 handlers, [`VECTOR_STRIDE`] apart.
    pub vectors: u64,
    pub syscall_entry: u64,
    pub entry: u64,
    pub spin: u64,
}

/// Virtual address of the writable segment behind code of this length.
pub(crate) fn data_address(code_len: usize) -> u64 {
    (code_len as u64).next_multiple_of(PAGE_SIZE)
}

impl Stub {
    /// The stub as an ELF file: one segment of code and one page of writable data with the first 8 bytes from the file.
    pub(crate) fn elf(&self) -> Vec<u8> {
        const FILE_OFFSET: usize = 0x1000;
        let mut image = self.code.clone();
        let versions = u64::from(ABI_VERSION) | u64::from(VECTOR_STRIDE) << 32;
        let header = [
            KERNEL_MAGIC,
            versions,
            self.vectors,
            self.syscall_entry,
            self.entry,
            self.spin,
        ];
        for (to, from) in image.chunks_exact_mut(8).zip(header) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        let code_len = image.len() as u64;
        let data = data_address(image.len());
        let data_offset = FILE_OFFSET as u64 + data;
        image.resize(data as usize, 0);
        image.extend_from_slice(&0x0123_4567_89ab_cdef_u64.to_le_bytes());

        let mut file = Vec::new();
        file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend_from_slice(&[3, 0, 62, 0, 1, 0, 0, 0]); // ET_DYN, EM_X86_64, version
        file.extend_from_slice(&self.entry.to_le_bytes());
        file.extend_from_slice(&64_u64.to_le_bytes()); // program headers
        file.extend_from_slice(&0_u64.to_le_bytes()); // no sections
        file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
        let segments = [
            (5_u32, FILE_OFFSET as u64, 0, code_len, code_len),
            (6, data_offset, data, 8, PAGE_SIZE),
        ];
        for (flags, offset, addr, in_file, in_memory) in segments {
            file.extend_from_slice(&1_u32.to_le_bytes()); // PT_LOAD
            file.extend_from_slice(&flags.to_le_bytes());
            for value in [offset, addr, addr, in_file, in_memory, PAGE_SIZE] {
                file.extend_from_slice(&value.to_le_bytes());
            }
        }
        file.resize(FILE_OFFSET, 0);
        file.extend_from_slice(&image);
        file
    }
}
