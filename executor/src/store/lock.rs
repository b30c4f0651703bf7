//! Two executors must not open one disk: a lock on the whole file that goes when its last descriptor does, however
//! the process ends (open file description locks, fcntl(2)).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// Locks the file; `false` if somebody else holds it.
///
/// # Errors
/// When the file system knows no locks.
pub fn acquire(file: &File, shared: bool) -> io::Result<bool> {
    let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
    match set(file, kind) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Lets go of the lock before the last descriptor does.
///
/// # Errors
/// What the operating system says.
pub fn release(file: &File) -> io::Result<()> {
    set(file, libc::F_UNLCK)
}

fn set(file: &File, kind: libc::c_int) -> io::Result<()> {
    let request = libc::flock {
        // The constants are 0, 1 and 2.
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        // To the end, wherever that is.
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open as long as `file` lives, and F_OFD_SETLK only reads the structure that is passed.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Who holds a lock on the file, in words. Such a lock belongs to no process, so the kernel cannot say; the processes that we
/// may look into are searched for a descriptor of the file with a lock on it.
pub fn holder(file: &File) -> String {
    let Some(pid) = file.metadata().ok().and_then(|meta| {
        let id = (meta.dev(), meta.ino());
        let processes = std::fs::read_dir("/proc").ok()?;
        processes
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .find(|pid| holds(*pid, id))
    }) else {
        return "another process".to_owned();
    };
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match (pid == std::process::id(), name.trim()) {
        (true, _) => format!("another disk of this process (pid {pid})"),
        (false, "") => format!("process {pid}"),
        (false, name) => format!("process {pid} ({name})"),
    }
}

fn holds(pid: u32, id: (u64, u64)) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors.filter_map(Result::ok).any(|descriptor| {
        let same = std::fs::metadata(descriptor.path()).is_ok_and(|m| (m.dev(), m.ino()) == id);
        same && std::fs::read_to_string(format!(
            "/proc/{pid}/fdinfo/{}",
            descriptor.file_name().to_string_lossy()
        ))
        .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")))
    })
}
