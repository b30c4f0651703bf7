//! A directory of the host as a tree.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::MAX_IMAGE_LEN;
use crate::error::BuildError;
use crate::tree::{Meta, Tree};

/// Copies the directory `from` into a tree. Owners become root and times `time`, since both differ between checkouts of the
/// same files; permissions are kept.
pub(crate) fn read(from: &Path, time: i64) -> Result<Tree, BuildError> {
    let top = fs::metadata(from).map_err(BuildError::io("read the image's directory", from))?;
    let mut tree = Tree::new(Meta::root(top.mode() & 0o7777, time));
    let mut known: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut todo = vec![(from.to_owned(), Vec::new())];
    while let Some((directory, prefix)) = todo.pop() {
        let read_error = || BuildError::io("read the directory", &directory);
        let mut entries = fs::read_dir(&directory)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(read_error())?;
        // Which of several hard links comes first must not depend on the host's file system.
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let host = entry.path();
            let mut path: Vec<u8> = prefix.clone();
            path.push(b'/');
            path.extend_from_slice(entry.file_name().as_bytes());
            let info = fs::symlink_metadata(&host).map_err(BuildError::io("read", &host))?;
            let meta = Meta::root(info.mode() & 0o7777, time);
            let put = if info.is_dir() {
                todo.push((host, path.clone()));
                tree.dir(&path, meta)
            } else if info.is_symlink() {
                let target =
                    fs::read_link(&host).map_err(BuildError::io("read the link", &host))?;
                tree.symlink(&path, meta, target.as_os_str().as_bytes())
            } else if info.is_file() {
                let id = (info.dev(), info.ino());
                if let Some(first) = known.get(&id) {
                    tree.hard_link(&path, first)
                } else {
                    let total = tree.bytes().saturating_add(info.len());
                    if total > MAX_IMAGE_LEN {
                        return Err(BuildError::TooLarge(total));
                    }
                    let content = fs::read(&host).map_err(BuildError::io("read", &host))?;
                    if info.nlink() > 1 {
                        known.insert(id, path.clone());
                    }
                    tree.file(&path, meta, content)
                }
            } else {
                return Err(BuildError::SpecialFile(host));
            };
            put.map_err(|source| BuildError::Tree {
                origin: from.display().to_string(),
                source,
            })?;
        }
    }
    Ok(tree)
}
