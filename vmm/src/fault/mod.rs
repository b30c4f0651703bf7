//! Faults of one machine, and the places where they are put: registers, memory by what it is used for, system calls, and positions
//! in the program's course. For campaigns: everything here is to be repeatable, and to mean the same in every layout.
//!
//! All of it is used on the thread that runs the machine, while the vCPU stands: at a boundary, after a kick, where the flight
//! recorder stopped it ([`crate::Outcome::Stopped`]), or where a [`Reacher`] has brought it.
//!
//! | file | what |
//! | --- | --- |
//! | `register.rs` | bits of registers: the vCPU's own, or the program's while the kernel serves it |
//! | `class.rs` | memory by what it is used for, in an order that no layout changes |
//! | `memory.rs` | bits of memory, pages that vanish or become zero |
//! | `call.rs` | the n-th system call: to stop behind it, or to make it fail |
//! | `trace.rs` | every instruction of a healthy run, once |
//! | `reach.rs` | to an instruction of that run, or to a function, quickly |

mod call;
mod class;
mod memory;
mod reach;
mod register;
mod trace;

pub(crate) use class::{Leaf, Read, table_levels};
pub use class::{MemoryClass, MemoryMap, PageAt, Piece};
pub use memory::Change;
pub use reach::{Reach, Reached, Reacher};
pub use register::{FaultRegister, Group, Whose};
pub use trace::{Place, Position, Trace, TraceError, Tracer};

use crate::error::MachineError;
use quorate_abi::boot::Layout;

/// Why a fault could not be put into a machine. The machine is what it was before.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// There is no such register.
    #[error(
        "there is no register {0:?}: one of rax to r15, rip, rflags, fs_base, gs_base, mxcsr, xmm0 to xmm15"
    )]
    NoRegister(String),
    /// It has no such lane.
    #[error("{register} has no lane {lane}")]
    NoLane {
        /// The register.
        register: &'static str,
        /// The lane that was asked for.
        lane: u8,
    },
    /// No processor has these bits.
    #[error("{register} has no bits {bits:#x}")]
    NoBits {
        /// The register.
        register: &'static str,
        /// Those of the mask that do not exist.
        bits: u64,
    },
    /// This host's KVM does not let a guest have that value.
    #[error("this host's KVM does not take {wanted:#x} for {register}: {why}")]
    Refused {
        /// The register.
        register: &'static str,
        /// The value that it should have got.
        wanted: u64,
        /// KVM's error, or what came of it.
        why: String,
    },
    /// There is no class of memory with this name.
    #[error("there is no class of memory {name:?}: one of {}", MemoryClass::names().collect::<Vec<_>>().join(", "))]
    NoClass {
        /// The name.
        name: String,
    },
    /// Nothing maps the page with an entry of its own.
    #[error("no page table has an entry for the page at physical address {0:#x} alone")]
    NotMapped(u64),
    /// The guest kernel has no flight recorder, or an older one.
    #[error(
        "the guest kernel has no flight recorder of version {}",
        quorate_abi::flight::FLIGHT_VERSION
    )]
    NoRecorder,
    /// The guest's memory is not what it has to be for this.
    #[error("the guest's {0} cannot be found: its page tables or its variables are damaged")]
    Lost(&'static str),
    /// The number is not in the future, or no error.
    #[error("{0}")]
    Call(String),
    /// Everything else.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

const GIB: u64 = 1 << 30;

/// The regions of a layout: name, first address, bytes. Their order is part of [`Trace`]'s format.
#[must_use]
pub fn regions(layout: &Layout) -> [(&'static str, u64, u64); 12] {
    [
        ("kernel", layout.kernel, 16 << 20),
        ("boot", layout.boot, 1 << 20),
        ("devices", layout.devices, 1 << 20),
        ("program", layout.program, 16 * GIB),
        ("libraries", layout.libraries, 64 * GIB),
        ("mmap", layout.mmap, 512 * GIB),
        ("threads", layout.threads, 64 * GIB),
        ("heap", layout.heap, 64 * GIB),
        ("stack", layout.stack_top.saturating_sub(GIB), GIB),
        ("kernel_dynamic", layout.kernel_dynamic, 64 * GIB),
        ("image", layout.image, 64 * GIB),
        ("direct", layout.direct, 512 * GIB),
    ]
}
