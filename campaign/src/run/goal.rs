//! How many draws a campaign has, and which of them are this machine's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::file::{Interval as FileInterval, Trials};
use crate::stats::sequential::{Correction, Schedule, Wish};
use crate::stats::{Confidence, Method, StatsError};

/// When a campaign is complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// After so many draws, each with every N.
    Draws(u64),
    /// When the intervals are narrow enough, at one of these looks.
    Looks(Schedule),
}

impl Goal {
    /// What the campaign's file wishes, where the command line (`--trials`, `--half-width`) does not overrule it.
    ///
    /// # Errors
    /// If the half-width cannot be had.
    pub fn new(
        file: &Trials,
        trials: Option<u64>,
        half_width: Option<f64>,
    ) -> Result<Self, StatsError> {
        if let Some(trials) = trials {
            return Ok(Goal::Draws(trials));
        }
        match (half_width, file.count, file.half_width) {
            (None, Some(count), _) => Ok(Goal::Draws(count)),
            (Some(half_width), _, _) | (None, None, Some(half_width)) => Schedule::new(&Wish {
                half_width,
                confidence: Confidence::new(file.confidence)?,
                method: method(file),
                correction: Correction::Spending,
                batch: file.batch,
                most: file.max,
                watch: file.watch.clone(),
            })
            .map(Goal::Looks),
            (None, None, None) => Ok(Goal::Draws(DEFAULT_DRAWS)),
        }
    }

    /// The numbers of draws after which something is decided, ascending; the last one is the end at the latest.
    #[must_use]
    pub fn ends(&self) -> Vec<u64> {
        match self {
            Goal::Draws(draws) => vec![*draws],
            Goal::Looks(schedule) => schedule.looks.iter().map(|look| look.draws).collect(),
        }
    }

    /// At most so many draws.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.ends().last().copied().unwrap_or(0)
    }
}

/// Draws of a campaign that says nothing about their number.
pub const DEFAULT_DRAWS: u64 = 1000;

/// The interval that a campaign's file asks for.
#[must_use]
pub fn method(file: &Trials) -> Method {
    match file.interval {
        FileInterval::ClopperPearson => Method::Exact,
        FileInterval::Wilson => Method::Wilson,
    }
}

/// A part of a campaign: the draws that leave the remainder `index - 1` when they are divided by `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// From 1.
    pub index: u64,
    /// So many parts.
    pub of: u64,
}

impl Shard {
    /// Whether a draw is in it.
    #[must_use]
    pub fn has(self, draw: u64) -> bool {
        draw % self.of == self.index - 1
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text
            .split_once('/')
            .and_then(|(index, of)| Some((index.parse::<u64>().ok()?, of.parse::<u64>().ok()?)));
        match parts {
            Some((index, of)) if (1..=of).contains(&index) => Ok(Shard { index, of }),
            _ => Err("expected i/n with i from 1 to n, for example 2/8".to_owned()),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn shards_part_the_draws() {
        let shards: Vec<Shard> = (1..=3).map(|i| format!("{i}/3").parse().unwrap()).collect();
        for draw in 0..100 {
            assert_eq!(shards.iter().filter(|shard| shard.has(draw)).count(), 1);
        }
        for bad in ["0/3", "4/3", "1", "1/0", "a/b", "-1/2", ""] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }
}
