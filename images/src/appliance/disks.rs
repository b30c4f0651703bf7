//! Disks, file systems in memory, and what the guest mounts where.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use quorate_abi::PAGE_SIZE;
use quorate_abi::map::MAX_DISKS;
use quorate_abi::mount::{DISK, MAX_MOUNTS, kind, option};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::{Appliance, check};
use crate::size;

/// Smallest disk with a file system, bytes: below it little is left beside the file system's own journal.
pub const MIN_EXT4: u64 = 16 << 20;
/// Largest disk, bytes.
pub const MAX_DISK: u64 = 1 << 40;
/// All sizes of disks are multiples of this many bytes.
pub const DISK_UNIT: u64 = 4096;
/// Longest name of a disk, so that it fits into the serial that the guest sees.
const MAX_NAME: usize = 20;
/// Directories of the guest that the kernel fills itself.
const KERNELS: &[&str] = &["/dev", "/proc", "/sys"];

/// One `[[disk]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Its name, unique in the appliance: at most 20 letters, digits, `-`, `_` and `.`.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// Size in bytes: a multiple of [`DISK_UNIT`], at most [`MAX_DISK`].
    #[serde(rename = "size", deserialize_with = "disk_size")]
    pub bytes: u64,
    /// What is on it when it is new; default ext4.
    #[serde(default)]
    pub filesystem: Filesystem,
    /// Directory whose files are on it when it is new; relative to the appliance file.
    pub seed: Option<PathBuf>,
    /// Where the guest mounts it: absolute.
    #[serde(default, deserialize_with = "maybe_mount_point")]
    pub mount: Option<String>,
    /// Whether only reads are allowed.
    #[serde(default)]
    pub read_only: bool,
    /// The disk's file; relative to the appliance file. Default: `DISK.img` in the appliance's state directory.
    pub path: Option<PathBuf>,
    /// What to do when the host cannot write it.
    #[serde(default)]
    pub on_error: OnError,
    /// How the relaxed discipline treats it, if the file says so; see [`DiskSpec::vote`].
    pub relaxed: Option<DiskVote>,
    /// What to do about sectors that stay unconfirmed, if the file says so; see [`DiskSpec::on_unconfirmed`].
    pub unconfirmed: Option<Unconfirmed>,
}

/// How the relaxed discipline treats a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskVote {
    /// Writes are released that a majority makes alike; the others are held and reported.
    #[default]
    Vote,
    /// Each replica keeps its own copy of the disk; nothing is ever released.
    Private,
}

/// What to do about sectors that no majority wrote alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unconfirmed {
    /// A flush waits for them, and after the lag timeout somebody is stopped: the minority, or, without a majority, the set
    /// (or the flush fails, with `on_error = "report"`).
    #[default]
    Hold,
    /// A flush goes on without them; they stay with the replica that wrote them, off the disk, and are reported.
    Report,
}

impl DiskSpec {
    /// How the relaxed discipline treats it; default vote.
    #[must_use]
    pub fn vote(&self) -> DiskVote {
        self.relaxed.unwrap_or_default()
    }

    /// What the relaxed discipline does about sectors that stay unconfirmed; default hold.
    #[must_use]
    pub fn on_unconfirmed(&self) -> Unconfirmed {
        self.unconfirmed.unwrap_or_default()
    }
}

/// What is on a new disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// An ext4 file system.
    #[default]
    Ext4,
    /// Zeroes.
    None,
}

/// What to do when the host cannot write to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// End the set and say why.
    #[default]
    Stop,
    /// Tell the guest, in all replicas alike.
    Report,
}

/// One `[[tmpfs]]`: a file system in the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TmpfsSpec {
    /// Where it is mounted: absolute.
    #[serde(deserialize_with = "mount_point")]
    pub path: String,
    /// Bytes that its files may have together.
    #[serde(rename = "size", deserialize_with = "check::window_bytes")]
    pub bytes: u64,
}

/// `root` of `[machine]`: what becomes of changes to the root file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Root {
    /// `memory`: they are kept in memory, and gone when the set ends.
    #[default]
    Memory,
    /// `read-only`: there are none.
    ReadOnly,
    /// `disk:NAME`: they are kept on this disk.
    Disk(String),
}

