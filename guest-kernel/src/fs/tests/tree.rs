//! The tree: the image, changes over it, walking.

use crate::errno::*;
use crate::file::{MapPage, flags::*};
use crate::fs::testing::*;
use crate::fs::{path, state};

const CWD: u64 = -100i64 as u64;

#[test]
fn the_image_is_readable_and_its_pages_are_mapped_in_place() {
    let _guard = setup();
    assert_eq!(slurp("/etc/motd").unwrap(), b"hello\n");
    assert_eq!(slurp("/data/big").unwrap(), big());
    assert_eq!(slurp("/data/empty").unwrap(), b"");
    assert_eq!(
        names("/").unwrap(),
        [
            "bin", "data", "dev", "etc", "loop", "proc", "sys", "tmp", "usr"
        ]
    );
    let file = crate::fs::open(b"/data/big", O_RDONLY, 0)
        .unwrap()
        .file
        .clone();
    let Ok(MapPage::Image(first)) = file.map_page(0, false) else {
        panic!()
    };
    let Ok(MapPage::Image(third)) = file.map_page(2, false) else {
        panic!()
    };
    assert_eq!(third - first, 8192);
    assert!(first >= IMAGE_PHYSICAL && first % 4096 == 0);
    assert!(matches!(file.map_page(4, false), Ok(MapPage::Image(_))));
    assert_eq!(file.map_page(5, false).err(), Some(ENXIO));
}

#[test]
fn a_write_changes_one_page_and_the_image_stays_behind_the_others() {
    let _guard = setup();
    let used = || state::space().page_counts().1;
    let fd = open("/data/big", O_RDWR).unwrap();
    let ino = lstat("/data/big").unwrap().ino;
    assert_eq!(pwrite(fd, b"CHANGED", 4096 + 4090).unwrap(), 7);
    let mut expected = big();
    expected[8186..8193].copy_from_slice(b"CHANGED");
    assert_eq!(slurp("/data/big").unwrap(), expected);
    assert_eq!(used(), 2);
    assert_eq!(lstat("/data/big").unwrap().ino, ino);
    let file = crate::fs::open(b"/data/big", O_RDONLY, 0)
        .unwrap()
        .file
        .clone();
    assert!(matches!(file.map_page(0, false), Ok(MapPage::Image(_))));
    let Ok(MapPage::Shared(page)) = file.map_page(1, false) else {
        panic!()
    };
    // A mapping and the file are one: both directions.
    page.write(0, b"map");
    assert_eq!(pread(fd, 3, 4096).unwrap(), b"map");
    let Ok(MapPage::Shared(copy)) = file.map_page(3, true) else {
        panic!()
    };
    let mut byte = [0];
    copy.read(5, &mut byte);
    assert_eq!(byte[0], big()[3 * 4096 + 5]);
    assert_eq!(used(), 3);
}

#[test]
fn what_truncation_cuts_off_never_comes_back() {
    let _guard = setup();
    let fd = open("/data/big", O_RDWR).unwrap();
    sys(77, &[fd, 4096 + 10]).unwrap();
    sys(77, &[fd, 20000]).unwrap();
    let mut expected = big();
    expected.truncate(4096 + 10);
    expected.resize(20000, 0);
    assert_eq!(slurp("/data/big").unwrap(), expected);
    assert_eq!(lstat("/data/big").unwrap().size, 20000);
    // Written by a mapping behind the end, then grown over: POSIX wants zeros.
    spit("/tmp/f", b"abc").unwrap();
    let file = crate::fs::open(b"/tmp/f", O_RDWR, 0).unwrap().file.clone();
    let Ok(MapPage::Shared(page)) = file.map_page(0, true) else {
        panic!()
    };
    page.write(3, b"garbage");
    file.truncate(8).unwrap();
    assert_eq!(slurp("/tmp/f").unwrap(), b"abc\0\0\0\0\0");
}

