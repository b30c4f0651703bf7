//! What crosses between a replica and the rest of Quorate: outputs at a boundary, and the entry that ends it.

use crate::disk::{BlockRequest, Completion};
use serde::{Deserialize, Serialize};

/// What a replica wants to make visible at a boundary. Replicas are compared by these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// An Ethernet frame, without the virtio-net header.
    Frame(Vec<u8>),
    /// Bytes for the console.
    Console(Vec<u8>),
    /// A request for a disk.
    Block(BlockRequest),
    /// Running digest of the guest kernel's system calls. There is one at every boundary, so that a divergence
    /// is caught at the call that caused it.
    Fingerprint {
        /// The digest, as the kernel keeps it.
        digest: [u64; 2],
        /// System calls served so far.
        syscalls: u64,
    },
    /// The appliance's program ended. Nothing follows.
    Exit {
        /// Wait status as `wait4` would report it.
        status: u64,
    },
}

/// The inputs that are delivered at one boundary: one record of the journal. Every replica of a set gets the same (R1);
/// it is shared between them, so delivering it copies frames once, into guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Monotonic time in nanoseconds since the set started. Never decreases from entry to entry.
    pub monotonic_ns: u64,
    /// Wall-clock time in nanoseconds since 1970-01-01 UTC.
    pub realtime_ns: u64,
    /// Bits of `quorate_abi::sync::SyncPage::flags`.
    pub flags: u64,
    /// Ethernet frames that arrived, in order, without the virtio-net header.
    pub frames: Vec<Vec<u8>>,
    /// Bytes typed at the console.
    pub console: Vec<u8>,
    /// Requests for disks that are complete.
    pub completions: Vec<Completion>,
}
