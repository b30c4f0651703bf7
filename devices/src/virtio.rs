//! The virtio devices of one machine, whatever its guest is: dispatch of register accesses, what is taken out of the queues and put
//! into them, and for machines that take interrupts, which device has one to deliver.

use crate::block::{Block, BlockState};
use crate::console::{Console, ConsoleState};
use crate::disk::{DiskConfig, DiskPosition, DiskReads};
use crate::entropy::{Entropy, EntropyState};
use crate::error::{DeviceError, DiskFault, RegisterFault, RestoreError};
use crate::net::{Net, NetCounters, NetState};
use crate::transport::{Kind, Transport, register};
use crate::types::{Entry, Output};
use quorate_abi::map;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vm_memory::GuestMemory;

/// What the virtio devices need to know of their machine.
#[derive(Clone, Debug)]
pub struct VirtioConfig {
    /// Seed of all randomness that the guest asks for.
    pub input_seed: [u8; 32],
    /// The disks, in the order of their numbers; at most `quorate_abi::map::MAX_DISKS`.
    pub disks: Vec<DiskConfig>,
    /// The machine takes interrupts and sees notifications: VIRTIO_F_EVENT_IDX and VIRTIO_F_INDIRECT_DESC are offered. Otherwise queues
    /// are polled, and neither is.
    pub interrupts: bool,
}

/// The virtio devices as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioSetState {
    /// Entropy.
    pub entropy: EntropyState,
    /// Console.
    pub console: ConsoleState,
    /// Network.
    pub net: NetState,
    /// The disks.
    pub blocks: Vec<BlockState>,
}

impl VirtioSetState {
    /// Where the guest stands on each disk, in the order of their numbers.
    #[must_use]
    pub fn disk_positions(&self) -> Vec<DiskPosition> {
        positions(&self.blocks)
    }
}

/// See [`VirtioSetState::disk_positions`].
pub(crate) fn positions(blocks: &[BlockState]) -> Vec<DiskPosition> {
    let blocks = (0..).zip(blocks);
    blocks.map(|(disk, block)| block.position(disk)).collect()
}

/// A register window that has a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its number among the windows.
    pub slot: u64,
    /// Its address, guest-physical.
    pub base: u64,
    /// How many queues the device has.
    pub queues: usize,
}

impl Window {
    fn new(slot: u64, queues: usize) -> Self {
        let base = map::MMIO_BASE + slot * map::MMIO_STRIDE;
        Self { slot, base, queues }
    }

    /// The register to which the driver writes a queue's number when there is something new in it (virtio 1.3, 4.2.2).
    #[must_use]
    pub fn notify(&self) -> u64 {
        self.base + register::QUEUE_NOTIFY
    }
}

/// The virtio devices of one machine.
#[derive(Debug)]
pub struct VirtioSet {
    entropy: Transport<Entropy>,
    console: Transport<Console>,
    net: Transport<Net>,
    blocks: Vec<Transport<Block>>,
}

impl VirtioSet {
    /// Devices as after power-on.
    ///
    /// # Errors
    ///
    /// If there are too many disks, or one has an invalid size.
    pub fn new(config: &VirtioConfig) -> Result<Self, DeviceError> {
        let blocks = (0..).zip(&config.disks).map(|(number, disk)| {
            if u64::from(number) < map::MAX_DISKS {
                Transport::block(number, disk)
            } else {
                let fault = DiskFault::TooMany(map::MAX_DISKS);
                let disk = number.into();
                Err(DeviceError::Disk { disk, fault })
            }
        });
        let mut set = Self {
            entropy: Transport::entropy(config.input_seed),
            console: Transport::console(),
            net: Transport::net(),
            blocks: blocks.collect::<Result<_, _>>()?,
        };
        if config.interrupts {
            set.entropy.take_interrupts();
            set.console.take_interrupts();
            set.net.take_interrupts();
            set.blocks.iter_mut().for_each(Transport::take_interrupts);
        }
        Ok(set)
    }

    /// The windows that have a device, by their numbers.
    #[must_use]
    pub fn windows(&self) -> Vec<Window> {
        let blocks = (map::SLOT_BLOCK..).zip(&self.blocks);
        [
            Window::new(map::SLOT_ENTROPY, Entropy::QUEUES.len()),
            Window::new(map::SLOT_CONSOLE, Console::QUEUES.len()),
            Window::new(map::SLOT_NET, Net::QUEUES.len()),
        ]
        .into_iter()
        .chain(blocks.map(|(slot, _)| Window::new(slot, Block::QUEUES.len())))
        .collect()
    }

    /// Whether an address belongs to the register windows, with or without a device there.
    #[must_use]
    pub fn is_mmio(addr: u64) -> bool {
        (map::MMIO_BASE..map::MMIO_BASE + map::MMIO_SLOTS * map::MMIO_STRIDE).contains(&addr)
    }

