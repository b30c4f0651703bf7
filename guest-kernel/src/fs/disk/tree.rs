//! Changes of a tree on a volume: what `tree` does for files in memory. Permissions have been checked there; here everything is looked
//! at once more under the volume's lock, since threads may have waited in between.

use super::dir::DiskDir;
use super::node::{self, Sides, context, device, file_name, permissions};
use super::volume::{Guard, number};
use crate::errno::*;
use crate::fs::inode::{Inode, Kind, Meta, S_IFSOCK};
use crate::fs::path::Walked;
use crate::fs::tree::{RENAME_EXCHANGE, RENAME_NOREPLACE};
use alloc::rc::Rc;
use quorate_abi::image::{S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG};
use rsext4::{RenameOptions, SpecialInodeKind};

fn dir_of(inode: &Inode) -> Result<&DiskDir> {
    match &inode.kind {
        Kind::DiskDir(dir) => Ok(dir),
        _ => Err(ENOTDIR),
    }
}

/// What something new is.
pub enum New<'n> {
    /// By its type bits: regular file, named pipe, socket, directory.
    Mode,
    /// A symbolic link.
    Link(&'n [u8]),
}

/// Makes the entry that the walk did not find.
///
/// # Errors
/// `EEXIST`, `EROFS`, `ENOSPC`, `EIO`.
pub fn make(at: &Walked, meta: &Meta, what: &New<'_>) -> Result<Rc<Inode>> {
    let (parent, name) = (&at.dir, &*at.name);
    let dir = dir_of(parent)?;
    let volume = parent.sup.volume()?;
    let guard = volume.lock();
    let into = copied(parent, &guard)?;
    if dir.sides(name).is_some() {
        return Err(EEXIST);
    }
    if !dir.has_room() {
        return Err(ENOSPC);
    }
    let hides = dir.lower(name).is_some();
    clear_white(dir, into, name, &guard)?;
    let who = context(meta.uid, meta.gid);
    let mode = permissions(meta.mode)?;
    let file = file_name(name)?;
    let info = guard.change(|fs| {
        let into = number(into)?;
        match (what, meta.mode & S_IFMT) {
            (New::Link(target), _) => fs.create_symlink(who, into, file, target),
            (_, S_IFDIR) => fs.create_directory(who, into, file, mode),
            (_, S_IFREG) => fs.create_regular_file(who, into, file, mode),
            (_, S_IFIFO) => fs.create_special_inode(who, into, file, mode, SpecialInodeKind::Fifo),
            (_, S_IFSOCK) => {
                fs.create_special_inode(who, into, file, mode, SpecialInodeKind::Socket)
            }
            _ => Err(rsext4::Ext4Error::unsupported()),
        }
    })?;
    let upper = info.number.raw();
    if hides && meta.mode & S_IFMT == S_IFDIR {
        node::set_opaque(&guard, upper)?;
    }
    let sides = Sides {
        upper: Some(upper),
        lower: None,
    };
    dir.add(name, sides, meta.mode);
    let inode = node::get(parent, name, sides, Some(&guard))?;
    // The volume keeps seconds; what is known is better.
    inode.update(|m| {
        m.atime = meta.atime;
        m.mtime = meta.mtime;
        m.ctime = meta.ctime;
    });
    if inode.is_dir() {
        parent.update(|meta| meta.nlink += 1);
    }
    Ok(inode)
}

/// The directory's number on the volume, with its entries loaded.
fn copied(parent: &Rc<Inode>, guard: &Guard<'_>) -> Result<u32> {
    if parent.sup.read_only() {
        return Err(EROFS);
    }
    let upper = node::copy_up_locked(parent, guard)?;
    dir_of(parent)?.load(parent, guard)?;
    Ok(upper)
}

fn clear_white(dir: &DiskDir, into: u32, name: &[u8], guard: &Guard<'_>) -> Result<()> {
    if !dir.is_white(name) {
        return Ok(());
    }
    let file = file_name(name)?;
    let gone = guard.change(|fs| fs.unlink(number(into)?, file))?;
    if gone.requires_reap() {
        guard.change(|fs| fs.reap_unlinked_inode(gone.inode))?;
    }
    dir.set_white(name, false);
    Ok(())
}

/// Hides what the image has under a name that is gone.
fn set_white(dir: &DiskDir, from: u32, name: &[u8], guard: &Guard<'_>) -> Result<()> {
    if dir.lower(name).is_none() {
        return Ok(());
    }
    let file = file_name(name)?;
    let kind = SpecialInodeKind::CharacterDevice(device(0)?);
    guard.change(|fs| {
        fs.create_special_inode(
            context(0, 0),
            number(from)?,
            file,
            rsext4::FilePermissions::new(0)?,
            kind,
        )
    })?;
    dir.set_white(name, true);
    Ok(())
}

/// An entry must still be what the walk found.
fn same_entry(dir: &DiskDir, name: &[u8], inode: &Inode) -> Result<Sides> {
    let sides = dir.sides(name).ok_or(ENOENT)?;
    let node = node::of(inode)?;
    let same = match (sides.upper, node.upper()) {
        (Some(a), Some(b)) => a == b,
        _ => sides.lower.is_some() && sides.lower == node.lower,
    };
    if same { Ok(sides) } else { Err(ENOENT) }
}

