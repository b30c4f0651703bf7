//! Two memories of machines of the same layout, page by page: where they differ, and which of the differences look like a flipped bit.

use std::collections::BTreeSet;

use quorate_abi::PAGE_SIZE;

use super::memory::{Memory, page};

/// Differing stretches of one page that are kept; the rest is only counted (R10).
const MAX_RUNS: usize = 512;
/// Differing bytes this close are one stretch.
const JOIN: usize = 8;

/// Bytes that differ, in one stretch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Guest-physical address.
    pub at: u64,
    /// What the healthy machine has.
    pub healthy: Vec<u8>,
    /// What the other has.
    pub other: Vec<u8>,
}

impl Run {
    /// The bit, if it is a single one that differs: its byte's address and its number.
    #[must_use]
    pub fn single_bit(&self) -> Option<(u64, u8)> {
        let mut bits = self
            .healthy
            .iter()
            .zip(&self.other)
            .enumerate()
            .filter(|(_, (a, b))| a != b);
        let (offset, (one, two)) = bits.next()?;
        let bit = one ^ two;
        (bits.next().is_none() && bit.is_power_of_two())
            .then(|| (self.at + offset as u64, bit.trailing_zeros() as u8))
    }
}

/// A page in which the machines differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageDifference {
    /// Guest-physical address.
    pub page: u64,
    /// Bytes that differ.
    pub bytes: usize,
    /// Where.
    pub runs: Vec<Run>,
}

/// All pages in which `other` differs from `healthy`, ascending.
#[must_use]
pub fn differences(healthy: &dyn Memory, other: &dyn Memory) -> Vec<PageDifference> {
    let pages: BTreeSet<u64> = healthy.pages().into_iter().chain(other.pages()).collect();
    pages
        .into_iter()
        .filter_map(|at| {
            let (one, two) = (page(healthy, at)?, page(other, at)?);
            (one != two).then(|| compare(at, &one, &two))
        })
        .collect()
}

fn compare(at: u64, healthy: &[u8], other: &[u8]) -> PageDifference {
    let differ: Vec<usize> = (0..PAGE_SIZE as usize)
        .filter(|i| healthy[*i] != other[*i])
        .collect();
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for index in &differ {
        match ranges.last_mut() {
            Some((_, end)) if index - *end < JOIN => *end = index + 1,
            _ => ranges.push((*index, index + 1)),
        }
    }
    let runs = ranges.into_iter().take(MAX_RUNS).map(|(from, to)| Run {
        at: at + from as u64,
        healthy: healthy[from..to].to_vec(),
        other: other[from..to].to_vec(),
    });
    PageDifference {
        page: at,
        bytes: differ.len(),
        runs: runs.collect(),
    }
}

/// A single bit that differs, all by itself: it may be the one that was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Guest-physical address of its byte.
    pub at: u64,
    /// The bit.
    pub bit: u8,
    /// The byte as the healthy machine has it.
    pub healthy: u8,
    /// The byte as the other has it.
    pub other: u8,
    /// The healthy run has not written to this page lately.
    pub still: bool,
    /// Bytes that differ in the same page.
    pub company: usize,
}

/// The differences that a single flipped bit would make where it was hit, the likeliest first: in pages that the healthy run did not
/// write to between `before` and now, and where little else differs.
#[must_use]
pub fn suspects(
    healthy: &dyn Memory,
    before: Option<&dyn Memory>,
    found: &[PageDifference],
) -> Vec<Suspect> {
    let mut suspects: Vec<Suspect> = found
        .iter()
        .flat_map(|difference| {
            let still = before.is_some_and(|before| {
                page(before, difference.page) == page(healthy, difference.page)
            });
            difference.runs.iter().filter_map(move |run| {
                let (at, bit) = run.single_bit()?;
                let offset = (at - run.at) as usize;
                Some(Suspect {
                    at,
                    bit,
                    healthy: run.healthy[offset],
                    other: run.other[offset],
                    still,
                    company: difference.bytes,
                })
            })
        })
        .collect();
    suspects.sort_by_key(|suspect| (!suspect.still, suspect.company, suspect.at));
    suspects
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::memory::fake::Fake;
    use super::*;

    #[test]
    fn differences_are_found_in_stretches() {
        let mut healthy = Fake::new();
        healthy.write(0x5000, b"0123456789abcdefghijklmnopqrstuvwxyz");
        let mut other = healthy.clone();
        other.write(0x5000, b"X");
        other.write(0x5005, b"Y");
        other.write(0x501f, b"Z");
        // A page that only one of them has.
        other.write(0x9000, &[0; 4]);
        other.write(0xa000, &[1]);
        let found = differences(&healthy, &other);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].page, found[0].bytes), (0x5000, 3));
        assert_eq!(found[0].runs.len(), 2);
        assert_eq!(found[0].runs[0].healthy, b"012345");
        assert_eq!(found[0].runs[1].at, 0x501f);
        assert_eq!(found[1].runs[0].healthy, [0]);
        assert!(differences(&healthy, &healthy).is_empty());
    }

    #[test]
    fn a_flipped_bit_in_a_quiet_page_comes_first() {
        let mut before = Fake::new();
        before.write(0x5000, &[0x55; 64]);
        before.write(0x7000, &[0; 64]);
        let mut healthy = before.clone();
        healthy.write(0x7000, b"new");
        let mut other = healthy.clone();
        other.write(0x7020, &[4]);
        other.write(0x5010, &[0x54]);
        // Two bits of a byte are no flip.
        other.write(0x5030, &[0x56]);
        let found = differences(&healthy, &other);
        let suspects = suspects(&healthy, Some(&before), &found);
        assert_eq!(suspects.len(), 2);
        let first = suspects[0];
        assert_eq!(
            (first.at, first.bit, first.healthy, first.other),
            (0x5010, 0, 0x55, 0x54)
        );
        assert!(first.still && !suspects[1].still);
    }
}
