//! What all kinds of sockets have in common: the operations behind the system calls, and the open file.

use super::msg::{AF_INET, TcpInfo, Ucred};
use super::options::{Identity, Options};
use super::sockaddr::Address;
use crate::errno::*;
use crate::file::{File, OpenFile, Stat};
use crate::user;
use crate::wait::WaitQueue;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::RefCell;

/// What goes with data that is sent.
#[derive(Default)]
pub struct Outgoing {
    /// Destination, if given.
    pub to: Option<Address>,
    /// Open files to pass (SCM_RIGHTS).
    pub files: Vec<Rc<OpenFile>>,
}

/// What comes with data that is received.
#[derive(Default)]
pub struct Incoming {
    /// Where it comes from.
    pub from: Option<Address>,
    /// Open files that were passed.
    pub files: Vec<Rc<OpenFile>>,
    /// Who sent it, if the socket asks for it (SO_PASSCRED).
    pub credentials: Option<Ucred>,
    /// Length of the whole message, of which as much as fitted was copied (datagrams).
    pub full_len: usize,
}

/// A socket. Nothing here blocks: what would returns `EAGAIN`.
pub trait Socket {
    /// Family, type and protocol.
    fn identity(&self) -> Identity;
    /// Options.
    fn options(&self) -> &RefCell<Options>;
    /// Called after an option was set.
    fn options_changed(&self) {}
    /// `bind`.
    ///
    /// # Errors
    /// As Linux.
    fn bind(&self, address: &Address) -> Result<()>;
    /// `listen`.
    ///
    /// # Errors
    /// As Linux.
    fn listen(&self, _backlog: usize) -> Result<()> {
        Err(EOPNOTSUPP)
    }
    /// `accept`.
    ///
    /// # Errors
    /// `EAGAIN` if no connection waits.
    fn accept(&self) -> Result<SocketFile> {
        Err(EOPNOTSUPP)
    }
    /// `connect`.
    ///
    /// # Errors
    /// `EINPROGRESS` if it has only been started; [`Socket::connect_result`] says how it ends.
    fn connect(&self, address: &Address) -> Result<()>;
    /// How a started `connect` ended.
    ///
    /// # Errors
    /// `EAGAIN` while it has not; what made it fail otherwise.
    fn connect_result(&self) -> Result<()> {
        Ok(())
    }
    /// `getsockname`.
    fn local(&self) -> Address;
    /// `getpeername`.
    ///
    /// # Errors
    /// `ENOTCONN`.
    fn peer(&self) -> Result<Address>;
    /// Sends; returns how much.
    ///
    /// # Errors
    /// `EAGAIN`, `EPIPE` (the caller raises SIGPIPE) and others as Linux.
    fn send(&self, parts: &[&[u8]], message: &mut Outgoing) -> Result<usize>;
    /// Receives; returns how much was copied, 0 at the end of a stream.
    ///
    /// # Errors
    /// `EAGAIN` and others as Linux.
    fn receive(&self, parts: &mut [&mut [u8]], peek: bool, message: &mut Incoming)
    -> Result<usize>;
    /// `shutdown`.
    ///
    /// # Errors
    /// `ENOTCONN`.
    fn shutdown(&self, read: bool, write: bool) -> Result<()>;
    /// Takes the pending error (`SO_ERROR`).
    fn take_error(&self) -> Option<Errno> {
        None
    }
    /// Bytes that can be read (of the next message).
    fn readable_bytes(&self) -> usize;
    /// Bytes that are not acknowledged by the peer.
    fn unsent_bytes(&self) -> usize {
        0
    }
    /// Readiness.
    fn poll(&self) -> u32;
    /// Woken when readiness may have changed.
    fn wait_queue(&self) -> &WaitQueue;
    /// Whether what was moved last stayed inside the process. It may hold addresses then: programs pass those to their
    /// own threads, and they differ between replicas (R8).
    fn inside(&self) -> bool {
        false
    }
    /// `TCP_INFO`.
    fn tcp_info(&self) -> TcpInfo {
        TcpInfo::default()
    }
    /// `SO_PEERCRED`.
    fn peer_credentials(&self) -> Ucred {
        Ucred {
            pid: 0,
            uid: u32::MAX,
            gid: u32::MAX,
        }
    }
}

