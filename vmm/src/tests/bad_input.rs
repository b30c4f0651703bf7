//! What is wrong with a configuration is said, each in its own way.

use super::guest::{Does, stub};
use super::machine::{config, kvm};
use crate::*;
use proptest::prelude::*;

fn refuse(change: impl FnOnce(&mut MachineConfig)) -> MachineError {
    let mut config = config(Does::Echo);
    change(&mut config);
    Machine::new(&kvm(), &config).unwrap_err()
}

fn kernel_fault(change: impl FnOnce(&mut Vec<u8>)) -> KernelFault {
    let mut file = stub(Does::Echo).elf();
    change(&mut file);
    match refuse(|config| config.kernel = file.into()) {
        MachineError::Kernel(fault) => fault,
        other => panic!("{other}"),
    }
}

/// Where the kernel's header is in the stub's file.
const HEADER: usize = 0x1000;
/// Where the program headers are.
const SEGMENTS: usize = 64;

#[test]
fn memory() {
    assert!(matches!(
        refuse(|config| config.memory_bytes = 0),
        MachineError::MemoryTooSmall { .. }
    ));
    let error = refuse(|config| config.memory_bytes = 30 << 20);
    assert!(error.to_string().contains("32 MiB"), "{error}");
    assert!(matches!(
        refuse(|config| config.memory_bytes = (32 << 20) + 1),
        MachineError::MemoryUneven(_)
    ));
    assert!(matches!(
        refuse(|config| config.memory_bytes = 65 << 30),
        MachineError::MemoryTooLarge(_)
    ));
}

#[test]
fn a_kernel_that_needs_more_memory_than_there_is() {
    let error = refuse(|config| {
        let mut file = config.kernel.to_vec();
        let memory_size = SEGMENTS + 56 + 40;
        file[memory_size..memory_size + 8].copy_from_slice(&(40_u64 << 20).to_le_bytes());
        config.kernel = file.into();
    });
    assert!(
        matches!(error, MachineError::MemoryTooSmall { needed, .. } if needed > 42 << 20),
        "{error}"
    );
}

#[test]
fn kernels() {
    assert!(matches!(
        kernel_fault(|file| file.truncate(10)),
        KernelFault::Elf(_)
    ));
    assert!(matches!(
        kernel_fault(|file| file[1] = b'F'),
        KernelFault::Elf(_)
    ));
    assert!(
        matches!(kernel_fault(|file| file[16] = 2), KernelFault::Elf(_)),
        "ET_EXEC"
    );
    assert!(
        matches!(
            kernel_fault(|file| file.truncate(0x1800)),
            KernelFault::Elf(_)
        ),
        "segment cut"
    );
    assert_eq!(kernel_fault(|file| file[HEADER] ^= 1), KernelFault::Magic);
    assert_eq!(
        kernel_fault(|file| file[HEADER + 8] = 99),
        KernelFault::Version(99)
    );
    for (name, at) in [
        ("vectors", 16),
        ("syscall_entry", 24),
        ("entry", 32),
        ("spin", 40),
    ] {
        let beyond = |file: &mut Vec<u8>| file[HEADER + at..HEADER + at + 8].fill(0xff);
        assert_eq!(kernel_fault(beyond), KernelFault::Offset(name));
        // The first byte of the data segment is in the kernel, but is no code.
        let data = |file: &mut Vec<u8>| {
            file[HEADER + at..HEADER + at + 8].copy_from_slice(&0x1000_u64.to_le_bytes());
        };
        assert_eq!(kernel_fault(data), KernelFault::Offset(name));
    }
    assert_eq!(
        kernel_fault(|file| file[SEGMENTS + 4] = 7),
        KernelFault::Rights(0)
    );
    let overlap = |file: &mut Vec<u8>| {
        for at in [16, 24] {
            file[SEGMENTS + 56 + at..][..8].copy_from_slice(&0x800_u64.to_le_bytes());
        }
    };
    assert_eq!(kernel_fault(overlap), KernelFault::Rights(1));
    let huge = |file: &mut Vec<u8>| {
        file[SEGMENTS + 56 + 40..][..8].copy_from_slice(&(1_u64 << 40).to_le_bytes())
    };
    assert!(matches!(kernel_fault(huge), KernelFault::TooLarge(_)));
}

#[test]
fn programs() {
    assert!(matches!(
        refuse(|config| config.program.argv.clear()),
        MachineError::NoProgram
    ));
    let error = refuse(|config| config.program.envp.push("A=b\0c".into()));
    assert!(matches!(error, MachineError::StringWithNul(_)));
    let error = refuse(|config| config.program.argv.push("x".repeat(32 * 1024)));
    assert!(matches!(error, MachineError::StringsTooLong(_)));
}

#[test]
fn images() {
    use std::sync::Arc;
    let empty = tempfile::tempfile().unwrap();
    assert!(matches!(
        refuse(|config| config.image = Some(Arc::new(empty))),
        MachineError::ImageEmpty
    ));
    let sparse = tempfile::tempfile().unwrap();
    sparse.set_len((64 << 30) + 1).unwrap();
    assert!(matches!(
        refuse(|config| config.image = Some(Arc::new(sparse))),
        MachineError::ImageTooLarge(_)
    ));
    let directory = std::fs::File::open("/").unwrap();
    let error = refuse(|config| config.image = Some(Arc::new(directory)));
    assert!(
        matches!(error, MachineError::Image(_) | MachineError::ImageEmpty),
        "{error}"
    );
}

proptest! {
    /// A damaged kernel file is an error or, if nothing that matters was hit, a machine. Never a panic.
    #[test]
    fn damaged_kernels_never_panic(damage in prop::collection::vec((0_usize..0x1400, any::<u8>()), 1..8)) {
        let mut config = config(Does::Echo);
        let mut file = config.kernel.to_vec();
        for (at, value) in damage {
            let at = at % file.len();
            file[at] = value;
        }
        config.kernel = file.into();
        let _ = Machine::new(&kvm(), &config);
    }
}
