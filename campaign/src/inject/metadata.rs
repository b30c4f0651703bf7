//! Where the blocks of its own of an ext4 file system lie: superblock and its copies, group descriptors, bitmaps, inode tables, journal.
//! Read from the disk as it is before a trial. Only as much of the format as that takes, by the kernel's documentation
//! ("ext4 Data Structures and Algorithms"); what is unknown is an error.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Group descriptors that are read at most (R10): 1 TiB in blocks of 4 KiB has 8192.
const MAX_GROUPS: u64 = 1 << 16;
/// Extents of the journal that are followed at most (R10), and levels of its tree.
const MAX_EXTENTS: usize = 1 << 14;
const MAX_DEPTH: u16 = 5;
const MAGIC: u16 = 0xef53;
const EXTENT_MAGIC: u16 = 0xf30a;
const EXTENTS_FLAG: u32 = 0x8_0000;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const RO_COMPAT_SPARSE_SUPER: u32 = 1;

/// Why a disk's metadata are not known.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The file.
    #[error("the disk cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// No ext4, or one that is not understood.
    #[error("the disk holds no ext4 file system that is understood: {0}")]
    Format(String),
}

/// Ranges of bytes of a disk, ascending and apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(Vec<Range<u64>>);

impl Metadata {
    /// Those of the file system on this disk.
    ///
    /// # Errors
    /// When there is none.
    pub fn read(path: &Path) -> Result<Metadata, MetadataError> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        Metadata::of(&|at, buffer| file.read_exact_at(buffer, at), bytes)
    }

    /// The ranges.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.0
    }

    /// Whether any of these bytes is metadata.
    #[must_use]
    pub fn touches(&self, bytes: &Range<u64>) -> bool {
        let after = self.0.partition_point(|range| range.end <= bytes.start);
        self.0
            .get(after)
            .is_some_and(|range| range.start < bytes.end)
    }

    #[cfg(test)]
    pub(super) fn for_test(ranges: &[Range<u64>]) -> Metadata {
        Metadata(ranges.to_vec())
    }

    fn of(read: &Reader<'_>, disk_bytes: u64) -> Result<Metadata, MetadataError> {
        let volume = Volume::open(read)?;
        let mut ranges = volume.groups()?;
        ranges.extend(volume.journal()?);
        ranges.retain(|range| range.start < disk_bytes && range.start < range.end);
        ranges.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Ok(Metadata(joined))
    }
}

type Reader<'r> = dyn Fn(u64, &mut [u8]) -> std::io::Result<()> + 'r;

/// Little-endian fields; beyond the end they are 0.
struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn u16(&self, at: usize) -> u16 {
        let byte = |at: usize| u16::from(self.0.get(at).copied().unwrap_or(0));
        byte(at) | byte(at + 1) << 8
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }
}

struct Volume<'r> {
    read: &'r Reader<'r>,
    block: u64,
    blocks: u64,
    first_data_block: u64,
    per_group: u64,
    inodes_per_group: u64,
    inode_bytes: u64,
    descriptor_bytes: u64,
    reserved_descriptors: u64,
    sparse: bool,
    journal_inode: u64,
}

fn wrong(what: impl Into<String>) -> MetadataError {
    MetadataError::Format(what.into())
}

impl<'r> Volume<'r> {
    fn open(read: &'r Reader<'r>) -> Result<Self, MetadataError> {
        let mut bytes = [0; 1024];
        read(1024, &mut bytes)?;
        let sb = Fields(&bytes);
        if sb.u16(0x38) != MAGIC {
            return Err(wrong("no superblock"));
        }
        let incompat = sb.u32(0x60);
        if incompat & INCOMPAT_META_BG != 0 {
            return Err(wrong("meta_bg"));
        }
        let wide = incompat & INCOMPAT_64BIT != 0;
        let shift = sb.u32(0x18);
        if shift > 6 {
            return Err(wrong("the block size"));
        }
        let high = if wide { u64::from(sb.u32(0x150)) } else { 0 };
        let volume = Volume {
            read,
            block: 1024 << shift,
            blocks: u64::from(sb.u32(0x4)) | high << 32,
            first_data_block: sb.u32(0x14).into(),
            per_group: sb.u32(0x20).into(),
            inodes_per_group: sb.u32(0x28).into(),
            inode_bytes: sb.u16(0x58).max(128).into(),
            descriptor_bytes: if wide {
                sb.u16(0xfe).max(32).into()
            } else {
                32
            },
            reserved_descriptors: sb.u16(0xce).into(),
            sparse: sb.u32(0x64) & RO_COMPAT_SPARSE_SUPER != 0,
            journal_inode: sb.u32(0xe0).into(),
        };
        if volume.per_group == 0 || volume.inodes_per_group == 0 || volume.blocks == 0 {
            return Err(wrong("an empty block group"));
        }
        if volume.count() > MAX_GROUPS {
            return Err(wrong(format!("{} block groups", volume.count())));
        }
        Ok(volume)
    }

