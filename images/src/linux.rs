//! What a Linux appliance boots: kernel, initial RAM disk, root disk and command line.
//!
//! The root file system is the appliance's image like any other, written as an ext4 disk. The initial RAM disk is two archives one
//! after the other: one that depends on the kernel only (busybox, modules, guest/init.sh), and one with what this appliance wants.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use quorate_abi::image::ImageView;

use crate::appliance::{Appliance, Console, Initramfs, KernelSource, LinuxSpec, Root};
use crate::build::{BuildOptions, BuiltImage, Package, Progress};
use crate::cache::{lock_cache, persist, prune};
use crate::debian::Lock;
use crate::error::BuildError;
use crate::verify::ImageFileError;

mod conf;
mod cpio;
mod ext4;
mod kernel;
mod modules;

pub use cpio::{CpioEntry, read_cpio};

/// Goes into the key of every root disk: raise it when the same image gives another disk.
const ROOT_VERSION: u32 = 1;
/// Root disks and initial RAM disks of one appliance that the cache keeps (R10): replicas may differ in theirs.
const KEPT: usize = 16;
/// Hexadecimal digits of the key in a file's name.
const KEY_DIGITS: usize = 16;

/// What a Linux machine is started with, besides the root image ([`crate::BuiltImage::path`], an ext4 file system).
///
/// The first block device of the machine is the root ([`LinuxRoot`]); the appliance's other disks follow in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinuxBoot {
    /// The kernel: a bzImage, or an ELF file if the appliance names one.
    pub kernel: PathBuf,
    /// BLAKE3 of the kernel's file.
    pub kernel_digest: [u8; 32],
    /// What `uname -r` says, as far as it is known: empty for a file of the appliance's own.
    pub kernel_version: String,
    /// The initial RAM disk, if there is one.
    pub initramfs: Option<PathBuf>,
    /// BLAKE3 of its file; zeroes without one.
    pub initramfs_digest: [u8; 32],
    /// What the first disk is.
    pub root: LinuxRoot,
    /// The kernel's command line. The VMM may append what only it knows.
    pub cmdline: String,
    /// Virtual CPUs of each replica.
    pub cpus: u8,
    /// Which device the console is.
    pub console: Console,
    /// Whether [`crate::BuiltImage::program`] is started and its end is the machine's, told by a write to
    /// [`quorate_abi::linux::EXIT_PORT`]. Otherwise the image's own init runs.
    pub runs_program: bool,
    /// Debian packages that kernel and initial RAM disk come from.
    pub packages: Vec<Package>,
    /// When they were resolved, as Debian's snapshot archive writes it; empty if there are none.
    pub resolved: String,
}

/// What the first block device of a Linux machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinuxRoot {
    /// The root image, read-only: the guest keeps changes in its memory, or may make none.
    Image,
    /// The `[[disk]]` of this name, which was made from the root image.
    Disk(String),
}

/// Makes of `image`, in the embedded guest's format, what a Linux machine boots.
pub(crate) fn finish(
    appliance: &Appliance,
    linux: &LinuxSpec,
    image: BuiltImage,
    options: &BuildOptions<'_>,
) -> Result<BuiltImage, BuildError> {
    let _lock = lock_cache(&options.cache_dir)?;
    let kernel = kernel::obtain(appliance, linux, options)?;
    assemble(appliance, linux, image, kernel, options)
}

/// As [`finish`], but `None` if something would have to be downloaded.
pub(crate) fn cached(
    appliance: &Appliance,
    linux: &LinuxSpec,
    image: BuiltImage,
    options: &BuildOptions<'_>,
) -> Result<Option<BuiltImage>, BuildError> {
    let _lock = lock_cache(&options.cache_dir)?;
    match kernel::find(appliance, linux, &options.cache_dir)? {
        Some(kernel) => assemble(appliance, linux, image, kernel, options).map(Some),
        None => Ok(None),
    }
}

