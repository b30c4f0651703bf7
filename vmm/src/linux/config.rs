//! What a Linux machine is made from.

use quorate_devices::DiskConfig;
use std::sync::Arc;

/// Most virtual processors of a Linux machine.
pub const MAX_LINUX_CPUS: u8 = 16;

/// Where the guest's console is, and so where [`crate::Entry::console`] goes. Output of both comes out as [`crate::Output::Console`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinuxConsole {
    /// The 16550 at I/O port 0x3f8: `ttyS0`. Works from the first moment, at one exit for each byte.
    #[default]
    Serial,
    /// virtio-console: `hvc0`. Quick, and there when the driver is.
    Virtio,
}

/// What a [`crate::linux::LinuxMachine`] is made from.
#[derive(Clone, Debug)]
pub struct LinuxConfig {
    /// The kernel's file: a bzImage, or ELF with a PVH note (`vmlinux`).
    pub kernel: Arc<[u8]>,
    /// The first file system, as the kernel takes it: any cpio archives, compressed or not, one behind the other.
    pub initramfs: Option<Arc<[u8]>>,
    /// The kernel's command line, without a NUL byte. Nothing is added to it.
    pub cmdline: String,
    /// Guest memory in bytes; a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// Virtual processors, 1 to [`MAX_LINUX_CPUS`].
    pub cpus: u8,
    /// Where the console's input goes.
    pub console: LinuxConsole,
    /// Differs from replica to replica: the kernel's random numbers, and with them its addresses and those of programs, come from
    /// it and from the processor's clock (`docs/linux.md`).
    pub layout_seed: [u8; 32],
    /// What the virtio entropy device hands out comes from it.
    pub input_seed: [u8; 32],
    /// The disks, in the order of their numbers (`/dev/vda` and on); at most `quorate_abi::map::MAX_DISKS`.
    pub disks: Vec<DiskConfig>,
}
