//! One TCP connection: a smoltcp socket in a set of its own, and what Linux keeps beside it.

use super::demux::FlowKey;
use super::link::Port;
use super::options::Options;
use crate::cell::Global;
use crate::errno::Errno;
use crate::mm::budget;
use crate::wait::WaitQueue;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::cell::Cell;
use quorate_abi::PAGE_SIZE;
use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, CongestionControl, State};
use smoltcp::time::{Duration, Instant};

/// Bytes of a connection's receive buffer (R10): the window that the peer sees.
pub const TCP_RX_BUFFER: usize = 64 * 1024;
/// Bytes of a connection's send buffer (R10): a write beyond it waits, or returns `EAGAIN`.
pub const TCP_TX_BUFFER: usize = 64 * 1024;
/// How long acknowledgements wait for a reply to ride on.
pub const ACK_DELAY_MS: u64 = 10;
/// Linux calls a socket writable when a third of its buffer is free (`sk_stream_is_writeable`).
const WRITABLE_FREE: usize = TCP_TX_BUFFER / 3;

const SECOND: u64 = 1_000_000_000;
/// Time in TIME-WAIT at which smoltcp's clock stops for a connection that the program still holds: after the last
/// acknowledgement has gone out, before smoltcp's `CLOSE_DELAY` of 10 s.
const TIME_WAIT_CLOCK_NS: u64 = SECOND;
/// How long `connect` tries (Linux: six retries).
pub const CONNECT_TIMEOUT_NS: u64 = 127 * SECOND;
/// How long a half-open passive connection is kept (Linux: five retries).
pub const HALF_OPEN_TIMEOUT_NS: u64 = 63 * SECOND;
/// How long data may stay unacknowledged (Linux: `tcp_retries2`).
pub const UNACKED_TIMEOUT_NS: u64 = 924 * SECOND;
/// How long a closed connection waits for the peer to close (Linux: `tcp_fin_timeout`).
pub const FIN_TIMEOUT_NS: u64 = 60 * SECOND;

/// Who a flow belongs to.
pub enum Owner {
    /// A listener that waits for the handshake to complete.
    HalfOpen(usize),
    /// A listener's accept queue.
    Accept(usize),
    /// A socket of the program, woken here.
    Socket(Rc<WaitQueue>),
    /// Nobody: the program closed it, and the rest is sent.
    Orphan,
}

/// Keep-alive as Linux does it: after `idle` without a packet, `count` probes every `interval`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeepAlive {
    /// Nanoseconds without a packet before the first probe.
    pub idle_ns: u64,
    /// Nanoseconds between probes.
    pub interval_ns: u64,
    /// Probes before the connection is given up.
    pub count: u64,
}

/// One connection.
pub struct Flow {
    /// What identifies it.
    pub key: FlowKey,
    /// Both ends are in this guest.
    pub loopback: bool,
    /// Who it belongs to.
    pub owner: Owner,
    /// It is in the list of flows that [`super::stack::Stack::flush`] looks at.
    pub dirty: bool,
    /// When the stack's timer list looks at it next.
    pub armed_ns: Option<u64>,
    /// Error that the next operation returns (`SO_ERROR`).
    pub error: Option<Errno>,
    /// The program shut down its receive side.
    pub read_shut: bool,
    /// The program shut down its send side.
    pub write_shut: bool,
    /// The program found no room to write, and waits for it.
    pub no_space: Cell<bool>,
    /// The connection was established at some time.
    pub was_open: bool,
    /// Keep-alive, if switched on.
    pub keep_alive: Option<KeepAlive>,
    probing: bool,
    /// Limit on unacknowledged data, if the program set one (`TCP_USER_TIMEOUT`).
    pub user_timeout_ns: Option<u64>,
    /// Time of the last packet from the peer.
    pub heard_ns: u64,
    /// Time since which there is something unacknowledged, or the last packet from the peer after that.
    pub progress_ns: u64,
    /// Time at which an orphan is given up at the latest.
    pub orphan_until_ns: u64,
    /// Time at which TIME-WAIT was entered.
    pub time_wait_ns: Option<u64>,
    /// State at the last look, to notice changes.
    pub seen: State,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    _charge: Charge,
}

