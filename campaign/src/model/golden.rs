//! What a healthy trial is like.

use serde::{Deserialize, Serialize};

/// What is known of the trial without a fault; the same on every machine, for every number of replicas and in every layout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoldenFacts {
    /// Boundaries from the checkpoint to the end of the conversation at which a fault can come: from 1 to this.
    pub boundaries: u64,
    /// System calls.
    pub calls: u64,
    /// Virtual time, ns.
    pub virtual_ns: u64,
    /// Instructions outside the monitor, if they were counted (triggers by instruction need it).
    pub instructions: Option<u64>,
    /// Digest (hexadecimal) of image, kernel, conversation, warm-up and seed: two campaigns with the same one have the same trials.
    pub digest: String,
}
