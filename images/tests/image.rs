//! The image format: what the writer writes, the view that the guest kernel uses reads.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;
use quorate_abi::PAGE_SIZE;
use quorate_abi::image::{
    DIGEST_OFFSET, HEADER_SIZE, Header, ImageError, ImageView, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO,
    S_IFLNK, S_IFREG,
};
use quorate_images::tree::{Kind, Meta, Node, NodeId, Special, Tree};
use quorate_images::{ImageFileError, verify, writer};

const META: Meta = Meta::root(0o755, 1000);

fn sample() -> Tree {
    let mut tree = Tree::new(META);
    tree.file(
        b"/usr/bin/program",
        Meta {
            uid: 3,
            ..Meta::root(0o4755, -5)
        },
        vec![7; 5000],
    )
    .unwrap();
    tree.hard_link(b"/usr/bin/other", b"/usr/bin/program")
        .unwrap();
    tree.file(b"/etc/empty", Meta::root(0o600, 1), Vec::new())
        .unwrap();
    tree.symlink(b"/bin", META, b"usr/bin").unwrap();
    tree.special(b"/dev/null", Meta::root(0o666, 0), Special::Char(0x103))
        .unwrap();
    tree.special(b"/dev/sda", META, Special::Block(0x800))
        .unwrap();
    tree.special(b"/run/pipe", META, Special::Fifo).unwrap();
    tree
}

fn find(view: &ImageView<'_>, path: &str) -> u32 {
    path.split('/')
        .filter(|part| !part.is_empty())
        .fold(view.root(), |dir, part| {
            view.lookup(dir, part.as_bytes()).unwrap().expect(part)
        })
}

#[test]
fn a_program_sees_what_was_put_in() {
    let bytes = writer::to_bytes(&sample()).unwrap();
    let view = ImageView::parse(&bytes).unwrap();
    let program = find(&view, "/usr/bin/program");
    let inode = view.inode(program).unwrap();
    assert_eq!(inode.mode, S_IFREG | 0o4755);
    assert_eq!((inode.uid, inode.gid, inode.nlink), (3, 0, 2));
    assert_eq!((inode.size, inode.mtime, inode.rdev), (5000, -5, 0));
    assert_eq!(view.data(program).unwrap(), &[7; 5000]);
    assert_eq!(find(&view, "/usr/bin/other"), program);
    // Page aligned, and zero to the end of its last page: it is mapped into programs as it is.
    let at = view.data_offset(program).unwrap();
    assert!(at.is_multiple_of(PAGE_SIZE));
    let tail = &bytes[at as usize + 5000..at as usize + 2 * PAGE_SIZE as usize];
    assert!(tail.iter().all(|byte| *byte == 0));

    let empty = find(&view, "/etc/empty");
    assert_eq!(view.data(empty).unwrap(), b"");
    assert!(view.data_offset(empty).unwrap().is_multiple_of(PAGE_SIZE));
    assert_eq!(view.readlink(find(&view, "/bin")).unwrap(), b"usr/bin");
    let null = view.inode(find(&view, "/dev/null")).unwrap();
    assert_eq!((null.mode, null.rdev), (S_IFCHR | 0o666, 0x103));
    assert_eq!(
        view.inode(find(&view, "/dev/sda")).unwrap().mode & !0o7777,
        S_IFBLK
    );
    assert_eq!(
        view.inode(find(&view, "/run/pipe")).unwrap().mode & !0o7777,
        S_IFIFO
    );

    let root = view.inode(view.root()).unwrap();
    assert_eq!(root.mode, S_IFDIR | 0o755);
    // `.`, `..` and one for each of usr, etc, dev, run.
    assert_eq!(root.nlink, 6);
    assert_eq!(view.parent(view.root()).unwrap(), view.root());
    let usr = find(&view, "/usr");
    assert_eq!(view.parent(find(&view, "/usr/bin")).unwrap(), usr);
    assert_eq!(view.lookup(usr, b"nothing").unwrap(), None);
    assert_eq!(view.lookup(usr, b"").unwrap(), None);
    assert_eq!(
        view.lookup(program, b"x"),
        Err(ImageError::NotDirectory(program))
    );
    assert_eq!(view.data(usr), Err(ImageError::NotRegular(usr)));
    assert_eq!(view.readlink(usr), Err(ImageError::NotSymlink(usr)));
    assert_eq!(view.inode(0), Err(ImageError::Inode(0)));
    assert_eq!(view.inode(u32::MAX), Err(ImageError::Inode(u32::MAX)));
    let names: Vec<&[u8]> = (0..)
        .map_while(|index| view.entry(view.root(), index).unwrap())
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, [&b"bin"[..], b"dev", b"etc", b"run", b"usr"]);
}

