//! Deliberate faults, for tests and demonstrations: what a broken processor, a cosmic ray or an attacker could do to one
//! replica. To be used at a boundary or after a kick, on the thread that runs the machine.

use crate::error::MachineError;
use crate::machine::Machine;
use crate::memory::Ram;
use kvm_bindings::kvm_regs;
use std::str::FromStr;
use vm_memory::{Bytes, GuestAddress};

/// A register that can be flipped.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    name: &'static str,
    select: fn(&mut kvm_regs) -> &mut u64,
}

const REGISTERS: [Register; 18] = [
    register("rax", |regs| &mut regs.rax),
    register("rbx", |regs| &mut regs.rbx),
    register("rcx", |regs| &mut regs.rcx),
    register("rdx", |regs| &mut regs.rdx),
    register("rsi", |regs| &mut regs.rsi),
    register("rdi", |regs| &mut regs.rdi),
    register("rsp", |regs| &mut regs.rsp),
    register("rbp", |regs| &mut regs.rbp),
    register("r8", |regs| &mut regs.r8),
    register("r9", |regs| &mut regs.r9),
    register("r10", |regs| &mut regs.r10),
    register("r11", |regs| &mut regs.r11),
    register("r12", |regs| &mut regs.r12),
    register("r13", |regs| &mut regs.r13),
    register("r14", |regs| &mut regs.r14),
    register("r15", |regs| &mut regs.r15),
    register("rip", |regs| &mut regs.rip),
    register("rflags", |regs| &mut regs.rflags),
];

const fn register(name: &'static str, select: fn(&mut kvm_regs) -> &mut u64) -> Register {
    Register { name, select }
}

impl Register {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The register among others.
    pub(crate) fn of(self, regs: &mut kvm_regs) -> &mut u64 {
        (self.select)(regs)
    }

    /// The names of all registers.
    pub fn names() -> impl Iterator<Item = &'static str> {
        REGISTERS.iter().map(|register| register.name)
    }
}

impl FromStr for Register {
    type Err = MachineError;

    fn from_str(name: &str) -> Result<Self, MachineError> {
        REGISTERS
            .into_iter()
            .find(|register| register.name == name)
            .ok_or_else(|| MachineError::NoRegister(name.into()))
    }
}

/// An address that no layout uses: below every region.
const NOWHERE: u64 = 0x1000;

/// See [`Machine::flip_memory`].
pub(crate) fn flip_byte(ram: &Ram, gpa: u64, bit: u32) -> Result<(u8, u8), MachineError> {
    let mask = 1_u8.checked_shl(bit).ok_or(MachineError::NoBit(bit))?;
    let outside = |_| MachineError::Access(gpa);
    let before: u8 = ram.read_obj(GuestAddress(gpa)).map_err(outside)?;
    let after = before ^ mask;
    ram.write_obj(after, GuestAddress(gpa)).map_err(outside)?;
    Ok((before, after))
}

impl Machine {
    /// Flips one bit of a register. Returns the values before and after.
    ///
    /// # Errors
    ///
    /// If there is no such bit, or KVM refuses the value.
    pub fn flip_register(
        &mut self,
        register: Register,
        bit: u32,
    ) -> Result<(u64, u64), MachineError> {
        let mask = 1_u64.checked_shl(bit).ok_or(MachineError::NoBit(bit))?;
        let mut change = (0, 0);
        self.change_registers(|regs| {
            let value = (register.select)(regs);
            change = (*value, *value ^ mask);
            *value = change.1;
        })?;
        Ok(change)
    }

    /// Flips one bit of the byte at a guest-physical address. Returns the byte's values before and after.
    ///
    /// # Errors
    ///
    /// If there is no such bit or no RAM at that address.
    pub fn flip_memory(&mut self, gpa: u64, bit: u32) -> Result<(u8, u8), MachineError> {
        flip_byte(&self.memory.ram, gpa, bit)
    }

    /// Bytes of guest RAM, as a bound for [`Machine::flip_memory`]: addresses below this, but for the hole between
    /// 3 GiB and 4 GiB.
    #[must_use]
    pub fn ram_end(&self) -> u64 {
        self.memory
            .ranges
            .last()
            .map_or(0, |range| range.start + range.len)
    }

    /// Makes the guest hang: it goes on in an endless loop.
    ///
    /// # Errors
    ///
    /// If KVM refuses.
    pub fn set_rip_spin(&mut self) -> Result<(), MachineError> {
        let spin = self.boot.spin;
        self.change_registers(|regs| regs.rip = spin)
    }

    /// Makes the guest crash for real: it goes on where nothing is mapped, and has no handlers for the exception. The next
    /// [`Machine::run`] ends with a triple fault.
    ///
    /// # Errors
    ///
    /// If KVM refuses.
    pub fn crash(&mut self) -> Result<(), MachineError> {
        self.change_registers(|regs| regs.rip = NOWHERE)?;
        let mut sregs = self
            .vcpu
            .get_sregs()
            .map_err(MachineError::kvm("KVM_GET_SREGS"))?;
        sregs.idt.base = 0;
        sregs.idt.limit = 0;
        self.vcpu
            .set_sregs(&sregs)
            .map_err(MachineError::kvm("KVM_SET_SREGS"))
    }

    /// Gives the probe's guest a number.
    pub(crate) fn set_r12(&mut self, value: u64) -> Result<(), MachineError> {
        self.change_registers(|regs| regs.r12 = value)
    }

    pub(crate) fn change_registers(
        &mut self,
        change: impl FnOnce(&mut kvm_regs),
    ) -> Result<(), MachineError> {
        self.settle()?;
        let mut regs = self
            .vcpu
            .get_regs()
            .map_err(MachineError::kvm("KVM_GET_REGS"))?;
        change(&mut regs);
        self.vcpu
            .set_regs(&regs)
            .map_err(MachineError::kvm("KVM_SET_REGS"))
    }
}
