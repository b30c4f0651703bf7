//! Inodes of volumes: made from what the volume (and, below it, the root image) says, kept while they are in use or recently were,
//! and copied up when something of the image is to change.

use super::dir::DiskDir;
use super::file::{self, DiskFile};
use super::volume::{Guard, Volume, number};
use crate::errno::*;
use crate::fs::image_fs::ImageFs;
use crate::fs::inode::{DirPlace, Inode, Kind, Meta, S_IFSOCK, Super, is_device};
use crate::fs::pipe::Pipe;
use crate::time::Timespec;
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use quorate_abi::image::{S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG};
use rsext4::{
    DeviceNumber, Ext4Timestamp, FileName, FilePermissions, InodeInfo, InodeMetadataUpdate,
    MutationContext, RenameOptions, XattrNamespace, XattrSetMode,
};

/// Added to the numbers of inodes that are the image's.
pub const LOWER: u64 = 1 << 32;
/// Inodes of a volume that are kept though nobody uses them (R10); the ones that were looked up first go first.
pub const KNOWN_INODES: usize = 4096;
/// Bytes copied up at a time.
const COPY: usize = 1 << 20;

/// What a file system on a disk has besides the tree.
pub struct DiskSuper {
    /// The volume.
    pub volume: Rc<Volume>,
    /// The image that its files lie over.
    pub image: Option<Rc<ImageFs>>,
    /// Where files are made before they appear in the tree (with an image only).
    pub work: u32,
    /// Numbers the files in `work`.
    pub next_temporary: Cell<u64>,
}

/// What an inode on a disk has besides that of others.
pub struct DiskNode {
    /// Number on the volume; None: only the image has it.
    upper: Cell<Option<u32>>,
    /// Number in the image.
    pub lower: Option<u32>,
    /// Where something of the image was found: where it is copied to.
    origin: RefCell<Option<DirPlace>>,
}

impl DiskNode {
    /// Number on the volume.
    pub fn upper(&self) -> Option<u32> {
        self.upper.get()
    }
}

/// An inode's two sides.
#[derive(Clone, Copy)]
pub struct Sides {
    /// Number on the volume.
    pub upper: Option<u32>,
    /// Number in the image.
    pub lower: Option<u32>,
}

impl Sides {
    /// Number of the inode that is made of them.
    pub fn ino(self) -> u64 {
        match (self.upper, self.lower) {
            (Some(upper), _) => u64::from(upper),
            (None, lower) => LOWER | u64::from(lower.unwrap_or(0)),
        }
    }
}

/// The node of an inode on a disk.
///
/// # Errors
/// `EXDEV` if it is on none.
pub fn of(inode: &Inode) -> Result<&DiskNode> {
    inode.disk.as_ref().ok_or(EXDEV)
}

fn device_number(info: &InodeInfo) -> u64 {
    let Some(device) = info.device_number else {
        return 0;
    };
    let (major, minor) = (u64::from(device.major()), u64::from(device.minor()));
    major << 8 | minor & 0xff | (minor & !0xff) << 12
}

fn meta_of(info: &InodeInfo) -> Meta {
    let time = |sec: u32| Timespec {
        sec: i64::from(sec as i32),
        nsec: 0,
    };
    Meta {
        mode: u32::from(info.mode),
        uid: info.uid,
        gid: info.gid,
        nlink: u32::from(info.links),
        atime: time(info.atime),
        mtime: time(info.mtime),
        ctime: time(info.ctime),
        rdev: device_number(info),
    }
}

/// The inode with these sides, found as `name` in `parent`; the one that is known already, if there is one. The volume is asked under
/// `guard`, or under its own lock.
pub fn get(
    parent: &Rc<Inode>,
    name: &[u8],
    sides: Sides,
    guard: Option<&Guard<'_>>,
) -> Result<Rc<Inode>> {
    let sup = &parent.sup;
    if let Some(inode) = sup.known(sides.ino()) {
        return Ok(inode);
    }
    let volume = sup.volume()?;
    let own;
    let guard = match guard {
        Some(guard) => guard,
        None => {
            own = volume.lock();
            // Somebody may have made it while this thread waited for the lock.
            if let Some(inode) = sup.known(sides.ino()) {
                return Ok(inode);
            }
            &own
        }
    };
    let inode = make(sup, sides, guard)?;
    if inode.is_dir() {
        *inode.place.borrow_mut() = Some((parent.clone(), name.into()));
    }
    if let Some(node) = &inode.disk
        && sides.upper.is_none()
    {
        *node.origin.borrow_mut() = Some((parent.clone(), name.into()));
    }
    sup.remember_some(&inode, KNOWN_INODES);
    Ok(inode)
}

