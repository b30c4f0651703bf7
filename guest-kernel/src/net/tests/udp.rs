//! UDP.

use super::*;
use crate::file::ready::*;

fn udp() -> i32 {
    call(
        41,
        &[AF_INET.into(), u64::from(SOCK_DGRAM | SOCK_NONBLOCK), 0],
    )
    .unwrap() as i32
}

fn sendto(fd: i32, data: &[u8], ip: Ip, port: u16) -> SysResult {
    let to = Address::Inet(ip, port).bytes();
    call(
        44,
        &[
            fd as u64,
            data.as_ptr() as u64,
            data.len() as u64,
            0,
            to.as_ptr() as u64,
            16,
        ],
    )
}

fn recvfrom(fd: i32, len: usize, flags: u32) -> Result<(Vec<u8>, usize, Address)> {
    let (mut data, mut from, mut from_len) = (vec![0; len], [0u8; 16], 16u32);
    let args = [
        fd as u64,
        data.as_mut_ptr() as u64,
        len as u64,
        flags.into(),
        from.as_mut_ptr() as u64,
        (&raw mut from_len) as u64,
    ];
    let count = call(45, &args)? as usize;
    data.truncate(count);
    Ok((data, count, Address::parse(&from)?))
}

#[test]
fn datagrams_arrive_whole_and_in_order() {
    let _world = World::new();
    let (a, b) = (udp(), udp());
    assert_eq!(bind(a, LOOPBACK_IP, 5000), Ok(0));
    assert_eq!(recvfrom(a, 10, 0), Err(EAGAIN));
    assert_eq!(poll(a), OUT | WRNORM | WRBAND);
    let wakes = Wakes::of(a);
    assert_eq!(sendto(b, b"first", LOOPBACK_IP, 5000), Ok(5));
    assert_eq!(sendto(b, b"", LOOPBACK_IP, 5000), Ok(0));
    assert_eq!(sendto(b, &pattern(60_000), LOOPBACK_IP, 5000), Ok(60_000));
    assert_eq!(wakes.take(), 3);
    assert_eq!(poll(a), IN | RDNORM | OUT | WRNORM | WRBAND);
    let Ok(Address::Inet(_, port)) = name_of(b, 51) else {
        panic!()
    };
    let from = Address::Inet(LOOPBACK_IP, port);
    assert_eq!(
        recvfrom(a, 3, MSG_PEEK),
        Ok((b"fir".to_vec(), 3, from.clone()))
    );
    let mut short = vec![0; 3];
    assert_eq!(
        call(
            45,
            &[a as u64, short.as_mut_ptr() as u64, 3, MSG_TRUNC.into()]
        ),
        Ok(5)
    );
    assert_eq!(short, b"fir");
    assert_eq!(recvfrom(a, 9, 0), Ok((vec![], 0, from.clone())));
    assert_eq!(recvfrom(a, 70_000, 0), Ok((pattern(60_000), 60_000, from)));
    assert_eq!(
        sendto(b, &vec![0; 65_508], LOOPBACK_IP, 5000),
        Err(EMSGSIZE)
    );
    assert_eq!(sendto(b, &vec![0; 40_000], PEER_IP, 5000), Err(EMSGSIZE));
    assert_eq!(
        call(44, &[b as u64, short.as_ptr() as u64, 3]),
        Err(EDESTADDRREQ)
    );
    assert_eq!(sendto(b, b"x", sockaddr::BROADCAST, 1), Err(EACCES));
}

