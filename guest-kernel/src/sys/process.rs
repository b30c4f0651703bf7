//! What threads and processes register, and how they end themselves.

use crate::arch::{self, TrapFrame};
use crate::errno::*;
use crate::mm::space::HIGHEST;
use crate::{fingerprint, flight, process, sched, user};

/// `exit`: ends the calling thread; the last one ends the process.
pub fn exit(status: u64) -> ! {
    fingerprint::call(60, status);
    flight::call(60, [status, 0, 0, 0, 0, 0], 0, 0, 0);
    process::end::thread_with((status as u32 & 0xff) << 8)
}

/// `exit_group`.
pub fn exit_group(status: u64) -> ! {
    fingerprint::call(231, status);
    flight::call(231, [status, 0, 0, 0, 0, 0], 0, 0, 0);
    process::end::process((status as u32 & 0xff) << 8)
}

/// Timer slack of a thread that has not set one, in nanoseconds.
pub const TIMER_SLACK_NS: u64 = 50_000;

/// `arch_prctl`.
///
/// # Errors
/// `EINVAL`, `EPERM`, `EFAULT`.
pub fn arch_prctl(code: u64, addr: u64) -> SysResult {
    match code {
        0x1001 | 0x1002 if addr >= HIGHEST => Err(EPERM),
        0x1001 => {
            arch::set_gs_base(addr);
            Ok(0)
        }
        0x1002 => {
            arch::set_fs_base(addr);
            Ok(0)
        }
        0x1003 => user::write(addr, arch::fs_base()).map(|()| 0),
        0x1004 => user::write(addr, arch::gs_base()).map(|()| 0),
        _ => Err(EINVAL),
    }
}

/// `set_tid_address`.
///
/// # Errors
/// None.
pub fn set_tid_address(addr: u64) -> SysResult {
    Ok(sched::with_current(|t| {
        t.clear_tid = addr;
        u64::from(t.tid)
    }))
}

/// `set_robust_list`.
///
/// # Errors
/// `EINVAL`.
pub fn set_robust_list(head: u64, len: u64) -> SysResult {
    if len != 24 {
        return Err(EINVAL);
    }
    sched::with_current(|t| t.robust_list = (head, len));
    Ok(0)
}

/// `get_robust_list`.
///
/// # Errors
/// `ESRCH`, `EFAULT`.
pub fn get_robust_list(tid: u64, head_at: u64, len_at: u64) -> SysResult {
    let tid = if tid == 0 {
        sched::current()
    } else {
        tid as u32
    };
    let (head, len) = sched::with_thread(tid, |t| t.robust_list).ok_or(ESRCH)?;
    user::write(head_at, head)?;
    user::write(len_at, if len == 0 { 24 } else { len })?;
    Ok(0)
}

/// `prctl`: names, what becomes of children, and the settings that hold anyway here (there is nothing to dump to, no privilege to gain).
///
/// # Errors
/// `EINVAL` for what is not known.
pub fn prctl(a: [u64; 6]) -> SysResult {
    match a[0] {
        // PR_SET_NAME, PR_GET_NAME
        15 => {
            let name = user::bytes(a[1], 16).or_else(|_| user::bytes(a[1], 1))?;
            let len = name.iter().position(|b| *b == 0).unwrap_or(15).min(15);
            let mut copy = [0u8; 16];
            copy[..len].copy_from_slice(&name[..len]);
            sched::with_current(|t| t.name = copy);
            Ok(0)
        }
        16 => {
            let name = sched::with_current(|t| t.name);
            user::write(a[1], name)?;
            Ok(0)
        }
        // PR_GET_PDEATHSIG
        2 => user::write(a[1], process::current().death_signal.get()).map(|()| 0),
        // PR_GET_DUMPABLE, PR_SET_DUMPABLE
        3 => Ok(u64::from(!process::current().undumpable.get())),
        4 if a[1] <= 1 => {
            process::current().undumpable.set(a[1] == 0);
            Ok(0)
        }
        // PR_SET_PDEATHSIG
        1 if a[1] <= 64 => {
            process::current().death_signal.set(a[1] as u32);
            Ok(0)
        }
        // PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS: there are none to gain
        38 if a[1] == 1 => Ok(0),
        39 => Ok(1),
        // PR_SET_KEEPCAPS, PR_GET_KEEPCAPS, PR_CAPBSET_READ
        7 => Ok(0),
        23 if a[1] < 41 => Ok(u64::from(sched::credentials().0 == 0)),
        // PR_SET_TIMERSLACK, PR_GET_TIMERSLACK: stored; deadlines are kept to the boundary
        29 => {
            let slack = if a[1] == 0 { TIMER_SLACK_NS } else { a[1] };
            sched::with_current(|t| t.timer_slack_ns = slack);
            Ok(0)
        }
        30 => Ok(sched::with_current(|t| t.timer_slack_ns)),
        // PR_SET_THP_DISABLE, PR_GET_THP_DISABLE: the guest uses small pages only
        41 | 42 => Ok(u64::from(a[0] == 42)),
        // PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER
        36 => {
            process::current().reaper.set(a[1] != 0);
            Ok(0)
        }
        37 => user::write(a[1], i32::from(process::current().reaper.get())).map(|()| 0),
        _ => Err(EINVAL),
    }
}