/// An inode object, not yet known.
pub fn make(sup: &Rc<Super>, sides: Sides, guard: &Guard<'_>) -> Result<Rc<Inode>> {
    let mut lower = sides.lower;
    let image = sup.disk.as_ref().and_then(|d| d.image.as_ref());
    let (meta, kind) = match sides.upper {
        Some(upper) => {
            let info = guard.ask(|fs| fs.inode(number(upper)?))?;
            let meta = meta_of(&info);
            let kind = match meta.mode & S_IFMT {
                S_IFREG => Kind::DiskFile(DiskFile::new(info.size, info.blocks, None)),
                S_IFDIR => {
                    if lower.is_some() && is_opaque(guard, upper)? {
                        lower = None;
                    }
                    Kind::DiskDir(DiskDir::default())
                }
                S_IFLNK => Kind::Symlink(read_link(guard, upper, info.size)?),
                S_IFIFO => Kind::Fifo(Pipe::new()),
                S_IFSOCK => Kind::Socket(RefCell::new(None)),
                mode if is_device(mode) => Kind::Device,
                _ => return Err(EIO),
            };
            (meta, kind)
        }
        None => {
            let (image, ino) = (image.ok_or(EIO)?, lower.ok_or(EIO)?);
            let meta = image.meta(ino)?;
            let kind = match meta.mode & S_IFMT {
                S_IFREG => Kind::DiskFile(DiskFile::new(0, 0, Some(image.extent(ino)?))),
                S_IFDIR => Kind::DiskDir(DiskDir::default()),
                S_IFLNK => Kind::Symlink(image.target(ino)?.into()),
                S_IFIFO => Kind::Fifo(Pipe::new()),
                mode if is_device(mode) => Kind::Device,
                _ => return Err(EIO),
            };
            (meta, kind)
        }
    };
    let node = DiskNode {
        upper: Cell::new(sides.upper),
        lower,
        origin: RefCell::new(None),
    };
    Inode::new_on_disk(sup, sides.ino(), meta, kind, node)
}

fn read_link(guard: &Guard<'_>, upper: u32, size: u64) -> Result<Box<[u8]>> {
    const LONGEST: u64 = 4096;
    let mut target = alloc::vec![0; size.min(LONGEST) as usize];
    let count = guard.ask(|fs| fs.read_inode(number(upper)?, 0, &mut target))?;
    target.truncate(count);
    Ok(target.into())
}

/// As overlayfs marks directories that hide what the lower file system has below them.
const OPAQUE: &[u8] = b"overlay.opaque";

fn is_opaque(guard: &Guard<'_>, upper: u32) -> Result<bool> {
    let value = guard.ask(|fs| fs.get_xattr(number(upper)?, XattrNamespace::Trusted, OPAQUE));
    Ok(matches!(value.as_deref(), Ok(b"y")))
}

/// Marks a directory of the volume as hiding the image's.
pub fn set_opaque(guard: &Guard<'_>, upper: u32) -> Result<()> {
    guard.change(|fs| {
        let mode = XattrSetMode::Upsert;
        fs.set_xattr(number(upper)?, XattrNamespace::Trusted, OPAQUE, b"y", mode)
    })
}

/// Owner and group of something new, with nothing masked: that has been done.
pub fn context(uid: u32, gid: u32) -> MutationContext {
    MutationContext::new(uid, gid, 0, 0)
}

/// Permissions as the library takes them.
pub fn permissions(mode: u32) -> Result<FilePermissions> {
    FilePermissions::new((mode & 0o7777) as u16).map_err(|_| EINVAL)
}

/// A name as the library takes it.
pub fn file_name(name: &[u8]) -> Result<FileName<'_>> {
    FileName::new(name).map_err(|_| EINVAL)
}

/// A time as the library takes it.
fn stamp(time: Timespec) -> Ext4Timestamp {
    Ext4Timestamp::new(time.sec, time.nsec as u32)
}

/// A device number as the library takes it.
pub fn device(rdev: u64) -> Result<DeviceNumber> {
    let major = (rdev >> 8 & 0xfff) as u32;
    let minor = (rdev & 0xff | rdev >> 12 & 0xfff00) as u32;
    DeviceNumber::new(major, minor).map_err(|_| EINVAL)
}

