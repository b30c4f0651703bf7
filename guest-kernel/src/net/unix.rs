//! AF_UNIX sockets within the process: streams, datagrams, sequenced packets, and passing of open files. A socket
//! owns its endpoint; its peer only refers to it, so an endpoint that is gone is a socket that was closed.

use super::listener::BACKLOG_MAX;
use super::msg::{AF_UNIX, SOCK_DGRAM, SOCK_STREAM, Ucred};
use super::options::{Identity, Options};
use super::sockaddr::{Address, UnixName};
use super::socket::{Incoming, Outgoing, Socket, SocketFile, copy_parts, parts_len};
use crate::cell::Global;
use crate::errno::*;
use crate::file::{OpenFile, ready};
use crate::sched;
use crate::wait::WaitQueue;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// Bytes that wait in a socket (R10), with [`OVERHEAD`] for each message; more blocks the sender.
pub const UNIX_QUEUE_BYTES: usize = 212_992;
/// What each message counts beyond its bytes, so that empty ones are bounded too.
const OVERHEAD: usize = 128;
/// Short writes to a stream are joined up to this length.
const JOINED: usize = 4096;
/// Open files under way in all sockets together (R10): `ETOOMANYREFS` beyond. It also bounds what a program can
/// lose by sending a socket to itself.
pub const FILES_UNDER_WAY: usize = 1024;
/// Most names in use (R10): `ENOMEM` beyond.
const NAMES_MAX: usize = 4096;
const ETOOMANYREFS: Errno = Errno(109);

struct Message {
    data: Vec<u8>,
    /// Bytes read already (streams).
    read: usize,
    files: Vec<Rc<OpenFile>>,
    sender: Ucred,
    from: UnixName,
}

impl Message {
    fn cost(&self) -> usize {
        self.data.len() - self.read + OVERHEAD
    }
}

#[derive(Default)]
struct Inbox {
    messages: VecDeque<Message>,
    bytes: usize,
    /// Senders that found no room.
    waiting: Vec<Weak<Endpoint>>,
}

struct Backlog {
    queue: VecDeque<UnixSocket>,
    most: usize,
    waiting: Vec<Weak<Endpoint>>,
}

/// One end of a connection, or an unconnected socket.
struct Endpoint {
    kind: u32,
    wait: WaitQueue,
    inbox: RefCell<Inbox>,
    peer: RefCell<Option<Weak<Endpoint>>>,
    backlog: RefCell<Option<Backlog>>,
    name: RefCell<UnixName>,
    peer_name: RefCell<UnixName>,
    peer_credentials: Cell<Option<Ucred>>,
    receive_shut: Cell<bool>,
    send_shut: Cell<bool>,
    error: Cell<Option<Errno>>,
}

static NAMES: Global<BTreeMap<UnixName, Weak<Endpoint>>> = Global::new(BTreeMap::new());
static UNDER_WAY: Global<usize> = Global::new(0);

fn credentials() -> Ucred {
    let (uid, gid) = sched::credentials();
    Ucred {
        pid: sched::pid() as i32,
        uid,
        gid,
    }
}

/// Forgets a path that was unlinked: it can be bound again. Returns whether a socket was bound to it.
pub fn unlinked(path: &[u8]) -> bool {
    NAMES.borrow_mut().remove(&UnixName::Path(path.to_vec())).is_some()
}

/// An AF_UNIX socket.
pub struct UnixSocket {
    end: Rc<Endpoint>,
    options: RefCell<Options>,
}

fn note(list: &mut Vec<Weak<Endpoint>>, end: &Rc<Endpoint>) {
    if !list.iter().any(|w| w.as_ptr() == Rc::as_ptr(end)) {
        list.push(Rc::downgrade(end));
    }
}

fn wake(list: Vec<Weak<Endpoint>>) {
    for end in list.iter().filter_map(Weak::upgrade) {
        end.wait.wake_all();
    }
}

impl Endpoint {
    fn connected(&self) -> bool {
        self.peer.borrow().is_some()
    }

    /// The peer; `None` if it is closed, or there never was one.
    fn peer(&self) -> Option<Rc<Endpoint>> {
        self.peer.borrow().as_ref()?.upgrade()
    }

