//! Which pages changed since the last checkpoint: KVM's dirty log for what the guest writes, the bitmaps of vm-memory for what the
//! VMM writes (devices, injected faults).
//!
//! A page that is to be logged is write-protected, and the guest's next write to it is a fault (30 us on page-table based KVM, which
//! has to leave and enter the guest for it). A guest writes to much the same pages between any two checkpoints, so pages that were
//! written stay writable and in the log, and each checkpoint compares them with the one before (0.5 us). Only a page that was found
//! unchanged [`IDLE_CHECKPOINTS`] times in a row is protected again: more would lengthen pauses, fewer would cost faults.
//! This needs KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (Linux 5.1). Without it reading the log protects all pages again; it is
//! then read once for each checkpoint, and what it said is kept until it was used.

use super::memory::{Bits, Memory, Seen, merge, set};
use super::tables::Tables;
use crate::error::MachineError;
use crate::machine::Machine;
use crate::memory::{GuestMemory, Mapping, Slot};
use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_MEM_LOG_DIRTY_PAGES, KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1,
    kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::GuestMemoryBackend;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iowr_nr;

/// After so many checkpoints in a row that found it unchanged a page is no longer looked at, until it is written again.
const IDLE_CHECKPOINTS: u8 = 16;

// kvm-ioctls does not have this one.
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

/// Who knows what was written since when.
#[derive(Debug)]
pub(crate) struct Tracking {
    /// Whether pages stay in KVM's log until they are taken out of it.
    manual: bool,
    /// What KVM's log said when it was read last, if pages stay there. It names all that the guest wrote since memory was `base`, and
    /// more.
    log: Vec<Bits>,
    /// What else was written since memory was `base`.
    pending: Vec<Bits>,
    /// For each page in the log: how many checkpoints in a row found it unchanged.
    idle: Vec<Vec<u8>>,
    /// What memory was when the logs were last used up, with the number of the checkpoint that is; 0 for none. `None`: nobody knows.
    base: Option<(u64, Memory)>,
    /// A copy that is being made in the background, with the pages it is to bring.
    precopy: Option<(Arc<Copied>, Vec<Bits>)>,
    /// The page tables of the checkpoint that was put back last.
    pub(super) tables: Option<Tables>,
}

/// What a background copy brought, when it is done.
type Copied = Mutex<Option<Memory>>;

impl Tracking {
    fn new(memory: &GuestMemory, manual: bool, base: Option<(u64, Memory)>) -> Self {
        let pages = || memory.slots.iter().map(|slot| slot.mapping.pages());
        let words = || pages().map(|pages| vec![0; pages.div_ceil(64)]).collect();
        Self {
            manual,
            log: words(),
            pending: words(),
            idle: pages().map(|pages| vec![0; pages]).collect(),
            base,
            precopy: None,
            tables: None,
        }
    }

    /// Starts to log. `pristine`: the guest has not run, and memory holds what was put there through the bitmaps.
    pub(crate) fn begin(
        vm: &VmFd,
        memory: &GuestMemory,
        manual: bool,
        pristine: bool,
    ) -> Result<Self, MachineError> {
        for (number, slot) in (0..).zip(&memory.slots) {
            set_slot(vm, number, slot, true)?;
        }
        // The bitmaps of what the VMM writes are as old as the memory is.
        let base = pristine.then(|| (0, Memory::pristine(memory)));
        Ok(Self::new(memory, manual, base))
    }

    /// Reads the logs.
    fn read(&mut self, vm: &VmFd, memory: &GuestMemory) -> Result<(), MachineError> {
        for (at, slot) in memory.slots.iter().enumerate() {
            let log = vm
                .get_dirty_log(at as u32, slot.len as usize)
                .map_err(MachineError::kvm("KVM_GET_DIRTY_LOG"))?;
            if self.manual {
                self.log[at] = log;
            } else {
                merge(&mut self.pending[at], &log);
            }
        }
        let regions = memory.ram.iter();
        for (region, pending) in regions.zip(&mut self.pending) {
            merge(pending, &(**region).bitmap().get_and_reset());
        }
        Ok(())
    }

    /// Every page that may have changed since memory was the base.
    fn suspects(&self) -> Vec<Bits> {
        let mut all = self.pending.clone();
        for (all, log) in all.iter_mut().zip(&self.log) {
            merge(all, log);
        }
        all
    }

    /// What memory was when the logs were last used up: what a page can be shared with that has not changed since.
    pub(crate) fn base(&self) -> Option<&Memory> {
        self.base.as_ref().map(|(_, memory)| memory)
    }

