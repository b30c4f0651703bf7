//! Puts a kernel, its initramfs and its command line into guest memory, and what the boot protocol says about them.
//!
//! Two ways in: the 64-bit boot protocol (Linux, Documentation/arch/x86/boot.rst) for a bzImage, or for an ELF file without a PVH note; and
//! PVH (Documentation/arch/x86/boot.rst, xen/include/public/arch-x86/hvm/start_info.h) for an ELF file with one.

use super::config::LinuxConfig;
use super::fault::LinuxFault;
use super::map::{
    ACPI, COMMAND_LINE, COMMAND_LINE_ROOM, GDT, HIGH, LOW_END, PAGE_DIRECTORIES, PAGE_TABLES,
    SETUP_DATA, START_INFO, ZERO_PAGE,
};
use crate::error::MachineError;
use crate::memory::{GuestMemory, Ram};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use quorate_abi::PAGE_SIZE;
use quorate_abi::boot::Range;
use std::io::Cursor;
use vm_memory::{ByteValued, Bytes, GuestAddress};

/// "HdrS" (boot.rst, `header`).
const HEADER_MAGIC: u32 = 0x5372_6448;
/// The first boot protocol with a 64-bit entry point (Linux 3.8).
const PROTOCOL_64: u16 = 0x20c;
/// `xloadflags`: there is a 64-bit entry point at 0x200 behind the start.
const XLF_KERNEL_64: u16 = 1;
/// Distance of that entry point from the start.
const ENTRY_64: u64 = 0x200;
/// `loadflags`: the kernel is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// `type_of_loader`: one without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// Where an ELF kernel without a setup header may have its command line end: what x86 Linux has always taken.
const ELF_COMMAND_LINE: usize = 2047;
/// `struct setup_data` types: a seed for the random number generator (Linux 6.0).
const SETUP_RNG_SEED: u32 = 9;
/// Bytes of the seed.
const SEED: usize = 32;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// How the first processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// In 64-bit mode at this address, with the zero page in RSI.
    Long(u64),
    /// In 32-bit protected mode without paging, with `hvm_start_info` in EBX.
    Pvh(u64),
}

/// Seeds for the guest's kernel, made of the replica's layout seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelSeeds {
    /// Hashed by the decompressor when it looks for a place for the kernel (`arch/x86/boot/compressed/kaslr.c`, `get_boot_seed`).
    pub placement: [u8; SEED],
    /// For the kernel's random number generator.
    pub random: [u8; SEED],
}

impl KernelSeeds {
    pub(crate) fn of(layout_seed: &[u8; 32]) -> Self {
        Self {
            placement: blake3::derive_key("quorate 2026 linux kernel placement", layout_seed),
            random: blake3::derive_key("quorate 2026 linux rng seed", layout_seed),
        }
    }
}

/// Loads everything. `acpi` goes to [`ACPI`].
pub(crate) fn load(
    config: &LinuxConfig,
    memory: &GuestMemory,
    acpi: &[u8],
) -> Result<Entry, MachineError> {
    let ram = &memory.ram;
    let kernel = kernel(&config.kernel, memory)?;
    let limit = match &kernel.header {
        Some(header) => header.cmdline_size as usize,
        None => ELF_COMMAND_LINE,
    };
    command_line(ram, &config.cmdline, limit)?;
    let initramfs = initramfs(config.initramfs.as_deref(), memory, &kernel)?;
    put(ram, ACPI, acpi)?;
    let seeds = KernelSeeds::of(&config.layout_seed);
    match kernel.entry {
        Entry::Pvh(_) => start_info(ram, &memory.ranges, initramfs)?,
        Entry::Long(_) => zero_page(ram, &memory.ranges, &kernel, initramfs, &seeds)?,
    }
    tables(ram)?;
    Ok(kernel.entry)
}

/// A kernel in memory.
struct Kernel {
    entry: Entry,
    /// Of a bzImage.
    header: Option<setup_header>,
    /// First address behind everything that it will use before it reads the memory map.
    end: u64,
}

