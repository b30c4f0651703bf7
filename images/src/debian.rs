//! Root file systems from Debian packages, without installing them and without root: `apt-get` resolves and downloads with a
//! state directory of its own, the packages are unpacked here, and their scripts are never run.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::appliance::SourceSpec;
use crate::build::Progress;
use crate::error::BuildError;
use crate::skeleton;
use crate::tree::{Meta, Tree};

mod apt;
mod deb;
mod lock;
mod source;
mod stubs;
mod suite;

pub(crate) use apt::{deb_path, tail};
pub(crate) use deb::Part;
pub use source::Source;
pub(crate) use source::path as source_path;

pub(crate) use lock::{Lock, Wanted, snapshot_day};

/// What the host's compiler brings along itself: among what a source needs, these are left out.
const HOSTS: &[&str] = &[
    "libc6",
    "libc6-dev",
    "libc-dev-bin",
    "linux-libc-dev",
    "libgcc-s1",
    "libstdc++6",
];

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
    /// Where it was downloaded from.
    pub uri: String,
}

impl Package {
    /// Whether its texts are what they should be, and no option or path of somebody else's making.
    pub(crate) fn is_safe(&self) -> bool {
        let hex = self.sha256.len() == 64 && self.sha256.bytes().all(|b| b.is_ascii_hexdigit());
        let file = self.file.ends_with(".deb") && !self.file.contains('/');
        let uri = ["http://", "https://", "file:", "copy:", "ftp://"];
        let plain = |c: char| c.is_ascii_graphic();
        hex && file
            && uri.iter().any(|scheme| self.uri.starts_with(scheme))
            && self.uri.chars().all(plain)
    }
}

/// Asks apt-get for the packages and downloads them; the result says which they are. `refresh` fetches new package lists first.
pub(crate) fn fetch(
    wanted: Wanted<'_>,
    cache: &Path,
    refresh: bool,
    progress: &dyn Fn(Progress<'_>),
) -> Result<Vec<Package>, BuildError> {
    let status = stubs::status_file(wanted.names, wanted.without, wanted.boots);
    let apt = apt::Apt::new(cache, &status, wanted.suite)?;
    let packages = apt.fetch(wanted.names, refresh, progress)?;
    // apt-get has checked what it downloaded, but not what was there before.
    for package in &packages {
        deb::check(&apt::deb_path(cache, package), package)?;
    }
    Ok(packages)
}

/// Finds and downloads the source packages that `specs` name, and what they need. The suite is the machine's if none is given.
pub(crate) fn fetch_sources(
    specs: &[SourceSpec],
    suite: Option<&str>,
    cache: &Path,
    refresh: bool,
    progress: &dyn Fn(Progress<'_>),
) -> Result<Vec<Source>, BuildError> {
    if specs.is_empty() {
        return Ok(Vec::new());
    }
    let own;
    let from = match suite {
        Some(suite) => suite,
        None => {
            own = suite::machines()?;
            &own
        }
    };
    let mut sources = Vec::new();
    for spec in specs {
        let apt = apt::Apt::new(cache, "", Some(from))?;
        let wanted = spec.version.clone().unwrap_or_default();
        let files = source::fetch(&apt, &spec.package, &wanted, cache, refresh, progress)?;
        let needs = if spec.needs.is_empty() {
            Vec::new()
        } else {
            let wanted = Wanted {
                names: &spec.needs,
                without: &[],
                suite,
                boots: false,
                sources: &[],
            };
            let mut needs = fetch(wanted, cache, refresh, progress)?;
            needs.retain(|package| !HOSTS.contains(&package.name.as_str()));
            needs
        };
        sources.push(Source {
            name: spec.package.clone(),
            wanted,
            files,
            needs,
        });
    }
    Ok(sources)
}

/// Downloads those of `packages`, by the lock file, that are not in the cache.
pub(crate) fn obtain(
    lock: &Lock,
    cache: &Path,
    progress: &dyn Fn(Progress<'_>),
) -> Result<(), BuildError> {
    let packages: Vec<&Package> = lock.all_packages().collect();
    let apt = apt::Apt::new(cache, "", None)?;
    for source in &lock.sources {
        source::obtain(&apt, &source.files, cache, &lock.resolved, progress)?;
    }
    if all_there(packages.iter().copied(), cache) {
        return Ok(());
    }
    for (index, package) in packages.iter().copied().enumerate() {
        let path = apt::deb_path(cache, package);
        if !path.exists() {
            let percent = (index * 100 / packages.len().max(1)) as u8;
            progress(Progress::Downloading {
                percent,
                what: &package.file,
            });
            apt.download(package, &lock.resolved)?;
        }
        deb::check(&path, package)?;
    }
    Ok(())
}

/// Unpacks that `part` of `packages` from the cache. Files are not later than `latest`; directories that no package describes have the time
/// `time`.
pub(crate) fn unpack(
    packages: &[Package],
    cache: &Path,
    time: i64,
    latest: Option<i64>,
    part: Part,
    progress: &dyn Fn(Progress<'_>),
) -> Result<Tree, BuildError> {
    let mut tree = skeleton::debian_root(time).map_err(|source| BuildError::Tree {
        origin: "skeleton".to_owned(),
        source,
    })?;
    if part == Part::Machine {
        // /var/lock is a link to it, which base-files takes for a directory.
        let made = tree.dir(b"/run/lock", Meta::root(0o1777, time));
        made.map_err(|source| BuildError::Tree {
            origin: "skeleton".to_owned(),
            source,
        })?;
    }
    for (index, package) in packages.iter().enumerate() {
        progress(Progress::Unpacking {
            package: &package.name,
            index: index + 1,
            total: packages.len(),
        });
        let path = apt::deb_path(cache, package);
        deb::check(&path, package)?;
        deb::unpack(&path, &mut tree, latest, part)?;
    }
    Ok(tree)
}

/// Whether all the files that `lock` names are in the cache and whole.
pub(crate) fn has_all(lock: &Lock, cache: &Path) -> bool {
    let whole = |file: &Package| deb::check(&source::path(cache, file), file).is_ok();
    all_there(lock.all_packages(), cache)
        && lock
            .sources
            .iter()
            .flat_map(|source| &source.files)
            .all(whole)
}

/// Whether all the packages' files are in the cache and whole. Damaged ones are removed: apt-get itself looks at the size only,
/// and would take them for downloaded.
pub(crate) fn all_there<'a>(packages: impl IntoIterator<Item = &'a Package>, cache: &Path) -> bool {
    let mut all = true;
    for package in packages {
        let path = apt::deb_path(cache, package);
        if let Err(error) = deb::check(&path, package) {
            all = false;
            if path.exists() {
                tracing::warn!(%error, "a package in the cache is damaged and will be downloaded again");
                crate::cache::remove(&path);
            }
        }
    }
    all
}
