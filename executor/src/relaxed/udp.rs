//! Published UDP ports: every client address is a flow.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hub::{Hub, Inner};
use super::link::FlowId;
use crate::gateway::UDP_MAX_CLIENTS;
use crate::gateway::link::MAX_UDP_PAYLOAD;

/// A client that has been silent for so long, in both directions, is forgotten when there is need for room.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Datagrams read from one socket in one turn (R10).
const BURST: usize = 64;

struct Client {
    flow: FlowId,
    last_used: Instant,
}

struct UdpPort {
    socket: UdpSocket,
    guest_port: u16,
    readable: bool,
}

/// All published UDP ports and their clients. At [`UDP_MAX_CLIENTS`] the one that has been silent longest is forgotten (R10).
pub(super) struct Udp {
    ports: Vec<UdpPort>,
    clients: HashMap<(usize, SocketAddr), Client>,
    flows: HashMap<FlowId, (usize, SocketAddr)>,
    next: FlowId,
    swept: Instant,
    /// A socket was left with more to read, though there was room.
    more: bool,
    buffer: Vec<u8>,
    released: Vec<(FlowId, Arc<[u8]>)>,
}

impl Udp {
    pub(super) fn new(sockets: Vec<(UdpSocket, u16)>) -> Udp {
        let ports = sockets.into_iter().map(|(socket, guest_port)| UdpPort {
            socket,
            guest_port,
            readable: true,
        });
        Udp {
            ports: ports.collect(),
            clients: HashMap::new(),
            flows: HashMap::new(),
            next: 0,
            swept: Instant::now(),
            more: false,
            // One byte more than fits, to notice datagrams that are too long.
            buffer: vec![0; MAX_UDP_PAYLOAD + 1],
            released: Vec::new(),
        }
    }

    pub(super) fn sockets(&self) -> impl Iterator<Item = &UdpSocket> {
        self.ports.iter().map(|port| &port.socket)
    }

    pub(super) fn set_readable(&mut self, index: usize) {
        if let Some(port) = self.ports.get_mut(index) {
            port.readable = true;
        }
    }

    /// Some socket may have more to read.
    pub(super) fn is_readable(&self) -> bool {
        self.ports.iter().any(|port| port.readable)
    }

    /// There is more to read at once.
    pub(super) fn has_more(&self) -> bool {
        self.more
    }

    /// Passes on what clients sent and what was released. Without room in the log datagrams stay in the kernel's socket buffer, which
    /// drops what it cannot hold, as UDP does.
    pub(super) fn turn(&mut self, hub: &Hub, inner: &mut Inner) {
        if self.ports.is_empty() {
            return;
        }
        let now = Instant::now();
        self.more = false;
        for index in 0..self.ports.len() {
            for count in 0.. {
                let Some(port) = self.ports.get_mut(index).filter(|port| port.readable) else {
                    break;
                };
                if !hub.log_has_room(inner) {
                    break;
                }
                if count == BURST {
                    self.more = true;
                    break;
                }
                match port.socket.recv_from(&mut self.buffer) {
                    Ok((length, _)) if length > MAX_UDP_PAYLOAD => {}
                    Ok((length, address)) => {
                        let guest_port = port.guest_port;
                        let flow = self.flow(hub, inner, (index, address), now);
                        let bytes = self.buffer.get(..length).unwrap_or_default();
                        hub.datagram(inner, flow, guest_port, bytes);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => port.readable = false,
                    // An ICMP error for an earlier datagram; reading it has cleared it.
                    Err(_) => {}
                }
            }
        }
        let mut released = std::mem::take(&mut self.released);
        hub.take_datagrams(inner, &mut released);
        for (flow, bytes) in released.drain(..) {
            let Some(&(index, address)) = self.flows.get(&flow) else {
                continue;
            };
            if let Some(client) = self.clients.get_mut(&(index, address)) {
                client.last_used = now;
            }
            if let Some(port) = self.ports.get(index) {
                // A datagram may get lost.
                let _ = port.socket.send_to(&bytes, address);
            }
        }
        self.released = released;
        if now.duration_since(self.swept) > IDLE_TIMEOUT {
            self.swept = now;
            let idle = |client: &Client| now.duration_since(client.last_used) > IDLE_TIMEOUT;
            let old = self.clients.iter().filter(|(_, client)| idle(client));
            let old: Vec<_> = old.map(|(key, _)| *key).collect();
            for key in old {
                self.forget(hub, inner, key);
            }
        }
    }

    fn forget(&mut self, hub: &Hub, inner: &mut Inner, key: (usize, SocketAddr)) {
        if let Some(client) = self.clients.remove(&key) {
            self.flows.remove(&client.flow);
            hub.forget_flow(inner, client.flow);
        }
    }

    fn flow(
        &mut self,
        hub: &Hub,
        inner: &mut Inner,
        key: (usize, SocketAddr),
        now: Instant,
    ) -> FlowId {
        if let Some(client) = self.clients.get_mut(&key) {
            client.last_used = now;
            return client.flow;
        }
        if self.clients.len() >= UDP_MAX_CLIENTS {
            let oldest = self
                .clients
                .iter()
                .min_by_key(|(_, client)| client.last_used);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.forget(hub, inner, oldest);
            }
        }
        let flow = self.next;
        self.next += 1;
        let last_used = now;
        self.clients.insert(key, Client { flow, last_used });
        self.flows.insert(flow, key);
        flow
    }
}
