//! What a disk is made of, what it tells, and what it counts.

use std::path::PathBuf;

use serde::Serialize;

/// One disk.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// What the appliance calls it.
    pub name: String,
    /// Its base file: a raw image, or a block device.
    pub path: PathBuf,
    /// Size; the file's must be the same.
    pub bytes: u64,
    /// Whether it is only read. Several executors may then have it open.
    pub read_only: bool,
    /// What becomes of the set when the base file cannot be written.
    pub on_error: OnError,
    /// How many replicas use it at the start; others may join later, up to [`super::MAX_REPLICAS`] in all.
    pub replicas: usize,
    /// Whether replicas may begin again: then the data of their reads are kept.
    pub recoverable: bool,
    /// How much may be kept.
    pub bounds: Bounds,
}

/// What becomes of the set when the base file cannot be written. Silence is not among it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// It stops: [`Notice::Failed`] has the cause.
    #[default]
    Stop,
    /// The guest is told at this flush and all later ones, in all replicas alike. Nothing more is written; reads go on seeing what
    /// was written, from memory, until [`Bounds::unwritten_bytes`] are not enough for it: then the set stops after all.
    Report,
}

/// Who does the I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// io_uring where the kernel lets us, else threads.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// A few threads with ordinary system calls.
    Threads,
}

/// How much of what is kept (R10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Released writes in memory that are not in the base file. From half of it on they no longer wait for slow replicas; when it is
    /// full, a replica that is not behind the vote waits in `submit` with its next write until the file has caught up.
    /// What replicas have written and the vote has not decided comes on top: the voter's window bounds it.
    pub unwritten_bytes: u64,
    /// Old versions in memory; beyond three quarters the oldest go to the spill file. May be exceeded by one request.
    pub version_bytes: u64,
    /// Old versions in the spill file. When it is full, writing stops, and so, soon, do the replicas that are ahead
    /// (`unwritten_bytes`), until the slowest has moved or is retired.
    pub spill_bytes: u64,
    /// Data of one replica's reads that it has not taken yet. Further reads wait.
    pub read_bytes: u64,
    /// Data of reads that are kept for replicas that begin again. Whoever has checkpoints should make it shorter before
    /// ([`super::Disk::forget_reads`]); when it is full, the oldest are forgotten, and a replica that would need them cannot
    /// begin again from there.
    pub log_bytes: u64,
    /// Reads and flushes of one replica that it has not been told of. One more is an error of its guest.
    pub outstanding: usize,
    /// Whether there are versions at all. Without, all replicas see what was released last, as on a disk that they share, and the
    /// rule R6 is broken: only for tests.
    pub versions: bool,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            unwritten_bytes: 64 << 20,
            version_bytes: 64 << 20,
            spill_bytes: 4 << 30,
            read_bytes: 64 << 20,
            log_bytes: 128 << 20,
            outstanding: 1024,
            versions: true,
        }
    }
}

/// What the owner of a disk is told, on a thread of the disk that holds no lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Something is complete for the replicas of this bit mask; one of them is to be woken. Of what became complete within a
    /// replica's own `submit` there is no notice: it looks before it sleeps.
    Due(u32),
    /// The disk failed; comes once, and a second time if a set that was to go on has to stop after all.
    Failed {
        /// The disk.
        disk: u8,
        /// What happened, and what to do; for people.
        cause: String,
        /// Whether the set is to stop: with [`OnError::Stop`], or when going on is no longer possible.
        stop: bool,
    },
}

/// Counters since the disk was opened. "Peak" is the highest value there was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiskStats {
    /// What the appliance calls the disk.
    pub name: String,
    /// Who does the I/O.
    pub backend: &'static str,
    /// Reads of all replicas.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Those that were complete at once, from the host's cache or from memory.
    pub reads_at_once: u64,
    /// Those that failed.
    pub read_errors: u64,
    /// Writes released.
    pub writes: u64,
    /// Bytes of them.
    pub write_bytes: u64,
    /// Discards and zeroes released.
    pub zeroes: u64,
    /// Flushes released.
    pub flushes: u64,
    /// `fdatasync` calls: flushes that come together share one.
    pub syncs: u64,
    /// Time from release to stable storage, all flushes together, ns.
    pub flush_total_ns: u64,
    /// The longest of them, ns.
    pub flush_max_ns: u64,
    /// Released writes in memory.
    pub unwritten_bytes: u64,
    /// Peak of it.
    pub unwritten_peak: u64,
    /// Old versions made, blocks of 4 KiB.
    pub versions: u64,
    /// Old versions in memory, bytes.
    pub version_bytes: u64,
    /// Peak of it.
    pub version_peak: u64,
    /// Old versions in the spill file, bytes.
    pub spilled_bytes: u64,
    /// Peak of it.
    pub spilled_peak: u64,
    /// How often a replica had to wait in `submit`.
    pub waits: u64,
    /// Data of reads kept for replicas that begin again, bytes.
    pub logged_bytes: u64,
    /// The first request whose read is kept.
    pub logged_from: u64,
    /// How often the oldest of them were forgotten because there was no more room ([`Bounds::log_bytes`]).
    pub log_overflows: u64,
    /// Reads that the disk did itself because no replica was left that had their data.
    pub log_reads: u64,
    /// Why the disk failed, if it did.
    pub failure: Option<String>,
}
