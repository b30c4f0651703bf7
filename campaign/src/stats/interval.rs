//! Intervals for one rate.

use std::fmt;

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

use super::{StatsError, beta};

/// How often an interval shall hold the true rate, as a fraction between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Confidence(f64);

impl Confidence {
    /// 95 %.
    pub const P95: Confidence = Confidence(0.95);
    /// 99 %.
    pub const P99: Confidence = Confidence(0.99);

    /// A confidence.
    ///
    /// # Errors
    /// If it is not between 0 and 1, both excluded.
    pub fn new(fraction: f64) -> Result<Self, StatsError> {
        if fraction > 0.0 && fraction < 1.0 {
            Ok(Confidence(fraction))
        } else {
            Err(StatsError::Confidence(fraction))
        }
    }

    /// As a fraction.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }

    /// How often it may miss.
    #[must_use]
    pub fn alpha(self) -> f64 {
        1.0 - self.0
    }

    /// The confidence that misses with probability `alpha`; kept away from 0 and 1 by rounding.
    pub(super) fn missing(alpha: f64) -> Self {
        Confidence((1.0 - alpha).clamp(f64::EPSILON, 1.0 - f64::EPSILON))
    }

    /// The two-sided normal quantile: 1.96 for 95 %.
    #[must_use]
    pub fn z(self) -> f64 {
        Normal::standard().inverse_cdf(1.0 - 0.5 * self.alpha())
    }
}

impl Default for Confidence {
    fn default() -> Self {
        Confidence::P95
    }
}

impl TryFrom<f64> for Confidence {
    type Error = StatsError;
    fn try_from(fraction: f64) -> Result<Self, StatsError> {
        Confidence::new(fraction)
    }
}

impl From<Confidence> for f64 {
    fn from(confidence: Confidence) -> f64 {
        confidence.0
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 0.95 is 94.99999999999999 % in floating point, else.
        write!(f, "{} %", (self.0 * 1e8).round() / 1e6)
    }
}

/// From where to where a rate may be. Both limits are fractions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower limit.
    pub low: f64,
    /// Upper limit.
    pub high: f64,
}

impl Interval {
    /// Nothing is known.
    pub const ALL: Interval = Interval {
        low: 0.0,
        high: 1.0,
    };

    /// Half of its width. The estimate is not in the middle; this is what planning and stopping go by.
    #[must_use]
    pub fn half_width(self) -> f64 {
        0.5 * (self.high - self.low)
    }

    /// Whether it holds a rate.
    #[must_use]
    pub fn contains(self, rate: f64) -> bool {
        (self.low..=self.high).contains(&rate)
    }
}

/// How an interval is calculated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Clopper–Pearson, the exact one: it never misses more often than stated, and mostly less often.
    #[default]
    Exact,
    /// Wilson's score interval: narrower, right on average, for some rates it misses a little more often than stated.
    Wilson,
}

impl Method {
    /// The interval for `k` of `n`.
    #[must_use]
    pub fn interval(self, k: u64, n: u64, confidence: Confidence) -> Interval {
        match self {
            Method::Exact => clopper_pearson(k, n, confidence),
            Method::Wilson => wilson(k, n, confidence),
        }
    }
}

/// The exact two-sided interval for `k` events in `n` trials (Clopper and Pearson 1934, with equal tails). Without trials it is
/// everything; a `k` above `n` counts as `n`.
#[must_use]
pub fn clopper_pearson(k: u64, n: u64, confidence: Confidence) -> Interval {
    real(Method::Exact, k.min(n) as f64, n as f64, confidence)
}

/// Wilson's score interval (1927), without continuity correction. Without trials it is everything.
#[must_use]
pub fn wilson(k: u64, n: u64, confidence: Confidence) -> Interval {
    real(Method::Wilson, k.min(n) as f64, n as f64, confidence)
}

