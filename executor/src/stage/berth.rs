//! Where a replica's machine waits between trials, and the machine in a trial.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_devices::{DiskPosition, DiskReads, Entry};
use quorate_vmm::{Checkpoint, Restore, Restored};

use super::{Interposer, Reset, Untouched};
use crate::exit::{ExitCode, Failure};
use crate::inject::Fault;
use crate::machine::{KvmVcpu, failure};
use crate::replica::{Kick, Pause, Turn, Vcpu};
use crate::sync::lock;

/// One replica's place in a rig.
#[derive(Default)]
pub struct Berth {
    state: Mutex<Moored>,
}

#[derive(Default)]
struct Moored {
    machine: Option<KvmVcpu>,
    interposer: Option<Box<dyn Interposer>>,
    reset: Reset,
}

/// Where machines of a rig begin.
#[derive(Clone)]
pub struct Origin {
    /// Of this replica.
    pub checkpoint: Checkpoint,
    /// Until when the guest wants to sleep there.
    pub wait_until_ns: u64,
}

impl Berth {
    /// Prepares for a trial.
    pub fn begin(&self, interposer: Box<dyn Interposer>) {
        let mut state = lock(&self.state);
        state.interposer = Some(interposer);
        state.reset = Reset::default();
    }

    /// What putting the machine back has cost since.
    pub fn reset(&self) -> Reset {
        lock(&self.state).reset
    }

    fn note(&self, restored: Restored, built: bool) {
        let reset = &mut lock(&self.state).reset;
        reset.micros += restored.micros;
        reset.compared_pages += restored.compared_pages;
        reset.pages += restored.copied_pages;
        reset.forgot += u64::from(restored.forgotten);
        reset.built += u64::from(built);
    }

    /// The machine of this berth, at the origin. `build` makes one that writes can be tracked of.
    ///
    /// # Errors
    /// When none can be made.
    pub fn take(
        self: &Arc<Self>,
        origin: &Origin,
        build: impl FnOnce() -> Result<KvmVcpu, Failure>,
    ) -> Result<Pooled, Failure> {
        let moored = lock(&self.state).machine.take();
        if let Some(mut machine) = moored {
            match put_back(&mut machine, &origin.checkpoint) {
                Ok(restored) => {
                    self.note(restored, false);
                    return Ok(self.pooled(machine, origin, true));
                }
                Err(error) => {
                    tracing::warn!(%error, "a machine cannot be put back and is built anew");
                }
            }
        }
        let (machine, restored) = fresh(origin, build)?;
        self.note(restored, true);
        Ok(self.pooled(machine, origin, true))
    }

    /// A machine of another replica's origin for this one.
    ///
    /// # Errors
    /// When none can be made.
    pub fn borrow(
        self: &Arc<Self>,
        origin: &Origin,
        build: impl FnOnce() -> Result<KvmVcpu, Failure>,
    ) -> Result<Pooled, Failure> {
        let (machine, _) = fresh(origin, build)?;
        Ok(self.pooled(machine, origin, false))
    }

    fn pooled(self: &Arc<Self>, machine: KvmVcpu, origin: &Origin, moors: bool) -> Pooled {
        let interposer = lock(&self.state).interposer.take();
        Pooled {
            berth: Arc::clone(self),
            machine: Some(machine),
            interposer: interposer.unwrap_or_else(|| Box::new(Untouched)),
            origin: origin.clone(),
            moors,
            fresh: true,
            boundary: 0,
            stall: None,
        }
    }
}

fn fresh(
    origin: &Origin,
    build: impl FnOnce() -> Result<KvmVcpu, Failure>,
) -> Result<(KvmVcpu, Restored), Failure> {
    let host = |error: String| Failure::new(ExitCode::Host, error);
    let mut machine = build()?;
    machine.track_dirty().map_err(host)?;
    let restored = machine
        .machine()
        .restore(&origin.checkpoint, Restore::Verified)
        .map_err(|error| failure(&error))?;
    Ok((machine, restored))
}

/// Whatever a trial has done to the machine: debuggers go, memory is put back by the logs, which know of guest, devices and faults.
fn put_back(machine: &mut KvmVcpu, to: &Checkpoint) -> Result<Restored, String> {
    let machine = machine.machine();
    if machine.debug_is_attached() {
        machine.debug_detach().map_err(|error| error.to_string())?;
    }
    machine
        .restore(to, Restore::Swift)
        .map_err(|error| error.to_string())
}

