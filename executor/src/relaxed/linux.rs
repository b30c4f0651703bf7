//! A Linux machine as a guest: it runs freely, and its device thread talks to the port.
//!
//! A checkpoint is taken between two runs of the machine: the exchange that finds one due asks for a pause, what it has for the guest is
//! still delivered, then all processors leave the guest. What the guest has put into its queues meanwhile is in its memory, and is
//! taken out by the next exchange, here or after a restore.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_abi::sync::WAIT_FOREVER;
use quorate_devices::{DiskReads, Entry, Output};
use quorate_vmm::linux::{
    Exchange, Exchanged, LinuxCheckpoint, LinuxEnd, LinuxHandle, LinuxMachine,
};

use super::guest::{End, Guest};
use super::port::{Port, Reads, Stop};
use super::recovery::Taken;
use crate::inject::Fault;
use crate::replica::{Kick, Pause, Tamper};

/// Makes another machine like it.
pub type Another = Box<dyn Fn() -> Result<LinuxMachine, String>>;

/// See the module.
pub struct LinuxGuest {
    machine: LinuxMachine,
    handle: LinuxHandle,
    another: Another,
    /// Its last checkpoint.
    kept: Option<LinuxCheckpoint>,
    tracks: bool,
}

/// Its world while it runs.
struct World<'p> {
    port: &'p Arc<Port>,
    handle: LinuxHandle,
    reads: Reads,
    tamper: &'p mut Tamper,
    /// Requests for disks whose completions the machine has been given. It has their data only when it comes again.
    given: &'p mut Entry,
    /// Its program's end was told.
    left: bool,
    /// A checkpoint is due: the machine was asked to pause.
    due: bool,
    misbehaved: Option<String>,
    /// The power button was pressed; a machine that was paused since is not asked again.
    asked_to_end: &'p mut bool,
    exchanged: Instant,
}

impl LinuxGuest {
    /// A machine that has not run, and how to make another one like it.
    #[must_use]
    pub fn new(machine: LinuxMachine, another: Another) -> LinuxGuest {
        LinuxGuest {
            handle: machine.handle(),
            machine,
            another,
            kept: None,
            tracks: false,
        }
    }

    /// Takes a checkpoint of the paused machine.
    fn checkpoint(&mut self, port: &Port) {
        let taken = self.machine.checkpoint(self.kept.as_ref());
        let taken = taken.map(|(checkpoint, cost)| {
            let taken = Taken {
                positions: checkpoint.disk_positions(),
                pages: checkpoint.pages_kept(),
                pause: Pause {
                    dirty_pages: cost.dirty_pages,
                    copied_bytes: cost.copied_bytes,
                    pause: Duration::from_micros(cost.micros),
                },
            };
            self.kept = Some(checkpoint);
            taken
        });
        port.checkpointed(taken.map_err(|error| error.to_string()));
    }

