//! CPUID of a Linux machine: what KVM supports, without what would tie a checkpoint to more state than is saved, or would let in
//! randomness past the seed.

use crate::error::MachineError;
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::Kvm;

/// Leaf 1, ECX: VMX (nested guests are no state of ours), RDRAND (randomness comes from the seed), PDCM (performance counters).
const LEAF1_ECX_OFF: u32 = 1 << 5 | 1 << 30 | 1 << 15;
/// Leaf 1, ECX: x2APIC, the TSC deadline timer, which KVM's interrupt controller always has, and "a hypervisor is present".
const LEAF1_ECX_ON: u32 = 1 << 21 | 1 << 24 | 1 << 31;
/// Leaf 1, EDX: several logical processors in one package.
const LEAF1_EDX_HTT: u32 = 1 << 28;
/// Leaf 7, EBX: SGX, RDSEED, MPX, Intel PT.
const LEAF7_EBX_OFF: u32 = 1 << 2 | 1 << 18 | 1 << 14 | 1 << 25;
/// Leaf 7, ECX: page tables of five levels. No guest here has so much memory, and all that looks at its tables knows four.
const LEAF7_ECX_OFF: u32 = 1 << 16;
/// Leaf 7, EDX: AMX, whose state is larger than what KVM_GET_XSAVE gives.
const LEAF7_EDX_OFF: u32 = 1 << 22 | 1 << 24 | 1 << 25;
/// Leaf 13: state components of AMX.
const XSAVE_OFF: u32 = 1 << 17 | 1 << 18;
/// Leaf 0x8000_0001, ECX: SVM, and topology by AMD's leaves.
const EXTENDED_ECX_OFF: u32 = 1 << 2 | 1 << 22 | 1 << 1;
/// KVM's leaf of features (Linux, Documentation/virt/kvm/x86/cpuid.rst).
const KVM_LEAF: u32 = 0x4000_0001;
/// The clock in both forms and that it is stable, and the hint that I/O needs no delay. Not asynchronous page faults and the like,
/// which have the host write to guest memory.
const KVM_FEATURES: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 24;

/// Leaf 1, ECX: FMA, XSAVE, AVX, F16C. Leaf 7: AVX2 in EBX, protection keys in ECX. Leaf 0x8000_0001, ECX: XOP, FMA4.
const LEAF1_ECX_XSAVE: u32 = 1 << 12 | 1 << 26 | 1 << 28 | 1 << 29;
const LEAF7_EBX_XSAVE: u32 = 1 << 5;
const LEAF7_ECX_XSAVE: u32 = 1 << 3;
const EXTENDED_ECX_XSAVE: u32 = 1 << 11 | 1 << 16;

