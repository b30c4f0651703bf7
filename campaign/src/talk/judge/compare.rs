//! What a trial released, beside what the golden run did: the first place where the client, the console or a disk got something else,
//! and whether an error was told before or with it. Masks are applied to both sides first.

use std::borrow::Cow;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use quorate_executor::stage::DiskContent;

use super::Judge;
use crate::file::Channel;
use crate::talk::heard::{Heard, HeardConnection};

/// Bytes of a disk that are looked at together.
const BLOCK: u64 = 4096;
/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Bytes of both sides that evidence shows.
const SHOWN: usize = 16;

/// A deviation, and whether the client was told.
pub(super) struct Wrong {
    pub(super) evidence: String,
    pub(super) announced: Option<String>,
}

impl Judge {
    fn masked<'b>(&self, channel: Channel, bytes: &'b [u8]) -> Cow<'b, [u8]> {
        let mut masked = Cow::Borrowed(bytes);
        for (_, pattern, replace) in self.masks.iter().filter(|(of, ..)| *of == channel) {
            if let Cow::Owned(changed) = pattern.replace_all(&masked, replace.as_slice()) {
                masked = Cow::Owned(changed);
            }
        }
        masked
    }

    /// The first connection on which something wrong was received.
    pub(super) fn client(&self, heard: &Heard, complete: bool) -> Option<Wrong> {
        if !self.compare.contains(&Channel::Client) {
            return None;
        }
        for (number, (heard, golden)) in heard
            .connections
            .iter()
            .zip(&self.heard.connections)
            .enumerate()
        {
            if heard.bytes == golden.bytes || (!complete && golden.bytes.starts_with(&heard.bytes))
            {
                continue;
            }
            let (here, there) = (
                self.masked(Channel::Client, &heard.bytes),
                self.masked(Channel::Client, &golden.bytes),
            );
            let Some(at) = difference(&here, &there, complete) else {
                continue;
            };
            // A mask needs its whole match: what is cut off in the middle of a line may be one.
            let cut = !complete && !self.masks.is_empty() && !here[at..].contains(&b'\n');
            if cut {
                continue;
            }
            let reply = self.end_of_reply(heard, at, here.len());
            let errors = self.errors_in(&here, &there, reply);
            let place = format!("connection {number} (port {}), byte {at}", golden.port);
            return Some(Wrong {
                evidence: format!("{place}: {}", sides(&here, &there, at)),
                announced: errors
                    .map(|text| format!("connection {number} (port {}): {text}", golden.port)),
            });
        }
        None
    }

    /// Where the reply ends that a byte is in, in the masked stream.
    fn end_of_reply(&self, heard: &HeardConnection, at: usize, length: usize) -> usize {
        let ends = heard
            .sends
            .iter()
            .map(|end| self.masked(Channel::Client, &heard.bytes[..*end]).len());
        ends.filter(|end| *end > at).min().unwrap_or(length)
    }

    /// What tells of an error before `end`, and is not in the golden run.
    fn errors_in(&self, here: &[u8], there: &[u8], end: usize) -> Option<String> {
        self.errors.iter().find_map(|pattern| {
            let known: Vec<(Range<usize>, &[u8])> = pattern
                .find_iter(there)
                .map(|of| (of.range(), of.as_bytes()))
                .collect();
            let new = pattern
                .find_iter(here)
                .find(|of| of.start() < end && !known.contains(&(of.range(), of.as_bytes())))?;
            // The whole line says more than the match.
            let line = here[new.start()..]
                .split(|byte| matches!(byte, b'\r' | b'\n'))
                .next()
                .unwrap_or_default();
            Some(format!(
                "a reply tells of an error: {}",
                show(&line[..line.len().min(80)])
            ))
        })
    }

    pub(super) fn console(&self, heard: &Heard) -> Option<Wrong> {
        if !self.compare.contains(&Channel::Console) {
            return None;
        }
        let (here, there) = (
            self.masked(Channel::Console, &heard.console),
            self.masked(Channel::Console, &self.heard.console),
        );
        let at = match difference(&here, &there, true) {
            Some(at) => at,
            None if heard.console_dropped != self.heard.console_dropped => here.len(),
            None => return None,
        };
        Some(Wrong {
            evidence: format!("console, byte {at}: {}", sides(&here, &there, at)),
            announced: self
                .errors_in(&here, &there, here.len())
                .map(|text| format!("console: {text}")),
        })
    }

    pub(super) fn disk(&self, disks: &[DiskContent]) -> Option<Wrong> {
        if !self.compare.contains(&Channel::Disk) {
            return None;
        }
        let none = DiskContent::default();
        (0..self.disks.len().max(disks.len()).max(self.content.len())).find_map(|number| {
            let here = disks.get(number).unwrap_or(&none);
            let there = self.content.get(number).unwrap_or(&none);
            if here == there {
                return None;
            }
            let mut blocks: Vec<u64> = [here, there]
                .into_iter()
                .flat_map(|of| &of.written)
                .filter(|(_, bytes)| !bytes.is_empty())
                .flat_map(|(offset, bytes)| {
                    offset / BLOCK..=(offset + bytes.len() as u64 - 1) / BLOCK
                })
                .collect();
            blocks.sort_unstable();
            blocks.dedup();
            blocks
                .into_iter()
                .find_map(|block| self.block(number, block, here, there))
        })
    }

    fn block(
        &self,
        number: usize,
        block: u64,
        here: &DiskContent,
        there: &DiskContent,
    ) -> Option<Wrong> {
        let name = self.disks.get(number).map_or("?", |(name, _)| name);
        let read = |content: &DiskContent| {
            let start = block * BLOCK;
            let mut bytes = vec![0; BLOCK as usize];
            if let Some((_, file)) = self.disks.get(number) {
                // What is behind the end stays zero.
                let _ = file.read_at(&mut bytes, start);
            }
            for (offset, written) in &content.written {
                let (from, to) = (
                    (*offset).max(start),
                    (offset + written.len() as u64).min(start + BLOCK),
                );
                if from < to {
                    let of_block = (from - start) as usize..(to - start) as usize;
                    let of_written = (from - offset) as usize..(to - offset) as usize;
                    bytes[of_block].copy_from_slice(&written[of_written]);
                }
            }
            for sector in 0..BLOCK / SECTOR {
                if self.is_ignored(name, block * (BLOCK / SECTOR) + sector) {
                    bytes[(sector * SECTOR) as usize..((sector + 1) * SECTOR) as usize].fill(0);
                }
            }
            bytes
        };
        let (here, there) = (read(here), read(there));
        let (here, there) = (
            self.masked(Channel::Disk, &here),
            self.masked(Channel::Disk, &there),
        );
        let at = difference(&here, &there, true)?;
        let offset = block * BLOCK + at as u64;
        Some(Wrong {
            evidence: format!(
                "disk {name}, sector {}, byte {}: {}",
                offset / SECTOR,
                offset % SECTOR,
                sides(&here, &there, at)
            ),
            announced: None,
        })
    }

    fn is_ignored(&self, disk: &str, sector: u64) -> bool {
        self.ignored.iter().any(|of| {
            (of.first..=of.last).contains(&sector)
                && of.disk.as_ref().is_none_or(|name| name == disk)
        })
    }
}

/// Where two streams differ first. One that is not `complete` may end early.
fn difference(here: &[u8], there: &[u8], complete: bool) -> Option<usize> {
    let common = here.iter().zip(there).take_while(|(a, b)| a == b).count();
    let ends = common == here.len() && (!complete || here.len() == there.len());
    (!ends).then_some(common)
}

fn sides(here: &[u8], there: &[u8], at: usize) -> String {
    let part = |of: &[u8]| {
        let of = &of[at.min(of.len())..];
        let shown = &of[..of.len().min(SHOWN)];
        match shown.is_empty() {
            true => "nothing".to_owned(),
            false => format!("{} ({})", show(shown), hex(shown)),
        }
    };
    format!("{} instead of {}", part(here), part(there))
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Bytes as quoted ASCII.
pub(in crate::talk) fn show(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}
