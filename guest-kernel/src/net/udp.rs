//! UDP: ports, bounded queues, and the socket.

use super::link::{Output, checksums};
use super::listener::{Binding, Ports};
use super::msg::{AF_INET, IPPROTO_UDP, SOCK_DGRAM};
use super::options::{Identity, Options};
use super::sockaddr::{ANY, Address, BROADCAST, Ip, is_loopback, is_multicast};
use super::socket::{Incoming, Outgoing, Socket, copy_parts, parts_len};
use crate::errno::*;
use crate::file::ready;
use crate::wait::WaitQueue;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use quorate_abi::net::MTU;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol,
    Ipv4Address, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

/// Bytes that wait in a socket's queue (R10), with [`OVERHEAD`] for each datagram; more are dropped, as in Linux.
pub const UDP_QUEUE_BYTES: usize = 212_992;
/// What each datagram counts beyond its bytes, so that empty ones are bounded too.
const OVERHEAD: usize = 256;
/// Most sockets on one port (R10): `EADDRINUSE` beyond.
const SOCKETS_PER_PORT: usize = 64;
const HEADERS: usize = 28;
/// Longest datagram: what IPv4 can carry.
const LONGEST: usize = 65_507;
/// Bytes of a refused datagram that the ICMP error quotes (RFC 792: header and 8 bytes are what receivers use).
const QUOTED: usize = 8;

struct Datagram {
    from: (Ip, u16),
    data: Vec<u8>,
}

#[derive(Default)]
struct Inner {
    binding: Option<Binding>,
    peer: Option<(Ip, u16)>,
    /// Address chosen by `connect` for a socket that is bound to all.
    source: Ip,
    queue: VecDeque<Datagram>,
    bytes: usize,
    error: Option<Errno>,
    read_shut: bool,
    write_shut: bool,
}

/// What the stack and the socket share.
pub struct State {
    inner: RefCell<Inner>,
    wait: Rc<WaitQueue>,
}

/// What became of a datagram.
pub enum Delivery {
    /// It waits in a socket's queue; wake this.
    Queued(Rc<WaitQueue>),
    /// The socket's queue is full.
    Full,
    /// Nobody is there.
    NoSocket,
    /// It is not a valid datagram.
    Malformed,
}

/// UDP's part of the stack.
#[derive(Default)]
pub struct Datagrams {
    /// Ports in use.
    pub ports: Ports,
    sockets: BTreeMap<u16, Vec<Rc<State>>>,
}

fn is_own(ip: Ip) -> bool {
    is_loopback(ip) || ip == super::OWN_IP
}

fn address(ip: Ip) -> Ipv4Address {
    Ipv4Address::from_bits(ip)
}

impl Datagrams {
    /// Takes a datagram from the network (R9: hostile).
    pub fn receive(
        &mut self,
        payload: &[u8],
        source: Ip,
        destination: Ip,
        loopback: bool,
    ) -> Delivery {
        let Ok(packet) = UdpPacket::new_checked(payload) else {
            return Delivery::Malformed;
        };
        let (from, to) = (address(source), address(destination));
        let Ok(repr) = UdpRepr::parse(&packet, &from.into(), &to.into(), &checksums(loopback))
        else {
            return Delivery::Malformed;
        };
        let remote = (source, repr.src_port);
        let Some(sockets) = self.sockets.get(&repr.dst_port) else {
            return Delivery::NoSocket;
        };
        let fit = |state: &State| {
            let inner = state.inner.borrow();
            let bound = inner.binding.map_or(ANY, |b| b.ip);
            if (bound != ANY && bound != destination)
                || inner.peer.is_some_and(|peer| peer != remote)
            {
                return 0;
            }
            1 + u32::from(bound != ANY) + 2 * u32::from(inner.peer.is_some())
        };
        // The most particular socket gets it; of equals, the first.
        let mut best: Option<(&Rc<State>, u32)> = None;
        for state in sockets {
            let score = fit(state);
            if score > best.map_or(0, |(_, s)| s) {
                best = Some((state, score));
            }
        }
        let Some((state, _)) = best else {
            return Delivery::NoSocket;
        };
        let mut inner = state.inner.borrow_mut();
        let cost = packet.payload().len() + OVERHEAD;
        if inner.bytes + cost > UDP_QUEUE_BYTES {
            return Delivery::Full;
        }
        inner.bytes += cost;
        inner.queue.push_back(Datagram {
            from: remote,
            data: packet.payload().to_vec(),
        });
        Delivery::Queued(state.wait.clone())
    }

