//! One rate from several strata.

use serde::{Deserialize, Serialize};

use super::{Confidence, Interval, Method};

/// What was found in a stratum.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stratum {
    /// Its share of the population; only the proportions count.
    pub weight: f64,
    /// Events.
    pub events: u64,
    /// Trials.
    pub trials: u64,
}

/// The rate of the population.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Combined {
    /// The weighted mean of the strata's rates; a stratum without trials is left out of it.
    pub rate: f64,
    /// Where it may be.
    pub interval: Interval,
    /// Share of the population (0 to 1) in strata of which there are no trials: the interval says nothing about it, so its limits
    /// were widened to whatever its rate may be.
    pub unknown: f64,
}

/// Combines strata to a rate of the whole, which needs no relation between weights and trials.
///
/// The interval is the one of Zou, Huang and Zhang (2009): the distances of each stratum's limits from its rate, weighted, add up by
/// squares. With one stratum it is that stratum's interval. With [`Method::Exact`] inside, it misses less often than stated in all
/// cases that were simulated, but nothing proves that it does so always.
#[must_use]
pub fn combine(strata: &[Stratum], method: Method, confidence: Confidence) -> Combined {
    let good = |weight: f64| weight.is_finite() && weight > 0.0;
    let known = |stratum: &&Stratum| good(stratum.weight) && stratum.trials > 0;
    let all: f64 = strata.iter().map(|s| s.weight).filter(|&w| good(w)).sum();
    let sampled: f64 = strata.iter().filter(known).map(|s| s.weight).sum();
    if sampled <= 0.0 {
        return Combined {
            rate: 0.0,
            interval: Interval::ALL,
            unknown: 1.0,
        };
    }
    let (mut rate, mut below, mut above) = (0.0, 0.0, 0.0);
    for stratum in strata.iter().filter(known) {
        let weight = stratum.weight / sampled;
        let p = stratum.events.min(stratum.trials) as f64 / stratum.trials as f64;
        let interval = method.interval(stratum.events, stratum.trials, confidence);
        rate += weight * p;
        below += (weight * (p - interval.low)).powi(2);
        above += (weight * (interval.high - p)).powi(2);
    }
    let unknown = (1.0 - sampled / all).max(0.0);
    let low = (rate - below.sqrt()).max(0.0);
    let high = (rate + above.sqrt()).min(1.0);
    Combined {
        rate,
        interval: Interval {
            low: (1.0 - unknown) * low,
            high: (1.0 - unknown) * high + unknown,
        },
        unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stratum(weight: f64, events: u64, trials: u64) -> Stratum {
        Stratum {
            weight,
            events,
            trials,
        }
    }

    #[test]
    fn one_stratum_is_itself() {
        for method in [Method::Exact, Method::Wilson] {
            let combined = combine(&[stratum(7.0, 15, 148)], method, Confidence::P95);
            let alone = method.interval(15, 148, Confidence::P95);
            assert!((combined.interval.low - alone.low).abs() < 1e-12);
            assert!((combined.interval.high - alone.high).abs() < 1e-12);
        }
    }

    #[test]
    fn weights_count_and_not_trials() {
        let strata = [stratum(3.0, 50, 100), stratum(1.0, 0, 10_000)];
        let combined = combine(&strata, Method::Exact, Confidence::P95);
        assert!((combined.rate - 0.375).abs() < 1e-12);
        assert!(combined.interval.contains(0.375) && combined.interval.half_width() < 0.1);
    }

    #[test]
    fn what_was_not_sampled_may_be_anything() {
        let strata = [stratum(3.0, 0, 1000), stratum(1.0, 0, 0)];
        let combined = combine(&strata, Method::Exact, Confidence::P95);
        assert!((combined.unknown - 0.25).abs() < 1e-12);
        assert!(combined.interval.high > 0.25);
        let none = combine(&[], Method::Exact, Confidence::P95);
        assert_eq!((none.interval, none.unknown), (Interval::ALL, 1.0));
    }
}
