//! Kernel modules: which others each needs, and the order to load them in. Debian's packages have no `modules.dep`: it is written
//! when they are installed, so that what modules say of themselves is read here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

/// Most bytes of one module, unpacked (R10).
const MAX_MODULE: u64 = 64 << 20;
/// Section that holds what a module says of itself: `key=value` strings with zeroes between them.
const SECTION: &[u8] = b".modinfo";

/// A module by its name, with `_` for `-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// Why the modules cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ModuleError {
    #[error("the kernel has no module {0}, and it is not built in")]
    Missing(String),
    #[error("{0}: not a module that can be read")]
    Malformed(String),
    #[error("the modules need each other in a circle: {0}")]
    Circle(String),
}

/// All modules of a kernel: those that are files, packed or not, and those that are built in.
#[derive(Default)]
pub(super) struct Modules {
    /// Compressed ones with the suffix of their compression.
    files: BTreeMap<String, (Packing, Vec<u8>)>,
    built_in: BTreeSet<String>,
}

#[derive(Clone, Copy)]
enum Packing {
    Plain,
    Xz,
    Gzip,
    Zstd,
}

impl Modules {
    /// Takes a file below `lib/modules/VERSION`; others than modules and `modules.builtin` are left out.
    pub(super) fn add(&mut self, file_name: &str, content: &[u8]) {
        if file_name == "modules.builtin" {
            let text = String::from_utf8_lossy(content);
            let names = text.lines().filter_map(|line| stem(base(line)));
            self.built_in.extend(names.map(|(name, _)| name));
        } else if let Some((name, packing)) = stem(file_name) {
            self.files.insert(name, (packing, content.to_vec()));
        }
    }

    /// The modules `names` and all that they need, each after those that it needs. Built-in ones are not among them.
    pub(super) fn ordered(&self, names: &[&str]) -> Result<Vec<Module>, ModuleError> {
        let mut found = Vec::new();
        let mut done = BTreeSet::new();
        for name in names {
            self.visit(&normal(name), &mut Vec::new(), &mut done, &mut found)?;
        }
        Ok(found)
    }

    fn visit(
        &self,
        name: &str,
        above: &mut Vec<String>,
        done: &mut BTreeSet<String>,
        found: &mut Vec<Module>,
    ) -> Result<(), ModuleError> {
        if done.contains(name) || self.built_in.contains(name) {
            return Ok(());
        }
        if above.iter().any(|other| other == name) {
            return Err(ModuleError::Circle(above.join(", ")));
        }
        let (packing, packed) = self
            .files
            .get(name)
            .ok_or_else(|| ModuleError::Missing(name.to_owned()))?;
        let malformed = || ModuleError::Malformed(name.to_owned());
        let content = unpack(*packing, packed).ok_or_else(malformed)?;
        let needed = depends(&content).ok_or_else(malformed)?;
        above.push(name.to_owned());
        for other in &needed {
            self.visit(other, above, done, found)?;
        }
        above.pop();
        done.insert(name.to_owned());
        found.push(Module {
            name: name.to_owned(),
            content,
        });
        Ok(())
    }
}

/// Names are written with `-` or `_`; the kernel takes both for the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn stem(file_name: &str) -> Option<(String, Packing)> {
    let packings = [
        (".ko", Packing::Plain),
        (".ko.xz", Packing::Xz),
        (".ko.gz", Packing::Gzip),
        (".ko.zst", Packing::Zstd),
    ];
    packings.into_iter().find_map(|(suffix, packing)| {
        let name = file_name.strip_suffix(suffix)?;
        Some((normal(name), packing))
    })
}

fn unpack(packing: Packing, bytes: &[u8]) -> Option<Vec<u8>> {
    let plain: Box<dyn Read + '_> = match packing {
        Packing::Plain => return Some(bytes.to_vec()),
        Packing::Xz => Box::new(lzma_rust2::XzReader::new(bytes, true)),
        Packing::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
        Packing::Zstd => Box::new(ruzstd::decoding::StreamingDecoder::new(bytes).ok()?),
    };
    let mut content = Vec::new();
    plain.take(MAX_MODULE + 1).read_to_end(&mut content).ok()?;
    (content.len() as u64 <= MAX_MODULE).then_some(content)
}

