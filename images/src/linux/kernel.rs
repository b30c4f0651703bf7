//! The kernel, and that part of the initial RAM disk that depends on nothing else. Both come from Debian packages and are kept in
//! the cache by what they were made from.

use std::fs;
use std::path::{Path, PathBuf};

use super::cpio::Archive;
use super::modules::{ModuleError, Modules};
use crate::appliance::{Appliance, Flavour, Initramfs, KernelSource, LinuxSpec};
use crate::build::{BuildOptions, Package};
use crate::cache::{prune, replace_file};
use crate::debian::{self, Lock, Part, Wanted};
use crate::error::BuildError;
use crate::locked::{locked, packages};
use crate::tree::{Kind, NodeId, Tree};

/// guest/init.sh, the first process.
const INIT: &[u8] = include_bytes!("../../guest/init.sh");
/// guest/task.rs, compiled.
const TASK: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/task"));
/// Commands of busybox that guest/init.sh uses.
const APPLETS: &[&str] = &[
    "cp",
    "env",
    "hostname",
    "insmod",
    "ip",
    "kill",
    "mkdir",
    "mount",
    "sh",
    "switch_root",
    "timeout",
    "uevent",
];
/// Drivers of the machine's devices, over MMIO and over PCI, and what a root in memory needs. The file system of the disks is
/// built into Debian's kernels or named here too.
const DRIVERS: &[&str] = &[
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_console",
    "ext4",
    "overlay",
];
/// What a kernel's package wants installed that no appliance needs.
const NOT_NEEDED: &[&str] = &["initramfs-tools", "kmod", "linux-base"];
/// Goes into every key: raise it when the same packages give something else.
const KERNEL_VERSION: u32 = 1;
/// Kernels that the cache keeps (R10).
const KEPT: usize = 16;

/// A kernel, and the archive to go with it.
pub(super) struct Kernel {
    pub(super) path: PathBuf,
    pub(super) version: String,
    /// First part of the initial RAM disk; empty when none is made.
    pub(super) base: Vec<u8>,
    pub(super) packages: Vec<Package>,
    pub(super) resolved: String,
}

/// What packages a kernel and its initial RAM disk come from.
pub(super) struct Names {
    names: Vec<String>,
    without: Vec<String>,
    suite: Option<String>,
}

impl Names {
    /// `None` if there are none.
    pub(super) fn wanted(&self) -> Option<Wanted<'_>> {
        (!self.names.is_empty()).then_some(Wanted {
            names: &self.names,
            without: &self.without,
            suite: self.suite.as_deref(),
            sources: &[],
            boots: false,
        })
    }
}

/// The packages that `linux` needs.
pub(super) fn names(linux: &LinuxSpec) -> Names {
    let mut names = Vec::new();
    let mut suite = None;
    if linux.initramfs == Initramfs::Auto {
        names.push("busybox-static".to_owned());
    }
    if let KernelSource::Debian { flavour, version } = &linux.kernel {
        let package = flavour.package();
        names.push(match version {
            // apt-get takes the newest that begins with it.
            Some(version) => format!("{package}={version}*"),
            None => package.to_owned(),
        });
        suite = version
            .as_ref()
            .map(|_| format!("{}-backports", codename()));
    }
    Names {
        names,
        without: NOT_NEEDED.iter().map(|&name| name.to_owned()).collect(),
        suite,
    }
}

/// The name of the machine's release of Debian.
fn codename() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = line.unwrap_or_default().trim_matches('"');
    let good = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase());
    // On a machine that is no Debian: the release that this was written on.
    if good { name } else { "bookworm" }.to_owned()
}

/// `NAME.kernel-LABEL.lock` beside the appliance, if it was read from a file.
pub(super) fn lock_path(appliance: &Appliance, linux: &LinuxSpec) -> Option<PathBuf> {
    let stem = appliance.path.file_stem()?.to_str()?;
    let name = format!("{stem}.kernel-{}.lock", linux.kernel.label());
    Some(appliance.path.with_file_name(name))
}

