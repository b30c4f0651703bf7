//! The boot block: everything that the kernel finds ready when it starts. It lies in guest memory directly behind the
//! kernel: descriptor tables, [`BootInfo`], the sync page, stacks and strings, which are mapped at `Layout::boot`, and
//! then the page tables, which the kernel reaches through the direct map.

use crate::error::MachineError;
use crate::kernel::{Kernel, VECTORS};
use crate::layout::LayoutRequest;
use crate::machine::{MachineConfig, Mount, ProgramSpec};
use crate::memory::{GuestMemory, LARGE_PAGE, Ram};
use crate::paging::{Area, PageTables, Rights, table_bytes};
use kvm_bindings::CpuId;
use quorate_abi::boot::{
    BOOT_MAGIC, BootInfo, CpuidLeaf, Layout, MAX_CPUID_LEAVES, MAX_GROUPS, MAX_RAM_RANGES,
    MAX_STRINGS, Range, selector,
};
use quorate_abi::flight::STOP_PORT;
use quorate_abi::sync::{MONITOR_PANIC_PORT, SYNC_PORT};
use quorate_abi::{ABI_VERSION, PAGE_SIZE, map};
use quorate_devices::{DeviceSet, SeedStream};
use vm_memory::{ByteValued, Bytes, GuestAddress};

/// Offsets in the boot block. Between the stacks lie pages that are not mapped, so that an overflow is a fault.
mod at {
    pub const GDT: u64 = 0;
    pub const IDT: u64 = 0x200;
    pub const TSS: u64 = 0x400;
    pub const INFO: u64 = 0x1000;
    pub const SYNC: u64 = 0x2000;
    pub const SCRATCH: u64 = 0x3000;
    pub const MONITOR_STACK: u64 = 0x5000;
    /// The debugger's exceptions have a stack of their own: the kernel may be about to read the frame of another.
    pub const DEBUG_STACK_TOP: u64 = 0x5800;
    pub const MONITOR_STACK_TOP: u64 = 0x6000;
    pub const FAULT_STACK: u64 = 0x7000;
    pub const FAULT_STACK_TOP: u64 = 0x8000;
    pub const BOOT_STACK: u64 = 0x9000;
    pub const BOOT_STACK_TOP: u64 = BOOT_STACK + (64 << 10);
    pub const STRINGS: u64 = BOOT_STACK_TOP + 0x1000;
    pub const END: u64 = STRINGS + super::MAX_STRINGS as u64;
}

/// Bytes of the part of the boot block that is mapped at `Layout::boot`.
pub(crate) const MAPPED_BYTES: u64 = at::END;

/// The TSS proper; the I/O permission bitmap follows (Intel SDM volume 1, 19.5.2).
const TSS_BYTES: usize = 104;
/// Ports from here on are all forbidden to CPL 3: the bitmap ends.
const BITMAP_PORTS: usize = STOP_PORT as usize + 4;
/// The bitmap, and the byte of ones that must follow it.
const BITMAP_BYTES: usize = BITMAP_PORTS.div_ceil(8) + 1;
const GDT_ENTRIES: usize = 8;

/// Label of the layout stream that places the kernel in physical memory.
const PHYSICAL_LABEL: [u8; 12] = *b"physical    ";
/// Label of the layout stream that the guest kernel gets as its own layout seed.
const GUEST_LABEL: [u8; 12] = *b"guest layout";

/// What the rest of the VMM needs to know of a machine that is ready to start.
#[derive(Clone, Debug)]
pub(crate) struct Boot {
    pub layout: Layout,
    /// Guest-physical address of the sync page.
    pub sync_page: u64,
    /// Guest-physical address of the boot block.
    pub block: u64,
    /// Kernel image and boot block with page tables, guest-physical.
    pub reserved: Range,
    /// Virtual address of each table, and the table limits.
    pub gdt: (u64, u16),
    pub idt: (u64, u16),
    pub tss: (u64, u32),
    /// Physical address of the top-level page table.
    pub page_table_root: u64,
    pub entry: u64,
    pub stack: u64,
    pub info: u64,
    pub syscall_entry: u64,
    pub spin: u64,
    /// Virtual address of the frame that an exception at CPL 3 leaves, and that one that comes to a debugger does.
    pub exception_frame: u64,
    pub debug_frame: u64,
    /// Guest-physical address of the IDT.
    pub idt_block: u64,
    /// Virtual address of the handler of vector 0, and the distance between handlers.
    pub vectors: (u64, u64),
}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Info(BootInfo);
// SAFETY: `BootInfo` is `repr(C)`, consists of integers only, and its fields leave no padding (asserted below).
unsafe impl ByteValued for Info {}
const _: () = assert!(
    size_of::<BootInfo>()
        == 8 + 2 * 4
            + (MAX_RAM_RANGES + 2) * 16
            + size_of::<Layout>()
            + 4 * 8
            + 8
            + 32
            + 4 * 8
            + 4 * 4
            + MAX_CPUID_LEAVES * size_of::<CpuidLeaf>()
            + (3 + MAX_GROUPS) * 4
);

