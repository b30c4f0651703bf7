//! `/proc` and `/sys`: directories, files and links that are made when they are looked at. The texts are in `proc_text`.

use super::inode::{Inode, Kind, Listed, Meta, Super};
use super::path::{self, Jump};
use super::proc_text as text;
use super::state;
use crate::errno::*;
use crate::file::OpenFile;
use crate::process::{self, ProcessRef};
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

/// What an entry is. Texts of a process or thread are made from its id.
#[derive(Clone, Copy)]
enum Node {
    Dir(&'static [Entry]),
    File(fn() -> Vec<u8>),
    /// A file of a process or thread, with its permissions.
    Of(fn(u32) -> Vec<u8>, u32),
    /// The same, where the file shows addresses.
    Layout(fn(u32) -> Vec<u8>, u32),
    Link(ProcLink),
    Fds,
    FdInfos,
    Tasks,
}

use Node::{Dir, FdInfos, Fds, File, Layout, Link, Of, Tasks};

/// The process with this id, or with a thread of this id.
pub fn process_of(id: u32) -> Option<ProcessRef> {
    process::find(id).or_else(|| sched::process_of(id))
}

/// The files of a process that are also those of each of its threads. (The ids in links are filled in when one is looked up.)
const COMMON: [Entry; 19] = [
    Entry("auxv", Layout(text::auxv, 0o400)),
    Entry("cgroup", Of(text::cgroup, 0o444)),
    Entry("cmdline", Of(text::cmdline, 0o444)),
    Entry("comm", Of(text::comm, 0o444)),
    Entry("cwd", Link(ProcLink::Cwd(0))),
    Entry("environ", Of(text::environ, 0o400)),
    Entry("exe", Link(ProcLink::Exe(0))),
    Entry("fd", Fds),
    Entry("fdinfo", FdInfos),
    Entry("limits", Of(text::limits, 0o444)),
    Entry("maps", Layout(text::maps, 0o444)),
    Entry("mountinfo", Of(|_| text::mountinfo(), 0o444)),
    Entry("mounts", Of(|_| text::mounts(), 0o444)),
    Entry("oom_score", Of(|_| b"0\n".to_vec(), 0o444)),
    Entry("oom_score_adj", Of(|_| b"0\n".to_vec(), 0o444)),
    Entry("root", Link(ProcLink::Root(0))),
    Entry("stat", Of(text::stat, 0o444)),
    Entry("statm", Of(text::statm, 0o444)),
    Entry("status", Of(text::status, 0o444)),
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
    /// That of a process or thread.
    Of(&'static [Entry], u32),
    /// `/proc` itself: fixed entries and the processes.
    Top,
    /// `task` of a process.
    Tasks(u32),
    /// `fd`.
    Fds(u32),
    /// `fdinfo`.
    FdInfos(u32),
}

/// A file, by what makes its text.
#[derive(Clone, Copy)]
pub enum ProcFile {
    /// Without an argument.
    Plain(fn() -> Vec<u8>),
    /// Of a process or thread.
    Of(fn(u32) -> Vec<u8>, u32),
    /// Shows addresses: not for the fingerprint (R8).
    Layout(fn(u32) -> Vec<u8>, u32),
    /// `fdinfo/N`.
    FdInfo(u32, i32),
}

/// A link. Those of a process have its id.
#[derive(Clone, Copy)]
pub enum ProcLink {
    /// To a fixed path.
    Fixed(&'static str),
    /// `/proc/self`.
    SelfProcess,
    /// `/proc/thread-self`.
    SelfThread,
    /// The executable.
    Exe(u32),
    /// The working directory.
    Cwd(u32),
    /// The root directory.
    Root(u32),
    /// An open descriptor.
    Fd(u32, i32),
}

impl ProcFile {
    /// Whether the text differs between replicas.
    pub fn shows_layout(&self) -> bool {
        matches!(self, Self::Layout(..))
    }

    /// The file's text now; empty for a process that is gone.
    pub fn text(&self) -> Vec<u8> {
        match self {
            Self::Plain(make) => make(),
            Self::Of(make, id) | Self::Layout(make, id) => make(*id),
            Self::FdInfo(id, fd) => text::fdinfo(*id, *fd),
        }
    }
}

fn open_file(id: u32, fd: i32) -> Result<Rc<OpenFile>> {
    process_of(id)
        .and_then(|p| file::get_of(p, fd).ok())
        .ok_or(ENOENT)
}

impl ProcLink {
    /// The link of the process with this id.
    fn of(self, id: u32) -> Self {
        match self {
            Self::Exe(_) => Self::Exe(id),
            Self::Cwd(_) => Self::Cwd(id),
            Self::Root(_) => Self::Root(id),
            other => other,
        }
    }

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
            Self::Exe(id) => {
                let exe = process_of(*id).map(|p| p.program.borrow().exe.clone());
                exe.filter(|path| !path.is_empty()).ok_or(ENOENT)
            }
            Self::Cwd(id) => {
                let cwd = process_of(*id).and_then(state::cwd_of).ok_or(ENOENT)?;
                cwd.path_below(&state::root()).ok_or(ENOENT)
            }
            Self::Root(_) => Ok(b"/".to_vec()),
            Self::Fd(id, fd) => {
                let file = open_file(*id, *fd)?.file.clone();
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
        let inode = |found: Option<Rc<Inode>>| found.map(Jump::Inode).ok_or(ENOENT);
        match self {
            Self::Cwd(id) => inode(process_of(*id).and_then(state::cwd_of)),
            Self::Root(id) => inode(process_of(*id).and_then(state::root_of)),
            Self::Fd(id, fd) => {
                let open = open_file(*id, *fd)?;
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

/// The process or thread whose directory this is, or that it belongs to.
fn subject(dir: &Inode) -> Option<u32> {
    match dir.kind {
        Kind::ProcDir(
            ProcDir::Of(_, id) | ProcDir::Tasks(id) | ProcDir::Fds(id) | ProcDir::FdInfos(id),
        ) => Some(id),
        _ => None,
    }
}

fn make(parent: &Rc<Inode>, name: &[u8], mode: u32, kind: Kind) -> Result<Rc<Inode>> {
    let mut meta = Meta::new(mode);
    let id = match kind {
        Kind::ProcDir(ProcDir::Of(_, id)) => Some(id),
        _ => subject(parent),
    };
    let owner = id.and_then(process_of).map(|p| {
        let ids = p.ids.borrow();
        (ids.uid, ids.gid)
    });
    (meta.uid, meta.gid) = owner.unwrap_or((0, 0));
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
    let id = subject(parent).unwrap_or_default();
    let file = |mode: u32, file| make(parent, name, S_IFREG | mode, Kind::ProcFile(file));
    match entry.1 {
        Dir(entries) => directory(parent, name, ProcDir::Fixed(entries)),
        Fds => directory(parent, name, ProcDir::Fds(id)),
        FdInfos => directory(parent, name, ProcDir::FdInfos(id)),
        Tasks => directory(parent, name, ProcDir::Tasks(id)),
        File(text) => file(0o444, ProcFile::Plain(text)),
        Of(text, mode) => file(mode, ProcFile::Of(text, id)),
        Layout(text, mode) => file(mode, ProcFile::Layout(text, id)),
        Link(link) => make(parent, name, S_IFLNK | 0o777, Kind::ProcLink(link.of(id))),
    }
    .map(Some)
}

/// Threads of a process; its first one, too, if that has ended before the others.
fn threads_of(pid: u32) -> Vec<u32> {
    let Some(process) = process_of(pid) else {
        return Vec::new();
    };
    let mut threads = process.thread_ids();
    if !threads.contains(&process.pid.get()) {
        threads.insert(0, process.pid.get());
    }
    threads
}

impl ProcDir {
    /// The entry `name`; `this` is the directory's inode.
    ///
    /// # Errors
    /// `ENOSPC` at the bound on objects.
    pub fn lookup(&self, this: &Rc<Inode>, name: &[u8]) -> Result<Option<Rc<Inode>>> {
        match self {
            Self::Fixed(entries) | Self::Of(entries, _) => fixed(entries, this, name),
            Self::Top => match number(name) {
                Some(id) if process_of(id).is_some() => {
                    directory(this, name, Self::Of(&PROCESS, id)).map(Some)
                }
                Some(_) => Ok(None),
                None => fixed(ROOT, this, name),
            },
            Self::Tasks(pid) => match number(name) {
                Some(thread) if threads_of(*pid).contains(&thread) => {
                    directory(this, name, Self::Of(&THREAD, thread)).map(Some)
                }
                _ => Ok(None),
            },
            Self::Fds(id) | Self::FdInfos(id) => {
                let fd = number(name).and_then(|n| i32::try_from(n).ok());
                let Some((fd, open)) = fd.and_then(|fd| Some((fd, open_file(*id, fd).ok()?)))
                else {
                    return Ok(None);
                };
                if matches!(self, Self::FdInfos(_)) {
                    let kind = Kind::ProcFile(ProcFile::FdInfo(*id, fd));
                    return make(this, name, S_IFREG | 0o400, kind).map(Some);
                }
                let read = if open.readable() { 0o500 } else { 0o100 };
                let write = if open.writable() { 0o300 } else { 0o100 };
                let kind = Kind::ProcLink(ProcLink::Fd(*id, fd));
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
            Self::Fixed(entries) | Self::Of(entries, _) => (entries, Vec::new()),
            Self::Top => (
                ROOT,
                process::all().into_iter().map(|p| p.pid.get()).collect(),
            ),
            Self::Tasks(pid) => (&[], threads_of(*pid)),
            Self::Fds(id) | Self::FdInfos(id) => {
                let fds = process_of(*id).map(|p| p.files.borrow().open_fds());
                let fds = fds.unwrap_or_default();
                (&[], fds.iter().map(|fd| *fd as u32).collect())
            }
        };
        let number_mode = match self {
            Self::Fds(_) => S_IFLNK,
            Self::FdInfos(_) => S_IFREG,
            _ => S_IFDIR,
        };
        for (i, entry) in entries.iter().enumerate() {
            let mode = match entry.1 {
                File(_) | Of(..) | Layout(..) => S_IFREG,
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
