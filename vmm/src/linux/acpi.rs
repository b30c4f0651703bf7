//! ACPI tables: what tells the kernel of its processors, interrupt lines, virtio devices, console and power.
//!
//! Hardware-reduced ACPI (6.5, 3.11.1): no fixed hardware, no 8259, no PIT, no keyboard controller and no clock chip are claimed, so that
//! the kernel looks for none; reset and power-off are one port each; the power button is a generic event device.

use super::map::{
    ACPI, HIGH, IO_APIC, LOCAL_APIC, POWER, POWER_BUTTON_GSI, POWER_RESET, POWER_STATUS, SERIAL,
    SERIAL_GSI, SLEEP_OFF, gsi,
};
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml::ZERO};
use quorate_abi::map::MMIO_STRIDE;
use quorate_devices::Window;

const OEM: [u8; 6] = *b"QUORAT";
const TABLE: [u8; 8] = *b"QRTLINUX";
const REVISION: u32 = 1;
/// FADT, IA-PC boot architecture (ACPI 6.5, table 5.10): no VGA, no clock chip; and none of the legacy devices that have a bit.
const NO_VGA_NO_RTC: u16 = 1 << 2 | 1 << 5;
/// ACPI 6.5, 5.6.6: the notification "pressed" of a button device.
const PRESSED: u8 = 0x80;

/// The tables for a machine with so many processors and these virtio devices, as bytes for [`ACPI`] and on; the RSDP is the first.
/// `None` if they do not fit there, which needs far more devices than there are windows.
pub(crate) fn tables(cpus: u8, windows: &[Window]) -> Option<Vec<u8>> {
    let mut bytes = vec![0; Rsdp::len().next_multiple_of(16)];
    let mut put = |table: &dyn Aml| {
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        let at = ACPI + bytes.len() as u64;
        table.to_aml_bytes(&mut bytes);
        at
    };
    let dsdt = put(&dsdt(windows));
    let fadt = put(&fadt(dsdt));
    let madt = put(&madt(cpus));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    bytes.get_mut(..rsdp.len())?.copy_from_slice(&rsdp);
    (bytes.len() as u64 <= HIGH - ACPI).then_some(bytes)
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            port.into(),
        )
    };
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // No fixed buttons: the power button is a device.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_VGA_NO_RTC.into();
    fadt.reset_reg = port(POWER);
    fadt.reset_value = POWER_RESET;
    fadt.sleep_control_reg = port(POWER);
    fadt.sleep_status_reg = port(POWER_STATUS);
    fadt.finalize()
}

fn madt(cpus: u8) -> MADT {
    let mut madt = MADT::new(
        OEM,
        TABLE,
        REVISION,
        LocalInterruptController::Address(LOCAL_APIC),
    );
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

/// Edge-triggered, active high, not shared: an irqfd makes a pulse.
fn line(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn dsdt(windows: &[Window]) -> Sdt {
    let mut code = Vec::new();
    system_bus(windows, &mut code);
    // Type 5 to the sleep control register means off.
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_OFF, &ZERO])).to_aml_bytes(&mut code);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    dsdt.append_slice(&code);
    dsdt
}

