//! Who and where a program is: ids, limits, priorities, processor affinity, names and sizes of the system.

use crate::errno::*;
use crate::process::{self, ProcessRef};
use crate::user::{self, Plain};
use crate::{mm, sched, time};

const NOFILE: usize = 7;
const STACK: usize = 3;
const LIMITS: usize = 16;
const INFINITY: u64 = u64::MAX;
/// Hard limit of RLIMIT_NOFILE.
const NOFILE_MAX: u64 = 1 << 20;
/// Most supplementary groups.
const GROUPS_MAX: u64 = 64;

/// Resource limits of a process: (soft, hard) by number.
#[derive(Clone)]
pub struct Limits([(u64, u64); LIMITS]);

impl Limits {
    /// What the first process has.
    pub const fn new() -> Self {
        let mut limits = [(INFINITY, INFINITY); LIMITS];
        limits[STACK] = (crate::exec::STACK_SIZE, INFINITY);
        limits[4] = (0, INFINITY);
        limits[6] = (4096, 4096);
        limits[NOFILE] = (1024, NOFILE_MAX);
        limits[8] = (INFINITY, INFINITY);
        limits[13] = (0, 0);
        limits[14] = (0, 0);
        Self(limits)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new()
    }
}

/// `struct new_utsname`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UtsName([[u8; 65]; 6]);
// SAFETY: bytes.
unsafe impl Plain for UtsName {}

/// `struct sysinfo`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct SysInfo {
    uptime: i64,
    loads: [u64; 3],
    total_ram: u64,
    free_ram: u64,
    shared_ram: u64,
    buffer_ram: u64,
    total_swap: u64,
    free_swap: u64,
    procs: u16,
    pad: [u16; 3],
    total_high: u64,
    free_high: u64,
    mem_unit: u32,
    tail: u32,
}
// SAFETY: repr(C), integers only.
unsafe impl Plain for SysInfo {}

/// Release that `uname` reports: programs check for features that exist since then.
pub const RELEASE: &[u8] = b"6.1.0-quorate";

/// Serves the calls of this module; None if the number is not one of them.
pub fn dispatch(number: u64, a: [u64; 6]) -> Option<SysResult> {
    let (uid, gid) = sched::credentials();
    Some(match number {
        39 => Ok(u64::from(sched::pid())),
        186 => Ok(u64::from(sched::current())),
        // getppid: 0 for the first, which the kernel started
        110 => Ok(u64::from(process::current().parent.get())),
        102 | 107 => Ok(u64::from(uid)),
        104 | 108 => Ok(u64::from(gid)),
        105 => set_ids(&[a[0]], true),
        106 => set_ids(&[a[0]], false),
        113 => set_ids(&a[..2], true),
        114 => set_ids(&a[..2], false),
        117 => set_ids(&a[..3], true),
        119 => set_ids(&a[..3], false),
        118 => write_three(a, uid),
        120 => write_three(a, gid),
        // setfsuid, setfsgid return the id before
        122 => Ok(u64::from(uid)),
        123 => Ok(u64::from(gid)),
        115 => getgroups(a[0], a[1]),
        116 => setgroups(a[0], a[1]),
        111 => Ok(u64::from(process::current().group.get())),
        121 => by_id(a[0]).map(|p| u64::from(p.group.get())),
        124 => by_id(a[0]).map(|p| u64::from(p.session.get())),
        112 => setsid(),
        109 => setpgid(a[0], a[1]),
        63 => uname(a[0]),
        99 => sysinfo(a[0]),
        170 => set_host(a[0], a[1]),
        97 => prlimit(0, a[0], 0, a[1]),
        160 => prlimit(0, a[0], a[1], 0),
        302 => prlimit(a[0], a[1], a[2], a[3]),
        140 => priority(a).map(|p| (20 - p.nice.get()) as u64),
        141 => priority(a).map(|p| {
            p.nice.set((a[2] as i32).clamp(-20, 19));
            0
        }),
        // sched_setparam, getparam, setscheduler, getscheduler, priority bounds: SCHED_OTHER only
        142 | 144 => scheduler(a, number == 144),
        143 => user::write(a[1], 0i32).map(|()| 0),
        145 => Ok(0),
        146 | 147 if a[0] == 1 || a[0] == 2 => Ok(if number == 146 { 99 } else { 1 }),
        146 | 147 => Ok(0),
        203 => affinity_set(a[1], a[2]),
        204 => affinity_get(a[1], a[2]),
        309 => getcpu(a[0], a[1]),
        // capget: none are needed, all are there for root
        125 => capget(a[0], a[1], uid),
        // capset: capabilities follow the user id here, and cannot be given up one by one
        126 => Err(EPERM),
        // personality: PER_LINUX, and asking for it; there is no other
        135 if matches!(a[0] as u32, 0 | u32::MAX) => Ok(0),
        135 => Err(EINVAL),
        _ => return None,
    })
}

