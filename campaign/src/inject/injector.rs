//! One victim of a trial: waits for the trigger, applies the fault, says what it did.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_devices::{Entry, Output};
use quorate_executor::stage::Interposer;
use quorate_vmm::fault::{Reached, Reacher, Trace, Whose};
use quorate_vmm::{Machine, Outcome};

use crate::model::{Direction, Drawn, Fault, Trigger};

use super::bits;
use super::blocks::{Blocks, DiskFacts};
use super::clock::{Clock, Times};
use super::entries;
use super::frames::Frames;
use super::machine::{Stuck, apply};
use super::report::{Hit, Injected, Report};
use super::symbols::Symbols;

/// What all injectors of a bench need to know.
#[derive(Clone)]
pub struct Surroundings {
    /// The disks, in the order of their numbers.
    pub disks: Arc<[DiskFacts]>,
    /// Functions by name.
    pub symbols: Arc<Symbols>,
    /// Every instruction of the healthy trial, if it was recorded: triggers by instruction need it.
    pub trace: Option<Arc<Trace>>,
    /// What the guest's clocks show at the checkpoint, ns: monotonic and wall-clock.
    pub began: (u64, u64),
}

/// See the module.
///
/// A fault is transient: it is over when its replica was put back to a checkpoint. Stuck bits are not, they come again.
pub struct Injector {
    fault: Fault,
    trigger: Trigger,
    surroundings: Surroundings,
    injected: Injected,
    state: State,
    /// What the replica was shown last.
    shown: Times,
    /// The last boundary that it has completed.
    boundary: u64,
    /// On the way to a function or an instruction.
    reacher: Option<Reacher>,
    /// What the set has not been told of yet.
    news: Option<String>,
}

enum State {
    /// The trigger has not come.
    Waiting,
    Active(Effect),
    /// Nothing more happens.
    Over,
}

/// A fault that goes on, or waits for an occasion.
enum Effect {
    Frames(Frames, Direction),
    Blocks(Box<Blocks>),
    Clock(Clock),
    Entry,
    /// Boundaries that are left.
    Slow(u64),
    Stall,
    Stuck(Stuck),
    /// The kernel is told to let a call fail.
    Call,
}

impl Injector {
    /// Of a draw, for one of its victims. Both share the result.
    #[must_use]
    pub fn new(drawn: &Drawn, surroundings: Surroundings) -> (Injector, Injected) {
        let injected = Injected::default();
        let injector = Injector {
            fault: drawn.fault.clone(),
            trigger: drawn.trigger.clone(),
            shown: surroundings.began,
            surroundings,
            injected: injected.clone(),
            state: State::Waiting,
            boundary: 0,
            reacher: None,
            news: None,
        };
        (injector, injected)
    }

    fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    fn hit(&mut self, place: String, location: Option<(String, u64)>, boundary: u64) {
        // The first counts: bits that are stuck, or a clock that is wrong, go on.
        if matches!(self.injected.report(), Report::Hit(_)) {
            return;
        }
        self.news = Some(place.clone());
        self.injected.set(Report::Hit(Hit {
            place,
            location,
            boundary,
            virtual_ns: self.shown.0.saturating_sub(self.surroundings.began.0),
            at: Instant::now(),
        }));
    }

    fn fail(&mut self, why: String) {
        self.injected.set(Report::Failed(why));
        self.state = State::Over;
    }

    /// The trigger has come. The machine stands; `inside`: between two boundaries, where the vCPU's registers are what was meant.
    fn fire(&mut self, machine: &mut Machine, inside: bool) {
        self.state = State::Over;
        match self.begin(machine, inside) {
            Ok(Some(effect)) => {
                if !matches!(self.injected.report(), Report::Hit(_)) {
                    self.injected.set(Report::Armed);
                }
                self.state = State::Active(effect);
            }
            Ok(None) => {}
            Err(why) => self.fail(why),
        }
    }

    fn begin(&mut self, machine: &mut Machine, inside: bool) -> Result<Option<Effect>, String> {
        let boundary = self.boundary;
        let effect = match self.fault.clone() {
            Fault::Register { .. }
            | Fault::Memory { .. }
            | Fault::Page { .. }
            | Fault::Hang
            | Fault::Crash => {
                // At boundaries and after calls the kernel is at work in every replica; what a processor has in its registers nearly all of
                // the time is the program's.
                let whose = if inside { Whose::Vcpu } else { Whose::Program };
                let done = apply(machine, &self.fault, whose)?;
                self.hit(done.place, done.location, boundary);
                return Ok(done.stuck.map(Effect::Stuck));
            }
            Fault::Syscall { errno } => {
                machine
                    .fail_call(1, errno)
                    .map_err(|error| error.to_string())?;
                Effect::Call
            }
            Fault::Block {
                how,
                metadata,
                pick,
            } => {
                let disks = Arc::clone(&self.surroundings.disks);
                Effect::Blocks(Box::new(Blocks::new(how, metadata, pick, disks)?))
            }
            Fault::Frame {
                how,
                direction,
                pick,
            } => Effect::Frames(Frames::new(how, pick), direction),
            Fault::Clock { how } => {
                let clock = Clock::new(how, self.shown);
                self.hit(clock.text(), Some(("clock".to_owned(), 0)), boundary);
                Effect::Clock(clock)
            }
            Fault::Stall { .. } => Effect::Stall,
            Fault::Slow { boundaries, .. } => Effect::Slow(boundaries),
            Fault::Entry { .. } => Effect::Entry,
        };
        Ok(Some(effect))
    }

