//! What the process has of the file system: root and working directory, umask, and the facts that `/proc` shows.

use super::inode::{Inode, Super};
use super::space::Space;
use crate::cell::Global;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// The mounted file systems and the process's place in them.
pub struct State {
    /// Root directory of the process (`chroot` changes it).
    pub root: Rc<Inode>,
    /// Working directory.
    pub cwd: Rc<Inode>,
    /// Permissions that new files do not get.
    pub umask: u32,
    /// The account of all file systems in memory.
    pub space: Rc<Space>,
    /// The file system of memfds.
    pub memfd: Rc<Super>,
}

static STATE: Global<Option<State>> = Global::new(None);

/// Numbers for inodes of files that have no name (pipes, epoll, eventfd, …).
static NEXT_ANONYMOUS: Global<u64> = Global::new(1);

/// What `/proc` says about the program.
#[derive(Default)]
pub struct Program {
    /// Path of the executable.
    pub exe: Vec<u8>,
    /// Arguments.
    pub argv: Vec<Vec<u8>>,
    /// Environment.
    pub envp: Vec<Vec<u8>>,
    /// Auxiliary vector.
    pub auxv: Vec<u8>,
}

static PROGRAM: Global<Program> = Global::new(Program {
    exe: Vec::new(),
    argv: Vec::new(),
    envp: Vec::new(),
    auxv: Vec::new(),
});

/// Installs the mounted tree.
pub fn set(state: State) {
    *STATE.borrow_mut() = Some(state);
}

#[allow(clippy::expect_used)]
fn with<T>(get: impl FnOnce(&mut State) -> T) -> T {
    // The boot code calls `fs::init` before there is any program; without it there is nothing to go on with.
    get(STATE.borrow_mut().as_mut().expect("fs::init has run"))
}

/// Root directory.
pub fn root() -> Rc<Inode> {
    with(|s| s.root.clone())
}

/// Working directory.
pub fn cwd() -> Rc<Inode> {
    with(|s| s.cwd.clone())
}

/// Changes the root directory.
pub fn set_root(root: Rc<Inode>) {
    let old = with(|s| core::mem::replace(&mut s.root, root));
    drop(old);
}

/// Changes the working directory.
pub fn set_cwd(cwd: Rc<Inode>) {
    let old = with(|s| core::mem::replace(&mut s.cwd, cwd));
    drop(old);
}

/// Sets the umask, returns the old one.
pub fn set_umask(umask: u32) -> u32 {
    with(|s| core::mem::replace(&mut s.umask, umask & 0o777))
}

/// The umask.
pub fn umask() -> u32 {
    with(|s| s.umask)
}

/// The account of all file systems in memory.
pub fn space() -> Rc<Space> {
    with(|s| s.space.clone())
}

/// Pages that files in memory hold; 0 before anything is mounted.
pub fn pages_in_use() -> u64 {
    let state = STATE.borrow();
    state.as_ref().map_or(0, |s| s.space.page_counts().1)
}

/// The file system of memfds.
pub fn memfd() -> Rc<Super> {
    with(|s| s.memfd.clone())
}

/// A number for a file without a name.
pub fn anonymous_ino() -> u64 {
    let mut next = NEXT_ANONYMOUS.borrow_mut();
    *next += 1;
    *next
}

/// Reads or changes what `/proc` says about the program.
pub fn program<T>(with: impl FnOnce(&mut Program) -> T) -> T {
    with(&mut PROGRAM.borrow_mut())
}
