//! `quorate disk`

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use quorate_images::disks::{self, Journal};
use quorate_images::{Appliance, DiskSpec, ImageSource, size};

use super::load;
use super::progress::{Progress, answer, line};
use crate::exit::{ExitCode, Failure};
use crate::store::lock;

/// `quorate disk`
#[derive(Debug, Args)]
pub struct DiskArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the disks of an appliance and where their files are
    List {
        /// The appliance file
        appliance: PathBuf,
    },
    /// Check the file systems of disks that are not in use
    Check {
        #[command(flatten)]
        at: Target,
        /// Replay a journal on the disk itself, not on a copy
        #[arg(long)]
        replay: bool,
    },
    /// Copy files from a disk that is not in use into a new directory
    Extract {
        #[command(flatten)]
        at: Target,
        /// The directory; it must be new or empty
        to: PathBuf,
        /// Files and directories on the disk [default: all]
        paths: Vec<String>,
    },
    /// Make the disks of an appliance that are not there yet
    Create {
        /// The appliance file
        appliance: PathBuf,
    },
    /// Make disks anew: what is on them is lost
    Reset {
        /// The appliance file
        appliance: PathBuf,
        /// Names of the disks
        #[arg(required = true)]
        disks: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Target {
    /// An appliance file (NAME.toml), or the file of a disk
    appliance_or_file: PathBuf,
    /// The disk of the appliance, if it has several
    #[arg(long, value_name = "NAME")]
    disk: Option<String>,
}

/// Whom a lock keeps out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Those who write.
    Read,
    /// Everybody.
    Write,
}

pub fn disk(args: &DiskArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        Command::List { appliance } => list(&load(appliance)?),
        Command::Check { at, replay } => check(at, *replay),
        Command::Extract { at, to, paths } => extract(at, to, paths),
        Command::Create { appliance } => create(&load(appliance)?),
        Command::Reset { appliance, disks } => reset(&load(appliance)?, disks),
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(ExitCode::Disk, error)
}

/// The file of a disk.
fn path_of(appliance: &Appliance, disk: &DiskSpec) -> Result<PathBuf, Failure> {
    let state_dir = match disk.path {
        Some(_) => PathBuf::new(),
        None => disks::default_state_dir().map_err(failed)?,
    };
    Ok(disks::path_of(appliance, disk, &state_dir))
}

fn list(appliance: &Appliance) -> Result<ExitCode, Failure> {
    if appliance.disks.is_empty() {
        line(&format!("{}: no disks", appliance.name));
    }
    for (number, disk) in appliance.disks.iter().enumerate() {
        let path = path_of(appliance, disk)?;
        let state = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                "not there yet".to_owned()
            }
            Err(error) => error.to_string(),
            Ok(file) => {
                let used = file.metadata().map_or(0, |info| info.blocks() * 512);
                let used = format!("{} MiB used of the host", used.div_ceil(1 << 20));
                match lock::acquire(&file, true) {
                    Ok(false) => format!("in use by {}, {used}", lock::holder(&file)),
                    _ => used,
                }
            }
        };
        let mount = match &disk.mount {
            Some(mount) => format!("at {mount}"),
            None if appliance
                .mounts()
                .iter()
                .any(|mount| mount.target == "/" && mount.source == format!("disk{number}")) =>
            {
                "at / (changes to the image)".to_owned()
            }
            None => "not mounted".to_owned(),
        };
        let access = if disk.read_only { ", read-only" } else { "" };
        answer(&format!(
            "{number} {}: {} {mount}{access}, {state}, {}",
            disk.name,
            size::format(disk.bytes),
            path.display()
        ));
    }
    Ok(ExitCode::Success)
}

/// Files of the disks that are meant.
fn targets(at: &Target) -> Result<Vec<PathBuf>, Failure> {
    let path = &at.appliance_or_file;
    if path.extension().is_none_or(|extension| extension != "toml") {
        return match at.disk {
            None => Ok(vec![path.clone()]),
            Some(_) => Err(Failure::new(
                ExitCode::Usage,
                "--disk goes with an appliance file",
            )),
        };
    }
    let appliance = load(path)?;
    let wanted: Vec<&DiskSpec> = match &at.disk {
        Some(name) => vec![find(&appliance, name)?],
        None => appliance
            .disks
            .iter()
            .filter(|disk| disk.filesystem == quorate_images::Filesystem::Ext4)
            .collect(),
    };
    if wanted.is_empty() {
        let name = &appliance.name;
        return Err(Failure::new(
            ExitCode::Usage,
            format!("{name} has no disk with a file system"),
        ));
    }
    wanted
        .into_iter()
        .map(|disk| path_of(&appliance, disk))
        .collect()
}

fn find<'a>(appliance: &'a Appliance, name: &str) -> Result<&'a DiskSpec, Failure> {
    let found = appliance.disks.iter().find(|disk| disk.name == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = appliance
            .disks
            .iter()
            .map(|disk| disk.name.as_str())
            .collect();
        let text = format!("disk {name}: the appliance has no such disk, only {names:?}");
        Failure::new(ExitCode::Usage, text)
    })
}

