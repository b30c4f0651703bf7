//! The n-th system call, through the guest kernel's flight recorder (`quorate_abi::flight`).

use super::FaultError;
use crate::error::MachineError;
use crate::machine::Machine;
use crate::paging::translate;
use quorate_abi::boot::KernelHeader;
use quorate_abi::flight::{
    CAPACITY, FLIGHT_MAGIC, FLIGHT_VERSION, NEVER, Pointer, Record, Recorder,
};
use std::mem::offset_of;
use vm_memory::{Bytes, GuestAddress};

/// Largest error number, as Linux has it (`MAX_ERRNO`).
const MAX_ERRNO: u16 = 4095;
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
        let _at = self.call_ahead(number)?;
        Err(FaultError::NoRecorder)
    }

    /// The number of the call that [`Machine::fail_call`] made fail, if it has come to that.
    ///
    /// # Errors
    ///
    /// If the kernel has no flight recorder.
    pub fn call_failed(&self) -> Result<Option<u64>, FaultError> {
        Ok(None)
    }

    /// The roots of all address spaces, in the order in which they were made, with the one in use at the end if it is none of them.
    pub(crate) fn roots(&self) -> Result<Vec<u64>, FaultError> {
        let current = self.registers()?.cr3 & !0xfff;
        let mut roots = Vec::new();
        if self.recorder_at().is_ok() {
            let count = self.kernel_word(
                self.recorded(offset_of!(Recorder, root_count))?,
                "list of roots",
            );
            let first = self.recorded(offset_of!(Recorder, roots))?;
            for index in 0..count.unwrap_or(0).min(MOST_ROOTS) {
                match self.kernel_word(first.wrapping_add(8 * index), "list of roots") {
                    Ok(root) => roots.push(root & !0xfff),
                    Err(_) => break,
                }
            }
        }
        if !roots.contains(&current) {
            roots.push(current);
        }
        Ok(roots)
    }

    /// Guest-physical address of the recorder.
    fn recorder_at(&self) -> Result<u64, FaultError> {
        let ram = &self.memory.ram;
        let kernel = self.boot.reserved.start;
        let word = |at: u64| ram.read_obj::<u64>(GuestAddress(at)).ok();
        let pointer = kernel + size_of::<KernelHeader>() as u64;
        let magic = word(pointer + offset_of!(Pointer, magic) as u64);
        let offset = word(pointer + offset_of!(Pointer, recorder) as u64);
        let (Some(FLIGHT_MAGIC), Some(offset)) = (magic, offset) else {
            return Err(FaultError::NoRecorder);
        };
        // The kernel lies in one piece.
        let at = kernel + offset.min(self.boot.reserved.len);
        let version = ram.read_obj::<u32>(GuestAddress(at + offset_of!(Recorder, version) as u64));
        match (word(at), version) {
            (Some(FLIGHT_MAGIC), Ok(FLIGHT_VERSION)) => Ok(at),
            _ => Err(FaultError::NoRecorder),
        }
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
