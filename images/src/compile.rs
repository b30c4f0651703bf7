//! Programs that are compiled from Debian's source packages, with patches of the appliance's own.
//!
//! The appliance names the source package, the patches, and a script that builds it; what the script puts into `$OUT` goes into the
//! image. It runs on the host as whoever builds the image, so an appliance with `sources` is to be trusted as a makefile is. What it
//! gave is kept in the cache under a key of all that it comes from: the digests of the source package's files and of the packages
//! it needs, the patches and the script.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::appliance::{Appliance, SourceSpec};
use crate::build::Progress;
use crate::debian::{self, Source, tail};
use crate::error::BuildError;
use crate::hostdir;
use crate::tree::{Kind, Tree, TreeError};

/// How long a script may take, seconds (R10).
const BUILD_LIMIT_S: u32 = 1800;
/// How long it may then take to end, seconds.
const KILL_AFTER_S: u32 = 10;
/// How much of what a script wrote an error message repeats, bytes.
const MAX_OUTPUT: usize = 2000;
/// Compiled programs that the cache keeps (R10); the oldest go when another is compiled.
const KEPT_BUILDS: usize = 16;
/// Hexadecimal digits of a key in a file name.
const KEY_DIGITS: usize = 16;
/// What a build needs of the host, and the packages that have it.
const TOOLS: &[(&str, &str)] = &[
    ("dpkg-source", "dpkg-dev"),
    ("dpkg-deb", "dpkg"),
    ("patch", "patch"),
    ("make", "make"),
    ("cc", "gcc libc6-dev"),
    ("timeout", "coreutils"),
];

/// Everything that one entry of `sources` depends on, read.
pub(crate) struct Recipe<'a> {
    spec: &'a SourceSpec,
    source: &'a Source,
    script: PathBuf,
    patches: Vec<PathBuf>,
    /// Of all of it.
    pub(crate) key: String,
}

impl<'a> Recipe<'a> {
    /// Reads patches and script of `spec`, whose source package is `source`.
    pub(crate) fn read(
        appliance: &Appliance,
        spec: &'a SourceSpec,
        source: &'a Source,
    ) -> Result<Self, BuildError> {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for file in source.files.iter().chain(&source.needs) {
            field(file.file.as_bytes());
            field(file.sha256.as_bytes());
        }
        field(&(source.files.len() as u64).to_le_bytes());
        let script = absolute(appliance.resolve(&spec.script))?;
        let patches = spec.patches.iter();
        let patches = patches.map(|path| absolute(appliance.resolve(path)));
        let patches = patches.collect::<Result<Vec<_>, _>>()?;
        for path in std::iter::once(&script).chain(&patches) {
            field(&fs::read(path).map_err(BuildError::io("read", path))?);
        }
        field(&appliance.epoch().to_le_bytes());
        Ok(Self {
            spec,
            source,
            script,
            patches,
            key: hasher.finalize().to_hex().to_string(),
        })
    }

    fn place(&self, cache: &Path) -> PathBuf {
        let key = self.key.get(..KEY_DIGITS).unwrap_or(&self.key);
        let name = format!("{}-{key}", self.spec.package);
        cache.join("built").join(name)
    }

