//! Inodes: what a name in the tree refers to.

use super::body::Body;
use super::contents::Contents;
use super::directory::Directory;
use super::disk::dir::DiskDir;
use super::disk::file::DiskFile;
use super::disk::node::{self, DiskNode};
use super::locks::Locks;
use super::pipe::Pipe;
use super::proc::{ProcDir, ProcFile, ProcLink};
pub use super::superblock::Super;
use crate::errno::*;
use crate::file::Stat;
use crate::time::Timespec;
use crate::{sched, time};
use alloc::boxed::Box;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::cell::{Cell, RefCell};
use quorate_abi::image::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG};

/// File type of a socket in `st_mode`.
pub const S_IFSOCK: u32 = 0o140_000;

/// Attributes that can change.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meta {
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that refer to it (a directory: 2 and one for each directory in it).
    pub nlink: u32,
    /// Last access: set at creation and by `utimensat` only (everything is mounted `noatime`).
    pub atime: Timespec,
    /// Last change of the contents.
    pub mtime: Timespec,
    /// Last change of contents or attributes.
    pub ctime: Timespec,
    /// Device number of a device.
    pub rdev: u64,
}

impl Meta {
    /// Attributes of a new inode of the calling process.
    pub fn new(mode: u32) -> Self {
        let (uid, gid) = sched::credentials();
        let now = now();
        Self {
            mode,
            uid,
            gid,
            nlink: if mode & S_IFMT == S_IFDIR { 2 } else { 1 },
            atime: now,
            mtime: now,
            ctime: now,
            rdev: 0,
        }
    }
}

/// What is behind an inode.
pub enum Kind {
    /// Regular file.
    Regular(Contents),
    /// Directory.
    Directory(Directory),
    /// Symbolic link with its target.
    Symlink(Box<[u8]>),
    /// Character or block device (number in [`Meta::rdev`]).
    Device,
    /// Named pipe.
    Fifo(Rc<Pipe>),
    /// Name of a bound socket; the object is the network's, and is gone when the socket is closed.
    Socket(RefCell<Option<Weak<dyn Any>>>),
    /// Directory of `/proc` or `/sys`.
    ProcDir(ProcDir),
    /// File of `/proc` or `/sys`, whose text is made when it is read.
    ProcFile(ProcFile),
    /// Link of `/proc`.
    ProcLink(ProcLink),
    /// Regular file on a disk.
    DiskFile(DiskFile),
    /// Directory on a disk.
    DiskDir(DiskDir),
}

/// A directory's parent and its name there.
pub type DirPlace = (Rc<Inode>, Box<[u8]>);

/// An inode.
pub struct Inode {
    /// Its file system.
    pub sup: Rc<Super>,
    /// Number, unique in the file system.
    pub ino: u64,
    /// Attributes.
    pub meta: Cell<Meta>,
    /// What it is.
    pub kind: Kind,
    /// What it has if it is on a disk.
    pub disk: Option<DiskNode>,
    /// Locks on it.
    pub locks: Locks,
    /// Root of a mounted file system, which cannot be removed or renamed.
    pub mounted: Cell<bool>,
    /// A directory's parent and its name there; none for the root and for removed ones.
    pub place: RefCell<Option<DirPlace>>,
}

impl Drop for Inode {
    fn drop(&mut self) {
        node::dropped(self);
        self.sup.space.give_objects(1);
    }
}

/// Kinds of access, as the bits of a permission triple.
pub mod may {
    #![allow(missing_docs)]
    pub const EXEC: u32 = 1;
    pub const WRITE: u32 = 2;
    pub const READ: u32 = 4;
}

/// Wall-clock time of changes.
pub fn now() -> Timespec {
    Timespec::from_ns(time::realtime_ns())
}

impl Inode {
    /// A new inode.
    ///
    /// # Errors
    /// `ENOSPC` at the bound on objects.
    pub fn new(sup: &Rc<Super>, ino: u64, meta: Meta, kind: Kind) -> Result<Rc<Self>> {
        Self::with(sup, ino, meta, kind, None)
    }

    /// An inode of a disk.
    ///
    /// # Errors
    /// `ENOSPC` at the bound on objects.
    pub fn new_on_disk(
        sup: &Rc<Super>,
        ino: u64,
        meta: Meta,
        kind: Kind,
        node: DiskNode,
    ) -> Result<Rc<Self>> {
        Self::with(sup, ino, meta, kind, Some(node))
    }

