//! Reading a recording. What is in the files is checked to its last byte when it is opened: the length of nothing is believed
//! before its check is right, and a recording that is damaged anywhere says where.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::codec::{self, BlobMeta, EndRecord, RecordedEvent, Step};
use super::format::{BLOCK_HEAD, BlockHead, Fault, Hash, Kind, SEGMENT_HEAD, SegmentHead};
use super::header::Header;
use super::segment::finished;
use crate::exit::{ExitCode, Failure};

/// Bytes read at once while a segment is checked.
const CHECK_BYTES: usize = 1 << 20;

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

/// Why a scan stops where it is.
enum Stop {
    /// The end is not there.
    Torn { offset: u64, bytes: u64 },
    /// Damage.
    Error(RecordError),
}

impl From<RecordError> for Stop {
    fn from(error: RecordError) -> Stop {
        Stop::Error(error)
    }
}

/// A checkpoint or dump whose end has not been seen.
struct OpenBlob {
    kind: Kind,
    meta: BlobMeta,
    first: usize,
    bytes: u64,
}

/// Opening a recording.
#[derive(Default)]
struct Scan {
    segments: Vec<Segment>,
    blocks: Vec<Block>,
    header: Option<Header>,
    id: [u8; 16],
    chain: Hash,
    first: Option<u64>,
    next: u64,
    blob: Option<OpenBlob>,
    checkpoints: Vec<BlobInfo>,
    dumps: Vec<BlobInfo>,
    turned: bool,
    end: Option<EndRecord>,
    bytes: u64,
}

fn io_at(path: &Path) -> impl Fn(io::Error) -> RecordError + '_ {
    |source| RecordError::Io {
        path: path.to_owned(),
        source,
    }
}

impl Scan {
    fn run(path: &Path, tolerant: bool) -> Result<Recording, RecordError> {
        let mut files = finished(path).map_err(io_at(path))?;
        let newest = files.last().map_or(1, |(number, _)| number + 1);
        // Killed between two segments, there is no newest.
        let turning = !files.is_empty() && !path.exists();
        if !turning {
            files.push((newest, path.to_owned()));
        }
        let last = files.len() - 1;
        let mut scan = Scan::default();
        let mut torn = None;
        for (index, (_, path)) in files.into_iter().enumerate() {
            let stop = match scan.segment(&path, index == last) {
                Ok(()) => continue,
                Err(stop) => stop,
            };
            torn = Some(match stop {
                Stop::Torn { offset, bytes } => Torn {
                    path,
                    offset,
                    bytes,
                    damage: None,
                },
                Stop::Error(error) if tolerant && scan.first.is_some() => Torn {
                    path,
                    offset: scan.bytes,
                    bytes: 0,
                    damage: Some(error.to_string()),
                },
                Stop::Error(error) => return Err(error),
            });
            break;
        }
        let Some(header) = scan.header else {
            // Killed before the first block was whole.
            return Err(RecordError::Foreign {
                path: path.to_owned(),
                fault: Fault::Head,
            });
        };
        let first = scan.first.unwrap_or(0);
        let decided = first..scan.next;
        scan.checkpoints
            .retain(|checkpoint| decided.contains(&checkpoint.meta.boundary));
        scan.checkpoints
            .sort_by_key(|checkpoint| checkpoint.meta.boundary);
        Ok(Recording {
            path: path.to_owned(),
            header,
            segments: scan.segments,
            journals: (0..scan.blocks.len())
                .filter(|index| scan.blocks[*index].head.kind == Kind::Journal)
                .collect(),
            blocks: scan.blocks,
            first,
            next: scan.next,
            checkpoints: scan.checkpoints,
            dumps: scan.dumps,
            end: scan.end,
            torn,
            bytes: scan.bytes,
        })
    }

