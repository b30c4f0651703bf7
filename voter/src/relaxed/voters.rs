//! Who is in the set, and whose word counts.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{MAX_REPLICAS, ReplicaId};

/// What a replica's outputs are good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Counts for the majority.
    #[default]
    Voter,
    /// Its answer counts, under [`Policy::Primary`]; a voter under [`Policy::Majority`].
    Primary,
    /// Never counts and never delays: only compared.
    Canary,
}

/// Whose word is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// What a quorum of the voters said.
    Majority,
    /// What this replica said, once every other live voter has said it too, or has differed, left or been given up
    /// on. When the primary has left, the others go on by majority among themselves.
    Primary {
        /// Whose answer counts.
        replica: ReplicaId,
    },
}

/// Why a set of roles makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum VotersError {
    /// No replica, or more than [`MAX_REPLICAS`].
    #[error("a set has 1 to {MAX_REPLICAS} replicas, not {0}")]
    Count(usize),
    /// Canaries only.
    #[error("all replicas are canaries: at least one must count")]
    NobodyCounts,
    /// The policy names a replica that is none, or a canary.
    #[error("{0} cannot be the primary: it must be a replica of the set that is not a canary")]
    NotPrimary(ReplicaId),
}

/// Roles, policy and the run's secret: what every matcher of a set begins with.
#[derive(Clone, Copy)]
pub struct Voters {
    roles: [Role; MAX_REPLICAS],
    count: u8,
    policy: Policy,
    /// Secret of the run: keys whatever is compared by hash (R2).
    key: [u8; 32],
}

impl std::fmt::Debug for Voters {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Voters")
            .field("roles", &self.roles())
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Voters {
    /// A set with one role per replica, in the order of their numbers. `key` is a secret of the run that no guest can know.
    ///
    /// # Errors
    /// When nobody could ever confirm anything with these roles.
    pub fn new(roles: &[Role], policy: Policy, key: [u8; 32]) -> Result<Self, VotersError> {
        if roles.is_empty() || roles.len() > MAX_REPLICAS {
            return Err(VotersError::Count(roles.len()));
        }
        if roles.iter().all(|r| *r == Role::Canary) {
            return Err(VotersError::NobodyCounts);
        }
        if let Policy::Primary { replica } = policy
            && !matches!(
                roles.get(usize::from(replica.0)),
                Some(Role::Voter | Role::Primary)
            )
        {
            return Err(VotersError::NotPrimary(replica));
        }
        let mut all = [Role::Canary; MAX_REPLICAS];
        all[..roles.len()].copy_from_slice(roles);
        Ok(Self {
            roles: all,
            count: roles.len() as u8,
            policy,
            key,
        })
    }

    /// `count` voters under [`Policy::Majority`].
    ///
    /// # Errors
    /// When there are none, or too many.
    pub fn majority(count: usize, key: [u8; 32]) -> Result<Self, VotersError> {
        if count > MAX_REPLICAS {
            return Err(VotersError::Count(count));
        }
        Self::new(&[Role::Voter; MAX_REPLICAS][..count], Policy::Majority, key)
    }

    /// One role per replica.
    #[must_use]
    pub fn roles(&self) -> &[Role] {
        &self.roles[..usize::from(self.count)]
    }

    /// Whose word is released.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Replicas of the set, canaries included.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Never: a set has a replica.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The role of a replica; `None` if there is no such replica.
    #[must_use]
    pub fn role(&self, replica: ReplicaId) -> Option<Role> {
        self.roles().get(usize::from(replica.0)).copied()
    }

    /// Who counts for the majority: all but canaries, and under [`Policy::Primary`] all but the primary, since the
    /// majority is asked only when that one is gone.
    pub(crate) fn counts(&self, index: usize) -> bool {
        self.roles().get(index).is_some_and(|r| *r != Role::Canary) && self.primary() != Some(index)
    }

    pub(crate) fn primary(&self) -> Option<usize> {
        match self.policy {
            Policy::Majority => None,
            Policy::Primary { replica } => Some(usize::from(replica.0)),
        }
    }

    /// Votes that a release by majority needs: `floor(voters / 2) + 1`, stopped ones included (R2). Under
    /// [`Policy::Primary`] that of the others; at least 1, which nobody can give if there are none.
    #[must_use]
    pub fn quorum(&self) -> usize {
        (0..self.len()).filter(|i| self.counts(*i)).count() / 2 + 1
    }

    pub(crate) fn key(&self) -> &[u8; 32] {
        &self.key
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn quorums_count_who_counts() {
        let quorums: Vec<_> = (1..=5)
            .map(|n| Voters::majority(n, [0; 32]).unwrap().quorum())
            .collect();
        assert_eq!(quorums, [1, 2, 2, 3, 3]);
        let (v, c) = (Role::Voter, Role::Canary);
        let with = Voters::new(&[v, v, v, c], Policy::Majority, [0; 32]).unwrap();
        assert_eq!(with.quorum(), 2);
        let primary = Policy::Primary {
            replica: ReplicaId(0),
        };
        // The primary does not vote: of the other two both are needed once it is gone.
        let with = Voters::new(&[Role::Primary, v, v, c], primary, [0; 32]).unwrap();
        assert_eq!(with.quorum(), 2);
    }

    #[test]
    fn sets_in_which_nobody_counts_are_refused() {
        let new = |roles: &[Role], policy| Voters::new(roles, policy, [0; 32]).map(|_| ());
        assert_eq!(new(&[], Policy::Majority), Err(VotersError::Count(0)));
        assert_eq!(
            new(&[Role::Voter; 10], Policy::Majority),
            Err(VotersError::Count(10))
        );
        assert_eq!(
            new(&[Role::Canary; 2], Policy::Majority),
            Err(VotersError::NobodyCounts)
        );
        for replica in [1, 2, 200].map(ReplicaId) {
            assert_eq!(
                new(&[Role::Voter, Role::Canary], Policy::Primary { replica }),
                Err(VotersError::NotPrimary(replica))
            );
        }
        let text = format!("{:?}", Voters::majority(1, [0xab; 32]).unwrap());
        assert!(!text.contains("171"), "{text}");
    }
}
