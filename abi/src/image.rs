//! The read-only root image.
//!
//! One file, mapped into guest memory as a whole and parsed in place: the guest kernel maps a program's text straight from
//! it. Hence the one rule of the layout: a regular file's contents start on a page boundary and its last page is zero padded.
//! All numbers are little-endian. Order in the file:
//!
//! | part | contents |
//! | --- | --- |
//! | header page | [`Header`], zero padded to [`PAGE_SIZE`](crate::PAGE_SIZE) |
//! | inode table | [`RawInode`], [`INODE_SIZE`] bytes each; inode number `n` (from 1, so that no program meets `d_ino == 0`) is entry `n - 1` |
//! | directory entries | [`RawEntry`], [`ENTRY_SIZE`] bytes each; those of one directory are contiguous and sorted bytewise by name |
//! | strings | names and symlink targets, not terminated |
//! | data | contents of regular files, each page aligned |
//! | leaks | a count, then an entry (offset in the image times 256, plus length) for each instruction in a program that would leak real time or randomness, ascending |
//!
//! [`ImageView::parse`] checks the header only, in constant time; everything else is checked when it is accessed, and any
//! bytes whatever give an [`ImageError`] at worst.

use crate::PAGE_SIZE;

/// [`Header::magic`]: "QIMGROOT".
pub const IMAGE_MAGIC: u64 = u64::from_le_bytes(*b"QIMGROOT");
/// [`Header::version`].
pub const IMAGE_VERSION: u32 = 2;
/// Bytes of an encoded [`Header`]; the rest of the header page is zero.
pub const HEADER_SIZE: usize = 112;
/// Where [`Header::digest`] lies in the header.
pub const DIGEST_OFFSET: usize = 80;
/// Bytes of an encoded [`RawInode`].
pub const INODE_SIZE: usize = 64;
/// Bytes of an encoded [`RawEntry`].
pub const ENTRY_SIZE: usize = 12;
/// Inode number of `/`.
pub const ROOT_INODE: u32 = 1;
/// Longest name of a directory entry (Linux's `NAME_MAX`).
pub const MAX_NAME: usize = 255;
/// Longest symlink target (Linux's `PATH_MAX` less the terminator).
pub const MAX_TARGET: usize = 4095;

/// Mask of the file type in `st_mode`.
pub const S_IFMT: u32 = 0o170_000;
/// Regular file.
pub const S_IFREG: u32 = 0o100_000;
/// Directory.
pub const S_IFDIR: u32 = 0o040_000;
/// Symbolic link.
pub const S_IFLNK: u32 = 0o120_000;
/// Character device.
pub const S_IFCHR: u32 = 0o020_000;
/// Block device.
pub const S_IFBLK: u32 = 0o060_000;
/// FIFO.
pub const S_IFIFO: u32 = 0o010_000;

/// Why an image, or a part of it, is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Shorter than its header says, or than a header.
    Truncated,
    /// Not an image.
    Magic,
    /// An image of another version of the format.
    Version(u32),
    /// A table of the header lies outside the image or is misaligned.
    Table,
    /// No such inode.
    Inode(u32),
    /// An inode whose contents lie outside the image, or are misaligned or too long.
    Range(u32),
    /// A directory entry that is malformed.
    Entry(u32),
    /// The operation wants a directory.
    NotDirectory(u32),
    /// The operation wants a regular file.
    NotRegular(u32),
    /// The operation wants a symbolic link.
    NotSymlink(u32),
}

impl core::fmt::Display for ImageError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Truncated => write!(f, "the image is shorter than its header says"),
            Self::Magic => write!(f, "not a Quorate image"),
            Self::Version(v) => {
                write!(f, "image format {v}, this program reads {IMAGE_VERSION}")
            }
            Self::Table => write!(f, "a table of the image lies outside it"),
            Self::Inode(ino) => write!(f, "the image has no inode {ino}"),
            Self::Range(ino) => write!(f, "inode {ino}: contents outside the image"),
            Self::Entry(ino) => write!(f, "inode {ino}: malformed directory entry"),
            Self::NotDirectory(ino) => write!(f, "inode {ino}: not a directory"),
            Self::NotRegular(ino) => write!(f, "inode {ino}: not a regular file"),
            Self::NotSymlink(ino) => write!(f, "inode {ino}: not a symbolic link"),
        }
    }
}

