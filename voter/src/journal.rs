//! The journal: one entry per boundary, written by whichever replica gets there first, read by all (R1).

use std::collections::VecDeque;

/// Entries that a running replica may still want, and before them those that are kept for replicas that come back.
#[derive(Debug)]
pub(crate) struct Journal<E> {
    /// Boundary of the oldest entry kept.
    base: u64,
    entries: VecDeque<(E, usize)>,
    /// Bytes of all of them.
    bytes: usize,
    /// First entry that counts for the window.
    window: u64,
    window_bytes: usize,
}

impl<E> Journal<E> {
    /// An empty one that begins at `base`.
    pub(crate) fn new(base: u64) -> Self {
        Self {
            base,
            entries: VecDeque::new(),
            bytes: 0,
            window: base,
            window_bytes: 0,
        }
    }

    /// Boundary of the oldest entry kept.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Boundary whose entry is written next.
    pub(crate) fn next(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// Bytes of the entries in the window.
    pub(crate) fn window_bytes(&self) -> usize {
        self.window_bytes
    }

    /// Bytes of all entries kept.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn at(&self, boundary: u64) -> Option<&(E, usize)> {
        let index = usize::try_from(boundary.checked_sub(self.base)?).ok()?;
        self.entries.get(index)
    }

    /// The entry of `boundary`, if it is written and still kept.
    pub(crate) fn get(&self, boundary: u64) -> Option<&E> {
        self.at(boundary).map(|(entry, _)| entry)
    }

    /// Appends the entry of [`Self::next`]. An entry is never replaced.
    pub(crate) fn append(&mut self, entry: E, bytes: usize) {
        self.bytes += bytes;
        self.window_bytes += bytes;
        self.entries.push_back((entry, bytes));
    }

    /// Entries below `needed` leave the window, and those of them that are below `keep` too are dropped. The window
    /// never takes an entry back: a replica that comes back reads older ones as history.
    pub(crate) fn trim(&mut self, needed: u64, keep: u64) {
        while self.window < needed {
            let Some((_, bytes)) = self.at(self.window) else {
                break;
            };
            self.window_bytes -= *bytes;
            self.window += 1;
        }
        while self.base < self.window.min(keep) {
            let Some((_, bytes)) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= bytes;
            self.base += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Journal<u64> {
        let mut journal = Journal::new(0);
        for s in 0..5u64 {
            assert_eq!(journal.next(), s);
            assert_eq!(journal.get(s), None);
            journal.append(s * 10, 100);
        }
        journal
    }

    #[test]
    fn keeps_entries_until_trimmed() {
        let mut journal = written();
        journal.trim(3, u64::MAX);
        assert_eq!((journal.window_bytes(), journal.bytes()), (200, 200));
        assert_eq!(journal.get(2), None);
        assert_eq!(journal.get(3), Some(&30));
        assert_eq!(journal.get(4), Some(&40));
        assert_eq!(journal.next(), 5);
        // Beyond what was written: nothing is invented, numbers go on where they were.
        journal.trim(99, u64::MAX);
        assert_eq!((journal.window_bytes(), journal.next()), (0, 5));
    }

    #[test]
    fn history_does_not_count_for_the_window() {
        let mut journal = written();
        journal.trim(4, 1);
        assert_eq!((journal.window_bytes(), journal.bytes()), (100, 400));
        assert_eq!(
            (journal.base(), journal.get(0), journal.get(1)),
            (1, None, Some(&10))
        );
        // The window's own entries stay, whatever the history's bound.
        journal.trim(2, 99);
        assert_eq!((journal.base(), journal.window_bytes()), (4, 100));
        assert_eq!(journal.bytes(), 100);
    }
}
