//! Writes a [`Tree`] as an image. The same tree gives the same bytes: directories are visited in breadth-first order, entries
//! in the order of their names, and nothing comes from the clock or the host.

use std::collections::HashMap;
use std::io::{self, Seek, SeekFrom, Write};

use quorate_abi::PAGE_SIZE;
use quorate_abi::image::{
    DIGEST_OFFSET, ENTRY_SIZE, Header, IMAGE_MAGIC, IMAGE_VERSION, INODE_SIZE, Inode, RawEntry,
    RawInode, S_IFDIR, S_IFLNK, S_IFREG,
};

use crate::MAX_IMAGE_LEN;
use crate::tree::{Kind, Node, NodeId, Tree};

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The output failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Longer than [`MAX_IMAGE_LEN`].
    #[error("the image would have {0} bytes; {MAX_IMAGE_LEN} are the most")]
    TooLarge(u64),
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// BLAKE3, as in [`Header::digest`].
    pub digest: [u8; 32],
    /// Length in bytes.
    pub length: u64,
    /// Files of all sorts.
    pub inodes: u32,
}

/// The image's tables, and the files whose contents follow them.
struct Plan<'a> {
    inodes: Vec<RawInode>,
    entries: Vec<RawEntry>,
    strings: Vec<u8>,
    data: Vec<(usize, &'a [u8])>,
}

/// Writes `tree` to `out`, which must be empty and at its start.
///
/// # Errors
/// [`WriteError`].
pub fn write<W: Write + Seek>(tree: &Tree, out: &mut W) -> Result<Written, WriteError> {
    let mut plan = plan(tree)?;
    let inodes_at = PAGE_SIZE;
    let entries_at = inodes_at + (plan.inodes.len() * INODE_SIZE) as u64;
    let strings_at = entries_at + (plan.entries.len() * ENTRY_SIZE) as u64;
    let strings_len = plan.strings.len() as u64;
    let data_at = (strings_at + strings_len).next_multiple_of(PAGE_SIZE);
    let mut end = data_at;
    let mut places: HashMap<&[u8], u64> = HashMap::new();
    let mut distinct = Vec::new();
    for (index, content) in &plan.data {
        // Files of the same contents share one extent: Debian ships several copies of one program.
        let place = *places.entry(content).or_insert_with(|| {
            let place = end;
            distinct.push(*content);
            end = end.saturating_add((content.len() as u64).next_multiple_of(PAGE_SIZE));
            place
        });
        if let Some(raw) = plan.inodes.get_mut(*index) {
            raw.location = place;
        }
    }
    let leaks_at = end;
    let leaks = leaks(&distinct, data_at);
    end = end
        .saturating_add(8 + 8 * leaks.len() as u64)
        .next_multiple_of(PAGE_SIZE);
    if end > MAX_IMAGE_LEN {
        return Err(WriteError::TooLarge(end));
    }
    let inodes = u32::try_from(plan.inodes.len()).map_err(|_| WriteError::TooLarge(end))?;
    let header = Header {
        magic: IMAGE_MAGIC,
        version: IMAGE_VERSION,
        inode_count: inodes,
        total_len: end,
        inodes: inodes_at,
        entries: entries_at,
        entry_count: plan.entries.len() as u64,
        strings: strings_at,
        strings_len,
        data: data_at,
        leaks: leaks_at,
        ..Header::default()
    };
    let mut sink = Sink::new(out);
    sink.put(&header.encode())?;
    sink.pad()?;
    for inode in &plan.inodes {
        sink.put(&inode.encode())?;
    }
    for entry in &plan.entries {
        sink.put(&entry.encode())?;
    }
    sink.put(&plan.strings)?;
    sink.pad()?;
    for content in distinct {
        sink.put(content)?;
        sink.pad()?;
    }
    sink.put(&(leaks.len() as u64).to_le_bytes())?;
    for leak in &leaks {
        sink.put(&leak.to_le_bytes())?;
    }
    sink.pad()?;
    // The pair of the check in `ImageView::parse`: what the header promises is what was written.
    assert_eq!(sink.at, end, "planned and written length differ");
    let digest = sink.finish()?;
    out.seek(SeekFrom::Start(DIGEST_OFFSET as u64))?;
    out.write_all(&digest)?;
    out.flush()?;
    Ok(Written {
        digest,
        length: end,
        inodes,
    })
}

/// Entries of the table of leaking instructions, for contents that lie in a row from `data_at` on.
fn leaks(contents: &[&[u8]], data_at: u64) -> Vec<u64> {
    let mut entries = Vec::new();
    let mut place = data_at;
    for content in contents {
        let found = codescan::find_in_elf(content);
        entries.extend(
            found
                .iter()
                .map(|(at, len)| (place + at) << 8 | u64::from(*len)),
        );
        place += (content.len() as u64).next_multiple_of(PAGE_SIZE);
    }
    entries
}

