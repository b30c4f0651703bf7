//! Faults of the machine itself: registers, memory, pages.

use quorate_executor::place::Place as Named;
use quorate_vmm::Machine;
use quorate_vmm::fault::{Change, FaultRegister, MemoryClass, MemoryMap, PageAt, Whose};

use crate::model::{BitChange, Fault, MemoryPlace, PageFault};

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) place: String,
    pub(super) location: Option<(String, u64)>,
    /// What is to be kept so.
    pub(super) stuck: Option<Stuck>,
}

/// Bits that cannot be anything else any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stuck {
    Register {
        register: FaultRegister,
        whose: Whose,
        lane: u8,
        mask: u64,
        change: Change,
    },
    Memory {
        physical: u64,
        mask: u64,
        change: Change,
    },
}

impl Stuck {
    /// They are what they are. The guest may have made the place one that cannot be reached; then there is nothing to keep.
    pub(super) fn enforce(&self, machine: &mut Machine) {
        let kept = match *self {
            Stuck::Register {
                register,
                whose,
                lane,
                mask,
                change,
            } => machine.fault_register(register, whose, lane, mask, change),
            Stuck::Memory {
                physical,
                mask,
                change,
            } => machine.fault_memory(physical, mask, change),
        };
        if let Err(error) = kept {
            tracing::debug!("stuck bits: {error}");
        }
    }
}

fn change(how: BitChange) -> Change {
    match how {
        BitChange::Flip => Change::Flip,
        BitChange::StuckAt0 => Change::Clear,
        BitChange::StuckAt1 => Change::Set,
    }
}

/// Applies a fault of the machine, which stands. `whose`: whose registers are meant here.
///
/// # Errors
/// When it cannot be applied.
pub(super) fn apply(machine: &mut Machine, fault: &Fault, whose: Whose) -> Result<Done, String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    match fault {
        Fault::Register {
            register,
            mask,
            lane,
            change: how,
        } => {
            let register: FaultRegister = register.parse().map_err(|error| said(&error))?;
            let change = change(*how);
            let (before, after) = machine
                .fault_register(register, whose, *lane, *mask, change)
                .map_err(|error| said(&error))?;
            // The first form is the one that `explain` reads: it can do the same to a healthy machine.
            let mut name = match whose {
                Whose::Vcpu => register.name().to_owned(),
                Whose::Program => format!("the program's {}", register.name()),
            };
            if register.lanes() > 1 {
                name = format!("{name} lane {lane}");
            }
            let what = bits(*mask, *how);
            let stuck = (*how != BitChange::Flip).then_some(Stuck::Register {
                register,
                whose,
                lane: *lane,
                mask: *mask,
                change,
            });
            Ok(Done {
                place: format!("{name} {what}: {before:#x} became {after:#x}"),
                location: Some((register.name().to_owned(), u64::from(*lane))),
                stuck,
            })
        }
        Fault::Memory {
            place,
            mask,
            change: how,
        } => {
            let spot = find(machine, place)?;
            let change = change(*how);
            let (before, after) = machine
                .fault_memory(spot.physical, *mask, change)
                .map_err(|error| said(&error))?;
            let single = mask.count_ones() == 1 && *how == BitChange::Flip;
            let changed = if single {
                let bit = mask.trailing_zeros();
                let (byte, bit) = (bit / 8, bit % 8);
                let [before, after] = [before, after].map(|word| (word >> (8 * byte)) & 0xff);
                let at = spot.physical + u64::from(byte);
                format!("physical address {at:#x} bit {bit}: {before:#04x} became {after:#04x}")
            } else {
                let what = bits(*mask, *how);
                format!(
                    "physical address {:#x} {what}: {before:#x} became {after:#x}",
                    spot.physical
                )
            };
            let stuck = (*how != BitChange::Flip).then_some(Stuck::Memory {
                physical: spot.physical,
                mask: *mask,
                change,
            });
            Ok(Done {
                place: format!("{changed} ({})", spot.text),
                location: spot.location,
                stuck,
            })
        }
        Fault::Page { place, how } => {
            let spot = find(machine, place)?;
            let what = match how {
                PageFault::Drop => {
                    let entries = machine
                        .drop_page(spot.physical)
                        .map_err(|error| said(&error))?;
                    format!("is not mapped any more, {entries} entries of page tables are gone")
                }
                PageFault::Zero => {
                    let bytes = machine
                        .zero_page(spot.physical)
                        .map_err(|error| said(&error))?;
                    format!("holds zeros, {bytes} bytes were others")
                }
            };
            Ok(Done {
                place: format!("the page of {} {what}", spot.text),
                location: spot.location,
                stuck: None,
            })
        }
        Fault::Hang => {
            machine.set_rip_spin().map_err(|error| said(&error))?;
            Ok(plain("the guest spins"))
        }
        Fault::Crash => {
            machine.crash().map_err(|error| said(&error))?;
            Ok(plain("a triple fault"))
        }
        _ => Err("not a fault of the machine".to_owned()),
    }
}

