//! Quorate's VMM: one virtual machine through KVM. A [`Machine`] runs its vCPU to the next boundary, hands out what the
//! guest wants to make visible there, takes the journal's entry for it, and runs on.
//!
//! There is no firmware and no real mode: the guest's kernel starts at CPL 3 in 64-bit mode, with page tables, GDT, IDT
//! and TSS that are made here (`docs/design.md`, section 7).

mod boot;
mod checkpoint;
mod cpuid;
mod crash;
mod debug;
mod error;
pub mod fault;
mod inject;
mod kernel;
mod kick;
mod layout;
pub mod linux;
mod machine;
mod memory;
mod paging;
mod probe;
mod registers;
mod stub;
#[cfg(test)]
mod tests;
mod vcpu;

pub use checkpoint::{Checkpoint, CheckpointError, Pause, Precopy, Restore, Restored};
pub use crash::{CrashKind, CrashReport};
pub use debug::{DebugStop, Motion};
pub use error::{KernelFault, MachineError};
pub use inject::Register;
pub use kick::Kicker;
pub use layout::{AddressSpace, LayoutError, LayoutKind, LayoutRequest};
pub use machine::{
    Boundary, Machine, MachineConfig, Mount, Outcome, ProgramSpec, StartTime, open_kvm,
};
pub use probe::{Backend, HostReport, KvmAccess, ProbeReport, host, probe};
pub use quorate_abi::boot::Layout;
pub use quorate_devices::{
    DeviceError, DiskConfig, DiskPosition, DiskReads, Entry, NoDisks, Output, Outstanding,
};
pub use registers::Registers;
