//! Segments and blocks as bytes. All numbers are little-endian.
//!
//! ```text
//! segment head, 112 bytes            block head, 72 bytes
//!   0  magic "QUORREC\n"               0  magic "QBLK"
//!   8  format version, u32             4  kind, u8
//!  12  0, u32                          5  codec, u8: 0 as it is, 1 zstd
//!  16  number of the recording, 16     6  0, u16
//!  32  number of the segment, u64      8  number in the segment, u32
//!  40  first boundary, u64            12  bytes stored, u32
//!  48  hash of the last block of      16  bytes unpacked, u32
//!      the segment before, or 0, 32   20  boundaries, u32
//!  80  BLAKE3 of bytes 0 to 80        24  first boundary, u64
//!                                     32  hash, 32 bytes
//!                                     64  first 8 bytes of BLAKE3 of bytes 0 to 64
//! ```
//!
//! A block's hash is BLAKE3 of its head's first 32 bytes and its stored bytes, keyed with the hash of the block before (of the
//! first block: with a key derived from the segment's head). The check at the end of the head is there to tell a head that was
//! damaged from a block that was not written to its end: lengths are only believed when it is right.

/// Version of the format.
pub const FORMAT: u32 = 1;
/// Bytes of a segment's head.
pub const SEGMENT_HEAD: usize = 112;
/// Bytes of a block's head.
pub const BLOCK_HEAD: usize = 72;
/// Most bytes of a block, unpacked or stored (R10). A head that says more is refused before anything is allocated.
pub const MAX_BLOCK_BYTES: usize = 16 << 20;

const SEGMENT_MAGIC: [u8; 8] = *b"QUORREC\n";
const BLOCK_MAGIC: [u8; 4] = *b"QBLK";
const CHAIN_CONTEXT: &str = "quorate 2026-11 recording: key of a segment's first block";
/// Journals are written while the set runs: the fastest level. Frames compress well at any.
const ZSTD_LEVEL: i32 = 1;

/// A BLAKE3 hash.
pub type Hash = [u8; 32];

/// A segment's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    /// Random, the same in all segments of a recording.
    pub id: [u8; 16],
    /// From 1.
    pub number: u64,
    /// The boundary with which the segment begins.
    pub first_boundary: u64,
    /// Hash of the last block of the segment before; zeroes in the first.
    pub before: Hash,
}

/// What a block is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The header of the recording; the first block of each segment.
    Header = 1,
    /// Boundaries.
    Journal = 2,
    /// Events.
    Events = 3,
    /// A checkpoint begins.
    Checkpoint = 4,
    /// A dump begins.
    Dump = 5,
    /// Bytes of the checkpoint or dump that has begun.
    Piece = 6,
    /// The checkpoint or dump is whole.
    Whole = 7,
    /// The recording goes on in the next segment.
    Turn = 8,
    /// The recording ends here.
    End = 9,
    /// Data of reads, too much for the journal block that follows: they belong to its first boundary.
    Reads = 10,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        const ALL: [Kind; 10] = [
            Kind::Header,
            Kind::Journal,
            Kind::Events,
            Kind::Checkpoint,
            Kind::Dump,
            Kind::Piece,
            Kind::Whole,
            Kind::Turn,
            Kind::End,
            Kind::Reads,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A block's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHead {
    /// What for.
    pub kind: Kind,
    /// Whether the stored bytes are compressed.
    pub packed: bool,
    /// Number within the segment, from 0.
    pub number: u32,
    /// Bytes that follow the head.
    pub stored: u32,
    /// Bytes of them once unpacked.
    pub raw: u32,
    /// How many boundaries are in it.
    pub boundaries: u32,
    /// Of a journal: the first of them. Else the boundary that it belongs to.
    pub first_boundary: u64,
    /// Hash, see the module.
    pub hash: Hash,
}

/// What is wrong with a head or a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not the beginning of a recording.
    #[error("it does not begin as a recording does")]
    NotARecording,
    /// Of another version.
    #[error("it has format {0}, this program reads {FORMAT}")]
    Version(u32),
    /// The head's check.
    #[error("its head is damaged")]
    Head,
    /// The hash.
    #[error("its bytes are damaged, or the block before it is not the one that was there")]
    Hash,
    /// A block is missing or moved.
    #[error("block {expected} should be here, not block {found}")]
    Number {
        /// Which should be here.
        expected: u32,
        /// Which is.
        found: u32,
    },
    /// What the head says cannot be.
    #[error("its head says what cannot be: {0}")]
    Nonsense(&'static str),
    /// The bytes cannot be unpacked.
    #[error("it cannot be unpacked")]
    Unpack,
    /// A record.
    #[error("it holds no records of this format ({0})")]
    Records(&'static str),
}

impl SegmentHead {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEAD] {
        let mut bytes = [0; SEGMENT_HEAD];
        bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.id);
        bytes[32..40].copy_from_slice(&self.number.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.first_boundary.to_le_bytes());
        bytes[48..80].copy_from_slice(&self.before);
        let check = blake3::hash(&bytes[..80]);
        bytes[80..].copy_from_slice(check.as_bytes());
        bytes
    }

    /// From bytes.
    ///
    /// # Errors
    /// When they are none.
    pub fn decode(bytes: &[u8; SEGMENT_HEAD]) -> Result<SegmentHead, Fault> {
        if bytes[..8] != SEGMENT_MAGIC {
            return Err(Fault::NotARecording);
        }
        let version = u32::from_le_bytes(array(bytes, 8));
        if blake3::hash(&bytes[..80]).as_bytes() != &bytes[80..] {
            return Err(Fault::Head);
        }
        if version != FORMAT {
            return Err(Fault::Version(version));
        }
        Ok(SegmentHead {
            id: array(bytes, 16),
            number: u64::from_le_bytes(array(bytes, 32)),
            first_boundary: u64::from_le_bytes(array(bytes, 40)),
            before: array(bytes, 48),
        })
    }

    /// The key of the first block's hash.
    #[must_use]
    pub fn chain(&self) -> Hash {
        blake3::derive_key(CHAIN_CONTEXT, &self.encode())
    }
}

