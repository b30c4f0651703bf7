//! Where control sockets live, and how one is made there safely.

use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::ControlError;

/// Sets of one name that may run at once with default sockets (R10); the next start is refused.
pub const MAX_SAME_NAME: usize = 64;
/// Connections that may wait for the server.
const BACKLOG: i32 = 16;

/// The directory of default sockets: `$XDG_RUNTIME_DIR/quorate`, or `/tmp/quorate-UID` where that is not set.
pub fn default_directory() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(directory) if directory.is_absolute() && directory.is_dir() => {
            directory.join("quorate")
        }
        _ => PathBuf::from(format!(
            "/tmp/quorate-{}",
            rustix::process::getuid().as_raw()
        )),
    }
}

/// Makes the directory if it is missing, and checks that it is the user's alone.
///
/// # Errors
/// When it belongs to somebody else, others may enter it, or it cannot be made.
pub fn private_directory(path: &Path) -> Result<(), ControlError> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(ControlError::io(path, error)),
    }
    // `symlink_metadata`: in /tmp anybody could have put a link here.
    let metadata =
        std::fs::symlink_metadata(path).map_err(|error| ControlError::io(path, error))?;
    let problem = if !metadata.is_dir() {
        "not a directory".to_owned()
    } else if metadata.uid() != rustix::process::getuid().as_raw() {
        format!("belongs to user {}", metadata.uid())
    } else if metadata.mode() & 0o077 != 0 {
        format!("has mode {:04o}", metadata.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(ControlError::Directory {
        path: path.to_owned(),
        problem,
    })
}

/// Binds a control socket of mode 0600 at `path`. One that nobody serves any more is replaced.
///
/// # Errors
/// When another set answers there, something else lies there, or a system call fails.
pub fn bind(path: &Path) -> Result<UnixListener, ControlError> {
    let io = |error: rustix::io::Errno| ControlError::io(path, error);
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Two starts at once must not both take the same socket for stale: looking and binding happen under a lock.
    let directory = rustix::fs::open(
        parent,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| ControlError::io(parent, error))?;
    rustix::fs::flock(&directory, FlockOperation::LockExclusive)
        .map_err(|error| ControlError::io(parent, error))?;

    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ControlError::NotASocket(path.to_owned()));
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(|error| ControlError::io(path, error))?;
            }
            // A full backlog or a lack of rights: somebody is there.
            _ => return Err(ControlError::InUse(path.to_owned())),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(ControlError::io(path, error)),
    }

    let address = SocketAddrUnix::new(path).map_err(io)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(io)?;
    // Linux gives the new file the mode of the socket's own inode, so it never exists with wider rights.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(io)?;
    rustix::net::bind(&socket, &address).map_err(io)?;
    rustix::net::listen(&socket, BACKLOG).map_err(io)?;
    Ok(UnixListener::from(socket))
}

/// Binds the default socket for an appliance: `NAME.sock`, or `NAME-2.sock` and so on while others of that name run.
///
/// # Errors
/// As [`private_directory`] and [`bind`].
pub fn bind_default(directory: &Path, name: &str) -> Result<(UnixListener, PathBuf), ControlError> {
    private_directory(directory)?;
    let name = file_name(name);
    let mut last = None;
    for number in 1..=MAX_SAME_NAME {
        let path = directory.join(if number == 1 {
            format!("{name}.sock")
        } else {
            format!("{name}-{number}.sock")
        });
        match bind(&path) {
            Ok(listener) => return Ok((listener, path)),
            Err(error @ ControlError::InUse(_)) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| ControlError::InUse(directory.to_owned())))
}

/// The sockets in `directory` that somebody serves.
pub fn live_sockets(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "sock")
        })
        .filter(|path| UnixStream::connect(path).is_ok())
        .collect();
    found.sort();
    found
}

fn file_name(name: &str) -> String {
    let safe: String = name
        .chars()
        .take(64)
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') {
                c
            } else {
                '_'
            }
        })
        .collect();
    if safe.trim_matches('.').is_empty() {
        "appliance".to_owned()
    } else {
        safe
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_socket_is_the_users_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let _listener = bind(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let first = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(ControlError::InUse(_))));
        drop(first);
        assert!(path.exists());
        bind(&path).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(ControlError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn sets_of_one_name_get_sockets_of_their_own() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("run");
        let (_first, one) = bind_default(&directory, "re dis").unwrap();
        let (_second, two) = bind_default(&directory, "re dis").unwrap();
        assert_eq!(one.file_name().unwrap(), "re_dis.sock");
        assert_eq!(two.file_name().unwrap(), "re_dis-2.sock");
        assert_eq!(live_sockets(&directory), [two, one]);
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let open = directory.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = bind_default(&open, "a").unwrap_err();
        assert!(error.to_string().contains("0755"), "{error}");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&open, &link).unwrap();
        assert!(matches!(
            private_directory(&link),
            Err(ControlError::Directory { .. })
        ));
    }
}
