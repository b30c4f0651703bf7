//! Loads for a disk: how fast it is, and whether it keeps what is written to it.
//!
//! Each of them does the same operations in the same order whenever it gets the same arguments, and runs on Linux itself, too. What
//! is read is compared with what was written: a block that is not as it was left ends the program with status 1.
//!
//!     disk bench FILE MIB OPERATIONS     speed of 1 MiB and 4 KiB reads and writes, without and with fsync
//!     disk churn FILE BLOCKS ROUNDS SEED reads blocks, checks them, writes their next version, past all caches where that can be
//!     disk tree DIRECTORY ROUNDS SEED    files and directories: made, written, renamed, cut, removed, and read again
//!     disk fill DIRECTORY MIB            writes and syncs until something fails, and says what
//!     disk refuses DIRECTORY             everything that would change a read-only file system must fail

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const MIB: usize = 1 << 20;

/// SplitMix64: the same numbers for the same seed, on every machine.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.word() % bound
    }
}

type Done<T = ()> = Result<T, String>;

fn at<T>(result: io::Result<T>, what: &str, path: &Path) -> Done<T> {
    result.map_err(|error| format!("{what} {}: {error}", path.display()))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match *words.as_slice() {
        ["bench", file, mib, operations] => bench(file.as_ref(), number(mib), number(operations)),
        ["churn", file, blocks, rounds, seed] => {
            churn(file.as_ref(), number(blocks), number(rounds), number(seed))
        }
        ["tree", directory, rounds, seed] => tree(directory.as_ref(), number(rounds), number(seed)),
        ["fill", directory, mib] => fill(directory.as_ref(), number(mib)),
        ["refuses", directory] => refuses(directory.as_ref()),
        _ => Err(format!("disk: what is {words:?}?")),
    };
    match result {
        Ok(()) => println!("done"),
        Err(error) => {
            println!("FAIL {error}");
            std::process::exit(1);
        }
    }
}

fn number(word: &str) -> u64 {
    match word.parse() {
        Ok(number) => number,
        Err(_) => {
            println!("FAIL {word:?} is no number");
            std::process::exit(2);
        }
    }
}

