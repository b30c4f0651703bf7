//! One replica's end of its network: a TCP and UDP endpoint towards ONE guest, playing the gateway's part of the link
//! (`quorate_abi::net`).
//!
//! It has no thread, no clock and no file: input events and the guest's frames go in, frames for the guest and what the
//! guest says on each connection come out, and time is told. Everything it knows is plain data, because it is
//! checkpointed together with its guest: a guest that goes on from an older state meets the endpoint it knew then.
//! smoltcp's sockets cannot be saved, hence this TCP; smoltcp reads and writes the headers.
//!
//! All connections are opened from here; what the guest tries to open itself is refused. The link is memory: a frame is
//! lost only when some bound drops it. So this TCP resends by a timer alone, keeps no segments that came out of order
//! (it acknowledges what it has, and the guest sends the rest again), and knows no congestion.
//!
//! **Order.** Data, ends, resets and datagrams leave in the order in which they came in, over all connections: that is what
//! makes replicas see requests in the same order. A connection whose window is shut delays only itself; one that the
//! guest has not accepted yet delays what came after its first bytes, for [`HANDSHAKE_HOLD_NS`] at most.
//!
//! **Booting.** Connections to a port on which nobody listens yet wait, while the guest may be booting: see `boot`.
//!
//! Every frame of the guest is hostile (R9): at worst it ends its own connection.

mod boot;
mod conn;
mod datagrams;
mod endpoint;
mod state;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use boot::{MAX_PROBE_NS, MAX_PROBES, PROBE_NS};
pub use endpoint::Link;
pub use state::{LinkState, RestoreLinkError};

/// A connection, as the front numbers them.
pub type ConnId = u64;
/// A UDP client at one published port, as the front numbers them.
pub type FlowId = u64;

/// Nanoseconds of a millisecond.
const MS: u64 = 1_000_000;

/// Connections at a time (R10). One more is refused at once.
pub const MAX_CONNECTIONS: usize = 32_768;
/// Bytes for the guest that a connection holds, unacknowledged ones included (R10). At the bound the connection is reset:
/// whoever feeds it looks at [`Link::unsent`] before.
pub const MAX_UNSENT: usize = 1 << 20;
/// The same over all connections and datagrams together.
pub const MAX_UNSENT_TOTAL: usize = 64 << 20;
/// Default of [`LinkConfig::receive_window`].
pub const RECEIVE_WINDOW: u32 = 256 * 1024;
/// Largest [`LinkConfig::receive_window`].
pub const MAX_RECEIVE_WINDOW: u32 = 16 << 20;
/// Datagrams for the guest that wait (R10); further ones are dropped and counted, as UDP may.
pub const MAX_DATAGRAMS: usize = 1024;
/// UDP flows that are remembered (R10). At the bound the one that has been silent longest is forgotten.
pub const MAX_FLOWS: usize = 1024;
/// Answers to ARP, ICMP and refused frames that wait (R10); further ones are dropped and counted.
pub const MAX_REPLIES: usize = 256;
/// Events that wait for [`Link::events`], in bytes of stream data and datagrams (R10). At the bound further frames of the
/// guest are dropped; it sends them again.
pub const MAX_EVENT_BYTES: usize = 64 << 20;
/// How long a lone acknowledgement waits for data to travel with. Shorter than any sender's retransmission timer
/// (RFC 9293 allows 500 ms).
pub const ACK_DELAY_NS: u64 = 20 * MS;
/// An acknowledgement does not wait when this many bytes are unacknowledged: then the guest's send buffer may be what
/// limits it.
pub const ACK_NOW_BYTES: u32 = 4096;
/// A segment smaller than this is not sent into a window that will soon be larger, while there is more to send.
pub const SMALL_SEGMENT: usize = 4096;
/// First timeout of a retransmission or of a probe of a shut window; it doubles.
pub const RETRANSMIT_NS: u64 = 200 * MS;
/// Largest timeout.
pub const MAX_RETRANSMIT_NS: u64 = 5_000 * MS;
/// Timeouts in a row without a sign of progress after which a connection is reset: more than a minute.
pub const MAX_TRIES: u32 = 18;
/// A guest that has not accepted a connection by then is taken not to listen.
pub const CONNECT_TIMEOUT_NS: u64 = 30_000 * MS;
/// How long a guest may take to acknowledge the end of a connection that both sides have ended.
pub const ORPHAN_TIMEOUT_NS: u64 = 60_000 * MS;
/// How long the first bytes of a connection that the guest has not accepted yet delay the inputs that came after them. After
/// such a delay was for nothing there is none until the guest has accepted a connection again.
pub const HANDSHAKE_HOLD_NS: u64 = 50 * MS;

