//! Calls on descriptors: closing, duplicating, `fcntl`, `ioctl`, `lseek`, locks, `fsync`.

use super::anon;
use super::contents::seal;
use super::disk::raw::RawDisk;
use super::locks::{F_RDLCK, F_UNLCK, F_WRLCK, Owner, Range};
use super::open::InodeFile;
use super::pipe::PipeEnd;
use super::signalled;
use crate::errno::*;
use crate::file::{self, File, OpenFile, flags::*};
use crate::user::{self, Plain};
use crate::wait::{self, Wake};
use crate::{fingerprint, sched};
use alloc::rc::Rc;

/// What a closed descriptor leaves to do: POSIX locks of the process go with any descriptor of the file.
pub fn closed(open: Rc<OpenFile>) {
    if let Some(file) = inode_file(&open) {
        file.inode.locks.release(Owner::Process(sched::pid()));
    }
    drop(open);
}

fn inode_file(open: &OpenFile) -> Option<&InodeFile> {
    open.file.as_any().downcast_ref::<InodeFile>()
}

/// `close(2)`.
pub fn close(fd: i32) -> SysResult {
    fingerprint::number(fd as u64);
    let open = file::table().remove(fd)?;
    closed(open);
    Ok(0)
}

/// `close_range(2)`.
pub fn close_range(first: u32, last: u32, how: u32) -> SysResult {
    const UNSHARE: u32 = 2;
    const CLOEXEC: u32 = 4;
    if how & !(UNSHARE | CLOEXEC) != 0 || first > last {
        return Err(EINVAL);
    }
    let fds = file::table().open_fds();
    for fd in fds {
        if !(first..=last).contains(&(fd as u32)) {
            continue;
        }
        if how & CLOEXEC != 0 {
            *file::table().cloexec(fd)? = true;
        } else {
            close(fd)?;
        }
    }
    Ok(0)
}

/// `dup(2)`.
pub fn dup(fd: i32) -> SysResult {
    anon::install(file::get(fd)?, false)
}

/// `dup2(2)`.
pub fn dup2(old: i32, new: i32) -> SysResult {
    let open = file::get(old)?;
    if old == new {
        return Ok(new as u64);
    }
    replace(open, new, false)
}

/// `dup3(2)`.
pub fn dup3(old: i32, new: i32, how: u32) -> SysResult {
    if how & !O_CLOEXEC != 0 || old == new {
        return Err(EINVAL);
    }
    replace(file::get(old)?, new, how != 0)
}

fn replace(open: Rc<OpenFile>, fd: i32, cloexec: bool) -> SysResult {
    let slot = usize::try_from(fd).map_err(|_| EBADF)?;
    let before = file::table().replace(slot, open, cloexec)?;
    if let Some(before) = before {
        closed(before);
    }
    Ok(fd as u64)
}

/// Flags that `F_SETFL` changes.
const SETTABLE: u32 = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME;

