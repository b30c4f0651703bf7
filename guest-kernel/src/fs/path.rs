//! From paths to inodes.

use super::inode::{Inode, Kind, may};
use super::open::InodeFile;
use super::state;
use crate::errno::*;
use crate::file::{self, OpenFile};
use crate::user;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// Relative paths start at the working directory.
pub const AT_FDCWD: i32 = -100;
/// Do not follow a symbolic link at the end.
pub const AT_SYMLINK_NOFOLLOW: u32 = 0x100;
/// Remove a directory (`unlinkat`); use effective ids (`faccessat2`).
pub const AT_REMOVEDIR: u32 = 0x200;
/// Follow a symbolic link at the end.
pub const AT_SYMLINK_FOLLOW: u32 = 0x400;
/// Mounting is not triggered (nothing is to be triggered here).
pub const AT_NO_AUTOMOUNT: u32 = 0x800;
/// An empty path means the descriptor itself.
pub const AT_EMPTY_PATH: u32 = 0x1000;

/// Longest name of one entry.
pub const NAME_MAX: usize = 255;
/// Most symbolic links on the way to one file; `ELOOP` beyond.
pub const MAX_LINKS: u32 = 40;

/// What a walk ended at.
pub enum Target {
    /// Nothing has this name.
    Missing,
    /// An inode.
    Inode(Rc<Inode>),
    /// An open file without a name (through `/proc/self/fd`).
    File(Rc<OpenFile>),
}

/// Result of a walk.
pub struct Walked {
    /// The directory that holds (or would hold) the last component.
    pub dir: Rc<Inode>,
    /// The last component; `.` where the path names its directory itself (`/`, `a/..`).
    pub name: Box<[u8]>,
    /// What is there.
    pub target: Target,
    /// The path ended in a slash: only a directory may be meant.
    pub slash: bool,
}

impl Walked {
    /// The inode.
    ///
    /// # Errors
    /// `ENOENT`; `ENXIO` if it is an open file without a name.
    pub fn inode(self) -> Result<Rc<Inode>> {
        match self.target {
            Target::Inode(inode) => Ok(inode),
            Target::Missing => Err(ENOENT),
            Target::File(open) => inode_of(&open).ok_or(ENXIO),
        }
    }

    /// Whether the last component was `.`, `..` or nothing, which cannot be made, removed or renamed.
    pub fn is_special(&self) -> bool {
        matches!(&*self.name, b"." | b"..")
    }
}

/// Where a link leads.
pub enum Jump {
    /// A path to walk.
    Path(Vec<u8>),
    /// Straight to an inode.
    Inode(Rc<Inode>),
    /// Straight to an open file.
    File(Rc<OpenFile>),
}

/// The directory that relative paths start at.
///
/// # Errors
/// `EBADF`, `ENOTDIR`.
pub fn start(dirfd: i32, path: &[u8]) -> Result<Rc<Inode>> {
    if path.first() == Some(&b'/') {
        return Ok(state::root());
    }
    if dirfd == AT_FDCWD {
        return Ok(state::cwd());
    }
    let open = file::get(dirfd)?;
    match open.file.as_any().downcast_ref::<InodeFile>() {
        Some(file) if file.inode.is_dir() => Ok(file.inode.clone()),
        _ => Err(ENOTDIR),
    }
}

/// Walks `path` from `dirfd`. `follow`: whether a symbolic link at the end is followed.
///
/// # Errors
/// `ENOENT` (also for an empty path), `ENOTDIR`, `EACCES`, `ELOOP`, `ENAMETOOLONG`, `EIO`.
pub fn walk(dirfd: i32, path: &[u8], follow: bool) -> Result<Walked> {
    if path.is_empty() {
        return Err(ENOENT);
    }
    let start = start(dirfd, path)?;
    walk_from(start, path, follow)
}

