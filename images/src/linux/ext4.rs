//! Writes an image as an ext4 file system, with the host's e2fsprogs and without root: mke2fs copies names and contents from a
//! directory for the while, debugfs then gives every inode its owner, permissions and times and makes the devices. The same image
//! gives the same bytes from the same e2fsprogs.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Seek, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use quorate_abi::image::{ImageView, Inode, S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT};

use crate::disks::mkfs::{
    CONFIG, FEATURES, FIRST_INODE, ROOT_INODE, SEARCH, inode_ratio, is_full, journal_mib,
    used_inodes, uuid_of,
};
use crate::error::BuildError;

/// How much of a tool's output an error repeats, bytes.
const MAX_OUTPUT: usize = 2000;
/// Bytes of a block.
const BLOCK: u64 = 4096;
/// Sizes are multiples of this.
const UNIT: u64 = 16 << 20;
/// Directory that mke2fs makes by itself; it takes an inode before all others.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// How to write it.
pub(super) struct Format<'a> {
    /// Bytes of the whole file system.
    pub(super) bytes: u64,
    /// What tells it from others: goes into its identifiers.
    pub(super) name: &'a str,
    /// Time of the file system itself, seconds since 1970.
    pub(super) epoch: i64,
}

/// Bytes of a file system for the image with `free` bytes left.
pub(super) fn size_for(view: &ImageView<'_>, inodes: u32, free: u64) -> u64 {
    let mut bytes = 0u64;
    for ino in 0..=inodes {
        if let Ok(inode) = view.inode(ino) {
            // One block for what a directory or a long link needs, and for extents.
            bytes += inode.size.next_multiple_of(BLOCK) + BLOCK;
        }
    }
    // Inode tables, journal, bitmaps: a sixteenth each of the inodes' ratio, and what a journal takes.
    let content = bytes + bytes / 8 + free;
    (content + content / 12 + (journal_mib(content) << 20)).next_multiple_of(UNIT)
}

/// Writes the image to the file `path`, which is empty. `parent` is a directory for files in the meantime.
pub(super) fn write(
    view: &ImageView<'_>,
    path: &Path,
    parent: &Path,
    format: &Format<'_>,
) -> Result<(), BuildError> {
    let copy = tempfile::Builder::new()
        .prefix(".root-")
        .tempdir_in(parent)
        .map_err(BuildError::io("make a directory", parent))?;
    let plan = Plan::make(view, copy.path())?;
    File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.set_len(format.bytes))
        .map_err(BuildError::io("write", path))?;
    mke2fs(path, copy.path(), format)?;
    let used = used_inodes(path).map_err(BuildError::io("read", path))?;
    if used != plan.next - 1 {
        return Err(BuildError::Tool {
            tool: "mke2fs",
            output: format!("it used {used} inodes, not {}", plan.next - 1),
        });
    }
    debugfs(path, &plan.commands, format)
}

fn mke2fs(path: &Path, directory: &Path, format: &Format<'_>) -> Result<(), BuildError> {
    let mut config = tempfile::NamedTempFile::new().map_err(BuildError::io(
        "make a temporary file",
        std::env::temp_dir(),
    ))?;
    config
        .write_all(CONFIG.as_bytes())
        .map_err(BuildError::io("write", config.path()))?;
    let mut mke2fs = tool("mke2fs", format);
    mke2fs
        .env("MKE2FS_CONFIG", config.path())
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0"])
        .args(["-i", inode_ratio(format.bytes), "-O", FEATURES])
        .arg("-J")
        .arg(format!("size={}", journal_mib(format.bytes)))
        .arg("-U")
        .arg(uuid_of(&["quorate root", "uuid", format.name]))
        .arg("-E")
        .arg(format!(
            "hash_seed={},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,assume_storage_prezeroed=1,nodiscard",
            uuid_of(&["quorate root", "hash", format.name])
        ))
        .arg("-d")
        .arg(directory)
        .arg(path);
    let (success, errors) = run("mke2fs", mke2fs, "")?;
    if success {
        return Ok(());
    }
    let output = if is_full(&errors) {
        "the image does not fit into the root disk: make the disk of [machine] root larger"
            .to_owned()
    } else {
        errors
    };
    Err(BuildError::Tool {
        tool: "mke2fs",
        output,
    })
}

fn debugfs(path: &Path, commands: &str, format: &Format<'_>) -> Result<(), BuildError> {
    let mut debugfs = tool("debugfs", format);
    debugfs.args(["-w", "-f", "-"]).arg(path);
    let (success, errors) = run("debugfs", debugfs, commands)?;
    // It succeeds whatever its commands did, but each failure is a line.
    let complaint = errors
        .lines()
        .find(|line| !line.starts_with("debugfs 1.") && !line.trim().is_empty());
    match complaint {
        None if success => Ok(()),
        other => Err(BuildError::Tool {
            tool: "debugfs",
            output: other.unwrap_or(&errors).to_owned(),
        }),
    }
}

fn tool(name: &str, format: &Format<'_>) -> Command {
    let mut command = Command::new(name);
    // Nothing of the user's environment: several of its variables change what mke2fs writes.
    command
        .env_clear()
        .env("PATH", SEARCH)
        .env("LC_ALL", "C")
        .env("E2FSPROGS_FAKE_TIME", format.epoch.to_string());
    command
}

