//! The disks of a rig: copies in memory, of which only what a trial has written is put back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use quorate_devices::{BlockOp, BlockRequest, SECTOR};
use tempfile::TempDir;

use super::DiskContent;
use crate::channel;
use crate::egress::{Item, Tap};
use crate::exit::{ExitCode, Failure};
use crate::save::copy_file;
use crate::sync::lock;

/// Where copies lie that are to cost no I/O.
const MEMORY: &str = "/dev/shm";
/// Bytes that are put back at once.
const PIECE: usize = 1 << 20;

/// See the module.
pub struct Copies {
    /// Keeps the files.
    _directory: Option<TempDir>,
    disks: Vec<Copy>,
    written: Arc<Mutex<Vec<Extents>>>,
}

struct Copy {
    original: PathBuf,
    path: PathBuf,
    bytes: u64,
    read_only: bool,
}

/// Byte ranges, ascending and apart. What overlaps or touches is one, so that there are no more of them than what is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents(std::collections::BTreeMap<u64, u64>);

impl Extents {
    fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut from, mut to) = (start, end);
        let touching: Vec<u64> = self
            .0
            .range(..=end)
            .rev()
            .take_while(|(_, e)| **e >= start)
            .map(|(s, _)| *s)
            .collect();
        for key in touching {
            if let Some(old) = self.0.remove(&key) {
                from = from.min(key);
                to = to.max(old);
            }
        }
        self.0.insert(from, to);
    }
}

impl Copies {
    /// Copies these disks: path, size, and whether it is only read (then it is not copied).
    ///
    /// # Errors
    /// When there is no room, or a disk cannot be read.
    pub fn new(disks: &[(PathBuf, u64, bool)]) -> Result<Copies, Failure> {
        let needed = disks.iter().any(|(_, _, read_only)| !read_only);
        let directory = needed.then(directory).transpose().map_err(|error| {
            Failure::new(
                ExitCode::Host,
                format!("there is no place for copies of the disks: {error}"),
            )
        })?;
        let mut copies = Vec::new();
        for (number, (original, bytes, read_only)) in disks.iter().enumerate() {
            let path = match &directory {
                Some(directory) if !read_only => directory.path().join(format!("disk-{number}")),
                _ => original.clone(),
            };
            if !read_only {
                copy(original, &path, *bytes).map_err(|error| {
                    let text = format!("{}: cannot be copied: {error}", original.display());
                    Failure::new(ExitCode::Disk, text)
                })?;
            }
            copies.push(Copy {
                original: original.clone(),
                path,
                bytes: *bytes,
                read_only: *read_only,
            });
        }
        let written = vec![Extents::default(); copies.len()];
        Ok(Copies {
            _directory: directory,
            disks: copies,
            written: Arc::new(Mutex::new(written)),
        })
    }

