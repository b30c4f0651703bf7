//! The n-th system call, through the guest kernel's flight recorder (`quorate_abi::flight`).

use super::{FaultError, Read};
use crate::error::MachineError;
use crate::machine::Machine;
use crate::paging::{translate, walk};
use quorate_abi::boot::KernelHeader;
use quorate_abi::flight::{
    CAPACITY, FLIGHT_MAGIC, FLIGHT_VERSION, NEVER, Pointer, Record, Recorder,
};
use std::mem::offset_of;
use vm_memory::{Bytes, GuestAddress};

/// Largest error number, as Linux has it (`MAX_ERRNO`).
const MAX_ERRNO: u16 = 4095;
/// Bits of a physical address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Most roots that are believed (R10): what the guest kernel has at most.
const MOST_ROOTS: u64 = 4096;

impl Machine {
    /// How many system calls the guest has completed since it started, by its own count.
    ///
    /// # Errors
    ///
    /// If the kernel has no flight recorder.
    pub fn calls_made(&self) -> Result<u64, FaultError> {
        let written = self.recorded(offset_of!(Recorder, written))?;
        if written == 0 {
            return Ok(0);
        }
        let records = self.recorded(offset_of!(Recorder, records))?;
        let last = (written - 1) % CAPACITY as u64 * size_of::<Record>() as u64;
        self.kernel_word(
            records.wrapping_add(last + offset_of!(Record, call) as u64),
            "flight recorder's records",
        )
    }

    /// Lets [`Machine::run`] end with [`crate::Outcome::Stopped`] when the guest has completed `number` more calls than it has now (1: the next
    /// one). It does so again at every exception before the call after that: [`Machine::stop_at_no_call`] ends it.
    ///
    /// # Errors
    ///
    /// If `number` is 0, or the kernel has no flight recorder.
    pub fn stop_at_call(&mut self, number: u64) -> Result<(), FaultError> {
        let at = self.call_ahead(number)?;
        self.set_recorded(offset_of!(Recorder, stop_at), at)
    }

    /// Takes [`Machine::stop_at_call`] back.
    ///
    /// # Errors
    ///
    /// If the kernel has no flight recorder.
    pub fn stop_at_no_call(&mut self) -> Result<(), FaultError> {
        self.set_recorded(offset_of!(Recorder, stop_at), NEVER)
    }

    /// Lets a system call fail: the kernel answers it with `-errno` and does nothing else. It is the first call that begins when at least
    /// `number - 1` more calls are complete than now, and that can fail (see `quorate_abi::flight::can_fail`).
    ///
    /// # Errors
    ///
    /// If `number` is 0, `errno` is not an error number, or the kernel has no flight recorder.
    pub fn fail_call(&mut self, number: u64, errno: u16) -> Result<(), FaultError> {
        if errno == 0 || errno > MAX_ERRNO {
            return Err(FaultError::Call(format!(
                "{errno} is no error number: one of 1 to {MAX_ERRNO}"
            )));
        }
        let at = self.call_ahead(number)?;
        self.set_recorded(offset_of!(Recorder, fail_errno), errno.into())?;
        self.set_recorded(offset_of!(Recorder, failed), 0)?;
        self.set_recorded(offset_of!(Recorder, fail_at), at)
    }

    /// The number of the call that [`Machine::fail_call`] made fail, if it has come to that.
    ///
    /// # Errors
    ///
    /// If the kernel has no flight recorder.
    pub fn call_failed(&self) -> Result<Option<u64>, FaultError> {
        let failed = self.recorded(offset_of!(Recorder, failed))?;
        Ok((failed != 0).then_some(failed))
    }

    /// The roots of all address spaces, in the order in which they were made, with the one in use at the end if it is none of them.
    pub(crate) fn roots(&self) -> Result<Vec<u64>, FaultError> {
        let current = self.registers()?.cr3;
        Ok(self.roots_in(&|at, to| self.read_physical(at, to), current))
    }

    /// As [`Machine::roots`], in any image of this machine's memory.
    pub(crate) fn roots_in(&self, read: Read, current: u64) -> Vec<u64> {
        let current = current & ADDRESS;
        let mut roots = Vec::new();
        if let Some(at) = self.recorder_in(read) {
            let field = |field: usize| word(read, at + field as u64);
            let kernel = |virt: Option<u64>| {
                let at = walk(current, virt?, &mut |entry| word(read, entry))?;
                word(read, at)
            };
            let count = kernel(field(offset_of!(Recorder, root_count))).unwrap_or(0);
            let first = field(offset_of!(Recorder, roots));
            for index in 0..count.min(MOST_ROOTS) {
                let Some(root) = kernel(first.map(|first| first.wrapping_add(8 * index))) else {
                    break;
                };
                roots.push(root & ADDRESS);
            }
        }
        if !roots.contains(&current) {
            roots.push(current);
        }
        roots
    }

    /// How many page tables the kernel has made, in any image of this machine's memory.
    pub(crate) fn tables_made(&self, read: Read) -> Option<u64> {
        let at = self.recorder_in(read)?;
        word(read, at + offset_of!(Recorder, tables) as u64)
    }

    fn recorder_at(&self) -> Result<u64, FaultError> {
        self.recorder_in(&|at, to| self.read_physical(at, to))
            .ok_or(FaultError::NoRecorder)
    }

    /// Guest-physical address of the recorder.
    fn recorder_in(&self, read: Read) -> Option<u64> {
        let kernel = self.boot.reserved.start;
        let pointer = kernel + size_of::<KernelHeader>() as u64;
        let magic = word(read, pointer + offset_of!(Pointer, magic) as u64)?;
        let offset = word(read, pointer + offset_of!(Pointer, recorder) as u64)?;
        // The kernel lies in one piece.
        let at = kernel + offset.min(self.boot.reserved.len);
        let again = word(read, at + offset_of!(Recorder, magic) as u64)?;
        let version = word(read, at + offset_of!(Recorder, version) as u64)? as u32;
        let found = (magic, again, version) == (FLIGHT_MAGIC, FLIGHT_MAGIC, FLIGHT_VERSION);
        found.then_some(at)
    }

    /// A field of the recorder.
    pub(super) fn recorded(&self, field: usize) -> Result<u64, FaultError> {
        let at = self.recorder_at()? + field as u64;
        let word = self.memory.ram.read_obj(GuestAddress(at));
        word.map_err(|_| MachineError::Access(at).into())
    }

    fn set_recorded(&mut self, field: usize, value: u64) -> Result<(), FaultError> {
        let at = self.recorder_at()? + field as u64;
        let done = self.memory.ram.write_obj(value, GuestAddress(at));
        done.map_err(|_| MachineError::Access(at).into())
    }

    fn call_ahead(&self, number: u64) -> Result<u64, FaultError> {
        if number == 0 {
            return Err(FaultError::Call("calls are counted from 1".into()));
        }
        Ok(self.calls_made()?.saturating_add(number).min(NEVER - 1))
    }

    /// A word of the kernel's, which is mapped in every address space.
    pub(super) fn kernel_word(&self, virt: u64, what: &'static str) -> Result<u64, FaultError> {
        self.kernel_physical(virt)
            .and_then(|at| self.memory.ram.read_obj(GuestAddress(at)).ok())
            .ok_or(FaultError::Lost(what))
    }

    pub(super) fn kernel_physical(&self, virt: u64) -> Option<u64> {
        let root = self.registers().ok()?.cr3;
        translate(&self.memory.ram, root, virt)
    }
}

fn word(read: Read, at: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    read(at, &mut bytes).then(|| u64::from_le_bytes(bytes))
}
