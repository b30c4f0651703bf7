//! Bytes from the text that `<[u8]>::escape_ascii` writes.

/// The bytes of `text`. What is no escape that `escape_ascii` writes stands for itself.
#[must_use]
pub fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'\\', [b't', more @ ..]) => Some((b'\t', more)),
            (b'\\', [b'r', more @ ..]) => Some((b'\r', more)),
            (b'\\', [b'n', more @ ..]) => Some((b'\n', more)),
            (b'\\', [mark @ (b'\'' | b'"' | b'\\'), more @ ..]) => Some((*mark, more)),
            (b'\\', [b'x', high, low, more @ ..]) => {
                let digit = |c: &u8| char::from(*c).to_digit(16);
                let byte = digit(high).zip(digit(low)).map(|(h, l)| (h * 16 + l) as u8);
                byte.map(|byte| (byte, more))
            }
            _ => None,
        };
        let (byte, more) = escaped.unwrap_or((first, after));
        bytes.push(byte);
        rest = more;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn what_was_escaped_comes_back(bytes: Vec<u8>) {
            assert_eq!(unescape(&bytes.escape_ascii().to_string()), bytes);
        }

        #[test]
        fn any_text_is_safe(text: String) {
            let _ = unescape(&text);
        }
    }
}
