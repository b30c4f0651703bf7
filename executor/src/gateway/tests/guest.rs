//! A simulated guest: a second smoltcp at the other end of the link, with a program for each port.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::Instant;

use super::super::stack::Stack;
use super::super::*;

/// Sends everything back; ends when the client ends.
pub const ECHO: u16 = 7;
/// Reads to the end, then answers with the number of bytes.
pub const COUNT: u16 = 9;
/// Sends [`BLAST_BYTES`] of [`pattern`] and ends.
pub const BLAST: u16 = 19;
/// Says "bye", ends its stream, and reads on to the end.
pub const FAREWELL: u16 = 20;
/// Resets at the first byte.
pub const RESET: u16 = 21;
/// Echo, but reads nothing before the gate is opened.
pub const GATED: u16 = 22;
/// UDP: sends back what came, reversed.
pub const UDP_REVERSE: u16 = 53;
/// Nobody listens here.
pub const NOBODY: u16 = 99;

pub const BLAST_BYTES: usize = 48 << 20;
pub const GUEST_BUFFER: usize = 64 * 1024;

/// A byte stream in which every misplaced byte shows.
pub fn pattern(offset: usize) -> u8 {
    (offset as u32).wrapping_mul(0x9e37_79b9).rotate_left(9) as u8
}

#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The client's stream has ended after so many bytes.
    Eof(u16, u64),
    /// The connection was reset after so many bytes.
    Reset(u16, u64),
}

struct Conn {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    port: u16,
    received: u64,
    sent: usize,
    eof: bool,
}

#[derive(Default)]
pub struct Controls {
    /// The guest takes no frames at all.
    pub paused: AtomicBool,
    /// Lets [`GATED`] read.
    pub gate: AtomicBool,
    /// Bytes that [`BLAST`] has put into its socket, all connections together.
    pub blasted: AtomicU64,
    /// Connections that the guest has.
    pub connections: AtomicU64,
    /// When not 0: seed for mutated copies that go out before each real frame.
    pub hostile: AtomicU64,
    /// The guest's frames are kept in `held`.
    pub hold: AtomicBool,
    pub held: Mutex<Vec<Vec<u8>>>,
    stop: AtomicBool,
}