    fn count(&self) -> u64 {
        self.blocks
            .saturating_sub(self.first_data_block)
            .div_ceil(self.per_group)
    }

    fn bytes(&self, block: u64, blocks: u64) -> Range<u64> {
        let start = block.saturating_mul(self.block);
        start..start.saturating_add(blocks.saturating_mul(self.block))
    }

    /// Whether a group begins with a copy of superblock and descriptors.
    fn has_copy(&self, group: u64) -> bool {
        let power = |base: u64| {
            let mut value = base;
            while value < group {
                value *= base;
            }
            value == group
        };
        group <= 1 || !self.sparse || power(3) || power(5) || power(7)
    }

    /// Block bitmap, inode bitmap, inode table of a group.
    fn descriptor(&self, group: u64) -> Result<[u64; 3], MetadataError> {
        let mut bytes = vec![0; self.descriptor_bytes as usize];
        let table = (self.first_data_block + 1) * self.block;
        (self.read)(table + group * self.descriptor_bytes, &mut bytes)?;
        let fields = Fields(&bytes);
        let wide = self.descriptor_bytes >= 64;
        Ok([0, 4, 8].map(|at| {
            let high = if wide { fields.u32(0x20 + at) } else { 0 };
            u64::from(fields.u32(at)) | u64::from(high) << 32
        }))
    }

    fn groups(&self) -> Result<Vec<Range<u64>>, MetadataError> {
        let table = (self.inodes_per_group * self.inode_bytes).div_ceil(self.block);
        let descriptors = (self.count() * self.descriptor_bytes).div_ceil(self.block);
        let mut ranges = Vec::new();
        for group in 0..self.count() {
            if self.has_copy(group) {
                let first = self.first_data_block + group * self.per_group;
                ranges.push(self.bytes(first, 1 + descriptors + self.reserved_descriptors));
            }
            let [blocks, inodes, inode_table] = self.descriptor(group)?;
            ranges.push(self.bytes(blocks, 1));
            ranges.push(self.bytes(inodes, 1));
            ranges.push(self.bytes(inode_table, table));
        }
        if self.first_data_block == 0 {
            // The superblock is in block 0 with what comes before it.
            ranges.push(self.bytes(0, 1));
        }
        Ok(ranges)
    }

    fn journal(&self) -> Result<Vec<Range<u64>>, MetadataError> {
        let Some(index) = self.journal_inode.checked_sub(1) else {
            return Ok(Vec::new());
        };
        let [_, _, table] = self.descriptor(index / self.inodes_per_group)?;
        let at =
            table.saturating_mul(self.block) + index % self.inodes_per_group * self.inode_bytes;
        let mut inode = [0; 128];
        (self.read)(at, &mut inode)?;
        if Fields(&inode).u32(0x20) & EXTENTS_FLAG == 0 {
            return Err(wrong("a journal without extents"));
        }
        let mut ranges = Vec::new();
        self.extents(&inode[0x28..0x28 + 60], MAX_DEPTH, &mut ranges)?;
        Ok(ranges)
    }

