//! The flight recorder: what the guest kernel notes of its last system calls in its own memory, so that whoever has an image of that
//! memory (`quorate explain`) can see what a replica did before it went its own way.
//!
//! It holds addresses and is therefore never digested and never read by the kernel itself (R8). It is found through [`Pointer`],
//! which stands directly behind [`crate::boot::KernelHeader`] in the kernel's image. A reader treats all of it as hostile (R9).

/// [`Pointer::magic`].
pub const FLIGHT_MAGIC: u64 = 0x5448_4749_4c46_4551;
/// [`Recorder::version`].
pub const FLIGHT_VERSION: u32 = 2;
/// Calls that are kept; the oldest gives way (R10). A power of two, and more than come between two boundaries.
pub const CAPACITY: usize = 2048;
/// I/O port that the kernel rings when the call [`Recorder::stop_at`] is complete: the vCPU then stands there, with the program's
/// registers on the thread's kernel stack. Nobody sets `stop_at` but a replay.
pub const STOP_PORT: u16 = 0x518;
/// [`Recorder::stop_at`] that is never reached.
pub const NEVER: u64 = u64::MAX;
/// [`Record::number`] of an exception that became a signal; `args` are vector, error code and address.
pub const EXCEPTION: u32 = u32::MAX;
/// Bytes of [`Record::content`].
pub const CONTENT_LEN: usize = 16;

/// Behind the kernel's header.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// [`FLIGHT_MAGIC`]; anything else: this kernel has no recorder.
    pub magic: u64,
    /// Offset of the [`Recorder`] in the kernel's image.
    pub recorder: u64,
}

/// Where everything is. All addresses are virtual ones of the kernel, valid under every root.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorder {
    /// [`FLIGHT_MAGIC`].
    pub magic: u64,
    /// [`FLIGHT_VERSION`].
    pub version: u32,
    /// `size_of::<Record>()`.
    pub record_bytes: u32,
    /// [`CAPACITY`].
    pub capacity: u64,
    /// Records written since the start; record `i` is at place `i % capacity`.
    pub written: u64,
    /// The records.
    pub records: u64,
    /// Number of the call after which the kernel rings [`STOP_PORT`], and again at each exception before the next call; [`NEVER`]
    /// unless a replay wrote another.
    pub stop_at: u64,
    /// Address of the variable that holds the top of the running thread's kernel stack. The program's registers, if a call or an
    /// exception is being served, lie [`FRAME_BYTES`] below the top.
    pub kernel_stack: u64,
    /// Address of the variable (u32) that holds the id of the running thread.
    pub thread: u64,
    /// Address of the variable that holds the physical address of the first free page; each holds that of the next, 0 at the end.
    pub free_pages: u64,
    /// Address of the roots (physical addresses of top-level page tables), besides the VMM's.
    pub roots: u64,
    /// Address of their number (u64).
    pub root_count: u64,
    /// A fault, from outside: the first call that begins when the call before this number is complete (or a later one), and that
    /// [`can_fail`], is answered with an error and not carried out. The kernel then puts [`NEVER`] here, which it is unless a fault
    /// injector wrote another.
    pub fail_at: u64,
    /// Which error: a positive number, at most 4095.
    pub fail_errno: u64,
    /// Number of the last call that was failed so; 0 as long as none was.
    pub failed: u64,
    /// Page tables made since the start; never less. Who puts memory back knows by it whether any page became a table meanwhile.
    pub tables: u64,
}

/// Whether a system call, by its number, can be made to fail with [`Recorder::fail_at`]. Not those that never come back (`rt_sigreturn`, `exit`,
/// `exit_group`), nor those that cannot fail on Linux: `brk` (its result is an address), `sched_yield`, `alarm`, `umask`, and those that ask for an id.
#[must_use]
pub const fn can_fail(number: u64) -> bool {
    !matches!(
        number,
        12 | 15 | 24 | 37 | 39 | 60 | 95 | 102 | 104 | 107 | 108 | 110 | 111 | 186 | 231
    )
}

/// One call that was completed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Running number: the fingerprint's count, so the first is 1. An [`EXCEPTION`] has that of the last call before it.
    pub call: u64,
    /// First word of the fingerprint's digest after it.
    pub digest: u64,
    /// The call's number, or [`EXCEPTION`].
    pub number: u32,
    /// The thread.
    pub tid: u32,
    /// Its process.
    pub pid: u32,
    /// Number of the page that is the root of its page tables.
    pub root: u32,
    /// Low half of the number of the boundary with which its digest goes out first.
    pub boundary: u32,
    /// Bytes of content that were digested in it, `u32::MAX` if more.
    pub content_len: u32,
    /// Arguments.
    pub args: [u64; 6],
    /// Result, as the program sees it.
    pub result: u64,
    /// Where the program goes on.
    pub rip: u64,
    /// The program's stack pointer.
    pub rsp: u64,
    /// The first bytes of its content.
    pub content: [u8; CONTENT_LEN],
}

/// Bytes of the registers that an entry to the kernel saves at the top of the thread's kernel stack.
pub const FRAME_BYTES: u64 = 416;

/// Offsets in those registers.
pub mod frame {
    /// `r15`, `r14`, `r13`, `r12`, `rbp`, `rbx`, `r11`, `r10`, `r9`, `r8`, `rax`, `rcx`, `rdx`, `rsi`, `rdi`, `rip`, `rflags`, `rsp`:
    /// eight bytes each, from here on.
    pub const REGISTERS: u64 = 0;
    /// How the kernel was entered.
    pub const KIND: u64 = 144;
    /// Number of the system call.
    pub const NUMBER: u64 = 152;
}

const _: () = assert!(core::mem::size_of::<Record>() == 128);
const _: () = assert!(CAPACITY.is_power_of_two());
