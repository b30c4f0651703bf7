//! What the threads of both gateways have in common: one epoll set with a wake-up, the published ports and the clients, and the
//! acceptance of connections.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::RawFd;

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use rustix::net::{SocketFlags, accept_with};

use super::{GatewayError, Waker};

/// Ready descriptors that one `epoll_wait` returns (R10); the rest come with the next one.
const READY_EVENTS: usize = 1024;

// What an event is for, in the 32 bits that epoll carries for us.
const EVENT_WAKER: u32 = 0;
const EVENT_LISTENER: u32 = 1 << 16;
const EVENT_UDP: u32 = 2 << 16;
const EVENT_CLIENT: u32 = 3 << 16;
const _: () = assert!(super::MAX_PUBLISHED < 1 << 16);

/// Who is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// Somebody called [`Waker::wake`].
    Woken,
    /// A TCP port, by its number in the list.
    Listener(usize),
    /// A UDP port, by its number in the list.
    Udp(usize),
    /// The client in this slot, or one that was there before.
    Client(u32),
}

impl Ready {
    fn of(data: u32) -> Ready {
        let index = (data & 0xffff) as usize;
        match data & !0xffff {
            EVENT_WAKER => Ready::Woken,
            EVENT_LISTENER => Ready::Listener(index),
            EVENT_UDP => Ready::Udp(index),
            _ => Ready::Client(data - EVENT_CLIENT),
        }
    }
}

/// Collects what `epoll_wait` returned; it is worked on after the dispatch, when the whole gateway can be borrowed.
#[derive(Default)]
struct Recorder(Vec<(Ready, EventSet)>);

impl MutEventSubscriber for Recorder {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        self.0.push((Ready::of(events.data()), events.event_set()));
    }

    fn init(&mut self, _ops: &mut EventOps<'_>) {}
}

/// See the module. Everything is watched edge-triggered.
pub(crate) struct Watch {
    manager: EventManager<Recorder>,
    recorder: SubscriberId,
}

impl Watch {
    /// Watches the wake-up and the published ports.
    ///
    /// # Errors
    /// When the system has no descriptor left, or refuses one.
    pub(crate) fn new<'a, At>(
        waker: &Waker,
        listeners: &[Listener<At>],
        udp: impl Iterator<Item = &'a UdpSocket>,
    ) -> Result<Watch, GatewayError> {
        let mut manager = EventManager::new_with_capacity(READY_EVENTS)?;
        let recorder = manager.add_subscriber(Recorder::default());
        let mut ops = manager.event_ops(recorder)?;
        let edge_in = EventSet::IN | EventSet::EDGE_TRIGGERED;
        ops.add(Events::with_data(waker, EVENT_WAKER, edge_in))?;
        for (index, listener) in (0..).zip(listeners) {
            let data = EVENT_LISTENER + index;
            ops.add(Events::with_data(&listener.socket, data, edge_in))?;
        }
        for (index, socket) in (0..).zip(udp) {
            ops.add(Events::with_data(socket, EVENT_UDP + index, edge_in))?;
        }
        Ok(Watch { manager, recorder })
    }

    /// Waits for so many milliseconds at most, -1 for ever.
    ///
    /// # Errors
    /// Only after a programming error (a bad descriptor or argument): without epoll there is no gateway.
    pub(crate) fn wait(&mut self, timeout_ms: i32) -> Result<(), event_manager::Error> {
        self.manager.run_with_timeout(timeout_ms).map(drop)
    }

    /// Who was ready. The list is to be given back ([`Watch::give_back`]), for its room.
    pub(crate) fn take(&mut self) -> Vec<(Ready, EventSet)> {
        let recorder = self.manager.subscriber_mut(self.recorder);
        recorder.map_or_else(|_| Vec::new(), |recorder| std::mem::take(&mut recorder.0))
    }

    pub(crate) fn give_back(&mut self, mut events: Vec<(Ready, EventSet)>) {
        events.clear();
        if let Ok(recorder) = self.manager.subscriber_mut(self.recorder) {
            recorder.0 = events;
        }
    }

    /// Watches a client in both directions. False, and a line in the log: it cannot be watched, and is to be closed.
    #[must_use]
    pub(crate) fn add(&mut self, client: RawFd, slot: u32) -> bool {
        let interest =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let events = Events::with_data_raw(client, EVENT_CLIENT + slot, interest);
        let ops = self.manager.event_ops(self.recorder);
        let watched = ops.and_then(|mut ops| ops.add(events));
        if let Err(error) = &watched {
            tracing::warn!(%error, "cannot watch a new connection, it is closed");
        }
        watched.is_ok()
    }

    /// Watches a client no longer; before its socket is closed.
    pub(crate) fn remove(&mut self, client: RawFd) {
        let ops = self.manager.event_ops(self.recorder);
        let unwatched = ops.and_then(|mut ops| ops.remove(Events::empty_raw(client)));
        if let Err(error) = unwatched {
            tracing::error!(%error, "cannot stop watching a connection");
        }
    }
}

/// A published TCP port. `At` is a point in time on the gateway's clock.
pub(crate) struct Listener<At> {
    socket: TcpListener,
    /// The guest's port.
    pub(crate) guest_port: u16,
    /// A connection may be waiting.
    ready: bool,
    retry_at: Option<At>,
}

/// What came of an attempt to accept a connection.
pub(crate) enum Accepted {
    /// One was there.
    Client(TcpStream),
    /// It was given up again: there may be another one.
    Aborted,
    /// Nobody waits, or it is not the time to look.
    Nobody,
    /// The process has no descriptor left; it is tried again later.
    Failed,
}

impl<At: Copy + PartialOrd> Listener<At> {
    pub(crate) fn new((socket, guest_port): (TcpListener, u16)) -> Self {
        Listener {
            socket,
            guest_port,
            ready: true,
            retry_at: None,
        }
    }

    pub(crate) fn set_ready(&mut self) {
        self.ready = true;
    }

    /// Somebody may be waiting, and it is the time to look.
    pub(crate) fn may_accept(&self) -> bool {
        self.ready && self.retry_at.is_none()
    }

    /// When it is tried again after a failure.
    pub(crate) fn retry_at(&self) -> Option<At> {
        self.retry_at
    }

    /// The time after a failure is over, if it is; to be called even where there is no room for a connection.
    pub(crate) fn tick(&mut self, now: At) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
    }

    /// Tries once; after a failure not before `retry_at`.
    pub(crate) fn accept(&mut self, retry_at: At) -> Accepted {
        if !self.may_accept() {
            return Accepted::Nobody;
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let error = match accept_with(&self.socket, flags) {
            Ok(socket) => return Accepted::Client(TcpStream::from(socket)),
            Err(errno) => std::io::Error::from(errno),
        };
        match error.kind() {
            ErrorKind::WouldBlock => {
                self.ready = false;
                Accepted::Nobody
            }
            ErrorKind::Interrupted | ErrorKind::ConnectionAborted => Accepted::Aborted,
            kind => {
                tracing::warn!(%error, ?kind, "accept failed, will try again");
                self.retry_at = Some(retry_at);
                Accepted::Failed
            }
        }
    }
}