/// Writes an inode's owner, permissions and times to the volume.
///
/// # Errors
/// `EROFS`, `EIO`, `ENOSPC`.
pub fn store_meta(inode: &Rc<Inode>) -> Result<()> {
    let Some(node) = &inode.disk else {
        return Ok(());
    };
    if inode.meta.get().nlink == 0 && node.upper().is_none() {
        // Nobody will see it again.
        return Ok(());
    }
    let upper = copy_up(inode)?;
    let guard = inode.sup.volume()?.lock();
    store(&guard, upper, &inode.meta.get())
}

fn store(guard: &Guard<'_>, upper: u32, meta: &Meta) -> Result<()> {
    let link = meta.mode & S_IFMT == S_IFLNK;
    let update = InodeMetadataUpdate {
        permissions: if link {
            None
        } else {
            Some(permissions(meta.mode)?)
        },
        owner: Some((meta.uid, meta.gid)),
        atime: Some(stamp(meta.atime)),
        mtime: Some(stamp(meta.mtime)),
        ..InodeMetadataUpdate::default()
    };
    guard.change_at(meta.ctime, |fs| {
        fs.update_inode_metadata(number(upper)?, update)
    })?;
    Ok(())
}

/// Sees to it that an inode is on the volume; returns its number there. Call without the volume's lock.
///
/// # Errors
/// `EROFS`, `ENOSPC`, `EIO`; `ENOENT` if it has lost its name.
pub fn copy_up(inode: &Rc<Inode>) -> Result<u32> {
    let node = of(inode)?;
    if inode.sup.read_only() {
        return Err(EROFS);
    }
    match node.upper() {
        Some(upper) => Ok(upper),
        None => copy_up_locked(inode, &inode.sup.volume()?.lock()),
    }
}

/// [`copy_up`] with the volume's lock held.
pub fn copy_up_locked(inode: &Rc<Inode>, guard: &Guard<'_>) -> Result<u32> {
    let node = of(inode)?;
    if let Some(upper) = node.upper() {
        return Ok(upper);
    }
    let (parent, name) = match (&*inode.place.borrow(), &*node.origin.borrow()) {
        (Some(place), _) | (None, Some(place)) => place.clone(),
        _ => return Err(ENOENT),
    };
    if inode.meta.get().nlink == 0 {
        return Err(ENOENT);
    }
    let dir = copy_up_locked(&parent, guard)?;
    let disk = inode.sup.disk.as_ref().ok_or(EIO)?;
    let meta = inode.meta.get();
    let who = context(meta.uid, meta.gid);
    let mode = permissions(meta.mode)?;
    // Made aside and moved to its place when it is complete: it is there as a whole, or not at all.
    let temporary = alloc::format!("{}", disk.next_temporary.get());
    disk.next_temporary.set(disk.next_temporary.get() + 1);
    let temporary = file_name(temporary.as_bytes())?;
    let work = disk.work;
    let info = guard.change(|fs| match &inode.kind {
        Kind::DiskDir(_) => fs.create_directory(who, number(work)?, temporary, mode),
        Kind::Symlink(target) => fs.create_symlink(who, number(work)?, temporary, target),
        Kind::DiskFile(_) => fs.create_regular_file(who, number(work)?, temporary, mode),
        _ => Err(rsext4::Ext4Error::unsupported()),
    })?;
    let upper = info.number.raw();
    if let Kind::DiskFile(file) = &inode.kind
        && let Some(extent) = file.lower()
    {
        for (i, part) in extent.data.chunks(COPY).enumerate() {
            guard.change(|fs| fs.write_inode(info.number, (i * COPY) as u64, part))?;
        }
    }
    store(guard, upper, &meta)?;
    let _ = guard.change(|fs| {
        let to = FileName::new(&name)?;
        let how = RenameOptions::NO_REPLACE;
        fs.rename(number(work)?, temporary, number(dir)?, to, how)
    })?;
    node.upper.set(Some(upper));
    if let Some(file) = file::of(inode) {
        file.copied_up();
    }
    inode.sup.remember_as(u64::from(upper), inode);
    if let Kind::DiskDir(directory) = &parent.kind {
        directory.has_upper(&name, upper);
    }
    Ok(upper)
}

/// The last user of an inode has gone.
pub fn dropped(inode: &Inode) {
    if let (Some(node), Some(disk)) = (&inode.disk, &inode.sup.disk)
        && inode.meta.get().nlink == 0
        && let Some(upper) = node.upper()
    {
        disk.volume.reap_later(upper);
    }
}