/// Writes the lock file of the kernel's packages, `NAME.kernel-….lock` beside the appliance; its path if it is new or changed.
pub(crate) fn write_lock(
    appliance: &Appliance,
    boot: &LinuxBoot,
) -> Result<Option<PathBuf>, BuildError> {
    let Some(linux) = &appliance.linux else {
        return Ok(None);
    };
    let names = kernel::names(linux);
    let (Some(wanted), Some(path)) = (names.wanted(), kernel::lock_path(appliance, linux)) else {
        return Ok(None);
    };
    let lock = Lock::new(
        wanted,
        boot.resolved.clone(),
        boot.packages.clone(),
        Vec::new(),
    );
    Ok(lock.renew(&path, wanted)?.then_some(path))
}

fn assemble(
    appliance: &Appliance,
    linux: &LinuxSpec,
    image: BuiltImage,
    kernel: kernel::Kernel,
    options: &BuildOptions<'_>,
) -> Result<BuiltImage, BuildError> {
    let (initramfs, initramfs_digest) = match &linux.initramfs {
        Initramfs::None => (None, [0; 32]),
        Initramfs::File(path) => {
            let path = appliance.resolve(path);
            let digest = digest_of(&path)?;
            (Some(path), digest)
        }
        Initramfs::Auto => {
            let own = conf::archive(appliance, linux, &image.program)
                .map_err(|error| BuildError::Kernel(error.to_string()))?;
            let bytes = [&kernel.base[..], &own].concat();
            let (path, digest) = store_initramfs(appliance, &bytes, &options.cache_dir)?;
            (Some(path), digest)
        }
    };
    let disk = root_disk(appliance, linux, &image, options)?;
    let root = match &appliance.machine.root {
        Root::Disk(name) => LinuxRoot::Disk(name.clone()),
        Root::Memory | Root::ReadOnly => LinuxRoot::Image,
    };
    let boot = LinuxBoot {
        kernel_digest: digest_of(&kernel.path)?,
        kernel: kernel.path,
        kernel_version: kernel.version,
        initramfs,
        initramfs_digest,
        root,
        cmdline: cmdline(appliance, linux),
        cpus: linux.cpus,
        console: linux.console,
        runs_program: !image.program.command.is_empty() && linux.initramfs == Initramfs::Auto,
        packages: kernel.packages,
        resolved: kernel.resolved,
    };
    Ok(BuiltImage {
        path: disk.path,
        digest: disk.digest,
        length: disk.length,
        cached: image.cached && disk.cached,
        linux: Some(boot),
        ..image
    })
}

/// What the kernel is told. Its messages have no times and are few, so that consoles of replicas can agree.
fn cmdline(appliance: &Appliance, linux: &LinuxSpec) -> String {
    let mut words = vec!["console=ttyS0".to_owned()];
    if linux.console == Console::Hvc0 {
        words.push("console=hvc0".to_owned());
    }
    let access = match appliance.machine.root {
        Root::Disk(_) => "rw",
        Root::Memory | Root::ReadOnly => "ro",
    };
    words.push(format!("root=/dev/vda rootfstype=ext4 {access}"));
    if linux.initramfs == Initramfs::None {
        words.push(format!("init={}", linux.init()));
    }
    // A panic ends the machine, by a reset; with one network device there is no need for another name than eth0. The check of the
    // timer counts ticks in real time, which a busy or emulated host may be late with: the kernel then gives up.
    words.push("quiet printk.time=0 panic=-1 no_timer_check net.ifnames=0".to_owned());
    if !linux.cmdline.is_empty() {
        words.push(linux.cmdline.clone());
    }
    words.join(" ")
}

fn store_initramfs(
    appliance: &Appliance,
    bytes: &[u8],
    cache: &Path,
) -> Result<(PathBuf, [u8; 32]), BuildError> {
    let directory = cache.join("initramfs");
    let digest = blake3::hash(bytes);
    let path = cache_file(&directory, appliance, &digest, "cpio");
    if digest_of(&path).ok() != Some(*digest.as_bytes()) {
        let write_error = || BuildError::io("write the initial RAM disk", &directory);
        fs::create_dir_all(&directory).map_err(write_error())?;
        let mut file = tempfile::Builder::new()
            .prefix(".building-")
            .tempfile_in(&directory)
            .map_err(write_error())?;
        file.write_all(bytes).map_err(write_error())?;
        persist(file, &path)?;
        prune(&directory, &appliance.name, ".cpio", &path, KEPT);
    }
    Ok((path, *digest.as_bytes()))
}

