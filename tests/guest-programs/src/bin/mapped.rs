//! Mappings of files in a directory, which may be on a disk: `mapped [DIRECTORY]` does everything, `mapped DIRECTORY check` looks, after
//! another start, for what the first run has left there.

use guest_programs::*;
use libc::*;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;

const PAGE: usize = 4096;
const BIG: usize = 6 << 20;

fn text(error: std::io::Error) -> String {
    error.to_string()
}

fn open(path: &str) -> Result<File, String> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).map_err(text)
}

struct Mapping {
    at: *mut u8,
    len: usize,
}

impl Mapping {
    fn new(file: &File, len: usize, prot: i32, flags: i32) -> Result<Self, String> {
        // SAFETY: the kernel chooses where: nothing of the program is replaced.
        let at = unsafe { mmap(null_mut(), len, prot, flags, file.as_raw_fd(), 0) };
        if at == MAP_FAILED {
            return Err(std::io::Error::last_os_error().to_string());
        }
        Ok(Self { at: at.cast(), len })
    }

    fn shared(file: &File, len: usize) -> Result<Self, String> {
        Self::new(file, len, PROT_READ | PROT_WRITE, MAP_SHARED)
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: the range lies in the mapping, as just checked, and no slice of it exists.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(at), bytes.len()) };
    }

    fn get(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        // SAFETY: the range lies in the mapping, as just checked; nobody writes to it meanwhile.
        unsafe { std::slice::from_raw_parts(self.at.add(at), len).to_vec() }
    }

    fn sync(&self) -> Outcome {
        // SAFETY: the mapping is of this length.
        same!(unsafe { msync(self.at.cast(), self.len, MS_SYNC) }, 0);
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is of this length, and nothing of it is in use any more.
        unsafe { munmap(self.at.cast(), self.len) };
    }
}

fn pattern(i: usize) -> u8 {
    (i * 31 + i / 4093) as u8
}

fn shared(dir: &str) {
    check("a shared mapping and the file are one", || {
        let file = open(&format!("{dir}/shared"))?;
        file.set_len(3 * PAGE as u64 + 100).map_err(text)?;
        let map = Mapping::shared(&file, 4 * PAGE)?;
        map.put(PAGE - 3, b"across");
        let mut bytes = [0; 6];
        file.read_exact_at(&mut bytes, PAGE as u64 - 3)
            .map_err(text)?;
        same!(&bytes, b"across");
        file.write_all_at(b"written", 2 * PAGE as u64)
            .map_err(text)?;
        same!(map.get(2 * PAGE, 7), b"written");
        // Another mapping, of another description.
        let again = open(&format!("{dir}/shared"))?;
        let other = Mapping::shared(&again, 2 * PAGE)?;
        other.put(0, b"other");
        same!(map.get(0, 5), b"other");
        // What is put behind the end of the file does not stay when it grows.
        map.put(3 * PAGE + 200, b"lost");
        file.set_len(4 * PAGE as u64).map_err(text)?;
        let mut tail = [1; 4];
        file.read_exact_at(&mut tail, 3 * PAGE as u64 + 200)
            .map_err(text)?;
        same!(tail, [0; 4]);
        map.sync()
    });
    check("a private mapping keeps its changes to itself", || {
        let file = open(&format!("{dir}/shared"))?;
        let map = Mapping::new(&file, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE)?;
        same!(map.get(0, 5), b"other");
        map.put(0, b"mine!");
        let mut bytes = [0; 5];
        file.read_exact_at(&mut bytes, 0).map_err(text)?;
        same!(&bytes, b"other");
        Ok(())
    });
    check("a mapping outlives its descriptor and its name", || {
        let path = format!("{dir}/gone");
        let file = open(&path)?;
        file.set_len(PAGE as u64).map_err(text)?;
        let map = Mapping::shared(&file, PAGE)?;
        drop(file);
        fs::remove_file(&path).map_err(text)?;
        map.put(10, b"still");
        same!(map.get(10, 5), b"still");
        map.sync()
    });
    check("a file that gets shorter takes its mapping along", || {
        let file = open(&format!("{dir}/cut"))?;
        file.set_len(4 * PAGE as u64).map_err(text)?;
        let map = Mapping::shared(&file, 4 * PAGE)?;
        map.put(3 * PAGE, b"end");
        file.set_len(PAGE as u64).map_err(text)?;
        file.set_len(4 * PAGE as u64).map_err(text)?;
        same!(map.get(3 * PAGE, 3), [0; 3]);
        map.put(2 * PAGE, b"new");
        let mut bytes = [0; 3];
        file.read_exact_at(&mut bytes, 2 * PAGE as u64)
            .map_err(text)?;
        same!(&bytes, b"new");
        Ok(())
    });
}

