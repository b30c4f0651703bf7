//! Datagrams of all flows between the guests and the outside.

use std::sync::Arc;

use crate::ids::ReplicaId;
use crate::relaxed::difference::Difference;
use crate::relaxed::mask::{MarkerKey, MaskSet};
use crate::relaxed::pool::{Pool, PoolFull, PoolLimits, PoolStats, Pushed};
use crate::relaxed::voters::Voters;

/// A confirmed datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowDatagram {
    /// The flow, as the caller numbers it.
    pub flow: u64,
    /// What goes out.
    pub bytes: Arc<[u8]>,
}

/// Agrees on datagrams by flow and content, in any order: what a quorum has said goes out once, when the quorum is there.
/// Positions are counted in datagrams, over all flows.
#[derive(Clone, Debug)]
pub struct DatagramMatcher {
    pool: Pool,
    mask: Option<(MaskSet, MarkerKey)>,
}

impl DatagramMatcher {
    /// A channel on which nobody has said anything. Masks' patterns apply to each line of a datagram; header rules do not.
    #[must_use]
    pub fn new(voters: &Voters, limits: PoolLimits, mask: Option<&MaskSet>) -> Self {
        let mask = mask.filter(|mask| !mask.is_empty());
        Self {
            pool: Pool::new(voters, limits),
            mask: mask.map(|mask| (mask.clone(), MarkerKey::new(voters.key()))),
        }
    }

    /// A replica says a datagram, at `now_ns`.
    ///
    /// # Errors
    /// [`PoolFull`] if the replica must wait, or confirmed ones must be fetched first; nothing has changed then.
    pub fn push(
        &mut self,
        replica: ReplicaId,
        flow: u64,
        bytes: &[u8],
        now_ns: u64,
    ) -> Result<Pushed, PoolFull> {
        push(
            &mut self.pool,
            &self.mask,
            replica,
            [flow, 0],
            bytes,
            now_ns,
        )
    }

    /// Fetches the next confirmed datagram, in the order of confirmation.
    pub fn take_released(&mut self) -> Option<FlowDatagram> {
        let confirmed = self.pool.take_confirmed()?;
        Some(FlowDatagram {
            flow: confirmed.tag[0],
            bytes: confirmed.bytes,
        })
    }

    /// A replica was stopped; the quorum does not shrink (R2).
    pub fn leave(&mut self, replica: ReplicaId) {
        self.pool.leave(replica);
    }

    /// A replica is back, at a place where it had said `position` datagrams: see [`Pool::enter`].
    pub fn enter(&mut self, replica: ReplicaId, position: u64) {
        self.pool.enter(replica, position);
    }

    /// See [`Pool::give_up_on`].
    pub fn give_up_on(&mut self, replica: ReplicaId) {
        self.pool.give_up_on(replica);
    }

    /// Datagrams that a replica has said.
    #[must_use]
    pub fn position(&self, replica: ReplicaId) -> u64 {
        self.pool.position(replica)
    }

    /// Time passes: what is too old is given up. True if there is something new to fetch.
    pub fn tick(&mut self, now_ns: u64) -> bool {
        self.pool.tick(now_ns)
    }

    /// Spurious and missing datagrams, each once; `position` is the datagram's number.
    pub fn differences(&mut self) -> Vec<Difference> {
        differences(&mut self.pool, &self.mask)
    }

    /// Numbers.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.pool.stats()
    }
}

/// Says an output of a channel that may be masked.
pub(super) fn push(
    pool: &mut Pool,
    mask: &Option<(MaskSet, MarkerKey)>,
    replica: ReplicaId,
    tag: [u64; 2],
    bytes: &[u8],
    now_ns: u64,
) -> Result<Pushed, PoolFull> {
    match mask.as_ref().and_then(|(set, key)| set.hide(key, bytes)) {
        Some(hidden) => pool.push_as(replica, tag, &hidden, Some(bytes), now_ns),
        None => pool.push(replica, tag, bytes, now_ns),
    }
}

pub(super) fn differences(pool: &mut Pool, mask: &Option<(MaskSet, MarkerKey)>) -> Vec<Difference> {
    let mut all = pool.differences();
    if let Some((set, key)) = mask {
        for d in &mut all {
            d.said = set.show(key, &d.said);
            d.released = set.show(key, &d.released);
        }
    }
    all
}