fn kernel(file: &[u8], memory: &GuestMemory) -> Result<Kernel, MachineError> {
    let found = if file.starts_with(b"\x7fELF") {
        elf(file, memory)
    } else {
        bzimage(file, memory)
    };
    Ok(found?)
}

fn bzimage(file: &[u8], memory: &GuestMemory) -> Result<Kernel, LinuxFault> {
    let header = header(file).ok_or(LinuxFault::NotAKernel)?;
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(LinuxFault::Unsuitable("it is a zImage"));
    }
    if header.version < PROTOCOL_64 || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(LinuxFault::Unsuitable(
            "it has no 64-bit entry point (a 64-bit kernel of Linux 3.8 or later has)",
        ));
    }
    if header.relocatable_kernel == 0 {
        return Err(LinuxFault::Unsuitable(
            "it cannot be relocated (CONFIG_RELOCATABLE)",
        ));
    }
    // What the kernel prefers: there it does not have to move itself out of the way first.
    let start = header.pref_address;
    let end = start.saturating_add(header.init_size.into());
    fits(start, end, memory)?;
    // The compressed kernel is less than what it unpacks to, or its header lies.
    let stored = file.len() as u64;
    fits(start, start.saturating_add(stored), memory)?;
    let mut reader = Cursor::new(file);
    let loaded = BzImage::load(&memory.ram, Some(GuestAddress(start)), &mut reader, None)
        .map_err(|error| LinuxFault::Damaged(error.to_string()))?;
    Ok(Kernel {
        entry: Entry::Long(start + ENTRY_64),
        header: loaded.setup_header,
        end: end.max(loaded.kernel_end),
    })
}

/// The setup header of a bzImage, at 0x1f1 in its file.
fn header(file: &[u8]) -> Option<setup_header> {
    const AT: usize = 0x1f1;
    let mut header = setup_header::default();
    let bytes = header.as_mut_slice();
    bytes.copy_from_slice(file.get(AT..AT + bytes.len())?);
    (header.header == HEADER_MAGIC).then_some(header)
}

fn elf(file: &[u8], memory: &GuestMemory) -> Result<Kernel, LinuxFault> {
    check_elf(file, memory)?;
    let loaded = Elf::load(&memory.ram, None, &mut Cursor::new(file), None)
        .map_err(|error| LinuxFault::Damaged(error.to_string()))?;
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(at) => Entry::Pvh(at.0),
        _ => Entry::Long(loaded.kernel_load.0),
    };
    let (Entry::Pvh(at) | Entry::Long(at)) = entry;
    if !(HIGH..loaded.kernel_end).contains(&at) {
        return Err(LinuxFault::Damaged(format!(
            "its entry point {at:#x} is not in it"
        )));
    }
    Ok(Kernel {
        entry,
        header: None,
        end: loaded.kernel_end,
    })
}

/// What linux-loader takes for granted: the class and machine, and that segments lie within the file and within memory.
fn check_elf(file: &[u8], memory: &GuestMemory) -> Result<(), LinuxFault> {
    const CLASS_64_LITTLE: [u8; 2] = [2, 1];
    const X86_64: u16 = 62;
    const HEADER: usize = 64;
    const PROGRAM_HEADER: u64 = 56;
    const LOAD: u32 = 1;
    const NOTE: u32 = 4;
    let damaged = |what: &str| LinuxFault::Damaged(what.to_owned());
    let head = file.get(..HEADER).ok_or_else(|| damaged("it is cut off"))?;
    if head.get(4..6) != Some(&CLASS_64_LITTLE[..]) || half(head, 18) != X86_64 {
        return Err(LinuxFault::Unsuitable("it is not for 64-bit x86"));
    }
    let (at, count) = (wide(head, 32), u64::from(half(head, 56)));
    let mut any = false;
    for index in 0..count {
        let header = at
            .checked_add(index * PROGRAM_HEADER)
            .and_then(|at| slice(file, at, PROGRAM_HEADER))
            .ok_or_else(|| damaged("its program headers are cut off"))?;
        let kind = wide(header, 0) as u32;
        if kind != LOAD && kind != NOTE {
            continue;
        }
        let (offset, to) = (wide(header, 8), wide(header, 24));
        let (stored, size) = (wide(header, 32), wide(header, 40));
        if slice(file, offset, stored).is_none() {
            return Err(damaged("a segment is cut off"));
        }
        if kind == LOAD {
            any = true;
            let end = to.checked_add(size.max(stored));
            fits(to, end.unwrap_or(u64::MAX), memory)?;
        }
    }
    if any {
        Ok(())
    } else {
        Err(damaged("it has nothing to load"))
    }
}

