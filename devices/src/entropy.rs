//! virtio-rng (virtio 1.3, 5.4): random bytes from the input seed, the same for all replicas of a set (R1).

use crate::chain::Chain;
use crate::error::{DeviceError, QueueFault, RestoreError};
use crate::stream::SeedStream;
use crate::transport::{Kind, Transport, TransportState};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_memory::GuestMemory;

/// Size of the queue.
pub const ENTROPY_QUEUE_SIZE: u16 = 16;
/// Most bytes served at one boundary. A longer buffer is filled up to here, which the specification allows (5.4.6);
/// buffers after that wait for the next boundary.
pub const ENTROPY_BYTES_PER_BOUNDARY: usize = 64 * 1024;

/// Label of this device's stream of the input seed.
const LABEL: [u8; 12] = *b"virtio-rng  ";
/// Bytes made at a time.
const PIECE: usize = 4096;

/// The entropy device as plain data. The seed is not part of it: it belongs to the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntropyState {
    /// The transport.
    pub transport: TransportState,
    /// Bytes handed out so far.
    pub position: u64,
}

#[derive(Debug)]
pub(crate) struct Entropy {
    stream: SeedStream,
    chain: Chain,
}

impl Kind for Entropy {
    const NAME: &'static str = "entropy";
    const ID: u32 = VIRTIO_ID_RNG;
    const QUEUES: &'static [u16] = &[ENTROPY_QUEUE_SIZE];

    fn features(&self) -> u64 {
        0
    }

    fn required(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    /// The stream goes on: a driver that resets the device must not get the same bytes again.
    fn reset(&mut self) {}
}

impl Transport<Entropy> {
    pub(crate) fn entropy(input_seed: [u8; 32]) -> Self {
        Self::new(Entropy {
            stream: SeedStream::new(input_seed, LABEL),
            chain: Chain::default(),
        })
    }

    /// Fills the buffers that the guest posted.
    pub(crate) fn serve<M: GuestMemory>(&mut self, mem: &M) -> Result<(), DeviceError> {
        if !self.live() {
            return Ok(());
        }
        let mut budget = ENTROPY_BYTES_PER_BOUNDARY;
        while budget > 0 {
            match self.serve_one(mem, budget) {
                Ok(0) => break,
                Ok(written) => budget -= written,
                Err(fault) => return Err(self.broken(0, fault)),
            }
        }
        if budget < ENTROPY_BYTES_PER_BOUNDARY {
            self.used_buffers();
        }
        Ok(())
    }

    /// Fills one buffer with at most `budget` bytes and returns how many it got; 0 if there is no buffer.
    fn serve_one<M: GuestMemory>(&mut self, mem: &M, budget: usize) -> Result<usize, QueueFault> {
        let Self { device, rings, .. } = self;
        let Some(ring) = rings.first_mut() else {
            return Ok(0);
        };
        if !ring.take(mem, &mut device.chain)? {
            return Ok(0);
        }
        let want = device.chain.only_writable(1)?.min(budget as u64) as usize;
        let mut writer = device.chain.writer(mem);
        let mut piece = [0; PIECE];
        let mut done = 0;
        while done < want {
            let now = &mut piece[..PIECE.min(want - done)];
            if !device.stream.fill(now) {
                return Err(QueueFault::Exhausted);
            }
            done += writer.write(now)?;
        }
        ring.give(mem, device.chain.head, done as u32)?;
        Ok(done)
    }

    pub(crate) fn save_entropy(&self) -> EntropyState {
        EntropyState {
            transport: self.save(),
            position: self.device.stream.position(),
        }
    }

    pub(crate) fn restore_entropy<M: GuestMemory>(
        &mut self,
        mem: &M,
        state: &EntropyState,
    ) -> Result<(), RestoreError> {
        self.restore(mem, &state.transport)?;
        self.device.stream.seek(state.position);
        Ok(())
    }
}
