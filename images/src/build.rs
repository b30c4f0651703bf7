//! Builds an appliance's image.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::appliance::{Appliance, ExtraFile, FileContent, ImageSource, Program};
pub use crate::cache::default_cache_dir;
use crate::cache::{image_path, lock_cache, persist, prune_images};
use crate::compile::Recipe;
use crate::debian::{self, Lock, Part, Wanted};
pub use crate::debian::{Package, Source};
use crate::error::BuildError;
use crate::linux::LinuxBoot;
use crate::locked::{locked, packages};
use crate::tree::{Kind, Meta, Tree, TreeError};
use crate::verify::{Info, verify};
use crate::writer::{self, WriteError};
use crate::{hostdir, oci, skeleton};

/// Goes into every key: raise it when the same inputs give another image.
const BUILDER_VERSION: u32 = 4;

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
    /// Compiling a program from a source package; it can take minutes.
    Compiling {
        /// The source package.
        what: &'a str,
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
    /// Source packages that programs in it are compiled from.
    pub sources: Vec<Source>,
    /// When the packages were resolved, as Debian's snapshot archive writes it; empty if there are none.
    pub resolved: String,
    /// Whether it was there already.
    pub cached: bool,
    /// What to run in it: the appliance's program with its users looked up, and with what an OCI image says itself.
    pub program: Program,
    /// What a Linux machine boots besides; then `path` is an ext4 root disk. `None` for the embedded guest.
    pub linux: Option<LinuxBoot>,
}

impl BuiltImage {
    /// `appliance` with what the image settles: its program, with users looked up, and what new disks are made from.
    #[must_use]
    pub fn settle(&self, appliance: &Appliance) -> Appliance {
        Appliance {
            program: self.program.clone(),
            root_image: self.linux.as_ref().map(|_| self.path.clone()),
            ..appliance.clone()
        }
    }
}

/// Builds the image of `appliance`, or finds the one that the same inputs gave before. Several processes may do so at once.
///
/// # Errors
/// [`BuildError`].
pub fn build(appliance: &Appliance, options: &BuildOptions<'_>) -> Result<BuiltImage, BuildError> {
    let image = build_image(appliance, options)?;
    match &appliance.linux {
        Some(linux) => crate::linux::finish(appliance, linux, image, options),
        None => Ok(image),
    }
}

/// As [`build`], but without what a Linux machine needs besides.
fn build_image(
    appliance: &Appliance,
    options: &BuildOptions<'_>,
) -> Result<BuiltImage, BuildError> {
    let cache = &options.cache_dir;
    match &appliance.image.source {
        ImageSource::File(path) => ready_made(appliance, path),
        ImageSource::Directory(path) => {
            let _lock = lock_cache(cache)?;
            let mut tree = hostdir::read(&appliance.resolve(path), appliance.epoch())?;
            add_extras(&mut tree, appliance, &read_extras(appliance)?)?;
            store(appliance, options, &tree, None, Origin::default())
        }
        ImageSource::Oci { path, tag } => {
            let _lock = lock_cache(cache)?;
            let extras = read_extras(appliance)?;
            let image = oci::Image::open(&appliance.resolve(path), tag.as_deref())?;
            let key = key(appliance, &Inputs::Oci(image.id()), &extras);
            let origin = Origin {
                process: Some(image.process()),
                ..Origin::default()
            };
            if let Ok(info) = verify(&image_path(cache, appliance, &key)) {
                return built(appliance, info, origin, true);
            }
            let (time, latest) = (appliance.epoch(), appliance.image.epoch);
            let mut tree = image.unpack(time, latest, options.progress)?;
            add_extras(&mut tree, appliance, &extras)?;
            store(appliance, options, &tree, Some(key), origin)
        }
        ImageSource::Packages(names) => {
            let _lock = lock_cache(cache)?;
            let extras = read_extras(appliance)?;
            if !options.update
                && let Some(found) = find(appliance, cache, names, &extras)?
            {
                return Ok(found);
            }
            let lock = packages(wanted(appliance, names), appliance.lock_path(), options)?;
            let mut tree = debian::unpack(
                &lock.packages,
                cache,
                appliance.epoch(),
                appliance.image.epoch,
                match appliance.linux {
                    Some(_) => Part::Machine,
                    None => Part::Program,
                },
                options.progress,
            )?;
            let recipes = recipes(appliance, &lock)?;
            for recipe in &recipes {
                recipe.add(appliance, cache, &mut tree, options.progress)?;
            }
            add_extras(&mut tree, appliance, &extras)?;
            let inputs = Inputs::Packages(&lock.packages, &recipes);
            let key = key(appliance, &inputs, &extras);
            drop(recipes);
            let origin = Origin {
                packages: lock.packages,
                sources: lock.sources,
                resolved: lock.resolved,
                ..Origin::default()
            };
            store(appliance, options, &tree, Some(key), origin)
        }
    }
}

/// The image of `appliance` if it can be had without downloading anything: a ready-made one, one from a directory or an OCI image
/// (built now), or one from packages that was built before.
///
/// # Errors
/// [`BuildError`].
pub fn cached(appliance: &Appliance, cache_dir: &Path) -> Result<Option<BuiltImage>, BuildError> {
    let options = BuildOptions::new(cache_dir);
    let image = match &appliance.image.source {
        ImageSource::Packages(names) => {
            find(appliance, cache_dir, names, &read_extras(appliance)?)?
        }
        _ => Some(build_image(appliance, &options)?),
    };
    match (&appliance.linux, image) {
        (Some(linux), Some(image)) => crate::linux::cached(appliance, linux, image, &options),
        (_, image) => Ok(image),
    }
}

