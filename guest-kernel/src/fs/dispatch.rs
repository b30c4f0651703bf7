//! System calls by number (x86-64).

use super::path::{AT_FDCWD, AT_REMOVEDIR, AT_SYMLINK_NOFOLLOW, Target, target_at};
use super::random::getrandom;
use super::sys_stat::Layout;
use super::{epoll, eventfd, poll, sys_copy, sys_fd, sys_io, sys_path, sys_stat, timerfd};
use crate::errno::*;
use crate::file;
use crate::file::flags::{O_CREAT, O_TRUNC, O_WRONLY};

/// Runs system call `nr` if it is one on files; None if it is not ours, or not implemented.
pub fn dispatch(nr: u64, args: [u64; 6]) -> Option<SysResult> {
    let [a, b, c, d, e, f] = args;
    let fd = a as i32;
    // The frequent ones first; the rest in groups, so that this stays readable.
    Some(match nr {
        0 => sys_io::read(fd, b, c as usize),
        1 => sys_io::write(fd, b, c as usize),
        232 => epoll::epoll_wait(fd, b, c as i32, d as i32),
        281 => epoll::epoll_pwait(args),
        20 => sys_io::writev(fd, b, c as usize),
        19 => sys_io::readv(fd, b, c as usize),
        17 => sys_io::pread64(fd, b, c as usize, d as i64),
        18 => sys_io::pwrite64(fd, b, c as usize, d as i64),
        295 => sys_io::preadv(fd, b, c as usize, d as i64),
        296 => sys_io::pwritev(fd, b, c as usize, d as i64),
        // The offset is one register; the next one holds the high half on 32-bit machines only.
        327 => sys_io::preadv2(fd, b, c as usize, d as i64, f as u32),
        328 => sys_io::pwritev2(fd, b, c as usize, d as i64, f as u32),
        40 => sys_copy::sendfile(fd, b as i32, c, d as usize),
        326 => sys_copy::copy_file_range(args),
        285 => sys_copy::fallocate(fd, b as u32, c as i64, d as i64),
        277 => sys_copy::sync_file_range(fd, b as i64, c as i64, d as u32),
        318 => getrandom(a, b as usize, c as u32),
        7 => poll::poll(a, b as usize, c as i32),
        271 => poll::ppoll(a, b as usize, c, d, e),
        23 => poll::select(fd, [b, c, d], e),
        270 => poll::pselect6(fd, [b, c, d], e, f),
        213 => epoll::epoll_create(fd),
        291 => epoll::epoll_create1(a as u32),
        233 => epoll::epoll_ctl(fd, b as u32, c as i32, d),
        441 => epoll::epoll_pwait2(args),
        284 => eventfd::eventfd2(a as u32, 0),
        290 => eventfd::eventfd2(a as u32, b as u32),
        283 => timerfd::timerfd_create(a as u32, b as u32),
        286 => timerfd::timerfd_settime(fd, b as u32, c, d),
        287 => timerfd::timerfd_gettime(fd, b),
        _ => return descriptors(nr, args).or_else(|| names(nr, args)),
    })
}

/// Calls on descriptors.
fn descriptors(nr: u64, args: [u64; 6]) -> Option<SysResult> {
    let [a, b, c, d, ..] = args;
    let fd = a as i32;
    Some(match nr {
        3 => sys_fd::close(fd),
        436 => sys_fd::close_range(a as u32, b as u32, c as u32),
        5 => sys_stat::fstat(fd, b),
        8 => sys_fd::lseek(fd, b as i64, c as u32),
        16 => sys_fd::ioctl(fd, b as u32, c),
        32 => sys_fd::dup(fd),
        33 => sys_fd::dup2(fd, b as i32),
        292 => sys_fd::dup3(fd, b as i32, c as u32),
        72 => sys_fd::fcntl(fd, b as u32, c),
        73 => sys_fd::flock(fd, b as u32),
        74 | 75 => sys_fd::fsync(fd),
        306 => sys_fd::syncfs(fd),
        162 => sys_fd::sync(),
        77 => sys_stat::ftruncate(fd, b as i64),
        78 => sys_stat::getdents(fd, b, c as usize, Layout::Old),
        217 => sys_stat::getdents(fd, b, c as usize, Layout::New),
        81 => sys_path::fchdir(fd),
        91 => sys_stat::fchmod(fd, b as u32),
        93 => sys_stat::fchown(fd, b as u32, c as u32),
        138 => sys_stat::fstatfs(fd, b),
        221 => sys_fd::fadvise64(fd, b, c, d as u32),
        22 => sys_path::pipe2(a, 0),
        293 => sys_path::pipe2(a, b as u32),
        319 => sys_path::memfd_create(a, b as u32),
        190 | 193 | 196 | 199 => file::get(fd).and(Err(EOPNOTSUPP)),
        _ => return None,
    })
}

