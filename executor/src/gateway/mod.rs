//! The gateway: a user-mode network between released guest frames and ordinary host sockets.
//!
//! Towards the world there are real sockets: a listener for every published port and one socket per connection.
//! Towards the guest there is an Ethernet link (`quorate_abi::net`) on which the gateway is the only other party, with
//! smoltcp as its TCP. One thread runs it all. It meets the replicas at two bounded queues: agreed frames come in
//! through [`Gateway::deliver`], and frames for the guest wait in the [`Ingress`] for a leader to journal them.
//!
//! Connections come from outside only. What the guest tries to open itself is refused and counted.
//! Every byte from the guest is hostile (R9): at worst it ends its own connection.

mod event_loop;
mod flow;
mod ingress;
pub mod link;
mod publish;
pub mod stack;
#[cfg(test)]
mod tests;
mod udp;
pub(crate) mod watch;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use thiserror::Error;

use event_loop::EventLoop;
use ingress::Mailbox;
pub(crate) use ingress::Waker;
use udp::Udp;

pub use flow::{FLOW_RX_BUFFER, FLOW_TX_BUFFER};
pub use ingress::{
    INGRESS_MAX_BYTES, INGRESS_MAX_FRAMES, Ingress, MAILBOX_MAX_BYTES, MAILBOX_MAX_FRAMES, Room,
};
pub use publish::{ParsePublishError, Protocol, Publish};
pub use udp::UDP_MAX_CLIENTS;

/// Called when the ingress stops being empty.
type Notify = Arc<dyn Fn() + Send + Sync>;

/// Default of [`GatewayConfig::max_connections`].
pub const DEFAULT_MAX_CONNECTIONS: usize = 4096;
/// Upper bound of [`GatewayConfig::max_connections`]: well below the number of ports that tell connections apart.
pub const LIMIT_MAX_CONNECTIONS: usize = 32_768;
/// Upper bound of published ports.
pub const MAX_PUBLISHED: usize = 1024;
/// Connections that the kernel completes before the gateway accepts them.
const BACKLOG: i32 = 4096;
/// File descriptors left for the rest of the process.
const OTHER_DESCRIPTORS: u64 = 256;

/// What a gateway is started with.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// The published ports, at most [`MAX_PUBLISHED`].
    pub publish: Vec<Publish>,
    /// TCP connections at a time (R10). Beyond that, clients wait in the listener's backlog until one ends.
    /// Each holds at most [`FLOW_RX_BUFFER`] + [`FLOW_TX_BUFFER`] bytes.
    pub max_connections: usize,
    /// Whether to compute TCP checksums for the guest. Off saves a pass over the bytes, for a guest that does not verify
    /// them (the link is memory).
    pub checksums: bool,
    /// The port with which connections to the guest begin to be numbered. A guest that goes on from where it was saved still
    /// knows the connections of before, so that their ports are best left alone ([`GatewayStats::next_port`]).
    pub first_port: u16,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        GatewayConfig {
            publish: Vec::new(),
            max_connections: DEFAULT_MAX_CONNECTIONS,
            checksums: true,
            first_port: 0,
        }
    }
}

