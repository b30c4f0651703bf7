//! Copying between descriptors, and reserving space.

use super::inode::Inode;
use super::open::InodeFile;
use super::sys_io::{note, write_all};
use crate::errno::*;
use crate::file::{self, OpenFile, flags::*};
use crate::{fingerprint, user};
use alloc::rc::Rc;

/// Bytes that are under way at a time.
const CHUNK: usize = 1 << 16;
/// Most bytes of one call, as in Linux.
const MAX_COPY: usize = 0x7fff_f000;

fn regular(open: &OpenFile) -> Result<&Rc<Inode>> {
    match open.file.as_any().downcast_ref::<InodeFile>() {
        Some(file) if file.inode.is_dir() => Err(EISDIR),
        Some(file) if file.inode.is_regular() => Ok(&file.inode),
        _ => Err(EINVAL),
    }
}

/// Position for a call that takes a pointer to an offset or, if null, uses the file's own.
fn position(open: &OpenFile, pointer: u64) -> Result<u64> {
    if pointer == 0 {
        return Ok(open.position.get());
    }
    u64::try_from(user::read::<i64>(pointer)?).map_err(|_| EINVAL)
}

fn set_position(open: &OpenFile, pointer: u64, at: u64) -> Result<()> {
    if pointer == 0 {
        open.position.set(at);
        return Ok(());
    }
    user::write(pointer, at)
}

/// `sendfile(2)`: from a regular file to anything.
pub fn sendfile(out_fd: i32, in_fd: i32, offset: u64, count: usize) -> SysResult {
    let (out, source) = (file::get(out_fd)?, file::get(in_fd)?);
    let usable = |open: &OpenFile| open.flags.get() & O_PATH == 0;
    if !source.readable() || !out.writable() || !usable(&out) || !usable(&source) {
        return Err(EBADF);
    }
    if out.flags.get() & O_APPEND != 0 {
        return Err(EINVAL);
    }
    regular(&source).map_err(|_| EINVAL)?;
    fingerprint::number(u64::from(out_fd as u32) << 32 | u64::from(in_fd as u32));
    let start = position(&source, offset)?;
    let mut at = start;
    let end = start.saturating_add(count.min(MAX_COPY) as u64);
    let mut buffer = alloc::vec![0; CHUNK.min(count)];
    let mut failure = None;
    while at < end {
        let want = buffer.len().min((end - at) as usize);
        let got = source.file.read_at(at, &mut buffer[..want])?;
        if got == 0 {
            break;
        }
        let written = if out.file.seekable() {
            let _writer = out.file.lock_writes();
            let to = out.position.get();
            let result = out.file.write_at(to, &buffer[..got]);
            if let Ok(n) = result {
                note(&out, &buffer[..n]);
                out.position.set(to + n as u64);
            }
            result
        } else {
            write_all(&out, &buffer[..got])
        };
        match written {
            Ok(n) => {
                at += n as u64;
                if n < got {
                    break;
                }
            }
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    match failure {
        Some(error) if at == start => return Err(error),
        _ => {}
    }
    set_position(&source, offset, at)?;
    Ok(at - start)
}

/// `copy_file_range(2)`: between regular files.
pub fn copy_file_range(args: [u64; 6]) -> SysResult {
    let [in_fd, in_offset, out_fd, out_offset, count, how] = args;
    if how != 0 {
        return Err(EINVAL);
    }
    let (source, out) = (file::get(in_fd as i32)?, file::get(out_fd as i32)?);
    let unusable = |open: &OpenFile| open.flags.get() & O_PATH != 0;
    if !source.readable() || !out.writable() || unusable(&source) || unusable(&out) {
        return Err(EBADF);
    }
    if out.flags.get() & O_APPEND != 0 {
        return Err(EBADF);
    }
    let same = regular(&source)?.same(regular(&out)?);
    let (from, to) = (position(&source, in_offset)?, position(&out, out_offset)?);
    let count = (count as usize).min(MAX_COPY) as u64;
    if same && from < to.saturating_add(count) && to < from.saturating_add(count) {
        return Err(EINVAL);
    }
    let mut buffer = alloc::vec![0; CHUNK.min(count as usize)];
    let mut done = 0;
    while done < count {
        let want = buffer.len().min((count - done) as usize);
        let got = source.file.read_at(from + done, &mut buffer[..want])?;
        if got == 0 {
            break;
        }
        let writer = out.file.lock_writes();
        let written = out.file.write_at(to + done, &buffer[..got]);
        drop(writer);
        match written {
            Ok(n) => {
                note(&out, &buffer[..n]);
                done += n as u64;
                if n < got {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    set_position(&source, in_offset, from + done)?;
    set_position(&out, out_offset, to + done)?;
    Ok(done)
}

/// `fallocate(2)`: plain, keeping the size, punching holes and zeroing; not moving contents about.
pub fn fallocate(fd: i32, mode: u32, offset: i64, len: i64) -> SysResult {
    const KEEP_SIZE: u32 = 1;
    const PUNCH_HOLE: u32 = 2;
    const ZERO_RANGE: u32 = 0x10;
    let (Ok(offset), Ok(len @ 1..)) = (u64::try_from(offset), u64::try_from(len)) else {
        return Err(EINVAL);
    };
    let open = file::get(fd)?;
    if !open.writable() || open.flags.get() & O_PATH != 0 {
        return Err(EBADF);
    }
    if super::is_pipe(&*open.file) {
        return Err(ESPIPE);
    }
    let inode = regular(&open).map_err(|e| if e == EINVAL { ENODEV } else { e })?;
    inode.sup.check_writable()?;
    let contents = inode.body().ok_or(ENODEV)?;
    let keep = mode & KEEP_SIZE != 0;
    match mode & !KEEP_SIZE {
        0 => contents.allocate(offset, len, keep)?,
        PUNCH_HOLE if keep => contents.punch(offset, len)?,
        ZERO_RANGE => {
            contents.punch(offset, len)?;
            contents.allocate(offset, len, keep)?;
        }
        _ => return Err(EOPNOTSUPP),
    }
    inode.touch();
    Ok(0)
}

/// `sync_file_range(2)`: gives what is dirty to the disk; what is in memory only never is.
pub fn sync_file_range(fd: i32, offset: i64, len: i64, how: u32) -> SysResult {
    if how & !7 != 0 || offset < 0 || len < 0 {
        return Err(EINVAL);
    }
    let open = file::get(fd)?;
    let Some(file) = open.file.as_any().downcast_ref::<InodeFile>() else {
        return Err(ESPIPE);
    };
    if let Some(body) = super::disk::file::of(&file.inode) {
        body.write_back(&file.inode)?;
    }
    Ok(0)
}
