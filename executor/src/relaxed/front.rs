//! The front: one thread with the published ports and all clients' sockets. It numbers connections, puts what clients send into the
//! input log in one order, and passes on what was released.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use quorate_voter::relaxed::EndOfStream;
use rustix::net::{SocketFlags, accept_with};

use super::hub::{Hub, Inner};
use super::link::ConnId;
use super::udp::Udp;
use crate::gateway::{self, GatewayError, Publish, Waker};

/// Ready descriptors that one `epoll_wait` returns (R10); the rest come with the next one.
const READY_EVENTS: usize = 1024;
/// Connections accepted from one listener in one turn (R10).
const ACCEPT_BURST: usize = 64;
/// Bytes read from one client at a time: what servers read at a time, so that one event is one read.
const READ_BYTES: usize = 16 << 10;
/// Reads from one client in one turn, so that one does not starve the others.
const READ_BURST: usize = 4;
/// Released bytes that wait for one client (R10). At the bound they stay in the matcher, and the replicas' windows shut.
const CLIENT_OUTPUT: usize = 256 << 10;
/// How long a client may take for its last bytes after the set has ended.
const LINGER: Duration = Duration::from_millis(200);
/// Wait before the next attempt when the process has no descriptor left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

const EVENT_WAKER: u32 = 0;
const EVENT_LISTENER: u32 = 1 << 16;
const EVENT_UDP: u32 = 2 << 16;
const EVENT_CLIENT: u32 = 3 << 16;

#[derive(Default)]
struct Recorder(Vec<(u32, EventSet)>);

impl MutEventSubscriber for Recorder {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        self.0.push((events.data(), events.event_set()));
    }

    fn init(&mut self, _ops: &mut EventOps<'_>) {}
}

struct Listener {
    socket: TcpListener,
    guest_port: u16,
    ready: bool,
    retry_at: Option<Instant>,
}

struct Client {
    conn: ConnId,
    socket: TcpStream,
    readable: bool,
    writable: bool,
    /// The client's own end was seen and passed on.
    eof: bool,
    /// Released, not yet taken by the socket.
    out: Vec<u8>,
    sent: usize,
    /// The agreed end, when all before it has been sent.
    end: Option<EndOfStream>,
    /// Our direction is shut.
    shut: bool,
    queued: bool,
}

struct Loop {
    hub: Arc<Hub>,
    manager: EventManager<Recorder>,
    recorder: SubscriberId,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    live: Arc<AtomicU64>,
    listeners: Vec<Listener>,
    udp: Udp,
    clients: Vec<Option<Client>>,
    by_conn: HashMap<ConnId, u32>,
    free: Vec<u32>,
    next_conn: ConnId,
    /// Clients to be looked at in this turn.
    ready: Vec<u32>,
    /// Clients that are readable but may not be read, because the log is full.
    starved: Vec<u32>,
    dirty: Vec<ConnId>,
    buffer: Vec<u8>,
}

/// See the module.
pub struct Front {
    addresses: Vec<(Publish, SocketAddr)>,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    live: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Front {
    /// Binds the published ports and starts the thread.
    ///
    /// # Errors
    /// [`GatewayError`], as the lockstep gateway.
    pub fn start(hub: &Arc<Hub>, publish: &[Publish]) -> Result<Front, GatewayError> {
        let bound = gateway::bind(publish)?;
        gateway::raise_descriptor_limit(gateway::DEFAULT_MAX_CONNECTIONS);
        let waker = Arc::new(Waker::new()?);
        let mut manager = EventManager::new_with_capacity(READY_EVENTS)?;
        let recorder = manager.add_subscriber(Recorder::default());
        let mut ops = manager.event_ops(recorder)?;
        let edge_in = EventSet::IN | EventSet::EDGE_TRIGGERED;
        ops.add(Events::with_data(&*waker, EVENT_WAKER, edge_in))?;
        for (index, (socket, _)) in bound.tcp.iter().enumerate() {
            let data = EVENT_LISTENER + index as u32;
            ops.add(Events::with_data(socket, data, edge_in))?;
        }
        let udp = Udp::new(bound.udp);
        for (index, socket) in udp.sockets().enumerate() {
            ops.add(Events::with_data(socket, EVENT_UDP + index as u32, edge_in))?;
        }
        let listeners = bound.tcp.into_iter().map(|(socket, guest_port)| Listener {
            socket,
            guest_port,
            ready: true,
            retry_at: None,
        });
        let (stop, live) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let front = Loop {
            hub: Arc::clone(hub),
            manager,
            recorder,
            waker: Arc::clone(&waker),
            stop: Arc::clone(&stop),
            live: Arc::clone(&live),
            listeners: listeners.collect(),
            udp,
            clients: Vec::new(),
            by_conn: HashMap::new(),
            free: Vec::new(),
            next_conn: 0,
            ready: Vec::new(),
            starved: Vec::new(),
            dirty: Vec::new(),
            buffer: vec![0; READ_BYTES],
        };
        let wake = Arc::clone(&waker);
        hub.on_release(Box::new(move || wake.wake()));
        let thread = std::thread::Builder::new()
            .name("front".to_owned())
            .spawn(move || front.run())?;
        Ok(Front {
            addresses: bound.addresses,
            waker,
            stop,
            live,
            thread: Some(thread),
        })
    }

    /// The published ports with the addresses that they are really at.
    #[must_use]
    pub fn addresses(&self) -> Vec<(Publish, SocketAddr)> {
        self.addresses.clone()
    }

    /// Connections now.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the front's thread had panicked");
        }
    }
}

