//! System calls on a mounted disk: what programs see, what is on the disk afterwards, and what a crash leaves.

use super::disk::*;
use super::library::Random;
use crate::errno::*;
use crate::file::flags::*;
use crate::fs::disk::{self, cache};
use crate::fs::mounts::{self, Mount, TEST_DISKS};
use crate::fs::testing::*;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

const LSEEK: u64 = 8;
const TRUNCATE: u64 = 76;
const RENAME: u64 = 82;
const MKDIR: u64 = 83;
const RMDIR: u64 = 84;
const LINK: u64 = 86;
const UNLINK: u64 = 87;
const SYMLINK: u64 = 88;
const READLINK: u64 = 89;
const CHMOD: u64 = 90;
const FSYNC: u64 = 74;
const SYNC: u64 = 162;
const FALLOCATE: u64 = 285;
const RENAMEAT2: u64 = 316;
const CWD: u64 = -100i64 as u64;

fn ext4() -> Mount {
    Mount {
        target: "/mnt/data".into(),
        kind: "ext4".into(),
        source: "disk0".into(),
        options: String::new(),
    }
}

fn overlay() -> Mount {
    Mount {
        target: "/".into(),
        kind: "overlay".into(),
        source: "disk0".into(),
        options: String::new(),
    }
}

/// A kernel that has just booted with this disk.
fn boot(disk: &Rc<MemDisk>, mount: &Mount) {
    disk::forget_all();
    *TEST_DISKS.borrow_mut() = vec![disk.clone()];
    let left_open = crate::file::table().open_fds();
    for fd in left_open {
        let open = crate::file::table().remove(fd);
        drop(open);
    }
    if mount.target == "/" {
        crate::fs::init(test_image(), IMAGE_PHYSICAL, Some(mount)).unwrap();
    } else {
        crate::fs::init(test_image(), IMAGE_PHYSICAL, None).unwrap();
        mounts::add(mount).unwrap();
    }
}

fn start(mount: &Mount, mebibytes: u64) -> (MutexGuard<'static, ()>, Rc<MemDisk>) {
    let guard = setup();
    cache::TEST_LIMIT.store(0, Ordering::Relaxed);
    let disk = MemDisk::formatted(mebibytes);
    boot(&disk, mount);
    (guard, disk)
}

fn stop(disk: &MemDisk) {
    disk::shut_down();
    check(&disk.bytes.borrow(), false);
}

fn fsync(path: &str) -> crate::errno::Result<u64> {
    let fd = open(path, O_RDONLY)?;
    let result = sys(FSYNC, &[fd]);
    close(fd);
    result
}

#[test]
fn files_are_there_after_the_next_start() {
    let (_guard, disk) = start(&ext4(), 32);
    spit("/mnt/data/a", b"hello").unwrap();
    sys(MKDIR, &[c("/mnt/data/dir"), 0o755]).unwrap();
    spit("/mnt/data/dir/b", &vec![7; 100_000]).unwrap();
    sys(SYMLINK, &[c("dir/b"), c("/mnt/data/link")]).unwrap();
    sys(LINK, &[c("/mnt/data/a"), c("/mnt/data/dir/c")]).unwrap();
    sys(CHMOD, &[c("/mnt/data/a"), 0o600]).unwrap();
    sys(RENAME, &[c("/mnt/data/dir"), c("/mnt/data/moved")]).unwrap();
    assert_eq!(slurp("/mnt/data/link"), Err(ENOENT));
    stop(&disk);
    boot(&disk, &ext4());
    assert_eq!(
        names("/mnt/data").unwrap(),
        ["a", "link", "lost+found", "moved"]
    );
    assert_eq!(slurp("/mnt/data/a").unwrap(), b"hello");
    assert_eq!(slurp("/mnt/data/moved/c").unwrap(), b"hello");
    assert_eq!(slurp("/mnt/data/moved/b").unwrap(), vec![7; 100_000]);
    let stat = lstat("/mnt/data/a").unwrap();
    assert_eq!((stat.nlink, stat.mode & 0o7777), (2, 0o600));
    assert_eq!(lstat("/mnt/data/moved/c").unwrap().ino, stat.ino);
    let mut target = [0u8; 64];
    let len = sys(
        READLINK,
        &[c("/mnt/data/link"), target.as_mut_ptr() as u64, 64],
    );
    assert_eq!(&target[..len.unwrap() as usize], b"dir/b");
    assert_eq!(sys(RMDIR, &[c("/mnt/data/moved")]), Err(ENOTEMPTY));
    assert_eq!(sys(RMDIR, &[c("/mnt/data")]), Err(EBUSY));
    assert_eq!(sys(LINK, &[c("/mnt/data/a"), c("/tmp/other")]), Err(EXDEV));
    for name in ["b", "c"] {
        let path = format!("/mnt/data/moved/{name}");
        sys(UNLINK, &[c(&path)]).unwrap();
    }
    sys(RMDIR, &[c("/mnt/data/moved")]).unwrap();
    assert_eq!(lstat("/mnt/data").unwrap().nlink, 3);
    stop(&disk);
}

