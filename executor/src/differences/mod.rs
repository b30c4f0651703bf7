//! What `quorate differences` says: the file of `quorate run --differences`, grouped by what was asked and explained.
//!
//! The file has a line of JSON for each answer that differed. Here they are counted by replica, port, request and kind of difference,
//! the first of each kept as the example. A matcher leaves a replica out of a connection after its first difference there, so a line
//! is the first differing answer of one connection, not all that would have followed.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, Read};

use quorate_voter::relaxed::Departure;
use serde::{Deserialize, Serialize};

mod classify;
mod escape;
mod text;

pub use classify::{Class, classify, command};
pub use escape::unescape;

/// Longest line that is read, bytes (R10); a longer one is counted as unreadable.
pub const MAX_LINE: u64 = 64 << 10;
/// Most groups (R10); what would be another one is counted only.
pub const MAX_GROUPS: usize = 4096;
/// Most connections that are told apart in one group (R10).
const MAX_CONNECTIONS: usize = 65_536;

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
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
    /// The beginning of the request, escaped.
    pub request: Option<String>,
    /// What was released around the place, escaped.
    pub released: String,
    /// What the replica said, escaped.
    pub said: String,
}

/// Differences of one sort.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Who differed.
    pub replica: usize,
    /// Its version's name; may be empty.
    pub version: String,
    /// The guest's port; 0 for the console.
    pub port: u16,
    /// What was asked: a command, or method and path.
    pub command: String,
    /// What sort of difference it is.
    pub class: Class,
    /// How many there were.
    pub count: u64,
    /// On how many connections.
    pub connections: u64,
    /// The first of them.
    pub first: Line,
    #[serde(skip)]
    seen: std::collections::HashSet<u64>,
}

/// A whole file, grouped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Lines that were read.
    pub differences: u64,
    /// Lines that are none of this format.
    pub unreadable: u64,
    /// Lines that were counted only, since there are [`MAX_GROUPS`] groups.
    pub ungrouped: u64,
    /// The groups: of each replica and port, the most frequent first.
    pub groups: Vec<Group>,
}

/// What tells groups apart.
type Key = (usize, u16, String, Class);

impl Report {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read. Lines that are not understood are counted.
    pub fn read(mut from: impl BufRead) -> std::io::Result<Self> {
        let mut report = Self::default();
        let mut groups: BTreeMap<Key, Group> = BTreeMap::new();
        let mut line = Vec::new();
        loop {
            line.clear();
            let taken = (&mut from).take(MAX_LINE).read_until(b'\n', &mut line)?;
            if taken == 0 {
                break;
            }
            let whole = line.ends_with(b"\n");
            if !whole && taken as u64 == MAX_LINE {
                skip_line(&mut from)?;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice::<Line>(&line) {
                Ok(line) => report.add(&mut groups, line),
                Err(_) => report.unreadable += 1,
            }
        }
        report.groups = groups.into_values().collect();
        report.groups.sort_by(|a, b| {
            let order = |group: &Group| (group.replica, group.port);
            let names = || a.command.cmp(&b.command).then(a.class.cmp(&b.class));
            order(a)
                .cmp(&order(b))
                .then(b.count.cmp(&a.count))
                .then_with(names)
        });
        Ok(report)
    }

    fn add(&mut self, groups: &mut BTreeMap<Key, Group>, line: Line) {
        self.differences += 1;
        let request = line.request.as_deref().map(unescape);
        let command = command(request.as_deref());
        let class = classify(line.kind, &unescape(&line.released), &unescape(&line.said));
        let key = (line.replica, line.port, command.clone(), class.clone());
        if !groups.contains_key(&key) && groups.len() == MAX_GROUPS {
            self.ungrouped += 1;
            return;
        }
        let group = groups.entry(key).or_insert_with(|| Group {
            replica: line.replica,
            version: line.version.clone(),
            port: line.port,
            command,
            class,
            count: 0,
            connections: 0,
            first: line.clone(),
            seen: std::collections::HashSet::new(),
        });
        group.count += 1;
        if group.seen.len() < MAX_CONNECTIONS && group.seen.insert(line.connection) {
            group.connections += 1;
        }
    }
}

fn skip_line(from: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let buffer = from.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                from.consume(at + 1);
                return Ok(());
            }
            None => {
                let length = buffer.len();
                from.consume(length);
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        text::write(f, self)
    }
}

#[cfg(test)]
mod tests;