/// Both, for counts that need not be whole (planning looks at expected ones). `k` is at most `n`.
pub(super) fn real(method: Method, k: f64, n: f64, confidence: Confidence) -> Interval {
    if n <= 0.0 {
        return Interval::ALL;
    }
    // Exactly 0 and 1 at the ends, where rounding would leave something.
    let (none, all) = (k <= 0.0, k >= n);
    let (low, high) = match method {
        Method::Exact => {
            let tail = 0.5 * confidence.alpha();
            let low = match k {
                _ if none => 0.0,
                // At the ends the beta quantile has a closed form.
                _ if all => (tail.ln() / n).exp(),
                _ => beta::quantile(k, n - k + 1.0, tail),
            };
            let high = match k {
                _ if all => 1.0,
                _ if none => -(tail.ln() / n).exp_m1(),
                _ => beta::quantile(k + 1.0, n - k, 1.0 - tail),
            };
            (low, high)
        }
        Method::Wilson => {
            let (z, p) = (confidence.z(), k / n);
            let middle = p + z * z / (2.0 * n);
            let spread = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
            let scale = 1.0 + z * z / n;
            let low = ((middle - spread) / scale).max(0.0);
            let high = ((middle + spread) / scale).min(1.0);
            (if none { 0.0 } else { low }, if all { 1.0 } else { high })
        }
    };
    Interval { low, high }
}

/// The exact one-sided upper bound: with this confidence the rate is below it. For no events at all it is `1 - alpha^(1/n)`, of
/// which the "rule of three" (3/n for 95 %) is the approximation.
#[must_use]
pub fn upper_bound(k: u64, n: u64, confidence: Confidence) -> f64 {
    if k >= n {
        1.0
    } else if k == 0 {
        -(confidence.alpha().ln() / n as f64).exp_m1()
    } else {
        beta::quantile(k as f64 + 1.0, (n - k) as f64, confidence.get())
    }
}

/// A rate as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Events.
    pub events: u64,
    /// Trials.
    pub trials: u64,
    /// The share of the two; 0 without trials.
    pub rate: f64,
    /// Clopper–Pearson.
    pub exact: Interval,
    /// Wilson.
    pub wilson: Interval,
}

impl Rate {
    /// `k` of `n`.
    #[must_use]
    pub fn new(k: u64, n: u64, confidence: Confidence) -> Self {
        Rate {
            events: k,
            trials: n,
            rate: if n == 0 { 0.0 } else { k as f64 / n as f64 },
            exact: clopper_pearson(k, n, confidence),
            wilson: wilson(k, n, confidence),
        }
    }

    /// What can be said where nothing was seen: "0 of 10000: below 0.03 % with 95 % confidence"; the bound is one-sided and rounded
    /// up. `None` where there is something to see, or no trial.
    #[must_use]
    pub fn none_seen(&self, confidence: Confidence) -> Option<String> {
        (self.events == 0 && self.trials > 0).then(|| {
            let bound = upper_bound(0, self.trials, confidence);
            format!(
                "0 of {}: below {} with {confidence} confidence",
                self.trials,
                percent_up(bound)
            )
        })
    }
}

