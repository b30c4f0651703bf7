//! The appliance file.
//!
//! ```toml
//! version = 1
//! name = "redis"
//!
//! [image]                           # exactly one of packages, directory, oci, file
//! packages = ["redis-server"]       # Debian packages with their dependencies
//! # directory = "rootfs"            # relative to this file
//! # oci = "image.tar"               # OCI layout (directory or archive) or what `docker save` writes
//! # tag = "redis:7"                 # which image of `oci`, if it has several
//! # file = "prebuilt.qimg"
//! # without = ["perl"]              # packages taken as installed: neither they nor what only they need go in
//! # suite = "trixie"                # the packages are those of this suite of Debian, not of the machine's package sources
//! # sources = [{ package = "redis", patches = ["a.patch"], script = "build", needs = ["libjemalloc-dev"] }] # compiled from Debian's sources
//! # epoch = 1767225600              # time of files that come from the host; package files are not later than it
//! # files = [{ path = "/etc/redis.conf", content = "save ''\n", mode = 0o644 }, { path = "/etc/b", source = "b.txt" }, { path = "/bin/sh", link = "busybox" }]
//!
//! [program]
//! command = ["/usr/bin/redis-server", "--save", ""]
//! # env = { LANG = "C.UTF-8" }      # default: PATH and HOME only
//! # cwd = "/"
//! # uid = 0
//! # gid = 0
//! # user = "www-data"               # instead of uid and gid: NAME[:GROUP] of the image's /etc/passwd and /etc/group, or numbers
//! # groups = ["adm", 44]            # other groups
//! # hostname = "redis"              # default: the appliance's name
//!
//! [machine]
//! # memory = "256M"
//! # replicas = 3                    # 1 to 9
//! # layout = "random"               # or "same"
//! # root = "memory"                 # changes to the image: "memory", "read-only" (none), "disk:NAME" (kept there)
//!
//! [[disk]]                          # none, or several
//! name = "data"
//! size = "256M"
//! mount = "/data"                   # unless filesystem is "none" or it is the root
//! # filesystem = "ext4"             # or "none"
//! # seed = "files"                  # directory whose files are on the new disk; relative to this file
//! # read_only = false
//! # path = "data.img"               # relative to this file; default: NAME.img in the appliance's state directory
//! # on_error = "stop"               # or "report": the guest gets an I/O error
//! # relaxed = "vote"                # or "private": each replica keeps its own copy, nothing is ever released
//! # unconfirmed = "hold"            # flushes wait for a majority; "report": what stays unconfirmed is kept off the disk and reported
//!
//! [[tmpfs]]                         # none, or several
//! path = "/var/tmp"
//! size = "16M"
//!
//! [network]
//! # publish = ["6379:6379"]         # [ADDR:]HOST:GUEST[/udp]
//!
//! [policy]
//! # no_quorum = "stop"              # or "hold"
//! # lag_timeout_ms = 2000
//! # window_boundaries = 4096
//! # window_bytes = "64M"
//!
//! [linux]                           # the replicas are Linux machines (docs/linux-appliances.md)
//! # kernel = "debian:cloud"         # "debian:amd64", "debian:cloud@6.12" (also of the backports), or a file
//! # initramfs = "auto"              # "none", or a file
//! # cmdline = "mitigations=off"     # appended to the kernel's command line
//! # cpus = 1
//! # console = "ttyS0"               # or "hvc0"
//! # init = "/sbin/init"             # of the image, unless [program] has a command
//! # modules = ["nf_tables"]         # loaded besides those of the machine's devices
//! # free = "256M"                   # free room on the root file system
//!
//! [recovery]
//! # enabled = true                  # a replica that was stopped comes back
//! # checkpoint_interval_ms = 1000   # 0: no checkpoints; default 250, and 5000 for Linux machines
//! # checkpoint_journal = "64M"      # one also after so much journal
//! # history = "64M"                 # how much journal is kept from the very beginning
//! # keep = 2                        # checkpoints of each replica
//! # crash_limit = 10                # whoever fails so often
//! # crash_window_s = 30             # within so many seconds is left out
//!
//! [relaxed]                         # replicas run on their own and are compared by what they say (docs/versions.md)
//! # policy = "majority"             # or "primary-with-fallback", "canary"
//! # difference = "stop"             # or "report": whoever differs is only left out of that connection
//! # patience_ms = 1000              # primary-with-fallback: how long an answer waits for the other version's agreement
//! # sync = ["tcp:5432", "disk:data"] # channels where input waits for the vote
//!
//! [[replica]]                       # none, or one for each replica, in order: what it has of its own
//! # name = "new"
//! # role = "voter"                  # or "primary", "canary"
//! # image = { packages = ["…"] }    # as [image], instead of it
//! # command = ["/usr/bin/…"]        # instead of [program]'s
//! # env = { A = "1" }               # besides [program]'s
//!
//! [[mask]]                          # none, or several: what replicas may say differently
//! # name = "date"
//! # ports = ["80"]                  # the guest's; default: all published TCP ports
//! # console = true                  # instead of ports
//! http-header = "Date"              # the value of a header of HTTP answers
//! # pattern = 'sid=([0-9a-f]{32})'  # or: the groups of a regular expression over bytes
//! # translate = true                # put what a replica calls it (of the same length) back into its inputs
//! ```
//!
//! `[relaxed]` or `[[replica]]` choose the relaxed discipline; without them replicas run in lockstep.
//!
//! With `oci` the image itself says command, environment, working directory and user; what `[program]` says takes their place
//! (variables one by one).
//!
//! The values behind `#` are the defaults, or examples where there is none. Unknown keys are refused, with their line.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::error::ApplianceError;

