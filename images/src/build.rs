//! Builds an appliance's image.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::appliance::{Appliance, ExtraFile, FileContent, ImageSource};
pub use crate::debian::Package;
use crate::debian::{self, Lock};
use crate::error::BuildError;
use crate::tree::{Kind, Meta, Tree, TreeError};
use crate::verify::{Info, verify};
use crate::writer::{self, WriteError};
use crate::{hostdir, skeleton};

/// Goes into every key: raise it when the same inputs give another image.
const BUILDER_VERSION: u32 = 3;

/// Images of one appliance that the cache keeps (R10); the oldest ones go when another is built.
pub const KEPT_IMAGES: usize = 4;
/// Lock files that the cache keeps (R10); package files that no lock names go with them.
pub const KEPT_LOCKS: usize = 64;
/// Hexadecimal digits of the key in an image's file name.
const KEY_DIGITS: usize = 16;

/// What [`build`] is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// Fetching package lists.
    UpdatingLists,
    /// Working out which packages are needed.
    Resolving,
    /// Downloading packages.
    Downloading {
        /// How far, 0 to 100.
        percent: u8,
        /// apt-get's own words.
        what: &'a str,
    },
    /// Unpacking a package.
    Unpacking {
        /// Its name.
        package: &'a str,
        /// Which one it is, from 1.
        index: usize,
        /// How many there are.
        total: usize,
    },
    /// Writing the image.
    Writing,
}

/// How to build.
pub struct BuildOptions<'a> {
    /// Where packages, lock files and images are kept; made if it is not there.
    pub cache_dir: PathBuf,
    /// Fetch new package lists and resolve the packages again even though a lock file is there.
    pub update: bool,
    /// Called at every step.
    pub progress: &'a dyn Fn(Progress<'_>),
}

impl BuildOptions<'_> {
    /// Builds with the cache at `cache_dir`, from the lock file if there is one, silently.
    #[must_use]
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            update: false,
            progress: &|_| {},
        }
    }
}

/// An image that is ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltImage {
    /// The file.
    pub path: PathBuf,
    /// BLAKE3 of the image.
    pub digest: [u8; 32],
    /// Length in bytes.
    pub length: u64,
    /// Debian packages in it, in the order they were unpacked.
    pub packages: Vec<Package>,
    /// Whether it was there already.
    pub cached: bool,
}

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

/// Builds the image of `appliance`, or finds the one that the same inputs gave before. Several processes may do so at once.
///
/// # Errors
/// [`BuildError`].
pub fn build(appliance: &Appliance, options: &BuildOptions<'_>) -> Result<BuiltImage, BuildError> {
    let cache = &options.cache_dir;
    match &appliance.image.source {
        ImageSource::File(path) => ready_made(appliance, path),
        ImageSource::Directory(path) => {
            let _lock = lock_cache(cache)?;
            let mut tree = hostdir::read(&appliance.resolve(path), appliance.epoch())?;
            add_extras(&mut tree, appliance, &read_extras(appliance)?)?;
            store(appliance, options, &tree, None, Vec::new())
        }
        ImageSource::Packages(names) => {
            let _lock = lock_cache(cache)?;
            let extras = read_extras(appliance)?;
            if !options.update
                && let Some(found) = find(appliance, cache, names, &extras)?
            {
                return Ok(found);
            }
            let packages = packages(appliance, options, names)?;
            let mut tree = debian::unpack(
                &packages,
                cache,
                appliance.epoch(),
                appliance.image.epoch,
                options.progress,
            )?;
            add_extras(&mut tree, appliance, &extras)?;
            let key = key(appliance, &packages, &extras);
            store(appliance, options, &tree, Some(key), packages)
        }
    }
}

/// The image of `appliance` if it can be had without downloading anything: a ready-made one, one from a directory (built now), or
/// one from packages that was built before.
///
/// # Errors
/// [`BuildError`].
pub fn cached(appliance: &Appliance, cache_dir: &Path) -> Result<Option<BuiltImage>, BuildError> {
    match &appliance.image.source {
        ImageSource::Packages(names) => find(appliance, cache_dir, names, &read_extras(appliance)?),
        _ => build(appliance, &BuildOptions::new(cache_dir)).map(Some),
    }
}

