//! virtio-net (virtio 1.3, 5.1): one queue pair, no offloads, no control queue.

use crate::chain::Chain;
use crate::error::{DeviceError, QueueFault, RestoreError};
use crate::ring::Ring;
use crate::transport::{Kind, Transport, TransportState};
use crate::types::{Entry, Output};
use quorate_abi::net::{ETHERNET_HEADER, GUEST_MAC, MAX_FRAME, MTU};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_HDR_GSO_NONE,
};
use vm_memory::GuestMemory;

/// Size of both queues. With the largest frame it bounds what a guest sends at one boundary (R10).
pub const NET_QUEUE_SIZE: u16 = 256;
/// Most frames that wait for the guest to post buffers. What comes beyond is dropped, as a network card does, at the same
/// place in all replicas, since it depends on nothing but the journal and the guest (R1, R10).
pub const NET_RX_WAITING_FRAMES: usize = 4096;
/// Most bytes that wait for the guest to post buffers; as [`NET_RX_WAITING_FRAMES`].
pub const NET_RX_WAITING_BYTES: usize = 32 << 20;
/// Bytes of `struct virtio_net_hdr_v1` (5.1.6), in front of each frame in a queue.
pub const VIRTIO_NET_HEADER: usize = 12;

const RX: usize = 0;
const TX: usize = 1;

const fn config_space() -> [u8; 12] {
    let mtu = MTU.to_le_bytes();
    let mac = GUEST_MAC;
    // 5.1.4: MAC, status, max_virtqueue_pairs, MTU.
    [
        mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0, 1, 0, mtu[0], mtu[1],
    ]
}
static CONFIG: [u8; 12] = config_space();

/// What the network device counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetCounters {
    /// Frames that the guest sent.
    pub sent: u64,
    /// Frames that the guest received.
    pub received: u64,
    /// Frames that found the waiting queue full.
    pub dropped: u64,
}

/// The network device as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The transport.
    pub transport: TransportState,
    /// Frames that wait for buffers.
    pub waiting: Vec<Vec<u8>>,
    /// Counters.
    pub counters: NetCounters,
}

/// A frame of an entry that waits: the entry is shared, so waiting costs no copy.
#[derive(Debug)]
struct Waiting {
    entry: Arc<Entry>,
    frame: usize,
}

impl Waiting {
    fn bytes(&self) -> &[u8] {
        self.entry.frames.get(self.frame).map_or(&[], Vec::as_slice)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Net {
    chain: Chain,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    counters: NetCounters,
}

impl Kind for Net {
    const NAME: &'static str = "network";
    const ID: u32 = VIRTIO_ID_NET;
    const QUEUES: &'static [u16] = &[NET_QUEUE_SIZE; 2];

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_MTU | 1 << VIRTIO_NET_F_MRG_RXBUF
    }

    fn required(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &CONFIG
    }

    /// Frames that wait stay: they are inputs of the journal, and the next driver gets them.
    fn reset(&mut self) {}
}

impl Transport<Net> {
    pub(crate) fn net() -> Self {
        Self::new(Net::default())
    }

    pub(crate) fn counters(&self) -> NetCounters {
        self.device.counters
    }

    pub(crate) fn waiting_bytes(&self) -> usize {
        self.device.waiting_bytes
    }

    /// There are frames that the guest has posted no buffers for.
    pub(crate) fn wants_buffers(&self) -> bool {
        !self.device.waiting.is_empty()
    }

    /// Takes the frames that the guest sent since the last boundary.
    pub(crate) fn collect<M: GuestMemory>(
        &mut self,
        mem: &M,
        outputs: &mut Vec<Output>,
    ) -> Result<(), DeviceError> {
        if !self.live() {
            return Ok(());
        }
        let before = self.device.counters.sent;
        let done = self.drain(mem, outputs);
        if self.device.counters.sent != before {
            self.used_buffers();
        }
        done.map_err(|fault| self.broken(TX, fault))
    }

    /// Bounded as the console's: at most [`NET_QUEUE_SIZE`] frames.
    fn drain<M: GuestMemory>(
        &mut self,
        mem: &M,
        outputs: &mut Vec<Output>,
    ) -> Result<(), QueueFault> {
        const LEAST: u64 = (VIRTIO_NET_HEADER + ETHERNET_HEADER) as u64;
        const MOST: u64 = (VIRTIO_NET_HEADER + MAX_FRAME) as u64;
        let Self { device, rings, .. } = self;
        let ring = &mut rings[TX];
        while ring.take(mem, &mut device.chain)? {
            let chain = &device.chain;
            let len = chain.only_readable(LEAST, MOST)? as usize;
            let mut reader = chain.reader(mem);
            let mut header = [0; VIRTIO_NET_HEADER];
            reader.read(&mut header)?;
            // flags and gso_type: without offloads there is only one value (5.1.6.2).
            if header[0] != 0 || header[1] != VIRTIO_NET_HDR_GSO_NONE as u8 {
                return Err(QueueFault::Offload);
            }
            let mut frame = vec![0; len - VIRTIO_NET_HEADER];
            reader.read(&mut frame)?;
            ring.give(mem, chain.head, 0)?;
            outputs.push(Output::Frame(frame));
            device.counters.sent += 1;
        }
        Ok(())
    }

