//! Access to a program's memory from system calls. The program shares the address space with the kernel, so a checked
//! range can be used in place; what is checked is that the program itself could make the access.

use crate::errno::{EFAULT, ENAMETOOLONG, Errno, Result};
use crate::mm;
use alloc::vec::Vec;
use core::mem::size_of;

/// Longest path, including the terminating NUL.
pub const PATH_MAX: usize = 4096;
/// Most entries of an I/O vector.
pub const IOV_MAX: usize = 1024;

/// Types that can be copied from and to a program's memory: no padding that matters, any bit pattern valid.
///
/// # Safety
/// Implementors are `repr(C)` (or primitive) and valid for every bit pattern.
pub unsafe trait Plain: Copy {}
macro_rules! plain { ($($t:ty),*) => { $(
    // SAFETY: primitive integers are valid for every bit pattern.
    unsafe impl Plain for $t {}
)* } }
plain!(u8, i8, u16, i16, u32, i32, u64, i64, usize, isize, u128);
// SAFETY: arrays of such are.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}
// SAFETY: repr(C), two integers.
unsafe impl Plain for crate::time::Timespec {}

/// `struct iovec`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IoVec {
    /// Address.
    pub base: u64,
    /// Bytes.
    pub len: u64,
}
// SAFETY: repr(C), two integers.
unsafe impl Plain for IoVec {}

/// The program's bytes at `[addr, addr + len)` for reading.
/// The slice is only good until the calling thread waits or changes a mapping: do not hold it across either.
///
/// # Errors
/// `EFAULT` if the program could not read all of it.
pub fn bytes(addr: u64, len: usize) -> Result<&'static [u8]> {
    if len == 0 {
        return Ok(&[]);
    }
    mm::check_user(addr, len, mm::Access::Read)?;
    // SAFETY: `check_user` found the range mapped and readable by the program, and populated it. One vCPU and no
    // preemption: nothing changes it until the caller waits (documented).
    Ok(unsafe { core::slice::from_raw_parts(addr as *const u8, len) })
}

/// The program's bytes at `[addr, addr + len)` for writing; see [`bytes`].
///
/// # Errors
/// `EFAULT` if the program could not write all of it.
pub fn bytes_mut(addr: u64, len: usize) -> Result<&'static mut [u8]> {
    if len == 0 {
        return Ok(&mut []);
    }
    mm::check_user(addr, len, mm::Access::Write)?;
    // SAFETY: as in `bytes`, and writable. The kernel holds no other reference into program memory at this time.
    Ok(unsafe { core::slice::from_raw_parts_mut(addr as *mut u8, len) })
}

/// Reads a value (no alignment needed).
///
/// # Errors
/// `EFAULT`.
pub fn read<T: Plain>(addr: u64) -> Result<T> {
    let bytes = bytes(addr, size_of::<T>())?;
    // SAFETY: the range is readable and `T` is valid for every bit pattern.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Writes a value (no alignment needed).
///
/// # Errors
/// `EFAULT`.
pub fn write<T: Plain>(addr: u64, value: T) -> Result<()> {
    let bytes = bytes_mut(addr, size_of::<T>())?;
    // SAFETY: the range is writable and large enough.
    unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(value) };
    Ok(())
}

/// Writes a value if the pointer is not null.
///
/// # Errors
/// `EFAULT`.
pub fn write_opt<T: Plain>(addr: u64, value: T) -> Result<()> {
    if addr == 0 {
        Ok(())
    } else {
        write(addr, value)
    }
}

/// Copies bytes out to the program.
///
/// # Errors
/// `EFAULT`.
pub fn copy_out(addr: u64, from: &[u8]) -> Result<()> {
    bytes_mut(addr, from.len())?.copy_from_slice(from);
    Ok(())
}

/// Reads `count` values.
///
/// # Errors
/// `EFAULT`; `EINVAL` if the length overflows.
pub fn read_array<T: Plain>(addr: u64, count: usize) -> Result<Vec<T>> {
    let len = count
        .checked_mul(size_of::<T>())
        .ok_or(crate::errno::EINVAL)?;
    let bytes = bytes(addr, len)?;
    let mut out = Vec::with_capacity(count);
    for chunk in bytes.chunks_exact(size_of::<T>()) {
        // SAFETY: as in `read`.
        out.push(unsafe { chunk.as_ptr().cast::<T>().read_unaligned() });
    }
    Ok(out)
}

/// Reads a NUL-terminated string of at most `max` bytes, NUL included; the NUL is not returned.
///
/// # Errors
/// `EFAULT`; `too_long` if there is no NUL within `max` bytes.
pub fn cstr(addr: u64, max: usize, too_long: Errno) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut at = addr;
    while out.len() < max {
        let in_page = 4096 - (at & 4095) as usize;
        let chunk = bytes(at, in_page.min(max - out.len()))?;
        if let Some(end) = chunk.iter().position(|b| *b == 0) {
            out.extend_from_slice(&chunk[..end]);
            return Ok(out);
        }
        out.extend_from_slice(chunk);
        at = at.checked_add(chunk.len() as u64).ok_or(EFAULT)?;
    }
    Err(too_long)
}

/// Reads a path.
///
/// # Errors
/// `EFAULT`, `ENAMETOOLONG`.
pub fn path(addr: u64) -> Result<Vec<u8>> {
    cstr(addr, PATH_MAX, ENAMETOOLONG)
}

/// Reads an I/O vector.
///
/// # Errors
/// `EFAULT`; `EINVAL` if there are too many entries.
pub fn iovecs(addr: u64, count: usize) -> Result<Vec<IoVec>> {
    if count > IOV_MAX {
        return Err(crate::errno::EINVAL);
    }
    read_array(addr, count)
}
