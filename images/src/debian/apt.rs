//! Runs `apt-get` with a state directory of its own. It reads the machine's package sources and keys, and its package lists if
//! there are any; it writes into the cache directory only.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Package, suite};
use crate::build::Progress;
use crate::error::BuildError;

/// Package lists of the machine.
const SYSTEM_LISTS: &str = "/var/lib/apt/lists";
/// apt's own program for single downloads; it lies outside of PATH.
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";
/// Debian's archive of everything that ever was on its mirrors.
const SNAPSHOT: &str = "https://snapshot.debian.org";
/// How much of apt-get's output an error message repeats, in bytes.
const MAX_OUTPUT: usize = 2000;

/// The file of `package` in the cache.
pub(crate) fn deb_path(cache: &Path, package: &Package) -> PathBuf {
    cache.join("debs").join(&package.file)
}

pub(super) struct Apt {
    system_lists: PathBuf,
    cache: PathBuf,
    config: PathBuf,
    private_lists: PathBuf,
    no_archives: PathBuf,
    snapshot: String,
}

impl Apt {
    /// Writes the configuration; `status` takes the place of dpkg's status file. With a `suite`, packages come from there instead of
    /// the machine's own sources.
    pub(super) fn new(cache: &Path, status: &str, suite: Option<&str>) -> Result<Self, BuildError> {
        let cache = fs::canonicalize(cache).map_err(BuildError::io("find", cache))?;
        let state = match suite {
            Some(suite) => cache.join("apt").join(suite),
            None => cache.join("apt"),
        };
        let private_lists = state.join("lists");
        let no_archives = state.join("no-archives");
        for directory in [
            private_lists.join("partial"),
            no_archives.join("partial"),
            state.join("cache"),
            cache.join("debs/partial"),
        ] {
            fs::create_dir_all(&directory)
                .map_err(BuildError::io("make the directory", &directory))?;
        }
        let status_path = state.join("status");
        crate::cache::replace_file(&status_path, status.as_bytes())?;
        let config = state.join("apt.conf");
        let mut text = config_text(&state, &cache, &status_path);
        if let Some(suite) = suite {
            let list = state.join("sources.list");
            let sources = suite::sources_list(suite)?;
            crate::cache::replace_file(&list, sources.as_bytes())?;
            text.push_str(&format!("Dir::Etc::SourceList \"{}\";\n", list.display()));
            text.push_str("Dir::Etc::SourceParts \"/dev/null\";\n");
        }
        crate::cache::replace_file(&config, text.as_bytes())?;
        Ok(Self {
            // The machine's lists are those of its own sources.
            system_lists: match suite {
                Some(_) => private_lists.clone(),
                None => SYSTEM_LISTS.into(),
            },
            cache,
            config,
            private_lists,
            no_archives,
            snapshot: SNAPSHOT.to_owned(),
        })
    }

