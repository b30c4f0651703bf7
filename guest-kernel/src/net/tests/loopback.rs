//! TCP between two sockets of the guest.

use super::*;
use crate::file::ready::*;

#[test]
fn both_ends_in_the_guest_without_a_packet_outside() {
    let mut world = World::new();
    for ip in [LOOPBACK_IP, LOOPBACK_IP + 7, OWN_IP, ANY] {
        let port = 8000 + (ip & 0xff) as u16;
        let server = world.server(port, 10);
        let client = tcp();
        assert_eq!(connect(client, &Address::Inet(ip, port)), Err(EINPROGRESS));
        assert_eq!(poll(client), OUT | WRNORM);
        let fd = call(288, &[server as u64, 0, 0, SOCK_NONBLOCK.into()]).unwrap() as i32;
        assert_eq!(name_of(fd, 52), name_of(client, 51));
        assert_eq!(send(client, b"question"), Ok(8));
        assert_eq!(recv(fd), Ok(b"question".to_vec()));
        assert_eq!(send(fd, b"answer"), Ok(6));
        assert_eq!(recv(client), Ok(b"answer".to_vec()));
        close(client);
        assert_eq!(recv(fd), Ok(vec![]));
        close(fd);
    }
    world.settle();
    assert_eq!(world.to_peer.sent.get(), 0);
    world.advance(11 * SECOND);
    assert_eq!(with(|s, _| s.connections()), (0, 0, 0));
}

#[test]
fn refused_at_once() {
    let _world = World::new();
    let client = tcp();
    assert_eq!(
        connect(client, &Address::Inet(LOOPBACK_IP, 9)),
        Err(EINPROGRESS)
    );
    assert_eq!(getsockopt(client, SOL_SOCKET, SO_ERROR), Ok(ECONNREFUSED.0));
}

#[test]
fn a_megabyte_each_way() {
    let mut world = World::new();
    let server = world.server(8000, 10);
    let client = tcp();
    assert_eq!(
        connect(client, &Address::Inet(LOOPBACK_IP, 8000)),
        Err(EINPROGRESS)
    );
    let fd = call(288, &[server as u64, 0, 0, SOCK_NONBLOCK.into()]).unwrap() as i32;
    let data = pattern(1 << 20);
    let (mut there, mut back) = (Vec::new(), Vec::new());
    let (mut sent, mut returned) = (0, 0);
    for _ in 0..10_000 {
        sent += send(client, &data[sent..]).unwrap_or(0);
        there.extend(recv_flags(fd, 20_000, 0).unwrap_or_default());
        returned += send(fd, &there[returned..]).unwrap_or(0);
        back.extend(recv_flags(client, 20_000, 0).unwrap_or_default());
        if back.len() == data.len() {
            break;
        }
    }
    assert!(back == data && there == data);
}

#[test]
fn the_outside_cannot_pretend_to_be_inside() {
    let mut world = World::new();
    world.server(8000, 10);
    // A SYN from 127.0.0.1, or from our own address, on the wire.
    for source in [LOOPBACK_IP, OWN_IP] {
        let key = FlowKey {
            local: source,
            remote: OWN_IP,
            local_port: 1000,
            remote_port: 8000,
        };
        let mut forger = Stack::new(source, Box::new(world.to_guest.clone()), seeds(9));
        let id = forger.new_flow(key, false, Owner::Orphan, 0).unwrap();
        assert!(forger.open(id, false));
        forger.flush_flow(id, 0);
    }
    world.settle();
    assert_eq!(
        with(|s, _| (s.connections().0, s.counters.malformed)),
        (0, 2)
    );
}
