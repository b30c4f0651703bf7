//! Attributes: `stat` in all its forms, owners, permissions, times, sizes, directory listings.

use super::contents::PAGE;
use super::inode::{Inode, Listed, may, now};
use super::open::InodeFile;
use super::path::{self, *};
use super::{proc, state};
use crate::errno::*;
use crate::file::{self, Stat, flags::*};
use crate::time::Timespec;
use crate::user::{self, Plain};
use crate::{fingerprint, sched};
use alloc::rc::Rc;
use quorate_abi::image::{S_IFDIR, S_IFLNK, S_IFMT};

fn put(address: u64, stat: Stat) -> SysResult {
    user::write(address, stat)?;
    fingerprint::number(stat.ino);
    fingerprint::number(stat.size as u64);
    fingerprint::number(u64::from(stat.mode));
    Ok(0)
}

fn stat_of(target: &Target) -> Result<Stat> {
    match target {
        Target::Inode(inode) => Ok(inode.stat()),
        Target::File(open) => open.file.stat(),
        Target::Missing => Err(ENOENT),
    }
}

/// `fstat(2)`.
pub fn fstat(fd: i32, out: u64) -> SysResult {
    put(out, file::get(fd)?.file.stat()?)
}

/// `newfstatat(2)`; `stat` and `lstat` are it with fewer arguments.
pub fn fstatat(dirfd: i32, path: u64, out: u64, at_flags: u32) -> SysResult {
    if at_flags & !(AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    put(out, stat_of(&path::target_at(dirfd, path, at_flags)?)?)
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct StatxTime {
    sec: i64,
    nsec: u32,
    pad: u32,
}

impl From<Timespec> for StatxTime {
    fn from(time: Timespec) -> Self {
        Self {
            sec: time.sec,
            nsec: time.nsec as u32,
            pad: 0,
        }
    }
}

/// `struct statx`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Statx {
    mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    pad1: u16,
    ino: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    atime: StatxTime,
    btime: StatxTime,
    ctime: StatxTime,
    mtime: StatxTime,
    rdev_major: u32,
    rdev_minor: u32,
    dev_major: u32,
    dev_minor: u32,
    rest: [u64; 14],
}
const _: () = assert!(size_of::<Statx>() == 256);
// SAFETY: repr(C), integers only, padding spelled out.
unsafe impl Plain for Statx {}

fn split_device(device: u64) -> (u32, u32) {
    let major = device >> 8 & 0xfff | device >> 32 & 0xffff_f000;
    let minor = device & 0xff | device >> 12 & 0xffff_ff00;
    (major as u32, minor as u32)
}

/// `statx(2)`. Everything is filled in, whatever the mask asks for, except the time of birth.
pub fn statx(dirfd: i32, path: u64, at_flags: u32, mask: u32, out: u64) -> SysResult {
    const BASIC_STATS: u32 = 0x7ff;
    const RESERVED: u32 = 1 << 31;
    const SYNC_TYPE: u32 = 0x6000;
    let known = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH | SYNC_TYPE;
    if at_flags & !known != 0 || at_flags & SYNC_TYPE == SYNC_TYPE || mask & RESERVED != 0 {
        return Err(EINVAL);
    }
    let stat = stat_of(&path::target_at(dirfd, path, at_flags)?)?;
    let (rdev_major, rdev_minor) = split_device(stat.rdev);
    let (dev_major, dev_minor) = split_device(stat.dev);
    let result = Statx {
        mask: BASIC_STATS,
        blksize: stat.blksize as u32,
        nlink: stat.nlink as u32,
        uid: stat.uid,
        gid: stat.gid,
        mode: stat.mode as u16,
        ino: stat.ino,
        size: stat.size as u64,
        blocks: stat.blocks as u64,
        atime: stat.atime.into(),
        ctime: stat.ctime.into(),
        mtime: stat.mtime.into(),
        rdev_major,
        rdev_minor,
        dev_major,
        dev_minor,
        ..Statx::default()
    };
    user::write(out, result)?;
    fingerprint::number(stat.ino);
    fingerprint::number(stat.size as u64);
    Ok(0)
}

/// `struct statfs`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct StatFs {
    kind: i64,
    bsize: i64,
    blocks: u64,
    bfree: u64,
    bavail: u64,
    files: u64,
    ffree: u64,
    fsid: [i32; 2],
    namelen: i64,
    frsize: i64,
    flags: i64,
    spare: [i64; 4],
}
const _: () = assert!(size_of::<StatFs>() == 120);
// SAFETY: repr(C), integers only.
unsafe impl Plain for StatFs {}

