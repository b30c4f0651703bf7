//! A KVM machine as the set's [`Vcpu`].

use std::sync::Arc;
use std::time::Duration;

use quorate_devices::{DiskPosition, DiskReads, Entry};
use quorate_vmm::{Checkpoint, Layout, Machine, MachineError, Outcome, Register, Restore};

use crate::exit::{ExitCode, Failure};
use crate::explain::live::reached_at;
use crate::inject::Fault;
use crate::place::Place;
use crate::replica::{Kick, Pause, Turn, Vcpu};

/// Names of the regions of a layout, in the order of [`Layout`]'s fields.
pub const REGIONS: [&str; 12] = [
    "kernel",
    "boot",
    "direct",
    "image",
    "devices",
    "kernel_dynamic",
    "program",
    "libraries",
    "mmap",
    "threads",
    "heap",
    "stack_top",
];

/// See the module.
pub struct KvmVcpu {
    machine: Machine,
    replica: usize,
    /// It stands at a boundary that another run came to and decided; until when the guest wanted to sleep there.
    resumed: Option<u64>,
    /// The same, and what it began with there, for as long as it has not run.
    origin: Option<(Checkpoint, u64)>,
}

impl KvmVcpu {
    /// A machine for replica number `replica`.
    pub fn new(machine: Machine, replica: usize) -> Self {
        KvmVcpu {
            machine,
            replica,
            resumed: None,
            origin: None,
        }
    }

    /// The machine itself.
    pub(crate) fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// What an end of [`Machine::run`] means to the set.
    pub(crate) fn turn(&self, outcome: Outcome) -> Turn {
        match outcome {
            Outcome::Boundary(boundary) => Turn::Boundary {
                outputs: boundary.outputs,
                wait_until_ns: boundary.wait_until_ns,
            },
            Outcome::Kicked => Turn::Kicked,
            // Only a replay asks for it (`explain`), and it has machines of its own (R9).
            Outcome::Stopped => Turn::Misbehaved(
                "the guest rang the flight recorder's port, and nobody asked it to".to_owned(),
            ),
            Outcome::Crash(report) => {
                // Registers and stack are for whoever looks for the cause; the event has one line.
                tracing::warn!(replica = self.replica, "crash report: {report}");
                Turn::Crash(report.kind.to_string())
            }
            Outcome::Misbehaved(error) => Turn::Misbehaved(error.to_string()),
        }
    }

    /// Puts a fresh machine to where a set was saved. Its outputs there were released before the set was saved: to this set
    /// it is the first boundary, with none.
    ///
    /// # Errors
    /// When the host does not take the state.
    pub fn begin_at(&mut self, at: &Checkpoint, wait_until_ns: u64) -> Result<(), MachineError> {
        self.machine.restore(at, Restore::Verified)?;
        self.resumed = Some(wait_until_ns);
        self.origin = Some((at.clone(), wait_until_ns));
        Ok(())
    }
}

impl Vcpu for KvmVcpu {
    type Checkpoint = Checkpoint;

    fn track_dirty(&mut self) -> Result<(), String> {
        self.machine
            .track_dirty()
            .map_err(|error| error.to_string())
    }

    fn checkpoint(&mut self, base: Option<&Checkpoint>) -> Result<(Checkpoint, Pause), String> {
        let taken = self.machine.checkpoint(base);
        let (checkpoint, cost) = taken.map_err(|error| error.to_string())?;
        let pause = Pause {
            dirty_pages: cost.dirty_pages,
            copied_bytes: cost.copied_bytes,
            pause: Duration::from_micros(cost.micros),
        };
        Ok((checkpoint, pause))
    }

    fn restore(&mut self, from: &Checkpoint) -> Result<(), String> {
        (self.resumed, self.origin) = (None, None);
        // Whatever stopped the replica may have written anywhere, so that no log of its writes is believed.
        self.machine
            .restore(from, Restore::Verified)
            .map(drop)
            .map_err(|error| error.to_string())
    }

    fn origin(&self) -> Option<(Checkpoint, u64)> {
        self.origin.clone()
    }

    fn positions(checkpoint: &Checkpoint) -> Vec<DiskPosition> {
        checkpoint.disk_positions()
    }

    fn pages(checkpoint: &Checkpoint) -> u64 {
        checkpoint.pages_kept()
    }

    fn write(checkpoint: &Checkpoint, to: &mut dyn std::io::Write) -> Result<(), String> {
        checkpoint.write_to(to).map_err(|error| error.to_string())
    }

    fn dump(&mut self) -> Result<Checkpoint, String> {
        self.machine.dump().map_err(|error| error.to_string())
    }

    fn run(&mut self) -> Turn {
        if let Some(wait_until_ns) = self.resumed.take() {
            return Turn::Boundary {
                outputs: Vec::new(),
                wait_until_ns,
            };
        }
        self.origin = None;
        let outcome = self.machine.run();
        self.turn(outcome)
    }

    fn resume(&mut self, entry: &Arc<Entry>, reads: &mut dyn DiskReads) -> Result<(), String> {
        self.machine
            .resume(entry, reads)
            .map_err(|error| error.to_string())
    }

