//! The regularised incomplete beta function.
//!
//! `statrs` has one, too, but its continued fraction ends after 140 terms: with parameters in the hundred thousands, which
//! campaigns reach, it is then off in the third digit. The terms that are needed grow with the root of the larger parameter.

use statrs::function::gamma::ln_gamma;

/// Terms of the continued fraction that are tried; enough for parameters of 10⁹.
const TERMS: u32 = 200_000;

/// I_x(a, b): the probability that a beta-distributed variable is at most `x`. `a` and `b` are positive, `x` in [0, 1].
pub(super) fn cumulative(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    // The fraction converges fast below the mean; above it, the other tail is calculated.
    if x > (a + 1.0) / (a + b + 2.0) {
        1.0 - tail(b, a, 1.0 - x)
    } else {
        tail(a, b, x)
    }
}

fn tail(a: f64, b: f64, x: f64) -> f64 {
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp();
    front * fraction(a, b, x) / a
}

/// The continued fraction (DLMF 8.17.22), by Lentz's method.
fn fraction(a: f64, b: f64, x: f64) -> f64 {
    let safe = |value: f64| if value.abs() < 1e-300 { 1e-300 } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / safe(1.0 - (a + b) * x / (a + 1.0));
    let mut result = d;
    for m in 1..TERMS {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        for term in [even, odd] {
            d = 1.0 / safe(1.0 + term * d);
            c = safe(1.0 + term / c);
            result *= c * d;
        }
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    result
}

/// The `x` with I_x(a, b) = `probability`, by bisection: it is monotone, and nothing here is in a hurry.
pub(super) fn quantile(a: f64, b: f64, probability: f64) -> f64 {
    let (mut low, mut high) = (0.0_f64, 1.0_f64);
    // Bisecting to the last bit takes some 60 steps near 1, and more for tiny quantiles.
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if cumulative(a, b, middle) < probability {
            low = middle;
        } else {
            high = middle;
        }
        if high - low < 1e-14 * high {
            break;
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, known: f64, relative: f64) {
        assert!(
            (found - known).abs() <= relative * known.abs(),
            "{found} is not {known}"
        );
    }

    #[test]
    fn it_is_the_binomial_tail() {
        // P(X >= k) of a binomial is I_p(k, n - k + 1); summed here term by term.
        for (n, k, p) in [(10_u32, 3_u32, 0.2_f64), (40, 39, 0.9), (25, 1, 0.01)] {
            let mut sum = 0.0;
            let mut choose = 1.0_f64;
            for i in 0..=n {
                if i > 0 {
                    choose *= f64::from(n - i + 1) / f64::from(i);
                }
                if i >= k {
                    sum += choose * p.powi(i as i32) * (1.0 - p).powi((n - i) as i32);
                }
            }
            close(
                cumulative(f64::from(k), f64::from(n - k + 1), p),
                sum,
                1e-12,
            );
        }
    }

    #[test]
    fn large_parameters() {
        // By symmetry, and by the normal approximation far into the million.
        close(cumulative(5e5, 5e5, 0.5), 0.5, 1e-9);
        close(
            cumulative(5e5, 5e5, 0.5 + 1.959_963_985 * 0.5 / 1e6_f64.sqrt()),
            0.975,
            1e-5,
        );
    }

    #[test]
    fn the_quantile_inverts() {
        for (a, b) in [(1.0, 20.0), (82.0, 182.0), (3.0, 99_998.0), (0.5, 0.5)] {
            for probability in [0.0005, 0.025, 0.5, 0.975, 0.9995] {
                close(
                    cumulative(a, b, quantile(a, b, probability)),
                    probability,
                    1e-9,
                );
            }
        }
    }
}
