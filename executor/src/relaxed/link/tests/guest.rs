//! A guest on smoltcp with a program for every connection, and the two of them in one world.

use std::collections::BTreeMap;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::{Duration, Instant};

use super::super::*;
use crate::gateway::stack::Stack;

/// Where the guest listens.
pub const PORT: u16 = 80;
/// Where it does not.
pub const NOBODY: u16 = 81;

/// What a program does.
#[derive(Clone, Debug)]
pub enum Program {
    /// Sends everything back; ends when the client ends.
    Echo,
    /// Reads at most so many bytes per step, sends so many bytes of a pattern, then ends its own stream.
    Talk { read: usize, send: usize },
    /// Resets after so many bytes.
    ResetAfter(usize),
}

pub struct GuestConn {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    pub received: Vec<u8>,
    pub sent: usize,
    pub eof: bool,
    ended: bool,
    /// The client's end has come, perhaps behind bytes that were not read yet.
    finished: bool,
}

pub struct Guest {
    pub stack: Stack,
    pub conns: BTreeMap<u16, GuestConn>,
    /// All that programs have read, in its order: port and bytes.
    pub log: Vec<(u16, Vec<u8>)>,
    pub gone: BTreeMap<u16, GuestConn>,
    nobody: SocketSet<'static>,
    pub buffer: usize,
    pub program: Program,
    /// Its server runs.
    pub listening: bool,
}

pub fn pattern(offset: usize) -> u8 {
    (offset as u32).wrapping_mul(0x9e37_79b9).rotate_left(9) as u8
}

pub fn instant(now: u64) -> Instant {
    Instant::from_micros((now / 1000) as i64)
}

impl Guest {
    pub fn new(buffer: usize, program: Program) -> Guest {
        Guest {
            stack: Stack::guest(7, Instant::ZERO),
            conns: BTreeMap::new(),
            log: Vec::new(),
            gone: BTreeMap::new(),
            nobody: SocketSet::new(Vec::new()),
            buffer,
            program,
            listening: true,
        }
    }

    pub fn receive(&mut self, frame: Vec<u8>, now: u64) {
        if frame.len() < 54 || frame[23] != 6 {
            return;
        }
        let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let (from, to) = (port(34), port(36));
        let opens = frame[47] & 0x12 == 0x02;
        if opens && self.listening && to == PORT && !self.conns.contains_key(&from) {
            let buffer = || tcp::SocketBuffer::new(vec![0; self.buffer]);
            let mut socket = tcp::Socket::new(buffer(), buffer());
            socket.set_nagle_enabled(false);
            socket.set_ack_delay(Some(Duration::from_millis(10)));
            socket.listen(to).unwrap();
            let mut sockets = SocketSet::new(Vec::new());
            let handle = sockets.add(socket);
            let conn = GuestConn {
                sockets,
                handle,
                received: Vec::new(),
                sent: 0,
                eof: false,
                ended: false,
                finished: false,
            };
            self.conns.insert(from, conn);
        }
        let conn = self.conns.get_mut(&from);
        let sockets = conn.map_or(&mut self.nobody, |conn| &mut conn.sockets);
        self.stack.receive(frame, sockets, instant(now));
    }

    /// All programs run once; what the guest sends.
    pub fn step(&mut self, now: u64) -> Vec<Vec<u8>> {
        let mut over = Vec::new();
        for (&port, conn) in &mut self.conns {
            let socket = conn.sockets.get_mut::<tcp::Socket>(conn.handle);
            let (mut most, send) = match self.program {
                Program::Echo => (usize::MAX, 0),
                Program::Talk { read, send } => (read, send),
                Program::ResetAfter(_) => (usize::MAX, 0),
            };
            let echo = matches!(self.program, Program::Echo);
            while most > 0 && socket.can_recv() {
                let room = socket.send_capacity() - socket.send_queue();
                let limit = if echo { room.min(most) } else { most };
                if limit == 0 {
                    break;
                }
                let mut bytes = vec![0; limit.min(1 << 16)];
                let n = socket.recv_slice(&mut bytes).unwrap();
                bytes.truncate(n);
                most -= n;
                if echo && socket.may_send() {
                    assert_eq!(socket.send_slice(&bytes).unwrap(), n);
                }
                conn.received.extend_from_slice(&bytes);
                self.log.push((port, bytes));
            }
            while conn.sent < send && socket.can_send() {
                let bytes: Vec<u8> = (conn.sent..send.min(conn.sent + 8192))
                    .map(pattern)
                    .collect();
                conn.sent += socket.send_slice(&bytes).unwrap();
            }
            if let Program::ResetAfter(bytes) = self.program
                && conn.received.len() >= bytes
            {
                socket.abort();
            }
            let finished = matches!(
                socket.state(),
                State::CloseWait | State::LastAck | State::Closing | State::TimeWait
            );
            conn.finished |= finished;
            if conn.finished && !socket.can_recv() {
                conn.eof = true;
            }
            let done = match self.program {
                Program::Talk { send, .. } => conn.sent == send && socket.may_send(),
                _ => conn.eof,
            };
            if done && !conn.ended {
                conn.ended = true;
                socket.close();
            }
            // smoltcp's TIME-WAIT ends by discarding what was not read.
            if socket.state() != State::TimeWait || !socket.can_recv() {
                self.stack.send(&mut conn.sockets, instant(now));
            }
            let socket = conn.sockets.get::<tcp::Socket>(conn.handle);
            if socket.state() == State::Closed && (!socket.can_recv() || !conn.finished) {
                over.push(port);
            }
        }
        for port in over {
            let conn = self.conns.remove(&port).unwrap();
            self.gone.insert(port, conn);
        }
        std::mem::take(self.stack.take_out().0)
    }

