//! Debugging: breakpoints, single steps, registers and memory of a guest, for one who replays it.
//!
//! `KVM_SET_GUEST_DEBUG` does not work on every KVM, so nothing here needs it. A breakpoint is an `int3` in guest memory, a step is the
//! trap flag; both are exceptions at CPL 3, which every KVM delivers to CPL 0 through the guest's IDT. While a debugged guest
//! runs, the IDT's entries of these exceptions point to two instructions in the last bytes of their slots:
//! `out DEBUG_PORT, eax; iretq`. So the exception leaves the VM with all general registers as the program had them, and with the rest in
//! the exception's frame on the monitor's stack; what is written there is what the guest goes on with.
//!
//! All of this is in guest memory only between [`Machine::debug_run`]'s begin and its end: checkpoints, dumps and gdb see the memory
//! that the guest would have without a debugger. What the guest itself can see while it runs: a program that reads the bytes of its
//! own code finds an `int3` where a breakpoint is, and a signal handler that a step runs into may find the trap flag in its frame.

mod arm;
mod memory;
mod step;

use crate::boot::exception_frame_address;
use crate::checkpoint::Phase;
use crate::error::MachineError;
use crate::kernel::VECTORS;
use crate::machine::{Exit, Machine, Outcome};
use crate::paging::translate;
use crate::registers::Registers;
use arm::{INT3, Patch};
use kvm_bindings::kvm_fpu;
use std::collections::BTreeMap;
use vm_memory::{Bytes, GuestAddress};

pub(crate) use step::{Stepped, Steps};

/// RFLAGS.TF.
const TRAP_FLAG: u64 = 1 << 8;
/// Bits of RFLAGS that a debugger may change: the status flags, DF, AC and ID.
const CHANGEABLE_FLAGS: u64 = 0x0024_0cd5;
/// Most breakpoints at a time (R10); what is over is refused.
const MAX_BREAKPOINTS: usize = 1024;
/// Most addresses that are remembered to have had a breakpoint (R10); then those without one are forgotten.
const MAX_KNOWN: usize = 16 * MAX_BREAKPOINTS;
const BREAKPOINT: u64 = 3;
const DEBUG: u64 = 1;
const PAGE_FAULT: u64 = 14;

/// How [`Machine::debug_run`] is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Motion {
    /// To the next breakpoint; one at the present place does not count.
    Continue,
    /// One instruction. A `syscall` leads to the kernel's entry.
    Step,
}

/// Why [`Machine::debug_run`] came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DebugStop {
    /// The next instruction is one with a breakpoint.
    Breakpoint,
    /// One instruction has been executed.
    Stepped,
    /// As [`Machine::run`]. After a boundary (and its [`Machine::resume`]) or a kick the same motion is to be asked for again, or
    /// [`Machine::debug_hold`] called.
    Other(Outcome),
}

/// What is under way across calls of [`Machine::debug_run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Underway {
    Nothing,
    /// The trap flag is set, in the vCPU or in a frame that the guest's kernel keeps: a step from `from`, where no breakpoint is armed.
    Trap {
        from: u64,
        /// The instruction pushes the flags.
        pushes_flags: bool,
    },
    /// The instruction is an `out`: KVM completes it, the trap flag plays no part. It is at `from`, where no breakpoint is armed.
    Out {
        from: u64,
    },
}

/// What is known of a breakpoint's address.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Page tables of the space that it was set in; 0 as long as nothing was mapped there.
    root: u64,
    /// What is there in that space.
    bytes: [u8; 8],
}

/// The debugger's state in a machine.
#[derive(Debug)]
pub(crate) struct Debugger {
    breakpoints: BTreeMap<u64, Known>,
    /// Addresses that had a breakpoint: copies of an `int3` may have stayed in other address spaces.
    known: BTreeMap<u64, u8>,
    armed: Vec<Patch>,
    /// Some breakpoint lies where nothing is mapped, so page faults are looked at.
    pending: bool,
    /// The vCPU is in the debugger's handler of this exception.
    held: Option<u64>,
    underway: Underway,
    /// The trap flag was set in order to look again at what is mapped.
    looking: bool,
    /// Where the guest's kernel begins and ends to read programs' code, which must not show breakpoints then.
    code_reader: Option<(u64, u64)>,
    /// It does so now.
    reading: bool,
}