fn big(dir: &str) {
    check("a large file is read and written through a mapping", || {
        let mut file = open(&format!("{dir}/big"))?;
        let bytes: Vec<u8> = (0..BIG).map(pattern).collect();
        file.write_all(&bytes).map_err(text)?;
        file.sync_all().map_err(text)?;
        let map = Mapping::shared(&file, BIG)?;
        let mut at = 0;
        for step in 1.. {
            if at >= BIG {
                break;
            }
            same!(map.get(at, 1)[0], pattern(at));
            at += 4099 * (1 + step % 5);
        }
        for i in (0..BIG).step_by(64 << 10) {
            map.put(i + 5, b"changed");
        }
        map.sync()?;
        drop(map);
        file.seek(SeekFrom::Start(0)).map_err(text)?;
        let mut all = Vec::new();
        file.read_to_end(&mut all).map_err(text)?;
        same!(all.len(), BIG);
        holds!(all == changed(&bytes));
        Ok(())
    });
    check("a mapping is a buffer for other calls", || {
        let source = open(&format!("{dir}/big"))?;
        let map = Mapping::new(&source, BIG, PROT_READ, MAP_SHARED)?;
        let copy = open(&format!("{dir}/copy"))?;
        // SAFETY: the source mapping is larger than 1 MiB.
        let wrote = unsafe { write(copy.as_raw_fd(), map.at.cast(), 1 << 20) };
        same!(wrote, 1 << 20);
        let other = Mapping::shared(&copy, 1 << 20)?;
        // SAFETY: the target mapping is of 1 MiB.
        let got = unsafe { pread(source.as_raw_fd(), other.at.cast(), 1 << 20, 1 << 20) };
        same!(got, 1 << 20);
        holds!(other.get(0, 1 << 20) == map.get(1 << 20, 1 << 20));
        other.sync()
    });
}

fn changed(bytes: &[u8]) -> Vec<u8> {
    let mut wanted = bytes.to_vec();
    for i in (0..BIG).step_by(64 << 10) {
        wanted[i + 5..i + 12].copy_from_slice(b"changed");
    }
    wanted
}

fn look(dir: &str) {
    check("what was mapped is there", || {
        let bytes: Vec<u8> = (0..BIG).map(pattern).collect();
        let wanted = changed(&bytes);
        holds!(fs::read(format!("{dir}/big")).map_err(text)? == wanted);
        let copy = fs::read(format!("{dir}/copy")).map_err(text)?;
        holds!(copy == wanted[1 << 20..2 << 20]);
        let shared = fs::read(format!("{dir}/shared")).map_err(text)?;
        same!(shared.len(), 4 * PAGE);
        same!(&shared[..5], b"other");
        same!(&shared[PAGE - 3..PAGE + 3], b"across");
        same!(&shared[2 * PAGE..2 * PAGE + 7], b"written");
        let cut = fs::read(format!("{dir}/cut")).map_err(text)?;
        same!(&cut[2 * PAGE..2 * PAGE + 3], b"new");
        Ok(())
    });
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let own = format!("/tmp/mapped-{}", std::process::id());
    let dir = arguments.get(1).unwrap_or(&own);
    if arguments.get(2).map(String::as_str) == Some("check") {
        look(dir);
        finish();
    }
    let _ = fs::create_dir(&own);
    shared(dir);
    big(dir);
    look(dir);
    let _ = fs::remove_dir_all(&own);
    finish()
}
