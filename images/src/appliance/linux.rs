//! `[linux]`: an appliance whose replicas boot a Linux kernel of their own.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::Deserializer;

use super::{Appliance, Filesystem, ImageSource, Root, check, checked};
use crate::size;

/// Most CPUs of one replica.
pub const MAX_CPUS: u8 = 16;
/// Least memory of a Linux guest, bytes: Debian's kernel and the initial RAM disk do not fit into less.
pub const MIN_LINUX_RAM: u64 = 96 << 20;
/// Most bytes of `cmdline`: the kernel takes 2048 in all, and the builder and the VMM add theirs.
pub const MAX_CMDLINE: usize = 1024;
/// Most names in `modules` (R10).
pub const MAX_MODULES: usize = 64;
/// Free bytes on the root file system when `free` says nothing.
pub const DEFAULT_FREE: u64 = 256 << 20;
/// How long a boot may take when `boot_timeout_ms` says nothing.
pub const DEFAULT_BOOT_TIMEOUT_MS: u64 = 60_000;
/// Most free bytes on the root file system.
pub const MAX_FREE: u64 = 64 << 30;
/// The program that the kernel's own user space starts with, if the appliance names none.
const DEFAULT_INIT: &str = "/sbin/init";

/// `[linux]`. With it the replicas are Linux machines: kernel, initial RAM disk, and the image as an ext4 root disk.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinuxSpec {
    /// The kernel; default Debian's cloud kernel.
    #[serde(deserialize_with = "kernel")]
    pub kernel: KernelSource,
    /// The initial RAM disk; default `auto`.
    #[serde(deserialize_with = "initramfs")]
    pub initramfs: Initramfs,
    /// Appended to the kernel's command line, after what is needed; default nothing.
    #[serde(deserialize_with = "cmdline")]
    pub cmdline: String,
    /// Virtual CPUs of each replica, 1 to [`MAX_CPUS`]; default 1.
    #[serde(deserialize_with = "cpus")]
    pub cpus: u8,
    /// Which device the console is; default `ttyS0`.
    pub console: Console,
    /// The image's own init, started as process 1 when `[program]` has no `command`; default `/sbin/init`.
    #[serde(deserialize_with = "init")]
    pub init: Option<String>,
    /// Kernel modules to load besides those for the machine's devices.
    #[serde(deserialize_with = "modules")]
    pub modules: Vec<String>,
    /// How long a replica may take from power-on until its published TCP ports are listened on, milliseconds: so long connections to it
    /// wait, and it is not blamed for being late. 100 to 3,600,000; default [`DEFAULT_BOOT_TIMEOUT_MS`].
    #[serde(deserialize_with = "boot_timeout")]
    pub boot_timeout_ms: u64,
    /// Free bytes on the root file system that is made from the image; default [`DEFAULT_FREE`]. They take no room on the host.
    #[serde(deserialize_with = "free")]
    pub free: u64,
}

/// `linux` of `[[replica]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicaLinux {
    /// Its kernel instead of that of `[linux]`.
    #[serde(deserialize_with = "maybe_kernel")]
    pub kernel: Option<KernelSource>,
    /// Appended to the command line, after what `[linux]` appends.
    #[serde(deserialize_with = "cmdline")]
    pub cmdline: String,
}

impl ReplicaLinux {
    /// Changes what all replicas have into what this one has.
    pub(super) fn apply(&self, linux: &mut LinuxSpec) {
        if let Some(kernel) = &self.kernel {
            linux.kernel = kernel.clone();
        }
        if !self.cmdline.is_empty() {
            let both = format!("{} {}", linux.cmdline, self.cmdline);
            linux.cmdline = both.trim().to_owned();
        }
    }
}

/// Where a kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KernelSource {
    /// `debian:FLAVOUR[@VERSION]`: the release's own, or the newest that begins with `VERSION` of the release or its backports.
    Debian {
        /// Its flavour.
        flavour: Flavour,
        /// Beginning of its version, such as `6.12`.
        version: Option<String>,
    },
    /// A bzImage or an ELF file of the host; relative to the appliance file.
    File(PathBuf),
}