fn cache_file(
    directory: &Path,
    appliance: &Appliance,
    key: &blake3::Hash,
    suffix: &str,
) -> PathBuf {
    let key = key.to_hex();
    let key = key.get(..KEY_DIGITS).unwrap_or_default();
    directory.join(format!("{}-{key}.{suffix}", appliance.name))
}

struct RootDisk {
    path: PathBuf,
    digest: [u8; 32],
    length: u64,
    cached: bool,
}

/// The root disk of `image`, made unless it is in the cache.
fn root_disk(
    appliance: &Appliance,
    linux: &LinuxSpec,
    image: &BuiltImage,
    options: &BuildOptions<'_>,
) -> Result<RootDisk, BuildError> {
    let bytes = fs::read(&image.path).map_err(BuildError::io("read the image", &image.path))?;
    let Ok(view) = ImageView::parse(&bytes) else {
        return Err(ImageFileError::NotAnImage(image.path.clone()).into());
    };
    let root = match &appliance.machine.root {
        Root::Disk(name) => appliance.disks.iter().find(|disk| disk.name == *name),
        Root::Memory | Root::ReadOnly => None,
    };
    let length = match root {
        Some(disk) => disk.bytes,
        None => {
            let inodes = crate::verify(&image.path)?.inodes;
            ext4::size_for(&view, inodes, linux.free)
        }
    };
    let format = ext4::Format {
        bytes: length,
        name: &appliance.name,
        epoch: appliance.epoch(),
    };
    let mut key = blake3::Hasher::new();
    key.update(&ROOT_VERSION.to_le_bytes());
    key.update(&image.digest);
    key.update(&length.to_le_bytes());
    key.update(&format.epoch.to_le_bytes());
    key.update(appliance.name.as_bytes());
    let directory = options.cache_dir.join("images");
    let path = cache_file(&directory, appliance, &key.finalize(), "ext4");
    // What it was when it was made: a disk that something has changed since is made again.
    let sum = path.with_extension("ext4.b3");
    let expected = fs::read_to_string(&sum).ok();
    if let (Some(expected), Ok(digest)) = (expected, digest_of(&path))
        && expected.trim() == blake3::Hash::from_bytes(digest).to_hex().as_str()
    {
        return Ok(RootDisk {
            path,
            digest,
            length,
            cached: true,
        });
    }
    (options.progress)(Progress::Writing);
    let file = tempfile::Builder::new()
        .prefix(".building-")
        .tempfile_in(&directory)
        .map_err(BuildError::io("write the root disk", &directory))?;
    ext4::write(&view, file.path(), &directory, &format)?;
    let digest = digest_of(file.path())?;
    persist(file, &path)?;
    let hex = blake3::Hash::from_bytes(digest).to_hex();
    crate::cache::replace_file(&sum, hex.as_bytes())?;
    prune(&directory, &appliance.name, ".ext4", &path, KEPT);
    prune(&directory, &appliance.name, ".ext4.b3", &sum, KEPT);
    Ok(RootDisk {
        path,
        digest,
        length,
        cached: false,
    })
}

/// BLAKE3 of a file.
fn digest_of(path: &Path) -> Result<[u8; 32], BuildError> {
    let file = File::open(path).map_err(BuildError::io("read", path))?;
    let mut hasher = blake3::Hasher::new();
    hasher
        .update_reader(file)
        .map_err(BuildError::io("read", path))?;
    Ok(*hasher.finalize().as_bytes())
}

impl KernelSource {
    /// What of it goes into the name of a lock file.
    fn label(&self) -> String {
        match self {
            Self::Debian { flavour, version } => {
                let flavour = flavour.name();
                match version {
                    Some(version) => format!("{flavour}-{version}"),
                    None => flavour.to_owned(),
                }
            }
            Self::File(_) => "file".to_owned(),
        }
    }
}