/// A machine in a trial. It goes back to its berth when it is dropped.
pub struct Pooled {
    berth: Arc<Berth>,
    /// There until it is dropped.
    machine: Option<KvmVcpu>,
    interposer: Box<dyn Interposer>,
    origin: Origin,
    moors: bool,
    /// It stands at boundary 0, whose outputs were released before: to the set it comes there now, with none.
    fresh: bool,
    /// Where it stands, or comes from.
    boundary: u64,
    stall: Option<Duration>,
}

impl Pooled {
    fn machine(&mut self) -> Result<&mut KvmVcpu, String> {
        self.machine.as_mut().ok_or_else(|| "no machine".to_owned())
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let interposer = std::mem::replace(&mut self.interposer, Box::new(Untouched));
        let machine = self.machine.take();
        // After a panic nobody knows what state it is in.
        let keep = self.moors && !std::thread::panicking();
        let mut state = lock(&self.berth.state);
        state.interposer = Some(interposer);
        if keep {
            state.machine = machine;
        } else {
            drop(state);
            let _ = catch_unwind(AssertUnwindSafe(|| drop(machine)));
        }
    }
}

impl Vcpu for Pooled {
    type Checkpoint = Checkpoint;

    fn track_dirty(&mut self) -> Result<(), String> {
        // It always is.
        Ok(())
    }

    fn origin(&self) -> Option<(Checkpoint, u64)> {
        Some((self.origin.checkpoint.clone(), self.origin.wait_until_ns))
    }

    fn checkpoint(&mut self, base: Option<&Checkpoint>) -> Result<(Checkpoint, Pause), String> {
        self.machine()?.checkpoint(base)
    }

    fn restore(&mut self, from: &Checkpoint) -> Result<(), String> {
        let boundary = from
            .boundary()
            .checked_sub(self.origin.checkpoint.boundary())
            .ok_or("the checkpoint is from before the trial")?;
        put_back(self.machine()?, from)?;
        self.fresh = false;
        self.boundary = boundary;
        self.interposer.restored(boundary);
        Ok(())
    }

    fn positions(checkpoint: &Checkpoint) -> Vec<DiskPosition> {
        checkpoint.disk_positions()
    }

    fn pages(checkpoint: &Checkpoint) -> u64 {
        checkpoint.pages_kept()
    }

    fn dump(&mut self) -> Result<Checkpoint, String> {
        self.machine()?.dump()
    }

    fn run(&mut self) -> Turn {
        if std::mem::take(&mut self.fresh) {
            return Turn::Boundary {
                outputs: Vec::new(),
                wait_until_ns: self.origin.wait_until_ns,
            };
        }
        let next = self.boundary + 1;
        let Some(machine) = &mut self.machine else {
            return Turn::Crash("no machine".to_owned());
        };
        let outcome = self.interposer.run(machine.machine(), next);
        let mut turn = machine.turn(outcome);
        if let Turn::Boundary { outputs, .. } = &mut turn {
            self.boundary = next;
            self.stall = self.interposer.stall(next);
            self.interposer.outputs(next, outputs);
        }
        turn
    }

    fn stall(&mut self) -> Option<Duration> {
        self.stall.take()
    }

    fn resume(&mut self, entry: &Arc<Entry>, reads: &mut dyn DiskReads) -> Result<(), String> {
        let at = self.boundary;
        let machine = self.machine.as_mut().ok_or("no machine")?;
        self.interposer.at_boundary(machine.machine(), at)?;
        let entry = self.interposer.entry(at, entry);
        let mut reads = Interposed {
            reads,
            interposer: &mut *self.interposer,
            boundary: at,
        };
        machine.resume(&entry, &mut reads)
    }

    fn told(&mut self) -> Option<String> {
        self.interposer.told()
    }

    fn inject(&mut self, fault: &Fault, random: u64) -> Result<String, String> {
        self.machine()?.inject(fault, random)
    }

    fn kicker(&self) -> Kick {
        match &self.machine {
            Some(machine) => machine.kicker(),
            None => Arc::new(|| {}),
        }
    }

    fn layout(&self) -> Vec<(&'static str, u64)> {
        self.machine.as_ref().map_or(Vec::new(), Vcpu::layout)
    }
}

struct Interposed<'i> {
    reads: &'i mut dyn DiskReads,
    interposer: &'i mut dyn Interposer,
    boundary: u64,
}

impl DiskReads for Interposed<'_> {
    fn take(&mut self, disk: u8, seq: u64) -> Result<Vec<u8>, String> {
        let mut data = self.reads.take(disk, seq)?;
        let len = data.len();
        self.interposer.read(self.boundary, disk, seq, &mut data);
        data.resize(len, 0);
        Ok(data)
    }
}
