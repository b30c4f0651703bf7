//! Reading a recording. What is in the files is checked to its last byte when it is opened: the length of nothing is believed
//! before its check is right, and a recording that is damaged anywhere says where.

mod scan;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::codec::{self, BlobMeta, EndRecord, RecordedEvent, Step};
use super::format::{BLOCK_HEAD, BlockHead, Fault, Hash, Kind};
use super::header::Header;
use crate::exit::{ExitCode, Failure};
use scan::Scan;

/// Why a recording cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system.
    #[error("{}: cannot read the recording: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is nothing of this name.
    #[error("{}: there is no recording of this name", .0.display())]
    Missing(PathBuf),
    /// It is something else, or of another version.
    #[error("{}: {fault}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: Fault,
    },
    /// A block is not what was written.
    #[error("{}: damaged at byte {offset}, block {block}: {fault}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the block (or the head of the file) begins.
        offset: u64,
        /// Number of the block in the file, from 0.
        block: u32,
        /// What is wrong.
        fault: Fault,
    },
    /// A segment does not follow the one before.
    #[error("{}: is not the segment that follows {}: one is missing, or of another recording", path.display(), before.display())]
    Segment {
        /// The file.
        path: PathBuf,
        /// The one before.
        before: PathBuf,
    },
    /// The header, or another text in it, is of another version of this program.
    #[error("{}: {what} cannot be understood: {error}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// What.
        what: &'static str,
        /// Why.
        error: String,
    },
    /// A boundary that is not in the recording.
    #[error("boundary {asked} is not in the recording, which has {first} to {last}")]
    NoBoundary {
        /// What was asked for.
        asked: u64,
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Failure {
        let code = match error {
            RecordError::NoBoundary { .. } => ExitCode::Usage,
            _ => ExitCode::Recording,
        };
        Failure::new(code, error)
    }
}

/// The end of a recording that was not written to its end, since the set was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The file.
    pub path: PathBuf,
    /// Where the first block lies that is not whole.
    pub offset: u64,
    /// Bytes that were dropped.
    pub bytes: u64,
    /// What is wrong there, if it is damage that the caller wanted to have passed over.
    pub damage: Option<String>,
}

/// A checkpoint or dump in a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// What is said of it.
    pub meta: BlobMeta,
    /// Bytes as stored.
    pub bytes: u64,
    pieces: std::ops::Range<usize>,
}

/// Where a replay can begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartPoint {
    /// With a fresh machine.
    Beginning,
    /// With this checkpoint; index into [`Recording::checkpoints`].
    Checkpoint(usize),
}

struct Segment {
    path: PathBuf,
    file: File,
}

#[derive(Clone, Copy)]
struct Block {
    segment: usize,
    offset: u64,
    head: BlockHead,
    chain: Hash,
}

/// A recording, open for reading.
pub struct Recording {
    path: PathBuf,
    header: Header,
    segments: Vec<Segment>,
    /// All journal, reads, events and piece blocks, in order.
    blocks: Vec<Block>,
    /// Which of them are journals; these are in the order of their boundaries.
    journals: Vec<usize>,
    first: u64,
    next: u64,
    checkpoints: Vec<BlobInfo>,
    dumps: Vec<BlobInfo>,
    end: Option<EndRecord>,
    torn: Option<Torn>,
    bytes: u64,
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording")
            .field("path", &self.path)
            .field("segments", &self.segments.len())
            .field("boundaries", &(self.first..self.next))
            .finish_non_exhaustive()
    }
}

impl Recording {
    /// Opens the recording whose newest segment is `path`, and checks all of it. An end that was torn off by a kill is passed
    /// over ([`Recording::torn`]).
    ///
    /// # Errors
    /// [`RecordError`]: any byte that is not what was written, by file, place and block.
    pub fn open(path: &Path) -> Result<Recording, RecordError> {
        Scan::run(path, false)
    }

    /// As [`Recording::open`], but a recording that is damaged ends before the damage ([`Torn::damage`]) if anything is before it.
    ///
    /// # Errors
    /// As [`Recording::open`].
    pub fn open_up_to_damage(path: &Path) -> Result<Recording, RecordError> {
        Scan::run(path, true)
    }

    /// What it says of the run.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The boundaries in it. Those before the first were deleted to stay within the bound.
    #[must_use]
    pub fn boundaries(&self) -> std::ops::Range<u64> {
        self.first..self.next
    }

    /// Segments, and bytes of all.
    #[must_use]
    pub fn size(&self) -> (usize, u64) {
        (self.segments.len(), self.bytes)
    }

    /// How it ended; none if the set was killed, or the disk was full.
    #[must_use]
    pub fn end(&self) -> Option<&EndRecord> {
        self.end.as_ref()
    }

    /// What was dropped at its end.
    #[must_use]
    pub fn torn(&self) -> Option<&Torn> {
        self.torn.as_ref()
    }

    /// Checkpoints in it from which a replay can go on, by boundary.
    #[must_use]
    pub fn checkpoints(&self) -> &[BlobInfo] {
        &self.checkpoints
    }

    /// Dumps of replicas that were stopped, in the order in which that happened.
    #[must_use]
    pub fn dumps(&self) -> &[BlobInfo] {
        &self.dumps
    }

