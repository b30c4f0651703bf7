//! `[[fault]]`: what is injected, when, and to how many replicas.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{BitChange, BlockFault, Direction, EntryFault, PageFault};

/// One `[[fault]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultSpec {
    /// Its name, unique in the campaign.
    pub name: String,
    /// What is done.
    pub fault: FaultModel,
    /// To how many replicas the same is done; each number is a stratum of its own.
    pub copies: Vec<u8>,
    /// Whether each item of the list that says what is hit is a stratum of its own.
    pub split: bool,
    /// Draws of each of its strata in a round.
    pub weight: u32,
    /// When.
    pub when: When,
}

/// A number between two, both included; each alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The least.
    pub least: i64,
    /// The most.
    pub most: i64,
}

impl Span {
    /// One number.
    #[must_use]
    pub fn only(value: i64) -> Self {
        Self {
            least: value,
            most: value,
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.least == self.most {
            write!(f, "{}", self.least)
        } else {
            write!(f, "{} to {}", self.least, self.most)
        }
    }
}

/// Which bits of a word are changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bits {
    /// How many, at any places; of a burst: how many side by side.
    pub count: u8,
    /// Whether they are side by side.
    pub burst: bool,
    /// What becomes of them: one of these.
    pub change: Vec<BitChange>,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "model", rename_all = "kebab-case")]
pub enum FaultModel {
    /// Bits of a register.
    Register {
        /// Groups and names, as written.
        registers: Vec<String>,
        /// Which bits.
        #[serde(flatten)]
        bits: Bits,
    },
    /// Bits of memory (the model `queue` too: the class `queues`).
    Memory {
        /// Where.
        place: Place,
        /// Which bits.
        #[serde(flatten)]
        bits: Bits,
    },
    /// A page.
    Page {
        /// Where.
        place: Place,
        /// What becomes of it: one of these.
        how: Vec<PageFault>,
    },
    /// Block requests.
    Block {
        /// What becomes of one: one of these.
        how: Vec<BlockFault>,
        /// Only those of the file system's own blocks.
        metadata: bool,
    },
    /// Frames.
    Frame {
        /// What becomes of one: one of these.
        how: Vec<FrameKind>,
        /// Whose: one of these.
        direction: Vec<Direction>,
        /// For [`FrameKind::Delay`], boundaries.
        delay: Span,
    },
    /// The clock.
    Clock {
        /// How it goes wrong: one of these.
        how: Vec<ClockKind>,
        /// For [`ClockKind::Step`], microseconds.
        step_us: Span,
        /// For [`ClockKind::Skew`], parts per million.
        ppm: Span,
    },
    /// A stall of the vCPU's thread.
    Stall {
        /// Milliseconds; 0: for ever.
        millis: Span,
    },
    /// A slow vCPU.
    Slow {
        /// Milliseconds at each boundary.
        millis: Span,
        /// How many boundaries.
        boundaries: Span,
    },
    /// The guest spins.
    Hang,
    /// A triple fault.
    Crash,
    /// A system call fails.
    Syscall {
        /// Errors, positive: one of these.
        errno: Vec<u16>,
    },
    /// The entry of a boundary.
    Entry {
        /// What becomes of it: one of these.
        how: Vec<EntryFault>,
    },
}

/// Where memory is hit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Any byte of the guest's RAM.
    Ram,
    /// One of these classes, then any byte of it.
    Classes(Vec<String>),
    /// One of these places, as `quorate inject` names them.
    Named(Vec<String>),
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrameKind {
    /// It is lost.
    Drop,
    /// One bit is another.
    Corrupt,
    /// It comes twice.
    Duplicate,
    /// It comes after the next one.
    Reorder,
    /// It comes later.
    Delay,
}

/// How a clock goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockKind {
    /// It jumps.
    Step,
    /// It goes too fast or too slow.
    Skew,
    /// It stands still.
    Stop,
}

/// When a fault comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "when", rename_all = "kebab-case")]
pub enum When {
    /// At a boundary.
    Boundary {
        /// Which one.
        distribution: Distribution,
    },
    /// At a time, ns of the trial's virtual time.
    Time {
        /// Which one.
        distribution: Distribution,
    },
    /// After a system call.
    Syscall {
        /// Which one.
        distribution: Distribution,
    },
    /// Before an instruction.
    Instruction {
        /// Which one.
        distribution: Distribution,
    },
    /// Before a function.
    Symbol {
        /// One of these.
        symbols: Vec<String>,
        /// The how manieth time, from 1.
        hit: Span,
    },
}

/// A point of a trial's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Point {
    /// Boundary, ns, call or instruction.
    Number(u64),
    /// So much of the trial's length, in [`Point::WHOLE`]ths: whole numbers, so that they are the same after they were written.
    Share(u32),
}

/// How a trigger is spread over the trial's length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Distribution {
    /// Always there.
    Fixed {
        /// Where.
        at: Point,
    },
    /// Each alike.
    Uniform {
        /// The first.
        from: Point,
        /// The last, included.
        to: Point,
    },
    /// Gaussian, cut to the trial's length.
    Normal {
        /// Its middle.
        mean: Point,
        /// Its standard deviation.
        deviation: Point,
    },
    /// Exponential from the trial's beginning, cut to its length.
    Exponential {
        /// Its mean (before it is cut).
        mean: Point,
    },
    /// Uniform within some width of one of several points.
    Burst {
        /// The points, each alike.
        centres: Vec<Point>,
        /// The whole width of each.
        width: Point,
    },
}

impl FaultModel {
    /// Its name in files and reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            FaultModel::Register { .. } => "register",
            FaultModel::Memory { .. } => "memory",
            FaultModel::Page { .. } => "page",
            FaultModel::Block { .. } => "block",
            FaultModel::Frame { .. } => "frame",
            FaultModel::Clock { .. } => "clock",
            FaultModel::Stall { .. } => "stall",
            FaultModel::Slow { .. } => "slow",
            FaultModel::Hang => "hang",
            FaultModel::Crash => "crash",
            FaultModel::Syscall { .. } => "syscall",
            FaultModel::Entry { .. } => "entry",
        }
    }
}

impl Point {
    /// All of the trial.
    pub const WHOLE: u32 = 1_000_000_000;
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Point::Number(number) => write!(f, "{number}"),
            Point::Share(share) => write!(f, "{}%", f64::from(*share) / 1e7),
        }
    }
}
