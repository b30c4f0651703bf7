//! How a replica that was stopped comes back (design §9).
//!
//! A replica's thread lives as long as its set: it drives its machine until the replica is stopped, then tries the steps of
//! the [`ladder`] one after another until one of them brings it back to where it votes, or it is left out. Its last
//! checkpoints wait in its [`vault`], which outlives the machine. Who may take a checkpoint when, and how much history is kept
//! for whom, is decided under the set's lock (`shared::schedule`); checkpoints are taken and restored without it, by
//! the replica's own thread ([`life`]).

pub mod ladder;
pub(crate) mod life;
pub mod vault;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What checkpoints may hold on to of the journal beyond [`RecoveryConfig::history`] and beyond what `keep` checkpoints need when
/// all goes well, in multiples of [`RecoveryConfig::checkpoint_journal`]. Above it the oldest checkpoint is given up, whosever it
/// is (R10).
pub const JOURNAL_SLACK: u64 = 4;

/// How a set recovers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryConfig {
    /// Whether a replica that was stopped comes back.
    pub enabled: bool,
    /// How often each replica takes a checkpoint; never, and no page is tracked, if absent.
    pub checkpoint_interval: Option<Duration>,
    /// A replica takes one when the journal has grown by so many bytes since its last.
    pub checkpoint_journal: u64,
    /// Bytes of journal that are kept from the very beginning, so that a replica can start afresh (R10).
    pub history: u64,
    /// Checkpoints kept of each replica (R10).
    pub keep: usize,
    /// Who fails so often within [`Self::crash_window`] is left out.
    pub crash_limit: usize,
    /// See [`Self::crash_limit`].
    pub crash_window: Duration,
}

impl Default for RecoveryConfig {
    fn default() -> Self {
        RecoveryConfig {
            enabled: true,
            checkpoint_interval: Some(Duration::from_millis(250)),
            checkpoint_journal: 64 << 20,
            history: 64 << 20,
            keep: 2,
            crash_limit: 10,
            crash_window: Duration::from_secs(30),
        }
    }
}

impl RecoveryConfig {
    /// Every stopped replica stays stopped.
    pub fn off() -> Self {
        RecoveryConfig {
            enabled: false,
            ..Self::default()
        }
    }

    /// Bytes of history above which even checkpoints that are still wanted are given up (R10).
    pub(crate) fn history_limit(&self) -> u64 {
        self.checkpoint_journal
            .saturating_mul(JOURNAL_SLACK.saturating_add(self.keep as u64))
            .saturating_add(self.history)
    }
}

/// A step of the ladder, the first one first.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Its own last checkpoint, and the journal from there.
    Checkpoint,
    /// An older one.
    Older,
    /// A fresh machine with a new layout, and the journal from the beginning.
    Replay,
    /// A healthy replica's state, and with it that one's layout.
    Clone,
}

impl Step {
    /// All, in their order.
    pub const ALL: [Step; 4] = [Step::Checkpoint, Step::Older, Step::Replay, Step::Clone];

    /// Its name, as in events and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Step::Checkpoint => "checkpoint",
            Step::Older => "older",
            Step::Replay => "replay",
            Step::Clone => "clone",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which layout seed a machine was made with: that of this replica in this generation
/// ([`crate::seeds::RunSeed::layout`]). A clone has its donor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lineage {
    /// The replica that it was drawn for.
    pub replica: usize,
    /// How many layouts had been drawn for that one before.
    pub generation: u64,
}

impl Lineage {
    /// The first layout of a replica.
    pub fn first(replica: usize) -> Self {
        Lineage {
            replica,
            generation: 0,
        }
    }
}

/// Sees replicas fall and checkpoints being taken, on the threads of the replicas: for recordings. `C` is the machine's checkpoint.
pub trait Observer<C>: Send + Sync {
    /// A replica was stopped. `dump` takes the state of its machine as it is, before anything is restored.
    fn stopped(
        &self,
        replica: usize,
        boundary: u64,
        reason: &str,
        dump: &mut dyn FnMut() -> Result<C, String>,
    ) {
        let _ = (replica, boundary, reason, dump);
    }

    /// A replica begins at boundary 0 with this, as it was saved.
    fn began(&self, replica: usize, lineage: Lineage, checkpoint: &C) {
        let _ = (replica, lineage, checkpoint);
    }

    /// A replica has taken a checkpoint at `boundary`. It can be relied upon once that boundary is decided and the replica still
    /// runs.
    fn taken(&self, replica: usize, boundary: u64, lineage: Lineage, checkpoint: &C) {
        let _ = (replica, boundary, lineage, checkpoint);
    }
}

/// Sees nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl<C> Observer<C> for Unobserved {}