#[test]
fn names_of_the_image_can_be_removed_replaced_and_made_again() {
    let _guard = setup();
    let fd = open("/etc/motd", O_RDONLY).unwrap();
    sys(87, &[c("/etc/motd")]).unwrap();
    assert_eq!(error(open("/etc/motd", O_RDONLY)), ENOENT);
    assert_eq!(names("/etc").unwrap(), ["mtab"]);
    // An open file survives its name.
    assert_eq!(read(fd, 100).unwrap(), b"hello\n");
    spit("/etc/motd", b"new").unwrap();
    assert_eq!(slurp("/etc/motd").unwrap(), b"new");
    assert_eq!(names("/etc").unwrap(), ["motd", "mtab"]);
    sys(82, &[c("/etc/motd"), c("/etc/mtab")]).unwrap();
    assert_eq!(slurp("/etc/mtab").unwrap(), b"new");
    assert_eq!(names("/etc").unwrap(), ["mtab"]);
    sys(87, &[c("/etc/mtab")]).unwrap();
    assert_eq!(names("/etc").unwrap(), Vec::<String>::new());
    sys(84, &[c("/etc")]).unwrap();
    assert_eq!(error(sys(84, &[c("/etc")])), ENOENT);
    sys(83, &[c("/etc"), 0o755]).unwrap();
    assert_eq!(names("/etc").unwrap(), Vec::<String>::new());
}

#[test]
fn removing_a_file_of_the_image_frees_what_was_written_to_it() {
    let _guard = setup();
    let before = state::space().page_counts().1;
    spit("/data/big", &vec![1; 100_000]).unwrap();
    assert_eq!(state::space().page_counts().1 - before, 25);
    let fd = open("/data/big", O_RDONLY).unwrap();
    sys(87, &[c("/data/big")]).unwrap();
    assert_eq!(state::space().page_counts().1 - before, 25);
    close(fd);
    assert_eq!(state::space().page_counts().1, before);
}

#[test]
fn space_has_a_bound_and_a_write_at_it_is_short_then_enospc() {
    let _guard = setup();
    let (most, used) = state::space().page_counts();
    let fd = open("/tmp/sparse", O_RDWR | O_CREAT).unwrap();
    // A sparse file takes only what is written.
    pwrite(fd, b"x", 1 << 40).unwrap();
    assert_eq!(state::space().page_counts().1, used + 1);
    assert_eq!(lstat("/tmp/sparse").unwrap().size, (1 << 40) + 1);
    assert_eq!(lstat("/tmp/sparse").unwrap().blocks, 8);
    // Reserving is all or nothing; writing goes as far as it can.
    let free = most - used - 1;
    assert_eq!(error(sys(285, &[fd, 0, 0, (free + 1) * 4096])), ENOSPC);
    assert_eq!(state::space().page_counts().1, used + 1);
    sys(285, &[fd, 0, 0, (free - 1) * 4096]).unwrap();
    assert_eq!(pwrite(fd, &[7; 8192], 1 << 41).unwrap(), 4096);
    assert_eq!(state::space().page_counts().1, most);
    assert_eq!(error(pwrite(fd, b"y", 1 << 42)), ENOSPC);
    assert_eq!(write(fd, b"fits, the page is there").unwrap(), 23);
    // A wide hole frees what is in it.
    sys(285, &[fd, 3, 0, 1 << 41]).unwrap();
    assert_eq!(state::space().page_counts().1, used + 1);
    assert_eq!(pread(fd, 2, (1 << 41) - 1).unwrap(), [0, 7]);
    sys(87, &[c("/tmp/sparse")]).unwrap();
    close(fd);
    assert_eq!(state::space().page_counts().1, used);
}

