//! What a Linux appliance boots: kernel, initial RAM disk, root disk and command line.

use std::path::PathBuf;

use crate::appliance::Console;

/// What a Linux machine is started with, besides the root image ([`crate::BuiltImage::path`], an ext4 file system).
///
/// The first block device of the machine is the root ([`LinuxRoot`]); the appliance's other disks follow in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinuxBoot {
    /// The kernel: a bzImage, or an ELF file if the appliance names one.
    pub kernel: PathBuf,
    /// BLAKE3 of the kernel's file.
    pub kernel_digest: [u8; 32],
    /// What `uname -r` says, as far as it is known: empty for a file of the appliance's own.
    pub kernel_version: String,
    /// The initial RAM disk, if there is one.
    pub initramfs: Option<PathBuf>,
    /// BLAKE3 of its file; zeroes without one.
    pub initramfs_digest: [u8; 32],
    /// What the first disk is.
    pub root: LinuxRoot,
    /// The kernel's command line. The VMM may append what only it knows.
    pub cmdline: String,
    /// Virtual CPUs of each replica.
    pub cpus: u8,
    /// Which device the console is.
    pub console: Console,
    /// Whether [`crate::BuiltImage::program`] is started and its end is the machine's, told by a write to
    /// [`quorate_abi::linux::EXIT_PORT`]. Otherwise the image's own init runs.
    pub runs_program: bool,
}

/// What the first block device of a Linux machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinuxRoot {
    /// The root image, read-only: the guest keeps changes in its memory, or may make none.
    Image,
    /// The `[[disk]]` of this name, which was made from the root image.
    Disk(String),
}
