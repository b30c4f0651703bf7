//! Going through a replay as gdb asks, forwards and back.
//!
//! Backwards is forwards from an earlier place: the replay is put back to where it can be put back to, and runs the same way again, up to
//! the last stop before the present one (`reverse-continue`) or to the instruction before it (`reverse-step`). A [`Position`] is
//! therefore a way, not an address. Way and guest are deterministic (R1), so the same way leads to the same place.

use std::collections::BTreeSet;

use quorate_vmm::{DebugStop, Machine, MachineError, Motion, Outcome};

use super::course::Course;
use super::position::{Breakpoints, Place, Position};
use super::watch::Interrupt;

/// Why the guest stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At a breakpoint.
    Breakpoint,
    /// After one instruction.
    Stepped,
    /// gdb wants something.
    Interrupted,
    /// Further back there is nothing.
    Beginning,
    /// The recording, or the guest, ends here; says how.
    End(String),
}

/// Why gdb cannot be served any more.
#[derive(Debug, thiserror::Error)]
pub enum TravelError {
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The replay.
    #[error("{0}")]
    Course(String),
    /// The same way led to another place: what the debugger did has changed the guest, or the guest is not deterministic.
    #[error(
        "the replay did not come back to where it was: something that was changed, or a breakpoint in code that the program reads, leads elsewhere"
    )]
    Elsewhere,
}

/// What came of running on.
enum Event {
    Breakpoint,
    Stepped,
    /// A boundary was crossed; whether the stretch's beginning is a place that can be returned to.
    Crossed {
        clean: bool,
    },
    End(String),
    Interrupted,
}

/// See the module.
pub struct Traveller<C> {
    pub(super) course: C,
    pub(super) breakpoints: Breakpoints,
    pub(super) place: Place,
    pub(super) interrupt: Interrupt,
    /// Places that the guest passes often, from which it is never far to the next instruction of interest.
    landmarks: Breakpoints,
    code_reader: Option<(u64, u64)>,
}

impl<C: Course> Traveller<C> {
    /// Begins where the replay is. `landmarks` are addresses that the guest passes often: `reverse-step` gets quicker with them.
    ///
    /// # Errors
    /// When the guest cannot be held there.
    pub fn new(
        course: C,
        interrupt: Interrupt,
        code_reader: Option<(u64, u64)>,
        landmarks: BTreeSet<u64>,
    ) -> Result<Self, TravelError> {
        let mut traveller = Traveller {
            course,
            breakpoints: Breakpoints::default(),
            place: Place::At(Position::start(0)),
            interrupt,
            landmarks: Breakpoints::new(landmarks),
            code_reader,
        };
        traveller.machine().debug_attach(code_reader);
        let stretch = traveller.course.stretch();
        traveller.place = Place::At(Position::start(stretch));
        traveller.hold()?;
        Ok(traveller)
    }

    /// The machine.
    pub fn machine(&mut self) -> &mut Machine {
        self.course.machine()
    }

