//! What can go wrong, said so that a person knows what to do.

use std::io;
use std::path::PathBuf;

/// Why the store refuses.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or made.
    #[error("disk file {}: {action}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
    /// Neither a regular file nor a block device.
    #[error("disk file {} is neither a regular file nor a block device; a disk is a raw file of its size or a device", .0.display())]
    Kind(PathBuf),
    /// The size in the specification is none.
    #[error(
        "disk file {}: a disk of {bytes} bytes is not possible: whole sectors of 512 bytes, from one to {max} bytes",
        path.display()
    )]
    Specification {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        bytes: u64,
        /// The most that is possible.
        max: u64,
    },
    /// The file is smaller than the disk.
    #[error(
        "disk file {} has {have} bytes, the disk {want}: grow it (truncate -s {want}, then let the file system grow), or set the disk's size to {have}",
        path.display()
    )]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        have: u64,
        /// Bytes there should be.
        want: u64,
    },
    /// The file is larger than the disk.
    #[error(
        "disk file {} has {have} bytes, the disk only {want}: what is behind would be out of reach; set the disk's size to {have}",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        have: u64,
        /// Bytes there should be.
        want: u64,
    },
    /// Another disk has the file open.
    #[error("disk file {} is in use by {holder}: stop that one first, or give this appliance a file of its own", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
        /// Who holds it, as far as that can be known.
        holder: String,
    },
    /// No such replica, or it was stopped.
    #[error("disk {disk}: replica {replica} is stopped")]
    Stopped {
        /// The disk.
        disk: u8,
        /// The replica.
        replica: usize,
    },
    /// A request out of its order.
    #[error("disk {disk}: request {got} {who}, but {want} is next")]
    Order {
        /// The disk.
        disk: u8,
        /// What was done with it.
        who: &'static str,
        /// The number it has.
        got: u64,
        /// The number it should have.
        want: u64,
    },
    /// A request that the device should have refused.
    #[error("disk {disk}: request {seq} {why}")]
    Request {
        /// The disk.
        disk: u8,
        /// The request.
        seq: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A replica that is not stopped cannot begin again.
    #[error("disk {disk}: replica {replica} is not stopped, so it cannot begin again")]
    Live {
        /// The disk.
        disk: u8,
        /// The replica.
        replica: usize,
    },
    /// Without recovery nothing is kept that a replica could begin again with.
    #[error("disk {0}: recovery is off, so no replica can begin again")]
    NotRecoverable(u8),
    /// A checkpoint that cannot be of this disk.
    #[error("disk {disk}: the checkpoint's outstanding request {seq} {why}")]
    Position {
        /// The disk.
        disk: u8,
        /// The request.
        seq: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The reads that are asked for are forgotten.
    #[error(
        "disk {disk}: the data of reads from request {seq} on are needed, and only those from {from} on are kept; begin from a later checkpoint"
    )]
    Forgotten {
        /// The disk.
        disk: u8,
        /// The position.
        seq: u64,
        /// What there is.
        from: u64,
    },
    /// The disk failed earlier.
    #[error("{0}")]
    Failed(String),
    /// The disk is closed.
    #[error("disk {0} is closed")]
    Closed(u8),
}
