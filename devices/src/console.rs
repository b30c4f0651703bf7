//! virtio-console (virtio 1.3, 5.3): one port, no multiport.

use crate::chain::Chain;
use crate::error::{DeviceError, QueueFault, RestoreError};
use crate::transport::{Kind, Transport, TransportState};
use crate::types::Output;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vm_memory::GuestMemory;

/// Size of both queues. With [`CONSOLE_TX_CHAIN_BYTES`] it bounds the console output of one boundary (R10).
pub const CONSOLE_QUEUE_SIZE: u16 = 64;
/// Most bytes in one transmitted buffer; a longer one is an error of the guest.
pub const CONSOLE_TX_CHAIN_BYTES: u64 = 64 * 1024;
/// Most input bytes that wait for the guest to post buffers; what comes beyond is dropped, as a serial line does,
/// at the same place in all replicas.
pub const CONSOLE_RX_WAITING_BYTES: usize = 64 * 1024;

const RX: usize = 0;
const TX: usize = 1;

/// The console device as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// The transport.
    pub transport: TransportState,
    /// Input that waits for buffers.
    pub waiting: Vec<u8>,
    /// Input bytes dropped so far.
    pub dropped: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Console {
    chain: Chain,
    waiting: VecDeque<u8>,
    dropped: u64,
}

impl Kind for Console {
    const NAME: &'static str = "console";
    const ID: u32 = VIRTIO_ID_CONSOLE;
    const QUEUES: &'static [u16] = &[CONSOLE_QUEUE_SIZE; 2];

    fn features(&self) -> u64 {
        0
    }

    fn required(&self) -> u64 {
        0
    }

    /// Columns, rows, ports and emergency write belong to features that are not offered.
    fn config(&self) -> &[u8] {
        &[0; 12]
    }

    fn reset(&mut self) {}
}

impl Transport<Console> {
    pub(crate) fn console() -> Self {
        Self::new(Console::default())
    }

    /// There is input that the guest has posted no buffers for.
    pub(crate) fn wants_buffers(&self) -> bool {
        !self.device.waiting.is_empty()
    }

    /// Takes what the guest wrote since the last boundary.
    pub(crate) fn collect<M: GuestMemory>(
        &mut self,
        mem: &M,
        outputs: &mut Vec<Output>,
    ) -> Result<(), DeviceError> {
        if !self.live() {
            return Ok(());
        }
        let mut text = Vec::new();
        let done = self.drain(mem, &mut text);
        if !text.is_empty() {
            outputs.push(Output::Console(text));
            self.used_buffers();
        }
        done.map_err(|fault| self.broken(TX, fault))
    }

    /// Bounded: a ring offers no more chains than it has places, and what is given back comes free only after this.
    fn drain<M: GuestMemory>(&mut self, mem: &M, text: &mut Vec<u8>) -> Result<(), QueueFault> {
        let Self { device, rings, .. } = self;
        let ring = &mut rings[TX];
        while ring.take(mem, &mut device.chain)? {
            let chain = &device.chain;
            let len = chain.only_readable(1, CONSOLE_TX_CHAIN_BYTES)? as usize;
            let start = text.len();
            text.resize(start + len, 0);
            if let Err(fault) = chain.reader(mem).read(&mut text[start..]) {
                text.truncate(start);
                return Err(fault);
            }
            ring.give(mem, chain.head, 0)?;
        }
        Ok(())
    }

    /// Gives waiting and new input to the guest, as far as it has posted buffers (R1).
    pub(crate) fn deliver<M: GuestMemory>(
        &mut self,
        mem: &M,
        input: &[u8],
    ) -> Result<(), DeviceError> {
        let waiting = &mut self.device.waiting;
        let room = CONSOLE_RX_WAITING_BYTES - waiting.len().min(CONSOLE_RX_WAITING_BYTES);
        let kept = room.min(input.len());
        waiting.extend(&input[..kept]);
        self.device.dropped += (input.len() - kept) as u64;
        if !self.live() {
            return Ok(());
        }
        self.fill(mem).map_err(|fault| self.broken(RX, fault))
    }

    fn fill<M: GuestMemory>(&mut self, mem: &M) -> Result<(), QueueFault> {
        let Self { device, rings, .. } = self;
        let ring = &mut rings[RX];
        let mut any = false;
        while !device.waiting.is_empty() && ring.take(mem, &mut device.chain)? {
            device.chain.only_writable(1)?;
            let done = device
                .chain
                .writer(mem)
                .write(device.waiting.make_contiguous())?;
            device.waiting.drain(..done);
            ring.give(mem, device.chain.head, done as u32)?;
            any = true;
        }
        if any {
            self.used_buffers();
        }
        Ok(())
    }

    pub(crate) fn save_console(&self) -> ConsoleState {
        ConsoleState {
            transport: self.save(),
            waiting: self.device.waiting.iter().copied().collect(),
            dropped: self.device.dropped,
        }
    }

    pub(crate) fn restore_console<M: GuestMemory>(
        &mut self,
        mem: &M,
        state: &ConsoleState,
    ) -> Result<(), RestoreError> {
        if state.waiting.len() > CONSOLE_RX_WAITING_BYTES {
            return Err(RestoreError::Invalid {
                device: Console::NAME,
                what: "waiting input",
            });
        }
        self.restore(mem, &state.transport)?;
        self.device.waiting = state.waiting.iter().copied().collect();
        self.device.dropped = state.dropped;
        Ok(())
    }
}
