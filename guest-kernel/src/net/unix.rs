//! AF_UNIX sockets within the process: streams, datagrams, sequenced packets, and passing of open files. A socket
//! owns its endpoint; its peer only refers to it, so an endpoint that is gone is a socket that was closed.

use super::listener::BACKLOG_MAX;
use super::msg::{AF_UNIX, Ucred};
use super::options::{Identity, Options};
use super::sockaddr::{Address, UnixName};
use super::socket::{Incoming, Outgoing, Socket, SocketFile};
use super::unix_end::{Backlog, Endpoint, UNDER_WAY, join, note, wake};
pub use super::unix_end::{FILES_UNDER_WAY, UNIX_QUEUE_BYTES};
use crate::cell::Global;
use crate::errno::*;
use crate::file::ready;
use crate::fs;
use crate::wait::WaitQueue;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::cell::RefCell;

/// Most names in use (R10): `ENOMEM` beyond.
const NAMES_MAX: usize = 4096;
static NAMES: Global<BTreeMap<UnixName, Weak<Endpoint>>> = Global::new(BTreeMap::new());

/// Whether the name is one of the file system's, which then knows what is bound to it. (Host unit tests have no file system.)
fn path_of(name: &UnixName) -> Option<&[u8]> {
    match name {
        UnixName::Path(path) if !cfg!(test) => Some(path),
        _ => None,
    }
}

/// An AF_UNIX socket.
pub struct UnixSocket {
    end: Rc<Endpoint>,
    options: RefCell<Options>,
}

impl UnixSocket {
    /// An unconnected socket of this type.
    pub fn new(kind: u32) -> Self {
        Self {
            end: Rc::new(Endpoint::new(kind)),
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
        let found = match path_of(name) {
            Some(path) => {
                let object = fs::find_socket(path)?;
                object.downcast::<Endpoint>().map_err(|_| ECONNREFUSED)?
            }
            None => NAMES
                .borrow()
                .get(name)
                .and_then(Weak::upgrade)
                .ok_or(missing)?,
        };
        if found.kind == self.end.kind {
            Ok(found)
        } else {
            Err(EPROTOTYPE)
        }
    }

    fn target(&self, message: &Outgoing) -> Result<Rc<Endpoint>> {
        match &message.to {
            Some(Address::Unix(name)) if self.end.is_datagram() => {
                self.look_up(name).map_err(|e| match e {
                    ENOENT => ENOENT,
                    _ => ECONNREFUSED,
                })
            }
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

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let name = self.end.name.take();
        if name != UnixName::Unnamed {
            let mut names = NAMES.borrow_mut();
            if names
                .get(&name)
                .is_some_and(|e| e.as_ptr() == Rc::as_ptr(&self.end))
            {
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
        if let Some(path) = path_of(name) {
            let object: Rc<dyn Any> = self.end.clone();
            fs::bind_socket(path, &object)?;
            *self.end.name.borrow_mut() = name.clone();
            return Ok(());
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
            let backlog = slot.as_mut().ok_or(if self.end.is_datagram() {
                EOPNOTSUPP
            } else {
                EINVAL
            })?;
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
        if self.end.is_datagram()
            && target.connected()
            && target.peer().is_none_or(|p| !Rc::ptr_eq(&p, &self.end))
        {
            // A connected datagram socket takes messages from its peer only.
            return Err(EPERM);
        }
        if target.receive_shut.get() {
            return Err(EPIPE);
        }
        target.accept_message(&self.end, parts, message)
    }

    fn receive(
        &self,
        parts: &mut [&mut [u8]],
        peek: bool,
        message: &mut Incoming,
    ) -> Result<usize> {
        if !self.end.is_datagram() && !self.end.connected() {
            return Err(if self.end.is_stream() {
                EINVAL
            } else {
                ENOTCONN
            });
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
        if self.end.receive_shut.get() {
            Ok(0)
        } else {
            Err(EAGAIN)
        }
    }

    fn shutdown(&self, read: bool, write: bool) -> Result<()> {
        if !self.end.connected() && !self.end.is_datagram() {
            return Err(ENOTCONN);
        }
        self.end
            .receive_shut
            .set(self.end.receive_shut.get() | read);
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
            return if backlog.queue.is_empty() {
                0
            } else {
                readable
            };
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

    fn inside(&self) -> bool {
        true
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
