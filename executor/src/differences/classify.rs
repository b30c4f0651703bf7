//! What was asked, and in which way two answers to it differ: guessed from the few bytes that a difference shows.

use std::fmt;

use quorate_voter::relaxed::Departure;
use serde::Serialize;

/// Longest name of a request in a report, bytes.
const MAX_COMMAND: usize = 48;
/// Methods of HTTP.
const METHODS: &[&str] = &[
    "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE",
];

/// In which way an answer differs from what was released.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Another value.
    Value,
    /// Another number.
    Number,
    /// The same elements in another order.
    Order,
    /// An error, where an answer was released.
    Error,
    /// An answer, where an error was released.
    NoError,
    /// Another error.
    ErrorText,
    /// Another status of an HTTP answer.
    Status,
    /// Another value of this header of an HTTP answer.
    Header(String),
    /// One of both has a header that the other one has not, at this place.
    Headers,
    /// Another kind of value (of the Redis protocol).
    Kind,
    /// It ended the connection where the released answer goes on.
    EndedEarly,
    /// It said more than was released.
    GoesOn,
    /// It ended the connection in another way.
    OtherEnd,
    /// It did not answer in time.
    Missing,
    /// It said something unasked.
    Spurious,
    /// It crashed.
    Crashed,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Value => "another value",
            Self::Number => "another number",
            Self::Order => "the same elements in another order",
            Self::Error => "an error instead of the answer",
            Self::NoError => "an answer instead of the error",
            Self::ErrorText => "another error",
            Self::Status => "another status",
            Self::Header(name) => return write!(f, "another value of the header {name}"),
            Self::Headers => "other headers",
            Self::Kind => "another kind of value",
            Self::EndedEarly => "the connection ends where the answer goes on",
            Self::GoesOn => "more than the answer",
            Self::OtherEnd => "the connection ends in another way",
            Self::Missing => "no answer in time",
            Self::Spurious => "something unasked",
            Self::Crashed => "crashed",
        };
        f.write_str(text)
    }
}

/// What a request asks: the command of the Redis protocol, method and path of HTTP, or the first word of a line.
#[must_use]
pub fn command(request: Option<&[u8]>) -> String {
    let Some(request) = request else {
        return "unknown request".to_owned();
    };
    if request.is_empty() {
        return "nothing asked".to_owned();
    }
    let mut lines = request
        .split(|byte| *byte == b'\n')
        .map(|line| line.trim_ascii());
    let first = lines.next().unwrap_or_default();
    if first.first() == Some(&b'*')
        && lines.next().is_some_and(|line| line.first() == Some(&b'$'))
        && let Some(name) = lines.next().and_then(word)
    {
        return name.to_ascii_uppercase();
    }
    let mut words = first.split(|byte| *byte == b' ');
    let Some(name) = words.next().and_then(word) else {
        return "not text".to_owned();
    };
    match words.next().and_then(path) {
        Some(path) if METHODS.contains(&name.as_str()) => short(format!("{name} {path}")),
        _ => short(name.to_ascii_uppercase()),
    }
}

fn short(mut text: String) -> String {
    if text.len() > MAX_COMMAND {
        text.truncate(MAX_COMMAND);
        text.push('…');
    }
    text
}

/// A word of letters, digits and marks that commands have.
fn word(bytes: &[u8]) -> Option<String> {
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.|:".contains(byte);
    let fits = !bytes.is_empty() && bytes.len() <= MAX_COMMAND && bytes.iter().all(good);
    fits.then(|| String::from_utf8_lossy(bytes).into_owned())
}

/// A path without what comes after `?`.
fn path(bytes: &[u8]) -> Option<String> {
    let path = bytes.split(|byte| *byte == b'?').next()?;
    let graphic = path.starts_with(b"/") && path.iter().all(u8::is_ascii_graphic);
    graphic.then(|| String::from_utf8_lossy(path).into_owned())
}

/// In which way `said` differs from `released`.
#[must_use]
pub fn classify(kind: Departure, released: &[u8], said: &[u8]) -> Class {
    match kind {
        Departure::Bytes => by_bytes(released, said),
        Departure::EndedEarly => Class::EndedEarly,
        Departure::GoesOn => Class::GoesOn,
        Departure::OtherEnd => Class::OtherEnd,
        Departure::Missing => Class::Missing,
        Departure::Spurious => Class::Spurious,
        Departure::Crashed => Class::Crashed,
    }
}

fn by_bytes(released: &[u8], said: &[u8]) -> Class {
    let same = released
        .iter()
        .zip(said)
        .take_while(|(a, b)| a == b)
        .count();
    // The line in which they part, from its start.
    let common = released.get(..same).unwrap_or_default();
    let start = common
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let from = |bytes: &'_ [u8]| bytes.get(start..).unwrap_or_default().to_vec();
    let (released, said) = (from(released), from(said));
    let (a, b) = (first_line(&released), first_line(&said));
    match (a.first(), b.first()) {
        (Some(b'-'), Some(b'-')) => return Class::ErrorText,
        (Some(_), Some(b'-')) => return Class::Error,
        (Some(b'-'), Some(_)) => return Class::NoError,
        _ => {}
    }
    if a.starts_with(b"HTTP/") && b.starts_with(b"HTTP/") {
        return Class::Status;
    }
    if let (Some(a), Some(b)) = (header(a), header(b)) {
        return match a.eq_ignore_ascii_case(&b) {
            true => Class::Header(a),
            false => Class::Headers,
        };
    }
    if same_elements(&released, &said) {
        return Class::Order;
    }
    match (a.first(), b.first()) {
        (Some(b':'), Some(b':')) => Class::Number,
        (Some(a), Some(b)) if a != b && is_kind(*a) && is_kind(*b) => Class::Kind,
        _ => Class::Value,
    }
}

/// First bytes of values in the Redis protocol.
fn is_kind(byte: u8) -> bool {
    b"+:$*_,#(!=%~>".contains(&byte)
}

fn first_line(bytes: &[u8]) -> &[u8] {
    bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default()
        .trim_ascii_end()
}

/// The name of a header of HTTP, if the line is one.
fn header(line: &[u8]) -> Option<String> {
    let at = line.windows(2).position(|pair| pair == b": ")?;
    let name = line.get(..at)?;
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    let fits = name.first().is_some_and(u8::is_ascii_uppercase) && name.iter().all(token);
    fits.then(|| String::from_utf8_lossy(name).into_owned())
}

/// Whether both have the same whole lines, in another order. The last one may be cut off.
fn same_elements(a: &[u8], b: &[u8]) -> bool {
    let lines = |bytes: &[u8]| {
        let mut lines: Vec<Vec<u8>> = bytes
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        lines.pop();
        lines.sort();
        lines
    };
    let (a, b) = (lines(a), lines(b));
    a.len() > 1 && a == b
}
