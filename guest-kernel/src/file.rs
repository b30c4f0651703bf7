//! Open files, and the table that maps descriptors to them.

use crate::errno::*;
use crate::mm::Page;
use crate::process::{self, Process};
use crate::wait::WaitQueue;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::Cell;

/// Flags of `open` and `fcntl` (Linux x86-64 values).
pub mod flags {
    #![allow(missing_docs)]
    pub const O_ACCMODE: u32 = 3;
    pub const O_RDONLY: u32 = 0;
    pub const O_WRONLY: u32 = 1;
    pub const O_RDWR: u32 = 2;
    pub const O_CREAT: u32 = 0o100;
    pub const O_EXCL: u32 = 0o200;
    pub const O_NOCTTY: u32 = 0o400;
    pub const O_TRUNC: u32 = 0o1000;
    pub const O_APPEND: u32 = 0o2000;
    pub const O_NONBLOCK: u32 = 0o4000;
    pub const O_DSYNC: u32 = 0o10000;
    pub const O_ASYNC: u32 = 0o20000;
    pub const O_DIRECT: u32 = 0o40000;
    pub const O_LARGEFILE: u32 = 0o100000;
    pub const O_DIRECTORY: u32 = 0o200000;
    pub const O_NOFOLLOW: u32 = 0o400000;
    pub const O_NOATIME: u32 = 0o1000000;
    pub const O_CLOEXEC: u32 = 0o2000000;
    pub const O_PATH: u32 = 0o10000000;
    pub const O_TMPFILE: u32 = 0o20200000;
}

/// Readiness bits (poll and epoll share them).
pub mod ready {
    #![allow(missing_docs)]
    pub const IN: u32 = 0x1;
    pub const PRI: u32 = 0x2;
    pub const OUT: u32 = 0x4;
    pub const ERR: u32 = 0x8;
    pub const HUP: u32 = 0x10;
    pub const NVAL: u32 = 0x20;
    pub const RDNORM: u32 = 0x40;
    pub const RDBAND: u32 = 0x80;
    pub const WRNORM: u32 = 0x100;
    pub const WRBAND: u32 = 0x200;
    pub const RDHUP: u32 = 0x2000;
}

/// `struct stat` of x86-64, as `newfstatat` fills it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    pub nlink: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub pad0: u32,
    pub rdev: u64,
    pub size: i64,
    pub blksize: i64,
    pub blocks: i64,
    pub atime: crate::time::Timespec,
    pub mtime: crate::time::Timespec,
    pub ctime: crate::time::Timespec,
    pub reserved: [i64; 3],
}
// SAFETY: repr(C), integers only.
unsafe impl crate::user::Plain for Stat {}

/// A page of a file, for a memory mapping.
pub enum MapPage {
    /// A page that the file keeps in memory of its own; the mapping holds a reference.
    Shared(Rc<Page>),
    /// A page of the root image, at this physical address; read-only for ever.
    Image(u64),
}

