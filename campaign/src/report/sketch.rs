//! A distribution in bounded memory.

use std::collections::BTreeMap;

/// Distribution of whole numbers. Below 256 each is counted by itself; above, one bucket is 1/256 of a power of two, so that
/// quantiles are low by less than 0.4 %. At most 14,592 buckets (R10).
#[derive(Clone, Debug, Default)]
pub struct Sketch {
    buckets: BTreeMap<u16, u64>,
    count: u64,
    min: u64,
    max: u64,
}

const FINE: u64 = 256;
const FINE_BITS: u32 = 8;

fn bucket(value: u64) -> u16 {
    if value < FINE {
        return value as u16;
    }
    let power = 63 - value.leading_zeros();
    let within = (value >> (power - FINE_BITS)) & (FINE - 1);
    (FINE as u32 + (power - FINE_BITS) * FINE as u32 + within as u32) as u16
}

fn lowest(bucket: u16) -> u64 {
    let bucket = u64::from(bucket);
    if bucket < FINE {
        return bucket;
    }
    let power = (bucket - FINE) / FINE;
    (FINE + (bucket - FINE) % FINE) << power
}

impl Sketch {
    /// Counts a value.
    pub fn add(&mut self, value: u64) {
        *self.buckets.entry(bucket(value)).or_default() += 1;
        self.min = if self.count == 0 {
            value
        } else {
            self.min.min(value)
        };
        self.max = self.max.max(value);
        self.count += 1;
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The smallest; 0 if there is none.
    #[must_use]
    pub fn min(&self) -> u64 {
        self.min
    }

    /// The largest; 0 if there is none.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The smallest value that at least the share `q` of all does not exceed; low by at most 0.4 %. 0 if there is none.
    #[must_use]
    pub fn quantile(&self, q: f64) -> u64 {
        let rank = ((q * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (index, count) in &self.buckets {
            seen += count;
            if seen >= rank {
                return lowest(*index).clamp(self.min, self.max);
            }
        }
        0
    }

    /// Values (low by at most 0.4 %) with their counts, in order.
    pub fn values(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.buckets.iter().map(|(index, n)| (lowest(*index), *n))
    }

    /// Counts in bins of equal width on a logarithmic axis, `per_decade` of them per factor of ten: lower edge (counted), upper
    /// edge (not counted), count. Zeros have a bin of their own, from 0 to 1. Empty bins between are there.
    #[must_use]
    pub fn bins(&self, per_decade: u32) -> Vec<(f64, f64, u64)> {
        let step =
            |value: u64| ((value as f64).log10() * f64::from(per_decade) + 1e-9).floor() as i64;
        let edge = |k: i64| 10f64.powf(k as f64 / f64::from(per_decade));
        let mut zeros = 0;
        let mut bins: BTreeMap<i64, u64> = BTreeMap::new();
        for (value, count) in self.values() {
            match value {
                0 => zeros += count,
                _ => *bins.entry(step(value)).or_default() += count,
            }
        }
        let mut all = Vec::new();
        if zeros > 0 {
            all.push((0.0, 1.0, zeros));
        }
        if let (Some(first), Some(last)) =
            (bins.keys().next().copied(), bins.keys().last().copied())
        {
            for k in first..=last {
                all.push((edge(k), edge(k + 1), bins.get(&k).copied().unwrap_or(0)));
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_their_own_lowest_value() {
        for value in (0..600).chain([1 << 20, u64::MAX, u64::MAX / 3, 12_345_678_901]) {
            let low = lowest(bucket(value));
            assert!(low <= value, "{value}: {low}");
            assert!(
                (value - low) as f64 <= value as f64 * 0.004,
                "{value}: {low}"
            );
            assert_eq!(bucket(low), bucket(value));
        }
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let mut sketch = Sketch::default();
        let mut values: Vec<u64> = (0..1000u64).map(|i| i * i * 37 % 1_000_003).collect();
        values.iter().for_each(|v| sketch.add(*v));
        values.sort_unstable();
        for q in [0.01, 0.25, 0.5, 0.9, 0.99, 1.0] {
            let exact = values[((q * 1000.0f64).ceil() as usize).max(1) - 1] as f64;
            let got = sketch.quantile(q) as f64;
            assert!(
                got <= exact && got >= exact * 0.996,
                "{q}: {got}, not {exact}"
            );
        }
        assert_eq!(Sketch::default().quantile(0.5), 0);
    }

    #[test]
    fn bins_hold_all() {
        let mut sketch = Sketch::default();
        for value in [0, 0, 1, 9, 10, 99, 100, 5000] {
            sketch.add(value);
        }
        let bins = sketch.bins(1);
        let counts: Vec<u64> = bins.iter().map(|bin| bin.2).collect();
        assert_eq!(counts, [2, 2, 2, 1, 1]);
        assert_eq!(bins[1].0, 1.0);
        assert!((bins[4].1 - 10_000.0).abs() < 1e-6);
    }
}
