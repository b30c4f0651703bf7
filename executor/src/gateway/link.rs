//! The Ethernet link to the guest: what a frame is for, and the frames that need no TCP stack to answer them
//! (ARP, ICMP, refusals, UDP). Everything that comes in is hostile (R9): it is classified or dropped, never trusted.

use std::net::Ipv4Addr;

use quorate_abi::net::{
    ETHERNET_HEADER, GATEWAY_IP, GATEWAY_MAC, GUEST_IP, GUEST_MAC, MAX_FRAME, MTU,
};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr,
    TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

/// The gateway's address on the link.
pub const GATEWAY: Ipv4Addr =
    Ipv4Addr::new(GATEWAY_IP[0], GATEWAY_IP[1], GATEWAY_IP[2], GATEWAY_IP[3]);
/// The guest's address on the link.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(GUEST_IP[0], GUEST_IP[1], GUEST_IP[2], GUEST_IP[3]);

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const BROADCAST_MAC: [u8; 6] = [0xff; 6];
const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const HOP_LIMIT: u8 = 64;
/// Largest UDP payload that fits into one frame; the link does not fragment.
pub const MAX_UDP_PAYLOAD: usize = MTU as usize - IPV4_HEADER - UDP_HEADER;
/// Bytes of the offending datagram's payload that an ICMP error quotes (RFC 792).
const ICMP_QUOTE: usize = 8;

/// What a guest's frame is.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// An ARP packet (not looked at yet).
    Arp(&'a [u8]),
    /// A TCP segment to the gateway's address. `opens`: SYN without ACK.
    Tcp {
        /// Where it is from.
        guest_port: u16,
        /// Where it is to.
        gateway_port: u16,
        /// See above.
        opens: bool,
    },
    /// A UDP datagram to the gateway's address.
    Udp {
        /// Where it is from.
        guest_port: u16,
        /// Where it is to.
        gateway_port: u16,
        /// What is in it.
        payload: &'a [u8],
    },
    /// An ICMP message to the gateway's address.
    Icmp,
    /// TCP or UDP to any other address.
    Foreign,
}

/// Why a frame is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Truncated, too long, inconsistent, or with a source address that is not the guest's.
    Malformed,
    /// Well-formed, but nothing that the gateway serves (IPv6, multicast, fragments, other protocols).
    Ignored,
}

/// Finds out what a frame is for. Transport headers of TCP are left to smoltcp, apart from the ports.
pub fn classify(frame: &[u8]) -> Result<Incoming<'_>, Dropped> {
    if frame.len() > MAX_FRAME {
        return Err(Dropped::Malformed);
    }
    let (header, packet) = frame
        .split_at_checked(ETHERNET_HEADER)
        .ok_or(Dropped::Malformed)?;
    let destination = &header[..6];
    if destination != GATEWAY_MAC && destination != BROADCAST_MAC {
        return Err(Dropped::Ignored);
    }
    match u16::from_be_bytes([header[12], header[13]]) {
        ETHERTYPE_IPV4 => classify_ipv4(packet),
        ETHERTYPE_ARP => Ok(Incoming::Arp(packet)),
        _ => Err(Dropped::Ignored),
    }
}

fn classify_ipv4(bytes: &[u8]) -> Result<Incoming<'_>, Dropped> {
    let packet = Ipv4Packet::new_checked(bytes).map_err(|_| Dropped::Malformed)?;
    if packet.version() != 4 || packet.src_addr() != GUEST {
        return Err(Dropped::Malformed);
    }
    if packet.more_frags() || packet.frag_offset() != 0 {
        return Err(Dropped::Ignored);
    }
    let to_gateway = packet.dst_addr() == GATEWAY;
    if !to_gateway && !is_foreign_unicast(packet.dst_addr()) {
        return Err(Dropped::Ignored);
    }
    match packet.next_header() {
        IpProtocol::Tcp if to_gateway => {
            let tcp = TcpPacket::new_checked(packet.payload()).map_err(|_| Dropped::Malformed)?;
            Ok(Incoming::Tcp {
                guest_port: tcp.src_port(),
                gateway_port: tcp.dst_port(),
                opens: tcp.syn() && !tcp.ack(),
            })
        }
        IpProtocol::Udp if to_gateway => {
            let udp = UdpPacket::new_checked(packet.payload()).map_err(|_| Dropped::Malformed)?;
            Ok(Incoming::Udp {
                guest_port: udp.src_port(),
                gateway_port: udp.dst_port(),
                payload: udp.payload(),
            })
        }
        IpProtocol::Icmp if to_gateway => Ok(Incoming::Icmp),
        IpProtocol::Tcp | IpProtocol::Udp => Ok(Incoming::Foreign),
        _ => Err(Dropped::Ignored),
    }
}

