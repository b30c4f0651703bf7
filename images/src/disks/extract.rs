//! Copies files from a disk's file system to the host, without root and without mounting. What is on a disk is the guest's
//! word (R9): nothing of it can make a file anywhere but in the directory given, and nothing gets an owner or set-id bit.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ext4_view::{Ext4, Ext4Error, Metadata};

use super::check::{LookError, needs_replay, replayed_copy};

/// How deep directories may lie in each other: a damaged one may contain itself.
const MAX_DEPTH: usize = 200;
/// Most files of all sorts that are copied (R10).
const MAX_FILES: u64 = 1 << 22;
/// What is read at a time, bytes; pieces of zeroes become holes.
const CHUNK: usize = 1 << 16;

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// Regular files; each hard link counts and becomes a file of its own.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links, as they are: they may point anywhere, and were not followed.
    pub links: u64,
    /// Devices, pipes and sockets, which are left out.
    pub skipped: u64,
    /// Bytes of files that are not zeroes.
    pub bytes: u64,
}

/// Copies `paths` of the ext4 file system on the disk at `disk`, or all of it if there are none, into the directory `to`, which must be
/// new or empty. What is in the journal counts, and the disk is not changed.
///
/// # Errors
/// [`LookError`].
pub fn extract(disk: &Path, paths: &[String], to: &Path) -> Result<Extracted, LookError> {
    let mut file = File::open(disk).map_err(LookError::io("read the disk", disk))?;
    // The library wants a kind of journal that not every driver writes, so e2fsck replays it, on a copy.
    let copy;
    if needs_replay(&mut file, disk)? {
        copy = replayed_copy(&file, disk)?;
        file = File::open(copy.path()).map_err(LookError::io("read the disk", disk))?;
    }
    let length = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
        .map_err(|error| LookError::io("read the disk", disk)(error.into()))?;
    let volume = Ext4::load(Box::new(file)).map_err(|error| damaged(disk, "/", &error))?;
    make_root(to)?;
    let mut copy = Copy {
        disk,
        volume,
        length,
        done: Extracted::default(),
        links: Vec::new(),
        times: Vec::new(),
    };
    let everything = ["/".to_owned()];
    let paths = if paths.is_empty() { &everything } else { paths };
    for path in paths {
        copy.path(path, to)?;
    }
    copy.finish()
}

struct Copy<'a> {
    disk: &'a Path,
    volume: Ext4,
    /// Bytes of the disk: files have no more together, unless blocks are shared that must not be.
    length: u64,
    done: Extracted,
    /// Links to make at the end, so that none is there while files are made: path and target.
    links: Vec<(PathBuf, Vec<u8>)>,
    /// Directories that get their permissions and times at the end, when nothing is made in them any more.
    times: Vec<(PathBuf, Metadata)>,
}