/// Version `version` of block `block`: every byte depends on both.
fn content(block: u64, version: u64, into: &mut [u8]) {
    let mut random = Random(block.wrapping_mul(0x1_0000_0001) ^ version << 40);
    for (index, word) in into.chunks_mut(8).enumerate() {
        // A stream, but cheap: one good number each 64 bytes, the others follow from it.
        if index % 8 == 0 {
            random.word();
        }
        let value = random.0.wrapping_add(index as u64 * 0x0101_0101_0101_0101);
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
}

/// Memory at a page's start, as O_DIRECT wants it.
struct Buffer(*mut u8, usize);

impl Buffer {
    fn new(len: usize) -> Buffer {
        let layout = std::alloc::Layout::from_size_align(len, BLOCK).unwrap();
        // SAFETY: the layout's size is that of whole blocks, not 0.
        let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
        assert!(!pointer.is_null());
        Buffer(pointer, len)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the allocation has this length, is initialised, and `self` is borrowed for as
        // long.
        unsafe { std::slice::from_raw_parts_mut(self.0, self.1) }
    }
}

// ---- bench

/// Latencies of one kind of operation, and how long all of them took.
struct Measure {
    name: &'static str,
    block: usize,
    each: Vec<u64>,
    started: Instant,
}

impl Measure {
    fn start(name: &'static str, block: usize) -> Measure {
        settle();
        Measure {
            name,
            block,
            each: Vec::new(),
            started: Instant::now(),
        }
    }

    fn one<T>(&mut self, operation: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = operation();
        self.each.push(started.elapsed().as_nanos() as u64);
        result
    }

    fn report(mut self) {
        settle();
        let elapsed = self.started.elapsed().as_nanos();
        self.each.sort_unstable();
        let part = |permille: usize| {
            self.each
                .get((self.each.len() * permille / 1000).min(self.each.len() - 1))
                .copied()
                .unwrap_or(0)
        };
        println!(
            "bench op={} block={} ops={} elapsed_ns={elapsed} p50_ns={} p99_ns={} max_ns={}",
            self.name,
            self.block,
            self.each.len(),
            part(500),
            part(990),
            part(1000),
        );
    }
}

/// In the guest time stands still between boundaries: a short sleep is one.
fn settle() {
    std::thread::sleep(Duration::from_nanos(1));
}

fn bench(path: &Path, mib: u64, operations: u64) -> Done {
    let blocks = mib * (MIB / BLOCK) as u64;
    let mut random = Random(7);
    let mut big = vec![0u8; MIB];
    let mut small = vec![0u8; BLOCK];
    let _ = fs::remove_file(path);
    let file = at(
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path),
        "create",
        path,
    )?;

    let mut measure = Measure::start("seq-write", MIB);
    for index in 0..mib {
        for (part, bytes) in big.chunks_mut(BLOCK).enumerate() {
            stamp(index * (MIB / BLOCK) as u64 + part as u64, bytes);
        }
        at(
            measure.one(|| file.write_all_at(&big, index * MIB as u64)),
            "write",
            path,
        )?;
    }
    at(file.sync_all(), "fsync", path)?;
    measure.report();

    // In the guest they come from the disk, as the file is larger than the guest's memory; the host has the file in its cache
    // both for the guest and natively.
    let mut measure = Measure::start("seq-read", MIB);
    for index in 0..mib {
        at(
            measure.one(|| file.read_exact_at(&mut big, index * MIB as u64)),
            "read",
            path,
        )?;
        for (part, bytes) in big.chunks(BLOCK).enumerate() {
            check_stamp(index * (MIB / BLOCK) as u64 + part as u64, bytes)?;
        }
    }
    measure.report();

    let mut measure = Measure::start("rand-read", BLOCK);
    for _ in 0..operations {
        let block = random.below(blocks);
        at(
            measure.one(|| file.read_exact_at(&mut small, block * BLOCK as u64)),
            "read",
            path,
        )?;
        check_stamp(block, &small)?;
    }
    measure.report();

    let mut measure = Measure::start("rand-write", BLOCK);
    for _ in 0..operations {
        let block = random.below(blocks);
        stamp(block, &mut small);
        at(
            measure.one(|| file.write_all_at(&small, block * BLOCK as u64)),
            "write",
            path,
        )?;
    }
    at(file.sync_all(), "fsync", path)?;
    measure.report();

    let mut measure = Measure::start("rand-write-fsync", BLOCK);
    for _ in 0..operations / 8 {
        let block = random.below(blocks);
        stamp(block, &mut small);
        let written = measure.one(|| {
            file.write_all_at(&small, block * BLOCK as u64)
                .and_then(|()| file.sync_data())
        });
        at(written, "write and fsync", path)?;
    }
    measure.report();

    let mut measure = Measure::start("seq-write-fsync", MIB);
    for index in 0..mib / 4 {
        for (part, bytes) in big.chunks_mut(BLOCK).enumerate() {
            stamp(index * (MIB / BLOCK) as u64 + part as u64, bytes);
        }
        let written = measure.one(|| {
            file.write_all_at(&big, index * MIB as u64)
                .and_then(|()| file.sync_data())
        });
        at(written, "write and fsync", path)?;
    }
    measure.report();

    // What an append-only log does: a little more at the end, and made durable.
    let log = path.with_extension("log");
    let _ = fs::remove_file(&log);
    let mut appended = at(
        OpenOptions::new().append(true).create(true).open(&log),
        "create",
        &log,
    )?;
    let mut measure = Measure::start("append-fsync", 100);
    for _ in 0..operations / 8 {
        at(
            measure.one(|| {
                appended
                    .write_all(&small[..100])
                    .and_then(|()| appended.sync_data())
            }),
            "append",
            &log,
        )?;
    }
    measure.report();
    drop(appended);
    at(fs::remove_file(&log), "remove", &log)?;
    at(fs::remove_file(path), "remove", path)
}

/// The first and last bytes of a block say which it is: checking them costs nothing beside the operation.
fn stamp(block: u64, bytes: &mut [u8]) {
    let mark = block.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let end = bytes.len() - 8;
    bytes[..8].copy_from_slice(&mark);
    bytes[end..].copy_from_slice(&mark);
}

