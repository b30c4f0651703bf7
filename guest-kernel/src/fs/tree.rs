//! Changes of the tree: making, linking, renaming and removing names.

use super::disk::tree::{self as disk, New};
use super::inode::{Inode, Kind, Meta, may};
use super::path::{NAME_MAX, Target, Walked};
use super::pipe::Pipe;
use super::state;
use crate::errno::*;
use crate::sched;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::cell::RefCell;
use quorate_abi::image::{S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG};

/// Most links of one file.
const LINK_MAX: u32 = 65000;
/// Sticky bit of a directory: only owners remove.
const S_ISVTX: u32 = 0o1000;
/// Set-group-id bit of a directory: new entries take over its group.
const S_ISGID: u32 = 0o2000;

fn check_new(at: &Walked) -> Result<()> {
    match at.target {
        Target::Missing => {}
        _ => return Err(EEXIST),
    }
    if at.name.len() > NAME_MAX {
        return Err(ENAMETOOLONG);
    }
    if at.dir.place.borrow().is_none() && !at.dir.same(&state::root()) && !at.dir.mounted.get() {
        // The directory was removed while somebody still works in it.
        return Err(ENOENT);
    }
    at.dir.check(may::WRITE | may::EXEC)?;
    at.dir.sup.check_writable()
}

/// Attributes of something new in `dir`.
fn inherited(dir: &Inode, mut meta: Meta) -> Meta {
    let of_dir = dir.meta.get();
    if of_dir.mode & S_ISGID != 0 {
        meta.gid = of_dir.gid;
        if meta.mode & S_IFMT == S_IFDIR {
            meta.mode |= S_ISGID;
        }
    }
    meta
}

fn add(at: &Walked, inode: Rc<Inode>) -> Result<Rc<Inode>> {
    inode.meta.set(inherited(&at.dir, inode.meta.get()));
    at.dir.directory()?.insert(&at.dir, &at.name, &inode)?;
    if inode.is_dir() {
        at.dir.update(|meta| meta.nlink += 1);
    }
    at.dir.touch();
    Ok(inode)
}

/// Makes a regular file, a named pipe or a socket's name where the walk found nothing.
///
/// # Errors
/// `EEXIST`, `EACCES`, `ENOSPC`, …
pub fn make(at: &Walked, mode: u32) -> Result<Rc<Inode>> {
    check_new(at)?;
    let sup = &at.dir.sup;
    let masked = mode & S_IFMT | mode & 0o7777 & !state::umask();
    if at.dir.disk.is_some() {
        return on_disk(at, Meta::new(masked), &New::Mode);
    }
    at.dir.directory()?;
    let inode = match mode & S_IFMT {
        S_IFREG => Inode::new_regular(sup, masked)?,
        S_IFIFO => Inode::new(
            sup,
            sup.next_ino(),
            Meta::new(masked),
            Kind::Fifo(Pipe::new()),
        )?,
        super::inode::S_IFSOCK => {
            let kind = Kind::Socket(RefCell::new(None));
            Inode::new(sup, sup.next_ino(), Meta::new(masked), kind)?
        }
        _ => return Err(EPERM),
    };
    add(at, inode)
}

fn on_disk(at: &Walked, meta: Meta, what: &New<'_>) -> Result<Rc<Inode>> {
    let inode = disk::make(at, &inherited(&at.dir, meta), what)?;
    at.dir.touch();
    Ok(inode)
}

/// Makes the name of a bound socket; `object` is found again with [`socket_object`] while it lives.
///
/// # Errors
/// As [`make`]; the caller turns `EEXIST` into `EADDRINUSE`.
pub fn make_socket(at: &Walked, mode: u32, object: &Rc<dyn Any>) -> Result<()> {
    let inode = make(at, super::inode::S_IFSOCK | mode)?;
    if let Kind::Socket(slot) = &inode.kind {
        *slot.borrow_mut() = Some(Rc::downgrade(object));
    }
    Ok(())
}

