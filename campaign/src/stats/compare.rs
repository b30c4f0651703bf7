//! Whether two rates differ.

use serde::{Deserialize, Serialize};
use statrs::function::gamma::ln_gamma;

use super::{Confidence, Interval, beta, wilson};

/// Fisher's exact test, two-sided: how likely, if both rates are the same, tables are that are no likelier than this one
/// (`k1` of `n1` against `k2` of `n2`). 1 if there is nothing to compare.
#[must_use]
pub fn fisher(k1: u64, n1: u64, k2: u64, n2: u64) -> f64 {
    let (k1, k2) = (k1.min(n1), k2.min(n2));
    let events = k1 + k2;
    let choose = |n: u64, k: u64| {
        ln_gamma(n as f64 + 1.0) - ln_gamma(k as f64 + 1.0) - ln_gamma((n - k) as f64 + 1.0)
    };
    let all = choose(n1 + n2, events);
    let likelihood = |x: u64| choose(n1, x) + choose(n2, events - x) - all;
    let seen = likelihood(k1);
    // A table as likely as the one that was seen counts, though rounding may put it a trace above.
    let tolerance = 1e-7;
    let sum: f64 = (events.saturating_sub(n2)..=events.min(n1))
        .map(likelihood)
        .filter(|&one| one <= seen + tolerance)
        .map(f64::exp)
        .sum();
    sum.min(1.0)
}

/// McNemar's exact test, two-sided, for pairs: `only_first` pairs showed the event in the first only, `only_second` in the second
/// only. The other pairs say nothing about a difference.
#[must_use]
pub fn mcnemar(only_first: u64, only_second: u64) -> f64 {
    let n = only_first + only_second;
    let least = only_first.min(only_second);
    if 2 * least >= n {
        return 1.0;
    }
    // P(X <= least) for X binomial with n and 1/2.
    (2.0 * beta::cumulative((n - least) as f64, least as f64 + 1.0, 0.5)).min(1.0)
}

/// Newcombe's interval (1998, method 10) for the difference of two independent rates, first less second; limits in [-1, 1].
#[must_use]
pub fn difference(k1: u64, n1: u64, k2: u64, n2: u64, confidence: Confidence) -> Interval {
    if n1 == 0 || n2 == 0 {
        return Interval {
            low: -1.0,
            high: 1.0,
        };
    }
    let one = Side::new(k1, n1, confidence);
    let two = Side::new(k2, n2, confidence);
    hybrid(&one, &two, 0.0)
}

/// A rate and how far its Wilson limits are from it.
struct Side {
    rate: f64,
    below: f64,
    above: f64,
}

impl Side {
    fn new(k: u64, n: u64, confidence: Confidence) -> Self {
        let rate = k.min(n) as f64 / n as f64;
        let interval = wilson(k, n, confidence);
        Side {
            rate,
            below: rate - interval.low,
            above: interval.high - rate,
        }
    }
}

fn hybrid(one: &Side, two: &Side, correlation: f64) -> Interval {
    let spread = |a: f64, b: f64| (a * a - 2.0 * correlation * a * b + b * b).max(0.0).sqrt();
    let difference = one.rate - two.rate;
    Interval {
        low: (difference - spread(one.below, two.above)).max(-1.0),
        high: (difference + spread(two.below, one.above)).min(1.0),
    }
}

/// Pairs: the same draw in two campaigns, or with two N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pairs {
    /// The event in both.
    pub both: u64,
    /// In the first only.
    pub only_first: u64,
    /// In the second only.
    pub only_second: u64,
    /// In neither.
    pub neither: u64,
}

impl Pairs {
    /// One pair more.
    pub fn add(&mut self, first: bool, second: bool) {
        *match (first, second) {
            (true, true) => &mut self.both,
            (true, false) => &mut self.only_first,
            (false, true) => &mut self.only_second,
            (false, false) => &mut self.neither,
        } += 1;
    }

    /// All pairs.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.both + self.only_first + self.only_second + self.neither
    }

    /// McNemar's exact test.
    #[must_use]
    pub fn test(&self) -> f64 {
        mcnemar(self.only_first, self.only_second)
    }

    /// Newcombe's interval for the difference of the two rates in pairs (1998, p. 2635, method 10: with the correlation of the pairs,
    /// continuity-corrected).
    #[must_use]
    pub fn difference(&self, confidence: Confidence) -> Interval {
        let n = self.all();
        if n == 0 {
            return Interval {
                low: -1.0,
                high: 1.0,
            };
        }
        let [both, first, second, neither] =
            [self.both, self.only_first, self.only_second, self.neither].map(|count| count as f64);
        let product = (both + first) * (second + neither) * (both + second) * (first + neither);
        let excess = both * neither - first * second;
        let excess = if excess > 0.0 {
            (excess - 0.5 * n as f64).max(0.0)
        } else {
            excess
        };
        let correlation = if product > 0.0 {
            excess / product.sqrt()
        } else {
            0.0
        };
        hybrid(
            &Side::new(self.both + self.only_first, n, confidence),
            &Side::new(self.both + self.only_second, n, confidence),
            correlation,
        )
    }
}