fn ready_made(appliance: &Appliance, path: &Path) -> Result<BuiltImage, BuildError> {
    Ok(built(verify(&appliance.resolve(path))?, Vec::new(), true))
}

fn built(info: Info, packages: Vec<Package>, cached: bool) -> BuiltImage {
    BuiltImage {
        path: info.path,
        digest: info.digest,
        length: info.length,
        packages,
        cached,
    }
}

/// An image from packages that is in the cache and whole.
fn find(
    appliance: &Appliance,
    cache: &Path,
    names: &[String],
    extras: &[Extra<'_>],
) -> Result<Option<BuiltImage>, BuildError> {
    let without = &appliance.image.without;
    let lock = Lock::read(&Lock::path(cache, names, without), names, without);
    let Some(lock) = lock else {
        return Ok(None);
    };
    let path = image_path(cache, appliance, &key(appliance, &lock.packages, extras));
    match verify(&path) {
        Ok(info) => Ok(Some(built(info, lock.packages, true))),
        Err(error) => {
            tracing::debug!(%error, "not in the cache");
            Ok(None)
        }
    }
}

/// The packages by the lock file, or by apt-get when there is none, its files are gone or `update` says so.
fn packages(
    appliance: &Appliance,
    options: &BuildOptions<'_>,
    names: &[String],
) -> Result<Vec<Package>, BuildError> {
    let cache = &options.cache_dir;
    let without = &appliance.image.without;
    let path = Lock::path(cache, names, without);
    if !options.update
        && let Some(lock) = Lock::read(&path, names, without)
        && debian::all_there(&lock.packages, cache)
    {
        return Ok(lock.packages);
    }
    let packages = debian::fetch(names, without, cache, options.update, options.progress)?;
    Lock::new(names, without, packages.clone()).write(&path)?;
    prune_packages(cache)?;
    Ok(packages)
}

/// What the image depends on, besides the code here.
fn key(appliance: &Appliance, packages: &[Package], extras: &[Extra<'_>]) -> String {
    let mut hasher = blake3::Hasher::new();
    // Length before contents, so that no two lists of fields run together to the same bytes.
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(&BUILDER_VERSION.to_le_bytes());
    field(&quorate_abi::image::IMAGE_VERSION.to_le_bytes());
    field(appliance.hostname().as_bytes());
    field(&appliance.program.uid.to_le_bytes());
    field(&appliance.program.gid.to_le_bytes());
    field(format!("{:?}", appliance.image.epoch).as_bytes());
    for mount in appliance.mounts() {
        field(mount.target.as_bytes());
    }
    for package in packages {
        field(package.file.as_bytes());
        field(package.sha256.as_bytes());
    }
    for extra in extras {
        field(extra.path.as_bytes());
        field(&extra.content);
        field(&extra.mode.to_le_bytes());
        field(&[u8::from(extra.is_link)]);
    }
    hasher.finalize().to_hex().to_string()
}

/// A file put into the image besides its source, read.
struct Extra<'a> {
    path: &'a str,
    content: Vec<u8>,
    mode: u32,
    is_link: bool,
}

fn read_extras(appliance: &Appliance) -> Result<Vec<Extra<'_>>, BuildError> {
    let read = |file| read_extra(appliance, file);
    appliance.image.files.iter().map(read).collect()
}

fn read_extra<'a>(appliance: &Appliance, file: &'a ExtraFile) -> Result<Extra<'a>, BuildError> {
    let (content, own_mode) = match &file.content {
        FileContent::Inline(text) => (text.as_bytes().to_vec(), 0o644),
        FileContent::Source(path) => {
            let path = appliance.resolve(path);
            let info = fs::metadata(&path).map_err(BuildError::io("read", &path))?;
            if info.len() > crate::MAX_IMAGE_LEN {
                return Err(BuildError::TooLarge(info.len()));
            }
            let bytes = fs::read(&path).map_err(BuildError::io("read", &path))?;
            (bytes, info.permissions().mode() & 0o7777)
        }
        FileContent::Link(target) => (target.as_bytes().to_vec(), 0o777),
    };
    Ok(Extra {
        path: &file.path,
        content,
        mode: file.mode.unwrap_or(own_mode),
        is_link: matches!(file.content, FileContent::Link(_)),
    })
}