/// What one step did to a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// The program may want to look again.
    pub wake: bool,
    /// The handshake was completed in this step.
    pub opened: bool,
    /// Nothing is left to be done: neither sent nor received.
    pub closed: bool,
    /// TIME-WAIT was entered in this step.
    pub time_wait: bool,
}

/// smoltcp's time.
pub fn instant(now_ns: u64) -> Instant {
    Instant::from_micros((now_ns / 1000) as i64)
}

/// Memory for a buffer that is only read where it has been written. It is not zeroed: that would touch pages that most
/// connections never need, and the first touch of a page costs microseconds.
fn buffer(len: usize) -> Option<Vec<u8>> {
    let layout = Layout::array::<u8>(len).ok().filter(|l| l.size() > 0)?;
    // SAFETY: the size is not zero.
    let memory = unsafe { alloc::alloc::alloc(layout) };
    if memory.is_null() {
        return None;
    }
    // SAFETY: does nothing. It may write the memory as far as the compiler knows, so that the bytes are some
    // bytes from here on, and not undefined ones.
    unsafe { core::arch::asm!("/* {0} */", in(reg) memory, options(nostack, preserves_flags)) };
    // SAFETY: allocated by the global allocator with just this layout; all bytes have values (above).
    Some(unsafe { Vec::from_raw_parts(memory, len, len) })
}

fn nanoseconds(at: Instant) -> u64 {
    (at.total_micros().max(0) as u64).saturating_mul(1000)
}

/// Stands for a connection in the budget of memory. What its buffers leave in the kernel's heap is used by later ones and by nobody
/// else, so the charge is for the most that there ever were at once.
struct Charge;

/// (connections now, most at once)
static CHARGED: Global<(u64, u64)> = Global::new((0, 0));

impl Charge {
    /// One more connection; none if the budget is used up.
    fn take() -> Option<Self> {
        let mut charged = CHARGED.borrow_mut();
        if charged.0 == charged.1 {
            let bytes = (TCP_RX_BUFFER + TCP_TX_BUFFER) as u64;
            budget::take(bytes.div_ceil(PAGE_SIZE)).ok()?;
            charged.1 += 1;
        }
        charged.0 += 1;
        Some(Self)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        CHARGED.borrow_mut().0 -= 1;
    }
}

impl Flow {
    /// A closed connection with this key; none if there is no memory for its buffers.
    pub fn for_key(key: FlowKey) -> Option<Self> {
        let charge = Charge::take()?;
        let rx = tcp::SocketBuffer::new(buffer(TCP_RX_BUFFER)?);
        let tx = tcp::SocketBuffer::new(buffer(TCP_TX_BUFFER)?);
        let mut socket = tcp::Socket::new(rx, tx);
        // Packets are built once per batch, so waiting for more (Nagle) could only delay.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(Duration::from_millis(ACK_DELAY_MS)));
        socket.set_congestion_control(CongestionControl::None);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Some(Self {
            key,
            loopback: false,
            owner: Owner::Orphan,
            dirty: false,
            armed_ns: None,
            error: None,
            read_shut: false,
            write_shut: false,
            no_space: Cell::new(false),
            was_open: false,
            keep_alive: None,
            probing: false,
            user_timeout_ns: None,
            heard_ns: 0,
            progress_ns: 0,
            orphan_until_ns: u64::MAX,
            time_wait_ns: None,
            seen: State::Closed,
            sockets,
            handle,
            _charge: charge,
        })
    }

    /// Prepares a flow for another connection. Its buffers are used again as they are: what they held cannot be read.
    pub fn reuse(&mut self, key: FlowKey, loopback: bool, owner: Owner, now_ns: u64) {
        self.key = key;
        self.loopback = loopback;
        self.owner = owner;
        self.dirty = false;
        self.armed_ns = None;
        self.error = None;
        self.read_shut = false;
        self.write_shut = false;
        self.no_space.set(false);
        self.was_open = false;
        self.keep_alive = None;
        self.probing = false;
        self.user_timeout_ns = None;
        self.heard_ns = now_ns;
        self.progress_ns = now_ns;
        self.orphan_until_ns = u64::MAX;
        self.time_wait_ns = None;
        self.seen = State::Closed;
        let socket = self.socket_mut();
        socket.abort();
        socket.set_keep_alive(None);
        socket.set_hop_limit(None);
    }