    fn with(
        sup: &Rc<Super>,
        ino: u64,
        meta: Meta,
        kind: Kind,
        disk: Option<DiskNode>,
    ) -> Result<Rc<Self>> {
        sup.space.take_object()?;
        Ok(Rc::new(Self {
            sup: sup.clone(),
            ino,
            meta: Cell::new(meta),
            kind,
            disk,
            locks: Locks::default(),
            mounted: Cell::new(false),
            place: RefCell::new(None),
        }))
    }

    /// A new, empty regular file without a name.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn new_regular(sup: &Rc<Super>, mode: u32) -> Result<Rc<Self>> {
        let kind = Kind::Regular(Contents::new(sup.space.clone(), None));
        let meta = Meta::new(S_IFREG | mode & 0o7777);
        Self::new(sup, sup.next_ino(), meta, kind)
    }

    /// A new, empty directory without a name.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn new_directory(sup: &Rc<Super>, mode: u32) -> Result<Rc<Self>> {
        let kind = Kind::Directory(Directory::new(None));
        Self::new(
            sup,
            sup.next_ino(),
            Meta::new(S_IFDIR | mode & 0o7777),
            kind,
        )
    }

    /// The file type bits.
    pub fn file_type(&self) -> u32 {
        self.meta.get().mode & S_IFMT
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(
            self.kind,
            Kind::Directory(_) | Kind::ProcDir(_) | Kind::DiskDir(_)
        )
    }

    /// The contents of a regular file.
    pub fn body(self: &Rc<Self>) -> Option<Body<'_>> {
        match &self.kind {
            Kind::Regular(contents) => Some(Body::Memory(contents)),
            Kind::DiskFile(file) => Some(Body::Disk(self, file)),
            _ => None,
        }
    }

    /// Whether it is a regular file.
    pub fn is_regular(&self) -> bool {
        matches!(self.kind, Kind::Regular(_) | Kind::DiskFile(_))
    }

    /// Whether the file system can make it again from the disk.
    pub fn can_be_forgotten(&self) -> bool {
        match &self.kind {
            Kind::DiskFile(file) => file.is_idle(),
            Kind::Fifo(_) | Kind::Socket(_) => false,
            _ => self.disk.is_some() && !self.mounted.get() && !self.has_mounts(),
        }
    }

    fn has_mounts(&self) -> bool {
        matches!(&self.kind, Kind::DiskDir(dir) if dir.has_mounts())
    }

    /// The contents of a regular file in memory.
    pub fn contents(&self) -> Option<&Contents> {
        match &self.kind {
            Kind::Regular(contents) => Some(contents),
            _ => None,
        }
    }

    /// Whether both are the same file.
    pub fn same(&self, other: &Self) -> bool {
        self.sup.dev == other.sup.dev && self.ino == other.ino
    }

    /// Changes attributes.
    pub fn update(&self, change: impl FnOnce(&mut Meta)) {
        let mut meta = self.meta.get();
        change(&mut meta);
        self.meta.set(meta);
    }

    /// Changes attributes that the file system keeps.
    ///
    /// # Errors
    /// `EROFS`, and what a disk meets; nothing has changed then.
    pub fn change(self: &Rc<Self>, change: impl FnOnce(&mut Meta)) -> Result<()> {
        self.sup.check_writable()?;
        let before = self.meta.get();
        self.update(change);
        node::store_meta(self).inspect_err(|_| self.meta.set(before))
    }

    /// Notes that the contents changed now.
    pub fn touch(&self) {
        let now = now();
        self.update(|meta| {
            meta.mtime = now;
            meta.ctime = now;
        });
    }

    /// Checks permissions of the calling process: user 0 may do all but execute what nobody may.
    ///
    /// # Errors
    /// `EACCES`.
    pub fn check(&self, access: u32) -> Result<()> {
        let meta = self.meta.get();
        let (uid, gid) = sched::credentials();
        let granted = if uid == 0 {
            let exec = self.is_dir() || meta.mode & 0o111 != 0;
            may::READ | may::WRITE | if exec { may::EXEC } else { 0 }
        } else if uid == meta.uid {
            meta.mode >> 6
        } else if gid == meta.gid || sched::groups().contains(&meta.gid) {
            meta.mode >> 3
        } else {
            meta.mode
        };
        if access & !granted & 7 == 0 {
            Ok(())
        } else {
            Err(EACCES)
        }
    }

    /// Checks that the calling process owns it (or is user 0).
    ///
    /// # Errors
    /// `EPERM`.
    pub fn check_owner(&self) -> Result<()> {
        let (uid, _) = sched::credentials();
        if uid == 0 || uid == self.meta.get().uid {
            Ok(())
        } else {
            Err(EPERM)
        }
    }

    /// Attributes as `stat` gives them.
    pub fn stat(&self) -> Stat {
        let meta = self.meta.get();
        let (size, blocks) = match &self.kind {
            Kind::Regular(contents) => (contents.size(), contents.occupied_pages() * 8),
            Kind::DiskFile(file) => (file.size(), file.blocks()),
            Kind::Directory(_) | Kind::DiskDir(_) => (4096, 8),
            Kind::Symlink(target) => (target.len() as u64, 0),
            _ => (0, 0),
        };
        Stat {
            dev: self.sup.dev,
            ino: self.ino,
            nlink: u64::from(meta.nlink),
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            pad0: 0,
            rdev: meta.rdev,
            size: size as i64,
            blksize: 4096,
            blocks: blocks as i64,
            atime: meta.atime,
            mtime: meta.mtime,
            ctime: meta.ctime,
            reserved: [0; 3],
        }
    }

    /// The entry `name` of this directory. `.` and `..` are the walker's business.
    ///
    /// # Errors
    /// `ENOTDIR`; `EIO` where the image is damaged.
    pub fn lookup(self: &Rc<Self>, name: &[u8]) -> Result<Option<Rc<Self>>> {
        match &self.kind {
            Kind::Directory(directory) => directory.lookup(self, name),
            Kind::ProcDir(directory) => directory.lookup(self, name),
            Kind::DiskDir(directory) => directory.lookup(self, name),
            _ => Err(ENOTDIR),
        }
    }

    /// The changeable directory in memory behind it. Those of `/proc` are not.
    ///
    /// # Errors
    /// `ENOTDIR`, `EPERM`.
    pub fn directory(&self) -> Result<&Directory> {
        match &self.kind {
            Kind::Directory(directory) => Ok(directory),
            Kind::ProcDir(_) => Err(EPERM),
            _ => Err(ENOTDIR),
        }
    }

    /// Entries at positions from `from` on, until `emit` returns false; `.` and `..` included.
    ///
    /// # Errors
    /// `ENOTDIR`; `EIO` where the image is damaged.
    pub fn list(
        self: &Rc<Self>,
        from: u64,
        emit: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> Result<()> {
        if from == 0 && !emit(Listed::new(0, b".", self.ino, S_IFDIR)) {
            return Ok(());
        }
        if from <= 1 {
            let parent = self.parent().map_or(self.ino, |p| p.ino);
            if !emit(Listed::new(1, b"..", parent, S_IFDIR)) {
                return Ok(());
            }
        }
        match &self.kind {
            Kind::Directory(directory) => directory.list(from.max(2), emit),
            Kind::ProcDir(directory) => directory.list(self, from.max(2), emit),
            Kind::DiskDir(directory) => directory.list(self, from.max(2), emit),
            _ => Err(ENOTDIR),
        }
    }

    /// The directory that holds this directory.
    pub fn parent(&self) -> Option<Rc<Self>> {
        self.place
            .borrow()
            .as_ref()
            .map(|(parent, _)| parent.clone())
    }

    /// Path of this directory below `root`; None if it was removed or lies outside.
    pub fn path_below(self: &Rc<Self>, root: &Rc<Self>) -> Option<Vec<u8>> {
        let mut parts: Vec<Box<[u8]>> = Vec::new();
        let mut at = self.clone();
        while !at.same(root) {
            let (parent, name) = at.place.borrow().clone()?;
            parts.push(name);
            at = parent;
        }
        let mut path = Vec::new();
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        if path.is_empty() {
            path.push(b'/');
        }
        Some(path)
    }
}

/// One entry of a directory listing.
pub struct Listed<'n> {
    /// Position; listing goes on behind it from `position + 1`.
    pub position: u64,
    /// Name.
    pub name: &'n [u8],
    /// Inode number.
    pub ino: u64,
    /// `DT_…` value.
    pub d_type: u8,
}

impl<'n> Listed<'n> {
    /// An entry whose type is given as in `st_mode`.
    pub fn new(position: u64, name: &'n [u8], ino: u64, mode: u32) -> Self {
        Self {
            position,
            name,
            ino,
            d_type: ((mode & S_IFMT) >> 12) as u8,
        }
    }
}

/// Whether the type bits name a device.
pub fn is_device(mode: u32) -> bool {
    matches!(mode & S_IFMT, S_IFCHR | S_IFBLK)
}

/// Whether the type bits name something that can be made with `mknod`.
pub fn can_mknod(mode: u32) -> bool {
    matches!(mode & S_IFMT, S_IFREG | S_IFIFO | S_IFSOCK) && mode & S_IFMT != S_IFLNK
}
