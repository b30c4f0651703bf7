//! The gateway between real host sockets and a simulated guest.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod one_flow;
mod speed;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::Duration;

use guest::*;
use quorate_abi::net::{GATEWAY_MAC, GUEST_MAC};

use super::*;

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(pattern).collect()
}

/// Sends and receives at the same time, as one must when it is more than the buffers hold.
fn exchange(stream: &TcpStream, data: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; data.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| (&*stream).write_all(data).unwrap());
        (&*stream).read_exact(&mut answer).unwrap();
    });
    answer
}

fn close_with_reset(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
}

fn read_to_end(mut stream: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).map(|_| all)
}

#[test]
fn echo_of_one_byte_to_16_mib() {
    let world = World::new();
    for len in [
        1,
        2,
        63,
        4096,
        32_727,
        32_728,
        32_729,
        65_535,
        65_536,
        65_537,
        1 << 20,
        16 << 20,
    ] {
        let stream = world.connect(ECHO);
        let data = bytes(len);
        assert!(exchange(&stream, &data) == data, "{len} bytes differ");
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&stream).unwrap(), b"");
        assert_eq!(world.event(), Event::Eof(ECHO, len as u64));
    }
    world.until("all connections end", |w| {
        w.gateway.stats().connections == 0
    });
    let stats = world.gateway.stats();
    assert_eq!(stats.connections_total, 12);
    assert_eq!(stats.bytes_to_guest, stats.bytes_from_guest);
    assert_eq!(
        (stats.resets_by_guest, stats.resets_by_client, stats.faults),
        (0, 0, 0)
    );
}

#[test]
fn two_hundred_connections_at_once() {
    let world = World::new();
    let streams: Vec<_> = (0..200).map(|_| world.connect(ECHO)).collect();
    for round in 0..5 {
        for (i, mut stream) in streams.iter().enumerate() {
            stream.write_all(&bytes(1000 * (round + 1) + i)).unwrap();
        }
        for (i, mut stream) in streams.iter().enumerate() {
            let mut answer = vec![0; 1000 * (round + 1) + i];
            stream.read_exact(&mut answer).unwrap();
            assert!(answer == bytes(answer.len()));
        }
    }
    assert_eq!(world.gateway.stats().connections, 200);
    drop(streams);
    world.until("all connections end", |w| {
        w.gateway.stats().connections == 0 && w.controls.connections.load(Ordering::SeqCst) == 0
    });
}

#[test]
fn the_client_ends_first_and_still_hears_the_answer() {
    let world = World::new();
    for len in [0, 1, 100_000, 3 << 20] {
        let mut stream = world.connect(COUNT);
        stream.write_all(&bytes(len)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&stream).unwrap(), (len as u64).to_be_bytes());
        assert_eq!(world.event(), Event::Eof(COUNT, len as u64));
    }
    world.until("all connections end", |w| {
        w.gateway.stats().connections == 0
    });
}

#[test]
fn the_guest_ends_first_and_still_hears_the_client() {
    let world = World::new();
    let mut stream = world.connect(FAREWELL);
    assert_eq!(read_to_end(&stream).unwrap(), b"bye");
    stream.write_all(&bytes(1 << 20)).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(world.event(), Event::Eof(FAREWELL, 1 << 20));
    world.until("the connection ends", |w| {
        w.gateway.stats().connections == 0
    });
    assert_eq!(world.gateway.stats().resets_by_client, 0);
}

