//! For unit tests: a small root image, and system calls as functions with host pointers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::{dispatch, init, proc_text, random};
use crate::cell::test_lock;
use crate::errno::{Errno, Result};
use crate::file::{self, Stat};
use quorate_abi::image::*;
use std::collections::VecDeque;
use std::sync::MutexGuard;

/// Physical address at which the test image pretends to lie.
pub const IMAGE_PHYSICAL: u64 = 0x1_0000_0000;

/// A node of the image to build.
pub enum Node {
    Dir(u32, Vec<(&'static str, Node)>),
    File(u32, Vec<u8>),
    Link(&'static str),
}

pub fn dir(entries: Vec<(&'static str, Node)>) -> Node {
    Node::Dir(0o755, entries)
}

pub fn text(contents: &str) -> Node {
    Node::File(0o644, contents.as_bytes().to_vec())
}

/// Builds an image, breadth first.
pub fn build(root: Node) -> &'static [u8] {
    let (mut inodes, mut entries) = (Vec::new(), Vec::new());
    let (mut strings, mut data) = (Vec::new(), Vec::new());
    let mut queue = VecDeque::from([(root, 1u32)]);
    let mut next = 2u32;
    while let Some((node, parent)) = queue.pop_front() {
        let me = inodes.len() as u32 + 1;
        let mut raw = RawInode::default();
        raw.inode.nlink = 1;
        raw.inode.mtime = 1_700_000_000;
        match node {
            Node::Dir(mode, mut list) => {
                list.sort_by_key(|(name, _)| name.as_bytes());
                raw.inode.mode = S_IFDIR | mode;
                raw.inode.nlink = 2;
                raw.inode.size = 4096;
                raw.location = entries.len() as u64;
                raw.count = list.len() as u32;
                raw.parent = parent;
                for (name, child) in list {
                    raw.inode.nlink += u32::from(matches!(child, Node::Dir(..)));
                    let name_at = strings.len() as u32;
                    strings.extend_from_slice(name.as_bytes());
                    entries.push(RawEntry {
                        name: name_at,
                        name_len: name.len() as u32,
                        ino: next,
                    });
                    next += 1;
                    queue.push_back((child, me));
                }
            }
            Node::File(mode, contents) => {
                raw.inode.mode = S_IFREG | mode;
                raw.inode.size = contents.len() as u64;
                raw.location = data.len() as u64;
                data.extend_from_slice(&contents);
                data.resize(data.len().next_multiple_of(4096), 0);
            }
            Node::Link(target) => {
                raw.inode.mode = S_IFLNK | 0o777;
                raw.inode.size = target.len() as u64;
                raw.location = strings.len() as u64;
                strings.extend_from_slice(target.as_bytes());
            }
        }
        inodes.push(raw);
    }
    let entries_at = 4096 + inodes.len() * INODE_SIZE;
    let strings_at = entries_at + entries.len() * ENTRY_SIZE;
    let data_at = (strings_at + strings.len()).next_multiple_of(4096);
    let leaks_at = data_at + data.len();
    let header = Header {
        magic: IMAGE_MAGIC,
        version: IMAGE_VERSION,
        inode_count: inodes.len() as u32,
        total_len: (leaks_at + 4096) as u64,
        inodes: 4096,
        entries: entries_at as u64,
        entry_count: entries.len() as u64,
        strings: strings_at as u64,
        strings_len: strings.len() as u64,
        data: data_at as u64,
        leaks: leaks_at as u64,
        ..Header::default()
    };
    let mut out = header.encode().to_vec();
    out.resize(4096, 0);
    for mut raw in inodes {
        if raw.inode.is_regular() {
            raw.location += data_at as u64;
        }
        out.extend_from_slice(&raw.encode());
    }
    for entry in entries {
        out.extend_from_slice(&entry.encode());
    }
    out.extend_from_slice(&strings);
    out.resize(data_at, 0);
    out.extend_from_slice(&data);
    // The table of leaking instructions: none.
    out.resize(leaks_at + 4096, 0);
    Box::leak(out.into_boxed_slice())
}

/// Contents of `/data/big`: four pages and a bit, every byte known.
pub fn big() -> Vec<u8> {
    (0..4 * 4096 + 100)
        .map(|i| (i * 7 + i / 251) as u8)
        .collect()
}

/// The test image.
pub fn test_image() -> &'static [u8] {
    let root = dir(vec![
        ("bin", Node::Link("usr/bin")),
        (
            "data",
            dir(vec![
                ("big", Node::File(0o644, big())),
                ("empty", text("")),
                ("secret", Node::File(0o600, b"secret".to_vec())),
                (
                    "sub",
                    dir(vec![("deep", dir(vec![("leaf", text("leaf"))]))]),
                ),
            ]),
        ),
        (
            "etc",
            dir(vec![
                ("motd", text("hello\n")),
                ("mtab", Node::Link("/proc/self/mounts")),
            ]),
        ),
        ("loop", Node::Link("loop")),
        ("tmp", Node::Dir(0o1777, vec![])),
        (
            "usr",
            dir(vec![(
                "bin",
                dir(vec![("sh", Node::File(0o755, b"#!x".to_vec()))]),
            )]),
        ),
    ]);
    build(root)
}

/// A mounted test image and an empty descriptor table; the guard keeps other tests out.
pub fn setup() -> MutexGuard<'static, ()> {
    let guard = test_lock();
    let left_open = file::table().open_fds();
    for fd in left_open {
        let open = file::table().remove(fd);
        drop(open);
    }
    file::table().limit = 1024;
    init(test_image(), IMAGE_PHYSICAL, None).unwrap();
    random::set_source(|buf| buf.fill(0x5a));
    super::set_process_info(
        b"/bin/sh",
        &[b"sh".to_vec(), b"-c".to_vec()],
        &[b"A=b".to_vec()],
        &[],
    );
    assert_eq!(proc_text::name(crate::sched::pid()), b"sh");
    guard
}

/// A NUL-terminated string that outlives the test.
pub fn c(path: &str) -> u64 {
    let mut bytes = path.as_bytes().to_vec();
    bytes.push(0);
    Box::leak(bytes.into_boxed_slice()).as_ptr() as u64
}

/// Runs a system call.
pub fn sys(nr: u64, args: &[u64]) -> Result<u64> {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    dispatch(nr, all).expect("implemented")
}

pub fn open(path: &str, flags: u32) -> Result<u64> {
    sys(2, &[c(path), u64::from(flags), 0o644])
}

pub fn close(fd: u64) {
    sys(3, &[fd]).unwrap();
}

pub fn read(fd: u64, len: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0xee; len];
    let n = sys(0, &[fd, buf.as_mut_ptr() as u64, len as u64])?;
    buf.truncate(n as usize);
    Ok(buf)
}