/// Puts kernel and boot block into guest memory.
pub(crate) fn prepare(
    config: &MachineConfig,
    memory: &GuestMemory,
    cpuid: &CpuId,
) -> Result<Boot, MachineError> {
    let kernel = Kernel::parse(&config.kernel)?;
    let ram_end = memory
        .ranges
        .last()
        .map_or(0, |range| range.start + range.len);
    let request = LayoutRequest {
        kind: config.layout,
        layout_seed: config.layout_seed,
        input_seed: config.input_seed,
        kernel_bytes: kernel.len,
        boot_bytes: MAPPED_BYTES,
        ram_end,
        image_bytes: memory.image.len,
    };
    let layout = request.generate()?;
    let fixed = areas(&layout, memory);
    let own = |kernel_at: u64| {
        kernel
            .areas(layout.kernel, kernel_at)
            .chain(boot_areas(layout.boot, kernel_at + kernel.len))
    };
    // How much memory it takes does not depend on where it is.
    let all: Vec<Area> = fixed.iter().copied().chain(own(0)).collect();
    let needed = kernel.len + MAPPED_BYTES + table_bytes(&all);
    let kernel_at = place_kernel(&request, memory.low_end(), needed)?;
    let block = kernel_at + kernel.len;

    kernel.load(&memory.ram, kernel_at)?;
    let mut tables = PageTables::new(&memory.ram, block + MAPPED_BYTES, kernel_at + needed);
    for area in fixed.iter().copied().chain(own(kernel_at)) {
        tables.map(&area)?;
    }
    let header = &kernel.header;
    let boot = Boot {
        layout,
        sync_page: block + at::SYNC,
        block,
        reserved: Range {
            start: kernel_at,
            len: tables.used_end() - kernel_at,
        },
        gdt: (layout.boot + at::GDT, (GDT_ENTRIES * 8 - 1) as u16),
        idt: (layout.boot + at::IDT, (VECTORS * 16 - 1) as u16),
        tss: (layout.boot + at::TSS, (TSS_BYTES + BITMAP_BYTES - 1) as u32),
        page_table_root: tables.root(),
        entry: layout.kernel + header.entry,
        // As after a call: the ABI wants rsp + 8 to be a multiple of 16 at a function's entry.
        stack: layout.boot + at::BOOT_STACK_TOP - 8,
        info: layout.boot + at::INFO,
        syscall_entry: layout.kernel + header.syscall_entry,
        spin: layout.kernel + header.spin,
        exception_frame: layout.boot + at::MONITOR_STACK_TOP - 40,
        debug_frame: layout.boot + at::DEBUG_STACK_TOP - 40,
        idt_block: block + at::IDT,
        vectors: (layout.kernel + header.vectors, header.vector_stride.into()),
    };
    write_tables(&memory.ram, &boot)?;
    write_info(config, memory, &request, &boot, cpuid)?;
    Ok(boot)
}

/// Draws a 2 MiB aligned place in low RAM. The first 2 MiB stay free.
fn place_kernel(request: &LayoutRequest, low_end: u64, needed: u64) -> Result<u64, MachineError> {
    let places = low_end
        .checked_sub(needed + LARGE_PAGE)
        .map(|room| room / LARGE_PAGE + 1);
    let places = places.ok_or(MachineError::MemoryTooSmall {
        given: low_end,
        needed: (needed + LARGE_PAGE).next_multiple_of(LARGE_PAGE),
    })?;
    let choice = SeedStream::new(request.seed(), PHYSICAL_LABEL)
        .next_u64()
        .ok_or(crate::layout::LayoutError::Seed)?;
    Ok(LARGE_PAGE + choice % places * LARGE_PAGE)
}

/// Everything that is mapped, but for kernel and boot block.
fn areas(layout: &Layout, memory: &GuestMemory) -> Vec<Area> {
    let mut areas: Vec<Area> = memory
        .ranges
        .iter()
        .map(|ram| Area::large(layout.direct + ram.start, ram.start, ram.len, Rights::Write))
        .collect();
    if memory.image.len != 0 {
        let len = memory.image.len.next_multiple_of(LARGE_PAGE);
        areas.push(Area::large(
            layout.image,
            memory.image.start,
            len,
            Rights::Read,
        ));
    }
    let windows = map::MMIO_SLOTS * map::MMIO_STRIDE;
    areas.push(Area::small(
        layout.devices,
        map::MMIO_BASE,
        windows,
        Rights::Write,
    ));
    areas
}

