//! Debian's source packages: which files one has, and downloading them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::apt::Apt;
use super::{Package, deb};
use crate::build::Progress;
use crate::error::BuildError;

/// A source package that something in an image was compiled from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// The version that was asked for; empty: the newest of the suite.
    pub wanted: String,
    /// Its files: the description (`.dsc`) and what it names.
    pub files: Vec<Package>,
    /// Packages that were there while it was compiled.
    pub needs: Vec<Package>,
}

/// Where a file of a source package lies in the cache.
pub(crate) fn path(cache: &Path, file: &Package) -> PathBuf {
    cache.join("sources").join(&file.file)
}

impl Source {
    /// Its description.
    pub(crate) fn description(&self) -> Option<&Package> {
        self.files.iter().find(|file| file.file.ends_with(".dsc"))
    }

    /// Whether its texts are what they should be, and no option or path of somebody else's making.
    pub(crate) fn is_safe(&self) -> bool {
        self.files.iter().all(is_safe) && self.needs.iter().all(Package::is_safe)
    }
}

/// As [`Package::is_safe`]: files of source packages have other names.
fn is_safe(file: &Package) -> bool {
    let name = &file.file;
    let good = |c: char| c.is_ascii_alphanumeric() || "+-._~:%".contains(c);
    let plain = !name.is_empty() && !name.starts_with(['.', '-']) && name.chars().all(good);
    let package = Package {
        file: "a.deb".to_owned(),
        ..file.clone()
    };
    plain && package.is_safe()
}

/// Which files source package `name` has, and downloads them. `version` may be empty.
pub(super) fn fetch(
    apt: &Apt,
    name: &str,
    version: &str,
    cache: &Path,
    refresh: bool,
    progress: &dyn Fn(Progress<'_>),
) -> Result<Vec<Package>, BuildError> {
    let wanted = match version {
        "" => name.to_owned(),
        version => format!("{name}={version}"),
    };
    let files = apt.source_files(&wanted, refresh, progress)?;
    let files = files
        .lines()
        .filter(|line| line.starts_with('\''))
        .map(|line| parse_line(name, line))
        .collect::<Result<Vec<_>, _>>()?;
    if !files.iter().any(|file| file.file.ends_with(".dsc")) {
        return Err(BuildError::AptOutput(format!(
            "no description of source package {name}"
        )));
    }
    obtain(apt, &files, cache, "", progress)?;
    Ok(files)
}

/// Downloads those of `files` that are not in the cache.
pub(super) fn obtain(
    apt: &Apt,
    files: &[Package],
    cache: &Path,
    day: &str,
    progress: &dyn Fn(Progress<'_>),
) -> Result<(), BuildError> {
    for (index, file) in files.iter().enumerate() {
        let to = path(cache, file);
        if to.exists() && deb::check(&to, file).is_ok() {
            continue;
        }
        let percent = (index * 100 / files.len().max(1)) as u8;
        let what = &file.file;
        progress(Progress::Downloading { percent, what });
        apt.download_to(file, &to, day)?;
        deb::check(&to, file)?;
    }
    Ok(())
}

/// Reads `'URI' FILE SIZE SHA256:HEX`.
fn parse_line(name: &str, line: &str) -> Result<Package, BuildError> {
    let parse = || {
        let (uri, rest) = line.strip_prefix('\'')?.split_once("' ")?;
        let mut words = rest.split(' ');
        let file = words.next()?;
        let size = words.next()?.parse().ok()?;
        let sha256 = words.next()?.strip_prefix("SHA256:")?;
        let version = file.strip_prefix(name)?.strip_prefix('_')?;
        let file = Package {
            name: name.to_owned(),
            version: version.trim_end_matches(".dsc").to_owned(),
            architecture: "source".to_owned(),
            file: file.to_owned(),
            size,
            sha256: sha256.to_owned(),
            uri: uri.to_owned(),
        };
        is_safe(&file).then_some(file)
    };
    parse().ok_or_else(|| BuildError::AptOutput(line.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_of_a_source_package() {
        let sha = "700c69619407c47eb51f015752bd3214256932f5e04a7f064a1fdef24c011319";
        let line =
            |file: &str| format!("'http://m/debian/pool/main/r/redis/x' {file} 1960 SHA256:{sha}");
        let file = parse_line("redis", &line("redis_7.0.15-1~deb12u7.dsc")).unwrap();
        assert_eq!(file.version, "7.0.15-1~deb12u7");
        assert_eq!((file.size, file.sha256.as_str()), (1960, sha));
        for bad in ["lua_5.dsc", "redis_../../a", "redis", "redis_a b"] {
            let parsed = parse_line("redis", &line(bad));
            assert!(matches!(parsed, Err(BuildError::AptOutput(_))), "{bad}");
        }
    }
}