#[test]
fn a_file_without_a_name_lives_until_it_is_closed() {
    let (_guard, disk) = start(&ext4(), 32);
    spit("/mnt/data/a", &vec![1; 50_000]).unwrap();
    sys(SYNC, &[]).unwrap();
    let fd = open("/mnt/data/a", O_RDWR).unwrap();
    sys(UNLINK, &[c("/mnt/data/a")]).unwrap();
    assert_eq!(slurp("/mnt/data/a"), Err(ENOENT));
    assert_eq!(pread(fd, 4, 40_000).unwrap(), [1; 4]);
    pwrite(fd, b"more", 60_000).unwrap();
    sys(FSYNC, &[fd]).unwrap();
    assert_eq!(pread(fd, 4, 60_000).unwrap(), b"more");
    close(fd);
    // Another one stays open over the end, and one never had a name.
    let fd = open("/mnt/data/b", O_RDWR | O_CREAT).unwrap();
    write(fd, &[2; 9000]).unwrap();
    sys(UNLINK, &[c("/mnt/data/b")]).unwrap();
    let nameless = sys(2, &[c("/mnt/data"), u64::from(O_TMPFILE | O_RDWR), 0o600]).unwrap();
    write(nameless, b"x").unwrap();
    assert_eq!(names("/mnt/data").unwrap(), ["lost+found"]);
    stop(&disk);
}

#[test]
fn holes_are_kept_and_told() {
    let (_guard, disk) = start(&ext4(), 32);
    let fd = open("/mnt/data/a", O_RDWR | O_CREAT).unwrap();
    pwrite(fd, b"x", 1 << 20).unwrap();
    let seek = |offset: u64, whence: u64| sys(LSEEK, &[fd, offset, whence]);
    assert_eq!(seek(0, 3), Ok(1 << 20));
    assert_eq!(seek(0, 4), Ok(0));
    assert_eq!(seek(1 << 20, 4), Ok((1 << 20) + 1));
    assert_eq!(pread(fd, 5, 5000).unwrap(), [0; 5]);
    sys(FALLOCATE, &[fd, 0, 0, 20_000]).unwrap();
    pwrite(fd, &[9; 20_000], 0).unwrap();
    sys(FALLOCATE, &[fd, 3, 5000, 10_000]).unwrap();
    let data = pread(fd, 20_000, 0).unwrap();
    assert!(data[..5000].iter().all(|b| *b == 9) && data[15_000..].iter().all(|b| *b == 9));
    assert!(data[5000..15_000].iter().all(|b| *b == 0));
    assert_eq!(seek(0, 4), Ok(8192));
    sys(TRUNCATE, &[c("/mnt/data/a"), 100]).unwrap();
    sys(TRUNCATE, &[c("/mnt/data/a"), 6000]).unwrap();
    let data = pread(fd, 7000, 0).unwrap();
    assert_eq!(data.len(), 6000);
    assert!(data[..100].iter().all(|b| *b == 9) && data[100..].iter().all(|b| *b == 0));
    stop(&disk);
    boot(&disk, &ext4());
    assert_eq!(slurp("/mnt/data/a").unwrap(), data);
    stop(&disk);
}

#[test]
fn a_full_disk_says_so_and_recovers() {
    let (_guard, disk) = start(&ext4(), 16);
    let fd = open("/mnt/data/a", O_RDWR | O_CREAT).unwrap();
    let chunk = vec![5; 64 << 10];
    let mut total = 0;
    let error = loop {
        match write(fd, &chunk) {
            Ok(n) => total += n,
            Err(error) => break error,
        }
    };
    assert_eq!(error, ENOSPC);
    assert!(total > 6 << 20, "{total}");
    assert_eq!(sys(FSYNC, &[fd]), Ok(0));
    // In place it can still be written.
    pwrite(fd, &[6; 8192], 4096).unwrap();
    assert_eq!(sys(FSYNC, &[fd]), Ok(0));
    close(fd);
    sys(UNLINK, &[c("/mnt/data/a")]).unwrap();
    sys(SYNC, &[]).unwrap();
    spit("/mnt/data/b", &chunk).unwrap();
    fsync("/mnt/data/b").unwrap();
    stop(&disk);
}

