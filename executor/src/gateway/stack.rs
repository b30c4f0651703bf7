//! smoltcp's view of the link. One `Interface` (address, clock, random numbers) serves all connections; each
//! connection has a `SocketSet` of its own with a single socket, because smoltcp searches a set linearly
//! for every packet.

use std::net::Ipv4Addr;

use quorate_abi::net::{ETHERNET_HEADER, GATEWAY_MAC, GUEST_MAC, MAX_FRAME, MTU, PREFIX_LEN};
use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};

use super::ingress::Room;
use super::link::{GATEWAY, GUEST, write_header};

/// Interface and device.
pub struct Stack {
    iface: Interface,
    link: Link,
}

/// A device that holds one frame to be received and the frames to be sent.
struct Link {
    capabilities: DeviceCapabilities,
    to: [u8; 6],
    from: [u8; 6],
    received: Option<Vec<u8>>,
    out: Vec<Vec<u8>>,
    out_bytes: usize,
    room: Room,
    dropped: u64,
}

impl Stack {
    /// The gateway's end of the link. `checksums`: compute TCP's in frames to the guest. In frames from the guest they
    /// are not verified: the link is memory, and the voter has compared every byte already.
    pub fn gateway(checksums: bool, seed: u64, now: Instant) -> Stack {
        let checksum = if checksums {
            Checksum::Tx
        } else {
            Checksum::None
        };
        Stack::new(GATEWAY, GUEST_MAC, GATEWAY_MAC, checksum, seed, now)
    }

    /// The guest's end, for tests of what is at the other. It may send as much as it likes.
    pub fn guest(seed: u64, now: Instant) -> Stack {
        // It verifies the checksums that the gateway computes.
        let mut stack = Stack::new(GUEST, GATEWAY_MAC, GUEST_MAC, Checksum::Both, seed, now);
        stack.set_room(Room {
            frames: usize::MAX,
            bytes: usize::MAX,
        });
        stack
    }

    fn new(
        ip: Ipv4Addr,
        to: [u8; 6],
        from: [u8; 6],
        tcp: Checksum,
        seed: u64,
        now: Instant,
    ) -> Stack {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(MTU);
        // The IPv4 header's is cheap, and no offload excuses a guest from checking it.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = tcp;
        let mut link = Link {
            capabilities,
            to,
            from,
            received: None,
            out: Vec::new(),
            out_bytes: 0,
            room: Room {
                frames: 0,
                bytes: 0,
            },
            dropped: 0,
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut iface = Interface::new(config, &mut link, now);
        // The list has room for at least one address (smoltcp's iface-max-addr-count).
        iface.update_ip_addrs(|list| {
            let _ = list.push(IpCidr::new(ip.into(), PREFIX_LEN));
        });
        Stack { iface, link }
    }

    /// Bounds what may be sent until the next [`Stack::take_out`].
    pub fn set_room(&mut self, room: Room) {
        self.link.room = room;
    }

    /// Room for at least one more frame of any size.
    pub fn has_room(&self) -> bool {
        self.link.has_room()
    }

    /// What a socket needs to connect.
    pub fn context(&mut self) -> &mut smoltcp::iface::Context {
        self.iface.context()
    }

    /// Feeds one Ethernet frame to a connection's socket. An immediate answer goes out, or is dropped when there is no room.
    pub fn receive(&mut self, frame: Vec<u8>, sockets: &mut SocketSet<'static>, now: Instant) {
        self.link.received = Some(frame);
        self.iface.poll_ingress_single(now, &mut self.link, sockets);
    }

    /// Sends all that a connection's socket has to send. False: room ran out before.
    pub fn send(&mut self, sockets: &mut SocketSet<'static>, now: Instant) -> bool {
        while self.link.has_room() {
            if self.iface.poll_egress(now, &mut self.link, sockets) == PollResult::None {
                return true;
            }
        }
        false
    }

    /// When a timer of a connection's socket runs out.
    pub fn poll_at(&mut self, sockets: &SocketSet<'static>, now: Instant) -> Option<Instant> {
        self.iface.poll_at(now, sockets)
    }

    /// Sends a frame that was built by hand, or drops it when there is no room.
    pub fn send_raw(&mut self, frame: Vec<u8>) {
        self.link.push(frame);
    }

    /// The frames to send so far, their bytes, and how many were dropped since the last call.
    pub fn take_out(&mut self) -> (&mut Vec<Vec<u8>>, usize, u64) {
        let bytes = std::mem::take(&mut self.link.out_bytes);
        let dropped = std::mem::take(&mut self.link.dropped);
        (&mut self.link.out, bytes, dropped)
    }
}

impl Link {
    fn has_room(&self) -> bool {
        self.out.len() < self.room.frames && self.out_bytes + MAX_FRAME <= self.room.bytes
    }

    fn push(&mut self, frame: Vec<u8>) {
        if self.has_room() {
            self.out_bytes += frame.len();
            self.out.push(frame);
        } else {
            self.dropped += 1;
        }
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Send<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Send<'_>)> {
        let frame = self.received.take()?;
        Some((Received(frame), Send(self)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Send<'_>> {
        Some(Send(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0.get(ETHERNET_HEADER..).unwrap_or_default())
    }
}

struct Send<'a>(&'a mut Link);

impl TxToken for Send<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; ETHERNET_HEADER + len];
        write_header(&mut frame, self.0.to, self.0.from);
        let result = f(&mut frame[ETHERNET_HEADER..]);
        self.0.push(frame);
        result
    }
}
