//! What is wrong with a Linux machine's configuration.

use super::config::MAX_LINUX_CPUS;
use thiserror::Error;

/// See [`crate::MachineError::Linux`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LinuxFault {
    /// Neither a bzImage nor an ELF file.
    #[error(
        "the file is no Linux kernel: it is neither a bzImage (/boot/vmlinuz-…) nor an ELF file (vmlinux)"
    )]
    NotAKernel,
    /// A kernel for other processors, or of other times.
    #[error("the kernel cannot be booted in 64-bit mode: {0}")]
    Unsuitable(&'static str),
    /// It starts like a kernel and is not one all the same.
    #[error("the kernel file is damaged: {0}")]
    Damaged(String),
    /// The kernel does not fit into memory.
    #[error("the kernel needs {needed} bytes of memory from {at:#x} on, and there are {have}")]
    KernelTooLarge {
        /// Where it begins.
        at: u64,
        /// Bytes that it needs there.
        needed: u64,
        /// Bytes that there are.
        have: u64,
    },
    /// The initramfs does not fit.
    #[error(
        "the initramfs has {bytes} bytes, and there are {room} left behind the kernel: give the guest more memory"
    )]
    InitramfsTooLarge {
        /// Its size.
        bytes: u64,
        /// The room there is.
        room: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the kernel's command line has {bytes} bytes, this kernel takes {limit}")]
    CommandLineTooLong {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The command line has a character that cannot be in it.
    #[error("the kernel's command line contains {0:?}, which no command line can")]
    CommandLineCharacter(char),
    /// Too few or too many processors.
    #[error("{0} processors: a Linux machine has 1 to {MAX_LINUX_CPUS}")]
    Cpus(u8),
    /// The machine ended; it can only be restored.
    #[error("the machine has ended: it can run again only after a checkpoint was put back")]
    Ended,
    /// No such virtual processor.
    #[error("there is no processor {0}")]
    NoCpu(u8),
    /// An event file or a thread could not be had.
    #[error("the host refused {what}: {why}")]
    Host {
        /// What was wanted.
        what: &'static str,
        /// Its error.
        why: String,
    },
}
