//! Makes ext4 file systems with the host's e2fsprogs. The same appliance and seed give the same bytes: everything that
//! mke2fs would take from the clock, a random source, its configuration or the seed's owners and times is given.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::seed::{Seed, too_small};
use super::{DiskError, EXT4_MAGIC};
use crate::appliance::{Appliance, DiskSpec};

/// Features of the file systems: those that the guest kernel's library is sound with.
pub(crate) const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
/// Configuration for mke2fs in place of the host's own.
pub(crate) const CONFIG: &str = "[defaults]\n\tblocksize = 4096\n[fs_types]\n\text4 = {\n\t}\n\tsmall = {\n\t}\n\tbig = {\n\t}\n\thuge = {\n\t}\n";
/// The first inode of a seed's files: those before are the file system's own and `lost+found`.
pub(crate) const FIRST_INODE: u32 = 12;
/// The root directory's inode.
pub(crate) const ROOT_INODE: u32 = 2;
/// How much of a tool's output an error repeats, bytes.
const MAX_OUTPUT: usize = 2000;
/// Where programs of e2fsprogs lie; a user's PATH often lacks them.
pub(crate) const SEARCH: &str = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin";

/// Formats the file `path`, which has its size already and holds zeroes, and copies the seed to it. Files and the
/// root directory belong to the program's user.
pub(super) fn format(
    appliance: &Appliance,
    disk: &DiskSpec,
    seed: Option<&Seed>,
    path: &Path,
) -> Result<(), DiskError> {
    let mut config = tempfile::NamedTempFile::new().map_err(DiskError::io(
        disk,
        "make a temporary file",
        std::env::temp_dir(),
    ))?;
    config
        .write_all(CONFIG.as_bytes())
        .map_err(DiskError::io(disk, "write", config.path()))?;
    let (uid, gid) = (appliance.program.uid, appliance.program.gid);
    let mut mke2fs = tool("mke2fs", appliance);
    mke2fs
        .env("MKE2FS_CONFIG", config.path())
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0"])
        .args(["-i", inode_ratio(disk.bytes), "-O", FEATURES])
        .arg("-J")
        .arg(format!("size={}", journal_mib(disk.bytes)))
        .arg("-U")
        .arg(uuid(appliance, disk, "uuid"))
        .arg("-E")
        .arg(format!(
            "hash_seed={},root_owner={uid}:{gid},lazy_itable_init=0,lazy_journal_init=0,assume_storage_prezeroed=1,nodiscard",
            uuid(appliance, disk, "hash")
        ));
    if let Some(seed) = seed {
        mke2fs.arg("-d").arg(&seed.path);
    }
    mke2fs.arg(path);
    let output = run(disk, "mke2fs", mke2fs, "")?;
    if !output.success {
        return Err(match seed {
            Some(seed) if is_full(&output.errors) => too_small(disk, seed),
            _ => failed(disk, "mke2fs", &output.errors),
        });
    }
    let used = used_inodes(path).map_err(DiskError::io(disk, "read the new disk", path))?;
    let mut debugfs = tool("debugfs", appliance);
    debugfs.args(["-w", "-f", "-"]).arg(path);
    let output = run(disk, "debugfs", debugfs, &ownership(appliance, used))?;
    // It succeeds whatever its commands did, but each failure is a line.
    let complaint = output
        .errors
        .lines()
        .any(|line| !line.starts_with("debugfs 1.") && !line.trim().is_empty());
    if complaint || !output.success {
        return Err(failed(disk, "debugfs", &output.errors));
    }
    Ok(())
}

/// Commands for debugfs: root directory and the seed's files belong to the program's user and have the appliance's time.
/// mke2fs numbers the files in the order of their names, without gaps.
fn ownership(appliance: &Appliance, used: u32) -> String {
    let (uid, gid, time) = (
        appliance.program.uid,
        appliance.program.gid,
        appliance.epoch(),
    );
    let mut commands = format!("sif <{ROOT_INODE}> mode 040755\n");
    for inode in std::iter::once(ROOT_INODE).chain(FIRST_INODE..=used) {
        commands.push_str(&format!(
            "sif <{inode}> uid {uid}\nsif <{inode}> gid {gid}\n"
        ));
        for field in ["atime", "ctime", "mtime"] {
            commands.push_str(&format!("sif <{inode}> {field} @{time}\n"));
        }
    }
    commands
}

/// How many inodes the file system in `path` uses, from its superblock.
pub(crate) fn used_inodes(path: &Path) -> io::Result<u32> {
    let mut file = File::open(path)?;
    let mut block = [0; 60];
    file.seek(SeekFrom::Start(1024))?;
    file.read_exact(&mut block)?;
    let word = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&block[at..at + 4]);
        u32::from_le_bytes(word)
    };
    let magic = (EXT4_MAGIC.0 - 1024) as usize;
    if block[magic..magic + 2] != EXT4_MAGIC.1 {
        return Err(io::Error::other("mke2fs made no file system"));
    }
    Ok(word(0).saturating_sub(word(16)))
}

/// Bytes of disk for each inode, as mke2fs has it for small and other file systems.
pub(crate) fn inode_ratio(bytes: u64) -> &'static str {
    if bytes < 512 << 20 { "4096" } else { "16384" }
}

/// MiB of journal.
pub(crate) fn journal_mib(bytes: u64) -> u64 {
    match bytes >> 20 {
        0..128 => 4,
        128..1024 => 16,
        _ => 64,
    }
}

/// An identifier that depends on the names alone, so that making the disk again gives the same one.
fn uuid(appliance: &Appliance, disk: &DiskSpec, what: &str) -> String {
    uuid_of(&["quorate disk", what, &appliance.name, &disk.name])
}

/// An identifier that depends on `texts` alone.
pub(crate) fn uuid_of(texts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for text in texts {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    let hash = hasher.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.as_bytes()[..16]);
    // RFC 9562: version 8 (free use), variant 10.
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

fn tool(name: &str, appliance: &Appliance) -> Command {
    let mut command = Command::new(name);
    // Nothing of the user's environment: several of its variables change what mke2fs writes.
    command
        .env_clear()
        .env("PATH", SEARCH)
        .env("LC_ALL", "C")
        .env("E2FSPROGS_FAKE_TIME", appliance.epoch().to_string());
    command
}

struct Output {
    success: bool,
    errors: String,
}

fn run(
    disk: &DiskSpec,
    name: &'static str,
    mut command: Command,
    input: &str,
) -> Result<Output, DiskError> {
    let fail = || DiskError::io(disk, "run", name);
    // A file, since a pipe that the tool is slow to read could fill up while its own output waits.
    let mut commands = tempfile::tempfile().map_err(fail())?;
    commands.write_all(input.as_bytes()).map_err(fail())?;
    commands.rewind().map_err(fail())?;
    command
        .stdin(commands)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    match command.output() {
        Ok(output) => Ok(Output {
            success: output.status.success(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(DiskError::NoTool {
            disk: disk.name.clone(),
            tool: name,
        }),
        Err(error) => Err(fail()(error)),
    }
}

pub(crate) fn is_full(errors: &str) -> bool {
    ["Could not allocate", "No free space", "No space left in"]
        .iter()
        .any(|text| errors.contains(text))
}

fn failed(disk: &DiskSpec, tool: &'static str, errors: &str) -> DiskError {
    DiskError::Tool {
        disk: disk.name.clone(),
        tool,
        output: crate::debian::tail(errors.trim(), MAX_OUTPUT).to_owned(),
    }
}