    /// The socket.
    pub fn socket(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }

    /// The socket.
    pub fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// State of the connection.
    pub fn state(&self) -> State {
        self.socket().state()
    }

    /// Takes over what the program set.
    pub fn apply(&mut self, options: &Options) {
        self.keep_alive = options.keep_alive();
        self.user_timeout_ns = options.user_timeout_ns();
        self.socket_mut().set_hop_limit(Some(options.ttl.max(1)));
        if self.keep_alive.is_none() {
            self.stop_probing();
        }
    }

    fn stop_probing(&mut self) {
        if self.probing {
            self.probing = false;
            self.socket_mut().set_keep_alive(None);
        }
    }

    /// The peer closed its send side, or there is no connection any more.
    pub fn peer_closed(&self) -> bool {
        matches!(
            self.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait | State::Closed
        )
    }

    /// Bytes that can be written now.
    pub fn send_room(&self) -> usize {
        self.socket().send_capacity() - self.socket().send_queue()
    }

    /// Whether there is enough room to call the flow writable.
    pub fn writable(&self) -> bool {
        self.send_room() >= WRITABLE_FREE
    }

    /// Whether the peer owes an acknowledgement, or is to be sent something.
    fn unfinished(&self) -> bool {
        self.socket().send_queue() > 0
            || matches!(
                self.state(),
                State::SynSent
                    | State::SynReceived
                    | State::FinWait1
                    | State::Closing
                    | State::LastAck
            )
    }

    /// Processes one packet from the peer.
    pub fn input(&mut self, iface: &mut Interface, port: &mut Port<'_>, now_ns: u64) -> Change {
        let queued = self.socket().recv_queue();
        self.stop_probing();
        let reset = port.received.is_some_and(is_reset);
        self.heard_ns = now_ns;
        self.progress_ns = now_ns;
        iface.poll_ingress_single(instant(now_ns), port, &mut self.sockets);
        if self.owned_by_nobody() && self.socket().recv_queue() > queued {
            // Nobody will read it: tell the peer (RFC 1122, 4.2.2.13; Linux does).
            self.socket_mut().abort();
        }
        if reset && self.state() == State::Closed && self.seen != State::Closed {
            self.fail(match self.seen {
                State::SynSent => crate::errno::ECONNREFUSED,
                State::CloseWait => crate::errno::EPIPE,
                _ => crate::errno::ECONNRESET,
            });
        }
        let mut change = self.look(now_ns);
        change.wake |= self.socket().recv_queue() > queued || self.room_for_waiting_writer();
        change
    }

    fn owned_by_nobody(&self) -> bool {
        matches!(self.owner, Owner::Orphan)
    }

    fn room_for_waiting_writer(&self) -> bool {
        if self.no_space.get() && self.writable() {
            self.no_space.set(false);
            return true;
        }
        false
    }

    fn fail(&mut self, error: Errno) {
        // An end that both sides agreed on is no error.
        if !matches!(self.seen, State::LastAck | State::TimeWait | State::Closing) {
            self.error = Some(error);
        }
    }

    /// Compares the state with what it was at the last look.
    fn look(&mut self, now_ns: u64) -> Change {
        let state = self.state();
        let mut change = Change::default();
        if state != self.seen {
            change.wake = true;
            if !self.was_open && matches!(state, State::Established | State::CloseWait) {
                self.was_open = true;
                change.opened = true;
            }
            if state == State::TimeWait {
                self.time_wait_ns = Some(now_ns);
                change.time_wait = true;
            }
            self.seen = state;
        }
        // After a reset that the peer sent, or that went out to the peer, smoltcp forgets the endpoints. A passive
        // connection that is reset before it is open goes back to LISTEN.
        change.closed = state == State::Listen
            || (state == State::Closed && self.socket().remote_endpoint().is_none());
        change
    }