#[test]
fn equal_contents_are_stored_once() {
    let mut tree = Tree::new(META);
    for name in ["a", "b"] {
        tree.file(name.as_bytes(), META, vec![1; 9000]).unwrap();
    }
    let bytes = writer::to_bytes(&tree).unwrap();
    // Header, tables, three pages of contents, the table of leaking instructions.
    assert_eq!(bytes.len() as u64, 6 * PAGE_SIZE);
    let view = ImageView::parse(&bytes).unwrap();
    let (a, b) = (find(&view, "/a"), find(&view, "/b"));
    assert_ne!(a, b);
    assert_eq!(view.data_offset(a), view.data_offset(b));
    assert_eq!(view.inode(b).unwrap().nlink, 1);
}

#[test]
fn a_mapping_may_be_longer_than_the_image() {
    let mut bytes = writer::to_bytes(&sample()).unwrap();
    let digest = ImageView::parse(&bytes).unwrap().digest();
    bytes.resize(bytes.len() + 10_000, 0xff);
    assert_eq!(ImageView::parse(&bytes).unwrap().digest(), digest);
}

/// Touches everything that a hostile or damaged image could mislead. Returns how many calls succeeded.
fn exercise(bytes: &[u8]) -> usize {
    let Ok(view) = ImageView::parse(bytes) else {
        return 0;
    };
    let mut good = 0;
    for ino in 0..view.header().inode_count.saturating_add(2).min(200) {
        good += usize::from(view.inode(ino).is_ok());
        good += usize::from(view.parent(ino).is_ok());
        good += usize::from(view.readlink(ino).is_ok());
        good += usize::from(view.lookup(ino, b"bin").is_ok());
        for index in [0, 1, 2, 3, 4, 5, usize::MAX] {
            good += usize::from(view.entry(ino, index).is_ok());
        }
        if let Ok(data) = view.data(ino) {
            good += 1;
            let at = view.data_offset(ino).unwrap();
            // What the kernel relies on when it maps pages: they lie in the image as a whole.
            let end = at + (data.len() as u64).next_multiple_of(PAGE_SIZE);
            assert!(at.is_multiple_of(PAGE_SIZE) && end <= bytes.len() as u64);
        }
    }
    good
}

/// Where mutations matter: header, tables, strings. The sample's fit into the second page.
const INTERESTING: usize = 2 * PAGE_SIZE as usize;

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        exercise(&bytes);
    }

    #[test]
    fn a_mutated_image_never_panics(changes in proptest::collection::vec((0..INTERESTING, any::<u8>()), 1..8)) {
        let mut bytes = writer::to_bytes(&sample()).unwrap();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        exercise(&bytes);
    }

    #[test]
    fn extreme_header_words_never_panic(word in 0..(HEADER_SIZE / 8), value in prop_oneof![
        Just(0), Just(1), Just(u64::MAX), Just(u64::MAX - 4095), Just(1 << 63), Just(4096), any::<u64>()
    ]) {
        let mut bytes = writer::to_bytes(&sample()).unwrap();
        bytes[word * 8..word * 8 + 8].copy_from_slice(&value.to_le_bytes());
        exercise(&bytes);
    }

    #[test]
    fn extreme_inode_words_never_panic(inode in 0usize..12, word in 0usize..8, value in prop_oneof![
        Just(0), Just(u64::MAX), Just(u64::MAX - 4095), Just(4096), any::<u64>()
    ]) {
        let mut bytes = writer::to_bytes(&sample()).unwrap();
        let at = PAGE_SIZE as usize + inode * 64 + word * 8;
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        prop_assert!(exercise(&bytes) > 0);
    }

    #[test]
    fn any_cut_is_noticed(keep in 0usize..(8 * PAGE_SIZE as usize)) {
        let bytes = writer::to_bytes(&sample()).unwrap();
        let keep = keep % bytes.len();
        prop_assert!(ImageView::parse(&bytes[..keep]).is_err());
    }

    #[test]
    fn random_trees_are_read_back(tree in trees()) {
        let bytes = writer::to_bytes(&tree).unwrap();
        let view = ImageView::parse(&bytes).unwrap();
        let mut seen = BTreeMap::new();
        compare(&tree, tree.root(), &view, view.root(), &mut seen);
        prop_assert_eq!(seen.len(), view.header().inode_count as usize);
        prop_assert_eq!(writer::to_bytes(&tree).unwrap(), bytes, "not reproducible");
    }
}