/// The object behind a socket's name.
///
/// # Errors
/// `ECONNREFUSED` if it is no socket or nobody is bound any more.
pub fn socket_object(inode: &Inode) -> Result<Rc<dyn Any>> {
    match &inode.kind {
        Kind::Socket(slot) => slot
            .borrow()
            .as_ref()
            .and_then(Weak::upgrade)
            .ok_or(ECONNREFUSED),
        _ => Err(ECONNREFUSED),
    }
}

/// `mkdir`.
///
/// # Errors
/// As [`make`].
pub fn mkdir(at: &Walked, mode: u32) -> Result<Rc<Inode>> {
    check_new(at)?;
    if at.dir.meta.get().nlink >= LINK_MAX {
        return Err(EMLINK);
    }
    // Of the special bits mkdir takes only the sticky one.
    let mode = mode & 0o1777 & !state::umask();
    if at.dir.disk.is_some() {
        return on_disk(at, Meta::new(S_IFDIR | mode), &New::Mode);
    }
    at.dir.directory()?;
    add(at, Inode::new_directory(&at.dir.sup, mode)?)
}

/// `symlink`.
///
/// # Errors
/// As [`make`].
pub fn symlink(at: &Walked, target: &[u8]) -> Result<()> {
    if target.is_empty() || at.slash {
        return Err(ENOENT);
    }
    check_new(at)?;
    let sup = &at.dir.sup;
    let meta = Meta::new(S_IFLNK | 0o777);
    if at.dir.disk.is_some() {
        on_disk(at, meta, &New::Link(target))?;
        return Ok(());
    }
    at.dir.directory()?;
    let inode = Inode::new(sup, sup.next_ino(), meta, Kind::Symlink(target.into()))?;
    add(at, inode)?;
    Ok(())
}

/// `link`: another name for `inode`.
///
/// # Errors
/// `EPERM` for a directory, `EXDEV`, and as [`make`].
pub fn link(inode: &Rc<Inode>, at: &Walked) -> Result<()> {
    check_new(at)?;
    if at.slash {
        return Err(ENOENT);
    }
    if inode.sup.dev != at.dir.sup.dev {
        return Err(EXDEV);
    }
    if inode.is_dir() {
        return Err(EPERM);
    }
    if inode.meta.get().nlink >= LINK_MAX {
        return Err(EMLINK);
    }
    if inode.disk.is_some() {
        disk::link(inode, at)?;
        at.dir.touch();
        return Ok(());
    }
    add(at, inode.clone())?;
    let now = super::inode::now();
    inode.update(|meta| {
        meta.nlink += 1;
        meta.ctime = now;
    });
    Ok(())
}

/// Whether the calling process may take `inode` out of `dir`.
fn check_removal(dir: &Rc<Inode>, inode: &Inode) -> Result<()> {
    dir.check(may::WRITE | may::EXEC)?;
    dir.sup.check_writable()?;
    if dir.disk.is_none() {
        dir.directory()?;
    }
    let (uid, _) = sched::credentials();
    let meta = dir.meta.get();
    let sticky = meta.mode & S_ISVTX != 0;
    if sticky && uid != 0 && uid != meta.uid && uid != inode.meta.get().uid {
        return Err(EPERM);
    }
    if inode.mounted.get() {
        return Err(EBUSY);
    }
    Ok(())
}

/// An inode has lost a name.
fn dropped(inode: &Rc<Inode>) {
    let now = super::inode::now();
    inode.update(|meta| {
        meta.nlink = meta.nlink.saturating_sub(1);
        meta.ctime = now;
    });
    if inode.is_dir() {
        inode.update(|meta| meta.nlink = 0);
        // Also ends the reference cycle between a directory and its parent.
        let place = inode.place.borrow_mut().take();
        drop(place);
    }
    if inode.meta.get().nlink == 0 {
        inode.sup.forget(inode.ino);
    }
}

