//! Many single steps in a row, as cheap as they can be: handlers and trap flag stay where they are, so that a step is one exit from KVM,
//! and the program counter is read from the exception's frame in guest memory.
//!
//! Kernel and program are both stepped through. What the monitor does at CPL 0 is one step with the instruction that led to it; so that
//! the kernel's handlers are stepped through too, the flags that the monitor gives them have the trap flag as long as this lasts.

use super::arm::INT3;
use super::{BREAKPOINT, DEBUG, DebugStop, TRAP_FLAG};
use crate::error::MachineError;
use crate::machine::{Exit, Machine, Outcome};
use std::collections::HashMap;
use vm_memory::{Bytes, GuestAddress};

/// Offset of the flags in an exception's frame.
const FRAME_FLAGS: u64 = 16;
/// Most instructions whose kind is remembered (R10); then all are forgotten.
const MAX_KINDS: usize = 1 << 18;
/// `push 0x3002`: what the monitor gives the kernel as flags; see `KernelHeader::vectors`.
const PUSH_FLAGS: [u8; 5] = [0x68, 0x02, 0x30, 0x00, 0x00];

/// What a step has to know of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    /// `syscall`.
    Syscall,
    /// `out dx, …`: leaves the machine.
    Out,
    /// `pushf`.
    PushFlags,
    /// `ud2`: the monitor's help is asked for; address spaces change in there.
    Undefined,
    /// `int3` of the program's own.
    Breakpoint,
}

/// Where a step has led.
#[derive(Debug)]
pub(crate) enum Stepped {
    /// To this instruction, which is the next one.
    At(u64),
    /// Out of the machine.
    Out(Outcome),
}

/// A run of steps; see the module.
#[derive(Debug)]
pub(crate) struct Steps {
    kinds: HashMap<u64, Kind>,
    /// The next instruction.
    at: u64,
    /// An exception was met in the last step.
    excepted: bool,
}

impl Steps {
    /// Begins to step. The guest stands at the next instruction then, which is [`Steps::at`].
    pub(crate) fn begin(machine: &mut Machine) -> Result<Result<Self, Outcome>, MachineError> {
        if !machine.debug_is_attached() {
            machine.debug_attach(None);
        }
        match machine.debug_hold()? {
            None => {}
            Some(DebugStop::Other(outcome)) => {
                machine.debugger = None;
                return Ok(Err(outcome));
            }
            Some(_) => return Err(MachineError::Held),
        }
        let at = machine.frame()?[0];
        machine.arm_handlers(false)?;
        Ok(Ok(Self {
            kinds: HashMap::new(),
            at,
            excepted: false,
        }))
    }

    /// From now on exceptions lead to a step in the kernel's handler. To be called before steps that may meet one.
    pub(crate) fn follow_exceptions(&mut self, machine: &mut Machine) -> Result<(), MachineError> {
        machine.arm_monitor()
    }

    /// The next instruction.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Whether the last step met an exception that the kernel has begun to handle.
    pub(crate) fn excepted(&self) -> bool {
        self.excepted
    }

    /// One step. After anything but [`Stepped::At`] the run of steps has ended: the machine is as without a debugger.
    pub(crate) fn step(&mut self, machine: &mut Machine) -> Result<Stepped, MachineError> {
        self.excepted = false;
        let kind = self.kind(machine)?;
        let flags = GuestAddress(machine.frame_address().0 + FRAME_FLAGS);
        let ram = |_| MachineError::Access(flags.0);
        let now: u64 = machine.memory.ram.read_obj(flags).map_err(ram)?;
        let wanted = match kind {
            // It is KVM that completes it, and nothing of this is to be seen then.
            Kind::Out => now & !TRAP_FLAG,
            _ => now | TRAP_FLAG,
        };
        if wanted != now {
            machine.memory.ram.write_obj(wanted, flags).map_err(ram)?;
        }
        if kind == Kind::Syscall {
            machine.do_syscall()?;
            self.at = machine.frame()?[0];
            return Ok(Stepped::At(self.at));
        }
        let mut kicked = false;
        loop {
            match machine.run_vcpu() {
                Some(Exit::Trap) => break,
                None if kind != Kind::Out => kicked = true,
                exit => {
                    machine.disarm()?;
                    machine.debugger = None;
                    return Ok(Stepped::Out(machine.outcome(exit)));
                }
            }
        }
        if kind == Kind::Breakpoint && machine.take_trap()? == Some(BREAKPOINT) {
            machine.reflect(BREAKPOINT)?;
            return self.step_again(machine);
        }
        machine.debugger()?.held = Some(DEBUG);
        let frame = machine.frame()?;
        self.at = frame[0];
        self.excepted = machine.clear_excepted()?;
        match kind {
            Kind::PushFlags => machine.clear_pushed(frame[3])?,
            Kind::Undefined => self.kinds.clear(),
            _ => {}
        }
        if kicked {
            self.end(machine)?;
            return Ok(Stepped::Out(Outcome::Kicked));
        }
        Ok(Stepped::At(self.at))
    }

