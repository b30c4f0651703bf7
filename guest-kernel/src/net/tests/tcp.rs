//! TCP with a peer outside.

use super::*;
use crate::file::ready::*;
use smoltcp::socket::tcp::State;

#[test]
fn accept_echo_and_half_close() {
    let mut world = World::new();
    let server = world.server(6379, 511);
    assert_eq!(poll(server), 0);
    assert_eq!(call(43, &[server as u64, 0, 0]), Err(EAGAIN));
    let wakes = Wakes::of(server);
    let peer = world.peer_connect(6379);
    world.settle();
    assert_eq!((poll(server), wakes.take()), (IN | RDNORM, 1));
    let (mut address, mut len) = ([0u8; 16], 16u32);
    let accept = [
        server as u64,
        address.as_mut_ptr() as u64,
        (&raw mut len) as u64,
        SOCK_NONBLOCK.into(),
    ];
    let fd = call(288, &accept).unwrap() as i32;
    let from = Address::Inet(PEER_IP, 40_001);
    assert_eq!(Address::parse(&address), Ok(from.clone()));
    assert_eq!(name_of(fd, 52), Ok(from));
    assert_eq!(name_of(fd, 51), Ok(Address::Inet(OWN_IP, 6379)));
    assert_eq!(poll(server), 0);
    assert_eq!(poll(fd), OUT | WRNORM);
    assert_eq!(recv(fd), Err(EAGAIN));

    let wakes = Wakes::of(fd);
    world.peer_send(peer, b"PING\r\n");
    world.settle();
    assert_eq!((poll(fd), wakes.take()), (IN | RDNORM | OUT | WRNORM, 1));
    assert_eq!(recv_flags(fd, 4, MSG_PEEK), Ok(b"PING".to_vec()));
    assert_eq!(recv_flags(fd, 4, 0), Ok(b"PING".to_vec()));
    assert_eq!(recv(fd), Ok(b"\r\n".to_vec()));
    assert_eq!(send(fd, b"+PONG\r\n"), Ok(7));
    world.settle();
    assert_eq!(world.peer_receive(peer), b"+PONG\r\n");

    world.peer_send(peer, b"last");
    world.peer_close(peer);
    world.settle();
    assert_eq!(poll(fd), IN | RDNORM | RDHUP | OUT | WRNORM);
    assert!(wakes.take() >= 1);
    assert_eq!(recv(fd), Ok(b"last".to_vec()));
    assert_eq!(recv(fd), Ok(vec![]));
    assert_eq!(send(fd, b"bye"), Ok(3));
    assert_eq!(call(48, &[fd as u64, SHUT_WR.into()]), Ok(0));
    assert_eq!(send(fd, b"more"), Err(EPIPE));
    assert_eq!(poll(fd), IN | RDNORM | RDHUP | OUT | WRNORM | HUP);
    world.settle();
    assert_eq!(world.peer_receive(peer), b"bye");
    assert_eq!(world.peer_state(peer), State::TimeWait);
    close(fd);
    drop(wakes);
    // The acknowledgement of data and FIN is a delayed one.
    world.advance(20_000_000);
    assert_eq!(with(|s, _| s.connections()), (0, 0, 0));
}

#[test]
fn small_writes_become_one_packet_and_acknowledgements_ride_along() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let (peer, fd) = world.connection(server, 80);
    world.to_peer.sent.set(0);
    world.peer_send(peer, b"request");
    world.settle();
    assert_eq!(world.to_peer.sent.get(), 0, "the acknowledgement waits");
    for _ in 0..10 {
        send(fd, b"reply").unwrap();
    }
    world.settle();
    assert_eq!(world.to_peer.sent.get(), 1);
    assert_eq!(world.peer_receive(peer).len(), 50);
    // Without a reply, it goes out by itself after the delay.
    world.peer_send(peer, b"one way");
    world.settle();
    world.advance(9_000_000);
    assert_eq!(world.to_peer.sent.get(), 1);
    world.advance(2_000_000);
    assert_eq!(world.to_peer.sent.get(), 2);
}

#[test]
fn reset_by_peer() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let (peer, fd) = world.connection(server, 80);
    world.peer_send(peer, b"unread");
    world.settle();
    world.peer_abort(peer);
    let wakes = Wakes::of(fd);
    world.settle();
    assert_eq!(wakes.take(), 1);
    assert_eq!(poll(fd), IN | RDNORM | RDHUP | OUT | WRNORM | HUP | ERR);
    // What had arrived can be read; then the error, once.
    assert_eq!(recv(fd), Ok(b"unread".to_vec()));
    assert_eq!(recv(fd), Err(ECONNRESET));
    assert_eq!(recv(fd), Ok(vec![]));
    assert_eq!(send(fd, b"x"), Err(EPIPE));
    assert_eq!(name_of(fd, 52), Err(ENOTCONN));

    let (peer, fd) = world.connection(server, 80);
    world.peer_abort(peer);
    world.settle();
    assert_eq!(getsockopt(fd, SOL_SOCKET, SO_ERROR), Ok(ECONNRESET.0));
    assert_eq!(getsockopt(fd, SOL_SOCKET, SO_ERROR), Ok(0));
}

