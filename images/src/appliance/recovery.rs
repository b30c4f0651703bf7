//! `[recovery]`: how replicas come back.

use serde::Deserialize;

use super::check;

/// Most checkpoints that a replica can keep (R10).
pub const MAX_KEEP: u64 = 16;

/// `[recovery]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recovery {
    /// Whether a replica that was stopped comes back; default true.
    pub enabled: bool,
    /// How often each replica takes a checkpoint, milliseconds; 0 is never; default 250, and 5000 for Linux machines, of which more
    /// has changed each time.
    pub checkpoint_interval_ms: Option<u64>,
    /// A replica also takes one when the journal has grown by so many bytes since its last; default 64 MiB.
    #[serde(deserialize_with = "check::recovery_bytes")]
    pub checkpoint_journal: u64,
    /// How many bytes of journal are kept from the very beginning, for a replay from there; default 64 MiB (R10).
    #[serde(deserialize_with = "check::recovery_bytes")]
    pub history: u64,
    /// How many checkpoints each replica keeps; 1 to [`MAX_KEEP`], default 2 (R10).
    #[serde(deserialize_with = "check::keep")]
    pub keep: u64,
    /// A replica that fails so often within `crash_window_s` is left out; default 10.
    #[serde(deserialize_with = "check::positive")]
    pub crash_limit: u64,
    /// See `crash_limit`; seconds, default 30.
    #[serde(deserialize_with = "check::positive")]
    pub crash_window_s: u64,
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            enabled: true,
            checkpoint_interval_ms: None,
            checkpoint_journal: 64 << 20,
            history: 64 << 20,
            keep: 2,
            crash_limit: 10,
            crash_window_s: 30,
        }
    }
}
