#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;

use super::*;
use crate::skeleton::debian_root;
use crate::tree::Kind;

enum Entry {
    Dir(&'static str, u32),
    File(&'static str, &'static [u8]),
    Symlink(&'static str, &'static str),
    Link(&'static str, &'static str),
    Char(&'static str, u32, u32),
}

fn tar_of(entries: &[Entry]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(1000);
        header.set_uid(0);
        header.set_gid(8);
        header.set_size(0);
        let (kind, name) = match entry {
            Entry::Dir(name, mode) => {
                header.set_mode(*mode);
                (tar::EntryType::Directory, name)
            }
            Entry::File(name, content) => {
                header.set_size(content.len() as u64);
                (tar::EntryType::Regular, name)
            }
            Entry::Symlink(name, target) => {
                header.set_link_name_literal(target).unwrap();
                (tar::EntryType::Symlink, name)
            }
            Entry::Link(name, target) => {
                header.set_link_name_literal(target).unwrap();
                (tar::EntryType::Link, name)
            }
            Entry::Char(name, major, minor) => {
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
                (tar::EntryType::Char, name)
            }
        };
        header.set_entry_type(kind);
        // Not `append_data`, which refuses the bad paths that are tested here.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        let content = match entry {
            Entry::File(_, content) => content,
            _ => &b""[..],
        };
        out.append(&header, content).unwrap();
    }
    out.into_inner().unwrap()
}

fn deb_of(member: &str, data: &[u8]) -> Vec<u8> {
    let mut out = ar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("debian-binary", &b"2.0\n"[..]),
        ("control.tar", &tar_of(&[])),
        (member, data),
    ] {
        let header = ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64);
        out.append(&header, bytes).unwrap();
    }
    out.into_inner().unwrap()
}

fn unpack_bytes(deb: &[u8]) -> Result<Tree, BuildError> {
    let mut tree = debian_root(500).unwrap();
    unpack_from(deb, Path::new("x.deb"), &mut tree, None, Part::Program)?;
    Ok(tree)
}

fn content<'t>(tree: &'t Tree, path: &str) -> &'t [u8] {
    let id = tree.follow(path.as_bytes()).expect(path);
    match &tree.node(id).unwrap().kind {
        Kind::File(bytes) => bytes,
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn usr_is_merged_whatever_a_package_ships() {
    let data = tar_of(&[
        Entry::Dir("./", 0o755),
        Entry::Dir("./bin/", 0o755),
        Entry::File("./bin/a", b"A"),
        Entry::Dir("./usr/bin/", 0o755),
        Entry::File("./usr/bin/b", b"B"),
        // Both of these would be links to themselves.
        Entry::Symlink("./usr/bin/a", "/bin/a"),
        Entry::Symlink("./bin/b", "/usr/bin/b"),
        Entry::File("./lib/x86_64-linux-gnu/ld.so", b"LD"),
        Entry::Symlink("./lib64/ld-linux.so.2", "/lib/x86_64-linux-gnu/ld.so"),
        // As base-files does in later releases.
        Entry::Symlink("./sbin", "usr/sbin"),
        Entry::File("./sbin/s", b"S"),
    ]);
    let tree = unpack_bytes(&deb_of("data.tar", &data)).unwrap();
    for (path, bytes) in [
        ("/usr/bin/a", &b"A"[..]),
        ("/bin/a", b"A"),
        ("/bin/b", b"B"),
        ("/usr/bin/b", b"B"),
        ("/lib64/ld-linux.so.2", b"LD"),
        ("/usr/lib/x86_64-linux-gnu/ld.so", b"LD"),
        ("/usr/sbin/s", b"S"),
    ] {
        assert_eq!(content(&tree, path), bytes, "{path}");
    }
    let root = tree.get(b"/bin").and_then(|id| tree.node(id)).unwrap();
    assert_eq!(root.kind, Kind::Symlink(b"usr/bin".to_vec()));
}

#[test]
fn all_sorts_of_entries_keep_what_they_have() {
    let data = tar_of(&[
        Entry::Dir("./var/mail/", 0o2775),
        Entry::File("./usr/bin/a", b"A"),
        Entry::Link("./usr/bin/a2", "./usr/bin/a"),
        Entry::Char("./dev/tty9", 4, 300),
        Entry::File("./usr/share/doc/a/copyright", b"left out"),
        Entry::File("./usr/share/docs", b"kept"),
    ]);
    let tree = unpack_bytes(&deb_of("data.tar", &data)).unwrap();
    let mail = tree.node(tree.get(b"var/mail").unwrap()).unwrap();
    assert_eq!(
        (mail.meta.perm, mail.meta.gid, mail.meta.mtime),
        (0o2775, 8, 1000)
    );
    assert_eq!(tree.get(b"/usr/bin/a"), tree.get(b"/usr/bin/a2"));
    let tty = tree.node(tree.get(b"/dev/tty9").unwrap()).unwrap();
    // makedev(4, 300): the minor's upper bits lie above the major.
    assert_eq!(tty.kind, Kind::Special(Special::Char(0x10_042c)));
    assert_eq!(tree.get(b"/usr/share/doc"), None);
    assert_eq!(content(&tree, "/usr/share/docs"), b"kept");
}

#[test]
fn a_latest_time_is_applied() {
    let deb = deb_of("data.tar", &tar_of(&[Entry::File("./a", b"")]));
    let mut tree = debian_root(500).unwrap();
    unpack_from(
        &deb[..],
        Path::new("x.deb"),
        &mut tree,
        Some(700),
        Part::Program,
    )
    .unwrap();
    assert_eq!(tree.node(tree.get(b"a").unwrap()).unwrap().meta.mtime, 700);
}

#[test]
fn compressions() {
    let data = tar_of(&[Entry::File("./a", b"contents")]);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&data).unwrap();
    let zst =
        ruzstd::encoding::compress_to_vec(&data[..], ruzstd::encoding::CompressionLevel::Fastest);
    // xz is what Debian's own packages use: the test that builds Redis reads it.
    for (member, bytes) in [("data.tar.gz", gz.finish().unwrap()), ("data.tar.zst", zst)] {
        let tree = unpack_bytes(&deb_of(member, &bytes)).unwrap();
        assert_eq!(content(&tree, "/a"), b"contents", "{member}");
    }
}