/// The process with an id; 0 is the caller.
fn by_id(pid: u64) -> Result<ProcessRef> {
    match pid as u32 {
        0 => Ok(process::current()),
        pid => process::find(pid).ok_or(ESRCH),
    }
}

/// The process that `getpriority` and `setpriority` mean; groups and users are not told apart here.
fn priority(a: [u64; 6]) -> Result<ProcessRef> {
    match a[0] {
        0 => by_id(a[1]),
        1 | 2 => Ok(process::current()),
        _ => Err(EINVAL),
    }
}

fn setsid() -> SysResult {
    let me = process::current();
    let pid = me.pid.get();
    // Not for a group's leader, nor where a group of that number is left.
    if process::all().iter().any(|p| p.group.get() == pid) {
        return Err(EPERM);
    }
    me.session.set(pid);
    me.group.set(pid);
    Ok(u64::from(pid))
}

fn setpgid(pid: u64, group: u64) -> SysResult {
    let me = process::current();
    if (group as i32) < 0 {
        return Err(EINVAL);
    }
    let target = by_id(pid)?;
    let own = core::ptr::eq(target, me);
    if !own {
        if target.parent.get() != me.pid.get() {
            return Err(ESRCH);
        }
        if target.session.get() != me.session.get() {
            return Err(EPERM);
        }
        if target.executed.get() {
            return Err(EACCES);
        }
    }
    let id = target.pid.get();
    if target.session.get() == id {
        return Err(EPERM);
    }
    let group = if group == 0 { id } else { group as u32 };
    let known = |p: &ProcessRef| p.group.get() == group && p.session.get() == me.session.get();
    if group != id && !process::all().iter().any(known) {
        return Err(EPERM);
    }
    target.group.set(group);
    Ok(0)
}

fn set_ids(ids: &[u64], user: bool) -> SysResult {
    let (uid, gid) = sched::credentials();
    let current = if user { uid } else { gid };
    let mut wanted = current;
    for id in ids {
        let id = *id as u32;
        if id == u32::MAX {
            continue;
        }
        if uid != 0 && id != current {
            return Err(EPERM);
        }
        wanted = id;
    }
    if user {
        sched::set_credentials(wanted, gid);
    } else {
        sched::set_credentials(uid, wanted);
    }
    Ok(0)
}

fn write_three(a: [u64; 6], id: u32) -> SysResult {
    for at in &a[..3] {
        user::write(*at, id)?;
    }
    Ok(0)
}

fn getgroups(count: u64, at: u64) -> SysResult {
    let groups = sched::groups();
    if count != 0 {
        if (count as usize) < groups.len() {
            return Err(EINVAL);
        }
        for (i, group) in groups.iter().enumerate() {
            user::write(at + 4 * i as u64, *group)?;
        }
    }
    Ok(groups.len() as u64)
}

fn setgroups(count: u64, at: u64) -> SysResult {
    if sched::credentials().0 != 0 {
        return Err(EPERM);
    }
    if count > GROUPS_MAX {
        return Err(EINVAL);
    }
    sched::set_groups(user::read_array(at, count as usize)?);
    Ok(0)
}