mod check;
mod disks;
mod explain;
mod linux;
mod masks;
mod program;
mod recovery;
mod relaxed;
mod replicas;

pub use check::check_memory;
pub(crate) use check::strings_fit as check_strings;
pub use disks::{
    DISK_UNIT, DiskSpec, DiskVote, Filesystem, MAX_DISK, Mount, OnError, Root, TmpfsSpec,
    Unconfirmed,
};
pub use linux::{
    Console, Flavour, Initramfs, KernelSource, LinuxSpec, MAX_CMDLINE, MAX_CPUS, MIN_LINUX_RAM,
    ReplicaLinux,
};
pub use masks::{MAX_COMPILED, MAX_MASKS, MAX_PATTERN, MaskRule, MaskSpec};
pub(crate) use program::default_env;
pub use program::{Id, MAX_GROUPS, Program, User};
pub use recovery::{MAX_KEEP, Recovery};
pub use relaxed::{
    ConsoleLines, GuestPort, MAX_SYNC, OnDifference, Relaxed, SyncChannel, VersionPolicy,
};
pub use replicas::{ReplicaSpec, Role};

/// The only version of the file format there is.
pub const APPLIANCE_VERSION: i64 = 1;
/// Upper bound of the appliance file in bytes.
pub const MAX_FILE: u64 = 1 << 20;
/// Most `sources` of an image (R10).
pub const MAX_SOURCES: usize = 16;
/// Largest number of replicas.
pub const MAX_REPLICAS: u8 = 9;
/// Time of files that come from the host when the appliance gives no `epoch`: 2026-01-01T00:00:00Z. One constant, so that the
/// image does not depend on when the file was checked out.
pub const DEFAULT_EPOCH: i64 = 1_767_225_600;

