//! The base file: opening, locking, and what can be done with it.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quorate_devices::{MAX_DISK_BYTES, SECTOR};
use rustix::fs::{FallocateFlags, fallocate, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::error::StoreError;
use super::lock;

/// What is about to be done with the base file; for [`Faults`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// A read that may wait for the device.
    Read,
    /// A read that may not.
    ReadNow,
    /// A write.
    Write,
    /// Zeroes.
    Zero,
    /// An `fdatasync`.
    Sync,
    /// A write of old versions to the spill file.
    Spill,
}

/// What a test makes of an operation.
#[cfg_attr(not(test), allow(dead_code))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This error of the operating system.
    Error(i32),
    /// No more than so many bytes at once.
    Short(usize),
}

/// Bad weather, for tests: asked before each operation, with offset and length; it may also take its time.
pub trait Faults: Send + Sync {
    /// What is to go wrong, if anything.
    fn before(&self, io: Io, offset: u64, len: u64) -> Option<Fault>;
}

/// A base file that is open and locked.
pub struct Base {
    file: File,
    path: PathBuf,
    bytes: u64,
    read_only: bool,
    /// Whether the file system may be asked for reads that do not wait.
    reads_now: AtomicBool,
    faults: Option<Arc<dyn Faults>>,
}

impl Base {
    /// Opens and locks the file of a disk of `bytes` bytes.
    ///
    /// # Errors
    /// When there is no such file, it is of another size, or it is in use.
    pub fn open(
        path: &Path,
        bytes: u64,
        read_only: bool,
        faults: Option<Arc<dyn Faults>>,
    ) -> Result<Self, StoreError> {
        check_size(path, bytes)?;
        let wrong = |action| {
            move |source| StoreError::File {
                path: path.to_owned(),
                action,
                source,
            }
        };
        let kind = std::fs::metadata(path)
            .map_err(wrong("cannot be opened"))?
            .file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(StoreError::Kind(path.to_owned()));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only);
        if kind.is_block_device() && !read_only {
            // Refused while it is mounted or otherwise taken.
            options.custom_flags(libc::O_EXCL);
        }
        let file = options.open(path).map_err(wrong("cannot be opened"))?;
        if !lock::acquire(&file, read_only).map_err(wrong("cannot be locked"))? {
            return Err(StoreError::Locked {
                path: path.to_owned(),
                holder: lock::holder(&file),
            });
        }
        // The end is where a device's size is found, too.
        let have = seek(&file, rustix::fs::SeekFrom::End(0))
            .map_err(|error| wrong("its size cannot be told")(error.into()))?;
        match have.cmp(&bytes) {
            std::cmp::Ordering::Less => Err(StoreError::TooSmall {
                path: path.to_owned(),
                have,
                want: bytes,
            }),
            std::cmp::Ordering::Greater => Err(StoreError::TooLarge {
                path: path.to_owned(),
                have,
                want: bytes,
            }),
            std::cmp::Ordering::Equal => Ok(Self {
                file,
                path: path.to_owned(),
                bytes,
                read_only,
                reads_now: AtomicBool::new(true),
                faults,
            }),
        }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it is only read.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What a test wants to go wrong here.
    ///
    /// # Errors
    /// The error that it chose; or how many bytes may be moved at most.
    pub fn fault(&self, io: Io, offset: u64, len: usize) -> io::Result<usize> {
        let fault = self
            .faults
            .as_ref()
            .and_then(|f| f.before(io, offset, len as u64));
        match fault {
            None => Ok(len),
            Some(Fault::Error(code)) => Err(io::Error::from_raw_os_error(code)),
            Some(Fault::Short(most)) => Ok(most.clamp(1, len.max(1))),
        }
    }

    /// Reads without waiting for a device: whether all of it was in memory.
    pub fn read_now(&self, buffer: &mut [u8], offset: u64) -> bool {
        if !self.reads_now.load(Ordering::Relaxed)
            || self.fault(Io::ReadNow, offset, buffer.len()).is_err()
        {
            return false;
        }
        let len = buffer.len();
        let mut parts = [io::IoSliceMut::new(buffer)];
        match preadv2(
            self.file.as_fd(),
            &mut parts,
            offset,
            ReadWriteFlags::NOWAIT,
        ) {
            Ok(n) => n == len,
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                self.reads_now.store(false, Ordering::Relaxed);
                false
            }
            Err(_) => false,
        }
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// What the operating system says; an end of file is one, too.
    pub fn read(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            let most = self.fault(Io::Read, offset, buffer.len())?;
            match self.file.read_at(&mut buffer[..most], offset) {
                Ok(0) => return Err(shrunk()),
                Ok(n) => {
                    buffer = &mut buffer[n..];
                    offset += n as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn write(&self, mut data: &[u8], mut offset: u64) -> io::Result<()> {
        while !data.is_empty() {
            let most = self.fault(Io::Write, offset, data.len())?;
            match self.file.write_at(&data[..most], offset) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    data = &data[n..];
                    offset += n as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes a range read as zeroes; `unmap` gives its space back where the file system can.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.fault(Io::Zero, offset, usize::try_from(len).unwrap_or(usize::MAX))?;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let range = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let modes: &[FallocateFlags] = if unmap { &[punch, range] } else { &[range] };
        for mode in modes {
            loop {
                match fallocate(&self.file, *mode, offset, len) {
                    Ok(()) => return Ok(()),
                    Err(Errno::INTR) => {}
                    Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let zeroes = vec![0; (1 << 20).min(usize::try_from(len).unwrap_or(usize::MAX))];
        let mut at = 0;
        while at < len {
            let part = (len - at).min(zeroes.len() as u64);
            self.write(&zeroes[..part as usize], offset + at)?;
            at += part;
        }
        Ok(())
    }

    /// Puts everything written so far on stable storage.
    ///
    /// # Errors
    /// What the operating system says. What was written may then be lost: it must not be tried again.
    pub fn sync(&self) -> io::Result<()> {
        self.fault(Io::Sync, 0, 0)?;
        loop {
            match rustix::fs::fdatasync(&self.file) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The file ends before the disk does.
pub fn shrunk() -> io::Error {
    io::Error::new(
        ErrorKind::UnexpectedEof,
        "the file has become shorter than the disk",
    )
}

/// Makes the file of a disk: sparse, for the owner only, and on stable storage itself.
///
/// # Errors
/// When it exists already, or the size is none, or the file system refuses.
pub fn create(path: &Path, bytes: u64) -> Result<(), StoreError> {
    check_size(path, bytes)?;
    let wrong = |action| {
        move |source| StoreError::File {
            path: path.to_owned(),
            action,
            source,
        }
    };
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(wrong("cannot be made"))?;
    let made = file
        .set_len(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_directory(path));
    if made.is_err() {
        // It is of no use, and would be in the way of the next attempt.
        let _ = std::fs::remove_file(path);
    }
    made.map_err(wrong("cannot be made as large as the disk"))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

fn check_size(path: &Path, bytes: u64) -> Result<(), StoreError> {
    if bytes == 0 || bytes > MAX_DISK_BYTES || !bytes.is_multiple_of(SECTOR) {
        return Err(StoreError::Specification {
            path: path.to_owned(),
            bytes,
            max: MAX_DISK_BYTES,
        });
    }
    Ok(())
}