    /// Resolves `names` and downloads what they need. Without `refresh` the machine's package lists are tried first, then those
    /// fetched earlier; if there are none, or they are so old that the mirror has other files by now, fresh ones are fetched into
    /// the cache.
    pub(super) fn fetch(
        &self,
        names: &[String],
        refresh: bool,
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<Vec<Package>, BuildError> {
        let at_hand = if refresh {
            Vec::new()
        } else {
            vec![&self.system_lists, &self.private_lists]
        };
        for lists in at_hand.into_iter().filter(|lists| has_lists(lists)) {
            match self.resolve_and_download(lists, names, progress) {
                Ok(packages) => return Ok(packages),
                Err(error @ BuildError::Apt { .. }) => {
                    tracing::info!(%error, lists = %lists.display(), "these package lists do not do");
                }
                Err(error) => return Err(error),
            }
        }
        progress(Progress::UpdatingLists);
        let mut update = self.command(&self.private_lists);
        // Not `--error-on=any`: a source of the machine's that has nothing to do with this may be unreachable. If the one that
        // matters is, resolving says so.
        update.arg("update");
        run(update, "fetch the package lists", &|_| {})?;
        self.resolve_and_download(&self.private_lists, names, progress)
    }

    /// What apt-get says of the files of source package `wanted` (`NAME` or `NAME=VERSION`).
    pub(super) fn source_files(
        &self,
        wanted: &str,
        refresh: bool,
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<String, BuildError> {
        let ask = || {
            let mut ask = self.command(&self.private_lists);
            ask.args(["-qq", "--print-uris", "source", "--", wanted]);
            // So that what is in the working directory does not count as downloaded.
            ask.current_dir(&self.no_archives);
            run(ask, "find the source package", &|_| {})
        };
        if !refresh
            && has_lists(&self.private_lists)
            && let Ok(output) = ask()
        {
            return Ok(output);
        }
        progress(Progress::UpdatingLists);
        let mut update = self.command(&self.private_lists);
        update.arg("update");
        run(update, "fetch the package lists", &|_| {})?;
        ask()
    }

    fn resolve_and_download(
        &self,
        lists: &Path,
        names: &[String],
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<Vec<Package>, BuildError> {
        progress(Progress::Resolving);
        let packages = self.resolve(lists, names)?;
        super::all_there(&packages, &self.cache);
        let mut download = self.command(lists);
        download.args([
            "-q",
            "-y",
            "--download-only",
            "-o",
            "APT::Status-Fd=1",
            "install",
            "--",
        ]);
        download.args(names);
        run(download, "download the packages", &|line| {
            if let Some((percent, what)) = parse_status_line(line) {
                progress(Progress::Downloading { percent, what });
            }
        })?;
        Ok(packages)
    }

    fn resolve(&self, lists: &Path, names: &[String]) -> Result<Vec<Package>, BuildError> {
        let mut resolve = self.command(lists);
        // With archives of its own, which stay empty: what is downloaded already is not printed.
        resolve.arg("-o").arg(format!(
            "Dir::Cache::archives={}",
            self.no_archives.display()
        ));
        resolve.args(["-qq", "-y", "--print-uris", "install", "--"]);
        resolve.args(names);
        let output = run(resolve, "resolve the packages", &|_| {})?;
        let packages = output
            .lines()
            .filter(|line| line.starts_with('\''))
            .map(parse_uri_line)
            .collect::<Result<Vec<_>, _>>()?;
        if packages.is_empty() {
            return Err(BuildError::AptOutput("nothing to install".to_owned()));
        }
        Ok(packages)
    }

    /// Downloads a package by the lock file: from where it was then, else from Debian's archive of all that ever was, as of `day`.
    pub(super) fn download(&self, package: &Package, day: &str) -> Result<(), BuildError> {
        self.download_to(package, &deb_path(&self.cache, package), day)
    }

    /// As [`Apt::download`], into the file `to`.
    pub(super) fn download_to(
        &self,
        package: &Package,
        to: &Path,
        day: &str,
    ) -> Result<(), BuildError> {
        if let Some(directory) = to.parent() {
            fs::create_dir_all(directory)
                .map_err(BuildError::io("make the directory", directory))?;
        }
        let mut last = String::new();
        for uri in std::iter::once(package.uri.clone()).chain(snapshot_uri(
            &package.uri,
            &self.snapshot,
            day,
        )) {
            let mut command = self.program(APT_HELPER, &self.private_lists);
            command
                .arg("download-file")
                .arg(&uri)
                .arg(to)
                .arg(format!("SHA256:{}", package.sha256));
            match run(command, "download a package", &|_| {}) {
                Ok(_) => return Ok(()),
                Err(BuildError::Apt { output, .. }) => {
                    tracing::info!(%uri, %output, "cannot be downloaded");
                    last = output;
                }
                Err(error) => return Err(error),
            }
        }
        Err(BuildError::Gone {
            package: package.name.clone(),
            version: package.version.clone(),
            uri: package.uri.clone(),
            output: last,
        })
    }

    fn command(&self, lists: &Path) -> Command {
        self.program("apt-get", lists)
    }

    fn program(&self, name: &str, lists: &Path) -> Command {
        let mut command = Command::new(name);
        command
            .arg("-c")
            .arg(&self.config)
            .arg("-o")
            .arg(format!("Dir::State::lists={}", lists.display()))
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        command
    }
}

/// Options, in apt.conf(5) syntax, read after the machine's own.
fn config_text(state: &Path, cache: &Path, status: &Path) -> String {
    let mut text = String::new();
    let mut set = |key: &str, value: &str| text.push_str(&format!("{key} \"{value}\";\n"));
    set("Dir::State", &state.display().to_string());
    set("Dir::State::status", &status.display().to_string());
    set("Dir::Cache", &state.join("cache").display().to_string());
    set(
        "Dir::Cache::archives",
        &cache.join("debs").display().to_string(),
    );
    set("Dir::Cache::pkgcache", "");
    set("Dir::Cache::srcpkgcache", "");
    set("Dir::Log", &state.display().to_string());
    // The cache is locked by the caller, and the machine's lists are only read: no lock that would need root.
    set("Debug::NoLocking", "true");
    // Downloading as user `_apt` would need directories that this user can write.
    set("APT::Sandbox::User", "");
    set("APT::Architecture", "amd64");
    set("APT::Install-Recommends", "false");
    set("APT::Install-Suggests", "false");
    set("Acquire::ForceHash", "SHA256");
    set("Acquire::Languages", "none");
    set("Acquire::http::Timeout", "30");
    set("Acquire::https::Timeout", "30");
    // The machine's hooks are about the machine's own packages.
    for hook in [
        "APT::Update::Pre-Invoke",
        "APT::Update::Post-Invoke",
        "APT::Update::Post-Invoke-Success",
        "DPkg::Pre-Invoke",
        "DPkg::Post-Invoke",
        "DPkg::Pre-Install-Pkgs",
        "Acquire::IndexTargets::deb::DEP-11",
        "Acquire::IndexTargets::deb::DEP-11-icons",
    ] {
        text.push_str(&format!("#clear {hook};\n"));
    }
    text
}

fn has_lists(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    })
}

/// Runs `command`, hands each line of its output to `on_line`, and returns the output.
fn run(
    mut command: Command,
    action: &'static str,
    on_line: &dyn Fn(&str),
) -> Result<String, BuildError> {
    let io_error = || BuildError::io(action, "apt-get");
    // A file, since a pipe that nobody reads while the other one is read could fill up.
    let mut errors = tempfile::tempfile().map_err(io_error())?;
    command
        .stdout(Stdio::piped())
        .stderr(errors.try_clone().map_err(io_error())?);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(BuildError::NoApt),
        Err(e) => return Err(io_error()(e)),
    };
    let mut output = String::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.map_err(io_error())?;
            on_line(&line);
            output.push_str(&line);
            output.push('\n');
        }
    }
    let status = child.wait().map_err(io_error())?;
    if status.success() {
        return Ok(output);
    }
    let mut text = String::new();
    errors.rewind().map_err(io_error())?;
    errors.read_to_string(&mut text).map_err(io_error())?;
    let shown = if text.trim().is_empty() {
        &output
    } else {
        &text
    };
    Err(BuildError::Apt {
        action,
        output: tail(shown.trim(), MAX_OUTPUT).to_owned(),
    })
}

