//! A mounted ext4 file system: the library behind one lock on which threads sleep, and its errors as Linux gives them.

use super::device::{Adapter, BLOCK, BlockDevice, CACHED_BLOCKS, Handle, SECTOR};
use crate::errno::*;
use crate::fs::inode::Inode;
use crate::mm;
use crate::time::{self, Timespec};
use crate::wait::{WaitQueue, wait_uninterruptible};
use alloc::collections::BTreeSet;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell, RefMut};
use core::sync::atomic::{AtomicU64, Ordering};
use rsext4::{
    Clock, Ext4, Ext4Error, Ext4ErrorKind, Ext4Result, Ext4Timestamp, FileExtentState,
    FileExtentTarget, InodeNumber, MountOptions, MountServices, MountedServices, NoopObserver,
    RangeOperation, ZeroRangeOptions,
};

/// The library's mounted file system.
pub type Fs = Ext4<Handle, MountedServices<(), NoopObserver, ()>>;

/// Commits after which the file system is taken down and up again if that is possible, which empties the journal at once. (The
/// library frees the journal's space transaction by transaction, two flushes each, when it has wrapped.)
const COMMITS_PER_CHECKPOINT: u32 = 128;
/// Pages that the library's own caches and journal may take.
const LIBRARY_PAGES: u64 = 512;
/// Extents of one answer about where a file lies.
const EXTENTS: usize = 64;

/// Time that inodes get instead of the current one, in nanoseconds since 1970; 0: the current one.
static STAMP: AtomicU64 = AtomicU64::new(0);

/// The journal's time (R1), or the stamp.
struct JournalClock;

impl Clock for JournalClock {
    fn now(&self) -> Ext4Result<Ext4Timestamp> {
        let ns = match STAMP.load(Ordering::Relaxed) {
            0 => time::realtime_ns(),
            stamp => stamp,
        };
        let sec = (ns / 1_000_000_000) as i64;
        Ok(Ext4Timestamp::new(sec, (ns % 1_000_000_000) as u32))
    }
}

/// Where a part of a file lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First byte in the file.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// First byte on the device; None: reserved, reads as zeroes.
    pub place: Option<u64>,
}

/// A lock on which threads sleep. They get it in the order in which they came.
#[derive(Default)]
pub struct SleepLock {
    held: Cell<bool>,
    queue: WaitQueue,
}

/// A [`SleepLock`], held.
pub struct Held<'l>(&'l SleepLock);

impl SleepLock {
    /// Waits for the lock.
    pub fn lock(&self) -> Held<'_> {
        while self.held.get() {
            wait_uninterruptible(&self.queue);
        }
        self.held.set(true);
        Held(self)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.set(false);
        self.0.queue.wake_one();
    }
}

/// A mounted file system.
pub struct Volume {
    /// The disk, for messages.
    pub name: String,
    fs: RefCell<Option<Fs>>,
    adapter: Rc<RefCell<Adapter>>,
    lock: SleepLock,
    read_only: Cell<bool>,
    /// Blocks that are free, as of the last time the lock was released.
    free: Cell<u64>,
    /// Something was changed since the last commit.
    changed: Cell<bool>,
    commits: Cell<u32>,
    /// Inodes without a name that are in use.
    orphans: RefCell<BTreeSet<u32>>,
    /// Inodes without a name whose last user has gone.
    reap: RefCell<Vec<u32>>,
    /// The error that ended writing was told.
    told: Cell<bool>,
    /// Files that somebody waits for to be committed.
    asked: RefCell<Vec<Rc<Inode>>>,
    /// Calls of [`Self::commit_with`], and up to which they are served.
    tickets: Cell<u64>,
    committed: Cell<u64>,
}

/// The lock of a volume, held. Threads may wait while they hold it.
pub struct Guard<'v> {
    volume: &'v Volume,
    _held: Held<'v>,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // An error shows at the next flush.
        let _ = self.volume.adapter.borrow_mut().submit();
        if let Ok(fs) = self.fs() {
            self.volume.free.set(fs.statfs().free_blocks);
        }
    }
}

