//! What may differ between replicas: masks.
//!
//! Before a channel with masks is compared, each replica's output is rewritten: what a rule hides is replaced by a
//! *marker*, which is a secret of the run and the rule's number. So two outputs agree if they hide the same rules'
//! values at the same places and are equal everywhere else, whatever the hidden values and however long they are; and a
//! guest cannot say a marker. What is released has the speaker's values. Channels without masks never come here.

mod http;
mod lane;
mod lines;
mod translate;

use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};
use thiserror::Error;

pub(crate) use lane::Lane;
pub use translate::{TRANSLATIONS_KEPT, Translation, Translator};

/// Most rules of one channel (R10).
pub const MAX_MASKS: usize = 64;
/// A pattern never matches across more than this many bytes without an end of line: there the line is cut (R10).
pub const PATTERN_BOUND: usize = 8 << 10;
/// A longer value of a header is not hidden, but compared (R10).
pub const HEADER_BOUND: usize = 8 << 10;
/// Shortest token that is translated, in bytes: shorter ones would be found in inputs by chance.
pub const MIN_TOKEN: usize = 8;
/// Most memory of a compiled pattern, in bytes (R10).
const MAX_COMPILED: usize = 1 << 20;
/// Bytes of a marker: a secret, and a rule.
pub(crate) const MARKER: usize = 17;

/// What a mask hides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MaskRule {
    /// The value of this header in the heads of HTTP/1 answers; names are compared without regard to case.
    HttpHeader(String),
    /// What the groups of this regular expression over bytes match, or the whole match if it has none.
    Pattern(String),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// What it is called in reports.
    pub name: String,
    /// What it hides.
    pub rule: MaskRule,
    /// Replicas' own values are to be put into their inputs in place of the released one: see [`Translator`].
    pub translate: bool,
}

/// Why a set of masks cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MaskError {
    /// More than [`MAX_MASKS`].
    #[error("{0} masks for one channel: {MAX_MASKS} are the most")]
    TooMany(usize),
    /// Not a regular expression, or one that needs too much memory.
    #[error("mask {name}: {reason}")]
    Pattern {
        /// Of the mask.
        name: String,
        /// From the compiler.
        reason: String,
    },
    /// It would match everywhere.
    #[error("mask {0} matches the empty text, so it would match everywhere")]
    Empty(String),
    /// Not a header's name.
    #[error("mask {0}: not a name of a header")]
    Header(String),
}

#[derive(Debug)]
struct Header {
    name: String,
    rule: u8,
}

#[derive(Debug)]
struct Pattern {
    regex: Regex,
    rule: u8,
}

#[derive(Debug, Default)]
struct Rules {
    names: Vec<(String, bool)>,
    headers: Vec<Header>,
    patterns: Vec<Pattern>,
}

/// The rules of one channel. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct MaskSet {
    rules: Arc<Rules>,
}

impl MaskSet {
    /// Compiles rules.
    ///
    /// # Errors
    /// Names the rule that cannot be used, and why.
    pub fn new(masks: &[Mask]) -> Result<Self, MaskError> {
        if masks.len() > MAX_MASKS {
            return Err(MaskError::TooMany(masks.len()));
        }
        let mut rules = Rules::default();
        for (rule, mask) in (0..).zip(masks) {
            let name = mask.name.clone();
            match &mask.rule {
                MaskRule::HttpHeader(header) => {
                    if header.is_empty() || header.len() > http::MAX_NAME {
                        return Err(MaskError::Header(name));
                    }
                    let name = header.to_ascii_lowercase();
                    rules.headers.push(Header { name, rule });
                }
                MaskRule::Pattern(pattern) => {
                    let regex = RegexBuilder::new(pattern)
                        .size_limit(MAX_COMPILED)
                        .build()
                        .map_err(|e| MaskError::Pattern {
                            name: name.clone(),
                            reason: e.to_string(),
                        })?;
                    if regex.is_match(b"") {
                        return Err(MaskError::Empty(name));
                    }
                    rules.patterns.push(Pattern { regex, rule });
                }
            }
            rules.names.push((name, mask.translate));
        }
        Ok(Self {
            rules: Arc::new(rules),
        })
    }

    /// Nothing is hidden.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.names.is_empty()
    }

    pub(crate) fn translates(&self, rule: u8) -> bool {
        let found = self.rules.names.get(usize::from(rule));
        found.is_some_and(|(_, translate)| *translate)
    }

    fn name(&self, rule: u8) -> &str {
        let found = self.rules.names.get(usize::from(rule));
        found.map_or("?", |(name, _)| name)
    }

    /// A whole message, such as a datagram or a line, as it is compared; `None` if it hides nothing.
    pub(crate) fn hide(&self, key: &MarkerKey, message: &[u8]) -> Option<Vec<u8>> {
        let mut hidden = Vec::new();
        let mut any = false;
        let mut rest = message;
        while !rest.is_empty() {
            let (line, more) = rest.split_at(lines::segment(rest).unwrap_or(rest.len()));
            let mut from = 0;
            for (range, rule) in lines::hidden(self, line) {
                hidden.extend_from_slice(&line[from..range.start]);
                hidden.extend_from_slice(&key.marker(rule));
                from = range.end;
                any = true;
            }
            hidden.extend_from_slice(&line[from..]);
            rest = more;
        }
        any.then_some(hidden)
    }

    /// An excerpt of rewritten output, for humans: markers, also cut ones at the ends, are the names of their rules.
    pub(crate) fn show(&self, key: &MarkerKey, excerpt: &[u8]) -> Vec<u8> {
        let secret = &key.0;
        let mut shown = Vec::new();
        // A marker that begins before the excerpt.
        let mut at = (1..MARKER)
            .rev()
            .find(|n| {
                let (tail, from) = (n - 1, secret.len() - (n - 1));
                tail > 4 && excerpt.len() >= *n && excerpt[..tail] == secret[from..]
            })
            .unwrap_or(0);
        while at < excerpt.len() {
            let rest = &excerpt[at..];
            let same = rest.iter().zip(secret).take_while(|(a, b)| a == b).count();
            if same == secret.len() || (same == rest.len() && same > 4) {
                let name = rest.get(secret.len()).map_or("?", |rule| self.name(*rule));
                shown.extend_from_slice(format!("<{name}>").as_bytes());
                at += MARKER;
            } else {
                shown.push(excerpt[at]);
                at += 1;
            }
        }
        shown
    }
}

/// The run's secret that markers begin with.
#[derive(Clone)]
pub(crate) struct MarkerKey([u8; MARKER - 1]);

impl std::fmt::Debug for MarkerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MarkerKey")
    }
}

impl MarkerKey {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let hash = blake3::keyed_hash(key, b"quorate: marker of masked output");
        let mut secret = [0; MARKER - 1];
        secret.copy_from_slice(&hash.as_bytes()[..MARKER - 1]);
        Self(secret)
    }

    pub(crate) fn marker(&self, rule: u8) -> [u8; MARKER] {
        let mut marker = [rule; MARKER];
        marker[..MARKER - 1].copy_from_slice(&self.0);
        marker
    }
}
