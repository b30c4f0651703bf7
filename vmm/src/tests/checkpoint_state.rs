//! What is in a checkpoint besides memory: the vCPU, devices in the middle of their work, and what it was made from.

use super::checkpoint::{assert_same, go_on, sections, started, work};
use super::guest::{Command, Does, stub};
use super::machine::{boundary, config, entry, kvm};
use crate::*;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuExit;
use quorate_abi::map::{MMIO_BASE, MMIO_STRIDE, SLOT_BLOCK};
use quorate_devices::{BlockStatus, Completion, DiskPosition, Outstanding, Waiting, register};
use std::io::Write;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

/// An MSR that no processor has.
const NO_MSR: u32 = 0x1234_5678;
const LSTAR: u32 = 0xc000_0082;
const KERNEL_GS_BASE: u32 = 0xc000_0102;

fn set_msr(machine: &Machine, index: u32, data: u64) {
    let entry = kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    };
    let msrs = Msrs::from_entries(&[entry]).unwrap();
    assert_eq!(machine.vcpu.set_msrs(&msrs).unwrap(), 1);
}

/// Changes everything in the vCPU that can be told from outside.
fn disturb(machine: &mut Machine) {
    machine.settle().unwrap();
    let vcpu = &machine.vcpu;
    for msr in [LSTAR, KERNEL_GS_BASE, 0x174] {
        set_msr(machine, msr, 0x7000);
    }
    let mut regs = vcpu.get_regs().unwrap();
    (regs.rbx, regs.r15, regs.rip) = (1, 2, 3);
    vcpu.set_regs(&regs).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    (sregs.fs.base, sregs.gs.base, sregs.cr2) = (0x1000, 0x2000, 0x3000);
    sregs.idt.limit = 7;
    vcpu.set_sregs(&sregs).unwrap();
    let mut debug = vcpu.get_debug_regs().unwrap();
    debug.db[0] = 0x4000;
    vcpu.set_debug_regs(&debug).unwrap();
    let mut xsave = vcpu.get_xsave().unwrap();
    // The legacy area: the x87 control word, MXCSR, the first SSE register; then the bits that say they are there.
    xsave.region[0] = 0x027f;
    xsave.region[6] = 0x1fa0;
    xsave.region[40] = 0xdead_beef;
    xsave.region[128] |= 3;
    // SAFETY: No features with a larger state are enabled.
    unsafe { vcpu.set_xsave(&xsave) }.unwrap();
    let mut events = vcpu.get_vcpu_events().unwrap();
    (events.exception.injected, events.exception.nr) = (1, 6);
    vcpu.set_vcpu_events(&events).unwrap();
}

#[test]
fn the_whole_vcpu_comes_back() {
    let mut machine = started(Does::Work);
    machine.settle().unwrap();
    set_msr(&machine, KERNEL_GS_BASE, 0x1234_5000);
    work(&mut machine, Command::Scribble, 3, 99);
    let (first, _) = machine.checkpoint(None).unwrap();
    let seen = work(&mut machine, Command::Scribble, 3, 7);
    assert_ne!(seen[1], 0, "the SSE register is in use");
    machine.restore(&first, Restore::Verified).unwrap();
    let before = sections(&first);
    disturb(&mut machine);
    let disturbed = sections(&machine.dump().unwrap());
    for name in ["regs", "sregs", "xsave", "debugregs", "msrs", "events"] {
        let of = |all: &[(&str, Vec<u8>)]| {
            all.iter()
                .find(|(known, _)| *known == name)
                .unwrap()
                .1
                .clone()
        };
        assert_ne!(of(&before), of(&disturbed), "{name} was not disturbed");
    }
    machine.restore(&first, Restore::Dirty).unwrap();
    for ((name, before), (_, after)) in before.iter().zip(sections(&machine.dump().unwrap())) {
        assert!(*before == after, "{name} differs after the restore");
    }
    assert_eq!(work(&mut machine, Command::Scribble, 3, 7), seen);
}

