//! What a relaxed set needs of a guest, and the embedded guest.

use std::sync::Arc;

use super::port::{Next, Port};
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
    /// Start address of each region of the layout.
    fn layout(&self) -> Vec<(&'static str, u64)>;
}

/// A machine that stops at boundaries.
pub struct EmbeddedGuest<V>(pub V);

impl<V: Vcpu> Guest for EmbeddedGuest<V> {
    fn run(&mut self, port: &Arc<Port>) -> End {
        drive(port, &mut self.0)
    }

    fn kicker(&self) -> Kick {
        self.0.kicker()
    }

    fn layout(&self) -> Vec<(&'static str, u64)> {
        self.0.layout()
    }
}

fn drive<V: Vcpu>(port: &Arc<Port>, vcpu: &mut V) -> End {
    let (hub, me) = (Arc::clone(port.hub()), port.replica());
    let mut tamper = Tamper::default();
    loop {
        let entered = std::time::Instant::now();
        let turn = vcpu.run();
        hub.ran(me, entered.elapsed());
        match turn {
            Turn::Boundary {
                mut outputs,
                wait_until_ns,
            } => {
                tamper.outputs(me, &mut outputs);
                if let Some(wait) = tamper.wait() {
                    hub.pause(me, wait);
                }
                let mut next = port.boundary(outputs, wait_until_ns);
                loop {
                    match next {
                        Next::Resume(entry) => {
                            if let Err(report) = vcpu.resume(&entry, &mut port.reads()) {
                                return End::Misbehaved(report);
                            }
                            port.delivered(&entry);
                            break;
                        }
                        Next::Look => {
                            if !open_mail(port, vcpu, &mut tamper) {
                                return End::Left;
                            }
                        }
                        Next::Leave => return End::Left,
                        Next::Misbehaved(report) => return End::Misbehaved(report),
                    }
                    next = port.await_entry(wait_until_ns);
                }
            }
            Turn::Kicked => {
                if !open_mail(port, vcpu, &mut tamper) || hub.must_leave(me) {
                    return End::Left;
                }
            }
            Turn::Crash(report) => return End::Crash(report),
            Turn::Misbehaved(report) => return End::Misbehaved(report),
        }
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