/// An inode has lost a name.
fn lost_name(inode: &Rc<Inode>) {
    let now = crate::fs::inode::now();
    inode.update(|meta| {
        meta.nlink = if inode.is_dir() {
            0
        } else {
            meta.nlink.saturating_sub(1)
        };
        meta.ctime = now;
    });
    if inode.is_dir() {
        let place = inode.place.borrow_mut().take();
        drop(place);
    }
    if inode.meta.get().nlink == 0 {
        inode.sup.forget(inode.ino);
        if let Some(upper) = inode.disk.as_ref().and_then(|d| d.upper()) {
            inode.sup.forget(u64::from(upper));
            if let Ok(volume) = inode.sup.volume() {
                volume.orphaned(upper);
            }
        }
    }
}

/// `unlink`; `inode` is no directory.
///
/// # Errors
/// `ENOENT`, `EROFS`, `EIO`.
pub fn unlink(parent: &Rc<Inode>, name: &[u8], inode: &Rc<Inode>) -> Result<()> {
    let dir = dir_of(parent)?;
    let volume = parent.sup.volume()?;
    let guard = volume.lock();
    let from = copied(parent, &guard)?;
    let sides = same_entry(dir, name, inode)?;
    if sides.upper.is_some() {
        let file = file_name(name)?;
        // Reaped when its last user has gone.
        let _ = guard.change(|fs| fs.unlink(number(from)?, file))?;
    }
    dir.remove(name);
    set_white(dir, from, name, &guard)?;
    lost_name(inode);
    Ok(())
}

/// Removes the whiteouts in a directory that is otherwise empty.
fn clear_all_white(dir: &DiskDir, upper: u32, guard: &Guard<'_>) -> Result<()> {
    while let Some(name) = dir.any_white() {
        clear_white(dir, upper, &name, guard)?;
    }
    Ok(())
}

/// `rmdir`.
///
/// # Errors
/// `ENOTEMPTY`, `ENOENT`, `EROFS`, `EIO`.
pub fn rmdir(parent: &Rc<Inode>, name: &[u8], inode: &Rc<Inode>) -> Result<()> {
    let dir = dir_of(parent)?;
    let gone = dir_of(inode)?;
    let volume = parent.sup.volume()?;
    let guard = volume.lock();
    let from = copied(parent, &guard)?;
    let sides = same_entry(dir, name, inode)?;
    gone.load(inode, &guard)?;
    if !gone.is_empty() {
        return Err(ENOTEMPTY);
    }
    if let Some(upper) = sides.upper {
        clear_all_white(gone, upper, &guard)?;
        let file = file_name(name)?;
        let _ = guard.change(|fs| fs.remove_empty_directory(number(from)?, file))?;
    }
    dir.remove(name);
    set_white(dir, from, name, &guard)?;
    parent.update(|meta| meta.nlink = meta.nlink.saturating_sub(1));
    lost_name(inode);
    Ok(())
}

/// `link`: another name for `inode`.
///
/// # Errors
/// `EEXIST`, `EROFS`, `EMLINK`, `ENOSPC`, `EIO`.
pub fn link(inode: &Rc<Inode>, at: &Walked) -> Result<()> {
    let (parent, name) = (&at.dir, &*at.name);
    let dir = dir_of(parent)?;
    let volume = parent.sup.volume()?;
    let guard = volume.lock();
    let into = copied(parent, &guard)?;
    let upper = node::copy_up_locked(inode, &guard)?;
    if dir.sides(name).is_some() {
        return Err(EEXIST);
    }
    clear_white(dir, into, name, &guard)?;
    let file = file_name(name)?;
    guard.change(|fs| fs.hard_link(number(upper)?, number(into)?, file))?;
    let sides = Sides {
        upper: Some(upper),
        lower: None,
    };
    dir.add(name, sides, inode.file_type());
    let now = crate::fs::inode::now();
    inode.update(|meta| {
        meta.nlink += 1;
        meta.ctime = now;
    });
    Ok(())
}

/// A name in a directory, and what it means.
pub struct Place<'p> {
    /// The directory.
    pub dir: &'p Rc<Inode>,
    /// The name.
    pub name: &'p [u8],
}