#[test]
fn an_instruction_that_is_half_done_is_completed_first() {
    let mut machine = Machine::new(&kvm(), &config(Does::ReadDevice)).unwrap();
    // KVM_RUN returns with the first of two register reads: the value is not in the guest's register yet.
    match machine.vcpu.run().unwrap() {
        VcpuExit::MmioRead(addr, data) => machine.devices.mmio_read(addr, data),
        other => panic!("{other:?}"),
    }
    let dump = machine.dump().unwrap();
    assert_eq!(
        dump.registers().rdx,
        0x7472_6976,
        "what was read has arrived"
    );
    let mut other = Machine::new(&kvm(), &config(Does::ReadDevice)).unwrap();
    other.restore(&dump, Restore::Verified).unwrap();
    for machine in [&mut machine, &mut other] {
        let seen = boundary(machine.run()).outputs;
        assert!(
            matches!(
                seen[..],
                [Output::Fingerprint {
                    digest: [0x7472_6976, 1],
                    ..
                }]
            ),
            "{seen:?}"
        );
    }
}

#[test]
fn what_is_half_done_does_not_end_up_in_what_is_restored() {
    let mut machine = Machine::new(&kvm(), &config(Does::ReadDevice)).unwrap();
    let start = machine.dump().unwrap();
    assert!(matches!(
        machine.vcpu.run().unwrap(),
        VcpuExit::MmioRead(..)
    ));
    machine.pristine = false;
    machine.restore(&start, Restore::Verified).unwrap();
    assert_same(&start, &machine.dump().unwrap());
}

#[test]
fn an_msr_that_kvm_refuses_is_an_error_that_names_it() {
    let mut machine = started(Does::Echo);
    let (first, _) = machine.checkpoint(None).unwrap();
    machine.offers.add_msr(NO_MSR);
    let error = machine.checkpoint(Some(&first)).unwrap_err();
    assert!(matches!(error, MachineError::MsrRead(NO_MSR)), "{error}");
    // One in the middle: what comes behind it is not restored either.
    let forged = first.with_msr(NO_MSR);
    let mut other = Machine::new(&kvm(), &config(Does::Echo)).unwrap();
    let error = other.restore(&forged, Restore::Verified).unwrap_err();
    assert!(matches!(error, MachineError::Msr(NO_MSR)), "{error}");
    assert!(error.to_string().contains("0x12345678"), "{error}");
    // Nothing is left half restored: the machine cannot run, until a restore succeeds.
    assert!(matches!(other.run(), Outcome::Crash(_)));
    assert!(other.resume(&entry(1), &mut NoDisks).is_err());
    other.restore(&first, Restore::Verified).unwrap();
    go_on(&mut other, 0, 2);
}

#[test]
fn only_a_machine_at_a_boundary_gives_a_checkpoint() {
    let mut machine = Machine::new(&kvm(), &config(Does::Echo)).unwrap();
    let refused = |machine: &mut Machine| {
        assert!(matches!(
            machine.checkpoint(None),
            Err(MachineError::NotAtBoundary)
        ));
        assert!(!machine.dump().unwrap().at_boundary());
    };
    refused(&mut machine);
    boundary(machine.run());
    let (first, _) = machine.checkpoint(None).unwrap();
    machine.resume(&entry(1), &mut NoDisks).unwrap();
    refused(&mut machine);
    machine.crash().unwrap();
    machine.run();
    refused(&mut machine);
    machine.restore(&first, Restore::Verified).unwrap();
    assert!(machine.dump().unwrap().at_boundary());
    // Taking a checkpoint does not use the boundary up.
    machine.checkpoint(Some(&first)).unwrap();
    go_on(&mut machine, 0, 2);
}

#[test]
fn another_machine_is_refused_with_what_differs() {
    let mut machine = started(Does::Echo);
    let (first, _) = machine.checkpoint(None).unwrap();
    let image = |fill: u8| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[fill; 5000]).unwrap();
        Some(Arc::new(file))
    };
    type Change = Box<dyn Fn(&mut MachineConfig)>;
    let changes: Vec<(&str, Change)> = vec![
        ("layout seed", Box::new(|it| it.layout_seed = [3; 32])),
        ("input seed", Box::new(|it| it.input_seed = [3; 32])),
        (
            "kind of layout",
            Box::new(|it| it.layout = LayoutKind::Same),
        ),
        ("memory size", Box::new(|it| it.memory_bytes += 2 << 20)),
        (
            "guest kernel",
            Box::new(|it| it.kernel = stub(Does::Sse).elf().into()),
        ),
        (
            "program",
            Box::new(|it| it.program.argv.push("more".into())),
        ),
        ("root image's size", Box::new(move |it| it.image = image(1))),
        ("list of disks", Box::new(|it| it.disks.push(disk()))),
    ];
    for (what, change) in changes {
        let mut config = config(Does::Echo);
        change(&mut config);
        let mut other = Machine::new(&kvm(), &config).unwrap();
        let error = other.restore(&first, Restore::Verified).unwrap_err();
        let right = matches!(&error, MachineError::Identity { what: found, .. } if *found == what);
        assert!(right, "{what}: {error}");
        // It is as it was: nothing has been touched.
        boundary(other.run());
    }
    // When it is started is not part of what it is.
    let mut config = config(Does::Echo);
    config.start.monotonic_ns = 1 << 40;
    let mut other = Machine::new(&kvm(), &config).unwrap();
    other.restore(&first, Restore::Verified).unwrap();
    go_on(&mut other, 0, 2);
}

