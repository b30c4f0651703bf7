//! Texts of `/proc`. All of them are the same in every replica (R8): sizes, never addresses; the exceptions are `maps`
//! and `auxv`, which hold the addresses that a program asks for when it reads them.

use super::proc::process_of;
use super::{mounts, state};
use crate::cell::Global;
use crate::process::{self, Life, Process};
use crate::{file, mm, sched, time};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write as _;

/// `uname -r`: the kernel whose interfaces are offered.
pub const OS_RELEASE: &str = "6.1.0-quorate";
/// `uname -v`.
pub const OS_VERSION: &str = "#1 SMP Quorate";
/// `uname -n` until somebody changes it.
pub const HOSTNAME: &str = "quorate";

const PAGE: u64 = quorate_abi::PAGE_SIZE;
/// Ticks per second of times in `/proc`.
const HZ: u64 = 100;

static HOST: Global<Option<Vec<u8>>> = Global::new(None);

/// Changes what `hostname` says (`sethostname`).
pub fn set_hostname(name: &[u8]) {
    *HOST.borrow_mut() = Some(name.to_vec());
}

/// Name of the machine.
pub fn host() -> Vec<u8> {
    HOST.borrow()
        .clone()
        .unwrap_or_else(|| HOSTNAME.as_bytes().to_vec())
}

fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.extend_from_slice(part);
        out.push(0);
    }
    out
}

/// Name of a thread, at most 15 bytes: what `prctl(PR_SET_NAME)` set, or the program's.
pub fn name(thread: u32) -> Vec<u8> {
    let set = sched::with_thread(thread, |t| t.name).unwrap_or_default();
    let mut name = set.to_vec();
    if set[0] == 0 {
        let exe = process_of(thread).map(|p| p.program.borrow().exe.clone());
        let exe = exe.unwrap_or_default();
        name = exe
            .rsplit(|b| *b == b'/')
            .next()
            .unwrap_or_default()
            .to_vec();
    }
    let len = name
        .iter()
        .position(|b| *b == 0)
        .unwrap_or(name.len())
        .min(15);
    name.truncate(len);
    name
}

/// Something of a process that has not ended, by the id of it or one of its threads; empty otherwise.
fn of(id: u32, make: impl FnOnce(&Process) -> Vec<u8>) -> Vec<u8> {
    process_of(id)
        .filter(|p| p.life.get() != Life::Zombie)
        .map_or(Vec::new(), make)
}

pub fn auxv(id: u32) -> Vec<u8> {
    of(id, |p| p.program.borrow().auxv.clone())
}

pub fn cmdline(id: u32) -> Vec<u8> {
    of(id, |p| joined(&p.program.borrow().argv))
}

pub fn environ(id: u32) -> Vec<u8> {
    of(id, |p| joined(&p.program.borrow().envp))
}

/// `comm`.
pub fn comm(id: u32) -> Vec<u8> {
    let mut name = name(id);
    name.push(b'\n');
    name
}

pub fn cgroup(_: u32) -> Vec<u8> {
    b"0::/\n".to_vec()
}

pub fn maps(id: u32) -> Vec<u8> {
    of(id, |p| {
        p.space()
            .map_or(Vec::new(), |s| mm::maps_text(s).into_bytes())
    })
}

fn size_of(process: &Process) -> (u64, u64) {
    match process.space() {
        Some(space) if process.life.get() != Life::Zombie => mm::size_of(space),
        _ => (0, 0),
    }
}

/// State as `ps` shows it: the caller runs, others sleep (there is one processor).
fn state_of(id: u32, process: &Process) -> (char, &'static str) {
    if process.life.get() == Life::Zombie {
        ('Z', "zombie")
    } else if core::ptr::eq(process, process::current()) || sched::is_runnable(id) {
        ('R', "running")
    } else {
        ('S', "sleeping")
    }
}