fn put_statfs(inode: Option<&Inode>, out: u64) -> SysResult {
    const ANON_INODE_MAGIC: i64 = 0x0904_1934;
    const ST_VALID_NOATIME: i64 = 0x20 | 0x400;
    const ST_RDONLY: i64 = 1;
    let mut result = StatFs {
        kind: ANON_INODE_MAGIC,
        bsize: PAGE as i64,
        frsize: PAGE as i64,
        namelen: NAME_MAX as i64,
        flags: ST_VALID_NOATIME,
        ..StatFs::default()
    };
    if let Some(inode) = inode {
        result.kind = inode.sup.magic as i64;
        result.fsid = [inode.sup.dev as i32, 0];
        if inode.sup.read_only() {
            result.flags |= ST_RDONLY;
        }
        if let Some(disk) = &inode.sup.disk {
            let stats = disk.volume.lock().ask(|fs| Ok(fs.statfs()))?;
            result.blocks = stats.total_blocks;
            result.bfree = stats.free_blocks;
            result.bavail = stats.free_blocks;
            result.files = u64::from(stats.total_inodes);
            result.ffree = u64::from(stats.free_inodes);
        } else if inode.sup.magic != proc::PROC_MAGIC && inode.sup.magic != proc::SYSFS_MAGIC {
            let (pages, used) = inode.sup.space.page_counts();
            let (objects, taken) = inode.sup.space.object_counts();
            result.blocks = pages;
            result.bfree = pages - used.min(pages);
            result.bavail = result.bfree;
            result.files = objects;
            result.ffree = objects - taken.min(objects);
        }
    }
    user::write(out, result)?;
    Ok(0)
}

/// `statfs(2)`.
pub fn statfs(path: u64, out: u64) -> SysResult {
    match path::walk(AT_FDCWD, &user::path(path)?, true)?.target {
        Target::Inode(inode) => put_statfs(Some(&inode), out),
        Target::File(_) => put_statfs(None, out),
        Target::Missing => Err(ENOENT),
    }
}

/// `fstatfs(2)`.
pub fn fstatfs(fd: i32, out: u64) -> SysResult {
    put_statfs(path::inode_of(&*file::get(fd)?).as_deref(), out)
}

fn inode_at(dirfd: i32, path: u64, at_flags: u32) -> Result<Rc<Inode>> {
    match path::target_at(dirfd, path, at_flags)? {
        Target::Inode(inode) => Ok(inode),
        Target::Missing => Err(ENOENT),
        Target::File(_) => Err(EPERM),
    }
}

fn chmod(inode: &Rc<Inode>, mode: u32) -> SysResult {
    changeable(inode)?;
    if inode.meta.get().mode & S_IFMT == S_IFLNK {
        return Err(EOPNOTSUPP);
    }
    inode.check_owner()?;
    let now = now();
    inode.change(|meta| {
        meta.mode = meta.mode & S_IFMT | mode & 0o7777;
        meta.ctime = now;
    })?;
    Ok(0)
}

/// `/proc` and `/sys` keep no attributes.
fn changeable(inode: &Inode) -> Result<()> {
    if matches!(inode.sup.magic, proc::PROC_MAGIC | proc::SYSFS_MAGIC) {
        Err(EPERM)
    } else {
        Ok(())
    }
}

/// `fchmod(2)`.
pub fn fchmod(fd: i32, mode: u32) -> SysResult {
    let open = file::get(fd)?;
    if open.flags.get() & O_PATH != 0 {
        return Err(EBADF);
    }
    chmod(&path::inode_of(&open).ok_or(EINVAL)?, mode)
}

