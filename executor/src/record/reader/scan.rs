//! Opening a recording: every byte of it is checked, and noted where what is.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::{BlobInfo, Block, RecordError, Recording, Segment, Torn, io_at};
use crate::record::codec::{BlobMeta, EndRecord};
use crate::record::format::{BLOCK_HEAD, BlockHead, Fault, Hash, Kind, SEGMENT_HEAD, SegmentHead};
use crate::record::header::Header;
use crate::record::segment::finished;

/// Bytes read at once while a segment is checked.
const CHECK_BYTES: usize = 1 << 20;

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
pub(super) struct Scan {
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

impl Scan {
    pub(super) fn run(path: &Path, tolerant: bool) -> Result<Recording, RecordError> {
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