#[test]
fn reset_before_accept_is_seen_after_it() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let peer = world.peer_connect(80);
    world.settle();
    world.peer_abort(peer);
    world.settle();
    let fd = call(43, &[server as u64, 0, 0]).unwrap() as i32;
    assert_eq!(recv(fd), Err(ECONNRESET));
}

#[test]
fn a_closed_port_refuses() {
    let mut world = World::new();
    let peer = world.peer_connect(81);
    world.settle();
    assert_eq!(world.peer_state(peer), State::Closed);
    assert_eq!(
        world.peer.flows.get(peer).unwrap().error,
        Some(ECONNREFUSED)
    );
}

#[test]
fn closing_resets_when_it_must() {
    let mut world = World::new();
    let server = world.server(80, 10);
    // Unread data.
    let (peer, fd) = world.connection(server, 80);
    world.peer_send(peer, b"nobody reads this");
    world.settle();
    close(fd);
    world.settle();
    assert_eq!(world.peer.flows.get(peer).unwrap().error, Some(ECONNRESET));
    // SO_LINGER with 0.
    let (peer, fd) = world.connection(server, 80);
    let linger = [1i32, 0];
    assert_eq!(
        call(
            54,
            &[fd as u64, SOL_SOCKET.into(), 13, linger.as_ptr() as u64, 8]
        ),
        Ok(0)
    );
    close(fd);
    world.settle();
    assert_eq!(world.peer.flows.get(peer).unwrap().error, Some(ECONNRESET));
    // Data for a closed socket.
    let (peer, fd) = world.connection(server, 80);
    close(fd);
    world.settle();
    assert_eq!(world.peer_state(peer), State::CloseWait);
    world.peer_send(peer, b"too late");
    world.settle();
    assert_eq!(world.peer_state(peer), State::Closed);
    assert_eq!(with(|s, _| s.connections()), (0, 0, 0));
    // A listener takes its connections with it.
    let peer = world.peer_connect(80);
    world.settle();
    close(server);
    world.settle();
    assert_eq!(world.peer.flows.get(peer).unwrap().error, Some(ECONNRESET));
    assert_eq!(with(|s, _| s.connections()), (0, 0, 0));
}

#[test]
fn what_was_written_before_close_arrives() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let (peer, fd) = world.connection(server, 80);
    let data = pattern(60_000);
    assert_eq!(send(fd, &data), Ok(data.len()));
    close(fd);
    world.settle();
    assert_eq!(world.peer_receive(peer), data);
    assert_eq!(world.peer_state(peer), State::CloseWait);
    world.peer_close(peer);
    world.settle();
    assert_eq!(with(|s, _| s.connections()), (1, 1, 1));
    world.advance(11 * SECOND);
    assert_eq!(with(|s, _| s.connections()), (0, 0, 0));
    assert_eq!(next_deadline_ns(), None);
}

#[test]
fn large_transfers_through_a_narrow_ring() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let (peer, fd) = world.connection(server, 80);
    world.to_peer.most.set(1);
    world.to_guest.most.set(2);
    let data = pattern(3 << 20);
    let (mut sent, mut returned) = (0, 0);
    let (mut echoed, mut back) = (Vec::new(), Vec::new());
    while back.len() < data.len() {
        sent += world.peer_send(peer, &data[sent..]);
        if let Ok(bytes) = recv_flags(fd, 30_000, 0) {
            echoed.extend(bytes);
        }
        if let Ok(count) = send(fd, &echoed[returned..]) {
            returned += count;
        }
        back.extend(world.peer_receive(peer));
        world.settle();
    }
    assert!(echoed == data && back == data);
    assert!(world.to_peer.packets.borrow().is_empty());
}

