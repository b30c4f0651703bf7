//! Which packages are used: those of a lock file, or those that apt-get names.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::build::BuildOptions;
use crate::cache::prune_packages;
use crate::debian::{self, Lock, Wanted};
use crate::error::BuildError;

/// Where a lock was found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    /// In a file beside the appliance.
    Beside,
    /// In the cache.
    Cache,
}

/// The packages by the lock file `beside` the appliance or, if there is none, by the cache's own.
pub(crate) fn locked(
    wanted: Wanted<'_>,
    beside: Option<PathBuf>,
    cache: &Path,
) -> Result<Option<(Lock, Where)>, BuildError> {
    if let Some(path) = beside
        && path.exists()
    {
        return match Lock::read(&path, wanted) {
            Some(lock) => Ok(Some((lock, Where::Beside))),
            None => Err(BuildError::Lock { path }),
        };
    }
    let lock = Lock::read(&Lock::path(cache, wanted), wanted);
    Ok(lock.map(|lock| (lock, Where::Cache)))
}

/// The packages by the appliance's lock file, whose files are downloaded if they are not in the cache. Without one: by the cache's,
/// or by apt-get when there is none either, its files are gone or `update` says so.
pub(crate) fn packages(
    wanted: Wanted<'_>,
    beside: Option<PathBuf>,
    options: &BuildOptions<'_>,
) -> Result<Lock, BuildError> {
    let cache = &options.cache_dir;
    let own = Lock::path(cache, wanted);
    if !options.update {
        match locked(wanted, beside, cache)? {
            Some((lock, Where::Beside)) => {
                debian::obtain(&lock, cache, options.progress)?;
                // So that the cache keeps the files.
                lock.write(&own)?;
                prune_packages(cache)?;
                return Ok(lock);
            }
            Some((lock, Where::Cache)) if debian::has_all(&lock, cache) => {
                return Ok(lock);
            }
            _ => {}
        }
    }
    let packages = debian::fetch(wanted, cache, options.update, options.progress)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let day = debian::snapshot_day(now.map_or(0, |now| now.as_secs()));
    let sources = debian::fetch_sources(
        wanted.sources,
        wanted.suite,
        cache,
        options.update,
        options.progress,
    )?;
    let lock = Lock::new(wanted, day, packages, sources);
    lock.write(&own)?;
    prune_packages(cache)?;
    Ok(lock)
}
