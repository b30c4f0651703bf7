//! The register windows: what a driver may do, and what it must not.

use super::driver::Guest;
use crate::transport::register::{self, *};
use crate::{DeviceError, RegisterFault};
use quorate_abi::map::{SLOT_BLOCK, SLOT_CONSOLE, SLOT_ENTROPY, SLOT_NET};
use quorate_abi::net::{GUEST_MAC, MTU};

fn fault(result: Result<(), DeviceError>) -> RegisterFault {
    match result {
        Err(DeviceError::Register { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn devices_identify_themselves() {
    let mut guest = Guest::new();
    for (slot, id) in [(SLOT_ENTROPY, 4), (SLOT_CONSOLE, 3), (SLOT_NET, 1)] {
        assert_eq!(guest.read(slot, MAGIC_VALUE), 0x7472_6976);
        assert_eq!(guest.read(slot, VERSION), 2);
        assert_eq!(guest.read(slot, DEVICE_ID), id);
        assert_eq!(guest.read(slot, SHM_LEN_LOW), u32::MAX);
        assert_eq!(guest.read(slot, SHM_BASE_HIGH), u32::MAX);
        guest.write(slot, DEVICE_FEATURES_SEL, 1).unwrap();
        assert_eq!(guest.read(slot, DEVICE_FEATURES), 1, "VIRTIO_F_VERSION_1");
        guest.write(slot, DEVICE_FEATURES_SEL, 2).unwrap();
        assert_eq!(guest.read(slot, DEVICE_FEATURES), 0);
    }
    assert_eq!(guest.read(SLOT_BLOCK, MAGIC_VALUE), 0, "no device there");
    assert_eq!(
        fault(guest.write(SLOT_BLOCK, STATUS, 1)),
        RegisterFault::NoDevice
    );
}

#[test]
fn the_network_configuration_has_mac_and_mtu() {
    let guest = Guest::new();
    let words: Vec<u8> = (0..12)
        .step_by(4)
        .flat_map(|at| guest.read(SLOT_NET, CONFIG + at).to_le_bytes())
        .collect();
    assert_eq!(words[..6], GUEST_MAC);
    assert_eq!(words[10..12], MTU.to_le_bytes());
    assert_eq!(guest.read(SLOT_NET, CONFIG + 12), 0);
    assert_eq!(guest.read(SLOT_NET, CONFIG + 0xefc), 0);
}

#[test]
fn the_status_follows_the_specification() {
    for (steps, bad) in [
        (&[][..], 2),       // DRIVER before ACKNOWLEDGE
        (&[1], 9),          // FEATURES_OK before DRIVER
        (&[1, 3], 7),       // DRIVER_OK before FEATURES_OK
        (&[1, 3], 1),       // a bit cleared
        (&[1], 0x41),       // a bit of the device
        (&[], 0x8000_0001), // a bit that does not exist
    ] {
        let mut guest = Guest::new();
        for &step in steps {
            guest.write(SLOT_NET, STATUS, step).unwrap();
        }
        let fault = fault(guest.write(SLOT_NET, STATUS, bad));
        assert!(
            matches!(fault, RegisterFault::Status { .. }),
            "{steps:?} {bad}"
        );
        assert_ne!(guest.read(SLOT_NET, STATUS) & 0x40, 0, "needs a reset");
        guest.write(SLOT_NET, STATUS, 0).unwrap();
        assert_eq!(guest.read(SLOT_NET, STATUS), 0);
    }
}

#[test]
fn features_that_were_not_offered_or_version_1_missing_leave_features_ok_clear() {
    for features in [0_u64, 1 << 32 | 1 << 0] {
        let mut guest = Guest::new();
        guest.write(SLOT_NET, STATUS, 1).unwrap();
        guest.write(SLOT_NET, STATUS, 3).unwrap();
        for word in 0..2 {
            guest.write(SLOT_NET, DRIVER_FEATURES_SEL, word).unwrap();
            let bits = (features >> (32 * word)) as u32;
            guest.write(SLOT_NET, DRIVER_FEATURES, bits).unwrap();
        }
        guest.write(SLOT_NET, STATUS, 0xb).unwrap();
        assert_eq!(guest.read(SLOT_NET, STATUS), 3);
    }
    let mut guest = Guest::new();
    guest.write(SLOT_NET, DRIVER_FEATURES_SEL, 2).unwrap();
    guest.write(SLOT_NET, DRIVER_FEATURES, 0).unwrap();
    assert_eq!(
        fault(guest.write(SLOT_NET, DRIVER_FEATURES, 1)),
        RegisterFault::Feature
    );
}

#[test]
fn accesses_of_a_wrong_width_are_errors_for_writes_and_zero_for_reads() {
    let mut guest = Guest::new();
    let base = quorate_abi::map::MMIO_BASE;
    for data in [&[1][..], &[1, 0], &[1; 8], &[]] {
        let result = guest.devices.mmio_write(&guest.mem, base + STATUS, data);
        assert_eq!(fault(result), RegisterFault::Width(data.len()));
    }
    let result = guest
        .devices
        .mmio_write(&guest.mem, base + STATUS + 2, &[0; 4]);
    assert_eq!(fault(result), RegisterFault::Width(4));
    let mut byte = [7];
    guest.devices.mmio_read(base + MAGIC_VALUE, &mut byte);
    assert_eq!(byte, [0]);
    for at in [MAGIC_VALUE, CONFIG, 0x24c, INTERRUPT_STATUS] {
        assert_eq!(
            fault(guest.write(SLOT_NET, at, 1)),
            match at {
                CONFIG | 0x24c | MAGIC_VALUE | INTERRUPT_STATUS => RegisterFault::ReadOnly,
                _ => unreachable!(),
            }
        );
    }
}

#[test]
fn queue_registers_are_checked() {
    let mut guest = Guest::new();
    let ready = |guest: &mut Guest, size: u32, rings: [u64; 3]| {
        guest.write(SLOT_NET, STATUS, 0).unwrap();
        guest.start(SLOT_NET, 0, &[]);
        guest.write(SLOT_NET, QUEUE_SEL, 0).unwrap();
        guest.write(SLOT_NET, QUEUE_NUM, size).unwrap();
        for (at, addr) in [QUEUE_DESC_LOW, QUEUE_DRIVER_LOW, QUEUE_DEVICE_LOW]
            .into_iter()
            .zip(rings)
        {
            guest.write(SLOT_NET, at, addr as u32).unwrap();
            guest.write(SLOT_NET, at + 4, (addr >> 32) as u32).unwrap();
        }
        guest.write(SLOT_NET, QUEUE_READY, 1)
    };
    let good = [0x10000, 0x20000, 0x30000];
    ready(&mut guest, 256, good).unwrap();
    for size in [0, 3, 512, 65536, u32::MAX] {
        assert_eq!(
            fault(ready(&mut guest, size, good)),
            RegisterFault::QueueSize(size)
        );
    }
    for (index, bad) in [
        (0, 8),
        (1, 1),
        (2, 2),
        (0, !15),
        (1, 1 << 40),
        (2, (4 << 20) - 4),
        (1, 0),
    ] {
        let mut rings = good;
        rings[index] = bad;
        assert_eq!(
            fault(ready(&mut guest, 256, rings)),
            RegisterFault::QueueAddress,
            "{index} {bad:#x}"
        );
    }
    ready(&mut guest, 256, good).unwrap();
    for at in [
        QUEUE_NUM,
        QUEUE_READY,
        QUEUE_DESC_LOW,
        QUEUE_DRIVER_HIGH,
        QUEUE_DEVICE_LOW,
    ] {
        assert_eq!(
            fault(guest.write(SLOT_NET, at, 1)),
            RegisterFault::QueueInUse
        );
    }
    guest.write(SLOT_NET, QUEUE_READY, 0).unwrap();
    guest.write(SLOT_NET, QUEUE_NUM, 8).unwrap();
    guest.write(SLOT_NET, QUEUE_SEL, 2).unwrap();
    assert_eq!(guest.read(SLOT_NET, QUEUE_NUM_MAX), 0);
    assert_eq!(
        fault(guest.write(SLOT_NET, QUEUE_NUM, 8)),
        RegisterFault::NoQueue(2)
    );
    guest.write(SLOT_NET, register::QUEUE_NOTIFY, 1).unwrap();
    assert_eq!(
        fault(guest.write(SLOT_NET, QUEUE_NOTIFY, 2)),
        RegisterFault::NoQueue(2)
    );
}

#[test]
fn queues_come_after_features() {
    let mut guest = Guest::new();
    assert!(matches!(
        fault(guest.write(SLOT_NET, QUEUE_NUM, 8)),
        RegisterFault::Status { .. }
    ));
}