fn walk_from(start: Rc<Inode>, path: &[u8], follow: bool) -> Result<Walked> {
    let root = state::root();
    let mut dir = start;
    let mut links = 0;
    // The path with the links met so far put in; borrowed until there is one.
    let mut expanded: Option<Vec<u8>> = None;
    let mut at = 0;
    loop {
        let rest = expanded.as_deref().unwrap_or(path);
        while rest.get(at) == Some(&b'/') {
            at += 1;
        }
        let end = rest[at..]
            .iter()
            .position(|b| *b == b'/')
            .map_or(rest.len(), |n| at + n);
        let name = &rest[at..end];
        if name.is_empty() {
            return Ok(Walked {
                dir: dir.clone(),
                name: (*b".").into(),
                target: Target::Inode(dir),
                slash: true,
            });
        }
        let slash = rest.get(end) == Some(&b'/');
        let last = rest[end..].iter().all(|b| *b == b'/');
        if !dir.is_dir() {
            return Err(ENOTDIR);
        }
        dir.check(may::EXEC)?;
        if name == b"." || name == b".." {
            let next = if name == b".." && !dir.same(&root) {
                dir.parent().ok_or(ENOENT)?
            } else {
                dir.clone()
            };
            if last {
                return Ok(Walked {
                    dir,
                    name: name.into(),
                    target: Target::Inode(next),
                    slash,
                });
            }
            dir = next;
            at = end;
            continue;
        }
        if name.len() > NAME_MAX {
            return Err(ENAMETOOLONG);
        }
        let Some(child) = dir.lookup(name)? else {
            if !last {
                return Err(ENOENT);
            }
            return Ok(Walked {
                dir,
                name: name.into(),
                target: Target::Missing,
                slash,
            });
        };
        let is_link = matches!(child.kind, Kind::Symlink(_) | Kind::ProcLink(_));
        if is_link && (!last || follow || slash) {
            links += 1;
            if links > MAX_LINKS {
                return Err(ELOOP);
            }
            match follow_link(&child)? {
                Jump::Path(mut target) => {
                    if target.is_empty() {
                        return Err(ENOENT);
                    }
                    target.extend_from_slice(&rest[end..]);
                    if target.first() == Some(&b'/') {
                        dir = root.clone();
                    }
                    expanded = Some(target);
                    at = 0;
                    continue;
                }
                Jump::Inode(inode) if !last => {
                    dir = inode;
                    at = end;
                    continue;
                }
                Jump::File(_) if !last || slash => return Err(ENOTDIR),
                jump => {
                    let target = match jump {
                        Jump::File(open) => Target::File(open),
                        Jump::Inode(inode) => Target::Inode(inode),
                        Jump::Path(_) => return Err(EIO),
                    };
                    return Ok(Walked {
                        dir: dir.clone(),
                        name: name.into(),
                        target,
                        slash,
                    });
                }
            }
        }
        if last {
            if slash && !child.is_dir() {
                return Err(ENOTDIR);
            }
            return Ok(Walked {
                dir,
                name: name.into(),
                target: Target::Inode(child),
                slash,
            });
        }
        if !child.is_dir() {
            return Err(ENOTDIR);
        }
        dir = child;
        at = end;
    }
}

fn follow_link(link: &Rc<Inode>) -> Result<Jump> {
    match &link.kind {
        Kind::Symlink(target) => Ok(Jump::Path(target.to_vec())),
        Kind::ProcLink(link) => link.jump(),
        _ => Err(EINVAL),
    }
}

/// Walks to something that must be there.
///
/// # Errors
/// As [`walk`], and `ENOENT`.
pub fn find(dirfd: i32, path: &[u8], follow: bool) -> Result<Rc<Inode>> {
    walk(dirfd, path, follow)?.inode()
}

/// The target of a `…at` call with a path in the program's memory and `AT_EMPTY_PATH`, `AT_SYMLINK_NOFOLLOW` in `at_flags`.
///
/// # Errors
/// As [`walk`], and `EBADF`.
pub fn target_at(dirfd: i32, path: u64, at_flags: u32) -> Result<Target> {
    // Linux takes a null path for an empty one here since 6.11.
    let empty_ok = at_flags & AT_EMPTY_PATH != 0;
    let path = if path == 0 && empty_ok {
        Vec::new()
    } else {
        user::path(path)?
    };
    if path.is_empty() && empty_ok {
        if dirfd == AT_FDCWD {
            return Ok(Target::Inode(state::cwd()));
        }
        return Ok(of_open(file::get(dirfd)?));
    }
    match walk(dirfd, &path, at_flags & AT_SYMLINK_NOFOLLOW == 0)?.target {
        Target::Missing => Err(ENOENT),
        Target::File(open) => Ok(of_open(open)),
        target => Ok(target),
    }
}

/// The inode behind an open file, or the file itself if it has none.
pub fn of_open(open: Rc<OpenFile>) -> Target {
    match inode_of(&open) {
        Some(inode) => Target::Inode(inode),
        None => Target::File(open),
    }
}

/// The inode behind an open file.
pub fn inode_of(open: &OpenFile) -> Option<Rc<Inode>> {
    open.file
        .as_any()
        .downcast_ref::<InodeFile>()
        .map(|file| file.inode.clone())
}

/// Absolute path of entry `name` of `dir`.
pub fn absolute(dir: &Rc<Inode>, name: &[u8]) -> Vec<u8> {
    let mut path = dir.path_below(&state::root()).unwrap_or_default();
    if path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