/// `unlink`.
///
/// # Errors
/// `EISDIR`, `ENOENT`, `EACCES`, `EBUSY`, …
pub fn unlink(at: Walked) -> Result<()> {
    if at.is_special() {
        return Err(EISDIR);
    }
    let (dir, name) = (at.dir.clone(), at.name.clone());
    let inode = at.inode()?;
    check_removal(&dir, &inode)?;
    if inode.is_dir() {
        return Err(EISDIR);
    }
    if dir.disk.is_some() {
        disk::unlink(&dir, &name, &inode)?;
        dir.touch();
        return Ok(());
    }
    dir.directory()?.remove(&dir, &name)?;
    dir.touch();
    dropped(&inode);
    Ok(())
}

/// `rmdir`.
///
/// # Errors
/// `ENOTEMPTY`, `ENOTDIR`, `EINVAL` for `.`, …
pub fn rmdir(at: Walked) -> Result<()> {
    match &*at.name {
        b"." if at.dir.same(&state::root()) => return Err(EBUSY),
        b"." => return Err(EINVAL),
        b".." => return Err(ENOTEMPTY),
        _ => {}
    }
    let (dir, name) = (at.dir.clone(), at.name.clone());
    let inode = at.inode()?;
    check_removal(&dir, &inode)?;
    if dir.disk.is_some() {
        disk::rmdir(&dir, &name, &inode)?;
        dir.touch();
        return Ok(());
    }
    if !inode.directory()?.is_empty()? {
        return Err(ENOTEMPTY);
    }
    dir.directory()?.remove(&dir, &name)?;
    dir.update(|meta| meta.nlink = meta.nlink.saturating_sub(1));
    dir.touch();
    dropped(&inode);
    Ok(())
}

/// Do not replace (`renameat2`).
pub const RENAME_NOREPLACE: u32 = 1;
/// Swap the two names (`renameat2`).
pub const RENAME_EXCHANGE: u32 = 2;

/// `rename`.
///
/// # Errors
/// `EXDEV`, `EINVAL` (into itself), `ENOTEMPTY`, `EISDIR`, `ENOTDIR`, `EBUSY`, `EEXIST`, …
pub fn rename(from: Walked, to: Walked, how: u32) -> Result<()> {
    if from.is_special() || to.is_special() {
        return Err(EBUSY);
    }
    if from.dir.sup.dev != to.dir.sup.dev {
        return Err(EXDEV);
    }
    let (from_dir, from_name) = (from.dir.clone(), from.name.clone());
    let (to_dir, to_name, to_slash) = (to.dir.clone(), to.name.clone(), to.slash);
    let moved = from.inode()?;
    check_removal(&from_dir, &moved)?;
    to_dir.check(may::WRITE | may::EXEC)?;
    let is_on_disk = to_dir.disk.is_some();
    if !is_on_disk {
        to_dir.directory()?;
    }
    if moved.is_dir() && is_at_or_below(&to_dir, &moved) {
        return Err(EINVAL);
    }
    if to_slash && !moved.is_dir() {
        return Err(ENOTDIR);
    }
    let replaced = match to.target {
        Target::Missing => None,
        Target::Inode(inode) => Some(inode),
        Target::File(_) => return Err(EBUSY),
    };
    match &replaced {
        Some(_) if how & RENAME_NOREPLACE != 0 => return Err(EEXIST),
        None if how & RENAME_EXCHANGE != 0 => return Err(ENOENT),
        // Two names of one file: POSIX wants nothing done.
        Some(other) if other.same(&moved) => return Ok(()),
        Some(other) => {
            check_removal(&to_dir, other)?;
            if how & RENAME_EXCHANGE != 0 {
                if other.is_dir() && is_at_or_below(&from_dir, other) {
                    return Err(EINVAL);
                }
                if is_on_disk {
                    return rename_on_disk(
                        &from_dir,
                        &from_name,
                        &to_dir,
                        &to_name,
                        &moved,
                        Some(other),
                        how,
                    );
                }
                return exchange((&from_dir, &from_name, &moved), (&to_dir, &to_name, other));
            }
            match (moved.is_dir(), other.is_dir()) {
                (true, false) => return Err(ENOTDIR),
                (false, true) => return Err(EISDIR),
                (true, true) if is_at_or_below(&from_dir, other) => return Err(ENOTEMPTY),
                (true, true) if !is_on_disk && !other.directory()?.is_empty()? => {
                    return Err(ENOTEMPTY);
                }
                _ => {}
            }
        }
        None => check_new(&Walked {
            target: Target::Missing,
            dir: to_dir.clone(),
            name: to_name.clone(),
            slash: false,
        })?,
    }
    if is_on_disk {
        let replaced = replaced.as_ref();
        return rename_on_disk(
            &from_dir, &from_name, &to_dir, &to_name, &moved, replaced, how,
        );
    }
    // The new name first: if there is no space for it, nothing has changed.
    to_dir.directory()?.insert(&to_dir, &to_name, &moved)?;
    if let Err(error) = from_dir.directory()?.remove(&from_dir, &from_name) {
        // No space to hide the image's entry: take the new name back.
        match &replaced {
            Some(other) => to_dir.directory()?.insert(&to_dir, &to_name, other)?,
            None => to_dir.directory()?.remove(&to_dir, &to_name)?,
        }
        if moved.is_dir() {
            *moved.place.borrow_mut() = Some((from_dir, from_name));
        }
        return Err(error);
    }
    if moved.is_dir() {
        from_dir.update(|meta| meta.nlink = meta.nlink.saturating_sub(1));
        to_dir.update(|meta| meta.nlink += 1);
    }
    if let Some(other) = replaced {
        if other.is_dir() {
            to_dir.update(|meta| meta.nlink = meta.nlink.saturating_sub(1));
        }
        dropped(&other);
    }
    let now = super::inode::now();
    moved.update(|meta| meta.ctime = now);
    from_dir.touch();
    to_dir.touch();
    Ok(())
}