/// A fraction in per cent with two significant digits, rounded up: as an upper bound it must not become smaller.
fn percent_up(fraction: f64) -> String {
    let percent = fraction * 100.0;
    if percent <= 0.0 {
        return "0 %".to_owned();
    }
    let digits = (1.0 - percent.log10().floor()).clamp(0.0, 12.0) as i32;
    let scale = 10_f64.powi(digits);
    // The tiny subtraction keeps an exact 0.03 from becoming 0.04 by rounding in the last bit.
    let rounded = (percent * scale - 1e-9).ceil() / scale;
    format!("{rounded} %")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn near(found: Interval, low: f64, high: f64, tolerance: f64) {
        assert!(
            (found.low - low).abs() <= tolerance && (found.high - high).abs() <= tolerance,
            "{found:?} is not {low} to {high}"
        );
    }

    /// Newcombe, Statistics in Medicine 17 (1998) 857, table I: the four examples with methods 3 (score) and 5 (Clopper–Pearson).
    #[test]
    fn newcombe_table_1() {
        for (k, n, score, exact) in [
            (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
            (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
            (0, 20, (0.0, 0.1611), (0.0, 0.1684)),
            (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
        ] {
            near(wilson(k, n, Confidence::P95), score.0, score.1, 5e-5);
            near(
                clopper_pearson(k, n, Confidence::P95),
                exact.0,
                exact.1,
                5e-5,
            );
        }
    }

    /// The example of R's `binom.test` (Conover 1971, p. 97: Mendel's peas), to all digits that it prints.
    #[test]
    fn the_example_of_binom_test() {
        near(
            clopper_pearson(682, 925, Confidence::P95),
            0.707_668_3,
            0.765_406_6,
            5e-8,
        );
    }

    /// Against the binomial distribution summed with 40 digits (mpmath, by bisection on the tail sums).
    #[test]
    fn against_forty_digits() {
        for (k, n, confidence, low, high) in [
            (5, 10, 0.95, 0.187_086_028_447_4, 0.812_913_971_552_6),
            (29, 29, 0.95, 0.880_555_130_930_5, 1.0),
            (
                3,
                1000,
                0.99,
                0.000_338_144_529_066_49,
                0.010_933_777_420_405,
            ),
            (500, 1000, 0.999, 0.447_629_419_858_6, 0.552_370_580_141_4),
            (
                7,
                100_000,
                0.95,
                2.814_407_880_503_7e-5,
                0.000_144_221_400_922_35,
            ),
            (
                2000,
                100_000,
                0.95,
                0.019_141_229_780_473,
                0.020_886_766_971_82,
            ),
        ] {
            let found = clopper_pearson(k, n, Confidence::new(confidence).unwrap());
            near(found, low, high, 1e-9 * high);
        }
    }

    #[test]
    fn the_ends() {
        for method in [Method::Exact, Method::Wilson] {
            assert_eq!(method.interval(0, 0, Confidence::P95), Interval::ALL);
            for n in [1, 7, 1000, 1_000_000] {
                let none = method.interval(0, n, Confidence::P95);
                let all = method.interval(n, n, Confidence::P95);
                assert_eq!((none.low, all.high), (0.0, 1.0));
                assert!(none.high > 0.0 && none.high < 1.0);
                assert!((none.high - (1.0 - all.low)).abs() < 1e-12, "they mirror");
            }
        }
        assert!(Confidence::new(1.0).is_err() && Confidence::new(0.0).is_err());
        assert!(Confidence::new(f64::NAN).is_err());
    }

    #[test]
    fn nothing_seen() {
        assert!((upper_bound(0, 10_000, Confidence::P95) - 0.000_299_528_359_777).abs() < 1e-14);
        let rate = Rate::new(0, 10_000, Confidence::P95);
        assert_eq!(
            rate.none_seen(Confidence::P95).unwrap(),
            "0 of 10000: below 0.03 % with 95 % confidence"
        );
        assert_eq!(
            Rate::new(1, 10, Confidence::P95).none_seen(Confidence::P95),
            None
        );
        assert_eq!(
            Rate::new(0, 0, Confidence::P95).none_seen(Confidence::P95),
            None
        );
        // One event: against the exact upper 97.5 % bound of the two-sided interval.
        let two_sided = clopper_pearson(1, 29, Confidence::P95).high;
        assert!((upper_bound(1, 29, Confidence::new(0.975).unwrap()) - two_sided).abs() < 1e-12);
    }

    #[test]
    fn percents_are_rounded_up() {
        for (fraction, text) in [
            (0.000_299_5, "0.03 %"),
            (0.0003, "0.03 %"),
            (0.034_1, "3.5 %"),
            (0.5, "50 %"),
            (1.0, "100 %"),
        ] {
            assert_eq!(percent_up(fraction), text, "{fraction}");
        }
    }
}
