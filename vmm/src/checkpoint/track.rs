//! Which pages changed since the last checkpoint: KVM's dirty log for what the guest writes, the bitmaps of vm-memory for what the
//! VMM writes (devices, injected faults).
//!
//! Reading KVM's log clears it and write-protects what it named, which costs the guest a fault at its next write to each such page.
//! So it is read once for each checkpoint, and what it said is kept until it was used.

use super::memory::{Bits, Memory, merge, set};
use crate::error::MachineError;
use crate::machine::Machine;
use crate::memory::{GuestMemory, Mapping, Slot};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::GuestMemoryBackend;

/// Who knows what was written since when.
#[derive(Debug)]
pub(crate) struct Tracking {
    /// Pages written since memory was `base`, as far as the logs were read.
    pending: Vec<Bits>,
    /// What memory was when the logs were last used up, with the number of the checkpoint that is; 0 for none. `None`: nobody knows.
    base: Option<(u64, Memory)>,
    /// A copy that is being made in the background, with the pages it is to bring.
    precopy: Option<(Arc<Mutex<Option<Memory>>>, Vec<Bits>)>,
}

impl Tracking {
    /// Takes what the logs say. They are empty afterwards.
    fn drain(&mut self, vm: &VmFd, memory: &GuestMemory) -> Result<(), MachineError> {
        for ((number, slot), pending) in (0..).zip(&memory.slots).zip(&mut self.pending) {
            let log = vm
                .get_dirty_log(number, slot.mapping.pages() * 4096)
                .map_err(MachineError::kvm("KVM_GET_DIRTY_LOG"))?;
            merge(pending, &log);
        }
        let regions = memory.ram.iter();
        for (region, pending) in regions.zip(&mut self.pending) {
            merge(pending, &(**region).bitmap().get_and_reset());
        }
        Ok(())
    }
}

impl Tracking {
    fn new(memory: &GuestMemory, base: Option<(u64, Memory)>) -> Self {
        let slots = memory.slots.iter();
        let words = slots.map(|slot| vec![0; slot.mapping.pages().div_ceil(64)]);
        Self {
            pending: words.collect(),
            base,
            precopy: None,
        }
    }

    /// What memory was when the logs were last used up: what a page can be shared with that has not changed since.
    pub(crate) fn base(&self) -> Option<&Memory> {
        self.base.as_ref().map(|(_, memory)| memory)
    }

    /// Memory now, by the logs, if they go back to the checkpoint `number` (0: to the start). Also how many pages were looked at
    /// and copied.
    pub(crate) fn update(
        &mut self,
        vm: &VmFd,
        memory: &GuestMemory,
        number: u64,
    ) -> Result<Option<(Memory, u64, u64)>, MachineError> {
        self.drain(vm, memory)?;
        self.end_precopy();
        let Some((since, base)) = &self.base else {
            return Ok(None);
        };
        if *since != number {
            return Ok(None);
        }
        let mut now = base.clone();
        let (seen, copied) = now.update(&mappings(memory), &self.pending);
        Ok(Some((now, seen, copied)))
    }

    /// The pages that have to be put back to make memory what `wanted` is, if the logs say.
    pub(crate) fn changed(
        &mut self,
        vm: &VmFd,
        memory: &GuestMemory,
        wanted: &Memory,
    ) -> Result<Option<Vec<Bits>>, MachineError> {
        self.drain(vm, memory)?;
        self.end_precopy();
        let Some((_, base)) = &self.base else {
            return Ok(None);
        };
        let mut changed = self.pending.clone();
        for ((changed, wanted), base) in changed.iter_mut().zip(&wanted.ranges).zip(&base.ranges) {
            wanted.map.differing(&base.map, &mut |at| set(changed, at));
        }
        Ok(Some(changed))
    }

    /// From now on the logs count from here: memory is `base`, which is the checkpoint `number`. What was logged up to now must
    /// have been drained.
    pub(crate) fn start_from(&mut self, number: u64, base: Memory) {
        self.pending.iter_mut().for_each(|bits| bits.fill(0));
        self.base = Some((number, base));
        self.precopy = None;
    }

    /// Everything that the logs know is forgotten, with what they say just now.
    pub(crate) fn reset(
        &mut self,
        vm: &VmFd,
        memory: &GuestMemory,
        number: u64,
        base: Memory,
    ) -> Result<(), MachineError> {
        self.drain(vm, memory)?;
        self.start_from(number, base);
        Ok(())
    }

    /// Uses what was copied in the background, or gives that up if it is not ready.
    fn end_precopy(&mut self) {
        let Some((result, pages)) = self.precopy.take() else {
            return;
        };
        let done = result.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (done, &mut self.base) {
            (Some(memory), Some((_, base))) => *base = memory,
            _ => {
                for (pending, pages) in self.pending.iter_mut().zip(&pages) {
                    merge(pending, pages);
                }
            }
        }
    }
}