    /// Runs to the `hits`-th time that the instruction at `address` is the next one; `present`: where the guest is now counts. Exceptions
    /// are not followed ([`Steps::follow_exceptions`] must not have been called). Each hit is two exits. `None`: nothing is mapped there.
    pub(crate) fn run_to(
        &mut self,
        machine: &mut Machine,
        address: u64,
        hits: u64,
        present: bool,
    ) -> Result<Option<Stepped>, MachineError> {
        let root = machine.registers()?.cr3;
        let Some((phys, bytes)) = machine.code(root, address) else {
            return Ok(None);
        };
        let mut left = hits - u64::from(present && self.at == address);
        while left > 0 {
            if self.at == address {
                match self.step(machine)? {
                    Stepped::At(at) if at == address => {
                        left -= 1;
                        continue;
                    }
                    Stepped::At(_) => {}
                    out => return Ok(Some(out)),
                }
            }
            machine.write_physical(phys, &[INT3])?;
            let free = self.run_free(machine, address);
            machine.write_physical(phys, &bytes[..1])?;
            if let Some(outcome) = free? {
                return Ok(Some(Stepped::Out(outcome)));
            }
            left -= 1;
        }
        Ok(Some(Stepped::At(self.at)))
    }

    /// Runs to an `int3` that was put at `address`. An outcome: the run of steps has ended.
    fn run_free(
        &mut self,
        machine: &mut Machine,
        address: u64,
    ) -> Result<Option<Outcome>, MachineError> {
        loop {
            let mut frame = machine.frame()?;
            if frame[2] & TRAP_FLAG != 0 {
                frame[2] &= !TRAP_FLAG;
                machine.set_frame(frame)?;
            }
            let exit = machine.run_vcpu();
            if !matches!(exit, Some(Exit::Trap)) {
                if exit.is_none() {
                    // Perhaps before it has left the handler.
                    machine.settle()?;
                    let registers = machine.registers()?;
                    if registers.cpl() == 0 {
                        machine.debug_release()?;
                    }
                }
                machine.debugger()?.held = None;
                machine.disarm()?;
                machine.debugger = None;
                return Ok(Some(machine.outcome(exit)));
            }
            machine.debugger()?.held = Some(BREAKPOINT);
            frame = machine.frame()?;
            if frame[0] == address + 1 {
                frame[0] = address;
                machine.set_frame(frame)?;
                self.at = address;
                return Ok(None);
            }
            match machine.take_trap()? {
                Some(BREAKPOINT) => machine.reflect(BREAKPOINT)?,
                // A trap flag from somewhere else.
                Some(_) => {}
                None => {
                    machine.disarm()?;
                    machine.debugger = None;
                    return Ok(Some(machine.outcome(Some(Exit::Trap))));
                }
            }
        }
    }

    /// Into the kernel's handler of an exception that was the program's own.
    fn step_again(&mut self, machine: &mut Machine) -> Result<Stepped, MachineError> {
        let exit = machine.run_vcpu();
        if !matches!(exit, Some(Exit::Trap)) {
            machine.disarm()?;
            machine.debugger = None;
            return Ok(Stepped::Out(machine.outcome(exit)));
        }
        machine.debugger()?.held = Some(DEBUG);
        self.at = machine.frame()?[0];
        self.excepted = machine.clear_excepted()?;
        Ok(Stepped::At(self.at))
    }

