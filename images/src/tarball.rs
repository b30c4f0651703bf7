//! What packages and layers have in common: entries of tar archives that become files of a [`Tree`](crate::tree::Tree).

use std::io::{self, Read};

use crate::MAX_IMAGE_LEN;
use crate::error::BuildError;
use crate::tree::{Meta, Tree};

/// Most files of all sorts that a tree may get from archives (R10).
pub(crate) const MAX_FILES: usize = 1 << 20;

/// Why an entry is refused.
pub(crate) enum EntryError {
    /// The archive is malformed or unreadable.
    Io(io::Error),
    /// The image would be over its bound.
    TooLarge(u64),
}

impl From<io::Error> for EntryError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl EntryError {
    /// As an error of the whole build; `bad` is for a malformed archive.
    pub(crate) fn into_build(self, bad: impl FnOnce(io::Error) -> BuildError) -> BuildError {
        match self {
            Self::Io(error) => bad(error),
            Self::TooLarge(bytes) => BuildError::TooLarge(bytes),
        }
    }
}

/// Owner, permissions and time of an entry; the time is not later than `latest`.
pub(crate) fn meta(header: &tar::Header, latest: Option<i64>) -> io::Result<Meta> {
    let mtime = i64::try_from(header.mtime()?).unwrap_or(i64::MAX);
    Ok(Meta {
        perm: header.mode()? & 0o7777,
        uid: u32::try_from(header.uid()?).unwrap_or(0),
        gid: u32::try_from(header.gid()?).unwrap_or(0),
        mtime: latest.map_or(mtime, |latest| mtime.min(latest)),
    })
}

/// The contents of a regular file, if the tree has room for them. Lengths that an entry claims are not believed.
pub(crate) fn content(
    tree: &Tree,
    entry: &mut tar::Entry<'_, impl Read>,
) -> Result<Vec<u8>, EntryError> {
    let total = tree.bytes().saturating_add(entry.size());
    if total > MAX_IMAGE_LEN {
        return Err(EntryError::TooLarge(total));
    }
    let room = MAX_IMAGE_LEN.saturating_sub(tree.bytes());
    let mut content = Vec::new();
    // A sparse file's holes are not in its size.
    entry.take(room + 1).read_to_end(&mut content)?;
    if content.len() as u64 > room {
        return Err(EntryError::TooLarge(MAX_IMAGE_LEN + 1));
    }
    Ok(content)
}

/// Whether the tree may get another file.
pub(crate) fn room_for_file(tree: &Tree) -> io::Result<()> {
    if tree.nodes() >= MAX_FILES {
        return Err(io::Error::other(format!(
            "more than {MAX_FILES} files of all sorts"
        )));
    }
    Ok(())
}

/// `st_rdev` of a device entry, 0 for other entries.
pub(crate) fn device_number(header: &tar::Header) -> io::Result<u64> {
    if !matches!(
        header.entry_type(),
        tar::EntryType::Char | tar::EntryType::Block
    ) {
        return Ok(0);
    }
    let major = u64::from(header.device_major()?.unwrap_or(0));
    let minor = u64::from(header.device_minor()?.unwrap_or(0));
    Ok((minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12))
}
