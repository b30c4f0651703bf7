//! A guest that is a TCP stack and a function from what a connection received to what is to be sent on it.

use quorate_abi::net::GUEST_IP;
use quorate_abi::sync::WAIT_FOREVER;
use quorate_executor::egress::Egress;
use quorate_executor::gateway::stack::Stack;
use quorate_executor::stage::{At, Cue, Stage, Strength};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::Instant;

use crate::talk::player::Player;

/// What the guest's program wants on a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// All that it sends, from the beginning.
    pub sends: Vec<u8>,
    /// It ends its stream behind that.
    pub ends: bool,
    /// It resets the connection.
    pub resets: bool,
}

/// From the connection's number (in the order of their acceptance), its bytes, and whether the client has ended it.
pub type Program = Box<dyn FnMut(usize, &[u8], bool) -> Wish>;

pub struct Guest {
    stack: Stack,
    sockets: SocketSet<'static>,
    port: u16,
    /// No program listens before this time.
    pub listens_from_ns: u64,
    listeners: Vec<SocketHandle>,
    connections: Vec<(SocketHandle, Vec<u8>, usize)>,
    program: Program,
    /// Which of the frames that the guest sends are lost, and which that it is sent; from 0.
    pub lost_out: Vec<usize>,
    pub lost_in: Vec<usize>,
    counted: (usize, usize),
    pub entries: Vec<(u64, usize)>,
}

fn socket() -> tcp::Socket<'static> {
    let mut socket = tcp::Socket::new(
        tcp::SocketBuffer::new(vec![0; 16 * 1024]),
        tcp::SocketBuffer::new(vec![0; 16 * 1024]),
    );
    socket.set_nagle_enabled(false);
    socket
}

impl Guest {
    pub fn new(port: u16, program: impl FnMut(usize, &[u8], bool) -> Wish + 'static) -> Guest {
        Guest {
            stack: Stack::guest(7, Instant::from_micros(0)),
            sockets: SocketSet::new(Vec::new()),
            port,
            listens_from_ns: 0,
            listeners: Vec::new(),
            connections: Vec::new(),
            program: Box::new(program),
            lost_out: Vec::new(),
            lost_in: Vec::new(),
            counted: (0, 0),
            entries: Vec::new(),
        }
    }

    /// One boundary: takes an entry, says which frames leave and until when it waits.
    fn boundary(&mut self, frames: Vec<Vec<u8>>, now_ns: u64) -> (Vec<Vec<u8>>, u64) {
        let now = Instant::from_micros((now_ns / 1000) as i64);
        while now_ns >= self.listens_from_ns && self.listeners.len() < 8 {
            let mut socket = socket();
            socket
                .listen((std::net::Ipv4Addr::from(GUEST_IP), self.port))
                .unwrap();
            self.listeners.push(self.sockets.add(socket));
        }
        for frame in frames {
            let lost = self.lost_in.contains(&self.counted.0);
            self.counted.0 += 1;
            if !lost {
                self.stack.receive(frame, &mut self.sockets, now);
            }
        }
        let sockets = &mut self.sockets;
        let listeners = std::mem::take(&mut self.listeners);
        for handle in listeners {
            match sockets.get::<tcp::Socket>(handle).state() {
                State::Listen | State::SynReceived => self.listeners.push(handle),
                _ => self.connections.push((handle, Vec::new(), 0)),
            }
        }
        for (number, (handle, got, sent)) in self.connections.iter_mut().enumerate() {
            let socket = sockets.get_mut::<tcp::Socket>(*handle);
            while socket.can_recv() {
                socket
                    .recv(|bytes| {
                        got.extend_from_slice(bytes);
                        (bytes.len(), ())
                    })
                    .unwrap();
            }
            let ended = matches!(
                socket.state(),
                State::CloseWait
                    | State::LastAck
                    | State::TimeWait
                    | State::Closing
                    | State::Closed
            );
            let wish = (self.program)(number, got, ended);
            if socket.may_send() {
                *sent += socket.send_slice(&wish.sends[*sent..]).unwrap();
            }
            if *sent == wish.sends.len() {
                if wish.resets {
                    socket.abort();
                } else if wish.ends {
                    socket.close();
                }
            }
        }
        self.stack.send(&mut self.sockets, now);
        let next = self.stack.poll_at(&self.sockets, now);
        let (out, _, _) = self.stack.take_out();
        let mut leaving = Vec::new();
        for frame in out.drain(..) {
            if !self.lost_out.contains(&self.counted.1) {
                leaving.push(frame);
            }
            self.counted.1 += 1;
        }
        let until = next.map_or(WAIT_FOREVER, |at| {
            (at.total_micros() as u64)
                .saturating_mul(1000)
                .max(now_ns + 1)
        });
        (leaving, until)
    }
}

pub const FULL: Strength = Strength {
    members: 1,
    voting: 1,
    recovering: 0,
    left_out: 0,
};

/// Plays to the guest until the player is over; boundaries.
pub fn play(player: &Player, guest: &mut Guest) -> u64 {
    let mut at = At {
        boundary: 0,
        wait_until_ns: WAIT_FOREVER,
        now_ns: 5_000_000_000,
        strength: FULL,
    };
    loop {
        assert!(at.boundary < 200_000, "it does not end");
        let entry = match player.cue(&at) {
            Cue::Entry(entry) => entry,
            Cue::Wait => panic!("nobody recovers"),
            Cue::Over => return at.boundary,
        };
        assert!(entry.monotonic_ns > at.now_ns);
        guest.entries.push((entry.monotonic_ns, entry.frames.len()));
        let (frames, until) = guest.boundary(entry.frames, entry.monotonic_ns);
        if !frames.is_empty() {
            player.clone().frames(frames);
        }
        at = At {
            boundary: at.boundary + 1,
            wait_until_ns: until,
            now_ns: entry.monotonic_ns,
            strength: FULL,
        };
    }
}

/// Answers each line with `+LINE`, in capitals; and ends when the client has.
pub fn lines(_: usize, got: &[u8], ended: bool) -> Wish {
    let mut sends = Vec::new();
    for line in got
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| line.ends_with(b"\n"))
    {
        sends.push(b'+');
        sends.extend(line.to_ascii_uppercase());
    }
    Wish {
        sends,
        ends: ended,
        resets: false,
    }
}
