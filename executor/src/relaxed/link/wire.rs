//! TCP segments as frames, in both directions.

use quorate_abi::net::{ETHERNET_HEADER, GATEWAY_MAC, GUEST_MAC, MTU};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use crate::gateway::link::{GATEWAY, GUEST, write_header};

const IPV4_HEADER: usize = 20;
const TCP_HEADER: usize = 20;
/// MSS (4) and window scale (3) padded to a multiple of 4, in a SYN only.
const SYN_OPTIONS: usize = 8;
const HOP_LIMIT: u8 = 64;
/// Largest payload of a segment on the link.
pub(super) const MSS: u16 = MTU - (IPV4_HEADER + TCP_HEADER) as u16;
/// What a peer that names no MSS can take (RFC 9293, 3.7.1).
pub(super) const DEFAULT_MSS: u16 = 536;

/// A segment of the guest.
pub(super) struct Segment<'a> {
    pub(super) control: TcpControl,
    pub(super) seq: u32,
    pub(super) ack: Option<u32>,
    /// Not scaled.
    pub(super) window: u16,
    pub(super) scale: Option<u8>,
    pub(super) mss: Option<u16>,
    pub(super) payload: &'a [u8],
}

/// Reads a frame that [`crate::gateway::link::classify`] has called TCP for the gateway. Checksums are not verified: the
/// link is memory. `None`: malformed.
pub(super) fn parse(frame: &[u8]) -> Option<Segment<'_>> {
    let packet = Ipv4Packet::new_checked(frame.get(ETHERNET_HEADER..)?).ok()?;
    let tcp = TcpPacket::new_checked(packet.payload()).ok()?;
    let repr = TcpRepr::parse(
        &tcp,
        &IpAddress::Ipv4(GUEST),
        &IpAddress::Ipv4(GATEWAY),
        &ChecksumCapabilities::ignored(),
    )
    .ok()?;
    Some(Segment {
        control: repr.control,
        seq: repr.seq_number.0 as u32,
        ack: repr.ack_number.map(|ack| ack.0 as u32),
        window: repr.window_len,
        scale: repr.window_scale,
        mss: repr.max_seg_size,
        payload: repr.payload,
    })
}

/// Header fields of a segment to the guest.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) gateway_port: u16,
    pub(super) guest_port: u16,
    pub(super) seq: u32,
    /// Sent in every segment but the first SYN.
    pub(super) ack: Option<u32>,
    pub(super) window: u16,
    /// A SYN, with this window scale.
    pub(super) syn: Option<u8>,
    pub(super) fin: bool,
    pub(super) push: bool,
    pub(super) reset: bool,
}

/// Builds a frame; `fill` writes the payload.
pub(super) fn build(
    header: &Header,
    payload: usize,
    checksums: bool,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let options = if header.syn.is_some() { SYN_OPTIONS } else { 0 };
    let header_len = TCP_HEADER + options;
    let mut frame = vec![0; ETHERNET_HEADER + IPV4_HEADER + header_len + payload];
    write_header(&mut frame, GUEST_MAC, GATEWAY_MAC);
    let (ip, segment) = frame[ETHERNET_HEADER..].split_at_mut(IPV4_HEADER);
    Ipv4Repr {
        src_addr: GATEWAY,
        dst_addr: GUEST,
        next_header: IpProtocol::Tcp,
        payload_len: header_len + payload,
        hop_limit: HOP_LIMIT,
    }
    .emit(
        &mut Ipv4Packet::new_unchecked(ip),
        &ChecksumCapabilities::default(),
    );
    if let Some(scale) = header.syn {
        let [high, low] = MSS.to_be_bytes();
        // Kinds: 2 MSS, 3 window scale, 0 end (RFC 9293, RFC 7323). SACK and timestamps are not offered: nothing is lost or
        // reordered on this link, and a timestamp would have to be saved and kept monotonous.
        segment[TCP_HEADER..header_len].copy_from_slice(&[2, 4, high, low, 3, 3, scale, 0]);
    }
    fill(&mut segment[header_len..]);
    let mut tcp = TcpPacket::new_unchecked(segment);
    tcp.set_src_port(header.gateway_port);
    tcp.set_dst_port(header.guest_port);
    tcp.set_seq_number(TcpSeqNumber(header.seq as i32));
    tcp.set_ack_number(TcpSeqNumber(header.ack.unwrap_or(0) as i32));
    // The length first: it shares its bytes with the flags.
    tcp.set_header_len(header_len as u8);
    tcp.set_ack(header.ack.is_some());
    tcp.set_syn(header.syn.is_some());
    tcp.set_fin(header.fin);
    tcp.set_psh(header.push);
    tcp.set_rst(header.reset);
    tcp.set_window_len(header.window);
    if checksums {
        tcp.fill_checksum(&IpAddress::Ipv4(GATEWAY), &IpAddress::Ipv4(GUEST));
    }
    frame
}
