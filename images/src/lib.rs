//! Appliances and their root images.
//!
//! An appliance is one TOML file ([`Appliance::load`]). [`build`] makes its root image, in the format of
//! [`quorate_abi::image`], from Debian packages, a directory or a ready-made file; a second build of the same inputs finds
//! the first one's result. [`verify`] is what `quorate run` calls before it maps an image into a guest.

pub mod appliance;
mod build;
mod cache;
mod compile;
mod debian;
pub mod disks;
mod error;
mod hostdir;
mod linux;
mod locked;
mod oci;
mod program;
pub mod size;
mod skeleton;
mod tarball;
pub mod tree;
mod verify;
mod view;
pub mod writer;

pub use appliance::{
    Appliance, Console, ConsoleLines, DiskSpec, DiskVote, ExtraFile, FileContent, Filesystem,
    GuestPort, Id, ImageSource, ImageSpec, Initramfs, KernelSource, LayoutPolicy, LinuxSpec,
    MachineSpec, MaskRule, MaskSpec, Mount, NetworkSpec, NoQuorum, OnDifference, OnError, Policy,
    Program, Relaxed, ReplicaSpec, Role, Root, SourceSpec, SyncChannel, TmpfsSpec, Unconfirmed,
    User, VersionPolicy,
};
pub use build::{
    BuildOptions, BuiltImage, Package, Progress, Source, build, cached, default_cache_dir,
    write_lock,
};
pub use disks::{DiskError, PreparedDisk};
pub use error::{ApplianceError, BuildError};
pub use linux::{CpioEntry, LinuxBoot, LinuxRoot, read_cpio};
pub use verify::{ImageFileError, Info, verify};

/// Upper bound of an image's length in bytes (R10): 1 GiB. Building fails with [`BuildError::TooLarge`] beyond it.
pub const MAX_IMAGE_LEN: u64 = 1 << 30;
