//! A connection whose every byte is looked at.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::Error;

/// How long the other side may be silent.
pub const SILENCE: Duration = Duration::from_secs(60);
/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// A connection, and what came over it that nobody has taken yet.
pub struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    what: String,
}

impl Wire {
    /// Connects.
    ///
    /// # Errors
    /// When the connection is refused or not made in time.
    pub fn connect(address: SocketAddr) -> Result<Wire, Error> {
        let connect = || {
            let stream = TcpStream::connect_timeout(&address, SILENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(quorate_executor::patience::patient(SILENCE)))?;
            stream.set_write_timeout(Some(quorate_executor::patience::patient(SILENCE)))?;
            Ok(stream)
        };
        let what = format!("the connection to {address}");
        match connect() {
            Ok(stream) => Ok(Wire {
                stream,
                buffer: Vec::new(),
                what,
            }),
            Err(source) => Err(Error::Io { what, source }),
        }
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// When the connection is gone, or the other side takes nothing for [`SILENCE`].
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream
            .write_all(bytes)
            .map_err(|source| self.error(source))
    }

    /// Tells the other side that nothing more will be sent.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.stream
            .shutdown(Shutdown::Write)
            .map_err(|source| self.error(source))
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// When the connection ends before, or the other side is silent.
    pub fn take(&mut self, count: usize) -> Result<Vec<u8>, Error> {
        while self.buffer.len() < count {
            self.more()?;
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// All bytes up to and with `end`.
    ///
    /// # Errors
    /// As for [`Wire::take`].
    pub fn take_until(&mut self, end: &[u8]) -> Result<Vec<u8>, Error> {
        let mut searched = 0;
        loop {
            let found = self.buffer[searched..]
                .windows(end.len())
                .position(|window| window == end);
            if let Some(at) = found {
                return Ok(self.buffer.drain(..searched + at + end.len()).collect());
            }
            searched = self.buffer.len().saturating_sub(end.len() - 1);
            self.more()?;
        }
    }

    /// All bytes until the other side ends the connection. A reset counts as an end: which of the two comes depends on whether
    /// the server has read everything, which is a matter of time.
    ///
    /// # Errors
    /// When the other side is silent.
    pub fn take_all(&mut self) -> Result<Vec<u8>, Error> {
        loop {
            match self.more() {
                Ok(()) => {}
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(std::mem::take(&mut self.buffer));
                }
                Err(Error::Io { source, .. })
                    if source.kind() == io::ErrorKind::ConnectionReset =>
                {
                    return Ok(std::mem::take(&mut self.buffer));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn more(&mut self) -> Result<(), Error> {
        let old = self.buffer.len();
        self.buffer.resize(old + CHUNK, 0);
        let read = loop {
            match self.stream.read(&mut self.buffer[old..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer
            .truncate(old + read.as_ref().map_or(0, |&count| count));
        match read {
            Ok(0) => Err(self.error(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(source) => Err(self.error(source)),
        }
    }

    fn error(&self, source: io::Error) -> Error {
        Error::Io {
            what: format!("{}, after {:?}", self.what, shown(&self.buffer)),
            source,
        }
    }
}

/// The start of `bytes` as text, for messages.
#[must_use]
pub fn shown(bytes: &[u8]) -> String {
    const SHOWN: usize = 2000;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned();
    match bytes.len() {
        0..=SHOWN => text,
        len => format!("{text}… ({len} bytes)"),
    }
}

/// Requires that the two answers are the same; where they differ is shown.
///
/// # Panics
/// If they are not.
pub fn agree(what: &str, native: &[u8], set: &[u8]) {
    if native == set {
        return;
    }
    let at = native.iter().zip(set).take_while(|(a, b)| a == b).count();
    panic!(
        "{what}: {} and {} bytes differ from byte {at} on\n--- native:\n{}\n--- set:\n{}",
        native.len(),
        set.len(),
        shown(&native[at.saturating_sub(400)..]),
        shown(&set[at.saturating_sub(400)..])
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn bytes_are_taken_by_count_by_mark_and_to_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut wire = Wire::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(b"abcdef\r").unwrap();
        assert_eq!(wire.take(3).unwrap(), b"abc");
        peer.write_all(b"\nrest").unwrap();
        assert_eq!(wire.take_until(b"\r\n").unwrap(), b"def\r\n");
        drop(peer);
        assert_eq!(wire.take_all().unwrap(), b"rest");
        assert!(wire.take(1).is_err());
    }
}