fn check_stamp(block: u64, bytes: &[u8]) -> Done {
    let mark = block.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    if bytes[..8] == mark && bytes[bytes.len() - 8..] == mark {
        Ok(())
    } else {
        Err(format!("block {block} is not as it was written"))
    }
}

// ---- churn

fn churn(path: &Path, blocks: u64, rounds: u64, seed: u64) -> Done {
    let open = |flags: i32| {
        // No O_CREAT on a device.
        let create = !path.starts_with("/dev");
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .custom_flags(flags)
            .open(path)
    };
    let (file, direct) = match open(libc::O_DIRECT) {
        Ok(file) => (file, true),
        Err(_) => (at(open(0), "open", path)?, false),
    };
    println!("churn {blocks} blocks, {rounds} rounds, direct {direct}");
    let mut written = Buffer::new(BLOCK);
    let mut read = Buffer::new(BLOCK);
    let mut versions = vec![0u64; blocks as usize];
    for block in 0..blocks {
        content(block, 0, written.bytes());
        at(
            file.write_all_at(written.bytes(), block * BLOCK as u64),
            "write",
            path,
        )?;
    }
    at(file.sync_all(), "fsync", path)?;
    println!("written once");
    let mut random = Random(seed);
    for round in 0..rounds {
        for block in 0..blocks {
            let version = versions[block as usize];
            content(block, version, written.bytes());
            if !direct {
                // Where this does nothing, more blocks than fit into memory do it.
                use std::os::fd::AsRawFd;
                let start = (block * BLOCK as u64) as i64;
                // SAFETY: takes numbers; tells the kernel what is not needed.
                unsafe {
                    libc::posix_fadvise(
                        file.as_raw_fd(),
                        start,
                        BLOCK as i64,
                        libc::POSIX_FADV_DONTNEED,
                    )
                };
            }
            at(
                file.read_exact_at(read.bytes(), block * BLOCK as u64),
                "read",
                path,
            )?;
            if read.bytes() != written.bytes() {
                return Err(format!(
                    "round {round}: block {block} is not as of version {version}"
                ));
            }
            // Some are left as they are, so that blocks differ in age.
            if random.below(4) != 0 {
                content(block, version + 1, written.bytes());
                at(
                    file.write_all_at(written.bytes(), block * BLOCK as u64),
                    "write",
                    path,
                )?;
                versions[block as usize] = version + 1;
            }
            if random.below(16) == 0 {
                at(file.sync_data(), "fdatasync", path)?;
            }
        }
        if round == 0 || (round + 1) % 16 == 0 {
            println!("round {round}");
        }
    }
    // A replica that lags catches up here, and takes part in what follows.
    std::thread::sleep(Duration::from_secs(1));
    for block in 0..blocks {
        content(block, versions[block as usize], written.bytes());
        at(
            file.read_exact_at(read.bytes(), block * BLOCK as u64),
            "read",
            path,
        )?;
        if read.bytes() != written.bytes() {
            return Err(format!(
                "at the end: block {block} is not as of version {}",
                versions[block as usize]
            ));
        }
    }
    at(file.sync_all(), "fsync", path)
}

// ---- tree

/// What a file must hold: its length, and the version that filled it.
#[derive(Clone, Copy)]
struct Held {
    number: u64,
    version: u64,
    len: u64,
}