    /// Sends what is to be sent. Returns what changed, and false if room on the link ran out before.
    pub fn output(
        &mut self,
        iface: &mut Interface,
        port: &mut Port<'_>,
        now_ns: u64,
    ) -> (Change, bool) {
        let now = instant(self.clock(now_ns));
        self.watch_timeouts(now_ns);
        let mut fruitless = 0;
        let mut complete = true;
        // `poll_at` says without side effects whether there is anything to do.
        while fruitless < 2
            && iface
                .poll_at(now, &self.sockets)
                .is_some_and(|at| at <= now)
        {
            if !port.output.room(self.loopback) {
                complete = false;
                break;
            }
            if iface.poll_egress(now, port, &mut self.sockets) == PollResult::None {
                fruitless += 1;
            }
        }
        let mut change = self.look(now_ns);
        change.wake |= self.room_for_waiting_writer();
        (change, complete)
    }

    /// The time that smoltcp is told. TIME-WAIT ends in smoltcp by emptying the buffers: its clock stops before that while
    /// the program may still read them.
    fn clock(&self, now_ns: u64) -> u64 {
        match self.time_wait_ns {
            Some(since) if !self.owned_by_nobody() => now_ns.min(since + TIME_WAIT_CLOCK_NS),
            _ => now_ns,
        }
    }

    /// When this flow has to be looked at, if no packet comes.
    pub fn deadline(&mut self, iface: &mut Interface, now_ns: u64) -> Option<u64> {
        let own = iface
            .poll_at(instant(self.clock(now_ns)), &self.sockets)
            .map(nanoseconds)
            // What lies beyond the time at which the clock stops never comes.
            .filter(|at| self.clock(*at) == *at);
        [own, self.timeout_at(), self.probe_at(), self.orphan_at()]
            .into_iter()
            .flatten()
            .min()
            // What cannot be done now is tried again a little later, never in a busy loop.
            .map(|at| at.max(now_ns + 1_000_000))
    }

    fn orphan_at(&self) -> Option<u64> {
        (self.owned_by_nobody() && self.orphan_until_ns != u64::MAX).then_some(self.orphan_until_ns)
    }

    fn timeout_at(&self) -> Option<u64> {
        let limit = match self.state() {
            State::SynSent => CONNECT_TIMEOUT_NS,
            State::SynReceived => HALF_OPEN_TIMEOUT_NS,
            State::FinWait2 if self.owned_by_nobody() => FIN_TIMEOUT_NS,
            _ if self.unfinished() => self.user_timeout_ns.unwrap_or(UNACKED_TIMEOUT_NS),
            _ => return None,
        };
        Some(self.progress_ns.saturating_add(limit))
    }

    fn probe_at(&self) -> Option<u64> {
        let keep_alive = self.keep_alive?;
        if self.unfinished()
            || !matches!(
                self.state(),
                State::Established | State::CloseWait | State::FinWait2
            )
        {
            return None;
        }
        let first = self.heard_ns.saturating_add(keep_alive.idle_ns);
        if self.probing {
            let all = keep_alive.interval_ns.saturating_mul(keep_alive.count);
            Some(first.saturating_add(all))
        } else {
            Some(first)
        }
    }

    fn watch_timeouts(&mut self, now_ns: u64) {
        if self.orphan_at().is_some_and(|at| at <= now_ns)
            || self.timeout_at().is_some_and(|at| at <= now_ns)
        {
            self.fail(crate::errno::ETIMEDOUT);
            self.socket_mut().abort();
        } else if self.probe_at().is_some_and(|at| at <= now_ns) {
            match self.keep_alive {
                Some(keep_alive) if !self.probing => {
                    // Makes smoltcp send a probe at once, and more at this interval.
                    self.probing = true;
                    let interval = Duration::from_micros(keep_alive.interval_ns / 1000);
                    self.socket_mut().set_keep_alive(Some(interval));
                }
                _ => {
                    self.fail(crate::errno::ETIMEDOUT);
                    self.socket_mut().abort();
                }
            }
        }
    }
}

/// Whether a TCP packet (IPv4, length checked) has the RST flag.
fn is_reset(packet: &[u8]) -> bool {
    let header = usize::from(packet.first().copied().unwrap_or(0) & 15) * 4;
    packet.get(header + 13).is_some_and(|flags| flags & 4 != 0)
}