    /// Memory now, by the logs, if they go back to the checkpoint `number` (0: to the start).
    pub(crate) fn update(
        &mut self,
        vm: &VmFd,
        memory: &GuestMemory,
        number: u64,
    ) -> Result<Option<(Memory, Seen)>, MachineError> {
        self.read(vm, memory)?;
        self.end_precopy();
        let Some((since, base)) = &self.base else {
            return Ok(None);
        };
        if *since != number {
            return Ok(None);
        }
        let suspects = self.suspects();
        let mut now = base.clone();
        let mut forget: Vec<Bits> = self.log.iter().map(|log| vec![0; log.len()]).collect();
        let (log, idle) = (&self.log, &mut self.idle);
        let seen = now.update(
            &mappings(memory),
            &suspects,
            &mut |range, page, changed| match idle[range].get_mut(page) {
                Some(idle) if changed => *idle = 0,
                Some(idle) if super::memory::is_set(&log[range], page) => {
                    *idle += 1;
                    if *idle >= IDLE_CHECKPOINTS {
                        *idle = 0;
                        set(&mut forget[range], page);
                    }
                }
                _ => {}
            },
        );
        for ((number, slot), forget) in (0..).zip(&memory.slots).zip(&mut forget) {
            if forget.iter().any(|&word| word != 0) {
                clear_log(vm, number, slot, forget)?;
            }
        }
        Ok(Some((now, seen)))
    }

    /// The pages that have to be put back to make memory what `wanted` is, if the logs say.
    pub(crate) fn changed(
        &mut self,
        vm: &VmFd,
        memory: &GuestMemory,
        wanted: &Memory,
    ) -> Result<Option<Vec<Bits>>, MachineError> {
        self.read(vm, memory)?;
        let Some((_, base)) = &self.base else {
            return Ok(None);
        };
        let mut changed = self.suspects();
        if let Some((_, pages)) = &self.precopy {
            for (changed, pages) in changed.iter_mut().zip(pages) {
                merge(changed, pages);
            }
        }
        for ((changed, wanted), base) in changed.iter_mut().zip(&wanted.ranges).zip(&base.ranges) {
            wanted.map.differing(&base.map, &mut |at| set(changed, at));
        }
        Ok(Some(changed))
    }

    /// After pages were put back, of which `same` were found to be what they are to be: takes those out of KVM's log that were found so
    /// several times in a row, so that the number of pages to look at stays what a run writes; and those in `always`.
    pub(super) fn prune(
        &mut self,
        vm: &VmFd,
        memory: &GuestMemory,
        seen: &[(usize, usize, bool)],
        always: &[Bits],
    ) -> Result<(), MachineError> {
        if !self.manual {
            return Ok(());
        }
        let mut forget: Vec<Bits> = self.log.iter().map(|log| vec![0; log.len()]).collect();
        for &(range, page, changed) in seen {
            let Some(idle) = self.idle.get_mut(range).and_then(|idle| idle.get_mut(page)) else {
                continue;
            };
            if changed {
                *idle = 0;
            } else if super::memory::is_set(&self.log[range], page) {
                *idle += 1;
                if *idle >= IDLE_CHECKPOINTS {
                    *idle = 0;
                    set(&mut forget[range], page);
                }
            }
        }
        for ((forget, always), log) in forget.iter_mut().zip(always).zip(&self.log) {
            for page in super::memory::ones(always) {
                if super::memory::is_set(log, page) {
                    set(forget, page);
                }
            }
        }
        for ((number, slot), forget) in (0..).zip(&memory.slots).zip(&mut forget) {
            if forget.iter().any(|&word| word != 0) {
                clear_log(vm, number, slot, forget)?;
            }
        }
        Ok(())
    }

    /// The VMM has changed a page past the logs of RAM: one of the root image.
    pub(crate) fn note(&mut self, slot: usize, page: usize) {
        if let Some(pending) = self.pending.get_mut(slot) {
            set(pending, page);
        }
    }

    /// From now on the logs count from here: memory is `base`, which is the checkpoint `number`. The logs must have been read.
    pub(crate) fn start_from(&mut self, number: u64, base: Memory) {
        self.pending.iter_mut().for_each(|bits| bits.fill(0));
        self.base = Some((number, base));
        self.precopy = None;
    }

