//! The file tree that an image is written from.

use std::collections::BTreeMap;

use quorate_abi::image::{MAX_NAME, MAX_TARGET, S_IFBLK, S_IFCHR, S_IFIFO};

/// Symbolic links followed while a path is resolved (Linux's limit).
const MAX_LINKS: usize = 40;

/// Number of a node in its [`Tree`].
pub type NodeId = usize;

/// Owner, permissions and time of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits, set-id and sticky bits included (`mode & 0o7777`).
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification, seconds since 1970.
    pub mtime: i64,
}

impl Meta {
    /// Root's, with these permissions and this time.
    #[must_use]
    pub const fn root(perm: u32, mtime: i64) -> Self {
        Self {
            perm,
            uid: 0,
            gid: 0,
            mtime,
        }
    }
}

/// Sort of a special file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Character device with its `st_rdev`.
    Char(u64),
    /// Block device with its `st_rdev`.
    Block(u64),
    /// Named pipe.
    Fifo,
}

impl Special {
    /// File type bits of `st_mode`.
    #[must_use]
    pub const fn mode(self) -> u32 {
        match self {
            Self::Char(_) => S_IFCHR,
            Self::Block(_) => S_IFBLK,
            Self::Fifo => S_IFIFO,
        }
    }

    /// `st_rdev`.
    #[must_use]
    pub const fn rdev(self) -> u64 {
        match self {
            Self::Char(rdev) | Self::Block(rdev) => rdev,
            Self::Fifo => 0,
        }
    }
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Directory: entries by name.
    Dir(BTreeMap<Vec<u8>, NodeId>),
    /// Regular file: contents.
    File(Vec<u8>),
    /// Symbolic link: target.
    Symlink(Vec<u8>),
    /// Device or FIFO.
    Special(Special),
}

/// A file of any sort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Owner, permissions, time.
    pub meta: Meta,
    /// What it is.
    pub kind: Kind,
    /// A directory that was only made because something lies in it: the first explicit one decides its `meta`.
    implicit: bool,
    /// Names that it has in directories.
    links: u32,
}

/// Why a path cannot be put into a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The path has a component that no file can have.
    #[error(
        "{0}: not a path that an image can hold (empty, `..`, a NUL, or a name over {MAX_NAME} bytes)"
    )]
    BadPath(String),
    /// A component that should be a directory is something else.
    #[error("{0}: not a directory")]
    NotDirectory(String),
    /// Too many symbolic links on the way.
    #[error("{0}: too many symbolic links")]
    Loop(String),
    /// A directory stands where another sort of file should go.
    #[error("{0}: a directory is already there")]
    IsDirectory(String),
    /// The target of a hard link is missing or a directory.
    #[error("{0}: hard link to {1}, which is not a file of the image")]
    BadLink(String, String),
    /// An empty or overlong symlink target.
    #[error("{0}: symbolic link with an empty target or one over {MAX_TARGET} bytes")]
    BadTarget(String),
}

/// A file tree; paths are bytes, relative to its root, with or without a leading slash.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Node 0 is the root. Nodes that were replaced stay here, unreachable and empty; the writer walks from the root.
    nodes: Vec<Node>,
    /// Contents of all files that have a name.
    bytes: u64,
}

impl Tree {
    /// A tree with nothing but its root directory.
    #[must_use]
    pub fn new(meta: Meta) -> Self {
        let root = Node {
            meta,
            kind: Kind::Dir(BTreeMap::new()),
            implicit: false,
            links: 1,
        };
        Self {
            nodes: vec![root],
            bytes: 0,
        }
    }

    /// The root directory.
    #[must_use]
    pub const fn root(&self) -> NodeId {
        0
    }

