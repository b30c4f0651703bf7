//! A machine from its first instruction to each of its ends.

use super::guest::{Does, stub};
use crate::stub::data_address;
use crate::*;
use kvm_ioctls::Kvm;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

pub fn kvm() -> Kvm {
    open_kvm().expect("these tests need /dev/kvm")
}

pub fn config(does: Does) -> MachineConfig {
    MachineConfig {
        kernel: stub(does).elf().into(),
        image: None,
        memory_bytes: 32 << 20,
        layout: LayoutKind::Random,
        layout_seed: [1; 32],
        input_seed: [2; 32],
        program: ProgramSpec {
            argv: vec!["/bin/true".into(), "an argument".into()],
            envp: vec!["PATH=/bin".into()],
            cwd: "/".into(),
            hostname: "quorate".into(),
            uid: 1000,
            gid: 100,
            groups: vec![4, 44],
            mounts: Vec::new(),
        },
        disks: Vec::new(),
        start: StartTime {
            monotonic_ns: 5,
            realtime_ns: 7,
        },
    }
}

pub fn machine(does: Does) -> Machine {
    Machine::new(&kvm(), &config(does)).unwrap()
}

pub fn boundary(outcome: Outcome) -> Boundary {
    match outcome {
        Outcome::Boundary(boundary) => boundary,
        Outcome::Crash(report) => panic!("{report}"),
        other => panic!("{other:?}"),
    }
}

fn crash(outcome: Outcome) -> CrashReport {
    match outcome {
        Outcome::Crash(report) => report,
        other => panic!("{other:?}"),
    }
}

/// The fingerprint of the first boundary: where the guests put their findings.
fn finding(does: Does) -> ([u64; 2], u64) {
    finding_of(&config(does))
}

fn finding_of(config: &MachineConfig) -> ([u64; 2], u64) {
    let mut machine = Machine::new(&kvm(), config).unwrap();
    let boundary = boundary(machine.run());
    match boundary.outputs.as_slice() {
        [Output::Fingerprint { digest, syscalls }] => (*digest, *syscalls),
        other => panic!("{other:?}"),
    }
}

pub fn entry(monotonic_ns: u64) -> Arc<Entry> {
    Arc::new(Entry {
        monotonic_ns,
        realtime_ns: monotonic_ns + 1_000_000,
        flags: monotonic_ns & 1,
        ..Entry::default()
    })
}

#[test]
fn boundaries_return_with_the_reply_visible() {
    let mut machine = machine(Does::Echo);
    let first = boundary(machine.run());
    assert_eq!((first.index, first.wait_until_ns), (0, 0));
    for index in 0..100 {
        machine.resume(&entry(1000 + index), &mut NoDisks).unwrap();
        let next = boundary(machine.run());
        assert_eq!(next.index, index + 1);
        assert_eq!(next.wait_until_ns, 1000 + index);
        let fingerprint = Output::Fingerprint {
            digest: [1_001_000 + index, index & 1],
            syscalls: index,
        };
        assert_eq!(next.outputs, [fingerprint]);
    }
}

#[test]
fn r1_no_run_without_an_entry_and_no_entry_without_a_boundary() {
    let mut machine = machine(Does::Echo);
    assert!(matches!(
        machine.resume(&entry(1), &mut NoDisks),
        Err(MachineError::NotAtBoundary)
    ));
    boundary(machine.run());
    assert_eq!(crash(machine.run()).kind, CrashKind::NotRunnable);
}

#[test]
fn time_never_goes_back() {
    let mut machine = machine(Does::Echo);
    boundary(machine.run());
    for (given, seen) in [(10, 10), (4, 10), (11, 11)] {
        machine.resume(&entry(given), &mut NoDisks).unwrap();
        assert_eq!(boundary(machine.run()).wait_until_ns, seen);
    }
}

#[test]
fn a_spinning_guest_is_kicked_and_can_go_on() {
    let mut machine = machine(Does::Spin);
    for _ in 0..20 {
        let kicker = machine.kicker();
        let other = thread::spawn(move || {
            thread::sleep(Duration::from_millis(1)); // Not needed for the result: whenever the kick comes, it counts.
            kicker.kick();
        });
        assert_eq!(machine.run(), Outcome::Kicked);
        other.join().unwrap();
    }
}

