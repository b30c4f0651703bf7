//! What gdb needs to know names: the files of which code is mapped in the guest, and where. They are found in the guest's page tables:
//! programs' code is mapped from the root image in place, so an executable page tells which file it is of. Programs on a disk are not found.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quorate_abi::image::{ImageView, ROOT_INODE};
use quorate_vmm::{Machine, MachineConfig};

use crate::patience::patient;

/// Most files of an image that are looked at (R10).
const MAX_FILES: usize = 1 << 20;
/// Directories within one another (R10).
const MAX_DEPTH: usize = 64;
/// Most files that are written for gdb (R10).
const MAX_OBJECTS: usize = 256;

/// How long gdb waits for an answer. A replay that is gone closes the connection, so it need not be short.
const GDB_TIMEOUT: Duration = Duration::from_secs(60);

/// A regular file of the image.
struct ImageFile {
    path: String,
    start: u64,
    len: u64,
}

/// See the module.
pub struct Symbols {
    /// Where files for gdb are put.
    directory: PathBuf,
    script: PathBuf,
    image: Option<Arc<File>>,
    kernel: Arc<[u8]>,
    kernel_at: u64,
    /// Path of the set's program.
    program: String,
    address: String,
    /// By address, the file for gdb; its name is the path in the guest, with `!` for `/`.
    objects: BTreeMap<u64, PathBuf>,
    files: Vec<ImageFile>,
    /// What could not be done.
    trouble: Option<String>,
}

impl Symbols {
    /// For a recording: `RECORDING.gdb` is the script, `RECORDING.gdb.d` the directory. Writes the kernel's file.
    pub fn new(recording: &Path, machine: &MachineConfig, kernel_at: u64, address: &str) -> Self {
        let with = |end: &str| {
            let mut name = recording.as_os_str().to_owned();
            name.push(end);
            // gdb may be started in another directory.
            let path = PathBuf::from(name);
            std::path::absolute(&path).unwrap_or(path)
        };
        let mut symbols = Symbols {
            directory: with(".gdb.d"),
            script: with(".gdb"),
            image: machine.image.clone(),
            kernel: Arc::clone(&machine.kernel),
            kernel_at,
            program: machine.program.argv.first().cloned().unwrap_or_default(),
            address: address.to_owned(),
            objects: BTreeMap::new(),
            files: Vec::new(),
            trouble: None,
        };
        let kernel = Arc::clone(&symbols.kernel);
        if let Err(error) = symbols.write(&symbols.directory.join("guest-kernel"), &kernel) {
            symbols.trouble = Some(format!("{}: {error}", symbols.directory.display()));
        }
        symbols
    }

    /// The script.
    pub fn script(&self) -> &Path {
        &self.script
    }

    /// Whether any program is known.
    pub fn has_programs(&self) -> bool {
        !self.objects.is_empty()
    }

    /// Looks at what is mapped now, and writes the script.
    pub fn find(&mut self, machine: &Machine) {
        let pages = match machine.executable_image() {
            Ok(pages) => pages,
            Err(error) => return self.trouble = Some(error.to_string()),
        };
        if let Err(error) = self.take(&pages).and_then(|()| self.write_script()) {
            self.trouble = Some(format!("{}: {error}", self.script.display()));
        }
    }

    fn take(&mut self, pages: &[(u64, u64)]) -> io::Result<()> {
        let unknown: Vec<_> = pages
            .iter()
            .filter(|page| self.at(page.0).is_none())
            .collect();
        let Some(image) = self.image.clone().filter(|_| !unknown.is_empty()) else {
            return Ok(());
        };
        let mut bytes = vec![0; usize::try_from(image.metadata()?.len()).unwrap_or(0)];
        image.read_exact_at(&mut bytes, 0)?;
        let view = ImageView::parse(&bytes).map_err(io::Error::other)?;
        if self.files.is_empty() {
            list(&view, ROOT_INODE, "", 0, &mut self.files);
            // A file may have several names: the one by which it was called comes last, and is found.
            let program = &self.program;
            self.files
                .sort_by_key(|file| (file.start, file.path == *program));
        }
        for &&(virt, offset) in &unknown {
            let known = self.files.partition_point(|file| file.start <= offset);
            let Some(file) = known.checked_sub(1).and_then(|index| self.files.get(index)) else {
                continue;
            };
            let within = offset - file.start;
            let Some(elf) = bytes.get(file.start as usize..(file.start + file.len) as usize) else {
                continue;
            };
            let Some(base) = base(elf, within).and_then(|of_page| virt.checked_sub(of_page)) else {
                continue;
            };
            if self.objects.contains_key(&base) || self.objects.len() >= MAX_OBJECTS {
                continue;
            }
            let name = file.path.trim_start_matches('/').replace('/', "!");
            let place = self.directory.join(name);
            self.write(&place, elf)?;
            self.objects.insert(base, place);
        }
        Ok(())
    }