    /// Whether a write to this address may give the devices something to do: a notification, or a driver that is ready now.
    #[must_use]
    pub fn is_notification(addr: u64) -> bool {
        let register = locate(addr).map(|(_, offset)| offset);
        matches!(register, Some(register::QUEUE_NOTIFY | register::STATUS))
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

    /// Takes everything out of the queues and serves what needs no entry: frames, then console bytes, then requests for the disks in
    /// the order of their numbers. True if something had to stay that is to be taken without waiting for anything.
    ///
    /// # Errors
    ///
    /// If a queue holds what a correct guest never puts there. The replica is to be stopped (R9).
    pub fn collect<M: GuestMemory>(
        &mut self,
        mem: &M,
        outputs: &mut Vec<Output>,
    ) -> Result<bool, DeviceError> {
        self.net.collect(mem, outputs)?;
        self.console.collect(mem, outputs)?;
        self.entropy.serve(mem)?;
        let mut more = false;
        for block in &mut self.blocks {
            more |= block.collect(mem, outputs)?;
        }
        Ok(more)
    }

    /// Gives the guest what is in an entry: the only way for an input into it (R1).
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
        Ok(())
    }

    /// Asks the drivers to notify of what they put into their queues from now on, where the device waits for it. True if they have put
    /// something there already: then [`VirtioSet::collect`] and [`VirtioSet::deliver`] are due again, and no notification comes.
    ///
    /// # Errors
    ///
    /// If a ring cannot be used any more (R9).
    pub fn listen<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, DeviceError> {
        let mut more = self.entropy.listen(mem, [true])?;
        let wants_input = self.console.wants_buffers();
        more |= self.console.listen(mem, [wants_input, true])?;
        let wants_frames = self.net.wants_buffers();
        more |= self.net.listen(mem, [wants_frames, true])?;
        for block in &mut self.blocks {
            let drained = block.drained();
            more |= block.listen(mem, [drained])?;
        }
        Ok(more)
    }

    /// Bit `slot` of the result: that device has an interrupt for the guest, which its driver wants (virtio 1.3, 2.7.7). Interrupt
    /// status is set; whoever asks delivers it. Always 0 for a machine that takes no interrupts.
    ///
    /// # Errors
    ///
    /// If a ring cannot be read any more (R9).
    pub fn interrupts<M: GuestMemory>(&mut self, mem: &M) -> Result<u64, DeviceError> {
        let mut due = u64::from(self.entropy.interrupt(mem)?) << map::SLOT_ENTROPY;
        due |= u64::from(self.console.interrupt(mem)?) << map::SLOT_CONSOLE;
        due |= u64::from(self.net.interrupt(mem)?) << map::SLOT_NET;
        for (slot, block) in (map::SLOT_BLOCK..).zip(&mut self.blocks) {
            due |= u64::from(block.interrupt(mem)?) << slot;
        }
        Ok(due)
    }

    /// Sets the interrupt status of every device that a driver uses, as [`VirtioSet::interrupts`] says it: after a restore, since an
    /// interrupt that was on its way is not in the saved state. One too many does no harm.
    pub fn interrupt_all(&mut self) -> u64 {
        let mut due = u64::from(self.entropy.interrupt_anyway()) << map::SLOT_ENTROPY;
        due |= u64::from(self.console.interrupt_anyway()) << map::SLOT_CONSOLE;
        due |= u64::from(self.net.interrupt_anyway()) << map::SLOT_NET;
        for (slot, block) in (map::SLOT_BLOCK..).zip(&mut self.blocks) {
            due |= u64::from(block.interrupt_anyway()) << slot;
        }
        due
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

    /// Where the guest stands on each disk, in the order of their numbers.
    #[must_use]
    pub fn disk_positions(&self) -> Vec<DiskPosition> {
        let blocks = (0..).zip(&self.blocks);
        let states = blocks.map(|(disk, block)| block.save_block().position(disk));
        states.collect()
    }

    /// The devices as plain data.
    #[must_use]
    pub fn save(&self) -> VirtioSetState {
        VirtioSetState {
            entropy: self.entropy.save_entropy(),
            console: self.console.save_console(),
            net: self.net.save_net(),
            blocks: self.blocks.iter().map(Transport::save_block).collect(),
        }
    }

    /// Makes the devices what they were when `state` was saved. Guest memory must be restored before.
    ///
    /// # Errors
    ///
    /// If the state is not one that [`VirtioSet::save`] made. The devices are then to be dropped.
    pub fn restore<M: GuestMemory>(
        &mut self,
        mem: &M,
        state: &VirtioSetState,
    ) -> Result<(), RestoreError> {
        self.restore_parts(
            mem,
            &state.blocks,
            &state.entropy,
            &state.console,
            &state.net,
        )
    }

    pub(crate) fn restore_parts<M: GuestMemory>(
        &mut self,
        mem: &M,
        blocks: &[BlockState],
        entropy: &EntropyState,
        console: &ConsoleState,
        net: &NetState,
    ) -> Result<(), RestoreError> {
        if blocks.len() != self.blocks.len() {
            return Err(RestoreError::Disks {
                saved: blocks.len(),
                here: self.blocks.len(),
            });
        }
        for (block, saved) in self.blocks.iter_mut().zip(blocks) {
            block.restore_block(mem, saved)?;
        }
        self.entropy.restore_entropy(mem, entropy)?;
        self.console.restore_console(mem, console)?;
        self.net.restore_net(mem, net)
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