/// The error number for an error of the library.
pub fn errno(error: Ext4Error) -> Errno {
    match error.kind() {
        Ext4ErrorKind::ReadOnly => EROFS,
        Ext4ErrorKind::NoSpace => ENOSPC,
        Ext4ErrorKind::NoMemory => ENOMEM,
        Ext4ErrorKind::TooManyLinks => EMLINK,
        Ext4ErrorKind::PermissionDenied => EPERM,
        Ext4ErrorKind::NotFound => ENOENT,
        Ext4ErrorKind::AlreadyExists => EEXIST,
        Ext4ErrorKind::NotDirectory => ENOTDIR,
        Ext4ErrorKind::IsDirectory => EISDIR,
        Ext4ErrorKind::NotEmpty => ENOTEMPTY,
        Ext4ErrorKind::InvalidInput => EINVAL,
        Ext4ErrorKind::FileTooLarge | Ext4ErrorKind::Overflow => EFBIG,
        Ext4ErrorKind::Unsupported => EOPNOTSUPP,
        Ext4ErrorKind::Busy => EBUSY,
        _ => EIO,
    }
}

fn mount(handle: Handle, read_only: bool) -> Ext4Result<Fs> {
    let options = if read_only {
        // A journal to replay needs writing; the library says so.
        MountOptions {
            readonly: true,
            replay_journal: false,
            block_validity: true,
        }
    } else {
        MountOptions::read_write()
    };
    Ext4::mount(
        handle,
        MountServices::new(JournalClock, (), NoopObserver),
        options,
    )
}

/// The library's number for an inode.
pub fn number(ino: u32) -> Ext4Result<InodeNumber> {
    InodeNumber::new(ino)
}

impl Volume {
    /// Mounts the file system on a device.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn mount(
        name: &str,
        device: Rc<dyn BlockDevice>,
        read_only: bool,
    ) -> core::result::Result<Rc<Self>, String> {
        let read_only = read_only || device.read_only();
        let pages = CACHED_BLOCKS as u64 + LIBRARY_PAGES;
        mm::budget::take(pages)
            .map_err(|_| alloc::format!("{name}: not enough memory ([machine] memory)"))?;
        let adapter = Rc::new(RefCell::new(Adapter::new(device)));
        let fs = mount(Handle(adapter.clone()), read_only)
            .map_err(|error| alloc::format!("{name}: {error}"))?;
        let block = fs.statfs().block_size;
        if block != BLOCK as u64 {
            return Err(alloc::format!(
                "{name}: blocks of {block} bytes; only {BLOCK} are served (mke2fs -b {BLOCK})"
            ));
        }
        let free = fs.statfs().free_blocks;
        Ok(Rc::new(Self {
            name: name.into(),
            fs: RefCell::new(Some(fs)),
            adapter,
            lock: SleepLock::default(),
            read_only: Cell::new(read_only),
            free: Cell::new(free),
            changed: Cell::new(false),
            commits: Cell::new(0),
            orphans: RefCell::new(BTreeSet::new()),
            reap: RefCell::new(Vec::new()),
            told: Cell::new(false),
            asked: RefCell::default(),
            tickets: Cell::new(0),
            committed: Cell::new(0),
        }))
    }

    /// Whether nothing can be changed.
    pub fn read_only(&self) -> bool {
        self.read_only.get()
    }

    /// Takes the lock; threads get it in the order in which they came.
    pub fn lock(&self) -> Guard<'_> {
        let guard = Guard {
            _held: self.lock.lock(),
            volume: self,
        };
        guard.reap();
        guard
    }

    /// Blocks that are free.
    pub fn free_blocks(&self) -> u64 {
        self.free.get()
    }

    /// An inode has lost its last name; [`Self::reap_later`] follows when nobody uses it any more.
    pub fn orphaned(&self, ino: u32) {
        self.orphans.borrow_mut().insert(ino);
    }

    /// An inode without a name has lost its last user: its blocks are freed with the next operation.
    pub fn reap_later(&self, ino: u32) {
        self.orphans.borrow_mut().remove(&ino);
        self.reap.borrow_mut().push(ino);
    }

    /// Whether there is something that a commit would write.
    pub fn needs_commit(&self) -> bool {
        self.changed.get() || !self.reap.borrow().is_empty()
    }

    /// Writes a file and commits. Who comes while another commits is written together with all others who come meanwhile, in one commit.
    ///
    /// # Errors
    /// As [`Guard::commit`].
    pub fn commit_with(
        &self,
        inode: &Rc<Inode>,
        write: impl Fn(&Rc<Inode>, &Guard<'_>),
    ) -> Result<()> {
        let ticket = self.tickets.get() + 1;
        self.tickets.set(ticket);
        self.asked.borrow_mut().push(inode.clone());
        let guard = self.lock();
        if self.committed.get() >= ticket {
            return Ok(());
        }
        let last = self.tickets.get();
        let all = core::mem::take(&mut *self.asked.borrow_mut());
        for inode in &all {
            write(inode, &guard);
        }
        guard.commit()?;
        self.committed.set(last);
        Ok(())
    }

    /// Says once what went wrong, and refuses changes from now on.
    fn broken(&self, error: Ext4Error) {
        if !self.told.replace(true) {
            crate::klog!("{}: {error}; nothing can be written any more", self.name);
        }
        self.read_only.set(true);
    }
}

