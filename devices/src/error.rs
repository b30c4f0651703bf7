//! Errors: what a guest did wrong, and why a saved device cannot be restored.

use crate::disk::{MAX_DISK_BYTES, SECTOR};
use thiserror::Error;

/// The guest broke the rules of a device. It stops this replica, and nothing else (R9).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// A queue holds what a correct driver never puts there.
    #[error("guest misused queue {queue} of its {device} device: {fault}")]
    Queue {
        /// Which device.
        device: &'static str,
        /// Which of its queues.
        queue: usize,
        /// What is wrong.
        fault: QueueFault,
    },
    /// A register was used against the rules.
    #[error("guest misused register {offset:#x} of its {device} device: {fault}")]
    Register {
        /// Which device.
        device: &'static str,
        /// Offset in the register window.
        offset: u64,
        /// What is wrong.
        fault: RegisterFault,
    },
    /// A disk cannot do its work. The guest may be innocent of it: this replica's own data are what failed.
    #[error("disk {disk}: {fault}")]
    Disk {
        /// Number of the disk.
        disk: usize,
        /// What is wrong.
        fault: DiskFault,
    },
    /// The request half of the sync page is not one.
    #[error("guest wrote garbage into the sync page: {0}")]
    Sync(SyncFault),
}

/// See [`DeviceError::Queue`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QueueFault {
    /// More buffers on offer than the queue has room for, or the ring cannot be read.
    #[error("the available ring is invalid")]
    AvailableRing,
    /// A chain of descriptors that loops, leaves its table, or is longer than the queue.
    #[error("a descriptor chain is invalid")]
    Chain,
    /// A device-writable descriptor comes before a device-readable one (virtio 1.3, 2.7.4.2), or the chain has
    /// buffers of a kind that this queue must not have.
    #[error("a descriptor chain mixes readable and writable buffers")]
    Direction,
    /// A buffer is not in guest memory.
    #[error("a buffer is not in guest memory")]
    Address,
    /// More bytes in one chain than this device takes, or fewer than it needs.
    #[error("a buffer has {bytes} bytes, which is not between {least} and {most}")]
    Length {
        /// Bytes in the chain.
        bytes: u64,
        /// Smallest size that is valid.
        least: u64,
        /// Largest size that is valid.
        most: u64,
    },
    /// A virtio-net header asks for an offload that was not offered.
    #[error("a frame's header asks for an offload that was not negotiated")]
    Offload,
    /// A driver reuses the descriptors of requests that are not answered yet.
    #[error("more requests wait for an answer than the queue has room for")]
    Unanswered,
    /// The used ring cannot be written.
    #[error("the used ring is invalid")]
    UsedRing,
    /// All random bytes of the run are used up.
    #[error("the random stream is used up")]
    Exhausted,
}

/// See [`DeviceError::Disk`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DiskFault {
    /// A machine has at most `quorate_abi::map::MAX_DISKS` disks.
    #[error("a machine has at most {0} disks")]
    TooMany(u64),
    /// Not a size that a disk may have.
    #[error(
        "{bytes} bytes is not a size of whole sectors of {SECTOR} bytes up to {MAX_DISK_BYTES}"
    )]
    Size {
        /// The size.
        bytes: u64,
    },
    /// The data of a read that is complete cannot be had.
    #[error("data of read {seq} are missing: {why}")]
    Data {
        /// Number of the request.
        seq: u64,
        /// What whoever keeps the data says.
        why: String,
    },
    /// The data of a read that is complete have another length than was asked for.
    #[error("read {seq} got {bytes} bytes instead of {asked}")]
    DataLength {
        /// Number of the request.
        seq: u64,
        /// Bytes that came.
        bytes: usize,
        /// Bytes that were asked for.
        asked: u32,
    },
}

/// See [`DeviceError::Register`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RegisterFault {
    /// Registers below 0x100 are 32 bits wide (virtio 1.3, 4.2.2.2).
    #[error("the access has {0} bytes or is not aligned")]
    Width(usize),
    /// The register cannot be written.
    #[error("it is not a writable register")]
    ReadOnly,
    /// No device is there.
    #[error("no device is there")]
    NoDevice,
    /// The steps of virtio 1.3, 3.1.1 were not kept.
    #[error("device status {from:#x} does not allow {to:#x}")]
    Status {
        /// Status before.
        from: u32,
        /// Status, or the step, that was asked for.
        to: u32,
    },
    /// A feature word beyond the two that exist is not zero.
    #[error("an unknown feature is accepted")]
    Feature,
    /// A queue index that the device does not have.
    #[error("there is no queue {0}")]
    NoQueue(u32),
    /// A queue was changed while in use.
    #[error("the queue is in use")]
    QueueInUse,
    /// Not a power of two or above the maximum.
    #[error("queue size {0} is invalid")]
    QueueSize(u32),
    /// A ring is misaligned or not in guest memory.
    #[error("a ring of the queue is misaligned or not in guest memory")]
    QueueAddress,
}

/// See [`DeviceError::Sync`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SyncFault {
    /// The page is not in guest memory. The VMM places it, so this is not the guest's doing.
    #[error("the page is not in guest memory")]
    Address,
    /// The magic number is overwritten.
    #[error("the magic number is {0:#x}")]
    Magic(u64),
    /// No such request.
    #[error("there is no request {0}")]
    Op(u32),
    /// A message longer than its field.
    #[error("a message of {0} bytes does not fit")]
    MessageLen(u32),
    /// A reserved field is not zero.
    #[error("a reserved field is not zero")]
    Reserved,
}

/// A saved device does not fit this machine.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// The saved device has other queues than this one.
    #[error("the saved {0} device has other queues")]
    Queues(&'static str),
    /// The saved machine has another number of disks than this one.
    #[error("the saved machine has {saved} disks, this one has {here}")]
    Disks {
        /// Disks of the saved machine.
        saved: usize,
        /// Disks of this machine.
        here: usize,
    },
    /// A saved value cannot have come from a device that kept its rules.
    #[error("the saved {device} device is invalid: {what}")]
    Invalid {
        /// Which device.
        device: &'static str,
        /// Which value.
        what: &'static str,
    },
}
