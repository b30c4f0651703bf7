//! Places in a guest's memory as a user names them, for faults that are to hit something certain:
//!
//! | place | meaning |
//! | --- | --- |
//! | `0x1234` or a decimal number | guest-physical address |
//! | `REGION+0x1234` | offset in a region of the layout, in the address space that is in use |
//! | `REGION:TEXT` | the first place in the region that holds these bytes; `\xNN` is a byte |
//! | `REGION:TEXT#N` | the N-th such place, from 0 |
//!
//! Regions: `kernel`, `kernel_dynamic`, `program`, `libraries`, `mmap`, `threads`, `heap`, `stack`.

use std::fmt;
use std::str::FromStr;

use quorate_vmm::Machine;

use crate::explain::atlas::{regions, relative};
use crate::explain::live::Live;
use crate::explain::memory::{Memory, Space, read_virt, translate};

/// Longest text that is looked for.
const MAX_TEXT: usize = 256;
/// Bytes that are read at once.
const CHUNK: u64 = 1 << 16;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Guest-physical.
    Physical(u64),
    /// Region and offset.
    Relative(String, u64),
    /// Region, bytes, which of several.
    Holding(String, Vec<u8>, usize),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        let number = |text: &str| match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        };
        if let Some(address) = number(text) {
            return Ok(Place::Physical(address));
        }
        let known = |name: &str| {
            let names = regions_of_programs();
            match names.contains(&name) {
                true => Ok(name.to_owned()),
                false => Err(format!(
                    "{name:?} is no region: one of {}",
                    names.join(", ")
                )),
            }
        };
        let colon = text.find(':').unwrap_or(text.len());
        if let Some((region, offset)) = text[..colon].split_once('+') {
            let offset = number(offset).ok_or_else(|| format!("{offset:?} is no offset"))?;
            return Ok(Place::Relative(known(region)?, offset));
        }
        let Some((region, wanted)) = text.split_once(':') else {
            return Err(format!(
                "{text:?} is no place: give an address, REGION+OFFSET or REGION:TEXT"
            ));
        };
        let (wanted, which) = match wanted.rsplit_once('#') {
            Some((before, index)) => match index.parse() {
                Ok(index) => (before, index),
                Err(_) => (wanted, 0),
            },
            None => (wanted, 0),
        };
        let bytes = unescaped(wanted)?;
        if bytes.is_empty() || bytes.len() > MAX_TEXT {
            return Err(format!(
                "the text to look for must have 1 to {MAX_TEXT} bytes"
            ));
        }
        Ok(Place::Holding(known(region)?, bytes, which))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Physical(address) => write!(f, "{address:#x}"),
            Place::Relative(region, offset) => write!(f, "{region}+{offset:#x}"),
            Place::Holding(region, bytes, which) => {
                write!(f, "{region}:{}#{which}", bytes.escape_ascii())
            }
        }
    }
}

fn regions_of_programs() -> [&'static str; 8] {
    [
        "kernel",
        "kernel_dynamic",
        "program",
        "libraries",
        "mmap",
        "threads",
        "heap",
        "stack",
    ]
}

fn unescaped(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let hex = after
            .strip_prefix(b"x")
            .and_then(|hex| std::str::from_utf8(hex.get(..2)?).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (hex, after.first()) {
            (Some(byte), _) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            (None, Some(b'\\')) => {
                bytes.push(b'\\');
                rest = &after[1..];
            }
            _ => {
                return Err(format!(
                    "{text:?}: \\ must be followed by xNN or another \\"
                ));
            }
        }
    }
    Ok(bytes)
}