/// What a [`Link`] is made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkConfig {
    /// Compute TCP's checksums. Off saves a pass over the bytes, for a guest that does not verify them.
    pub checksums: bool,
    /// Initial sequence numbers come from it.
    pub seed: u64,
    /// Bytes from the guest on one connection that may wait to be taken by the outside (R10). From 4 KiB to
    /// [`MAX_RECEIVE_WINDOW`]; what is outside of it counts as the nearest.
    pub receive_window: u32,
    /// Ports of the guest that somebody will listen on when it has booted: until then connections to them wait. At most [`MAX_PROBES`].
    pub listens: Vec<u16>,
    /// How long that may take, from when the endpoint is told the time first. Then connections do not wait any more.
    pub boot_ns: u64,
}

impl Default for LinkConfig {
    fn default() -> Self {
        LinkConfig {
            checksums: true,
            seed: 0,
            receive_window: RECEIVE_WINDOW,
            listens: Vec::new(),
            boot_ns: 0,
        }
    }
}

/// An input event for the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest {
    /// A client has connected to a published port.
    Open {
        /// Its number, never used before.
        conn: ConnId,
        /// The guest's port.
        guest_port: u16,
    },
    /// The client's stream goes on.
    Data {
        /// The connection.
        conn: ConnId,
        /// At least one byte.
        bytes: Arc<[u8]>,
    },
    /// The client's stream has ended.
    Shut {
        /// The connection.
        conn: ConnId,
    },
    /// The client is gone. No event of the connection follows.
    Reset {
        /// The connection.
        conn: ConnId,
    },
    /// Somebody types at the console. Not for the endpoint, which ignores it.
    Typed {
        /// At least one byte.
        bytes: Arc<[u8]>,
    },
    /// A datagram.
    Datagram {
        /// From whom.
        flow: FlowId,
        /// The guest's port.
        guest_port: u16,
        /// Its payload, at most [`crate::gateway::link::MAX_UDP_PAYLOAD`] bytes.
        bytes: Arc<[u8]>,
    },
}

/// What the guest says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromGuest {
    /// Somebody listens on this port, of those in [`LinkConfig::listens`].
    Listens {
        /// The guest's port.
        guest_port: u16,
    },
    /// It has accepted the connection.
    Opened {
        /// The connection.
        conn: ConnId,
    },
    /// Nobody listens there, or not in time. The last event of the connection.
    Refused {
        /// The connection.
        conn: ConnId,
    },
    /// Its stream goes on.
    Data {
        /// The connection.
        conn: ConnId,
        /// At least one byte.
        bytes: Vec<u8>,
    },
    /// Its stream has ended.
    Shut {
        /// The connection.
        conn: ConnId,
    },
    /// It has reset the connection, or does not answer any more. The last event of the connection.
    Reset {
        /// The connection.
        conn: ConnId,
    },
    /// A datagram for a client.
    Datagram {
        /// To whom.
        flow: FlowId,
        /// Its payload.
        bytes: Vec<u8>,
    },
}

/// What a link has done so far. Bytes are TCP and UDP payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCounters {
    /// Connections opened.
    pub opened: u64,
    /// Frames for the guest.
    pub frames_to_guest: u64,
    /// Frames of the guest.
    pub frames_from_guest: u64,
    /// Payload sent, repetitions included.
    pub bytes_to_guest: u64,
    /// Payload taken from the guest.
    pub bytes_from_guest: u64,
    /// Timeouts after which something was sent again.
    pub retransmissions: u64,
    /// Segments of the guest that held nothing new, or did not follow what is there.
    pub segments_dropped: u64,
    /// Connections that the guest reset, refusals included.
    pub resets_by_guest: u64,
    /// Connections given up because the guest did not answer.
    pub timeouts: u64,
    /// Connections reset because a bound on what waits for the guest was passed.
    pub overruns: u64,
    /// Attempts of the guest to reach somebody, refused.
    pub outgoing_refused: u64,
    /// Frames from the guest that made no sense.
    pub frames_malformed: u64,
    /// Frames from the guest that are not served.
    pub frames_ignored: u64,
    /// Answers to the guest dropped because too many waited.
    pub replies_dropped: u64,
    /// Datagrams dropped in either direction.
    pub datagrams_dropped: u64,
    /// UDP flows forgotten to make room for another.
    pub flows_evicted: u64,
    /// Inputs for connections that were gone already.
    pub late_inputs: u64,
}
