//! To an instruction of a [`Trace`], or to a function, with few stops.

use super::trace::{Place, Position, Trace};
use crate::debug::{DebugStop, Motion, Stepped, Steps};
use crate::error::MachineError;
use crate::machine::{Machine, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What a stop at a breakpoint costs, in single steps: two exits.
const STEPS_PER_HIT: u64 = 2;
/// How often the first of two places may be met before it is the one: then the second is counted from there.
const FIRST_HITS: u32 = 8;
/// How far before an instruction the first of two places may be, in instructions.
const FURTHEST: usize = 1 << 16;

/// A way to an instruction: to one place or to two, one after the other, and single steps from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Where the instruction is.
    pub position: Position,
    /// The place of the instruction.
    pub target: Place,
    /// A place to stop at before, and at which hit from the stretch's beginning on; `None`: steps from the beginning.
    pub stop: Option<(Place, u64)>,
    /// A place to stop at then, and at which hit after that.
    pub then: Option<(Place, u64)>,
    /// Single steps from there.
    pub steps: u64,
}

impl Reach {
    /// The cheapest way to a position; `None` if the trace does not have it.
    #[must_use]
    pub fn plan(trace: &Trace, position: Position) -> Option<Self> {
        let target = trace.place(position)?;
        let stretch = trace
            .stretches
            .get(usize::try_from(position.stretch).ok()?)?;
        let index = usize::try_from(position.index).ok()?;
        let pcs = stretch.pcs.get(..=index)?;
        let place = |pc: u32| trace.places.get(pc as usize).copied();
        // Where a breakpoint would not be met as often as the trace has it: instructions that met an exception are begun twice, and
        // repetitions of one are one.
        let mut unfit = vec![false; trace.places.len()];
        let excepted = stretch
            .excepted
            .iter()
            .filter_map(|&at| stretch.pcs.get(at as usize));
        let repeated = pcs
            .windows(2)
            .filter(|two| two[0] == two[1])
            .map(|two| &two[0]);
        for &pc in excepted.chain(repeated) {
            *unfit.get_mut(pc as usize)? = true;
        }
        // The last instructions before whose places were met once, twice and so on by then.
        let mut counts = vec![0_u32; trace.places.len()];
        let mut first = [None; FIRST_HITS as usize];
        for (at, &pc) in pcs.iter().enumerate() {
            let count = counts.get_mut(pc as usize)?;
            *count += 1;
            if *count <= FIRST_HITS && !unfit[pc as usize] {
                first[*count as usize - 1] = Some(at);
            }
        }
        let mut best = Self {
            position,
            target,
            stop: None,
            then: None,
            steps: position.index,
        };
        let mut cost = position.index;
        // One place, counted from the beginning.
        let (at, hits) = nearest(pcs, &unfit, 0, cost);
        if let Some(price) = at.map(|at| (index - at) as u64 + STEPS_PER_HIT * hits)
            && price < cost
        {
            cost = price;
            best.stop = Some((place(pcs[at?])?, hits));
            best.steps = (index - at?) as u64;
        }
        for (hits, at) in (1..).zip(first) {
            let Some(at) = at.filter(|at| index - at <= FURTHEST) else {
                continue;
            };
            let begun = STEPS_PER_HIT * hits;
            let stop = Some((place(pcs[at])?, hits));
            let steps = (index - at) as u64;
            if begun + steps < cost {
                cost = begun + steps;
                best = Self {
                    stop,
                    then: None,
                    steps,
                    ..best
                };
            }
            if begun >= cost {
                continue;
            }
            let (then, more) = nearest(pcs, &unfit, at + 1, cost - begun);
            if let Some(then) = then {
                let steps = (index - then) as u64;
                let price = begun + STEPS_PER_HIT * more + steps;
                if price < cost {
                    cost = price;
                    best = Self {
                        stop,
                        then: Some((place(pcs[then])?, more)),
                        steps,
                        ..best
                    };
                }
            }
        }
        Some(best)
    }
}

/// The instruction from `from` on with which the end of `pcs` is reached most cheaply: by as many hits of its place after `from`,
/// and steps. Cheaper than `limit`, or none.
fn nearest(pcs: &[u32], unfit: &[bool], from: usize, limit: u64) -> (Option<usize>, u64) {
    let mut counts: HashMap<u32, u64> = HashMap::new();
    for &pc in pcs.get(from..).unwrap_or_default() {
        *counts.entry(pc).or_default() += 1;
    }
    let (mut best, mut cost) = ((None, 0), limit);
    for (back, &pc) in (0..).zip(pcs.get(from..).unwrap_or_default().iter().rev()) {
        if back >= cost {
            break;
        }
        let Some(count) = counts.get_mut(&pc) else {
            break;
        };
        let hits = *count;
        *count -= 1;
        let price = back + STEPS_PER_HIT * hits;
        if price < cost && !unfit.get(pc as usize).copied().unwrap_or(true) {
            cost = price;
            best = (Some(pcs.len() - 1 - back as usize), hits);
        }
    }
    best
}

