//! Counts by offset in a region whose size is not known beforehand, in bounded memory.

use std::collections::BTreeMap;

use super::tally::Hits;

/// Bins of a strip (R10): when offsets are further apart, bins become twice as wide.
pub const BINS: usize = 96;
/// Smallest width of a bin, bytes: a page.
const FINEST: u64 = 4096;

/// Trials by offset, from the first bin that was hit to the last.
#[derive(Clone, Debug)]
pub struct Strip {
    width: u64,
    bins: BTreeMap<u64, Hits>,
}

impl Default for Strip {
    fn default() -> Self {
        Strip {
            width: FINEST,
            bins: BTreeMap::new(),
        }
    }
}

impl Strip {
    /// Counts a trial at an offset.
    pub fn add(&mut self, offset: u64, hits: Hits) {
        let bin = self.bins.entry(offset / self.width).or_default();
        *bin = *bin + hits;
        while self.span() > BINS as u64 {
            self.width = self.width.saturating_mul(2);
            for (at, hits) in std::mem::take(&mut self.bins) {
                let bin = self.bins.entry(at / 2).or_default();
                *bin = *bin + hits;
            }
        }
    }

    /// Bins from the first to the last.
    fn span(&self) -> u64 {
        let first = self.bins.keys().next();
        let last = self.bins.keys().next_back();
        first.zip(last).map_or(0, |(first, last)| last - first + 1)
    }

    /// Bytes per bin.
    #[must_use]
    pub fn width(&self) -> u64 {
        self.width
    }

    /// First offset of each bin that was hit, with what was counted.
    pub fn bins(&self) -> impl Iterator<Item = (u64, Hits)> + '_ {
        let width = self.width;
        self.bins.iter().map(move |(at, hits)| (at * width, *hits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_when_bins_widen() {
        let mut strip = Strip::default();
        let one = Hits {
            trials: 1,
            unmasked: 1,
            visible: 0,
        };
        for offset in [0, 4095, 4096, 95 * 4096, 96 * 4096, 10 << 30, u64::MAX] {
            strip.add(offset, one);
        }
        let total: u64 = strip.bins().map(|(_, hits)| hits.trials).sum();
        assert_eq!(total, 7);
        assert!(strip.bins().count() <= BINS);
        let mut strip = Strip::default();
        strip.add(5000, one);
        strip.add(97 * 4096, one);
        let places: Vec<(u64, u64)> = strip
            .bins()
            .filter(|b| b.1.trials > 0)
            .map(|b| (b.0, b.1.trials))
            .collect();
        assert_eq!(places, [(0, 1), (96 * 4096, 1)]);
        let mut far = Strip::default();
        far.add(1 << 30, one);
        far.add((1 << 30) + 9000, one);
        assert_eq!(
            far.width(),
            4096,
            "what was not hit before it costs no bins"
        );
        assert_eq!(strip.width(), 8192);
    }
}