impl Copy<'_> {
    fn path(&mut self, path: &str, to: &Path) -> Result<(), LookError> {
        let missing = || LookError::Missing {
            path: self.disk.to_owned(),
            name: path.to_owned(),
        };
        let parts: Vec<&str> = path
            .split('/')
            .filter(|part| !part.is_empty() && *part != ".")
            .collect();
        if parts.contains(&"..") || parts.len() > MAX_DEPTH {
            return Err(missing());
        }
        let from = format!("/{}", parts.join("/"));
        let info = match self.volume.symlink_metadata(from.as_str()) {
            Ok(info) => info,
            Err(Ext4Error::NotFound | Ext4Error::NotADirectory) => return Err(missing()),
            Err(error) => return Err(damaged(self.disk, &from, &error)),
        };
        let mut host = to.to_owned();
        if let Some((_, above)) = parts.split_last() {
            for part in above {
                host.push(part);
                match fs::create_dir(&host) {
                    Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                        return Err(LookError::io("make the directory", host)(error));
                    }
                    _ => {}
                }
            }
        }
        host.extend(parts.last());
        self.tree(from.into_bytes(), info, host, parts.len())
    }

    fn tree(
        &mut self,
        from: Vec<u8>,
        info: Metadata,
        host: PathBuf,
        depth: usize,
    ) -> Result<(), LookError> {
        let mut todo = VecDeque::from([(from, info, host, depth)]);
        while let Some((from, info, host, depth)) = todo.pop_front() {
            let done = &self.done;
            let count = done.files + done.directories + done.links + done.skipped;
            if count >= MAX_FILES || depth > MAX_DEPTH {
                let reason = format!(
                    "more than {MAX_FILES} files, or {MAX_DEPTH} directories in each other"
                );
                return Err(self.damaged(&from, reason));
            }
            if info.is_dir() {
                self.directory(&from, info, &host, depth, &mut todo)?;
            } else if info.is_symlink() {
                let target = self.volume.read_link(&from[..]);
                let target = target.map_err(|error| self.damaged(&from, error.to_string()))?;
                self.links.push((host, target.as_ref().to_vec()));
                self.done.links += 1;
            } else if info.file_type().is_regular_file() {
                self.file(&from, &info, &host)?;
                self.done.files += 1;
            } else {
                self.done.skipped += 1;
            }
        }
        Ok(())
    }

    fn directory(
        &mut self,
        from: &[u8],
        info: Metadata,
        host: &Path,
        depth: usize,
        todo: &mut VecDeque<(Vec<u8>, Metadata, PathBuf, usize)>,
    ) -> Result<(), LookError> {
        match fs::create_dir(host) {
            // The directory given, or one on the way to a path that was asked for: made here, too.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(LookError::io("make the directory", host)(error)),
            Ok(()) => {}
        }
        self.done.directories += 1;
        let bad = |error: Ext4Error| damaged(self.disk, &show(from), &error);
        for entry in self.volume.read_dir(from).map_err(bad)? {
            let entry = entry.map_err(bad)?;
            let name = entry.file_name().as_ref().to_vec();
            if name == b"." || name == b".." {
                continue;
            }
            // The library sees to it; what would be a path of its own must not pass.
            if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                return Err(self.damaged(from, format!("a file called {:?}", show(&name))));
            }
            let mut path = from.to_vec();
            if path.last() != Some(&b'/') {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let inner = entry.metadata().map_err(bad)?;
            todo.push_back((path, inner, host.join(OsStr::from_bytes(&name)), depth + 1));
        }
        self.times.push((host.to_owned(), info));
        Ok(())
    }

    fn file(&mut self, from: &[u8], info: &Metadata, host: &Path) -> Result<(), LookError> {
        // Holes have to be read like data; a size that no data can fill would take for ever.
        if info.len() > self.length {
            let reason = format!("its {} bytes are more than the disk has", info.len());
            return Err(self.damaged(from, reason));
        }
        let write_error = || LookError::io("write", host);
        let mut source = self
            .volume
            .open(from)
            .map_err(|error| self.damaged(from, error.to_string()))?;
        // Never through or over anything that is there.
        let target = File::create_new(host).map_err(write_error())?;
        target.set_len(info.len()).map_err(write_error())?;
        let mut buffer = vec![0; CHUNK];
        let mut at = 0;
        loop {
            let n = source
                .read(&mut buffer)
                .map_err(|error| self.damaged(from, error.to_string()))?;
            let piece = &buffer[..n];
            if n == 0 {
                break;
            }
            if piece.iter().any(|byte| *byte != 0) {
                self.done.bytes += n as u64;
                if self.done.bytes > self.length {
                    let reason = "files have more data together than the disk".to_owned();
                    return Err(self.damaged(from, reason));
                }
                target.write_all_at(piece, at).map_err(write_error())?;
            }
            at += n as u64;
        }
        target.set_modified(time(info)).map_err(write_error())?;
        target
            .set_permissions(permissions(info))
            .map_err(write_error())
    }

    fn finish(self) -> Result<Extracted, LookError> {
        for (path, target) in &self.links {
            std::os::unix::fs::symlink(OsStr::from_bytes(target), path)
                .map_err(LookError::io("make the link", path))?;
        }
        for (path, info) in self.times.iter().rev() {
            let times = File::open(path).and_then(|directory| directory.set_modified(time(info)));
            times
                .and_then(|()| fs::set_permissions(path, permissions(info)))
                .map_err(LookError::io("set the permissions of", path))?;
        }
        Ok(self.done)
    }

    fn damaged(&self, from: &[u8], reason: String) -> LookError {
        LookError::Damaged {
            path: self.disk.to_owned(),
            what: show(from),
            reason,
        }
    }
}

fn damaged(disk: &Path, what: &str, error: &Ext4Error) -> LookError {
    LookError::Damaged {
        path: disk.to_owned(),
        what: what.to_owned(),
        reason: error.to_string(),
    }
}

/// Makes the directory that everything goes into.
fn make_root(to: &Path) -> Result<(), LookError> {
    fs::create_dir_all(to).map_err(LookError::io("make the directory", to))?;
    let mut entries = fs::read_dir(to).map_err(LookError::io("read the directory", to))?;
    if entries.next().is_some() {
        return Err(LookError::NotEmpty(to.to_owned()));
    }
    Ok(())
}

/// Without set-id and sticky bits; whoever copies can always read it and remove it again.
fn permissions(info: &Metadata) -> Permissions {
    let least = if info.is_dir() { 0o700 } else { 0o600 };
    Permissions::from_mode(u32::from(info.mode()) & 0o777 | least)
}

fn time(info: &Metadata) -> SystemTime {
    let modified = info.modified();
    let nanoseconds = Duration::from_nanos(modified.nanoseconds().into());
    let seconds = Duration::from_secs(modified.seconds().unsigned_abs());
    let whole = if modified.seconds() < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    whole
        .and_then(|time| time.checked_add(nanoseconds))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
