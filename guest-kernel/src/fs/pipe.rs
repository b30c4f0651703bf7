//! Pipes, with and without a name.

use super::inode::{Inode, Meta};
use crate::errno::*;
use crate::file::{File, Stat, flags, ready};
use crate::user;
use crate::wait::WaitQueue;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::{Cell, RefCell};

/// Writes of up to so many bytes are atomic.
pub const PIPE_BUF: usize = 4096;
/// Bytes that a new pipe can hold (R10); a writer waits beyond.
pub const CAPACITY: usize = 65536;
/// Largest value of `F_SETPIPE_SZ`.
pub const MAX_CAPACITY: usize = 1 << 20;
/// `st_dev` of pipes without a name.
const PIPE_DEV: u64 = 12;

/// `FIONREAD`.
pub const FIONREAD: u32 = 0x541b;

/// What the two ends share.
pub struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    capacity: Cell<usize>,
    readers: Cell<usize>,
    writers: Cell<usize>,
    /// Writers that were ever there; a named pipe reports a hang-up only once one has come and gone.
    writers_seen: Cell<u64>,
    /// Readers that were ever there.
    readers_seen: Cell<u64>,
    /// Ends that are open for both; their one queue must hear of everything.
    both: Cell<usize>,
    to_read: WaitQueue,
    to_write: WaitQueue,
}

impl Pipe {
    /// An empty pipe without ends.
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            bytes: RefCell::new(VecDeque::new()),
            capacity: Cell::new(CAPACITY),
            readers: Cell::new(0),
            writers: Cell::new(0),
            writers_seen: Cell::new(0),
            readers_seen: Cell::new(0),
            both: Cell::new(0),
            to_read: WaitQueue::new(),
            to_write: WaitQueue::new(),
        })
    }

    /// Number of open ends for reading and for writing.
    pub fn ends(&self) -> (usize, usize) {
        (self.readers.get(), self.writers.get())
    }

    /// How many ends for reading and for writing there ever were.
    pub fn ends_seen(&self) -> (u64, u64) {
        (self.readers_seen.get(), self.writers_seen.get())
    }

    /// Woken when there may be more to read, or a writer came or went.
    pub fn read_queue(&self) -> &WaitQueue {
        &self.to_read
    }

    /// Woken when there may be room to write, or a reader came or went.
    pub fn write_queue(&self) -> &WaitQueue {
        &self.to_write
    }

    fn wake_readers(&self) {
        self.to_read.wake_all();
    }

    fn wake_writers(&self) {
        self.to_write.wake_all();
        if self.both.get() > 0 {
            self.to_read.wake_all();
        }
    }

    fn room(&self) -> usize {
        self.capacity
            .get()
            .saturating_sub(self.bytes.borrow().len())
    }
}

/// One end of a pipe (a named pipe's can be both).
pub struct PipeEnd {
    /// The pipe.
    pub pipe: Rc<Pipe>,
    reads: bool,
    writes: bool,
    ino: u64,
    meta: Meta,
    name: Option<(Rc<Inode>, Vec<u8>)>,
    writers_at_open: u64,
}

impl PipeEnd {
    /// An end for the given access mode (`O_RDONLY`, `O_WRONLY` or `O_RDWR`).
    /// `name`: inode and path of a named pipe; `ino`: number of one without.
    pub fn new(
        pipe: &Rc<Pipe>,
        mode: u32,
        name: Option<(Rc<Inode>, Vec<u8>)>,
        ino: u64,
    ) -> Rc<Self> {
        let reads = mode & flags::O_ACCMODE != flags::O_WRONLY;
        let writes = mode & flags::O_ACCMODE != flags::O_RDONLY;
        let writers_at_open = match pipe.writers.get() {
            0 => pipe.writers_seen.get(),
            _ => u64::MAX,
        };
        if reads {
            pipe.readers.set(pipe.readers.get() + 1);
            pipe.readers_seen.set(pipe.readers_seen.get() + 1);
        }
        if writes {
            pipe.writers.set(pipe.writers.get() + 1);
            pipe.writers_seen.set(pipe.writers_seen.get() + 1);
        }
        if reads && writes {
            pipe.both.set(pipe.both.get() + 1);
        }
        // Opening the other end is what a waiting open of a named pipe waits for.
        pipe.wake_readers();
        pipe.wake_writers();
        Rc::new(Self {
            pipe: pipe.clone(),
            reads,
            writes,
            ino,
            meta: Meta::new(quorate_abi::image::S_IFIFO | 0o600),
            name,
            writers_at_open,
        })
    }