impl<'de> Deserialize<'de> for Root {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        match text.as_str() {
            "memory" => Ok(Self::Memory),
            "read-only" => Ok(Self::ReadOnly),
            other => match other.strip_prefix("disk:") {
                Some(name) if !name.is_empty() => Ok(Self::Disk(name.to_owned())),
                _ => Err(D::Error::custom(format!(
                    "`{other}` is not one of memory, read-only and disk:NAME"
                ))),
            },
        }
    }
}

/// One mount, as the guest kernel takes it (see [`quorate_abi::mount`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path in the guest.
    pub target: String,
    /// One of [`quorate_abi::mount::kind`].
    pub kind: &'static str,
    /// `diskN`, or empty.
    pub source: String,
    /// Options, separated by commas.
    pub options: String,
}

impl Appliance {
    /// What the guest kernel is to mount: the root first if it is not the usual one, then the others, each after those that
    /// it lies in.
    #[must_use]
    pub fn mounts(&self) -> Vec<Mount> {
        let root = match &self.machine.root {
            Root::Memory => None,
            Root::ReadOnly => Some((kind::IMAGE, String::new(), option::READ_ONLY)),
            Root::Disk(name) => {
                let number = self.disks.iter().position(|disk| disk.name == *name);
                let source = number.map_or_else(String::new, |number| format!("{DISK}{number}"));
                Some((kind::OVERLAY, source, option::READ_WRITE))
            }
        };
        let root = root.map(|(kind, source, options)| Mount {
            target: "/".to_owned(),
            kind,
            source,
            options: options.to_owned(),
        });
        let disks = self.disks.iter().enumerate().filter_map(|(number, disk)| {
            Some(Mount {
                target: disk.mount.clone()?,
                kind: kind::EXT4,
                source: format!("{DISK}{number}"),
                options: if disk.read_only {
                    option::READ_ONLY
                } else {
                    option::READ_WRITE
                }
                .to_owned(),
            })
        });
        let tmpfs = self.tmpfs.iter().map(|tmpfs| Mount {
            target: tmpfs.path.clone(),
            kind: kind::TMPFS,
            source: String::new(),
            options: format!("{}{}", option::SIZE, tmpfs.bytes),
        });
        let mut others: Vec<Mount> = disks.chain(tmpfs).collect();
        // A directory's path is a prefix of those below it, so it sorts before them.
        others.sort_by(|a, b| a.target.cmp(&b.target));
        root.into_iter().chain(others).collect()
    }
}