    /// Where they are.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.disks.iter().map(|disk| disk.path.as_path())
    }

    /// Notes what is written; none is needed without disks.
    pub fn tap(&self) -> Option<Tap> {
        if self.disks.iter().all(|disk| disk.read_only) {
            return None;
        }
        let written = Arc::clone(&self.written);
        Some(Box::new(move |item| {
            if let Item::Release { channel, bytes, .. } = item
                && let Some(disk) = channel::disk_of(*channel)
                && let Ok(request) = BlockRequest::from_bytes(bytes.clone())
                && let Some(extents) = lock(&written).get_mut(usize::from(disk))
            {
                let (sector, bytes) = match request.op {
                    BlockOp::Read { .. } | BlockOp::Flush => return,
                    BlockOp::Write { sector, data } => (sector, data.len() as u64),
                    BlockOp::Discard { sector, sectors }
                    | BlockOp::WriteZeroes {
                        sector, sectors, ..
                    } => (sector, u64::from(sectors) * SECTOR),
                };
                let start = sector.saturating_mul(SECTOR);
                extents.insert(start, start.saturating_add(bytes));
            }
        }))
    }

    /// Says what was written, and puts it back.
    ///
    /// # Errors
    /// Those of the files.
    pub fn put_back(&self) -> io::Result<Vec<DiskContent>> {
        let written = {
            let mut written = lock(&self.written);
            let empty = vec![Extents::default(); written.len()];
            std::mem::replace(&mut *written, empty)
        };
        let disks = self.disks.iter().zip(written);
        disks
            .map(|(disk, extents)| {
                if extents.0.is_empty() {
                    return Ok(DiskContent::default());
                }
                let from = File::open(&disk.original)?;
                let to = OpenOptions::new().read(true).write(true).open(&disk.path)?;
                let mut content = DiskContent::default();
                for (start, end) in extents.0 {
                    let end = end.min(disk.bytes);
                    let Some(len) = end.checked_sub(start) else {
                        continue;
                    };
                    let mut data = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
                    to.read_exact_at(&mut data, start)?;
                    content.written.push((start, data));
                    let mut piece = vec![0; PIECE.min(len as usize)];
                    let mut at = start;
                    while at < end {
                        let now = ((end - at) as usize).min(piece.len());
                        from.read_exact_at(&mut piece[..now], at)?;
                        to.write_all_at(&piece[..now], at)?;
                        at += now as u64;
                    }
                }
                Ok(content)
            })
            .collect()
    }

    /// Copies everything again.
    ///
    /// # Errors
    /// Those of the files.
    pub fn renew(&self) -> io::Result<()> {
        for disk in self.disks.iter().filter(|disk| !disk.read_only) {
            copy(&disk.original, &disk.path, disk.bytes)?;
        }
        lock(&self.written).fill(Extents::default());
        Ok(())
    }
}

fn directory() -> io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("quorate-rig-");
    // It may be too small, or not there; then the host's page cache has to do.
    builder.tempdir_in(MEMORY).or_else(|_| builder.tempdir())
}

fn copy(from: &Path, to: &Path, bytes: u64) -> io::Result<()> {
    let from = File::open(from)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    let to = options.open(to)?;
    copy_file(&from, &to, bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn release(tap: &mut Tap, seq: u64, op: BlockOp) {
        let request = BlockRequest { disk: 0, seq, op };
        tap(&Item::Release {
            boundary: 1,
            channel: channel::disk(0),
            bytes: request.into_bytes(),
        });
    }

    #[test]
    fn what_was_written_is_told_and_put_back() {
        let original = tempfile::NamedTempFile::new().unwrap();
        let before: Vec<u8> = (0..64 * 512_u32).map(|i| (i / 512) as u8).collect();
        original.as_file().write_all_at(&before, 0).unwrap();
        let bytes = before.len() as u64;
        let copies = Copies::new(&[(original.path().to_owned(), bytes, false)]).unwrap();
        let path = copies.paths().next().unwrap().to_owned();
        let mut tap = copies.tap().unwrap();
        let write = |sector, len: usize| BlockOp::Write {
            sector,
            data: vec![0xaa; len],
        };
        release(&mut tap, 0, write(3, 512));
        release(&mut tap, 1, write(4, 1024));
        release(&mut tap, 2, BlockOp::Flush);
        release(
            &mut tap,
            3,
            BlockOp::Discard {
                sector: 60,
                sectors: 4,
            },
        );
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0xaa; 1536], 3 * 512).unwrap();
        file.write_all_at(&[0; 4 * 512], 60 * 512).unwrap();
        let content = copies.put_back().unwrap();
        let expected = vec![(3 * 512, vec![0xaa; 1536]), (60 * 512, vec![0; 4 * 512])];
        assert_eq!(content[0].written, expected);
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(copies.put_back().unwrap()[0], DiskContent::default());
        file.write_all_at(&[1; 512], 0).unwrap();
        copies.renew().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn extents_that_meet_are_one() {
        let mut extents = Extents::default();
        for (start, end) in [(10, 20), (30, 40), (20, 25), (50, 60), (24, 50), (5, 5)] {
            extents.insert(start, end);
        }
        assert_eq!(extents.0.into_iter().collect::<Vec<_>>(), [(10, 60)]);
    }
}