#[test]
fn memory_is_read_by_physical_and_by_virtual_address() {
    let mut machine = started(Does::UseData);
    machine
        .memory
        .ram
        .write_slice(&[1, 2, 3, 4], GuestAddress(0x1ffe))
        .unwrap();
    let dump = machine.dump().unwrap();
    let mut four = [0; 4];
    dump.read_phys(0x1ffe, &mut four).unwrap();
    assert_eq!(four, [1, 2, 3, 4], "across two pages");
    // The guest's data page, over the border to where nothing is mapped.
    let data = machine.layout().kernel + 4096;
    let mut word = [0; 8];
    dump.read_virt(data + 4088, &mut word).unwrap();
    assert_eq!(u64::from_le_bytes(word), 77);
    assert!(dump.read_virt(data + 4092, &mut word).is_err());
    // Through the direct map it is the same memory.
    let phys = dump.translate(data).unwrap();
    dump.read_virt(machine.layout().direct + phys, &mut word)
        .unwrap();
    assert_eq!(u64::from_le_bytes(word), 0x0123_4567_89ab_cdef);
    assert!(
        dump.pages()
            .any(|(at, page)| at == phys && page[..8] == word)
    );
    assert!(dump.read_phys(machine.ram_end() - 4, &mut word).is_err());
    assert!(dump.read_phys(u64::MAX, &mut word).is_err());
    assert!(dump.read_virt(0, &mut word).is_err());
    assert!(dump.read_virt(u64::MAX - 2, &mut word).is_err());
}

fn disk() -> DiskConfig {
    DiskConfig {
        bytes: 1 << 20,
        read_only: false,
        id: "disk".into(),
        sync: false,
    }
}

/// What a guest's driver would do, done from outside: descriptors at `at`, then the available ring, the used ring, and buffers.
struct Driver {
    at: u64,
    posted: u16,
}

impl Driver {
    const QUEUE: u32 = 16;

    fn start(machine: &mut Machine) -> Self {
        // Two MiB that the kernel is not in.
        let reserved = machine.boot.reserved;
        let at = (1..8)
            .map(|at| at << 21)
            .find(|at| at + (2 << 20) <= reserved.start || *at >= reserved.start + reserved.len);
        let at = at.unwrap();
        let mut write = |register, value: u32| {
            let addr = MMIO_BASE + SLOT_BLOCK * MMIO_STRIDE + register;
            let ram = &machine.memory.ram;
            machine
                .devices
                .mmio_write(ram, addr, &value.to_le_bytes())
                .unwrap();
        };
        write(register::STATUS, 3);
        for (word, bits) in [(0, 1 << 9), (1, 1)] {
            write(register::DRIVER_FEATURES_SEL, word);
            write(register::DRIVER_FEATURES, bits); // FLUSH, VERSION_1
        }
        write(register::STATUS, 0xb);
        write(register::QUEUE_NUM, Self::QUEUE);
        write(register::QUEUE_DESC_LOW, at as u32);
        write(register::QUEUE_DRIVER_LOW, at as u32 + 0x1000);
        write(register::QUEUE_DEVICE_LOW, at as u32 + 0x2000);
        write(register::QUEUE_READY, 1);
        write(register::STATUS, 0xf);
        Self { at, posted: 0 }
    }

