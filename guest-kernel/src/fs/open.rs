//! Opening, and open files of the tree.

use super::contents::seal;
use super::dev;
use super::disk::file::DiskFile;
use super::disk::raw::RawDisk;
use super::disk::volume::Held;
use super::inode::{Inode, Kind, Meta, may};
use super::locks::Owner;
use super::path::{self, Target, Walked};
use super::pipe::PipeEnd;
use super::{state, tree};
use crate::cell::Global;
use crate::errno::*;
use crate::file::{File, MapPage, OpenFile, Stat, flags::*, ready};
use crate::wait::{self, WaitQueue, Wake};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::RefCell;
use quorate_abi::image::{S_IFBLK, S_IFREG};

/// How an open file came to be, for its path.
#[derive(Clone)]
pub enum Place {
    /// By this name in this directory.
    Name(Rc<Inode>, Box<[u8]>),
    /// Without a name in the tree (memfd); the text is what `/proc/self/fd` shows.
    Label(Box<[u8]>),
}

/// A file of the tree that is open: one per open file description.
pub struct InodeFile {
    /// The inode.
    pub inode: Rc<Inode>,
    /// Tells descriptions apart, for locks.
    pub description: u64,
    place: Place,
    /// Opened with `O_PATH`: a place in the tree, no contents.
    path_only: bool,
    /// Text of a file of `/proc`, made when it is read from the start.
    text: RefCell<Option<Vec<u8>>>,
    /// Nothing wakes it: what has it is always ready.
    always: WaitQueue,
}

static NEXT_DESCRIPTION: Global<u64> = Global::new(1);

impl InodeFile {
    /// An open file for `inode`.
    pub fn new(inode: Rc<Inode>, place: Place, path_only: bool) -> Rc<Self> {
        let mut next = NEXT_DESCRIPTION.borrow_mut();
        *next += 1;
        Rc::new(Self {
            inode,
            description: *next,
            place,
            path_only,
            text: RefCell::new(None),
            always: WaitQueue::new(),
        })
    }

    /// The file on a disk that it is.
    fn on_disk(&self) -> Option<&DiskFile> {
        match &self.inode.kind {
            Kind::DiskFile(file) => Some(file),
            _ => None,
        }
    }

    fn check_contents(&self) -> Result<()> {
        if self.path_only { Err(EBADF) } else { Ok(()) }
    }
}

impl Drop for InodeFile {
    fn drop(&mut self) {
        self.inode.locks.funlock(self.description);
        self.inode
            .locks
            .release(Owner::Description(self.description));
    }
}

impl File for InodeFile {
    fn read(&self, buf: &mut [u8]) -> Result<usize> {
        self.check_contents()?;
        match &self.inode.kind {
            Kind::Device => dev::read(self.inode.meta.get().rdev, buf),
            Kind::Directory(_) | Kind::ProcDir(_) | Kind::DiskDir(_) => Err(EISDIR),
            _ => Err(EINVAL),
        }
    }

    fn write(&self, buf: &[u8]) -> Result<usize> {
        self.check_contents()?;
        match &self.inode.kind {
            Kind::Device => dev::write(self.inode.meta.get().rdev, buf),
            _ => Err(EINVAL),
        }
    }