/// What an open descriptor refers to. Operations never block: what would block returns `EAGAIN`, and the system call
/// waits on [`File::wait_queue`] and tries again. Defaults say "not this kind of file" with the error that Linux gives.
pub trait File: Any {
    /// Reads at the current end of a stream. `EINVAL` where reading makes no sense.
    fn read(&self, _buf: &mut [u8]) -> Result<usize> {
        Err(EINVAL)
    }
    /// Writes to a stream.
    fn write(&self, _buf: &[u8]) -> Result<usize> {
        Err(EINVAL)
    }
    /// Whether the file has positions: then `read_at` and `write_at` are used, else `read` and `write`.
    fn seekable(&self) -> bool {
        false
    }
    /// Reads at a position.
    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<usize> {
        Err(ESPIPE)
    }
    /// Writes at a position.
    fn write_at(&self, _offset: u64, _buf: &[u8]) -> Result<usize> {
        Err(ESPIPE)
    }
    /// Size, for `lseek(SEEK_END)` and `O_APPEND`.
    fn size(&self) -> Result<u64> {
        Err(ESPIPE)
    }
    /// Readiness now, in bits of [`ready`].
    fn poll(&self) -> u32 {
        ready::IN | ready::OUT | ready::RDNORM | ready::WRNORM
    }
    /// Woken when `poll` may have changed. None: always ready.
    fn wait_queue(&self) -> Option<&WaitQueue> {
        None
    }
    /// Attributes.
    fn stat(&self) -> Result<Stat>;
    /// Device control. `ENOTTY` for what the file does not know.
    fn ioctl(&self, _command: u32, _arg: u64) -> Result<u64> {
        Err(ENOTTY)
    }
    /// Whether reading and writing at a position may wait (for a disk). Then the bytes must lie in memory of the kernel: a program's could
    /// be unmapped meanwhile by another thread.
    fn may_wait(&self) -> bool {
        false
    }
    /// Keeps other writers out while one writes that may wait: take it before the position is looked at.
    fn lock_writes(&self) -> Option<crate::fs::WriteLock<'_>> {
        None
    }
    /// What is kept of the disk in this range is read anew the next time (`O_DIRECT`, `POSIX_FADV_DONTNEED`).
    fn forget_pages(&self, _offset: u64, _len: u64) {}
    /// Loads pages for which `map_page` has said `EAGAIN`. May wait.
    fn load_pages(&self, _index: u64, _count: u64) -> Result<()> {
        Ok(())
    }
    /// Changes the size.
    fn truncate(&self, _size: u64) -> Result<()> {
        Err(EINVAL)
    }
    /// The page with index `index` (offset / 4096) for a mapping. `shared_write`: the mapping is MAP_SHARED and writable.
    /// `ENXIO` beyond the end of the file (an access there is SIGBUS); `ENODEV` if it cannot be mapped; `EAGAIN` if
    /// [`Self::load_pages`] has to be called first. Never waits.
    fn map_page(&self, _index: u64, _shared_write: bool) -> Result<MapPage> {
        Err(ENODEV)
    }
    /// Names the contents that `map_page` shows, for all descriptions of one file alike; 0 if they never go away.
    fn map_key(&self) -> usize {
        0
    }
    /// Whether one `writev` must arrive as one `write` and one `readv` be served by one `read` (pipes, datagrams);
    /// otherwise each part of the vector is written or read by itself.
    fn gathers(&self) -> bool {
        false
    }
    /// For how long a blocking read (or write) waits before it fails with `EAGAIN` (`SO_RCVTIMEO`, `SO_SNDTIMEO`).
    fn patience_ns(&self, _write: bool) -> Option<u64> {
        None
    }
    /// Whether what is read from it and written to it goes into the fingerprint. Not so for what stays inside the
    /// process (pipes): programs pass addresses to their own threads, and those differ between replicas (R8).
    fn digested(&self) -> bool {
        true
    }
    /// Path by which it was opened, for /proc and diagnostics; empty if none.
    fn path(&self) -> Vec<u8> {
        Vec::new()
    }
    /// For downcasts to what only one kind of file can do (sockets, epoll, directories).
    fn as_any(&self) -> &dyn Any;
}

/// An open file description: shared by duplicated descriptors.
pub struct OpenFile {
    /// The file.
    pub file: Rc<dyn File>,
    /// Access mode and status flags (`O_NONBLOCK`, `O_APPEND`).
    pub flags: Cell<u32>,
    /// Position of seekable files.
    pub position: Cell<u64>,
    /// Whom `O_ASYNC` tells.
    pub signalled: crate::fs::signalled::Signalled,
}

impl OpenFile {
    /// A new description at position 0.
    pub fn new(file: Rc<dyn File>, flags: u32) -> Rc<Self> {
        Rc::new(Self {
            file,
            flags: Cell::new(flags & !flags::O_CLOEXEC),
            position: Cell::new(0),
            signalled: crate::fs::signalled::Signalled::default(),
        })
    }

    /// Whether calls return `EAGAIN` instead of waiting.
    pub fn nonblocking(&self) -> bool {
        self.flags.get() & flags::O_NONBLOCK != 0
    }

    /// Whether the access mode allows reading.
    pub fn readable(&self) -> bool {
        self.flags.get() & flags::O_ACCMODE != flags::O_WRONLY
    }

    /// Whether the access mode allows writing.
    pub fn writable(&self) -> bool {
        self.flags.get() & flags::O_ACCMODE != flags::O_RDONLY
    }
}

/// Descriptors of a process. Its limit is RLIMIT_NOFILE.
#[derive(Clone)]
pub struct FdTable {
    slots: Vec<Option<(Rc<OpenFile>, bool)>>,
    /// Soft limit on the number of descriptors (RLIMIT_NOFILE).
    pub limit: usize,
}