    /// Compiles it, if that was not done before, and puts what it gave into `tree`.
    pub(crate) fn add(
        &self,
        appliance: &Appliance,
        cache: &Path,
        tree: &mut Tree,
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<(), BuildError> {
        let place = self.place(cache);
        if !place.is_dir() {
            let what = &self.spec.package;
            progress(Progress::Compiling { what });
            self.compile(appliance, cache, &place)?;
            prune(cache, &place);
        }
        let built = hostdir::read(&place, appliance.epoch())?;
        overlay(tree, &built).map_err(|source| BuildError::Tree {
            origin: format!("source package {}", self.spec.package),
            source,
        })
    }

    fn compile(&self, appliance: &Appliance, cache: &Path, place: &Path) -> Result<(), BuildError> {
        check_tools()?;
        let parent = cache.join("built");
        let made = || BuildError::io("make the directory", &parent);
        fs::create_dir_all(&parent).map_err(made())?;
        let directory = tempfile::Builder::new()
            .prefix(".building-")
            .tempdir_in(absolute(parent.clone())?)
            .map_err(made())?;
        let at = |name: &str| directory.path().join(name);
        let (source, sysroot, out) = (at("source"), at("sysroot"), at("out"));
        for directory in [&sysroot, &out] {
            fs::create_dir(directory).map_err(made())?;
        }
        let log = at("log");
        let what = &self.spec.package;
        let run = |action: &str, command: Command| run(what, action, command, &log);

        let description = self
            .source
            .description()
            .ok_or_else(|| BuildError::Compile {
                what: what.clone(),
                reason: "the source package has no description".to_owned(),
            })?;
        // Digests were checked against the signed package list, so no key of a maintainer is needed.
        let mut unpack = Command::new("dpkg-source");
        unpack.args(["--no-check", "-x"]);
        let description = debian::source_path(cache, description);
        unpack.arg(absolute(description)?).arg(&source);
        run("unpack it", unpack)?;
        for path in &self.patches {
            let mut patch = Command::new("patch");
            patch.args(["--batch", "--forward", "--strip=1", "--input"]);
            patch.arg(path).current_dir(&source);
            run(&format!("apply {}", path.display()), patch)?;
        }
        for package in &self.source.needs {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("-x");
            unpack.arg(debian::deb_path(cache, package)).arg(&sysroot);
            run(&format!("unpack {}", package.file), unpack)?;
        }
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut script = Command::new("timeout");
        script
            .arg(format!("--kill-after={KILL_AFTER_S}"))
            .arg(BUILD_LIMIT_S.to_string())
            .arg(&self.script)
            .current_dir(&source)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", directory.path())
            .env("LC_ALL", "C")
            .env("OUT", &out)
            .env("SYSROOT", &sysroot)
            .env("JOBS", jobs.to_string())
            .env("SOURCE_DATE_EPOCH", appliance.epoch().to_string());
        run("run the script", script)?;
        fs::rename(&out, place).map_err(BuildError::io("keep what was compiled", place))
    }
}

/// Runs `command`, whose output goes into `log`.
fn run(what: &str, action: &str, mut command: Command, log: &Path) -> Result<(), BuildError> {
    let io_error = || BuildError::io("write the log of the build", log);
    let file = File::create(log).map_err(io_error())?;
    command
        .stdin(Stdio::null())
        .stderr(file.try_clone().map_err(io_error())?)
        .stdout(file);
    let fail = |reason: String| BuildError::Compile {
        what: what.to_owned(),
        reason: format!("cannot {action}: {reason}"),
    };
    let status = command.status().map_err(|error| fail(error.to_string()))?;
    if status.success() {
        return Ok(());
    }
    // timeout(1) says that time is up by this status.
    if status.code() == Some(124) {
        return Err(fail(format!("it took longer than {BUILD_LIMIT_S} seconds")));
    }
    let text = fs::read(log).map_err(io_error())?;
    let text = String::from_utf8_lossy(&text);
    Err(fail(format!(
        "{status}; the end of what it wrote:\n{}",
        tail(text.trim(), MAX_OUTPUT)
    )))
}

/// Whether the host has what a build needs; otherwise says which packages to install.
fn check_tools() -> Result<(), BuildError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let missing = TOOLS.iter().filter(|(tool, _)| !there(tool));
    let packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    Err(BuildError::NoCompiler {
        packages: packages.join(" "),
    })
}

/// Puts everything of `from` into `tree`, over what is there.
fn overlay(tree: &mut Tree, from: &Tree) -> Result<(), TreeError> {
    let mut todo = vec![(from.root(), Vec::new())];
    while let Some((id, path)) = todo.pop() {
        let Some(node) = from.node(id) else { continue };
        match &node.kind {
            Kind::Dir(entries) => {
                if !path.is_empty() {
                    tree.dir(&path, node.meta)?;
                }
                todo.extend(entries.iter().map(|(name, id)| {
                    let below = [path.as_slice(), b"/", name].concat();
                    (*id, below)
                }));
            }
            Kind::File(content) => tree.file(&path, node.meta, content.clone())?,
            Kind::Symlink(target) => tree.symlink(&path, node.meta, target)?,
            Kind::Special(special) => tree.special(&path, node.meta, *special)?,
        }
    }
    Ok(())
}

/// Keeps the newest [`KEPT_BUILDS`].
fn prune(cache: &Path, newest: &Path) {
    let Ok(entries) = fs::read_dir(cache.join("built")) else {
        return;
    };
    let mut all: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.path() != newest)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    all.sort();
    all.truncate(all.len().saturating_sub(KEPT_BUILDS - 1));
    for (_, path) in all {
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove an old build of the cache");
        }
    }
}

fn absolute(path: PathBuf) -> Result<PathBuf, BuildError> {
    fs::canonicalize(&path).map_err(BuildError::io("find", &path))
}
