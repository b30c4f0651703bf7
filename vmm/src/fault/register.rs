//! Faults of registers.

use super::{Change, FaultError};
use crate::error::MachineError;
use crate::machine::Machine;
use kvm_bindings::kvm_regs;
use quorate_abi::flight::{FRAME_BYTES, Recorder, frame};
use std::fmt;
use std::mem::offset_of;
use std::str::FromStr;

/// Sorts of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// `rax` to `r15`, with `rsp` and `rbp`.
    General,
    /// `rflags`.
    Flags,
    /// `fs_base` and `gs_base`.
    SegmentBase,
    /// `xmm0` to `xmm15`, two lanes of 64 bits each, and `mxcsr`.
    Vector,
    /// `rip`.
    Pc,
}

impl Group {
    /// All groups.
    pub const ALL: [Self; 5] = [
        Self::General,
        Self::Flags,
        Self::SegmentBase,
        Self::Vector,
        Self::Pc,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::General => "general",
            Self::Flags => "flags",
            Self::SegmentBase => "segment-base",
            Self::Vector => "vector",
            Self::Pc => "pc",
        }
    }
}

/// Whose registers are meant. While the guest kernel serves a call, which it does at every boundary and stop, the program's registers
/// lie on the thread's kernel stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whose {
    /// Those that the processor has now: the kernel's at boundaries and stops.
    Vcpu,
    /// Those that the program will have when it goes on: of the thread that ran last. If it runs now they are the vCPU's.
    /// `fs_base`, `gs_base` and `mxcsr` are the vCPU's in any case: the kernel does not use them.
    Program,
}

/// Where a register is.
#[derive(Clone, Copy)]
enum At {
    General {
        select: fn(&mut kvm_regs) -> &mut u64,
        /// Number of the word in the frame on the kernel stack.
        saved: u64,
    },
    FsBase,
    GsBase,
    Mxcsr,
    Xmm(u8),
}

/// A register that can have a fault.
#[derive(Clone, Copy)]
pub struct FaultRegister {
    name: &'static str,
    group: Group,
    at: At,
    bits: u64,
}

/// Status flags, TF, IF, DF, OF, IOPL, NT, RF, VM, AC, VIF, VIP, ID: the others are no flip-flops (Intel SDM volume 1, 3.4.3).
const FLAGS: u64 = 0x3f_7fd5;
/// The lower half; the others are reserved (Intel SDM volume 1, 10.2.3).
const MXCSR: u64 = 0xffff;

const fn general(
    name: &'static str,
    saved: u64,
    select: fn(&mut kvm_regs) -> &mut u64,
) -> FaultRegister {
    FaultRegister {
        name,
        group: Group::General,
        at: At::General { select, saved },
        bits: u64::MAX,
    }
}

const fn vector(name: &'static str, number: u8) -> FaultRegister {
    FaultRegister {
        name,
        group: Group::Vector,
        at: At::Xmm(number),
        bits: u64::MAX,
    }
}

const REGISTERS: [FaultRegister; 37] = [
    general("rax", 10, |regs| &mut regs.rax),
    general("rbx", 5, |regs| &mut regs.rbx),
    general("rcx", 11, |regs| &mut regs.rcx),
    general("rdx", 12, |regs| &mut regs.rdx),
    general("rsi", 13, |regs| &mut regs.rsi),
    general("rdi", 14, |regs| &mut regs.rdi),
    general("rsp", 17, |regs| &mut regs.rsp),
    general("rbp", 4, |regs| &mut regs.rbp),
    general("r8", 9, |regs| &mut regs.r8),
    general("r9", 8, |regs| &mut regs.r9),
    general("r10", 7, |regs| &mut regs.r10),
    general("r11", 6, |regs| &mut regs.r11),
    general("r12", 3, |regs| &mut regs.r12),
    general("r13", 2, |regs| &mut regs.r13),
    general("r14", 1, |regs| &mut regs.r14),
    general("r15", 0, |regs| &mut regs.r15),
    FaultRegister {
        group: Group::Flags,
        bits: FLAGS,
        ..general("rflags", 16, |regs| &mut regs.rflags)
    },
    FaultRegister {
        name: "fs_base",
        group: Group::SegmentBase,
        at: At::FsBase,
        bits: u64::MAX,
    },
    FaultRegister {
        name: "gs_base",
        group: Group::SegmentBase,
        at: At::GsBase,
        bits: u64::MAX,
    },
    vector("xmm0", 0),
    vector("xmm1", 1),
    vector("xmm2", 2),
    vector("xmm3", 3),
    vector("xmm4", 4),
    vector("xmm5", 5),
    vector("xmm6", 6),
    vector("xmm7", 7),
    vector("xmm8", 8),
    vector("xmm9", 9),
    vector("xmm10", 10),
    vector("xmm11", 11),
    vector("xmm12", 12),
    vector("xmm13", 13),
    vector("xmm14", 14),
    vector("xmm15", 15),
    FaultRegister {
        name: "mxcsr",
        group: Group::Vector,
        at: At::Mxcsr,
        bits: MXCSR,
    },
    FaultRegister {
        group: Group::Pc,
        ..general("rip", 15, |regs| &mut regs.rip)
    },
];

