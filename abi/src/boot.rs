//! Boot: how the VMM finds its way in the kernel's image, and what it tells the kernel.

use crate::PAGE_SIZE;

/// [`KernelHeader::magic`].
pub const KERNEL_MAGIC: u64 = 0x4c4e_5245_4b54_4551;
/// [`BootInfo::magic`].
pub const BOOT_MAGIC: u64 = 0x544f_4f42_4554_4551;

/// First bytes of the kernel's image (section `.header`, at link address 0). All offsets count from the
/// image's first byte. The image is a static PIE that relocates itself at its entry point.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KernelHeader {
    /// [`KERNEL_MAGIC`].
    pub magic: u64,
    /// [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// Bytes between the handlers of two exception vectors. The last four of them are the VMM's: its debugger puts its own handler
    /// there while it is attached (see `sync::DEBUG_PORT`).
    pub vector_stride: u32,
    /// Offset of the handler of vector 0; there are 32. They run at CPL 0.
    pub vectors: u64,
    /// Offset of the SYSCALL entry (for `LSTAR`); runs at CPL 0 or CPL 3.
    pub syscall_entry: u64,
    /// Offset of the CPL 3 entry point. `rdi` holds the virtual address of [`BootInfo`], `rsp` the boot stack.
    pub entry: u64,
    /// Offset of two bytes `eb fe`, for the fault injector (a hang).
    pub spin: u64,
}

/// GDT selectors that VMM and monitor share. RPL 3 is included where it applies.
pub mod selector {
    /// 64-bit code, DPL 0.
    pub const CODE0: u16 = 0x08;
    /// Data, DPL 0.
    pub const DATA0: u16 = 0x10;
    /// 32-bit code, DPL 3: only there because SYSRET's layout wants a slot.
    pub const CODE3_32: u16 = 0x1b;
    /// Data, DPL 3.
    pub const DATA3: u16 = 0x23;
    /// 64-bit code, DPL 3.
    pub const CODE3: u16 = 0x2b;
    /// 64-bit TSS (two slots).
    pub const TSS: u16 = 0x30;
}

/// Virtual addresses at which this replica's regions start. All lie in the lower half, page aligned. The low 30 bits of
/// `program`, `libraries`, `mmap`, `heap` and `stack_top` are the same in all replicas of a set
/// (they come from the input seed), so that relative alignment, which allocators notice, is the same (R8).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Guest kernel's image.
    pub kernel: u64,
    /// Boot block: tables, stacks, [`BootInfo`], sync page.
    pub boot: u64,
    /// All RAM: physical address `p` is at `direct + p`. 1 GiB aligned.
    pub direct: u64,
    /// The root image, read-only, 2 MiB aligned.
    pub image: u64,
    /// virtio-mmio windows.
    pub devices: u64,
    /// Kernel's own dynamic mappings (heap, stacks); 64 GiB are free there.
    pub kernel_dynamic: u64,
    /// Position-independent programs are loaded here.
    pub program: u64,
    /// File-backed mappings that a program makes without choosing an address (shared libraries); 64 GiB free.
    pub libraries: u64,
    /// Anonymous mappings that a program makes without choosing an address; 512 GiB free, growing up.
    pub mmap: u64,
    /// Stacks and control blocks (TLS) of threads, and what `ld.so` allocates; 64 GiB free. The same in all replicas of a
    /// set: allocators seed pseudo-random decisions with the address of a thread's control block (jemalloc does), and
    /// those decisions reach outputs (R8).
    pub threads: u64,
    /// `brk` area; 64 GiB free.
    pub heap: u64,
    /// Top of the main thread's stack, growing down; 1 GiB free.
    pub stack_top: u64,
}

/// A range of guest-physical memory in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Length.
    pub len: u64,
}

/// One answer of CPUID.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidLeaf {
    /// EAX of the question.
    pub function: u32,
    /// ECX of the question, where it matters.
    pub index: u32,
    /// EAX, EBX, ECX, EDX of the answer.
    pub registers: [u32; 4],
}

/// Upper bound of [`BootInfo::cpuid`].
pub const MAX_CPUID_LEAVES: usize = 32;
/// Upper bound of [`BootInfo::ram`].
pub const MAX_RAM_RANGES: usize = 2;
/// Upper bound of [`BootInfo::strings`] in bytes (arguments and environment together).
pub const MAX_STRINGS: usize = 32 * 1024;

/// Upper bound of [`BootInfo::groups`].
pub const MAX_GROUPS: usize = 63;

/// What the VMM tells the kernel. Lies in the boot block; the kernel only reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BootInfo {
    /// [`BOOT_MAGIC`].
    pub magic: u64,
    /// [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// Entries used in `ram`.
    pub ram_ranges: u32,
    /// RAM, ascending.
    pub ram: [Range; MAX_RAM_RANGES],
    /// Physical range that kernel image and boot block occupy: not to be allocated.
    pub reserved: Range,
    /// Virtual addresses.
    pub layout: Layout,
    /// Physical address of the top-level page table.
    pub page_table_root: u64,
    /// The root image, physical (at [`crate::map::IMAGE_BASE`]); length 0 if there is none.
    pub image: Range,
    /// Virtual address of the [`crate::sync::SyncPage`].
    pub sync_page: u64,
    /// Virtual address of the top of the monitor's stack (TSS.RSP0). An exception's frame lies just below.
    pub monitor_stack_top: u64,
    /// Virtual address of 64 bytes of scratch for the monitor (kernel and monitor agree on its use).
    pub monitor_scratch: u64,
    /// Bit `i` set: a virtio-mmio device is at slot `i`.
    pub devices: u64,
    /// Seed for what differs between replicas (order of physical pages, gaps). Must not reach an output (R8).
    pub layout_seed: [u8; 32],
    /// Monotonic time at the start, nanoseconds.
    pub monotonic_ns: u64,
    /// Wall-clock time at the start, nanoseconds since 1970.
    pub realtime_ns: u64,
    /// Address of the strings: `argc` arguments, then `envc` variables, each NUL-terminated,
    /// then the working directory and the host name, each NUL-terminated, then the mounts (see [`crate::mount`]).
    /// `argv[0]` is the path to execute.
    pub strings: u64,
    /// Bytes of the strings.
    pub strings_len: u64,
    /// Arguments.
    pub argc: u32,
    /// Environment variables.
    pub envc: u32,
    /// User and group id of the program.
    pub uid: u32,
    /// Group id of the program.
    pub gid: u32,
    /// CPUID as the guest is to see it. Where KVM does not keep it, CPUID traps (#GP) and the kernel answers from here; what
    /// is not in the list is all zero.
    pub cpuid: [CpuidLeaf; MAX_CPUID_LEAVES],
    /// Entries used in `cpuid`.
    pub cpuid_leaves: u32,
    /// Mounts among the strings; see [`crate::mount`].
    pub mounts: u32,
    /// Entries used in `groups`.
    pub group_count: u32,
    /// Groups that the program is in besides `gid`.
    pub groups: [u32; MAX_GROUPS],
}

const _: () = assert!(core::mem::size_of::<BootInfo>() <= PAGE_SIZE as usize);
