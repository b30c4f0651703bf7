//! `/proc` and `/sys`: directories, files and links that are made when they are looked at. The texts are in `proc_text`.

use super::inode::{Inode, Kind, Listed, Meta, Super};
use super::path::{self, Jump};
use super::proc_text as text;
use super::state;
use crate::cell::Global;
use crate::errno::*;
use crate::{file, sched};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::ToString;
use alloc::vec::Vec;
use quorate_abi::image::{S_IFDIR, S_IFLNK, S_IFREG};

/// `f_type` of `/proc`.
pub const PROC_MAGIC: u64 = 0x9fa0;
/// `f_type` of `/sys`.
pub const SYSFS_MAGIC: u64 = 0x6265_6572;

/// An entry of a fixed directory.
#[derive(Clone, Copy)]
pub struct Entry(&'static str, Node);

/// What an entry is.
#[derive(Clone, Copy)]
enum Node {
    Dir(&'static [Entry]),
    File(fn() -> Vec<u8>),
    /// A file that only its owner may read.
    Private(fn() -> Vec<u8>),
    /// A file that shows addresses, with its permissions.
    Layout(fn() -> Vec<u8>, u32),
    Link(ProcLink),
    Fds,
    FdInfos,
    Tasks,
}

use Node::{Dir, FdInfos, Fds, File, Layout, Link, Private, Tasks};

/// The process's threads, for `task/`. (The scheduler installs it; until then there is the main thread.)
static THREADS: Global<fn() -> Vec<u32>> = Global::new(|| alloc::vec![sched::pid()]);

/// Installs the source of thread ids.
pub fn set_threads(list: fn() -> Vec<u32>) {
    *THREADS.borrow_mut() = list;
}

/// Thread ids of the process.
pub fn threads() -> Vec<u32> {
    let list = *THREADS.borrow();
    list()
}

/// The files of a process that are also those of each of its threads.
const COMMON: [Entry; 19] = [
    Entry("auxv", Layout(text::auxv, 0o400)),
    Entry("cgroup", File(text::cgroup)),
    Entry("cmdline", File(text::cmdline)),
    Entry("comm", File(text::comm)),
    Entry("cwd", Link(ProcLink::Cwd)),
    Entry("environ", Private(text::environ)),
    Entry("exe", Link(ProcLink::Exe)),
    Entry("fd", Fds),
    Entry("fdinfo", FdInfos),
    Entry("limits", File(text::limits)),
    Entry("maps", Layout(text::maps, 0o444)),
    Entry("mountinfo", File(text::mountinfo)),
    Entry("mounts", File(text::mounts)),
    Entry("oom_score", File(|| b"0\n".to_vec())),
    Entry("oom_score_adj", File(|| b"0\n".to_vec())),
    Entry("root", Link(ProcLink::Root)),
    Entry("stat", File(text::stat)),
    Entry("statm", File(text::statm)),
    Entry("status", File(text::status)),
];

static THREAD: [Entry; 19] = COMMON;

static PROCESS: [Entry; 20] = {
    let mut all = [Entry("task", Tasks); 20];
    let mut i = 0;
    while i < COMMON.len() {
        all[i] = COMMON[i];
        i += 1;
    }
    all
};

static ROOT: &[Entry] = &[
    Entry("cpuinfo", File(text::cpuinfo)),
    Entry("filesystems", File(text::filesystems)),
    Entry("loadavg", File(text::loadavg)),
    Entry("meminfo", File(text::meminfo)),
    Entry("mounts", Link(ProcLink::Fixed("self/mounts"))),
    Entry("self", Link(ProcLink::SelfProcess)),
    Entry("stat", File(text::system_stat)),
    Entry("sys", Dir(SYS)),
    Entry("thread-self", Link(ProcLink::SelfThread)),
    Entry("uptime", File(text::uptime)),
    Entry("version", File(text::version)),
];

static SYS: &[Entry] = &[
    Entry(
        "fs",
        Dir(&[
            Entry("file-max", File(|| b"9223372036854775807\n".to_vec())),
            Entry("nr_open", File(|| b"1048576\n".to_vec())),
            Entry("pipe-max-size", File(|| b"1048576\n".to_vec())),
        ]),
    ),
    Entry(
        "kernel",
        Dir(&[
            Entry("cap_last_cap", File(|| b"40\n".to_vec())),
            Entry("hostname", File(text::hostname)),
            Entry("ngroups_max", File(|| b"65536\n".to_vec())),
            Entry("osrelease", File(text::osrelease)),
            Entry("ostype", File(|| b"Linux\n".to_vec())),
            Entry("pid_max", File(|| b"32768\n".to_vec())),
            Entry(
                "random",
                Dir(&[
                    Entry("boot_id", File(text::boot_id)),
                    Entry("entropy_avail", File(|| b"256\n".to_vec())),
                    Entry("uuid", File(text::uuid)),
                ]),
            ),
            Entry("threads-max", File(|| b"32768\n".to_vec())),
            Entry("version", File(text::kernel_version)),
        ]),
    ),
    Entry(
        "net",
        Dir(&[
            Entry(
                "core",
                Dir(&[Entry("somaxconn", File(|| b"4096\n".to_vec()))]),
            ),
            Entry(
                "ipv4",
                Dir(&[Entry(
                    "ip_local_port_range",
                    File(|| b"32768\t60999\n".to_vec()),
                )]),
            ),
        ]),
    ),
    Entry(
        "vm",
        Dir(&[
            Entry("max_map_count", File(|| b"65530\n".to_vec())),
            Entry("overcommit_memory", File(|| b"1\n".to_vec())),
        ]),
    ),
];

/// What `/sys` shows.
pub static SYSFS: &[Entry] = &[
    Entry(
        "devices",
        Dir(&[Entry(
            "system",
            Dir(&[Entry(
                "cpu",
                Dir(&[
                    Entry("online", File(|| b"0\n".to_vec())),
                    Entry("possible", File(|| b"0\n".to_vec())),
                    Entry("present", File(|| b"0\n".to_vec())),
                ]),
            )]),
        )]),
    ),
    Entry(
        "kernel",
        Dir(&[Entry(
            "mm",
            Dir(&[Entry(
                "transparent_hugepage",
                Dir(&[
                    Entry("enabled", File(|| b"always madvise [never]\n".to_vec())),
                    Entry("hpage_pmd_size", File(|| b"2097152\n".to_vec())),
                ]),
            )]),
        )]),
    ),
];

/// A directory of `/proc` or `/sys`.
#[derive(Clone, Copy)]
pub enum ProcDir {
    /// With fixed entries.
    Fixed(&'static [Entry]),
    /// `/proc` itself: fixed entries and the process.
    Top,
    /// `task`.
    Tasks,
    /// `fd`.
    Fds,
    /// `fdinfo`.
    FdInfos,
}

/// A file, by what makes its text.
#[derive(Clone, Copy)]
pub enum ProcFile {
    /// Without an argument.
    Plain(fn() -> Vec<u8>),
    /// Shows addresses: not for the fingerprint (R8).
    Layout(fn() -> Vec<u8>),
    /// `fdinfo/N`.
    FdInfo(i32),
    /// `task/N/stat` and the like: by thread.
    Thread(fn(u32) -> Vec<u8>, u32),
}

/// A link.
#[derive(Clone, Copy)]
pub enum ProcLink {
    /// To a fixed path.
    Fixed(&'static str),
    /// `/proc/self`.
    SelfProcess,
    /// `/proc/thread-self`.
    SelfThread,
    /// The executable.
    Exe,
    /// The working directory.
    Cwd,
    /// The root directory.
    Root,
    /// An open descriptor.
    Fd(i32),
}

impl ProcFile {
    /// Whether the text differs between replicas.
    pub fn shows_layout(&self) -> bool {
        matches!(self, Self::Layout(_))
    }

    /// The file's text now.
    pub fn text(&self) -> Vec<u8> {
        match self {
            Self::Plain(make) | Self::Layout(make) => make(),
            Self::FdInfo(fd) => text::fdinfo(*fd),
            Self::Thread(make, thread) => make(*thread),
        }
    }
}

impl ProcLink {
    /// What `readlink` gives.
    ///
    /// # Errors
    /// `ENOENT` if the thing it shows is gone.
    pub fn text(&self) -> Result<Vec<u8>> {
        match self {
            Self::Fixed(path) => Ok(path.as_bytes().to_vec()),
            Self::SelfProcess => Ok(sched::pid().to_string().into_bytes()),
            Self::SelfThread => {
                Ok(format!("{}/task/{}", sched::pid(), sched::current()).into_bytes())
            }
            Self::Exe => Ok(state::program(|p| p.exe.clone())),
            Self::Cwd => state::cwd().path_below(&state::root()).ok_or(ENOENT),
            Self::Root => Ok(b"/".to_vec()),
            Self::Fd(fd) => {
                let file = file::get(*fd).map_err(|_| ENOENT)?.file.clone();
                let path = file.path();
                if path.is_empty() {
                    let stat = file.stat()?;
                    let kind = if super::is_socket(&*file) {
                        "socket"
                    } else {
                        "file"
                    };
                    return Ok(format!("{kind}:[{}]", stat.ino).into_bytes());
                }
                Ok(path)
            }
        }
    }

    /// Where the walk goes on.
    ///
    /// # Errors
    /// As [`Self::text`].
    pub fn jump(&self) -> Result<Jump> {
        match self {
            Self::Cwd => Ok(Jump::Inode(state::cwd())),
            Self::Root => Ok(Jump::Inode(state::root())),
            Self::Fd(fd) => {
                let open = file::get(*fd).map_err(|_| ENOENT)?;
                match path::inode_of(&open) {
                    Some(inode) if inode.is_dir() => Ok(Jump::Inode(inode)),
                    _ => Ok(Jump::File(open)),
                }
            }
            _ => Ok(Jump::Path(self.text()?)),
        }
    }
}

/// A number for an entry that is made anew at each look: the same each time.
fn number_of(parent: u64, name: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ parent;
    for byte in name {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    }
    // Programs of old keep inode numbers in 32 bits.
    hash >> 33 | 1 << 31
}

fn make(parent: &Rc<Inode>, name: &[u8], mode: u32, kind: Kind) -> Result<Rc<Inode>> {
    let mut meta = Meta::new(mode);
    if !matches!(parent.kind, Kind::ProcDir(ProcDir::Fds | ProcDir::FdInfos)) && mode & 0o004 != 0 {
        (meta.uid, meta.gid) = (0, 0);
    }
    let inode = Inode::new(&parent.sup, number_of(parent.ino, name), meta, kind)?;
    if inode.is_dir() {
        *inode.place.borrow_mut() = Some((parent.clone(), name.into()));
    }
    Ok(inode)
}

fn directory(parent: &Rc<Inode>, name: &[u8], dir: ProcDir) -> Result<Rc<Inode>> {
    make(parent, name, S_IFDIR | 0o555, Kind::ProcDir(dir))
}

/// The root of a file system of this kind.
///
/// # Errors
/// `ENOSPC`.
pub fn root(sup: &Rc<Super>, dir: ProcDir) -> Result<Rc<Inode>> {
    Inode::new(sup, 1, Meta::new(S_IFDIR | 0o555), Kind::ProcDir(dir))
}

fn number(name: &[u8]) -> Option<u32> {
    let text = core::str::from_utf8(name).ok()?;
    let canonical = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| canonical)
}

fn fixed(entries: &'static [Entry], parent: &Rc<Inode>, name: &[u8]) -> Result<Option<Rc<Inode>>> {
    let Some(entry) = entries.iter().find(|e| e.0.as_bytes() == name) else {
        return Ok(None);
    };
    let thread = thread_of(parent);
    let plain = |make: fn() -> Vec<u8>| match (thread, name) {
        (Some(thread), b"comm") => ProcFile::Thread(text::thread_comm, thread),
        (Some(thread), b"stat") => ProcFile::Thread(text::thread_stat, thread),
        (Some(thread), b"status") => ProcFile::Thread(text::thread_status, thread),
        _ => ProcFile::Plain(make),
    };
    match entry.1 {
        Dir(entries) => directory(parent, name, ProcDir::Fixed(entries)),
        Fds => directory(parent, name, ProcDir::Fds),
        FdInfos => directory(parent, name, ProcDir::FdInfos),
        Tasks => directory(parent, name, ProcDir::Tasks),
        File(text) => make(parent, name, S_IFREG | 0o444, Kind::ProcFile(plain(text))),
        Private(text) => make(parent, name, S_IFREG | 0o400, Kind::ProcFile(plain(text))),
        Layout(text, mode) => {
            let kind = Kind::ProcFile(ProcFile::Layout(text));
            make(parent, name, S_IFREG | mode, kind)
        }
        Link(link) => make(parent, name, S_IFLNK | 0o777, Kind::ProcLink(link)),
    }
    .map(Some)
}

/// The thread whose directory this is, if it is one of `task/`.
fn thread_of(dir: &Inode) -> Option<u32> {
    let place = dir.place.borrow();
    let (parent, name) = place.as_ref()?;
    match parent.kind {
        Kind::ProcDir(ProcDir::Tasks) => number(name),
        _ => None,
    }
}

impl ProcDir {
    /// The entry `name`; `this` is the directory's inode.
    ///
    /// # Errors
    /// `ENOSPC` at the bound on objects.
    pub fn lookup(&self, this: &Rc<Inode>, name: &[u8]) -> Result<Option<Rc<Inode>>> {
        match self {
            Self::Fixed(entries) => fixed(entries, this, name),
            Self::Top => match number(name) {
                Some(pid) if pid == sched::pid() || threads().contains(&pid) => {
                    directory(this, name, Self::Fixed(&PROCESS)).map(Some)
                }
                Some(_) => Ok(None),
                None => fixed(ROOT, this, name),
            },
            Self::Tasks => match number(name) {
                Some(thread) if threads().contains(&thread) => {
                    directory(this, name, Self::Fixed(&THREAD)).map(Some)
                }
                _ => Ok(None),
            },
            Self::Fds | Self::FdInfos => {
                let fd = number(name).and_then(|n| i32::try_from(n).ok());
                let Some((fd, open)) = fd.and_then(|fd| Some((fd, file::get(fd).ok()?))) else {
                    return Ok(None);
                };
                if matches!(self, Self::FdInfos) {
                    let kind = Kind::ProcFile(ProcFile::FdInfo(fd));
                    return make(this, name, S_IFREG | 0o400, kind).map(Some);
                }
                let read = if open.readable() { 0o500 } else { 0o100 };
                let write = if open.writable() { 0o300 } else { 0o100 };
                let kind = Kind::ProcLink(ProcLink::Fd(fd));
                make(this, name, S_IFLNK | read | write, kind).map(Some)
            }
        }
    }

    /// Entries at positions from `from` (at least 2) on, until `emit` returns false.
    ///
    /// # Errors
    /// None.
    pub fn list(
        &self,
        this: &Inode,
        from: u64,
        emit: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> Result<()> {
        let named =
            |name: &str, position: u64, mode: u32, emit: &mut dyn FnMut(Listed<'_>) -> bool| {
                let ino = number_of(this.ino, name.as_bytes());
                position < from || emit(Listed::new(position, name.as_bytes(), ino, mode))
            };
        let (entries, numbers): (&[Entry], Vec<u32>) = match self {
            Self::Fixed(entries) => (entries, Vec::new()),
            Self::Top => (ROOT, alloc::vec![sched::pid()]),
            Self::Tasks => (&[], threads()),
            Self::Fds | Self::FdInfos => {
                let fds = file::table().open_fds();
                (&[], fds.iter().map(|fd| *fd as u32).collect())
            }
        };
        let number_mode = match self {
            Self::Fds => S_IFLNK,
            Self::FdInfos => S_IFREG,
            _ => S_IFDIR,
        };
        for (i, entry) in entries.iter().enumerate() {
            let mode = match entry.1 {
                File(_) | Private(_) | Layout(..) => S_IFREG,
                Link(_) => S_IFLNK,
                _ => S_IFDIR,
            };
            if !named(entry.0, 2 + i as u64, mode, emit) {
                return Ok(());
            }
        }
        // By number, so that a listing during which descriptors close skips none.
        for n in numbers {
            if !named(
                &n.to_string(),
                2 + entries.len() as u64 + u64::from(n),
                number_mode,
                emit,
            ) {
                return Ok(());
            }
        }
        Ok(())
    }
}
