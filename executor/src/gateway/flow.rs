//! One TCP connection: a host socket on one side, a smoltcp socket on the other, and bytes copied straight from
//! one's buffer into the other's.
//!
//! Nothing is queued in between. A slow client fills smoltcp's receive buffer and so closes the guest's
//! window; a slow guest fills the transmit buffer, and the host socket is not read (R10).

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use rustix::net::sockopt::set_socket_linger;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, CongestionControl, State};
use smoltcp::time::{Duration, Instant};

use super::GatewayStats;
use super::link::{GATEWAY, GUEST};
use super::stack::Stack;

/// Bytes from the guest that a connection holds for a slow client (R10); the guest's window closes at the bound.
pub const FLOW_RX_BUFFER: usize = 64 * 1024;
/// Bytes from the client that a connection holds for a slow guest (R10); the host socket is not read at the bound.
pub const FLOW_TX_BUFFER: usize = 64 * 1024;
/// How long a lone acknowledgement waits for data to travel with. Shorter than any sender's
/// retransmission timer (RFC 9293 allows 500 ms).
pub(super) const ACK_DELAY: Duration = Duration::from_millis(20);
/// An acknowledgement does not wait when this many bytes are unacknowledged or have been freed in the window:
/// then the guest's send buffer may be what limits it.
pub(super) const ACK_NOW_BYTES: usize = 4096;
/// A guest that has not accepted a connection by then is taken not to listen, and the client sees a reset.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a guest may take to acknowledge the end of a connection that the client has left.
pub(super) const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);

/// What the event loop has to do with a connection after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing until something happens.
    Idle,
    /// Something was sent: timers may be running.
    Sent,
    /// Only an acknowledgement is due, by this time.
    AckAt(Instant),
    /// There was no room in the ingress; another turn when there is.
    Starved,
    /// It is over.
    Remove,
}

/// What a timer tick says about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tick {
    /// No timer is running.
    Disarm,
    /// A timer is running.
    Wait,
    /// A timer has expired: the connection needs a turn.
    Due,
}

/// One connection.
pub(super) struct Flow {
    host: TcpStream,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    pub(super) gateway_port: u16,
    pub(super) guest_port: u16,
    /// Edge-triggered readiness of the host socket, as known.
    readable: bool,
    writable: bool,
    /// The peer has sent FIN or an error: a short read does not mean that the socket is empty.
    hangup: bool,
    error: bool,
    /// The client has ended its stream (and the guest's socket has been told).
    host_eof: bool,
    /// The guest has ended its stream.
    guest_eof: bool,
    /// The client has been told so.
    host_shut: bool,
    guest_reset: bool,
    /// A reset to the guest is all that is left to do.
    aborting: bool,
    /// TIME-WAIT was entered and acknowledged: smoltcp must not run again, its timer would discard received data.
    sealed: bool,
    /// Something other than data wants to be sent: handshake, FIN, timer.
    control: bool,
    /// Bytes received from the guest since the last segment to it.
    unacked: usize,
    /// Bytes passed on to the client since the last segment to the guest.
    drained: usize,
    connect_by: Option<Instant>,
    orphaned: Option<Instant>,
    /// When the delayed acknowledgement is due.
    pub(super) ack_at: Option<Instant>,
    // Membership in the event loop's lists.
    pub(super) queued: bool,
    pub(super) starved: bool,
    pub(super) armed: bool,
    pub(super) ack_queued: bool,
}

