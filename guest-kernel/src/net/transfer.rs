//! The system calls that move data through sockets, with all that can come along: addresses, open files, credentials.

use super::msg::*;
use super::sockaddr::Address;
use super::socket::{Incoming, Outgoing, Socket};
use super::syscalls::{deadline, patiently, with_socket};
use crate::errno::*;
use crate::file::{self, OpenFile};
use crate::user::{self, IOV_MAX, IoVec};
use crate::{fingerprint, sched, time};
use alloc::rc::Rc;
use alloc::vec::Vec;

const SIGPIPE: u32 = 13;
/// Most bytes of one call, as in Linux.
const MAX_RW: usize = 0x7fff_f000;
/// Bytes of a stream that are looked at in one attempt, so that a huge buffer is not populated for a few bytes.
const ATTEMPT: usize = 1 << 20;
/// Most messages of `sendmmsg` and `recvmmsg`, as in Linux.
const MESSAGES_MAX: u32 = 1024;
const CMSG_ALIGN: usize = 8;
const CMSG_HEADER: usize = size_of::<CmsgHdr>();

/// I/O vectors of a call.
struct Vectors {
    parts: Vec<IoVec>,
    total: usize,
}

impl Vectors {
    fn one(base: u64, len: usize) -> Self {
        let len = len.min(MAX_RW);
        Self {
            parts: alloc::vec![IoVec {
                base,
                len: len as u64
            }],
            total: len,
        }
    }

    fn read(addr: u64, count: u64) -> Result<Self> {
        let count = usize::try_from(count).map_err(|_| EMSGSIZE)?;
        if count > IOV_MAX {
            return Err(EMSGSIZE);
        }
        let parts = user::iovecs(addr, count)?;
        let mut total = 0usize;
        for part in &parts {
            let len = usize::try_from(part.len).map_err(|_| EINVAL)?;
            total = total
                .checked_add(len)
                .filter(|t| *t <= i64::MAX as usize)
                .ok_or(EINVAL)?;
        }
        Ok(Self {
            parts,
            total: total.min(MAX_RW),
        })
    }

    /// Address ranges of the bytes from `skip` on, at most `most` of them.
    fn ranges(&self, mut skip: usize, most: usize) -> impl Iterator<Item = (u64, usize)> + '_ {
        let mut left = most.min(self.total.saturating_sub(skip));
        self.parts.iter().filter_map(move |part| {
            let len = part.len as usize;
            if skip >= len {
                skip -= len;
                return None;
            }
            let take = (len - skip).min(left);
            let start = part.base.wrapping_add(skip as u64);
            skip = 0;
            left -= take;
            (take > 0).then_some((start, take))
        })
    }

    /// The program's bytes, for one attempt.
    fn bytes(&self, skip: usize, most: usize) -> Result<Vec<&'static [u8]>> {
        self.ranges(skip, most)
            .map(|(at, len)| user::bytes(at, len))
            .collect()
    }

    fn bytes_mut(&self, skip: usize, most: usize) -> Result<Vec<&'static mut [u8]>> {
        self.ranges(skip, most)
            .map(|(at, len)| user::bytes_mut(at, len))
            .collect()
    }

    /// Notes in the fingerprint what was moved: `count` bytes from `skip` on; of what stays inside the length only (R8).
    fn note(&self, socket: &Rc<dyn Socket>, skip: usize, count: usize) {
        if socket.inside() {
            fingerprint::number(count as u64);
            return;
        }
        for (at, len) in self.ranges(skip, count) {
            if let Ok(bytes) = user::bytes(at, len) {
                fingerprint::content(bytes);
            }
        }
    }
}

fn is_stream(socket: &Rc<dyn Socket>) -> bool {
    socket.identity().kind == SOCK_STREAM
}

// --- sending ---