#[test]
fn walking_follows_links_and_knows_its_limits() {
    let _guard = setup();
    assert_eq!(slurp("/bin/sh").unwrap(), b"#!x");
    assert_eq!(slurp("/bin/../../../../etc/motd").unwrap(), b"hello\n");
    assert_eq!(slurp("//etc//./motd").unwrap(), b"hello\n");
    assert_eq!(error(open("/loop", O_RDONLY)), ELOOP);
    assert_eq!(error(open("/bin", O_NOFOLLOW)), ELOOP);
    assert_eq!(error(open("/etc/motd/", O_RDONLY)), ENOTDIR);
    assert_eq!(error(open("/etc/motd/x", O_RDONLY)), ENOTDIR);
    assert_eq!(error(open("/etc/motd", O_DIRECTORY)), ENOTDIR);
    assert_eq!(error(open("", O_RDONLY)), ENOENT);
    assert_eq!(error(open("/nowhere/x", O_CREAT | O_RDWR)), ENOENT);
    assert_eq!(
        error(open(&format!("/{}", "n".repeat(256)), O_RDONLY)),
        ENAMETOOLONG
    );
    assert_eq!(error(open(&"/x".repeat(3000), O_RDONLY)), ENAMETOOLONG);
    assert_eq!(error(open("/etc", O_RDWR)), EISDIR);
    assert_eq!(error(open("/etc/motd", O_CREAT | O_EXCL)), EEXIST);
    assert_eq!(error(open("/tmp/x/", O_CREAT | O_RDWR)), EISDIR);
    // A dangling link: created at its target, except exclusively.
    sys(88, &[c("target"), c("/tmp/dangling")]).unwrap();
    assert_eq!(
        error(open("/tmp/dangling", O_CREAT | O_EXCL | O_RDWR)),
        EEXIST
    );
    spit("/tmp/dangling", b"made").unwrap();
    assert_eq!(slurp("/tmp/target").unwrap(), b"made");
    let mut chain = String::from("/tmp/target");
    for i in 0..path::MAX_LINKS + 1 {
        let name = format!("/tmp/chain{i}");
        sys(88, &[c(&chain), c(&name)]).unwrap();
        chain = name;
    }
    assert_eq!(error(open(&chain, O_RDONLY)), ELOOP);
    assert_eq!(
        slurp(&format!("/tmp/chain{}", path::MAX_LINKS - 1)).unwrap(),
        b"made"
    );
}

#[test]
fn relative_paths_start_at_the_directory_given() {
    let _guard = setup();
    let mut buf = [0u8; 64];
    let cwd = |buf: &mut [u8]| {
        let n = sys(79, &[buf.as_mut_ptr() as u64, buf.len() as u64])? as usize;
        Ok::<_, Errno>(String::from_utf8(buf[..n - 1].to_vec()).unwrap())
    };
    assert_eq!(cwd(&mut buf).unwrap(), "/");
    sys(80, &[c("/data/sub/deep")]).unwrap();
    assert_eq!(cwd(&mut buf).unwrap(), "/data/sub/deep");
    assert_eq!(error(cwd(&mut [0; 14])), ERANGE);
    assert_eq!(slurp("leaf").unwrap(), b"leaf");
    // Renaming a directory above moves us along.
    sys(82, &[c("/data/sub"), c("/tmp/moved")]).unwrap();
    assert_eq!(cwd(&mut buf).unwrap(), "/tmp/moved/deep");
    assert_eq!(slurp("../deep/leaf").unwrap(), b"leaf");
    let dirfd = open("/etc", O_PATH | O_DIRECTORY).unwrap();
    let fd = sys(257, &[dirfd, c("motd"), 0, 0]).unwrap();
    assert_eq!(read(fd, 10).unwrap(), b"hello\n");
    assert_eq!(error(read(dirfd, 10)), EBADF);
    assert_eq!(error(sys(257, &[fd, c("motd"), 0, 0])), ENOTDIR);
    assert_eq!(error(sys(257, &[99, c("motd"), 0, 0])), EBADF);
    sys(81, &[dirfd]).unwrap();
    assert_eq!(cwd(&mut buf).unwrap(), "/etc");
    // A removed working directory has no path and takes no files.
    sys(83, &[c("/tmp/gone"), 0o755]).unwrap();
    sys(80, &[c("/tmp/gone")]).unwrap();
    sys(84, &[c("/tmp/gone")]).unwrap();
    assert_eq!(error(cwd(&mut buf)), ENOENT);
    assert_eq!(error(open("x", O_CREAT | O_RDWR)), ENOENT);
}