/// Keeps others out as long as the result lives.
fn lock(path: &Path, what: Use) -> Result<File, Failure> {
    let write = what == Use::Write;
    let cannot =
        |action: &str, error| failed(format!("{}: cannot {action}: {error}", path.display()));
    let file = File::options()
        .read(true)
        .write(write)
        .open(path)
        .map_err(|error| cannot("open the disk", error))?;
    if lock::acquire(&file, !write).map_err(|error| cannot("lock the disk", error))? {
        return Ok(file);
    }
    Err(failed(format!(
        "{}: the disk is in use by {}: stop the set first",
        path.display(),
        lock::holder(&file)
    )))
}

fn check(at: &Target, replay: bool) -> Result<ExitCode, Failure> {
    let mut all_sound = true;
    for path in targets(at)? {
        let _lock = lock(&path, if replay { Use::Write } else { Use::Read })?;
        let checked = disks::check(&path, replay).map_err(failed)?;
        let journal = match checked.journal {
            Journal::Empty => "unmounted cleanly",
            Journal::OnCopy => "not unmounted; its journal was replayed on a copy",
            Journal::Replayed => "its journal was replayed",
        };
        let verdict = if checked.sound { "sound" } else { "DAMAGED" };
        answer(&format!("{}: {verdict}, {journal}", path.display()));
        if !checked.sound {
            eprint!("{}", checked.report);
        }
        all_sound &= checked.sound;
    }
    Ok(if all_sound {
        ExitCode::Success
    } else {
        ExitCode::Disk
    })
}

fn extract(at: &Target, to: &Path, paths: &[String]) -> Result<ExitCode, Failure> {
    let targets = targets(at)?;
    let [path] = &targets[..] else {
        return Err(Failure::new(
            ExitCode::Usage,
            "the appliance has several disks: choose one by --disk NAME",
        ));
    };
    let _lock = lock(path, Use::Read)?;
    let done = disks::extract(path, paths, to).map_err(failed)?;
    answer(&format!(
        "{}: {} files, {} directories, {} links, {} KiB of data",
        to.display(),
        done.files,
        done.directories,
        done.links,
        done.bytes.div_ceil(1024)
    ));
    if done.skipped > 0 {
        line(&format!(
            "note: {} devices, pipes and sockets were left out",
            done.skipped
        ));
    }
    Ok(ExitCode::Success)
}

/// The appliance with its program's user settled, to whom new disks belong, and with the root disk of a Linux machine. That needs the
/// image where the user has a name.
fn settled(appliance: &Appliance) -> Result<Appliance, Failure> {
    let from_image = matches!(appliance.image.source, ImageSource::Oci { .. });
    if appliance.program.user.is_none() && !from_image && appliance.linux.is_none() {
        return Ok(appliance.clone());
    }
    let progress = Progress::new();
    let options = quorate_images::BuildOptions {
        cache_dir: quorate_images::default_cache_dir(),
        update: false,
        progress: &|step| progress.building(step),
    };
    let built = quorate_images::build(appliance, &options);
    progress.done();
    let built = built.map_err(|error| Failure::new(ExitCode::Image, error))?;
    Ok(built.settle(appliance))
}

fn create(appliance: &Appliance) -> Result<ExitCode, Failure> {
    let appliance = settled(appliance)?;
    for disk in &appliance.disks {
        make(&appliance, disk)?;
    }
    Ok(ExitCode::Success)
}

fn make(appliance: &Appliance, disk: &DiskSpec) -> Result<(), Failure> {
    let state_dir = match disk.path {
        Some(_) => PathBuf::new(),
        None => disks::default_state_dir().map_err(failed)?,
    };
    let made = disks::prepare_one(appliance, disk, &state_dir).map_err(failed)?;
    let how = if made.created { "made" } else { "is there" };
    answer(&format!(
        "{}: {how}, {}, {}",
        made.name,
        size::format(made.bytes),
        made.path.display()
    ));
    Ok(())
}

fn reset(appliance: &Appliance, names: &[String]) -> Result<ExitCode, Failure> {
    let appliance = settled(appliance)?;
    // All names and locks first: a mistake in the last one must not cost the first one's disk.
    let mut wanted = Vec::new();
    for name in names {
        let disk = find(&appliance, name)?;
        let path = path_of(&appliance, disk)?;
        if disk.read_only && disk.seed.is_none() {
            return Err(failed(format!(
                "disk {name}: read_only and without `seed`: it cannot be made anew"
            )));
        }
        let held = if path.exists() {
            Some(lock(&path, Use::Write)?)
        } else {
            None
        };
        if held
            .as_ref()
            .is_some_and(|file| !file.metadata().is_ok_and(|info| info.is_file()))
        {
            return Err(failed(format!(
                "{}: not a regular file: make the file system on it yourself",
                path.display()
            )));
        }
        wanted.push((disk, path, held));
    }
    disks::check_seeds(&appliance).map_err(failed)?;
    for (disk, path, held) in wanted {
        if held.is_some() {
            std::fs::remove_file(&path).map_err(|error| {
                failed(format!("{}: cannot remove it: {error}", path.display()))
            })?;
        }
        make(&appliance, disk)?;
    }
    Ok(ExitCode::Success)
}
