//! The files of a saved set: sparse copies of disks, digests, and the exchange of one directory for another.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{RenameFlags, SeekFrom, ioctl_ficlone, renameat_with, seek};
use serde::{Deserialize, Serialize};

/// Bytes of a disk that are looked at together; if all are zero they take no space in the copy.
const PIECE: u64 = 64 << 10;

/// Tells whether a disk's file was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl Stamp {
    /// Of the file as it is now; none for a device, of which nobody can tell.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn of(path: &Path) -> io::Result<Option<Stamp>> {
        let about = std::fs::metadata(path)?;
        if about.file_type().is_block_device() {
            return Ok(None);
        }
        Ok(Some(Stamp {
            device: about.dev(),
            inode: about.ino(),
            bytes: about.size(),
            modified_s: about.mtime(),
            modified_ns: about.mtime_nsec(),
        }))
    }
}

/// A new file that only its owner may read: what is saved has secrets in it.
///
/// # Errors
/// Those of the file system.
pub fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path)
}

/// Writes through, counts and digests.
pub struct Digesting<W> {
    inner: W,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W> Digesting<W> {
    /// Around a file.
    pub fn new(inner: W) -> Self {
        Digesting {
            inner,
            hasher: blake3::Hasher::new(),
            bytes: 0,
        }
    }

    /// What was written, and how much.
    pub fn end(self) -> (W, blake3::Hash, u64) {
        (self.inner, self.hasher.finalize(), self.bytes)
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let done = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..done]);
        self.bytes += done as u64;
        Ok(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Calls `each` with every piece of the file that is not all zeroes, and with its place.
fn pieces(
    file: &File,
    bytes: u64,
    mut each: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE as usize];
    let mut at = 0;
    while at < bytes {
        // Where holes cannot be asked for, everything is looked at.
        match seek(file, SeekFrom::Data(at)) {
            Ok(data) => at = at.max(data / PIECE * PIECE),
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => {}
        }
        if at >= bytes {
            break;
        }
        let piece = &mut buffer[..(bytes - at).min(PIECE) as usize];
        file.read_exact_at(piece, at)?;
        if piece.iter().any(|byte| *byte != 0) {
            each(at, piece)?;
        }
        at += PIECE;
    }
    Ok(())
}

/// The digest of a disk: of its content, not of where its holes are.
///
/// # Errors
/// Those of the file system.
pub fn digest(file: &File, bytes: u64) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes.to_le_bytes());
    pieces(file, bytes, |at, piece| {
        hasher.update(&at.to_le_bytes());
        hasher.update(piece);
        Ok(())
    })?;
    Ok(hasher.finalize())
}

/// A copy of a disk of `bytes` bytes that shares the blocks of the original where the file system can, and has holes where that has
/// zeroes where it cannot. Not on stable storage yet.
///
/// # Errors
/// Those of the file system.
pub fn copy(from: &File, to: &File, bytes: u64) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    to.set_len(bytes)?;
    pieces(from, bytes, |at, piece| to.write_all_at(piece, at))
}

/// Puts a copy back into the file or device of a disk.
///
/// # Errors
/// Those of the file system.
pub fn put_back(from: &File, to: &File, bytes: u64) -> io::Result<()> {
    if to.metadata()?.file_type().is_block_device() {
        let mut buffer = vec![0; PIECE as usize];
        for at in (0..bytes).step_by(PIECE as usize) {
            let piece = &mut buffer[..(bytes - at).min(PIECE) as usize];
            from.read_exact_at(piece, at)?;
            to.write_all_at(piece, at)?;
        }
    } else {
        to.set_len(0)?;
        copy(from, to, bytes)?;
    }
    to.sync_all()
}

/// A directory for what is being saved, beside the one that it will be; what was left there by one that did not get to its
/// end is removed.
///
/// # Errors
/// Those of the file system.
pub fn begin(target: &Path) -> io::Result<PathBuf> {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let unfinished = target.with_file_name(name);
    match std::fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::DirBuilder::new().mode(0o700).create(&unfinished)?;
    Ok(unfinished)
}

/// Puts the finished directory in its place, at once: there is always either the old one or the new one.
///
/// # Errors
/// Those of the file system.
pub fn finish(unfinished: &Path, target: &Path) -> io::Result<()> {
    File::open(unfinished)?.sync_all()?;
    let here = rustix::fs::CWD;
    if target.exists() {
        renameat_with(here, unfinished, here, target, RenameFlags::EXCHANGE)?;
    } else {
        std::fs::rename(unfinished, target)?;
    }
    let parent = match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()?;
    // The old one, if there was one.
    let _ = std::fs::remove_dir_all(unfinished);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn copies_are_the_same_and_sparse_and_digests_do_not_see_holes() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = (8 << 20) + 512;
        let original = create(&directory.path().join("a")).unwrap();
        original.set_len(bytes).unwrap();
        original.write_all_at(&[7; 4096], 3 << 20).unwrap();
        original.write_all_at(&[9; 512], bytes - 512).unwrap();
        // Zeroes that are no hole.
        original.write_all_at(&vec![0; 1 << 20], 0).unwrap();
        let copied = create(&directory.path().join("b")).unwrap();
        copy(&original, &copied, bytes).unwrap();
        let read = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
        assert_eq!(read("a"), read("b"));
        let same = digest(&original, bytes).unwrap();
        assert_eq!(same, digest(&copied, bytes).unwrap());
        copied.write_all_at(&[1], 5 << 20).unwrap();
        assert_ne!(same, digest(&copied, bytes).unwrap());
        put_back(&original, &copied, bytes).unwrap();
        assert_eq!(read("a"), read("b"));
    }

    #[test]
    fn the_old_directory_stays_until_the_new_one_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("saved");
        for content in ["one", "two"] {
            let unfinished = begin(&target).unwrap();
            std::fs::write(unfinished.join("file"), "half").unwrap();
            // It was killed here.
            let unfinished = begin(&target).unwrap();
            assert!(!unfinished.join("file").exists());
            std::fs::write(unfinished.join("file"), content).unwrap();
            finish(&unfinished, &target).unwrap();
            let found = std::fs::read_to_string(target.join("file")).unwrap();
            assert_eq!(found, content);
            assert!(!unfinished.exists());
        }
    }
}