/// An appliance: what to run and on what.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Appliance {
    /// [`APPLIANCE_VERSION`].
    #[serde(deserialize_with = "check::version")]
    pub version: i64,
    /// Its name: letters, digits, `-`, `_` and `.`, at most 63.
    #[serde(deserialize_with = "check::name")]
    pub name: String,
    /// Where the root file system comes from.
    pub image: ImageSpec,
    /// What to run; an OCI image may say it itself.
    #[serde(default)]
    pub program: Program,
    /// The machine to run it on.
    #[serde(default)]
    pub machine: MachineSpec,
    /// Its disks, in the order of their numbers.
    #[serde(default, rename = "disk")]
    pub disks: Vec<DiskSpec>,
    /// File systems in the guest's memory.
    #[serde(default)]
    pub tmpfs: Vec<TmpfsSpec>,
    /// How the world reaches it.
    #[serde(default)]
    pub network: NetworkSpec,
    /// What to do when replicas disagree or lag.
    #[serde(default)]
    pub policy: Policy,
    /// How replicas come back.
    #[serde(default)]
    pub recovery: Recovery,
    /// The kernel, if the replicas are Linux machines.
    #[serde(default)]
    pub linux: Option<LinuxSpec>,
    /// The relaxed discipline, if the file says it; see [`Appliance::is_relaxed`].
    pub relaxed: Option<Relaxed>,
    /// What each replica has of its own; empty, or one for each.
    #[serde(default, rename = "replica")]
    pub replicas: Vec<ReplicaSpec>,
    /// What replicas may say differently.
    #[serde(default, rename = "mask")]
    pub masks: Vec<MaskSpec>,
    /// Which replica's image this is about, if it has one of its own ([`Appliance::replica`]): its name or number.
    #[serde(skip)]
    pub variant: Option<String>,
    /// The root disk that was built for a Linux machine ([`crate::BuiltImage::settle`]): the disk of `root = "disk:NAME"` is made
    /// from it.
    #[serde(skip)]
    pub root_image: Option<PathBuf>,
    /// The file that it was read from (empty when it was parsed from text alone).
    #[serde(skip)]
    pub path: PathBuf,
}

/// `[image]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawImage")]
pub struct ImageSpec {
    /// Where the files come from.
    pub source: ImageSource,
    /// Files put on top.
    pub files: Vec<ExtraFile>,
    /// Packages that are taken as installed.
    pub without: Vec<String>,
    /// Suite of Debian that the packages come from; by default what the machine's own package sources have.
    pub suite: Option<String>,
    /// Programs compiled from source packages, put on top of the packages' files.
    pub sources: Vec<SourceSpec>,
    /// Time of files that come from the host, seconds since 1970; default [`DEFAULT_EPOCH`]. When it is given, files of
    /// packages are not later than it either.
    pub epoch: Option<i64>,
}

/// One of `sources` of `[image]`: a program that is compiled from a source package of Debian's, with patches of one's own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSpec {
    /// The source package.
    #[serde(deserialize_with = "check::package")]
    pub package: String,
    /// Its version; default the newest of the suite.
    #[serde(default, deserialize_with = "check::package_version")]
    pub version: Option<String>,
    /// Patches (for `patch -p1`) besides Debian's own, in this order; relative to the appliance file.
    #[serde(default)]
    pub patches: Vec<PathBuf>,
    /// The program that builds it, run in the source's directory; what it puts into `$OUT` goes into the image. Relative to the
    /// appliance file.
    pub script: PathBuf,
    /// Packages that the script finds unpacked in `$SYSROOT`, with what they depend on.
    #[serde(default, deserialize_with = "check::packages")]
    pub needs: Vec<String>,
}

/// Where an image's files come from. Relative paths are relative to the appliance file ([`Appliance::resolve`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// Debian packages and all that they depend on.
    Packages(Vec<String>),
    /// A directory of the host.
    Directory(PathBuf),
    /// An image of `tag` (if there are several) in an OCI layout, an archive of one, or what `docker save` writes.
    Oci {
        /// The directory or archive.
        path: PathBuf,
        /// The image's name or tag.
        tag: Option<String>,
    },
    /// A ready-made image.
    File(PathBuf),
}

/// A file put into the image besides its source.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawFile")]
pub struct ExtraFile {
    /// Absolute path in the image.
    pub path: String,
    /// Its contents.
    pub content: FileContent,
    /// Permissions; default 0644, or those of the source. A link has none.
    pub mode: Option<u32>,
}

/// Contents of an [`ExtraFile`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileContent {
    /// `content`: the text itself.
    Inline(String),
    /// `source`: a file of the host, relative to the appliance file.
    Source(PathBuf),
    /// `link`: a symbolic link with this target.
    Link(String),
}

/// `[machine]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineSpec {
    /// Guest memory in bytes, whole pages; default 256 MiB.
    #[serde(deserialize_with = "check::memory")]
    pub memory: u64,
    /// Replicas, 1 to [`MAX_REPLICAS`]; default 3.
    #[serde(deserialize_with = "check::replicas")]
    pub replicas: u8,
    /// Whether replicas differ in their addresses; default random.
    pub layout: LayoutPolicy,
    /// What becomes of changes to the root file system; default [`Root::Memory`].
    pub root: Root,
}