/// `stat`: fields as in `proc(5)`; what would be an address is 0.
pub fn stat(id: u32) -> Vec<u8> {
    let Some(process) = process_of(id) else {
        return Vec::new();
    };
    let (size, resident) = size_of(process);
    let mut out = format!("{id} (").into_bytes();
    out.extend_from_slice(&name(id));
    // state ppid pgrp session tty tpgid flags minflt cminflt majflt cmajflt utime stime cutime cstime priority nice
    // num_threads itrealvalue starttime vsize rss rsslim, and 27 more
    let head = format!(
        ") {} {} {} {} 0 -1 4194304 0 0 0 0 {} 0 {} 0 {} {} {} 0 0 {size} {} 18446744073709551615",
        state_of(id, process).0,
        process.parent.get(),
        process.group.get(),
        process.session.get(),
        process.cpu_ns.get() / (1_000_000_000 / HZ),
        process.children_cpu_ns.get() / (1_000_000_000 / HZ),
        20 + process.nice.get(),
        process.nice.get(),
        process.threads.borrow().len(),
        resident / PAGE,
    );
    out.extend_from_slice(head.as_bytes());
    let zeros = " 0".repeat(12);
    out.extend_from_slice(zeros.as_bytes());
    out.extend_from_slice(b" 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n");
    out
}

pub fn statm(id: u32) -> Vec<u8> {
    let (size, resident) = process_of(id).map_or((0, 0), size_of);
    format!(
        "{} {} 0 0 0 {} 0\n",
        size / PAGE,
        resident / PAGE,
        resident / PAGE
    )
    .into_bytes()
}

/// `status`.
pub fn status(id: u32) -> Vec<u8> {
    let Some(process) = process_of(id) else {
        return Vec::new();
    };
    let (size, resident) = size_of(process);
    let ids = process.ids.borrow();
    let (uid, gid) = (ids.uid, ids.gid);
    let capabilities: u64 = if uid == 0 { (1 << 41) - 1 } else { 0 };
    let name = String::from_utf8_lossy(&name(id)).into_owned();
    let (letter, word) = state_of(id, process);
    let mut out = format!(
        "Name:\t{name}\nUmask:\t{:04o}\nState:\t{letter} ({word})\nTgid:\t{}\nNgid:\t0\nPid:\t{id}\nPPid:\t{}\nTracerPid:\t0\n",
        state::umask_of(process),
        process.pid.get(),
        process.parent.get(),
    );
    let _ = write!(
        out,
        "Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}\nFDSize:\t{}\nGroups:\t",
        process
            .files
            .borrow()
            .open_fds()
            .len()
            .next_power_of_two()
            .max(64),
    );
    for group in &ids.groups {
        let _ = write!(out, "{group} ");
    }
    out.push('\n');
    let (size, resident) = (size / 1024, resident / 1024);
    for (label, value) in [
        ("VmPeak", size),
        ("VmSize", size),
        ("VmLck", 0),
        ("VmPin", 0),
        ("VmHWM", resident),
        ("VmRSS", resident),
        ("RssAnon", resident),
        ("RssFile", 0),
        ("RssShmem", 0),
        ("VmSwap", 0),
    ] {
        let _ = writeln!(out, "{label}:\t{value:8} kB");
    }
    let threads = process.threads.borrow().len().max(1);
    let _ = writeln!(out, "Threads:\t{threads}");
    for label in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let value = if matches!(label, "CapInh" | "CapAmb") {
            0
        } else {
            capabilities
        };
        let _ = writeln!(out, "{label}:\t{value:016x}");
    }
    out.push_str("NoNewPrivs:\t0\nSeccomp:\t0\nCpus_allowed:\t1\nCpus_allowed_list:\t0\nMems_allowed:\t1\nMems_allowed_list:\t0\nvoluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n");
    out.into_bytes()
}

