//! One virtqueue: the registers that configure it, and the ring once it is ready. The embedded guest's queues are polled at
//! boundaries, it never notifies; for others there are notifications and interrupts, and each side can say that it wants none.

use crate::chain::Chain;
use crate::error::{QueueFault, RegisterFault};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// A queue as plain data. Addresses are guest-physical.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingState {
    /// Size that the driver chose; 0 if it did not yet.
    pub size: u32,
    /// The driver has put the queue to use.
    pub ready: bool,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
    /// Chains taken so far, modulo 2^16.
    pub next_avail: u16,
    /// Chains given back so far, modulo 2^16.
    pub next_used: u16,
}

/// One virtqueue.
#[derive(Debug)]
pub(crate) struct Ring {
    max_size: u16,
    /// The values in the registers. What is in use is in `queue`.
    pub regs: RingState,
    /// There exactly while the queue is ready; validated when it became so.
    queue: Option<Queue>,
    /// Chains were given back since [`Ring::interrupt_wanted`] was asked last.
    given: bool,
}

impl Ring {
    pub(crate) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            regs: RingState::default(),
            queue: None,
            given: false,
        }
    }

    pub(crate) fn max_size(&self) -> u16 {
        self.max_size
    }

    pub(crate) fn ready(&self) -> bool {
        self.queue.is_some()
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// Puts the queue to use with the addresses and the size in its registers: the only place where they are believed.
    /// `event_idx`: whether VIRTIO_F_EVENT_IDX was negotiated.
    pub(crate) fn enable<M: GuestMemory>(
        &mut self,
        mem: &M,
        event_idx: bool,
    ) -> Result<(), RegisterFault> {
        if self.queue.is_some() {
            return Err(RegisterFault::QueueInUse);
        }
        let size = self.regs.size;
        let bad_size = RegisterFault::QueueSize(size);
        let small = u16::try_from(size).map_err(|_| bad_size.clone())?;
        let mut queue = Queue::new(self.max_size).map_err(|_| bad_size.clone())?;
        queue.try_set_size(small).map_err(|_| bad_size)?;
        let bad_address = |_| RegisterFault::QueueAddress;
        queue
            .try_set_desc_table_address(GuestAddress(self.regs.descriptors))
            .map_err(bad_address)?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.regs.available))
            .map_err(bad_address)?;
        queue
            .try_set_used_ring_address(GuestAddress(self.regs.used))
            .map_err(bad_address)?;
        queue.set_next_avail(self.regs.next_avail);
        queue.set_next_used(self.regs.next_used);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if !queue.is_valid(mem) || self.regs.available == 0 {
            return Err(RegisterFault::QueueAddress);
        }
        self.regs.ready = true;
        self.queue = Some(queue);
        Ok(())
    }

    /// Takes the next chain that the driver made available; false if there is none, or the queue is not in use.
    pub(crate) fn take<M: GuestMemory>(
        &mut self,
        mem: &M,
        chain: &mut Chain,
    ) -> Result<bool, QueueFault> {
        let Some(queue) = &mut self.queue else {
            return Ok(false);
        };
        let mut available = queue.iter(mem).map_err(|_| QueueFault::AvailableRing)?;
        let Some(next) = available.next() else {
            return Ok(false);
        };
        chain.fill(next.head_index(), next)?;
        Ok(true)
    }

    /// Size that the driver chose.
    pub(crate) fn size(&self) -> usize {
        self.regs.size as usize
    }

    /// Chains taken so far, modulo 2^16; for [`Ring::untake`].
    pub(crate) fn taken(&self) -> u16 {
        self.queue.as_ref().map_or(0, QueueT::next_avail)
    }

    /// Gives chains back to the driver as if they had not been taken since [`Ring::taken`] returned `taken`.
    pub(crate) fn untake(&mut self, taken: u16) {
        if let Some(queue) = &mut self.queue {
            queue.set_next_avail(taken);
        }
    }

    /// Returns a chain to the driver with `written` bytes in it.
    pub(crate) fn give<M: GuestMemory>(
        &mut self,
        mem: &M,
        head: u16,
        written: u32,
    ) -> Result<(), QueueFault> {
        self.given = true;
        match &mut self.queue {
            Some(queue) => queue
                .add_used(mem, head, written)
                .map_err(|_| QueueFault::UsedRing),
            None => Ok(()),
        }
    }

    /// Whether the driver is to be interrupted for what was given back since this was asked last (virtio 1.3, 2.7.7.2): with
    /// VIRTIO_F_EVENT_IDX if the used index has passed the one that the driver named, without it unless the driver wants none.
    pub(crate) fn interrupt_wanted<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, QueueFault> {
        let given = std::mem::take(&mut self.given);
        let Some(queue) = self.queue.as_mut().filter(|_| given) else {
            return Ok(false);
        };
        if queue.event_idx_enabled() {
            return queue
                .needs_notification(mem)
                .map_err(|_| QueueFault::AvailableRing);
        }
        // The driver changes its flags and then looks at the used index: this must not look at the flags before the index is written.
        fence(Ordering::SeqCst);
        let flags: u16 = mem
            .load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
            .map_err(|_| QueueFault::AvailableRing)?;
        Ok(u16::from_le(flags) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
    }

    /// Asks the driver for notifications, or for none (2.7.10). True if they are wanted and something is there that was not taken: the
    /// driver may have put it there before it saw the wish.
    pub(crate) fn listen<M: GuestMemory>(
        &mut self,
        mem: &M,
        wanted: bool,
    ) -> Result<bool, QueueFault> {
        let Some(queue) = &mut self.queue else {
            return Ok(false);
        };
        if wanted {
            queue.enable_notification(mem)
        } else {
            queue.disable_notification(mem).map(|()| false)
        }
        .map_err(|_| QueueFault::UsedRing)
    }

    pub(crate) fn save(&self) -> RingState {
        let mut state = self.regs;
        if let Some(queue) = &self.queue {
            state.next_avail = queue.next_avail();
            state.next_used = queue.next_used();
        }
        state
    }

    pub(crate) fn restore<M: GuestMemory>(
        &mut self,
        mem: &M,
        state: &RingState,
        event_idx: bool,
    ) -> Result<(), RegisterFault> {
        self.reset();
        self.regs = *state;
        self.regs.ready = false;
        if state.ready {
            self.enable(mem, event_idx)?;
        }
        Ok(())
    }
}