    fn extents(
        &self,
        node: &[u8],
        depth: u16,
        ranges: &mut Vec<Range<u64>>,
    ) -> Result<(), MetadataError> {
        let fields = Fields(node);
        let (entries, level) = (usize::from(fields.u16(2)), fields.u16(6));
        if fields.u16(0) != EXTENT_MAGIC || level > depth || (entries + 1) * 12 > node.len() {
            return Err(wrong("the journal's extents"));
        }
        for at in (1..=entries).map(|entry| entry * 12) {
            if ranges.len() >= MAX_EXTENTS {
                return Err(wrong("a journal of more extents than any has"));
            }
            if level == 0 {
                let start = u64::from(fields.u32(at + 8)) | u64::from(fields.u16(at + 6)) << 32;
                // More than 32768 blocks: not written to yet.
                let blocks = match fields.u16(at + 4) {
                    long @ 0x8001.. => long - 0x8000,
                    blocks => blocks,
                };
                ranges.push(self.bytes(start, blocks.into()));
            } else {
                let child = u64::from(fields.u32(at + 4)) | u64::from(fields.u16(at + 8)) << 32;
                let range = self.bytes(child, 1);
                let mut node = vec![0; self.block as usize];
                (self.read)(range.start, &mut node)?;
                ranges.push(range);
                self.extents(&node, level - 1, ranges)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::process::Command;

    /// A file system as e2fsprogs makes it. None where that is not installed.
    fn made(bytes: u64, options: &[&str]) -> Option<tempfile::NamedTempFile> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        let made = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4"])
            .args(options)
            .arg(file.path())
            .output()
            .ok()?;
        assert!(made.status.success(), "{made:?}");
        Some(file)
    }

    #[test]
    fn agrees_with_dumpe2fs() {
        for (bytes, options) in [
            (64 << 20, &["-b", "4096"][..]),
            (300 << 20, &["-b", "4096"]),
            (40 << 20, &["-b", "1024", "-O", "^64bit,^flex_bg"]),
        ] {
            let Some(file) = made(bytes, options) else {
                return;
            };
            let found = Metadata::read(file.path()).unwrap();
            let block: u64 = options[1].parse().unwrap();
            let said = Command::new("dumpe2fs").arg(file.path()).output().unwrap();
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            let mut checked = 0;
            for line in said.lines() {
                for word in [
                    "bitmap at ",
                    "table at ",
                    "superblock at ",
                    "descriptors at ",
                ] {
                    for (at, _) in line.match_indices(word) {
                        let number: String = line[at + word.len()..]
                            .chars()
                            .take_while(|c| c.is_ascii_digit() || *c == '-')
                            .collect();
                        let mut ends = number.split('-').filter_map(|n| n.parse::<u64>().ok());
                        let Some(first) = ends.next() else { continue };
                        let last = ends.next().unwrap_or(first);
                        for number in first..=last {
                            let bytes = number * block..(number + 1) * block;
                            assert!(found.touches(&bytes), "block {number}: {line}");
                            checked += 1;
                        }
                    }
                }
            }
            assert!(checked > 10, "{said}");
            // The journal, by debugfs; and a file's block is none of them.
            let blocks = Command::new("debugfs")
                .args(["-R", "blocks <8>"])
                .arg(file.path())
                .output()
                .unwrap();
            let blocks = String::from_utf8_lossy(&blocks.stdout).into_owned();
            let journal: Vec<u64> = blocks
                .split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect();
            assert!(journal.len() > 100, "{blocks}");
            for number in &journal {
                assert!(found.touches(&(number * block..(number + 1) * block)));
            }
            let all: u64 = found.ranges().iter().map(|r| r.end - r.start).sum();
            assert!(all < bytes / 2, "{all} of {bytes} bytes are metadata");
        }
    }

    #[test]
    fn no_file_system_is_an_error() {
        let zeros = |_: u64, buffer: &mut [u8]| {
            buffer.fill(0);
            Ok(())
        };
        assert!(Metadata::of(&zeros, 1 << 20).is_err());
        let noise = |at: u64, buffer: &mut [u8]| {
            for (i, byte) in (at..).zip(buffer) {
                *byte = (i.wrapping_mul(0x9e37_79b9) >> 13) as u8;
            }
            Ok(())
        };
        assert!(Metadata::of(&noise, 1 << 20).is_err());
    }
}
