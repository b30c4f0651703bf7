//! Counts by offset in a region whose size is not known beforehand, in bounded memory.

use super::tally::Hits;

/// Bins of a strip (R10): when an offset is beyond the last, bins become twice as wide.
pub const BINS: usize = 96;
/// Smallest width of a bin, bytes: a page.
const FINEST: u64 = 4096;

/// Trials by offset.
#[derive(Clone, Debug)]
pub struct Strip {
    width: u64,
    bins: Vec<Hits>,
    end: u64,
}

impl Default for Strip {
    fn default() -> Self {
        Strip {
            width: FINEST,
            bins: vec![Hits::default(); BINS],
            end: 0,
        }
    }
}

impl Strip {
    /// Counts a trial at an offset.
    pub fn add(&mut self, offset: u64, hits: Hits) {
        while offset / self.width >= BINS as u64 {
            let merged = (0..BINS).map(|i| match 2 * i + 1 < BINS {
                true => self.bins[2 * i] + self.bins[2 * i + 1],
                false => Hits::default(),
            });
            self.bins = merged.collect();
            self.width = self.width.saturating_mul(2);
        }
        let at = (offset / self.width) as usize;
        self.bins[at] = self.bins[at] + hits;
        self.end = self.end.max(offset.saturating_add(1));
    }

    /// Bytes per bin.
    #[must_use]
    pub fn width(&self) -> u64 {
        self.width
    }

    /// First offset of each bin with what was counted, up to the last that was hit.
    pub fn bins(&self) -> impl Iterator<Item = (u64, Hits)> + '_ {
        let used = self.end.div_ceil(self.width) as usize;
        let starts = (0..).map(|i| i * self.width);
        starts.zip(self.bins.iter().copied()).take(used)
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
        assert_eq!(strip.width(), 8192);
    }
}