#[derive(Clone, Debug)]
enum Op {
    Dir(String, Meta),
    File(String, Meta, Vec<u8>),
    Symlink(String, Meta, String),
    Link(String, String),
    Special(String, Meta, Special),
}

fn trees() -> impl Strategy<Value = Tree> {
    let path =
        proptest::collection::vec("[a-d.\u{e4}]{1,3}", 1..4).prop_map(|parts| parts.join("/"));
    let meta = (0u32..0o10000, any::<u32>(), any::<u32>(), any::<i64>()).prop_map(
        |(perm, uid, gid, mtime)| Meta {
            perm,
            uid,
            gid,
            mtime,
        },
    );
    let special = prop_oneof![
        any::<u64>().prop_map(Special::Char),
        any::<u64>().prop_map(Special::Block),
        Just(Special::Fifo)
    ];
    let content = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..20),
        (0usize..9000, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
    ];
    let op = prop_oneof![
        (path.clone(), meta.clone()).prop_map(|(p, m)| Op::Dir(p, m)),
        (path.clone(), meta.clone(), content).prop_map(|(p, m, c)| Op::File(p, m, c)),
        (path.clone(), meta.clone(), "[a-d/.]{0,6}").prop_map(|(p, m, t)| Op::Symlink(p, m, t)),
        (path.clone(), path.clone()).prop_map(|(p, t)| Op::Link(p, t)),
        (path, meta, special).prop_map(|(p, m, s)| Op::Special(p, m, s)),
    ];
    proptest::collection::vec(op, 0..40).prop_map(|ops| {
        let mut tree = Tree::new(META);
        for op in ops {
            // Some are refused (a file in the way, `..`); what was taken must be read back.
            let _ = match op {
                Op::Dir(p, m) => tree.dir(p.as_bytes(), m),
                Op::File(p, m, c) => tree.file(p.as_bytes(), m, c),
                Op::Symlink(p, m, t) => tree.symlink(p.as_bytes(), m, t.as_bytes()),
                Op::Link(p, t) => tree.hard_link(p.as_bytes(), t.as_bytes()),
                Op::Special(p, m, s) => tree.special(p.as_bytes(), m, s),
            };
        }
        tree
    })
}

/// Walks tree and image side by side.
fn compare(
    tree: &Tree,
    id: NodeId,
    view: &ImageView<'_>,
    ino: u32,
    seen: &mut BTreeMap<u32, NodeId>,
) {
    if let Some(known) = seen.insert(ino, id) {
        assert_eq!(known, id, "two nodes with one inode");
    }
    let node: &Node = tree.node(id).unwrap();
    let inode = view.inode(ino).unwrap();
    assert_eq!(inode.mode & 0o7777, node.meta.perm);
    assert_eq!(
        (inode.uid, inode.gid, inode.mtime),
        (node.meta.uid, node.meta.gid, node.meta.mtime)
    );
    match &node.kind {
        Kind::File(content) => {
            assert_eq!(inode.mode & !0o7777, S_IFREG);
            assert_eq!(inode.size, content.len() as u64);
            assert_eq!(view.data(ino).unwrap(), content);
        }
        Kind::Symlink(target) => {
            assert_eq!(inode.mode & !0o7777, S_IFLNK);
            assert_eq!(view.readlink(ino).unwrap(), target);
        }
        Kind::Special(special) => {
            assert_eq!(inode.mode & !0o7777, special.mode());
            assert_eq!(inode.rdev, special.rdev());
        }
        Kind::Dir(children) => {
            assert_eq!(inode.mode & !0o7777, S_IFDIR);
            let is_dir = |id: &&NodeId| matches!(tree.node(**id).unwrap().kind, Kind::Dir(_));
            let subdirectories = children.values().filter(is_dir).count();
            assert_eq!(inode.nlink as usize, 2 + subdirectories);
            for (index, (name, child)) in children.iter().enumerate() {
                let (found, child_ino) = view.entry(ino, index).unwrap().unwrap();
                assert_eq!(found, name);
                assert_eq!(view.lookup(ino, name).unwrap(), Some(child_ino));
                if view.inode(child_ino).unwrap().is_dir() {
                    assert_eq!(view.parent(child_ino).unwrap(), ino);
                }
                compare(tree, *child, view, child_ino, seen);
            }
            assert_eq!(view.entry(ino, children.len()).unwrap(), None);
            assert_eq!(view.lookup(ino, b"zzzz").unwrap(), None);
        }
    }
}

