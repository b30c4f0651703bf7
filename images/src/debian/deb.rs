//! Package files: check and unpack.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::Package;
use crate::error::BuildError;
use crate::tarball;
use crate::tree::{Special, Tree};

/// Which files of packages go into a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Those of an image in which one program runs.
    Program,
    /// Those of a Linux machine: also what its init reads.
    Machine,
    /// Kernel, modules and busybox.
    Kernel,
}

/// Directories that only an init or a daemon beside the program reads.
const FOR_MACHINES: &[&str] = &[
    "etc/cron.d",
    "etc/cron.daily",
    "etc/init.d",
    "etc/logrotate.d",
    "lib/systemd/system",
    "usr/lib/systemd/system",
];

/// All that is wanted of a kernel's packages.
const OF_KERNELS: &[&str] = &["boot", "lib/modules", "usr/lib/modules", "bin", "usr/bin"];

/// Directories whose contents no server reads: documentation, translations, what helps at a shell prompt.
const LEFT_OUT: &[&str] = &[
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/fish",
    "usr/share/gcc",
    "usr/share/gdb",
    "usr/share/info",
    "usr/share/initramfs-tools",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/menu",
    "usr/share/zsh",
];

/// Compares the file's SHA-256 with the one in the package list.
pub(super) fn check(path: &Path, package: &Package) -> Result<(), BuildError> {
    let read_error = || BuildError::io("read the package", path);
    let mut file = File::open(path).map_err(read_error())?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer).map_err(read_error())?;
        if n == 0 {
            break;
        }
        hasher.update(buffer.get(..n).unwrap_or_default());
    }
    let digest = hasher.finalize();
    let found: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    if found != package.sha256 {
        return Err(BuildError::Hash {
            path: path.to_owned(),
            expected: package.sha256.clone(),
            found,
        });
    }
    Ok(())
}

/// Puts the files of the package at `path` (deb(5)) into `tree`.
pub(super) fn unpack(
    path: &Path,
    tree: &mut Tree,
    latest: Option<i64>,
    part: Part,
) -> Result<(), BuildError> {
    let file = File::open(path).map_err(BuildError::io("read the package", path))?;
    unpack_from(BufReader::new(file), path, tree, latest, part)
}

fn unpack_from(
    reader: impl Read,
    path: &Path,
    tree: &mut Tree,
    latest: Option<i64>,
    part: Part,
) -> Result<(), BuildError> {
    let bad = |reason: String| BuildError::Package {
        path: path.to_owned(),
        reason,
    };
    let mut archive = ar::Archive::new(reader);
    while let Some(member) = archive.next_entry() {
        let member = member.map_err(|e| bad(e.to_string()))?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        let name = name.trim_end_matches('/');
        let Some(suffix) = name.strip_prefix("data.tar") else {
            continue;
        };
        let plain: Box<dyn Read + '_> = match suffix {
            "" => Box::new(member),
            ".gz" => Box::new(flate2::read::GzDecoder::new(member)),
            ".xz" => Box::new(lzma_rust2::XzReader::new(member, true)),
            ".zst" => Box::new(
                ruzstd::decoding::StreamingDecoder::new(member)
                    .map_err(|e| bad(format!("{name}: {e}")))?,
            ),
            _ => return Err(bad(format!("{name}: compression is not known"))),
        };
        return unpack_tar(plain, path, tree, latest, part);
    }
    Err(bad("it has no data.tar".to_owned()))
}

fn unpack_tar(
    plain: impl Read,
    path: &Path,
    tree: &mut Tree,
    latest: Option<i64>,
    part: Part,
) -> Result<(), BuildError> {
    let bad = |e: io::Error| BuildError::Package {
        path: path.to_owned(),
        reason: e.to_string(),
    };
    let mut archive = tar::Archive::new(plain);
    for entry in archive.entries().map_err(bad)? {
        let mut entry = entry.map_err(bad)?;
        let name = entry.path_bytes().into_owned();
        if !part.has(&name) {
            continue;
        }
        tarball::room_for_file(tree).map_err(bad)?;
        let meta = tarball::meta(entry.header(), latest).map_err(bad)?;
        let rdev = tarball::device_number(entry.header()).map_err(bad)?;
        let link = entry.link_name_bytes().map(|link| link.into_owned());
        let missing = || BuildError::Package {
            path: path.to_owned(),
            reason: "a link without a target".to_owned(),
        };
        let put = match entry.header().entry_type() {
            tar::EntryType::Directory => tree.dir(&name, meta),
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                let content =
                    tarball::content(tree, &mut entry).map_err(|error| error.into_build(bad))?;
                tree.file(&name, meta, content)
            }
            tar::EntryType::Symlink => tree.symlink(&name, meta, &link.ok_or_else(missing)?),
            tar::EntryType::Link => tree.hard_link(&name, &link.ok_or_else(missing)?),
            tar::EntryType::Char => tree.special(&name, meta, Special::Char(rdev)),
            tar::EntryType::Block => tree.special(&name, meta, Special::Block(rdev)),
            tar::EntryType::Fifo => tree.special(&name, meta, Special::Fifo),
            other => {
                return Err(BuildError::Package {
                    path: path.to_owned(),
                    reason: format!("an entry of type {other:?}"),
                });
            }
        };
        put.map_err(|source| BuildError::Tree {
            origin: path.display().to_string(),
            source,
        })?;
    }
    Ok(())
}

impl Part {
    fn has(self, name: &[u8]) -> bool {
        let name = name.strip_prefix(b"./").unwrap_or(name);
        let below = |list: &[&str]| {
            list.iter().any(|prefix| {
                name.strip_prefix(prefix.as_bytes())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
            })
        };
        match self {
            Self::Program => !below(LEFT_OUT) && !below(FOR_MACHINES),
            Self::Machine => !below(LEFT_OUT),
            Self::Kernel => below(OF_KERNELS),
        }
    }
}

#[cfg(test)]
mod tests;