/// `membarrier`: one vCPU and no preemption order everything already.
///
/// # Errors
/// `EINVAL`.
pub fn membarrier(command: u64) -> SysResult {
    match command {
        // QUERY: GLOBAL, GLOBAL_EXPEDITED and its registration, PRIVATE_EXPEDITED and its registration
        0 => Ok(0x1f),
        1 | 2 | 4 | 8 | 16 => Ok(0),
        _ => Err(EINVAL),
    }
}

/// `rseq`: restartable sequences. There is one CPU and no preemption, so a sequence is only ever cut short by a
/// signal; see [`crate::signal`].
///
/// # Errors
/// `EINVAL`, `EBUSY`, `EPERM`, `EFAULT`.
pub fn rseq(area: u64, len: u64, flags: u64, signature: u32) -> SysResult {
    const UNREGISTER: u64 = 1;
    let known = sched::with_current(|t| t.rseq);
    match flags {
        UNREGISTER => {
            if known.0 == 0 || known.0 != area || len != RSEQ_LEN {
                return Err(EINVAL);
            }
            if known.1 != signature {
                return Err(EPERM);
            }
            user::write(area, [0u32, u32::MAX])?;
            sched::with_current(|t| t.rseq = (0, 0));
            Ok(0)
        }
        0 => {
            if known.0 != 0 {
                return Err(if known.1 == signature { EBUSY } else { EPERM });
            }
            if len < RSEQ_LEN || !area.is_multiple_of(32) {
                return Err(EINVAL);
            }
            user::bytes_mut(area, len as usize)?;
            // cpu_id_start, cpu_id: the only CPU.
            user::write(area, [0u32, 0])?;
            sched::with_current(|t| t.rseq = (area, signature));
            Ok(0)
        }
        _ => Err(EINVAL),
    }
}

/// Bytes of the original `struct rseq`.
const RSEQ_LEN: u64 = 32;

/// Before a signal is delivered: if the thread was inside a restartable sequence, it goes on at the abort handler.
///
/// # Errors
/// `EFAULT`, `EINVAL`: what the program registered is broken, and it gets SIGSEGV as on Linux.
pub fn rseq_abort(frame: &mut TrapFrame) -> Result<()> {
    let (area, signature) = sched::with_current(|t| t.rseq);
    if area == 0 {
        return Ok(());
    }
    let section: u64 = user::read(area + 8)?;
    if section == 0 {
        return Ok(());
    }
    let [_, start, length, abort]: [u64; 4] = user::read(section)?;
    user::write(area + 8, 0u64)?;
    if frame.rip.wrapping_sub(start) < length {
        if user::read::<u32>(abort.wrapping_sub(4))? != signature {
            return Err(EINVAL);
        }
        frame.rip = abort;
    }
    Ok(())
}
