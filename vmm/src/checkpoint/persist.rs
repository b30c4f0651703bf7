//! What is in the sections of a checkpoint's file.
//!
//! KVM's structures are there as they are: their layout is part of Linux's interface and has not changed for this architecture. Devices
//! and the machine's identity are JSON.

use super::file::{CheckpointError, FRAME, Reader, Writer, damaged};
use super::identity::Identity;
use super::memory::{Backing, Memory, Range};
use super::pages::{Page, PageMap};
use super::state::VcpuState;
use super::take::next_number;
use super::{Checkpoint, Inner, Phase};
use crate::memory::{LARGE_PAGE, ram_ranges};
use quorate_abi::PAGE_SIZE;
use quorate_abi::map::IMAGE_BASE;
use quorate_devices::{DeviceSetState, NET_RX_WAITING_BYTES};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

/// Every section that there is, but for the last.
pub(crate) const SECTIONS: [&str; 11] = [
    "machine",
    "mp-state",
    "regs",
    "sregs",
    "xsave",
    "xcrs",
    "debugregs",
    "msrs",
    "events",
    "devices",
    "memory",
];
/// The one that may be missing: not every processor has XCRs.
const OPTIONAL: &str = "xcrs";

/// Most bytes of a section that is not memory (R10). The largest is `devices`: a byte of a frame that waits for the guest takes up
/// to four characters.
const MAX_SECTION: usize = 4 * NET_RX_WAITING_BYTES + (16 << 20);
/// Most pages in a frame.
const PAGES_AT_ONCE: usize = 256;
const _: () = assert!(8 + PAGES_AT_ONCE * (8 + PAGE_SIZE as usize) <= FRAME);

/// The section `machine`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    identity: Identity,
    /// blake3 digest of the root image's file.
    image: Option<[u8; 32]>,
    phase: Phase,
}

impl Checkpoint {
    /// Writes the checkpoint as a file; see `file.rs` for its form. It holds guest memory and seeds, which are secrets: the file must
    /// be readable for its owner only. The first time a pass over the root image is made, for its digest.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn write_to(&self, to: &mut dyn Write) -> Result<(), CheckpointError> {
        let inner = &*self.inner;
        let image = match (&self.image, inner.image_digest) {
            (Some(image), None) => Some(image.digest()?),
            (_, known) => known,
        };
        let about = About {
            identity: (*inner.identity).clone(),
            image,
            phase: inner.phase,
        };
        let vcpu = &inner.vcpu;
        let mut out = Writer::new(to)?;
        out.section("machine", &json("machine", &about)?)?;
        out.section("mp-state", vcpu.mp_state.as_bytes())?;
        out.section("regs", vcpu.regs.as_bytes())?;
        out.section("sregs", vcpu.sregs.as_bytes())?;
        out.section("xsave", vcpu.xsave.as_bytes())?;
        if let Some(xcrs) = &vcpu.xcrs {
            out.section("xcrs", xcrs.as_bytes())?;
        }
        out.section("debugregs", vcpu.debugregs.as_bytes())?;
        out.section("msrs", &msrs_to_bytes(&vcpu.msrs))?;
        out.section("events", vcpu.events.as_bytes())?;
        out.section("devices", &json("devices", &inner.devices)?)?;
        out.begin("memory")?;
        write_memory(&mut out, &inner.memory)?;
        out.end_section()?;
        out.finish()
    }

    /// Reads what [`Checkpoint::write_to`] wrote, and nothing behind it. Whether it fits a machine is found out by
    /// [`crate::Machine::restore`]. The root image is not in it: see [`Checkpoint::with_image`].
    ///
    /// # Errors
    ///
    /// If it is not a complete, undamaged checkpoint of this version.
    pub fn read_from(from: &mut dyn Read) -> Result<Self, CheckpointError> {
        let mut file = Reader::new(from)?;
        let mut found = Sections::default();
        while let Some(name) = file.next(&SECTIONS)? {
            if name == "memory" {
                // It comes last: its size follows from the others, and so it is never more than they say.
                let about: &About = found
                    .about
                    .as_ref()
                    .ok_or(CheckpointError::Missing("machine"))?;
                if found.memory.is_some() {
                    return Err(CheckpointError::Repeated(name));
                }
                found.memory = Some(read_memory(&mut file, &about.identity)?);
                continue;
            }
            if found.small.iter().any(|(known, _)| *known == name) {
                return Err(CheckpointError::Repeated(name));
            }
            let bytes = file.whole(MAX_SECTION)?;
            if name == "machine" {
                found.about = Some(from_json(name, &bytes)?);
            }
            found.small.push((name, bytes));
        }
        found.into_checkpoint()
    }
}

