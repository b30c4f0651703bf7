//! One virtual processor: how it starts, and its thread.

use super::loader::{Entry, GDT_ENTRIES};
use super::map::{GDT, PAGE_TABLES, STACK, START_INFO, ZERO_PAGE};
use super::ports::Asked;
use super::shared::{Final, Shared};
use crate::checkpoint::write_msrs;
use crate::crash::CrashKind;
use crate::error::MachineError;
use crate::kick::Kicker;
use crate::vcpu::settle;
use kvm_bindings::{
    CpuId, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_regs,
    kvm_segment,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use quorate_devices::VirtioSet;
use std::sync::atomic::AtomicU8;

/// PE, ET.
const CR0_PROTECTED: u64 = 1 | 1 << 4;
/// PG.
const CR0_PAGING: u64 = 1 << 31;
/// PAE.
const CR4_PAE: u64 = 1 << 5;
/// LME, LMA.
const EFER_LONG: u64 = 1 << 8 | 1 << 10;

/// IA32_MISC_ENABLE: fast string operations.
const MSR_MISC_ENABLE: u32 = 0x1a0;
/// IA32_MTRR_DEF_TYPE: MTRRs are on and everything is write-back, as firmware leaves it.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ON_WRITE_BACK: u64 = 1 << 11 | 6;

/// Offsets in a local APIC's registers.
const LINT0: usize = 0x350;
const LINT1: usize = 0x360;
/// Delivery modes of a local interrupt.
const EXTERNAL: u32 = 7 << 8;
const NMI: u32 = 4 << 8;

/// One processor. Its file is closed before the memory that it uses goes: see `LinuxMachine`.
#[derive(Debug)]
pub(crate) struct Vcpu {
    pub fd: VcpuFd,
    pub number: u8,
    pub kicker: Kicker,
}

/// Makes a processor ready: the first for the kernel's first instruction, the others to wait until the kernel starts them, which KVM's
/// local APIC does.
pub(crate) fn set_up(fd: &VcpuFd, cpuid: &CpuId, entry: Option<Entry>) -> Result<(), MachineError> {
    use MachineError as E;
    fd.set_cpuid2(cpuid).map_err(E::kvm("KVM_SET_CPUID2"))?;
    // Best effort: processors of one make have the first only, some backends not the second. The kernel lives without.
    let _ = write_msrs(fd, &[(MSR_MISC_ENABLE, 1)]);
    let _ = write_msrs(fd, &[(MSR_MTRR_DEF_TYPE, MTRR_ON_WRITE_BACK)]);
    let mut lapic = fd.get_lapic().map_err(E::kvm("KVM_GET_LAPIC"))?;
    for (register, mode) in [(LINT0, EXTERNAL), (LINT1, NMI)] {
        for (to, from) in lapic.regs.iter_mut().skip(register).zip(mode.to_le_bytes()) {
            *to = from as _;
        }
    }
    fd.set_lapic(&lapic).map_err(E::kvm("KVM_SET_LAPIC"))?;
    match entry {
        Some(entry) => set_entry(fd, entry),
        None => Ok(()),
    }
}

fn set_entry(fd: &VcpuFd, entry: Entry) -> Result<(), MachineError> {
    use MachineError as E;
    const CODE: u16 = 0x10;
    const DATA: u16 = 0x18;
    const TSS: u16 = 0x20;
    let mut sregs = fd.get_sregs().map_err(E::kvm("KVM_GET_SREGS"))?;
    let data = flat(DATA, 3, true);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: 0,
        limit: 0x67,
        selector: TSS,
        type_: 0xb,
        present: 1,
        ..kvm_segment::default()
    };
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.gdt.base = GDT;
    sregs.gdt.limit = (size_of_val(&GDT_ENTRIES) - 1) as u16;
    let mut regs = kvm_regs {
        rflags: 2,
        rsp: STACK,
        ..kvm_regs::default()
    };
    match entry {
        Entry::Long(at) => {
            sregs.cs = flat(CODE, 0xb, false);
            sregs.cs.l = 1;
            sregs.cr0 = CR0_PROTECTED | CR0_PAGING;
            sregs.cr3 = PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LONG;
            regs.rip = at;
            regs.rsi = ZERO_PAGE;
        }
        Entry::Pvh(at) => {
            sregs.cs = flat(CODE, 0xb, true);
            sregs.cr0 = CR0_PROTECTED;
            sregs.cr4 = 0;
            sregs.efer = 0;
            regs.rip = at;
            regs.rbx = START_INFO;
        }
    }
    fd.set_sregs(&sregs).map_err(E::kvm("KVM_SET_SREGS"))?;
    fd.set_regs(&regs).map_err(E::kvm("KVM_SET_REGS"))
}