#[test]
fn a_reset_by_the_guest_reaches_the_client() {
    let world = World::new();
    let mut stream = world.connect(RESET);
    stream.write_all(b"x").unwrap();
    assert_eq!(
        read_to_end(&stream).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    world.until("it is counted", |w| w.gateway.stats().resets_by_guest == 1);
    assert_eq!(world.gateway.stats().connections, 0);
}

#[test]
fn a_reset_by_the_client_reaches_the_guest() {
    let world = World::new();
    let mut stream = world.connect(ECHO);
    assert_eq!(exchange(&stream, b"hello"), b"hello");
    close_with_reset(stream);
    assert_eq!(world.event(), Event::Reset(ECHO, 5));
    // Also when the gateway is not reading, because the guest is not.
    stream = world.connect(GATED);
    stream
        .set_write_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    while stream.write(&[0; 65536]).is_ok() {}
    close_with_reset(stream);
    assert_eq!(world.event(), Event::Reset(GATED, 0));
    // And after the client has ended its stream.
    stream = world.connect(GATED);
    stream.write_all(b"x").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    close_with_reset(stream);
    world.controls.gate.store(true, Ordering::SeqCst);
    world.until("all end", |w| w.gateway.stats().connections == 0);
    world.until("in the guest too", |w| {
        w.controls.connections.load(Ordering::SeqCst) == 0
    });
}

#[test]
fn a_port_where_nobody_listens_ends_the_connection() {
    let world = World::new();
    let stream = world.connect(NOBODY);
    assert_eq!(
        read_to_end(&stream).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    world.until("it is counted", |w| w.gateway.stats().resets_by_guest == 1);
}

/// Waits until a growing number has not grown for a while: the thing under test is that it stops.
fn settled(read: impl Fn() -> u64) -> u64 {
    let start = std::time::Instant::now();
    let mut last = (start, read());
    while last.0.elapsed() < Duration::from_millis(300) {
        let value = read();
        if value != last.1 {
            last = (std::time::Instant::now(), value);
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "it does not stop"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    last.1
}

/// What a loopback connection may hold in the kernel (`tcp_wmem` and `tcp_rmem` maxima), generously.
const KERNEL_BUFFERS: u64 = 32 << 20;

#[test]
fn a_client_that_does_not_read_stops_the_guest() {
    let world = World::new();
    let mut stream = world.connect(BLAST);
    let sent = settled(|| world.controls.blasted.load(Ordering::SeqCst));
    assert!(
        sent > 0 && sent < KERNEL_BUFFERS,
        "{sent} bytes taken for a client that reads nothing"
    );
    let passed = world.gateway.stats().bytes_from_guest;
    assert!(
        sent - passed <= (FLOW_RX_BUFFER + GUEST_BUFFER) as u64,
        "{sent} sent, {passed} passed"
    );
    // Others are served meanwhile.
    assert_eq!(exchange(&world.connect(ECHO), b"hello"), b"hello");
    let mut position = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = stream.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        assert!(
            (0..n).all(|i| buffer[i] == pattern(position + i)),
            "wrong bytes at {position}"
        );
        position += n;
    }
    assert_eq!(position, BLAST_BYTES);
}

#[test]
fn a_guest_that_does_not_read_stops_the_client() {
    let world = World::new();
    let mut stream = world.connect(GATED);
    stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let data = bytes(64 << 20);
    let mut sent = 0;
    while let Ok(n) = stream.write(&data[sent..]) {
        sent += n;
    }
    assert!(
        (sent as u64) < KERNEL_BUFFERS,
        "{sent} bytes taken for a guest that reads nothing"
    );
    let taken = settled(|| world.gateway.stats().bytes_to_guest);
    assert!(
        taken <= (FLOW_TX_BUFFER + GUEST_BUFFER) as u64,
        "{taken} bytes in the gateway"
    );
    assert_eq!(exchange(&world.connect(ECHO), b"hello"), b"hello");
    world.controls.gate.store(true, Ordering::SeqCst);
    let mut answer = vec![0; sent];
    stream.read_exact(&mut answer).unwrap();
    assert!(answer == data[..sent]);
}

/// R10: with a guest that takes nothing, the ingress fills to its bound and not beyond, and nothing is lost.
#[test]
fn a_full_ingress_holds_clients_back_without_loss() {
    let world = World::new();
    let data = bytes(FLOW_TX_BUFFER);
    let streams: Vec<_> = (0..400).map(|_| world.connect(ECHO)).collect();
    for stream in &streams {
        assert_eq!(exchange(stream, b"ready"), b"ready");
    }
    world.controls.paused.store(true, Ordering::SeqCst);
    for mut stream in &streams {
        stream.write_all(&data).unwrap();
    }
    let ingress = world.gateway.ingress();
    world.until("the ingress is full", |_| {
        ingress.room().bytes < quorate_abi::net::MAX_FRAME
    });
    assert!(ingress.len() <= INGRESS_MAX_FRAMES);
    world.controls.paused.store(false, Ordering::SeqCst);
    for mut stream in &streams {
        let mut answer = vec![0; data.len()];
        stream.read_exact(&mut answer).unwrap();
        assert!(answer == data);
    }
    assert_eq!(world.gateway.stats().faults, 0);
}

/// Without anything else that would wake the gateway.
#[test]
fn taking_from_a_full_ingress_wakes_the_gateway() {
    let publish = vec!["0:53/udp".parse().unwrap()];
    let config = GatewayConfig {
        publish,
        ..Default::default()
    };
    let gateway = Gateway::start(config, Arc::new(|| ())).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(gateway.addresses()[0].1).unwrap();
    let ingress = gateway.ingress();
    while ingress.len() < INGRESS_MAX_FRAMES {
        client.send(b"datagram").unwrap();
    }
    client.send(b"one more").unwrap();
    let asleep = settled(|| gateway.stats().turns);
    assert_eq!(
        ingress.take(usize::MAX, usize::MAX).len(),
        INGRESS_MAX_FRAMES
    );
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while ingress.is_empty() {
        assert!(
            std::time::Instant::now() < deadline,
            "asleep since turn {asleep}"
        );
        std::thread::yield_now();
    }
}

#[test]
fn beyond_max_connections_clients_wait() {
    let publish = vec![format!("0:{ECHO}").parse().unwrap()];
    let world = World::with(GatewayConfig {
        publish,
        max_connections: 2,
        ..Default::default()
    });
    let first = world.connect(ECHO);
    let second = world.connect(ECHO);
    assert_eq!(exchange(&first, b"1"), b"1");
    assert_eq!(exchange(&second, b"2"), b"2");
    let mut third = world.connect(ECHO);
    third.write_all(b"3").unwrap();
    assert_eq!(exchange(&first, b"1"), b"1");
    assert_eq!(world.gateway.stats().connections, 2);
    drop(second);
    let mut answer = [0];
    third.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"3");
}

#[test]
fn slots_and_ports_are_used_again() {
    let world = World::new();
    for i in 0..1000 {
        let stream = world.connect(ECHO);
        assert_eq!(exchange(&stream, &bytes(i)), bytes(i));
    }
    world.until("all connections end", |w| {
        w.gateway.stats().connections == 0
    });
    let stats = world.gateway.stats();
    assert_eq!(
        (
            stats.connections_total,
            stats.resets_by_guest,
            stats.resets_by_client
        ),
        (1000, 0, 0)
    );
}

/// The guest may ask who the gateway is, but opens no connection.
#[test]
fn the_guest_is_answered_on_the_link_and_refused_beyond() {
    let (sender, notified) = std::sync::mpsc::channel();
    let notify = Arc::new(move || sender.send(()).unwrap());
    let gateway = Gateway::start(GatewayConfig::default(), notify).unwrap();
    let mut arp = GATEWAY_MAC.to_vec();
    arp.extend(GUEST_MAC);
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend(GUEST_MAC);
    arp.extend(quorate_abi::net::GUEST_IP);
    arp.extend([0; 6]);
    arp.extend(quorate_abi::net::GATEWAY_IP);
    // A SYN to the gateway itself, and one to somewhere in the internet.
    let mut syn = arp[..12].to_vec();
    syn.extend([
        8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2,
    ]);
    syn.extend([
        0x9c, 0x40, 0, 80, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    let mut foreign = syn.clone();
    foreign[30..34].copy_from_slice(&[93, 184, 216, 34]);
    gateway.deliver(vec![arp, syn, foreign]);
    notified.recv_timeout(Duration::from_secs(60)).unwrap();
    let answers = gateway.ingress().take(10, usize::MAX);
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[0][20..22], [0, 2], "ARP reply");
    for (answer, from) in answers[1..].iter().zip([[10, 0, 2, 2], [93, 184, 216, 34]]) {
        assert_eq!(answer[26..30], from);
        assert_eq!(answer[42..46], [0, 0, 0, 10], "acknowledges the SYN");
        assert_eq!(answer[47], 0x14, "RST and ACK");
    }
    assert_eq!(gateway.stats().outgoing_refused, 2);
}

#[test]
fn udp_answers_find_their_client() {
    let world = World::new();
    let address = world.address(UDP_REVERSE, Protocol::Udp);
    let clients: Vec<_> = (0..20)
        .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
        .collect();
    let mut buffer = vec![0; 65536];
    for len in [0, 1, 2, 1472, 9000, 32_740] {
        for (i, client) in clients.iter().enumerate() {
            client
                .set_read_timeout(Some(Duration::from_secs(60)))
                .unwrap();
            let mut data = bytes(len);
            data.iter_mut().for_each(|b| *b ^= i as u8);
            assert_eq!(client.send_to(&data, address).unwrap(), len);
            let (n, from) = client.recv_from(&mut buffer).unwrap();
            data.reverse();
            assert_eq!((n, from), (len, address));
            assert!(buffer[..n] == data, "{len} bytes, client {i}");
        }
    }
    assert_eq!(world.gateway.stats().udp_clients, 20);
    clients[0].send_to(&vec![0; 32_741], address).unwrap();
    world.until("the datagram that is too long is dropped", |w| {
        w.gateway.stats().udp_dropped == 1
    });
}

#[test]
fn ports_that_cannot_be_bound_are_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let taken_udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp_port = taken_udp.local_addr().unwrap().port();
    let start = |text: String| {
        let config = GatewayConfig {
            publish: vec![text.parse().unwrap()],
            ..Default::default()
        };
        Gateway::start(config, Arc::new(|| ())).err().unwrap()
    };
    let error = start(format!("{port}:80"));
    assert!(matches!(error, GatewayError::InUse { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&format!("port {port} ")) && text.contains("another host port"),
        "{text}"
    );
    assert!(matches!(
        start(format!("{udp_port}:80/udp")),
        GatewayError::InUse { .. }
    ));
    let error = start("192.0.2.1:0:80".to_owned());
    assert!(
        matches!(error, GatewayError::NoSuchAddress { .. }),
        "{error}"
    );
    let denied = std::io::Error::from(ErrorKind::PermissionDenied);
    let text = bind_error("80:80".parse().unwrap(), denied).to_string();
    assert!(text.contains("no permission to bind port 80"), "{text}");
    for max_connections in [0, LIMIT_MAX_CONNECTIONS + 1] {
        let config = GatewayConfig {
            max_connections,
            ..Default::default()
        };
        assert!(Gateway::start(config, Arc::new(|| ())).is_err());
    }
}

/// What the voter released before the stop still reaches the client.
#[test]
fn stop_passes_on_what_was_delivered() {
    let world = World::new();
    let mut stream = world.connect(ECHO);
    assert_eq!(exchange(&stream, b"ready"), b"ready");
    world.controls.hold.store(true, Ordering::SeqCst);
    stream.write_all(b"last words").unwrap();
    let held = || std::mem::take(&mut *world.controls.held.lock().unwrap());
    let mut frames = held();
    while !frames.iter().any(|frame| frame.ends_with(b"last words")) {
        std::thread::yield_now();
        frames.extend(held());
    }
    world.gateway.deliver(frames);
    let address = world.address(ECHO, Protocol::Tcp);
    drop(world);
    assert_eq!(read_to_end(&stream).unwrap(), b"last words");
    assert_eq!(
        TcpStream::connect(address).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
}

/// R10, design of the loop: connections that do nothing cost nothing.
#[test]
fn idle_connections_do_not_wake_the_gateway() {
    let world = World::new();
    let streams: Vec<_> = (0..100).map(|_| world.connect(ECHO)).collect();
    for stream in &streams {
        assert_eq!(exchange(stream, b"hello"), b"hello");
    }
    // smoltcp's retransmission timer is the longest that an idle connection may keep.
    let turns = settled(|| world.gateway.stats().turns);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(world.gateway.stats().turns, turns);
}

/// R9: a guest that damages its own segments in every way ends at most its own connections.
#[test]
fn a_hostile_guest_harms_only_itself() {
    for seed in 1..=12 {
        let world = World::new();
        let bystander = world.connect(COUNT);
        assert!(
            exchange_or_fail(&world.connect(ECHO), 1000).is_some(),
            "before"
        );
        world
            .controls
            .hostile
            .store(seed << 32 | seed, Ordering::SeqCst);
        std::thread::scope(|scope| {
            for port in [ECHO, ECHO, FAREWELL, COUNT, RESET] {
                let stream = world.connect(port);
                stream
                    .set_read_timeout(Some(Duration::from_millis(300)))
                    .unwrap();
                stream
                    .set_write_timeout(Some(Duration::from_millis(300)))
                    .unwrap();
                scope.spawn(move || {
                    for len in [10, 100_000, 50] {
                        exchange_or_fail(&stream, len);
                    }
                });
            }
        });
        world.controls.hostile.store(0, Ordering::SeqCst);
        assert!(
            exchange_or_fail(&world.connect(ECHO), 100_000).is_some(),
            "after, seed {seed}"
        );
        let stats = world.gateway.stats();
        assert_eq!(stats.faults, 0, "seed {seed}: {stats:?}");
        drop(bystander);
    }
}

fn exchange_or_fail(stream: &TcpStream, len: usize) -> Option<()> {
    let data = bytes(len);
    let mut answer = vec![0; len];
    std::thread::scope(|scope| {
        scope.spawn(|| (&*stream).write_all(&data));
        (&*stream).read_exact(&mut answer).ok()
    })?;
    (answer == data).then_some(())
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    /// R9: arbitrary frames through the whole gateway.
    #[test]
    fn garbage_frames_are_counted_and_survived(
        frames in proptest::collection::vec(
            proptest::collection::vec(proptest::prelude::any::<u8>(), 0..120), 1..50,
        ),
    ) {
        let gateway = Gateway::start(GatewayConfig::default(), Arc::new(|| ())).unwrap();
        let count = frames.len() as u64;
        // Half of them get as far as the IPv4 parser.
        let head = [&GATEWAY_MAC[..], &GUEST_MAC[..], &[8, 0]].concat();
        let frames = frames.into_iter().enumerate().map(|(i, frame)| match i % 2 {
            0 => frame,
            _ => [&head[..], &frame[..]].concat(),
        });
        gateway.deliver(frames.collect());
        let shared = gateway.shared.clone();
        gateway.stop();
        let stats = shared.stats.lock().unwrap().clone();
        proptest::prop_assert_eq!(stats.frames_from_guest, count);
        proptest::prop_assert_eq!(stats.frames_malformed + stats.frames_ignored, count);
        proptest::prop_assert_eq!(stats.faults, 0);
    }
}
