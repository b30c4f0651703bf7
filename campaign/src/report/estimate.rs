//! Shares with their intervals.

use serde::{Deserialize, Serialize};

use crate::stats::{Confidence, clopper_pearson, upper_bound, wilson};

/// `count` of `of`, with intervals at the report's confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Trials with it.
    pub count: u64,
    /// Trials that count.
    pub of: u64,
    /// The one divided by the other; 0 of 0 is 0.
    pub share: f64,
    /// Lower end of the exact two-sided interval (Clopper–Pearson).
    pub exact_low: f64,
    /// Upper end of it.
    pub exact_high: f64,
    /// Lower end of Wilson's score interval.
    pub wilson_low: f64,
    /// Upper end of it.
    pub wilson_high: f64,
    /// Exact one-sided upper bound: what is said of a count of 0.
    pub below: f64,
}

impl Estimate {
    /// The estimate for `count` of `of`.
    #[must_use]
    pub fn new(count: u64, of: u64, confidence: Confidence) -> Estimate {
        let exact = clopper_pearson(count, of, confidence);
        let score = wilson(count, of, confidence);
        Estimate {
            count,
            of,
            share: match of {
                0 => 0.0,
                of => count as f64 / of as f64,
            },
            exact_low: exact.low,
            exact_high: exact.high,
            wilson_low: score.low,
            wilson_high: score.high,
            below: match of {
                0 => 1.0,
                of => upper_bound(count, of, confidence),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_seen_is_not_nothing_there() {
        let estimate = Estimate::new(0, 10_000, Confidence::P95);
        assert!((estimate.below - 0.000_299_5).abs() < 1e-6, "{estimate:?}");
        assert!((estimate.exact_high - 0.000_368_8).abs() < 1e-6);
        assert_eq!(Estimate::new(0, 0, Confidence::P95).below, 1.0);
    }
}
