//! What a request costs in a relaxed replica's network endpoint, and how fast bulk data goes through it, against the TCP that the
//! gateway of lockstep sets is made of (smoltcp), both towards the same guest (smoltcp): the guest's part is in both numbers.
//!
//! `cargo run --release -p quorate-executor --example link`

use std::sync::Arc;
use std::time::Instant as Clock;

use quorate_executor::gateway::Room;
use quorate_executor::gateway::link::{GATEWAY, GUEST};
use quorate_executor::gateway::stack::Stack;
use quorate_executor::relaxed::link::{FromGuest, Link, LinkConfig, ToGuest};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;

const REQUESTS: usize = 200_000;
const BULK: usize = 1 << 30;
const PORT: u16 = 80;

/// A guest that says everything back, or swallows it.
struct Guest {
    stack: Stack,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    echoes: bool,
    swallowed: usize,
}

fn socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket
}

fn at(now: u64) -> Instant {
    Instant::from_micros((now / 1000) as i64)
}

impl Guest {
    fn new(echoes: bool) -> Guest {
        let mut sockets = SocketSet::new(Vec::new());
        let mut listener = socket();
        let _ = listener.listen(PORT);
        let handle = sockets.add(listener);
        Guest {
            stack: Stack::guest(1, Instant::ZERO),
            sockets,
            handle,
            echoes,
            swallowed: 0,
        }
    }

    fn turn(&mut self, frames: &mut Vec<Vec<u8>>, now: u64, buffer: &mut [u8]) -> Vec<Vec<u8>> {
        for frame in frames.drain(..) {
            self.stack.receive(frame, &mut self.sockets, at(now));
        }
        let socket = self.sockets.get_mut::<tcp::Socket>(self.handle);
        while let Ok(count @ 1..) = socket.recv_slice(buffer) {
            self.swallowed += count;
            if self.echoes {
                let _ = socket.send_slice(&buffer[..count]);
            }
        }
        self.stack.send(&mut self.sockets, at(now));
        std::mem::take(self.stack.take_out().0)
    }
}

/// Requests of 64 bytes one after another through the endpoint; ns for each.
fn link_requests(checksums: bool) -> f64 {
    let config = LinkConfig {
        checksums,
        ..LinkConfig::default()
    };
    let (mut link, mut guest) = (Link::new(config), Guest::new(true));
    let request: Arc<[u8]> = vec![7; 64].into();
    let (mut frames, mut buffer, mut now, mut answered) = (Vec::new(), vec![0; 1 << 16], 1, 0);
    link.input(
        ToGuest::Open {
            conn: 0,
            guest_port: PORT,
        },
        now,
    );
    let start = Clock::now();
    for round in 1..=REQUESTS {
        link.input(
            ToGuest::Data {
                conn: 0,
                bytes: Arc::clone(&request),
            },
            now,
        );
        while answered < round * 64 {
            now += 1000;
            link.poll(now, usize::MAX, &mut frames);
            for frame in guest.turn(&mut frames, now, &mut buffer) {
                link.frame(&frame, now);
            }
            for event in link.events() {
                if let FromGuest::Data { conn, bytes } = event {
                    link.taken(conn, bytes.len());
                    answered += bytes.len();
                }
            }
        }
    }
    start.elapsed().as_nanos() as f64 / REQUESTS as f64
}

/// A smoltcp socket in the endpoint's place, as in the gateway.
struct Flow {
    stack: Stack,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl Flow {
    fn new(checksums: bool) -> Flow {
        let mut stack = Stack::gateway(checksums, 1, Instant::ZERO);
        stack.set_room(Room {
            frames: usize::MAX,
            bytes: usize::MAX,
        });
        let mut socket = socket();
        socket.set_ack_delay(None);
        let _ = socket.connect(stack.context(), (GUEST, PORT), (GATEWAY, 2000));
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Flow {
            stack,
            sockets,
            handle,
        }
    }
}

fn flow_requests(checksums: bool) -> f64 {
    let (mut flow, mut guest) = (Flow::new(checksums), Guest::new(true));
    let request = [7; 64];
    let (mut frames, mut buffer, mut now, mut answered) = (Vec::new(), vec![0; 1 << 16], 1, 0);
    let start = Clock::now();
    for round in 1..=REQUESTS {
        let mut asked = false;
        while answered < round * 64 {
            now += 1000;
            let socket = flow.sockets.get_mut::<tcp::Socket>(flow.handle);
            if !asked && socket.can_send() {
                let _ = socket.send_slice(&request);
                asked = true;
            }
            flow.stack.send(&mut flow.sockets, at(now));
            frames.append(flow.stack.take_out().0);
            for frame in guest.turn(&mut frames, now, &mut buffer) {
                flow.stack.receive(frame, &mut flow.sockets, at(now));
            }
            let socket = flow.sockets.get_mut::<tcp::Socket>(flow.handle);
            while let Ok(count @ 1..) = socket.recv_slice(&mut buffer) {
                answered += count;
            }
        }
    }
    start.elapsed().as_nanos() as f64 / REQUESTS as f64
}

/// Bulk data to a guest that swallows it; GB/s.
fn link_bulk(checksums: bool) -> f64 {
    let config = LinkConfig {
        checksums,
        ..LinkConfig::default()
    };
    let (mut link, mut guest) = (Link::new(config), Guest::new(false));
    let piece: Arc<[u8]> = vec![7; 64 << 10].into();
    let (mut frames, mut buffer, mut now, mut given) = (Vec::new(), vec![0; 1 << 16], 1, 0);
    link.input(
        ToGuest::Open {
            conn: 0,
            guest_port: PORT,
        },
        now,
    );
    let start = Clock::now();
    while guest.swallowed < BULK {
        while given < BULK && link.unsent(0) < 256 << 10 {
            link.input(
                ToGuest::Data {
                    conn: 0,
                    bytes: Arc::clone(&piece),
                },
                now,
            );
            given += piece.len();
        }
        now += 1000;
        link.poll(now, usize::MAX, &mut frames);
        for frame in guest.turn(&mut frames, now, &mut buffer) {
            link.frame(&frame, now);
        }
    }
    BULK as f64 / start.elapsed().as_secs_f64() / 1e9
}

fn main() {
    for checksums in [false, true] {
        println!("checksums {checksums}:");
        println!("  endpoint: {:.0} ns per request", link_requests(checksums));
        println!("  smoltcp:  {:.0} ns per request", flow_requests(checksums));
        println!("  endpoint: {:.2} GB/s to the guest", link_bulk(checksums));
    }
}