fn mappings(memory: &GuestMemory) -> Vec<Arc<Mapping>> {
    let slots = memory.slots.iter();
    slots.map(|slot| Arc::clone(&slot.mapping)).collect()
}

/// The work of copying the pages that were dirty when [`Machine::precopy`] was called. It may be done on any thread while the
/// machine runs; the next checkpoint then takes only what changed meanwhile.
#[derive(Debug)]
pub struct Precopy {
    mappings: Vec<Arc<Mapping>>,
    base: Memory,
    pages: Vec<Bits>,
    result: Arc<Mutex<Option<Memory>>>,
}

impl Precopy {
    /// How many pages are to be copied.
    #[must_use]
    pub fn pages(&self) -> u64 {
        let words = self.pages.iter().flatten();
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// Copies them. If the next checkpoint comes before this is done, it copies them itself.
    pub fn run(self) {
        let mut memory = self.base;
        memory.update(&self.mappings, &self.pages);
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(memory);
    }
}

/// Tells KVM of a slot, with the log of what the guest writes there switched on or off.
pub(crate) fn set_slot(
    vm: &VmFd,
    number: u32,
    slot: &Slot,
    logged: bool,
) -> Result<(), MachineError> {
    set_region(vm, number, slot, slot.len, logged)
}

fn set_region(
    vm: &VmFd,
    number: u32,
    slot: &Slot,
    len: u64,
    logged: bool,
) -> Result<(), MachineError> {
    let region = kvm_userspace_memory_region {
        slot: number,
        guest_phys_addr: slot.guest,
        memory_size: len,
        userspace_addr: slot.mapping.addr(),
        flags: if logged { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
    };
    // SAFETY: The memory stays mapped as long as the VM: both are fields of `Machine`, the VM is dropped first.
    unsafe { vm.set_user_memory_region(region) }
        .map_err(MachineError::kvm("KVM_SET_USER_MEMORY_REGION"))
}

impl Machine {
    /// Starts to note which pages are written, so that a checkpoint costs only what changed since the one before. Best called
    /// before the first [`Machine::run`]: then even the first checkpoint knows without a scan what there is.
    ///
    /// # Errors
    ///
    /// If KVM refuses.
    pub fn track_dirty(&mut self) -> Result<(), MachineError> {
        if self.tracking.is_some() {
            return Ok(());
        }
        for (number, slot) in (0..).zip(&self.memory.slots) {
            set_slot(&self.vm, number, slot, true)?;
        }
        // The bitmaps of what the VMM writes are as old as the memory is.
        let base = self.pristine.then(|| (0, Memory::pristine(&self.memory)));
        self.tracking = Some(Tracking::new(&self.memory, base));
        Ok(())
    }

    /// The pages that changed since the last checkpoint, to be copied in the background before the next one: see [`Precopy`].
    /// Worth it if many changed, as before the first checkpoint; it costs the guest a fault at its next write to each of them.
    /// `None` if writes are not tracked, or a copy is already under way.
    ///
    /// # Errors
    ///
    /// If KVM refuses.
    pub fn precopy(&mut self) -> Result<Option<Precopy>, MachineError> {
        let Some(tracking) = &mut self.tracking else {
            return Ok(None);
        };
        if tracking.precopy.is_some() || tracking.base.is_none() {
            return Ok(None);
        }
        tracking.drain(&self.vm, &self.memory)?;
        let Some((_, base)) = &tracking.base else {
            return Ok(None);
        };
        let empty = tracking.pending.iter().map(|bits| vec![0; bits.len()]);
        let empty = empty.collect();
        let pages = std::mem::replace(&mut tracking.pending, empty);
        let job = Precopy {
            mappings: mappings(&self.memory),
            base: base.clone(),
            pages: pages.clone(),
            result: Arc::default(),
        };
        tracking.precopy = Some((Arc::clone(&job.result), pages));
        Ok(Some(job))
    }

    /// Makes KVM forget all translations. It notes the guest's writes to page tables, not the VMM's: what it derived from
    /// tables that a restore has changed (shadow page tables, TLB entries of VMX and SVM) would be wrong. To take a slot away and
    /// put it back is the one way to that effect which every backend has.
    pub(crate) fn forget_translations(&self) -> Result<(), MachineError> {
        let logged = self.tracking.is_some();
        for (number, slot) in (0..).zip(&self.memory.slots) {
            set_region(&self.vm, number, slot, 0, false)?;
            set_slot(&self.vm, number, slot, logged)?;
        }
        Ok(())
    }
}