#[test]
fn rename_obeys_its_rules() {
    let _guard = setup();
    let rename = |a: &str, b: &str| sys(82, &[c(a), c(b)]);
    assert_eq!(error(rename("/data", "/data/sub/x")), EINVAL);
    assert_eq!(error(rename("/data/sub", "/data")), ENOTEMPTY);
    assert_eq!(error(rename("/etc/motd", "/data")), EISDIR);
    assert_eq!(error(rename("/data", "/etc/motd")), ENOTDIR);
    assert_eq!(error(rename("/proc", "/p")), EBUSY);
    assert_eq!(error(rename("/etc/motd", "/dev/motd")), EXDEV);
    assert_eq!(error(rename("/nope", "/x")), ENOENT);
    assert_eq!(error(rename("/etc/.", "/x")), EBUSY);
    let noreplace = sys(316, &[CWD, c("/etc/motd"), CWD, c("/bin"), 1]);
    assert_eq!(error(noreplace), EEXIST);
    sys(316, &[CWD, c("/etc/motd"), CWD, c("/data"), 2]).unwrap();
    assert_eq!(slurp("/data").unwrap(), b"hello\n");
    assert_eq!(slurp("/etc/motd/sub/deep/leaf").unwrap(), b"leaf");
    assert_eq!(lstat("/etc").unwrap().nlink, 3);
    sys(83, &[c("/tmp/empty"), 0o755]).unwrap();
    rename("/etc/motd", "/tmp/empty").unwrap();
    assert_eq!(slurp("/tmp/empty/sub/deep/leaf").unwrap(), b"leaf");
    assert_eq!(lstat("/etc").unwrap().nlink, 2);
    // Two names of one file: nothing happens.
    spit("/tmp/a", b"1").unwrap();
    sys(86, &[c("/tmp/a"), c("/tmp/b")]).unwrap();
    rename("/tmp/a", "/tmp/b").unwrap();
    assert_eq!(lstat("/tmp/a").unwrap().nlink, 2);
}

#[test]
fn links_count_and_share() {
    let _guard = setup();
    sys(86, &[c("/etc/motd"), c("/tmp/link")]).unwrap();
    let (a, b) = (lstat("/etc/motd").unwrap(), lstat("/tmp/link").unwrap());
    assert_eq!((a.ino, a.nlink, b.nlink), (b.ino, 2, 2));
    spit("/tmp/link", b"both").unwrap();
    assert_eq!(slurp("/etc/motd").unwrap(), b"both");
    sys(87, &[c("/etc/motd")]).unwrap();
    assert_eq!(lstat("/tmp/link").unwrap().nlink, 1);
    assert_eq!(slurp("/tmp/link").unwrap(), b"both");
    assert_eq!(error(sys(86, &[c("/etc"), c("/tmp/d")])), EPERM);
    assert_eq!(error(sys(86, &[c("/tmp/link"), c("/dev/shm/l")])), EXDEV);
    // A file without a name gets one.
    let fd = open("/tmp", O_TMPFILE | O_RDWR).unwrap();
    write(fd, b"tmpfile").unwrap();
    sys(
        265,
        &[
            CWD,
            c(&format!("/proc/self/fd/{fd}")),
            CWD,
            c("/tmp/named"),
            0x400,
        ],
    )
    .unwrap();
    assert_eq!(slurp("/tmp/named").unwrap(), b"tmpfile");
    let mut buf = [0u8; 3];
    assert_eq!(
        sys(89, &[c("/bin"), buf.as_mut_ptr() as u64, 3]).unwrap(),
        3
    );
    assert_eq!(&buf, b"usr");
    assert_eq!(
        error(sys(89, &[c("/etc"), buf.as_mut_ptr() as u64, 3])),
        EINVAL
    );
}

