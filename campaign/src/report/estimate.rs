//! Shares with their intervals.

use serde::{Deserialize, Serialize};
use statrs::distribution::{Beta, ContinuousCDF, Normal};

/// `count` of `of`, with intervals at the report's confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Trials with it.
    pub count: u64,
    /// Trials that count.
    pub of: u64,
    /// The one divided by the other; 0 of 0 is 0.
    pub share: f64,
    /// Lower end of the exact interval (Clopper–Pearson).
    pub exact_low: f64,
    /// Upper end of it.
    pub exact_high: f64,
    /// Lower end of Wilson's score interval.
    pub wilson_low: f64,
    /// Upper end of it.
    pub wilson_high: f64,
}

impl Estimate {
    /// The estimate for `count` of `of` at a confidence between 0 and 1.
    #[must_use]
    pub fn new(count: u64, of: u64, confidence: f64) -> Estimate {
        let (exact_low, exact_high) = exact(count, of, confidence);
        let (wilson_low, wilson_high) = wilson(count, of, confidence);
        Estimate {
            count,
            of,
            share: if of == 0 {
                0.0
            } else {
                count as f64 / of as f64
            },
            exact_low,
            exact_high,
            wilson_low,
            wilson_high,
        }
    }
}

fn exact(k: u64, n: u64, confidence: f64) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let tail = (1.0 - confidence) / 2.0;
    let (k, n) = (k as f64, n as f64);
    let quantile =
        |a: f64, b: f64, q: f64| Beta::new(a, b).map_or(f64::NAN, |beta| beta.inverse_cdf(q));
    let low = if k == 0.0 {
        0.0
    } else {
        quantile(k, n - k + 1.0, tail)
    };
    let high = if k >= n {
        1.0
    } else {
        quantile(k + 1.0, n - k, 1.0 - tail)
    };
    (low, high)
}

fn wilson(k: u64, n: u64, confidence: f64) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let z = Normal::standard().inverse_cdf(0.5 + confidence / 2.0);
    let (p, n) = (k as f64 / n as f64, n as f64);
    let middle = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    ((middle - half).max(0.0), (middle + half).min(1.0))
}