fn add_extras(
    tree: &mut Tree,
    appliance: &Appliance,
    extras: &[Extra<'_>],
) -> Result<(), BuildError> {
    let origin = |source: TreeError| BuildError::Tree {
        origin: format!("appliance {}", appliance.name),
        source,
    };
    for extra in extras {
        let meta = Meta::root(extra.mode, appliance.epoch());
        let path = extra.path.as_bytes();
        if extra.is_link {
            tree.symlink(path, meta, &extra.content).map_err(origin)?;
        } else {
            tree.file(path, meta, extra.content.clone())
                .map_err(origin)?;
        }
    }
    skeleton::complete(tree, appliance).map_err(origin)
}

/// Writes `tree` into the cache under `key`, or under the image's own digest when there is no key.
fn store(
    appliance: &Appliance,
    options: &BuildOptions<'_>,
    tree: &Tree,
    key: Option<String>,
    packages: Vec<Package>,
) -> Result<BuiltImage, BuildError> {
    check_program(appliance, tree)?;
    (options.progress)(Progress::Writing);
    let directory = options.cache_dir.join("images");
    let write_error = || BuildError::io("write the image", &directory);
    fs::create_dir_all(&directory).map_err(write_error())?;
    let mut file = tempfile::Builder::new()
        .prefix(".building-")
        .tempfile_in(&directory)
        .map_err(write_error())?;
    let written = writer::write(tree, file.as_file_mut()).map_err(|e| match e {
        WriteError::Io(source) => write_error()(source),
        WriteError::TooLarge(bytes) => BuildError::TooLarge(bytes),
    })?;
    let key = key.unwrap_or_else(|| {
        blake3::Hash::from_bytes(written.digest)
            .to_hex()
            .to_string()
    });
    let path = image_path(&options.cache_dir, appliance, &key);
    let cached = path.exists() && verify(&path).is_ok_and(|info| info.digest == written.digest);
    if !cached {
        persist(file, &path)?;
        prune_images(&directory, &appliance.name, &path);
    }
    Ok(BuiltImage {
        path,
        digest: written.digest,
        length: written.length,
        packages,
        cached,
    })
}

/// Whether the program is there and may be executed: better said now than by the guest.
fn check_program(appliance: &Appliance, tree: &Tree) -> Result<(), BuildError> {
    let program = appliance.program.command.first().map_or("", String::as_str);
    let node = tree.follow(program.as_bytes()).and_then(|id| tree.node(id));
    match node {
        Some(node) if matches!(node.kind, Kind::File(_)) && node.meta.perm & 0o111 != 0 => Ok(()),
        _ => Err(BuildError::NoProgram {
            program: program.to_owned(),
        }),
    }
}

fn image_path(cache: &Path, appliance: &Appliance, key: &str) -> PathBuf {
    let key = key.get(..KEY_DIGITS).unwrap_or(key);
    cache
        .join("images")
        .join(format!("{}-{key}.qimg", appliance.name))
}

/// Keeps other builds out of the cache until the result is dropped.
fn lock_cache(cache: &Path) -> Result<File, BuildError> {
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

fn persist(file: tempfile::NamedTempFile, path: &Path) -> Result<(), BuildError> {
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
fn prune_images(directory: &Path, name: &str, newest: &Path) {
    let is_ours = |path: &Path| {
        let key = path
            .file_name()
            .and_then(|file| file.to_str())
            .and_then(|file| file.strip_prefix(name))
            .and_then(|rest| rest.strip_prefix('-'))
            .and_then(|rest| rest.strip_suffix(".qimg"));
        path != newest
            && key.is_some_and(|key| {
                key.len() == KEY_DIGITS && key.bytes().all(|b| b.is_ascii_hexdigit())
            })
    };
    for path in oldest(directory, is_ours, KEPT_IMAGES - 1) {
        remove(&path);
    }
}

/// Removes all but the newest [`KEPT_LOCKS`] lock files, and package files that none of them names.
fn prune_packages(cache: &Path) -> Result<(), BuildError> {
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
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove an old file of the cache");
    }
}
