//! What is put into guest memory while a debugged guest runs, and taken out again.

use super::{Known, MAX_KNOWN, PAGE_FAULT, Underway};
use crate::boot::{debug_gate, passing_gate};
use crate::error::MachineError;
use crate::machine::Machine;
use crate::paging::translate;
use crate::registers::Registers;
use quorate_abi::sync::DEBUG_PORT;

pub(super) const INT3: u8 = 0xcc;
/// Exceptions that come to the debugger; page faults only while a breakpoint's page is not there.
pub(super) const VECTORS: [u64; 3] = [super::DEBUG, super::BREAKPOINT, PAGE_FAULT];
/// `out DEBUG_PORT, eax; iretq`.
const HANDLER: [u8; 4] = [0xe7, DEBUG_PORT, 0x48, 0xcf];

/// Bytes of guest memory that were replaced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patch {
    /// Guest-physical.
    at: u64,
    before: [u8; 16],
    len: usize,
    /// Only an `int3` that is still there is taken back: the guest may use the page for something else meanwhile.
    is_breakpoint: bool,
}

impl Machine {
    /// Virtual address of the debugger's handler of a vector.
    pub(super) fn handler(&self, vector: u64) -> u64 {
        let (vectors, stride) = self.boot.vectors;
        vectors + (vector + 1) * stride - HANDLER.len() as u64
    }

    /// Puts handlers and breakpoints in place.
    pub(super) fn arm(&mut self) -> Result<(), MachineError> {
        let here = self.registers()?.cr3;
        let debugger = self.debugger()?;
        let breakpoints: Vec<(u64, Known)> =
            debugger.breakpoints.iter().map(|(&a, &k)| (a, k)).collect();
        let skipped = match debugger.underway {
            Underway::Trap { from, .. } | Underway::Out { from } => Some(from),
            Underway::Nothing => None,
        };
        let (reader, reading) = (debugger.code_reader, debugger.reading);
        let mut places = Vec::new();
        let mut pending = false;
        for (address, mut known) in breakpoints {
            if known.root == 0 {
                known = self.known(here, address);
            }
            // In its own space whatever is there now: the kernel may have rewritten it. In others only the same code.
            let own = self.code(known.root, address);
            let other = self
                .code(here, address)
                .filter(|(_, bytes)| here != known.root && *bytes == known.bytes);
            pending |= own.is_none() && other.is_none();
            if let Some((_, bytes)) = own {
                known.bytes = bytes;
            }
            self.debugger()?.breakpoints.insert(address, known);
            if skipped == Some(address) || (reading && !self.is_kernel(address)) {
                continue;
            }
            for (phys, bytes) in own.into_iter().chain(other) {
                places.push((address, phys, bytes[0]));
            }
        }
        if let Some((begin, end)) = reader {
            for address in [begin, end] {
                if let Some((phys, bytes)) = self.code(here, address) {
                    places.push((address, phys, bytes[0]));
                }
            }
        }
        self.debugger()?.pending = pending;
        self.arm_handlers(pending)?;
        for (address, phys, byte) in places {
            let debugger = self.debugger()?;
            if debugger.known.len() >= MAX_KNOWN {
                let breakpoints = &debugger.breakpoints;
                debugger.known.retain(|at, _| breakpoints.contains_key(at));
            }
            // Two addresses may lead to one byte, which is then an `int3` already.
            let twice = debugger.armed.iter().any(|patch| patch.at == phys);
            if !twice {
                debugger.known.insert(address, byte);
                self.patch(phys, &[INT3], true)?;
            }
        }
        Ok(())
    }

    /// Handlers, and a breakpoint at the next instruction.
    pub(super) fn arm_here(&mut self, registers: &Registers) -> Result<(), MachineError> {
        let (phys, _) = self
            .code(registers.cr3, registers.rip)
            .ok_or(MachineError::Access(registers.rip))?;
        self.arm_handlers(false)?;
        self.patch(phys, &[INT3], true)
    }

    pub(super) fn arm_handlers(&mut self, page_faults: bool) -> Result<(), MachineError> {
        self.pristine = false;
        for vector in VECTORS {
            if vector == PAGE_FAULT && !page_faults {
                continue;
            }
            let handler = self.handler(vector);
            // The kernel lies in one piece.
            let phys = self.boot.reserved.start + (handler - self.boot.layout.kernel);
            self.patch(phys, &HANDLER, false)?;
            let entry = match vector {
                PAGE_FAULT => passing_gate(vector, handler),
                _ => debug_gate(vector, handler),
            };
            let entry = entry.map(u64::to_le_bytes);
            self.patch(
                self.boot.idt_block + 16 * vector,
                entry.as_flattened(),
                false,
            )?;
        }
        Ok(())
    }

    /// Takes all of it out again, in the opposite order.
    pub(super) fn disarm(&mut self) -> Result<(), MachineError> {
        while let Some(patch) = self.debugger()?.armed.pop() {
            let mut now = [0; 1];
            let read = self.read_physical(patch.at, &mut now);
            if !patch.is_breakpoint || (read && now[0] == INT3) {
                self.write_physical(patch.at, &patch.before[..patch.len])?;
            }
        }
        Ok(())
    }

    pub(super) fn patch(
        &mut self,
        at: u64,
        bytes: &[u8],
        is_breakpoint: bool,
    ) -> Result<(), MachineError> {
        let mut patch = Patch {
            at,
            before: [0; 16],
            len: bytes.len(),
            is_breakpoint,
        };
        if !self.read_physical(at, &mut patch.before[..bytes.len()]) {
            return Err(MachineError::Access(at));
        }
        self.write_physical(at, bytes)?;
        self.debugger()?.armed.push(patch);
        Ok(())
    }

    /// What is known of an address in the address space with these tables.
    pub(super) fn known(&self, root: u64, address: u64) -> Known {
        match self.code(root, address) {
            Some((_, bytes)) => Known { root, bytes },
            None => Known {
                root: 0,
                bytes: [0; 8],
            },
        }
    }

    /// Where a virtual address is in physical memory, and what is there; zeroes stand for what lies in the next page.
    pub(super) fn code(&self, root: u64, address: u64) -> Option<(u64, [u8; 8])> {
        if root == 0 {
            return None;
        }
        let phys = translate(&self.memory.ram, root, address)?;
        let mut bytes = [0; 8];
        let len = (quorate_abi::PAGE_SIZE - address % quorate_abi::PAGE_SIZE).min(8) as usize;
        self.read_physical(phys, &mut bytes[..len])
            .then_some((phys, bytes))
    }

    fn is_kernel(&self, address: u64) -> bool {
        let kernel = self.boot.layout.kernel;
        (kernel..kernel + self.boot.reserved.len).contains(&address)
    }
}
