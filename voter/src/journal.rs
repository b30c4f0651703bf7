//! The journal: one entry per boundary, written by whichever replica gets there first, read by all (R1).

use std::collections::VecDeque;

/// Entries that a running replica may still want.
#[derive(Debug)]
pub(crate) struct Journal<E> {
    /// Boundary of the oldest entry kept.
    base: u64,
    entries: VecDeque<(E, usize)>,
    bytes: usize,
}

impl<E> Journal<E> {
    pub(crate) fn new() -> Self {
        Self {
            base: 0,
            entries: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Boundary whose entry is written next.
    pub(crate) fn next(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// Bytes of the entries kept.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The entry of `boundary`, if it is written and still kept.
    pub(crate) fn get(&self, boundary: u64) -> Option<&E> {
        let index = usize::try_from(boundary.checked_sub(self.base)?).ok()?;
        self.entries.get(index).map(|(entry, _)| entry)
    }

    /// Appends the entry of [`Self::next`]. An entry is never replaced.
    pub(crate) fn append(&mut self, entry: E, bytes: usize) {
        self.bytes += bytes;
        self.entries.push_back((entry, bytes));
    }

    /// Drops the entries below `boundary`.
    pub(crate) fn trim(&mut self, boundary: u64) {
        while self.base < boundary {
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

    #[test]
    fn keeps_entries_until_trimmed() {
        let mut journal = Journal::new();
        for s in 0..5u64 {
            assert_eq!(journal.next(), s);
            assert_eq!(journal.get(s), None);
            journal.append(s * 10, 100);
        }
        journal.trim(3);
        assert_eq!(journal.bytes(), 200);
        assert_eq!(journal.get(2), None);
        assert_eq!(journal.get(3), Some(&30));
        assert_eq!(journal.get(4), Some(&40));
        assert_eq!(journal.next(), 5);
        // Beyond what was written: nothing is invented, numbers go on where they were.
        journal.trim(99);
        assert_eq!((journal.bytes(), journal.next()), (0, 5));
    }
}