/// The kernel, its packages downloaded if need be.
pub(super) fn obtain(
    appliance: &Appliance,
    linux: &LinuxSpec,
    options: &BuildOptions<'_>,
) -> Result<Kernel, BuildError> {
    if !options.update
        && let Some(kernel) = find(appliance, linux, &options.cache_dir)?
    {
        return Ok(kernel);
    }
    let names = names(linux);
    let (packages, resolved) = match names.wanted() {
        Some(wanted) => {
            let lock = packages(wanted, lock_path(appliance, linux), options)?;
            (lock.packages, lock.resolved)
        }
        None => (Vec::new(), String::new()),
    };
    make(linux, &packages, options)?;
    let directory = directory(linux, &packages, &options.cache_dir);
    load(appliance, linux, &directory, packages, resolved)?
        .ok_or_else(|| BuildError::Kernel("what was just made is damaged".to_owned()))
}

/// The kernel, if it is in the cache.
pub(super) fn find(
    appliance: &Appliance,
    linux: &LinuxSpec,
    cache: &Path,
) -> Result<Option<Kernel>, BuildError> {
    let (packages, resolved) = match names(linux).wanted() {
        Some(wanted) => match locked(wanted, lock_path(appliance, linux), cache)? {
            Some((
                Lock {
                    packages, resolved, ..
                },
                _,
            )) => (packages, resolved),
            None => return Ok(None),
        },
        None => (Vec::new(), String::new()),
    };
    let directory = directory(linux, &packages, cache);
    load(appliance, linux, &directory, packages, resolved)
}

/// Where in the cache the files made from these packages lie.
fn directory(linux: &LinuxSpec, packages: &[Package], cache: &Path) -> PathBuf {
    let mut hasher = blake3::Hasher::new();
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(&KERNEL_VERSION.to_le_bytes());
    field(INIT);
    field(TASK);
    field(&[u8::from(linux.initramfs == Initramfs::Auto)]);
    for package in packages {
        field(package.sha256.as_bytes());
    }
    for module in &linux.modules {
        field(module.as_bytes());
    }
    let key = hasher.finalize().to_hex();
    let key = key.get(..super::KEY_DIGITS).unwrap_or_default();
    cache.join("kernels").join(format!("kernel-{key}"))
}

/// File names in a kernel's directory.
const IMAGE: &str = "vmlinuz";
const BASE: &str = "base.cpio";
/// Version, and the digests of the others.
const ABOUT: &str = "about";

fn load(
    appliance: &Appliance,
    linux: &LinuxSpec,
    directory: &Path,
    packages: Vec<Package>,
    resolved: String,
) -> Result<Option<Kernel>, BuildError> {
    let Ok(about) = fs::read_to_string(directory.join(ABOUT)) else {
        return Ok(None);
    };
    let Ok(base) = fs::read(directory.join(BASE)) else {
        return Ok(None);
    };
    let image = fs::read(directory.join(IMAGE)).unwrap_or_default();
    let version = about.lines().next().unwrap_or_default();
    if about != describe(version, &base, &image) {
        tracing::warn!(directory = %directory.display(), "a kernel in the cache is damaged and will be made again");
        return Ok(None);
    }
    let path = match &linux.kernel {
        KernelSource::File(path) => appliance.resolve(path),
        KernelSource::Debian { .. } => directory.join(IMAGE),
    };
    Ok(Some(Kernel {
        path,
        version: version.to_owned(),
        base,
        packages,
        resolved,
    }))
}

fn describe(version: &str, base: &[u8], image: &[u8]) -> String {
    let hex = |bytes: &[u8]| blake3::hash(bytes).to_hex();
    format!("{version}\n{}\n{}\n", hex(base), hex(image))
}

/// Unpacks the packages and writes kernel and archive into the cache.
fn make(
    linux: &LinuxSpec,
    packages: &[Package],
    options: &BuildOptions<'_>,
) -> Result<(), BuildError> {
    let tree = debian::unpack(
        packages,
        &options.cache_dir,
        0,
        None,
        Part::Kernel,
        options.progress,
    )?;
    let is_debian = matches!(linux.kernel, KernelSource::Debian { .. });
    let (version, image) = match is_debian {
        true => kernel_of(&tree)?,
        false => (String::new(), &[][..]),
    };
    let base = match linux.initramfs {
        Initramfs::Auto => base_archive(&tree, linux, &version)?,
        Initramfs::None | Initramfs::File(_) => Vec::new(),
    };
    let directory = directory(linux, packages, &options.cache_dir);
    fs::create_dir_all(&directory).map_err(BuildError::io("make the directory", &directory))?;
    if is_debian {
        replace_file(&directory.join(IMAGE), image)?;
    }
    replace_file(&directory.join(BASE), &base)?;
    // Last: with it the others count.
    let about = describe(&version, &base, image);
    replace_file(&directory.join(ABOUT), about.as_bytes())?;
    if let Some(parent) = directory.parent() {
        prune(parent, "kernel", "", &directory, KEPT);
    }
    Ok(())
}

