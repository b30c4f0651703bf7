//! The lock file: which packages a set of names came to. It lies in the cache; while it is there the same packages are used.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Package;
use crate::error::BuildError;

/// Version of the lock file and of the way it is arrived at (stub list, apt options).
const LOCK_VERSION: u32 = 2;
/// Upper bound of a lock file in bytes; a larger one is taken as none.
const MAX_LOCK: u64 = 4 << 20;

/// Contents of a lock file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lock {
    version: u32,
    /// Names that were asked for.
    names: Vec<String>,
    /// Names that were taken as installed.
    without: Vec<String>,
    /// What they came to.
    pub(crate) packages: Vec<Package>,
}

impl Lock {
    pub(crate) fn new(names: &[String], without: &[String], packages: Vec<Package>) -> Self {
        Self {
            version: LOCK_VERSION,
            names: names.to_vec(),
            without: without.to_vec(),
            packages,
        }
    }

    /// Where the lock for these names lies: `locks/FIRST-KEY.toml` in the cache.
    pub(crate) fn path(cache: &Path, names: &[String], without: &[String]) -> PathBuf {
        let mut hasher = blake3::Hasher::new();
        for list in [names, without] {
            for name in list {
                hasher.update(name.as_bytes());
                hasher.update(b"\n");
            }
            hasher.update(b"\0");
        }
        let key = hasher.finalize().to_hex();
        let first = names.first().map_or("none", String::as_str);
        let key = key.get(..16).unwrap_or_default();
        cache.join("locks").join(format!("{first}-{key}.toml"))
    }

    /// The lock at `path`; `None` if there is none or it is not one of this version: then it is made anew.
    pub(crate) fn read(path: &Path, names: &[String], without: &[String]) -> Option<Self> {
        if fs::metadata(path).ok()?.len() > MAX_LOCK {
            return None;
        }
        let lock: Self = toml::from_str(&fs::read_to_string(path).ok()?).ok()?;
        let same = lock.version == LOCK_VERSION && lock.names == names && lock.without == without;
        let safe = lock
            .packages
            .iter()
            .all(|package| !package.file.contains('/'));
        (same && safe).then_some(lock)
    }

    /// Writes the lock.
    pub(crate) fn write(&self, path: &Path) -> Result<(), BuildError> {
        let text = toml::to_string(self).map_err(|e| BuildError::Io {
            action: "write the lock file",
            path: path.to_owned(),
            source: std::io::Error::other(e),
        })?;
        crate::build::replace_file(path, text.as_bytes())
    }
}