/// The image of `tree` in memory.
///
/// # Errors
/// [`WriteError::TooLarge`].
pub fn to_bytes(tree: &Tree) -> Result<Vec<u8>, WriteError> {
    let mut out = io::Cursor::new(Vec::new());
    write(tree, &mut out)?;
    Ok(out.into_inner())
}

fn plan(tree: &Tree) -> Result<Plan<'_>, WriteError> {
    let mut plan = Plan {
        inodes: Vec::new(),
        entries: Vec::new(),
        strings: Vec::new(),
        data: Vec::new(),
    };
    let mut numbers: HashMap<NodeId, u32> = HashMap::new();
    let mut queue: Vec<(NodeId, &Node)> = Vec::new();
    if let Some(root) = tree.node(tree.root()) {
        add(&mut plan, root, 1)?;
        numbers.insert(tree.root(), 1);
        queue.push((tree.root(), root));
    }
    let mut next = 0;
    while let Some(&(id, node)) = queue.get(next) {
        next += 1;
        let Kind::Dir(children) = &node.kind else {
            continue;
        };
        let ino = numbers.get(&id).copied().unwrap_or(1);
        let first = plan.entries.len() as u64;
        for (name, &child_id) in children {
            let Some(child) = tree.node(child_id) else {
                continue;
            };
            let child_ino = match numbers.get(&child_id) {
                Some(&known) => {
                    if let Some(raw) = inode_mut(&mut plan, known) {
                        raw.inode.nlink += 1;
                    }
                    known
                }
                None => {
                    let number = add(&mut plan, child, ino)?;
                    numbers.insert(child_id, number);
                    if matches!(child.kind, Kind::Dir(_)) {
                        queue.push((child_id, child));
                        if let Some(raw) = inode_mut(&mut plan, ino) {
                            raw.inode.nlink += 1;
                        }
                    }
                    number
                }
            };
            let name_at = string(&mut plan, name)?;
            plan.entries.push(RawEntry {
                name: name_at,
                name_len: name.len() as u32,
                ino: child_ino,
            });
        }
        if let Some(raw) = inode_mut(&mut plan, ino) {
            raw.location = first;
            raw.count = children.len() as u32;
        }
    }
    Ok(plan)
}

fn inode_mut<'p>(plan: &'p mut Plan<'_>, ino: u32) -> Option<&'p mut RawInode> {
    plan.inodes.get_mut((ino as usize).checked_sub(1)?)
}

/// Adds the inode of `node`, which lies in directory `parent`, and gives its number.
fn add<'a>(plan: &mut Plan<'a>, node: &'a Node, parent: u32) -> Result<u32, WriteError> {
    let mut raw = RawInode::default();
    let (kind, size, rdev) = match &node.kind {
        Kind::Dir(_) => {
            raw.parent = parent;
            (S_IFDIR, PAGE_SIZE, 0)
        }
        Kind::File(content) => {
            plan.data.push((plan.inodes.len(), content));
            (S_IFREG, content.len() as u64, 0)
        }
        Kind::Symlink(target) => {
            raw.location = u64::from(string(plan, target)?);
            (S_IFLNK, target.len() as u64, 0)
        }
        Kind::Special(special) => (special.mode(), 0, special.rdev()),
    };
    let meta = node.meta;
    raw.inode = Inode {
        mode: kind | (meta.perm & 0o7777),
        uid: meta.uid,
        gid: meta.gid,
        nlink: if kind == S_IFDIR { 2 } else { 1 },
        size,
        mtime: meta.mtime,
        rdev,
    };
    plan.inodes.push(raw);
    u32::try_from(plan.inodes.len()).map_err(|_| WriteError::TooLarge(u64::MAX))
}

fn string(plan: &mut Plan<'_>, bytes: &[u8]) -> Result<u32, WriteError> {
    let at = plan.strings.len();
    plan.strings.extend_from_slice(bytes);
    u32::try_from(at).map_err(|_| WriteError::TooLarge(at as u64))
}

/// Writes and digests.
struct Sink<'w, W: Write> {
    out: io::BufWriter<&'w mut W>,
    hasher: blake3::Hasher,
    at: u64,
}

impl<'w, W: Write> Sink<'w, W> {
    fn new(out: &'w mut W) -> Self {
        Self {
            out: io::BufWriter::with_capacity(1 << 20, out),
            hasher: blake3::Hasher::new(),
            at: 0,
        }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Zeroes up to the next page.
    fn pad(&mut self) -> io::Result<()> {
        const ZEROES: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
        let missing = (self.at.next_multiple_of(PAGE_SIZE) - self.at) as usize;
        self.put(ZEROES.get(..missing).unwrap_or_default())
    }

    fn finish(mut self) -> io::Result<[u8; 32]> {
        self.out.flush()?;
        Ok(*self.hasher.finalize().as_bytes())
    }
}
