//! The journal on disk: what `quorate run --record FILE` writes, and what `quorate replay` and `quorate explain` read.
//!
//! A recording is a chain of *segments*, each a file of its own: `FILE.000001`, `FILE.000002`, …, and `FILE`, which is the
//! newest. A segment is a head and then *blocks* ([`format`]); a block is a compressed run of records ([`codec`]) whose keyed
//! hash hangs on the block before it, over the borders of segments too, so that a changed, missing or moved block is noticed and
//! named. Every segment begins with the whole [`Header`], and every one but the first gets a checkpoint of a running replica as
//! soon as there is one: when the oldest segments have been deleted to stay within a bound, a replay begins there.
//!
//! What is recorded is what R1 calls input and what the vote agreed on: for each boundary its entry, the data of the disk reads
//! that the entry completes, and the fingerprint of all releases up to and with this boundary. Outputs themselves are not kept:
//! a replay makes them again, and the fingerprint says whether they are the same (R7).
//!
//! A recording holds secrets: the input seed, everything that the guest received, and with a checkpoint its whole memory. Files are
//! made with mode 0600.

pub mod codec;
pub mod format;
mod header;
mod merge;
mod observer;
mod queue;
mod reader;
mod segment;
mod writer;

#[cfg(test)]
mod tests;

pub use codec::{BlobMeta, EndRecord, ReadData, RecordedEvent, Step};
pub use header::{Header, HeaderError, ImageId, LayoutSeed};
pub use observer::Observing;
pub use queue::{Limits, ReadLog, Recorder, Summary};
pub use reader::{BlobInfo, Boundaries, RecordError, Recording, StartPoint, Torn};

/// Bytes for people: the largest unit of which there is one, with a decimal.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}
