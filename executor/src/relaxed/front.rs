//! The front: one thread with the published ports and all clients' sockets. It numbers connections, puts what clients send into the
//! input log in one order, and passes on what was released.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::EventSet;
use quorate_voter::relaxed::EndOfStream;

use super::hub::{Hub, Inner};
use super::link::ConnId;
use super::udp::Udp;
use crate::gateway::watch::{Accepted, Listener, Ready, Watch};
use crate::gateway::{self, GatewayError, Publish, Waker};

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
    /// In the list of those that wait for room in the log, once (R10).
    starved: bool,
}

struct Loop {
    hub: Arc<Hub>,
    watch: Watch,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    live: Arc<AtomicU64>,
    listeners: Vec<Listener<Instant>>,
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
        let udp = Udp::new(bound.udp);
        let listeners: Vec<_> = bound.tcp.into_iter().map(Listener::new).collect();
        let watch = Watch::new(&waker, &listeners, udp.sockets())?;
        let (stop, live) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let front = Loop {
            hub: Arc::clone(hub),
            watch,
            waker: Arc::clone(&waker),
            stop: Arc::clone(&stop),
            live: Arc::clone(&live),
            listeners,
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
            let waited = self.watch.wait(timeout);
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
            if self.watch.wait(10).is_err() {
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
        if room && self.listeners.iter().any(Listener::may_accept) {
            return 0;
        }
        let retry = self.listeners.iter().any(|l| l.retry_at().is_some());
        match retry || !self.starved.is_empty() || self.udp.is_readable() {
            true => ACCEPT_RETRY.as_millis() as i32 / 10,
            false => -1,
        }
    }

    fn take_events(&mut self) {
        let events = self.watch.take();
        for (ready, set) in &events {
            match *ready {
                Ready::Listener(index) => {
                    if let Some(listener) = self.listeners.get_mut(index) {
                        listener.set_ready();
                    }
                }
                Ready::Udp(index) => self.udp.set_readable(index),
                Ready::Woken => {}
                Ready::Client(slot) => {
                    if let Some(client) = self.client(slot) {
                        let gone = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
                        client.readable |= set.intersects(EventSet::IN | gone);
                        client.writable |= set.intersects(EventSet::OUT | gone);
                        self.mark(slot);
                    }
                }
            }
        }
        self.watch.give_back(events);
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
                    if let Some(client) = self.client(slot) {
                        client.starved = false;
                    }
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
            if let Some(listener) = self.listeners.get_mut(index) {
                listener.tick(now);
            }
            for _ in 0..ACCEPT_BURST {
                if self.by_conn.len() >= gateway::DEFAULT_MAX_CONNECTIONS {
                    // The listener's backlog waits until a connection ends (R10).
                    break;
                }
                let Some(listener) = self.listeners.get_mut(index) else {
                    break;
                };
                let guest_port = listener.guest_port;
                match listener.accept(now + ACCEPT_RETRY) {
                    Accepted::Client(socket) => self.open(inner, socket, guest_port),
                    Accepted::Aborted | Accepted::Failed => {}
                    Accepted::Nobody => break,
                }
            }
        }
    }

    fn open(&mut self, inner: &mut Inner, socket: TcpStream, guest_port: u16) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.clients.push(None);
            self.clients.len() as u32 - 1
        });
        if !self.watch.add(socket.as_raw_fd(), slot) {
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
                starved: false,
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
        let was_starved = starved && std::mem::replace(&mut client.starved, true);
        self.buffer = buffer;
        if broken {
            self.remove(inner, slot, Gone::Client);
        } else if reset {
            self.remove(inner, slot, Gone::Guest);
        } else if over {
            self.remove(inner, slot, Gone::Both);
        } else if starved {
            if !was_starved {
                self.starved.push(slot);
            }
        } else if again {
            self.mark(slot);
        }
    }

    fn remove(&mut self, inner: &mut Inner, slot: u32, gone: Gone) {
        let Some(client) = self.clients.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        self.watch.remove(client.socket.as_raw_fd());
        if client.starved {
            self.starved.retain(|&waiting| waiting != slot);
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