/// How a run towards a place has ended.
#[derive(Debug)]
pub enum Reached {
    /// The machine stands before the instruction, and goes on with [`Machine::run`]: registers and memory can be changed.
    Here,
    /// As [`Machine::run`]. A function may still be reached in the next stretch.
    Other(Outcome),
    /// The machine went another way than the trace; it stands somewhere in the stretch, and goes on with [`Machine::run`].
    Missed(String),
}

/// Brings a machine to a place.
#[derive(Debug)]
pub struct Reacher {
    goal: Goal,
    /// See [`Machine::debug_attach`].
    code_reader: Option<(u64, u64)>,
}

#[derive(Debug)]
enum Goal {
    Reach(Reach),
    Address { at: u64, left: u64 },
    Done,
}

impl Reacher {
    /// To an instruction of a trace. `code_reader` as for [`Machine::debug_attach`].
    #[must_use]
    pub fn new(reach: Reach, code_reader: Option<(u64, u64)>) -> Self {
        Self {
            goal: Goal::Reach(reach),
            code_reader,
        }
    }

    /// To the `hit`-th time (from 1) that the instruction at a virtual address is about to be executed, in the address space in use when
    /// [`Reacher::run`] is first called.
    #[must_use]
    pub fn at(address: u64, hit: u64, code_reader: Option<(u64, u64)>) -> Self {
        Self {
            goal: Goal::Address {
                at: address,
                left: hit.max(1),
            },
            code_reader,
        }
    }

    /// Runs the machine on: instead of [`Machine::run`], for an instruction of a trace in its stretch only. When it is reached, or missed, the
    /// debugger is gone, and this is not to be called again (it is [`Machine::run`] then).
    pub fn run(&mut self, machine: &mut Machine) -> Reached {
        let tried = match &self.goal {
            Goal::Reach(reach) => self.reach(*reach, machine),
            Goal::Address { at, left } => self.address(*at, *left, machine),
            Goal::Done => Ok(Reached::Other(machine.run())),
        };
        let reached = match tried {
            Ok(reached) => reached,
            Err(error) => {
                let _ = release(machine);
                Reached::Missed(error.to_string())
            }
        };
        if !matches!(reached, Reached::Other(_)) {
            self.goal = Goal::Done;
        }
        reached
    }

    fn address(
        &mut self,
        at: u64,
        left: u64,
        machine: &mut Machine,
    ) -> Result<Reached, MachineError> {
        let mut left = left;
        if !machine.debug_is_attached() {
            machine.debug_attach(self.code_reader);
            machine.debug_breakpoints([at])?;
        }
        while left > 0 {
            match machine.debug_run(Motion::Continue)? {
                DebugStop::Breakpoint => left -= 1,
                DebugStop::Stepped => {}
                DebugStop::Other(outcome) => {
                    self.goal = Goal::Address { at, left };
                    return Ok(Reached::Other(outcome));
                }
            }
        }
        release(machine)?;
        Ok(Reached::Here)
    }

    fn reach(&mut self, reach: Reach, machine: &mut Machine) -> Result<Reached, MachineError> {
        let layout = *machine.layout();
        let mut steps = match Steps::begin(machine)? {
            Ok(steps) => steps,
            Err(outcome) => return Ok(Reached::Other(outcome)),
        };
        let stops = reach.stop.into_iter().chain(reach.then);
        for (number, (place, hits)) in stops.enumerate() {
            let address = place.address(&layout);
            match steps.run_to(machine, address, hits, number == 0)? {
                Some(Stepped::At(_)) => {}
                Some(Stepped::Out(outcome)) => {
                    self.goal = Goal::Done;
                    return Ok(Reached::Other(outcome));
                }
                None => {
                    // Nothing is mapped there yet: the debugger waits until something is.
                    steps.end(machine)?;
                    let (at, left) = (address, hits);
                    match self.address(at, left, machine)? {
                        Reached::Here => {}
                        other => {
                            self.goal = Goal::Done;
                            release(machine)?;
                            return Ok(other);
                        }
                    }
                    steps = match Steps::begin(machine)? {
                        Ok(steps) => steps,
                        Err(outcome) => return Ok(Reached::Other(outcome)),
                    };
                }
            }
        }
        steps.follow_exceptions(machine)?;
        for _ in 0..reach.steps {
            if let Stepped::Out(outcome) = steps.step(machine)? {
                self.goal = Goal::Done;
                return Ok(Reached::Other(outcome));
            }
        }
        steps.end(machine)?;
        machine.settle()?;
        let here = Place::of(&layout, machine.registers()?.rip);
        if here == reach.target {
            return Ok(Reached::Here);
        }
        Ok(Reached::Missed(format!(
            "instruction {} of stretch {} is at {}, but the machine is at {}",
            reach.position.index,
            reach.position.stretch,
            reach.target.text(&layout),
            here.text(&layout)
        )))
    }
}

fn release(machine: &mut Machine) -> Result<(), MachineError> {
    machine.debug_release()?;
    machine.debug_detach()
}
