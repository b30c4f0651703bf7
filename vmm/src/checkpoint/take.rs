//! Taking checkpoints of a machine, and putting them back.

use super::memory::{Bits, Memory};
use super::state::VcpuState;
use super::{Checkpoint, Inner, Phase};
use crate::error::MachineError;
use crate::machine::Machine;
use quorate_abi::PAGE_SIZE;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// What a checkpoint cost the machine that it was taken of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// Pages that had changed since the checkpoint before.
    pub dirty_pages: u64,
    /// Pages that were looked at for that: those that the logs named, or all that the host has.
    pub compared_pages: u64,
    /// Bytes that were copied.
    pub copied_bytes: u64,
    /// How long the machine stood still, microseconds.
    pub micros: u64,
    /// The part of `micros` for everything but memory.
    pub state_micros: u64,
    /// Whether all of memory had to be looked at, because the logs do not go back to the base.
    pub full: bool,
}

/// How much of a machine's memory is looked at when a checkpoint is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restore {
    /// Every page is compared, and those that differ are copied: for a machine whose memory nobody trusts.
    Verified,
    /// Only the pages that the logs name: for a machine that is sound, to go back quickly. Where the logs do not say, every
    /// page.
    Dirty,
    /// As [`Restore::Dirty`], and what KVM has derived from the guest's page tables stays where the logs show that none of these was
    /// written: the guest does not have to fault everything in again. For a machine that goes back to the same checkpoint again and
    /// again, and that nobody but guest, devices and [`Machine`]'s own methods wrote to.
    Swift,
}

/// What putting a checkpoint back took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Pages that were compared.
    pub compared_pages: u64,
    /// Pages of those that were changed.
    pub copied_pages: u64,
    /// How long it took, microseconds.
    pub micros: u64,
}

/// Pages that the logs may name although they have not changed, before they are begun anew: so many, and for each that has changed so
/// many more.
const CROWDED: u64 = 2048;
const CROWDED_FACTOR: u64 = 4;

/// Numbers of checkpoints; 0 is none.
static NUMBER: AtomicU64 = AtomicU64::new(1);