impl Machine {
    /// Attaches a debugger. `code_reader` names two functions of the kernel that it calls before and after it reads programs' code (so
    /// as to rewrite it): in between no breakpoint of a program is in memory.
    pub fn debug_attach(&mut self, code_reader: Option<(u64, u64)>) {
        self.debugger = Some(Box::new(Debugger {
            breakpoints: BTreeMap::new(),
            known: BTreeMap::new(),
            armed: Vec::new(),
            pending: false,
            held: None,
            underway: Underway::Nothing,
            looking: false,
            code_reader,
            reading: false,
        }));
    }

    /// Detaches it: the next run is an ordinary one. Nothing of it is left in the guest.
    ///
    /// # Errors
    ///
    /// If the guest is held, in the debugger's handler: it is to be run on to a boundary first.
    pub fn debug_detach(&mut self) -> Result<(), MachineError> {
        if self.debug_is_held() {
            return Err(MachineError::Held);
        }
        self.debugger = None;
        Ok(())
    }

    /// The machine's state was replaced by another one: forgets what was under way.
    pub(crate) fn debug_restored(&mut self) {
        if let Some(debugger) = &mut self.debugger {
            debugger.held = None;
            debugger.underway = Underway::Nothing;
            debugger.looking = false;
            debugger.reading = false;
        }
    }

    /// Replaces the set of breakpoints. An address stays bound to the address space in which it was first mapped.
    ///
    /// # Errors
    ///
    /// If there is no debugger, there are too many, or one lies in the kernel's code that runs at CPL 0.
    pub fn debug_breakpoints(
        &mut self,
        addresses: impl IntoIterator<Item = u64>,
    ) -> Result<(), MachineError> {
        let (first, end) = self.monitor();
        let root = self.registers()?.cr3;
        let mut breakpoints = BTreeMap::new();
        for address in addresses {
            if (first..end).contains(&address) {
                return Err(MachineError::BreakpointPlace(address));
            }
            if breakpoints.len() == MAX_BREAKPOINTS {
                return Err(MachineError::Breakpoints(MAX_BREAKPOINTS));
            }
            let before = self.debugger()?.breakpoints.get(&address).copied();
            let known = match before {
                Some(known) if known.root != 0 && self.code(known.root, address).is_some() => known,
                _ => self.known(root, address),
            };
            breakpoints.insert(address, known);
        }
        self.debugger()?.breakpoints = breakpoints;
        Ok(())
    }

    /// The program's registers, wherever the vCPU itself may be.
    ///
    /// # Errors
    ///
    /// If KVM does not give them.
    pub fn debug_registers(&self) -> Result<Registers, MachineError> {
        let mut registers = self.registers()?;
        if self.debugger.as_ref().is_some_and(|d| d.held.is_some()) {
            let [rip, cs, rflags, rsp, ss] = self.frame()?;
            registers.rip = rip;
            registers.cs = cs as u16;
            registers.rflags = rflags;
            registers.rsp = rsp;
            registers.ss = ss as u16;
        }
        Ok(registers)
    }

    /// Changes the program's general registers, instruction pointer and flags (status flags, DF, AC and ID). To be called while
    /// the guest is held.
    ///
    /// # Errors
    ///
    /// If it is not, or KVM refuses.
    pub fn debug_set_registers(&mut self, to: &Registers) -> Result<(), MachineError> {
        if self.debugger()?.held.is_none() {
            return Err(MachineError::NotHeld);
        }
        let mut frame = self.frame()?;
        frame[0] = to.rip;
        frame[2] = frame[2] & !CHANGEABLE_FLAGS | to.rflags & CHANGEABLE_FLAGS;
        frame[3] = to.rsp;
        self.set_frame(frame)?;
        self.change_registers(|regs| {
            let own = (regs.rip, regs.rsp, regs.rflags);
            (regs.rax, regs.rbx, regs.rcx, regs.rdx) = (to.rax, to.rbx, to.rcx, to.rdx);
            (regs.rsi, regs.rdi, regs.rbp) = (to.rsi, to.rdi, to.rbp);
            (regs.r8, regs.r9, regs.r10, regs.r11) = (to.r8, to.r9, to.r10, to.r11);
            (regs.r12, regs.r13, regs.r14, regs.r15) = (to.r12, to.r13, to.r14, to.r15);
            (regs.rip, regs.rsp, regs.rflags) = own;
        })
    }

