//! Taking checkpoints of a Linux machine, and putting them back.
//!
//! A checkpoint is taken while the machine stands still between two calls of [`LinuxMachine::run`]: no processor's thread is there, every
//! I/O instruction is complete, and the device thread's last pass is over. What is in it, in the order in which it is put back: memory;
//! KVM's interrupt controllers and timer; the processors, each in the order of `checkpoint/state.rs`; the devices, which are checked
//! against memory; the clock last, so that as little time as possible passes for the guest. Not in it: interrupts on their way from
//! an event file to the interrupt controller, which KVM keeps where nobody can read it. After a restore every device that is in use
//! interrupts once, and every queue is looked at once, which does no harm where nothing was lost.

use super::config::{LinuxConfig, LinuxConsole};
use super::fault::LinuxFault;
use super::machine::LinuxMachine;
use super::ports::PortsState;
use crate::checkpoint::memory::Memory;
use crate::checkpoint::{
    Pause, Restored, Tracking, VcpuState, forget_translations, manual_log, micros, next_number,
    take_memory,
};
use crate::error::MachineError;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data,
    kvm_cpuid_entry2, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use quorate_devices::{DiskConfig, DiskPosition, RestoreError, VirtioSetState};
use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Instant;

/// What a checkpoint must have in common with the machine that it is put back into. Kernel, initramfs, command line and layout seed are
/// not part of it: what came of them is in memory. The input seed is the run's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    memory_bytes: u64,
    cpus: u8,
    console: LinuxConsole,
    disks: Vec<DiskConfig>,
    /// Of the first processor's; the others differ in their numbers only.
    cpuid: [u8; 32],
}

impl Identity {
    pub(crate) fn of(config: &LinuxConfig, cpuid: &[kvm_cpuid_entry2]) -> Self {
        let mut leaves = blake3::Hasher::new();
        for leaf in cpuid {
            for word in [
                leaf.function,
                leaf.index,
                leaf.eax,
                leaf.ebx,
                leaf.ecx,
                leaf.edx,
            ] {
                leaves.update(&word.to_le_bytes());
            }
        }
        Self {
            memory_bytes: config.memory_bytes,
            cpus: config.cpus,
            console: config.console,
            disks: config.disks.clone(),
            cpuid: *leaves.finalize().as_bytes(),
        }
    }

    /// Requires that both are the same.
    fn check(&self, here: &Self) -> Result<(), MachineError> {
        let same = |what, saved: &dyn Debug, here: &dyn Debug| {
            let (saved, here) = (format!("{saved:?}"), format!("{here:?}"));
            match saved == here {
                true => Ok(()),
                false => Err(MachineError::Identity { what, saved, here }),
            }
        };
        same("memory size", &self.memory_bytes, &here.memory_bytes)?;
        same("number of processors", &self.cpus, &here.cpus)?;
        same("console", &self.console, &here.console)?;
        same("list of disks", &self.disks, &here.disks)?;
        same("CPUID", &self.cpuid, &here.cpuid)
    }
}

/// What KVM has for the machine as a whole.
#[derive(Debug)]
struct Platform {
    /// The two 8259 and the I/O APIC.
    chips: [kvm_irqchip; 3],
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
}

impl Platform {
    fn take(vm: &VmFd) -> Result<Self, MachineError> {
        use MachineError as E;
        let chip = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            vm.get_irqchip(&mut chip)
                .map_err(E::kvm("KVM_GET_IRQCHIP"))?;
            Ok::<_, MachineError>(chip)
        };
        Ok(Self {
            chips: [
                chip(KVM_IRQCHIP_PIC_MASTER)?,
                chip(KVM_IRQCHIP_PIC_SLAVE)?,
                chip(KVM_IRQCHIP_IOAPIC)?,
            ],
            pit: vm.get_pit2().map_err(E::kvm("KVM_GET_PIT2"))?,
            clock: vm.get_clock().map_err(E::kvm("KVM_GET_CLOCK"))?,
        })
    }

    fn put(&self, vm: &VmFd) -> Result<(), MachineError> {
        use MachineError as E;
        for chip in &self.chips {
            vm.set_irqchip(chip).map_err(E::kvm("KVM_SET_IRQCHIP"))?;
        }
        vm.set_pit2(&self.pit).map_err(E::kvm("KVM_SET_PIT2"))
    }

    /// The guest's clock goes on from where it was.
    fn put_clock(&self, vm: &VmFd) -> Result<(), MachineError> {
        let clock = kvm_clock_data {
            clock: self.clock.clock,
            ..kvm_clock_data::default()
        };
        vm.set_clock(&clock)
            .map_err(MachineError::kvm("KVM_SET_CLOCK"))
    }
}

