//! `fcntl`, `dup`, `lseek`, locks, memfds, directory entries, permissions.

use crate::errno::*;
use crate::file::flags::*;
use crate::fs::testing::*;

#[test]
fn duplicates_share_the_position_and_not_the_flag() {
    let _guard = setup();
    let fd = open("/etc/motd", O_RDONLY | O_CLOEXEC).unwrap();
    let copy = sys(72, &[fd, 0, 10]).unwrap();
    assert_eq!(copy, 10);
    assert_eq!(sys(72, &[fd, 1, 0]).unwrap(), 1);
    assert_eq!(sys(72, &[copy, 1, 0]).unwrap(), 0);
    assert_eq!(sys(72, &[fd, 1030, 10]).unwrap(), 11);
    assert_eq!(sys(72, &[11, 1, 0]).unwrap(), 1);
    read(fd, 2).unwrap();
    assert_eq!(read(copy, 2).unwrap(), b"ll");
    assert_eq!(
        sys(72, &[fd, 4, u64::from(O_NONBLOCK | O_RDWR)]).unwrap(),
        0
    );
    // The access mode cannot be changed.
    assert_eq!(
        sys(72, &[copy, 3, 0]).unwrap() as u32,
        O_NONBLOCK | O_LARGEFILE
    );
    let off = 0i32;
    sys(16, &[fd, 0x5421, (&raw const off) as u64]).unwrap();
    assert_eq!(sys(72, &[copy, 3, 0]).unwrap() as u32, O_LARGEFILE);
    assert_eq!(sys(33, &[fd, 20]).unwrap(), 20);
    assert_eq!(sys(33, &[fd, fd]).unwrap(), fd);
    assert_eq!(error(sys(292, &[fd, fd, 0])), EINVAL);
    assert_eq!(error(sys(33, &[fd, 5000])), EBADF);
    assert_eq!(error(sys(72, &[fd, 0, 5000])), EINVAL);
    assert_eq!(error(sys(72, &[fd, 999, 0])), EINVAL);
    sys(436, &[10, u64::from(u32::MAX), 0]).unwrap();
    assert_eq!(error(read(20, 1)), EBADF);
    assert_eq!(error(sys(3, &[20])), EBADF);
}

#[test]
fn the_table_has_a_limit() {
    let _guard = setup();
    crate::file::table().limit = 3;
    for _ in 0..3 {
        open("/etc/motd", O_RDONLY).unwrap();
    }
    assert_eq!(error(open("/etc/motd", O_RDONLY)), EMFILE);
    close(1);
    let mut fds = [7i32; 2];
    assert_eq!(error(sys(22, &[fds.as_mut_ptr() as u64])), EMFILE);
    // The first end was given back.
    assert_eq!(open("/etc/motd", O_RDONLY).unwrap(), 1);
}

#[test]
fn lseek_knows_ends_data_and_holes() {
    let _guard = setup();
    let fd = open("/data/big", O_RDWR).unwrap();
    let size = big().len() as u64;
    assert_eq!(sys(8, &[fd, 0, 2]).unwrap(), size);
    assert_eq!(sys(8, &[fd, -10i64 as u64, 1]).unwrap(), size - 10);
    assert_eq!(error(sys(8, &[fd, -1i64 as u64, 0])), EINVAL);
    assert_eq!(sys(8, &[fd, 0, 4]).unwrap(), size);
    assert_eq!(error(sys(8, &[fd, size, 3])), ENXIO);
    pwrite(fd, b"x", 100 * 4096).unwrap();
    assert_eq!(sys(8, &[fd, 0, 4]).unwrap(), 5 * 4096);
    assert_eq!(sys(8, &[fd, 6 * 4096, 3]).unwrap(), 100 * 4096);
    // A hole punched into the image reads as zero.
    sys(285, &[fd, 3, 4096, 4096]).unwrap();
    let mut expected = big();
    expected[4096..8192].fill(0);
    assert_eq!(pread(fd, expected.len(), 0).unwrap(), expected);
    // One made in memory is given back.
    let blocks = lstat("/data/big").unwrap().blocks;
    sys(285, &[fd, 3, 100 * 4096, 4096]).unwrap();
    assert_eq!(lstat("/data/big").unwrap().blocks, blocks - 8);
    assert_eq!(error(sys(285, &[fd, 2, 0, 10])), EOPNOTSUPP);
    assert_eq!(error(sys(285, &[fd, 0, 0, 0])), EINVAL);
}

