//! The socket system calls.

use super::msg::*;
use super::options::{self, Live};
use super::sockaddr::Address;
use super::socket::{Socket, SocketFile};
use super::tcp_socket::TcpSocket;
use super::transfer;
use super::udp::UdpSocket;
use super::unix::UnixSocket;
use crate::errno::*;
use crate::file::{self, OpenFile, flags};
use crate::wait::{self, WaitQueue, Wake};
use crate::{fingerprint, time, user};
use alloc::rc::Rc;

mod nr {
    pub const SOCKET: u64 = 41;
    pub const CONNECT: u64 = 42;
    pub const ACCEPT: u64 = 43;
    pub const SENDTO: u64 = 44;
    pub const RECVFROM: u64 = 45;
    pub const SENDMSG: u64 = 46;
    pub const RECVMSG: u64 = 47;
    pub const SHUTDOWN: u64 = 48;
    pub const BIND: u64 = 49;
    pub const LISTEN: u64 = 50;
    pub const GETSOCKNAME: u64 = 51;
    pub const GETPEERNAME: u64 = 52;
    pub const SOCKETPAIR: u64 = 53;
    pub const SETSOCKOPT: u64 = 54;
    pub const GETSOCKOPT: u64 = 55;
    pub const ACCEPT4: u64 = 288;
    pub const RECVMMSG: u64 = 299;
    pub const SENDMMSG: u64 = 307;
}

/// Serves a system call of this room; none if it is another's.
pub fn dispatch(number: u64, a: [u64; 6]) -> Option<SysResult> {
    // Descriptors, lengths and flags are 32 bits wide.
    let (fd, a1, a2, a3) = (a[0] as i32, a[1] as u32, a[2] as u32, a[3] as u32);
    let result = match number {
        nr::SENDTO => transfer::sendto(fd, a[1], a[2] as usize, a3, a[4], a[5] as u32),
        nr::RECVFROM => transfer::recvfrom(fd, a[1], a[2] as usize, a3, a[4], a[5]),
        nr::SENDMSG => transfer::sendmsg(fd, a[1], a2),
        nr::RECVMSG => transfer::recvmsg(fd, a[1], a2),
        nr::SENDMMSG => transfer::sendmmsg(fd, a[1], a2, a3),
        nr::RECVMMSG => transfer::recvmmsg(fd, a[1], a2, a3, a[4]),
        nr::SOCKET => socket(a[0] as u32, a1, a2),
        nr::SOCKETPAIR => socketpair(a[0] as u32, a1, a2, a[3]),
        nr::BIND => bind(fd, a[1], a2),
        nr::LISTEN => listen(fd, a[1] as i32),
        nr::ACCEPT => accept(fd, a[1], a[2], 0),
        nr::ACCEPT4 => accept(fd, a[1], a[2], a3),
        nr::CONNECT => connect(fd, a[1], a2),
        nr::GETSOCKNAME => with_socket(fd, |_, s| s.local().write(a[1], a[2]).map(|()| 0)),
        nr::GETPEERNAME => with_socket(fd, |_, s| s.peer()?.write(a[1], a[2]).map(|()| 0)),
        nr::SHUTDOWN => shutdown(fd, a1),
        nr::SETSOCKOPT => setsockopt(fd, a1, a2, a[3], a[4] as i32),
        nr::GETSOCKOPT => getsockopt(fd, a1, a2, a[3], a[4]),
        _ => return None,
    };
    Some(result)
}

/// Runs `act` on the socket behind a descriptor.
pub(super) fn with_socket<R>(
    fd: i32,
    act: impl FnOnce(&Rc<OpenFile>, &Rc<dyn Socket>) -> Result<R>,
) -> Result<R> {
    let open = file::get(fd)?;
    let socket = match open.file.as_any().downcast_ref::<SocketFile>() {
        Some(file) => file.socket().clone(),
        None => return Err(ENOTSOCK),
    };
    fingerprint::number(fd as u64);
    act(&open, &socket)
}

/// Tries until it does not return `EAGAIN` any more, the deadline passes or a signal comes.
pub(super) fn patiently<T>(
    queue: &WaitQueue,
    waits: bool,
    deadline_ns: Option<u64>,
    mut act: impl FnMut() -> Result<T>,
) -> Result<T> {
    loop {
        match act() {
            Err(EAGAIN) if waits => {}
            result => return result,
        }
        match wait::wait_on(&[queue], deadline_ns) {
            Wake::Ready => {}
            Wake::Timeout => return act(),
            Wake::Signal => return Err(EINTR),
        }
    }
}

/// The end of a wait that may take `patience_ns`.
pub(super) fn deadline(patience_ns: Option<u64>) -> Option<u64> {
    patience_ns.map(|ns| time::now_ns().saturating_add(ns))
}

fn install(socket: SocketFile, kind_flags: u32) -> SysResult {
    let nonblocking = if kind_flags & SOCK_NONBLOCK != 0 {
        flags::O_NONBLOCK
    } else {
        0
    };
    let open = OpenFile::new(Rc::new(socket), flags::O_RDWR | nonblocking);
    let cloexec = kind_flags & SOCK_CLOEXEC != 0;
    // A file that does not fit is closed after the table is released.
    let result = file::table().insert(open.clone(), cloexec, 0);
    drop(open);
    result.map(|fd| fd as u64)
}