/// `layout` of `[machine]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayoutPolicy {
    /// All replicas have the same addresses.
    Same,
    /// Each replica has its own.
    #[default]
    Random,
}

/// `[network]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSpec {
    /// Published ports, `[ADDR:]HOST:GUEST[/udp]`; the executor checks them. Default none.
    pub publish: Vec<String>,
}

/// `[policy]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// What to do without a quorum; default stop.
    pub no_quorum: NoQuorum,
    /// A replica that is this far behind in time is stopped, milliseconds; default 2000.
    #[serde(deserialize_with = "check::positive")]
    pub lag_timeout_ms: u64,
    /// How many boundaries the fastest replica may be ahead of the slowest; default 4096 (R10).
    #[serde(deserialize_with = "check::positive")]
    pub window_boundaries: u64,
    /// How many bytes of output may wait for a quorum; default 64 MiB (R10).
    #[serde(deserialize_with = "check::window_bytes")]
    pub window_bytes: u64,
}

/// `no_quorum` of `[policy]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoQuorum {
    /// End the set.
    #[default]
    Stop,
    /// Release nothing and wait.
    Hold,
}

impl Default for MachineSpec {
    fn default() -> Self {
        Self {
            memory: 256 << 20,
            replicas: 3,
            layout: LayoutPolicy::default(),
            root: Root::default(),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            no_quorum: NoQuorum::default(),
            lag_timeout_ms: 2000,
            window_boundaries: 4096,
            window_bytes: 64 << 20,
        }
    }
}

impl Appliance {
    /// Reads the appliance file at `path`.
    ///
    /// # Errors
    /// [`ApplianceError`], which names file, line and key.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ApplianceError> {
        let path = path.as_ref();
        let text = check::read_text(path).map_err(|source| ApplianceError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Reads `text` as the appliance file that is called `path`.
    ///
    /// # Errors
    /// [`ApplianceError::Parse`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ApplianceError> {
        let fail = |(line, message)| ApplianceError::Parse {
            path: path.to_owned(),
            line,
            message,
        };
        explain::check_version(text).map_err(fail)?;
        let mut appliance: Self =
            toml::from_str(text).map_err(|e| fail(explain::explain(text, &e)))?;
        appliance.path = path.to_owned();
        if appliance.program.command.is_empty()
            && !matches!(appliance.image.source, ImageSource::Oci { .. })
            && appliance.linux.is_none()
        {
            let there = explain::has_table(text, "program");
            return Err(fail(if there {
                let line = explain::line_of_table(text, "program", 0);
                (line, "missing key \"command\" in [program]".to_owned())
            } else {
                (1, "missing table [program]".to_owned())
            }));
        }
        let given = explain::has_key(text, "machine", "replicas");
        replicas::check_all(&mut appliance, given)
            .and_then(|()| disks::check_all(&appliance))
            .and_then(|()| linux::check_all(&appliance))
            .and_then(|()| relaxed::check_all(&appliance))
            .and_then(|()| masks::check_all(&appliance))
            .map_err(|(table, number, message)| {
                fail((explain::line_of_table(text, table, number), message))
            })?;
        check::strings_fit(&appliance)
            .map_err(|message| fail((explain::line_of_table(text, "program", 0), message)))?;
        Ok(appliance)
    }

    /// `path` of the appliance file as a path of the host: relative ones count from the file's directory.
    #[must_use]
    pub fn resolve(&self, path: &Path) -> PathBuf {
        match self.path.parent() {
            Some(directory) => directory.join(path),
            None => path.to_owned(),
        }
    }

    /// Its lock file: `NAME.lock` beside `NAME.toml`, `NAME.REPLICA.lock` for a replica with an image of its own; none if the
    /// appliance was not read from a file.
    #[must_use]
    pub fn lock_path(&self) -> Option<PathBuf> {
        self.path.file_name()?;
        let extension = match &self.variant {
            Some(variant) => format!("{variant}.lock"),
            None => "lock".to_owned(),
        };
        Some(self.path.with_extension(extension))
    }