/// `fchmodat(2)`.
pub fn fchmodat(dirfd: i32, path: u64, mode: u32, at_flags: u32) -> SysResult {
    if at_flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    chmod(&inode_at(dirfd, path, at_flags)?, mode)
}

fn chown(inode: &Rc<Inode>, uid: u32, gid: u32) -> SysResult {
    const KEEP: u32 = u32::MAX;
    const SUID_SGID: u32 = 0o6000;
    changeable(inode)?;
    let (caller, group) = sched::credentials();
    let old = inode.meta.get();
    let gives_away = uid != KEEP && uid != old.uid || gid != KEEP && gid != old.gid && gid != group;
    if caller != 0 && (caller != old.uid || gives_away) {
        return Err(EPERM);
    }
    let now = now();
    inode.change(|meta| {
        meta.uid = if uid == KEEP { meta.uid } else { uid };
        meta.gid = if gid == KEEP { meta.gid } else { gid };
        if meta.mode & S_IFMT != S_IFDIR && meta.mode & 0o111 != 0 {
            meta.mode &= !SUID_SGID;
        }
        meta.ctime = now;
    })?;
    Ok(0)
}

/// `fchown(2)`.
pub fn fchown(fd: i32, uid: u32, gid: u32) -> SysResult {
    let open = file::get(fd)?;
    if open.flags.get() & O_PATH != 0 {
        return Err(EBADF);
    }
    chown(&path::inode_of(&open).ok_or(EINVAL)?, uid, gid)
}

/// `fchownat(2)`.
pub fn fchownat(dirfd: i32, path: u64, uid: u32, gid: u32, at_flags: u32) -> SysResult {
    if at_flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    chown(&inode_at(dirfd, path, at_flags)?, uid, gid)
}

/// New times of a file; None leaves one as it is.
#[derive(Clone, Copy)]
struct Times {
    atime: Option<Timespec>,
    mtime: Option<Timespec>,
    /// Both are simply "now", which anyone who may write can set.
    touch: bool,
}

impl Times {
    fn now() -> Self {
        Self {
            atime: Some(now()),
            mtime: Some(now()),
            touch: true,
        }
    }

    fn exact(atime: Timespec, mtime: Timespec) -> Self {
        Self {
            atime: Some(atime),
            mtime: Some(mtime),
            touch: false,
        }
    }
}

fn set_times(inode: &Rc<Inode>, times: Times) -> SysResult {
    changeable(inode)?;
    if times.atime.is_none() && times.mtime.is_none() {
        return Ok(0);
    }
    let owner = inode.check_owner();
    if times.touch {
        owner.or_else(|_| inode.check(may::WRITE))?;
    } else {
        owner?;
    }
    let now = now();
    inode.change(|meta| {
        meta.atime = times.atime.unwrap_or(meta.atime);
        meta.mtime = times.mtime.unwrap_or(meta.mtime);
        meta.ctime = now;
    })?;
    Ok(0)
}

/// `utimensat(2)`; a null path means the descriptor itself.
pub fn utimensat(dirfd: i32, path: u64, times: u64, at_flags: u32) -> SysResult {
    const UTIME_NOW: i64 = 0x3fff_ffff;
    const UTIME_OMIT: i64 = 0x3fff_fffe;
    if at_flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    let times = if times == 0 {
        Times::now()
    } else {
        let pair: [Timespec; 2] = user::read(times)?;
        let time = |t: Timespec| match t.nsec {
            UTIME_NOW => Ok(Some(now())),
            UTIME_OMIT => Ok(None),
            0..1_000_000_000 => Ok(Some(t)),
            _ => Err(EINVAL),
        };
        Times {
            atime: time(pair[0])?,
            mtime: time(pair[1])?,
            touch: pair.iter().all(|t| t.nsec == UTIME_NOW),
        }
    };
    let at_flags = if path == 0 {
        at_flags | AT_EMPTY_PATH
    } else {
        at_flags
    };
    if path == 0 && dirfd == AT_FDCWD {
        return Err(EFAULT);
    }
    set_times(&inode_at(dirfd, path, at_flags)?, times)
}