#[test]
fn verify_says_what_is_wrong_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.qimg");
    let bytes = writer::to_bytes(&sample()).unwrap();
    let check = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        verify(&path)
    };

    let info = check(&bytes).unwrap();
    assert_eq!(info.length, bytes.len() as u64);
    assert_eq!(info.digest, ImageView::parse(&bytes).unwrap().digest());

    let missing = verify(&directory.path().join("b.qimg")).unwrap_err();
    assert!(matches!(missing, ImageFileError::Missing(_)));
    let text = missing.to_string();
    assert!(
        text.contains("b.qimg: no such image; run `quorate build") && text.contains("make images")
    );

    for keep in [0, 5, HEADER_SIZE - 1, HEADER_SIZE, 4096, bytes.len() - 1] {
        let error = check(&bytes[..keep]).unwrap_err();
        assert!(
            matches!(error, ImageFileError::Truncated { .. }),
            "{keep}: {error}"
        );
        assert!(error.to_string().contains("truncated"), "{error}");
    }
    assert!(matches!(
        check(b"#!/bin/sh\n"),
        Err(ImageFileError::NotAnImage(_))
    ));
    assert!(matches!(
        check(&[0x7f; 9000]),
        Err(ImageFileError::NotAnImage(_))
    ));
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(
        check(&longer),
        Err(ImageFileError::Damaged { what: "length", .. })
    ));
    let mut other = bytes.clone();
    other[8] = 9;
    assert!(matches!(
        check(&other),
        Err(ImageFileError::Version { found: 9, .. })
    ));
    let mut bad_table = bytes.clone();
    bad_table[24] ^= 1;
    assert!(matches!(
        check(&bad_table),
        Err(ImageFileError::Damaged { what: "header", .. })
    ));
    assert!(matches!(
        verify(directory.path()),
        Err(ImageFileError::Io { .. })
    ));
}

#[test]
fn every_bit_is_covered_by_the_digest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.qimg");
    let bytes = writer::to_bytes(&sample()).unwrap();
    // All of the header, then a sample of the rest.
    let places = (0..HEADER_SIZE + 8).chain((HEADER_SIZE..bytes.len()).step_by(97));
    for at in places {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        fs::write(&path, &changed).unwrap();
        assert!(verify(&path).is_err(), "a change at {at} is not noticed");
    }
    assert_eq!(
        Header::decode(&bytes).unwrap().digest,
        bytes[DIGEST_OFFSET..DIGEST_OFFSET + 32]
    );
}

#[test]
fn leaking_instructions_of_programs_are_listed() {
    let mut program = vec![0x90u8; 0x3000];
    program[..0x200].fill(0);
    program[..6].copy_from_slice(b"\x7fELF\x02\x01");
    program[18] = 62;
    program[32] = 64;
    program[54] = 56;
    program[56] = 1;
    program[64..66].copy_from_slice(&[1, 0]);
    program[66..68].copy_from_slice(&[0, 0]);
    program[68..72].copy_from_slice(&5u32.to_le_bytes());
    program[72..80].copy_from_slice(&0x1000u64.to_le_bytes());
    program[96..104].copy_from_slice(&0x2000u64.to_le_bytes());
    program[0x1800..0x1802].copy_from_slice(&[0x0f, 0x31]); // rdtsc
    program[0x2800..0x2803].copy_from_slice(&[0x0f, 0x01, 0xf9]); // rdtscp
    let mut tree = Tree::new(META);
    tree.file(b"data", META, vec![0x0f, 0x31, 0x0f, 0x31])
        .unwrap();
    tree.file(b"program", META, program).unwrap();
    let bytes = writer::to_bytes(&tree).unwrap();
    let view = ImageView::parse(&bytes).unwrap();
    let at = view.data_offset(find(&view, "/program")).unwrap();
    let all: Vec<(u64, u8)> = view.leaks(0, u64::MAX).collect();
    assert_eq!(all, [(at + 0x1800, 2), (at + 0x2800, 3)]);
    let second: Vec<(u64, u8)> = view.leaks(at + 0x1801, at + 0x2801).collect();
    assert_eq!(second, all[1..]);
    assert_eq!(view.leaks(at + 0x1801, at + 0x2800).count(), 0);
}
