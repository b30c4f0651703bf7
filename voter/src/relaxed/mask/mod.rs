//! What may differ between replicas.

/// Rules of one channel.
#[derive(Clone, Debug, Default)]
pub struct MaskSet {}
