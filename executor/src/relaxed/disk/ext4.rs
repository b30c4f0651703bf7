//! What lies where on an ext4 file system, as far as its superblock and group descriptors tell: for reports.

use crate::store::Base;

/// Where the superblock is.
const SUPERBLOCK: u64 = 1024;
/// Most groups that are looked at (R10).
const MAX_GROUPS: u64 = 1 << 16;
/// Largest group descriptor, bytes; Linux makes them of 64. With [`MAX_GROUPS`] the table that is read has a bound (R10).
const MAX_DESCRIPTOR: u64 = 1024;

/// See the module.
pub struct Map {
    block_bytes: u64,
    per_group: u64,
    first_block: u64,
    descriptors: u64,
    /// Per group: block bitmap, inode bitmap, inode table.
    groups: Vec<[u64; 3]>,
    table_blocks: u64,
    /// The journal, where the superblock keeps a copy of its inode's extents: first block and number of blocks.
    journal: Vec<(u64, u64)>,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 4)
        .and_then(|w| w.try_into().ok())
        .map_or(0, |w| u64::from(u32::from_le_bytes(w)))
}

fn half(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 2)
        .and_then(|w| w.try_into().ok())
        .map_or(0, |w| u64::from(u16::from_le_bytes(w)))
}

impl Map {
    /// The map of the file system on a disk; `None` if there is none that is understood. What a guest wrote there is only used to name
    /// places (R9).
    pub fn of(base: &Base) -> Option<Self> {
        let mut sb = [0; 1024];
        base.read(&mut sb, SUPERBLOCK).ok()?;
        if half(&sb, 0x38) != 0xef53 {
            return None;
        }
        let block_bytes = 1024u64.checked_shl(word(&sb, 0x18) as u32)?;
        let per_group = word(&sb, 0x20);
        let blocks = word(&sb, 0x4) | word(&sb, 0x150) << 32;
        if !(1024..=65536).contains(&block_bytes) || per_group == 0 {
            return None;
        }
        let first_block = word(&sb, 0x14);
        let inode_bytes = half(&sb, 0x58).max(128);
        let table_blocks = (word(&sb, 0x28) * inode_bytes).div_ceil(block_bytes);
        let wide = word(&sb, 0x60) & 0x80 != 0;
        let size = if wide { half(&sb, 0xfe).max(32) } else { 32 };
        if size > MAX_DESCRIPTOR {
            return None;
        }
        let count = blocks.saturating_sub(first_block).div_ceil(per_group);
        let count = count.min(MAX_GROUPS);
        let start = (first_block + 1) * block_bytes;
        let mut table = vec![0; (count * size) as usize];
        base.read(&mut table, start).ok()?;
        let groups = table
            .chunks_exact(size as usize)
            .map(|d| {
                let high = |at: usize| {
                    if wide && size >= 64 {
                        word(d, at) << 32
                    } else {
                        0
                    }
                };
                [
                    word(d, 0) | high(0x20),
                    word(d, 4) | high(0x24),
                    word(d, 8) | high(0x28),
                ]
            })
            .collect();
        // s_jnl_blocks: i_block of the journal's inode, an extent header and up to four extents.
        let copy = &sb[0x10c..0x10c + 60];
        let mut journal = Vec::new();
        if half(copy, 0) == 0xf30a && half(copy, 6) == 0 {
            for i in 0..half(copy, 2).min(4) as usize {
                let at = 12 + i * 12;
                let first = word(copy, at + 8) | half(copy, at + 6) << 32;
                journal.push((first, half(copy, at + 4)));
            }
        }
        Some(Self {
            block_bytes,
            per_group,
            first_block,
            descriptors: (count * size).div_ceil(block_bytes),
            groups,
            table_blocks,
            journal,
        })
    }

    /// What lies at a byte of the disk.
    pub fn what(&self, at: u64) -> String {
        if (SUPERBLOCK..SUPERBLOCK + 1024).contains(&at) {
            return "superblock".to_owned();
        }
        let block = at / self.block_bytes;
        if block > self.first_block && block <= self.first_block + self.descriptors {
            return "group descriptors".to_owned();
        }
        if self
            .journal
            .iter()
            .any(|(first, n)| (*first..first + n).contains(&block))
        {
            return "journal".to_owned();
        }
        for (group, [blocks, inodes, table]) in self.groups.iter().enumerate() {
            if block == *blocks {
                return format!("block bitmap of group {group}");
            }
            if block == *inodes {
                return format!("inode bitmap of group {group}");
            }
            if (*table..table.saturating_add(self.table_blocks)).contains(&block) {
                return format!("inode table of group {group}");
            }
        }
        let group = block.saturating_sub(self.first_block) / self.per_group;
        format!("data of group {group}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const BYTES: u64 = 16 << 20;

    /// A disk with this superblock, of 4096 blocks of 4 KiB in two groups.
    fn disk(change: impl FnOnce(&mut [u8])) -> (tempfile::NamedTempFile, Base) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(BYTES).unwrap();
        let mut sb = [0; 1024];
        let mut put = |at: usize, value: u32| sb[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0x4, 4096);
        put(0x18, 2);
        put(0x20, 2048);
        put(0x28, 512);
        put(0x38, 0xef53);
        put(0x60, 0x80);
        sb[0x58..0x5a].copy_from_slice(&256u16.to_le_bytes());
        sb[0xfe..0x100].copy_from_slice(&64u16.to_le_bytes());
        change(&mut sb);
        let write = |bytes: &[u8], at| {
            std::os::unix::fs::FileExt::write_all_at(file.as_file(), bytes, at).unwrap();
        };
        write(&sb, SUPERBLOCK);
        let mut groups = [0; 128];
        for (group, first) in [(0, 16u32), (1, 2100)] {
            for (at, value) in [(0, first), (4, first + 1), (8, first + 2)] {
                let at = group * 64 + at;
                groups[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
        // The upper half of where the second group's inode table is.
        groups[64 + 0x28..64 + 0x2c].copy_from_slice(&u32::MAX.to_le_bytes());
        write(&groups, 4096);
        let base = Base::open(file.path(), BYTES, false, None).unwrap();
        (file, base)
    }

    #[test]
    fn places_are_named() {
        let (_file, base) = disk(|_| {});
        let map = Map::of(&base).unwrap();
        let block = |block: u64| map.what(block * 4096);
        assert_eq!(map.what(1500), "superblock");
        assert_eq!(block(1), "group descriptors");
        assert_eq!(block(17), "inode bitmap of group 0");
        assert_eq!(block(18 + 31), "inode table of group 0");
        assert_eq!(block(2100), "block bitmap of group 1");
        assert_eq!(block(3000), "data of group 1");
    }

    #[test]
    fn what_a_guest_writes_there_costs_little_and_breaks_nothing() {
        let huge = |sb: &mut [u8]| {
            sb[0xfe..0x100].copy_from_slice(&u16::MAX.to_le_bytes());
        };
        // With as many groups as are looked at it would be a table of 4 GiB.
        assert!(Map::of(&disk(huge).1).is_none());
        let noise = |sb: &mut [u8]| {
            for (at, byte) in sb.iter_mut().enumerate().skip(0x60) {
                *byte = (at * 151) as u8 | 0x80;
            }
            sb[0xfe..0x100].copy_from_slice(&64u16.to_le_bytes());
        };
        let (_file, base) = disk(noise);
        if let Some(map) = Map::of(&base) {
            map.what(u64::MAX);
        }
    }
}
