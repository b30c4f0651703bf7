//! Bytes of a stream from some position on: one stretch of it, in a ring.

use std::collections::VecDeque;

/// The bytes at positions `start..end`.
#[derive(Clone, Debug, Default)]
pub(super) struct Bytes {
    start: u64,
    ring: VecDeque<u8>,
}

impl Bytes {
    pub(super) fn new(start: u64) -> Self {
        Self {
            start,
            ring: VecDeque::new(),
        }
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn end(&self) -> u64 {
        self.start + self.ring.len() as u64
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.ring.extend(bytes);
    }

    /// The bytes from `at` on, up to `most` of them, in two pieces. Nothing before the start or beyond the end.
    pub(super) fn slices(&self, at: u64, most: usize) -> [&[u8]; 2] {
        let Some(skip) = at.checked_sub(self.start) else {
            return [&[], &[]];
        };
        let skip = usize::try_from(skip)
            .unwrap_or(usize::MAX)
            .min(self.ring.len());
        let (first, second) = self.ring.as_slices();
        let a = &first[skip.min(first.len())..];
        let b = &second[skip.saturating_sub(first.len())..];
        let a = &a[..a.len().min(most)];
        let b = &b[..b.len().min(most - a.len())];
        [a, b]
    }

    /// How many of `bytes`, from its first on, stand at `at` here; compared as bytes (R2).
    pub(super) fn same(&self, at: u64, bytes: &[u8]) -> usize {
        let [a, b] = self.slices(at, bytes.len());
        let first = common(a, bytes);
        match first == a.len() {
            true => first + common(b, &bytes[first..]),
            false => first,
        }
    }

    /// A copy of up to `most` bytes from `at` on.
    pub(super) fn copy(&self, at: u64, most: usize) -> Vec<u8> {
        self.slices(at.max(self.start), most).concat()
    }

    /// Drops what lies before `at`.
    pub(super) fn forget(&mut self, at: u64) {
        let gone = at.min(self.end()).saturating_sub(self.start);
        self.ring.drain(..gone as usize);
        self.start += gone;
    }

    /// Drops what lies from `at` on.
    pub(super) fn truncate(&mut self, at: u64) {
        let keep = at.saturating_sub(self.start);
        self.ring
            .truncate(usize::try_from(keep).unwrap_or(usize::MAX));
    }

    /// Bytes of memory behind this.
    pub(super) fn held(&self) -> usize {
        self.ring.len()
    }
}

/// Length of the common prefix. Equality of the whole is tried first: it is the usual case, and a `memcmp`.
fn common(a: &[u8], b: &[u8]) -> usize {
    let most = a.len().min(b.len());
    let (a, b) = (&a[..most], &b[..most]);
    if a == b {
        return most;
    }
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_those_of_the_stream() {
        let mut bytes = Bytes::new(100);
        // Around the ring's seam.
        for round in 0..200u64 {
            let at = bytes.end();
            bytes.push(&[round as u8; 7]);
            assert_eq!(bytes.copy(at, 100), [round as u8; 7]);
            assert_eq!(bytes.same(at, &[round as u8; 9]), 7);
            assert_eq!(
                bytes.same(at + 2, &[round as u8, round as u8, 255, round as u8]),
                2
            );
            bytes.forget(at);
            assert_eq!((bytes.start(), bytes.held()), (at, 7));
        }
        let (start, end) = (bytes.start(), bytes.end());
        assert_eq!(bytes.same(start - 1, &[199]), 0);
        assert_eq!(bytes.same(end, &[199]), 0);
        bytes.truncate(start + 1);
        assert_eq!(bytes.end(), start + 1);
        bytes.truncate(0);
        assert_eq!((bytes.start(), bytes.held()), (start, 0));
        bytes.forget(u64::MAX);
        assert_eq!(bytes.start(), start);
    }
}
