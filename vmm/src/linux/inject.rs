//! Deliberate faults, and what is said of a machine that cannot go on.

use super::fault::LinuxFault;
use super::machine::LinuxMachine;
use crate::crash::{CrashKind, CrashReport, code_and_stack};
use crate::error::MachineError;
use crate::inject::{Register, flip_byte};
use crate::paging::translate;
use crate::registers::Registers;
use crate::vcpu;
use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use kvm_ioctls::VcpuFd;
use std::fmt::Write as _;
use vm_memory::{Bytes, GuestAddress};

/// RFLAGS: the fixed bit, and nothing else; no interrupts.
const NO_INTERRUPTS: u64 = 2;
/// An address that no kernel maps: not canonical.
const NOWHERE: u64 = 0x8000_0000_0000_1000;

impl LinuxMachine {
    /// The registers of a processor of a machine that stands still.
    ///
    /// # Errors
    ///
    /// If there is no such processor, or KVM does not give them.
    pub fn registers(&self, cpu: u8) -> Result<Registers, MachineError> {
        vcpu::registers(self.cpu(cpu)?)
    }

    /// Flips one bit of a register of a paused machine. Returns the values before and after.
    ///
    /// # Errors
    ///
    /// If there is no such processor or bit, or KVM refuses.
    pub fn flip_register(
        &mut self,
        cpu: u8,
        register: Register,
        bit: u32,
    ) -> Result<(u64, u64), MachineError> {
        use MachineError as E;
        let mask = 1_u64.checked_shl(bit).ok_or(E::NoBit(bit))?;
        let fd = self.cpu(cpu)?;
        let mut regs = fd.get_regs().map_err(E::kvm("KVM_GET_REGS"))?;
        let value = register.of(&mut regs);
        let before = *value;
        *value ^= mask;
        fd.set_regs(&regs).map_err(E::kvm("KVM_SET_REGS"))?;
        Ok((before, before ^ mask))
    }

    /// Flips one bit of the byte at a guest-physical address of a paused machine. Returns the byte's values before and after.
    ///
    /// # Errors
    ///
    /// If there is no such bit or no RAM at that address.
    pub fn flip_memory(&mut self, gpa: u64, bit: u32) -> Result<(u8, u8), MachineError> {
        flip_byte(&self.memory.ram, gpa, bit)
    }

    /// Bytes of guest RAM, as a bound for [`LinuxMachine::flip_memory`]: addresses below this, but for the hole between 3 GiB and 4 GiB.
    #[must_use]
    pub fn ram_end(&self) -> u64 {
        let last = self.memory.ranges.last();
        last.map_or(0, |range| range.start + range.len)
    }

    /// Makes a paused guest crash for real: its processors go on where nothing is and have no handlers for the exception. The next
    /// [`LinuxMachine::run`] ends with a triple fault.
    ///
    /// # Errors
    ///
    /// If KVM refuses.
    pub fn crash(&mut self) -> Result<(), MachineError> {
        use MachineError as E;
        for vcpu in &self.vcpus {
            let mut sregs = vcpu.fd.get_sregs().map_err(E::kvm("KVM_GET_SREGS"))?;
            sregs.idt.base = 0;
            sregs.idt.limit = 0;
            vcpu.fd.set_sregs(&sregs).map_err(E::kvm("KVM_SET_SREGS"))?;
            go_on_at(&vcpu.fd, NOWHERE)?;
        }
        Ok(())
    }

    /// Makes a paused guest hang: all its processors go on in an endless loop, with interrupts off.
    ///
    /// # Errors
    ///
    /// If KVM refuses, or a processor is where no loop can be put.
    pub fn hang(&mut self) -> Result<(), MachineError> {
        // `jmp` to itself.
        const LOOP: [u8; 2] = [0xeb, 0xfe];
        for vcpu in &self.vcpus {
            let at = vcpu::registers(&vcpu.fd)?;
            let ram = &self.memory.ram;
            // One that has not been started does nothing anyway.
            let Some(physical) = translate(ram, at.cr3, at.rip).filter(|_| at.cr3 != 0) else {
                continue;
            };
            ram.write_slice(&LOOP, GuestAddress(physical))
                .map_err(|_| MachineError::Access(physical))?;
            go_on_at(&vcpu.fd, at.rip)?;
        }
        Ok(())
    }

    fn cpu(&self, number: u8) -> Result<&VcpuFd, MachineError> {
        let found = self.vcpus.get(usize::from(number));
        let vcpu = found.ok_or(LinuxFault::NoCpu(number))?;
        Ok(&vcpu.fd)
    }

    /// Nothing that is read here is trusted (R9).
    pub(super) fn report(&self, cpu: u8, kind: CrashKind) -> CrashReport {
        let registers = self.registers(cpu).ok();
        let mut text = String::new();
        if let Some(at) = &registers {
            let ram = &self.memory.ram;
            // Writing to a string does not fail.
            let _ = writeln!(text, "processor {cpu} of {}", self.vcpus.len());
            text.push_str(&code_and_stack(ram, at));
        }
        CrashReport {
            kind,
            registers: registers.map(Box::new),
            text,
        }
    }
}

fn go_on_at(fd: &VcpuFd, rip: u64) -> Result<(), MachineError> {
    let state = fd
        .get_mp_state()
        .map_err(MachineError::kvm("KVM_GET_MP_STATE"))?;
    if state.mp_state == KVM_MP_STATE_HALTED {
        // It would wait for an interrupt, and take none any more.
        let runs = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        fd.set_mp_state(runs)
            .map_err(MachineError::kvm("KVM_SET_MP_STATE"))?;
    }
    let mut regs = fd.get_regs().map_err(MachineError::kvm("KVM_GET_REGS"))?;
    regs.rip = rip;
    regs.rflags = NO_INTERRUPTS;
    fd.set_regs(&regs)
        .map_err(MachineError::kvm("KVM_SET_REGS"))
}
