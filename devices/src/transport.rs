//! virtio over MMIO, version 2: the register window of one device, feature negotiation and the status machine.
//! Section numbers are those of virtio 1.3.

use crate::error::{DeviceError, QueueFault, RegisterFault, RestoreError};
use crate::ring::{Ring, RingState};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_VRING;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemory;

/// Offsets in the register window (4.2.2). All are 32 bits wide and little-endian.
pub mod register {
    use virtio_bindings::virtio_mmio as bindings;

    /// "virt"; read only.
    pub const MAGIC_VALUE: u64 = bindings::VIRTIO_MMIO_MAGIC_VALUE as u64;
    /// 2; read only.
    pub const VERSION: u64 = bindings::VIRTIO_MMIO_VERSION as u64;
    /// Device type (5); read only.
    pub const DEVICE_ID: u64 = bindings::VIRTIO_MMIO_DEVICE_ID as u64;
    /// Vendor; read only.
    pub const VENDOR_ID: u64 = bindings::VIRTIO_MMIO_VENDOR_ID as u64;
    /// 32 feature bits that the device offers; read only.
    pub const DEVICE_FEATURES: u64 = bindings::VIRTIO_MMIO_DEVICE_FEATURES as u64;
    /// Which 32 bits [`DEVICE_FEATURES`] shows; write only.
    pub const DEVICE_FEATURES_SEL: u64 = bindings::VIRTIO_MMIO_DEVICE_FEATURES_SEL as u64;
    /// 32 feature bits that the driver accepts; write only.
    pub const DRIVER_FEATURES: u64 = bindings::VIRTIO_MMIO_DRIVER_FEATURES as u64;
    /// Which 32 bits [`DRIVER_FEATURES`] sets; write only.
    pub const DRIVER_FEATURES_SEL: u64 = bindings::VIRTIO_MMIO_DRIVER_FEATURES_SEL as u64;
    /// The queue that the queue registers mean; write only.
    pub const QUEUE_SEL: u64 = bindings::VIRTIO_MMIO_QUEUE_SEL as u64;
    /// Largest size of the queue, 0 if there is none; read only.
    pub const QUEUE_NUM_MAX: u64 = bindings::VIRTIO_MMIO_QUEUE_NUM_MAX as u64;
    /// Size that the driver uses; write only.
    pub const QUEUE_NUM: u64 = bindings::VIRTIO_MMIO_QUEUE_NUM as u64;
    /// 1 puts the queue to use, 0 stops it.
    pub const QUEUE_READY: u64 = bindings::VIRTIO_MMIO_QUEUE_READY as u64;
    /// New buffers are in a queue; write only. The devices do nothing here: queues are polled, or the machine sees to it that they
    /// are looked at.
    pub const QUEUE_NOTIFY: u64 = bindings::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
    /// Bit 0: used buffers; read only.
    pub const INTERRUPT_STATUS: u64 = bindings::VIRTIO_MMIO_INTERRUPT_STATUS as u64;
    /// Clears bits of [`INTERRUPT_STATUS`]; write only.
    pub const INTERRUPT_ACK: u64 = bindings::VIRTIO_MMIO_INTERRUPT_ACK as u64;
    /// Device status (2.1); writing 0 resets.
    pub const STATUS: u64 = bindings::VIRTIO_MMIO_STATUS as u64;
    /// Descriptor table, low half; write only.
    pub const QUEUE_DESC_LOW: u64 = bindings::VIRTIO_MMIO_QUEUE_DESC_LOW as u64;
    /// Descriptor table, high half; write only.
    pub const QUEUE_DESC_HIGH: u64 = bindings::VIRTIO_MMIO_QUEUE_DESC_HIGH as u64;
    /// Available ring ("driver area"), low half; write only.
    pub const QUEUE_DRIVER_LOW: u64 = bindings::VIRTIO_MMIO_QUEUE_AVAIL_LOW as u64;
    /// Available ring, high half; write only.
    pub const QUEUE_DRIVER_HIGH: u64 = bindings::VIRTIO_MMIO_QUEUE_AVAIL_HIGH as u64;
    /// Used ring ("device area"), low half; write only.
    pub const QUEUE_DEVICE_LOW: u64 = bindings::VIRTIO_MMIO_QUEUE_USED_LOW as u64;
    /// Used ring, high half; write only.
    pub const QUEUE_DEVICE_HIGH: u64 = bindings::VIRTIO_MMIO_QUEUE_USED_HIGH as u64;
    /// Shared memory region to look at; write only.
    pub const SHM_SEL: u64 = bindings::VIRTIO_MMIO_SHM_SEL as u64;
    /// Length of that region, low half; read only. -1: there is none.
    pub const SHM_LEN_LOW: u64 = bindings::VIRTIO_MMIO_SHM_LEN_LOW as u64;
    /// Base of that region, high half: the last of the four registers.
    pub const SHM_BASE_HIGH: u64 = bindings::VIRTIO_MMIO_SHM_BASE_HIGH as u64;
    /// Changes when the configuration does; here it never does. Read only.
    pub const CONFIG_GENERATION: u64 = bindings::VIRTIO_MMIO_CONFIG_GENERATION as u64;
    /// The device's own configuration starts here, in any access width.
    pub const CONFIG: u64 = bindings::VIRTIO_MMIO_CONFIG as u64;
}