#[test]
fn a_kick_before_the_run_counts_and_kicks_do_not_add_up() {
    let mut machine = machine(Does::Echo);
    let kicker = machine.kicker();
    kicker.kick();
    kicker.kick();
    assert_eq!(machine.run(), Outcome::Kicked);
    boundary(machine.run());
    kicker.kick();
    machine.resume(&entry(1), &mut NoDisks).unwrap();
    assert_eq!(machine.run(), Outcome::Kicked);
    assert_eq!(boundary(machine.run()).wait_until_ns, 1);
    drop(machine);
    kicker.kick(); // Nobody is there any more.
}

#[test]
fn a_thread_that_blocks_signals_can_be_kicked() {
    use vmm_sys_util::signal::{SIGRTMIN, block_signal};
    let mut machine = machine(Does::Spin);
    let kicker = machine.kicker();
    let spinning = thread::spawn(move || {
        block_signal(SIGRTMIN()).unwrap();
        machine.run()
    });
    thread::sleep(Duration::from_millis(20)); // So that the kick most likely finds the guest running.
    kicker.kick();
    assert_eq!(spinning.join().unwrap(), Outcome::Kicked);
}

#[test]
fn kicks_never_get_lost_and_never_change_what_the_guest_sees() {
    const BOUNDARIES: u64 = 300;
    const KICKS: u64 = 8;
    let mut machine = machine(Does::Echo);
    let kicker = machine.kicker();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    // Each boundary allows some kicks more: kicks without end could come faster than this KVM enters a guest, and then the
    // guest would rightly never get anywhere.
    let allowed = Arc::new(std::sync::atomic::AtomicU64::new(KICKS));
    let other = thread::spawn({
        let (done, allowed) = (Arc::clone(&done), Arc::clone(&allowed));
        move || {
            let mut spent = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                if spent < allowed.load(std::sync::atomic::Ordering::Relaxed) {
                    kicker.kick();
                    spent += 1;
                }
                thread::yield_now();
            }
        }
    });
    let mut next = 0;
    let mut kicks = 0;
    while next < BOUNDARIES || kicks < 10 {
        match machine.run() {
            Outcome::Kicked => kicks += 1,
            outcome => {
                let boundary = boundary(outcome);
                assert_eq!(boundary.index, next);
                assert_eq!(
                    boundary.wait_until_ns,
                    if next == 0 { 0 } else { 100 + next - 1 }
                );
                machine.resume(&entry(100 + next), &mut NoDisks).unwrap();
                next += 1;
                allowed.fetch_add(KICKS, std::sync::atomic::Ordering::Relaxed);
            }
        }
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    other.join().unwrap();
}

#[test]
fn r9_garbage_in_the_sync_page_stops_the_replica() {
    for does in [Does::BadOp, Does::BadMagic] {
        let mut machine = machine(does);
        let outcome = machine.run();
        assert!(
            matches!(outcome, Outcome::Misbehaved(DeviceError::Sync(_))),
            "{outcome:?}"
        );
        assert_eq!(crash(machine.run()).kind, CrashKind::NotRunnable);
        assert!(machine.resume(&entry(1), &mut NoDisks).is_err());
    }
}

#[test]
fn r9_garbage_in_a_register_stops_the_replica() {
    let outcome = machine(Does::BadDevice).run();
    assert!(
        matches!(outcome, Outcome::Misbehaved(DeviceError::Register { .. })),
        "{outcome:?}"
    );
}

#[test]
fn an_exit_is_the_last_output() {
    let mut machine = machine(Does::Exit);
    let last = boundary(machine.run());
    assert_eq!(last.outputs.last(), Some(&Output::Exit { status: 42 }));
    assert!(matches!(
        machine.resume(&entry(1), &mut NoDisks),
        Err(MachineError::NotAtBoundary)
    ));
    assert_eq!(crash(machine.run()).kind, CrashKind::NotRunnable);
}

