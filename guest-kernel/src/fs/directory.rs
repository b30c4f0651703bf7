//! Directories: changes in memory over, possibly, a directory of the root image.
//!
//! Positions for listing: 0 and 1 are `.` and `..`, image entry `i` is at `2 + i`, and each entry made later gets the next
//! position for ever, so that a listing that is under way while entries come and go neither repeats nor skips one.

use super::image_fs::ImageFs;
use super::inode::{Inode, Listed};
use crate::errno::*;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use core::cell::RefCell;

/// A directory of the root image.
pub struct Lower {
    /// The image.
    pub image: Rc<ImageFs>,
    /// The directory's inode number there.
    pub ino: u32,
    /// Number of entries.
    pub count: u64,
}

struct Upper {
    inode: Rc<Inode>,
    position: u64,
}

struct Changes {
    /// Names that differ from the image; None: the image's entry is gone.
    names: BTreeMap<Box<[u8]>, Option<Upper>>,
    order: BTreeMap<u64, Box<[u8]>>,
    next_position: u64,
}

/// A directory.
pub struct Directory {
    lower: Option<Lower>,
    changes: RefCell<Changes>,
}

impl Directory {
    /// A directory over one of the image, or an empty one.
    pub fn new(lower: Option<Lower>) -> Self {
        let next_position = 2 + lower.as_ref().map_or(0, |l| l.count);
        Self {
            lower,
            changes: RefCell::new(Changes {
                names: BTreeMap::new(),
                order: BTreeMap::new(),
                next_position,
            }),
        }
    }

    /// The entry `name`; `this` is the directory's inode.
    pub fn lookup(&self, this: &Rc<Inode>, name: &[u8]) -> Result<Option<Rc<Inode>>> {
        if let Some(change) = self.changes.borrow().names.get(name) {
            return Ok(change.as_ref().map(|upper| upper.inode.clone()));
        }
        let Some(lower) = &self.lower else {
            return Ok(None);
        };
        match lower.image.lookup(lower.ino, name)? {
            Some(ino) => lower.image.inode(ino, this, name).map(Some),
            None => Ok(None),
        }
    }

    fn in_image(&self, name: &[u8]) -> Result<bool> {
        match &self.lower {
            Some(lower) => Ok(lower.image.lookup(lower.ino, name)?.is_some()),
            None => Ok(false),
        }
    }

    /// Adds an entry, or makes the existing entry `name` refer to `child`. Link counts are the caller's business.
    ///
    /// # Errors
    /// `ENOSPC` at the bound on objects.
    pub fn insert(&self, this: &Rc<Inode>, name: &[u8], child: &Rc<Inode>) -> Result<()> {
        let mut changes = self.changes.borrow_mut();
        let changes = &mut *changes;
        if !changes.names.contains_key(name) {
            this.sup.space.take_object()?;
        }
        let position = match changes.names.get(name) {
            Some(Some(upper)) => upper.position,
            _ => {
                let position = changes.next_position;
                changes.next_position += 1;
                changes.order.insert(position, name.into());
                position
            }
        };
        let upper = Upper {
            inode: child.clone(),
            position,
        };
        changes.names.insert(name.into(), Some(upper));
        if child.is_dir() {
            *child.place.borrow_mut() = Some((this.clone(), name.into()));
        }
        Ok(())
    }

    /// Takes an entry out.
    ///
    /// # Errors
    /// `ENOSPC` if that needs an object and there is none; `EIO` where the image is damaged.
    pub fn remove(&self, this: &Rc<Inode>, name: &[u8]) -> Result<()> {
        let in_image = self.in_image(name)?;
        let mut changes = self.changes.borrow_mut();
        let changes = &mut *changes;
        match changes.names.remove(name) {
            Some(Some(upper)) => {
                changes.order.remove(&upper.position);
                if !in_image {
                    this.sup.space.give_objects(1);
                }
            }
            Some(None) => {}
            None if in_image => this.sup.space.take_object()?,
            None => {}
        }
        if in_image {
            changes.names.insert(name.into(), None);
        }
        Ok(())
    }

    /// Whether it has no entries.
    ///
    /// # Errors
    /// `EIO` where the image is damaged.
    pub fn is_empty(&self) -> Result<bool> {
        let mut empty = true;
        self.list(2, &mut |_| {
            empty = false;
            false
        })?;
        Ok(empty)
    }

    /// Entries at positions from `from` (at least 2) on, until `emit` returns false.
    ///
    /// # Errors
    /// `EIO` where the image is damaged.
    pub fn list(&self, from: u64, emit: &mut dyn FnMut(Listed<'_>) -> bool) -> Result<()> {
        let changes = self.changes.borrow();
        let mut position = from.max(2);
        if let Some(lower) = &self.lower {
            while position < 2 + lower.count {
                let (name, ino) = lower.image.entry(lower.ino, position - 2)?;
                if !changes.names.contains_key(name) {
                    let mode = lower.image.mode(ino)?;
                    if !emit(Listed::new(position, name, u64::from(ino), mode)) {
                        return Ok(());
                    }
                }
                position += 1;
            }
        }
        for (position, name) in changes.order.range(position..) {
            if let Some(Some(upper)) = changes.names.get(name) {
                let inode = &upper.inode;
                if !emit(Listed::new(*position, name, inode.ino, inode.file_type())) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