    /// Takes an ICMP message: a refused datagram is an error of the connected socket that sent it.
    pub fn receive_icmp(&mut self, payload: &[u8], loopback: bool) -> Option<Rc<WaitQueue>> {
        let packet = Icmpv4Packet::new_checked(payload).ok()?;
        if packet.msg_type() != Icmpv4Message::DstUnreachable {
            return None;
        }
        if checksums(loopback).icmpv4.rx() && !packet.verify_checksum() {
            return None;
        }
        // The quoted packet is cut short, so it is not a valid one: header, and at least 8 bytes behind it.
        let quoted = packet.data();
        let header_len = usize::from(quoted.first()? & 15) * 4;
        let header = quoted.get(..header_len.max(20))?;
        let &[s0, s1, d0, d1, ..] = quoted.get(header_len.max(20)..)? else {
            return None;
        };
        if header[9] != u8::from(IpProtocol::Udp) {
            return None;
        }
        let (port, to) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
        let peer = (
            u32::from_be_bytes([header[16], header[17], header[18], header[19]]),
            to,
        );
        let reason = Icmpv4DstUnreachable::from(packet.msg_code());
        let state = self
            .sockets
            .get(&port)?
            .iter()
            .find(|s| s.inner.borrow().peer == Some(peer))?;
        state.inner.borrow_mut().error = Some(match reason {
            Icmpv4DstUnreachable::PortUnreachable => ECONNREFUSED,
            _ => EHOSTUNREACH,
        });
        Some(state.wait.clone())
    }

    fn add(&mut self, state: &Rc<State>, binding: Binding) -> Result<()> {
        let sockets = self.sockets.entry(binding.port).or_default();
        if sockets.len() >= SOCKETS_PER_PORT {
            self.ports.unbind(binding);
            return Err(EADDRINUSE);
        }
        sockets.push(state.clone());
        state.inner.borrow_mut().binding = Some(binding);
        Ok(())
    }

    fn remove(&mut self, state: &Rc<State>) {
        let Some(binding) = state.inner.borrow_mut().binding.take() else {
            return;
        };
        self.ports.unbind(binding);
        if let Some(sockets) = self.sockets.get_mut(&binding.port) {
            sockets.retain(|s| !Rc::ptr_eq(s, state));
            if sockets.is_empty() {
                self.sockets.remove(&binding.port);
            }
        }
    }
}

/// Answers a datagram to a port without a socket.
pub fn refuse(packet: &[u8], output: &mut Output, loopback: bool) {
    let Ok(packet) = Ipv4Packet::new_checked(packet) else {
        return;
    };
    let Ok(header) = Ipv4Repr::parse(&packet, &checksums(loopback)) else {
        return;
    };
    if header.dst_addr.is_broadcast() || header.dst_addr.is_multicast() {
        return;
    }
    let data = packet.payload();
    let icmp = Icmpv4Repr::DstUnreachable {
        reason: Icmpv4DstUnreachable::PortUnreachable,
        header,
        data: &data[..data.len().min(QUOTED)],
    };
    let ip = Ipv4Repr {
        src_addr: header.dst_addr,
        dst_addr: header.src_addr,
        next_header: IpProtocol::Icmp,
        payload_len: icmp.buffer_len(),
        hop_limit: 64,
    };
    let caps = checksums(loopback);
    output.send(loopback, ip.buffer_len() + icmp.buffer_len(), |buffer| {
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut *buffer), &caps);
        icmp.emit(
            &mut Icmpv4Packet::new_unchecked(&mut buffer[ip.buffer_len()..]),
            &caps,
        );
    });
}

/// A UDP socket.
pub struct UdpSocket {
    state: Rc<State>,
    options: RefCell<Options>,
    /// The last datagram came from, or went to, this guest.
    inside: Cell<bool>,
}

