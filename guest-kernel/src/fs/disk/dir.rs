//! A directory on a volume, over a directory of the image if there is one. Its entries are read as a whole when they are first
//! needed, and kept while the inode is.
//!
//! Over an image, entries of the volume hide those of the image, and a character device 0:0 (a *whiteout*) says that the image's entry
//! of that name is gone: as overlayfs has it, so that Linux can mount the disk the same way.
//!
//! Positions for listing are as in `directory`: given once and for ever.

use super::node::{self, Sides};
use super::volume::{Guard, number};
use crate::errno::*;
use crate::fs::inode::{Inode, Listed};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use core::cell::RefCell;
use quorate_abi::image::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG};
use rsext4::{DirectoryCursor, DirectoryEntryType};

/// Most entries of a directory (R10): `ENOSPC` for one more, `EOVERFLOW` for a directory that has more.
pub const MAX_ENTRIES: usize = 1 << 20;
/// Entries asked of the volume at once.
const BATCH: usize = 512;

#[derive(Clone, Copy)]
struct Entry {
    sides: Sides,
    /// `d_ino`: stays when the entry is copied up.
    ino: u64,
    mode: u32,
    position: u64,
}

#[derive(Default)]
struct Listing {
    names: BTreeMap<Box<[u8]>, Entry>,
    order: BTreeMap<u64, Box<[u8]>>,
    next_position: u64,
    whiteouts: BTreeSet<Box<[u8]>>,
    /// Names that the image has, hidden ones too.
    lower: BTreeMap<Box<[u8]>, u32>,
}

/// A directory whose entries are not known at first.
#[derive(Default)]
pub struct DiskDir {
    listing: RefCell<Option<Listing>>,
    /// File systems mounted on names in it.
    mounts: RefCell<BTreeMap<Box<[u8]>, Rc<Inode>>>,
}

fn mode_of(kind: DirectoryEntryType) -> u32 {
    match kind {
        DirectoryEntryType::RegularFile => S_IFREG,
        DirectoryEntryType::Directory => S_IFDIR,
        DirectoryEntryType::CharacterDevice => S_IFCHR,
        DirectoryEntryType::BlockDevice => S_IFBLK,
        DirectoryEntryType::Fifo => S_IFIFO,
        DirectoryEntryType::Socket => crate::fs::inode::S_IFSOCK,
        DirectoryEntryType::Symlink => S_IFLNK,
        DirectoryEntryType::Unknown => 0,
    }
}

impl Listing {
    fn add(&mut self, name: &[u8], sides: Sides, mode: u32) {
        let position = match self.names.get(name) {
            Some(entry) => entry.position,
            None => {
                let position = self.next_position.max(2);
                self.next_position = position + 1;
                self.order.insert(position, name.into());
                position
            }
        };
        let entry = Entry {
            sides,
            ino: sides.ino(),
            mode,
            position,
        };
        self.names.insert(name.into(), entry);
    }

    fn remove(&mut self, name: &[u8]) {
        if let Some(entry) = self.names.remove(name) {
            self.order.remove(&entry.position);
        }
    }

    fn load(this: &Inode, guard: &Guard<'_>) -> Result<Self> {
        let mut listing = Self::default();
        let node = node::of(this)?;
        let image = this.sup.disk.as_ref().and_then(|d| d.image.as_ref());
        if let (Some(ino), Some(image)) = (node.lower, image) {
            for index in 0..image.count(ino)? {
                let (name, child) = image.entry(ino, index)?;
                listing.lower.insert(name.into(), child);
            }
        }
        if let Some(upper) = node.upper() {
            listing.load_upper(upper, image.is_some(), guard)?;
        }
        let hidden =
            |name: &[u8], l: &Self| l.names.contains_key(name) || l.whiteouts.contains(name);
        let shown = listing.lower.clone();
        for (name, ino) in shown {
            if !hidden(&name, &listing)
                && let Some(image) = image
            {
                let sides = Sides {
                    upper: None,
                    lower: Some(ino),
                };
                listing.add(&name, sides, image.mode(ino)?);
            }
        }
        Ok(listing)
    }

    fn load_upper(&mut self, upper: u32, over_image: bool, guard: &Guard<'_>) -> Result<()> {
        let mut cursor = DirectoryCursor::Start;
        let mut reader = guard.ask(|fs| fs.open_directory_reader(number(upper)?))?;
        loop {
            let batch =
                guard.ask(|fs| fs.read_directory_with_reader(&mut reader, cursor, BATCH))?;
            let Some(last) = batch.last() else {
                return Ok(());
            };
            cursor = last.next_cursor;
            for entry in &batch {
                if matches!(&*entry.name, b"." | b"..") {
                    continue;
                }
                if self.names.len() >= MAX_ENTRIES {
                    return Err(EOVERFLOW);
                }
                let mode = mode_of(entry.file_type);
                if over_image && mode == S_IFCHR {
                    let info = guard.ask(|fs| fs.inode(entry.inode))?;
                    if info.device_number == Some(rsext4::DeviceNumber::ZERO) {
                        self.whiteouts.insert(entry.name.as_slice().into());
                        continue;
                    }
                }
                let sides = Sides {
                    upper: Some(entry.inode.raw()),
                    lower: self.lower.get(&*entry.name).copied(),
                };
                self.add(&entry.name, sides, mode);
            }
        }
    }
}