#[test]
fn append_always_writes_at_the_end() {
    let _guard = setup();
    let fd = open("/etc/motd", O_WRONLY | O_APPEND).unwrap();
    let other = open("/etc/motd", O_RDWR).unwrap();
    write(fd, b"one").unwrap();
    sys(8, &[other, 0, 2]).unwrap();
    write(other, b"two").unwrap();
    write(fd, b"three").unwrap();
    assert_eq!(slurp("/etc/motd").unwrap(), b"hello\nonetwothree");
    assert_eq!(error(read(fd, 1)), EBADF);
    let read_only = open("/etc/motd", O_RDONLY).unwrap();
    assert_eq!(error(write(read_only, b"x")), EBADF);
    assert_eq!(error(sys(77, &[read_only, 0])), EINVAL);
}

#[test]
fn record_locks_conflict_only_with_descriptions() {
    let _guard = setup();
    let a = open("/etc/motd", O_RDWR).unwrap();
    let b = open("/etc/motd", O_RDWR).unwrap();
    // l_type, l_whence, l_start, l_len, l_pid as in struct flock
    let lock = |kind: i16, start: i64, len: i64| {
        let mut bytes = [0u8; 32];
        bytes[0..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&start.to_le_bytes());
        bytes[16..24].copy_from_slice(&len.to_le_bytes());
        bytes
    };
    let ask = |fd: u64, command: u64, lock: &mut [u8; 32]| {
        sys(72, &[fd, command, lock.as_mut_ptr() as u64])
    };
    ask(a, 6, &mut lock(1, 0, 10)).unwrap();
    // The same process: granted, and nothing is in the way.
    ask(b, 6, &mut lock(1, 0, 10)).unwrap();
    let mut query = lock(1, 0, 0);
    ask(b, 5, &mut query).unwrap();
    assert_eq!(query[0], 2);
    // A description lock sees the process's.
    assert_eq!(error(ask(b, 37, &mut lock(1, 5, 1))), EAGAIN);
    let mut query = lock(0, 5, 100);
    ask(b, 36, &mut query).unwrap();
    assert_eq!((query[0], u32::from(query[24])), (1, crate::sched::pid()));
    assert_eq!(query[8..24], lock(0, 0, 10)[8..24]);
    // Closing any descriptor of the file drops the process's locks.
    let third = open("/etc/motd", O_RDONLY).unwrap();
    close(third);
    ask(b, 37, &mut lock(1, 5, 1)).unwrap();
    assert_eq!(error(ask(a, 37, &mut lock(0, 0, 0))), EAGAIN);
    close(b);
    ask(a, 37, &mut lock(0, 0, 0)).unwrap();
    assert_eq!(error(ask(a, 6, &mut lock(7, 0, 0))), EINVAL);
    assert_eq!(error(ask(a, 6, &mut lock(1, -5, 1))), EINVAL);
}

#[test]
fn flock_is_per_description() {
    let _guard = setup();
    let a = open("/etc/motd", O_RDONLY).unwrap();
    let b = open("/etc/motd", O_RDONLY).unwrap();
    let dup = sys(32, &[a]).unwrap();
    sys(73, &[a, 2]).unwrap();
    sys(73, &[dup, 2 | 4]).unwrap();
    assert_eq!(error(sys(73, &[b, 1 | 4])), EAGAIN);
    close(a);
    assert_eq!(error(sys(73, &[b, 1 | 4])), EAGAIN);
    close(dup);
    sys(73, &[b, 1 | 4]).unwrap();
}