/// What has been read so far.
#[derive(Default)]
struct Sections {
    small: Vec<(&'static str, Vec<u8>)>,
    about: Option<About>,
    memory: Option<Memory>,
}

impl Sections {
    fn into_checkpoint(self) -> Result<Checkpoint, CheckpointError> {
        let get = |name: &'static str| {
            let section = self.small.iter().find(|(known, _)| *known == name);
            section
                .map(|(_, bytes)| bytes.as_slice())
                .ok_or(CheckpointError::Missing(name))
        };
        let vcpu = VcpuState {
            mp_state: plain("mp-state", get("mp-state")?)?,
            regs: plain("regs", get("regs")?)?,
            sregs: plain("sregs", get("sregs")?)?,
            xsave: plain("xsave", get("xsave")?)?,
            xcrs: match get(OPTIONAL) {
                Ok(bytes) => Some(plain(OPTIONAL, bytes)?),
                Err(_) => None,
            },
            debugregs: plain("debugregs", get("debugregs")?)?,
            lapic: None,
            msrs: msrs_from_bytes(get("msrs")?)?,
            events: plain("events", get("events")?)?,
        };
        let devices: DeviceSetState = from_json("devices", get("devices")?)?;
        let memory = self.memory.ok_or(CheckpointError::Missing("memory"))?;
        let about = self.about.ok_or(CheckpointError::Missing("machine"))?;
        Ok(Checkpoint {
            image: None,
            inner: Arc::new(Inner {
                number: next_number(),
                identity: Arc::new(about.identity),
                image_digest: about.image,
                phase: about.phase,
                vcpu,
                devices,
                memory,
            }),
        })
    }
}

fn json<T: Serialize>(section: &'static str, value: &T) -> Result<Vec<u8>, CheckpointError> {
    serde_json::to_vec(value).map_err(|error| damaged(section, error))
}

fn from_json<T: DeserializeOwned>(
    section: &'static str,
    bytes: &[u8],
) -> Result<T, CheckpointError> {
    serde_json::from_slice(bytes).map_err(|error| damaged(section, error))
}

/// One of KVM's structures, with exactly its length.
fn plain<T: FromBytes>(section: &'static str, bytes: &[u8]) -> Result<T, CheckpointError> {
    T::read_from_bytes(bytes).map_err(|_| {
        let (here, there) = (size_of::<T>(), bytes.len());
        damaged(section, format!("it has {there} bytes instead of {here}"))
    })
}