    /// x87 and SSE registers.
    ///
    /// # Errors
    ///
    /// If KVM does not give them.
    pub fn debug_fpu(&self) -> Result<kvm_fpu, MachineError> {
        self.vcpu
            .get_fpu()
            .map_err(MachineError::kvm("KVM_GET_FPU"))
    }

    /// Changes them.
    ///
    /// # Errors
    ///
    /// If KVM refuses.
    pub fn debug_set_fpu(&mut self, fpu: &kvm_fpu) -> Result<(), MachineError> {
        self.settle()?;
        self.vcpu
            .set_fpu(fpu)
            .map_err(MachineError::kvm("KVM_SET_FPU"))
    }

    /// Whether a debugger is attached.
    #[must_use]
    pub fn debug_is_attached(&self) -> bool {
        self.debugger.is_some()
    }

    /// Whether nothing of a step is under way in the guest: where it is now could also have been reached without a debugger.
    #[must_use]
    pub fn debug_is_between(&self) -> bool {
        self.debugger
            .as_ref()
            .is_none_or(|d| !matches!(d.underway, Underway::Trap { .. }) && !d.looking)
    }

    /// At a boundary that was reached but not left: the address of the instruction that rang the sync device.
    ///
    /// # Errors
    ///
    /// If KVM fails.
    pub fn debug_out(&mut self) -> Result<u64, MachineError> {
        self.settle()?;
        Ok(self.registers()?.rip.wrapping_sub(1))
    }

    /// Whether the guest is held where its registers can be changed.
    #[must_use]
    pub fn debug_is_held(&self) -> bool {
        self.debugger.as_ref().is_some_and(|d| d.held.is_some())
    }

    /// Runs the guest on.
    ///
    /// # Errors
    ///
    /// If there is no debugger or KVM fails.
    pub fn debug_run(&mut self, motion: Motion) -> Result<DebugStop, MachineError> {
        if self.phase != Phase::Runnable {
            return Ok(DebugStop::Other(self.run()));
        }
        let fresh = match self.debugger()?.underway {
            Underway::Nothing => true,
            Underway::Trap { .. } => false,
            Underway::Out { .. } => {
                // The `out` is complete: the step is, too, where the guest is now.
                self.debugger()?.underway = Underway::Nothing;
                if motion == Motion::Step {
                    return Ok(self.debug_hold()?.unwrap_or(DebugStop::Stepped));
                }
                true
            }
        };
        if fresh {
            let at = self.debug_registers()?.rip;
            let blocked = self.debugger()?.breakpoints.contains_key(&at);
            if motion == Motion::Step || blocked {
                if let Some(stop) = self.debug_hold()? {
                    return Ok(stop);
                }
                if self.begin_step()? {
                    return self.stepped(motion);
                }
            }
        }
        self.go(motion)
    }

    /// Makes sure that the guest is held at its next instruction. `None`: it is.
    ///
    /// # Errors
    ///
    /// If there is no debugger or KVM fails.
    pub fn debug_hold(&mut self) -> Result<Option<DebugStop>, MachineError> {
        if self.debugger()?.held.is_some() {
            return Ok(None);
        }
        if self.phase != Phase::Runnable {
            return Ok(Some(DebugStop::Other(self.run())));
        }
        self.settle()?;
        let registers = self.registers()?;
        if registers.cpl() == 0 {
            // In the monitor, for an instruction or ten: the caller kicks again.
            return Ok(Some(DebugStop::Other(Outcome::Kicked)));
        }
        self.arm_here(&registers)?;
        let exit = self.run_vcpu();
        self.disarm()?;
        if !matches!(exit, Some(Exit::Trap)) {
            return Ok(Some(DebugStop::Other(self.outcome(exit))));
        }
        if self.take_trap()? != Some(BREAKPOINT) {
            return Ok(Some(DebugStop::Other(self.outcome(Some(Exit::Trap)))));
        }
        let mut frame = self.frame()?;
        frame[0] = registers.rip;
        frame[2] &= !TRAP_FLAG;
        self.set_frame(frame)?;
        self.debugger()?.underway = Underway::Nothing;
        Ok(None)
    }

