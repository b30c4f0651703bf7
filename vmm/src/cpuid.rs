//! CPUID is a whitelist: the guest sees a fixed baseline and nothing that leaks real time, randomness or the host's
//! identity beyond its vendor. It is the same in all replicas.

use crate::error::MachineError;
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::Kvm;

/// Leaf 1, EDX: FPU, CX8, CMOV, FXSR, SSE, SSE2, and PSE, MSR, PAE, PGE, CLFSH, MMX which 64-bit code takes for granted.
/// Not TSC (bit 4), MCE, APIC, SEP, MTRR, MCA.
const LEAF1_EDX: u32 = 1
    | 1 << 3
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 15
    | 1 << 19
    | 1 << 23
    | 1 << 24
    | 1 << 25
    | 1 << 26;
/// Leaf 1, ECX: SSE3, SSSE3, CX16, SSE4.1, SSE4.2, POPCNT. Not MONITOR, x2APIC, TSC deadline, XSAVE, AVX, RDRAND.
const LEAF1_ECX: u32 = 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23;
/// Leaf 1, ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// What KVM itself sets in leaf 1, by the state of the vCPU: OSXSAVE in ECX, APIC in EDX. They tell nothing.
const LEAF1_RUNTIME: (u32, u32) = (1 << 27, 1 << 9);
/// Leaf 7, EBX: FSGSBASE.
pub(crate) const FSGSBASE: u32 = 1;
/// Leaf 0x8000_0001, ECX: LAHF in 64-bit mode.
const EXTENDED_ECX: u32 = 1;
/// Leaf 0x8000_0001, EDX: SYSCALL, NX, long mode.
const EXTENDED_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 29;

/// Fewest physical address bits: the root image ends below 2^39.
const MIN_PHYSICAL_BITS: u32 = 39;
/// Most physical address bits that are shown.
const MAX_PHYSICAL_BITS: u32 = 46;

/// "GenuineIntel", in the order EBX, EDX, ECX.
const INTEL: [u32; 3] = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];

/// The guest's CPUID, and whether FSGSBASE is in it.
pub(crate) fn guest_cpuid(kvm: &Kvm) -> Result<(CpuId, bool), MachineError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(MachineError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let entries = build(supported.as_slice())?;
    let fsgsbase = entries
        .iter()
        .any(|entry| entry.function == 7 && entry.ebx & FSGSBASE != 0);
    let cpuid =
        CpuId::from_entries(&entries).map_err(|_| MachineError::MissingCpuFeature("CPUID"))?;
    Ok((cpuid, fsgsbase))
}

fn build(supported: &[kvm_cpuid_entry2]) -> Result<Vec<kvm_cpuid_entry2>, MachineError> {
    let find = |function| {
        supported
            .iter()
            .find(|entry| entry.function == function && entry.index == 0)
            .copied()
            .unwrap_or_default()
    };
    let vendor = find(0);
    let intel = [vendor.ebx, vendor.edx, vendor.ecx] == INTEL;
    let basic = find(1);
    let extended = find(0x8000_0001);
    if extended.edx & EXTENDED_EDX != EXTENDED_EDX {
        return Err(MachineError::MissingCpuFeature(
            "64-bit mode with no-execute pages",
        ));
    }
    let physical_bits = find(0x8000_0008).eax & 0xff;
    if physical_bits < MIN_PHYSICAL_BITS {
        return Err(MachineError::PhysicalAddressBits(physical_bits));
    }
    let ebx7 = find(7).ebx & FSGSBASE;

    let mut entries = Vec::new();
    let mut leaf = |function, index, flags, [eax, ebx, ecx, edx]: [u32; 4]| {
        entries.push(kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        });
    };
    leaf(0, 0, 0, [7, vendor.ebx, vendor.ecx, vendor.edx]);
    // Family, model and stepping of a plain x86-64 (Ivy Bridge, Zen), so that libraries take the same paths everywhere.
    let signature = if intel { 0x0003_06a9 } else { 0x0080_0f12 };
    leaf(
        1,
        0,
        0,
        [
            signature,
            8 << 8 | 1 << 16, // CLFLUSH line of 64 bytes, one logical processor.
            basic.ecx & LEAF1_ECX | HYPERVISOR,
            basic.edx & LEAF1_EDX,
        ],
    );
    leaf(
        2,
        0,
        0,
        if intel {
            [0x0000_ff01, 0, 0, 0]
        } else {
            [0; 4]
        },
    ); // "see leaf 4"
    for (index, cache) in INTEL_CACHES.iter().enumerate() {
        let cache = if intel { *cache } else { [0; 4] };
        leaf(4, index as u32, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, cache);
    }
    leaf(7, 0, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, [0, ebx7, 0, 0]);
    // The hypervisor's leaves: a signature, and nothing behind it (so no paravirtual clock).
    let [b, c, d] = SIGNATURE;
    leaf(0x4000_0000, 0, 0, [0x4000_0000, b, c, d]);
    leaf(
        0x8000_0000,
        0,
        0,
        [0x8000_0008, vendor.ebx, vendor.ecx, vendor.edx],
    );
    leaf(
        0x8000_0001,
        0,
        0,
        [
            0,
            0,
            extended.ecx & EXTENDED_ECX,
            extended.edx & EXTENDED_EDX,
        ],
    );
    for (function, name) in (0x8000_0002..).zip(brand()) {
        leaf(function, 0, 0, name);
    }
    // Caches as AMD describes them: 32 KiB L1, 512 KiB L2, 8 MiB L3, 64-byte lines.
    let [l1, l2] = if intel {
        [[0; 4], [0, 0, 0x0200_6040, 0]]
    } else {
        [
            [0, 0, 0x2008_0140, 0x2008_0140],
            [0, 0, 0x0200_6140, 0x0040_9140],
        ]
    };
    leaf(0x8000_0005, 0, 0, l1);
    leaf(0x8000_0006, 0, 0, l2);
    leaf(0x8000_0007, 0, 0, [0; 4]);
    let bits = physical_bits.min(MAX_PHYSICAL_BITS) | 48 << 8;
    leaf(0x8000_0008, 0, 0, [bits, 0, 0, 0]);
    Ok(entries)
}