    /// What is set up before the guest runs at all.
    fn prepare(&mut self, machine: &mut Machine) {
        let set_up = match (&self.trigger, &self.fault) {
            // The call itself fails.
            (Trigger::Syscall { call }, Fault::Syscall { errno }) => {
                self.state = State::Active(Effect::Call);
                machine.fail_call(*call, *errno)
            }
            (Trigger::Syscall { call }, _) => machine.stop_at_call(*call),
            _ => return,
        };
        if let Err(error) = set_up {
            self.fail(error.to_string());
        }
    }

    /// The way to a function or an instruction, from this stretch on.
    fn plan(&mut self, machine: &Machine, next_boundary: u64) -> Result<(), String> {
        let reader = || self.surroundings.symbols.code_reader(machine);
        let reacher = match &self.trigger {
            Trigger::Symbol { symbol, hit } => {
                let address = self.surroundings.symbols.address(symbol, machine)?;
                Reacher::at(address, *hit, reader())
            }
            Trigger::Instruction { instruction } => {
                let trace = self
                    .surroundings
                    .trace
                    .as_ref()
                    .ok_or("no instructions were recorded of the healthy trial")?;
                let position = trace
                    .position(*instruction)
                    .ok_or_else(|| format!("the healthy trial has no instruction {instruction}"))?;
                if position.stretch + 1 != next_boundary {
                    return Ok(());
                }
                let reach = trace
                    .reach(*instruction)
                    .ok_or_else(|| format!("the trace has no way to instruction {instruction}"))?;
                Reacher::new(reach, reader())
            }
            _ => return Ok(()),
        };
        self.reacher = Some(reacher);
        Ok(())
    }

    /// Towards a function or an instruction. The outcome, if the run is at an end.
    fn reach(&mut self, machine: &mut Machine) -> Option<Outcome> {
        let reacher = self.reacher.as_mut()?;
        match reacher.run(machine) {
            Reached::Here => {
                self.reacher = None;
                self.fire(machine, true);
                None
            }
            Reached::Missed(why) => {
                self.reacher = None;
                self.fail(why);
                None
            }
            Reached::Other(outcome) => Some(outcome),
        }
    }

    /// Whether a call that was told to fail has done so.
    fn look_for_call(&mut self, machine: &Machine, boundary: u64) {
        let Fault::Syscall { errno } = self.fault else {
            return;
        };
        match machine.call_failed() {
            Ok(Some(call)) => {
                let text = format!("system call {call} fails with error {errno}");
                self.hit(text, Some(("system call".to_owned(), call)), boundary);
                self.state = State::Over;
            }
            Ok(None) => {}
            Err(error) => self.fail(error.to_string()),
        }
    }
}

impl Interposer for Injector {
    fn run(&mut self, machine: &mut Machine, next_boundary: u64) -> Outcome {
        if self.is_waiting()
            && self.reacher.is_none()
            && let Err(why) = self.plan(machine, next_boundary)
        {
            self.fail(why);
        }
        // The entry with that time has been delivered, and nothing has run since.
        if let Trigger::Time { ns } = self.trigger
            && self.is_waiting()
            && self.shown.0.saturating_sub(self.surroundings.began.0) >= ns
        {
            self.fire(machine, false);
        }
        if let Some(outcome) = self.reach(machine) {
            return outcome;
        }
        loop {
            let outcome = machine.run();
            if matches!(self.state, State::Active(Effect::Call)) {
                // The program may have ended over it, and comes to no boundary.
                self.look_for_call(machine, next_boundary.saturating_sub(1));
            }
            if !matches!(outcome, Outcome::Stopped) {
                return outcome;
            }
            // At exceptions behind the call it stops again.
            if let Err(error) = machine.stop_at_no_call() {
                self.fail(error.to_string());
            }
            if self.is_waiting() {
                self.fire(machine, false);
            }
        }
    }