impl core::error::Error for ImageError {}

/// The image's header. All offsets count from the image's first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// [`IMAGE_MAGIC`].
    pub magic: u64,
    /// [`IMAGE_VERSION`].
    pub version: u32,
    /// Inodes in the table.
    pub inode_count: u32,
    /// Length of the image in bytes, a multiple of the page size.
    pub total_len: u64,
    /// Offset of the inode table, a multiple of 8.
    pub inodes: u64,
    /// Offset of the directory entries, a multiple of 4.
    pub entries: u64,
    /// Directory entries in all.
    pub entry_count: u64,
    /// Offset of the string area.
    pub strings: u64,
    /// Bytes of the string area.
    pub strings_len: u64,
    /// Offset of the first page of data.
    pub data: u64,
    /// Offset of the table of leaking instructions, a multiple of 8.
    pub leaks: u64,
    /// BLAKE3 of the whole image with these 32 bytes taken as zero, so that the header is covered too.
    pub digest: [u8; 32],
}

impl Header {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut out = [0; HEADER_SIZE];
        put(&mut out, 0, &self.magic.to_le_bytes());
        put(&mut out, 8, &self.version.to_le_bytes());
        put(&mut out, 12, &self.inode_count.to_le_bytes());
        let words = [
            self.total_len,
            self.inodes,
            self.entries,
            self.entry_count,
            self.strings,
            self.strings_len,
            self.data,
            self.leaks,
        ];
        for (i, word) in words.iter().enumerate() {
            put(&mut out, 16 + 8 * i, &word.to_le_bytes());
        }
        put(&mut out, DIGEST_OFFSET, &self.digest);
        out
    }

    /// Reads the header; checks nothing but that the bytes are there.
    ///
    /// # Errors
    /// [`ImageError::Truncated`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        let word = |at| u64_at(bytes, at).ok_or(ImageError::Truncated);
        let half = |at| u32_at(bytes, at).ok_or(ImageError::Truncated);
        Ok(Self {
            magic: word(0)?,
            version: half(8)?,
            inode_count: half(12)?,
            total_len: word(16)?,
            inodes: word(24)?,
            entries: word(32)?,
            entry_count: word(40)?,
            strings: word(48)?,
            strings_len: word(56)?,
            data: word(64)?,
            leaks: word(72)?,
            digest: array_at(bytes, DIGEST_OFFSET).ok_or(ImageError::Truncated)?,
        })
    }

    /// Checks the header against the length of what lies behind it.
    ///
    /// # Errors
    /// Says what is wrong: not an image, another version, fewer than `total_len` bytes, or a table outside the image.
    pub fn check(&self, have: u64) -> Result<(), ImageError> {
        if self.magic != IMAGE_MAGIC {
            return Err(ImageError::Magic);
        }
        if self.version != IMAGE_VERSION {
            return Err(ImageError::Version(self.version));
        }
        if have < self.total_len || self.total_len < PAGE_SIZE {
            return Err(ImageError::Truncated);
        }
        let inode_bytes = u64::from(self.inode_count) * INODE_SIZE as u64;
        let entry_bytes = self.entry_count.checked_mul(ENTRY_SIZE as u64);
        let in_order = || {
            let inodes_end = self.inodes.checked_add(inode_bytes)?;
            let entries_end = self.entries.checked_add(entry_bytes?)?;
            let strings_end = self.strings.checked_add(self.strings_len)?;
            Some(
                self.inodes >= PAGE_SIZE
                    && inodes_end <= self.entries
                    && entries_end <= self.strings
                    && strings_end <= self.data
                    && self.data <= self.leaks
                    && self.leaks.checked_add(8)? <= self.total_len,
            )
        };
        let aligned = self.inodes.is_multiple_of(8)
            && self.entries.is_multiple_of(4)
            && self.data.is_multiple_of(PAGE_SIZE)
            && self.leaks.is_multiple_of(8)
            && self.total_len.is_multiple_of(PAGE_SIZE);
        if aligned && self.inode_count >= ROOT_INODE && in_order() == Some(true) {
            Ok(())
        } else {
            Err(ImageError::Table)
        }
    }
}

