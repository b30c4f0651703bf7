//! virtio-blk (virtio 1.3, 5.2): one queue. What a guest asks becomes an output with a number; reads and flushes stay in
//! flight until an entry calls them complete (R1, R4), and so do writes of a disk that is `sync`; everything else is answered at once.
//!
//! The device holds no data of the disk: those of a read are each replica's own, and come from [`DiskReads`] (R6).

mod request;

use crate::MAX_DESCRIPTORS;
use crate::chain::{Chain, Cursor, total};
use crate::disk::{
    BlockOp, BlockRequest, BlockStatus, Completion, DiskConfig, DiskPosition, DiskReads,
    MAX_DISK_BYTES, MAX_IO_BYTES, MAX_ZERO_SECTORS, Outstanding, SECTOR, TRAILER, Waiting,
};
use crate::error::{DeviceError, DiskFault, QueueFault, RestoreError};
use crate::ring::Ring;
use crate::transport::{Kind, Transport, TransportState};
use crate::types::Output;
use request::{Asked, HEADER, ID_BYTES, Limits, parse};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Size of the queue, and so the most requests in flight on one disk (R10).
pub const BLOCK_QUEUE_SIZE: u16 = 256;
/// Most bytes of written data that one disk takes at one boundary (R10). The rest stays in the queue for the next one,
/// which the guest then reaches without sleeping.
pub const BLOCK_BYTES_PER_BOUNDARY: u64 = 8 << 20;
/// Most bytes of reads in flight on one disk (R10). A read beyond stays in the queue, and so does all that is behind it, until
/// reads are complete; their completion ends the guest's sleep.
pub const BLOCK_READ_BYTES_IN_FLIGHT: u64 = 16 << 20;
/// Most data buffers of one request: the queue's size without header and status.
pub const BLOCK_SEG_MAX: u32 = BLOCK_QUEUE_SIZE as u32 - 2;
/// Largest data buffer for a driver that accepts VIRTIO_BLK_F_SIZE_MAX. Such a driver, that knows no other limit, stays below
/// [`MAX_IO_BYTES`]; one that does not accept it has to know that limit.
pub const BLOCK_SIZE_MAX: u32 = 4096;

const _: () = assert!(BLOCK_SEG_MAX * BLOCK_SIZE_MAX <= MAX_IO_BYTES);
// Otherwise a request could never be taken.
const _: () = assert!(MAX_IO_BYTES as u64 <= BLOCK_BYTES_PER_BOUNDARY);
const _: () = assert!(MAX_IO_BYTES as u64 <= BLOCK_READ_BYTES_IN_FLIGHT);

/// The physical block, which writes should be aligned to: 2^3 sectors.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// A block device as plain data. What the disk is belongs to the run, what is on it to the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockState {
    /// The transport.
    pub transport: TransportState,
    /// Number of the next request.
    pub next_seq: u64,
    /// What is not complete, ascending by number.
    pub in_flight: Vec<InFlightState>,
}

/// A read or flush, or a write that waits, that is not complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InFlightState {
    /// Number of the request.
    pub seq: u64,
    /// What it is.
    pub kind: Waiting,
    /// First sector of a read; 0 for a flush or a write.
    pub sector: u64,
    /// Bytes to read; 0 for a flush or a write.
    pub bytes: u32,
    /// Where the answer goes; nowhere, if the driver has reset the device meanwhile.
    pub reply: Option<ReplyState>,
}

/// Where the answer of a request goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplyState {
    /// First descriptor of the request, which names it in the used ring.
    pub head: u16,
    /// Address and length of the writable buffers; their last byte is the status.
    pub buffers: Vec<(u64, u32)>,
}

#[derive(Debug)]
pub(crate) struct Block {
    disk: u8,
    limits: Limits,
    id: [u8; ID_BYTES],
    config: [u8; 60],
    chain: Chain,
    next_seq: u64,
    /// By number.
    in_flight: BTreeMap<u64, InFlightState>,
    /// Bytes of the reads in `in_flight`.
    reading: u64,
    /// The queue was empty when it was looked at last.
    drained: bool,
}

impl Kind for Block {
    const NAME: &'static str = "block";
    const ID: u32 = VIRTIO_ID_BLOCK;
    const QUEUES: &'static [u16] = &[BLOCK_QUEUE_SIZE];

