//! The contents of regular files, wherever they are.

use super::contents::Contents;
use super::disk::file::DiskFile;
use super::disk::volume::Held;
use super::inode::Inode;
use crate::errno::Result;
use alloc::rc::Rc;

/// The contents of a regular file, wherever they are.
pub enum Body<'i> {
    /// In memory.
    Memory(&'i Contents),
    /// On a disk.
    Disk(&'i Rc<Inode>, &'i DiskFile),
}

impl<'i> Body<'i> {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Memory(contents) => contents.size(),
            Self::Disk(_, file) => file.size(),
        }
    }

    /// Changes the size; what is added reads as zero.
    pub fn truncate(&self, size: u64) -> Result<()> {
        match self {
            Self::Memory(contents) => contents.truncate(size),
            Self::Disk(inode, file) => {
                let _writer = file.lock_writes();
                file.truncate(inode, size)
            }
        }
    }

    /// Makes a range occupy space.
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        match self {
            Self::Memory(contents) => contents.allocate(offset, len, keep_size),
            Self::Disk(inode, file) => {
                let _writer = file.lock_writes();
                file.allocate(inode, offset, len, keep_size)
            }
        }
    }

    /// Makes a range read as zero, and frees what lies whole in it.
    pub fn punch(&self, offset: u64, len: u64) -> Result<()> {
        match self {
            Self::Memory(contents) => contents.punch(offset, len),
            Self::Disk(inode, file) => {
                let _writer = file.lock_writes();
                file.punch(inode, offset, len)
            }
        }
    }

    /// `SEEK_DATA`, `SEEK_HOLE`.
    pub fn seek_data(&self, from: u64, hole: bool) -> Result<u64> {
        match self {
            Self::Memory(contents) => contents.seek_data(from, hole),
            Self::Disk(inode, file) => file.seek_data(inode, from, hole),
        }
    }

    /// Keeps other writers out of a file whose writers may wait.
    pub fn lock_writes(&self) -> Option<Held<'i>> {
        match self {
            Self::Memory(_) => None,
            Self::Disk(_, file) => Some(file.lock_writes()),
        }
    }
}