#[test]
fn a_failing_disk_fails_fsync_and_then_is_read_only() {
    let (_guard, disk) = start(&ext4(), 32);
    spit("/mnt/data/a", b"before").unwrap();
    fsync("/mnt/data/a").unwrap();
    let fd = open("/mnt/data/a", O_RDWR).unwrap();
    write(fd, b"after!").unwrap();
    disk.fail_flushes.set(true);
    assert_eq!(sys(FSYNC, &[fd]), Err(EIO));
    assert_eq!(sys(FSYNC, &[fd]), Err(EIO));
    assert_eq!(open("/mnt/data/b", O_RDWR | O_CREAT), Err(EROFS));
    assert_eq!(sys(UNLINK, &[c("/mnt/data/a")]), Err(EROFS));
    assert_eq!(pread(fd, 6, 0).unwrap(), b"after!");
    disk::shut_down();
}

/// Random calls on files of one directory against a model. Calls `synced` after each successful `fsync`.
fn churn(
    random: &mut Random,
    model: &mut BTreeMap<String, Vec<u8>>,
    base: &str,
    steps: u32,
    mut synced: impl FnMut(&str, &[u8]),
) {
    let path = |n: u64| format!("{base}/f{n}");
    for _ in 0..steps {
        let name = path(random.below(12));
        match random.below(12) {
            0 => {
                let result = sys(UNLINK, &[c(&name)]);
                let had = model.remove(&name).is_some();
                assert_eq!(result.is_ok(), had, "{name} {result:?}");
            }
            1 => {
                let to = path(random.below(12));
                let result = sys(RENAME, &[c(&name), c(&to)]);
                assert_eq!(
                    result.is_ok(),
                    model.contains_key(&name),
                    "{name} {to} {result:?}"
                );
                if let Some(data) = model.remove(&name) {
                    model.insert(to, data);
                }
            }
            2 => {
                let size = random.below(200_000);
                let result = sys(TRUNCATE, &[c(&name), size]);
                assert_eq!(result.is_ok(), model.contains_key(&name));
                if let Some(data) = model.get_mut(&name) {
                    data.resize(size as usize, 0);
                }
            }
            3 => {
                if let Some(data) = model.get_mut(&name) {
                    let fd = open(&name, O_RDWR).unwrap();
                    let (at, len) = (random.below(100_000), 1 + random.below(60_000));
                    sys(FALLOCATE, &[fd, 3, at, len]).unwrap();
                    let end = data.len().min((at + len) as usize);
                    if (at as usize) < end {
                        data[at as usize..end].fill(0);
                    }
                    close(fd);
                }
            }
            4 | 5 => {
                if let Some(data) = model.get(&name) {
                    fsync(&name).unwrap();
                    synced(&name, data);
                }
            }
            6 => {
                if let Some(data) = model.get(&name) {
                    let fd = open(&name, O_RDONLY).unwrap();
                    let at = random.below(data.len() as u64 + 10);
                    let got = pread(fd, 30_000, at).unwrap();
                    let from = (at as usize).min(data.len());
                    let until = (from + 30_000).min(data.len());
                    assert!(got == data[from..until], "{name} at {at}");
                    close(fd);
                }
            }
            _ => {
                let data = model.entry(name.clone()).or_default();
                let fd = open(&name, O_RDWR | O_CREAT).unwrap();
                let at = if random.below(3) == 0 {
                    data.len() as u64
                } else {
                    random.below(150_000)
                };
                let bytes = vec![random.below(256) as u8; 1 + random.below(40_000) as usize];
                assert_eq!(pwrite(fd, &bytes, at), Ok(bytes.len() as u64));
                let end = at as usize + bytes.len();
                data.resize(data.len().max(end), 0);
                data[at as usize..end].copy_from_slice(&bytes);
                close(fd);
            }
        }
    }
}