    fn features(&self) -> u64 {
        let change = if self.limits.read_only {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        change
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_TOPOLOGY
    }

    /// A driver without FLUSH would take every write for durable when it is answered (5.2.6.2), which R4 does not promise.
    fn required(&self) -> u64 {
        if self.limits.read_only {
            0
        } else {
            1 << VIRTIO_BLK_F_FLUSH
        }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    /// What is in flight was voted on and will complete, but there is nobody left to tell. It stays until then, so that numbers
    /// are never used twice and the bounds hold.
    fn reset(&mut self) {
        for request in self.in_flight.values_mut() {
            request.reply = None;
        }
    }
}

/// `struct virtio_blk_config` (5.2.4).
fn config_space(sectors: u64, read_only: bool) -> [u8; 60] {
    let mut space = [0; 60];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &sectors.to_le_bytes());
    put(8, &BLOCK_SIZE_MAX.to_le_bytes());
    put(12, &BLOCK_SEG_MAX.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    let block = 1u16 << PHYSICAL_BLOCK_EXP;
    put(24, &[PHYSICAL_BLOCK_EXP]);
    put(26, &block.to_le_bytes()); // Smallest good request; there is no best one.
    put(34, &1u16.to_le_bytes()); // Queues.
    if !read_only {
        let range = [MAX_ZERO_SECTORS.to_le_bytes(), 1u32.to_le_bytes()].concat();
        put(36, &range); // Discard: sectors, segments, alignment.
        put(44, &u32::from(block).to_le_bytes());
        put(48, &range); // Write-zeroes: sectors, segments, may unmap.
        put(56, &[1]);
    }
    space
}

/// What became of one chain.
enum Taken {
    /// It is answered.
    Answered,
    /// It waits for a completion.
    InFlight,
    /// It is to be given back: what is written at this boundary is enough.
    NextBoundary,
    /// It is to be given back until something in flight is complete.
    AfterCompletion,
}

impl Transport<Block> {
    pub(crate) fn block(disk: u8, config: &DiskConfig) -> Result<Self, DeviceError> {
        let bytes = config.bytes;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) || bytes > MAX_DISK_BYTES {
            return Err(DeviceError::Disk {
                disk: disk.into(),
                fault: DiskFault::Size { bytes },
            });
        }
        let limits = Limits {
            sectors: bytes / SECTOR,
            read_only: config.read_only,
            sync: config.sync,
        };
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(config.id.bytes()) {
            *to = from;
        }
        Ok(Self::new(Block {
            disk,
            id,
            config: config_space(limits.sectors, limits.read_only),
            limits,
            chain: Chain::default(),
            next_seq: 0,
            in_flight: BTreeMap::new(),
            reading: 0,
            drained: true,
        }))
    }

    /// Takes the requests that the guest made since the last boundary, in order. True if some had to stay only because of
    /// [`BLOCK_BYTES_PER_BOUNDARY`]: the next boundary must then come soon.
    pub(crate) fn collect<M: GuestMemory>(
        &mut self,
        mem: &M,
        outputs: &mut Vec<Output>,
    ) -> Result<bool, DeviceError> {
        if !self.live() {
            return Ok(false);
        }
        let mut answered = false;
        let done = self.drain(mem, outputs, &mut answered);
        if answered {
            self.used_buffers();
        }
        done.map_err(|fault| self.broken(0, fault))
    }

    /// Whether nothing that the guest has asked for was left in its queue.
    pub(crate) fn drained(&self) -> bool {
        self.device.drained
    }

    /// Bounded as the other devices' loops: a ring offers no more chains than it has places.
    fn drain<M: GuestMemory>(
        &mut self,
        mem: &M,
        outputs: &mut Vec<Output>,
        answered: &mut bool,
    ) -> Result<bool, QueueFault> {
        let Self { device, rings, .. } = self;
        let Some(ring) = rings.first_mut() else {
            return Ok(false);
        };
        let mut written = 0;
        device.drained = false;
        loop {
            let start = ring.taken();
            if !ring.take(mem, &mut device.chain)? {
                device.drained = true;
                return Ok(false);
            }
            match device.take(mem, ring, &mut written, outputs)? {
                Taken::Answered => *answered = true,
                Taken::InFlight => {}
                Taken::NextBoundary => {
                    ring.untake(start);
                    return Ok(true);
                }
                Taken::AfterCompletion => {
                    ring.untake(start);
                    return Ok(false);
                }
            }
        }
    }

    /// Tells the guest that a request is complete. What is not in flight, or is something else than the completion says, is
    /// none of this replica's requests: see [`Completion`].
    pub(crate) fn complete<M: GuestMemory>(
        &mut self,
        mem: &M,
        completion: &Completion,
        reads: &mut dyn DiskReads,
    ) -> Result<(), DeviceError> {
        let seq = completion.seq;
        let Some(request) = self.device.complete(seq, completion.kind) else {
            return Ok(());
        };
        let (status, data) = match completion.status {
            BlockStatus::IoError => (VIRTIO_BLK_S_IOERR, Vec::new()),
            BlockStatus::Ok => (VIRTIO_BLK_S_OK, self.device.data(&request, reads)?),
        };
        let Some(reply) = request.reply.filter(|_| self.live()) else {
            return Ok(()); // Nobody is there any more who asked for it.
        };
        let Some(ring) = self.rings.first_mut() else {
            return Ok(());
        };
        answer(ring, mem, reply.head, &reply.buffers, &data, status)
            .map_err(|fault| self.broken(0, fault))?;
        self.used_buffers();
        Ok(())
    }

    pub(crate) fn save_block(&self) -> BlockState {
        BlockState {
            transport: self.save(),
            next_seq: self.device.next_seq,
            in_flight: self.device.in_flight.values().cloned().collect(),
        }
    }

    pub(crate) fn restore_block<M: GuestMemory>(
        &mut self,
        mem: &M,
        state: &BlockState,
    ) -> Result<(), RestoreError> {
        let in_flight = &state.in_flight;
        let ascending = in_flight.is_sorted_by(|a, b| a.seq < b.seq)
            && in_flight
                .last()
                .is_none_or(|last| last.seq < state.next_seq);
        let reading: u64 = in_flight
            .iter()
            .map(|request| u64::from(request.bytes))
            .sum();
        if !ascending
            || !in_flight
                .iter()
                .all(|request| request.is_valid(&self.device.limits))
            || in_flight.len() > BLOCK_QUEUE_SIZE.into()
            || reading > BLOCK_READ_BYTES_IN_FLIGHT
        {
            return Err(RestoreError::Invalid {
                device: Block::NAME,
                what: "requests in flight",
            });
        }
        self.restore(mem, &state.transport)?;
        self.device.next_seq = state.next_seq;
        self.device.in_flight = in_flight
            .iter()
            .map(|request| (request.seq, request.clone()))
            .collect();
        self.device.reading = reading;
        Ok(())
    }
}

impl BlockState {
    /// Where the guest stands on this disk, which has the number `disk`.
    pub(crate) fn position(&self, disk: u8) -> DiskPosition {
        let outstanding = self.in_flight.iter().map(|request| Outstanding {
            seq: request.seq,
            sector: request.sector,
            bytes: request.bytes,
            kind: request.kind,
        });
        DiskPosition {
            disk,
            next: self.next_seq,
            outstanding: outstanding.collect(),
        }
    }
}

impl InFlightState {
    /// Whether [`Block::take`] could have made it.
    fn is_valid(&self, limits: &Limits) -> bool {
        let end = self.sector.checked_add(u64::from(self.bytes) / SECTOR);
        let range = end.is_some_and(|end| end <= limits.sectors);
        let bytes = match self.kind {
            Waiting::Read => {
                self.bytes > 0
                    && self.bytes <= MAX_IO_BYTES
                    && u64::from(self.bytes).is_multiple_of(SECTOR)
            }
            Waiting::Write if !limits.sync => false,
            Waiting::Flush | Waiting::Write => self.bytes == 0 && self.sector == 0,
        };
        range
            && bytes
            && self.reply.as_ref().is_none_or(|reply| {
                reply.buffers.len() <= MAX_DESCRIPTORS
                    && total(&reply.buffers) == u64::from(self.bytes) + 1
            })
    }
}

impl Block {
    /// Serves the chain that was taken from the ring.
    fn take<M: GuestMemory>(
        &mut self,
        mem: &M,
        ring: &mut Ring,
        written: &mut u64,
        outputs: &mut Vec<Output>,
    ) -> Result<Taken, QueueFault> {
        let op = match parse(&self.chain, mem, &self.limits)? {
            Asked::Refused(status) => return self.answer_now(mem, ring, &[], status),
            Asked::Id => {
                let id = self.id;
                return self.answer_now(mem, ring, &id, VIRTIO_BLK_S_OK);
            }
            Asked::Read { sector, bytes } => {
                if self.reading + u64::from(bytes) > BLOCK_READ_BYTES_IN_FLIGHT {
                    return Ok(Taken::AfterCompletion);
                }
                BlockOp::Read { sector, bytes }
            }
            Asked::Flush => BlockOp::Flush,
            Asked::Write { sector, bytes } => {
                let sum = *written + u64::from(bytes);
                if sum > BLOCK_BYTES_PER_BOUNDARY {
                    return Ok(Taken::NextBoundary);
                }
                *written = sum;
                let data = self.written(mem, bytes)?;
                BlockOp::Write { sector, data }
            }
            Asked::Discard { sector, sectors } => BlockOp::Discard { sector, sectors },
            Asked::WriteZeroes {
                sector,
                sectors,
                unmap,
            } => BlockOp::WriteZeroes {
                sector,
                sectors,
                unmap,
            },
        };
        let taken = match &op {
            BlockOp::Read { sector, bytes } => self.keep(ring, Waiting::Read, *sector, *bytes)?,
            BlockOp::Flush => self.keep(ring, Waiting::Flush, 0, 0)?,
            BlockOp::Write { .. } | BlockOp::WriteZeroes { .. } if self.limits.sync => {
                self.keep(ring, Waiting::Write, 0, 0)?
            }
            _ => self.answer_now(mem, ring, &[], VIRTIO_BLK_S_OK)?,
        };
        if !matches!(taken, Taken::AfterCompletion) {
            outputs.push(Output::Block(BlockRequest {
                disk: self.disk,
                seq: self.next_seq,
                op,
            }));
            self.next_seq += 1;
        }
        Ok(taken)
    }

