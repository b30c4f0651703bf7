//! One replica's stream on its way through the masks.

use std::collections::VecDeque;

use super::http::{Found, Http};
use super::{MARKER, MarkerKey, MaskSet, lines};

/// A hidden value.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    /// Position of its marker in the rewritten stream.
    pub(crate) at: u64,
    pub(crate) rule: u8,
    pub(crate) bytes: Vec<u8>,
}

/// Parser, what is held back, and the values hidden so far.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    http: Http,
    /// A line that has not ended.
    line: Vec<u8>,
    /// The rest of the line was given up: it passes as it is.
    given_up: bool,
    /// Bytes put in, and bytes that came out.
    pub(crate) own: u64,
    pub(crate) rewritten: u64,
    /// Values that are not dropped yet; the number of the first; and how much longer the replica's stream was than the
    /// rewritten one before it.
    pub(crate) values: VecDeque<Value>,
    pub(crate) first: u64,
    longer: i64,
}

impl Lane {
    pub(crate) fn new() -> Self {
        Self {
            http: Http::new(),
            line: Vec::new(),
            given_up: false,
            own: 0,
            rewritten: 0,
            values: VecDeque::new(),
            first: 0,
            longer: 0,
        }
    }

    /// A lane at the beginning of a message, after `own` bytes of the replica's, `rewritten` bytes of the stream and so many values.
    pub(crate) fn at(own: u64, rewritten: u64, values: u64) -> Self {
        Self {
            own,
            rewritten,
            first: values,
            longer: own.wrapping_sub(rewritten) as i64,
            ..Self::new()
        }
    }

    /// Bytes held back: of a value or a line that has not ended.
    pub(crate) fn held(&self) -> usize {
        self.line.len() + self.http.held()
    }

    /// Rewrites `bytes`, as far as they can be, onto the end of `out`.
    pub(crate) fn push(&mut self, set: &MaskSet, key: &MarkerKey, bytes: &[u8], out: &mut Vec<u8>) {
        self.own += bytes.len() as u64;
        let mut http = std::mem::replace(&mut self.http, Http::new());
        http.push(set, bytes, |found| self.found(set, key, found, out));
        self.http = http;
    }

    /// What is held back is not waited for any longer: it passes as it is, unmasked.
    pub(crate) fn flush(&mut self, set: &MaskSet, key: &MarkerKey, out: &mut Vec<u8>) {
        let mut http = std::mem::replace(&mut self.http, Http::new());
        http.flush(|found| self.found(set, key, found, out));
        self.http = http;
        if !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            self.plain(&line, out);
            self.given_up = true;
        }
    }

    /// The stream ended: so did its last line.
    pub(crate) fn end(&mut self, set: &MaskSet, key: &MarkerKey, out: &mut Vec<u8>) {
        self.cut(set, key, out);
        self.flush(set, key, out);
    }

    fn found(&mut self, set: &MaskSet, key: &MarkerKey, found: Found<'_>, out: &mut Vec<u8>) {
        match found {
            Found::Plain(bytes) if set.rules.patterns.is_empty() => self.plain(bytes, out),
            Found::Plain(bytes) => self.search(set, key, bytes, out),
            Found::Value(rule, value) => {
                self.cut(set, key, out);
                self.hide(key, rule, value, out);
            }
            Found::Message => self.cut(set, key, out),
        }
    }

    /// A line ends here, whatever comes next.
    fn cut(&mut self, set: &MaskSet, key: &MarkerKey, out: &mut Vec<u8>) {
        let line = std::mem::take(&mut self.line);
        self.whole(set, key, &line, out);
        self.given_up = false;
    }

    fn search(&mut self, set: &MaskSet, key: &MarkerKey, mut bytes: &[u8], out: &mut Vec<u8>) {
        if self.given_up {
            let end = bytes.iter().position(|b| *b == b'\n');
            let (rest, more) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
            self.plain(rest, out);
            self.given_up = end.is_none();
            bytes = more;
        }
        if !self.line.is_empty() {
            let had = self.line.len();
            let mut line = std::mem::take(&mut self.line);
            let room = super::PATTERN_BOUND - had;
            line.extend_from_slice(&bytes[..bytes.len().min(room)]);
            match lines::segment(&line) {
                Some(end) => {
                    self.whole(set, key, &line[..end], out);
                    bytes = &bytes[end - had..];
                }
                None => {
                    self.line = line;
                    return;
                }
            }
        }
        while let Some(end) = lines::segment(bytes) {
            self.whole(set, key, &bytes[..end], out);
            bytes = &bytes[end..];
        }
        self.line.extend_from_slice(bytes);
    }

    fn whole(&mut self, set: &MaskSet, key: &MarkerKey, line: &[u8], out: &mut Vec<u8>) {
        let mut from = 0;
        for (range, rule) in lines::hidden(set, line) {
            self.plain(&line[from..range.start], out);
            self.hide(key, rule, &line[range.clone()], out);
            from = range.end;
        }
        self.plain(&line[from..], out);
    }

    fn plain(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(bytes);
        self.rewritten += bytes.len() as u64;
    }

    fn hide(&mut self, key: &MarkerKey, rule: u8, value: &[u8], out: &mut Vec<u8>) {
        self.values.push_back(Value {
            at: self.rewritten,
            rule,
            bytes: value.to_vec(),
        });
        out.extend_from_slice(&key.marker(rule));
        self.rewritten += MARKER as u64;
    }

    /// Drops the oldest value.
    pub(crate) fn drop_first(&mut self) {
        if let Some(value) = self.values.pop_front() {
            self.first += 1;
            self.longer += value.bytes.len() as i64 - MARKER as i64;
        }
    }

    /// Position in the replica's own stream of a position in the rewritten one.
    pub(crate) fn position(&self, rewritten: u64) -> u64 {
        let mut longer = self.longer;
        let mut at = rewritten;
        for value in &self.values {
            if value.at >= rewritten {
                break;
            }
            if value.at + MARKER as u64 > rewritten {
                // Within a marker: where its value begins.
                at = value.at;
                break;
            }
            longer += value.bytes.len() as i64 - MARKER as i64;
        }
        at.saturating_add_signed(longer)
    }
}
