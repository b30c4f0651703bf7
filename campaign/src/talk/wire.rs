//! The client's end of the link: TCP connections to the guest in virtual time, and the answers that need none.

use std::collections::HashMap;

use quorate_executor::gateway::Room;
use quorate_executor::gateway::link::{self, Dropped, GATEWAY, GUEST, Incoming};
use quorate_executor::gateway::stack::Stack;
use quorate_executor::journal::{ENTRY_MAX_BYTES, ENTRY_MAX_FRAMES};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, CongestionControl, State};
use smoltcp::time::Instant;

/// Bytes from the guest that a connection holds (R10); they are taken at once, so that the window is always open.
const RX_BUFFER: usize = 64 * 1024;
/// Bytes to the guest that a connection holds (R10); the rest waits in the conversation.
const TX_BUFFER: usize = 64 * 1024;

/// How a connection ended, as the client sees it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The client did not come to open it.
    #[default]
    NotOpened,
    /// The guest has not answered the connection request.
    Unanswered,
    /// The guest refused it.
    Refused,
    /// It is still open.
    Open,
    /// Both ended it, the client first.
    ByClient,
    /// Both ended it, the guest first; or the guest alone has.
    ByGuest,
    /// The guest reset it.
    ResetByGuest,
    /// The client reset it.
    ResetByClient,
}

/// One connection.
pub(super) struct Line {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    guest_port: u16,
    /// The socket has been told to end the stream.
    shut: bool,
    established: bool,
    /// The guest has ended its stream.
    pub(super) guest_eof: bool,
    pub(super) ending: Ending,
    touched: bool,
}

/// All connections of a player.
pub(super) struct Wire {
    stack: Stack,
    lines: Vec<Line>,
    by_port: HashMap<u16, usize>,
    next_port: u16,
    /// Lines with something to do at once.
    touched: Vec<usize>,
    /// Lines whose timers may run.
    alive: Vec<usize>,
    /// Bytes of frames that were taken from the stack, but did not fit into an entry.
    waiting: std::collections::VecDeque<Vec<u8>>,
}

fn instant(ns: u64) -> Instant {
    Instant::from_micros(i64::try_from(ns / 1000).unwrap_or(i64::MAX))
}

impl Wire {
    /// The initial sequence numbers come from `seed`, the local ports begin with `first_port`.
    pub(super) fn new(seed: u64, first_port: u16, now_ns: u64) -> Wire {
        let mut stack = Stack::gateway(true, seed, instant(now_ns));
        stack.set_room(Room {
            frames: usize::MAX,
            // The stack adds to what it has: not the largest number.
            bytes: usize::MAX / 2,
        });
        Wire {
            stack,
            lines: Vec::new(),
            by_port: HashMap::new(),
            next_port: first_port,
            touched: Vec::new(),
            alive: Vec::new(),
            waiting: std::collections::VecDeque::new(),
        }
    }