impl DiskDir {
    /// Reads the entries if that has not been done, with the volume's lock held.
    pub fn load(&self, this: &Inode, guard: &Guard<'_>) -> Result<()> {
        if self.listing.borrow().is_none() {
            let listing = Listing::load(this, guard)?;
            *self.listing.borrow_mut() = Some(listing);
        }
        Ok(())
    }

    fn ensure(&self, this: &Inode) -> Result<()> {
        if self.listing.borrow().is_some() {
            return Ok(());
        }
        self.load(this, &this.sup.volume()?.lock())
    }

    fn with<T>(&self, read: impl FnOnce(&Listing) -> T) -> Option<T> {
        self.listing.borrow().as_ref().map(read)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Listing) -> T) -> Option<T> {
        self.listing.borrow_mut().as_mut().map(change)
    }

    /// The sides of entry `name`, once loaded.
    pub fn sides(&self, name: &[u8]) -> Option<Sides> {
        self.with(|l| l.names.get(name).map(|e| e.sides)).flatten()
    }

    /// The entry `name`.
    pub fn lookup(&self, this: &Rc<Inode>, name: &[u8]) -> Result<Option<Rc<Inode>>> {
        if let Some(root) = self.mounts.borrow().get(name) {
            return Ok(Some(root.clone()));
        }
        self.ensure(this)?;
        match self.sides(name) {
            Some(sides) => node::get(this, name, sides, None).map(Some),
            None => Ok(None),
        }
    }

    /// Whether one more entry is allowed.
    pub fn has_room(&self) -> bool {
        self.with(|l| l.names.len() < MAX_ENTRIES).unwrap_or(true)
    }

    /// There is an entry now.
    pub fn add(&self, name: &[u8], sides: Sides, mode: u32) {
        self.change(|l| l.add(name, sides, mode));
    }

    /// An entry has gone.
    pub fn remove(&self, name: &[u8]) {
        self.change(|l| l.remove(name));
    }

    /// An entry of the image has been copied to the volume.
    pub fn has_upper(&self, name: &[u8], upper: u32) {
        self.change(|l| {
            if let Some(entry) = l.names.get_mut(name) {
                entry.sides.upper = Some(upper);
            }
        });
    }

    /// What the image has under this name, hidden or not.
    pub fn lower(&self, name: &[u8]) -> Option<u32> {
        self.with(|l| l.lower.get(name).copied()).flatten()
    }

    /// Whether a whiteout hides this name.
    pub fn is_white(&self, name: &[u8]) -> bool {
        self.with(|l| l.whiteouts.contains(name)).unwrap_or(false)
    }

    /// Notes a whiteout, or that it has gone.
    pub fn set_white(&self, name: &[u8], white: bool) {
        self.change(|l| {
            if white {
                l.whiteouts.insert(name.into());
            } else {
                l.whiteouts.remove(name);
            }
        });
    }

    /// A name that is a whiteout.
    pub fn any_white(&self) -> Option<Box<[u8]>> {
        self.with(|l| l.whiteouts.first().cloned()).flatten()
    }

    /// Whether it has no entries, once loaded.
    pub fn is_empty(&self) -> bool {
        self.with(|l| l.names.is_empty()).unwrap_or(true) && self.mounts.borrow().is_empty()
    }

    /// Whether another file system is mounted on a name in it.
    pub fn has_mounts(&self) -> bool {
        !self.mounts.borrow().is_empty()
    }

    /// Puts the root of another file system at a name.
    pub fn mount(&self, name: &[u8], root: &Rc<Inode>) {
        self.mounts.borrow_mut().insert(name.into(), root.clone());
    }

    /// Entries at positions from `from` (at least 2) on, until `emit` returns false.
    pub fn list(
        &self,
        this: &Inode,
        from: u64,
        emit: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> Result<()> {
        self.ensure(this)?;
        let listing = self.listing.borrow();
        let Some(listing) = listing.as_ref() else {
            return Ok(());
        };
        let mut next = from;
        for (position, name) in listing.order.range(from..) {
            next = *position + 1;
            if let Some(entry) = listing.names.get(name)
                && !emit(Listed::new(*position, name, entry.ino, entry.mode))
            {
                return Ok(());
            }
        }
        // Mounted names that nothing lies under: behind everything else, by name.
        let first = listing.next_position.max(2);
        for (position, (name, root)) in (first..).zip(&*self.mounts.borrow()) {
            if position >= next.max(from)
                && !listing.names.contains_key(name)
                && !emit(Listed::new(position, name, root.ino, S_IFDIR))
            {
                return Ok(());
            }
        }
        Ok(())
    }
}
