//! A zstd stream of any number of frames: layers are often compressed in pieces, with frames between that only tools read.

use std::io::{self, Read};

use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

/// First bytes of a skippable frame are `5x 2a 4d 18` (RFC 8878, 3.1.2).
const MAGIC_LEN: usize = 4;

/// See the module.
pub(super) struct ZstdFrames<R: Read> {
    state: State<R>,
}

enum State<R: Read> {
    Between(R),
    Within(Box<StreamingDecoder<Peeked<R>, ruzstd::decoding::FrameDecoder>>),
    End,
}

/// A reader, with bytes before it that were read already.
struct Peeked<R> {
    first: io::Cursor<Vec<u8>>,
    rest: R,
}

impl<R: Read> Read for Peeked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.first.read(buffer)? {
            0 => self.rest.read(buffer),
            n => Ok(n),
        }
    }
}

impl<R: Read> ZstdFrames<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            state: State::Between(reader),
        }
    }
}

impl<R: Read> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, State::End) {
                State::End => return Ok(0),
                State::Within(mut decoder) => {
                    let n = decoder.read(buffer)?;
                    if n > 0 {
                        self.state = State::Within(decoder);
                        return Ok(n);
                    }
                    self.state = State::Between(decoder.into_inner().rest);
                }
                State::Between(reader) => self.state = next_frame(reader)?,
            }
        }
    }
}

fn next_frame<R: Read>(mut reader: R) -> io::Result<State<R>> {
    let mut magic = Vec::new();
    reader
        .by_ref()
        .take(MAGIC_LEN as u64)
        .read_to_end(&mut magic)?;
    if magic.is_empty() {
        return Ok(State::End);
    }
    if let [0x50..=0x5f, 0x2a, 0x4d, 0x18] = magic[..] {
        let mut len = [0; 4];
        reader.read_exact(&mut len)?;
        let len = u64::from(u32::from_le_bytes(len));
        let skipped = io::copy(&mut reader.by_ref().take(len), &mut io::sink())?;
        if skipped < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        return Ok(State::Between(reader));
    }
    let peeked = Peeked {
        first: io::Cursor::new(magic),
        rest: reader,
    };
    StreamingDecoder::new(peeked)
        .map(|decoder| State::Within(Box::new(decoder)))
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, explain(&error)))
}

fn explain(error: &FrameDecoderError) -> String {
    match error {
        FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::BadMagicNumber(_)) => {
            "not a zstd frame".to_owned()
        }
        other => other.to_string(),
    }
}
