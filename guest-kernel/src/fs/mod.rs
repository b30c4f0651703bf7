//! Files: the tree of the root image with changes in memory, `/proc`, `/dev`, pipes, epoll and everything else that a
//! descriptor can be except sockets, and the system calls on them.
//!
//! | file | contents |
//! | --- | --- |
//! | `space` | what files in memory may use (R10) |
//! | `superblock`, `inode`, `directory`, `contents`, `body`, `image_fs` | the tree: inodes over the root image, changes in memory |
//! | `disk` | ext4 on disks, with a page cache; the image with changes on a disk |
//! | `mounts` | what is mounted where |
//! | `path`, `tree`, `open`, `locks` | walking, changing, opening, locking |
//! | `proc`, `proc_text`, `dev`, `random` | `/proc`, `/sys`, `/dev`, randomness |
//! | `pipe`, `eventfd`, `timerfd`, `epoll`, `poll`, `signalled` | the other kinds of files, and waiting for them |
//! | `sys_…`, `dispatch` | system calls |

mod anon;
mod body;
mod contents;
pub mod dev;
mod directory;
pub mod disk;
mod dispatch;
mod epoll;
mod eventfd;
mod image_fs;
mod inode;
mod locks;
pub mod mounts;
mod open;
mod path;
mod pipe;
mod poll;
pub mod proc;
pub mod proc_text;
pub mod random;
pub mod signalled;
mod space;
pub mod state;
mod superblock;
mod sys_copy;
mod sys_fd;
mod sys_io;
mod sys_path;
mod sys_stat;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod timerfd;
mod tree;
mod wait_for;

pub use disk::volume::Held as WriteLock;
pub use dispatch::dispatch;
pub use epoll::set_mask;
pub use path::AT_FDCWD;
pub use proc_text::{host as hostname, set_hostname};
pub use random::set_source;
pub use state::shared_memory;
pub use sys_fd::{closed, is_socket};
pub use wait_for::{Deadline, poll_in_vain};

use crate::errno::*;
use crate::file::{self, File, OpenFile, flags};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::any::Any;
use inode::{Inode, Super, may};
use mounts::Mount;
use open::InodeFile;
use proc::ProcDir;
use state::State;

/// `st_dev` of the root; the other mounts follow in the order of `/proc/mounts`.
pub(crate) const FIRST_DEV: u64 = 20;
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Mounts the root image, which lies at physical address `physical`, or what `root_mount` says over it, and `/proc`, `/sys`, `/dev` and
/// `/dev/shm` over that.
///
/// # Errors
/// `EINVAL` if it is no image, `EIO` where it is damaged or the disk cannot be mounted (the console says how), `ENOSPC`.
pub fn init(image: &'static [u8], physical: u64, root_mount: Option<&Mount>) -> Result<()> {
    let space = space::Space::of_memory();
    let image =
        image_fs::ImageFs::new(image, physical, FIRST_DEV, space.clone()).map_err(|error| {
            crate::klog!("root image: {error}");
            EINVAL
        })?;
    let root = mounts::root(image, FIRST_DEV, &space, root_mount)?;
    root.mounted.set(true);
    let sup = |offset, magic| Super::new(FIRST_DEV + offset, magic, space.clone(), 1);
    let proc_root = proc::root(&sup(1, proc::PROC_MAGIC), ProcDir::Top)?;
    mount(&root, b"proc", &proc_root)?;
    let sys_root = proc::root(&sup(2, proc::SYSFS_MAGIC), ProcDir::Fixed(proc::SYSFS))?;
    mount(&root, b"sys", &sys_root)?;
    let dev_sup = sup(3, TMPFS_MAGIC);
    let dev_root = Inode::new_directory(&dev_sup, 0o755)?;
    mount(&root, b"dev", &dev_root)?;
    dev::populate(&dev_root, &dev_sup)?;
    let shm = Inode::new_directory(&sup(4, TMPFS_MAGIC), 0o1777)?;
    mount(&dev_root, b"shm", &shm)?;
    state::set(State {
        cwd: root.clone(),
        root,
        umask: 0o022,
        memfd: sup(5, TMPFS_MAGIC),
        space,
    });
    Ok(())
}

/// Puts the root of a file system at a name, whatever the image has there.
fn mount(dir: &Rc<Inode>, name: &[u8], root: &Rc<Inode>) -> Result<()> {
    root.mounted.set(true);
    if let inode::Kind::DiskDir(on_disk) = &dir.kind {
        on_disk.mount(name, root);
        *root.place.borrow_mut() = Some((dir.clone(), name.into()));
        return Ok(());
    }
    dir.directory()?.insert(dir, name, root)?;
    dir.update(|meta| meta.nlink += 1);
    Ok(())
}

