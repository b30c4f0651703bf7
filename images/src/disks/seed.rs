//! The directory that a new disk's files come from.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::DiskError;
use crate::appliance::{Appliance, DISK_UNIT, DiskSpec};

/// What a seed directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seed {
    /// The directory.
    pub path: PathBuf,
    /// Bytes of its files, each in whole blocks.
    pub bytes: u64,
    /// Files, directories and links, without the directory itself; hard links to one file count once.
    pub files: u64,
}

/// Looks through the disk's seed directory, if it has one: whether it can be copied, and whether it can fit.
pub(super) fn read(appliance: &Appliance, disk: &DiskSpec) -> Result<Option<Seed>, DiskError> {
    let Some(path) = &disk.seed else {
        return Ok(None);
    };
    let path = appliance.resolve(path);
    let mut seed = Seed {
        path: path.clone(),
        bytes: 0,
        files: 0,
    };
    let mut known = BTreeSet::new();
    let mut todo = vec![path];
    while let Some(directory) = todo.pop() {
        let read_error = || DiskError::io(disk, "read the seed directory", &directory);
        for entry in fs::read_dir(&directory).map_err(read_error())? {
            let path = entry.map_err(read_error())?.path();
            let info = fs::symlink_metadata(&path).map_err(DiskError::io(disk, "read", &path))?;
            if !info.is_dir() && !known.insert((info.dev(), info.ino())) {
                continue;
            }
            seed.files += 1;
            if info.is_dir() {
                seed.bytes = seed.bytes.saturating_add(DISK_UNIT);
                todo.push(path);
            } else if info.is_file() {
                // Holes cost nothing, here and on the disk.
                let used = info.len().min(info.blocks().saturating_mul(512));
                seed.bytes = seed.bytes.saturating_add(used.next_multiple_of(DISK_UNIT));
            } else if !info.is_symlink() {
                let disk = disk.name.clone();
                return Err(DiskError::SpecialFile { disk, path });
            }
        }
    }
    if seed.bytes > disk.bytes {
        return Err(too_small(disk, &seed));
    }
    Ok(Some(seed))
}

pub(super) fn too_small(disk: &DiskSpec, seed: &Seed) -> DiskError {
    DiskError::TooSmall {
        disk: disk.name.clone(),
        bytes: disk.bytes,
        seed: seed.path.clone(),
        seed_bytes: seed.bytes,
        files: seed.files,
    }
}