fn send(
    open: &OpenFile,
    socket: &Rc<dyn Socket>,
    data: &Vectors,
    flags: u32,
    message: &mut Outgoing,
) -> SysResult {
    if flags & MSG_OOB != 0 {
        return Err(EOPNOTSUPP);
    }
    let stream = is_stream(socket);
    let waits = !open.nonblocking() && flags & MSG_DONTWAIT == 0;
    let until = deadline(socket.options().borrow().send_timeout_ns);
    let most = if stream { ATTEMPT } else { MAX_RW };
    let mut done = 0;
    loop {
        let result = patiently(socket.wait_queue(), waits, until, || {
            socket.send(&data.bytes(done, most)?, message)
        });
        match result {
            Ok(count) => {
                data.note(socket, done, count);
                done += count;
                if !stream || done >= data.total || (!waits && count < most) {
                    return Ok(done as u64);
                }
            }
            Err(error) => {
                if error == EPIPE && stream && flags & MSG_NOSIGNAL == 0 {
                    sched::send_signal_to_self(SIGPIPE);
                }
                return if done > 0 {
                    Ok(done as u64)
                } else {
                    Err(error)
                };
            }
        }
    }
}

fn destination(socket: &Rc<dyn Socket>, addr: u64, len: u32) -> Result<Option<Address>> {
    // TCP ignores a destination on a connected socket.
    if addr == 0 || len == 0 || socket.identity().protocol == IPPROTO_TCP {
        return Ok(None);
    }
    let address = Address::read(addr, len)?;
    fingerprint::content(&address.bytes());
    Ok(Some(address))
}

/// `sendto(2)`.
pub fn sendto(fd: i32, buf: u64, len: usize, flags: u32, addr: u64, addr_len: u32) -> SysResult {
    with_socket(fd, |open, socket| {
        let mut message = Outgoing {
            to: destination(socket, addr, addr_len)?,
            files: Vec::new(),
        };
        send(open, socket, &Vectors::one(buf, len), flags, &mut message)
    })
}

/// Files named in control data.
fn read_control(addr: u64, len: u64) -> Result<Vec<Rc<OpenFile>>> {
    let len = usize::try_from(len).map_err(|_| ENOBUFS)?;
    if len > CONTROL_MAX {
        return Err(ENOBUFS);
    }
    let mut files = Vec::new();
    let mut at = 0;
    while at + CMSG_HEADER <= len {
        let header: CmsgHdr = user::read(addr.wrapping_add(at as u64))?;
        let size = usize::try_from(header.len).map_err(|_| EINVAL)?;
        if size < CMSG_HEADER || size > len - at {
            return Err(EINVAL);
        }
        let data = addr.wrapping_add((at + CMSG_HEADER) as u64);
        let data_len = size - CMSG_HEADER;
        match (header.level, header.kind) {
            (SOL_SOCKET, SCM_RIGHTS) => {
                let count = data_len / 4;
                if files.len() + count > SCM_MAX_FD {
                    return Err(EINVAL);
                }
                for fd in user::read_array::<i32>(data, count)? {
                    fingerprint::number(fd as u64);
                    files.push(file::get(fd)?);
                }
            }
            (SOL_SOCKET, SCM_CREDENTIALS) => {
                let claimed: Ucred = user::read(data)?;
                let (uid, gid) = sched::credentials();
                let own = Ucred {
                    pid: sched::pid() as i32,
                    uid,
                    gid,
                };
                if data_len < size_of::<Ucred>() || claimed != own {
                    return Err(if data_len < size_of::<Ucred>() {
                        EINVAL
                    } else {
                        EPERM
                    });
                }
            }
            _ => return Err(EINVAL),
        }
        at = (at + size).next_multiple_of(CMSG_ALIGN);
    }
    Ok(files)
}

fn send_one(open: &OpenFile, socket: &Rc<dyn Socket>, header: &MsgHdr, flags: u32) -> SysResult {
    let data = Vectors::read(header.iov, header.iov_len)?;
    let mut message = Outgoing {
        to: destination(socket, header.name, header.name_len)?,
        files: Vec::new(),
    };
    if header.control_len > 0 && socket.identity().family == AF_UNIX {
        message.files = read_control(header.control, header.control_len)?;
    }
    send(open, socket, &data, flags, &mut message)
}

/// `sendmsg(2)`.
pub fn sendmsg(fd: i32, msg: u64, flags: u32) -> SysResult {
    with_socket(fd, |open, socket| {
        let header: MsgHdr = user::read(msg)?;
        send_one(open, socket, &header, flags)
    })
}