/// The running process's descriptors. Do not hold across a wait, and drop what `remove` and `replace` return only
/// after the borrow ends (closing a file may run code that needs the table).
pub fn table() -> core::cell::RefMut<'static, FdTable> {
    process::current().files.borrow_mut()
}

/// The open file behind a descriptor.
///
/// # Errors
/// `EBADF`.
pub fn get(fd: i32) -> Result<Rc<OpenFile>> {
    get_of(process::current(), fd)
}

/// The open file behind a descriptor of some process.
///
/// # Errors
/// `EBADF`.
pub fn get_of(process: &Process, fd: i32) -> Result<Rc<OpenFile>> {
    let table = process.files.borrow();
    match usize::try_from(fd).ok().and_then(|i| table.slots.get(i)) {
        Some(Some((open, _))) => Ok(open.clone()),
        _ => Err(EBADF),
    }
}

impl Default for FdTable {
    fn default() -> Self {
        Self::new()
    }
}

impl FdTable {
    /// An empty table.
    pub const fn new() -> Self {
        Self {
            slots: Vec::new(),
            limit: 1024,
        }
    }

    /// Takes out everything, in the order of descriptors (drop it after the borrow).
    pub fn take_all(&mut self) -> Vec<Rc<OpenFile>> {
        let slots = core::mem::take(&mut self.slots);
        slots.into_iter().flatten().map(|(open, _)| open).collect()
    }

    /// Puts a file at the lowest free descriptor not below `from`.
    ///
    /// # Errors
    /// `EMFILE` at the limit.
    pub fn insert(&mut self, open: Rc<OpenFile>, cloexec: bool, from: usize) -> Result<i32> {
        let mut at = from;
        while self.slots.get(at).is_some_and(Option::is_some) {
            at += 1;
        }
        self.put(at, open, cloexec)?;
        Ok(at as i32)
    }

    /// Puts a file at exactly `fd`; returns what was there (drop it after the borrow).
    ///
    /// # Errors
    /// `EBADF` beyond the limit.
    pub fn replace(
        &mut self,
        fd: usize,
        open: Rc<OpenFile>,
        cloexec: bool,
    ) -> Result<Option<Rc<OpenFile>>> {
        if fd >= self.limit {
            return Err(EBADF);
        }
        let old = self
            .slots
            .get_mut(fd)
            .and_then(Option::take)
            .map(|(open, _)| open);
        self.put(fd, open, cloexec)?;
        Ok(old)
    }

    /// Whether another descriptor can be given out.
    pub fn has_room(&self) -> bool {
        self.slots.len() < self.limit || self.slots.iter().take(self.limit).any(Option::is_none)
    }

    fn put(&mut self, at: usize, open: Rc<OpenFile>, cloexec: bool) -> Result<()> {
        if at >= self.limit {
            return Err(EMFILE);
        }
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        self.slots[at] = Some((open, cloexec));
        Ok(())
    }

    /// Takes a descriptor out; the file closes when the last reference goes (drop it after the borrow).
    ///
    /// # Errors
    /// `EBADF`.
    pub fn remove(&mut self, fd: i32) -> Result<Rc<OpenFile>> {
        usize::try_from(fd)
            .ok()
            .and_then(|i| self.slots.get_mut(i))
            .and_then(Option::take)
            .map(|(open, _)| open)
            .ok_or(EBADF)
    }

    /// Close-on-exec flag of a descriptor.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn cloexec(&mut self, fd: i32) -> Result<&mut bool> {
        match usize::try_from(fd).ok().and_then(|i| self.slots.get_mut(i)) {
            Some(Some((_, cloexec))) => Ok(cloexec),
            _ => Err(EBADF),
        }
    }

    /// Descriptors in use, ascending.
    pub fn open_fds(&self) -> Vec<i32> {
        (0..self.slots.len())
            .filter(|i| self.slots[*i].is_some())
            .map(|i| i as i32)
            .collect()
    }

    /// Takes out everything that is closed by `execve`.
    pub fn take_cloexec(&mut self) -> Vec<Rc<OpenFile>> {
        self.slots
            .iter_mut()
            .filter(|s| matches!(s, Some((_, true))))
            .filter_map(Option::take)
            .map(|(open, _)| open)
            .collect()
    }
}