/// Why a gateway did not start.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// The host address belongs to somebody else.
    #[error(
        "cannot publish {publish}: port {} at {} is in use by another program; stop it (`ss -ltnup` \
         names it) or publish another host port",
        publish.host.port(), publish.host.ip()
    )]
    InUse {
        /// What was to be published.
        publish: Publish,
    },
    /// The user may not bind the port.
    #[error(
        "cannot publish {publish}: no permission to bind port {}; choose a host port from 1024 up, or \
         lower the sysctl net.ipv4.ip_unprivileged_port_start",
        publish.host.port()
    )]
    NoPermission {
        /// What was to be published.
        publish: Publish,
    },
    /// The address is not one of this machine's.
    #[error(
        "cannot publish {publish}: this machine has no address {}; `ip addr` lists those it has",
        publish.host.ip()
    )]
    NoSuchAddress {
        /// What was to be published.
        publish: Publish,
    },
    /// Anything else that stopped a published port.
    #[error("cannot publish {publish}: {error}")]
    Bind {
        /// What was to be published.
        publish: Publish,
        /// What the system said.
        error: io::Error,
    },
    /// Too many published ports.
    #[error("{0} published ports are too many, at most {MAX_PUBLISHED} are possible")]
    TooManyPublished(usize),
    /// A number of connections that cannot be.
    #[error("max_connections is {0}, it must be from 1 to {LIMIT_MAX_CONNECTIONS}")]
    MaxConnections(usize),
    /// The event loop could not be set up.
    #[error("cannot set up the gateway's event loop: {0}")]
    EventLoop(#[from] event_manager::Error),
    /// An event descriptor or the thread could not be had.
    #[error("cannot start the gateway: {0}")]
    Start(#[from] io::Error),
}

/// What a gateway has done so far. Bytes are TCP and UDP payload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GatewayStats {
    /// TCP connections now.
    pub connections: u64,
    /// TCP connections accepted so far.
    pub connections_total: u64,
    /// Clients known to UDP ports now.
    pub udp_clients: u64,
    /// The gateway's port of the next connection.
    pub next_port: u16,
    /// Bytes passed on to the guest.
    pub bytes_to_guest: u64,
    /// Bytes passed on to clients.
    pub bytes_from_guest: u64,
    /// Frames put into the ingress.
    pub frames_to_guest: u64,
    /// Agreed frames taken from the voter.
    pub frames_from_guest: u64,
    /// Connections that the guest reset, refusals included.
    pub resets_by_guest: u64,
    /// Connections that the client reset.
    pub resets_by_client: u64,
    /// Connections that the guest did not accept in time.
    pub connect_timeouts: u64,
    /// Attempts of the guest to reach somebody, refused.
    pub outgoing_refused: u64,
    /// Frames from the guest that made no sense.
    pub frames_malformed: u64,
    /// Frames from the guest that the gateway does not serve.
    pub frames_ignored: u64,
    /// Agreed frames dropped because the gateway's thread was too far behind.
    pub deliver_dropped: u64,
    /// Answers to the guest dropped because the ingress was full.
    pub ingress_dropped: u64,
    /// UDP datagrams dropped.
    pub udp_dropped: u64,
    /// UDP clients forgotten to make room for another.
    pub udp_evicted: u64,
    /// Connections that could not be accepted at once (no descriptors left, for example).
    pub accept_failures: u64,
    /// Times that the gateway's thread woke up and went through its work.
    pub turns: u64,
    /// Connections ended because their handling panicked: a defect, please report it.
    pub faults: u64,
}

/// What the gateway's thread shares with the rest.
struct Shared {
    waker: Arc<Waker>,
    ingress: Arc<Ingress>,
    mailbox: Mailbox,
    stop: AtomicBool,
    stats: Mutex<GatewayStats>,
}

impl Shared {
    fn store_stats(&self, stats: &GatewayStats) {
        self.stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(stats);
    }
}

/// A running gateway. Dropping it stops it.
pub struct Gateway {
    shared: Arc<Shared>,
    addresses: Vec<(Publish, SocketAddr)>,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Binds all published ports and starts the thread. `notify` is called by it whenever the ingress goes from empty to
    /// not empty, after a whole batch; it must not block.
    ///
    /// Raises the process's soft limit of open files towards what `max_connections` needs, as far as the hard limit lets it.
    ///
    /// # Errors
    /// Names the port that cannot be bound, and what to do.
    pub fn start(config: GatewayConfig, notify: Notify) -> Result<Gateway, GatewayError> {
        if !(1..=LIMIT_MAX_CONNECTIONS).contains(&config.max_connections) {
            return Err(GatewayError::MaxConnections(config.max_connections));
        }
        let bound = bind(&config.publish)?;
        raise_descriptor_limit(config.max_connections);
        let waker = Arc::new(Waker::new()?);
        let shared = Arc::new(Shared {
            ingress: Arc::new(Ingress::new(waker.clone())),
            mailbox: Mailbox::new(waker.clone()),
            waker,
            stop: AtomicBool::new(false),
            stats: Mutex::default(),
        });
        // Initial sequence numbers come from this.
        let seed = RandomState::new().build_hasher().finish();
        let event_loop = EventLoop::new(
            shared.clone(),
            notify,
            bound.tcp,
            Udp::new(bound.udp),
            &config,
            seed,
        )?;
        let thread = std::thread::Builder::new()
            .name("gateway".to_owned())
            .spawn(move || event_loop.run())?;
        Ok(Gateway {
            shared,
            addresses: bound.addresses,
            thread: Some(thread),
        })
    }