fn compare(model: &BTreeMap<String, Vec<u8>>, base: &str) {
    let mut there = names(base).unwrap();
    there.retain(|n| n.starts_with('f'));
    let mut wanted: Vec<String> = model
        .keys()
        .map(|p| p.rsplit('/').next().unwrap().into())
        .collect();
    wanted.sort();
    assert_eq!(there, wanted);
    for (path, data) in model {
        assert!(slurp(path).unwrap() == *data, "{path}");
        assert_eq!(lstat(path).unwrap().size as usize, data.len());
    }
}

#[test]
fn random_calls_match_a_model_also_with_a_tiny_cache() {
    for (seed, limit) in [(1, 0), (2, 48), (3, 300)] {
        let (_guard, disk) = start(&ext4(), 64);
        cache::TEST_LIMIT.store(limit, Ordering::Relaxed);
        let mut model = BTreeMap::new();
        let mut random = Random(seed);
        for _ in 0..4 {
            churn(&mut random, &mut model, "/mnt/data", 300, |_, _| {});
            compare(&model, "/mnt/data");
        }
        cache::TEST_LIMIT.store(0, Ordering::Relaxed);
        stop(&disk);
        boot(&disk, &ext4());
        compare(&model, "/mnt/data");
        stop(&disk);
    }
}

#[test]
fn what_was_synced_is_there_whenever_the_power_fails() {
    let (_guard, disk) = start(&ext4(), 32);
    sys(SYNC, &[]).unwrap();
    let mut image = disk.bytes.borrow().clone();
    *disk.log.borrow_mut() = Some(Vec::new());
    let mut random = Random(77);
    let mut model = BTreeMap::new();
    // After so many events this file had this content on stable storage. (Names are changed by later calls, so only the last
    // sync of each name that was not touched since counts: it is checked at the end of each stretch.)
    let mut points = Vec::new();
    for _ in 0..25 {
        let mut synced = BTreeMap::new();
        churn(&mut random, &mut model, "/mnt/data", 12, |name, data| {
            synced.insert(name.to_string(), data.to_vec());
        });
        for (name, data) in &model {
            fsync(name).unwrap();
            synced.insert(name.clone(), data.clone());
        }
        let at = disk.log.borrow().as_ref().unwrap().len();
        points.push((at, model.clone()));
    }
    let log = disk.log.borrow_mut().take().unwrap();
    disk::forget_all();
    let mut unflushed: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut done = 0;
    for (at, model) in points {
        for event in &log[done..at] {
            match event {
                Event::Write(sector, bytes) => unflushed.push((*sector, bytes.clone())),
                Event::Flush => {
                    for (sector, bytes) in unflushed.drain(..) {
                        put(&mut image, sector, &bytes);
                    }
                }
            }
        }
        done = at;
        // The power fails right after the last fsync returned, or during what comes next.
        let mut crashed = image.clone();
        for (sector, bytes) in &unflushed {
            if random.below(2) == 0 {
                put(&mut crashed, *sector, bytes);
            }
        }
        check(&crashed, true);
        let again = MemDisk::new(crashed);
        boot(&again, &ext4());
        compare(&model, "/mnt/data");
        stop(&again);
    }
}

