//! Calls on names: opening, making, removing, renaming, linking, and where the process stands.

use super::inode::{can_mknod, may};
use super::open::{self, InodeFile, Place};
use super::path::{self, *};
use super::pipe::PipeEnd;
use super::tree::{self, RENAME_EXCHANGE, RENAME_NOREPLACE};
use super::{anon, contents::seal, inode::Inode, state};
use crate::errno::*;
use crate::file::{self, OpenFile, flags::*};
use crate::{fingerprint, sched, user};
use alloc::rc::Rc;
use alloc::vec::Vec;
use quorate_abi::image::{S_IFMT, S_IFREG};

/// `openat(2)`.
pub fn openat(dirfd: i32, path: u64, flags: u32, mode: u32) -> SysResult {
    let path = user::path(path)?;
    fingerprint::content(&path);
    // Without O_CREAT the mode is whatever was in the register: maybe an address (R8).
    let shown = if flags & crate::file::flags::O_CREAT != 0 {
        mode
    } else {
        0
    };
    fingerprint::number(u64::from(flags) << 32 | u64::from(shown));
    let open = open::open_at(dirfd, &path, flags, mode & 0o7777)?;
    anon::install(open, flags & O_CLOEXEC != 0)
}

/// `pipe2(2)`.
pub fn pipe2(fds: u64, how: u32) -> SysResult {
    if how & !(O_CLOEXEC | O_NONBLOCK | O_DIRECT) != 0 {
        return Err(EINVAL);
    }
    if how & O_DIRECT != 0 {
        // Packet mode would change what reads return; better not to have it than to ignore it.
        return Err(EINVAL);
    }
    let pipe = super::pipe::Pipe::new();
    let ino = state::anonymous_ino();
    let status = how & O_NONBLOCK;
    let reader = OpenFile::new(PipeEnd::new(&pipe, O_RDONLY, None, ino), O_RDONLY | status);
    let writer = OpenFile::new(PipeEnd::new(&pipe, O_WRONLY, None, ino), O_WRONLY | status);
    let cloexec = how & O_CLOEXEC != 0;
    let first = file::table().insert(reader, cloexec, 0)?;
    let second = file::table().insert(writer, cloexec, 0);
    let written = second
        .and_then(|second| user::write(fds, [first, second]).inspect_err(|_| take_back(second)));
    written.inspect_err(|_| take_back(first))?;
    Ok(0)
}

fn take_back(fd: i32) {
    let open = file::table().remove(fd);
    drop(open);
}

/// `memfd_create(2)`.
pub fn memfd_create(name: u64, how: u32) -> SysResult {
    const CLOEXEC: u32 = 1;
    const ALLOW_SEALING: u32 = 2;
    const NOEXEC_SEAL: u32 = 8;
    const EXEC: u32 = 0x10;
    const MAX_NAME: usize = 250;
    if how & !(CLOEXEC | ALLOW_SEALING | NOEXEC_SEAL | EXEC) != 0 {
        return Err(EINVAL);
    }
    let name = user::cstr(name, MAX_NAME, EINVAL)?;
    let mode = if how & NOEXEC_SEAL != 0 { 0o666 } else { 0o777 };
    let inode = Inode::new_regular(&state::memfd(), mode)?;
    inode.update(|meta| meta.nlink = 0);
    if how & (ALLOW_SEALING | NOEXEC_SEAL) == 0
        && let Some(contents) = inode.contents()
    {
        contents.seals.set(seal::SEAL);
    }
    let mut label = b"/memfd:".to_vec();
    label.extend_from_slice(&name);
    label.extend_from_slice(b" (deleted)");
    let file = InodeFile::new(inode, Place::Label(label.into()), false);
    anon::install(
        OpenFile::new(file, O_RDWR | O_LARGEFILE),
        how & CLOEXEC != 0,
    )
}

fn walk_new(dirfd: i32, path: u64) -> Result<Walked> {
    let path = user::path(path)?;
    fingerprint::content(&path);
    path::walk(dirfd, &path, false)
}

/// `mkdirat(2)`.
pub fn mkdirat(dirfd: i32, path: u64, mode: u32) -> SysResult {
    tree::mkdir(&walk_new(dirfd, path)?, mode)?;
    Ok(0)
}

/// `mknodat(2)`: regular files, named pipes and socket names; devices are the image's business (`EPERM`).
pub fn mknodat(dirfd: i32, path: u64, mode: u32) -> SysResult {
    let mode = if mode & S_IFMT == 0 {
        mode | S_IFREG
    } else {
        mode
    };
    if !can_mknod(mode) {
        return Err(EPERM);
    }
    let at = walk_new(dirfd, path)?;
    if at.slash && matches!(at.target, Target::Missing) {
        return Err(ENOENT);
    }
    tree::make(&at, mode)?;
    Ok(0)
}