pub(crate) fn next_number() -> u64 {
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Machine {
    /// Takes a checkpoint; the machine must be at a boundary, and goes on afterwards as if nothing had been. With the
    /// last checkpoint that this machine took or was restored from as `base` only what changed since is copied, if
    /// [`Machine::track_dirty`] was called; likewise with `None` if it has none yet and its writes were tracked from the start. Any
    /// other base, or `None`, is as good, but costs a look at all of memory.
    ///
    /// # Errors
    ///
    /// If the machine is not at a boundary, or KVM does not give all of its state.
    pub fn checkpoint(
        &mut self,
        base: Option<&Checkpoint>,
    ) -> Result<(Checkpoint, Pause), MachineError> {
        let start = Instant::now();
        if self.phase != Phase::AtBoundary {
            return Err(MachineError::NotAtBoundary);
        }
        let vcpu = self.take_vcpu()?;
        let devices = self.devices.save();
        let state = start.elapsed();
        let number = next_number();
        let base = base.map_or(0, |base| base.inner.number);
        let by_log = match &mut self.tracking {
            Some(tracking) => tracking.update(&self.vm, &self.memory, base)?,
            None => None,
        };
        let full = by_log.is_none();
        let (memory, seen) = match by_log {
            Some(found) => found,
            None => Memory::scan(
                &self.memory,
                self.tracking.as_ref().and_then(|tracking| tracking.base()),
            )?,
        };
        if let Some(tracking) = &mut self.tracking {
            tracking.start_from(number, memory.clone());
        }
        let checkpoint = Checkpoint {
            image: self.image.clone(),
            inner: Arc::new(Inner {
                number,
                identity: Arc::clone(&self.identity),
                image_digest: None,
                phase: self.phase,
                vcpu,
                devices,
                memory,
                tables: OnceLock::new(),
            }),
        };
        let pause = Pause {
            dirty_pages: seen.changed,
            compared_pages: seen.compared,
            copied_bytes: seen.copied * PAGE_SIZE,
            micros: micros(start.elapsed()),
            state_micros: micros(state),
            full,
        };
        Ok((checkpoint, pause))
    }

    /// The machine's state wherever it is: running, at a boundary, or lost. Every page is looked at. For reports: only a dump that
    /// happens to be at a boundary can be resumed.
    ///
    /// # Errors
    ///
    /// If KVM does not give all of its state.
    pub fn dump(&mut self) -> Result<Checkpoint, MachineError> {
        let vcpu = self.take_vcpu()?;
        let known = self.tracking.as_ref().and_then(|tracking| tracking.base());
        let (memory, ..) = Memory::scan(&self.memory, known)?;
        Ok(Checkpoint {
            image: self.image.clone(),
            inner: Arc::new(Inner {
                number: next_number(),
                identity: Arc::clone(&self.identity),
                image_digest: None,
                phase: self.phase,
                vcpu,
                devices: self.devices.save(),
                memory,
                tables: OnceLock::new(),
            }),
        })
    }

    fn take_vcpu(&mut self) -> Result<VcpuState, MachineError> {
        // An I/O instruction that is half done lives in KVM, where nothing can take it from: it is completed first.
        self.settle()?;
        VcpuState::take(&self.vcpu, &self.offers)
    }

    /// Makes the machine what it was when the checkpoint was taken, whatever happened to it since. It may be another machine
    /// than the one that it was taken of, made from the same configuration with the same layout seed. After an error the machine cannot
    /// be run; another checkpoint may be tried.
    ///
    /// # Errors
    ///
    /// If the checkpoint is of another machine, or KVM refuses part of the state.
    pub fn restore(&mut self, to: &Checkpoint, how: Restore) -> Result<Restored, MachineError> {
        let start = Instant::now();
        let saved = &*to.inner;
        saved.identity.check(&self.identity)?;
        self.check_image(to)?;
        if !saved.memory.same_shape(&Memory::pristine(&self.memory)) {
            return Err(MachineError::Identity {
                what: "memory map",
                saved: "one".into(),
                here: "another".into(),
            });
        }
        // What is half done would otherwise be completed on top of the restored registers.
        self.phase = Phase::Ended;
        self.settle()?;
        let which = match (&mut self.tracking, how) {
            (Some(tracking), Restore::Dirty | Restore::Swift) => {
                tracking.changed(&self.vm, &self.memory, &saved.memory)?
            }
            _ => None,
        };
        let tables = match &which {
            Some(which) if how == Restore::Swift => self.sound_tables(saved, which)?,
            _ => None,
        };
        let seen = saved.memory.put(&self.memory, which.as_deref())?;
        // A log that names much more than changes is begun anew: that is what it costs.
        let crowded = seen.compared > CROWDED + CROWDED_FACTOR * seen.changed;
        if (tables.is_none() || crowded) && !self.pristine {
            self.forget_translations()?;
        }
        self.pristine = false;
        if let Some(tracking) = &mut self.tracking {
            tracking.restart_from(&self.vm, &self.memory, saved.number, saved.memory.clone())?;
            if how == Restore::Swift
                && let Some(tables) = saved.tables()
            {
                tracking.watch(&self.vm, &self.memory, tables)?;
            }
        }
        saved.vcpu.put(&self.vcpu, &self.offers)?;
        // After memory: the queues are checked against it.
        self.devices.restore(&self.memory.ram, &saved.devices)?;
        self.phase = saved.phase;
        self.debug_restored();
        Ok(Restored {
            compared_pages: seen.compared,
            copied_pages: seen.changed,
            micros: micros(start.elapsed()),
        })
    }

    /// The page tables of the checkpoint, if the guest has the same ones now and has written to none of them since the machine was last put
    /// back there. (A page that was a table for a while only was linked from one of them, and so they were written.)
    fn sound_tables<'s>(
        &self,
        saved: &'s Inner,
        written: &[Bits],
    ) -> Result<Option<&'s [Bits]>, MachineError> {
        let Some(tables) = saved.tables() else {
            return Ok(None);
        };
        let here = self
            .vcpu
            .get_sregs()
            .map_err(MachineError::kvm("KVM_GET_SREGS"))?;
        let there = &saved.vcpu.sregs;
        let modes = |sregs: &kvm_bindings::kvm_sregs| (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer);
        let again = self
            .tracking
            .as_ref()
            .is_some_and(|tracking| tracking.watches(saved.number));
        let both = |(tables, written): (&Bits, &Bits)| {
            let mut words = tables.iter().zip(written);
            words.any(|(one, two)| one & two != 0)
        };
        let touched = tables.iter().zip(written).any(both);
        Ok((again && !touched && modes(&here) == modes(there)).then_some(tables))
    }

    fn check_image(&self, to: &Checkpoint) -> Result<(), MachineError> {
        let same = match (&to.image, to.inner.image_digest, &self.image) {
            (Some(saved), _, Some(here)) => saved.same(here).map_err(MachineError::Image)?,
            (None, Some(saved), Some(here)) => here.digest().map_err(MachineError::Image)? == saved,
            // Its size was compared before.
            _ => true,
        };
        if same {
            return Ok(());
        }
        Err(MachineError::Identity {
            what: "root image",
            saved: "one".into(),
            here: "another of the same size".into(),
        })
    }
}