fn msrs_to_bytes(msrs: &[(u32, u64)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(msrs.len() * 12);
    for (index, value) in msrs {
        bytes.extend_from_slice(&index.to_le_bytes());
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}

fn msrs_from_bytes(bytes: &[u8]) -> Result<Vec<(u32, u64)>, CheckpointError> {
    let (entries, rest) = bytes.as_chunks::<12>();
    if !rest.is_empty() {
        return Err(damaged("msrs", "its length is no multiple of 12"));
    }
    let number = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let entries = entries.iter();
    Ok(entries
        .map(|entry| (number(&entry[..4]) as u32, number(&entry[4..])))
        .collect())
}

/// Each frame: number of the range (u32), how many pages (u32), their numbers in the range (u64), the pages.
fn write_memory(out: &mut Writer<'_>, memory: &Memory) -> Result<(), CheckpointError> {
    let mut frame = Vec::with_capacity(FRAME);
    for (range, number) in memory.ranges.iter().zip(0_u32..) {
        let mut pages = range.map.iter().peekable();
        while pages.peek().is_some() {
            let some: Vec<(usize, &Arc<Page>)> = pages.by_ref().take(PAGES_AT_ONCE).collect();
            frame.clear();
            frame.extend_from_slice(&number.to_le_bytes());
            frame.extend_from_slice(&(some.len() as u32).to_le_bytes());
            for (at, _) in &some {
                frame.extend_from_slice(&(*at as u64).to_le_bytes());
            }
            for (_, page) in &some {
                frame.extend_from_slice(&page[..]);
            }
            out.frame(&frame)?;
        }
    }
    Ok(())
}

fn read_memory(file: &mut Reader<'_>, identity: &Identity) -> Result<Memory, CheckpointError> {
    let bad = |what| damaged("memory", what);
    let mut memory = shape(identity)?;
    // Range and page of the one before: they ascend, so that none comes twice.
    let mut last = None;
    while let Some(frame) = file.frame()? {
        let (head, rest) = frame
            .split_at_checked(8)
            .ok_or_else(|| bad("a frame is too short"))?;
        let number =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (range_number, count) = (number(0) as usize, number(4) as usize);
        let range = memory
            .ranges
            .get_mut(range_number)
            .ok_or_else(|| bad("a page is in no range"))?;
        if count == 0 || count > PAGES_AT_ONCE || rest.len() != count * (8 + PAGE_SIZE as usize) {
            return Err(bad("a frame has another number of pages than it says"));
        }
        let (numbers, pages) = rest.split_at(count * 8);
        let pages = pages.as_chunks::<{ PAGE_SIZE as usize }>().0;
        for (at, page) in numbers.as_chunks::<8>().0.iter().zip(pages) {
            let at = usize::try_from(u64::from_le_bytes(*at))
                .map_err(|_| bad("a page is beyond its range"))?;
            if at >= range.map.len() {
                return Err(bad("a page is beyond its range"));
            }
            if last.is_some_and(|last| last >= (range_number, at)) {
                return Err(bad("pages are not in order"));
            }
            last = Some((range_number, at));
            range.map.set(at, Some(Arc::new(*page)));
        }
    }
    Ok(memory)
}

/// The ranges that a machine with this identity has.
fn shape(identity: &Identity) -> Result<Memory, CheckpointError> {
    let ram = ram_ranges(identity.memory_bytes).map_err(|error| damaged("machine", error))?;
    let mut ranges: Vec<Range> = ram
        .iter()
        .map(|ram| Range {
            start: ram.start,
            backing: Backing::Zeroes,
            map: PageMap::new((ram.len / PAGE_SIZE) as usize),
        })
        .collect();
    if identity.image_bytes > crate::error::MAX_IMAGE {
        return Err(damaged("machine", "the root image is too large"));
    }
    if identity.image_bytes > 0 {
        let len = identity.image_bytes.next_multiple_of(LARGE_PAGE);
        ranges.push(Range {
            start: IMAGE_BASE,
            backing: Backing::File,
            map: PageMap::new((len / PAGE_SIZE) as usize),
        });
    }
    Ok(Memory { ranges })
}

#[cfg(test)]
impl Checkpoint {
    /// The same with an MSR more, through a file.
    pub(crate) fn with_msr(&self, msr: u32) -> Self {
        let mut bytes = Vec::new();
        let read = self
            .write_to(&mut bytes)
            .and_then(|()| Self::read_from(&mut &bytes[..]));
        let Ok(Self { inner, image }) = read else {
            return self.clone();
        };
        let Ok(mut inner) = Arc::try_unwrap(inner) else {
            return self.clone();
        };
        inner.vcpu.msrs.insert(1, (msr, 0));
        Self {
            inner: Arc::new(inner),
            image,
        }
    }
}