    /// Another end of the same pipe, for the given access mode.
    pub fn another(&self, mode: u32) -> Rc<Self> {
        Self::new(&self.pipe, mode, self.name.clone(), self.ino)
    }

    /// `F_GETPIPE_SZ`.
    pub fn capacity(&self) -> usize {
        self.pipe.capacity.get()
    }

    /// `F_SETPIPE_SZ`: a power of two of at least one page.
    ///
    /// # Errors
    /// `EPERM` above [`MAX_CAPACITY`], `EBUSY` if more is in it already.
    pub fn set_capacity(&self, wanted: usize) -> Result<usize> {
        if wanted > MAX_CAPACITY {
            return Err(EPERM);
        }
        let capacity = wanted.max(PIPE_BUF).next_power_of_two();
        if self.pipe.bytes.borrow().len() > capacity {
            return Err(EBUSY);
        }
        self.pipe.capacity.set(capacity);
        self.pipe.wake_writers();
        Ok(capacity)
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        let pipe = &self.pipe;
        if self.reads {
            pipe.readers.set(pipe.readers.get() - 1);
        }
        if self.writes {
            pipe.writers.set(pipe.writers.get() - 1);
        }
        if self.reads && self.writes {
            pipe.both.set(pipe.both.get() - 1);
        }
        if pipe.readers.get() == 0 && pipe.writers.get() == 0 {
            pipe.bytes.borrow_mut().clear();
        }
        pipe.wake_readers();
        pipe.wake_writers();
    }
}

impl File for PipeEnd {
    fn read(&self, buf: &mut [u8]) -> Result<usize> {
        if !self.reads {
            return Err(EBADF);
        }
        if buf.is_empty() {
            return Ok(0);
        }
        let mut bytes = self.pipe.bytes.borrow_mut();
        if bytes.is_empty() {
            let gone = self.pipe.writers.get() == 0;
            return if gone { Ok(0) } else { Err(EAGAIN) };
        }
        let (front, back) = bytes.as_slices();
        let first = front.len().min(buf.len());
        let second = back.len().min(buf.len() - first);
        buf[..first].copy_from_slice(&front[..first]);
        buf[first..first + second].copy_from_slice(&back[..second]);
        bytes.drain(..first + second);
        drop(bytes);
        self.pipe.wake_writers();
        Ok(first + second)
    }

    fn write(&self, buf: &[u8]) -> Result<usize> {
        if !self.writes {
            return Err(EBADF);
        }
        if self.pipe.readers.get() == 0 {
            return Err(EPIPE);
        }
        let room = self.pipe.room();
        if buf.is_empty() {
            return Ok(0);
        }
        if room == 0 || buf.len() <= PIPE_BUF && room < buf.len() {
            return Err(EAGAIN);
        }
        let len = room.min(buf.len());
        self.pipe.bytes.borrow_mut().extend(&buf[..len]);
        self.pipe.wake_readers();
        Ok(len)
    }

    fn poll(&self) -> u32 {
        let mut events = 0;
        if self.reads {
            if !self.pipe.bytes.borrow().is_empty() {
                events |= ready::IN | ready::RDNORM;
            }
            let seen = self.pipe.writers_seen.get() != self.writers_at_open;
            if self.pipe.writers.get() == 0 && (seen || self.name.is_none()) {
                events |= ready::HUP;
            }
        }
        if self.writes {
            if self.pipe.room() >= PIPE_BUF {
                events |= ready::OUT | ready::WRNORM;
            }
            if self.pipe.readers.get() == 0 {
                events |= ready::ERR;
            }
        }
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(if self.reads {
            &self.pipe.to_read
        } else {
            &self.pipe.to_write
        })
    }

    fn stat(&self) -> Result<Stat> {
        if let Some((inode, _)) = &self.name {
            return Ok(inode.stat());
        }
        let meta = self.meta;
        Ok(Stat {
            dev: PIPE_DEV,
            ino: self.ino,
            nlink: 1,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            blksize: 4096,
            atime: meta.atime,
            mtime: meta.mtime,
            ctime: meta.ctime,
            ..Stat::default()
        })
    }

    fn ioctl(&self, command: u32, arg: u64) -> Result<u64> {
        if command == FIONREAD {
            let len = self.pipe.bytes.borrow().len();
            user::write(arg, len as i32)?;
            return Ok(0);
        }
        Err(ENOTTY)
    }

    fn gathers(&self) -> bool {
        true
    }

    fn digested(&self) -> bool {
        false
    }

    fn path(&self) -> Vec<u8> {
        match &self.name {
            Some((_, path)) => path.clone(),
            None => alloc::format!("pipe:[{}]", self.ino).into_bytes(),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
