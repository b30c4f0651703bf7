//! Why a machine cannot be made or driven. Each message says what to do, as far as that is known.

use crate::layout::LayoutError;
use crate::linux::LinuxFault;
use quorate_abi::{ABI_VERSION, map};
use quorate_devices::{DeviceError, RestoreError};
use std::io;
use thiserror::Error;

/// Why a machine cannot be made or driven.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The host has no KVM.
    #[error(
        "/dev/kvm does not exist: this machine offers no KVM (load kvm_intel or kvm_amd, or turn on nested virtualisation)"
    )]
    NoKvm,
    /// The user may not use KVM.
    #[error(
        "no permission to open /dev/kvm: add this user to the group that owns it (often `kvm`)"
    )]
    KvmPermission,
    /// `/dev/kvm` is there but does not work.
    #[error("/dev/kvm cannot be used: {0}")]
    KvmUnusable(io::Error),
    /// The KVM API is not the one that has been stable since 2007.
    #[error("/dev/kvm has API version {0}, which is not 12")]
    KvmApi(i32),
    /// A KVM call failed.
    #[error("KVM refused {call}: {source}")]
    Kvm {
        /// Name of the call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// KVM took only some of the MSRs.
    #[error("KVM refused to set model-specific register {0:#x}")]
    Msr(u32),
    /// KVM gave only some of the MSRs.
    #[error("KVM refused to read model-specific register {0:#x}")]
    MsrRead(u32),
    /// This KVM lacks something that has been there for more than ten years.
    #[error("this host's KVM does not offer {0}")]
    MissingCapability(&'static str),
    /// The host's processors address less memory than the machine's map needs.
    #[error("this host's processors have {0} physical address bits, Quorate needs 39")]
    PhysicalAddressBits(u32),
    /// The processor cannot run 64-bit guests with no-execute pages.
    #[error("this host's KVM does not offer {0} to guests")]
    MissingCpuFeature(&'static str),

    /// Too little guest memory to start.
    #[error(
        "{given} bytes of memory are too little for this guest: it needs at least {needed} bytes ({needed_mib} MiB)",
        needed_mib = needed.div_ceil(1 << 20)
    )]
    MemoryTooSmall {
        /// What was asked for.
        given: u64,
        /// What is needed.
        needed: u64,
    },
    /// More guest memory than the map has room for.
    #[error("{0} bytes of memory are too much: the limit is {limit} bytes", limit = map::MAX_RAM)]
    MemoryTooLarge(u64),
    /// Guest memory is not a multiple of 2 MiB.
    #[error("memory must be a multiple of 2 MiB, and {0} bytes are not")]
    MemoryUneven(u64),
    /// The host cannot give that memory.
    #[error("the host cannot map {bytes} bytes of {what}: {source}")]
    Map {
        /// How much.
        bytes: u64,
        /// For what.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The VMM's own access to guest memory failed, which its own checks should have prevented.
    #[error("guest memory at {0:#x} cannot be accessed")]
    Access(u64),

    /// The image cannot be read.
    #[error("the root image cannot be read: {0}")]
    Image(io::Error),
    /// The image is empty.
    #[error("the root image is empty")]
    ImageEmpty,
    /// The image does not fit into its part of the address space.
    #[error("the root image has {0} bytes, the limit is {limit} bytes", limit = MAX_IMAGE)]
    ImageTooLarge(u64),
    /// The kernel is not one that this VMM can start.
    #[error("the guest kernel is invalid: {0}")]
    Kernel(#[from] KernelFault),
    /// A Linux machine cannot be made or driven.
    #[error(transparent)]
    Linux(#[from] LinuxFault),
    /// A replica's layout cannot be made.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Arguments and environment do not fit.
    #[error("arguments and environment have {0} bytes, the limit is {limit}", limit = quorate_abi::boot::MAX_STRINGS)]
    StringsTooLong(usize),
    /// A string of the program contains a NUL byte.
    #[error("{0:?} contains a NUL byte")]
    StringWithNul(String),
    /// There is no program to run.
    #[error("the program's argument list is empty")]
    NoProgram,

    /// A device refused an input: the guest had broken its queues.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The machine is not at a boundary, so it takes no entry.
    #[error("the machine is not at a boundary")]
    NotAtBoundary,
    /// What the saved devices say cannot be.
    #[error("the checkpoint does not fit: {0}")]
    Restore(#[from] RestoreError),
    /// The checkpoint is of another machine.
    #[error(
        "the checkpoint is of another machine: its {what} is {saved}, this machine's is {here}"
    )]
    Identity {
        /// What differs.
        what: &'static str,
        /// As the checkpoint has it.
        saved: String,
        /// As this machine has it.
        here: String,
    },
    /// The guest is in the middle of an I/O instruction that repeats itself.
    #[error(
        "the guest is in the middle of an I/O instruction that does not end: nothing can be saved there"
    )]
    HalfDone,
    /// The host does not say which pages of guest memory there are.
    #[error("/proc/self/pagemap cannot be read: {0}")]
    Pagemap(io::Error),
    /// Pages of the root image could not be given back.
    #[error("pages of guest memory cannot be given back: {0}")]
    Forget(io::Error),
    /// A guest that only measures did not do what it should: this KVM does not work as it must.
    #[error("the probe's step `{what}` failed on this KVM: {how}")]
    Probe {
        /// Which step.
        what: &'static str,
        /// What happened.
        how: String,
    },
    /// No such register.
    #[error("there is no register {0:?}")]
    NoRegister(String),
    /// No such bit.
    #[error("there is no bit {0}")]
    NoBit(u32),
    /// No debugger is attached.
    #[error("no debugger is attached to this machine")]
    NoDebugger,
    /// Registers can be changed only where the guest is held.
    #[error("the guest is not held at an instruction: its registers cannot be changed here")]
    NotHeld,
    /// The guest is in the debugger's handler.
    #[error("the guest is held at an instruction: run it to a boundary before the debugger goes")]
    Held,
    /// Too many breakpoints.
    #[error("a machine has at most {0} breakpoints: remove some")]
    Breakpoints(usize),
    /// A breakpoint where exceptions cannot be forwarded.
    #[error(
        "{0:#x} is in the kernel's monitor, which handles exceptions itself: no breakpoint can be there"
    )]
    BreakpointPlace(u64),
    /// No signal handler could be set for kicks.
    #[error("the handler for the signal that kicks vCPUs cannot be set: {0}")]
    Signal(io::Error),
}