/// `fcntl(2)`.
pub fn fcntl(fd: i32, command: u32, arg: u64) -> SysResult {
    const F_DUPFD: u32 = 0;
    const F_GETFD: u32 = 1;
    const F_SETFD: u32 = 2;
    const F_GETFL: u32 = 3;
    const F_SETFL: u32 = 4;
    const F_GETLK: u32 = 5;
    const F_SETLK: u32 = 6;
    const F_SETLKW: u32 = 7;
    const F_SETOWN: u32 = 8;
    const F_GETOWN: u32 = 9;
    const F_OFD_GETLK: u32 = 36;
    const F_OFD_SETLK: u32 = 37;
    const F_OFD_SETLKW: u32 = 38;
    const F_DUPFD_CLOEXEC: u32 = 1030;
    const F_SETPIPE_SZ: u32 = 1031;
    const F_GETPIPE_SZ: u32 = 1032;
    const F_ADD_SEALS: u32 = 1033;
    const F_GET_SEALS: u32 = 1034;
    const FD_CLOEXEC: u64 = 1;
    fingerprint::number(u64::from(fd as u32) << 32 | u64::from(command));
    let open = file::get(fd)?;
    let by_path = open.flags.get() & O_PATH != 0;
    if by_path
        && !matches!(
            command,
            F_DUPFD | F_DUPFD_CLOEXEC | F_GETFD | F_SETFD | F_GETFL
        )
    {
        return Err(EBADF);
    }
    match command {
        F_DUPFD | F_DUPFD_CLOEXEC => {
            let from = usize::try_from(arg as i32).map_err(|_| EINVAL)?;
            let mut table = file::table();
            if from >= table.limit {
                return Err(EINVAL);
            }
            let fd = table.insert(open, command == F_DUPFD_CLOEXEC, from)?;
            Ok(fd as u64)
        }
        F_GETFD => Ok(u64::from(*file::table().cloexec(fd)?)),
        F_SETFD => {
            *file::table().cloexec(fd)? = arg & FD_CLOEXEC != 0;
            Ok(0)
        }
        F_GETFL => Ok(u64::from(open.flags.get())),
        F_SETFL => {
            let kept = open.flags.get() & !SETTABLE;
            open.flags.set(kept | arg as u32 & SETTABLE);
            signalled::switch(&open, arg as u32 & O_ASYNC != 0);
            Ok(0)
        }
        F_SETOWN => signalled::set_owner(&open, arg as i32).map(|()| 0),
        F_GETOWN => Ok(i64::from(signalled::owner(&open)) as u64),
        F_GETLK | F_OFD_GETLK => get_lock(&open, arg, command == F_OFD_GETLK),
        F_SETLK | F_OFD_SETLK => set_lock(&open, arg, command == F_OFD_SETLK, false),
        F_SETLKW | F_OFD_SETLKW => set_lock(&open, arg, command == F_OFD_SETLKW, true),
        F_GETPIPE_SZ => Ok(pipe(&open)?.capacity() as u64),
        F_SETPIPE_SZ => Ok(pipe(&open)?.set_capacity(arg as u32 as usize)? as u64),
        F_GET_SEALS => Ok(u64::from(seals(&open)?.get())),
        F_ADD_SEALS => add_seals(&open, arg as u32),
        _ => Err(EINVAL),
    }
}

fn pipe(open: &OpenFile) -> Result<&PipeEnd> {
    open.file.as_any().downcast_ref::<PipeEnd>().ok_or(EBADF)
}

fn seals(open: &OpenFile) -> Result<&core::cell::Cell<u32>> {
    let contents = inode_file(open).and_then(|f| f.inode.contents());
    let seals = contents.map(|c| &c.seals).ok_or(EINVAL)?;
    // Only memfds take seals; all other files count as sealed against sealing.
    Ok(seals)
}

fn add_seals(open: &OpenFile, wanted: u32) -> SysResult {
    let all = seal::SEAL | seal::SHRINK | seal::GROW | seal::WRITE | seal::FUTURE_WRITE;
    if wanted & !all != 0 {
        return Err(EINVAL);
    }
    let cell = seals(open)?;
    if !open.writable() || cell.get() & seal::SEAL != 0 {
        return Err(EPERM);
    }
    let mapped = inode_file(open)
        .and_then(|f| f.inode.contents())
        .is_some_and(|c| c.is_mapped());
    if wanted & seal::WRITE != 0 && mapped {
        return Err(EBUSY);
    }
    cell.set(cell.get() | wanted);
    Ok(0)
}

/// `struct flock`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Flock {
    kind: i16,
    whence: i16,
    pad: i32,
    start: i64,
    len: i64,
    pid: i32,
    pad2: i32,
}
// SAFETY: repr(C), integers only, padding spelled out.
unsafe impl Plain for Flock {}

/// The locked range of a `struct flock`.
fn range_of(open: &OpenFile, lock: &Flock, owner: Owner) -> Result<Range> {
    let base = match lock.whence {
        0 => 0,
        1 => open.position.get() as i64,
        2 => open.file.size()? as i64,
        _ => return Err(EINVAL),
    };
    let from = base.checked_add(lock.start).ok_or(EOVERFLOW)?;
    let (start, end) = match lock.len {
        0 => (from, i64::MAX),
        1.. => (from, from.checked_add(lock.len).ok_or(EOVERFLOW)?),
        _ => (from.checked_add(lock.len).ok_or(EINVAL)?, from),
    };
    Ok(Range {
        owner,
        write: lock.kind == F_WRLCK,
        start: u64::try_from(start).map_err(|_| EINVAL)?,
        end: match end {
            i64::MAX => u64::MAX,
            end => u64::try_from(end).map_err(|_| EINVAL)?,
        },
    })
}

