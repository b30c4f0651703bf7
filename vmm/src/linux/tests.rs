//! The loader: what it puts where, and what it refuses.

use super::config::{LinuxConfig, LinuxConsole};
use super::exchange::{Exchange, Exchanged};
use super::fault::LinuxFault;
use super::loader::{Entry, KernelSeeds, load};
use super::machine::LinuxMachine;
use super::map::{
    ACPI, COMMAND_LINE, HIGH, LOW_END, PAGE_TABLES, SETUP_DATA, START_INFO, ZERO_PAGE,
};
use super::ports::{Asked, Ports, SERIAL_INPUT};
use super::shared::event;
use crate::error::MachineError;
use crate::memory::GuestMemory;
use crate::probe::ProbeReport;
use proptest::prelude::*;
use quorate_devices::{DiskReads, Output};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

const MEMORY: u64 = 64 << 20;
/// Where the kernels of these tests want to be, and how much they need there.
const START: u64 = 16 << 20;
const NEEDED: u64 = 8 << 20;

/// A bzImage without a kernel: setup sectors with a header, then some bytes.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 5 * 512 + 4096];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[4]); // Setup sectors.
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]); // Loaded high.
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x234, &[1]); // Relocatable.
    put(0x236, &3_u16.to_le_bytes()); // xloadflags
    put(0x238, &2047_u32.to_le_bytes()); // cmdline_size
    put(0x258, &START.to_le_bytes());
    put(0x260, &(NEEDED as u32).to_le_bytes());
    put(5 * 512, b"the kernel");
    file
}

/// An ELF kernel of one segment, with or without a PVH note.
fn elf(pvh: bool) -> Vec<u8> {
    let mut file = vec![0; 0x2000];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &START.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, if pvh { 2 } else { 1 }, 0]);
    let load = [0x1000_u64, START, START, 0x100, 0x10_0000, 0x1000];
    put(64, &[1, 0, 0, 0, 5, 0, 0, 0]);
    for (at, word) in (72..).step_by(8).zip(load) {
        put(at, &word.to_le_bytes());
    }
    if pvh {
        put(120, &[4, 0, 0, 0, 4, 0, 0, 0]);
        for (at, word) in (128..).step_by(8).zip([0x800_u64, 0, 0, 20, 20, 4]) {
            put(at, &word.to_le_bytes());
        }
        put(0x800, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
        put(0x80c, b"Xen\0");
        put(0x810, &(START as u32 + 0x40).to_le_bytes());
    }
    put(0x1000, b"the kernel");
    file
}

fn config(kernel: Vec<u8>) -> LinuxConfig {
    LinuxConfig {
        kernel: kernel.into(),
        initramfs: None,
        cmdline: "console=ttyS0".into(),
        memory_bytes: MEMORY,
        cpus: 1,
        console: LinuxConsole::Serial,
        layout_seed: [7; 32],
        input_seed: [0; 32],
        disks: Vec::new(),
    }
}

fn memory() -> GuestMemory {
    GuestMemory::new(MEMORY, None).unwrap()
}

fn word(memory: &GuestMemory, at: u64) -> u64 {
    memory.ram.read_obj(GuestAddress(at)).unwrap()
}

