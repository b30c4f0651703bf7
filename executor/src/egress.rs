//! Handing agreed outputs to the world, in the order of their release (R3). Nothing reaches this file that the voter
//! has not released (R2).

use std::sync::Arc;
use std::time::Duration;

use quorate_devices::Entry;
use quorate_voter::Channel;

use crate::channel;
use crate::disks::Disks;
use crate::events::{Event, EventLog};
use crate::fingerprint::{EntryDigest, ReleaseDigest};

/// Where releases go. Neither method may block: a slow world must not hold up the replicas.
pub trait Egress: Send {
    /// Frames for the network, in order.
    fn frames(&mut self, frames: Vec<Vec<u8>>);
    /// Bytes for the console.
    fn console(&mut self, bytes: &[u8]);
}

/// One thing that happened to the set, in order.
#[derive(Clone, Debug)]
pub enum Item {
    /// The voter released an output.
    Release {
        /// Boundary.
        boundary: u64,
        /// Channel.
        channel: Channel,
        /// The output.
        bytes: Vec<u8>,
    },
    /// A leader wrote an entry.
    Entry {
        /// Boundary.
        boundary: u64,
        /// The entry.
        entry: Arc<Entry>,
    },
    /// Something to tell the operator.
    Event(Duration, Event),
}

/// Sees every [`Item`] before it is handed on; for tests and recordings.
pub type Tap = Box<dyn FnMut(&Item) + Send>;

/// Hands items on. One thread at a time is the deliverer; see `Shared::flush`.
pub struct Deliverer {
    egress: Box<dyn Egress>,
    disks: Arc<Disks>,
    tap: Option<Tap>,
    log: Arc<EventLog>,
    releases: ReleaseDigest,
    entries: EntryDigest,
    counters: Counters,
}

/// What has been handed on so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Outputs released.
    pub releases: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Frames among them.
    pub frames: u64,
}

impl Deliverer {
    /// A deliverer that hands releases to `egress` and `disks`, and events to `log`.
    pub fn new(
        egress: Box<dyn Egress>,
        disks: Arc<Disks>,
        tap: Option<Tap>,
        log: Arc<EventLog>,
    ) -> Self {
        Deliverer {
            egress,
            disks,
            tap,
            log,
            releases: ReleaseDigest::default(),
            entries: EntryDigest::default(),
            counters: Counters::default(),
        }
    }

    /// Hands on all items and leaves the vector empty.
    pub fn deliver(&mut self, items: &mut Vec<Item>) {
        let mut frames = Vec::new();
        for item in items.drain(..) {
            if let Some(tap) = &mut self.tap {
                tap(&item);
            }
            match item {
                Item::Release {
                    boundary,
                    channel,
                    bytes,
                } => {
                    self.releases.absorb(boundary, channel, &bytes);
                    self.counters.releases += 1;
                    self.counters.bytes += bytes.len() as u64;
                    match channel {
                        channel::NET => frames.push(bytes),
                        channel::CONSOLE => self.egress.console(&bytes),
                        _ if channel::disk_of(channel).is_some() => {
                            self.disks.release(channel, bytes);
                        }
                        // A fingerprint is there to be compared, and the end of the program has been acted upon.
                        _ => {}
                    }
                }
                Item::Entry { boundary, entry } => self.entries.absorb(boundary, &entry),
                Item::Event(at, event) => self.log.record(at, event),
            }
        }
        if !frames.is_empty() {
            self.counters.frames += frames.len() as u64;
            self.egress.frames(frames);
        }
    }

    /// Digests of releases and of entries, and the counters.
    pub fn state(&self) -> (blake3::Hash, blake3::Hash, Counters) {
        (
            self.releases.current(),
            self.entries.current(),
            self.counters,
        )
    }
}