/// `unlinkat(2)`.
pub fn unlinkat(dirfd: i32, path: u64, at_flags: u32) -> SysResult {
    if at_flags & !AT_REMOVEDIR != 0 {
        return Err(EINVAL);
    }
    let at = walk_new(dirfd, path)?;
    if at_flags & AT_REMOVEDIR != 0 {
        tree::rmdir(at)?;
    } else {
        tree::unlink(at)?;
    }
    Ok(0)
}

/// `renameat2(2)`.
pub fn renameat2(from_fd: i32, from: u64, to_fd: i32, to: u64, how: u32) -> SysResult {
    let both = RENAME_NOREPLACE | RENAME_EXCHANGE;
    if how & !both != 0 || how & both == both {
        return Err(EINVAL);
    }
    let from = walk_new(from_fd, from)?;
    let to = walk_new(to_fd, to)?;
    tree::rename(from, to, how)?;
    Ok(0)
}

/// `linkat(2)`.
pub fn linkat(from_fd: i32, from: u64, to_fd: i32, to: u64, at_flags: u32) -> SysResult {
    if at_flags & !(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    let follow = at_flags & AT_SYMLINK_FOLLOW != 0;
    let how = at_flags & AT_EMPTY_PATH | if follow { 0 } else { AT_SYMLINK_NOFOLLOW };
    let Target::Inode(inode) = path::target_at(from_fd, from, how)? else {
        return Err(EXDEV);
    };
    tree::link(&inode, &walk_new(to_fd, to)?)?;
    Ok(0)
}

/// `symlinkat(2)`.
pub fn symlinkat(target: u64, dirfd: i32, path: u64) -> SysResult {
    let target = user::path(target)?;
    fingerprint::content(&target);
    tree::symlink(&walk_new(dirfd, path)?, &target)?;
    Ok(0)
}

/// `readlinkat(2)`.
pub fn readlinkat(dirfd: i32, path: u64, buf: u64, len: i32) -> SysResult {
    if len <= 0 {
        return Err(EINVAL);
    }
    let target = path::target_at(dirfd, path, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)?;
    let Target::Inode(inode) = target else {
        return Err(EINVAL);
    };
    let text = tree::readlink(&inode)?;
    let text = &text[..text.len().min(len as usize)];
    user::copy_out(buf, text)?;
    fingerprint::content(text);
    Ok(text.len() as u64)
}

/// `chdir(2)`.
pub fn chdir(path: u64) -> SysResult {
    enter(path::find(AT_FDCWD, &user::path(path)?, true)?)
}

/// `fchdir(2)`.
pub fn fchdir(fd: i32) -> SysResult {
    let inode = path::inode_of(&*file::get(fd)?).ok_or(ENOTDIR)?;
    enter(inode)
}

fn enter(inode: Rc<Inode>) -> SysResult {
    if !inode.is_dir() {
        return Err(ENOTDIR);
    }
    inode.check(may::EXEC)?;
    state::set_cwd(inode);
    Ok(0)
}

/// `chroot(2)`.
pub fn chroot(path: u64) -> SysResult {
    let inode = path::find(AT_FDCWD, &user::path(path)?, true)?;
    if !inode.is_dir() {
        return Err(ENOTDIR);
    }
    inode.check(may::EXEC)?;
    if sched::credentials().0 != 0 {
        return Err(EPERM);
    }
    state::set_root(inode);
    Ok(0)
}

/// `getcwd(2)`: returns the length with the NUL.
pub fn getcwd(buf: u64, size: usize) -> SysResult {
    let cwd = state::cwd();
    let mut path: Vec<u8> = match cwd.path_below(&state::root()) {
        Some(path) => path,
        None if cwd.parent().is_none() && !cwd.mounted.get() => return Err(ENOENT),
        // Outside of a `chroot`.
        None => b"(unreachable)".to_vec(),
    };
    path.push(0);
    if path.len() > size {
        return Err(ERANGE);
    }
    user::copy_out(buf, &path)?;
    fingerprint::content(&path);
    Ok(path.len() as u64)
}

/// `faccessat2(2)`; `access` and `faccessat` are it with fewer arguments.
pub fn faccessat2(dirfd: i32, path: u64, mode: u32, at_flags: u32) -> SysResult {
    const AT_EACCESS: u32 = 0x200;
    if mode & !7 != 0 || at_flags & !(AT_EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    match path::target_at(dirfd, path, at_flags)? {
        Target::Inode(inode) => inode.check(mode)?,
        Target::File(_) => {}
        Target::Missing => return Err(ENOENT),
    }
    Ok(0)
}