/// Whether it succeeded, and what it complained of.
fn run(
    name: &'static str,
    mut command: Command,
    input: &str,
) -> Result<(bool, String), BuildError> {
    let fail = || BuildError::io("run", name);
    let mut commands = tempfile::tempfile().map_err(fail())?;
    commands.write_all(input.as_bytes()).map_err(fail())?;
    commands.rewind().map_err(fail())?;
    command
        .stdin(commands)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    match command.output() {
        Ok(output) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            let errors = crate::debian::tail(errors.trim(), MAX_OUTPUT).to_owned();
            Ok((output.status.success(), errors))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(BuildError::NoTool(name)),
        Err(error) => Err(fail()(error)),
    }
}

/// What is left to do when mke2fs has copied the directory.
struct Plan {
    /// Commands for debugfs.
    commands: String,
    /// Those that make devices, which come last, since mke2fs numbers what it copies without gaps.
    devices: String,
    /// The inode that mke2fs gives the next file.
    next: u32,
    /// First name of each file with several, as a path of the host.
    named: HashMap<u32, PathBuf>,
}

impl Plan {
    /// Copies names and contents to `directory`, in the order in which mke2fs will find them.
    fn make(view: &ImageView<'_>, directory: &Path) -> Result<Self, BuildError> {
        let mut plan = Self {
            commands: String::new(),
            devices: String::new(),
            next: FIRST_INODE,
            named: HashMap::new(),
        };
        let root = view.root();
        let inode = view.inode(root).map_err(|_| damaged())?;
        plan.describe(&format!("<{ROOT_INODE}>"), &inode);
        plan.copy(view, root, directory, "")?;
        let devices = std::mem::take(&mut plan.devices);
        plan.commands.push_str(&devices);
        Ok(plan)
    }

    fn copy(
        &mut self,
        view: &ImageView<'_>,
        dir: u32,
        host: &Path,
        guest: &str,
    ) -> Result<(), BuildError> {
        let mut entries = Vec::new();
        while let Some(entry) = view.entry(dir, entries.len()).map_err(|_| damaged())? {
            entries.push(entry);
        }
        // As mke2fs takes them, whatever order the image keeps them in.
        entries.sort_unstable();
        for (name, ino) in entries {
            let path = host.join(std::ffi::OsStr::from_bytes(name));
            let inode = view.inode(ino).map_err(|_| damaged())?;
            let write_error = || BuildError::io("write", &path);
            if guest.is_empty() && name == LOST_AND_FOUND {
                continue;
            }
            if matches!(inode.mode & S_IFMT, S_IFCHR | S_IFBLK | S_IFIFO) {
                self.device(guest, name, &inode)?;
                continue;
            }
            if let Some(first) = self.named.get(&ino) {
                fs::hard_link(first, &path).map_err(write_error())?;
                continue;
            }
            let number = self.next;
            self.next += 1;
            self.describe(&format!("<{number}>"), &inode);
            if inode.is_dir() {
                fs::create_dir(&path).map_err(write_error())?;
                let name = String::from_utf8_lossy(name);
                self.copy(view, ino, &path, &format!("{guest}/{name}"))?;
            } else if inode.is_symlink() {
                let target = view.readlink(ino).map_err(|_| damaged())?;
                symlink(std::ffi::OsStr::from_bytes(target), &path).map_err(write_error())?;
            } else {
                let data = view.data(ino).map_err(|_| damaged())?;
                fs::write(&path, data).map_err(write_error())?;
            }
            if inode.nlink > 1 && !inode.is_dir() {
                self.named.insert(ino, path);
            }
        }
        Ok(())
    }

    /// Owner, permissions and times of an inode, which debugfs knows as `who`.
    fn describe(&mut self, who: &str, inode: &Inode) {
        let text = attributes(who, inode);
        self.commands.push_str(&text);
    }

    fn device(&mut self, directory: &str, name: &[u8], inode: &Inode) -> Result<(), BuildError> {
        let name = String::from_utf8_lossy(name);
        // debugfs reads its commands as a shell would.
        let bad = |c: char| c.is_control() || matches!(c, '"' | '\\' | '\u{fffd}');
        if name.contains(bad) || directory.contains(bad) {
            return Err(BuildError::Tool {
                tool: "debugfs",
                output: format!("{directory}/{name}: no name for a device"),
            });
        }
        let (major, minor) = (
            inode.rdev >> 8 & 0xfff,
            inode.rdev & 0xff | inode.rdev >> 12 & 0xfff00,
        );
        let what = match inode.mode & S_IFMT {
            S_IFCHR => format!("c {major} {minor}"),
            S_IFBLK => format!("b {major} {minor}"),
            _ => "p".to_owned(),
        };
        let _ = write!(
            self.devices,
            "cd \"/{}\"\nmknod \"{name}\" {what}\ncd /\n",
            directory.trim_start_matches('/')
        );
        let who = format!("\"{directory}/{name}\"");
        self.devices.push_str(&attributes(&who, inode));
        Ok(())
    }
}

fn attributes(who: &str, inode: &Inode) -> String {
    let mut text = String::new();
    let fields = [
        ("mode", format!("0{:o}", inode.mode)),
        ("uid", inode.uid.to_string()),
        ("gid", inode.gid.to_string()),
    ];
    let times = ["atime", "ctime", "mtime"].map(|field| (field, format!("@{}", inode.mtime)));
    for (field, value) in fields.iter().chain(&times) {
        let _ = writeln!(text, "sif {who} {field} {value}");
    }
    text
}

fn damaged() -> BuildError {
    BuildError::Tool {
        tool: "quorate",
        output: "the image that was just made cannot be read".to_owned(),
    }
}
