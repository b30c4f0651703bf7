//! The devices in `/dev`, by device number.

use super::disk::raw;
use super::inode::{Inode, Kind, Meta, Super};
use super::{mounts, random};
use crate::cell::Global;
use crate::errno::*;
use crate::file::MapPage;
use crate::mm::Page;
use alloc::rc::Rc;
use quorate_abi::image::{S_IFBLK, S_IFCHR, S_IFLNK, S_IFMT};
use quorate_abi::map::MAX_DISKS;
use quorate_abi::mount::DISK;

const fn device(major: u64, minor: u64) -> u64 {
    major << 8 | minor
}

const NULL: u64 = device(1, 3);
const ZERO: u64 = device(1, 5);
const FULL: u64 = device(1, 7);
const RANDOM: u64 = device(1, 8);
const URANDOM: u64 = device(1, 9);
const TTY: u64 = device(5, 0);
const CONSOLE: u64 = device(5, 1);

/// Takes the bytes of one write.
type Sink = fn(&[u8]);

static CONSOLE_SINK: Global<Option<Sink>> = Global::new(None);

/// Where bytes written to the console go.
pub fn set_console(sink: Sink) {
    *CONSOLE_SINK.borrow_mut() = Some(sink);
}

/// Whether the device exists and can be opened.
///
/// # Errors
/// `ENXIO`: there is none with this number, or (`/dev/tty`) the process has no controlling terminal.
pub fn check(meta: Meta) -> Result<()> {
    let known = matches!(meta.rdev, NULL | ZERO | FULL | RANDOM | URANDOM | CONSOLE);
    if known && meta.mode & S_IFMT == S_IFCHR {
        Ok(())
    } else {
        Err(ENXIO)
    }
}

/// Reads from a device.
///
/// # Errors
/// `EIO` if it is gone or randomness has no source yet.
pub fn read(device: u64, buf: &mut [u8]) -> Result<usize> {
    match device {
        // Nobody types: the console is always at its end.
        NULL | CONSOLE => Ok(0),
        ZERO | FULL => {
            buf.fill(0);
            Ok(buf.len())
        }
        RANDOM | URANDOM => {
            random::fill(buf)?;
            Ok(buf.len())
        }
        _ => Err(EIO),
    }
}

/// Writes to a device.
///
/// # Errors
/// `ENOSPC` for `/dev/full`, `EIO` if it is gone.
pub fn write(device: u64, buf: &[u8]) -> Result<usize> {
    match device {
        NULL | ZERO => Ok(buf.len()),
        // The pool needs nothing from programs: all randomness is the input seed's (R1). Linux takes the bytes, too.
        RANDOM | URANDOM => Ok(buf.len()),
        FULL => Err(ENOSPC),
        CONSOLE => {
            let sink = *CONSOLE_SINK.borrow();
            sink.ok_or(EIO)?(buf);
            Ok(buf.len())
        }
        _ => Err(EIO),
    }
}

/// Whether it has positions (which it ignores).
pub fn seekable(device: u64) -> bool {
    device != CONSOLE
}

/// Whether it can be in an epoll set.
pub fn can_poll(device: u64) -> bool {
    matches!(device, CONSOLE | RANDOM)
}

/// A page for a mapping: `/dev/zero` gives a fresh one each time.
///
/// # Errors
/// `ENODEV`, `ENOMEM`.
pub fn map_page(device: u64) -> Result<MapPage> {
    if device == ZERO {
        Ok(MapPage::Shared(Rc::new(Page::new_zeroed()?)))
    } else {
        Err(ENODEV)
    }
}

/// Fills the file system of `/dev`.
///
/// # Errors
/// `ENOSPC`.
pub fn populate(root: &Rc<Inode>, sup: &Rc<Super>) -> Result<()> {
    let directory = root.directory()?;
    let devices: [(&[u8], u64, u32); 7] = [
        (b"null", NULL, 0o666),
        (b"zero", ZERO, 0o666),
        (b"full", FULL, 0o666),
        (b"random", RANDOM, 0o666),
        (b"urandom", URANDOM, 0o666),
        (b"tty", TTY, 0o666),
        (b"console", CONSOLE, 0o600),
    ];
    for (name, rdev, mode) in devices {
        let mut meta = Meta::new(S_IFCHR | mode);
        meta.rdev = rdev;
        let inode = Inode::new(sup, sup.next_ino(), meta, Kind::Device)?;
        directory.insert(root, name, &inode)?;
    }
    for number in (0..MAX_DISKS).filter(|n| mounts::device(*n as usize).is_some()) {
        let mut meta = Meta::new(S_IFBLK | 0o660);
        meta.rdev = device(raw::MAJOR, number);
        let name = alloc::format!("{DISK}{number}");
        let inode = Inode::new(sup, sup.next_ino(), meta, Kind::Device)?;
        directory.insert(root, name.as_bytes(), &inode)?;
    }
    let links: [(&[u8], &[u8]); 4] = [
        (b"fd", b"/proc/self/fd"),
        (b"stdin", b"/proc/self/fd/0"),
        (b"stdout", b"/proc/self/fd/1"),
        (b"stderr", b"/proc/self/fd/2"),
    ];
    for (name, target) in links {
        let meta = Meta::new(S_IFLNK | 0o777);
        let inode = Inode::new(sup, sup.next_ino(), meta, Kind::Symlink(target.into()))?;
        directory.insert(root, name, &inode)?;
    }
    Ok(())
}