/// What a program can ask about a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inode {
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Links to it; a directory has 2 plus one for each directory in it.
    pub nlink: u32,
    /// Bytes of a regular file or of a symlink's target; one page for a directory; 0 for a device.
    pub size: u64,
    /// Time of last modification, seconds since 1970.
    pub mtime: i64,
    /// Device number, as `st_rdev` (major in bits 8 to 15, minor in bits 0 to 7 for small ones).
    pub rdev: u64,
}

impl Inode {
    /// The file type: one of the `S_IF…` values.
    #[must_use]
    pub const fn kind(&self) -> u32 {
        self.mode & S_IFMT
    }

    /// Whether it is a directory.
    #[must_use]
    pub const fn is_dir(&self) -> bool {
        self.kind() == S_IFDIR
    }

    /// Whether it is a regular file.
    #[must_use]
    pub const fn is_regular(&self) -> bool {
        self.kind() == S_IFREG
    }

    /// Whether it is a symbolic link.
    #[must_use]
    pub const fn is_symlink(&self) -> bool {
        self.kind() == S_IFLNK
    }
}

/// An entry of the inode table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawInode {
    /// What programs see.
    pub inode: Inode,
    /// Regular file: offset of the contents in the image; directory: index of its first entry;
    /// symlink: offset of the target in the string area; otherwise 0.
    pub location: u64,
    /// Directory: how many entries; otherwise 0.
    pub count: u32,
    /// Directory: inode number of the parent (the root's is itself); otherwise 0.
    pub parent: u32,
}

impl RawInode {
    /// The entry's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; INODE_SIZE] {
        let mut out = [0; INODE_SIZE];
        let i = &self.inode;
        put(&mut out, 0, &i.mode.to_le_bytes());
        put(&mut out, 4, &i.uid.to_le_bytes());
        put(&mut out, 8, &i.gid.to_le_bytes());
        put(&mut out, 12, &i.nlink.to_le_bytes());
        put(&mut out, 16, &i.size.to_le_bytes());
        put(&mut out, 24, &i.mtime.to_le_bytes());
        put(&mut out, 32, &i.rdev.to_le_bytes());
        put(&mut out, 40, &self.location.to_le_bytes());
        put(&mut out, 48, &self.count.to_le_bytes());
        put(&mut out, 52, &self.parent.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            inode: Inode {
                mode: u32_at(bytes, 0)?,
                uid: u32_at(bytes, 4)?,
                gid: u32_at(bytes, 8)?,
                nlink: u32_at(bytes, 12)?,
                size: u64_at(bytes, 16)?,
                mtime: i64::from_le_bytes(array_at(bytes, 24)?),
                rdev: u64_at(bytes, 32)?,
            },
            location: u64_at(bytes, 40)?,
            count: u32_at(bytes, 48)?,
            parent: u32_at(bytes, 52)?,
        })
    }
}

/// A directory entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawEntry {
    /// Offset of the name in the string area.
    pub name: u32,
    /// Bytes of the name.
    pub name_len: u32,
    /// Inode number.
    pub ino: u32,
}

