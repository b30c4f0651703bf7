//! Disk files, looked at from the host with e2fsprogs: whether the file system on them is sound, and what is in it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Error;
use crate::process::{Ended, run};

/// How long a tool may take.
const TOOL_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes copied or compared at a time.
const CHUNK: usize = 1 << 20;

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let what = path.display().to_string();
    move |source| Error::Io { what, source }
}

fn tool(name: &str, arguments: &[&str], path: &Path) -> Result<Ended, Error> {
    let mut command = Command::new(name);
    // Debian has them where only root's PATH goes.
    let paths = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    command.args(arguments).arg(path).env("PATH", paths);
    command.env("LC_ALL", "C");
    run(command, TOOL_TIMEOUT)
}

/// What a check found.
fn wrong(what: &str, path: &Path, ended: &Ended) -> Error {
    Error::Unexpected(format!(
        "{}: {what} ended with {}:\n{}{}",
        path.display(),
        ended.code,
        String::from_utf8_lossy(&ended.stdout),
        ended.stderr
    ))
}

/// `e2fsck -fn`: everything is right, and there is no journal to replay.
///
/// # Errors
/// With what e2fsck says when it is not.
pub fn check_clean(path: &Path) -> Result<(), Error> {
    if needs_replay(path)? {
        return Err(Error::Unexpected(format!(
            "{}: was not unmounted: its journal would have to be replayed",
            path.display()
        )));
    }
    check(path)
}

fn check(path: &Path) -> Result<(), Error> {
    let ended = tool("e2fsck", &["-fn"], path)?;
    if ended.code == 0 {
        Ok(())
    } else {
        Err(wrong("e2fsck -fn", path, &ended))
    }
}

/// Whether the file system has to be recovered from its journal before it is used.
///
/// # Errors
/// When the disk cannot be read or has no ext4.
pub fn needs_replay(path: &Path) -> Result<bool, Error> {
    /// Superblock at 1024; its magic number at 56 and its incompatible features at 96, of which 4 is "needs recovery".
    const SUPERBLOCK: u64 = 1024;
    let file = File::open(path).map_err(io_error(path))?;
    let mut head = [0; 100];
    file.read_exact_at(&mut head, SUPERBLOCK)
        .map_err(io_error(path))?;
    if head[56..58] != [0x53, 0xef] {
        return Err(Error::Unexpected(format!("{}: no ext4", path.display())));
    }
    Ok(head[96] & 4 != 0)
}

/// What a crash left: on a copy of the disk as it lies there, the journal is replayed, and then `e2fsck -fn` passes. True if there
/// was something to replay.
///
/// # Errors
/// With what e2fsck says when it does not.
pub fn check_after_crash(path: &Path) -> Result<bool, Error> {
    let copy = copy(path)?;
    let replay = needs_replay(&copy)?;
    if replay {
        // Without -f: it must not repair anything.
        let ended = tool("e2fsck", &["-y", "-E", "journal_only"], &copy)?;
        // 1: "file system errors corrected", as a replay may be called.
        if ended.code > 1 || needs_replay(&copy)? {
            return Err(wrong("the replay of the journal", path, &ended));
        }
    }
    if let Err(error) = check(&copy) {
        // Kept to be looked at.
        let kept = std::env::temp_dir().join(format!("quorate-broken-{}.img", std::process::id()));
        let _ = sparse_copy(path, &kept);
        return Err(Error::Unexpected(format!(
            "{error}(the disk as it was is kept in {})",
            kept.display()
        )));
    }
    Ok(replay)
}

/// A temporary copy, with the holes of the original.
fn copy(path: &Path) -> Result<tempfile::TempPath, Error> {
    // In memory where that is possible: it is read once and thrown away.
    let memory = Path::new("/dev/shm");
    let temporary = if memory.is_dir() {
        tempfile::NamedTempFile::new_in(memory)
    } else {
        tempfile::NamedTempFile::new()
    };
    let copy = temporary
        .map_err(io_error(Path::new("a temporary file")))?
        .into_temp_path();
    sparse_copy(path, &copy)?;
    Ok(copy)
}

/// Copies the data of `from` and leaves its holes.
///
/// # Errors
/// When one of them cannot be read or written.
pub fn sparse_copy(from: &Path, to: &Path) -> Result<(), Error> {
    use rustix::fs::{SeekFrom as Seeked, seek};
    let source = File::open(from).map_err(io_error(from))?;
    let target = File::create(to).map_err(io_error(to))?;
    let len = source.metadata().map_err(io_error(from))?.len();
    target.set_len(len).map_err(io_error(to))?;
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while let Ok(start) = seek(&source, Seeked::Data(at)) {
        let end = seek(&source, Seeked::Hole(start)).unwrap_or(len);
        at = start;
        while at < end {
            let part = (end - at).min(CHUNK as u64) as usize;
            source
                .read_exact_at(&mut chunk[..part], at)
                .map_err(io_error(from))?;
            target
                .write_all_at(&chunk[..part], at)
                .map_err(io_error(to))?;
            at += part as u64;
        }
    }
    Ok(())
}

/// Takes the file at `inside` (an absolute path of the file system) out of the disk, with debugfs. The disk must be unmounted.
///
/// # Errors
/// When there is none.
pub fn extract(disk: &Path, inside: &str, to: &Path) -> Result<(), Error> {
    let request = format!("dump -p {inside} {}", to.display());
    let ended = tool("debugfs", &["-R", &request], disk)?;
    if ended.code == 0 && to.exists() && !ended.stderr.contains("File not found") {
        Ok(())
    } else {
        Err(wrong("debugfs", disk, &ended))
    }
}

