//! A disk as it is, without a file system: `/dev/diskN`. Nothing is kept in between: each read asks the disk.

use super::device::{BLOCK, BlockDevice, MAX_REQUEST, SECTOR};
use crate::errno::*;
use crate::file::{File, Stat};
use crate::fs::inode::Inode;
use crate::user;
use alloc::rc::Rc;
use core::any::Any;

/// Major number of disks: virtio's usual one.
pub const MAJOR: u64 = 254;

/// An open disk.
pub struct RawDisk {
    device: Rc<dyn BlockDevice>,
    inode: Rc<Inode>,
    /// A file system on it is mounted: only reading is allowed.
    mounted: bool,
}

impl RawDisk {
    /// Opens a disk by the inode that names it.
    ///
    /// # Errors
    /// `ENXIO` if there is none; `EROFS`, or `EBUSY` while a file system on it is mounted, for writing.
    pub fn open(inode: &Rc<Inode>, writes: bool) -> Result<Rc<Self>> {
        let number = (inode.meta.get().rdev & 0xff) as usize;
        let device = crate::fs::mounts::device(number).ok_or(ENXIO)?;
        let name = alloc::format!("disk{number}");
        let mounted = super::volumes().iter().any(|v| v.name == name);
        if writes && device.read_only() {
            return Err(EROFS);
        }
        if writes && mounted {
            return Err(EBUSY);
        }
        Ok(Rc::new(Self {
            device,
            inode: inode.clone(),
            mounted,
        }))
    }

    /// Everything written to stable storage.
    ///
    /// # Errors
    /// `EIO`.
    pub fn flush(&self) -> Result<()> {
        self.device.flush().map_err(|_| EIO)
    }

    /// The whole sectors around `[offset, offset + len)`, of one request.
    fn sectors(offset: u64, len: usize) -> (u64, usize) {
        let first = offset / SECTOR;
        let end = (offset + len.min(MAX_REQUEST - BLOCK) as u64).div_ceil(SECTOR);
        (first, ((end - first) * SECTOR) as usize)
    }
}

impl File for RawDisk {
    fn seekable(&self) -> bool {
        true
    }

    fn may_wait(&self) -> bool {
        true
    }

    fn size(&self) -> Result<u64> {
        Ok(self.device.bytes())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let left = self.device.bytes().saturating_sub(offset);
        let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        let (first, bytes) = Self::sectors(offset, len);
        let mut sectors = alloc::vec![0; bytes];
        self.device.read(first, &mut sectors).map_err(|_| EIO)?;
        let inside = (offset - first * SECTOR) as usize;
        let len = len.min(bytes - inside);
        buf[..len].copy_from_slice(&sectors[inside..inside + len]);
        Ok(len)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<usize> {
        let left = self.device.bytes().saturating_sub(offset);
        let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if len == 0 {
            return if buf.is_empty() { Ok(0) } else { Err(ENOSPC) };
        }
        if self.mounted {
            return Err(EBUSY);
        }
        let (first, bytes) = Self::sectors(offset, len);
        let inside = (offset - first * SECTOR) as usize;
        let len = len.min(bytes - inside);
        let mut sectors = alloc::vec![0; bytes];
        if inside != 0 || len != bytes {
            self.device.read(first, &mut sectors).map_err(|_| EIO)?;
        }
        sectors[inside..inside + len].copy_from_slice(&buf[..len]);
        self.device.write(first, &sectors).map_err(|_| EIO)?;
        Ok(len)
    }

    fn stat(&self) -> Result<Stat> {
        Ok(self.inode.stat())
    }

    fn ioctl(&self, command: u32, arg: u64) -> Result<u64> {
        const BLKROGET: u32 = 0x125e;
        const BLKSSZGET: u32 = 0x1268;
        const BLKGETSIZE64: u32 = 0x8008_1272;
        match command {
            BLKGETSIZE64 => user::write(arg, self.device.bytes())?,
            BLKSSZGET => user::write(arg, SECTOR as i32)?,
            BLKROGET => user::write(arg, i32::from(self.device.read_only()))?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
