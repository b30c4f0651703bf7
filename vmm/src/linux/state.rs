//! Taking checkpoints of a Linux machine, and putting them back.

use super::fault::LinuxFault;
use super::machine::LinuxMachine;
use crate::{DiskPosition, MachineError, Pause, Restored};

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

impl LinuxMachine {
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
}