struct Inner {
    /// Differs from checkpoint to checkpoint in this process; never 0.
    number: u64,
    identity: Arc<Identity>,
    platform: Platform,
    vcpus: Vec<VcpuState>,
    devices: VirtioSetState,
    ports: PortsState,
    memory: Memory,
}

/// The whole state of a Linux machine but for the contents of its disks. Cheap to clone; to drop the last clone frees up to all of its
/// memory.
#[derive(Clone)]
pub struct LinuxCheckpoint {
    inner: Arc<Inner>,
}

impl Debug for LinuxCheckpoint {
    /// Short: memory is secret, and long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinuxCheckpoint")
            .field("processors", &self.inner.vcpus.len())
            .field("pages", &self.pages_kept())
            .finish_non_exhaustive()
    }
}

impl LinuxCheckpoint {
    /// Where the guest stands on each disk.
    #[must_use]
    pub fn disk_positions(&self) -> Vec<DiskPosition> {
        self.inner.devices.disk_positions()
    }

    /// How many pages of 4 KiB are kept.
    #[must_use]
    pub fn pages_kept(&self) -> u64 {
        self.inner.memory.kept()
    }
}

impl LinuxMachine {
    /// Starts to note which pages are written, so that a checkpoint costs only what changed since the one before. Best called before the
    /// first [`LinuxMachine::run`].
    ///
    /// # Errors
    ///
    /// If KVM refuses.
    pub fn track_dirty(&mut self) -> Result<(), MachineError> {
        if self.tracking.is_none() {
            let manual = manual_log(&self.vm);
            let tracking = Tracking::begin(&self.vm, &self.memory, manual, self.pristine)?;
            self.tracking = Some(tracking);
        }
        Ok(())
    }

    /// Takes a checkpoint of the paused (or not yet started) machine. With the last one that it took or was restored from as `base`
    /// only what changed since is copied, if [`LinuxMachine::track_dirty`] was called; otherwise all of memory is looked at.
    ///
    /// # Errors
    ///
    /// If the machine has ended, or KVM does not give all of its state.
    pub fn checkpoint(
        &mut self,
        base: Option<&LinuxCheckpoint>,
    ) -> Result<(LinuxCheckpoint, Pause), MachineError> {
        if self.ended {
            return Err(LinuxFault::Ended.into());
        }
        let start = Instant::now();
        let platform = Platform::take(&self.vm)?;
        let vcpus = self.vcpus.iter();
        let vcpus = vcpus.map(|vcpu| VcpuState::take(&vcpu.fd, &self.offers));
        let vcpus = vcpus.collect::<Result<_, _>>()?;
        let devices = self.shared.devices().save();
        let ports = self.shared.ports().save();
        let state = start.elapsed();
        let number = next_number();
        let base = base.map_or(0, |base| base.inner.number);
        let (memory, pause) =
            take_memory(&mut self.tracking, &self.vm, &self.memory, base, number)?;
        let checkpoint = LinuxCheckpoint {
            inner: Arc::new(Inner {
                number,
                identity: Arc::clone(&self.identity),
                platform,
                vcpus,
                devices,
                ports,
                memory,
            }),
        };
        Ok((checkpoint, pause.after(start, state)))
    }

    /// Makes the machine what it was when the checkpoint was taken, of it or of another one with as much memory, as many processors, the
    /// same disks and the same console. After an error it cannot run; another checkpoint may be tried.
    ///
    /// # Errors
    ///
    /// If the checkpoint is of another machine, or KVM refuses part of the state.
    pub fn restore(&mut self, to: &LinuxCheckpoint) -> Result<Restored, MachineError> {
        let start = Instant::now();
        let saved = &*to.inner;
        saved.identity.check(&self.identity)?;
        self.ended = true;
        let pristine = std::mem::take(&mut self.pristine);
        let seen = saved.memory.put(&self.memory)?;
        if !pristine {
            forget_translations(&self.vm, &self.memory)?;
        }
        if let Some(tracking) = &mut self.tracking {
            tracking.restart_from(&self.vm, &self.memory, saved.number, saved.memory.clone())?;
        }
        saved.platform.put(&self.vm)?;
        for (vcpu, state) in self.vcpus.iter().zip(&saved.vcpus) {
            state.put(&vcpu.fd, &self.offers)?;
            super::cpuid::idle_task(&vcpu.fd)?;
        }
        let ram = &self.memory.ram;
        self.shared.devices().restore(ram, &saved.devices)?;
        if !self.shared.ports().restore(&saved.ports) {
            return Err(RestoreError::Invalid {
                device: "serial",
                what: "registers or buffers",
            }
            .into());
        }
        self.shared.forget_end();
        saved.platform.put_clock(&self.vm)?;
        self.restored = true;
        self.ended = false;
        Ok(Restored {
            compared_pages: seen.compared,
            copied_pages: seen.changed,
            forgotten: !pristine,
            micros: micros(start.elapsed()),
        })
    }
}