fn slice(file: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    file.get(at..at.checked_add(usize::try_from(len).ok()?)?)
}

/// A little-endian field; `at` is a constant within `bytes`.
fn wide(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Requires that `[start, end)` is RAM above [`HIGH`] and below the hole for devices.
fn fits(start: u64, end: u64, memory: &GuestMemory) -> Result<(), LinuxFault> {
    let low_end = memory.low_end();
    if start >= HIGH && start <= end && end <= low_end {
        return Ok(());
    }
    Err(LinuxFault::KernelTooLarge {
        at: start,
        needed: end.saturating_sub(start),
        have: low_end.saturating_sub(start.max(HIGH)),
    })
}

fn command_line(ram: &Ram, line: &str, limit: usize) -> Result<(), MachineError> {
    // Line ends and the like would be shown as part of an argument; only NUL would cut it off silently.
    if let Some(bad) = line.chars().find(|&c| c == '\0' || c == '\n') {
        return Err(LinuxFault::CommandLineCharacter(bad).into());
    }
    let limit = limit.min(COMMAND_LINE_ROOM - 1);
    if line.len() > limit {
        let bytes = line.len();
        return Err(LinuxFault::CommandLineTooLong { bytes, limit }.into());
    }
    put(ram, COMMAND_LINE, line.as_bytes())?;
    put(ram, COMMAND_LINE + line.len() as u64, &[0])
}

/// Puts the initramfs as high as the kernel allows, out of the way of whatever the kernel unpacks. Returns where; empty if there is none.
fn initramfs(
    file: Option<&[u8]>,
    memory: &GuestMemory,
    kernel: &Kernel,
) -> Result<Range, MachineError> {
    let Some(file) = file.filter(|file| !file.is_empty()) else {
        return Ok(Range::default());
    };
    let bytes = file.len() as u64;
    // boot.rst: `initrd_addr_max` is the last address that it may have.
    let highest = kernel.header.map_or(u64::from(u32::MAX), |header| {
        u64::from(header.initrd_addr_max)
    });
    let end = memory.low_end().min(highest.saturating_add(1));
    let room = end.saturating_sub(kernel.end.next_multiple_of(PAGE_SIZE));
    let start = end
        .checked_sub(bytes)
        .map(|start| start & !(PAGE_SIZE - 1))
        .filter(|&start| start >= kernel.end)
        .ok_or(LinuxFault::InitramfsTooLarge { bytes, room })?;
    put(&memory.ram, start, file)?;
    Ok(Range { start, len: bytes })
}

/// The memory map: RAM without what a BIOS keeps for itself, where the ACPI tables are.
fn memory_map(ranges: &[Range]) -> Vec<(u64, u64, u32)> {
    let mut map = vec![(0, LOW_END, E820_RAM), (ACPI, HIGH - ACPI, E820_RESERVED)];
    for range in ranges {
        let start = range.start.max(HIGH);
        let end = range.start + range.len;
        if end > start {
            map.push((start, end - start, E820_RAM));
        }
    }
    map
}

fn zero_page(
    ram: &Ram,
    ranges: &[Range],
    kernel: &Kernel,
    initramfs: Range,
    seeds: &KernelSeeds,
) -> Result<(), MachineError> {
    let mut params = boot_params::default();
    if let Some(header) = kernel.header {
        params.hdr = header;
    } else {
        params.hdr.header = HEADER_MAGIC;
        params.hdr.boot_flag = 0xaa55;
        params.hdr.kernel_alignment = 0x20_0000;
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    // Both below 4 GiB: RAM that they can be in is below 3 GiB.
    params.hdr.ramdisk_image = initramfs.start as u32;
    params.hdr.ramdisk_size = initramfs.len as u32;
    params.hdr.setup_data = SETUP_DATA;
    params.acpi_rsdp_addr = ACPI;
    let map = memory_map(ranges);
    for (to, &(addr, size, r#type)) in params.e820_table.iter_mut().zip(&map) {
        *to = boot_e820_entry { addr, size, r#type };
    }
    params.e820_entries = map.len() as u8;
    // Nobody reads this field, but it is part of what the decompressor hashes when it looks for a place for the kernel.
    for (to, from) in params._pad9.iter_mut().zip(seeds.placement) {
        *to = from;
    }
    put(ram, ZERO_PAGE, params.as_slice())?;
    let mut data = Vec::new();
    data.extend_from_slice(&0_u64.to_le_bytes()); // The last of the list.
    data.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    data.extend_from_slice(&(SEED as u32).to_le_bytes());
    data.extend_from_slice(&seeds.random);
    put(ram, SETUP_DATA, &data)
}

fn start_info(ram: &Ram, ranges: &[Range], initramfs: Range) -> Result<(), MachineError> {
    const MAGIC: u32 = 0x336e_c578;
    const MODULES: u64 = START_INFO + 0x100;
    const MAP: u64 = START_INFO + 0x200;
    let map = memory_map(ranges);
    let mut info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: ACPI,
        memmap_paddr: MAP,
        memmap_entries: map.len() as u32,
        ..hvm_start_info::default()
    };
    if initramfs.len > 0 {
        info.nr_modules = 1;
        info.modlist_paddr = MODULES;
        let module = hvm_modlist_entry {
            paddr: initramfs.start,
            size: initramfs.len,
            ..hvm_modlist_entry::default()
        };
        put(ram, MODULES, module.as_slice())?;
    }
    put(ram, START_INFO, info.as_slice())?;
    for (index, (addr, size, type_)) in (0..).zip(map) {
        let entry = hvm_memmap_table_entry {
            addr,
            size,
            type_,
            reserved: 0,
        };
        put(
            ram,
            MAP + index * size_of_val(&entry) as u64,
            entry.as_slice(),
        )?;
    }
    Ok(())
}

/// Segment descriptors and page tables. boot.rst, "64-bit boot protocol": `__BOOT_CS` is selector 0x10, `__BOOT_DS` 0x18, flat; all
/// that the loader made is identity-mapped.
fn tables(ram: &Ram) -> Result<(), MachineError> {
    const PRESENT_WRITABLE: u64 = 1 | 1 << 1;
    const LARGE: u64 = 1 << 7;
    const LARGE_PAGE: u64 = 2 << 20;
    let mut gdt = Vec::new();
    for descriptor in GDT_ENTRIES {
        gdt.extend_from_slice(&descriptor.to_le_bytes());
    }
    put(ram, GDT, &gdt)?;
    let (upper, directories) = (PAGE_TABLES + PAGE_SIZE, PAGE_TABLES + 2 * PAGE_SIZE);
    put(ram, PAGE_TABLES, &(upper | PRESENT_WRITABLE).to_le_bytes())?;
    for index in 0..PAGE_DIRECTORIES {
        let directory = directories + index * PAGE_SIZE;
        let entry = directory | PRESENT_WRITABLE;
        put(ram, upper + index * 8, &entry.to_le_bytes())?;
        let pages = (0..512).flat_map(|page| {
            let addr = (index * 512 + page) * LARGE_PAGE;
            (addr | PRESENT_WRITABLE | LARGE).to_le_bytes()
        });
        put(ram, directory, &pages.collect::<Vec<u8>>())?;
    }
    Ok(())
}

/// Null, unused, code, data, TSS. The code segment is that of the way in: see `vcpu.rs`, which loads the same values into the registers.
pub(crate) const GDT_ENTRIES: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x0000_8b00_0000_0067,
];

fn put(ram: &Ram, at: u64, bytes: &[u8]) -> Result<(), MachineError> {
    ram.write_slice(bytes, GuestAddress(at))
        .map_err(|_| MachineError::Access(at))
}
