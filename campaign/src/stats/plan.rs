//! How many trials are needed.

use super::{Confidence, Method, StatsError, interval};

/// More than anybody runs; the bound of the searches.
pub const MOST_TRIALS: u64 = 1_000_000_000;

fn check(half_width: f64) -> Result<(), StatsError> {
    if half_width > 0.0 && half_width < 0.5 {
        Ok(())
    } else {
        Err(StatsError::HalfWidth(half_width))
    }
}

/// The first number of trials for which `good` holds. `good` must be monotone but for a few steps about its edge (the width for
/// half of an odd number of trials is not that of an even one).
fn first(good: impl Fn(u64) -> bool) -> Result<u64, StatsError> {
    let (mut low, mut high) = (0, 1);
    while !good(high) {
        low = high;
        high *= 2;
        if high > MOST_TRIALS {
            return Err(StatsError::TooMany(MOST_TRIALS));
        }
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if good(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    let from = high.saturating_sub(4).max(1);
    Ok((from..high).find(|&n| good(n)).unwrap_or(high))
}

/// The smallest number of trials after which the interval is no wider than wished, whatever comes out (the widest is that for
/// half of them).
///
/// # Errors
/// If the half-width is not between 0 and 0.5, or more than [`MOST_TRIALS`] would be needed.
pub fn worst_case(
    method: Method,
    half_width: f64,
    confidence: Confidence,
) -> Result<u64, StatsError> {
    check(half_width)?;
    first(|n| method.interval(n / 2, n, confidence).half_width() <= half_width)
}

/// The smallest number of trials after which the interval is no wider than wished if the share that is found is `rate`. The count
/// that this means need not be whole here; else, more trials could be worse than fewer.
///
/// # Errors
/// As [`worst_case`], and if the rate is not in [0, 1].
pub fn with_rate(
    method: Method,
    half_width: f64,
    confidence: Confidence,
    rate: f64,
) -> Result<u64, StatsError> {
    check(half_width)?;
    if !(0.0..=1.0).contains(&rate) {
        return Err(StatsError::Rate(rate));
    }
    first(|n| {
        interval::real(method, rate * n as f64, n as f64, confidence).half_width() <= half_width
    })
}

/// The smallest number of trials of which none shows the event, so that the rate is below `bound` with this confidence.
///
/// # Errors
/// If the bound is not between 0 and 1, or more than [`MOST_TRIALS`] would be needed.
pub fn to_exclude(bound: f64, confidence: Confidence) -> Result<u64, StatsError> {
    if !(bound > 0.0 && bound < 1.0) {
        return Err(StatsError::Rate(bound));
    }
    first(|n| super::upper_bound(0, n, confidence) <= bound)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_first_is_the_first() {
        for method in [Method::Exact, Method::Wilson] {
            for half_width in [0.2, 0.1, 0.05, 0.03] {
                let n = worst_case(method, half_width, Confidence::P95).unwrap();
                let widest = |n: u64| {
                    (0..=n)
                        .map(|k| method.interval(k, n, Confidence::P95).half_width())
                        .fold(0.0, f64::max)
                };
                assert!(
                    widest(n) <= half_width,
                    "{method:?} {half_width}: {n} is enough"
                );
                assert!(
                    (n - 5..n).all(|n| widest(n) > half_width),
                    "{method:?} {half_width}: fewer than {n} are not"
                );
            }
        }
    }

    /// Solving Wilson's half-width for n at p = 1/2 gives z²(1/(4W²) − 1): 380.3 for 5 %, 9600.1 for 1 % (with the textbook's 384.1
    /// and 9603.6 from the normal approximation, both minus z²).
    #[test]
    fn known_sizes() {
        let wilson = |w| worst_case(Method::Wilson, w, Confidence::P95).unwrap();
        assert_eq!((wilson(0.05), wilson(0.01)), (381, 9600));
        let rate = with_rate(Method::Wilson, 0.05, Confidence::P95, 0.5).unwrap();
        assert_eq!(rate, 381);
        assert!(with_rate(Method::Exact, 0.01, Confidence::P95, 0.02).unwrap() < 1200);
        // Exact search against 1 - 0.05^(1/n) <= 0.0003: ln 0.05 / ln 0.9997 = 9984.3.
        assert_eq!(to_exclude(0.0003, Confidence::P95).unwrap(), 9985);
        assert_eq!(to_exclude(0.05, Confidence::P95).unwrap(), 59);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(
            worst_case(Method::Exact, 0.0, Confidence::P95),
            Err(StatsError::HalfWidth(0.0))
        );
        assert!(worst_case(Method::Exact, 0.5, Confidence::P95).is_err());
        assert!(with_rate(Method::Exact, 0.1, Confidence::P95, 1.5).is_err());
        assert_eq!(
            worst_case(Method::Wilson, 1e-6, Confidence::P95),
            Err(StatsError::TooMany(MOST_TRIALS))
        );
    }
}