fn flat(selector: u16, kind: u8, wide: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        db: u8::from(wide),
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

/// Runs a processor until the machine stops. Whatever ends the machine here is told to `shared`.
pub(crate) fn run(vcpu: &mut Vcpu, shared: &Shared) {
    let _tell = TellPanic {
        shared,
        cpu: vcpu.number,
    };
    let end = run_until(vcpu, shared);
    // What is half done is completed, so that the state can be taken or changed; after that the thread is gone.
    let settled = settle(&mut vcpu.fd);
    match (end, settled) {
        (Some(end), _) => shared.end(end),
        (None, Err(error)) => shared.end(Final::Crash {
            cpu: vcpu.number,
            kind: CrashKind::KvmError(error.to_string()),
        }),
        (None, Ok(())) => {}
    }
}

/// Ends the machine if its thread panics: the device thread would otherwise wait for a processor that is gone.
struct TellPanic<'a> {
    shared: &'a Shared,
    cpu: u8,
}

impl Drop for TellPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kind = CrashKind::UnexpectedExit("a panic of its thread".into());
            self.shared.end(Final::Crash {
                cpu: self.cpu,
                kind,
            });
        }
    }
}

/// `None`: the machine is stopping.
fn run_until(vcpu: &mut Vcpu, shared: &Shared) -> Option<Final> {
    let immediate_exit: *mut u8 = &raw mut vcpu.fd.get_kvm_run().immediate_exit;
    // SAFETY: The byte is in the shared `kvm_run` page, which stays mapped as long as `vcpu.fd`. From here to the end of this
    // function it is accessed as an atomic only; the kernel reads it.
    let immediate_exit = unsafe { AtomicU8::from_ptr(immediate_exit) };
    // SAFETY: As above; `_entered` is dropped at the end of this function.
    let _entered = unsafe { vcpu.kicker.enter(immediate_exit) };
    loop {
        // A kick means "look here"; the order is that of `Kicker::take`.
        vcpu.kicker.take(immediate_exit);
        if shared.signals().stopping() {
            return None;
        }
        if let Some(end) = run_once(&mut vcpu.fd, vcpu.number, shared) {
            return Some(end);
        }
    }
}

fn run_once(fd: &mut VcpuFd, cpu: u8, shared: &Shared) -> Option<Final> {
    let crash = |kind| Some(Final::Crash { cpu, kind });
    let exit = match fd.run() {
        Ok(exit) => exit,
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return None,
        Err(error) => return crash(CrashKind::KvmError(error.to_string())),
    };
    match exit {
        VcpuExit::IoOut(port, data) => match shared.ports().write(port, data) {
            Asked::Nothing => None,
            Asked::Output => {
                shared.signals().wake();
                None
            }
            Asked::PowerOff => Some(Final::PoweredOff),
            Asked::Reset => Some(Final::Reset),
        },
        VcpuExit::IoIn(port, data) => {
            shared.ports().read(port, data);
            None
        }
        VcpuExit::MmioRead(addr, data) if VirtioSet::is_mmio(addr) => {
            shared.devices().mmio_read(addr, data);
            None
        }
        // Where nothing is, as on a bus: reads are all ones, writes are lost.
        VcpuExit::MmioRead(_, data) => {
            data.fill(0xff);
            None
        }
        VcpuExit::MmioWrite(addr, data) if VirtioSet::is_mmio(addr) => {
            let done = shared.devices().mmio_write(shared.ram(), addr, data);
            if VirtioSet::is_notification(addr) {
                shared.notified();
            }
            done.err().map(Final::Misbehaved)
        }
        VcpuExit::MmioWrite(..) | VcpuExit::Intr | VcpuExit::IrqWindowOpen => None,
        VcpuExit::Shutdown => crash(CrashKind::TripleFault),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Some(Final::PoweredOff),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Some(Final::Reset),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => {
            crash(CrashKind::Shutdown(KVM_SYSTEM_EVENT_CRASH))
        }
        VcpuExit::InternalError => crash(CrashKind::EmulationFailure),
        VcpuExit::FailEntry(reason, _) => crash(CrashKind::KvmError(format!(
            "the processor refused to enter the guest (reason {reason:#x})"
        ))),
        VcpuExit::MemoryFault { gpa, .. } => crash(CrashKind::KvmError(format!(
            "no host memory behind physical address {gpa:#x}"
        ))),
        other => crash(CrashKind::UnexpectedExit(format!("{other:?}"))),
    }
}
