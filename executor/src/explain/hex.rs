//! Two buffers one above the other, as hex and as text, with the bytes that differ marked.

use std::fmt::Write as _;

/// Bytes of a row.
const ROW: usize = 16;
/// Rows with a difference that are shown; the rest is counted.
const MAX_ROWS: usize = 12;

/// The two sides of a difference.
#[derive(Clone, Copy, Debug)]
pub struct Sides<'a> {
    /// Name and bytes of the first, the healthy one.
    pub one: (&'a str, &'a [u8]),
    /// Of the other.
    pub two: (&'a str, &'a [u8]),
    /// What the first byte is numbered with.
    pub base: u64,
}

/// The rows in which the sides differ, each with the row before it if that is the same. Every line ends with a line feed.
#[must_use]
pub fn diff(sides: &Sides<'_>) -> String {
    let (one, two) = (sides.one.1, sides.two.1);
    let rows = one.len().max(two.len()).div_ceil(ROW);
    let row = |bytes: &[u8], at: usize| -> Vec<u8> {
        let from = (at * ROW).min(bytes.len());
        let to = (from + ROW).min(bytes.len());
        bytes[from..to].to_vec()
    };
    let differ: Vec<usize> = (0..rows)
        .filter(|at| row(one, *at) != row(two, *at))
        .collect();
    let width = sides.one.0.chars().count().max(sides.two.0.chars().count());
    let mut text = String::new();
    for (index, at) in differ.iter().take(MAX_ROWS).enumerate() {
        let context = at
            .checked_sub(1)
            .filter(|before| index == 0 || differ[index - 1] + 1 < *before);
        let line = |text: &mut String, name: &str, bytes: &[u8], at: usize| {
            let address = sides.base + (at * ROW) as u64;
            let _ = writeln!(text, "{name:>width$}  {address:04x}  {}", cells(bytes));
        };
        if let Some(before) = context {
            line(&mut text, "", &row(one, before), before);
        }
        let (left, right) = (row(one, *at), row(two, *at));
        line(&mut text, sides.one.0, &left, *at);
        line(&mut text, sides.two.0, &right, *at);
        let address = format!("{:04x}", sides.base + (at * ROW) as u64);
        let _ = writeln!(
            text,
            "{:width$}  {:address$}  {}",
            "",
            "",
            marks(&left, &right),
            address = address.len()
        );
    }
    if differ.len() > MAX_ROWS {
        let _ = writeln!(
            text,
            "… and {} more rows of {ROW} bytes",
            differ.len() - MAX_ROWS
        );
    }
    if one.len() != two.len() {
        let _ = writeln!(
            text,
            "{} has {} bytes, {} has {}",
            sides.one.0,
            one.len(),
            sides.two.0,
            two.len()
        );
    }
    text
}

/// A whole buffer of at most `rows` rows.
#[must_use]
pub fn dump(bytes: &[u8], base: u64, rows: usize) -> String {
    let mut text = String::new();
    for (index, row) in bytes.chunks(ROW).take(rows).enumerate() {
        let _ = writeln!(text, "{:04x}  {}", base + (index * ROW) as u64, cells(row));
    }
    let left = bytes.len().saturating_sub(rows * ROW);
    if left > 0 {
        let _ = writeln!(text, "… and {left} more bytes");
    }
    text
}

fn cells(bytes: &[u8]) -> String {
    let mut hex = String::new();
    for byte in bytes {
        let _ = write!(hex, "{byte:02x} ");
    }
    let text: String = bytes.iter().map(|byte| printable(*byte)).collect();
    format!("{hex:<48} |{text}|")
}

fn marks(one: &[u8], two: &[u8]) -> String {
    let differs: Vec<bool> = (0..one.len().max(two.len()))
        .map(|at| one.get(at) != two.get(at))
        .collect();
    let hex: String = differs
        .iter()
        .map(|d| if *d { "^^ " } else { "   " })
        .collect();
    let text: String = differs.iter().map(|d| if *d { '^' } else { ' ' }).collect();
    format!("{hex:<48}  {text}").trim_end().to_owned()
}

fn printable(byte: u8) -> char {
    if (0x20..0x7f).contains(&byte) {
        char::from(byte)
    } else {
        '.'
    }
}

/// Bytes as a string literal, as `strace` shows them, at most `max` of them.
#[must_use]
pub fn quoted(bytes: &[u8], max: usize) -> String {
    let mut text = String::from('"');
    for byte in bytes.iter().take(max) {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            b'"' | b'\\' => {
                text.push('\\');
                text.push(char::from(*byte));
            }
            0x20..0x7f => text.push(char::from(*byte)),
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text.push('"');
    if bytes.len() > max {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn only_rows_that_differ_are_shown_with_marks_under_the_bytes() {
        let one: Vec<u8> = (0..64).map(|i| b'a' + i % 26).collect();
        let mut two = one.clone();
        two[37] ^= 1;
        let text = diff(&Sides {
            one: ("healthy", &one),
            two: ("replica 1", &two),
            base: 0,
        });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[1].starts_with("  healthy  0020  67 68"), "{text}");
        let (mark, byte) = (lines[3].find("^^").unwrap(), lines[2].find("6d").unwrap());
        assert_eq!(mark, byte, "{text}");
        assert_eq!(lines[3].matches('^').count(), 3, "{text}");
        let place = lines[3].rfind('^').unwrap();
        assert_eq!(lines[2].as_bytes()[place], b'm', "{text}");
    }

    #[test]
    fn a_missing_tail_is_a_difference() {
        let text = diff(&Sides {
            one: ("a", b"0123456789"),
            two: ("b", b"01234"),
            base: 0x100,
        });
        assert!(text.contains("0100"), "{text}");
        assert!(text.contains("a has 10 bytes, b has 5"), "{text}");
        assert_eq!(text.matches("^^").count(), 5 + 2, "{text}");
    }

    #[test]
    fn equal_buffers_give_nothing_and_long_ones_are_cut() {
        let same = diff(&Sides {
            one: ("a", b"x"),
            two: ("b", b"x"),
            base: 0,
        });
        assert_eq!(same, "");
        let long = diff(&Sides {
            one: ("a", &[0; 4096]),
            two: ("b", &[1; 4096]),
            base: 0,
        });
        assert!(long.contains("244 more rows"), "{long}");
    }

    #[test]
    fn strings_are_shown_as_strace_does() {
        assert_eq!(quoted(b"$3\r\n\"\x00", 10), r#""$3\r\n\"\x00""#);
        assert_eq!(quoted(b"abcdef", 3), "\"abc\"…");
    }
}
