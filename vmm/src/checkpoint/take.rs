//! Taking checkpoints of a machine, and putting them back.

use super::memory::{Bits, Memory, Seen, set};
use super::state::VcpuState;
use super::tables::{Stale, Tables};
use super::{Checkpoint, Inner, Phase, Tracking};
use crate::error::MachineError;
use crate::machine::Machine;
use crate::memory::GuestMemory;
use kvm_bindings::kvm_sregs;
use kvm_ioctls::VmFd;
use quorate_abi::PAGE_SIZE;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// Only the pages that the logs name: for a machine that is sound or has had faults from here ([`crate::fault`]), to go back quickly.
    /// Where the logs do not say, every page.
    Dirty,
    /// The same as [`Restore::Dirty`], which has become as quick.
    Swift,
}

/// What putting a checkpoint back took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Pages that were compared.
    pub compared_pages: u64,
    /// Pages of those that were changed.
    pub copied_pages: u64,
    /// Whether KVM had to forget all that it had derived from page tables: every page is then a fault of its own for a while.
    pub forgotten: bool,
    /// How long it took, microseconds.
    pub micros: u64,
}

impl Pause {
    /// With the time since `start`, of which `state` was for everything but memory.
    pub(crate) fn after(self, start: Instant, state: Duration) -> Self {
        Self {
            micros: micros(start.elapsed()),
            state_micros: micros(state),
            ..self
        }
    }
}

/// Memory for the checkpoint `number`, of a machine that stands still, and what it took but for the time: by the logs if they go back to
/// the checkpoint `base`, else by a look at all of it. The logs count from here afterwards.
pub(crate) fn take_memory(
    tracking: &mut Option<Tracking>,
    vm: &VmFd,
    memory: &GuestMemory,
    base: u64,
    number: u64,
) -> Result<(Memory, Pause), MachineError> {
    let by_log = match tracking {
        Some(tracking) => tracking.update(vm, memory, base)?,
        None => None,
    };
    let full = by_log.is_none();
    let (taken, seen) = match by_log {
        Some(found) => found,
        None => Memory::scan(memory, tracking.as_ref().and_then(Tracking::base))?,
    };
    if let Some(tracking) = tracking {
        tracking.start_from(number, taken.clone());
    }
    let pause = Pause {
        dirty_pages: seen.changed,
        compared_pages: seen.compared,
        copied_bytes: seen.copied * PAGE_SIZE,
        full,
        ..Pause::default()
    };
    Ok((taken, pause))
}

/// Numbers of checkpoints; 0 is none.
static NUMBER: AtomicU64 = AtomicU64::new(1);

pub(crate) fn next_number() -> u64 {
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// As a number, for reports.
pub(crate) fn micros(time: Duration) -> u64 {
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
        let (memory, pause) =
            take_memory(&mut self.tracking, &self.vm, &self.memory, base, number)?;
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
            }),
        };
        Ok((checkpoint, pause.after(start, state)))
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
        let stale = match &which {
            Some(which) if !self.lost => self.stale(saved, which),
            _ => Stale::All,
        };
        let forgotten = matches!(stale, Stale::All) && !self.pristine;
        let seen = match which {
            Some(which) => self.put_back(saved, which, stale)?,
            None => saved.memory.put(&self.memory)?,
        };
        if forgotten {
            self.forget_translations()?;
        } else {
            self.reload_root(&saved.vcpu.sregs)?;
        }
        self.pristine = false;
        self.lost = false;
        if let Some(tracking) = &mut self.tracking {
            tracking.restart_from(&self.vm, &self.memory, saved.number, saved.memory.clone())?;
        }
        saved.vcpu.put(&self.vcpu, &self.offers)?;
        // After memory: the queues are checked against it.
        self.devices.restore(&self.memory.ram, &saved.devices)?;
        self.phase = saved.phase;
        self.debug_restored();
        Ok(Restored {
            compared_pages: seen.compared,
            copied_pages: seen.changed,
            forgotten,
            micros: micros(start.elapsed()),
        })
    }

    /// What KVM may have derived from page tables that are not those of the checkpoint.
    fn stale(&mut self, saved: &Inner, suspects: &[Bits]) -> Stale {
        let Some(tracking) = &mut self.tracking else {
            return Stale::All;
        };
        let known = tracking
            .tables
            .take()
            .filter(|known| known.number == saved.number);
        let tables = known.or_else(|| self.tables_of(saved));
        let made = self.tables_made(&|at, to| self.read_physical(at, to));
        let root = self.registers().map_or(0, |registers| registers.cr3);
        let Some(tables) = tables else {
            return Stale::All;
        };
        let now = |at: u64, to: &mut [u8]| self.read_physical(at, to);
        let stale = tables.stale(&saved.memory, &now, suspects, made, root);
        if let Some(tracking) = &mut self.tracking {
            tracking.tables = Some(tables);
        }
        stale
    }

    /// The page tables of a checkpoint; `None` if its kernel does not say how many it has made.
    fn tables_of(&self, saved: &Inner) -> Option<Tables> {
        let read = |at: u64, to: &mut [u8]| saved.memory.read(at, to, None).is_some();
        let made = self.tables_made(&read)?;
        let mut roots = self.roots_in(&read, saved.vcpu.sregs.cr3);
        roots.push(self.boot.page_table_root);
        Some(Tables::of(saved.number, &saved.memory, roots, made))
    }

    /// Puts memory back by the logs.
    fn put_back(
        &mut self,
        saved: &Inner,
        mut which: Vec<Bits>,
        stale: Stale,
    ) -> Result<Seen, MachineError> {
        if let Stale::Pages(pages) = stale {
            for (range, page) in pages {
                if let (Some(slot), Some(bits)) =
                    (self.memory.slots.get(range), which.get_mut(range))
                {
                    slot.mapping.forget(page).map_err(MachineError::Forget)?;
                    set(bits, page);
                }
            }
        }
        let mut looked_at = Vec::new();
        let seen = saved
            .memory
            .put_some(&self.memory, &which, &mut |range, page, changed| {
                looked_at.push((range, page, changed));
            })?;
        if let Some(tracking) = &mut self.tracking {
            let tables = tracking.tables.take();
            let upper = tables.as_ref().map_or(&[][..], Tables::upper);
            tracking.prune(&self.vm, &self.memory, &looked_at, upper)?;
            tracking.tables = tables;
        }
        Ok(seen)
    }

    /// Makes KVM look again at tables that it knows to have been written to, as the guest's own load of CR3 does: it does so when CR3 becomes
    /// another one.
    fn reload_root(&self, to: &kvm_sregs) -> Result<(), MachineError> {
        let mut other = *to;
        other.cr3 ^= PAGE_SIZE;
        let set = self.vcpu.set_sregs(&other);
        set.map_err(MachineError::kvm("KVM_SET_SREGS"))
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
