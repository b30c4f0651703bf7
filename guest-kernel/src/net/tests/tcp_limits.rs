//! TCP at its bounds (R10), and its timers.

use super::*;
use smoltcp::socket::tcp::State;

#[test]
fn a_full_backlog_drops_connections_until_there_is_room() {
    let mut world = World::new();
    let server = world.server(80, 1);
    let peers: Vec<FlowId> = (0..4)
        .map(|_| {
            let peer = world.peer_connect(80);
            world.settle();
            peer
        })
        .collect();
    let states = |world: &World| {
        peers
            .iter()
            .map(|p| world.peer_state(*p))
            .collect::<Vec<_>>()
    };
    use State::{Established as Up, SynSent as Waits};
    // Linux lets one more in than the backlog says.
    assert_eq!(states(&world), [Up, Up, Waits, Waits]);
    assert_eq!(with(|s, _| s.counters.syn_dropped), 2);
    for _ in 0..2 {
        call(43, &[server as u64, 0, 0]).unwrap();
    }
    world.advance(2 * SECOND);
    assert_eq!(states(&world), [Up, Up, Up, Up]);
}

#[test]
fn half_open_connections_are_bounded_and_forgotten() {
    let mut world = World::new();
    world.server(80, 16);
    world.to_peer.lose.set(usize::MAX);
    for _ in 0..200 {
        world.peer_connect(80);
    }
    world.settle();
    assert_eq!(
        with(|s, _| s.connections()),
        (listener::HALF_OPEN_MIN, 0, 0)
    );
    assert_eq!(
        with(|s, _| s.counters.syn_dropped),
        200 - listener::HALF_OPEN_MIN as u64
    );
    // The peers go away.
    world.peer = Stack::new(PEER_IP, Box::new(world.to_guest.clone()), seeds(3));
    world.advance(64 * SECOND);
    assert_eq!(with(|s, _| s.connections()), (0, 0, 0));
    assert_eq!(next_deadline_ns(), None);
}

#[test]
fn time_wait_is_bounded() {
    let mut world = World::new();
    let server = world.server(80, 10);
    for _ in 0..stack::TIME_WAIT_MAX + 20 {
        let (peer, fd) = world.connection(server, 80);
        close(fd);
        world.settle();
        world.peer_close(peer);
        world.settle();
        world.peer.recycle(peer);
    }
    let most = stack::TIME_WAIT_MAX;
    assert_eq!(with(|s, _| s.connections()), (most, most, most));
    world.advance(11 * SECOND);
    assert_eq!(with(|s, _| s.connections()), (0, 0, 0));
}

#[test]
fn a_new_connection_from_the_same_port_ends_time_wait() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let (peer, fd) = world.connection(server, 80);
    close(fd);
    world.settle();
    world.peer_close(peer);
    world.settle();
    assert_eq!(with(|s, _| s.connections()), (1, 1, 1));
    world.peer.recycle(peer);
    world.next_port -= 1;
    let (peer, fd) = world.connection(server, 80);
    send(fd, b"again").unwrap();
    world.settle();
    assert_eq!(world.peer_receive(peer), b"again");
}

#[test]
fn connections_are_bounded() {
    let mut world = World::new();
    let server = world.server(80, 4096);
    let most = with(|s, _| {
        s.limit_to_memory(1 << 50);
        assert_eq!(s.connections_max, stack::CONNECTIONS_MAX);
        s.limit_to_memory(256 << 20);
        s.connections_max
    });
    assert_eq!(most, 682);
    let mut fds = Vec::new();
    for _ in 0..most {
        fds.push(world.connection(server, 80).1);
    }
    let peer = world.peer_connect(80);
    world.settle();
    assert_eq!(world.peer_state(peer), State::SynSent);
    let fd = tcp();
    assert_eq!(connect(fd, &Address::Inet(PEER_IP, 1)), Err(EADDRNOTAVAIL));
    // All of them work.
    for fd in &fds {
        assert_eq!(send(*fd, b"x"), Ok(1));
    }
    world.settle();
    close(fds[0]);
    world.settle();
    assert_eq!(with(|s, _| s.connections()), (most, 1, 0));
}

#[test]
fn no_descriptor_leaves_the_connection_in_the_queue() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let peer = world.peer_connect(80);
    world.settle();
    let limit = std::mem::replace(&mut file::table().limit, 1);
    let refused = call(43, &[server as u64, 0, 0]);
    file::table().limit = limit;
    assert_eq!(refused, Err(EMFILE));
    assert_eq!(world.peer_state(peer), State::Established);
    assert!(call(43, &[server as u64, 0, 0]).is_ok());
}

#[test]
fn orphans_that_do_not_finish_are_given_up() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let (peer, fd) = world.connection(server, 80);
    close(fd);
    world.settle();
    // The peer never closes.
    assert_eq!(world.peer_state(peer), State::CloseWait);
    world.advance(59 * SECOND);
    assert_eq!(with(|s, _| s.connections()), (1, 1, 0));
    world.advance(2 * SECOND);
    assert_eq!(with(|s, _| s.connections()), (0, 0, 0));
}

#[test]
fn unread_data_survives_time_wait() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let (peer, fd) = world.connection(server, 80);
    assert_eq!(call(48, &[fd as u64, SHUT_WR.into()]), Ok(0));
    world.settle();
    world.peer_send(peer, b"the end");
    world.peer_close(peer);
    world.advance(20_000_000);
    assert_eq!(world.peer_state(peer), State::Closed);
    world.advance(30 * SECOND);
    assert_eq!(recv(fd), Ok(b"the end".to_vec()));
    assert_eq!(recv(fd), Ok(vec![]));
    close(fd);
    world.advance(11 * SECOND);
    assert_eq!(with(|s, _| s.connections()), (0, 0, 0));
}