    fn is_stream(&self) -> bool {
        self.kind == SOCK_STREAM
    }

    fn is_datagram(&self) -> bool {
        self.kind == SOCK_DGRAM
    }

    /// Puts a message, or part of it (streams), into this endpoint's inbox.
    fn accept_message(&self, sender: &Rc<Endpoint>, parts: &[&[u8]], message: &mut Outgoing) -> Result<usize> {
        let len = parts_len(parts);
        let mut inbox = self.inbox.borrow_mut();
        let room = UNIX_QUEUE_BYTES.saturating_sub(inbox.bytes);
        let take = if self.is_stream() {
            if len == 0 && message.files.is_empty() {
                return Ok(0);
            }
            len.min(room.saturating_sub(OVERHEAD))
        } else {
            if len + OVERHEAD > UNIX_QUEUE_BYTES {
                return Err(EMSGSIZE);
            }
            if len + OVERHEAD > room { 0 } else { len }
        };
        if (take == 0 && len > 0) || room < OVERHEAD {
            note(&mut inbox.waiting, sender);
            return Err(EAGAIN);
        }
        {
            let mut under_way = UNDER_WAY.borrow_mut();
            if *under_way + message.files.len() > FILES_UNDER_WAY {
                return Err(ETOOMANYREFS);
            }
            *under_way += message.files.len();
        }
        if take < len {
            note(&mut inbox.waiting, sender);
        }
        let files = core::mem::take(&mut message.files);
        let identity = credentials();
        let joins = self.is_stream() && files.is_empty();
        let slot = match inbox.messages.back_mut() {
            Some(last) if joins && last.files.is_empty() && last.sender == identity && last.data.len() + take <= JOINED => {
                last
            }
            _ => {
                inbox.bytes += OVERHEAD;
                inbox.messages.push_back(Message {
                    data: Vec::with_capacity(take),
                    read: 0,
                    files,
                    sender: identity,
                    from: sender.name.borrow().clone(),
                });
                match inbox.messages.back_mut() {
                    Some(slot) => slot,
                    None => return Err(ENOMEM),
                }
            }
        };
        let mut left = take;
        for part in parts {
            let now = part.len().min(left);
            slot.data.extend_from_slice(&part[..now]);
            left -= now;
        }
        inbox.bytes += take;
        drop(inbox);
        self.wait.wake_all();
        Ok(take)
    }

    /// Takes messages out, or looks at them. Files come with the first byte of their message.
    fn take(&self, parts: &mut [&mut [u8]], peek: bool, incoming: &mut Incoming) -> Option<usize> {
        let mut inbox = self.inbox.borrow_mut();
        let wanted: usize = parts.iter().map(|p| p.len()).sum();
        let first = inbox.messages.front()?;
        incoming.from = match &first.from {
            UnixName::Unnamed => None,
            name => Some(Address::Unix(name.clone())),
        };
        incoming.credentials = Some(first.sender);
        incoming.full_len = first.data.len() - first.read;
        if !self.is_stream() || peek {
            copy_parts(parts, &first.data[first.read..]);
            if peek {
                incoming.files = first.files.clone();
            } else if let Some(message) = inbox.messages.pop_front() {
                inbox.bytes -= message.cost();
                *UNDER_WAY.borrow_mut() -= message.files.len();
                incoming.files = message.files;
            }
        } else {
            let mut done = 0;
            let sender = first.sender;
            while done < wanted {
                let Some(message) = inbox.messages.front_mut() else { break };
                if done > 0 && (!message.files.is_empty() || message.sender != sender) {
                    break;
                }
                let files = core::mem::take(&mut message.files);
                *UNDER_WAY.borrow_mut() -= files.len();
                incoming.files.extend(files);
                let copied = scatter(parts, done, &message.data[message.read..]);
                message.read += copied;
                let finished = message.read == message.data.len();
                done += copied;
                inbox.bytes -= copied;
                if finished {
                    inbox.messages.pop_front();
                    inbox.bytes -= OVERHEAD;
                }
                if !incoming.files.is_empty() {
                    break;
                }
            }
            incoming.full_len = done;
            let waiting = core::mem::take(&mut inbox.waiting);
            drop(inbox);
            wake(waiting);
            return Some(done);
        }
        let copied = wanted.min(incoming.full_len);
        let waiting = if peek { Vec::new() } else { core::mem::take(&mut inbox.waiting) };
        drop(inbox);
        wake(waiting);
        Some(copied)
    }