    fn stall(&mut self, boundary: u64) -> Option<Duration> {
        let (wait, text) = match (&mut self.state, &self.fault) {
            (State::Active(Effect::Stall), Fault::Stall { millis: 0 }) => {
                (Duration::MAX, "its thread stalls for ever".to_owned())
            }
            (State::Active(Effect::Stall), Fault::Stall { millis }) => (
                Duration::from_millis(*millis),
                format!("its thread stalls for {millis} ms"),
            ),
            (State::Active(Effect::Slow(left)), Fault::Slow { millis, boundaries }) => {
                let Some(fewer) = left.checked_sub(1) else {
                    self.state = State::Over;
                    return None;
                };
                *left = fewer;
                (
                    Duration::from_millis(*millis),
                    format!("it waits {millis} ms before each of {boundaries} boundaries"),
                )
            }
            _ => return None,
        };
        self.hit(text, None, boundary);
        if matches!(self.state, State::Active(Effect::Stall)) {
            self.state = State::Over;
        }
        Some(wait)
    }

    fn outputs(&mut self, boundary: u64, outputs: &mut Vec<Output>) {
        match &mut self.state {
            State::Active(Effect::Frames(frames, Direction::Output)) => {
                // Frames stand before everything else in a ballot.
                let mut sent = Vec::new();
                let mut rest = Vec::new();
                for output in outputs.drain(..) {
                    match output {
                        Output::Frame(frame) => sent.push(frame),
                        other => rest.push(other),
                    }
                }
                let hit = frames.pass(boundary, &mut sent);
                let over = frames.over();
                outputs.extend(sent.into_iter().map(Output::Frame));
                outputs.append(&mut rest);
                if over {
                    self.state = State::Over;
                }
                self.happened(hit, "frames out", boundary);
            }
            State::Active(Effect::Blocks(blocks)) => {
                let hit = blocks.outputs(outputs);
                if blocks.over() {
                    self.state = State::Over;
                }
                self.happened(hit, "disk", boundary);
            }
            _ => {}
        }
    }

    fn at_boundary(&mut self, machine: &mut Machine, boundary: u64) -> Result<(), String> {
        self.boundary = boundary;
        if boundary == 0 && self.is_waiting() {
            self.prepare(machine);
        }
        if let State::Active(Effect::Stuck(stuck)) = &self.state {
            stuck.enforce(machine);
        }
        let due = match self.trigger {
            Trigger::Boundary { boundary: at } => boundary >= at,
            _ => false,
        };
        if due && self.is_waiting() {
            self.fire(machine, false);
        }
        Ok(())
    }

    fn entry(&mut self, boundary: u64, entry: &Arc<Entry>) -> Arc<Entry> {
        let given = self.change(boundary, entry);
        self.shown = (given.monotonic_ns, given.realtime_ns);
        given
    }

    fn read(&mut self, boundary: u64, disk: u8, seq: u64, data: &mut Vec<u8>) {
        if let State::Active(Effect::Blocks(blocks)) = &mut self.state {
            let hit = blocks.data(disk, seq, data);
            if blocks.over() {
                self.state = State::Over;
            }
            self.happened(hit, "disk", boundary);
        }
    }

    fn told(&mut self) -> Option<String> {
        self.news.take()
    }

    fn restored(&mut self, boundary: u64) {
        self.boundary = boundary;
        self.reacher = None;
        self.shown = self.surroundings.began;
        if !matches!(self.state, State::Active(Effect::Stuck(_))) {
            self.state = State::Over;
        }
    }
}

impl Injector {
    /// What is delivered instead of an entry.
    fn change(&mut self, boundary: u64, entry: &Arc<Entry>) -> Arc<Entry> {
        match &mut self.state {
            State::Active(Effect::Frames(frames, Direction::Input)) => {
                let mut other = Entry::clone(entry);
                let hit = frames.pass(boundary, &mut other.frames);
                if frames.over() {
                    self.state = State::Over;
                }
                self.happened(hit, "frames in", boundary);
                Arc::new(other)
            }
            State::Active(Effect::Blocks(blocks)) => {
                let Some((other, hit)) = blocks.entry(entry) else {
                    return Arc::clone(entry);
                };
                self.state = State::Over;
                self.happened(Some(hit), "disk", boundary);
                other
            }
            State::Active(Effect::Clock(clock)) => {
                let (monotonic_ns, realtime_ns) =
                    clock.shows((entry.monotonic_ns, entry.realtime_ns));
                Arc::new(Entry {
                    monotonic_ns,
                    realtime_ns,
                    ..Entry::clone(entry)
                })
            }
            State::Active(Effect::Entry) => {
                let Fault::Entry { how, pick } = self.fault else {
                    return Arc::clone(entry);
                };
                let Some((other, hit)) = entries::spoil(how, pick, entry) else {
                    return Arc::clone(entry);
                };
                self.state = State::Over;
                self.happened(Some(hit), "entry", boundary);
                other
            }
            _ => Arc::clone(entry),
        }
    }

    fn happened(&mut self, hit: Option<bits::Hit>, where_to: &str, boundary: u64) {
        if let Some(bits::Hit { text, offset }) = hit {
            self.hit(text, Some((where_to.to_owned(), offset)), boundary);
        }
    }
}
