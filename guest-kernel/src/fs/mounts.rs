//! What is mounted where: the root, what every appliance has, and what the boot information asks for (`quorate_abi::mount`).

use super::image_fs::ImageFs;
use super::inode::{Inode, Super};
use super::path::{self, Target};
use super::space::Space;
use super::{AT_FDCWD, FIRST_DEV, TMPFS_MAGIC, disk, state, tree};
use crate::cell::Global;
use crate::drivers::block;
use crate::errno::*;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use quorate_abi::PAGE_SIZE;
use quorate_abi::mount::{DISK, kind, option};

/// One mount that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// Where: an absolute path.
    pub target: String,
    /// One of `quorate_abi::mount::kind`.
    pub kind: String,
    /// What.
    pub source: String,
    /// How, separated by commas.
    pub options: String,
}

impl Mount {
    fn has(&self, wanted: &str) -> bool {
        self.options.split(',').any(|o| o == wanted)
    }

    fn size(&self) -> core::result::Result<Option<u64>, String> {
        let value = self
            .options
            .split(',')
            .find_map(|o| o.strip_prefix(option::SIZE));
        match value.map(str::parse) {
            None => Ok(None),
            Some(Ok(bytes)) => Ok(Some(bytes)),
            Some(Err(_)) => Err(alloc::format!("options {}: not a size", self.options)),
        }
    }

    /// The disk that it is about.
    fn disk(&self) -> core::result::Result<Rc<dyn disk::device::BlockDevice>, String> {
        let number = self.source.strip_prefix(DISK).and_then(|n| n.parse().ok());
        let found = number.and_then(device);
        found.ok_or_else(|| alloc::format!("there is no {}", self.source))
    }
}

/// The disk with a number.
pub fn device(number: usize) -> Option<Rc<dyn disk::device::BlockDevice>> {
    #[cfg(test)]
    if let Some(device) = TEST_DISKS.borrow().get(number).cloned() {
        return Some(device);
    }
    block::disk(number).map(|disk| disk as Rc<dyn disk::device::BlockDevice>)
}

/// Disks of unit tests.
#[cfg(test)]
pub static TEST_DISKS: Global<Vec<Rc<dyn disk::device::BlockDevice>>> = Global::new(Vec::new());

/// A line of `/proc/mounts`.
#[derive(Clone)]
pub struct Line {
    /// What.
    pub source: String,
    /// Where.
    pub target: String,
    /// Kind of file system.
    pub kind: String,
    /// How.
    pub options: String,
    /// `st_dev`.
    pub dev: u64,
}

static LINES: Global<Vec<Line>> = Global::new(Vec::new());

/// What is mounted, in the order of mounting.
pub fn lines() -> Vec<Line> {
    LINES.borrow().clone()
}

fn line(source: &str, target: &str, kind: &str, options: &str) {
    let mut lines = LINES.borrow_mut();
    let dev = FIRST_DEV + lines.len() as u64;
    lines.push(Line {
        source: source.to_string(),
        target: target.to_string(),
        kind: kind.to_string(),
        options: options.to_string(),
        dev,
    });
}

/// The root: the image with changes in memory or on a disk, or as it is.
///
/// # Errors
/// `EIO` (the console says more).
pub fn root(
    image: Rc<ImageFs>,
    dev: u64,
    space: &Rc<Space>,
    mount: Option<&Mount>,
) -> Result<Rc<Inode>> {
    LINES.borrow_mut().clear();
    let read_only = mount.is_some_and(|m| m.has(option::READ_ONLY));
    let root = match mount {
        Some(mount) if mount.kind == kind::OVERLAY => mount
            .disk()
            .and_then(|device| {
                disk::mount(
                    &mount.source,
                    device,
                    dev,
                    read_only,
                    space.clone(),
                    Some(image),
                )
            })
            .map_err(|why| {
                crate::klog!("cannot mount / on {}: {why}", mount.source);
                EIO
            })?,
        Some(mount) if mount.kind != kind::IMAGE => {
            crate::klog!("cannot mount /: kind {} is not for it", mount.kind);
            return Err(EINVAL);
        }
        _ => {
            let root = image.root()?;
            if read_only {
                root.sup.set_read_only();
            }
            root
        }
    };
    let how = if read_only { "ro" } else { "rw" };
    line("overlay", "/", "overlay", &alloc::format!("{how},noatime"));
    line("proc", "/proc", "proc", "rw,noatime");
    line("sysfs", "/sys", "sysfs", "ro,noatime");
    line("devtmpfs", "/dev", "devtmpfs", "rw,noatime");
    line("tmpfs", "/dev/shm", "tmpfs", "rw,noatime");
    Ok(root)
}

/// Makes a mount, in a tree whose root is there.
///
/// # Errors
/// What is wrong, for people.
pub fn add(mount: &Mount) -> core::result::Result<(), String> {
    let place = |error: Errno| alloc::format!("{}: error {}", mount.target, error.0);
    let dev = FIRST_DEV + LINES.borrow().len() as u64;
    // The file system of memfds has the number behind those that are always there.
    let dev = dev + 1;
    let read_only = mount.has(option::READ_ONLY);
    let (dir, name) = target(mount.target.as_bytes()).map_err(place)?;
    let root = match &*mount.kind {
        kind::EXT4 => {
            let device = mount.disk()?;
            let space = state::space();
            disk::mount(&mount.source, device, dev, read_only, space, None)?
        }
        kind::TMPFS => {
            let space = match mount.size()? {
                Some(bytes) => state::space().part(bytes.div_ceil(PAGE_SIZE)),
                None => state::space(),
            };
            let sup = Super::new(dev, TMPFS_MAGIC, space, 1);
            let root = Inode::new_directory(&sup, 0o1777).map_err(place)?;
            if read_only {
                sup.set_read_only();
            }
            root
        }
        other => {
            return Err(alloc::format!(
                "{}: kind {other} is not for it",
                mount.target
            ));
        }
    };
    super::mount(&dir, &name, &root).map_err(place)?;
    let how = if read_only { "ro" } else { "rw" };
    let source = if mount.kind == kind::TMPFS {
        "tmpfs"
    } else {
        &mount.source
    };
    let mut lines = LINES.borrow_mut();
    lines.push(Line {
        source: source.to_string(),
        target: mount.target.clone(),
        kind: mount.kind.clone(),
        options: alloc::format!("{how},noatime"),
        dev,
    });
    Ok(())
}

/// The directory and the name of a target, made (with all above it) where it is missing.
fn target(path: &[u8]) -> Result<(Rc<Inode>, Vec<u8>)> {
    const MODE: u32 = 0o755;
    if path.first() != Some(&b'/') {
        return Err(EINVAL);
    }
    let mut at = 0;
    loop {
        let end = path[at + 1..]
            .iter()
            .position(|b| *b == b'/')
            .map_or(path.len(), |n| at + 1 + n);
        let walked = path::walk(AT_FDCWD, &path[..end], true)?;
        let last = path[end..].iter().all(|b| *b == b'/');
        match &walked.target {
            Target::Missing => {
                tree::mkdir(&walked, MODE)?;
            }
            Target::Inode(inode) if inode.is_dir() => {}
            _ => return Err(ENOTDIR),
        }
        if last {
            let walked = path::walk(AT_FDCWD, &path[..end], true)?;
            if walked.is_special() {
                return Err(EINVAL);
            }
            // Through links: where the directory really is.
            let inode = walked.inode()?;
            let place = inode.place.borrow().clone();
            let (dir, name) = place.ok_or(EBUSY)?;
            return Ok((dir, name.into_vec()));
        }
        at = end;
    }
}