    /// Runs until something happens that the caller is to know.
    fn go(&mut self, motion: Motion) -> Result<DebugStop, MachineError> {
        loop {
            self.arm()?;
            self.debugger()?.held = None;
            let exit = self.run_vcpu();
            self.disarm()?;
            if !matches!(exit, Some(Exit::Trap)) {
                return Ok(DebugStop::Other(self.outcome(exit)));
            }
            let stop = match self.take_trap()? {
                Some(DEBUG) => self.on_debug(motion)?,
                Some(BREAKPOINT) => self.on_breakpoint()?,
                Some(PAGE_FAULT) => self.on_page_fault()?,
                _ => Some(DebugStop::Other(self.outcome(Some(Exit::Trap)))),
            };
            if let Some(stop) = stop {
                return Ok(stop);
            }
        }
    }

    /// A step is complete.
    fn stepped(&mut self, motion: Motion) -> Result<DebugStop, MachineError> {
        if motion == Motion::Step {
            return Ok(DebugStop::Stepped);
        }
        let at = self.debug_registers()?.rip;
        if self.debugger()?.breakpoints.contains_key(&at) {
            return Ok(DebugStop::Breakpoint);
        }
        self.go(motion)
    }

    /// Prepares a step from where the guest is held. True: it is done already.
    fn begin_step(&mut self) -> Result<bool, MachineError> {
        let at = self.debug_registers()?;
        let mut code = [0; 2];
        let there = self.read_virtual(at.rip, &mut code);
        let code = &code[..there];
        match code {
            [0x0f, 0x05] => {
                self.do_syscall()?;
                return Ok(true);
            }
            [0xee | 0xef, ..] => self.debugger()?.underway = Underway::Out { from: at.rip },
            _ => {
                let mut frame = self.frame()?;
                frame[2] |= TRAP_FLAG;
                self.set_frame(frame)?;
                self.debugger()?.underway = Underway::Trap {
                    from: at.rip,
                    pushes_flags: matches!(code, [0x9c, ..] | [0x66, 0x9c]),
                };
            }
        }
        Ok(false)
    }

    /// The next instruction is SYSCALL, and the guest is held. With the trap flag set it behaves differently from KVM to KVM (and clears
    /// the flag): it is done here. The kernel's entry serves both levels, so it is left at CPL 3 as a page-table based KVM would.
    fn do_syscall(&mut self) -> Result<(), MachineError> {
        let at = self.debug_registers()?;
        let entry = self.boot.syscall_entry;
        self.change_registers(|regs| {
            regs.rcx = at.rip + 2;
            regs.r11 = at.rflags & !TRAP_FLAG;
        })?;
        let mut frame = self.frame()?;
        frame[0] = entry;
        frame[2] &= !crate::vcpu::SYSCALL_MASK;
        self.set_frame(frame)
    }

    /// After an exit to the debug port: completes it, and says which exception it was, if it came from a handler of ours.
    fn take_trap(&mut self) -> Result<Option<u64>, MachineError> {
        self.settle()?;
        let registers = self.registers()?;
        let mut vectors = arm::VECTORS.into_iter();
        let vector = vectors.find(|&vector| self.handler(vector) + 2 == registers.rip);
        // An exception of the monitor itself has its frame somewhere else: it is none that was asked for.
        let vector = vector.filter(|&vector| match vector {
            PAGE_FAULT => registers.rsp + 8 == self.boot.exception_frame,
            _ => registers.rsp == self.boot.debug_frame,
        });
        self.debugger()?.held = vector;
        Ok(vector)
    }

    fn on_debug(&mut self, motion: Motion) -> Result<Option<DebugStop>, MachineError> {
        let mut frame = self.frame()?;
        frame[2] &= !TRAP_FLAG;
        self.set_frame(frame)?;
        let debugger = self.debugger()?;
        debugger.looking = false;
        let Underway::Trap { pushes_flags, .. } = debugger.underway else {
            // A flag that an interrupted step has left in a frame.
            return Ok(None);
        };
        debugger.underway = Underway::Nothing;
        if pushes_flags {
            self.clear_pushed(frame[3])?;
        }
        if motion == Motion::Step {
            return Ok(Some(DebugStop::Stepped));
        }
        let hit = self.debugger()?.breakpoints.contains_key(&frame[0]);
        Ok(hit.then_some(DebugStop::Breakpoint))
    }