/// `futimesat(2)` and `utimes(2)`: microseconds.
pub fn futimesat(dirfd: i32, path: u64, times: u64) -> SysResult {
    let times = if times == 0 {
        Times::now()
    } else {
        let [a_sec, a_usec, m_sec, m_usec]: [i64; 4] = user::read(times)?;
        let time = |sec, usec: i64| match usec {
            0..1_000_000 => Ok(Timespec {
                sec,
                nsec: usec * 1000,
            }),
            _ => Err(EINVAL),
        };
        Times::exact(time(a_sec, a_usec)?, time(m_sec, m_usec)?)
    };
    set_times(&inode_at(dirfd, path, 0)?, times)
}

/// `utime(2)`: seconds.
pub fn utime(path: u64, times: u64) -> SysResult {
    let times = if times == 0 {
        Times::now()
    } else {
        let [atime, mtime]: [i64; 2] = user::read(times)?;
        let time = |sec| Timespec { sec, nsec: 0 };
        Times::exact(time(atime), time(mtime))
    };
    set_times(&inode_at(AT_FDCWD, path, 0)?, times)
}

/// `truncate(2)`.
pub fn truncate(path: u64, size: i64) -> SysResult {
    let size = u64::try_from(size).map_err(|_| EINVAL)?;
    let inode = inode_at(AT_FDCWD, path, 0)?;
    if inode.is_dir() {
        return Err(EISDIR);
    }
    inode.check(may::WRITE)?;
    inode.sup.check_writable()?;
    inode.body().ok_or(EINVAL)?.truncate(size)?;
    inode.touch();
    Ok(0)
}

/// `ftruncate(2)`.
pub fn ftruncate(fd: i32, size: i64) -> SysResult {
    let size = u64::try_from(size).map_err(|_| EINVAL)?;
    let open = file::get(fd)?;
    if open.flags.get() & O_PATH != 0 {
        return Err(EBADF);
    }
    if !open.writable() {
        return Err(EINVAL);
    }
    fingerprint::number(size);
    open.file.truncate(size)?;
    Ok(0)
}

/// `umask(2)`.
pub fn umask(mask: u32) -> SysResult {
    Ok(u64::from(state::set_umask(mask)))
}

/// Layout of a directory entry: `getdents` has the type in the last byte, `getdents64` before the name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `struct linux_dirent`.
    Old,
    /// `struct linux_dirent64`.
    New,
}

/// `getdents64(2)` and `getdents(2)`.
pub fn getdents(fd: i32, buf: u64, len: usize, layout: Layout) -> SysResult {
    /// More than this is not filled in one call, so that a huge buffer is not populated for nothing.
    const MOST: usize = 1 << 17;
    let open = file::get(fd)?;
    if open.flags.get() & O_PATH != 0 {
        return Err(EBADF);
    }
    let file = open
        .file
        .as_any()
        .downcast_ref::<InodeFile>()
        .ok_or(ENOTDIR)?;
    // Filled in memory of the kernel: a directory on a disk may have to be waited for.
    let mut out = alloc::vec![0; len.min(MOST)];
    let mut done = 0;
    let mut full = false;
    let mut position = open.position.get();
    file.inode.list(position, &mut |entry: Listed<'_>| {
        let header = if layout == Layout::New { 19 } else { 18 };
        let tail = if layout == Layout::New { 1 } else { 2 };
        let size = (header + entry.name.len() + tail).next_multiple_of(8);
        let Some(record) = out.get_mut(done..done + size) else {
            full = true;
            return false;
        };
        record.fill(0);
        record[0..8].copy_from_slice(&entry.ino.to_le_bytes());
        record[8..16].copy_from_slice(&(entry.position + 1).to_le_bytes());
        record[16..18].copy_from_slice(&(size as u16).to_le_bytes());
        record[header..header + entry.name.len()].copy_from_slice(entry.name);
        match layout {
            Layout::New => record[18] = entry.d_type,
            Layout::Old => record[size - 1] = entry.d_type,
        }
        done += size;
        position = entry.position + 1;
        true
    })?;
    if done == 0 && full {
        return Err(EINVAL);
    }
    user::copy_out(buf, &out[..done])?;
    open.position.set(position);
    fingerprint::content(&out[..done]);
    Ok(done as u64)
}
