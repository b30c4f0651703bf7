//! The library alone, as it is driven here: sound file systems after random work, and after a crash at any moment.

use super::disk::*;
use crate::fs::disk::device::BlockDevice;
use crate::fs::disk::volume::{Guard, Volume, number};
use rsext4::{FileName, FilePermissions, MutationContext, RenameOptions};
use std::collections::BTreeMap;
use std::rc::Rc;

const WHO: MutationContext = MutationContext::new(0, 0, 0, 0);

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn name(n: u64) -> String {
    format!("file-{n}-{}", "x".repeat((n % 50) as usize))
}

type Model = BTreeMap<u64, (u32, Vec<u8>)>;

/// Random changes to files of one directory, mirrored in a model.
fn work(guard: &Guard<'_>, dir: u32, model: &mut Model, random: &mut Random, steps: u32) {
    for _ in 0..steps {
        let n = random.below(60);
        let text = name(n);
        let file = FileName::new(text.as_bytes()).unwrap();
        let dir = number(dir).unwrap();
        match random.below(10) {
            0..2 if !model.contains_key(&n) => {
                let mode = FilePermissions::new(0o644).unwrap();
                let info = guard
                    .change(|fs| fs.create_regular_file(WHO, dir, file, mode))
                    .unwrap();
                model.insert(n, (info.number.raw(), Vec::new()));
            }
            2 => {
                let Some((ino, _)) = model.remove(&n) else {
                    continue;
                };
                let gone = guard.change(|fs| fs.unlink(dir, file)).unwrap();
                assert!(gone.requires_reap());
                guard
                    .change(|fs| fs.reap_unlinked_inode(number(ino)?))
                    .unwrap();
            }
            3 => {
                let to = random.below(60);
                if n == to || !model.contains_key(&n) {
                    continue;
                }
                let new = name(to);
                let new = FileName::new(new.as_bytes()).unwrap();
                let outcome = guard
                    .change(|fs| fs.rename(dir, file, dir, new, RenameOptions::REPLACE))
                    .unwrap();
                if let Some(gone) = outcome.replaced {
                    guard
                        .change(|fs| fs.reap_unlinked_inode(gone.inode))
                        .unwrap();
                }
                let moved = model.remove(&n).unwrap();
                model.insert(to, moved);
            }
            4 => {
                let Some((ino, data)) = model.get_mut(&n) else {
                    continue;
                };
                let size = random.below(300_000);
                let ino = *ino;
                guard
                    .change(|fs| fs.truncate_inode(number(ino)?, size))
                    .unwrap();
                data.resize(size as usize, 0);
            }
            _ => {
                let Some((ino, data)) = model.get_mut(&n) else {
                    continue;
                };
                // As the page cache writes: whole blocks, the last one only up to the end of the file.
                let first = random.below(60);
                let last = first + 1 + random.below(40);
                let mut size = data.len().max((first * 4096) as usize + 1);
                size = size.max((last * 4096) as usize - random.below(4096) as usize);
                data.resize(size, 0);
                let range = (first * 4096) as usize..((last * 4096) as usize).min(size);
                let byte = random.below(256) as u8;
                data[range.clone()].fill(byte);
                let ino = *ino;
                guard
                    .change(|fs| fs.write_inode(number(ino)?, range.start as u64, &data[range]))
                    .unwrap();
            }
        }
        if random.below(40) == 0 {
            guard.commit().unwrap();
        }
    }
}

fn compare(guard: &Guard<'_>, model: &Model) {
    for (n, (ino, data)) in model {
        let mut got = vec![0xcc; data.len() + 10];
        let count = guard
            .ask(|fs| fs.read_inode(number(*ino)?, 0, &mut got))
            .unwrap();
        assert_eq!(count, data.len(), "{n}");
        assert!(got[..count] == data[..], "{n}");
        // The way that the page cache reads.
        let mut direct = vec![0; data.len().next_multiple_of(4096)];
        let mut at = 0;
        while at < data.len() as u64 {
            let extents = guard.extents(*ino, at, data.len() as u64 - at).unwrap();
            let Some(last) = extents.last() else { break };
            at = last.start + last.len;
            for extent in extents {
                if let Some(place) = extent.place {
                    let from = extent.start as usize;
                    let len = (extent.len as usize).min(direct.len() - from);
                    guard
                        .read_device(place, &mut direct[from..from + len])
                        .unwrap();
                }
            }
        }
        assert!(direct[..count] == data[..], "{n} direct");
    }
}

