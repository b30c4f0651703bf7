//! Quorate's devices: they turn what a guest put into its queues into [`Output`]s, and an [`Entry`] of the journal
//! into used buffers. A device keeps no file, socket, clock or thread, and never votes or waits: its whole behaviour
//! is a function of the guest's memory and of the journal (R1).
//!
//! Everything that a guest writes is hostile input (R9). What breaks the rules of virtio or of the sync page is a
//! [`DeviceError`]: the VMM stops this replica, and nothing else happens. No input makes a device panic.

mod block;
mod chain;
mod console;
mod disk;
mod entropy;
mod error;
mod net;
mod ring;
mod set;
mod stream;
mod sync;
#[cfg(test)]
mod tests;
mod transport;
mod types;
mod virtio;

pub use block::{
    BLOCK_BYTES_PER_BOUNDARY, BLOCK_QUEUE_SIZE, BLOCK_READ_BYTES_IN_FLIGHT, BLOCK_SEG_MAX,
    BLOCK_SIZE_MAX, BlockState, InFlightState, ReplyState,
};
pub use chain::MAX_DESCRIPTORS;
pub use console::{
    CONSOLE_QUEUE_SIZE, CONSOLE_RX_WAITING_BYTES, CONSOLE_TX_CHAIN_BYTES, ConsoleState,
};
pub use disk::{
    BlockOp, BlockRequest, BlockStatus, Completion, DiskConfig, DiskPosition, DiskReads,
    MAX_DISK_BYTES, MAX_IO_BYTES, MAX_ZERO_SECTORS, NoDisks, NotARequest, Outstanding, SECTOR,
    Waiting,
};
pub use entropy::{ENTROPY_BYTES_PER_BOUNDARY, ENTROPY_QUEUE_SIZE, EntropyState};
pub use error::{DeviceError, DiskFault, QueueFault, RegisterFault, RestoreError, SyncFault};
pub use net::{
    NET_QUEUE_SIZE, NET_RX_WAITING_BYTES, NET_RX_WAITING_FRAMES, NetCounters, NetState,
    VIRTIO_NET_HEADER,
};
pub use ring::RingState;
pub use set::{Collected, DeviceConfig, DeviceSet, DeviceSetState};
pub use stream::SeedStream;
pub use sync::{Request, SyncRequest, SyncState};
pub use transport::{TransportState, register};
pub use types::{Entry, Output};
pub use virtio::{VirtioConfig, VirtioSet, VirtioSetState, Window};
