//! Setting up the vCPU: at CPL 3 in 64-bit mode, with the tables of the boot block.

use crate::boot::Boot;
use crate::checkpoint::write_msrs;
use crate::cpuid::baseline_only;
use crate::error::MachineError;
use crate::registers::Registers;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use quorate_abi::boot::selector;

/// PE, MP, ET, NE, WP, AM, PG: protected mode with paging, write protection also at CPL 0.
const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18 | 1 << 31;
/// TSD, PAE, OSFXSR, OSXMMEXCPT. SMEP and SMAP stay off: all pages are user pages.
const CR4: u64 = 1 << 2 | 1 << 5 | 1 << 9 | 1 << 10;
const CR4_FSGSBASE: u64 = 1 << 16;
/// SCE, LME, LMA, NXE.
const EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;
/// The fixed bit, and IOPL 3: the kernel rings the sync device from CPL 3. Page-table based KVM does not keep IOPL: there
/// the bitmap in the TSS gives the right (`boot.rs`). QEMU's emulated SVM does not read the bitmap of a busy TSS.
const RFLAGS: u64 = 1 << 1 | 3 << 12;
/// What SYSCALL clears: TF, IF, DF, NT, RF, AC. Not IOPL, which a handler that is still at CPL 3 could not set again.
pub(crate) const SYSCALL_MASK: u64 = 1 << 8 | 1 << 9 | 1 << 10 | 1 << 14 | 1 << 16 | 1 << 18;

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

const MSR_PLATFORM_INFO: u32 = 0xce;
/// CPUID faulting can be turned on.
const PLATFORM_CPUID_FAULTING: u64 = 1 << 31;
const MSR_MISC_FEATURES_ENABLES: u32 = 0x140;
/// CPUID faulting is on.
const MISC_CPUID_FAULTING: u64 = 1;

const SEGMENT_CODE: u8 = 0xb;
const SEGMENT_DATA: u8 = 0x3;
const SEGMENT_BUSY_TSS: u8 = 0xb;

/// Makes the vCPU ready to run the kernel's first instruction. The order: CPUID first, since KVM checks the rest
/// against it; then the system registers, which select the mode; then MSRs and general registers.
pub(crate) fn set_up(
    vcpu: &VcpuFd,
    boot: &Boot,
    cpuid: &CpuId,
    fsgsbase: bool,
) -> Result<(), MachineError> {
    vcpu.set_cpuid2(cpuid)
        .map_err(MachineError::kvm("KVM_SET_CPUID2"))?;

    let mut sregs = vcpu
        .get_sregs()
        .map_err(MachineError::kvm("KVM_GET_SREGS"))?;
    let data = segment(selector::DATA3, SEGMENT_DATA);
    sregs.cs = segment(selector::CODE3, SEGMENT_CODE);
    sregs.ds = data;
    sregs.es = data;
    sregs.ss = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.tr = kvm_segment {
        base: boot.tss.0,
        limit: boot.tss.1,
        selector: selector::TSS,
        type_: SEGMENT_BUSY_TSS,
        present: 1,
        ..kvm_segment::default()
    };
    sregs.ldt = kvm_segment {
        unusable: 1,
        ..kvm_segment::default()
    };
    sregs.gdt = table(boot.gdt);
    sregs.idt = table(boot.idt);
    sregs.cr0 = CR0;
    sregs.cr2 = 0;
    sregs.cr3 = boot.page_table_root;
    // Where KVM does not offer FSGSBASE it refuses the bit. The one such backend seen (page-table based KVM) runs
    // `wrfsbase` all the same; `quorate doctor` tries it.
    sregs.cr4 = if fsgsbase { CR4 | CR4_FSGSBASE } else { CR4 };
    sregs.efer = EFER;
    vcpu.set_sregs(&sregs)
        .map_err(MachineError::kvm("KVM_SET_SREGS (64-bit mode at CPL 3)"))?;

    // SYSCALL takes CS and SS from bits 32 to 47, SYSRET from bits 48 to 63 (Intel SDM volume 3, 5.8.8).
    let star = u64::from(selector::CODE0) << 32 | u64::from(selector::CODE3_32) << 48;
    set_msrs(
        vcpu,
        &[
            (MSR_STAR, star),
            (MSR_LSTAR, boot.syscall_entry),
            (MSR_SFMASK, SYSCALL_MASK),
            (MSR_KERNEL_GS_BASE, 0),
        ],
    )?;
    let regs = kvm_regs {
        rip: boot.entry,
        rsp: boot.stack,
        rdi: boot.info,
        rflags: RFLAGS,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&regs)
        .map_err(MachineError::kvm("KVM_SET_REGS"))
}

/// Code and stack segment of a program or the kernel.
pub(crate) fn program_segments() -> (kvm_segment, kvm_segment) {
    (
        segment(selector::CODE3, SEGMENT_CODE),
        segment(selector::DATA3, SEGMENT_DATA),
    )
}

fn set_msrs(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), MachineError> {
    write_msrs(vcpu, values).map_err(|(_, error)| error)
}

/// See [`crate::Machine::trap_cpuid`].
pub(crate) fn trap_cpuid(vcpu: &VcpuFd) -> Result<(), MachineError> {
    set_msrs(
        vcpu,
        &[
            (MSR_PLATFORM_INFO, PLATFORM_CPUID_FAULTING),
            (MSR_MISC_FEATURES_ENABLES, MISC_CPUID_FAULTING),
        ],
    )
}

/// See [`crate::Machine::cpuid_kept`]. Only feature bits count: KVM fills in others, such as the size of the state.
pub(crate) fn cpuid_kept(vcpu: &VcpuFd) -> Result<bool, MachineError> {
    let actual = vcpu
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(MachineError::kvm("KVM_GET_CPUID2"))?;
    Ok(baseline_only(actual.as_slice()))
}

pub(crate) fn registers(vcpu: &VcpuFd) -> Result<Registers, MachineError> {
    let regs = vcpu.get_regs().map_err(MachineError::kvm("KVM_GET_REGS"))?;
    let sregs = vcpu
        .get_sregs()
        .map_err(MachineError::kvm("KVM_GET_SREGS"))?;
    Ok(Registers::from_kvm(&regs, &sregs))
}

/// A flat segment; its privilege level is the selector's.
fn segment(selector: u16, kind: u8) -> kvm_segment {
    let code = kind == SEGMENT_CODE;
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        dpl: (selector & 3) as u8,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..kvm_segment::default()
    }
}

fn table((base, limit): (u64, u16)) -> kvm_dtable {
    kvm_dtable {
        base,
        limit,
        ..kvm_dtable::default()
    }
}

/// See `Machine::settle`.
pub(crate) fn settle(vcpu: &mut VcpuFd) -> Result<(), MachineError> {
    // KVM says EINTR when nothing is left to be completed. Only an instruction that repeats itself needs more than two calls.
    const MOST_CALLS: usize = 64;
    vcpu.set_kvm_immediate_exit(1);
    let mut done = Err(MachineError::HalfDone);
    for _ in 0..MOST_CALLS {
        let error = match vcpu.run() {
            Ok(_) => continue,
            Err(error) => error,
        };
        done = match error.errno() {
            libc::EINTR => Ok(()),
            _ => Err(MachineError::kvm("KVM_RUN (to complete an I/O)")(error)),
        };
        break;
    }
    vcpu.set_kvm_immediate_exit(0);
    done
}
