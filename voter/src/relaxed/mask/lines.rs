//! Patterns, which look at one line at a time.

use std::ops::Range;

use super::{MaskSet, PATTERN_BOUND};

/// Length of the next line of `bytes` with its end, cut at [`PATTERN_BOUND`]; `None` while it has not ended. It depends on the
/// content alone, not on how it arrives.
pub(super) fn segment(bytes: &[u8]) -> Option<usize> {
    let most = bytes.len().min(PATTERN_BOUND);
    let end = bytes[..most].iter().position(|b| *b == b'\n');
    end.map(|end| end + 1)
        .or((most == PATTERN_BOUND).then_some(PATTERN_BOUND))
}

/// What the patterns hide in a line: ranges in order that do not overlap; where they would, the earlier one counts, then
/// the earlier rule.
pub(super) fn hidden(set: &MaskSet, line: &[u8]) -> Vec<(Range<usize>, u8)> {
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let mut found = Vec::new();
    for pattern in &set.rules.patterns {
        if pattern.regex.captures_len() == 1 {
            let all = pattern.regex.find_iter(text);
            found.extend(all.map(|m| (m.range(), pattern.rule)));
            continue;
        }
        for captures in pattern.regex.captures_iter(text) {
            let groups = captures.iter().skip(1).flatten();
            found.extend(groups.map(|m| (m.range(), pattern.rule)));
        }
    }
    found.sort_by_key(|(range, rule)| (range.start, *rule));
    let mut end = 0;
    found.retain(|(range, _)| {
        let free = range.start >= end;
        if free {
            end = range.end;
        }
        free
    });
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Mask, MaskRule};
    use super::*;

    fn set(patterns: &[&str]) -> MaskSet {
        let mask = |p: &&str| Mask {
            name: (*p).into(),
            rule: MaskRule::Pattern((*p).into()),
            translate: false,
        };
        MaskSet::new(&patterns.iter().map(mask).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn groups_are_hidden_or_the_whole_match() {
        let found = hidden(&set(&["a(b+)(c)?", "x+"]), b"abbcxx ab\r\n");
        assert_eq!(found, [(1..3, 0), (3..4, 0), (4..6, 1), (8..9, 0)]);
        // The end of the line is no part of it.
        assert_eq!(hidden(&set(&["b$"]), b"ab\r\n"), [(1..2, 0)]);
        assert_eq!(hidden(&set(&[r"b\s"]), b"ab\r\n"), []);
    }

    #[test]
    fn of_two_that_overlap_the_earlier_counts() {
        let found = hidden(&set(&["bcd", "abc", "bcde"]), b"abcd bcd");
        assert_eq!(found, [(0..3, 1), (5..8, 0)]);
    }

    #[test]
    fn lines_end_by_content_alone() {
        assert_eq!(segment(b"a\nb"), Some(2));
        assert_eq!(segment(b"ab"), None);
        let long = [b'x'; PATTERN_BOUND + 1];
        assert_eq!(segment(&long), Some(PATTERN_BOUND));
        assert_eq!(segment(&long[..PATTERN_BOUND - 1]), None);
    }
}
