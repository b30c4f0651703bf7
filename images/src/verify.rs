//! Checks an image file before it is used.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use quorate_abi::image::{DIGEST_OFFSET, Header, ImageError};

use crate::MAX_IMAGE_LEN;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// A checked image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The file.
    pub path: PathBuf,
    /// BLAKE3 of the image.
    pub digest: [u8; 32],
    /// Length of the image in bytes, a multiple of the page size.
    pub length: u64,
    /// Files of all sorts in it.
    pub inodes: u32,
}

/// Why an image file cannot be used. Each message names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ImageFileError {
    /// There is none.
    #[error("{}: no such image; run `quorate build APPLIANCE.toml` or `make images`", .0.display())]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("{}: cannot read the image: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ends early.
    #[error("{}: the image is truncated ({have} of {want} bytes); build it again with `quorate build APPLIANCE.toml` or `make images`", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length.
        have: u64,
        /// The length that its header gives (0 when even the header is not whole).
        want: u64,
    },
    /// It is something else.
    #[error("{}: not a Quorate image; `file` in [image] must name one made by `quorate build`", .0.display())]
    NotAnImage(PathBuf),
    /// It has the format of another version.
    #[error("{}: image format {found}, this program reads {expected}; build it again with `quorate build APPLIANCE.toml` or `make images`", path.display(), expected = quorate_abi::image::IMAGE_VERSION)]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Its bytes are not those that were built.
    #[error("{}: the image is damaged ({what}); build it again with `quorate build APPLIANCE.toml` or `make images`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

/// Checks the header, length and digest of the image at `path`.
///
/// # Errors
/// [`ImageFileError`].
pub fn verify(path: &Path) -> Result<Info, ImageFileError> {
    let io_error = |source| ImageFileError::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(ImageFileError::Missing(path.to_owned()));
        }
        Err(e) => return Err(io_error(e)),
    };
    let have = file.metadata().map_err(io_error)?.len();
    let mut buffer = vec![0; CHUNK];
    let mut filled = read_full(&mut file, &mut buffer).map_err(io_error)?;
    let header = Header::decode(buffer.get(..filled).unwrap_or_default())
        .and_then(|header| header.check(have).map(|()| header));
    let header = match header {
        Ok(header) => header,
        Err(e) => {
            return Err(explain(
                path,
                have,
                buffer.get(..filled).unwrap_or_default(),
                e,
            ));
        }
    };
    if header.total_len > MAX_IMAGE_LEN || header.total_len != have {
        return Err(ImageFileError::Damaged {
            path: path.to_owned(),
            what: "length",
        });
    }
    if let Some(stored) = buffer.get_mut(DIGEST_OFFSET..DIGEST_OFFSET + 32) {
        stored.fill(0);
    }
    let mut hasher = blake3::Hasher::new();
    while filled > 0 {
        hasher.update(buffer.get(..filled).unwrap_or_default());
        filled = read_full(&mut file, &mut buffer).map_err(io_error)?;
    }
    if *hasher.finalize().as_bytes() != header.digest {
        return Err(ImageFileError::Damaged {
            path: path.to_owned(),
            what: "digest",
        });
    }
    Ok(Info {
        path: path.to_owned(),
        digest: header.digest,
        length: header.total_len,
        inodes: header.inode_count,
    })
}

fn explain(path: &Path, have: u64, start: &[u8], error: ImageError) -> ImageFileError {
    let path = path.to_owned();
    let magic = quorate_abi::image::IMAGE_MAGIC.to_le_bytes();
    match error {
        // A short file is truncated if it begins as an image does, an empty one included.
        ImageError::Truncated if start.starts_with(&magic) || magic.starts_with(start) => {
            let want = Header::decode(start).map_or(0, |header| header.total_len);
            ImageFileError::Truncated { path, have, want }
        }
        ImageError::Truncated | ImageError::Magic => ImageFileError::NotAnImage(path),
        ImageError::Version(found) => ImageFileError::Version { path, found },
        _ => ImageFileError::Damaged {
            path,
            what: "header",
        },
    }
}

/// Reads until `buffer` is full or the file ends.
fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..)
        && !rest.is_empty()
    {
        match file.read(rest) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
