//! Where functions are: of the guest kernel, of the program, of the libraries that it uses. Found by name in the ELF files of kernel and
//! image, and by what the guest has mapped of them, so that one name means the same instruction in every layout.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_executor::explain::binary::Binary;
use quorate_executor::explain::files::Files;
use quorate_executor::gdb::values;
use quorate_vmm::Machine;
use quorate_vmm::fault::Place;

use super::sync::Shelf;

/// Names that are remembered (R10): a campaign has a handful; beyond it each is looked up again.
const KEPT: usize = 256;

/// See the module. Shared by all victims of a bench.
pub struct Symbols {
    kernel: Arc<[u8]>,
    image: PathBuf,
    program: String,
    known: Shelf<String, Result<Place, String>>,
}

impl Symbols {
    /// Of a kernel (its ELF file), an image and the path of the program in it.
    #[must_use]
    pub fn new(kernel: Arc<[u8]>, image: &Path, program: &str) -> Symbols {
        Symbols {
            kernel,
            image: image.to_owned(),
            program: program.to_owned(),
            known: Shelf::new(KEPT),
        }
    }

    /// The kernel's two functions between which it reads programs' code, for a debugger.
    #[must_use]
    pub fn code_reader(&self, machine: &Machine) -> Option<(u64, u64)> {
        let names = ["debug_code_reader_begin", "debug_code_reader_end"];
        let [begin, end] = values(&self.kernel, names);
        let at = machine.layout().kernel;
        Some((at + begin?, at + end?))
    }

    /// The address of a function in this machine; `+0x12` may follow the name.
    ///
    /// # Errors
    /// When there is none of that name in what is mapped.
    pub fn address(&self, name: &str, machine: &Machine) -> Result<u64, String> {
        let place = self
            .known
            .get_or_make(name.to_owned(), || self.find(name, machine))?;
        Ok(place.address(machine.layout()))
    }

    fn find(&self, name: &str, machine: &Machine) -> Result<Place, String> {
        let (symbol, offset) = split(name)?;
        let layout = machine.layout();
        let at = |virt: u64| Ok(Place::of(layout, virt.wrapping_add(offset)));
        let files = Files::open(&self.image, &self.program)
            .map_err(|error| format!("{}: {error}", self.image.display()))?;
        let pages = machine
            .executable_image()
            .map_err(|error| error.to_string())?;
        let mut seen = Vec::new();
        // The program first, then libraries by address, then the kernel.
        let mut found = None;
        for (virt, image_offset) in pages {
            let physical = quorate_abi::map::IMAGE_BASE + image_offset;
            let Some(file) = files.at(physical) else {
                continue;
            };
            if seen.contains(&file.ino) {
                continue;
            }
            let Some(binary) = files.binary(file.ino) else {
                continue;
            };
            // Pages that hold the end of one segment and the beginning of another say nothing of which is meant.
            let Some(linked) = linked(&binary, file.offset) else {
                continue;
            };
            seen.push(file.ino);
            if let Some(value) = binary.find(symbol) {
                let address = virt.wrapping_sub(linked).wrapping_add(value);
                if file.path == self.program || file.path.ends_with(&format!("/{}", self.program)) {
                    return at(address);
                }
                found.get_or_insert(address);
            }
        }
        if let Some(address) = found {
            return at(address);
        }
        let kernel =
            Binary::parse("guest kernel", &self.kernel).and_then(|kernel| kernel.find(symbol));
        let value = kernel.or_else(|| values(&self.kernel, [symbol])[0]);
        match value {
            Some(value) => at(layout.kernel.wrapping_add(value)),
            None => Err(format!(
                "there is no function {symbol:?} in the program, in the libraries that it uses or in the guest kernel (a stripped \
                 program has no names but those of its dynamic symbols)"
            )),
        }
    }
}

/// Name and offset.
fn split(name: &str) -> Result<(&str, u64), String> {
    let Some((symbol, offset)) = name.rsplit_once('+') else {
        return Ok((name, 0));
    };
    let parsed = match offset.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => offset.parse().ok(),
    };
    match parsed {
        Some(offset) => Ok((symbol, offset)),
        None => Err(format!("{offset:?} in {name:?} is no offset")),
    }
}

/// The address as linked of an executable byte of a file.
fn linked(binary: &Binary, offset: u64) -> Option<u64> {
    let mut of = binary.segments.iter().filter(|segment| {
        // Whole pages are mapped.
        let first = segment.offset / 4096 * 4096;
        segment.execute && (first..segment.offset + segment.file_len).contains(&offset)
    });
    let segment = of.next()?;
    Some(
        segment
            .addr
            .wrapping_sub(segment.offset)
            .wrapping_add(offset),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn an_offset_may_follow_a_name() {
        assert_eq!(split("main").unwrap(), ("main", 0));
        assert_eq!(split("main+0x10").unwrap(), ("main", 16));
        assert_eq!(split("main+7").unwrap(), ("main", 7));
        assert!(split("main+x").is_err());
    }
}