/// Tells `/proc` what runs: path of the executable, arguments, environment, auxiliary vector.
pub fn set_process_info(exe: &[u8], argv: &[Vec<u8>], envp: &[Vec<u8>], auxv: &[u8]) {
    state::program(|program| {
        program.exe = exe.to_vec();
        program.argv = argv.to_vec();
        program.envp = envp.to_vec();
        program.auxv = auxv.to_vec();
    });
}

/// Bytes of memory that files hold (0 before [`init`]). The same in every replica (R8).
pub fn memory_in_use() -> u64 {
    state::pages_in_use() * quorate_abi::PAGE_SIZE
}

/// Where bytes written to the console go.
pub fn set_console(sink: fn(&[u8])) {
    dev::set_console(sink);
}

/// Opens descriptors 0 (`/dev/null`), 1 and 2 (`/dev/console`) in an empty table.
///
/// # Errors
/// As [`open`].
pub fn open_std() -> Result<()> {
    let input = open(b"/dev/null", flags::O_RDONLY, 0)?;
    let output = open(b"/dev/console", flags::O_RDWR, 0)?;
    let mut table = file::table();
    table.insert(input, false, 0)?;
    table.insert(output.clone(), false, 0)?;
    table.insert(output, false, 0)?;
    Ok(())
}

/// Opens a path relative to the working directory.
///
/// # Errors
/// As `open(2)`.
pub fn open(path: &[u8], flags: u32, mode: u32) -> Result<Rc<OpenFile>> {
    open::open_at(AT_FDCWD, path, flags, mode)
}

/// Opens a program: a regular file that the process may execute.
///
/// # Errors
/// `EACCES` if it is none, and as `open(2)`.
pub fn open_program(path: &[u8]) -> Result<Rc<dyn File>> {
    let inode = path::find(AT_FDCWD, path, true)?;
    if !inode.is_regular() {
        return Err(EACCES);
    }
    inode.check(may::EXEC)?;
    let open = open::open_at(AT_FDCWD, path, flags::O_RDONLY, 0)?;
    Ok(open.file.clone())
}

/// Changes the working directory (for the boot command).
///
/// # Errors
/// As `chdir(2)`.
pub fn set_cwd(path: &[u8]) -> Result<()> {
    let inode = path::find(AT_FDCWD, path, true)?;
    if !inode.is_dir() {
        return Err(ENOTDIR);
    }
    state::set_cwd(inode);
    Ok(())
}

/// Makes the name of a bound socket at `path`; `object` is found by [`find_socket`] while it lives and has
/// the name.
///
/// # Errors
/// `EADDRINUSE` if there is something, and as `mknod(2)`.
pub fn bind_socket(path: &[u8], object: &Rc<dyn Any>) -> Result<()> {
    let at = path::walk(AT_FDCWD, path, false)?;
    tree::make_socket(&at, 0o777, object).map_err(|e| if e == EEXIST { EADDRINUSE } else { e })
}

/// The object behind a bound socket's name.
///
/// # Errors
/// `ECONNREFUSED` if there is no socket, and as walking.
pub fn find_socket(path: &[u8]) -> Result<Rc<dyn Any>> {
    let inode = path::find(AT_FDCWD, path, true)?;
    inode.check(may::WRITE)?;
    tree::socket_object(&inode)
}

/// `fsync` of an open file; what is not on a disk is as stable as it gets.
///
/// # Errors
/// As `fsync(2)`.
pub fn sync_file(file: &dyn File) -> Result<()> {
    let file = file.as_any();
    if let Some(raw) = file.downcast_ref::<disk::raw::RawDisk>() {
        return raw.flush();
    }
    match file.downcast_ref::<InodeFile>() {
        Some(file) => disk::fsync(&file.inode),
        None => Ok(()),
    }
}

/// Whether it is an end of a pipe.
fn is_pipe(file: &dyn File) -> bool {
    file.as_any().is::<pipe::PipeEnd>()
}

/// Whether two open files are the same file of the tree.
pub fn same_file(a: &dyn File, b: &dyn File) -> bool {
    let inode = |file: &dyn File| {
        let file = file.as_any().downcast_ref::<InodeFile>();
        file.map(|f| f.inode.clone())
    };
    match (inode(a), inode(b)) {
        (Some(a), Some(b)) => a.same(&b),
        _ => false,
    }
}