#[test]
fn memfds_can_be_sealed() {
    let _guard = setup();
    let fd = sys(319, &[c("shared"), 2]).unwrap();
    write(fd, b"contents").unwrap();
    let file = crate::file::get(fd as i32).unwrap().file.clone();
    assert_eq!(file.path(), b"/memfd:shared (deleted)");
    let page = file.map_page(0, true).unwrap();
    assert_eq!(error(sys(72, &[fd, 1033, 8])), EBUSY);
    drop(page);
    sys(72, &[fd, 1033, 2 | 4 | 8]).unwrap();
    assert_eq!(sys(72, &[fd, 1034, 0]).unwrap(), 14);
    assert_eq!(error(write(fd, b"x")), EPERM);
    assert_eq!(error(sys(77, &[fd, 1])), EPERM);
    assert_eq!(error(sys(77, &[fd, 100])), EPERM);
    assert_eq!(file.map_page(0, true).err(), Some(EPERM));
    let plain = sys(319, &[c("plain"), 0]).unwrap();
    assert_eq!(error(sys(72, &[plain, 1033, 8])), EPERM);
}

#[test]
fn directory_entries_have_the_layout_of_linux() {
    let _guard = setup();
    let fd = open("/etc", O_RDONLY | O_DIRECTORY).unwrap();
    let mut buf = [0xffu8; 256];
    let n = sys(217, &[fd, buf.as_mut_ptr() as u64, 256]).unwrap() as usize;
    // ".", "..", "motd", "mtab": 24 bytes each (19 + name + NUL, rounded up to 8)
    assert_eq!(n, 4 * 24);
    let third = &buf[48..72];
    assert_eq!(
        u64::from_le_bytes(third[0..8].try_into().unwrap()),
        lstat("/etc/motd").unwrap().ino
    );
    assert_eq!(u64::from_le_bytes(third[8..16].try_into().unwrap()), 3);
    assert_eq!(u16::from_le_bytes([third[16], third[17]]), 24);
    assert_eq!(third[18], 8);
    assert_eq!(&third[19..24], b"motd\0");
    assert_eq!((buf[18], buf[72 + 18]), (4, 10));
    assert_eq!(sys(217, &[fd, buf.as_mut_ptr() as u64, 256]).unwrap(), 0);
    // Going back to a position that was given.
    sys(8, &[fd, 3, 0]).unwrap();
    assert_eq!(sys(217, &[fd, buf.as_mut_ptr() as u64, 256]).unwrap(), 24);
    assert_eq!(&buf[19..24], b"mtab\0");
    // The old layout has the type in the last byte.
    sys(8, &[fd, 0, 0]).unwrap();
    assert_eq!(sys(78, &[fd, buf.as_mut_ptr() as u64, 256]).unwrap(), 96);
    assert_eq!((&buf[48 + 18..48 + 23], buf[71]), (b"motd\0".as_slice(), 8));
    assert_eq!(
        error(sys(
            217,
            &[open("/etc/motd", 0).unwrap(), buf.as_mut_ptr() as u64, 256]
        )),
        ENOTDIR
    );
}

#[test]
fn access_as_root_needs_some_execute_bit_to_execute() {
    let _guard = setup();
    let access = |path: &str, mode: u64| sys(21, &[c(path), mode]);
    access("/data/secret", 4 | 2).unwrap();
    assert_eq!(error(access("/data/secret", 1)), EACCES);
    access("/bin/sh", 1).unwrap();
    access("/data", 1).unwrap();
    assert_eq!(error(access("/nope", 0)), ENOENT);
    assert_eq!(error(access("/etc", 8)), EINVAL);
    assert!(crate::fs::open_program(b"/bin/sh").is_ok());
    assert_eq!(crate::fs::open_program(b"/etc/motd").err(), Some(EACCES));
    assert_eq!(crate::fs::open_program(b"/etc").err(), Some(EACCES));
}
