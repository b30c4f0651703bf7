//! A Redis client that keeps every byte: requests are given as bytes, replies come back as the bytes they were.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::Error;

/// How long a reply may take.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes read at a time.
const CHUNK: usize = 256 << 10;
/// How deep replies may be nested (R10).
const MAX_DEPTH: usize = 32;

/// A command in the form that clients send: an array of bulk strings.
#[must_use]
pub fn command<W: AsRef<[u8]>>(words: &[W]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        let word = word.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// A command whose words are separated by spaces.
#[must_use]
pub fn words(line: &str) -> Vec<u8> {
    command(&line.split_whitespace().collect::<Vec<_>>())
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Bytes at the front of the buffer that have been handed out.
    taken: usize,
    timeout: Duration,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When the connection is refused or not made in time.
    pub fn connect(address: SocketAddr) -> Result<Client, Error> {
        let connect = || {
            let stream = TcpStream::connect_timeout(&address, REPLY_TIMEOUT)?;
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
            Ok(stream)
        };
        let stream = connect().map_err(|source| Error::Io {
            what: format!("cannot connect to {address}"),
            source,
        })?;
        Ok(Client {
            stream,
            buffer: Vec::new(),
            taken: 0,
            timeout: REPLY_TIMEOUT,
        })
    }

    /// How long a reply may take from now on.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The local end.
    ///
    /// # Errors
    /// When the socket has none any more.
    pub fn local(&self) -> Result<SocketAddr, Error> {
        self.stream.local_addr().map_err(|source| Error::Io {
            what: "the local address".to_owned(),
            source,
        })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream.write_all(bytes).map_err(|source| Error::Io {
            what: "cannot send".to_owned(),
            source,
        })
    }

    /// Ends the sending half.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn finish_sending(&mut self) -> Result<(), Error> {
        self.stream
            .shutdown(Shutdown::Write)
            .map_err(|source| Error::Io {
                what: "cannot shut down".to_owned(),
                source,
            })
    }

    /// The bytes of the next reply.
    ///
    /// # Errors
    /// When none comes in time, the connection ends within it, or the bytes are no reply.
    pub fn reply(&mut self) -> Result<Vec<u8>, Error> {
        let deadline = Instant::now() + quorate_executor::patience::patient(self.timeout);
        // A reply that is not whole is looked at again only when it may be: a large value would else be scanned for
        // each chunk of it.
        let mut wanted = 1;
        loop {
            let waiting = &self.buffer[self.taken..];
            if waiting.len() >= wanted {
                match frame(waiting, 0) {
                    Ok(Frame::Whole(len)) => {
                        let reply = waiting[..len].to_vec();
                        self.taken += len;
                        return Ok(reply);
                    }
                    Ok(Frame::Needs(more)) => wanted = more.max(waiting.len() + 1),
                    Err(what) => {
                        let shown = String::from_utf8_lossy(&waiting[..waiting.len().min(200)]);
                        return Err(Error::Unexpected(format!("{what}: {shown:?}")));
                    }
                }
            }
            if self.fill(deadline)? == 0 {
                let shown = String::from_utf8_lossy(&self.buffer[self.taken..]).into_owned();
                let source = io::ErrorKind::UnexpectedEof.into();
                return Err(Error::Io {
                    what: format!("the connection ended after {shown:?}"),
                    source,
                });
            }
        }
    }

    /// Sends a command and takes its reply.
    ///
    /// # Errors
    /// As [`Client::send`] and [`Client::reply`].
    pub fn call(&mut self, request: &[u8]) -> Result<Vec<u8>, Error> {
        self.send(request)?;
        self.reply()
    }

    /// Sends a stream of commands and takes `replies` replies meanwhile, however large both are.
    ///
    /// # Errors
    /// As [`Client::send`] and [`Client::reply`].
    pub fn exchange(&mut self, requests: &[u8], replies: usize) -> Result<Vec<Vec<u8>>, Error> {
        let failed = |source| Error::Io {
            what: "cannot send".to_owned(),
            source,
        };
        let mut writer = self.stream.try_clone().map_err(failed)?;
        std::thread::scope(|scope| {
            let sender = scope.spawn(move || writer.write_all(requests));
            let received: Result<Vec<_>, _> = (0..replies).map(|_| self.reply()).collect();
            if received.is_err() {
                // Frees a sender that waits for a peer that no longer reads.
                let _ = self.stream.shutdown(Shutdown::Both);
            }
            let sent = sender
                .join()
                .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
            let received = received?;
            sent.map_err(failed)?;
            Ok(received)
        })
    }

    /// Everything until the peer ends the connection (by its end or a reset).
    ///
    /// # Errors
    /// When it does not end it in time.
    pub fn rest(&mut self) -> Result<Vec<u8>, Error> {
        let deadline = Instant::now() + quorate_executor::patience::patient(self.timeout);
        loop {
            match self.fill(deadline) {
                Ok(0) => break,
                Ok(_) => {}
                Err(Error::Io { source, .. })
                    if source.kind() == io::ErrorKind::ConnectionReset =>
                {
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let rest = self.buffer.split_off(self.taken);
        self.buffer.clear();
        self.taken = 0;
        Ok(rest)
    }

    fn fill(&mut self, deadline: Instant) -> Result<usize, Error> {
        let failed = |source| Error::Io {
            what: "no reply".to_owned(),
            source,
        };
        if self.taken == self.buffer.len() {
            self.buffer.clear();
            self.taken = 0;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
        self.stream.set_read_timeout(Some(left)).map_err(failed)?;
        let have = self.buffer.len();
        self.buffer.resize(have + CHUNK, 0);
        let count = loop {
            match self.stream.read(&mut self.buffer[have..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.buffer
            .truncate(have + count.as_ref().copied().unwrap_or(0));
        count.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => failed(io::ErrorKind::TimedOut.into()),
            _ => failed(error),
        })
    }
}

enum Frame {
    /// A reply of this many bytes is whole.
    Whole(usize),
    /// At least this many bytes are needed to know more.
    Needs(usize),
}

/// Where the first reply in `bytes` ends.
fn frame(bytes: &[u8], depth: usize) -> Result<Frame, &'static str> {
    if depth > MAX_DEPTH {
        return Err("a reply nested too deeply");
    }
    let Some(line) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(Frame::Needs(bytes.len() + 1));
    };
    let end = line + 2;
    let number = || -> Result<i64, &'static str> {
        let text = std::str::from_utf8(&bytes[1..line]).map_err(|_| "a length that is no text")?;
        text.parse().map_err(|_| "a length that is no number")
    };
    match bytes[0] {
        b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => Ok(Frame::Whole(end)),
        b'$' | b'=' => match usize::try_from(number()?) {
            Err(_) => Ok(Frame::Whole(end)),
            Ok(len) if bytes.len() < end + len + 2 => Ok(Frame::Needs(end + len + 2)),
            Ok(len) if bytes[end + len..end + len + 2] != *b"\r\n" => {
                Err("a bulk string without its end")
            }
            Ok(len) => Ok(Frame::Whole(end + len + 2)),
        },
        kind @ (b'*' | b'%' | b'~' | b'>' | b'|') => {
            let count = usize::try_from(number()?).unwrap_or(0);
            // An attribute stands before the reply that it belongs to.
            let count = match kind {
                b'%' => count * 2,
                b'|' => count * 2 + 1,
                _ => count,
            };
            let mut at = end;
            for _ in 0..count {
                match bytes.get(at..).filter(|rest| !rest.is_empty()) {
                    None => return Ok(Frame::Needs(at + 1)),
                    Some(rest) => match frame(rest, depth + 1)? {
                        Frame::Whole(len) => at += len,
                        Frame::Needs(more) => return Ok(Frame::Needs(at + more)),
                    },
                }
            }
            Ok(Frame::Whole(at))
        }
        _ => Err("a reply of an unknown kind"),
    }
}

/// The elements of an aggregate reply (array, set, map, push) as bytes; none for any other reply.
#[must_use]
pub fn elements(reply: &[u8]) -> Vec<&[u8]> {
    let mut elements = Vec::new();
    if !matches!(reply.first(), Some(b'*' | b'%' | b'~' | b'>')) {
        return elements;
    }
    let mut at = reply
        .windows(2)
        .position(|pair| pair == b"\r\n")
        .map_or(reply.len(), |line| line + 2);
    while at < reply.len() {
        let Ok(Frame::Whole(len)) = frame(&reply[at..], 1) else {
            break;
        };
        elements.push(&reply[at..at + len]);
        at += len;
    }
    elements
}

/// The content of a bulk or verbatim string.
#[must_use]
pub fn bulk(reply: &[u8]) -> Option<&[u8]> {
    if !matches!(reply.first(), Some(b'$' | b'=')) {
        return None;
    }
    let start = reply.windows(2).position(|pair| pair == b"\r\n")? + 2;
    reply.get(start..reply.len().checked_sub(2)?)
}

/// For messages: at most 300 bytes of `bytes`, readable.
#[must_use]
pub fn shown(bytes: &[u8]) -> String {
    let shown = bytes[..bytes.len().min(300)].escape_ascii();
    if bytes.len() > 300 {
        format!("{shown}… ({} bytes)", bytes.len())
    } else {
        shown.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn replies_end_where_they_end() {
        for whole in [
            &b"+OK\r\n"[..],
            b"-ERR x\r\n",
            b":12\r\n",
            b"$-1\r\n",
            b"$0\r\n\r\n",
            b"$4\r\na\r\nb\r\n",
            b"*-1\r\n",
            b"*0\r\n",
            b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
            b"%1\r\n+a\r\n,1.5\r\n",
            b"|1\r\n+a\r\n:1\r\n+OK\r\n",
            b"=7\r\ntxt:abc\r\n",
            b"_\r\n",
        ] {
            for cut in 1..whole.len() {
                assert!(
                    matches!(frame(&whole[..cut], 0), Ok(Frame::Needs(more)) if more > cut && more <= whole.len())
                );
            }
            let longer = [whole, b"+next"].concat();
            assert!(
                matches!(frame(&longer, 0), Ok(Frame::Whole(len)) if len == whole.len()),
                "{}",
                shown(whole)
            );
        }
        assert!(frame(b"hello\r\n", 0).is_err());
        assert!(frame(b"$1\r\nabc", 0).is_err());
        assert!(frame(&b"*1\r\n".repeat(100), 0).is_err());
        assert_eq!(
            elements(b"*2\r\n$1\r\na\r\n:5\r\n"),
            [&b"$1\r\na\r\n"[..], b":5\r\n"]
        );
        assert_eq!(bulk(b"$3\r\nabc\r\n"), Some(&b"abc"[..]));
    }

    #[test]
    fn a_silent_server_is_an_error_in_time_and_an_ended_one_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = Client::connect(listener.local_addr().unwrap()).unwrap();
        client.set_timeout(Duration::from_millis(30));
        let silent = client.call(&words("PING"));
        assert!(
            matches!(silent, Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::TimedOut)
        );
        client.set_timeout(Duration::from_secs(20));
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(b"$5\r\nab").unwrap();
        let mut request = [0; 14];
        peer.read_exact(&mut request).unwrap();
        drop(peer);
        assert!(
            matches!(client.reply(), Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::UnexpectedEof)
        );
        assert_eq!(client.rest().unwrap(), b"$5\r\nab");
    }
}
