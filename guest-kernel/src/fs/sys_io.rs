//! `read`, `write` and their relatives.

use super::eventfd::EventFd;
use crate::errno::*;
use crate::file::{self, OpenFile, flags::*};
use crate::user::{self, IoVec};
use crate::wait::{self, Wake};
use crate::{fingerprint, sched, time};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// Most bytes of one call, as in Linux.
const MAX_RW: usize = 0x7fff_f000;
/// Most bytes that one read of a stream takes into account, so that a huge buffer is not populated for a few bytes.
const MAX_STREAM_READ: usize = 1 << 20;
/// Bytes of a vector that are gathered for files that want one write (R10); more is a short write.
const MAX_GATHER: usize = 1 << 20;
/// Bytes that are copied at a time to and from files that may wait.
const BOUNCE: usize = 256 << 10;
const SIGPIPE: u32 = 13;

/// Tries `act` until it does not want to wait any more.
fn patiently<T>(open: &OpenFile, write: bool, mut act: impl FnMut() -> Result<T>) -> Result<T> {
    let mut deadline: Option<Option<u64>> = None;
    loop {
        match act() {
            Err(EAGAIN) if !open.nonblocking() => {}
            result => return result,
        }
        let Some(queue) = open.file.wait_queue() else {
            return Err(EAGAIN);
        };
        let until = *deadline.get_or_insert_with(|| {
            let patience = open.file.patience_ns(write)?;
            Some(time::now_ns().saturating_add(patience))
        });
        match wait::wait_on(&[queue], until) {
            Wake::Ready => {}
            // One more try, then EAGAIN, as for a socket's SO_RCVTIMEO.
            Wake::Timeout => return act(),
            Wake::Signal => return Err(EINTR),
        }
    }
}

fn readable(fd: i32) -> Result<Rc<OpenFile>> {
    let open = file::get(fd)?;
    if open.readable() {
        Ok(open)
    } else {
        Err(EBADF)
    }
}

fn writable(fd: i32) -> Result<Rc<OpenFile>> {
    let open = file::get(fd)?;
    if open.writable() && open.flags.get() & O_PATH == 0 {
        Ok(open)
    } else {
        Err(EBADF)
    }
}

/// Mixes what was read or written into the fingerprint; of what may hold addresses (R8) the length only.
pub fn note(open: &OpenFile, bytes: &[u8]) {
    if open.file.digested() {
        fingerprint::content(bytes);
    } else {
        fingerprint::number(bytes.len() as u64);
    }
}

/// The position for a file that has positions.
fn position(open: &OpenFile) -> Option<u64> {
    open.file.seekable().then(|| open.position.get())
}

fn read_into(open: &OpenFile, at: Option<u64>, buf: u64, len: usize) -> Result<usize> {
    let count = match at {
        Some(at) => {
            // No more than there is: else the whole of a large buffer would be populated.
            let left = open.file.size().map_or(u64::MAX, |size| match size {
                0 => u64::MAX,
                size => size.saturating_sub(at),
            });
            let len = len
                .min(usize::try_from(left).unwrap_or(usize::MAX))
                .min(MAX_RW);
            if open.file.may_wait() {
                if open.flags.get() & O_DIRECT != 0 {
                    open.file.forget_pages(at, len as u64);
                }
                return read_bounced(open, at, buf, len);
            }
            let bytes = user::bytes_mut(buf, len)?;
            let count = patiently(open, false, || open.file.read_at(at, bytes))?;
            note(open, &bytes[..count]);
            count
        }
        None => patiently(open, false, || {
            let bytes = user::bytes_mut(buf, len.min(MAX_STREAM_READ))?;
            let count = open.file.read(bytes)?;
            note(open, &bytes[..count]);
            Ok(count)
        })?,
    };
    Ok(count)
}

/// Reads through memory of the kernel.
fn read_bounced(open: &OpenFile, at: u64, buf: u64, len: usize) -> Result<usize> {
    let mut bytes = alloc::vec![0; len.min(BOUNCE)];
    let mut done = 0;
    while done < len {
        let want = bytes.len().min(len - done);
        let part = match open.file.read_at(at + done as u64, &mut bytes[..want]) {
            Ok(0) => break,
            Ok(part) => part,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        };
        user::copy_out(buf.wrapping_add(done as u64), &bytes[..part])?;
        note(open, &bytes[..part]);
        done += part;
        if part < want {
            break;
        }
    }
    Ok(done)
}