/// A configuration that Debian builds its kernels in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// `cloud-amd64`: devices of virtual machines only.
    Cloud,
    /// `amd64`: everything.
    Amd64,
}

impl Flavour {
    /// The package that depends on the newest kernel of this flavour.
    #[must_use]
    pub const fn package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Amd64 => "linux-image-amd64",
        }
    }
}

/// The initial RAM disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Initramfs {
    /// `auto`: made here from the kernel's modules.
    Auto,
    /// `none`: the kernel mounts the root by itself.
    None,
    /// A file of the host; relative to the appliance file.
    File(PathBuf),
}

/// Which device the guest's console is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Console {
    /// The serial port.
    #[default]
    #[serde(rename = "ttyS0")]
    TtyS0,
    /// The virtio console. What the kernel says before its driver is loaded goes to the serial port.
    Hvc0,
}

impl Console {
    /// The device's name, as after `console=`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TtyS0 => "ttyS0",
            Self::Hvc0 => "hvc0",
        }
    }
}

impl Default for LinuxSpec {
    fn default() -> Self {
        Self {
            kernel: KernelSource::Debian {
                flavour: Flavour::Cloud,
                version: None,
            },
            initramfs: Initramfs::Auto,
            cmdline: String::new(),
            cpus: 1,
            console: Console::default(),
            init: None,
            modules: Vec::new(),
            boot_timeout_ms: DEFAULT_BOOT_TIMEOUT_MS,
            free: DEFAULT_FREE,
        }
    }
}

impl LinuxSpec {
    /// The program that becomes process 1 when no `command` is given.
    #[must_use]
    pub fn init(&self) -> &str {
        self.init.as_deref().unwrap_or(DEFAULT_INIT)
    }
}

/// Checks what depends on several tables. An error has the table that it is about and its number among those of that name.
pub(super) fn check_all(appliance: &Appliance) -> Result<(), (&'static str, usize, String)> {
    let Some(linux) = &appliance.linux else {
        return Ok(());
    };
    let fail = |table, text: String| Err((table, 0, text));
    if appliance.machine.memory < MIN_LINUX_RAM {
        return fail(
            "machine",
            format!(
                "key \"memory\" in [machine]: {} are too little for a Linux guest: at least {}",
                size::format(appliance.machine.memory),
                size::format(MIN_LINUX_RAM)
            ),
        );
    }
    let has_command = !appliance.program.command.is_empty();
    if linux.init.is_some() && has_command {
        return fail(
            "linux",
            "key \"init\" in [linux]: [program] has a command, which is then started in place of the image's own init: give one of them".to_owned(),
        );
    }
    if linux.initramfs == Initramfs::None {
        let needs = match appliance.machine.root {
            Root::Memory => Some("root = \"memory\" of [machine]"),
            _ if has_command || matches!(appliance.image.source, ImageSource::Oci { .. }) => {
                Some("a command")
            }
            _ if appliance.disks.iter().any(|disk| disk.mount.is_some()) => {
                Some("`mount` of [[disk]]")
            }
            _ if !appliance.tmpfs.is_empty() => Some("[[tmpfs]]"),
            _ if !linux.modules.is_empty() => Some("`modules`"),
            _ => None,
        };
        if let Some(what) = needs {
            return fail(
                "linux",
                format!(
                    "key \"initramfs\" in [linux]: without one there is no {what}: it is the initial RAM disk that sees to it"
                ),
            );
        }
    }
    if let Root::Disk(name) = &appliance.machine.root
        && let Some(number) = appliance.disks.iter().position(|disk| disk.name == *name)
        && let Some(disk) = appliance.disks.get(number)
    {
        let problem = if disk.filesystem != Filesystem::Ext4 {
            Some("it must be ext4")
        } else if disk.seed.is_some() {
            Some("it has no `seed`: it is made from the image")
        } else {
            None
        };
        if let Some(problem) = problem {
            let text = format!("disk {name} is the root of a Linux guest: {problem}");
            return Err(("disk", number, text));
        }
    }
    Ok(())
}