    /// Posts a request with one data buffer of `bytes` bytes. Returns where that is; the status is behind it.
    fn ask(&mut self, machine: &Machine, kind: u32, sector: u64, bytes: u32) -> u64 {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        let ram = &machine.memory.ram;
        let put = |at: u64, bytes: &[u8]| ram.write_slice(bytes, GuestAddress(at)).unwrap();
        let buffer = self.at + 0x1_0000 * (1 + u64::from(self.posted));
        let header = buffer - 0x1000;
        put(
            header,
            &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat(),
        );
        let first = self.posted * 3;
        let data = if kind == 0 { WRITE } else { 0 };
        let chain = [
            (header, 16, NEXT, first + 1),
            (buffer, bytes, NEXT | data, first + 2),
            (buffer + u64::from(bytes), 1, WRITE, 0),
        ];
        // A request without data has two descriptors.
        let chain: Vec<_> = chain.into_iter().filter(|(_, len, ..)| *len > 0).collect();
        for (index, (addr, len, flags, _)) in (first..).zip(&chain) {
            let descriptor = [
                &addr.to_le_bytes()[..],
                &len.to_le_bytes(),
                &flags.to_le_bytes(),
                &(index + 1).to_le_bytes(),
            ];
            put(self.at + u64::from(index) * 16, &descriptor.concat());
        }
        put(
            self.at + 0x1000 + 4 + u64::from(self.posted) * 2,
            &first.to_le_bytes(),
        );
        self.posted += 1;
        put(self.at + 0x1000 + 2, &self.posted.to_le_bytes());
        buffer
    }
}

/// Gives each read its number as contents.
struct Contents;

impl DiskReads for Contents {
    fn take(&mut self, _: u8, seq: u64) -> Result<Vec<u8>, String> {
        Ok(vec![seq as u8 + 1; 1024])
    }
}

#[test]
fn a_disk_in_the_middle_of_its_requests() {
    let mut config = config(Does::Echo);
    config.disks.push(disk());
    let mut machine = Machine::new(&kvm(), &config).unwrap();
    machine.track_dirty().unwrap();
    boundary(machine.run());
    let (start, _) = machine.checkpoint(None).unwrap();
    assert_eq!(
        start.disk_positions(),
        [DiskPosition::default()],
        "nothing asked yet"
    );
    let mut driver = Driver::start(&mut machine);
    let buffers = [(0, 7, 1024), (1, 9, 512), (4, 0, 0), (0, 2, 1024)]
        .map(|(kind, sector, bytes)| driver.ask(&machine, kind, sector, bytes));
    machine.resume(&entry(1), &mut NoDisks).unwrap();
    let outputs = boundary(machine.run()).outputs;
    assert_eq!(
        outputs.len(),
        5,
        "four requests and the fingerprint: {outputs:?}"
    );
    let (first, _) = machine.checkpoint(Some(&start)).unwrap();
    let outstanding = |seq, sector, bytes, kind| Outstanding {
        seq,
        sector,
        bytes,
        kind,
    };
    let position = DiskPosition {
        disk: 0,
        next: 4,
        outstanding: vec![
            outstanding(0, 7, 1024, Waiting::Read),
            outstanding(2, 0, 0, Waiting::Flush),
            outstanding(3, 2, 1024, Waiting::Read),
        ],
    };
    assert_eq!(first.disk_positions(), std::slice::from_ref(&position));
    assert_eq!(machine.devices.disk_positions(), [position]);

    let completions = [(3, Waiting::Read), (2, Waiting::Flush)].map(|(seq, kind)| Completion {
        disk: 0,
        seq,
        kind,
        status: BlockStatus::Ok,
    });
    let answers = Arc::new(Entry {
        completions: completions.to_vec(),
        ..Entry::default()
    });
    let go_on = |machine: &mut Machine| {
        machine.resume(&answers, &mut Contents).unwrap();
        boundary(machine.run());
        let (now, _) = machine.checkpoint(Some(&first)).unwrap();
        assert_same(&now, &machine.dump().unwrap());
        now
    };
    let last = go_on(&mut machine);
    let mut data = [0; 1025];
    last.read_phys(buffers[3], &mut data).unwrap();
    assert_eq!(data, *[[4; 1024].as_slice(), &[0]].concat());
    assert_eq!(last.disk_positions()[0].outstanding.len(), 1);

    machine.restore(&first, Restore::Verified).unwrap();
    assert_same(&last, &go_on(&mut machine));
    machine.restore(&first, Restore::Dirty).unwrap();
    assert_same(&last, &go_on(&mut machine));
    let mut other = Machine::new(&kvm(), &config).unwrap();
    other.restore(&first, Restore::Verified).unwrap();
    assert_same(&last, &go_on(&mut other));
}