    /// Ends the run of steps where it is: the guest goes on with [`Machine::run`] as if it had not been stepped.
    pub(crate) fn end(&mut self, machine: &mut Machine) -> Result<(), MachineError> {
        machine.disarm()?;
        machine.debug_release()?;
        machine.debugger = None;
        Ok(())
    }

    fn kind(&mut self, machine: &Machine) -> Result<Kind, MachineError> {
        match self.kinds.get(&self.at) {
            Some(Kind::Plain) => return Ok(Kind::Plain),
            // Worth a second look: a call site may have been rewritten meanwhile.
            Some(_) => {}
            None if self.kinds.len() >= MAX_KINDS => self.kinds.clear(),
            None => {}
        }
        let mut code = [0; 3];
        let there = machine.read_virtual(self.at, &mut code);
        let code = &code[..there];
        let kind = match code {
            [0x0f, 0x05, ..] => Kind::Syscall,
            [0x0f, 0x0b, ..] => Kind::Undefined,
            [0xee | 0xef, ..] | [0x66, 0xef, ..] => Kind::Out,
            [0x9c, ..] | [0x66 | 0x48, 0x9c, ..] => Kind::PushFlags,
            [0xcc, ..] | [0xcd, 3, ..] => Kind::Breakpoint,
            _ => Kind::Plain,
        };
        self.kinds.insert(self.at, kind);
        Ok(kind)
    }
}

impl Machine {
    /// Puts the trap flag into what the monitor gives the kernel.
    fn arm_monitor(&mut self) -> Result<(), MachineError> {
        let (first, end) = self.monitor();
        let kernel = self.boot.layout.kernel;
        let mut code = vec![0; (end - first) as usize];
        let at = self.boot.reserved.start + (first - kernel);
        if !self.read_physical(at, &mut code) {
            return Err(MachineError::Access(at));
        }
        for (offset, bytes) in (0..).zip(code.windows(PUSH_FLAGS.len())) {
            if bytes == PUSH_FLAGS {
                self.patch(at + offset + 2, &[0x31], false)?;
            }
        }
        Ok(())
    }

    /// An exception that was met with the trap flag set: what the kernel is to give back to the program is without it. Says whether there
    /// was one.
    fn clear_excepted(&mut self) -> Result<bool, MachineError> {
        let at = GuestAddress(crate::boot::exception_frame_address(&self.boot).0 + FRAME_FLAGS);
        let ram = |_| MachineError::Access(at.0);
        let flags: u64 = self.memory.ram.read_obj(at).map_err(ram)?;
        if flags & TRAP_FLAG == 0 {
            return Ok(false);
        }
        self.memory
            .ram
            .write_obj(flags & !TRAP_FLAG, at)
            .map_err(ram)?;
        Ok(true)
    }

    /// Clears the trap flag in flags that were pushed.
    pub(super) fn clear_pushed(&mut self, rsp: u64) -> Result<(), MachineError> {
        let mut flags = [0; 2];
        if self.read_virtual(rsp, &mut flags) == flags.len() {
            flags[1] &= !((TRAP_FLAG >> 8) as u8);
            self.write_virtual(rsp, &flags)?;
        }
        Ok(())
    }

    /// The guest is held, and goes on from there as if no debugger had been there: with its own registers, at CPL 3.
    pub(crate) fn debug_release(&mut self) -> Result<(), MachineError> {
        if !self.debug_is_held() {
            return Ok(());
        }
        let [rip, _, rflags, rsp, _] = self.frame()?;
        self.change_registers(|regs| {
            (regs.rip, regs.rsp, regs.rflags) = (rip, rsp, rflags & !TRAP_FLAG);
        })?;
        let error = MachineError::kvm;
        let mut sregs = self.vcpu.get_sregs().map_err(error("KVM_GET_SREGS"))?;
        (sregs.cs, sregs.ss) = crate::vcpu::program_segments();
        self.vcpu
            .set_sregs(&sregs)
            .map_err(error("KVM_SET_SREGS"))?;
        let debugger = self.debugger()?;
        debugger.held = None;
        debugger.underway = super::Underway::Nothing;
        Ok(())
    }
}