/// Bytes in all parts.
pub fn parts_len(parts: &[&[u8]]) -> usize {
    parts.iter().map(|p| p.len()).sum()
}

/// Copies `data` into the parts, as far as it fits; returns how much.
pub fn copy_parts(parts: &mut [&mut [u8]], data: &[u8]) -> usize {
    let mut done = 0;
    for part in parts {
        let take = part.len().min(data.len() - done);
        part[..take].copy_from_slice(&data[done..done + take]);
        done += take;
    }
    done
}

/// An open socket.
pub struct SocketFile {
    socket: Rc<dyn Socket>,
    inode: u64,
}

impl SocketFile {
    /// A file for a socket.
    pub fn new(socket: Rc<dyn Socket>) -> Self {
        Self {
            socket,
            inode: super::next_inode(),
        }
    }

    /// The socket.
    pub fn socket(&self) -> &Rc<dyn Socket> {
        &self.socket
    }

    /// Whether messages are kept apart.
    pub fn is_message_based(&self) -> bool {
        self.socket.identity().kind != super::msg::SOCK_STREAM
    }
}

mod control {
    pub const FIONREAD: u32 = 0x541b;
    pub const TIOCOUTQ: u32 = 0x5411;
    pub const SIOCATMARK: u32 = 0x8905;
    pub const SIOCGIFCONF: u32 = 0x8912;
    pub const SIOCGIFINDEX: u32 = 0x8933;
}

impl File for SocketFile {
    fn read(&self, buf: &mut [u8]) -> Result<usize> {
        if buf.is_empty() && !self.is_message_based() {
            return Ok(0);
        }
        self.socket
            .receive(&mut [buf], false, &mut Incoming::default())
    }

    fn write(&self, buf: &[u8]) -> Result<usize> {
        self.socket.send(&[buf], &mut Outgoing::default())
    }

    fn poll(&self) -> u32 {
        self.socket.poll()
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(self.socket.wait_queue())
    }

    fn stat(&self) -> Result<Stat> {
        let (uid, gid) = crate::sched::credentials();
        Ok(Stat {
            dev: super::SOCKFS_DEVICE,
            ino: self.inode,
            nlink: 1,
            mode: 0o140777,
            uid,
            gid,
            blksize: 4096,
            ..Stat::default()
        })
    }

    fn ioctl(&self, command: u32, arg: u64) -> Result<u64> {
        match command {
            control::FIONREAD => {
                if self.socket.identity().listening {
                    return Err(EINVAL);
                }
                user::write(arg, self.socket.readable_bytes() as i32)?;
            }
            control::TIOCOUTQ => {
                if self.socket.identity().listening {
                    return Err(EINVAL);
                }
                user::write(arg, self.socket.unsent_bytes() as i32)?;
            }
            control::SIOCATMARK if self.socket.identity().family == AF_INET => {
                user::write(arg, 0i32)?
            }
            // Interfaces cannot be looked at; there is one link, and it is set up already.
            control::SIOCGIFCONF..=control::SIOCGIFINDEX => return Err(ENOTTY),
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }

    fn gathers(&self) -> bool {
        // Streams could take parts one by one, but each would cost a look at the stack.
        self.is_message_based()
    }

    fn patience_ns(&self, write: bool) -> Option<u64> {
        let options = self.socket.options().borrow();
        if write {
            options.send_timeout_ns
        } else {
            options.receive_timeout_ns
        }
    }

    fn digested(&self) -> bool {
        !self.socket.inside()
    }

    fn path(&self) -> Vec<u8> {
        alloc::format!("socket:[{}]", self.inode).into_bytes()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