fn keep_alive(fd: i32) {
    for (level, name, value) in [
        (SOL_SOCKET, 9, 1),
        (IPPROTO_TCP, 4, 10),
        (IPPROTO_TCP, 5, 5),
        (IPPROTO_TCP, 6, 2),
    ] {
        assert_eq!(setsockopt(fd, level, name, value), Ok(0));
        assert_eq!(getsockopt(fd, level, name), Ok(value));
    }
}

#[test]
fn keep_alive_finds_a_dead_peer() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let (_, fd) = world.connection(server, 80);
    keep_alive(fd);
    world.settle();
    world.to_peer.sent.set(0);
    // The peer answers: the connection stays.
    world.advance(35 * SECOND);
    assert_eq!(world.to_peer.sent.get(), 3);
    assert_eq!(poll(fd) & file::ready::ERR, 0);
    // The peer is gone: two probes, then the error.
    world.to_peer.lose.set(usize::MAX);
    world.to_peer.sent.set(0);
    world.advance(15 * SECOND - 10_000_000);
    assert_eq!(poll(fd) & file::ready::ERR, 0);
    assert_eq!(world.to_peer.sent.get(), 2);
    world.advance(20_000_000);
    assert_eq!(getsockopt(fd, SOL_SOCKET, SO_ERROR), Ok(ETIMEDOUT.0));
}

#[test]
fn unacknowledged_data_times_out() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let (_, fd) = world.connection(server, 80);
    assert_eq!(setsockopt(fd, IPPROTO_TCP, 18, 30_000), Ok(0));
    world.advance(100 * SECOND);
    assert_eq!(poll(fd) & file::ready::ERR, 0, "idle is no failure");
    world.to_peer.lose.set(usize::MAX);
    send(fd, b"into the void").unwrap();
    world.advance(29 * SECOND);
    assert_eq!(poll(fd) & file::ready::ERR, 0);
    world.advance(2 * SECOND);
    assert_eq!(recv(fd), Err(ETIMEDOUT));
    assert_eq!(send(fd, b"x"), Err(EPIPE));
}

#[test]
fn idle_connections_have_no_timers() {
    let mut world = World::new();
    let server = world.server(80, 10);
    let (peer, fd) = world.connection(server, 80);
    world.peer_send(peer, b"request");
    world.settle();
    recv(fd).unwrap();
    send(fd, b"reply").unwrap();
    world.settle();
    world.peer_receive(peer);
    world.advance(3 * SECOND);
    assert_eq!(next_deadline_ns(), None);
}

#[test]
fn options_are_kept_or_refused() {
    let mut world = World::new();
    let server = world.server(80, 10);
    assert_eq!(setsockopt(server, IPPROTO_TCP, 1, 1), Ok(0));
    let (_, fd) = world.connection(server, 80);
    assert_eq!(getsockopt(fd, IPPROTO_TCP, 1), Ok(1), "inherited");
    assert_eq!(getsockopt(server, SOL_SOCKET, 30), Ok(1));
    assert_eq!(getsockopt(fd, SOL_SOCKET, 30), Ok(0));
    assert_eq!(getsockopt(fd, SOL_SOCKET, 3), Ok(SOCK_STREAM as i32));
    assert_eq!(getsockopt(fd, SOL_SOCKET, 39), Ok(AF_INET.into()));
    assert_eq!(setsockopt(fd, SOL_SOCKET, 7, 10_000), Ok(0));
    assert_eq!(getsockopt(fd, SOL_SOCKET, 7), Ok(20_000));
    assert_eq!(setsockopt(fd, SOL_SOCKET, 4, 1), Err(ENOPROTOOPT));
    assert_eq!(setsockopt(fd, SOL_SOCKET, 60, 1), Err(ENOPROTOOPT));
    assert_eq!(setsockopt(fd, IPPROTO_TCP, 4, 0), Err(EINVAL));
    assert_eq!(setsockopt(fd, 41, 26, 1), Err(ENOPROTOOPT));
    assert_eq!(getsockopt(fd, IPPROTO_UDP, 1), Err(ENOPROTOOPT));
    let time = [2i64, 500_000];
    assert_eq!(
        call(54, &[fd as u64, 1, 20, time.as_ptr() as u64, 16]),
        Ok(0)
    );
    assert_eq!(
        file::get(fd).unwrap().file.patience_ns(false),
        Some(2 * SECOND + SECOND / 2)
    );
    assert_eq!(call(41, &[10, 1, 0]), Err(EAFNOSUPPORT));
    assert_eq!(call(41, &[16, 3, 0]), Err(EAFNOSUPPORT));
    assert_eq!(call(41, &[2, 1, 17]), Err(EPROTONOSUPPORT));
    assert_eq!(call(41, &[2, 0x100_0001, 0]), Err(EINVAL));
}

/// A timer's flush that wakes a thread must not let the guest sleep.
#[test]
fn somebody_woken_by_a_timer_is_not_slept_over() {
    let world = World::new();
    world.to_peer.lose.set(usize::MAX);
    let fd = tcp();
    assert_eq!(connect(fd, &Address::Inet(PEER_IP, 7000)), Err(EINPROGRESS));
    flush();
    loop {
        let now = time::now_ns();
        let next = next_deadline_ns().unwrap();
        if poll(fd) & file::ready::ERR != 0 {
            assert_eq!(next, now);
            return;
        }
        assert!(next > now);
        time::set(next, 0);
        run_timers();
    }
}
