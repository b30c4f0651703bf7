//! The vCPU's registers as plain data, for reports.

use kvm_bindings::{kvm_regs, kvm_sregs};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The registers that tell where a guest is. All are 64-bit values as KVM reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are the processor's.
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub cs: u16,
    pub ss: u16,
    pub fs_base: u64,
    pub gs_base: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

impl Registers {
    pub(crate) fn from_kvm(regs: &kvm_regs, sregs: &kvm_sregs) -> Self {
        Self {
            rax: regs.rax,
            rbx: regs.rbx,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            rsp: regs.rsp,
            rbp: regs.rbp,
            r8: regs.r8,
            r9: regs.r9,
            r10: regs.r10,
            r11: regs.r11,
            r12: regs.r12,
            r13: regs.r13,
            r14: regs.r14,
            r15: regs.r15,
            rip: regs.rip,
            rflags: regs.rflags,
            cs: sregs.cs.selector,
            ss: sregs.ss.selector,
            fs_base: sregs.fs.base,
            gs_base: sregs.gs.base,
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
        }
    }

    /// Current privilege level.
    #[must_use]
    pub fn cpl(&self) -> u16 {
        self.cs & 3
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "rip={:016x} rsp={:016x} rflags={:08x} cs={:04x} ss={:04x} cpl={}",
            self.rip,
            self.rsp,
            self.rflags,
            self.cs,
            self.ss,
            self.cpl()
        )?;
        writeln!(
            f,
            "rax={:016x} rbx={:016x} rcx={:016x} rdx={:016x}",
            self.rax, self.rbx, self.rcx, self.rdx
        )?;
        writeln!(
            f,
            "rsi={:016x} rdi={:016x} rbp={:016x} r8 ={:016x}",
            self.rsi, self.rdi, self.rbp, self.r8
        )?;
        writeln!(
            f,
            "r9 ={:016x} r10={:016x} r11={:016x} r12={:016x}",
            self.r9, self.r10, self.r11, self.r12
        )?;
        writeln!(
            f,
            "r13={:016x} r14={:016x} r15={:016x}",
            self.r13, self.r14, self.r15
        )?;
        write!(
            f,
            "fs={:016x} gs={:016x} cr0={:08x} cr2={:016x} cr3={:x} cr4={:x} efer={:x}",
            self.fs_base, self.gs_base, self.cr0, self.cr2, self.cr3, self.cr4, self.efer
        )
    }
}