    /// Ends both directions because the other end is gone.
    fn peer_gone(&self, lost_data: bool) {
        self.receive_shut.set(true);
        self.send_shut.set(true);
        if lost_data {
            self.error.set(Some(ECONNRESET));
        }
        self.wait.wake_all();
    }
}

/// Copies into parts from byte `skip` of them on.
fn scatter(parts: &mut [&mut [u8]], mut skip: usize, data: &[u8]) -> usize {
    let mut done = 0;
    for part in parts {
        if skip >= part.len() {
            skip -= part.len();
            continue;
        }
        let into = &mut part[skip..];
        skip = 0;
        let take = into.len().min(data.len() - done);
        into[..take].copy_from_slice(&data[done..done + take]);
        done += take;
        if done == data.len() {
            break;
        }
    }
    done
}

impl UnixSocket {
    /// An unconnected socket of this type.
    pub fn new(kind: u32) -> Self {
        Self {
            end: Rc::new(Endpoint {
                kind,
                wait: WaitQueue::new(),
                inbox: RefCell::default(),
                peer: RefCell::new(None),
                backlog: RefCell::new(None),
                name: RefCell::default(),
                peer_name: RefCell::default(),
                peer_credentials: Cell::new(None),
                receive_shut: Cell::new(false),
                send_shut: Cell::new(false),
                error: Cell::new(None),
            }),
            options: RefCell::new(Options {
                send_buffer: UNIX_QUEUE_BYTES as u32,
                receive_buffer: UNIX_QUEUE_BYTES as u32,
                ..Options::default()
            }),
        }
    }

    /// Two sockets that are connected with each other.
    pub fn pair(kind: u32) -> (Self, Self) {
        let (a, b) = (Self::new(kind), Self::new(kind));
        join(&a.end, &b.end);
        join(&b.end, &a.end);
        (a, b)
    }

    fn look_up(&self, name: &UnixName) -> Result<Rc<Endpoint>> {
        let missing = match name {
            UnixName::Unnamed => return Err(EINVAL),
            UnixName::Path(_) => ENOENT,
            UnixName::Abstract(_) => ECONNREFUSED,
        };
        let found = NAMES.borrow().get(name).and_then(Weak::upgrade).ok_or(missing)?;
        if found.kind == self.end.kind { Ok(found) } else { Err(EPROTOTYPE) }
    }

    fn target(&self, message: &Outgoing) -> Result<Rc<Endpoint>> {
        match &message.to {
            Some(Address::Unix(name)) if self.end.is_datagram() => self.look_up(name).map_err(|e| match e {
                ENOENT => ENOENT,
                _ => ECONNREFUSED,
            }),
            Some(Address::Unix(_)) if self.end.connected() => Err(EISCONN),
            Some(Address::Unix(_)) => Err(EOPNOTSUPP),
            Some(_) => Err(EAFNOSUPPORT),
            None if !self.end.connected() => Err(ENOTCONN),
            None => match self.end.peer() {
                Some(peer) => Ok(peer),
                None if self.end.is_datagram() => Err(ECONNREFUSED),
                None => Err(EPIPE),
            },
        }
    }
}

fn join(end: &Rc<Endpoint>, peer: &Rc<Endpoint>) {
    *end.peer.borrow_mut() = Some(Rc::downgrade(peer));
    *end.peer_name.borrow_mut() = peer.name.borrow().clone();
    end.peer_credentials.set(Some(credentials()));
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let name = self.end.name.take();
        if name != UnixName::Unnamed {
            let mut names = NAMES.borrow_mut();
            if names.get(&name).is_some_and(|e| e.as_ptr() == Rc::as_ptr(&self.end)) {
                names.remove(&name);
            }
        }
        let inbox = self.end.inbox.take();
        *UNDER_WAY.borrow_mut() -= inbox.messages.iter().map(|m| m.files.len()).sum::<usize>();
        if let Some(peer) = self.end.peer()
            && !self.end.is_datagram()
        {
            peer.peer_gone(!inbox.messages.is_empty());
        }
        wake(inbox.waiting);
        if let Some(backlog) = self.end.backlog.take() {
            wake(backlog.waiting);
            for pending in &backlog.queue {
                // Its peer learns that nobody accepted it.
                if let Some(peer) = pending.end.peer() {
                    peer.error.set(Some(ECONNRESET));
                }
            }
        }
        // What was in the inbox and the backlog is closed here, when nothing is borrowed.
        drop(inbox.messages);
    }
}