    /// Where a replay can begin, earliest first. Empty: nowhere.
    #[must_use]
    pub fn starts(&self) -> Vec<StartPoint> {
        let fresh = self.first == 0 && self.next > 0 && !self.header.resumed;
        let beginning = fresh.then_some(StartPoint::Beginning);
        let checkpoints = (0..self.checkpoints.len()).map(StartPoint::Checkpoint);
        beginning.into_iter().chain(checkpoints).collect()
    }

    /// The bytes of a checkpoint or dump, for `quorate_vmm::Checkpoint::read_from`.
    #[must_use]
    pub fn blob(&self, info: &BlobInfo) -> impl Read + '_ {
        BlobReader {
            recording: self,
            blocks: info.pieces.clone(),
            piece: io::Cursor::new(Vec::new()),
        }
    }

    /// The boundaries from this one on.
    ///
    /// # Errors
    /// When it is not there.
    pub fn from(&self, boundary: u64) -> Result<Boundaries<'_>, RecordError> {
        if !(self.first..=self.next).contains(&boundary) {
            return Err(self.no_boundary(boundary));
        }
        // The last journal block that begins at or before it.
        let after = self
            .journals
            .partition_point(|index| self.blocks[*index].head.first_boundary <= boundary);
        let block = match after.checked_sub(1) {
            Some(last) => self.journals[last],
            None => self.blocks.len(),
        };
        let before = self.blocks[..block]
            .iter()
            .rev()
            .take_while(|block| block.head.kind == Kind::Reads)
            .count();
        Ok(Boundaries {
            recording: self,
            block: block - before,
            reads: Vec::new(),
            steps: Vec::new().into_iter(),
            from: boundary,
        })
    }

    /// One boundary.
    ///
    /// # Errors
    /// When it is not there, or cannot be read.
    pub fn step(&self, boundary: u64) -> Result<Step, RecordError> {
        match self.from(boundary)?.next() {
            Some(step) => step,
            None => Err(self.no_boundary(boundary)),
        }
    }

    fn no_boundary(&self, asked: u64) -> RecordError {
        RecordError::NoBoundary {
            asked,
            first: self.first,
            last: self.next.saturating_sub(1),
        }
    }

    /// All events, in order.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn events(&self) -> Result<Vec<RecordedEvent>, RecordError> {
        let mut events = Vec::new();
        for block in &self.blocks {
            if block.head.kind == Kind::Events {
                let raw = self.content(block)?;
                events.extend(codec::events(&raw).map_err(|fault| self.damaged(block, fault))?);
            }
        }
        Ok(events)
    }

    /// The content of a block, checked again: the file may have changed since.
    fn content(&self, block: &Block) -> Result<Vec<u8>, RecordError> {
        let segment = &self.segments[block.segment];
        let mut stored = vec![0; block.head.stored as usize];
        segment
            .file
            .read_exact_at(&mut stored, block.offset + BLOCK_HEAD as u64)
            .map_err(io_at(&segment.path))?;
        let mut chain = block.chain;
        block
            .head
            .check(block.head.number, &mut chain, &stored)
            .and_then(|()| block.head.unpack(stored))
            .map_err(|fault| self.damaged(block, fault))
    }

    fn damaged(&self, block: &Block, fault: Fault) -> RecordError {
        RecordError::Damaged {
            path: self.segments[block.segment].path.clone(),
            offset: block.offset,
            block: block.head.number,
            fault,
        }
    }
}

/// Boundaries of a recording, in order.
pub struct Boundaries<'r> {
    recording: &'r Recording,
    block: usize,
    reads: Vec<codec::ReadData>,
    steps: std::vec::IntoIter<Step>,
    from: u64,
}

impl Boundaries<'_> {
    fn next_block(&mut self) -> Option<Result<(), RecordError>> {
        let recording = self.recording;
        let block = recording.blocks.get(self.block)?;
        self.block += 1;
        Some(match block.head.kind {
            Kind::Reads => recording.content(block).and_then(|raw| {
                let reads = codec::reads(&raw).map_err(|fault| recording.damaged(block, fault))?;
                self.reads.extend(reads);
                Ok(())
            }),
            Kind::Journal => recording.content(block).and_then(|raw| {
                let mut steps =
                    codec::journal(&raw, block.head.first_boundary, block.head.boundaries)
                        .map_err(|fault| recording.damaged(block, fault))?;
                if let Some(first) = steps.first_mut() {
                    first.reads.append(&mut self.reads);
                }
                self.steps = steps.into_iter();
                Ok(())
            }),
            _ => Ok(()),
        })
    }
}

impl Iterator for Boundaries<'_> {
    type Item = Result<Step, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            for step in self.steps.by_ref() {
                if step.boundary >= self.from {
                    return Some(Ok(step));
                }
            }
            if let Err(error) = self.next_block()? {
                self.block = self.recording.blocks.len();
                return Some(Err(error));
            }
        }
    }
}

struct BlobReader<'r> {
    recording: &'r Recording,
    blocks: std::ops::Range<usize>,
    piece: io::Cursor<Vec<u8>>,
}

impl Read for BlobReader<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.piece.read(to)?;
            if read > 0 || to.is_empty() {
                return Ok(read);
            }
            let Some(block) = self.blocks.next() else {
                return Ok(0);
            };
            let raw = self.recording.content(&self.recording.blocks[block]);
            self.piece = io::Cursor::new(raw.map_err(io::Error::other)?);
        }
    }
}

fn io_at(path: &Path) -> impl Fn(io::Error) -> RecordError + '_ {
    |source| RecordError::Io {
        path: path.to_owned(),
        source,
    }
}
