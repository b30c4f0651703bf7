//! What a process has of the file system: root and working directory, umask, and the facts that `/proc` shows; and what all have in
//! common.

use super::inode::{Inode, Super};
use super::open;
use super::space::Space;
use crate::cell::Global;
use crate::errno::{ENOMEM, Result};
use crate::file::File;
use crate::process::{self, Process};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// The mounted file systems, and the first process's place in them.
pub struct State {
    /// Root directory.
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

/// What all processes have in common.
struct Common {
    space: Rc<Space>,
    memfd: Rc<Super>,
}

static COMMON: Global<Option<Common>> = Global::new(None);

/// A process's place in the tree.
#[derive(Clone)]
pub struct Place {
    /// Root directory (`chroot` changes it).
    pub root: Rc<Inode>,
    /// Working directory.
    pub cwd: Rc<Inode>,
    /// Permissions that new files do not get.
    pub umask: u32,
}

/// Numbers for inodes of files that have no name (pipes, epoll, eventfd, …).
static NEXT_ANONYMOUS: Global<u64> = Global::new(1);

/// What `/proc` says about a program.
#[derive(Clone, Default)]
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

/// Installs the mounted tree.
pub fn set(state: State) {
    *process::current().place.borrow_mut() = Some(Place {
        root: state.root,
        cwd: state.cwd,
        umask: state.umask,
    });
    *COMMON.borrow_mut() = Some(Common {
        space: state.space,
        memfd: state.memfd,
    });
}

#[allow(clippy::expect_used)]
fn with<T>(get: impl FnOnce(&mut Place) -> T) -> T {
    // The boot code calls `fs::init` before there is any program, and a process loses its place only when all its threads have ended;
    // without it there is nothing to go on with.
    get(process::current()
        .place
        .borrow_mut()
        .as_mut()
        .expect("fs::init has run"))
}

#[allow(clippy::expect_used)]
fn common<T>(get: impl FnOnce(&Common) -> T) -> T {
    // As above.
    get(COMMON.borrow().as_ref().expect("fs::init has run"))
}

/// Root directory of a process; None for one that has ended.
pub fn root_of(process: &Process) -> Option<Rc<Inode>> {
    process.place.borrow().as_ref().map(|p| p.root.clone())
}

/// Working directory of a process; None for one that has ended.
pub fn cwd_of(process: &Process) -> Option<Rc<Inode>> {
    process.place.borrow().as_ref().map(|p| p.cwd.clone())
}

/// The umask of a process.
pub fn umask_of(process: &Process) -> u32 {
    process.place.borrow().as_ref().map_or(0, |p| p.umask)
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
    common(|s| s.space.clone())
}

/// Pages that files in memory hold; 0 before anything is mounted.
pub fn pages_in_use() -> u64 {
    let common = COMMON.borrow();
    common.as_ref().map_or(0, |s| s.space.page_counts().1)
}

/// The file system of memfds.
pub fn memfd() -> Rc<Super> {
    common(|s| s.memfd.clone())
}

/// Memory that processes share without a name (MAP_SHARED | MAP_ANONYMOUS): a file of `len` bytes that nobody can open.
///
/// # Errors
/// `ENOMEM` at the bound on objects.
pub fn shared_memory(len: u64) -> Result<Rc<dyn File>> {
    let inode = Inode::new_regular(&memfd(), 0o600).map_err(|_| ENOMEM)?;
    inode.update(|meta| meta.nlink = 0);
    if let Some(contents) = inode.contents() {
        contents.truncate(len).map_err(|_| ENOMEM)?;
    }
    let label = b"/dev/zero (deleted)".to_vec().into();
    Ok(open::InodeFile::new(
        inode,
        open::Place::Label(label),
        false,
    ))
}

/// A number for a file without a name.
pub fn anonymous_ino() -> u64 {
    let mut next = NEXT_ANONYMOUS.borrow_mut();
    *next += 1;
    *next
}

/// Reads or changes what `/proc` says about the running program.
pub fn program<T>(with: impl FnOnce(&mut Program) -> T) -> T {
    with(&mut process::current().program.borrow_mut())
}