fn read_lock(
    open: &OpenFile,
    arg: u64,
    by_description: bool,
) -> Result<(Flock, Range, &InodeFile)> {
    let lock: Flock = user::read(arg)?;
    if by_description && lock.pid != 0 {
        return Err(EINVAL);
    }
    let file = inode_file(open).ok_or(EBADF)?;
    let owner = if by_description {
        Owner::Description(file.description)
    } else {
        Owner::Process(sched::pid())
    };
    Ok((lock, range_of(open, &lock, owner)?, file))
}

fn get_lock(open: &OpenFile, arg: u64, by_description: bool) -> SysResult {
    let (mut lock, range, file) = read_lock(open, arg, by_description)?;
    if !matches!(lock.kind, F_RDLCK | F_WRLCK) {
        return Err(EINVAL);
    }
    match file.inode.locks.conflict(&range) {
        None => lock.kind = F_UNLCK,
        Some(other) => {
            lock.kind = if other.write { F_WRLCK } else { F_RDLCK };
            lock.whence = 0;
            lock.start = other.start as i64;
            lock.len = match other.end {
                u64::MAX => 0,
                end => (end - other.start) as i64,
            };
            lock.pid = match other.owner {
                Owner::Process(pid) => pid as i32,
                Owner::Description(_) => -1,
            };
        }
    }
    user::write(arg, lock)?;
    Ok(0)
}

fn set_lock(open: &OpenFile, arg: u64, by_description: bool, wait: bool) -> SysResult {
    let (lock, range, file) = read_lock(open, arg, by_description)?;
    let locks = &file.inode.locks;
    match lock.kind {
        F_UNLCK => {
            locks.unlock(range.owner, range.start, range.end);
            return Ok(0);
        }
        F_RDLCK if !open.readable() => return Err(EBADF),
        F_WRLCK if !open.writable() => return Err(EBADF),
        F_RDLCK | F_WRLCK => {}
        _ => return Err(EINVAL),
    }
    loop {
        match locks.lock(range) {
            Err(EAGAIN) if wait => {}
            result => return result.map(|()| 0),
        }
        if wait::wait_on(&[&locks.queue], None) == Wake::Signal {
            return Err(EINTR);
        }
    }
}

/// `flock(2)`.
pub fn flock(fd: i32, operation: u32) -> SysResult {
    const SHARED: u32 = 1;
    const EXCLUSIVE: u32 = 2;
    const NO_WAIT: u32 = 4;
    const UNLOCK: u32 = 8;
    let open = file::get(fd)?;
    let file = inode_file(&open).ok_or(EBADF)?;
    if open.flags.get() & O_PATH != 0 {
        return Err(EBADF);
    }
    let locks = &file.inode.locks;
    let exclusive = match operation & !NO_WAIT {
        UNLOCK => {
            locks.funlock(file.description);
            return Ok(0);
        }
        SHARED => false,
        EXCLUSIVE => true,
        _ => return Err(EINVAL),
    };
    loop {
        match locks.flock(file.description, exclusive) {
            Err(EAGAIN) if operation & NO_WAIT == 0 => {}
            result => return result.map(|()| 0),
        }
        if wait::wait_on(&[&locks.queue], None) == Wake::Signal {
            return Err(EINTR);
        }
    }
}

