//! Numbers and hostile text as a reader should see them.

/// Characters of a text from a guest or a file that are shown (R10).
pub const SHOWN: usize = 300;

/// Text from a guest or a file, made harmless to look at: control characters and those that change the direction of writing are
/// shown as escapes, and what is too long is cut. HTML is escaped by `maud`, not here.
#[must_use]
pub fn shown(text: &str) -> String {
    let mut out = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == SHOWN {
            out.push('…');
            break;
        }
        if hides(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// As [`shown`], but lines stay lines and nothing is cut: for the text of the campaign.
#[must_use]
pub fn shown_lines(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if hides(c) && c != '\n' && c != '\t' {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Control characters, marks of writing direction and invisible ones.
fn hides(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
}

/// A word for a POSIX shell.
#[must_use]
pub fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// `10000` as `10,000`.
#[must_use]
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A share as a percentage with two significant digits at least: `0.037 %`, `4.2 %`, `23.4 %`, `100 %`.
#[must_use]
pub fn percent(share: f64) -> String {
    let p = share * 100.0;
    let text = match p {
        _ if !p.is_finite() => return "–".to_owned(),
        _ if p == 0.0 => "0".to_owned(),
        _ if p < 0.0001 => "<0.0001".to_owned(),
        _ if p < 0.001 => format!("{p:.5}"),
        _ if p < 0.01 => format!("{p:.4}"),
        _ if p < 0.1 => format!("{p:.3}"),
        _ if p < 1.0 => format!("{p:.2}"),
        _ if p < 99.95 => trim(format!("{p:.1}")),
        _ if p < 100.0 => ">99.9".to_owned(),
        _ => "100".to_owned(),
    };
    format!("{text} %")
}

/// A number with three significant digits.
#[must_use]
pub fn three(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => "–".to_owned(),
        _ if size >= 1000.0 => count(value.round() as u64),
        _ if size >= 100.0 => format!("{value:.0}"),
        _ if size >= 10.0 => trim(format!("{value:.1}")),
        _ => trim(format!("{value:.2}")),
    }
}

fn trim(text: String) -> String {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Nanoseconds with the unit that fits.
#[must_use]
pub fn nanoseconds(ns: f64) -> String {
    match ns {
        _ if ns < 1e3 => format!("{} ns", three(ns)),
        _ if ns < 1e6 => format!("{} µs", three(ns / 1e3)),
        _ if ns < 1e9 => format!("{} ms", three(ns / 1e6)),
        _ => format!("{} s", three(ns / 1e9)),
    }
}

/// Bytes with the unit that fits.
#[must_use]
pub fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..0x10_0000 => format!("{} KiB", three(n as f64 / 1024.0)),
        0x10_0000..0x4000_0000 => format!("{} MiB", three(n as f64 / 1048576.0)),
        _ => format!("{} GiB", three(n as f64 / 1073741824.0)),
    }
}

/// A number of replicas in words, for sentences.
#[must_use]
pub fn replicas(n: u8) -> String {
    match n {
        1 => "Alone".to_owned(),
        2 => "With two replicas".to_owned(),
        3 => "With three replicas".to_owned(),
        4 => "With four replicas".to_owned(),
        5 => "With five replicas".to_owned(),
        _ => format!("With {n} replicas"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_shown_not_obeyed() {
        assert_eq!(
            shown("a\u{202e}b\n\u{1b}[31m"),
            r"a\u{202e}b\u{a}\u{1b}[31m"
        );
        assert_eq!(shown(&"é".repeat(1000)).chars().count(), SHOWN + 1);
        assert_eq!(shown_lines("a\nb\r"), "a\nb\\u{d}");
    }

    #[test]
    fn shell_words_are_one_word() {
        assert_eq!(shell("a/b.toml"), "a/b.toml");
        assert_eq!(shell("a b"), "'a b'");
        assert_eq!(shell("it's $(x)"), r"'it'\''s $(x)'");
        assert_eq!(shell(""), "''");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(percent(0.0), "0 %");
        assert_eq!(percent(0.000369), "0.037 %");
        assert_eq!(percent(0.2345), "23.4 %");
        assert_eq!(percent(0.95), "95 %");
        assert_eq!(percent(0.99999), ">99.9 %");
        assert_eq!(percent(f64::NAN), "–");
        assert_eq!(nanoseconds(1500.0), "1.5 µs");
        assert_eq!(nanoseconds(250e6), "250 ms");
        assert_eq!(three(12345.0), "12,345");
        assert_eq!(bytes(3 << 20), "3 MiB");
    }
}