/// Offset of `xmm0` in the frame; 16 bytes each.
const SAVED_XMM: u64 = 160;
/// In the XSAVE area (Intel SDM volume 1, 13.4.1), in words of 32 bits: MXCSR, `xmm0`, and the first word of XSTATE_BV.
const XSAVE_MXCSR: usize = 24 / 4;
const XSAVE_XMM: usize = 160 / 4;
const XSAVE_BV: usize = 512 / 4;
/// XSTATE_BV: the SSE registers are in use.
const XSTATE_SSE: u32 = 1 << 1;

impl FaultRegister {
    /// All registers.
    pub fn all() -> impl Iterator<Item = Self> {
        REGISTERS.into_iter()
    }

    /// Those of a group.
    pub fn of(group: Group) -> impl Iterator<Item = Self> {
        REGISTERS
            .into_iter()
            .filter(move |register| register.group == group)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Its group.
    #[must_use]
    pub fn group(self) -> Group {
        self.group
    }

    /// How many lanes of 64 bits it has.
    #[must_use]
    pub fn lanes(self) -> u8 {
        match self.at {
            At::Xmm(_) => 2,
            _ => 1,
        }
    }

    /// The bits that exist in each lane.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.bits
    }
}

impl PartialEq for FaultRegister {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for FaultRegister {}

impl fmt::Debug for FaultRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for FaultRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl FromStr for FaultRegister {
    type Err = FaultError;

    fn from_str(name: &str) -> Result<Self, FaultError> {
        REGISTERS
            .into_iter()
            .find(|register| register.name == name)
            .ok_or_else(|| FaultError::NoRegister(name.into()))
    }
}

impl Machine {
    /// Changes bits of a register. Returns the lane before and after. To be used at a boundary, after a kick, at a stop or where a
    /// [`super::Reacher`] has arrived.
    ///
    /// # Errors
    ///
    /// If there is no such lane or bit, or this host's KVM does not let the guest have the value; then nothing has changed.
    pub fn fault_register(
        &mut self,
        register: FaultRegister,
        whose: Whose,
        lane: u8,
        mask: u64,
        change: Change,
    ) -> Result<(u64, u64), FaultError> {
        if mask & !register.bits != 0 {
            return Err(FaultError::NoBits {
                register: register.name,
                bits: mask & !register.bits,
            });
        }
        let before = self.register(register, whose, lane)?;
        let after = change.apply(before, mask);
        if before != after {
            self.put_register(register, whose, lane, after)?;
        }
        Ok((before, after))
    }

    /// What is in a register; see [`Machine::fault_register`].
    ///
    /// # Errors
    ///
    /// If there is no such lane, or KVM does not tell.
    pub fn register(
        &mut self,
        register: FaultRegister,
        whose: Whose,
        lane: u8,
    ) -> Result<u64, FaultError> {
        if lane >= register.lanes() {
            return Err(FaultError::NoLane {
                register: register.name,
                lane,
            });
        }
        self.debug_release()?;
        if let Some(at) = self.saved(register, whose, lane)? {
            return self.memory_word(at).ok_or(FaultError::Lost("kernel stack"));
        }
        self.settle()?;
        let get = MachineError::kvm;
        Ok(match register.at {
            At::General { select, .. } => {
                *select(&mut self.vcpu.get_regs().map_err(get("KVM_GET_REGS"))?)
            }
            At::FsBase => self.vcpu.get_sregs().map_err(get("KVM_GET_SREGS"))?.fs.base,
            At::GsBase => self.vcpu.get_sregs().map_err(get("KVM_GET_SREGS"))?.gs.base,
            At::Mxcsr => {
                let xsave = self.vcpu.get_xsave().map_err(get("KVM_GET_XSAVE"))?;
                u64::from(xsave.region[XSAVE_MXCSR])
            }
            At::Xmm(number) => {
                let xsave = self.vcpu.get_xsave().map_err(get("KVM_GET_XSAVE"))?;
                let at = xmm_word(number, lane);
                u64::from(xsave.region[at]) | u64::from(xsave.region[at + 1]) << 32
            }
        })
    }