/// `sendmmsg(2)`.
pub fn sendmmsg(fd: i32, msgs: u64, count: u32, flags: u32) -> SysResult {
    with_socket(fd, |open, socket| {
        let mut sent = 0;
        for index in 0..u64::from(count.min(MESSAGES_MAX)) {
            let at = msgs.wrapping_add(index * size_of::<MmsgHdr>() as u64);
            let result =
                user::read::<MmsgHdr>(at).and_then(|m| send_one(open, socket, &m.hdr, flags));
            match result {
                Ok(len) => user::write(at + size_of::<MsgHdr>() as u64, len as u32)?,
                Err(error) if sent == 0 => return Err(error),
                Err(_) => break,
            }
            sent += 1;
        }
        Ok(sent)
    })
}

// --- receiving ---

fn receive(
    open: &OpenFile,
    socket: &Rc<dyn Socket>,
    into: &Vectors,
    flags: u32,
    message: &mut Incoming,
) -> Result<usize> {
    if flags & MSG_OOB != 0 {
        // There is no urgent data.
        return Err(EINVAL);
    }
    if flags & MSG_ERRQUEUE != 0 {
        return Err(EAGAIN);
    }
    let stream = is_stream(socket);
    if stream && flags & MSG_TRUNC != 0 && socket.identity().protocol == IPPROTO_TCP {
        return Err(EOPNOTSUPP);
    }
    if stream && into.total == 0 {
        return Ok(0);
    }
    let waits = !open.nonblocking() && flags & MSG_DONTWAIT == 0;
    let peek = flags & MSG_PEEK != 0;
    let until = deadline(socket.options().borrow().receive_timeout_ns);
    let mut done = 0;
    loop {
        let result = patiently(socket.wait_queue(), waits, until, || {
            // No more than there is: else the whole of a large buffer would be populated.
            let most = socket.readable_bytes().max(1);
            socket.receive(&mut into.bytes_mut(done, most)?, peek, message)
        });
        match result {
            Ok(count) => {
                into.note(socket, done, count);
                done += count;
                let all = flags & MSG_WAITALL != 0 && stream && waits && !peek;
                if !all || count == 0 || done >= into.total || !message.files.is_empty() {
                    return Ok(done);
                }
            }
            Err(_) if done > 0 => return Ok(done),
            Err(error) => return Err(error),
        }
    }
}

/// What a call returns for a message of which `count` bytes were copied.
fn reported(socket: &Rc<dyn Socket>, message: &Incoming, count: usize, flags: u32) -> u64 {
    if !is_stream(socket) && flags & MSG_TRUNC != 0 {
        message.full_len as u64
    } else {
        count as u64
    }
}

/// The sender's address as a call reports it: streams report none.
fn sender(socket: &Rc<dyn Socket>, message: &Incoming) -> Option<Address> {
    if is_stream(socket) {
        None
    } else {
        message.from.clone()
    }
}

/// `recvfrom(2)`.
pub fn recvfrom(fd: i32, buf: u64, len: usize, flags: u32, addr: u64, len_addr: u64) -> SysResult {
    with_socket(fd, |open, socket| {
        let mut message = Incoming::default();
        let count = receive(open, socket, &Vectors::one(buf, len), flags, &mut message)?;
        if addr != 0 {
            match sender(socket, &message) {
                Some(from) => {
                    fingerprint::content(&from.bytes());
                    from.write(addr, len_addr)?;
                }
                None => user::write_opt(len_addr, 0u32)?,
            }
        }
        Ok(reported(socket, &message, count, flags))
    })
}

/// Writes control messages into the program's buffer, as far as they fit.
struct Control {
    at: u64,
    room: usize,
    used: usize,
    truncated: bool,
}

impl Control {
    fn put(&mut self, kind: u32, data: &[u8]) -> Result<()> {
        let len = CMSG_HEADER + data.len();
        let header = CmsgHdr {
            len: len as u64,
            level: SOL_SOCKET,
            kind,
        };
        user::write(self.at + self.used as u64, header)?;
        user::copy_out(self.at + (self.used + CMSG_HEADER) as u64, data)?;
        self.used += len.next_multiple_of(CMSG_ALIGN).min(self.room - self.used);
        Ok(())
    }

    fn left(&self) -> usize {
        self.room - self.used
    }