impl Guard<'_> {
    fn fs(&self) -> Result<RefMut<'_, Fs>> {
        RefMut::filter_map(self.volume.fs.borrow_mut(), Option::as_mut).map_err(|_| EIO)
    }

    fn converted<T>(&self, result: Ext4Result<T>) -> Result<T> {
        result.map_err(|error| {
            let kind = error.kind();
            if matches!(kind, Ext4ErrorKind::Io | Ext4ErrorKind::JournalAborted)
                || error.is_corruption()
            {
                self.volume.broken(error);
            }
            errno(error)
        })
    }

    /// Asks the file system.
    pub fn ask<T>(&self, ask: impl FnOnce(&mut Fs) -> Ext4Result<T>) -> Result<T> {
        let result = ask(&mut *self.fs()?);
        self.converted(result)
    }

    /// Changes the file system.
    ///
    /// # Errors
    /// `EROFS`, and what the change meets.
    pub fn change<T>(&self, change: impl FnOnce(&mut Fs) -> Ext4Result<T>) -> Result<T> {
        if self.volume.read_only.get() {
            return Err(EROFS);
        }
        if !self.volume.changed.replace(true) {
            super::wake_background();
        }
        self.ask(change)
    }

    /// [`Self::change`], with times of inodes as of `stamp`.
    pub fn change_at<T>(
        &self,
        stamp: Timespec,
        change: impl FnOnce(&mut Fs) -> Ext4Result<T>,
    ) -> Result<T> {
        let ns = stamp.sec.max(0) as u64 * 1_000_000_000 + stamp.nsec as u64;
        STAMP.store(ns, Ordering::Relaxed);
        let result = self.change(change);
        STAMP.store(0, Ordering::Relaxed);
        result
    }

    /// Where the bytes from `start` on lie; what is not named is a hole. At most so many extents that it is worth asking again
    /// behind the last.
    pub fn extents(&self, ino: u32, start: u64, len: u64) -> Result<Vec<Extent>> {
        let map = self.ask(|fs| {
            fs.inode_extents(number(ino)?, start, len, FileExtentTarget::Data, EXTENTS)
        })?;
        let extents = map.extents.iter().map(|extent| Extent {
            start: extent.logical_start,
            len: extent.length,
            place: (extent.state == FileExtentState::Initialized).then_some(extent.physical_start),
        });
        Ok(extents.collect())
    }

    /// Reads from the device, whole blocks.
    pub fn read_device(&self, place: u64, to: &mut [u8]) -> Result<()> {
        let result = self
            .volume
            .adapter
            .borrow_mut()
            .read_direct(place / SECTOR, to);
        self.converted(result)
    }

    /// Makes whole blocks of a file read as zeroes, and frees them.
    ///
    /// The library's hole punching fails where it has to cut an extent in two and the node is full; its conversion to reserved blocks does
    /// not. So what is cut is converted first, and only whole extents are taken out. (Where reserved blocks go on outside of the
    /// range, those inside stay reserved.)
    pub fn punch(&self, ino: u32, start: u64, len: u64) -> Result<()> {
        let end = start + len;
        let mut at = start;
        while at < end {
            let extents = self.extents(ino, at, end - at)?;
            let Some(last) = extents.last() else { break };
            let next = last.start + last.len;
            for cut in extents
                .iter()
                .filter(|e| e.start < at || e.start + e.len > end)
            {
                let (from, until) = (cut.start.max(at), (cut.start + cut.len).min(end));
                if cut.place.is_some() && from < until {
                    let zero = RangeOperation::Zero(ZeroRangeOptions::KEEP_SIZE);
                    self.change(|fs| {
                        fs.operate_inode_range(number(ino)?, from, until - from, zero)
                    })?;
                }
            }
            for extent in self.extents(ino, at, end.min(next) - at)? {
                if extent.start >= at && extent.start + extent.len <= end {
                    let (from, len) = (extent.start, extent.len);
                    self.change(|fs| {
                        fs.operate_inode_range(number(ino)?, from, len, RangeOperation::PunchHole)
                    })?;
                }
            }
            at = next.max(at + BLOCK as u64);
        }
        Ok(())
    }

    /// Frees what has been left.
    fn reap(&self) {
        loop {
            let Some(ino) = self.volume.reap.borrow_mut().pop() else {
                return;
            };
            // An error leaves it to the next mount, which looks for such inodes.
            let _ = self.change(|fs| fs.reap_unlinked_inode(number(ino)?));
        }
    }

    /// Frees all inodes without a name, used or not: the users are gone for good.
    pub fn reap_all(&self) {
        let orphans = core::mem::take(&mut *self.volume.orphans.borrow_mut());
        self.volume.reap.borrow_mut().extend(orphans);
        self.reap();
    }

    /// Commits everything to stable storage.
    ///
    /// # Errors
    /// `EIO`; the volume is read-only then.
    pub fn commit(&self) -> Result<()> {
        if self.volume.told.get() {
            return Err(EIO);
        }
        if !self.volume.changed.get() || self.volume.read_only.get() {
            return Ok(());
        }
        self.ask(Fs::sync)?;
        self.volume.changed.set(false);
        let commits = self.volume.commits.get() + 1;
        self.volume.commits.set(commits);
        if commits >= COMMITS_PER_CHECKPOINT {
            self.volume.commits.set(0);
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Empties the journal by taking the file system down and up again. Not while there are inodes without a name: then it waits for
    /// the next time.
    fn checkpoint(&self) -> Result<()> {
        let down = self.fs()?.unmount();
        match down {
            Ok(()) => {}
            Err(error) if error.kind() == Ext4ErrorKind::Busy => return Ok(()),
            Err(error) => return self.converted(Err(error)),
        }
        let handle = Handle(self.volume.adapter.clone());
        // The old one goes first: it is down, and holds nothing that is not on the device.
        self.volume.fs.borrow_mut().take();
        let up = mount(handle, false);
        let up = self.converted(up)?;
        *self.volume.fs.borrow_mut() = Some(up);
        Ok(())
    }

    /// Takes the file system down for good, clean.
    ///
    /// # Errors
    /// `EIO`; `EBUSY` if inodes without a name are still in use.
    pub fn unmount(&self) -> Result<()> {
        if self.volume.told.get() {
            return Err(EIO);
        }
        let result = self.fs()?.unmount();
        self.converted(result)?;
        let mut adapter = self.volume.adapter.borrow_mut();
        let flushed = adapter.submit();
        drop(adapter);
        self.converted(flushed)?;
        self.volume.fs.borrow_mut().take();
        self.volume.read_only.set(true);
        Ok(())
    }
}