impl Default for UdpSocket {
    fn default() -> Self {
        Self {
            state: Rc::new(State {
                inner: RefCell::default(),
                wait: Rc::new(WaitQueue::new()),
            }),
            options: RefCell::default(),
            inside: Cell::new(false),
        }
    }
}

impl UdpSocket {
    fn bind_to(&self, ip: Ip, port: u16) -> Result<()> {
        super::with(|stack, _| {
            let binding = stack
                .datagrams
                .ports
                .bind(ip, port, &self.options.borrow())?;
            stack.datagrams.add(&self.state, binding)
        })
    }

    fn bind_if_needed(&self) -> Result<()> {
        if self.state.inner.borrow().binding.is_some() {
            return Ok(());
        }
        self.bind_to(ANY, 0).map_err(|_| EAGAIN)
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        super::with(|stack, _| stack.datagrams.remove(&self.state));
    }
}

impl Socket for UdpSocket {
    fn identity(&self) -> Identity {
        Identity {
            family: AF_INET,
            kind: SOCK_DGRAM,
            protocol: IPPROTO_UDP,
            listening: false,
        }
    }

    fn options(&self) -> &RefCell<Options> {
        &self.options
    }

    fn bind(&self, address: &Address) -> Result<()> {
        let Address::Inet(ip, port) = *address else {
            return Err(EAFNOSUPPORT);
        };
        if self.state.inner.borrow().binding.is_some() {
            return Err(EINVAL);
        }
        super::check_bindable(ip)?;
        self.bind_to(ip, port)
    }

    fn connect(&self, address: &Address) -> Result<()> {
        match *address {
            Address::Unspec => {
                let mut inner = self.state.inner.borrow_mut();
                inner.peer = None;
                inner.source = ANY;
                Ok(())
            }
            Address::Inet(ip, port) => {
                let ip = if ip == ANY { super::LOOPBACK_IP } else { ip };
                if (ip == BROADCAST || is_multicast(ip)) && !self.options.borrow().broadcast {
                    return Err(EACCES);
                }
                self.bind_if_needed()?;
                let source = super::with(|stack, _| stack.source_for(ip));
                let mut inner = self.state.inner.borrow_mut();
                inner.peer = Some((ip, port));
                inner.source = source;
                Ok(())
            }
            Address::Unix(_) => Err(EAFNOSUPPORT),
        }
    }

    fn local(&self) -> Address {
        let inner = self.state.inner.borrow();
        match inner.binding {
            Some(b) => Address::Inet(if b.ip == ANY { inner.source } else { b.ip }, b.port),
            None => Address::Inet(ANY, 0),
        }
    }

    fn peer(&self) -> Result<Address> {
        let (ip, port) = self.state.inner.borrow().peer.ok_or(ENOTCONN)?;
        Ok(Address::Inet(ip, port))
    }

    fn send(&self, parts: &[&[u8]], message: &mut Outgoing) -> Result<usize> {
        let len = parts_len(parts);
        let (to, port) = match &message.to {
            Some(Address::Inet(ip, port)) => {
                (if *ip == ANY { super::LOOPBACK_IP } else { *ip }, *port)
            }
            Some(_) => return Err(EAFNOSUPPORT),
            None => self.state.inner.borrow().peer.ok_or(EDESTADDRREQ)?,
        };
        if port == 0 {
            return Err(EINVAL);
        }
        if (to == BROADCAST || is_multicast(to)) && !self.options.borrow().broadcast {
            return Err(EACCES);
        }
        if let Some(error) = self.take_error() {
            return Err(error);
        }
        if self.state.inner.borrow().write_shut {
            return Err(EPIPE);
        }
        self.bind_if_needed()?;
        let binding = self.state.inner.borrow().binding.ok_or(EAGAIN)?;
        let ttl = self.options.borrow().ttl;
        let attempt = || {
            super::with(|stack, now| {
                let loopback = stack.is_local(to);
                self.inside.set(loopback);
                let source = if binding.ip == ANY {
                    stack.source_for(to)
                } else {
                    binding.ip
                };
                if is_loopback(source) && !loopback {
                    return Err(EINVAL);
                }
                let most = if loopback {
                    LONGEST
                } else {
                    usize::from(MTU) - HEADERS
                };
                if len > most {
                    return Err(EMSGSIZE);
                }
                if !stack.output.room(loopback) {
                    return Ok(false);
                }
                emit(
                    &mut stack.output,
                    loopback,
                    (source, binding.port),
                    (to, port),
                    ttl,
                    parts,
                    len,
                );
                if loopback {
                    // Datagrams to ourselves arrive at once, as on Linux.
                    stack.flush_loopback(now);
                }
                Ok(true)
            })
        };
        if !attempt()? {
            // The transmit ring is full: a boundary makes room.
            crate::boundary::sync_now();
            if !attempt()? {
                return Err(ENOBUFS);
            }
        }
        Ok(len)
    }