impl BlockHead {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; BLOCK_HEAD] {
        let mut bytes = [0; BLOCK_HEAD];
        bytes[..4].copy_from_slice(&BLOCK_MAGIC);
        bytes[4] = self.kind as u8;
        bytes[5] = self.packed.into();
        bytes[8..12].copy_from_slice(&self.number.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.stored.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.raw.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.boundaries.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first_boundary.to_le_bytes());
        bytes[32..64].copy_from_slice(&self.hash);
        let check = blake3::hash(&bytes[..64]);
        bytes[64..].copy_from_slice(&check.as_bytes()[..8]);
        bytes
    }

    /// From bytes. Lengths are within [`MAX_BLOCK_BYTES`].
    ///
    /// # Errors
    /// When they are no head.
    pub fn decode(bytes: &[u8; BLOCK_HEAD]) -> Result<BlockHead, Fault> {
        if bytes[..4] != BLOCK_MAGIC || blake3::hash(&bytes[..64]).as_bytes()[..8] != bytes[64..] {
            return Err(Fault::Head);
        }
        let head = BlockHead {
            kind: Kind::from_byte(bytes[4]).ok_or(Fault::Nonsense("an unknown kind"))?,
            packed: match bytes[5] {
                0 => false,
                1 => true,
                _ => return Err(Fault::Nonsense("an unknown codec")),
            },
            number: u32::from_le_bytes(array(bytes, 8)),
            stored: u32::from_le_bytes(array(bytes, 12)),
            raw: u32::from_le_bytes(array(bytes, 16)),
            boundaries: u32::from_le_bytes(array(bytes, 20)),
            first_boundary: u64::from_le_bytes(array(bytes, 24)),
            hash: array(bytes, 32),
        };
        if bytes[6..8] != [0, 0] {
            return Err(Fault::Nonsense("a reserved field is used"));
        }
        if head.stored.max(head.raw) as usize > MAX_BLOCK_BYTES {
            return Err(Fault::Nonsense("a length"));
        }
        Ok(head)
    }

    fn hash(&self, chain: &Hash, stored: &[u8]) -> Hash {
        let mut hasher = blake3::Hasher::new_keyed(chain);
        hasher.update(&self.encode()[..32]);
        hasher.update(stored);
        *hasher.finalize().as_bytes()
    }

    /// Checks the block's place and bytes, and moves the chain on.
    ///
    /// # Errors
    /// When it is not the block that was written here.
    pub fn check(&self, number: u32, chain: &mut Hash, stored: &[u8]) -> Result<(), Fault> {
        if self.number != number {
            return Err(Fault::Number {
                expected: number,
                found: self.number,
            });
        }
        if self.hash(chain, stored) != self.hash {
            return Err(Fault::Hash);
        }
        *chain = self.hash;
        Ok(())
    }

    /// The block's content.
    ///
    /// # Errors
    /// When it cannot be unpacked to the length that the head says.
    pub fn unpack(&self, stored: Vec<u8>) -> Result<Vec<u8>, Fault> {
        let raw = if self.packed {
            zstd::bulk::decompress(&stored, self.raw as usize).map_err(|_| Fault::Unpack)?
        } else {
            stored
        };
        if raw.len() == self.raw as usize {
            Ok(raw)
        } else {
            Err(Fault::Unpack)
        }
    }
}

/// Makes a block of `raw`, head and all, and moves the chain on. `raw` must not be longer than [`MAX_BLOCK_BYTES`].
///
/// # Errors
/// Those of zstd.
pub fn seal(
    kind: Kind,
    number: u32,
    first_boundary: u64,
    boundaries: u32,
    raw: &[u8],
    chain: &mut Hash,
) -> std::io::Result<Vec<u8>> {
    debug_assert!(raw.len() <= MAX_BLOCK_BYTES);
    let packed = zstd::bulk::compress(raw, ZSTD_LEVEL)?;
    let (packed, stored): (bool, &[u8]) = if packed.len() < raw.len() {
        (true, &packed)
    } else {
        (false, raw)
    };
    let mut head = BlockHead {
        kind,
        packed,
        number,
        stored: stored.len() as u32,
        raw: raw.len() as u32,
        boundaries,
        first_boundary,
        hash: [0; 32],
    };
    head.hash = head.hash(chain, stored);
    *chain = head.hash;
    let mut block = Vec::with_capacity(BLOCK_HEAD + stored.len());
    block.extend_from_slice(&head.encode());
    block.extend_from_slice(stored);
    Ok(block)
}

/// `N` bytes from `at` on; both are constants within the head.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}