/// `rename`: `moved` goes from one name to another, where `replaced` is, if anything.
///
/// # Errors
/// `ENOENT`, `EEXIST`, `ENOTEMPTY`, `EROFS`, `ENOSPC`, `EIO`; `EXDEV` for a directory that the image has part of.
pub fn rename(
    from: &Place<'_>,
    to: &Place<'_>,
    moved: &Rc<Inode>,
    replaced: Option<&Rc<Inode>>,
    how: u32,
) -> Result<()> {
    let (from_dir, to_dir) = (dir_of(from.dir)?, dir_of(to.dir)?);
    let volume = from.dir.sup.volume()?;
    let exchange = how & RENAME_EXCHANGE != 0;
    if let (Kind::DiskFile(file), Some(_), false) = (&moved.kind, replaced, exchange) {
        // Who replaces a file by writing a new one and renaming it means the contents, too.
        file.write_back(moved)?;
    }
    let guard = volume.lock();
    let (source, target) = (copied(from.dir, &guard)?, copied(to.dir, &guard)?);
    same_entry(from_dir, from.name, moved)?;
    let other = match replaced {
        Some(other) => Some(same_entry(to_dir, to.name, other)?),
        None if to_dir.sides(to.name).is_some() => return Err(EEXIST),
        None => None,
    };
    let merged = |inode: &Rc<Inode>| {
        inode.is_dir() && inode.disk.as_ref().is_some_and(|d| d.lower.is_some())
    };
    if merged(moved) || exchange && replaced.is_some_and(merged) {
        // Its entries in the image cannot move: as overlayfs, leave it to the program to copy.
        return Err(EXDEV);
    }
    let upper = node::copy_up_locked(moved, &guard)?;
    if let (true, Some(other)) = (exchange, replaced) {
        node::copy_up_locked(other, &guard)?;
    }
    clear_white(to_dir, target, to.name, &guard)?;
    if let (
        Some(other),
        Some(Sides {
            upper: Some(ino), ..
        }),
        false,
    ) = (replaced, other, exchange)
        && let Kind::DiskDir(dir) = &other.kind
    {
        dir.load(other, &guard)?;
        if !dir.is_empty() {
            return Err(ENOTEMPTY);
        }
        clear_all_white(dir, ino, &guard)?;
    }
    let options = match how {
        h if h & RENAME_EXCHANGE != 0 => RenameOptions::EXCHANGE,
        h if h & RENAME_NOREPLACE != 0 => RenameOptions::NO_REPLACE,
        _ => RenameOptions::REPLACE,
    };
    let (old, new) = (file_name(from.name)?, file_name(to.name)?);
    let outcome =
        guard.change(|fs| fs.rename(number(source)?, old, number(target)?, new, options))?;
    debug_assert!(outcome.replaced.is_none() || replaced.is_some());
    let sides = |upper| Sides {
        upper: Some(upper),
        lower: None,
    };
    if moved.is_dir() && to_dir.lower(to.name).is_some() {
        node::set_opaque(&guard, upper)?;
    }
    match (exchange, replaced) {
        (true, Some(other)) => {
            let other_upper = node::of(other)?.upper().ok_or(EIO)?;
            if other.is_dir() && from_dir.lower(from.name).is_some() {
                node::set_opaque(&guard, other_upper)?;
            }
            from_dir.add(from.name, sides(other_upper), other.file_type());
            set_place(other, from);
        }
        _ => {
            from_dir.remove(from.name);
            set_white(from_dir, source, from.name, &guard)?;
            if let Some(other) = replaced {
                if other.is_dir() {
                    to.dir.update(|m| m.nlink = m.nlink.saturating_sub(1));
                }
                lost_name(other);
            }
        }
    }
    to_dir.add(to.name, sides(upper), moved.file_type());
    set_place(moved, to);
    let both = exchange && replaced.is_some_and(|other| other.is_dir());
    if moved.is_dir() && !both {
        from.dir.update(|m| m.nlink = m.nlink.saturating_sub(1));
        to.dir.update(|m| m.nlink += 1);
    } else if both && !moved.is_dir() {
        to.dir.update(|m| m.nlink = m.nlink.saturating_sub(1));
        from.dir.update(|m| m.nlink += 1);
    }
    Ok(())
}

fn set_place(inode: &Rc<Inode>, place: &Place<'_>) {
    if inode.is_dir() {
        *inode.place.borrow_mut() = Some((place.dir.clone(), place.name.into()));
    }
}

/// A regular file without a name (`O_TMPFILE`): made with one, which is taken away at once.
///
/// # Errors
/// As [`make`].
pub fn make_nameless(parent: &Rc<Inode>, meta: &Meta) -> Result<Rc<Inode>> {
    let volume = parent.sup.volume()?;
    let disk = parent.sup.disk.as_ref().ok_or(EXDEV)?;
    let guard = volume.lock();
    let into = copied(parent, &guard)?;
    let name = alloc::format!(".#tmpfile-{}", disk.next_temporary.get());
    disk.next_temporary.set(disk.next_temporary.get() + 1);
    let (who, mode) = (context(meta.uid, meta.gid), permissions(meta.mode)?);
    let file = file_name(name.as_bytes())?;
    let info = guard.change(|fs| {
        let info = fs.create_regular_file(who, number(into)?, file, mode)?;
        let _ = fs.unlink(number(into)?, file)?;
        Ok(info)
    })?;
    let sides = Sides {
        upper: Some(info.number.raw()),
        lower: None,
    };
    let inode = node::make(&parent.sup, sides, &guard)?;
    inode.update(|meta| meta.nlink = 0);
    volume.orphaned(info.number.raw());
    Ok(inode)
}

/// A new symbolic link's attributes.
pub fn link_meta() -> Meta {
    Meta::new(S_IFLNK | 0o777)
}
