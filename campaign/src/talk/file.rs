//! The file of a conversation: lines of text, so that it can be read, written by hand and compared, and a digest at its end.
//!
//! ```text
//! quorate-conversation 1
//! connection 0 6379
//! 0 open
//! 0 send "PING\r\n"
//! 0 shut after 0:7
//! end 0:7.
//! status 0
//! stdout "PONG\n"
//! digest 5c…
//! ```
//!
//! `after C:N` says that N bytes must have come on connection C, and with a dot behind that the guest has ended it. In what is
//! quoted, `\n`, `\r`, `\t`, `\\`, `\"` and `\xNN` stand for bytes; all others are printable ASCII.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::conversation::{Act, Conversation, Event, Received};

/// Version of the format.
const VERSION: u32 = 1;
/// First word of the file.
const MAGIC: &str = "quorate-conversation";
/// Largest file that is read (R10): all bytes quoted as `\xNN`, and what the command printed.
const MAX_FILE: u64 = 512 << 20;

/// What was recorded of a run of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// What it said.
    pub conversation: Conversation,
    /// Its exit status.
    pub status: i32,
    /// What it printed, up to a bound.
    pub stdout: Vec<u8>,
    /// What it said of errors, up to a bound.
    pub stderr: Vec<u8>,
}

/// Why a conversation cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ConversationError {
    /// The file.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It has another version.
    #[error("{}: version {found} of the format; this program reads version {VERSION}: record it again", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// A line is wrong.
    #[error("{}, line {line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The digest does not fit.
    #[error("{}: the content does not fit the digest in the last line: it was damaged or edited; record it again, or take the line away if it was edited on purpose", .0.display())]
    Digest(PathBuf),
}

impl Recorded {
    /// The text of the file.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = body(&self.conversation);
        let _ = writeln!(text, "status {}", self.status);
        for (name, bytes) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            text.push_str(name);
            text.push(' ');
            quote(&mut text, bytes);
            text.push('\n');
        }
        let digest = blake3::hash(text.as_bytes());
        let _ = writeln!(text, "digest {digest}");
        text
    }

    /// Reads the text of a file; `path` is for errors. A file without a digest was written by hand and is taken as it is.
    ///
    /// # Errors
    /// Names the line and what is wrong in it.
    pub fn from_text(text: &str, path: &Path) -> Result<Recorded, ConversationError> {
        let mut recorded = Recorded::default();
        let wrong = |index: usize, what: String| ConversationError::Line {
            path: path.to_owned(),
            line: index + 1,
            what,
        };
        let mut first = text.lines().next().unwrap_or_default().split(' ');
        if first.next() != Some(MAGIC) {
            return Err(wrong(
                0,
                format!("this is no conversation: it begins with {MAGIC:?}"),
            ));
        }
        let found = first.next().unwrap_or_default();
        if found != VERSION.to_string() {
            return Err(ConversationError::Version {
                path: path.to_owned(),
                found: found.to_owned(),
            });
        }
        let mut lines_of_events = Vec::new();
        let mut position = 0;
        let mut ended = false;
        for (index, line) in text.split_inclusive('\n').enumerate() {
            let start = position;
            position += line.len();
            let line = line.trim_end_matches('\n');
            if index == 0 || line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            if ended {
                return Err(wrong(index, "the digest is the last line".to_owned()));
            }
            if let Some(digest) = line.strip_prefix("digest ") {
                if blake3::hash(&text.as_bytes()[..start]).to_hex().as_str() != digest {
                    return Err(ConversationError::Digest(path.to_owned()));
                }
                ended = true;
                continue;
            }
            let events = recorded.conversation.events.len();
            parse_line(line, &mut recorded).map_err(|what| wrong(index, what))?;
            if recorded.conversation.events.len() > events {
                lines_of_events.push(index);
            }
        }
        recorded.conversation.check().map_err(|(event, what)| {
            let line = lines_of_events.get(event).or(lines_of_events.last());
            wrong(line.copied().unwrap_or(0), what)
        })?;
        Ok(recorded)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it is not there or not as it should be.
    pub fn read(path: &Path) -> Result<Recorded, ConversationError> {
        let io = |source| ConversationError::Io {
            path: path.to_owned(),
            source,
        };
        if fs::metadata(path).map_err(io)?.len() > MAX_FILE {
            return Err(io(io::Error::other(format!(
                "larger than {MAX_FILE} bytes"
            ))));
        }
        let bytes = fs::read(path).map_err(io)?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            ConversationError::Line {
                path: path.to_owned(),
                line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
                what: "a byte that is no text; it was damaged: record it again".to_owned(),
            }
        })?;
        Recorded::from_text(&text, path)
    }

    /// Writes the file under another name first, so that it is there as a whole or not at all. Only its owner may read it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ConversationError> {
        super::cache::write_private(path, self.to_text().as_bytes()).map_err(|source| {
            ConversationError::Io {
                path: path.to_owned(),
                source,
            }
        })
    }
}