#[test]
fn a_guest_panic_is_reported_in_printable_characters() {
    let report = crash(machine(Does::Panic).run());
    assert_eq!(report.kind, CrashKind::GuestPanic("nos ".into()));
}

#[test]
fn a_crash_is_a_triple_fault_with_registers() {
    let mut machine = machine(Does::Echo);
    boundary(machine.run());
    machine.resume(&entry(1), &mut NoDisks).unwrap();
    machine.crash().unwrap();
    let report = crash(machine.run());
    assert_eq!(report.kind, CrashKind::TripleFault, "{report}");
    assert!(report.registers.is_some());
}

#[test]
fn a_hang_is_injected_after_the_boundary_completes() {
    let mut machine = machine(Does::Echo);
    boundary(machine.run());
    machine.resume(&entry(1), &mut NoDisks).unwrap();
    machine.set_rip_spin().unwrap();
    let kicker = machine.kicker();
    let other = thread::spawn(move || kicker.kick());
    assert_eq!(machine.run(), Outcome::Kicked);
    other.join().unwrap();
    let spin = machine.layout().kernel + stub(Does::Spin).spin;
    assert_eq!(machine.registers().unwrap().rip, spin);
}

#[test]
fn flips_change_one_bit() {
    let mut machine = machine(Does::Echo);
    boundary(machine.run());
    let before = machine.registers().unwrap();
    let register: Register = "r15".parse().unwrap();
    assert_eq!(machine.flip_register(register, 63).unwrap(), (0, 1 << 63));
    let after = machine.registers().unwrap();
    assert_eq!(after.r15, before.r15 ^ 1 << 63);
    let moved = after.rip.wrapping_sub(before.rip);
    assert!(
        moved <= 1,
        "the `out` (one byte long) was completed, no more"
    );
    assert!(matches!(
        machine.flip_register(register, 64),
        Err(MachineError::NoBit(64))
    ));
    assert!("r16".parse::<Register>().is_err());
    assert_eq!(machine.flip_memory(0x1000, 7).unwrap(), (0, 128));
    assert_eq!(machine.flip_memory(0x1000, 7).unwrap(), (128, 0));
    assert!(machine.flip_memory(0x1000, 8).is_err());
    assert!(machine.flip_memory(machine.ram_end(), 0).is_err());
    // The guest goes on as if nothing had happened: it does not use r15.
    machine.resume(&entry(9), &mut NoDisks).unwrap();
    assert_eq!(boundary(machine.run()).wait_until_ns, 9);
}

#[test]
fn syscall_lands_at_the_entry_point() {
    let ([cs, _], rcx_is_right) = finding(Does::Syscall);
    // CPL 0 on Intel and AMD. Where page tables are all that KVM has it is still CPL 3, and the selector that the
    // guest reads is the host's: only the two low bits say where it is.
    assert!(cs == 0x08 || cs & 3 == 3, "cs = {cs:#x}");
    assert_eq!(rcx_is_right, 1);
}

#[test]
fn page_permissions_are_real() {
    const PAGE_FAULT: u32 = 14;
    let faulting = [
        Does::WriteCode,
        Does::ExecuteStack,
        Does::WriteInfo,
        Does::ReadNull,
        Does::StackOverflow,
    ];
    for does in faulting {
        let report = crash(machine(does).run());
        assert_eq!(
            report.kind,
            CrashKind::MonitorPanic(PAGE_FAULT),
            "{does:?}: {report}"
        );
        assert_eq!(report.registers.unwrap().cpl(), 0, "{does:?}");
    }
    assert_eq!(
        data_address(stub(Does::UseData).code.len()),
        4096,
        "the guest's code assumes it"
    );
    assert_eq!(finding(Does::UseData).0, [0x0123_4567_89ab_cdef, 77]);
}

#[test]
fn exceptions_arrive_at_their_vectors() {
    for (does, vector) in [(Does::Undefined, 6), (Does::Halt, 13)] {
        let report = crash(machine(does).run());
        assert_eq!(
            report.kind,
            CrashKind::MonitorPanic(vector),
            "{does:?}: {report}"
        );
        assert!(
            report.text.contains("last exception from CPL 3: rip="),
            "{}",
            report.text
        );
    }
    // The handler returned with `iretq`, and the stack is where it was.
    assert_eq!(finding(Does::Breakpoint), ([0, 0], 33));
}

