//! Checkpoints: everything that makes a machine go on exactly as it would have gone on, as data.
//!
//! A checkpoint is taken at a boundary, after its outputs were collected and before its entry is delivered, on the machine's own
//! thread: neither the vCPU nor a device does anything meanwhile, and no I/O instruction is half done. Restored, the machine
//! stands there again: [`Machine::resume`] with the entry of that boundary is next.
//!
//! What is in it: the vCPU (`state.rs`, with the order of the KVM calls and why), the devices with their queues, RAM and the pages
//! of the root image that the guest changed (`memory.rs`), and what the machine was made from (`identity.rs`), which is compared
//! when it is restored. The contents of disks are not in it, only where the guest stands on each ([`Checkpoint::disk_positions`]).
//!
//! Memory is a persistent map of pages (`pages.rs`): a checkpoint shares what has not changed with the one before, but does not
//! depend on it. In the worst case each checkpoint that somebody keeps has all of the guest's memory for itself (R10): how many are
//! kept is up to their owner, and a machine keeps hold of the last one it took or was restored from. As a file (`file.rs`, `persist.rs`)
//! pages are compressed.

pub(crate) mod file;
mod identity;
pub(crate) mod memory;
mod pages;
pub(crate) mod persist;
mod read;
mod state;
mod tables;
mod take;
mod track;

pub use file::CheckpointError;
pub(crate) use identity::{Identity, Image};
pub(crate) use state::{Offers, VcpuState, write_msrs};
pub use take::{Pause, Restore, Restored};
pub(crate) use take::{micros, next_number, take_memory};
pub use track::Precopy;
pub(crate) use track::{Tracking, forget_translations, manual_log, set_slot};

use crate::registers::Registers;
use memory::Memory;
use quorate_devices::{DeviceSetState, DiskPosition};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Where a machine was when its state was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// The guest can run.
    Runnable,
    /// At a boundary whose entry is to be delivered.
    AtBoundary,
    /// It can never run again.
    Ended,
}

/// The whole state of a machine, see the module. Cheap to clone; to drop the last clone frees up to all of its memory.
#[derive(Clone)]
pub struct Checkpoint {
    inner: Arc<Inner>,
    /// None if there is no root image, or its file is not at hand.
    image: Option<Arc<Image>>,
}

struct Inner {
    /// Differs from checkpoint to checkpoint in this process; never 0.
    number: u64,
    identity: Arc<Identity>,
    /// Digest of the root image, if the checkpoint comes from a file.
    image_digest: Option<[u8; 32]>,
    phase: Phase,
    vcpu: VcpuState,
    devices: DeviceSetState,
    memory: Memory,
}

impl fmt::Debug for Checkpoint {
    /// Short: memory and seeds are secrets, and long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("boundary", &self.boundary())
            .field("phase", &self.inner.phase)
            .field("pages", &self.pages_kept())
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Number of the boundary that it stands at; of a dump, the one that the guest is at or would reach next.
    #[must_use]
    pub fn boundary(&self) -> u64 {
        self.inner.devices.sync.boundary
    }

    /// Has boundaries counted anew: the one that it stands at is this one, for it and for every machine that goes on from it. The guest
    /// does not look at the number. False: there are clones of it, and nothing was changed.
    #[must_use]
    pub fn renumber(&mut self, boundary: u64) -> bool {
        match Arc::get_mut(&mut self.inner) {
            Some(inner) => {
                inner.devices.sync.boundary = boundary;
                true
            }
            None => false,
        }
    }

    /// Whether the next thing is [`crate::Machine::resume`]: true for all but dumps of a running or lost machine.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.inner.phase == Phase::AtBoundary
    }

    /// The layout seed of the machine that it was taken of.
    #[must_use]
    pub fn layout_seed(&self) -> [u8; 32] {
        self.inner.identity.layout_seed
    }

    /// Where the guest stands on each disk.
    #[must_use]
    pub fn disk_positions(&self) -> Vec<DiskPosition> {
        self.inner.devices.disk_positions()
    }

    /// The vCPU's registers.
    #[must_use]
    pub fn registers(&self) -> Registers {
        Registers::from_kvm(&self.inner.vcpu.regs, &self.inner.vcpu.sregs)
    }

    /// The devices.
    #[must_use]
    pub fn devices(&self) -> &DeviceSetState {
        &self.inner.devices
    }

    /// How many pages of 4 KiB are kept.
    #[must_use]
    pub fn pages_kept(&self) -> u64 {
        self.inner.memory.kept()
    }
}