impl Flow {
    /// Starts to connect to the guest. `None` if smoltcp refuses the addresses, which are constants and valid ports.
    pub(super) fn connect(
        stack: &mut Stack,
        host: TcpStream,
        gateway_port: u16,
        guest_port: u16,
        now: Instant,
    ) -> Option<Flow> {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; FLOW_RX_BUFFER]),
            tcp::SocketBuffer::new(vec![0; FLOW_TX_BUFFER]),
        );
        socket.set_nagle_enabled(false);
        // Acknowledgements are delayed here, by not calling smoltcp: see `wants_to_send`.
        socket.set_ack_delay(None);
        socket.set_keep_alive(None);
        socket.set_timeout(None);
        socket.set_congestion_control(CongestionControl::None);
        socket
            .connect(
                stack.context(),
                (GUEST, guest_port),
                (GATEWAY, gateway_port),
            )
            .ok()?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Some(Flow {
            host,
            sockets,
            handle,
            gateway_port,
            guest_port,
            readable: true,
            writable: true,
            hangup: false,
            error: false,
            host_eof: false,
            guest_eof: false,
            host_shut: false,
            guest_reset: false,
            aborting: false,
            sealed: false,
            control: true,
            unacked: 0,
            drained: 0,
            connect_by: Some(now + CONNECT_TIMEOUT),
            orphaned: None,
            ack_at: None,
            queued: false,
            starved: false,
            armed: false,
            ack_queued: false,
        })
    }

    /// The host socket.
    pub(super) fn host(&self) -> &TcpStream {
        &self.host
    }

    /// Records what epoll said of the host socket. All of these are hints; system calls find out the truth.
    pub(super) fn host_event(&mut self, readable: bool, writable: bool, hangup: bool, error: bool) {
        self.readable |= readable || hangup || error;
        self.writable |= writable || error;
        self.hangup |= hangup;
        self.error |= error;
    }

    /// A frame of the guest for this connection.
    pub(super) fn receive(&mut self, stack: &mut Stack, frame: Vec<u8>, now: Instant) {
        let socket = self.sockets.get::<tcp::Socket>(self.handle);
        let (state, queued) = (socket.state(), socket.recv_queue());
        stack.receive(frame, &mut self.sockets, now);
        let socket = self.sockets.get::<tcp::Socket>(self.handle);
        self.unacked += socket.recv_queue().saturating_sub(queued);
        if socket.state() == state {
            return;
        }
        self.control = true;
        match socket.state() {
            State::Established => self.connect_by = None,
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait => {
                self.connect_by = None;
                self.guest_eof = true;
            }
            // After both ends it is the normal end of LAST-ACK.
            State::Closed if !(self.guest_eof && self.host_eof) => self.guest_reset = true,
            _ => {}
        }
    }

    /// Moves bytes both ways and sends what there is to send. Work is bounded by the two buffers, which makes turns
    /// of different connections fair.
    pub(super) fn turn(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        stats: &mut GatewayStats,
    ) -> Next {
        let mut starved = false;
        if !self.aborting {
            self.guest_to_host(stats);
            if self.guest_reset {
                stats.resets_by_guest += 1;
                self.reset_host();
                return Next::Remove;
            }
            if stack.has_room() {
                self.host_to_guest(stats);
            } else {
                starved = self.readable && !self.host_eof;
            }
            self.finish_host(now, stats);
        }
        if self.wants_to_send() {
            if !stack.send(&mut self.sockets, now) {
                return Next::Starved;
            }
            self.control = false;
            self.unacked = 0;
            self.drained = 0;
            self.ack_at = None;
            self.sealed = self.socket().state() == State::TimeWait;
            return if self.is_over() {
                Next::Remove
            } else if starved {
                Next::Starved
            } else {
                Next::Sent
            };
        }
        if self.is_over() {
            return Next::Remove;
        }
        if starved {
            return Next::Starved;
        }
        if self.unacked == 0 {
            return Next::Idle;
        }
        let at = *self.ack_at.get_or_insert(now + ACK_DELAY);
        Next::AckAt(at)
    }

    /// Timers. Cheap enough to be called for every connection that has something in flight.
    pub(super) fn tick(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        stats: &mut GatewayStats,
    ) -> Tick {
        if self.sealed {
            return Tick::Disarm;
        }
        if self.connect_by.is_some_and(|by| now >= by) {
            stats.connect_timeouts += 1;
            self.connect_by = None;
            self.reset_host();
            self.abort();
            return Tick::Due;
        }
        if self
            .orphaned
            .is_some_and(|since| now >= since + ORPHAN_TIMEOUT)
        {
            self.orphaned = None;
            self.abort();
            return Tick::Due;
        }
        match stack.poll_at(&self.sockets, now) {
            Some(at) if at <= now => {
                self.control = true;
                Tick::Due
            }
            Some(_) => Tick::Wait,
            None if self.connect_by.is_some() || self.orphaned.is_some() => Tick::Wait,
            None => Tick::Disarm,
        }
    }

    /// The delayed acknowledgement is due.
    pub(super) fn ack_now(&mut self) {
        self.ack_at = None;
        self.control = true;
    }

    /// Ends a connection after a defect in its handling: the client sees a reset.
    pub(super) fn reset_host(&self) {
        // With a linger time of 0, close sends RST. If the socket is gone already, so is the reason.
        let _ = set_socket_linger(&self.host, Some(std::time::Duration::ZERO));
    }

    fn socket(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn abort(&mut self) {
        self.sockets.get_mut::<tcp::Socket>(self.handle).abort();
        self.aborting = true;
        self.control = true;
    }

    fn guest_to_host(&mut self, stats: &mut GatewayStats) {
        let socket = self.sockets.get_mut::<tcp::Socket>(self.handle);
        let host = &mut self.host;
        while self.writable && socket.can_recv() {
            let written = socket.recv(|bytes| match host.write(bytes) {
                Ok(n) => (n, Ok(n)),
                Err(error) => (0, Err(error.kind())),
            });
            match written {
                Ok(Ok(n)) if n > 0 => {
                    self.drained += n;
                    stats.bytes_from_guest += n as u64;
                }
                Ok(Err(ErrorKind::WouldBlock)) => self.writable = false,
                Ok(Err(ErrorKind::Interrupted)) => {}
                _ => {
                    self.host_gone(stats);
                    return;
                }
            }
        }
    }

    fn host_to_guest(&mut self, stats: &mut GatewayStats) {
        while self.readable && !self.host_eof && !self.aborting {
            let socket = self.sockets.get_mut::<tcp::Socket>(self.handle);
            if !socket.can_send() {
                return;
            }
            let host = &mut self.host;
            let read = socket.send(|space| match host.read(space) {
                Ok(n) => (n, Ok((n, n < space.len()))),
                Err(error) => (0, Err(error.kind())),
            });
            match read {
                Ok(Ok((0, _))) => {
                    self.host_eof = true;
                    // smoltcp sends FIN after what is in the buffer.
                    socket.close();
                    self.control = true;
                }
                Ok(Ok((n, short))) => {
                    stats.bytes_to_guest += n as u64;
                    // epoll(7): a short read of a stream means that it is empty; the next edge will tell.
                    if short && !self.hangup && !self.error {
                        self.readable = false;
                    }
                }
                Ok(Err(ErrorKind::WouldBlock)) => self.readable = false,
                Ok(Err(ErrorKind::Interrupted)) => {}
                _ => self.host_gone(stats),
            }
        }
    }

    /// Passes the guest's end of stream on, notices a client that is gone although nobody reads or writes.
    fn finish_host(&mut self, now: Instant, stats: &mut GatewayStats) {
        if self.aborting {
            return;
        }
        if self.error && (self.host_eof || !self.socket().can_send()) {
            self.host_gone(stats);
            return;
        }
        if self.guest_eof && !self.host_shut && !self.socket().can_recv() {
            self.host_shut = true;
            if self.host.shutdown(Shutdown::Write).is_err() {
                self.host_gone(stats);
                return;
            }
        }
        if self.host_eof && self.host_shut && self.orphaned.is_none() {
            self.orphaned = Some(now);
        }
    }

    /// The client has reset the connection or vanished.
    fn host_gone(&mut self, stats: &mut GatewayStats) {
        if !self.aborting {
            stats.resets_by_client += 1;
            self.abort();
        }
    }

    fn wants_to_send(&self) -> bool {
        !self.sealed
            && (self.control
                || self.unacked >= ACK_NOW_BYTES
                || self.drained >= ACK_NOW_BYTES
                || self.socket().send_queue() > 0)
    }

    fn is_over(&self) -> bool {
        if self.aborting {
            return !self.control;
        }
        let socket = self.socket();
        matches!(socket.state(), State::Closed | State::TimeWait)
            && !self.control
            && self.host_shut
            && !socket.can_recv()
    }
}