    /// Installs passed files; those that do not fit are closed, as in Linux.
    fn put_files(&mut self, files: Vec<Rc<OpenFile>>, cloexec: bool) -> Result<()> {
        let fits = self.left().saturating_sub(CMSG_HEADER) / 4;
        let mut fds = Vec::new();
        let total = files.len();
        for open in files.iter().take(fits) {
            match file::table().insert(open.clone(), cloexec, 0) {
                Ok(fd) => {
                    fingerprint::number(fd as u64);
                    fds.extend_from_slice(&fd.to_le_bytes());
                }
                Err(_) => break,
            }
        }
        self.truncated |= fds.len() / 4 < total;
        if fds.is_empty() {
            Ok(())
        } else {
            self.put(SCM_RIGHTS, &fds)
        }
    }

    fn put_credentials(&mut self, who: Ucred) -> Result<()> {
        let mut data = [0; size_of::<Ucred>()];
        data[..4].copy_from_slice(&who.pid.to_le_bytes());
        data[4..8].copy_from_slice(&who.uid.to_le_bytes());
        data[8..].copy_from_slice(&who.gid.to_le_bytes());
        if self.left() < CMSG_HEADER + data.len() {
            self.truncated = true;
            return Ok(());
        }
        self.put(SCM_CREDENTIALS, &data)
    }
}

fn receive_one(open: &OpenFile, socket: &Rc<dyn Socket>, at: u64, flags: u32) -> SysResult {
    let mut header: MsgHdr = user::read(at)?;
    let into = Vectors::read(header.iov, header.iov_len)?;
    let mut message = Incoming::default();
    let count = receive(open, socket, &into, flags, &mut message)?;
    let mut flags_out = flags & MSG_CMSG_CLOEXEC;
    if !is_stream(socket) && message.full_len > count {
        flags_out |= MSG_TRUNC;
    }
    if socket.identity().kind == SOCK_SEQPACKET {
        flags_out |= MSG_EOR;
    }
    if header.name != 0 {
        let bytes = sender(socket, &message)
            .map(|a| a.bytes())
            .unwrap_or_default();
        fingerprint::content(&bytes);
        user::copy_out(
            header.name,
            &bytes[..bytes.len().min(header.name_len as usize)],
        )?;
        header.name_len = bytes.len() as u32;
    }
    let mut control = Control {
        at: header.control,
        room: if header.control == 0 {
            0
        } else {
            usize::try_from(header.control_len)
                .unwrap_or(usize::MAX)
                .min(CONTROL_MAX)
        },
        used: 0,
        truncated: false,
    };
    if let Some(who) = message.credentials {
        control.put_credentials(who)?;
    }
    if !message.files.is_empty() {
        control.put_files(
            core::mem::take(&mut message.files),
            flags & MSG_CMSG_CLOEXEC != 0,
        )?;
    }
    if control.truncated {
        flags_out |= MSG_CTRUNC;
    }
    header.control_len = control.used as u64;
    header.flags = flags_out;
    user::write(at, header)?;
    Ok(reported(socket, &message, count, flags))
}

/// `recvmsg(2)`.
pub fn recvmsg(fd: i32, msg: u64, flags: u32) -> SysResult {
    with_socket(fd, |open, socket| receive_one(open, socket, msg, flags))
}

/// `recvmmsg(2)`. As in Linux, the timeout is only looked at between messages.
pub fn recvmmsg(fd: i32, msgs: u64, count: u32, flags: u32, timeout: u64) -> SysResult {
    let until = match timeout {
        0 => None,
        at => Some(time::now_ns().saturating_add(user::read::<time::Timespec>(at)?.to_ns()?)),
    };
    with_socket(fd, |open, socket| {
        let mut flags = flags;
        let mut received = 0;
        for index in 0..u64::from(count.min(MESSAGES_MAX)) {
            let at = msgs.wrapping_add(index * size_of::<MmsgHdr>() as u64);
            match receive_one(open, socket, at, flags & !MSG_WAITFORONE) {
                Ok(len) => user::write(at + size_of::<MsgHdr>() as u64, len as u32)?,
                Err(error) if received == 0 => return Err(error),
                Err(_) => break,
            }
            received += 1;
            if flags & MSG_WAITFORONE != 0 {
                flags |= MSG_DONTWAIT;
            }
            if until.is_some_and(|until| time::now_ns() >= until) {
                break;
            }
        }
        Ok(received)
    })
}