fn bytes(memory: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn refused(config: &LinuxConfig) -> LinuxFault {
    match load(config, &memory(), b"") {
        Err(MachineError::Linux(fault)) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bzimage_gets_a_zero_page_as_the_boot_protocol_says() {
    let memory = memory();
    let mut config = config(bzimage());
    config.initramfs = Some(vec![9; 5000].into());
    let entry = load(&config, &memory, b"RSD PTR ").unwrap();
    assert_eq!(entry, Entry::Long(START + 0x200));
    assert_eq!(bytes(&memory, START, 10), b"the kernel");
    assert_eq!(bytes(&memory, COMMAND_LINE, 14), b"console=ttyS0\0");
    assert_eq!(bytes(&memory, ACPI, 8), b"RSD PTR ");
    // boot.rst and the layout of `struct boot_params`.
    let page = bytes(&memory, ZERO_PAGE, 4096);
    let field = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
    assert_eq!(page[0x1ef], 0, "sentinel");
    assert_eq!(page[0x210], 0xff, "type of loader");
    assert_eq!(u64::from(field(0x228)), COMMAND_LINE);
    assert_eq!(word(&memory, ZERO_PAGE + 0x70), ACPI);
    assert_eq!(word(&memory, ZERO_PAGE + 0x250), SETUP_DATA);
    let (at, len) = (u64::from(field(0x218)), field(0x21c));
    assert_eq!((at % 4096, len), (0, 5000));
    assert_eq!(at, MEMORY - 8192, "as high as it goes");
    assert_eq!(bytes(&memory, at, 5000), [9; 5000]);
    // Memory: without what lies between 640 KiB and 1 MiB.
    assert_eq!(page[0x1e8], 3);
    let map: Vec<(u64, u64, u32)> = (0..3)
        .map(|entry| {
            let at = ZERO_PAGE + 0x2d0 + 20 * entry;
            let kind = memory.ram.read_obj(GuestAddress(at + 16)).unwrap();
            (word(&memory, at), word(&memory, at + 8), kind)
        })
        .collect();
    let ram = [
        (0, LOW_END, 1),
        (ACPI, HIGH - ACPI, 2),
        (HIGH, MEMORY - HIGH, 1),
    ];
    assert_eq!(map, ram);
    // The first GiB is mapped to itself.
    let upper = word(&memory, PAGE_TABLES) & !0xfff;
    let directory = word(&memory, upper) & !0xfff;
    for page in [0, 1, 511] {
        assert_eq!(word(&memory, directory + 8 * page), page << 21 | 0x83);
    }
}

#[test]
fn the_seed_goes_into_the_zero_page_and_to_the_random_number_generator() {
    let found = |seed| {
        let memory = memory();
        let mut config = config(bzimage());
        config.layout_seed = [seed; 32];
        load(&config, &memory, b"").unwrap();
        let head = (word(&memory, SETUP_DATA), word(&memory, SETUP_DATA + 8));
        assert_eq!(
            head,
            (0, 32 << 32 | 9),
            "last of the list, SETUP_RNG_SEED, 32 bytes"
        );
        (
            bytes(&memory, ZERO_PAGE, 4096),
            bytes(&memory, SETUP_DATA + 16, 32),
        )
    };
    let (first, second, again) = (found(1), found(2), found(1));
    assert_eq!(first, again);
    assert_ne!(first.0, second.0, "what the decompressor hashes");
    assert_ne!(first.1, second.1);
    let seeds = KernelSeeds::of(&[1; 32]);
    assert_eq!(first.1, seeds.random);
    assert_ne!(seeds.random, seeds.placement);
}

#[test]
fn an_elf_kernel_with_a_note_is_started_by_pvh_and_without_one_in_64_bit_mode() {
    let memory = memory();
    let mut config = config(elf(true));
    config.initramfs = Some(vec![9; 100].into());
    let entry = load(&config, &memory, b"").unwrap();
    assert_eq!(entry, Entry::Pvh(START + 0x40));
    assert_eq!(word(&memory, START_INFO), 1 << 32 | 0x336e_c578);
    let modules = word(&memory, START_INFO + 16);
    assert_eq!(word(&memory, modules), MEMORY - 4096);
    assert_eq!(word(&memory, modules + 8), 100);
    assert_eq!(word(&memory, START_INFO + 24), COMMAND_LINE);
    assert_eq!(word(&memory, START_INFO + 32), ACPI);
    let map = word(&memory, START_INFO + 40);
    assert_eq!(word(&memory, START_INFO + 48), 3);
    assert_eq!((word(&memory, map), word(&memory, map + 8)), (0, LOW_END));

    config.kernel = elf(false).into();
    let memory = self::memory();
    assert_eq!(load(&config, &memory, b"").unwrap(), Entry::Long(START));
    assert_eq!(bytes(&memory, ZERO_PAGE + 0x202, 4), b"HdrS");
}

#[test]
fn what_is_no_kernel_is_refused_and_says_why() {
    for file in [&b""[..], b"#!/bin/sh\n", &[0; 4096], &bzimage()[..0x210]] {
        assert_eq!(refused(&config(file.into())), LinuxFault::NotAKernel);
    }
    let change = |at: usize, to: &[u8]| {
        let mut file = bzimage();
        file[at..at + to.len()].copy_from_slice(to);
        refused(&config(file))
    };
    assert!(matches!(change(0x211, &[0]), LinuxFault::Unsuitable(_)));
    assert!(matches!(change(0x206, &[4, 2]), LinuxFault::Unsuitable(_)));
    assert!(matches!(change(0x236, &[0]), LinuxFault::Unsuitable(_)));
    assert!(matches!(change(0x234, &[0]), LinuxFault::Unsuitable(_)));
    for to in [&(MEMORY).to_le_bytes(), &u64::MAX.to_le_bytes(), &[0; 8]] {
        assert!(matches!(
            change(0x258, to),
            LinuxFault::KernelTooLarge { .. }
        ));
    }
    let mut arm = elf(true);
    arm[18] = 183;
    assert!(matches!(refused(&config(arm)), LinuxFault::Unsuitable(_)));
    let mut cut = elf(true);
    cut.truncate(0x1080);
    assert!(matches!(refused(&config(cut)), LinuxFault::Damaged(_)));
}

#[test]
fn command_line_and_initramfs_have_limits() {
    let mut long = config(bzimage());
    long.cmdline = "x".repeat(2048);
    let (bytes, limit) = (2048, 2047);
    assert_eq!(
        refused(&long),
        LinuxFault::CommandLineTooLong { bytes, limit }
    );
    long.cmdline.pop();
    load(&long, &memory(), b"").unwrap();
    long.cmdline = "a\0b".into();
    assert_eq!(refused(&long), LinuxFault::CommandLineCharacter('\0'));
    let mut large = config(bzimage());
    let room = MEMORY - START - NEEDED;
    large.initramfs = Some(vec![1; room as usize].into());
    load(&large, &memory(), b"").unwrap();
    large.initramfs = Some(vec![1; room as usize + 1].into());
    let bytes = room + 1;
    assert_eq!(
        refused(&large),
        LinuxFault::InitramfsTooLarge { bytes, room }
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// R9, for files: whatever a kernel file says, the answer is a kernel or an error.
    #[test]
    fn garbage_is_loaded_or_refused_and_never_panics(
        which in 0..3_u8,
        changes in prop::collection::vec((prop_oneof![0x1f1..0x268_usize, 0..0xb0_usize, 0x800..0x818_usize], any::<u8>()), 1..12),
        cut in prop::option::of(0..0x2000_usize),
    ) {
        let mut file = match which { 0 => bzimage(), 1 => elf(true), _ => elf(false) };
        for (at, value) in changes {
            file[at] = value;
        }
        file.truncate(cut.unwrap_or(usize::MAX));
        let _ = load(&config(file), &memory(), b"");
    }
}

#[test]
fn the_serial_port_works_both_ways_and_waits_for_the_guest() {
    let line = event().unwrap();
    let mut ports = Ports::new(line.try_clone().unwrap());
    assert_eq!(ports.write(0x3f8, b"a"), Asked::Output);
    assert_eq!(
        ports.write(0x3f8, b"b"),
        Asked::Nothing,
        "somebody was told already"
    );
    assert_eq!(ports.take_output(), b"ab");
    // Interrupts on for data that were received.
    ports.write(0x3f9, &[1]);
    let typed: Vec<u8> = (0..=255).cycle().take(1000).collect();
    ports.input(&typed);
    assert!(line.read().is_ok());
    let mut read = Vec::new();
    for _ in 0..1000 {
        let state = ports.save();
        assert!(ports.restore(&state), "at any moment");
        let mut byte = [0];
        ports.read(0x3fd, &mut byte);
        assert_eq!(byte[0] & 1, 1, "data ready");
        ports.read(0x3f8, &mut byte);
        read.push(byte[0]);
    }
    assert_eq!(read, typed);
    ports.input(&vec![0; 2 * SERIAL_INPUT]);
    assert!(ports.save().input.len() <= SERIAL_INPUT, "R10");
}

#[test]
fn power_off_reset_and_the_programs_status_are_asked_for_by_ports() {
    let mut ports = Ports::new(event().unwrap());
    assert_eq!(ports.write(0x600, &[0x34]), Asked::PowerOff);
    assert_eq!(ports.write(0x600, &[1]), Asked::Reset);
    assert_eq!(ports.write(0x64, &[0xfe]), Asked::Reset);
    for (port, data) in [
        (0x600, &[0][..]),
        (0x64, &[0xd1]),
        (0x80, &[0]),
        (0x600, &[1, 0]),
    ] {
        assert_eq!(ports.write(port, data), Asked::Nothing, "{port:#x}");
    }
    assert_eq!(ports.take_status(), None);
    assert_eq!(ports.write(0xf4, &3_u32.to_le_bytes()), Asked::Output);
    assert_eq!(ports.write(0xf4, &4_u32.to_le_bytes()), Asked::Output);
    assert_eq!(
        (ports.take_status(), ports.take_status()),
        (Some(3 << 8), None)
    );
    let mut data = [0; 4];
    ports.read(0xcfc, &mut data);
    assert_eq!(data, [0xff; 4], "no PCI");
}

#[test]
fn a_host_that_interprets_ring_0_is_refused_in_one_line() {
    let mut report = ProbeReport {
        cpl3_mips: 6000.0,
        cpl0_mips: 1.35,
        exit_ns: 0.0,
        syscall_ns: 0.0,
        syscall_cpl: 3,
        fsgsbase: true,
        cpuid_kept: false,
        cpuid_trappable: true,
        took_ms: 0.0,
    };
    let line = super::refusal(&report).unwrap();
    assert!(!line.contains('\n') && line.contains("make svm"));
    report.cpl0_mips = 5900.0;
    assert_eq!(super::refusal(&report), None);
}

/// A world that fails.
struct Panics;

impl Exchange for Panics {
    fn exchange(&mut self, _: Vec<Output>) -> Result<Exchanged, String> {
        panic!("expected in this test");
    }

    fn reads(&mut self) -> &mut dyn DiskReads {
        panic!("nothing is read")
    }
}

#[test]
fn a_panic_of_the_worlds_side_leaves_no_processor_running() {
    let mut kernel = elf(false);
    // A processor that never leaves by itself: `jmp` to itself.
    kernel[0x1000..0x1002].copy_from_slice(&[0xeb, 0xfe]);
    let mut machine = LinuxMachine::new(&crate::open_kvm().unwrap(), &config(kernel)).unwrap();
    let (done, waits) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let run = std::panic::AssertUnwindSafe(|| machine.run(&mut Panics));
        let _ = done.send(std::panic::catch_unwind(run).is_err());
    });
    // Without the guard the run would wait for its processors for ever.
    let limit = std::time::Duration::from_secs(60);
    assert_eq!(waits.recv_timeout(limit), Ok(true));
}

/// Sharing a kernel between machines costs nothing.
#[test]
fn configurations_share_their_files() {
    let config = config(bzimage());
    let kernel = Arc::clone(&config.clone().kernel);
    assert!(Arc::ptr_eq(&kernel, &config.kernel));
}