/// Calls on names.
fn names(nr: u64, args: [u64; 6]) -> Option<SysResult> {
    const CWD: i32 = AT_FDCWD;
    let [a, b, c, d, e, _] = args;
    let dirfd = a as i32;
    Some(match nr {
        2 => sys_path::openat(CWD, a, b as u32, c as u32),
        257 => sys_path::openat(dirfd, b, c as u32, d as u32),
        85 => sys_path::openat(CWD, a, O_CREAT | O_WRONLY | O_TRUNC, b as u32),
        4 => sys_stat::fstatat(CWD, a, b, 0),
        6 => sys_stat::fstatat(CWD, a, b, AT_SYMLINK_NOFOLLOW),
        262 => sys_stat::fstatat(dirfd, b, c, d as u32),
        332 => sys_stat::statx(dirfd, b, c as u32, d as u32, e),
        21 => sys_path::faccessat2(CWD, a, b as u32, 0),
        269 => sys_path::faccessat2(dirfd, b, c as u32, 0),
        439 => sys_path::faccessat2(dirfd, b, c as u32, d as u32),
        76 => sys_stat::truncate(a, b as i64),
        79 => sys_path::getcwd(a, b as usize),
        80 => sys_path::chdir(a),
        161 => sys_path::chroot(a),
        82 => sys_path::renameat2(CWD, a, CWD, b, 0),
        264 => sys_path::renameat2(dirfd, b, c as i32, d, 0),
        316 => sys_path::renameat2(dirfd, b, c as i32, d, e as u32),
        83 => sys_path::mkdirat(CWD, a, b as u32),
        258 => sys_path::mkdirat(dirfd, b, c as u32),
        84 => sys_path::unlinkat(CWD, a, AT_REMOVEDIR),
        87 => sys_path::unlinkat(CWD, a, 0),
        263 => sys_path::unlinkat(dirfd, b, c as u32),
        86 => sys_path::linkat(CWD, a, CWD, b, 0),
        265 => sys_path::linkat(dirfd, b, c as i32, d, e as u32),
        88 => sys_path::symlinkat(a, CWD, b),
        266 => sys_path::symlinkat(a, b as i32, c),
        89 => sys_path::readlinkat(CWD, a, b, c as i32),
        267 => sys_path::readlinkat(dirfd, b, c, d as i32),
        133 => sys_path::mknodat(CWD, a, b as u32),
        259 => sys_path::mknodat(dirfd, b, c as u32),
        90 => sys_stat::fchmodat(CWD, a, b as u32, 0),
        268 => sys_stat::fchmodat(dirfd, b, c as u32, 0),
        452 => sys_stat::fchmodat(dirfd, b, c as u32, d as u32),
        92 => sys_stat::fchownat(CWD, a, b as u32, c as u32, 0),
        94 => sys_stat::fchownat(CWD, a, b as u32, c as u32, AT_SYMLINK_NOFOLLOW),
        260 => sys_stat::fchownat(dirfd, b, c as u32, d as u32, e as u32),
        280 => sys_stat::utimensat(dirfd, b, c, d as u32),
        132 => sys_stat::utime(a, b),
        235 => sys_stat::futimesat(CWD, a, b),
        261 => sys_stat::futimesat(dirfd, b, c),
        95 => sys_stat::umask(a as u32),
        137 => sys_stat::statfs(a, b),
        // mount, umount2: the appliance decides what is mounted.
        165 | 166 => Err(EPERM),
        188 | 191 | 194 | 197 => no_xattrs(a, 0),
        189 | 192 | 195 | 198 => no_xattrs(a, AT_SYMLINK_NOFOLLOW),
        _ => return None,
    })
}

/// Extended attributes are not kept; a missing file is told all the same.
fn no_xattrs(path: u64, at_flags: u32) -> SysResult {
    match target_at(AT_FDCWD, path, at_flags)? {
        Target::Missing => Err(ENOENT),
        _ => Err(EOPNOTSUPP),
    }
}