impl Place {
    /// The guest-physical address that it stands for in this machine, which must not run. To look for text reads all of the region.
    ///
    /// # Errors
    /// When nothing is mapped there, or the text is nowhere; says so.
    pub fn physical(&self, machine: &Machine) -> Result<u64, String> {
        let memory = Live::new(machine);
        let layout = machine.layout();
        let region = |wanted: &str| {
            regions(layout)
                .into_iter()
                .find(|(name, ..)| *name == wanted)
                .map_or((0, 0), |(_, start, len)| (start, len))
        };
        match self {
            Place::Physical(address) => Ok(*address),
            Place::Relative(name, offset) => {
                let (start, len) = region(name);
                let virt = start.saturating_add(*offset);
                if *offset >= len {
                    return Err(format!("{self}: the region has {len:#x} bytes"));
                }
                translate(&memory, memory.root(), virt)
                    .ok_or_else(|| format!("{self}: nothing is mapped there"))
            }
            Place::Holding(name, bytes, which) => {
                let (start, len) = region(name);
                let space = Space::walk(&memory, memory.root());
                let mut left = *which;
                let mut run: Option<(u64, u64)> = None;
                let mut runs = Vec::new();
                for mapping in space
                    .mappings
                    .range(start..start.saturating_add(len))
                    .map(|(_, m)| m)
                {
                    run = match run {
                        Some((from, to)) if to == mapping.virt => Some((from, to + mapping.len)),
                        other => {
                            runs.extend(other);
                            Some((mapping.virt, mapping.virt + mapping.len))
                        }
                    };
                }
                runs.extend(run);
                for (from, to) in runs {
                    if let Some(virt) = search(&memory, (from, to), bytes, &mut left) {
                        return translate(&memory, memory.root(), virt)
                            .ok_or_else(|| format!("{self}: nothing is mapped there"));
                    }
                }
                Err(format!("{self}: these bytes are not there"))
            }
        }
    }
}

/// The first place from `from` to `to` that holds `bytes`, after `left` others.
fn search(
    memory: &dyn Memory,
    (from, to): (u64, u64),
    bytes: &[u8],
    left: &mut usize,
) -> Option<u64> {
    let overlap = bytes.len() as u64 - 1;
    let mut at = from;
    while at < to {
        let want = (to - at).min(CHUNK + overlap) as usize;
        let mut chunk = vec![0; want];
        let there = read_virt(memory, memory.root(), at, &mut chunk);
        chunk.truncate(there);
        for (offset, window) in chunk.windows(bytes.len()).enumerate() {
            if window == bytes {
                if *left == 0 {
                    return Some(at + offset as u64);
                }
                *left -= 1;
            }
        }
        at += CHUNK;
    }
    None
}

/// A place relative to the layout, for messages; the address if it is in no region.
#[must_use]
pub fn describe(machine: &Machine, virt: u64) -> String {
    relative(machine.layout(), virt).map_or_else(
        || format!("{virt:#x}"),
        |(region, offset)| format!("{region}+{offset:#x}"),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::explain::memory::fake::Fake;

    #[test]
    fn places_are_read_and_wrong_ones_named() {
        let place = |text: &str| text.parse::<Place>();
        assert_eq!(place("0x1234").unwrap(), Place::Physical(0x1234));
        assert_eq!(place("77").unwrap(), Place::Physical(77));
        assert_eq!(
            place("mmap+0x10").unwrap(),
            Place::Relative("mmap".into(), 16)
        );
        assert_eq!(
            place("heap:a+b\\x00\\\\").unwrap(),
            Place::Holding("heap".into(), b"a+b\0\\".to_vec(), 0)
        );
        assert_eq!(
            place("heap:x#2").unwrap(),
            Place::Holding("heap".into(), b"x".to_vec(), 2)
        );
        assert_eq!(
            place("heap:x#y").unwrap(),
            Place::Holding("heap".into(), b"x#y".to_vec(), 0)
        );
        for (text, expected) in [
            ("attic+1", "\"attic\" is no region"),
            ("mmap+z", "\"z\" is no offset"),
            ("nothing", "is no place"),
            ("heap:", "1 to 256"),
            ("heap:\\q", "followed by"),
        ] {
            let error = place(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        for text in ["0x1234", "mmap+0x10", "heap:abc#2"] {
            assert_eq!(place(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn text_is_found_across_pages_and_chunks() {
        let mut memory = Fake::new();
        let base = 0x7000_0000_0000;
        for page in 0..40 {
            // Neighbours in the address space, not in memory.
            memory.map(base + page * 0x1000, 0x80_0000 - page * 0x1000);
        }
        for at in [0xffd, 0xfffd, 0x2_1000] {
            memory.write_virt(base + at, b"needle");
        }
        let find = |which| {
            search(&memory, (base, base + 40 * 0x1000), b"needle", &mut {
                which
            })
        };
        assert_eq!(find(0), Some(base + 0xffd));
        assert_eq!(find(1), Some(base + 0xfffd));
        assert_eq!(find(2), Some(base + 0x2_1000));
        assert_eq!(find(3), None);
    }
}
