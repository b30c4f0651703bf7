//! What replicas hand to a recording on their own threads: checkpoints, and the machines of those that were stopped.

use std::io::{self, Write};
use std::sync::Arc;

use quorate_vmm::Checkpoint;

use super::codec::BlobMeta;
use super::queue::{BlobSource, Recorder};
use crate::recovery::{Lineage, Observer};

/// See the module.
pub struct Observing(pub Arc<Recorder>);

/// Whoever is stopped on request has nothing to explain.
const ON_REQUEST: [quorate_voter::StopReason; 2] = [
    quorate_voter::StopReason::Killed,
    quorate_voter::StopReason::Removed,
];

fn source(checkpoint: Checkpoint) -> BlobSource {
    Box::new(move |to: &mut dyn Write| checkpoint.write_to(to).map_err(io::Error::other))
}

impl Observing {
    /// Records the checkpoint that a replica of a resumed set begins with. To be called for each, before the set starts.
    pub fn base(&self, replica: usize, checkpoint: &Checkpoint) {
        let meta = BlobMeta {
            replica,
            boundary: checkpoint.boundary(),
            generation: 0,
            layout_seed: checkpoint.layout_seed(),
            reason: String::new(),
        };
        self.0.base(meta, source(checkpoint.clone()));
    }
}

impl Observer<Checkpoint> for Observing {
    fn stopped(
        &self,
        replica: usize,
        boundary: u64,
        reason: &str,
        dump: &mut dyn FnMut() -> Result<Checkpoint, String>,
    ) {
        if ON_REQUEST.iter().any(|known| known.to_string() == reason) || !self.0.takes_dumps() {
            return;
        }
        match dump() {
            Ok(dump) => {
                let meta = BlobMeta {
                    replica,
                    boundary,
                    generation: 0,
                    layout_seed: dump.layout_seed(),
                    reason: reason.to_owned(),
                };
                self.0.dump(meta, source(dump));
            }
            Err(error) => tracing::warn!(replica, "no dump for the recording: {error}"),
        }
    }

    fn began(&self, replica: usize, _: Lineage, checkpoint: &Checkpoint) {
        self.base(replica, checkpoint);
    }

    fn taken(&self, replica: usize, boundary: u64, lineage: Lineage, checkpoint: &Checkpoint) {
        let meta = BlobMeta {
            replica,
            boundary,
            generation: lineage.generation,
            layout_seed: checkpoint.layout_seed(),
            reason: String::new(),
        };
        self.0.checkpoint(meta, source(checkpoint.clone()));
    }
}