    fn seekable(&self) -> bool {
        match &self.inode.kind {
            Kind::Device => dev::seekable(self.inode.meta.get().rdev),
            _ => true,
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.check_contents()?;
        match &self.inode.kind {
            Kind::Regular(contents) => Ok(contents.read_at(offset, buf)),
            Kind::DiskFile(file) => file.read_at(&self.inode, offset, buf),
            Kind::ProcFile(file) => {
                let mut text = self.text.borrow_mut();
                if offset == 0 || text.is_none() {
                    *text = Some(file.text());
                }
                let text = text.as_deref().unwrap_or_default();
                let from = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(text.len());
                let len = buf.len().min(text.len() - from);
                buf[..len].copy_from_slice(&text[from..from + len]);
                Ok(len)
            }
            Kind::Directory(_) | Kind::ProcDir(_) | Kind::DiskDir(_) => Err(EISDIR),
            _ => self.read(buf),
        }
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<usize> {
        self.check_contents()?;
        match &self.inode.kind {
            Kind::Regular(contents) => {
                let len = contents.write_at(offset, buf)?;
                self.inode.touch();
                Ok(len)
            }
            Kind::DiskFile(file) => {
                let len = file.write_at(&self.inode, offset, buf)?;
                self.inode.touch();
                Ok(len)
            }
            _ => self.write(buf),
        }
    }

    fn size(&self) -> Result<u64> {
        match &self.inode.kind {
            Kind::Regular(contents) => Ok(contents.size()),
            Kind::DiskFile(file) => Ok(file.size()),
            Kind::Directory(_) | Kind::ProcDir(_) | Kind::DiskDir(_) => Ok(i64::MAX as u64),
            _ => Ok(0),
        }
    }

    fn poll(&self) -> u32 {
        if self.path_only {
            return ready::NVAL;
        }
        ready::IN | ready::OUT | ready::RDNORM | ready::WRNORM
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        match &self.inode.kind {
            Kind::Device if dev::can_poll(self.inode.meta.get().rdev) => Some(&self.always),
            _ => None,
        }
    }

    fn digested(&self) -> bool {
        match &self.inode.kind {
            // What the image says all replicas have from the start.
            Kind::Regular(contents) => !contents.is_image(),
            Kind::DiskFile(file) => file.lower().is_none(),
            Kind::ProcFile(file) => !file.shows_layout(),
            _ => true,
        }
    }

    fn stat(&self) -> Result<Stat> {
        Ok(self.inode.stat())
    }

    fn truncate(&self, size: u64) -> Result<()> {
        self.check_contents()?;
        self.inode.body().ok_or(EINVAL)?.truncate(size)?;
        self.inode.touch();
        Ok(())
    }

    fn may_wait(&self) -> bool {
        matches!(self.inode.kind, Kind::DiskFile(_))
    }

    fn lock_writes(&self) -> Option<Held<'_>> {
        self.on_disk().map(DiskFile::lock_writes)
    }

    fn forget_pages(&self, offset: u64, len: u64) {
        if let Some(file) = self.on_disk() {
            file.forget_clean(offset, len);
        }
    }

    fn load_pages(&self, index: u64, count: u64) -> Result<()> {
        match self.on_disk() {
            Some(file) => file.fill(&self.inode, index, count),
            None => Ok(()),
        }
    }

    fn map_page(&self, index: u64, shared_write: bool) -> Result<MapPage> {
        self.check_contents()?;
        match &self.inode.kind {
            Kind::Regular(contents) => {
                let sealed = contents.seals.get() & (seal::WRITE | seal::FUTURE_WRITE) != 0;
                if shared_write && sealed {
                    return Err(EPERM);
                }
                contents.map_page(index, shared_write)
            }
            Kind::DiskFile(file) => file.map_page(index, shared_write, &self.inode),
            Kind::Device => dev::map_page(self.inode.meta.get().rdev),
            _ => Err(ENODEV),
        }
    }

    fn map_key(&self) -> usize {
        match &self.inode.kind {
            Kind::Regular(contents) => contents.map_key(),
            Kind::DiskFile(file) => file.map_key(),
            _ => 0,
        }
    }

    fn path(&self) -> Vec<u8> {
        let (dir, name) = match &self.place {
            Place::Name(dir, name) => (dir, name),
            Place::Label(label) => return label.to_vec(),
        };
        if &**name == b"." || &**name == b".." {
            return self.inode.path_below(&state::root()).unwrap_or_default();
        }
        let mut path = path::absolute(dir, name);
        let there = dir.lookup(name).ok().flatten();
        if !there.is_some_and(|inode| inode.same(&self.inode)) {
            path.extend_from_slice(b" (deleted)");
        }
        path
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `open`: walks from `dirfd`. May wait (a named pipe waits for its other end).
///
/// # Errors
/// All that `open(2)` lists and this tree can meet.
pub fn open_at(dirfd: i32, path: &[u8], mut flags: u32, mode: u32) -> Result<Rc<OpenFile>> {
    if flags & O_PATH != 0 {
        flags &= O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    }
    if flags & O_TMPFILE == O_TMPFILE {
        return open_tmpfile(dirfd, path, flags, mode);
    }
    if flags & O_CREAT != 0 && flags & O_DIRECTORY != 0 {
        return Err(EINVAL);
    }
    loop {
        match open_walked(dirfd, path, flags, mode) {
            // Another thread made it while this one waited for the disk.
            Err(EEXIST) if flags & (O_CREAT | O_EXCL) == O_CREAT => {}
            result => return result,
        }
    }
}

fn open_walked(dirfd: i32, path: &[u8], flags: u32, mode: u32) -> Result<Rc<OpenFile>> {
    let exclusive = flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL;
    let walked = path::walk(dirfd, path, flags & O_NOFOLLOW == 0 && !exclusive)?;
    let Walked { dir, name, .. } = &walked;
    let place = Place::Name(dir.clone(), name.clone());
    let mut access = access_wanted(flags);
    let inode = match &walked.target {
        Target::Missing if flags & O_CREAT != 0 => {
            if walked.slash {
                return Err(EISDIR);
            }
            access = 0;
            tree::make(&walked, S_IFREG | mode & 0o7777)?
        }
        Target::Missing => return Err(ENOENT),
        _ if exclusive => return Err(EEXIST),
        Target::File(open) => return reopen(open, flags),
        Target::Inode(inode) => inode.clone(),
    };
    if flags & O_CREAT != 0 && inode.is_dir() {
        return Err(EISDIR);
    }
    open_inode(inode, place, flags, access)
}

fn access_wanted(flags: u32) -> u32 {
    let access = match flags & O_ACCMODE {
        O_RDONLY => may::READ,
        O_WRONLY => may::WRITE,
        _ => may::READ | may::WRITE,
    };
    if flags & O_TRUNC != 0 {
        access | may::WRITE
    } else {
        access
    }
}

fn open_inode(inode: Rc<Inode>, place: Place, flags: u32, access: u32) -> Result<Rc<OpenFile>> {
    if flags & O_DIRECTORY != 0 && !inode.is_dir() {
        return Err(ENOTDIR);
    }
    if flags & O_PATH != 0 {
        return Ok(OpenFile::new(InodeFile::new(inode, place, true), flags));
    }
    let writes = access & may::WRITE != 0;
    if writes && inode.is_dir() {
        return Err(EISDIR);
    }
    inode.check(access)?;
    let changes = (writes || flags & O_ACCMODE != O_RDONLY) && inode.is_regular();
    if changes {
        inode.sup.check_writable()?;
    }
    if changes && inode.disk.is_some() {
        // Now, so that mappings of it are of what is written.
        super::disk::node::copy_up(&inode)?;
    }
    let file: Rc<dyn File> = match &inode.kind {
        Kind::Symlink(_) | Kind::ProcLink(_) => return Err(ELOOP),
        Kind::Socket(_) => return Err(ENXIO),
        Kind::ProcFile(_) if writes => return Err(EACCES),
        Kind::Fifo(_) => open_fifo(&inode, place, flags)?,
        Kind::Device if inode.file_type() == S_IFBLK => RawDisk::open(&inode, writes)?,
        Kind::Device => {
            dev::check(inode.meta.get())?;
            InodeFile::new(inode.clone(), place, false)
        }
        Kind::Regular(_) | Kind::DiskFile(_) => {
            let body = inode.body().ok_or(EINVAL)?;
            if flags & O_TRUNC != 0 && body.size() > 0 {
                body.truncate(0)?;
                inode.touch();
            }
            InodeFile::new(inode.clone(), place, false)
        }
        _ => InodeFile::new(inode.clone(), place, false),
    };
    Ok(OpenFile::new(file, status_flags(flags)))
}

/// What `F_GETFL` shows of the flags of `open`.
fn status_flags(flags: u32) -> u32 {
    flags & !(O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_CLOEXEC) | O_LARGEFILE
}

/// Opens again what a descriptor refers to (`/proc/self/fd/N`, `/dev/stdout`).
fn reopen(open: &Rc<OpenFile>, flags: u32) -> Result<Rc<OpenFile>> {
    if let Some(file) = open.file.as_any().downcast_ref::<InodeFile>() {
        let (inode, place) = (file.inode.clone(), file.place.clone());
        return open_inode(inode, place, flags, access_wanted(flags));
    }
    if flags & O_DIRECTORY != 0 {
        return Err(ENOTDIR);
    }
    let file: Rc<dyn File> = match open.file.as_any().downcast_ref::<PipeEnd>() {
        Some(end) => end.another(flags),
        None if super::is_socket(&*open.file) => return Err(ENXIO),
        None => open.file.clone(),
    };
    Ok(OpenFile::new(file, status_flags(flags)))
}

fn open_fifo(inode: &Rc<Inode>, place: Place, flags: u32) -> Result<Rc<dyn File>> {
    let Kind::Fifo(pipe) = &inode.kind else {
        return Err(EINVAL);
    };
    let mode = flags & O_ACCMODE;
    let (readers, _) = pipe.ends();
    if mode == O_WRONLY && flags & O_NONBLOCK != 0 && readers == 0 {
        return Err(ENXIO);
    }
    let path = match place {
        Place::Name(dir, name) => path::absolute(&dir, &name),
        Place::Label(label) => label.into_vec(),
    };
    let (readers_before, writers_before) = pipe.ends_seen();
    let end = PipeEnd::new(pipe, mode, Some((inode.clone(), path)), inode.ino);
    if flags & O_NONBLOCK != 0 || mode == O_RDWR {
        return Ok(end);
    }
    // The other end counts even if it has come and gone again while we waited.
    loop {
        let (readers, writers) = pipe.ends();
        let (readers_seen, writers_seen) = pipe.ends_seen();
        let (met, queue) = if mode == O_WRONLY {
            (
                readers > 0 || readers_seen != readers_before,
                pipe.write_queue(),
            )
        } else {
            (
                writers > 0 || writers_seen != writers_before,
                pipe.read_queue(),
            )
        };
        if met {
            return Ok(end);
        }
        if wait::wait_on(&[queue], None) == Wake::Signal {
            return Err(EINTR);
        }
    }
}

fn open_tmpfile(dirfd: i32, path: &[u8], flags: u32, mode: u32) -> Result<Rc<OpenFile>> {
    if flags & O_ACCMODE == O_RDONLY {
        return Err(EINVAL);
    }
    let dir = path::find(dirfd, path, true)?;
    if dir.disk.is_none() {
        dir.directory()
            .map_err(|e| if e == EPERM { EOPNOTSUPP } else { e })?;
    }
    if !dir.is_dir() {
        return Err(ENOTDIR);
    }
    dir.check(may::WRITE | may::EXEC)?;
    dir.sup.check_writable()?;
    let mode = mode & 0o7777 & !state::umask();
    let inode = if dir.disk.is_some() {
        super::disk::tree::make_nameless(&dir, &Meta::new(S_IFREG | mode))?
    } else {
        let inode = Inode::new_regular(&dir.sup, mode)?;
        inode.update(|meta| meta.nlink = 0);
        inode
    };
    let name = alloc::format!("#{}", inode.ino).into_bytes().into();
    let file = InodeFile::new(inode, Place::Name(dir, name), false);
    Ok(OpenFile::new(file, status_flags(flags)))
}
