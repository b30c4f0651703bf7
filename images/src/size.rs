//! Sizes as people write them: `4096`, `64K`, `256M`, `1G`, `1T` (powers of 1024).

/// Why a size is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not of the form number, suffix.
    #[error("`{0}` is not a size; write a whole number with K, M, G or T, such as \"256M\"")]
    Malformed(String),
    /// Beyond 64 bits.
    #[error("`{0}` is too large a size")]
    TooLarge(String),
}

/// Reads a size in bytes. A suffix of `K`, `M`, `G`, `T` (or `k`, `m`, `g`, `t`, and optionally `iB` behind it) multiplies by 1024, 1024²,
/// 1024³, 1024⁴.
///
/// # Errors
/// [`SizeError`].
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed(text.to_owned());
    let body = text.trim();
    let digits = body
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(body.len());
    let (number, suffix) = body.split_at(digits);
    let shift = match suffix.trim_start() {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return Err(malformed()),
    };
    if number.is_empty() {
        return Err(malformed());
    }
    // All digits, so the only way to fail is to be too large.
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

/// Writes a size in the shortest of those forms that is exact.
#[must_use]
pub fn format(bytes: u64) -> String {
    for (shift, suffix) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_that_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64K", 65_536),
            ("64k", 65_536),
            ("256M", 268_435_456),
            (" 256 MiB ", 268_435_456),
            ("2G", 2_147_483_648),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn sizes_that_are_refused() {
        for text in ["", "M", "12X", "1.5G", "-1", "1 2", "1MB", "0x10", "1Mb"] {
            assert!(
                matches!(parse(text), Err(SizeError::Malformed(_))),
                "{text}"
            );
        }
        for text in ["18446744073709551616", "17179869184G", "16777216T"] {
            assert!(matches!(parse(text), Err(SizeError::TooLarge(_))), "{text}");
        }
    }

    proptest! {
        #[test]
        fn format_is_read_back(bytes: u64) {
            prop_assert_eq!(parse(&format(bytes)).unwrap(), bytes);
        }

        #[test]
        fn any_text_is_safe(text in ".{0,12}") {
            let _ = parse(&text);
        }
    }
}
