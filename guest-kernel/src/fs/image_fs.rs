//! The root image as inodes. Each is made when a program first gets to it, and then kept: the image's size is the bound (R10).

use super::contents::{Contents, Extent};
use super::directory::{Directory, Lower};
use super::inode::{Inode, Kind, Meta, Super, is_device};
use super::pipe::Pipe;
use super::space::Space;
use crate::errno::*;
use crate::time::Timespec;
use alloc::rc::Rc;
use quorate_abi::image::{ImageError, ImageView, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG};

/// `f_type` of the root: overlayfs, which is what it looks like.
pub const OVERLAY_MAGIC: u64 = 0x794c_7630;

/// The mounted root image.
pub struct ImageFs {
    view: ImageView<'static>,
    physical: u64,
    sup: Rc<Super>,
}

impl ImageFs {
    /// Takes the image, which lies at physical address `physical`, as the file system with device number `dev`.
    pub fn new(
        bytes: &'static [u8],
        physical: u64,
        dev: u64,
        space: Rc<Space>,
    ) -> core::result::Result<Rc<Self>, ImageError> {
        let view = ImageView::parse(bytes)?;
        let first_new = u64::from(view.header().inode_count) + 1;
        Ok(Rc::new(Self {
            view,
            physical,
            sup: Super::new(dev, OVERLAY_MAGIC, space, first_new),
        }))
    }

    /// The root directory.
    ///
    /// # Errors
    /// `ENOTDIR` if it is none, `EIO` where the image is damaged.
    pub fn root(self: &Rc<Self>) -> Result<Rc<Inode>> {
        let root = self.make(self.view.root())?;
        if root.is_dir() {
            Ok(root)
        } else {
            Err(ENOTDIR)
        }
    }

    /// Inode number of an entry.
    ///
    /// # Errors
    /// `EIO` where the image is damaged.
    pub fn lookup(&self, dir: u32, name: &[u8]) -> Result<Option<u32>> {
        self.view.lookup(dir, name).map_err(damaged)
    }

    /// Entry by index.
    ///
    /// # Errors
    /// `EIO` where the image is damaged.
    pub fn entry(&self, dir: u32, index: u64) -> Result<(&'static [u8], u32)> {
        let index = usize::try_from(index).map_err(|_| EIO)?;
        self.view.entry(dir, index).map_err(damaged)?.ok_or(EIO)
    }

    /// `st_mode` as in the image (the type of a file never changes).
    ///
    /// # Errors
    /// `EIO` where the image is damaged.
    pub fn mode(&self, ino: u32) -> Result<u32> {
        Ok(self.view.inode(ino).map_err(damaged)?.mode)
    }

    /// The inode `ino`, which is entry `name` of `parent`.
    ///
    /// # Errors
    /// `EIO` where the image is damaged, `ENOSPC` at the bound on objects.
    pub fn inode(self: &Rc<Self>, ino: u32, parent: &Rc<Inode>, name: &[u8]) -> Result<Rc<Inode>> {
        if let Some(inode) = self.sup.known(u64::from(ino)) {
            return Ok(inode);
        }
        let inode = self.make(ino)?;
        if inode.is_dir() {
            *inode.place.borrow_mut() = Some((parent.clone(), name.into()));
        }
        Ok(inode)
    }

    /// Inode number of the root directory.
    pub fn root_ino(&self) -> u32 {
        self.view.root()
    }

    /// Attributes.
    ///
    /// # Errors
    /// `EIO` where the image is damaged.
    pub fn meta(&self, ino: u32) -> Result<Meta> {
        let raw = self.view.inode(ino).map_err(damaged)?;
        let mtime = Timespec {
            sec: raw.mtime,
            nsec: 0,
        };
        Ok(Meta {
            mode: raw.mode,
            uid: raw.uid,
            gid: raw.gid,
            nlink: raw.nlink,
            atime: mtime,
            mtime,
            ctime: mtime,
            rdev: raw.rdev,
        })
    }

    /// Where a regular file's bytes lie.
    ///
    /// # Errors
    /// `EIO` where the image is damaged.
    pub fn extent(&self, ino: u32) -> Result<Extent> {
        let data = self.view.data(ino).map_err(damaged)?;
        let offset = self.view.data_offset(ino).map_err(damaged)?;
        Ok(Extent {
            data,
            physical: self.physical + offset,
        })
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// `EIO` where the image is damaged.
    pub fn target(&self, ino: u32) -> Result<&'static [u8]> {
        self.view.readlink(ino).map_err(damaged)
    }

    /// Number of entries of a directory.
    ///
    /// # Errors
    /// `EIO` where the image is damaged.
    pub fn count(&self, ino: u32) -> Result<u64> {
        let mut count = 0;
        // The view does not tell; find it by doubling and halving.
        let has = |n: usize| Ok::<_, Errno>(self.view.entry(ino, n).map_err(damaged)?.is_some());
        let mut step = 1;
        while has(count + step - 1)? {
            count += step;
            step *= 2;
        }
        while step > 1 {
            step /= 2;
            if has(count + step - 1)? {
                count += step;
            }
        }
        Ok(count as u64)
    }

    fn make(self: &Rc<Self>, ino: u32) -> Result<Rc<Inode>> {
        let meta = self.meta(ino)?;
        let kind = match meta.mode & S_IFMT {
            S_IFREG => Kind::Regular(Contents::new(
                self.sup.space.clone(),
                Some(self.extent(ino)?),
            )),
            S_IFDIR => Kind::Directory(Directory::new(Some(Lower {
                image: self.clone(),
                ino,
                count: self.count(ino)?,
            }))),
            S_IFLNK => Kind::Symlink(self.target(ino)?.into()),
            S_IFIFO => Kind::Fifo(Pipe::new()),
            mode if is_device(mode) => Kind::Device,
            _ => return Err(EIO),
        };
        let inode = Inode::new(&self.sup, u64::from(ino), meta, kind)?;
        self.sup.remember(&inode);
        Ok(inode)
    }
}

fn damaged(error: ImageError) -> Errno {
    crate::klog!("root image: {error}");
    EIO
}