fn maybe_kernel<'de, D: Deserializer<'de>>(d: D) -> Result<Option<KernelSource>, D::Error> {
    kernel(d).map(Some)
}

fn kernel<'de, D: Deserializer<'de>>(d: D) -> Result<KernelSource, D::Error> {
    checked(d, |text: String| {
        let Some(rest) = text.strip_prefix("debian:") else {
            return file(&text).map(KernelSource::File);
        };
        let (flavour, version) = match rest.split_once('@') {
            Some((flavour, version)) => (flavour, Some(version)),
            None => (rest, None),
        };
        let flavour = match flavour {
            "cloud" => Flavour::Cloud,
            "amd64" => Flavour::Amd64,
            other => {
                return Err(format!(
                    "`{other}` is no flavour of Debian's kernel: debian:cloud and debian:amd64 are possible"
                ));
            }
        };
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '~');
        if version.is_some_and(|v| {
            !v.starts_with(|c: char| c.is_ascii_digit()) || v.len() > 64 || !v.chars().all(good)
        }) {
            return Err(format!(
                "`{text}`: after `@` comes the beginning of a version, such as 6.12"
            ));
        }
        Ok(KernelSource::Debian {
            flavour,
            version: version.map(str::to_owned),
        })
    })
}

fn initramfs<'de, D: Deserializer<'de>>(d: D) -> Result<Initramfs, D::Error> {
    checked(d, |text: String| match text.as_str() {
        "auto" => Ok(Initramfs::Auto),
        "none" => Ok(Initramfs::None),
        path => file(path).map(Initramfs::File),
    })
}

fn file(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("the path of a file is empty or has a NUL character in it".to_owned());
    }
    Ok(PathBuf::from(text))
}

fn cmdline<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    checked(d, |text: String| {
        if text.len() > MAX_CMDLINE {
            return Err(format!(
                "{} bytes for the kernel: {MAX_CMDLINE} are the most",
                text.len()
            ));
        }
        if !text.chars().all(|c| c == ' ' || c.is_ascii_graphic()) {
            return Err(
                "the kernel's command line is of printable ASCII characters only".to_owned(),
            );
        }
        Ok(text.trim().to_owned())
    })
}

fn cpus<'de, D: Deserializer<'de>>(d: D) -> Result<u8, D::Error> {
    checked(d, |n: i64| match u8::try_from(n) {
        Ok(n) if (1..=MAX_CPUS).contains(&n) => Ok(n),
        _ => Err(format!("{n} CPUs are not possible: 1 to {MAX_CPUS}")),
    })
}

fn init<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    checked(d, |path: String| {
        check::absolute_or_why(&path)?;
        Ok(Some(path))
    })
}

fn modules<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    checked(d, |names: Vec<String>| {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let bad = |name: &&String| name.is_empty() || name.len() > 64 || !name.chars().all(good);
        if let Some(name) = names.iter().find(bad) {
            return Err(format!("`{name}` is not a name of a kernel module"));
        }
        if names.len() > MAX_MODULES {
            return Err(format!(
                "{} modules: {MAX_MODULES} are the most",
                names.len()
            ));
        }
        Ok(names)
    })
}

fn boot_timeout<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    checked(d, |ms: i64| match u64::try_from(ms) {
        Ok(ms) if (100..=3_600_000).contains(&ms) => Ok(ms),
        _ => Err(format!(
            "{ms} ms are not possible: 100 to 3,600,000 (an hour)"
        )),
    })
}

fn free<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    checked(d, |text: String| {
        let bytes = size::parse(&text).map_err(|e| e.to_string())?;
        if bytes > MAX_FREE {
            return Err(format!(
                "{text} free is not possible: {} are the most",
                size::format(MAX_FREE)
            ));
        }
        Ok(bytes)
    })
}