fn start(disk: &Rc<MemDisk>) -> (Rc<Volume>, u32) {
    let volume = Volume::mount("disk0", disk.clone(), false).unwrap();
    let guard = volume.lock();
    let root = guard.ask(|fs| Ok(fs.root_inode())).unwrap();
    let mode = FilePermissions::new(0o755).unwrap();
    let dir = guard
        .change(|fs| fs.create_directory(WHO, root, FileName::new(b"d")?, mode))
        .unwrap();
    drop(guard);
    (volume, dir.number.raw())
}

#[test]
fn random_work_leaves_a_sound_file_system() {
    for seed in 0..4 {
        let disk = MemDisk::formatted(64);
        let (volume, dir) = start(&disk);
        let mut model = Model::new();
        let mut random = Random(seed);
        let guard = volume.lock();
        for _ in 0..10 {
            work(&guard, dir, &mut model, &mut random, 100);
            compare(&guard, &model);
        }
        guard.unmount().unwrap();
        check(&disk.bytes.borrow(), false);
        drop(guard);
        let volume = Volume::mount("disk0", disk.clone(), false).unwrap();
        compare(&volume.lock(), &model);
    }
}

#[test]
fn a_crash_at_any_write_leaves_a_sound_file_system_with_all_that_was_committed() {
    let disk = MemDisk::formatted(32);
    let (volume, dir) = start(&disk);
    let guard = volume.lock();
    guard.commit().unwrap();
    let before = disk.bytes.borrow().clone();
    *disk.log.borrow_mut() = Some(Vec::new());
    let mut random = Random(9);
    let mut model = Model::new();
    work(&guard, dir, &mut model, &mut random, 600);
    guard.commit().unwrap();
    drop(guard);
    let log = disk.log.borrow_mut().take().unwrap();
    let mut image = before;
    let every = log.len() / 60 + 1;
    // What is not flushed may be lost, or not: a crash keeps a random part of it.
    let mut unflushed: Vec<(u64, Vec<u8>)> = Vec::new();
    for (i, event) in log.iter().enumerate() {
        match event {
            Event::Write(sector, bytes) => unflushed.push((*sector, bytes.clone())),
            Event::Flush => {
                for (sector, bytes) in unflushed.drain(..) {
                    put(&mut image, sector, &bytes);
                }
            }
        }
        if i % every == 0 {
            let mut crashed = image.clone();
            for (sector, bytes) in &unflushed {
                for (j, part) in bytes.chunks(4096).enumerate() {
                    if random.below(2) == 0 {
                        put(&mut crashed, sector + 8 * j as u64, part);
                    }
                }
            }
            check(&crashed, true);
            // Also through our own way up.
            let again = MemDisk::new(crashed);
            let volume = Volume::mount("disk0", again.clone(), false).unwrap();
            volume.lock().unmount().unwrap();
            check(&again.bytes.borrow(), false);
        }
    }
    let whole = MemDisk::new(image);
    let volume = Volume::mount("disk0", whole, false).unwrap();
    compare(&volume.lock(), &model);
}

#[test]
fn a_small_commit_costs_two_flushes_also_when_the_journal_has_wrapped() {
    let disk = MemDisk::formatted(64);
    let (volume, dir) = start(&disk);
    let guard = volume.lock();
    let file = FileName::new(b"log").unwrap();
    let mode = FilePermissions::new(0o644).unwrap();
    let info = guard
        .change(|fs| fs.create_regular_file(WHO, number(dir)?, file, mode))
        .unwrap();
    let mut data = Vec::new();
    const COMMITS: u64 = 2000;
    let before = (disk.flushes.get(), disk.writes.get(), disk.reads.get());
    let begun = std::time::Instant::now();
    for _ in 0..COMMITS {
        data.extend_from_slice(&[b'a'; 60]);
        let start = (data.len() - 60) / 4096 * 4096;
        guard
            .change(|fs| fs.write_inode(info.number, start as u64, &data[start..]))
            .unwrap();
        guard.commit().unwrap();
    }
    let flushes = disk.flushes.get() - before.0;
    println!(
        "{COMMITS} appends: {flushes} flushes, {} writes, {} reads, {:?}",
        disk.writes.get() - before.1,
        disk.reads.get() - before.2,
        begun.elapsed()
    );
    assert!(flushes < COMMITS * 5 / 2, "{flushes}");
    assert!(disk.bytes() > 0);
    guard.unmount().unwrap();
    check(&disk.bytes.borrow(), false);
}
