//! What is done to one replica from inside, at the places where that can be done.

use std::sync::Arc;
use std::time::Duration;

use quorate_devices::{Entry, Output};
use quorate_vmm::{Machine, Outcome};

/// Stands between the set and the machine of one replica. All methods do nothing of their own accord.
///
/// They are called on the replica's thread, in this order for each boundary s: [`Interposer::entry`] (s - 1), [`Interposer::read`] for each
/// read that it completes, [`Interposer::run`] (s), [`Interposer::stall`] (s), [`Interposer::outputs`] (s), and when the ballot is cast and
/// the next entry is there [`Interposer::at_boundary`] (s). Boundary 0 is where the trial begins: its ballot is empty, and nothing
/// runs before it. A replica that was stopped and came back does the boundaries from 0 on again: [`Interposer::restored`] says so.
pub trait Interposer: Send {
    /// Runs the machine to boundary `next_boundary`, instead of [`Machine::run`]: with breakpoints, stops at system calls, steps. Must
    /// come back with [`Outcome::Kicked`] soon after the machine did so: the replica may have been stopped. May be called again for the
    /// same boundary then.
    fn run(&mut self, machine: &mut Machine, next_boundary: u64) -> Outcome {
        let _ = next_boundary;
        machine.run()
    }

    /// How long the replica's thread stalls before it casts its ballot; for ever: [`Duration::MAX`]. It does not stall for real, it
    /// is judged as if it had: [`super::Limits::stall`].
    fn stall(&mut self, boundary: u64) -> Option<Duration> {
        let _ = boundary;
        None
    }

    /// The outputs of a boundary before they are cast.
    fn outputs(&mut self, boundary: u64, outputs: &mut Vec<Output>) {
        let _ = (boundary, outputs);
    }

    /// The machine stands at a boundary: the ballot is cast, and the next entry is about to be delivered.
    ///
    /// # Errors
    /// Why the replica cannot go on: it is stopped.
    fn at_boundary(&mut self, machine: &mut Machine, boundary: u64) -> Result<(), String> {
        let _ = (machine, boundary);
        Ok(())
    }

    /// What this replica is delivered instead of the entry of a boundary.
    fn entry(&mut self, boundary: u64, entry: &Arc<Entry>) -> Arc<Entry> {
        let _ = boundary;
        Arc::clone(entry)
    }

    /// The data of a disk read that an entry completes, before the guest gets them. A read that is to fail is made so in
    /// [`Interposer::entry`]: the status is in the completion.
    fn read(&mut self, boundary: u64, disk: u8, seq: u64, data: &mut Vec<u8>) {
        let _ = (boundary, disk, seq, data);
    }

    /// What was done to the replica, to be told once, as an event of the set ([`crate::events::Event::Injected`]): asked whenever the guest
    /// has come out, and when an entry was delivered.
    fn told(&mut self) -> Option<String> {
        None
    }

    /// The replica was stopped and its machine put back to where it stood at `boundary`: what is transient is over.
    fn restored(&mut self, boundary: u64) {
        let _ = boundary;
    }
}

/// Does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Untouched;

impl Interposer for Untouched {}