/// An address that a refusal may name as its sender.
fn is_foreign_unicast(address: Ipv4Addr) -> bool {
    let link_broadcast = Ipv4Addr::new(GUEST_IP[0], GUEST_IP[1], GUEST_IP[2], 255);
    !(address.is_broadcast()
        || address.is_multicast()
        || address.is_unspecified()
        || address.is_loopback()
        || address == link_broadcast
        || address == GUEST)
}

/// Writes the Ethernet header of a frame to the guest.
pub fn write_header(frame: &mut [u8], to: [u8; 6], from: [u8; 6]) {
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
}

fn ipv4_frame(
    source: Ipv4Addr,
    protocol: IpProtocol,
    payload_len: usize,
    emit: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET_HEADER + IPV4_HEADER + payload_len];
    write_header(&mut frame, GUEST_MAC, GATEWAY_MAC);
    let repr = Ipv4Repr {
        src_addr: source,
        dst_addr: GUEST,
        next_header: protocol,
        payload_len,
        hop_limit: HOP_LIMIT,
    };
    let (header, payload) = frame[ETHERNET_HEADER..].split_at_mut(IPV4_HEADER);
    repr.emit(
        &mut Ipv4Packet::new_unchecked(header),
        &ChecksumCapabilities::default(),
    );
    emit(payload);
    frame
}

/// The answer to an ARP request for the gateway's address. `None`: nothing to answer.
/// Field positions: RFC 826, with 6-byte hardware and 4-byte protocol addresses.
pub fn arp_reply(request: &[u8]) -> Result<Option<Vec<u8>>, Dropped> {
    const ARP_LEN: usize = 28;
    const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
    const REQUEST: [u8; 2] = [0, 1];
    const REPLY: [u8; 2] = [0, 2];
    let request = request.get(..ARP_LEN).ok_or(Dropped::Malformed)?;
    if request[..6] != ETHERNET_IPV4 {
        return Err(Dropped::Malformed);
    }
    if request[6..8] != REQUEST || request[24..28] != GATEWAY_IP {
        return Ok(None);
    }
    let mut frame = vec![0; ETHERNET_HEADER + ARP_LEN];
    write_header(&mut frame, GUEST_MAC, GATEWAY_MAC);
    frame[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
    let reply = &mut frame[ETHERNET_HEADER..];
    reply[..6].copy_from_slice(&ETHERNET_IPV4);
    reply[6..8].copy_from_slice(&REPLY);
    reply[8..14].copy_from_slice(&GATEWAY_MAC);
    reply[14..18].copy_from_slice(&GATEWAY_IP);
    // Target: whoever asked.
    reply[18..28].copy_from_slice(&request[8..18]);
    Ok(Some(frame))
}

/// The answer to an ICMP message for the gateway (an echo request has one).
pub fn icmp_reply(frame: &[u8]) -> Result<Option<Vec<u8>>, Dropped> {
    let packet = ipv4(frame)?;
    let icmp = Icmpv4Packet::new_checked(packet.payload()).map_err(|_| Dropped::Malformed)?;
    let repr = Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::ignored())
        .map_err(|_| Dropped::Malformed)?;
    let Icmpv4Repr::EchoRequest {
        ident,
        seq_no,
        data,
    } = repr
    else {
        return Ok(None);
    };
    Ok(Some(icmp_frame(
        GATEWAY,
        &Icmpv4Repr::EchoReply {
            ident,
            seq_no,
            data,
        },
    )))
}

fn icmp_frame(source: Ipv4Addr, repr: &Icmpv4Repr<'_>) -> Vec<u8> {
    ipv4_frame(source, IpProtocol::Icmp, repr.buffer_len(), |payload| {
        repr.emit(
            &mut Icmpv4Packet::new_unchecked(payload),
            &ChecksumCapabilities::default(),
        );
    })
}

