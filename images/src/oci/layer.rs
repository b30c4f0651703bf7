//! Puts a layer over those below it (image-spec 1.1, "Image Layer Filesystem Changeset").

use std::io::{self, Read};

use sha2::{Digest, Sha256};

use super::zstd::ZstdFrames;
use super::{GZIP, ZSTD};
use crate::error::BuildError;
use crate::tarball::{self, EntryError};
use crate::tree::{Special, Tree, TreeError};

/// Prefix of a name that takes away what a layer below has.
const WHITEOUT: &[u8] = b".wh.";
/// The name that takes away all that layers below have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of names that are a file system driver's own.
const DRIVER: &[u8] = b".wh..wh.";

/// Why a layer is refused.
pub(super) enum LayerError {
    /// It is malformed, or its digest is another.
    Bad(String),
    /// A path of it is.
    Tree(TreeError),
    /// The image would be over its bound.
    TooLarge(u64),
}

impl From<io::Error> for LayerError {
    fn from(error: io::Error) -> Self {
        Self::Bad(error.to_string())
    }
}

impl From<TreeError> for LayerError {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

impl From<EntryError> for LayerError {
    fn from(error: EntryError) -> Self {
        match error {
            EntryError::Io(error) => error.into(),
            EntryError::TooLarge(bytes) => Self::TooLarge(bytes),
        }
    }
}

impl LayerError {
    /// As an error of the whole build; `bad` says where the layer is.
    pub(super) fn into_build(
        self,
        origin: String,
        bad: impl FnOnce(String) -> BuildError,
    ) -> BuildError {
        match self {
            Self::Bad(reason) => bad(reason),
            Self::Tree(source) => BuildError::Tree { origin, source },
            Self::TooLarge(bytes) => BuildError::TooLarge(bytes),
        }
    }
}

/// The layer's tar archive, whatever it is compressed with.
fn plain<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = Vec::new();
    reader.by_ref().take(4).read_to_end(&mut start)?;
    let (gzip, zstd) = (start.starts_with(&GZIP), start.starts_with(&ZSTD));
    let whole = io::Cursor::new(start).chain(reader);
    Ok(if gzip {
        Box::new(flate2::bufread::MultiGzDecoder::new(io::BufReader::new(
            whole,
        )))
    } else if zstd {
        Box::new(ZstdFrames::new(whole))
    } else {
        Box::new(whole)
    })
}

/// Applies the first half of a layer: what it takes away. Whiteouts mean layers below only, so they come before the layer's own
/// files, wherever they are in the archive. Checks the digest of the unpacked layer too, before anything is done.
pub(super) fn take_away(
    reader: impl Read,
    diff_id: &str,
    tree: &mut Tree,
) -> Result<(), LayerError> {
    let mut hashing = Hashing {
        reader: plain(reader)?,
        hasher: Sha256::new(),
    };
    let mut gone = Vec::new();
    let mut archive = tar::Archive::new(&mut hashing);
    for entry in archive.entries()? {
        let name = entry?.path_bytes().into_owned();
        let at = name
            .iter()
            .rposition(|&byte| byte == b'/')
            .map_or(0, |i| i + 1);
        let (directory, last) = name.split_at(at);
        if last == OPAQUE {
            gone.push((directory.to_vec(), true));
        } else if let Some(hidden) = last.strip_prefix(WHITEOUT)
            && !last.starts_with(DRIVER)
        {
            if matches!(hidden, b"" | b"." | b"..") {
                let name = String::from_utf8_lossy(&name).into_owned();
                return Err(TreeError::BadPath(name).into());
            }
            gone.push(([directory, hidden].concat(), false));
        }
    }
    // What follows the archive's end mark counts too.
    io::copy(&mut hashing, &mut io::sink())?;
    let found = super::manifest::hex(&hashing.hasher.finalize());
    if found != diff_id {
        return Err(LayerError::Bad(format!(
            "unpacked its SHA-256 is {found}, the image's configuration says {diff_id}"
        )));
    }
    for (path, opaque) in gone {
        if opaque {
            tree.clear_dir(&path)?;
        } else {
            tree.remove(&path)?;
        }
    }
    Ok(())
}

/// Applies the second half: what the layer has itself.
pub(super) fn put(
    reader: impl Read,
    tree: &mut Tree,
    latest: Option<i64>,
) -> Result<(), LayerError> {
    let mut archive = tar::Archive::new(plain(reader)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path_bytes().into_owned();
        let last = name
            .rsplit(|&byte| byte == b'/')
            .find(|part| !part.is_empty());
        if last.is_some_and(|last| last.starts_with(WHITEOUT)) {
            continue;
        }
        tarball::room_for_file(tree)?;
        let meta = tarball::meta(entry.header(), latest)?;
        let rdev = tarball::device_number(entry.header())?;
        let link = entry.link_name_bytes().map(|link| link.into_owned());
        let target = || {
            let shown = String::from_utf8_lossy(&name).into_owned();
            link.ok_or(LayerError::Bad(format!("{shown}: a link without a target")))
        };
        let kind = entry.header().entry_type();
        if kind == tar::EntryType::Directory {
            tree.dir_over(&name, meta)?;
            continue;
        }
        match kind {
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                let content = tarball::content(tree, &mut entry)?;
                tree.remove(&name)?;
                tree.file(&name, meta, content)?;
            }
            tar::EntryType::Symlink => {
                let target = target()?;
                tree.remove(&name)?;
                tree.symlink(&name, meta, &target)?;
            }
            tar::EntryType::Link => {
                let target = target()?;
                // What the link names may be what stands in its way.
                if tree.get(&name).is_none() || tree.get(&name) != tree.get(&target) {
                    tree.remove(&name)?;
                    tree.hard_link(&name, &target)?;
                }
            }
            tar::EntryType::Char | tar::EntryType::Block | tar::EntryType::Fifo => {
                let special = match kind {
                    tar::EntryType::Char => Special::Char(rdev),
                    tar::EntryType::Block => Special::Block(rdev),
                    _ => Special::Fifo,
                };
                tree.remove(&name)?;
                tree.special(&name, meta, special)?;
            }
            // Comments for the whole archive.
            tar::EntryType::XGlobalHeader => {}
            other => return Err(LayerError::Bad(format!("an entry of type {other:?}"))),
        }
    }
    Ok(())
}

struct Hashing<R> {
    reader: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}