/// Largest root image in bytes (64 GiB): what the address layouts leave room for.
pub(crate) const MAX_IMAGE: u64 = 64 << 30;

impl MachineError {
    /// For `map_err` after a KVM call.
    pub(crate) fn kvm(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm {
            call,
            source: io::Error::from_raw_os_error(error.errno()),
        }
    }
}

/// See [`MachineError::Kernel`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KernelFault {
    /// Not an ELF file that can be a kernel.
    #[error("it is not a 64-bit x86 position-independent ELF file ({0})")]
    Elf(&'static str),
    /// Its header is not Quorate's.
    #[error("it does not start with a Quorate kernel header")]
    Magic,
    /// It was built for another VMM.
    #[error(
        "it was built for version {0} of the guest interface, this VMM has version {ABI_VERSION}"
    )]
    Version(u32),
    /// An offset in the header does not point to code.
    #[error("the header's field `{0}` does not point into code")]
    Offset(&'static str),
    /// A segment is both writable and executable, or shares a page with one of other rights.
    #[error(
        "segment {0} has rights that cannot be enforced: writable and executable, or a page shared with another"
    )]
    Rights(usize),
    /// Larger than any kernel.
    #[error("it needs {0} bytes of memory")]
    TooLarge(u64),
    /// The loader refused it.
    #[error("{0}")]
    Load(String),
}