    /// The object in which an address may lie: the next one below that is not too far.
    fn at(&self, address: u64) -> Option<u64> {
        /// No program here is larger.
        const LARGEST: u64 = 16 << 20;
        let (&base, _) = self.objects.range(..=address).next_back()?;
        (address - base < LARGEST).then_some(base)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        file(path)?.write_all(bytes)
    }

    /// The commands that tell gdb.
    pub fn report(&self) -> String {
        let mut text = format!(
            "add-symbol-file {} -o {:#x}",
            quoted(&self.directory.join("guest-kernel")),
            self.kernel_at
        );
        for (base, place) in &self.objects {
            // Writing to a string does not fail.
            let _ = write!(text, "\nadd-symbol-file {} -o {base:#x}", quoted(place));
        }
        if let Some(trouble) = &self.trouble {
            let _ = write!(text, "\n# not complete: {trouble}");
        }
        text
    }

    /// Writes the script.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_script(&self) -> io::Result<()> {
        let text = format!(
            "# Made by quorate replay --gdb: gdb -x {}\n\
             set pagination off\n\
             set confirm off\n\
             set architecture i386:x86-64\n\
             # Code that the guest has not touched yet is in the files only.\n\
             set trust-readonly-sections on\n\
             # Its own two seconds are too few for a busy host, and an answer asked for again ends the session.\n\
             set remotetimeout {}\n\
             {}\n\
             define goto-boundary\n  monitor goto $arg0\n  maintenance flush register-cache\nend\n\
             document goto-boundary\nGo to the first instruction on the way to a boundary, forwards or back.\nend\n\
             target remote {}\n",
            quoted(&self.script),
            patient(GDB_TIMEOUT).as_secs(),
            self.report(),
            self.address
        );
        file(&self.script)?.write_all(text.as_bytes())
    }
}

/// A new file that only its owner can read.
fn file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)
}

/// A path as gdb's commands take it.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// All regular files of an image below a directory.
fn list(view: &ImageView<'_>, directory: u32, path: &str, depth: usize, to: &mut Vec<ImageFile>) {
    let mut index = 0;
    while let Ok(Some((name, ino))) = view.entry(directory, index) {
        index += 1;
        if to.len() >= MAX_FILES {
            return;
        }
        let path = format!("{path}/{}", String::from_utf8_lossy(name));
        match view.inode(ino) {
            Ok(inode) if inode.is_dir() && depth < MAX_DEPTH => {
                list(view, ino, &path, depth + 1, to);
            }
            Ok(inode) if inode.is_regular() && inode.size != 0 => {
                if let Ok(start) = view.data_offset(ino) {
                    let len = inode.size;
                    to.push(ImageFile { path, start, len });
                }
            }
            _ => {}
        }
    }
}