pub fn write(fd: u64, bytes: &[u8]) -> Result<u64> {
    sys(1, &[fd, bytes.as_ptr() as u64, bytes.len() as u64])
}

pub fn pwrite(fd: u64, bytes: &[u8], offset: u64) -> Result<u64> {
    sys(18, &[fd, bytes.as_ptr() as u64, bytes.len() as u64, offset])
}

pub fn pread(fd: u64, len: usize, offset: u64) -> Result<Vec<u8>> {
    let mut buf = vec![0xee; len];
    let n = sys(17, &[fd, buf.as_mut_ptr() as u64, len as u64, offset])?;
    buf.truncate(n as usize);
    Ok(buf)
}

/// All of a file.
pub fn slurp(path: &str) -> Result<Vec<u8>> {
    let fd = open(path, 0)?;
    let mut all = Vec::new();
    loop {
        let part = read(fd, 1000)?;
        if part.is_empty() {
            close(fd);
            return Ok(all);
        }
        all.extend_from_slice(&part);
    }
}

/// Makes a file with the given contents.
pub fn spit(path: &str, contents: &[u8]) -> Result<()> {
    use file::flags::*;
    let fd = open(path, O_CREAT | O_TRUNC | O_WRONLY)?;
    assert_eq!(write(fd, contents)?, contents.len() as u64);
    close(fd);
    Ok(())
}

pub fn lstat(path: &str) -> Result<Stat> {
    let mut stat = Stat::default();
    sys(6, &[c(path), (&raw mut stat) as u64])?;
    Ok(stat)
}

/// Names in a directory, sorted, without `.` and `..`.
pub fn names(path: &str) -> Result<Vec<String>> {
    let fd = open(path, file::flags::O_DIRECTORY)?;
    let mut all = Vec::new();
    // Small on purpose: many calls for one directory.
    let mut buf = vec![0u8; 80];
    loop {
        let n = sys(217, &[fd, buf.as_mut_ptr() as u64, buf.len() as u64])? as usize;
        if n == 0 {
            break;
        }
        let mut rest = &buf[..n];
        while !rest.is_empty() {
            let size = usize::from(u16::from_le_bytes([rest[16], rest[17]]));
            let name = rest[19..size].split(|b| *b == 0).next().unwrap();
            all.push(String::from_utf8(name.to_vec()).unwrap());
            rest = &rest[size..];
        }
    }
    close(fd);
    assert!(all.iter().any(|n| n == ".") && all.iter().any(|n| n == ".."));
    all.retain(|n| n != "." && n != "..");
    all.sort();
    Ok(all)
}

/// Error of a call that must fail.
pub fn error<T: core::fmt::Debug>(result: Result<T>) -> Errno {
    result.unwrap_err()
}