    /// Where frames for the guest wait.
    pub fn ingress(&self) -> Arc<Ingress> {
        self.shared.ingress.clone()
    }

    /// Takes frames that the voter has released, in their order. Never waits for the network. At
    /// [`MAILBOX_MAX_FRAMES`] or [`MAILBOX_MAX_BYTES`] not yet handled, further ones are dropped and counted (R10);
    /// the guest's TCP sends them again.
    pub fn deliver(&self, frames: Vec<Vec<u8>>) {
        self.shared.mailbox.put(frames);
    }

    /// The published ports with the addresses that they are really at (a host port of 0 has become one).
    pub fn addresses(&self) -> Vec<(Publish, SocketAddr)> {
        self.addresses.clone()
    }

    /// Counters as of the thread's last turn.
    pub fn stats(&self) -> GatewayStats {
        let mut stats = self
            .shared
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        stats.deliver_dropped = self.shared.mailbox.dropped();
        stats
    }

    /// Passes on what was delivered before, closes all sockets, and waits for the thread to end.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.waker.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the gateway's thread had panicked");
        }
    }
}

/// Published ports with their sockets, which do not block.
pub(crate) struct Bound {
    /// Where they really are.
    pub(crate) addresses: Vec<(Publish, SocketAddr)>,
    /// Listeners with the guest's ports.
    pub(crate) tcp: Vec<(TcpListener, u16)>,
    /// Sockets with the guest's ports.
    pub(crate) udp: Vec<(UdpSocket, u16)>,
}

/// Binds published ports.
///
/// # Errors
/// Names the port that cannot be bound, and what to do.
pub(crate) fn bind(publish: &[Publish]) -> Result<Bound, GatewayError> {
    if publish.len() > MAX_PUBLISHED {
        return Err(GatewayError::TooManyPublished(publish.len()));
    }
    let mut all = Bound {
        addresses: Vec::new(),
        tcp: Vec::new(),
        udp: Vec::new(),
    };
    for publish in publish.iter().cloned() {
        let bound = match publish.protocol {
            Protocol::Tcp => listen(publish.host).map(|(socket, address)| {
                all.tcp.push((socket, publish.guest_port));
                address
            }),
            Protocol::Udp => bind_udp(publish.host).map(|(socket, address)| {
                all.udp.push((socket, publish.guest_port));
                address
            }),
        };
        match bound {
            Ok(address) => all.addresses.push((publish, address)),
            Err(error) => return Err(bind_error(publish, error)),
        }
    }
    Ok(all)
}

/// Makes the close of this socket a reset.
pub(crate) fn reset_on_close(socket: &impl std::os::fd::AsFd) {
    // If it fails the socket has gone already, and the reason with it.
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(std::time::Duration::ZERO));
}

fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)?;
    // The standard library's backlog is 128: too few when hundreds of clients connect at once.
    rustix::net::listen(&listener, BACKLOG)?;
    // Accepted sockets inherit this: answers must not wait for the client's acknowledgement.
    rustix::net::sockopt::set_tcp_nodelay(&listener, true)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn bind_udp(address: SocketAddr) -> io::Result<(UdpSocket, SocketAddr)> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    let address = socket.local_addr()?;
    Ok((socket, address))
}

fn bind_error(publish: Publish, error: io::Error) -> GatewayError {
    match error.kind() {
        io::ErrorKind::AddrInUse => GatewayError::InUse { publish },
        io::ErrorKind::PermissionDenied => GatewayError::NoPermission { publish },
        io::ErrorKind::AddrNotAvailable => GatewayError::NoSuchAddress { publish },
        _ => GatewayError::Bind { publish, error },
    }
}

/// The usual soft limit of 1024 is below the default of `max_connections`. If it cannot be raised, clients
/// beyond it wait, as at `max_connections`.
pub(crate) fn raise_descriptor_limit(max_connections: usize) {
    let wanted = max_connections as u64 + OTHER_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let current = Some(limit.maximum.map_or(wanted, |maximum| wanted.min(maximum)));
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current,
            maximum: limit.maximum,
        },
    ) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