    /// Applies injected faults to the paused machine. False: the replica is to leave.
    fn open_mail(&mut self, port: &Port, tamper: &mut Tamper) -> bool {
        let (hub, me) = (port.hub(), port.replica());
        while let Some(mail) = hub.mail(me) {
            let machine = &mut self.machine;
            let result = match (tamper.prepare(&mail.fault), &mail.fault) {
                (Some(done), _) => Ok(done),
                (None, Fault::Crash) => machine
                    .crash()
                    .map(|()| "a triple fault".to_owned())
                    .map_err(|error| error.to_string()),
                (None, Fault::Hang) => machine
                    .hang()
                    .map(|()| "the guest spins".to_owned())
                    .map_err(|error| error.to_string()),
                (None, Fault::FlipRegister { register, bit }) => {
                    flip_register(machine, register.as_deref(), *bit, mail.random)
                }
                (
                    None,
                    Fault::FlipMemory {
                        address: Some(address),
                        bit,
                        ..
                    },
                ) => {
                    let bit = bit.unwrap_or((mail.random % 8) as u8) & 7;
                    machine
                        .flip_memory(*address, bit.into())
                        .map(|(before, after)| {
                            format!("physical address {address:#x} bit {bit}: {before:#04x} became {after:#04x}")
                        })
                        .map_err(|error| error.to_string())
                }
                (None, _) => {
                    Err("a Linux machine needs the physical address of the byte".to_owned())
                }
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
}

fn flip_register(
    machine: &mut LinuxMachine,
    name: Option<&str>,
    bit: Option<u8>,
    random: u64,
) -> Result<String, String> {
    let names: Vec<&str> = quorate_vmm::Register::names().collect();
    let chosen = names.get((random >> 8) as usize % names.len().max(1));
    let name = name.or(chosen.copied()).unwrap_or("rax");
    let bit = bit.unwrap_or((random % 64) as u8);
    let register = name
        .parse()
        .map_err(|error: quorate_vmm::MachineError| error.to_string())?;
    let (before, after) = machine
        .flip_register(0, register, bit.into())
        .map_err(|error| error.to_string())?;
    Ok(format!("{name} bit {bit}: {before:#x} became {after:#x}"))
}

impl Exchange for World<'_> {
    fn exchange(&mut self, mut outputs: Vec<Output>) -> Result<Exchanged, String> {
        let (hub, me) = (self.port.hub(), self.port.replica());
        self.port.delivered(&std::mem::take(self.given));
        if self.tamper.takes_wrong_output() {
            self.port.spoil_next();
        }
        self.tamper.outputs(me, &mut outputs);
        if let Some(wait) = self.tamper.wait() {
            hub.pause(me, wait);
        }
        if !*self.asked_to_end && hub.lock().terminate {
            *self.asked_to_end = true;
            self.handle.press_power_button();
        }
        hub.ran(me, self.exchanged.elapsed());
        self.exchanged = Instant::now();
        let now = hub.clock.monotonic_ns();
        match self.port.exchange(outputs, now) {
            Ok(entry) => {
                if !self.due
                    && self.port.was_given_input()
                    && self.port.checkpoint_due(WAIT_FOREVER)
                {
                    self.due = true;
                    self.handle.pause();
                }
                let deadline = self.port.deadline_ns();
                let left = deadline.map(|at| Duration::from_nanos(at.saturating_sub(now)));
                self.given.completions.clone_from(&entry.completions);
                Ok(Exchanged {
                    entry,
                    again_in: left,
                })
            }
            Err(Stop::Left) => {
                self.left = true;
                Err("it is to leave".to_owned())
            }
            Err(Stop::Misbehaved(report)) => {
                self.misbehaved = Some(report.clone());
                Err(report)
            }
        }
    }

    fn reads(&mut self) -> &mut dyn DiskReads {
        &mut self.reads
    }
}

impl Guest for LinuxGuest {
    fn run(&mut self, port: &Arc<Port>) -> End {
        let waking = self.handle.clone();
        port.on_input(Box::new(move || waking.wake()));
        let (hub, me) = (Arc::clone(port.hub()), port.replica());
        let mut tamper = Tamper::default();
        let mut asked_to_end = false;
        let mut given = Entry::default();
        if hub.takes_checkpoints()
            && !std::mem::replace(&mut self.tracks, true)
            && let Err(error) = self.machine.track_dirty()
        {
            // Checkpoints look at all of memory then.
            hub.note(format!(
                "replica {me}: changed pages cannot be tracked: {error}"
            ));
        }
        loop {
            let mut world = World {
                port,
                handle: self.handle.clone(),
                reads: port.reads(),
                tamper: &mut tamper,
                given: &mut given,
                left: false,
                due: false,
                misbehaved: None,
                asked_to_end: &mut asked_to_end,
                exchanged: Instant::now(),
            };
            let end = self.machine.run(&mut world);
            let (left, due, misbehaved) = (world.left, world.due, world.misbehaved.take());
            match end {
                LinuxEnd::Paused => {
                    if due {
                        self.checkpoint(port);
                    }
                    if !self.open_mail(port, &mut tamper) || hub.must_leave(me) {
                        return End::Left;
                    }
                }
                LinuxEnd::PoweredOff => {
                    hub.exited(&mut hub.lock(), me, 0);
                    return End::Left;
                }
                LinuxEnd::Killed => return End::Left,
                LinuxEnd::Stopped(_) if left => return End::Left,
                LinuxEnd::Stopped(report) => return End::Misbehaved(misbehaved.unwrap_or(report)),
                LinuxEnd::Reset if hub.must_leave(me) => return End::Left,
                LinuxEnd::Reset => return End::Crash("its kernel wants to begin again".to_owned()),
                LinuxEnd::Crash(report) => {
                    tracing::warn!(replica = me, "crash report: {report}");
                    return End::Crash(report.kind.to_string());
                }
                LinuxEnd::Misbehaved(error) => return End::Misbehaved(error.to_string()),
            }
        }
    }

    fn kicker(&self) -> Kick {
        let handle = self.handle.clone();
        Arc::new(move || handle.pause())
    }

    /// The machine that there is, whatever state it is in; another one if that cannot take it.
    fn restore(&mut self) -> Result<(), String> {
        let kept = self.kept.as_ref().ok_or("there is no checkpoint")?;
        let Err(error) = self.machine.restore(kept) else {
            return Ok(());
        };
        tracing::warn!("a machine does not take its checkpoint: {error}");
        let mut machine = (self.another)()
            .map_err(|another| format!("{error}; and another machine cannot be made: {another}"))?;
        let tracks = self.tracks && machine.track_dirty().is_ok();
        machine.restore(kept).map_err(|error| error.to_string())?;
        self.handle = machine.handle();
        self.machine = machine;
        self.tracks = tracks;
        Ok(())
    }

    fn layout(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}
