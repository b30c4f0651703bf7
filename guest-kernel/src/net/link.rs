//! Where packets go: out through virtio-net, or back to ourselves. A packet here is an IPv4 packet; the Ethernet header
//! is put before it, with addresses that are fixed (abi): no ARP is needed to reach the gateway.

use crate::drivers;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use quorate_abi::net::{ETHERNET_HEADER, GATEWAY_MAC, GUEST_MAC, MTU};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// MTU of the loopback, as near to Linux's 65,536 as an IPv4 packet can be.
pub const LOOPBACK_MTU: usize = 65_535;
/// Most packets on the loopback at a time (R10). TCP waits for room; datagrams beyond are dropped.
pub const LOOPBACK_PACKETS: usize = 1024;
/// Most bytes on the loopback at a time (R10), as above.
pub const LOOPBACK_BYTES: usize = 16 << 20;
/// Most answers kept for when the transmit ring has room again (R10); more are dropped, as on any network.
pub const SPILL_PACKETS: usize = 1024;
/// Loopback buffers kept for reuse.
const SPARE_BUFFERS: usize = 32;
/// Largest buffer kept for reuse.
const SPARE_BYTES: usize = 4096;

/// Something that takes IPv4 packets to the outside.
pub trait Link {
    /// Whether a packet of any size can be taken.
    fn room(&self) -> bool;
    /// A buffer for a packet of `len` bytes, or none if there is no room.
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]>;
    /// Sends the packet that was built in the buffer of the last [`Link::reserve`].
    fn commit(&mut self);
}

/// The network device.
pub struct Virtio;

impl Link for Virtio {
    fn room(&self) -> bool {
        drivers::net::room()
    }

    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        let frame = drivers::net::reserve(ETHERNET_HEADER + len)?;
        ethernet_header(frame, ETHERTYPE_IPV4);
        Some(&mut frame[ETHERNET_HEADER..])
    }

    fn commit(&mut self) {
        drivers::net::commit();
    }
}

/// Writes the header of a frame to the gateway.
pub fn ethernet_header(frame: &mut [u8], ethertype: u16) {
    frame[..6].copy_from_slice(&GATEWAY_MAC);
    frame[6..12].copy_from_slice(&GUEST_MAC);
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
}

/// Where packets leave.
pub struct Output {
    link: Box<dyn Link>,
    loopback: VecDeque<Vec<u8>>,
    loopback_bytes: usize,
    spill: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    /// Packets dropped for want of room.
    pub dropped: u64,
    /// Packets sent outside.
    pub sent: u64,
}

impl Output {
    /// All packets to the outside go to `link`.
    pub fn new(link: Box<dyn Link>) -> Self {
        Self {
            link,
            loopback: VecDeque::new(),
            loopback_bytes: 0,
            spill: VecDeque::new(),
            spare: Vec::new(),
            dropped: 0,
            sent: 0,
        }
    }

    /// Whether a packet of any size can be sent.
    pub fn room(&self, loopback: bool) -> bool {
        if loopback {
            self.loopback.len() < LOOPBACK_PACKETS && self.loopback_bytes < LOOPBACK_BYTES
        } else {
            self.spill.is_empty() && self.link.room()
        }
    }

    /// Sends a packet of `len` bytes that `build` writes. Without room, it waits (outside) or is dropped.
    pub fn send<R>(&mut self, loopback: bool, len: usize, build: impl FnOnce(&mut [u8]) -> R) -> R {
        if !loopback
            && self.spill.is_empty()
            && let Some(buffer) = self.link.reserve(len)
        {
            let result = build(buffer);
            self.link.commit();
            self.sent += 1;
            return result;
        }
        let mut packet = self.buffer(len);
        let result = build(&mut packet);
        if loopback && self.room(true) {
            self.loopback_bytes += packet.len();
            self.loopback.push_back(packet);
        } else if !loopback && self.spill.len() < SPILL_PACKETS {
            self.spill.push_back(packet);
        } else {
            self.dropped += 1;
            self.recycle(packet);
        }
        result
    }

    /// Sends what had to wait. False if there is still not enough room.
    pub fn unspill(&mut self) -> bool {
        while let Some(packet) = self.spill.front() {
            if packet.len() > usize::from(MTU) {
                self.spill.pop_front();
                self.dropped += 1;
                continue;
            }
            let Some(buffer) = self.link.reserve(packet.len()) else {
                return false;
            };
            buffer.copy_from_slice(packet);
            self.link.commit();
            self.sent += 1;
            if let Some(packet) = self.spill.pop_front() {
                self.recycle(packet);
            }
        }
        true
    }

    /// The next packet on the loopback; give it back with [`Output::recycle`].
    pub fn pop_loopback(&mut self) -> Option<Vec<u8>> {
        let packet = self.loopback.pop_front()?;
        self.loopback_bytes -= packet.len();
        Some(packet)
    }

    /// Whether packets are on the loopback.
    pub fn has_loopback(&self) -> bool {
        !self.loopback.is_empty()
    }

    fn buffer(&mut self, len: usize) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.resize(len, 0);
        buffer
    }

    /// Keeps a packet's buffer for reuse.
    pub fn recycle(&mut self, packet: Vec<u8>) {
        if self.spare.len() < SPARE_BUFFERS && packet.capacity() <= SPARE_BYTES {
            self.spare.push(packet);
        }
    }
}

/// Checksums: computed and verified towards the outside, since the device does neither; not needed in memory.
pub fn checksums(loopback: bool) -> ChecksumCapabilities {
    if loopback {
        ChecksumCapabilities::ignored()
    } else {
        ChecksumCapabilities::default()
    }
}

/// smoltcp's view: one packet to receive, and the output.
pub struct Port<'a> {
    /// The packet at hand.
    pub received: Option<&'a [u8]>,
    /// Where answers and other packets go.
    pub output: &'a mut Output,
    /// Which of the two networks.
    pub loopback: bool,
}

/// The packet at hand.
pub struct Received<'a>(&'a [u8]);
/// The right to send one packet.
pub struct Send<'a>(&'a mut Output, bool);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Send<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.send(self.1, len, f)
    }
}

impl<'a> Device for Port<'a> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Send<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Send<'_>)> {
        let packet = self.received.take()?;
        Some((Received(packet), Send(self.output, self.loopback)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Send<'_>> {
        if self.output.room(self.loopback) {
            Some(Send(self.output, self.loopback))
        } else {
            None
        }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = if self.loopback {
            LOOPBACK_MTU
        } else {
            usize::from(MTU)
        };
        capabilities.checksum = checksums(self.loopback);
        capabilities
    }
}
