//! Records as bytes. Numbers are LEB128: seven bits per byte, low ones first.
//!
//! A journal block is a row of records: `1` data of a disk read, `2` a boundary. Times are differences to the boundary before in the
//! same block, so that every block can be read by itself.

use std::sync::Arc;

use quorate_devices::{BlockStatus, Completion, Entry, Waiting};
use serde::{Deserialize, Serialize};

use super::format::{Fault, Hash};
use super::header::hex32;

const READ: u8 = 1;
const BOUNDARY: u8 = 2;
const EVENT: u8 = 3;
const HAS_DIGEST: u8 = 1;
const HAS_ENTRY: u8 = 2;

/// The data of a disk read, that the entry of the boundary completes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadData {
    /// The disk.
    pub disk: u8,
    /// Number of the request.
    pub seq: u64,
    /// What the replicas were given.
    pub data: Arc<[u8]>,
}

/// One boundary of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Number of the boundary.
    pub boundary: u64,
    /// Fingerprint ([`crate::fingerprint::ReleaseDigest`]) of all releases up to the ballot of this boundary and with it. None: the
    /// set had not decided the boundary when it ended.
    pub digest: Option<Hash>,
    /// The entry. None: the set ended here.
    pub entry: Option<Arc<Entry>>,
    /// Data of the reads that the entry completes.
    pub reads: Vec<ReadData>,
}

/// One event of the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedEvent {
    /// Milliseconds since the set was started.
    pub at_ms: u64,
    /// The next boundary that was recorded when it happened.
    pub boundary: u64,
    /// The event as JSON, as [`crate::events::Event`] is serialised: an object with the key `event`.
    pub json: String,
    /// The event for people.
    pub text: String,
}

/// What is said of a checkpoint or a dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobMeta {
    /// Whose machine it was.
    pub replica: usize,
    /// Of a checkpoint: the boundary at which it stands, its ballot cast and the entry not delivered. Of a dump: the last boundary
    /// that the replica had completed.
    pub boundary: u64,
    /// Of a checkpoint: how often the replica had been given a new layout. Of a dump 0; the seed says which layout it had.
    pub generation: u64,
    /// Its layout seed.
    #[serde(with = "hex32")]
    pub layout_seed: [u8; 32],
    /// Of a dump: why the replica was stopped. Else empty.
    pub reason: String,
}

/// How a recording ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndRecord {
    /// Fingerprint of all that was released.
    #[serde(with = "hex32")]
    pub fingerprint: Hash,
    /// Boundaries that the set decided.
    pub decided: u64,
    /// Why the set ended, in words.
    pub reason: String,
}

/// Journal records on their way into a block.
#[derive(Debug, Default)]
pub struct JournalBlock {
    /// The records.
    pub bytes: Vec<u8>,
    /// How many boundaries.
    pub boundaries: u32,
    /// The first of them.
    pub first: u64,
    times: Times,
}

#[derive(Clone, Copy, Debug, Default)]
struct Times {
    monotonic_ns: u64,
    realtime_ns: u64,
}

impl JournalBlock {
    /// Adds a boundary: the one after the last, unless the block is empty.
    pub fn push(&mut self, step: &Step) {
        if self.boundaries == 0 {
            self.first = step.boundary;
        }
        self.boundaries += 1;
        let out = &mut self.bytes;
        for read in &step.reads {
            put_read(out, read);
        }
        let digest = step.digest.map_or(0, |_| HAS_DIGEST);
        let entry = step.entry.as_ref().map_or(0, |_| HAS_ENTRY);
        out.extend_from_slice(&[BOUNDARY, digest | entry]);
        if let Some(digest) = &step.digest {
            out.extend_from_slice(digest);
        }
        if let Some(entry) = &step.entry {
            put_entry(out, entry, &mut self.times);
        }
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.boundaries = 0;
        self.times = Times::default();
    }
}

/// Adds the data of a read to a journal or reads block.
pub fn put_read(out: &mut Vec<u8>, read: &ReadData) {
    out.extend_from_slice(&[READ, read.disk]);
    number(out, read.seq);
    chunk(out, &read.data);
}

/// The data of a reads block.
///
/// # Errors
/// When it holds something else.
pub fn reads(bytes: &[u8]) -> Result<Vec<ReadData>, Fault> {
    let mut cursor = Cursor(bytes);
    let mut reads = Vec::new();
    while let Some(tag) = cursor.tag() {
        if tag != READ {
            return Err(Fault::Records("an unknown record"));
        }
        reads.push(cursor.read()?);
    }
    Ok(reads)
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry, times: &mut Times) {
    // Wrapping: a difference is a difference, whatever somebody's clock does.
    let passed = entry.monotonic_ns.wrapping_sub(times.monotonic_ns);
    let expected = times.realtime_ns.wrapping_add(passed);
    number(out, zigzag(passed));
    number(out, zigzag(entry.realtime_ns.wrapping_sub(expected)));
    times.monotonic_ns = entry.monotonic_ns;
    times.realtime_ns = entry.realtime_ns;
    number(out, entry.flags);
    number(out, entry.frames.len() as u64);
    for frame in &entry.frames {
        chunk(out, frame);
    }
    chunk(out, &entry.console);
    number(out, entry.completions.len() as u64);
    for completion in &entry.completions {
        let flush = completion.kind == Waiting::Flush;
        let failed = completion.status == BlockStatus::IoError;
        out.extend_from_slice(&[completion.disk, u8::from(flush) | u8::from(failed) << 1]);
        number(out, completion.seq);
    }
}

