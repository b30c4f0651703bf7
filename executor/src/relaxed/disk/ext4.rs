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
