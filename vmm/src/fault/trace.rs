//! Every instruction of a healthy run, by its place: so that a fault can come at any of them, and how to get there is known.
//!
//! What is counted are stops of a single-stepped processor, kernel and program alike. Not counted is what the monitor does at CPL 0: it
//! belongs to the instruction that led there, as does the one instruction that follows it. A repeated string instruction counts once for each
//! repetition. Disk, network and time are the VMM's and no instructions.

use super::{FaultError, Reach, regions};
use crate::debug::{Stepped, Steps};
use crate::machine::{Machine, Outcome};
use crate::{Layout, MachineError};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// First bytes of a trace in a file.
const MAGIC: &[u8; 8] = b"QTRACE\0\x01";
/// Region number of an address in no region.
const NOWHERE: u8 = 255;

/// An address, relative to the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Number of the region in [`super::regions`]; 255: none, and the offset is the address.
    pub region: u8,
    /// Offset in it.
    pub offset: u64,
}

impl Place {
    /// The place of an address.
    #[must_use]
    pub fn of(layout: &Layout, virt: u64) -> Self {
        let found = (0..)
            .zip(regions(layout))
            .find_map(|(region, (_, start, len))| {
                let offset = virt.checked_sub(start).filter(|offset| *offset < len)?;
                Some(Self { region, offset })
            });
        found.unwrap_or(Self {
            region: NOWHERE,
            offset: virt,
        })
    }

    /// Its address in a layout.
    #[must_use]
    pub fn address(self, layout: &Layout) -> u64 {
        let start = regions(layout)
            .get(usize::from(self.region))
            .map_or(0, |r| r.1);
        start.wrapping_add(self.offset)
    }

    /// In words: `program+0x12`.
    #[must_use]
    pub fn text(self, layout: &Layout) -> String {
        match regions(layout).get(usize::from(self.region)) {
            Some((name, ..)) => format!("{name}+{:#x}", self.offset),
            None => format!("{:#x}", self.offset),
        }
    }
}

/// Where an instruction of a [`Trace`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Number of the stretch between two boundaries, from 0: the one that begins with the entry of the base's boundary.
    pub stretch: u64,
    /// Number of the instruction in it, from 0.
    pub index: u64,
}

/// What is wrong with a trace in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// It is none, or one of another version.
    #[error("this is no trace of this version")]
    Magic,
    /// It ends in the middle, or contradicts itself.
    #[error("the trace is damaged")]
    Damaged,
}

/// One stretch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Numbers of places.
    pub pcs: Vec<u32>,
    /// Indices of instructions that met an exception.
    pub excepted: Vec<u32>,
}

/// Every instruction of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Different places, in the order in which they were first reached.
    pub(super) places: Vec<Place>,
    pub(super) stretches: Vec<Stretch>,
}

impl Trace {
    /// How many instructions it has.
    #[must_use]
    pub fn instructions(&self) -> u64 {
        self.stretches.iter().map(|s| s.pcs.len() as u64).sum()
    }

    /// How many stretches.
    #[must_use]
    pub fn stretches(&self) -> u64 {
        self.stretches.len() as u64
    }

    /// Instructions in a stretch.
    #[must_use]
    pub fn stretch_len(&self, stretch: u64) -> u64 {
        let found = usize::try_from(stretch)
            .ok()
            .and_then(|at| self.stretches.get(at));
        found.map_or(0, |stretch| stretch.pcs.len() as u64)
    }

    /// Where the instruction with this number (from 0) is.
    #[must_use]
    pub fn position(&self, instruction: u64) -> Option<Position> {
        let mut left = instruction;
        for (stretch, of) in (0..).zip(&self.stretches) {
            let len = of.pcs.len() as u64;
            if left < len {
                return Some(Position {
                    stretch,
                    index: left,
                });
            }
            left -= len;
        }
        None
    }

    /// The place of the instruction at a position.
    #[must_use]
    pub fn place(&self, at: Position) -> Option<Place> {
        let stretch = self.stretches.get(usize::try_from(at.stretch).ok()?)?;
        let number = *stretch.pcs.get(usize::try_from(at.index).ok()?)?;
        self.places.get(number as usize).copied()
    }

    /// The cheapest way to an instruction.
    #[must_use]
    pub fn reach(&self, instruction: u64) -> Option<Reach> {
        Reach::plan(self, self.position(instruction)?)
    }

