//! Which requests touch which bytes.

use std::collections::BTreeMap;
use std::ops::Range;

use quorate_devices::MAX_IO_BYTES;

use super::versions::BLOCK;

/// Longest range that is found through its start: a write, rounded out to blocks. Longer ones (discards) are few and looked
/// through one by one.
const SHORT: u64 = MAX_IO_BYTES as u64 + 2 * BLOCK;

/// A set of byte ranges, each under the number of its request.
#[derive(Debug, Default)]
pub struct Extents {
    short: BTreeMap<(u64, u64), u64>,
    long: BTreeMap<u64, Range<u64>>,
}

impl Extents {
    /// Adds request `seq`.
    pub fn insert(&mut self, seq: u64, range: Range<u64>) {
        if range.end - range.start > SHORT {
            self.long.insert(seq, range);
        } else {
            self.short.insert((range.start, seq), range.end);
        }
    }

    /// Takes request `seq` out, whose range this is.
    pub fn remove(&mut self, seq: u64, range: &Range<u64>) {
        if range.end - range.start > SHORT {
            self.long.remove(&seq);
        } else {
            self.short.remove(&(range.start, seq));
        }
    }

    /// The requests that touch the range, ascending.
    pub fn touching(&self, range: &Range<u64>) -> Vec<u64> {
        let mut found: Vec<u64> = self.iter(range).collect();
        found.sort_unstable();
        found
    }

    /// Whether a request touches the range.
    pub fn touches(&self, range: &Range<u64>) -> bool {
        self.iter(range).next().is_some()
    }

    fn iter(&self, range: &Range<u64>) -> impl Iterator<Item = u64> {
        let (start, end) = (range.start, range.end);
        let from = (start.saturating_sub(SHORT), 0);
        let short = self.short.range(from..(end, 0));
        let short = short
            .filter(move |(_, e)| **e > start)
            .map(|((_, s), _)| *s);
        let long = self.long.iter();
        let long = long.filter(move |(_, r)| r.start < end && r.end > start);
        short.chain(long.map(|(seq, _)| *seq))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_overlaps_and_nothing_else() {
        let mut set = Extents::default();
        set.insert(3, 0..512);
        set.insert(1, 512..1024);
        set.insert(2, 4096..4096 + (1 << 20));
        set.insert(0, 1024..1 << 40);
        assert_eq!(set.touching(&(0..512)), [3]);
        assert_eq!(set.touching(&(511..513)), [1, 3]);
        assert_eq!(set.touching(&(1 << 20..(1 << 20) + 1)), [0, 2]);
        assert_eq!(set.touching(&((1 << 30)..(1 << 30) + 1)), [0]);
        set.remove(0, &(1024..1 << 40));
        assert!(!set.touches(&((1 << 30)..(1 << 30) + 1)));
        set.remove(3, &(0..512));
        assert!(!set.touches(&(0..512)));
    }
}
