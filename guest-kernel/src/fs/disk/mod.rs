//! Files on disks: ext4 volumes with a page cache, and the root image with changes kept on a volume.
//!
//! | file | contents |
//! | --- | --- |
//! | `device`, `volume` | the ext4 library over a block device, behind a lock |
//! | `cache`, `file` | the page cache: as a whole, and of one file |
//! | `raw` | a disk without a file system, `/dev/diskN` |
//! | `node`, `dir`, `tree` | inodes, directories, changes of the tree; over the image with whiteouts as overlayfs |
//!
//! Locks, in the order in which they are taken: a file's `lock_writes`, then its volume's. Room in the cache is made before the
//! volume's lock is taken, since that may write files back.

pub mod cache;
pub mod device;
pub mod dir;
pub mod file;
pub mod node;
pub mod raw;
#[cfg(test)]
mod tests;
pub mod tree;
pub mod volume;

use super::image_fs::{ImageFs, OVERLAY_MAGIC};
use super::inode::{Inode, Super};
use super::space::Space;
use crate::cell::Global;
use crate::drivers;
use crate::errno::*;
use crate::sched;
use crate::wait::Wake;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, Ordering};
use device::BlockDevice;
use node::{DiskSuper, Sides, context, file_name, permissions};
use volume::{Guard, Volume, number};

/// `f_type` of ext4.
pub const EXT4_MAGIC: u64 = 0xef53;
/// What has been written is on stable storage after this time at the latest, if the kernel lives: the usual five seconds.
pub const COMMIT_INTERVAL_NS: u64 = 5_000_000_000;
/// Where an overlay keeps its changes, and where it makes them.
const UPPER: &[u8] = b"upper";
const WORK: &[u8] = b"work";

static VOLUMES: Global<Vec<Rc<Volume>>> = Global::new(Vec::new());

/// Mounts the ext4 file system on a device; `image`: as changes of that image.
///
/// # Errors
/// What is wrong, for people.
pub fn mount(
    name: &str,
    device: Rc<dyn BlockDevice>,
    dev: u64,
    read_only: bool,
    space: Rc<Space>,
    image: Option<Rc<ImageFs>>,
) -> core::result::Result<Rc<Inode>, String> {
    let volume = Volume::mount(name, device, read_only)?;
    let root = mount_volume(&volume, dev, space, image)
        .map_err(|error| alloc::format!("{name}: error {}", error.0))?;
    VOLUMES.borrow_mut().push(volume);
    Ok(root)
}

fn mount_volume(
    volume: &Rc<Volume>,
    dev: u64,
    space: Rc<Space>,
    image: Option<Rc<ImageFs>>,
) -> Result<Rc<Inode>> {
    let guard = volume.lock();
    let top = guard.ask(|fs| Ok(fs.root_inode()))?.raw();
    let (mut root, mut work) = (top, 0);
    if image.is_some() {
        root = directory(&guard, top, UPPER)?;
        work = directory(&guard, top, WORK)?;
        clear(&guard, work)?;
    }
    let lower = image.as_ref().map(|image| image.root_ino());
    let magic = if image.is_some() {
        OVERLAY_MAGIC
    } else {
        EXT4_MAGIC
    };
    let disk = DiskSuper {
        volume: volume.clone(),
        image,
        work,
        next_temporary: Cell::new(1),
    };
    let sup = Super::on_disk(dev, magic, space, disk);
    let sides = Sides {
        upper: Some(root),
        lower,
    };
    let inode = node::make(&sup, sides, &guard)?;
    sup.remember(&inode);
    Ok(inode)
}

/// A directory at the top of an overlay's volume, made if it is not there.
fn directory(guard: &Guard<'_>, top: u32, name: &[u8]) -> Result<u32> {
    let file = file_name(name)?;
    if let Some(info) = guard.ask(|fs| fs.lookup_child(number(top)?, file))? {
        return Ok(info.number.raw());
    }
    let mode = permissions(0o755)?;
    let info = guard.change(|fs| fs.create_directory(context(0, 0), number(top)?, file, mode))?;
    Ok(info.number.raw())
}

/// Removes what a crash has left in the working directory.
fn clear(guard: &Guard<'_>, work: u32) -> Result<()> {
    let start = rsext4::DirectoryCursor::Start;
    let entries = guard.ask(|fs| fs.read_directory(number(work)?, start, usize::MAX))?;
    for entry in entries {
        if matches!(&*entry.name, b"." | b"..") {
            continue;
        }
        let name = file_name(&entry.name)?;
        let gone = guard.change(|fs| match entry.file_type {
            rsext4::DirectoryEntryType::Directory => fs.remove_empty_directory(number(work)?, name),
            _ => fs.unlink(number(work)?, name),
        })?;
        if gone.requires_reap() {
            guard.change(|fs| fs.reap_unlinked_inode(gone.inode))?;
        }
    }
    Ok(())
}

