//! Where the parts of an OCI image lie: in a directory, or in a tar archive that may be compressed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::zstd::ZstdFrames;

/// Links followed from one member of an archive to another.
const MAX_LINKS: usize = 8;
/// Most members of an archive (R10).
const MAX_MEMBERS: usize = 1 << 16;
/// Most bytes that a compressed archive may unpack to (R10): layers are compressed themselves, so there is little to gain.
const MAX_UNPACKED: u64 = 16 << 30;

/// The parts by name.
pub(super) enum Store {
    Directory(PathBuf),
    Archive {
        file: File,
        members: BTreeMap<String, Member>,
    },
}

/// A member of an archive.
pub(super) enum Member {
    /// Where its contents lie.
    File { offset: u64, len: u64 },
    /// Another name of this member: `docker save` does not repeat a layer.
    Link(String),
}

impl Store {
    /// Opens the layout directory or archive at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if fs::metadata(path)?.is_dir() {
            return Ok(Self::Directory(fs::canonicalize(path)?));
        }
        let file = plain(File::open(path)?)?;
        let members = members(&file)?;
        Ok(Self::Archive { file, members })
    }

    /// Reads the part `name`; `None` if there is none.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<Part>> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(clean(name)?);
                let path = match fs::canonicalize(&path) {
                    Ok(path) => path,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error),
                };
                if !path.starts_with(directory) {
                    return Err(io::Error::other(format!(
                        "{name} leads out of the directory"
                    )));
                }
                let file = File::open(path)?;
                let len = file.metadata()?.len();
                Ok(Some(Part { file, at: 0, len }))
            }
            Self::Archive { file, members } => {
                let mut name = clean(name)?;
                for _ in 0..=MAX_LINKS {
                    match members.get(&name) {
                        None => return Ok(None),
                        Some(Member::Link(target)) => name.clone_from(target),
                        Some(Member::File { offset, len }) => {
                            let file = file.try_clone()?;
                            return Ok(Some(Part {
                                file,
                                at: *offset,
                                len: *len,
                            }));
                        }
                    }
                }
                Err(io::Error::other(format!("{name}: too many links")))
            }
        }
    }
}

/// A part; each reader starts at its beginning.
pub(super) struct Part {
    file: File,
    at: u64,
    pub(super) len: u64,
}

impl Part {
    /// Its bytes.
    pub(super) fn reader(&self) -> io::Result<impl Read + use<>> {
        let range = Range {
            file: self.file.try_clone()?,
            at: self.at,
            left: self.len,
        };
        Ok(BufReader::with_capacity(1 << 16, range))
    }
}

/// Bytes of a file by position: several readers of one file do not disturb each other.
struct Range {
    file: File,
    at: u64,
    left: u64,
}

impl Read for Range {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let n = self.file.read_at(&mut buffer[..len], self.at)?;
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

/// `name` without `.` and empty components; one that leads upwards is refused.
fn clean(name: &str) -> io::Result<String> {
    let parts: Vec<&str> = name
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if parts.contains(&"..") || name.starts_with('/') || name.contains('\0') {
        return Err(io::Error::other(format!("{name} leads out of the archive")));
    }
    Ok(parts.join("/"))
}

/// The archive itself, or an unnamed file with it unpacked.
fn plain(mut file: File) -> io::Result<File> {
    let mut start = [0; 4];
    let mut filled = 0;
    while filled < start.len() {
        match file.read(&mut start[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    file.rewind()?;
    let reader: Box<dyn Read> = if start.starts_with(&super::GZIP) {
        Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file)))
    } else if start.starts_with(&super::ZSTD) {
        Box::new(ZstdFrames::new(BufReader::new(file)))
    } else {
        return Ok(file);
    };
    let mut unpacked = tempfile::tempfile()?;
    let bytes = io::copy(&mut reader.take(MAX_UNPACKED + 1), &mut unpacked)?;
    if bytes > MAX_UNPACKED {
        return Err(io::Error::other("it unpacks to more than 16 GiB"));
    }
    unpacked.rewind()?;
    Ok(unpacked)
}

fn members(file: &File) -> io::Result<BTreeMap<String, Member>> {
    let mut members = BTreeMap::new();
    let mut archive = tar::Archive::new(BufReader::new(file.try_clone()?));
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        if members.len() >= MAX_MEMBERS {
            return Err(io::Error::other(format!("more than {MAX_MEMBERS} members")));
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let link = |target: &[u8], relative: bool| {
            let target = String::from_utf8_lossy(target);
            let base = if relative { name.as_str() } else { "" };
            resolve(base, &target)
        };
        let member = match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => Member::File {
                offset: entry.raw_file_position(),
                len: entry.size(),
            },
            tar::EntryType::Symlink => match entry.link_name_bytes() {
                Some(target) => Member::Link(link(&target, true)?),
                None => continue,
            },
            tar::EntryType::Link => match entry.link_name_bytes() {
                Some(target) => Member::Link(link(&target, false)?),
                None => continue,
            },
            _ => continue,
        };
        members.insert(clean(&name)?, member);
    }
    Ok(members)
}

/// The member that a link in `base` leads to.
fn resolve(base: &str, target: &str) -> io::Result<String> {
    let outside = || io::Error::other(format!("a link to {target} leads out of the archive"));
    if target.starts_with('/') {
        return Err(outside());
    }
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop().ok_or_else(outside)?;
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(clean("./blobs//sha256/a").unwrap(), "blobs/sha256/a");
        for bad in ["../a", "a/../../b", "/etc/passwd", "a\0b"] {
            assert!(clean(bad).is_err(), "{bad}");
        }
        assert_eq!(
            resolve("a/layer.tar", "../b/layer.tar").unwrap(),
            "b/layer.tar"
        );
        assert_eq!(resolve("", "b/layer.tar").unwrap(), "b/layer.tar");
        for bad in ["../../b", "/b"] {
            assert!(resolve("a/layer.tar", bad).is_err(), "{bad}");
        }
    }
}
