//! HTTP/1 answers, as they stream by: where heads are, and in them the values of headers.
//!
//! The parser looks at what replicas say to clients. It does not see requests, so that an answer to HEAD is known by
//! the next answer that begins where its body would, unless that has less than seven bytes. What is no HTTP/1 answer passes unmasked, to the end of the connection.

use super::{HEADER_BOUND, MaskSet};

/// Longest name of a header that is looked at.
pub(super) const MAX_NAME: usize = 64;
/// Longest head; what has a longer one is not HTTP for this parser.
const MAX_HEAD: usize = 64 << 10;
/// Longest value of a header that frames a body, and longest line that begins a chunk.
const MAX_FRAMING: usize = 256;
const BEGIN: &[u8] = b"HTTP/1.";

/// What the parser has found.
pub(super) enum Found<'a> {
    /// Passes as it is.
    Plain(&'a [u8]),
    /// The value of a masked header.
    Value(u8, &'a [u8]),
    /// An answer ended.
    Message,
}

#[derive(Clone, Debug)]
enum State {
    /// The status line, of which so many bytes were seen.
    Status,
    /// A header line up to its colon.
    Name,
    /// The rest of the line after the colon.
    Line(Line),
    Body(u64),
    /// The line with a chunk's size.
    Size,
    /// Bytes of a chunk with its end of line.
    Chunk(u64),
    /// Lines after the last chunk; the flag: the line is empty so far.
    Trailer(bool),
    /// Until the connection ends.
    Opaque,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Other,
    Masked(u8),
    Length,
    Encoding,
    /// A masked one that is also needed.
    MaskedLength(u8),
}

/// The parser's state, for one replica's stream.
#[derive(Clone, Debug)]
pub(super) struct Http {
    state: State,
    /// What is collected of the line: status line, name, value.
    line: Vec<u8>,
    head: usize,
    status: u16,
    length: Option<u64>,
    chunked: bool,
    /// Bytes of [`BEGIN`] seen at the start of a body.
    again: usize,
}

impl Http {
    pub(super) fn new() -> Self {
        Self {
            state: State::Status,
            line: Vec::new(),
            head: 0,
            status: 0,
            length: None,
            chunked: false,
            again: 0,
        }
    }

    /// Bytes of a masked value that has not ended.
    pub(super) fn held(&self) -> usize {
        match self.state {
            State::Line(Line::Masked(_) | Line::MaskedLength(_)) => self.line.len(),
            _ => 0,
        }
    }

    /// What is held passes as it is, and so does the rest of its line.
    pub(super) fn flush(&mut self, mut emit: impl FnMut(Found<'_>)) {
        if self.held() > 0 {
            emit(Found::Plain(&self.line));
            self.line.clear();
            self.state = State::Line(Line::Other);
        }
    }

    pub(super) fn push(
        &mut self,
        set: &MaskSet,
        mut bytes: &[u8],
        mut emit: impl FnMut(Found<'_>),
    ) {
        while !bytes.is_empty() {
            let took = match self.state.clone() {
                State::Opaque => {
                    emit(Found::Plain(bytes));
                    bytes.len()
                }
                State::Status => self.status(bytes, &mut emit),
                State::Name => self.name(set, bytes, &mut emit),
                State::Line(line) => self.value(line, bytes, &mut emit),
                State::Body(left) => self.body(left, bytes, &mut emit),
                State::Size => self.size(bytes, &mut emit),
                State::Chunk(left) => {
                    let took = take(left, bytes);
                    emit(Found::Plain(&bytes[..took]));
                    self.state = match left - took as u64 {
                        0 => State::Size,
                        left => State::Chunk(left),
                    };
                    took
                }
                State::Trailer(empty) => self.trailer(empty, bytes, &mut emit),
            };
            bytes = &bytes[took..];
        }
    }

    /// Collects what is left of a line, up to a bound. True once it has ended.
    fn collect(&mut self, bytes: &[u8], bound: usize) -> (usize, bool) {
        let end = bytes.iter().position(|b| *b == b'\n');
        let took = end.map_or(bytes.len(), |end| end + 1);
        let room = bound.saturating_sub(self.line.len());
        self.line.extend_from_slice(&bytes[..took.min(room)]);
        (took, end.is_some())
    }

    fn status(&mut self, bytes: &[u8], emit: &mut impl FnMut(Found<'_>)) -> usize {
        let (took, ended) = self.collect(bytes, MAX_FRAMING);
        emit(Found::Plain(&bytes[..took]));
        let seen = self.line.len().min(BEGIN.len());
        self.head += took;
        // Bounds are looked at where lines end, so that fragments make no difference.
        if self.line[..seen] != BEGIN[..seen] || (ended && self.head > MAX_HEAD) {
            self.state = State::Opaque;
        } else if ended {
            let code = self.line.get(BEGIN.len() + 2..BEGIN.len() + 5);
            let code = code.and_then(|code| std::str::from_utf8(code).ok());
            self.status = code.and_then(|code| code.parse().ok()).unwrap_or(0);
            self.state = State::Name;
            self.line.clear();
        }
        took
    }

    fn name(&mut self, set: &MaskSet, bytes: &[u8], emit: &mut impl FnMut(Found<'_>)) -> usize {
        let end = bytes.iter().position(|b| *b == b':' || *b == b'\n');
        let took = end.map_or(bytes.len(), |end| end + 1);
        emit(Found::Plain(&bytes[..took]));
        let room = (MAX_NAME + 2).saturating_sub(self.line.len());
        self.line.extend_from_slice(&bytes[..took.min(room)]);
        self.head += took;
        if let Some(end) = end {
            let line = std::mem::take(&mut self.line);
            if bytes[end] == b':' {
                let name = line.strip_suffix(b":").unwrap_or(b"");
                self.state = State::Line(kind(set, name));
            } else if line == b"\r\n" || line == b"\n" {
                self.head_ended(emit);
            } else if self.head > MAX_HEAD {
                self.state = State::Opaque;
            }
        }
        took
    }

    /// A folded line after a masked one is none: it begins with a space and has no name.
    fn value(&mut self, line: Line, bytes: &[u8], emit: &mut impl FnMut(Found<'_>)) -> usize {
        let masked = match line {
            Line::Masked(rule) | Line::MaskedLength(rule) => Some(rule),
            _ => None,
        };
        let bound = match masked {
            Some(_) => HEADER_BOUND,
            None => MAX_FRAMING,
        };
        let had = self.line.len();
        let (took, ended) = self.collect(bytes, bound);
        self.head += took;
        match masked {
            None => emit(Found::Plain(&bytes[..took])),
            // Too long to be hidden: what was held, and what follows, is compared.
            Some(_) if had + took > self.line.len() => {
                emit(Found::Plain(&self.line[..had]));
                emit(Found::Plain(&bytes[..took]));
                self.state = State::Line(Line::Other);
            }
            Some(rule) if ended => {
                let all = &self.line;
                let value = all.strip_suffix(b"\n").unwrap_or(all);
                let value = value.strip_suffix(b"\r").unwrap_or(value);
                emit(Found::Value(rule, value));
                emit(Found::Plain(&all[value.len()..]));
            }
            Some(_) => {}
        }
        if ended {
            let text = std::str::from_utf8(&self.line).unwrap_or("").trim();
            match line {
                Line::Length | Line::MaskedLength(_) => self.length = text.parse().ok(),
                Line::Encoding => {
                    let last = text.rsplit(',').next().unwrap_or("");
                    self.chunked = last.trim().eq_ignore_ascii_case("chunked");
                }
                Line::Other | Line::Masked(_) => {}
            }
            self.line.clear();
            self.state = match self.head > MAX_HEAD {
                true => State::Opaque,
                false => State::Name,
            };
        }
        took
    }

    fn head_ended(&mut self, emit: &mut impl FnMut(Found<'_>)) {
        self.again = 0;
        self.state = match (self.status, self.chunked, self.length) {
            (101, _, _) => State::Opaque,
            (100..=199 | 204 | 304, _, _) | (_, false, Some(0)) => return self.message(emit),
            (_, true, _) => State::Size,
            (_, false, Some(length)) => State::Body(length),
            (_, false, None) => State::Opaque,
        };
    }

    fn message(&mut self, emit: &mut impl FnMut(Found<'_>)) {
        emit(Found::Message);
        *self = Self::new();
    }

    fn body(&mut self, left: u64, bytes: &[u8], emit: &mut impl FnMut(Found<'_>)) -> usize {
        let took = take(left, bytes);
        let bytes = &bytes[..took];
        // An answer to HEAD has no body: the next answer begins here.
        if self.again < BEGIN.len() {
            let more = bytes.iter().zip(&BEGIN[self.again..]);
            let same = more.take_while(|(a, b)| a == b).count();
            self.again += same;
            if self.again == BEGIN.len() {
                emit(Found::Plain(&bytes[..same]));
                let fresh = Self::new();
                *self = Self {
                    line: BEGIN.to_vec(),
                    head: BEGIN.len(),
                    ..fresh
                };
                return same;
            }
            if same < bytes.len() {
                self.again = usize::MAX;
            }
        }
        emit(Found::Plain(bytes));
        match left - took as u64 {
            0 => self.message(emit),
            left => self.state = State::Body(left),
        }
        took
    }

    fn size(&mut self, bytes: &[u8], emit: &mut impl FnMut(Found<'_>)) -> usize {
        let (took, ended) = self.collect(bytes, MAX_FRAMING);
        emit(Found::Plain(&bytes[..took]));
        if ended {
            let line = std::mem::take(&mut self.line);
            let text = std::str::from_utf8(&line).unwrap_or("");
            let digits = text.split(';').next().unwrap_or("").trim();
            self.state = match u64::from_str_radix(digits, 16) {
                Ok(0) => State::Trailer(true),
                // And the end of its line.
                Ok(size) => State::Chunk(size.saturating_add(2)),
                Err(_) => State::Opaque,
            };
        }
        took
    }

    fn trailer(
        &mut self,
        mut empty: bool,
        bytes: &[u8],
        emit: &mut impl FnMut(Found<'_>),
    ) -> usize {
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' if empty => {
                    emit(Found::Plain(&bytes[..=at]));
                    self.message(emit);
                    return at + 1;
                }
                b'\n' => empty = true,
                b'\r' => {}
                _ => empty = false,
            }
        }
        emit(Found::Plain(bytes));
        self.state = State::Trailer(empty);
        bytes.len()
    }
}

fn take(left: u64, bytes: &[u8]) -> usize {
    usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()))
}

fn kind(set: &MaskSet, name: &[u8]) -> Line {
    let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
    let masked = set.rules.headers.iter().find(|h| is(&h.name));
    match masked.map(|h| h.rule) {
        Some(rule) if is("content-length") => Line::MaskedLength(rule),
        Some(rule) => Line::Masked(rule),
        None if is("content-length") => Line::Length,
        None if is("transfer-encoding") => Line::Encoding,
        None => Line::Other,
    }
}
