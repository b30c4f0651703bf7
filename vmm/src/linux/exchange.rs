//! What is between a Linux machine and the world.

use quorate_devices::{DiskReads, Entry, Output};
use std::time::Duration;

/// What the world has for a guest.
#[derive(Debug, Default)]
pub struct Exchanged {
    /// What is delivered now. Its times and flags mean nothing to Linux, which has a clock of its own.
    pub entry: Entry,
    /// Come again after this time even if the guest does nothing and nobody called [`super::LinuxHandle::wake`].
    pub again_in: Option<Duration>,
}

/// The world, as a Linux machine's device thread sees it.
pub trait Exchange: Send {
    /// Takes what the guest made visible, in order, and gives what there is for it: frames, console bytes, completed disk requests.
    /// Called whenever the guest has notified a queue, has written to the serial console, or somebody called
    /// [`super::LinuxHandle::wake`]; `outputs` may be empty. Must not wait for a vote: the guest's devices stand still meanwhile.
    ///
    /// # Errors
    ///
    /// Why the machine is to stop: [`super::LinuxMachine::run`] then ends with [`super::LinuxEnd::Stopped`].
    fn exchange(&mut self, outputs: Vec<Output>) -> Result<Exchanged, String>;

    /// Where the data of completed disk reads come from.
    fn reads(&mut self) -> &mut dyn DiskReads;
}