impl Loop {
    fn run(mut self) {
        loop {
            let mut timeout = self.timeout_ms();
            if timeout != 0 && !self.waker.prepare_sleep() {
                timeout = 0;
            }
            let waited = self.manager.run_with_timeout(timeout);
            self.waker.awake();
            if let Err(error) = waited {
                tracing::error!(%error, "the front stops: epoll failed");
                return;
            }
            let stop = self.stop.load(Ordering::Acquire);
            self.take_events();
            self.turn();
            if stop {
                self.linger();
                return;
            }
        }
    }

    /// What was released before the end still goes out, to clients that take it.
    fn linger(&mut self) {
        let until = Instant::now() + LINGER;
        loop {
            let waits = |client: &Client| client.sent < client.out.len();
            if !self.clients.iter().flatten().any(waits) || Instant::now() >= until {
                return;
            }
            if self.manager.run_with_timeout(10).is_err() {
                return;
            }
            self.take_events();
            self.turn();
        }
    }

    fn timeout_ms(&self) -> i32 {
        if !self.ready.is_empty() || self.udp.has_more() {
            return 0;
        }
        let room = self.by_conn.len() < gateway::DEFAULT_MAX_CONNECTIONS;
        if room
            && self
                .listeners
                .iter()
                .any(|l| l.ready && l.retry_at.is_none())
        {
            return 0;
        }
        let retry = self.listeners.iter().any(|l| l.retry_at.is_some());
        match retry || !self.starved.is_empty() || self.udp.is_readable() {
            true => ACCEPT_RETRY.as_millis() as i32 / 10,
            false => -1,
        }
    }

    fn take_events(&mut self) {
        let Ok(recorder) = self.manager.subscriber_mut(self.recorder) else {
            return;
        };
        let mut events = std::mem::take(&mut recorder.0);
        for (data, set) in events.drain(..) {
            let index = (data & 0xffff) as usize;
            match data & !0xffff {
                EVENT_LISTENER => {
                    if let Some(listener) = self.listeners.get_mut(index) {
                        listener.ready = true;
                    }
                }
                EVENT_UDP => self.udp.set_readable(index),
                EVENT_WAKER => {}
                _ => {
                    let slot = data.wrapping_sub(EVENT_CLIENT);
                    if let Some(client) = self.client(slot) {
                        let gone = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
                        client.readable |= set.intersects(EventSet::IN | gone);
                        client.writable |= set.intersects(EventSet::OUT | gone);
                        self.mark(slot);
                    }
                }
            }
        }
        if let Ok(recorder) = self.manager.subscriber_mut(self.recorder) {
            recorder.0 = events;
        }
    }

    fn client(&mut self, slot: u32) -> Option<&mut Client> {
        self.clients.get_mut(slot as usize)?.as_mut()
    }

    fn mark(&mut self, slot: u32) {
        if let Some(client) = self.client(slot)
            && !std::mem::replace(&mut client.queued, true)
        {
            self.ready.push(slot);
        }
    }

    fn turn(&mut self) {
        let hub = Arc::clone(&self.hub);
        let events = {
            let mut guard = hub.lock();
            let inner = &mut *guard;
            let before = inner.log.events();
            if inner.end.is_none() {
                self.accept(inner);
            }
            let mut dirty = std::mem::take(&mut self.dirty);
            hub.take_dirty(inner, &mut dirty);
            for conn in dirty.drain(..) {
                if let Some(&slot) = self.by_conn.get(&conn) {
                    self.mark(slot);
                }
            }
            self.dirty = dirty;
            if hub.log_has_room(inner) {
                for slot in std::mem::take(&mut self.starved) {
                    self.mark(slot);
                }
            }
            self.udp.turn(&hub, inner);
            let ready = std::mem::take(&mut self.ready);
            for slot in ready {
                self.serve(inner, slot);
            }
            inner.log.events() - before
        };
        self.live
            .store(self.by_conn.len() as u64, Ordering::Relaxed);
        if events > 0 {
            hub.ring_all();
        }
    }

