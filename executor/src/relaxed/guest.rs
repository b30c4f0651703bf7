//! What a relaxed set needs of a guest, and the embedded guest.

use std::sync::Arc;

use super::port::{Next, Port, Stop};
use super::recovery::Taken;
use crate::inject::Fault;
use crate::replica::{Kick, Tamper, Turn, Vcpu};
pub use crate::shared::Mail;

/// How a guest's run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It was to go: stopped, or the set has ended; or its program has ended, which the set knows.
    Left,
    /// The machine cannot go on; a report.
    Crash(String),
    /// The guest broke the rules of a device (R9); a report.
    Misbehaved(String),
}

/// One replica's guest. It is made, run and dropped by the replica's thread.
pub trait Guest {
    /// Runs the guest until it ends or is to go. Everything that it says goes to the port, and everything that it gets comes
    /// from there (R1).
    fn run(&mut self, port: &Arc<Port>) -> End;
    /// Makes [`Guest::run`] look at the set.
    fn kicker(&self) -> Kick;
    /// Puts the machine back to its last checkpoint: the next [`Guest::run`] goes on from there. A port takes part in every checkpoint
    /// ([`Port::checkpoint_due`], [`Port::checkpointed`]).
    ///
    /// # Errors
    /// When there is none, or the host does not take the state.
    fn restore(&mut self) -> Result<(), String>;
    /// Start address of each region of the layout.
    fn layout(&self) -> Vec<(&'static str, u64)>;
}

/// A machine that stops at boundaries.
pub struct EmbeddedGuest<V: Vcpu> {
    vcpu: V,
    /// Its last checkpoint, and until when the guest wanted to sleep there.
    kept: Option<(V::Checkpoint, u64)>,
    /// It stands at the boundary of its checkpoint.
    restored: bool,
    tracks: bool,
}

impl<V: Vcpu> EmbeddedGuest<V> {
    /// A guest that has not run yet.
    pub fn new(vcpu: V) -> Self {
        EmbeddedGuest {
            vcpu,
            kept: None,
            restored: false,
            tracks: false,
        }
    }

    /// At a boundary: takes a checkpoint if one is due, waits for what there is for the guest, and gives it that.
    fn stand(&mut self, port: &Arc<Port>, wait_until_ns: u64, tamper: &mut Tamper) -> Option<End> {
        if port.checkpoint_due(wait_until_ns) {
            let base = self.kept.as_ref().map(|(checkpoint, _)| checkpoint);
            let taken = self.vcpu.checkpoint(base);
            port.checkpointed(taken.map(|(checkpoint, pause)| {
                let taken = Taken {
                    positions: V::positions(&checkpoint),
                    pages: V::pages(&checkpoint),
                    pause,
                };
                self.kept = Some((checkpoint, wait_until_ns));
                taken
            }));
        }
        loop {
            match port.await_entry(wait_until_ns) {
                Next::Resume(entry) => {
                    if let Err(report) = self.vcpu.resume(&entry, &mut port.reads()) {
                        return Some(End::Misbehaved(report));
                    }
                    port.delivered(&entry);
                    return None;
                }
                Next::Look if open_mail(port, &mut self.vcpu, tamper) => {}
                Next::Look | Next::Leave => return Some(End::Left),
                Next::Misbehaved(report) => return Some(End::Misbehaved(report)),
            }
        }
    }
}

impl<V: Vcpu> Guest for EmbeddedGuest<V> {
    fn run(&mut self, port: &Arc<Port>) -> End {
        let (hub, me) = (Arc::clone(port.hub()), port.replica());
        let mut tamper = Tamper::default();
        if hub.takes_checkpoints()
            && !std::mem::replace(&mut self.tracks, true)
            && let Err(reason) = self.vcpu.track_dirty()
        {
            // Checkpoints are whole ones then.
            hub.note(format!(
                "replica {me}: changed pages cannot be tracked: {reason}"
            ));
        }
        if let Some((_, wait_until_ns)) = &self.kept
            && std::mem::take(&mut self.restored)
        {
            let wait_until_ns = *wait_until_ns;
            if let Some(end) = self.stand(port, wait_until_ns, &mut tamper) {
                return end;
            }
        }
        loop {
            let entered = std::time::Instant::now();
            let turn = self.vcpu.run();
            hub.ran(me, entered.elapsed());
            match turn {
                Turn::Boundary {
                    mut outputs,
                    wait_until_ns,
                } => {
                    if tamper.takes_wrong_output() {
                        port.spoil_next();
                    }
                    tamper.outputs(me, &mut outputs);
                    if let Some(wait) = tamper.wait() {
                        hub.pause(me, wait);
                    }
                    match port.give_away(outputs, wait_until_ns) {
                        Ok(()) => {}
                        Err(Stop::Left) => return End::Left,
                        Err(Stop::Misbehaved(report)) => return End::Misbehaved(report),
                    }
                    if let Some(end) = self.stand(port, wait_until_ns, &mut tamper) {
                        return end;
                    }
                }
                Turn::Kicked => {
                    if !open_mail(port, &mut self.vcpu, &mut tamper) || hub.must_leave(me) {
                        return End::Left;
                    }
                }
                Turn::Crash(report) => return End::Crash(report),
                Turn::Misbehaved(report) => return End::Misbehaved(report),
            }
        }
    }

    fn kicker(&self) -> Kick {
        self.vcpu.kicker()
    }

    fn restore(&mut self) -> Result<(), String> {
        let (checkpoint, _) = self.kept.as_ref().ok_or("there is no checkpoint")?;
        self.vcpu.restore(checkpoint)?;
        self.restored = true;
        Ok(())
    }

    fn layout(&self) -> Vec<(&'static str, u64)> {
        self.vcpu.layout()
    }
}

/// Applies injected faults. False: the replica is to leave.
fn open_mail<V: Vcpu>(port: &Arc<Port>, vcpu: &mut V, tamper: &mut Tamper) -> bool {
    let (hub, me) = (port.hub(), port.replica());
    while let Some(mail) = hub.mail(me) {
        let result = match tamper.prepare(&mail.fault) {
            Some(done) => Ok(done),
            None => vcpu.inject(&mail.fault, mail.random),
        };
        let frozen = result.is_ok() && mail.fault == Fault::Freeze;
        hub.injected(me, mail, result);
        if frozen {
            hub.freeze(me);
            return false;
        }
    }
    true
}