fn system_bus(windows: &[Window], code: &mut Vec<u8>) {
    let mut devices = Vec::new();
    let serial = line(SERIAL_GSI);
    let ports = IO::new(SERIAL, SERIAL, 1, 8);
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &serial])),
        ],
    )
    .to_aml_bytes(&mut devices);
    for window in windows {
        let (Some(gsi), Ok(base)) = (gsi(window.slot), u32::try_from(window.base)) else {
            continue;
        };
        let registers = Memory32Fixed::new(true, base, MMIO_STRIDE as u32);
        let interrupt = line(gsi);
        Device::new(
            Path::new(&format!("VR{:02}", window.slot)),
            vec![
                &Name::new("_HID".into(), &"LNRO0005"),
                &Name::new("_UID".into(), &(window.slot as u32)),
                // Devices see what processors write.
                &Name::new("_CCA".into(), &1_u8),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![&registers, &interrupt]),
                ),
            ],
        )
        .to_aml_bytes(&mut devices);
    }
    Device::new(
        "PWRB".into(),
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C"))],
    )
    .to_aml_bytes(&mut devices);
    let event = line(POWER_BUTTON_GSI);
    let button = Path::new("\\_SB_.PWRB");
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&event])),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&Notify::new(&button, &PRESSED)],
            ),
        ],
    )
    .to_aml_bytes(&mut devices);
    code.extend(Scope::raw("\\_SB_".into(), devices));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use quorate_devices::{DiskConfig, VirtioConfig, VirtioSet};

    fn windows(disks: usize) -> Vec<Window> {
        let disk = DiskConfig {
            bytes: 4096,
            read_only: false,
            id: String::new(),
            sync: false,
        };
        let set = VirtioSet::new(&VirtioConfig {
            input_seed: [0; 32],
            disks: vec![disk; disks],
            interrupts: true,
        });
        set.unwrap().windows()
    }

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The table at a guest-physical address, with its length and checksum checked as a kernel does.
    fn table(all: &[u8], at: u64) -> &[u8] {
        let at = usize::try_from(at - ACPI).unwrap();
        let len = u32::from_le_bytes(all[at + 4..at + 8].try_into().unwrap()) as usize;
        let table = &all[at..at + len];
        assert_eq!(table.iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)), 0);
        table
    }

    #[test]
    fn a_kernel_finds_every_table_from_the_first() {
        let all = tables(3, &windows(8)).unwrap();
        assert!(all.len() < 0x1_0000);
        assert_eq!(&all[..8], b"RSD PTR ");
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, b| sum.wrapping_add(*b));
        assert_eq!((sum(&all[..20]), sum(&all[..36])), (0, 0));
        let xsdt = table(&all, word(&all, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let [fadt, madt] = [36, 44].map(|at| table(&all, word(xsdt, at)));
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        let dsdt = table(&all, word(fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        // Hardware-reduced, with a reset register, which is the sleep control register as well (ACPI 6.5, table 5.9).
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        let register = [1, 8, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0];
        assert_eq!((&fadt[116..128], fadt[128]), (&register[..], POWER_RESET));
        assert_eq!(fadt[244..256], register);
        // Three processors with the numbers that CPUID gives them, one I/O interrupt controller from line 0 on.
        let cpu = |n: u8| [0, 8, n, n, 1, 0, 0, 0];
        let io = [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];
        assert_eq!(madt[44..], [&cpu(0)[..], &cpu(1), &cpu(2), &io].concat());
    }

    /// The bytes of `_CRS` of a virtio device: Memory32Fixed and an extended interrupt (ACPI 6.5, 6.4.3.4 and 6.4.3.6).
    #[test]
    fn every_virtio_device_has_its_window_and_a_line_of_its_own() {
        let windows = windows(8);
        let all = tables(1, &windows).unwrap();
        let mut lines = vec![SERIAL_GSI, POWER_BUTTON_GSI];
        for window in &windows {
            let gsi = gsi(window.slot).unwrap();
            assert!(gsi < 24 && !lines.contains(&gsi), "line {gsi} twice");
            lines.push(gsi);
            let mut resources = vec![0x86, 9, 0, 1];
            resources.extend((window.base as u32).to_le_bytes());
            resources.extend((MMIO_STRIDE as u32).to_le_bytes());
            resources.extend([0x89, 6, 0, 0b11, 1]);
            resources.extend(gsi.to_le_bytes());
            let found = all
                .windows(resources.len())
                .filter(|part| *part == resources);
            assert_eq!(found.count(), 1, "window {}", window.slot);
        }
        let ids = all.windows(8).filter(|part| part == b"LNRO0005");
        assert_eq!(ids.count(), windows.len());
    }

    /// For a developer: `QUORATE_ACPI_OUT=dir cargo test -p quorate-vmm acpi`, then `iasl -d dir/*`.
    #[test]
    fn tables_can_be_written_out() {
        let Ok(to) = std::env::var("QUORATE_ACPI_OUT") else {
            return;
        };
        let all = tables(2, &windows(2)).unwrap();
        let xsdt = table(&all, word(&all, 24));
        let fadt = table(&all, word(xsdt, 36));
        let found = [
            ("xsdt", xsdt),
            ("facp", fadt),
            ("apic", table(&all, word(xsdt, 44))),
            ("dsdt", table(&all, word(fadt, 140))),
        ];
        for (name, bytes) in found {
            std::fs::write(format!("{to}/{name}.dat"), bytes).unwrap();
        }
    }
}
