//! The form of a checkpoint's file: named sections in frames, each with a checksum.
//!
//! ```text
//! file:    magic (8 bytes), version (u32), sections, the section `end`
//! section: name (16 bytes, filled up with zeroes), frames, an empty frame
//! frame:   stored length (u32), length (u32), blake3 digest (32 bytes), stored bytes (zstd)
//! ```
//!
//! Numbers are little-endian. A digest covers the section's name, the frame's number in it, both lengths and the stored bytes, so
//! that no frame can stand in for another. `end` has the digests of all frames before it, hashed. A reader believes no length before it
//! has compared it with the limits here (R10), and takes nothing for more memory than one frame.

use std::io::{self, Read, Write};
use thiserror::Error;

/// The first bytes of a file.
pub(crate) const MAGIC: [u8; 8] = *b"QRTECKPT";
/// Version of the format: of this file's form, and of what is in the sections.
pub(crate) const VERSION: u32 = 1;
/// Bytes of a section's name.
pub(crate) const NAME: usize = 16;
/// Most bytes of a frame before compression: 256 pages and their numbers fit.
pub(crate) const FRAME: usize = (1 << 20) + (1 << 16);
/// Name of the last section.
const END: &str = "end";
/// zstd's level: 1 is the fastest, and guest memory does not get much smaller with more.
const LEVEL: i32 = 1;

/// Why a checkpoint's file cannot be written or read.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// It cannot be written or read at all.
    #[error("the checkpoint cannot be written or read: {0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("this is not a checkpoint: it does not start with {:?}", str::from_utf8(&MAGIC).unwrap_or_default())]
    Magic,
    /// Another version of Quorate wrote it.
    #[error(
        "the checkpoint has version {found} of the format, this Quorate knows version {known}: use the Quorate that wrote it"
    )]
    Version {
        /// As the file says.
        found: u32,
        /// What this program can read.
        known: u32,
    },
    /// A section that this version does not have.
    #[error("the checkpoint has an unknown section {0:?}: it is damaged, or from another Quorate")]
    Unknown(String),
    /// A section is not there.
    #[error("the checkpoint has no section `{0}`")]
    Missing(&'static str),
    /// A section is there twice.
    #[error("the checkpoint has the section `{0}` twice")]
    Repeated(&'static str),
    /// The file ends in the middle of a section.
    #[error("the checkpoint ends in the middle of section `{0}`: it was not written completely")]
    Truncated(String),
    /// A section's checksum is wrong, or its contents cannot be.
    #[error("the checkpoint's section `{section}` is damaged: {what}")]
    Damaged {
        /// Its name.
        section: &'static str,
        /// What is wrong.
        what: String,
    },
}

/// For contents that cannot be.
pub(crate) fn damaged(section: &'static str, what: impl ToString) -> CheckpointError {
    CheckpointError::Damaged {
        section,
        what: what.to_string(),
    }
}

/// Writes sections one after the other.
pub(crate) struct Writer<'a> {
    to: &'a mut dyn Write,
    section: [u8; NAME],
    frames: u64,
    all: blake3::Hasher,
    packer: zstd::bulk::Compressor<'static>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(to: &'a mut dyn Write) -> Result<Self, CheckpointError> {
        to.write_all(&MAGIC)?;
        to.write_all(&VERSION.to_le_bytes())?;
        Ok(Self {
            to,
            section: [0; NAME],
            frames: 0,
            all: blake3::Hasher::new(),
            packer: zstd::bulk::Compressor::new(LEVEL)?,
        })
    }

    /// Writes a whole section.
    pub(crate) fn section(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.begin(name)?;
        for chunk in bytes.chunks(FRAME) {
            self.frame(chunk)?;
        }
        self.end_section()
    }

    pub(crate) fn begin(&mut self, name: &str) -> Result<(), CheckpointError> {
        self.section = padded(name);
        self.frames = 0;
        self.to.write_all(&self.section)?;
        Ok(())
    }

    /// Writes at most [`FRAME`] bytes.
    pub(crate) fn frame(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        let stored = self.packer.compress(bytes)?;
        self.put(&stored, bytes.len())
    }

    pub(crate) fn end_section(&mut self) -> Result<(), CheckpointError> {
        self.put(&[], 0)
    }

    fn put(&mut self, stored: &[u8], len: usize) -> Result<(), CheckpointError> {
        // Both fit: a frame is bounded by FRAME.
        let lengths = [stored.len() as u32, len as u32];
        let digest = digest(&self.section, self.frames, lengths, stored);
        self.all.update(digest.as_bytes());
        self.to
            .write_all(lengths.map(u32::to_le_bytes).as_flattened())?;
        self.to.write_all(digest.as_bytes())?;
        self.to.write_all(stored)?;
        self.frames += 1;
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<(), CheckpointError> {
        let all = *self.all.finalize().as_bytes();
        self.section(END, &all)?;
        Ok(self.to.flush()?)
    }
}

