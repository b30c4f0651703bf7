//! What a relaxed disk is made of, what it tells, and what it counts.

use std::path::PathBuf;
use std::time::Duration;

use quorate_voter::relaxed::UnconfirmedPolicy;
use serde::{Deserialize, Serialize};

use crate::store::OnError;

/// Whose the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The base file is written with what a quorum wrote.
    Vote(UnconfirmedPolicy),
    /// Each replica has a copy of its own, which is gone with it; the base file is never written.
    Private,
}

impl Default for Mode {
    fn default() -> Self {
        Mode::Vote(UnconfirmedPolicy::Hold)
    }
}

impl Mode {
    /// Its name in appliance files and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::Vote(UnconfirmedPolicy::Hold) => "vote, unconfirmed = hold",
            Mode::Vote(UnconfirmedPolicy::Report) => "vote, unconfirmed = report",
            Mode::Private => "private",
        }
    }
}

/// One disk.
#[derive(Clone, Debug)]
pub struct RelaxedSpec {
    /// What the appliance calls it.
    pub name: String,
    /// Its base file: a raw image, or a block device.
    pub path: PathBuf,
    /// Size; the file's must be the same.
    pub bytes: u64,
    /// Whether guests may only read it.
    pub read_only: bool,
    /// What becomes of the set when the base file cannot be written, or when a flush finds no majority ([`UnconfirmedPolicy::Hold`]).
    pub on_error: OnError,
    /// Whose it is.
    pub mode: Mode,
    /// A write completes only when it is released; else when it is taken.
    pub sync: bool,
    /// How long a flush waits for the others.
    pub patience: Duration,
    /// How much may be kept.
    pub bounds: RelaxedBounds,
}

/// How much of what is kept (R10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelaxedBounds {
    /// Contents of the replicas' own in memory, all together; what is more goes to the spill file.
    pub view_bytes: u64,
    /// Contents of their own in the spill file. When it is full, checkpoints' views are given up, then the replica that needs more is
    /// stopped.
    pub spill_bytes: u64,
    /// Released writes that are not in the base file. From here on [`super::RelaxedDisk::has_room`] is false.
    pub unwritten_bytes: u64,
    /// Sectors that one replica has written and the others have not; from here on `has_room` is false for it, at twice as many it is
    /// stopped.
    pub ahead_sectors: usize,
    /// Reads, flushes and writes that wait, of one replica, that it has not been told of. One more is an error of its guest.
    pub outstanding: usize,
}

impl Default for RelaxedBounds {
    fn default() -> Self {
        Self {
            view_bytes: 256 << 20,
            spill_bytes: 8 << 30,
            unwritten_bytes: 64 << 20,
            ahead_sectors: 1 << 18,
            outstanding: 1024,
        }
    }
}

/// What the owner of a disk is told, on a thread of the disk that holds no lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelaxedNotice {
    /// Something is complete for the replicas of this bit mask, or there is room again.
    Due(u32),
    /// The disk failed, or no majority was found under [`OnError::Stop`]; comes once.
    Failed {
        /// The disk.
        disk: u8,
        /// What happened, and what to do; for people.
        cause: String,
        /// Whether the set is to stop.
        stop: bool,
    },
    /// This replica can no longer use the disk and is to be stopped: it was outvoted, or keeps more than the bounds allow.
    Stopped {
        /// The disk.
        disk: u8,
        /// Who.
        replica: usize,
        /// Whether it is a minority (R5), and not only too far from the others.
        outvoted: bool,
        /// Why; for people.
        cause: String,
    },
    /// Something that the user should know.
    Told {
        /// The disk.
        disk: u8,
        /// Whose flush.
        replica: usize,
        /// For people.
        text: String,
    },
}

/// Counters since the disk was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelaxedStats {
    /// Reads of all replicas.
    pub reads: u64,
    /// Those that were complete at once.
    pub reads_at_once: u64,
    /// Those that failed.
    pub read_errors: u64,
    /// Writes of all replicas, bytes; zeroes with them.
    pub written_bytes: u64,
    /// Written to the base file, bytes.
    pub released_bytes: u64,
    /// Old contents kept for replicas that had not come so far, blocks of 4 KiB.
    pub kept_blocks: u64,
    /// Flushes of all replicas.
    pub flushes: u64,
    /// Those that completed.
    pub flushed: u64,
    /// Writes of all replicas that waited for their release.
    #[serde(default)]
    pub waited_writes: u64,
    /// The longest that one took, ns.
    #[serde(default)]
    pub waited_max_ns: u64,
    /// `fdatasync` calls.
    pub syncs: u64,
    /// The longest that a flush took, ns.
    pub flush_max_ns: u64,
    /// Discards, which are hints and change nothing here.
    pub discards: u64,
    /// Checkpoints' views that were given up for lack of room.
    pub views_lost: u64,
}

/// What a disk holds, and what it does not; for status and for the end of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelaxedReport {
    /// What the appliance calls the disk.
    pub name: String,
    /// See [`Mode::name`].
    pub policy: String,
    /// Bytes that a quorum wrote, as far as they were released.
    pub released_bytes: u64,
    /// Bytes that replicas keep for themselves, in memory and spilled: on their way, older than the disk, or never confirmed.
    pub held_bytes: u64,
    /// Of which spilled.
    pub spilled_bytes: u64,
    /// Sectors that replicas wrote and no quorum did.
    pub unconfirmed_sectors: u64,
    /// These, as ranges; at most [`super::MAX_RANGES`].
    pub unconfirmed: Vec<UnconfirmedRange>,
    /// Counters.
    pub stats: RelaxedStats,
    /// Why the disk failed, if it did.
    pub failure: Option<String>,
}

/// Neighbouring sectors that were not confirmed, in the same way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnconfirmedRange {
    /// First sector.
    pub first: u64,
    /// Last sector.
    pub last: u64,
    /// What lies there, if that is known ("inode table of group 0").
    pub what: Option<String>,
    /// Whether a quorum agreed on something else here, which is on the disk.
    pub decided: bool,
    /// Who has what in the first sector: a keyed digest, good for comparing within this run.
    pub said: Vec<Held>,
}

/// What a replica keeps in a sector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Who.
    pub replica: u8,
    /// Digest of what it wrote last, keyed with the run's secret.
    pub content: String,
    /// Its flushes before that.
    pub epoch: u64,
}

impl RelaxedReport {
    /// One line for the end of a run; none if all was confirmed.
    #[must_use]
    pub fn line(&self) -> Option<String> {
        if self.unconfirmed_sectors == 0 {
            return None;
        }
        let sectors = self.unconfirmed_sectors;
        let kib = sectors.div_ceil(2);
        let places: Vec<String> = self
            .unconfirmed
            .iter()
            .take(4)
            .map(|range| range.to_string())
            .collect();
        let more = match self.unconfirmed.len() > places.len() {
            true => format!(", … ({} ranges)", self.unconfirmed.len()),
            false => String::new(),
        };
        Some(format!(
            "disk {}: {sectors} {} ({kib} KiB) never confirmed ({}): {}{more}: kept by the replicas that wrote them, not on the disk",
            self.name,
            if sectors == 1 { "sector" } else { "sectors" },
            self.policy,
            places.join(", "),
        ))
    }
}

impl std::fmt::Display for UnconfirmedRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first)?,
            false => write!(f, "{}-{}", self.first, self.last)?,
        }
        match &self.what {
            Some(what) => write!(f, " {what}"),
            None => Ok(()),
        }
    }
}