    /// As [`Tracking::start_from`], after a restore, which writes past the logs.
    pub(crate) fn restart_from(
        &mut self,
        vm: &VmFd,
        memory: &GuestMemory,
        number: u64,
        base: Memory,
    ) -> Result<(), MachineError> {
        for (at, slot) in memory.slots.iter().enumerate() {
            // Pages of RAM may stay in the log: they are compared. A page of the root image that is in it counts as changed.
            let image = at >= memory.ranges.len();
            if self.manual && !image {
                continue;
            }
            let mut log = vm
                .get_dirty_log(at as u32, slot.len as usize)
                .map_err(MachineError::kvm("KVM_GET_DIRTY_LOG"))?;
            if self.manual && log.iter().any(|&word| word != 0) {
                clear_log(vm, at as u32, slot, &mut log)?;
            }
            self.log[at].fill(0);
        }
        // What the VMM wrote meanwhile was put back, too.
        for region in memory.ram.iter() {
            (**region).bitmap().get_and_reset();
        }
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

/// Takes pages out of KVM's log and protects them against writes.
fn clear_log(vm: &VmFd, number: u32, slot: &Slot, pages: &mut [u64]) -> Result<(), MachineError> {
    let order = kvm_clear_dirty_log {
        slot: number,
        num_pages: slot.mapping.pages() as u32,
        first_page: 0,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: pages.as_mut_ptr().cast(),
        },
    };
    // SAFETY: KVM reads the structure, and from the bitmap a bit for each of the slot's pages: `pages` was made that long.
    let done = unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &order) };
    if done == 0 {
        return Ok(());
    }
    Err(MachineError::Kvm {
        call: "KVM_CLEAR_DIRTY_LOG",
        source: io::Error::last_os_error(),
    })
}

fn mappings(memory: &GuestMemory) -> Vec<Arc<Mapping>> {
    let slots = memory.slots.iter();
    slots.map(|slot| Arc::clone(&slot.mapping)).collect()
}

/// The work of copying the pages that were dirty when [`Machine::precopy`] was called. It may be done on any thread while the
/// machine runs; the next checkpoint then copies only what changed meanwhile.
#[derive(Debug)]
pub struct Precopy {
    mappings: Vec<Arc<Mapping>>,
    base: Memory,
    pages: Vec<Bits>,
    result: Arc<Copied>,
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
        memory.update(&self.mappings, &self.pages, &mut |_, _, _| {});
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
        self.track_dirty_with(manual_log(&self.vm))
    }

    /// `manual`: pages stay in KVM's log until they are taken out of it.
    pub(crate) fn track_dirty_with(&mut self, manual: bool) -> Result<(), MachineError> {
        let tracking = Tracking::begin(&self.vm, &self.memory, manual, self.pristine)?;
        self.tracking = Some(tracking);
        Ok(())
    }

    /// The pages that changed since the last checkpoint, to be copied in the background before the next one: see [`Precopy`].
    /// Worth it if many changed, as before the first checkpoint. `None` if writes are not tracked, or a copy is already under way.
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
        tracking.read(&self.vm, &self.memory)?;
        let Some((_, base)) = &tracking.base else {
            return Ok(None);
        };
        let pages = tracking.suspects();
        let job = Precopy {
            mappings: mappings(&self.memory),
            base: base.clone(),
            pages: pages.clone(),
            result: Arc::default(),
        };
        tracking.pending.iter_mut().for_each(|bits| bits.fill(0));
        tracking.precopy = Some((Arc::clone(&job.result), pages));
        Ok(Some(job))
    }

    /// Makes KVM forget all translations. It notes the guest's writes to page tables, not the VMM's: what it derived from
    /// tables that a restore has changed (shadow page tables, TLB entries of VMX and SVM) would be wrong. To take a slot away is the one
    /// way to that effect which every backend has, and any slot will do: KVM drops all that it has derived, whatever slot it is of. So
    /// it is one of a single page where nothing else is, which is put there for the purpose; the guest does not run meanwhile.
    pub(crate) fn forget_translations(&self) -> Result<(), MachineError> {
        forget_translations(&self.vm, &self.memory)
    }
}

/// See [`Machine::forget_translations`].
pub(crate) fn forget_translations(vm: &VmFd, memory: &GuestMemory) -> Result<(), MachineError> {
    let number = memory.slots.len() as u32;
    let slot = &memory.spare;
    set_region(vm, number, slot, slot.len, false)?;
    set_region(vm, number, slot, 0, false)
}

/// Has pages stay in KVM's log until they are taken out of it. False if KVM cannot: older kernels, which is no error.
pub(crate) fn manual_log(vm: &VmFd) -> bool {
    let manual = kvm_enable_cap {
        cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        args: [KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE.into(), 0, 0, 0],
        ..kvm_enable_cap::default()
    };
    vm.enable_cap(&manual).is_ok()
}