    fn accept(&mut self, inner: &mut Inner) {
        let now = Instant::now();
        for index in 0..self.listeners.len() {
            for _ in 0..ACCEPT_BURST {
                let Some(listener) = self.listeners.get_mut(index) else {
                    break;
                };
                if listener.retry_at.is_some_and(|at| at <= now) {
                    listener.retry_at = None;
                }
                if !listener.ready || listener.retry_at.is_some() {
                    break;
                }
                if self.by_conn.len() >= gateway::DEFAULT_MAX_CONNECTIONS {
                    // The listener's backlog waits until a connection ends (R10).
                    break;
                }
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                match accept_with(&listener.socket, flags) {
                    Ok(socket) => {
                        let guest_port = listener.guest_port;
                        self.open(inner, TcpStream::from(socket), guest_port);
                    }
                    Err(errno) => match std::io::Error::from(errno).kind() {
                        ErrorKind::WouldBlock => listener.ready = false,
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                        kind => {
                            tracing::warn!(?kind, "accept failed, will try again");
                            listener.retry_at = Some(now + ACCEPT_RETRY);
                        }
                    },
                }
            }
        }
    }

    fn open(&mut self, inner: &mut Inner, socket: TcpStream, guest_port: u16) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.clients.push(None);
            self.clients.len() as u32 - 1
        });
        let interest =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let watched = self.manager.event_ops(self.recorder).and_then(|mut ops| {
            let data = EVENT_CLIENT + slot;
            ops.add(Events::with_data_raw(socket.as_raw_fd(), data, interest))
        });
        if let Err(error) = watched {
            tracing::warn!(%error, "cannot watch a new connection, it is closed");
            self.free.push(slot);
            return;
        }
        let conn = self.next_conn;
        self.next_conn += 1;
        if let Some(place) = self.clients.get_mut(slot as usize) {
            *place = Some(Client {
                conn,
                socket,
                readable: true,
                writable: true,
                eof: false,
                out: Vec::new(),
                sent: 0,
                end: None,
                shut: false,
                queued: false,
            });
        }
        self.by_conn.insert(conn, slot);
        self.hub.open(inner, conn, guest_port);
        self.mark(slot);
    }

    /// Reads what a client has sent and writes what was released to it.
    fn serve(&mut self, inner: &mut Inner, slot: u32) {
        let hub = Arc::clone(&self.hub);
        let mut buffer = std::mem::take(&mut self.buffer);
        let Some(client) = self.client(slot) else {
            self.buffer = buffer;
            return;
        };
        client.queued = false;
        let mut broken = false;
        let mut starved = false;
        let mut again = false;
        for burst in 0.. {
            if !client.readable || client.eof || broken {
                break;
            }
            if !hub.log_has_room(inner) {
                starved = true;
                break;
            }
            if !hub.may_read(inner, client.conn) {
                break;
            }
            if burst == READ_BURST {
                again = true;
                break;
            }
            match (&client.socket).read(&mut buffer) {
                Ok(0) => {
                    client.eof = true;
                    hub.shut(inner, client.conn);
                }
                Ok(count) => hub.data(inner, client.conn, buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => client.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => broken = true,
            }
        }
        broken = broken || !client.write(&hub, inner);
        let over = client.shut && client.eof && client.end == Some(EndOfStream::Shut);
        let reset = matches!(client.end, Some(EndOfStream::Reset | EndOfStream::Refused))
            && client.sent == client.out.len();
        self.buffer = buffer;
        if broken {
            self.remove(inner, slot, Gone::Client);
        } else if reset {
            self.remove(inner, slot, Gone::Guest);
        } else if over {
            self.remove(inner, slot, Gone::Both);
        } else if starved {
            self.starved.push(slot);
        } else if again {
            self.mark(slot);
        }
    }

    fn remove(&mut self, inner: &mut Inner, slot: u32, gone: Gone) {
        let Some(client) = self.clients.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        let raw = client.socket.as_raw_fd();
        let unwatched = self
            .manager
            .event_ops(self.recorder)
            .and_then(|mut ops| ops.remove(Events::empty_raw(raw)));
        if let Err(error) = unwatched {
            tracing::error!(%error, "cannot stop watching a connection");
        }
        self.by_conn.remove(&client.conn);
        self.free.push(slot);
        match gone {
            Gone::Client => self.hub.reset(inner, client.conn),
            Gone::Guest => {
                gateway::reset_on_close(&client.socket);
                // Those who have not reset it learn that it is over.
                self.hub.broken_by_guest(inner, client.conn);
            }
            Gone::Both => self.hub.close(inner, client.conn),
        }
    }
}

/// Who ended a connection.
enum Gone {
    /// The client broke it off.
    Client,
    /// The guests did.
    Guest,
    /// Both sides are done.
    Both,
}

impl Client {
    /// Writes what was released, as far as the socket takes it. False: the client has gone.
    fn write(&mut self, hub: &Hub, inner: &mut Inner) -> bool {
        loop {
            if self.sent == self.out.len() {
                self.out.clear();
                self.sent = 0;
            }
            if self.end.is_none() && self.out.len() - self.sent < CLIENT_OUTPUT {
                self.end = hub.take(inner, self.conn, &mut self.out);
            }
            let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) else {
                if self.end == Some(EndOfStream::Shut) && !self.shut {
                    self.shut = true;
                    // If it fails the client has gone, and reading will say so.
                    let _ = self.socket.shutdown(Shutdown::Write);
                }
                return true;
            };
            if !self.writable {
                return true;
            }
            match (&self.socket).write(rest) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}