/// Refuses what the guest sent to an address or port where nobody is: a reset for TCP, ICMP port unreachable for
/// UDP. `None`: must not be answered (a reset never is).
pub fn refusal(frame: &[u8]) -> Result<Option<Vec<u8>>, Dropped> {
    let packet = ipv4(frame)?;
    match packet.next_header() {
        IpProtocol::Tcp => tcp_reset(&packet),
        IpProtocol::Udp => {
            let header = Ipv4Repr::parse(&packet, &ChecksumCapabilities::ignored())
                .map_err(|_| Dropped::Malformed)?;
            let payload = packet.payload();
            Ok(Some(icmp_frame(
                packet.dst_addr(),
                &Icmpv4Repr::DstUnreachable {
                    reason: Icmpv4DstUnreachable::PortUnreachable,
                    header,
                    data: &payload[..payload.len().min(ICMP_QUOTE)],
                },
            )))
        }
        _ => Ok(None),
    }
}

fn tcp_reset(packet: &Ipv4Packet<&[u8]>) -> Result<Option<Vec<u8>>, Dropped> {
    let (guest, here) = (
        IpAddress::Ipv4(packet.src_addr()),
        IpAddress::Ipv4(packet.dst_addr()),
    );
    let caps = ChecksumCapabilities::ignored();
    let tcp = TcpPacket::new_checked(packet.payload()).map_err(|_| Dropped::Malformed)?;
    let repr = TcpRepr::parse(&tcp, &guest, &here, &caps).map_err(|_| Dropped::Malformed)?;
    if repr.control == TcpControl::Rst {
        return Ok(None);
    }
    // RFC 9293, 3.10.7.1: take the sequence number from the ACK, or acknowledge the segment.
    let (seq_number, ack_number) = match repr.ack_number {
        Some(ack) => (ack, None),
        None => (TcpSeqNumber(0), Some(repr.seq_number + repr.segment_len())),
    };
    let reset = TcpRepr {
        src_port: repr.dst_port,
        dst_port: repr.src_port,
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let caps = ChecksumCapabilities::default();
    Ok(Some(ipv4_frame(
        packet.dst_addr(),
        IpProtocol::Tcp,
        reset.buffer_len(),
        |payload| {
            reset.emit(&mut TcpPacket::new_unchecked(payload), &here, &guest, &caps);
        },
    )))
}

/// A UDP datagram to the guest; at most [`MAX_UDP_PAYLOAD`] bytes.
pub fn udp_frame(gateway_port: u16, guest_port: u16, data: &[u8]) -> Vec<u8> {
    debug_assert!(data.len() <= MAX_UDP_PAYLOAD);
    ipv4_frame(
        GATEWAY,
        IpProtocol::Udp,
        UDP_HEADER + data.len(),
        |payload| {
            UdpRepr {
                src_port: gateway_port,
                dst_port: guest_port,
            }
            .emit(
                &mut UdpPacket::new_unchecked(payload),
                &IpAddress::Ipv4(GATEWAY),
                &IpAddress::Ipv4(GUEST),
                data.len(),
                |bytes| bytes.copy_from_slice(data),
                &ChecksumCapabilities::default(),
            );
        },
    )
}

fn ipv4(frame: &[u8]) -> Result<Ipv4Packet<&[u8]>, Dropped> {
    let bytes = frame.get(ETHERNET_HEADER..).ok_or(Dropped::Malformed)?;
    Ipv4Packet::new_checked(bytes).map_err(|_| Dropped::Malformed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    /// Turns a frame to the guest into one from the guest.
    fn mirrored(mut frame: Vec<u8>) -> Vec<u8> {
        frame[..6].copy_from_slice(&GATEWAY_MAC);
        frame[6..12].copy_from_slice(&GUEST_MAC);
        frame[26..30].copy_from_slice(&GUEST_IP);
        frame[30..34].copy_from_slice(&GATEWAY_IP);
        frame
    }

    fn arp_request(target: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend_from_slice(&GUEST_MAC);
        frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend_from_slice(&GUEST_MAC);
        frame.extend_from_slice(&GUEST_IP);
        frame.extend_from_slice(&[0; 6]);
        frame.extend_from_slice(&target);
        frame
    }

    #[test]
    fn arp_is_answered_for_the_gateway_only() {
        let request = arp_request(GATEWAY_IP);
        let Ok(Incoming::Arp(packet)) = classify(&request) else {
            panic!("not ARP")
        };
        let reply = arp_reply(packet).unwrap().unwrap();
        assert_eq!(reply[..6], GUEST_MAC);
        assert_eq!(reply[20..22], [0, 2]);
        assert_eq!(reply[22..28], GATEWAY_MAC);
        assert_eq!(reply[28..32], GATEWAY_IP);
        assert_eq!(reply[32..38], GUEST_MAC);
        assert_eq!(reply[38..42], GUEST_IP);
        assert_eq!(arp_reply(&arp_request([10, 0, 2, 9])[14..]), Ok(None));
        assert_eq!(arp_reply(&packet[..27]), Err(Dropped::Malformed));
    }

    #[test]
    fn echo_request_is_answered_with_its_data() {
        let request = mirrored(icmp_frame(
            GATEWAY,
            &Icmpv4Repr::EchoRequest {
                ident: 7,
                seq_no: 9,
                data: b"quorate",
            },
        ));
        assert_eq!(classify(&request), Ok(Incoming::Icmp));
        let reply = icmp_reply(&request).unwrap().unwrap();
        let packet = ipv4(&reply).unwrap();
        assert!(packet.verify_checksum());
        let icmp = Icmpv4Packet::new_checked(packet.payload()).unwrap();
        assert_eq!(
            Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()).unwrap(),
            Icmpv4Repr::EchoReply {
                ident: 7,
                seq_no: 9,
                data: b"quorate"
            }
        );
    }

    #[test]
    fn udp_frames_parse_back() {
        let frame = mirrored(udp_frame(53, 5353, b"data"));
        assert_eq!(
            classify(&frame),
            Ok(Incoming::Udp {
                guest_port: 53,
                gateway_port: 5353,
                payload: b"data"
            })
        );
        let reply = refusal(&frame).unwrap().unwrap();
        assert_eq!(ipv4(&reply).unwrap().next_header(), IpProtocol::Icmp);
        assert!(udp_frame(1, 2, &vec![0; MAX_UDP_PAYLOAD]).len() == MAX_FRAME);
    }

    #[test]
    fn foreign_and_unserved_destinations() {
        let mut frame = mirrored(udp_frame(53, 5353, b"data"));
        for (address, expected) in [
            ([8, 8, 8, 8], Ok(Incoming::Foreign)),
            ([10, 0, 2, 255], Err(Dropped::Ignored)),
            ([255; 4], Err(Dropped::Ignored)),
            ([224, 0, 0, 251], Err(Dropped::Ignored)),
            ([0; 4], Err(Dropped::Ignored)),
            (GUEST_IP, Err(Dropped::Ignored)),
        ] {
            frame[30..34].copy_from_slice(&address);
            assert_eq!(classify(&frame), expected, "{address:?}");
        }
        frame[26..30].copy_from_slice(&[10, 0, 2, 77]);
        assert_eq!(classify(&frame), Err(Dropped::Malformed), "spoofed source");
        assert_eq!(classify(&[0; MAX_FRAME + 1]), Err(Dropped::Malformed));
    }

    proptest! {
        /// R9: no bytes make the parsers panic, and whatever they answer is a frame for the guest that fits.
        #[test]
        fn garbage_is_survived(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            kind in 0..5_u8,
        ) {
            let mut frame = bytes;
            let head: &[u8] = match kind {
                0 => &[],
                1 => &[8, 6, 0, 1, 8, 0, 6, 4],
                2 => &[8, 0, 0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2],
                3 => &[8, 0, 0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 2, 15, 9, 9, 9, 9],
                _ => &[8, 0, 0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 1, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2],
            };
            if kind > 0 {
                let mut whole = GATEWAY_MAC.to_vec();
                whole.extend_from_slice(&GUEST_MAC);
                whole.extend_from_slice(head);
                whole.append(&mut frame);
                frame = whole;
            }
            let _ = classify(&frame);
            for answer in [
                frame.get(14..).map(arp_reply),
                Some(icmp_reply(&frame)),
                Some(refusal(&frame)),
            ] {
                if let Some(Ok(Some(reply))) = answer {
                    prop_assert!(reply.len() <= MAX_FRAME);
                    prop_assert_eq!(&reply[..6], &GUEST_MAC);
                }
            }
        }
    }
}
