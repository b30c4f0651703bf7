//! Frames that no honest peer sends (R9).

use super::*;

/// Every kind of damage to frames of a real conversation: nothing panics, nothing is lost for the honest connection.
#[test]
fn damaged_frames_do_no_harm() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let udp = call(
        41,
        &[AF_INET.into(), u64::from(SOCK_DGRAM | SOCK_NONBLOCK), 0],
    )
    .unwrap() as i32;
    assert_eq!(bind(udp, ANY, 53), Ok(0));
    let (peer, fd) = world.connection(server, 80);
    // Collect frames to damage.
    world.peer_connect(80);
    world.peer.flush(0);
    world.peer_send(peer, b"GET / HTTP/1.0\r\n");
    world.peer.flush(0);
    let samples: Vec<Vec<u8>> = world
        .to_guest
        .packets
        .borrow()
        .iter()
        .map(|p| frame(p))
        .collect();
    assert!(samples.len() >= 2);
    let mut random = seeds(77);
    for round in 0..30_000 {
        let mut bytes = samples[round % samples.len()].clone();
        match random() % 4 {
            0 => {
                let len = random() as usize % (bytes.len() + 1);
                bytes.truncate(len);
            }
            1 => {
                for _ in 0..1 + random() % 8 {
                    let at = random() as usize % bytes.len();
                    bytes[at] = random() as u8;
                }
            }
            2 => {
                // Damage that keeps the checksums right.
                let at = 14 + random() as usize % 40;
                bytes[at] ^= 1 << (random() % 8);
                repair(&mut bytes);
            }
            _ => bytes = (0..random() % 100).map(|_| random() as u8).collect(),
        }
        receive(&bytes);
        if round % 64 == 0 {
            flush();
            world.to_peer.packets.borrow_mut().clear();
        }
    }
    assert!(with(|s, _| s.counters.malformed) > 1000);
    assert!(with(|s, _| s.connections().0) <= stack::CONNECTIONS_MAX);
    // Whatever became of that connection, the server still serves.
    close(fd);
    world.to_guest.packets.borrow_mut().clear();
    world.advance(100 * SECOND);
    while let Ok(fd) = call(43, &[server as u64, 0, 0]) {
        close(fd as i32);
    }
    let (peer, fd) = world.connection(server, 80);
    send(fd, b"still here").unwrap();
    world.settle();
    assert_eq!(world.peer_receive(peer), b"still here");
}

/// Recomputes the checksums of an IPv4 frame with TCP inside, as far as it is still one.
fn repair(frame: &mut [u8]) {
    use smoltcp::wire::{IpAddress, Ipv4Packet, TcpPacket};
    let Ok(mut ip) = Ipv4Packet::new_checked(&mut frame[14..]) else {
        return;
    };
    ip.fill_checksum();
    let (from, to) = (
        IpAddress::Ipv4(ip.src_addr()),
        IpAddress::Ipv4(ip.dst_addr()),
    );
    if let Ok(mut tcp) = TcpPacket::new_checked(ip.payload_mut()) {
        tcp.fill_checksum(&from, &to);
    }
}

#[test]
fn fragments_and_foreign_frames_are_dropped() {
    let mut world = World::new();
    world.server(80, 10);
    world.peer_connect(80);
    world.peer.flush(0);
    let good = frame(&world.to_guest.packets.borrow_mut().pop_front().unwrap());
    let mut fragment = good.clone();
    fragment[20] = 0x20; // more fragments
    repair(&mut fragment);
    let mut other_mac = good.clone();
    other_mac[5] ^= 1;
    let mut other_ip = good.clone();
    other_ip[33] ^= 1;
    repair(&mut other_ip);
    let mut bad_sum = good.clone();
    bad_sum[50] ^= 1;
    for bytes in [&fragment, &other_mac, &other_ip, &bad_sum] {
        receive(bytes);
        assert_eq!(with(|s, _| s.connections().0), 0);
    }
    receive(&good);
    assert_eq!(with(|s, _| s.connections().0), 1);
}

#[test]
fn pings_are_answered() {
    let mut world = World::new();
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 1, 0, 0];
    packet.extend_from_slice(&GATEWAY_IP);
    packet.extend_from_slice(&GUEST_IP);
    packet.extend_from_slice(&[8, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4]);
    smoltcp::wire::Icmpv4Packet::new_unchecked(&mut packet[20..]).fill_checksum();
    smoltcp::wire::Ipv4Packet::new_unchecked(&mut packet[..]).fill_checksum();
    receive(&frame(&packet));
    let answer = world.to_peer.packets.borrow_mut().pop_front().unwrap();
    assert_eq!((answer[20], &answer[28..]), (0, &[1, 2, 3, 4][..]));
    world.settle();
}