    /// As bytes. They compress well (zstd: about a tenth).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        put(&mut bytes, self.places.len() as u64);
        for place in &self.places {
            bytes.push(place.region);
            put(&mut bytes, place.offset);
        }
        put(&mut bytes, self.stretches.len() as u64);
        for stretch in &self.stretches {
            put(&mut bytes, stretch.pcs.len() as u64);
            let mut last = 0;
            for &pc in &stretch.pcs {
                // Straight code that is executed again is a run of ones.
                let step = i64::from(pc) - last;
                put(&mut bytes, ((step << 1) ^ (step >> 63)) as u64);
                last = i64::from(pc);
            }
            put(&mut bytes, stretch.excepted.len() as u64);
            for &index in &stretch.excepted {
                put(&mut bytes, index.into());
            }
        }
        bytes
    }

    /// From bytes.
    ///
    /// # Errors
    ///
    /// If they are no trace.
    pub fn decode(bytes: &[u8]) -> Result<Self, TraceError> {
        let mut left = bytes.strip_prefix(MAGIC).ok_or(TraceError::Magic)?;
        let mut trace = Self::default();
        // No count is believed before as many bytes were there.
        for _ in 0..take(&mut left)? {
            let (&region, rest) = left.split_first().ok_or(TraceError::Damaged)?;
            left = rest;
            let offset = take(&mut left)?;
            trace.places.push(Place { region, offset });
        }
        for _ in 0..take(&mut left)? {
            let mut stretch = Stretch::default();
            let mut last = 0_i64;
            for _ in 0..take(&mut left)? {
                let step = take(&mut left)?;
                last = last.wrapping_add((step >> 1) as i64 ^ -((step & 1) as i64));
                let pc = u32::try_from(last)
                    .ok()
                    .filter(|pc| (*pc as usize) < trace.places.len());
                stretch.pcs.push(pc.ok_or(TraceError::Damaged)?);
            }
            for _ in 0..take(&mut left)? {
                let index = u32::try_from(take(&mut left)?).map_err(|_| TraceError::Damaged)?;
                stretch.excepted.push(index);
            }
            trace.stretches.push(stretch);
        }
        if left.is_empty() {
            Ok(trace)
        } else {
            Err(TraceError::Damaged)
        }
    }
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take(bytes: &mut &[u8]) -> Result<u64, TraceError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(TraceError::Damaged)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(TraceError::Damaged)
}

/// Makes a [`Trace`]: [`Tracer::run`] takes the place of [`Machine::run`] from the base to the end of the run.
#[derive(Debug)]
pub struct Tracer {
    trace: Trace,
    numbers: HashMap<Place, u32>,
    /// By address: a shortcut.
    known: HashMap<u64, u32>,
    left: u64,
    failed: Option<MachineError>,
}

impl Tracer {
    /// At most `limit` instructions are traced (R10); then the machine runs on without.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            trace: Trace::default(),
            numbers: HashMap::new(),
            known: HashMap::new(),
            left: limit,
            failed: None,
        }
    }

    /// Runs the machine to the next boundary, one instruction at a time. After [`Outcome::Kicked`] the next call goes on in the same stretch.
    pub fn run(&mut self, machine: &mut Machine) -> Outcome {
        if self.left == 0 || self.failed.is_some() {
            return machine.run();
        }
        match self.stretch(machine) {
            Ok(outcome) => outcome,
            Err(error) => {
                self.failed = Some(error);
                machine.run()
            }
        }
    }

    /// Whether the whole run was traced: the limit was not met, and KVM did not fail.
    ///
    /// # Errors
    ///
    /// What KVM said.
    pub fn finish(self) -> Result<(Trace, bool), FaultError> {
        match self.failed {
            Some(error) => Err(error.into()),
            None => Ok((self.trace, self.left > 0)),
        }
    }

    fn stretch(&mut self, machine: &mut Machine) -> Result<Outcome, MachineError> {
        let mut stretch = Stretch::default();
        let outcome = self.trace_into(machine, &mut stretch);
        self.trace.stretches.push(stretch);
        outcome
    }

    fn trace_into(
        &mut self,
        machine: &mut Machine,
        to: &mut Stretch,
    ) -> Result<Outcome, MachineError> {
        let mut steps = match Steps::begin(machine)? {
            Ok(steps) => steps,
            Err(outcome) => return Ok(outcome),
        };
        steps.follow_exceptions(machine)?;
        let layout = *machine.layout();
        to.pcs.push(self.number(&layout, steps.at()));
        loop {
            match steps.step(machine)? {
                Stepped::At(at) => {
                    if steps.excepted() {
                        to.excepted.push(to.pcs.len() as u32 - 1);
                    }
                    to.pcs.push(self.number(&layout, at));
                }
                Stepped::Out(outcome) => return Ok(outcome),
            }
            self.left -= 1;
            if self.left == 0 {
                steps.end(machine)?;
                return Ok(machine.run());
            }
        }
    }

    fn number(&mut self, layout: &Layout, at: u64) -> u32 {
        if let Some(&number) = self.known.get(&at) {
            return number;
        }
        let place = Place::of(layout, at);
        let next = self.trace.places.len() as u32;
        let number = *self.numbers.entry(place).or_insert(next);
        if number == next {
            self.trace.places.push(place);
        }
        self.known.insert(at, number);
        number
    }
}