pub(crate) fn tail(text: &str, max: usize) -> &str {
    let mut start = text.len().saturating_sub(max);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.get(start..).unwrap_or_default()
}

/// Where Debian's snapshot archive has a file that a mirror had on `day`.
fn snapshot_uri(uri: &str, snapshot: &str, day: &str) -> Option<String> {
    let (before, pool) = uri.split_at(uri.find("/pool/")?);
    let archive = before.rsplit('/').next()?;
    matches!(archive, "debian" | "debian-security")
        .then(|| format!("{snapshot}/archive/{archive}/{day}{pool}"))
}

/// Reads `'URI' NAME_VERSION_ARCH.deb SIZE SHA256:HEX`.
fn parse_uri_line(line: &str) -> Result<Package, BuildError> {
    let parse = || {
        let (uri, rest) = line.strip_prefix('\'')?.split_once("' ")?;
        let mut words = rest.split(' ');
        let file = words.next()?;
        let size = words.next()?.parse().ok()?;
        let sha256 = words.next()?.strip_prefix("SHA256:")?;
        let mut parts = file.strip_suffix(".deb")?.splitn(3, '_');
        let name = parts.next()?;
        let version = parts.next()?.replace("%3a", ":");
        let architecture = parts.next()?;
        let package = Package {
            name: name.to_owned(),
            version,
            architecture: architecture.to_owned(),
            file: file.to_owned(),
            size,
            sha256: sha256.to_owned(),
            uri: uri.to_owned(),
        };
        (package.is_safe() && !name.is_empty()).then_some(package)
    };
    parse().ok_or_else(|| BuildError::AptOutput(line.to_owned()))
}