/// Writes through memory of the kernel; on stable storage before it returns where the description wants that.
fn write_bounced(open: &OpenFile, at: u64, buf: u64, len: usize) -> Result<usize> {
    let mut bytes = alloc::vec::Vec::with_capacity(len.min(BOUNCE));
    let mut done = 0;
    while done < len {
        let want = (len - done).min(BOUNCE);
        bytes.clear();
        match user::bytes(buf.wrapping_add(done as u64), want) {
            Ok(source) => bytes.extend_from_slice(source),
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
        let part = match open.file.write_at(at + done as u64, &bytes) {
            Ok(part) => part,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        };
        note(open, &bytes[..part]);
        done += part;
        if part < want {
            break;
        }
    }
    Ok(done)
}

/// What `O_SYNC` and `O_DSYNC` ask for after a write. Call without the file's write lock.
fn settle(open: &OpenFile, now: bool) -> Result<()> {
    if now || open.flags.get() & O_DSYNC != 0 {
        super::sync_file(&*open.file)?;
    }
    Ok(())
}

/// `read(2)`.
pub fn read(fd: i32, buf: u64, len: usize) -> SysResult {
    let open = readable(fd)?;
    fingerprint::number(fd as u64);
    let at = position(&open);
    let count = read_into(&open, at, buf, len)?;
    if let Some(at) = at {
        open.position.set(at + count as u64);
    }
    Ok(count as u64)
}

/// `pread64(2)`.
pub fn pread64(fd: i32, buf: u64, len: usize, offset: i64) -> SysResult {
    let offset = u64::try_from(offset).map_err(|_| EINVAL)?;
    let open = readable(fd)?;
    if !open.file.seekable() {
        return Err(ESPIPE);
    }
    fingerprint::number(fd as u64);
    read_into(&open, Some(offset), buf, len).map(|n| n as u64)
}

/// Where a write goes: `O_APPEND` always means the end.
fn write_position(open: &OpenFile, asked: Option<u64>) -> Result<Option<u64>> {
    if !open.file.seekable() {
        return Ok(None);
    }
    if open.flags.get() & O_APPEND != 0 {
        return open.file.size().map(Some);
    }
    Ok(Some(asked.unwrap_or_else(|| open.position.get())))
}

fn write_from(open: &OpenFile, at: Option<u64>, buf: u64, len: usize) -> Result<usize> {
    let len = len.min(MAX_RW);
    if let Some(at) = at {
        if open.file.may_wait() {
            return write_bounced(open, at, buf, len);
        }
        return patiently(open, true, || {
            let bytes = user::bytes(buf, len)?;
            let count = open.file.write_at(at, bytes)?;
            note(open, &bytes[..count]);
            Ok(count)
        });
    }
    // A blocking write to a stream returns when all is written.
    let mut done = 0;
    loop {
        let result = patiently(open, true, || {
            let bytes = user::bytes(buf.wrapping_add(done as u64), len - done)?;
            let count = open.file.write(bytes)?;
            note(open, &bytes[..count]);
            Ok(count)
        });
        match result {
            Ok(count) => done += count,
            Err(EPIPE) => {
                sched::send_signal_to_self(SIGPIPE);
                return if done > 0 { Ok(done) } else { Err(EPIPE) };
            }
            Err(_) if done > 0 => return Ok(done),
            Err(error) => return Err(error),
        }
        // An eventfd takes one number, however long the buffer is.
        let whole = open.file.as_any().is::<EventFd>();
        if done >= len || whole || open.nonblocking() {
            return Ok(done);
        }
    }
}

/// `write(2)`.
pub fn write(fd: i32, buf: u64, len: usize) -> SysResult {
    let open = writable(fd)?;
    fingerprint::number(fd as u64);
    let writer = open.file.lock_writes();
    let at = write_position(&open, None)?;
    let count = write_from(&open, at, buf, len)?;
    if let Some(at) = at {
        open.position.set(at + count as u64);
    }
    drop(writer);
    settle(&open, false)?;
    Ok(count as u64)
}

/// `pwrite64(2)`. (With `O_APPEND` Linux appends whatever the offset.)
pub fn pwrite64(fd: i32, buf: u64, len: usize, offset: i64) -> SysResult {
    let offset = u64::try_from(offset).map_err(|_| EINVAL)?;
    let open = writable(fd)?;
    if !open.file.seekable() {
        return Err(ESPIPE);
    }
    fingerprint::number(fd as u64);
    let writer = open.file.lock_writes();
    let at = write_position(&open, Some(offset))?;
    let count = write_from(&open, at, buf, len)?;
    drop(writer);
    settle(&open, false)?;
    Ok(count as u64)
}

/// I/O vectors of a call: few of them without allocation.
enum Vectors {
    Few([IoVec; Self::FEW], usize),
    Many(Vec<IoVec>),
}

impl Vectors {
    const FEW: usize = 8;

    fn read(address: u64, count: usize) -> Result<Self> {
        if count > Self::FEW {
            return Self::checked(Self::Many(user::iovecs(address, count)?));
        }
        let mut few = [IoVec { base: 0, len: 0 }; Self::FEW];
        for (i, slot) in few.iter_mut().enumerate().take(count) {
            *slot = user::read(address.wrapping_add(16 * i as u64))?;
        }
        Self::checked(Self::Few(few, count))
    }

    fn checked(self) -> Result<Self> {
        let mut total = 0u64;
        for vector in self.slice() {
            total = total.checked_add(vector.len).ok_or(EINVAL)?;
            if total > i64::MAX as u64 {
                return Err(EINVAL);
            }
        }
        Ok(self)
    }

    fn slice(&self) -> &[IoVec] {
        match self {
            Self::Few(few, count) => &few[..*count],
            Self::Many(many) => many,
        }
    }

    fn total(&self) -> usize {
        self.slice().iter().map(|v| v.len as usize).sum()
    }
}

/// `readv(2)`, `preadv(2)`: from `at`, or from the position.
fn read_vectors(fd: i32, vectors: u64, count: usize, at: Option<u64>) -> SysResult {
    let open = readable(fd)?;
    let vectors = Vectors::read(vectors, count)?;
    fingerprint::number(fd as u64);
    if at.is_some() && !open.file.seekable() {
        return Err(ESPIPE);
    }
    if open.file.gathers() && vectors.slice().len() > 1 {
        return scatter(&open, &vectors);
    }
    let moves = at.is_none();
    let mut at = at.or_else(|| position(&open));
    let mut done = 0;
    for vector in vectors.slice() {
        let len = vector.len as usize;
        if len == 0 {
            continue;
        }
        if done > 0 && at.is_none() && open.file.poll() & file::ready::IN == 0 {
            // A stream that has nothing more: do not wait with something in hand.
            break;
        }
        let part = match read_into(&open, at, vector.base, len) {
            Ok(part) => part,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        };
        done += part;
        at = at.map(|at| at + part as u64);
        if part < len {
            break;
        }
    }
    if let (true, Some(at)) = (moves, at) {
        open.position.set(at);
    }
    Ok(done as u64)
}

fn scatter(open: &OpenFile, vectors: &Vectors) -> SysResult {
    let mut buffer = alloc::vec![0; vectors.total().min(MAX_GATHER)];
    let count = patiently(open, false, || open.file.read(&mut buffer))?;
    note(open, &buffer[..count]);
    let mut rest = &buffer[..count];
    for vector in vectors.slice() {
        let (now, later) = rest.split_at(rest.len().min(vector.len as usize));
        user::copy_out(vector.base, now)?;
        rest = later;
    }
    Ok(count as u64)
}

/// `writev(2)`, `pwritev(2)`: at `at`, or at the position. `now`: on stable storage before it returns.
fn write_vectors(fd: i32, vectors: u64, count: usize, at: Option<u64>, now: bool) -> SysResult {
    let open = writable(fd)?;
    let vectors = Vectors::read(vectors, count)?;
    fingerprint::number(fd as u64);
    if at.is_some() && !open.file.seekable() {
        return Err(ESPIPE);
    }
    if open.file.gathers() && vectors.slice().len() > 1 {
        return gather(&open, &vectors);
    }
    let moves = at.is_none();
    let writer = open.file.lock_writes();
    let mut position = write_position(&open, at)?;
    let mut done = 0;
    for vector in vectors.slice() {
        let len = vector.len as usize;
        if len == 0 {
            continue;
        }
        let part = match write_from(&open, position, vector.base, len) {
            Ok(part) => part,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        };
        done += part;
        position = position.map(|at| at + part as u64);
        if part < len {
            break;
        }
    }
    if let (true, Some(at)) = (moves, position) {
        open.position.set(at);
    }
    drop(writer);
    settle(&open, now)?;
    Ok(done as u64)
}

fn gather(open: &OpenFile, vectors: &Vectors) -> SysResult {
    let mut buffer = Vec::with_capacity(vectors.total().min(MAX_GATHER));
    for vector in vectors.slice() {
        let len = (vector.len as usize).min(MAX_GATHER - buffer.len());
        buffer.extend_from_slice(user::bytes(vector.base, len)?);
    }
    write_all(open, &buffer).map(|n| n as u64)
}

/// Writes kernel bytes to a stream, waiting if the description does; fewer only where `write(2)` would write fewer.
pub fn write_all(open: &OpenFile, bytes: &[u8]) -> Result<usize> {
    let mut done = 0;
    loop {
        match patiently(open, true, || open.file.write(&bytes[done..])) {
            Ok(count) => {
                note(open, &bytes[done..done + count]);
                done += count;
            }
            Err(EPIPE) => {
                sched::send_signal_to_self(SIGPIPE);
                return if done > 0 { Ok(done) } else { Err(EPIPE) };
            }
            Err(_) if done > 0 => return Ok(done),
            Err(error) => return Err(error),
        }
        if done >= bytes.len() || open.nonblocking() {
            return Ok(done);
        }
    }
}

/// `readv(2)`.
pub fn readv(fd: i32, vectors: u64, count: usize) -> SysResult {
    read_vectors(fd, vectors, count, None)
}

/// `writev(2)`.
pub fn writev(fd: i32, vectors: u64, count: usize) -> SysResult {
    write_vectors(fd, vectors, count, None, false)
}

/// `preadv(2)`.
pub fn preadv(fd: i32, vectors: u64, count: usize, offset: i64) -> SysResult {
    let offset = u64::try_from(offset).map_err(|_| EINVAL)?;
    read_vectors(fd, vectors, count, Some(offset))
}

/// `pwritev(2)`.
pub fn pwritev(fd: i32, vectors: u64, count: usize, offset: i64) -> SysResult {
    let offset = u64::try_from(offset).map_err(|_| EINVAL)?;
    write_vectors(fd, vectors, count, Some(offset), false)
}

/// RWF_HIPRI and, for reads, RWF_DSYNC and RWF_SYNC: hold here without doing anything.
const RWF_HARMLESS: u32 = 0x1 | RWF_SYNC;
/// RWF_DSYNC, RWF_SYNC.
const RWF_SYNC: u32 = 0x2 | 0x4;

/// `preadv2(2)`; offset -1 means the position.
pub fn preadv2(fd: i32, vectors: u64, count: usize, offset: i64, how: u32) -> SysResult {
    if how & !RWF_HARMLESS != 0 {
        return Err(EOPNOTSUPP);
    }
    match offset {
        -1 => readv(fd, vectors, count),
        _ => preadv(fd, vectors, count, offset),
    }
}

/// `pwritev2(2)`; offset -1 means the position.
pub fn pwritev2(fd: i32, vectors: u64, count: usize, offset: i64, how: u32) -> SysResult {
    if how & !RWF_HARMLESS != 0 {
        return Err(EOPNOTSUPP);
    }
    let now = how & RWF_SYNC != 0;
    let at = match offset {
        -1 => None,
        _ => Some(u64::try_from(offset).map_err(|_| EINVAL)?),
    };
    write_vectors(fd, vectors, count, at, now)
}
