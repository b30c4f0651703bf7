//! What replicas answered differently: a bounded report, and JSON lines of it.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use quorate_voter::relaxed::{Departure, Difference};
use serde::{Deserialize, Serialize};

/// Lines that may wait for the file (R10); further ones are counted only.
const LINES_WAITING: usize = 4096;
/// Bytes of the file (R10); further lines are counted only.
pub const FILE_BYTES: u64 = 256 << 20;

/// One request that a replica answered differently: a line of the file of `--differences`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Milliseconds since the set was started.
    pub at_ms: u64,
    /// The replica.
    pub replica: usize,
    /// The name of its version; empty if the appliance gives it none.
    pub version: String,
    /// Number of the connection, or of the UDP client.
    pub connection: u64,
    /// The guest's port; 0 for the console.
    pub port: u16,
    /// How it departs.
    pub kind: Departure,
    /// Byte of its output on this connection at which it does.
    pub position: u64,
    /// Client bytes before the request and after it, if that is known.
    pub input: Option<(u64, u64)>,
    /// The beginning of the request, escaped as in a Rust byte string.
    pub request: Option<String>,
    /// What was released around the place, likewise.
    pub released: String,
    /// What the replica said, likewise.
    pub said: String,
}

/// How much a replica differed.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Differences.
    pub count: u64,
    /// The first one.
    pub first: Option<Answer>,
}

/// All differences of a set so far.
#[derive(Debug, Default)]
pub struct Differences {
    tallies: Vec<Tally>,
    file: Option<Writer>,
    /// Lines that were not written.
    pub unwritten: u64,
}

#[derive(Debug)]
struct Writer {
    lines: SyncSender<Vec<u8>>,
    thread: Option<JoinHandle<Option<String>>>,
    bytes: u64,
}

fn escaped(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

impl Differences {
    /// Writes lines to this file from now on, which is made anew.
    ///
    /// # Errors
    /// When it cannot be made, or no thread for it.
    pub fn write_to(&mut self, path: &Path) -> std::io::Result<()> {
        let mut file = std::fs::File::create(path)?;
        let (lines, waiting) = sync_channel::<Vec<u8>>(LINES_WAITING);
        let path = path.to_owned();
        let thread = std::thread::Builder::new()
            .name("differences".to_owned())
            .spawn(move || {
                for line in waiting {
                    if let Err(error) = file.write_all(&line) {
                        return Some(format!("{}: {error}", path.display()));
                    }
                }
                None
            })?;
        self.file = Some(Writer {
            lines,
            thread: Some(thread),
            bytes: 0,
        });
        Ok(())
    }

    /// Adds one. True if it is the first of its replica.
    pub(super) fn add(
        &mut self,
        at: Duration,
        port: u16,
        version: &str,
        difference: &Difference,
    ) -> bool {
        let replica = usize::from(difference.replica.0);
        let request = difference.request.as_ref();
        let answer = Answer {
            at_ms: at.as_millis() as u64,
            replica,
            version: version.to_owned(),
            connection: difference.connection,
            port,
            kind: difference.kind,
            position: difference.position,
            input: request.map(|request| (request.input_from, request.input_to)),
            request: request.map(|request| escaped(&request.excerpt)),
            released: escaped(&difference.released),
            said: escaped(&difference.said),
        };
        self.write(&answer);
        if self.tallies.len() <= replica {
            self.tallies.resize_with(replica + 1, Tally::default);
        }
        let Some(tally) = self.tallies.get_mut(replica) else {
            return false;
        };
        tally.count += 1;
        let first = tally.first.is_none();
        tally.first.get_or_insert(answer);
        first
    }

    fn write(&mut self, answer: &Answer) {
        let Some(file) = &mut self.file else { return };
        let Ok(mut line) = serde_json::to_vec(answer) else {
            return;
        };
        line.push(b'\n');
        let length = line.len() as u64;
        if file.bytes + length > FILE_BYTES {
            self.unwritten += 1;
            return;
        }
        match file.lines.try_send(line) {
            Ok(()) => file.bytes += length,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.unwritten += 1,
        }
    }

    /// How much a replica differed so far.
    #[must_use]
    pub fn of(&self, replica: usize) -> Tally {
        self.tallies.get(replica).cloned().unwrap_or_default()
    }

    /// Ends the file. What went wrong with it, if anything did.
    pub fn finish(&mut self) -> Option<String> {
        let mut file = self.file.take()?;
        drop(file.lines);
        file.thread.take()?.join().ok().flatten()
    }
}

impl Tally {
    /// One line for people.
    #[must_use]
    pub fn summary(&self, replica: usize, version: &str) -> Option<String> {
        let first = self.first.as_ref()?;
        let name = match version {
            "" => String::new(),
            name => format!(" ({name})"),
        };
        let request = first.request.as_deref().unwrap_or("unknown request");
        Some(format!(
            "{} answered differently by replica {replica}{name}; first: \"{request}\" on connection {}: it said \"{}\", released was \"{}\"",
            match self.count {
                1 => "1 request".to_owned(),
                many => format!("{many} requests"),
            },
            first.connection,
            first.said,
            first.released
        ))
    }
}