    fn on_breakpoint(&mut self) -> Result<Option<DebugStop>, MachineError> {
        let mut frame = self.frame()?;
        let at = frame[0].wrapping_sub(1);
        let debugger = self.debugger()?;
        let wanted = debugger.breakpoints.contains_key(&at);
        let original = debugger.known.get(&at).copied();
        let reader = debugger.code_reader;
        if let Some((begin, end)) = reader
            && !wanted
            && (at == begin || at == end)
        {
            self.debugger()?.reading = at == begin;
            // Both functions begin with a `nop`, which need not be executed.
            frame[0] = at + 1;
            self.set_frame(frame)?;
            return Ok(None);
        }
        if matches!(self.debugger()?.underway, Underway::Trap { from, .. } if from == at) {
            // The one place where none of ours is armed.
            return self.reflect(BREAKPOINT).map(|()| None);
        }
        let mut there = [0];
        let read = self.read_virtual(at, &mut there) == 1;
        match original {
            // A copy that was made with the `int3` in it.
            Some(byte) if read && there[0] == INT3 && byte != INT3 => {
                self.write_code(at, &[byte])?;
            }
            Some(_) => {}
            // The program's own.
            None => return self.reflect(BREAKPOINT).map(|()| None),
        }
        if read && !wanted && original == Some(INT3) {
            return self.reflect(BREAKPOINT).map(|()| None);
        }
        frame[0] = at;
        frame[2] &= !TRAP_FLAG;
        self.set_frame(frame)?;
        if wanted {
            self.debugger()?.underway = Underway::Nothing;
            return Ok(Some(DebugStop::Breakpoint));
        }
        Ok(None)
    }

    /// A page fault while some breakpoint lies where nothing is mapped.
    fn on_page_fault(&mut self) -> Result<Option<DebugStop>, MachineError> {
        let mut frame = self.frame()?;
        let here = self.debugger()?.breakpoints.contains_key(&frame[0]);
        let root = self.registers()?.cr3;
        let busy = !matches!(self.debugger()?.underway, Underway::Nothing);
        if here && !busy && translate(&self.memory.ram, root, frame[0]).is_none() {
            // It is the code itself that is not there yet: the breakpoint's place has been reached. On the stack the error code goes, so
            // that `iretq` tries the instruction again.
            self.change_registers(|regs| regs.rsp += 8)?;
            return Ok(Some(DebugStop::Breakpoint));
        }
        if !busy {
            // Once the page is there and the instruction done, breakpoints can be put into it.
            frame[2] |= TRAP_FLAG;
            self.set_frame(frame)?;
            self.debugger()?.looking = true;
        }
        self.reflect(PAGE_FAULT)?;
        Ok(None)
    }

    /// Hands an exception on to the guest's own handler.
    fn reflect(&mut self, vector: u64) -> Result<(), MachineError> {
        let (vectors, stride) = self.boot.vectors;
        let mut rsp = self.registers()?.rsp;
        if vector != PAGE_FAULT {
            // Its handler expects the frame where frames are.
            let frame = self.frame()?;
            rsp = self.boot.exception_frame;
            self.debugger()?.held = Some(PAGE_FAULT);
            self.set_frame(frame)?;
        }
        self.change_registers(|regs| {
            regs.rip = vectors + vector * stride;
            regs.rsp = rsp;
        })?;
        self.debugger()?.held = None;
        Ok(())
    }

    /// Guest-physical address of the frame of the exception in whose handler the vCPU is.
    fn frame_address(&self) -> GuestAddress {
        let at = exception_frame_address(&self.boot);
        match self.debugger.as_ref().and_then(|d| d.held) {
            Some(PAGE_FAULT) => at,
            _ => GuestAddress(at.0 - (self.boot.exception_frame - self.boot.debug_frame)),
        }
    }

    fn frame(&self) -> Result<[u64; 5], MachineError> {
        let at = self.frame_address();
        let frame = self.memory.ram.read_obj(at);
        frame.map_err(|_| MachineError::Access(at.0))
    }

    fn set_frame(&mut self, frame: [u64; 5]) -> Result<(), MachineError> {
        let at = self.frame_address();
        let done = self.memory.ram.write_obj(frame, at);
        done.map_err(|_| MachineError::Access(at.0))
    }

    fn debugger(&mut self) -> Result<&mut Debugger, MachineError> {
        self.debugger.as_deref_mut().ok_or(MachineError::NoDebugger)
    }

    /// The kernel's code that may run at CPL 0: handlers, and what follows up to its endless loop.
    fn monitor(&self) -> (u64, u64) {
        let (vectors, stride) = self.boot.vectors;
        (vectors, self.boot.spin.max(vectors + VECTORS * stride))
    }
}
