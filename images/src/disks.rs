//! The files that an appliance's disks lie in: made when they are missing, checked when they are there; and what is on them, for
//! people ([`check()`], [`extract()`]).

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::appliance::{Appliance, DiskSpec, Filesystem, OnError, Root};
use crate::size;

mod check;
mod extract;
pub(crate) mod mkfs;
mod seed;

pub use check::{Checked, Journal, LookError, check};
pub use extract::{Extracted, extract};

/// Where the magic number of an ext4 file system lies, and what it is.
const EXT4_MAGIC: (u64, [u8; 2]) = (1024 + 56, [0x53, 0xef]);

/// Bytes that are copied at once.
const COPY_BLOCK: usize = 1 << 16;

/// A disk whose file is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedDisk {
    /// Its name.
    pub name: String,
    /// Its file (or block device of the host).
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    /// Whether only reads are allowed.
    pub read_only: bool,
    /// What to do when the host cannot write it.
    pub on_error: OnError,
    /// Whether it was made just now.
    pub created: bool,
}

/// Why a disk cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file or directory cannot be read or written.
    #[error("disk {disk}: {}: cannot {action}: {source}", path.display())]
    Io {
        /// The disk's name.
        disk: String,
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No directory for state is known.
    #[error(
        "no directory for disks: set QUORATE_STATE_DIR (or XDG_STATE_HOME, or HOME), or give every [[disk]] a `path`"
    )]
    NoStateDir,
    /// The file has another size.
    #[error("disk {disk}: {} has {found}, the appliance says {wanted}: correct `size`, or start with a new disk by `quorate disk reset` (its contents are lost)", path.display(), found = size::format(*found), wanted = size::format(*wanted))]
    Size {
        /// The disk's name.
        disk: String,
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// That of the appliance.
        wanted: u64,
    },
    /// Neither a file nor a block device.
    #[error("disk {disk}: {}: neither a regular file nor a block device", path.display())]
    NotAFile {
        /// The disk's name.
        disk: String,
        /// The path.
        path: PathBuf,
    },
    /// The file has no ext4 file system although the appliance says so.
    #[error("disk {disk}: {} has no ext4 file system: if nothing on it matters, start with a new disk by `quorate disk reset`; if it is for the program's own use, write filesystem = \"none\"", path.display())]
    NotExt4 {
        /// The disk's name.
        disk: String,
        /// The path.
        path: PathBuf,
    },
    /// A disk that cannot be written and has neither a file nor a seed.
    #[error("disk {disk}: {} is not there, and a read_only disk without `seed` cannot be made: put the file there", path.display())]
    Missing {
        /// The disk's name.
        disk: String,
        /// The path.
        path: PathBuf,
    },
    /// The seed's files do not fit.
    #[error("disk {disk}: {size} are too little for the files of {} ({seed_bytes} in {files} files and directories): make `size` larger", seed.display(), size = size::format(*bytes), seed_bytes = size::format(*seed_bytes))]
    TooSmall {
        /// The disk's name.
        disk: String,
        /// Its size in bytes.
        bytes: u64,
        /// The seed directory.
        seed: PathBuf,
        /// Bytes of its files in whole blocks.
        seed_bytes: u64,
        /// How many files, directories and links there are.
        files: u64,
    },
    /// What cannot be copied to a disk.
    #[error("disk {disk}: {}: neither file, directory nor symbolic link: it cannot go onto a disk", path.display())]
    SpecialFile {
        /// The disk's name.
        disk: String,
        /// The file.
        path: PathBuf,
    },
    /// The host has no tool for ext4.
    #[error(
        "disk {disk}: `{tool}` was not found: install the package e2fsprogs (scripts/setup does)"
    )]
    NoTool {
        /// The disk's name.
        disk: String,
        /// The program.
        tool: &'static str,
    },
    /// The root disk of a Linux machine, and no image to make it from.
    #[error("disk {disk}: it is the root and is made from the image, which was not built yet")]
    NoImage {
        /// The disk's name.
        disk: String,
    },
    /// The host's tool failed.
    #[error("disk {disk}: {tool} could not make the file system: {output}")]
    Tool {
        /// The disk's name.
        disk: String,
        /// The program.
        tool: &'static str,
        /// The end of what it wrote.
        output: String,
    },
}

impl DiskError {
    fn io(
        disk: &DiskSpec,
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let (disk, path) = (disk.name.clone(), path.into());
        move |source| Self::Io {
            disk,
            action,
            path,
            source,
        }
    }
}

/// Where disks lie that the appliance gives no `path`: `$QUORATE_STATE_DIR`, else `$XDG_STATE_HOME/quorate`, else
/// `$HOME/.local/state/quorate`.
///
/// # Errors
/// [`DiskError::NoStateDir`] if none of them is set.
pub fn default_state_dir() -> Result<PathBuf, DiskError> {
    let from = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    from("QUORATE_STATE_DIR")
        .or_else(|| from("XDG_STATE_HOME").map(|path| path.join("quorate")))
        .or_else(|| from("HOME").map(|path| path.join(".local/state/quorate")))
        .ok_or(DiskError::NoStateDir)
}

