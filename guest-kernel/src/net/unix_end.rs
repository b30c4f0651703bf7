//! The ends of AF_UNIX connections: what waits in them, and who waits for them.

use super::msg::{SOCK_DGRAM, SOCK_STREAM, Ucred};
use super::sockaddr::{Address, UnixName};
use super::socket::{Incoming, Outgoing, copy_parts, parts_len};
use super::unix::UnixSocket;
use crate::cell::Global;
use crate::errno::*;
use crate::file::OpenFile;
use crate::sched;
use crate::wait::WaitQueue;
use alloc::collections::VecDeque;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// Bytes that wait in a socket (R10), with [`OVERHEAD`] for each message; more blocks the sender.
pub const UNIX_QUEUE_BYTES: usize = 212_992;
/// What each message counts beyond its bytes, so that empty ones are bounded too.
pub(super) const OVERHEAD: usize = 128;
/// Short writes to a stream are joined up to this length.
pub(super) const JOINED: usize = 4096;
/// Open files under way in all sockets together (R10): `ETOOMANYREFS` beyond. It also bounds what a program can
/// lose by sending a socket to itself.
pub const FILES_UNDER_WAY: usize = 1024;
pub(super) const ETOOMANYREFS: Errno = Errno(109);

pub(super) struct Message {
    pub(super) data: Vec<u8>,
    /// Bytes read already (streams).
    pub(super) read: usize,
    pub(super) files: Vec<Rc<OpenFile>>,
    pub(super) sender: Ucred,
    pub(super) from: UnixName,
}

impl Message {
    pub(super) fn cost(&self) -> usize {
        self.data.len() - self.read + OVERHEAD
    }
}

#[derive(Default)]
pub(super) struct Inbox {
    pub(super) messages: VecDeque<Message>,
    pub(super) bytes: usize,
    /// Senders that found no room.
    pub(super) waiting: Vec<Weak<Endpoint>>,
}

pub(super) struct Backlog {
    pub(super) queue: VecDeque<UnixSocket>,
    pub(super) most: usize,
    pub(super) waiting: Vec<Weak<Endpoint>>,
}

/// One end of a connection, or an unconnected socket.
pub(super) struct Endpoint {
    pub(super) kind: u32,
    pub(super) wait: WaitQueue,
    pub(super) inbox: RefCell<Inbox>,
    pub(super) peer: RefCell<Option<Weak<Endpoint>>>,
    pub(super) backlog: RefCell<Option<Backlog>>,
    pub(super) name: RefCell<UnixName>,
    pub(super) peer_name: RefCell<UnixName>,
    pub(super) peer_credentials: Cell<Option<Ucred>>,
    pub(super) receive_shut: Cell<bool>,
    pub(super) send_shut: Cell<bool>,
    pub(super) error: Cell<Option<Errno>>,
}

pub(super) static UNDER_WAY: Global<usize> = Global::new(0);

pub(super) fn credentials() -> Ucred {
    let (uid, gid) = sched::credentials();
    Ucred {
        pid: sched::pid() as i32,
        uid,
        gid,
    }
}

pub(super) fn note(list: &mut Vec<Weak<Endpoint>>, end: &Rc<Endpoint>) {
    if !list.iter().any(|w| w.as_ptr() == Rc::as_ptr(end)) {
        list.push(Rc::downgrade(end));
    }
}

pub(super) fn wake(list: Vec<Weak<Endpoint>>) {
    for end in list.iter().filter_map(Weak::upgrade) {
        end.wait.wake_all();
    }
}

impl Endpoint {
    /// An unconnected one.
    pub(super) fn new(kind: u32) -> Self {
        Self {
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
        }
    }

    pub(super) fn connected(&self) -> bool {
        self.peer.borrow().is_some()
    }

    /// The peer; `None` if it is closed, or there never was one.
    pub(super) fn peer(&self) -> Option<Rc<Endpoint>> {
        self.peer.borrow().as_ref()?.upgrade()
    }

    pub(super) fn is_stream(&self) -> bool {
        self.kind == SOCK_STREAM
    }

    pub(super) fn is_datagram(&self) -> bool {
        self.kind == SOCK_DGRAM
    }

    /// Puts a message, or part of it (streams), into this endpoint's inbox.
    pub(super) fn accept_message(
        &self,
        sender: &Rc<Endpoint>,
        parts: &[&[u8]],
        message: &mut Outgoing,
    ) -> Result<usize> {
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
            Some(last)
                if joins
                    && last.files.is_empty()
                    && last.sender == identity
                    && last.data.len() + take <= JOINED =>
            {
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
    pub(super) fn take(
        &self,
        parts: &mut [&mut [u8]],
        peek: bool,
        incoming: &mut Incoming,
    ) -> Option<usize> {
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
                let Some(message) = inbox.messages.front_mut() else {
                    break;
                };
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
        let waiting = if peek {
            Vec::new()
        } else {
            core::mem::take(&mut inbox.waiting)
        };
        drop(inbox);
        wake(waiting);
        Some(copied)
    }

    /// Ends both directions because the other end is gone.
    pub(super) fn peer_gone(&self, lost_data: bool) {
        self.receive_shut.set(true);
        self.send_shut.set(true);
        if lost_data {
            self.error.set(Some(ECONNRESET));
        }
        self.wait.wake_all();
    }
}

/// Copies into parts from byte `skip` of them on.
pub(super) fn scatter(parts: &mut [&mut [u8]], mut skip: usize, data: &[u8]) -> usize {
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

pub(super) fn join(end: &Rc<Endpoint>, peer: &Rc<Endpoint>) {
    *end.peer.borrow_mut() = Some(Rc::downgrade(peer));
    *end.peer_name.borrow_mut() = peer.name.borrow().clone();
    end.peer_credentials.set(Some(credentials()));
}