#[test]
fn changes_of_the_image_are_kept_on_a_disk() {
    let (_guard, disk) = start(&overlay(), 32);
    assert_eq!(slurp("/etc/motd").unwrap(), b"hello\n");
    // Changed, removed, replaced, new; with directories.
    let fd = open("/data/big", O_RDWR).unwrap();
    pwrite(fd, b"changed", 5000).unwrap();
    close(fd);
    let mut changed = big();
    changed[5000..5007].copy_from_slice(b"changed");
    assert_eq!(slurp("/data/big").unwrap(), changed);
    sys(UNLINK, &[c("/data/empty")]).unwrap();
    sys(UNLINK, &[c("/data/sub/deep/leaf")]).unwrap();
    sys(RMDIR, &[c("/data/sub/deep")]).unwrap();
    sys(MKDIR, &[c("/data/sub/deep"), 0o700]).unwrap();
    spit("/data/sub/deep/other", b"new").unwrap();
    sys(RENAME, &[c("/etc/motd"), c("/etc/moved")]).unwrap();
    sys(CHMOD, &[c("/usr/bin/sh"), 0o700]).unwrap();
    assert_eq!(sys(RENAME, &[c("/usr"), c("/usr2")]), Err(EXDEV));
    sys(MKDIR, &[c("/fresh"), 0o755]).unwrap();
    sys(RENAME, &[c("/fresh"), c("/fresher")]).unwrap();
    let look = |disk: &MemDisk| {
        assert_eq!(slurp("/data/big").unwrap(), changed);
        assert_eq!(names("/data").unwrap(), ["big", "secret", "sub"]);
        assert_eq!(names("/data/sub/deep").unwrap(), ["other"]);
        assert_eq!(slurp("/data/sub/deep/leaf"), Err(ENOENT));
        assert_eq!(names("/etc").unwrap(), ["moved", "mtab"]);
        assert_eq!(slurp("/etc/moved").unwrap(), b"hello\n");
        assert_eq!(lstat("/usr/bin/sh").unwrap().mode & 0o7777, 0o700);
        assert_eq!(slurp("/bin/sh").unwrap(), b"#!x");
        assert!(names("/").unwrap().contains(&"fresher".to_string()));
        assert!(names("/proc/self").unwrap().len() > 5);
        assert!(disk.writes.get() > 0);
    };
    look(&disk);
    stop(&disk);
    boot(&disk, &overlay());
    look(&disk);
    // Removed again: the image's does not come back.
    sys(UNLINK, &[c("/data/big")]).unwrap();
    assert_eq!(slurp("/data/big"), Err(ENOENT));
    spit("/data/big", b"small").unwrap();
    let both = sys(RENAMEAT2, &[CWD, c("/data/big"), CWD, c("/etc/moved"), 2]);
    assert_eq!(both, Ok(0));
    stop(&disk);
    boot(&disk, &overlay());
    assert_eq!(slurp("/data/big").unwrap(), b"hello\n");
    assert_eq!(slurp("/etc/moved").unwrap(), b"small");
    stop(&disk);
}

#[test]
fn random_calls_on_an_overlay_match_a_model() {
    let (_guard, disk) = start(&overlay(), 64);
    let mut model = BTreeMap::new();
    let mut random = Random(5);
    for _ in 0..3 {
        churn(&mut random, &mut model, "/tmp", 200, |_, _| {});
        compare(&model, "/tmp");
        stop(&disk);
        boot(&disk, &overlay());
        compare(&model, "/tmp");
    }
    stop(&disk);
}

#[test]
fn an_image_that_is_read_only_refuses_changes() {
    let _guard = setup();
    let mount = Mount {
        target: "/".into(),
        kind: "image".into(),
        options: "ro".into(),
        ..Mount::default()
    };
    crate::fs::init(test_image(), IMAGE_PHYSICAL, Some(&mount)).unwrap();
    assert_eq!(open("/data/new", O_CREAT | O_RDWR), Err(EROFS));
    assert_eq!(open("/data/big", O_RDWR), Err(EROFS));
    assert_eq!(sys(UNLINK, &[c("/data/big")]), Err(EROFS));
    assert_eq!(sys(CHMOD, &[c("/data/big"), 0o600]), Err(EROFS));
    assert_eq!(sys(TRUNCATE, &[c("/data/big"), 1]), Err(EROFS));
    let tmp = Mount {
        target: "/tmp".into(),
        kind: "tmpfs".into(),
        options: "size=65536".into(),
        ..Mount::default()
    };
    mounts::add(&tmp).unwrap();
    spit("/tmp/a", &vec![1; 65536]).unwrap();
    assert_eq!(spit("/tmp/b", b"x"), Err(ENOSPC));
    assert!(
        String::from_utf8(slurp("/proc/mounts").unwrap())
            .unwrap()
            .contains("tmpfs /tmp tmpfs")
    );
}

#[test]
fn mounts_that_cannot_be_are_told() {
    let _guard = setup();
    disk::forget_all();
    TEST_DISKS.borrow_mut().clear();
    let wrong = |mount: Mount| mounts::add(&mount).unwrap_err();
    assert!(wrong(ext4()).contains("there is no disk0"));
    *TEST_DISKS.borrow_mut() = vec![MemDisk::new(vec![0; 16 << 20])];
    assert!(wrong(ext4()).contains("disk0"));
    let mut mount = ext4();
    mount.kind = "xfs".into();
    assert!(wrong(mount).contains("xfs"));
    *TEST_DISKS.borrow_mut() = vec![MemDisk::new(format_with(16, "-t ext4 -b 1024"))];
    assert!(wrong(ext4()).contains("blocks of 1024"));
}

