//! The memory of a machine that exists, read through the guest kernel's map of all memory.

use quorate_abi::boot::Layout;
use quorate_abi::map::IMAGE_BASE;
use quorate_vmm::Machine;

use super::memory::Memory;

/// See the module. Page tables are believed as far as they lead to that map.
pub struct Live<'m> {
    machine: &'m Machine,
    layout: Layout,
    root: u64,
}

impl<'m> Live<'m> {
    /// The memory of `machine` as it is now.
    #[must_use]
    pub fn new(machine: &'m Machine) -> Live<'m> {
        Live {
            machine,
            layout: *machine.layout(),
            root: machine
                .registers()
                .map_or(0, |registers| registers.cr3 & !0xfff),
        }
    }
}

/// Where the guest kernel reaches a guest-physical address.
#[must_use]
pub fn reached_at(layout: &Layout, phys: u64) -> Option<u64> {
    match phys.checked_sub(IMAGE_BASE) {
        Some(offset) => layout.image.checked_add(offset),
        None => layout.direct.checked_add(phys),
    }
}

impl Memory for Live<'_> {
    fn read(&self, addr: u64, to: &mut [u8]) -> bool {
        reached_at(&self.layout, addr)
            .is_some_and(|at| self.machine.read_virtual(at, to) == to.len())
    }

    /// Not listed: a machine that exists is read, not searched.
    fn pages(&self) -> Vec<u64> {
        Vec::new()
    }

    fn root(&self) -> u64 {
        self.root
    }
}
