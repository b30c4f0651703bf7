//! The files of a recording, as they are written: blocks into the newest segment, a new segment when it is full, the oldest deleted.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::rand::{GetRandomFlags, getrandom};

use super::format::{Hash, Kind, SegmentHead, seal};
use super::queue::{DUMPS_SHARE, Limits};

/// Finished segments that are kept, whatever their size, as long as there is no checkpoint later.
const WITHOUT_START: usize = 2;
/// Secrets are in it: for its owner only.
const MODE: u32 = 0o600;

/// The file that segment `number` of a recording has once it is not the newest any more.
pub fn numbered(path: &Path, number: u64) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number:06}"));
    name.into()
}

/// The finished segments of a recording that are there, by number.
///
/// # Errors
/// When the directory cannot be read.
pub fn finished(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Some(name) = path.file_name() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let other = entry?.file_name();
        let digits = other
            .as_encoded_bytes()
            .strip_prefix(name.as_encoded_bytes())
            .and_then(|rest| rest.strip_prefix(b"."))
            .filter(|digits| digits.len() >= 6 && digits.iter().all(u8::is_ascii_digit))
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        if let Some(number) = digits {
            found.push((number, directory.join(&other)));
        }
    }
    found.sort();
    Ok(found)
}

struct Kept {
    path: PathBuf,
    len: u64,
    dumps: u64,
    has_start: bool,
}

/// See the module. After an error nothing more may be written.
pub struct Segments {
    path: PathBuf,
    limits: Limits,
    header: Vec<u8>,
    file: File,
    head: SegmentHead,
    chain: Hash,
    blocks: u32,
    len: u64,
    /// Bytes of it without checkpoints and dumps.
    journal: u64,
    /// Bytes of dumps in it.
    dumps: u64,
    /// A replay can begin in it.
    has_start: bool,
    kept: VecDeque<Kept>,
    total: u64,
    /// The disk is full beyond this length.
    #[cfg(test)]
    full: Option<u64>,
}

impl Segments {
    /// Lets the disk be full after so many bytes.
    #[cfg(test)]
    pub fn full_after(&mut self, bytes: u64) {
        self.full = Some(bytes);
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        if let Some(full) = self.full
            && self.total + bytes.len() as u64 > full
        {
            // Part of it still has room.
            self.file
                .write_all(&bytes[..(full - self.total) as usize])?;
            return Err(rustix::io::Errno::NOSPC.into());
        }
        self.file.write_all(bytes)
    }

    /// Makes the first segment, with this header (JSON).
    ///
    /// # Errors
    /// Those of the file system; [`io::ErrorKind::AlreadyExists`] if there is a recording of this name.
    pub fn create(path: &Path, limits: Limits, header: Vec<u8>) -> io::Result<Segments> {
        if !finished(path)?.is_empty() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut id = [0; 16];
        let mut filled = 0;
        while filled < id.len() {
            filled += getrandom(&mut id[filled..], GetRandomFlags::empty())?;
        }
        let head = SegmentHead {
            id,
            number: 1,
            first_boundary: 0,
            before: [0; 32],
        };
        let mut segments = Segments {
            path: path.to_owned(),
            limits,
            header,
            file: create(path)?,
            head,
            chain: [0; 32],
            blocks: 0,
            len: 0,
            journal: 0,
            dumps: 0,
            has_start: true,
            kept: VecDeque::new(),
            total: 0,
            #[cfg(test)]
            full: None,
        };
        segments.begin()?;
        Ok(segments)
    }

    fn begin(&mut self) -> io::Result<()> {
        self.chain = self.head.chain();
        (self.blocks, self.len, self.journal, self.dumps) = (0, 0, 0, 0);
        self.append(&self.head.encode())?;
        let header = std::mem::take(&mut self.header);
        let written = self.write(Kind::Header, self.head.first_boundary, 0, &header);
        self.header = header;
        written
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.put(bytes) {
            // Half a block would only be taken for a torn one; but the space may be what is wanting.
            let _ = self.file.set_len(self.len);
            return Err(error);
        }
        self.len += bytes.len() as u64;
        self.total += bytes.len() as u64;
        Ok(())
    }

    /// Writes one block.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&mut self, kind: Kind, first: u64, boundaries: u32, raw: &[u8]) -> io::Result<()> {
        let block = seal(kind, self.blocks, first, boundaries, raw, &mut self.chain)?;
        self.append(&block)?;
        self.blocks += 1;
        if matches!(kind, Kind::Journal | Kind::Reads | Kind::Events) {
            self.journal += block.len() as u64;
        }
        Ok(())
    }

    /// A checkpoint is whole in the newest segment, so a replay can begin there.
    ///
    /// # Errors
    /// As for [`Segments::turn`].
    pub fn started(&mut self) -> io::Result<()> {
        self.has_start = true;
        self.prune()
    }

    /// A dump of this length has been written to the newest segment.
    pub fn dumped(&mut self, bytes: u64) {
        self.dumps += bytes;
    }

    /// Whether there is room for more dumps (R10).
    pub fn has_room_for_dumps(&self) -> bool {
        let there: u64 = self.kept.iter().map(|kept| kept.dumps).sum();
        (there + self.dumps) < self.limits.keep / DUMPS_SHARE
    }

    /// The newest segment.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the newest segment.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the newest segment is full.
    pub fn is_full(&self) -> bool {
        self.journal >= self.limits.segment
    }

    /// Begins a new segment, with this boundary.
    ///
    /// # Errors
    /// Those of the file system; and when the oldest segments would have to go but no later one has a checkpoint.
    pub fn turn(&mut self, first_boundary: u64) -> io::Result<()> {
        self.write(Kind::Turn, first_boundary, 0, &[])?;
        let path = numbered(&self.path, self.head.number);
        std::fs::rename(&self.path, &path)?;
        self.kept.push_back(Kept {
            path,
            len: self.len,
            dumps: self.dumps,
            has_start: self.has_start,
        });
        self.head = SegmentHead {
            id: self.head.id,
            number: self.head.number + 1,
            first_boundary,
            before: self.chain,
        };
        self.file = create(&self.path)?;
        self.has_start = false;
        self.begin()?;
        self.prune()
    }

    /// R10: deletes the oldest segments to stay within the bound, with room for what the newest may become.
    fn prune(&mut self) -> io::Result<()> {
        let room = self.limits.segment.saturating_sub(self.len);
        while let Some(oldest) = self.kept.front() {
            if self.total + room <= self.limits.keep {
                break;
            }
            let later = self.kept.iter().skip(1).any(|kept| kept.has_start) || self.has_start;
            if !later {
                // A recording in which no replay can begin is worth nothing. A whole segment is time enough for a checkpoint.
                if self.total <= self.limits.keep || self.kept.len() <= WITHOUT_START {
                    break;
                }
                return Err(io::Error::other(
                    "the bound of --record-keep is reached, and there is no checkpoint in what would be left",
                ));
            }
            std::fs::remove_file(&oldest.path)?;
            self.total -= oldest.len;
            self.kept.pop_front();
        }
        Ok(())
    }

    /// Segments that are there, and their bytes.
    pub fn size(&self) -> (usize, u64) {
        (self.kept.len() + 1, self.total)
    }

    /// Brings everything to stable storage, as far as the file system can.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(path)
}
