//! Published UDP ports. Every client address gets a gateway port of its own, so that the guest's answer finds
//! its way back; datagrams are otherwise passed through one by one.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};

use smoltcp::time::{Duration, Instant};

use super::GatewayStats;
use super::link::{MAX_UDP_PAYLOAD, udp_frame};
use super::stack::Stack;

/// Client addresses that are remembered (R10). At the bound the one that has been silent longest is forgotten.
pub const UDP_MAX_CLIENTS: usize = 1024;
/// A client that has been silent for so long, in both directions, is forgotten.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often silent clients are looked for, while there are any.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// Datagrams read from one socket in one turn.
const BURST: usize = 64;
/// Gateway ports for UDP clients.
const FIRST_PORT: u16 = 1024;

struct Client {
    port: usize,
    address: SocketAddr,
    last_used: Instant,
}

struct UdpPort {
    socket: UdpSocket,
    guest_port: u16,
    readable: bool,
}

/// All published UDP ports and their clients.
pub(super) struct Udp {
    ports: Vec<UdpPort>,
    clients: HashMap<u16, Client>,
    gateway_ports: HashMap<(usize, SocketAddr), u16>,
    next_port: u16,
    buffer: Vec<u8>,
}

impl Udp {
    pub(super) fn new(sockets: Vec<(UdpSocket, u16)>) -> Udp {
        let ports = sockets
            .into_iter()
            .map(|(socket, guest_port)| UdpPort {
                socket,
                guest_port,
                readable: true,
            })
            .collect();
        Udp {
            ports,
            clients: HashMap::new(),
            gateway_ports: HashMap::new(),
            next_port: FIRST_PORT,
            // One byte more than fits, to notice datagrams that are too long.
            buffer: vec![0; MAX_UDP_PAYLOAD + 1],
        }
    }

    pub(super) fn sockets(&self) -> impl Iterator<Item = &UdpSocket> {
        self.ports.iter().map(|port| &port.socket)
    }

    pub(super) fn has_clients(&self) -> bool {
        !self.clients.is_empty()
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

    /// Passes on what clients sent. Without room in the ingress the datagrams stay in the kernel's socket buffer,
    /// which drops what it cannot hold, as UDP does.
    pub(super) fn turn(&mut self, stack: &mut Stack, now: Instant, stats: &mut GatewayStats) {
        for index in 0..self.ports.len() {
            for _ in 0..BURST {
                let port = &mut self.ports[index];
                if !port.readable || !stack.has_room() {
                    break;
                }
                match port.socket.recv_from(&mut self.buffer) {
                    Ok((length, _)) if length > MAX_UDP_PAYLOAD => stats.udp_dropped += 1,
                    Ok((length, address)) => {
                        let guest_port = port.guest_port;
                        let Some(gateway_port) = self.client(index, address, now, stats) else {
                            stats.udp_dropped += 1;
                            continue;
                        };
                        stats.bytes_to_guest += length as u64;
                        stack.send_raw(udp_frame(gateway_port, guest_port, &self.buffer[..length]));
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => port.readable = false,
                    // An ICMP error for an earlier datagram; reading it has cleared it.
                    Err(_) => {}
                }
            }
        }
    }

    /// The gateway port of a client.
    fn client(
        &mut self,
        port: usize,
        address: SocketAddr,
        now: Instant,
        stats: &mut GatewayStats,
    ) -> Option<u16> {
        if let Some(&gateway_port) = self.gateway_ports.get(&(port, address)) {
            self.clients.get_mut(&gateway_port)?.last_used = now;
            return Some(gateway_port);
        }
        if self.clients.len() >= UDP_MAX_CLIENTS {
            let oldest = self
                .clients
                .iter()
                .min_by_key(|(_, client)| client.last_used);
            let oldest = oldest.map(|(&gateway_port, _)| gateway_port)?;
            self.forget(oldest);
            stats.udp_evicted += 1;
        }
        // There are far more ports than clients, so this ends soon.
        while self.clients.contains_key(&self.next_port) {
            self.advance_port();
        }
        let gateway_port = self.next_port;
        self.advance_port();
        self.clients.insert(
            gateway_port,
            Client {
                port,
                address,
                last_used: now,
            },
        );
        self.gateway_ports.insert((port, address), gateway_port);
        stats.udp_clients = self.clients.len() as u64;
        Some(gateway_port)
    }

    fn advance_port(&mut self) {
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
    }

    fn forget(&mut self, gateway_port: u16) {
        if let Some(client) = self.clients.remove(&gateway_port) {
            self.gateway_ports.remove(&(client.port, client.address));
        }
    }

    /// A datagram of the guest. False: nobody is at that port.
    pub(super) fn guest_datagram(
        &mut self,
        guest_port: u16,
        gateway_port: u16,
        payload: &[u8],
        now: Instant,
        stats: &mut GatewayStats,
    ) -> bool {
        let Some(client) = self.clients.get_mut(&gateway_port) else {
            return false;
        };
        let port = &self.ports[client.port];
        if port.guest_port != guest_port {
            return false;
        }
        client.last_used = now;
        match port.socket.send_to(payload, client.address) {
            Ok(_) => stats.bytes_from_guest += payload.len() as u64,
            // A full socket buffer, an unreachable client: UDP may lose it.
            Err(_) => stats.udp_dropped += 1,
        }
        true
    }

    /// Forgets clients that have been silent.
    pub(super) fn sweep(&mut self, now: Instant, stats: &mut GatewayStats) {
        self.clients.retain(|_, client| {
            let keep = now < client.last_used + IDLE_TIMEOUT;
            if !keep {
                self.gateway_ports.remove(&(client.port, client.address));
            }
            keep
        });
        stats.udp_clients = self.clients.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn address(n: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 5))
    }

    fn udp() -> (Udp, GatewayStats) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        (Udp::new(vec![(socket, 53)]), GatewayStats::default())
    }

