//! The machine.

use super::{Exchange, LinuxConfig, LinuxFault};
use crate::{
    CrashReport, DeviceError, DiskPosition, MachineError, Pause, ProbeReport, Register, Restored,
};
use kvm_ioctls::Kvm;

/// Why [`LinuxMachine::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinuxEnd {
    /// [`LinuxHandle::pause`] was called: all processors stand still, and the guest goes on with the next [`LinuxMachine::run`].
    Paused,
    /// The guest turned itself off. Final.
    PoweredOff,
    /// The guest wants to begin again. Final: whoever runs it makes a new machine.
    Reset,
    /// [`LinuxHandle::kill`] was called. Final.
    Killed,
    /// [`Exchange::exchange`] said so, and why. Final.
    Stopped(String),
    /// The guest cannot go on. Final.
    Crash(CrashReport),
    /// The guest broke the rules of a device (R9). Final.
    Misbehaved(DeviceError),
}

/// Reaches a machine from any thread. Nothing that is asked for is lost, whether the machine runs or not: it is found by the next
/// [`LinuxMachine::run`].
#[derive(Clone, Debug)]
pub struct LinuxHandle {}

impl LinuxHandle {
    /// There is something for the guest: makes the device thread call [`Exchange::exchange`].
    pub fn wake(&self) {}

    /// Makes [`LinuxMachine::run`] return [`LinuxEnd::Paused`].
    pub fn pause(&self) {}

    /// Makes [`LinuxMachine::run`] return [`LinuxEnd::Killed`].
    pub fn kill(&self) {}

    /// Presses the power button: asks the guest to turn itself off. What comes of it is up to the guest.
    pub fn press_power_button(&self) {}
}

/// One Linux machine.
#[derive(Debug)]
pub struct LinuxMachine {}

impl LinuxMachine {
    /// Makes a machine that is ready to run its kernel's first instruction.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the configuration, the kernel, or the host.
    pub fn new(_kvm: &Kvm, _config: &LinuxConfig) -> Result<Self, MachineError> {
        Err(LinuxFault::NotAKernel.into())
    }

    /// Runs the guest until something ends it or [`LinuxHandle::pause`] is called. This thread is the device thread.
    pub fn run(&mut self, _exchange: &mut dyn Exchange) -> LinuxEnd {
        LinuxEnd::Paused
    }

    /// A handle to the machine.
    #[must_use]
    pub fn handle(&self) -> LinuxHandle {
        LinuxHandle {}
    }

    /// Takes a checkpoint of the paused (or not yet started) machine. With the last one as `base` only what changed since is copied.
    ///
    /// # Errors
    ///
    /// If the machine has ended, or KVM does not give all of its state.
    pub fn checkpoint(
        &mut self,
        _base: Option<&LinuxCheckpoint>,
    ) -> Result<(LinuxCheckpoint, Pause), MachineError> {
        Err(LinuxFault::Ended.into())
    }

    /// Makes the machine what it was when the checkpoint was taken, of it or of another one of the same configuration.
    ///
    /// # Errors
    ///
    /// If the checkpoint is of another machine, or KVM refuses part of the state.
    pub fn restore(&mut self, _to: &LinuxCheckpoint) -> Result<Restored, MachineError> {
        Err(LinuxFault::Ended.into())
    }

    /// Flips one bit of a register of a paused machine. Returns the values before and after.
    ///
    /// # Errors
    ///
    /// If there is no such processor or bit, or KVM refuses.
    pub fn flip_register(
        &mut self,
        cpu: u8,
        _register: Register,
        _bit: u32,
    ) -> Result<(u64, u64), MachineError> {
        Err(LinuxFault::NoCpu(cpu).into())
    }

    /// Flips one bit of the byte at a guest-physical address of a paused machine. Returns the byte's values before and after.
    ///
    /// # Errors
    ///
    /// If there is no such bit or no RAM at that address.
    pub fn flip_memory(&mut self, gpa: u64, _bit: u32) -> Result<(u8, u8), MachineError> {
        Err(MachineError::Access(gpa))
    }

    /// Makes a paused guest crash for real: a triple fault.
    ///
    /// # Errors
    ///
    /// If KVM refuses.
    pub fn crash(&mut self) -> Result<(), MachineError> {
        Err(LinuxFault::Ended.into())
    }

    /// Makes a paused guest hang: all its processors go on in an endless loop, with interrupts off.
    ///
    /// # Errors
    ///
    /// If KVM refuses.
    pub fn hang(&mut self) -> Result<(), MachineError> {
        Err(LinuxFault::Ended.into())
    }
}

/// The whole state of a Linux machine but for the contents of its disks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LinuxCheckpoint {}

impl LinuxCheckpoint {
    /// Where the guest stands on each disk.
    #[must_use]
    pub fn disk_positions(&self) -> Vec<DiskPosition> {
        Vec::new()
    }
}

/// Why a Linux guest cannot be expected to run on this host, in one line; `None` if it can.
#[must_use]
pub fn refusal(probe: &ProbeReport) -> Option<String> {
    if probe.native_ring0() {
        return None;
    }
    Some(format!(
        "this host's KVM interprets ring 0 ({:.1} million instructions/s there, {:.0} in ring 3), where a Linux kernel does not get \
         through its start: use a host with kvm_intel or kvm_amd, or the lane (`make svm CMD=…`); --force tries all the same",
        probe.cpl0_mips, probe.cpl3_mips
    ))
}