/// "virt" (4.2.2).
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "QRTE".
const VENDOR: u32 = 0x4554_5251;

/// Every status bit that a driver may set (2.1).
const DRIVER_STATUS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_FAILED;

/// What a device type adds to the transport.
pub(crate) trait Kind {
    /// For messages.
    const NAME: &'static str;
    /// Device type (virtio 5).
    const ID: u32;
    /// Largest size of each queue.
    const QUEUES: &'static [u16];

    /// Features beyond VIRTIO_F_VERSION_1; always the same ones.
    fn features(&self) -> u64;
    /// Those of [`Kind::features`] without which the device does not work.
    fn required(&self) -> u64;
    /// The configuration space; what lies behind it reads as zero.
    fn config(&self) -> &[u8];
    /// The driver, or one of its queues, is gone: forgets buffers that were taken from a queue and not yet given back. Inputs
    /// that wait stay (they come from the journal).
    fn reset(&mut self);
}

/// The transport of one device as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Device status.
    pub status: u32,
    /// Which feature word the driver reads.
    pub device_features_sel: u32,
    /// Which feature word the driver writes.
    pub driver_features_sel: u32,
    /// Features that the driver accepted.
    pub driver_features: u64,
    /// Which queue the queue registers mean.
    pub queue_sel: u32,
    /// Interrupt status.
    pub interrupt_status: u32,
    /// The queues.
    pub rings: Vec<RingState>,
}

/// A device behind its register window.
#[derive(Debug)]
pub(crate) struct Transport<D> {
    pub device: D,
    pub rings: Vec<Ring>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    interrupt_status: u32,
    /// The machine takes interrupts. It is not state: it belongs to the kind of machine.
    interrupts: bool,
}

impl<D: Kind> Transport<D> {
    pub(crate) fn new(device: D) -> Self {
        Self {
            device,
            rings: D::QUEUES.iter().map(|&size| Ring::new(size)).collect(),
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            interrupt_status: 0,
            interrupts: false,
        }
    }

    /// This device is part of a machine that takes interrupts.
    pub(crate) fn take_interrupts(&mut self) {
        self.interrupts = true;
    }

    fn offered(&self) -> u64 {
        let rings = if self.interrupts {
            1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
        } else {
            0
        };
        self.device.features() | rings | 1 << VIRTIO_F_VERSION_1
    }