impl Socket for UnixSocket {
    fn identity(&self) -> Identity {
        Identity {
            family: AF_UNIX,
            kind: self.end.kind,
            protocol: 0,
            listening: self.end.backlog.borrow().is_some(),
        }
    }

    fn options(&self) -> &RefCell<Options> {
        &self.options
    }

    fn bind(&self, address: &Address) -> Result<()> {
        let Address::Unix(name) = address else {
            return Err(EINVAL);
        };
        if *self.end.name.borrow() != UnixName::Unnamed {
            return Err(EINVAL);
        }
        let mut names = NAMES.borrow_mut();
        if names.len() >= NAMES_MAX {
            return Err(ENOMEM);
        }
        let name = match name {
            // Autobind: an abstract name of five hexadecimal digits.
            UnixName::Unnamed => {
                let free = (0..0x10_0000u32)
                    .map(|n| UnixName::Abstract(alloc::format!("{n:05x}").into_bytes()))
                    .find(|n| !names.contains_key(n));
                free.ok_or(ENOSPC)?
            }
            name => name.clone(),
        };
        if names.contains_key(&name) {
            return Err(EADDRINUSE);
        }
        names.insert(name.clone(), Rc::downgrade(&self.end));
        *self.end.name.borrow_mut() = name;
        Ok(())
    }

    fn listen(&self, backlog: usize) -> Result<()> {
        if self.end.is_datagram() {
            return Err(EOPNOTSUPP);
        }
        if self.end.connected() || *self.end.name.borrow() == UnixName::Unnamed {
            return Err(EINVAL);
        }
        let most = backlog.min(BACKLOG_MAX);
        let mut slot = self.end.backlog.borrow_mut();
        match &mut *slot {
            Some(old) => old.most = most,
            None => {
                *slot = Some(Backlog {
                    queue: VecDeque::new(),
                    most,
                    waiting: Vec::new(),
                });
            }
        }
        Ok(())
    }

    fn accept(&self) -> Result<SocketFile> {
        let (socket, waiting) = {
            let mut slot = self.end.backlog.borrow_mut();
            let backlog = slot.as_mut().ok_or(if self.end.is_datagram() { EOPNOTSUPP } else { EINVAL })?;
            let socket = backlog.queue.pop_front().ok_or(EAGAIN)?;
            (socket, core::mem::take(&mut backlog.waiting))
        };
        wake(waiting);
        Ok(SocketFile::new(Rc::new(socket)))
    }

    fn connect(&self, address: &Address) -> Result<()> {
        let name = match address {
            Address::Unspec if self.end.is_datagram() => {
                *self.end.peer.borrow_mut() = None;
                return Ok(());
            }
            Address::Unix(name) => name,
            _ => return Err(EINVAL),
        };
        if self.end.backlog.borrow().is_some() {
            return Err(EINVAL);
        }
        if self.end.connected() && !self.end.is_datagram() {
            return Err(EISCONN);
        }
        let found = self.look_up(name)?;
        if self.end.is_datagram() {
            join(&self.end, &found);
            return Ok(());
        }
        let server = {
            let mut slot = found.backlog.borrow_mut();
            let backlog = slot.as_mut().ok_or(ECONNREFUSED)?;
            if backlog.queue.len() > backlog.most {
                note(&mut backlog.waiting, &self.end);
                return Err(EAGAIN);
            }
            let server = Self::new(self.end.kind);
            *server.end.name.borrow_mut() = found.name.borrow().clone();
            join(&server.end, &self.end);
            join(&self.end, &server.end);
            backlog.queue.push_back(server);
            found.clone()
        };
        server.wait.wake_all();
        Ok(())
    }