    fn put_register(
        &mut self,
        register: FaultRegister,
        whose: Whose,
        lane: u8,
        value: u64,
    ) -> Result<(), FaultError> {
        if let Some(at) = self.saved(register, whose, lane)? {
            return Ok(self.write_physical(at, &value.to_le_bytes())?);
        }
        let before = self.register(register, whose, lane)?;
        let refused = |why: String| FaultError::Refused {
            register: register.name,
            wanted: value,
            why,
        };
        if let Err(error) = self.try_put(register, lane, value) {
            return Err(refused(error.to_string()));
        }
        let now = self.register(register, whose, lane)?;
        if now != value {
            self.try_put(register, lane, before)?;
            return Err(refused(format!("it became {now:#x}")));
        }
        Ok(())
    }

    fn try_put(
        &mut self,
        register: FaultRegister,
        lane: u8,
        value: u64,
    ) -> Result<(), MachineError> {
        let error = MachineError::kvm;
        match register.at {
            At::General { select, .. } => self.change_registers(|regs| *select(regs) = value),
            At::FsBase | At::GsBase => {
                let mut sregs = self.vcpu.get_sregs().map_err(error("KVM_GET_SREGS"))?;
                match register.at {
                    At::FsBase => sregs.fs.base = value,
                    _ => sregs.gs.base = value,
                }
                self.vcpu.set_sregs(&sregs).map_err(error("KVM_SET_SREGS"))
            }
            At::Mxcsr | At::Xmm(_) => {
                let mut xsave = self.vcpu.get_xsave().map_err(error("KVM_GET_XSAVE"))?;
                match register.at {
                    At::Xmm(number) => {
                        let at = xmm_word(number, lane);
                        xsave.region[at] = value as u32;
                        xsave.region[at + 1] = (value >> 32) as u32;
                    }
                    _ => xsave.region[XSAVE_MXCSR] = value as u32,
                }
                // Whatever KVM said before: they are not what they are after a reset.
                xsave.region[XSAVE_BV] |= XSTATE_SSE;
                // SAFETY: KVM reads 4096 bytes unless features with larger state were enabled for this process, which it never asks for.
                unsafe { self.vcpu.set_xsave(&xsave) }.map_err(error("KVM_SET_XSAVE"))
            }
        }
    }

    /// Guest-physical address of the register among those that the kernel keeps for the program; `None` if the vCPU's is meant.
    fn saved(
        &self,
        register: FaultRegister,
        whose: Whose,
        lane: u8,
    ) -> Result<Option<u64>, FaultError> {
        let offset = match (whose, register.at) {
            (Whose::Vcpu, _) | (_, At::FsBase | At::GsBase | At::Mxcsr) => return Ok(None),
            (Whose::Program, At::General { saved, .. }) => frame::REGISTERS + 8 * saved,
            (Whose::Program, At::Xmm(number)) => {
                SAVED_XMM + 16 * u64::from(number) + 8 * u64::from(lane)
            }
        };
        let kernel = self.boot.layout.kernel;
        let rip = self.registers()?.rip;
        if !(kernel..kernel + self.boot.reserved.len).contains(&rip) {
            return Ok(None);
        }
        let top = self.recorded(offset_of!(Recorder, kernel_stack))?;
        let top = self.kernel_word(top, "kernel stack")?;
        let at = self.kernel_physical(top.wrapping_sub(FRAME_BYTES).wrapping_add(offset));
        at.map(Some).ok_or(FaultError::Lost("kernel stack"))
    }
}

fn xmm_word(number: u8, lane: u8) -> usize {
    XSAVE_XMM + 4 * usize::from(number) + 2 * usize::from(lane)
}
