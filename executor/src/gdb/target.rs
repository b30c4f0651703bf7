//! The replay as gdb's target: what `gdbstub` asks for. One thread, which is the processor; the guest's threads are not told apart.

use std::fmt::Write as _;

use gdbstub::common::Signal;
use gdbstub::outputln;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::reverse_exec::{
    ReverseCont, ReverseContOps, ReverseStep, ReverseStepOps,
};
use gdbstub::target::ext::base::singlethread::{
    SingleThreadBase, SingleThreadRangeStepping, SingleThreadRangeSteppingOps, SingleThreadResume,
    SingleThreadResumeOps, SingleThreadSingleStep, SingleThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, SwBreakpoint, SwBreakpointOps,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use quorate_vmm::Motion;

use super::course::Course;
use super::position::Place;
use super::symbols::Symbols;
use super::travel::{Stop, TravelError, Traveller};

/// What the guest is to do when gdb waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// `continue`.
    Continue,
    /// `stepi`.
    Step,
    /// `step`: as long as it is in this range.
    Range(std::ops::Range<u64>),
    /// `reverse-continue`.
    ReverseContinue,
    /// `reverse-stepi`.
    ReverseStep,
}

/// See the module.
pub struct Debugged<C> {
    pub(super) traveller: Traveller<C>,
    pub(super) action: Action,
    pub(super) symbols: Symbols,
}

impl<C: Course> Debugged<C> {
    /// Does what gdb wants.
    ///
    /// # Errors
    /// See [`TravelError`].
    pub fn act(&mut self) -> Result<Stop, TravelError> {
        let traveller = &mut self.traveller;
        match self.action.clone() {
            Action::Continue => traveller.forward(Motion::Continue),
            Action::Step => traveller.forward(Motion::Step),
            Action::Range(range) => traveller.step_range(range),
            Action::ReverseContinue => traveller.reverse_continue(),
            Action::ReverseStep => traveller.reverse_step(),
        }
    }

    /// Where the guest is, for a person.
    fn place(&self) -> String {
        let (text, position) = match self.traveller.place() {
            Place::At(position) => ("", position),
            Place::After(position) => ("interrupted somewhere after: ", position),
            Place::End(stretch) => {
                return format!("at boundary {stretch}, where the recording or the guest ends");
            }
        };
        let mut text = format!("{text}on the way to boundary {}", position.stretch);
        let (stops, steps) = position.motions();
        // Writing to a string does not fail.
        if (stops, steps) == (0, 0) {
            let _ = write!(text, ", at the first instruction");
        } else {
            let _ = write!(text, ", {stops} stops and {steps} steps on");
        }
        text
    }
}

impl<C: Course> Target for Debugged<C> {
    type Arch = X86_64_SSE;
    type Error = TravelError;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::SingleThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl<C: Course> SingleThreadBase for Debugged<C> {
    fn read_registers(&mut self, to: &mut X86_64CoreRegs) -> TargetResult<(), Self> {
        let machine = self.traveller.machine();
        let from = machine.debug_registers().map_err(fatal)?;
        let fpu = machine.debug_fpu().map_err(fatal)?;
        to.regs = [
            from.rax, from.rbx, from.rcx, from.rdx, from.rsi, from.rdi, from.rbp, from.rsp,
            from.r8, from.r9, from.r10, from.r11, from.r12, from.r13, from.r14, from.r15,
        ];
        to.rip = from.rip;
        to.eflags = from.rflags as u32;
        to.segments.cs = from.cs.into();
        to.segments.ss = from.ss.into();
        for (to, from) in to.st.iter_mut().zip(&fpu.fpr) {
            to.copy_from_slice(&from[..10]);
        }
        to.fpu.fctrl = fpu.fcw.into();
        to.fpu.fstat = fpu.fsw.into();
        to.fpu.ftag = (0..8)
            .filter(|bit| fpu.ftwx & 1 << bit == 0)
            .fold(0, |tags, bit| tags | 3 << (2 * bit));
        to.fpu.fop = fpu.last_opcode.into();
        for (to, from) in to.xmm.iter_mut().zip(&fpu.xmm) {
            *to = u128::from_le_bytes(*from);
        }
        to.mxcsr = fpu.mxcsr;
        Ok(())
    }

    fn write_registers(&mut self, from: &X86_64CoreRegs) -> TargetResult<(), Self> {
        let machine = self.traveller.machine();
        let mut to = machine.debug_registers().map_err(fatal)?;
        [
            to.rax, to.rbx, to.rcx, to.rdx, to.rsi, to.rdi, to.rbp, to.rsp, to.r8, to.r9, to.r10,
            to.r11, to.r12, to.r13, to.r14, to.r15,
        ] = from.regs;
        to.rip = from.rip;
        to.rflags = u64::from(from.eflags);
        // Where the guest cannot be held, they cannot be changed.
        machine
            .debug_set_registers(&to)
            .map_err(|_| TargetError::NonFatal)?;
        let mut fpu = machine.debug_fpu().map_err(fatal)?;
        for (to, from) in fpu.fpr.iter_mut().zip(&from.st) {
            to[..10].copy_from_slice(from);
        }
        fpu.fcw = from.fpu.fctrl as u16;
        fpu.fsw = from.fpu.fstat as u16;
        fpu.ftwx = (0..8)
            .filter(|bit| from.fpu.ftag >> (2 * bit) & 3 != 3)
            .fold(0, |tags, bit| tags | 1 << bit);
        for (to, from) in fpu.xmm.iter_mut().zip(&from.xmm) {
            *to = from.to_le_bytes();
        }
        // Other bits would be a fault in the guest.
        fpu.mxcsr = from.mxcsr & 0xffff;
        machine.debug_set_fpu(&fpu).map_err(fatal)
    }

    fn read_addrs(&mut self, address: u64, data: &mut [u8]) -> TargetResult<usize, Self> {
        match self.traveller.machine().read_virtual(address, data) {
            0 if !data.is_empty() => Err(TargetError::NonFatal),
            read => Ok(read),
        }
    }

    fn write_addrs(&mut self, address: u64, data: &[u8]) -> TargetResult<(), Self> {
        let machine = self.traveller.machine();
        machine
            .write_virtual(address, data)
            .map_err(|_| TargetError::NonFatal)
    }

    fn support_resume(&mut self) -> Option<SingleThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

fn fatal(error: quorate_vmm::MachineError) -> TargetError<TravelError> {
    TargetError::Fatal(error.into())
}

impl<C: Course> SingleThreadResume for Debugged<C> {
    fn resume(&mut self, _: Option<Signal>) -> Result<(), TravelError> {
        self.action = Action::Continue;
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<SingleThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_range_step(&mut self) -> Option<SingleThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }

    fn support_reverse_step(&mut self) -> Option<ReverseStepOps<'_, (), Self>> {
        Some(self)
    }

    fn support_reverse_cont(&mut self) -> Option<ReverseContOps<'_, (), Self>> {
        Some(self)
    }
}