#[test]
fn directories_count_and_cannot_be_unlinked() {
    let _guard = setup();
    assert_eq!(error(sys(87, &[c("/etc")])), EISDIR);
    assert_eq!(error(sys(84, &[c("/etc/motd")])), ENOTDIR);
    assert_eq!(error(sys(84, &[c("/etc")])), ENOTEMPTY);
    assert_eq!(error(sys(84, &[c("/etc/.")])), EINVAL);
    assert_eq!(error(sys(84, &[c("/dev/shm")])), EBUSY);
    assert_eq!(error(sys(84, &[c("/")])), EBUSY);
    let before = lstat("/tmp").unwrap().nlink;
    sys(83, &[c("/tmp/d/"), 0o777]).unwrap();
    assert_eq!(lstat("/tmp").unwrap().nlink, before + 1);
    assert_eq!(lstat("/tmp/d").unwrap().mode, 0o040_755);
    assert_eq!(error(sys(83, &[c("/tmp/d"), 0o777])), EEXIST);
    assert_eq!(error(sys(83, &[c("/proc/x"), 0o777])), EPERM);
    sys(84, &[c("/tmp/d")]).unwrap();
    assert_eq!(lstat("/tmp").unwrap().nlink, before);
}

#[test]
fn a_listing_survives_changes_under_way() {
    let _guard = setup();
    for i in 0..50 {
        spit(&format!("/tmp/f{i}"), b"").unwrap();
    }
    let fd = open("/tmp", O_RDONLY).unwrap();
    let mut seen = Vec::new();
    // Room for one entry at a time.
    let mut buf = [0u8; 40];
    loop {
        let n = sys(217, &[fd, buf.as_mut_ptr() as u64, 40]).unwrap() as usize;
        if n == 0 {
            break;
        }
        let name = buf[19..n].split(|b| *b == 0).next().unwrap();
        let name = String::from_utf8(name.to_vec()).unwrap();
        if !name.starts_with('.') {
            // `rm -r` removes while it lists; something else adds.
            sys(87, &[c(&format!("/tmp/{name}"))]).unwrap();
            seen.push(name);
        }
    }
    assert_eq!(seen.len(), 50);
    assert_eq!(names("/tmp").unwrap(), Vec::<String>::new());
    let mut tiny = [0u8; 23];
    sys(8, &[fd, 0, 0]).unwrap();
    assert_eq!(error(sys(217, &[fd, tiny.as_mut_ptr() as u64, 23])), EINVAL);
}

#[test]
fn attributes_are_kept() {
    let _guard = setup();
    sys(90, &[c("/etc/motd"), 0o4751]).unwrap();
    assert_eq!(lstat("/etc/motd").unwrap().mode, 0o104_751);
    sys(92, &[c("/etc/motd"), 7, u64::from(u32::MAX)]).unwrap();
    let stat = lstat("/etc/motd").unwrap();
    // Giving a program away takes its set-user-id bit.
    assert_eq!((stat.uid, stat.gid, stat.mode), (7, 0, 0o100_751));
    let times = [5i64, 6, 7, 0x3fff_fffe];
    sys(280, &[CWD, c("/etc/motd"), times.as_ptr() as u64, 0]).unwrap();
    let stat = lstat("/etc/motd").unwrap();
    assert_eq!((stat.atime.sec, stat.atime.nsec), (5, 6));
    assert_eq!(stat.mtime.sec, 1_700_000_000);
    let bad = [0i64, 1_000_000_000, 0, 0];
    assert_eq!(
        error(sys(280, &[CWD, c("/etc/motd"), bad.as_ptr() as u64, 0])),
        EINVAL
    );
    assert_eq!(sys(95, &[0o077]).unwrap(), 0o022);
    spit("/tmp/private", b"").unwrap();
    assert_eq!(lstat("/tmp/private").unwrap().mode, 0o100_600);
    assert_eq!(
        error(sys(191, &[c("/etc/motd"), c("user.x"), 0, 0])),
        EOPNOTSUPP
    );
    assert_eq!(error(sys(191, &[c("/nope"), c("user.x"), 0, 0])), ENOENT);
}

