//! A disk in memory that remembers every write and flush, and the host's tools to make and check what is on it.

use crate::fs::disk::device::{BlockDevice, Failed, SECTOR};
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What `mke2fs` is told; the same as `images` uses.
pub const MKE2FS: &str = include_str!("../mke2fs.options");

/// One thing that reached the disk.
#[derive(Clone)]
pub enum Event {
    Write(u64, Vec<u8>),
    Flush,
}

pub struct MemDisk {
    pub bytes: RefCell<Vec<u8>>,
    /// What the disk held at first, and what came since; only kept if wanted.
    pub log: RefCell<Option<Vec<Event>>>,
    pub reads: Cell<u64>,
    pub writes: Cell<u64>,
    pub flushes: Cell<u64>,
    pub fail_writes: Cell<bool>,
    pub fail_flushes: Cell<bool>,
}

impl MemDisk {
    pub fn new(bytes: Vec<u8>) -> Rc<Self> {
        Rc::new(Self {
            bytes: RefCell::new(bytes),
            log: RefCell::new(None),
            reads: Cell::new(0),
            writes: Cell::new(0),
            flushes: Cell::new(0),
            fail_writes: Cell::new(false),
            fail_flushes: Cell::new(false),
        })
    }

    pub fn formatted(mebibytes: u64) -> Rc<Self> {
        Self::new(format(mebibytes))
    }
}

impl BlockDevice for MemDisk {
    fn bytes(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, sector: u64, to: &mut [u8]) -> Result<(), Failed> {
        self.reads.set(self.reads.get() + 1);
        let at = (sector * SECTOR) as usize;
        to.copy_from_slice(self.bytes.borrow().get(at..at + to.len()).ok_or(Failed)?);
        Ok(())
    }

    fn write(&self, sector: u64, from: &[u8]) -> Result<(), Failed> {
        assert!(from.len() <= super::super::device::MAX_REQUEST);
        if self.fail_writes.get() {
            return Err(Failed);
        }
        self.writes.set(self.writes.get() + 1);
        let at = (sector * SECTOR) as usize;
        let mut bytes = self.bytes.borrow_mut();
        bytes
            .get_mut(at..at + from.len())
            .ok_or(Failed)?
            .copy_from_slice(from);
        if let Some(log) = self.log.borrow_mut().as_mut() {
            log.push(Event::Write(sector, from.to_vec()));
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Failed> {
        if self.fail_flushes.get() {
            return Err(Failed);
        }
        self.flushes.set(self.flushes.get() + 1);
        if let Some(log) = self.log.borrow_mut().as_mut() {
            log.push(Event::Flush);
        }
        Ok(())
    }
}

/// A path of its own, whose file is removed at the end.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("quorate-fs-{}-{n}.img", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub fn format(mebibytes: u64) -> Vec<u8> {
    format_with(mebibytes, MKE2FS)
}

pub fn format_with(mebibytes: u64, options: &str) -> Vec<u8> {
    let scratch = Scratch::new();
    let status = Command::new("mke2fs")
        .args(options.split_whitespace())
        .arg("-q")
        .arg(scratch.path())
        .arg(format!("{mebibytes}M"))
        .status()
        .unwrap();
    assert!(status.success());
    let mut bytes = std::fs::read(scratch.path()).unwrap();
    bytes.resize((mebibytes << 20) as usize, 0);
    bytes
}

/// `e2fsck` on a copy; with `replay` the journal is replayed first, as the next mount would. The file system must be without fault.
pub fn check(bytes: &[u8], replay: bool) {
    let scratch = Scratch::new();
    std::fs::write(scratch.path(), bytes).unwrap();
    if replay {
        let output = Command::new("e2fsck")
            .args(["-fy", "-E", "journal_only"])
            .arg(scratch.path())
            .output()
            .unwrap();
        assert!(output.status.code().unwrap() < 4, "{output:?}");
    }
    let output = Command::new("e2fsck")
        .arg("-fn")
        .arg(scratch.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let kept = std::env::temp_dir().join("quorate-fs-broken.img");
        std::fs::copy(scratch.path(), &kept).unwrap();
        panic!("{text} (kept as {})", kept.display());
    }
}

pub fn put(image: &mut [u8], sector: u64, bytes: &[u8]) {
    let at = sector as usize * 512;
    image[at..at + bytes.len()].copy_from_slice(bytes);
}