pub fn limits(id: u32) -> Vec<u8> {
    let files = process_of(id).map_or(0, |p| p.files.borrow().limit);
    let files = files.to_string();
    let mut out = format!(
        "{:<25} {:<20} {:<20} {:<10}\n",
        "Limit", "Soft Limit", "Hard Limit", "Units"
    );
    let none = "unlimited";
    for (name, soft, hard, unit) in [
        ("Max cpu time", none, none, "seconds"),
        ("Max file size", none, none, "bytes"),
        ("Max data size", none, none, "bytes"),
        ("Max stack size", "8388608", none, "bytes"),
        ("Max core file size", "0", none, "bytes"),
        ("Max resident set", none, none, "bytes"),
        ("Max processes", none, none, "processes"),
        ("Max open files", files.as_str(), "1048576", "files"),
        ("Max locked memory", none, none, "bytes"),
        ("Max address space", none, none, "bytes"),
        ("Max file locks", none, none, "locks"),
        ("Max pending signals", "4096", "4096", "signals"),
        ("Max msgqueue size", "819200", "819200", "bytes"),
        ("Max nice priority", "0", "0", ""),
        ("Max realtime priority", "0", "0", ""),
        ("Max realtime timeout", none, none, "us"),
    ] {
        let _ = writeln!(out, "{name:<25} {soft:<20} {hard:<20} {unit:<10}");
    }
    out.into_bytes()
}

/// (source, mount point, type, options) of what is mounted.
pub fn mounts() -> Vec<u8> {
    let mut out = String::new();
    for line in mounts::lines() {
        let mounts::Line {
            source,
            target,
            kind,
            options,
            ..
        } = line;
        let _ = writeln!(out, "{source} {target} {kind} {options} 0 0");
    }
    out.into_bytes()
}

pub fn mountinfo() -> Vec<u8> {
    const FIRST_ID: usize = 21;
    let lines = mounts::lines();
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        let below = |other: &mounts::Line| {
            let rest = line.target.strip_prefix(&*other.target);
            rest.is_some_and(|r| other.target == "/" || r.starts_with('/'))
        };
        let parent = match &*line.target {
            "/" => 0,
            _ => FIRST_ID + lines[..i].iter().rposition(below).unwrap_or(0),
        };
        let mounts::Line {
            source,
            target,
            kind,
            options,
            dev,
        } = line;
        let _ = writeln!(
            out,
            "{} {parent} 0:{dev} / {target} {options} - {kind} {source} {options}",
            FIRST_ID + i
        );
    }
    out.into_bytes()
}

pub fn filesystems() -> Vec<u8> {
    b"nodev\tsysfs\nnodev\ttmpfs\nnodev\tproc\nnodev\tdevtmpfs\nnodev\toverlay\n\text4\n".to_vec()
}

pub fn meminfo() -> Vec<u8> {
    let (total, free) = mm::memory_info();
    let (_, files) = state::space().page_counts();
    let cached = super::disk::cache::pages() * PAGE;
    let mut out = String::new();
    for (label, bytes) in [
        ("MemTotal:", total),
        ("MemFree:", free),
        ("MemAvailable:", free + cached),
        ("Buffers:", 0),
        ("Cached:", files * PAGE + cached),
        ("SwapCached:", 0),
        ("Active:", total - free.min(total)),
        ("Inactive:", 0),
        ("SwapTotal:", 0),
        ("SwapFree:", 0),
        ("Dirty:", 0),
        ("Writeback:", 0),
        ("Mapped:", 0),
        ("Shmem:", files * PAGE),
        ("Slab:", 0),
        ("CommitLimit:", total),
        ("Committed_AS:", total - free.min(total)),
    ] {
        let _ = writeln!(out, "{label:<16}{:>8} kB", bytes / 1024);
    }
    out.push_str(
        "HugePages_Total:       0\nHugePages_Free:        0\nHugepagesize:       2048 kB\n",
    );
    out.into_bytes()
}

