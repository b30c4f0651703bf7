//! Running one machine from a journal: the same entries must give the same outputs, whatever the layout (R8). [`Replayer`] takes the
//! journal from a recording on disk, [`replay`] from memory.

mod replayer;

use std::sync::Arc;

use quorate_devices::Entry;

use crate::fingerprint::ReleaseDigest;
use crate::replica::{Turn, Vcpu, ballot};
use crate::scratch::Scratch;

pub use replayer::{Arrived, ReplayFailed, ReplayOptions, Replayer, Start};

/// What a replay gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Digest of all outputs, comparable with a set's fingerprint.
    pub fingerprint: blake3::Hash,
    /// Boundaries that were reached.
    pub boundaries: u64,
    /// Whether the guest program ended.
    pub exited: bool,
}

/// Why a replay did not get to the end of its journal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the replay failed at boundary {boundary}: {report}")]
pub struct ReplayError {
    /// The boundary that was not reached or not completed.
    pub boundary: u64,
    /// What happened.
    pub report: String,
}

/// Runs a fresh machine through `entries`, the first of which is that of boundary 0, and on to the boundary after the last,
/// or to the end of the guest program. `disks` are as the set's were at its start.
///
/// # Errors
/// When the machine crashes or misbehaves.
pub fn replay(
    vcpu: &mut impl Vcpu,
    entries: &[Arc<Entry>],
    disks: &mut Scratch,
) -> Result<Replayed, ReplayError> {
    let mut digest = ReleaseDigest::default();
    let mut boundary = 0;
    loop {
        let at = boundary;
        let failed = |report| ReplayError {
            boundary: at,
            report,
        };
        let (outputs, wait_until_ns) = match vcpu.run() {
            Turn::Boundary {
                outputs,
                wait_until_ns,
            } => (outputs, wait_until_ns),
            Turn::Kicked => continue,
            Turn::Crash(report) | Turn::Misbehaved(report) => return Err(failed(report)),
        };
        disks.submit(&outputs).map_err(failed)?;
        let cast = ballot(boundary, outputs, wait_until_ns);
        for (channel, bytes) in &cast.outputs {
            digest.absorb(boundary, *channel, bytes);
        }
        let entry = entries.get(boundary as usize).filter(|_| !cast.exits);
        boundary += 1;
        let Some(entry) = entry else {
            return Ok(Replayed {
                fingerprint: digest.current(),
                boundaries: boundary,
                exited: cast.exits,
            });
        };
        vcpu.resume(entry, disks).map_err(failed)?;
    }
}