/// Holm's step-down adjustment of several p-values (Scandinavian Journal of Statistics 6 (1979) 65): rejecting those that are below
/// alpha after it makes a false rejection among all of them no likelier than alpha.
#[must_use]
pub fn holm(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut adjusted = vec![1.0; values.len()];
    let mut floor: f64 = 0.0;
    for (rank, &index) in order.iter().enumerate() {
        floor = floor
            .max((values.len() - rank) as f64 * values[index])
            .min(1.0);
        adjusted[index] = floor;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fisher's tea taster (The Design of Experiments, 1935) and the convictions of twins (Statistical Methods for Research Workers;
    /// both are examples of R's `fisher.test`, which prints 0.4857 and 0.0005367).
    #[test]
    fn fishers_examples() {
        assert!((fisher(3, 4, 1, 4) - 0.485_714_285_7).abs() < 1e-9);
        assert!((fisher(2, 17, 10, 13) - 0.000_536_7).abs() < 5e-8);
        assert!((fisher(5, 10, 5, 10) - 1.0).abs() < 1e-9);
        assert!((fisher(0, 0, 5, 10) - 1.0).abs() < 1e-9);
    }

    /// Newcombe (1998) p. 873, table II, method 10.
    #[test]
    fn newcombe_independent() {
        for (k1, n1, k2, n2, low, high) in [
            (56, 70, 48, 80, 0.0524, 0.3339),
            (9, 10, 3, 10, 0.1705, 0.8090),
            (6, 7, 2, 7, 0.0582, 0.8062),
            (5, 56, 0, 29, -0.0381, 0.1926),
            (0, 10, 0, 20, -0.1611, 0.2775),
            (0, 10, 0, 10, -0.2775, 0.2775),
            (10, 10, 0, 20, 0.6791, 1.0),
            (10, 10, 0, 10, 0.6075, 1.0),
        ] {
            let found = difference(k1, n1, k2, n2, Confidence::P95);
            assert!(
                (found.low - low).abs() < 5.1e-5 && (found.high - high).abs() < 5.1e-5,
                "{k1}/{n1} - {k2}/{n2}: {found:?}"
            );
        }
    }

    /// Newcombe (1998) p. 2635, table III, method 10.
    #[test]
    fn newcombe_paired() {
        for (both, only_first, only_second, neither, low, high) in [
            (36, 12, 2, 0, 0.0569, 0.3404),
            (20, 12, 2, 16, 0.0562, 0.3292),
            (36, 14, 0, 0, 0.1528, 0.4167),
            (18, 14, 0, 18, 0.1441, 0.3963),
            (2, 97, 1, 0, 0.8721, 0.9854),
            (0, 30, 0, 0, 0.8395, 1.0),
            (54, 0, 0, 0, -0.0664, 0.0664),
            (53, 0, 0, 1, -0.0729, 0.0729),
            (27, 0, 0, 27, -0.0351, 0.0351),
        ] {
            let pairs = Pairs {
                both,
                only_first,
                only_second,
                neither,
            };
            let found = pairs.difference(Confidence::P95);
            assert!(
                (found.low - low).abs() < 5.1e-5 && (found.high - high).abs() < 5.1e-5,
                "{pairs:?}: {found:?}"
            );
        }
    }

    /// M. P. Fay, "Exact McNemar's test and matching confidence intervals" (R's exact2x2): pairs of 9 and 2 give 0.06543 = 134/2048.
    #[test]
    fn mcnemars_test() {
        assert!((mcnemar(9, 2) - 134.0 / 2048.0).abs() < 1e-12);
        assert!((mcnemar(2, 9) - 134.0 / 2048.0).abs() < 1e-12);
        assert!((mcnemar(6, 0) - 2.0 / 64.0).abs() < 1e-12);
        assert_eq!((mcnemar(0, 0), mcnemar(4, 4)), (1.0, 1.0));
    }

    #[test]
    fn holms_adjustment() {
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (found, known) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((found - known).abs() < 1e-12, "{adjusted:?}");
        }
        assert!(holm(&[]).is_empty());
    }
}