/// Writes the lock file of an appliance that is made from packages: `NAME.lock` beside `NAME.toml`. While it is there, builds use
/// these very packages. Returns its path if it is new or another than before.
///
/// # Errors
/// [`BuildError`].
pub fn write_lock(
    appliance: &Appliance,
    image: &BuiltImage,
) -> Result<Option<PathBuf>, BuildError> {
    let Some(path) = appliance.lock_path() else {
        return Ok(None);
    };
    let mut written = None;
    if let ImageSource::Packages(names) = &appliance.image.source {
        let wanted = wanted(appliance, names);
        let lock = Lock::new(
            wanted,
            image.resolved.clone(),
            image.packages.clone(),
            image.sources.clone(),
        );
        if lock.renew(&path, wanted)? {
            written = Some(path.clone());
        }
    }
    if let Some(linux) = &image.linux
        && let Some(path) = crate::linux::write_lock(appliance, linux)?
    {
        written.get_or_insert(path);
    }
    Ok(written)
}

/// What an image comes from, as far as it is not the appliance that says so.
#[derive(Default)]
struct Origin {
    packages: Vec<Package>,
    sources: Vec<Source>,
    resolved: String,
    process: Option<oci::Process>,
}

fn ready_made(appliance: &Appliance, path: &Path) -> Result<BuiltImage, BuildError> {
    let info = verify(&appliance.resolve(path))?;
    built(appliance, info, Origin::default(), true)
}

fn built(
    appliance: &Appliance,
    info: Info,
    origin: Origin,
    cached: bool,
) -> Result<BuiltImage, BuildError> {
    let program = crate::program::resolve(appliance, origin.process.as_ref(), &info.path)?;
    Ok(BuiltImage {
        path: info.path,
        digest: info.digest,
        length: info.length,
        packages: origin.packages,
        sources: origin.sources,
        resolved: origin.resolved,
        cached,
        program,
        linux: None,
    })
}

fn wanted<'a>(appliance: &'a Appliance, names: &'a [String]) -> Wanted<'a> {
    Wanted {
        names,
        without: &appliance.image.without,
        suite: appliance.image.suite.as_deref(),
        sources: &appliance.image.sources,
        boots: appliance.linux.is_some(),
    }
}

/// What is compiled for the image.
fn recipes<'a>(appliance: &'a Appliance, lock: &'a Lock) -> Result<Vec<Recipe<'a>>, BuildError> {
    let specs = appliance.image.sources.iter().zip(&lock.sources);
    let read = |(spec, source)| Recipe::read(appliance, spec, source);
    specs.map(read).collect()
}

/// An image from packages that is in the cache and whole.
fn find(
    appliance: &Appliance,
    cache: &Path,
    names: &[String],
    extras: &[Extra<'_>],
) -> Result<Option<BuiltImage>, BuildError> {
    let Some((lock, _)) = locked(wanted(appliance, names), appliance.lock_path(), cache)? else {
        return Ok(None);
    };
    let recipes = recipes(appliance, &lock)?;
    let inputs = Inputs::Packages(&lock.packages, &recipes);
    let key = key(appliance, &inputs, extras);
    drop(recipes);
    match verify(&image_path(cache, appliance, &key)) {
        Ok(info) => {
            let origin = Origin {
                packages: lock.packages,
                sources: lock.sources,
                resolved: lock.resolved,
                ..Origin::default()
            };
            built(appliance, info, origin, true).map(Some)
        }
        Err(error) => {
            tracing::debug!(%error, "not in the cache");
            Ok(None)
        }
    }
}

/// What an image is made from.
enum Inputs<'a> {
    Packages(&'a [Package], &'a [Recipe<'a>]),
    /// The OCI image's id.
    Oci(&'a str),
}

/// What the image depends on, besides the code here.
fn key(appliance: &Appliance, inputs: &Inputs<'_>, extras: &[Extra<'_>]) -> String {
    let mut hasher = blake3::Hasher::new();
    // Length before contents, so that no two lists of fields run together to the same bytes.
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(&BUILDER_VERSION.to_le_bytes());
    field(&quorate_abi::image::IMAGE_VERSION.to_le_bytes());
    field(appliance.hostname().as_bytes());
    if appliance.linux.is_some() {
        field(b"linux");
    }
    field(&appliance.program.uid.to_le_bytes());
    field(&appliance.program.gid.to_le_bytes());
    field(format!("{:?}", appliance.image.epoch).as_bytes());
    for mount in appliance.mounts() {
        field(mount.target.as_bytes());
    }
    match inputs {
        Inputs::Packages(packages, recipes) => {
            for package in *packages {
                field(package.file.as_bytes());
                field(package.sha256.as_bytes());
            }
            for recipe in *recipes {
                field(recipe.key.as_bytes());
            }
        }
        Inputs::Oci(id) => field(id.as_bytes()),
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
    origin: Origin,
) -> Result<BuiltImage, BuildError> {
    // What an OCI image runs is settled when the image is there; a Linux machine may have nothing but its init.
    let boots = appliance.linux.is_some() && appliance.program.command.is_empty();
    if origin.process.is_none() && !boots {
        check_program(appliance, tree)?;
    }
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
    let info = Info {
        path,
        digest: written.digest,
        length: written.length,
        inodes: written.inodes,
    };
    built(appliance, info, origin, cached)
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