/// What KVM supports.
pub(crate) fn supported(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, MachineError> {
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(MachineError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let mut entries = cpuid.as_slice().to_vec();
    if emulated_host() {
        without_xsave(&mut entries);
    }
    Ok(entries)
}

/// Whether this host is itself emulated by QEMU, as in the SVM lane. Two things differ there from processors (seen with QEMU 7.2). XSETBV of
/// a nested guest never reaches KVM: KVM goes on with the XCR0 that it knows, and the guest's AVX instructions fault. And a program's
/// `out` that the I/O bitmap allows faults where the TSS is said to be busy, as KVM says after LTR: see [`idle_task`].
pub(crate) fn emulated_host() -> bool {
    // "TCGTCGTCGTCG", in the order EBX, ECX, EDX.
    const TCG: [u32; 3] = [0x5447_4354, 0x4354_4743, 0x4743_5447];
    let leaf = std::arch::x86_64::__cpuid(0x4000_0000);
    [leaf.ebx, leaf.ecx, leaf.edx] == TCG
}

/// Has a processor whose state was put back allow what its I/O bitmap allows, where the host is emulated.
pub(crate) fn idle_task(fd: &kvm_ioctls::VcpuFd) -> Result<(), MachineError> {
    const BUSY: u8 = 11;
    const AVAILABLE: u8 = 9;
    if !emulated_host() {
        return Ok(());
    }
    let mut sregs = fd.get_sregs().map_err(MachineError::kvm("KVM_GET_SREGS"))?;
    if sregs.tr.type_ == BUSY {
        sregs.tr.type_ = AVAILABLE;
        fd.set_sregs(&sregs)
            .map_err(MachineError::kvm("KVM_SET_SREGS"))?;
    }
    Ok(())
}

fn without_xsave(entries: &mut Vec<kvm_cpuid_entry2>) {
    entries.retain(|entry| entry.function != 0xd);
    for entry in entries {
        match entry.function {
            1 => entry.ecx &= !LEAF1_ECX_XSAVE,
            7 => {
                entry.ebx &= !LEAF7_EBX_XSAVE;
                entry.ecx &= !LEAF7_ECX_XSAVE;
            }
            0x8000_0001 => entry.ecx &= !EXTENDED_ECX_XSAVE,
            _ => {}
        }
    }
}

/// CPUID of one processor. Each is a package of its own, which needs the same few leaves on all makes of processors.
pub(crate) fn of_cpu(supported: &[kvm_cpuid_entry2], cpu: u8) -> Result<CpuId, MachineError> {
    let id = u32::from(cpu);
    let mut entries: Vec<kvm_cpuid_entry2> = Vec::with_capacity(supported.len() + 2);
    for entry in supported {
        let mut entry = *entry;
        match (entry.function, entry.index) {
            (1, _) => {
                entry.ecx = entry.ecx & !LEAF1_ECX_OFF | LEAF1_ECX_ON;
                entry.edx &= !LEAF1_EDX_HTT;
                // Number of the interrupt controller, one logical processor, CLFLUSH lines as they are.
                entry.ebx = entry.ebx & 0xff00 | id << 24 | 1 << 16;
            }
            // Caches: none is shared, one core in the package.
            (4 | 0x8000_001d, _) => entry.eax &= 0x3fff,
            (7, 0) => {
                entry.ebx &= !LEAF7_EBX_OFF;
                entry.ecx &= !LEAF7_ECX_OFF;
                entry.edx &= !LEAF7_EDX_OFF;
            }
            // Performance counters.
            (0xa, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            (0xb | 0x1f, _) => continue,
            (0xd, 0) => entry.eax &= !XSAVE_OFF,
            (0xd, 17 | 18) => continue,
            (KVM_LEAF, _) => entry.eax &= KVM_FEATURES,
            (0x8000_0001, _) => entry.ecx &= !EXTENDED_ECX_OFF,
            // Cores in the package, less one.
            (0x8000_0008, _) => entry.ecx &= !0xf0ff,
            (0x8000_000a, _) => (entry.eax, entry.ebx, entry.edx) = (0, 0, 0),
            (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
            _ => {}
        }
        entries.push(entry);
    }
    // Topology (Intel SDM volume 3, 9.9): one thread in a core, one core in a package.
    for (level, kind) in [(0, 1), (1, 2)] {
        entries.push(kvm_cpuid_entry2 {
            function: 0xb,
            index: level,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: 0,
            ebx: 1,
            ecx: kind << 8 | level,
            edx: id,
            ..kvm_cpuid_entry2::default()
        });
    }
    CpuId::from_entries(&entries).map_err(|_| MachineError::MissingCpuFeature("CPUID"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn generous() -> Vec<kvm_cpuid_entry2> {
        [
            0,
            1,
            4,
            7,
            0xa,
            0xb,
            0xd,
            0x1f,
            0x4000_0000,
            KVM_LEAF,
            0x8000_0001,
            0x8000_0008,
            0x8000_001e,
        ]
        .into_iter()
        .map(|function| kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        })
        .collect()
    }

    #[test]
    fn randomness_and_nested_guests_are_not_offered_and_each_processor_knows_its_number() {
        for cpu in [0, 3] {
            let cpuid = of_cpu(&generous(), cpu).unwrap();
            let find = |function, index| {
                let mut entries = cpuid.as_slice().iter();
                *entries
                    .find(|e| (e.function, e.index) == (function, index))
                    .unwrap()
            };
            let one = find(1, 0);
            assert_eq!(one.ecx >> 30 & 1, 0, "rdrand");
            assert_eq!(one.ecx >> 5 & 1, 0, "vmx");
            assert_eq!(one.ecx >> 24 & 1, 1, "tsc deadline");
            assert_eq!(one.ebx >> 24, u32::from(cpu));
            assert_eq!(find(7, 0).ebx >> 18 & 1, 0, "rdseed");
            assert_eq!(find(7, 0).ecx >> 16 & 1, 0, "five levels of page tables");
            assert_eq!(find(0x8000_0001, 0).ecx >> 2 & 1, 0, "svm");
            assert_eq!(find(KVM_LEAF, 0).eax, 0x0100_000b);
            assert_eq!(find(0xb, 0).edx, u32::from(cpu));
            assert_eq!(find(0xb, 1).ecx, 2 << 8 | 1);
            assert!(!cpuid.as_slice().iter().any(|e| e.function == 0x1f));
        }
    }
}