/// Gateway and guest, connected.
pub struct World {
    pub gateway: Arc<Gateway>,
    pub controls: Arc<Controls>,
    pub events: Receiver<Event>,
    bell: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl World {
    pub fn new() -> World {
        let tcp = [ECHO, COUNT, BLAST, FAREWELL, RESET, GATED, NOBODY];
        let mut publish: Vec<Publish> = tcp
            .iter()
            .map(|port| format!("0:{port}").parse().unwrap())
            .collect();
        publish.push(format!("0:{UDP_REVERSE}/udp").parse().unwrap());
        publish.push(format!("0:{NOBODY}/udp").parse().unwrap());
        World::with(GatewayConfig {
            publish,
            ..GatewayConfig::default()
        })
    }

    pub fn with(config: GatewayConfig) -> World {
        let bell = Arc::new((Mutex::new(false), Condvar::new()));
        let ring = bell.clone();
        let notify = Arc::new(move || {
            *ring.0.lock().unwrap() = true;
            ring.1.notify_one();
        });
        let gateway = Arc::new(Gateway::start(config, notify).unwrap());
        let controls = Arc::new(Controls::default());
        let (sender, events) = channel();
        let guest = Guest {
            stack: Stack::guest(42, Instant::ZERO),
            ingress: gateway.ingress(),
            gateway: gateway.clone(),
            controls: controls.clone(),
            bell: bell.clone(),
            conns: HashMap::new(),
            nobody: SocketSet::new(Vec::new()),
            events: sender,
            start: std::time::Instant::now(),
            scratch: vec![0; GUEST_BUFFER],
        };
        let thread = Some(std::thread::spawn(move || guest.run()));
        World {
            gateway,
            controls,
            events,
            bell,
            thread,
        }
    }

    pub fn address(&self, guest_port: u16, protocol: Protocol) -> SocketAddr {
        let addresses = self.gateway.addresses();
        let wanted = |p: &Publish| p.guest_port == guest_port && p.protocol == protocol;
        addresses.into_iter().find(|(p, _)| wanted(p)).unwrap().1
    }

    pub fn connect(&self, guest_port: u16) -> std::net::TcpStream {
        let stream = std::net::TcpStream::connect(self.address(guest_port, Protocol::Tcp)).unwrap();
        stream.set_nodelay(true).unwrap();
        // So that a defect shows as a failure, not as a hang.
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream
    }

    pub fn event(&self) -> Event {
        self.events.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    /// Waits for a condition that is bound to come.
    pub fn until(&self, what: &str, condition: impl Fn(&World) -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while !condition(self) {
            assert!(
                std::time::Instant::now() < deadline,
                "{what}: {:?}",
                self.gateway.stats()
            );
            std::thread::yield_now();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.controls.stop.store(true, Ordering::SeqCst);
        *self.bell.0.lock().unwrap() = true;
        self.bell.1.notify_one();
        let result = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            result.unwrap();
        }
    }
}

struct Guest {
    stack: Stack,
    ingress: Arc<Ingress>,
    gateway: Arc<Gateway>,
    controls: Arc<Controls>,
    bell: Arc<(Mutex<bool>, Condvar)>,
    conns: HashMap<(u16, u16), Conn>,
    nobody: SocketSet<'static>,
    events: Sender<Event>,
    start: std::time::Instant,
    scratch: Vec<u8>,
}

impl Guest {
    fn run(mut self) {
        let mut touched = Vec::new();
        while !self.controls.stop.load(Ordering::SeqCst) {
            let now = Instant::from_micros(self.start.elapsed().as_micros() as i64);
            let paused = self.controls.paused.load(Ordering::SeqCst);
            if paused || self.ingress.is_empty() {
                let (rang, condvar) = &*self.bell;
                let mut rang = rang.lock().unwrap();
                if paused || !*rang {
                    // Now and then for smoltcp's timers and the controls.
                    rang = condvar
                        .wait_timeout(rang, Duration::from_millis(5))
                        .unwrap()
                        .0;
                    touched.extend(self.conns.keys().copied());
                }
                *rang = false;
            }
            if paused {
                continue;
            }
            for frame in self.ingress.take(256, 4 << 20) {
                touched.extend(self.receive(frame, now));
            }
            touched.sort_unstable();
            touched.dedup();
            for key in touched.drain(..) {
                self.program(key, now);
            }
            let frames = std::mem::take(self.stack.take_out().0);
            let frames = match self.controls.hostile.load(Ordering::SeqCst) {
                0 => frames,
                seed => self.mutated(frames, seed),
            };
            if self.controls.hold.load(Ordering::SeqCst) {
                self.controls.held.lock().unwrap().extend(frames);
            } else {
                self.gateway.deliver(frames);
            }
            self.controls
                .connections
                .store(self.conns.len() as u64, Ordering::SeqCst);
        }
    }

    fn receive(&mut self, frame: Vec<u8>, now: Instant) -> Option<(u16, u16)> {
        let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let (from, to) = (port(34), port(36));
        match frame[23] {
            6 => {}
            17 if to == UDP_REVERSE => {
                self.udp_reverse(frame);
                return None;
            }
            _ => return None,
        }
        let known = matches!(to, ECHO | COUNT | BLAST | FAREWELL | RESET | GATED);
        let opens = frame[47] & 0x12 == 0x02;
        if opens && known {
            self.conns.entry((from, to)).or_insert_with(|| accept(to));
        }
        let conn = self.conns.get_mut(&(from, to));
        let key = conn.is_some().then_some((from, to));
        let sockets = conn.map_or(&mut self.nobody, |conn| &mut conn.sockets);
        self.stack.receive(frame, sockets, now);
        key
    }

    fn udp_reverse(&mut self, mut frame: Vec<u8>) {
        assert!(ipv4_checksums_hold(&frame));
        for (a, b) in [(0, 6), (26, 30)] {
            let len = b - a;
            let (left, right) = frame.split_at_mut(b);
            left[a..a + len].swap_with_slice(&mut right[..len]);
        }
        frame.swap(34, 36);
        frame.swap(35, 37);
        frame[42..].reverse();
        self.stack.send_raw(frame);
    }

    fn program(&mut self, key: (u16, u16), now: Instant) {
        let Some(conn) = self.conns.get_mut(&key) else {
            return;
        };
        let scratch = &mut self.scratch;
        let socket = conn.sockets.get_mut::<tcp::Socket>(conn.handle);
        let gated = conn.port == GATED && !self.controls.gate.load(Ordering::SeqCst);
        loop {
            let space = socket.send_capacity() - socket.send_queue();
            let echoes = matches!(conn.port, ECHO | GATED);
            let limit = if echoes && socket.may_send() {
                space
            } else {
                scratch.len()
            };
            if gated || limit == 0 || !socket.can_recv() {
                break;
            }
            let limit = limit.min(scratch.len());
            let n = socket.recv_slice(&mut scratch[..limit]).unwrap();
            conn.received += n as u64;
            if echoes && socket.may_send() {
                assert_eq!(socket.send_slice(&scratch[..n]).unwrap(), n);
            }
            if conn.port == RESET {
                socket.abort();
            }
        }
        if conn.port == BLAST {
            while conn.sent < BLAST_BYTES && socket.can_send() {
                let (start, left) = (conn.sent, BLAST_BYTES - conn.sent);
                let n = socket
                    .send(|space| {
                        let n = space.len().min(left);
                        space[..n]
                            .iter_mut()
                            .enumerate()
                            .for_each(|(i, b)| *b = pattern(start + i));
                        (n, n)
                    })
                    .unwrap();
                conn.sent += n;
                self.controls.blasted.fetch_add(n as u64, Ordering::SeqCst);
            }
            if conn.sent == BLAST_BYTES {
                socket.close();
            }
        }
        if conn.port == FAREWELL && conn.sent == 0 && socket.may_send() {
            conn.sent = socket.send_slice(b"bye").unwrap();
            socket.close();
        }
        let ended = matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if ended && !socket.can_recv() && !conn.eof {
            conn.eof = true;
            if conn.port == COUNT {
                socket.send_slice(&conn.received.to_be_bytes()).unwrap();
            }
            socket.close();
            let _ = self.events.send(Event::Eof(conn.port, conn.received));
        }
        self.stack.send(&mut conn.sockets, now);
        let state = conn.sockets.get::<tcp::Socket>(conn.handle).state();
        if matches!(state, State::Closed | State::Listen) {
            if !conn.eof {
                let _ = self.events.send(Event::Reset(conn.port, conn.received));
            }
            self.conns.remove(&key);
        } else if state == State::TimeWait {
            self.conns.remove(&key);
        }
    }

    /// Puts up to three damaged copies before every real frame.
    fn mutated(&self, frames: Vec<Vec<u8>>, seed: u64) -> Vec<Vec<u8>> {
        let mut random = Random(seed);
        let mut out = Vec::new();
        for frame in frames {
            for _ in 0..random.below(4) {
                let mut copy = frame.clone();
                for _ in 0..1 + random.below(4) {
                    // Mostly in the TCP header: sequence numbers, flags, window, options.
                    let at = match random.below(4) {
                        0 => random.below(copy.len()),
                        _ => 38 + random.below(24),
                    };
                    if let Some(byte) = copy.get_mut(at) {
                        *byte = match random.below(3) {
                            0 => random.next() as u8,
                            1 => *byte ^ (1 << random.below(8)),
                            _ => byte.wrapping_add(1),
                        };
                    }
                }
                if random.below(8) == 0 {
                    copy.truncate(random.below(copy.len() + 1));
                }
                out.push(copy);
            }
            out.push(frame);
        }
        self.controls
            .hostile
            .store(random.next() | 1, Ordering::SeqCst);
        out
    }
}

fn accept(port: u16) -> Conn {
    let buffer = || tcp::SocketBuffer::new(vec![0; GUEST_BUFFER]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.listen(port).unwrap();
    let mut sockets = SocketSet::new(Vec::new());
    let handle = sockets.add(socket);
    Conn {
        sockets,
        handle,
        port,
        received: 0,
        sent: 0,
        eof: false,
    }
}

fn ipv4_checksums_hold(frame: &[u8]) -> bool {
    use smoltcp::wire::{Ipv4Packet, UdpPacket};
    let ip = Ipv4Packet::new_checked(&frame[14..]).unwrap();
    let udp = UdpPacket::new_checked(ip.payload()).unwrap();
    ip.verify_checksum() && udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into())
}

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }
}