    fn local(&self) -> Address {
        Address::Unix(self.end.name.borrow().clone())
    }

    fn peer(&self) -> Result<Address> {
        if self.end.connected() {
            Ok(Address::Unix(self.end.peer_name.borrow().clone()))
        } else {
            Err(ENOTCONN)
        }
    }

    fn send(&self, parts: &[&[u8]], message: &mut Outgoing) -> Result<usize> {
        if let Some(error) = self.end.error.take() {
            return Err(error);
        }
        if self.end.send_shut.get() {
            return Err(EPIPE);
        }
        let target = self.target(message)?;
        if self.end.is_datagram() && target.connected() && target.peer().is_none_or(|p| !Rc::ptr_eq(&p, &self.end)) {
            // A connected datagram socket takes messages from its peer only.
            return Err(EPERM);
        }
        if target.receive_shut.get() {
            return Err(EPIPE);
        }
        target.accept_message(&self.end, parts, message)
    }

    fn receive(&self, parts: &mut [&mut [u8]], peek: bool, message: &mut Incoming) -> Result<usize> {
        if !self.end.is_datagram() && !self.end.connected() {
            return Err(if self.end.is_stream() { EINVAL } else { ENOTCONN });
        }
        if let Some(count) = self.end.take(parts, peek, message) {
            if !self.options.borrow().pass_credentials {
                message.credentials = None;
            }
            return Ok(count);
        }
        if let Some(error) = self.end.error.take() {
            return Err(error);
        }
        if self.end.receive_shut.get() { Ok(0) } else { Err(EAGAIN) }
    }

    fn shutdown(&self, read: bool, write: bool) -> Result<()> {
        if !self.end.connected() && !self.end.is_datagram() {
            return Err(ENOTCONN);
        }
        self.end.receive_shut.set(self.end.receive_shut.get() | read);
        self.end.send_shut.set(self.end.send_shut.get() | write);
        if let Some(peer) = self.end.peer()
            && !self.end.is_datagram()
        {
            peer.receive_shut.set(peer.receive_shut.get() | write);
            peer.send_shut.set(peer.send_shut.get() | read);
            peer.wait.wake_all();
        }
        self.end.wait.wake_all();
        Ok(())
    }

    fn take_error(&self) -> Option<Errno> {
        self.end.error.take()
    }

    fn readable_bytes(&self) -> usize {
        let inbox = self.end.inbox.borrow();
        if self.end.is_stream() {
            inbox.messages.iter().map(|m| m.data.len() - m.read).sum()
        } else {
            inbox.messages.front().map_or(0, |m| m.data.len())
        }
    }

    fn unsent_bytes(&self) -> usize {
        self.end.peer().map_or(0, |p| p.inbox.borrow().bytes)
    }

    fn poll(&self) -> u32 {
        let end = &self.end;
        let readable = ready::IN | ready::RDNORM;
        let writable = ready::OUT | ready::WRNORM | ready::WRBAND;
        if let Some(backlog) = &*end.backlog.borrow() {
            return if backlog.queue.is_empty() { 0 } else { readable };
        }
        let mut mask = 0;
        if end.error.get().is_some() {
            mask |= ready::ERR;
        }
        if end.receive_shut.get() {
            mask |= ready::RDHUP | readable;
            if end.send_shut.get() {
                mask |= ready::HUP;
            }
        }
        if !end.inbox.borrow().messages.is_empty() {
            mask |= readable;
        }
        if !end.is_datagram() && !end.connected() {
            mask |= ready::HUP;
        }
        match end.peer() {
            Some(peer) => {
                let mut inbox = peer.inbox.borrow_mut();
                // Linux: writable while no more than a quarter is used.
                if inbox.bytes <= UNIX_QUEUE_BYTES / 4 || end.send_shut.get() {
                    mask |= writable;
                } else {
                    note(&mut inbox.waiting, end);
                }
            }
            None => mask |= writable,
        }
        mask
    }

    fn wait_queue(&self) -> &WaitQueue {
        &self.end.wait
    }

    fn peer_credentials(&self) -> Ucred {
        self.end.peer_credentials.get().unwrap_or(Ucred {
            pid: 0,
            uid: u32::MAX,
            gid: u32::MAX,
        })
    }
}
