//! The sync device: reads the request half of the sync page as hostile input (R9), writes the reply half.

use crate::error::{DeviceError, SyncFault};
use crate::types::Entry;
use quorate_abi::sync::{MESSAGE_LEN, SYNC_MAGIC, SyncPage, offset, op};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Bytes of the page up to the end of the request half.
const REQUEST_LEN: usize = offset::BOUNDARY as usize;
/// Where the reserved part of the request half starts.
const RESERVED: usize = core::mem::offset_of!(SyncPage, request_reserved);

/// The sync device as plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncState {
    /// Boundaries completed so far: the number of the next one.
    pub boundary: u64,
    /// Monotonic time of the last entry, nanoseconds.
    pub monotonic_ns: u64,
}

/// What a guest asks for at a boundary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// An ordinary boundary.
    Sync,
    /// The program ended with this wait status.
    Exit {
        /// Wait status as `wait4` would report it.
        status: u64,
    },
    /// The guest kernel found itself broken.
    Panic {
        /// What it says, made printable.
        message: String,
    },
}

/// The request half of the sync page, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncRequest {
    /// What the guest asks for.
    pub request: Request,
    /// See `SyncPage::wait_until_ns`.
    pub wait_until_ns: u64,
    /// See `SyncPage::fingerprint`.
    pub fingerprint: [u64; 2],
    /// See `SyncPage::syscalls`.
    pub syscalls: u64,
}

#[derive(Debug)]
pub(crate) struct SyncDevice {
    page: GuestAddress,
    state: SyncState,
}

impl SyncDevice {
    pub(crate) fn new(page: GuestAddress) -> Self {
        Self {
            page,
            state: SyncState::default(),
        }
    }

    /// Number of the boundary that the guest is at, or reaches next.
    pub(crate) fn boundary(&self) -> u64 {
        self.state.boundary
    }

    /// Writes the magic number, before the guest starts.
    pub(crate) fn prepare<M: GuestMemory>(&self, mem: &M) -> Result<(), DeviceError> {
        mem.write_obj(SYNC_MAGIC.to_le(), self.page)
            .map_err(|_| DeviceError::Sync(SyncFault::Address))
    }

    /// Reads the request once, so that what was checked is what is used.
    pub(crate) fn request<M: GuestMemory>(&self, mem: &M) -> Result<SyncRequest, DeviceError> {
        let mut page = [0; REQUEST_LEN];
        mem.read_slice(&mut page, self.page)
            .map_err(|_| DeviceError::Sync(SyncFault::Address))?;
        self.parse(mem, &page).map_err(DeviceError::Sync)
    }

    fn parse<M: GuestMemory>(
        &self,
        mem: &M,
        page: &[u8; REQUEST_LEN],
    ) -> Result<SyncRequest, SyncFault> {
        let magic = field(page, offset::MAGIC);
        if magic != SYNC_MAGIC {
            return Err(SyncFault::Magic(magic));
        }
        if page[RESERVED..].iter().any(|&byte| byte != 0) {
            return Err(SyncFault::Reserved);
        }
        // `op` and `message_len` are neighbours: one little-endian load holds both.
        let pair = field(page, offset::OP);
        let (operation, message_len) = (pair as u32, (pair >> 32) as u32);
        const { assert!(offset::MESSAGE_LEN == offset::OP + 4) };
        let request = match operation {
            op::SYNC => Request::Sync,
            op::EXIT => Request::Exit {
                status: field(page, offset::ARG0),
            },
            op::PANIC => Request::Panic {
                message: self.message(mem, message_len)?,
            },
            other => return Err(SyncFault::Op(other)),
        };
        Ok(SyncRequest {
            request,
            wait_until_ns: field(page, offset::WAIT_UNTIL),
            fingerprint: [
                field(page, offset::FINGERPRINT),
                field(page, offset::FINGERPRINT + 8),
            ],
            syscalls: field(page, offset::SYSCALLS),
        })
    }

    /// The text of a panic. Control characters are replaced: it goes to a log and to terminals.
    fn message<M: GuestMemory>(&self, mem: &M, len: u32) -> Result<String, SyncFault> {
        let mut buffer = [0; MESSAGE_LEN];
        let text = buffer
            .get_mut(..len as usize)
            .ok_or(SyncFault::MessageLen(len))?;
        let addr = self
            .page
            .0
            .checked_add(offset::MESSAGE)
            .ok_or(SyncFault::Address)?;
        mem.read_slice(text, GuestAddress(addr))
            .map_err(|_| SyncFault::Address)?;
        Ok(String::from_utf8_lossy(text)
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect())
    }

    /// Completes the boundary: writes the reply half. Time is made monotonic here as well as by the journal.
    pub(crate) fn reply<M: GuestMemory>(
        &mut self,
        mem: &M,
        entry: &Entry,
    ) -> Result<(), DeviceError> {
        let monotonic_ns = entry.monotonic_ns.max(self.state.monotonic_ns);
        let fields = [
            (offset::BOUNDARY, self.state.boundary),
            (offset::MONOTONIC, monotonic_ns),
            (offset::REALTIME, entry.realtime_ns),
            (offset::FLAGS, entry.flags),
        ];
        for (at, value) in fields {
            mem.write_obj(value.to_le(), GuestAddress(self.page.0.wrapping_add(at)))
                .map_err(|_| DeviceError::Sync(SyncFault::Address))?;
        }
        self.state = SyncState {
            boundary: self.state.boundary + 1,
            monotonic_ns,
        };
        Ok(())
    }

    pub(crate) fn save(&self) -> SyncState {
        self.state
    }

    pub(crate) fn restore(&mut self, state: &SyncState) {
        self.state = *state;
    }
}

/// A little-endian 64-bit field of the request half; `at` is a constant within it.
fn field(page: &[u8; REQUEST_LEN], at: u64) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&page[at as usize..at as usize + 8]);
    u64::from_le_bytes(bytes)
}