/// The mapped part of the boot block. What the processor and the kernel only read is read-only.
fn boot_areas(virt: u64, phys: u64) -> impl Iterator<Item = Area> {
    let parts = [
        (at::GDT, at::INFO, Rights::Read),
        (at::INFO, at::SYNC, Rights::Read),
        (at::SYNC, at::SCRATCH, Rights::Write),
        (at::SCRATCH, at::SCRATCH + PAGE_SIZE, Rights::Write),
        (at::MONITOR_STACK, at::MONITOR_STACK_TOP, Rights::Write),
        (at::FAULT_STACK, at::FAULT_STACK_TOP, Rights::Write),
        (at::BOOT_STACK, at::BOOT_STACK_TOP, Rights::Write),
        (at::STRINGS, at::END, Rights::Read),
    ];
    parts.into_iter().map(move |(start, end, rights)| {
        Area::small(virt + start, phys + start, end - start, rights)
    })
}

/// GDT, TSS and IDT (Intel SDM volume 3, 3.4.5, 7.7 and 6.14.1).
fn write_tables(ram: &Ram, boot: &Boot) -> Result<(), MachineError> {
    // Descriptors with the accessed bit set: the page is read-only, and the processor would want to set it.
    const CODE64: u64 = 0x00af_9b00_0000_ffff;
    const CODE32: u64 = 0x00cf_9b00_0000_ffff;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    const DPL3: u64 = 3 << 45;
    const BUSY_TSS: u64 = 0x8b << 40;
    let mut gdt = [0_u64; GDT_ENTRIES];
    let (tss, limit) = boot.tss;
    let entries = [
        (selector::CODE0, CODE64),
        (selector::DATA0, DATA),
        (selector::CODE3_32, CODE32 | DPL3),
        (selector::DATA3, DATA | DPL3),
        (selector::CODE3, CODE64 | DPL3),
        (
            selector::TSS,
            BUSY_TSS | u64::from(limit) | (tss & 0xff_ffff) << 16 | (tss >> 24 & 0xff) << 56,
        ),
        (selector::TSS + 8, tss >> 32),
    ];
    for (selector, entry) in entries {
        gdt[usize::from(selector / 8)] = entry;
    }
    let base = boot.layout.boot;
    let mut tss = [0_u8; TSS_BYTES + BITMAP_BYTES];
    tss[4..12].copy_from_slice(&(base + at::MONITOR_STACK_TOP).to_le_bytes()); // RSP0
    tss[36..44].copy_from_slice(&(base + at::FAULT_STACK_TOP).to_le_bytes()); // IST1
    tss[44..52].copy_from_slice(&(base + at::DEBUG_STACK_TOP).to_le_bytes()); // IST2
    tss[102..104].copy_from_slice(&(TSS_BYTES as u16).to_le_bytes());
    // CPL 3 may use the two 32-bit ports of the sync device, the flight recorder's, and no others, wherever IOPL 3 (`vcpu.rs`) is not kept.
    let bitmap = &mut tss[TSS_BYTES..];
    bitmap.fill(0xff);
    for first in [SYNC_PORT, MONITOR_PANIC_PORT, STOP_PORT] {
        for port in usize::from(first)..usize::from(first) + 4 {
            bitmap[port / 8] &= !(1 << (port % 8));
        }
    }

    let mut idt = [0_u64; 2 * VECTORS as usize];
    for vector in 0..VECTORS {
        let handler = boot.vectors.0 + vector * boot.vectors.1;
        let at = 2 * vector as usize;
        idt[at..at + 2].copy_from_slice(&gate(vector, handler));
    }
    write(
        ram,
        boot.block + at::GDT,
        gdt.map(u64::to_le_bytes).as_flattened(),
    )?;
    write(ram, boot.block + at::TSS, &tss)?;
    write(
        ram,
        boot.block + at::IDT,
        idt.map(u64::to_le_bytes).as_flattened(),
    )
}

/// The IDT's entry of a vector.
fn gate(vector: u64, handler: u64) -> [u64; 2] {
    // NMI, double fault and machine check may come when the monitor's stack is in use or gone.
    let ist = u64::from(matches!(vector, 2 | 8 | 18));
    gate_on(vector, handler, ist)
}

/// The IDT's entry of #BP or #DB, for a debugger.
pub(crate) fn debug_gate(vector: u64, handler: u64) -> [u64; 2] {
    gate_on(vector, handler, 2)
}