/// Links that would lead out of a root directory on a host lead to the tree's own root.
#[test]
fn links_do_not_lead_out() {
    let data = tar_of(&[
        Entry::Symlink("./up", "../../../.."),
        Entry::File("./up/one", b"1"),
        Entry::Symlink("./abs", "/etc"),
        Entry::File("./abs/two", b"2"),
        Entry::Link("./three", "../../../etc/two"),
    ]);
    let tree = unpack_bytes(&deb_of("data.tar", &data)).unwrap();
    assert_eq!(content(&tree, "/one"), b"1");
    assert_eq!(content(&tree, "/etc/two"), b"2");
    assert_eq!(content(&tree, "/three"), b"2");
    let outside = tar_of(&[Entry::Link("./a", "../../../../etc/passwd")]);
    assert!(refusal(&deb_of("data.tar", &outside)).contains("which is not a file of the image"));
}

fn refusal(deb: &[u8]) -> String {
    unpack_bytes(deb).expect_err("must be refused").to_string()
}

#[test]
fn bad_packages_are_refused() {
    let whole = deb_of("data.tar", &tar_of(&[Entry::File("./a", &[7; 5000])]));
    assert!(refusal(b"not an archive at all").starts_with("x.deb: not a package"));
    assert!(refusal(&deb_of("data.tar.lzma", b"")).contains("compression is not known"));
    assert!(refusal(&deb_of("other", b"")).contains("no data.tar"));
    assert!(refusal(&deb_of("data.tar.xz", b"garbage")).starts_with("x.deb: not a package"));
    assert!(refusal(&deb_of("data.tar.zst", b"garbage")).starts_with("x.deb: not a package"));
    assert!(refusal(&whole[..whole.len() - 3000]).starts_with("x.deb: not a package"));
    let outside = tar_of(&[Entry::File("./../etc/passwd", b"")]);
    assert!(refusal(&deb_of("data.tar", &outside)).contains("not a path that an image can hold"));
    let dangling = tar_of(&[Entry::Link("./a", "./missing")]);
    assert!(refusal(&deb_of("data.tar", &dangling)).contains("hard link to ./missing"));
    let through_file = tar_of(&[Entry::File("./a", b""), Entry::File("./a/b", b"")]);
    assert!(refusal(&deb_of("data.tar", &through_file)).contains("not a directory"));
    let looping = tar_of(&[Entry::Symlink("./l", "l"), Entry::File("./l/b", b"")]);
    assert!(refusal(&deb_of("data.tar", &looping)).contains("too many symbolic links"));
}

#[test]
fn a_changed_package_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("debs/a_1_all.deb");
    let mut package = Package {
        name: "a".to_owned(),
        version: "1".to_owned(),
        architecture: "all".to_owned(),
        file: "a_1_all.deb".to_owned(),
        size: 3,
        // sha256sum of "abc" (FIPS 180-2, appendix B.1).
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned(),
        uri: String::new(),
    };
    std::fs::create_dir(directory.path().join("debs")).unwrap();
    std::fs::write(&path, "abc").unwrap();
    check(&path, &package).unwrap();
    let all = std::slice::from_ref(&package);
    assert!(crate::debian::all_there(all, directory.path()));
    std::fs::write(&path, "abd").unwrap();
    assert!(!crate::debian::all_there(all, directory.path()));
    assert!(!path.exists(), "a damaged file must not look downloaded");

    std::fs::write(&path, "abc").unwrap();
    package.sha256.replace_range(0..1, "0");
    assert!(matches!(
        check(&path, &package),
        Err(BuildError::Hash { .. })
    ));
}

proptest::proptest! {
    #[test]
    fn a_mutated_package_never_panics(at in 0usize..2000, byte: u8) {
        let mut deb = deb_of("data.tar", &tar_of(&[Entry::File("./a", b"x"), Entry::Symlink("./b", "a")]));
        let at = at % deb.len();
        deb[at] = byte;
        let _ = unpack_bytes(&deb);
    }
}
