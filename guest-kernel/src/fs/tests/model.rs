//! The tree against a model: the same operations on a map, and the same results.

use crate::errno::*;
use crate::file::flags::*;
use crate::fs::testing::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A small world, so that operations meet each other: three directories deep, three names in each, on top of
/// names that the image has.
const NAMES: [&str; 3] = ["sub", "big", "n"];

#[derive(Clone, Debug)]
enum Op {
    Write(String, u16, u16, u8),
    Truncate(String, u16),
    Punch(String, u16, u16),
    Mkdir(String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String),
}

fn a_path() -> impl Strategy<Value = String> {
    prop::collection::vec(0..NAMES.len(), 1..4).prop_map(|parts| {
        let mut path = String::from("/data");
        for part in parts {
            path.push('/');
            path.push_str(NAMES[part]);
        }
        path
    })
}

fn an_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (a_path(), 0..20000u16, 1..9000u16, any::<u8>()).prop_map(|(p, at, len, b)| Op::Write(p, at, len, b)),
        2 => (a_path(), 0..25000u16).prop_map(|(p, size)| Op::Truncate(p, size)),
        2 => (a_path(), 0..25000u16, 1..20000u16).prop_map(|(p, at, len)| Op::Punch(p, at, len)),
        3 => a_path().prop_map(Op::Mkdir),
        3 => a_path().prop_map(Op::Unlink),
        2 => a_path().prop_map(Op::Rmdir),
        4 => (a_path(), a_path()).prop_map(|(a, b)| Op::Rename(a, b)),
    ]
}

#[derive(Clone, Debug, PartialEq)]
enum Thing {
    Dir,
    File(Vec<u8>),
}

/// Paths to things.
struct Model(BTreeMap<String, Thing>);

impl Model {
    fn new() -> Self {
        let mut map = BTreeMap::new();
        for path in ["", "/data", "/data/sub", "/data/sub/deep"] {
            map.insert(path.to_string(), Thing::Dir);
        }
        map.insert("/data/big".into(), Thing::File(big()));
        map.insert("/data/empty".into(), Thing::File(vec![]));
        map.insert("/data/secret".into(), Thing::File(b"secret".to_vec()));
        map.insert("/data/sub/deep/leaf".into(), Thing::File(b"leaf".to_vec()));
        Self(map)
    }

    fn parent(path: &str) -> &str {
        path.rsplit_once('/').unwrap().0
    }

    /// Walks to the parent: it must be there and a directory.
    fn walk(&self, path: &str) -> Result<()> {
        let mut at = String::new();
        for part in Self::parent(path).split('/').skip(1) {
            at = format!("{at}/{part}");
            match self.0.get(&at) {
                None => return Err(ENOENT),
                Some(Thing::Dir) => {}
                Some(Thing::File(_)) => return Err(ENOTDIR),
            }
        }
        Ok(())
    }

    fn is_empty(&self, path: &str) -> bool {
        !self.0.keys().any(|p| Self::is_below(p, path))
    }

    fn is_below(path: &str, dir: &str) -> bool {
        path.strip_prefix(dir)
            .is_some_and(|rest| rest.starts_with('/'))
    }

