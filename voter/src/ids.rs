//! Names of replicas and channels, and sets of replicas.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most replicas that a set can have.
pub const MAX_REPLICAS: usize = 9;

/// One replica of the set, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId(pub u8);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "replica {}", self.0)
    }
}

/// Where an output goes. The numbers mean nothing to the voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Channel(pub u16);

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "channel {}", self.0)
    }
}

/// A set of replicas, one bit each: a vote costs a bit, and iteration is in ascending order on every run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReplicaSet(u16);

impl ReplicaSet {
    /// Replicas `0..count`.
    pub(crate) fn first(count: u8) -> Self {
        (0..count).fold(Self::default(), |set, r| set.with(ReplicaId(r)))
    }

    fn bit(r: ReplicaId) -> u16 {
        1u16.checked_shl(u32::from(r.0)).unwrap_or(0)
    }

    pub(crate) fn with(self, r: ReplicaId) -> Self {
        Self(self.0 | Self::bit(r))
    }

    pub(crate) fn without(self, r: ReplicaId) -> Self {
        Self(self.0 & !Self::bit(r))
    }

    pub(crate) fn contains(self, r: ReplicaId) -> bool {
        self.0 & Self::bit(r) != 0
    }

    pub(crate) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Never above [`MAX_REPLICAS`].
    pub(crate) fn len(self) -> u8 {
        self.0.count_ones() as u8
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = ReplicaId> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let r = ReplicaId(left.trailing_zeros() as u8);
            let found = left != 0;
            left &= left.wrapping_sub(1);
            found.then_some(r)
        })
    }

    pub(crate) fn to_vec(self) -> Vec<ReplicaId> {
        self.iter().collect()
    }
}

/// `replica 1, replica 2`, for messages.
pub(crate) fn list(replicas: &[ReplicaId]) -> String {
    let names: Vec<String> = replicas.iter().map(ReplicaId::to_string).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_what_was_put_in() {
        let set = ReplicaSet::first(9);
        assert_eq!(set.len(), 9);
        let less = set.without(ReplicaId(0)).without(ReplicaId(8));
        assert_eq!(less.to_vec(), (1..8).map(ReplicaId).collect::<Vec<_>>());
        assert_eq!(set.minus(less).to_vec(), [ReplicaId(0), ReplicaId(8)]);
        assert!(less.and(ReplicaSet::default()).is_empty());
        assert!(!set.contains(ReplicaId(200)));
        assert_eq!(list(&[ReplicaId(0), ReplicaId(8)]), "replica 0, replica 8");
    }
}