/// Where an appliance's tables contradict each other: table, number of it, and what is wrong.
pub(super) type Problem = (&'static str, usize, String);

/// Checks disks, file systems in memory and root against each other.
pub(super) fn check_all(appliance: &Appliance) -> Result<(), Problem> {
    let count = appliance.disks.len();
    if count as u64 > MAX_DISKS {
        let text = format!("{count} disks: {MAX_DISKS} are the most");
        return Err(("disk", count - 1, text));
    }
    if let Root::Disk(name) = &appliance.machine.root
        && !appliance.disks.iter().any(|disk| disk.name == *name)
    {
        let text = format!("root = \"disk:{name}\": there is no [[disk]] of this name");
        return Err(("machine", 0, text));
    }
    let mut names = BTreeSet::new();
    let mut paths = BTreeSet::new();
    let mut targets = BTreeSet::new();
    for (number, disk) in appliance.disks.iter().enumerate() {
        let fail = |text: String| Err(("disk", number, format!("disk {}: {text}", disk.name)));
        if !names.insert(disk.name.as_str()) {
            return fail("there is another one of this name".to_owned());
        }
        match &disk.path {
            Some(path) if path == Path::new("") => return fail("path is empty".to_owned()),
            Some(path) if !paths.insert(path) => {
                return fail(format!("{} is another disk's file", path.display()));
            }
            _ => {}
        }
        if disk.filesystem == Filesystem::None && (disk.mount.is_some() || disk.seed.is_some()) {
            return fail("mount and seed need filesystem = \"ext4\"".to_owned());
        }
        if disk.filesystem == Filesystem::Ext4 && disk.bytes < MIN_EXT4 {
            return fail(format!(
                "{} are too little for a file system: at least {}",
                size::format(disk.bytes),
                size::format(MIN_EXT4)
            ));
        }
        let is_root = appliance.machine.root == Root::Disk(disk.name.clone());
        if let Some(target) = &disk.mount
            && !targets.insert(target.as_str())
        {
            return fail(format!("something else is mounted at {target} already"));
        }
        match (disk.filesystem, &disk.mount, is_root) {
            (Filesystem::Ext4, None, false) => {
                return fail(
                    "an ext4 disk needs `mount`, or to be the root (`root = \"disk:NAME\"` in [machine])"
                        .to_owned(),
                );
            }
            (Filesystem::Ext4, Some(_), true) => {
                return fail("it is the root, so it cannot have `mount` too".to_owned());
            }
            (Filesystem::None, _, true) => {
                return fail("the root's disk must have filesystem = \"ext4\"".to_owned());
            }
            _ if is_root && disk.read_only => {
                return fail("the root's disk cannot be read_only".to_owned());
            }
            _ => {}
        }
    }
    for (number, tmpfs) in appliance.tmpfs.iter().enumerate() {
        let fail = |text: String| Err(("tmpfs", number, format!("tmpfs {}: {text}", tmpfs.path)));
        if !targets.insert(tmpfs.path.as_str()) {
            return fail("something else is mounted there already".to_owned());
        }
        if tmpfs.bytes > appliance.machine.memory {
            let memory = size::format(appliance.machine.memory);
            return fail(format!(
                "{} are more than the machine's memory of {memory}",
                size::format(tmpfs.bytes)
            ));
        }
        if !tmpfs.bytes.is_multiple_of(PAGE_SIZE) {
            return fail(format!("size is not a multiple of {PAGE_SIZE}"));
        }
    }
    let mounts = appliance.mounts().len();
    if mounts > MAX_MOUNTS as usize {
        let last = appliance.tmpfs.len().saturating_sub(1);
        let text = format!("{mounts} mounts: {MAX_MOUNTS} are the most");
        return Err(("tmpfs", last, text));
    }
    Ok(())
}

/// Bytes that the mounts take among the boot strings.
pub(super) fn strings_len(appliance: &Appliance) -> usize {
    let len = |mount: &Mount| {
        mount.target.len() + mount.kind.len() + mount.source.len() + mount.options.len()
    };
    let each = quorate_abi::mount::STRINGS;
    appliance
        .mounts()
        .iter()
        .map(|mount| len(mount) + each)
        .sum()
}

fn name<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    super::checked(d, |text: String| {
        let text = check::name_or_why(text)?;
        if text.len() > MAX_NAME {
            return Err(format!("`{text}` is longer than {MAX_NAME} characters"));
        }
        Ok(text)
    })
}

fn disk_size<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    super::checked(d, |text: String| {
        let bytes = size::parse(&text).map_err(|e| e.to_string())?;
        if bytes == 0 || bytes > MAX_DISK {
            let most = size::format(MAX_DISK);
            return Err(format!(
                "a disk of {text} is not possible: at most {most}, and not 0"
            ));
        }
        if !bytes.is_multiple_of(DISK_UNIT) {
            return Err(format!("{bytes} bytes are no multiple of {DISK_UNIT}"));
        }
        Ok(bytes)
    })
}

fn mount_point<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    super::checked(d, mount_point_or_why)
}

fn maybe_mount_point<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    super::checked(d, |path: String| mount_point_or_why(path).map(Some))
}

fn mount_point_or_why(path: String) -> Result<String, String> {
    check::absolute_or_why(&path)?;
    if path == "/" {
        return Err("for `/` write root = \"disk:NAME\" in [machine]".to_owned());
    }
    // One way to write each path, so that the same place cannot be mounted twice.
    let odd = |part: &str| part.is_empty() || part == ".";
    if path.split('/').skip(1).any(odd) {
        return Err(format!(
            "write `{path}` without `//`, `/.` and a `/` at its end"
        ));
    }
    let inside = |top: &&&str| {
        path.strip_prefix(**top)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if let Some(top) = KERNELS.iter().find(inside) {
        return Err(format!(
            "nothing can be mounted in {top}: it is the kernel's"
        ));
    }
    Ok(path)
}
