//! Making the files of an appliance's disks, with the host's e2fsprogs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use quorate_images::disks::{Extracted, Journal, LookError, check, check_seeds, extract, prepare};
use quorate_images::{Appliance, DiskError, OnError};
use tempfile::TempDir;

fn appliance(at: &Path, disks: &str) -> Appliance {
    let text = format!(
        "version = 1\nname = \"t\"\n[image]\nfile = \"x\"\n[program]\ncommand = [\"/bin/t\"]\nuid = 7\ngid = 8\n{disks}"
    );
    Appliance::parse(&text, &at.join("t.toml")).unwrap()
}

fn e2fsck(path: &Path) {
    let output = Command::new("/usr/sbin/e2fsck")
        .arg("-fn")
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
}

fn debugfs(path: &Path, command: &str) -> String {
    let output = Command::new("/usr/sbin/debugfs")
        .args(["-R", command])
        .arg(path)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn seed(at: &Path) -> PathBuf {
    let seed = at.join("seed");
    fs::create_dir_all(seed.join("sub/deep")).unwrap();
    fs::write(seed.join("a"), "hello").unwrap();
    fs::set_permissions(seed.join("a"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(seed.join("sub/deep/b"), vec![7; 300_000]).unwrap();
    fs::hard_link(seed.join("a"), seed.join("sub/c")).unwrap();
    symlink("../a", seed.join("sub/link")).unwrap();
    seed
}

const SEEDED: &str =
    "[[disk]]\nname = \"data\"\nsize = \"32M\"\nmount = \"/data\"\nseed = \"seed\"\n";

#[test]
fn a_seeded_disk_is_sound_private_sparse_and_kept() {
    let dir = TempDir::new().unwrap();
    seed(dir.path());
    let state = dir.path().join("state");
    let appliance = appliance(dir.path(), SEEDED);
    let disks = prepare(&appliance, &state).unwrap();
    let [disk] = &disks[..] else {
        panic!("{disks:?}")
    };
    assert_eq!(disk.path, state.join("t/data.img"));
    assert_eq!((disk.bytes, disk.created), (32 << 20, true));
    assert_eq!((disk.read_only, disk.on_error), (false, OnError::Stop));
    let info = fs::metadata(&disk.path).unwrap();
    assert_eq!((info.len(), info.mode() & 0o777), (32 << 20, 0o600));
    assert!(info.blocks() * 512 < 8 << 20, "{} blocks", info.blocks());
    e2fsck(&disk.path);
    // Owner, permissions, hard link and contents.
    let stat = debugfs(&disk.path, "stat /sub/c");
    assert!(
        stat.contains("Mode:  0640") && stat.contains("Links: 2"),
        "{stat}"
    );
    for path in ["/", "/a", "/sub", "/sub/deep/b", "/sub/link"] {
        let stat = debugfs(&disk.path, &format!("stat {path}"));
        assert!(
            stat.contains("User:     7   Group:     8"),
            "{path}: {stat}"
        );
        assert!(
            stat.contains("mtime: 0x6955b900:00000000"),
            "{path}: {stat}"
        );
    }
    assert!(debugfs(&disk.path, "stat /lost+found").contains("User:     0"));
    assert_eq!(debugfs(&disk.path, "cat /a"), "hello");
    assert!(debugfs(&disk.path, "stat /sub/link").contains("Fast link dest: \"../a\""));
    // No time of the clock in the superblock: s_wtime, s_lastcheck, s_mkfs_time; nor when the files were made.
    let superblock = &fs::read(&disk.path).unwrap()[1024..2048];
    for at in [48, 64, 264] {
        let time = u32::from_le_bytes(superblock[at..at + 4].try_into().unwrap());
        assert_eq!(time, 1_767_225_600, "superblock byte {at}");
    }
    let stat = debugfs(&disk.path, "stat /a");
    assert!(stat.contains("crtime: 0x6955b900:00000000"), "{stat}");
    // It is not made again, and nothing else was left in the directory.
    let before = fs::read(&disk.path).unwrap();
    let again = prepare(&appliance, &state).unwrap();
    assert!(!again[0].created);
    assert!(fs::read(&disk.path).unwrap() == before);
    assert_eq!(fs::read_dir(state.join("t")).unwrap().count(), 1);
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut files = Vec::new();
    for dir in [&one, &two] {
        let seed = seed(dir.path());
        // Files made in another order, at other times.
        for name in ["z", "y", "x"].iter().rev().take(files.len() + 2) {
            fs::write(seed.join(name), name).unwrap();
        }
        for name in ["x", "y", "z"] {
            fs::write(seed.join(name), name).unwrap();
        }
        fs::File::open(seed.join("a"))
            .unwrap()
            .set_modified(
                std::time::UNIX_EPOCH + std::time::Duration::from_secs(files.len() as u64),
            )
            .unwrap();
        let disks = prepare(&appliance(dir.path(), SEEDED), dir.path()).unwrap();
        files.push(fs::read(&disks[0].path).unwrap());
    }
    assert!(files[0] == files[1]);
    // Other names, other identifiers.
    let other = SEEDED.replace("\"data\"", "\"date\"");
    let disks = prepare(&appliance(one.path(), &other), one.path()).unwrap();
    assert!(fs::read(&disks[0].path).unwrap() != files[0]);
}

#[test]
fn disks_of_all_sizes_are_sound() {
    let dir = TempDir::new().unwrap();
    let sizes = ["16M", "20488K", "128M", "600M", "1G", "1T"];
    for size in sizes {
        let text = format!("[[disk]]\nname = \"d{size}\"\nsize = \"{size}\"\nmount = \"/d\"\n");
        let disks = prepare(&appliance(dir.path(), &text), dir.path()).unwrap();
        e2fsck(&disks[0].path);
        let used = fs::metadata(&disks[0].path).unwrap().blocks() * 512;
        assert!(used < 256 << 20, "{size}: {used}");
    }
}

#[test]
fn a_raw_disk_is_zeroes_at_its_own_path() {
    let dir = TempDir::new().unwrap();
    let text = "[[disk]]\nname = \"raw\"\nsize = \"8K\"\nfilesystem = \"none\"\npath = \"sub/raw.img\"\non_error = \"report\"\n";
    let disks = prepare(&appliance(dir.path(), text), Path::new("/nonexistent")).unwrap();
    assert_eq!(disks[0].path, dir.path().join("sub/raw.img"));
    assert_eq!(disks[0].on_error, OnError::Report);
    assert_eq!(fs::read(&disks[0].path).unwrap(), vec![0; 8192]);
}

#[test]
fn disks_that_cannot_be_had() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let refusal = |text: &str| prepare(&appliance(at, text), at).unwrap_err();
    let message = refusal(SEEDED).to_string();
    assert!(
        message.starts_with("disk data: ") && message.contains("cannot read the seed directory"),
        "{message}"
    );

    let seed = seed(at);
    // More bytes than the disk has, and more than fit beside the file system's own tables.
    for bytes in [64 << 20, 31 << 20] {
        fs::write(seed.join("large"), vec![1; bytes]).unwrap();
        let error = refusal(SEEDED);
        assert!(matches!(error, DiskError::TooSmall { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("32M are too little for the files of"),
            "{error}"
        );
    }
    assert!(check_seeds(&appliance(at, SEEDED)).is_ok());
    fs::write(seed.join("large"), "").unwrap();
    // More files than inodes.
    for i in 0..9000 {
        fs::write(seed.join(format!("f{i}")), "").unwrap();
    }
    let error = refusal(SEEDED);
    assert!(matches!(error, DiskError::TooSmall { .. }), "{error}");
    fs::remove_dir_all(&seed).unwrap();

    fs::create_dir(&seed).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(seed.join("socket")).unwrap();
    let error = refusal(SEEDED);
    assert!(matches!(error, DiskError::SpecialFile { .. }), "{error}");
    drop(socket);
    // Nothing half made is left behind.
    assert_eq!(fs::read_dir(at.join("t")).unwrap().count(), 0);

    fs::write(at.join("t/data.img"), vec![0; 4096]).unwrap();
    let message = refusal(SEEDED).to_string();
    assert!(
        message.contains("has 4K, the appliance says 32M: correct `size`, or"),
        "{message}"
    );
    fs::File::options()
        .write(true)
        .open(at.join("t/data.img"))
        .unwrap()
        .set_len(32 << 20)
        .unwrap();
    let error = refusal(SEEDED);
    assert!(matches!(error, DiskError::NotExt4 { .. }), "{error}");
    fs::remove_file(at.join("t/data.img")).unwrap();
    fs::create_dir(at.join("t/data.img")).unwrap();
    let error = refusal(SEEDED);
    assert!(matches!(error, DiskError::NotAFile { .. }), "{error}");

    let read_only = "[[disk]]\nname = \"ro\"\nsize = \"32M\"\nmount = \"/ro\"\nread_only = true\n";
    let error = refusal(read_only);
    assert!(matches!(error, DiskError::Missing { .. }), "{error}");
}

/// Runs commands of debugfs that change the disk.
fn change(path: &Path, commands: &str) {
    let mut child = Command::new("/usr/sbin/debugfs")
        .args(["-w", "-f", "-"])
        .arg(path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, commands.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn files_come_out_of_a_disk() {
    let dir = TempDir::new().unwrap();
    let seed = seed(dir.path());
    let sparse = fs::File::create(seed.join("sparse")).unwrap();
    sparse.set_len(10 << 20).unwrap();
    sparse.write_all_at(b"end", (10 << 20) - 3).unwrap();
    symlink("/etc/passwd", seed.join("absolute")).unwrap();
    let disks = prepare(&appliance(dir.path(), SEEDED), dir.path()).unwrap();
    let disk = &disks[0].path;
    let out = dir.path().join("out");
    let done = extract(disk, &[], &out).unwrap();
    // `lost+found` is a directory too, and the root.
    let expected = Extracted {
        files: 4,
        directories: 4,
        links: 2,
        skipped: 0,
        bytes: 5 + 5 + 300_000 + (1 << 12),
    };
    assert_eq!(done, expected);
    assert_eq!(fs::read_to_string(out.join("sub/c")).unwrap(), "hello");
    assert_eq!(fs::read(out.join("sub/deep/b")).unwrap(), vec![7; 300_000]);
    assert_eq!(fs::metadata(out.join("a")).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(fs::metadata(out.join("a")).unwrap().mtime(), 1_767_225_600);
    assert_eq!(
        fs::metadata(out.join("sub")).unwrap().mtime(),
        1_767_225_600
    );
    assert_eq!(
        fs::read_link(out.join("sub/link")).unwrap(),
        Path::new("../a")
    );
    assert_eq!(
        fs::read_link(out.join("absolute")).unwrap(),
        Path::new("/etc/passwd")
    );
    let sparse = fs::metadata(out.join("sparse")).unwrap();
    assert!(sparse.len() == 10 << 20 && sparse.blocks() * 512 < 1 << 20);

    let some = dir.path().join("some");
    let paths = ["/sub/deep".to_owned(), "a".to_owned()];
    assert_eq!(extract(disk, &paths, &some).unwrap().files, 2);
    assert_eq!(fs::read_to_string(some.join("a")).unwrap(), "hello");
    assert!(some.join("sub/deep/b").exists() && !some.join("sub/c").exists());

    let refusal = |paths: &[&str], to: &str| {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        extract(disk, &paths, &dir.path().join(to)).unwrap_err()
    };
    assert!(matches!(refusal(&[], "out"), LookError::NotEmpty(_)));
    for path in ["/none", "/a/x", "/../a"] {
        assert!(
            matches!(refusal(&[path], "new"), LookError::Missing { .. }),
            "{path}"
        );
    }
    let no_disk = dir.path().join("seed/a");
    assert!(matches!(
        extract(&no_disk, &[], &some),
        Err(LookError::NotExt4(_))
    ));
}

/// What a broken or hostile guest may have made of its disk stays where it is put.
#[test]
fn a_hostile_disk_does_no_harm() {
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join("seed/d")).unwrap();
    fs::write(dir.path().join("seed/x"), "x").unwrap();
    fs::write(dir.path().join("seed/d/passwd"), "evil").unwrap();
    let disks = prepare(&appliance(dir.path(), SEEDED), dir.path()).unwrap();
    let disk = &disks[0].path;
    // A link and a directory of the same name: whichever comes first, nothing is written through the link.
    fs::create_dir(dir.path().join("victim")).unwrap();
    let victim = dir.path().join("victim");
    change(
        disk,
        &format!(
            "symlink twice {}\nln d twice\nmknod p p\nsif x mode 0106777\n",
            victim.display()
        ),
    );
    let result = extract(disk, &[], &dir.path().join("out"));
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0, "{result:?}");
    let x = dir.path().join("out/x");
    assert!(!x.exists() || fs::metadata(&x).unwrap().mode() & 0o7000 == 0);

    // A directory that contains itself.
    change(disk, "unlink twice\nunlink twice\nln d d/loop\n");
    let error = extract(disk, &[], &dir.path().join("loop")).unwrap_err();
    assert!(
        error.to_string().contains("directories in each other"),
        "{error}"
    );
    // A file that claims to be larger than the disk, of blocks that it has not.
    change(disk, "unlink d/loop\nsif x size 0x7fffffffff\n");
    let error = extract(disk, &["x".to_owned()], &dir.path().join("large")).unwrap_err();
    assert!(
        error.to_string().contains("are more than the disk has"),
        "{error}"
    );
    // Bytes changed at random: an error or files, never a panic.
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(disk)
        .unwrap();
    let mut state = 1u64;
    for round in 0..200 {
        let mut changed = Vec::new();
        for _ in 0..20 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // The first blocks, where superblock, tables and directories lie.
            let at = (state >> 33) % (8 << 20);
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            changed.push((at, byte));
            file.write_all_at(&[byte[0] ^ (state >> 25) as u8], at)
                .unwrap();
        }
        let out = dir.path().join(format!("mutated-{round}"));
        let _ = extract(disk, &["d".to_owned()], &out);
        for (at, byte) in changed.into_iter().rev() {
            file.write_all_at(&byte, at).unwrap();
        }
    }
}

#[test]
fn a_journal_is_replayed_on_a_copy_unless_asked() {
    let dir = TempDir::new().unwrap();
    seed(dir.path());
    let disks = prepare(&appliance(dir.path(), SEEDED), dir.path()).unwrap();
    let disk = &disks[0].path;
    let checked = check(disk, false).unwrap();
    assert!(
        checked.sound && checked.journal == Journal::Empty,
        "{}",
        checked.report
    );

    // Two blocks that are in the journal alone: the one of `a`, which holds "hello", and the one with its inode, which is
    // damaged on the disk. So the file system is sound only if the journal counts.
    let block = debugfs(disk, "blocks /a").trim().to_owned();
    let content = dir.path().join("block");
    fs::write(&content, [b"HELLO".to_vec(), vec![0; 4091]].concat()).unwrap();
    let place = debugfs(disk, "imap /a");
    let table = place.split_once("at block ").unwrap().1;
    let table: u64 = table.split(',').next().unwrap().parse().unwrap();
    let mut inodes = vec![0; 4096];
    let file = fs::File::open(disk).unwrap();
    file.read_exact_at(&mut inodes, table * 4096).unwrap();
    let inodes_file = dir.path().join("inodes");
    fs::write(&inodes_file, &inodes).unwrap();
    change(disk, "sif /a links_count 7\n");
    change(
        disk,
        &format!(
            "jo\njw -b {block} {}\njw -b {table} {}\njc\n",
            content.display(),
            inodes_file.display()
        ),
    );
    let before = fs::read(disk).unwrap();
    let checked = check(disk, false).unwrap();
    assert!(
        checked.sound && checked.journal == Journal::OnCopy,
        "{}",
        checked.report
    );
    assert!(fs::read(disk).unwrap() == before, "the disk was changed");
    assert_eq!(fs::read_dir(dir.path().join("t")).unwrap().count(), 1);
    // Files come out as of the journal.
    let out = dir.path().join("out");
    extract(disk, &["a".to_owned()], &out).unwrap();
    assert_eq!(fs::read_to_string(out.join("a")).unwrap(), "HELLO");
    assert_eq!(debugfs(disk, "cat /a"), "hello");

    let checked = check(disk, true).unwrap();
    assert!(
        checked.sound && checked.journal == Journal::Replayed,
        "{}",
        checked.report
    );
    assert_eq!(debugfs(disk, "cat /a"), "HELLO");
    assert_eq!(check(disk, false).unwrap().journal, Journal::Empty);

    // Damage is found.
    change(disk, "sif <12> links_count 7\n");
    let checked = check(disk, false).unwrap();
    assert!(
        !checked.sound && checked.report.contains("ref count is 7"),
        "{}",
        checked.report
    );
    assert!(matches!(
        check(&dir.path().join("seed/a"), false),
        Err(LookError::NotExt4(_))
    ));
}