    #[test]
    fn the_client_that_was_silent_longest_makes_room() {
        let (mut udp, mut stats) = udp();
        let at = |n: usize| Instant::from_millis(n as i64);
        let ports: Vec<_> = (0..UDP_MAX_CLIENTS)
            .map(|n| udp.client(0, address(n), at(n), &mut stats).unwrap())
            .collect();
        let late = at(UDP_MAX_CLIENTS);
        assert_eq!(
            udp.client(0, address(0), late, &mut stats),
            Some(ports[0]),
            "known"
        );
        assert_eq!(stats.udp_evicted, 0);
        udp.client(0, address(UDP_MAX_CLIENTS), late, &mut stats)
            .unwrap();
        assert_eq!(
            (stats.udp_evicted, stats.udp_clients),
            (1, UDP_MAX_CLIENTS as u64)
        );
        assert!(
            !udp.clients.contains_key(&ports[1]),
            "client 1 was the oldest"
        );
        assert!(!udp.guest_datagram(53, ports[1], b"", late, &mut stats));
        assert!(
            !udp.guest_datagram(54, ports[0], b"", late, &mut stats),
            "another guest port"
        );
        assert_eq!(udp.clients.len(), udp.gateway_ports.len());
    }

    #[test]
    fn silent_clients_are_forgotten() {
        let (mut udp, mut stats) = udp();
        let start = Instant::from_secs(1);
        udp.client(0, address(1), start, &mut stats);
        udp.client(0, address(2), start + SWEEP_INTERVAL, &mut stats);
        udp.sweep(start + IDLE_TIMEOUT, &mut stats);
        assert_eq!(stats.udp_clients, 1);
        udp.sweep(start + SWEEP_INTERVAL + IDLE_TIMEOUT, &mut stats);
        assert!(!udp.has_clients() && udp.gateway_ports.is_empty());
    }

    #[test]
    fn gateway_ports_wrap_around_those_in_use() {
        let (mut udp, mut stats) = udp();
        udp.next_port = u16::MAX;
        let now = Instant::from_secs(1);
        assert_eq!(udp.client(0, address(1), now, &mut stats), Some(u16::MAX));
        assert_eq!(udp.client(0, address(2), now, &mut stats), Some(FIRST_PORT));
        udp.next_port = u16::MAX;
        assert_eq!(
            udp.client(0, address(3), now, &mut stats),
            Some(FIRST_PORT + 1)
        );
    }
}