    /// The driver has finished its set-up: queues may be processed.
    pub(crate) fn live(&self) -> bool {
        self.status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED)
            == VIRTIO_CONFIG_S_DRIVER_OK
    }

    /// Whether this feature was negotiated.
    pub(crate) fn has_feature(&self, bit: u32) -> bool {
        self.driver_features & 1 << bit != 0
    }

    /// Notes that there are used buffers. Where there are no interrupts that is all: the guest polls. Where there are,
    /// [`Transport::interrupt`] decides.
    pub(crate) fn used_buffers(&mut self) {
        if !self.interrupts {
            self.interrupt_status |= VIRTIO_MMIO_INT_VRING;
        }
    }

    /// Whether buffers were used since it was asked last and the driver wants to be told: then the interrupt status says so.
    pub(crate) fn interrupt<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, DeviceError> {
        if !self.interrupts {
            return Ok(false);
        }
        let mut due = false;
        for queue in 0..self.rings.len() {
            let wanted = match self.rings.get_mut(queue) {
                Some(ring) => ring.interrupt_wanted(mem),
                None => Ok(false),
            };
            due |= wanted.map_err(|fault| self.broken(queue, fault))?;
        }
        if due {
            self.interrupt_status |= VIRTIO_MMIO_INT_VRING;
        }
        Ok(due)
    }

    /// As [`Transport::interrupt`], whether or not there is a reason; false if no driver uses the device.
    pub(crate) fn interrupt_anyway(&mut self) -> bool {
        let due = self.interrupts && self.live();
        if due {
            self.interrupt_status |= VIRTIO_MMIO_INT_VRING;
        }
        due
    }

    /// For each queue: asks the driver to notify of what it puts there from now on, or not to. True if something is in one of
    /// those that are `wanted` that was not taken yet.
    pub(crate) fn listen<M: GuestMemory, const N: usize>(
        &mut self,
        mem: &M,
        wanted: [bool; N],
    ) -> Result<bool, DeviceError> {
        if !self.interrupts || !self.live() {
            return Ok(false);
        }
        let mut more = false;
        for (queue, wanted) in wanted.into_iter().enumerate() {
            let found = match self.rings.get_mut(queue) {
                Some(ring) => ring.listen(mem, wanted),
                None => Ok(false),
            };
            more |= found.map_err(|fault| self.broken(queue, fault))?;
        }
        Ok(more)
    }

    /// The error for what was found in a queue; the device needs a reset from now on (2.1.2).
    pub(crate) fn broken(&mut self, queue: usize, fault: QueueFault) -> DeviceError {
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        DeviceError::Queue {
            device: D::NAME,
            queue,
            fault,
        }
    }

    fn reset(&mut self) {
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.interrupt_status = 0;
        self.rings.iter_mut().for_each(Ring::reset);
        self.device.reset();
    }

    /// Reads registers. What is not readable, or read with a wrong width, is zero: it depends on nothing.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(start) = offset.checked_sub(register::CONFIG) {
            let config = usize::try_from(start)
                .ok()
                .and_then(|start| self.device.config().get(start..))
                .unwrap_or_default();
            for (to, from) in data.iter_mut().zip(config) {
                *to = *from;
            }
        } else if data.len() == 4 {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        let ring = self.rings.get(self.queue_sel as usize);
        match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => D::ID,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => word(self.offered(), self.device_features_sel),
            register::QUEUE_NUM_MAX => ring.map_or(0, |ring| ring.max_size().into()),
            register::QUEUE_READY => ring.is_some_and(Ring::ready).into(),
            register::INTERRUPT_STATUS => self.interrupt_status,
            register::STATUS => self.status,
            // There are no shared memory regions (4.2.2: all ones).
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            _ => 0, // CONFIG_GENERATION: the configuration never changes.
        }
    }

    /// Writes registers. Every value is checked (R9).
    pub(crate) fn write<M: GuestMemory>(
        &mut self,
        mem: &M,
        offset: u64,
        data: &[u8],
    ) -> Result<(), DeviceError> {
        let done = if offset >= register::CONFIG {
            Err(RegisterFault::ReadOnly) // No device here has writable configuration.
        } else {
            match <[u8; 4]>::try_from(data) {
                Ok(bytes) if offset.is_multiple_of(4) => {
                    self.write_register(mem, offset, u32::from_le_bytes(bytes))
                }
                _ => Err(RegisterFault::Width(data.len())),
            }
        };
        done.map_err(|fault| {
            self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
            DeviceError::Register {
                device: D::NAME,
                offset,
                fault,
            }
        })
    }

    fn write_register<M: GuestMemory>(
        &mut self,
        mem: &M,
        offset: u64,
        value: u32,
    ) -> Result<(), RegisterFault> {
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            register::DRIVER_FEATURES => self.accept_features(value)?,
            register::QUEUE_SEL => self.queue_sel = value,
            register::QUEUE_NOTIFY => {
                if value as usize >= self.rings.len() {
                    return Err(RegisterFault::NoQueue(value));
                }
            }
            register::INTERRUPT_ACK => self.interrupt_status &= !value,
            register::STATUS => self.write_status(value)?,
            register::SHM_SEL => {} // There are no shared memory regions to select.
            _ => self.write_queue_register(mem, offset, value)?,
        }
        Ok(())
    }

    fn accept_features(&mut self, value: u32) -> Result<(), RegisterFault> {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return Err(self.status_fault(VIRTIO_CONFIG_S_FEATURES_OK));
        }
        let shift = match self.driver_features_sel {
            0 => 0,
            1 => 32,
            _ if value == 0 => return Ok(()),
            _ => return Err(RegisterFault::Feature),
        };
        self.driver_features &= !(u64::from(u32::MAX) << shift);
        self.driver_features |= u64::from(value) << shift;
        Ok(())
    }

    /// The steps of 3.1.1. A driver never clears a bit, except all of them at once.
    fn write_status(&mut self, value: u32) -> Result<(), RegisterFault> {
        if value == 0 {
            self.reset();
            return Ok(());
        }
        let driver_bits = self.status & DRIVER_STATUS;
        let added = value & !self.status;
        let after = self.status | value;
        let skips = |step, before| added & step != 0 && after & before == 0;
        if value & driver_bits != driver_bits
            || added & !DRIVER_STATUS != 0
            || skips(VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_ACKNOWLEDGE)
            || skips(VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER)
            || skips(VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK)
        {
            return Err(self.status_fault(value));
        }
        let mut added = added;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.features_acceptable() {
            // 2.2.2: the bit stays clear, and the driver sees that when it reads it again.
            added &= !VIRTIO_CONFIG_S_FEATURES_OK;
            if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
                return Err(self.status_fault(value));
            }
        }
        self.status |= added;
        Ok(())
    }

    fn features_acceptable(&self) -> bool {
        let required = self.device.required() | 1 << VIRTIO_F_VERSION_1;
        self.driver_features & !self.offered() == 0 && self.driver_features & required == required
    }

    fn write_queue_register<M: GuestMemory>(
        &mut self,
        mem: &M,
        offset: u64,
        value: u32,
    ) -> Result<(), RegisterFault> {
        let queue_sel = self.queue_sel;
        // Queues come after the features (3.1.1, step 7).
        let status = self.status;
        let event_idx = self.has_feature(VIRTIO_RING_F_EVENT_IDX);
        let ring = self
            .rings
            .get_mut(queue_sel as usize)
            .ok_or(RegisterFault::NoQueue(queue_sel))?;
        let usable = if status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            Err(RegisterFault::Status {
                from: status,
                to: VIRTIO_CONFIG_S_FEATURES_OK,
            })
        } else if ring.ready() {
            Err(RegisterFault::QueueInUse)
        } else {
            Ok(())
        };
        let (field, high) = match offset {
            register::QUEUE_NUM => {
                usable?;
                ring.regs.size = value;
                return Ok(());
            }
            register::QUEUE_READY if value == 1 => {
                return usable.and_then(|()| ring.enable(mem, event_idx));
            }
            register::QUEUE_READY => {
                ring.reset();
                self.device.reset();
                return Ok(());
            }
            register::QUEUE_DESC_LOW => (&mut ring.regs.descriptors, false),
            register::QUEUE_DESC_HIGH => (&mut ring.regs.descriptors, true),
            register::QUEUE_DRIVER_LOW => (&mut ring.regs.available, false),
            register::QUEUE_DRIVER_HIGH => (&mut ring.regs.available, true),
            register::QUEUE_DEVICE_LOW => (&mut ring.regs.used, false),
            register::QUEUE_DEVICE_HIGH => (&mut ring.regs.used, true),
            _ => return Err(RegisterFault::ReadOnly),
        };
        usable?;
        *field = if high {
            *field & u64::from(u32::MAX) | u64::from(value) << 32
        } else {
            *field & !u64::from(u32::MAX) | u64::from(value)
        };
        Ok(())
    }

    fn status_fault(&self, to: u32) -> RegisterFault {
        RegisterFault::Status {
            from: self.status,
            to,
        }
    }

    pub(crate) fn save(&self) -> TransportState {
        TransportState {
            status: self.status,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            driver_features: self.driver_features,
            queue_sel: self.queue_sel,
            interrupt_status: self.interrupt_status,
            rings: self.rings.iter().map(Ring::save).collect(),
        }
    }

    pub(crate) fn restore<M: GuestMemory>(
        &mut self,
        mem: &M,
        state: &TransportState,
    ) -> Result<(), RestoreError> {
        if state.rings.len() != self.rings.len() {
            return Err(RestoreError::Queues(D::NAME));
        }
        let invalid = |what| RestoreError::Invalid {
            device: D::NAME,
            what,
        };
        let event_idx = state.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        for (ring, saved) in self.rings.iter_mut().zip(&state.rings) {
            ring.restore(mem, saved, event_idx)
                .map_err(|_| invalid("queue"))?;
        }
        self.driver_features = state.driver_features;
        if state.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.features_acceptable() {
            return Err(invalid("features"));
        }
        self.status = state.status;
        self.device_features_sel = state.device_features_sel;
        self.driver_features_sel = state.driver_features_sel;
        self.queue_sel = state.queue_sel;
        self.interrupt_status = state.interrupt_status;
        Ok(())
    }
}

/// The `select`-th 32 bits of `bits`; zero beyond.
fn word(bits: u64, select: u32) -> u32 {
    match select {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}