    /// The data of a write, with room behind them for what [`BlockRequest::into_bytes`] appends.
    fn written<M: GuestMemory>(&self, mem: &M, bytes: u32) -> Result<Vec<u8>, QueueFault> {
        let mut reader = self.chain.reader(mem);
        reader.read(&mut [0; HEADER])?;
        let mut data = Vec::with_capacity(bytes as usize + TRAILER);
        data.resize(bytes as usize, 0);
        reader.read(&mut data)?;
        Ok(data)
    }

    fn answer_now<M: GuestMemory>(
        &self,
        mem: &M,
        ring: &mut Ring,
        data: &[u8],
        status: u32,
    ) -> Result<Taken, QueueFault> {
        let chain = &self.chain;
        answer(ring, mem, chain.head, chain.writable(), data, status)?;
        Ok(Taken::Answered)
    }

    /// Notes the next request as one in flight.
    fn keep(
        &mut self,
        ring: &Ring,
        kind: Waiting,
        sector: u64,
        bytes: u32,
    ) -> Result<Taken, QueueFault> {
        if self.in_flight.len() >= ring.size() {
            // A driver needs descriptors for each of its requests. Those of a driver before it are not its fault.
            return if self.in_flight.values().all(|other| other.reply.is_some()) {
                Err(QueueFault::Unanswered)
            } else {
                Ok(Taken::AfterCompletion)
            };
        }
        let request = InFlightState {
            seq: self.next_seq,
            kind,
            sector,
            bytes,
            reply: Some(ReplyState {
                head: self.chain.head,
                buffers: self.chain.writable().to_vec(),
            }),
        };
        self.reading += u64::from(bytes);
        self.in_flight.insert(request.seq, request);
        Ok(Taken::InFlight)
    }

