//! Futexes, keyed by address space and address, or by the page where that is shared. Waiters are woken in the order in which they came.

use crate::cell::Global;
use crate::errno::*;
use crate::time::{self, Timespec};
use crate::wait::Wake;
use crate::{mm, sched, user};
use alloc::collections::{BTreeMap, VecDeque};

const WAIT: u64 = 0;
const WAKE: u64 = 1;
const REQUEUE: u64 = 3;
const CMP_REQUEUE: u64 = 4;
const WAKE_OP: u64 = 5;
const WAIT_BITSET: u64 = 9;
const WAKE_BITSET: u64 = 10;
const PRIVATE: u64 = 128;
const CLOCK_REALTIME: u64 = 256;

const FUTEX_WAITERS: u32 = 0x8000_0000;
const FUTEX_OWNER_DIED: u32 = 0x4000_0000;
const FUTEX_TID_MASK: u32 = 0x3fff_ffff;
/// Most entries followed on a robust list (as Linux): it is the program's memory and may be a circle.
const ROBUST_LIMIT: usize = 2048;

#[derive(Clone, Copy)]
struct Waiter {
    tid: u32,
    bitset: u32,
}

/// What a futex is known by: (address space, address), or (0, physical address) in a shared mapping. Nothing depends on the order of
/// keys (R8).
type Key = (u64, u64);

static WAITERS: Global<BTreeMap<Key, VecDeque<Waiter>>> = Global::new(BTreeMap::new());

/// The futex at an address of the running program.
fn key(addr: u64, private: bool) -> Key {
    let space = mm::space();
    match space.shared_word(addr) {
        Some(physical) if !private => (0, physical),
        _ => (space.id, addr),
    }
}

/// `futex`.
///
/// # Errors
/// As Linux; `ENOSYS` for the priority-inheriting operations.
pub fn futex(
    addr: u64,
    operation: u64,
    value: u32,
    timeout: u64,
    addr2: u64,
    value3: u32,
) -> SysResult {
    if !addr.is_multiple_of(4) {
        return Err(EINVAL);
    }
    let realtime = operation & CLOCK_REALTIME != 0;
    let private = operation & PRIVATE != 0;
    match operation & !(PRIVATE | CLOCK_REALTIME) {
        WAIT => {
            let deadline = match timeout {
                0 => None,
                at => Some(time::now_ns().saturating_add(user::read::<Timespec>(at)?.to_ns()?)),
            };
            wait(addr, private, value, deadline, u32::MAX)
        }
        WAIT_BITSET => {
            let deadline = match timeout {
                0 => None,
                at => {
                    let ns = user::read::<Timespec>(at)?.to_ns()?;
                    Some(if realtime {
                        time::realtime_to_monotonic_ns(ns)
                    } else {
                        ns
                    })
                }
            };
            wait(addr, private, value, deadline, value3)
        }
        WAKE => {
            user::bytes(addr, 4)?;
            Ok(wake(key(addr, private), value, u32::MAX))
        }
        WAKE_BITSET => {
            user::bytes(addr, 4)?;
            wake_checked(key(addr, private), value, value3)
        }
        REQUEUE => requeue([addr, addr2], private, value, timeout as u32, None),
        CMP_REQUEUE => requeue([addr, addr2], private, value, timeout as u32, Some(value3)),
        WAKE_OP => wake_op([addr, addr2], private, value, timeout as u32, value3),
        _ => Err(ENOSYS),
    }
}

fn wait(addr: u64, private: bool, value: u32, deadline: Option<u64>, bitset: u32) -> SysResult {
    if bitset == 0 {
        return Err(EINVAL);
    }
    if user::read::<u32>(addr)? != value {
        return Err(EAGAIN);
    }
    if sched::signal_pending() {
        return Err(EINTR);
    }
    let tid = sched::current();
    let key = key(addr, private);
    WAITERS
        .borrow_mut()
        .entry(key)
        .or_default()
        .push_back(Waiter { tid, bitset });
    let why = sched::block(deadline);
    // A requeue may have moved the waiter: look everywhere if it was not woken by `wake`.
    let mut waiters = WAITERS.borrow_mut();
    if why != Wake::Ready {
        waiters.retain(|_, queue| {
            queue.retain(|w| w.tid != tid);
            !queue.is_empty()
        });
    }
    match why {
        Wake::Ready => Ok(0),
        Wake::Timeout => Err(ETIMEDOUT),
        Wake::Signal => Err(EINTR),
    }
}