/// Reads sections one after the other.
pub(crate) struct Reader<'a> {
    from: &'a mut dyn Read,
    section: [u8; NAME],
    name: &'static str,
    frames: u64,
    all: blake3::Hasher,
    unpacker: zstd::bulk::Decompressor<'static>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(from: &'a mut dyn Read) -> Result<Self, CheckpointError> {
        let mut start = [0; MAGIC.len() + 4];
        fill(from, &mut start, "start")?;
        let (magic, version) = start.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(CheckpointError::Magic);
        }
        let found = u32::from_le_bytes([version[0], version[1], version[2], version[3]]);
        if found != VERSION {
            return Err(CheckpointError::Version {
                found,
                known: VERSION,
            });
        }
        Ok(Self {
            from,
            section: [0; NAME],
            name: "",
            frames: 0,
            all: blake3::Hasher::new(),
            unpacker: zstd::bulk::Decompressor::new()?,
        })
    }

    /// Goes to the next section, which must be one of `known`. `None` behind the last one: the file was complete.
    pub(crate) fn next(
        &mut self,
        known: &[&'static str],
    ) -> Result<Option<&'static str>, CheckpointError> {
        fill(self.from, &mut self.section, "header of a section")?;
        self.frames = 0;
        let name = known
            .iter()
            .chain([&END])
            .find(|name| padded(name) == self.section)
            .copied();
        let Some(name) = name else {
            let name = self.section.split(|&byte| byte == 0).next();
            let name = String::from_utf8_lossy(name.unwrap_or_default());
            return Err(CheckpointError::Unknown(name.into_owned()));
        };
        self.name = name;
        if name != END {
            return Ok(Some(name));
        }
        let all = *self.all.finalize().as_bytes();
        if self.whole(all.len())? == all {
            Ok(None)
        } else {
            Err(damaged(END, "frames are missing or in another order"))
        }
    }

    /// The next frame of the section, `None` at its end.
    pub(crate) fn frame(&mut self) -> Result<Option<Vec<u8>>, CheckpointError> {
        let name = self.name;
        let mut head = [0; 8 + 32];
        fill(self.from, &mut head, name)?;
        let stored_len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if len as usize > FRAME || stored_len as usize > zstd::zstd_safe::compress_bound(FRAME) {
            return Err(damaged(name, "a length is beyond the limit"));
        }
        let mut stored = vec![0; stored_len as usize];
        fill(self.from, &mut stored, name)?;
        let digest = digest(&self.section, self.frames, [stored_len, len], &stored);
        // A `blake3::Hash` compares in constant time, which does not matter here.
        if digest.as_bytes() != &head[8..] {
            return Err(damaged(name, "the checksum is wrong"));
        }
        self.all.update(digest.as_bytes());
        self.frames += 1;
        if stored.is_empty() {
            return Ok(None);
        }
        let bytes = self
            .unpacker
            .decompress(&stored, len as usize)
            .map_err(|error| damaged(name, error))?;
        if bytes.len() == len as usize && len > 0 {
            Ok(Some(bytes))
        } else {
            Err(damaged(name, "a frame has another length than it says"))
        }
    }

    /// All of the section, if it is not longer than `most`.
    pub(crate) fn whole(&mut self, most: usize) -> Result<Vec<u8>, CheckpointError> {
        let mut bytes = Vec::new();
        while let Some(frame) = self.frame()? {
            if bytes.len() + frame.len() > most {
                return Err(damaged(self.name, "it is longer than it can be"));
            }
            bytes.extend_from_slice(&frame);
        }
        Ok(bytes)
    }
}

fn padded(name: &str) -> [u8; NAME] {
    let mut padded = [0; NAME];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}

fn digest(section: &[u8; NAME], number: u64, lengths: [u32; 2], stored: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(section);
    hasher.update(&number.to_le_bytes());
    hasher.update(lengths.map(u32::to_le_bytes).as_flattened());
    hasher.update(stored);
    hasher.finalize()
}

/// Reads exactly that much.
fn fill(from: &mut dyn Read, to: &mut [u8], section: &str) -> Result<(), CheckpointError> {
    from.read_exact(to).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => CheckpointError::Truncated(section.into()),
        _ => CheckpointError::Io(error),
    })
}