/// Version and contents of the one kernel below `/boot`.
fn kernel_of(tree: &Tree) -> Result<(String, &[u8]), BuildError> {
    let missing = || BuildError::Kernel("its packages have no /boot/vmlinuz-VERSION".to_owned());
    let boot = tree.follow(b"/boot").ok_or_else(missing)?;
    for (name, id) in entries(tree, boot) {
        if let Some(version) = name.strip_prefix("vmlinuz-")
            && let Some(Kind::File(content)) = tree.node(id).map(|node| &node.kind)
        {
            return Ok((version.to_owned(), content));
        }
    }
    Err(missing())
}

/// Busybox, the first process, our supervisor and the modules, numbered in the order in which they are to be loaded.
fn base_archive(tree: &Tree, linux: &LinuxSpec, version: &str) -> Result<Vec<u8>, BuildError> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .filter_map(|path| tree.follow(path.as_bytes()))
        .find_map(|id| match tree.node(id).map(|node| &node.kind) {
            Some(Kind::File(content)) => Some(content),
            _ => None,
        })
        .ok_or_else(|| BuildError::Kernel("busybox-static has no busybox".to_owned()))?;
    let mut modules = Modules::default();
    for root in ["/lib/modules", "/usr/lib/modules"] {
        let path = format!("{root}/{version}");
        if let Some(id) = tree.follow(path.as_bytes())
            && !version.is_empty()
        {
            collect(tree, id, &mut modules);
            break;
        }
    }
    let wanted: Vec<&str> = match version {
        // A kernel of the appliance's own has its drivers built in.
        "" => Vec::new(),
        _ => DRIVERS.to_vec(),
    };
    let wanted: Vec<&str> = wanted
        .into_iter()
        .chain(linux.modules.iter().map(String::as_str))
        .collect();
    let modules = modules
        .ordered(&wanted)
        .map_err(|error: ModuleError| BuildError::Kernel(error.to_string()))?;
    let archive = || {
        let mut archive = Archive::default();
        for directory in ["/bin", "/dev", "/modules", "/proc", "/root", "/sys"] {
            archive.dir(directory, 0o755)?;
        }
        // For messages before there is a /dev.
        archive.device("/dev/console", 0o600, (5, 1))?;
        archive.file("/init", 0o755, INIT)?;
        archive.file("/bin/busybox", 0o755, busybox)?;
        archive.file("/bin/task", 0o755, TASK)?;
        for applet in APPLETS {
            archive.symlink(&format!("/bin/{applet}"), "busybox")?;
        }
        for (number, module) in modules.iter().enumerate() {
            let path = format!("/modules/{number:02}-{}.ko", module.name);
            archive.file(&path, 0o644, &module.content)?;
        }
        archive.finish()
    };
    archive().map_err(|error: std::io::Error| BuildError::Kernel(error.to_string()))
}

/// Takes all files below the directory `id`.
fn collect(tree: &Tree, id: NodeId, modules: &mut Modules) {
    for (name, id) in entries(tree, id) {
        match tree.node(id).map(|node| &node.kind) {
            Some(Kind::Dir(_)) => collect(tree, id, modules),
            Some(Kind::File(content)) => modules.add(&name, content),
            _ => {}
        }
    }
}

fn entries(tree: &Tree, id: NodeId) -> Vec<(String, NodeId)> {
    match tree.node(id).map(|node| &node.kind) {
        Some(Kind::Dir(entries)) => entries
            .iter()
            .map(|(name, id)| (String::from_utf8_lossy(name).into_owned(), *id))
            .collect(),
        _ => Vec::new(),
    }
}

impl Flavour {
    /// As it is written after `debian:`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Amd64 => "amd64",
        }
    }
}