fn tree(directory: &Path, rounds: u64, seed: u64) -> Done {
    let mut random = Random(seed);
    let mut files: BTreeMap<PathBuf, Held> = BTreeMap::new();
    let top = directory.join("tree");
    at(fs::create_dir(&top), "mkdir", &top)?;
    for sub in 0..4 {
        let path = top.join(format!("d{sub}"));
        at(fs::create_dir(&path), "mkdir", &path)?;
    }
    let mut numbers = 0;
    for round in 0..rounds {
        let names: Vec<PathBuf> = files.keys().cloned().collect();
        let chosen =
            (!names.is_empty()).then(|| names[random.below(names.len() as u64) as usize].clone());
        match (random.below(8), chosen) {
            (0..=2, _) | (_, None) => {
                numbers += 1;
                let path = top.join(format!("d{}/f{numbers}", random.below(4)));
                let held = Held {
                    number: numbers,
                    version: round,
                    len: random.below(100_000),
                };
                write_file(&path, held, random.below(2) == 0)?;
                files.insert(path, held);
            }
            (3 | 4, Some(path)) => {
                let held = Held {
                    version: round,
                    len: random.below(100_000),
                    ..files[&path]
                };
                write_file(&path, held, random.below(2) == 0)?;
                files.insert(path, held);
            }
            (5, Some(path)) => {
                let to = top.join(format!("d{}/r{round}", random.below(4)));
                at(fs::rename(&path, &to), "rename", &path)?;
                if let Some(held) = files.remove(&path) {
                    files.insert(to, held);
                }
            }
            (6, Some(path)) => {
                let held = files[&path];
                let len = random.below(held.len + 1);
                let file = at(OpenOptions::new().write(true).open(&path), "open", &path)?;
                at(file.set_len(len), "truncate", &path)?;
                files.insert(path, Held { len, ..held });
            }
            (_, Some(path)) => {
                at(fs::remove_file(&path), "remove", &path)?;
                files.remove(&path);
            }
        }
        if round % 64 == 63 {
            println!("round {round}: {} files", files.len());
        }
    }
    let mut total = 0;
    for (path, held) in &files {
        let read = at(fs::read(path), "read", path)?;
        let mut wanted = vec![0; held.len as usize];
        content(held.number, held.version, &mut wanted);
        if read != wanted {
            return Err(format!(
                "{} does not hold what was written ({} bytes, not {})",
                path.display(),
                read.len(),
                wanted.len()
            ));
        }
        total += held.len;
    }
    println!("{} files with {total} bytes are right", files.len());
    Ok(())
}

fn write_file(path: &Path, held: Held, sync: bool) -> Done {
    let mut bytes = vec![0; held.len as usize];
    content(held.number, held.version, &mut bytes);
    let mut file = at(File::create(path), "create", path)?;
    at(file.write_all(&bytes), "write", path)?;
    if sync {
        at(file.sync_all(), "fsync", path)?;
    }
    Ok(())
}

// ---- errors

fn errno(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EIO) => "EIO".to_owned(),
        Some(libc::ENOSPC) => "ENOSPC".to_owned(),
        Some(libc::EROFS) => "EROFS".to_owned(),
        Some(other) => format!("errno {other}"),
        None => error.to_string(),
    }
}

fn fill(directory: &Path, mib: u64) -> Done {
    let path = directory.join("fill");
    let mut file = at(File::create(&path), "create", &path)?;
    let mut bytes = vec![0; MIB];
    for index in 0..mib {
        content(index, 1, &mut bytes);
        if let Err(error) = file.write_all(&bytes) {
            println!("write failed: {}", errno(&error));
            break;
        }
        if let Err(error) = file.sync_all() {
            println!("fsync failed: {}", errno(&error));
            break;
        }
    }
    // A second time it must not pretend that all is well.
    match file
        .write_all(&bytes[..BLOCK])
        .and_then(|()| file.sync_all())
    {
        Ok(()) => println!("then: no error"),
        Err(error) => println!("then: {}", errno(&error)),
    }
    match File::create(directory.join("another")) {
        Ok(_) => println!("create: no error"),
        Err(error) => println!("create: {}", errno(&error)),
    }
    Ok(())
}

fn refuses(directory: &Path) -> Done {
    let seeded = directory.join("seeded.txt");
    let text = at(fs::read_to_string(&seeded), "read", &seeded)?;
    println!("read: {}", text.trim_end());
    let said = |what: &str, result: io::Result<()>| match result {
        Ok(()) => println!("{what}: no error"),
        Err(error) => println!("{what}: {}", errno(&error)),
    };
    said("create", File::create(directory.join("new")).map(drop));
    said(
        "open",
        OpenOptions::new().write(true).open(&seeded).map(drop),
    );
    said("remove", fs::remove_file(&seeded));
    said("rename", fs::rename(&seeded, directory.join("other")));
    said("mkdir", fs::create_dir(directory.join("d")));
    Ok(())
}
