//! What is done to a replica in a trial.

use serde::{Deserialize, Serialize};

use super::Trigger;

/// Everything that a trial is, but for the number of replicas: the same in every layout, on every machine, and drawn from the
/// campaign's seed by its number alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drawn {
    /// Number of the draw, from 0.
    pub draw: u64,
    /// Name of the stratum that it belongs to.
    pub stratum: String,
    /// What is done.
    pub fault: Fault,
    /// When.
    pub trigger: Trigger,
    /// To how many replicas the same is done.
    pub copies: u8,
    /// The first replica that it is done to, modulo their number; further ones follow it.
    pub victim: u64,
}

impl Drawn {
    /// The replicas of a set of `replicas` that are hit.
    #[must_use]
    pub fn victims(&self, replicas: u8) -> Vec<usize> {
        let n = u64::from(replicas.max(1));
        (0..u64::from(self.copies).min(n))
            .map(|i| ((self.victim % n + i) % n) as usize)
            .collect()
    }
}

/// What becomes of the bits in a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BitChange {
    /// They are inverted once: a transient fault.
    Flip,
    /// They stay 0 from then on, as far as that is enforced: at every stop of the machine.
    StuckAt0,
    /// They stay 1.
    StuckAt1,
}

/// A fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Fault {
    /// Bits of a register. At a boundary and after a system call, where the kernel is at work in all replicas, those of the program
    /// that is served; at a function or an instruction those that the vCPU has there.
    Register {
        /// Its name: `rax` … `r15`, `rip`, `rflags`, `fs_base`, `gs_base`, `xmm0` … `xmm15` and what else `quorate_vmm::fault` offers.
        register: String,
        /// Which bits, low ones first; for vector registers of the lane.
        mask: u64,
        /// Of a vector register the 64-bit lane, else 0.
        lane: u8,
        /// What becomes of them.
        change: BitChange,
    },
    /// Bits of guest memory.
    Memory {
        /// Where.
        place: MemoryPlace,
        /// Which bits of the 64-bit word that begins at the place (low byte first).
        mask: u64,
        /// What becomes of them.
        change: BitChange,
    },
    /// A whole page.
    Page {
        /// A place in it.
        place: MemoryPlace,
        /// What becomes of it.
        how: PageFault,
    },
    /// The first block request of the sort that is meant from the trigger on.
    Block {
        /// What becomes of it.
        how: BlockFault,
        /// Only requests that concern the file system's own blocks (superblock, group descriptors, bitmaps, inode tables, journal); else
        /// only others.
        metadata: bool,
        /// Chooses sector, byte and bit.
        pick: u64,
    },
    /// The next frame.
    Frame {
        /// What becomes of it.
        how: FrameFault,
        /// Which frames.
        direction: Direction,
        /// Chooses byte and bit.
        pick: u64,
    },
    /// The clock that the replica is shown.
    Clock {
        /// How it goes.
        how: ClockFault,
    },
    /// The vCPU's thread stalls for so long.
    Stall {
        /// Milliseconds; 0: for ever.
        millis: u64,
    },
    /// The vCPU waits before each of its next boundaries.
    Slow {
        /// Milliseconds.
        millis: u64,
        /// How many.
        boundaries: u64,
    },
    /// The guest spins for ever.
    Hang,
    /// A triple fault.
    Crash,
    /// A system call fails.
    Syscall {
        /// The error, positive.
        errno: u16,
    },
    /// The entry of a boundary; where it is to be lost, the next one that holds something.
    Entry {
        /// What becomes of it.
        how: EntryFault,
        /// Chooses frame, byte and bit.
        pick: u64,
    },
}

/// A place in memory that means the same in every layout. `pick` is a random number: modulo the bytes there are (rounded down to
/// 8), in the order of their addresses in the region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "in", rename_all = "kebab-case")]
pub enum MemoryPlace {
    /// Any byte of the guest's RAM, by physical address: not the same in two layouts.
    Ram {
        /// See above.
        pick: u64,
    },
    /// A class of memory, as `quorate_vmm::fault::MemoryClass` names it: `text`, `heap`, `kernel-data` and so on.
    Class {
        /// Its name.
        class: String,
        /// See above.
        pick: u64,
    },
    /// As `quorate inject` names places: `REGION+0x12` or `REGION:TEXT#N`.
    Named {
        /// The place.
        place: String,
    },
}

/// What becomes of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PageFault {
    /// It is not mapped any more.
    Drop,
    /// It holds zeros.
    Zero,
}

/// What becomes of a block request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockFault {
    /// One bit of what is written is another.
    Corrupt,
    /// Only the first half of what is written is.
    Torn,
    /// A write that is said to be done and is not.
    Lost,
    /// A write that goes to another sector.
    Misdirected,
    /// A read that fails.
    ReadError,
    /// One bit of what is read is another.
    ReadCorrupt,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrameFault {
    /// It is lost.
    Drop,
    /// One bit of it is another.
    Corrupt,
    /// It comes twice.
    Duplicate,
    /// It comes after the next one.
    Reorder,
    /// It comes some boundaries later.
    Delay {
        /// How many.
        boundaries: u32,
    },
}

/// Which frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Those that the guest sends.
    Output,
    /// Those that it is given.
    Input,
}

/// How a clock goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockFault {
    /// It jumps by so many nanoseconds.
    Step {
        /// Forwards, or back if negative.
        ns: i64,
    },
    /// It goes too fast by so many parts per million.
    Skew {
        /// Too slow if negative.
        ppm: i64,
    },
    /// It stands still.
    Stop,
}

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryFault {
    /// Its frames and completions are lost.
    Lost,
    /// One bit of one of its frames, or of its time, is another.
    Altered,
}