/// Whether this CPUID, as KVM gives it back, has no feature outside the baseline.
pub(crate) fn baseline_only(entries: &[kvm_cpuid_entry2]) -> bool {
    entries
        .iter()
        .all(|entry| match (entry.function, entry.index) {
            (1, _) => {
                let (ecx, edx) = LEAF1_RUNTIME;
                entry.ecx & !(LEAF1_ECX | HYPERVISOR | ecx) == 0
                    && entry.edx & !(LEAF1_EDX | edx) == 0
            }
            (7, 0) => entry.ebx & !FSGSBASE == 0 && entry.ecx == 0 && entry.edx == 0,
            (0x8000_0001, _) => entry.ecx & !EXTENDED_ECX == 0 && entry.edx & !EXTENDED_EDX == 0,
            _ => true,
        })
}

/// "QuorateVMM  ".
const SIGNATURE: [u32; 3] = [0x726f_7551, 0x5665_7461, 0x2020_4d4d];

/// Leaf 4 (Intel SDM volume 2, CPUID): 32 KiB L1 data and code, 256 KiB L2, 8 MiB L3; then the end of the list.
const INTEL_CACHES: [[u32; 4]; 5] = [
    [0x0000_0121, 7 << 22 | 63, 63, 0],
    [0x0000_0122, 7 << 22 | 63, 63, 0],
    [0x0000_0143, 7 << 22 | 63, 511, 0],
    [0x0000_0163, 15 << 22 | 63, 8191, 0],
    [0; 4],
];

/// The processor's name, in the three leaves that carry it.
fn brand() -> [[u32; 4]; 3] {
    let mut name = [0; 48];
    let text = b"Quorate virtual CPU";
    name[..text.len()].copy_from_slice(text);
    let mut leaves = [[0; 4]; 3];
    for (to, from) in leaves
        .as_flattened_mut()
        .iter_mut()
        .zip(name.chunks_exact(4))
    {
        *to = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
    }
    leaves
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// A host that has everything.
    fn generous() -> Vec<kvm_cpuid_entry2> {
        [
            0,
            1,
            2,
            4,
            7,
            0xb,
            0xd,
            0x15,
            0x4000_0000,
            0x4000_0001,
            0x8000_0000,
            0x8000_0001,
            0x8000_0007,
            0x8000_0008,
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
    fn offers_no_time_no_randomness_and_no_extended_state() {
        let entries = build(&generous()).unwrap();
        let find = |function| {
            *entries
                .iter()
                .find(|entry| entry.function == function)
                .unwrap()
        };
        let one = find(1);
        for (name, bit) in [
            ("monitor", 3),
            ("x2apic", 21),
            ("tsc deadline", 24),
            ("xsave", 26),
            ("osxsave", 27),
            ("avx", 28),
            ("rdrand", 30),
        ] {
            assert_eq!(one.ecx >> bit & 1, 0, "{name}");
        }
        assert_eq!(one.edx >> 4 & 1, 0, "tsc");
        assert_eq!(one.ecx >> 31, 1, "hypervisor");
        assert_eq!(find(7).ebx, FSGSBASE, "rdseed, avx2, and so on");
        assert_eq!(find(0x8000_0001).edx >> 27 & 1, 0, "rdtscp");
        assert_eq!(find(0x8000_0007).edx, 0, "invariant tsc");
        assert_eq!(find(0x4000_0000).eax, 0x4000_0000, "no paravirtual clock");
        assert_eq!(find(0).eax, 7);
        assert!(baseline_only(&entries));
        assert!(!baseline_only(&generous()));
        assert!(
            !entries
                .iter()
                .any(|entry| matches!(entry.function, 0xb | 0xd | 0x15 | 0x4000_0001))
        );
    }

    #[test]
    fn a_host_without_64_bit_mode_is_an_error() {
        let error = build(&[]).unwrap_err();
        assert!(matches!(error, MachineError::MissingCpuFeature(_)));
        let mut small = generous();
        small
            .iter_mut()
            .filter(|entry| entry.function == 0x8000_0008)
            .for_each(|entry| entry.eax = 36);
        assert!(matches!(
            build(&small),
            Err(MachineError::PhysicalAddressBits(36))
        ));
    }

    #[test]
    fn the_signature_reads_as_intended() {
        let bytes: Vec<u8> = SIGNATURE
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        assert_eq!(bytes, b"QuorateVMM  ");
    }
}
