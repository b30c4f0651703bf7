//! The cache directory: packages, lock files and images, each with a bound.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::appliance::Appliance;
use crate::error::BuildError;

/// Images of one appliance that the cache keeps (R10); the oldest ones go when another is built. So many that each replica can have
/// one of its own.
pub const KEPT_IMAGES: usize = 12;
/// Lock files that the cache keeps (R10); package files that no lock names go with them.
pub const KEPT_LOCKS: usize = 64;
/// Hexadecimal digits of the key in an image's file name.
const KEY_DIGITS: usize = 16;

/// The cache directory when none is given: `$QUORATE_CACHE`, else `$XDG_CACHE_HOME/quorate`, else `$HOME/.cache/quorate`, else
/// `quorate` in the directory for temporary files.
#[must_use]
pub fn default_cache_dir() -> PathBuf {
    let from = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    from("QUORATE_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|p| p.join("quorate")))
        .or_else(|| from("HOME").map(|p| p.join(".cache/quorate")))
        .unwrap_or_else(|| std::env::temp_dir().join("quorate"))
}

/// The file of the image with this key.
pub(crate) fn image_path(cache: &Path, appliance: &Appliance, key: &str) -> PathBuf {
    let key = key.get(..KEY_DIGITS).unwrap_or(key);
    cache
        .join("images")
        .join(format!("{}-{key}.qimg", appliance.name))
}

/// Keeps other builds out of the cache until the result is dropped.
pub(crate) fn lock_cache(cache: &Path) -> Result<File, BuildError> {
    fs::create_dir_all(cache).map_err(BuildError::io("make the cache directory", cache))?;
    let path = cache.join(".lock");
    let lock_error = || BuildError::io("lock the cache", &path);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(lock_error())?;
    file.lock().map_err(lock_error())?;
    Ok(file)
}

/// Gives `path` these contents in one step.
pub(crate) fn replace_file(path: &Path, contents: &[u8]) -> Result<(), BuildError> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    let write_error = || BuildError::io("write", path);
    fs::create_dir_all(directory).map_err(write_error())?;
    let mut file = tempfile::Builder::new()
        .tempfile_in(directory)
        .map_err(write_error())?;
    file.write_all(contents).map_err(write_error())?;
    persist(file, path)
}

/// Gives a temporary file its name.
pub(crate) fn persist(file: tempfile::NamedTempFile, path: &Path) -> Result<(), BuildError> {
    // Temporary files are private; what is in the cache may be read by all, as other build results.
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(0o644))
        .map_err(BuildError::io("write", path))?;
    file.persist(path)
        .map_err(|e| BuildError::io("write", path)(e.error))?;
    Ok(())
}

/// Removes all but the newest [`KEPT_IMAGES`] images of the appliance `name`. One that a running set has mapped lives on until
/// it is unmapped.
pub(crate) fn prune_images(directory: &Path, name: &str, newest: &Path) {
    prune(directory, name, ".qimg", newest, KEPT_IMAGES);
}

/// Removes all but the newest `keep` files or directories `NAME-KEY` with this suffix, and not `newest`.
pub(crate) fn prune(directory: &Path, name: &str, suffix: &str, newest: &Path, keep: usize) {
    let is_ours = |path: &Path| {
        let key = path
            .file_name()
            .and_then(|file| file.to_str())
            .and_then(|file| file.strip_prefix(name))
            .and_then(|rest| rest.strip_prefix('-'))
            .and_then(|rest| rest.strip_suffix(suffix));
        path != newest
            && key.is_some_and(|key| {
                key.len() == KEY_DIGITS && key.bytes().all(|b| b.is_ascii_hexdigit())
            })
    };
    for path in oldest(directory, is_ours, keep - 1) {
        remove(&path);
    }
}

/// Removes all but the newest [`KEPT_LOCKS`] lock files, and package files that none of them names.
pub(crate) fn prune_packages(cache: &Path) -> Result<(), BuildError> {
    let locks = cache.join("locks");
    for path in oldest(&locks, |_| true, KEPT_LOCKS) {
        remove(&path);
    }
    let mut named = String::new();
    for path in oldest(&locks, |_| true, 0) {
        named.push_str(&fs::read_to_string(&path).map_err(BuildError::io("read", &path))?);
    }
    for path in oldest(&cache.join("debs"), Path::is_file, 0) {
        let file = path.file_name().and_then(|f| f.to_str()).unwrap_or("");
        if file.ends_with(".deb") && !named.contains(file) {
            remove(&path);
        }
    }
    for path in oldest(&cache.join("sources"), Path::is_file, 0) {
        let file = path.file_name().and_then(|f| f.to_str()).unwrap_or("");
        if !named.contains(file) {
            remove(&path);
        }
    }
    Ok(())
}

/// Files of `directory` that `take` accepts, without the newest `keep`.
fn oldest(directory: &Path, take: impl Fn(&Path) -> bool, keep: usize) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut files: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter(|entry| take(&entry.path()))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    files.sort();
    files.truncate(files.len().saturating_sub(keep));
    files.into_iter().map(|(_, path)| path).collect()
}

/// Tidying up that fails is no reason to fail the build.
pub(crate) fn remove(path: &Path) {
    let removed = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), %error, "cannot remove an old file of the cache");
    }
}