    /// Begins to connect; the line's number. `None` if smoltcp refuses the addresses: port 0.
    pub(super) fn connect(&mut self, guest_port: u16) -> Option<usize> {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; RX_BUFFER]),
            tcp::SocketBuffer::new(vec![0; TX_BUFFER]),
        );
        socket.set_nagle_enabled(false);
        // Acknowledgements go with what the client says next, and that is known at once.
        socket.set_ack_delay(None);
        socket.set_keep_alive(None);
        socket.set_timeout(None);
        socket.set_congestion_control(CongestionControl::None);
        let port = self.next_port;
        // Behind the last one the ports below the first are free.
        self.next_port = port.checked_add(1).unwrap_or(1024);
        socket
            .connect(self.stack.context(), (GUEST, guest_port), (GATEWAY, port))
            .ok()?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let number = self.lines.len();
        self.lines.push(Line {
            sockets,
            handle,
            guest_port,
            shut: false,
            established: false,
            guest_eof: false,
            ending: Ending::Unanswered,
            touched: false,
        });
        self.by_port.insert(port, number);
        self.alive.push(number);
        self.touch(number);
        Some(number)
    }

    pub(super) fn line(&self, number: usize) -> Option<&Line> {
        self.lines.get(number)
    }

    fn touch(&mut self, number: usize) {
        if let Some(line) = self.lines.get_mut(number).filter(|line| !line.touched) {
            line.touched = true;
            self.touched.push(number);
        }
    }

    /// Queues bytes; how many fitted.
    pub(super) fn send(&mut self, number: usize, bytes: &[u8]) -> usize {
        let Some(line) = self.lines.get_mut(number) else {
            return 0;
        };
        let socket = line.sockets.get_mut::<tcp::Socket>(line.handle);
        let taken = match socket.may_send() {
            true => socket.send_slice(bytes).unwrap_or(0),
            false => 0,
        };
        if taken > 0 {
            self.touch(number);
        }
        taken
    }

    /// The client's stream ends behind what was queued.
    pub(super) fn shut(&mut self, number: usize) {
        if let Some(line) = self.lines.get_mut(number).filter(|line| !line.shut) {
            line.shut = true;
            line.sockets.get_mut::<tcp::Socket>(line.handle).close();
            self.touch(number);
        }
    }

    /// The client resets the connection.
    pub(super) fn reset(&mut self, number: usize) {
        let Some(line) = self.lines.get_mut(number) else {
            return;
        };
        // What has ended in order is not changed by that.
        if line.is_over() {
            return;
        }
        line.sockets.get_mut::<tcp::Socket>(line.handle).abort();
        if matches!(
            line.ending,
            Ending::Unanswered | Ending::Open | Ending::ByGuest
        ) {
            line.ending = Ending::ResetByClient;
        }
        self.touch(number);
    }

    /// A frame that the guest sent. What came with it is handed to `heard` with the line's number.
    pub(super) fn receive(
        &mut self,
        frame: Vec<u8>,
        now_ns: u64,
        heard: &mut impl FnMut(usize, &[u8]),
    ) {
        // What makes no sense is dropped, as the gateway does (R9).
        let _ = self.try_receive(frame, now_ns, heard);
    }

    fn try_receive(
        &mut self,
        frame: Vec<u8>,
        now_ns: u64,
        heard: &mut impl FnMut(usize, &[u8]),
    ) -> Result<(), Dropped> {
        let answer = match link::classify(&frame)? {
            Incoming::Tcp {
                guest_port,
                gateway_port,
                ..
            } => {
                let number = self.by_port.get(&gateway_port).copied();
                match number.and_then(|number| Some((number, self.lines.get_mut(number)?))) {
                    Some((number, line)) if line.guest_port == guest_port => {
                        self.stack
                            .receive(frame, &mut line.sockets, instant(now_ns));
                        line.after_receiving(number, heard);
                        self.touch(number);
                        return Ok(());
                    }
                    _ => link::refusal(&frame)?,
                }
            }
            Incoming::Udp { .. } | Incoming::Foreign => link::refusal(&frame)?,
            Incoming::Arp(request) => link::arp_reply(request)?,
            Incoming::Icmp => link::icmp_reply(&frame)?,
        };
        if let Some(answer) = answer {
            self.stack.send_raw(answer);
        }
        Ok(())
    }

    /// Lets all connections send that have something to, or whose timers have run out.
    pub(super) fn run(&mut self, now_ns: u64) {
        let now = instant(now_ns);
        for index in 0..self.alive.len() {
            let number = self.alive[index];
            let due = self.stack.poll_at(&self.lines[number].sockets, now);
            if due.is_some_and(|at| at <= now) {
                self.touch(number);
            }
        }
        for number in std::mem::take(&mut self.touched) {
            let line = &mut self.lines[number];
            line.touched = false;
            // There is room for everything.
            self.stack.send(&mut line.sockets, now);
            line.settle();
        }
        let lines = &self.lines;
        self.alive.retain(|number| !lines[*number].is_over());
        let (frames, _, _) = self.stack.take_out();
        self.waiting.extend(frames.drain(..));
    }

    /// What fits into one entry of what there is to send.
    pub(super) fn take_frames(&mut self) -> Vec<Vec<u8>> {
        let mut bytes = 0;
        let fits = |frame: &&Vec<u8>| {
            bytes += frame.len();
            bytes <= ENTRY_MAX_BYTES
        };
        let number = self
            .waiting
            .iter()
            .take(ENTRY_MAX_FRAMES)
            .take_while(fits)
            .count();
        self.waiting.drain(..number).collect()
    }

    pub(super) fn has_frames(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// When the next timer runs out, ns.
    pub(super) fn next_timer(&mut self, now_ns: u64) -> Option<u64> {
        let now = instant(now_ns);
        let (stack, lines) = (&mut self.stack, &self.lines);
        let at = self
            .alive
            .iter()
            .filter_map(|number| stack.poll_at(&lines[*number].sockets, now))
            .min()?;
        Some(
            u64::try_from(at.total_micros())
                .unwrap_or(0)
                .saturating_mul(1000),
        )
    }

    /// Whether no connection has anything left to do.
    pub(super) fn is_quiet(&self) -> bool {
        self.alive.is_empty()
    }
}

impl Line {
    fn socket(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn after_receiving(&mut self, number: usize, heard: &mut impl FnMut(usize, &[u8])) {
        let socket = self.sockets.get_mut::<tcp::Socket>(self.handle);
        while socket.can_recv() {
            let taken = socket.recv(|bytes| {
                heard(number, bytes);
                (bytes.len(), ())
            });
            if taken.is_err() {
                break;
            }
        }
        match self.socket().state() {
            State::Established | State::FinWait1 | State::FinWait2 => self.establish(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait => {
                self.establish();
                self.guest_eof = true;
                if self.ending == Ending::Open {
                    self.ending = if self.shut {
                        Ending::ByClient
                    } else {
                        Ending::ByGuest
                    };
                }
            }
            State::Closed => match self.ending {
                Ending::Unanswered if !self.established => self.ending = Ending::Refused,
                // The normal end of LAST-ACK: the guest was first.
                Ending::ByGuest if self.shut => {}
                Ending::Unanswered | Ending::Open | Ending::ByGuest => {
                    self.ending = Ending::ResetByGuest
                }
                _ => {}
            },
            State::Listen | State::SynSent | State::SynReceived => {}
        }
    }

    fn establish(&mut self) {
        if !self.established {
            self.established = true;
            if self.ending == Ending::Unanswered {
                self.ending = Ending::Open;
            }
        }
    }

    /// After sending: a socket that has nothing left to say is over.
    fn settle(&mut self) {
        if self.ending == Ending::Unanswered && self.shut && self.socket().state() == State::Closed
        {
            // Ended by the client before the guest has answered.
            self.ending = Ending::ByClient;
        }
    }

    /// Nothing will come or go any more. smoltcp's own timer of TIME-WAIT does not matter: the port is not used again.
    fn is_over(&self) -> bool {
        matches!(self.socket().state(), State::Closed | State::TimeWait)
    }
}
