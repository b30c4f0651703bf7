//! Looks into a finished image: what its `/etc/passwd` says, whether a program is there.

use std::path::Path;

use quorate_abi::image::ImageView;

use crate::error::BuildError;
use crate::verify::ImageFileError;

/// Symbolic links followed while a path is resolved (Linux's limit).
const MAX_LINKS: usize = 40;

/// A finished image, read.
pub(crate) struct Files {
    bytes: Vec<u8>,
}

impl Files {
    /// Reads the image at `path`, which was verified.
    pub(crate) fn read(path: &Path) -> Result<Self, BuildError> {
        let bytes = std::fs::read(path).map_err(BuildError::io("read the image", path))?;
        if ImageView::parse(&bytes).is_err() {
            return Err(ImageFileError::NotAnImage(path.to_owned()).into());
        }
        Ok(Self { bytes })
    }

    /// Contents of the file at `path`, as far as they are text; empty if there is none.
    pub(crate) fn text(&self, path: &str) -> String {
        let data = ImageView::parse(&self.bytes).ok().and_then(|view| {
            let ino = follow(&view, path)?;
            view.data(ino).ok()
        });
        String::from_utf8_lossy(data.unwrap_or_default()).into_owned()
    }

    /// Whether there is a file that somebody may execute.
    pub(crate) fn is_program(&self, path: &str) -> bool {
        let Ok(view) = ImageView::parse(&self.bytes) else {
            return false;
        };
        let inode = follow(&view, path).and_then(|ino| view.inode(ino).ok());
        inode.is_some_and(|inode| inode.is_regular() && inode.mode & 0o111 != 0)
    }
}

/// The inode that `path` leads to, all symbolic links followed; none leads out of the image.
fn follow(view: &ImageView<'_>, path: &str) -> Option<u32> {
    let parts = |path: &[u8]| -> Vec<Vec<u8>> {
        let parts = path.split(|&byte| byte == b'/');
        parts.rev().map(<[u8]>::to_vec).collect()
    };
    let mut at = vec![view.root()];
    let mut todo = parts(path.as_bytes());
    let mut links = 0;
    while let Some(part) = todo.pop() {
        match &part[..] {
            b"" | b"." => continue,
            b".." => {
                if at.len() > 1 {
                    at.pop();
                }
                continue;
            }
            _ => {}
        }
        let next = view.lookup(*at.last()?, &part).ok()??;
        if view.inode(next).ok()?.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return None;
            }
            let target = view.readlink(next).ok()?;
            if target.starts_with(b"/") {
                at.truncate(1);
            }
            todo.extend(parts(target));
        } else {
            at.push(next);
        }
    }
    at.last().copied()
}
