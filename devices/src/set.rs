//! All devices of the embedded guest's machine: the virtio devices, polled, and the sync device.

use crate::block::BlockState;
use crate::console::ConsoleState;
use crate::disk::{DiskConfig, DiskPosition, DiskReads};
use crate::entropy::EntropyState;
use crate::error::{DeviceError, RestoreError};
use crate::net::{NetCounters, NetState};
use crate::sync::{Request, SyncDevice, SyncRequest, SyncState};
use crate::types::{Entry, Output};
use crate::virtio::{VirtioConfig, VirtioSet, positions};
use quorate_abi::map;
use quorate_abi::sync::WAIT_NONE;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestMemory};

/// What the devices need to know of their machine.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Seed of all randomness that the guest asks for; shared by the set.
    pub input_seed: [u8; 32],
    /// Where the sync page is, guest-physical.
    pub sync_page: GuestAddress,
    /// The disks, in the order of their numbers; at most `quorate_abi::map::MAX_DISKS`.
    pub disks: Vec<DiskConfig>,
}

/// What was found at a boundary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collected {
    /// What the guest asks for. It does not want to sleep (`WAIT_NONE`) if requests for disks had to stay in a queue.
    pub request: SyncRequest,
    /// Frames, then console bytes, then requests for the disks in the order of their numbers, then the fingerprint, then the exit.
    pub outputs: Vec<Output>,
}

/// All devices as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSetState {
    /// Entropy.
    pub entropy: EntropyState,
    /// Console.
    pub console: ConsoleState,
    /// Network.
    pub net: NetState,
    /// The disks.
    pub blocks: Vec<BlockState>,
    /// The sync device.
    pub sync: SyncState,
}

impl DeviceSetState {
    /// Where the guest stands on each disk, in the order of their numbers.
    #[must_use]
    pub fn disk_positions(&self) -> Vec<DiskPosition> {
        positions(&self.blocks)
    }
}

/// All devices of one machine.
#[derive(Debug)]
pub struct DeviceSet {
    virtio: VirtioSet,
    sync: SyncDevice,
}

impl DeviceSet {
    /// Bits of `BootInfo::devices`: which register windows have a device, with this many disks.
    #[must_use]
    pub fn slots(disks: usize) -> u64 {
        let disks = disks.min(map::MAX_DISKS as usize);
        1 << map::SLOT_ENTROPY
            | 1 << map::SLOT_CONSOLE
            | 1 << map::SLOT_NET
            | ((1 << disks) - 1) << map::SLOT_BLOCK
    }

    /// Devices as after power-on. Writes the magic number of the sync page.
    ///
    /// # Errors
    ///
    /// If the sync page is not in guest memory, or there are too many disks, or one has an invalid size.
    pub fn new<M: GuestMemory>(config: &DeviceConfig, mem: &M) -> Result<Self, DeviceError> {
        let virtio = VirtioSet::new(&VirtioConfig {
            input_seed: config.input_seed,
            disks: config.disks.clone(),
            interrupts: false,
        })?;
        let sync = SyncDevice::new(config.sync_page);
        sync.prepare(mem)?;
        Ok(Self { virtio, sync })
    }

    /// Whether an address belongs to the register windows, with or without a device there.
    #[must_use]
    pub fn is_mmio(addr: u64) -> bool {
        VirtioSet::is_mmio(addr)
    }

    /// A register read. Where there is no device it reads as zero.
    pub fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        self.virtio.mmio_read(addr, data);
    }

    /// A register write.
    ///
    /// # Errors
    ///
    /// If a correct driver would not have made it. The replica is to be stopped (R9).
    pub fn mmio_write<M: GuestMemory>(
        &mut self,
        mem: &M,
        addr: u64,
        data: &[u8],
    ) -> Result<(), DeviceError> {
        self.virtio.mmio_write(mem, addr, data)
    }

    /// Number of the boundary that the guest is at, or reaches next.
    #[must_use]
    pub fn boundary(&self) -> u64 {
        self.sync.boundary()
    }

    /// Counters of the network device.
    #[must_use]
    pub fn net_counters(&self) -> NetCounters {
        self.virtio.net_counters()
    }

    /// Bytes of frames that wait for the guest to post buffers; bounded by `NET_RX_WAITING_BYTES` (R10).
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.virtio.waiting_bytes()
    }

    /// The guest is at a boundary: takes everything out of its queues and serves what needs no entry.
    ///
    /// # Errors
    ///
    /// If the sync page or a queue holds what a correct guest never puts there. The replica is to be stopped (R9).
    pub fn collect<M: GuestMemory>(&mut self, mem: &M) -> Result<Collected, DeviceError> {
        let mut request = self.sync.request(mem)?;
        let mut outputs = Vec::new();
        if self.virtio.collect(mem, &mut outputs)? {
            // What did not fit into this boundary is for the next one, which must come even if nothing arrives.
            request.wait_until_ns = WAIT_NONE;
        }
        outputs.push(Output::Fingerprint {
            digest: request.fingerprint,
            syscalls: request.syscalls,
        });
        if let Request::Exit { status } = request.request {
            outputs.push(Output::Exit { status });
        }
        Ok(Collected { request, outputs })
    }

    /// Whatever is in the console's queue, for the report on a guest that is lost. Never fails: the rest is left.
    pub fn last_words<M: GuestMemory>(&mut self, mem: &M) -> Vec<u8> {
        self.virtio.last_words(mem)
    }

    /// Completes the boundary with its entry: the only way for an input into the guest (R1).
    ///
    /// # Errors
    ///
    /// If a queue holds what a correct guest never puts there (R9), or the data of a read cannot be had. The replica is to be
    /// stopped.
    pub fn deliver<M: GuestMemory>(
        &mut self,
        mem: &M,
        entry: &Arc<Entry>,
        reads: &mut dyn DiskReads,
    ) -> Result<(), DeviceError> {
        self.virtio.deliver(mem, entry, reads)?;
        self.sync.reply(mem, entry)
    }

    /// Where the guest stands on each disk, in the order of their numbers.
    #[must_use]
    pub fn disk_positions(&self) -> Vec<DiskPosition> {
        self.virtio.disk_positions()
    }

    /// All devices as plain data.
    #[must_use]
    pub fn save(&self) -> DeviceSetState {
        let virtio = self.virtio.save();
        DeviceSetState {
            entropy: virtio.entropy,
            console: virtio.console,
            net: virtio.net,
            blocks: virtio.blocks,
            sync: self.sync.save(),
        }
    }

    /// Makes all devices what they were when `state` was saved. Guest memory must be restored before.
    ///
    /// # Errors
    ///
    /// If the state is not one that [`DeviceSet::save`] made. The devices are then to be dropped.
    pub fn restore<M: GuestMemory>(
        &mut self,
        mem: &M,
        state: &DeviceSetState,
    ) -> Result<(), RestoreError> {
        let (blocks, entropy) = (&state.blocks, &state.entropy);
        self.virtio
            .restore_parts(mem, blocks, entropy, &state.console, &state.net)?;
        self.sync.restore(&state.sync);
        Ok(())
    }
}