#[test]
fn statx_and_statfs_have_the_layout_of_linux() {
    let _guard = setup();
    let mut statx = [0u8; 256];
    sys(
        332,
        &[CWD, c("/data/big"), 0, 0x7ff, statx.as_mut_ptr() as u64],
    )
    .unwrap();
    let stat = lstat("/data/big").unwrap();
    assert_eq!(
        u64::from_le_bytes(statx[32..40].try_into().unwrap()),
        stat.ino
    );
    assert_eq!(
        u64::from_le_bytes(statx[40..48].try_into().unwrap()),
        big().len() as u64
    );
    assert_eq!(u16::from_le_bytes([statx[28], statx[29]]), 0o100_644);
    // stx_mtime
    assert_eq!(
        u64::from_le_bytes(statx[112..120].try_into().unwrap()),
        1_700_000_000
    );
    sys(332, &[CWD, c("/dev/null"), 0, 0, statx.as_mut_ptr() as u64]).unwrap();
    assert_eq!(statx[128..136], [1, 0, 0, 0, 3, 0, 0, 0]);
    let mut statfs = [0u64; 15];
    sys(137, &[c("/dev/shm"), statfs.as_mut_ptr() as u64]).unwrap();
    assert_eq!((statfs[0], statfs[1]), (0x0102_1994, 4096));
    assert!(statfs[2] >= statfs[3] && statfs[3] > 0);
    let by_fd = open("/data/big", O_RDONLY).unwrap();
    let mut out = crate::file::Stat::default();
    sys(262, &[by_fd, c(""), (&raw mut out) as u64, 0x1000]).unwrap();
    assert_eq!((out.ino, out.size), (stat.ino, stat.size));
    assert_eq!(size_of::<crate::file::Stat>(), 144);
    assert_eq!(
        error(sys(262, &[by_fd, c(""), (&raw mut out) as u64, 0])),
        ENOENT
    );
}

#[test]
fn users_other_than_root_meet_permissions() {
    let _guard = setup();
    struct Root;
    impl Drop for Root {
        fn drop(&mut self) {
            crate::sched::set_credentials(0, 0);
        }
    }
    spit("/tmp/roots", b"x").unwrap();
    spit("/tmp/mine", b"y").unwrap();
    sys(92, &[c("/tmp/mine"), 1000, 1000]).unwrap();
    let _root = Root;
    crate::sched::set_credentials(1000, 1000);
    assert_eq!(error(open("/data/secret", O_RDONLY)), EACCES);
    assert_eq!(slurp("/etc/motd").unwrap(), b"hello\n");
    assert_eq!(error(open("/etc/motd", O_RDWR)), EACCES);
    assert_eq!(error(open("/etc/motd", O_RDONLY | O_TRUNC)), EACCES);
    assert_eq!(error(open("/etc/new", O_CREAT | O_RDWR)), EACCES);
    assert_eq!(error(sys(87, &[c("/etc/motd")])), EACCES);
    // A sticky directory: anyone makes, only owners remove.
    assert_eq!(error(sys(87, &[c("/tmp/roots")])), EPERM);
    assert_eq!(error(sys(82, &[c("/tmp/mine"), c("/tmp/roots")])), EPERM);
    spit("/tmp/new", b"z").unwrap();
    assert_eq!(lstat("/tmp/new").unwrap().uid, 1000);
    assert_eq!(error(sys(90, &[c("/tmp/roots"), 0o777])), EPERM);
    assert_eq!(error(sys(92, &[c("/tmp/new"), 0, 0])), EPERM);
    sys(90, &[c("/tmp/mine"), 0o000]).unwrap();
    assert_eq!(error(open("/tmp/mine", O_RDONLY)), EACCES);
    sys(87, &[c("/tmp/mine")]).unwrap();
    assert_eq!(error(sys(161, &[c("/tmp")])), EPERM);
    assert_eq!(error(sys(21, &[c("/data/secret"), 4])), EACCES);
}

#[test]
fn a_changed_root_is_the_top() {
    let _guard = setup();
    sys(161, &[c("/data")]).unwrap();
    sys(80, &[c("/sub")]).unwrap();
    assert_eq!(slurp("/../../sub/../sub/deep/leaf").unwrap(), b"leaf");
    assert_eq!(error(open("/etc/motd", O_RDONLY)), ENOENT);
    let mut buf = [0u8; 16];
    assert_eq!(sys(79, &[buf.as_mut_ptr() as u64, 16]).unwrap(), 5);
    assert_eq!(&buf[..5], b"/sub\0");
}