fn new_socket(family: u32, kind: u32, protocol: u32) -> Result<Rc<dyn Socket>> {
    let family = u16::try_from(family).map_err(|_| EAFNOSUPPORT)?;
    match (family, kind & SOCK_TYPE_MASK) {
        (AF_INET, SOCK_STREAM) if matches!(protocol, 0 | IPPROTO_TCP) => {
            Ok(Rc::new(TcpSocket::default()))
        }
        (AF_INET, SOCK_DGRAM) if matches!(protocol, 0 | IPPROTO_UDP) => {
            Ok(Rc::new(UdpSocket::default()))
        }
        (AF_INET, SOCK_STREAM | SOCK_DGRAM) => Err(EPROTONOSUPPORT),
        (AF_INET, _) => Err(ESOCKTNOSUPPORT),
        (AF_UNIX, kind @ (SOCK_STREAM | SOCK_DGRAM | SOCK_SEQPACKET)) => {
            if protocol > u32::from(AF_UNIX) {
                return Err(EPROTONOSUPPORT);
            }
            Ok(Rc::new(UnixSocket::new(kind)))
        }
        (AF_UNIX, _) => Err(ESOCKTNOSUPPORT),
        _ => Err(EAFNOSUPPORT),
    }
}

fn check_kind(kind: u32) -> Result<()> {
    if kind & !(SOCK_TYPE_MASK | SOCK_NONBLOCK | SOCK_CLOEXEC) != 0 {
        return Err(EINVAL);
    }
    Ok(())
}

fn socket(family: u32, kind: u32, protocol: u32) -> SysResult {
    check_kind(kind)?;
    fingerprint::number(u64::from(family) << 32 | u64::from(kind));
    install(SocketFile::new(new_socket(family, kind, protocol)?), kind)
}

fn socketpair(family: u32, kind: u32, protocol: u32, fds: u64) -> SysResult {
    check_kind(kind)?;
    // Checks the arguments.
    let model = new_socket(family, kind, protocol)?;
    if model.identity().family != AF_UNIX {
        return Err(EOPNOTSUPP);
    }
    user::bytes_mut(fds, 8)?;
    let (a, b) = UnixSocket::pair(kind & SOCK_TYPE_MASK);
    let first = install(SocketFile::new(Rc::new(a)), kind)? as i32;
    let second = match install(SocketFile::new(Rc::new(b)), kind) {
        Ok(fd) => fd as i32,
        Err(error) => {
            let closed = file::table().remove(first);
            drop(closed);
            return Err(error);
        }
    };
    user::write(fds, [first, second])?;
    Ok(0)
}

fn bind(fd: i32, addr: u64, len: u32) -> SysResult {
    with_socket(fd, |_, socket| {
        let address = Address::read(addr, len)?;
        fingerprint::content(&address.bytes());
        socket.bind(&address).map(|()| 0)
    })
}

fn listen(fd: i32, backlog: i32) -> SysResult {
    with_socket(fd, |_, socket| {
        // A negative backlog is a large unsigned one in Linux.
        socket.listen(backlog as u32 as usize).map(|()| 0)
    })
}

fn accept(fd: i32, addr: u64, len_addr: u64, kind_flags: u32) -> SysResult {
    if kind_flags & !(SOCK_NONBLOCK | SOCK_CLOEXEC) != 0 {
        return Err(EINVAL);
    }
    with_socket(fd, |open, socket| {
        // Before a connection is taken from the queue: it stays there if there is no descriptor for it.
        if !file::table().has_room() {
            return Err(EMFILE);
        }
        let until = deadline(socket.options().borrow().receive_timeout_ns);
        let accepted = patiently(socket.wait_queue(), !open.nonblocking(), until, || {
            socket.accept()
        })?;
        if addr != 0 {
            // A peer that is gone already has no address any more; the connection is there nevertheless.
            let peer = accepted.socket().peer().unwrap_or(Address::Inet(0, 0));
            fingerprint::content(&peer.bytes());
            peer.write(addr, len_addr)?;
        }
        install(accepted, kind_flags)
    })
}

fn connect(fd: i32, addr: u64, len: u32) -> SysResult {
    with_socket(fd, |open, socket| {
        let address = Address::read(addr, len)?;
        fingerprint::content(&address.bytes());
        let until = deadline(socket.options().borrow().send_timeout_ns);
        let waits = !open.nonblocking();
        // AF_UNIX: EAGAIN while the other's backlog is full.
        let result = patiently(socket.wait_queue(), waits, until, || {
            socket.connect(&address)
        });
        match result {
            Err(EINPROGRESS) if waits => {
                match patiently(socket.wait_queue(), true, until, || socket.connect_result()) {
                    Err(EAGAIN) => Err(EINPROGRESS),
                    result => result.map(|()| 0),
                }
            }
            result => result.map(|()| 0),
        }
    })
}

fn shutdown(fd: i32, how: u32) -> SysResult {
    with_socket(fd, |_, socket| {
        let (read, write) = match how {
            SHUT_RD => (true, false),
            SHUT_WR => (false, true),
            SHUT_RDWR => (true, true),
            _ => return Err(EINVAL),
        };
        socket.shutdown(read, write).map(|()| 0)
    })
}

fn setsockopt(fd: i32, level: u32, name: u32, addr: u64, len: i32) -> SysResult {
    with_socket(fd, |_, socket| {
        let len = usize::try_from(len).map_err(|_| EINVAL)?;
        let mut options = socket.options().borrow().clone();
        options::set(&mut options, socket.identity(), level, name, addr, len)?;
        *socket.options().borrow_mut() = options;
        socket.options_changed();
        Ok(0)
    })
}

fn getsockopt(fd: i32, level: u32, name: u32, addr: u64, len_addr: u64) -> SysResult {
    with_socket(fd, |_, socket| {
        let live = Live {
            take_error: &|| socket.take_error(),
            tcp_info: &|| socket.tcp_info(),
            peer_credentials: &|| socket.peer_credentials(),
        };
        let options = socket.options().borrow();
        options::get(
            &options,
            socket.identity(),
            &live,
            level,
            name,
            addr,
            len_addr,
        )?;
        Ok(0)
    })
}