    /// Checks one file, and notes what is in it.
    fn segment(&mut self, path: &Path, last: bool) -> Result<(), Stop> {
        let at = io_at(path);
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => RecordError::Missing(path.to_owned()),
            _ => at(error),
        })?;
        let len = file.metadata().map_err(&at)?.len();
        let mut input = BufReader::with_capacity(CHECK_BYTES, &file);
        let follows = !self.segments.is_empty();

        let mut head = [0; SEGMENT_HEAD];
        if len < SEGMENT_HEAD as u64 && last && follows {
            return Err(Stop::Torn {
                offset: 0,
                bytes: len,
            });
        }
        let foreign = |fault| RecordError::Foreign {
            path: path.to_owned(),
            fault,
        };
        if len < SEGMENT_HEAD as u64 {
            return Err(foreign(Fault::NotARecording).into());
        }
        input.read_exact(&mut head).map_err(&at)?;
        let head = SegmentHead::decode(&head).map_err(foreign)?;
        if let Some(before) = self.segments.last() {
            let fits = self.turned
                && head.id == self.id
                && head.before == self.chain
                && head.first_boundary == self.next;
            if !fits {
                return Err(RecordError::Segment {
                    path: path.to_owned(),
                    before: before.path.clone(),
                }
                .into());
            }
        } else {
            self.next = head.first_boundary;
        }
        self.id = head.id;
        self.chain = head.chain();
        self.turned = false;
        self.blob = None;
        let segment = self.segments.len();
        self.segments.push(Segment {
            path: path.to_owned(),
            file: file.try_clone().map_err(&at)?,
        });

        let mut offset = SEGMENT_HEAD as u64;
        let mut number = 0;
        self.bytes += offset;
        while offset < len {
            let damaged = |fault| RecordError::Damaged {
                path: path.to_owned(),
                offset,
                block: number,
                fault,
            };
            let torn = Stop::Torn {
                offset,
                bytes: len - offset,
            };
            // Only the newest segment can have been cut off, and nothing follows the end of a recording.
            let may_be_torn = last && self.end.is_none() && !self.turned;
            if len - offset < BLOCK_HEAD as u64 {
                return Err(if may_be_torn {
                    torn
                } else {
                    damaged(Fault::Head).into()
                });
            }
            let mut bytes = [0; BLOCK_HEAD];
            input.read_exact(&mut bytes).map_err(&at)?;
            let head = match BlockHead::decode(&bytes) {
                Ok(head) => head,
                // Some file systems give a file its length before its bytes.
                Err(_) if may_be_torn && bytes == [0; BLOCK_HEAD] && rest_is_zero(&mut input) => {
                    return Err(torn);
                }
                Err(fault) => return Err(damaged(fault).into()),
            };
            let stored_len = u64::from(head.stored);
            if len - offset - (BLOCK_HEAD as u64) < stored_len {
                return Err(if may_be_torn {
                    torn
                } else {
                    damaged(Fault::Nonsense("a length")).into()
                });
            }
            if self.end.is_some() || self.turned {
                return Err(damaged(Fault::Nonsense("something follows the end")).into());
            }
            let mut stored = vec![0; head.stored as usize];
            input.read_exact(&mut stored).map_err(&at)?;
            let chain = self.chain;
            head.check(number, &mut self.chain, &stored)
                .map_err(damaged)?;
            let block = Block {
                segment,
                offset,
                head,
                chain,
            };
            self.block(path, block, stored, number == 0, damaged)?;
            offset += BLOCK_HEAD as u64 + stored_len;
            self.bytes += BLOCK_HEAD as u64 + stored_len;
            number += 1;
        }
        if !last && !self.turned {
            // It is not the newest, so it was written to its end.
            return Err(RecordError::Damaged {
                path: path.to_owned(),
                offset,
                block: number,
                fault: Fault::Nonsense("its end is missing"),
            }
            .into());
        }
        Ok(())
    }

    /// Notes what a block is.
    fn block(
        &mut self,
        path: &Path,
        block: Block,
        stored: Vec<u8>,
        is_first: bool,
        damaged: impl Fn(Fault) -> RecordError,
    ) -> Result<(), RecordError> {
        let head = block.head;
        if is_first != (head.kind == Kind::Header) {
            return Err(damaged(Fault::Nonsense("the header's place")));
        }
        let text = |what| {
            let path = path.to_owned();
            move |error: serde_json::Error| RecordError::Text {
                path,
                what,
                error: error.to_string(),
            }
        };
        let unpack = |stored| head.unpack(stored).map_err(&damaged);
        match head.kind {
            Kind::Header => {
                let header =
                    serde_json::from_slice(&unpack(stored)?).map_err(text("the header"))?;
                self.header.get_or_insert(header);
            }
            Kind::Journal | Kind::Reads => {
                if head.first_boundary != self.next {
                    return Err(damaged(Fault::Nonsense("its first boundary")));
                }
                if head.kind == Kind::Journal {
                    self.first.get_or_insert(head.first_boundary);
                }
                self.next += u64::from(head.boundaries);
                self.blocks.push(block);
            }
            Kind::Events => self.blocks.push(block),
            Kind::Checkpoint | Kind::Dump => {
                let meta = serde_json::from_slice(&unpack(stored)?)
                    .map_err(text("a checkpoint or dump"))?;
                self.blob = Some(OpenBlob {
                    kind: head.kind,
                    meta,
                    first: self.blocks.len(),
                    bytes: 0,
                });
            }
            Kind::Piece => {
                if let Some(blob) = &mut self.blob {
                    blob.bytes += u64::from(head.stored);
                }
                self.blocks.push(block);
            }
            Kind::Whole => {
                if let Some(blob) = self.blob.take() {
                    let info = BlobInfo {
                        meta: blob.meta,
                        bytes: blob.bytes,
                        pieces: blob.first..self.blocks.len(),
                    };
                    match blob.kind {
                        Kind::Checkpoint => self.checkpoints.push(info),
                        _ => self.dumps.push(info),
                    }
                }
            }
            Kind::Turn => self.turned = true,
            Kind::End => {
                let end = serde_json::from_slice(&unpack(stored)?).map_err(text("the end"))?;
                self.end = Some(end);
            }
        }
        Ok(())
    }
}

fn rest_is_zero(input: &mut BufReader<&File>) -> bool {
    let Ok(here) = input.stream_position() else {
        return false;
    };
    let mut bytes = vec![0; CHECK_BYTES];
    let zero = loop {
        match input.read(&mut bytes) {
            Ok(0) => break true,
            Ok(read) if bytes[..read].iter().all(|byte| *byte == 0) => {}
            _ => break false,
        }
    };
    zero && input.seek(SeekFrom::Start(here)).is_ok()
}
