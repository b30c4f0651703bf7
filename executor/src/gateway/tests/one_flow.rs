//! One connection, with time and the order of events in the test's hands.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};

use super::super::GatewayStats;
use super::super::flow::{
    ACK_DELAY, ACK_NOW_BYTES, CONNECT_TIMEOUT, Flow, Next, ORPHAN_TIMEOUT, Tick,
};
use super::super::ingress::Room;
use super::super::stack::Stack;

const GUEST_PORT: u16 = 80;
const ROOM: Room = Room {
    frames: 100,
    bytes: 10 << 20,
};

/// One connection with time in the test's hands.
struct Bench {
    stack: Stack,
    flow: Flow,
    client: TcpStream,
    guest: Stack,
    guest_set: SocketSet<'static>,
    guest_handle: SocketHandle,
    stats: GatewayStats,
    now: Instant,
}

impl Bench {
    fn new() -> Bench {
        let now = Instant::from_secs(1);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (host, _) = listener.accept().unwrap();
        host.set_nonblocking(true).unwrap();
        let mut stack = Stack::gateway(true, 1, now);
        stack.set_room(ROOM);
        let flow = Flow::connect(&mut stack, host, 5000, GUEST_PORT, now).unwrap();
        let buffer = || tcp::SocketBuffer::new(vec![0; 65536]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.listen(GUEST_PORT).unwrap();
        socket.set_ack_delay(None);
        let mut guest_set = SocketSet::new(Vec::new());
        let guest_handle = guest_set.add(socket);
        let guest = Stack::guest(2, now);
        let stats = GatewayStats::default();
        Bench {
            stack,
            flow,
            client,
            guest,
            guest_set,
            guest_handle,
            stats,
            now,
        }
    }

    fn turn(&mut self) -> Next {
        self.flow.turn(&mut self.stack, self.now, &mut self.stats)
    }

    fn frames(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(self.stack.take_out().0)
    }

    /// Carries frames to the guest, and its answers back.
    fn carry(&mut self, frames: Vec<Vec<u8>>) {
        for frame in frames {
            self.guest.receive(frame, &mut self.guest_set, self.now);
        }
        self.guest.send(&mut self.guest_set, self.now);
        for frame in std::mem::take(self.guest.take_out().0) {
            self.flow.receive(&mut self.stack, frame, self.now);
        }
    }

    fn guest_sends(&mut self, data: &[u8]) {
        let socket = self.guest_set.get_mut::<tcp::Socket>(self.guest_handle);
        assert_eq!(socket.send_slice(data).unwrap(), data.len());
        self.carry(Vec::new());
    }

    fn established() -> Bench {
        let mut bench = Bench::new();
        assert_eq!(bench.turn(), Next::Sent);
        let syn = bench.frames();
        assert_eq!(syn.len(), 1);
        bench.carry(syn);
        assert_eq!(bench.turn(), Next::Sent);
        let ack = bench.frames();
        bench.carry(ack);
        assert_eq!(bench.turn(), Next::Idle);
        bench
    }
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let mut bench = Bench::new();
    assert_eq!(bench.turn(), Next::Sent);
    let start = bench.now;
    let mut sent = bench.frames().len();
    while bench.now < start + CONNECT_TIMEOUT {
        match bench
            .flow
            .tick(&mut bench.stack, bench.now, &mut bench.stats)
        {
            Tick::Due => assert_eq!(bench.turn(), Next::Sent),
            tick => assert_eq!(tick, Tick::Wait),
        }
        sent += bench.frames().len();
        bench.now += Duration::from_millis(100);
    }
    assert!((3..=6).contains(&sent), "{sent} SYNs: they must back off");
    assert_eq!(
        bench
            .flow
            .tick(&mut bench.stack, bench.now, &mut bench.stats),
        Tick::Due
    );
    assert_eq!(bench.turn(), Next::Remove);
    assert_eq!(bench.stats.connect_timeouts, 1);
    drop(bench.flow);
    let error = bench.client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn small_answers_are_acknowledged_with_the_next_request_or_after_the_delay() {
    let mut bench = Bench::established();
    bench.guest_sends(b"answer");
    let due = bench.now + ACK_DELAY;
    assert_eq!(bench.turn(), Next::AckAt(due));
    assert!(bench.frames().is_empty());
    let mut buffer = [0; 6];
    bench.client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"answer");
    // The next request takes it along.
    bench.client.write_all(b"request").unwrap();
    bench.flow.host_event(true, false, false, false);
    assert_eq!(bench.turn(), Next::Sent);
    let frames = bench.frames();
    assert_eq!(frames.len(), 1);
    bench.carry(frames);
    assert_eq!(
        bench
            .guest_set
            .get::<tcp::Socket>(bench.guest_handle)
            .send_queue(),
        0
    );
    assert_eq!(bench.turn(), Next::Idle);
    // Without one it goes alone, once.
    bench.guest_sends(b"answer");
    assert!(matches!(bench.turn(), Next::AckAt(_)));
    bench.now += ACK_DELAY;
    bench.flow.ack_now();
    assert_eq!(bench.turn(), Next::Sent);
    assert_eq!(bench.frames().len(), 1);
    assert_eq!(bench.turn(), Next::Idle);
}

#[test]
fn bulk_is_acknowledged_at_once() {
    let mut bench = Bench::established();
    bench.guest_sends(&[1; ACK_NOW_BYTES]);
    assert_eq!(bench.turn(), Next::Sent);
    assert_eq!(bench.frames().len(), 1);
}

#[test]
fn without_room_nothing_is_read_or_sent() {
    let mut bench = Bench::established();
    bench.stack.set_room(Room {
        frames: 0,
        bytes: 0,
    });
    bench.client.write_all(b"request").unwrap();
    bench.flow.host_event(true, false, false, false);
    assert_eq!(bench.turn(), Next::Starved);
    assert_eq!(bench.stats.bytes_to_guest, 0);
    bench.stack.set_room(ROOM);
    assert_eq!(bench.turn(), Next::Sent);
    assert_eq!(bench.stats.bytes_to_guest, 7);
    assert_eq!(bench.frames().len(), 1);
}

#[test]
fn a_guest_that_never_acknowledges_the_end_is_given_up() {
    let mut bench = Bench::established();
    bench
        .guest_set
        .get_mut::<tcp::Socket>(bench.guest_handle)
        .close();
    bench.carry(Vec::new());
    bench.client.shutdown(Shutdown::Write).unwrap();
    bench.flow.host_event(true, false, true, false);
    assert_eq!(bench.turn(), Next::Sent);
    bench.frames();
    let start = bench.now;
    let mut retransmitted = 0;
    loop {
        bench.now += Duration::from_millis(100);
        let tick = bench
            .flow
            .tick(&mut bench.stack, bench.now, &mut bench.stats);
        if tick == Tick::Due && bench.turn() == Next::Remove {
            break;
        }
        retransmitted += bench.frames().len();
        assert!(bench.now < start + ORPHAN_TIMEOUT + Duration::from_secs(1));
    }
    assert!(bench.now >= start + ORPHAN_TIMEOUT);
    assert!(
        (2..=8).contains(&retransmitted),
        "{retransmitted} FINs: they must back off"
    );
}

#[test]
fn the_end_of_stream_waits_for_a_client_that_reads_late() {
    let mut bench = Bench::established();
    // Fill the client's connection from the side.
    let mut side = bench.flow.host().try_clone().unwrap();
    let mut filled = 0;
    while let Ok(n) = side.write(&[0; 65536]) {
        filled += n;
    }
    bench.guest_sends(b"the last words");
    bench
        .guest_set
        .get_mut::<tcp::Socket>(bench.guest_handle)
        .close();
    bench.carry(Vec::new());
    assert_eq!(bench.turn(), Next::Sent, "the end is acknowledged");
    assert_eq!(bench.stats.bytes_from_guest, 0, "and the words are kept");
    let mut buffer = vec![0; filled];
    bench.client.read_exact(&mut buffer).unwrap();
    bench.flow.host_event(false, true, false, false);
    bench.turn();
    buffer.clear();
    bench.client.read_to_end(&mut buffer).unwrap();
    assert_eq!(buffer, b"the last words");
}

/// smoltcp's TIME-WAIT timer throws received data away; the client may need longer than that.
#[test]
fn the_last_words_outlive_time_wait() {
    let mut bench = Bench::established();
    let mut side = bench.flow.host().try_clone().unwrap();
    let mut filled = 0;
    while let Ok(n) = side.write(&[0; 65536]) {
        filled += n;
    }
    bench.client.shutdown(Shutdown::Write).unwrap();
    bench.flow.host_event(true, false, true, false);
    assert_eq!(bench.turn(), Next::Sent);
    let fin = bench.frames();
    bench.carry(fin);
    bench.guest_sends(b"the last words");
    bench
        .guest_set
        .get_mut::<tcp::Socket>(bench.guest_handle)
        .close();
    bench.carry(Vec::new());
    bench.turn();
    let ack = bench.frames();
    bench.carry(ack);
    let state = bench
        .guest_set
        .get::<tcp::Socket>(bench.guest_handle)
        .state();
    assert_eq!(state, tcp::State::Closed, "the guest is done");
    for _ in 0..200 {
        bench.now += Duration::from_millis(100);
        if bench
            .flow
            .tick(&mut bench.stack, bench.now, &mut bench.stats)
            == Tick::Due
        {
            assert_ne!(bench.turn(), Next::Remove);
        }
    }
    let mut buffer = vec![0; filled];
    bench.client.read_exact(&mut buffer).unwrap();
    bench.flow.host_event(false, true, false, false);
    assert_eq!(bench.turn(), Next::Remove);
    buffer.clear();
    bench.client.read_to_end(&mut buffer).unwrap();
    assert_eq!(buffer, b"the last words");
}
