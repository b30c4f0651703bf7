//! Layouts: no overlap, alignment, entropy, and what all replicas share (R8).

use super::guest::{Does, stub};
use super::machine::{boundary, config, kvm};
use crate::*;
use proptest::prelude::*;
use std::collections::HashSet;

const GIB: u64 = 1 << 30;

fn request(kind: LayoutKind, layout_seed: u64, input_seed: u64) -> LayoutRequest {
    let seed = |number: u64| {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&number.to_le_bytes());
        seed
    };
    LayoutRequest {
        kind,
        layout_seed: seed(layout_seed),
        input_seed: seed(input_seed),
        kernel_bytes: 3 << 20,
        boot_bytes: 0x22000,
        ram_end: 4 * GIB + (512 << 20),
        image_bytes: 100 << 20,
    }
}

/// Start, length and alignment of every region. Lengths are those that `abi::boot::Layout` promises.
fn regions(layout: &Layout, request: &LayoutRequest) -> [(&'static str, u64, u64, u64); 12] {
    [
        ("kernel", layout.kernel, request.kernel_bytes, 4096),
        ("boot", layout.boot, request.boot_bytes, 4096),
        ("direct", layout.direct, request.ram_end, GIB),
        ("image", layout.image, request.image_bytes, 2 << 20),
        ("devices", layout.devices, 32 * 4096, 4096),
        ("kernel_dynamic", layout.kernel_dynamic, 64 * GIB, 4096),
        ("program", layout.program, GIB, 4096),
        ("libraries", layout.libraries, 64 * GIB, 4096),
        ("mmap", layout.mmap, 512 * GIB, 4096),
        ("threads", layout.threads, 64 * GIB, 4096),
        ("heap", layout.heap, 64 * GIB, 4096),
        ("stack", layout.stack_top - GIB, GIB, 4096),
    ]
}

fn check(layout: &Layout, request: &LayoutRequest, space: AddressSpace) {
    let mut regions = regions(layout, request);
    regions.sort_by_key(|region| region.1);
    for (name, start, len, align) in regions {
        assert_eq!(start % align, 0, "{name} at {start:#x}");
        assert!(
            start >= space.low && start + len <= space.high,
            "{name} at {start:#x}"
        );
    }
    for two in regions.windows(2) {
        let gap = two[1].1.checked_sub(two[0].1 + two[0].2);
        assert!(
            gap.is_some_and(|gap| gap >= GIB),
            "{} and {}",
            two[0].0,
            two[1].0
        );
    }
}

fn shared(layout: &Layout) -> [u64; 5] {
    let Layout {
        program,
        libraries,
        mmap,
        heap,
        stack_top,
        ..
    } = *layout;
    [program, libraries, mmap, heap, stack_top].map(|addr| addr % GIB)
}

proptest! {
    #[test]
    fn layouts_are_sound(layout_seed: u64, input_seed: u64, same: bool, ram in 1_u64..68, image in 1_u64..(64 << 30)) {
        let kind = if same { LayoutKind::Same } else { LayoutKind::Random };
        let mut request = request(kind, layout_seed, input_seed);
        request.ram_end = ram * GIB;
        request.image_bytes = image;
        check(&request.generate().unwrap(), &request, AddressSpace::FULL);
    }

    /// In a space where little room is left, each layout is sound or there is an error.
    #[test]
    fn tight_layouts_are_sound_or_errors(layout_seed: u64, gib in 700_u64..1000) {
        let request = request(LayoutKind::Random, layout_seed, 1);
        let space = AddressSpace { low: 64 * GIB, high: (64 + gib) * GIB };
        if let Ok(layout) = request.generate_in(space) {
            check(&layout, &request, space);
        }
    }
}

#[test]
fn a_thousand_replicas_have_a_thousand_places_for_everything() {
    let mut seen: Vec<HashSet<u64>> = vec![HashSet::new(); 12];
    let mut whole = HashSet::new();
    for seed in 0..1000 {
        let request = request(LayoutKind::Random, seed, 1);
        let layout = request.generate().unwrap();
        for (seen, (_, start, ..)) in seen.iter_mut().zip(regions(&layout, &request)) {
            seen.insert(start);
        }
        whole.insert(regions(&layout, &request).map(|region| region.1));
    }
    assert_eq!(whole.len(), 1000);
    let request = request(LayoutKind::Random, 0, 1);
    let layout = request.generate().unwrap();
    for (seen, (name, ..)) in seen.iter().zip(&regions(&layout, &request)) {
        // About 2^17 places where the low 30 bits are fixed (so a few of 1000 coincide), 2^26 and more elsewhere.
        if *name == "threads" {
            assert_eq!(seen.len(), 1, "common to all replicas of a set");
        } else {
            assert!(seen.len() >= 980, "{name}: {}", seen.len());
        }
    }
}

#[test]
fn the_high_bits_are_used_to_the_full_width() {
    let layouts: Vec<Layout> = (0..200)
        .map(|seed| request(LayoutKind::Random, seed, 1).generate().unwrap())
        .collect();
    for bit in 30..47 {
        let set = layouts
            .iter()
            .filter(|layout| layout.heap >> bit & 1 == 1)
            .count();
        assert!(
            (60..=140).contains(&set),
            "bit {bit} is set in {set} of 200"
        );
    }
}

#[test]
fn r8_replicas_share_the_low_bits_that_programs_see() {
    let first = request(LayoutKind::Random, 1, 7).generate().unwrap();
    let second = request(LayoutKind::Random, 2, 7).generate().unwrap();
    assert_eq!(shared(&first), shared(&second));
    assert_ne!(first, second);
    let other = request(LayoutKind::Random, 1, 8).generate().unwrap();
    for (this, that) in shared(&first).into_iter().zip(shared(&other)) {
        assert_ne!(this, that);
    }
}

#[test]
fn same_depends_on_the_input_seed_only() {
    let layout = |layout_seed, input_seed| {
        request(LayoutKind::Same, layout_seed, input_seed)
            .generate()
            .unwrap()
    };
    assert_eq!(layout(1, 7), layout(2, 7));
    assert_ne!(layout(1, 7), layout(1, 8));
}

#[test]
fn a_layout_that_cannot_fit_is_an_error_that_says_why() {
    let space = AddressSpace {
        low: 64 * GIB,
        high: 600 * GIB,
    };
    let error = request(LayoutKind::Random, 1, 1)
        .generate_in(space)
        .unwrap_err();
    assert!(matches!(error, LayoutError::DoesNotFit { .. }));
    assert!(error.to_string().contains("cannot fit"), "{error}");
    for space in [
        AddressSpace { low: 5, high: 5 },
        AddressSpace {
            low: u64::MAX,
            high: 0,
        },
    ] {
        assert!(
            request(LayoutKind::Random, 1, 1)
                .generate_in(space)
                .is_err()
        );
    }
}

/// The same guest, in ten layouts, and with a kernel at ten physical places.
#[test]
fn r8_a_guest_runs_alike_in_every_layout() {
    let mut places = HashSet::new();
    for seed in 0..10 {
        let mut config = config(Does::UseData);
        config.layout_seed = [seed; 32];
        config.memory_bytes = 64 << 20;
        let mut machine = Machine::new(&kvm(), &config).unwrap();
        places.insert((machine.layout().kernel, machine.registers().unwrap().cr3));
        let outputs = boundary(machine.run()).outputs;
        let expected = Output::Fingerprint {
            digest: [0x0123_4567_89ab_cdef, 77],
            syscalls: 0,
        };
        assert_eq!(outputs, [expected]);
    }
    assert_eq!(places.len(), 10);
    assert!(stub(Does::UseData).entry > 0);
}