    /// Gives waiting and new frames to the guest, in order, as far as it has posted buffers. Which frame goes when
    /// depends on nothing but the journal and the guest (R1).
    pub(crate) fn deliver<M: GuestMemory>(
        &mut self,
        mem: &M,
        entry: &Arc<Entry>,
    ) -> Result<(), DeviceError> {
        let received = self.device.counters.received;
        let done = self.deliver_all(mem, entry);
        if self.device.counters.received != received {
            self.used_buffers();
        }
        done.map_err(|fault| self.broken(RX, fault))
    }

    fn deliver_all<M: GuestMemory>(
        &mut self,
        mem: &M,
        entry: &Arc<Entry>,
    ) -> Result<(), QueueFault> {
        let live = self.live();
        let mergeable = self.has_feature(VIRTIO_NET_F_MRG_RXBUF);
        let Self { device, rings, .. } = self;
        let ring = &mut rings[RX];
        while live
            && let Some(first) = device.waiting.front()
            && receive(ring, mem, &mut device.chain, mergeable, first.bytes())?
        {
            device.waiting_bytes -= first.bytes().len();
            device.counters.received += 1;
            device.waiting.pop_front();
        }
        for (index, frame) in entry.frames.iter().enumerate() {
            if live
                && device.waiting.is_empty()
                && receive(ring, mem, &mut device.chain, mergeable, frame)?
            {
                device.counters.received += 1;
            } else if device.waiting.len() < NET_RX_WAITING_FRAMES
                && device.waiting_bytes + frame.len() <= NET_RX_WAITING_BYTES
            {
                device.waiting_bytes += frame.len();
                device.waiting.push_back(Waiting {
                    entry: Arc::clone(entry),
                    frame: index,
                });
            } else {
                device.counters.dropped += 1;
            }
        }
        Ok(())
    }

    pub(crate) fn save_net(&self) -> NetState {
        NetState {
            transport: self.save(),
            waiting: self
                .device
                .waiting
                .iter()
                .map(|waiting| waiting.bytes().to_vec())
                .collect(),
            counters: self.device.counters,
        }
    }

    pub(crate) fn restore_net<M: GuestMemory>(
        &mut self,
        mem: &M,
        state: &NetState,
    ) -> Result<(), RestoreError> {
        let waiting_bytes = state.waiting.iter().map(Vec::len).sum();
        if state.waiting.len() > NET_RX_WAITING_FRAMES || waiting_bytes > NET_RX_WAITING_BYTES {
            return Err(RestoreError::Invalid {
                device: Net::NAME,
                what: "waiting frames",
            });
        }
        self.restore(mem, &state.transport)?;
        let entry = Arc::new(Entry {
            frames: state.waiting.clone(),
            ..Entry::default()
        });
        self.device.waiting = (0..entry.frames.len())
            .map(|frame| Waiting {
                entry: Arc::clone(&entry),
                frame,
            })
            .collect();
        self.device.waiting_bytes = waiting_bytes;
        self.device.counters = state.counters;
        Ok(())
    }
}

/// Puts one frame into the guest's buffers: one chain, or as many as it takes with VIRTIO_NET_F_MRG_RXBUF (5.1.6.4).
/// False, with nothing taken, if the guest has not posted enough.
fn receive<M: GuestMemory>(
    ring: &mut Ring,
    mem: &M,
    chain: &mut Chain,
    mergeable: bool,
    frame: &[u8],
) -> Result<bool, QueueFault> {
    let start = ring.taken();
    let total = (VIRTIO_NET_HEADER + frame.len()) as u64;
    let least = if mergeable {
        VIRTIO_NET_HEADER as u64
    } else {
        total // With VIRTIO_NET_F_MTU a driver knows how large its buffers must be (5.1.4.2).
    };
    // How many chains it takes: known only after looking, and the header in the first one says it.
    let mut room = 0;
    let mut chains: u16 = 0;
    while room < total {
        if !ring.take(mem, chain)? {
            ring.untake(start);
            return Ok(false);
        }
        room += chain.only_writable(least)?;
        chains += 1; // At most the size of the ring: `take` refuses more.
    }
    let mut header = [0; VIRTIO_NET_HEADER];
    header[10..].copy_from_slice(&chains.to_le_bytes());
    let mut rest = frame;
    if chains > 1 {
        ring.untake(start);
    }
    for index in 0..chains {
        if chains > 1 && !ring.take(mem, chain)? {
            return Err(QueueFault::AvailableRing);
        }
        let mut writer = chain.writer(mem);
        let mut written = 0;
        if index == 0 {
            written += writer.write(&header)?;
        }
        let body = writer.write(rest)?;
        rest = &rest[body..];
        written += body;
        ring.give(mem, chain.head, written as u32)?;
    }
    Ok(true)
}