    /// Ends the debugging and gives the replay back, to be run on.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn finish(mut self) -> Result<C, TravelError> {
        self.arm(&Breakpoints::default())?;
        while self.machine().debug_is_held() && !matches!(self.place, Place::End(_)) {
            // Out of the debugger's handler, to where an ordinary run goes on.
            if let Event::End(_) = self.drive(Motion::Continue)? {
                break;
            }
        }
        self.machine().debug_detach()?;
        Ok(self.course)
    }

    /// Where the guest is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Replaces the breakpoints.
    ///
    /// # Errors
    /// When one cannot be; the others stay as they were.
    pub fn set_breakpoints(&mut self, breakpoints: BTreeSet<u64>) -> Result<(), MachineError> {
        self.machine()
            .debug_breakpoints(breakpoints.iter().copied())?;
        self.breakpoints = Breakpoints::new(breakpoints);
        Ok(())
    }

    /// Goes forward: to the next breakpoint, or by one instruction.
    ///
    /// # Errors
    /// See [`TravelError`].
    pub fn forward(&mut self, motion: Motion) -> Result<Stop, TravelError> {
        let (mut position, mut known) = match &self.place {
            Place::At(position) => (position.clone(), true),
            Place::After(position) => (position.clone(), false),
            Place::End(_) => return Ok(Stop::End("the recording ends here".to_owned())),
        };
        let breakpoints = Breakpoints::clone(&self.breakpoints);
        self.arm(&breakpoints)?;
        let mut at_start = false;
        let stop = loop {
            match self.drive(motion)? {
                event @ (Event::Breakpoint | Event::Stepped) => {
                    // A step over the `out` of a boundary ends where the stretch begins.
                    if known && !at_start {
                        position.note(motion, &breakpoints);
                    }
                    break match event {
                        Event::Stepped => Stop::Stepped,
                        _ => Stop::Breakpoint,
                    };
                }
                Event::Crossed { clean } => {
                    if clean {
                        position = Position::start(self.course.stretch());
                        known = true;
                        at_start = motion == Motion::Step;
                        if self.interrupt.wanted() {
                            self.hold()?;
                            break Stop::Interrupted;
                        }
                    }
                }
                Event::End(why) => {
                    self.place = Place::End(self.course.stretch());
                    return Ok(Stop::End(why));
                }
                Event::Interrupted => {
                    known = false;
                    self.hold()?;
                    if self.course.stretch() != position.stretch {
                        position = Position::start(self.course.stretch());
                    }
                    break Stop::Interrupted;
                }
            }
        };
        self.place = if known {
            Place::At(position)
        } else {
            Place::After(position)
        };
        Ok(stop)
    }

    /// Steps as long as the next instruction is in a range; once at least.
    ///
    /// # Errors
    /// See [`TravelError`].
    pub fn step_range(&mut self, range: std::ops::Range<u64>) -> Result<Stop, TravelError> {
        loop {
            let stop = self.forward(Motion::Step)?;
            let inside = range.contains(&self.pc()?);
            if stop != Stop::Stepped || !inside {
                return Ok(stop);
            }
            if self.interrupt.wanted() {
                return Ok(Stop::Interrupted);
            }
            let pc = self.pc()?;
            if self.breakpoints.contains(&pc) {
                return Ok(Stop::Breakpoint);
            }
        }
    }

    /// Goes back to the last breakpoint before this place.
    ///
    /// # Errors
    /// See [`TravelError`].
    pub fn reverse_continue(&mut self) -> Result<Stop, TravelError> {
        let place = self.place.clone();
        let wanted = Breakpoints::clone(&self.breakpoints);
        let found = match &place {
            _ if wanted.is_empty() => Some(None),
            Place::At(position) => self.last_before(position, &wanted)?,
            Place::After(position) => self.last_up_to(position, &wanted)?,
            Place::End(stretch) => self.last_between(*stretch, None, &wanted)?,
        };
        let stretch = match &place {
            Place::At(position) | Place::After(position) => position.stretch,
            Place::End(stretch) => *stretch,
        };
        let found = match found {
            Some(None) => self.last_earlier(stretch, &wanted)?,
            other => other,
        };
        match found {
            Some(Some(position)) if self.go_to(&position)? => return Ok(Stop::Breakpoint),
            Some(Some(_)) => {}
            Some(None) => {
                let first = Position::start(self.course.first());
                if self.go_to(&first)? {
                    return Ok(Stop::Beginning);
                }
            }
            None => {}
        }
        self.return_to(&place)?;
        Ok(Stop::Interrupted)
    }

    /// Goes back by one instruction.
    ///
    /// # Errors
    /// See [`TravelError`].
    pub fn reverse_step(&mut self) -> Result<Stop, TravelError> {
        let place = self.place.clone();
        let target = match &place {
            Place::At(position) => match position.trail.last() {
                None => self.last_instruction_before(position.stretch)?,
                Some(leg) if leg.motion == Motion::Step => Some(Some(position.before())),
                Some(leg) => {
                    let goal = Breakpoints::clone(&leg.breakpoints);
                    self.instruction_before(&position.before(), &goal)?
                }
            },
            // Where it was interrupted is not known so exactly: to the last place that is.
            Place::After(position) => Some(Some(position.clone())),
            Place::End(stretch) => self.last_instruction_before(*stretch + 1)?,
        };
        match target {
            Some(Some(position)) if self.go_to(&position)? => return Ok(Stop::Stepped),
            Some(None) => return Ok(Stop::Beginning),
            Some(Some(_)) | None => {}
        }
        self.return_to(&place)?;
        Ok(Stop::Interrupted)
    }

    /// Goes to the beginning of a stretch. False: gdb wants something, and the guest is somewhere on the way.
    ///
    /// # Errors
    /// See [`TravelError`]; also if the recording ends before.
    pub fn go_to_stretch(&mut self, stretch: u64) -> Result<bool, TravelError> {
        self.go_to(&Position::start(stretch))
    }

    /// The next instruction's address.
    pub(super) fn pc(&mut self) -> Result<u64, TravelError> {
        Ok(self.machine().debug_registers()?.rip)
    }

    /// The last stop at one of `wanted` before a position, in its stretch. `Some(None)`: there is none. `None`: gdb wants something.
    fn last_before(
        &mut self,
        position: &Position,
        wanted: &Breakpoints,
    ) -> Result<Option<Option<Position>>, TravelError> {
        let mut stops = Stops::default();
        if !self.retrace(position, wanted, &mut stops)? {
            return Ok(None);
        }
        Ok(Some(if stops.last_is_here {
            stops.before
        } else {
            stops.last
        }))
    }

    /// As [`Traveller::last_before`], this position included.
    fn last_up_to(
        &mut self,
        position: &Position,
        wanted: &Breakpoints,
    ) -> Result<Option<Option<Position>>, TravelError> {
        let mut stops = Stops::default();
        let there = self.retrace(position, wanted, &mut stops)?;
        Ok(there.then_some(stops.last))
    }

    /// The last stop at one of `wanted` in the stretches from `from` (or an earlier one that is cheaper to reach) up to `limit`,
    /// without it; or to the end.
    fn last_between(
        &mut self,
        from: u64,
        limit: Option<u64>,
        wanted: &Breakpoints,
    ) -> Result<Option<Option<Position>>, TravelError> {
        self.course.rewind(from).map_err(TravelError::Course)?;
        self.after_rewind();
        let mut own = Position::start(self.course.stretch());
        let mut last = None;
        self.arm(wanted)?;
        loop {
            match self.drive(Motion::Continue)? {
                Event::Breakpoint | Event::Stepped => {
                    own.note(Motion::Continue, wanted);
                    if own.stretch >= from {
                        last = Some(own.clone());
                    }
                }
                Event::Crossed { clean } => {
                    let stretch = self.course.stretch();
                    if limit.is_some_and(|limit| stretch >= limit) {
                        return Ok(Some(last));
                    }
                    if clean {
                        own = Position::start(stretch);
                    }
                    if self.interrupt.wanted() {
                        return Ok(None);
                    }
                }
                Event::End(_) if limit.is_none() => return Ok(Some(last)),
                Event::End(_) => return Err(TravelError::Elsewhere),
                Event::Interrupted => return Ok(None),
            }
        }
    }

    /// The last stop at one of `wanted` in any stretch before `limit`: piece by piece, each from where the replay can be put
    /// back to.
    fn last_earlier(
        &mut self,
        mut limit: u64,
        wanted: &Breakpoints,
    ) -> Result<Option<Option<Position>>, TravelError> {
        let first = self.course.first();
        while limit > first && !wanted.is_empty() {
            self.course.rewind(limit - 1).map_err(TravelError::Course)?;
            let from = self.course.stretch();
            match self.last_between(from, Some(limit), wanted)? {
                Some(None) => limit = from,
                other => return Ok(other),
            }
        }
        Ok(Some(None))
    }

    /// The instruction with which the stretch before this one ends: the `out` of the boundary.
    fn last_instruction_before(
        &mut self,
        stretch: u64,
    ) -> Result<Option<Option<Position>>, TravelError> {
        if stretch <= self.course.first() {
            return Ok(Some(None));
        }
        let out = match self.place {
            // There the instruction is not complete, or only just: it has one byte.
            Place::End(_) => self.machine().debug_out()?,
            _ => self.pc()? - 1,
        };
        let wanted = Breakpoints::new([out].into());
        let limit = match self.place {
            Place::End(_) => None,
            _ => Some(stretch),
        };
        self.last_between(stretch - 1, limit, &wanted)
    }

    /// The instruction before the next one that is in `goal`, from `start` on.
    fn instruction_before(
        &mut self,
        start: &Position,
        goal: &Breakpoints,
    ) -> Result<Option<Option<Position>>, TravelError> {
        // First in leaps from landmark to landmark.
        if !self.go_to(start)? {
            return Ok(None);
        }
        let both: Breakpoints =
            Breakpoints::new(goal.iter().chain(&*self.landmarks).copied().collect());
        let mut nearest = start.clone();
        let mut own = start.clone();
        self.arm(&both)?;
        loop {
            match self.drive(Motion::Continue)? {
                Event::Breakpoint | Event::Stepped => {
                    if goal.contains(&self.pc()?) {
                        break;
                    }
                    own.note(Motion::Continue, &both);
                    nearest = own.clone();
                }
                Event::Crossed { .. } => {}
                Event::End(_) => return Err(TravelError::Elsewhere),
                Event::Interrupted => return Ok(None),
            }
        }
        // Then step by step.
        if !self.go_to(&nearest)? {
            return Ok(None);
        }
        let mut own = nearest;
        self.arm(goal)?;
        loop {
            match self.drive(Motion::Step)? {
                Event::Breakpoint | Event::Stepped => {
                    if goal.contains(&self.pc()?) {
                        return Ok(Some(Some(own)));
                    }
                    own.note(Motion::Step, goal);
                    if self.interrupt.wanted() {
                        return Ok(None);
                    }
                }
                Event::Crossed { .. } => {}
                Event::End(_) => return Err(TravelError::Elsewhere),
                Event::Interrupted => return Ok(None),
            }
        }
    }

    /// Goes to a position. False: gdb wants something, and the guest is somewhere on the way.
    fn go_to(&mut self, position: &Position) -> Result<bool, TravelError> {
        if !self.retrace(position, &Breakpoints::default(), &mut Stops::default())? {
            return Ok(false);
        }
        let breakpoints = Breakpoints::clone(&self.breakpoints);
        self.arm(&breakpoints)?;
        self.place = Place::At(position.clone());
        Ok(true)
    }

    /// Back to where a motion began that was interrupted.
    pub(super) fn return_to(&mut self, place: &Place) -> Result<(), TravelError> {
        // Not to be interrupted again: it is no further than the guest was.
        let interrupt = std::mem::take(&mut self.interrupt);
        let done = match place {
            Place::At(position) | Place::After(position) => self.go_to(position).map(|_| ()),
            Place::End(stretch) => {
                let end = self.last_between(*stretch, None, &Breakpoints::default());
                self.place = place.clone();
                end.map(|_| ())
            }
        };
        self.interrupt = interrupt;
        done
    }

    /// Goes to a position, and notes the stops at `wanted` on the way through its stretch.
    fn retrace(
        &mut self,
        position: &Position,
        wanted: &Breakpoints,
        stops: &mut Stops,
    ) -> Result<bool, TravelError> {
        self.course
            .rewind(position.stretch)
            .map_err(TravelError::Course)?;
        self.after_rewind();
        self.arm(&Breakpoints::default())?;
        while self.course.stretch() < position.stretch {
            match self.drive(Motion::Continue)? {
                Event::Crossed { .. } if self.interrupt.wanted() => return Ok(false),
                Event::Crossed { .. } => {}
                Event::Interrupted => return Ok(false),
                Event::Breakpoint | Event::Stepped | Event::End(_) => {
                    return Err(TravelError::Elsewhere);
                }
            }
        }
        self.hold()?;
        let mut own = Position::start(position.stretch);
        for leg in &position.trail {
            let armed = match leg.motion {
                // A step that meets a breakpoint of others would be none.
                Motion::Step => Breakpoints::clone(&leg.breakpoints),
                Motion::Continue => {
                    Breakpoints::new(leg.breakpoints.iter().chain(&**wanted).copied().collect())
                }
            };
            self.arm(&armed)?;
            let mut left = leg.count;
            while left > 0 {
                match self.drive(leg.motion)? {
                    Event::Breakpoint | Event::Stepped => {
                        own.note(leg.motion, &armed);
                        let at = self.pc()?;
                        stops.last_is_here = false;
                        if wanted.contains(&at) {
                            stops.before = stops.last.replace(own.clone());
                            stops.last_is_here = true;
                        }
                        if leg.motion == Motion::Step || leg.breakpoints.contains(&at) {
                            left -= 1;
                        }
                        if self.interrupt.wanted() {
                            return Ok(false);
                        }
                    }
                    Event::Crossed { .. } => {}
                    Event::Interrupted => return Ok(false),
                    Event::End(_) => return Err(TravelError::Elsewhere),
                }
            }
        }
        Ok(true)
    }

    /// One run of the machine, and the boundary if it comes to one.
    fn drive(&mut self, motion: Motion) -> Result<Event, TravelError> {
        loop {
            return Ok(match self.machine().debug_run(motion)? {
                DebugStop::Breakpoint => Event::Breakpoint,
                DebugStop::Stepped => Event::Stepped,
                DebugStop::Other(Outcome::Boundary(boundary)) => {
                    let clean = self.machine().debug_is_between();
                    if self.course.cross(boundary).map_err(TravelError::Course)? {
                        Event::Crossed { clean }
                    } else {
                        Event::End("the recording ends here".to_owned())
                    }
                }
                DebugStop::Other(Outcome::Kicked) if self.interrupt.wanted() => Event::Interrupted,
                // Or a stop that somebody else has asked the machine for.
                DebugStop::Other(Outcome::Kicked | Outcome::Stopped) => continue,
                DebugStop::Other(Outcome::Crash(report)) => {
                    Event::End(format!("the guest crashed: {}", report.kind))
                }
                DebugStop::Other(Outcome::Misbehaved(error)) => {
                    Event::End(format!("the guest broke the rules of a device: {error}"))
                }
            });
        }
    }

    fn arm(&mut self, breakpoints: &Breakpoints) -> Result<(), TravelError> {
        Ok(self
            .machine()
            .debug_breakpoints(breakpoints.iter().copied())?)
    }

    /// Holds the guest at its next instruction.
    fn hold(&mut self) -> Result<(), TravelError> {
        loop {
            match self.machine().debug_hold()? {
                None => return Ok(()),
                // In the monitor, a few instructions from where it can be held: a kick of the watch, or a run, brings it out.
                Some(DebugStop::Other(Outcome::Kicked)) => match self.drive(Motion::Continue)? {
                    Event::Interrupted | Event::Breakpoint | Event::Stepped => {}
                    Event::Crossed { .. } => {}
                    Event::End(why) => return Err(TravelError::Course(why)),
                },
                Some(_) => return Err(TravelError::Elsewhere),
            }
        }
    }

    /// The machine may be another one.
    fn after_rewind(&mut self) {
        let (interrupt, code_reader) = (self.interrupt.clone(), self.code_reader);
        let machine = self.machine();
        interrupt.machine_is(machine);
        if !machine.debug_is_attached() {
            machine.debug_attach(code_reader);
        }
    }
}

/// Stops that were met on the way to a position.
#[derive(Default)]
struct Stops {
    last: Option<Position>,
    /// The one before.
    before: Option<Position>,
    /// The last one is the position itself.
    last_is_here: bool,
}