#[test]
fn connected_sockets_hear_their_peer_only_and_learn_of_refusals() {
    let mut world = World::new();
    let (a, b, c) = (udp(), udp(), udp());
    bind(a, LOOPBACK_IP, 5000).unwrap();
    bind(b, LOOPBACK_IP, 5001).unwrap();
    connect(a, &Address::Inet(LOOPBACK_IP, 5001)).unwrap();
    assert_eq!(name_of(a, 52), Ok(Address::Inet(LOOPBACK_IP, 5001)));
    sendto(c, b"stranger", LOOPBACK_IP, 5000).unwrap();
    assert_eq!(recv(a), Err(EAGAIN));
    sendto(b, b"friend", LOOPBACK_IP, 5000).unwrap();
    assert_eq!(recv(a), Ok(b"friend".to_vec()));
    close(b);
    assert_eq!(send(a, b"anyone?"), Ok(7));
    assert_eq!(poll(a) & ERR, ERR);
    assert_eq!(recv(a), Err(ECONNREFUSED));
    assert_eq!(recv(a), Err(EAGAIN));
    world.settle();
    assert_eq!(world.to_peer.sent.get(), 0);
    assert_eq!(connect(a, &Address::Unspec), Ok(0));
    assert_eq!(name_of(a, 52), Err(ENOTCONN));
}

#[test]
fn to_the_outside_and_back() {
    let world = World::new();
    let fd = udp();
    sendto(fd, b"query", PEER_IP, 53).unwrap();
    let packet = world.to_peer.packets.borrow_mut().pop_front().unwrap();
    assert_eq!(packet[28..], *b"query");
    // Turn it around.
    let mut reply = packet.clone();
    reply.copy_within(12..16, 16);
    reply[12..16].copy_from_slice(&packet[16..20]);
    reply.copy_within(20..22, 22);
    reply[20..22].copy_from_slice(&packet[22..24]);
    receive(&frame(&reply));
    assert_eq!(
        recvfrom(fd, 100, 0),
        Ok((b"query".to_vec(), 5, Address::Inet(PEER_IP, 53)))
    );
    // Nobody is there: an ICMP error goes out.
    close(fd);
    receive(&frame(&reply));
    let error = world.to_peer.packets.borrow_mut().pop_front().unwrap();
    assert_eq!((error[9], error[20], error[21]), (1, 3, 3));
}

#[test]
fn a_full_queue_drops() {
    let _world = World::new();
    let (a, b) = (udp(), udp());
    bind(a, LOOPBACK_IP, 5000).unwrap();
    for _ in 0..2000 {
        sendto(b, &[1; 1000], LOOPBACK_IP, 5000).unwrap();
    }
    let mut count = 0u64;
    while recvfrom(a, 1000, 0).is_ok() {
        count += 1;
    }
    assert_eq!(count, (super::udp_queue_bytes() / 1256) as u64);
    assert_eq!(with(|s, _| s.counters.datagrams_dropped), 2000 - count);
}

#[test]
fn many_messages_in_one_call() {
    let _world = World::new();
    let (a, b) = (udp(), udp());
    bind(a, LOOPBACK_IP, 5000).unwrap();
    connect(b, &Address::Inet(LOOPBACK_IP, 5000)).unwrap();
    let data = [*b"one!", *b"two!"];
    let iov: Vec<[u64; 2]> = data.iter().map(|d| [d.as_ptr() as u64, 4]).collect();
    let header = |i: &[u64; 2]| MmsgHdr {
        hdr: MsgHdr {
            iov: i.as_ptr() as u64,
            iov_len: 1,
            ..MsgHdr::default()
        },
        ..MmsgHdr::default()
    };
    let mut messages: Vec<MmsgHdr> = iov.iter().map(header).collect();
    assert_eq!(
        call(307, &[b as u64, messages.as_mut_ptr() as u64, 2, 0]),
        Ok(2)
    );
    assert_eq!((messages[0].len, messages[1].len), (4, 4));
    let mut into = [[0u8; 4]; 3];
    let iov: Vec<[u64; 2]> = into
        .iter_mut()
        .map(|d| [d.as_mut_ptr() as u64, 4])
        .collect();
    let mut messages: Vec<MmsgHdr> = iov.iter().map(header).collect();
    assert_eq!(
        call(299, &[a as u64, messages.as_mut_ptr() as u64, 3, 0, 0]),
        Ok(2)
    );
    assert_eq!(into[..2], data);
}