fn uname(at: u64) -> SysResult {
    let mut name = UtsName([[0; 65]; 6]);
    let host = crate::fs::hostname();
    let fields: [&[u8]; 6] = [
        b"Linux",
        &host,
        RELEASE,
        b"#1 Quorate embedded kernel",
        b"x86_64",
        b"(none)",
    ];
    for (field, value) in name.0.iter_mut().zip(fields) {
        let len = value.len().min(64);
        field[..len].copy_from_slice(&value[..len]);
    }
    user::write(at, name)?;
    Ok(0)
}

fn set_host(at: u64, len: u64) -> SysResult {
    if sched::credentials().0 != 0 {
        return Err(EPERM);
    }
    if len > 64 {
        return Err(EINVAL);
    }
    crate::fs::set_hostname(user::bytes(at, len as usize)?);
    Ok(0)
}

fn sysinfo(at: u64) -> SysResult {
    let (total, free) = mm::memory_info();
    let info = SysInfo {
        uptime: (time::now_ns() / 1_000_000_000) as i64,
        total_ram: total,
        free_ram: free,
        procs: sched::thread_count() as u16,
        mem_unit: 1,
        ..SysInfo::default()
    };
    user::write(at, info)?;
    Ok(0)
}

fn prlimit(pid: u64, resource: u64, new: u64, old: u64) -> SysResult {
    let target = by_id(pid)?;
    let index = resource as usize;
    let mut current = *target.limits.borrow().0.get(index).ok_or(EINVAL)?;
    if index == NOFILE {
        current.0 = target.files.borrow().limit as u64;
    }
    if new != 0 {
        let [soft, hard]: [u64; 2] = user::read(new)?;
        if soft > hard {
            return Err(EINVAL);
        }
        if hard > current.1 && (sched::credentials().0 != 0 || index == NOFILE) {
            return Err(EPERM);
        }
        target.limits.borrow_mut().0[index] = (soft, hard);
        if index == NOFILE {
            target.files.borrow_mut().limit = soft as usize;
        }
    }
    user::write_opt(old, [current.0, current.1])?;
    Ok(0)
}

fn scheduler(a: [u64; 6], has_policy: bool) -> SysResult {
    let (policy, parameter_at) = if has_policy { (a[1], a[2]) } else { (0, a[1]) };
    let priority: i32 = user::read(parameter_at)?;
    // OTHER, BATCH, IDLE make no difference to one vCPU without preemption.
    match policy & 0xff {
        0 | 3 | 5 if priority == 0 => Ok(0),
        1 | 2 => Err(EPERM),
        _ => Err(EINVAL),
    }
}

fn affinity_get(size: u64, at: u64) -> SysResult {
    if size < 8 || !size.is_multiple_of(8) {
        return Err(EINVAL);
    }
    user::write(at, 1u64)?;
    Ok(8)
}

fn affinity_set(size: u64, at: u64) -> SysResult {
    let mut first = [0u8; 8];
    let n = (size as usize).min(8);
    first[..n].copy_from_slice(user::bytes(at, n)?);
    // There is one processor, and it must be in the set.
    if first[0] & 1 == 0 {
        Err(EINVAL)
    } else {
        Ok(0)
    }
}

fn getcpu(cpu: u64, node: u64) -> SysResult {
    user::write_opt(cpu, 0u32)?;
    user::write_opt(node, 0u32)?;
    Ok(0)
}

fn capget(header: u64, data: u64, uid: u32) -> SysResult {
    let version: u32 = user::read(header)?;
    let words = match version {
        0x1998_0330 => 1,
        0x2007_1026 | 0x2008_0522 => 2,
        _ => {
            user::write(header, 0x2008_0522u32)?;
            return Err(EINVAL);
        }
    };
    if data != 0 {
        let all = if uid == 0 { u32::MAX } else { 0 };
        for i in 0..words {
            let bits = if i == 0 { all } else { all & 0x1ff };
            user::write(data + 12 * i, [bits, bits, 0])?;
        }
    }
    Ok(0)
}
