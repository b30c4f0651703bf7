//! Mounts: what the VMM asks the kernel to put into its tree before the program starts.
//!
//! [`BootInfo::mounts`](crate::boot::BootInfo::mounts) says how many there are. Each is [`STRINGS`] NUL-terminated strings behind the
//! host name in the boot strings: target, kind, source and options, in this order. They are made in the order given, so a
//! mount can lie inside an earlier one. A target that does not exist is made (a directory, mode 0755) where the tree above
//! it can be written.

/// Strings for each mount: target, kind, source, options.
pub const STRINGS: usize = 4;
/// Most mounts.
pub const MAX_MOUNTS: u32 = 16;

/// Kinds of mounts.
pub mod kind {
    /// An ext4 file system; the source is `diskN`.
    pub const EXT4: &str = "ext4";
    /// Files in memory; the option `size=BYTES` bounds them. The source is empty.
    pub const TMPFS: &str = "tmpfs";
    /// Target `/` only: the root image, with all changes kept on the ext4 file system of the source `diskN`.
    pub const OVERLAY: &str = "overlay";
    /// Target `/` only: the root image. With option `ro` nothing of it can be changed; with `rw` changes are
    /// kept in memory, which is also what happens if there is no mount for `/`.
    pub const IMAGE: &str = "image";
}

/// Options, separated by commas.
pub mod option {
    /// Nothing can be changed.
    pub const READ_ONLY: &str = "ro";
    /// Changes are allowed (the default).
    pub const READ_WRITE: &str = "rw";
    /// Prefix of the bound in bytes of a [`super::kind::TMPFS`].
    pub const SIZE: &str = "size=";
}

/// Prefix of a source that is a disk; its number follows in decimal.
pub const DISK: &str = "disk";