    pub fn any(&self, port: u16) -> &GuestConn {
        self.conns.get(&port).unwrap_or_else(|| &self.gone[&port])
    }
}

/// xorshift64*.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound.max(1)
    }
}

/// What the outside has seen of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub opened: bool,
    pub refused: bool,
    pub bytes: Vec<u8>,
    pub shut: bool,
    pub reset: bool,
}

pub struct World {
    pub link: Link,
    pub guest: Guest,
    pub now: u64,
    pub seen: BTreeMap<ConnId, Seen>,
    /// Every frame that went either way.
    pub frames: Vec<Vec<u8>>,
    /// Of 100 frames so many are lost, in both directions.
    pub loss: usize,
    pub random: Random,
    pub room: usize,
    /// The outside takes what comes at once.
    pub takes: bool,
    /// Ports that were found to be listened on.
    pub listens: Vec<u16>,
}

impl World {
    pub fn new(config: LinkConfig, guest: Guest) -> World {
        World {
            link: Link::new(config),
            guest,
            now: MS,
            seen: BTreeMap::new(),
            frames: Vec::new(),
            loss: 0,
            random: Random(99),
            room: usize::MAX,
            takes: true,
            listens: Vec::new(),
        }
    }

    pub fn input(&mut self, input: ToGuest) {
        self.link.input(input, self.now);
    }

    pub fn open(&mut self, conn: ConnId) {
        self.input(ToGuest::Open {
            conn,
            guest_port: PORT,
        });
    }

    pub fn data(&mut self, conn: ConnId, bytes: &[u8]) {
        let bytes = bytes.into();
        self.input(ToGuest::Data { conn, bytes });
    }

    /// One exchange. How many frames went.
    pub fn step(&mut self) -> usize {
        let mut down = Vec::new();
        self.link.poll(self.now, self.room, &mut down);
        let mut count = down.len();
        for frame in down {
            self.frames.push(frame.clone());
            if self.random.below(100) >= self.loss {
                self.guest.receive(frame, self.now);
            }
        }
        let up = self.guest.step(self.now);
        count += up.len();
        for frame in up {
            self.frames.push(frame.clone());
            if self.random.below(100) >= self.loss {
                self.link.frame(&frame, self.now);
            }
        }
        self.look();
        count
    }

    pub fn look(&mut self) {
        for event in self.link.events() {
            if let FromGuest::Listens { guest_port } = event {
                self.listens.push(guest_port);
                continue;
            }
            let id = event.conn().unwrap();
            let seen = self.seen.entry(id).or_default();
            assert!(!seen.refused && !seen.reset, "{event:?} after the end");
            match event {
                FromGuest::Opened { .. } => {
                    assert!(!seen.opened);
                    seen.opened = true;
                }
                FromGuest::Refused { .. } => {
                    assert!(!seen.opened);
                    seen.refused = true;
                }
                FromGuest::Data { bytes, .. } => {
                    assert!(seen.opened && !seen.shut && !bytes.is_empty());
                    if self.takes {
                        self.link.taken(id, bytes.len());
                    }
                    seen.bytes.extend(bytes);
                }
                FromGuest::Shut { .. } => {
                    assert!(seen.opened && !seen.shut);
                    seen.shut = true;
                }
                FromGuest::Reset { .. } => {
                    assert!(seen.opened);
                    seen.reset = true;
                }
                FromGuest::Listens { .. } | FromGuest::Datagram { .. } => {}
            }
        }
    }

    /// Exchanges until nothing is said any more, the clock moving to deadlines, for at most `for_ns`.
    pub fn run(&mut self, for_ns: u64) {
        let end = self.now + for_ns;
        loop {
            if self.step() > 0 {
                self.now += 1000;
                continue;
            }
            if self.now >= end {
                return;
            }
            // smoltcp's own timers are not asked: a step of 10 ms meets them.
            let next = self.link.deadline_ns().unwrap_or(u64::MAX);
            self.now = next.clamp(self.now + 1, self.now + 10 * MS).min(end);
        }
    }

    pub fn port(&self, conn: ConnId) -> u16 {
        1024 + conn as u16
    }
}