impl RawEntry {
    /// The entry's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ENTRY_SIZE] {
        let mut out = [0; ENTRY_SIZE];
        put(&mut out, 0, &self.name.to_le_bytes());
        put(&mut out, 4, &self.name_len.to_le_bytes());
        put(&mut out, 8, &self.ino.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            name: u32_at(bytes, 0)?,
            name_len: u32_at(bytes, 4)?,
            ino: u32_at(bytes, 8)?,
        })
    }
}

/// An image in memory.
#[derive(Clone, Copy, Debug)]
pub struct ImageView<'a> {
    bytes: &'a [u8],
    header: Header,
}

impl<'a> ImageView<'a> {
    /// Takes `bytes` as an image; they may go on beyond its end (a mapping does).
    ///
    /// # Errors
    /// Says what is wrong with the header. The rest is checked on access.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let header = Header::decode(bytes)?;
        header.check(bytes.len() as u64)?;
        let len = usize::try_from(header.total_len).map_err(|_| ImageError::Truncated)?;
        let bytes = bytes.get(..len).ok_or(ImageError::Truncated)?;
        Ok(Self { bytes, header })
    }

    /// The header.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The leaking instructions whose first byte lies at image offsets `[from, to)`: (offset, length), ascending. An entry of a
    /// damaged table may be anything; the caller looks at the instruction itself.
    pub fn leaks(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, u8)> + use<'a> {
        let bytes = self.bytes;
        let table = self.header.leaks as usize;
        let room = bytes.len().saturating_sub(table).saturating_sub(8) / 8;
        let count = u64_at(bytes, table).map_or(0, |n| usize::try_from(n).unwrap_or(0).min(room));
        let entry = move |i: usize| u64_at(bytes, table + 8 + 8 * i).unwrap_or(u64::MAX);
        // The first entry that is not below `from`.
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low.midpoint(high);
            if entry(middle) >> 8 < from {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        (low..count)
            .map(entry)
            .map(|e| (e >> 8, e as u8))
            .take_while(move |(at, _)| *at < to)
    }

    /// Inode number of `/`.
    #[must_use]
    pub const fn root(&self) -> u32 {
        ROOT_INODE
    }

    /// Digest that the builder stored ([`Header::digest`]); not recomputed here.
    #[must_use]
    pub const fn digest(&self) -> [u8; 32] {
        self.header.digest
    }

    /// What a program can ask about `ino`.
    ///
    /// # Errors
    /// [`ImageError::Inode`].
    pub fn inode(&self, ino: u32) -> Result<Inode, ImageError> {
        Ok(self.raw(ino)?.inode)
    }

    /// The inode number of `name` in directory `dir`, by binary search. `.` and `..` are not entries.
    ///
    /// # Errors
    /// [`ImageError::NotDirectory`], or the image is damaged there.
    pub fn lookup(&self, dir: u32, name: &[u8]) -> Result<Option<u32>, ImageError> {
        let raw = self.directory(dir)?;
        let (mut low, mut high) = (0, raw.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let (found, ino) = self.entry_of(dir, &raw, middle)?;
            match found.cmp(name) {
                core::cmp::Ordering::Equal => return Ok(Some(ino)),
                core::cmp::Ordering::Less => low = middle + 1,
                core::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// Entry `index` of directory `dir` in the order of their names; `None` behind the last.
    ///
    /// # Errors
    /// [`ImageError::NotDirectory`], or the image is damaged there.
    pub fn entry(&self, dir: u32, index: usize) -> Result<Option<(&'a [u8], u32)>, ImageError> {
        let raw = self.directory(dir)?;
        match u32::try_from(index) {
            Ok(index) if index < raw.count => self.entry_of(dir, &raw, index).map(Some),
            _ => Ok(None),
        }
    }

    /// The directory that holds directory `dir`; the root's parent is the root.
    ///
    /// # Errors
    /// [`ImageError::NotDirectory`], also if the parent is none.
    pub fn parent(&self, dir: u32) -> Result<u32, ImageError> {
        let parent = self.directory(dir)?.parent;
        self.directory(parent)?;
        Ok(parent)
    }

    /// Target of the symbolic link `ino`: 1 to [`MAX_TARGET`] bytes.
    ///
    /// # Errors
    /// [`ImageError::NotSymlink`], or the image is damaged there.
    pub fn readlink(&self, ino: u32) -> Result<&'a [u8], ImageError> {
        let raw = self.raw(ino)?;
        if !raw.inode.is_symlink() {
            return Err(ImageError::NotSymlink(ino));
        }
        if raw.inode.size == 0 || raw.inode.size > MAX_TARGET as u64 {
            return Err(ImageError::Range(ino));
        }
        self.string(raw.location, raw.inode.size)
            .ok_or(ImageError::Range(ino))
    }

    /// Contents of the regular file `ino`.
    ///
    /// # Errors
    /// [`ImageError::NotRegular`], or the image is damaged there.
    pub fn data(&self, ino: u32) -> Result<&'a [u8], ImageError> {
        let (offset, size) = self.extent(ino)?;
        slice(self.bytes, offset, size).ok_or(ImageError::Range(ino))
    }

    /// Page-aligned offset of the contents of the regular file `ino` in the image. The pages up to its last byte lie in the
    /// image as a whole. An empty file's offset is page aligned and means nothing.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub fn data_offset(&self, ino: u32) -> Result<u64, ImageError> {
        Ok(self.extent(ino)?.0)
    }

    fn extent(&self, ino: u32) -> Result<(u64, u64), ImageError> {
        let raw = self.raw(ino)?;
        if !raw.inode.is_regular() {
            return Err(ImageError::NotRegular(ino));
        }
        let (offset, size) = (raw.location, raw.inode.size);
        let end = size
            .checked_next_multiple_of(PAGE_SIZE)
            .and_then(|len| offset.checked_add(len));
        let inside = offset.is_multiple_of(PAGE_SIZE) && offset >= self.header.data;
        match end {
            Some(end) if inside && end <= self.header.total_len => Ok((offset, size)),
            _ => Err(ImageError::Range(ino)),
        }
    }

    fn raw(&self, ino: u32) -> Result<RawInode, ImageError> {
        if ino == 0 || ino > self.header.inode_count {
            return Err(ImageError::Inode(ino));
        }
        let at = self.header.inodes + u64::from(ino - 1) * INODE_SIZE as u64;
        slice(self.bytes, at, INODE_SIZE as u64)
            .and_then(RawInode::decode)
            .ok_or(ImageError::Inode(ino))
    }

    fn directory(&self, ino: u32) -> Result<RawInode, ImageError> {
        let raw = self.raw(ino)?;
        if raw.inode.is_dir() {
            Ok(raw)
        } else {
            Err(ImageError::NotDirectory(ino))
        }
    }

    /// Entry `index` of the directory `dir` that `raw` describes; `index` is below its count.
    fn entry_of(
        &self,
        dir: u32,
        raw: &RawInode,
        index: u32,
    ) -> Result<(&'a [u8], u32), ImageError> {
        let read = || {
            let position = raw.location.checked_add(u64::from(index))?;
            if position >= self.header.entry_count {
                return None;
            }
            // Cannot overflow: `parse` has checked the end of the table.
            let at = self.header.entries + position * ENTRY_SIZE as u64;
            let entry = RawEntry::decode(slice(self.bytes, at, ENTRY_SIZE as u64)?)?;
            let name = self.string(u64::from(entry.name), u64::from(entry.name_len))?;
            (!name.is_empty() && name.len() <= MAX_NAME).then_some((name, entry.ino))
        };
        read().ok_or(ImageError::Entry(dir))
    }

    fn string(&self, offset: u64, len: u64) -> Option<&'a [u8]> {
        let area = slice(self.bytes, self.header.strings, self.header.strings_len)?;
        slice(area, offset, len)
    }
}

fn slice(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    bytes.get(start..end)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

/// Copies `value` into `out` at `at`; offsets here are constants of the format, always inside.
fn put(out: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = out.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}