impl<C: Course> SingleThreadSingleStep for Debugged<C> {
    fn step(&mut self, _: Option<Signal>) -> Result<(), TravelError> {
        self.action = Action::Step;
        Ok(())
    }
}

impl<C: Course> SingleThreadRangeStepping for Debugged<C> {
    fn resume_range_step(&mut self, start: u64, end: u64) -> Result<(), TravelError> {
        self.action = Action::Range(start..end);
        Ok(())
    }
}

impl<C: Course> ReverseCont<()> for Debugged<C> {
    fn reverse_cont(&mut self) -> Result<(), TravelError> {
        self.action = Action::ReverseContinue;
        Ok(())
    }
}

impl<C: Course> ReverseStep<()> for Debugged<C> {
    fn reverse_step(&mut self, (): ()) -> Result<(), TravelError> {
        self.action = Action::ReverseStep;
        Ok(())
    }
}

impl<C: Course> Breakpoints for Debugged<C> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }
}

impl<C: Course> SwBreakpoint for Debugged<C> {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        let mut breakpoints = (*self.traveller.breakpoints).clone();
        breakpoints.insert(address);
        // What cannot be is refused, and gdb says so.
        Ok(self.traveller.set_breakpoints(breakpoints).is_ok())
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        let mut breakpoints = (*self.traveller.breakpoints).clone();
        let was = breakpoints.remove(&address);
        Ok(was && self.traveller.set_breakpoints(breakpoints).is_ok())
    }
}

impl<C: Course> MonitorCmd for Debugged<C> {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), TravelError> {
        let command = String::from_utf8_lossy(command);
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["where"] => outputln!(out, "{}", self.place()),
            ["goto", stretch] => match stretch.parse() {
                Ok(stretch) if stretch >= self.traveller.course.first() => {
                    let before = self.traveller.place().clone();
                    match self.traveller.go_to_stretch(stretch) {
                        Ok(_) => outputln!(
                            out,
                            "{}. gdb has to forget registers: maintenance flush register-cache",
                            self.place()
                        ),
                        Err(TravelError::Elsewhere) => {
                            outputln!(out, "the recording ends before that boundary");
                            self.traveller.return_to(&before)?;
                        }
                        Err(error) => return Err(error),
                    }
                }
                _ => outputln!(
                    out,
                    "goto wants a boundary from {} on",
                    self.traveller.course.first()
                ),
            },
            ["symbols"] => {
                self.symbols.find(self.traveller.machine());
                outputln!(out, "{}", self.symbols.report());
            }
            _ => outputln!(
                out,
                "where: which boundary the guest is on its way to\n\
                 goto BOUNDARY: to the first instruction on the way to that boundary\n\
                 symbols: what is mapped now, as add-symbol-file commands"
            ),
        }
        Ok(())
    }
}