    /// The guest's host name.
    #[must_use]
    pub fn hostname(&self) -> &str {
        self.program.hostname.as_deref().unwrap_or(&self.name)
    }

    /// Time of files that come from the host.
    #[must_use]
    pub fn epoch(&self) -> i64 {
        self.image.epoch.unwrap_or(DEFAULT_EPOCH)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawImage {
    #[serde(default, deserialize_with = "check::sources")]
    packages: Option<Vec<String>>,
    directory: Option<PathBuf>,
    oci: Option<PathBuf>,
    tag: Option<String>,
    file: Option<PathBuf>,
    #[serde(default)]
    files: Vec<ExtraFile>,
    #[serde(default, deserialize_with = "check::packages")]
    without: Vec<String>,
    #[serde(default, deserialize_with = "check::suite")]
    suite: Option<String>,
    #[serde(default)]
    sources: Vec<SourceSpec>,
    epoch: Option<i64>,
}

impl TryFrom<RawImage> for ImageSpec {
    type Error = String;

    fn try_from(raw: RawImage) -> Result<Self, String> {
        let sources = [
            raw.packages.map(ImageSource::Packages),
            raw.directory.map(ImageSource::Directory),
            raw.file.map(ImageSource::File),
            raw.oci.map(|path| ImageSource::Oci {
                path,
                tag: raw.tag.clone(),
            }),
        ];
        let mut sources = sources.into_iter().flatten();
        let (Some(source), None) = (sources.next(), sources.next()) else {
            return Err("give exactly one of packages, directory, oci and file".to_owned());
        };
        if raw.tag.is_some() && !matches!(source, ImageSource::Oci { .. }) {
            return Err("tag goes with oci only".to_owned());
        }
        let ready_made = matches!(source, ImageSource::File(_));
        if ready_made && (!raw.files.is_empty() || raw.epoch.is_some()) {
            return Err("files and epoch do not go with file: that image is finished".to_owned());
        }
        if !raw.without.is_empty() && !matches!(source, ImageSource::Packages(_)) {
            return Err("without goes with packages only".to_owned());
        }
        if !raw.sources.is_empty() && !matches!(source, ImageSource::Packages(_)) {
            return Err("sources goes with packages only".to_owned());
        }
        if raw.sources.len() > MAX_SOURCES {
            let count = raw.sources.len();
            return Err(format!("{count} sources: {MAX_SOURCES} are the most"));
        }
        if raw.suite.is_some() && !matches!(source, ImageSource::Packages(_)) {
            return Err("suite goes with packages only".to_owned());
        }
        if raw.epoch.is_some_and(|epoch| epoch < 0) {
            return Err("epoch is before 1970".to_owned());
        }
        Ok(Self {
            source,
            files: raw.files,
            without: raw.without,
            suite: raw.suite,
            sources: raw.sources,
            epoch: raw.epoch,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(deserialize_with = "check::absolute")]
    path: String,
    content: Option<String>,
    source: Option<PathBuf>,
    #[serde(default, deserialize_with = "check::target")]
    link: Option<String>,
    #[serde(default, deserialize_with = "check::mode")]
    mode: Option<u32>,
}

impl TryFrom<RawFile> for ExtraFile {
    type Error = String;

    fn try_from(raw: RawFile) -> Result<Self, String> {
        let content = match (raw.content, raw.source, raw.link) {
            (Some(text), None, None) => FileContent::Inline(text),
            (None, Some(path), None) => FileContent::Source(path),
            (None, None, Some(target)) if raw.mode.is_none() => FileContent::Link(target),
            (None, None, Some(_)) => return Err(format!("{}: a link has no mode", raw.path)),
            _ => {
                return Err(format!(
                    "{}: give exactly one of content, source and link",
                    raw.path
                ));
            }
        };
        Ok(Self {
            path: raw.path,
            content,
            mode: raw.mode,
        })
    }
}

/// Reads a value and checks it; `check` says what is wrong.
fn checked<'de, D, T, U>(
    deserializer: D,
    check: impl FnOnce(T) -> Result<U, String>,
) -> Result<U, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    check(T::deserialize(deserializer)?).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests;