/// The part of the text that is the conversation.
pub(super) fn body(conversation: &Conversation) -> String {
    let mut text = format!("{MAGIC} {VERSION}\n");
    // Writing to a string does not fail.
    for (number, port) in conversation.connections.iter().enumerate() {
        let _ = writeln!(text, "connection {number} {port}");
    }
    for event in &conversation.events {
        let _ = write!(text, "{} ", event.connection);
        match &event.act {
            Act::Open => text.push_str("open"),
            Act::Send(bytes) => {
                text.push_str("send ");
                quote(&mut text, bytes);
            }
            Act::Shut => text.push_str("shut"),
            Act::Reset => text.push_str("reset"),
        }
        if !event.after.is_empty() {
            text.push_str(" after");
            received(&mut text, &event.after);
        }
        text.push('\n');
    }
    if !conversation.end.is_empty() {
        text.push_str("end");
        received(&mut text, &conversation.end);
        text.push('\n');
    }
    text
}

fn received(text: &mut String, of: &[Received]) {
    for of in of {
        let dot = if of.closed { "." } else { "" };
        let _ = write!(text, " {}:{}{dot}", of.connection, of.bytes);
    }
}

fn quote(text: &mut String, bytes: &[u8]) {
    text.push('"');
    for byte in bytes {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            b'\\' => text.push_str("\\\\"),
            b'"' => text.push_str("\\\""),
            0x20..0x7f => text.push(char::from(*byte)),
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text.push('"');
}

/// The bytes of a quoted text at the beginning, and what follows it.
fn unquote(text: &str) -> Result<(Vec<u8>, &str), String> {
    let inner = text.strip_prefix('"').ok_or("a quoted text is expected")?;
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.bytes().enumerate();
    while let Some((at, byte)) = rest.next() {
        match byte {
            b'"' => return Ok((bytes, &inner[at + 1..])),
            b'\\' => {
                let escape = rest.next().map(|(_, byte)| byte);
                bytes.push(match escape {
                    Some(b'n') => b'\n',
                    Some(b'r') => b'\r',
                    Some(b't') => b'\t',
                    Some(same @ (b'\\' | b'"')) => same,
                    Some(b'x') => {
                        let mut digit = || {
                            rest.next()
                                .and_then(|(_, byte)| char::from(byte).to_digit(16))
                        };
                        match (digit(), digit()) {
                            (Some(high), Some(low)) => (high * 16 + low) as u8,
                            _ => return Err("\\x wants two hexadecimal digits".to_owned()),
                        }
                    }
                    _ => {
                        return Err(
                            "an escape that does not exist; \\n \\r \\t \\\\ \\\" \\xNN do"
                                .to_owned(),
                        );
                    }
                });
            }
            0x20..0x7f => bytes.push(byte),
            _ => return Err("a byte that has to be written as \\xNN".to_owned()),
        }
    }
    Err("the quotation does not end".to_owned())
}

fn number<T: std::str::FromStr>(text: Option<&str>, what: &str) -> Result<T, String> {
    let text = text.ok_or_else(|| format!("{what} is missing"))?;
    text.parse().map_err(|_| format!("{text:?} is not {what}"))
}

fn parse_received(text: &str) -> Result<Vec<Received>, String> {
    let one = |word: &str| {
        let (connection, bytes) = word
            .split_once(':')
            .ok_or_else(|| format!("{word:?} is not CONNECTION:BYTES"))?;
        let closed = bytes.ends_with('.');
        Ok(Received {
            connection: number(Some(connection), "a connection's number")?,
            bytes: number(Some(bytes.trim_end_matches('.')), "a number of bytes")?,
            closed,
        })
    };
    text.split_whitespace().map(one).collect()
}

fn parse_line(line: &str, recorded: &mut Recorded) -> Result<(), String> {
    let conversation = &mut recorded.conversation;
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let nothing_more = |rest: &str| match rest.trim() {
        "" => Ok(()),
        more => Err(format!("{more:?} does not belong here")),
    };
    match word {
        "connection" => {
            let mut words = rest.split_whitespace();
            let which: usize = number(words.next(), "a connection's number")?;
            if which != conversation.connections.len() {
                return Err(format!(
                    "connection {which} where {} comes next",
                    conversation.connections.len()
                ));
            }
            conversation
                .connections
                .push(number(words.next(), "a port")?);
            nothing_more(words.next().unwrap_or_default())
        }
        "end" => {
            conversation.end = parse_received(rest)?;
            Ok(())
        }
        "status" => {
            recorded.status = number(Some(rest), "an exit status")?;
            Ok(())
        }
        "stdout" | "stderr" => {
            let (bytes, rest) = unquote(rest)?;
            match word {
                "stdout" => recorded.stdout = bytes,
                _ => recorded.stderr = bytes,
            }
            nothing_more(rest)
        }
        _ => {
            let connection = word
                .parse()
                .map_err(|_| format!("{word:?} is no line of a conversation"))?;
            let (verb, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let (act, rest) = match verb {
                "open" => (Act::Open, rest),
                "shut" => (Act::Shut, rest),
                "reset" => (Act::Reset, rest),
                "send" => {
                    let (bytes, rest) = unquote(rest)?;
                    (Act::Send(bytes), rest)
                }
                _ => {
                    return Err(format!(
                        "{verb:?} is nothing that a client does: open, send, shut, reset"
                    ));
                }
            };
            let rest = rest.trim_start();
            let after = match rest.strip_prefix("after") {
                Some(of) => parse_received(of)?,
                None => {
                    nothing_more(rest)?;
                    Vec::new()
                }
            };
            conversation.events.push(Event {
                after,
                connection,
                act,
            });
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Recorded {
        let mut log = super::super::conversation::Log::default();
        let a = log.open(6379);
        log.act(a, Act::Send(b"PING \"x\\\"\r\n\0\xff".to_vec()));
        log.received(a, 7, false);
        log.act(a, Act::Shut);
        log.received(a, 0, true);
        Recorded {
            conversation: log.canonical(),
            status: 0,
            stdout: b"PONG\n".to_vec(),
            stderr: Vec::new(),
        }
    }

    #[test]
    fn it_comes_back_from_its_file_which_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("conversation");
        sample().write(&path).unwrap();
        assert_eq!(Recorded::read(&path).unwrap(), sample());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_the_command_printed_is_not_in_the_digest() {
        let mut other = sample();
        other.stdout = b"other".to_vec();
        assert_eq!(other.conversation.digest(), sample().conversation.digest());
        assert_ne!(other.to_text(), sample().to_text());
    }

    #[test]
    fn damage_is_found_and_named() {
        let text = sample().to_text();
        let read = |text: &str| {
            Recorded::from_text(text, Path::new("f"))
                .unwrap_err()
                .to_string()
        };
        assert!(read(&text.replace("PING", "PINK")).contains("digest"));
        assert!(read("nonsense").contains("no conversation"));
        assert!(read(&text.replacen("conversation 1", "conversation 9", 1)).contains("version 9"));
        let by_hand: String = text
            .lines()
            .filter(|line| !line.starts_with("digest"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(
            Recorded::from_text(&by_hand, Path::new("f")).unwrap(),
            sample()
        );
        for (from, to, line, what) in [
            ("0 shut", "0 shout", "line 5", "shout"),
            ("0 open", "3 open", "line 3", "no such connection"),
            ("after 0:7", "after 0:x", "line 5", "number of bytes"),
            ("6379", "637900", "line 2", "a port"),
            ("\\xff\"", "\\xff", "line 4", "does not end"),
            ("\\xff", "\\xfg", "line 4", "two hexadecimal"),
        ] {
            let text = read(&by_hand.replacen(from, to, 1));
            assert!(text.contains(line) && text.contains(what), "{text}");
        }
    }

    proptest! {
        /// R9: a damaged file is refused or read, never a panic; a whole one comes back.
        #[test]
        fn any_bytes_come_back(bytes in proptest::collection::vec(any::<u8>(), 1..100), cut in any::<prop::sample::Index>()) {
            let mut recorded = sample();
            recorded.stderr = bytes;
            let text = recorded.to_text();
            prop_assert_eq!(Recorded::from_text(&text, Path::new("f")).unwrap(), recorded);
            let cut = cut.index(text.len());
            let _ = Recorded::from_text(&text[..cut], Path::new("f"));
        }
    }
}