fn rename_on_disk(
    from_dir: &Rc<Inode>,
    from_name: &[u8],
    to_dir: &Rc<Inode>,
    to_name: &[u8],
    moved: &Rc<Inode>,
    replaced: Option<&Rc<Inode>>,
    how: u32,
) -> Result<()> {
    let place = |dir, name| disk::Place { dir, name };
    let (from, to) = (place(from_dir, from_name), place(to_dir, to_name));
    disk::rename(&from, &to, moved, replaced, how)?;
    let now = super::inode::now();
    moved.update(|meta| meta.ctime = now);
    from_dir.touch();
    to_dir.touch();
    Ok(())
}

type Name<'a> = (&'a Rc<Inode>, &'a [u8], &'a Rc<Inode>);

fn exchange((dir_a, name_a, a): Name<'_>, (dir_b, name_b, b): Name<'_>) -> Result<()> {
    // Both names exist. A name that is only in the image needs an object; a failure then leaves `a` with two names for
    // a moment, hence the way back.
    dir_b.directory()?.insert(dir_b, name_b, a)?;
    if let Err(error) = dir_a.directory()?.insert(dir_a, name_a, b) {
        dir_b.directory()?.insert(dir_b, name_b, b)?;
        if a.is_dir() {
            *a.place.borrow_mut() = Some((dir_a.clone(), name_a.into()));
        }
        return Err(error);
    }
    if a.is_dir() != b.is_dir() && !dir_a.same(dir_b) {
        let (gains, loses) = if a.is_dir() {
            (dir_b, dir_a)
        } else {
            (dir_a, dir_b)
        };
        gains.update(|meta| meta.nlink += 1);
        loses.update(|meta| meta.nlink = meta.nlink.saturating_sub(1));
    }
    dir_a.touch();
    dir_b.touch();
    Ok(())
}

fn is_at_or_below(dir: &Rc<Inode>, ancestor: &Rc<Inode>) -> bool {
    let mut at = Some(dir.clone());
    while let Some(inode) = at {
        if inode.same(ancestor) {
            return true;
        }
        at = inode.parent();
    }
    false
}

/// The target of a symbolic link, as `readlink` gives it.
///
/// # Errors
/// `EINVAL` if it is none.
pub fn readlink(inode: &Inode) -> Result<Vec<u8>> {
    match &inode.kind {
        Kind::Symlink(target) => Ok(target.to_vec()),
        Kind::ProcLink(link) => link.text(),
        _ => Err(EINVAL),
    }
}
