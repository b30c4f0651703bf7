//! Address layouts: where a replica's regions lie in its virtual address space. All replicas of a set agree on the low
//! 30 bits of what a program can notice (R8); everything else is drawn from the layout seed, over the full lower half.

use quorate_abi::PAGE_SIZE;
use quorate_abi::boot::Layout;
use quorate_devices::SeedStream;
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;
/// Nothing lies this close to a region, so that running off its end is always a fault.
const GUARD: u64 = GIB;

/// Label of the stream that places what only the kernel sees, and picks the high bits of the rest.
const LABEL: [u8; 12] = *b"layout      ";
/// Label of the input seed's stream for the low 30 bits that all replicas share.
const SHARED_LABEL: [u8; 12] = *b"layout low  ";
/// Label of the input seed's stream for regions that lie at the same place in all replicas.
const COMMON_LABEL: [u8; 12] = *b"layout same ";

/// How the replicas of a set get their layouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayoutKind {
    /// One layout for all, from the input seed: no diversity.
    Same,
    /// Every region of every replica at its own place, from the layout seed.
    #[default]
    Random,
}

impl fmt::Display for LayoutKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "same",
            Self::Random => "random",
        })
    }
}

/// A layout that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// No free range is large enough.
    #[error(
        "the layout cannot fit: no {len} bytes ({gib} GiB) are left for `{region}` between {low:#x} and {high:#x}",
        gib = len >> 30
    )]
    DoesNotFit {
        /// The region.
        region: &'static str,
        /// Its length, with guards.
        len: u64,
        /// Where the address space starts.
        low: u64,
        /// Where the address space ends.
        high: u64,
    },
    /// The seed's stream is used up, which no layout comes near to.
    #[error("the layout seed is used up")]
    Seed,
}

/// The virtual addresses that may be used, `[low, high)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressSpace {
    /// First address.
    pub low: u64,
    /// First address behind it.
    pub high: u64,
}

impl AddressSpace {
    /// The lower half of the canonical addresses, without the first 64 GiB (so that small numbers are no pointers)
    /// and without the last part, which some hosts keep for themselves.
    pub const FULL: Self = Self {
        low: 64 * GIB,
        high: 0x7ff0_0000_0000,
    };
}

/// What a layout is made from.
#[derive(Clone, Debug)]
pub struct LayoutRequest {
    /// How.
    pub kind: LayoutKind,
    /// Differs from replica to replica.
    pub layout_seed: [u8; 32],
    /// The same for all replicas of a set.
    pub input_seed: [u8; 32],
    /// Bytes of the kernel in memory.
    pub kernel_bytes: u64,
    /// Bytes of the boot block that are mapped.
    pub boot_bytes: u64,
    /// End of guest-physical RAM.
    pub ram_end: u64,
    /// Bytes of the root image.
    pub image_bytes: u64,
}

/// One region to be placed.
struct Region {
    name: &'static str,
    len: u64,
    /// Distance between its possible places.
    step: u64,
    /// Its address modulo `step`.
    offset: u64,
    /// The same place in all replicas of a set.
    common: bool,
    place: fn(&mut Layout) -> &mut u64,
}

impl LayoutRequest {
    /// The seed whose stream decides. With [`LayoutKind::Same`] the layout seed plays no part.
    pub(crate) fn seed(&self) -> [u8; 32] {
        match self.kind {
            LayoutKind::Same => self.input_seed,
            LayoutKind::Random => self.layout_seed,
        }
    }

    /// Makes the layout, anywhere in the address space.
    ///
    /// # Errors
    ///
    /// If it cannot fit.
    pub fn generate(&self) -> Result<Layout, LayoutError> {
        self.generate_in(AddressSpace::FULL)
    }

    /// Makes the layout in part of the address space.
    ///
    /// # Errors
    ///
    /// If it cannot fit there.
    pub fn generate_in(&self, space: AddressSpace) -> Result<Layout, LayoutError> {
        let mut layout = Layout {
            kernel: 0,
            boot: 0,
            direct: 0,
            image: 0,
            devices: 0,
            kernel_dynamic: 0,
            program: 0,
            libraries: 0,
            mmap: 0,
            threads: 0,
            heap: 0,
            stack_top: 0,
        };
        let mut stream = SeedStream::new(self.seed(), LABEL);
        let mut common = SeedStream::new(self.input_seed, COMMON_LABEL);
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for region in self.regions()? {
            let stream = if region.common {
                &mut common
            } else {
                &mut stream
            };
            let start = place(&region, space, &taken, stream)?;
            *(region.place)(&mut layout) = start;
            taken.push((start, start + region.len));
            taken.sort_unstable();
        }
        layout.stack_top += STACK; // Regions are placed by their start, the stack is named by its end.
        Ok(layout)
    }

