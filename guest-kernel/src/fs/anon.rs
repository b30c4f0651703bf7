//! What files without a name (eventfd, timerfd, epoll) have in common.

use super::inode::now;
use super::state;
use crate::errno::SysResult;
use crate::file::{self, OpenFile, Stat};
use crate::sched;
use crate::time::Timespec;
use alloc::rc::Rc;

/// `st_dev` of files without a name.
const ANON_DEV: u64 = 13;

/// Inode number and times of a file without a name.
pub struct Anonymous {
    ino: u64,
    made: Timespec,
}

impl Anonymous {
    /// A new identity.
    pub fn new() -> Self {
        Self {
            ino: state::anonymous_ino(),
            made: now(),
        }
    }

    /// Attributes as Linux gives them for anonymous inodes.
    pub fn stat(&self) -> Stat {
        let (uid, gid) = sched::credentials();
        Stat {
            dev: ANON_DEV,
            ino: self.ino,
            nlink: 1,
            mode: 0o600,
            uid,
            gid,
            blksize: 4096,
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
            ..Stat::default()
        }
    }
}

/// Puts a file at the lowest free descriptor.
///
/// # Errors
/// `EMFILE`.
pub fn install(open: Rc<OpenFile>, cloexec: bool) -> SysResult {
    file::table().insert(open, cloexec, 0).map(|fd| fd as u64)
}