    fn inject(&mut self, fault: &Fault, random: u64) -> Result<String, String> {
        let machine = &mut self.machine;
        let done = match fault {
            Fault::Crash => machine.crash().map(|()| "a triple fault".to_owned()),
            Fault::Hang => machine
                .set_rip_spin()
                .map(|()| "the guest spins".to_owned()),
            Fault::FlipRegister { register, bit } => {
                flip_register(machine, register.as_deref(), *bit, random)
            }
            Fault::FlipMemory {
                place: Some(place),
                bit,
                ..
            } => return flip_place(machine, place, *bit, random),
            Fault::FlipMemory { address, bit, .. } => flip_memory(machine, *address, *bit, random),
            Fault::Freeze | Fault::WrongOutput | Fault::WrongWrite | Fault::Slow { .. } => {
                return Err("not a fault of the machine".to_owned());
            }
        };
        done.map_err(|error| error.to_string())
    }

    fn kicker(&self) -> Kick {
        let kicker = self.machine.kicker();
        Arc::new(move || kicker.kick())
    }

    fn layout(&self) -> Vec<(&'static str, u64)> {
        let Layout {
            kernel,
            boot,
            direct,
            image,
            devices,
            kernel_dynamic,
            program,
            libraries,
            mmap,
            threads,
            heap,
            stack_top,
        } = *self.machine.layout();
        let starts = [
            kernel,
            boot,
            direct,
            image,
            devices,
            kernel_dynamic,
            program,
            libraries,
            mmap,
            threads,
            heap,
            stack_top,
        ];
        REGIONS.into_iter().zip(starts).collect()
    }
}

fn flip_register(
    machine: &mut Machine,
    name: Option<&str>,
    bit: Option<u8>,
    random: u64,
) -> Result<String, MachineError> {
    let names: Vec<&'static str> = Register::names().collect();
    let name = name.unwrap_or_else(|| names[(random >> 8) as usize % names.len()]);
    let bit = bit.unwrap_or((random % 64) as u8);
    let (before, after) = machine.flip_register(name.parse()?, bit.into())?;
    Ok(format!("{name} bit {bit}: {before:#x} became {after:#x}"))
}

/// Flips a bit of a byte that the user has named; it may be one of the root image.
fn flip_place(
    machine: &mut Machine,
    place: &str,
    bit: Option<u8>,
    random: u64,
) -> Result<String, String> {
    let bit = bit.unwrap_or((random % 8) as u8) & 7;
    let place: Place = place.parse()?;
    let physical = place.physical(machine)?;
    let at = reached_at(machine.layout(), physical).unwrap_or(0);
    let mut byte = [0];
    if machine.read_virtual(at, &mut byte) != 1 {
        return Err(format!("there is no memory at {physical:#x}"));
    }
    let before = byte[0];
    byte[0] ^= 1 << bit;
    machine
        .spoil_virtual(at, &byte)
        .map_err(|error| error.to_string())?;
    Ok(format!(
        "physical address {physical:#x} bit {bit}: {before:#04x} became {:#04x} ({place})",
        byte[0]
    ))
}

fn flip_memory(
    machine: &mut Machine,
    address: Option<u64>,
    bit: Option<u8>,
    random: u64,
) -> Result<String, MachineError> {
    let bit = bit.unwrap_or((random % 8) as u8);
    // `% end` may fall into the hole below 4 GiB; half of the range is always RAM.
    let end = machine.ram_end().max(2);
    let chosen = (random >> 3) % end;
    let address = address.unwrap_or(chosen);
    let flipped = machine.flip_memory(address, bit.into());
    let (address, (before, after)) = match flipped {
        Err(MachineError::Access(_)) if address == chosen => {
            let address = chosen % (1 << 30);
            (address, machine.flip_memory(address, bit.into())?)
        }
        other => (address, other?),
    };
    Ok(format!(
        "physical address {address:#x} bit {bit}: {before:#04x} became {after:#04x}"
    ))
}

/// How the command ends when a machine cannot be made.
pub fn failure(error: &MachineError) -> Failure {
    let code = match error {
        MachineError::Layout(_) => ExitCode::Layout,
        MachineError::Image(_)
        | MachineError::ImageEmpty
        | MachineError::ImageTooLarge(_)
        | MachineError::Kernel(_) => ExitCode::Image,
        MachineError::MemoryTooSmall { .. }
        | MachineError::MemoryTooLarge(_)
        | MachineError::MemoryUneven(_)
        | MachineError::StringsTooLong(_)
        | MachineError::StringWithNul(_)
        | MachineError::NoProgram => ExitCode::Appliance,
        MachineError::NotAtBoundary | MachineError::Access(_) => ExitCode::Internal,
        _ => ExitCode::Host,
    };
    Failure::new(code, error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use quorate_vmm::{AddressSpace, LayoutKind, LayoutRequest};

    #[test]
    fn a_layout_that_cannot_fit_has_an_exit_code_of_its_own() {
        let request = LayoutRequest {
            kind: LayoutKind::Random,
            layout_seed: [1; 32],
            input_seed: [2; 32],
            kernel_bytes: 1 << 20,
            boot_bytes: 1 << 20,
            ram_end: 1 << 30,
            image_bytes: 1 << 30,
        };
        let space = AddressSpace {
            low: 0x10_0000,
            high: 1 << 38,
        };
        let error = MachineError::from(request.generate_in(space).unwrap_err());
        let failure = failure(&error);
        assert_eq!(failure.code, ExitCode::Layout);
        assert!(
            failure.message.contains("cannot fit"),
            "{}",
            failure.message
        );
    }

    #[test]
    fn what_the_host_lacks_is_the_hosts_fault() {
        assert_eq!(failure(&MachineError::NoKvm).code, ExitCode::Host);
        assert_eq!(failure(&MachineError::KvmPermission).code, ExitCode::Host);
        assert_eq!(
            failure(&MachineError::MemoryTooSmall {
                given: 1,
                needed: 2
            })
            .code,
            ExitCode::Appliance
        );
    }
}