/// Reads `dlstatus:N:PERCENT:TEXT` (apt's README.progress-reporting).
fn parse_status_line(line: &str) -> Option<(u8, &str)> {
    let mut parts = line.strip_prefix("dlstatus:")?.splitn(3, ':');
    parts.next()?;
    let percent: f32 = parts.next()?.parse().ok()?;
    Some((percent.clamp(0.0, 100.0) as u8, parts.next()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn uri_lines() {
        let sha = "e7e14ebae53ef34c881a557e0a6d125b5e6721b692999045cf6af962daebe8d6";
        let line = format!(
            "'http://deb.debian.org/x/libcap2_2.66-4%2bdeb12u3_amd64.deb' libcap2_1%3a2.66-4+deb12u3_amd64.deb 27708 SHA256:{sha}"
        );
        let package = parse_uri_line(&line).unwrap();
        assert_eq!(package.name, "libcap2");
        assert_eq!(package.version, "1:2.66-4+deb12u3");
        assert_eq!(package.architecture, "amd64");
        assert_eq!((package.size, package.sha256.as_str()), (27708, sha));
        for bad in [
            "",
            "'x' a_1_all.deb 12",
            "'x' a_1_all.deb 12 MD5Sum:00",
            "'x' a_1_all.deb 12 SHA256:zz",
            "'x' ../a_1_all.deb 12 SHA256:e7e14ebae53ef34c881a557e0a6d125b5e6721b692999045cf6af962daebe8d6",
        ] {
            assert!(
                matches!(parse_uri_line(bad), Err(BuildError::AptOutput(_))),
                "{bad}"
            );
        }
    }

    /// A machine without package lists, as a fresh container is: lists and package come over the network.
    #[test]
    fn without_system_lists_fresh_ones_are_fetched() {
        // Kept between runs, so that only what has changed since is downloaded again.
        let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("cache/test-fresh-lists");
        fs::create_dir_all(&cache).unwrap();
        let status = crate::debian::stubs::status_file(&[], &["perl".to_owned()], false);
        let mut apt = Apt::new(&cache, &status, None).unwrap();
        apt.system_lists = cache.join("none");
        let updates = std::cell::Cell::new(0);
        let count = |step: Progress<'_>| {
            updates.set(updates.get() + u32::from(step == Progress::UpdatingLists));
        };
        let names = ["liblzf1".to_owned()];
        let packages = apt.fetch(&names, true, &count).unwrap();
        assert_eq!(updates.get(), 1);
        for package in &packages {
            crate::debian::deb::check(&deb_path(&cache, package), package).unwrap();
        }
        assert!(packages.iter().any(|package| package.name == "liblzf1"));
        // Resolving again gives the same, although everything is downloaded by now, and needs no new lists.
        let again = apt.fetch(&names, false, &count).unwrap();
        assert_eq!((again, updates.get()), (packages, 1));

        // It depends on `perl:any`, and Perl on much else.
        let lists = apt.private_lists.clone();
        let memcached = apt.resolve(&lists, &["memcached".to_owned()]).unwrap();
        assert!(
            memcached
                .iter()
                .any(|package| package.name.starts_with("libevent"))
        );
        assert!(
            !memcached
                .iter()
                .any(|package| package.name.contains("perl"))
        );

        let missing = apt.resolve_and_download(&lists, &["no-such-package".to_owned()], &count);
        let Err(BuildError::Apt { action, output }) = missing else {
            panic!("{missing:?}");
        };
        assert_eq!(action, "resolve the packages");
        assert!(
            output.contains("Unable to locate package no-such-package"),
            "{output}"
        );
    }

    #[test]
    fn superseded_packages_are_looked_for_in_debians_archive() {
        let uri = |uri| snapshot_uri(uri, "https://snapshot.debian.org", "20260131T235959Z");
        assert_eq!(
            uri("http://deb.debian.org/debian/pool/main/r/redis/a_1_amd64.deb").as_deref(),
            Some(
                "https://snapshot.debian.org/archive/debian/20260131T235959Z/pool/main/r/redis/a_1_amd64.deb"
            )
        );
        assert_eq!(
            uri("http://x.org/mirror/debian-security/pool/updates/main/a.deb").as_deref(),
            Some(
                "https://snapshot.debian.org/archive/debian-security/20260131T235959Z/pool/updates/main/a.deb"
            )
        );
        for other in [
            "http://x.org/ubuntu/pool/a.deb",
            "file:/a.deb",
            "http://x.org/a.deb",
        ] {
            assert_eq!(uri(other), None, "{other}");
        }
    }

    /// What the mirror has no longer is taken from the archive, if its digest is right.
    #[test]
    fn the_archive_is_asked_after_the_mirror() {
        let directory = tempfile::tempdir().unwrap();
        let archive = directory
            .path()
            .join("archive/debian/20260131T235959Z/pool/main");
        fs::create_dir_all(&archive).unwrap();
        fs::write(archive.join("a_1_all.deb"), "abc").unwrap();
        let mut apt = Apt::new(directory.path(), "", None).unwrap();
        apt.snapshot = format!("copy:{}", directory.path().display());
        let mut package = Package {
            name: "a".to_owned(),
            version: "1".to_owned(),
            architecture: "all".to_owned(),
            file: "a_1_all.deb".to_owned(),
            size: 3,
            // sha256sum of "abc" (FIPS 180-2, appendix B.1).
            sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned(),
            uri: "copy:/nowhere/debian/pool/main/a_1_all.deb".to_owned(),
        };
        apt.download(&package, "20260131T235959Z").unwrap();
        let path = deb_path(directory.path(), &package);
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        fs::remove_file(&path).unwrap();
        package.sha256.replace_range(0..1, "0");
        let error = apt.download(&package, "20260131T235959Z").unwrap_err();
        assert!(matches!(error, BuildError::Gone { .. }), "{error}");
    }

    #[test]
    fn status_lines() {
        assert_eq!(
            parse_status_line("dlstatus:3:37.5000:Retrieving file 4 of 16"),
            Some((37, "Retrieving file 4 of 16"))
        );
        assert_eq!(parse_status_line("Get:1 http://x"), None);
        assert_eq!(parse_status_line("dlstatus:3:x:y"), None);
    }

    #[test]
    fn a_long_output_is_cut_at_its_start() {
        assert_eq!(tail("abc", 10), "abc");
        assert_eq!(tail("aäb", 2), "b");
    }
}
