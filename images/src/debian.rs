//! Root file systems from Debian packages, without installing them and without root: `apt-get` resolves and downloads with a
//! state directory of its own, the packages are unpacked here, and their scripts are never run.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::build::Progress;
use crate::error::BuildError;
use crate::skeleton;
use crate::tree::Tree;

mod apt;
mod deb;
mod lock;
mod stubs;

pub(crate) use apt::tail;

pub(crate) use lock::Lock;

/// A package in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version, as in the package list.
    pub version: String,
    /// Architecture: `amd64` or `all`.
    pub architecture: String,
    /// File name in the cache.
    pub file: String,
    /// Bytes of the file.
    pub size: u64,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: String,
}

/// Asks apt-get for the packages and downloads them; the result says which they are. `refresh` fetches new package lists first.
pub(crate) fn fetch(
    names: &[String],
    without: &[String],
    cache: &Path,
    refresh: bool,
    progress: &dyn Fn(Progress<'_>),
) -> Result<Vec<Package>, BuildError> {
    let status = stubs::status_file(names, without);
    let packages = apt::Apt::new(cache, &status)?.fetch(names, refresh, progress)?;
    // apt-get has checked what it downloaded, but not what was there before.
    for package in &packages {
        deb::check(&apt::deb_path(cache, package), package)?;
    }
    Ok(packages)
}

/// Unpacks `packages` from the cache. Files are not later than `latest`; directories that no package describes have the time
/// `time`.
pub(crate) fn unpack(
    packages: &[Package],
    cache: &Path,
    time: i64,
    latest: Option<i64>,
    progress: &dyn Fn(Progress<'_>),
) -> Result<Tree, BuildError> {
    let mut tree = skeleton::debian_root(time).map_err(|source| BuildError::Tree {
        origin: "skeleton".to_owned(),
        source,
    })?;
    for (index, package) in packages.iter().enumerate() {
        progress(Progress::Unpacking {
            package: &package.name,
            index: index + 1,
            total: packages.len(),
        });
        let path = apt::deb_path(cache, package);
        deb::check(&path, package)?;
        deb::unpack(&path, &mut tree, latest)?;
    }
    Ok(tree)
}

/// Whether all the packages' files are in the cache and whole. Damaged ones are removed: apt-get itself looks at the size only,
/// and would take them for downloaded.
pub(crate) fn all_there(packages: &[Package], cache: &Path) -> bool {
    let mut all = true;
    for package in packages {
        let path = apt::deb_path(cache, package);
        if let Err(error) = deb::check(&path, package) {
            all = false;
            if path.exists() {
                tracing::warn!(%error, "a package in the cache is damaged and will be downloaded again");
                crate::build::remove(&path);
            }
        }
    }
    all
}
