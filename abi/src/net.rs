//! The network between guest and gateway: one Ethernet link, two parties, fixed addresses.

/// The guest's IPv4 address.
pub const GUEST_IP: [u8; 4] = [10, 0, 2, 15];
/// The gateway's IPv4 address.
pub const GATEWAY_IP: [u8; 4] = [10, 0, 2, 2];
/// Prefix length of the link.
pub const PREFIX_LEN: u8 = 24;
/// The guest's MAC address (locally administered).
pub const GUEST_MAC: [u8; 6] = [0x52, 0x51, 0x00, 0x00, 0x00, 0x0f];
/// The gateway's MAC address (locally administered). The embedded guest needs no ARP to reach it.
pub const GATEWAY_MAC: [u8; 6] = [0x52, 0x51, 0x00, 0x00, 0x00, 0x02];
/// IP MTU in bytes, announced by VIRTIO_NET_F_MTU. Large, since the link is memory and a packet costs more than its bytes.
pub const MTU: u16 = 32_768;
/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// Largest frame on the link, without the virtio-net header.
pub const MAX_FRAME: usize = MTU as usize + ETHERNET_HEADER;