#[test]
fn unknown_ports_and_addresses_are_crashes() {
    // By IOPL the guest may use all ports, by the bitmap only ours: which of them counts depends on the KVM.
    let report = crash(machine(Does::BadPort).run());
    let unknown = CrashKind::UnexpectedPio {
        port: 0x80,
        len: 1,
        write: true,
    };
    assert!(
        report.kind == unknown || report.kind == CrashKind::MonitorPanic(13),
        "{report}"
    );
    let report = crash(machine(Does::NarrowRing).run());
    assert!(
        matches!(report.kind, CrashKind::UnexpectedPio { len: 2, .. }),
        "{report}"
    );
    let report = crash(machine(Does::Nowhere).run());
    let expected = CrashKind::UnexpectedMmio {
        addr: 0xe000_0008,
        len: 4,
        write: false,
    };
    assert_eq!(report.kind, expected, "{report}");
}

#[test]
fn device_registers_are_reachable() {
    assert_eq!(finding(Does::ReadDevice).0, [0x7472_6976, 1]);
}

#[test]
fn the_guest_never_sees_the_hosts_cpuid() {
    let mut machine = machine(Does::Cpuid);
    if !machine.cpuid_kept().unwrap() {
        // This KVM puts the host's features into the guest's CPUID: it must trap, and the kernel answers.
        let report = crash(machine.run());
        assert_eq!(report.kind, CrashKind::MonitorPanic(13), "{report}");
        return;
    }
    let boundary = boundary(machine.run());
    let Some(Output::Fingerprint {
        digest: [one, _], ..
    }) = boundary.outputs.first()
    else {
        panic!("{boundary:?}");
    };
    let (ecx, edx) = (*one as u32, (*one >> 32) as u32);
    assert_eq!(ecx >> 27 & 1, 0, "osxsave");
    assert_eq!(edx >> 26 & 1, 1, "sse2");
    assert_eq!(edx >> 4 & 1, 0, "tsc");
    assert_eq!(ecx >> 30 & 1, 0, "rdrand");
}

#[test]
fn cpuid_can_be_trapped() {
    let mut machine = machine(Does::Cpuid);
    machine.trap_cpuid().unwrap();
    let report = crash(machine.run());
    assert_eq!(report.kind, CrashKind::MonitorPanic(13), "{report}");
}

#[test]
fn the_kernel_may_set_fs_base_and_use_sse() {
    assert_eq!(finding(Does::FsBase).0[0], 0x1234_5678_9000);
    assert_eq!(finding(Does::Sse).0[0], 14);
}

#[test]
fn memory_on_both_sides_of_the_hole_is_no_burden_until_it_is_used() {
    let mut config = config(Does::UseData);
    config.memory_bytes = 8 << 30;
    let mut machine = Machine::new(&kvm(), &config).unwrap();
    boundary(machine.run());
    assert!(machine.ram_end() > 8 << 30);
    assert!(
        machine.resident_ram() < 64 << 20,
        "{}",
        machine.resident_ram()
    );
    assert!(
        machine.memory_overhead() < 2 << 20,
        "{}",
        machine.memory_overhead()
    );
    assert!(machine.flip_memory(machine.ram_end() - 1, 0).is_ok());
    assert!(machine.flip_memory(0xd000_0000, 0).is_err(), "the hole");
}

#[test]
fn the_image_is_there_read_only() {
    use std::io::Write;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"an image").unwrap();
    let mut config = config(Does::ReadImage);
    config.image = Some(Arc::new(file));
    assert_eq!(finding_of(&config).0[0], u64::from_le_bytes(*b"an image"));
    config.kernel = stub(Does::WriteImage).elf().into();
    let report = crash(Machine::new(&kvm(), &config).unwrap().run());
    assert_eq!(report.kind, CrashKind::MonitorPanic(14), "{report}");
}
