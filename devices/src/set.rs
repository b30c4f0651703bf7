//! All devices of one machine: dispatch of register accesses, and what happens at a boundary.

use crate::block::{Block, BlockState};
use crate::console::{Console, ConsoleState};
use crate::disk::{DiskConfig, DiskPosition, DiskReads};
use crate::entropy::{Entropy, EntropyState};
use crate::error::{DeviceError, DiskFault, RegisterFault, RestoreError};
use crate::net::{Net, NetCounters, NetState};
use crate::sync::{Request, SyncDevice, SyncRequest, SyncState};
use crate::transport::Transport;
use crate::types::{Entry, Output};
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
        let blocks = (0..).zip(&self.blocks);
        blocks.map(|(disk, block)| block.position(disk)).collect()
    }
}

/// All devices of one machine.
#[derive(Debug)]
pub struct DeviceSet {
    entropy: Transport<Entropy>,
    console: Transport<Console>,
    net: Transport<Net>,
    blocks: Vec<Transport<Block>>,
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
        let blocks = (0..).zip(&config.disks).map(|(number, disk)| {
            if u64::from(number) < map::MAX_DISKS {
                Transport::block(number, disk)
            } else {
                let fault = DiskFault::TooMany(map::MAX_DISKS);
                let disk = number.into();
                Err(DeviceError::Disk { disk, fault })
            }
        });
        let blocks = blocks.collect::<Result<_, _>>()?;
        let sync = SyncDevice::new(config.sync_page);
        sync.prepare(mem)?;
        Ok(Self {
            entropy: Transport::entropy(config.input_seed),
            console: Transport::console(),
            net: Transport::net(),
            blocks,
            sync,
        })
    }

    /// Whether an address belongs to the register windows, with or without a device there.
    #[must_use]
    pub fn is_mmio(addr: u64) -> bool {
        (map::MMIO_BASE..map::MMIO_BASE + map::MMIO_SLOTS * map::MMIO_STRIDE).contains(&addr)
    }

    /// A register read. Where there is no device it reads as zero.
    pub fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        match locate(addr) {
            Some((map::SLOT_ENTROPY, offset)) => self.entropy.read(offset, data),
            Some((map::SLOT_CONSOLE, offset)) => self.console.read(offset, data),
            Some((map::SLOT_NET, offset)) => self.net.read(offset, data),
            Some((slot, offset)) => match block_at(slot).and_then(|at| self.blocks.get(at)) {
                Some(block) => block.read(offset, data),
                None => data.fill(0),
            },
            None => data.fill(0),
        }
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
        let missing = DeviceError::Register {
            device: "missing",
            offset: addr,
            fault: RegisterFault::NoDevice,
        };
        let (slot, offset) = locate(addr).ok_or_else(|| missing.clone())?;
        match slot {
            map::SLOT_ENTROPY => self.entropy.write(mem, offset, data),
            map::SLOT_CONSOLE => self.console.write(mem, offset, data),
            map::SLOT_NET => self.net.write(mem, offset, data),
            _ => block_at(slot)
                .and_then(|at| self.blocks.get_mut(at))
                .ok_or(missing)?
                .write(mem, offset, data),
        }
    }

    /// Number of the boundary that the guest is at, or reaches next.
    #[must_use]
    pub fn boundary(&self) -> u64 {
        self.sync.boundary()
    }

    /// Counters of the network device.
    #[must_use]
    pub fn net_counters(&self) -> NetCounters {
        self.net.counters()
    }

    /// Bytes of frames that wait for the guest to post buffers; bounded by `NET_RX_WAITING_BYTES` (R10).
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.net.waiting_bytes()
    }

    /// The guest is at a boundary: takes everything out of its queues and serves what needs no entry.
    ///
    /// # Errors
    ///
    /// If the sync page or a queue holds what a correct guest never puts there. The replica is to be stopped (R9).
    pub fn collect<M: GuestMemory>(&mut self, mem: &M) -> Result<Collected, DeviceError> {
        let mut request = self.sync.request(mem)?;
        let mut outputs = Vec::new();
        self.net.collect(mem, &mut outputs)?;
        self.console.collect(mem, &mut outputs)?;
        self.entropy.serve(mem)?;
        for block in &mut self.blocks {
            if block.collect(mem, &mut outputs)? {
                // What did not fit into this boundary is for the next one, which must come even if nothing arrives.
                request.wait_until_ns = WAIT_NONE;
            }
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
        let mut outputs = Vec::new();
        // The error says that the queue is broken as well, which no longer matters.
        let _ = self.console.collect(mem, &mut outputs);
        outputs
            .into_iter()
            .flat_map(|output| match output {
                Output::Console(text) => text,
                _ => Vec::new(),
            })
            .collect()
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
        self.net.deliver(mem, entry)?;
        self.console.deliver(mem, &entry.console)?;
        for completion in &entry.completions {
            // One for a disk that is not there means nothing to this replica, as any other that it does not wait for.
            if let Some(block) = self.blocks.get_mut(usize::from(completion.disk)) {
                block.complete(mem, completion, reads)?;
            }
        }
        self.sync.reply(mem, entry)
    }

    /// Where the guest stands on each disk, in the order of their numbers.
    #[must_use]
    pub fn disk_positions(&self) -> Vec<DiskPosition> {
        let blocks = (0..).zip(&self.blocks);
        let states = blocks.map(|(disk, block)| block.save_block().position(disk));
        states.collect()
    }

    /// All devices as plain data.
    #[must_use]
    pub fn save(&self) -> DeviceSetState {
        DeviceSetState {
            entropy: self.entropy.save_entropy(),
            console: self.console.save_console(),
            net: self.net.save_net(),
            blocks: self.blocks.iter().map(Transport::save_block).collect(),
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
        if state.blocks.len() != self.blocks.len() {
            return Err(RestoreError::Disks {
                saved: state.blocks.len(),
                here: self.blocks.len(),
            });
        }
        for (block, saved) in self.blocks.iter_mut().zip(&state.blocks) {
            block.restore_block(mem, saved)?;
        }
        self.entropy.restore_entropy(mem, &state.entropy)?;
        self.console.restore_console(mem, &state.console)?;
        self.net.restore_net(mem, &state.net)?;
        self.sync.restore(&state.sync);
        Ok(())
    }
}

/// Slot and offset of an address in the register windows.
fn locate(addr: u64) -> Option<(u64, u64)> {
    let at = addr.checked_sub(map::MMIO_BASE)?;
    let slot = at / map::MMIO_STRIDE;
    (slot < map::MMIO_SLOTS).then_some((slot, at % map::MMIO_STRIDE))
}

/// Number of the disk whose registers are in this slot, if it is one for disks.
fn block_at(slot: u64) -> Option<usize> {
    let number = slot.checked_sub(map::SLOT_BLOCK)?;
    (number < map::MAX_DISKS).then_some(number as usize)
}