    fn apply(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Write(path, at, len, byte) => {
                self.walk(path)?;
                let thing = self.0.entry(path.clone()).or_insert(Thing::File(vec![]));
                let Thing::File(bytes) = thing else {
                    return Err(EISDIR);
                };
                let (at, len) = (usize::from(*at), usize::from(*len));
                bytes.resize(bytes.len().max(at + len), 0);
                bytes[at..at + len].fill(*byte);
                Ok(())
            }
            Op::Truncate(path, size) => {
                self.walk(path)?;
                match self.0.get_mut(path) {
                    None => Err(ENOENT),
                    Some(Thing::Dir) => Err(EISDIR),
                    Some(Thing::File(bytes)) => {
                        bytes.resize(usize::from(*size), 0);
                        Ok(())
                    }
                }
            }
            Op::Punch(path, at, len) => {
                self.walk(path)?;
                match self.0.get_mut(path) {
                    None => Err(ENOENT),
                    Some(Thing::Dir) => Err(EISDIR),
                    Some(Thing::File(bytes)) => {
                        let (at, len) = (usize::from(*at), usize::from(*len));
                        let end = bytes.len().min(at + len);
                        bytes[at.min(end)..end].fill(0);
                        Ok(())
                    }
                }
            }
            Op::Mkdir(path) => {
                self.walk(path)?;
                if self.0.contains_key(path) {
                    return Err(EEXIST);
                }
                self.0.insert(path.clone(), Thing::Dir);
                Ok(())
            }
            Op::Unlink(path) => {
                self.walk(path)?;
                match self.0.get(path) {
                    None => return Err(ENOENT),
                    Some(Thing::Dir) => return Err(EISDIR),
                    Some(Thing::File(_)) => {}
                }
                self.0.remove(path);
                Ok(())
            }
            Op::Rmdir(path) => {
                self.walk(path)?;
                match self.0.get(path) {
                    None => return Err(ENOENT),
                    Some(Thing::File(_)) => return Err(ENOTDIR),
                    Some(Thing::Dir) if !self.is_empty(path) => return Err(ENOTEMPTY),
                    Some(Thing::Dir) => {}
                }
                self.0.remove(path);
                Ok(())
            }
            Op::Rename(from, to) => {
                self.walk(from)?;
                self.walk(to)?;
                let moved = self.0.get(from).ok_or(ENOENT)?.clone();
                if moved == Thing::Dir && Self::is_below(to, from) {
                    return Err(EINVAL);
                }
                if from == to {
                    return Ok(());
                }
                match (&moved, self.0.get(to)) {
                    (_, None) => {}
                    (Thing::Dir, Some(Thing::File(_))) => return Err(ENOTDIR),
                    (Thing::File(_), Some(Thing::Dir)) => return Err(EISDIR),
                    (Thing::Dir, Some(Thing::Dir)) if !self.is_empty(to) => return Err(ENOTEMPTY),
                    _ => {}
                }
                let below: Vec<_> = self
                    .0
                    .keys()
                    .filter(|p| *p == from || Self::is_below(p, from))
                    .cloned()
                    .collect();
                for old in below {
                    let thing = self.0.remove(&old).unwrap();
                    self.0.insert(format!("{to}{}", &old[from.len()..]), thing);
                }
                Ok(())
            }
        }
    }
}

fn real(op: &Op) -> Result<()> {
    match op {
        Op::Write(path, at, len, byte) => {
            let fd = open(path, O_WRONLY | O_CREAT)?;
            let result = pwrite(fd, &vec![*byte; usize::from(*len)], u64::from(*at));
            close(fd);
            result.map(|n| assert_eq!(n, u64::from(*len)))
        }
        Op::Punch(path, at, len) => {
            let fd = open(path, O_WRONLY)?;
            let result = sys(285, &[fd, 3, u64::from(*at), u64::from(*len)]);
            close(fd);
            result.map(|_| ())
        }
        Op::Truncate(path, size) => sys(76, &[c(path), u64::from(*size)]).map(|_| ()),
        Op::Mkdir(path) => sys(83, &[c(path), 0o755]).map(|_| ()),
        Op::Unlink(path) => sys(87, &[c(path)]).map(|_| ()),
        Op::Rmdir(path) => sys(84, &[c(path)]).map(|_| ()),
        Op::Rename(from, to) => sys(82, &[c(from), c(to)]).map(|_| ()),
    }
}

fn collect(path: &str, into: &mut BTreeMap<String, Thing>) {
    let mut directories = 0;
    for name in names(path).unwrap() {
        let below = format!("{path}/{name}");
        if lstat(&below).unwrap().mode & 0o170_000 == 0o040_000 {
            directories += 1;
            into.insert(below.clone(), Thing::Dir);
            collect(&below, into);
        } else {
            into.insert(below.clone(), Thing::File(slurp(&below).unwrap()));
        }
    }
    assert_eq!(lstat(path).unwrap().nlink, 2 + directories, "{path}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_tree_does_what_a_map_does(ops in prop::collection::vec(an_op(), 1..60)) {
        let _guard = setup();
        let objects = crate::fs::state::space().object_counts().1;
        let mut model = Model::new();
        for op in &ops {
            prop_assert_eq!(real(op), model.apply(op), "{:?}", op);
        }
        let mut found = BTreeMap::from([(String::new(), Thing::Dir), ("/data".to_string(), Thing::Dir)]);
        collect("/data", &mut found);
        prop_assert!(found == model.0, "{:?}", ops);
        // Everything removed gives back every page, and all but what hides the image's entries.
        for path in found.keys().rev().filter(|p| Model::is_below(p, "/data")) {
            let nr = if found[path] == Thing::Dir { 84 } else { 87 };
            sys(nr, &[c(path)]).unwrap();
        }
        let space = crate::fs::state::space();
        prop_assert_eq!(space.page_counts().1, 0);
        prop_assert!(space.object_counts().1 <= objects + 8, "{:?}", space.object_counts());
    }
}