/// Numbers of the 512-byte sectors in which two disks differ, at most `most` of them.
///
/// # Errors
/// When one cannot be read, or their sizes differ.
pub fn differing_sectors(a: &Path, b: &Path, most: usize) -> Result<Vec<u64>, Error> {
    let mut files = Vec::new();
    for path in [a, b] {
        let mut file = File::open(path).map_err(io_error(path))?;
        let len = file.seek(SeekFrom::End(0)).map_err(io_error(path))?;
        file.seek(SeekFrom::Start(0)).map_err(io_error(path))?;
        files.push((file, len));
    }
    if files[0].1 != files[1].1 {
        return Err(Error::Unexpected(format!(
            "{} has {} bytes, {} has {}",
            a.display(),
            files[0].1,
            b.display(),
            files[1].1
        )));
    }
    let mut differ = Vec::new();
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    while at < files[0].1 && differ.len() < most {
        let part = (files[0].1 - at).min(CHUNK as u64) as usize;
        files[0]
            .0
            .read_exact(&mut left[..part])
            .map_err(io_error(a))?;
        files[1]
            .0
            .read_exact(&mut right[..part])
            .map_err(io_error(b))?;
        if left[..part] != right[..part] {
            let sectors = left[..part].chunks(512).zip(right[..part].chunks(512));
            let numbers = sectors
                .enumerate()
                .filter(|(_, (left, right))| left != right)
                .map(|(number, _)| at / 512 + number as u64);
            differ.extend(numbers.take(most - differ.len()));
        }
        at += part as u64;
    }
    Ok(differ)
}

/// The text of `images/appliances/NAME.toml` with `changes` to its only disk, and without published ports.
///
/// # Errors
/// When it cannot be read, or has no disk.
pub fn appliance(name: &str, changes: &[(&str, toml::Value)]) -> Result<String, Error> {
    let path = crate::repository().join(format!("images/appliances/{name}.toml"));
    let text = fs::read_to_string(&path).map_err(io_error(&path))?;
    let unexpected = |what: String| Error::Unexpected(format!("{}: {what}", path.display()));
    let mut table: toml::Table = text
        .parse()
        .map_err(|error| unexpected(format!("{error}")))?;
    table.remove("network");
    let disks = table.get_mut("disk").and_then(toml::Value::as_array_mut);
    let disk = disks
        .and_then(|disks| disks.first_mut()?.as_table_mut())
        .ok_or_else(|| unexpected("no disk".to_owned()))?;
    for (key, value) in changes {
        disk.insert((*key).to_owned(), value.clone());
    }
    Ok(table.to_string())
}

/// A directory on the host's disk (not in memory) for the files of one test, removed with it.
///
/// # Errors
/// When it cannot be made.
pub fn directory() -> Result<tempfile::TempDir, Error> {
    let parent = crate::repository().join("target/disks");
    fs::create_dir_all(&parent).map_err(io_error(&parent))?;
    tempfile::tempdir_in(&parent).map_err(io_error(&parent))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::path::PathBuf;

    use super::*;

    fn formatted(directory: &Path) -> PathBuf {
        let path = directory.join("disk.img");
        File::create(&path).unwrap().set_len(32 << 20).unwrap();
        let ended = tool("mke2fs", &["-q", "-t", "ext4", "-b", "4096"], &path).unwrap();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        path
    }

    #[test]
    fn sound_and_broken_file_systems_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = formatted(directory.path());
        check_clean(&path).unwrap();
        assert!(!check_after_crash(&path).unwrap());
        let copied = directory.path().join("copy.img");
        sparse_copy(&path, &copied).unwrap();
        assert!(differing_sectors(&path, &copied, 10).unwrap().is_empty());
        // A block bitmap full of zeroes says that all blocks are free.
        let file = File::options().write(true).open(&copied).unwrap();
        let mut descriptor = [0; 4];
        File::open(&copied)
            .unwrap()
            .read_exact_at(&mut descriptor, 4096)
            .unwrap();
        let bitmap = u64::from(u32::from_le_bytes(descriptor)) * 4096;
        file.write_all_at(&[0; 512], bitmap).unwrap();
        assert!(check_clean(&copied).is_err());
        assert!(check_after_crash(&copied).is_err());
        assert_eq!(
            differing_sectors(&path, &copied, 10).unwrap(),
            [bitmap / 512]
        );
        // "Needs recovery": clean is what was unmounted.
        let file = File::options().write(true).read(true).open(&path).unwrap();
        let mut features = [0; 1];
        file.read_exact_at(&mut features, 1024 + 96).unwrap();
        file.write_all_at(&[features[0] | 4], 1024 + 96).unwrap();
        assert!(check_clean(&path).is_err());
    }

    #[test]
    fn files_come_out_of_a_disk() {
        let directory = tempfile::tempdir().unwrap();
        let path = formatted(directory.path());
        let source = directory.path().join("source");
        fs::write(&source, b"content").unwrap();
        let request = format!("write {} inside", source.display());
        let ended = tool("debugfs", &["-w", "-R", &request], &path).unwrap();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let out = directory.path().join("out");
        extract(&path, "/inside", &out).unwrap();
        assert_eq!(fs::read(&out).unwrap(), b"content");
        assert!(extract(&path, "/absent", &directory.path().join("absent")).is_err());
    }
}
