//! File systems: what the inodes of one have in common.

use super::disk::node::{DiskNode, DiskSuper};
use super::disk::volume::Volume;
use super::inode::Inode;
use super::space::Space;
use crate::errno::*;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// One file system: what its inodes have in common.
pub struct Super {
    /// `st_dev`.
    pub dev: u64,
    /// `f_type` of `statfs`.
    pub magic: u64,
    /// The account for pages and objects.
    pub space: Rc<Space>,
    /// What it has if it is on a disk.
    pub disk: Option<DiskSuper>,
    /// Nothing can be changed.
    read_only: Cell<bool>,
    next_ino: Cell<u64>,
    /// Inodes of the root image and of disks that were looked up: two names of one file get the same inode, and changes are kept.
    known: RefCell<BTreeMap<u64, Rc<Inode>>>,
    /// Where the search for inodes that nobody uses goes on.
    sweep: Cell<u64>,
}

impl Super {
    /// A file system whose new inodes are numbered from `first_ino`.
    pub fn new(dev: u64, magic: u64, space: Rc<Space>, first_ino: u64) -> Rc<Self> {
        Self::with(dev, magic, space, first_ino, None)
    }

    /// A file system on a disk.
    pub fn on_disk(dev: u64, magic: u64, space: Rc<Space>, disk: DiskSuper) -> Rc<Self> {
        Self::with(dev, magic, space, 0, Some(disk))
    }

    fn with(
        dev: u64,
        magic: u64,
        space: Rc<Space>,
        first_ino: u64,
        disk: Option<DiskSuper>,
    ) -> Rc<Self> {
        Rc::new(Self {
            dev,
            magic,
            space,
            disk,
            read_only: Cell::new(false),
            next_ino: Cell::new(first_ino),
            known: RefCell::new(BTreeMap::new()),
            sweep: Cell::new(0),
        })
    }

    /// Refuses changes from now on.
    pub fn set_read_only(&self) {
        self.read_only.set(true);
    }

    /// Whether nothing can be changed.
    pub fn read_only(&self) -> bool {
        self.read_only.get() || self.disk.as_ref().is_some_and(|d| d.volume.read_only())
    }

    /// Checks that something can be changed.
    ///
    /// # Errors
    /// `EROFS`.
    pub fn check_writable(&self) -> Result<()> {
        if self.read_only() { Err(EROFS) } else { Ok(()) }
    }

    /// The volume of a file system on a disk.
    ///
    /// # Errors
    /// `EXDEV` if it is on none.
    pub fn volume(&self) -> Result<&Rc<Volume>> {
        self.disk.as_ref().map(|d| &d.volume).ok_or(EXDEV)
    }

    /// An inode that was remembered.
    pub fn known(&self, ino: u64) -> Option<Rc<Inode>> {
        self.known.borrow().get(&ino).cloned()
    }

    /// Keeps an inode until it is forgotten.
    pub fn remember(&self, inode: &Rc<Inode>) {
        self.known.borrow_mut().insert(inode.ino, inode.clone());
    }

    /// [`Self::remember`] for inodes that can be made again: with more than `most`, those that nobody uses go.
    pub fn remember_some(&self, inode: &Rc<Inode>, most: usize) {
        /// Inodes that one call looks at, so that it does not take long.
        const LOOK_AT: usize = 32;
        self.remember(inode);
        if self.known.borrow().len() <= most {
            return;
        }
        let candidates: Vec<(u64, Rc<Inode>)> = {
            let known = self.known.borrow();
            let from = self.sweep.get();
            let upper = known.range(from..).chain(known.range(..from));
            let candidates = upper.take(LOOK_AT).map(|(i, inode)| (*i, inode.clone()));
            candidates.collect()
        };
        for (ino, old) in candidates {
            self.sweep.set(ino + 1);
            // Known under one number or two, and here.
            let own = 1 + usize::from(ino != old.ino || self.has_second(&old));
            if Rc::strong_count(&old) == own + 1 && old.can_be_forgotten() {
                self.forget(old.ino);
                self.forget(ino);
                if let Some(upper) = old.disk.as_ref().and_then(DiskNode::upper) {
                    self.forget(u64::from(upper));
                }
            }
        }
    }

    fn has_second(&self, inode: &Inode) -> bool {
        let upper = inode.disk.as_ref().and_then(DiskNode::upper);
        upper.is_some_and(|upper| {
            u64::from(upper) != inode.ino && self.known.borrow().contains_key(&u64::from(upper))
        })
    }

    /// Keeps an inode under a second number: that of its copy on the volume.
    pub fn remember_as(&self, ino: u64, inode: &Rc<Inode>) {
        self.known.borrow_mut().insert(ino, inode.clone());
    }

    /// Lets go of an inode that has lost its last name, so that its pages are freed with the last descriptor.
    pub fn forget(&self, ino: u64) {
        let inode = self.known.borrow_mut().remove(&ino);
        drop(inode);
    }

    /// A number for a new inode.
    pub fn next_ino(&self) -> u64 {
        let ino = self.next_ino.get();
        self.next_ino.set(ino + 1);
        ino
    }
}