/// The modules that the ELF file `module` says it needs. `None` if it is malformed or says nothing.
fn depends(module: &[u8]) -> Option<Vec<String>> {
    let info = section(module, SECTION)?;
    let mut fields = info.split(|byte| *byte == 0);
    let list = fields.find_map(|field| field.strip_prefix(b"depends="))?;
    let list = std::str::from_utf8(list).ok()?;
    let names = list.split(',').filter(|name| !name.is_empty());
    Some(names.map(normal).collect())
}

/// Contents of the section `name` of a 64-bit little-endian ELF file (the ELF-64 object file format: header 64 bytes, section
/// headers of 64 bytes).
fn section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |at: usize, len: usize| {
        let bytes = elf.get(at..at.checked_add(len)?)?;
        let value = bytes
            .iter()
            .rev()
            .fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).ok()
    };
    let (table, count, names) = (number(0x28, 8)?, number(0x3c, 2)?, number(0x3e, 2)?);
    let header = |index: usize| table.checked_add(index.checked_mul(64)?);
    let contents = |index: usize| {
        let at = header(index)?;
        let (start, len) = (
            number(at.checked_add(0x18)?, 8)?,
            number(at.checked_add(0x20)?, 8)?,
        );
        elf.get(start..start.checked_add(len)?)
    };
    let strings = contents(names)?;
    (0..count).find_map(|index| {
        let text = strings.get(number(header(index)?, 4)?..)?;
        let rest = text.strip_prefix(name)?;
        if rest.first() != Some(&0) {
            return None;
        }
        contents(index)
    })
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A module that needs `others`: an ELF file of two sections.
    pub(crate) fn module(others: &str) -> Vec<u8> {
        let info = format!("license=GPL\0depends={others}\0name=x\0");
        let names = b"\0.modinfo\0.names\0";
        let mut elf = vec![0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let (info_at, names_at) = (elf.len(), elf.len() + info.len());
        elf.extend_from_slice(info.as_bytes());
        elf.extend_from_slice(names);
        let table = elf.len() as u64;
        elf[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        elf[0x3c] = 3;
        elf[0x3e] = 2;
        for (name, at, len) in [
            (0u32, 0, 0),
            (1, info_at, info.len()),
            (10, names_at, names.len()),
        ] {
            let mut header = [0u8; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(len as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf
    }

    fn modules() -> Modules {
        let mut modules = Modules::default();
        modules.add("virtio_blk.ko", &module("virtio_ring,virtio"));
        modules.add("virtio-rng.ko", &module("virtio,virtio_ring,rng-core"));
        modules.add("virtio.ko", &module(""));
        modules.add("virtio_ring.ko", &module("virtio"));
        modules.add(
            "modules.builtin",
            b"kernel/char/rng-core.ko\nkernel/fs/ext4.ko\n",
        );
        modules.add("modules.order", b"x");
        modules
    }

    fn names(found: &[Module]) -> Vec<&str> {
        found.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn each_comes_after_those_that_it_needs() {
        let found = modules().ordered(&["virtio_rng", "ext4", "virtio_blk", "virtio"]);
        let expected = ["virtio", "virtio_ring", "virtio_rng", "virtio_blk"];
        assert_eq!(names(&found.unwrap()), expected);
    }

    #[test]
    fn what_is_missing_malformed_or_circular_is_an_error() {
        let mut modules = modules();
        let missing = ModuleError::Missing("virtio_net".to_owned());
        assert_eq!(modules.ordered(&["virtio-net"]), Err(missing));
        modules.add("a.ko", &module("b"));
        modules.add("b.ko", &module("a"));
        assert!(matches!(
            modules.ordered(&["a"]),
            Err(ModuleError::Circle(_))
        ));
        for length in [0, 6, 63, 100] {
            modules.add("c.ko", &module("")[..length]);
            let error = ModuleError::Malformed("c".to_owned());
            assert_eq!(modules.ordered(&["c"]), Err(error));
        }
        modules.add("d.ko.xz", b"no xz");
        assert!(matches!(
            modules.ordered(&["d"]),
            Err(ModuleError::Malformed(_))
        ));
    }
}
