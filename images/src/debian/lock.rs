//! The lock file: which packages a set of names came to. While it is there the same packages are used. One lies in the cache;
//! one that `quorate build` writes lies beside the appliance, and goes before it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Package, Source};
use crate::appliance::SourceSpec;
use crate::error::BuildError;

/// Version of the lock file and of the way it is arrived at (stub list, apt options).
const LOCK_VERSION: u32 = 3;
/// Upper bound of a lock file in bytes; a larger one is taken as none.
const MAX_LOCK: u64 = 4 << 20;

/// What a lock file begins with.
const COMMENT: &str = "# The packages that this appliance's image is made from. Written by `quorate build`; `quorate build --update` renews it.\n";

/// What packages an image is to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// By these names, with what they depend on.
    pub(crate) names: &'a [String],
    /// Names that are taken as installed.
    pub(crate) without: &'a [String],
    /// The suite that they come from, if not the machine's.
    pub(crate) suite: Option<&'a str>,
    /// What is compiled from source packages.
    pub(crate) sources: &'a [SourceSpec],
    /// Whether the image is a Linux machine's, where an init runs: fewer packages are taken as installed.
    pub(crate) boots: bool,
}

/// Contents of a lock file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lock {
    version: u32,
    /// Names that were asked for.
    names: Vec<String>,
    /// Names that were taken as installed.
    without: Vec<String>,
    /// The suite that they are of, if not the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    suite: Option<String>,
    /// Whether they are a Linux machine's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    boots: bool,
    /// When, as Debian's snapshot archive writes it: `20260131T235959Z`.
    pub(crate) resolved: String,
    /// What they came to.
    pub(crate) packages: Vec<Package>,
    /// Source packages that programs are compiled from, in the order of the appliance's `sources`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sources: Vec<Source>,
}

impl Lock {
    pub(crate) fn new(
        wanted: Wanted<'_>,
        resolved: String,
        packages: Vec<Package>,
        sources: Vec<Source>,
    ) -> Self {
        Self {
            version: LOCK_VERSION,
            names: wanted.names.to_vec(),
            without: wanted.without.to_vec(),
            suite: wanted.suite.map(str::to_owned),
            boots: wanted.boots,
            resolved,
            packages,
            sources,
        }
    }

    /// The packages of the image and those that its sources need.
    pub(crate) fn all_packages(&self) -> impl Iterator<Item = &Package> {
        let needs = self.sources.iter().flat_map(|source| &source.needs);
        self.packages.iter().chain(needs)
    }

    /// Where the lock for these names lies: `locks/FIRST-KEY.toml` in the cache.
    pub(crate) fn path(cache: &Path, wanted: Wanted<'_>) -> PathBuf {
        let Wanted {
            names,
            without,
            suite,
            sources,
            boots,
        } = wanted;
        let mut hasher = blake3::Hasher::new();
        for list in [names, without] {
            for name in list {
                hasher.update(name.as_bytes());
                hasher.update(b"\n");
            }
            hasher.update(b"\0");
        }
        hasher.update(suite.unwrap_or_default().as_bytes());
        for spec in sources {
            let version = spec.version.as_deref().unwrap_or_default();
            for word in [&spec.package, version]
                .into_iter()
                .chain(spec.needs.iter().map(String::as_str))
            {
                hasher.update(b"\0");
                hasher.update(word.as_bytes());
            }
        }
        if boots {
            hasher.update(b"\0boots");
        }
        let key = hasher.finalize().to_hex();
        let first = names.first().map_or("none", String::as_str);
        let key = key.get(..16).unwrap_or_default();
        cache.join("locks").join(format!("{first}-{key}.toml"))
    }

    /// The lock at `path`; `None` if there is none or it is not one of this version: then it is made anew.
    pub(crate) fn read(path: &Path, wanted: Wanted<'_>) -> Option<Self> {
        if fs::metadata(path).ok()?.len() > MAX_LOCK {
            return None;
        }
        let lock: Self = toml::from_str(&fs::read_to_string(path).ok()?).ok()?;
        let same = lock.version == LOCK_VERSION
            && lock.names == wanted.names
            && lock.without == wanted.without
            && lock.suite.as_deref() == wanted.suite
            && lock.sources.len() == wanted.sources.len()
            && lock.sources.iter().zip(wanted.sources).all(|(is, wanted)| {
                is.name == wanted.package
                    && is.wanted == wanted.version.as_deref().unwrap_or_default()
            })
            && lock.boots == wanted.boots;
        let safe = lock.packages.iter().all(Package::is_safe)
            && lock.sources.iter().all(Source::is_safe)
            && lock.resolved.bytes().all(|b| b.is_ascii_alphanumeric());
        (same && safe).then_some(lock)
    }

    /// Writes the lock unless the file at `path` says the same; returns whether it was written.
    pub(crate) fn renew(&self, path: &Path, wanted: Wanted<'_>) -> Result<bool, BuildError> {
        let same = Self::read(path, wanted).is_some_and(|old| old == *self);
        if !same {
            self.write(path)?;
        }
        Ok(!same)
    }

    /// Writes the lock.
    pub(crate) fn write(&self, path: &Path) -> Result<(), BuildError> {
        let text = toml::to_string(self).map_err(|e| BuildError::Io {
            action: "write the lock file",
            path: path.to_owned(),
            source: std::io::Error::other(e),
        })?;
        crate::cache::replace_file(path, [COMMENT, &text].concat().as_bytes())
    }
}

/// The end of the day of `seconds` since 1970, as Debian's snapshot archive writes it.
pub(crate) fn snapshot_day(seconds: u64) -> String {
    // Days since 0000-03-01, in years that begin in March (so that a leap day is the last one).
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year_of_era + next;
    format!("{year:04}{month:02}{day:02}T235959Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days() {
        for (seconds, day) in [
            (0, "19700101T235959Z"),
            (86_399, "19700101T235959Z"),
            (951_782_400, "20000229T235959Z"),
            (1_709_251_199, "20240229T235959Z"),
            (1_709_251_200, "20240301T235959Z"),
            (1_767_225_600, "20260101T235959Z"),
            (1_798_761_599, "20261231T235959Z"),
        ] {
            assert_eq!(snapshot_day(seconds), day, "{seconds}");
        }
    }
}