pub fn cpuinfo() -> Vec<u8> {
    // What every x86-64 processor has; replicas may be offered different features beyond that.
    b"processor\t: 0\nvendor_id\t: Quorate\ncpu family\t: 6\nmodel\t\t: 0\nmodel name\t: Quorate virtual CPU\nstepping\t: 0\n\
cpu MHz\t\t: 1000.000\ncache size\t: 1024 KB\nphysical id\t: 0\nsiblings\t: 1\ncore id\t\t: 0\ncpu cores\t: 1\napicid\t\t: 0\n\
fpu\t\t: yes\nfpu_exception\t: yes\ncpuid level\t: 1\nwp\t\t: yes\n\
flags\t\t: fpu tsc msr cx8 cmov mmx fxsr sse sse2 syscall nx lm\nbogomips\t: 2000.00\nclflush size\t: 64\n\
cache_alignment\t: 64\naddress sizes\t: 40 bits physical, 48 bits virtual\n\n"
        .to_vec()
}

pub fn loadavg() -> Vec<u8> {
    let last = process::all().last().map_or(0, |p| p.pid.get());
    format!("0.00 0.00 0.00 1/{} {last}\n", sched::thread_count()).into_bytes()
}

pub fn system_stat() -> Vec<u8> {
    let ticks = time::now_ns() / (1_000_000_000 / HZ);
    let boot = (time::realtime_ns() - time::now_ns().min(time::realtime_ns())) / 1_000_000_000;
    format!(
        "cpu  {ticks} 0 0 0 0 0 0 0 0 0\ncpu0 {ticks} 0 0 0 0 0 0 0 0 0\nintr 0\nctxt 0\nbtime {boot}\nprocesses {}\nprocs_running 1\nprocs_blocked 0\n",
        process::counts().1,
    )
    .into_bytes()
}

pub fn uptime() -> Vec<u8> {
    let hundredths = time::now_ns() / 10_000_000;
    format!("{}.{:02} 0.00\n", hundredths / 100, hundredths % 100).into_bytes()
}

pub fn version() -> Vec<u8> {
    format!("Linux version {OS_RELEASE} (quorate@quorate) (rustc) {OS_VERSION}\n").into_bytes()
}

pub fn hostname() -> Vec<u8> {
    let mut name = host();
    name.push(b'\n');
    name
}

pub fn osrelease() -> Vec<u8> {
    format!("{OS_RELEASE}\n").into_bytes()
}

pub fn kernel_version() -> Vec<u8> {
    format!("{OS_VERSION}\n").into_bytes()
}

fn random_uuid() -> Vec<u8> {
    let mut bytes = [0; 16];
    if super::random::fill(&mut bytes).is_err() {
        return Vec::new();
    }
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut out = String::new();
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        let _ = write!(out, "{byte:02x}");
    }
    out.push('\n');
    out.into_bytes()
}

pub fn uuid() -> Vec<u8> {
    random_uuid()
}

static BOOT_ID: Global<Vec<u8>> = Global::new(Vec::new());

pub fn boot_id() -> Vec<u8> {
    if BOOT_ID.borrow().is_empty() {
        let id = random_uuid();
        *BOOT_ID.borrow_mut() = id;
    }
    BOOT_ID.borrow().clone()
}

/// `fdinfo/N`.
pub fn fdinfo(id: u32, fd: i32) -> Vec<u8> {
    let Some((process, open)) = process_of(id).and_then(|p| Some((p, file::get_of(p, fd).ok()?)))
    else {
        return Vec::new();
    };
    let cloexec = process.files.borrow_mut().cloexec(fd).map(|c| *c);
    let cloexec = cloexec.unwrap_or_default();
    let flags = open.flags.get() | if cloexec { file::flags::O_CLOEXEC } else { 0 };
    let ino = open.file.stat().map_or(0, |s| s.ino);
    format!(
        "pos:\t{}\nflags:\t0{flags:o}\nmnt_id:\t21\nino:\t{ino}\n",
        open.position.get()
    )
    .into_bytes()
}