    /// Takes a request out of those in flight.
    fn complete(&mut self, seq: u64, kind: Waiting) -> Option<InFlightState> {
        if self.in_flight.get(&seq)?.kind != kind {
            return None;
        }
        let request = self.in_flight.remove(&seq)?;
        self.reading -= u64::from(request.bytes);
        Some(request)
    }

    /// The data for a request that succeeded; taken also if nobody wants them any more, so that they are kept nowhere.
    fn data(
        &self,
        request: &InFlightState,
        reads: &mut dyn DiskReads,
    ) -> Result<Vec<u8>, DeviceError> {
        let seq = request.seq;
        let fault = match request.kind {
            Waiting::Flush | Waiting::Write => return Ok(Vec::new()),
            Waiting::Read => match reads.take(self.disk, seq) {
                Ok(data) if data.len() == request.bytes as usize => return Ok(data),
                Ok(data) => DiskFault::DataLength {
                    seq,
                    bytes: data.len(),
                    asked: request.bytes,
                },
                Err(why) => DiskFault::Data { seq, why },
            },
        };
        let disk = self.disk.into();
        Err(DeviceError::Disk { disk, fault })
    }
}

/// Answers one request: data, if there are any, the status, and the used ring. `data` fill the writable `buffers` up to
/// their last byte, or are empty.
fn answer<M: GuestMemory>(
    ring: &mut Ring,
    mem: &M,
    head: u16,
    buffers: &[(u64, u32)],
    data: &[u8],
    status: u32,
) -> Result<(), QueueFault> {
    let room = total(buffers);
    let status = status as u8; // All three are below 256.
    let written = if data.len() as u64 + 1 == room {
        let mut cursor = Cursor::new(mem, buffers);
        cursor.write(data)? + cursor.write(&[status])?
    } else {
        let &(addr, len) = buffers
            .iter()
            .rfind(|&&(_, len)| len > 0)
            .ok_or(QueueFault::Chain)?;
        let last = addr
            .checked_add(u64::from(len) - 1)
            .ok_or(QueueFault::Address)?;
        mem.write_slice(&[status], GuestAddress(last))
            .map_err(|_| QueueFault::Address)?;
        0 // The data in front of the status are not written (2.7.8.2).
    };
    ring.give(mem, head, written as u32)
}