/// The file of a disk: its own `path`, or `APPLIANCE/DISK.img` in the state directory.
#[must_use]
pub fn path_of(appliance: &Appliance, disk: &DiskSpec, state_dir: &Path) -> PathBuf {
    match &disk.path {
        Some(path) => appliance.resolve(path),
        None => state_dir
            .join(&appliance.name)
            .join(format!("{}.img", disk.name)),
    }
}

/// Sees to it that all disks of `appliance` have their files: missing ones are made, formatted and filled from their
/// seeds, others are checked for their size. In the order of the disks' numbers.
///
/// # Errors
/// [`DiskError`].
pub fn prepare(appliance: &Appliance, state_dir: &Path) -> Result<Vec<PreparedDisk>, DiskError> {
    let one = |disk| prepare_one(appliance, disk, state_dir);
    appliance.disks.iter().map(one).collect()
}

/// As [`prepare`], one disk.
///
/// # Errors
/// [`DiskError`].
pub fn prepare_one(
    appliance: &Appliance,
    disk: &DiskSpec,
    state_dir: &Path,
) -> Result<PreparedDisk, DiskError> {
    let path = path_of(appliance, disk, state_dir);
    let mut created = false;
    if !exists(disk, &path)? {
        if disk.read_only && disk.seed.is_none() {
            let disk = disk.name.clone();
            return Err(DiskError::Missing { disk, path });
        }
        created = create(appliance, disk, &path)?;
    }
    if !created {
        check_existing(disk, &path)?;
    }
    Ok(PreparedDisk {
        name: disk.name.clone(),
        path,
        bytes: disk.bytes,
        read_only: disk.read_only,
        on_error: disk.on_error,
        created,
    })
}

/// What can be said of the disks before any is made: whether the seeds are there and fit.
///
/// # Errors
/// [`DiskError`].
pub fn check_seeds(appliance: &Appliance) -> Result<(), DiskError> {
    let seeded = |disk: &DiskSpec| seed::read(appliance, disk).map(|_| ());
    appliance.disks.iter().try_for_each(seeded)
}

fn exists(disk: &DiskSpec, path: &Path) -> Result<bool, DiskError> {
    match fs::metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(DiskError::io(disk, "look at the disk", path)(error)),
    }
}

fn check_existing(disk: &DiskSpec, path: &Path) -> Result<(), DiskError> {
    let read_error = || DiskError::io(disk, "read the disk", path);
    let kind = fs::metadata(path).map_err(read_error())?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(DiskError::NotAFile {
            disk: disk.name.clone(),
            path: path.to_owned(),
        });
    }
    let mut file = File::open(path).map_err(read_error())?;
    // A block device has no length among its metadata; its end says it.
    let found = file.seek(SeekFrom::End(0)).map_err(read_error())?;
    if found != disk.bytes {
        return Err(DiskError::Size {
            disk: disk.name.clone(),
            path: path.to_owned(),
            found,
            wanted: disk.bytes,
        });
    }
    if disk.filesystem == Filesystem::Ext4 {
        let (at, expected) = EXT4_MAGIC;
        let mut magic = [0; 2];
        file.seek(SeekFrom::Start(at)).map_err(read_error())?;
        file.read_exact(&mut magic).map_err(read_error())?;
        if magic != expected {
            return Err(DiskError::NotExt4 {
                disk: disk.name.clone(),
                path: path.to_owned(),
            });
        }
    }
    Ok(())
}

/// Copies `from` to the start of `to`, which holds zeroes: blocks of zeroes stay holes.
fn copy(from: &Path, mut to: &File) -> io::Result<()> {
    let mut from = File::open(from)?;
    let mut block = vec![0; COPY_BLOCK];
    loop {
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..)
            && !rest.is_empty()
        {
            match from.read(rest)? {
                0 => break,
                n => filled += n,
            }
        }
        let Some(data) = block.get(..filled).filter(|data| !data.is_empty()) else {
            return Ok(());
        };
        if data.iter().all(|byte| *byte == 0) {
            to.seek_relative(filled as i64)?;
        } else {
            to.write_all(data)?;
        }
    }
}

/// Makes the disk in a temporary file, which gets its name when it is complete and on stable storage. Says whether this
/// was the one that made it: another process may have been faster.
fn create(appliance: &Appliance, disk: &DiskSpec, path: &Path) -> Result<bool, DiskError> {
    let seed = seed::read(appliance, disk)?;
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let make_error = || DiskError::io(disk, "make the disk", path);
    fs::create_dir_all(directory).map_err(make_error())?;
    let file = tempfile::Builder::new()
        .prefix(&format!(".{}-", disk.name))
        .suffix(".new")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(directory)
        .map_err(make_error())?;
    file.as_file().set_len(disk.bytes).map_err(make_error())?;
    if appliance.linux.is_some() && appliance.machine.root == Root::Disk(disk.name.clone()) {
        let Some(image) = &appliance.root_image else {
            let disk = disk.name.clone();
            return Err(DiskError::NoImage { disk });
        };
        // Built for this disk, so of its size.
        copy(image, file.as_file()).map_err(DiskError::io(disk, "copy the root image", image))?;
    } else if disk.filesystem == Filesystem::Ext4 {
        mkfs::format(appliance, disk, seed.as_ref(), file.path())?;
    }
    file.as_file().sync_all().map_err(make_error())?;
    match file.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(make_error()(error.error)),
    }
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(make_error())?;
    Ok(true)
}