/// `ioctl(2)`: what works on any descriptor; the rest is the file's.
pub fn ioctl(fd: i32, command: u32, arg: u64) -> SysResult {
    const FIONCLEX: u32 = 0x5450;
    const FIOCLEX: u32 = 0x5451;
    const FIONBIO: u32 = 0x5421;
    const FIOASYNC: u32 = 0x5452;
    fingerprint::number(u64::from(fd as u32) << 32 | u64::from(command));
    let open = file::get(fd)?;
    if open.flags.get() & O_PATH != 0 {
        return Err(EBADF);
    }
    match command {
        FIOCLEX | FIONCLEX => *file::table().cloexec(fd)? = command == FIOCLEX,
        FIONBIO => {
            let on = user::read::<i32>(arg)? != 0;
            let flags = open.flags.get() & !O_NONBLOCK;
            open.flags.set(if on { flags | O_NONBLOCK } else { flags });
        }
        FIOASYNC if open.file.wait_queue().is_some() => {
            signalled::switch(&open, user::read::<i32>(arg)? != 0);
        }
        super::pipe::FIONREAD if inode_file(&open).is_some_and(|f| f.inode.is_regular()) => {
            let left = open.file.size()?.saturating_sub(open.position.get());
            user::write(arg, i32::try_from(left).unwrap_or(i32::MAX))?;
        }
        _ => return open.file.ioctl(command, arg),
    }
    Ok(0)
}

/// `lseek(2)`.
pub fn lseek(fd: i32, offset: i64, whence: u32) -> SysResult {
    const SET: u32 = 0;
    const CUR: u32 = 1;
    const END: u32 = 2;
    const DATA: u32 = 3;
    const HOLE: u32 = 4;
    let open = file::get(fd)?;
    if open.flags.get() & O_PATH != 0 {
        return Err(EBADF);
    }
    if !open.file.seekable() {
        return Err(ESPIPE);
    }
    let base = match whence {
        SET => 0,
        CUR => open.position.get(),
        END => open.file.size()?,
        DATA | HOLE => {
            let from = u64::try_from(offset).map_err(|_| ENXIO)?;
            let body = inode_file(&open).and_then(|f| f.inode.body());
            let at = body.ok_or(EINVAL)?.seek_data(from, whence == HOLE)?;
            open.position.set(at);
            return Ok(at);
        }
        _ => return Err(EINVAL),
    };
    let at = (base as i64).checked_add(offset).ok_or(EOVERFLOW)?;
    let at = u64::try_from(at).map_err(|_| EINVAL)?;
    open.position.set(at);
    Ok(at)
}

/// The file of the tree that `fsync` and `syncfs` are about.
fn synced(open: &OpenFile) -> Result<&InodeFile> {
    match inode_file(open) {
        Some(file) if open.flags.get() & O_PATH == 0 => Ok(file),
        Some(_) => Err(EBADF),
        None => Err(EINVAL),
    }
}

/// `fsync(2)`, `fdatasync(2)`: what lives in memory is as stable as it gets already.
pub fn fsync(fd: i32) -> SysResult {
    let open = file::get(fd)?;
    if let Some(raw) = open.file.as_any().downcast_ref::<RawDisk>() {
        raw.flush()?;
        return Ok(0);
    }
    super::disk::fsync(&synced(&open)?.inode)?;
    Ok(0)
}

/// `syncfs(2)`.
pub fn syncfs(fd: i32) -> SysResult {
    let open = file::get(fd)?;
    super::disk::sync_volume(&synced(&open)?.inode)?;
    Ok(0)
}

/// `sync(2)`.
pub fn sync() -> SysResult {
    super::disk::sync_all();
    Ok(0)
}

/// `fadvise64(2)`: of all advice only that something is not needed any more changes anything.
pub fn fadvise64(fd: i32, offset: u64, len: u64, advice: u32) -> SysResult {
    const DONTNEED: u32 = 4;
    let open = file::get(fd)?;
    if advice == DONTNEED {
        let len = if len == 0 { u64::MAX } else { len };
        open.file.forget_pages(offset, len);
    }
    match inode_file(&open) {
        None => Err(ESPIPE),
        Some(_) if advice > 5 => Err(EINVAL),
        Some(_) => Ok(0),
    }
}

/// Whether `file` is a socket, going by its attributes.
pub fn is_socket(file: &dyn File) -> bool {
    use quorate_abi::image::S_IFMT;
    file.stat()
        .is_ok_and(|s| s.mode & S_IFMT == super::inode::S_IFSOCK)
}