fn plain(text: &str) -> Done {
    Done {
        place: text.to_owned(),
        location: None,
        stuck: None,
    }
}

/// `bit 3` or `bits 0x18`, with what becomes of them if they are not flipped.
fn bits(mask: u64, how: BitChange) -> String {
    let which = match mask.count_ones() {
        1 => format!("bit {}", mask.trailing_zeros()),
        _ => format!("bits {mask:#x}"),
    };
    match how {
        BitChange::Flip => which,
        BitChange::StuckAt0 => format!("{which} stuck at 0"),
        BitChange::StuckAt1 => format!("{which} stuck at 1"),
    }
}

/// A place in this machine.
struct Spot {
    physical: u64,
    text: String,
    location: Option<(String, u64)>,
}

fn find(machine: &Machine, place: &MemoryPlace) -> Result<Spot, String> {
    let map = || machine.memory_map().map_err(|error| error.to_string());
    let of_class = |class: MemoryClass, pick: u64| {
        let at = map()?
            .pick(class, pick)
            .ok_or_else(|| format!("the guest has no memory of class {class} here"))?;
        let offset = at.region.map_or(at.offset, |(_, offset)| offset);
        Ok(Spot {
            physical: at.physical,
            text: format!("{class}: {at}"),
            location: Some((class.name().to_owned(), offset)),
        })
    };
    match place {
        MemoryPlace::Ram { pick } => of_class(MemoryClass::Ram, *pick),
        MemoryPlace::Class { class, pick } => {
            let class: MemoryClass = class.parse().map_err(|error| format!("{error}"))?;
            of_class(class, *pick)
        }
        MemoryPlace::Named { place } => {
            let named: Named = place.parse()?;
            let physical = named.physical(machine)?;
            let location = class_of(&map()?, physical);
            Ok(Spot {
                physical,
                text: named.to_string(),
                location,
            })
        }
    }
}

/// What memory is used for, and the offset in its region.
fn class_of(map: &MemoryMap, physical: u64) -> Option<(String, u64)> {
    let holds = |page: &PageAt| physical.wrapping_sub(page.physical) < page.len;
    let classes = MemoryClass::all()
        .filter(|class| !matches!(class, MemoryClass::Ram | MemoryClass::PageTables));
    for class in classes {
        if let Some(page) = map.pages(class).iter().find(|page| holds(page)) {
            let within = physical - page.physical;
            let offset = page.region.map_or(page.offset, |(_, offset)| offset) + within;
            return Some((class.name().to_owned(), offset));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_named_as_explain_reads_them() {
        assert_eq!(bits(1 << 42, BitChange::Flip), "bit 42");
        assert_eq!(bits(6, BitChange::Flip), "bits 0x6");
        assert_eq!(bits(1, BitChange::StuckAt1), "bit 0 stuck at 1");
    }
}