    /// Node `id`, if there is one.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id)
    }

    /// Bytes of the contents of all files.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many nodes were put in so far.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The node at `path`, symbolic links on the way followed, the last component not.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<NodeId> {
        let (parent, name) = self.locate(path).ok()?;
        match name {
            Some(name) => self.child(parent, &name),
            None => Some(parent),
        }
    }

    /// The node that `path` leads to, all symbolic links followed.
    #[must_use]
    pub fn follow(&self, path: &[u8]) -> Option<NodeId> {
        let mut path = path.to_vec();
        for _ in 0..=MAX_LINKS {
            let id = self.get(&path)?;
            let Kind::Symlink(target) = &self.nodes.get(id)?.kind else {
                return Some(id);
            };
            if target.starts_with(b"/") {
                path.clone_from(target);
            } else {
                let above = path.iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1);
                path.truncate(above);
                path.extend_from_slice(target);
            }
        }
        None
    }

    /// Makes the directory `path` and those above it. A directory, or a link to one, that is already there stays.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn dir(&mut self, path: &[u8], meta: Meta) -> Result<(), TreeError> {
        let Some((parent, name)) = self.make_parent(path, meta.mtime)? else {
            return Ok(());
        };
        match self.child(parent, &name) {
            None => self.attach(parent, name, meta, Kind::Dir(BTreeMap::new())),
            Some(id) => {
                let is_dir = matches!(self.nodes.get(id).map(|n| &n.kind), Some(Kind::Dir(_)));
                if !is_dir {
                    // A link to a directory is as good; anything else is in the way.
                    self.walk(path)?;
                } else if let Some(node) = self.nodes.get_mut(id)
                    && node.implicit
                {
                    node.meta = meta;
                    node.implicit = false;
                }
            }
        }
        Ok(())
    }

    /// Puts a regular file at `path`, replacing what is there unless that is a directory.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn file(&mut self, path: &[u8], meta: Meta, content: Vec<u8>) -> Result<(), TreeError> {
        let bytes = content.len() as u64;
        self.put(path, meta, Kind::File(content))?;
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(())
    }

    /// Puts a device or FIFO at `path`.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn special(&mut self, path: &[u8], meta: Meta, special: Special) -> Result<(), TreeError> {
        self.put(path, meta, Kind::Special(special))
    }

    /// Puts a symbolic link at `path`. As dpkg does, a directory that is already there stays; and a link that would lead to
    /// itself because its directory is a link already (`/usr/bin/x` to `/bin/x` on a merged `/usr`) is left out.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn symlink(&mut self, path: &[u8], meta: Meta, target: &[u8]) -> Result<(), TreeError> {
        if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
            return Err(TreeError::BadTarget(show(path)));
        }
        let Some((parent, name)) = self.make_parent(path, meta.mtime)? else {
            return Err(TreeError::IsDirectory(show(path)));
        };
        if let Some(id) = self.child(parent, &name)
            && matches!(self.nodes.get(id).map(|n| &n.kind), Some(Kind::Dir(_)))
        {
            return Ok(());
        }
        if target.starts_with(b"/") && self.locate(target) == Ok((parent, Some(name.clone()))) {
            return Ok(());
        }
        self.attach(parent, name, meta, Kind::Symlink(target.to_vec()));
        Ok(())
    }

    /// Makes `path` another name of the file at `target`.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let bad = || TreeError::BadLink(show(path), show(target));
        let id = self.get(target).ok_or_else(bad)?;
        let node = self.nodes.get(id).ok_or_else(bad)?;
        if matches!(node.kind, Kind::Dir(_)) {
            return Err(bad());
        }
        let mtime = node.meta.mtime;
        let Some((parent, name)) = self.make_parent(path, mtime)? else {
            return Err(TreeError::IsDirectory(show(path)));
        };
        self.clear(parent, &name, path)?;
        self.insert(parent, name, id);
        Ok(())
    }

    /// Makes the directory `path` with these owner, permissions and time, whatever was there: another sort of file goes, a
    /// directory keeps what is in it. This is how a layer of an OCI image is put over those below.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn dir_over(&mut self, path: &[u8], meta: Meta) -> Result<(), TreeError> {
        let Some((parent, name)) = self.make_parent(path, meta.mtime)? else {
            if let Some(root) = self.nodes.get_mut(0) {
                root.meta = meta;
            }
            return Ok(());
        };
        match self
            .child(parent, &name)
            .and_then(|id| self.nodes.get_mut(id))
        {
            Some(node) if matches!(node.kind, Kind::Dir(_)) => {
                node.meta = meta;
                node.implicit = false;
            }
            _ => self.attach(parent, name, meta, Kind::Dir(BTreeMap::new())),
        }
        Ok(())
    }

    /// Takes what is at `path` out of the tree, a directory with all that is in it; says whether there was anything.
    ///
    /// # Errors
    /// See [`TreeError`]: among others for the root, and for paths with `..`.
    pub fn remove(&mut self, path: &[u8]) -> Result<bool, TreeError> {
        if components(path)?.is_empty() {
            return Err(TreeError::BadPath(show(path)));
        }
        // A directory on the way that is missing or none at all: then there is nothing.
        let Ok((parent, Some(name))) = self.locate(path) else {
            return Ok(false);
        };
        Ok(self.detach(parent, &name))
    }

    /// Empties the directory at `path`, if there is one.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn clear_dir(&mut self, path: &[u8]) -> Result<(), TreeError> {
        components(path)?;
        let Ok(id) = self.walk(path) else {
            return Ok(());
        };
        let names: Vec<Vec<u8>> = match self.nodes.get(id).map(|node| &node.kind) {
            Some(Kind::Dir(entries)) => entries.keys().cloned().collect(),
            _ => Vec::new(),
        };
        for name in names {
            self.detach(id, &name);
        }
        Ok(())
    }

    /// Takes a name out of a directory. What has no name left gives up its contents.
    fn detach(&mut self, parent: NodeId, name: &[u8]) -> bool {
        let removed = match self.nodes.get_mut(parent).map(|node| &mut node.kind) {
            Some(Kind::Dir(entries)) => entries.remove(name),
            _ => None,
        };
        let mut todo: Vec<NodeId> = removed.into_iter().collect();
        while let Some(id) = todo.pop() {
            let Some(node) = self.nodes.get_mut(id) else {
                continue;
            };
            node.links = node.links.saturating_sub(1);
            if node.links == 0 {
                match std::mem::replace(&mut node.kind, Kind::File(Vec::new())) {
                    Kind::Dir(entries) => todo.extend(entries.into_values()),
                    Kind::File(content) => {
                        self.bytes = self.bytes.saturating_sub(content.len() as u64);
                    }
                    _ => {}
                }
            }
        }
        removed.is_some()
    }

    fn put(&mut self, path: &[u8], meta: Meta, kind: Kind) -> Result<(), TreeError> {
        let Some((parent, name)) = self.make_parent(path, meta.mtime)? else {
            return Err(TreeError::IsDirectory(show(path)));
        };
        self.clear(parent, &name, path)?;
        self.attach(parent, name, meta, kind);
        Ok(())
    }

    /// Refuses to put a file where a directory is.
    fn clear(&self, parent: NodeId, name: &[u8], path: &[u8]) -> Result<(), TreeError> {
        match self.child(parent, name).and_then(|id| self.nodes.get(id)) {
            Some(node) if matches!(node.kind, Kind::Dir(_)) => {
                Err(TreeError::IsDirectory(show(path)))
            }
            _ => Ok(()),
        }
    }

    fn attach(&mut self, parent: NodeId, name: Vec<u8>, meta: Meta, kind: Kind) {
        let id = self.nodes.len();
        self.nodes.push(Node {
            meta,
            kind,
            implicit: false,
            links: 0,
        });
        self.insert(parent, name, id);
    }

    fn insert(&mut self, parent: NodeId, name: Vec<u8>, id: NodeId) {
        // First the new name, so that a file that is linked over itself keeps its contents.
        if let Some(node) = self.nodes.get_mut(id) {
            node.links += 1;
        }
        self.detach(parent, &name);
        if let Some(Node {
            kind: Kind::Dir(entries),
            ..
        }) = self.nodes.get_mut(parent)
        {
            entries.insert(name, id);
        }
    }

    fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.nodes.get(dir)?.kind {
            Kind::Dir(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    /// The directory of `path`'s last component, made if need be, and that component; `None` for the root itself.
    fn make_parent(
        &mut self,
        path: &[u8],
        mtime: i64,
    ) -> Result<Option<(NodeId, Vec<u8>)>, TreeError> {
        let mut parts = components(path)?;
        let Some(name) = parts.pop() else {
            return Ok(None);
        };
        let mut prefix = Vec::new();
        let mut at = self.root();
        for part in parts {
            prefix.push(b'/');
            prefix.extend_from_slice(&part);
            at = match self.child(at, &part) {
                Some(_) => self.walk(&prefix)?,
                None => {
                    let id = self.nodes.len();
                    self.attach(
                        at,
                        part,
                        Meta::root(0o755, mtime),
                        Kind::Dir(BTreeMap::new()),
                    );
                    if let Some(node) = self.nodes.get_mut(id) {
                        node.implicit = true;
                    }
                    id
                }
            };
        }
        Ok(Some((at, name)))
    }

    /// The directory of `path`'s last component and that component, the directories being there already; `None` when the
    /// path ends in the root or in `..`.
    fn locate(&self, path: &[u8]) -> Result<(NodeId, Option<Vec<u8>>), TreeError> {
        let end = path.iter().rposition(|&b| b != b'/').map_or(0, |i| i + 1);
        let trimmed = path.get(..end).unwrap_or_default();
        let split = trimmed
            .iter()
            .rposition(|&b| b == b'/')
            .map_or(0, |i| i + 1);
        let (above, name) = trimmed.split_at(split);
        if name.is_empty() || name == b"." || name == b".." {
            return Ok((self.walk(path)?, None));
        }
        Ok((self.walk(above)?, Some(name.to_vec())))
    }

    /// The directory that `path` leads to, all links followed.
    fn walk(&self, path: &[u8]) -> Result<NodeId, TreeError> {
        let mut stack = vec![self.root()];
        let mut todo: Vec<Vec<u8>> = reversed(path);
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let at = stack.last().copied().unwrap_or_default();
            let next = self
                .child(at, &part)
                .ok_or_else(|| TreeError::NotDirectory(show(path)))?;
            match self.nodes.get(next).map(|n| &n.kind) {
                Some(Kind::Dir(_)) => stack.push(next),
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(TreeError::Loop(show(path)));
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    todo.extend(reversed(target));
                }
                _ => return Err(TreeError::NotDirectory(show(path))),
            }
        }
        Ok(stack.last().copied().unwrap_or_default())
    }
}

/// Components of `path`, the last one first, without empty ones and `.`.
fn reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&b| b == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .rev()
        .map(<[u8]>::to_vec)
        .collect()
}

fn components(path: &[u8]) -> Result<Vec<Vec<u8>>, TreeError> {
    let mut parts = reversed(path);
    parts.reverse();
    let bad = |part: &Vec<u8>| part == b".." || part.contains(&0) || part.len() > MAX_NAME;
    if parts.iter().any(bad) {
        return Err(TreeError::BadPath(show(path)));
    }
    Ok(parts)
}

fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