/// The IDT's entry of #PF, for a debugger that hands it on to the kernel.
pub(crate) fn passing_gate(vector: u64, handler: u64) -> [u64; 2] {
    gate_on(vector, handler, 0)
}

fn gate_on(vector: u64, handler: u64, ist: u64) -> [u64; 2] {
    // Interrupt gate, present. `int3` and `into` must be callable from CPL 3.
    let dpl = if matches!(vector, 3 | 4) { 3_u64 } else { 0 };
    let low = handler & 0xffff
        | u64::from(selector::CODE0) << 16
        | ist << 32
        | (0x8e | dpl << 5) << 40
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

fn write_info(
    config: &MachineConfig,
    memory: &GuestMemory,
    request: &LayoutRequest,
    boot: &Boot,
    cpuid: &CpuId,
) -> Result<(), MachineError> {
    let program = &config.program;
    let mut leaves = [CpuidLeaf::default(); MAX_CPUID_LEAVES];
    let cpuid = cpuid.as_slice();
    for (to, from) in leaves.iter_mut().zip(cpuid) {
        *to = CpuidLeaf {
            function: from.function,
            index: from.index,
            registers: [from.eax, from.ebx, from.ecx, from.edx],
        };
    }
    let strings = strings(program)?;
    write(&memory.ram, boot.block + at::STRINGS, &strings)?;
    let mut ram = [Range::default(); MAX_RAM_RANGES];
    for (to, from) in ram.iter_mut().zip(&memory.ranges) {
        *to = *from;
    }
    let mut layout_seed = [0; 32];
    if !SeedStream::new(request.seed(), GUEST_LABEL).fill(&mut layout_seed) {
        return Err(crate::layout::LayoutError::Seed.into());
    }
    let base = boot.layout.boot;
    let info = BootInfo {
        magic: BOOT_MAGIC,
        abi_version: ABI_VERSION,
        ram_ranges: memory.ranges.len() as u32,
        ram,
        reserved: boot.reserved,
        layout: boot.layout,
        page_table_root: boot.page_table_root,
        image: memory.image,
        sync_page: base + at::SYNC,
        monitor_stack_top: base + at::MONITOR_STACK_TOP,
        monitor_scratch: base + at::SCRATCH,
        devices: DeviceSet::slots(config.disks.len()),
        layout_seed,
        monotonic_ns: config.start.monotonic_ns,
        realtime_ns: config.start.realtime_ns,
        strings: base + at::STRINGS,
        strings_len: strings.len() as u64,
        argc: program.argv.len() as u32,
        envc: program.envp.len() as u32,
        uid: program.uid,
        gid: program.gid,
        cpuid: leaves,
        cpuid_leaves: cpuid.len().min(MAX_CPUID_LEAVES) as u32,
        mounts: program.mounts.len() as u32,
        group_count: program.groups.len().min(MAX_GROUPS) as u32,
        groups: std::array::from_fn(|i| program.groups.get(i).copied().unwrap_or(0)),
    };
    write(&memory.ram, boot.block + at::INFO, Info(info).as_slice())
}

/// Arguments, environment, working directory, host name and mounts, each with a NUL behind it.
fn strings(program: &ProgramSpec) -> Result<Vec<u8>, MachineError> {
    if program.argv.is_empty() {
        return Err(MachineError::NoProgram);
    }
    let mut bytes = Vec::new();
    let all = program.argv.iter().chain(&program.envp);
    let mounts = program.mounts.iter().flat_map(|mount| {
        let Mount {
            target,
            kind,
            source,
            options,
        } = mount;
        [target, kind, source, options]
    });
    for string in all.chain([&program.cwd, &program.hostname]).chain(mounts) {
        if string.contains('\0') {
            return Err(MachineError::StringWithNul(string.clone()));
        }
        bytes.extend_from_slice(string.as_bytes());
        bytes.push(0);
    }
    if bytes.len() > MAX_STRINGS {
        return Err(MachineError::StringsTooLong(bytes.len()));
    }
    Ok(bytes)
}

fn write(ram: &Ram, addr: u64, bytes: &[u8]) -> Result<(), MachineError> {
    ram.write_slice(bytes, GuestAddress(addr))
        .map_err(|_| MachineError::Access(addr))
}

/// The frame that an exception at CPL 3 left at the top of the monitor's stack: rip, cs, rflags, rsp, ss.
pub(crate) fn exception_frame(ram: &Ram, boot: &Boot) -> Option<[u64; 5]> {
    ram.read_obj(exception_frame_address(boot)).ok()
}

/// Where that frame is; an error code, if there is one, lies in the eight bytes before.
pub(crate) fn exception_frame_address(boot: &Boot) -> GuestAddress {
    GuestAddress(boot.block + at::MONITOR_STACK_TOP - 40)
}