#[test]
fn a_disk_without_a_file_system_is_a_file_of_its_size() {
    let _guard = setup();
    disk::forget_all();
    let device = MemDisk::new(vec![0; 1 << 20]);
    *TEST_DISKS.borrow_mut() = vec![device.clone()];
    crate::fs::init(test_image(), IMAGE_PHYSICAL, None).unwrap();
    let fd = open("/dev/disk0", O_RDWR).unwrap();
    assert_eq!(sys(LSEEK, &[fd, 0, 2]), Ok(1 << 20));
    pwrite(fd, b"odd bytes", 1000).unwrap();
    pwrite(fd, &[3; 70_000], 4096).unwrap();
    assert_eq!(pread(fd, 9, 1000).unwrap(), b"odd bytes");
    assert_eq!(sys(FSYNC, &[fd]), Ok(0));
    assert_eq!(device.flushes.get(), 1);
    let bytes = device.bytes.borrow();
    assert_eq!(&bytes[1000..1009], b"odd bytes");
    assert!(bytes[4096..74_096].iter().all(|b| *b == 3) && bytes[74_096] == 0);
    assert_eq!(pwrite(fd, b"x", 1 << 20), Err(ENOSPC));
    assert_eq!(pread(fd, 9, (1 << 20) - 4).unwrap().len(), 4);
    assert_eq!(open("/dev/disk1", O_RDONLY), Err(ENOENT));
}

#[test]
fn direct_reads_and_advice_ask_the_disk_again() {
    let (_guard, disk) = start(&ext4(), 32);
    spit("/mnt/data/a", &vec![1; 40_960]).unwrap();
    fsync("/mnt/data/a").unwrap();
    let plain = open("/mnt/data/a", O_RDONLY).unwrap();
    let reads = |act: &dyn Fn()| {
        let before = disk.reads.get();
        act();
        disk.reads.get() - before
    };
    assert_eq!(reads(&|| drop(pread(plain, 4096, 0))), 0);
    let direct = open("/mnt/data/a", O_RDONLY | O_DIRECT).unwrap();
    assert!(reads(&|| drop(pread(direct, 4096, 0))) > 0);
    assert!(reads(&|| drop(pread(direct, 4096, 0))) > 0);
    assert_eq!(reads(&|| drop(pread(plain, 4096, 8192))), 0);
    sys(221, &[plain, 0, 0, 4]).unwrap();
    assert!(reads(&|| drop(pread(plain, 4096, 8192))) > 0);
    // What is not written yet stays.
    let fd = open("/mnt/data/a", O_RDWR).unwrap();
    pwrite(fd, &[2; 4096], 8192).unwrap();
    sys(221, &[fd, 0, 0, 4]).unwrap();
    assert_eq!(pread(direct, 4096, 8192).unwrap(), [2; 4096]);
    stop(&disk);
}

#[test]
fn memory_that_is_needed_comes_out_of_the_cache() {
    let (_guard, disk) = start(&ext4(), 32);
    // What earlier tests have left.
    cache::give_back(u64::MAX);
    spit("/mnt/data/a", &vec![1; 200 * 4096]).unwrap();
    let before = cache::pages();
    assert!(before >= 200);
    // What waits to be written is kept.
    assert_eq!(cache::give_back(50), 0);
    fsync("/mnt/data/a").unwrap();
    assert_eq!(cache::give_back(50), 50);
    assert_eq!(cache::pages(), before - 50);
    assert_eq!(slurp("/mnt/data/a").unwrap(), vec![1; 200 * 4096]);
    stop(&disk);
}

#[test]
fn a_file_of_thousands_of_cached_pages_is_cut_or_given_up_at_once() {
    // So many that the cache tidies its list up, and looks at the file that is being changed.
    const LEN: usize = 3000 * 4096;
    let (_guard, disk) = start(&ext4(), 32);
    spit("/mnt/data/a", &vec![1; LEN]).unwrap();
    fsync("/mnt/data/a").unwrap();
    let fd = open("/mnt/data/a", O_RDWR).unwrap();
    sys(221, &[fd, 0, 0, 4]).unwrap();
    assert_eq!(slurp("/mnt/data/a").unwrap(), vec![1; LEN]);
    assert_eq!(sys(77, &[fd, 0]), Ok(0));
    assert_eq!(slurp("/mnt/data/a").unwrap(), b"");
    stop(&disk);
}