/// The address, counted from where the file is put, of its byte at `offset`, by its program headers; none if the byte is not of its code.
fn base(elf: &[u8], offset: u64) -> Option<u64> {
    let word = |at: usize| Some(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (headers, size, count) = (word(32)?, half(54)?, half(56)?);
    for index in 0..u64::from(count) {
        let at = headers.checked_add(index * u64::from(size))?;
        let at = usize::try_from(at).ok()?;
        let [kind, flags] = [word(at)? as u32, (word(at)? >> 32) as u32];
        let (start, virt, in_file) = (word(at + 8)?, word(at + 16)?, word(at + 32)?);
        // The mapping is of whole pages.
        let first = start / 4096 * 4096;
        let end = start.checked_add(in_file)?;
        if kind == 1 && flags & 1 != 0 && (first..end).contains(&offset) {
            return (virt / 4096 * 4096).checked_add(offset - first);
        }
    }
    None
}

/// Values of symbols of an ELF file, in the order of `names`; none where there is no such symbol.
pub fn values<const N: usize>(elf: &[u8], names: [&str; N]) -> [Option<u64>; N] {
    const SYMBOL_TABLE: u32 = 2;
    const SYMBOL_BYTES: usize = 24;
    let mut found = [None; N];
    let bytes = |at: u64, len: u64| {
        let at = usize::try_from(at).ok()?;
        elf.get(at..at.checked_add(usize::try_from(len).ok()?)?)
    };
    let word = |at: u64| Some(u64::from_le_bytes(bytes(at, 8)?.try_into().ok()?));
    let section = |index: u64| {
        let size = u64::from(u16::try_from(word(56)? >> 16 & 0xffff).ok()?);
        let at = word(40)?.checked_add(index.checked_mul(size)?)?;
        let kind = word(at)? >> 32;
        let link = word(at + 40)? & 0xffff_ffff;
        Some((kind as u32, bytes(word(at + 24)?, word(at + 32)?)?, link))
    };
    let count = word(56).map_or(0, |halves| halves >> 32 & 0xffff);
    for index in 0..count {
        let Some((SYMBOL_TABLE, symbols, link)) = section(index) else {
            continue;
        };
        let Some((_, strings, _)) = section(link) else {
            continue;
        };
        for symbol in symbols.chunks_exact(SYMBOL_BYTES) {
            let (head, rest) = symbol.split_at(8);
            let name = head.first_chunk().map_or(0, |at| u32::from_le_bytes(*at));
            let name = strings.get(name as usize..).unwrap_or_default();
            let value = rest.first_chunk().map(|value| u64::from_le_bytes(*value));
            for (wanted, found) in names.iter().zip(&mut found) {
                let wanted = wanted.as_bytes();
                if name.starts_with(wanted) && name.get(wanted.len()) == Some(&0) {
                    *found = value;
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// This test's own program.
    fn own() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[unsafe(no_mangle)]
    #[inline(never)]
    extern "C" fn quorate_symbol_for_a_test() {}

    #[test]
    fn symbols_are_found_by_name_and_garbage_has_none() {
        let elf = own();
        let [here, missing] = values(&elf, ["quorate_symbol_for_a_test", "no such symbol"]);
        assert!(here.is_some());
        // Where this program lies in memory is not known, but pages stay pages.
        let address = quorate_symbol_for_a_test as *const () as u64;
        assert_eq!(here.unwrap() % 4096, address % 4096);
        assert_eq!(missing, None);
        for cut in [0, 10, 64, 1000, elf.len() / 2] {
            assert_eq!(values(&elf[..cut], ["quorate_symbol_for_a_test"]), [None]);
        }
        let mut broken = elf;
        for at in 0..64 {
            broken[at] ^= 0xff;
            values(&broken, ["main"]);
        }
    }

    #[test]
    fn code_is_placed_by_the_program_headers() {
        let elf = own();
        let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap());
        let headers = word(32) as usize;
        let count = usize::from(u16::from_le_bytes([elf[56], elf[57]]));
        let code = (0..count)
            .map(|index| headers + 56 * index)
            .find(|&at| word(at) == 1 | 5 << 32)
            .unwrap();
        let (offset, virt) = (word(code + 8), word(code + 16));
        let page = offset / 4096 * 4096;
        assert_eq!(base(&elf, page), Some(virt / 4096 * 4096));
        assert_eq!(base(&elf, page + 4096), Some(virt / 4096 * 4096 + 4096));
        assert_eq!(base(&elf, 1 << 40), None);
        assert_eq!(base(b"no ELF file", 0), None);
    }

    #[test]
    fn paths_are_quoted_for_gdb() {
        assert_eq!(quoted(Path::new("/a b/\"c\"")), "\"/a b/\\\"c\\\"\"");
    }
}