/// Wakes up to `most` waiters; returns how many.
fn wake(key: Key, most: u32, bitset: u32) -> u64 {
    let mut woken = 0;
    while woken < u64::from(most) {
        let mut waiters = WAITERS.borrow_mut();
        let Some(queue) = waiters.get_mut(&key) else {
            break;
        };
        let Some(at) = queue.iter().position(|w| w.bitset & bitset != 0) else {
            break;
        };
        let waiter = queue.remove(at);
        if queue.is_empty() {
            waiters.remove(&key);
        }
        drop(waiters);
        if let Some(waiter) = waiter
            && sched::make_runnable(waiter.tid, Wake::Ready)
        {
            woken += 1;
        }
    }
    woken
}

fn wake_checked(key: Key, most: u32, bitset: u32) -> SysResult {
    if bitset == 0 {
        Err(EINVAL)
    } else {
        Ok(wake(key, most, bitset))
    }
}

fn requeue(
    [from, to]: [u64; 2],
    private: bool,
    wake_most: u32,
    move_most: u32,
    expected: Option<u32>,
) -> SysResult {
    if !to.is_multiple_of(4) || (move_most as i32) < 0 || (wake_most as i32) < 0 {
        return Err(EINVAL);
    }
    let current: u32 = user::read(from)?;
    user::bytes(to, 4)?;
    if expected.is_some_and(|e| e != current) {
        return Err(EAGAIN);
    }
    let (from, to) = (key(from, private), key(to, private));
    let woken = wake(from, wake_most, u32::MAX);
    let mut waiters = WAITERS.borrow_mut();
    let mut moved = 0;
    if from != to
        && let Some(mut queue) = waiters.remove(&from)
    {
        let target = waiters.entry(to).or_default();
        while moved < u64::from(move_most) {
            let Some(waiter) = queue.pop_front() else {
                break;
            };
            target.push_back(waiter);
            moved += 1;
        }
        if target.is_empty() {
            waiters.remove(&to);
        }
        if !queue.is_empty() {
            waiters.insert(from, queue);
        }
    }
    Ok(woken + if expected.is_some() { moved } else { 0 })
}

fn wake_op(
    [addr, addr2]: [u64; 2],
    private: bool,
    wake_most: u32,
    wake_most2: u32,
    encoded: u32,
) -> SysResult {
    let (operation, comparison) = (encoded >> 28 & 7, encoded >> 24 & 15);
    let mut operand = (encoded << 8) as i32 >> 20;
    let compared = (encoded << 20) as i32 >> 20;
    if encoded >> 31 != 0 {
        operand = 1i32.checked_shl(operand as u32).ok_or(EINVAL)?;
    }
    let old: i32 = user::read(addr2)?;
    let new = match operation {
        0 => operand,
        1 => old.wrapping_add(operand),
        2 => old | operand,
        3 => old & !operand,
        4 => old ^ operand,
        _ => return Err(ENOSYS),
    };
    user::write(addr2, new)?;
    let mut woken = wake(key(addr, private), wake_most, u32::MAX);
    let hit = match comparison {
        0 => old == compared,
        1 => old != compared,
        2 => old < compared,
        3 => old <= compared,
        4 => old > compared,
        5 => old >= compared,
        _ => return Err(ENOSYS),
    };
    if hit {
        woken += wake(key(addr2, private), wake_most2, u32::MAX);
    }
    Ok(woken)
}

/// What an ending thread owes to others: robust futexes marked, its tid word cleared and woken.
pub fn thread_ends(tid: u32, robust_list: u64, clear_tid: u64) {
    if robust_list != 0 {
        let _ = walk_robust_list(tid, robust_list);
    }
    if clear_tid != 0 && user::write(clear_tid, 0u32).is_ok() {
        wake(key(clear_tid, false), 1, u32::MAX);
    }
}

fn walk_robust_list(tid: u32, head: u64) -> Result<()> {
    let offset: i64 = user::read(head + 8)?;
    let pending: u64 = user::read(head + 16)?;
    let mut entry: u64 = user::read(head)?;
    let mut left = ROBUST_LIMIT;
    while entry & !1 != head && left > 0 {
        let next: u64 = user::read(entry & !1)?;
        if entry != pending {
            owner_died(tid, (entry & !1).wrapping_add_signed(offset))?;
        }
        entry = next;
        left -= 1;
    }
    if pending != 0 {
        owner_died(tid, (pending & !1).wrapping_add_signed(offset))?;
    }
    Ok(())
}

fn owner_died(tid: u32, word_at: u64) -> Result<()> {
    let word: u32 = user::read(word_at)?;
    if word & FUTEX_TID_MASK == tid {
        user::write(word_at, word & FUTEX_WAITERS | FUTEX_OWNER_DIED)?;
        if word & FUTEX_WAITERS != 0 {
            wake(key(word_at, false), 1, u32::MAX);
        }
    }
    Ok(())
}