    /// All regions, the common one and then large ones first, since those have the fewest places. The order must not depend on a size.
    fn regions(&self) -> Result<Vec<Region>, LayoutError> {
        let mut shared = SeedStream::new(self.input_seed, SHARED_LABEL);
        let mut low_bits = || {
            let bits = shared.next_u64().ok_or(LayoutError::Seed)?;
            Ok::<_, LayoutError>(bits % GIB / PAGE_SIZE * PAGE_SIZE)
        };
        let whole = |bytes: u64| bytes.next_multiple_of(PAGE_SIZE).max(PAGE_SIZE);
        let mut regions = Vec::new();
        let mut add =
            |name: &'static str, len, step, offset, place: fn(&mut Layout) -> &mut u64| {
                regions.push(Region {
                    name,
                    len,
                    step,
                    offset,
                    common: name == "threads",
                    place,
                });
            };
        // First, on empty ground: only so it comes to lie at the same place in every replica.
        add("threads", THREADS, GIB, low_bits()?, |at| &mut at.threads);
        add("mmap", MMAP, GIB, low_bits()?, |at: &mut Layout| {
            &mut at.mmap
        });
        add("direct", whole(self.ram_end), GIB, 0, |at| &mut at.direct);
        add("libraries", LIBRARIES, GIB, low_bits()?, |at| {
            &mut at.libraries
        });
        add("heap", HEAP, GIB, low_bits()?, |at| &mut at.heap);
        add("program", PROGRAM, GIB, low_bits()?, |at| &mut at.program);
        add("stack", STACK, GIB, low_bits()?, |at| &mut at.stack_top);
        add(
            "image",
            whole(self.image_bytes).next_multiple_of(LARGE_PAGE),
            LARGE_PAGE,
            0,
            |at| &mut at.image,
        );
        add("kernel_dynamic", KERNEL_DYNAMIC, PAGE_SIZE, 0, |at| {
            &mut at.kernel_dynamic
        });
        add("kernel", whole(self.kernel_bytes), PAGE_SIZE, 0, |at| {
            &mut at.kernel
        });
        add("boot", whole(self.boot_bytes), PAGE_SIZE, 0, |at| {
            &mut at.boot
        });
        add("devices", DEVICES, PAGE_SIZE, 0, |at| &mut at.devices);
        Ok(regions)
    }
}

const THREADS: u64 = 64 * GIB;
const MMAP: u64 = 512 * GIB;
const LIBRARIES: u64 = 64 * GIB;
const HEAP: u64 = 64 * GIB;
const KERNEL_DYNAMIC: u64 = 64 * GIB;
const PROGRAM: u64 = 16 * GIB;
const STACK: u64 = GIB;
const DEVICES: u64 = quorate_abi::map::MMIO_SLOTS * quorate_abi::map::MMIO_STRIDE;

/// Draws one of all places that are free, each with the same probability (but for 2^-20 or less).
fn place(
    region: &Region,
    space: AddressSpace,
    taken: &[(u64, u64)],
    stream: &mut SeedStream,
) -> Result<u64, LayoutError> {
    // Free ranges of start addresses, both ends included.
    let ends = taken.iter().map(|&(_, end)| end);
    let starts = taken.iter().map(|&(start, _)| start);
    let gaps = std::iter::once(space.low)
        .chain(ends)
        .zip(starts.chain(std::iter::once(space.high)));
    let ranges = gaps.filter_map(|(from, to)| {
        let first = align_up(from.checked_add(GUARD)?, region.step, region.offset)?;
        let last = to.checked_sub(region.len)?.checked_sub(GUARD)?;
        (first <= last).then(|| (first, (last - first) / region.step + 1))
    });
    let ranges: Vec<(u64, u64)> = ranges.collect();
    let places: u64 = ranges.iter().map(|&(_, count)| count).sum();
    if places == 0 {
        return Err(LayoutError::DoesNotFit {
            region: region.name,
            len: region.len + 2 * GUARD,
            low: space.low,
            high: space.high,
        });
    }
    let mut choice = stream.next_u64().ok_or(LayoutError::Seed)? % places;
    for (first, count) in ranges {
        if choice < count {
            return Ok(first + choice * region.step);
        }
        choice -= count;
    }
    Err(LayoutError::Seed) // Not reached: `choice` is below the sum of the counts.
}

/// The first address from `from` on that is `offset` modulo `step`.
fn align_up(from: u64, step: u64, offset: u64) -> Option<u64> {
    let base = from / step * step;
    let at = base.checked_add(offset)?;
    if at >= from {
        Some(at)
    } else {
        at.checked_add(step)
    }
}
