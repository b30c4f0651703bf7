//! Checks the file system on a disk with the host's e2fsck.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::SeekFrom as At;

use super::EXT4_MAGIC;
use super::mkfs::SEARCH;

/// Where the superblock's incompatible features lie, and the one that says that the journal must be replayed.
const INCOMPAT: (u64, u32) = (1024 + 96, 4);
/// How much is copied at a time, bytes.
const CHUNK: u64 = 1 << 20;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Whether the file system is sound.
    pub sound: bool,
    /// What became of the journal.
    pub journal: Journal,
    /// What e2fsck wrote.
    pub report: String,
}

/// What became of the file system's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// It was empty: the guest had unmounted the file system.
    Empty,
    /// It was replayed on a copy, and the copy was checked; the disk is as it was.
    OnCopy,
    /// It was replayed on the disk.
    Replayed,
}

/// Why a disk's file system cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// A file cannot be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no ext4 file system.
    #[error("{}: no ext4 file system is on it", .0.display())]
    NotExt4(PathBuf),
    /// The host has no e2fsck.
    #[error("`e2fsck` was not found: install the package e2fsprogs (scripts/setup does)")]
    NoTool,
    /// The journal cannot be replayed.
    #[error("{}: the journal cannot be replayed: {report}", path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// What e2fsck wrote.
        report: String,
    },
    /// The file system is damaged.
    #[error("{}: {what}: {reason}", path.display())]
    Damaged {
        /// The disk.
        path: PathBuf,
        /// Where.
        what: String,
        /// How.
        reason: String,
    },
    /// There is no such file on the disk.
    #[error("{}: there is no {name} on it", path.display())]
    Missing {
        /// The disk.
        path: PathBuf,
        /// The file.
        name: String,
    },
    /// The directory to copy to is there and not empty.
    #[error("{}: is there already and not empty: files are only copied into a new directory", .0.display())]
    NotEmpty(PathBuf),
}

impl LookError {
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// Checks the file system on the disk at `path`, which nobody may use meanwhile. A journal that must be replayed first is replayed on
/// a copy beside the disk, or with `replay` on the disk itself.
///
/// # Errors
/// [`LookError`], if there is nothing to say of the file system.
pub fn check(path: &Path, replay: bool) -> Result<Checked, LookError> {
    let read_error = || LookError::io("read the disk", path);
    let mut file = File::open(path).map_err(read_error())?;
    if !needs_replay(&mut file, path)? {
        let (sound, report) = e2fsck(path, &["-fn"])?;
        return Ok(Checked {
            sound,
            journal: Journal::Empty,
            report,
        });
    }
    let (copy, journal);
    let target = if replay {
        journal = Journal::Replayed;
        self::replay(path, path)?;
        path
    } else {
        journal = Journal::OnCopy;
        copy = replayed_copy(&file, path)?;
        copy.path()
    };
    let (sound, report) = e2fsck(target, &["-fn"])?;
    Ok(Checked {
        sound,
        journal,
        report,
    })
}

/// A copy of the disk, beside it, whose journal was replayed.
pub(super) fn replayed_copy(
    file: &File,
    path: &Path,
) -> Result<tempfile::NamedTempFile, LookError> {
    let copy = copy_of(file, path)?;
    replay(copy.path(), path)?;
    Ok(copy)
}

/// Replays the journal on `target`, which is the disk `path` or a copy of it.
fn replay(target: &Path, path: &Path) -> Result<(), LookError> {
    // Its status says little here: 1, "errors corrected", is what a replay counts as.
    let (_, report) = e2fsck(target, &["-y", "-E", "journal_only"])?;
    let mut replayed = File::open(target).map_err(LookError::io("read the disk", path))?;
    if needs_replay(&mut replayed, path)? {
        let path = path.to_owned();
        return Err(LookError::Journal { path, report });
    }
    Ok(())
}

/// Whether the journal of the file system must be replayed.
pub(super) fn needs_replay(file: &mut File, path: &Path) -> Result<bool, LookError> {
    let mut magic = [0; 2];
    let mut word = [0; 4];
    let mut read = |at, bytes: &mut [u8]| {
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(bytes)
    };
    let result = read(EXT4_MAGIC.0, &mut magic).and_then(|()| read(INCOMPAT.0, &mut word));
    match result {
        Ok(()) if magic == EXT4_MAGIC.1 => Ok(u32::from_le_bytes(word) & INCOMPAT.1 != 0),
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            Err(LookError::io("read the disk", path)(error))
        }
        _ => Err(LookError::NotExt4(path.to_owned())),
    }
}

/// A copy beside the disk that has its holes too, and goes when it is dropped.
fn copy_of(file: &File, path: &Path) -> Result<tempfile::NamedTempFile, LookError> {
    let copy_error = || LookError::io("copy the disk", path);
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let copy = tempfile::Builder::new()
        .prefix(".checking-")
        .tempfile_in(directory)
        .map_err(copy_error())?;
    let end = rustix::fs::seek(file, At::End(0)).map_err(|e| copy_error()(e.into()))?;
    copy.as_file().set_len(end).map_err(copy_error())?;
    let mut buffer = vec![0; CHUNK as usize];
    let mut at = 0;
    while at < end {
        // A file system that knows no holes has data everywhere; past the last data there is none (ENXIO).
        at = match rustix::fs::seek(file, At::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(rustix::io::Errno::INVAL) => at,
            Err(error) => return Err(copy_error()(error.into())),
        };
        let hole = rustix::fs::seek(file, At::Hole(at)).unwrap_or(end);
        while at < hole {
            let len = CHUNK.min(hole - at) as usize;
            let piece = &mut buffer[..len];
            file.read_exact_at(piece, at).map_err(copy_error())?;
            copy.as_file()
                .write_all_at(piece, at)
                .map_err(copy_error())?;
            at += len as u64;
        }
    }
    Ok(copy)
}

/// Runs e2fsck; whether it found nothing wrong, and what it wrote.
fn e2fsck(path: &Path, arguments: &[&str]) -> Result<(bool, String), LookError> {
    let output = Command::new("e2fsck")
        .env("PATH", SEARCH)
        .env("LC_ALL", "C")
        .args(arguments)
        .arg(path)
        .output();
    match output {
        Ok(output) => {
            let mut report = String::from_utf8_lossy(&output.stdout).into_owned();
            report.push_str(&String::from_utf8_lossy(&output.stderr));
            Ok((output.status.success(), report))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(LookError::NoTool),
        Err(error) => Err(LookError::io("run e2fsck on the disk", path)(error)),
    }
}