#[test]
fn a_full_buffer_is_not_writable_until_a_third_is_free() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let (peer, fd) = world.connection(server, 80);
    let data = pattern(1 << 20);
    let mut sent = 0;
    loop {
        match send(fd, &data[sent..]) {
            Ok(count) => sent += count,
            Err(error) => {
                assert_eq!(error, EAGAIN);
                break;
            }
        }
        world.settle();
    }
    // The peer's buffer and ours are full.
    assert!(sent > flow::TCP_RX_BUFFER + flow::TCP_TX_BUFFER - 1000);
    assert_eq!(poll(fd), 0);
    let wakes = Wakes::of(fd);
    let mut received = world.peer_receive(peer);
    world.settle();
    assert_eq!((poll(fd), wakes.take()), (OUT | WRNORM, 1));
    while received.len() < sent {
        received.extend(world.peer_receive(peer));
        world.settle();
    }
    assert!(received == data[..sent]);
    // Nobody was waiting for room any more.
    assert_eq!(wakes.take(), 0);
}

#[test]
fn connecting_to_the_outside() {
    let mut world = World::new();
    let listener = world.peer_listen(7000);
    let fd = tcp();
    assert_eq!(poll(fd), OUT | WRNORM | HUP);
    assert_eq!(send(fd, b"x"), Err(EPIPE));
    assert_eq!(recv(fd), Err(ENOTCONN));
    let to = Address::Inet(PEER_IP, 7000);
    assert_eq!(connect(fd, &to), Err(EINPROGRESS));
    assert_eq!(connect(fd, &to), Err(EALREADY));
    assert_eq!(poll(fd), 0);
    assert_eq!(send(fd, b"x"), Err(EAGAIN));
    let wakes = Wakes::of(fd);
    world.settle();
    assert_eq!((poll(fd), wakes.take()), (OUT | WRNORM, 1));
    assert_eq!(getsockopt(fd, SOL_SOCKET, SO_ERROR), Ok(0));
    assert_eq!(connect(fd, &to), Ok(0));
    assert_eq!(connect(fd, &to), Err(EISCONN));
    let peer = world.peer_accept(listener).unwrap();
    send(fd, b"hello").unwrap();
    world.settle();
    assert_eq!(world.peer_receive(peer), b"hello");

    let fd = tcp();
    assert_eq!(connect(fd, &Address::Inet(PEER_IP, 7001)), Err(EINPROGRESS));
    world.settle();
    assert_eq!(poll(fd), IN | RDNORM | RDHUP | OUT | WRNORM | HUP | ERR);
    assert_eq!(getsockopt(fd, SOL_SOCKET, SO_ERROR), Ok(ECONNREFUSED.0));
    // The socket can try again, once it has said (as Linux does) that the first attempt is over.
    assert_eq!(connect(fd, &to), Err(ECONNABORTED));
    assert_eq!(connect(fd, &to), Err(EINPROGRESS));
    world.settle();
    assert_eq!(connect(fd, &to), Ok(0));
}

#[test]
fn connecting_gives_up() {
    let mut world = World::new();
    world.to_peer.lose.set(usize::MAX);
    let fd = tcp();
    assert_eq!(connect(fd, &Address::Inet(PEER_IP, 7000)), Err(EINPROGRESS));
    world.advance(126 * SECOND);
    assert_eq!(poll(fd), 0);
    assert!(world.to_peer.sent.get() >= 6, "it is tried again");
    world.advance(2 * SECOND);
    assert_eq!(getsockopt(fd, SOL_SOCKET, SO_ERROR), Ok(ETIMEDOUT.0));
}

#[test]
fn lost_packets_are_sent_again() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let (peer, fd) = world.connection(server, 80);
    world.to_peer.lose.set(1);
    send(fd, b"twice").unwrap();
    world.settle();
    assert_eq!(world.peer_receive(peer), b"");
    world.advance(SECOND + 1_000_000);
    assert_eq!(world.peer_receive(peer), b"twice");
}

#[test]
fn transfers_survive_a_lossy_link() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let (peer, fd) = world.connection(server, 80);
    let data = pattern(4 << 20);
    let (mut sent, mut returned) = (0, 0);
    let (mut echoed, mut back) = (Vec::new(), Vec::new());
    let mut random = seeds(5);
    let mut lost = 0;
    for _ in 0..20_000 {
        sent += world.peer_send(peer, &data[sent..]);
        echoed.extend(recv_flags(fd, 50_000, 0).unwrap_or_default());
        returned += send(fd, &echoed[returned..]).unwrap_or(0);
        back.extend(world.peer_receive(peer));
        if back.len() == data.len() {
            break;
        }
        // The next packet of this round is lost, if there is one.
        let mut loses = 0;
        for wire in [&world.to_peer, &world.to_guest] {
            wire.lose.set(random().is_multiple_of(4).into());
            loses += wire.lose.get();
        }
        world.advance(random() % 300_000_000);
        lost += loses - world.to_peer.lose.get() - world.to_guest.lose.get();
    }
    assert!(lost > 10);
    assert!(echoed == data && back == data);
}