/// Gives all dirty pages to the disks. Errors are kept for `fsync`.
pub fn write_back_all() {
    for _ in 0..cache::dirty_files() {
        let Some(inode) = cache::next_dirty() else {
            return;
        };
        let Some(file) = file::of(&inode) else {
            continue;
        };
        if !file.unlisted() || inode.meta.get().nlink == 0 && Rc::strong_count(&inode) == 1 {
            // Nothing to write, or nobody who could ever read it.
            continue;
        }
        let _ = file.write_back(&inode);
        if file.has_shared_pages() {
            file.list(&inode);
        }
    }
}

fn volumes() -> Vec<Rc<Volume>> {
    VOLUMES.borrow().clone()
}

/// `sync`: everything to stable storage.
pub fn sync_all() {
    write_back_all();
    for volume in volumes() {
        // Told on the console; `sync` has no way to.
        let _ = volume.lock().commit();
    }
}

/// `syncfs`: everything of one file system.
///
/// # Errors
/// `EIO`.
pub fn sync_volume(inode: &Inode) -> Result<()> {
    let Some(disk) = &inode.sup.disk else {
        return Ok(());
    };
    write_back_all();
    disk.volume.lock().commit()
}

/// `fsync`: one file (and with it all that was changed before) to stable storage.
///
/// # Errors
/// `EIO`, `ENOSPC`: also for what went wrong earlier, once.
pub fn fsync(inode: &Rc<Inode>) -> Result<()> {
    let Some(disk) = &inode.sup.disk else {
        return Ok(());
    };
    let committed = disk.volume.commit_with(inode, |inode, guard| {
        if let Some(file) = file::of(inode) {
            // The error is told to whoever asked for this file.
            let _ = file.write_back_locked(inode, guard);
        }
    });
    if let Some(file) = file::of(inode) {
        file.take_error()?;
    }
    committed
}

/// Id of the thread that writes in the background.
const BACKGROUND: u32 = 2;
/// It has nothing to do.
static RESTING: AtomicBool = AtomicBool::new(false);

/// Whether there is anything that the background thread would write.
fn anything_to_write() -> bool {
    cache::dirty_files() > 0 || volumes().iter().any(|v| v.needs_commit())
}

/// Something was changed: the background thread looks after it in time.
pub fn wake_background() {
    if RESTING.swap(false, Ordering::Relaxed) {
        sched::make_runnable(BACKGROUND, Wake::Ready);
    }
}

/// Starts the background thread, if there is a disk.
///
/// # Errors
/// `ENOMEM`.
#[cfg(not(test))]
pub fn start_background() -> Result<()> {
    if VOLUMES.borrow().is_empty() {
        return Ok(());
    }
    sched::spawn_kernel(BACKGROUND, background)
}

/// What the background thread does for ever: writes and commits what is older than [`COMMIT_INTERVAL_NS`].
#[cfg(not(test))]
extern "C" fn background() -> ! {
    sched::started();
    loop {
        if anything_to_write() {
            sched::block(Some(crate::time::now_ns() + COMMIT_INTERVAL_NS));
            sync_all();
        } else {
            RESTING.store(true, Ordering::Relaxed);
            sched::block_uninterruptible();
        }
    }
}

static DOWN: AtomicBool = AtomicBool::new(false);

/// The program has ended: everything to stable storage, and all volumes clean. Other threads may run until the volumes' locks are
/// taken, none after that.
pub fn shut_down() {
    if DOWN.swap(true, Ordering::Relaxed) {
        return;
    }
    let volumes = volumes();
    if volumes.is_empty() {
        return;
    }
    write_back_all();
    let guards: Vec<Guard<'_>> = volumes.iter().map(|v| v.lock()).collect();
    drivers::block::run_alone();
    for _ in 0..cache::dirty_files() {
        let Some(inode) = cache::next_dirty() else {
            break;
        };
        let of_volume = |v: &Rc<Volume>| inode.sup.volume().is_ok_and(|own| Rc::ptr_eq(own, v));
        if let (Some(file), Some(at)) = (file::of(&inode), volumes.iter().position(of_volume)) {
            // Told on the console.
            let _ = file.write_back_locked(&inode, &guards[at]);
        }
    }
    for (volume, guard) in volumes.iter().zip(&guards) {
        guard.reap_all();
        if !volume.read_only()
            && let Err(error) = guard.unmount()
        {
            crate::klog!(
                "{}: not taken down cleanly (error {})",
                volume.name,
                error.0
            );
        }
    }
    // Never released: nothing may be changed any more.
    core::mem::forget(guards);
}

/// For tests: forgets all volumes, as a new kernel would.
#[cfg(test)]
pub fn forget_all() {
    while let Some(inode) = cache::next_dirty() {
        drop(inode);
    }
    VOLUMES.borrow_mut().clear();
    DOWN.store(false, Ordering::Relaxed);
}
