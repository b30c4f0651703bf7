//! The sync device: one shared page and one port. Writing any 32-bit value to [`SYNC_PORT`] is a **boundary**:
//! the vCPU leaves the VM, the VMM takes all outputs, and the write completes when the journal's entry has
//! been delivered. The guest fills the *request* half before, and reads the *reply* half after.
//!
//! All fields are little-endian and naturally aligned. The VMM treats the request half as hostile (R9).

/// I/O port of the doorbell (32-bit `out`).
pub const SYNC_PORT: u16 = 0x510;
/// A 32-bit `out` here from the monitor means that it met an exception at CPL 0, which it cannot forward:
/// the value is the vector.
pub const MONITOR_PANIC_PORT: u16 = 0x514;
/// A 32-bit `out` here at CPL 0 is the VMM's own: its debugger puts one into an exception's slot while it is attached. Below 256,
/// so that the port is part of the instruction and no register is needed.
pub const DEBUG_PORT: u8 = 0xe4;
/// [`SyncPage::magic`].
pub const SYNC_MAGIC: u64 = 0x5143_4e59_5351_0001;

/// Requests of the guest, in [`SyncPage::op`].
pub mod op {
    /// An ordinary boundary.
    pub const SYNC: u32 = 1;
    /// The appliance's program ended; `arg0` is its wait status as `wait4` would report it. Final.
    pub const EXIT: u32 = 2;
    /// The guest kernel found itself broken. `message` says how. Final; concerns this replica only.
    pub const PANIC: u32 = 3;
}

/// `wait_until_ns` when the guest does not want to wait at this boundary.
pub const WAIT_NONE: u64 = 0;
/// `wait_until_ns` when only an input can end the wait.
pub const WAIT_FOREVER: u64 = u64::MAX;
/// Size of [`SyncPage::message`] in bytes.
pub const MESSAGE_LEN: usize = 512;

/// The page that guest and sync device share. Offsets are asserted below.
#[repr(C, align(4096))]
#[derive(Clone, Copy, Debug)]
pub struct SyncPage {
    /// [`SYNC_MAGIC`], written by the VMM before the start.
    pub magic: u64,
    // --- request: written by the guest ---
    /// One of [`op`].
    pub op: u32,
    /// Bytes used in `message`.
    pub message_len: u32,
    /// Argument of `op`.
    pub arg0: u64,
    /// Monotonic time in nanoseconds up to which the guest wants to sleep if no input arrives;
    /// [`WAIT_NONE`] or [`WAIT_FOREVER`].
    pub wait_until_ns: u64,
    /// Running digest of the kernel's system calls (number and content, no addresses).
    pub fingerprint: [u64; 2],
    /// System calls served so far.
    pub syscalls: u64,
    /// Reserved, zero.
    pub request_reserved: [u64; 8],
    // --- reply: written by the VMM ---
    /// Number of the boundary that has just been completed (the first is 0).
    pub boundary: u64,
    /// Monotonic time of the entry, nanoseconds since the set started. Never decreases.
    pub monotonic_ns: u64,
    /// Wall-clock time of the entry, nanoseconds since 1970-01-01 UTC.
    pub realtime_ns: u64,
    /// Bit 0: asked to stop in an orderly way (deliver SIGTERM to the program).
    pub flags: u64,
    /// Reserved, zero.
    pub reply_reserved: [u64; 8],
    /// Text that goes with PANIC, UTF-8.
    pub message: [u8; MESSAGE_LEN],
}

/// [`SyncPage::flags`]: the operator asks the appliance to stop; the kernel sends SIGTERM to the program.
pub const FLAG_TERMINATE: u64 = 1;

/// Offsets of the fields of [`SyncPage`], for a VMM that reads them from guest memory one by one.
pub mod offset {
    use super::SyncPage;
    use core::mem::offset_of;
    /// `magic`
    pub const MAGIC: u64 = offset_of!(SyncPage, magic) as u64;
    /// `op`
    pub const OP: u64 = offset_of!(SyncPage, op) as u64;
    /// `message_len`
    pub const MESSAGE_LEN: u64 = offset_of!(SyncPage, message_len) as u64;
    /// `arg0`
    pub const ARG0: u64 = offset_of!(SyncPage, arg0) as u64;
    /// `wait_until_ns`
    pub const WAIT_UNTIL: u64 = offset_of!(SyncPage, wait_until_ns) as u64;
    /// `fingerprint`
    pub const FINGERPRINT: u64 = offset_of!(SyncPage, fingerprint) as u64;
    /// `syscalls`
    pub const SYSCALLS: u64 = offset_of!(SyncPage, syscalls) as u64;
    /// `boundary`
    pub const BOUNDARY: u64 = offset_of!(SyncPage, boundary) as u64;
    /// `monotonic_ns`
    pub const MONOTONIC: u64 = offset_of!(SyncPage, monotonic_ns) as u64;
    /// `realtime_ns`
    pub const REALTIME: u64 = offset_of!(SyncPage, realtime_ns) as u64;
    /// `flags`
    pub const FLAGS: u64 = offset_of!(SyncPage, flags) as u64;
    /// `message`
    pub const MESSAGE: u64 = offset_of!(SyncPage, message) as u64;
}

const _: () = assert!(core::mem::size_of::<SyncPage>() == 4096);
const _: () = assert!(offset::OP == 8 && offset::WAIT_UNTIL == 24 && offset::FINGERPRINT == 32);