/// The boundaries of a journal block.
///
/// # Errors
/// When it holds something else, or not as many as `boundaries`.
pub fn journal(bytes: &[u8], first: u64, boundaries: u32) -> Result<Vec<Step>, Fault> {
    let mut cursor = Cursor(bytes);
    let (mut steps, mut reads) = (Vec::new(), Vec::new());
    let mut times = Times::default();
    while let Some(tag) = cursor.tag() {
        match tag {
            READ => reads.push(cursor.read()?),
            BOUNDARY => {
                let has = cursor.byte()?;
                if has & !(HAS_DIGEST | HAS_ENTRY) != 0 {
                    return Err(Fault::Records("an unknown flag"));
                }
                let digest = match has & HAS_DIGEST {
                    0 => None,
                    _ => Some(cursor.hash()?),
                };
                let entry = match has & HAS_ENTRY {
                    0 => None,
                    _ => Some(Arc::new(cursor.entry(&mut times)?)),
                };
                let boundary = first
                    .checked_add(steps.len() as u64)
                    .ok_or(Fault::Records("a boundary"))?;
                steps.push(Step {
                    boundary,
                    digest,
                    entry,
                    reads: std::mem::take(&mut reads),
                });
            }
            _ => return Err(Fault::Records("an unknown record")),
        }
    }
    if !reads.is_empty() || steps.len() != boundaries as usize {
        return Err(Fault::Records("the number of boundaries"));
    }
    Ok(steps)
}

/// Adds an event to an events block.
pub fn put_event(out: &mut Vec<u8>, event: &RecordedEvent) {
    out.push(EVENT);
    number(out, event.at_ms);
    number(out, event.boundary);
    chunk(out, event.json.as_bytes());
    chunk(out, event.text.as_bytes());
}

/// The events of an events block.
///
/// # Errors
/// When it holds something else.
pub fn events(bytes: &[u8]) -> Result<Vec<RecordedEvent>, Fault> {
    let mut cursor = Cursor(bytes);
    let mut events = Vec::new();
    while let Some(tag) = cursor.tag() {
        if tag != EVENT {
            return Err(Fault::Records("an unknown record"));
        }
        events.push(RecordedEvent {
            at_ms: cursor.number()?,
            boundary: cursor.number()?,
            json: cursor.text()?,
            text: cursor.text()?,
        });
    }
    Ok(events)
}

fn zigzag(difference: u64) -> u64 {
    let signed = difference as i64;
    ((signed << 1) ^ (signed >> 63)) as u64
}

fn unzigzag(value: u64) -> u64 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn chunk(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// What is left to read. Nothing is allocated before the bytes are seen to be there.
struct Cursor<'a>(&'a [u8]);

const SHORT: Fault = Fault::Records("a record is cut off");

impl<'a> Cursor<'a> {
    fn tag(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        self.tag().ok_or(SHORT)
    }

    fn number(&mut self) -> Result<u64, Fault> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Fault::Records("a number is too large"))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn chunk(&mut self) -> Result<&'a [u8], Fault> {
        let len = usize::try_from(self.number()?).map_err(|_| SHORT)?;
        self.take(len)
    }

    fn text(&mut self) -> Result<String, Fault> {
        String::from_utf8(self.chunk()?.to_vec()).map_err(|_| Fault::Records("not a text"))
    }

    fn hash(&mut self) -> Result<Hash, Fault> {
        let mut hash = [0; 32];
        hash.copy_from_slice(self.take(32)?);
        Ok(hash)
    }

    fn read(&mut self) -> Result<ReadData, Fault> {
        Ok(ReadData {
            disk: self.byte()?,
            seq: self.number()?,
            data: self.chunk()?.into(),
        })
    }

    fn entry(&mut self, times: &mut Times) -> Result<Entry, Fault> {
        let passed = unzigzag(self.number()?);
        let expected = times.realtime_ns.wrapping_add(passed);
        times.monotonic_ns = times.monotonic_ns.wrapping_add(passed);
        times.realtime_ns = expected.wrapping_add(unzigzag(self.number()?));
        let mut entry = Entry {
            monotonic_ns: times.monotonic_ns,
            realtime_ns: times.realtime_ns,
            flags: self.number()?,
            ..Entry::default()
        };
        for _ in 0..self.number()? {
            entry.frames.push(self.chunk()?.to_vec());
        }
        entry.console = self.chunk()?.to_vec();
        for _ in 0..self.number()? {
            let (disk, bits) = (self.byte()?, self.byte()?);
            if bits & !3 != 0 {
                return Err(Fault::Records("an unknown completion"));
            }
            entry.completions.push(Completion {
                disk,
                seq: self.number()?,
                kind: if bits & 1 == 0 {
                    Waiting::Read
                } else {
                    Waiting::Flush
                },
                status: if bits & 2 == 0 {
                    BlockStatus::Ok
                } else {
                    BlockStatus::IoError
                },
            });
        }
        Ok(entry)
    }
}