    fn receive(
        &self,
        parts: &mut [&mut [u8]],
        peek: bool,
        message: &mut Incoming,
    ) -> Result<usize> {
        let mut inner = self.state.inner.borrow_mut();
        if let Some(error) = inner.error.take() {
            return Err(error);
        }
        let Some(datagram) = inner.queue.front() else {
            return if inner.read_shut { Ok(0) } else { Err(EAGAIN) };
        };
        let copied = copy_parts(parts, &datagram.data);
        message.from = Some(Address::Inet(datagram.from.0, datagram.from.1));
        message.full_len = datagram.data.len();
        self.inside.set(is_own(datagram.from.0));
        if !peek && let Some(datagram) = inner.queue.pop_front() {
            inner.bytes -= datagram.data.len() + OVERHEAD;
        }
        Ok(copied)
    }

    fn shutdown(&self, read: bool, write: bool) -> Result<()> {
        let mut inner = self.state.inner.borrow_mut();
        let connected = inner.peer.is_some();
        inner.read_shut |= read;
        inner.write_shut |= write;
        drop(inner);
        self.state.wait.wake_all();
        if connected { Ok(()) } else { Err(ENOTCONN) }
    }

    fn take_error(&self) -> Option<Errno> {
        self.state.inner.borrow_mut().error.take()
    }

    fn readable_bytes(&self) -> usize {
        self.state
            .inner
            .borrow()
            .queue
            .front()
            .map_or(0, |d| d.data.len())
    }

    fn poll(&self) -> u32 {
        let inner = self.state.inner.borrow();
        let mut mask = ready::OUT | ready::WRNORM | ready::WRBAND;
        if !inner.queue.is_empty() || inner.read_shut {
            mask |= ready::IN | ready::RDNORM;
        }
        if inner.read_shut {
            mask |= ready::RDHUP;
        }
        if inner.read_shut && inner.write_shut {
            mask |= ready::HUP;
        }
        if inner.error.is_some() {
            mask |= ready::ERR;
        }
        mask
    }

    fn inside(&self) -> bool {
        self.inside.get()
    }

    fn wait_queue(&self) -> &WaitQueue {
        &self.state.wait
    }
}

fn emit(
    output: &mut Output,
    loopback: bool,
    from: (Ip, u16),
    to: (Ip, u16),
    ttl: u8,
    parts: &[&[u8]],
    len: usize,
) {
    let udp = UdpRepr {
        src_port: from.1,
        dst_port: to.1,
    };
    let ip = Ipv4Repr {
        src_addr: address(from.0),
        dst_addr: address(to.0),
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + len,
        hop_limit: ttl.max(1),
    };
    let caps = checksums(loopback);
    output.send(loopback, HEADERS + len, |buffer| {
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut *buffer), &caps);
        let (source, destination) = (IpAddress::Ipv4(ip.src_addr), IpAddress::Ipv4(ip.dst_addr));
        udp.emit(
            &mut UdpPacket::new_unchecked(&mut buffer[ip.buffer_len()..]),
            &source,
            &destination,
            len,
            |payload| {
                let mut rest = payload;
                for part in parts {
                    let (now, later) = rest.split_at_mut(part.len());
                    now.copy_from_slice(part);
                    rest = later;
                }
            },
            &caps,
        );
    });
}
