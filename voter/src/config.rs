//! What a replica set is told at its start, and the bounds that follow from it (R10).

use serde::{Deserialize, Serialize};

use crate::errors::ConfigError;
use crate::ids::MAX_REPLICAS;

/// Upper bound of [`Config::window_boundaries`].
pub const MAX_WINDOW_BOUNDARIES: u64 = 1 << 20;
/// Lower bound of [`Config::window_bytes`].
pub const MIN_WINDOW_BYTES: usize = 1024;
/// When so few replicas have reached a boundary that all of them may be faulty, nobody can tell whether they are, or
/// whether the others hang: the set waits this many lag timeouts before it gives up.
pub const STALL_FACTOR: u64 = 10;

/// Configuration of a replica set. The quorum does not shrink when replicas are stopped (R5), only when members are
/// removed; all else is fixed for the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Replicas, 1 to [`MAX_REPLICAS`]: the members that the set has now.
    pub replicas: u8,
    /// How many boundaries a replica may be ahead of the slowest running one; 1 to [`MAX_WINDOW_BOUNDARIES`].
    pub window_boundaries: u64,
    /// Bytes of stored ballots and entries above which only the slowest replicas go on;
    /// at least [`MIN_WINDOW_BYTES`].
    pub window_bytes: usize,
    /// How long a replica may be behind a quorum, in nanoseconds, beyond what `lag_factor` allows. Not 0.
    pub lag_timeout_ns: u64,
    /// How many times as slow as a quorum a replica may be. Not 0.
    pub lag_factor: u32,
}

impl Config {
    /// Votes that a release needs: `floor(N/2) + 1` of the N members (R2).
    #[must_use]
    pub fn quorum(&self) -> u8 {
        self.replicas / 2 + 1
    }

    /// Faulty replicas that a full set masks: N minus the quorum.
    #[must_use]
    pub fn tolerated(&self) -> u8 {
        self.replicas - self.quorum().min(self.replicas)
    }

    /// Largest ballot, by [`crate::ballot_cost`]. A larger one stops the replica that cast it.
    #[must_use]
    pub fn max_ballot_bytes(&self) -> usize {
        self.window_bytes / 2
    }

    /// Largest journal entry. [`crate::Lockstep::lead`] refuses a larger one.
    #[must_use]
    pub fn max_entry_bytes(&self) -> usize {
        self.window_bytes / 2
    }

    /// Bytes of ballots and entries that are never exceeded, whatever replicas do. Once the window is full,
    /// each replica can add the one ballot and the one entry that it was already allowed: only the
    /// slowest are let on, and what a slowest replica casts next frees the boundary that it left. A recovering replica
    /// adds nothing: what it casts is compared, not stored. For the most members that the set has had.
    #[must_use]
    pub fn max_stored_bytes(&self) -> usize {
        let each = self.max_ballot_bytes() + self.max_entry_bytes();
        self.window_bytes
            .saturating_add(each.saturating_mul(usize::from(self.replicas)))
    }

    /// Checks every field against its bounds.
    ///
    /// # Errors
    /// Names the field that is out of bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.replicas == 0 || usize::from(self.replicas) > MAX_REPLICAS {
            return Err(ConfigError::Replicas(self.replicas));
        }
        if self.window_boundaries == 0 || self.window_boundaries > MAX_WINDOW_BOUNDARIES {
            return Err(ConfigError::WindowBoundaries(self.window_boundaries));
        }
        if self.window_bytes < MIN_WINDOW_BYTES {
            return Err(ConfigError::WindowBytes(self.window_bytes));
        }
        if self.lag_timeout_ns == 0 {
            return Err(ConfigError::LagTimeout);
        }
        if self.lag_factor == 0 {
            return Err(ConfigError::LagFactor);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Config = Config {
        replicas: 3,
        window_boundaries: 8,
        window_bytes: 4096,
        lag_timeout_ns: 1,
        lag_factor: 1,
    };

    #[test]
    fn quorum_is_a_majority_of_the_configured() {
        let quorums: Vec<u8> = (1..=9)
            .map(|replicas| Config { replicas, ..GOOD }.quorum())
            .collect();
        assert_eq!(quorums, [1, 2, 2, 3, 3, 4, 4, 5, 5]);
        let tolerated: Vec<u8> = (1..=9)
            .map(|replicas| Config { replicas, ..GOOD }.tolerated())
            .collect();
        assert_eq!(tolerated, [0, 0, 1, 1, 2, 2, 3, 3, 4]);
    }

    #[test]
    fn bounds_are_checked() {
        assert_eq!(GOOD.check(), Ok(()));
        for replicas in [0, 10, 255] {
            let bad = Config { replicas, ..GOOD };
            assert_eq!(bad.check(), Err(ConfigError::Replicas(replicas)));
        }
        for window_boundaries in [0, MAX_WINDOW_BOUNDARIES + 1] {
            let bad = Config {
                window_boundaries,
                ..GOOD
            };
            assert_eq!(
                bad.check(),
                Err(ConfigError::WindowBoundaries(window_boundaries))
            );
        }
        let bad = Config {
            window_bytes: MIN_WINDOW_BYTES - 1,
            ..GOOD
        };
        assert_eq!(bad.check(), Err(ConfigError::WindowBytes(1023)));
        let bad = Config {
            lag_timeout_ns: 0,
            ..GOOD
        };
        assert_eq!(bad.check(), Err(ConfigError::LagTimeout));
        let bad = Config {
            lag_factor: 0,
            ..GOOD
        };
        assert_eq!(bad.check(), Err(ConfigError::LagFactor));
    }
}
